//go:build cuda

package gpu

import (
	"math"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Sizes of what cuda/layout.cuh declares, in bytes.
const (
	panelFeatures = 64
	tileInfoBytes = 16
	maximumBytes  = 8       // of a row's maximum, in its state
	alignment     = 256     // of everything that has an address of its own
	granule       = 2 << 20 // the driver hands out memory in such pieces
)

const (
	leastBuffers = 3 // of staging
	mostBuffers  = 16
	leastStaging = 256 << 10
	// A little more than a power of two, so that chunks of as many bytes need no small
	// parcel for a rest.
	mostStaging = 8<<20 + 128<<10

	uploadSlots = 8    // uploads of one queue that may be under way
	mostJobs    = 512  // of one launch that packs or finishes
	mostRefs    = 4096 // of one launch of attention, at least
)

// pool is struct Pool.
type pool struct {
	KV, Query, Partial                                 uint64
	KVSlot, KVHead, KVK, KVV, KVInfo, KVRest           uint64
	QSlot, QHead, QInfo, QRest, QAcc, QLow, QMax, QSum uint64
	PSplit, PHead                                      uint64
	ExactC                                             float64
	C, Offset, Steep                                   float32
	Columns8, Rows, Group, TileRows, TileKeys          int32
	Features, Columns, Planes, Type                    int32
}

// batchHead is struct Batch, work struct Work, and ref struct Ref.
type (
	batchHead struct {
		Works, Heads, Splits, Refs int32
		Wide                       int32
		_                          int32
		Counts                     uint64
	}
	work struct{ Slot, Rows, First, Count int32 }
	ref  struct{ Slot, Keys, Offset, _ int32 }
)

// packJob is struct PackJob, and finishJob struct FinishJob.
type (
	packJob struct {
		Src, Stride      uint64
		Dst, Info, Rest  uint64
		Rows, Width      int32
		Type             int32
		TileRows, Panels int32
		Planes           int32
		Step, Values     int32
		Sign, Least      float32
	}
	finishJob struct {
		Head, Out, LSE uint64
		Rows, Empty    int32
		Width, Type    int32
	}
)

// typeCode is how kernels call an element type.
func typeCode(t attention.DType) int32 {
	switch t {
	case attention.F16:
		return 1
	case attention.BF16:
		return 2
	}
	return 0
}

// layout is where everything lies in the device's memory, for one geometry. It is
// what Footprint counts and what Reserve carries out.
type layout struct {
	geo    attention.Geometry
	kernel kernelInfo
	sms    int

	queryTiles, keyTiles    int   // of the longest chunk, in one head
	tileQ, tileK, tileV     int64 // bytes of a tile
	pool                    pool  // with addresses from 0
	staging                 int64 // bytes of one buffer
	buffers                 int   // of staging
	refs                    int   // capacity of one launch
	partials                int   // partial states of a query head, over all heads and splits of a launch
	batchBytes              int64 // of one upload: a Pool, and a batch with its works and refs
	kv, query               int64 // bytes of all slots
	stagingAll, partialsAll int64
	uploads                 int64
	counts                  int64 // bytes of the wide kernel's counts, part of uploads
}

// newLayout lays a geometry out. Sizes beyond any memory come out as sizes beyond
// any budget.
func newLayout(g attention.Geometry, k kernelInfo, sms int) *layout {
	l := &layout{geo: g, kernel: k, sms: sms}
	planes, two := int64(k.Planes), int64(k.Two)
	l.queryTiles, l.keyTiles = ceilDiv(g.QueryRows, int(k.Rows)), ceilDiv(g.KeyRows, int(k.Keys))
	l.tileQ = int64(k.Rows) * int64(k.Features) * 2 * planes
	l.tileK = int64(k.Keys) * int64(k.Features) * 2 * planes
	l.tileV = int64(k.Keys) * int64(k.Columns) * 2 * planes
	l.layKV()
	l.layQuery(two)

	p := &l.pool
	p.Group, p.TileRows, p.TileKeys, p.Features, p.Columns = int32(g.Group), k.Rows, k.Keys, k.Features, k.Columns
	p.Planes, p.Offset, p.Steep = k.Planes, k.Offset, steepFor(g)
	p.Type = typeCode(g.DType)
	// A factor of zero would make NaN of the scores that the mask hides.
	p.ExactC = math.Abs(g.Scale) * math.Log2E
	p.C = float32(max(p.ExactC, 1e-20))
	l.kv = attention.Product(g.KVSlots, int(p.KVSlot))
	l.query = attention.Product(g.QuerySlots, int(p.QSlot))
	row := max(g.D, g.Dv) * g.DType.Size()
	// Packing waits for blocks of threads of attention to end. Meanwhile copies go on if
	// all staging buffers together take what a KV slot does.
	l.staging = min(max(int64(p.KVSlot)/leastBuffers, leastStaging), mostStaging)
	l.staging = align(max(l.staging, 2*int64(max(k.Rows, k.Keys))*int64(row)+alignment))
	l.buffers = min(max(ceilDiv(int(p.KVSlot), int(l.staging)), leastBuffers), mostBuffers)
	l.stagingAll = int64(l.buffers) * (l.staging + l.packBytes()) // with what packing is told

	works := g.MostWorks()
	for heads := 1; heads <= min(g.QueryHeads(), sms); heads++ {
		if n := l.splits(heads); n > 1 {
			l.partials = max(l.partials, n*works*heads)
		}
	}
	l.partialsAll = attention.Product(l.partials, int(p.PHead))
	l.refs = max(mostRefs, works)
	l.batchBytes = poolBytes + align(int64(unsafe.Sizeof(batchHead{}))+attention.Product(works, int(unsafe.Sizeof(work{})))+attention.Product(l.refs, int(unsafe.Sizeof(ref{}))))
	l.counts = align(int64(wideBlocks(sms)) * wideThreads / 32 * 8)
	l.uploads = poolBytes + l.counts + uploadSlots*(l.batchBytes+l.packBytes()+l.finishBytes())
	return l
}

// poolBytes is what a Pool takes.
const poolBytes = int64((unsafe.Sizeof(pool{}) + alignment - 1) / alignment * alignment)

// layKV lays out a head of a KV slot: tiles of K and of V, what is known of each
// tile, and what two planes leave of K.
func (l *layout) layKV() {
	p := &l.pool
	p.KVV = p.KVK + uint64(attention.Product(l.keyTiles, int(l.tileK)))
	p.KVInfo = p.KVV + uint64(attention.Product(l.keyTiles, int(l.tileV)))
	end := int64(p.KVInfo) + attention.Product(l.keyTiles, tileInfoBytes)
	if l.kernel.Planes == 2 {
		p.KVRest = uint64(align(end))
		end = int64(p.KVRest) + attention.Product(l.keyTiles, int(l.tileK/2))
	}
	p.KVHead = uint64(align(end))
	p.KVSlot = uint64(attention.Product(l.geo.KVHeads, int(p.KVHead)))
}

// layQuery lays out a query head of a query slot: tiles of Q, what is known of each,
// what two planes leave of Q, and the state: sums, their low halves, maxima,
// denominators.
func (l *layout) layQuery(two int64) {
	p := &l.pool
	rows := int64(l.queryTiles) * int64(l.kernel.Rows)
	p.Rows, p.Columns8 = int32(min(rows, 1<<31-1)), int32((l.geo.Dv+7)/8*8)
	sums := attention.Product(int(rows), int(p.Columns8), 4)
	p.QInfo = uint64(attention.Product(l.queryTiles, int(l.tileQ)))
	p.QAcc = uint64(align(int64(p.QInfo) + attention.Product(l.queryTiles, tileInfoBytes)))
	if l.kernel.Planes == 2 {
		p.QRest = p.QAcc
		p.QAcc = uint64(align(int64(p.QRest) + attention.Product(l.queryTiles, int(l.tileQ/2))))
	}
	p.QLow = p.QAcc + uint64(sums)
	p.QMax = p.QLow + uint64(two*sums)
	p.QSum = p.QMax + uint64(rows*maximumBytes)
	p.QHead = uint64(align(int64(p.QSum) + (1+two)*rows*4))
	p.QSlot = uint64(attention.Product(l.geo.QueryHeads(), int(p.QHead)))
	p.PHead = p.QHead - p.QAcc
}

// Footprint lists what newLayout laid out, by purpose. The driver hands out memory
// in granules: the uploads get what is left of the last.
func (l *layout) footprint() attention.Footprint {
	f := attention.Footprint{
		{Purpose: "kv_slots", Bytes: l.kv},
		{Purpose: "query_slots", Bytes: l.query},
		{Purpose: "staging", Bytes: l.stagingAll},
	}
	if l.partialsAll > 0 {
		f = append(f, attention.Use{Purpose: "partial_states", Bytes: l.partialsAll})
	}
	f = append(f, attention.Use{Purpose: "uploads", Bytes: l.uploads})
	f[len(f)-1].Bytes += (granule - f.Total()%granule) % granule
	return f
}

func (l *layout) packBytes() int64 { return align(int64(mostJobs * unsafe.Sizeof(packJob{}))) }
func (l *layout) finishBytes() int64 {
	return align(int64(mostJobs * unsafe.Sizeof(finishJob{})))
}

// units is the number of blocks of threads that one query chunk makes.
func (l *layout) units(heads int) int { return int(attention.Product(l.queryTiles, heads)) }

// splits is the number of parts into which a launch for so many query heads cuts its
// keys, so that no multiprocessor idles. It follows from the geometry and the device, so
// that bits do.
func (l *layout) splits(heads int) int {
	units := attention.Product(l.units(heads), l.geo.MostWorks())
	if units <= 0 || units >= int64(l.sms) {
		return 1
	}
	tiles := attention.Product(l.geo.KVSlots, l.keyTiles)
	return int(max(1, min(2*int64(l.sms)/units, tiles/leastTiles)))
}

// leastTiles is how many tiles of keys a split is worth its merge for.
const leastTiles = 8

// stateBytes is the size of a saved state of so many rows and query heads: of each
// head sums, their low halves, maxima and denominators, rows side by side.
func (l *layout) stateBytes(rows, heads int) int64 {
	two := 1 + int(l.kernel.Two)
	return attention.Product(heads, rows, (int(l.pool.Columns8)+1)*two*4+maximumBytes)
}

// segment is a piece of device memory, relative to a query slot.
type segment struct {
	at    uint64
	bytes int64
}

// stateSegments are the parts of a saved state, in the order in which they are saved.
func (l *layout) stateSegments(rows, heads int) []segment {
	var list []segment
	p, two := &l.pool, 1+int(l.kernel.Two)
	sums := int64(rows) * int64(p.Columns8) * 4
	for h := range heads {
		head := uint64(h) * p.QHead
		list = append(list, segment{head + p.QAcc, sums})
		if l.kernel.Two != 0 {
			list = append(list, segment{head + p.QLow, sums})
		}
		list = append(list, segment{head + p.QMax, int64(rows) * maximumBytes})
		for i := range two {
			list = append(list, segment{head + p.QSum + uint64(i)*uint64(p.Rows)*4, int64(rows) * 4})
		}
	}
	return list
}

// results is where the results of a query head are put: 16-bit ones over Q, float32
// ones over the sums of which each replaces its own; see finish.cu. Rows are as far
// apart as those of the sums, so that no result takes the place of another's sum.
func (l *layout) results() uint64 {
	switch {
	case l.geo.OutDType != attention.F32:
		return 0
	case l.kernel.Two != 0:
		return l.pool.QLow
	}
	return l.pool.QAcc
}

func align(n int64) int64 { return (n + alignment - 1) / alignment * alignment }

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// bytesOf are the bytes of values as the device reads them: both are little-endian
// and lay structs of such fields out alike.
func bytesOf[T any](list []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(list))), len(list)*int(unsafe.Sizeof(*new(T))))
}
