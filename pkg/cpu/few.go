package cpu

import (
	"math"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Few query rows over many keys take the time in which K and V come from memory.
// One tile of rows is then no work for several threads, so that the keys are
// cut into parts of a fixed length, whatever the number of threads; each part
// fills a partial state from nothing, and partial states are merged in order.
const (
	fewRows  = 16   // query rows that share a KV head
	partKeys = 2048 // of one part
	// So few rows that vectors are better along features and keys than along rows.
	leastRows = 4
	leastKeys = 512 // keys between two updates of their partial state
)

func fewQueries(g attention.Geometry) bool { return g.Group*g.QueryRows <= fewRows }

// partsOf is the number of parts of a full KV slot.
func partsOf(g attention.Geometry) int { return g.KVHeads * ceilDiv(g.KeyRows, partKeys) }

// partialFloats is the size of a partial state: it has no lanes without a row.
func partialFloats(g attention.Geometry) int { return g.Group * g.QueryRows * (g.Dv + 2) }

type fewScratch struct {
	s []float32 // leastRows x leastKeys: scores, then weights
	o []float32 // leastRows x Dv

	// These last as long as a part: no other kernel uses their memory.
	state []float64 // of a tile of the fewest lanes
	q     []float32 // leastRows x D
}

func fewBytes(g attention.Geometry) int {
	if !fewQueries(g) {
		return 0
	}
	return 4 * leastRows * (leastKeys + g.Dv)
}

// partBytes is the size of what lasts as long as a part.
func partBytes(g attention.Geometry) int {
	if !fewQueries(g) {
		return 0
	}
	return 8*laneStep*(g.Dv+2) + roundUp8(4*leastRows*g.D)
}

func newFewScratch(g attention.Geometry, shared, own []byte) (f fewScratch) {
	if fewQueries(g) {
		f.s, f.o = carve[float32](&shared, leastRows*leastKeys), carve[float32](&shared, leastRows*g.Dv)
		f.state, f.q = carve[float64](&own, laneStep*(g.Dv+2)), carve[float32](&own, leastRows*g.D)
	}
	return f
}

// applyParts applies all key chunks of w.
func (d *Device) applyParts(w attention.Work) error {
	s, g := &d.query[w.Query], d.geo
	type part struct{ head, ref, k0 int }
	var parts []part
	for r, ref := range w.Refs {
		for h := range s.heads {
			for k0 := 0; k0 < d.kv[ref.Slot].rows; k0 += partKeys {
				parts = append(parts, part{h, r, k0})
			}
		}
	}
	size, most := partialFloats(g), len(d.partials)/partialFloats(g)
	for len(parts) > 0 { // a work may name a slot twice
		wave := parts[:min(len(parts), most)]
		parts = parts[len(wave):]
		// Neighbours go to one thread: what a part fetches ahead is for the next.
		together := min(max(len(wave)/(4*d.threads), 1), 4)
		err := d.spread(d.team.run, d.threads, ceilDiv(len(wave), together), func(thread, run int) error {
			first := run * together
			for i, p := range wave[first:min(first+together, len(wave))] {
				i += first
				d.applyPart(&d.scratch[thread], s, w.Refs[p.ref], p.head, p.k0, d.partials[i*size:][:size])
			}
			return nil
		})
		if err != nil {
			return err
		}
		var t tile
		for i, p := range wave {
			s.tile(g, p.head, 0, &t)
			t.merge(newState(d.partials[i*size:][:size], g.Group*g.QueryRows, g.Dv), t.rows)
		}
	}
	return nil
}

// applyPart applies one part of a chunk to an empty state, which is copied to partial.
// The state itself stays in the cache from part to part: while it came from memory,
// K and V would not.
func (d *Device) applyPart(sc *scratch, s *querySlot, ref attention.KVRef, head, k0 int, partial []float64) {
	g := d.geo
	t := &sc.tiles[0]
	s.tile(g, head, 0, t)
	t.state = newState(sc.few.state, t.lanes, g.Dv)
	t.state.clear()
	if alongFeatures(g, t.rows) {
		sc.few.pack(t, g.D)
	}
	kv := d.kv[ref.Slot].head(g, head)
	t.look(s, 0, ref, kv.n)
	var pairs int
	k1 := min(k0+partKeys, kv.n)
	for _, see := range t.see[:t.rows] {
		pairs += min(max(int(see)-k0, 0), k1-k0)
	}
	k1 = min(k1, t.most)
	for ; k0 < k1 && !d.interrupted.Load(); k0 += leastKeys {
		d.applyFew(sc, t, kv, k0, min(k0+leastKeys, k1))
	}
	lanes := g.Group * g.QueryRows
	for x := range g.Dv + 2 {
		copy(partial[x*lanes:][:lanes], sc.few.state[x*t.lanes:])
	}
	d.book(func(s *attention.Stats) { s.Pairs += float64(pairs) })
}

// alongFeatures says whether the kernels along features are the better ones: with
// three rows and four they are not if rows of K are long.
func alongFeatures(g attention.Geometry, rows int) bool {
	return rows <= 2 || rows <= leastRows && g.D*g.DType.Size() <= 256
}

// applyFew applies up to leastKeys keys to the few rows of a tile: with vectors
// along features if it can, else as to any tile.
func (d *Device) applyFew(sc *scratch, t *tile, kv keys, k0, k1 int) {
	if !alongFeatures(d.geo, t.rows) || d.path(t.norm, kv, k0, k1) != narrow {
		keys := d.tileKeys()
		for ; k0 < k1; k0 += keys {
			sc.next(k0, keys)
			d.applyTile(sc, t, kv, k0, min(k0+keys, k1))
		}
		return
	}
	sc.ran[few]++
	g, f, n := d.geo, &sc.few, k1-k0
	reset(sc.top32[:t.rows])
	d.dots(&f.s[0], &sc.top32[0], &f.q[0], t.rows, kv, k0, n)
	for i := range t.rows {
		s := f.s[i*leastKeys:][:n]
		if see := int(t.see[i]) - k0; see < n {
			sc.top32[i] = blind(s, max(see, 0))
		}
		base, alpha := t.rebase(i, float64(sc.top32[i])*d.exp.c)
		sc.alpha[i] = alpha
		t.l[i] = t.l[i]*alpha + float64(d.row.weights(&s[0], n, float32(base), d.exp.hi, d.exp.lo))
	}
	d.combine(&f.o[0], &f.s[0], t.rows, kv, k0, n)
	for i, alpha := range sc.alpha[:t.rows] {
		at := i
		for _, o := range f.o[i*g.Dv:][:g.Dv] {
			t.acc[at] = t.acc[at]*alpha + float64(o)
			at += t.lanes
		}
	}
}

// pack puts the rows of a tile one after the other.
func (f *fewScratch) pack(t *tile, d int) {
	for i := range t.rows {
		for x := range d {
			f.q[i*d+x] = t.q[x*t.lanes+i]
		}
	}
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

func (d *Device) dots(s, top, q *float32, rows int, kv keys, k0, n int) {
	g := d.geo
	stride := g.D * g.DType.Size()
	k := kv.k[k0*stride:]
	switch g.DType {
	case attention.F16:
		d.row.dotsF16(s, leastKeys, top, q, g.D, rows, at[uint16](k), stride, n)
	case attention.BF16:
		d.row.dotsBF16(s, leastKeys, top, q, g.D, rows, at[uint16](k), stride, n)
	default:
		d.row.dotsF32(s, leastKeys, top, q, g.D, rows, at[float32](k), stride, n)
	}
}

func (d *Device) combine(o, p *float32, rows int, kv keys, k0, n int) {
	g := d.geo
	stride := g.Dv * g.DType.Size()
	v := kv.v[k0*stride:]
	switch g.DType {
	case attention.F16:
		d.row.combineF16(o, p, leastKeys, rows, at[uint16](v), stride, n, g.Dv)
	case attention.BF16:
		d.row.combineBF16(o, p, leastKeys, rows, at[uint16](v), stride, n, g.Dv)
	default:
		d.row.combineF32(o, p, leastKeys, rows, at[float32](v), stride, n, g.Dv)
	}
}

// rebase raises the maximum of row i to at least top, an integer above it, and
// returns the base of its weights and the factor for what the state has so far.
func (s state) rebase(i int, top float64) (base, alpha float64) {
	m := s.m[i]
	if top = math.Ceil(top); top > m {
		s.m[i] = top
	}
	if base = s.m[i]; math.IsInf(base, -1) {
		return 0, 1 // no finite score yet
	}
	return base, power(m - base)
}

// power is 2^x for an integer x <= 0, or -Inf.
func power(x float64) float64 {
	if x < -1100 {
		return 0
	}
	return math.Ldexp(1, int(x))
}

// merge adds the first rows of a partial state. Maxima are integers, so that it
// rounds sums and nothing else.
func (s state) merge(from state, rows int) {
	var mine, theirs [fewRows]float64
	for i := range rows {
		m := s.m[i]
		var base float64
		base, mine[i] = s.rebase(i, from.m[i])
		theirs[i] = power(from.m[i] - base)
		if math.IsInf(max(m, from.m[i]), -1) { // no finite score in either
			theirs[i] = 1
		}
		s.l[i] = s.l[i]*mine[i] + from.l[i]*theirs[i]
	}
	for x := 0; x*s.lanes < len(s.acc); x++ {
		to, more := s.acc[x*s.lanes:][:rows], from.acc[x*from.lanes:][:rows]
		for i := range to {
			to[i] = to[i]*mine[i] + more[i]*theirs[i]
		}
	}
}
