//go:build !amd64

package cpu

func fmaPeak(string) (run func(n int), flops int) { return nil, 0 }
