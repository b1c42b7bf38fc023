package cpu

import (
	"math"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Few query rows over many keys take the time in which K and V come from memory.
// They are read once, where they lie, and not copied into a slot first. One tile of
// rows is no work for several threads, so that the keys are
// cut into parts whose length does not depend on the number of threads; each part
// fills a partial state from nothing, and partial states are merged in order.
const (
	fewRows  = 16   // query rows that share a KV head
	partKeys = 2048 // of the shortest part
	mostFull = 128  // parts of a slot, if the shortest were more
	fewKeys  = 512  // between two updates of a partial state, at most

	// windowBytes is what the rows of K and V between two updates may take: they are gone
	// through twice, while those of the next are fetched, and the second-level cache should
	// hold both.
	windowBytes = 128 << 10

	// So few rows that vectors are better along features and keys than along rows.
	leastRows = 4

	blockWords = 2 // of each row in a vector, and keys to a vector of scores, where there are more
)

func fewQueries(g attention.Geometry) bool { return g.Group*g.QueryRows <= fewRows }

// partOf is the number of keys of a part: partial states have to be merged, so that
// there are not many more than threads.
func partOf(g attention.Geometry) int {
	return partKeys * max(1, ceilDiv(g.KVHeads*g.KeyRows, mostFull*partKeys))
}

// partsOf is the number of parts of a full KV slot.
func partsOf(g attention.Geometry) int { return g.KVHeads * ceilDiv(g.KeyRows, partOf(g)) }

// partialFloats is the size of a partial state.
func partialFloats(g attention.Geometry) int { return g.Group * g.QueryRows * (g.Dv + 2) }

// partial is the state of few rows: acc is [row][dv].
type partial struct {
	acc, m, l []float64
	dv        int
}

func newPartial(f []float64, rows, dv int) partial {
	return partial{acc: f[:rows*dv], m: f[rows*dv:][:rows], l: f[rows*(dv+1):][:rows], dv: dv}
}

func (p partial) clear() {
	clear(p.acc)
	clear(p.l)
	reset(p.m)
}

// fewScratch lasts as long as a part: no other kernel uses its memory.
type fewScratch struct {
	q       []float32 // fewRows x D, as the kernels want it
	o       []float32 // fewRows x Dv
	tile    []float64 // the state of a tile of the fewest lanes
	partial []float64
	window  fewWindow
}

// fewWindow is what is known of the keys between two updates, and room for copies of
// rows that don't lie side by side.
type fewWindow struct {
	k, v       []byte
	norm, peak [fewKeys / keyTile]float32
	measured   bool // of norm
}

func partBytes(g attention.Geometry) int {
	if !fewQueries(g) {
		return 0
	}
	k, v := windowRoom(g)
	return k + v + 4*fewRows*(g.D+g.Dv) + 8*laneStep*(g.Dv+2) + roundUp64(8*partialFloats(g))
}

func newFewScratch(g attention.Geometry, own []byte) (f fewScratch) {
	if fewQueries(g) {
		k, v := windowRoom(g)
		f.window.k, f.window.v, own = own[:k], own[k:][:v], own[k+v:]
		f.q, f.o = carve[float32](&own, fewRows*g.D), carve[float32](&own, fewRows*g.Dv)
		f.tile, f.partial = carve[float64](&own, laneStep*(g.Dv+2)), carve[float64](&own, partialFloats(g))
	}
	return f
}

// windowRoom is the room that a window has for rows of K and of V.
func windowRoom(g attention.Geometry) (k, v int) {
	n := fewKeysOf(g) * g.DType.Size()
	return roundUp64(n * g.D), roundUp64(n * g.Dv)
}

// fewKeysOf is the most keys between two updates.
func fewKeysOf(g attention.Geometry) int {
	if fewKeys*(g.D+g.Dv)*g.DType.Size() > windowBytes {
		return keyTile
	}
	return fewKeys
}

// look finds the rows of keys [k0,k1) of a head. The part that they belong to has more, or not.
func (f *fewWindow) look(g attention.Geometry, s *kvSlot, head, k0, k1 int, more bool) (kv keys, err error) {
	f.measured = false
	kv = keys{first: k0, n: k1, norm: f.norm[:], peak: f.peak[:]}
	if kv.k, kv.kAhead, err = sideBySide(s.kRows[head].Slice(k0, k1), f.k, more); err != nil {
		return kv, err
	}
	kv.v, kv.vAhead, err = sideBySide(s.vRows[head].Slice(k0, k1), f.v, more)
	return kv, err
}

// measureKeys measures K of each tile of a window, once, and returns the largest |k|^2.
func (f *fewWindow) measureKeys(d *Device, kv keys) (largest float32) {
	for i, j := 0, kv.first; d.row != nil && j < kv.n; i, j = i+1, j+keyTile {
		if !f.measured {
			f.norm[i] = d.norm(kv.kFrom(j, d.geo.D*d.geo.DType.Size()), min(keyTile, kv.n-j), d.geo.D)
		}
		largest = max(largest, f.norm[i])
	}
	f.measured = true
	return largest
}

// measure measures K and V.
func (f *fewWindow) measure(d *Device, kv keys) {
	f.measureKeys(d, kv)
	for i, j := 0, kv.first; d.row != nil && j < kv.n; i, j = i+1, j+keyTile {
		f.peak[i] = d.peak(kv.vFrom(j, d.geo.Dv*d.geo.DType.Size()), min(keyTile, kv.n-j), d.geo.Dv)
	}
}

// sideBySide is the bytes of rows: where they are, or else copied to room. If there are
// more, they come ahead bytes after these.
func sideBySide(r attention.Rows, room []byte, more bool) (b []byte, ahead int, err error) {
	n := r.N * r.RowBytes()
	aligned := uintptr(unsafe.Pointer(unsafe.SliceData(r.Data)))%uintptr(r.DType.Size()) == 0
	if !r.Contiguous() || !aligned {
		return room[:n], 0, r.CopyTo(room[:n])
	}
	if more {
		ahead = n
	}
	return r.Data, ahead, nil
}

// applyParts applies all key chunks of w.
func (d *Device) applyParts(w attention.Work) error {
	s, g := &d.query[w.Query], d.geo
	type part struct{ head, ref, k0 int }
	var parts []part
	for r, ref := range w.Refs {
		for h := range s.heads {
			for k0 := 0; k0 < d.kv[ref.Slot].rows; k0 += partOf(g) {
				parts = append(parts, part{h, r, k0})
			}
		}
	}
	size, most := partialFloats(g), len(d.partials)/partialFloats(g)
	for len(parts) > 0 { // a work may name a slot twice
		wave := parts[:min(len(parts), most)]
		parts = parts[len(wave):]
		err := d.spread(d.team.run, d.threads, len(wave), func(thread, i int) error {
			p := wave[i]
			return d.applyPart(&d.scratch[thread], s, w.Refs[p.ref], p.head, p.k0, d.partials[i*size:][:size])
		})
		if err != nil {
			return err
		}
		for i := 0; i < len(wave); {
			head := wave[i].head
			var t tile
			s.tile(g, head, 0, &t)
			all := newPartial(d.partials[i*size:][:size], t.rows, g.Dv)
			for i++; i < len(wave) && wave[i].head == head; i++ {
				all.merge(newPartial(d.partials[i*size:][:size], t.rows, g.Dv))
			}
			all.mergeInto(t.state)
		}
	}
	return nil
}

// applyPart applies one part of a chunk to an empty state, which is copied to to.
// The state itself stays in the cache from part to part: while it came from memory,
// K and V would not.
func (d *Device) applyPart(sc *scratch, s *querySlot, ref attention.KVRef, head, k0 int, to []float64) error {
	g, t, slot := d.geo, &sc.tiles[0], &d.kv[ref.Slot]
	s.tile(g, head, 0, t)
	t.state = newState(sc.few.tile, t.lanes, g.Dv)
	way := d.fewWay(t.rows)
	way.pack(sc.few.q, t, g.D)
	p := newPartial(sc.few.partial, t.rows, g.Dv)
	p.clear()
	t.look(s, 0, ref, slot.rows)
	var pairs int
	k1 := min(k0+partOf(g), slot.rows)
	for _, see := range t.see[:t.rows] {
		pairs += min(max(int(see)-k0, 0), k1-k0)
	}
	k1 = min(k1, t.most)
	others := false
	for ; k0 < k1 && !d.interrupted.Load(); k0 += way.keys {
		end := min(k0+way.keys, k1)
		kv, err := sc.few.window.look(g, slot, head, k0, end, end < k1 && !way.foreseen)
		if err != nil {
			return err
		}
		if d.applyFew(sc, t, p, &way, kv, k0, end) {
			continue
		}
		if !others {
			t.clear()
			others = true
		}
		step := d.tileKeys()
		for j := k0; j < end; j += step {
			sc.next(j, step)
			d.applyTile(sc, t, kv, j, min(j+step, end))
		}
	}
	if others {
		p.add(t.state)
	}
	copy(to, sc.few.partial)
	d.bookPairs(sc, pairs)
	return nil
}

// fewKind is what the kernels for few rows have in a vector.
type fewKind uint8

const (
	tiles    fewKind = iota // rows alone: as any tile
	features                // features of one row
	blocks                  // rows, each with several keys or features
)

// fewWay is how few rows are applied to keys.
type fewWay struct {
	kind  fewKind
	keys  int  // between two updates of the state
	rows  int  // of a block: 8 or 16
	pairs bool // words are pairs of bfloat16, not float32

	foreseen bool // what memory holds next need not be asked for

	lanes    int // of the vectors for two keys
	row, key [tileLanes]uint8
}

// fewWay chooses vectors along features for rows so few, and blocks for more where there
// are kernels for them, and they divide a row of K.
func (d *Device) fewWay(rows int) (w fewWay) {
	g := d.geo
	w.keys = fewKeysOf(g)
	switch {
	case d.lane == nil:
	case rows <= leastRows:
		w.kind, w.foreseen = features, rows <= d.row.foreseen
	case d.lane.fewScores != nil && g.D%blockWords == 0:
		w.kind, w.rows = blocks, 8
		if rows > w.rows {
			w.rows = 16
		}
		w.pairs = g.DType == attention.BF16 && d.lane.fewScoresBF16 != nil && g.D%(2*blockWords) == 0
		w.lay()
		if g.DType == attention.BF16 && !w.pairs {
			w.keys = keyTile // as many as there is room for in float32
		}
	}
	return w
}

// lay says which row and which key the lanes hold: the order in which sums over
// neighbouring lanes leave them.
func (w *fewWay) lay() {
	w.lanes = w.rows * blockWords
	for lane := range w.lanes {
		w.row[lane], w.key[lane] = uint8(lane/4*2+lane%2), uint8(lane/2%2)
	}
}

// pack puts the rows of a tile in the order that the kernels want: one after the
// other, or in blocks.
func (w *fewWay) pack(q []float32, t *tile, d int) {
	switch {
	case w.kind == features:
		for i := range t.rows {
			for x := range d {
				q[i*d+x] = t.q[x*t.lanes+i]
			}
		}
	case w.kind == blocks && w.pairs:
		packBlocks(words(q), t.pairs, w)
	case w.kind == blocks:
		packBlocks(q, t.q, w)
	}
}

// words are the same bits.
func words(q []float32) []uint32 { return unsafe.Slice((*uint32)(unsafe.Pointer(&q[0])), len(q)) }

// packBlocks packs a panel of 16 lanes.
func packBlocks[T float32 | uint32](to, from []T, w *fewWay) {
	for x := 0; x*laneStep < len(from); x += blockWords {
		for i := range blockWords {
			block := to[x*w.rows+i:]
			for row, word := range from[(x+i)*laneStep:][:w.rows] {
				block[row*blockWords] = word
			}
		}
	}
}

// applyFew applies a window of keys to a partial state. It reports false, and has done
// nothing but measure the keys, if that takes other kernels.
//
// Measuring V, and K where there are other ways, would take as long as half of the rest:
// what comes of the products tells nearly always that float32 does.
func (d *Device) applyFew(sc *scratch, t *tile, p partial, w *fewWay, kv keys, k0, k1 int) bool {
	sc.next(k0, w.keys)
	var m, l [fewRows]float64
	copy(m[:], p.m)
	copy(l[:], p.l)
	done := false
	switch {
	case t.steep:
	case w.kind == features:
		done = d.applyFeatures(sc, t, p, kv, k0, k1-k0)
	case w.kind == blocks:
		done = d.applyBlocks(sc, t, p, w, kv, k0, k1-k0)
	}
	if !done || !d.sumsDo(sc, t.rows) {
		sc.few.window.measure(d, kv)
		if !done || d.path(t.norm, kv, k0, k1) != narrow {
			copy(p.m, m[:])
			copy(p.l, l[:])
			return false
		}
	}
	sc.ran[few]++
	for i := range t.rows {
		d.row.accumulate(&p.acc[i*p.dv], sc.alpha[i], &sc.few.o[i*p.dv], p.dv)
	}
	return true
}

// sumsDo says whether float32 has done for V without doubt, given the products. A sum is not
// finite if an element is not, or if it has overflowed; and where all elements are too small
// no sum is larger than this.
func (d *Device) sumsDo(sc *scratch, rows int) bool {
	sum := d.row.peakF32(&sc.few.o[0], 4*d.geo.Dv, rows, d.geo.Dv)
	return sum <= math.MaxFloat32 && sum >= smallestPeak*fewKeys
}

// applyFeatures leaves the products with V in o, and the factors for what the state
// has so far in alpha. It reports false, and has done nothing, if float32 does not do for
// the scores.
func (d *Device) applyFeatures(sc *scratch, t *tile, p partial, kv keys, k0, n int) bool {
	reset(sc.top32[:t.rows])
	norm := d.dots(&sc.s[0], &sc.top32[0], &sc.few.q[0], t.rows, kv, k0, n)
	if d.pathOf(t.norm, norm, 1) != narrow && d.pathOf(t.norm, sc.few.window.measureKeys(d, kv), 1) != narrow {
		return false
	}
	for i := range t.rows {
		s := sc.s[i*fewKeys:][:n]
		if see := int(t.see[i]) - k0; see < n {
			sc.top32[i] = blind(s, max(see, 0))
		}
		base, alpha := rebase(p.m, i, float64(sc.top32[i])*d.exp.c)
		sc.alpha[i] = alpha
		p.l[i] = p.l[i]*alpha + float64(d.row.weights(&s[0], n, float32(base), d.exp.hi, d.exp.lo))
	}
	d.combine(&sc.few.o[0], &sc.s[0], t.rows, kv, k0, n)
	return true
}

// applyBlocks does the same with vectors of rows and keys.
func (d *Device) applyBlocks(sc *scratch, t *tile, p partial, w *fewWay, kv keys, k0, n int) bool {
	g, s, o := d.geo, &sc.s[0], &sc.few.o[0]
	if d.pathOf(t.norm, sc.few.window.measureKeys(d, kv), 1) != narrow {
		return false
	}
	vectors := ceilDiv(n, blockWords)
	greatest := d.blockScores(sc, t, w, kv, k0, n, vectors)
	for _, x := range greatest[:t.rows] {
		if x > d.exp.top || x < -d.exp.top && x > float32(math.Inf(-1)) {
			t.steep = true // for the rest of the chunk
			return false
		}
	}
	var base [fewRows]float32
	for i, x := range greatest[:t.rows] {
		b, alpha := rebase(p.m, i, float64(x)*d.exp.c)
		base[i], sc.alpha[i] = float32(b), alpha
		p.l[i] *= alpha
	}
	for lane := range w.lanes {
		sc.base32[lane] = base[w.row[lane]]
	}
	sums, none := sc.top[:w.lanes], sc.base[:w.lanes]
	clear(sums)
	clear(none)
	d.lane.softmax(s, w.lanes, vectors, &sc.base32[0], d.exp.hi, d.exp.lo, &sums[0], &none[0])
	for lane, x := range sums {
		if row := int(w.row[lane]); row < t.rows {
			p.l[row] += x
		}
	}
	switch g.DType {
	case attention.F16:
		d.lane.fewValuesF16(o, s, w.rows, n, at[uint16](kv.vFrom(k0, g.Dv*2)), g.Dv*2, g.Dv, kv.vAhead)
	case attention.BF16:
		d.lane.fewValuesBF16(o, s, w.rows, n, at[uint16](kv.vFrom(k0, g.Dv*2)), g.Dv*2, g.Dv, kv.vAhead)
	default:
		d.lane.fewValues(o, s, w.rows, n, at[float32](kv.vFrom(k0, g.Dv*4)), g.Dv*4, g.Dv, kv.vAhead)
	}
	return true
}

// blockScores returns the greatest score of each row.
func (d *Device) blockScores(sc *scratch, t *tile, w *fewWay, kv keys, k0, n, vectors int) (greatest [fewRows]float32) {
	g, s, top := d.geo, &sc.s[0], sc.top32[:w.lanes]
	reset(top)
	switch {
	case w.pairs:
		d.lane.fewScoresBF16(s, &top[0], &words(sc.few.q)[0], g.D, w.rows, at[uint16](kv.kFrom(k0, g.D*2)), g.D*2, n, kv.kAhead)
	case g.DType == attention.F16:
		d.lane.fewScoresF16(s, &top[0], &sc.few.q[0], g.D, w.rows, at[uint16](kv.kFrom(k0, g.D*2)), g.D*2, n, kv.kAhead)
	case g.DType == attention.F32:
		d.lane.fewScores(s, &top[0], &sc.few.q[0], g.D, w.rows, at[float32](kv.kFrom(k0, g.D*4)), g.D*4, n, kv.kAhead)
	default: // bfloat16, widened: what is wanted next is not beside it
		d.lane.fewScores(s, &top[0], &sc.few.q[0], g.D, w.rows, sc.keys32(g, kv, k0, d.row), g.D*4, n, 0)
	}
	if vectors*blockWords > n || t.least < k0+n {
		d.hide(sc, t, w, k0, n, vectors)
	}
	reset(greatest[:])
	for lane, x := range top {
		if row := w.row[lane]; x > greatest[row] {
			greatest[row] = x
		}
	}
	return greatest
}

// hide makes the scores of keys that a row does not see, or that are not there, -Inf.
func (d *Device) hide(sc *scratch, t *tile, w *fewWay, k0, n, vectors int) {
	for lane := range w.lanes {
		row, see := int(w.row[lane]), n
		if row < t.rows {
			see = min(max(int(t.see[row])-k0, 0), n)
		}
		sc.see[lane] = int32(ceilDiv(max(see-int(w.key[lane]), 0), blockWords))
	}
	reset(sc.top32[:w.lanes])
	d.lane.mask(&sc.s[0], &sc.top32[0], w.lanes, vectors, &sc.see[0])
}

// blind hides the keys from see on and returns the largest score before them.
func blind(s []float32, see int) float32 {
	top := float32(math.Inf(-1))
	for _, x := range s[:see] {
		if x > top {
			top = x
		}
	}
	for j := see; j < len(s); j++ {
		s[j] = float32(math.Inf(-1))
	}
	return top
}

func (d *Device) dots(s, top, q *float32, rows int, kv keys, k0, n int) (norm float32) {
	g := d.geo
	stride := g.D * g.DType.Size()
	k := kv.kFrom(k0, stride)
	switch g.DType {
	case attention.F16:
		return d.row.dotsF16(s, fewKeys, top, q, g.D, rows, at[uint16](k), stride, n, kv.kAhead)
	case attention.BF16:
		return d.row.dotsBF16(s, fewKeys, top, q, g.D, rows, at[uint16](k), stride, n, kv.kAhead)
	default:
		return d.row.dotsF32(s, fewKeys, top, q, g.D, rows, at[float32](k), stride, n, kv.kAhead)
	}
}

func (d *Device) combine(o, p *float32, rows int, kv keys, k0, n int) {
	g := d.geo
	stride := g.Dv * g.DType.Size()
	v := kv.vFrom(k0, stride)
	switch g.DType {
	case attention.F16:
		d.row.combineF16(o, p, fewKeys, rows, at[uint16](v), stride, n, g.Dv, kv.vAhead)
	case attention.BF16:
		d.row.combineBF16(o, p, fewKeys, rows, at[uint16](v), stride, n, g.Dv, kv.vAhead)
	default:
		d.row.combineF32(o, p, fewKeys, rows, at[float32](v), stride, n, g.Dv, kv.vAhead)
	}
}

// rebase raises the maximum of row i to at least top, an integer above it, and
// returns the base of its weights and the factor for what the state has so far.
func rebase(m []float64, i int, top float64) (base, alpha float64) {
	old := m[i]
	if top = math.Ceil(top); top > old {
		m[i] = top
	}
	if base = m[i]; math.IsInf(base, -1) {
		return 0, 1 // no finite score yet
	}
	return base, power(old - base)
}

// power is 2^x for an integer x <= 0, or -Inf.
func power(x float64) float64 {
	switch {
	case x == 0:
		return 1
	case x < -1100:
		return 0
	}
	return math.Ldexp(1, int(x))
}

// meet raises the maximum of row i to at least top and returns the factors for both
// sums. Maxima are integers, so that a merger rounds sums and nothing else.
func meet(m []float64, i int, top float64) (mine, theirs float64) {
	old := m[i]
	base, mine := rebase(m, i, top)
	if math.IsInf(max(old, top), -1) { // no finite score in either
		return mine, 1
	}
	return mine, power(top - base)
}

// merge adds another partial state.
func (p partial) merge(from partial) {
	for i := range p.m {
		mine, theirs := meet(p.m, i, from.m[i])
		p.l[i] = p.l[i]*mine + from.l[i]*theirs
		to, more := p.acc[i*p.dv:][:p.dv], from.acc[i*p.dv:][:p.dv]
		for x := range to {
			to[x] = to[x]*mine + more[x]*theirs
		}
	}
}

// add adds the state of a tile.
func (p partial) add(from state) {
	for i := range p.m {
		mine, theirs := meet(p.m, i, from.m[i])
		p.l[i] = p.l[i]*mine + from.l[i]*theirs
		for x := range p.dv {
			p.acc[i*p.dv+x] = p.acc[i*p.dv+x]*mine + from.acc[x*from.lanes+i]*theirs
		}
	}
}

// mergeInto adds it to the state of a tile.
func (p partial) mergeInto(to state) {
	for i := range p.m {
		mine, theirs := meet(to.m, i, p.m[i])
		to.l[i] = to.l[i]*mine + p.l[i]*theirs
		for x := range p.dv {
			to.acc[x*to.lanes+i] = to.acc[x*to.lanes+i]*mine + p.acc[i*p.dv+x]*theirs
		}
	}
}
