package stream

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// flip changes a bit of a file, in memory and on the disk.
func (n *inode) flip(bit int) {
	n.sync(always)
	n.data[bit/8] ^= 1 << (bit % 8)
	n.changed(bit / 8 / sector)
	n.sync(always)
}

// A bit that flips in what a run left is found when it goes on: what is damaged is computed
// again, and counted, or the journal is refused. In the end the bits are right.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	flips := 30
	switch {
	case *long:
		flips = 400
	case testing.Short():
		flips = 10
	}
	eachCrashJob(t, 1, 3, 25, func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand) {
		left := j.partly(t, r)
		for _, name := range slices.Sorted(maps.Keys(left.names)) {
			for range flips {
				d := left.clone(seed)
				n := d.names[name]
				bit := r.IntN(8 * len(n.data))
				n.flip(bit)
				what := fmt.Sprintf("bit %d of byte %d of %s, of %d", bit%8, bit/8, name, len(n.data))
				if name == crashJournal {
					j.flippedJournal(t, what, left, d, bit/8, r)
				} else {
					j.flipped(t, what, left, d, r)
				}
			}
		}
	})
}

// flipped goes on where a bit of states or results was flipped.
func (j *crashJob) flipped(t *testing.T, what string, left, d *crashDisk, r *rand.Rand) {
	t.Helper()
	had, before := j.left(left)
	at, gone := j.left(d)
	changed := 0
	for id := range had {
		if at[id] != had[id] {
			changed++
		}
	}
	// A fact that did not hold anyway does so no less.
	more, newer := gone.damaged-before.damaged, gone.newer-before.newer
	if changed > 1 || more < 0 || newer < 0 || more > changed || newer > changed {
		t.Fatalf("%s: %+v, it was %+v; %d chunks are not where they were", what, gone, before, changed)
	}
	x := j.command(t, d, randomConditions(r))
	if x.err != nil {
		t.Fatalf("%s: %v", what, x.err)
	}
	j.account(t, what, at, gone, x)
	j.verify(t, what, d)
}

// flippedJournal goes on where a bit of a journal was flipped.
func (j *crashJob) flippedJournal(t *testing.T, what string, left, d *crashDisk, byte int, r *rand.Rand) {
	t.Helper()
	n := left.names[crashJournal]
	whole, err := readJournal(left, crashJournal)
	if err != nil {
		t.Fatal(err)
	}
	header := len(n.data) - int(whole.Ignored) - recordBytes*whole.Records
	sealed := 0 // where the last checkpoint is
	for i, rec := range left.records() {
		if rec.kind == kindCheckpoint {
			sealed = header + recordBytes*i
		}
	}
	at, gone := j.left(d)
	x := j.command(t, d, randomConditions(r))
	var corrupt *CorruptError
	switch {
	case x.err == nil && byte >= header && byte < sealed:
		t.Fatalf("%s: a checkpoint at %d says that this was on the disk, and the run goes on", what, sealed)
	case x.err == nil:
		j.account(t, what, at, gone, x)
		j.verify(t, what, d)
	case !errors.As(x.err, &corrupt) || corrupt.Path != crashJournal:
		t.Fatalf("%s: %v", what, x.err)
	case byte >= sealed || byte >= header && corrupt.Offset != int64(byte/recordBytes*recordBytes):
		t.Fatalf("%s, whose last checkpoint is at %d: %v", what, sealed, corrupt)
	case byte < header && (corrupt.Offset < 0 || corrupt.Offset >= int64(header)):
		t.Fatalf("%s, in its header: %v", what, corrupt)
	}
}

// Of what holds of a run's states and results nothing does when any one of its bits flips.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	step := 1
	if testing.Short() {
		step = 17
	}
	eachCrashJob(t, 1, 1, 1, func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand) {
		d := j.partly(t, r)
		out, err := j.outputs(d, true)
		if err != nil {
			t.Fatal(err)
		}
		tensors := j.t
		if tensors.O = out[0]; len(out) > 1 {
			tensors.LSE = out[1]
		}
		log, err := readJournal(d, crashJournal)
		if err != nil {
			t.Fatal(err)
		}
		bits := 0
		for shard := range j.plan.Devices {
			run, err := newRunner(j.plan, newHashDevice(0), shard, j.plan.Devices, tensors, Options{StatePath: crashState, disk: d})
			if err == nil {
				err = run.store.reopen()
			}
			if err != nil {
				t.Fatal(err)
			}
			e := run.examiner()
			for _, x := range log.facts {
				if int(x.shard) != shard || e.holds(&x, nil) != nil {
					continue
				}
				run.bytesOf(x, func(b []byte) {
					for bit := r.IntN(step); bit < 8*len(b); bit += step {
						b[bit/8] ^= 1 << (bit % 8)
						if e.holds(&x, nil) == nil {
							t.Fatalf("bit %d is another, and %+v holds", bit, x)
						}
						b[bit/8] ^= 1 << (bit % 8)
						bits++
					}
				})
			}
			if err := run.close(true); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d bits", bits)
	})
}

// bytesOf calls f with the bytes that a fact is about.
func (r *runner) bytesOf(x record, f func([]byte)) {
	if x.kind == kindDone {
		out, lse := r.views.results(r.plan, int(x.group), int(x.chunk))
		_ = eachPart(f, out, lse) // memory that does not fault
		return
	}
	at := int64(x.place) * r.store.slotBytes
	f(r.store.file.(*crashFile).n.data[at : at+x.bytes])
}
