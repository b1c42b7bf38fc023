package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// gpuBench is what a GPU's kernel does with one problem whose chunks are in slots.
type gpuBench struct {
	Kernel string  `json:"kernel"`
	DType  string  `json:"dtype"`
	Out    string  `json:"out_dtype"`
	Heads  int     `json:"heads"`
	Tokens int     `json:"tokens"`
	D      int     `json:"d"`
	Dv     int     `json:"dv"`
	Causal bool    `json:"causal"`
	Burst  float64 `json:"burst_flops"`     // median of single launches
	Steady float64 `json:"sustained_flops"` // launches one after another, for the time asked for
	Load   float64 `json:"load_bytes"`      // bytes a second into slots
}

// benchTokens is how many queries and keys a GPU is measured with, over all heads.
const benchTokens = 1 << 18

// runBenchGPU measures the kernels of one GPU.
func runBenchGPU(w io.Writer, o *benchOptions) (err error) {
	flags := planFlags{device: o.device, hostBudget: size{auto: true}}
	c, err := parseDevice(o.device)
	if err != nil {
		return err
	}
	if len(c.list) != 1 {
		return usagef("--device %q: want cpu, cuda or cuda:N", o.device)
	}
	devs, err := flags.openChosen(c)
	if err != nil {
		return classify(errTemporary, fmt.Errorf("--device %s: %w", o.device, err))
	}
	dev := devs[0]
	defer func() { err = errors.Join(err, dev.Close()) }()
	tokens := o.tokens
	var list []gpuBench
	for _, x := range []struct{ in, out attention.DType }{
		{attention.BF16, attention.BF16}, {attention.BF16, attention.F32}, {attention.F16, attention.F16}, {attention.F32, attention.F32},
	} {
		for _, d := range [][2]int{{64, 64}, {128, 128}, {192, 128}, {256, 256}} { // D and Dv
			for _, causal := range []attention.Causal{attention.NonCausal, attention.TopLeft} {
				p := attention.Problem{B: 1, Hq: max(1, benchTokens/tokens), Nq: tokens, Nk: tokens, D: d[0], Dv: d[1], DType: x.in, OutDType: x.out,
					Layout: attention.BHND, Scale: attention.DefaultScale(d[0]), Causal: causal}
				p.Hkv = p.Hq
				row, err := benchSlots(dev, p, time.Duration(o.seconds*float64(time.Second)))
				if err != nil {
					return err
				}
				list = append(list, row)
			}
		}
	}
	if o.json {
		return writeJSON(w, map[string]any{"type": "bench", "device": dev.Name(), "kernels": list})
	}
	fmt.Fprintf(w, "%s, TFLOP/s of single launches and sustained\n", dev.Name())
	for _, r := range list {
		causal := ""
		if r.Causal {
			causal = ", causal"
		}
		if _, err := fmt.Fprintf(w, "%-18s %6.0f %6.0f  %s to %s, N = %d, H = %d, D = %d, Dv = %d%s\n", r.Kernel, r.Burst/1e12, r.Steady/1e12, r.DType, r.Out, r.Tokens, r.Heads, r.D, r.Dv, causal); err != nil {
			return err
		}
	}
	return nil
}

// benchSlots loads a problem into slots and applies it again and again.
func benchSlots(dev gpuDevice, p attention.Problem, t time.Duration) (row gpuBench, err error) {
	g := attention.Geometry{D: p.D, Dv: p.Dv, DType: p.DType, OutDType: p.OutDType, Scale: p.Scale, KVHeads: p.Hkv, Group: 1,
		QueryRows: p.Nq, KeyRows: p.Nk, QuerySlots: 1, KVSlots: 1}
	row = gpuBench{Kernel: dev.Kernel(g), DType: p.DType.String(), Out: p.OutDType.String(), Heads: p.Hq, Tokens: p.Nq, D: p.D, Dv: p.Dv, Causal: p.Causal != attention.NonCausal}
	if err := dev.Reserve(g); err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, dev.Release()) }()
	q, k, v := benchHeads(p, p.D, 1), benchHeads(p, p.D, 2), benchHeads(p, p.Dv, 3)
	loaded := []attention.Event{dev.LoadKV(0, k, v), dev.LoadQuery(0, q, nil)}
	work := []attention.Work{{Query: 0, Refs: []attention.KVRef{{Slot: 0, Kind: attention.Full}}}}
	if row.Causal {
		work[0].Refs[0].Kind = attention.Diagonal
	}
	// apply launches n times and returns the seconds that the GPU took.
	apply := func(n int) (float64, error) {
		before := dev.Stats().ApplySeconds
		var last attention.Event
		for range n {
			last = dev.Apply(work, loaded...)
		}
		if err := last.Wait(); err != nil {
			return 0, err
		}
		return dev.Stats().ApplySeconds - before, nil
	}
	var single []float64
	for i := range 7 {
		sec, err := apply(1)
		if err != nil {
			return row, err
		}
		if i >= 2 { // after two to warm up
			single = append(single, sec)
		}
	}
	one := middle(single)
	n := max(1, int(t.Seconds()/one))
	sec, err := apply(n)
	if err != nil {
		return row, err
	}
	s := dev.Stats()
	row.Burst, row.Steady, row.Load = p.FLOPs()/one, p.FLOPs()*float64(n)/sec, float64(s.InBytes)/s.InSeconds
	return row, nil
}

// benchHeads are the heads of a tensor of d normal values a row.
func benchHeads(p attention.Problem, d int, seed uint64) []attention.Rows {
	rng := rand.New(rand.NewPCG(seed, 0))
	width := d * p.DType.Size()
	sample := make([]byte, 1<<20)
	for i := 0; i < len(sample); i += p.DType.Size() {
		p.DType.Put(sample[i:], rng.NormFloat64())
	}
	list := make([]attention.Rows, p.Hq)
	for h := range list {
		data := make([]byte, p.Nq*width)
		for at := 0; at < len(data); { // stretches of the sample, from anywhere
			at += copy(data[at:], sample[rng.IntN(len(sample)/width)*width:])
		}
		list[h] = attention.Rows{Data: data, Stride: width, N: p.Nq, Width: d, DType: p.DType}
	}
	return list
}
