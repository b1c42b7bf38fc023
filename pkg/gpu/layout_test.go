//go:build cuda

package gpu

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// kernels of some numbers: those of real ones are in the compiled code.
var (
	onePlane  = kernelInfo{Rows: 128, Keys: 112, Features: 128, Columns: 128, Planes: 1, Threads: 384, Shared: 1000, Offset: 10}
	twoPlanes = kernelInfo{Rows: 128, Keys: 32, Features: 256, Columns: 256, Planes: 2, Two: 1, Threads: 384, Shared: 1000, Offset: 10}
)

func geometry(d, dv int, t attention.DType) attention.Geometry {
	return attention.Geometry{D: d, Dv: dv, DType: t, OutDType: t, Scale: 1, KVHeads: 2, Group: 3, QueryRows: 300, KeyRows: 500, QuerySlots: 2, KVSlots: 4}
}

func TestModes(t *testing.T) {
	const f32, f16, bf16 = attention.F32, attention.F16, attention.BF16
	for _, c := range []struct {
		in, out attention.DType
		fast    bool
		want    mode
	}{
		{f32, f32, false, triple}, {f32, bf16, true, triple},
		{bf16, bf16, false, half}, {bf16, f16, false, split}, {bf16, f32, false, split}, {bf16, bf16, true, half}, {bf16, f32, true, half},
		{f16, f16, false, split}, {f16, bf16, false, half}, {f16, f32, true, half},
	} {
		g := attention.Geometry{DType: c.in, OutDType: c.out, Fast: c.fast}
		if got := modeOf(g); got != c.want {
			t.Errorf("%v to %v, fast %v: %s, want %s", c.in, c.out, c.fast, got, c.want)
		}
	}
	for _, c := range []struct{ d, dv, want int }{
		{1, 1, 64}, {64, 65, 128}, {128, 16, 128}, {129, 1, 192}, {192, 128, 192}, {192, 129, 256}, {193, 1, 256}, {1, 256, 256}, {256, 256, 256}, {257, 1, 0}, {1, 257, 0},
	} {
		if got, ok := shapeOf(attention.Geometry{D: c.d, Dv: c.dv}); got.d != c.want || ok != (c.want != 0) {
			t.Errorf("D=%d, Dv=%d: the kernel for D up to %d (%v), want %d", c.d, c.dv, got.d, ok, c.want)
		}
	}
}

// Parts of a head follow each other without overlap, and tiles lie where bulk copies
// can read them.
func TestLayout(t *testing.T) {
	for _, k := range []kernelInfo{onePlane, twoPlanes} {
		for _, dv := range []int{1, 100, int(k.Features)} {
			l := newLayout(geometry(100, dv, attention.F32), k, 132)
			p := l.pool
			rows := uint64(l.queryTiles) * uint64(k.Rows)
			two := uint64(k.Two)
			infos, queryInfos := p.KVInfo+uint64(l.keyTiles)*tileInfoBytes, p.QInfo+uint64(l.queryTiles)*tileInfoBytes // their ends
			rest, queryRest := infos, queryInfos                                                                       // likewise
			if k.Planes == 2 {
				rest, queryRest = p.KVRest+uint64(l.keyTiles)*uint64(l.tileK/2), p.QRest+uint64(l.queryTiles)*uint64(l.tileQ/2)
			}
			if k.Planes == 2 && (p.KVRest < infos || p.QRest < queryInfos) {
				t.Errorf("%+v, Dv=%d: the rest of K at %d and of Q at %d lie over infos", k, dv, p.KVRest, p.QRest)
			}
			for _, x := range []struct {
				what      string
				at, least uint64
			}{
				{"K", p.KVK, 0},
				{"V", p.KVV, p.KVK + uint64(l.keyTiles)*uint64(l.tileK)},
				{"infos of keys", p.KVInfo, p.KVV + uint64(l.keyTiles)*uint64(l.tileV)},
				{"next KV head", p.KVHead, rest},
				{"infos of queries", p.QInfo, uint64(l.queryTiles) * uint64(l.tileQ)},
				{"sums", p.QAcc, queryRest},
				{"low halves", p.QLow, p.QAcc + rows*uint64(p.Columns8)*4},
				{"maxima", p.QMax, p.QLow + two*rows*uint64(p.Columns8)*4},
				{"denominators", p.QSum, p.QMax + rows*8},
				{"next query head", p.QHead, p.QSum + (1+two)*rows*4},
			} {
				if x.at < x.least || x.at > x.least+alignment || x.at%16 != 0 {
					t.Errorf("%+v, Dv=%d: %s at %d, want just behind %d", k, dv, x.what, x.at, x.least)
				}
			}
			if l.results() > p.QMax || l.results()+rows*uint64(p.Columns8)*4 > p.QSum {
				t.Errorf("%+v, Dv=%d: results at %d reach over maxima", k, dv, l.results())
			}
		}
	}
}

// A state's segments are disjoint parts of the slot and add up to its size.
func TestStateSegments(t *testing.T) {
	for _, k := range []kernelInfo{onePlane, twoPlanes} {
		l := newLayout(geometry(200, int(k.Features), attention.F32), k, 132)
		for _, rows := range []int{1, 255, 300} {
			var total int64
			var end uint64
			for _, x := range l.stateSegments(rows, 5) {
				if x.at < end || x.at+uint64(x.bytes) > l.pool.QSlot {
					t.Errorf("a segment of %d bytes at %d, after one that ends at %d", x.bytes, x.at, end)
				}
				end = x.at + uint64(x.bytes)
				total += x.bytes
			}
			if want := l.stateBytes(rows, 5); total != want {
				t.Errorf("%d rows: segments of %d bytes, want %d", rows, total, want)
			}
		}
	}
}

// Whatever a launch splits, its partial states have room.
func TestSplits(t *testing.T) {
	for _, rows := range []int{1, 100, 1000, 5000, 20000} {
		g := geometry(128, 128, attention.BF16)
		g.QueryRows, g.KeyRows, g.QuerySlots = rows, 100000, 5
		for g.Works = 1; g.Works <= g.QuerySlots; g.Works++ {
			l := newLayout(g, onePlane, 132)
			for heads := g.Group; heads <= g.QueryHeads(); heads += g.Group {
				units := l.units(heads) * g.Works
				n := l.splits(heads)
				if n > 1 && g.Works*heads*n > l.partials {
					t.Errorf("%d rows, %d works of %d heads: %d splits need %d partial states, there is room for %d", rows, g.Works, heads, n, g.Works*heads*n, l.partials)
				}
				if units < 66 && n < 2 || units >= 132 && n != 1 {
					t.Errorf("%d units: %d splits", units, n)
				}
			}
		}
	}
}

// No size wraps around.
func TestHugeFootprints(t *testing.T) {
	g := geometry(128, 128, attention.BF16)
	for _, f := range []func(*attention.Geometry){
		func(g *attention.Geometry) { g.KVSlots = 1 << 40 },
		func(g *attention.Geometry) { g.QuerySlots = 1 << 40 },
		func(g *attention.Geometry) { g.QueryRows = 1 << 50 },
		func(g *attention.Geometry) { g.KVSlots, g.KeyRows = 1<<30, 1<<30 },
		func(g *attention.Geometry) { g.QuerySlots, g.QueryRows = 1<<42+1, 1<<12 },
	} {
		x := g
		f(&x)
		if n := newLayout(x, onePlane, 132).footprint().Total(); n < 1<<45 {
			t.Errorf("%+v takes %d bytes", x, n)
		}
	}
}

func TestFootprintIsGranular(t *testing.T) {
	f := newLayout(geometry(128, 128, attention.BF16), onePlane, 132).footprint()
	if f.Total()%granule != 0 {
		t.Errorf("%d bytes", f.Total())
	}
}

func TestCheckKernel(t *testing.T) {
	if err := onePlane.check("x", shape{128, 128}); err != nil {
		t.Error(err)
	}
	for _, f := range []func(*kernelInfo){
		func(k *kernelInfo) { k.Rows = 0 }, func(k *kernelInfo) { k.Keys = 100 }, func(k *kernelInfo) { k.Features = 64 },
		func(k *kernelInfo) { k.Columns = 96 }, func(k *kernelInfo) { k.Planes = 3 }, func(k *kernelInfo) { k.Offset = 0.5 },
	} {
		k := onePlane
		f(&k)
		if k.check("x", shape{128, 128}) == nil {
			t.Errorf("%+v passes", k)
		}
	}
}

// tensor is rows of heads with a value of its own in each element.
func tensor(heads, n, width int, interleaved bool) []attention.Rows {
	data := make([]byte, heads*n*width*2)
	for i := range len(data) / 2 {
		data[2*i], data[2*i+1] = byte(i), byte(i>>8)
	}
	var list []attention.Rows
	for h := range heads {
		r := attention.Rows{Data: data[h*n*width*2:], Stride: width * 2, N: n, Width: width, DType: attention.F16}
		if interleaved {
			r.Data, r.Stride = data[h*width*2:], heads*width*2
		}
		list = append(list, r.Slice(0, n))
	}
	return list
}

// Every row of every head arrives once, in whole tiles but for the last.
func TestParcels(t *testing.T) {
	const tile = 16
	for _, c := range []struct {
		heads, n, width int
		interleaved     bool
		size            int64
		jobs            int
	}{
		{1, 100, 8, false, 1 << 20, 512}, {3, 100, 8, false, 600, 512}, {3, 100, 8, true, 2000, 512}, {5, 17, 3, true, 1500, 2}, {7, 1, 300, false, 20000, 3}, {40, 33, 4, true, 5000, 512},
	} {
		list := tensor(c.heads, c.n, c.width, c.interleaved)
		spans := spansOf(list, false, tile, c.size/2)
		if c.interleaved && c.jobs > c.heads && len(spans) == c.heads {
			t.Errorf("%+v: no heads share a span", c)
		}
		if c.jobs < 5 { // spans of many jobs would never fit
			spans = nil
			for h, r := range list {
				spans = append(spans, span{rows: r, head: h, heads: 1})
			}
		}
		seen := make([][]bool, c.heads)
		for h := range seen {
			seen[h] = make([]bool, c.n)
		}
		for p := range parcels(spans, tile, c.size, c.jobs) {
			buffer := make([]byte, c.size)
			if bytesIn(p) > c.size {
				t.Fatalf("%+v: a parcel of %d bytes", c, bytesIn(p))
			}
			jobs := 0
			if err := gather(p, buffer, 0, c.size); err != nil {
				t.Fatal(err)
			}
			for _, x := range p {
				jobs += x.span.heads
				if x.rows.N%tile != 0 && x.tile*tile+x.rows.N != c.n {
					t.Errorf("%+v: %d rows in the middle of a chunk", c, x.rows.N)
				}
				for h := range x.span.heads {
					for i := range x.rows.N {
						at := x.at + int64(i*x.rows.RowBytes()+h*c.width*2)
						row := x.tile*tile + i
						if !bytes.Equal(buffer[at:at+int64(c.width*2)], list[x.span.head+h].Row(row)) || seen[x.span.head+h][row] {
							t.Fatalf("%+v: row %d of head %d", c, row, x.span.head+h)
						}
						seen[x.span.head+h][row] = true
					}
				}
			}
			if jobs > c.jobs {
				t.Errorf("%+v: %d jobs", c, jobs)
			}
		}
		for h := range seen {
			for i, ok := range seen[h] {
				if !ok {
					t.Fatalf("%+v: row %d of head %d is missing", c, i, h)
				}
			}
		}
	}
}

// What workers gather, part by part, is the parcel, and no byte comes twice.
func TestGather(t *testing.T) {
	const tile, size = 16, 5000
	for _, interleaved := range []bool{false, true} {
		for _, step := range []int64{1, 50, 256, 1000, size} { // a row has at most 5 heads of 24 bytes
			list := spansOf(tensor(5, 77, 12, interleaved), false, tile, size/2)
			for p := range parcels(list, tile, size, 512) {
				n := bytesIn(p)
				want, sum := make([]byte, n), make([]byte, n)
				if err := gather(p, want, 0, n); err != nil {
					t.Fatal(err)
				}
				for lo := int64(0); lo < n; lo += step {
					part := make([]byte, n)
					if err := gather(p, part, lo, min(lo+step, n)); err != nil {
						t.Fatal(err)
					}
					for i, b := range part {
						sum[i] += b
					}
				}
				if !bytes.Equal(sum, want) {
					t.Errorf("step %d, interleaved %v: parts differ from the parcel of %d bytes", step, interleaved, n)
				}
			}
		}
	}
}

// Rows in the page cache are copied from the mapping; what isn't there any more is an error.
func TestGatherRows(t *testing.T) {
	const n = 100_000
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*i>>8 ^ i)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "tensor"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Unmap()
	rows := func(lo, hi int, file io.ReaderAt) attention.Rows {
		return attention.Rows{Data: m[lo:hi], Stride: 2, N: (hi - lo) / 2, Width: 1, DType: attention.F16, File: file, At: int64(lo), Mapping: m}
	}
	unread := iotest.ErrReader(errors.New("was read"))
	for _, lo := range []int{0, 2, 64, 4094, 8192} {
		for _, size := range []int{2, 512, 4096, 16382, 16384, 16386, 3*16384 + 514} {
			r := rows(lo, lo+size, readerAt{unread})
			if !cached(r) {
				t.Fatalf("%d bytes at %d: written, and not in the page cache", size, lo)
			}
			got := make([]byte, size+1)
			if err := gatherRows(got[:size], r); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:size], data[lo:lo+size]) || got[size] != 0 {
				t.Errorf("%d bytes at %d differ", size, lo)
			}
		}
	}
	if err := f.Truncate(20_000); err != nil {
		t.Fatal(err)
	}
	cut := rows(10_000, 50_000, f)
	err = gather([]piece{{span: &span{heads: 1}, rows: cut}}, make([]byte, 40_000), 0, 40_000)
	if fault := (*attention.Fault)(nil); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &fault) {
		t.Errorf("rows that were cut off: %v", err)
	}
}

type readerAt struct{ io.Reader }

func (r readerAt) ReadAt(b []byte, _ int64) (int, error) { return r.Read(b) }

// Copies of rows cover them, and none crosses into another window.
func TestRuns(t *testing.T) {
	const size = 1000
	for _, c := range []struct {
		at, stride, width int64
		n                 int
	}{{0, 10, 10, 500}, {995, 10, 10, 3}, {123, 17, 9, 1000}, {7, 0, 12345, 1}, {990, 2500, 1300, 7}, {0, 1000, 1000, 5}, {1, 1000, 1000, 5}} {
		got := make(map[int64]int64) // by place in the mapping: place in the buffer
		err := runs(c.at, c.stride, c.width, c.n, size, func(row, rows int, from, n, skipped int64) error {
			for i := range int64(rows) {
				lo := from + i*c.stride
				if lo/size != (lo+n-1)/size || lo/size != from/size {
					t.Errorf("%+v: a copy of %d bytes at %d", c, n, lo)
				}
				for j := range n {
					if _, twice := got[lo+j]; twice {
						t.Fatalf("%+v: byte %d twice", c, lo+j)
					}
					got[lo+j] = (int64(row)+i)*c.width + skipped + j
				}
			}
			return nil
		})
		if err != nil || int64(len(got)) != int64(c.n)*c.width {
			t.Fatalf("%+v: %d bytes, %v", c, len(got), err)
		}
		for i := range int64(c.n) {
			for j := range c.width {
				if at, ok := got[c.at+i*c.stride+j]; !ok || at != i*c.width+j {
					t.Fatalf("%+v: byte %d of row %d goes to %d", c, j, i, at)
				}
			}
		}
	}
}

// Rates are those of the kernel where a geometry fills it, and less where it does not.
func TestRates(t *testing.T) {
	info := Info{Major: 9, SMs: 132, Clock: 1980e6}
	g := attention.Geometry{D: 128, Dv: 128, DType: attention.BF16, OutDType: attention.BF16, Scale: 1, KVHeads: 1, Group: 1,
		QueryRows: 132 * 128, KeyRows: 112 * 100, QuerySlots: 2, KVSlots: 2}
	full := rates(info, newLayout(g, onePlane, 132), linkRate)
	if math.Abs(full.FLOPS/720e12-1) > 1e-9 || math.Abs(full.Filled(1)-1/1.1) > 1e-9 || math.Abs(full.Filled(3)-3/3.1) > 1e-9 {
		t.Errorf("%+v", full)
	}
	g.D, g.Dv, g.QueryRows = 96, 96, 133*128
	part := rates(info, newLayout(g, onePlane, 132), linkRate)
	if math.Abs(part.FLOPS/(720e12*0.75)-1) > 1e-9 || math.Abs(part.Filled(1)-133./132/2.1) > 1e-9 {
		t.Errorf("%+v, filled %v", part, part.Filled(1))
	}
}
