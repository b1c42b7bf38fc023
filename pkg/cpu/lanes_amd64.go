package cpu

import (
	"sync"
	"time"

	"golang.org/x/sys/cpu"
)

//go:generate go run -C _generate ./lanes -out ../lanes_amd64.s -stubs ../lanes_stub_amd64.go -pkg cpu

// laneTiers returns the kernels that this CPU can run, best first.
func laneTiers() []laneKernels { return laneTiersBy(halfRate) }

func laneTiersBy(halved func() bool) (tiers []laneKernels) {
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL {
		k := laneKernels{
			name: "avx512", chains: 2, keys: 256, scores: scoresAVX512, scoresWide: scoresWideAVX512,
			mask: maskAVX512, maskWide: maskWideAVX512,
			rebase: rebaseAVX512, rebaseWide: rebaseWideAVX512,
			softmax: softmaxAVX512, softmaxWide: softmaxWideAVX512, values: valuesAVX512,
		}
		k.valuesBF16 = valuesBF16HalfAVX512
		k.fewScores, k.fewValues, k.fewValuesBF16 = fewScoresAVX512, fewValuesAVX512, fewValuesBF16AVX512
		if x.HasAVX512BF16 {
			k.scoresBF16, k.pairValues = scoresBF16AVX512, pairValuesAVX512
			k.fewScoresBF16 = fewScoresBF16AVX512
			k.softmaxPairs, k.valuesPairs = softmaxPairsAVX512, valuesPairsAVX512
		}
		k.narrowFew(halved())
		tiers = append(tiers, k)
	}
	if x.HasAVX2 && x.HasFMA && x.HasF16C {
		tiers = append(tiers, laneKernels{
			name: "avx2", chains: 1, keys: 128, scores: scoresAVX2, scoresWide: scoresWideAVX2,
			mask: maskAVX2, maskWide: maskWideAVX2,
			rebase: rebaseAVX2, rebaseWide: rebaseWideAVX2,
			softmax: softmaxAVX2, softmaxWide: softmaxWideAVX2, values: valuesAVX2,
		})
	}
	return tiers
}

// narrowFew sends tiles of few lanes to the kernels with vectors of 256 bits: 8
// lanes, and 16 where that is no slower, being halved. The results are the same to
// the bit.
func (k *laneKernels) narrowFew(halved bool) {
	half := func(lanes int) bool { return lanes == 8 || lanes == 16 && halved }
	k.scores = func(s, top, q *float32, d, lanes int, kk *float32, stride, keys int) {
		if half(lanes) {
			scoresHalfAVX512(s, top, q, d, lanes, kk, stride, keys)
		} else {
			scoresAVX512(s, top, q, d, lanes, kk, stride, keys)
		}
	}
	k.values = func(acc, alpha *float64, lanes int, p *float32, keys int, v *float32, stride, dv int) {
		if half(lanes) {
			valuesHalfAVX512(acc, alpha, lanes, p, keys, v, stride, dv)
		} else {
			valuesAVX512(acc, alpha, lanes, p, keys, v, stride, dv)
		}
	}
	if k.scoresBF16 == nil {
		return
	}
	k.scoresBF16 = func(s, top *float32, q *uint32, d, lanes int, kk *uint16, stride, keys int) {
		if half(lanes) {
			scoresBF16HalfAVX512(s, top, q, d, lanes, kk, stride, keys)
		} else {
			scoresBF16AVX512(s, top, q, d, lanes, kk, stride, keys)
		}
	}
	k.valuesPairs = func(acc, alpha *float64, lanes int, p *uint32, pairs int, v *uint32, dv int) {
		if half(lanes) {
			valuesPairsHalfAVX512(acc, alpha, lanes, p, pairs, v, dv)
		} else {
			valuesPairsAVX512(acc, alpha, lanes, p, pairs, v, dv)
		}
	}
}

// halfRate says whether vectors of 512 bits take as long as two of 256: then 16
// lanes are better two vectors, since a broadcast serves both and costs half as
// much. No result depends on it. The units for the upper halves may have to be
// powered up first, which takes some tens of microseconds.
var halfRate = sync.OnceValue(func() bool {
	fmaPeak512(20_000)
	var best [2]time.Duration
	for i := range 8 {
		for j, run := range []func(int){fmaPeak256, fmaPeak512} {
			start := time.Now()
			run(200)
			if took := time.Since(start); i == 0 || took < best[j] {
				best[j] = took
			}
		}
	}
	return 2*best[1] > 3*best[0]
})

// FLOPs of an iteration of the loops that measure the FMA peak.
const (
	fmaPeakFlops512 = 12 * 2 * 16
	fmaPeakFlops256 = 12 * 2 * 8
)
