//go:build amd64 && unix

package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"
)

const peakRun = 200_000 // iterations of an FMA loop: below a millisecond

// peakRate measures the FMA peak, in FLOP/s, that a tier can reach now. The
// clock moves from one second to the next, so every rate is held against this
// loop, run in turns with it.
func peakRate(name string, runs int) float64 {
	run, flops := fmaPeak256, fmaPeakFlops256
	if name == "avx512" {
		run, flops = fmaPeak512, fmaPeakFlops512
	}
	best := math.Inf(1)
	for range runs {
		start := time.Now()
		run(peakRun)
		best = min(best, time.Since(start).Seconds())
	}
	return float64(flops) * peakRun / best
}

// againstPeak runs f b.N times and reports its share of the FMA peak: once the
// median of what short stretches reach beside a peak loop run just before, once
// the best of one against the best of the other, which other work on the machine
// disturbs less.
func againstPeak(b *testing.B, name string, flops float64, f func()) {
	f()
	start := time.Now()
	f()
	calls := 1 + int(2*time.Millisecond/(time.Since(start)+1))
	b.ResetTimer()
	var shares []float64
	var best, bestPeak float64
	for done := 0; done < b.N; {
		b.StopTimer()
		peak := peakRate(name, 1)
		b.StartTimer()
		start, n := time.Now(), min(calls, b.N-done)
		for range n {
			f()
		}
		rate := flops * float64(n) / time.Since(start).Seconds()
		done += n
		shares = append(shares, rate/peak)
		best, bestPeak = max(best, rate), max(bestPeak, peak)
	}
	slices.Sort(shares)
	b.ReportMetric(100*shares[len(shares)/2], "%peak")
	b.ReportMetric(100*best/bestPeak, "%peak-best")
	b.ReportMetric(best/1e9, "GFLOP/s")
}

func benchData(n int) []float32 {
	rng := rand.New(rand.NewPCG(13, 14))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// laneTile is what one query tile needs in the composed loop.
type laneTile struct {
	q, top, base, s    []float32
	acc, m, l, alpha   []float64
	q64, top64, base64 []float64
	s64                []float64
	qPairs             []uint32
}

func newLaneTile(lanes, d, keys int) *laneTile {
	t := &laneTile{
		q: benchData(lanes * d), top: make([]float32, lanes), base: make([]float32, lanes), s: make([]float32, lanes*keys),
		acc: make([]float64, lanes*d), m: laneFill(lanes, math.Inf(-1)), l: make([]float64, lanes), alpha: make([]float64, lanes),
		top64: make([]float64, lanes), base64: make([]float64, lanes), s64: make([]float64, lanes*keys),
	}
	t.qPairs = lanePairs(t.q, d, lanes)
	for _, x := range t.q {
		t.q64 = append(t.q64, float64(x))
	}
	return t
}

// BenchmarkLaneKernels runs each kernel alone on a tile.
func BenchmarkLaneKernels(b *testing.B) {
	const keys = 128
	for _, k := range laneTiers() {
		for _, c := range [][2]int{{48, 64}, {48, 128}, {32, 64}, {16, 64}} {
			lanes, d := c[0], c[1]
			t, kv := newLaneTile(lanes, d, keys), benchData(keys*d)
			short := laneTruncate(kv)
			flops := float64(2 * lanes * keys * d)
			run := func(name string, flops float64, f func()) {
				b.Run(fmt.Sprintf("%s/%s/lanes=%d/D=%d", k.name, name, lanes, d), func(b *testing.B) { againstPeak(b, k.name, flops, f) })
			}
			run("scores", flops, func() { k.scores(&t.s[0], &t.top[0], &t.q[0], d, lanes, &kv[0], 4*d, keys) })
			if k.scoresBF16 != nil {
				run("scoresBF16", flops, func() { k.scoresBF16(&t.s[0], &t.top[0], &t.qPairs[0], d, lanes, &short[0], 2*d, keys) })
			}
			run("scoresWide", flops, func() { k.scoresWide(&t.s64[0], &t.top64[0], &t.q64[0], d, lanes, &kv[0], 4*d, keys) })
			if k.valuesPairs != nil {
				pairs, v := laneFill(lanes*keys/2, uint32(0x3F003F00)), make([]uint32, keys/2*d)
				k.pairValues(&v[0], &short[0], 2*d, keys, d)
				run("valuesPairs", flops, func() { k.valuesPairs(&t.acc[0], &t.alpha[0], lanes, &pairs[0], keys/2, &v[0], d) })
			}
			if k.valuesPairs != nil && d == 64 {
				p, v := make([]uint32, lanes*keys/2), make([]uint32, keys/2*d)
				run("softmaxPairs", float64(32*lanes*keys), func() {
					k.softmaxPairs(&p[0], &t.s[0], lanes, keys, &t.base[0], 0.1, 1e-9, &t.l[0], &t.alpha[0])
				})
				run("pairValues", float64(2*lanes*keys*d), func() { k.pairValues(&v[0], &short[0], 2*d, keys, d) }) // as the products of one tile
			}
			p := laneFill(lanes*keys, float32(0.5))
			run("values", flops, func() { k.values(&t.acc[0], &t.alpha[0], lanes, &p[0], keys, &kv[0], 4*d, d) })
			if d == 64 {
				run("softmax", float64(32*lanes*keys), func() { // as if a weight were 16 FMAs
					k.softmax(&t.s[0], lanes, keys, &t.base[0], 0.1, 1e-9, &t.l[0], &t.alpha[0])
				})
				run("softmaxWide", float64(32*lanes*keys), func() {
					k.softmaxWide(&t.s[0], &t.s64[0], lanes, keys, &t.base64[0], 0.1, &t.l[0], &t.alpha[0])
				})
			}
		}
	}
}

// BenchmarkLaneAttention is attention of query tiles over 8192 keys: every key
// tile meets all query tiles before the next.
func BenchmarkLaneAttention(b *testing.B) {
	const lanes, keys = 48, 8192
	inf := float32(math.Inf(-1))
	for _, k := range laneTiers() {
		for _, d := range []int{64, 128} {
			ks, vs := benchData(keys*d), benchData(keys*d)
			for _, kind := range []string{"f32", "bf16", "fast", "wide"} {
				if (kind == "bf16" || kind == "fast") && k.scoresBF16 == nil {
					continue
				}
				short, shortV := laneTruncate(ks), laneTruncate(vs)
				pairs := make([]uint32, 256*d)
				for _, keyTile := range []int{128, 256, 512} {
					for _, tiles := range []int{1, 4, 8} {
						var ts []*laneTile
						for range tiles {
							ts = append(ts, newLaneTile(lanes, d, keyTile))
						}
						for _, t := range ts { // scores are scratch
							t.s, t.s64 = ts[0].s, ts[0].s64
						}
						c := math.Log2E / math.Sqrt(float64(d))
						hi := float32(c)
						lo := float32(c - float64(hi))
						b.Run(fmt.Sprintf("%s/%s/D=%d/keys=%d/tiles=%d", k.name, kind, d, keyTile, tiles), func(b *testing.B) {
							againstPeak(b, k.name, float64(4*lanes*tiles*keys*d), func() {
								for at := 0; at < keys; at += keyTile {
									kk, v := &ks[at*d], &vs[at*d]
									if kind == "fast" { // once for all query tiles
										k.pairValues(&pairs[0], &shortV[at*d], 2*d, keyTile, d)
									}
									for _, t := range ts {
										switch kind {
										case "wide":
											for i := range t.top64 {
												t.top64[i] = float64(inf)
											}
											k.scoresWide(&t.s64[0], &t.top64[0], &t.q64[0], d, lanes, kk, 4*d, keyTile)
											k.rebaseWide(&t.m[0], &t.alpha[0], &t.base64[0], &t.top64[0], lanes, c)
											k.softmaxWide(&t.s[0], &t.s64[0], lanes, keyTile, &t.base64[0], c, &t.l[0], &t.alpha[0])
										default:
											for i := range t.top {
												t.top[i] = inf
											}
											if kind != "f32" {
												k.scoresBF16(&t.s[0], &t.top[0], &t.qPairs[0], d, lanes, &short[at*d], 2*d, keyTile)
											} else {
												k.scores(&t.s[0], &t.top[0], &t.q[0], d, lanes, kk, 4*d, keyTile)
											}
											k.rebase(&t.m[0], &t.alpha[0], &t.base[0], &t.top[0], lanes, c)
											if kind == "fast" {
												p := (*uint32)(unsafe.Pointer(&t.s[0]))
												k.softmaxPairs(p, &t.s[0], lanes, keyTile, &t.base[0], hi, lo, &t.l[0], &t.alpha[0])
												k.valuesPairs(&t.acc[0], &t.alpha[0], lanes, p, keyTile/2, &pairs[0], d)
												continue
											}
											k.softmax(&t.s[0], lanes, keyTile, &t.base[0], hi, lo, &t.l[0], &t.alpha[0])
										}
										k.values(&t.acc[0], &t.alpha[0], lanes, &t.s[0], keyTile, v, 4*d, d)
									}
								}
							})
						})
					}
				}
			}
		}
	}
}
