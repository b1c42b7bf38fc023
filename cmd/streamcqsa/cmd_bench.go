package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

type benchOptions struct {
	threads int
	kernel  string
	tokens  int
	seconds float64
	json    bool
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure this machine: the kernel, and loading chunks",
		Long: `Measure the kernel on data in memory, without files and without division: rate by
the usual count, 2 (D + Dv) per query-key pair, and the rate at which chunks are
loaded into slots. Each figure is the best of several runs.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), cmd.OutOrStdout(), &o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.threads, "threads", 0, "threads (default: one for each core)")
	addKernelFlag(f, &o.kernel)
	f.IntVar(&o.tokens, "tokens", 2048, "queries and keys")
	f.Float64Var(&o.seconds, "seconds", 1, "time for each figure")
	f.BoolVar(&o.json, "json", false, "write one JSON document")
	return cmd
}

type benchRow struct {
	DType  string  `json:"dtype"`
	D      int     `json:"d"`
	Causal bool    `json:"causal"`
	FLOPS  float64 `json:"kernel_flops_per_second"`
	Load   float64 `json:"load_bytes_per_second"`
}

func runBench(ctx context.Context, w io.Writer, o *benchOptions) error {
	if o.tokens < 1 || o.tokens > 1<<20 || !(o.seconds > 0) {
		return usagef("--tokens %d, --seconds %g: want 1 to 2^20 tokens, and a time above 0", o.tokens, o.seconds)
	}
	dev, err := openCPU(o.threads, o.kernel)
	if err != nil {
		return err
	}
	var rows []benchRow
	for _, c := range []struct {
		t      attention.DType
		d      int
		causal bool
	}{{attention.F32, 64, false}, {attention.F32, 128, false}, {attention.F32, 64, true}, {attention.BF16, 64, false}, {attention.F16, 64, false}} {
		r, err := benchKernel(ctx, o, dev, c.t, c.d, c.causal)
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	if o.json {
		return writeJSON(w, map[string]any{"type": "bench", "device": "cpu", "kernel": dev.Kernel(), "threads": dev.Threads(), "tokens": o.tokens, "rates": rows})
	}
	fmt.Fprintf(w, "cpu, %s kernel, %d threads, %d tokens\n", dev.Kernel(), dev.Threads(), o.tokens)
	for _, r := range rows {
		mask := "full  "
		if r.Causal {
			mask = "causal"
		}
		if _, err := fmt.Fprintf(w, "%-4s  D = %-3d  %s  kernel %7.2f GFLOP/s  load %6.2f GB/s\n", r.DType, r.D, mask, r.FLOPS/1e9, r.Load/1e9); err != nil {
			return err
		}
	}
	return nil
}

// buffer is a tensor in memory.
type buffer []byte

func (b buffer) Path() string      { return "memory" }
func (b buffer) Bytes() []byte     { return b }
func (buffer) WillNeed(_, _ int64) {}
func (buffer) DontNeed(_, _ int64) {}
func (b buffer) fill(t attention.DType) buffer {
	for i := 0; i < len(b); i += t.Size() {
		t.Put(b[i:], float64(i*2654435761>>4%1000)/1000-0.5)
	}
	return b
}

// benchKernel repeats one whole problem for the time asked for.
func benchKernel(ctx context.Context, o *benchOptions, dev *cpu.Device, t attention.DType, d int, causal bool) (benchRow, error) {
	p := attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: o.tokens, Nk: o.tokens, D: d, Dv: d, DType: t, OutDType: t, Layout: attention.ND, Scale: attention.DefaultScale(d)}
	if causal {
		p.Causal = attention.TopLeft
	}
	row := benchRow{DType: t.String(), D: d, Causal: causal}
	n := o.tokens * d * t.Size()
	x := stream.Tensors{Q: make(buffer, n).fill(t), K: make(buffer, n).fill(t), V: make(buffer, n).fill(t), O: make(buffer, n)}
	plan, _, err := stream.New(stream.Request{Problem: p, Budget: 1 << 40, Divide: "cqs", Chunks: 1, Host: stream.Host{Cache: 1 << 40, Disk: 1e9}}, dev)
	if err != nil {
		return row, err
	}
	for start := time.Now(); time.Since(start).Seconds() < o.seconds || row.FLOPS == 0; {
		rep, err := stream.Run(ctx, plan, dev, x, stream.Options{})
		if err != nil {
			return row, err
		}
		row.FLOPS = max(row.FLOPS, p.FLOPs()/rep.Stats.ApplySeconds)
		row.Load = max(row.Load, float64(rep.Stats.InBytes)/rep.Stats.InSeconds)
	}
	return row, nil
}
