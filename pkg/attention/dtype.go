package attention

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
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
	src = src[:len(dst)*t.Size()]
	switch t {
	case F32:
		widenF32(dst, src)
	case F16:
		widenF16(dst, src)
	case BF16:
		widenBF16(dst, src)
	default:
		panic("attention: widen: " + t.String())
	}
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func widenF32(dst []float32, src []byte) {
	if littleEndian { // the host's own format
		copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), 4*len(dst)), src)
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// The 16-bit loops take four elements at a time from one 64-bit word: one load
// and one bounds check instead of four.

func widenBF16(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		w := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(w) << 16)
		dst[1] = math.Float32frombits(uint32(w) &^ 0xffff)
		dst[2] = math.Float32frombits(uint32(w>>32) << 16)
		dst[3] = math.Float32frombits(uint32(w>>32) &^ 0xffff)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

func widenF16(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		w := binary.LittleEndian.Uint64(src)
		if anySpecial(w) {
			widenF16Each(dst[:4], src)
		} else {
			dst[0] = f16Normal(uint32(w) & 0xffff)
			dst[1] = f16Normal(uint32(w) >> 16)
			dst[2] = f16Normal(uint32(w>>32) & 0xffff)
			dst[3] = f16Normal(uint32(w >> 48))
		}
		dst, src = dst[4:], src[8:]
	}
	widenF16Each(dst, src)
}

// widenF16Each is for tails, and for values that are not all normal.
//
//go:noinline
func widenF16Each(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// anySpecial says whether one of four binary16 is zero, subnormal, infinite or
// NaN: whether one of the exponents, plus one, is below two modulo 32.
func anySpecial(w uint64) bool {
	const ones = 0x0001_0001_0001_0001
	e := (w&(0x7c00*ones) + 0x400*ones) & (0x7800 * ones)
	return (e-ones)&^e&(0x8000*ones) != 0 // a lane is zero
}

// f16Normal widens a normal binary16.
func f16Normal(h uint32) float32 {
	return math.Float32frombits(h&0x8000<<16 | h&0x7fff<<13 + (127-15)<<23)
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
	sign, frac := uint32(h&0x8000)<<16, uint32(h&0x3ff)
	switch h & 0x7c00 {
	case 0: // zero or subnormal: frac * 2^-24, exact in float32
		return math.Float32frombits(math.Float32bits(float32(frac)*0x1p-24) | sign)
	case 0x7c00:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return f16Normal(uint32(h))
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
