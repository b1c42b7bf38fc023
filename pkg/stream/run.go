package stream

import (
	"context"
	"errors"
	"fmt"
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
	// Ask has Progress called at once for each value, with Asked set; nil: nobody asks.
	Ask <-chan struct{}
	// Journal makes the run one that can be continued; nil: nothing is kept.
	Journal *Journal
	// Stop, when it is done, makes the run end between two batches, with all that was
	// done kept in the journal, and the cause as its error. nil: never.
	Stop context.Context

	disk disk // tests have their own
}

// Journal says how a run is kept.
type Journal struct {
	Path   string
	Header Header
	Log    *Log          // of the process that is continued; nil: the run begins
	Every  time.Duration // between checkpoints; 0: a minute, or longer where they take long
}

// Progress of a run.
type Progress struct {
	Pairs, TotalPairs float64 // (query row, key) pairs, over all heads
	Before            float64 // of Pairs, what an earlier process had done
	Elapsed           time.Duration
	FLOPS             float64 // since the start
	Asked             bool
}

// Report is what a run did.
type Report struct {
	Stats   attention.Stats
	Memory  attention.Footprint // on the device, as allocated
	State   int64               // bytes of the state stores; 0 if none was needed
	Seconds float64
	FLOPS   float64

	Resumed     float64 // pairs that an earlier process had done, as a share of all
	Recomputed  int     // query chunks of which what a checkpoint had made safe was damaged
	Newer       int     // those of which something told after the last checkpoint was not there: that is no damage
	Checkpoints int
	Saving      float64 // seconds that checkpoints took
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
	shard  uint16

	journal  *journal
	recorder *recorder
	found    *found     // what an earlier process left
	resident []resident // by query slot
	saved    time.Time  // the last checkpoint
	took     time.Duration

	kv, query []slotEvents
	saves     map[int64]attention.Event // last SaveState of a query chunk
	applied   map[int64]int             // pairs applied to a query chunk that is not finished
	flight    []inFlight
}

// resident is the query chunk in a slot.
type resident struct {
	group, chunk int
	held         bool
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

// newRunner readies a device for one shard of the schedule.
func newRunner(plan *Plan, dev Device, shard, shards int, t Tensors, opt Options) (*runner, error) {
	if err := dev.Reserve(plan.Geometry); err != nil {
		return nil, errors.Join(err, dev.Release())
	}
	r := &runner{
		plan: plan, sched: newSchedule(plan), dev: dev, t: t, views: newViews(plan.Problem, t), opt: opt, shard: uint16(shard),
		kv: make([]slotEvents, plan.Geometry.KVSlots), query: make([]slotEvents, plan.Geometry.QuerySlots),
		resident: make([]resident, plan.Geometry.QuerySlots), saved: time.Now(),
		saves: make(map[int64]attention.Event), applied: make(map[int64]int), found: new(found),
	}
	r.sched.shard, r.sched.shards = shard, shards
	r.report.Memory = dev.Allocated()
	r.store = newStateStore(opt.disk, shardPath(opt.StatePath, shard, shards), plan.places(), dev.StateBytes(plan.Geometry))
	return r, nil
}

// shardPath is the state store of a shard.
func shardPath(path string, shard, shards int) string {
	if shards > 1 {
		return fmt.Sprintf("%s.%d", path, shard)
	}
	return path
}

// open opens the state store, and finds what an earlier process left.
func (r *runner) open(ctx context.Context) (err error) {
	if r.opt.Journal == nil || r.opt.Journal.Log == nil {
		r.store.settle(nil)
	} else {
		if err := r.store.reopen(); err != nil {
			return err
		}
		ctx, off := r.opt.orStop(ctx)
		defer off()
		if r.found, err = r.examine(ctx, r.opt.Journal.Log); err != nil {
			return err
		}
		r.report.Recomputed, r.report.Newer = r.found.damaged, r.found.newer
		for id, p := range r.found.at {
			if !p.done {
				r.applied[id] = p.pairs
			}
		}
	}
	if r.plan.StateDisk > 0 || r.store.file != nil {
		return r.store.reserve()
	}
	return nil
}

// run carries out the schedule. When it returns, nothing is under way any more.
func (r *runner) run(ctx context.Context, done *work) error {
	r.recorder = newRecorder(r.journal)
	defer r.recorder.close()
	stop := r.watch(ctx)
	err := r.steps(ctx, done)
	stop()
	if err != nil {
		r.dev.Interrupt()
		r.settle() // the mappings must outlive every operation on them
		return r.explain(ctx, err)
	}
	r.report.Stats, r.report.State = r.dev.Stats(), r.store.size()
	return nil
}

// close gives the device back and, where nothing is to be continued, removes states.
// Release waits for the operations that use the state store.
func (r *runner) close(keep bool) error {
	err := r.dev.Release()
	if keep {
		return errors.Join(err, r.store.close())
	}
	return errors.Join(err, r.store.remove())
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
func (r *runner) steps(ctx context.Context, done *work) error {
	depth := r.opt.Prefetch
	if depth == 0 {
		depth = defaultPrefetch
	}
	depth = max(depth, 0)
	g := r.plan.Geometry
	seq := newSequencer(r.sched, g.QuerySlots, g.KVSlots, defaultPrefetch, r.sched.rest(r.sched.batches(), r.found.at, done.skip))
	seq.resume(r.found.at)
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
		if stop := r.opt.Stop; stop != nil && stop.Err() != nil {
			if err := r.checkpoint(); err != nil {
				return err
			}
			return context.Cause(stop)
		}
		if r.due() {
			if err := r.checkpoint(); err != nil {
				return err
			}
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
	if r.managed() {
		for _, x := range f.read {
			x.from.DontNeed(x.lo, x.hi)
		}
	}
	return nil
}

// managed says whether the system is told what will be read and what was. It costs as
// much as some passes over the data, and is of no use where all inputs are in memory.
func (r *runner) managed() bool { return r.plan.Traffic.Disk > 0 }

// settle waits for everything submitted and returns the first error.
func (r *runner) settle() error {
	var first error
	for len(r.flight) > 0 {
		if err := r.land(); err != nil && first == nil {
			first = err
		}
	}
	if err := r.recorder.wait(); err != nil && first == nil {
		first = err
	}
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
			if err := r.save(s.slot, s.group, s.chunk); err != nil {
				return err
			}
		case stepLoadQuery:
			fly.read = append(fly.read, r.loadQuery(s)...)
		case stepApply:
			fly.applied = r.apply(s)
		case stepFinish:
			e, err := r.finish(s)
			if err != nil {
				return err
			}
			if fly.applied == nil { // a blind chunk: nothing was applied
				fly.applied = e
			}
		}
	}
	r.flight = append(r.flight, fly)
	return nil
}

// announce lists rows of some heads and asks the system to read them ahead. Where it has to
// make room for them first, whoever asks does that alone: rows that several threads will read
// in order, in place, are then better left to what the system reads ahead by itself.
func (r *runner) announce(v view, inPlace bool, u0, u1, lo, hi int) (rows []attention.Rows, read []readRange) {
	for u := u0; u < u1; u++ {
		rows = append(rows, v.rows(u, lo, hi))
		a, b := v.span(u, lo, hi)
		if n := len(read); n > 0 && a < read[n-1].hi { // heads interleaved in one range
			read[n-1].hi = max(read[n-1].hi, b)
			continue
		}
		read = append(read, readRange{v.advisor, a, b})
	}
	if r.managed() && (r.plan.fits || !inPlace || !rows[0].Contiguous()) {
		for _, x := range read {
			x.from.WillNeed(x.lo, x.hi)
		}
	}
	return rows, read
}

func (r *runner) loadKV(s step) []readRange {
	u0, u1 := r.plan.kvHeads(s.group)
	lo, hi := r.sched.key.Range(s.chunk)
	k, readK := r.announce(r.views.k, r.plan.inPlace, u0, u1, lo, hi)
	v, readV := r.announce(r.views.v, r.plan.inPlace, u0, u1, lo, hi)
	slot := &r.kv[s.slot]
	slot.loaded = r.dev.LoadKV(s.slot, k, v, slot.used...)
	slot.used = nil
	return append(readK, readV...)
}

func (r *runner) loadQuery(s step) []readRange {
	u0, u1 := r.plan.queryHeads(s.group)
	lo, hi := r.sched.query.Range(s.chunk)
	q, read := r.announce(r.views.q, false, u0, u1, lo, hi)
	slot := &r.query[s.slot]
	if s.fresh {
		slot.loaded = r.dev.LoadQuery(s.slot, q, nil, slot.used...)
	} else {
		after, id := slot.used, chunkID(s.group, s.chunk)
		if e := r.saves[id]; e != nil { // S3
			after = append(after, e)
		}
		slot.loaded = r.dev.LoadQuery(s.slot, q, r.store.current(id), after...)
	}
	slot.used = nil
	r.resident[s.slot] = resident{s.group, s.chunk, true}
	return read
}

// save writes the state in a slot to the store, unless it is there.
func (r *runner) save(n, group, chunk int) error {
	slot, id := &r.query[n], chunkID(group, chunk)
	pairs := r.applied[id]
	if v := r.store.of(id).latest; v.place >= 0 && v.pairs == pairs {
		return nil
	}
	to, v, err := r.store.next(id, pairs)
	if errors.Is(err, errNoPlace) {
		if err = r.commit(); err == nil {
			to, v, err = r.store.next(id, pairs)
		}
	}
	if err != nil {
		return err
	}
	e := r.dev.SaveState(n, to, slot.all()...)
	r.saves[id] = e
	slot.used = append(slot.used, e)
	return r.recorder.add(entry{event: e, fill: to.tell,
		tell: record{kind: kindState, shard: r.shard, group: uint32(group), chunk: uint32(chunk), pairs: uint32(pairs), place: uint32(v.place)}})
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

func (r *runner) finish(s step) (attention.Event, error) {
	out, lse := r.views.results(r.plan, s.group, s.chunk)
	slot := &r.query[s.slot]
	e := r.dev.Finish(s.slot, r.sched.emptyRows(s.chunk), out, lse, slot.all()...)
	slot.used = append(slot.used, e)
	r.resident[s.slot] = resident{}
	id := chunkID(s.group, s.chunk)
	r.store.drop(id)
	delete(r.saves, id)
	delete(r.applied, id)
	return e, r.recorder.add(entry{event: e,
		tell: record{kind: kindDone, shard: r.shard, group: uint32(s.group), chunk: uint32(s.chunk)},
		fill: func(x *record) (err error) { x.sum, err = sumRows(out, lse); return err }})
}

// mostSaving is the share of the time that checkpoints may take where nobody says how
// often they are wanted.
const mostSaving = 0.01

// due says whether it is time for a checkpoint.
func (r *runner) due() bool {
	j := r.opt.Journal
	if j == nil {
		return false
	}
	every := j.Every
	if every == 0 {
		every = max(time.Minute, time.Duration(float64(r.took)/mostSaving))
	}
	return time.Since(r.saved) >= every
}

// checkpoint saves the states in all slots, and commits.
func (r *runner) checkpoint() error {
	if r.opt.Journal == nil {
		return r.settle()
	}
	start := time.Now()
	for n, x := range r.resident {
		if !x.held || r.applied[chunkID(x.group, x.chunk)] == 0 {
			continue
		}
		if err := r.save(n, x.group, x.chunk); err != nil {
			return err
		}
	}
	if err := r.commit(); err != nil {
		return err
	}
	r.saved, r.took = time.Now(), time.Since(start)
	r.report.Checkpoints++
	r.report.Saving += r.took.Seconds()
	return nil
}

// commit makes durable what has left the device: states and results first, then what
// the journal says of them.
func (r *runner) commit() error {
	if err := r.recorder.wait(); err != nil {
		return err
	}
	if r.journal != nil {
		if err := r.journal.commit(record{kind: kindCheckpoint, shard: r.shard}, func() error {
			if err := r.store.sync(); err != nil {
				return err
			}
			return r.t.sync()
		}); err != nil {
			return err
		}
	}
	r.store.commit()
	return nil
}
