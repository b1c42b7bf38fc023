package tensorfile

import (
	"errors"
	"fmt"
	"runtime/debug"
	"unsafe"
)

// Mapped is a Tensor or an Output.
type Mapped interface {
	Path() string
	Map() []byte
}

// Guard runs fn, and turns a fault inside one of the maps into an error that
// names the file: an input that became shorter, or a disk that can't be read.
// It covers the calling goroutine only, not those that fn starts. Any other
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
		if at < uintptr(len(data)) { // unsigned: an address below wraps to a large one
			return fmt.Errorf("%w: %s: byte %d of %d can't be accessed: the file was cut short, or its disk fails", ErrChanged, m.Path(), at, len(data))
		}
	}
	return nil
}
