package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// columnBlocks gives the vectors of columns that are summed at a time, as many as
// the registers hold for that many rows.
func columnBlocks(t tier, e element, rows int) []int {
	if t.wide() {
		return [][]int{{16, 8, 4, 2, 1}, {8, 4, 2, 1}, {8, 4, 2, 1}, {4, 2, 1}}[rows-1]
	}
	if rows == 3 && e == bf16 {
		return []int{2, 1}
	}
	return [][]int{{8, 4, 2, 1}, {4, 2, 1}, {4, 2, 1}}[rows-1]
}

func combine(t tier, e element) {
	text("combine"+e.name, t, fmt.Sprintf("func(o, p *float32, ldP, r int, v *%s, stride, keys, dv, ahead int)", e.goType),
		"o[i*dv+x] = the sum over j < keys of p[i*ldP+j]*v[j][x], for x < dv and r rows,",
		"1 to 4: one chain of float32 FMAs from 0, keys ascending. stride is in bytes. Memory is",
		"fetched ahead bytes after what is in work.")
	r := load("r")
	var names []string
	for n := 2; n <= 4; n++ {
		names = append(names, label("rows"))
		build.CMPQ(r, operand.U8(n))
		build.JE(ref(names[n-2]))
	}
	for n := 1; n <= 4; n++ {
		if n > 1 {
			build.Label(names[n-2])
		}
		if n == 4 && t.wide() {
			wide, dv := label("wide"), load("dv")
			build.CMPQ(dv, operand.U8(4*t.lanes))
			build.JGT(ref(wide))
			combineRows(t, e, n, 4)
			build.Label(wide)
		}
		combineRows(t, e, n, []int{1, 2, 3, 2}[n-1])
	}
}

// keyBlock is how many keys all rows and columns meet before the next ones: their
// values are in the L1 or L2 cache when they are read again.
const keyBlock = 32

// sums are those of a block of keys. Between the blocks they are kept in o.
type sums struct {
	tier
	e               element
	slot            operand.Mem
	upper           reg.Register // bf16: a mask for the element at an odd place
	v, ldP, ldP3    reg.GPVirtual
	o, ldO, ldO3, p reg.GPVirtual
	done            reg.GPVirtual // keys of the blocks before this one
}

// combineRows reads each value once from memory, whole rows one after the other,
// as hardware foresees it best. Where the registers would hold too few columns
// for that, only some rows go together over a block of keys, and then the others.
func combineRows(t tier, e element, rows, together int) {
	c := sums{tier: t, e: e, slot: t.slot(e), done: build.GP64(), v: build.GP64(), o: build.GP64(), p: build.GP64()}
	if e == bf16 {
		c.upper = t.constant(0xffff0000)
	}
	three := func(name string) (one, three reg.GPVirtual) {
		one = load(name)
		build.SHLQ(operand.U8(2), one)
		if together > 2 {
			three = build.GP64()
			build.LEAQ(operand.Mem{Base: one, Index: one, Scale: 2}, three)
		}
		return one, three
	}
	c.ldP, c.ldP3 = three("ldP")
	c.ldO, c.ldO3 = three("dv")
	build.XORQ(c.done, c.done)
	block := label("block")
	build.Label(block)
	for i := 0; i < rows; i += together {
		build.MOVQ(c.done, c.v)
		build.IMULQ(param("stride"), c.v)
		build.ADDQ(param("v"), c.v)
		build.MOVQ(param("p"), c.p)
		build.LEAQ(operand.Mem{Base: c.p, Index: c.done, Scale: 4}, c.p)
		build.MOVQ(param("o"), c.o)
		if i == 2 {
			build.LEAQ(operand.Mem{Base: c.p, Index: c.ldP, Scale: 2}, c.p)
			build.LEAQ(operand.Mem{Base: c.o, Index: c.ldO, Scale: 2}, c.o)
		}
		c.columns(together)
	}
	build.ADDQ(operand.U8(keyBlock), c.done)
	build.CMPQ(c.done, param("keys"))
	build.JLT(ref(block))
	ret()
}

// columns goes over the columns of the rows at o.
func (c sums) columns(rows int) {
	x := load("dv")
	for _, n := range columnBlocks(c.tier, c.e, rows) {
		c.loop(x, n, func() {
			c.pass(rows, n, nil)
			build.ADDQ(operand.I32(n*c.lanes*c.e.bytes), c.v)
			build.ADDQ(operand.I32(n*c.lanes*4), c.o)
		})
	}
	done := label("done")
	build.TESTQ(x, x)
	build.JZ(ref(done))
	tl := c.tail(x)
	c.pass(rows, 1, &tl)
	build.Label(done)
}

// pass sums n vectors of columns over a block of keys.
func (c sums) pass(rows, n int, tl *tail) {
	acc := make([][]reg.VecVirtual, rows)
	for i := range acc {
		for range n {
			acc[i] = append(acc[i], c.zero())
		}
	}
	split := c.e == bf16 && n%2 == 0
	c.resume(acc, tl)
	v, p, left, most := build.GP64(), build.GP64(), load("keys"), build.GP64()
	build.MOVQ(c.v, v)
	build.MOVQ(c.p, p)
	build.SUBQ(c.done, left)
	build.MOVQ(operand.U32(keyBlock), most)
	build.CMPQ(left, most)
	build.CMOVQGT(most, left)
	again := label("key")
	build.Label(again)
	ahead := load("ahead")
	for x := 0; x < n*c.lanes*c.e.bytes; x += 64 {
		build.PREFETCHT1(operand.Mem{Base: v, Index: ahead, Scale: 1, Disp: x})
	}
	c.key(acc, v, p, split, tl)
	build.ADDQ(param("stride"), v)
	build.ADDQ(operand.U8(4), p)
	build.DECQ(left)
	build.JNZ(ref(again))
	c.finish(acc, split, tl)
}

// key adds one key's values, times the rows' weights.
func (c sums) key(acc [][]reg.VecVirtual, v, p reg.GPVirtual, split bool, tl *tail) {
	var odd reg.VecVirtual
	value := func(x int) reg.VecVirtual {
		switch {
		case tl != nil:
			return tl.load(c.e, at(v, nil, 0), c.slot)
		case split && x%2 == 0:
			var even reg.VecVirtual
			even, odd = c.pairs(at(v, nil, x*c.lanes*2), c.upper)
			return even
		case split:
			return odd
		}
		return c.tier.load(c.e, at(v, nil, x*c.lanes*c.e.bytes))
	}
	weight := func(i int) reg.VecVirtual {
		w := c.vec()
		build.VBROADCASTSS(rowOf(p, c.ldP, c.ldP3, i), w)
		return w
	}
	n := len(acc[0])
	if len(acc) <= n {
		var ws []reg.VecVirtual
		for i := range acc {
			ws = append(ws, weight(i))
		}
		for x := range n {
			vx := value(x)
			for i := range acc {
				build.VFMADD231PS(vx, ws[i], acc[i][x])
			}
		}
		return
	}
	var vs []reg.VecVirtual
	for x := range n {
		vs = append(vs, value(x))
	}
	for i := range acc {
		w := weight(i)
		for x := range n {
			build.VFMADD231PS(vs[x], w, acc[i][x])
		}
	}
}

// resume reads back the sums of the blocks before, if there are any.
func (c sums) resume(acc [][]reg.VecVirtual, tl *tail) {
	first := label("first")
	build.TESTQ(c.done, c.done)
	build.JZ(ref(first))
	for i := range acc {
		from := rowOf(c.o, c.ldO, c.ldO3, i)
		for x, a := range acc[i] {
			switch {
			case tl == nil:
				build.VMOVUPS(from.Offset(x*c.lanes*4), a)
			case c.wide():
				build.VMOVUPS_Z(from, tl.k, a)
			default:
				build.VMASKMOVPS(from, tl.mask, a)
			}
		}
	}
	build.Label(first)
}

// finish writes the sums, after the last block in the order of the columns.
func (c sums) finish(acc [][]reg.VecVirtual, split bool, tl *tail) {
	if split {
		between, left := label("between"), load("keys")
		build.SUBQ(c.done, left)
		build.CMPQ(left, operand.U8(keyBlock))
		build.JGT(ref(between))
		for i := range acc {
			for x := 0; x < len(acc[i]); x += 2 {
				c.interleave(acc[i][x], acc[i][x+1])
			}
		}
		build.Label(between)
	}
	for i := range acc {
		to := rowOf(c.o, c.ldO, c.ldO3, i)
		for x, a := range acc[i] {
			if tl != nil {
				tl.store(a, to)
			} else {
				build.VMOVUPS(a, to.Offset(x*c.lanes*4))
			}
		}
	}
}

// pairs reads two vectors of bfloat16 and widens those at even and odd places:
// cheaper than in order.
func (t tier) pairs(m operand.Mem, upper reg.Register) (even, odd reg.VecVirtual) {
	even, odd = t.vec(), t.vec()
	build.VMOVUPS(m, odd)
	build.VPSLLD(operand.U8(16), odd, even)
	if t.wide() {
		build.VPANDD(upper, odd, odd)
	} else {
		build.VPAND(upper, odd, odd)
	}
	return even, odd
}

// interleave undoes what pairs did to the order.
func (t tier) interleave(even, odd reg.VecVirtual) {
	a, b := t.vec(), t.vec()
	build.VUNPCKLPS(odd, even, a) // places 0 to 3 of each 8
	build.VUNPCKHPS(odd, even, b) // places 4 to 7
	if !t.wide() {
		build.VPERM2F128(operand.U8(0x20), b, a, even)
		build.VPERM2F128(operand.U8(0x31), b, a, odd)
		return
	}
	for i, to := range []reg.VecVirtual{even, odd} {
		build.VSHUFF32X4(operand.U8([]uint8{0x44, 0xee}[i]), b, a, to)
		build.VSHUFF32X4(operand.U8(0xd8), to, to, to)
	}
}
