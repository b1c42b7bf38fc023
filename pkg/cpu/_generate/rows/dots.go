package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// walker walks along the features of up to 4 neighbouring rows at a time.
type walker struct {
	tier
	e       element
	rows    []reg.GPVirtual // where the walk is in each of them
	next    reg.GPVirtual   // the first row of the next group
	last    reg.GPVirtual   // the last row of all
	tail    tail
	slot    operand.Mem
	advance func(bytes int) // moves what the caller reads beside the rows
	far     bool            // memory is fetched as far ahead as the parameter says
}

// step gives what a vector of features is computed from.
type step struct {
	row     func(i int) reg.VecVirtual         // loads that of row i
	beside  func(m operand.Mem) reg.VecVirtual // loads float32s that lie beside, at m
	operand func(m operand.Mem) operand.Op     // the same, in memory if it can be
}

// newWalker starts before the first of count rows.
//
// Memory is read fastest in one sequence. Rows side by side share what is loaded
// beside them, which costs as much as half of the bandwidth if they are long. Two are
// enough: four are no faster, and from memory slower.
func newWalker(t tier, e element, rows, count string, group int) walker {
	w := walker{tier: t, e: e, slot: t.slot(e), next: load(rows), last: load(count)}
	build.DECQ(w.last)
	build.IMULQ(param("stride"), w.last)
	build.ADDQ(w.next, w.last)
	n := load("d")
	build.ANDQ(operand.U8(t.lanes-1), n)
	w.tail = t.tail(n)
	for range group {
		w.rows = append(w.rows, build.GP64())
	}
	return w
}

// group walks along the next rows. Rows after the last one are replaced by it.
// body adds a vector of features to its sums.
func (w walker) group(body func(step)) {
	build.MOVQ(w.next, w.rows[0])
	for i, r := range w.rows[1:] {
		build.MOVQ(w.rows[i], r)
		build.ADDQ(param("stride"), r)
		build.CMPQ(r, w.last)
		build.CMOVQHI(w.last, r)
	}
	build.MOVQ(w.rows[len(w.rows)-1], w.next)
	build.ADDQ(param("stride"), w.next)

	x := load("d")
	vector := w.lanes * w.e.bytes
	unroll := 64 / vector // a cache line
	if len(w.rows) == 1 {
		unroll *= 2
	}
	whole := func(vectors int) {
		for u := range vectors {
			beside := u * w.lanes * 4
			if u*vector%64 == 0 {
				for _, r := range w.rows {
					w.fetch(r, u*vector)
				}
			}
			body(step{
				row:     func(i int) reg.VecVirtual { return w.load(w.e, at(w.rows[i], nil, u*vector)) },
				beside:  func(m operand.Mem) reg.VecVirtual { return w.load(f32, m.Offset(beside)) },
				operand: func(m operand.Mem) operand.Op { return m.Offset(beside) },
			})
		}
		for _, r := range w.rows {
			build.ADDQ(operand.I32(vectors*vector), r)
		}
		if w.advance != nil {
			w.advance(vectors * w.lanes * 4)
		}
	}
	w.loop(x, unroll, func() { whole(unroll) })
	if unroll > 1 {
		w.loop(x, 1, func() { whole(1) })
	}
	done := label("done")
	build.TESTQ(x, x)
	build.JZ(ref(done))
	part := func(m operand.Mem) reg.VecVirtual { return w.tail.load(f32, m, w.slot) }
	body(step{
		row:     func(i int) reg.VecVirtual { return w.tail.load(w.e, at(w.rows[i], nil, 0), w.slot) },
		beside:  part,
		operand: func(m operand.Mem) operand.Op { return part(m) },
	})
	build.Label(done)
}

// loop runs body while x, which it counts down, has that many vectors left.
func (t tier) loop(x reg.GPVirtual, vectors int, body func()) {
	again, done := label("loop"), label("done")
	build.SUBQ(operand.I32(vectors*t.lanes), x)
	build.JLT(ref(done))
	build.Label(again)
	body()
	build.SUBQ(operand.I32(vectors*t.lanes), x)
	build.JGE(ref(again))
	build.Label(done)
	build.ADDQ(operand.I32(vectors*t.lanes), x)
}

// near is how far ahead memory is fetched by what has no parameter for that, in bytes: some
// hardware does not foresee enough by itself, and takes half as long again.
const near = 12 << 10

// fetch fetches the line that is as far after one in work as the caller says.
func (w walker) fetch(r reg.GPVirtual, offset int) {
	if !w.far {
		build.PREFETCHT0(at(r, nil, offset+near))
		return
	}
	ahead := load("ahead")
	build.PREFETCHT1(operand.Mem{Base: r, Index: ahead, Scale: 1, Disp: offset})
}

// longRow is the size from which on rows are read one after the other, in bytes.
const longRow = 256

func dots(t tier, e element) {
	text("dots"+e.name, t, fmt.Sprintf("func(s *float32, ldS int, top, q *float32, d, r int, k *%s, stride, keys, ahead int) float32", e.goType),
		"s[i*ldS+j] = the sum over x < d of q[i*d+x]*k[j][x], in float32, for keys keys",
		"and r query rows, 1 to 4; top[i] is raised to the greatest of its scores, and a NaN",
		"does not raise it. The order of a sum depends on d alone. Returned is a bound on the sum of",
		"squares of a key, that of the greatest of neighbours, place by place: +Inf if any element is",
		"NaN or infinite. stride is in bytes. Memory is fetched ahead bytes after what is in work.")
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
		if n > 2 {
			long, d := label("long"), load("d")
			build.CMPQ(d, operand.U32(longRow/e.bytes))
			build.JGT(ref(long))
			dotRows(t, e, n, 2)
			build.Label(long)
		}
		dotRows(t, e, n, 1)
	}
}

// dotRows takes as many keys at a time as give a vector of sums: they are folded
// together, row by row, and each of them by the same tree.
func dotRows(t tier, e element, rows, group int) {
	per := t.lanes / []int{1, 2, 4, 4}[rows-1] // keys of a block
	group = min(per, group)
	w := newWalker(t, e, "k", "keys", group)
	w.far = true
	var q reg.GPVirtual
	var d4, d12 reg.GPVirtual // bytes of a row, and of three, of q
	if rows > 1 {
		d4 = load("d")
		build.SHLQ(operand.U8(2), d4)
	}
	if rows > 3 {
		d12 = build.GP64()
		build.LEAQ(operand.Mem{Base: d4, Index: d4, Scale: 2}, d12)
	}
	q = build.GP64()
	qRow := func(i int) operand.Mem { return rowOf(q, d4, d12, i) }
	w.advance = func(bytes int) { build.ADDQ(operand.I32(bytes), q) }
	s, left := load("s"), load("keys")
	run := t.constant(0xff800000)
	norm := newBound(t)

	block, fold := label("block"), label("fold")
	build.Label(block)
	sums := make([]reg.VecVirtual, t.lanes)
	for i := range rows * per {
		sums[i] = t.zero()
	}
	norm.begin()
	for g := 0; g < per; g += group {
		if g > 0 {
			build.CMPQ(left, operand.U8(g))
			build.JLE(ref(fold))
		}
		build.MOVQ(param("q"), q)
		squares := norm.keys(group)
		w.group(func(x step) {
			if group == 1 { // nothing to share but the key: operands in memory fill fewer slots
				k := x.row(0)
				build.VFMADD231PS(k, k, squares[0])
				for i := range rows {
					build.VFMADD231PS(x.operand(qRow(i)), k, sums[i*per+g])
				}
				return
			}
			var ks []reg.VecVirtual
			for j := range group {
				ks = append(ks, x.row(j))
				build.VFMADD231PS(ks[j], ks[j], squares[j%len(squares)])
			}
			for i := range rows {
				qi := x.beside(qRow(i))
				for j := range group {
					build.VFMADD231PS(ks[j], qi, sums[i*per+g+j])
				}
			}
		})
		norm.add(squares)
	}
	build.Label(fold)
	norm.end()
	storeDots(t, rows, per, t.fold(sums), run, s, left)
	build.ADDQ(operand.U8(per*4), s)
	build.SUBQ(operand.U8(per), left)
	build.JG(ref(block))
	raiseTop(t, rows, per, run)
	retFloat(infForNaN(norm.run))
}

// bound bounds the sums of squares of keys: those of a block are less than the sum over
// lanes of the greatest that a lane has of any. That costs a product for each vector, and
// little for each key.
type bound struct {
	tier
	most, run reg.VecVirtual // by lane, of a block; of all
}

func newBound(t tier) *bound { return &bound{tier: t, run: t.zero()} }

func (b *bound) begin() { b.most = b.zero() }

// keys returns empty sums of squares for n keys side by side: one for them together where
// registers are few.
func (b *bound) keys(n int) (squares []reg.VecVirtual) {
	if !b.wide() {
		n = 1
	}
	for range n {
		squares = append(squares, b.zero())
	}
	return squares
}

// add adds keys to a block. As integers a NaN is above infinity, and infinity above the
// others, for none is negative.
func (b *bound) add(squares []reg.VecVirtual) {
	for _, x := range squares {
		build.VPMAXUD(x, b.most, b.most)
	}
}

// end ends a block. The sign of a NaN may be either; above all others it is with both.
func (b *bound) end() {
	sum := b.across(b.most, build.VADDPS)
	build.VPMAXUD(sum, b.run.AsX(), b.run.AsX())
}

// rowOf addresses row i of up to 4, given the bytes of one and of three.
func rowOf(base, one, three reg.Register, i int) operand.Mem {
	m := operand.Mem{Base: base}
	switch i {
	case 1:
		m.Index, m.Scale = one, 1
	case 2:
		m.Index, m.Scale = one, 2
	case 3:
		m.Index, m.Scale = three, 1
	}
	return m
}

// fold returns a vector of which lane i is the sum of the lanes of v[i]. Missing
// ones (nil) leave anything in their lanes.
func (t tier) fold(v []reg.VecVirtual) reg.VecVirtual {
	add := func(a, b reg.VecVirtual) reg.VecVirtual { build.VADDPS(a, b, a); return a }
	shuffle := func(low, high uint8, a, b reg.VecVirtual) reg.VecVirtual {
		if b == nil {
			b = a
		}
		x, y := t.vec(), t.vec()
		if t.wide() {
			build.VSHUFF32X4(operand.U8(low), b, a, x)
			build.VSHUFF32X4(operand.U8(high), b, a, y)
		} else {
			build.VPERM2F128(operand.U8(low), b, a, x)
			build.VPERM2F128(operand.U8(high), b, a, y)
		}
		return add(x, y)
	}
	var u [4]reg.VecVirtual
	for i := range u {
		if t.wide() {
			a := shuffle(0x44, 0xee, v[i], v[i+4])
			b := shuffle(0x44, 0xee, v[i+8], v[i+12])
			u[i] = shuffle(0x88, 0xdd, a, b)
		} else {
			u[i] = shuffle(0x20, 0x31, v[i], v[i+4])
		}
	}
	pair := func(a, b reg.VecVirtual) reg.VecVirtual {
		x, y := t.vec(), t.vec()
		build.VUNPCKLPS(b, a, x)
		build.VUNPCKHPS(b, a, y)
		return add(x, y)
	}
	a, b := pair(u[0], u[1]), pair(u[2], u[3])
	x, y := t.vec(), t.vec()
	build.VUNPCKLPD(b, a, x)
	build.VUNPCKHPD(b, a, y)
	return add(x, y)
}

// storeDots writes a block of sums, [row][per], and raises run, except where the
// keys have ended.
func storeDots(t tier, rows, per int, sums, run reg.VecVirtual, s, left reg.GPVirtual) {
	n, most := build.GP64(), build.GP64()
	build.MOVQ(left, n)
	build.MOVQ(operand.U32(per), most)
	build.CMPQ(n, most)
	build.CMOVQGT(most, n)
	ld := load("ldS")
	build.SHLQ(operand.U8(2), ld)
	ld3 := build.GP64()
	build.LEAQ(operand.Mem{Base: ld, Index: ld, Scale: 2}, ld3)
	to := func(i int) operand.Mem { return rowOf(s, ld, ld3, i) }
	if !t.wide() {
		storeDots256(rows, per, sums, run, n, to)
		return
	}
	b, k := bits(n), build.K()
	if per < 16 {
		build.IMUL3L(operand.U32(map[int]uint32{8: 0x0101, 4: 0x1111}[per]), b, b)
	}
	build.KMOVW(b, k)
	build.VMAXPS(run, sums, k, run)
	switch per {
	case 16:
		build.VMOVUPS(sums, k, to(0))
	case 8:
		high := build.YMM()
		build.VEXTRACTF32X8(operand.U8(1), sums, high)
		build.VMOVUPS(sums.AsY(), k, to(0))
		build.VMOVUPS(high, k, to(1))
	case 4:
		build.VMOVUPS(sums.AsX(), k, to(0))
		for i := 1; i < rows; i++ {
			x := build.XMM()
			build.VEXTRACTF32X4(operand.U8(i), sums, x)
			build.VMOVUPS(x, k, to(i))
		}
	}
}

func storeDots256(rows, per int, sums, run reg.VecVirtual, n reg.GPVirtual, to func(int) operand.Mem) {
	mask, top := build.YMM(), build.YMM()
	m := lanesMask(n)
	switch per {
	case 8:
		build.VMOVUPS(m, mask)
	case 4:
		build.VBROADCASTF128(m, mask)
	case 2:
		build.VBROADCASTSD(m, mask)
	}
	build.VMAXPS(run, sums, top)
	build.VBLENDVPS(mask, top, run, run)
	high := build.XMM()
	if per < 8 {
		build.VEXTRACTF128(operand.U8(1), sums, high)
	}
	part, done := label("part"), label("stored")
	build.CMPQ(n, operand.U8(per))
	build.JLT(ref(part)) // masked stores are slow
	low := sums.AsX()
	switch per {
	case 8:
		build.VMOVUPS(sums, to(0))
	case 4:
		build.VMOVUPS(low, to(0))
		build.VMOVUPS(high, to(1))
	case 2:
		for i := range rows {
			x := []reg.Register{low, high}[i/2]
			if i%2 == 0 {
				build.VMOVLPS(x, to(i))
			} else {
				build.VMOVHPS(x, to(i))
			}
		}
	}
	build.JMP(ref(done))
	build.Label(part)
	switch per {
	case 8:
		build.VMASKMOVPS(sums, mask, to(0))
	case 4:
		build.VMASKMOVPS(low, mask.AsX(), to(0))
		build.VMASKMOVPS(high, mask.AsX(), to(1))
	case 2:
		for i := range rows {
			x := []reg.Register{low, high}[i/2]
			build.VEXTRACTPS(operand.U8(i%2*2), x, to(i))
		}
	}
	build.Label(done)
}

// raiseTop raises top[i] to the greatest of row i's per lanes of run.
func raiseTop(t tier, rows, per int, run reg.VecVirtual) {
	top := load("top")
	if t.wide() && per == 16 {
		maxWith(t, run, func(x reg.VecVirtual) { build.VSHUFF32X4(operand.U8(0x4e), run, run, x) })
	}
	if per >= 8 {
		maxWith(t, run, func(x reg.VecVirtual) {
			if t.wide() {
				build.VSHUFF32X4(operand.U8(0xb1), run, run, x)
			} else {
				build.VPERM2F128(operand.U8(1), run, run, x)
			}
		})
	}
	if per >= 4 {
		maxWith(t, run, func(x reg.VecVirtual) { build.VSHUFPS(operand.U8(0x4e), run, run, x) })
	}
	maxWith(t, run, func(x reg.VecVirtual) { build.VSHUFPS(operand.U8(0xb1), run, run, x) })
	for i := range rows {
		x := build.XMM()
		lane := i * per
		switch {
		case lane < 4:
			build.VMOVAPS(run.AsX(), x)
		case t.wide():
			build.VEXTRACTF32X4(operand.U8(lane/4), run, x)
		default:
			build.VEXTRACTF128(operand.U8(lane/4), run, x)
		}
		if lane%4 == 2 {
			build.VSHUFPS(operand.U8(0x4e), x, x, x)
		}
		build.VMAXSS(operand.Mem{Base: top, Disp: 4 * i}, x, x)
		build.VMOVSS(x, operand.Mem{Base: top, Disp: 4 * i})
	}
}

func maxWith(t tier, v reg.VecVirtual, shuffle func(x reg.VecVirtual)) {
	x := t.vec()
	shuffle(x)
	build.VMAXPS(x, v, v)
}
