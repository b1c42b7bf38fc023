//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A verdict is a matter of the files and the sample: every digit of it is the same with any
// number of threads. Rows of many heads, and few of one, share the threads otherwise.
func TestVerdictOfAnyThreads(t *testing.T) {
	for _, shape := range []string{"2,6,2,150,300,24,40", "1,1,1,9,40000,32,32"} {
		dir := t.TempDir()
		must := func(args ...string) {
			t.Helper()
			if out, err := exec.Command("streamcqsa", args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
		must("gen", "--shape", shape, "--dtype", "f16", "--seed", "5", dir)
		args := []string{"--layout", "bhnd", "--causal", "--causal-align", "bottom-right", "--lse", filepath.Join(dir, "lse.npy")}
		for _, name := range []string{"q", "k", "v"} {
			args = append(args, "--"+name, filepath.Join(dir, name+".npy"))
		}
		out := filepath.Join(dir, "o.npy")
		must(append([]string{"run", "--quiet", "-o", out}, args...)...)
		var first string
		for threads := range 7 {
			cmd := exec.Command("streamcqsa", append([]string{"verify", "--json", "--o", out, "--rows", "0"}, args...)...)
			cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", threads+1))
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, got)
			}
			if first == "" {
				first = string(got)
			}
			if string(got) != first {
				t.Errorf("%s: %d threads say\n%s, one says\n%s", shape, threads+1, got, first)
			}
		}
	}
}

// A verification that would take minutes ends at the first signal: in the rows, and where
// the largest key is looked for.
func TestSignalStopsVerify(t *testing.T) {
	const rows, keys = 1 << 10, 1 << 28
	dir := t.TempDir()
	for name, x := range map[string]struct {
		dtype, shape string
		bytes        int64
	}{
		"q.npy":   {"<f2", fmt.Sprintf("%d, 64", rows), rows * 64 * 2},
		"k.npy":   {"<f2", fmt.Sprintf("%d, 64", keys), keys * 64 * 2},
		"lse.npy": {"<f4", fmt.Sprintf("%d,", rows), rows * 4},
	} {
		path, header := filepath.Join(dir, name), npyHeader(x.dtype, false, x.shape)
		if err := os.WriteFile(path, header, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(len(header))+x.bytes); err != nil { // holes
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	args := []string{"verify", "--layout", "nd", "--q", at("q.npy"), "--k", at("k.npy"), "--v", at("k.npy"), "--o", at("q.npy"), "--rows", "500"}
	for name, more := range map[string][]string{"rows": nil, "largest key": {"--lse", at("lse.npy")}} {
		for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
			t.Run(fmt.Sprintf("%s %v", name, sig), func(t *testing.T) {
				cmd, stdout, stderr := start(t, "streamcqsa", append(args, more...)...)
				time.Sleep(500 * time.Millisecond)
				began := time.Now()
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				endsWith(t, cmd, stdout, code)
				if d := time.Since(began); d > 3*time.Second {
					t.Errorf("it took %v to end", d)
				}
				if want := fmt.Sprintf("streamcqsa: stopped by %v\n", sig); stderr.String() != want {
					t.Errorf("it says %q, want %q", stderr.String(), want)
				}
			})
		}
	}
}
