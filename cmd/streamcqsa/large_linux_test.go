package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// diskDir is a directory on a real disk with that much room, for a long test.
func diskDir(t *testing.T, room int64) string {
	t.Helper()
	if !*long {
		t.Skip("takes gigabytes of disk; -long runs it")
	}
	dir := t.TempDir()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is in memory; set TMPDIR to a directory on a disk", dir)
	}
	if free := int64(s.Bavail) * s.Bsize; free < room {
		t.Skipf("%s has %d bytes free, the test needs %d", dir, free, room)
	}
	return dir
}

// chill takes files out of the page cache.
func chill(t *testing.T, paths []string) {
	t.Helper()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// readFiles is a program that reads files in order, 4 MiB at a time: the rate
// to compare with.
func readFiles() {
	buf := make([]byte, 4<<20)
	for _, path := range os.Args[1:] {
		f, err := os.Open(path)
		if err != nil {
			log.Fatal(err)
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		if err != io.EOF {
			log.Fatal(err)
		}
	}
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// keysOnDisk is a problem whose time is the reading of K and V: few queries.
func keysOnDisk(t *testing.T, bin, dir string, keys int) (paths, problem []string, bytes int64) {
	t.Helper()
	measure(t, nil, bin, "gen", "--shape", fmt.Sprintf("1,1,1,4,%d,64,64", keys), dir)
	problem = []string{"--layout", "bhnd"}
	for _, x := range []string{"q", "k", "v"} {
		path := filepath.Join(dir, x+".npy")
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		paths, problem, bytes = append(paths, path), append(problem, "--"+x, path), bytes+fi.Size()
	}
	return paths, problem, bytes
}

func init() { programs["readfiles"] = readFiles }

// Files six times as large as the memory that the kernel grants: the run needs
// not much longer than reading them. (With the portable kernel the cores may
// set the pace.)
func TestLargerThanMemory(t *testing.T) {
	dir := diskDir(t, 5<<30)
	bin := buildProgram(t)
	const limit = 512 << 20
	if _, err := newMemoryGroup(t, limit); err != nil {
		t.Skip(err)
	}
	paths, problem, size := keysOnDisk(t, bin, dir, 6_000_000)
	out := filepath.Join(dir, "o.npy")
	cold := func(args ...string) measured {
		chill(t, paths)
		group, err := newMemoryGroup(t, limit)
		if err != nil {
			t.Fatal(err)
		}
		m := measure(t, group, args...)
		if m.blocks < size*9/10 {
			t.Errorf("only %d of %d bytes came from the disk: the files were not cold", m.blocks, size)
		}
		t.Logf("%-10s %7.1f MB/s, %6.2f s, %5.2f s of cores; anonymous memory %s MiB, with page cache %s", filepath.Base(args[0]), float64(size)/m.seconds/1e6, m.seconds, m.cpu, mib(m.anonymous), group.peak())
		return m
	}
	var disk, run []float64
	for range 5 {
		disk = append(disk, cold(append([]string{"readfiles"}, paths...)...).seconds)
		m := cold(append([]string{bin, "run", "--json", "-o", out, "--mem-budget", "64MiB"}, problem...)...)
		var s summaryDoc
		decodeLast(t, m.stdout, &s)
		t.Logf("           kernel busy %.2f s, loads %.2f s, kernel idle %.2f s", s.Seconds.Kernel, s.Seconds.Load, s.Seconds.Wait)
		run = append(run, m.seconds)
	}
	ratio := median(disk) / median(run)
	t.Logf("%s MiB of files, %d MiB of memory: reading takes %.2f s, the run %.2f s: %.0f%% of the disk's rate", mib(size), limit>>20, median(disk), median(run), 100*ratio)
	if !(ratio >= 0.8) && cpu.New(0).Kernel() != cpu.Portable {
		t.Errorf("want 80%%")
	}
	measure(t, nil, append([]string{bin, "verify", "--o", out, "--rows", "0"}, problem...)...)
}

// hole makes an npy file of bf16 without data: zeros, and some rows.
func hole(t *testing.T, path string, n, d int, rows map[int]float64) {
	t.Helper()
	header := npyHeader("<V2", false, fmt.Sprintf("%d, %d", n, d))
	if err := os.WriteFile(path, header, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(header)) + int64(n)*int64(d)*2); err != nil {
		t.Fatal(err)
	}
	for i, x := range rows {
		row := make([]byte, 2*d)
		for c := range d {
			attention.BF16.Put(row[2*c:], x)
		}
		if _, err := f.WriteAt(row, int64(len(header))+int64(i)*int64(d)*2); err != nil {
			t.Fatal(err)
		}
	}
}

// Files of more than 2^31 elements and more than 2^32 bytes. All keys but two
// are zero, so that all weights but theirs are 1, and O has a closed form.
func TestMoreThan2To31Elements(t *testing.T) {
	dir := diskDir(t, 1<<30)
	bin := buildProgram(t)
	const n, d = 34_000_000, 64 // 2.18 * 10^9 elements
	const far = 33_600_000      // the first element of this row is the 2^31st and more
	path := func(x string) string { return filepath.Join(dir, x+".npy") }
	// Scores: 8 * 0.125 * 64 / 8 = 8 for row far, 12 for the last row.
	hole(t, path("q"), 2, d, map[int]float64{0: 1, 1: 1})
	hole(t, path("k"), n, d, map[int]float64{far: 1, n - 1: 1.5})
	hole(t, path("v"), n, d, map[int]float64{0: 3, far: 5, n - 1: 7})
	problem := []string{"--q", path("q"), "--k", path("k"), "--v", path("v"), "--dtype", "bf16", "--out-dtype", "f32",
		"--causal", "--causal-align", "bottom-right", "--mem-budget", "64MiB"}
	for _, divide := range []string{"cqs", "rows"} {
		m := measure(t, nil, append([]string{bin, "run", "--json", "-o", path("o"), "--divide", divide}, problem...)...)
		t.Logf("%s: %.1f s", divide, m.seconds)
		o, err := tensorfile.Open(tensorfile.Spec{Path: path("o")})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, 2*d)
		attention.F32.Widen(got, o.Bytes())
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			sum, weights := 3+5*math.Exp(8), float64(n-2)+math.Exp(8)
			if i == 1 { // only the last query sees the last key
				sum, weights = sum+7*math.Exp(12), weights+math.Exp(12)
			}
			for c, x := range got[i*d : (i+1)*d] {
				if want := sum / weights; !(math.Abs(float64(x)/want-1) < 2e-7) {
					t.Fatalf("%s: row %d, column %d is %g, want %g", divide, i, c, x, want)
				}
			}
		}
	}
}

// The same for queries and the output.
func TestMoreThan2To31OutputElements(t *testing.T) {
	dir := diskDir(t, 7<<30)
	bin := buildProgram(t)
	const n, d = 34_000_000, 64
	const far = 33_600_000
	path := func(x string) string { return filepath.Join(dir, x+".npy") }
	hole(t, path("q"), n, d, map[int]float64{1: 1, far: 1, n - 1: 2})
	hole(t, path("k"), 2, d, map[int]float64{1: 0.125})
	hole(t, path("v"), 2, d, map[int]float64{0: 4, 1: 8})
	m := measure(t, nil, bin, "run", "--json", "-o", path("o"), "--q", path("q"), "--k", path("k"), "--v", path("v"), "--dtype", "bf16", "--mem-budget", "64MiB")
	t.Logf("%.1f s", m.seconds)
	o, err := tensorfile.Open(tensorfile.Spec{Path: path("o"), DType: attention.BF16})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for i, score := range map[int]float64{0: 0, 1: 1, 2: 0, 70_000: 0, far - 1: 0, far: 1, far + 1: 0, n - 2: 0, n - 1: 2} {
		w := math.Exp(score)
		exact := (4 + 8*w) / (1 + w)
		want := make([]byte, 2*d)
		for c := range d {
			attention.BF16.Put(want[2*c:], exact)
		}
		if got := o.Bytes()[int64(i)*2*d:][:2*d]; string(got) != string(want) {
			t.Errorf("row %d is % x..., want % x...", i, got[:4], want[:4])
		}
	}
}

// More rows, heads and batch entries than 16 bits count.
func TestMoreThan2To16(t *testing.T) {
	for _, shape := range []string{"1,1,1,70000,5,4,4", "1,1,1,5,70000,4,4", "1,70000,35000,2,3,2,2", "70000,1,1,2,3,2,2"} {
		t.Run(shape, func(t *testing.T) {
			dir := t.TempDir()
			measure(t, nil, "streamcqsa", "gen", "--shape", shape, dir)
			out := filepath.Join(dir, "o.npy")
			problem := []string{"--layout", "bhnd"}
			for _, x := range []string{"q", "k", "v"} {
				problem = append(problem, "--"+x, filepath.Join(dir, x+".npy"))
			}
			m := measure(t, nil, append([]string{"streamcqsa", "run", "--json", "-o", out, "--mem-budget", "1MiB", "--threads", "2"}, problem...)...)
			t.Logf("%.2f s", m.seconds)
			v := measure(t, nil, append([]string{"streamcqsa", "verify", "--json", "--o", out, "--rows", "2000"}, problem...)...)
			var verdict verdict
			if err := json.Unmarshal(v.stdout, &verdict); err != nil || !verdict.Pass {
				t.Errorf("%v: %+v", err, verdict)
			}
		})
	}
}

// peak is the most memory of any kind that the group held.
func (g *memoryGroup) peak() string {
	for _, name := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
		if b, err := os.ReadFile(filepath.Join(g.dir, name)); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err == nil {
				return mib(n) + " MiB"
			}
		}
	}
	return "unknown"
}

// blocksRead is what a process that ended has read from disks.
func blocksRead(s *os.ProcessState) int64 {
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		return u.Inblock * 512
	}
	return 0
}
