package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
)

// hashDevice is a device without arithmetic whose states and results say what they came
// from: a state is a hash of the key chunks that were applied, in order, blown up to some
// hundred bytes, and so are results. It runs three queues in the time of a synctest bubble:
// every operation takes as long as its seed says, so that the same seed is the same run.
type hashDevice struct {
	*cpu.Device // plans
	out         []crashSink
	seed        uint64
	pace        time.Duration // of operations, at most

	mu          sync.Mutex
	queues      [3]chan *task
	running     sync.WaitGroup
	query       []hashState
	kv          []hashKeys
	interrupted bool
	stats       attention.Stats
	wrong       []string
	applied     map[int64]int // key chunks, by query chunk as Q has it
	finished    map[int64]int
	hashes      map[int64]map[int]uint64 // of states, by query chunk and key chunks in it; nil: nobody asks
}

// hashState is a query chunk in its slot.
type hashState struct {
	chunk int64 // where its first row is in Q
	rows  int
	heads int
	pairs int
	hash  uint64
}

type hashKeys struct {
	chunk int64
	rows  int
}

// task is an operation, and its event.
type task struct {
	after []attention.Event
	run   func() error
	done  chan struct{}
	err   error
}

func (t *task) Wait() error { <-t.done; return t.err }

func newHashDevice(seed uint64) *hashDevice {
	return &hashDevice{Device: cpu.New(1), seed: seed, pace: time.Millisecond, applied: make(map[int64]int), finished: make(map[int64]int)}
}

func (h *hashDevice) Reserve(g attention.Geometry) error {
	h.query, h.kv = make([]hashState, g.QuerySlots), make([]hashKeys, g.KVSlots)
	for i := range h.queues {
		q := make(chan *task, 1<<12)
		h.queues[i] = q
		r := rand.New(rand.NewPCG(h.seed, uint64(i)))
		h.running.Go(func() {
			for t := range q {
				h.do(t, time.Duration(1+r.Int64N(int64(h.pace))))
			}
		})
	}
	return nil
}

func (h *hashDevice) do(t *task, takes time.Duration) {
	defer close(t.done)
	for _, e := range t.after {
		if e == nil {
			continue
		}
		if t.err = e.Wait(); t.err != nil {
			return
		}
	}
	time.Sleep(takes)
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.err = attention.ErrInterrupted; !h.interrupted {
		t.err = t.run()
	}
}

func (h *hashDevice) submit(queue int, after []attention.Event, run func() error) attention.Event {
	t := &task{slices.Clone(after), run, make(chan struct{}), nil}
	h.queues[queue] <- t
	return t
}

func (h *hashDevice) LoadKV(slot int, k, _ []attention.Rows, after ...attention.Event) attention.Event {
	return h.submit(0, after, func() error {
		h.kv[slot] = hashKeys{k[0].At, k[0].N}
		return nil
	})
}

func (h *hashDevice) LoadQuery(slot int, q []attention.Rows, state io.ReaderAt, after ...attention.Event) attention.Event {
	return h.submit(0, after, func() error {
		s := hashState{chunk: q[0].At, rows: q[0].N, heads: len(q), hash: uint64(q[0].At)}
		if state != nil {
			b := make([]byte, stateBytes(s.rows))
			if _, err := state.ReadAt(b, 0); err != nil {
				return fmt.Errorf("read a state: %w", err)
			}
			s.hash, s.pairs = binary.LittleEndian.Uint64(b), int(binary.LittleEndian.Uint32(b[8:]))
			if !bytes.Equal(b, s.bytes()) {
				h.wrong = append(h.wrong, fmt.Sprintf("the state of the query chunk at %d is not one that was saved", s.chunk))
			}
		}
		h.query[slot] = s
		return nil
	})
}

func (h *hashDevice) Apply(work []attention.Work, after ...attention.Event) attention.Event {
	return h.submit(1, after, func() error {
		for _, w := range work {
			s := &h.query[w.Query]
			for _, ref := range w.Refs {
				kv := h.kv[ref.Slot]
				s.hash = (s.hash*0x9e3779b97f4a7c15 ^ uint64(kv.chunk) ^ uint64(ref.Kind)<<40 ^ uint64(ref.Offset)<<44) + 1
				s.pairs++
				for i := range s.rows {
					n := kv.rows
					switch ref.Kind {
					case attention.Diagonal:
						n = min(n, i+1)
					case attention.Partial:
						n = min(n, max(0, i+ref.Offset+1))
					}
					h.stats.Pairs += float64(n * s.heads)
				}
				if h.hashes != nil {
					if h.hashes[s.chunk] == nil {
						h.hashes[s.chunk] = make(map[int]uint64)
					}
					h.hashes[s.chunk][s.pairs] = s.hash
				}
			}
			h.applied[s.chunk] += len(w.Refs)
		}
		return nil
	})
}

// SaveState writes in two parts, the last one first.
func (h *hashDevice) SaveState(slot int, to io.WriterAt, after ...attention.Event) attention.Event {
	return h.submit(2, after, func() error {
		b := h.query[slot].bytes()
		for _, lo := range []int{len(b) / 2, 0} {
			if _, err := to.WriteAt(b[lo:], int64(lo)); err != nil {
				return fmt.Errorf("write a state: %w", err)
			}
			b = b[:lo]
		}
		return nil
	})
}

func (h *hashDevice) Finish(slot, _ int, out, lse []attention.Rows, after ...attention.Event) attention.Event {
	return h.submit(2, after, func() error {
		s := h.query[slot]
		h.finished[s.chunk]++
		for i, list := range [][]attention.Rows{out, lse} {
			if list == nil {
				continue
			}
			if err := h.out[i].stores(func() {
				for head, rows := range list {
					for row := range rows.N {
						fill(rows.Row(row), s.hash, uint64(i)<<40|uint64(head)<<32|uint64(row))
					}
				}
			}); err != nil {
				return fmt.Errorf("write results: %w", err)
			}
		}
		return nil
	})
}

func (h *hashDevice) Stats() attention.Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

func (h *hashDevice) Interrupt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interrupted = true
}

func (h *hashDevice) Release() error {
	for _, q := range h.queues {
		close(q)
	}
	h.running.Wait()
	return nil
}

func (h *hashDevice) StateBytes(g attention.Geometry) int64 { return int64(stateBytes(g.QueryRows)) }

func (h *hashDevice) Allocated() attention.Footprint { return nil }

// stateBytes is more than a sector, and no multiple of one.
func stateBytes(rows int) int { return 110*rows + 60 }

// bytes are the state of a query chunk as it is saved.
func (s hashState) bytes() []byte {
	b := make([]byte, stateBytes(s.rows))
	fill(b[12:], s.hash, uint64(s.chunk))
	binary.LittleEndian.PutUint64(b, s.hash)
	binary.LittleEndian.PutUint32(b[8:], uint32(s.pairs))
	return b
}

// fill makes bytes of two numbers.
func fill(b []byte, x, y uint64) {
	r := rand.NewPCG(x, y)
	for i := range b {
		if i%8 == 0 {
			x = r.Uint64()
		}
		b[i], x = byte(x), x>>8
	}
}

var _ Device = (*hashDevice)(nil)
