package stream

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// loads counts what a sequence moved.
type loads struct{ kv, query, saves int }

// simulator holds what the slots hold and judges each step.
type simulator struct {
	query, kv []int64 // chunk of each slot, or -1
	begun     map[int64]bool
	saved     map[int64]bool // the latest state is in the store
	done      map[int64]bool
	leaving   map[int]bool // query slots whose state was saved, to be loaded next
	count     loads
}

func newSimulator(query, kv int) *simulator {
	s := &simulator{
		query: make([]int64, query), kv: make([]int64, kv), begun: make(map[int64]bool),
		saved: make(map[int64]bool), done: make(map[int64]bool), leaving: make(map[int]bool),
	}
	for i := range s.query {
		s.query[i] = -1
	}
	for i := range s.kv {
		s.kv[i] = -1
	}
	return s
}

// batch judges the steps of one batch.
func (s *simulator) batch(b batch, steps []step) error {
	usesQuery, usesKV := make(map[int64]bool), make(map[int64]bool)
	for _, w := range b.work {
		usesQuery[chunkID(b.group, w.query)] = true
		for _, r := range w.refs {
			usesKV[chunkID(b.group, r.key)] = true
		}
	}
	applied := false
	for i, st := range steps {
		if err := s.step(b, st, usesQuery, usesKV, &applied); err != nil {
			return fmt.Errorf("step %d of %d, %+v: %w", i, len(steps), st, err)
		}
	}
	if len(usesKV) > 0 && !applied {
		return fmt.Errorf("nothing was applied")
	}
	for slot := range s.leaving {
		return fmt.Errorf("the state of query slot %d was saved, and the slot is not loaded", slot)
	}
	return nil
}

func (s *simulator) step(b batch, st step, usesQuery, usesKV map[int64]bool, applied *bool) error {
	id := chunkID(st.group, st.chunk)
	if *applied && st.kind != stepFinish {
		return fmt.Errorf("comes after the batch's apply")
	}
	switch st.kind {
	case stepLoadKV:
		s.count.kv++
		switch {
		case slices.Contains(s.kv, id):
			return fmt.Errorf("the chunk is in a slot already")
		case !usesKV[id]:
			return fmt.Errorf("the batch does not use the chunk")
		case usesKV[s.kv[st.slot]]:
			return fmt.Errorf("the slot holds a chunk that the batch uses")
		}
		s.kv[st.slot] = id
	case stepSave:
		s.count.saves++
		switch {
		case s.query[st.slot] != id:
			return fmt.Errorf("the slot holds %#x", s.query[st.slot])
		case usesQuery[id]:
			return fmt.Errorf("the batch uses the chunk")
		case s.leaving[st.slot]:
			return fmt.Errorf("the state was saved already")
		}
		s.leaving[st.slot], s.saved[id] = true, true
	case stepLoadQuery:
		s.count.query++
		was := s.query[st.slot]
		switch {
		case slices.Contains(s.query, id):
			return fmt.Errorf("the chunk is in a slot already")
		case !usesQuery[id]:
			return fmt.Errorf("the batch does not use the chunk")
		case was >= 0 && usesQuery[was]:
			return fmt.Errorf("the slot holds a chunk that the batch uses")
		case was >= 0 && !s.leaving[st.slot]:
			return fmt.Errorf("an unfinished chunk is lost")
		case s.done[id]:
			return fmt.Errorf("the chunk is finished")
		case st.fresh == s.begun[id]:
			return fmt.Errorf("begun is %v", s.begun[id])
		case !st.fresh && !s.saved[id]:
			return fmt.Errorf("the state was not saved")
		}
		delete(s.leaving, st.slot)
		delete(s.saved, id)
		s.query[st.slot], s.begun[id] = id, true
	case stepApply:
		*applied = true
		var work []chunkWork // as the schedule had it
		for _, w := range st.work {
			if got, want := s.query[w.slot], chunkID(st.group, w.chunk); got != want {
				return fmt.Errorf("query slot %d holds %#x, not %#x", w.slot, got, want)
			}
			back := chunkWork{query: w.chunk}
			for _, r := range w.refs {
				if got, want := s.kv[r.slot], chunkID(st.group, r.key); got != want {
					return fmt.Errorf("KV slot %d holds %#x, not %#x", r.slot, got, want)
				}
				back.refs = append(back.refs, r.keyRef)
			}
			work = append(work, back)
		}
		same := func(a, b chunkWork) bool { return a.query == b.query && slices.Equal(a.refs, b.refs) }
		want := slices.DeleteFunc(slices.Clone(b.work), func(w chunkWork) bool { return len(w.refs) == 0 }) // only to be finished
		if !slices.EqualFunc(work, want, same) {
			return fmt.Errorf("the schedule says %+v", b.work)
		}
	case stepFinish:
		switch {
		case s.query[st.slot] != id:
			return fmt.Errorf("the slot holds %#x", s.query[st.slot])
		case s.done[id]:
			return fmt.Errorf("the chunk is finished already")
		}
		s.query[st.slot], s.done[id] = -1, true
	}
	return nil
}

// checkSteps judges a whole sequence and returns what it moved.
func checkSteps(t testing.TB, s shape) loads {
	t.Helper()
	sched := s.schedule(t)
	seq := newSequencer(sched, s.query, s.kv, s.prefetch, sched.batches())
	defer seq.stop()
	sim := newSimulator(s.query, s.kv)
	n := 0
	for b := range sched.batches() {
		if len(b.work) > s.active.Query {
			t.Fatalf("%+v: batch %d has %d query chunks", s, n, len(b.work))
		}
		if err := sim.batch(b, seq.batch()); err != nil {
			t.Fatalf("%+v: batch %d: %v", s, n, err)
		}
		n++
	}
	if steps := seq.batch(); steps != nil {
		t.Fatalf("%+v: the sequencer goes on after the schedule: %+v", s, steps)
	}
	for id := range sim.begun {
		if !sim.done[id] {
			t.Fatalf("%+v: chunk %#x is never finished", s, id)
		}
	}
	if sim.count.saves != sim.count.query-len(sim.done) {
		t.Fatalf("%+v: %+v with %d chunks: every load of a query chunk but the first needs a save", s, sim.count, len(sim.done))
	}
	return sim.count
}

func TestSequencerInvariants(t *testing.T) {
	t.Parallel()
	n := uint64(800)
	if *long {
		n = 8000
	}
	for seed := range n {
		checkSteps(t, randomShape(rand.New(rand.NewPCG(seed, 4)), 400, 60))
	}
}

// The window is shorter than the schedule: bookings beyond it come later.
func TestSequencerLongWindow(t *testing.T) {
	for _, prefetch := range []int{0, 2} {
		checkSteps(t, shape{nq: 400, nk: 400, depth: 1, chunks: 133, heads: 2, active: Active{1, 1}, query: 3, kv: 9, prefetch: prefetch})
		checkSteps(t, shape{nq: 300, nk: 300, rowsQ: 150, rowsK: 200, heads: 1, active: Active{1, 2}, query: 2, kv: 20, prefetch: prefetch})
	}
}

// optimum is the least number of loads for a list of sets of chunks, each of
// which must be in the cache at once: all contents are tried.
func optimum(sets []uint32, slots int) int {
	cost := map[uint32]int{0: 0}
	for _, need := range sets {
		next := make(map[uint32]int)
		for have, n := range cost {
			n += bits.OnesCount32(need &^ have)
			optional := have &^ need
			for keep := optional; ; keep = (keep - 1) & optional {
				to := need | keep
				if bits.OnesCount32(to) <= slots {
					if old, ok := next[to]; !ok || n < old {
						next[to] = n
					}
				}
				if keep == 0 {
					break
				}
			}
		}
		cost = next
	}
	best := -1
	for _, n := range cost {
		if best < 0 || n < best {
			best = n
		}
	}
	return best
}

// Without prefetch no sequence of loads is shorter.
func TestSequencerOptimal(t *testing.T) {
	tried := 0
	for seed := uint64(0); tried < 400; seed++ {
		r := rand.New(rand.NewPCG(seed, 5))
		s := randomShape(r, 9, 40)
		if s.rowsQ > 9 || s.rowsK > 9 {
			continue
		}
		s.heads, s.prefetch = 1, 0
		var queries, keys []uint32
		for b := range s.schedule(t).batches() {
			var q, k uint32
			for _, w := range b.work {
				q |= 1 << w.query
				for _, ref := range w.refs {
					k |= 1 << ref.key
				}
			}
			queries, keys = append(queries, q), append(keys, k)
		}
		got := checkSteps(t, s)
		if want := optimum(keys, s.kv); got.kv != want {
			t.Fatalf("%+v: %d loads of key chunks, %d would do", s, got.kv, want)
		}
		if want := optimum(queries, s.query); got.query != want {
			t.Fatalf("%+v: %d loads of query chunks, %d would do", s, got.query, want)
		}
		tried++
	}
}

// overhead is how many more loads of each kind prefetch costs.
func overhead(t testing.TB, s shape) (kv, query float64) {
	s.prefetch = 0
	least := checkSteps(t, s)
	s.prefetch = defaultPrefetch
	got := checkSteps(t, s)
	return float64(got.kv) / float64(least.kv), float64(got.query) / float64(least.query)
}

// Prefetch keeps busy slots out of reach, and so costs some loads.
func TestPrefetchCost(t *testing.T) {
	for _, s := range []shape{
		{chunks: 57, depth: 1, active: Active{1, 1}, query: 2, kv: 2},
		{chunks: 57, depth: 1, active: Active{1, 1}, query: 3, kv: 11},
		{chunks: 57, depth: 1, active: Active{1, 2}, query: 2, kv: 3},
		{chunks: 57, depth: 1, active: Active{1, 4}, query: 2, kv: 5},
		{chunks: 57, depth: 1, active: Active{1, 8}, query: 2, kv: 9},
		{chunks: 57, depth: 1, active: Active{1, 8}, query: 2, kv: 13},
		{chunks: 57, depth: 1, active: Active{8, 8}, query: 9, kv: 9},
		{chunks: 7, depth: 1, active: Active{1, 3}, query: 2, kv: 4},
		{rowsQ: 40, rowsK: 64, active: Active{1, 1}, query: 1, kv: 2},
		{rowsQ: 40, rowsK: 64, active: Active{1, 2}, query: 2, kv: 4},
		{rowsQ: 40, rowsK: 64, active: Active{1, 2}, query: 2, kv: 12},
	} {
		for _, s.causal = range []attention.Causal{attention.NonCausal, attention.BottomRight} {
			s.nq, s.nk, s.heads = 400, 400, 1
			kv, query := overhead(t, s)
			t.Logf("chunks %d, rows %dx%d, active %+v of %d+%d slots, %v: key chunks x %.3f, query chunks x %.3f",
				s.chunks, s.rowsQ, s.rowsK, s.active, s.query, s.kv, s.causal, kv, query)
			if !(kv <= 1.3 && query <= 1.25) {
				t.Errorf("%+v: prefetch loads %.3f times the key chunks and %.3f times the query chunks", s, kv, query)
			}
		}
	}
}
