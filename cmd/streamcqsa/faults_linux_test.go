package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
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

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// What the world does to a run, with real processes and real files: each fault ends it in
// one sentence that names what is to blame, with the right exit code, and nothing is lost
// that could be kept.

// faultJob is one to disturb, in any layout.
func faultJob(t *testing.T, layout string) *job {
	t.Helper()
	s := plainJob
	s.shape, s.layout = "1,8,4,1300,1400,32,32", layout
	return newJob(t, "streamcqsa", s)
}

// notShort skips tests that need many runs: the race detector makes them slow, and finds
// nothing in them that it does not find in others.
func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the program many times")
	}
}

// at begins a run, and does something to the world when that share of it is done.
func (j *job) at(t *testing.T, dir string, share float64, do func() error, extra ...string) *process {
	t.Helper()
	p := launch(t, j.bin, j.run(dir, append(extra, "--checkpoint-every", "10ms")...)...)
	p.until(share)
	if err := do(); err != nil {
		t.Fatal(err)
	}
	return p
}

// says checks that a message names what it should.
func says(t *testing.T, e event, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("it says %q, want a word of %q", e.Message, w)
		}
	}
}

// An input that gets shorter under its mapping: reading it is a fault where rows of heads
// alternate, and comes to an end where they don't.
func TestInputCutShort(t *testing.T) {
	for _, layout := range []string{"bhnd", "bnhd"} {
		for _, x := range []string{"q", "k", "v"} {
			if testing.Short() && x != "v" {
				continue
			}
			t.Run(layout+" "+x, func(t *testing.T) {
				j, dir := faultJob(t, layout), t.TempDir()
				p := j.at(t, dir, 0.1, func() error { return os.Truncate(j.input(x), 10000) })
				says(t, p.ends(exitInput), "changed", j.input(x))
				if left := contents(t, dir); len(left) != 0 {
					t.Errorf("%d files are left of a run whose input is not what it was", len(left))
				}
			})
		}
	}
}

// An input that has another name for a while costs no work.
func TestInputMovedAway(t *testing.T) {
	notShort(t)
	j, dir := faultJob(t, "bhnd"), t.TempDir()
	want, _ := j.whole(t)
	v := j.input("v")
	p := j.at(t, dir, 0.1, func() error { return os.Rename(v, v+".moved") })
	says(t, p.ends(exitInput), v)
	says(t, launch(t, j.bin, j.run(dir)...).ends(exitInput), v)
	if err := os.Rename(v+".moved", v); err != nil {
		t.Fatal(err)
	}
	if e := j.finish(t, dir, want); e.Resumed != 1 {
		t.Errorf("of a run that only lacked its name at the end, %v was resumed", e.Resumed)
	}
}

// A disk that can't deliver a page of a file that is as it was: here one that is full,
// and has no room for what a hole of the file would become when it is read.
func TestUnreadableInput(t *testing.T) {
	notShort(t)
	j, dir := faultJob(t, "bnhd"), t.TempDir()
	disk := smallDisk(t, 2<<20)
	v, hole := filepath.Join(disk, "v.npy"), int64(500<<10)
	b, err := os.ReadFile(j.input("v"))
	if err != nil {
		t.Fatal(err)
	}
	clear(b[hole:])
	if err := errors.Join(os.WriteFile(j.input("v"), b, 0o666), os.WriteFile(v, b[:hole], 0o666), os.Truncate(v, int64(len(b)))); err != nil {
		t.Fatal(err)
	}
	want, _ := j.whole(t)
	j.args[slices.Index(j.args, "--v")+1] = v
	filler := filepath.Join(disk, "filler")
	if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	says(t, launch(t, j.bin, j.run(dir, "--checkpoint-every", "1ms")...).ends(exitOther), v, "disk")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	j.finish(t, dir, want)
}

var numbers = regexp.MustCompile(`\d+`)

// A disk of any size too small: the run ends where it runs out, and goes on when the disk
// has grown.
func TestFullDiskAtEveryStage(t *testing.T) {
	notShort(t)
	j := faultJob(t, "bhnd")
	j.lse, j.results = "lse.npy", []string{"o.npy", "lse.npy"}
	want, _ := j.whole(t)
	output := int64(len(want["o.npy"]))
	ended := make(map[string]int) // by what ran out
	var sizes []int64
	for x := int64(16 << 10); x < 2*output; x *= 3 {
		sizes = append(sizes, x, output+x)
	}
	for i, size := range sizes {
		dir := smallDisk(t, size)
		extra := []string{"--checkpoint-every", "1ms"}
		if i%4 < 2 { // no state has to leave its slot, but checkpoints save them
			extra = append(extra, "--divide", "rows")
		}
		p := launch(t, j.bin, j.run(dir, extra...)...)
		if p.over().ExitStatus() == 0 {
			p.ended(0)
			checkResults(t, dir, want)
			ended["nothing"]++
			continue
		}
		e := p.ended(exitNoFit)
		ended[numbers.ReplaceAllString(strings.ReplaceAll(e.Message, dir, ""), "N")]++
		for name := range contents(t, dir) {
			if slices.Contains(j.results, name) {
				t.Errorf("%d bytes: a run that failed left %s", size, name)
			}
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 16<<20)); err != nil {
			t.Fatal(err)
		}
		j.finish(t, dir, want, extra...)
	}
	for said, n := range ended {
		t.Logf("%3d  %s", n, said)
	}
	if len(ended) < 3 || ended["nothing"] == 0 {
		t.Errorf("ended by %v: the sizes meet too few stages", ended)
	}
}

// Where a result that is complete can't get its name, it waits, and no work is done again.
func TestResultHasNoPlace(t *testing.T) {
	notShort(t)
	j := faultJob(t, "bhnd")
	want, _ := j.whole(t)
	t.Run("a full disk", func(t *testing.T) {
		dir, state := smallDisk(t, 64<<10), []string{"--state-dir", t.TempDir(), "--checkpoint-every", "10ms"}
		says(t, launch(t, j.bin, j.run(dir, state...)...).ends(exitNoFit), dir)
		if left := contents(t, dir); len(left) != 0 {
			t.Errorf("%d files are left on the full disk", len(left))
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 16<<20)); err != nil {
			t.Fatal(err)
		}
		if e := j.finish(t, dir, want, state...); e.Resumed != 1 {
			t.Errorf("%v was resumed", e.Resumed)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		dir := t.TempDir()
		p := j.at(t, dir, 0.2, func() error { return os.Mkdir(j.base(dir), 0o777) })
		says(t, p.ends(exitOther), j.base(dir), "is kept")
		if err := os.Remove(j.base(dir)); err != nil {
			t.Fatal(err)
		}
		if e := j.finish(t, dir, want); e.Resumed != 1 {
			t.Errorf("%v was resumed", e.Resumed)
		}
	})
}

// Files of a run that others remove or empty while it works: the result is right, or
// there is none and a sentence that says why, and the next run has it.
func TestFilesLostDuringRun(t *testing.T) {
	j := faultJob(t, "bhnd")
	want, _ := j.whole(t)
	for _, ext := range unfinished {
		for name, lose := range map[string]func(string) error{
			"removed": os.Remove,
			"emptied": func(path string) error { return os.Truncate(path, 0) },
			"damaged": func(path string) error {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				for i := range b {
					b[i] ^= 0x55
				}
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt(b, 0)
				return errors.Join(err, f.Close())
			},
		} {
			for _, stop := range []bool{false, true} {
				if testing.Short() && (ext != ".state" || name != "damaged" || stop) {
					continue
				}
				if name == "damaged" && !stop && ext != ".state" {
					continue // rows that are out, and records, are not read again
				}
				t.Run(fmt.Sprintf("%s %s, stopped %v", ext[1:], name, stop), func(t *testing.T) {
					dir := t.TempDir()
					p := j.at(t, dir, 0.3, func() error { return lose(j.base(dir) + ext) })
					if stop {
						p.signal(syscall.SIGTERM)
					}
					code := p.over().ExitStatus()
					e := p.ended(code)
					t.Logf("exit code %d: %s", code, e.Message)
					switch {
					case code == 0:
						checkResults(t, dir, want)
						return
					case code == exitOther:
						says(t, e, j.base(dir)+ext)
					case code != 143 || !stop:
						t.Errorf("exit code %d", code)
					}
					p = launch(t, j.bin, j.run(dir)...)
					if p.over().ExitStatus() == exitInput && ext == ".journal" {
						says(t, p.ended(exitInput), j.base(dir)+ext, "--restart")
						j.finish(t, dir, want, "--restart")
						return
					}
					p.ended(0)
					checkResults(t, dir, want)
				})
			}
		}
	}
}

// A clock that was set back between two runs, or that differs between two machines: a
// journal's times are for people, and nothing else goes by them.
func TestClockSetBack(t *testing.T) {
	j, dir := faultJob(t, "bhnd"), t.TempDir()
	want, _ := j.whole(t)
	j.stopped(t, dir, 0.3, "--checkpoint-every", "10ms")
	const ahead = 10 * 365 * 24 * time.Hour
	shiftJournal(t, j.base(dir)+".journal", ahead)
	var d runStatusDoc
	b, err := exec.Command(j.bin, "status", "--json", j.base(dir)).Output()
	if err != nil || json.Unmarshal(b, &d) != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if time.Until(d.Written) < ahead/2 {
		t.Fatalf("written at %v: the journal has not been shifted", d.Written)
	}
	if !(d.Left > 0 && d.Left < 60) || !(d.Pairs > 0.2*d.Total) {
		t.Errorf("of a run of a second, stopped at a third, it says that %v of %v pairs are done and %v seconds are left", d.Pairs, d.Total, d.Left)
	}
	if b, err = exec.Command(j.bin, "status", j.base(dir)).Output(); err != nil || bytes.Contains(b, []byte("-")) {
		t.Errorf("%v: of times in the future it says %q", err, b)
	}
	p := launch(t, j.bin, j.run(dir)...)
	p.until(0.6)
	p.signal(syscall.SIGTERM)
	p.ends(143)
	if b, err = exec.Command(j.bin, "status", "--json", j.base(dir)).Output(); err != nil || json.Unmarshal(b, &d) != nil || !(d.Left >= 0 && d.Left < 60) {
		t.Errorf("%v: after a run by the right clock it says %s", err, b)
	}
	if e := j.finish(t, dir, want); e.Resumed < 0.5 || e.Recomputed != 0 {
		t.Errorf("resumed %v, computed %d chunks again", e.Resumed, e.Recomputed)
	}
}

// shiftJournal moves all times in a journal, by the format that pkg/stream describes.
func shiftJournal(t *testing.T, path string, by time.Duration) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	id := crc32.Checksum(b[16:24], table)
	at := (32 + int(binary.LittleEndian.Uint32(b[12:])) + 63) / 64 * 64
	for ; at+64 <= len(b); at += 64 {
		r := b[at:][:64]
		binary.LittleEndian.PutUint64(r[40:], binary.LittleEndian.Uint64(r[40:])+uint64(by))
		binary.LittleEndian.PutUint32(r, crc32.Update(id, table, r[4:]))
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

// Limits of a shell or a batch system on the process, which are too low.
func TestProcessLimits(t *testing.T) {
	notShort(t)
	j := faultJob(t, "bhnd")
	want, _ := j.whole(t)
	limited := func(t *testing.T, limit string, code int, words ...string) {
		t.Helper()
		dir := t.TempDir()
		says(t, launch(t, "sh", append([]string{"-c", "ulimit " + limit + ` && exec "$0" "$@"`, j.bin}, j.run(dir)...)...).ends(code), append(words, dir)...)
		if left := contents(t, dir); len(left) != 0 {
			t.Errorf("ulimit %s: %d files are left", limit, len(left))
		}
		j.finish(t, dir, want)
	}
	t.Run("file size", func(t *testing.T) {
		blocks := len(want["o.npy"]) / 512 / 2
		limited(t, "-f "+strconv.Itoa(blocks), exitNoFit, "file too large")
	})
}

// A process that is suspended, as batch systems do with those of others, goes on as if
// nothing had been.
func TestSuspended(t *testing.T) {
	notShort(t)
	j, dir := faultJob(t, "bhnd"), t.TempDir()
	want, _ := j.whole(t)
	p := j.at(t, dir, 0.3, func() error { return nil })
	p.signal(syscall.SIGSTOP)
	time.Sleep(50 * time.Millisecond)
	p.signal(syscall.SIGCONT)
	p.ends(0)
	checkResults(t, dir, want)
}

// A journal that was being begun when its process was killed is in nobody's way, and is
// gone in the end.
func TestJournalThatWasBeingBegun(t *testing.T) {
	notShort(t)
	j := faultJob(t, "bhnd")
	want, _ := j.whole(t)
	dir := t.TempDir()
	if err := os.WriteFile(j.base(dir)+".journal.new", []byte("half of a journal"), 0o666); err != nil {
		t.Fatal(err)
	}
	if e := j.finish(t, dir, want); e.Resumed != 0 {
		t.Errorf("%v was resumed", e.Resumed)
	}
	if _, err := os.Stat(j.base(dir) + ".journal.new"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A GPU whose memory others have taken may have it again. (That a run plans again then takes
// a GPU to see.)
func TestScarceGPUIsTemporary(t *testing.T) {
	err := fmt.Errorf("reserve: %w", &gpu.NoMemoryError{Device: "cuda:0", Want: 2 << 30, Free: 1 << 30, Err: errors.New("out of memory")})
	if got := exitCode(err); got != exitTemporary {
		t.Errorf("%v: exit code %d, want %d", err, got, exitTemporary)
	}
}

// fakeGPU has the memory of a GPU, and of the CPU device what plans ask of it.
type fakeGPU struct {
	*cpu.Device
	free, total int64
}

func (g fakeGPU) Name() string                     { return "cuda:0" }
func (g fakeGPU) Info() gpu.Info                   { return gpu.Info{} }
func (g fakeGPU) Kernel(attention.Geometry) string { return "" }
func (g fakeGPU) Memory() (free, total int64, err error) {
	return g.free, g.total, nil
}
func (g fakeGPU) Supports(attention.Problem) error { return nil }
func (g fakeGPU) Close() error                     { return nil }

// Where nothing fits what others left of a GPU, the same command may work later; where
// nothing would fit all of it either, or the user's budget, it never will.
func TestNothingFitsScarceGPU(t *testing.T) {
	p := attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: 1 << 20, Nk: 1 << 20, D: 64, Dv: 64, DType: attention.F32, OutDType: attention.F32, Scale: 1, Layout: attention.BHND}
	least := func() int64 { // of the problem in one chunk
		o := planFlags{divide: "rows", chunks: 1}
		o.budget.bytes = 1
		var no *stream.NoFitError
		if _, _, err := o.planFor(p, nil, &outFlags{}, []stream.Device{cpu.New(1)}, math.MaxInt64); !errors.As(err, &no) {
			t.Fatalf("%v, want what would fit", err)
		}
		return no.Smallest
	}()
	const gib = 1 << 30
	auto := size{auto: true}
	for _, x := range []struct {
		name              string
		budget            size
		chunks            int
		free, total, most int64
		code              int
	}{
		{"memory was taken, one chunk", size{bytes: least}, 1, gib / 4, 80 * gib, gib / 4, exitTemporary},
		{"memory was taken, any chunks", size{bytes: least}, 0, gib / 4, 80 * gib, gib / 4, 0},
		{"auto, memory was taken", auto, 1, gib, 80 * gib, gib, exitTemporary},
		{"auto, memory had been taken", auto, 1, gib, 80 * gib, math.MaxInt64, exitTemporary},
		{"auto, nearly all is taken", auto, 0, gib / 2, 80 * gib, math.MaxInt64, exitTemporary},
		{"a share, memory was taken", size{percent: 90}, 1, gib / 4, 80 * gib, gib / 4, exitTemporary},
		{"a budget too small", size{bytes: least - 1}, 1, 80 * gib, 80 * gib, math.MaxInt64, exitNoFit},
		{"a GPU too small", size{bytes: 2 * least}, 1, gib / 4, least + gpuContext - 1, gib / 4, exitNoFit},
		{"auto, a GPU too small", auto, 1, least, least, math.MaxInt64, exitNoFit},
		{"it fits", size{bytes: least}, 1, 80 * gib, 80 * gib, math.MaxInt64, 0},
	} {
		o := planFlags{budget: x.budget, divide: "rows", chunks: x.chunks}
		_, _, err := o.planFor(p, nil, &outFlags{}, []stream.Device{fakeGPU{cpu.New(1), x.free, x.total}}, x.most)
		if got := exitCode(err); got != x.code {
			t.Errorf("%s: exit code %d (%v), want %d", x.name, got, err, x.code)
		}
		if x.code == exitTemporary && !strings.Contains(err.Error(), "cuda:0: others have its memory: of 85899345920 bytes ") {
			t.Errorf("%s: it says %v", x.name, err)
		}
	}
}

// The time that is left is told by the pace of this process: what an earlier one did took
// none of its time.
func TestTimeLeftAfterResume(t *testing.T) {
	for _, x := range []struct {
		p    stream.Progress
		want string
	}{
		{stream.Progress{Pairs: 80, TotalPairs: 100, Before: 60, Elapsed: 10 * time.Second}, "10 s left"},
		{stream.Progress{Pairs: 20, TotalPairs: 100, Elapsed: 10 * time.Second}, "40 s left"},
		{stream.Progress{Pairs: 60, TotalPairs: 100, Before: 60, Elapsed: time.Second}, "? left"},
	} {
		if got := progressLine(x.p); !strings.HasSuffix(got, x.want) {
			t.Errorf("%+v: %q, want %s", x.p, got, x.want)
		}
	}
}

// People are told of damage where there was some: what a kill or a power cut takes is none.
func TestSummaryTellsDamage(t *testing.T) {
	for _, x := range []struct {
		rep  stream.Report
		want string
	}{
		{stream.Report{}, ""},
		{stream.Report{Resumed: 0.5, Newer: 3}, "50.0% of pairs were done before\n"},
		{stream.Report{Resumed: 0.5, Recomputed: 1}, "50.0% of pairs were done before\n1 query chunk that a checkpoint had made safe, and that was damaged, computed again\n"},
		{stream.Report{Recomputed: 2}, "2 query chunks that a checkpoint had made safe, and that were damaged, computed again\n"},
	} {
		var out strings.Builder
		if err := (&lineReporter{out: &out}).summary(&stream.Plan{}, &x.rep, 0, 0); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(out.String(), "anonymous memory 0 B\n")
		if got := strings.ReplaceAll(rest, "         ", ""); got != x.want {
			t.Errorf("%+v: %q, want %q", x.rep, got, x.want)
		}
	}
}
