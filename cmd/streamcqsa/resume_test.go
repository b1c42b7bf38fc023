//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// job is a problem on disk, with what a run of it is told but for where results go.
type job struct {
	bin     string
	args    []string
	out     string   // the reference of O, in a directory
	lse     string   // likewise; "" without
	results []string // the files of both
}

// jobSpec says how to make a job.
type jobSpec struct {
	shape, dtype, format, layout string
	lse                          bool
	flags                        string // of run, separated by blanks
	cuda                         bool   // computed by a GPU
}

// plainJob is large enough to be stopped in its middle, with several head groups and
// states that spill.
var plainJob = jobSpec{shape: "1,8,4,3000,3200,32,32", flags: "--divide cqs --chunks 7 --mem-budget 800KiB"}

// stopJob is a plainJob to stop, smaller in short tests.
func stopJob(t *testing.T) *job {
	t.Helper()
	s := plainJob
	if testing.Short() {
		s.shape = "1,8,4,1300,1400,32,32"
	}
	return newJob(t, "streamcqsa", s)
}

func newJob(t *testing.T, bin string, s jobSpec) *job {
	t.Helper()
	dir := t.TempDir()
	gen := []string{"gen", "--shape", s.shape, dir}
	layout := s.layout
	if layout == "" {
		layout = "bhnd"
	}
	gen = append(gen, "--layout", layout)
	// The portable kernel is slow everywhere, and threads have a part in the budget.
	device := []string{"--kernel", "portable", "--threads", "2"}
	if s.cuda {
		device = []string{"--device", "cuda"}
	}
	j := &job{bin: bin, args: append(append(device, "--layout", layout), strings.Fields(s.flags)...)}
	if s.dtype != "" {
		gen = append(gen, "--dtype", s.dtype)
	}
	j.out, j.results = "o.npy", []string{"o.npy"}
	if s.lse {
		j.lse, j.results = "lse.npy", []string{"o.npy", "lse.npy"}
	}
	from := func(x string) string { return filepath.Join(dir, x+".npy") }
	if s.format == "safetensors" {
		gen = append(gen, "--format", s.format)
		from = func(x string) string { return filepath.Join(dir, "qkv.safetensors:"+x) }
		j.out, j.results = "o.safetensors:o", []string{"o.safetensors"}
		if s.lse {
			j.lse = "o.safetensors:lse"
		}
	} else if s.dtype != "" {
		j.args = append(j.args, "--dtype", s.dtype)
	}
	for _, x := range []string{"q", "k", "v"} {
		j.args = append(j.args, "--"+x, from(x))
	}
	if b, err := exec.Command(bin, gen...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return j
}

// input is the file of q, k or v.
func (j *job) input(x string) string {
	path, _, _ := strings.Cut(j.args[slices.Index(j.args, "--"+x)+1], ":")
	return path
}

// run is the command line that computes the job into dir.
func (j *job) run(dir string, extra ...string) []string {
	args := append([]string{"run", "--json", "-o", filepath.Join(dir, j.out)}, j.args...)
	if j.lse != "" {
		args = append(args, "--lse", filepath.Join(dir, j.lse))
	}
	return append(args, extra...)
}

// base is the path that the names of the files of an unfinished run begin with.
func (j *job) base(dir string) string { return filepath.Join(dir, j.results[0]) }

// whole computes the job without an interruption.
func (j *job) whole(t *testing.T) (want map[string][]byte, took time.Duration) {
	t.Helper()
	dir, began := t.TempDir(), time.Now()
	launch(t, j.bin, j.run(dir)...).ends(0)
	return contents(t, dir), time.Since(began)
}

// finish runs the job to its end in dir, where it may have been begun, and checks that
// the results are there, with the right bytes, and nothing else.
func (j *job) finish(t *testing.T, dir string, want map[string][]byte, extra ...string) event {
	t.Helper()
	e := launch(t, j.bin, j.run(dir, extra...)...).ends(0)
	checkResults(t, dir, want)
	return e
}

func checkResults(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	got := contents(t, dir)
	if a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
		t.Errorf("%s holds %v, want %v", dir, a, b)
	}
	for name, b := range want {
		if !bytes.Equal(got[name], b) {
			t.Errorf("%s differs from that of a run without interruption", name)
		}
	}
}

// contents are the files of a directory.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, e := range list {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// event has what tests want of any of the documents that a run writes.
type event struct {
	Type       string  `json:"type"`
	Code       int     `json:"exit_code"`
	Message    string  `json:"message"`
	Pairs      float64 `json:"pairs"`
	Total      float64 `json:"total_pairs"`
	Resumed    float64 `json:"resumed"`
	Recomputed int64   `json:"recomputed"`
	Newer      int     `json:"lost_since_checkpoint"`
	Held       int64   `json:"memory_total"`
	Anonymous  int64   `json:"peak_anonymous_memory"`
}

// process is a run with --json.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *bufio.Scanner
	stderr *bytes.Buffer
	last   event
	docs   int // that it wrote so far
}

func launch(t *testing.T, bin string, args ...string) *process {
	t.Helper()
	p := &process{t: t}
	p.cmd, p.stdout, p.stderr = start(t, bin, args...)
	return p
}

// next reads a document.
func (p *process) next() bool {
	p.t.Helper()
	if !p.stdout.Scan() {
		return false
	}
	p.last = event{}
	p.docs++
	if err := json.Unmarshal(p.stdout.Bytes(), &p.last); err != nil {
		p.t.Fatalf("%v: %s", err, p.stdout.Bytes())
	}
	return true
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// until waits until that share of the pairs is done. It asks for the status again and
// again: between two unasked ones, a run may be over.
func (p *process) until(share float64) {
	p.t.Helper()
	// From the plan on, the process knows the signal.
	for asked := false; p.next(); {
		switch p.last.Type {
		case "plan":
		case "status":
			asked = false
			if p.last.Pairs >= share*p.last.Total {
				return
			}
		default:
			continue
		}
		if !asked {
			asked = true
			p.signal(syscall.SIGUSR2)
		}
	}
	_ = p.cmd.Wait() // what it said says more
	p.t.Fatalf("the run ended before %.0f%% were done: %+v %s", 100*share, p.last, p.stderr)
}

// over waits for the end of the process.
func (p *process) over() syscall.WaitStatus {
	p.t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() }) // the exit status says it
	defer late.Stop()
	for p.next() {
	}
	_ = p.cmd.Wait() // that the exit code is not 0 is for callers to judge
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// ends waits for the end and checks the exit code, and that a failure is told in one
// sentence. It returns the last document.
func (p *process) ends(code int) event {
	p.t.Helper()
	p.over()
	return p.ended(code)
}

// ended is ends for a process that is over.
func (p *process) ended(code int) event {
	p.t.Helper()
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	said := p.stderr.String()
	if !status.Exited() || status.ExitStatus() != code {
		p.t.Fatalf("%v, want exit code %d; stderr: %.2000s", p.cmd.ProcessState, code, said)
	}
	if code == 0 {
		if said != "" || p.last.Type != "summary" {
			p.t.Errorf("a run that succeeds says %q at last and %q to stderr", p.last.Type, said)
		}
		return p.last
	}
	sentence(p.t, said)
	if p.last.Type != "error" || p.last.Code != code || "streamcqsa: "+p.last.Message+"\n" != said {
		p.t.Errorf("the last document is %+v, stderr %q", p.last, said)
	}
	return p.last
}

// sentence checks a message for people.
func sentence(t *testing.T, said string) {
	t.Helper()
	if !strings.HasPrefix(said, "streamcqsa: ") || strings.Count(said, "\n") != 1 || len(said) > 1000 {
		t.Errorf("stderr %q, want one line that says why", said)
	}
}

// checked has what tests want of a verdict on a journal.
type checked struct {
	Type     string `json:"type"`
	Pass     bool   `json:"pass"`
	Complete bool   `json:"complete"`
	Chunks   int    `json:"query_chunks"`
	Results  int    `json:"results"`
	States   int    `json:"states"`
	Newer    int    `json:"lost_since_checkpoint"`
	Damage   []struct {
		What   string `json:"what"`
		File   string `json:"file"`
		Offset int64  `json:"offset"`
		Reason string `json:"reason"`
	} `json:"damage"`
}

// verified checks what a run has kept, by its journal, and the exit code of that. It
// returns what is said to people too.
func verified(t *testing.T, bin, journal string, code int) (c checked, said string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(bin, "verify", "--journal", journal, "--json")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("verify --journal %s exits with %d, want %d: %s%s", journal, got, code, &stdout, &stderr)
		return c, stderr.String()
	}
	if code != 0 {
		sentence(t, stderr.String())
	}
	if code != 0 && code != exitVerify {
		return c, stderr.String()
	}
	if err := json.Unmarshal(stdout.Bytes(), &c); err != nil || c.Type != "verify_journal" || c.Pass != (code == 0) || c.Pass != (len(c.Damage) == 0) {
		t.Errorf("verify --journal exits with %d and says %s: %v", code, &stdout, err)
	}
	return c, stderr.String()
}

// stopped runs the job until that share is done and stops it, with all that is done
// saved.
func (j *job) stopped(t *testing.T, dir string, share float64, extra ...string) {
	t.Helper()
	p := launch(t, j.bin, j.run(dir, extra...)...)
	p.until(share)
	p.signal(syscall.SIGINT)
	p.ends(130)
	for _, ext := range unfinished {
		if _, err := os.Stat(j.base(dir) + ext); err != nil {
			t.Fatalf("after the stop: %v", err)
		}
	}
}

// unfinished are the ends of the names of an unfinished run's files.
var unfinished = []string{".partial", ".state", ".journal"}
