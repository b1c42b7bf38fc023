package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

// Few rows fill a vector of 16 lanes with two words of their features, floats or pairs of
// bfloat16, side by side: a broadcast of as many words of a key meets them all. Two vectors
// of 8 rows share it, for a load takes as long as a product.
type few struct{ vectors int }

// rowWords is the words of a row in a vector, and the keys to a vector of weights.
const rowWords = 2

// fewRows are the rows that there are kernels for.
var fewRows = []int{16, 8}

// groupRows are the rows of a vector, and those of which sums of V are in registers.
const groupRows = 8

func fewOf(rows int) few { return few{vectors: rows / groupRows} }

// place is where the weight of a row lies, in bytes, and of one of the keys that share
// vectors with it: where the sums over neighbouring lanes leave them.
func place(key, row int) int {
	v, row := row/groupRows, row%groupRows
	return 64*v + 4*(row/2*4+2*key+row%2)
}

// wordBytes is the size of a word of a key.
func wordBytes(n number) int {
	if n == half {
		return 2
	}
	return 4
}

// fewScores walks blocks of keys.
func fewScores(n number) {
	t := emit.AVX512
	name := "fewScores" + n.infix + t.Suffix
	TEXT(name, attrs, fmt.Sprintf("func(s, top *float32, q *%s, d, lanes int, k *%s, stride, keys, ahead int)", n.query, n.key))
	Pragma("noescape")
	doc(name, fewScoresDoc)
	left, last := AllocLocal(8), AllocLocal(8)
	dispatch(fewRows, func(rows int) {
		f := fewOf(rows)
		arg("stride", stride)
		multiples()
		arg("s", RAX)
		arg("k", RBX)
		arg("top", RDX)
		for v := range f.vectors {
			VMOVUPS(Mem{Base: RDX, Disp: 64 * v}, t.V(fewTop+v))
		}
		arg("keys", RDX)
		MOVQ(RDX, left)
		DECQ(RDX)
		IMULQ(stride, RDX)
		ADDQ(RBX, RDX)
		MOVQ(RDX, last)
		for _, keys := range []int{16 / f.vectors, rowWords} {
			b := fewBlock{few: f, t: t, n: n, keys: keys}
			b.loop(fmt.Sprintf("scores%dkeys%d", rows, keys), left, last)
		}
		arg("top", RDX)
		for v := range f.vectors {
			VMOVUPS(t.V(fewTop+v), Mem{Base: RDX, Disp: 64 * v})
		}
	})
}

// Registers of fewScores: the sums come first.
const (
	fewPanel     = 16 // and 17
	fewBroadcast = 18
	fewTop       = 30 // and 31
)

// fewBlock is some keys walked side by side.
type fewBlock struct {
	few
	t    emit.Tier
	n    number
	keys int
	at   []GPPhysical // the keys, or each eighth of them
}

// whole says whether the block is of as many keys as fill the registers. The other
// takes what is left, and the last key in place of those that are not there.
func (b fewBlock) whole() bool { return b.keys > rowWords }

func (b fewBlock) loop(label string, left, last Mem) {
	Label(label)
	least := b.keys
	if !b.whole() {
		least = 1
	}
	CMPQ(left, U8(least))
	JLT(LabelRef(label + "done"))
	for i := range b.keys * b.vectors {
		b.t.Zero(i)
	}
	b.begin(last)
	arg("q", RDI)
	arg("d", RDX)
	if b.n == bf16 {
		SHRQ(U8(1), RDX)
	}
	if b.whole() { // a cache line of every key, while as many others are fetched
		arg("ahead", RCX)
		ADDQ(RBX, RCX)
		SUBQ(U8(16), RDX)
		JLT(LabelRef(label + "rest"))
		Label(label + "lines")
		steps, lines := 16/rowWords, b.keys*wordBytes(b.n)/4
		for u := range steps {
			for i := u * lines / steps; i < (u+1)*lines/steps; i++ {
				PREFETCHT1(Mem{Base: RCX, Disp: 64 * i})
			}
			b.step(u)
		}
		b.forward(steps)
		ADDQ(U32(64*lines), RCX)
		SUBQ(U8(16), RDX)
		JGE(LabelRef(label + "lines"))
		Label(label + "rest")
		ADDQ(U8(16), RDX)
		JZ(LabelRef(label + "summed"))
	}
	Label(label + "words")
	b.step(0)
	b.forward(1)
	SUBQ(U8(rowWords), RDX)
	JNZ(LabelRef(label + "words"))
	Label(label + "summed")
	for i := range b.keys / rowWords {
		for v := range b.vectors {
			sum := b.fold(i*rowWords, v)
			VMOVUPS(sum, Mem{Base: RAX, Disp: 64 * (i*b.vectors + v)})
			VMAXPS(b.t.V(fewTop+v), sum, b.t.V(fewTop+v)) // a NaN loses
		}
	}
	ADDQ(U32(64*(b.keys/rowWords)*b.vectors), RAX)
	advance(RBX, b.keys)
	SUBQ(U8(b.keys), left)
	JMP(LabelRef(label))
	Label(label + "done")
}

// begin points at the block's keys.
func (b *fewBlock) begin(last Mem) {
	MOVQ(RBX, R12)
	if b.whole() {
		b.at = []GPPhysical{R12, R13}[:b.keys/8]
		for _, p := range b.at[1:] {
			LEAQ(Mem{Base: R12, Index: stride, Scale: 8}, p)
		}
		return
	}
	b.at = []GPPhysical{R12, R13, R14, R15}[:b.keys]
	MOVQ(last, RSI)
	for i, p := range b.at[1:] {
		LEAQ(Mem{Base: b.at[i], Index: stride, Scale: 1}, p)
		CMPQ(p, RSI)
		CMOVQHI(RSI, p)
	}
}

func (b fewBlock) forward(steps int) {
	ADDQ(U32(64*b.vectors*steps), RDI)
	for _, p := range b.at {
		ADDQ(U8(wordBytes(b.n)*rowWords*steps), p)
	}
}

func (b fewBlock) sum(key, v int) int { return key*b.vectors + v }

// step takes the next words of every key.
func (b fewBlock) step(u int) {
	for v := range b.vectors {
		VMOVUPS(Mem{Base: RDI, Disp: 64 * (u*b.vectors + v)}, b.t.V(fewPanel+v))
	}
	for i := range b.keys {
		m := Mem{Base: b.at[i%len(b.at)]}
		if b.whole() {
			m = rowAt(b.at[i/8], i%8)
		}
		to := fewBroadcast + i%8
		m = m.Offset(wordBytes(b.n) * rowWords * u)
		switch {
		case b.n == half:
			VPBROADCASTD(m, b.t.Half(to))
			VCVTPH2PS(b.t.Half(to), b.t.V(to))
		default:
			VBROADCASTSD(m, b.t.V(to))
		}
		for v := range b.vectors {
			if b.n == bf16 {
				b.t.DotBF16(fewPanel+v, to, b.sum(i, v))
			} else {
				VFMADD231PS(b.t.V(fewPanel+v), b.t.V(to), b.t.V(b.sum(i, v)))
			}
		}
	}
}

// fold sums over the words of each row: of as many keys as there are words, one
// vector is left.
func (b fewBlock) fold(key, v int) Physical {
	sum := b.t.V(b.sum(key, v))
	next, x, y := b.t.V(b.sum(key+1, v)), b.t.V(fewBroadcast), b.t.V(fewBroadcast+1)
	VSHUFPS(U8(0x88), next, sum, x)
	VSHUFPS(U8(0xdd), next, sum, y)
	VADDPS(x, y, sum)
	return sum
}

// fewValues keeps the sums of 8 rows and two vectors of columns in registers
// over a block of keys, and in o from block to block. Memory is fetched in its own
// order meanwhile, whatever the order of the columns.
func fewValues(n number) {
	t := emit.AVX512
	name := "fewValues" + n.infix + t.Suffix
	TEXT(name, attrs, "func(o, p *float32, lanes, keys int, v *"+n.key+", stride, dv, ahead int)")
	Pragma("noescape")
	doc(name, fewValuesDoc)
	c := columns{t: t, n: n, size: 4, keys: 16, done: AllocLocal(8), block: AllocLocal(8)}
	if n != f32 {
		c.size, c.keys = 2, 64
	}
	dispatch(fewRows, func(rows int) {
		c.few, c.rows, c.label = fewOf(rows), rows, fmt.Sprintf("values%d", rows)
		arg("stride", stride)
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
		c.masks()
		arg("dv", rowOfO)
		SHLQ(U8(2), rowOfO)
		arg("v", RBX)
		arg("p", RCX)
		XORQ(RDX, RDX)
		MOVQ(RDX, c.done)
		Label(c.label + "block")
		arg("keys", RDX)
		SUBQ(c.done, RDX)
		MOVQ(U32(c.keys), RSI)
		CMPQ(RDX, RSI)
		CMOVQGT(RSI, RDX)
		MOVQ(RDX, c.block)
		c.all()
		ADDQ(U32(c.keys*rows*4), RCX)
		MOVQ(c.done, RDX)
		ADDQ(U32(c.keys), RDX)
		MOVQ(RDX, c.done)
		arg("keys", RSI)
		CMPQ(RDX, RSI)
		JLT(LabelRef(c.label + "block"))
	})
}

// rowOfO is the size of a row of o.
var rowOfO = R10

// columns is what fewValues does with a block of keys.
type columns struct {
	few
	t           emit.Tier
	n           number
	size        int // of an element
	rows        int
	keys        int // of a block: all rows and columns meet them before the next
	label       string
	done, block Mem // keys of the blocks before, and of this one
}

// width is the columns that are summed at a time, in two vectors.
const width = 32

var columnMasks = []Physical{K1, K2}

// masks leaves the columns after the last whole width in K1 and K2, a vector each.
func (c columns) masks() {
	arg("dv", RCX)
	ANDQ(U8(width-1), RCX)
	MOVQ(U32(1), RAX)
	SHLQ(CL, RAX)
	DECQ(RAX)
	KMOVW(EAX, K1)
	SHRQ(U8(16), RAX)
	KMOVW(EAX, K2)
}

// all goes over the columns of the block at BX, and moves BX to the next.
func (c columns) all() {
	MOVQ(U32(c.keys), R15)
	IMULQ(stride, R15)
	ADDQ(RBX, R15)
	MOVQ(RBX, R12)
	MOVQ(R15, RBX)
	arg("ahead", R15)
	ADDQ(R12, R15)
	arg("o", RAX)
	arg("dv", RSI)
	SUBQ(U8(width), RSI)
	JLT(LabelRef(c.label + "rest"))
	Label(c.label + "columns")
	c.sum(false)
	ADDQ(U32(width*c.size), R12)
	ADDQ(U32(width*4), RAX)
	SUBQ(U8(width), RSI)
	JGE(LabelRef(c.label + "columns"))
	Label(c.label + "rest")
	ADDQ(U8(width), RSI)
	JZ(LabelRef(c.label + "summed"))
	c.sum(true)
	Label(c.label + "summed")
}

// Registers of fewValues: the sums come first.
const (
	fewValue  = 16
	fewWeight = 18
)

// sum goes over the keys with the columns at R12 and AX, for a group of rows at a time.
func (c columns) sum(masked bool) {
	for first := 0; first < c.rows; first += groupRows {
		label := fmt.Sprintf("%ssum%d%v", c.label, first, masked)
		r := group{columns: c, first: first, masked: masked}
		if !masked {
			r.fetch = width * c.size * groupRows / c.rows
		}
		r.resume(label)
		MOVQ(R12, R13)
		MOVQ(RCX, R14)
		MOVQ(c.block, RDX)
		SUBQ(U8(rowWords), RDX)
		JLT(LabelRef(label + "rest"))
		Label(label + "keys")
		for key := range rowWords {
			r.key(key, r.fetch)
		}
		ADDQ(U32(rowWords*r.fetch), R15)
		advance(R13, rowWords)
		ADDQ(U32(64*c.vectors), R14)
		SUBQ(U8(rowWords), RDX)
		JGE(LabelRef(label + "keys"))
		Label(label + "rest")
		for key := range rowWords - 1 { // of those that share the last vectors of weights
			CMPQ(RDX, I8(int8(key+1-rowWords)))
			JLT(LabelRef(label + "summed"))
			r.key(key, 0)
		}
		Label(label + "summed")
		r.each(func(sum, mask Physical, at Mem) {
			if masked {
				VMOVUPS(sum, mask, at)
			} else {
				VMOVUPS(sum, at)
			}
		})
	}
}

// group is the rows and the columns of which the sums are in registers.
type group struct {
	columns
	first  int
	masked bool
	fetch  int // bytes for each key
}

// resume reads back the sums of the blocks before, if there are any.
func (r group) resume(label string) {
	for i := range 2 * groupRows {
		r.t.Zero(i)
	}
	CMPQ(r.done, U8(0))
	JEQ(LabelRef(label + "first"))
	r.each(func(sum, mask Physical, at Mem) {
		if r.masked {
			VMOVUPS_Z(at, mask, sum)
		} else {
			VMOVUPS(at, sum)
		}
	})
	Label(label + "first")
}

// each calls f for the sums and their places in o.
func (r group) each(f func(sum, mask Physical, at Mem)) {
	MOVQ(RAX, RDI)
	if r.first > 0 {
		LEAQ(Mem{Base: RDI, Index: rowOfO, Scale: 8}, RDI)
	}
	for i := range groupRows {
		for x, mask := range columnMasks {
			f(r.t.V(2*i+x), mask, Mem{Base: RDI, Disp: 64 * x})
		}
		if i+1 < groupRows {
			ADDQ(rowOfO, RDI)
		}
	}
}

// key adds the values of one of the keys that share vectors of weights.
func (r group) key(key, fetch int) {
	for x, mask := range columnMasks {
		v, at := r.t.V(fewValue+x), rowAt(R13, key).Offset(16*r.size*x)
		switch {
		case r.n == short && r.masked:
			VPMOVZXWD_Z(at, mask, v)
		case r.n == short:
			VPMOVZXWD(at, v)
		case r.n == half && r.masked:
			VCVTPH2PS_Z(at, mask, v)
		case r.n == half:
			VCVTPH2PS(at, v)
		case r.masked:
			VMOVUPS_Z(at, mask, v)
		default:
			VMOVUPS(at, v)
		}
		if r.n == short {
			VPSLLD(U8(16), v, v)
		}
	}
	for at := key * fetch; at < (key+1)*fetch; at += 32 {
		if at%64 == 0 {
			PREFETCHT1(Mem{Base: R15, Disp: at})
		}
	}
	for i := range groupRows {
		w := r.t.V(fewWeight + i%8)
		VBROADCASTSS(Mem{Base: R14, Disp: place(key, r.first+i)}, w)
		for x := range columnMasks {
			VFMADD231PS(r.t.V(fewValue+x), w, r.t.V(2*i+x))
		}
	}
}
