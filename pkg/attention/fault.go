package attention

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrInterrupted is what operations end with after a device was interrupted.
var ErrInterrupted = errors.New("interrupted")

// Fault is a failed access to mapped memory: the file under the map was
// truncated, or its disk failed to deliver the page.
type Fault struct {
	Addr uintptr
}

func (f *Fault) Error() string {
	return fmt.Sprintf("access to mapped memory at %#x failed", f.Addr)
}

// GuardFaults runs f and turns a fault on mapped memory into a Fault. Any other panic
// is a bug and goes on. It covers the calling goroutine, not those that f starts.
func GuardFaults(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err = &Fault{Addr: r.Addr()}
		default:
			panic(fmt.Sprintf("%v\n\n%s", r, debug.Stack()))
		}
	}()
	return f()
}
