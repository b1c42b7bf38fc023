package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

// Comparisons, as VCMPPS counts them.
const (
	equal      = 0
	notLess    = 5
	notEqual   = 4
	roundFloor = 9
	roundCeil  = 10
)

// Polynomials for 2^r, highest coefficient first, each rounded to float32 before
// the next lower degree was fixed: on [0, 1/16), relative error 1.4e-9, and on
// [-1/16, 1/16], relative error 2.6e-8.
var (
	exp2Sixteenth = []float32{0.05666297301650047, 0.24018490314483643, 0.693147599697113, 1}
	exp2Eighth    = []float32{0.055488698184490204, 0.24025754630565643, 0.6931472420692444, 1}
)

var minusInf = math.Inf(-1)

// exponential are the registers of the softmax.
type exponential struct {
	t      emit.Tier
	wide   bool
	hi, lo int // c in hi when wide
	inf    int // -Inf, when wide
	poly   []int
	table  int // of 2^(i/16); AVX2 reads its own, of 2^(i/8), from memory
	top    int // 128, AVX2
	magic  int // its addition leaves the index into the table in the lowest bits
	bases  []int
	sums   []int
	work   [][4]int // per vector in flight
}

// newExponential shares the registers out: from the top the constants, the bases
// and the sums, from the bottom what is in flight. AVX2 has no room for the bases
// and some constants: they are read where they are used.
func newExponential(t emit.Tier, wide bool, vectors int) exponential {
	e := exponential{t: t, wide: wide}
	next := t.Registers
	take := func(n int) (regs []int) {
		for range n {
			next--
			regs = append(regs, next)
		}
		return regs
	}
	e.hi = take(1)[0]
	if wide {
		e.inf = take(1)[0]
	} else {
		e.lo = take(1)[0]
	}
	e.sums = take(vectors)
	inFlight, registers := 3, 4
	if t.Wide() {
		e.poly = take(3) // the last is 1
		e.table, e.magic = take(1)[0], take(1)[0]
		if !wide {
			e.bases = take(vectors)
		}
	} else {
		e.magic, e.top = take(1)[0], take(1)[0]
		if wide {
			inFlight = 1
			e.poly = take(min(3, next-registers))
		} else {
			inFlight, registers = vectors, 3
		}
	}
	for i := range inFlight {
		var w [4]int
		for k := range registers {
			w[k] = registers*i + k
		}
		e.work = append(e.work, w)
	}
	return e
}

// part is how many vectors of a row AVX2 takes at a time: as many as it can have
// in flight side by side, for one alone waits for its own results.
func part(t emit.Tier, wide bool, vectors int) int {
	if t.Wide() || wide {
		return vectors
	}
	if vectors == 6 {
		return 3
	}
	return 2
}

// coefficient is the k-th highest coefficient, in a register or in memory.
func (e exponential) coefficient(k int) Op {
	if k < len(e.poly) {
		return e.t.V(e.poly[k])
	}
	return constant(e.coefficients()[k])
}

func (e exponential) coefficients() []float32 {
	if e.t.Wide() {
		return exp2Sixteenth
	}
	return exp2Eighth
}

func (e exponential) loadConstants() {
	t := e.t
	if e.wide {
		VBROADCASTSD(address("c"), t.V(e.hi))
		VBROADCASTSD(constant64(minusInf), t.V(e.inf))
	} else {
		e.loadFactors()
	}
	for k, r := range e.poly {
		VBROADCASTSS(constant(e.coefficients()[k]), t.V(r))
	}
	if t.Wide() {
		VMOVUPS(powersOf16(), t.V(e.table))
		VBROADCASTSS(constant(magic16), t.V(e.magic))
	} else {
		VBROADCASTSS(constant(magic8), t.V(e.magic))
		VBROADCASTSS(constant(128), t.V(e.top))
	}
	for _, r := range e.sums {
		t.Zero(r)
	}
	for v, r := range e.bases { // negated, so that one FMA subtracts
		t.Zero(r)
		VSUBPS(Mem{Base: RDI, Disp: v * t.Bytes}, t.V(r), t.V(r))
	}
}

// loadFactors moves an ulp from hi to lo. Then both are positive, even if the sum
// is 0, and a score of -Inf makes t = -Inf without being looked for: neither
// 0 * -Inf nor Inf - Inf occurs.
func (e exponential) loadFactors() {
	t := e.t
	hi, lo, tmp, one := t.V(e.hi), t.V(e.lo), t.V(0), t.V(1)
	VBROADCASTSS(address("hi"), hi)
	VPBROADCASTD(one32(), one)
	VPADDD(one, one, tmp)
	VMAXPS(tmp, hi, hi)
	VMOVAPS(hi, tmp)
	VPSUBD(one, hi, hi)
	VSUBPS(hi, tmp, tmp)
	VBROADCASTSS(address("lo"), lo)
	VADDPS(tmp, lo, lo)
}

// argument computes t of vector v, lane by lane, from the scores at AX.
func (e exponential) argument(v int) {
	t, w := e.t, e.work[v%len(e.work)]
	s, x := t.V(w[0]), t.V(w[1])
	at := Mem{Base: RAX, Disp: v * t.Bytes}
	VMOVUPS(at, s)
	if t.Wide() {
		VMOVAPS(t.V(e.bases[v]), x)
		VFMADD231PS(t.V(e.lo), s, x)
	} else {
		VMOVAPS(s, x)
		VFMSUB213PS(Mem{Base: RDI, Disp: v * t.Bytes}, t.V(e.lo), x)
	}
	VFMADD231PS(t.V(e.hi), s, x)
}

// argumentWide is argument for float64 scores; it puts -Inf in place itself.
func (e exponential) argumentWide(v int) {
	t, w := e.t, e.work[v%len(e.work)]
	for half := range 2 {
		x := t.V(w[1+half])
		part := (2*v + half) * t.Bytes
		VMOVUPD(Mem{Base: RAX, Disp: part}, x)
		if t.Wide() {
			VCMPPD(U8(equal), t.V(e.inf), x, maskOf(v))
			VFMSUB213PD(Mem{Base: RDI, Disp: part}, t.V(e.hi), x)
			VMOVAPD(t.V(e.inf), maskOf(v), x)
		} else {
			VCMPPD(U8(equal), t.V(e.inf), x, t.V(w[3]))
			VFMSUB213PD(Mem{Base: RDI, Disp: part}, t.V(e.hi), x)
			VBLENDVPD(t.V(w[3]), t.V(e.inf), x, x)
		}
		t.Narrow(w[1+half])
	}
	t.Join(w[1], w[2])
}

func maskOf(v int) Physical { return []Physical{K1, K2, K3}[v%3] }

// These have their lowest bit at 1/16 and 1/8 and leave the bits of the index and
// of an integer below 2^8 in a sum's lowest bits; their own are zero there.
const (
	magic16 = 3 << 18
	magic8  = 3 << 19
)

// exp2 leaves 2^t of the vectors in [from, end) in their work registers 0.
func (e exponential) exp2(from, end int) {
	if !e.t.Wide() {
		e.exp2ByExponent(from, end)
		return
	}
	for v := from; v < end; v++ {
		e.exp2ByTable(v)
	}
}

// exp2ByTable takes t apart into an integer, sixteenths, which the table knows,
// and a rest in [0, 1/16), for which degree 3 is enough. A polynomial of degree 6
// for [0, 1) takes a sixth longer: all of it falls to the FMA units, and most of
// the table's work does not. Everything is rounded down, because
// VSCALEFPS takes floor(t) from t itself. NaN and infinities come out right.
func (e exponential) exp2ByTable(v int) {
	t, w := e.t, e.work[v%len(e.work)]
	y, x, r, power := t.V(w[0]), t.V(w[1]), t.V(w[2]), t.V(w[3])
	VADDPS_RD_SAE(t.V(e.magic), x, power)
	VREDUCEPS(U8(4<<4|roundFloor), x, r)
	VPERMPS(t.V(e.table), power, power)
	VMOVAPS(e.coefficient(0), y)
	VFMADD213PS(e.coefficient(1), r, y)
	VFMADD213PS(e.coefficient(2), r, y)
	VMULPS(power, r, r)
	VFMADD213PS(power, r, y)
	VSCALEFPS(x, y, y)
}

// exp2ByExponent rounds t to eighths: a table's entry and an integer added to its
// exponent make 2^ of that, and a polynomial does the rest in [-1/16, 1/16]. t is
// held at 128, where that makes +Inf, and at -127, where it makes 0; in between
// there and -126 it makes something smaller than 2^-126. Every step is taken for
// all vectors before the next.
func (e exponential) exp2ByExponent(from, end int) {
	t := e.t
	each := func(step func(y, x, power Physical)) {
		for v := from; v < end; v++ {
			w := e.work[v%len(e.work)]
			step(t.V(w[0]), t.V(w[1]), t.V(w[2]))
		}
	}
	each(func(y, x, power Physical) { VMOVUPS(constant(-127), y) })
	each(func(y, x, power Physical) { VMINPS(x, t.V(e.top), x) }) // in this order a NaN stays
	each(func(y, x, power Physical) { VMAXPS(x, y, x) })
	each(func(y, x, power Physical) { VADDPS(t.V(e.magic), x, power) })
	each(func(y, x, power Physical) { VSUBPS(t.V(e.magic), power, y) })
	each(func(y, x, power Physical) { VSUBPS(y, x, x) })
	each(func(y, x, power Physical) {
		VPERMPS(powersOf8(), power, y)
		VPSLLD(U8(20), power, power)
	})
	each(func(y, x, power Physical) { VPADDD(y, power, power) })
	each(func(y, x, power Physical) { VMOVUPS(e.coefficient(0), y) })
	each(func(y, x, power Physical) { VFMADD213PS(e.coefficient(1), x, y) })
	each(func(y, x, power Physical) { VFMADD213PS(e.coefficient(2), x, y) })
	each(func(y, x, power Physical) { VMULPS(x, y, y) }) // not power: the product would be subnormal before the sum is
	each(func(y, x, power Physical) { VFMADD213PS(power, power, y) })
}

func softmax(t emit.Tier, wide bool) {
	name, size := "softmax"+t.Suffix, 4
	signature := "func(s *float32, lanes, keys int, base *float32, hi, lo float32, l, alpha *float64)"
	lines := softmaxDoc
	if wide {
		name, size = "softmaxWide"+t.Suffix, 8
		signature = "func(p *float32, s *float64, lanes, keys int, base *float64, c float64, l, alpha *float64)"
		lines = softmaxWideDoc
	}
	TEXT(name, attrs, signature)
	Pragma("noescape")
	doc(name, lines)
	counts := allLanes
	if !wide {
		counts = productLanes(t, f32)
	}
	dispatch(counts, func(lanes int) {
		vectors := lanes * 4 / t.Bytes
		step := min(part(t, wide, vectors), vectors)
		for first := 0; first < vectors; first += step {
			softmaxPart(t, wide, lanes, first, step, size)
		}
	})
}

// softmaxPart goes down some vectors, from the first, of all rows.
func softmaxPart(t emit.Tier, wide bool, lanes, first, vectors, size int) {
	e := newExponential(t, wide, vectors)
	arg("base", RDI)
	arg("s", RAX)
	to := RAX
	if wide {
		to = RBX
		arg("p", to)
	}
	arg("keys", RSI)
	if first > 0 {
		ADDQ(U32(first*t.Bytes), RAX)
		ADDQ(U32(first*t.Bytes), RDI)
	}
	e.loadConstants()
	label := fmt.Sprintf("softmax%dfrom%d", lanes, first)
	Label(label)
	for from := 0; from < vectors; from += len(e.work) {
		end := min(vectors, from+len(e.work))
		for v := from; v < end; v++ {
			if wide {
				e.argumentWide(v)
			} else {
				e.argument(v)
			}
		}
		e.exp2(from, end)
		for v := from; v < end; v++ {
			y := t.V(e.work[v%len(e.work)][0])
			VMOVUPS(y, Mem{Base: to, Disp: v * t.Bytes})
			VADDPS(y, t.V(e.sums[v]), t.V(e.sums[v]))
		}
	}
	ADDQ(U32(max(lanes, 16)*size), RAX) // 8 lanes are the first of 16
	if wide {
		ADDQ(U32(lanes*4), RBX)
	}
	DECQ(RSI)
	JNZ(LabelRef(label))
	arg("l", RBX)
	arg("alpha", RCX)
	for v, sum := range e.sums {
		addSum(t, sum, first+v)
	}
}
