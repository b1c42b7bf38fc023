//go:build cuda

package gpu

import (
	"io"
	"math"
	"sync/atomic"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// load is a LoadKV or a LoadQuery.
type load struct {
	ev    *event
	after []attention.Event

	spans       []span
	query       bool
	slot        int
	rows, heads int
	state       io.ReaderAt

	// Of the thread that submits.
	err        error
	begun      bool // packing may use the slot
	timed      bool
	start, end driver.Event // of its copies
	bytes      int64
}

// parcel is a part of a load: rows for a staging buffer, bytes of a state, or, with
// neither, its end.
type parcel struct {
	load    *load
	pieces  []piece
	state   bool
	at      int64 // in the state
	bytes   int64
	windows [][]*window
	err     error // why the load can't go on
	last    bool

	// Of those that go through the ring.
	buffer      *buffer
	begun, left atomic.Int32 // parts that workers have begun, and that are not filled
	fillErr     atomic.Pointer[error]
	filled      chan struct{} // closed when all are
}

// copied is what a copy on the way in holds until it is done.
type copied struct {
	mark   driver.Event
	parcel *parcel
}

// feed cuts loads into parcels and finds a way for each: windows of the mapping, or a
// buffer of the ring that workers fill. It runs ahead of the copies.
func (s *session) feed() {
	for o := range s.loads {
		s.parcels <- &parcel{load: o, last: true, err: s.feedOne(o)}
	}
	close(s.windows.jobs)
}

func (s *session) feedOne(o *load) error {
	rows := int(s.kernel.Keys)
	if o.query {
		rows = int(s.kernel.Rows)
	}
	for list := range parcels(o.spans, rows, s.l.staging, mostJobs) {
		if err := s.stopped(); err != nil {
			return err
		}
		p := &parcel{load: o, pieces: list, bytes: bytesIn(list)}
		if s.hold(p) {
			s.viaMap.Store(true)
		} else {
			s.viaRing.Store(true)
			s.in.fill(p)
		}
		s.parcels <- p
	}
	if o.state == nil {
		return nil
	}
	return s.feedState(o)
}

// hold locks the windows of all pieces of a parcel, or none.
func (s *session) hold(p *parcel) bool {
	for _, x := range p.pieces {
		list, ok := s.windows.hold(x.rows)
		if !ok {
			for _, w := range p.windows {
				release(w)
			}
			p.windows = nil
			return false
		}
		p.windows = append(p.windows, list)
	}
	return true
}

// feedState reads a saved state. Whatever wrote it must be done.
func (s *session) feedState(o *load) error {
	for _, a := range o.after {
		if e, ok := a.(*event); ok && e.hostSide || !ok && a != nil {
			if err := a.Wait(); err != nil {
				return err
			}
		}
	}
	total := s.l.stateBytes(o.rows, o.heads)
	for at := int64(0); at < total; at += s.l.staging {
		if err := s.stopped(); err != nil {
			return err
		}
		p := &parcel{load: o, state: true, at: at, bytes: min(s.l.staging, total-at)}
		s.in.fill(p)
		s.parcels <- p
	}
	return nil
}

// send submits parcels to the GPU, in order.
func (s *session) send() {
	for p := range s.parcels {
		o := p.load
		if err := p.wait(); err != nil && o.err == nil {
			o.err = err
		}
		if o.err == nil {
			if o.err = p.err; o.err == nil {
				o.err = s.stopped()
			}
		}
		switch {
		case p.last:
			s.endLoad(o)
		case o.err == nil:
			o.err = s.fail(s.sendOne(p))
		default:
			s.letGo(p)
		}
	}
}

// letGo gives back what a parcel holds.
func (s *session) letGo(p *parcel) {
	if p.buffer != nil {
		s.in.give(p.buffer)
	}
	for _, w := range p.windows {
		release(w)
	}
}

// sendOne submits one parcel. What it holds is given back when it is copied.
func (s *session) sendOne(p *parcel) error {
	stream, submit := s.copyIn, s.sendRows
	if p.state {
		stream, submit = s.packing, s.sendState
	}
	done, err := submit(p)
	if err != nil {
		s.fail(stream.Synchronize()) // some copy may be under way
		s.letGo(p)
		return err
	}
	s.copied <- copied{done, p}
	return nil
}

// sendRows submits the copies of rows to a staging buffer, and their packing. It marks
// the end of the copies.
func (s *session) sendRows(p *parcel) (done driver.Event, err error) {
	o, b := p.load, &s.stage[s.next]
	if b.used {
		if err := s.copyIn.Wait(b.free); err != nil {
			return done, err
		}
	}
	if err := s.time(o); err != nil {
		return done, err
	}
	jobs, tiles := s.packJobsOf(p, uint64(b.at))
	at, err := s.copyPieces(p, b.at, bytesOf(jobs))
	if err != nil {
		return done, err
	}
	if done, err = s.ends.record(s.copyIn); err != nil {
		return done, err
	}
	if err := s.begin(o); err != nil {
		return done, err
	}
	if err := s.packing.Wait(done); err != nil {
		return done, err
	}
	if err := s.d.units.pack.Launch(s.packing, driver.Dim{X: tiles, Y: len(jobs)}, driver.Dim{X: 256}, 0, driver.ArgPtr(at)); err != nil {
		return done, err
	}
	if p.buffer == nil {
		if err := s.packJobs.sent(s.packing, &s.marks); err != nil {
			return done, err
		}
	}
	o.bytes += bytesOfRows(p.pieces)
	return done, s.packed(b)
}

// time marks the start of a load's copies, once.
func (s *session) time(o *load) (err error) {
	if o.timed {
		return nil
	}
	if o.start, err = s.marks.record(s.copyIn); err != nil {
		return err
	}
	o.end, err = s.marks.take()
	o.timed = err == nil
	return err
}

// timeEnd marks the end of a load's copies. Packing waits for it, so that the mark is
// reached when the load is done.
func (s *session) timeEnd(o *load) error {
	if err := s.copyIn.Record(o.end); err != nil {
		return err
	}
	return s.packing.Wait(o.end)
}

// packed marks the end of what reads a staging buffer, and turns to the next.
func (s *session) packed(b *staging) (err error) {
	if !b.used {
		if b.free, err = s.ends.take(); err != nil {
			return err
		}
		b.used = true
	}
	s.next = (s.next + 1) % len(s.stage)
	return s.packing.Record(b.free)
}

// sendState submits the copies of a part of a state to the slot, in the stream that
// waits for it. It marks the end of the copies.
func (s *session) sendState(p *parcel) (done driver.Event, err error) {
	o := p.load
	if err := s.begin(o); err != nil {
		return done, err
	}
	slot := s.queryHead(o.slot, 0)
	o.bytes += p.bytes
	b := p.buffer.b[:p.bytes]
	err = within(s.l.stateSegments(o.rows, o.heads), p.at, p.bytes, func(at uint64, from, n int64) error {
		return s.packing.CopyIn(driver.Ptr(slot+at), b[from:from+n])
	})
	if err != nil {
		return done, err
	}
	return s.ends.record(s.packing)
}

// begin makes packing wait for what used the slot, once, and readies the slot.
func (s *session) begin(o *load) error {
	if o.begun {
		return nil
	}
	o.begun = true
	if err := order(s.packing, o.after); err != nil {
		return err
	}
	if o.query {
		s.query[o.slot] = loadedQuery{rows: o.rows, heads: o.heads}
		if o.state != nil {
			return nil
		}
		n := int(s.pool.Rows) * o.heads
		return s.d.units.empty.Launch(s.packing, driver.Dim{X: min(ceilDiv(n, 256), 1024)}, driver.Dim{X: 256}, 0,
			driver.ArgPtr(s.poolAt), driver.ArgInt(o.slot), driver.ArgInt(o.heads))
	}
	s.kvRows[o.slot] = o.rows
	return nil
}

func (s *session) kvHead(slot, head int) uint64 {
	return s.pool.KV + uint64(slot)*s.pool.KVSlot + uint64(head)*s.pool.KVHead
}

func (s *session) queryHead(slot, head int) uint64 {
	return s.pool.Query + uint64(slot)*s.pool.QSlot + uint64(head)*s.pool.QHead
}

// copyPieces submits the copies of a parcel to a staging buffer, and that of what packing
// is told, whose address it returns. From the ring that travels behind the rows: a copy of
// its own would hold the link up for some microseconds.
func (s *session) copyPieces(p *parcel, buffer driver.Ptr, jobs []byte) (at driver.Ptr, err error) {
	if p.buffer != nil {
		behind := align(p.bytes)
		n := behind + int64(copy(p.buffer.b[behind:], jobs))
		return buffer + driver.Ptr(behind), s.copyIn.CopyIn(buffer, p.buffer.b[:n])
	}
	for _, x := range p.pieces {
		if err := s.windows.copyIn(s.copyIn, buffer, x); err != nil {
			return 0, err
		}
	}
	return s.packJobs.send(s.copyIn, jobs)
}

// packJobsOf says how the pieces of a parcel in a staging buffer become tiles, and of
// how many tiles the largest is.
func (s *session) packJobsOf(p *parcel, buffer uint64) (jobs []packJob, tiles int) {
	g, k, o := s.l.geo, s.kernel, p.load
	for _, x := range p.pieces {
		rows, width := int(k.Keys), g.D
		if o.query {
			rows = int(k.Rows)
		}
		if x.span.value {
			width = g.Dv
		}
		tiles = max(tiles, ceilDiv(x.rows.N, rows))
		for i := range x.span.heads {
			j := packJob{
				Src: buffer + uint64(x.at) + uint64(i*width*g.DType.Size()), Stride: uint64(x.rows.RowBytes()),
				Rows: int32(x.rows.N), Width: int32(width), Type: typeCode(g.DType),
				TileRows: int32(rows), Panels: k.Features / panelFeatures, Planes: k.Planes, Step: 1, Sign: 1,
			}
			tile := uint64(x.tile)
			switch head := x.span.head + i; {
			case o.query:
				at := s.queryHead(o.slot, head)
				j.Dst, j.Info = at+tile*uint64(s.l.tileQ), at+s.pool.QInfo+tile*tileInfoBytes
				if s.pool.QRest != 0 {
					j.Rest = at + s.pool.QRest + tile*uint64(s.l.tileQ/2)
				}
				if math.Signbit(g.Scale) { // so that the largest score is that of the largest product
					j.Sign = -1
				}
			case x.span.value:
				at := s.kvHead(o.slot, head)
				j.Dst, j.Info = at+s.pool.KVV+tile*uint64(s.l.tileV), at+s.pool.KVInfo+tile*tileInfoBytes
				j.Panels = k.Columns / panelFeatures
				j.Values, j.Step, j.Least = 1, valueStep, leastColumn(g)
			default:
				at := s.kvHead(o.slot, head)
				j.Dst, j.Info = at+s.pool.KVK+tile*uint64(s.l.tileK), at+s.pool.KVInfo+tile*tileInfoBytes
				if s.pool.KVRest != 0 {
					j.Rest = at + s.pool.KVRest + tile*uint64(s.l.tileK/2)
				}
			}
			jobs = append(jobs, j)
		}
	}
	return jobs, tiles
}

// valueStep: exponents of tiles of V are multiples of it, so that they rarely change
// from one tile to the next, for which sums must be re-based.
const valueStep = 8

// endLoad ends an operation: what was submitted of it is all.
func (s *session) endLoad(o *load) {
	if o.err == nil {
		o.err = s.fail(s.begin(o))
	}
	if o.err == nil && o.timed {
		o.err = s.fail(s.timeEnd(o))
	}
	var mark driver.Event
	if o.err == nil {
		mark, o.err = s.marks.record(s.packing)
		s.fail(o.err)
	}
	if o.err != nil {
		o.ev.refuse(o.err)
		return
	}
	o.ev.submitted(mark)
	s.loaded <- o
}

// completeLoads waits for loads on the GPU.
func (s *session) completeLoads() {
	for o := range s.loaded {
		err := s.fail(o.ev.mark.Synchronize())
		var sec float64
		if err == nil && o.timed {
			t, e := o.end.Since(o.start)
			err, sec = s.fail(e), t.Seconds()
		}
		path := s.path()
		s.d.book(func(st *attention.Stats) {
			if err == nil {
				st.InBytes += o.bytes
				st.InSeconds += sec
			}
			st.Path, st.Pinned = path, int64(len(s.host))+s.windows.most.Load()
		})
		s.marks.give(o.ev.complete(err))
		if o.timed {
			s.marks.give(o.start, o.end)
		}
	}
}

// path says how inputs came.
func (s *session) path() string {
	switch mapped, ring := s.viaMap.Load(), s.viaRing.Load(); {
	case mapped && ring:
		return "registered and pinned ring"
	case mapped:
		return "registered"
	case ring:
		return "pinned ring"
	}
	return ""
}

// recycle gives back what copies held when they are done.
func (s *session) recycle() {
	for c := range s.copied {
		s.fail(c.mark.Synchronize())
		s.letGo(c.parcel)
		s.ends.give(c.mark)
	}
}
