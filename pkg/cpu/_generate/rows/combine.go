package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// columnBlocks gives the vectors of columns that are summed at a time, as many as
// the registers hold.
func columnBlocks(t tier, e element, rows int) []int {
	if t.wide() {
		return [][]int{{16, 8, 4, 2, 1}, {8, 4, 2, 1}, {8, 4, 2, 1}, {4, 2, 1}}[rows-1]
	}
	if rows == 3 && e == bf16 {
		return []int{2, 1}
	}
	return [][]int{{8, 4, 2, 1}, {4, 2, 1}, {4, 2, 1}, {2, 1}}[rows-1]
}

func combine(t tier, e element) {
	text("combine"+e.name, t, fmt.Sprintf("func(o, p *float32, ldP, r int, v *%s, stride, keys, dv int)", e.goType),
		"o[i*dv+x] = the sum over j < keys of p[i*ldP+j]*v[j][x], for x < dv and r rows,",
		"1 to 4: one chain of float32 FMAs from 0, keys ascending. stride is in bytes.")
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
		combineRows(t, e, n)
	}
}

// columns are those of one pass over the keys.
type columns struct {
	tier
	e                    element
	rows                 int
	v, far, ldP, ldP3    reg.GPVirtual
	o, ldO, ldO3, column reg.GPVirtual
}

func combineRows(t tier, e element, rows int) {
	c := columns{tier: t, e: e, rows: rows, v: load("v"), far: load("stride"), o: load("o")}
	build.IMUL3Q(operand.U8(ahead), c.far, c.far)
	three := func(name string) (one, three reg.GPVirtual) {
		one, three = load(name), build.GP64()
		build.SHLQ(operand.U8(2), one)
		build.LEAQ(operand.Mem{Base: one, Index: one, Scale: 2}, three)
		return one, three
	}
	c.ldP, c.ldP3 = three("ldP")
	c.ldO, c.ldO3 = three("dv")
	slot := t.slot(e)
	x := load("dv")
	for _, n := range columnBlocks(t, e, rows) {
		t.loop(x, n, func() {
			c.pass(n, nil, slot)
			build.ADDQ(operand.I32(n*t.lanes*e.bytes), c.v)
			build.ADDQ(operand.I32(n*t.lanes*4), c.o)
		})
	}
	done := label("done")
	build.TESTQ(x, x)
	build.JZ(ref(done))
	tl := t.tail(x)
	c.pass(1, &tl, slot)
	build.Label(done)
	ret()
}

// pass sums n vectors of columns over all keys.
func (c columns) pass(n int, tl *tail, slot operand.Mem) {
	sums := make([][]reg.VecVirtual, c.rows)
	for i := range sums {
		for range n {
			sums[i] = append(sums[i], c.zero())
		}
	}
	v, p, left := build.GP64(), load("p"), load("keys")
	build.MOVQ(c.v, v)
	again := label("key")
	build.Label(again)
	split := c.e == bf16 && n%2 == 0
	var odd reg.VecVirtual
	value := func(x int) reg.VecVirtual {
		switch {
		case tl != nil:
			return tl.load(c.e, at(v, nil, 0), slot)
		case split && x%2 == 0:
			var even reg.VecVirtual
			even, odd = c.pairs(at(v, nil, x*c.lanes*2))
			return even
		case split:
			return odd
		}
		return c.load(c.e, at(v, nil, x*c.lanes*c.e.bytes))
	}
	weight := func(i int) reg.VecVirtual {
		w := c.vec()
		build.VBROADCASTSS(rowOf(p, c.ldP, c.ldP3, i), w)
		return w
	}
	for at64 := 0; at64 < n*c.lanes*c.e.bytes; at64 += 64 {
		build.PREFETCHT0(at(v, c.far, at64))
	}
	if c.rows <= n {
		var ws []reg.VecVirtual
		for i := range sums {
			ws = append(ws, weight(i))
		}
		for x := range n {
			vx := value(x)
			for i := range sums {
				build.VFMADD231PS(vx, ws[i], sums[i][x])
			}
		}
	} else {
		var vs []reg.VecVirtual
		for x := range n {
			vs = append(vs, value(x))
		}
		for i := range sums {
			w := weight(i)
			for x := range n {
				build.VFMADD231PS(vs[x], w, sums[i][x])
			}
		}
	}
	build.ADDQ(param("stride"), v)
	build.ADDQ(operand.U8(4), p)
	build.DECQ(left)
	build.JNZ(ref(again))
	for i := range sums {
		to := rowOf(c.o, c.ldO, c.ldO3, i)
		if tl != nil {
			tl.store(sums[i][0], to)
			continue
		}
		for x := 0; x < n; x++ {
			if split && x%2 == 0 {
				sums[i][x], sums[i][x+1] = c.interleave(sums[i][x], sums[i][x+1])
			}
			build.VMOVUPS(sums[i][x], to.Offset(x*c.lanes*4))
		}
	}
}

// pairs reads two vectors of bfloat16 and widens those at even and odd places:
// cheaper than in order.
func (t tier) pairs(m operand.Mem) (even, odd reg.VecVirtual) {
	even, odd = t.vec(), t.vec()
	build.VMOVUPS(m, odd)
	build.VPSLLD(operand.U8(16), odd, even)
	build.VPSRLD(operand.U8(16), odd, odd)
	build.VPSLLD(operand.U8(16), odd, odd)
	return even, odd
}

// interleave undoes what pairs did to the order.
func (t tier) interleave(even, odd reg.VecVirtual) (low, high reg.VecVirtual) {
	a, b := t.vec(), t.vec()
	build.VUNPCKLPS(odd, even, a) // places 0 to 3 of each 8
	build.VUNPCKHPS(odd, even, b) // places 4 to 7
	low, high = t.vec(), t.vec()
	if !t.wide() {
		build.VPERM2F128(operand.U8(0x20), b, a, low)
		build.VPERM2F128(operand.U8(0x31), b, a, high)
		return low, high
	}
	for i, to := range []reg.VecVirtual{low, high} {
		build.VSHUFF32X4(operand.U8([]uint8{0x44, 0xee}[i]), b, a, to)
		build.VSHUFF32X4(operand.U8(0xd8), to, to, to)
	}
	return low, high
}
