package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

// needGPU skips the test where there is no GPU, and fails it where there should be one.
func needGPU(t *testing.T) {
	t.Helper()
	if _, err := gpu.Devices(); err != nil {
		if os.Getenv("STREAMCQSA_TEST_GPU") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// Large scores go to the kernel in float64, which makes small files last a while.
var (
	gpuCQS  = jobSpec{cuda: true, shape: "1,4,2,49152,49152,64,64", lse: true, flags: "--scale 30 --divide cqs --chunks 7 --mem-budget 40MiB"}
	gpuRows = jobSpec{cuda: true, shape: "1,2,2,65536,70000,64,48", dtype: "bf16", format: "safetensors", layout: "bnhd",
		flags: "--scale 900 --divide rows --chunks 12 --mem-budget 40MiB --causal --causal-align bottom-right"}
)

// TestKill on a GPU.
func TestKillGPU(t *testing.T) {
	needGPU(t)
	n := 12
	if *kills > 0 {
		n = *kills
	}
	killAll(t, "streamcqsa", []killedJob{
		{name: "cqs 7 f32 npy lse, heads and groups", jobSpec: gpuCQS},
		{name: "rows bf16 safetensors causal", jobSpec: gpuRows},
		{name: "cqs 3 depth 2 f32 npy, state-dir elsewhere", elsewhere: true, jobSpec: jobSpec{cuda: true, shape: "1,1,1,524288,524288,64,64",
			flags: "--divide cqs --chunks 3 --depth 2 --mem-budget 160MiB"}},
	}, n)
}

// A stop ends in time, with everything saved, and on goes the run to the same bits.
func TestStopGPU(t *testing.T) {
	needGPU(t)
	for name, spec := range map[string]jobSpec{"cqs": gpuCQS, "rows": gpuRows} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "streamcqsa", spec)
			want, _ := j.whole(t)
			dir := t.TempDir()
			for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGUSR1: 138} {
				p := launch(t, j.bin, j.run(dir)...)
				p.until(0.2)
				p.signal(sig)
				p.ends(code)
				verified(t, j.bin, j.base(dir)+".journal", 0)
			}
			if e := j.finish(t, dir, want); e.Resumed == 0 || e.Recomputed > 0 {
				t.Errorf("the last run resumed %v pairs and computed %d query chunks again", e.Resumed, e.Recomputed)
			}
		})
	}
}

// A GPU that is lost in the middle of a run, whatever that was doing, ends it with a clear
// sentence. The next run goes on to the same bits.
func TestGPULost(t *testing.T) {
	needGPU(t)
	lost := losingDriver(t)
	j := newJob(t, "streamcqsa", gpuCQS)
	want, _ := j.whole(t)
	whole, resumed := false, 0
	for after := 0; !whole; after += 1 + after*2/3 {
		t.Run(strconv.Itoa(after), func(t *testing.T) {
			dir := t.TempDir()
			p := launch(t, "env", append(append(lost, fmt.Sprintf("LOSING_AFTER=%d", after), j.bin), j.run(dir, "--checkpoint-every", "20ms")...)...)
			if whole = p.over().ExitStatus() == 0; whole {
				checkResults(t, dir, want)
				return
			}
			if e := p.ended(exitTemporary); !strings.Contains(e.Message, "cuda:0") || !strings.Contains(e.Message, "CUDA_ERROR_LAUNCH_FAILED") {
				t.Errorf("the message does not say what the device said: %s", e.Message)
			}
			if exists(t, j.base(dir)+".journal") {
				verified(t, j.bin, j.base(dir)+".journal", 0)
			}
			e := j.finish(t, dir, want)
			if e.Resumed > 0 {
				resumed++
			}
			t.Logf("%s; the next run resumed %.2g of the pairs", p.last.Message, e.Resumed)
		})
	}
	if resumed == 0 {
		t.Error("no run had anything to resume")
	}
}

// Others take a GPU's memory between the plan and the run: that plans again with what is
// left, says so, and computes what it should. Where that is too little, another time may do.
func TestGPUMemoryTaken(t *testing.T) {
	needGPU(t)
	driver := losingDriver(t)
	spec := gpuCQS
	spec.flags = "--scale 30 --mem-budget 1GiB"
	j := newJob(t, "streamcqsa", spec)
	dir := t.TempDir()
	run := func(free int, args []string) (said string, code int) {
		cmd := exec.Command("env", append(append(driver, fmt.Sprintf("LOSING_MEMORY=%d", free<<20), j.bin), args...)...)
		out, _ := cmd.CombinedOutput() // the exit code is looked at
		return string(out), cmd.ProcessState.ExitCode()
	}
	if said, code := run(48, j.run(dir)); code != 0 || strings.Count(said, "planning again") != 1 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	verify := []string{"verify", "--layout", "bhnd", "--scale", "30", "--rows", "40", "--q", j.input("q"), "--k", j.input("k"), "--v", j.input("v"),
		"--o", filepath.Join(dir, "o.npy"), "--lse", filepath.Join(dir, "lse.npy")}
	if out, err := exec.Command(j.bin, verify...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if said, code := run(1, j.run(t.TempDir())); code != exitTemporary {
		t.Errorf("with 1 MiB free: exit code %d, want %d: %s", code, exitTemporary, said)
	}
}

// losingDriver builds a driver for which GPUs are lost after a while. It returns the
// environment in which programs find it.
func losingDriver(t *testing.T) []string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	real := regexp.MustCompile(`/\S*libcuda\.so\S*`).Find(maps) // needGPU has loaded it
	if real == nil {
		t.Fatal("the driver's library is not mapped")
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler")
	}
	dir := t.TempDir()
	include := filepath.Join("..", "..", "pkg", "gpu", "internal", "driver")
	args := []string{"-shared", "-fPIC", "-O1", "-I", include, "-o", filepath.Join(dir, "libcuda.so.1"), filepath.Join("testdata", "losing.c"), "-ldl"}
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return []string{"LD_LIBRARY_PATH=" + dir, "LOSING_DRIVER=" + string(real)}
}
