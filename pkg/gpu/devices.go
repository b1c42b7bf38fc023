//go:build cuda

package gpu

import (
	"fmt"

	"github.com/streamcqsa/streamcqsa/cuda"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// Built reports whether the binary can use GPUs.
const Built = true

// Hash identifies the kernels in the binary: SHA-256, in hexadecimal.
func Hash() string { return cuda.Hash() }

// Devices lists the GPUs that the driver shows, in its order, without opening them.
// The error says what is missing: a driver, a driver that is new enough, or any
// device.
func Devices() ([]Info, error) {
	list, err := driver.Devices()
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if err := newEnough(d.Driver, cuda.Compiler()); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// newEnough fails if a driver can't load code from a compiler: it must support the
// same major version of CUDA, or a later one.
func newEnough(have driver.Version, compiler string) error {
	var major int
	if _, err := fmt.Sscanf(compiler, "%d.", &major); err != nil {
		return fmt.Errorf("the kernels come from an unknown compiler, %q: %w", compiler, err)
	}
	if have.Major < major {
		return fmt.Errorf("the CUDA driver is too old: it supports CUDA %v, and the kernels need %d.0", have, major)
	}
	return nil
}

// Memory is how many bytes of a device's memory are free, and how many there are.
// To know it the device is opened, which takes some tenths of a second and, for
// that time, some of its memory: that is not counted as free.
func Memory(ordinal int) (free, total int64, err error) {
	c, err := driver.Open(ordinal)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if e := c.Close(); err == nil {
			err = e
		}
	}()
	release, err := c.Bind()
	if err != nil {
		return 0, 0, err
	}
	defer release()
	return c.Memory()
}
