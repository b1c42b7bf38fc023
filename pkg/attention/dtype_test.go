package attention

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sort"
	"testing"
)

// half describes one of the two 16-bit formats to the tests.
type half struct {
	t      DType
	narrow func(float64) uint16
	inf    uint16 // bits of +Inf; smaller patterns are finite, larger ones NaN
	nextUp float64
}

var halves = []half{
	{F16, Float64ToF16, 0x7c00, 0x1p16},
	{BF16, Float64ToBF16, 0x7f80, 0x1p128},
}

// widen goes through DType.Widen, the path that loads take.
func (h half) widen(bits uint16) float32 {
	var dst [1]float32
	h.t.Widen(dst[:], binary.LittleEndian.AppendUint16(nil, bits))
	return dst[0]
}

// value decodes bits by the definition of the format, in float64.
func (h half) value(bits uint16) float64 {
	fracBits := 10
	if h.t == BF16 {
		fracBits = 7
	}
	bias := 1<<(14-fracBits) - 1
	sign := 1 - 2*float64(bits>>15)
	exp, frac := int(bits&0x7fff)>>fracBits, float64(bits&(1<<fracBits-1))
	switch {
	case bits&0x7fff > h.inf:
		return math.NaN()
	case bits&0x7fff == h.inf:
		return math.Inf(int(sign))
	case exp == 0:
		return sign * math.Ldexp(frac, 1-bias-fracBits)
	}
	return sign * math.Ldexp(1+math.Ldexp(frac, -fracBits), exp-bias)
}

func TestHalvesWidenEveryPatternAndBack(t *testing.T) {
	for _, h := range halves {
		for b := range 1 << 16 {
			bits := uint16(b)
			want, got := h.value(bits), float64(h.widen(bits))
			back := h.narrow(got)
			if math.IsNaN(want) {
				if !math.IsNaN(got) || !math.IsNaN(float64(h.widen(back))) {
					t.Fatalf("%v %#04x is a NaN, widened to %v and back to %#04x", h.t, bits, got, back)
				}
				continue
			}
			if got != want || math.Signbit(got) != math.Signbit(want) {
				t.Fatalf("%v %#04x widened to %v, want %v", h.t, bits, got, want)
			}
			if back != bits {
				t.Fatalf("%v %#04x widened and narrowed gives %#04x", h.t, bits, back)
			}
		}
	}
}

// Long slices meet whatever unrolling Widen does, short ones its tail.
func TestWidenLengthsAndNeighbours(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, typ := range []DType{F32, F16, BF16} {
		for n := range 70 {
			src := make([]byte, n*typ.Size()+1)
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			src = src[1:] // files need not be aligned
			dst := make([]float32, n+2)
			dst[0], dst[n+1] = 7, 7
			typ.Widen(dst[1:n+1], src)
			if dst[0] != 7 || dst[n+1] != 7 {
				t.Fatalf("%v: Widen of %d elements wrote beside them", typ, n)
			}
			for i := range n {
				var want uint32
				switch e := src[i*typ.Size():]; typ {
				case F32:
					want = binary.LittleEndian.Uint32(e)
				case F16:
					want = math.Float32bits(F16ToFloat32(binary.LittleEndian.Uint16(e)))
				case BF16:
					want = uint32(binary.LittleEndian.Uint16(e)) << 16
				}
				if got := math.Float32bits(dst[i+1]); got != want {
					t.Fatalf("%v: element %d of %d is %#x, want %#x", typ, i, n, got, want)
				}
			}
		}
	}
}

// Every pattern in every place of four, among neighbours of another kind: loops
// that take several elements at once may not mix them up.
func TestWidenMixesOfKinds(t *testing.T) {
	for _, h := range halves {
		dst, src := make([]float32, 4<<16), make([]byte, 8<<16)
		for _, beside := range []uint16{0x3c01, 0, 1, h.inf, h.inf | 1} {
			for place := range 4 {
				for i := range dst {
					bits := beside
					if i%4 == place {
						bits = uint16(i / 4)
					}
					binary.LittleEndian.PutUint16(src[2*i:], bits)
				}
				h.t.Widen(dst, src)
				for i, got := range dst {
					bits := beside
					if i%4 == place {
						bits = uint16(i / 4)
					}
					if want := h.widen(bits); math.Float32bits(got) != math.Float32bits(want) {
						t.Fatalf("%v %#04x in place %d among %#04x widened to %v, want %v", h.t, bits, place, beside, got, want)
					}
				}
			}
		}
	}
}

// nearest finds the nearest value among all values of the format. The middle
// of two neighbours is exact in float64, so the comparisons decide exactly.
func (h half) nearest(values []float64, x float64) uint16 {
	var sign uint16
	if math.Signbit(x) {
		sign, x = 0x8000, -x
	}
	i := sort.SearchFloat64s(values, x) // the first value >= x
	if i == len(values) {
		return sign | h.inf
	}
	if i == 0 || values[i] == x {
		return sign | uint16(i)
	}
	switch middle := (values[i-1] + values[i]) / 2; {
	case x < middle:
		i--
	case x == middle && i%2 == 1: // patterns alternate between even and odd
		i--
	}
	return sign | uint16(i)
}

func TestHalvesRoundToNearestEven(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, h := range halves {
		// Rounding treats infinity as the value after the largest.
		var values []float64
		for b := range h.inf {
			values = append(values, h.value(b))
		}
		values = append(values, h.nextUp)

		detours := 0
		check := func(x float64) {
			want := h.nearest(values, x)
			for _, x := range []float64{x, -x} {
				if got := h.narrow(x); got != want {
					t.Fatalf("%v: %v rounds to %#04x (%v), want %#04x (%v)", h.t, x, got, h.value(got), want, h.value(want))
				}
				if h.narrow(float64(float32(x))) != want {
					detours++
				}
				want |= 0x8000
			}
		}
		for i := 1; i < len(values); i++ {
			lo, hi := values[i-1], values[i]
			for _, x := range []float64{lo, lo + (hi-lo)/2, lo + (hi-lo)*rng.Float64()} {
				check(x)
				check(math.Nextafter(x, math.Inf(1)))
				check(math.Abs(math.Nextafter(x, math.Inf(-1))))
			}
		}
		for _, x := range []float64{0, 5e-324, 0x1p-1022, 1e-320, h.nextUp, h.nextUp * 1.5, math.MaxFloat64, math.Inf(1)} {
			check(x)
		}
		if detours == 0 {
			t.Errorf("%v: no case tells one rounding from two: the test has lost its teeth", h.t)
		}
		if got := h.narrow(math.NaN()); !math.IsNaN(h.value(got)) {
			t.Errorf("%v: NaN became %#04x", h.t, got)
		}
		// A payload that lies wholly below the kept bits must not turn into Inf.
		if got := h.narrow(math.Float64frombits(0x7ff0000000000001)); !math.IsNaN(h.value(got)) {
			t.Errorf("%v: a NaN with a small payload became %#04x", h.t, got)
		}
	}
}

func TestPut(t *testing.T) {
	for _, x := range []float64{0, math.Copysign(0, -1), 1, -1.0 / 3, 1e-40, 1e-46, 3e38, 1e39, 0x1p-149, 1 + 0x1p-24, 1 + 0x1p-24 + 0x1p-50,
		math.Inf(1), math.Inf(-1), math.NaN()} {
		for _, typ := range []DType{F32, F16, BF16} {
			buf := []byte{0xa5, 0xa5, 0xa5, 0xa5, 0xa5}
			typ.Put(buf, x)
			var want []byte
			switch typ {
			case F32:
				want = binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(x)))
			case F16:
				want = binary.LittleEndian.AppendUint16(nil, Float64ToF16(x))
			case BF16:
				want = binary.LittleEndian.AppendUint16(nil, Float64ToBF16(x))
			}
			for len(want) < len(buf) {
				want = append(want, 0xa5)
			}
			if string(buf) != string(want) {
				t.Errorf("%v: Put(%v) = %x, want %x", typ, x, buf, want)
			}
		}
	}
}

func TestDTypeNames(t *testing.T) {
	for name, want := range map[string]DType{"f32": F32, "float32": F32, "f16": F16, "float16": F16, "bf16": BF16, "bfloat16": BF16} {
		if got, err := ParseDType(name); got != want || err != nil {
			t.Errorf("ParseDType(%q) = %v, %v", name, got, err)
		}
	}
	if got, err := ParseDType("f64"); err == nil {
		t.Errorf("ParseDType(f64) = %v, want an error", got)
	}
	for _, typ := range []DType{F32, F16, BF16} {
		if got, err := ParseDType(typ.String()); got != typ || err != nil {
			t.Errorf("ParseDType(%q) = %v, %v", typ, got, err)
		}
		var buf [4]byte
		var one [1]float32
		typ.Put(buf[:], 1+typ.Epsilon())
		typ.Widen(one[:], buf[:])
		if float64(one[0]) != 1+typ.Epsilon() {
			t.Errorf("%v cannot hold 1 + Epsilon: %v", typ, one[0])
		}
		typ.Put(buf[:], 1+typ.Epsilon()/2)
		typ.Widen(one[:], buf[:])
		if one[0] != 1 {
			t.Errorf("%v holds a value between 1 and 1 + Epsilon: %v", typ, one[0])
		}
	}
}

func BenchmarkWiden(b *testing.B) {
	for _, typ := range []DType{F32, F16, BF16} {
		b.Run(typ.String(), func(b *testing.B) {
			dst := make([]float32, 1<<16)
			src := make([]byte, len(dst)*typ.Size())
			for i := range dst {
				typ.Put(src[i*typ.Size():], float64(i%1000)-500)
			}
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				typ.Widen(dst, src)
			}
		})
	}
}
