package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// RunAll is Run on several devices of one kind. Each carries out a shard of the
// schedule: head groups in turn or, in the rows division, query chunks. Shards share no
// state, so that nothing is merged, and results are bit for bit those of one device. An
// error on one device ends the work of all.
func RunAll(ctx context.Context, plan *Plan, devs []Device, t Tensors, opt Options) (*Report, error) {
	if err := t.check(plan.Problem); err != nil {
		return nil, err
	}
	start := time.Now()
	stop := tell(plan, devs, start, opt)
	all, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left atomic.Int32 // devices that are not settled
	left.Store(int32(len(devs)))
	settled := func() {
		if left.Add(-1) == 0 {
			stop()
		}
	}
	reports, errs := make([]*Report, len(devs)), make([]error, len(devs))
	var running sync.WaitGroup
	for i, dev := range devs {
		running.Go(func() {
			o := opt
			if len(devs) > 1 {
				o.StatePath = fmt.Sprintf("%s.%d", opt.StatePath, i)
			}
			reports[i], errs[i] = run(all, plan, dev, i, len(devs), t, o, settled)
			if errs[i] != nil {
				cancel(errs[i]) // the first one counts
			}
		})
	}
	running.Wait()
	if err := firstOf(all, errs); err != nil {
		return nil, err
	}
	rep := joined(reports)
	rep.Seconds = time.Since(start).Seconds()
	rep.FLOPS = plan.FLOPs / rep.Seconds
	return rep, nil
}

// firstOf is the error that ended the others: those that were only told to stop have
// the same, as their context's cause.
func firstOf(ctx context.Context, errs []error) error {
	for _, err := range errs {
		if err != nil && errors.Is(err, context.Cause(ctx)) {
			return err
		}
	}
	return errors.Join(errs...)
}

// joined adds reports up. Seconds of queues are those of the busiest device, memory is
// that of one.
func joined(list []*Report) *Report {
	sum := *list[0]
	for _, r := range list[1:] {
		a, b := &sum.Stats, r.Stats
		a.InBytes, a.OutBytes = a.InBytes+b.InBytes, a.OutBytes+b.OutBytes
		a.InSeconds, a.ApplySeconds, a.OutSeconds = max(a.InSeconds, b.InSeconds), max(a.ApplySeconds, b.ApplySeconds), max(a.OutSeconds, b.OutSeconds)
		a.Batches, a.Pairs, a.Pinned = a.Batches+b.Batches, a.Pairs+b.Pairs, a.Pinned+b.Pinned
		if !b.First.IsZero() && (a.First.IsZero() || b.First.Before(a.First)) {
			a.First = b.First
		}
		if a.Path == "" {
			a.Path = b.Path
		}
		sum.State += r.State
	}
	return &sum
}

// tell reports progress until stopped.
func tell(plan *Plan, devs []Device, start time.Time, opt Options) (stop func()) {
	if opt.Progress == nil {
		return func() {}
	}
	every := opt.ProgressEvery
	if every <= 0 {
		every = time.Second / 2
	}
	p := plan.Problem
	total := p.Pairs() * float64(p.B) * float64(p.Hq)
	now := func() {
		x := Progress{TotalPairs: total, Elapsed: time.Since(start)}
		for _, d := range devs {
			x.Pairs += d.Stats().Pairs
		}
		x.FLOPS = x.Pairs * 2 * float64(p.D+p.Dv) / x.Elapsed.Seconds()
		opt.Progress(x)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				now()
			case <-quit:
				now()
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}
