package stream

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var crashSeed = flag.Uint64("crash-seed", 0, "only what the crash test does with this seed, which it printed")

// records lists what is in the journal of a disk, up to the first that is not whole.
func (d *crashDisk) records() (list []record) {
	n := d.names[crashJournal]
	if n == nil {
		return nil
	}
	var l Log
	at, id, err := l.readHeader(bytes.NewReader(n.data), int64(len(n.data)))
	if err != nil {
		return nil
	}
	for ; at+recordBytes <= int64(len(n.data)); at += recordBytes {
		r, ok := decode(n.data[at:at+recordBytes], id, uint64(len(list)))
		if !ok {
			break
		}
		list = append(list, r)
	}
	return list
}

// reached is how far a query chunk is.
type reached struct {
	pairs int // key chunks
	done  bool
}

func (a reached) before(b reached) bool { return !a.done && (b.done || a.pairs < b.pairs) }

// told are the facts that a disk's journal tells of each query chunk, oldest first.
func told(list []record) map[int64][]record {
	facts := make(map[int64][]record)
	for _, r := range list {
		if r.kind == kindState || r.kind == kindDone {
			id := chunkID(int(r.group), int(r.chunk))
			facts[id] = append(facts[id], r)
		}
	}
	return facts
}

// holds says whether a disk has what a record tells, by what a run without any crash has.
func (j *crashJob) holds(d *crashDisk, r record) bool {
	q := j.q[chunkID(int(r.group), int(r.chunk))]
	g := j.plan.Geometry
	if r.kind == kindDone {
		return j.hasResults(d, int(r.group), int(r.chunk))
	}
	name := crashState
	if j.plan.Devices > 1 {
		name = fmt.Sprintf("%s.%d", name, r.shard)
	}
	n := d.names[name]
	lo, hi := j.plan.QueryAxis.Range(int(r.chunk))
	want := hashState{chunk: q, rows: hi - lo, pairs: int(r.pairs), hash: j.hashes[q][int(r.pairs)]}.bytes()
	at := int(r.place) * stateBytes(g.QueryRows)
	return n != nil && at+len(want) <= len(n.data) && bytes.Equal(n.data[at:at+len(want)], want)
}

// hasResults says whether the results of a query chunk are on a disk.
func (j *crashJob) hasResults(d *crashDisk, group, chunk int) bool {
	p := j.plan.Problem
	lo, hi := j.plan.QueryAxis.Range(chunk)
	for i, want := range j.want {
		n := d.names[crashResults[i]+".partial"]
		if n == nil || len(n.data) != len(want) {
			return false
		}
		v := view{layout: p.Layout, heads: p.Hq, n: p.Nq, d: []int{p.Dv, 1}[i], dtype: p.OutDType}
		heads := j.plan.Geometry.QueryHeads()
		for u := group * heads; u < min((group+1)*heads, p.Hq); u++ {
			for row := lo; row < hi; row++ {
				a, b := v.span(u, row, row+1)
				if !bytes.Equal(n.data[a:b], want[a:b]) {
					return false
				}
			}
		}
	}
	return true
}

// lost counts query chunks of which something does not hold that a journal tells.
type lost struct {
	damaged int // a checkpoint had made it safe
	newer   int // it was told later
}

// left is what a run can go on with that finds a disk, and what is lost.
func (j *crashJob) left(d *crashDisk) (at map[int64]reached, gone lost) {
	list := d.records()
	safe := j.sealed(list)
	at = make(map[int64]reached)
	for id, facts := range told(list) {
		damaged, newer := false, false
		for _, r := range slices.Backward(facts) {
			if j.holds(d, r) {
				at[id] = reached{int(r.pairs), r.kind == kindDone}
				break
			}
			if r.number < safe[r.shard] {
				damaged = true
			} else {
				newer = true
			}
		}
		if damaged {
			gone.damaged++
		}
		if newer {
			gone.newer++
		}
	}
	return at, gone
}

// sealed is, by shard, the number of the record by which all before it is safe.
func (j *crashJob) sealed(list []record) map[uint16]uint64 {
	last := make(map[uint16]uint64)
	for _, r := range list {
		switch r.kind {
		case kindCheckpoint:
			last[r.shard] = r.number
		case kindComplete:
			for shard := range j.plan.Devices {
				last[uint16(shard)] = r.number
			}
		}
	}
	return last
}

// account checks that a run that ended well did what was left to do, nothing twice, and
// that its report says so.
func (j *crashJob) account(t *testing.T, what string, at map[int64]reached, gone lost, x outcome) {
	t.Helper()
	if said := (lost{x.rep.Recomputed, x.rep.Newer}); said != gone {
		t.Fatalf("%s: of query chunks, the report says %+v, and it is %+v", what, said, gone)
	}
	for id, q := range j.q {
		applied, finished := 0, 0
		for _, dev := range x.devs {
			applied, finished = applied+dev.applied[q], finished+dev.finished[q]
		}
		want, results := len(j.hashes[q])-at[id].pairs, 1
		if at[id].done {
			want, results = 0, 0
		}
		if applied != want || finished != results {
			t.Fatalf("%s: query chunk %#x was at %+v of %d: %d key chunks were applied, it was finished %d times", what, id, at[id], len(j.hashes[q]), applied, finished)
		}
	}
	total := totalPairs(j.plan.Problem)
	resumed := math.Round(x.rep.Resumed * total)
	if resumed+x.rep.Stats.Pairs != total {
		t.Fatalf("%s: %v pairs were resumed and %v applied, of %v", what, resumed, x.rep.Stats.Pairs, total)
	}
	had := j.pairsOfComplete(at)
	for i, p := range x.told {
		if p.Before < had || p.Before > resumed || p.Pairs < p.Before || p.Pairs > total || i > 0 && p.Pairs < x.told[i-1].Pairs {
			t.Fatalf("%s: of %v pairs, %v were resumed, %v of them complete; it tells %+v", what, total, resumed, had, x.told[:i+1])
		}
	}
	if last := x.told[len(x.told)-1]; last.Pairs != total || last.Before != resumed {
		t.Fatalf("%s: of %v pairs, %v were resumed, it tells at last that %v are done, %v before", what, total, resumed, last.Pairs, last.Before)
	}
}

// pairsOfComplete is how many pairs there are in the query chunks that are complete.
func (j *crashJob) pairsOfComplete(at map[int64]reached) (n float64) {
	for id, p := range at {
		if p.done {
			lo, hi := j.plan.QueryAxis.Range(int(uint32(id)))
			heads := j.plan.headsOf(int(id>>32)) * j.plan.Problem.Group()
			n += j.plan.Problem.PairsIn(lo, hi, 0, j.plan.Problem.Nk) * float64(heads)
		}
	}
	return n
}

// What a run goes on from counts as done in its journal from the first record on, though
// the schedule has not come to it.
func TestWorkOfContinuedRun(t *testing.T) {
	t.Parallel()
	eachCrashJob(t, 2, 5, 50, func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand) {
		d := j.partly(t, r)
		at, _ := j.left(d)
		var begun *Log
		renamed := false
		d.watch = func(op operation) {
			if renamed && begun == nil {
				var err error
				if begun, err = readJournal(d.clone(1), crashJournal); err != nil {
					t.Error(err)
				}
			}
			renamed = renamed || op.kind == "rename" && op.name == crashJournal
		}
		x := j.command(t, d, randomConditions(r))
		if x.err != nil || begun == nil {
			t.Fatalf("%v; a new journal: %v", x.err, begun)
		}
		had, resumed := j.pairsOfComplete(at), math.Round(x.rep.Resumed*totalPairs(j.plan.Problem))
		if begun.Work < had || begun.Work > resumed || begun.WorkAt != begun.Work {
			t.Fatalf("%v pairs were resumed, %v of them complete: the new journal begins with %v, of which %v were done before", resumed, had, begun.Work, begun.WorkAt)
		}
	})
}

// crashSeeds calls f with seeds: a few in short tests, most of them only in long ones.
func crashSeeds(short, usual, most uint64, f func(seed uint64)) {
	first, n := uint64(1), usual
	switch {
	case *crashSeed > 0:
		first, n = *crashSeed, 1
	case *long:
		n = most
	case testing.Short():
		n = short
	}
	for seed := first; seed < first+n; seed++ {
		f(seed)
	}
}

// eachCrashJob runs a test for each job, with random numbers that depend on the seed alone.
func eachCrashJob(t *testing.T, short, usual, most uint64, f func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand)) {
	for i, j := range crashJobs(t) {
		t.Run(j.name, func(t *testing.T) {
			t.Parallel()
			crashSeeds(short, usual, most, func(seed uint64) {
				defer func() {
					if t.Failed() {
						t.Logf("-args -crash-seed %d", seed)
					}
				}()
				f(t, j, seed, rand.New(rand.NewPCG(seed, uint64(i))))
			})
		})
	}
}

// partly is a disk that a run was told to stop on, or was interrupted, and has a journal.
func (j *crashJob) partly(t *testing.T, r *rand.Rand) *crashDisk {
	t.Helper()
	for {
		d, c := newCrashDisk(r.Uint64()), randomConditions(r)
		if c.every == 0 {
			continue
		}
		at := time.Duration(1 + r.Int64N(int64(j.takes)))
		if r.IntN(2) == 0 {
			c.stop = at
		} else {
			c.cancel = at
		}
		x := j.command(t, d, c)
		if x.err != nil && !errors.Is(x.err, errStop) {
			t.Fatalf("%+v: %v", c, x.err)
		}
		if d.names[crashJournal] != nil {
			return d
		}
	}
}

// Every operation on the disk fails, one after the other. The run says so, and the next
// one goes on to the bits that it would have had.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	eachCrashJob(t, 2, 3, 40, func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand) {
		step := 1
		if testing.Short() {
			step = 9
		}
		begin := newCrashDisk(seed)
		if seed%2 == 0 {
			begin = j.partly(t, r)
		}
		c := randomConditions(r)
		for at := r.IntN(step); j.fails(t, begin, c, at, r); at += step {
		}
	})
}

// fails lets one operation fail, and says whether the run had as many.
func (j *crashJob) fails(t *testing.T, begin *crashDisk, c conditions, at int, r *rand.Rand) bool {
	t.Helper()
	d := begin.clone(r.Uint64())
	d.fault = fault{at, []syscall.Errno{syscall.EIO, syscall.ENOSPC}[r.IntN(2)], r.IntN(3) == 0}
	var lies []string // what is claimed after a sync that failed
	d.trace = func(kind, name string, _ int64, b []byte) {
		if len(d.failed) == 0 || !strings.HasPrefix(d.failed[0].kind, "sync") {
			return
		}
		if name == crashJournal && (kind == "rename" || kind == "write" && kindOf(b) >= kindCheckpoint) {
			lies = append(lies, kind+" "+name)
		}
	}
	x := j.command(t, d, c)
	what := fmt.Sprintf("%+v, %+v", d.fault, c)
	if len(d.failed) == 0 {
		if x.err != nil {
			t.Fatalf("%s: nothing failed, and the run ends with %v", what, x.err)
		}
		j.verify(t, what, d)
		return false
	}
	failed := d.failed[0]
	what = fmt.Sprintf("%s, which was %s %s", what, failed.kind, failed.name)
	if len(lies) > 0 {
		t.Fatalf("%s: after that the run goes on with %v", what, lies)
	}
	var in *injected
	switch {
	case x.err == nil && !harmless(failed, x):
		t.Fatalf("%s: no error", what)
	case x.err == nil:
		j.verify(t, what, d)
	case !errors.As(x.err, &in) || !errors.Is(x.err, d.fault.err):
		t.Fatalf("%s: the run ends with %v", what, x.err)
	}
	d.fault, d.trace = fault{}, nil
	if x.err == nil {
		return true
	}
	if r.IntN(3) == 0 {
		what += ", then the power fails"
		d = d.cut(r)
	}
	at0, gone := j.left(d)
	if x = j.command(t, d, randomConditions(r)); x.err != nil {
		t.Fatalf("%s: going on: %v", what, x.err)
	}
	j.account(t, what, at0, gone, x)
	j.verify(t, what, d)
	return true
}

// harmless says that an operation may fail without an error. A state that can't be read
// when a run goes on is as good as none: its chunk is computed again, and counted. And
// a journal that was read to its end is of no interest any more.
func harmless(op operation, x outcome) bool {
	return op.kind == "read" && strings.HasPrefix(op.name, crashState) && x.rep.Recomputed+x.rep.Newer > 0 ||
		op.kind == "close" && op.name == crashJournal
}

// kindOf is the kind of the record that is written.
func kindOf(b []byte) kind {
	if len(b) != recordBytes {
		return 0
	}
	return kind(b[4])
}
