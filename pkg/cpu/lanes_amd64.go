package cpu

import "golang.org/x/sys/cpu"

//go:generate go run -C _generate ./lanes -out ../lanes_amd64.s -stubs ../lanes_stub_amd64.go -pkg cpu

// laneTiers returns the kernels that this CPU can run, best first.
func laneTiers() (tiers []laneKernels) {
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL {
		k := laneKernels{
			name: "avx512", chains: 2, keys: 256, least: 16, scores: scoresAVX512, scoresWide: scoresWideAVX512,
			mask: maskAVX512, maskWide: maskWideAVX512,
			rebase: rebaseAVX512, rebaseWide: rebaseWideAVX512,
			softmax: softmaxAVX512, softmaxWide: softmaxWideAVX512, values: valuesAVX512,
		}
		k.fewScores, k.fewScoresF16 = fewScoresAVX512, fewScoresF16AVX512
		k.fewValues, k.fewValuesF16, k.fewValuesBF16 = fewValuesAVX512, fewValuesF16AVX512, fewValuesBF16AVX512
		if x.HasAVX512BF16 && fastDots() {
			k.scoresBF16, k.pairValues = scoresBF16AVX512, pairValuesAVX512
			k.fewScoresBF16 = fewScoresBF16AVX512
			k.softmaxPairs, k.valuesPairs = softmaxPairsAVX512, valuesPairsAVX512
		}
		tiers = append(tiers, k)
	}
	if x.HasAVX2 && x.HasFMA && x.HasF16C {
		tiers = append(tiers, laneKernels{
			name: "avx2", chains: 1, keys: 128, least: 8, scores: scoresAVX2, scoresWide: scoresWideAVX2,
			mask: maskAVX2, maskWide: maskWideAVX2,
			rebase: rebaseAVX2, rebaseWide: rebaseWideAVX2,
			softmax: softmaxAVX2, softmaxWide: softmaxWideAVX2, values: valuesAVX2,
		})
	}
	return tiers
}

// fastDots says whether dot products of bfloat16 do more than multiply-adds of float32. AMD's
// processors do as many instructions of the one as of the other, each of twice the products;
// Intel's do half as many, so that widening is faster (docs/benchmarks.md, 16 cores).
func fastDots() bool {
	const amd = 'A' | 'u'<<8 | 't'<<16 | 'h'<<24 // AuthenticAMD
	return cpuMaker() == amd
}

// FLOPs of an iteration of the loops that measure the FMA peak.
const (
	fmaPeakFlops512 = 12 * 2 * 16
	fmaPeakFlops256 = 12 * 2 * 8
)
