package cpu

import (
	"math"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// A measurement changes predictions, and no rate that chooses a plan; one that
// predictions could not divide by is left alone.
func TestCalibrate(t *testing.T) {
	g := attention.Geometry{D: 64, Dv: 64, DType: attention.F32, OutDType: attention.F32, KVHeads: 1, Group: 1, QueryRows: 4096, KeyRows: 4096, QuerySlots: 1, KVSlots: 1}
	d := newDevice(2)
	nominal, expected := d.Rates(g), d.Expected(g)
	rate := KernelRate{DType: "f32", D: 64, FLOPS: 3e12, Bytes: 1e9, Load: 2e9, Store: 4e9}
	good := func() *Measurement {
		return &Measurement{Kernel: d.Kernel(), Threads: 2, Start: 0.01, Touch: 1e9, Sync: 1e9, Batch: 1e-4, Many: []KernelRate{rate}, Few: []KernelRate{rate}}
	}
	for name, spoil := range map[string]func(*Measurement){
		"another kernel": func(m *Measurement) { m.Kernel = "abacus" },
		"no threads":     func(m *Measurement) { m.Threads = 0 },
		"no rates":       func(m *Measurement) { m.Few = nil },
		"no batch":       func(m *Measurement) { m.Batch = 0 },
		"a rate of 0":    func(m *Measurement) { m.Many[0].Store = 0 },
		"not a number":   func(m *Measurement) { m.Few[0].Bytes = math.NaN() },
	} {
		m := good()
		spoil(m)
		if d.Calibrate(m); d.Measured() != nil || d.Expected(g) != expected {
			t.Errorf("%s: taken", name)
		}
	}
	d.Calibrate(nil)
	d.Calibrate(good())
	if got := d.Expected(g); got.FLOPS != 3e12 || got.In != 2e9 || got.Out != 4e9 {
		t.Errorf("expected rates are %+v", got)
	}
	// The others wait for the last of 48 rows, 100 microseconds being for nothing.
	if got, want := d.Expected(g).Launch, 1e-4+48*4096*128*2/3e12; math.Abs(got-want) > 1e-12 {
		t.Errorf("a batch is expected to cost %v, want %v", got, want)
	}
	if got := d.Rates(g); got != nominal {
		t.Errorf("the rates that choose a plan are %+v, were %+v", got, nominal)
	}
}
