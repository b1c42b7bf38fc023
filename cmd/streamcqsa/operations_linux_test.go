package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// shellBlocks are the shell scripts in docs/operations.md.
func shellBlocks(t *testing.T) (blocks []string) {
	t.Helper()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range shellBlock.FindAllSubmatch(doc, -1) {
		blocks = append(blocks, string(m[1]))
	}
	return blocks
}

// What docs/operations.md tells people to type is shell.
func TestOperationsSyntax(t *testing.T) {
	blocks := shellBlocks(t)
	if len(blocks) < 4 {
		t.Fatalf("docs/operations.md has %d blocks of shell", len(blocks))
	}
	for _, b := range blocks {
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(b)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s%s", err, out, b)
		}
	}
}

// recipe is a script of docs/operations.md in a directory with inputs.
type recipe struct {
	*job
	dir, script string
	want        map[string][]byte
}

// newRecipe finds the script that has a comment with its name.
func newRecipe(t *testing.T, name string) *recipe {
	t.Helper()
	notShort(t)
	r := &recipe{job: newJob(t, "streamcqsa", jobSpec{shape: "1,4,3000,64", flags: "--divide cqs --chunks 13"}), script: filepath.Join(t.TempDir(), name)}
	r.dir = filepath.Dir(r.input("q"))
	for _, b := range shellBlocks(t) {
		if strings.Contains(b, "# "+name+"\n") {
			if err := os.WriteFile(r.script, []byte(b), 0o666); err != nil {
				t.Fatal(err)
			}
			r.want, _ = r.whole(t)
			return r
		}
	}
	t.Fatalf("docs/operations.md has no script %s", name)
	return nil
}

// start begins the script.
func (r *recipe) start(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("bash", r.script)
	cmd.Dir = r.dir
	cmd.Env = append(append(os.Environ(), envPrefix+"KERNEL=portable", envPrefix+"CHECKPOINT_EVERY=10ms",
		envPrefix+"DIVIDE=cqs", envPrefix+"CHUNKS=13"), env...) // else it may be one batch, which is finished first
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	return cmd
}

// child waits until the script has begun a run that has something to resume, and is none
// of those.
func (r *recipe) child(t *testing.T, cmd *exec.Cmd, known ...int) int {
	t.Helper()
	for range 3000 {
		time.Sleep(10 * time.Millisecond)
		l, err := stream.ReadJournal(r.base(r.dir) + ".journal")
		if err != nil || slices.Contains(known, l.Pid) {
			continue
		}
		// pid (name) state parent
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.Pid))
		if f := strings.Fields(string(stat)); err == nil && len(f) > 3 && f[3] == strconv.Itoa(cmd.Process.Pid) {
			return l.Pid
		}
	}
	t.Fatal("the script starts no run")
	return 0
}

// ends waits for the script.
func (r *recipe) ends(t *testing.T, cmd *exec.Cmd, code int) {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v, want exit code %d", cmd.ProcessState, code)
	}
	if code != 0 {
		return
	}
	if got, err := os.ReadFile(r.base(r.dir)); err != nil || string(got) != string(r.want["o.npy"]) {
		t.Errorf("%v: the result is another than that of one run", err)
	}
	if left, err := filepath.Glob(r.base(r.dir) + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// The loop of docs/operations.md runs a program again that is killed, and one that is
// stopped, and not one that fails.
func TestOperationsLoop(t *testing.T) {
	r := newRecipe(t, "again.sh")
	cmd := r.start(t)
	var known []int
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGUSR1} {
		pid := r.child(t, cmd, known...)
		known = append(known, pid)
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	r.ends(t, cmd, 0)

	if err := os.Truncate(r.input("v"), 1000); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("bash", r.script)
	cmd.Dir = r.dir
	_ = cmd.Run() // the exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != exitInput {
		t.Errorf("of a bad input the loop makes exit code %d", got)
	}
}

// The batch script of docs/operations.md: Slurm's signal before the end of the time queues
// the job again, its SIGTERM does not.
func TestOperationsSlurm(t *testing.T) {
	r := newRecipe(t, "attention.sbatch")
	bin, told := t.TempDir(), filepath.Join(t.TempDir(), "told")
	stub := "#!/bin/sh\necho \"$@\" >>'" + told + "'\n"
	if err := os.WriteFile(filepath.Join(bin, "scontrol"), []byte(stub), 0o777); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "SLURM_JOB_ID=42", "SLURM_CPUS_PER_TASK=2", "SLURM_MEM_PER_NODE=64"}
	for _, x := range []struct {
		sig  syscall.Signal
		code int
		told string
	}{{syscall.SIGUSR1, 138, "requeue 42\n"}, {syscall.SIGTERM, 143, ""}, {0, 0, ""}} {
		cmd := r.start(t, env...)
		if x.sig != 0 {
			r.child(t, cmd)
			if err := cmd.Process.Signal(x.sig); err != nil {
				t.Fatal(err)
			}
		}
		r.ends(t, cmd, x.code)
		b, err := os.ReadFile(told)
		if err != nil && !errors.Is(err, os.ErrNotExist) || string(b) != x.told {
			t.Errorf("%v: Slurm was told %q, want %q", x.sig, b, x.told)
		}
		_ = os.Remove(told) // it may not be there
	}
}
