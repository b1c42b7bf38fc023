package gpu

import "fmt"

// Options of a device. None changes a bit of a result.
type Options struct {
	// HostMemory bounds the bytes of mapped files that are page-locked at once, so
	// that the device fetches rows from the page cache itself. What does not fit goes
	// through a ring of page-locked buffers; 0 sends everything there.
	HostMemory int64
	// LockFirst page-locks rows before they are used, and waits for it, instead of when
	// they have come through the ring a few times.
	LockFirst bool
}

// DeviceError is an error of a GPU or of its driver.
type DeviceError interface {
	error
	Ordinal() int // of the device; -1 where none was meant
}

// NoMemoryError says that a device had less memory than a plan takes: other processes
// have it.
type NoMemoryError struct {
	Device string
	Want   int64 // bytes that were asked for
	Free   int64 // bytes that the driver says are free
	Err    error // the driver's
}

func (e *NoMemoryError) Error() string {
	return fmt.Sprintf("%s: take %d bytes of device memory, of which %d are free: %v", e.Device, e.Want, e.Free, e.Err)
}

func (e *NoMemoryError) Unwrap() error { return e.Err }
