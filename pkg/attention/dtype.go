package attention

import (
	"encoding/binary"
	"fmt"
	"math"
)

// DType is the element type of a tensor. All elements are little-endian.
type DType uint8

const (
	F32  DType = iota + 1 // IEEE 754 binary32
	F16                   // IEEE 754 binary16
	BF16                  // bfloat16: the upper half of a binary32
)

// ParseDType accepts f32, f16, bf16 and their long names.
func ParseDType(s string) (DType, error) {
	switch s {
	case "f32", "float32":
		return F32, nil
	case "f16", "float16":
		return F16, nil
	case "bf16", "bfloat16":
		return BF16, nil
	}
	return 0, fmt.Errorf("element type %q: want f32, f16 or bf16", s)
}

// String returns the short name: f32, f16, bf16.
func (t DType) String() string {
	switch t {
	case F32:
		return "f32"
	case F16:
		return "f16"
	case BF16:
		return "bf16"
	}
	return fmt.Sprintf("DType(%d)", uint8(t))
}

// Size is the number of bytes of one element.
func (t DType) Size() int {
	if t == F32 {
		return 4
	}
	return 2
}

// Epsilon is the distance from 1 to the next larger value.
func (t DType) Epsilon() float64 {
	switch t {
	case F32:
		return 0x1p-23
	case F16:
		return 0x1p-10
	}
	return 0x1p-7
}

// Widen converts the elements in src to float32, exactly. len(src) must be
// len(dst) * t.Size().
func (t DType) Widen(dst []float32, src []byte) {
	switch t {
	case F32:
		src = src[:4*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case F16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case BF16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	default:
		panic("attention: widen: " + t.String())
	}
}

// Put stores x at dst[0:t.Size()], rounded once, to nearest, ties to even.
// Rounding straight from float64 avoids the double rounding of a detour
// through float32.
func (t DType) Put(dst []byte, x float64) {
	switch t {
	case F32:
		binary.LittleEndian.PutUint32(dst, math.Float32bits(float32(x)))
	case F16:
		binary.LittleEndian.PutUint16(dst, Float64ToF16(x))
	case BF16:
		binary.LittleEndian.PutUint16(dst, Float64ToBF16(x))
	default:
		panic("attention: put: " + t.String())
	}
}

// F16ToFloat32 widens a binary16, subnormals, infinities and NaN included.
func F16ToFloat32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	frac := uint32(h & 0x3ff)
	switch exp {
	case 0: // zero or subnormal: frac * 2^-24, exact in float32
		f := float32(frac) * 0x1p-24
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+127-15)<<23 | frac<<13)
}

// Float64ToF16 rounds to binary16, to nearest, ties to even. A NaN stays a NaN.
func Float64ToF16(x float64) uint16 { return uint16(narrow(x, 5, 10)) }

// Float64ToBF16 rounds to bfloat16, to nearest, ties to even. A NaN stays a NaN.
func Float64ToBF16(x float64) uint16 { return uint16(narrow(x, 8, 7)) }

// narrow rounds x to a binary format with the given exponent and fraction
// widths and returns its bits.
func narrow(x float64, expBits, fracBits uint) uint64 {
	b := math.Float64bits(x)
	sign := b >> 63 << (expBits + fracBits)
	inf := (uint64(1)<<expBits - 1) << fracBits
	exp := int(b>>52&0x7ff) - 1023
	frac := b & (1<<52 - 1)
	if exp == 1024 {
		if frac != 0 {
			return sign | inf | 1<<(fracBits-1)
		}
		return sign | inf
	}
	bias := 1<<(expBits-1) - 1
	e := exp + bias // biased exponent in the narrow format
	sig := frac
	drop := 52 - fracBits
	if exp == -1023 { // zero, or a float64 subnormal: far below any narrow value
		return sign
	}
	if e <= 0 { // subnormal in the narrow format: shift the implicit one in
		sig |= 1 << 52
		drop += uint(1 - e)
		e = 0
		if drop > 53 {
			return sign
		}
	}
	kept := sig >> drop
	rest := sig & (1<<drop - 1)
	half := uint64(1) << (drop - 1)
	if rest > half || rest == half && kept&1 == 1 {
		kept++ // a carry runs into the exponent, as it should
	}
	r := uint64(e)<<fracBits + kept
	if r >= inf {
		r = inf
	}
	return sign | r
}
