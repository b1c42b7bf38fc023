package cpu

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// benchDevice has one query slot and one KV slot of random content.
func benchDevice(b *testing.B, threads int, g attention.Geometry) (*Device, []attention.Rows, []attention.Rows) {
	d := newDevice(threads)
	if err := d.Reserve(g); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Release() })
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(heads, n, w int) []attention.Rows {
		rows := make([]attention.Rows, heads)
		for h := range rows {
			r := attention.Rows{Data: make([]byte, n*w*g.DType.Size()), Stride: w * g.DType.Size(), N: n, Width: w, DType: g.DType}
			for i := range n * w {
				g.DType.Put(r.Data[i*g.DType.Size():], rng.NormFloat64())
			}
			rows[h] = r
		}
		return rows
	}
	k, v := random(g.KVHeads, g.KeyRows, g.D), random(g.KVHeads, g.KeyRows, g.Dv)
	q := random(g.QueryHeads(), g.QueryRows, g.D)
	if err := d.LoadQuery(0, q, nil, d.LoadKV(0, k, v)).Wait(); err != nil {
		b.Fatal(err)
	}
	return d, k, v
}

func geometry(t attention.DType, d, rows, keys, group int) attention.Geometry {
	return attention.Geometry{D: d, Dv: d, DType: t, OutDType: t, Scale: attention.DefaultScale(d), KVHeads: 1, Group: group,
		QueryRows: rows, KeyRows: keys, QuerySlots: 1, KVSlots: 1}
}

// BenchmarkApply runs one thread. A GFLOP is 4*D for each pair of a query row
// and a key.
func BenchmarkApply(b *testing.B) {
	for _, d := range []int{64, 128} {
		for _, shape := range []struct{ rows, group int }{{1, 1}, {2, 1}, {3, 1}, {4, 1}, {1, 4}, {1024, 1}} {
			b.Run(fmt.Sprintf("D=%d/rows=%d/group=%d", d, shape.rows, shape.group), func(b *testing.B) {
				benchApply(b, geometry(attention.F32, d, shape.rows, 4096, shape.group))
			})
		}
	}
}

// BenchmarkKernel is the steady state: 4096 rows by 4096 keys on one thread.
func BenchmarkKernel(b *testing.B) {
	for _, d := range []int{32, 64, 80, 96, 128, 256} {
		b.Run(fmt.Sprintf("D=%d", d), func(b *testing.B) { benchApply(b, geometry(attention.F32, d, 4096, 4096, 1)) })
	}
}

func benchApply(b *testing.B, g attention.Geometry) {
	d, _, _ := benchDevice(b, 1, g)
	work := []attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}}
	for b.Loop() {
		if err := d.Apply(work).Wait(); err != nil {
			b.Fatal(err)
		}
	}
	flops := 4 * float64(g.QueryHeads()) * float64(g.QueryRows) * float64(g.KeyRows) * float64(g.D)
	b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func BenchmarkLoadKV(b *testing.B) {
	for _, t := range []attention.DType{attention.F32, attention.F16, attention.BF16} {
		for _, threads := range []int{1, 2} {
			b.Run(fmt.Sprintf("%v/threads=%d", t, threads), func(b *testing.B) {
				g := geometry(t, 128, 1, 16384, 1)
				d, k, v := benchDevice(b, threads, g)
				b.SetBytes(int64(len(k[0].Data) + len(v[0].Data)))
				for b.Loop() {
					if err := d.LoadKV(0, k, v).Wait(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCausal is one chunk of queries over the same chunk of keys, beside the
// same without a mask: a GFLOP is 4*D for each pair that is seen.
func BenchmarkCausal(b *testing.B) {
	for _, d := range []int{64, 128} {
		for _, n := range []int{2048, 8192} {
			b.Run(fmt.Sprintf("D=%d/N=%d", d, n), func(b *testing.B) { benchCausal(b, d, n) })
		}
	}
}

func benchCausal(b *testing.B, dim, n int) {
	d, _, _ := benchDevice(b, 2, geometry(attention.F32, dim, n, n, 1))
	apply := func(kind attention.MaskKind) float64 {
		work := []attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: kind}}}}
		start := time.Now()
		if err := d.Apply(work).Wait(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start).Seconds()
	}
	var full, causal []float64
	for b.Loop() {
		full, causal = append(full, apply(attention.Full)), append(causal, apply(attention.Diagonal))
	}
	slices.Sort(full)
	slices.Sort(causal)
	pairs := float64(n) * float64(n)
	rate := func(seconds []float64, pairs float64) float64 {
		return 4 * float64(dim) * pairs / seconds[len(seconds)/2]
	}
	f, c := rate(full, pairs), rate(causal, (pairs+float64(n))/2)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(f/1e9, "GFLOP/s")
	b.ReportMetric(c/1e9, "GFLOP/s-causal")
	b.ReportMetric(100*c/f, "%")
}
