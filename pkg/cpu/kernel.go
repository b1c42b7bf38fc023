package cpu

import (
	"math"
	"slices"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

const (
	rowTile  = 32  // query rows of one task
	rowBlock = 4   // query rows of one micro-kernel call
	keyTile  = 128 // keys between two updates of the state
	wideRows = 8   // query rows from which on widening a tile to float64 pays
)

// scratch is the memory of one thread.
type scratch struct {
	q []float64 // rowTile x D: the task's query rows
	p []float64 // rowBlock x keyTile: scores, then weights
	o []float64 // rowBlock x Dv: the tile's share of the numerator
	k []float64 // keyTile x D: a tile of K
	v []float64 // Dv x keyTile: a tile of V
}

func scratchFloats(g attention.Geometry) int {
	return (rowTile+keyTile)*g.D + rowBlock*keyTile + (rowBlock+keyTile)*g.Dv
}

func newScratch(g attention.Geometry, buf []float64) (sc scratch) {
	for _, part := range []struct {
		to *[]float64
		n  int
	}{{&sc.q, rowTile * g.D}, {&sc.p, rowBlock * keyTile}, {&sc.o, rowBlock * g.Dv}, {&sc.k, keyTile * g.D}, {&sc.v, keyTile * g.Dv}} {
		*part.to, buf = buf[:part.n], buf[part.n:]
	}
	return sc
}

// keys are the packed keys and values of one head of a KV slot.
type keys struct {
	n int       // keys
	k []float32 // n x D
	v []float32 // tiles x Dv x keyTile
}

// state are the rows that a task owns: acc is rows x Dv, m and l one per row.
type state struct {
	acc, m, l []float64
}

// applyRows applies one key chunk to query rows that share its head. q are the
// rows as float64; row i sees the first visible[i] keys. A tile of keys meets all
// rows before the next one: it is read from memory once, and for many rows also
// widened once.
func (d *Device) applyRows(sc *scratch, q []float64, st state, ks keys, visible []int) {
	g := d.geo
	last := slices.Max(visible)
	for k0 := 0; k0 < last; k0 += keyTile {
		if d.interrupted.Load() {
			return
		}
		k := ks.k[k0*g.D : min(k0+keyTile, last)*g.D]
		v := ks.v[k0*g.Dv : (k0+keyTile)*g.Dv]
		if len(visible) < wideRows {
			applyTile(g, sc, q, st, k, v, k0, visible)
		} else {
			applyTile(g, sc, q, st, widen(sc.k, k), widen(sc.v, v), k0, visible)
		}
	}
}

func widen(dst []float64, src []float32) []float64 {
	dst = dst[:len(src)]
	for i, x := range src {
		dst[i] = float64(x)
	}
	return dst
}

// applyTile applies a tile of keys, the first of which is key k0 of the chunk, to
// all rows.
func applyTile[T float32 | float64](g attention.Geometry, sc *scratch, q []float64, st state, k, v []T, k0 int, visible []int) {
	for r := 0; r < len(visible); r += rowBlock {
		n := min(rowBlock, len(visible)-r)
		var see [rowBlock]int
		for i := range n {
			see[i] = min(max(visible[r+i]-k0, 0), keyTile)
		}
		if slices.Max(see[:n]) > 0 {
			applyBlock(g, sc, q[r*g.D:(r+n)*g.D], state{
				acc: st.acc[r*g.Dv : (r+n)*g.Dv], m: st.m[r : r+n], l: st.l[r : r+n],
			}, k, v, see[:n])
		}
	}
}

// applyBlock applies a tile of keys to up to rowBlock rows, of which row i sees
// the first see[i] keys: scores, the running maximum, weights, and the tile's
// numerator summed from zero and then merged into the state. A key that a row
// does not see takes no part at all: not even as a factor of zero, since 0 * NaN
// is NaN.
func applyBlock[T float32 | float64](g attention.Geometry, sc *scratch, q []float64, st state, k, v []T, see []int) {
	rows, most, least := len(see), slices.Max(see), slices.Min(see)
	matmul(sc.p, keyTile, q, k, g.D, rows, most, g.D, g.D)
	for i, n := range see {
		softmaxRow(sc.p[i*keyTile:i*keyTile+n], g.Scale, &st.m[i], &st.l[i], st.acc[i*g.Dv:(i+1)*g.Dv])
	}
	matmul(sc.o, g.Dv, sc.p, v, least, rows, g.Dv, keyTile, keyTile)
	for i, n := range see {
		o := sc.o[i*g.Dv : (i+1)*g.Dv]
		if n > least { // the ragged edge of a causal mask
			for d := range o {
				p, vd := sc.p[i*keyTile+least:i*keyTile+n], v[d*keyTile+least:d*keyTile+n]
				for j, w := range p {
					o[d] += w * float64(vd[j])
				}
			}
		}
		if n > 0 {
			acc := st.acc[i*g.Dv : (i+1)*g.Dv]
			for d, x := range o {
				acc[d] += x
			}
		}
	}
}

// softmaxRow turns raw dot products into weights relative to the new running
// maximum, and re-bases the row's state on it. A maximum of -inf (no finite
// score yet) is replaced by 0 in the exponent, so that -inf - (-inf) never
// happens; NaN and +inf make the row NaN, as they do in the definition.
func softmaxRow(p []float64, scale float64, m, l *float64, acc []float64) {
	if len(p) == 0 {
		return
	}
	top := *m
	for j, dot := range p {
		s := dot * scale
		p[j] = s
		if s > top {
			top = s
		}
	}
	base := top
	if math.IsInf(top, -1) {
		base = 0
	}
	if top != *m {
		// The first tile re-bases an empty state: exp(-inf) = 0 times zeros.
		f := math.Exp(*m - base)
		*m = top
		*l *= f
		for d := range acc {
			acc[d] *= f
		}
	}
	var sum float64
	for j, s := range p {
		w := math.Exp(s - base)
		p[j] = w
		sum += w
	}
	*l += sum
}

// matmul computes c[i][j] = sum_d a[i][d] b[j][d] for i < rows, j < cols and
// d < depth. Row i of a starts at i*lda, row j of b at j*ldb, row i of c at
// i*ldc. Each sum runs over d in order, whatever the block it is computed in, so
// that a row's bits do not depend on the rows beside it.
//
// Two rows by three columns are six sums, as many as the compiler keeps in
// registers together with their products; with eight it spills them.
func matmul[T float32 | float64](c []float64, ldc int, a []float64, b []T, depth, rows, cols, lda, ldb int) {
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
func dot2x3[T float32 | float64](a0, a1 []float64, b0, b1, b2 []T) (s00, s01, s02, s10, s11, s12 float64) {
	n := len(a0)
	a1, b0, b1, b2 = a1[:n], b0[:n], b1[:n], b2[:n] // one bounds check, not four a step
	for d := range n {
		x, y := a0[d], a1[d]
		u := float64(b0[d])
		s00 += x * u
		s10 += y * u
		u = float64(b1[d])
		s01 += x * u
		s11 += y * u
		u = float64(b2[d])
		s02 += x * u
		s12 += y * u
	}
	return
}

// dot1x4 is for an odd row: four columns hide the latency of the sums.
func dot1x4[T float32 | float64](a []float64, b0, b1, b2, b3 []T) (s0, s1, s2, s3 float64) {
	n := len(a)
	b0, b1, b2, b3 = b0[:n], b1[:n], b2[:n], b3[:n]
	for d, x := range a {
		s0 += x * float64(b0[d])
		s1 += x * float64(b1[d])
		s2 += x * float64(b2[d])
		s3 += x * float64(b3[d])
	}
	return
}

func dot1x1[T float32 | float64](a []float64, b []T) (s float64) {
	b = b[:len(a)]
	for d, x := range a {
		s += x * float64(b[d])
	}
	return s
}
