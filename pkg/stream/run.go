package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// defaultPrefetch is how many batches the run submits ahead of the one in work.
const defaultPrefetch = 2

// Options of a run that are not part of its plan: none changes a bit of the
// result.
type Options struct {
	// StatePath is the file for states that leave their slots; it is made when
	// the plan needs it and removed at the end.
	StatePath string
	// Prefetch is how many batches are submitted ahead: 0 means the default,
	// negative none.
	Prefetch int
	// Progress is called now and then, from one goroutine, until Run returns.
	Progress func(Progress)
	// ProgressEvery is the time between calls; 0 means half a second.
	ProgressEvery time.Duration
}

// Progress of a run.
type Progress struct {
	Pairs, TotalPairs float64 // (query row, key) pairs, over all heads
	Elapsed           time.Duration
	FLOPS             float64 // since the start
}

// Report is what a run did.
type Report struct {
	Stats   attention.Stats
	Memory  attention.Footprint // on the device, as allocated
	State   int64               // bytes of the state store
	Seconds float64
	FLOPS   float64
}

// runner carries out the steps of one plan.
type runner struct {
	plan   *Plan
	sched  *schedule
	dev    Device
	t      Tensors
	views  views
	store  *stateStore
	opt    Options
	report Report

	kv, query []slotEvents
	saves     map[int64]attention.Event // last SaveState of a query chunk
	applied   map[int64]int             // pairs applied to a query chunk that is not finished
	flight    []inFlight
	tail      []attention.Event // finishes and saves not yet known to be done
}

// slotEvents order the use of one slot: S1 and S2.
type slotEvents struct {
	loaded attention.Event   // the load of what the slot holds
	used   []attention.Event // applies, saves and finishes since
}

func (s *slotEvents) all() []attention.Event { return append([]attention.Event{s.loaded}, s.used...) }

// inFlight is a submitted batch.
type inFlight struct {
	applied attention.Event
	read    []readRange // input ranges that its loads read
}

type readRange struct {
	from   Source
	lo, hi int64
}

// Run carries out a plan: it reserves the device, streams the schedule through
// it, and returns when all results are in t.O and t.LSE. The device is released
// in any case. When ctx is cancelled, Run interrupts the device and returns
// ctx's cause.
func Run(ctx context.Context, plan *Plan, dev Device, t Tensors, opt Options) (rep *Report, err error) {
	return RunAll(ctx, plan, []Device{dev}, t, opt)
}

// run carries out one shard of the schedule, and reports all but the time. It calls settled once, when nothing is
// under way any more and the device still has its memory, if it got so far.
func run(ctx context.Context, plan *Plan, dev Device, shard, shards int, t Tensors, opt Options, settled func()) (rep *Report, err error) {
	settled = sync.OnceFunc(settled)
	defer settled()
	if err := dev.Reserve(plan.Geometry); err != nil {
		return nil, err
	}
	r := &runner{
		plan: plan, sched: newSchedule(plan), dev: dev, t: t, views: newViews(plan.Problem, t), opt: opt,
		kv: make([]slotEvents, plan.Geometry.KVSlots), query: make([]slotEvents, plan.Geometry.QuerySlots),
		saves: make(map[int64]attention.Event), applied: make(map[int64]int),
	}
	r.sched.shard, r.sched.shards = shard, shards
	// Release waits for the operations that use the state store.
	defer func() { err = errors.Join(err, dev.Release(), r.store.remove()) }()
	r.report.Memory = dev.Allocated()
	if plan.StateDisk > 0 {
		if r.store, err = openStateStore(opt.StatePath, plan.QueryAxis.Chunks, dev.StateBytes(plan.Geometry)); err != nil {
			return nil, err
		}
		r.report.State = plan.StateDisk
	}
	stop := r.watch(ctx)
	err = r.steps(ctx)
	stop()
	if err != nil {
		dev.Interrupt()
		r.settle() // the mappings must outlive every operation on them
		return nil, r.explain(ctx, err)
	}
	settled()
	r.report.Stats = dev.Stats()
	return &r.report, nil
}

// explain turns the first error into what the caller should see.
func (r *runner) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, attention.ErrInterrupted) {
		return context.Cause(ctx)
	}
	var f *attention.Fault
	if errors.As(err, &f) {
		return r.t.blame(f)
	}
	return err
}

// watch interrupts the device when ctx ends, until stopped.
func (r *runner) watch(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	off := context.AfterFunc(ctx, func() { r.dev.Interrupt(); close(done) })
	return func() {
		if !off() { // an interrupt must not come after Release
			<-done
		}
	}
}

// steps submits the whole schedule and waits for it.
func (r *runner) steps(ctx context.Context) error {
	depth := r.opt.Prefetch
	if depth == 0 {
		depth = defaultPrefetch
	}
	depth = max(depth, 0)
	g := r.plan.Geometry
	seq := newSequencer(r.sched, g.QuerySlots, g.KVSlots, defaultPrefetch, r.sched.batches())
	defer seq.stop()
	for {
		steps := seq.batch()
		if steps == nil {
			break
		}
		if err := r.submit(steps); err != nil {
			return err
		}
		for len(r.flight) > depth {
			if err := r.land(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return r.settle()
}

// land waits for the oldest submitted batch and lets go of what it read.
func (r *runner) land() error {
	f := r.flight[0]
	r.flight = r.flight[1:]
	if err := f.applied.Wait(); err != nil {
		return err
	}
	for _, x := range f.read {
		x.from.DontNeed(x.lo, x.hi)
	}
	return nil
}

// settle waits for everything submitted and returns the first error.
func (r *runner) settle() error {
	var first error
	for len(r.flight) > 0 {
		if err := r.land(); err != nil && first == nil {
			first = err
		}
	}
	for _, e := range r.tail {
		if err := e.Wait(); err != nil && first == nil {
			first = err
		}
	}
	r.tail = nil
	return first
}

// submit hands the steps of one batch to the device.
func (r *runner) submit(steps []step) error {
	var fly inFlight
	for _, s := range steps {
		switch s.kind {
		case stepLoadKV:
			fly.read = append(fly.read, r.loadKV(s)...)
		case stepSave:
			r.save(s)
		case stepLoadQuery:
			fly.read = append(fly.read, r.loadQuery(s)...)
		case stepApply:
			fly.applied = r.apply(s)
		case stepFinish:
			e := r.finish(s)
			if fly.applied == nil { // a blind chunk: nothing was applied
				fly.applied = e
			}
		}
	}
	r.flight = append(r.flight, fly)
	return r.trim()
}

// trim forgets output operations that are done, so that the list stays short.
func (r *runner) trim() error {
	const keep = 64
	for len(r.tail) > keep {
		if err := r.tail[0].Wait(); err != nil {
			return err
		}
		r.tail = r.tail[1:]
	}
	return nil
}

// heads is the range of KV heads of a head group, over the whole batch.
func (r *runner) heads(group int) (lo, hi int) {
	lo = group * r.plan.Geometry.KVHeads
	return lo, lo + r.plan.headsOf(group)
}

// queryHeads lists the query heads of a head group, over the whole batch.
func (r *runner) queryHeads(group int) (lo, hi int) {
	lo, hi = r.heads(group)
	return lo * r.plan.Geometry.Group, hi * r.plan.Geometry.Group
}

// announce lists rows of some heads and asks the kernel to read them ahead.
func announce(v view, u0, u1, lo, hi int) (rows []attention.Rows, read []readRange) {
	for u := u0; u < u1; u++ {
		rows = append(rows, v.rows(u, lo, hi))
		a, b := v.span(u, lo, hi)
		if n := len(read); n > 0 && a < read[n-1].hi { // heads interleaved in one range
			read[n-1].hi = max(read[n-1].hi, b)
			continue
		}
		read = append(read, readRange{v.advisor, a, b})
	}
	for _, x := range read {
		x.from.WillNeed(x.lo, x.hi)
	}
	return rows, read
}

func (r *runner) loadKV(s step) []readRange {
	u0, u1 := r.heads(s.group)
	lo, hi := r.sched.key.Range(s.chunk)
	k, readK := announce(r.views.k, u0, u1, lo, hi)
	v, readV := announce(r.views.v, u0, u1, lo, hi)
	slot := &r.kv[s.slot]
	slot.loaded = r.dev.LoadKV(s.slot, k, v, slot.used...)
	slot.used = nil
	return append(readK, readV...)
}

func (r *runner) loadQuery(s step) []readRange {
	u0, u1 := r.queryHeads(s.group)
	lo, hi := r.sched.query.Range(s.chunk)
	q, read := announce(r.views.q, u0, u1, lo, hi)
	slot := &r.query[s.slot]
	if s.fresh {
		slot.loaded = r.dev.LoadQuery(s.slot, q, nil, slot.used...)
	} else {
		after := append(slot.used, r.saves[chunkID(s.group, s.chunk)]) // S3
		slot.loaded = r.dev.LoadQuery(s.slot, q, r.store.current(s.chunk), after...)
	}
	slot.used = nil
	return read
}

func (r *runner) save(s step) {
	slot := &r.query[s.slot]
	id := chunkID(s.group, s.chunk)
	r.store.enter(s.group)
	e := r.dev.SaveState(s.slot, r.store.next(s.chunk, r.applied[id]), slot.all()...)
	r.saves[id] = e
	slot.used = append(slot.used, e)
	r.tail = append(r.tail, e)
}

func (r *runner) apply(s step) attention.Event {
	var after []attention.Event
	work := make([]attention.Work, len(s.work))
	for i, w := range s.work {
		after = append(after, r.query[w.slot].loaded)
		work[i].Query = w.slot
		for _, ref := range w.refs {
			after = append(after, r.kv[ref.slot].loaded)
			work[i].Refs = append(work[i].Refs, attention.KVRef{Slot: ref.slot, Kind: ref.kind, Offset: ref.offset})
		}
		r.applied[chunkID(s.group, w.chunk)] += len(w.refs)
	}
	e := r.dev.Apply(work, after...)
	for _, w := range s.work {
		r.query[w.slot].used = []attention.Event{e} // applies run in order: the last one stands for all
		for _, ref := range w.refs {
			r.kv[ref.slot].used = []attention.Event{e}
		}
	}
	return e
}

func (r *runner) finish(s step) attention.Event {
	u0, u1 := r.queryHeads(s.group)
	lo, hi := r.sched.query.Range(s.chunk)
	var out, lse []attention.Rows
	for u := u0; u < u1; u++ {
		out = append(out, r.views.o.rows(u, lo, hi))
		if r.t.LSE != nil {
			lse = append(lse, r.views.lse.rows(u, lo, hi))
		}
	}
	slot := &r.query[s.slot]
	e := r.dev.Finish(s.slot, r.sched.emptyRows(s.chunk), out, lse, slot.all()...)
	slot.used = append(slot.used, e)
	r.tail = append(r.tail, e)
	id := chunkID(s.group, s.chunk)
	delete(r.saves, id)
	delete(r.applied, id)
	return e
}
