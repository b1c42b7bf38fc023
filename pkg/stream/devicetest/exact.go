package devicetest

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

var dtypes = []attention.DType{attention.F32, attention.F16, attention.BF16}

// Check holds a result to what docs/numerics.md promises. The 2% are for
// roundings that the last bits of a float64, or of a float32, turn.
func (s Subject) Check(t testing.TB, name string, e Errors, out attention.DType) {
	t.Helper()
	s.checkWithin(t, name, e, out, 1e-6)
}

// checkWithin is Check with another limit for float32 results.
func (s Subject) checkWithin(t testing.TB, name string, e Errors, out attention.DType, limit float64) {
	t.Helper()
	if e.n == 0 {
		return
	}
	worst, lse := 10*limit, 1e-6 // float32 arithmetic
	if s.Once {
		lse = 0x1.1p-24 // one rounding
	}
	if s.Once || out != attention.F32 {
		limit, worst = 1.02*e.once()+1e-14, 2*out.Epsilon()+1.1*e.worstRounding()
	}
	if !(e.frobenius() <= limit) {
		t.Errorf("%s: relative Frobenius error %.3g, rounding once costs %.3g", name, e.frobenius(), e.once())
	}
	if !(e.worstElement() <= worst) {
		t.Errorf("%s: worst element %.3g", name, e.worstElement())
	}
	if !(e.lse <= lse) {
		t.Errorf("%s: lse off by %.3g", name, e.lse)
	}
}

// lengths are around the tiles of the kernel, primes, and very short.
var lengths = []int{1, 2, 3, 6, 31, 33, 127, 128, 129, 255, 257, 1021, 1023, 1025}

// cases varies everything at once: each length meets each causal rule, and the
// other properties rotate through their values at different periods.
func cases() []Tensors {
	rng := rand.New(rand.NewPCG(9, 10))
	dims := []int{1, 8, 32, 64, 80, 96, 128, 192, 256}
	heads := [][2]int{{1, 1}, {4, 2}, {4, 1}, {3, 3}}
	layouts := []attention.Layout{attention.BHND, attention.BNHD}
	var list []Tensors
	for _, n := range lengths {
		for causal := attention.NonCausal; causal <= attention.BottomRight; causal++ {
			for _, ratio := range []float64{1, 0.4, 2.5} { // Nk / Nq
				i := len(list)
				p := Problem(n, dims[i%len(dims)])
				if n > 600 && i%4 != 0 { // keep the whole list within seconds
					p.D = 1 + i%16
				}
				p.Dv = p.D
				if i%2 == 1 {
					p.Dv = 1 + rng.IntN(40)
				}
				p.Nk = max(1, int(float64(n)*ratio))
				if ratio > 1 && n > 600 {
					p.Nq, p.Nk = n/3, n
				}
				p.Causal = causal
				p.DType, p.OutDType = dtypes[i%3], dtypes[i/3%3]
				p.Layout = layouts[i/2%2]
				if n < 600 || i%5 == 0 {
					p.Hq, p.Hkv = heads[i%4][0], heads[i%4][1]
					p.B = 1 + i/4%2*b2i(n < 300)
				}
				list = append(list, Random(p, rng))
			}
		}
	}
	return list
}

func (s suite) exact(t *testing.T) {
	worst := make(map[attention.DType]Errors)
	for i, x := range cases() {
		p := x.P
		w := Way{QueryChunk: 1 + i*37%p.Nq, KeyChunk: 1 + i*53%p.Nk, Threads: 1 + i%2, Batch: 1 + i%3, Save: i%3 == 0, Slack: i % 2 * 130}
		if i%4 == 0 {
			w.QueryChunk, w.KeyChunk = 0, 0
		}
		w.QueryChunk, w.KeyChunk = w.QueryChunk+b2i(w.QueryChunk > 0)*p.Nq/8, w.KeyChunk+b2i(w.KeyChunk > 0)*p.Nk/8
		name := fmt.Sprintf("%+v %+v", p, w)
		must(t, p.Validate())
		e := Compare(t, x, s.Compute(t, x, w), max(12, 8192/(p.B*p.Hq*p.Dv)))
		s.Check(t, name, e, p.OutDType)
		if e.n > 0 {
			m := worst[p.OutDType]
			m.sum, m.norm = worse(m.sum, e.frobenius()), worse(m.norm, e.frobenius()/(e.once()+1e-300))
			m.worst, m.lse = worse(m.worst, e.worstElement()), worse(m.lse, e.lse)
			worst[p.OutDType] = m
		}
		if t.Failed() {
			t.Fatalf("after case %d", i)
		}
	}
	for _, typ := range dtypes {
		m := worst[typ]
		t.Logf("%-4v worst Frobenius %.3g (%.4f of rounding once), worst element %.3g, worst lse %.3g", typ, m.sum, m.norm, m.worst, m.lse)
	}
}

// Every input type meets every output type and every head dimension.
func (s suite) exactTypesAndDimensions(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, dims := range [][2]int{{1, 1}, {8, 8}, {32, 32}, {64, 64}, {80, 80}, {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 96}, {256, 256}} {
		for _, in := range dtypes {
			for _, out := range dtypes {
				p := Problem(37, dims[0])
				p.Dv, p.Nk, p.DType, p.OutDType, p.Causal = dims[1], 150, in, out, attention.BottomRight
				x := Random(p, rng)
				s.Check(t, fmt.Sprintf("%+v", p), Compare(t, x, s.Compute(t, x, Way{KeyChunk: 100}), 37), out)
			}
		}
	}
}

// Scores in the thousands, ties, and maxima in all the wrong places.
func (s suite) exactScores(t *testing.T) { s.scores(t, attention.F32, attention.F16) }

func (s suite) exactScoresBF16(t *testing.T) { s.scores(t, attention.BF16) }

func (s suite) scores(t *testing.T, outs ...attention.DType) {
	rng := rand.New(rand.NewPCG(13, 14))
	const n, d = 300, 16
	sign := func(x int) float64 { return float64(1 - 2*(x&1)) }
	tests := []struct {
		name    string
		q, k    func(b, h, n, d int) float64
		largest float64 // |s| that the case must reach
	}{
		{"uniform", func(_, _, _, _ int) float64 { return 0 }, func(_, _, _, _ int) float64 { return rng.NormFloat64() }, 0},
		{"spread over +-5000", func(_, _, i, _ int) float64 { return 4 * sign(i) }, func(_, _, j, _ int) float64 { return 5000. / 64 * (1 - 2*float64(j)/(n-1)) }, 4999},
		{"tied near 5000", func(_, _, i, _ int) float64 { return 4 * sign(i) }, func(_, _, j, d int) float64 {
			return 5000./64 + float64(b2i(d == 0))*float64(j*7%n)/n // scores up to 4 apart
		}, 4999},
		{"tied near -5000", func(_, _, i, _ int) float64 { return -4 }, func(_, _, j, d int) float64 {
			return 5000./64 + float64(b2i(d == 0))*float64(j*7%n)/n
		}, 4999},
		{"largest last", func(_, _, _, _ int) float64 { return 1 }, func(_, _, j, _ int) float64 { return float64(j) / 16 }, 299},
		{"largest in the last key alone", func(_, _, _, _ int) float64 { return 1 }, func(_, _, j, _ int) float64 { return 100 * float64(b2i(j == n-1)) }, 1600},
		{"largest first", func(_, _, _, _ int) float64 { return 1 }, func(_, _, j, _ int) float64 { return -float64(j) / 16 }, 299},
	}
	for _, test := range tests {
		for causal := attention.NonCausal; causal <= attention.TopLeft; causal++ {
			for _, out := range outs {
				p := Problem(n, d)
				p.Scale, p.Causal, p.OutDType = 1, causal, out
				x := Tensors{P: p, Q: Fill(p, 1, n, d, test.q), K: Fill(p, 1, n, d, test.k),
					V: Fill(p, 1, n, d, func(_, _, _, _ int) float64 { return rng.NormFloat64() })}
				if s := largestScore(x); !(s >= test.largest) {
					t.Errorf("%s: scores reach only %v", test.name, s)
				}
				e := Compare(t, x, s.Compute(t, x, Way{KeyChunk: 77, QueryChunk: 190}), n)
				// A float64 score of 5000 has an error of 4e-13, which the
				// exponential hands on: to float64, not to any output.
				s.Check(t, fmt.Sprintf("%s, %v, %v", test.name, causal, out), e, out)
			}
		}
	}
}

// Scores from small to steep, of rows in all directions and of rows that all
// point one way, so that every sum on the way to a score is large.
func (s suite) exactSteepScores(t *testing.T) {
	var most float64
	dims, keys := []int{32, 64, 128, 256}, 1000
	if testing.Short() {
		dims, keys = dims[1:2], 300
	}
	for _, d := range dims {
		for _, oneWay := range []bool{false, true} {
			for _, bound := range []float64{4, 8, 12, 16, 24, 32, 48} { // of |q||k|, about, in units of log2
				rng := rand.New(rand.NewPCG(41, 42))
				p := Problem(50, d)
				p.Nk, p.Scale = keys, bound/math.Log2E/float64(d)
				x := Random(p, rng)
				if oneWay {
					way := make([]float64, d)
					for i := range way {
						way[i] = rng.NormFloat64()
					}
					near := func(_, _, _, i int) float64 { return way[i] + 0.3*rng.NormFloat64() }
					x.Q, x.K = Fill(p, 1, p.Nq, d, near), Fill(p, 1, p.Nk, d, near)
				}
				for _, out := range dtypes {
					x.P.OutDType = out
					e := Compare(t, x, s.Compute(t, x, Way{}), 20)
					s.checkWithin(t, fmt.Sprintf("D = %d, one way %v, scores to %v, %v", d, oneWay, bound, out), e, out, max(1e-6, s.PerScore*bound))
					if out == attention.F32 {
						most = max(most, e.frobenius())
					}
				}
			}
		}
	}
	t.Logf("f32: relative Frobenius error at most %.3g", most)
}

// Weights rounded to bfloat16: an error of that size, whatever the length.
func (s suite) fast(t *testing.T) {
	dims := []int{7, 16, 64, 80, 128, 256}
	if testing.Short() {
		dims = dims[:2]
	}
	for _, d := range dims {
		for _, n := range []int{1, 2, 255, 256, 257, 2000} {
			for _, out := range dtypes {
				rng := rand.New(rand.NewPCG(43, 44))
				p := Problem(60, d)
				p.Dv, p.Nk, p.DType, p.OutDType, p.Fast, p.Causal = min(d+n%2, 256), n, attention.BF16, out, true, attention.Causal(n%2)+attention.NonCausal
				x := Random(p, rng)
				e := Compare(t, x, s.Compute(t, x, Way{KeyChunk: 700, Threads: 2}), 20)
				if limit := math.Hypot(3e-3, 1.02*e.once()); !(e.frobenius() <= limit) {
					t.Errorf("D = %d, %d keys, %v: error %.3g, want at most %.3g", d, n, out, e.frobenius(), limit)
				}
				if !(e.lse <= 4e-3) {
					t.Errorf("D = %d, %d keys, %v: lse off by %.3g", d, n, out, e.lse)
				}
			}
		}
	}
}

func largestScore(x Tensors) (largest float64) {
	p := x.P
	q, k := make([]float32, p.Nq*p.D), make([]float32, p.Nk*p.D)
	p.DType.Widen(q, x.Q)
	p.DType.Widen(k, x.K)
	for i := range p.Nq {
		for j := range p.Nk {
			var s float64
			for d := range p.D {
				s += float64(q[i*p.D+d]) * float64(k[j*p.D+d])
			}
			largest = max(largest, math.Abs(s*p.Scale))
		}
	}
	return largest
}

func (s suite) rowsWithoutKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	for _, out := range dtypes {
		for _, nk := range []int{1, 3, 40} {
			p := Problem(100, 8)
			p.Nk, p.Causal, p.OutDType = nk, attention.BottomRight, out
			p.Hq = 2
			x := Random(p, rng)
			// Not even a NaN query makes an empty row anything but empty.
			for i := range 8 {
				p.DType.Put(x.Q[(50*8+i)*4:], math.NaN())
			}
			for _, w := range []Way{{}, {QueryChunk: 33, KeyChunk: 2}} {
				s.Check(t, fmt.Sprintf("%+v", p), Compare(t, x, s.Compute(t, x, w), 100), out)
			}
		}
	}
}

// V around 1: the outputs do not shrink with the number of keys, and an error
// that grew while a million weights were summed would show.
func (s suite) errorDoesNotGrowWithLength(t *testing.T) {
	long := 1 << 20
	if testing.Short() {
		long = 1 << 16
	}
	errorsAt := func(n int, chunks ...int) (worst float64) {
		p := Problem(4, 16)
		p.Nk = n
		rng := rand.New(rand.NewPCG(17, 18))
		x := Random(p, rng)
		x.V = Fill(p, 1, n, 16, func(_, _, _, _ int) float64 { return 1 + rng.NormFloat64() })
		all := sample(4, 4)
		want, lse := Exact(x, 0, 0, all)
		for _, c := range chunks {
			var e Errors
			e.add(t, p, s.Compute(t, x, Way{KeyChunk: (n + c - 1) / c, Threads: 2}), 0, 0, all, want, lse)
			worst = worse(worst, e.frobenius())
		}
		return worst
	}
	atShort, atLong := errorsAt(4096, 1), errorsAt(long, 5, 64)
	t.Logf("relative Frobenius error %.3g at 4096 keys, %.3g at %d keys", atShort, atLong, long)
	if !(atLong <= 2*atShort) {
		t.Errorf("the error grows from %.3g to %.3g", atShort, atLong)
	}
}

// The number of threads, a detour of the state through memory and a repetition leave
// every bit as it was; so do the split into batches and the length of query chunks, on
// devices that say so.
func (s suite) sameBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	for _, causal := range []attention.Causal{attention.NonCausal, attention.BottomRight} {
		for _, typ := range dtypes {
			p := Problem(131, 24)
			p.Hq, p.Hkv, p.Nk, p.Causal, p.Layout, p.DType, p.OutDType = 4, 2, 300, causal, attention.BNHD, typ, typ
			x := Random(p, rng)
			base := Way{QueryChunk: 90, KeyChunk: 70}
			want := s.Compute(t, x, base)
			saved := base
			saved.Save = true
			others := []Way{base, saved}
			for _, threads := range []int{2, 3, 8} {
				w := base
				w.Threads = threads
				others = append(others, w)
			}
			if s.AnyBatch {
				for _, batch := range []int{2, 3, 5} {
					w := base
					w.Batch, w.Threads = batch, 2
					others = append(others, w)
					w.Save, w.Slack = true, 40
					others = append(others, w)
				}
				w := base
				w.QueryChunk = 17 // rows do not depend on each other
				others = append(others, w)
			}
			for _, w := range others {
				got := s.Compute(t, x, w)
				if !bytes.Equal(got.O, want.O) || !bytes.Equal(got.LSE, want.LSE) {
					t.Errorf("%v, %v: %+v and %+v differ", typ, causal, w, base)
				}
			}
		}
	}
}

func (s suite) chunkingsAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(23, 24))
	p := Problem(100, 16)
	p.Causal = attention.TopLeft
	x := Random(p, rng)
	want := s.Compute(t, x, Way{})
	for _, chunk := range []int{1, 2, 7, 33, 64, 99} {
		got := s.Compute(t, x, Way{QueryChunk: chunk + 5, KeyChunk: chunk})
		for i := range p.Nq {
			a, la := want.row(p, 0, 0, i)
			b, lb := got.row(p, 0, 0, i)
			for d, x := range append(a, la) {
				y := append(b, lb)[d]
				near := x == y || math.Abs(float64(x-y)) <= 2e-6
				if s.Once {
					near = x == y || math.Nextafter32(x, y) == y
				}
				if !near {
					t.Fatalf("chunks of %d: row %d is %v, undivided %v", chunk, i, y, x)
				}
			}
		}
	}
}

func (s suite) longChunks(t *testing.T) {
	rng := rand.New(rand.NewPCG(25, 26))
	for _, n := range [][2]int{{3, 70001}, {70001, 3}} {
		for _, layout := range []attention.Layout{attention.BHND, attention.BNHD} {
			p := Problem(n[0], 4)
			p.Nk, p.Hq, p.Hkv, p.Layout, p.DType = n[1], 2, 2, layout, attention.BF16
			x := Random(p, rng)
			s.Check(t, fmt.Sprintf("%+v", p), Compare(t, x, s.Compute(t, x, Way{Threads: 2}), 500), p.OutDType)
		}
	}
}
