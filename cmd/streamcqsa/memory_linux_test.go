package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var long = flag.Bool("long", false, "run the tests that take minutes and gigabytes of disk")

// allowance is what the process may take beyond its budget, as plan's help
// promises.
const allowance = 48 << 20

// program builds the program as it is shipped: the test binary is larger.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "streamcqsa-test")
	if err != nil {
		return "", err
	}
	atEnd = append(atEnd, func() { _ = os.RemoveAll(dir) }) // what it leaves is a temporary file
	path := filepath.Join(dir, "streamcqsa")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

func buildProgram(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs Go, to build the program")
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// memoryGroup is a control group with a memory limit, for one process.
type memoryGroup struct{ dir, limitFile string }

// set changes the limit.
func (g *memoryGroup) set(limit int64) error {
	return os.WriteFile(filepath.Join(g.dir, g.limitFile), fmt.Appendf(nil, "%d", limit), 0)
}

// met says whether the kernel had to take memory back to stay within the limit.
func (g *memoryGroup) met() bool {
	for _, x := range []struct{ file, some string }{{"memory.failcnt", `^[1-9]`}, {"memory.events", `(?m)^max [1-9]`}} { // of either kind of groups
		if b, err := os.ReadFile(filepath.Join(g.dir, x.file)); err == nil {
			return regexp.MustCompile(x.some).Match(b)
		}
	}
	return false
}

// in is the command line that runs another one in the group.
func (g *memoryGroup) in(args ...string) []string {
	return append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}, args...)
}

var errNoGroup = errors.New("no memory control group can be made")

// newMemoryGroup makes a group inside the one that this process is in.
func newMemoryGroup(t *testing.T, limit int64) (*memoryGroup, error) {
	t.Helper()
	for _, parent := range memoryCgroups() {
		g := &memoryGroup{filepath.Join(parent.dir, fmt.Sprintf("streamcqsa-test-%d-%d", os.Getpid(), time.Now().UnixNano())), parent.limitFile}
		if os.Mkdir(g.dir, 0o755) != nil {
			continue
		}
		if g.set(limit) != nil {
			_ = os.Remove(g.dir) // a group of a controller that is off
			continue
		}
		t.Cleanup(func() {
			for range 100 { // its last process may still be leaving
				if os.Remove(g.dir) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("%s can't be removed", g.dir)
		})
		return g, nil
	}
	return nil, errNoGroup
}

// measured is what a process did and took.
type measured struct {
	anonymous int64 // largest RssAnon seen from outside
	seconds   float64
	cpu       float64 // seconds of cores
	blocks    int64   // bytes read from disks
	stdout    []byte
}

// measure runs a program, in a group if there is one, and watches its memory
// by the kernel's account.
func measure(t *testing.T, g *memoryGroup, args ...string) measured {
	t.Helper()
	if g != nil {
		args = g.in(args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	quit, done := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		for {
			most = max(most, procTable(status)["RssAnon"])
			select {
			case <-quit:
				done <- most
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	err := cmd.Wait()
	m := measured{seconds: time.Since(start).Seconds(), cpu: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), blocks: blocksRead(cmd.ProcessState), stdout: stdout.Bytes()}
	close(quit)
	m.anonymous = <-done
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return m
}

// decodeLast decodes the last JSON line.
func decodeLast(t *testing.T, lines []byte, doc any) {
	t.Helper()
	lines = bytes.TrimSpace(lines)
	if err := json.Unmarshal(lines[bytes.LastIndexByte(lines, '\n')+1:], doc); err != nil {
		t.Fatal(err)
	}
}

func mib(n int64) string { return fmt.Sprintf("%.2f", float64(n)/(1<<20)) }

// A run takes its budget and little more, whatever part of the problem that is:
// by sampling from outside, and because a control group of that size holds it.
func TestMemoryStaysWithinBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for half a minute")
	}
	bin := buildProgram(t)
	fractions := []int64{1, 8, 64}
	problems := []struct {
		name, shape string
		flags       []string
	}{
		{"keys", "1,1,1,128,60000,64,64", nil},
		{"queries", "1,1,1,38000,128,64,64", nil},
	}
	if *long {
		fractions = []int64{1, 2, 4, 8, 16, 32, 64}
		problems[0].shape, problems[1].shape = "1,1,1,128,490000,64,64", "1,1,1,320000,128,64,64"
		problems = append(problems, struct {
			name, shape string
			flags       []string
		}{"heads", "2,8,2,60,60000,128,128", []string{"--causal", "--causal-align", "bottom-right"}})
	}
	for _, p := range problems {
		t.Run(p.name, func(t *testing.T) {
			dir := t.TempDir()
			measure(t, nil, bin, "gen", "--shape", p.shape, dir)
			problem := append([]string{"--layout", "bhnd"}, p.flags...)
			for _, x := range []string{"q", "k", "v"} {
				problem = append(problem, "--"+x, filepath.Join(dir, x+".npy"))
			}
			threads := []string{"--threads", "2"} // each takes memory
			var plan planDoc
			resident := append([]string{bin, "plan", "--json", "--divide", "cqs", "--chunks", "1", "--mem-budget", "64GiB"}, append(threads, problem...)...)
			if err := json.Unmarshal(measure(t, nil, resident...).stdout, &plan); err != nil {
				t.Fatal(err)
			}
			t.Logf("resident %s MiB; peak is anonymous memory, from outside", mib(plan.Total))
			t.Logf("%9s %12s %10s %10s %12s %9s %9s", "budget", "MiB", "used MiB", "peak MiB", "beyond MiB", "division", "seconds")
			for _, f := range fractions {
				budget := plan.Total / f
				out := filepath.Join(dir, "o.npy")
				args := append([]string{bin, "run", "--json", "-o", out, "--mem-budget", fmt.Sprintf("%dB", budget)}, append(threads, problem...)...)
				if f == 1 {
					args = append(args, "--divide", "cqs", "--chunks", "1")
				}
				// Kernel memory, such as page tables, counts too.
				group, err := newMemoryGroup(t, budget+allowance+4<<20)
				if err != nil {
					t.Logf("without a limit by the kernel: %v", err)
				}
				m := measure(t, group, args...)
				var first planDoc
				line, _, _ := bytes.Cut(m.stdout, []byte("\n"))
				if err := json.Unmarshal(line, &first); err != nil {
					t.Fatal(err)
				}
				var last summaryDoc
				decodeLast(t, m.stdout, &last)
				t.Logf("%9s %12s %10s %10s %12s %9s %9.2f", fmt.Sprintf("1/%d", f), mib(budget), mib(last.Total), mib(m.anonymous), mib(m.anonymous-last.Total), first.Division.Kind+" "+strconv.Itoa(first.Division.KeyChunks), m.seconds)
				if last.Total > budget {
					t.Errorf("budget %d bytes: %d used", budget, last.Total)
				}
				if m.anonymous > last.Total+allowance {
					t.Errorf("budget %d bytes: %d used, but %d bytes of anonymous memory", budget, last.Total, m.anonymous)
				}
				if last.Anonymous > m.anonymous+allowance/8 || last.Anonymous < m.anonymous-allowance/8 {
					t.Errorf("it reports a peak of %d bytes, from outside it is %d", last.Anonymous, m.anonymous)
				}
				measure(t, nil, append([]string{bin, "verify", "--o", out, "--rows", "40"}, problem...)...)
			}
		})
	}
}

// The number of threads, and how far ahead is loaded, change no bit: for one
// plan, whose slots do not depend on them.
func TestThreadsChangeNoBit(t *testing.T) {
	dir := t.TempDir()
	measure(t, nil, "streamcqsa", "gen", "--shape", "1,4,2,700,900,32,32", dir)
	problem := []string{"--layout", "bhnd", "--causal", "--causal-align", "bottom-right"}
	for _, x := range []string{"q", "k", "v"} {
		problem = append(problem, "--"+x, filepath.Join(dir, x+".npy"))
	}
	for _, divide := range [][]string{{"--divide", "cqs", "--chunks", "7"}, {"--divide", "cqs", "--chunks", "3", "--depth", "2"}, {"--divide", "rows", "--chunks", "5"}} {
		var want []byte
		var division divisionDoc
		for i, extra := range [][]string{{"--threads", "1"}, {"--threads", "2"}, {"--threads", "5"}, {"--threads", "3", "--prefetch", "-1"}, {"--threads", "3", "--prefetch", "7"}} {
			out := filepath.Join(dir, "o.npy")
			args := append(append(append([]string{"streamcqsa", "run", "--json", "-o", out}, problem...), divide...), extra...)
			// The same room for slots, whatever the scratch of the threads is.
			args = append(args, "--mem-budget", fmt.Sprintf("%dB", 700<<10+scratchOf(t, extra[1], problem)))
			m := measure(t, nil, args...)
			var plan planDoc
			line, _, _ := bytes.Cut(m.stdout, []byte("\n"))
			if err := json.Unmarshal(line, &plan); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				want, division = got, plan.Division
				measure(t, nil, append([]string{"streamcqsa", "verify", "--o", out, "--rows", "0"}, problem...)...)
				continue
			}
			if fmt.Sprint(plan.Division) != fmt.Sprint(division) {
				t.Errorf("%v %v: another plan: %+v, not %+v", divide, extra, plan.Division, division)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%v %v: another result", divide, extra)
			}
		}
	}
}

// scratchOf is what that many threads take beside slots.
func scratchOf(t *testing.T, threads string, problem []string) int64 {
	t.Helper()
	var plan planDoc
	args := append([]string{"streamcqsa", "plan", "--json", "--mem-budget", "1GiB", "--threads", threads}, problem...)
	if err := json.Unmarshal(measure(t, nil, args...).stdout, &plan); err != nil {
		t.Fatal(err)
	}
	for _, u := range plan.Memory {
		if u.Purpose == "scratch" {
			return u.Bytes
		}
	}
	t.Fatal("the plan has no scratch")
	return 0
}
