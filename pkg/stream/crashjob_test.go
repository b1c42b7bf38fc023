package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Files of a crashJob, in three directories. Results have their names when they are
// complete, and until then these with .partial.
const (
	crashJournal = "out/o.journal"
	crashState   = "state/o.state"
)

var crashResults = []string{"out/o", "lse/lse"}

// crashJob is a run to be ended in all ways, and what must come of it in the end.
type crashJob struct {
	name   string
	plan   *Plan
	t      Tensors                  // inputs
	want   [][]byte                 // results
	hashes map[int64]map[int]uint64 // of states, by query chunk as it is in Q, and key chunks in it
	q      map[int64]int64          // where query chunks are in Q, by chunkID
	takes  time.Duration            // in the time of its bubble
}

// crashRequests are small and have what matters: states that leave their slots, and states
// that don't; several head groups; rows that see no key; several devices.
var crashRequests = []struct {
	name string
	Request
}{
	{"cqs", Request{Devices: 1, LSE: true, Divide: "cqs", Chunks: 7,
		Problem: attention.Problem{Hq: 4, Hkv: 2, Nq: 61, Nk: 67, Layout: attention.BHND}}},
	{"rows, some of which see no key", Request{Devices: 1, Divide: "rows", Chunks: 9,
		Problem: attention.Problem{Hq: 2, Hkv: 2, Nq: 90, Nk: 50, Causal: attention.BottomRight, Layout: attention.BNHD}}},
	{"two devices, depth 2", Request{Devices: 2, LSE: true, Divide: "cqs", Chunks: 3, Depth: 2,
		Problem: attention.Problem{Hq: 2, Hkv: 2, Nq: 47, Nk: 47, Causal: attention.TopLeft, Layout: attention.BNHD}}},
	{"two devices, rows", Request{Devices: 2, LSE: true, Divide: "rows", Chunks: 7,
		Problem: attention.Problem{Hq: 2, Hkv: 1, Nq: 66, Nk: 80, Layout: attention.BHND}}},
}

var crashJobsMade struct {
	sync.Mutex
	jobs []*crashJob
}

// crashJobs plans the jobs, and runs each once to know what to expect.
func crashJobs(t *testing.T) []*crashJob {
	t.Helper()
	made := &crashJobsMade
	made.Lock()
	defer made.Unlock()
	if made.jobs != nil {
		return made.jobs
	}
	var jobs []*crashJob
	for _, r := range crashRequests {
		j := newCrashJob(t, r.name, r.Request)
		d := newCrashDisk(0)
		x := j.command(t, d, conditions{hashes: true})
		if x.err != nil {
			t.Fatalf("%s: %v", j.name, x.err)
		}
		j.takes, j.hashes = x.took, make(map[int64]map[int]uint64)
		for _, dev := range x.devs {
			maps.Copy(j.hashes, dev.hashes)
		}
		for i := range j.want {
			j.want[i] = d.names[crashResults[i]].data
		}
		jobs = append(jobs, j)
	}
	made.jobs = jobs
	return jobs
}

func newCrashJob(t *testing.T, name string, req Request) *crashJob {
	t.Helper()
	p := &req.Problem
	p.B, p.D, p.Dv, p.Scale, p.DType, p.OutDType = 1, 2, 9, 1, attention.F32, attention.F32
	req.Host, req.Budget = Host{Cache: 1 << 30, Disk: 1e9}, 1
	_, _, err := New(req, newHashDevice(0))
	var no *NoFitError
	if !errors.As(err, &no) {
		t.Fatalf("%s: budget of 1 byte: %v", name, err)
	}
	req.Budget = no.Smallest
	j := &crashJob{name: name, q: make(map[int64]int64)}
	if j.plan, _, err = New(req, newHashDevice(0)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	zeros := func(name string, h, n, d int) crashSource {
		return crashSource{name, make([]byte, tensorBytes(p.B, h, n, d, p.DType))}
	}
	j.t = Tensors{Q: zeros("Q", p.Hq, p.Nq, p.D), K: zeros("K", p.Hkv, p.Nk, p.D), V: zeros("V", p.Hkv, p.Nk, p.Dv)}
	j.want = append(j.want, make([]byte, tensorBytes(p.B, p.Hq, p.Nq, p.Dv, p.OutDType)))
	if req.LSE {
		j.want = append(j.want, make([]byte, tensorBytes(p.B, p.Hq, p.Nq, 1, attention.F32)))
	}
	queries := view{layout: p.Layout, heads: p.Hq, n: p.Nq, d: p.D, dtype: p.DType}
	for g := range j.plan.Groups {
		for x := range j.plan.QueryAxis.Chunks {
			if lo, hi := j.plan.QueryAxis.Range(x); lo < hi {
				j.q[chunkID(g, x)], _ = queries.span(g*j.plan.Geometry.QueryHeads(), lo, hi)
			}
		}
	}
	return j
}

// crashSource is an input that nothing happens to.
type crashSource struct {
	name string
	b    []byte
}

func (s crashSource) Path() string                           { return s.name }
func (s crashSource) Bytes() []byte                          { return s.b }
func (s crashSource) WillNeed(lo, hi int64)                  {}
func (s crashSource) DontNeed(lo, hi int64)                  {}
func (s crashSource) ReadAt(b []byte, at int64) (int, error) { return copy(b, s.b[at:]), nil }

var _ io.ReaderAt = crashSource{}

// conditions of a run, none of which may change a bit.
type conditions struct {
	seed     uint64 // of what operations take
	pace     time.Duration
	every    time.Duration
	prefetch int
	stop     time.Duration // when it is asked to stop; 0: never
	cancel   time.Duration // when it is interrupted; 0: never
	hashes   bool          // keep those of states
}

// randomConditions have checkpoints in a row, some, or none at all; then the run takes some
// seconds, and its journal begins after the first.
func randomConditions(r *rand.Rand) conditions {
	c := conditions{seed: r.Uint64(), prefetch: r.IntN(4) - 1, every: []time.Duration{1, 3 * time.Millisecond, 15 * time.Millisecond, 0}[r.IntN(4)]}
	if c.every == 0 {
		c.pace = time.Duration(30+r.IntN(120)) * time.Millisecond
	}
	return c
}

// outcome of a command.
type outcome struct {
	rep  *Report
	err  error
	devs []*hashDevice
	took time.Duration
	told []Progress
}

// command does with a disk what a program does that runs a job: it continues what a journal
// tells of, keeps what was done where there is a journal, and gives the results their names
// when they are complete.
func (j *crashJob) command(t *testing.T, d *crashDisk, c conditions) (x outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		log, err := readJournal(d, crashJournal)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			x.err = err
			return
		}
		out, err := j.outputs(d, log != nil)
		if err == nil {
			if x, err = j.run(d, c, out, log); (err != nil) != (x.rep == nil) {
				t.Fatalf("%s: error %v, and report %+v", j.name, err, x.rep)
			}
		}
		if err == nil {
			err = j.commit(d, out)
		}
		x.err, x.took = err, time.Since(begun)
		if _, ok := d.names[crashJournal]; err != nil && !ok {
			for i := range j.want {
				_ = d.remove(crashResults[i] + ".partial")
			}
		}
		for _, dev := range x.devs {
			for _, s := range dev.wrong {
				t.Fatalf("%s: %s", j.name, s)
			}
		}
	})
	return x
}

// outputs makes the files of the results, or takes them up.
func (j *crashJob) outputs(d *crashDisk, again bool) (list []crashSink, err error) {
	for i, b := range j.want {
		name := crashResults[i] + ".partial"
		n := d.names[name]
		flag := os.O_RDWR
		if !again || n == nil || len(n.data) != len(b) {
			flag |= os.O_CREATE | os.O_TRUNC
		}
		f, err := d.open(name, flag)
		if err == nil {
			err = f.Reserve(int64(len(b)))
		}
		if err != nil {
			return nil, err
		}
		list = append(list, crashSink{f.(*crashFile)})
	}
	return list, nil
}

func (j *crashJob) run(d *crashDisk, c conditions, out []crashSink, log *Log) (x outcome, err error) {
	var devs []Device
	for i := range j.plan.Devices {
		h := newHashDevice(c.seed + uint64(i)<<32)
		h.out = out
		if h.pace = c.pace; h.pace == 0 {
			h.pace = time.Millisecond
		}
		if c.hashes {
			h.hashes = make(map[int64]map[int]uint64)
		}
		x.devs, devs = append(x.devs, h), append(devs, h)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	soft, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if c.stop > 0 {
		defer time.AfterFunc(c.stop, func() { stop(errStop) }).Stop()
	}
	if c.cancel > 0 {
		defer time.AfterFunc(c.cancel, func() { cancel(errStop) }).Stop()
	}
	tensors := j.t
	if tensors.O = out[0]; len(out) > 1 {
		tensors.LSE = out[1]
	}
	x.rep, err = RunAll(ctx, j.plan, devs, tensors, Options{
		StatePath: crashState, Prefetch: c.prefetch, Stop: soft, disk: d,
		Progress: func(p Progress) { x.told = append(x.told, p) }, ProgressEvery: 5 * time.Millisecond,
		Journal: &Journal{Path: crashJournal, Header: Header{Version: "crash"}, Log: log, Every: c.every},
	})
	return x, err
}

var errStop = errors.New("enough")

// commit gives the results their names.
func (j *crashJob) commit(d *crashDisk, out []crashSink) error {
	for i, s := range out {
		if err := s.Sync(); err != nil {
			return err
		}
		if err := d.rename(s.name, crashResults[i]); err != nil {
			return err
		}
		if err := d.syncDir(crashResults[i]); err != nil {
			return err
		}
	}
	if err := removeJournal(d, crashJournal); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// verify checks what a command left that ended well.
func (j *crashJob) verify(t *testing.T, what string, d *crashDisk) {
	t.Helper()
	for i, b := range j.want {
		for when, d := range map[string]*crashDisk{"": d, ", after a power cut": d.drop()} {
			if n := d.names[crashResults[i]]; n == nil || !bytes.Equal(n.data, b) {
				t.Fatalf("%s: the run ended well, and %s is not right%s", what, crashResults[i], when)
			}
		}
	}
	for name := range d.names {
		if !slices.Contains(crashResults, name) {
			t.Fatalf("%s: the run ended well, and leaves %s", what, name)
		}
	}
}
