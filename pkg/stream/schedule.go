package stream

import (
	"iter"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// batch is what one launch applies: some query chunks of one head group, each
// with an ordered list of key chunks.
type batch struct {
	group int // head group
	work  []chunkWork
}

type chunkWork struct {
	query int
	refs  []keyRef // none: the chunk's rows see no key, it only needs finishing
}

type keyRef struct {
	key    int
	kind   attention.MaskKind
	offset int
}

// schedule is the ordered work of a plan.
type schedule struct {
	problem attention.Problem
	div     *divide.Division
	query   divide.Axis
	key     divide.Axis
	groups  int
	heads   func(group int) int // KV heads of a head group
	active  Active

	shard, shards int // the part of all that this schedule is; 0 of 1 is all
}

func newSchedule(p *Plan) *schedule {
	return &schedule{problem: p.Problem, div: p.division, query: p.QueryAxis, key: p.KeyAxis, groups: p.Groups, heads: p.headsOf, active: p.Active, shards: 1}
}

// mine says whether query chunk x of head group g is this shard's. Shards share out
// head groups or, in the rows division, query chunks, in turn, so that under a causal
// mask they have as much to do. No state belongs to two, and the order of a chunk's
// pairs does not depend on the number of shards: nor do bits.
func (s *schedule) mine(g, x int) bool {
	part := g
	if s.div.Kind() == divideRows {
		part = g*s.query.Chunks + x
	}
	return part%s.shards == s.shard
}

// pairsOf is the number of key chunks that query chunk x meets: those that its
// last row sees a part of. They are the first ones.
func (s *schedule) pairsOf(x int) int {
	lo, hi := s.query.Range(x)
	if lo == hi {
		return 0
	}
	seen := s.problem.Visible(hi - 1)
	if seen == 0 {
		return 0
	}
	return s.key.Find(seen-1) + 1
}

// divided says whether pairs of one query chunk are in several batches, so that a
// checkpoint between them has to save its state. Where it can't be told cheaply, they are.
func (s *schedule) divided() bool {
	most := s.pairsOf(s.query.Find(s.query.N - 1)) // the last sees all that any sees
	if s.div.Kind() == divideRows {
		return most > s.active.KV
	}
	return most > 1
}

// chunkPairs is the number of pairs of one head group that are work.
func (s *schedule) chunkPairs() float64 {
	chunks := min(s.query.Chunks, s.query.N) // chunks that are not empty
	if s.problem.Causal == attention.NonCausal {
		return float64(chunks) * float64(s.pairsOf(0))
	}
	// Exact up to some size; beyond it, an even sample is as good to a planner.
	step := 1 + chunks/(1<<14)
	var n float64
	for x := 0; x < chunks; x += step {
		n += float64(s.pairsOf(x)) * float64(min(step, chunks-x))
	}
	return n
}

// emptyRows is the number of rows at the start of query chunk x that see no key.
func (s *schedule) emptyRows(x int) int {
	lo, hi := s.query.Range(x)
	if s.problem.Causal == attention.NonCausal {
		return 0
	}
	return min(max(-s.problem.Shift()-lo, 0), hi-lo)
}

// batches yields the whole schedule: head group by head group, subproblem by
// subproblem. The batches are fresh: the receiver may keep them.
func (s *schedule) batches() iter.Seq[batch] {
	return func(yield func(batch) bool) {
		for g := range s.groups {
			if !s.blind(g, yield) || !s.subproblems(g, 0, s.div.Len(), yield) {
				return
			}
		}
	}
}

// blind yields the query chunks none of whose rows sees a key: no pair would
// ever touch them, and their output must still be written. They are the first.
func (s *schedule) blind(g int, yield func(batch) bool) bool {
	for x := range s.blindChunks() {
		if s.mine(g, x) && !yield(batch{group: g, work: []chunkWork{{query: x}}}) {
			return false
		}
	}
	return true
}

// blindChunks is the number of query chunks none of whose rows sees a key.
func (s *schedule) blindChunks() int {
	if s.problem.Causal == attention.NonCausal {
		return 0
	}
	rows := min(max(-s.problem.Shift(), 0), s.query.N) // that see no key
	if rows == s.query.N {
		return min(s.query.Chunks, s.query.N)
	}
	return s.query.Find(rows) // the chunk of the first row that sees one
}

// subproblems yields subproblems [from,to) of head group g.
func (s *schedule) subproblems(g, from, to int, yield func(batch) bool) bool {
	var sub divide.Subproblem
	for i := from; i < to; i++ {
		if !s.mine(g, i) {
			continue
		}
		if s.div.Kind() == divideRows {
			if !s.row(g, i, yield) {
				return false
			}
			continue
		}
		s.div.Subproblem(i, &sub)
		if !s.blocks(g, &sub, yield) {
			return false
		}
	}
	return true
}

// row yields subproblem x of the rows division, block by block: millions of key
// chunks are not listed first. Every other row walks its keys backwards, to
// begin with those that the last one left in their slots.
func (s *schedule) row(g, x int, yield func(batch) bool) bool {
	q0, q1 := s.query.Range(x)
	n := s.pairsOf(x)
	for at := 0; at < n; at += s.active.KV {
		w := chunkWork{query: x, refs: make([]keyRef, 0, min(s.active.KV, n-at))}
		for i := at; i < min(at+s.active.KV, n); i++ {
			key := i
			if x%2 == 1 {
				key = n - 1 - i
			}
			k0, k1 := s.key.Range(key)
			kind, offset := s.problem.Mask(q0, q1, k0, k1)
			if kind != attention.Empty {
				w.refs = append(w.refs, keyRef{key: key, kind: kind, offset: offset})
			}
		}
		if !yield(batch{group: g, work: []chunkWork{w}}) {
			return false
		}
	}
	return true
}

// blocks cuts a subproblem into batches of at most active.Query query chunks
// by active.KV key chunks. Query blocks are outermost, so that a state stays in
// its slot until the subproblem is through with it; every other one walks its
// keys backwards, to begin with those that the last one left in their slots.
func (s *schedule) blocks(g int, sub *divide.Subproblem, yield func(batch) bool) bool {
	rows := s.rows(sub)
	for n := 0; len(rows) > 0; n++ {
		block := rows[:min(s.active.Query, len(rows))]
		rows = rows[len(block):]
		keys := unionKeys(block)
		backwards := (sub.Index+n)%2 == 1
		for len(keys) > 0 {
			k := min(s.active.KV, len(keys))
			var part []int
			if backwards {
				part, keys = keys[len(keys)-k:], keys[:len(keys)-k]
			} else {
				part, keys = keys[:k], keys[k:]
			}
			if b := (batch{group: g, work: cut(block, part, backwards)}); len(b.work) > 0 && !yield(b) {
				return false
			}
		}
	}
	return true
}

// rows groups a subproblem's pairs, which come sorted by query chunk and then by
// key chunk, and drops those that the mask or an empty chunk leaves without work.
func (s *schedule) rows(sub *divide.Subproblem) []chunkWork {
	var rows []chunkWork
	refs := make([]keyRef, 0, len(sub.Pairs)) // of all rows, one after the other
	for _, p := range sub.Pairs {
		q0, q1 := s.query.Range(p.Query)
		k0, k1 := s.key.Range(p.Key)
		kind, offset := s.problem.Mask(q0, q1, k0, k1)
		if kind == attention.Empty {
			continue
		}
		if len(rows) == 0 || rows[len(rows)-1].query != p.Query {
			rows = append(rows, chunkWork{query: p.Query})
		}
		refs = append(refs, keyRef{key: p.Key, kind: kind, offset: offset})
		row := &rows[len(rows)-1]
		row.refs = refs[len(refs)-len(row.refs)-1:]
	}
	return rows
}
