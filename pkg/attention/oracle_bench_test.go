package attention

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// The time of the oracle, which is that of verify, by rows that share a pass over the keys.
func BenchmarkOracle(b *testing.B) {
	const nk, d = 1 << 13, 64
	rng := rand.New(rand.NewPCG(3, 4))
	for _, typ := range []DType{F32, F16, BF16} {
		k, v := pack(typ, normal(rng, nk, d), 0), pack(typ, normal(rng, nk, d), 0)
		for _, n := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%v/%d", typ, n), func(b *testing.B) {
				q, visible, out := make([][]float32, n), make([]int, n), make([][]float64, n)
				for i := range q {
					q[i], visible[i], out[i] = make([]float32, d), nk, make([]float64, d)
					for x := range q[i] {
						q[i][x] = float32(rng.NormFloat64())
					}
				}
				for b.Loop() {
					Oracle(out, q, visible, k, v, 0.125)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*nk*n), "ns/row/key")
			})
		}
	}
}
