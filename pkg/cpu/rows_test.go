package cpu

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fence is memory between two pages that cannot be touched.
type fence struct{ mem []byte }

func newFence(t testing.TB, size int) *fence {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	b, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	for _, edge := range [][]byte{b[:page], b[page+size:]} {
		if err := unix.Mprotect(edge, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return &fence{b[page : page+size]}
}

// fenced gives n elements that start or end at the edge of a fence; the rest of
// it is filled with a pattern that unwritten expects to find again.
func fenced[T any](f *fence, n int, atEnd bool) []T {
	var z T
	size := n * int(unsafe.Sizeof(z))
	for i := range f.mem {
		f.mem[i] = 0xa5
	}
	off := 0
	if atEnd {
		off = len(f.mem) - size
	}
	if size == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&f.mem[off])), n)
}

// unwritten reports a write outside of the n elements.
func unwritten[T any](t *testing.T, f *fence, n int, atEnd bool) {
	t.Helper()
	var z T
	size := n * int(unsafe.Sizeof(z))
	rest := f.mem[size:]
	if atEnd {
		rest = f.mem[:len(f.mem)-size]
	}
	for _, b := range rest {
		if b != 0xa5 {
			t.Fatal("written outside of the buffer")
		}
	}
}

func half16(bits uint16) float32 {
	sign, exp, man := uint32(bits>>15)<<31, int(bits>>10&31), uint32(bits&1023)
	switch exp {
	case 0:
		f := float32(man) / (1 << 24)
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | man<<13)
	}
	return math.Float32frombits(sign | uint32(exp+112)<<23 | man<<13)
}

func brain16(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// rowFormat is one element type of a tier: its kernels over raw bits.
type rowFormat struct {
	name    string
	bytes   int
	value   func(p unsafe.Pointer) float32
	random  func(r *rand.Rand, p unsafe.Pointer)
	set     func(p unsafe.Pointer, special float64) // NaN or an infinity
	dots    func(s *float32, ldS int, top, q *float32, d, r int, k unsafe.Pointer, stride, keys int) float32
	combine func(o, p *float32, ldP, r int, v unsafe.Pointer, stride, keys, dv int)
	norm    func(p unsafe.Pointer, stride, rows, d int) float32
	peak    func(p unsafe.Pointer, stride, rows, d int) float32
	widen   func(dst *float32, src *uint16, n int)
}

// anyAhead is how far ahead memory is fetched in tests: no result depends on it.
const anyAhead = 1 << 12

func rowFormats(k rowKernels) []rowFormat {
	half := func(name string, value func(uint16) float32, inf uint16, random func(r *rand.Rand) uint16,
		dots func(*float32, int, *float32, *float32, int, int, *uint16, int, int, int) float32,
		combine func(*float32, *float32, int, int, *uint16, int, int, int, int),
		norm, peak func(*uint16, int, int, int) float32, widen func(*float32, *uint16, int)) rowFormat {
		return rowFormat{
			name: name, bytes: 2,
			value:  func(p unsafe.Pointer) float32 { return value(*(*uint16)(p)) },
			random: func(r *rand.Rand, p unsafe.Pointer) { *(*uint16)(p) = random(r) },
			set: func(p unsafe.Pointer, x float64) {
				switch {
				case x > 0:
					*(*uint16)(p) = inf
				case x < 0:
					*(*uint16)(p) = inf | 1<<15
				default:
					*(*uint16)(p) = inf | 1
				}
			},
			dots: func(s *float32, ldS int, top, q *float32, d, r int, k unsafe.Pointer, stride, keys int) float32 {
				return dots(s, ldS, top, q, d, r, (*uint16)(k), stride, keys, anyAhead)
			},
			combine: func(o, p *float32, ldP, r int, v unsafe.Pointer, stride, keys, dv int) {
				combine(o, p, ldP, r, (*uint16)(v), stride, keys, dv, anyAhead)
			},
			norm:  func(p unsafe.Pointer, stride, rows, d int) float32 { return norm((*uint16)(p), stride, rows, d) },
			peak:  func(p unsafe.Pointer, stride, rows, d int) float32 { return peak((*uint16)(p), stride, rows, d) },
			widen: widen,
		}
	}
	return []rowFormat{
		{
			name: "f32", bytes: 4,
			value:  func(p unsafe.Pointer) float32 { return *(*float32)(p) },
			random: func(r *rand.Rand, p unsafe.Pointer) { *(*float32)(p) = float32(r.NormFloat64()) },
			set:    func(p unsafe.Pointer, x float64) { *(*float32)(p) = float32(x) },
			dots: func(s *float32, ldS int, top, q *float32, d, r int, kp unsafe.Pointer, stride, keys int) float32 {
				return k.dotsF32(s, ldS, top, q, d, r, (*float32)(kp), stride, keys, anyAhead)
			},
			combine: func(o, p *float32, ldP, r int, v unsafe.Pointer, stride, keys, dv int) {
				k.combineF32(o, p, ldP, r, (*float32)(v), stride, keys, dv, anyAhead)
			},
			norm: func(p unsafe.Pointer, stride, rows, d int) float32 { return k.normF32((*float32)(p), stride, rows, d) },
			peak: func(p unsafe.Pointer, stride, rows, d int) float32 { return k.peakF32((*float32)(p), stride, rows, d) },
		},
		half("bf16", brain16, 0x7f80, func(r *rand.Rand) uint16 { return uint16(math.Float32bits(float32(r.NormFloat64())) >> 16) },
			k.dotsBF16, k.combineBF16, k.normBF16, k.peakBF16, k.widenBF16),
		half("f16", half16, 0x7c00, func(r *rand.Rand) uint16 { // 2^-8 to 4, of both signs
			return uint16(r.UintN(10)+8)<<10 | uint16(r.UintN(1024)) | uint16(r.UintN(2))<<15
		}, k.dotsF16, k.combineF16, k.normF16, k.peakF16, k.widenF16),
	}
}

func eachRowFormat(t *testing.T, f func(t *testing.T, k rowKernels, e rowFormat)) {
	for _, k := range testedRowTiers() {
		for _, e := range rowFormats(k) {
			t.Run(k.name+"/"+e.name, func(t *testing.T) { f(t, k, e) })
		}
	}
}

// matrix is rows x d elements, the rows stride bytes apart, at an edge of a fence.
type matrix struct {
	e               rowFormat
	p               unsafe.Pointer
	stride, rows, d int
}

func newMatrix(r *rand.Rand, f *fence, e rowFormat, rows, d, gap int, atEnd bool) matrix {
	stride := (d + gap) * e.bytes
	b := fenced[byte](f, (rows-1)*stride+d*e.bytes, atEnd)
	m := matrix{e, unsafe.Pointer(&b[0]), stride, rows, d}
	for j := range rows {
		for x := range d {
			e.random(r, m.at(j, x))
		}
	}
	return m
}

func (m matrix) at(j, x int) unsafe.Pointer { return unsafe.Add(m.p, j*m.stride+x*m.e.bytes) }

func (m matrix) value(j, x int) float64 { return float64(m.e.value(m.at(j, x))) }

func randomFloats(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
}

var rowSizes = []int{1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 40, 47, 63, 64, 65, 80, 127, 128, 129, 200, 256, 257, 300}

// testedRowTiers are none under the race detector, which would see nothing.
func testedRowTiers() []rowKernels {
	if raceDetector {
		return nil
	}
	return rowTiers()
}

func TestRowDots(t *testing.T) {
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(1, 2))
		fs, ft, fq, fk := newFence(t, 1<<14), newFence(t, 64), newFence(t, 1<<14), newFence(t, 1<<18)
		for _, d := range rowSizes {
			for _, keys := range []int{1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 31, 32, 33, 37} {
				for rows := 1; rows <= 4; rows++ {
					end, gap := r.IntN(2) == 0, r.IntN(2)*r.IntN(9)
					ldS := keys + r.IntN(3)
					s := fenced[float32](fs, (rows-1)*ldS+keys, end)
					top := fenced[float32](ft, rows, end)
					q := fenced[float32](fq, rows*d, end)
					k := newMatrix(r, fk, e, keys, d, gap, end)
					randomFloats(r, q)
					for i := range top {
						top[i] = float32(r.IntN(3)) - 2
					}
					before := append([]float32(nil), top...)
					canary := float32(12345)
					for i := range s {
						s[i] = canary
					}
					norm := float64(e.dots(&s[0], ldS, &top[0], &q[0], d, rows, k.p, k.stride, keys))
					var largest, all float64
					for j := range keys {
						var squares float64
						for x := range d {
							squares += k.value(j, x) * k.value(j, x)
						}
						largest, all = max(largest, squares), all+squares
					}
					if rounding := float64(d+8) * 6e-8; !(norm >= largest*(1-rounding) && norm <= min(2*all, 16*largest)*(1+rounding)) { // the last key may count twice
						t.Fatalf("d %d keys %d rows %d: a bound of %g, the largest is %g, all together %g", d, keys, rows, norm, largest, all)
					}
					for i := range rows {
						want := before[i]
						for j := range ldS {
							if i*ldS+j >= len(s) {
								break
							}
							got := s[i*ldS+j]
							if j >= keys {
								if got != canary {
									t.Fatalf("d %d keys %d rows %d: written beside the scores", d, keys, rows)
								}
								continue
							}
							want = max(want, got)
							var sum, size float64
							for x := range d {
								p := float64(q[i*d+x]) * k.value(j, x)
								sum += p
								size += math.Abs(p)
							}
							if math.Abs(float64(got)-sum) > size*float64(d+8)*6e-8 {
								t.Fatalf("d %d keys %d rows %d: s[%d][%d] = %g, want %g", d, keys, rows, i, j, got, sum)
							}
						}
						if top[i] != want {
							t.Fatalf("d %d keys %d rows %d: top[%d] = %g, want %g", d, keys, rows, i, top[i], want)
						}
					}
					unwritten[float32](t, fs, len(s), end)
					unwritten[float32](t, ft, rows, end)
				}
			}
		}
	})
}

// A score's bits depend on neither its place, its neighbours nor alignment.
func TestRowDotsBits(t *testing.T) {
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(3, 4))
		const keys, rows = 37, 4
		fk := newFence(t, 1<<18)
		for _, d := range rowSizes {
			k := newMatrix(r, fk, e, keys, d, 3, true)
			q := make([]float32, rows*d)
			randomFloats(r, q)
			top := make([]float32, rows)
			all, one := make([]float32, rows*keys), make([]float32, rows*keys)
			e.dots(&all[0], keys, &top[0], &q[0], d, rows, k.p, k.stride, keys)
			for n := 1; n <= rows; n++ {
				for j := 0; j < keys; {
					m := min(1+r.IntN(20), keys-j)
					e.dots(&one[j], keys, &top[0], &q[0], d, n, k.at(j, 0), k.stride, m)
					j += m
				}
				for i := range n * keys {
					if math.Float32bits(one[i]) != math.Float32bits(all[i]) {
						t.Fatalf("d %d, %d rows: %g and %g", d, n, one[i], all[i])
					}
				}
			}
		}
	})
}

func TestRowDotsSpecial(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(5, 6))
		fk := newFence(t, 1<<16)
		for _, d := range []int{1, 5, 16, 37, 70} {
			for rows := 1; rows <= 4; rows++ {
				for keys := 1; keys < 36; keys++ {
					k := newMatrix(r, fk, e, keys, d, 1, false)
					bad, what := r.IntN(keys), []float64{math.NaN(), math.Inf(1), math.Inf(-1)}[r.IntN(3)]
					e.set(k.at(bad, r.IntN(d)), what)
					q := make([]float32, rows*d)
					for i := range q {
						q[i] = 1 + r.Float32()
					}
					top := []float32{-inf, -inf, -inf, -inf}
					s := make([]float32, rows*keys)
					if norm := e.dots(&s[0], keys, &top[0], &q[0], d, rows, k.p, k.stride, keys); norm != inf {
						t.Fatalf("d %d: a bound of %g, with %g at %d", d, norm, what, bad)
					}
					for i := range rows {
						want := -inf
						for j := range keys {
							got := s[i*keys+j]
							if got > want {
								want = got
							}
							finite := !math.IsInf(float64(got), 0) && got == got
							if finite != (j != bad) || (j == bad && what == what) && float64(got) != what || j == bad && what != what && got == got {
								t.Fatalf("d %d: %g at key %d, with %g at %d", d, got, j, what, bad)
							}
						}
						if top[i] != want {
							t.Fatalf("top %g, want %g", top[i], want)
						}
					}
				}
			}
		}
	})
	for _, k := range testedRowTiers() { // nothing but NaN leaves top as it is
		s, q, kv, top := make([]float32, 3), []float32{1}, []float32{nan, nan, nan}, []float32{-7}
		k.dotsF32(&s[0], 3, &top[0], &q[0], 1, 1, &kv[0], 4, 3, anyAhead)
		if top[0] != -7 {
			t.Errorf("%s: top %g, want -7", k.name, top[0])
		}
	}
}

func TestRowCombine(t *testing.T) {
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(7, 8))
		fo, fp, fv := newFence(t, 1<<14), newFence(t, 1<<12), newFence(t, 1<<19)
		for _, dv := range append(rowSizes, 384, 511) {
			for _, keys := range []int{1, 2, 3, 17, 64, 65, 131} {
				for rows := 1; rows <= 4; rows++ {
					end, gap := r.IntN(2) == 0, r.IntN(2)*r.IntN(9)
					ldP := keys + r.IntN(3)
					o := fenced[float32](fo, rows*dv, end)
					p := fenced[float32](fp, (rows-1)*ldP+keys, end)
					randomFloats(r, p)
					v := newMatrix(r, fv, e, keys, dv, gap, end)
					e.combine(&o[0], &p[0], ldP, rows, v.p, v.stride, keys, dv)
					for i := range rows {
						for x := range dv {
							var sum float32
							for j := range keys { // exact in float64 but for its own rounding
								sum = float32(math.FMA(float64(p[i*ldP+j]), v.value(j, x), float64(sum)))
							}
							if got := o[i*dv+x]; math.Abs(float64(got-sum)) > 1e-6*math.Abs(float64(sum))+3e-6 {
								t.Fatalf("dv %d keys %d rows %d: o[%d][%d] = %g, want %g", dv, keys, rows, i, x, got, sum)
							}
						}
					}
					unwritten[float32](t, fo, len(o), end)
				}
			}
		}
	})
}

// A sum's bits do not depend on the rows beside it, and a NaN stays in its column.
func TestRowCombineBits(t *testing.T) {
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(9, 10))
		fv := newFence(t, 1<<18)
		const keys = 75
		for _, dv := range rowSizes {
			v := newMatrix(r, fv, e, keys, dv, 2, true)
			bad := r.IntN(dv)
			e.set(v.at(3, bad), math.NaN())
			p := make([]float32, 4*keys)
			randomFloats(r, p)
			all, some := make([]float32, 4*dv), make([]float32, 4*dv)
			e.combine(&all[0], &p[0], keys, 4, v.p, v.stride, keys, dv)
			for i, x := range all {
				if (x != x) != (i%dv == bad) {
					t.Fatalf("dv %d: %g in column %d, with NaN in %d", dv, x, i%dv, bad)
				}
			}
			for n := 1; n < 4; n++ {
				e.combine(&some[0], &p[0], keys, n, v.p, v.stride, keys, dv)
				for i := range n * dv {
					if i%dv != bad && math.Float32bits(some[i]) != math.Float32bits(all[i]) {
						t.Fatalf("dv %d, %d rows: %g and %g", dv, n, some[i], all[i])
					}
				}
			}
		}
	})
}

func TestRowNormPeak(t *testing.T) {
	inf := float32(math.Inf(1))
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(11, 12))
		f := newFence(t, 1<<17)
		for _, d := range rowSizes {
			for _, rows := range []int{1, 2, 3, 4, 5, 8, 15, 16, 17, 33} {
				m := newMatrix(r, f, e, rows, d, r.IntN(2)*r.IntN(9), r.IntN(2) == 0)
				var norm, peak float64
				for j := range rows {
					var sum float64
					for x := range d {
						sum += m.value(j, x) * m.value(j, x)
						peak = max(peak, math.Abs(m.value(j, x)))
					}
					norm = max(norm, sum)
				}
				if got := e.norm(m.p, m.stride, rows, d); math.Abs(float64(got)-norm) > norm*2e-6 {
					t.Fatalf("d %d rows %d: norm %g, want %g", d, rows, got, norm)
				}
				if got := e.peak(m.p, m.stride, rows, d); float64(got) != peak {
					t.Fatalf("d %d rows %d: peak %g, want %g", d, rows, got, peak)
				}
				for _, what := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
					j, x := r.IntN(rows), r.IntN(d)
					e.set(m.at(j, x), what)
					if got := e.norm(m.p, m.stride, rows, d); got != inf {
						t.Fatalf("d %d rows %d: norm %g with %g at %d,%d", d, rows, got, what, j, x)
					}
					if got := e.peak(m.p, m.stride, rows, d); got != inf {
						t.Fatalf("d %d rows %d: peak %g with %g at %d,%d", d, rows, got, what, j, x)
					}
					e.random(r, m.at(j, x))
				}
			}
		}
	})
	for _, k := range testedRowTiers() { // overflow
		x := []float32{3e38, 1}
		if n, p := k.normF32(&x[0], 8, 1, 2), k.peakF32(&x[0], 8, 1, 2); n != inf || p != 3e38 {
			t.Errorf("%s: norm %g, peak %g", k.name, n, p)
		}
	}
}

func TestRowWiden(t *testing.T) {
	eachRowFormat(t, func(t *testing.T, _ rowKernels, e rowFormat) {
		if e.widen == nil {
			t.Skip("nothing to widen")
		}
		src, dst := make([]uint16, 1<<16), make([]float32, 1<<16)
		for i := range src {
			src[i] = uint16(i)
		}
		e.widen(&dst[0], &src[0], len(src))
		for i, got := range dst {
			want := e.value(unsafe.Pointer(&src[i]))
			if want != want && got == got || want == want && math.Float32bits(got) != math.Float32bits(want) {
				t.Fatalf("%#x: %g, want %g", i, got, want)
			}
		}
		fd, fs := newFence(t, 4096), newFence(t, 4096)
		e.widen((*float32)(unsafe.Pointer(&fd.mem[0])), (*uint16)(unsafe.Pointer(&fs.mem[0])), 0)
		for n := 1; n < 200; n++ {
			for _, end := range []bool{false, true} {
				d, s := fenced[float32](fd, n, end), fenced[uint16](fs, n, end)
				copy(s, src[0x3c00:])
				e.widen(&d[0], &s[0], n)
				for i := range d {
					if d[i] != e.value(unsafe.Pointer(&src[0x3c00+i])) {
						t.Fatalf("n %d: element %d is %g", n, i, d[i])
					}
				}
				unwritten[float32](t, fd, n, end)
			}
		}
	})
}

func TestRowWeights(t *testing.T) {
	for _, k := range testedRowTiers() {
		t.Run(k.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(13, 14))
			f := newFence(t, 4096)
			for n := 1; n < 300; n++ {
				end := r.IntN(2) == 0
				s := fenced[float32](f, n, end)
				in := make([]float32, n)
				randomFloats(r, in)
				copy(s, in)
				base, hi, lo := float32(3), float32(0.18033688), float32(-3.2e-9)
				got := k.weights(&s[0], n, base, hi, lo)
				var sum float64
				for i, x := range in {
					want := math.Exp2(float64(x)*(float64(hi)+float64(lo)) - float64(base))
					if math.Abs(float64(s[i])-want) > want*4e-7 {
						t.Fatalf("n %d: weight %g, want %g", n, s[i], want)
					}
					sum += float64(s[i])
				}
				if math.Abs(float64(got)-sum) > sum*1e-6 {
					t.Fatalf("n %d: sum %g, want %g", n, got, sum)
				}
				unwritten[float32](t, f, n, end)
				same := append([]float32{0}, in...)[1:]
				if again := k.weights(&same[0], n, base, hi, lo); math.Float32bits(again) != math.Float32bits(got) {
					t.Fatalf("n %d: the sum is %g at another place, not %g", n, again, got)
				}
			}
		})
	}
}

func TestRowWeightsSpecial(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	lost := func(x float32) bool { return x != x || x == inf }
	zero := func(x float32) bool { return x == 0 }
	for _, k := range testedRowTiers() {
		for _, c := range []struct {
			s, base, hi, lo float32
			ok              func(float32) bool
		}{
			{-inf, 0, 1, 0, zero}, {-inf, 5, 1, 1e-9, zero}, {-inf, -5, 1, -1e-9, zero}, {-inf, 3, 0, 0, zero},
			{nan, 0, 1, 0, lost}, {nan, 0, 1, -1e-9, lost}, {inf, 0, 1, 0, lost}, {inf, 0, 1, -1e-9, lost},
			{inf, inf, 1, 1e-9, lost}, {1, -inf, 1, 0, lost}, {1, nan, 1, 0, lost}, {1e38, 0, 1, 0, lost},
			{1, inf, 1, 0, zero}, {-1e38, 0, 1, 0, zero}, {-3e38, 0, 1e3, -1e-5, zero}, {-1e6, 0, 1, 0, zero},
			{200, 72, 1, 0, lost},
		} {
			for n := 1; n < 70; n++ {
				s := make([]float32, n)
				at := n / 2
				s[at] = c.s
				sum := k.weights(&s[0], n, c.base, c.hi, c.lo)
				if !c.ok(s[at]) || lost(s[at]) && !lost(sum) {
					t.Fatalf("%s: n %d, %+v gives %g, sum %g", k.name, n, c, s[at], sum)
				}
			}
		}
	}
}

// A thirteenth of all float32s from -151 to 2 as the exponent: the greatest error
// by range.
func TestRowExp2(t *testing.T) {
	step := uint32(13)
	if testing.Short() {
		step = 997
	}
	for _, k := range testedRowTiers() {
		ranges := []struct{ from, to, worst, allowed float64 }{
			{-151, -126, 0, 0}, {-126, -64, 0, 1.5}, {-64, -8, 0, 1.5}, {-8, -1, 0, 1.5}, {-1, -1e-3, 0, 1.5},
			{-1e-3, 0, 0, 1.5}, {0, 1e-3, 0, 1.5}, {1e-3, 1, 0, 1.5}, {1, 2, 0, 1.5},
		}
		buf, in := make([]float32, 0, 4096), make([]float32, 0, 4096)
		for i := range ranges {
			g := &ranges[i]
			flush := func() {
				if len(buf) == 0 {
					return
				}
				in = append(in[:0], buf...)
				k.weights(&buf[0], len(buf), 0, 1, 0)
				for j, x := range in {
					want := math.Exp2(float64(x))
					got := float64(buf[j])
					if g.to <= -126 {
						if got != 0 && math.Abs(got-want) > 2e-45 || got == 0 && want >= 0x1p-126 {
							t.Fatalf("%s: 2^%g = %g", k.name, x, got)
						}
						continue
					}
					_, e := math.Frexp(want)
					g.worst = max(g.worst, math.Abs(got-want)/math.Ldexp(1, e-24))
				}
				buf = buf[:0]
			}
			sample := step
			if math.Abs(g.to) <= 1 && math.Abs(g.from) <= 1e-3 {
				sample = 997 // these are many, and all nearly the same
			}
			a, b := math.Float32bits(float32(g.from)), math.Float32bits(float32(g.to))
			if g.from < 0 {
				a, b = b|1<<31, a
			}
			for u := uint64(a); u <= uint64(b); u += uint64(sample) {
				if buf = append(buf, math.Float32frombits(uint32(u))); len(buf) == cap(buf) {
					flush()
				}
			}
			flush()
			if g.worst > g.allowed {
				t.Errorf("%s: %g ulp from %g to %g", k.name, g.worst, g.from, g.to)
			}
			t.Logf("%s: 2^t, t from %g to %g: at most %.3f ulp", k.name, g.from, g.to, g.worst)
		}
	}
}

func TestRowReadPeak(t *testing.T) {
	for _, k := range testedRowTiers() {
		f := newFence(t, 4096)
		for n := 1; n <= 4096; n++ {
			k.readPeak(&f.mem[4096-n], n)
		}
	}
}
