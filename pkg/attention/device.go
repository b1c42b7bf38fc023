package attention

import (
	"cmp"
	"io"
)

// Geometry fixes everything that a device allocates: the kernel it needs and
// the pool of slots. Nothing is allocated after it.
type Geometry struct {
	D, Dv    int
	DType    DType // of Q, K, V
	OutDType DType
	Scale    float64
	Fast     bool // as in Problem

	KVHeads int // KV heads of the largest head group
	Group   int // query heads that share one KV head

	QueryRows int // rows of the longest query chunk
	KeyRows   int // rows of the longest key chunk

	QuerySlots int
	KVSlots    int
	// Works is the most query chunks of an Apply. How a device cuts its work may depend on
	// that, but not on how many there are in one: a run that was stopped and goes on may have
	// fewer. 0: QuerySlots.
	Works int
}

// MostWorks is the most query chunks of an Apply.
func (g Geometry) MostWorks() int { return cmp.Or(g.Works, g.QuerySlots) }

// QueryHeads is the number of query heads of the largest head group.
func (g Geometry) QueryHeads() int { return g.KVHeads * g.Group }

// Use is a number of bytes held for one purpose.
type Use struct {
	Purpose string `json:"purpose"`
	Bytes   int64  `json:"bytes"`
}

// Footprint lists the memory that a device holds, purpose by purpose.
type Footprint []Use

// Total is the sum over all purposes, in bytes.
func (f Footprint) Total() int64 {
	var n int64
	for _, u := range f {
		n += u.Bytes
	}
	return n
}

// Product is the product of counts and sizes, but at most 2^58, which is more bytes than
// any machine has: one that wrapped around could look as if it fitted, and so could a
// sum of a few.
func Product(factors ...int) int64 {
	n, wide := int64(1), 1.0
	for _, f := range factors {
		n *= int64(f)
		wide *= float64(f)
	}
	if wide >= 1<<58 {
		return 1 << 58
	}
	return n
}

// Rates describe a device to the planner.
type Rates struct {
	FLOPS  float64 // kernel arithmetic, FLOP/s
	In     float64 // host to slot, bytes/s, from the page cache
	Out    float64 // slot to host, bytes/s
	Launch float64 // seconds a batch costs beside its arithmetic, and a load beside its bytes
	Idle   float64 // share of its cores that the kernel leaves to transfers anyway
	Shared float64 // share of a transfer's seconds in which the kernel loses all its cores; 0 where copies have engines of their own

	// InPlace says that Apply reads K and V itself, where they are.
	InPlace bool
	// State is the rate of states to their file and back, bytes/s, where that is slower
	// than other transfers and batches wait for it; 0 where it is like them.
	State float64
	// Tasks is what one query chunk of a batch is cut into, and Lanes how many run at
	// once: while the last ones do, some lanes idle. 0 where that does not matter.
	Tasks, Lanes int
	// Longest is the longest that a batch should take, seconds: a run ends between two.
	// 0: any time.
	Longest float64
}

// lastTasks is the part of a round of tasks that is lost at the end of a batch: those
// of the last round do not end together.
const lastTasks = 0.1

// Filled is the share of the kernel's rate that a batch of so many query chunks gets.
func (r Rates) Filled(chunks int) float64 {
	n := r.Tasks * chunks
	if n == 0 || r.Lanes == 0 {
		return 1
	}
	rounds := float64((n+r.Lanes-1)/r.Lanes) + lastTasks
	return float64(n) / (rounds * float64(r.Lanes))
}

// Rows points at consecutive rows of one head in host memory. Row i occupies
// Width elements of type DType from Data[i*Stride].
//
// File, if not nil, has the same bytes from At on. To copy rows that lie side by
// side, reading them beats touching the mapping: a read costs no page faults,
// keeps the file's own order for the system's read-ahead, and turns a lost page
// into an error.
//
// Mapping, if not nil, is the whole shared mapping of a file, for reading only, that
// Data is part of: a device may page-lock parts of it, to fetch rows without a copy.
type Rows struct {
	Data   []byte
	Stride int // bytes between the starts of consecutive rows
	N      int // rows
	Width  int // elements in a row
	DType  DType
	File   io.ReaderAt
	At     int64

	Mapping []byte
}

// RowBytes is the number of bytes in one row.
func (r Rows) RowBytes() int { return r.Width * r.DType.Size() }

// Contiguous reports whether nothing lies between the rows.
func (r Rows) Contiguous() bool { return r.Stride == r.RowBytes() || r.N <= 1 }

// Row returns the bytes of row i.
func (r Rows) Row(i int) []byte {
	return r.Data[i*r.Stride : i*r.Stride+r.RowBytes()]
}

// Slice returns rows [lo,hi).
func (r Rows) Slice(lo, hi int) Rows {
	s := r
	s.Data, s.N, s.At = nil, hi-lo, r.At+int64(lo)*int64(r.Stride)
	if hi > lo { // after the last row there need not be a whole stride
		s.Data = r.Data[lo*r.Stride : (hi-1)*r.Stride+r.RowBytes()]
	}
	return s
}

// CopyTo copies the rows to dst, one after another: from the file if they are contiguous
// and have one, else from memory, where GuardFaults is the caller's.
func (r Rows) CopyTo(dst []byte) error {
	if !r.Contiguous() {
		for i, w := 0, r.RowBytes(); i < r.N; i++ {
			copy(dst[i*w:(i+1)*w], r.Row(i))
		}
		return nil
	}
	if r.File != nil {
		return ReadFull(r.File, dst[:r.N*r.RowBytes()], r.At)
	}
	copy(dst, r.Data)
	return nil
}

// ReadFull reads all of b from offset at. A reader may report io.EOF along with the last
// bytes; too few of them are an io.ErrUnexpectedEOF.
func ReadFull(from io.ReaderAt, b []byte, at int64) error {
	n, err := from.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// KVRef is one pair of a Work: the key chunk in a KV slot, and the mask.
type KVRef struct {
	Slot   int
	Kind   MaskKind // Full, Diagonal or Partial
	Offset int      // row i of the query chunk sees key j of the key chunk iff j <= i + Offset; unused for Full
}

// Work is what one launch does to one query slot: apply the KV slots to the
// state, in the order listed. The order is part of the result's bits.
type Work struct {
	Query int // query slot
	Refs  []KVRef
}

// Event is something that a device was asked to do and will have done. Wait
// returns when it is done, with the error of the operation or of one before it
// on which it depended. Wait may be called any number of times, by anyone.
type Event interface {
	Wait() error
}
