//go:build cuda

package gpu

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/cuda"
	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// Device computes on one GPU. It implements the streaming engine's device contract;
// see there for the order in which its methods may be called.
type Device struct {
	info Info
	opt  Options
	ctx  *driver.Context

	modules []driver.Module
	attend  map[string]attendKernel
	units   unitKernels

	s           *session // from Reserve to Release
	interrupted atomic.Bool
	mu          sync.Mutex // guards stats
	stats       attention.Stats
}

// attendKernel is an attention kernel with what it says of itself.
type attendKernel struct {
	kernelInfo
	driver.Kernel
}

// unitKernels are the kernels beside attention.
type unitKernels struct {
	pack, empty          driver.Kernel
	mergeOne, mergeTwo   driver.Kernel
	wideOne, wideTwo     driver.Kernel
	finishOne, finishTwo driver.Kernel
}

// Open opens a GPU and loads its kernels. That takes some tenths of a second, and
// some hundred MiB of its memory for the driver's own purposes.
func Open(info Info, opt Options) (*Device, error) {
	if err := newEnough(info.Driver, cuda.Compiler()); err != nil {
		return nil, err
	}
	target, err := Target(info)
	if err != nil {
		return nil, err
	}
	ctx, err := driver.Open(info.Ordinal)
	if err != nil {
		return nil, err
	}
	d := &Device{info: info, opt: opt, ctx: ctx, attend: make(map[string]attendKernel)}
	if err := d.bound(func() error { return d.load(target) }); err != nil {
		_ = d.Close() // a GPU that has failed gives nothing back, and err says why
		return nil, err
	}
	return d, nil
}

// bound runs f where the device's context is current.
func (d *Device) bound(f func() error) error {
	release, err := d.ctx.Bind()
	if err != nil {
		return err
	}
	defer release()
	return f()
}

// load loads all modules and finds their kernels.
func (d *Device) load(target string) error {
	unit := "attention_sm90"
	if target == "sm_80" {
		unit = "attention_sm80"
	}
	m, err := d.module(unit)
	if err != nil {
		return err
	}
	for _, mode := range modes {
		for _, s := range shapes {
			name := kernelName(mode, s)
			k, err := d.attention(m, name, s)
			if err != nil {
				return err
			}
			d.attend[name] = k
		}
	}
	u := &d.units
	for _, x := range []struct {
		unit    string
		kernels map[string]*driver.Kernel
	}{
		{"pack", map[string]*driver.Kernel{"pack": &u.pack}},
		{"wide", map[string]*driver.Kernel{"wide_one": &u.wideOne, "wide_two": &u.wideTwo}},
		{"finish", map[string]*driver.Kernel{"empty_state": &u.empty, "merge_one": &u.mergeOne, "merge_two": &u.mergeTwo,
			"finish_one": &u.finishOne, "finish_two": &u.finishTwo}},
	} {
		if m, err = d.module(x.unit); err != nil {
			return err
		}
		for name, k := range x.kernels {
			if *k, err = m.Kernel(name); err != nil {
				return err
			}
		}
	}
	most := &layout{kernel: kernelInfo{Features: maxFeatures}, pool: pool{Columns8: maxFeatures}}
	return errors.Join(u.wideOne.SetMaxShared(most.wideShared()), u.wideTwo.SetMaxShared(most.wideShared()))
}

func (d *Device) module(unit string) (driver.Module, error) {
	image, err := cuda.Image(unit)
	if err != nil {
		return driver.Module{}, err
	}
	m, err := d.ctx.LoadModule(image)
	if err == nil {
		d.modules = append(d.modules, m)
	}
	return m, err
}

// attention finds an attention kernel and reads what it says of itself.
func (d *Device) attention(m driver.Module, name string, s shape) (k attendKernel, err error) {
	if k.Kernel, err = m.Kernel(name); err != nil {
		return k, err
	}
	at, n, err := m.Global(name + "_info")
	if err != nil {
		return k, err
	}
	info := make([]kernelInfo, 1)
	if n != int64(unsafe.Sizeof(info[0])) {
		return k, fmt.Errorf("kernel %s describes itself in %d bytes, want %d", name, n, unsafe.Sizeof(info[0]))
	}
	if err := d.ctx.Read(bytesOf(info), at); err != nil {
		return k, err
	}
	k.kernelInfo = info[0]
	if err := k.check(name, s); err != nil {
		return k, err
	}
	if int(k.Shared) > d.info.Shared {
		return k, fmt.Errorf("kernel %s needs %d bytes of shared memory, cuda:%d has %d", name, k.Shared, d.info.Ordinal, d.info.Shared)
	}
	return k, k.SetMaxShared(int(k.Shared))
}

// Close gives the device back. It must not be reserved.
func (d *Device) Close() error {
	err := d.bound(func() (err error) {
		for _, m := range d.modules {
			err = errors.Join(err, m.Close())
		}
		return err
	})
	return errors.Join(err, d.ctx.Close())
}

// Name is cuda: and the ordinal.
func (d *Device) Name() string { return fmt.Sprintf("cuda:%d", d.info.Ordinal) }

// Info describes the device.
func (d *Device) Info() Info { return d.info }

// Kernel is the name of the attention kernel for a geometry.
func (d *Device) Kernel(g attention.Geometry) string {
	s, _ := shapeOf(g)
	return kernelName(modeOf(g), s)
}

// Signature names the kernel and the GPU, to whose number of multiprocessors the split
// of keys adapts.
func (d *Device) Signature(g attention.Geometry) string {
	return fmt.Sprintf("cuda %s, %s with %d multiprocessors", d.Kernel(g), d.info.Name, d.info.SMs)
}

// Memory is how many bytes of the device's memory are free, and how many there are.
// The context's own are not free.
func (d *Device) Memory() (free, total int64, err error) {
	err = d.bound(func() (err error) {
		free, total, err = d.ctx.Memory()
		return err
	})
	return free, total, err
}

// Supports says why the device can't compute a problem, if it can't.
func (d *Device) Supports(p attention.Problem) error {
	if max(p.D, p.Dv) > maxFeatures {
		return fmt.Errorf("%s takes head dimensions up to %d, the problem has D=%d and Dv=%d: --device cpu takes them", d.Name(), maxFeatures, p.D, p.Dv)
	}
	return nil
}

// layout lays out a geometry that Supports allows.
func (d *Device) layout(g attention.Geometry) *layout {
	return newLayout(g, d.attend[d.Kernel(g)].kernelInfo, d.info.SMs)
}

// Footprint is the memory that Reserve takes on the device.
func (d *Device) Footprint(g attention.Geometry) attention.Footprint { return d.layout(g).footprint() }

// StateBytes is the size of a saved state of the longest query chunk: for each query
// head acc[Dv], m and l in float32, with what float32 can't hold where results are
// float32 too.
func (d *Device) StateBytes(g attention.Geometry) int64 {
	return d.layout(g).stateBytes(g.QueryRows, g.QueryHeads())
}

// Rates are nominal for such a device, whatever the host.
func (d *Device) Rates(g attention.Geometry) attention.Rates {
	return rates(d.info, d.layout(g), linkRate)
}

// Expected are the rates with this host's way to the device.
func (d *Device) Expected(g attention.Geometry) attention.Rates {
	in := min(linkRate, float64(workersOf())*workerRate)
	if d.opt.HostMemory > 0 && d.info.ReadOnlyHostRegister {
		in = linkRate
	}
	return rates(d.info, d.layout(g), in)
}

// Reserve takes all memory, on the device and for transfers on the host, and starts
// the queues. The error is a NoMemoryError where others took what was to be had.
func (d *Device) Reserve(g attention.Geometry) error {
	if _, ok := shapeOf(g); !ok {
		return fmt.Errorf("%s has no kernel for D=%d and Dv=%d", d.Name(), g.D, g.Dv)
	}
	d.book(func(s *attention.Stats) { *s = attention.Stats{} })
	s, err := newSession(d, d.layout(g))
	if err != nil {
		return err
	}
	d.s = s
	return nil
}

// Allocated is the memory that Reserve took.
func (d *Device) Allocated() attention.Footprint {
	if d.s == nil {
		return nil
	}
	return d.s.l.footprint()
}

func (d *Device) book(f func(*attention.Stats)) {
	d.mu.Lock()
	f(&d.stats)
	d.mu.Unlock()
}

// Stats is what was done since Reserve. It may be called at any time.
func (d *Device) Stats() attention.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Interrupt makes operations that wait end at once, with attention.ErrInterrupted, and
// those on the GPU when the launch in work is done. It may be called at any time, and
// lasts until Release.
func (d *Device) Interrupt() { d.interrupted.Store(true) }

// Release waits for all operations and gives the memory back. The device may be
// reserved again.
func (d *Device) Release() error {
	if d.s == nil {
		return nil
	}
	err := d.s.close()
	d.s = nil
	d.interrupted.Store(false)
	return err
}

// workersOf is how many goroutines copy between files and page-locked memory: one
// core moves some 5 to 7 GB/s, and the link takes 55. Some cores are left to others.
func workersOf() int { return max(1, min(runtime.GOMAXPROCS(0)*3/4, 12)) }
