package cpu

import (
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// taskTiles is the most tiles of query rows that one task takes: they meet a
// tile of keys one after another, while it is in the cache.
const taskTiles = 8

// exponent turns products into exponents of two: score * log2(e) is c times the
// product of sign*Q and K. Weights are powers of two, and the running maximum is
// rounded up to an integer, so that rescaling a state is exact.
type exponent struct {
	sign   float32
	c      float64
	hi, lo float32 // c as the sum of two float32
	top    float32 // largest product that may come from float32 sums
}

func newExponent(scale float64) exponent {
	e := exponent{sign: 1, c: math.Abs(scale) * math.Log2E}
	if math.Signbit(scale) {
		e.sign = -1
	}
	e.hi = float32(e.c)
	e.lo = float32(e.c - float64(e.hi))
	return e
}

// Apply applies work to query slots. No query slot may occur twice.
func (d *Device) Apply(work []attention.Work, after ...attention.Event) attention.Event {
	return d.submit(d.apply, after, func() (err error) {
		if fewQueries(d.geo) {
			for i := range work {
				if err = d.applyParts(work[i]); err != nil {
					break
				}
			}
		} else {
			err = d.applyTiles(work)
		}
		if err != nil {
			return err
		}
		d.book(func(s *attention.Stats) { s.Batches++ })
		return nil
	})
}

// applyTiles spreads the tiles of query rows over the threads. One thread
// applies all keys to its tiles, in order, and no tile's arithmetic depends on
// the tiles that share its task.
//
// Tasks get smaller towards the end, so that threads end together, and the last
// rows of a chunk come first: under a causal mask they see the most keys.
func (d *Device) applyTiles(work []attention.Work) error {
	var left atomic.Int64 // tiles that nobody has taken
	for i := range work {
		s := &d.query[work[i].Query]
		left.Add(int64(s.heads * s.tiles()))
	}
	return d.spread(d.team.run, d.threads, d.threads, func(thread, _ int) error {
		for n := left.Load(); n > 0 && !d.interrupted.Load(); n = left.Load() {
			t := d.task(work, int(n))
			if left.CompareAndSwap(n, n-int64(t.tiles)) {
				d.do(&d.scratch[thread], t)
			}
		}
		return nil
	})
}

// task is some tiles of one KV head of a work.
type task struct {
	work               *attention.Work
	head, first, tiles int
}

// task returns the next task when the first left tiles of work are.
func (d *Device) task(work []attention.Work, left int) task {
	n := min(max(left/(2*d.threads), 1), taskTiles)
	w := 0
	for ; ; w++ { // tile left-1 of all is a tile of some work
		s := &d.query[work[w].Query]
		if all := s.heads * s.tiles(); left > all {
			left -= all
			continue
		}
		head := (left - 1) / s.tiles()
		last := (left - 1) % s.tiles()
		n = min(n, last+1)
		return task{&work[w], head, last + 1 - n, n}
	}
}

// do runs one task: all its key chunks, in order.
func (d *Device) do(sc *scratch, task task) {
	w, head, first := task.work, task.head, task.first
	s, g := &d.query[w.Query], d.geo
	tiles := sc.tiles[:task.tiles]
	for i := range tiles {
		s.tile(g, head, first+i, &tiles[i])
	}
	var pairs int
	for _, ref := range w.Refs {
		kv := d.kv[ref.Slot].head(g, head)
		most := 0
		for i := range tiles {
			pairs += tiles[i].look(s, first+i, ref, kv.n)
			most = max(most, tiles[i].most)
		}
		keys := d.tileKeys()
		for k0 := 0; k0 < most; k0 += keys {
			if d.interrupted.Load() {
				return
			}
			sc.next(k0, keys)
			for i := range tiles {
				d.applyTile(sc, &tiles[i], kv, k0, min(k0+keys, tiles[i].most))
			}
		}
	}
	d.bookPairs(sc, pairs)
}

// bookPairs counts what a thread has done.
func (d *Device) bookPairs(sc *scratch, pairs int) {
	d.book(func(s *attention.Stats) {
		s.Pairs += float64(pairs)
		s.Float64 += sc.float64
	})
	sc.float64 = 0
}

// tileKeys is the number of keys that are applied to a tile at once.
func (d *Device) tileKeys() int {
	if d.lane == nil {
		return keyTile
	}
	return d.lane.keys
}

// Limits of what the vector kernels compute in float32; see docs/numerics.md.
const (
	largestProduct = 1e37 // of |q||k|, lest a sum overflow
	largestPeak    = 1e30 // of |v|
	smallestPeak   = 1e-30
	largestScale   = 1e30

	// largestWide is of |q||k| in units of log2. The wide kernels subtract the maximum from
	// a score before that is rounded: for scores so large that float64 has no fraction
	// left, what remains would be as large as you like.
	largestWide = 1 << 40
)

// A score that is rounded to float32 has an error in proportion to the sums on the
// way to it, and passes it on to its weight, where it must stay small against the
// rounding of the output.
//
// largestNorm bounds |q||k|, in units of log2: scores beyond it are summed in
// float64. It holds whatever happens on the way to a score.
func largestNorm(out attention.DType) float64 {
	switch out {
	case attention.F16:
		return 256
	case attention.BF16:
		return 2048
	}
	return 32
}

// largestTop bounds the largest score of a row, in units of log2, where the output
// is float32: where the weight is. Random inputs stay far below it, rows that
// point in the direction of the keys may not. See docs/numerics.md for the errors
// that it is drawn from.
func largestTop(chains, d int, out attention.DType) float64 {
	if out != attention.F32 {
		return math.Inf(1)
	}
	return max(7, 8*float64(chains)*min(1, math.Sqrt(128/float64(d))))
}

// path is the way in which a tile of keys is applied to a tile of query rows. It
// follows from the content of the two.
type path uint8

const (
	plain path = iota // the portable kernel, in float64
	wide              // products in float64, the rest in float32
	narrow
	few  // narrow, with vectors along features and keys
	fast // narrow, with weights in bfloat16; counted as narrow too
	paths
)

func (d *Device) path(norm float32, kv keys, k0, k1 int) path {
	if d.lane == nil {
		return plain // and nothing is measured
	}
	k, v := kv.bounds(k0, k1)
	return d.pathOf(norm, k, v)
}

// pathOf is the path of rows whose |q|^2 is at most norm, and keys whose |k|^2 and |v| are
// at most k and v.
func (d *Device) pathOf(norm, k, v float32) path {
	if !(v <= largestPeak) || v < smallestPeak && v > 0 {
		return plain
	}
	product := math.Sqrt(float64(norm)) * math.Sqrt(float64(k))
	if !(product*d.exp.c <= largestWide) {
		return plain
	}
	if !(product <= largestProduct) || !(product*d.exp.c <= largestNorm(d.geo.OutDType)) || d.exp.c > largestScale || d.exp.c < 1/largestScale {
		return wide
	}
	return narrow
}

// applyTile applies keys [k0,k1) of a chunk, at most keyTile of them, to a tile.
func (d *Device) applyTile(sc *scratch, t *tile, kv keys, k0, k1 int) {
	if k1 <= k0 {
		return
	}
	how := d.path(t.norm, kv, k0, k1)
	if how == narrow && t.steep {
		how = wide
	}
	if how == narrow && !d.narrowTile(sc, t, kv, k0, k1) {
		t.steep, how = true, wide // and for the rest of the chunk
	}
	sc.ran[how]++
	if how != narrow && d.lane != nil { // the portable kernel does nothing else
		for _, see := range t.see[:t.rows] {
			sc.float64 += float64(min(max(int(see)-k0, 0), k1-k0))
		}
	}
	switch how {
	case plain:
		d.plainTile(sc, t, kv, k0, k1)
	case wide:
		for ; k0 < k1; k0 += wideKeys {
			d.wideTile(sc, t, kv, k0, min(k0+wideKeys, k1))
		}
	}
}

// narrowTile reports false, and has done nothing, if the scores are too large.
func (d *Device) narrowTile(sc *scratch, t *tile, kv keys, k0, k1 int) bool {
	g, n, lanes := d.geo, k1-k0, t.lanes
	s, top := &sc.s[0], sc.top32[:lanes]
	reset(top)
	used := lanes // have rows
	if t.rows <= 8 {
		used = d.lane.least
	}
	if t.pairs != nil && d.lane.scoresBF16 != nil && g.D%2 == 0 {
		d.lane.scoresBF16(s, &top[0], &t.pairs[0], g.D, used, at[uint16](kv.kFrom(k0, g.D*2)), g.D*2, n)
	} else {
		d.lane.scores(s, &top[0], &t.q[0], g.D, used, sc.keys32(g, kv, k0, d.row), g.D*4, n)
	}
	if t.least < k1 {
		reset(top)
		d.lane.mask(s, &top[0], lanes, n, sc.seeFrom(t, k0))
	}
	for _, x := range top[:t.rows] {
		if x > d.exp.top || x < -d.exp.top && x > float32(math.Inf(-1)) { // -Inf: sees none of these keys
			return false
		}
	}
	d.lane.rebase(&t.m[0], &sc.alpha[0], &sc.base32[0], &top[0], lanes, d.exp.c)
	if d.roundsWeights(g) {
		sc.ran[fast]++
		p := (*uint32)(unsafe.Pointer(s))
		d.lane.softmaxPairs(p, s, lanes, n, &sc.base32[0], d.exp.hi, d.exp.lo, &t.l[0], &sc.alpha[0])
		d.lane.valuesPairs(&t.acc[0], &sc.alpha[0], lanes, p, (n+1)/2, sc.valuePairs(g, kv, d.lane), g.Dv)
		return true
	}
	d.lane.softmax(s, used, n, &sc.base32[0], d.exp.hi, d.exp.lo, &t.l[0], &sc.alpha[0])
	d.lane.values(&t.acc[0], &sc.alpha[0], used, s, n, sc.values32(g, kv, k0, d.row), g.Dv*4, g.Dv)
	return true
}

// roundsWeights says whether weights are rounded to bfloat16: allowed, and of use.
func (d *Device) roundsWeights(g attention.Geometry) bool {
	return g.Fast && g.DType == attention.BF16 && d.lane.pairValues != nil
}

// wideTile takes up to wideKeys keys.
func (d *Device) wideTile(sc *scratch, t *tile, kv keys, k0, k1 int) {
	g, n, lanes := d.geo, k1-k0, t.lanes
	s, top := &sc.sWide[0], sc.top[:lanes]
	q := sc.wideQuery(t)
	reset(top)
	d.lane.scoresWide(s, &top[0], &q[0], g.D, lanes, sc.keys32(g, kv, k0, d.row), g.D*4, n)
	if t.least < k1 {
		reset(top)
		d.lane.maskWide(s, &top[0], lanes, n, sc.seeFrom(t, k0))
	}
	d.lane.rebaseWide(&t.m[0], &sc.alpha[0], &sc.base[0], &top[0], lanes, d.exp.c)
	d.lane.softmaxWide(&sc.s[0], s, lanes, n, &sc.base[0], d.exp.c, &t.l[0], &sc.alpha[0])
	d.lane.values(&t.acc[0], &sc.alpha[0], lanes, &sc.s[0], n, sc.values32(g, kv, k0, d.row), g.Dv*4, g.Dv)
}

// seeFrom is how many keys from k0 on each lane sees. Lanes without a row see
// what they please.
func (sc *scratch) seeFrom(t *tile, k0 int) *int32 {
	for i := range t.lanes {
		sc.see[i] = t.see[i] - int32(k0)
	}
	return &sc.see[0]
}

func reset[T float32 | float64](top []T) {
	for i := range top {
		top[i] = T(math.Inf(-1))
	}
}
