//go:build !amd64

package cpu

// rowTiers returns no kernels: there are none for this architecture.
func rowTiers() []rowKernels { return nil }
