//go:build cuda

package gpu

import (
	"encoding/binary"
	"io"
	"sync/atomic"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// output is a SaveState or a Finish.
type output struct {
	ev    *event
	after []attention.Event
	slot  int

	state io.WriterAt // SaveState

	empty  int // Finish
	o, lse []attention.Rows

	start, end driver.Event
	bytes      int64
	seconds    float64      // on the GPU
	left       atomic.Int64 // pieces under way, and one more until all are submitted
	err        atomic.Pointer[error]
}

// landed is a piece that is being copied into a buffer, and what to do with it then.
type landed struct {
	mark   driver.Event
	out    *output
	buffer *buffer
	write  func(b []byte) error
}

// fetch submits outputs to the GPU, in order.
func (s *session) fetch() {
	for o := range s.outputs {
		s.fetchOne(o)
	}
}

func (s *session) fetchOne(o *output) {
	err := s.stopped()
	if err == nil {
		err = order(s.out, o.after)
	}
	if s.fail(err) != nil {
		o.ev.refuse(err)
		return
	}
	o.left.Store(1)
	if o.start, err = s.marks.record(s.out); err == nil {
		if o.state != nil {
			err = s.save(o)
		} else {
			err = s.finish(o)
		}
	}
	if err == nil {
		o.end, err = s.marks.record(s.out)
	}
	if s.fail(err) != nil {
		o.note(err)
		o.end, _ = s.marks.record(s.out) // pieces of it are under way
	}
	o.ev.submitted(o.end)
	s.landing <- landed{mark: o.end, out: o}
}

// note keeps the first error.
func (o *output) note(err error) {
	if err != nil {
		o.err.CompareAndSwap(nil, &err)
	}
}

// piece copies a piece out: fill submits its copies into a buffer, write gets it.
func (s *session) piece(o *output, n int64, fill func(b []byte) error, write func(b []byte) error) error {
	if err := s.stopped(); err != nil {
		return err
	}
	b := s.outward.take()
	if err := fill(b.b[:n]); err != nil {
		s.fail(s.out.Synchronize()) // some copy may be under way
		s.outward.give(b)
		return err
	}
	m, err := s.marks.record(s.out)
	if err != nil {
		return err
	}
	o.left.Add(1)
	o.bytes += n
	s.landing <- landed{m, o, b, func(b []byte) error { return write(b[:n]) }}
	return nil
}

// land waits for pieces and has workers write them.
func (s *session) land() {
	for x := range s.landing {
		err := s.fail(x.mark.Synchronize())
		x.out.note(err)
		if x.buffer == nil { // all of it is submitted, and copied
			if t, e := x.out.end.Since(x.out.start); e == nil {
				x.out.seconds = t.Seconds()
			}
			if err == nil && x.out.state == nil {
				s.bookWide()
			}
			s.arrive(x.out)
			continue
		}
		s.marks.give(x.mark)
		s.work <- func() {
			if x.out.err.Load() == nil {
				x.out.note(x.write(x.buffer.b))
			}
			s.outward.give(x.buffer)
			s.arrive(x.out)
		}
	}
}

// arrive counts a piece that is where it should be.
func (s *session) arrive(o *output) {
	if o.left.Add(-1) > 0 {
		return
	}
	var err error
	if e := o.err.Load(); e != nil {
		err = *e
	}
	s.d.book(func(st *attention.Stats) {
		if err == nil {
			st.OutBytes += o.bytes
			st.OutSeconds += o.seconds
		}
	})
	s.marks.give(o.ev.complete(err), o.start)
}

// save submits the copies of a slot's state.
func (s *session) save(o *output) error {
	q := s.query[o.slot]
	segments, total := s.l.stateSegments(q.rows, q.heads), s.l.stateBytes(q.rows, q.heads)
	slot := s.queryHead(o.slot, 0)
	size := s.outward.size
	for at := int64(0); at < total; at += size {
		n := min(size, total-at)
		err := s.piece(o, n, func(b []byte) error {
			return within(segments, at, n, func(from uint64, to, n int64) error {
				return s.out.CopyOut(b[to:to+n], driver.Ptr(slot+from))
			})
		}, func(b []byte) error {
			_, err := o.state.WriteAt(b, at)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// finish turns states into results, in place, and submits their copies.
func (s *session) finish(o *output) error {
	q := s.query[o.slot]
	if len(o.o) == 0 {
		return nil
	}
	g := s.l.geo
	var jobs []finishJob
	for h := range o.o {
		head := s.queryHead(o.slot, h)
		j := finishJob{Head: head, Out: head + s.l.results(), Rows: int32(q.rows), Empty: int32(o.empty),
			Width: s.pool.Columns8, Type: typeCode(g.OutDType)}
		if o.lse != nil {
			j.LSE = head + s.pool.QSum // each takes the place of its own denominator
		}
		jobs = append(jobs, j)
	}
	kernel := s.d.units.finishOne
	if s.kernel.Two != 0 {
		kernel = s.d.units.finishTwo
	}
	for len(jobs) > 0 {
		part := jobs[:min(mostJobs, len(jobs))]
		jobs = jobs[len(part):]
		at, err := s.finishes.send(s.out, bytesOf(part))
		if err != nil {
			return err
		}
		grid := driver.Dim{X: min(ceilDiv(q.rows, 8), 1024), Y: len(part)}
		if err := kernel.Launch(s.out, grid, driver.Dim{X: 256}, 0, driver.ArgPtr(s.poolAt), driver.ArgPtr(at)); err != nil {
			return err
		}
		if err := s.finishes.sent(s.out, &s.marks); err != nil {
			return err
		}
	}
	for h := range o.o {
		head := s.queryHead(o.slot, h)
		if err := s.copyRows(o, o.o[h], head+s.l.results(), int64(s.pool.Columns8)*int64(g.OutDType.Size())); err != nil {
			return err
		}
		if o.lse == nil {
			continue
		}
		if err := s.copyRows(o, o.lse[h], head+s.pool.QSum, 4); err != nil {
			return err
		}
	}
	return s.out.CopyOut(s.counts, s.countsAt)
}

// bookWide books the pairs that the wide kernel has computed so far.
func (s *session) bookWide() {
	var n int64
	for i := 0; i < len(s.counts); i += 8 {
		n += int64(binary.LittleEndian.Uint64(s.counts[i:]))
	}
	s.d.book(func(st *attention.Stats) { st.Float64 = float64(n) })
}

// copyRows submits the copies of rows that lie pitch bytes apart on the device.
func (s *session) copyRows(o *output, to attention.Rows, from uint64, pitch int64) error {
	step := int(s.outward.size / pitch)
	for lo := 0; lo < to.N; lo += step {
		part := to.Slice(lo, min(lo+step, to.N))
		err := s.piece(o, int64(part.N)*pitch, func(b []byte) error {
			return s.out.CopyOut(b, driver.Ptr(from+uint64(lo)*uint64(pitch)))
		}, func(b []byte) error { return scatter(part, b, int(pitch)) })
		if err != nil {
			return err
		}
	}
	return nil
}
