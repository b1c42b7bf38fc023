package stream

import (
	"iter"
	"math"
)

// stepKind is what a step asks of the device.
type stepKind uint8

const (
	stepLoadKV    stepKind = iota // load key chunk into slot
	stepLoadQuery                 // load query chunk and its state into slot
	stepSave                      // write the state in slot back: its chunk is evicted
	stepApply                     // apply the batch
	stepFinish                    // write the results of the chunk in slot
)

// step is one operation of the run.
type step struct {
	kind  stepKind
	slot  int
	group int
	chunk int
	fresh bool         // stepLoadQuery: the chunk has no state yet
	work  []placedWork // stepApply
}

// placedWork is a chunkWork whose chunks have slots.
type placedWork struct {
	slot  int
	chunk int
	refs  []placedRef
}

type placedRef struct {
	slot int
	keyRef
}

// lookahead is how many uses of chunks the sequencer knows in advance. A chunk
// that is not used within it counts as never used again.
const lookahead = 1 << 14

// sequencer turns batches into steps: it decides which chunk is in which slot.
// It is deterministic and does no I/O, so the planner prices a plan by running
// it, and the run does exactly what was priced.
type sequencer struct {
	sched   *schedule
	query   *cache
	kv      *cache
	left    map[int64]int // pairs still to come, by query chunk that has begun
	window  []batch       // upcoming batches, in order, from head on
	head    int
	uses    int // chunk uses in the window
	done    int // batches taken out of the window
	next    func() (batch, bool)
	stop    func()
	drained bool

	steps []step // of the last batch: reused
	work  []placedWork
	refs  []placedRef
}

// newSequencer sequences a stream of batches, of which no query chunk has a
// state yet.
func newSequencer(s *schedule, querySlots, kvSlots, prefetch int, from iter.Seq[batch]) *sequencer {
	q := &sequencer{
		sched: s,
		query: newCache(querySlots, prefetch),
		kv:    newCache(kvSlots, prefetch),
		left:  make(map[int64]int),
	}
	q.next, q.stop = iter.Pull(from)
	return q
}

// resume says how far query chunks are: they have a state.
func (q *sequencer) resume(at map[int64]position) {
	for id, p := range at {
		if !p.done {
			q.left[id] = q.sched.pairsOf(int(id&math.MaxUint32)) - p.pairs
		}
	}
}

// recycle takes over the memory of a sequencer that is not used any more.
func (q *sequencer) recycle(old *sequencer) {
	clear(old.window) // lets go of the batches
	q.window, q.steps, q.work, q.refs = old.window[:0], old.steps, old.work, old.refs
	q.query.recycle(old.query)
	q.kv.recycle(old.kv)
}

// chunkID names a chunk of one axis over all head groups.
func chunkID(group, chunk int) int64 { return int64(group)<<32 | int64(chunk) }

// fill reads batches ahead and books when each chunk will be used.
func (q *sequencer) fill() {
	for !q.drained && (q.head == len(q.window) || q.uses < lookahead) {
		b, ok := q.next()
		if !ok {
			q.drained = true
			return
		}
		at := q.done + len(q.window) - q.head
		q.window = append(q.window, b)
		for _, w := range b.work {
			q.query.book(chunkID(b.group, w.query), at)
			q.uses++
			for _, r := range w.refs {
				q.kv.book(chunkID(b.group, r.key), at)
				q.uses++
			}
		}
	}
}

// batch returns the steps of the next batch: loads (each after the eviction
// that makes room), one apply, and the finishes. It returns nil at the end. The
// next call overwrites the steps.
func (q *sequencer) batch() []step {
	q.fill()
	if q.head == len(q.window) {
		return nil
	}
	b := q.window[q.head]
	q.window[q.head] = batch{}
	if q.head++; 2*q.head > len(q.window) {
		q.window = append(q.window[:0], q.window[q.head:]...)
		q.head = 0
	}
	at := q.done
	q.done++
	q.steps, q.work, q.refs = q.steps[:0], q.work[:0], q.refs[:0]
	q.pin(b, at)
	for _, w := range b.work {
		p := placedWork{chunk: w.query, slot: q.placeQuery(b.group, w, at)}
		from := len(q.refs)
		for _, r := range w.refs {
			q.refs = append(q.refs, placedRef{q.placeKV(b.group, r.key, at), r})
		}
		q.uses -= 1 + len(w.refs)
		if p.refs = q.refs[from:]; len(p.refs) > 0 {
			q.work = append(q.work, p)
		}
	}
	if len(q.work) > 0 {
		q.add(step{kind: stepApply, group: b.group, work: q.work})
	}
	for _, w := range b.work {
		id := chunkID(b.group, w.query)
		q.left[id] -= len(w.refs)
		if q.left[id] == 0 {
			delete(q.left, id)
			q.add(step{kind: stepFinish, slot: q.query.where[id], group: b.group, chunk: w.query})
			q.query.drop(id)
		}
	}
	return q.steps
}

func (q *sequencer) add(s step) { q.steps = append(q.steps, s) }

// pin marks what the batch uses before anything is evicted for it.
func (q *sequencer) pin(b batch, at int) {
	for _, w := range b.work {
		q.query.use(chunkID(b.group, w.query), at)
		for _, r := range w.refs {
			q.kv.use(chunkID(b.group, r.key), at)
		}
	}
}

func (q *sequencer) placeKV(group, key, at int) int {
	slot, _, hit := q.kv.place(chunkID(group, key), at)
	if !hit {
		q.add(step{kind: stepLoadKV, slot: slot, group: group, chunk: key})
	}
	return slot
}

func (q *sequencer) placeQuery(group int, w chunkWork, at int) int {
	id := chunkID(group, w.query)
	slot, victim, hit := q.query.place(id, at)
	if hit {
		return slot
	}
	if victim >= 0 {
		q.add(step{kind: stepSave, slot: slot, group: int(victim >> 32), chunk: int(victim & math.MaxUint32)})
	}
	_, begun := q.left[id]
	if !begun {
		q.left[id] = q.sched.pairsOf(w.query)
	}
	q.add(step{kind: stepLoadQuery, slot: slot, group: group, chunk: w.query, fresh: !begun})
	return slot
}

// cache decides which slot a chunk gets. Belady's rule, with one exception for
// overlap: a slot that a recent batch uses may still be busy when its successor
// should already be loading, so a quiet slot is preferred unless its chunk is
// needed at once.
type cache struct {
	slots    []cached
	where    map[int64]int
	booked   map[int64]bookings // upcoming batches that use a chunk
	pool     []booking
	free     int32 // first unused entry of pool, or -1
	prefetch int   // batches for which a slot counts as busy after its last use
}

// bookings is a queue, linked through the pool: millions of chunks come and go.
type bookings struct{ first, last int32 }

type booking struct {
	at   int   // batch
	next int32 // entry of the pool, or -1
}

type cached struct {
	id   int64 // -1: nothing
	last int   // batch that used it last
}

func newCache(slots, prefetch int) *cache {
	c := &cache{slots: make([]cached, slots), where: make(map[int64]int), booked: make(map[int64]bookings), free: -1, prefetch: prefetch}
	for i := range c.slots {
		c.slots[i] = cached{id: -1, last: math.MinInt}
	}
	return c
}

// recycle takes over the memory of a cache that is not used any more.
func (c *cache) recycle(old *cache) {
	clear(old.where)
	clear(old.booked)
	c.where, c.booked, c.pool = old.where, old.booked, old.pool[:0]
}

// book notes that batch at uses a chunk. Batches are booked in order.
func (c *cache) book(id int64, at int) {
	e := c.free
	if e >= 0 {
		c.free = c.pool[e].next
		c.pool[e] = booking{at, -1}
	} else {
		e = int32(len(c.pool))
		c.pool = append(c.pool, booking{at, -1})
	}
	b, ok := c.booked[id]
	if ok {
		c.pool[b.last].next = e
	} else {
		b.first = e
	}
	b.last = e
	c.booked[id] = b
}

// use consumes a booking, and marks the chunk's slot, if it has one, as used.
func (c *cache) use(id int64, at int) {
	if b, ok := c.booked[id]; ok {
		was := b.first
		for b.first >= 0 && c.pool[b.first].at <= at {
			e := b.first
			b.first = c.pool[e].next
			c.pool[e].next, c.free = c.free, e
		}
		switch {
		case b.first < 0:
			delete(c.booked, id)
		case b.first != was:
			c.booked[id] = b
		}
	}
	if slot, ok := c.where[id]; ok {
		c.slots[slot].last = at
	}
}

// place returns the slot of a chunk that batch at uses; if it was not there
// (hit false), the slot chosen for it and the chunk evicted from it, or -1.
func (c *cache) place(id int64, at int) (slot int, victim int64, hit bool) {
	if slot, ok := c.where[id]; ok {
		return slot, -1, true
	}
	slot = c.victim(at)
	victim = c.slots[slot].id
	if victim >= 0 {
		delete(c.where, victim)
	}
	c.slots[slot] = cached{id: id, last: at}
	c.where[id] = slot
	return slot, victim, false
}

// nextUse is the next batch that uses the chunk, or MaxInt.
func (c *cache) nextUse(id int64) int {
	if b, ok := c.booked[id]; ok {
		return c.pool[b.first].at
	}
	return math.MaxInt
}

func (c *cache) victim(at int) int {
	best, quiet := -1, -1
	bestNext, quietNext := -1, -1
	for i, s := range c.slots {
		if s.last == at {
			continue
		}
		next := math.MaxInt
		if s.id >= 0 {
			next = c.nextUse(s.id)
		}
		if next > bestNext || next == bestNext && s.last < c.slots[best].last {
			best, bestNext = i, next
		}
		if s.last < at-c.prefetch && (next > quietNext || next == quietNext && s.last < c.slots[quiet].last) {
			quiet, quietNext = i, next
		}
	}
	if quiet >= 0 && quietNext > at+c.prefetch {
		return quiet
	}
	if best < 0 {
		panic("stream: a batch uses more chunks than there are slots")
	}
	return best
}

// drop forgets a chunk whose slot is free from now on.
func (c *cache) drop(id int64) {
	if slot, ok := c.where[id]; ok {
		delete(c.where, id)
		c.slots[slot].id = -1
	}
}
