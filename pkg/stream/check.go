package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// examiner compares what a journal tells of one shard with what is there. What a run
// continues with and what Check reports is what it finds.
type examiner struct {
	plan    *Plan
	sched   *schedule
	out     views       // of the outputs
	missing error       // why these can't be read; nil: they can
	states  io.ReaderAt // the state store; nil: there is none
	place   int64       // bytes of a place
}

// finding is what there is of a query chunk.
type finding struct {
	id     int64
	holds  *record // the newest fact that holds; nil: none does
	safe   bool    // a checkpoint knows it
	broken *record // the newest that a checkpoint knows, where neither it nor a newer one holds
	err    error   // why it does not
	newer  bool    // something that no checkpoint knows does not hold
}

// examine finds the newest fact of each query chunk that holds. Which must hold is in
// the package comment. The error is a CorruptError where the journal tells of what the run
// does not have, or ctx's cause.
func (e *examiner) examine(ctx context.Context, l *Log, shard uint16, found func(finding)) error {
	told := make(map[int64][]int) // indices of facts
	for i, x := range l.facts {
		if x.shard != shard {
			continue
		}
		if err := e.known(x); err != nil {
			return l.corrupt(x, err)
		}
		id := chunkID(int(x.group), int(x.chunk))
		told[id] = append(told[id], i)
	}
	taken := make(map[uint32]bool)
	for _, id := range slices.Sorted(maps.Keys(told)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f := finding{id: id}
		for _, i := range slices.Backward(told[id]) {
			x := &l.facts[i]
			err := e.holds(x, taken)
			if err == nil {
				f.holds, f.safe = x, l.knows(i)
				break
			}
			switch {
			case !l.knows(i):
				f.newer = true
			case f.broken == nil:
				f.broken, f.err = x, err
			}
		}
		if f.holds != nil && f.holds.kind == kindState {
			taken[f.holds.place] = true
		}
		found(f)
	}
	return nil
}

// knows says whether a checkpoint knows the i-th fact.
func (l *Log) knows(i int) bool { return l.Complete || i < l.safe[l.facts[i].shard] }

// corrupt says that a record can't be of this run.
func (l *Log) corrupt(x record, err error) error {
	return &CorruptError{l.Path, l.first + int64(x.number)*recordBytes, err.Error()}
}

// known checks that a record can be of this run.
func (e *examiner) known(x record) error {
	s := e.sched
	if int(x.group) >= s.groups || int(x.chunk) >= s.query.Chunks || s.query.Len(int(x.chunk)) == 0 ||
		int(x.pairs) > s.pairsOf(int(x.chunk)) {
		return fmt.Errorf("head group %d, query chunk %d, %d pairs: the run has no such thing", x.group, x.chunk, x.pairs)
	}
	return nil
}

// holds says why what a record tells is not so; nil if it is. No two states are in one
// place.
func (e *examiner) holds(x *record, taken map[uint32]bool) error {
	var sum uint32
	var err error
	switch {
	case x.kind == kindDone && e.missing != nil:
		return e.missing
	case x.kind == kindDone:
		sum, err = sumRows(e.out.results(e.plan, int(x.group), int(x.chunk)))
	case e.states == nil:
		return errors.New("there is no state store")
	case x.bytes < 1 || x.bytes > e.place:
		return fmt.Errorf("a state of %d bytes in a place of %d", x.bytes, e.place)
	case taken[x.place]:
		return errors.New("another state is in its place")
	default:
		sum, err = sumOf(io.NewSectionReader(e.states, int64(x.place)*e.place, e.place), x.bytes)
	}
	if err != nil {
		return err
	}
	if sum != x.sum {
		return fmt.Errorf("its checksum is %08x, told was %08x", sum, x.sum)
	}
	return nil
}

// Kept is what a run left, to be read.
type Kept struct {
	O, LSE    []byte // elements, as in Tensors
	Missing   error  // why these can't be read; nil: they can
	StatePath string // as in Options
}

// Checked is what holds of what a journal tells.
type Checked struct {
	Chunks  int // query chunks of all head groups
	Results int // of them, those whose results are there
	States  int // of the others, those of which a state is there
	Newer   int // those of which something told after the last checkpoint is not: that is no damage
	Damage  []Damage
}

// Complete says that all results are there.
func (c *Checked) Complete() bool { return c.Results == c.Chunks && len(c.Damage) == 0 }

// Damage is what must be there of a query chunk, and is not.
type Damage struct {
	Group, Chunk int
	Heads        [2]int // query heads over the whole batch, from the first to behind the last
	Rows         [2]int // query rows, likewise

	State bool   // a state; else results
	Path  string // of the state store
	Place int    // of the state in it
	Pairs int    // chunk pairs in the state
	// Of the state in its file or, in O, of the first of the rows from the first element on.
	Offset int64
	Bytes  int64 // of the state
	Err    error // why it does not hold
}

// Check reads all that a journal tells of and compares it with its checksums. It changes
// nothing, and needs no device. The error is a CorruptError where the journal can't be, and
// ctx's cause when that ends.
func Check(ctx context.Context, l *Log, k Kept) (*Checked, error) { return check(ctx, osDisk{}, l, k) }

func check(ctx context.Context, d disk, l *Log, k Kept) (*Checked, error) {
	plan, err := l.Header.plan()
	if err != nil {
		return nil, &CorruptError{l.Path, prefixBytes, err.Error()}
	}
	p := plan.Problem
	v := outputViews(p, k.O, k.LSE)
	if k.Missing == nil {
		if err := checkOutputs(p, l.Header.LSE, k.O, k.LSE); err != nil {
			return nil, err
		}
	}
	shards := max(1, l.Header.Devices)
	for _, x := range l.facts {
		if int(x.shard) >= shards {
			return nil, l.corrupt(x, fmt.Errorf("shard %d of %d", x.shard, shards))
		}
	}
	c := &Checked{Chunks: plan.Groups * min(plan.QueryAxis.Chunks, p.Nq)}
	for shard := range shards {
		e := &examiner{plan: plan, sched: newSchedule(plan), out: v, missing: k.Missing, place: l.Header.StateBytes}
		path := shardPath(k.StatePath, shard, shards)
		f, err := d.open(path, os.O_RDONLY)
		if err == nil {
			e.states = f
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("check the states: %w", err)
		}
		err = e.examine(ctx, l, uint16(shard), func(f finding) { c.add(f, e, path) })
		if f != nil {
			f.Close() // nothing was written
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add books a finding.
func (c *Checked) add(f finding, e *examiner, path string) {
	switch {
	case f.holds != nil && f.holds.kind == kindDone:
		c.Results++
	case f.holds != nil:
		c.States++
	}
	if f.newer {
		c.Newer++
	}
	x := f.broken
	if x == nil {
		return
	}
	d := Damage{Group: int(x.group), Chunk: int(x.chunk), State: x.kind == kindState, Err: f.err}
	d.Heads[0], d.Heads[1] = e.plan.queryHeads(d.Group)
	d.Rows[0], d.Rows[1] = e.plan.QueryAxis.Range(d.Chunk)
	if d.State {
		d.Path, d.Place, d.Pairs, d.Bytes = path, int(x.place), int(x.pairs), x.bytes
		d.Offset = int64(x.place) * e.place
	} else {
		d.Offset, _ = e.out.o.span(d.Heads[0], d.Rows[0], d.Rows[1])
	}
	c.Damage = append(c.Damage, d)
}

// plan is as much of the run's plan as tells where its results are.
func (h Header) plan() (*Plan, error) {
	p, c := h.Problem, h.Choice
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if !c.possible() || h.StateBytes < 0 {
		return nil, fmt.Errorf("no plan is %+v, with states of %d bytes", c, h.StateBytes)
	}
	plan := &Plan{
		Problem: p, Choice: c, Groups: (p.KVHeads() + c.KVHeads - 1) / c.KVHeads,
		Geometry:  attention.Geometry{KVHeads: c.KVHeads, Group: p.Group()},
		QueryAxis: divide.Axis{N: p.Nq, Chunks: c.QueryChunks}, KeyAxis: divide.Axis{N: p.Nk, Chunks: c.KeyChunks},
	}
	return plan, nil
}
