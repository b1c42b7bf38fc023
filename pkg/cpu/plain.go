package cpu

import (
	"math"
	"slices"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// The portable kernel computes in float64 throughout: scalar float64 arithmetic
// costs what float32 costs, and removes every error but the last rounding. It is
// the specification of the vector kernels, and takes the tiles that these don't.
const (
	rowBlock  = 4  // query rows of one step
	plainKeys = 64 // keys that are widened at once
)

type plainScratch struct {
	q  []float64 // tileLanes x D
	k  []float64 // plainKeys x D
	v  []float64 // Dv x plainKeys
	p  []float64 // rowBlock x plainKeys: scores, then weights
	o  []float64 // rowBlock x Dv: the keys' share of the numerator
	w  []float32 // one row
	n  int       // keys in k and v, from k0 of the chunk
	k0 int
}

func plainBytes(g attention.Geometry) int {
	return 8*((tileLanes+plainKeys)*g.D+(plainKeys+rowBlock)*g.Dv+rowBlock*plainKeys) + roundUp8(4*max(g.D, g.Dv))
}

func newPlainScratch(g attention.Geometry, b []byte) (p plainScratch) {
	for _, part := range []struct {
		to *[]float64
		n  int
	}{{&p.q, tileLanes * g.D}, {&p.k, plainKeys * g.D}, {&p.v, plainKeys * g.Dv}, {&p.p, rowBlock * plainKeys}, {&p.o, rowBlock * g.Dv}} {
		*part.to = carve[float64](&b, part.n)
	}
	p.w = carve[float32](&b, max(g.D, g.Dv))
	return p
}

// plainTile applies keys [k0,k1) of a chunk to a tile.
func (d *Device) plainTile(sc *scratch, t *tile, kv keys, k0, k1 int) {
	g, p := d.geo, &sc.plain
	for x := range g.D {
		for i := range t.rows {
			p.q[i*g.D+x] = float64(t.q[x*t.lanes+i])
		}
	}
	for ; k0 < k1; k0 += plainKeys {
		if !sc.claim(kv64) || p.k0 != k0 {
			p.widen(g, kv, k0)
		}
		for r := 0; r < t.rows; r += rowBlock {
			n := min(rowBlock, t.rows-r)
			var see [rowBlock]int
			for i := range n {
				see[i] = min(max(int(t.see[r+i])-k0, 0), p.n)
			}
			if slices.Max(see[:n]) > 0 {
				p.block(g, d.exp.c, t.state, r, see[:n])
			}
		}
	}
}

// widen converts the keys from k0 on, and transposes V, so that both products are
// dot products of contiguous rows.
func (p *plainScratch) widen(g attention.Geometry, kv keys, k0 int) {
	p.k0, p.n = k0, min(plainKeys, kv.n-k0)
	size := g.DType.Size()
	row := p.w[:g.D]
	for j := range p.n {
		g.DType.Widen(row, kv.kFrom(k0+j, g.D*size)[:g.D*size])
		to := p.k[j*g.D:][:g.D]
		for x, f := range row {
			to[x] = float64(f)
		}
	}
	row = p.w[:g.Dv]
	for j := range p.n {
		g.DType.Widen(row, kv.vFrom(k0+j, g.Dv*size)[:g.Dv*size])
		for x, f := range row {
			p.v[x*plainKeys+j] = float64(f)
		}
	}
}

// block applies the widened keys to up to rowBlock rows of a state from row r on,
// of which the i-th sees the first see[i] keys: scores, the running maximum,
// weights, and a numerator summed from zero and then merged into the state. A key
// that a row does not see takes no part at all: not even as a factor of zero,
// since 0 * NaN is NaN.
func (p *plainScratch) block(g attention.Geometry, c float64, st state, r int, see []int) {
	rows, most, least := len(see), slices.Max(see), slices.Min(see)
	matmul(p.p, plainKeys, p.q[r*g.D:], p.k, g.D, rows, most, g.D, g.D)
	var alpha [rowBlock]float64
	for i, n := range see {
		if n > 0 {
			alpha[i] = softmaxRow(p.p[i*plainKeys:][:n], c, st, r+i)
		}
	}
	matmul(p.o, g.Dv, p.p, p.v, least, rows, g.Dv, plainKeys, plainKeys)
	for i, n := range see {
		o := p.o[i*g.Dv : (i+1)*g.Dv]
		if n > least { // the ragged edge of a causal mask
			for x := range o {
				w, v := p.p[i*plainKeys+least:i*plainKeys+n], p.v[x*plainKeys+least:x*plainKeys+n]
				for j, w := range w {
					o[x] += w * v[j]
				}
			}
		}
		if n > 0 {
			for x, y := range o {
				acc := &st.acc[x*st.lanes+r+i]
				*acc = *acc*alpha[i] + y
			}
		}
	}
}

// softmaxRow turns products into weights relative to the new running maximum,
// adds them to the row's denominator, and returns the factor for its numerator.
// While there is no finite score the base is 0, so that -inf - (-inf) never
// happens; NaN and +inf make the row NaN, as they do in the definition.
func softmaxRow(p []float64, c float64, st state, row int) (alpha float64) {
	top := math.Inf(-1)
	for j, dot := range p {
		s := dot * c
		p[j] = s
		if s > top {
			top = s
		}
	}
	base, alpha := rebase(st.m, row, top)
	var sum float64
	for j, s := range p {
		w := math.Exp2(s - base)
		p[j] = w
		sum += w
	}
	st.l[row] = st.l[row]*alpha + sum
	return alpha
}

// matmul computes c[i][j] = sum_d a[i][d] b[j][d] for i < rows, j < cols and
// d < depth. Row i of a starts at i*lda, row j of b at j*ldb, row i of c at
// i*ldc. Each sum runs over d in order, whatever the block it is computed in, so
// that a row's bits do not depend on the rows beside it.
//
// Two rows by three columns are six sums, as many as the compiler keeps in
// registers together with their products; with eight it spills them.
func matmul(c []float64, ldc int, a []float64, b []float64, depth, rows, cols, lda, ldb int) {
	if cols < 4 {
		for i := range rows {
			for j := range cols {
				c[i*ldc+j] = dot1x1(a[i*lda:][:depth], b[j*ldb:][:depth])
			}
		}
		return
	}
	pairs := rows &^ 1
	for j := 0; j < cols && pairs > 0; j += 3 {
		j = min(j, cols-3) // the last block may repeat columns
		b0, b1, b2 := b[j*ldb:][:depth], b[(j+1)*ldb:][:depth], b[(j+2)*ldb:][:depth]
		for i := 0; i < pairs; i += 2 {
			c0, c1 := c[i*ldc+j:][:3], c[(i+1)*ldc+j:][:3]
			c0[0], c0[1], c0[2], c1[0], c1[1], c1[2] = dot2x3(a[i*lda:][:depth], a[(i+1)*lda:][:depth], b0, b1, b2)
		}
	}
	if pairs == rows {
		return
	}
	last := a[pairs*lda:][:depth]
	for j := 0; j < cols; j += 4 {
		j = min(j, cols-4)
		to := c[pairs*ldc+j:][:4]
		to[0], to[1], to[2], to[3] = dot1x4(last, b[j*ldb:][:depth], b[(j+1)*ldb:][:depth], b[(j+2)*ldb:][:depth], b[(j+3)*ldb:][:depth])
	}
}

// dot2x3 returns the six dot products of two rows with three columns. Every
// slice has the length of a0.
func dot2x3(a0, a1 []float64, b0, b1, b2 []float64) (s00, s01, s02, s10, s11, s12 float64) {
	n := len(a0)
	a1, b0, b1, b2 = a1[:n], b0[:n], b1[:n], b2[:n] // one bounds check, not four a step
	for d := range n {
		x, y := a0[d], a1[d]
		u := b0[d]
		s00 += x * u
		s10 += y * u
		u = b1[d]
		s01 += x * u
		s11 += y * u
		u = b2[d]
		s02 += x * u
		s12 += y * u
	}
	return
}

// dot1x4 is for an odd row: four columns hide the latency of the sums.
func dot1x4(a []float64, b0, b1, b2, b3 []float64) (s0, s1, s2, s3 float64) {
	n := len(a)
	b0, b1, b2, b3 = b0[:n], b1[:n], b2[:n], b3[:n]
	for d, x := range a {
		s0 += x * b0[d]
		s1 += x * b1[d]
		s2 += x * b2[d]
		s3 += x * b3[d]
	}
	return
}

func dot1x1(a []float64, b []float64) (s float64) {
	b = b[:len(a)]
	for d, x := range a {
		s += x * b[d]
	}
	return s
}
