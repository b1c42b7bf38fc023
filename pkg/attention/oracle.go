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
	wide := make([][]float64, len(q))
	for i, row := range q {
		wide[i] = widen(make([]float64, len(row)), row)
	}
	scores := func(visit func(row, key int, s float64, v []float64)) {
		narrow := make([]float32, max(k.Width, v.Width))
		kf, vf := make([]float64, k.Width), make([]float64, v.Width)
		for j := range last {
			k.DType.Widen(narrow[:k.Width], k.Row(j))
			widen(kf, narrow)
			v.DType.Widen(narrow[:v.Width], v.Row(j))
			widen(vf, narrow)
			for i, row := range wide {
				if j >= visible[i] {
					continue
				}
				visit(i, j, dot(row, kf)*scale, vf)
			}
		}
	}
	scores(func(i, _ int, s float64, _ []float64) { maxima[i] = math.Max(maxima[i], s) })
	scores(func(i, _ int, s float64, v []float64) {
		p := math.Exp(s - maxima[i])
		sums[i] += p
		row := out[i][:len(v)]
		for d, x := range v {
			row[d] += p * x
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

// widen fills a row with as many values as it has room for.
func widen(to []float64, from []float32) []float64 {
	for i := range to {
		to[i] = float64(from[i])
	}
	return to
}

// dot has four sums under way, since each addition waits for the one before.
func dot(a, b []float64) float64 {
	var s0, s1, s2, s3 float64
	for len(a) >= 4 && len(b) >= 4 {
		s0 += a[0] * b[0]
		s1 += a[1] * b[1]
		s2 += a[2] * b[2]
		s3 += a[3] * b[3]
		a, b = a[4:], b[4:]
	}
	for i, x := range a {
		s0 += x * b[i]
	}
	return s0 + s1 + (s2 + s3)
}
