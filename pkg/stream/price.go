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
	r := s.dev.Rates(g)
	plan.cost = s.predict(plan, c, r).Total
	if r.Speed > 0 {
		r.FLOPS, r.In, r.Out, r.Launch = r.FLOPS*r.Speed, r.In*r.Speed, r.Out*r.Speed, r.Launch/r.Speed
	}
	plan.Seconds = s.predict(plan, c, r)
	return plan, nil
}

func tensorBytes(b, h, n, d int, t attention.DType) int64 {
	return int64(b) * int64(h) * int64(n) * int64(d) * int64(t.Size())
}

// A schedule of up to this many pairs is walked whole to price a plan. Of a
// longer one only a stretch of as many pairs is walked, and scaled. Rows are
// regular: a short stretch tells as much.
const (
	walkCQS  = 1 << 14
	walkRows = 1 << 11
)

// traffic fills in ChunkPairs, Traffic and StateDisk.
func (s *search) traffic(plan *Plan) {
	sched := newSchedule(plan)
	pairs := sched.chunkPairs()
	plan.ChunkPairs = pairs * float64(plan.Groups)
	c := &counter{sched: sched, plan: plan, spare: &s.spare}
	p, g := plan.Problem, plan.Geometry
	limit := float64(walkCQS)
	if plan.Divide == divideRows {
		limit = walkRows
	}
	groups := float64(p.KVHeads()) / float64(g.KVHeads)
	rows := float64(p.KVHeads()) * float64(p.Nq) // of all query chunks, counted per KV head
	t := &plan.Traffic
	switch {
	case plan.ChunkPairs <= limit:
		c.walk(sched.batches(), 0, math.Inf(1))
	case pairs <= limit: // one head group stands for all
		c.walk(func(yield func(batch) bool) {
			_ = sched.blind(0, yield) && sched.subproblems(0, 0, sched.div.Len(), yield)
		}, 0, math.Inf(1))
		c.scale(groups)
		t.Sampled = true
	default:
		c.sample(pairs, limit)
		c.scale(groups)
		t.Sampled = true
		c.query = max(c.query, rows)
		if plan.Divide == divideRows {
			c.query = rows // a query chunk is finished before the next begins
		}
	}
	// A query chunk has no state when it is loaded first, and needs none saved
	// when it leaves last; every other time it has.
	perHead := float64(g.QueryRows * g.KVHeads)
	state := (c.query - rows) * float64(s.dev.StateBytes(g)) / perHead
	es := float64(g.DType.Size())
	t.StateIn, t.StateOut = saturate(state), saturate(state)
	t.In = saturate(c.kv*float64(g.D+g.Dv)*es + c.query*float64(g.Group*g.D)*es + state)
	t.Out = saturate(state + float64(plan.OutputBytes) + float64(plan.LSEBytes))
	// A stretch without a save does not rule saves out, slots for all chunks do.
	mayLeave := plan.Divide == divideCQS && g.QuerySlots < plan.QueryAxis.Chunks
	if t.StateOut > 0 || t.Sampled && mayLeave {
		plan.StateDisk = saturate(2 * float64(plan.QueryAxis.Chunks) * float64(s.dev.StateBytes(g)))
	}
	inputs := tensorBytes(p.B, p.Hq, p.Nq, p.D, p.DType) + tensorBytes(p.B, p.Hkv, p.Nk, p.D+p.Dv, p.DType)
	t.Disk = inputs
	if inputs > s.req.Host.Cache {
		t.Disk = max(inputs, t.In-t.StateIn)
	}
	if plan.StateDisk > s.req.Host.Cache-inputs { // states are written once for each chunk in work, and read back
		t.Disk = saturate(float64(t.Disk) + 2*state)
	}
}

// saturate converts a number of bytes; a sum of three of them cannot overflow.
func saturate(x float64) int64 { return int64(min(math.Round(x), 1<<61)) }

// counter walks a sequencer and counts rows, each once per KV head. Its counts
// are whole numbers and exact up to 2^53.
type counter struct {
	sched     *schedule
	plan      *Plan
	kv, query float64 // rows loaded
	pairs     float64 // chunk pairs
	spare     **sequencer
}

// walk counts the steps of those batches before which at least from and less
// than to pairs were applied.
func (c *counter) walk(batches iter.Seq[batch], from, to float64) {
	g := c.plan.Geometry
	q := newSequencer(c.sched, g.QuerySlots, g.KVSlots, defaultPrefetch, batches)
	if *c.spare != nil {
		q.recycle(*c.spare)
	}
	*c.spare = q
	defer q.stop()
	var walked float64
	for walked < to {
		steps := q.batch()
		if steps == nil {
			return
		}
		counts := walked >= from
		for _, st := range steps {
			heads := float64(c.plan.headsOf(st.group))
			switch {
			case st.kind == stepApply:
				for _, w := range st.work {
					walked += float64(len(w.refs))
					if counts {
						c.pairs += float64(len(w.refs))
					}
				}
			case !counts:
			case st.kind == stepLoadKV:
				c.kv += heads * float64(c.sched.key.Len(st.chunk))
			case st.kind == stepLoadQuery:
				c.query += heads * float64(c.sched.query.Len(st.chunk))
			}
		}
	}
}

// sample walks a stretch inside the schedule of a head group and scales it up
// by chunk pairs. The first quarter of the stretch warms the caches and the last
// one is there for the sequencer to look ahead at.
func (c *counter) sample(pairs, limit float64) {
	n := c.sched.div.Len()
	first := n / 4 // subproblems are alike, and half of the pairs must follow
	if c.plan.Divide == divideRows {
		blind := c.sched.blindChunks()
		first = blind + (n-blind)/2 // of average length when causal
	} else {
		// No batch, being part of a subproblem, may be longer than the warm part.
		limit = max(limit, 4*pairs/float64(n))
	}
	stretch := func(yield func(batch) bool) {
		var fed float64
		c.sched.subproblems(0, first, n, func(b batch) bool {
			for _, w := range b.work {
				fed += float64(len(w.refs))
			}
			return yield(b) && fed < limit
		})
	}
	c.walk(stretch, limit/4, limit*3/4)
	if c.pairs == 0 { // very uneven subproblems: no warm part then
		c.walk(stretch, 0, limit)
	}
	c.scale(pairs / max(c.pairs, 1))
}

// scale extrapolates from what was walked.
func (c *counter) scale(f float64) {
	c.kv, c.query = c.kv*f, c.query*f
}

// predict predicts time per link and in all. Links that overlap cost the
// slowest of them; what cannot overlap, and what transfers take from the
// kernel's own cores, is added.
func (s *search) predict(plan *Plan, c candidate, r attention.Rates) Prediction {
	t := plan.Traffic
	batches := plan.ChunkPairs / float64(plan.Active.Query*plan.Active.KV)
	sec := Prediction{
		Kernel: plan.FLOPs/r.FLOPS + batches*r.Launch,
		In:     float64(t.In) / r.In,
		Out:    float64(t.Out) / r.Out,
	}
	if s.req.Host.Disk > 0 {
		sec.Disk = float64(t.Disk) / s.req.Host.Disk
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
		sec.Total = sec.Kernel + (1-r.Shared)*(sec.In+sec.Out) + sec.Disk
	}
	return sec
}
