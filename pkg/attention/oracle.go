package attention

import (
	"context"
	"math"
	"sync"
)

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
	for lo, most := 0, TogetherRows(v.Width); lo < len(q); lo += most {
		hi := min(lo+most, len(q))
		e := Evaluate(q[lo:hi], visible[lo:hi], k, v, scale)
		for part := range e.Parts() {
			_ = e.Maxima(context.Background(), part) // which does not end
		}
		for part := range e.Parts() {
			_ = e.Sums(context.Background(), part)
		}
		lse = append(lse, e.Result(out[lo:hi])...)
	}
	return lse
}

// Evaluation is what Oracle does to rows that share a pass over the keys, for several
// threads: the keys are cut into parts, and those of one pass may be evaluated at once and
// in any order. Where the cuts are follows from the number of all keys, and the sums of
// parts are added in the order of the keys, so that a row's bits depend on nothing else: not
// on the threads, nor on the rows beside it.
type Evaluation struct {
	q       [][]float64
	visible []int
	k, v    Rows
	scale   float64
	length  int // of a part, in keys

	mu     sync.Mutex
	maxima []float64 // by row
	parts  []partSums
}

// partSums are those of one part: by row, and by row and column.
type partSums struct{ weights, values []float64 }

const (
	lanes     = 4   // keys whose scores are summed side by side, since each addition waits for the one before
	leastPart = 64  // keys
	mostParts = 256 // which bounds the memory of their sums
)

// block is one feature of so many keys.
type block [lanes]float64

// TogetherRows is how many rows should share a pass, if V has that many columns: reading
// the keys has its price, and so does the memory of the sums.
func TogetherRows(dv int) int { return min(64, max(4, 1<<13/dv)) }

// Evaluate begins an evaluation of rows: see Oracle for what they are.
func Evaluate(q [][]float32, visible []int, k, v Rows, scale float64) *Evaluation {
	e := &Evaluation{visible: visible, k: k, v: v, scale: scale}
	last := 0
	for i, row := range q {
		wide := make([]float64, len(row))
		for d, x := range row {
			wide[d] = float64(x)
		}
		e.q, e.maxima = append(e.q, wide), append(e.maxima, math.Inf(-1))
		last = max(last, visible[i])
	}
	e.length = max(leastPart, (k.N+mostParts-1)/mostParts)
	e.length = (e.length + lanes - 1) / lanes * lanes
	e.parts = make([]partSums, (last+e.length-1)/e.length)
	return e
}

// Parts is the number of parts of the keys that any of the rows sees.
func (e *Evaluation) Parts() int { return len(e.parts) }

// Maxima is the first pass over one part. It ends with ctx's cause when that ends.
func (e *Evaluation) Maxima(ctx context.Context, part int) error {
	maxima := make([]float64, len(e.q))
	for i := range maxima {
		maxima[i] = math.Inf(-1)
	}
	err := e.pass(ctx, part, nil, func(i int, scores []float64) {
		for _, s := range scores {
			maxima[i] = max(maxima[i], s)
		}
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, m := range maxima {
		e.maxima[i] = max(e.maxima[i], m)
	}
	return err
}

// Sums is the second pass over one part, when the first one is over for all. It ends with
// ctx's cause when that ends.
func (e *Evaluation) Sums(ctx context.Context, part int) error {
	width := e.v.Width
	p := partSums{make([]float64, len(e.q)), make([]float64, len(e.q)*width)}
	e.parts[part] = p
	v := make([]block, width)
	return e.pass(ctx, part, v, func(i int, scores []float64) {
		for j, s := range scores {
			scores[j] = math.Exp(s - e.maxima[i])
			p.weights[i] += scores[j]
		}
		addWeighted(p.values[i*width:][:width], scores, v)
	})
}

// Result ends the evaluation, when both passes are over.
func (e *Evaluation) Result(out [][]float64) (lse []float64) {
	lse = make([]float64, len(e.q))
	for i, m := range e.maxima {
		row := out[i]
		clear(row)
		lse[i] = math.Inf(-1)
		if e.visible[i] == 0 {
			continue
		}
		var sum float64
		for _, p := range e.parts {
			sum += p.weights[i]
			for d, x := range p.values[i*len(row):][:len(row)] {
				row[d] += x
			}
		}
		for d := range row {
			row[d] /= sum
		}
		if !math.IsInf(m, -1) {
			lse[i] = m + math.Log(sum)
		}
	}
	return lse
}

// pass visits the scores of a part, row by row for a few keys at a time. If v is not nil it
// has their values then.
func (e *Evaluation) pass(ctx context.Context, part int, v []block, visit func(i int, scores []float64)) error {
	var s block
	k := make([]block, e.k.Width)
	var narrow [lanes][]float32
	for l := range narrow {
		narrow[l] = make([]float32, max(e.k.Width, e.v.Width))
	}
	end := min((part+1)*e.length, e.k.N)
	for j := part * e.length; j < end; j += lanes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(lanes, end-j)
		turn(k, e.k.Slice(j, j+n), &narrow)
		if v != nil {
			turn(v, e.v.Slice(j, j+n), &narrow)
		}
		for i, q := range e.q {
			if n := min(n, e.visible[i]-j); n > 0 {
				scoresOf(&s, q, k, e.scale)
				visit(i, s[:n])
			}
		}
	}
	return nil
}

// turn widens rows of keys and lays them side by side, by way of narrow. Where there are
// fewer than lanes of them it makes up the rest.
func turn(b []block, rows Rows, narrow *[lanes][]float32) {
	for l := range rows.N {
		rows.DType.Widen(narrow[l][:len(b)], rows.Row(l))
	}
	n0, n1, n2, n3 := narrow[0][:len(b)], narrow[1][:len(b)], narrow[2][:len(b)], narrow[3][:len(b)]
	for d := range b {
		b[d] = block{float64(n0[d]), float64(n1[d]), float64(n2[d]), float64(n3[d])}
	}
}

func scoresOf(s *block, q []float64, k []block, scale float64) {
	var s0, s1, s2, s3 float64
	k = k[:len(q)]
	for d, x := range q {
		b := &k[d]
		s0 += x * b[0]
		s1 += x * b[1]
		s2 += x * b[2]
		s3 += x * b[3]
	}
	*s = block{s0 * scale, s1 * scale, s2 * scale, s3 * scale}
}

// addWeighted adds the first len(p) keys of v. A masked key takes no part, not even with
// a weight of 0.
func addWeighted(sums, p []float64, v []block) {
	sums = sums[:len(v)]
	if len(p) < lanes {
		for d := range v {
			for l, w := range p {
				sums[d] += w * v[d][l]
			}
		}
		return
	}
	p0, p1, p2, p3 := p[0], p[1], p[2], p[3]
	for d := range v {
		b := &v[d]
		sums[d] += (p0*b[0] + p1*b[1]) + (p2*b[2] + p3*b[3])
	}
}
