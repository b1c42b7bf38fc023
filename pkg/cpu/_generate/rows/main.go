// The rows generator writes the kernels of pkg/cpu for few query rows, whose
// vectors run along features and along keys.
package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	for _, t := range []tier{{"AVX512", 16}, {"AVX2", 8}} {
		for _, e := range []element{f32, bf16, f16} {
			dots(t, e)
			combine(t, e)
			norm(t, e)
			peak(t, e)
			if e != f32 {
				widen(t, e)
			}
		}
		weights(t)
		accumulate(t)
		readPeak(t)
	}
	build.Generate()
}

// text starts a function of a tier.
func text(name string, t tier, signature string, doc ...string) {
	name += t.suffix
	frame = nil
	build.TEXT(name, attr.NOSPLIT, signature)
	build.Doc(append([]string{name + ": " + doc[0]}, doc[1:]...)...)
}

func ret() {
	build.VZEROUPPER()
	build.RET()
}

// retFloat returns the first lane of x.
func retFloat(x reg.VecVirtual) {
	b, err := build.ReturnIndex(0).Resolve()
	if err != nil {
		panic(err)
	}
	build.VMOVSS(x.AsX(), b.Addr)
	ret()
}

// element is the type of the keys and values in memory.
type element struct {
	name, goType string
	bytes        int
}

var (
	f32  = element{"F32", "float32", 4}
	bf16 = element{"BF16", "uint16", 2}
	f16  = element{"F16", "uint16", 2}
)

// tier is an instruction set: a suffix of the function names and the float32
// lanes of a vector.
type tier struct {
	suffix string
	lanes  int
}

func (t tier) wide() bool { return t.lanes == 16 }

func (t tier) vec() reg.VecVirtual {
	if t.wide() {
		return build.ZMM()
	}
	return build.YMM()
}

func (t tier) zero() reg.VecVirtual {
	v := t.vec()
	build.VXORPS(v, v, v)
	return v
}

// constant is a float32 in every lane of a register.
func (t tier) constant(bits uint32) reg.VecVirtual {
	v, x, r := t.vec(), build.XMM(), build.GP32()
	build.MOVL(operand.U32(bits), r)
	build.VMOVD(r, x)
	build.VBROADCASTSS(x, v)
	return v
}

// load reads a vector of elements and widens it.
func (t tier) load(e element, m operand.Mem) reg.VecVirtual {
	v := t.vec()
	switch e {
	case f32:
		build.VMOVUPS(m, v)
	case bf16:
		build.VPMOVZXWD(m, v)
		build.VPSLLD(operand.U8(16), v, v)
	case f16:
		build.VCVTPH2PS(m, v)
	}
	return v
}

// widen16 widens the 16-bit elements of a register of half the width.
func (t tier) widen16(e element, from reg.Register) reg.VecVirtual {
	v := t.vec()
	if e == f16 {
		build.VCVTPH2PS(from, v)
		return v
	}
	build.VPMOVZXWD(from, v)
	build.VPSLLD(operand.U8(16), v, v)
	return v
}

// tail reads and writes the first n lanes of a vector, 0 < n < lanes.
type tail struct {
	tier
	n    reg.GPVirtual
	k    reg.Register // AVX-512: a bit for each lane
	mask reg.Register // AVX2: a sign for each lane
}

// bits computes (1<<n)-1.
func bits(n reg.GPVirtual) reg.GPVirtual {
	b, c := build.GP32(), build.GP32()
	build.MOVL(operand.U32(1), b)
	build.MOVL(n.As32(), c)
	build.SHLXL(c, b, b)
	build.DECL(b)
	return b
}

// tail makes the masks for n lanes; n may be 0 as long as they are not used.
func (t tier) tail(n reg.GPVirtual) tail {
	tl := tail{tier: t, n: n}
	if t.wide() {
		k := build.K()
		build.KMOVW(bits(n), k)
		tl.k = k
	} else {
		v := build.YMM()
		build.VMOVUPS(lanesMask(n), v)
		tl.mask = v
	}
	return tl
}

var maskTable *operand.Mem

// lanesMask addresses 8 words of which the first n are ones, the others zeros.
func lanesMask(n reg.GPVirtual) operand.Mem {
	if maskTable == nil {
		m := build.GLOBL("rowsMask", attr.RODATA|attr.NOPTR)
		for i := range 16 {
			build.DATA(4*i, operand.U32(map[bool]uint32{true: ^uint32(0)}[i < 8]))
		}
		maskTable = &m
	}
	at, end := build.GP64(), build.GP64()
	build.LEAQ(maskTable.Offset(32), at)
	build.MOVQ(n, end)
	build.SHLQ(operand.U8(2), end)
	build.SUBQ(end, at)
	return operand.Mem{Base: at}
}

// load reads n elements and widens them; the other lanes are 0. slot is 16 bytes
// of the frame.
func (tl tail) load(e element, m, slot operand.Mem) reg.VecVirtual {
	v := tl.vec()
	switch {
	case e == f32 && tl.wide():
		build.VMOVUPS_Z(m, tl.k, v)
	case e == f32:
		build.VMASKMOVPS(m, tl.mask, v)
	case tl.wide():
		h := build.YMM()
		build.VMOVDQU16_Z(m, tl.k, h)
		return tl.widen16(e, h)
	default: // AVX2 has no masked load of 16-bit elements
		h, i, w, next := build.XMM(), build.GP64(), build.GP32(), label("copy")
		build.VPXOR(h, h, h)
		build.VMOVDQU(h, slot)
		build.MOVQ(tl.n, i)
		build.Label(next)
		build.MOVWLZX(m.Idx(i, 2).Offset(-2), w)
		build.MOVW(w.As16(), slot.Idx(i, 2).Offset(-2))
		build.DECQ(i)
		build.JNZ(operand.LabelRef(next))
		build.VMOVDQU(slot, h)
		return tl.widen16(e, h)
	}
	return v
}

// store writes n lanes.
func (tl tail) store(v reg.VecVirtual, m operand.Mem) {
	if tl.wide() {
		build.VMOVUPS(v, tl.k, m)
	} else {
		build.VMASKMOVPS(v, tl.mask, m)
	}
}

// slot reserves the part of the frame that tail.load needs.
func (t tier) slot(e element) operand.Mem {
	if t.wide() || e == f32 {
		return operand.Mem{}
	}
	if frame == nil {
		m := build.AllocLocal(16)
		frame = &m
	}
	return *frame
}

// frame is the slot of the function that is being written, if it has one.
var frame *operand.Mem

var labels int

// label makes a name that is unique in the file.
func label(name string) string {
	labels++
	return fmt.Sprintf("%s%d", name, labels)
}

func ref(name string) operand.Op { return operand.LabelRef(name) }

// param is the place of a parameter.
func param(name string) operand.Mem {
	b, err := build.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return b.Addr
}

func load(name string) reg.GPVirtual {
	r := build.GP64()
	build.MOVQ(param(name), r)
	return r
}

// at addresses base + index + offset bytes.
func at(base, index reg.Register, offset int) operand.Mem {
	m := operand.Mem{Base: base, Disp: offset}
	if index != nil {
		m.Index, m.Scale = index, 1
	}
	return m
}
