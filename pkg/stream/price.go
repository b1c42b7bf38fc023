package stream

import (
	"fmt"
	"iter"
	"math"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// price completes a candidate: it runs the candidate's sequencer without I/O to
// count what would move, and predicts seconds from the device's rates.
func (s *search) price(c candidate) (*Plan, error) {
	p := s.req.Problem
	g := s.geometry(c)
	plan := &Plan{
		Problem: p, Device: s.dev.Name(), Budget: s.req.Budget,
		Divide: c.kind, Set: c.set, Depth: 1,
		Groups:    (p.KVHeads() + c.heads - 1) / c.heads,
		Geometry:  g,
		Active:    Active{Query: min(c.slots.query, g.QuerySlots), KV: min(c.slots.kv, g.KVSlots)},
		QueryAxis: divide.Axis{N: p.Nq, Chunks: c.queryChunks}, KeyAxis: divide.Axis{N: p.Nk, Chunks: c.keyChunks},
		Memory: s.dev.Footprint(g), FLOPs: p.FLOPs(),
		OutputBytes: tensorBytes(p.B, p.Hq, p.Nq, p.Dv, p.OutDType),
	}
	if s.req.LSE {
		plan.LSEBytes = tensorBytes(p.B, p.Hq, p.Nq, 1, attention.F32)
	}
	var err error
	if c.kind == divideCQS {
		plan.Depth = s.req.Depth
		plan.division, err = divide.CQS(c.set, s.req.Depth)
	} else {
		plan.division, err = divide.Rows(c.queryChunks, c.keyChunks)
	}
	if err != nil {
		return nil, fmt.Errorf("divide into %d by %d chunks: %w", c.queryChunks, c.keyChunks, err)
	}
	plan.Subproblems = plan.division.Len()
	s.traffic(plan)
	s.seconds(plan, c)
	return plan, nil
}

func tensorBytes(b, h, n, d int, t attention.DType) int64 {
	return int64(b) * int64(h) * int64(n) * int64(d) * int64(t.Size())
}

// samplePairs is how many chunk pairs are walked to price a plan. Longer
// schedules are sampled in their middle, where the caches are warm and most
// states exist, and scaled.
const samplePairs = 1 << 13

// traffic fills in ChunkPairs, Traffic and StateDisk.
func (s *search) traffic(plan *Plan) {
	sched := newSchedule(plan)
	pairs := sched.chunkPairs()
	plan.ChunkPairs = pairs * float64(plan.Groups)
	c := newCounter(s, plan)
	g := plan.Geometry
	walk := func(from iter.Seq[batch]) {
		c.walk(newSequencer(sched, g.QuerySlots, g.KVSlots, defaultPrefetch, from, nil), 0)
	}
	groups := float64(plan.Problem.KVHeads()) / float64(g.KVHeads)
	switch {
	case plan.ChunkPairs <= samplePairs:
		walk(sched.batches())
	case pairs <= samplePairs: // one head group stands for all
		walk(func(yield func(batch) bool) {
			_ = sched.blind(0, yield) && sched.subproblems(0, 0, sched.div.Len(), yield)
		})
		c.scale(groups)
	default:
		c.sample(sched, pairs)
		c.scale(groups)
	}
	t := c.t
	t.Out += plan.OutputBytes + plan.LSEBytes
	p := plan.Problem
	inputs := tensorBytes(p.B, p.Hq, p.Nq, p.D, p.DType) + tensorBytes(p.B, p.Hkv, p.Nk, p.D+p.Dv, p.DType)
	t.Disk = inputs
	if inputs > s.req.Host.Cache {
		t.Disk = max(inputs, t.In-t.StateIn)
	}
	plan.Traffic = t
	if t.StateOut > 0 {
		plan.StateDisk = 2 * int64(plan.QueryAxis.Chunks) * s.dev.StateBytes(plan.Geometry)
	}
}

// counter walks a sequencer and counts bytes and pairs.
type counter struct {
	t                 Traffic
	pairs             float64
	kvRow, qRow, sRow int64 // bytes per KV head: of a key, a query row, a saved row
	sched             *schedule
	plan              *Plan
}

func newCounter(s *search, plan *Plan) *counter {
	g := plan.Geometry
	es := int64(g.DType.Size())
	return &counter{
		sched: newSchedule(plan), plan: plan,
		kvRow: int64(g.D+g.Dv) * es,
		qRow:  int64(g.Group*g.D) * es,
		sRow:  s.dev.StateBytes(g) / int64(g.QueryRows*g.KVHeads),
	}
}

// walk counts the steps of the sequencer, after those of the first skip pairs.
func (c *counter) walk(q *sequencer, skip int) {
	defer q.stop()
	for {
		steps := q.batch()
		if steps == nil {
			return
		}
		if skip > 0 {
			for _, st := range steps {
				for _, w := range st.work {
					skip -= len(w.refs)
				}
			}
			continue
		}
		for _, st := range steps {
			c.count(st)
		}
	}
}

func (c *counter) count(st step) {
	heads := int64(c.plan.headsOf(st.group))
	rows := func() int64 { return heads * int64(c.sched.query.Len(st.chunk)) }
	switch st.kind {
	case stepLoadKV:
		c.t.In += heads * c.kvRow * int64(c.sched.key.Len(st.chunk))
	case stepLoadQuery:
		c.t.In += c.qRow * rows()
		if !st.fresh {
			c.t.In += c.sRow * rows()
			c.t.StateIn += c.sRow * rows()
		}
	case stepSave:
		c.t.Out += c.sRow * rows()
		c.t.StateOut += c.sRow * rows()
	case stepApply:
		for _, w := range st.work {
			c.pairs += float64(len(w.refs))
		}
	}
}

// sample walks a stretch in the middle of the schedule and scales it up by
// chunk pairs. A first part only warms the caches.
func (c *counter) sample(sched *schedule, pairs float64) {
	from := sched.div.Len() / 2
	middle := func(yield func(batch) bool) {
		n := 0
		sched.subproblems(0, from, sched.div.Len(), func(b batch) bool {
			for _, w := range b.work {
				n += len(w.refs)
			}
			return yield(b) && n < samplePairs
		})
	}
	known := func(int, int) bool { return true }
	if c.plan.Divide == divideRows {
		known = nil // a query chunk is finished before the next begins
	}
	g := c.plan.Geometry
	c.walk(newSequencer(sched, g.QuerySlots, g.KVSlots, defaultPrefetch, middle, known), samplePairs/4)
	c.scale(pairs / c.pairs)
}

// scale extrapolates from what was walked.
func (c *counter) scale(f float64) {
	for _, b := range []*int64{&c.t.In, &c.t.Out, &c.t.StateIn, &c.t.StateOut} {
		*b = int64(math.Round(float64(*b) * f))
	}
	c.t.Sampled = true
}

// seconds predicts time per link and in all. Links that overlap cost the
// slowest of them; what cannot overlap, and what transfers take from the
// kernel's own cores, is added.
func (s *search) seconds(plan *Plan, c candidate) {
	r := s.dev.Rates(plan.Geometry)
	t := plan.Traffic
	batches := plan.ChunkPairs / float64(plan.Active.Query*plan.Active.KV)
	sec := Prediction{
		Kernel: plan.FLOPs/r.FLOPS + batches*r.Launch,
		In:     float64(t.In) / r.In,
		Out:    float64(t.Out) / r.Out,
		Disk:   float64(t.Disk) / s.req.Host.Disk,
	}
	sec.Kernel += r.Shared * (sec.In + sec.Out)
	sec.Bound = "kernel"
	longest := sec.Kernel
	for _, l := range []struct {
		name string
		t    float64
	}{{"disk", sec.Disk}, {"host_to_device", sec.In}, {"device_to_host", sec.Out}} {
		if l.t > longest {
			longest, sec.Bound = l.t, l.name
		}
	}
	overlap := c.slots.queryAhead > 0 && c.slots.kvAhead > 0
	if overlap || plan.ChunkPairs == 1 {
		// The first chunks come in before, and the last go out after, anything
		// else happens.
		fill := (float64(t.In)/r.In + sec.Disk) / max(plan.ChunkPairs, 1)
		sec.Total = longest + fill
	} else {
		sec.Total = longest + (1-r.Shared)*(sec.In+sec.Out)
		if longest != sec.Disk {
			sec.Total += sec.Disk
		}
	}
	plan.Seconds = sec
}
