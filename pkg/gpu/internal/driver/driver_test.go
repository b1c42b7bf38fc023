//go:build cuda

package driver_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/cuda"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/gputest"
)

// check ends the test at an error.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must is check for what has a result too.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func kernel(t *testing.T, c *driver.Context, name string) driver.Kernel {
	t.Helper()
	image := must(cuda.Image("probe"))(t)
	m := must(c.LoadModule(image))(t)
	t.Cleanup(func() { check(t, m.Close()) })
	return must(m.Kernel(name))(t)
}

func stream(t *testing.T, c *driver.Context) driver.Stream {
	t.Helper()
	s := must(c.NewStream(0))(t)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func alloc(t *testing.T, c *driver.Context, n int64) driver.Ptr {
	t.Helper()
	p := must(c.Alloc(n))(t)
	t.Cleanup(func() { check(t, c.Free(p)) })
	return p
}

func host(t *testing.T, c *driver.Context, n int64) []byte {
	t.Helper()
	b := must(c.AllocHost(n))(t)
	t.Cleanup(func() { check(t, c.FreeHost(b)) })
	return b
}

func TestNoDriver(t *testing.T) {
	err := driver.Load()
	if err == nil || os.Getenv(gputest.Expected) == "1" {
		t.Skip("there is a driver, or should be")
	}
	if !errors.Is(err, driver.ErrNoDriver) || !strings.Contains(err.Error(), "libcuda.so.1") {
		t.Errorf("Load: %v; want that there is no libcuda.so.1", err)
	}
	if _, err := driver.Devices(); !errors.Is(err, driver.ErrNoDriver) {
		t.Errorf("Devices: %v", err)
	}
	if _, err := driver.Open(0); !errors.Is(err, driver.ErrNoDriver) {
		t.Errorf("Open: %v", err)
	}
	// What calls the driver regardless gets an error, not a crash.
	if _, err := new(driver.Context).Alloc(1); !errors.Is(err, driver.NotInitialized) {
		t.Errorf("Alloc: %v", err)
	}
}

func TestDevices(t *testing.T) {
	c := gputest.Open(t)
	list := must(driver.Devices())(t)
	if len(list) == 0 || list[0] != c.Info() {
		t.Fatalf("devices are %+v, and the first is %+v", list, c.Info())
	}
	for _, d := range list {
		t.Logf("%+v", d)
		if d.Name == "" || d.Major < 3 || d.Driver.Major < 12 || len(d.PCI) != len("0000:00:00.0") || d.Memory < 1<<30 ||
			d.SMs < 1 || d.Clock < 1e8 || d.L2 < 1<<16 || d.Shared < 48<<10 || d.Engines < 1 {
			t.Errorf("unlikely: %+v", d)
		}
	}
	if _, err := driver.Open(len(list)); !errors.Is(err, driver.InvalidDevice) {
		t.Errorf("a device too many: %v", err)
	}
}

func TestLaunch(t *testing.T) {
	c := gputest.Open(t)
	saxpy, s := kernel(t, c, "probe_saxpy"), stream(t, c)
	r := must(saxpy.Resources())(t)
	if r.Registers < 1 || r.Local != 0 || r.Shared != 0 || r.Threads < 256 {
		t.Errorf("saxpy takes %+v", r)
	}
	if n := must(saxpy.BlocksPerSM(256, 0))(t); n < 1 {
		t.Errorf("%d blocks on a multiprocessor", n)
	}
	const n = 1 << 20
	x, y := host(t, c, 4*n), host(t, c, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(x[4*i:], math.Float32bits(float32(i)))
		binary.LittleEndian.PutUint32(y[4*i:], math.Float32bits(1))
	}
	dx, dy := alloc(t, c, 4*n), alloc(t, c, 4*n)
	start, end := must(c.NewEvent(true))(t), must(c.NewEvent(true))(t)
	check(t, s.CopyIn(dx, x))
	check(t, s.CopyIn(dy, y))
	check(t, s.Record(start))
	check(t, saxpy.Launch(s, driver.Dim{X: 64}, driver.Dim{X: 256}, 0,
		driver.ArgPtr(dy), driver.ArgPtr(dx), driver.ArgFloat(0.5), driver.ArgInt(n)))
	check(t, s.Record(end))
	check(t, s.CopyOut(y, dy))
	check(t, s.Synchronize())
	for i := range n {
		if got := math.Float32frombits(binary.LittleEndian.Uint32(y[4*i:])); got != 0.5*float32(i)+1 {
			t.Fatalf("element %d is %v", i, got)
		}
	}
	if d := must(end.Since(start))(t); d <= 0 || d > time.Second {
		t.Errorf("the kernel took %v", d)
	}
	check(t, start.Close())
	check(t, end.Close())
}

func TestSharedMemory(t *testing.T) {
	c := gputest.Open(t)
	shared, s := kernel(t, c, "probe_shared"), stream(t, c)
	most := c.Info().Shared
	out, got := alloc(t, c, 4), host(t, c, 4)
	launch := func() error {
		return shared.Launch(s, driver.Dim{}, driver.Dim{X: 128}, most, driver.ArgPtr(out))
	}
	if err := launch(); !errors.Is(err, driver.InvalidValue) {
		t.Errorf("%d bytes of shared memory before they were allowed: %v", most, err)
	}
	if err := shared.SetMaxShared(most + 1); !errors.Is(err, driver.InvalidValue) {
		t.Errorf("more shared memory than there is: %v", err)
	}
	check(t, shared.SetMaxShared(most))
	check(t, launch())
	check(t, s.CopyOut(got, out))
	check(t, s.Synchronize())
	if n := binary.LittleEndian.Uint32(got); int(n) != most {
		t.Errorf("the block had %d bytes of shared memory, want %d", n, most)
	}
}

func TestCopyRows(t *testing.T) {
	c := gputest.Open(t)
	s := stream(t, c)
	const rows, width, pitch, devicePitch = 37, 48, 80, 64
	from, to := host(t, c, rows*pitch), host(t, c, rows*pitch)
	for i := range from {
		from[i], to[i] = byte(i*7), 0xee
	}
	p := alloc(t, c, rows*devicePitch)
	check(t, s.Fill8(p, 0xaa, rows*devicePitch))
	r := driver.Rows{N: rows, Width: width}
	check(t, s.CopyIn2D(p, devicePitch, from[:(rows-1)*pitch+width], pitch, r))
	check(t, s.CopyOut2D(to, pitch, p, devicePitch, r))
	whole := host(t, c, rows*devicePitch)
	check(t, s.CopyOut(whole, p))
	check(t, s.Synchronize())
	for i := range rows {
		if !bytes.Equal(to[i*pitch:][:width], from[i*pitch:][:width]) {
			t.Fatalf("row %d did not come back", i)
		}
		for j := width; j < pitch; j++ {
			if to[i*pitch+j] != 0xee {
				t.Fatalf("row %d: byte %d, beyond the width, was written on the host", i, j)
			}
		}
		for j := width; j < devicePitch; j++ {
			if whole[i*devicePitch+j] != 0xaa {
				t.Fatalf("row %d: byte %d, beyond the width, was written on the device", i, j)
			}
		}
	}
}

func TestFillAndCopy(t *testing.T) {
	c := gputest.Open(t)
	s := stream(t, c)
	p, got := alloc(t, c, 64), host(t, c, 32)
	check(t, s.Fill32(p, 0xdeadbeef, 4))
	check(t, s.Fill8(p+16, 0x55, 16))
	check(t, s.Copy(p+32, p, 32))
	check(t, s.CopyOut(got, p+32))
	check(t, s.Synchronize())
	want := append(bytes.Repeat([]byte{0xef, 0xbe, 0xad, 0xde}, 4), bytes.Repeat([]byte{0x55}, 16)...)
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	// Nothing is copied where there is nothing.
	check(t, s.CopyIn(0, nil))
	check(t, s.CopyOut(nil, 0))
	check(t, s.Copy(0, 0, 0))
	check(t, s.Fill8(0, 1, 0))
	check(t, s.CopyIn2D(0, 8, nil, 8, driver.Rows{Width: 8}))
}

// A file mapped for reading only, which is how inputs are read.
func TestRegisterReadOnly(t *testing.T) {
	c := gputest.Open(t)
	if !c.Info().ReadOnlyHostRegister {
		t.Skip("the device can't register memory that is mapped for reading only")
	}
	s := stream(t, c)
	const n = 8 << 20
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i>>12 + i)
	}
	path := filepath.Join(t.TempDir(), "data")
	check(t, os.WriteFile(path, data, 0o600))
	f := must(os.Open(path))(t)
	defer f.Close()
	mapped := must(unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED))(t)
	defer func() { check(t, unix.Munmap(mapped)) }()

	check(t, c.RegisterHost(mapped, true))
	if err := c.RegisterHost(mapped, true); !errors.Is(err, driver.AlreadyRegistered) {
		t.Errorf("registered again: %v", err)
	}
	p, got := alloc(t, c, n), host(t, c, n)
	check(t, s.CopyIn(p, mapped))
	check(t, s.CopyOut(got, p))
	check(t, s.Synchronize())
	if !bytes.Equal(got, data) {
		t.Error("other bytes arrived than the file has")
	}
	check(t, c.UnregisterHost(mapped))
	if err := c.UnregisterHost(mapped); err == nil {
		t.Error("unregistered twice")
	}
}

func TestStreamsAndEvents(t *testing.T) {
	c := gputest.Open(t)
	lowest, highest, err := c.StreamPriorities()
	check(t, err)
	if highest > lowest {
		t.Errorf("priorities from %d to %d", lowest, highest)
	}
	first, second := stream(t, c), must(c.NewStream(highest))(t)
	defer func() { check(t, second.Close()) }()
	filled := must(c.NewEvent(false))(t)
	if done := must(filled.Done())(t); !done {
		t.Error("an event that was never recorded is not done")
	}
	wait := kernel(t, c, "probe_wait")
	p, got := alloc(t, c, 4), host(t, c, 4)
	check(t, first.Fill32(p, 1, 1))
	check(t, first.Synchronize())

	const busy = 50 * time.Millisecond
	check(t, wait.Launch(first, driver.Dim{}, driver.Dim{}, 0, driver.Arg(busy)))
	check(t, first.Fill32(p, 2, 1))
	check(t, first.Record(filled))
	check(t, second.Wait(filled))
	check(t, second.CopyOut(got, p))
	if done := must(filled.Done())(t); done {
		t.Error("the event was done at once")
	}
	if idle := must(second.Idle())(t); idle {
		t.Error("the second stream did not wait")
	}
	check(t, filled.Synchronize())
	check(t, second.Synchronize())
	if n := binary.LittleEndian.Uint32(got); n != 2 {
		t.Errorf("the second stream read %d, from before the event", n)
	}
	if idle := must(first.Idle())(t); !idle {
		t.Error("the first stream is not idle")
	}
	check(t, filled.Close())
}

func TestMemory(t *testing.T) {
	c := gputest.Open(t)
	before, total, err := c.Memory()
	check(t, err)
	if before <= 0 || before > total || total > c.Info().Memory {
		t.Errorf("%d of %d bytes free, on a device of %d", before, total, c.Info().Memory)
	}
	_, err = c.Alloc(total + 1<<30)
	if !errors.Is(err, driver.OutOfMemory) || !strings.HasPrefix(err.Error(), "cuda:0: allocate ") || !strings.Contains(err.Error(), "CUDA_ERROR_OUT_OF_MEMORY") {
		t.Errorf("more memory than there is: %v", err)
	}
	const n = 256 << 20
	p := must(c.Alloc(n))(t)
	if p%256 != 0 {
		t.Errorf("memory at %v", p)
	}
	during, _, err := c.Memory()
	check(t, err)
	if during > before-n/2 {
		t.Errorf("%d bytes free, and after allocating %d still %d", before, int64(n), during)
	}
	check(t, c.Free(p))
}

func TestNoSuchCode(t *testing.T) {
	c := gputest.Open(t)
	m := must(c.LoadModule(must(cuda.Image("probe"))(t)))(t)
	if _, err := m.Kernel("nothing"); !errors.Is(err, driver.NotFound) {
		t.Errorf("a kernel that isn't there: %v", err)
	}
	check(t, m.Close())
	if _, err := c.LoadModule([]byte("neither a fatbin nor PTX")); err == nil {
		t.Error("loaded something that isn't code")
	}
}

func TestThread(t *testing.T) {
	c := gputest.Open(t)
	thread := must(c.NewThread())(t)
	want := errors.New("wanted")
	if err := thread.Do(func() error { return want }); err != want {
		t.Errorf("Do returned %v", err)
	}
	var wg sync.WaitGroup
	sum := 0 // only one function runs at a time
	for range 32 {
		wg.Go(func() {
			err := thread.Do(func() error {
				p, err := c.Alloc(1 << 10)
				if err != nil {
					return err
				}
				sum++
				return c.Free(p)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	thread.Close()
	if sum != 32 {
		t.Errorf("%d functions ran", sum)
	}
}
