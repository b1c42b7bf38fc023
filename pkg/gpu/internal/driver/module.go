//go:build cuda

package driver

import (
	"math"
	"unsafe"

	"gorgonia.org/cu"
)

// Module is compiled code, loaded.
type Module struct {
	m      cu.Module
	device int
}

// LoadModule loads a cubin, a fatbin or PTX. PTX is compiled now, unless the driver
// remembers it. The error is NoBinary if there is no code for the device.
func (c *Context) LoadModule(image []byte) (Module, error) {
	m, err := cu.LoadData(string(image))
	if err != nil {
		return Module{}, failed(c.info.Ordinal, err, "load a module of %d bytes for sm_%d%d", len(image), c.info.Major, c.info.Minor)
	}
	return Module{m: m, device: c.info.Ordinal}, nil
}

// Close unloads the module. Its kernels must not run.
func (m Module) Close() error {
	if err := m.m.Unload(); err != nil {
		return failed(m.device, err, "unload a module")
	}
	return nil
}

// Kernel is a function of a module that can be launched.
type Kernel struct {
	name   string
	f      cu.Function
	device int
}

// Kernel finds a kernel by the name in the object code, which is that in the source
// only if it is declared extern "C". The error is NotFound if there is none.
func (m Module) Kernel(name string) (Kernel, error) {
	f, err := m.m.Function(name)
	if err != nil {
		return Kernel{}, failed(m.device, err, "find kernel %s", name)
	}
	return Kernel{name: name, f: f, device: m.device}, nil
}

// Global finds a variable of the module, and its size in bytes. The error is NotFound
// if there is none.
func (m Module) Global(name string) (Ptr, int64, error) {
	p, n, err := m.m.Global(name)
	if err != nil {
		return 0, 0, failed(m.device, err, "find variable %s", name)
	}
	return p, n, nil
}

// Resources is what a kernel takes.
type Resources struct {
	Registers int // of a thread
	Local     int // bytes of a thread, in the device's memory: stack and spills
	Shared    int // bytes of a block, beside dynamic shared memory
	Threads   int // most threads of a block
}

// Resources asks the driver what the kernel takes.
func (k Kernel) Resources() (r Resources, err error) {
	for _, a := range []struct {
		attr cu.FunctionAttribute
		to   *int
	}{
		{cu.NumRegs, &r.Registers},
		{cu.LocalSizeBytes, &r.Local},
		{cu.SharedSizeBytes, &r.Shared},
		{cu.FnMaxThreadsPerBlock, &r.Threads},
	} {
		if *a.to, err = k.f.Attribute(a.attr); err != nil {
			return Resources{}, failed(k.device, err, "read attribute %d of kernel %s", int(a.attr), k.name)
		}
	}
	return r, nil
}

// SetMaxShared allows launches with up to n bytes of dynamic shared memory. Without
// it the most is 48 KiB; Info.Shared is the most that it can be.
func (k Kernel) SetMaxShared(n int) error {
	if r := setMaxShared(k.f, n); r != 0 {
		return failed(k.device, r, "allow kernel %s %d bytes of shared memory", k.name, n)
	}
	return nil
}

// BlocksPerSM is how many blocks of so many threads and bytes of dynamic shared
// memory can run on one multiprocessor at once.
func (k Kernel) BlocksPerSM(threads, shared int) (int, error) {
	n, err := k.f.MaxActiveBlocksPerMultiProcessor(threads, int64(shared))
	if err != nil {
		return 0, failed(k.device, err, "ask how many blocks of kernel %s fit", k.name)
	}
	return n, nil
}

// Dim is the size of a grid, in blocks, or of a block, in threads. 0 is 1.
type Dim struct{ X, Y, Z int }

func (d Dim) size() (x, y, z int) { return max(1, d.X), max(1, d.Y), max(1, d.Z) }

// Arg is an argument of a kernel, as bits. The kernel's parameter takes as many of
// the lower bits as its type has, 64 at most.
type Arg uint64

// ArgPtr passes an address: a pointer of any type.
func ArgPtr(p Ptr) Arg { return Arg(p) }

// ArgInt passes an integer: int64_t, or int32_t or smaller if the value fits.
func ArgInt(v int) Arg { return Arg(v) }

// ArgFloat passes a float.
func ArgFloat(v float32) Arg { return Arg(math.Float32bits(v)) }

// Launch submits a launch of the kernel with so many bytes of dynamic shared memory.
// There must be one argument for each parameter. An error in the kernel shows when
// something after it is waited for.
func (k Kernel) Launch(s Stream, grid, block Dim, shared int, args ...Arg) error {
	params := make([]unsafe.Pointer, len(args))
	for i := range args {
		params[i] = unsafe.Pointer(&args[i])
	}
	gx, gy, gz := grid.size()
	bx, by, bz := block.size()
	if err := k.f.Launch(gx, gy, gz, bx, by, bz, shared, s.s, params); err != nil {
		return failed(k.device, err, "launch kernel %s with %dx%dx%d blocks of %dx%dx%d threads and %d bytes of shared memory",
			k.name, gx, gy, gz, bx, by, bz, shared)
	}
	return nil
}
