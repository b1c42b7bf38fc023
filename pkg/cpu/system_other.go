//go:build !linux

package cpu

func preferHuge([]byte)             {}
func populate(mapping, part []byte) {}
func allowedCPUs() []int            { return nil }
func stayOn(int)                    {}
