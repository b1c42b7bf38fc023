package stream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// outage is what a power cut left, and what had to be left.
type outage struct {
	before operation // the operation that was cut off
	disk   *crashDisk
	saved  map[int64]reached
}

// cutAt cuts the power before the operations that are wanted. Where a journal was left by
// an earlier cut, no more need be saved than was left with it, until there is a new one.
func (j *crashJob) cutAt(d *crashDisk, r *rand.Rand, left map[int64]reached, wanted func(operation) bool, take func(outage)) {
	had := d.names[crashJournal]
	d.watch = func(op operation) {
		if !wanted(op) {
			return
		}
		o := outage{op, d.cut(r), j.saved(d)}
		if had != nil && d.synced[crashJournal] == had {
			for id, saved := range o.saved {
				if left[id].before(saved) {
					o.saved[id] = left[id]
				}
			}
		}
		take(o)
	}
}

// saved is what checkpoints say that are durable.
func (j *crashJob) saved(d *crashDisk) map[int64]reached {
	list := d.drop().records()
	safe := j.sealed(list)
	at := make(map[int64]reached)
	for _, r := range list {
		if r.number < safe[r.shard] && (r.kind == kindState || r.kind == kindDone) {
			at[chunkID(int(r.group), int(r.chunk))] = reached{int(r.pairs), r.kind == kindDone}
		}
	}
	return at
}

// A power cut at any instant leaves a run that goes on to the same bits, from its last
// checkpoint at least; so does one while it goes on.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	eachCrashJob(t, 1, 4, 100, func(t *testing.T, j *crashJob, seed uint64, r *rand.Rand) {
		c, d := randomConditions(r), newCrashDisk(seed)
		other := 8 // one in so many of the operations that sync nothing
		if testing.Short() {
			other = 40
		}
		var outages []outage
		j.cutAt(d, r, nil, func(op operation) bool {
			syncs := op.kind == "rename" || strings.HasPrefix(op.kind, "sync")
			return syncs && (!testing.Short() || r.IntN(8) == 0) || r.IntN(other) == 0
		}, func(o outage) { outages = append(outages, o) })
		if x := j.command(t, d, c); x.err != nil {
			t.Fatalf("%+v: %v", c, x.err)
		}
		d.watch = nil
		j.verify(t, fmt.Sprintf("%+v", c), d)
		for _, o := range outages {
			j.outlives(t, fmt.Sprintf("%+v", c), o, r, 3)
		}
	})
}

// outlives goes on after an outage, and after some more outages while it does.
func (j *crashJob) outlives(t *testing.T, what string, o outage, r *rand.Rand, more int) {
	t.Helper()
	what += fmt.Sprintf(", cut before operation %d, %s %s", o.before.number, o.before.kind, o.before.name)
	d := o.disk
	at, gone := j.left(d)
	// Results that have their names are not looked for under those they had before.
	named := slices.ContainsFunc(crashResults, func(name string) bool { return d.names[name] != nil })
	for id, saved := range o.saved {
		if at[id].before(saved) && !named {
			t.Fatalf("%s: query chunk %#x was at %+v, and is at %+v", what, id, saved, at[id])
		}
	}
	if gone.damaged > 0 && !named {
		t.Fatalf("%s: %+v, and no power cut damages what is safe", what, gone)
	}
	c := randomConditions(r)
	if more > 0 && r.IntN(4) == 0 {
		c.stop = time.Duration(r.Int64N(int64(j.takes)))
	}
	if more > 0 && r.IntN(4) == 0 {
		c.cancel = time.Duration(r.Int64N(int64(j.takes)))
	}
	n := 0
	var next outage
	j.cutAt(d, r, nil, func(operation) bool { n++; return more > 0 && r.IntN(n) == 0 }, func(o outage) { next = o })
	x := j.command(t, d, c)
	d.watch = nil
	switch {
	case x.err == nil:
		j.account(t, what, at, gone, x)
		j.verify(t, what, d)
	case !errors.Is(x.err, errStop) || c.stop == 0 && c.cancel == 0:
		t.Fatalf("%s: going on: %v", what, x.err)
	}
	if more > 0 {
		j.outlives(t, fmt.Sprintf("%s; %+v", what, c), next, r, more-1)
	}
}
