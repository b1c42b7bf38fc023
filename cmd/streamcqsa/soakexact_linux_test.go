package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// soakTensors are the files of a case, open.
type soakTensors struct {
	q, k, v, o, lse *tensorfile.Tensor
}

// soakSums gathers what separates results from exact ones, in squares.
type soakSums struct {
	n                     int
	diff, norm, once, abs float64 // of errors, exact values, errors of rounding those, and sums of weights times |V|
	reach                 float64 // the largest bound |q||k| on a score
}

// limits of one element and of lse, and of Frobenius norms.
type soakLimits struct {
	weight    float64 // relative error of a weight, at the very worst
	frobenius float64 // of float32 results, and of what 16-bit ones are rounded from
	lse       float64 // relative to 1 + |lse| + steep
	steep     float64 // the largest bound |q||k| on a score that counts for lse

	// Of a GPU alone.
	perScore       float64 // relative error for each unit, of log2, of the largest score
	half           float64 // relative error of weights in float16
	least, largest float64 // absolute errors of weights, the largest being 1, and of V, the largest of all being 1
	column         float64 // absolute error of V, the largest of its column being 1
}

// limitsOf are the promises of docs/numerics.md.
func (c *soakCase) limitsOf() soakLimits {
	const u = 0x1p-24 // half a unit in the last place of a float32
	l := soakLimits{frobenius: 1e-6, lse: 1e-6}
	// A tile of at most 512 keys is summed in float32, and n additions cost n u at the
	// very worst. A score may be off by (D + 2) u |q||k|, and |q||k| is at most 32, 256
	// or 2048 in units of log2 where scores are float32, by the type of the output.
	narrow := map[attention.DType]float64{attention.F32: 32, attention.F16: 256, attention.BF16: 2048}[c.OutDType]
	l.weight = 512*u + float64(c.D+2)*u*narrow*math.Ln2
	if c.OutDType != attention.F32 {
		l.steep = narrow * math.Ln2
	}
	// The arithmetic's own error grows with the bound on scores.
	l.frobenius *= narrow / 32
	if c.cuda {
		return c.limitsOfCUDA(l)
	}
	if c.kernel == cpu.Portable {
		l = soakLimits{weight: 1e-12, frobenius: 1e-14, lse: 0x1.1p-24}
	}
	if c.Fast {
		l.weight += 0x1p-8 // weights are rounded to bfloat16, and so is what they are divided by
		l.frobenius, l.lse = 3e-3, 4e-3
	}
	return l
}

// limitsOfCUDA are those of a GPU, where more scores are float32, V is split relative to
// the largest element of its tile, and weights may be float16.
func (c *soakCase) limitsOfCUDA(l soakLimits) soakLimits {
	const u = 0x1p-24
	narrow := map[attention.DType]float64{attention.F32: 96, attention.F16: 512, attention.BF16: 4096}[c.OutDType]
	l.weight = 512*u + float64(c.D+2)*u*narrow*math.Ln2
	l.steep = narrow * math.Ln2
	l.perScore = 0x1p-23
	l.least, l.largest, l.column = 0x1p-24, 0x1p-39, 0x1p-19
	switch {
	case c.OutDType == attention.BF16:
		l.column = 0x1p-9
	case c.Fast || c.OutDType == attention.F16:
		l.column = 0x1p-13
	}
	l.frobenius = 1e-6
	if c.OutDType == attention.BF16 || c.Fast {
		l.weight += 0x1p-11
		l.half = 2.5e-4
	}
	return l
}

// soakOracle is how many multiply-adds of float64 a case may take.
const soakOracle = 4e7

// compare holds O and lse to the float64 oracle: whole, or in sampled rows.
func (c *soakCase) compare(t *testing.T, x soakTensors, r *rand.Rand) (rows int) {
	t.Helper()
	total := c.B * c.Hq * c.Nq
	n := min(total, max(8, int(soakOracle/(float64(c.Nk)*float64(2*c.D+2*c.Dv)))))
	var ordinary soakSums
	for head, list := range c.sample(r, total, n) {
		slices.Sort(list)
		c.compareHead(t, x, head, list, &ordinary)
		if t.Failed() {
			return rows
		}
		rows += len(list)
	}
	c.checkSums(t, ordinary)
	return rows
}

// sample is n of all rows, by head: the first and the last of the first head drawn, and
// any others.
func (c *soakCase) sample(r *rand.Rand, total, n int) map[int][]int {
	byHead := make(map[int][]int)
	if n == total {
		for i := range total {
			byHead[i/c.Nq] = append(byHead[i/c.Nq], i%c.Nq)
		}
		return byHead
	}
	heads := c.B * c.Hq
	if most := max(1, n/8); heads > most { // reading the keys of a head has a price too
		heads = most
	}
	pool := r.Perm(c.B * c.Hq)[:heads]
	for i, head := range pool {
		seen := make(map[int]bool)
		for len(seen) < min(c.Nq, max(1, n/heads)) {
			row := r.IntN(c.Nq)
			if i == 0 && len(seen) < 2 {
				row = len(seen) * (c.Nq - 1)
			}
			if !seen[row] {
				seen[row] = true
				byHead[head] = append(byHead[head], row)
			}
		}
	}
	return byHead
}

func (c *soakCase) rows(t *tensorfile.Tensor, heads, n, d, head int) attention.Rows {
	size := t.DType().Size()
	at := c.Layout.Offset(head/heads, head%heads, 0, heads, n, d) * size
	return attention.Rows{Data: t.Bytes()[at:], Stride: c.Layout.RowStride(heads, d) * size, N: n, Width: d, DType: t.DType()}
}

// exactRows are rows of a head by the definition, and, for each element, what its terms
// would add up to if none cancelled another.
type exactRows struct {
	o, abs [][]float64
	lse    []float64
	reach  []float64 // a bound on |q||k| of the row, scaled
	column []float64 // sums of |V| over all keys
	peak   []float64 // the largest |V| of each column
	most   float64   // the largest of all
}

func (c *soakCase) exact(x soakTensors, head int, list []int) exactRows {
	kv := head/c.Hq*c.Hkv + head%c.Hq/c.Group()
	q, k, v := c.rows(x.q, c.Hq, c.Nq, c.D, head), c.rows(x.k, c.Hkv, c.Nk, c.D, kv), c.rows(x.v, c.Hkv, c.Nk, c.Dv, kv)
	qs, visible := make([][]float32, len(list)), make([]int, len(list))
	e := exactRows{o: make([][]float64, len(list)), abs: make([][]float64, len(list)), reach: make([]float64, len(list))}
	longest := longestRow(k)
	for i, n := range list {
		qs[i], e.o[i], e.abs[i], visible[i] = make([]float32, c.D), make([]float64, c.Dv), make([]float64, c.Dv), c.Visible(n)
		q.DType.Widen(qs[i], q.Row(n))
		e.reach[i] = math.Abs(c.Scale) * norm(qs[i]) * longest
	}
	e.lse = attention.Oracle(e.o, qs, visible, k, v, c.Scale)
	positive := absolute(v)
	attention.Oracle(e.abs, qs, visible, k, positive, c.Scale)
	e.column, e.peak = make([]float64, c.Dv), make([]float64, c.Dv)
	row := make([]float32, c.Dv)
	for j := range v.N {
		positive.DType.Widen(row, positive.Row(j))
		for d, x := range row {
			if finite(float64(x)) {
				e.column[d] += float64(x)
				e.peak[d] = max(e.peak[d], float64(x))
				e.most = max(e.most, float64(x))
			}
		}
	}
	return e
}

// absolute is a copy of rows with the signs left out.
func absolute(v attention.Rows) attention.Rows {
	size := v.DType.Size()
	a := attention.Rows{Data: make([]byte, v.N*v.Width*size), Stride: v.Width * size, N: v.N, Width: v.Width, DType: v.DType}
	for j := range v.N {
		row := a.Data[j*a.Stride:][:a.Stride]
		copy(row, v.Row(j))
		for i := size - 1; i < len(row); i += size {
			row[i] &= 0x7f
		}
	}
	return a
}

// compareHead checks every element of some rows by itself, and adds the ordinary ones up.
func (c *soakCase) compareHead(t *testing.T, x soakTensors, head int, list []int, sums *soakSums) {
	t.Helper()
	limits, e := c.limitsOf(), c.exact(x, head, list)
	o := c.rows(x.o, c.Hq, c.Nq, c.Dv, head)
	got, once, buf := make([]float32, c.Dv), make([]float32, c.Dv), make([]byte, c.Dv*c.OutDType.Size())
	for i, n := range list {
		where := fmt.Sprintf("head %d, row %d", head, n)
		c.OutDType.Widen(got, o.Row(n))
		for d, exact := range e.o[i] {
			c.OutDType.Put(buf[d*c.OutDType.Size():], exact)
		}
		c.OutDType.Widen(once, buf)
		for d, exact := range e.o[i] {
			g, rounded, abs := float64(got[d]), float64(once[d]), e.abs[i][d]
			if !finite(exact) || !finite(rounded) || !finite(g) {
				// Under a weight that underflows an infinity is NaN, or not yet.
				poisoned := math.IsNaN(exact) && !finite(g) || math.IsNaN(g) && math.IsInf(exact, 0)
				if poisoned || g == rounded || c.barelyOverflows(exact, abs, limits) {
					continue
				}
				t.Fatalf("%s, column %d is %g, exactly %g", where, d, g, exact)
			}
			// What is rounded may be off by the weights' errors: of the numerator and of
			// the denominator.
			arithmetic := 2*limits.weight*abs + limits.least*e.column[d] + min(limits.largest*e.most, limits.column*e.peak[d])
			if err := math.Abs(g - exact); !(err <= math.Abs(rounded-exact)*(1+1e-9)+2*arithmetic+c.tiny()) {
				t.Fatalf("%s, column %d is %g, exactly %g: off by %.3g, rounding costs %.3g and arithmetic at most %.3g", where, d, g, exact, err, math.Abs(rounded-exact), arithmetic)
			}
			if c.special > 0 && abs > 1e6 { // beside such a value, others would not count
				continue
			}
			sums.n++
			sums.diff += (g - exact) * (g - exact)
			sums.norm += exact * exact
			sums.once += (rounded - exact) * (rounded - exact)
			sums.abs += abs * abs
			if finite(e.reach[i]) {
				sums.reach = max(sums.reach, e.reach[i])
			}
		}
		if x.lse != nil {
			c.compareLSE(t, where, c.rows(x.lse, c.Hq, c.Nq, 1, head).Row(n), e.lse[i], e.reach[i], limits)
		}
	}
}

// tiny is what is as good as 0: below anything that a type can hold, or below its normal
// numbers where dot products of bfloat16 take those for 0.
func (c *soakCase) tiny() float64 {
	if c.DType == attention.BF16 {
		return 0x1p-126
	}
	return 0x1p-149
}

// barelyOverflows says whether an exact value is so near the largest one of the output's
// type that an error that is allowed decides whether it is infinite.
func (c *soakCase) barelyOverflows(exact, abs float64, l soakLimits) bool {
	var b [4]byte
	for _, x := range []float64{exact - 4*l.weight*abs, exact + 4*l.weight*abs} {
		var f [1]float32
		c.OutDType.Put(b[:], x)
		c.OutDType.Widen(f[:], b[:c.OutDType.Size()])
		if math.IsInf(float64(f[0]), 0) != math.IsInf(exact, 0) {
			return finite(exact)
		}
	}
	return false
}

func (c *soakCase) compareLSE(t *testing.T, where string, stored []byte, exact, reach float64, l soakLimits) {
	t.Helper()
	var f [1]float32
	attention.F32.Widen(f[:], stored)
	got := float64(f[0])
	switch {
	case math.IsNaN(got) && math.IsNaN(exact) || got == exact:
	case math.IsInf(exact, 0) || math.IsNaN(exact) || math.IsNaN(got) || math.IsInf(got, 0) && math.Abs(exact) < math.MaxFloat32:
		t.Fatalf("%s: lse is %g, exactly %g", where, got, exact)
	case math.Abs(exact) >= math.MaxFloat32: // it rounds to an infinity, or nearly
	case !(math.Abs(got-exact) <= l.lse*(1+math.Abs(exact)+min(reach, l.steep))): // with a NaN in Q, exact is NaN
		t.Fatalf("%s: lse is %g, exactly %g: off by %.3g of 1 + |lse|; |q||k| is %.3g", where, got, exact, math.Abs(got-exact)/(1+math.Abs(exact)), reach)
	}
}

// checkSums holds all ordinary elements together to the promise.
func (c *soakCase) checkSums(t *testing.T, s soakSums) {
	t.Helper()
	if s.n == 0 {
		return
	}
	l := c.limitsOf()
	norm := math.Sqrt(s.norm)
	// Few elements may be small by chance, where their terms are not.
	if s.n < 64 {
		norm = math.Sqrt(s.abs)
	}
	limit := max(l.frobenius, l.perScore*math.Min(s.reach, l.steep)*math.Log2E) * norm
	switch {
	case c.cuda && (c.OutDType != attention.F32 || c.Fast):
		limit = math.Sqrt(s.once) + 2*limit
		if l.half > 0 { // independent of the output's rounding
			limit = math.Hypot(math.Sqrt(s.once), l.half*norm) + 2*limit
		}
	case c.Fast:
		limit = math.Hypot(limit, 1.02*math.Sqrt(s.once))
	case c.OutDType != attention.F32 || c.kernel == cpu.Portable && !c.cuda:
		// Rounding x + e instead of x costs |e| twice at most.
		limit = math.Sqrt(s.once) + 2*limit
	}
	if err := math.Sqrt(s.diff); !(err <= limit+c.tiny()) {
		t.Errorf("relative error %.3g of %d elements, want at most %.3g; rounding costs %.3g", err/norm, s.n, limit/norm, math.Sqrt(s.once)/norm)
	}
}
