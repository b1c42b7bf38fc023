package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	infBits = 0x7f800000
	absBits = 0x7fffffff
)

func norm(t tier, e element) {
	text("norm"+e.name, t, fmt.Sprintf("func(p *%s, stride, rows, d int) float32", e.goType),
		"the greatest sum of squares of a row's d elements: +Inf if it overflows or if any",
		"element is NaN or infinite. stride is in bytes.")
	w := newWalker(t, e, "p", "rows", 1)
	left := load("rows")
	inf, run := t.constant(infBits), t.zero()
	block, fold := label("block"), label("fold")
	build.Label(block)
	sums := make([]reg.VecVirtual, t.lanes)
	for i := range sums {
		sums[i] = t.zero()
	}
	for g := range t.lanes {
		if g > 0 {
			build.CMPQ(left, operand.U8(g))
			build.JLE(ref(fold))
		}
		w.group(func(x step) {
			v := x.row(0)
			build.VFMADD231PS(v, v, sums[g])
		})
	}
	build.Label(fold)
	sum := t.fold(sums)
	build.VMINPS(inf, sum, sum) // NaN becomes +Inf
	build.VMAXPS(sum, run, run)
	build.SUBQ(operand.U8(t.lanes), left)
	build.JG(ref(block))
	retFloat(t.across(run, build.VMAXPS))
}

// across combines the lanes of v in a tree into the first one.
func (t tier) across(v reg.VecVirtual, op func(...operand.Op)) reg.VecVirtual {
	if t.wide() {
		y := build.YMM()
		build.VEXTRACTF64X4(operand.U8(1), v, y)
		op(y, v.AsY(), v.AsY())
	}
	x := build.XMM()
	if t.wide() { // any register
		build.VEXTRACTF32X4(operand.U8(1), v.AsY(), x)
	} else {
		build.VEXTRACTF128(operand.U8(1), v.AsY(), x)
	}
	op(x, v.AsX(), x)
	for _, order := range []uint8{0x4e, 0xb1} {
		y := build.XMM()
		build.VPSHUFD(operand.U8(order), x, y)
		op(y, x, x)
	}
	return x.(reg.VecVirtual)
}

func peak(t tier, e element) {
	text("peak"+e.name, t, fmt.Sprintf("func(p *%s, stride, rows, d int) float32", e.goType),
		"the greatest |x| of rows rows of d elements: +Inf if any is NaN or infinite. stride",
		"is in bytes.")
	w := newWalker(t, e, "p", "rows", 1)
	left := load("rows")
	abs := t.constant(absBits)
	run := t.zero()
	block := label("block")
	build.Label(block)
	w.group(func(x step) {
		v := x.row(0)
		if t.wide() {
			build.VPANDD(abs, v, v)
		} else {
			build.VPAND(abs, v, v)
		}
		// As integers a NaN is above infinity, and infinity above the others.
		build.VPMAXUD(v, run, run)
	})
	build.SUBQ(operand.U8(1), left)
	build.JG(ref(block))
	retFloat(infForNaN(t.across(run, build.VPMAXUD)))
}

// infForNaN is the first lane of v, none of whose bits is a sign but of a NaN, which
// becomes +Inf.
func infForNaN(v reg.VecVirtual) reg.VecVirtual {
	top, inf, result := build.GP32(), build.GP32(), build.XMM()
	build.VMOVD(v.AsX(), top)
	build.MOVL(operand.U32(infBits), inf)
	build.CMPL(top, inf)
	build.CMOVLHI(inf, top)
	build.VMOVD(top, result)
	return result
}

func widen(t tier, e element) {
	text("widen"+e.name, t, "func(dst *float32, src *uint16, n int)",
		"dst[i] = src[i] for i < n, exactly.")
	dst, src, n := load("dst"), load("src"), load("n")
	const unroll = 4
	slot := t.slot(e)
	step := func(vectors int) {
		for u := range vectors {
			build.VMOVUPS(t.load(e, at(src, nil, u*t.lanes*2)), at(dst, nil, u*t.lanes*4))
		}
		build.ADDQ(operand.I32(vectors*t.lanes*2), src)
		build.ADDQ(operand.I32(vectors*t.lanes*4), dst)
	}
	t.loop(n, unroll, func() { step(unroll) })
	t.loop(n, 1, func() { step(1) })
	done := label("done")
	build.TESTQ(n, n)
	build.JZ(ref(done))
	tl := t.tail(n)
	tl.store(tl.load(e, at(src, nil, 0), slot), at(dst, nil, 0))
	build.Label(done)
	ret()
}

// accumulate takes half a vector of float32s at a time.
func accumulate(t tier) {
	text("accumulate", t, "func(acc *float64, alpha float64, o *float32, n int)",
		"acc[i] = acc[i]*alpha + o[i] for i < n.")
	acc, o, n := load("acc"), load("o"), load("n")
	alpha, sum := t.vec(), t.vec()
	build.VBROADCASTSD(param("alpha"), alpha)
	t.loop(n, 1, func() {
		for half := range 2 {
			build.VCVTPS2PD(at(o, nil, half*t.lanes*2), sum)
			build.VFMADD231PD(at(acc, nil, half*t.lanes*4), alpha, sum)
			build.VMOVUPD(sum, at(acc, nil, half*t.lanes*4))
		}
		build.ADDQ(operand.I32(t.lanes*4), o)
		build.ADDQ(operand.I32(t.lanes*8), acc)
	})
	done, again := label("done"), label("one")
	build.TESTQ(n, n)
	build.JZ(ref(done))
	x := sum.AsX()
	build.Label(again)
	build.VCVTSS2SD(at(o, nil, 0), x, x)
	build.VFMADD231SD(at(acc, nil, 0), alpha.AsX(), x)
	build.VMOVSD(x, at(acc, nil, 0))
	build.ADDQ(operand.I32(4), o)
	build.ADDQ(operand.I32(8), acc)
	build.DECQ(n)
	build.JNZ(ref(again))
	build.Label(done)
	ret()
}

func readPeak(t tier) {
	text("readPeak", t, "func(p *byte, n int)",
		"reads n bytes, rounded down to 64, and does nothing with their sum.")
	p, n := load("p"), load("n")
	vector := t.lanes * 4
	const unroll = 8
	var sums [unroll]reg.VecVirtual
	for i := range sums {
		sums[i] = t.zero()
	}
	for _, vectors := range []int{unroll, 64 / vector} {
		again, done := label("loop"), label("done")
		build.SUBQ(operand.I32(vectors*vector), n)
		build.JLT(ref(done))
		build.Label(again)
		for u := range vectors {
			v := t.load(f32, at(p, nil, u*vector))
			build.VPADDD(v, sums[u], sums[u])
		}
		build.ADDQ(operand.I32(vectors*vector), p)
		build.SUBQ(operand.I32(vectors*vector), n)
		build.JGE(ref(again))
		build.Label(done)
		build.ADDQ(operand.I32(vectors*vector), n)
	}
	ret()
}
