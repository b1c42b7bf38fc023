package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

// mask goes down the lanes of one vector after the other. Counters are as wide
// as scores, so that a comparison of counters is a mask for scores.
func mask(t emit.Tier, n number) {
	TEXT("mask"+n.infix+t.Suffix, attrs, fmt.Sprintf("func(s, top *%s, lanes, keys int, visible *int32)", n.go_))
	Pragma("noescape")
	doc("mask"+n.infix+t.Suffix, maskDoc)
	wide := n == f64
	arg("s", RAX)
	arg("top", RBX)
	arg("lanes", RCX)
	arg("visible", RDI)
	MOVQ(RCX, RDX) // bytes of a row
	SHLQ(U8(log2(n.size)), RDX)
	const score, top, visible, j, one, inf, hide = 0, 1, 2, 3, 4, 5, 6
	if wide {
		VBROADCASTSD(constant64(minusInf), t.V(inf))
		VPBROADCASTQ(one64(), t.V(one))
	} else {
		VBROADCASTSS(constant(float32(minusInf)), t.V(inf))
		VPBROADCASTD(one32(), t.V(one))
	}
	Label("vectors")
	MOVQ(RAX, R8)
	arg("keys", RSI)
	move(n, Mem{Base: RBX}, t.V(top))
	if wide {
		VPMOVSXDQ(Mem{Base: RDI}, t.V(visible))
	} else {
		VMOVUPS(Mem{Base: RDI}, t.V(visible))
	}
	t.Zero(j)
	Label("keys")
	move(n, Mem{Base: R8}, t.V(score))
	switch {
	case t.Wide() && wide: // hide where j >= visible
		VPCMPQ(U8(notLess), t.V(visible), t.V(j), K1)
		VMOVAPD(t.V(inf), K1, t.V(score))
	case t.Wide():
		VPCMPD(U8(notLess), t.V(visible), t.V(j), K1)
		VMOVAPS(t.V(inf), K1, t.V(score))
	case wide: // keep where visible > j
		VPCMPGTQ(t.V(j), t.V(visible), t.V(hide))
		VBLENDVPD(t.V(hide), t.V(score), t.V(inf), t.V(score))
	default:
		VPCMPGTD(t.V(j), t.V(visible), t.V(hide))
		VBLENDVPS(t.V(hide), t.V(score), t.V(inf), t.V(score))
	}
	move(n, t.V(score), Mem{Base: R8})
	maximum(n, t.V(score), t.V(top))
	if wide {
		VPADDQ(t.V(one), t.V(j), t.V(j))
	} else {
		VPADDD(t.V(one), t.V(j), t.V(j))
	}
	ADDQ(RDX, R8)
	DECQ(RSI)
	JNZ(LabelRef("keys"))
	move(n, t.V(top), Mem{Base: RBX})
	ADDQ(U32(t.Bytes), RAX)
	ADDQ(U32(t.Bytes), RBX)
	ADDQ(U32(t.Bytes/n.size*4), RDI)
	SUBQ(U32(t.Bytes/n.size), RCX)
	JNZ(LabelRef("vectors"))
	VZEROUPPER()
	RET()
}

func log2(n int) (l uint8) {
	for ; n > 1; n /= 2 {
		l++
	}
	return l
}

// rebase works on vectors of float64.
func rebase(t emit.Tier, n number) {
	TEXT("rebase"+n.infix+t.Suffix, attrs, fmt.Sprintf(
		"func(m, alpha *float64, base *%[1]s, top *%[1]s, lanes int, c float64)", n.go_))
	Pragma("noescape")
	doc("rebase"+n.infix+t.Suffix, rebaseDoc)
	arg("m", RAX)
	arg("alpha", RBX)
	arg("base", RCX)
	arg("top", RDX)
	arg("lanes", RSI)
	const c, inf, one, low, magic = 8, 9, 10, 11, 12
	VBROADCASTSD(address("c"), t.V(c))
	VBROADCASTSD(constant64(minusInf), t.V(inf))
	VBROADCASTSD(constant64(1), t.V(one))
	if !t.Wide() {
		VBROADCASTSD(constant64(-1023), t.V(low))
		VBROADCASTSD(constant64(1<<52+1023), t.V(magic))
	}
	const old, now, d, to, same = 0, 1, 2, 3, 4
	Label("vectors")
	VMOVUPD(Mem{Base: RAX}, t.V(old))
	if n == f64 {
		VMOVUPD(Mem{Base: RDX}, t.V(now))
	} else {
		VCVTPS2PD(Mem{Base: RDX}, t.V(now))
	}
	VMULPD(t.V(c), t.V(now), t.V(now))
	if t.Wide() {
		VRNDSCALEPD(U8(roundCeil), t.V(now), t.V(now))
	} else {
		VROUNDPD(U8(roundCeil), t.V(now), t.V(now))
	}
	VMAXPD(t.V(old), t.V(now), t.V(now)) // of a NaN product and the old maximum: the old
	VSUBPD(t.V(now), t.V(old), t.V(d))
	if t.Wide() {
		VCMPPD(U8(equal), t.V(now), t.V(old), K1) // also where both are infinite
		VSCALEFPD(t.V(d), t.V(one), t.V(d))
		VMOVAPD(t.V(one), K1, t.V(d))
		VCMPPD(U8(notEqual), t.V(inf), t.V(now), K2)
		VMOVAPD_Z(t.V(now), K2, t.V(to))
	} else {
		// 2^d by its exponent: d is an integer <= 0, which the addition of 2^52
		// leaves in the lowest bits. The lower bound makes the exponent of 0.
		VCMPPD(U8(equal), t.V(now), t.V(old), t.V(same))
		VMAXPD(t.V(low), t.V(d), t.V(d))
		VADDPD(t.V(magic), t.V(d), t.V(d))
		VPSLLQ(U8(52), t.V(d), t.V(d))
		VBLENDVPD(t.V(same), t.V(one), t.V(d), t.V(d))
		VCMPPD(U8(notEqual), t.V(inf), t.V(now), t.V(to))
		VANDPD(t.V(now), t.V(to), t.V(to))
	}
	VMOVUPD(t.V(d), Mem{Base: RBX})
	VMOVUPD(t.V(now), Mem{Base: RAX})
	bytes := t.Bytes
	if n == f64 {
		VMOVUPD(t.V(to), Mem{Base: RCX})
	} else {
		t.Narrow(to)
		VMOVUPS(t.Half(to), Mem{Base: RCX})
		bytes /= 2
	}
	ADDQ(U32(t.Bytes), RAX)
	ADDQ(U32(t.Bytes), RBX)
	ADDQ(U32(bytes), RCX)
	ADDQ(U32(bytes), RDX)
	SUBQ(U32(t.Bytes/8), RSI)
	JNZ(LabelRef("vectors"))
	VZEROUPPER()
	RET()
}

// maker writes what tells processors of one maker from another's.
func maker() {
	TEXT("cpuMaker", attrs, "func() uint32")
	Doc("cpuMaker returns the first four letters of the processor's maker: of CPUID's leaf 0, EBX.")
	XORL(EAX, EAX)
	XORL(ECX, ECX)
	CPUID()
	Store(EBX, ReturnIndex(0))
	RET()
}

// peakSums is how many independent FMAs an iteration of fmaPeak has.
const peakSums = 12

func fmaPeak(t emit.Tier) {
	TEXT(fmt.Sprintf("fmaPeak%d", 8*t.Bytes), attrs, "func(n int)")
	Doc(fmt.Sprintf("fmaPeak%d runs n >= 1 iterations of %d independent FMAs on registers.", 8*t.Bytes, peakSums))
	arg("n", RAX)
	for i := range peakSums + 2 {
		t.Zero(i)
	}
	Label("again")
	for i := range peakSums {
		VFMADD231PS(t.V(peakSums), t.V(peakSums+1), t.V(i))
	}
	DECQ(RAX)
	JNZ(LabelRef("again"))
	VZEROUPPER()
	RET()
}
