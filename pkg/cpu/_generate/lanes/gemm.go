package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

// number is the kind of number that a product accumulates.
type number struct {
	infix string // in the function names
	go_   string // element type of scores and queries in the stub
	key   string // element type of keys
	query string
	size  int // bytes of a score
}

var (
	f32  = number{"", "float32", "float32", "float32", 4}
	bf16 = number{"BF16", "float32", "uint16", "uint32", 4}
	f64  = number{"Wide", "float64", "float32", "float64", 8}
	// short is float32 weights times bfloat16 values, which fewValues widens on the way.
	short = number{"BF16", "float32", "uint16", "float32", 4}
	// half is float32 times float16, which the kernels for few rows widen on the way.
	half = number{"F16", "float32", "uint16", "float32", 4}
)

// block is the register block of a tile: every vector of a part of the lanes, for
// rows keys (or features) at a time, and for fewer at the end.
type block struct {
	lanes   int
	vectors int   // of a part
	rows    []int // descending
	size    int   // bytes of an element
	row     int   // bytes of a panel row
	chains  int   // of scores
}

// blockOf chooses the block: as many sums as there are registers, less those of
// one panel row and at least one broadcast. 8 lanes are the first of 16.
func blockOf(t emit.Tier, lanes, size int) block {
	b := block{lanes: lanes, size: size, row: max(lanes, 16) * size, chains: 1}
	switch total := lanes * size / t.Bytes; {
	case lanes == 48:
		b.vectors = 3
	case total == 1:
		b.vectors = 1
	default:
		b.vectors = 2
	}
	switch {
	case t.Registers == 16 && b.vectors == 1:
		b.rows = []int{8, 4, 2, 1}
	case t.Registers == 16 && b.vectors == 3:
		b.rows = []int{4, 2, 1}
	case t.Registers == 16:
		b.rows = []int{6, 4, 2, 1}
	case b.vectors == 3:
		b.rows = []int{8, 4, 2, 1}
	case b.vectors == 2:
		b.rows = []int{12, 8, 4, 2, 1}
	default:
		b.rows = []int{24, 16, 8, 4, 2, 1}
	}
	return b
}

// twoChains makes room for a second set of sums. Every block of a product has as
// many chains: a score's bits must not depend on its place. AVX2 has too few
// registers.
func (b *block) twoChains() {
	b.chains = 2
	switch b.vectors {
	case 3:
		b.rows = []int{4, 2, 1}
	case 2:
		b.rows = []int{6, 4, 2, 1}
	default:
		b.rows = []int{12, 8, 4, 2, 1}
	}
}

// dispatch emits body once for every number of lanes and jumps to the right one.
// A body ends where it falls through to the common return.
func dispatch(counts []int, body func(lanes int)) {
	n := Load(Param("lanes"), RAX)
	for _, lanes := range counts[1:] {
		CMPQ(n, U32(lanes))
		JEQ(LabelRef(fmt.Sprintf("lanes%d", lanes)))
	}
	for i, lanes := range counts {
		if i > 0 {
			JMP(LabelRef("done"))
			Label(fmt.Sprintf("lanes%d", lanes))
		}
		body(lanes)
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// productLanes are the numbers of lanes for which a tier has products.
func productLanes(t emit.Tier, n number) []int {
	if t == emit.AVX2 && n != f64 {
		return []int{48, 32, 16, 8}
	}
	return allLanes
}

var allLanes = []int{48, 32, 16}

// streams says whether so few lanes share the keys that these come from memory.
// It is read best in one sequence, some way ahead, and as evenly as the arithmetic
// goes: hardware does not foresee a block of rows that are walked side by side.
func (b block) streams() bool { return b.lanes <= 16 }

// fetch fetches cache lines and moves the pointer behind them.
func fetch(p GPPhysical, lines int) {
	for i := range lines {
		PREFETCHT1(Mem{Base: p, Disp: 64 * i})
	}
	ADDQ(U32(64*lines), p)
}

// streamAhead is how far ahead keys are fetched, in bytes.
const streamAhead = 16 << 10

// sums numbers the registers of a block: the sums, the panel's vectors, and the
// rest for broadcasts in turn. With two chains every other step adds to the
// second set of sums: half as long a chain has half the rounding error.
type sums struct {
	tier                  emit.Tier
	rows, vectors, chains int
}

func (s sums) count() int { return s.chains * s.rows * s.vectors }

func (s sums) sum(chain, r, v int) int { return (chain*s.rows+r)*s.vectors + v }
func (s sums) panel(v int) int         { return s.count() + v }
func (s sums) broadcast(r int) int {
	free := s.tier.Registers - s.count() - s.vectors
	return s.panel(s.vectors) + r%min(free, 8)
}

func (s sums) clear() {
	for i := range s.count() {
		s.tier.Zero(i)
	}
}

// join adds the second chain to the first.
func (s sums) join() {
	half := s.rows * s.vectors
	for i := range s.count() - half {
		VADDPS(s.tier.V(half+i), s.tier.V(i), s.tier.V(i))
	}
}

// step emits one step of a chain of sums: the panel row at panel times a
// broadcast per row.
func (s sums) step(n number, chain int, panel Mem, element func(r int) Mem) {
	t := s.tier
	vector := func(v int) Mem { return panel.Offset(v * t.Bytes) }
	for v := range s.vectors {
		if n == f64 {
			VMOVUPD(vector(v), t.V(s.panel(v)))
		} else {
			VMOVUPS(vector(v), t.V(s.panel(v)))
		}
	}
	for r := range s.rows {
		b := s.broadcast(r)
		switch {
		case n == f64 && t.Wide():
			VCVTPS2PD_BCST(element(r), t.V(b))
		case n == f64:
			VBROADCASTSS(element(r), t.Half(b))
			VCVTPS2PD(t.Half(b), t.V(b))
		default:
			VBROADCASTSS(element(r), t.V(b))
		}
		for v := range s.vectors {
			switch n {
			case f64:
				VFMADD231PD(t.V(s.panel(v)), t.V(b), t.V(s.sum(chain, r, v)))
			case bf16:
				t.DotBF16(s.panel(v), b, s.sum(chain, r, v))
			default:
				VFMADD231PS(t.V(s.panel(v)), t.V(b), t.V(s.sum(chain, r, v)))
			}
		}
	}
}

// arg loads a parameter into a register.
func arg(name string, to GPPhysical) { Load(Param(name), to) }

// address is where a parameter lies.
func address(name string) Mem {
	b, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return b.Addr
}

// multiples leaves 3, 5 and 7 times the stride beside it, so that eight rows can
// be addressed from one pointer.
var stride, stride3, stride5, stride7 = R8, R9, R10, R11

func multiples() {
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 4}, stride5)
	LEAQ(Mem{Base: stride3, Index: stride, Scale: 4}, stride7)
}

// rowAt addresses row r of eight from the first.
func rowAt(first Register, r int) Mem {
	switch r {
	case 0:
		return Mem{Base: first}
	case 1, 2, 4:
		return Mem{Base: first, Index: stride, Scale: uint8(r)}
	case 3:
		return Mem{Base: first, Index: stride3, Scale: 1}
	case 6:
		return Mem{Base: first, Index: stride3, Scale: 2}
	case 5:
		return Mem{Base: first, Index: stride5, Scale: 1}
	}
	return Mem{Base: first, Index: stride7, Scale: 1}
}

// advance moves a pointer by rows strides.
func advance(p GPPhysical, rows int) {
	for _, n := range []int{8, 4, 2, 1} {
		for ; rows >= n; rows -= n {
			LEAQ(Mem{Base: p, Index: stride, Scale: uint8(n)}, p)
		}
	}
}

func scores(t emit.Tier, n number) {
	TEXT("scores"+n.infix+t.Suffix, attrs, fmt.Sprintf(
		"func(s, top *%s, q *%s, d, lanes int, k *%s, stride, keys int)", n.go_, n.query, n.key))
	Pragma("noescape")
	doc("scores"+n.infix+t.Suffix, scoresDoc[n])
	left := AllocLocal(8) // keys
	dispatch(productLanes(t, n), func(lanes int) {
		b := blockOf(t, lanes, n.size)
		if t.Registers == 32 && n != f64 {
			b.twoChains()
		}
		l := fmt.Sprintf("scores%d", lanes)
		arg("stride", stride)
		multiples()
		XORQ(R14, R14) // offset of the part in a panel row
		Label(l + "part")
		arg("s", RAX)
		ADDQ(R14, RAX)
		arg("k", RBX)
		arg("keys", RDX)
		MOVQ(RDX, left)
		for _, rows := range b.rows {
			scoresBlock(t, n, b, rows, left, fmt.Sprintf("%skeys%d", l, rows))
		}
		if b.vectors*t.Bytes < lanes*n.size {
			ADDQ(U32(b.vectors*t.Bytes), R14)
			CMPQ(R14, U32(b.row))
			JLT(LabelRef(l + "part"))
		}
	})
}

// scoresBlock emits the loop over blocks of rows keys.
func scoresBlock(t emit.Tier, n number, b block, rows int, left Mem, label string) {
	s := sums{t, rows, b.vectors, b.chains}
	at := []GPPhysical{R12, R13, R15}[:(rows+7)/8]
	Label(label)
	CMPQ(left, U8(rows))
	JLT(LabelRef(label + "done"))
	s.clear()
	MOVQ(RBX, at[0])
	for i := range at[1:] {
		LEAQ(Mem{Base: at[i], Index: stride, Scale: 8}, at[i+1])
	}
	arg("q", RDI)
	ADDQ(R14, RDI)
	arg("d", RDX)
	if n == bf16 {
		SHRQ(U8(1), RDX)
	}
	step := func(u int) {
		s.step(n, u%s.chains, Mem{Base: RDI, Disp: u * b.row}, func(r int) Mem { return rowAt(at[r/8], r%8).Offset(4 * u) })
	}
	forward := func(steps int) {
		ADDQ(U32(steps*b.row), RDI)
		for _, p := range at {
			ADDQ(U8(4*steps), p)
		}
	}
	if rows == b.rows[0] {
		// A cache line of every row, 16 steps, while as many others are fetched.
		MOVQ(RBX, RCX)
		if b.streams() {
			ADDQ(U32(streamAhead), RCX)
		} else {
			advance(RCX, rows)
		}
		SUBQ(U8(16), RDX)
		JLT(LabelRef(label + "rest"))
		Label(label + "lines")
		if b.streams() {
			for u := range 16 {
				if line := u * rows / 16; u == 0 || line > (u-1)*rows/16 {
					PREFETCHT1(Mem{Base: RCX, Disp: 64 * line})
				}
				step(u)
			}
			forward(16)
			ADDQ(U32(64*rows), RCX)
		} else {
			MOVQ(RCX, RSI)
			for r := range rows {
				if r == 8 {
					LEAQ(Mem{Base: RSI, Index: stride, Scale: 8}, RSI)
				}
				PREFETCHT0(rowAt(RSI, r%8))
			}
			ADDQ(U8(64), RCX)
			MOVQ(I32(16/unroll), RSI)
			Label(label + "line")
			for u := range unroll {
				step(u)
			}
			forward(unroll)
			DECQ(RSI)
			JNZ(LabelRef(label + "line"))
		}
		SUBQ(U8(16), RDX)
		JGE(LabelRef(label + "lines"))
		Label(label + "rest")
		ADDQ(U8(16), RDX)
		JZ(LabelRef(label + "summed"))
	}
	if s.chains == 2 {
		SUBQ(U8(2), RDX)
		JLT(LabelRef(label + "last"))
		Label(label + "pairs")
		step(0)
		step(1)
		forward(2)
		SUBQ(U8(2), RDX)
		JGE(LabelRef(label + "pairs"))
		Label(label + "last")
		ADDQ(U8(2), RDX)
		JZ(LabelRef(label + "summed"))
		step(0)
	} else {
		Label(label + "features")
		step(0)
		forward(1)
		DECQ(RDX)
		JNZ(LabelRef(label + "features"))
	}
	Label(label + "summed")
	s.join()
	arg("top", RDX)
	ADDQ(R14, RDX)
	for v := range b.vectors {
		top := t.V(s.panel(v))
		at := Mem{Base: RDX, Disp: v * t.Bytes}
		move(n, at, top)
		for r := range rows {
			sum := t.V(s.sum(0, r, v))
			move(n, sum, Mem{Base: RAX, Disp: r*b.row + v*t.Bytes})
			maximum(n, sum, top)
		}
		move(n, top, at)
	}
	ADDQ(U32(rows*b.row), RAX)
	advance(RBX, rows)
	SUBQ(U8(rows), left)
	JMP(LabelRef(label))
	Label(label + "done")
}

// unroll is how many steps of the longest blocks stand in a row.
const unroll = 4

// maximum raises top to x. The order of the operands makes a NaN in x lose.
func maximum(n number, x, top Op) {
	if n == f64 {
		VMAXPD(top, x, top)
	} else {
		VMAXPS(top, x, top)
	}
}

func move(n number, from, to Op) {
	if n == f64 {
		VMOVUPD(from, to)
	} else {
		VMOVUPS(from, to)
	}
}

// values multiplies float32 weights by values, or pairs of bfloat16 by pairs.
func values(t emit.Tier, n number) {
	name, lines := "values"+n.infix+t.Suffix, valuesDoc
	signature := "func(acc, alpha *float64, lanes int, p *float32, keys int, v *" + n.key + ", stride, dv int)"
	if n == bf16 {
		name, lines = "valuesPairs"+t.Suffix, valuesPairsDoc
		signature = "func(acc, alpha *float64, lanes int, p *uint32, pairs int, v *uint32, dv int)"
	}
	TEXT(name, attrs, signature)
	Pragma("noescape")
	doc(name, lines)
	dispatch(productLanes(t, n), func(lanes int) {
		b := blockOf(t, lanes, 4)
		if b.vectors == 1 && t.Registers == 32 {
			b.rows = b.rows[1:] // 16, of which the usual dv are multiples, are enough
		}
		l := fmt.Sprintf("values%d", lanes)
		if n == bf16 {
			arg("dv", stride)
			SHLQ(U8(2), stride)
		} else {
			arg("stride", stride)
		}
		multiples()
		XORQ(R14, R14) // offset of the part in a row of p
		Label(l + "part")
		arg("acc", RAX)
		LEAQ(Mem{Base: RAX, Index: R14, Scale: 2}, RAX)
		arg("alpha", R13)
		LEAQ(Mem{Base: R13, Index: R14, Scale: 2}, R13)
		arg("v", RBX)
		arg("p", RCX)
		ADDQ(R14, RCX)
		arg("dv", RSI)
		if n != bf16 && b.streams() { // the next tile of keys
			arg("keys", R15)
			IMULQ(stride, R15)
			ADDQ(RBX, R15)
		}
		for _, rows := range b.rows {
			valuesBlock(t, n, b, rows, fmt.Sprintf("%sfeatures%d", l, rows))
		}
		if b.vectors*t.Bytes < lanes*4 {
			ADDQ(U32(b.vectors*t.Bytes), R14)
			CMPQ(R14, U32(b.row))
			JLT(LabelRef(l + "part"))
		}
	})
}

// ahead is how many rows of v are fetched before they are needed. AVX2 does
// without: it has few cycles a row, and loads to do in all of them.
const ahead = 16

// valuesBlock emits the loop over blocks of rows features.
func valuesBlock(t emit.Tier, n number, b block, rows int, label string) {
	s := sums{t, rows, b.vectors, 1}
	Label(label)
	CMPQ(RSI, U32(rows))
	JLT(LabelRef(label + "done"))
	s.clear()
	MOVQ(RBX, R12)
	MOVQ(RCX, RDI)
	if n == bf16 {
		arg("pairs", RDX)
	} else {
		arg("keys", RDX)
	}
	step := func(u int) {
		s.step(n, 0, Mem{Base: RDI, Disp: u * b.row}, func(r int) Mem { return rowAt(R12, u).Offset(4 * r) })
	}
	if rows == b.rows[0] {
		MOVQ(RAX, R11) // acc is needed at the end of the block
		near := t.Wide() && !b.streams() || n == bf16 && t.Wide()
		if near {
			MOVQ(R12, R15)
			advance(R15, ahead)
		}
		SUBQ(U8(unroll), RDX)
		JLT(LabelRef(label + "rest"))
		Label(label + "unrolled")
		PREFETCHT0(Mem{Base: R11})
		PREFETCHT0(Mem{Base: R11, Disp: 64})
		ADDQ(U8(128), R11)
		if n != bf16 && b.streams() {
			fetch(R15, (unroll*rows*4+63)/64)
		}
		for u := range unroll {
			if near {
				PREFETCHT0(rowAt(R15, u))
			}
			step(u)
		}
		ADDQ(U32(unroll*b.row), RDI)
		advance(R12, unroll)
		if near {
			advance(R15, unroll)
		}
		SUBQ(U8(unroll), RDX)
		JGE(LabelRef(label + "unrolled"))
		Label(label + "rest")
		ADDQ(U8(unroll), RDX)
		JZ(LabelRef(label + "summed"))
	}
	Label(label + "keys")
	step(0)
	ADDQ(U32(b.row), RDI)
	ADDQ(stride, R12)
	DECQ(RDX)
	JNZ(LabelRef(label + "keys"))
	Label(label + "summed")
	s.store(b)
	ADDQ(U32(2*rows*b.row), RAX)
	ADDQ(U32(4*rows), RBX)
	SUBQ(U8(rows), RSI)
	JMP(LabelRef(label))
	Label(label + "done")
}

// store adds the sums to acc at RAX, which is rescaled by alpha at R13.
func (s sums) store(b block) {
	t := s.tier
	// The registers of the panel and the broadcasts are free from here.
	alpha, high := s.panel(0), s.panel(0)+1
	for v := range s.vectors {
		for half := range 2 {
			part := (2*v + half) * t.Bytes
			VMOVUPD(Mem{Base: R13, Disp: part}, t.V(alpha))
			for r := range s.rows {
				at := Mem{Base: RAX, Disp: 2*r*b.row + part}
				to := high
				if t.Registers == 32 {
					to += (r + half) % 3
				}
				if half == 0 {
					VCVTPS2PD(t.Half(s.sum(0, r, v)), t.V(to))
				} else {
					t.UpperHalf(s.sum(0, r, v), to)
					VCVTPS2PD(t.Half(to), t.V(to))
				}
				VFMADD231PD(at, t.V(alpha), t.V(to))
				VMOVUPD(t.V(to), at)
			}
		}
	}
}
