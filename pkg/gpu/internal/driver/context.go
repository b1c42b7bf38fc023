//go:build cuda

package driver

import (
	"runtime"

	"gorgonia.org/cu"
)

// Context is the primary context of one device: its address space, and the owner
// of everything else in this package.
type Context struct {
	info Info
	dev  cu.Device
	ctx  cu.CUContext
}

// Open opens a device. The context itself takes some hundred MiB of the device's
// memory, and a few tenths of a second. A thread that waits for this device sleeps
// meanwhile. Nothing is current to the caller's thread after it: see Bind.
func Open(ordinal int) (*Context, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	info, err := describe(ordinal)
	if err != nil {
		return nil, err
	}
	dev, err := cu.GetDevice(ordinal)
	if err != nil {
		return nil, failed(ordinal, err, "find the device")
	}
	if err := dev.SetPrimaryCtxFlags(cu.SchedBlockingSync); err != nil {
		return nil, failed(ordinal, err, "choose how to wait for the device")
	}
	ctx, err := dev.RetainPrimaryCtx()
	if err != nil {
		return nil, failed(ordinal, err, "open the device (%s)", info.Name)
	}
	return &Context{info: info, dev: dev, ctx: ctx}, nil
}

// Info describes the device.
func (c *Context) Info() Info { return c.info }

// Close gives the context back, with all memory, streams, events and modules that
// are left. No thread may use it afterwards.
func (c *Context) Close() error {
	if err := c.dev.ReleasePrimaryCtx(); err != nil {
		return failed(c.info.Ordinal, err, "close the device")
	}
	return nil
}

// Bind locks the calling goroutine to its OS thread and makes the context current
// there, until release is called by the same goroutine.
func (c *Context) Bind() (release func(), err error) {
	runtime.LockOSThread()
	if err := cu.SetCurrentContext(c.ctx); err != nil {
		runtime.UnlockOSThread()
		return nil, failed(c.info.Ordinal, err, "make the context current")
	}
	return func() {
		// It can fail only for a context that isn't ours.
		_ = cu.SetCurrentContext(cu.CUContext{})
		runtime.UnlockOSThread()
	}, nil
}

// Synchronize waits until everything submitted to the device by this process is
// done. An error may be that of any kernel before it.
func (c *Context) Synchronize() error {
	if err := cu.Synchronize(); err != nil {
		return failed(c.info.Ordinal, err, "wait for the device")
	}
	return nil
}

// Memory is how much of the device's memory is free, and how much there is. What
// is free counts other processes, and this context.
func (c *Context) Memory() (free, total int64, err error) {
	if free, total, err = cu.MemInfo(); err != nil {
		return 0, 0, failed(c.info.Ordinal, err, "ask for free memory")
	}
	return free, total, nil
}
