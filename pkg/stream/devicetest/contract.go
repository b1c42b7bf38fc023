package devicetest

import (
	"bytes"
	stderrors "errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// What is announced is what is taken, to the byte, several times over, and it grows
// with what it is for.
func (s suite) footprint(t *testing.T) {
	g := attention.Geometry{D: 80, Dv: 48, DType: attention.BF16, OutDType: attention.BF16, Scale: 1, KVHeads: 2, Group: 3, QueryRows: 100, KeyRows: 130, QuerySlots: 5, KVSlots: 7}
	d := s.Open(t, 2)
	for range 3 {
		must(t, d.Reserve(g))
		if want, got := d.Footprint(g), d.Allocated(); !slices.Equal(want, got) {
			t.Errorf("announced %v, allocated %v", want, got)
		}
		must(t, d.Release())
		if a := d.Allocated(); a != nil {
			t.Errorf("after Release: %v", a)
		}
	}
	for i, grow := range []func(*attention.Geometry){
		func(g *attention.Geometry) { g.KVSlots *= 100 },
		func(g *attention.Geometry) { g.QuerySlots *= 100 },
		func(g *attention.Geometry) { g.KeyRows *= 1000 },
		func(g *attention.Geometry) { g.QueryRows *= 1000 },
		func(g *attention.Geometry) { g.KVSlots = 1 << 40 },
		func(g *attention.Geometry) { g.KVSlots, g.KeyRows = 1<<30, 1<<30 }, // whose product wraps around
	} {
		more := g
		grow(&more)
		if a, b := d.Footprint(g).Total(), d.Footprint(more).Total(); b <= a {
			t.Errorf("growth %d: from %d to %d bytes", i, a, b)
		}
	}
	must(t, d.Release()) // of what is not reserved
}

// promise is an event that the test decides about.
type promise struct {
	done chan struct{}
	err  error
}

func (p *promise) Wait() error { <-p.done; return p.err }

func done(e attention.Event) bool {
	c := make(chan struct{})
	go func() { _ = e.Wait(); close(c) }()
	select {
	case <-c:
		return true
	case <-time.After(30 * time.Millisecond):
		return false
	}
}

// bench is a device with a small problem.
type bench struct {
	stream.Device
	x Tensors
}

func (s suite) small(t testing.TB) bench {
	p := Problem(64, 8)
	x := Random(p, rand.New(rand.NewPCG(35, 36)))
	d := s.reserve(t, 2, Way{Batch: 2}.Geometry(p))
	t.Cleanup(func() { must(t, d.Release()) })
	return bench{d, x}
}

func (b bench) loadKV(slot int, after ...attention.Event) attention.Event {
	return b.LoadKV(slot, b.x.Heads(b.x.K, b.x.P.DType, 0, 1, 64, 8, 0, 64), b.x.Heads(b.x.V, b.x.P.DType, 0, 1, 64, 8, 0, 64), after...)
}

func (b bench) query() []attention.Rows { return b.x.Heads(b.x.Q, b.x.P.DType, 0, 1, 64, 8, 0, 64) }

func (s suite) events(t *testing.T) {
	b := s.small(t)
	gate := &promise{done: make(chan struct{})}
	load := b.LoadQuery(0, b.query(), nil, b.loadKV(0, nil, gate))
	next := b.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}}, load)
	save := b.SaveState(0, new(memory), next)
	if done(load) || done(next) || done(save) {
		t.Error("an operation did not wait for its event")
	}
	close(gate.done)
	must(t, save.Wait())
	must(t, save.Wait()) // any number of times

	failed := &promise{done: make(chan struct{}), err: os.ErrClosed}
	close(failed.done)
	load = b.LoadQuery(0, b.query(), nil, b.loadKV(0, failed))
	next = b.Apply([]attention.Work{{Query: 0}}, load)
	for _, e := range []attention.Event{load, next, b.SaveState(0, new(memory), next), b.Finish(0, 0, nil, nil, next)} {
		if err := e.Wait(); !stderrors.Is(err, os.ErrClosed) {
			t.Errorf("an operation after a failed one: %v", err)
		}
	}
	must(t, b.loadKV(0).Wait()) // what does not depend on it goes on
}

func (s suite) stats(t *testing.T) {
	b := s.small(t)
	loads := []attention.Event{b.loadKV(0), b.loadKV(1)}
	loads = append(loads, b.LoadQuery(0, b.query(), nil, loads...))
	must(t, b.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}, {Slot: 1, Kind: attention.Diagonal}}}}, loads...).Wait())
	for _, e := range loads { // a GPU may be through with what comes after before they are booked
		must(t, e.Wait())
	}
	x := b.Stats()
	if want := float64(64*64 + 64*65/2); x.Pairs != want || x.Batches != 1 {
		t.Errorf("%v pairs in %d batches, want %v in 1", x.Pairs, x.Batches, want)
	}
	if want := int64(5 * 64 * 8 * 4); x.InBytes != want {
		t.Errorf("%d bytes in, want %d", x.InBytes, want)
	}
	if !(x.InSeconds > 0) || !(x.ApplySeconds > 0) {
		t.Errorf("no time passed: %+v", x)
	}
}

// Pairs that are computed in float64 are counted, and no others.
func (s suite) float64(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	for _, n := range []int{5, 150} { // few queries, and many
		for _, steep := range []bool{false, true} {
			p := Problem(150, 16)
			p.Nq, p.Causal = n, attention.TopLeft
			if steep {
				p.Scale = 1000
			}
			x := Random(p, rng)
			want := 0.
			if steep && !s.Once { // or else float64 is nothing special
				want = p.Pairs()
			}
			if got := s.Compute(t, x, Way{QueryChunk: 64, KeyChunk: 40}).Float64; got != want {
				t.Errorf("%d queries, scale %v: %v of %v pairs in float64, want %v", n, p.Scale, got, p.Pairs(), want)
			}
		}
	}
}

func (s suite) interrupt(t *testing.T) {
	p := Problem(64, 8)
	x := Random(p, rand.New(rand.NewPCG(37, 38)))
	g := Way{}.Geometry(p)
	d := s.reserve(t, 2, g)
	b := bench{d, x}
	load := b.LoadQuery(0, b.query(), nil, b.loadKV(0))
	refs := slices.Repeat([]attention.KVRef{{Slot: 0, Kind: attention.Full}}, 5_000_000)
	apply := b.Apply([]attention.Work{{Query: 0, Refs: refs}}, load)
	waiting := b.SaveState(0, new(memory), apply)
	must(t, load.Wait())
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	d.Interrupt()
	for _, e := range []attention.Event{apply, waiting, b.loadKV(0), b.LoadQuery(0, b.query(), nil), b.Finish(0, 0, nil, nil)} {
		if err := e.Wait(); !stderrors.Is(err, attention.ErrInterrupted) {
			t.Errorf("after Interrupt: %v", err)
		}
	}
	if took := time.Since(start); !(took < 10*time.Second) {
		t.Errorf("stopping took %v", took)
	}
	must(t, d.Release())
	must(t, d.Reserve(g))
	must(t, b.loadKV(0).Wait()) // an interrupt lasts until Release
	must(t, d.Release())
}

// A state that leaves its slot and comes back, with another chunk in the slot between,
// is worth as much as one that stays. Its size is what was announced.
func (s suite) states(t *testing.T) {
	rng := rand.New(rand.NewPCG(45, 46))
	for _, typ := range dtypes {
		for _, dims := range [][2]int{{24, 24}, {100, 33}, {256, 200}} {
			p := Problem(150, dims[0])
			p.Dv, p.Hq, p.Hkv, p.DType, p.OutDType, p.Layout = dims[1], 4, 2, typ, typ, attention.BNHD
			x := Random(p, rng)
			w := Way{QueryChunk: 140, KeyChunk: 40, Slack: 33}
			want := s.Compute(t, x, w)
			w.Save = true
			got := s.Compute(t, x, w)
			if !bytes.Equal(got.O, want.O) || !bytes.Equal(got.LSE, want.LSE) {
				t.Errorf("%v, D = %d, Dv = %d: saving the state makes a difference", typ, dims[0], dims[1])
			}

			g := Way{QueryChunk: 150}.Geometry(p)
			d := s.reserve(t, 1, g)
			mem := new(memory)
			must(t, d.SaveState(0, mem, d.LoadQuery(0, x.Heads(x.Q, typ, 0, 4, 150, p.D, 0, 150), nil)).Wait())
			if n := d.StateBytes(g); int64(len(mem.b)) != n {
				t.Errorf("%v, D = %d, Dv = %d: a state of %d bytes, announced as %d", typ, dims[0], dims[1], len(mem.b), n)
			}
			must(t, d.Release())
		}
	}
}

// A state that is shorter than it should be is an error, not zeros.
func (s suite) shortState(t *testing.T) {
	b := s.small(t)
	mem := new(memory)
	must(t, b.SaveState(0, mem, b.LoadQuery(0, b.query(), nil)).Wait())
	mem.b = mem.b[:len(mem.b)-1]
	if err := b.LoadQuery(1, b.query(), mem).Wait(); err == nil {
		t.Error("a truncated state was loaded")
	}
}

// Heads beside each other in a row, many of them, and group sizes that don't divide.
func (s suite) manyHeads(t *testing.T) {
	rng := rand.New(rand.NewPCG(47, 48))
	for _, heads := range [][2]int{{33, 33}, {21, 3}, {600, 600}} {
		for _, layout := range []attention.Layout{attention.BHND, attention.BNHD} {
			p := Problem(20, 8)
			p.Hq, p.Hkv, p.Layout, p.DType = heads[0], heads[1], layout, attention.BF16
			x := Random(p, rng)
			s.Check(t, fmt.Sprintf("%+v", p), Compare(t, x, s.Compute(t, x, Way{QueryChunk: 15, KeyChunk: 13}), 4), p.OutDType)
		}
	}
}

// onDisk is a file with a mapping for reading only.
type onDisk struct {
	file *os.File
	m    mmap.MMap
}

func writeFile(t testing.TB, data []byte) onDisk {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tensor"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(data)
	must(t, err)
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	must(t, err)
	t.Cleanup(func() { must(t, m.Unmap()) })
	return onDisk{f, m}
}

// rows gives rows of data the ways to the file that it has been written to.
func (f onDisk) rows(list []attention.Rows, data []byte, at int64, mapped, file bool) []attention.Rows {
	var out []attention.Rows
	for _, r := range list {
		lo := at + int64(uintptr(unsafe.Pointer(&r.Data[0]))-uintptr(unsafe.Pointer(&data[0])))
		r.Data = f.m[lo : lo+int64(len(r.Data))]
		if mapped {
			r.Mapping = f.m
		}
		if file {
			r.File, r.At = f.file, lo
		}
		out = append(out, r)
	}
	return out
}

// Rows come the same from memory, from a mapping, from a file, and from both, wherever
// they begin, side by side or apart.
func (s suite) sources(t *testing.T) {
	rng := rand.New(rand.NewPCG(49, 50))
	const header = 64 << 10 / 3
	n := 3000
	if testing.Short() {
		n = 700
	}
	for _, c := range []struct {
		layout attention.Layout
		nq     int
	}{{attention.BHND, n}, {attention.BNHD, n}, {attention.BHND, 3}, {attention.BNHD, 3}} {
		p, layout := Problem(n, 72), c.layout
		p.Hq, p.Hkv, p.Nq, p.Layout, p.DType = 6, 3, c.nq, layout, attention.BF16
		x := Random(p, rng)
		pad := make([]byte, header)
		q, k, v := writeFile(t, slices.Concat(pad, x.Q)), writeFile(t, slices.Concat(pad, x.K)), writeFile(t, slices.Concat(pad, x.V))
		var want []byte
		for _, from := range []struct{ mapped, file bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
			d := s.reserve(t, 2, Way{}.Geometry(p))
			query := q.rows(x.Heads(x.Q, p.DType, 0, p.Hq, p.Nq, p.D, 0, p.Nq), x.Q, header, from.mapped, from.file)
			keys := k.rows(x.Heads(x.K, p.DType, 0, p.Hkv, p.Nk, p.D, 0, p.Nk), x.K, header, from.mapped, from.file)
			values := v.rows(x.Heads(x.V, p.DType, 0, p.Hkv, p.Nk, p.Dv, 0, p.Nk), x.V, header, from.mapped, from.file)
			e := d.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}},
				d.LoadQuery(0, query, nil), d.LoadKV(0, keys, values))
			r := Result{O: make([]byte, p.Hq*p.Nq*p.Dv*4), LSE: make([]byte, p.Hq*p.Nq*4)}
			must(t, d.Finish(0, 0, x.Heads(r.O, p.OutDType, 0, p.Hq, p.Nq, p.Dv, 0, p.Nq), nil, e).Wait())
			t.Logf("%v, %+v: by %s", layout, from, d.Stats().Path)
			must(t, d.Release())
			if want == nil {
				want = r.O
			} else if !bytes.Equal(want, r.O) {
				t.Errorf("%v, %d queries: rows from %+v differ from those in memory", layout, p.Nq, from)
			}
		}
	}
}

// mapped returns a map of a file that was truncated to less than the map.
func mapped(t *testing.T, size, left int64) mmap.MMap {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tensor"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	m, err := mmap.Map(f, mmap.RDWR, 0)
	must(t, err)
	t.Cleanup(func() { m.Unmap() })
	must(t, f.Truncate(left))
	return m
}

// A file that shrank under its mapping is an error that says where.
func (s suite) fault(t *testing.T) {
	const n, w = 4096, 16
	page := int64(os.Getpagesize())
	for _, typ := range dtypes {
		p := Problem(n, w)
		p.DType, p.OutDType = typ, typ
		size := n * w * typ.Size()
		whole := make([]byte, size)
		short := mapped(t, int64(size), int64(size)/2/page*page)
		d := s.reserve(t, 4, Way{}.Geometry(p))
		rows := func(b []byte) []attention.Rows {
			return []attention.Rows{{Data: b, Stride: w * typ.Size(), N: n, Width: w, DType: typ}}
		}
		for name, submit := range map[string]func() attention.Event{
			"K": func() attention.Event { return d.LoadKV(0, rows(short), rows(whole)) },
			"V": func() attention.Event { return d.LoadKV(0, rows(whole), rows(short)) },
			"Q": func() attention.Event { return d.LoadQuery(0, rows(short), nil) },
			"O": func() attention.Event { return d.Finish(0, 0, rows(short), nil, d.LoadQuery(0, rows(whole), nil)) },
			"empty rows of O": func() attention.Event {
				return d.Finish(0, n, rows(short), nil, d.LoadQuery(0, rows(whole), nil))
			},
		} {
			err := submit().Wait()
			var fault *attention.Fault
			if !stderrors.As(err, &fault) {
				t.Errorf("%v %s under a truncated map: %v", typ, name, err)
				continue
			}
			if at := fault.Addr - uintptr(unsafe.Pointer(&short[0])); at >= uintptr(size) || at < uintptr(size)/2/uintptr(page)*uintptr(page) {
				t.Errorf("%v %s: fault at %#x, %d bytes from the map's start", typ, name, fault.Addr, int(at))
			}
		}
		must(t, d.LoadKV(0, rows(whole), rows(whole)).Wait())
		must(t, d.Release())
		s.faultOfFew(t, p, rows(whole), rows(short))
	}
}

// With few queries a device may leave rows where they are, until they are applied.
func (s suite) faultOfFew(t *testing.T, p attention.Problem, whole, short []attention.Rows) {
	p.Nq = 3
	d := s.reserve(t, 4, Way{}.Geometry(p))
	for name, kv := range map[string][2][]attention.Rows{"K": {short, whole}, "V": {whole, short}} {
		query := []attention.Rows{whole[0].Slice(0, p.Nq)}
		e := d.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}},
			d.LoadQuery(0, query, nil), d.LoadKV(0, kv[0], kv[1]))
		var fault *attention.Fault
		if err := e.Wait(); !stderrors.As(err, &fault) {
			t.Errorf("%v %s under a truncated map, few queries: %v", p.DType, name, err)
		}
	}
	must(t, d.Release())
}
