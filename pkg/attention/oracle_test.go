package attention

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
)

// pack stores rows of float64 as Rows of the given type, with gap bytes of
// NaN patterns between them.
func pack(t DType, rows [][]float64, gap int) Rows {
	w := len(rows[0])
	r := Rows{Stride: w*t.Size() + gap, N: len(rows), Width: w, DType: t}
	for range len(rows) * r.Stride {
		r.Data = append(r.Data, 0xff)
	}
	for i, row := range rows {
		for d, x := range row {
			t.Put(r.Row(i)[d*t.Size():], x)
		}
	}
	return r
}

func normal(rng *rand.Rand, n, w int) [][]float64 {
	m := make([][]float64, n)
	for i := range m {
		for range w {
			m[i] = append(m[i], rng.NormFloat64())
		}
	}
	return m
}

// naive is the definition as it is written, all scores kept and no maximum
// subtracted: right only while exp(s) neither overflows nor vanishes.
func naive(q []float32, n int, k, v Rows, scale float64) (out []float64, lse float64) {
	weights := make([]float64, n)
	var sum float64
	kf, vf := make([]float32, k.Width), make([]float32, v.Width)
	for j := range weights {
		k.DType.Widen(kf, k.Row(j))
		var s float64
		for d := len(kf) - 1; d >= 0; d-- {
			s += float64(kf[d]) * float64(q[d]) * scale
		}
		weights[j] = math.Exp(s)
		sum += weights[j]
	}
	out = make([]float64, v.Width)
	for j, w := range weights {
		v.DType.Widen(vf, v.Row(j))
		for d, x := range vf {
			out[d] += w / sum * float64(x)
		}
	}
	return out, math.Log(sum)
}

func TestOracleAgainstNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, typ := range []DType{F32, F16, BF16} {
		for range 50 {
			n, nk, d, dv := 1+rng.IntN(6), 1+rng.IntN(40), 1+rng.IntN(9), 1+rng.IntN(9)
			k, v := pack(typ, normal(rng, nk, d), 4*rng.IntN(2)), pack(typ, normal(rng, nk, dv), 0)
			var q [][]float32
			var visible []int
			out := make([][]float64, n)
			for i := range n {
				row := make([]float32, d)
				for x := range row {
					row[x] = float32(rng.NormFloat64())
				}
				q, visible = append(q, row), append(visible, rng.IntN(nk+1))
				out[i] = make([]float64, dv)
				out[i][0] = math.NaN() // must not be read
			}
			lse := Oracle(out, q, visible, k, v, 0.7)
			for i := range n {
				want, wantLSE := naive(q[i], visible[i], k, v, 0.7)
				if visible[i] == 0 {
					clear(want)
				} else if !(math.Abs(lse[i]-wantLSE) <= 1e-13*(1+math.Abs(wantLSE))) {
					t.Fatalf("%v row %d: lse %v, want %v", typ, i, lse[i], wantLSE)
				}
				if visible[i] == 0 && !math.IsInf(lse[i], -1) {
					t.Fatalf("%v row %d sees no key but has lse %v", typ, i, lse[i])
				}
				for x := range want {
					if !(math.Abs(out[i][x]-want[x]) <= 1e-14) {
						t.Fatalf("%v row %d: O[%d] is %v, want %v", typ, i, x, out[i][x], want[x])
					}
				}
			}
		}
	}
}

// Scores whose exponential overflows need the maximum subtracted.
func TestOracleLargeScores(t *testing.T) {
	k := pack(F32, [][]float64{{5000}, {4999}, {-5000}}, 0)
	v := pack(F32, [][]float64{{1}, {2}, {1000}}, 0)
	out := [][]float64{{0}}
	lse := Oracle(out, [][]float32{{1}}, []int{3}, k, v, 1)
	e := math.Exp(-1)
	if want := (1 + 2*e) / (1 + e); !(math.Abs(out[0][0]-want) <= 1e-15) {
		t.Errorf("O is %v, want %v", out[0][0], want)
	}
	if want := 5000 + math.Log1p(e); !(math.Abs(lse[0]-want) <= 1e-12) {
		t.Errorf("lse is %v, want %v", lse[0], want)
	}
}

func TestOracleSpecialValues(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	tests := []struct {
		name    string
		q, k, v []float64 // D = Dv = 1
		n       int
		o, lse  float64
	}{
		{"finite", []float64{0}, []float64{1, 1}, []float64{1, 3}, 2, 2, math.Ln2},
		{"no key", []float64{nan}, []float64{nan, 1}, []float64{nan, 3}, 0, 0, -inf},
		{"NaN in Q", []float64{nan}, []float64{1, 1}, []float64{1, 3}, 2, nan, nan},
		{"NaN in K", []float64{0}, []float64{1, nan}, []float64{1, 3}, 2, nan, nan},
		{"NaN in a masked K", []float64{0}, []float64{1, nan}, []float64{1, 3}, 1, 1, 0},
		{"NaN in V", []float64{0}, []float64{1, 1}, []float64{1, nan}, 2, nan, math.Ln2},
		{"NaN in a masked V", []float64{0}, []float64{1, 1}, []float64{1, nan}, 1, 1, 0},
		{"Inf in V", []float64{0}, []float64{1, 1}, []float64{1, inf}, 2, inf, math.Ln2},
		{"both Inf in V", []float64{0}, []float64{1, 1}, []float64{-inf, inf}, 2, nan, math.Ln2},
		{"Inf in V, weight 0", []float64{1}, []float64{1, -inf}, []float64{1, inf}, 2, nan, 1},
		{"score +Inf", []float64{1}, []float64{1, inf}, []float64{1, 3}, 2, nan, nan},
		{"score -Inf", []float64{1}, []float64{1, -inf}, []float64{1, 3}, 2, 1, 1},
		{"score +Inf and NaN", []float64{1}, []float64{inf, nan}, []float64{1, 3}, 2, nan, nan},
		{"scores all -Inf", []float64{1}, []float64{-inf, -inf}, []float64{1, 3}, 2, nan, -inf},
		{"scores -Inf and NaN", []float64{1}, []float64{-inf, nan}, []float64{1, 3}, 2, nan, nan},
	}
	column := func(x []float64) (rows [][]float64) {
		for _, x := range x {
			rows = append(rows, []float64{x})
		}
		return rows
	}
	same := func(got, want float64) bool {
		return got == want || math.IsNaN(got) && math.IsNaN(want) || math.Abs(got-want) <= 1e-15
	}
	for _, test := range tests {
		for _, typ := range []DType{F32, F16, BF16} {
			out := [][]float64{{5}}
			lse := Oracle(out, [][]float32{{float32(test.q[0])}}, []int{test.n}, pack(typ, column(test.k), 0), pack(typ, column(test.v), 0), 1)
			if !same(out[0][0], test.o) || !same(lse[0], test.lse) {
				t.Errorf("%s, %v: O %v and lse %v, want %v and %v", test.name, typ, out[0][0], lse[0], test.o, test.lse)
			}
		}
	}
}

// Many keys are cut into parts. Neither their order nor the threads that evaluate them
// make a difference, and nor do the rows that share the passes.
func TestEvaluationInParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	const rows, d, dv = 5, 7, 3
	for _, nk := range []int{leastPart, leastPart + 1, 777, leastPart*mostParts + 4321} {
		k, v := pack(F32, normal(rng, nk, d), 0), pack(F32, normal(rng, nk, dv), 0)
		q, visible := make([][]float32, rows), []int{nk, 0, 1 + rng.IntN(nk), leastPart, nk}
		for i := range q {
			for range d {
				q[i] = append(q[i], float32(rng.NormFloat64()))
			}
		}
		matrix := func() (m [rows][]float64) {
			for i := range m {
				m[i] = make([]float64, dv)
			}
			return m
		}
		together := matrix()
		lse := Oracle(together[:], q, visible, k, v, 0.7)
		for i := range q {
			want, wantLSE := naive(q[i], visible[i], k, v, 0.7)
			for x := range want {
				if visible[i] > 0 && !(math.Abs(together[i][x]-want[x]) <= 1e-13) {
					t.Fatalf("%d keys, row %d: O[%d] is %v, want %v", nk, i, x, together[i][x], want[x])
				}
			}
			if visible[i] > 0 && !(math.Abs(lse[i]-wantLSE) <= 1e-12) {
				t.Fatalf("%d keys, row %d: lse is %v, want %v", nk, i, lse[i], wantLSE)
			}
		}
		e := Evaluate(q, visible, k, v, 0.7)
		if n := (nk + leastPart - 1) / leastPart; e.Parts() != n && (n <= mostParts || e.Parts() > mostParts || e.Parts() < mostParts/2) {
			t.Errorf("%d keys make %d parts", nk, e.Parts())
		}
		for _, pass := range []func(context.Context, int) error{e.Maxima, e.Sums} {
			var wg sync.WaitGroup
			for _, part := range rng.Perm(e.Parts()) {
				wg.Go(func() {
					if err := pass(t.Context(), part); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		shuffled := matrix()
		if got := e.Result(shuffled[:]); !reflect.DeepEqual(got, lse) || !reflect.DeepEqual(shuffled, together) {
			t.Errorf("%d keys: parts in another order make a difference", nk)
		}
		alone := matrix()
		for i := range q {
			if l := Oracle(alone[i:i+1], q[i:i+1], visible[i:i+1], k, v, 0.7); l[0] != lse[i] || !reflect.DeepEqual(alone[i], together[i]) {
				t.Errorf("%d keys: row %d by itself is another", nk, i)
			}
		}
	}
}

// An evaluation ends in the middle of a part: one of many keys takes minutes.
func TestEvaluationStops(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	cancel(why)
	row := make([]byte, 4)
	many := Rows{Data: row, Stride: 0, N: 1 << 50, Width: 1, DType: F32} // the same key again and again
	e := Evaluate([][]float32{{1}}, []int{many.N}, many, many, 1)
	for _, pass := range []func(context.Context, int) error{e.Maxima, e.Sums} {
		if err := pass(ctx, e.Parts()-1); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	}
}
