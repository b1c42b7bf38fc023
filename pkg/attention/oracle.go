package attention

import "math"

// Oracle evaluates the definition in float64 for chosen query rows of one head.
//
// q holds one row of D elements per query, visible[i] the number of keys that
// row i sees (always a prefix of the keys), k and v all keys of the head. out
// receives one row of Dv elements per query, and the natural-log lse of each
// row is returned. It makes two passes over the keys and keeps no scores, so
// its memory does not depend on their number.
//
// NaN and infinities take their IEEE course. A row that sees no key gives 0
// and -inf; a row all of whose scores are -inf gives NaN and -inf, the limit of
// the definition being undefined.
func Oracle(out [][]float64, q [][]float32, visible []int, k, v Rows, scale float64) (lse []float64) {
	maxima := make([]float64, len(q))
	sums := make([]float64, len(q))
	for i := range q {
		maxima[i] = math.Inf(-1)
		clear(out[i])
	}
	last := 0
	for _, n := range visible {
		last = max(last, n)
	}
	scores := func(visit func(row, key int, s float64, v []float32)) {
		kf, vf := make([]float32, k.Width), make([]float32, v.Width)
		for j := range last {
			k.DType.Widen(kf, k.Row(j))
			v.DType.Widen(vf, v.Row(j))
			for i, row := range q {
				if j >= visible[i] {
					continue
				}
				var dot float64
				for d, x := range row {
					dot += float64(x) * float64(kf[d])
				}
				visit(i, j, dot*scale, vf)
			}
		}
	}
	scores(func(i, _ int, s float64, _ []float32) { maxima[i] = math.Max(maxima[i], s) })
	scores(func(i, _ int, s float64, v []float32) {
		p := math.Exp(s - maxima[i])
		sums[i] += p
		for d, x := range v {
			out[i][d] += p * float64(x)
		}
	})
	lse = make([]float64, len(q))
	for i := range q {
		if visible[i] == 0 {
			lse[i] = math.Inf(-1)
			continue
		}
		for d := range out[i] {
			out[i][d] /= sums[i]
		}
		lse[i] = maxima[i] + math.Log(sums[i])
		if math.IsInf(maxima[i], -1) {
			lse[i] = math.Inf(-1)
		}
	}
	return lse
}
