package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// outFlags say where results go.
type outFlags struct {
	out      string
	lse      string
	stateDir string
}

func (o *outFlags) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.out, "out", "o", "", "output `FILE`: .npy, .safetensors[:KEY], anything else is raw")
	f.StringVar(&o.lse, "lse", "", "also write the natural-log sum of exponentials of each row, float32, to `FILE`")
	f.StringVar(&o.stateDir, "state-dir", "", "`DIR` for the states of unfinished rows (default: beside the output)")
}

// statePath is the file for the states of unfinished rows.
func (o *outFlags) statePath() string {
	path, _ := tensorfile.ParseRef(o.out)
	path += ".state"
	if o.stateDir != "" {
		path = filepath.Join(o.stateDir, filepath.Base(path))
	}
	return path
}

// stateRoom is how much disk states may take: what is free where they go, less
// what the outputs will take of it. 0 if that isn't known.
func (o *outFlags) stateRoom(p attention.Problem) int64 {
	if o.out == "" && o.stateDir == "" {
		return 0
	}
	free := freeDisk(filepath.Dir(o.statePath()))
	if free <= 0 {
		return 0
	}
	rows := int64(p.B) * int64(p.Hq) * int64(p.Nq)
	free -= rows * int64(p.Dv*p.OutDType.Size())
	if o.lse != "" {
		free -= rows * int64(attention.F32.Size())
	}
	return max(1, free)
}

// planFlags say how a problem is to be computed.
type planFlags struct {
	budget     size
	hostBudget size
	divide     string
	chunks     int
	depth      int
	device     string
	threads    int
	kernel     string
}

func (o *planFlags) addFlags(f *pflag.FlagSet) {
	o.budget, o.hostBudget = size{auto: true}, size{auto: true}
	f.Var(&o.budget, "mem-budget", "memory that the device may hold: 2GiB, 500MB, 80% of the memory limit, or auto (half of what is free)")
	f.Var(&o.hostBudget, "host-mem-budget", "page cache that the inputs may count on, for the plan's disk traffic; auto is what is free")
	f.StringVar(&o.divide, "divide", "auto", "how to divide: auto, cqs or rows")
	f.IntVar(&o.chunks, "chunks", 0, "chunks of each axis (default: planned)")
	f.IntVar(&o.depth, "depth", 0, "how often CQS Divide is applied, 1 to 3 (default 1)")
	f.StringVar(&o.device, "device", "auto", "auto, cpu or cuda")
	f.IntVar(&o.threads, "threads", 0, "threads of the cpu device (default: one for each core)")
	addKernelFlag(f, &o.kernel)
}

func addKernelFlag(f *pflag.FlagSet, kernel *string) {
	f.StringVar(kernel, "kernel", "auto", "kernel of the cpu device: auto, avx512, avx2, or portable, which computes in float64")
}

// open returns the device asked for.
func (o *planFlags) open() (stream.Device, error) {
	switch o.device {
	case "auto", "cpu":
		dev, err := openCPU(o.threads, o.kernel)
		if err != nil {
			return nil, err
		}
		calibrate(dev)
		return dev, nil
	case "cuda":
		return nil, classify(errTemporary, fmt.Errorf("--device cuda: this binary was built without CUDA support (%s/%s)", runtime.GOOS, runtime.GOARCH))
	}
	return nil, usagef("--device %q: want auto, cpu or cuda", o.device)
}

func openCPU(threads int, kernel string) (*cpu.Device, error) {
	if threads < 0 || threads > 4096 {
		return nil, usagef("--threads %d: want 1 to 4096, or 0 for one for each core", threads)
	}
	if kernel == "auto" {
		return cpu.New(threads), nil
	}
	dev, ok := cpu.NewWith(threads, kernel)
	switch {
	case ok:
		return dev, nil
	case slices.Contains([]string{"avx512", "avx2"}, kernel):
		return nil, classify(errTemporary, fmt.Errorf("--kernel %s: this machine has only %s", kernel, strings.Join(cpu.Kernels(), ", ")))
	}
	return nil, usagef("--kernel %q: want auto, avx512, avx2 or portable", kernel)
}

// defaultDisk is the disk rate that plans assume, bytes/s.
const defaultDisk = 1.5e9

// request turns the flags into a planner's request.
func (o *planFlags) request(p attention.Problem, to *outFlags) (stream.Request, error) {
	m := readHostMemory()
	budget := o.budget.resolve(m)
	if budget <= 0 {
		return stream.Request{}, usagef("--mem-budget %s is %d bytes: want more than 0", o.budget.String(), budget)
	}
	if o.chunks < 0 {
		return stream.Request{}, usagef("--chunks %d: want at least 1", o.chunks)
	}
	if o.depth < 0 || o.depth > 3 {
		return stream.Request{}, usagef("--depth %d: want 1 to 3", o.depth)
	}
	cache := o.hostBudget.resolve(m)
	if o.hostBudget.auto {
		cache = max(0, m.available-budget)
	}
	return stream.Request{
		Problem: p, LSE: to.lse != "", Budget: budget,
		Divide: o.divide, Chunks: o.chunks, Depth: o.depth,
		Host: stream.Host{State: to.stateRoom(p), Cache: cache, Disk: defaultDisk},
	}, nil
}

// basis is what predictions rest on.
type basis struct {
	kernel   string
	threads  int
	measured time.Time // zero if never
}

func basisOf(dev stream.Device) (b basis) {
	if d, ok := dev.(*cpu.Device); ok {
		b.kernel, b.threads = d.Kernel(), d.Threads()
		if m := d.Measured(); m != nil {
			b.measured = m.Time
		}
	}
	return b
}

func (b basis) text() string {
	if b.kernel == "" {
		return ""
	}
	return fmt.Sprintf(" (%s, %d %s)", b.kernel, b.threads, plural(b.threads, "thread"))
}

func (b basis) rates() string {
	if b.measured.IsZero() {
		return "by assumed rates; streamcqsa bench measures them"
	}
	return "by rates measured on this machine, " + ageText(b.measured)
}

// plan opens the device asked for and plans the problem for it, and gives the
// best plan of each other division for comparison. in is nil for a plan without
// files.
func (o *planFlags) plan(p attention.Problem, in *inputs, to *outFlags) (plan *stream.Plan, others []*stream.Plan, dev stream.Device, err error) {
	if dev, err = o.open(); err != nil {
		return nil, nil, nil, err
	}
	req, err := o.request(p, to)
	if err != nil {
		return nil, nil, nil, err
	}
	if d, ok := dev.(*cpu.Device); ok && d.Measured() != nil {
		m := d.Measured()
		req.Host.MeasuredDisk, req.Host.Start, req.Host.Touch, req.Host.Sync = m.Disk, m.Start, m.Touch, m.Sync
	}
	if in != nil {
		req.Host.Resident = in.q.Cached() + in.k.Cached() + in.v.Cached()
	}
	plan, others, err = stream.New(req, dev)
	return plan, others, dev, err
}
