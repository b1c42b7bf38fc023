package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
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
	h = stream.Header{Version: version().build(), Problem: p, LSE: o.lse != "", Devices: len(devs), Device: devs[0].Signature(plan.Geometry),
		Choice: plan.Choice, StateBytes: devs[0].StateBytes(plan.Geometry)}
	for _, spec := range o.resultSpecs(p) {
		h.Outputs = append(h.Outputs, stream.Output{Path: from(o.journalPath(), strings.TrimSuffix(partialOf(spec), partialExt)), Key: spec.Key})
	}
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		id, err := t.Identity()
		if err != nil {
			return h, err
		}
		h.Inputs = append(h.Inputs, stream.Input{Path: id.Path, Key: id.Key, Size: id.Size, MTime: id.MTime, Offset: id.Offset, Head: id.Head})
	}
	return h, nil
}

// from is a path as it is to be found from the directory of another file.
func from(file, path string) string {
	real := func(path string) string {
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
		}
		return path
	}
	path = real(path)
	if rel, err := filepath.Rel(filepath.Dir(real(file)), path); err == nil {
		return rel
	}
	return path // on another volume
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

// conclude ends what an earlier process had computed and, by a crash, only half put in
// place: if at least one output has its name by now, and all are what the journal says, the
// others get theirs and what is left over is removed. over is false where there is more to
// do.
func (o *runOptions) conclude(ctx context.Context, p attention.Problem, in *inputs, l *stream.Log) (over bool, err error) {
	specs, err := o.outputSpecs(p, in)
	if err != nil {
		return false, err
	}
	partial := &outputs{} // to be committed
	placed := &outputs{}  // only claimed: nobody else begins them meanwhile
	defer func() { err = errors.Join(err, partial.close(), placed.abort()) }()
	for _, file := range byFile(specs) {
		f, err := tensorfile.Reopen(file...)
		into := partial
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, tensorfile.ErrFormat) {
			if _, err := os.Stat(file[0].Path); err != nil {
				return false, nil // it is gone: all is computed again
			}
			f, err = tensorfile.Claim(file...)
			into = placed
		}
		if err != nil {
			return false, outputError(inUse(file[0], err))
		}
		into.files = append(into.files, f)
	}
	if len(placed.files) == 0 {
		return false, nil
	}
	kept, err := openKept(specs, true)
	if err != nil {
		return false, err
	}
	c, err := stream.Check(ctx, l, kept.files(o.statePath()))
	kept.close()
	if err != nil || !c.Complete() {
		return false, err
	}
	if err := in.unchanged(); err != nil {
		return false, err
	}
	if err := partial.commit(); err != nil {
		return false, err
	}
	return true, errors.Join(stream.RemoveStates(o.statePath()), stream.RemoveJournal(l.Path))
}

// stops are two contexts of a run: soft ends when it is to stop and save, hard when
// that takes too long. ask gets a value when the user wants to know how far the run is.
func (o *runOptions) stops(ctx context.Context) (hard, soft context.Context, ask <-chan struct{}, off func()) {
	soft, stop := context.WithCancelCause(ctx)
	hard, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	var timers []*time.Timer
	if o.most > 0 {
		timers = append(timers, time.AfterFunc(o.most, func() { stop(errDuration) }))
	}
	end := context.AfterFunc(soft, func() { time.AfterFunc(grace, func() { abort(context.Cause(soft)) }) })
	asked := make(chan struct{}, 1)
	quit := watchUserSignals(stop, func() {
		select {
		case asked <- struct{}{}:
		default: // the answer is on its way
		}
	})
	return hard, soft, asked, func() {
		end()
		for _, t := range timers {
			t.Stop()
		}
		quit()
		stop(nil)
		abort(nil)
	}
}

// answer calls say when somebody asks, until stopped.
func answer(ask <-chan struct{}, say func()) (stop func()) {
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-ask:
				say()
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-over }
}
