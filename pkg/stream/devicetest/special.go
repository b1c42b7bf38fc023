package devicetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// class sorts values into those that a comparison of special values tells apart.
func class(x float64) string {
	switch {
	case math.IsNaN(x):
		return "NaN"
	case math.IsInf(x, 1):
		return "+Inf"
	case math.IsInf(x, -1):
		return "-Inf"
	}
	return "finite"
}

// sameClasses compares every element with the oracle: the class of all, and the
// value of those that are finite.
func sameClasses(t testing.TB, name string, x Tensors, r Result) (special int) {
	t.Helper()
	p := x.P
	tol := max(p.OutDType.Epsilon(), 2e-6)
	if p.Fast {
		tol = 2e-2
	}
	for b := range p.B {
		for h := range p.Hq {
			want, wantLSE := Exact(x, b, h, sample(p.Nq, p.Nq))
			for i, row := range want {
				o, lse := r.row(p, b, h, i)
				if class(float64(lse)) != class(float64(float32(wantLSE[i]))) {
					t.Fatalf("%s: lse of row %d is %v, want %v", name, i, lse, wantLSE[i])
				}
				for d, exact := range row {
					got := float64(o[d])
					if class(got) != class(rounded(p.OutDType, exact)) {
						t.Fatalf("%s: O[%d,%d] of head %d is %v, want %v", name, i, d, h, got, exact)
					}
					if class(got) != "finite" {
						special++
					} else if !(math.Abs(got-exact) <= tol*(1+math.Abs(exact))) {
						t.Fatalf("%s: O[%d,%d] of head %d is %v, want %v", name, i, d, h, got, exact)
					}
				}
			}
		}
	}
	return special
}

// A special value at any place poisons what it poisons in float64: nothing
// beyond a causal edge, no row beside its own, no padding. Weights do not
// underflow here; see infinityTimesVanishingWeight for those that do.
func (s suite) specialValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(27, 28))
	values := []float64{math.NaN(), math.Inf(1), math.Inf(-1)}
	shapes := []struct {
		nq, nk int
		causal attention.Causal
	}{{9, 9, attention.TopLeft}, {9, 9, attention.NonCausal}, {6, 140, attention.BottomRight}, {140, 131, attention.TopLeft}, {140, 6, attention.BottomRight}}
	special := make(map[string]int)
	for n := range 400 {
		shape := shapes[n%len(shapes)]
		p := Problem(shape.nq, 5)
		p.Nk, p.Causal, p.Dv = shape.nk, shape.causal, 7
		p.Hq, p.Hkv = 4, 2
		p.DType, p.OutDType = dtypes[n%3], dtypes[n/3%3]
		p.Fast = p.DType == attention.BF16 && n%2 == 0
		x := Random(p, rng)
		places := ""
		for range 1 + n%3 {
			v := values[rng.IntN(3)]
			which := rng.IntN(3)
			data := [][]byte{x.Q, x.K, x.V}[which]
			at := rng.IntN(len(data) / p.DType.Size())
			p.DType.Put(data[at*p.DType.Size():], v)
			places += fmt.Sprintf(" %v in %c at %d", v, "QKV"[which], at)
		}
		w := Way{QueryChunk: 1 + rng.IntN(shape.nq), KeyChunk: 1 + rng.IntN(shape.nk), Threads: 2, Slack: n % 2 * 9}
		if n%4 == 0 {
			w = Way{}
		}
		special[places[:4]] += sameClasses(t, fmt.Sprintf("%+v, %+v,%s", p, w, places), x, s.Compute(t, x, w))
	}
	for place, n := range special {
		if n == 0 {
			t.Errorf("%s... poisoned nothing: the test has lost its teeth", place)
		}
	}
}

// Finite elements far from all others in size, up to the largest that there are: what is
// beside them in a tile, in other columns or with other keys, is as exact as ever, and
// rows are right whatever the size of their scores, from one launch to the next too.
func (s suite) farApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(41, 42))
	for n := range 150 {
		p := Problem(20+rng.IntN(300), 5+rng.IntN(60))
		p.Dv = 4 + rng.IntN(60)
		p.DType = dtypes[n%3]
		if p.OutDType = p.DType; n/3%3 == 0 && p.DType == attention.BF16 {
			p.OutDType = attention.F32
		}
		p.Causal = []attention.Causal{attention.NonCausal, attention.TopLeft}[n/3%2]
		largest := map[attention.DType]float64{attention.F32: math.MaxFloat32, attention.F16: 65504, attention.BF16: 0x1.fep127}[p.DType]
		x := Random(p, rng)
		places := ""
		for range 1 + n%4 {
			v := []float64{largest, -largest, largest / 3, math.Sqrt(largest), -math.Cbrt(largest), 1 / largest}[rng.IntN(6)]
			which := rng.IntN(3)
			data := [][]byte{x.Q, x.K, x.V}[which]
			at := rng.IntN(len(data) / p.DType.Size())
			p.DType.Put(data[at*p.DType.Size():], v)
			places += fmt.Sprintf(" %v in %c at %d", v, "QKV"[which], at)
		}
		w := Way{QueryChunk: 1 + rng.IntN(p.Nq), KeyChunk: 1 + rng.IntN(p.Nk), Threads: 2}
		if n%4 == 0 {
			w = Way{}
		}
		sameClasses(t, fmt.Sprintf("%+v, %+v,%s", p, w, places), x, s.Compute(t, x, w))
	}
}

// Means of elements near the largest that there are do not overflow, however many keys they
// are of, alone or among ordinary ones.
func (s suite) largestValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	for n := range 8 {
		p := Problem(20, 16)
		p.Nk, p.Dv = 20_000, []int{24, 160}[n%2]
		largest := math.MaxFloat32
		if n/2%2 == 1 {
			p.DType, largest = attention.BF16, 0x1.fep127
		}
		x := Random(p, rng)
		among := n/4 == 1
		x.V = Fill(p, 1, p.Nk, p.Dv, func(_, _, i, _ int) float64 {
			if among && i/500%3 == 1 {
				return rng.NormFloat64()
			}
			return largest * (1 - rng.Float64()/4)
		})
		for _, w := range []Way{{}, {KeyChunk: 4500}, {KeyChunk: 4500, Batch: 2, Save: true}} {
			s.Check(t, fmt.Sprintf("%+v, %+v, among ordinary ones %v", p, w, among), Compare(t, x, s.Compute(t, x, w), 1), p.OutDType)
		}
	}
}

// Keys come in stretches whose values are far from each other in size. What a row has
// summed of one must survive those of the next, be they larger or smaller, and rows that
// see none of the large ones keep their results. Stretches end where tiles do.
func (s suite) valuesInStretches(t *testing.T) {
	stretch := 1920 // a multiple of all tiles
	if testing.Short() {
		stretch = 640 // of those of the first case
	}
	rng := rand.New(rand.NewPCG(53, 54))
	for n, c := range []struct {
		d       int
		in, out attention.DType
	}{
		{24, attention.BF16, attention.BF16}, {100, attention.BF16, attention.BF16}, {160, attention.BF16, attention.BF16},
		{24, attention.BF16, attention.F32}, {100, attention.F32, attention.F32}, {160, attention.F32, attention.BF16},
	} {
		if n > 0 && testing.Short() {
			break
		}
		for _, sizes := range [][]float64{{0x1p-70, 1, 0x1p70}, {0x1p70, 1, 0x1p-70}} {
			p := Problem(len(sizes)*stretch, c.d)
			p.Causal, p.DType, p.OutDType = attention.TopLeft, c.in, c.out
			x := Random(p, rng)
			x.V = Fill(p, 1, p.Nk, p.Dv, func(_, _, i, _ int) float64 { return sizes[i/stretch] * rng.NormFloat64() })
			r := s.Compute(t, x, Way{})
			for i := range sizes {
				rows := sample(stretch, 7)
				for j := range rows {
					rows[j] += i * stretch
				}
				s.Check(t, fmt.Sprintf("%+v, sizes %v, stretch %d", p, sizes, i), compareRows(t, x, r, rows), p.OutDType)
			}
		}
	}
}

// Each key of a causal problem in turn is NaN: rows before it must not notice,
// in the same block of rows, the same tile of keys, or the next chunk.
func (s suite) nanDoesNotCrossTheCausalEdge(t *testing.T) {
	rng := rand.New(rand.NewPCG(29, 30))
	p := Problem(12, 4)
	p.Causal = attention.TopLeft
	for key := range p.Nk {
		for _, inV := range []bool{false, true} {
			for _, w := range []Way{{}, {QueryChunk: 5, KeyChunk: 7}} {
				x := Random(p, rng)
				data := x.K
				if inV {
					data = x.V
				}
				for d := range 4 {
					p.DType.Put(data[(key*4+d)*4:], math.NaN())
				}
				r := s.Compute(t, x, w)
				for i := range p.Nq {
					o, lse := r.row(p, 0, 0, i)
					for _, v := range o {
						if (v != v) != (i >= key) {
							t.Fatalf("NaN at key %d: row %d is %v", key, i, o)
						}
					}
					if (lse != lse) != (i >= key && !inV) {
						t.Fatalf("NaN at key %d: lse of row %d is %v", key, i, lse)
					}
				}
			}
		}
	}
}

// All scores of a row -Inf: no weights to share, which is NaN, not an empty row.
func (s suite) scoresAllMinusInfinity(t *testing.T) {
	p := Problem(3, 2)
	p.Nk = 200
	one := func(_, _, _, _ int) float64 { return 1 }
	x := Tensors{P: p, Q: Fill(p, 1, 3, 2, one), V: Fill(p, 1, 200, 2, one),
		K: Fill(p, 1, 200, 2, func(_, _, j, _ int) float64 { return math.Inf(-1) })}
	for _, w := range []Way{{}, {KeyChunk: 60}} {
		sameClasses(t, "all -Inf", x, s.Compute(t, x, w))
	}
	p.DType.Put(x.K[170*2*4:], 3) // one key with a score, late, and its neighbour half
	p.DType.Put(x.K[(170*2+1)*4:], 3)
	for _, w := range []Way{{}, {KeyChunk: 60}} {
		if n := sameClasses(t, "all but one -Inf", x, s.Compute(t, x, w)); n != 0 {
			t.Errorf("%d special elements", n)
		}
	}
	p.DType.Put(x.V[(20*2+1)*4:], math.NaN()) // under a weight of zero, and before any other
	for _, w := range []Way{{}, {KeyChunk: 60}, {KeyChunk: 60, Batch: 1}} {
		if n := sameClasses(t, "NaN under -Inf", x, s.Compute(t, x, w)); n != p.Hq*p.Nq {
			t.Errorf("%d special elements, want one a row", n)
		}
	}
}

// far is more keys than any kernel takes at once.
const far = 256

// An infinite value under a weight that underflows: in one pass the weight is
// exp(-2000) = 0, and 0 * Inf is NaN. With a running maximum the weight may have
// been exp(0) when the value was met; then the sum is Inf, and re-basing it once
// by exp(-2000) gives NaN too, but re-basing it in steps that do not underflow
// leaves Inf. Either way the element is poisoned, and no other is.
func (s suite) infinityTimesVanishingWeight(t *testing.T) {
	p := Problem(1, 1)
	p.Nk, p.Dv, p.Scale = 5*far, 3, 1
	for _, step := range []float64{2000, 500} {
		x := Tensors{P: p, Q: Fill(p, 1, 1, 1, func(_, _, _, _ int) float64 { return 1 }),
			K: Fill(p, 1, p.Nk, 1, func(_, _, j, _ int) float64 { return step * float64(j/far) }),
			V: Fill(p, 1, p.Nk, 3, func(_, _, j, d int) float64 {
				if j == 0 && d == 1 {
					return math.Inf(1)
				}
				return float64(d)
			})}
		o, lse := s.Compute(t, x, Way{}).row(p, 0, 0, 0)
		if got := class(float64(o[1])); got != "NaN" && got != "+Inf" {
			t.Errorf("step %v: the element under the infinity is %v", step, o[1])
		}
		if step == 2000 && class(float64(o[1])) != "NaN" {
			t.Errorf("step %v: the element under the infinity is %v, want NaN", step, o[1])
		}
		if o[0] != 0 || o[2] != 2 || class(float64(lse)) != "finite" {
			t.Errorf("step %v: O is %v and lse %v", step, o, lse)
		}
	}
}
