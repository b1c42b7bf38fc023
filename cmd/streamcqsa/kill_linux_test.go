package main

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	kills    = flag.Int("kills", 0, "how many runs to kill (default: 3 with -short, else 24)")
	killSeed = flag.Uint64("kill-seed", 0, "kill at the instants of the test that logged this seed")
)

// killedJob is a job to kill.
type killedJob struct {
	name string
	jobSpec
	elsewhere bool // unfinished files go to another file system
}

// killed are problems with dozens of pairs of chunks and budgets so small that states
// spill. They take about a second.
var killed = []killedJob{
	{name: "cqs 7 f32 npy, heads and groups", jobSpec: plainJob},
	{name: "rows f32 npy causal lse", jobSpec: jobSpec{shape: "1,8,4,3000,3200,32,32", lse: true,
		flags: "--divide rows --mem-budget 600KiB --causal --causal-align bottom-right"}},
	{name: "cqs 13 bf16 safetensors causal lse", jobSpec: jobSpec{shape: "2,4,2,3600,3600,24,40", dtype: "bf16", format: "safetensors", layout: "bnhd", lse: true,
		flags: "--divide cqs --chunks 13 --mem-budget 640KiB --causal"}},
	{name: "cqs 3 depth 2 bf16 npy", jobSpec: jobSpec{shape: "1,6,3,2500,2500,32,32", dtype: "bf16", lse: true,
		flags: "--divide cqs --chunks 3 --depth 2 --mem-budget 700KiB --prefetch -1"}},
	{name: "rows bf16 safetensors", jobSpec: jobSpec{shape: "1,8,2,2500,2400,32,32", dtype: "bf16", format: "safetensors",
		flags: "--divide rows --chunks 40 --mem-budget 400KiB"}},
	{name: "cqs 7 f32 npy, state-dir elsewhere", jobSpec: plainJob, elsewhere: true},
}

// A run that is killed at any instant, however often, goes on to the result that it
// would have had: to the bit.
func TestKill(t *testing.T) {
	n := 24
	if testing.Short() {
		n = 3
	}
	if *kills > 0 {
		n = *kills
	}
	killAll(t, buildProgram(t), killed, n)
}

// killAll kills runs of some jobs n times.
func killAll(t *testing.T, bin string, jobs []killedJob, n int) {
	seed := *killSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-args -kills %d -kill-seed %d", n, seed)
	var sum tally
	for i, k := range jobs {
		share := n / len(jobs)
		if i < n%len(jobs) {
			share++
		}
		if share == 0 {
			break
		}
		t.Run(k.name, func(t *testing.T) {
			s := &series{job: newJob(t, bin, k.jobSpec), rng: rand.New(rand.NewPCG(seed, uint64(i)))}
			if k.elsewhere {
				s.elsewhere = otherFileSystem(t)
			}
			s.want, s.full = s.job.whole(t)
			for s.kills < share {
				s.once(t, share)
			}
			t.Logf("%.2f s uninterrupted; %+v", s.full.Seconds(), s.tally)
			sum.add(s.tally)
		})
	}
	t.Logf("%+v", sum)
	if sum.midway == 0 || sum.resumed == 0 {
		t.Errorf("%+v: no kill came in the middle of work, or no run had anything to resume", sum)
	}
}

// tally counts what kills met.
type tally struct {
	kills   int // runs killed
	midway  int // of these, with an output in work
	journal int // of these, with something saved
	again   int // of these, runs that had resumed
	resumed int // runs that ended, with some of the work done before
	fresh   int // runs that ended, with all of it to do
	lost    int // query chunks of which something was told and given away
}

func (t *tally) add(u tally) {
	t.kills, t.midway, t.journal, t.again = t.kills+u.kills, t.midway+u.midway, t.journal+u.journal, t.again+u.again
	t.resumed, t.fresh, t.lost = t.resumed+u.resumed, t.fresh+u.fresh, t.lost+u.lost
}

// series kills runs of one job.
type series struct {
	tally
	job       *job
	rng       *rand.Rand
	want      map[string][]byte
	full      time.Duration // of a run that nobody kills
	elsewhere string        // the state directory; "" for none
	missed    int           // runs that were over before they could be killed
	newer     int           // query chunks of which the last kill lost something, by its journal
}

// once begins a run, kills it and those that resume it a few times, up to most kills in
// all, and lets the last one end.
func (s *series) once(t *testing.T, most int) {
	t.Helper()
	dir, state := t.TempDir(), ""
	// Syncs in a row, or hardly any: both must be safe.
	extra := []string{"--checkpoint-every", []string{"5ms", "20ms", "50ms"}[s.rng.IntN(3)]}
	work := dir
	if s.elsewhere != "" {
		var err error
		if state, err = os.MkdirTemp(s.elsewhere, "streamcqsa-kill"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(state) // what a failed test left
		extra, work = append(extra, "--state-dir", state), state
	}
	for n := 1 + s.rng.IntN(4); n > 0 && s.kills < most; n-- {
		at := s.rng.Float64()
		if s.kills == 0 {
			at = 0.3 + at/2 // one at least is sure to meet a run with something to resume
		}
		if !s.kill(t, dir, work, time.Duration(at*float64(s.full)), extra) {
			return // it is done
		}
	}
	s.count(t, s.job.finish(t, dir, s.want, extra...))
	s.tidy(t, state)
}

// kill runs the job in dir and kills it after a while, or sees it end before.
func (s *series) kill(t *testing.T, dir, work string, after time.Duration, extra []string) bool {
	t.Helper()
	before := exists(t, s.job.base(work)+".journal")
	p := launch(t, s.job.bin, s.job.run(dir, extra...)...)
	timer := time.AfterFunc(after, func() { _ = p.cmd.Process.Kill() }) // it may be over
	status := p.over()
	timer.Stop()
	if !status.Signaled() {
		s.count(t, p.ended(0))
		checkResults(t, dir, s.want)
		if work != dir {
			s.tidy(t, work)
		}
		if s.missed++; s.missed > 10+10*s.kills {
			t.Fatal("runs are over before they can be killed")
		}
		return false
	}
	s.kills++
	if exists(t, s.job.base(work)+".partial") {
		s.midway++
		if before {
			s.again++
		}
	}
	s.inspect(t, dir, work)
	return true
}

// inspect checks what a kill left: nothing but the result in the result's place, and
// nothing in the journal that isn't so.
func (s *series) inspect(t *testing.T, dir, work string) {
	t.Helper()
	for _, name := range s.job.results {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err == nil && !bytes.Equal(got, s.want[name]) {
			t.Errorf("a run that was killed left %s of %d bytes, which is not the result", name, len(got))
		}
	}
	journal := s.job.base(work) + ".journal"
	if s.newer = 0; !exists(t, journal) {
		return
	}
	s.journal++
	status := []string{"status", "--json", s.job.base(dir)}
	if work != dir {
		status = append(status, "--state-dir", work)
	}
	if b, err := exec.Command(s.job.bin, status...).CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", status, err, b)
	}
	c, _ := verified(t, s.job.bin, journal, 0)
	s.newer = c.Newer
	s.lost += c.Newer
}

// count books a run that ended, and checks that it found what its journal had told, but for
// what was being replaced when it was killed.
func (s *series) count(t *testing.T, e event) {
	t.Helper()
	if e.Recomputed != 0 || e.Newer != s.newer {
		t.Errorf("killed, it had lost something of %d query chunks, by its journal; a run that goes on says %d, and that %d were damaged", s.newer, e.Newer, e.Recomputed)
	}
	if e.Resumed > 0 {
		s.resumed++
	} else {
		s.fresh++
	}
}

// tidy checks that a state directory is empty after the end.
func (s *series) tidy(t *testing.T, state string) {
	t.Helper()
	if state != "" {
		if left := contents(t, state); len(left) > 0 {
			t.Errorf("left in the state directory: %d files", len(left))
		}
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// otherFileSystem is a directory on another file system than that of temporary files.
func otherFileSystem(t *testing.T) string {
	t.Helper()
	var here, there unix.Stat_t
	if err := unix.Stat(t.TempDir(), &here); err != nil {
		t.Fatal(err)
	}
	others := []string{"/dev/shm", "/var/tmp", "."}
	i := slices.IndexFunc(others, func(dir string) bool {
		return unix.Stat(dir, &there) == nil && there.Dev != here.Dev && unix.Access(dir, unix.W_OK) == nil
	})
	if i < 0 {
		t.Skipf("of %v, none is a directory to write to on another file system", others)
	}
	return others[i]
}
