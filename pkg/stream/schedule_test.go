package stream

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

var long = flag.Bool("long", false, "run the slow tests too")

// shape is a schedule to test and the slots to run it in.
type shape struct {
	nq, nk    int
	causal    attention.Causal
	depth     int // of cqs; 0 means rows
	chunks    int // of cqs, at depth 1
	rowsQ     int // query chunks of rows
	rowsK     int // key chunks of rows
	heads     int // KV heads, one in each head group
	active    Active
	query, kv int // slots
	prefetch  int
}

// schedule makes the schedule without the planner.
func (s shape) schedule(t testing.TB) *schedule {
	t.Helper()
	p := &Plan{
		Problem: attention.Problem{
			B: 1, Hq: s.heads, Hkv: s.heads, Nq: s.nq, Nk: s.nk, D: 1, Dv: 1, Causal: s.causal,
			DType: attention.F32, OutDType: attention.F32, Layout: attention.BHND, Scale: 1,
		},
		Groups: s.heads, Active: s.active, Geometry: attention.Geometry{KVHeads: 1},
	}
	var err error
	queries, keys := s.rowsQ, s.rowsK
	if s.depth == 0 {
		p.division, err = divide.Rows(queries, keys)
	} else {
		var set divide.InterestSet
		if set, err = divide.Cover(s.chunks); err == nil {
			p.division, err = divide.CQS(set, s.depth)
		}
		queries = power(s.chunks, s.depth)
		keys = queries
	}
	if err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	p.QueryAxis, p.KeyAxis = divide.Axis{N: s.nq, Chunks: queries}, divide.Axis{N: s.nk, Chunks: keys}
	return newSchedule(p)
}

func power(c, depth int) int {
	n := 1
	for range depth {
		n *= c
	}
	return n
}

// sees is the mask, from its definition.
func (s shape) sees(query, key int) bool {
	switch s.causal {
	case attention.TopLeft:
		return key <= query
	case attention.BottomRight:
		return s.nq-1-query <= s.nk-1-key // the last query sees the last key
	}
	return true
}

// starts is where each chunk begins, from the definition: the first n mod chunks
// of them have one token more.
func starts(n, chunks int) []int {
	at := make([]int, chunks+1)
	for i := range chunks {
		at[i+1] = at[i] + n/chunks
		if i < n%chunks {
			at[i+1]++
		}
	}
	return at
}

// checkTokens runs the schedule through its sequencer and counts every pair of
// tokens that a step applies.
func checkTokens(t testing.TB, s shape) {
	t.Helper()
	sched := s.schedule(t)
	q, k := starts(s.nq, sched.query.Chunks), starts(s.nk, sched.key.Chunks)
	for g, steps := range play(t, s, sched) {
		seen := make([]uint8, s.nq*s.nk)
		finished := make([]int, sched.query.Chunks)
		for _, st := range steps {
			if st.kind == stepFinish {
				finished[st.chunk]++
				continue
			}
			for _, w := range st.work {
				if finished[w.chunk] > 0 {
					t.Fatalf("%+v: group %d: query chunk %d is finished before its last pair", s, g, w.chunk)
				}
				for _, ref := range w.refs {
					if ref.kind == attention.Empty {
						t.Fatalf("%+v: pair (%d,%d) is no work", s, w.chunk, ref.key)
					}
					for i := range q[w.chunk+1] - q[w.chunk] {
						for j := range k[ref.key+1] - k[ref.key] {
							if ref.kind == attention.Full || ref.kind == attention.Diagonal && j <= i || ref.kind == attention.Partial && j <= i+ref.offset {
								seen[(q[w.chunk]+i)*s.nk+k[ref.key]+j]++
							}
						}
					}
				}
			}
		}
		for i := range s.nq {
			for j := range s.nk {
				want := uint8(0)
				if s.sees(i, j) {
					want = 1
				}
				if got := seen[i*s.nk+j]; got != want {
					t.Fatalf("%+v: group %d: query %d meets key %d %d times, want %d", s, g, i, j, got, want)
				}
			}
		}
		checkFinished(t, s, q, finished)
	}
}

func checkFinished(t testing.TB, s shape, q, finished []int) {
	t.Helper()
	for x, n := range finished {
		want := 0
		if q[x+1] > q[x] {
			want = 1
		}
		if n != want {
			t.Fatalf("%+v: query chunk %d is finished %d times, want %d", s, x, n, want)
		}
	}
}

// checkChunks is checkTokens at the level of chunks, for large divisions.
func checkChunks(t testing.TB, s shape) {
	t.Helper()
	sched := s.schedule(t)
	q, k := starts(s.nq, sched.query.Chunks), starts(s.nk, sched.key.Chunks)
	keys := sched.key.Chunks
	for g, steps := range play(t, s, sched) {
		seen := make([]uint8, sched.query.Chunks*keys)
		finished := make([]int, sched.query.Chunks)
		for _, st := range steps {
			if st.kind == stepFinish {
				finished[st.chunk]++
			}
			for _, w := range st.work {
				if finished[w.chunk] > 0 {
					t.Fatalf("%+v: group %d: query chunk %d is finished before its last pair", s, g, w.chunk)
				}
				for _, ref := range w.refs {
					seen[w.chunk*keys+ref.key]++
				}
			}
		}
		for x := range sched.query.Chunks {
			for y := range keys {
				want := uint8(0)
				if q[x] < q[x+1] && k[y] < k[y+1] && s.sees(q[x+1]-1, k[y]) {
					want = 1
				}
				if got := seen[x*keys+y]; got != want {
					t.Fatalf("%+v: group %d: pair (%d,%d) occurs %d times, want %d", s, g, x, y, got, want)
				}
			}
		}
		checkFinished(t, s, q, finished)
	}
}

// play collects the applies and finishes of each head group.
func play(t testing.TB, s shape, sched *schedule) [][]step {
	t.Helper()
	seq := newSequencer(sched, s.query, s.kv, s.prefetch, sched.batches())
	defer seq.stop()
	groups := make([][]step, s.heads)
	last := 0
	for steps := seq.batch(); steps != nil; steps = seq.batch() {
		for _, st := range steps {
			if st.kind != stepApply && st.kind != stepFinish {
				continue
			}
			if st.group < last {
				t.Fatalf("%+v: group %d comes after group %d", s, st.group, last)
			}
			last = st.group
			st.work = slices.Clone(st.work)
			for i := range st.work {
				st.work[i].refs = slices.Clone(st.work[i].refs)
			}
			groups[st.group] = append(groups[st.group], st)
		}
	}
	return groups
}

// lengths are lengths of an axis of c chunks that are easily got wrong.
func lengths(c int) []int { return []int{1, max(1, c-1), c, c + 1, 2*c + 3} }

func randomShape(r *rand.Rand, atoms, tokens int) shape {
	s := shape{heads: 1 + r.IntN(2), causal: attention.Causal(r.IntN(3)), prefetch: r.IntN(4)}
	count := func() int {
		switch r.IntN(3) {
		case 0:
			return 1 + r.IntN(tokens)
		case 1:
			return []int{2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47}[r.IntN(15)]
		}
		return lengths(1 + r.IntN(20))[r.IntN(5)]
	}
	s.nq, s.nk = count(), count()
	if r.IntN(2) == 0 {
		s.nk = s.nq
	}
	if r.IntN(3) == 0 {
		s.rowsQ, s.rowsK = 1+r.IntN(30), 1+r.IntN(30)
	} else {
		for s.chunks == 0 || power(s.chunks, s.depth) > atoms {
			s.depth = 1 + r.IntN(3)
			s.chunks, _ = divide.NextUsable(1 + r.IntN(40))
		}
	}
	s.active = Active{Query: 1 + r.IntN(5), KV: 1 + r.IntN(6)}
	s.query, s.kv = s.active.Query+r.IntN(4), s.active.KV+r.IntN(4)
	return s
}

func TestScheduleExhaustive(t *testing.T) {
	t.Parallel()
	for c := 1; c <= 40; c++ {
		if !divide.Usable(c) {
			continue
		}
		for depth := 1; depth <= 3 && (depth == 1 || power(c, depth) <= 64); depth++ {
			atoms := power(c, depth)
			for i, nq := range lengths(atoms) {
				for j, nk := range lengths(atoms) {
					if !*long && atoms > 8 && (i+j+c)%5 > 0 {
						continue
					}
					for causal := attention.NonCausal; causal <= attention.BottomRight; causal++ {
						for _, a := range []Active{{1, 1}, {2, 3}, {100, 100}} {
							checkTokens(t, shape{nq: nq, nk: nk, causal: causal, depth: depth, chunks: c, heads: 1, active: a, query: a.Query, kv: a.KV + 1})
						}
					}
				}
			}
		}
	}
}

func TestScheduleRandom(t *testing.T) {
	t.Parallel()
	n := uint64(1000)
	if *long {
		n = 5000
	}
	for seed := range n {
		checkTokens(t, randomShape(rand.New(rand.NewPCG(seed, 1)), 400, 90))
	}
}

func TestScheduleLarge(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for c := 41; c <= 200; c++ {
		if !divide.Usable(c) || !*long && r.IntN(8) > 0 {
			continue
		}
		for causal := attention.NonCausal; causal <= attention.BottomRight; causal++ {
			n := lengths(c)
			s := shape{nq: n[r.IntN(5)], nk: n[r.IntN(5)] + r.IntN(5*c), causal: causal, depth: 1, chunks: c, heads: 1, active: Active{1 + r.IntN(20), 1 + r.IntN(20)}}
			s.query, s.kv = s.active.Query+r.IntN(3), s.active.KV+r.IntN(3)
			checkChunks(t, s)
			s.depth, s.rowsQ, s.rowsK = 0, c, 1+r.IntN(c)
			checkChunks(t, s)
		}
	}
}

func FuzzSchedule(f *testing.F) {
	f.Add(uint64(1), uint16(13), uint16(12), uint8(13), uint8(1), uint8(2), uint8(2), uint8(3))
	f.Add(uint64(2), uint16(1), uint16(60), uint8(6), uint8(2), uint8(1), uint8(1), uint8(1))
	f.Add(uint64(3), uint16(40), uint16(7), uint8(9), uint8(0), uint8(2), uint8(3), uint8(4))
	f.Fuzz(func(t *testing.T, seed uint64, nq, nk uint16, c, depth, causal, query, kv uint8) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := shape{
			nq: 1 + int(nq)%200, nk: 1 + int(nk)%200, causal: attention.Causal(causal % 3),
			depth: int(depth % 4), heads: 1 + r.IntN(2),
			active: Active{1 + int(query)%40, 1 + int(kv)%40}, prefetch: r.IntN(5),
		}
		if s.depth == 0 {
			s.rowsQ, s.rowsK = 1+int(c), 1+r.IntN(64)
		} else {
			s.chunks, _ = divide.NextUsable(1 + int(c)%64)
			for power(s.chunks, s.depth) > 600 {
				s.depth--
			}
		}
		s.query, s.kv = s.active.Query+r.IntN(4), s.active.KV+r.IntN(4)
		checkTokens(t, s)
		checkSteps(t, s)
	})
}
