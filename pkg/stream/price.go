package stream

import (
	"fmt"
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

// sampleBatches is how many batches of one head group are walked to price a
// plan. Longer schedules are sampled in their middle, where the caches are warm
// and most states exist, and scaled.
const sampleBatches = 4096

// traffic fills in ChunkPairs, Traffic and StateDisk.
func (s *search) traffic(plan *Plan) {
	sched := newSchedule(plan)
	pairs := sched.chunkPairs()
	plan.ChunkPairs = pairs * float64(plan.Groups)
	c := newCounter(s, plan)
	whole := func(yield func(batch) bool) { // one head group; the others are like it
		_ = sched.blind(0, yield) && sched.subproblems(0, 0, sched.div.Len(), yield)
	}
	if pairs <= sampleBatches {
		c.walk(newSequencer(sched, plan.Geometry.QuerySlots, plan.Geometry.KVSlots, defaultPrefetch, whole, nil), 0)
	} else {
		c.sample(sched, pairs)
	}
	t := c.t
	for _, b := range []*int64{&t.In, &t.Out, &t.StateIn, &t.StateOut} {
		*b = scaled(*b, float64(plan.Problem.KVHeads())/float64(plan.Geometry.KVHeads))
	}
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

func scaled(n int64, f float64) int64 { return int64(math.Round(float64(n) * f)) }

// counter walks a sequencer and counts bytes and pairs, for one full head group.
type counter struct {
	t                 Traffic
	pairs             float64
	kvRow, qRow, sRow float64 // bytes per key, per query row, per saved row
	sched             *schedule
	plan              *Plan
}

func newCounter(s *search, plan *Plan) *counter {
	g := plan.Geometry
	es := float64(g.DType.Size())
	return &counter{
		sched: newSchedule(plan), plan: plan,
		kvRow: float64(g.KVHeads) * float64(g.D+g.Dv) * es,
		qRow:  float64(g.QueryHeads()) * float64(g.D) * es,
		sRow:  float64(s.dev.StateBytes(g)) / float64(g.QueryRows),
	}
}

// walk counts the steps of the sequencer after the first skip batches.
func (c *counter) walk(q *sequencer, skip int) {
	defer q.stop()
	for n := 0; ; n++ {
		steps := q.batch()
		if steps == nil {
			return
		}
		if n < skip {
			continue
		}
		for _, st := range steps {
			switch st.kind {
			case stepLoadKV:
				c.t.In += int64(c.kvRow * float64(c.sched.key.Len(st.chunk)))
			case stepLoadQuery:
				n := float64(c.sched.query.Len(st.chunk))
				c.t.In += int64(c.qRow * n)
				if !st.fresh {
					c.t.In += int64(c.sRow * n)
					c.t.StateIn += int64(c.sRow * n)
				}
			case stepSave:
				n := int64(c.sRow * float64(c.sched.query.Len(st.chunk)))
				c.t.Out += n
				c.t.StateOut += n
			case stepApply:
				for _, w := range st.work {
					c.pairs += float64(len(w.refs))
				}
			}
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
			n++
			return yield(b) && n < sampleBatches
		})
	}
	g := c.plan.Geometry
	known := func(int, int) bool { return true }
	if c.plan.Divide == divideRows {
		known = nil // a query chunk is finished before the next begins
	}
	c.walk(newSequencer(sched, g.QuerySlots, g.KVSlots, defaultPrefetch, middle, known), sampleBatches/4)
	f := pairs / c.pairs
	for _, b := range []*int64{&c.t.In, &c.t.Out, &c.t.StateIn, &c.t.StateOut} {
		*b = scaled(*b, f)
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
