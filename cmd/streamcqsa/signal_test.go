//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs the program as a process of its own.
func start(t *testing.T, name string, args ...string) (cmd *exec.Cmd, stdout *bufio.Scanner, stderr *bytes.Buffer) {
	t.Helper()
	cmd = exec.Command(name, args...)
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	stdout = bufio.NewScanner(out)
	stdout.Buffer(nil, 1<<20)
	return cmd, stdout, stderr
}

// endsWith waits for a process and checks its exit code.
func endsWith(t *testing.T, cmd *exec.Cmd, stdout *bufio.Scanner, code int) {
	t.Helper()
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	for stdout.Scan() {
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d (%v), want %d", got, cmd.ProcessState, code)
	}
}

// holes makes inputs of n rows without data, and returns the arguments that read them.
func holes(t *testing.T, dir string, n int) []string {
	t.Helper()
	const d = 64
	args := []string{"--layout", "nd", "--mem-budget", "48MiB", "--divide", "cqs", "--chunks", "31", "--kernel", "portable"}
	for _, name := range []string{"q", "k", "v"} {
		path := filepath.Join(dir, name+".npy")
		header := npyHeader("<f4", false, fmt.Sprintf("%d, %d", n, d))
		if err := os.WriteFile(path, header, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(len(header))+int64(n)*d*4); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+name, path)
	}
	return args
}

// A signal ends a run soon, with its own exit code. An older result under the same name
// stays as it was, and the next run goes on where this one stopped.
func TestSignalStopsRun(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGUSR1: 138} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			out := j.base(dir)
			if err := os.WriteFile(out, []byte("an older result"), 0o666); err != nil {
				t.Fatal(err)
			}
			p := launch(t, j.bin, j.run(dir)...)
			p.until(0.3)
			for _, ext := range []string{".partial", ".state"} {
				if _, err := os.Stat(out + ext); err != nil {
					t.Errorf("in the middle of the run: %v", err)
				}
			}
			began := time.Now()
			p.signal(sig)
			e := p.ends(code)
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("it took %v to stop", d)
			}
			if !strings.HasPrefix(e.Message, "stopped by ") {
				t.Errorf("it says %q", e.Message)
			}
			left := contents(t, dir)
			if string(left["o.npy"]) != "an older result" {
				t.Errorf("the older result is now %d bytes", len(left["o.npy"]))
			}
			for _, ext := range unfinished {
				if _, ok := left["o.npy"+ext]; !ok || len(left) != 4 {
					t.Errorf("of %d files, %s is there: %v", len(left), ext, ok)
				}
			}
			if e := j.finish(t, dir, want); e.Resumed < 0.3 || e.Recomputed != 0 {
				t.Errorf("stopped after 30%% or more, it resumed %.1f%% and computed %d chunks again", 100*e.Resumed, e.Recomputed)
			}
		})
	}
}

// Two signals in a row end a run at once, by whichever came second; what it had saved
// is good.
func TestSecondSignalStopsRun(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	dir := t.TempDir()
	p := launch(t, j.bin, j.run(dir, "--checkpoint-every", "10ms")...)
	p.until(0.3)
	began := time.Now()
	p.signal(syscall.SIGINT)
	p.signal(syscall.SIGTERM)
	if s := p.over(); !s.Exited() || s.ExitStatus() != 130 && s.ExitStatus() != 143 {
		t.Errorf("%v, want the exit code of a signal", p.cmd.ProcessState)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v to end", d)
	}
	j.finish(t, dir, want)
}

// SIGUSR2 asks for the status, of programs and of people, and stops nothing.
func TestSignalAsksForStatus(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	dir := t.TempDir()
	p := launch(t, j.bin, j.run(dir)...)
	var last float64
	for share := 0.1; share < 0.6; share += 0.2 {
		if p.until(share); p.last.Pairs < last {
			t.Errorf("%v pairs are done, after %v", p.last.Pairs, last)
		}
		last = p.last.Pairs
	}
	p.ends(0)
	checkResults(t, dir, want)

	args := slices.DeleteFunc(j.run(t.TempDir()), func(a string) bool { return a == "--json" })
	cmd := exec.Command(j.bin, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.HasPrefix(lines.Text(), "plan ") {
			if err := cmd.Process.Signal(syscall.SIGUSR2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %q", err, said)
	}
	if n := strings.Count(strings.Join(said, "\n"), "% of pairs"); n != 1 {
		t.Errorf("asked once, it said how far it is %d times: %q", n, said)
	}
}

// A run whose time is over stops like one that is told to: with enough runs the result
// comes, and no run does what another did.
func TestMaxDuration(t *testing.T) {
	j := stopJob(t)
	want, took := j.whole(t)
	dir := t.TempDir()
	var resumed float64
	for n := 1; ; n++ {
		// The start of the process takes time too.
		p := launch(t, j.bin, j.run(dir, "--max-duration", (took/4).String())...)
		if p.over().ExitStatus() == 0 {
			e := p.ended(0)
			if n < 2 || e.Resumed <= 0 {
				t.Errorf("run %d ended, with %.1f%% done before", n, 100*e.Resumed)
			}
			checkResults(t, dir, want)
			t.Logf("%d runs", n)
			return
		}
		p.ended(exitMaxDuration)
		now := shareDone(t, j, dir)
		if now <= resumed {
			t.Fatalf("run %d went from %.1f%% to %.1f%%", n, 100*resumed, 100*now)
		}
		resumed = now
	}
}

const exitMaxDuration = 10

// shareDone is what status says of the job in dir.
func shareDone(t *testing.T, j *job, dir string) float64 {
	t.Helper()
	b, err := exec.Command(j.bin, "status", "--json", j.base(dir)).Output()
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	var e event
	if err := json.Unmarshal(b, &e); err != nil || e.Total == 0 {
		t.Fatalf("status: %v: %s", err, b)
	}
	return e.Pairs / e.Total
}

// An input that changes while it is read gives no result, and an older one stays.
func TestInputChangesDuringRun(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written to": func(path string) error { return os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)) },
		"replaced": func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(path+".new", b, 0o666), os.Rename(path+".new", path))
		},
		"truncated": func(path string) error { return os.Truncate(path, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "o.npy")
			if err := os.WriteFile(out, []byte("an older result"), 0o666); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"run", "--json", "-o", out}, holes(t, dir, 1<<12)...)
			cmd, stdout, stderr := start(t, "streamcqsa", args...)
			if !stdout.Scan() { // the plan: all inputs are open
				t.Fatal("no plan")
			}
			path := filepath.Join(dir, "v.npy")
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			endsWith(t, cmd, stdout, exitInput)
			if s := stderr.String(); !strings.Contains(s, path) || strings.Count(s, "\n") != 1 {
				t.Errorf("stderr %q, want one line that names %s", s, path)
			}
			if got, err := os.ReadFile(out); err != nil || string(got) != "an older result" {
				t.Errorf("the older result is now %q, %v", got, err)
			}
			if left, err := filepath.Glob(out + ".*"); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// The second signal ends a process that the first one did not.
func TestSecondSignal(t *testing.T) {
	cmd, stdout, _ := start(t, "stubborn")
	for _, step := range []struct {
		wait string
		send syscall.Signal
	}{{"ready", syscall.SIGINT}, {"stopping", syscall.SIGTERM}} {
		if !stdout.Scan() || stdout.Text() != step.wait {
			t.Fatalf("said %q, want %q", stdout.Text(), step.wait)
		}
		if err := cmd.Process.Signal(step.send); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	endsWith(t, cmd, stdout, 143)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v to end", d)
	}
}
