//go:build cuda

package gpu

import (
	"sync"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

const (
	workerBytes = 1 << 20 // that a worker puts into a buffer on the way in at once
	moreBuffers = 4       // on the way in than workers can fill: they wait or are being copied
)

// buffer is page-locked memory.
type buffer struct{ b []byte }

// inward is the ring of buffers on the way in. Parcels get one in the order in which they
// ask, and whoever gives one back hands it on to workers himself: where a thread between
// the two had to wake up first, the link often waited for it.
type inward struct {
	work    chan<- func() // of workers; never full
	stopped func() error  // why nothing need be filled any more

	mu      sync.Mutex
	free    []*buffer // the last was used last and is in the processor's cache
	waiting []*parcel
}

// inwardBuffers is how many buffers of a size the ring has on the way in. More than it takes
// to keep the link busy make it slower: less of it is in the processor's cache.
func inwardBuffers(size int64) int {
	parts := ceilDiv(int(size), workerBytes)
	return ceilDiv(workersOf(), parts) + moreBuffers
}

// fill has workers fill a buffer for a parcel, as soon as there is one.
func (r *inward) fill(p *parcel) {
	p.left.Store(int32(p.parts()))
	p.filled = make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, p)
	r.match()
}

// give gives a buffer back.
func (r *inward) give(b *buffer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, b)
	r.match()
}

// match gives free buffers to parcels that wait for one, part by part to workers: the
// buffer that is wanted next is done soonest when they share it, and few are enough.
func (r *inward) match() {
	for len(r.free) > 0 && len(r.waiting) > 0 {
		p, last := r.waiting[0], len(r.free)-1
		p.buffer = r.free[last]
		r.waiting, r.free = r.waiting[1:], r.free[:last]
		fill := func() { r.fillPart(p) }
		for range p.parts() {
			r.work <- fill
		}
	}
}

func (p *parcel) parts() int { return ceilDiv(int(p.bytes), workerBytes) }

// fillPart fills the next part of a parcel's buffer.
func (r *inward) fillPart(p *parcel) {
	lo := int64(p.begun.Add(1)-1) * workerBytes
	hi := min(lo+workerBytes, p.bytes)
	err := r.stopped()
	switch {
	case err != nil:
	case p.state:
		err = attention.ReadFull(p.load.state, p.buffer.b[lo:hi], p.at+lo)
	default:
		err = gather(p.pieces, p.buffer.b, lo, hi)
	}
	if err != nil {
		p.fillErr.CompareAndSwap(nil, &err)
	}
	if p.left.Add(-1) == 0 {
		close(p.filled)
	}
}

// wait waits until a parcel's buffer is filled, if it has one.
func (p *parcel) wait() error {
	if p.filled == nil {
		return nil
	}
	<-p.filled
	if e := p.fillErr.Load(); e != nil {
		return *e
	}
	return nil
}

// outward is the ring of buffers on the way out.
type outward struct {
	free chan *buffer
	size int64 // of a buffer
}

// take returns a free buffer; it waits for one.
func (r *outward) take() *buffer { return <-r.free }

func (r *outward) give(b *buffer) { r.free <- b }
