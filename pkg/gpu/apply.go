//go:build cuda

package gpu

import (
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// mostPairs bounds the (row, key) pairs of a launch, over all heads, to a few tenths
// of a second: a launch can't be interrupted. One pair of chunks is never divided.
const mostPairs = 1 << 38

// apply is an Apply.
type apply struct {
	ev         *event
	after      []attention.Event
	work       []attention.Work
	start, end driver.Event
	pairs      float64
}

// launch submits applies to the GPU, in order.
func (s *session) launch() {
	var first time.Time
	for o := range s.applies {
		err := s.stopped()
		if err == nil {
			err = order(s.compute, o.after)
		}
		if err == nil {
			err = s.launchAll(o)
		}
		if err == nil {
			o.end, err = s.marks.record(s.compute)
		}
		if s.fail(err) != nil {
			o.ev.refuse(err)
			continue
		}
		if first.IsZero() {
			first = time.Now()
			s.d.book(func(st *attention.Stats) { st.First = first })
		}
		o.ev.submitted(o.end)
		s.applied <- o
	}
}

// launchAll launches the kernel for as many refs of every work at a time as fit into
// one upload, and into mostPairs.
func (s *session) launchAll(o *apply) (err error) {
	if o.start, err = s.marks.record(s.compute); err != nil {
		return err
	}
	longest := 0 // refs of a work
	for _, w := range o.work {
		longest = max(longest, len(w.Refs))
		for _, r := range w.Refs {
			o.pairs += pairs(s.query[w.Query], s.kvRows[r.Slot], r)
		}
	}
	n := s.l.refsOfLaunch()
	for at := 0; at < longest; at += n {
		if err := s.stopped(); err != nil {
			return err
		}
		if err := s.launchPart(o.work, at, n); err != nil {
			return err
		}
	}
	return nil
}

// refsOfLaunch is how many refs of every work one launch applies. Bits depend on it, and
// so it follows from the geometry.
func (l *layout) refsOfLaunch() int {
	g := l.geo
	column := float64(g.MostWorks()) * float64(g.QueryRows) * float64(g.QueryHeads()) * float64(g.KeyRows)
	return min(max(1, int(mostPairs/max(column, 1))), l.refs/g.MostWorks())
}

// launchPart launches refs [first, first+n) of every work.
func (s *session) launchPart(list []attention.Work, first, n int) error {
	works, refs := make([]work, 0, len(list)), make([]ref, 0, len(list)*n)
	heads := 0
	for _, w := range list {
		part := w.Refs[min(first, len(w.Refs)):min(first+n, len(w.Refs))]
		if len(part) == 0 {
			continue
		}
		q := s.query[w.Query]
		heads = q.heads // all of one head group
		works = append(works, work{Slot: int32(w.Query), Rows: int32(q.rows), First: int32(len(refs)), Count: int32(len(part))})
		for _, r := range part {
			refs = append(refs, ref{Slot: int32(r.Slot), Keys: int32(s.kvRows[r.Slot]), Offset: offsetOf(r)})
		}
	}
	head := batchHead{Works: int32(len(works)), Heads: int32(heads), Splits: int32(s.l.splits(heads)), Refs: int32(len(refs)), Counts: uint64(s.countsAt)}
	// The strides of partial states depend on how many there are.
	p := make([]byte, poolBytes)
	s.pool.PSplit = uint64(heads*len(works)) * s.pool.PHead
	copy(p, bytesOf([]pool{s.pool}))
	at, err := s.batches.send(s.upload, p, bytesOf([]batchHead{head}), bytesOf(works), bytesOf(refs))
	if err != nil {
		return err
	}
	arrived, err := s.marks.record(s.upload)
	if err != nil {
		return err
	}
	err = s.compute.Wait(arrived)
	s.marks.give(arrived)
	if err != nil {
		return err
	}
	args := []driver.Arg{driver.ArgPtr(at), driver.ArgPtr(at + driver.Ptr(poolBytes))}
	if err := s.kernel.Launch(s.compute, driver.Dim{X: s.l.units(heads) * len(works), Y: int(head.Splits)}, driver.Dim{X: int(s.kernel.Threads)}, int(s.kernel.Shared), args...); err != nil {
		return err
	}
	if head.Splits > 1 {
		merge := s.d.units.mergeOne
		if s.kernel.Two != 0 {
			merge = s.d.units.mergeTwo
		}
		grid := driver.Dim{X: min(ceilDiv(int(s.pool.Rows), 8), 1024), Y: heads * len(works)}
		if err := merge.Launch(s.compute, grid, driver.Dim{X: 256}, 0, args...); err != nil {
			return err
		}
	}
	if err := s.launchWide(args); err != nil {
		return err
	}
	return s.batches.sent(s.compute, &s.marks)
}

// The wide kernel: threads of a block, and rows and keys that a block holds.
const (
	wideThreads = 128
	wideRows    = 32
	wideKeys    = 8
)

// wideBlocks is how many blocks go through the tiles that are left to the wide kernel.
func wideBlocks(sms int) int { return 2 * sms }

// wideShared is the dynamic shared memory of the wide kernel; see wide.cu.
func (l *layout) wideShared() int {
	return 8 * ((wideRows+wideKeys)*(int(l.kernel.Features)+4) + wideKeys*(int(l.pool.Columns8)+2))
}

// launchWide launches the kernel for the tiles that the attention kernel left. Where
// there are none, its blocks end at once.
func (s *session) launchWide(args []driver.Arg) error {
	wide := s.d.units.wideOne
	if s.kernel.Two != 0 {
		wide = s.d.units.wideTwo
	}
	return wide.Launch(s.compute, driver.Dim{X: wideBlocks(s.l.sms)}, driver.Dim{X: wideThreads}, s.l.wideShared(), args...)
}

// offsetOf is the offset of a Ref: that of a full pair is beyond all keys.
func offsetOf(r attention.KVRef) int32 {
	if r.Kind == attention.Full {
		return 1 << 30
	}
	return int32(r.Offset)
}

// pairs counts what a ref makes each of a query slot's heads do.
func pairs(q loadedQuery, keys int, r attention.KVRef) float64 {
	p := attention.Problem{Causal: attention.TopLeft}
	if r.Kind == attention.Full {
		p.Causal = attention.NonCausal
	}
	return p.PairsIn(r.Offset, r.Offset+q.rows, 0, keys) * float64(q.heads)
}

// completeApplies waits for applies on the GPU.
func (s *session) completeApplies() {
	for o := range s.applied {
		err := s.fail(o.end.Synchronize())
		if err == nil {
			t, e := o.end.Since(o.start)
			if err = s.fail(e); err == nil {
				s.d.book(func(st *attention.Stats) {
					st.ApplySeconds += t.Seconds()
					st.Batches++
					st.Pairs += o.pairs
				})
			}
		}
		s.marks.give(o.ev.complete(err), o.start)
	}
}
