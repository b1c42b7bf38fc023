package cpu

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Device computes on the host's cores. It implements the streaming engine's
// device contract; see there for the order in which its methods may be called.
type Device struct {
	threads int

	tier
	measured *Measurement // of this machine, for predictions; may be nil

	geo      attention.Geometry
	exp      exponent
	arenas   []mmap.MMap
	kv       []kvSlot
	query    []querySlot
	scratch  []scratch
	partials []float64
	alloc    attention.Footprint

	in, apply, out *queue
	team           *team

	interrupted atomic.Bool
	mu          sync.Mutex // guards stats
	stats       attention.Stats
}

// New returns a device of that many threads with the best kernels that the
// machine has; 0 means one for each core that the process may use.
func New(threads int) *Device {
	d, _ := NewWith(threads, Kernels()[0])
	return d
}

// NewWith is New with one of Kernels. It reports whether the machine has it.
func NewWith(threads int, kernel string) (*Device, bool) {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	for _, t := range tiers() {
		if t.name() == kernel {
			return &Device{threads: threads, tier: t}, true
		}
	}
	return nil, false
}

// Kernel is the name of the device's kernels.
func (d *Device) Kernel() string { return d.tier.name() }

// Name is "cpu".
func (d *Device) Name() string { return "cpu" }

// Signature names the kernels, and dot products of bfloat16 where they take part. Threads
// and batches change no bit.
func (d *Device) Signature(g attention.Geometry) string {
	s := "cpu " + d.Kernel()
	if g.DType == attention.BF16 && d.lane != nil && d.lane.scoresBF16 != nil {
		s += " with bf16 dot products"
	}
	return s
}

// Threads is the number of threads that apply pairs.
func (d *Device) Threads() int { return d.threads }

// StateBytes is the size of a saved state of the longest query chunk: per lane
// acc[Dv], m and l in float64.
func (d *Device) StateBytes(g attention.Geometry) int64 {
	return attention.Product(g.KVHeads, lanesOf(g.Group*g.QueryRows), g.Dv+2, 8)
}

// Footprint is the memory that Reserve takes; see the package comment.
func (d *Device) Footprint(g attention.Geometry) attention.Footprint {
	page := int64(os.Getpagesize())
	pages := func(n int64) int64 { return (n + page - 1) / page * page }
	list := attention.Footprint{
		{Purpose: "query_slots", Bytes: pages(attention.Product(g.QuerySlots, queryBytes(g)))},
		{Purpose: "scratch", Bytes: pages(attention.Product(d.threads, scratchBytes(g)))},
	}
	if fewQueries(g) { // which read K and V where they are
		return append(list, attention.Use{Purpose: "partial_states", Bytes: pages(attention.Product(g.KVSlots, partsOf(g), partialFloats(g), 8))})
	}
	return append(attention.Footprint{{Purpose: "kv_slots", Bytes: pages(attention.Product(g.KVSlots, kvBytes(g)))}}, list...)
}

// Reserve takes all memory and starts the queues.
func (d *Device) Reserve(g attention.Geometry) error {
	d.geo = g
	d.book(func(s *attention.Stats) { *s = attention.Stats{} })
	arenas := make(map[string][]byte)
	for _, u := range d.Footprint(g) {
		// COPY is a private map: its pages are anonymous memory.
		m, err := mmap.MapRegion(nil, int(u.Bytes), mmap.COPY, mmap.ANON, 0)
		if err != nil {
			d.unmap()
			return fmt.Errorf("reserve %d bytes of memory for %s: %w", u.Bytes, u.Purpose, err)
		}
		preferHuge(m)
		d.arenas = append(d.arenas, m)
		d.alloc = append(d.alloc, attention.Use{Purpose: u.Purpose, Bytes: int64(len(m))})
		arenas[u.Purpose] = m
	}
	for i := range g.KVSlots {
		d.kv = append(d.kv, newKVSlot(g, arenas["kv_slots"][i*kvBytes(g):]))
	}
	for i := range g.QuerySlots {
		d.query = append(d.query, newQuerySlot(g, arenas["query_slots"][i*queryBytes(g):]))
	}
	for i := range d.threads {
		d.scratch = append(d.scratch, newScratch(g, arenas["scratch"][i*scratchBytes(g):]))
	}
	d.partials = floats[float64](arenas["partial_states"])
	d.exp = newExponent(g.Scale)
	if d.lane != nil {
		d.exp.top = float32(largestTop(d.lane.chains, g.D, g.OutDType) / d.exp.c)
	}
	d.team = newTeam(d.threads)
	d.in = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.InSeconds += t.Seconds() }) })
	d.apply = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.ApplySeconds += t.Seconds() }) })
	d.out = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.OutSeconds += t.Seconds() }) })
	return nil
}

func (d *Device) book(f func(*attention.Stats)) {
	d.mu.Lock()
	f(&d.stats)
	d.mu.Unlock()
}

// Allocated is the memory taken by Reserve, as it was taken.
func (d *Device) Allocated() attention.Footprint { return d.alloc }

// Stats is what was done since Reserve. It may be called at any time.
func (d *Device) Stats() attention.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Interrupt makes operations that are running or waiting end soon, with
// attention.ErrInterrupted. The states in slots are then worthless. It may be
// called at any time, and lasts until Release.
func (d *Device) Interrupt() { d.interrupted.Store(true) }

// Release waits for all operations and gives the memory back. The device may
// be reserved again.
func (d *Device) Release() error {
	for _, q := range []*queue{d.in, d.apply, d.out} {
		if q != nil {
			q.close()
		}
	}
	if d.team != nil {
		d.team.close()
	}
	d.interrupted.Store(false)
	return d.unmap()
}

func (d *Device) unmap() error {
	var first error
	for _, m := range d.arenas {
		if err := m.Unmap(); err != nil && first == nil {
			first = fmt.Errorf("release device memory: %w", err)
		}
	}
	d.arenas, d.alloc, d.kv, d.query, d.scratch, d.partials = nil, nil, nil, nil, nil, nil
	d.in, d.apply, d.out, d.team = nil, nil, nil, nil
	return first
}

// submit puts an operation on a queue; once interrupted, it does not start.
func (d *Device) submit(q *queue, after []attention.Event, run func() error) attention.Event {
	return q.submit(after, func() error {
		if d.interrupted.Load() {
			return attention.ErrInterrupted
		}
		return run()
	})
}

// spread calls f(thread, i) for each i of 0..n-1, the threads that run starts
// taking the next i as they come. An error or a fault in one thread stops all.
func (d *Device) spread(run func(n int, f func(thread int)), threads, n int, f func(thread, i int) error) error {
	var next atomic.Int64
	errs := make([]error, min(threads, n))
	run(len(errs), func(t int) {
		errs[t] = attention.GuardFaults(func() error {
			for i := int(next.Add(1)) - 1; i < n && !d.interrupted.Load(); i = int(next.Add(1)) - 1 {
				if err := f(t, i); err != nil {
					return err
				}
			}
			return nil
		})
		if errs[t] != nil {
			next.Store(int64(n))
		}
	})
	if err := cmp.Or(errs...); err != nil {
		return err
	}
	if d.interrupted.Load() {
		return attention.ErrInterrupted
	}
	return nil
}
