package stream

import (
	"hash/crc32"
	"sync/atomic"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// recorder waits for what leaves the device, in order, and tells the journal. It is
// what a run knows of saves and finishes that are under way.
type recorder struct {
	journal *journal
	queue   chan entry
	done    chan struct{}
	err     atomic.Pointer[error] // the first one
}

// entry is a SaveState or a Finish that was submitted, or a question.
type entry struct {
	event attention.Event
	tell  record
	fill  func(*record) error // completes what is told with sums of what was written
	asked chan error          // gets the first error when all before is done
}

// mostUnderWay bounds what leaves the device at once, so that the list stays short.
const mostUnderWay = 64

func newRecorder(j *journal) *recorder {
	r := &recorder{journal: j, queue: make(chan entry, mostUnderWay), done: make(chan struct{})}
	go r.loop()
	return r
}

func (r *recorder) loop() {
	defer close(r.done)
	for e := range r.queue {
		if e.asked != nil {
			e.asked <- r.first()
			continue
		}
		err := e.event.Wait()
		if err == nil && r.journal != nil && r.err.Load() == nil {
			if err = e.fill(&e.tell); err == nil {
				err = r.journal.tell(e.tell)
			}
		}
		if err != nil {
			r.err.CompareAndSwap(nil, &err)
		}
	}
}

func (r *recorder) first() error {
	if e := r.err.Load(); e != nil {
		return *e
	}
	return nil
}

// add hands over an operation; it waits where too many are under way.
func (r *recorder) add(e entry) error {
	r.queue <- e
	return r.first()
}

// wait returns when everything handed over is done, with the first error.
func (r *recorder) wait() error {
	asked := make(chan error, 1)
	r.queue <- entry{asked: asked}
	return <-asked
}

// close ends the recorder when everything is done.
func (r *recorder) close() {
	close(r.queue)
	<-r.done
}

// sumRows is the checksum of rows, one after the other.
func sumRows(lists ...[]attention.Rows) (sum uint32, err error) {
	err = eachPart(func(b []byte) { sum = crc32.Update(sum, castagnoli, b) }, lists...)
	return sum, err
}

// eachPart calls f with the bytes of rows, in order, as many at a time as lie together.
func eachPart(f func([]byte), lists ...[]attention.Rows) error {
	return attention.GuardFaults(func() error {
		for _, list := range lists {
			for _, rows := range list {
				if rows.Contiguous() {
					f(rows.Data[:rows.N*rows.RowBytes()])
					continue
				}
				for i := range rows.N {
					f(rows.Row(i))
				}
			}
		}
		return nil
	})
}
