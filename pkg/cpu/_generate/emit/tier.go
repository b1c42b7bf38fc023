// Package emit holds what the generators of pkg/cpu share: registers by number,
// the few instructions whose form depends on the vector width, and encodings
// that neither avo nor the Go assembler knows.
package emit

import (
	"strconv"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Tier is an instruction set for which a kernel is generated.
type Tier struct {
	Suffix    string // of the function names
	Bytes     int    // of a vector
	Registers int
	spec      reg.Spec
}

var (
	AVX512 = Tier{"AVX512", 64, 32, reg.S512}
	AVX2   = Tier{"AVX2", 32, 16, reg.S256}
)

// Wide says whether the tier has 512-bit vectors.
func (t Tier) Wide() bool { return t.Bytes == 64 }

// V is vector register i at the tier's full width.
func (t Tier) V(i int) reg.Physical { return reg.Vector.Lookup(reg.Index(i), t.spec) }

// Half is the lower half of vector register i.
func (t Tier) Half(i int) reg.Physical {
	if t.Wide() {
		return reg.Vector.Lookup(reg.Index(i), reg.S256)
	}
	return reg.Vector.Lookup(reg.Index(i), reg.S128)
}

// Zero clears a vector register.
func (t Tier) Zero(i int) {
	if t.Wide() {
		build.VPXORD(t.V(i), t.V(i), t.V(i))
	} else {
		build.VXORPS(t.V(i), t.V(i), t.V(i))
	}
}

// UpperHalf copies the upper half of register i to the lower half of register to.
func (t Tier) UpperHalf(i, to int) {
	if t.Wide() {
		build.VEXTRACTF64X4(operand.U8(1), t.V(i), t.Half(to))
	} else {
		build.VEXTRACTF128(operand.U8(1), t.V(i), t.Half(to))
	}
}

// Join puts the lower half of register high above the lower half of register i.
func (t Tier) Join(i, high int) {
	if t.Wide() {
		build.VINSERTF64X4(operand.U8(1), t.Half(high), t.V(i), t.V(i))
	} else {
		build.VINSERTF128(operand.U8(1), t.Half(high), t.V(i), t.V(i))
	}
}

// Narrow converts the float64s of register i to float32s in its own lower half.
func (t Tier) Narrow(i int) {
	if t.Wide() {
		build.VCVTPD2PS(t.V(i), t.Half(i))
	} else {
		build.VCVTPD2PSY(t.V(i), t.Half(i))
	}
}

// DotBF16 emits VDPBF16PS: acc += a.low*b.low + a.high*b.high for every pair of
// bfloat16. The Go assembler has no such instruction.
func (t Tier) DotBF16(a, b, acc int) {
	build.Comment("VDPBF16PS " + t.name(a) + ", " + t.name(b) + ", " + t.name(acc))
	t.evex(2, 2, 0x52, a, b, acc)
}

// PackBF16 emits VCVTNE2PS2BF16: to = low, rounded to bfloat16, in the lower half
// and high in the upper. Subnormal numbers become 0. The Go assembler has no such
// instruction.
func (t Tier) PackBF16(low, high, to int) {
	build.Comment("VCVTNE2PS2BF16 " + t.name(low) + ", " + t.name(high) + ", " + t.name(to))
	t.evex(2, 3, 0x72, low, high, to)
}

// name is what the Go assembler calls a vector register.
func (t Tier) name(i int) string {
	if t.Wide() {
		return "Z" + strconv.Itoa(i)
	}
	return "Y" + strconv.Itoa(i)
}

// evex emits an instruction on three registers without mask, W0, of an opcode map
// and a prefix (2 for F3, 3 for F2): a is the last source, b the one before it.
func (t Tier) evex(space, prefix, opcode uint32, a, b, to int) {
	not := func(reg, bit int) uint32 { return uint32(^reg>>bit) & 1 }
	length := uint32(1)
	if t.Wide() {
		length = 2
	}
	p0 := not(to, 3)<<7 | not(a, 4)<<6 | not(a, 3)<<5 | not(to, 4)<<4 | space
	p1 := uint32(^b&15)<<3 | 1<<2 | prefix
	p2 := length<<5 | not(b, 4)<<3
	modrm := uint32(0xC0 | to&7<<3 | a&7)
	raw("LONG", operand.U32(0x62|p0<<8|p1<<16|p2<<24))
	raw("WORD", operand.U16(uint16(opcode|modrm<<8)))
}

func raw(opcode string, bits operand.Constant) {
	build.Instruction(&ir.Instruction{Opcode: opcode, Operands: []operand.Op{bits}})
}
