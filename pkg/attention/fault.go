package attention

import (
	"errors"
	"fmt"
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
