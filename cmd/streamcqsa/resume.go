package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// errDuration: --max-duration is over.
var errDuration = errors.New("stopped by --max-duration")

// grace is how long a run that is told to stop may go on to finish the batches in work
// and save what it has. What is saved later than that is what the last checkpoint has.
const grace = 6 * time.Second

// earlier reads the journal of an earlier run, if there is one to continue.
func (o *runOptions) earlier() (*stream.Log, error) {
	if o.restart {
		return nil, nil // removed when the output is this process's own
	}
	l, err := stream.ReadJournal(o.journalPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if damaged := (*stream.CorruptError)(nil); errors.As(err, &damaged) {
		err = fmt.Errorf("%w: --restart begins anew", err)
	}
	return l, err
}

// planOrContinue plans, or makes again the plan of an earlier run.
func (o *runOptions) planOrContinue(p attention.Problem, in *inputs, kept *stream.Log) (plan *stream.Plan, others []*stream.Plan, devs []stream.Device, err error) {
	if kept == nil {
		return o.plan(p, in, &o.outFlags)
	}
	if devs, err = o.planFlags.open(p); err != nil {
		return nil, nil, nil, err
	}
	req, err := o.request(p, &o.outFlags, devs)
	if err != nil {
		return nil, nil, nil, err
	}
	if o.budget.auto { // it is what was free then
		req.Budget = math.MaxInt64
	}
	if plan, err = stream.Again(req, devs[0], kept.Header.Choice); err != nil {
		return nil, nil, nil, fmt.Errorf("continue %s: %w", kept.Path, err)
	}
	plan.Budget = req.Budget
	return plan, nil, devs, nil
}

// header identifies the run.
func (o *runOptions) header(p attention.Problem, in *inputs, plan *stream.Plan, devs []stream.Device) (h stream.Header, err error) {
	path, _ := tensorfile.ParseRef(o.out)
	h = stream.Header{Version: version().build(), Problem: p, LSE: o.lse != "", Devices: len(devs), Device: devs[0].Signature(plan.Geometry),
		Choice: plan.Choice, Output: filepath.Base(path)}
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		id, err := t.Identity()
		if err != nil {
			return h, err
		}
		h.Inputs = append(h.Inputs, stream.Input{Path: id.Path, Key: id.Key, Size: id.Size, MTime: id.MTime, Offset: id.Offset, Head: id.Head})
	}
	return h, nil
}

// leave ends with outputs that are not complete: they are kept if there is a journal of
// what is in them.
func (o *runOptions) leave(out *outputs, err error) error {
	if errors.Is(err, tensorfile.ErrChanged) { // what was computed is of no input
		return errors.Join(out.abort(), o.giveUp())
	}
	if _, e := os.Stat(o.journalPath()); err != nil && e == nil {
		return out.close()
	}
	return out.abort()
}

// giveUp removes what is kept of a run beside its outputs.
func (o *runOptions) giveUp() error {
	return errors.Join(stream.RemoveJournal(o.journalPath()), stream.RemoveStates(o.statePath()))
}

// stops are two contexts of a run: soft ends when it is to stop and save, hard when
// that takes too long. asked is set when the user wants to know how far the run is.
func (o *runOptions) stops(ctx context.Context, asked *atomic.Bool) (hard, soft context.Context, off func()) {
	soft, stop := context.WithCancelCause(ctx)
	hard, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	var timers []*time.Timer
	if o.most > 0 {
		timers = append(timers, time.AfterFunc(o.most, func() { stop(errDuration) }))
	}
	end := context.AfterFunc(soft, func() { time.AfterFunc(grace, func() { abort(context.Cause(soft)) }) })
	quit := watchUserSignals(stop, func() { asked.Store(true) })
	return hard, soft, func() {
		end()
		for _, t := range timers {
			t.Stop()
		}
		quit()
		stop(nil)
		abort(nil)
	}
}
