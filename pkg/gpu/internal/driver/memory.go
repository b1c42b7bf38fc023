//go:build cuda

package driver

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"gorgonia.org/cu"
)

// Ptr is an address in the memory of a device. It may be added to.
type Ptr = cu.DevicePtr

// Alloc takes n > 0 bytes of the device's memory, aligned to 256 bytes, with
// anything in them. The error is OutOfMemory if there is not as much in one piece.
func (c *Context) Alloc(n int64) (Ptr, error) {
	p, err := cu.MemAlloc(n)
	if err != nil {
		return 0, failed(c.info.Ordinal, err, "allocate %d bytes", n)
	}
	return p, nil
}

// Free gives back what Alloc took, after waiting for the device.
func (c *Context) Free(p Ptr) error {
	if err := cu.MemFree(p); err != nil {
		return failed(c.info.Ordinal, err, "free memory at %v", p)
	}
	return nil
}

// Read copies from src as many bytes as dst has, and returns when they are there. It
// does not wait for streams.
func (c *Context) Read(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	if err := cu.MemcpyDtoH(unsafe.Pointer(&dst[0]), src, int64(len(dst))); err != nil {
		return failed(c.info.Ordinal, err, "read %d bytes of the device's memory", len(dst))
	}
	return nil
}

// AllocHost takes n > 0 bytes of page-locked host memory, which copies of every
// device can use. It counts against RLIMIT_MEMLOCK and can't be paged out.
//
// It lies in huge pages where the system has them, and is then locked and released several
// times faster than what the driver's own allocation returns.
func (c *Context) AllocHost(n int64) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes of host memory: %w", n, err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // or small ones
	if err := c.RegisterHost(b, false); err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return b, nil
}

// FreeHost gives back the whole of what AllocHost took.
func (c *Context) FreeHost(b []byte) error {
	if err := c.UnregisterHost(b); err != nil {
		return err
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("free %d bytes of host memory: %w", len(b), err)
	}
	return nil
}

// RegisterHost page-locks the pages of b where they lie, so that copies of every
// device can use them as they use those of AllocHost. readOnly is for memory that
// is mapped for reading only: Info.ReadOnlyHostRegister says whether the device can
// do that; a mapping of a file that can be written is refused by most systems.
// b must start at a page and must not overlap other registered memory
// (AlreadyRegistered). Pages that are not in memory are read.
func (c *Context) RegisterHost(b []byte, readOnly bool) error {
	if r := hostRegister(unsafe.Pointer(unsafe.SliceData(b)), len(b), readOnly); r != 0 {
		return failed(c.info.Ordinal, r, "page-lock %d bytes of host memory", len(b))
	}
	return nil
}

// UnregisterHost undoes RegisterHost of the same b. Copies from and to it must be
// done.
func (c *Context) UnregisterHost(b []byte) error {
	if r := hostUnregister(unsafe.Pointer(unsafe.SliceData(b))); r != 0 {
		return failed(c.info.Ordinal, r, "release %d bytes of page-locked host memory", len(b))
	}
	return nil
}
