package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

type benchOptions struct {
	threads int
	kernel  string
	tokens  int
	seconds float64
	dir     string
	save    bool
	json    bool
	device  string
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure this machine, and how much of it the kernel uses",
		Long: `Measure what the machine can do (multiply-adds in registers, reading memory, and
with --dir reading a disk) and what the kernel makes of it, for each element type:
with many queries, where arithmetic sets the pace, and with four, where reading K and
V does. A GFLOP is 2 (D + Dv) for each query-key pair. What the machine can do is the
best of several stretches, what the kernel does the median of several runs.

The result is kept under the user's cache directory, and plan predicts times with it.
It changes predictions, never a plan.

With --device cuda it measures a GPU's kernels instead, chunks being in its memory, and
keeps nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), cmd.OutOrStdout(), &o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.threads, "threads", 0, "threads (default: one for each core)")
	addKernelFlag(f, &o.kernel)
	f.StringVar(&o.device, "device", "cpu", "cpu, cuda or cuda:N")
	f.IntVar(&o.tokens, "tokens", 0, "queries and keys where there are many (default: 4096, or 1024 for each thread; on a GPU 32768)")
	f.Float64Var(&o.seconds, "seconds", 0.5, "time for each figure")
	f.StringVar(&o.dir, "dir", "", "measure the disk of this directory too, with a file of 1 GiB")
	f.BoolVar(&o.save, "save", true, "keep the result for plan")
	f.BoolVar(&o.json, "json", false, "write one JSON document")
	return cmd
}

func runBench(ctx context.Context, w io.Writer, o *benchOptions) error {
	if o.tokens < 0 || o.tokens > 1<<20 || !(o.seconds > 0) {
		return usagef("--tokens %d, --seconds %g: want 1 to 2^20 tokens, and a time above 0", o.tokens, o.seconds)
	}
	if o.device != "cpu" {
		o.tokens = cmp.Or(o.tokens, 32768)
		return runBenchGPU(w, o)
	}
	dev, err := openCPU(o.threads, o.kernel)
	if err != nil {
		return err
	}
	m := &cpu.Measurement{CPU: processorName(), Kernel: dev.Kernel(), Threads: dev.Threads(), Time: time.Now().UTC().Truncate(time.Second)}
	t := time.Duration(o.seconds * float64(time.Second))
	if m.Start, m.Sync, err = benchStart(ctx, dev, o.dir); err != nil { // first: while the process is new
		return err
	}
	m.Peak1, m.Read1, m.Read = dev.Peak(1, t), dev.ReadRate(1, t), dev.ReadRate(m.Threads, t)
	// Other work on the machine comes and goes: every figure is the better of two
	// that are some seconds apart.
	for range 2 {
		m.Peak = max(m.Peak, dev.Peak(m.Threads, t/2))
		b := kernelBench{dev: dev, tokens: cmp.Or(o.tokens, max(4096, 1024*m.Threads)), time: t / 2}
		many, few, err := b.all(ctx)
		if err != nil {
			return err
		}
		m.Many, m.Few = better(m.Many, many), better(m.Few, few)
	}
	if m.Touch, err = cpu.TouchRate(); err != nil {
		return err
	}
	if m.Batch, err = dev.BatchTime(); err != nil {
		return err
	}
	if o.dir != "" {
		if m.Disk, err = benchDisk(o.dir); err != nil {
			return err
		}
	}
	if o.save {
		if err := saveMeasurement(m); err != nil {
			return err
		}
	}
	if o.json {
		return writeJSON(w, struct {
			Type string `json:"type"`
			*cpu.Measurement
		}{"bench", m})
	}
	return writeBench(w, m)
}

func writeBench(w io.Writer, m *cpu.Measurement) error {
	var b strings.Builder
	share := func(x, of float64) string {
		if of == 0 {
			return ""
		}
		return fmt.Sprintf("  %3.0f%%", 100*x/of)
	}
	fmt.Fprintf(&b, "%s, %s kernel, %d threads\n", m.CPU, m.Kernel, m.Threads)
	if m.Peak > 0 {
		fmt.Fprintf(&b, "multiply-adds  %8.1f GFLOP/s (1 thread %.1f)\n", m.Peak/1e9, m.Peak1/1e9)
		fmt.Fprintf(&b, "memory reads   %8.1f GB/s (1 thread %.1f)\n", m.Read/1e9, m.Read1/1e9)
	}
	if m.Disk > 0 {
		fmt.Fprintf(&b, "disk reads     %8.2f GB/s\n", m.Disk/1e9)
	}
	fmt.Fprintf(&b, "a run          %8.1f ms beside its work, %.0f us for a batch\n", m.Start*1e3, m.Batch*1e6)
	for _, r := range m.Many {
		fast := ""
		if r.Fast {
			fast = ", fast"
		}
		fmt.Fprintf(&b, "many queries   %8.1f GFLOP/s%s of the multiply-adds  %-4s  D = %d%s\n", r.FLOPS/1e9, share(r.FLOPS, m.Peak), r.DType, r.D, fast)
	}
	for _, r := range m.Few {
		fmt.Fprintf(&b, "four queries   %8.1f GB/s%s of the memory reads  %-4s  D = %d\n", r.Bytes/1e9, share(r.Bytes, m.Read), r.DType, r.D)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// benchSource is a tensor in a temporary file, in the page cache.
type benchSource struct{ tensorfile.Spec }

func newBenchSource(t attention.DType, n int) (s benchSource, err error) {
	f, err := os.CreateTemp("", "streamcqsa-bench-*.bin")
	if err != nil {
		return s, err
	}
	s.Path, s.DType, s.Shape = f.Name(), t, []int{n}
	b := make([]byte, n*t.Size())
	for i := range n {
		t.Put(b[i*t.Size():], float64(i*2654435761>>4%1000)/1000-0.5)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(fmt.Errorf("write %d bytes to %s: %w", len(b), s.Path, err), s.remove())
	}
	return s, err
}

func (s benchSource) remove() error { return os.Remove(s.Path) }

// benchOpen opens Q, K and V as a run does: their pages are in memory, and unknown to the
// process.
func benchOpen(q, k, v benchSource) (x stream.Tensors, closeAll func() error, err error) {
	var open []*tensorfile.Tensor
	closeAll = func() (err error) {
		for _, t := range open {
			err = errors.Join(err, t.Close())
		}
		return err
	}
	for _, s := range []benchSource{q, k, v} {
		t, err := tensorfile.Open(s.Spec)
		if err != nil {
			return x, nil, errors.Join(err, closeAll())
		}
		open = append(open, t)
	}
	x.Q, x.K, x.V = open[0], open[1], open[2]
	return x, closeAll, nil
}

// benchSink is a tensor in memory.
type benchSink []byte

func (benchSink) Path() string    { return "memory" }
func (benchSink) Sync() error     { return nil }
func (b benchSink) Bytes() []byte { return b }

// kernelBench measures kernels.
type kernelBench struct {
	dev    *cpu.Device
	tokens int
	time   time.Duration // for each figure
}

// all measures every type and some head dimensions.
func (b kernelBench) all(ctx context.Context) (many, few []cpu.KernelRate, err error) {
	for _, typ := range []attention.DType{attention.F32, attention.BF16, attention.F16} {
		for _, d := range []int{64, 128} {
			for _, fast := range []bool{false, true} {
				if fast && typ != attention.BF16 {
					continue
				}
				r, err := b.one(ctx, typ, fast, b.tokens, b.tokens, d)
				if err != nil {
					return nil, nil, err
				}
				many = append(many, r)
			}
			r, err := b.one(ctx, typ, false, cpu.MeasuredFew, max(1, min(256*b.tokens, (64<<20)/(d*typ.Size()))), d)
			if err != nil {
				return nil, nil, err
			}
			few = append(few, r)
		}
	}
	return many, few, nil
}

// better has the higher of two rates everywhere; a may be empty.
func better(a, b []cpu.KernelRate) []cpu.KernelRate {
	for i := range a {
		b[i].FLOPS, b[i].Bytes = max(a[i].FLOPS, b[i].FLOPS), max(a[i].Bytes, b[i].Bytes)
		b[i].Load, b[i].Store = max(a[i].Load, b[i].Load), max(a[i].Store, b[i].Store)
	}
	return b
}

// one measures one problem: whole for the kernel, and in chunks for loads into slots
// that were used before. Few queries are measured as the planner divides them.
func (b kernelBench) one(ctx context.Context, typ attention.DType, fast bool, queries, keys, d int) (row cpu.KernelRate, err error) {
	p := attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: queries, Nk: keys, D: d, Dv: d, DType: typ, OutDType: typ, Layout: attention.ND, Scale: attention.DefaultScale(d), Fast: fast}
	var sources [3]benchSource
	for i, n := range []int{queries * d, keys * d, keys * d} {
		if sources[i], err = newBenchSource(typ, n); err != nil {
			return row, err
		}
		defer func() { err = errors.Join(err, sources[i].remove()) }()
	}
	row = cpu.KernelRate{DType: typ.String(), D: d, Fast: fast}
	few, chunks := queries < keys, 1
	if few {
		chunks = 0
	}
	r, err := b.run(ctx, p, sources, chunks)
	if err != nil {
		return row, err
	}
	row.FLOPS, row.Bytes = p.FLOPs()/r.apply, 2*float64(keys*d*typ.Size())/r.apply
	if !few {
		r, err = b.run(ctx, p, sources, min(16, keys))
		row.Load, row.Store = r.inBytes/r.in, r.outBytes/r.out
	}
	return row, err
}

// benchRun is a run, in seconds and bytes.
type benchRun struct{ apply, in, out, inBytes, outBytes float64 }

// run runs a problem for about the time asked for, in so many chunks of keys or, with
// 0, as the planner divides it. Nothing is loaded ahead: what a load takes is then not
// in what the kernel takes.
func (b kernelBench) run(ctx context.Context, p attention.Problem, in [3]benchSource, chunks int) (r benchRun, err error) {
	plan, _, err := stream.New(stream.Request{Problem: p, Budget: 1 << 40, Divide: "rows", Chunks: chunks, Host: stream.Host{Cache: 1 << 40, Disk: 1e9}}, b.dev)
	if err != nil {
		return r, err
	}
	o := make(benchSink, p.Nq*p.Dv*p.OutDType.Size())
	var apply, load, store []float64
	for start := time.Now(); time.Since(start) < b.time/2 || len(apply) < 3; {
		x, closeAll, err := benchOpen(in[0], in[1], in[2])
		if err != nil {
			return r, err
		}
		x.O = o
		rep, err := stream.Run(ctx, plan, b.dev, x, stream.Options{Prefetch: -1})
		if err = errors.Join(err, closeAll()); err != nil {
			return r, err
		}
		s := rep.Stats
		apply, load, store = append(apply, s.ApplySeconds), append(load, s.InSeconds), append(store, s.OutSeconds)
		r.inBytes, r.outBytes = float64(s.InBytes), float64(s.OutBytes)
	}
	r.apply, r.in, r.out = middle(apply), middle(load), middle(store)
	return r, nil
}

// benchStart is how many seconds a run with next to nothing to do takes, with the
// sync of its output in that directory, and the rate of a longer output's sync.
func benchStart(ctx context.Context, dev *cpu.Device, dir string) (start, rate float64, err error) {
	const n, d, long, reps = 64, 64, 16 << 20, 5
	p := attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: n, Nk: n, D: d, Dv: d, DType: attention.F32, OutDType: attention.F32, Layout: attention.ND, Scale: attention.DefaultScale(d)}
	s, err := newBenchSource(attention.F32, n*d)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	plan, _, err := stream.New(stream.Request{Problem: p, Budget: 1 << 40}, dev)
	if err != nil {
		return 0, 0, err
	}
	x, closeAll, err := benchOpen(s, s, s)
	if err != nil {
		return 0, 0, err
	}
	x.O = make(benchSink, n*d*4)
	rep, err := stream.Run(ctx, plan, dev, x, stream.Options{})
	if err = errors.Join(err, closeAll()); err != nil {
		return 0, 0, err
	}
	var short, whole []float64 // seconds
	for range reps {
		for size, list := range map[int]*[]float64{n * d * 4: &short, long: &whole} {
			t, err := benchSync(dir, size)
			if err != nil {
				return 0, 0, err
			}
			*list = append(*list, t)
		}
	}
	sync := middle(short)
	return rep.Seconds + sync, long / max(middle(whole)-sync, 1e-4), nil
}

// benchSync writes an output as a run does, page by page, and returns how long
// that and its way to the disk take, in seconds.
func benchSync(dir string, size int) (seconds float64, err error) {
	if dir, err = os.MkdirTemp(dir, "streamcqsa-bench-*"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out, err := tensorfile.Create(tensorfile.OutSpec{Path: filepath.Join(dir, "o.npy"), DType: attention.F32, Shape: []int{size / 4}})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	b := out.Bytes()
	for at := 0; at < len(b); at += os.Getpagesize() {
		b[at] = 1
	}
	if err := out.Commit(); err != nil {
		return 0, errors.Join(err, out.Abort())
	}
	return time.Since(start).Seconds(), nil
}

// middle is the median.
func middle(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// benchDisk reads a file that was just written, after asking the system to forget
// it.
func benchDisk(dir string) (rate float64, err error) {
	f, err := os.CreateTemp(dir, "streamcqsa-bench-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	const size, step = 1 << 30, 4 << 20
	buf := make([]byte, step)
	for i := range buf {
		buf[i] = byte(i * 2654435761 >> 8)
	}
	for range size / step {
		if _, err := f.Write(buf); err != nil {
			return 0, fmt.Errorf("write %d bytes to %s: %w", size, f.Name(), err)
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if err := forget(f); err != nil {
		return 0, classify(errTemporary, fmt.Errorf("take %s out of the page cache: %w", f.Name(), err))
	}
	start := time.Now()
	for at := int64(0); at < size; at += step {
		if _, err := f.ReadAt(buf, at); err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Name(), err)
		}
	}
	return size / time.Since(start).Seconds(), nil
}
