package cpu

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream/devicetest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

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
	for _, rows := range []int{4, 15, 16, 17, 127, 128, 129, 150} { // more than few
		for _, typ := range dtypes {
			p := devicetest.Problem(rows, 70)
			p.Dv, p.Hq, p.Hkv, p.DType, p.Layout = 67, 4, 2, typ, attention.BNHD
			x := devicetest.Random(p, rng)
			g := devicetest.Way{Slack: 5, Batch: 3}.Geometry(p)
			d := reserve(t, 2, g)
			poison(d)
			load := d.LoadKV(1, x.Heads(x.K, typ, 0, 2, rows, 70, 0, rows), x.Heads(x.V, typ, 0, 2, rows, 67, 0, rows))
			must(t, d.LoadQuery(1, x.Heads(x.Q, typ, 0, 4, rows, 70, 0, rows), nil, load).Wait())
			for _, i := range []int{0, 2} {
				d.kv[i].intactFrom(t, g, 0, 0)
			}
			d.query[0].intactFrom(t, g, 0, 0)
			d.kv[1].intactFrom(t, g, 2, rows)
			d.query[1].intactFrom(t, g, 2, rows)
			checkRows(t, "K", d.kv[1].k, x.Heads(x.K, typ, 0, 2, rows, 70, 0, rows))
			checkRows(t, "V", d.kv[1].v, x.Heads(x.V, typ, 0, 2, rows, 67, 0, rows))
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
	g := attention.Geometry{D: 64, Dv: 64, KVHeads: 1, Group: 1, QueryRows: 32, KeyRows: 8, QuerySlots: 1, KVSlots: 1}
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
	p := devicetest.Problem(8, 64)
	x := devicetest.Random(p, rng)
	for range 3 {
		must(t, d.Reserve(g))
		must(t, d.LoadQuery(0, x.Heads(x.Q, p.DType, 0, 1, 8, 64, 0, 8), nil).Wait())
		if s := d.Stats(); s.InBytes != 8*64*4 {
			t.Errorf("%d bytes in since Reserve", s.InBytes)
		}
		must(t, d.Release())
	}
	if err := newDevice(1).Release(); err != nil {
		t.Errorf("Release of what was never reserved: %v", err)
	}
}

// Stats and Interrupt come from other goroutines at any time.
func TestStatsDuringRelease(t *testing.T) {
	p := devicetest.Problem(4, 4)
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
		must(t, d.Reserve(devicetest.Way{}.Geometry(p)))
		must(t, d.Release())
	}
	close(stop)
	<-stopped
}

// Rows may lie gigabytes apart: they are put side by side in a slot or, for few queries,
// in a thread's own memory.
func TestRowsFarApart(t *testing.T) { eachKernel(t, testRowsFarApart) }

func testRowsFarApart(t *testing.T) {
	if testing.Short() || unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("maps 5 GiB of address space")
	}
	const apart = 1 << 30
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	must(t, err)
	defer f.Close()
	p := devicetest.Problem(6, 2)
	p.Nq = fewRows + 1
	x := devicetest.Random(p, rand.New(rand.NewPCG(39, 40)))
	for i := range 6 {
		if _, err := f.WriteAt(x.K[i*8:i*8+8], int64(i)*apart); err != nil {
			t.Skipf("no sparse file: %v", err)
		}
	}
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		t.Skipf("no map of the sparse file: %v", err)
	}
	defer m.Unmap()
	k, v := []attention.Rows{{Data: m, Stride: apart, N: 6, Width: 2, DType: p.DType}}, x.Heads(x.V, p.DType, 0, 1, 6, 2, 0, 6)
	d := reserve(t, 1, devicetest.Way{}.Geometry(p))
	must(t, d.LoadKV(0, k, v).Wait())
	if got := d.kv[0].k[:len(x.K)]; !bytes.Equal(got, x.K) {
		t.Errorf("loaded %x, want %x", got, x.K)
	}
	p.Nq = fewRows
	d = reserve(t, 1, devicetest.Way{}.Geometry(p))
	must(t, d.LoadKV(0, k, v).Wait())
	if kv, err := d.scratch[0].few.window.look(d.geo, &d.kv[0], 0, 0, 6, false); err != nil || !bytes.Equal(kv.k, x.K) || !bytes.Equal(kv.v, x.V) {
		t.Errorf("for few queries %x and %x, %v; want %x and %x", kv.k, kv.v, err, x.K, x.V)
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

// Scores up to those of the largest float32, in some tiles and not in others: the rows
// are finite, and so is O.
func TestHugeScores(t *testing.T) { eachKernel(t, testHugeScores) }

func testHugeScores(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	cases := 120
	if testing.Short() {
		cases = 30
	}
	for n := range cases {
		p := devicetest.Problem([]int{1, 3, 60}[n%3], 64)
		p.Nk, p.Hq, p.Hkv = []int{1, 2, 700}[n/3%3], 4, 2
		p.DType, p.OutDType = dtypes[n%2*2], dtypes[n/2%3]
		if n%5 == 0 {
			p.Scale = -p.Scale
		}
		x := devicetest.Random(p, rng)
		size := p.DType.Size()
		largest := map[attention.DType]float64{attention.F32: math.MaxFloat32, attention.BF16: 0x1.fep127}[p.DType]
		in := [][]byte{x.Q, x.K}
		if n%4 > 0 { // else the square root of it in both: lse must not overflow
			in = in[n/4%2:][:1]
		}
		for _, data := range in {
			for range 1 + n%2 {
				value := math.Pow(largest/math.Pow(10, float64(rng.IntN(38))), 1/float64(len(in))) * float64(1-2*rng.IntN(2))
				p.DType.Put(data[rng.IntN(len(data)/size)*size:], value)
			}
		}
		w := devicetest.Way{KeyChunk: 1 + rng.IntN(p.Nk), Threads: 2}
		s := subject(new([paths]int))
		s.Check(t, fmt.Sprintf("%d: %+v %+v", n, p, w), devicetest.Compare(t, x, s.Compute(t, x, w), 60), p.OutDType)
	}
}
