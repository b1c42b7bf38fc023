package stream

import (
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// checkRest compares what is left of a schedule with the schedule: of every query chunk its
// pairs in order, without those that it has.
func checkRest(t testing.TB, s shape, r *rand.Rand) {
	t.Helper()
	sched := s.schedule(t)
	sched.shards = 1 + r.IntN(3)
	sched.shard = r.IntN(sched.shards)
	all := make(map[int64][]keyRef) // by query chunk; of one without pairs, an empty list
	for b := range sched.batches() {
		for _, w := range b.work {
			id := chunkID(b.group, w.query)
			all[id] = append(all[id], w.refs...)
		}
	}
	at := make(map[int64]position)
	gone := 0.0             // (query row, key) pairs
	least, near := 0.0, 0.0 // likewise: what can be told without the schedule, and how much more it may be
	for id, refs := range all {
		p := position{pairs: len(refs)} // whose results are not out
		switch r.IntN(4) {
		case 0: // not begun
			continue
		case 1:
			p = position{done: true} // as the journal has it: without a number
		case 2:
			p.pairs = r.IntN(len(refs) + 1)
		}
		if p.pairs == 0 && !p.done {
			continue // there is no state of nothing
		}
		at[id] = p
		if p.done {
			p.pairs = len(refs)
		}
		gone += pairsOfTokens(s, sched, id, refs[:p.pairs])
		least += sched.leastIn(int(id>>32), int(uint32(id)), at[id])
		for _, ref := range refs[p.pairs:] {
			most := float64(sched.query.Len(int(uint32(id))) * sched.key.Longest())
			near += most - pairsOfTokens(s, sched, id, []keyRef{ref})
		}
	}

	left, works := make(map[int64][]keyRef), make(map[int64]int)
	ended := make(map[int64]bool)
	skipped := 0.0
	for b := range sched.rest(sched.batches(), at, func(n float64) { skipped += n }) {
		if len(b.work) == 0 {
			t.Fatalf("%+v: an empty batch is left", s)
		}
		if len(b.work) > s.active.Query || len(unionKeys(b.work)) > s.active.KV {
			t.Fatalf("%+v: a batch of %d query chunks and %d key chunks", s, len(b.work), len(unionKeys(b.work)))
		}
		for _, w := range b.work {
			id := chunkID(b.group, w.query)
			if ended[id] {
				t.Fatalf("%+v: query chunk %#x comes after its last pair", s, id)
			}
			left[id] = append(left[id], w.refs...)
			works[id]++
			ended[id] = at[id].pairs+len(left[id]) == len(all[id])
			if len(w.refs) == 0 && !ended[id] {
				t.Fatalf("%+v: query chunk %#x comes for nothing", s, id)
			}
		}
	}
	for id, refs := range all {
		p := at[id]
		if p.done {
			if works[id] > 0 {
				t.Fatalf("%+v: query chunk %#x is done, and comes again", s, id)
			}
			continue
		}
		if !slices.Equal(left[id], refs[p.pairs:]) {
			t.Fatalf("%+v: query chunk %#x has %d of %v; left is %v", s, id, p.pairs, refs, left[id])
		}
		if !ended[id] {
			t.Fatalf("%+v: query chunk %#x, which has %d of %d pairs, never comes to its results", s, id, p.pairs, len(refs))
		}
	}
	if skipped != gone {
		t.Fatalf("%+v: %v pairs were left out, %v are done", s, skipped, gone)
	}
	if least > gone || least < gone-near {
		t.Fatalf("%+v: %v pairs are done, it can be told that %v are, want at most %v less", s, gone, least, near)
	}
	checkRestSteps(t, s, sched, all, at)
}

// checkRestSteps judges the steps of what is left.
func checkRestSteps(t testing.TB, s shape, sched *schedule, all map[int64][]keyRef, at map[int64]position) {
	t.Helper()
	rest := func() iter.Seq[batch] { return sched.rest(sched.batches(), at, func(float64) {}) }
	seq := newSequencer(sched, s.query, s.kv, s.prefetch, rest())
	defer seq.stop()
	seq.resume(at)
	sim := newSimulator(s.query, s.kv)
	for id, p := range at {
		if !p.done {
			sim.begun[id], sim.saved[id] = true, true
		}
	}
	n := 0
	for b := range rest() {
		if err := sim.batch(b, seq.batch()); err != nil {
			t.Fatalf("%+v: batch %d of what is left: %v", s, n, err)
		}
		n++
	}
	if steps := seq.batch(); steps != nil {
		t.Fatalf("%+v: the sequencer goes on after what is left: %+v", s, steps)
	}
	for id := range all {
		if sim.done[id] == at[id].done {
			t.Fatalf("%+v: query chunk %#x was at %+v; finished: %v", s, id, at[id], sim.done[id])
		}
	}
}

// pairsOfTokens counts what a query chunk's pairs are, token by token.
func pairsOfTokens(s shape, sched *schedule, id int64, refs []keyRef) (n float64) {
	q, k := starts(s.nq, sched.query.Chunks), starts(s.nk, sched.key.Chunks)
	x := int(uint32(id))
	for _, ref := range refs {
		for i := q[x]; i < q[x+1]; i++ {
			for j := k[ref.key]; j < k[ref.key+1]; j++ {
				if s.sees(i, j) {
					n++
				}
			}
		}
	}
	return n
}

// What is left of a schedule is all that is not done, exactly once, in the schedule's order.
func TestRest(t *testing.T) {
	t.Parallel()
	n := uint64(400)
	switch {
	case *long:
		n = 20_000
	case testing.Short():
		n = 60
	}
	for seed := range n {
		r := rand.New(rand.NewPCG(seed, 52))
		checkRest(t, randomShape(r, 200, 60), r)
	}
}

// Nothing is left of what is done, and everything of what has not begun.
func TestRestEnds(t *testing.T) {
	s := shape{nq: 40, nk: 30, causal: attention.BottomRight, depth: 1, chunks: 7, heads: 2, active: Active{2, 3}}
	sched := s.schedule(t)
	all := slices.Collect(sched.batches())
	at := make(map[int64]position)
	for _, b := range all {
		for _, w := range b.work {
			at[chunkID(b.group, w.query)] = position{done: true}
		}
	}
	for b := range sched.rest(slices.Values(all), at, func(float64) {}) {
		t.Errorf("all is done, and %+v is left", b)
	}
	i := 0
	for b := range sched.rest(slices.Values(all), nil, func(float64) {}) {
		if b.group != all[i].group || len(b.work) != len(all[i].work) {
			t.Fatalf("nothing has begun, and batch %d is %+v", i, b)
		}
		i++
	}
	if i != len(all) {
		t.Errorf("nothing has begun, and %d of %d batches are left", i, len(all))
	}
}
