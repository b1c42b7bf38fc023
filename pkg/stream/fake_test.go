package stream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// judge is a device that computes nothing and watches everything: three queues
// that run their operations as late and as unevenly as they please, within the
// contract, and that note every use of a slot, a saved state or host memory
// which the contract does not allow.
//
// A slot holds the address of its first row; a state is a hash of the keys that
// were applied, in order.
type judge struct {
	*cpu.Device // plans
	seed        uint64
	slow        bool // sleep, and not only yield
	fail        int  // the operation to fail, by order of submission; -1: none
	tensors     stream.Tensors

	mu          sync.Mutex
	queues      [3]chan *deed
	running     sync.WaitGroup
	kv, query   []slot
	submitted   int
	reserved    int
	released    int
	closed      bool
	interrupted bool
	violations  []error
	finished    map[uintptr]uint64 // state hash by address of the first output row
	saving      map[uintptr]bool   // states being written, by chunk
	saved       map[uintptr]uint64 // hash of the last state written, by chunk
	stats       attention.Stats
}

// slot is the content of a slot as far as the operations submitted have planned
// it, and as far as they have run.
type slot struct {
	planned int // loads submitted: the submitter's own
	current int // the load whose content is in it
	loading bool
	users   int
	content uintptr
	hash    uint64
	rows    int
}

// deed is an operation; it is its own event.
type deed struct {
	name  string
	after []attention.Event
	run   func() error
	done  chan struct{}
	err   error
}

func (d *deed) Wait() error { <-d.done; return d.err }

var errInjected = errors.New("injected")

func newJudge(seed uint64, t stream.Tensors) *judge {
	return &judge{Device: cpu.New(2), seed: seed, fail: -1, tensors: t, finished: make(map[uintptr]uint64), saving: make(map[uintptr]bool), saved: make(map[uintptr]uint64)}
}

func (j *judge) violate(format string, args ...any) {
	j.violations = append(j.violations, fmt.Errorf(format, args...))
}

// locked runs f under the lock.
func (j *judge) locked(f func()) { j.mu.Lock(); defer j.mu.Unlock(); f() }

func (j *judge) Allocated() attention.Footprint {
	return attention.Footprint{{Purpose: "judge", Bytes: 1}}
}

func (j *judge) Reserve(g attention.Geometry) error {
	j.reserved++
	j.kv, j.query = make([]slot, g.KVSlots), make([]slot, g.QuerySlots)
	for i := range j.queues {
		q := make(chan *deed, 1<<12)
		j.queues[i] = q
		r := rand.New(rand.NewPCG(j.seed, uint64(i)))
		j.running.Go(func() {
			for d := range q {
				j.do(d, r)
			}
		})
	}
	return nil
}

func (j *judge) pause(r *rand.Rand) {
	if j.slow && r.IntN(6) == 0 {
		time.Sleep(time.Duration(r.IntN(150)) * time.Microsecond)
	}
	for range r.IntN(4) {
		runtime.Gosched()
	}
}

func (j *judge) do(d *deed, r *rand.Rand) {
	defer close(d.done)
	for _, e := range d.after {
		if e == nil {
			continue
		}
		if d.err = e.Wait(); d.err != nil {
			return // as the contract allows: the other events may still be under way
		}
	}
	j.pause(r)
	j.mu.Lock()
	if j.closed {
		j.violate("%s runs after Release", d.name)
	}
	interrupted := j.interrupted
	j.mu.Unlock()
	if interrupted {
		d.err = attention.ErrInterrupted
		return
	}
	d.err = d.run()
}

// submit queues an operation: start and end run at its beginning and end, under
// the lock, with a pause between them in which anything may happen.
func (j *judge) submit(queue int, name string, after []attention.Event, start func(), middle func() error, end func()) attention.Event {
	n := j.submitted
	j.submitted++
	r := rand.New(rand.NewPCG(j.seed, uint64(n)+100))
	d := &deed{name: fmt.Sprintf("operation %d, %s", n, name), after: slices.Clone(after), done: make(chan struct{})}
	d.run = func() error {
		if n == j.fail {
			return fmt.Errorf("%s: %w", d.name, errInjected)
		}
		j.locked(start)
		j.pause(r)
		err := middle()
		j.pause(r)
		j.locked(end)
		return err
	}
	j.queues[queue] <- d
	return d
}

func nothing() error { return nil }

// read checks that rows lie inside a tensor, and reads them.
func (j *judge) read(what string, tensor []byte, rows attention.Rows) error {
	if err := within(tensor, rows); err != nil {
		j.locked(func() { j.violate("%s: %w", what, err) })
		return nil
	}
	var sum byte
	for i := range rows.N {
		for _, b := range rows.Row(i) {
			sum += b
		}
	}
	runtime.KeepAlive(sum)
	return nil
}

func within(tensor []byte, rows attention.Rows) error {
	base, at := address(tensor), address(rows.Data)
	size := rows.Width * rows.DType.Size()
	need := (rows.N-1)*rows.Stride + size
	if rows.N < 1 || rows.Stride < size || len(rows.Data) < need || at < base || at+uintptr(need) > base+uintptr(len(tensor)) {
		return fmt.Errorf("rows of %d bytes at %d, N=%d, stride %d, width %d lie outside of a tensor of %d", len(rows.Data), int64(at)-int64(base), rows.N, rows.Stride, rows.Width, len(tensor))
	}
	return nil
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// load runs on a slot: nothing else may.
func (j *judge) load(name string, s *slot, content uintptr, rows int) (start, end func()) {
	s.planned++
	n := s.planned
	start = func() {
		if s.loading || s.users > 0 || s.current != n-1 {
			j.violate("%s, load %d of the slot, begins while %d operations use load %d of it (S1)", name, n, s.users, s.current)
		}
		s.loading, s.current = true, n
	}
	return start, func() { s.loading, s.content, s.rows = false, content, rows }
}

// use is on a slot as it was loaded when the operation was submitted.
func (j *judge) use(name string, s *slot, alone bool) (start, end func()) {
	n := s.planned
	start = func() {
		if s.loading || s.current != n || alone && s.users > 0 {
			j.violate("%s wants load %d of the slot, and finds load %d, loading %v, %d users (S1, S2)", name, n, s.current, s.loading, s.users)
		}
		s.users++
	}
	return start, func() { s.users-- }
}

func (j *judge) LoadKV(n int, k, v []attention.Rows, after ...attention.Event) attention.Event {
	start, end := j.load(fmt.Sprintf("load of KV slot %d", n), &j.kv[n], address(k[0].Data), k[0].N)
	return j.submit(0, "LoadKV", after, start, func() error {
		for h := range k {
			j.read("K", j.tensors.K.Bytes(), k[h])
			j.read("V", j.tensors.V.Bytes(), v[h])
		}
		return nil
	}, end)
}

func (j *judge) LoadQuery(n int, q []attention.Rows, state io.ReaderAt, after ...attention.Event) attention.Event {
	s := &j.query[n]
	chunk := address(q[0].Data)
	start, end := j.load(fmt.Sprintf("load of query slot %d", n), s, chunk, q[0].N)
	var hash uint64
	return j.submit(0, "LoadQuery", after, func() {
		start()
		if _, ok := j.saved[chunk]; j.saving[chunk] || ok != (state != nil) {
			j.violate("state asked for: %v; written: %v, being written: %v (S3)", state != nil, ok, j.saving[chunk])
		}
	}, func() error {
		for _, rows := range q {
			j.read("Q", j.tensors.Q.Bytes(), rows)
		}
		if state == nil {
			return nil
		}
		var b [16]byte
		if _, err := state.ReadAt(b[:], 0); err != nil {
			return err
		}
		hash = binary.LittleEndian.Uint64(b[:])
		from := uintptr(binary.LittleEndian.Uint64(b[8:]))
		j.locked(func() {
			if from != chunk || hash != j.saved[chunk] {
				j.violate("the state read back is not the last one of the chunk (S3)")
			}
		})
		return nil
	}, func() { end(); s.hash = hash })
}

func (j *judge) Apply(work []attention.Work, after ...attention.Event) attention.Event {
	var starts, ends []func()
	seen := make(map[int]bool)
	var hashes []uint64 // after the batch
	for _, w := range work {
		if seen[w.Query] || len(w.Refs) == 0 {
			j.locked(func() { j.violate("query slot %d twice in a batch, or without keys", w.Query) })
		}
		seen[w.Query] = true
		s, e := j.use(fmt.Sprintf("apply to query slot %d", w.Query), &j.query[w.Query], true)
		starts, ends = append(starts, s), append(ends, e)
		for _, ref := range w.Refs {
			s, e := j.use(fmt.Sprintf("apply of KV slot %d", ref.Slot), &j.kv[ref.Slot], false)
			starts, ends = append(starts, s), append(ends, e)
		}
	}
	return j.submit(1, "Apply", after, func() {
		for _, f := range starts {
			f()
		}
		for _, w := range work {
			h := j.query[w.Query].hash
			for _, ref := range w.Refs {
				kv := &j.kv[ref.Slot]
				from := uint64(kv.content - address(j.tensors.K.Bytes()))
				h = (h*0x9e3779b97f4a7c15 ^ from ^ uint64(ref.Kind)<<40 ^ uint64(ref.Offset)<<44) + 1
			}
			hashes = append(hashes, h)
		}
	}, nothing, func() {
		for i, w := range work {
			j.query[w.Query].hash = hashes[i]
		}
		for _, f := range ends {
			f()
		}
		j.stats.Batches++
	})
}

func (j *judge) SaveState(n int, to io.WriterAt, after ...attention.Event) attention.Event {
	s := &j.query[n]
	start, end := j.use(fmt.Sprintf("save of query slot %d", n), s, true)
	var b [16]byte
	return j.submit(2, "SaveState", after, func() {
		start()
		j.saving[s.content] = true
		binary.LittleEndian.PutUint64(b[:], s.hash)
		binary.LittleEndian.PutUint64(b[8:], uint64(s.content))
	}, func() error {
		_, err := to.WriteAt(b[:], 0)
		return err
	}, func() {
		end()
		delete(j.saving, s.content)
		j.saved[s.content] = s.hash
	})
}

func (j *judge) Finish(n, empty int, out, lse []attention.Rows, after ...attention.Event) attention.Event {
	s := &j.query[n]
	start, end := j.use(fmt.Sprintf("finish of query slot %d", n), s, true)
	return j.submit(2, "Finish", after, func() {
		start()
		if empty < 0 || empty > out[0].N || out[0].N != s.rows {
			j.violate("finish of %d rows, %d empty, in a slot of %d", out[0].N, empty, s.rows)
		}
		at := address(out[0].Data) - address(j.tensors.O.Bytes())
		if _, ok := j.finished[at]; ok {
			j.violate("output rows at %d are written twice", at)
		}
		j.finished[at] = s.hash
	}, func() error {
		write := func(what string, tensor []byte, rows attention.Rows) {
			if err := within(tensor, rows); err != nil {
				j.locked(func() { j.violate("%s: %w", what, err) })
				return
			}
			for i := range rows.N {
				clear(rows.Row(i))
			}
		}
		for h := range out {
			write("O", j.tensors.O.Bytes(), out[h])
			if lse != nil {
				write("LSE", j.tensors.LSE.Bytes(), lse[h])
			}
		}
		return nil
	}, end)
}

func (j *judge) Stats() attention.Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stats
}

func (j *judge) Interrupt() { j.locked(func() { j.interrupted = true }) }

func (j *judge) Release() error {
	for _, q := range j.queues {
		close(q)
	}
	j.running.Wait()
	j.locked(func() { j.closed = true; j.released++ })
	return nil
}

var _ stream.Device = (*judge)(nil)

// verdict fails the test for everything noted.
func (j *judge) verdict(t *testing.T, what string) {
	t.Helper()
	for _, v := range j.violations {
		t.Errorf("%s: %v", what, v)
	}
	if j.reserved != 1 || j.released != 1 {
		t.Errorf("%s: reserved %d times, released %d times", what, j.reserved, j.released)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// written fails the test unless every element of the outputs was written.
func written(t *testing.T, x stream.Tensors) {
	t.Helper()
	sinks := []stream.Sink{x.O}
	if x.LSE != nil {
		sinks = append(sinks, x.LSE)
	}
	for _, s := range sinks {
		if i := slices.Index(s.Bytes(), 0xff); i >= 0 {
			t.Fatalf("byte %d of %s was never written", i, s.Path())
		}
	}
}

// judged is a small problem whose plan evicts states.
func judged(r *rand.Rand, t *testing.T) (*stream.Plan, stream.Tensors) {
	t.Helper()
	p := randomProblem(r)
	p.Nq, p.Nk, p.D, p.Dv = 1+r.IntN(60), 1+r.IntN(60), 2, 2
	req := stream.Request{Problem: p, LSE: r.IntN(2) == 0, Budget: 1, Host: stream.Host{Cache: 1 << 30, Disk: 1e9}}
	req.Divide, req.Chunks = []string{"cqs", "cqs", "rows"}[r.IntN(3)], []int{3, 4, 7, 13}[r.IntN(4)]
	if req.Divide == "cqs" && req.Chunks < 5 {
		req.Depth = 1 + r.IntN(2)
	}
	dev := cpu.New(2)
	_, _, err := stream.New(req, dev)
	var no *stream.NoFitError
	if !errors.As(err, &no) {
		t.Fatalf("budget of 1 byte: %v", err)
	}
	// Page granularity is coarse here: anything above the smallest gets room.
	req.Budget = no.Smallest + int64(r.IntN(3))*int64(r.IntN(20000))
	plan, _, err := stream.New(req, dev)
	if err != nil {
		t.Fatal(err)
	}
	return plan, tensors(r, p, req.LSE)
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	n := uint64(100)
	if testing.Short() {
		n = 30
	}
	for seed := range n {
		r := rand.New(rand.NewPCG(seed, 11))
		plan, x := judged(r, t)
		var first map[uintptr]uint64
		for round := range 3 {
			what := fmt.Sprintf("seed %d, round %d", seed, round)
			j := newJudge(seed*10+uint64(round), x)
			j.slow = round == 2 && seed%8 == 0
			opt := stream.Options{StatePath: filepath.Join(t.TempDir(), "state"), Prefetch: []int{-1, 1, 7}[round]}
			if _, err := stream.Run(context.Background(), plan, j, x, opt); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			j.verdict(t, what)
			written(t, x)
			gone(t, opt.StatePath)
			if first == nil {
				first = j.finished
			}
			if len(first) != len(j.finished) {
				t.Fatalf("%s: %d chunks finished, %d before", what, len(j.finished), len(first))
			}
			for at, h := range first {
				if j.finished[at] != h {
					t.Fatalf("%s: the pairs of the chunk at %d were applied in another order (S5)", what, at)
				}
			}
		}
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the state file is still there: %v", err)
	}
}

// Every operation in turn fails.
func TestFailingOperations(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 12))
		plan, x := judged(r, t)
		for i := 0; ; i++ {
			what := fmt.Sprintf("seed %d, operation %d", seed, i)
			j := newJudge(seed, x)
			j.fail = i
			opt := stream.Options{StatePath: filepath.Join(t.TempDir(), "state"), Prefetch: i%4 - 1}
			rep, err := stream.Run(context.Background(), plan, j, x, opt)
			j.verdict(t, what)
			gone(t, opt.StatePath)
			if i >= j.submitted {
				if err != nil {
					t.Fatalf("%s: nothing failed, and Run returns %v", what, err)
				}
				break
			}
			if !errors.Is(err, errInjected) || rep != nil {
				t.Fatalf("%s: %v, report %v", what, err, rep)
			}
		}
	}
}
