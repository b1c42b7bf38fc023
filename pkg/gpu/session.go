//go:build cuda

package gpu

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

const (
	queueDepth = 256 // operations that may wait in a queue; hazards are ordered by events
	outBuffers = 8
	mostPiece  = 4 << 20 // bytes of a buffer on the way out
)

// session is the device between Reserve and Release.
//
// Loads, applies and what goes out have a queue each, of which one thread submits the
// operations to the GPU in order, without waiting for the GPU. On the GPU there are
// five streams: copies in; packing, which goes before other kernels, since the copies
// wait for its buffers; uploads of what launches are told; attention; and what goes
// out. Events of the driver order them.
type session struct {
	d      *Device
	l      *layout
	pool   pool // with addresses
	kernel attendKernel

	base   driver.Ptr
	poolAt driver.Ptr
	host   []byte // page-locked

	countsAt driver.Ptr // of pairs, by warp of the wide kernel
	counts   []byte     // the same when a query chunk was finished last

	copyIn, packing, upload, compute, out driver.Stream
	streams                               []driver.Stream
	marks                                 marks
	ends                                  marks // of the steps of parcels, which are many and not timed

	stage   []staging
	next    int
	windows *windows
	in      inward
	outward outward

	packJobs, batches, finishes *uploader

	query  []loadedQuery // what query slots hold; written by the thread of loads
	kvRows []int         // rows in KV slots; likewise

	loads   chan *load
	parcels chan *parcel
	loaded  chan *load
	copied  chan copied
	applies chan *apply
	applied chan *apply
	outputs chan *output
	landing chan landed
	work    chan func() // of workers on the host
	threads sync.WaitGroup
	workers sync.WaitGroup
	failure atomic.Pointer[error] // of the GPU: nothing works after it
	viaRing atomic.Bool
	viaMap  atomic.Bool
}

// loadedQuery is what a query slot holds.
type loadedQuery struct{ rows, heads int }

// staging is a buffer of raw rows between copying and packing.
type staging struct {
	at   driver.Ptr
	free driver.Event // recorded when it was packed
	used bool
}

// newSession takes all memory and starts the threads.
func newSession(d *Device, l *layout) (s *session, err error) {
	s = &session{d: d, l: l, kernel: d.attend[d.Kernel(l.geo)], marks: marks{ctx: d.ctx, timed: true}, ends: marks{ctx: d.ctx},
		query: make([]loadedQuery, l.geo.QuerySlots), kvRows: make([]int, l.geo.KVSlots)}
	err = d.bound(func() error {
		err := s.reserve()
		if err != nil {
			_ = s.free() // err says why
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.start()
	return s, nil
}

// reserve takes memory and makes streams.
func (s *session) reserve() error {
	c, l := s.d.ctx, s.l
	total := l.footprint().Total()
	var err error
	if s.base, err = c.Alloc(total); err != nil {
		if !errors.Is(err, driver.OutOfMemory) {
			return err
		}
		free, _, e := c.Memory()
		if e != nil {
			return e
		}
		return &NoMemoryError{Device: s.d.Name(), Want: total, Free: free, Err: err}
	}
	at := uint64(s.base)
	take := func(n int64) uint64 { at += uint64(n); return at - uint64(n) }
	s.pool = l.pool
	s.pool.KV, s.pool.Query = take(l.kv), take(l.query)
	for range l.buffers {
		s.stage = append(s.stage, staging{at: driver.Ptr(take(l.staging + l.packBytes()))})
	}
	s.pool.Partial = take(l.partialsAll)
	s.poolAt, s.countsAt = driver.Ptr(take(poolBytes)), driver.Ptr(take(l.counts))
	if err := s.makeStreams(); err != nil {
		return err
	}
	return s.reserveHost(take)
}

// makeStreams makes the streams. Packing and finishing go before attention: what
// waits for them is worth more than a block of threads.
func (s *session) makeStreams() error {
	_, high, err := s.d.ctx.StreamPriorities()
	if err != nil {
		return err
	}
	for _, x := range []struct {
		to       *driver.Stream
		priority int
	}{{&s.copyIn, 0}, {&s.packing, high}, {&s.upload, high}, {&s.compute, 0}, {&s.out, high}} {
		if *x.to, err = s.d.ctx.NewStream(x.priority); err != nil {
			return err
		}
		s.streams = append(s.streams, *x.to)
	}
	return nil
}

// reserveHost takes page-locked memory, and sends the Pool to the device.
func (s *session) reserveHost(take func(int64) uint64) error {
	l := s.l
	packs, finishes, batches := l.packBytes(), l.finishBytes(), l.batchBytes
	piece := min(mostPiece, l.staging, align(l.stateBytes(l.geo.QueryRows, l.geo.QueryHeads())))
	buffersIn := inwardBuffers(l.staging)
	bufferIn := l.staging + packs // which travel behind the rows
	total := int64(buffersIn)*bufferIn + outBuffers*piece + uploadSlots*(packs+finishes+batches) + poolBytes + l.counts
	var err error
	if s.host, err = s.d.ctx.AllocHost(total); err != nil {
		return err
	}
	rest := s.host
	cut := func(n int64) []byte { b := rest[:n:n]; rest = rest[n:]; return b }
	for range buffersIn {
		s.in.free = append(s.in.free, &buffer{cut(bufferIn)})
	}
	s.outward = outward{free: make(chan *buffer, outBuffers), size: piece}
	for range outBuffers {
		s.outward.give(&buffer{cut(piece)})
	}
	for _, u := range []struct {
		to    **uploader
		bytes int64
	}{{&s.packJobs, packs}, {&s.finishes, finishes}, {&s.batches, batches}} {
		*u.to = &uploader{}
		for i := range (*u.to).slots {
			(*u.to).slots[i] = uploadSlot{host: cut(u.bytes), at: driver.Ptr(take(u.bytes))}
		}
	}
	s.windows = newWindows(s.d.ctx, s.d.opt)
	p := cut(poolBytes)
	copy(p, bytesOf([]pool{s.pool}))
	if err := s.copyIn.CopyIn(s.poolAt, p); err != nil {
		return err
	}
	s.counts = cut(l.counts)
	clear(s.counts)
	if err := s.copyIn.CopyIn(s.countsAt, s.counts); err != nil {
		return err
	}
	return s.copyIn.Synchronize()
}

// start starts the threads. Each has one part of one queue.
func (s *session) start() {
	s.loads, s.applies, s.outputs = make(chan *load, queueDepth), make(chan *apply, queueDepth), make(chan *output, queueDepth)
	s.parcels, s.loaded, s.copied = make(chan *parcel, 64), make(chan *load, queueDepth), make(chan copied, queueDepth)
	s.applied, s.landing = make(chan *apply, queueDepth), make(chan landed, outBuffers)
	s.work = make(chan func(), queueDepth)
	s.in.work, s.in.stopped = s.work, s.stopped
	for range workersOf() {
		s.workers.Go(func() {
			for f := range s.work {
				f()
			}
		})
	}
	s.thread(s.feed, func() { close(s.parcels) })
	s.thread(s.send, func() { close(s.loaded); close(s.copied) })
	s.thread(s.completeLoads, nil)
	s.thread(s.recycle, nil)
	s.thread(s.launch, func() { close(s.applied) })
	s.thread(s.completeApplies, nil)
	s.thread(s.fetch, func() { close(s.landing) })
	s.thread(s.land, nil)
	s.thread(s.windows.register, nil)
}

// thread runs f on a thread of its own to which the context is current.
func (s *session) thread(f, then func()) {
	s.threads.Go(func() {
		release, err := s.d.ctx.Bind()
		if err != nil { // what f would do fails with it, one by one
			s.fail(err)
		} else {
			defer release()
		}
		f()
		if then != nil {
			then()
		}
	})
}

// fail notes an error of the GPU, after which nothing works, and returns err.
func (s *session) fail(err error) error {
	if e := (*driver.Error)(nil); errors.As(err, &e) {
		s.failure.CompareAndSwap(nil, &err)
	}
	return err
}

// stopped is why operations must not start any more.
func (s *session) stopped() error {
	if s.d.interrupted.Load() {
		return attention.ErrInterrupted
	}
	if e := s.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// close waits for all operations and gives everything back.
func (s *session) close() error {
	close(s.loads)
	close(s.applies)
	close(s.outputs)
	// The feeding thread closes the windows' jobs, for which the one that registers waits.
	s.threads.Wait()
	close(s.work)
	s.workers.Wait()
	return s.d.bound(s.free)
}

// free waits for the GPU and gives memory, streams and events back.
func (s *session) free() (err error) {
	note := func(e error) { err = errors.Join(err, e) }
	for _, x := range s.streams {
		if s.failure.Load() == nil { // that error was reported
			note(x.Synchronize())
		}
	}
	if s.windows != nil {
		note(s.windows.dropAll())
	}
	for _, x := range s.streams {
		note(x.Close())
	}
	note(s.marks.close())
	note(s.ends.close())
	if s.host != nil {
		note(s.d.ctx.FreeHost(s.host))
	}
	if s.base != 0 {
		note(s.d.ctx.Free(s.base))
	}
	if s.failure.Load() != nil {
		return nil // a context that failed gives nothing back before it is closed
	}
	return err
}

// uploader sends what launches are told, from page-locked memory that stays as it is
// until the launch is done. It belongs to one thread.
type uploader struct {
	slots [uploadSlots]uploadSlot
	next  int
}

type uploadSlot struct {
	host []byte
	at   driver.Ptr
	free driver.Event // recorded after the launch
	used bool
}

// send submits the copy of parts, one behind the other. The launches that read it are
// to be followed by sent.
func (u *uploader) send(s driver.Stream, parts ...[]byte) (driver.Ptr, error) {
	x := &u.slots[u.next]
	if x.used {
		if err := x.free.Synchronize(); err != nil {
			return 0, err
		}
	}
	n := 0
	for _, p := range parts {
		n += copy(x.host[n:], p)
	}
	return x.at, s.CopyIn(x.at, x.host[:n])
}

// sent marks the end of what reads the last upload.
func (u *uploader) sent(s driver.Stream, m *marks) (err error) {
	x := &u.slots[u.next]
	u.next = (u.next + 1) % len(u.slots)
	if !x.used {
		if x.free, err = m.take(); err != nil {
			return err
		}
		x.used = true
	}
	return s.Record(x.free)
}

// LoadKV fills a KV slot with one key chunk: one entry of k and of v per KV head.
func (d *Device) LoadKV(slot int, k, v []attention.Rows, after ...attention.Event) attention.Event {
	s := d.s
	keys, most := int(s.kernel.Keys), s.l.staging/2
	spans := append(spansOf(k, false, keys, most), spansOf(v, true, keys, most)...)
	return s.submitLoad(&load{ev: newEvent(), after: after, spans: spans, slot: slot, rows: k[0].N, heads: len(k)})
}

// LoadQuery fills a query slot with one query chunk, one entry of q per query head,
// and its state: fresh if state is nil, else as SaveState wrote it.
func (d *Device) LoadQuery(slot int, q []attention.Rows, state io.ReaderAt, after ...attention.Event) attention.Event {
	s := d.s
	spans := spansOf(q, false, int(s.kernel.Rows), s.l.staging/2)
	return s.submitLoad(&load{ev: newEvent(), after: after, spans: spans, query: true, slot: slot, rows: q[0].N, heads: len(q), state: state})
}

func (s *session) submitLoad(o *load) attention.Event {
	s.loads <- o
	return o.ev
}

// Apply applies work to query slots. No query slot may occur twice.
func (d *Device) Apply(list []attention.Work, after ...attention.Event) attention.Event {
	o := &apply{ev: newEvent(), after: after, work: list}
	d.s.applies <- o
	return o.ev
}

// SaveState writes the slot's state.
func (d *Device) SaveState(slot int, to io.WriterAt, after ...attention.Event) attention.Event {
	o := &output{ev: newEvent(), after: after, slot: slot, state: to}
	o.ev.hostSide = true
	d.s.outputs <- o
	return o.ev
}

// Finish writes the rows of a complete query chunk: O, rounded to its type, and lse
// (if wanted: lse may be nil) as float32. The first empty rows see no key.
func (d *Device) Finish(slot, empty int, out, lse []attention.Rows, after ...attention.Event) attention.Event {
	o := &output{ev: newEvent(), after: after, slot: slot, empty: empty, o: out, lse: lse}
	d.s.outputs <- o
	return o.ev
}
