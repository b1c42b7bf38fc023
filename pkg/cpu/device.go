package cpu

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Device computes on the host's cores. It implements the streaming engine's
// device contract; see there for the order in which its methods may be called.
type Device struct {
	threads int

	geo     attention.Geometry
	arenas  []mmap.MMap
	kv      []kvSlot
	query   []querySlot
	scratch []scratch
	alloc   attention.Footprint

	in, apply, out *queue

	interrupted atomic.Bool
	mu          sync.Mutex // guards stats
	stats       attention.Stats
}

type kvSlot struct {
	k, v  []float32
	heads int
	rows  int
}

type querySlot struct {
	q     []float32
	state []float64 // acc (heads x rows x Dv), m, l (heads x rows each), packed for the rows loaded
	heads int
	rows  int
}

// part is the state of n rows from row lo on, counted over all heads.
func (s *querySlot) part(lo, n, dv int) state {
	all := s.heads * s.rows
	m, l := s.state[all*dv:all*dv+all], s.state[all*dv+all:all*dv+2*all]
	return state{acc: s.state[lo*dv : (lo+n)*dv], m: m[lo : lo+n], l: l[lo : lo+n]}
}

// New returns a device of that many threads; 0 means one for each core that
// the process may use.
func New(threads int) *Device {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return &Device{threads: threads}
}

// Name is "cpu".
func (d *Device) Name() string { return "cpu" }

// Threads is the number of threads that apply pairs.
func (d *Device) Threads() int { return d.threads }

// Rates are those of the portable kernel on four threads of a current server
// core, whatever the number of threads; Speed has that.
func (d *Device) Rates(attention.Geometry) attention.Rates {
	const nominal = 4
	return attention.Rates{
		FLOPS: nominal * 4e9,
		In:    nominal * 1.2e9, Out: 1.2e9,
		Launch: 50e-6,
		Shared: 1,
		Speed:  float64(d.threads) / nominal,
	}
}

func tiles(rows int) int { return (rows + keyTile - 1) / keyTile }

func kFloats(g attention.Geometry) int { return g.KVHeads * g.KeyRows * g.D }
func vFloats(g attention.Geometry) int { return g.KVHeads * tiles(g.KeyRows) * keyTile * g.Dv }
func qFloats(g attention.Geometry) int { return g.QueryHeads() * g.QueryRows * g.D }

// StateBytes is the size of a saved state of the longest query chunk: per row
// acc[Dv], m and l in float64.
func (d *Device) StateBytes(g attention.Geometry) int64 {
	return int64(g.QueryHeads()) * int64(g.QueryRows) * int64(g.Dv+2) * 8
}

// Footprint is the memory that Reserve takes; see the package comment.
func (d *Device) Footprint(g attention.Geometry) attention.Footprint {
	page := int64(os.Getpagesize())
	pages := func(n int64) int64 { return (n + page - 1) / page * page }
	return attention.Footprint{
		{Purpose: "kv_slots", Bytes: pages(product(g.KVSlots, g.KVHeads, g.KeyRows, g.D, 4) +
			product(g.KVSlots, g.KVHeads, tiles(g.KeyRows), keyTile, g.Dv, 4))},
		{Purpose: "query_slots", Bytes: pages(product(g.QuerySlots, g.QueryHeads(), g.QueryRows, g.Dv+2, 8) +
			product(g.QuerySlots, g.QueryHeads(), g.QueryRows, g.D, 4))},
		{Purpose: "scratch", Bytes: pages(product(d.threads, scratchFloats(g), 8))},
	}
}

// product is at most 2^60, which is more than any machine has: a product that
// wrapped around could look as if it fitted.
func product(factors ...int) int64 {
	n, wide := int64(1), 1.0
	for _, f := range factors {
		n *= int64(f)
		wide *= float64(f)
	}
	if wide >= 1<<60 {
		return 1 << 60
	}
	return n
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
		d.arenas = append(d.arenas, m)
		d.alloc = append(d.alloc, attention.Use{Purpose: u.Purpose, Bytes: int64(len(m))})
		arenas[u.Purpose] = m
	}
	f32 := floats[float32](arenas["kv_slots"])
	for range g.KVSlots {
		s := kvSlot{k: f32[:kFloats(g)]}
		f32 = f32[kFloats(g):]
		s.v, f32 = f32[:vFloats(g)], f32[vFloats(g):]
		d.kv = append(d.kv, s)
	}
	// float64 first, for alignment inside a query slot's arena.
	stateFloats := int(d.StateBytes(g) / 8)
	f64 := floats[float64](arenas["query_slots"])
	f32 = floats[float32](arenas["query_slots"])[2*stateFloats*g.QuerySlots:]
	for range g.QuerySlots {
		s := querySlot{state: f64[:stateFloats], q: f32[:qFloats(g)]}
		f64, f32 = f64[stateFloats:], f32[qFloats(g):]
		d.query = append(d.query, s)
	}
	f64 = floats[float64](arenas["scratch"])
	for range d.threads {
		d.scratch = append(d.scratch, newScratch(g, f64[:scratchFloats(g)]))
		f64 = f64[scratchFloats(g):]
	}
	d.in = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.InSeconds += t.Seconds() }) })
	d.apply = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.ApplySeconds += t.Seconds() }) })
	d.out = newQueue(func(t time.Duration) { d.book(func(s *attention.Stats) { s.OutSeconds += t.Seconds() }) })
	return nil
}

func floats[T float32 | float64](b []byte) []T {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(T(0))))
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
	d.arenas, d.alloc, d.kv, d.query, d.scratch = nil, nil, nil, nil, nil
	d.in, d.apply, d.out = nil, nil, nil
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

// spread calls f(thread, i) for each i of 0..n-1, the threads taking the next i
// as they come. A fault in one thread stops all.
func (d *Device) spread(threads, n int, f func(thread, i int)) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, min(threads, n))
	for t := range errs {
		wg.Go(func() {
			errs[t] = guard(func() error {
				for i := int(next.Add(1)) - 1; i < n && !d.interrupted.Load(); i = int(next.Add(1)) - 1 {
					f(t, i)
				}
				return nil
			})
			if errs[t] != nil {
				next.Store(int64(n))
			}
		})
	}
	wg.Wait()
	if err := cmp.Or(errs...); err != nil {
		return err
	}
	if d.interrupted.Load() {
		return attention.ErrInterrupted
	}
	return nil
}

// loadThreads is how many threads fill one slot: as many as a few memory
// channels feed, the other cores being busy with Apply.
const loadThreads = 4

// LoadKV packs one key chunk into a KV slot: k and v have one entry per KV head.
func (d *Device) LoadKV(slot int, k, v []attention.Rows, after ...attention.Event) attention.Event {
	return d.submit(d.in, after, func() error {
		s, g := &d.kv[slot], d.geo
		s.heads, s.rows = len(k), k[0].N
		nt := tiles(s.rows)
		err := d.spread(min(d.threads, loadThreads), s.heads*nt, func(_, i int) {
			head, lo := i/nt, i%nt*keyTile
			hi := min(lo+keyTile, s.rows)
			loadRows(s.k[(head*s.rows+lo)*g.D:], k[head].Slice(lo, hi))
			packTile(s.v[i*keyTile*g.Dv:(i+1)*keyTile*g.Dv], v[head].Slice(lo, hi))
		})
		if err != nil {
			return err
		}
		var bytes int64
		for h := range k {
			bytes += rowBytes(k[h]) + rowBytes(v[h])
		}
		d.book(func(st *attention.Stats) { st.InBytes += bytes })
		return nil
	})
}

func rowBytes(r attention.Rows) int64 { return int64(r.N) * int64(r.Width) * int64(r.DType.Size()) }

func loadRows(dst []float32, r attention.Rows) {
	if r.Stride == r.Width*r.DType.Size() { // contiguous: one long conversion
		r.DType.Widen(dst[:r.N*r.Width], r.Data[:r.N*r.Stride])
		return
	}
	for i := range r.N {
		r.DType.Widen(dst[i*r.Width:(i+1)*r.Width], r.Row(i))
	}
}

// packTile transposes the values of up to keyTile keys. The keys that pad the
// last tile are never read by the kernel.
func packTile(dst []float32, v attention.Rows) {
	var b block
	size := v.DType.Size()
	for j := 0; j < v.N; j += blockRows {
		n := min(blockRows, v.N-j)
		for x := 0; x < v.Width; x += blockColumns {
			w := min(blockColumns, v.Width-x)
			for i := range n {
				at := (j+i)*v.Stride + x*size
				v.DType.Widen(b[i][:w], v.Data[at:at+w*size])
			}
			b.transpose(dst[x*keyTile+j:], n, w)
		}
	}
}

// A block of V is small enough for the first-level cache, and its columns fill
// whole cache lines of the slot.
const blockRows, blockColumns = 16, 64

type block [blockRows][blockColumns]float32

// transpose writes the first n elements of w columns, keyTile apart.
func (b *block) transpose(dst []float32, n, w int) {
	for c := range min(w, blockColumns) {
		to := dst[c*keyTile:]
		if n < blockRows {
			for i := range n {
				to[i] = b[i][c]
			}
			continue
		}
		t := (*[blockRows]float32)(to)
		for i := 0; i < blockRows; i += 4 {
			t[i], t[i+1], t[i+2], t[i+3] = b[i][c], b[i+1][c], b[i+2][c], b[i+3][c]
		}
	}
}

// LoadQuery loads one query chunk, one entry of q per query head, and its
// state: fresh if from is nil, else as SaveState wrote it.
func (d *Device) LoadQuery(slot int, q []attention.Rows, from io.ReaderAt, after ...attention.Event) attention.Event {
	return d.submit(d.in, after, func() error {
		s := &d.query[slot]
		s.heads, s.rows = len(q), q[0].N
		var bytes int64
		for h := range q {
			loadRows(s.q[h*s.rows*d.geo.D:], q[h])
			bytes += rowBytes(q[h])
		}
		state := s.used(d.geo.Dv)
		if from == nil {
			n := s.heads * s.rows
			clear(state)
			for i := range n {
				state[n*d.geo.Dv+i] = math.Inf(-1)
			}
		} else {
			b := stateBytes(state)
			// A reader may report io.EOF along with the last bytes.
			if n, err := from.ReadAt(b, 0); n < len(b) {
				return err
			}
			bytes += int64(len(b))
		}
		d.book(func(st *attention.Stats) { st.InBytes += bytes })
		return nil
	})
}

func (s *querySlot) used(dv int) []float64 { return s.state[:s.heads*s.rows*(dv+2)] }

func stateBytes(f []float64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 8*len(f))
}

// SaveState writes the slot's state, in this machine's byte order.
func (d *Device) SaveState(slot int, to io.WriterAt, after ...attention.Event) attention.Event {
	return d.submit(d.out, after, func() error {
		b := stateBytes(d.query[slot].used(d.geo.Dv))
		if _, err := to.WriteAt(b, 0); err != nil {
			return err
		}
		d.book(func(st *attention.Stats) { st.OutBytes += int64(len(b)) })
		return nil
	})
}

// Finish writes the rows of a complete query chunk: O rounded once to its
// type, and lse (if wanted: lse may be nil) as float32. The first empty rows
// see no key.
func (d *Device) Finish(slot, empty int, out, lse []attention.Rows, after ...attention.Event) attention.Event {
	return d.submit(d.out, after, func() error {
		s := &d.query[slot]
		var bytes int64
		for h := range out {
			st := s.part(h*s.rows, s.rows, d.geo.Dv)
			for i := range out[h].N {
				finishRow(out[h].DType, out[h].Row(i), st.acc[i*d.geo.Dv:(i+1)*d.geo.Dv], st.l[i], i < empty)
			}
			bytes += rowBytes(out[h])
			if lse == nil {
				continue
			}
			for i := range lse[h].N {
				attention.F32.Put(lse[h].Row(i), st.m[i]+math.Log(st.l[i]))
			}
			bytes += rowBytes(lse[h])
		}
		d.book(func(st *attention.Stats) { st.OutBytes += bytes })
		return nil
	})
}

func finishRow(t attention.DType, dst []byte, acc []float64, l float64, empty bool) {
	if empty {
		clear(dst) // +0 in every type
		return
	}
	for x, a := range acc {
		t.Put(dst[x*t.Size():], a/l)
	}
}

// Apply applies work to query slots. No query slot may occur twice.
func (d *Device) Apply(work []attention.Work, after ...attention.Event) attention.Event {
	return d.submit(d.apply, after, func() error {
		tile := rowTile
		for tile > rowBlock && d.tasks(work, tile) < d.threads {
			tile /= 2
		}
		err := d.spread(d.threads, d.tasks(work, tile), func(thread, i int) {
			for w := range work { // task i of all is task i of some work
				n := d.tasks(work[w:w+1], tile)
				if i < n {
					d.do(&d.scratch[thread], work[w], i, tile)
					return
				}
				i -= n
			}
		})
		if err != nil {
			return err
		}
		d.book(func(s *attention.Stats) { s.Batches++ })
		return nil
	})
}

// tasks is the number of tasks in work. A task is a tile of the query rows that
// share one KV head: those of all its query heads, one head after another, as
// they lie in the slot.
func (d *Device) tasks(work []attention.Work, tile int) (n int) {
	for i := range work {
		s := &d.query[work[i].Query]
		n += s.heads / d.geo.Group * ((d.geo.Group*s.rows + tile - 1) / tile)
	}
	return n
}

// do runs one task of w: all its key chunks, in order.
func (d *Device) do(sc *scratch, w attention.Work, task, tile int) {
	g := d.geo
	s := &d.query[w.Query]
	shared := g.Group * s.rows
	perHead := (shared + tile - 1) / tile
	head, row := task/perHead, task%perHead*tile
	n := min(tile, shared-row)
	lo := head*shared + row
	q := sc.q[:n*g.D]
	for i, x := range s.q[lo*g.D : (lo+n)*g.D] {
		q[i] = float64(x)
	}
	var pairs int
	for _, ref := range w.Refs {
		if d.interrupted.Load() {
			return
		}
		kv := &d.kv[ref.Slot]
		nt := tiles(kv.rows)
		ks := keys{
			n: kv.rows,
			k: kv.k[head*kv.rows*g.D : (head+1)*kv.rows*g.D],
			v: kv.v[head*nt*keyTile*g.Dv : (head+1)*nt*keyTile*g.Dv],
		}
		var visible [rowTile]int
		for i := range n {
			visible[i] = ks.n
			if ref.Kind != attention.Full {
				visible[i] = min(max((row+i)%s.rows+ref.Offset+1, 0), ks.n)
			}
			pairs += visible[i]
		}
		d.applyRows(sc, q, s.part(lo, n, g.Dv), ks, visible[:n])
	}
	d.book(func(s *attention.Stats) { s.Pairs += float64(pairs) })
}
