//go:build linux

package cpu

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// decodeBytes is what the benchmarks stream: far more than the caches hold.
const decodeBytes = 1 << 30

var decodeMemory = sync.OnceValue(func() []byte {
	b, err := unix.Mmap(-1, 0, decodeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	for i := 0; i < len(b); i += 2 { // 2^-7 or so in every format
		b[i], b[i+1] = byte(i>>1), 0x3c
	}
	return b
})

// decode applies the keys of a share of K and V, tile by tile, to rows query rows.
func decode(k rowKernels, e rowFormat, kv []byte, rows, d, tile int) {
	const maxTile, maxRows, maxD = 512, 16, 256
	var s [maxRows * maxTile]float32
	var o, q [maxRows * maxD]float32
	var top [maxRows]float32
	rowBytes := d * e.bytes
	keys := len(kv) / 2 / rowBytes
	kp, vp := unsafe.Pointer(&kv[0]), unsafe.Pointer(&kv[len(kv)/2])
	for j := 0; j < keys; j += tile {
		n := min(tile, keys-j)
		for i := 0; i < rows; i += 4 {
			e.dots(&s[i*tile], tile, &top[i], &q[i*d], d, min(4, rows-i), unsafe.Add(kp, j*rowBytes), rowBytes, n)
		}
		for i := range rows {
			k.weights(&s[i*tile], n, 0, 1, 0)
		}
		for i := 0; i < rows; i += 4 {
			e.combine(&o[i*d], &s[i*tile], tile, min(4, rows-i), unsafe.Add(vp, j*rowBytes), rowBytes, n, d)
		}
	}
}

// onThreads runs f on equal shares of the memory and returns the time.
func onThreads(threads int, f func(share []byte)) time.Duration {
	m := decodeMemory()
	size := len(m) / threads
	start := time.Now()
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() { f(m[i*size : (i+1)*size]) })
	}
	wg.Wait()
	return time.Since(start)
}

// BenchmarkRowDecode reports the share of the bandwidth that plain reading of the
// same memory has.
func BenchmarkRowDecode(b *testing.B) {
	for _, k := range rowTiers() {
		for _, e := range rowFormats(k) {
			for _, d := range []int{64, 128} {
				for _, rows := range []int{1, 2, 4, 8, 16} {
					for _, threads := range []int{1, 2} {
						for _, tile := range []int{128, 512} {
							b.Run(fmt.Sprintf("%s/%s/d=%d/rows=%d/threads=%d/tile=%d", k.name, e.name, d, rows, threads, tile), func(b *testing.B) {
								benchmarkDecode(b, k, e, d, rows, threads, tile)
							})
						}
					}
				}
			}
		}
	}
}

func benchmarkDecode(b *testing.B, k rowKernels, e rowFormat, d, rows, threads, tile int) {
	read := func(kv []byte) { k.readPeak(&kv[0], len(kv)) }
	onThreads(threads, read)
	b.SetBytes(decodeBytes)
	b.ResetTimer()
	var mine, peak time.Duration
	for range b.N {
		peak += onThreads(threads, read)
		mine += onThreads(threads, func(kv []byte) { decode(k, e, kv, rows, d, tile) })
	}
	b.ReportMetric(0, "MB/s")
	b.ReportMetric(float64(b.N)*decodeBytes/float64(mine), "GB/s")
	b.ReportMetric(float64(b.N)*decodeBytes/float64(peak), "GB/s-read")
	b.ReportMetric(100*float64(peak)/float64(mine), "%read")
}

// BenchmarkFew is what a run does with few queries over keys that no cache holds,
// beside reading the same memory.
func BenchmarkFew(b *testing.B) {
	for _, kernel := range Kernels()[:len(Kernels())-1] { // portable is the last
		for _, t := range []attention.DType{attention.F32, attention.BF16, attention.F16} {
			for _, d := range []int{64, 128} {
				for _, rows := range []int{1, 2, 4, 8, 16} {
					b.Run(fmt.Sprintf("%s/%v/D=%d/rows=%d", kernel, t, d, rows), func(b *testing.B) { benchmarkFew(b, kernel, t, d, rows) })
				}
			}
		}
	}
}

func benchmarkFew(b *testing.B, kernel string, t attention.DType, dim, rows int) {
	const threads, size = 2, 128 << 20 // bytes of K, and of V
	d, _ := NewWith(threads, kernel)
	n := size / dim / t.Size()
	if err := d.Reserve(geometry(t, dim, rows, n, 1)); err != nil {
		b.Fatal(err)
	}
	defer d.Release()
	m := decodeMemory()
	tensor := func(at, n int) []attention.Rows {
		return []attention.Rows{{Data: m[at:][:n*dim*t.Size()], Stride: dim * t.Size(), N: n, Width: dim, DType: t}}
	}
	if err := d.LoadQuery(0, tensor(0, rows), nil, d.LoadKV(0, tensor(0, n), tensor(size, n))).Wait(); err != nil {
		b.Fatal(err)
	}
	read := func() time.Duration {
		start := time.Now()
		d.team.run(threads, func(i int) { d.row.readPeak(&m[i*size], size) })
		return time.Since(start)
	}
	work := []attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}}
	var mine, peak []float64
	for b.Loop() {
		peak = append(peak, read().Seconds())
		start := time.Now()
		if err := d.Apply(work).Wait(); err != nil {
			b.Fatal(err)
		}
		mine = append(mine, time.Since(start).Seconds())
	}
	slices.Sort(mine)
	slices.Sort(peak)
	rate := func(seconds []float64) float64 { return 2 * float64(size) / seconds[len(seconds)/2] }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(mine)/1e9, "GB/s")
	b.ReportMetric(rate(peak)/1e9, "GB/s-read")
	b.ReportMetric(100*rate(mine)/rate(peak), "%read")
	b.ReportMetric(rate(mine)*2*float64(rows)/float64(t.Size())/1e9, "GFLOP/s")
}
