package stream

import (
	"cmp"
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
		Problem: p, Device: s.dev.Name(), Devices: max(1, s.req.Devices), Budget: s.req.Budget,
		Divide: c.kind, Set: c.set, Depth: 1,
		Groups:    (p.KVHeads() + c.heads - 1) / c.heads,
		Geometry:  g,
		Active:    Active{Query: g.Works, KV: min(c.slots.kv, g.KVSlots)},
		QueryAxis: divide.Axis{N: p.Nq, Chunks: c.queryChunks}, KeyAxis: divide.Axis{N: p.Nk, Chunks: c.keyChunks},
		Choice: c.choice(s.req.Depth),
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
	rates := s.dev.Rates(g)
	nominal := s.predict(plan, c, rates, s.req.Host.Disk, true)
	plan.patient = patience(g, plan.Active.KV, rates) > 1
	plan.inPlace = rates.InPlace
	// Among plans that one link holds up, the one that leaves the others more
	// slack is better: predictions are not exact.
	const slack = 1. / 20
	plan.cost = nominal.Total + slack*(nominal.Kernel+nominal.In+nominal.Out+nominal.Disk)
	plan.Traffic.Disk = max(0, plan.Traffic.Disk-s.req.Host.Resident)
	plan.Seconds = s.predict(plan, c, s.dev.Expected(g), cmp.Or(s.req.Host.MeasuredDisk, s.req.Host.Disk), false)
	plan.Seconds.Total += s.req.Host.Start
	if s.req.Host.Touch > 0 {
		plan.Seconds.Total += float64(plan.Memory.Total()) / s.req.Host.Touch
	}
	if s.req.Host.Sync > 0 {
		plan.Seconds.Total += float64(plan.OutputBytes+plan.LSEBytes) / s.req.Host.Sync
	}
	return plan, nil
}

func tensorBytes(b, h, n, d int, t attention.DType) int64 {
	return int64(b) * int64(h) * int64(n) * int64(d) * int64(t.Size())
}

// inputBytes is the size of Q, K and V.
func inputBytes(p attention.Problem) int64 {
	return tensorBytes(p.B, p.Hq, p.Nq, p.D, p.DType) + tensorBytes(p.B, p.Hkv, p.Nk, p.D+p.Dv, p.DType)
}

// A schedule of up to this many pairs is walked whole to price a plan. Of a
// longer one only a stretch of as many pairs is walked, and scaled. Rows are
// regular: a short stretch tells as much.
const (
	walkCQS  = 1 << 14
	walkRows = 1 << 11
)

// traffic fills in ChunkPairs, Traffic, StateDisk and CheckpointDisk.
func (s *search) traffic(plan *Plan) {
	sched := newSchedule(plan)
	pairs := sched.chunkPairs()
	plan.ChunkPairs = pairs * float64(plan.Groups)
	c := &counter{sched: sched, plan: plan, dev: s.dev, spare: &s.spare}
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
		c.query, c.state = max(c.query, rows), max(c.state, c.states())
		if plan.Divide == divideRows {
			c.query, c.state = rows, c.states() // a query chunk is finished before the next begins
		}
	}
	// A query chunk has no state when it is loaded first, and needs none saved
	// when it leaves last; every other time it has.
	state := c.state - c.states()
	es := float64(g.DType.Size())
	t.StateIn, t.StateOut = saturate(state), saturate(state)
	t.In = saturate(c.kv*float64(g.D+g.Dv)*es + c.query*float64(g.Group*g.D)*es + state)
	t.Out = saturate(state + float64(plan.OutputBytes) + float64(plan.LSEBytes))
	// A stretch without a save does not rule saves out, slots for all chunks do.
	mayLeave := plan.Divide == divideCQS && g.QuerySlots < plan.QueryAxis.Chunks
	two := 2 * float64(plan.Devices) * float64(s.dev.StateBytes(g)) // two places in each store
	switch {
	case t.StateOut > 0 || t.Sampled && mayLeave:
		plan.StateDisk = saturate(two * float64(plan.QueryAxis.Chunks))
	case sched.divided():
		plan.CheckpointDisk = saturate(two * float64(g.QuerySlots))
	}
	inputs := inputBytes(p)
	t.Disk = inputs
	if plan.fits = inputs <= s.req.Host.Cache; !plan.fits {
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
	dev       Device
	kv, query float64 // rows loaded
	state     float64 // bytes of the states of the query chunks loaded
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
				rows := c.sched.query.Len(st.chunk)
				c.query += heads * float64(rows)
				c.state += c.stateBytes(rows, c.plan.headsOf(st.group))
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
	c.kv, c.query, c.state = c.kv*f, c.query*f, c.state*f
}

// stateBytes is what the state of that many rows of as many KV heads takes.
func (c *counter) stateBytes(rows, heads int) float64 {
	g := c.plan.Geometry
	g.QueryRows, g.KVHeads = rows, heads
	return float64(c.dev.StateBytes(g))
}

// states is the size of one state of every query chunk of every head group.
func (c *counter) states() (bytes float64) {
	axis, full := c.plan.QueryAxis, c.plan.Groups-1
	longer := axis.N % axis.Chunks
	for _, part := range []struct{ chunks, rows int }{{longer, axis.N/axis.Chunks + 1}, {axis.Chunks - longer, axis.N / axis.Chunks}} {
		bytes += float64(part.chunks) * (float64(full)*c.stateBytes(part.rows, c.plan.headsOf(0)) + c.stateBytes(part.rows, c.plan.headsOf(full)))
	}
	return bytes
}

// predict predicts time per link and in all. Links that overlap cost the
// slowest of them; what cannot overlap, and what transfers take from the
// kernel's own cores, is added. Where inputs are warm, reading them once costs nothing
// but what nothing overlaps: plans are chosen so, since by cold inputs all would look alike
// to a device that outruns the disk.
func (s *search) predict(plan *Plan, c candidate, r attention.Rates, disk float64, warm bool) Prediction {
	t := plan.Traffic
	batches := plan.ChunkPairs / float64(plan.Active.Query*plan.Active.KV)
	sec := Prediction{
		Kernel: plan.FLOPs/(r.FLOPS*r.Filled(plan.Active.Query)) + batches*r.Launch,
		In:     float64(t.In)/r.In + batches*r.Launch,
		Out:    float64(t.Out) / r.Out,
	}
	var waits float64 // for states
	if r.State > 0 {
		in, out := float64(t.StateIn)/r.State, float64(t.StateOut)/r.State
		sec.In += in - float64(t.StateIn)/r.In
		sec.Out += out - float64(t.StateOut)/r.Out
		waits = in + out
	}
	if disk > 0 {
		sec.Disk = float64(t.Disk) / disk
	}
	sec.Kernel += max(0, r.Shared*(sec.In+sec.Out)-r.Idle*sec.Kernel)
	share := plan.share()
	sec.Kernel, sec.In, sec.Out, waits = sec.Kernel*share, sec.In*share, sec.Out*share, waits*share
	once := sec.Disk
	if warm {
		again := t.Disk - inputBytes(plan.Problem)
		sec.Disk = float64(max(0, again)) / max(disk, 1)
	}
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
	// The first chunks come in before, and the last go out after, anything else
	// happens.
	fill := (float64(t.In)/r.In + once) / max(plan.ChunkPairs, 1)
	switch {
	case c.slots.queryAhead > 0 && c.slots.kvAhead > 0, plan.ChunkPairs == 1:
		sec.Total = longest + fill + waits
	case c.slots.kvAhead > 0 && c.kind == divideRows:
		// Keys come in while others are in work; queries come alone, and results leave
		// alone.
		p := plan.Problem
		queries := tensorBytes(p.B, p.Hq, p.Nq, p.D, p.DType)
		sec.Total = longest + fill + (1-r.Shared)*(float64(queries)/r.In+float64(plan.OutputBytes+plan.LSEBytes)/r.Out)
	default:
		sec.Total = sec.Kernel + (1-r.Shared)*(sec.In+sec.Out) + once
	}
	return sec
}
