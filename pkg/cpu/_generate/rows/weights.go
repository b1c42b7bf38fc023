package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// exp2Terms are the coefficients of a polynomial for 2^f, |f| <= 1/2, from
// the constant one on: relative error below 3.6e-9 before rounding, exact at 0.
var exp2Terms = [7]float32{
	1, 0.6931471824645996, 0.24022644758224487, 0.055503591895103455,
	0.009618841111660004, 0.0013391136890277267, 0.00015238006017170846,
}

func bitsOf(x float32) uint32 { return math.Float32bits(x) }

// exp2 holds the constants of weights: registers, or memory where these are few.
type exp2 struct {
	tier
	hi, lo, base reg.VecVirtual
	terms        [7]operand.Op
	minusInf     operand.Op
	least, most  operand.Op // AVX2 only
	bias         operand.Op // AVX2 only
}

var exp2Memory = map[uint32]operand.Mem{}

// inMemory is a vector of constants.
func inMemory(name string, bits uint32) operand.Mem {
	m, ok := exp2Memory[bits]
	if !ok {
		m = build.GLOBL("rows"+name, attr.RODATA|attr.NOPTR)
		for i := range 8 {
			build.DATA(4*i, operand.U32(bits))
		}
		exp2Memory[bits] = m
	}
	return m
}

func newExp2(t tier) exp2 {
	x := exp2{tier: t, hi: t.vec(), lo: t.vec(), base: t.vec()}
	build.VBROADCASTSS(param("hi"), x.hi)
	build.VBROADCASTSS(param("lo"), x.lo)
	build.VBROADCASTSS(param("base"), x.base)
	sign := t.constant(1 << 31)
	if t.wide() {
		build.VPXORD(sign, x.base, x.base)
	} else {
		build.VPXOR(sign, x.base, x.base)
	}
	if t.wide() {
		for i, c := range exp2Terms {
			x.terms[i] = t.constant(bitsOf(c))
		}
		x.minusInf = t.constant(0xff800000)
		return x
	}
	for i, c := range exp2Terms {
		x.terms[i] = inMemory("Term"+string(rune('0'+i)), bitsOf(c))
	}
	x.minusInf = inMemory("MinusInf", 0xff800000)
	x.least = inMemory("Least", bitsOf(-127))
	x.most = inMemory("Most", bitsOf(128))
	x.bias = inMemory("Bias", 127)
	return x
}

// weight computes 2^(s*(hi+lo) - base), and 0 where s is -Inf: also where that is
// not what the formula gives, because lo is 0 or negative.
func (x exp2) weight(s reg.VecVirtual, tl *tail) reg.VecVirtual {
	t := x.vec()
	build.VMOVAPS(x.base, t)
	build.VFMADD231PS(s, x.lo, t)
	build.VFMADD231PS(s, x.hi, t)
	if x.wide() {
		return x.scale512(s, t, tl)
	}
	return x.scale256(s, t, tl)
}

// scale512 splits t exactly into the nearest integer and a fraction, which is 0
// for infinities.
func (x exp2) scale512(s, t reg.VecVirtual, tl *tail) reg.VecVirtual {
	f, w, k := x.vec(), x.vec(), build.K()
	if tl != nil {
		build.VCMPPS(operand.U8(4), x.minusInf, s, tl.k, k)
	} else {
		build.VCMPPS(operand.U8(4), x.minusInf, s, k)
	}
	build.VREDUCEPS(operand.U8(0), t, f)
	build.VRNDSCALEPS(operand.U8(0), t, t)
	x.polynomial(f, w)
	build.VSCALEFPS_Z(t, w, k, w)
	return w
}

// scale256 does it by an exponent of -127, which is 0, to 128, which is infinity.
func (x exp2) scale256(s, t reg.VecVirtual, tl *tail) reg.VecVirtual {
	n, w := x.vec(), x.vec()
	build.VMOVAPS(x.least, n)
	build.VMAXPS(t, n, t) // the second operand of the comparison is kept if NaN
	build.VMOVAPS(x.most, n)
	build.VMINPS(t, n, t)
	build.VROUNDPS(operand.U8(0), t, n)
	build.VSUBPS(n, t, t)
	build.VCVTPS2DQ(n, n)
	build.VPADDD(x.bias, n, n)
	build.VPSLLD(operand.U8(23), n, n)
	x.polynomial(t, w)
	build.VMULPS(n, w, w)
	build.VCMPPS(operand.U8(4), x.minusInf, s, n)
	build.VANDPS(n, w, w)
	if tl != nil {
		build.VANDPS(tl.mask, w, w)
	}
	return w
}

func (x exp2) polynomial(f, w reg.VecVirtual) {
	last := len(x.terms) - 1
	build.VMOVAPS(x.terms[last], w)
	for i := last - 1; i >= 0; i-- {
		build.VFMADD213PS(x.terms[i], f, w)
	}
}

func weights(t tier) {
	text("weights", t, "func(s *float32, n int, base, hi, lo float32) float32",
		"s[i] becomes 2^(s[i]*hi + s[i]*lo - base) for i < n, and 0 where s[i] is -Inf;",
		"the sum of them is returned, in an order that depends on n alone.")
	x := newExp2(t)
	unroll := t.lanes / 4
	s, n := load("s"), load("n")
	sums := make([]reg.VecVirtual, unroll)
	for i := range sums {
		sums[i] = t.zero()
	}
	step := func(vectors int) {
		for u := range vectors {
			m := at(s, nil, u*t.lanes*4)
			w := x.weight(t.load(f32, m), nil)
			build.VMOVUPS(w, m)
			build.VADDPS(w, sums[u], sums[u])
		}
		build.ADDQ(operand.I32(vectors*t.lanes*4), s)
	}
	t.loop(n, unroll, func() { step(unroll) })
	t.loop(n, 1, func() { step(1) })
	done := label("done")
	build.TESTQ(n, n)
	build.JZ(ref(done))
	tl := t.tail(n)
	m := at(s, nil, 0)
	w := x.weight(tl.load(f32, m, operand.Mem{}), &tl)
	tl.store(w, m)
	build.VADDPS(w, sums[0], sums[0])
	build.Label(done)
	for n := unroll; n > 1; n /= 2 {
		for i := range n / 2 {
			build.VADDPS(sums[i+n/2], sums[i], sums[i])
		}
	}
	retFloat(t.across(sums[0], build.VADDPS))
}
