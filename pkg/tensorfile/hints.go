package tensorfile

import "os"

// Hints can fail only in ways that make them useless (a file system that
// doesn't read ahead), not wrong, so that their errors are dropped. Ranges are
// clipped to what there is.

// WillNeed asks the system to read bytes lo to hi of Bytes ahead.
func (t *Tensor) WillNeed(lo, hi int64) {
	if m := around(t.in.data, t.info, lo, hi); len(m) > 0 {
		_ = adviseWillNeed(m)
	}
}

// DontNeed gives the pages that lie wholly within bytes lo to hi of Bytes back
// to the system: they leave this process, and what reads them again finds the
// same bytes. A page shared with a neighbouring range stays.
func (t *Tensor) DontNeed(lo, hi int64) {
	if m := within(t.in.data, t.info, lo, hi); len(m) > 0 {
		_ = adviseDontNeed(m)
	}
}

// Cached is how many bytes of the tensor the system has in memory; 0 where it
// does not say.
func (t *Tensor) Cached() int64 {
	return min(cachedBytes(t.in.file, t.info.Offset, t.info.Bytes), t.info.Bytes)
}

// Sequential says that the tensor will be read once, from its start.
func (t *Tensor) Sequential() {
	if m := around(t.in.data, t.info, 0, t.info.Bytes); len(m) > 0 {
		_ = adviseSequential(m)
	}
}

// DontNeed gives the pages that lie wholly within bytes lo to hi of BytesOf(i)
// back to the system, which writes them when it likes: nothing is lost, and
// nothing is durable before Sync.
func (o *Output) DontNeed(i int, lo, hi int64) {
	if m := within(o.data, o.tensors[i], lo, hi); len(m) > 0 {
		_ = adviseDontNeed(m)
	}
}

// around is the part of a map, from a page's start, that has bytes lo to hi of
// the tensor.
func around(m []byte, t TensorInfo, lo, hi int64) []byte {
	page := int64(os.Getpagesize())
	lo, hi = max(lo, 0), min(hi, t.Bytes)
	if m == nil || lo >= hi {
		return nil
	}
	return m[(t.Offset+lo)/page*page : t.Offset+hi]
}

// within is the whole pages of a map that have no other bytes than lo to hi of
// the tensor. The last page of the map ends where the map does.
func within(m []byte, t TensorInfo, lo, hi int64) []byte {
	page := int64(os.Getpagesize())
	lo, hi = max(lo, 0), min(hi, t.Bytes)
	if m == nil || lo >= hi {
		return nil
	}
	lo = (t.Offset + lo + page - 1) / page * page
	if hi += t.Offset; hi < int64(len(m)) {
		hi = hi / page * page
	}
	if lo >= hi {
		return nil
	}
	return m[lo:hi]
}
