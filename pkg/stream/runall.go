package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// RunAll is Run on several devices of one kind. Each carries out a shard of the
// schedule: head groups in turn or, in the rows division, query chunks. Shards share no
// state, so that nothing is merged, and results are bit for bit those of one device. An
// error on one device ends the work of all.
func RunAll(ctx context.Context, plan *Plan, devs []Device, t Tensors, opt Options) (rep *Report, err error) {
	if err := t.check(plan.Problem); err != nil {
		return nil, err
	}
	if opt.disk == nil {
		opt.disk = osDisk{}
	}
	start := time.Now()
	shards := make([]*runner, len(devs))
	all, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	each := func(f func(i int) error) error {
		errs := make([]error, len(devs))
		var running sync.WaitGroup
		for i := range devs {
			running.Go(func() {
				if errs[i] = f(i); errs[i] != nil && !opt.stopped(errs[i]) {
					cancel(errs[i]) // the first one counts
				}
			})
		}
		running.Wait()
		return firstOf(all, errs)
	}
	var j *journal
	defer func() {
		keep := err != nil && (j.begun() || opt.Journal != nil && opt.Journal.Log != nil)
		for _, r := range shards {
			if r != nil {
				err = errors.Join(err, r.close(keep))
			}
		}
		if err = errors.Join(err, j.close()); err != nil {
			rep = nil
		}
	}()
	if err := each(func(i int) (err error) {
		shards[i], err = newRunner(plan, devs[i], i, len(devs), t, opt)
		return err
	}); err != nil {
		return nil, err
	}
	done := &work{devs: devs}
	stop := sync.OnceFunc(tell(plan, done, start, opt))
	defer stop()
	if err := each(func(i int) error { return shards[i].open(all) }); err != nil {
		return nil, err
	}
	for _, r := range shards {
		done.least.Add(uint64(r.found.least))
	}
	if j, err = startJournal(opt, shards, done, start); err != nil {
		return nil, err
	}
	err = each(func(i int) error { return shards[i].run(all, done) })
	stop()
	if err != nil {
		return nil, err
	}
	rep = joined(shards)
	rep.Resumed = float64(done.skipped.Load()) / totalPairs(plan.Problem)
	rep.Seconds = time.Since(start).Seconds()
	rep.FLOPS = plan.FLOPs * (1 - rep.Resumed) / rep.Seconds
	if err := j.complete(t); err != nil {
		return nil, err
	}
	return rep, nil
}

// startJournal readies the journal, if there is to be one. What holds of an older one
// is made durable, and is what the new one begins with.
func startJournal(opt Options, shards []*runner, done *work, start time.Time) (*journal, error) {
	if opt.Journal == nil {
		return nil, nil
	}
	j := &journal{path: opt.Journal.Path, disk: opt.disk, outs: shards[0].t.paths(), header: opt.Journal.Header, start: start, work: done.pairs}
	for _, r := range shards {
		r.journal = j
	}
	if opt.Journal.Log == nil {
		return j, nil
	}
	var facts, checkpoints []record
	for _, r := range shards {
		if err := r.renew(); err != nil {
			return j, err
		}
		if err := r.store.sync(); err != nil {
			return j, err
		}
		facts = append(facts, r.found.facts...)
		checkpoints = append(checkpoints, record{kind: kindCheckpoint, shard: r.shard})
	}
	if err := shards[0].t.sync(); err != nil {
		return j, err
	}
	for i := range facts {
		facts[i].work = done.before()
	}
	for i := range checkpoints {
		j.stamp(&checkpoints[i])
	}
	return j, j.begin(facts, checkpoints)
}

func totalPairs(p attention.Problem) float64 {
	return p.Pairs() * float64(p.B) * float64(p.Hq)
}

// firstOf is the error that ended the others: those that were only told to stop have
// the same, as their context's cause.
func firstOf(ctx context.Context, errs []error) error {
	for _, err := range errs {
		if err != nil && errors.Is(err, context.Cause(ctx)) {
			return err
		}
	}
	for _, err := range errs {
		if err != nil { // all were asked to stop
			return err
		}
	}
	return nil
}

// stopped says whether a device ended because the run was asked to stop: others then do
// so by themselves, when they have saved what they have.
func (o Options) stopped(err error) bool {
	return o.Stop != nil && o.Stop.Err() != nil && errors.Is(err, context.Cause(o.Stop))
}

// orStop is ctx until the run is asked to stop.
func (o Options) orStop(ctx context.Context) (context.Context, context.CancelFunc) {
	either, cancel := context.WithCancelCause(ctx)
	if o.Stop == nil {
		return either, func() { cancel(nil) }
	}
	if o.Stop.Err() != nil {
		cancel(context.Cause(o.Stop))
	}
	off := context.AfterFunc(o.Stop, func() { cancel(context.Cause(o.Stop)) })
	return either, func() { off(); cancel(nil) }
}

// joined adds reports up. Seconds of queues are those of the busiest device, memory is
// that of one.
func joined(list []*runner) *Report {
	sum := list[0].report
	for _, r := range list[1:] {
		r := &r.report
		a, b := &sum.Stats, r.Stats
		a.InBytes, a.OutBytes = a.InBytes+b.InBytes, a.OutBytes+b.OutBytes
		a.InSeconds, a.ApplySeconds, a.OutSeconds = max(a.InSeconds, b.InSeconds), max(a.ApplySeconds, b.ApplySeconds), max(a.OutSeconds, b.OutSeconds)
		a.Batches, a.Pairs, a.Pinned = a.Batches+b.Batches, a.Pairs+b.Pairs, a.Pinned+b.Pinned
		a.Float64 += b.Float64
		if !b.First.IsZero() && (a.First.IsZero() || b.First.Before(a.First)) {
			a.First = b.First
		}
		if a.Path == "" {
			a.Path = b.Path
		}
		sum.State += r.State
		sum.Recomputed, sum.Newer = sum.Recomputed+r.Recomputed, sum.Newer+r.Newer
		sum.Checkpoints, sum.Saving = max(sum.Checkpoints, r.Checkpoints), max(sum.Saving, r.Saving)
	}
	return &sum
}

// tell reports progress until stopped, at times and when asked.
func tell(plan *Plan, done *work, start time.Time, opt Options) (stop func()) {
	if opt.Progress == nil {
		return func() {}
	}
	every := opt.ProgressEvery
	if every <= 0 {
		every = time.Second / 2
	}
	p := plan.Problem
	total := totalPairs(p)
	now := func(asked bool) {
		x := Progress{TotalPairs: total, Elapsed: time.Since(start), Before: done.before(), Pairs: done.pairs(), Asked: asked}
		x.FLOPS = (x.Pairs - x.Before) * 2 * float64(p.D+p.Dv) / x.Elapsed.Seconds()
		opt.Progress(x)
	}
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				now(false)
			case <-opt.Ask:
				now(true)
			case <-quit:
				now(false)
				return
			}
		}
	}()
	return func() { close(quit); <-over }
}
