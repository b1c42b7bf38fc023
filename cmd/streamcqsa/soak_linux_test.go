package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

var (
	soakFor  = flag.Duration("soak", 0, "run random problems for so long (default: a few)")
	soakSeed = flag.Uint64("soak-seed", 0, "run the random problem of this seed, as the test that failed said it; kills come at the same shares of the run's time")
	soakCUDA = flag.Bool("soak-cuda", false, "compute the random problems on a GPU")
)

// Random problems, in random files, computed in random ways, by processes that are killed
// or stopped at random instants or not, are what float64 says, and the same bits every
// time.
func TestSoak(t *testing.T) {
	s := &soak{bin: "streamcqsa"}
	if !testing.Short() && !*soakCUDA { // else the program is this binary, with the race detector perhaps
		s.bin = buildProgram(t)
	}
	switch {
	case *soakSeed != 0:
		s.run(t, newSoakCase(*soakSeed, *soakCUDA))
	case *soakFor > 0:
		s.endless(t, *soakFor)
	default:
		// Always the same: make soak is for new ones.
		for seed, n := uint64(1), 0; n < 40; seed++ {
			c := newSoakCase(seed, *soakCUDA)
			if c.chunkPairs() > 20000 { // takes a second or more
				continue
			}
			if testing.Short() && (c.macs() > 1e6 || len(c.sessions) > 0 && n > 3) {
				continue
			}
			if n++; testing.Short() {
				n += 13
			}
			s.run(t, c)
		}
	}
	t.Log(s.tally)
}

// soak runs cases.
type soak struct {
	bin   string
	tally soakTally
}

// soakTally counts what was done.
type soakTally struct {
	cases, failed, runs, rows int
	ended                     map[string]int // sessions by what ended them
	early                     int            // sessions that were over before that
	resumed                   int            // runs that took work up
	twins                     int            // of one plan, with other threads
}

func (s soakTally) String() string {
	ended := 0
	for _, n := range s.ended {
		ended += n
	}
	return fmt.Sprintf("%d cases, %d failed: %d runs, %d ended before they were done %v, %d resumed, %d twins; %d rows compared with float64",
		s.cases, s.failed, s.runs, ended, s.ended, s.resumed, s.twins, s.rows)
}

// endless runs new cases for a while, and tells how many.
func (s *soak) endless(t *testing.T, d time.Duration) {
	const mostFailures = 10
	first := rand.Uint64N(1<<40) + 1
	fmt.Fprintf(os.Stderr, "seeds from %d on\n", first)
	told := time.Now()
	for begin := told; time.Since(begin) < d && s.tally.failed < mostFailures; {
		s.run(t, newSoakCase(first+uint64(s.tally.cases), *soakCUDA))
		if time.Since(told) > time.Minute {
			told = time.Now()
			fmt.Fprintln(os.Stderr, s.tally)
		}
	}
	fmt.Fprintln(os.Stderr, s.tally)
}

// run runs a case as a test of its own.
func (s *soak) run(t *testing.T, c *soakCase) {
	s.tally.cases++
	if !t.Run(fmt.Sprint(c.seed), func(t *testing.T) {
		defer func() {
			if t.Failed() {
				t.Logf("%v\nagain: go test ./cmd/streamcqsa -run TestSoak -args -soak-seed %d -soak-cuda=%t", c, c.seed, c.cuda)
			}
		}()
		x := &soakRun{soakCase: c, soak: s, dir: t.TempDir(), rng: rand.New(rand.NewPCG(c.seed, 0x50a2)), ways: make(map[int]soakWay)}
		x.whole(t)
	}) {
		s.tally.failed++
		fmt.Fprintf(os.Stderr, "failed: -soak-seed %d\n", c.seed)
	}
}

// soakRun is a case under way.
type soakRun struct {
	*soakCase
	*soak
	dir     string
	rng     *rand.Rand
	refs    [3]string // of Q, K and V
	results []string  // the files of O and lse, in the order in which they are made
	ways    map[int]soakWay
	full    time.Duration
	want    map[string][]byte
}

// soakWay is what a number of threads does to a plan.
type soakWay struct {
	budget []string
	plan   planDoc
	same   bool // the plan is that of the first way
}

func (x *soakRun) whole(t *testing.T) {
	x.generate(t)
	x.outputNames()
	x.ways[x.threads] = x.firstWay(t)
	out := filepath.Join(x.dir, "whole")
	x.fresh(t, out)
	began := time.Now()
	p := x.launch(t, out, x.threads, x.prefetch)
	x.summary(t, p, x.ways[x.threads])
	x.full = time.Since(began)
	x.want = contents(t, out)
	if len(x.want) != len(x.results) {
		t.Fatalf("%d files are in the directory of the results, want %v", len(x.want), x.results)
	}
	x.compareResults(t, out)
	if x.verified && x.special == 0 {
		x.verify(t, out)
	}
	if x.twin && !t.Failed() {
		x.runTwin(t)
	}
	if len(x.sessions) > 0 && !t.Failed() {
		x.runSessions(t)
	}
}

// generate makes the input files.
func (x *soakRun) generate(t *testing.T) {
	t.Helper()
	names := [3]string{"q", "k", "v"}
	for i, format := range x.formats {
		dir := filepath.Join(x.dir, format)
		if _, err := os.Stat(dir); err != nil {
			x.command(t, 0, "gen", "--shape", x.shape(), "--dtype", x.DType.String(), "--layout", x.Layout.String(), "--kind", x.kind,
				"--seed", strconv.FormatUint(x.seed, 10), "--format", format, dir)
		}
		switch format {
		case "npy":
			x.refs[i] = filepath.Join(dir, names[i]+".npy")
		case "safetensors":
			x.refs[i] = filepath.Join(dir, "qkv.safetensors:"+names[i])
		case "raw":
			x.refs[i] = filepath.Join(dir, names[i]+".bin")
			x.shift(t, x.refs[i], x.offsets[i])
		}
	}
	if x.alias {
		x.refs[2], x.offsets[2] = x.refs[1], x.offsets[1]
	}
	for i := range x.refs {
		x.makeSpecial(t, i)
	}
}

// shift puts bytes before what a raw file holds.
func (x *soakRun) shift(t *testing.T, path string, by int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil && by > 0 {
		err = os.WriteFile(path, append(bytes.Repeat([]byte{0x7f}, int(by)), b...), 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// open opens an input: 0, 1 and 2 are Q, K and V.
func (x *soakRun) open(t *testing.T, i int) *tensorfile.Tensor {
	t.Helper()
	h, n, d := x.Hkv, x.Nk, x.D
	switch i {
	case 0:
		h, n = x.Hq, x.Nq
	case 2:
		d = x.Dv
	}
	spec := tensorfile.Spec{DType: x.DType}
	spec.Path, spec.Key = tensorfile.ParseRef(x.refs[i])
	if tensorfile.FormatOf(spec.Path) == tensorfile.Raw {
		spec.Shape, spec.Offset = x.Layout.Shape(x.B, h, n, d), x.offsets[i]
	}
	f, err := tensorfile.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // it was only read
	return f
}

// makeSpecial replaces elements by values that break arithmetic.
func (x *soakRun) makeSpecial(t *testing.T, i int) {
	t.Helper()
	in := x.open(t, i)
	size, at := int64(x.DType.Size()), in.Offset()
	elements := int64(len(in.Bytes())) / size
	path := in.Path()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range x.special {
		largest := map[attention.DType]float64{attention.F32: math.MaxFloat32, attention.F16: 65504, attention.BF16: 0x1.fep127}[x.DType]
		value := pick(x.rng, math.NaN(), math.Inf(1), math.Inf(-1), largest, -largest, 1e-40, math.Copysign(0, -1))
		b := make([]byte, size)
		x.DType.Put(b, value)
		if _, err := f.WriteAt(b, at+size*x.rng.Int64N(elements)); err != nil {
			t.Fatal(err)
		}
	}
}

func (x *soakRun) outputNames() {
	ext := map[string]string{"npy": ".npy", "safetensors": ".safetensors", "raw": ".bin"}[x.outFormat]
	x.results = []string{"o" + ext}
	if x.lse == "own" {
		x.results = append(x.results, "lse"+ext)
	}
}

// outputArgs name the results in a directory.
func (x *soakRun) outputArgs(flag, dir string) []string {
	args := []string{flag, filepath.Join(dir, x.results[0])}
	switch x.lse {
	case "own":
		args = append(args, "--lse", filepath.Join(dir, x.results[1]))
	case "shared":
		args[1] += ":o"
		args = append(args, "--lse", filepath.Join(dir, x.results[0])+":lse")
	}
	return args
}

func (x *soakRun) inputArgs() []string {
	return append([]string{"--q", x.refs[0], "--k", x.refs[1], "--v", x.refs[2]}, x.problemArgs()...)
}

// command runs a command to its end, with that exit code, and returns what it wrote.
func (x *soakRun) command(t *testing.T, code int, args ...string) (stdout, stderr []byte) {
	t.Helper()
	cmd := exec.Command(x.bin, args...)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	_ = cmd.Run() // the exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v: %v, want exit code %d: %s", args, cmd.ProcessState, code, msg.Bytes())
	}
	return out.Bytes(), msg.Bytes()
}

// planArgs ask for the plan of a budget.
func (x *soakRun) planArgs(threads int, budget ...string) []string {
	args := append([]string{"plan", "--json", "--threads", fmt.Sprint(threads)}, x.inputArgs()...)
	return append(append(append(args, x.outputArgs("--out", x.dir)...), x.wayArgs()...), budget...)
}

// planned is the plan for a budget.
func (x *soakRun) planned(t *testing.T, threads int, budget ...string) (doc planDoc) {
	t.Helper()
	b, _ := x.command(t, 0, x.planArgs(threads, budget...)...)
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// firstWay finds the budget.
func (x *soakRun) firstWay(t *testing.T) (w soakWay) {
	t.Helper()
	if x.slack > 0 {
		w.budget = []string{"--mem-budget", fmt.Sprintf("%dB", int64(float64(x.smallest(t, x.threads))*x.slack))}
	}
	w.plan, w.same = x.planned(t, x.threads, w.budget...), true
	return w
}

// smallest is the smallest budget of so many threads.
func (x *soakRun) smallest(t *testing.T, threads int) int64 {
	t.Helper()
	_, said := x.command(t, exitNoFit, x.planArgs(threads, "--mem-budget", "1B")...)
	m := smallestBudget.FindSubmatch(said)
	if m == nil {
		t.Fatalf("the message names no budget: %s", said)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// way is how that many threads compute the case, with as much memory beside theirs.
func (x *soakRun) way(t *testing.T, threads int) soakWay {
	t.Helper()
	if w, ok := x.ways[threads]; ok {
		return w
	}
	first, w := x.ways[x.threads], soakWay{}
	if w.budget = first.budget; w.budget != nil && !x.cuda {
		const ample = "64GiB"
		more := scratchIn(x.planned(t, threads, "--mem-budget", ample)) - scratchIn(x.planned(t, x.threads, "--mem-budget", ample))
		w.budget = []string{"--mem-budget", fmt.Sprintf("%dB", max(first.plan.Budget+more, x.smallest(t, threads)))}
	}
	w.plan = x.planned(t, threads, w.budget...)
	w.same = sameDivision(w.plan.Division, first.plan.Division)
	x.ways[threads] = w
	return w
}

func scratchIn(p planDoc) int64 {
	i := slices.IndexFunc(p.Memory, func(u attention.Use) bool { return u.Purpose == "scratch" })
	return p.Memory[i].Bytes
}

// sameDivision says whether two plans lead to the same bits: slots don't count.
func sameDivision(a, b divisionDoc) bool {
	a.QuerySlots, a.KVSlots = b.QuerySlots, b.KVSlots
	return fmt.Sprint(a) == fmt.Sprint(b)
}

// fresh makes a directory for results, with older ones perhaps.
func (x *soakRun) fresh(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range x.results {
		if !x.older {
			break
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(olderResult), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

const olderResult = "an older result"

// launch begins a run.
func (x *soakRun) launch(t *testing.T, dir string, threads, prefetch int, extra ...string) *process {
	t.Helper()
	x.tally.runs++
	args := append(append([]string{"run", "--json"}, x.outputArgs("--out", dir)...), x.inputArgs()...)
	args = append(append(args, x.wayArgs()...), x.way(t, threads).budget...)
	args = append(args, "--threads", fmt.Sprint(threads), "--prefetch", fmt.Sprint(prefetch))
	return launch(t, x.bin, append(args, extra...)...)
}

// summary waits for the end of a run that succeeds, and holds it to its plan.
func (x *soakRun) summary(t *testing.T, p *process, w soakWay) event {
	t.Helper()
	e := p.ends(0)
	x.within(t, e, w)
	return e
}

// within holds a run that has succeeded to its budget.
func (x *soakRun) within(t *testing.T, e event, w soakWay) {
	t.Helper()
	if w.budget != nil && e.Held > w.plan.Budget || !x.cuda && e.Anonymous > e.Held+allowance { // a driver takes more
		t.Errorf("of a budget of %d bytes it held %d, and %d of anonymous memory", w.plan.Budget, e.Held, e.Anonymous)
	}
}

func (x *soakRun) compareResults(t *testing.T, dir string) {
	t.Helper()
	f := soakTensors{q: x.open(t, 0), k: x.open(t, 1), v: x.open(t, 2)}
	result := func(name, key string, dtype attention.DType, shape []int) *tensorfile.Tensor {
		spec := tensorfile.Spec{Path: filepath.Join(dir, name), DType: dtype}
		switch tensorfile.FormatOf(name) {
		case tensorfile.Raw:
			spec.Shape = shape
		case tensorfile.Safetensors:
			spec.Key = key
		}
		r, err := tensorfile.Open(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() }) // it was only read
		if !slices.Equal(r.Shape(), shape) {
			t.Fatalf("%s has shape %v, want %v", name, r.Shape(), shape)
		}
		return r
	}
	f.o = result(x.results[0], "o", x.OutDType, x.Layout.Shape(x.B, x.Hq, x.Nq, x.Dv))
	if x.lse != "" {
		shape := x.Layout.Shape(x.B, x.Hq, x.Nq, 1)
		f.lse = result(x.results[len(x.results)-1], "lse", attention.F32, shape[:len(shape)-1])
	}
	x.tally.rows += x.compare(t, f, x.rng)
}

// verify asks the program itself.
func (x *soakRun) verify(t *testing.T, dir string) {
	t.Helper()
	rows := strconv.Itoa(max(4, int(soakOracle/(float64(x.Nk)*float64(2*x.D+x.Dv)))))
	args := append(append([]string{"verify", "--json", "--rows", rows}, x.outputArgs("--o", dir)...), x.inputArgs()...)
	var v verdict
	b, _ := x.command(t, 0, args...)
	if err := json.Unmarshal(b, &v); err != nil || !v.Pass {
		t.Errorf("%v: %s", err, b)
	}
}

// runTwin computes the case again, otherwise in what changes no bit.
func (x *soakRun) runTwin(t *testing.T) {
	threads := soakThreads(x.rng)
	w := x.way(t, threads)
	if !w.same {
		return
	}
	dir := filepath.Join(x.dir, "twin")
	x.fresh(t, dir)
	x.summary(t, x.launch(t, dir, threads, soakPrefetch(x.rng)), w)
	x.tally.twins++
	checkResults(t, dir, x.want)
}

// runSessions computes the case with interruptions.
func (x *soakRun) runSessions(t *testing.T) {
	dir, work, state := filepath.Join(x.dir, "stopped"), filepath.Join(x.dir, "stopped"), []string(nil)
	x.fresh(t, dir)
	if x.state != "" {
		in := x.dir
		if x.state == "elsewhere" {
			in = otherFileSystem(t)
		}
		var err error
		if work, err = os.MkdirTemp(in, "streamcqsa-soak"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(work) // what a failed test left
		state = []string{"--state-dir", work}
	}
	for _, s := range x.sessions {
		if x.session(t, s, dir, work, state) || t.Failed() {
			return
		}
	}
	p := x.launch(t, dir, x.threads, x.prefetch, state...)
	if e := x.summary(t, p, x.ways[x.threads]); e.Resumed > 0 {
		x.tally.resumed++
	}
	x.finished(t, dir, work)
}

// finished checks what a run that has succeeded leaves.
func (x *soakRun) finished(t *testing.T, dir, work string) {
	t.Helper()
	checkResults(t, dir, x.want)
	if left := contents(t, work); work != dir && len(left) > 0 {
		t.Errorf("left in the state directory: %d files", len(left))
	}
}

// session runs a process that is to end early, and says whether it was done before.
func (x *soakRun) session(t *testing.T, s soakSession, dir, work string, state []string) (done bool) {
	t.Helper()
	w := x.way(t, s.threads)
	if !w.same {
		s.threads, w = x.threads, x.ways[x.threads]
	}
	extra := slices.Clone(state)
	if s.every != "" {
		extra = append(extra, "--checkpoint-every", s.every)
	}
	after := s.after(x.full)
	if s.end == "max-duration" {
		extra = append(extra, "--max-duration", max(after, 1).String())
	}
	p := x.launch(t, dir, s.threads, soakPrefetch(x.rng), extra...)
	if sig, ok := soakSignals[s.end]; ok {
		timer := time.AfterFunc(after, func() { _ = p.cmd.Process.Signal(sig) }) // it may be over
		defer timer.Stop()
	}
	status := p.over()
	switch code := status.ExitStatus(); {
	case status.Exited() && code == 0:
		x.within(t, p.ended(0), w)
		x.finished(t, dir, work)
		x.tally.early++
		return true
	case status.Signaled() && status.Signal() == soakSignals[s.end]: // before it could catch it, perhaps
	case code == exitMaxDuration && s.end == "max-duration", soakSignals[s.end] != 0 && code == 128+int(soakSignals[s.end]):
		p.ended(code)
	default:
		t.Fatalf("%+v: %v: %s", s, p.cmd.ProcessState, p.stderr)
	}
	if x.tally.ended == nil {
		x.tally.ended = make(map[string]int)
	}
	x.tally.ended[s.end]++
	x.inspect(t, dir, work, state)
	for range s.damage {
		x.damage(t, work)
	}
	return false
}

// inspect checks what a run that was ended left: nothing new in the results' places, and
// a journal that can be read.
func (x *soakRun) inspect(t *testing.T, dir, work string, state []string) {
	t.Helper()
	for _, name := range x.results {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && !bytes.Equal(got, x.want[name]) && (!x.older || string(got) != olderResult) {
			t.Errorf("a run that was ended left %s of %d bytes, which is not the result", name, len(got))
		}
		if err != nil && x.older {
			t.Errorf("the older result is gone: %v", err)
		}
	}
	out := filepath.Join(dir, x.results[0])
	if exists(t, filepath.Join(work, x.results[0])+".journal") {
		x.command(t, 0, append([]string{"status", "--json", out}, state...)...)
	}
}

// damage inverts a byte of what is not finished, if there is any.
func (x *soakRun) damage(t *testing.T, work string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(work, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	left = slices.DeleteFunc(left, func(path string) bool {
		fi, err := os.Stat(path)
		return err != nil || fi.Size() == 0 || !strings.HasSuffix(path, ".partial") && !strings.HasSuffix(path, ".state")
	})
	if len(left) == 0 {
		return
	}
	path := pick(x.rng, left...)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	flipIn(t, path, x.rng.Int64N(fi.Size()))
}
