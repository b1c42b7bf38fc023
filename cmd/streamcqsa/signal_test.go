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

// longProblem makes inputs whose run takes minutes, as holes, and returns the
// arguments that read them.
func longProblem(t *testing.T, dir string) []string { return holes(t, dir, 1<<18) }

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

// A signal ends a run soon, with its own exit code; nothing half-done is left,
// and an older result under the same name stays as it was.
func TestSignalStopsRun(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "o.npy")
			if err := os.WriteFile(out, []byte("an older result"), 0o666); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"run", "--json", "-o", out}, longProblem(t, dir)...)
			cmd, stdout, stderr := start(t, "streamcqsa", args...)
			var last struct {
				Type  string  `json:"type"`
				Pairs float64 `json:"pairs"`
			}
			for last.Pairs == 0 && stdout.Scan() {
				if err := json.Unmarshal(stdout.Bytes(), &last); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{out + ".partial", out + ".state"} {
				if _, err := os.Stat(name); err != nil {
					t.Errorf("in the middle of the run: %v", err)
				}
			}
			began := time.Now()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			endsWith(t, cmd, stdout, 128+int(sig))
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("it took %v to stop", d)
			}
			if s := stderr.String(); !strings.HasPrefix(s, "streamcqsa: stopped by ") || strings.Count(s, "\n") != 1 {
				t.Errorf("stderr %q, want one line", s)
			}
			if got, err := os.ReadFile(out); err != nil || string(got) != "an older result" {
				t.Errorf("the older result is now %q, %v", got, err)
			}
			left, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) != 4 { // q, k, v and the older result
				t.Errorf("left behind: %v", left)
			}
		})
	}
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
