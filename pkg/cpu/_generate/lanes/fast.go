package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

// exp2Unit is a polynomial for 2^r on [0, 1), highest coefficient first, less the
// last, which is 1; relative error 8.6e-5, small against bfloat16's 2e-3.
var exp2Unit = []float32{0.07706704, 0.227645, 0.69511676}

// oneAt7 is 1 and a number whose lowest bit is 2^-7: in a sum with what is in
// [0, 1] it leaves 8 significant bits, rounded as to bfloat16.
const (
	magic7 = 3 << 15
	oneAt7 = magic7 + 1
)

// softmaxPairs takes t apart into an integer, which VSCALEFPS finds itself, and a
// rest in [0, 1). The polynomial's last FMA rounds 2^rest to 8 bits, so that the
// weight is a bfloat16 from there on. A dot product with ones sums what the
// product with V will see: without subnormal numbers.
func softmaxPairs(t emit.Tier) {
	name := "softmaxPairs" + t.Suffix
	TEXT(name, attrs, "func(p *uint32, s *float32, lanes, keys int, base *float32, hi, lo float32, l, alpha *float64)")
	Pragma("noescape")
	doc(name, softmaxPairsDoc)
	const (
		hi, c0, c1, c2, one, magic, upper, ones = 31, 30, 29, 28, 27, 26, 25, 24
		firstSum, firstBase                     = 21, 18
	)
	base := func(v int) Physical { return t.V(firstBase + v) }
	dispatch(allLanes, func(lanes int) {
		vectors := lanes * 4 / t.Bytes
		row := lanes * 4
		arg("p", RBX)
		arg("s", RAX)
		arg("base", RDI)
		arg("keys", RSI)
		// 0 * -Inf is NaN, but the least number times -Inf is -Inf.
		VBROADCASTSS(address("hi"), t.V(hi))
		VPBROADCASTD(one32(), t.V(0))
		VMAXPS(t.V(0), t.V(hi), t.V(hi))
		for k, r := range []int{c0, c1, c2} {
			VBROADCASTSS(constant(exp2Unit[k]), t.V(r))
		}
		VBROADCASTSS(constant(oneAt7), t.V(one))
		VBROADCASTSS(constant(magic7), t.V(magic))
		VPBROADCASTD(bits32(0xFFFF0000), t.V(upper))
		VPBROADCASTD(bits32(0x3F803F80), t.V(ones))
		for v := range vectors {
			VMOVUPS(Mem{Base: RDI, Disp: v * t.Bytes}, base(v))
			t.Zero(firstSum + v)
		}
		// Registers of row j of a pair, vector v.
		x := func(j, v int) Physical { return t.V(3 * (2*v + j)) }
		r := func(j, v int) Physical { return t.V(3*(2*v+j) + 1) }
		y := func(j, v int) Physical { return t.V(3*(2*v+j) + 2) }
		begin := func(rows, v int) {
			for j := range rows {
				VMOVUPS(Mem{Base: RAX, Disp: j*row + v*t.Bytes}, x(j, v))
				VFMSUB213PS(base(v), t.V(hi), x(j, v))
				VREDUCEPS(U8(roundFloor), x(j, v), r(j, v))
				VMOVAPS(t.V(c0), y(j, v))
			}
			for _, c := range []int{c1, c2, one} {
				for j := range rows {
					VFMADD213PS(t.V(c), r(j, v), y(j, v))
				}
			}
		}
		finish := func(rows, v int) {
			for j := range rows {
				VSUBPS(t.V(magic), y(j, v), y(j, v))
				VSCALEFPS(x(j, v), y(j, v), y(j, v))
			}
			VPSRLD(U8(16), y(0, v), y(0, v))
			if rows == 2 {
				VPTERNLOGD(U8(0xF8), t.V(upper), y(1, v), y(0, v)) // y(0) | y(1) & upper
			}
			t.DotBF16(6*v+2, ones, firstSum+v)
			VMOVUPS(y(0, v), Mem{Base: RBX, Disp: v * t.Bytes})
		}
		each := func(rows int, steps ...func(rows, v int)) {
			for v := range vectors {
				for _, step := range steps {
					step(rows, v)
				}
			}
		}
		// A pair is finished while the next is begun: its last steps go to other
		// units than the first of the next.
		l := fmt.Sprintf("weights%d", lanes)
		SUBQ(U8(2), RSI)
		JLT(LabelRef(l + "last"))
		each(2, begin)
		ADDQ(U32(2*row), RAX)
		SUBQ(U8(2), RSI)
		JLT(LabelRef(l + "finish"))
		Label(l)
		each(2, finish, begin)
		ADDQ(U32(2*row), RAX)
		ADDQ(U32(row), RBX)
		SUBQ(U8(2), RSI)
		JGE(LabelRef(l))
		Label(l + "finish")
		each(2, finish)
		ADDQ(U32(row), RBX)
		Label(l + "last")
		ADDQ(U8(2), RSI)
		JZ(LabelRef(l + "summed"))
		each(1, begin, finish)
		Label(l + "summed")
		arg("l", RBX)
		arg("alpha", RCX)
		for v := range vectors {
			addSum(t, firstSum+v, v)
		}
	})
}

// addSum adds vector v of float32 sums to l, at BX, times alpha, at CX.
func addSum(t emit.Tier, sum, v int) {
	addHalf(t, t.Half(sum), 2*v)
	t.UpperHalf(sum, 0)
	addHalf(t, t.Half(0), 2*v+1)
}

// addHalf adds half a vector of sums, the n-th.
func addHalf(t emit.Tier, sums Physical, n int) {
	at := n * t.Bytes
	VCVTPS2PD(sums, t.V(0))
	VMOVUPD(Mem{Base: RCX, Disp: at}, t.V(1))
	VFMADD231PD(Mem{Base: RBX, Disp: at}, t.V(1), t.V(0))
	VMOVUPD(t.V(0), Mem{Base: RBX, Disp: at})
}

// pairValues interleaves two rows, 16 words of each at a time.
func pairValues(t emit.Tier) {
	name := "pairValues" + t.Suffix
	TEXT(name, attrs, "func(to *uint32, v *uint16, stride, keys, dv int)")
	Pragma("noescape")
	doc(name, pairValuesDoc)
	arg("to", RDI)
	arg("v", RBX)
	arg("stride", stride)
	arg("keys", RSI)
	const low, high = 0, 1
	// words interleaves up to 16 words at offset DX of the rows.
	words := func(pair, masked bool) {
		first, next := Mem{Base: R12}, Mem{Base: R12, Index: stride, Scale: 1}
		if masked {
			VPMOVZXWD_Z(first, K1, t.V(low))
		} else {
			VPMOVZXWD(first, t.V(low))
		}
		if pair {
			if masked {
				VPMOVZXWD_Z(next, K1, t.V(high))
			} else {
				VPMOVZXWD(next, t.V(high))
			}
			VPSLLD(U8(16), t.V(high), t.V(high))
			VPORD(t.V(high), t.V(low), t.V(low))
		}
		if masked {
			VMOVDQU32(t.V(low), K1, Mem{Base: RDI})
		} else {
			VMOVDQU32(t.V(low), Mem{Base: RDI})
		}
	}
	// K1 has the features after the last 16.
	arg("dv", RCX)
	ANDQ(U8(15), RCX)
	MOVQ(U32(1), RAX)
	SHLQ(CL, RAX)
	DECQ(RAX)
	KMOVW(EAX, K1)
	row := func(l string, pair bool) {
		MOVQ(RBX, R12)
		arg("dv", RDX)
		SUBQ(U8(16), RDX)
		JLT(LabelRef(l + "rest"))
		Label(l + "words")
		words(pair, false)
		ADDQ(U8(32), R12)
		ADDQ(U8(64), RDI)
		SUBQ(U8(16), RDX)
		JGE(LabelRef(l + "words"))
		Label(l + "rest")
		TESTQ(RCX, RCX)
		JZ(LabelRef(l + "done"))
		words(pair, true)
		LEAQ(Mem{Base: RDI, Index: RCX, Scale: 4}, RDI)
		Label(l + "done")
	}
	SUBQ(U8(2), RSI)
	JLT(LabelRef("last"))
	Label("pairs")
	row("pair", true)
	LEAQ(Mem{Base: RBX, Index: stride, Scale: 2}, RBX)
	SUBQ(U8(2), RSI)
	JGE(LabelRef("pairs"))
	Label("last")
	ADDQ(U8(2), RSI)
	JZ(LabelRef("done"))
	row("single", false)
	Label("done")
	VZEROUPPER()
	RET()
}
