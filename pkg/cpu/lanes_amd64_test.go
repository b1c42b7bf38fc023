//go:build unix

package cpu

import (
	"math"
	"slices"
	"testing"
)

func init() {
	laneVariants = func() []laneKernels {
		tiers := laneTiersBy(func() bool { return false })
		if len(tiers) > 0 && tiers[0].name == "avx512" {
			halved := laneTiersBy(func() bool { return true })[0]
			halved.name += "-halved"
			tiers = append(tiers, halved)
		}
		return tiers
	}
}

// The choice between the two blocks for 16 lanes is made by a stopwatch: no bit
// may depend on it.
func TestLaneHalvesSame(t *testing.T) {
	all := laneVariants()
	if len(all) == 0 || all[0].name != "avx512" {
		t.Skip("no AVX-512")
	}
	whole, halved := all[0], all[len(all)-1]
	const lanes = 16
	for n := 1; n < 70; n++ {
		q, k := benchData(n*lanes), benchData(n*n)
		var s, top, acc = [2][]float32{}, [2][]float32{}, [2][]float64{}
		alpha := laneFill(lanes, 0.5)
		for i, tier := range []laneKernels{whole, halved} {
			s[i], top[i], acc[i] = make([]float32, n*lanes), laneFill(lanes, float32(math.Inf(-1))), laneFill(n*lanes, 1.0)
			tier.scores(&s[i][0], &top[i][0], &q[0], n, lanes, &k[0], 4*n, n)
			tier.values(&acc[i][0], &alpha[0], lanes, &s[i][0], n, &k[0], 4*n, n)
		}
		if !slices.Equal(s[0], s[1]) || !slices.Equal(top[0], top[1]) || !slices.Equal(acc[0], acc[1]) {
			t.Fatalf("%d keys of %d features: bits differ", n, n)
		}
		short := laneTruncate(k)
		wide := make([]float32, len(short))
		for i, x := range short {
			wide[i] = laneBF16(uint32(x))
		}
		halved.values(&acc[0][0], &alpha[0], lanes, &s[0][0], n, &wide[0], 4*n, n)
		halved.valuesBF16(&acc[1][0], &alpha[0], lanes, &s[0][0], n, &short[0], 2*n, n)
		if !slices.Equal(acc[0], acc[1]) {
			t.Fatalf("%d keys of %d features: values in bfloat16 give other bits than widened ones", n, n)
		}
		if whole.scoresBF16 == nil || n%2 == 1 {
			continue
		}
		pairs, v := lanePairs(q, n, lanes), make([]uint32, n/2*n)
		whole.pairValues(&v[0], &short[0], 2*n, n, n)
		for i, tier := range []laneKernels{whole, halved} {
			tier.scoresBF16(&s[i][0], &top[i][0], &pairs[0], n, lanes, &short[0], 2*n, n)
			tier.valuesPairs(&acc[i][0], &alpha[0], lanes, &pairs[0], n/2, &v[0], n)
		}
		if !slices.Equal(s[0], s[1]) || !slices.Equal(top[0], top[1]) || !slices.Equal(acc[0], acc[1]) {
			t.Fatalf("%d keys of %d bfloat16 features: bits differ", n, n)
		}
	}
}
