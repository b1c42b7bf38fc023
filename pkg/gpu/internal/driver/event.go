//go:build cuda

package driver

import (
	"errors"
	"time"

	"gorgonia.org/cu"
)

// Event marks a point in a stream. One that was never recorded counts as done.
type Event struct {
	e      cu.Event
	device int
}

// NewEvent makes an event. A timed one can be given to Since, and costs a little
// more.
func (c *Context) NewEvent(timed bool) (Event, error) {
	flags := cu.BlockingSyncEvent
	if !timed {
		flags |= cu.DisableTiming
	}
	e, err := cu.MakeEvent(flags)
	if err != nil {
		return Event{}, failed(c.info.Ordinal, err, "create an event")
	}
	return Event{e: e, device: c.info.Ordinal}, nil
}

// Close frees the event. Waits on it that were submitted still hold.
func (e Event) Close() error {
	if err := cu.DestroyEvent(&e.e); err != nil {
		return failed(e.device, err, "free an event")
	}
	return nil
}

// Done reports whether the event is done; it does not wait.
func (e Event) Done() (bool, error) {
	switch err := e.e.Query(); {
	case err == nil:
		return true, nil
	case errors.Is(err, cu.NotReady):
		return false, nil
	default:
		return false, failed(e.device, err, "ask whether an event is done")
	}
}

// Synchronize waits until the event is done. The thread sleeps meanwhile. The
// error is that of whatever failed on the device.
func (e Event) Synchronize() error {
	if err := e.e.Synchronize(); err != nil {
		return failed(e.device, err, "wait for an event")
	}
	return nil
}

// Since is the time on the device from start to e, both timed and done, good to
// about half a microsecond.
func (e Event) Since(start Event) (time.Duration, error) {
	ms, err := start.e.Elapsed(e.e)
	if err != nil {
		return 0, failed(e.device, err, "read the time between events")
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}
