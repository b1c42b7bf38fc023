package stream

import (
	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// paperDevice only plans: its rates and sizes are fixed here, so that goldens
// and searches do not depend on any real device.
type paperDevice struct {
	Device // nil: nothing may run on it
	rates  attention.Rates
}

// gpuLike has engines of its own for copies; coreLike copies with the cores
// that compute.
var (
	gpuLike  = &paperDevice{rates: attention.Rates{FLOPS: 500e12, In: 50e9, Out: 50e9, Launch: 5e-6}}
	coreLike = &paperDevice{rates: attention.Rates{FLOPS: 20e9, In: 2e9, Out: 2e9, Launch: 50e-6, Shared: 0.25}}
)

func (d *paperDevice) Name() string                                { return "paper" }
func (d *paperDevice) Rates(attention.Geometry) attention.Rates    { return d.rates }
func (d *paperDevice) Expected(attention.Geometry) attention.Rates { return d.rates }
func (d *paperDevice) StateBytes(g attention.Geometry) int64 {
	return int64(g.QueryHeads()) * int64(g.QueryRows) * int64(g.Dv+2) * 4
}

func (d *paperDevice) Footprint(g attention.Geometry) attention.Footprint {
	es := int64(g.DType.Size())
	return attention.Footprint{
		{Purpose: "kv_slots", Bytes: int64(g.KVSlots) * int64(g.KVHeads) * int64(g.KeyRows) * int64(g.D+g.Dv) * es},
		{Purpose: "query_slots", Bytes: int64(g.QuerySlots) * (d.StateBytes(g) + int64(g.QueryHeads())*int64(g.QueryRows)*int64(g.D)*es)},
		{Purpose: "scratch", Bytes: 1 << 16},
	}
}
