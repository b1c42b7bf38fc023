package cpu

import "golang.org/x/sys/cpu"

//go:generate go run -C _generate ./rows -out ../rows_amd64.s -stubs ../rows_stub_amd64.go -pkg cpu

// rowTiers returns the kernels that this CPU can run, best first.
func rowTiers() (tiers []rowKernels) {
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasBMI2 {
		tiers = append(tiers, rowKernels{
			name:     "avx512",
			foreseen: 2,
			dotsF32:  dotsF32AVX512, dotsBF16: dotsBF16AVX512, dotsF16: dotsF16AVX512,
			weights: weightsAVX512, accumulate: accumulateAVX512,
			combineF32: combineF32AVX512, combineBF16: combineBF16AVX512, combineF16: combineF16AVX512,
			normF32: normF32AVX512, normBF16: normBF16AVX512, normF16: normF16AVX512,
			peakF32: peakF32AVX512, peakBF16: peakBF16AVX512, peakF16: peakF16AVX512,
			widenBF16: widenBF16AVX512, widenF16: widenF16AVX512,
			readPeak: readPeakAVX512,
		})
	}
	if x.HasAVX2 && x.HasFMA && x.HasF16C {
		tiers = append(tiers, rowKernels{
			name:    "avx2",
			dotsF32: dotsF32AVX2, dotsBF16: dotsBF16AVX2, dotsF16: dotsF16AVX2,
			weights: weightsAVX2, accumulate: accumulateAVX2,
			combineF32: combineF32AVX2, combineBF16: combineBF16AVX2, combineF16: combineF16AVX2,
			normF32: normF32AVX2, normBF16: normBF16AVX2, normF16: normF16AVX2,
			peakF32: peakF32AVX2, peakBF16: peakBF16AVX2, peakF16: peakF16AVX2,
			widenBF16: widenBF16AVX2, widenF16: widenF16AVX2,
			readPeak: readPeakAVX2,
		})
	}
	return tiers
}
