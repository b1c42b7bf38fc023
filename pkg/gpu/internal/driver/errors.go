//go:build cuda

package driver

import (
	"errors"
	"fmt"

	"gorgonia.org/cu"
)

// Result is a result of the driver other than success. Compare with errors.Is.
type Result int

// The results that callers tell apart.
const (
	InvalidValue      = Result(cu.InvalidValue)
	OutOfMemory       = Result(cu.OutOfMemory)
	NotInitialized    = Result(cu.NotInitialized)
	NoDevice          = Result(cu.NoDevice)
	InvalidDevice     = Result(cu.InvalidDevice)
	NoBinary          = Result(cu.NoBinaryForGpu)
	NotFound          = Result(cu.NotFound)
	NotPermitted      = Result(cu.NotPermitted)
	NotSupported      = Result(cu.NotSupported)
	AlreadyRegistered = Result(cu.HostMemoryAlreadyRegistered)
)

func (r Result) Error() string {
	name, text := resultText(r)
	if name == "" {
		return fmt.Sprintf("CUDA error %d", int(r))
	}
	return fmt.Sprintf("%s (%s)", name, text)
}

// Error is a call of the driver that failed. It wraps a Result.
type Error struct {
	Device int    // ordinal of the device, or -1 where none was meant
	Op     string // what was attempted
	Err    error
}

func (e *Error) Error() string {
	if e.Device < 0 {
		return fmt.Sprintf("cuda: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("cuda:%d: %s: %v", e.Device, e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Ordinal is the device's, or -1 where none was meant.
func (e *Error) Ordinal() int { return e.Device }

// failed makes an Error of what cu or native.go returned. It is for errors only:
// formatting what was attempted is not for the path that succeeds.
func failed(device int, err error, format string, args ...any) error {
	if r := cu.Success; errors.As(err, &r) {
		err = Result(r)
	}
	return &Error{Device: device, Op: fmt.Sprintf(format, args...), Err: err}
}
