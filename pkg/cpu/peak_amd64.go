package cpu

// fmaPeak returns a loop of multiply-adds in registers and its FLOPs an iteration.
func fmaPeak(kernel string) (run func(n int), flops int) {
	switch kernel {
	case "avx512":
		return fmaPeak512, fmaPeakFlops512
	case "avx2":
		return fmaPeak256, fmaPeakFlops256
	}
	return nil, 0
}
