//go:build cuda

package gpu

import "github.com/streamcqsa/streamcqsa/pkg/attention"

// The rates of an H100 with 132 multiprocessors at 1.98 GHz, FLOP/s, by the D of the
// kernel's shape. They are those of a kernel that runs long enough to be held back by
// power.
var hopper = map[mode]map[int]float64{
	half:   {64: 540e12, 128: 720e12, 192: 725e12, 256: 720e12},
	split:  {64: 345e12, 128: 430e12, 192: 485e12, 256: 425e12},
	triple: {64: 220e12, 128: 230e12, 192: 228e12, 256: 214e12},
}

const (
	hopperClocks = 132 * 1.98e9 // multiprocessors times Hz
	ampereShare  = 0.5          // of Hopper's rates: what mma.sync reaches of wgmma's

	linkRate   = 50e9 // from page-locked memory to the device, bytes/s
	workerRate = 7e9  // of one thread of the host that copies
	outRate    = 8e9
	stateRate  = 2.5e9 // of states to a file and back
	launchCost = 12e-6 // of a launch, seconds
	loadCost   = 60e-6 // of a load beside its copies
	longest    = 0.5   // of a batch, seconds
	memoryRate = 2e12  // of the device's memory, bytes/s
)

// rates are those of a geometry on a device.
func rates(info Info, l *layout, in float64) attention.Rates {
	g := l.geo
	s, _ := shapeOf(g)
	flops := hopper[modeOf(g)][s.d] * float64(info.SMs) * float64(info.Clock) / hopperClocks
	if info.Major != 9 {
		flops *= ampereShare
	}
	// Features that are only there to fill a tile cost as much as others.
	flops *= float64(g.D+g.Dv) / float64(s.d+s.dv)
	flops *= float64(g.QueryRows) / float64(l.queryTiles*int(l.kernel.Rows)) * float64(g.KeyRows) / float64(l.keyTiles*int(l.kernel.Keys))
	load := float64(attention.Product(g.KVHeads, g.KeyRows, g.D+g.Dv, g.DType.Size()))
	in *= load / (load + in*loadCost)
	sums := attention.Product(l.queryTiles, int(l.kernel.Rows), g.QueryHeads(), int(l.pool.Columns8), 4) * int64(1+l.kernel.Two)
	return attention.Rates{
		FLOPS: flops, In: in, Out: outRate, State: stateRate,
		Launch: launchCost + 2*float64(sums)/memoryRate, // which adds to the sums in memory
		Tasks:  l.units(g.QueryHeads()) * l.splits(g.QueryHeads()), Lanes: info.SMs,
		Longest: longest,
	}
}
