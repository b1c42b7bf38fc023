package cpu

import (
	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"math"
	"unsafe"
)

type rowKernels struct {
	name                                 string
	dotsF32                              func(s *float32, ldS int, top, q *float32, d, r int, k *float32, stride, keys int)
	dotsBF16, dotsF16                    func(s *float32, ldS int, top, q *float32, d, r int, k *uint16, stride, keys int)
	weights                              func(s *float32, n int, base, hi, lo float32) float32
	combineF32                           func(o, p *float32, ldP, r int, v *float32, stride, keys, dv int)
	combineBF16, combineF16              func(o, p *float32, ldP, r int, v *uint16, stride, keys, dv int)
	normF32, peakF32                     func(p *float32, stride, rows, d int) float32
	normBF16, peakBF16, normF16, peakF16 func(p *uint16, stride, rows, d int) float32
	widenBF16, widenF16                  func(dst *float32, src *uint16, n int)
}

func rowTiers() []rowKernels {
	f := func(p *float32, n int) []float32 { return unsafe.Slice(p, n) }
	h := func(p *uint16, n int) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), 2*n) }
	norm := func(x []float32, d int) float32 {
		var m float64
		for i := 0; i < len(x); i += d {
			var s float64
			for _, v := range x[i : i+d] {
				s += float64(v) * float64(v)
			}
			if !(s <= m) && m == m {
				m = s
			}
		}
		if m != m {
			return float32(math.Inf(1))
		}
		return float32(m)
	}
	peak := func(x []float32) float32 {
		var m float64
		for _, v := range x {
			if !(math.Abs(float64(v)) <= m) && m == m {
				m = math.Abs(float64(v))
			}
		}
		if m != m {
			return float32(math.Inf(1))
		}
		return float32(m)
	}
	wide := func(t attention.DType, p *uint16, n int) []float32 {
		x := make([]float32, n)
		t.Widen(x, h(p, n))
		return x
	}
	k := rowKernels{
		normF32:   func(p *float32, s, n, d int) float32 { return norm(f(p, n*d), d) },
		peakF32:   func(p *float32, s, n, d int) float32 { return peak(f(p, n*d)) },
		normBF16:  func(p *uint16, s, n, d int) float32 { return norm(wide(attention.BF16, p, n*d), d) },
		peakBF16:  func(p *uint16, s, n, d int) float32 { return peak(wide(attention.BF16, p, n*d)) },
		normF16:   func(p *uint16, s, n, d int) float32 { return norm(wide(attention.F16, p, n*d), d) },
		peakF16:   func(p *uint16, s, n, d int) float32 { return peak(wide(attention.F16, p, n*d)) },
		widenBF16: func(to *float32, p *uint16, n int) { attention.BF16.Widen(f(to, n), h(p, n)) },
		widenF16:  func(to *float32, p *uint16, n int) { attention.F16.Widen(f(to, n), h(p, n)) },
	}
	a, b := k, k
	a.name, b.name = "avx512", "avx2"
	return []rowKernels{a, b}
}
