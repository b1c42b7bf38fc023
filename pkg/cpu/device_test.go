package cpu

import (
	"bytes"
	stderrors "errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

func reserve(t testing.TB, threads int, g attention.Geometry) *Device {
	t.Helper()
	d := newDevice(threads)
	must(t, d.Reserve(g))
	t.Cleanup(func() { must(t, d.Release()) })
	return d
}

// A slot that is loaded once keeps its poison in everything but the chunk, the
// padding of the last tile included.
func TestCanaries(t *testing.T) { eachKernel(t, testCanaries) }

func testCanaries(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	for _, rows := range []int{1, 15, 16, 17, 127, 128, 129, 150} {
		for _, typ := range dtypes {
			p := problem(rows, 70)
			p.Dv, p.Hq, p.Hkv, p.DType, p.Layout = 67, 4, 2, typ, attention.BNHD
			x := random(p, rng)
			g := way{slack: 5, batch: 3}.or(p).geometry(p)
			d := reserve(t, 2, g)
			poison(d)
			load := d.LoadKV(1, x.heads(x.k, typ, 0, 2, rows, 70, 0, rows), x.heads(x.v, typ, 0, 2, rows, 67, 0, rows))
			must(t, d.LoadQuery(1, x.heads(x.q, typ, 0, 4, rows, 70, 0, rows), nil, load).Wait())
			for _, i := range []int{0, 2} {
				d.kv[i].intactFrom(t, g, 0, 0)
			}
			d.query[0].intactFrom(t, g, 0, 0)
			d.kv[1].intactFrom(t, g, 2, rows)
			d.query[1].intactFrom(t, g, 2, rows)
			checkRows(t, "K", d.kv[1].k, x.heads(x.k, typ, 0, 2, rows, 70, 0, rows))
			checkRows(t, "V", d.kv[1].v, x.heads(x.v, typ, 0, 2, rows, 67, 0, rows))
		}
	}
}

// checkRows compares a slot's rows, head after head, with the tensor's.
func checkRows(t *testing.T, what string, slot []byte, heads []attention.Rows) {
	t.Helper()
	for h, r := range heads {
		for i := range r.N {
			if got := slot[(h*r.N+i)*r.RowBytes():][:r.RowBytes()]; !bytes.Equal(got, r.Row(i)) {
				t.Fatalf("%s: row %d of head %d is %x, want %x", what, i, h, got, r.Row(i))
			}
		}
	}
}

func TestFootprint(t *testing.T) {
	for _, threads := range []int{1, 3} {
		g := attention.Geometry{D: 80, Dv: 48, DType: attention.BF16, KVHeads: 2, Group: 3, QueryRows: 100, KeyRows: 130, QuerySlots: 5, KVSlots: 7}
		d := newDevice(threads)
		want := d.Footprint(g)
		must(t, d.Reserve(g))
		if !slices.Equal(want, d.Allocated()) {
			t.Errorf("announced %v, allocated %v", want, d.Allocated())
		}
		page := int64(os.Getpagesize())
		pages := func(n int) int64 { return (int64(n) + page - 1) / page * page }
		formula := attention.Footprint{ // of the package comment
			{Purpose: "kv_slots", Bytes: pages(7 * 2 * (130*(80+48)*2 + 1*8))},
			{Purpose: "query_slots", Bytes: pages(5 * 2 * (304*(80*4+40*4+(48+2)*8) + 4*8))},
			{Purpose: "scratch", Bytes: pages(threads * (48*(256*4+80*8) + 256*(80+48)*4))},
		}
		if !slices.Equal(want, formula) {
			t.Errorf("announced %v, documented %v", want, formula)
		}
		held := int64(0)
		for _, m := range d.arenas {
			held += int64(len(m))
		}
		if held != want.Total() {
			t.Errorf("%d bytes are mapped, announced %d", held, want.Total())
		}
		if got := d.StateBytes(g); got != 2*304*(48+2)*8 {
			t.Errorf("a state has %d bytes", got)
		}
		must(t, d.Release())
		if d.Allocated() != nil {
			t.Errorf("after Release: %v", d.Allocated())
		}
	}
}

func TestReserveFailsCleanly(t *testing.T) {
	g := attention.Geometry{D: 64, Dv: 64, KVHeads: 1, Group: 1, QueryRows: 8, KeyRows: 8, QuerySlots: 1, KVSlots: 1}
	d := newDevice(2)
	for _, absurd := range []func(*attention.Geometry){
		func(g *attention.Geometry) { g.KVSlots = 1 << 40 },
		func(g *attention.Geometry) { g.QuerySlots = 1 << 40 },
		func(g *attention.Geometry) { g.KeyRows = 1 << 50 },
		func(g *attention.Geometry) { g.KVSlots, g.KeyRows = 1<<30, 1<<30 },        // wraps around to 0
		func(g *attention.Geometry) { g.KVSlots, g.KeyRows = 1<<42+1, 1<<13 },      // wraps around to 4 MiB
		func(g *attention.Geometry) { g.QuerySlots, g.QueryRows = 1<<42+1, 1<<12 }, // wraps around too
	} {
		bad := g
		absurd(&bad)
		if err := d.Reserve(bad); err == nil {
			t.Fatalf("%+v was reserved", bad)
		}
		if d.arenas != nil || d.Allocated() != nil {
			t.Errorf("a failed Reserve holds %v", d.Allocated())
		}
	}
	// The device is as good as new, several times.
	rng := rand.New(rand.NewPCG(33, 34))
	p := problem(8, 64)
	x := random(p, rng)
	for range 3 {
		must(t, d.Reserve(g))
		must(t, d.LoadQuery(0, x.heads(x.q, p.DType, 0, 1, 8, 64, 0, 8), nil).Wait())
		if s := d.Stats(); s.InBytes != 8*64*4 {
			t.Errorf("%d bytes in since Reserve", s.InBytes)
		}
		must(t, d.Release())
	}
	if err := newDevice(1).Release(); err != nil {
		t.Errorf("Release of what was never reserved: %v", err)
	}
}

// promise is an event that the test decides about.
type promise struct {
	done chan struct{}
	err  error
}

func (p *promise) Wait() error { <-p.done; return p.err }

func done(e attention.Event) bool {
	c := make(chan struct{})
	go func() { e.Wait(); close(c) }()
	select {
	case <-c:
		return true
	case <-time.After(30 * time.Millisecond):
		return false
	}
}

func small(t *testing.T, threads int) (*Device, tensors, func(slot int, after ...attention.Event) attention.Event) {
	p := problem(64, 8)
	x := random(p, rand.New(rand.NewPCG(35, 36)))
	d := reserve(t, threads, way{batch: 2}.or(p).geometry(p))
	return d, x, func(slot int, after ...attention.Event) attention.Event {
		return d.LoadKV(slot, x.heads(x.k, p.DType, 0, 1, 64, 8, 0, 64), x.heads(x.v, p.DType, 0, 1, 64, 8, 0, 64), after...)
	}
}

func TestEvents(t *testing.T) { eachKernel(t, testEvents) }

func testEvents(t *testing.T) {
	d, x, loadKV := small(t, 2)
	query := x.heads(x.q, x.p.DType, 0, 1, 64, 8, 0, 64)
	gate := &promise{done: make(chan struct{})}
	load := loadKV(0, nil, gate)
	next := d.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}}, load)
	save := d.SaveState(0, new(memory), next)
	if done(load) || done(next) || done(save) {
		t.Error("an operation did not wait for its event")
	}
	close(gate.done)
	must(t, save.Wait())
	must(t, save.Wait()) // any number of times

	failed := &promise{done: make(chan struct{}), err: os.ErrClosed}
	close(failed.done)
	load = d.LoadQuery(0, query, nil, loadKV(0, failed))
	next = d.Apply([]attention.Work{{Query: 0}}, load)
	for _, e := range []attention.Event{load, next, d.SaveState(0, new(memory), next), d.Finish(0, 0, nil, nil, next)} {
		if err := e.Wait(); !stderrors.Is(err, os.ErrClosed) {
			t.Errorf("an operation after a failed one: %v", err)
		}
	}
	must(t, loadKV(0).Wait()) // what does not depend on it goes on
}

func TestStats(t *testing.T) {
	d, x, loadKV := small(t, 2)
	query := x.heads(x.q, x.p.DType, 0, 1, 64, 8, 0, 64)
	load := d.LoadQuery(0, query, nil, loadKV(0), loadKV(1))
	must(t, d.Apply([]attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}, {Slot: 1, Kind: attention.Diagonal}}}}, load).Wait())
	s := d.Stats()
	if want := float64(64*64 + 64*65/2); s.Pairs != want || s.Batches != 1 {
		t.Errorf("%v pairs in %d batches, want %v in 1", s.Pairs, s.Batches, want)
	}
	if want := int64(5 * 64 * 8 * 4); s.InBytes != want {
		t.Errorf("%d bytes in, want %d", s.InBytes, want)
	}
	if !(s.InSeconds > 0) || !(s.ApplySeconds > 0) {
		t.Errorf("no time passed: %+v", s)
	}
}

func TestInterrupt(t *testing.T) {
	p := problem(64, 8)
	x := random(p, rand.New(rand.NewPCG(37, 38)))
	d := newDevice(2)
	must(t, d.Reserve(way{}.or(p).geometry(p)))
	query := x.heads(x.q, p.DType, 0, 1, 64, 8, 0, 64)
	k, v := x.heads(x.k, p.DType, 0, 1, 64, 8, 0, 64), x.heads(x.v, p.DType, 0, 1, 64, 8, 0, 64)
	load := d.LoadQuery(0, query, nil, d.LoadKV(0, k, v))
	refs := slices.Repeat([]attention.KVRef{{Slot: 0, Kind: attention.Full}}, 5_000_000) // many minutes
	apply := d.Apply([]attention.Work{{Query: 0, Refs: refs}}, load)
	waiting := d.SaveState(0, new(memory), apply)
	must(t, load.Wait())
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	d.Interrupt()
	for _, e := range []attention.Event{apply, waiting, d.LoadKV(0, k, v), d.LoadQuery(0, query, nil), d.Finish(0, 0, nil, nil)} {
		if err := e.Wait(); !stderrors.Is(err, attention.ErrInterrupted) {
			t.Errorf("after Interrupt: %v", err)
		}
	}
	if took := time.Since(start); !(took < 10*time.Second) {
		t.Errorf("stopping took %v", took)
	}
	must(t, d.Release())
	must(t, d.Reserve(way{}.or(p).geometry(p)))
	must(t, d.LoadKV(0, k, v).Wait()) // an interrupt lasts until Release
	must(t, d.Release())
}

// Stats and Interrupt come from other goroutines at any time.
func TestStatsDuringRelease(t *testing.T) {
	p := problem(4, 4)
	d := newDevice(1)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				d.Stats()
			}
		}
	}()
	for range 20 {
		must(t, d.Reserve(way{}.or(p).geometry(p)))
		must(t, d.Release())
	}
	close(stop)
	<-stopped
}

// mapped returns a map of a file that was truncated to less than the map.
func mapped(t *testing.T, size, left int64, prot int) mmap.MMap {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tensor"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	m, err := mmap.Map(f, prot, 0)
	must(t, err)
	t.Cleanup(func() { m.Unmap() })
	must(t, f.Truncate(left))
	return m
}

func TestFault(t *testing.T) { eachKernel(t, testFault) }

func testFault(t *testing.T) {
	const n, w = 4096, 16
	page := int64(os.Getpagesize())
	for _, typ := range dtypes {
		p := problem(n, w)
		p.DType = typ
		size := n * w * typ.Size()
		whole := make([]byte, size)
		short := mapped(t, int64(size), int64(size)/2/page*page, mmap.RDWR)
		for _, threads := range []int{1, 4} {
			d := reserve(t, threads, way{}.or(p).geometry(p))
			rows := func(b []byte) []attention.Rows {
				return []attention.Rows{{Data: b, Stride: w * typ.Size(), N: n, Width: w, DType: typ}}
			}
			out := rows(short)
			for name, submit := range map[string]func() attention.Event{
				"K":     func() attention.Event { return d.LoadKV(0, rows(short), rows(whole)) },
				"V":     func() attention.Event { return d.LoadKV(0, rows(whole), rows(short)) },
				"Q":     func() attention.Event { return d.LoadQuery(0, rows(short), nil) },
				"O":     func() attention.Event { return d.Finish(0, 0, out, nil, d.LoadQuery(0, rows(whole), nil)) },
				"empty": func() attention.Event { return d.Finish(0, n, out, nil, d.LoadQuery(0, rows(whole), nil)) },
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
		}
	}
}

// A state that is shorter than it should be is an error, not zeros.
func TestShortState(t *testing.T) {
	d, x, _ := small(t, 1)
	query := x.heads(x.q, x.p.DType, 0, 1, 64, 8, 0, 64)
	mem := new(memory)
	must(t, d.SaveState(0, mem, d.LoadQuery(0, query, nil)).Wait())
	if want := 64 * (8 + 2) * 8; len(mem.b) != want {
		t.Errorf("%d bytes of state, want %d", len(mem.b), want)
	}
	mem.b = mem.b[:len(mem.b)-1]
	if err := d.LoadQuery(1, query, mem).Wait(); err == nil {
		t.Error("a truncated state was loaded")
	}
}

// Rows may lie gigabytes apart.
func TestRowsFarApart(t *testing.T) { eachKernel(t, testRowsFarApart) }

func testRowsFarApart(t *testing.T) {
	if testing.Short() || unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("maps 5 GiB of address space")
	}
	const apart = 1 << 30
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	must(t, err)
	defer f.Close()
	p := problem(6, 2)
	x := random(p, rand.New(rand.NewPCG(39, 40)))
	for i := range 6 {
		if _, err := f.WriteAt(x.k[i*8:i*8+8], int64(i)*apart); err != nil {
			t.Skipf("no sparse file: %v", err)
		}
	}
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		t.Skipf("no map of the sparse file: %v", err)
	}
	defer m.Unmap()
	d := reserve(t, 1, way{}.or(p).geometry(p))
	k := []attention.Rows{{Data: m, Stride: apart, N: 6, Width: 2, DType: p.DType}}
	must(t, d.LoadKV(0, k, x.heads(x.v, p.DType, 0, 1, 6, 2, 0, 6)).Wait())
	if got := d.kv[0].k[:len(x.k)]; !bytes.Equal(got, x.k) {
		t.Errorf("loaded %x, want %x", got, x.k)
	}
}

// A quotient just above the middle of two 16-bit values rounds up; by way of
// float32 it would first become the middle, and then go to the even one below.
func TestOutputIsRoundedOnce(t *testing.T) {
	for _, typ := range []attention.DType{attention.F16, attention.BF16} {
		dst, got := make([]byte, 2), make([]float32, 1)
		finishRow(typ, dst, state{acc: []float64{3 * (1 + typ.Epsilon()/2 + 0x1p-40)}, l: []float64{3}, lanes: 1}, 0, false)
		typ.Widen(got, dst)
		if want := 1 + typ.Epsilon(); float64(got[0]) != want {
			t.Errorf("%v: %v, want %v", typ, got[0], want)
		}
	}
}
