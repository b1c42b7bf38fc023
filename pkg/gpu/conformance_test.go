//go:build cuda

package gpu

import (
	"testing"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/gputest"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/stream/devicetest"
)

// device opens the first GPU for a test, as one of another compute capability if major
// is not 0.
func device(t testing.TB, opt Options, major int) *Device {
	t.Helper()
	gputest.Need(t)
	list, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	info := list[0]
	if major != 0 {
		info.Major, info.Minor = major, 0
	}
	d, err := Open(info, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// poison fills the slots and what is beside them with NaN.
func poison(t testing.TB, d stream.Device) {
	t.Helper()
	s := d.(*Device).s
	n := int64(s.poolAt) - int64(s.base)
	err := s.d.bound(func() error {
		if err := s.copyIn.Fill8(driver.Ptr(s.base), 0xff, n); err != nil {
			return err
		}
		return s.copyIn.Synchronize()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		Options
		major int
	}{
		"registered": {Options: Options{HostMemory: 1 << 30, LockFirst: true}},
		"ring":       {},
		"sm_80":      {major: 8}, // which later GPUs run too
	} {
		t.Run(name, func(t *testing.T) {
			d := device(t, c.Options, c.major)
			devicetest.Run(t, devicetest.Subject{
				Open:     func(testing.TB, int) stream.Device { return d },
				Poison:   poison,
				PerScore: 0x1p-23,
			})
		})
	}
}

// Structs are as cuda/layout.cuh declares them.
func TestStructs(t *testing.T) {
	for _, x := range []struct {
		name      string
		got, want uintptr
	}{
		{"Pool", unsafe.Sizeof(pool{}), 208}, {"Batch", unsafe.Sizeof(batchHead{}), 32}, {"Work", unsafe.Sizeof(work{}), 16},
		{"Ref", unsafe.Sizeof(ref{}), 16}, {"PackJob", unsafe.Sizeof(packJob{}), 80}, {"FinishJob", unsafe.Sizeof(finishJob{}), 40},
		{"KernelInfo", unsafe.Sizeof(kernelInfo{}), 36},
	} {
		if x.got != x.want {
			t.Errorf("%s has %d bytes, want %d", x.name, x.got, x.want)
		}
	}
}
