package cpu

import (
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// event is done when its channel is closed; err is set before that.
type event struct {
	done chan struct{}
	err  error
}

func (e *event) Wait() error {
	<-e.done
	return e.err
}

type operation struct {
	after []attention.Event
	run   func() error
	ev    *event
}

// queue runs operations one after another, each after its events.
type queue struct {
	ops  chan operation
	busy func(time.Duration)
	end  chan struct{}
}

// queueDepth bounds how far the caller may run ahead of a queue before submit
// blocks; hazards are ordered by events, so any depth is correct.
const queueDepth = 256

func newQueue(busy func(time.Duration)) *queue {
	q := &queue{ops: make(chan operation, queueDepth), busy: busy, end: make(chan struct{})}
	go q.loop()
	return q
}

func (q *queue) submit(after []attention.Event, run func() error) attention.Event {
	ev := &event{done: make(chan struct{})}
	q.ops <- operation{after: after, run: run, ev: ev}
	return ev
}

func (q *queue) loop() {
	defer close(q.end)
	for op := range q.ops {
		op.ev.err = q.one(op)
		close(op.ev.done)
	}
}

func (q *queue) one(op operation) error {
	for _, e := range op.after {
		if e == nil {
			continue
		}
		if err := e.Wait(); err != nil {
			return err
		}
	}
	start := time.Now()
	defer func() { q.busy(time.Since(start)) }()
	return attention.GuardFaults(op.run)
}

func (q *queue) close() {
	close(q.ops)
	<-q.end
}
