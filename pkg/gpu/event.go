//go:build cuda

package gpu

import (
	"sync"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// event is an operation of the device. It is ready when all that it asks of the GPU
// has been submitted, so that what comes after it can be submitted too, and let the
// GPU wait; it is done when its last byte is where it should be.
type event struct {
	ready, done chan struct{}
	refused     error // why nothing was submitted; set before ready
	err         error // set before done
	hostSide    bool  // its bytes are read on the host: what comes after must wait until it is done

	mu   sync.Mutex
	mark driver.Event // on the GPU; valid from ready to done
	over bool
}

func newEvent() *event { return &event{ready: make(chan struct{}), done: make(chan struct{})} }

// Wait returns when the operation is done.
func (e *event) Wait() error {
	<-e.done
	return e.err
}

// refuse ends an operation that was not submitted.
func (e *event) refuse(err error) {
	e.refused, e.err = err, err
	e.over = true
	close(e.ready)
	close(e.done)
}

// submitted makes the operation ready: mark is its last point on the GPU.
func (e *event) submitted(mark driver.Event) {
	e.mark = mark
	close(e.ready)
}

// complete makes it done, and returns its mark, which nobody waits for any more.
func (e *event) complete(err error) driver.Event {
	e.mu.Lock()
	e.over, e.err = true, err
	e.mu.Unlock()
	close(e.done)
	return e.mark
}

// order lets what is submitted to a stream from now on come after some events. It
// returns when these have been submitted themselves, and the error of one that
// failed.
func order(s driver.Stream, after []attention.Event) error {
	for _, a := range after {
		switch e := a.(type) {
		case nil:
		case *event:
			if err := e.orderBefore(s); err != nil {
				return err
			}
		default:
			if err := a.Wait(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *event) orderBefore(s driver.Stream) error {
	<-e.ready
	if e.refused != nil {
		return e.refused
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return e.err
	}
	return s.Wait(e.mark)
}

// marks are events of the driver that are not in use.
type marks struct {
	ctx   *driver.Context
	timed bool // may be given to Since
	mu    sync.Mutex
	free  []driver.Event
	all   []driver.Event
}

func (m *marks) take() (driver.Event, error) {
	m.mu.Lock()
	if n := len(m.free); n > 0 {
		e := m.free[n-1]
		m.free = m.free[:n-1]
		m.mu.Unlock()
		return e, nil
	}
	m.mu.Unlock()
	e, err := m.ctx.NewEvent(m.timed)
	if err == nil {
		m.mu.Lock()
		m.all = append(m.all, e)
		m.mu.Unlock()
	}
	return e, err
}

func (m *marks) give(list ...driver.Event) {
	m.mu.Lock()
	m.free = append(m.free, list...)
	m.mu.Unlock()
}

// record takes a mark and records it.
func (m *marks) record(s driver.Stream) (driver.Event, error) {
	e, err := m.take()
	if err != nil {
		return e, err
	}
	return e, s.Record(e)
}

// close frees all that were ever taken.
func (m *marks) close() (first error) {
	for _, e := range m.all {
		if err := e.Close(); err != nil && first == nil {
			first = err
		}
	}
	m.free, m.all = nil, nil
	return first
}
