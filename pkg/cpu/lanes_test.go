//go:build unix

package cpu

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const laneCanary = 0xA5

// lanePages are mapped pages between two that may not be touched.
type lanePages struct{ pages []byte }

func newLanePages(t testing.TB, size int) *lanePages {
	page := os.Getpagesize()
	n := (size + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, n+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	for _, side := range [][]byte{all[:page], all[page+n:]} {
		if err := unix.Mprotect(side, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return &lanePages{all[page : page+n : page+n]}
}

// lanePlace puts values at the end of the pages, or shift values after their start,
// with canaries in what is left. The returned function looks for dead canaries.
func lanePlace[T any](g *lanePages, atEnd bool, shift int, values []T) ([]T, func(t testing.TB)) {
	t0 := *new(T)
	size := int(unsafe.Sizeof(t0))
	for i := range g.pages {
		g.pages[i] = laneCanary
	}
	at := shift * size
	if atEnd {
		at = len(g.pages) - len(values)*size
	}
	to := unsafe.Slice((*T)(unsafe.Pointer(&g.pages[at])), len(values))
	copy(to, values)
	return to, func(t testing.TB) {
		t.Helper()
		for _, side := range [][]byte{g.pages[:at], g.pages[at+len(values)*size:]} {
			if n := bytes.Count(side, []byte{laneCanary}); n != len(side) {
				t.Fatalf("%d bytes outside the result are overwritten", len(side)-n)
			}
		}
	}
}

func forLaneTiers(t *testing.T, f func(t *testing.T, k laneKernels)) {
	tiers := laneTiers()
	if raceDetector {
		t.Skip("nothing for the race detector to see")
	}
	if len(tiers) == 0 {
		t.Skip("no vector kernels for this CPU")
	}
	for _, k := range tiers {
		t.Run(k.name, func(t *testing.T) { f(t, k) })
	}
}

var laneCounts = []int{16, 32, 48}

// productCounts are those of products: 8 are the first of a panel of 16.
func productCounts(k laneKernels) []int {
	if k.least == 8 {
		return append([]int{8}, laneCounts...)
	}
	return laneCounts
}

// laneInts returns small integers, whose sums of products are exact in any order.
func laneInts[T float32 | float64](rng *rand.Rand, n int) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = T(rng.IntN(17) - 8)
	}
	return x
}

func laneFill[T any](n int, x T) []T {
	s := make([]T, n)
	for i := range s {
		s[i] = x
	}
	return s
}

func laneSame[T float32 | float64](a, b T) bool { return a == b || a != a && b != b }

// laneRows lays out n rows of d elements, stride elements apart, and nothing after
// the last row.
func laneRows[T any](values []T, n, d, stride int) []T {
	var zero T
	m := laneFill((n-1)*stride+d, zero)
	for j := range n {
		copy(m[j*stride:][:d], values[j*d:][:d])
	}
	return m
}

func checkScores[T float32 | float64, K float32 | uint16, Q float32 | float64 | uint32](
	t *testing.T, counts, sizes []int, step int,
	run func(s, top *T, q *Q, d, lanes int, k *K, stride, keys int),
	packQ func(q []T, d, lanes int) []Q, packK func(k []float32) []K) {
	rng := rand.New(rand.NewPCG(1, 2))
	var gs, gt, gq, gk = newLanePages(t, 1<<19), newLanePages(t, 4096), newLanePages(t, 1<<17), newLanePages(t, 1<<17)
	size := int(unsafe.Sizeof(*new(K)))
	for _, lanes := range counts {
		panel := max(lanes, 16)
		for _, d := range sizes {
			for keys := 1; keys <= 50; keys++ {
				atEnd, shift, stride := keys&1 == 0, rng.IntN(16), d+step*rng.IntN(3)
				q, k := laneInts[T](rng, d*panel), laneInts[float32](rng, keys*d)
				first := laneFill(panel, T(math.Inf(-1)))
				first[3] = 1e6
				kk, _ := lanePlace(gk, atEnd, shift, laneRows(packK(k), keys, d, stride))
				qq, _ := lanePlace(gq, atEnd, shift, packQ(q, d, panel))
				s, okS := lanePlace(gs, atEnd, shift, laneFill(keys*panel, T(0.5)))
				top, okT := lanePlace(gt, atEnd, shift, first)
				run(&s[0], &top[0], &qq[0], d, lanes, &kk[0], stride*size, keys)
				okS(t)
				okT(t)
				for i := range panel {
					want := first[i]
					for j := range keys {
						var sum T
						for x := range d {
							sum += T(k[j*d+x]) * q[x*panel+i]
						}
						if i >= lanes {
							sum = 0.5 // left alone
						} else {
							want = max(want, sum)
						}
						if s[j*panel+i] != sum {
							t.Fatalf("%d lanes, d %d, %d keys: s[%d][%d] = %v, want %v", lanes, d, keys, j, i, s[j*panel+i], sum)
						}
					}
					if top[i] != want {
						t.Fatalf("%d lanes, d %d, %d keys: top[%d] = %v, want %v", lanes, d, keys, i, top[i], want)
					}
				}
			}
		}
	}
}

func laneAsIs[T any](x []T) []T { return x }

func TestLaneScores(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		t.Run("float32", func(t *testing.T) {
			checkScores(t, productCounts(k), []int{1, 2, 3, 5, 8, 17, 33, 49, 64}, 1, k.scores, func(q []float32, _, _ int) []float32 { return q }, laneAsIs[float32])
		})
		t.Run("float64", func(t *testing.T) {
			checkScores(t, laneCounts, []int{1, 2, 3, 5, 8, 17, 64}, 1, k.scoresWide, func(q []float64, _, _ int) []float64 { return q }, laneAsIs[float32])
		})
		t.Run("bfloat16", func(t *testing.T) {
			if k.scoresBF16 == nil {
				t.Skip("no bfloat16 dot products")
			}
			checkScores(t, productCounts(k), []int{2, 4, 6, 16, 34, 64}, 1, k.scoresBF16, lanePairs, laneTruncate)
		})
	})
}

func laneTruncate(k []float32) []uint16 {
	out := make([]uint16, len(k))
	for i, x := range k {
		out[i] = uint16(math.Float32bits(x) >> 16)
	}
	return out
}

func lanePairs(q []float32, d, lanes int) []uint32 {
	out := make([]uint32, d/2*lanes)
	for i := range out {
		x, lane := i/lanes*2, i%lanes
		out[i] = math.Float32bits(q[x*lanes+lane])>>16 | math.Float32bits(q[(x+1)*lanes+lane])&0xFFFF0000
	}
	return out
}

// A float32 chain of d terms is within d roundings of the exact sum, and the
// float64 chain as good as exact.
func TestLaneScoresRounding(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		const lanes, d, keys = 48, 129, 27
		rng := rand.New(rand.NewPCG(3, 4))
		q, ks := make([]float32, d*lanes), make([]float32, keys*d)
		wide := make([]float64, len(q))
		for i := range q {
			q[i] = float32(rng.NormFloat64())
			wide[i] = float64(q[i])
		}
		for i := range ks {
			ks[i] = float32(rng.NormFloat64())
		}
		s, top := make([]float32, keys*lanes), laneFill(lanes, float32(math.Inf(-1)))
		s64, top64 := make([]float64, keys*lanes), laneFill(lanes, math.Inf(-1))
		k.scores(&s[0], &top[0], &q[0], d, lanes, &ks[0], 4*d, keys)
		k.scoresWide(&s64[0], &top64[0], &wide[0], d, lanes, &ks[0], 4*d, keys)
		for j := range keys {
			for i := range lanes {
				var chains [2]float32
				var sum, size float64
				for x := range d {
					a, b := float64(ks[j*d+x]), wide[x*lanes+i]
					chain := &chains[x%k.chains]
					*chain = float32(math.FMA(a, b, float64(*chain)))
					sum = math.FMA(a, b, sum)
					size += math.Abs(a * b)
				}
				want := chains[0] + chains[1]
				if got := s[j*lanes+i]; math.Abs(float64(got-want)) > size*0x1p-23 {
					t.Fatalf("s[%d][%d] = %v, want %v", j, i, got, want)
				}
				if s64[j*lanes+i] != sum {
					t.Fatalf("wide s[%d][%d] = %v, want %v", j, i, s64[j*lanes+i], sum)
				}
			}
		}
	})
}

func TestLaneScoresSpecial(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		nan, inf := float32(math.NaN()), float32(math.Inf(1))
		for _, lanes := range laneCounts {
			for _, c := range []struct{ k, top []float32 }{
				{[]float32{nan, 2}, []float32{2}}, {[]float32{2, nan}, []float32{2}}, {[]float32{nan}, []float32{-inf}},
				{[]float32{-inf}, []float32{-inf}}, {[]float32{inf, nan, 1}, []float32{inf}},
			} {
				q, top, s := laneFill(lanes, float32(1)), laneFill(lanes, -inf), make([]float32, len(c.k)*lanes)
				k.scores(&s[0], &top[0], &q[0], 1, lanes, &c.k[0], 4, len(c.k))
				q64, top64, s64 := laneFill(lanes, 1.0), laneFill(lanes, math.Inf(-1)), make([]float64, len(s))
				k.scoresWide(&s64[0], &top64[0], &q64[0], 1, lanes, &c.k[0], 4, len(c.k))
				for i := range lanes {
					if top[i] != c.top[0] || top64[i] != float64(c.top[0]) {
						t.Fatalf("top of %v: %v and %v", c.k, top[i], top64[i])
					}
				}
				for i, x := range s {
					if want := c.k[i/lanes]; !laneSame(x, want) || !laneSame(s64[i], float64(want)) {
						t.Fatalf("s[%d] = %v, %v, want %v", i, x, s64[i], want)
					}
				}
			}
		}
	})
}

func TestLaneScoresBF16Special(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		if k.scoresBF16 == nil {
			t.Skip("no bfloat16 dot products")
		}
		nan, inf := float32(math.NaN()), float32(math.Inf(1))
		in := []float32{nan, 1, 2, 2, -inf, 1, 1, nan, inf, -inf, 0x1p127, 0x1p127, -3, 2, 1, 1, inf, 3}
		want := []float32{nan, 4, -inf, nan, nan, inf, -1, 2, inf}
		for _, lanes := range laneCounts {
			q, top, s := laneFill(2*lanes, float32(1)), laneFill(lanes, -inf), make([]float32, len(want)*lanes)
			pairs, short := lanePairs(q, 2, lanes), laneTruncate(in)
			k.scoresBF16(&s[0], &top[0], &pairs[0], 2, lanes, &short[0], 4, len(want)-1)
			for i, x := range s[:(len(want)-1)*lanes] {
				if !laneSame(x, want[i/lanes]) {
					t.Errorf("s[%d] = %v, want %v", i, x, want[i/lanes])
				}
			}
			for _, x := range top {
				if x != inf {
					t.Errorf("top = %v", x)
				}
			}
		}
	})
}

func checkMask[T float32 | float64](t *testing.T, run func(s, top *T, lanes, keys int, visible *int32)) {
	rng := rand.New(rand.NewPCG(5, 6))
	gs, gt, gv := newLanePages(t, 1<<16), newLanePages(t, 4096), newLanePages(t, 4096)
	inf := T(math.Inf(1))
	for _, lanes := range laneCounts {
		for keys := 1; keys < 20; keys++ {
			in, first, see := laneInts[T](rng, keys*lanes), laneFill(lanes, -inf), make([]int32, lanes)
			in[0], first[2] = T(math.NaN()), 100
			for i := range see {
				see[i] = int32(rng.IntN(keys+6) - 3)
			}
			see[0], see[1] = math.MinInt32, math.MaxInt32
			atEnd, shift := keys&1 == 0, rng.IntN(16)
			s, okS := lanePlace(gs, atEnd, shift, in)
			top, okT := lanePlace(gt, atEnd, shift, first)
			visible, _ := lanePlace(gv, atEnd, shift, see)
			run(&s[0], &top[0], lanes, keys, &visible[0])
			okS(t)
			okT(t)
			for i := range lanes {
				want := first[i]
				for j := range keys {
					x := in[j*lanes+i]
					if j >= int(see[i]) {
						x = -inf
					} else if x == x {
						want = max(want, x)
					}
					if got := s[j*lanes+i]; !laneSame(got, x) {
						t.Fatalf("%d lanes, %d keys: s[%d][%d] = %v, want %v", lanes, keys, j, i, got, x)
					}
				}
				if top[i] != want {
					t.Fatalf("%d lanes, %d keys: top[%d] = %v, want %v", lanes, keys, i, top[i], want)
				}
			}
		}
	}
}

func TestLaneMask(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		checkMask(t, k.mask)
		checkMask(t, k.maskWide)
	})
}

func checkRebase[T float32 | float64](t *testing.T, run func(m, alpha *float64, base, top *T, lanes int, c float64)) {
	inf := math.Inf(1)
	type in struct{ m, top, c float64 }
	cases := []in{
		{-inf, -inf, 1}, {-inf, 0, 1}, {-inf, 3.2, 0.5}, {-inf, -3.2, 0.5}, {2, 1, 1}, {2, 2, 1}, {2, 7.5, 1},
		{-inf, inf, 1}, {3, inf, 1}, {inf, 1, 1}, {-inf, -inf, 0}, {4, -inf, 0}, {5, inf, 0}, {-inf, 7, 0}, {-1e300, 3, 1},
		{-1000, 20, 1}, {-1000, 23, 1}, {-1040, 20, 1}, {-5000, 1 << 40, 1}, {1 << 40, 1 << 41, 1}, {-3, 1e30, 1}, {-1 << 33, 1, 1},
	}
	g := newLanePages(t, 4096)
	for _, lanes := range laneCounts {
		for n := range cases {
			m, _ := make([]float64, lanes), 0
			top, alpha := make([]T, lanes), make([]float64, lanes)
			c := cases[n].c
			var mine []in
			for i := range lanes { // neighbours with the same c, so that lanes differ
				x := cases[(n+i)%len(cases)]
				if x.c != c {
					x = cases[n]
				}
				mine = append(mine, x)
				m[i], top[i] = x.m, T(x.top)
			}
			base, ok := lanePlace(g, n&1 == 0, 3, make([]T, lanes))
			run(&m[0], &alpha[0], &base[0], &top[0], lanes, c)
			ok(t)
			for i, x := range mine {
				want := x.m
				if p := math.Ceil(float64(T(x.top)) * c); p > want {
					want = p
				}
				scale := 0.0
				if x.m == want {
					scale = 1
				} else if d := x.m - want; d >= -1022 {
					scale = math.Ldexp(1, int(d))
				}
				ref := want
				if math.IsInf(want, -1) {
					ref = 0
				}
				if m[i] != want || alpha[i] != scale && !(alpha[i] < 0x1p-1022 && scale == 0) || base[i] != T(ref) {
					t.Fatalf("m %v, top %v, c %v: m %v, alpha %v, base %v; want %v, %v, %v", x.m, x.top, c, m[i], alpha[i], base[i], want, scale, ref)
				}
			}
		}
	}
}

func TestLaneRebase(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		t.Run("float32", func(t *testing.T) { checkRebase(t, k.rebase) })
		t.Run("float64", func(t *testing.T) { checkRebase(t, k.rebaseWide) })
	})
}

// Of 8 lanes only the first half of a row is weighed, and only their sums change.
func TestLaneSoftmaxOfEight(t *testing.T) {
	const lanes, row = 8, 16
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		if k.least > lanes {
			t.Skip("has only 16")
		}
		rng := rand.New(rand.NewPCG(9, 8))
		gs, gl := newLanePages(t, 1<<16), newLanePages(t, 4096)
		for keys := 1; keys < 20; keys++ {
			in := make([]float32, keys*row)
			for i := range in {
				in[i] = float32(rng.NormFloat64() * 20)
			}
			in[lanes-1] = float32(math.Inf(-1))
			base, lIn, alpha := make([]float32, row), make([]float64, row), make([]float64, row)
			for i := range row {
				base[i], lIn[i], alpha[i] = float32(12+rng.IntN(5)), rng.Float64(), math.Ldexp(1, -rng.IntN(4))
			}
			s, okS := lanePlace(gs, keys&1 == 0, rng.IntN(16), in)
			l, okL := lanePlace(gl, keys&1 == 0, rng.IntN(16), lIn)
			const c = 0.18
			k.softmax(&s[0], lanes, keys, &base[0], c, 1e-9, &l[0], &alpha[0])
			okS(t)
			okL(t)
			for i := range row {
				sum := lIn[i]
				if i < lanes {
					sum *= alpha[i]
				}
				for j := range keys {
					got, want := s[j*row+i], float64(in[j*row+i])
					if i < lanes {
						want = math.Exp2(want*(float64(float32(c))+1e-9) - float64(base[i]))
						sum += want
					}
					if math.Abs(float64(got)-want) > 2e-6*math.Abs(want) {
						t.Fatalf("%d keys: [%d][%d] = %v, want %v", keys, j, i, got, want)
					}
				}
				if math.Abs(l[i]-sum) > 1e-5*sum {
					t.Fatalf("%d keys: l[%d] = %v, want %v", keys, i, l[i], sum)
				}
			}
		}
	})
}

// laneUlps is the distance of a float32 from an exact value, in units of the last
// place of the exact value.
func laneUlps(got float32, want float64) float64 {
	unit := math.Ldexp(1, math.Ilogb(want)-23)
	return math.Abs(float64(got)-want) / unit
}

func TestLaneSoftmax(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(7, 8))
		gs, gl, gw := newLanePages(t, 1<<16), newLanePages(t, 4096), newLanePages(t, 1<<16)
		gb := newLanePages(t, 4096)
		for _, lanes := range laneCounts {
			for keys := 1; keys < 20; keys++ {
				hi, lo := float32(0.18), float32(1e-9)
				if keys%3 == 0 {
					lo = 0
				}
				in, wide := make([]float32, keys*lanes), make([]float64, keys*lanes)
				for i := range in {
					in[i] = float32(rng.NormFloat64() * 20)
					wide[i] = float64(in[i])
				}
				in[lanes-1], wide[lanes-1] = float32(math.Inf(-1)), math.Inf(-1)
				baseIn, lIn, alpha := make([]float32, lanes), make([]float64, lanes), make([]float64, lanes)
				base64 := make([]float64, lanes)
				for i := range lanes {
					baseIn[i], lIn[i], alpha[i] = float32(12+rng.IntN(5)), rng.Float64(), math.Ldexp(1, -rng.IntN(4))
					base64[i] = float64(baseIn[i])
				}
				atEnd, shift := keys&1 == 0, rng.IntN(16)
				s, okS := lanePlace(gs, atEnd, shift, in)
				l, okL := lanePlace(gl, atEnd, shift, lIn)
				base, _ := lanePlace(gb, atEnd, shift, baseIn)
				k.softmax(&s[0], lanes, keys, &base[0], hi, lo, &l[0], &alpha[0])
				okS(t)
				okL(t)
				check := func(kind string, p []float32, l []float64, c float64) {
					t.Helper()
					for i := range lanes {
						want := lIn[i] * alpha[i]
						for j := range keys {
							e := math.Exp2(float64(in[j*lanes+i])*c - base64[i])
							if got := p[j*lanes+i]; math.Abs(float64(got)-e) > 2e-6*e {
								t.Fatalf("%s, %d lanes, %d keys: weight [%d][%d] = %v, want %v", kind, lanes, keys, j, i, got, e)
							}
							want += e
						}
						if math.Abs(l[i]-want) > 1e-5*want {
							t.Fatalf("%s, %d lanes, %d keys: l[%d] = %v, want %v", kind, lanes, keys, i, l[i], want)
						}
					}
				}
				check("float32", s, l, float64(hi)+float64(lo))
				c := 0.1800001
				for _, alias := range []bool{false, true} {
					s, okS := lanePlace(gw, atEnd, shift, wide)
					l, _ := lanePlace(gl, atEnd, shift, lIn)
					p, okP := lanePlace(gs, atEnd, shift, make([]float32, keys*lanes))
					if alias {
						p = unsafe.Slice((*float32)(unsafe.Pointer(&s[0])), keys*lanes)
					}
					k.softmaxWide(&p[0], &s[0], lanes, keys, &base64[0], c, &l[0], &alpha[0])
					okS(t)
					okP(t)
					check(fmt.Sprint("float64, alias ", alias), p, l, c)
				}
			}
		}
	})
}

// laneExp2 evaluates the exponential of a tier for any number of arguments.
func laneExp2(k laneKernels, wide bool, ts []float32, hi, lo, base float32) []float32 {
	const lanes = 48
	keys := (len(ts) + lanes - 1) / lanes
	s := make([]float32, keys*lanes)
	copy(s, ts)
	l, alpha := make([]float64, lanes), laneFill(lanes, 1.0)
	if wide {
		w := make([]float64, len(s))
		for i, x := range s {
			w[i] = float64(x)
		}
		b := laneFill(lanes, float64(base))
		k.softmaxWide(&s[0], &w[0], lanes, keys, &b[0], float64(hi)+float64(lo), &l[0], &alpha[0])
	} else {
		b := laneFill(lanes, base)
		k.softmax(&s[0], lanes, keys, &b[0], hi, lo, &l[0], &alpha[0])
	}
	return s[:len(ts)]
}

func TestLaneExp2Error(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(9, 10))
		for _, r := range [][2]float64{{-126, -125}, {-126, -64}, {-64, -8}, {-8, -1}, {-1, -0.5}, {-0.5, 0}, {-1e-3, 1e-3}, {0, 0.5}, {0.5, 1}, {1, 2}} {
			ts := []float32{float32(r[0]), float32(r[1])}
			for range 200_000 {
				ts = append(ts, float32(r[0]+(r[1]-r[0])*rng.Float64()))
			}
			for n := math.Ceil(r[0]); n <= r[1]; n += 0.0625 { // the edges of any reduction
				ts = append(ts, float32(n))
				if n > r[0] {
					ts = append(ts, math.Nextafter32(float32(n), -200))
				}
				if n < r[1] {
					ts = append(ts, math.Nextafter32(float32(n), 200))
				}
			}
			worst, at := 0.0, float32(0)
			for i, got := range laneExp2(k, false, ts, 1, 0, 0) {
				if e := laneUlps(got, math.Exp2(float64(ts[i]))); !(e <= worst) {
					worst, at = e, ts[i]
				}
			}
			t.Logf("2^t for t in [%g, %g]: at most %.3f ulp (t = %v)", r[0], r[1], worst, at)
			if !(worst <= 1.5) {
				t.Errorf("2^%v is wrong by %.3f ulp", at, worst)
			}
		}
	})
}

func TestLaneExp2Special(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	poisoned := func(x float32) bool { return x != x || x == inf }
	zero := func(x float32) bool { return x == 0 }
	tiny := func(x float32) bool { return x >= 0 && x <= 0x1p-126 }
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		for _, c := range []struct {
			s, hi, lo, base float32
			ok              func(float32) bool
		}{
			{-inf, 1, 0, 0, zero}, {-inf, 1, 1e-9, 5, zero}, {-inf, 1, -1e-9, 0, zero}, {-inf, 0, 0, 0, zero}, {-inf, 1e-38, 0, -3, zero},
			{inf, 1, 0, 0, poisoned}, {inf, 1, 1e-9, inf, poisoned}, {inf, 1, -1e-9, 3, poisoned}, {inf, 1, 0, inf, poisoned},
			{nan, 1, 0, 0, poisoned}, {nan, 1, 1e-9, -7, poisoned}, {1, 1, 0, inf, zero}, {-3e38, 2, 0, 0, zero}, {3e38, 2, 0, 0, poisoned},
			{-126.5, 1, 0, 0, tiny}, {-127.3, 1, 0, 0, tiny}, {-140.2, 1, 0, 0, tiny}, {-149.9, 1, 0, 0, tiny}, {-151, 1, 0, 0, tiny},
			{-254, 1, 0, 0, tiny}, {-255.7, 1, 0, 0, tiny}, {-256, 1, 0, 0, tiny}, {-1e4, 1, 0, 0, tiny}, {-3e9, 1, 0, 0, tiny}, {-3e38, 1, 0, 0, tiny},
			{127.7, 1, 0, 0, func(x float32) bool { return x > 0x1p127 && x < inf }}, {129, 1, 0, 0, poisoned}, {300, 1, 0, 0, poisoned}, {3e9, 1, 0, 0, poisoned},
			{0, 1, 0, 0, func(x float32) bool { return x == 1 }}, {-126, 1, 0, 0, func(x float32) bool { return x == 0x1p-126 }},
		} {
			if got := laneExp2(k, false, []float32{c.s}, c.hi, c.lo, c.base)[0]; !c.ok(got) {
				t.Errorf("score %v, hi %v, lo %v, base %v: weight %v", c.s, c.hi, c.lo, c.base, got)
			}
			if got := laneExp2(k, true, []float32{c.s}, c.hi, 0, c.base)[0]; !c.ok(got) && c.lo == 0 {
				t.Errorf("score %v, c %v, base %v: wide weight %v", c.s, c.hi, c.base, got)
			}
		}
	})
}

func TestLaneValues(t *testing.T) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		checkValues(t, productCounts(k), k.values)
	})
}

func checkValues(t *testing.T, counts []int, run func(acc, alpha *float64, lanes int, p *float32, keys int, v *float32, stride, dv int)) {
	rng := rand.New(rand.NewPCG(11, 12))
	ga, gp, gv, gw := newLanePages(t, 1<<16), newLanePages(t, 1<<16), newLanePages(t, 1<<16), newLanePages(t, 4096)
	for _, lanes := range counts {
		panel := max(lanes, 16)
		for _, keys := range []int{1, 2, 3, 17, 64} {
			for dv := 1; dv <= 50; dv++ {
				atEnd, shift, stride := dv&1 == 0, rng.IntN(16), dv+rng.IntN(3)
				in, w := laneInts[float64](rng, dv*panel), make([]float64, panel)
				for i := range w {
					w[i] = math.Ldexp(1, -rng.IntN(3))
				}
				pIn, vIn := laneInts[float32](rng, keys*panel), laneInts[float32](rng, keys*dv)
				p, _ := lanePlace(gp, atEnd, shift, pIn)
				v, _ := lanePlace(gv, atEnd, shift, laneRows(vIn, keys, dv, stride))
				alpha, _ := lanePlace(gw, atEnd, shift, w)
				acc, ok := lanePlace(ga, atEnd, shift, in)
				run(&acc[0], &alpha[0], lanes, &p[0], keys, &v[0], 4*stride, dv)
				ok(t)
				for x := range dv {
					for i := range panel {
						want := in[x*panel+i]
						if i < lanes {
							want *= w[i]
							for j := range keys {
								want += float64(pIn[j*panel+i]) * float64(vIn[j*dv+x])
							}
						}
						if got := acc[x*panel+i]; got != want {
							t.Fatalf("%d lanes, %d keys, dv %d: acc[%d][%d] = %v, want %v", lanes, keys, dv, x, i, got, want)
						}
					}
				}
			}
		}
	}
}
