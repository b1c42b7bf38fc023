package cpu

import (
	"fmt"
	"testing"
	"time"
	"unsafe"
)

func BenchmarkRowPart(b *testing.B) {
	k := rowTiers()[0]
	var s [4 * 512]float32
	var o, q [4 * 256]float32
	var top [4]float32
	for _, e := range rowFormats(k) {
		for _, d := range []int{64, 128} {
			for _, rows := range []int{1, 2, 4} {
				for _, size := range []int{128 << 10, decodeBytes / 4} {
					for _, what := range []string{"dots", "combine"} {
						b.Run(fmt.Sprintf("%s/%s/d=%d/rows=%d/%dK", what, e.name, d, rows, size>>10), func(b *testing.B) {
							m := decodeMemory()[:size]
							rb := d * e.bytes
							const tile = 256
							var mine, peak time.Duration
							reps := max(1, (1<<26)/size)
							for range b.N {
								t0 := time.Now()
								for range reps {
									k.readPeak(&m[0], size)
								}
								t1 := time.Now()
								for range reps {
									for off := 0; off < size; off += tile * rb {
										n := min(tile, (size-off)/rb)
										if what == "dots" {
											e.dots(&s[0], 512, &top[0], &q[0], d, rows, unsafe.Pointer(&m[off]), rb, n)
										} else {
											e.combine(&o[0], &s[0], 512, rows, unsafe.Pointer(&m[off]), rb, n, d)
										}
									}
								}
								peak += t1.Sub(t0)
								mine += time.Since(t1)
							}
							b.ReportMetric(0, "ns/op")
							b.ReportMetric(float64(b.N)*float64(size*reps)/float64(mine), "GB/s")
							b.ReportMetric(float64(b.N)*float64(size*reps)/float64(peak), "GB/s-read")
							b.ReportMetric(100*float64(peak)/float64(mine), "%read")
						})
					}
				}
			}
		}
	}
}
