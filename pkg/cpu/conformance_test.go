package cpu

import (
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/stream/devicetest"
)

var dtypes = []attention.DType{attention.F32, attention.F16, attention.BF16}

// kernel is that of the devices that newDevice makes.
var kernel string

func newDevice(threads int) *Device {
	d, _ := NewWith(threads, kernel)
	return d
}

// TestMain starts with the kernel that users get.
func TestMain(m *testing.M) {
	kernel = Kernels()[0]
	os.Exit(m.Run())
}

// eachKernel runs a test with every kernel of this machine.
func eachKernel(t *testing.T, test func(*testing.T)) {
	for _, kernel = range Kernels() {
		t.Run(kernel, test)
	}
	kernel = Kernels()[0]
}

// subject is this device with the current kernel. Nothing beyond the chunks may be
// written, and what is computed counts in ran by the kernel that did it.
func subject(ran *[paths]int) devicetest.Subject {
	return devicetest.Subject{
		Open:   func(_ testing.TB, threads int) stream.Device { return newDevice(threads) },
		Poison: func(_ testing.TB, d stream.Device) { poison(d.(*Device)) },
		Finished: func(t testing.TB, d stream.Device, queryRows, keyRows int) {
			t.Helper()
			checkCanaries(t, d.(*Device), queryRows, keyRows)
			for i := range d.(*Device).scratch {
				for how, n := range d.(*Device).scratch[i].ran {
					ran[how] += n
				}
				d.(*Device).scratch[i].ran = [paths]int{}
			}
		},
		Once:     kernel == Portable,
		AnyBatch: true,
	}
}

// TestConformance is what every device passes, by every kernel of this machine. Tests
// with vector kernels that compute anything must have used them, but where all scores
// are infinite.
func TestConformance(t *testing.T) {
	eachKernel(t, func(t *testing.T) {
		var ran [paths]int
		s := subject(&ran)
		s.Done = func(t testing.TB) {
			t.Helper()
			t.Logf("tiles of keys: plain %d, wide %d, narrow %d, few %d, fast %d", ran[plain], ran[wide], ran[narrow], ran[few], ran[fast])
			vector := ran[wide] + ran[narrow] + ran[few]
			infinite := strings.HasSuffix(t.Name(), "/ScoresAllMinusInfinity")
			if vector+ran[plain] > 0 && (vector > 0) != (kernel != Portable && !infinite) {
				t.Errorf("%s: %d of %d tiles by vector kernels", kernel, vector, vector+ran[plain])
			}
			if lane := newDevice(1).lane; strings.HasSuffix(t.Name(), "/Fast") && (ran[fast] > 0) != (lane != nil && lane.pairValues != nil) {
				t.Errorf("%s: %d tiles with weights in bfloat16", kernel, ran[fast])
			}
			ran = [paths]int{}
		}
		devicetest.Run(t, s)
	})
}

// Before rounding, and relative to the exact result, so that growth below the
// last bit of a float32 shows too.
func TestStateIsNearlyExact(t *testing.T) {
	kernel = Portable
	defer func() { kernel = Kernels()[0] }()
	p := devicetest.Problem(8, 32)
	p.Nk = 5000
	x := devicetest.Random(p, rand.New(rand.NewPCG(19, 20)))
	want, _ := devicetest.Exact(x, 0, 0, []int{0, 1, 2, 3, 4, 5, 6, 7})
	for _, chunk := range []int{5000, 1000, 129, 7} {
		s := subject(new([paths]int))
		s.Finished = func(t testing.TB, d stream.Device, _, _ int) {
			var st tile
			d.(*Device).query[0].tile(d.(*Device).geo, 0, 0, &st)
			for i, row := range want {
				for j, exact := range row {
					if err := st.acc[j*st.lanes+i]/st.l[i] - exact; !(math.Abs(err) <= 1e-15) {
						t.Errorf("chunks of %d keys: O[%d,%d] is off by %.3g", chunk, i, j, err)
					}
				}
			}
		}
		s.Compute(t, x, devicetest.Way{KeyChunk: chunk})
	}
}

// poison fills all memory of the device with bytes that are NaN in every type.
func poison(d *Device) {
	for _, m := range d.arenas {
		for i := range m {
			m[i] = 0xff
		}
	}
}

// checkCanaries makes sure that the poison beyond the largest chunks is intact.
func checkCanaries(t testing.TB, d *Device, queryRows, keyRows int) {
	t.Helper()
	g := d.geo
	for i := range d.kv {
		d.kv[i].intactFrom(t, g, g.KVHeads, keyRows)
	}
	for i := range d.query {
		d.query[i].intactFrom(t, g, g.KVHeads, queryRows)
	}
}

// intactFrom looks at what is beyond a chunk of that many rows.
func (s *kvSlot) intactFrom(t testing.TB, g attention.Geometry, heads, rows int) {
	t.Helper()
	if fewQueries(g) { // nothing of K and V is in the slot
		return
	}
	intact(t, "K", s.k[heads*rows*g.D*g.DType.Size():])
	intact(t, "V", s.v[heads*rows*g.Dv*g.DType.Size():])
	intact(t, "|k|", bytesOf(s.norm[heads*ceilDiv(rows, keyTile):]))
	intact(t, "|v|", bytesOf(s.peak[heads*ceilDiv(rows, keyTile):]))
}

func (s *querySlot) intactFrom(t testing.TB, g attention.Geometry, heads, rows int) {
	t.Helper()
	lanes := heads * lanesOf(g.Group*rows)
	intact(t, "Q", bytesOf(s.q[lanes*g.D:]))
	intact(t, "|q|", bytesOf(s.norm[heads*ceilDiv(g.Group*rows, tileLanes):]))
	intact(t, "state", bytesOf(s.state[lanes*(g.Dv+2):]))
	if g.DType == attention.BF16 {
		intact(t, "pairs of Q", bytesOf(s.pairs[lanes*((g.D+1)/2):]))
	}
}

func bytesOf[T any](f []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), len(f)*int(unsafe.Sizeof(*new(T))))
}

func intact(t testing.TB, what string, b []byte) {
	t.Helper()
	for i, x := range b {
		if x != 0xff {
			t.Fatalf("%s: byte %d beyond the chunk was overwritten with %#x", what, i, x)
		}
	}
}
