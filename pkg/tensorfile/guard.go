package tensorfile

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"unsafe"
)

// Mapped is a Tensor, an Output or a View.
type Mapped interface {
	Map() []byte
	mapped() *os.File // the file of which it is
}

// Guard runs fn, and turns a fault inside one of the maps into an error that
// names the file: an ErrChanged if that became shorter, and else, as its disk fails,
// a syscall.EIO. It covers the calling goroutine only, not those that fn starts. Any other
// panic passes through.
func Guard(fn func() error, maps ...Mapped) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if err = faultError(r, maps); err == nil {
			panic(r)
		}
	}()
	return fn()
}

// faultError returns nil if r is not a fault in one of the maps.
func faultError(r any, maps []Mapped) error {
	e, ok := r.(error)
	var fault interface{ Addr() uintptr }
	if !ok || !errors.As(e, &fault) {
		return nil
	}
	for _, m := range maps {
		data := m.Map()
		if len(data) == 0 {
			continue
		}
		at := fault.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(data)))
		if at >= uintptr(len(data)) { // unsigned: an address below wraps to a large one
			continue
		}
		f := m.mapped()
		if fi, err := f.Stat(); err == nil && fi.Size() > int64(at) {
			return fmt.Errorf("%s: byte %d of %d can't be accessed: its disk fails: %w", f.Name(), at, len(data), syscall.EIO)
		}
		return fmt.Errorf("%w: %s: byte %d of %d can't be accessed: the file was cut short", ErrChanged, f.Name(), at, len(data))
	}
	return nil
}
