package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/gpu"
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

// beside is a file that belongs to a run, by its extension: beside the output or in
// --state-dir.
func (o *outFlags) beside(ref, ext string) string {
	path, _ := tensorfile.ParseRef(ref)
	if o.stateDir != "" {
		path = filepath.Join(o.stateDir, filepath.Base(path))
	}
	return path + ext
}

// Files of a run that is not complete, beside partialExt.
const (
	stateExt   = ".state"
	journalExt = ".journal"
)

// partialPath is where an output is until it is complete.
func (o *outFlags) partialPath(ref string) string { return partialOf(o.outSpec(ref, "")) }

func (o *outFlags) statePath() string   { return o.beside(o.out, stateExt) }
func (o *outFlags) journalPath() string { return o.beside(o.out, journalExt) }

// stateRoom is how much disk states may take: what is free where they go, with what a run
// takes the place of, less what the outputs will take of it. 0 if that isn't known, or not
// even O fits: who makes that says so.
func (o *outFlags) stateRoom(p attention.Problem) int64 {
	if o.out == "" && o.stateDir == "" {
		return 0
	}
	free := freeDisk(filepath.Dir(o.statePath()))
	if free <= 0 {
		return 0
	}
	if o.out != "" {
		old := []string{o.partialPath(o.out), o.statePath()}
		if o.lse != "" {
			old = append(old, o.partialPath(o.lse))
		}
		for _, path := range old {
			if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
				free += fi.Size()
			}
		}
	}
	rows := int64(p.B) * int64(p.Hq) * int64(p.Nq)
	if free -= rows * int64(p.Dv*p.OutDType.Size()); free <= 0 {
		return 0
	}
	if o.lse != "" {
		free -= rows * int64(attention.F32.Size())
	}
	return max(0, free) // of outputs for which there is no room, making them tells
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
	f.Var(&o.budget, "mem-budget", "memory that the device may hold: 2GiB, 500MB, 80% of its limit, or auto (cpu: half of what is free; cuda: nearly all)")
	f.Var(&o.hostBudget, "host-mem-budget", "page cache that the inputs may count on; half of it may be page-locked for transfers to GPUs; auto is what is free")
	f.StringVar(&o.divide, "divide", "auto", "how to divide: auto, cqs or rows")
	f.IntVar(&o.chunks, "chunks", 0, "chunks of each axis (default: planned)")
	f.IntVar(&o.depth, "depth", 0, "how often CQS Divide is applied, 1 to 3 (default 1)")
	f.StringVar(&o.device, "device", "auto", deviceWords)
	f.IntVar(&o.threads, "threads", 0, "threads of the cpu device (default: one for each core)")
	addKernelFlag(f, &o.kernel)
}

func addKernelFlag(f *pflag.FlagSet, kernel *string) {
	f.StringVar(kernel, "kernel", "auto", "kernel of the cpu device: auto, avx512, avx2, or portable, which computes in float64")
}

// open returns the devices asked for, all of one kind. auto is a GPU if there is one
// that can compute the problem.
func (o *planFlags) open(p attention.Problem) ([]stream.Device, error) {
	c, err := parseDevice(o.device)
	if err != nil {
		return nil, err
	}
	if c.cuda {
		return o.openGPUs(c, p)
	}
	if !c.cpu && gpu.Built {
		if dev, err := o.openGPUs(deviceChoice{cuda: true, list: []int{0}}, p); err == nil {
			return dev, nil
		}
	}
	dev, err := openCPU(o.threads, o.kernel)
	if err != nil {
		return nil, err
	}
	calibrate(dev)
	return []stream.Device{dev}, nil
}

// gpuDevice is what the command asks of a GPU beside what streaming does.
type gpuDevice interface {
	stream.Device
	Info() gpu.Info
	Kernel(attention.Geometry) string
	Memory() (free, total int64, err error)
	Supports(attention.Problem) error
	Close() error
}

// openGPUs opens what --device chose. Whatever is missing may be there on another
// machine.
func (o *planFlags) openGPUs(c deviceChoice, p attention.Problem) ([]stream.Device, error) {
	chosen, err := o.openChosen(c)
	if err != nil {
		return nil, classify(errTemporary, fmt.Errorf("--device %s: %w", o.device, err))
	}
	if err := chosen[0].Supports(p); err != nil {
		for _, d := range chosen {
			err = errors.Join(err, d.Close())
		}
		return nil, classify(errUsage, err)
	}
	devs := make([]stream.Device, len(chosen))
	for i, d := range chosen {
		devs[i] = d
	}
	return devs, nil
}

func (o *planFlags) openChosen(c deviceChoice) ([]gpuDevice, error) {
	have, err := gpu.Devices()
	if err != nil {
		return nil, err
	}
	chosen, err := c.choose(have)
	if err != nil {
		return nil, err
	}
	for _, d := range chosen {
		if _, err := gpu.Target(d); err != nil {
			return nil, err
		}
	}
	m := readHostMemory()
	host := o.hostBudget.resolve(m)
	if !o.hostBudget.auto {
		host /= 2
	}
	return openCUDA(chosen, host)
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
func (o *planFlags) request(p attention.Problem, to *outFlags, devs []stream.Device) (stream.Request, error) {
	m := readHostMemory()
	budget, err := o.budgetOf(m, devs)
	if err != nil {
		return stream.Request{}, err
	}
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
		if cache = m.available; !isGPU(devs[0]) {
			cache = max(0, cache-budget)
		}
	}
	host := stream.Host{State: to.stateRoom(p), Cache: cache, Disk: defaultDisk}
	return stream.Request{
		Problem: p, LSE: to.lse != "", Budget: budget, Devices: len(devs),
		Divide: o.divide, Chunks: o.chunks, Depth: o.depth, Host: host,
	}, nil
}

// isGPU says whether a device has memory of its own.
func isGPU(dev stream.Device) bool {
	_, ok := dev.(gpuDevice)
	return ok
}

const (
	gpuReserve = 512 << 20 // what auto leaves of a GPU's free memory to others, beside a tenth
	gpuContext = 1 << 30   // what this process's own context and code take of a GPU, at most
)

// budgetOf is --mem-budget in bytes. A percentage, and auto, are of the memory in
// which the device's slots are.
func (o *planFlags) budgetOf(m hostMemory, devs []stream.Device) (int64, error) {
	if !isGPU(devs[0]) || !o.budget.auto && o.budget.percent == 0 {
		return o.budget.resolve(m), nil
	}
	free, total, err := gpuMemory(devs)
	if err != nil {
		return 0, err
	}
	budget := o.budgetOn(free, total)
	if o.budget.auto && budget <= 0 {
		return 0, classify(errTemporary, fmt.Errorf("%s: others have its memory: of %d bytes %d are free, and --mem-budget auto leaves as many to them", deviceNames(devs), total, free))
	}
	return budget, nil
}

// budgetOn is --mem-budget on GPUs with so much memory, free and in all.
func (o *planFlags) budgetOn(free, total int64) int64 {
	if o.budget.auto {
		return free/10*9 - gpuReserve
	}
	return o.budget.resolve(hostMemory{limit: total})
}

// gpuMemory is that of the GPU that has least.
func gpuMemory(devs []stream.Device) (free, total int64, err error) {
	free, total = math.MaxInt64, math.MaxInt64
	for _, d := range devs {
		f, t, err := d.(gpuDevice).Memory()
		if err != nil {
			return 0, 0, classify(errTemporary, err)
		}
		free, total = min(free, f), min(total, t)
	}
	return free, total, nil
}

// deviceNames are those of all devices.
func deviceNames(devs []stream.Device) string {
	var names []string
	for _, d := range devs {
		names = append(names, d.Name())
	}
	return strings.Join(names, ",")
}

// basis is what predictions rest on.
type basis struct {
	kernel   string
	threads  int
	measured time.Time // zero if never
	model    string    // of a GPU
	names    string    // of all devices
}

func basisOf(devs []stream.Device, p *stream.Plan) (b basis) {
	b.names = deviceNames(devs)
	switch d := devs[0].(type) {
	case *cpu.Device:
		b.kernel, b.threads = d.Kernel(), d.Threads()
		if m := d.Measured(); m != nil {
			b.measured = m.Time
		}
	case gpuDevice:
		b.kernel, b.model = d.Kernel(p.Geometry), d.Info().Name
	}
	return b
}

func (b basis) text() string {
	switch {
	case b.kernel == "":
		return ""
	case b.model != "":
		return fmt.Sprintf(" (%s, %s)", b.model, b.kernel)
	}
	return fmt.Sprintf(" (%s, %d %s)", b.kernel, b.threads, plural(b.threads, "thread"))
}

func (b basis) rates() string {
	switch {
	case b.model != "":
		return "by the rates of such a device"
	case b.measured.IsZero():
		return "by assumed rates; streamcqsa bench measures them"
	}
	return "by rates measured on this machine, " + ageText(b.measured)
}

// plan opens the devices asked for and plans the problem for them, and gives the
// best plan of each other division for comparison. in is nil for a plan without
// files.
func (o *planFlags) plan(p attention.Problem, in *inputs, to *outFlags) (plan *stream.Plan, others []*stream.Plan, devs []stream.Device, err error) {
	if devs, err = o.open(p); err != nil {
		return nil, nil, nil, err
	}
	plan, others, err = o.planFor(p, in, to, devs, math.MaxInt64)
	return plan, others, devs, err
}

// planFor plans for devices that are open, each with at most so many bytes.
func (o *planFlags) planFor(p attention.Problem, in *inputs, to *outFlags, devs []stream.Device, most int64) (plan *stream.Plan, others []*stream.Plan, err error) {
	req, err := o.request(p, to, devs)
	if err != nil {
		return nil, nil, err
	}
	req.Budget = min(req.Budget, most)
	if d, ok := devs[0].(*cpu.Device); ok && d.Measured() != nil {
		m := d.Measured()
		req.Host.MeasuredDisk, req.Host.Start, req.Host.Touch, req.Host.Sync = m.Disk, m.Start, m.Touch, m.Sync
	}
	if in != nil {
		req.Host.Resident = in.q.Cached() + in.k.Cached() + in.v.Cached()
	}
	plan, others, err = stream.New(req, devs[0])
	if noFit := (*stream.NoFitError)(nil); errors.As(err, &noFit) && isGPU(devs[0]) {
		err = o.scarcity(noFit, devs)
	}
	return plan, others, err
}

// scarcity tells what would fit if others gave GPUs their memory back, which is temporary,
// from what never will.
func (o *planFlags) scarcity(noFit *stream.NoFitError, devs []stream.Device) error {
	_, total, err := gpuMemory(devs)
	if err != nil {
		return err
	}
	empty := total - gpuContext
	if noFit.Smallest > min(empty, o.budgetOn(empty, total)) {
		return noFit
	}
	return classify(errTemporary, fmt.Errorf("%s: others have its memory: of %d bytes the problem takes at least %d, and %d are to be had now",
		deviceNames(devs), total, noFit.Smallest, noFit.Budget))
}
