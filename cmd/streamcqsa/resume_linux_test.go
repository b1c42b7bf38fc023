package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of two runs with one output, the second is told so, and the first does not notice.
func TestTwoRunsOneOutput(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	for _, shared := range []bool{false, true} { // two outputs of one name with one state directory
		a, b := t.TempDir(), t.TempDir()
		var extra []string
		if shared {
			extra = []string{"--state-dir", t.TempDir()}
		} else {
			b = a
		}
		first := launch(t, j.bin, j.run(a, extra...)...)
		first.until(0.1)
		for _, more := range [][]string{nil, {"--restart"}} {
			e := launch(t, j.bin, j.run(b, append(more, extra...)...)...).ends(exitTemporary)
			if !strings.Contains(e.Message, "being written by another process") {
				t.Errorf("the second run says %q", e.Message)
			}
		}
		first.ends(0)
		checkResults(t, a, want)
	}
}

// A state directory holds all that is unfinished, on whatever file system, and belongs
// to one output.
func TestStateDir(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	dir := t.TempDir()
	state, err := os.MkdirTemp(otherFileSystem(t), "streamcqsa-state")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(state) // what a failed test left
	p := launch(t, j.bin, j.run(dir, "--state-dir", state)...)
	p.until(0.4)
	p.signal(syscall.SIGTERM)
	p.ends(143)
	if c, _ := verified(t, j.bin, filepath.Join(state, j.results[0])+".journal", 0); c.Results+c.States == 0 {
		t.Errorf("stopped after 40%%, it has %+v", c)
	}
	left := contents(t, state)
	for _, ext := range unfinished {
		if _, ok := left[j.results[0]+ext]; !ok || len(left) != 3 {
			t.Errorf("of %d files in the state directory, %s is there: %v", len(left), ext, ok)
		}
	}
	if left := contents(t, dir); len(left) != 0 {
		t.Errorf("an unfinished run has %d files in the result's directory", len(left))
	}
	if e := j.finish(t, dir, want, "--state-dir", state); e.Resumed < 0.4 {
		t.Errorf("resumed %v", e.Resumed)
	}
	if left := contents(t, state); len(left) != 0 {
		t.Errorf("%d files are left in the state directory", len(left))
	}
}

// A journal of other inputs, another problem or another plan is not resumed, nor
// touched, and the message says what differs. --restart gives it up.
func TestAnotherRunsJournal(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	dir := t.TempDir()
	j.stopped(t, dir, 0.3)
	left := contents(t, dir)
	refused := func(name string, mention string, args ...string) {
		t.Helper()
		e := launch(t, j.bin, args...).ends(exitInput)
		if !strings.Contains(e.Message, mention) {
			t.Errorf("%s: it says %q, want a word of %q", name, e.Message, mention)
		}
		sameContents(t, name, contents(t, dir), left)
	}
	refused("mask", "causal", j.run(dir, "--causal", "--causal-align", "top-left")...)
	refused("scale", "scale", j.run(dir, "--scale", "0.2")...)
	refused("division", "divide", j.run(dir, "--divide", "rows", "--chunks", "0")...)
	refused("chunks", "chunks", j.run(dir, "--chunks", "13")...)
	refused("lse", "lse", j.run(dir, "--lse", filepath.Join(t.TempDir(), "l.npy"))...)
	swapped := j.run(dir)
	for i, a := range swapped {
		swapped[i] = map[string]string{"--k": "--v", "--v": "--k"}[a]
		if swapped[i] == "" {
			swapped[i] = a
		}
	}
	refused("inputs swapped", j.input("v"), swapped...)

	v := j.input("v")
	fi, err := os.Stat(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(v, time.Time{}, fi.ModTime().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	refused("an input's time", "mtime", j.run(dir)...)
	if err := os.Chtimes(v, time.Time{}, fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	flipIn(t, v, 200) // in the first rows; now the time is another again
	if err := os.Chtimes(v, time.Time{}, fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	refused("an input's head", "head", j.run(dir)...)
	flipIn(t, v, 200)
	if e := j.finish(t, dir, want, "--restart"); e.Resumed != 0 {
		t.Errorf("after --restart, %v was resumed", e.Resumed)
	}
}

func sameContents(t *testing.T, name string, got, want map[string][]byte) {
	t.Helper()
	for file, b := range want {
		if g, ok := got[file]; !ok || !bytes.Equal(g, b) {
			t.Errorf("%s: %s has changed or is gone", name, file)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d files, there were %d", name, len(got), len(want))
	}
}

// flipIn inverts bits of one byte of a file, from the end if at < 0.
func flipIn(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at < 0 {
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		at += fi.Size()
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// stoppedJob is a job that was stopped when some results and some states were done,
// again and again: every damage is done to the same files.
type stoppedJob struct {
	*job
	dir  string
	left map[string][]byte
	want map[string][]byte
}

func newStoppedJob(t *testing.T) *stoppedJob {
	t.Helper()
	s := &stoppedJob{job: stopJob(t), dir: t.TempDir()}
	s.want, _ = s.whole(t)
	// The first head groups are complete, and the journal has many checkpoints.
	s.stopped(t, s.dir, 0.6, "--checkpoint-every", "5ms")
	s.left = contents(t, s.dir)
	return s
}

// again puts the files back as they were after the stop.
func (s *stoppedJob) again(t *testing.T) {
	t.Helper()
	for name := range contents(t, s.dir) {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range s.left {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

var offsetIn = regexp.MustCompile(`offset (\d+)`)

// A journal that is damaged where it was safe is refused, with the place; the files stay
// for people to look at until --restart.
func TestDamagedJournal(t *testing.T) {
	s := newStoppedJob(t)
	path := s.base(s.dir) + ".journal"
	journal := s.left[filepath.Base(path)]
	size := int64(len(journal))
	header := 32 + int64(binary.LittleEndian.Uint32(journal[12:]))
	for name, at := range map[string]int64{"magic": 0, "format": 9, "header's size": 12, "id": 17, "checksum": 25, "header": 60,
		"header's end": header - 2, "first record": header + 80, "half": size / 2, "nearly the end": size - 3*size/10} {
		t.Run(name, func(t *testing.T) {
			s.again(t)
			flipIn(t, path, at)
			damaged := contents(t, s.dir)
			for range 2 {
				e := launch(t, s.bin, s.run(s.dir)...).ends(exitInput)
				m := offsetIn.FindStringSubmatch(e.Message)
				if m == nil || !strings.Contains(e.Message, path) {
					t.Fatalf("it says %q, want the file and the offset", e.Message)
				}
				told, err := strconv.ParseInt(m[1], 10, 64)
				if err != nil || told > at+24 || at > header && (told > at || at-told > 512) {
					t.Errorf("the damage is at %d, it says %q", at, e.Message)
				}
				sameContents(t, "refused", contents(t, s.dir), damaged)
				c, said := verified(t, s.bin, path, exitVerify)
				if len(c.Damage) != 1 || c.Damage[0].What != "journal" || c.Damage[0].Offset != told || !strings.Contains(said, m[0]) {
					t.Errorf("verify says %q, and of damage at %d %+v", said, told, c)
				}
			}
			if e := s.finish(t, s.dir, s.want, "--restart"); e.Resumed != 0 {
				t.Errorf("after --restart, %v was resumed", e.Resumed)
			}
		})
	}
}

// What a process leaves of a journal when it dies while it writes is resumed.
func TestTornJournal(t *testing.T) {
	s := newStoppedJob(t)
	path := s.base(s.dir) + ".journal"
	size := int64(len(s.left[filepath.Base(path)]))
	for name, tear := range map[string]func() error{
		"last record damaged": func() error { flipIn(t, path, -20); return nil },
		"last record cut":     func() error { return os.Truncate(path, size-7) },
		"zeros after the end": func() error { return os.Truncate(path, size+4096) },
		"half":                func() error { return os.Truncate(path, size/2+13) },
		"rubbish after the end": func() error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(bytes.Repeat([]byte("rubbish"), 50))
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.again(t)
			if err := tear(); err != nil {
				t.Fatal(err)
			}
			if name != "half" { // places that it knows were used again
				verified(t, s.bin, path, 0)
			}
			if e := s.finish(t, s.dir, s.want); e.Resumed <= 0 {
				t.Error("nothing was resumed")
			}
		})
	}
}

// States and results that are not as they were saved are computed again, and only they.
func TestDamagedStatesAndResults(t *testing.T) {
	s := newStoppedJob(t)
	state, partial, journal := s.base(s.dir)+".state", s.base(s.dir)+".partial", s.base(s.dir)+".journal"
	sprinkle := func(path string, from int) func() error {
		return func() error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := from; i < len(b); i += 100 {
				b[i] ^= 0x55
			}
			return os.WriteFile(path, b, 0o666)
		}
	}
	var all event
	t.Run("nothing", func(t *testing.T) {
		s.again(t)
		if c, _ := verified(t, s.bin, journal, 0); c.Results == 0 || c.States == 0 || c.Results+c.States > c.Chunks || c.Newer > 0 {
			t.Errorf("after the stop, there is %+v", c)
		}
		sameContents(t, "verified", contents(t, s.dir), s.left)
		if all = s.finish(t, s.dir, s.want); all.Resumed < 0.6 || all.Recomputed != 0 {
			t.Errorf("stopped after 60%% or more, it resumed %.1f%% and computed %d chunks again", 100*all.Resumed, all.Recomputed)
		}
	})
	for name, c := range map[string]struct {
		damage func() error
		some   bool // is still good
	}{
		"states deleted":   {func() error { return os.Remove(state) }, true},
		"states empty":     {func() error { return os.Truncate(state, 0) }, true},
		"states cut":       {func() error { return os.Truncate(state, 1000) }, true},
		"states damaged":   {sprinkle(state, 0), true},
		"results damaged":  {sprinkle(partial, 4096), true}, // but not their header
		"both damaged":     {func() error { return errors.Join(sprinkle(partial, 4096)(), sprinkle(state, 0)()) }, false},
		"results deleted":  {func() error { return os.Remove(partial) }, true},
		"one byte of them": {func() error { flipIn(t, partial, 5000); return nil }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s.again(t)
			if err := c.damage(); err != nil {
				t.Fatal(err)
			}
			v, said := verified(t, s.bin, journal, exitVerify)
			if name == "one byte of them" && (len(v.Damage) != 1 || v.Damage[0].What != "results" || v.Damage[0].File != partial || v.Damage[0].Offset > 5000 || !strings.Contains(said, partial)) {
				t.Errorf("byte 5000 of the results is damaged, it says %q, %+v", said, v)
			}
			e := s.finish(t, s.dir, s.want)
			if int(e.Recomputed) != len(v.Damage) {
				t.Errorf("%d chunks are damaged, %d were computed again", len(v.Damage), e.Recomputed)
			}
			if e.Recomputed <= 0 || e.Resumed >= all.Resumed || c.some && e.Resumed <= 0 {
				t.Errorf("it resumed %.1f%% of %.1f%%, and computed %d chunks again", 100*e.Resumed, 100*all.Resumed, e.Recomputed)
			}
		})
	}
	t.Run("journal deleted", func(t *testing.T) {
		s.again(t)
		if err := os.Remove(journal); err != nil {
			t.Fatal(err)
		}
		if e := s.finish(t, s.dir, s.want); e.Resumed != 0 {
			t.Errorf("without a journal it resumed %v", e.Resumed)
		}
		verified(t, s.bin, journal, exitInput)
	})
}

// status tells of any run, and says so where there is none.
func TestStatusOfRuns(t *testing.T) {
	s := newStoppedJob(t)
	if share := shareDone(t, s.job, s.dir); share < 0.6 || share >= 1 {
		t.Errorf("stopped after 60%%, status says %v", share)
	}
	if b, err := exec.Command(s.bin, "status", s.base(s.dir)).Output(); err != nil || !bytes.Contains(b, []byte("%")) {
		t.Errorf("%v: it says %q", err, b)
	}
	p := launch(t, s.bin, s.run(s.dir)...)
	p.until(0.7)
	p.signal(syscall.SIGSTOP)                                           // it may be over soon
	if share := shareDone(t, s.job, s.dir); share < 0.6 || share >= 1 { // as of the last checkpoint
		t.Errorf("of the run that goes on, status says %v", share)
	}
	// Whoever asks hears who works on it.
	worker := fmt.Sprintf("process %d: %s run", p.cmd.Process.Pid, s.bin)
	if b, err := exec.Command(s.bin, "status", s.base(s.dir)).Output(); err != nil || !bytes.Contains(b, []byte(worker)) {
		t.Errorf("status of a run in work: %v: it says %q, want %q", err, b, worker)
	}
	if _, said := verified(t, s.bin, s.base(s.dir)+".journal", exitTemporary); !strings.Contains(said, worker) {
		t.Errorf("verify --journal of a run in work says %q, want %q", said, worker)
	}
	if e := launch(t, s.bin, s.run(s.dir)...).ends(exitTemporary); !strings.Contains(e.Message, worker) {
		t.Errorf("a second run says %q, want %q", e.Message, worker)
	}
	p.signal(syscall.SIGCONT)
	p.ends(0)
}

// Of a result that is complete, status says so: that is no failure. What is no result, or is
// older than a run that has left something, is none.
func TestStatusOfResults(t *testing.T) {
	j, dir, state := faultJob(t, "bhnd"), t.TempDir(), t.TempDir()
	out := j.base(dir)
	status := func(code int, args ...string) (stdout, stderr string) {
		t.Helper()
		var o, e strings.Builder
		cmd := exec.Command(j.bin, append([]string{"status"}, args...)...)
		cmd.Stdout, cmd.Stderr = &o, &e
		_ = cmd.Run() // the exit code is looked at
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("status %v exits with %d, want %d: %s%s", args, got, code, &o, &e)
		}
		if code != 0 {
			sentence(t, e.String())
		}
		return o.String(), e.String()
	}
	if _, said := status(exitInput, out); !strings.Contains(said, out+".journal") {
		t.Errorf("where there is nothing, it says %q", said)
	}
	launch(t, j.bin, j.run(dir)...).ends(0)
	if said, _ := status(0, out); !strings.Contains(said, "complete") || !strings.Contains(said, "[1 8 1300 32]") {
		t.Errorf("of a result it says %q", said)
	}
	for _, args := range [][]string{{"--json", out}, {"--json", "--state-dir", state, out}} {
		var d finishedDoc
		said, _ := status(0, args...)
		if err := json.Unmarshal([]byte(said), &d); err != nil || d.Type != "status" || !d.Complete || d.Output != out || d.Bytes != int64(len(readAll(t, out))) || d.Written.IsZero() {
			t.Errorf("%v: of a result it says %s", err, said)
		}
	}
	// Of a run that is not complete it says how far that is, whatever is there of before.
	p := launch(t, j.bin, j.run(dir)...)
	p.until(0.3)
	p.signal(syscall.SIGINT)
	p.ends(130)
	var e runStatusDoc
	if said, _ := status(0, "--json", out); json.Unmarshal([]byte(said), &e) != nil || e.Complete || e.Pairs == 0 {
		t.Errorf("of a result and a run that was stopped it says %q", said)
	}
	if err := os.Remove(out + ".journal"); err != nil {
		t.Fatal(err)
	}
	if _, said := status(exitInput, out); !strings.Contains(said, out+".partial") {
		t.Errorf("of a result and a partial one it says %q", said)
	}
	if err := errors.Join(os.Remove(out+".partial"), os.Truncate(out, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, said := status(exitInput, out); !strings.Contains(said, out+": ") {
		t.Errorf("of a file that is cut short it says %q", said)
	}
}

// A run that ended between giving its results their names and removing its journal is not
// computed again. What else has the result's name is.
func TestCompleteRunLeftOver(t *testing.T) {
	spec := plainJob
	spec.lse = true
	if testing.Short() {
		spec.shape = "1,8,4,1300,1400,32,32"
	}
	j := newJob(t, "streamcqsa", spec)
	dir := t.TempDir()
	journal, state, kept := j.base(dir)+".journal", j.base(dir)+".state", filepath.Join(t.TempDir(), "kept")
	p := launch(t, j.bin, j.run(dir, "--checkpoint-every", "5ms")...)
	p.until(0.3)
	if err := os.Link(journal, kept); err != nil { // it is appended to until the end
		t.Fatal(err)
	}
	p.ends(0)
	want := contents(t, dir)
	told, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	o, lse := filepath.Join(dir, "o.npy"), filepath.Join(dir, "lse.npy")
	move := func(from, to string) func() error { return func() error { return os.Rename(from, to) } }
	for _, c := range []struct {
		name  string
		crash func() error // puts things as they were then
		again bool         // it is computed again
	}{
		{"all have their names", func() error { return os.WriteFile(state, make([]byte, 5000), 0o666) }, false},
		{"one has its name", move(lse, lse+".partial"), false},
		{"the other has", move(o, o+".partial"), false},
		{"none has its name", func() error { return errors.Join(move(o, o+".partial")(), move(lse, lse+".partial")()) }, false},
		{"beside it is what was only begun", func() error { return os.WriteFile(o+".partial", []byte("x"), 0o666) }, false},
		{"one is gone", func() error { return os.Remove(lse) }, true},
		{"one is another", func() error { flipIn(t, o, -20000); return nil }, true},
		{"one has another size", func() error { return os.Truncate(lse, 1000) }, true},
		{"a partial one is damaged", func() error { err := move(lse, lse+".partial")(); flipIn(t, lse+".partial", -9); return err }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, b := range want {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(journal, told, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := c.crash(); err != nil {
				t.Fatal(err)
			}
			code := 0
			switch {
			case c.name == "one is gone":
				code = exitInput
			case c.again:
				code = exitVerify
			}
			if b, err := exec.Command(j.bin, "status", j.base(dir)).Output(); err != nil || !bytes.Contains(b, []byte("complete, but not tidied up")) {
				t.Errorf("%v: status says %q", err, b)
			}
			if v, _ := verified(t, j.bin, journal, code); code == 0 && (!v.Complete || v.Results != v.Chunks) {
				t.Errorf("verify --journal says %+v", v)
			}
			if e := j.finish(t, dir, want); (e.Resumed < 1) != c.again {
				t.Errorf("it resumed %v", e.Resumed)
			}
		})
	}
}

// Where the output's directory goes while a run works, the run fails, and the next one
// begins anew.
func TestOutputDirectoryRemoved(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	dir := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p := launch(t, j.bin, j.run(dir, "--checkpoint-every", "20ms")...)
	p.until(0.2)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if e := p.ends(exitOther); !strings.Contains(e.Message, dir) {
		t.Errorf("it says %q, want the directory's name", e.Message)
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	j.finish(t, dir, want)
}

// smallDisk is a file system of that size until the test ends.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	if !smallDisks() {
		t.Skip("needs the right to mount a small file system: run it as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that is too small is told before any work. One that others fill later ends the
// run, which goes on when there is room.
func TestFullDisk(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	t.Run("at the start", func(t *testing.T) {
		output := int64(len(want[j.results[0]]))
		for _, size := range []int64{output / 2, output + output/8} { // too small for the output; for the states
			dir := smallDisk(t, size)
			p := launch(t, j.bin, j.run(dir)...)
			p.ends(exitNoFit)
			if left := contents(t, dir); len(left) != 0 {
				t.Errorf("%d files are left on a full disk", len(left))
			}
		}
	})
	t.Run("in the middle", func(t *testing.T) {
		dir := smallDisk(t, 16<<20)
		p := launch(t, j.bin, j.run(dir, "--checkpoint-every", "5ms")...)
		p.until(0.2)
		filler := filepath.Join(dir, "filler")
		if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		e := p.ends(exitNoFit)
		t.Log(e.Message)
		if !strings.Contains(e.Message, dir) {
			t.Errorf("it says %q, want the file's name", e.Message)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if e := j.finish(t, dir, want); e.Resumed <= 0 {
			t.Error("nothing was resumed")
		}
	})
}

// fill writes a file until there is no room for a byte more.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	return err
}

// Few file descriptors give an error of the system's, or the result.
func TestFewFileDescriptors(t *testing.T) {
	j := stopJob(t)
	want, _ := j.whole(t)
	limited := func(t *testing.T, n int, dir string) *process {
		args := append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(n), j.bin}, j.run(dir, "--checkpoint-every", "20ms")...)
		return launch(t, "sh", args...)
	}
	dir := t.TempDir()
	failed, done := 0, false
	for n := 5; n < 30 && !done; n++ {
		p := limited(t, n, dir)
		if p.over().ExitStatus() == 0 {
			p.ended(0)
			checkResults(t, dir, want)
			done = true
			continue
		}
		if strings.HasPrefix(p.stderr.String(), "runtime: ") {
			continue // Go itself can't start with so few
		}
		failed++
		if e := p.ended(exitOther); !strings.Contains(e.Message, "too many open files") {
			t.Errorf("%d descriptors: it says %q", n, e.Message)
		}
	}
	if failed == 0 || !done {
		t.Errorf("%d runs failed, one was complete: %v", failed, done)
	}
	dir = t.TempDir()
	p := launch(t, j.bin, j.run(dir, "--checkpoint-every", "20ms")...)
	p.until(0.2)
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: 3}, nil); err != nil {
		t.Fatal(err)
	}
	if status := p.over(); status.ExitStatus() != 0 {
		t.Log(p.ended(exitOther).Message)
		j.finish(t, dir, want)
		return
	}
	p.ended(0)
	checkResults(t, dir, want)
}

// A budget that the control group won't give is told before any work: else the kernel
// would kill the run when it is half done.
func TestGroupSmallerThanBudget(t *testing.T) {
	bin := buildProgram(t)
	const limit = 96 << 20
	group, err := newMemoryGroup(t, limit)
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "o.npy")
	args := append(group.in(bin, "run", "--json", "-o", out), holes(t, dir, 1<<18)...)
	args = append(args, "--mem-budget", "512MiB", "--chunks", "1") // the last flag of a name wins
	p := launch(t, args[0], args[1:]...)
	e := p.ends(exitNoFit)
	if p.docs != 1 {
		t.Errorf("it says so after %d other documents", p.docs-1)
	}
	if !strings.Contains(e.Message, strconv.Itoa(limit)) && !strings.Contains(e.Message, "96") {
		t.Errorf("it says %q, want the limit", e.Message)
	}
	if left, err := filepath.Glob(out + "*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// grouped begins a run in a control group with room for it, and waits until some of it is
// done and saved. It returns the anonymous memory that it has then.
func (j *job) grouped(t *testing.T, dir string) (g *memoryGroup, p *process, has int64) {
	t.Helper()
	g, err := newMemoryGroup(t, 512<<20)
	if err != nil {
		t.Skip(err)
	}
	args := g.in(append([]string{j.bin}, j.run(dir, "--checkpoint-every", "10ms")...)...)
	p = launch(t, args[0], args[1:]...)
	p.until(0.3)
	return g, p, procTable(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))["RssAnon"]
}

// A control group whose limit becomes smaller while a run works: as long as there is room
// for what the run holds, page cache makes room for the rest. Where there is none, the kernel
// kills the run (or refuses the limit, where groups are of the first kind), and the next one
// goes on.
func TestGroupShrinks(t *testing.T) {
	notShort(t)
	j := newJob(t, buildProgram(t), plainJob)
	want, _ := j.whole(t)
	for _, c := range []struct {
		name   string
		limit  func(has int64) int64
		enough bool
	}{
		{"to what the run holds", func(has int64) int64 { return has + 3<<20 }, true},
		{"to less", func(has int64) int64 { return has / 2 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			g, p, has := j.grouped(t, dir)
			err := g.set(c.limit(has))
			status := p.over()
			t.Logf("it has %d bytes of anonymous memory, the limit becomes %d: %v; it ends with %v", has, c.limit(has), err, p.cmd.ProcessState)
			switch {
			case c.enough && err != nil:
				t.Errorf("the kernel refuses a limit that is above what the run has: %v", err)
			case c.enough && !g.met():
				t.Error("the run has never met the limit")
			case !c.enough && err != nil && !errors.Is(err, syscall.EBUSY):
				t.Fatal(err)
			}
			if status.Exited() && (c.enough || err != nil) {
				p.ended(0)
				checkResults(t, dir, want)
				return
			}
			if c.enough || err != nil || status.Signal() != syscall.SIGKILL {
				t.Errorf("it ends with %v", p.cmd.ProcessState)
			}
			if e := j.finish(t, dir, want); e.Resumed < 0.2 || e.Recomputed != 0 {
				t.Errorf("it resumed %v, and computed %d chunks again", e.Resumed, e.Recomputed)
			}
		})
	}
}

// Another process of the same control group that takes the memory: the kernel kills the
// run, and the next one goes on.
func TestGroupShared(t *testing.T) {
	notShort(t)
	j := newJob(t, buildProgram(t), plainJob)
	want, _ := j.whole(t)
	dir := t.TempDir()
	g, p, has := j.grouped(t, dir)
	limit := has + 16<<20
	first := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.cmd.Process.Pid), []byte("1000"), 0) // to be killed
	if err := errors.Join(g.set(limit), first); err != nil {
		t.Fatal(err)
	}
	// What has no end of a line is held by tail.
	args := g.in("sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tail -n 1 >/dev/null", 2*limit))
	other := exec.Command(args[0], args[1:]...)
	other.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	status := p.over()
	_ = syscall.Kill(-other.Process.Pid, syscall.SIGKILL) // it may be over
	_ = other.Wait()                                      // likewise
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("with a limit of %d bytes, of which it has %d and another process wants twice as much, it ends with %v", limit, has, p.cmd.ProcessState)
	}
	if e := j.finish(t, dir, want); e.Resumed < 0.2 || e.Recomputed != 0 {
		t.Errorf("it resumed %v, and computed %d chunks again", e.Resumed, e.Recomputed)
	}
}
