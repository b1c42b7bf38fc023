package stream

import (
	"context"
	"iter"
	"sync/atomic"
)

// position is how far a query chunk is in its part of the schedule.
type position struct {
	pairs int // chunk pairs in its state
	done  bool
}

// found is what a shard has of an earlier process.
type found struct {
	at    map[int64]position
	facts []record // that hold, one for each chunk
	least float64  // (query row, key) pairs in them, over all heads, at least
	loose []record // of these, those that no checkpoint came after

	damaged int // chunks of which what a checkpoint had made safe does not hold
	newer   int // of which something told after that does not
}

// examine checks what a journal tells of this shard against its checksums, and finds the
// newest that holds of each query chunk: a chunk of which nothing does begins anew. It
// ends early with ctx's cause.
func (r *runner) examine(ctx context.Context, l *Log) (*found, error) {
	f := &found{at: make(map[int64]position)}
	places := make(map[int64]version)
	err := r.examiner().examine(ctx, l, r.shard, func(c finding) {
		if c.broken != nil {
			f.damaged++
		}
		if c.newer {
			f.newer++
		}
		x := c.holds
		if x == nil {
			return
		}
		f.facts = append(f.facts, *x)
		if !c.safe {
			f.loose = append(f.loose, *x)
		}
		at := position{int(x.pairs), x.kind == kindDone}
		f.at[c.id] = at
		f.least += r.sched.leastIn(int(x.group), int(x.chunk), at)
		if x.kind == kindState {
			places[c.id] = version{int64(x.place), int(x.pairs)}
			r.store.knows(*x)
		}
	})
	if err != nil {
		return nil, err
	}
	r.store.settle(places)
	return f, nil
}

// examiner is one of this shard's store and outputs.
func (r *runner) examiner() *examiner {
	e := &examiner{plan: r.plan, sched: r.sched, out: r.views, place: r.store.slotBytes}
	if r.store.file != nil {
		e.states = r.store.file
	}
	return e
}

// renew writes again, as it is, what was found and may not be on the disk. A sync that
// failed leaves it in memory, taken for clean: it is read as it should be, and the next
// sync succeeds, having nothing to do.
func (r *runner) renew() error {
	for _, x := range r.found.loose {
		if x.kind == kindState {
			if err := r.store.rewrite(int64(x.place), x.bytes); err != nil {
				return err
			}
			continue
		}
		out, lse := r.views.results(r.plan, int(x.group), int(x.chunk))
		if err := eachPart(r.opt.disk.rewrite, out, lse); err != nil {
			return r.explain(context.Background(), err)
		}
	}
	return nil
}

// rest leaves out of a schedule what query chunks have already. skipped counts the
// (query row, key) pairs left out, over all heads.
func (s *schedule) rest(from iter.Seq[batch], at map[int64]position, skipped func(float64)) iter.Seq[batch] {
	if len(at) == 0 {
		return from
	}
	return func(yield func(batch) bool) {
		seen := make(map[int64]int) // chunk pairs of the schedule so far
		for b := range from {
			work := b.work[:0:0]
			for _, w := range b.work {
				id := chunkID(b.group, w.query)
				p, begun := at[id]
				if !begun {
					work = append(work, w)
					continue
				}
				before := seen[id]
				seen[id] += len(w.refs)
				skip := len(w.refs)
				if !p.done {
					skip = min(max(p.pairs-before, 0), len(w.refs))
				}
				skipped(s.pairsIn(b.group, w.query, w.refs[:skip]))
				w.refs = w.refs[skip:]
				// All of its pairs are in, and its results are not out.
				last := !p.done && p.pairs == seen[id] && p.pairs == s.pairsOf(w.query)
				if len(w.refs) > 0 || last {
					work = append(work, w)
				}
			}
			if len(work) > 0 && !yield(batch{b.group, work}) {
				return
			}
		}
	}
}

// pairsIn counts (query row, key) pairs, over the heads of a group.
func (s *schedule) pairsIn(group, x int, refs []keyRef) (n float64) {
	q0, q1 := s.query.Range(x)
	for _, r := range refs {
		k0, k1 := s.key.Range(r.key)
		n += s.problem.PairsIn(q0, q1, k0, k1)
	}
	return n * float64(s.heads(group)*s.problem.Group())
}

// leastIn is a number of (query row, key) pairs, over the heads of a group, that a query
// chunk has at least which is that far. How many it has, only the schedule knows, which
// has the order of its chunk pairs: all that are left are taken to be as large as any.
func (s *schedule) leastIn(group, x int, p position) float64 {
	lo, hi := s.query.Range(x)
	n := s.problem.PairsIn(lo, hi, 0, s.key.N)
	if !p.done {
		left := s.pairsOf(x) - p.pairs
		n = max(0, n-float64(left)*float64(hi-lo)*float64(s.key.Longest()))
	}
	return n * float64(s.heads(group)*s.problem.Group())
}

// work counts pairs that are done, by this process and before.
type work struct {
	devs    []Device
	skipped atomic.Uint64 // whole pairs that the schedule has left out so far
	least   atomic.Uint64 // likewise, that it will have left out in the end
}

func (w *work) skip(n float64) { w.skipped.Add(uint64(n)) }

// before is what an earlier process had done: from the start nearly all of it, at the end
// all.
func (w *work) before() float64 { return float64(max(w.skipped.Load(), w.least.Load())) }

func (w *work) pairs() float64 {
	n := w.before()
	for _, d := range w.devs {
		n += d.Stats().Pairs
	}
	return n
}
