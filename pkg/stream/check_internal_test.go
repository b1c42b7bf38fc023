package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// one is a plan of one query chunk and four key chunks.
func one() *Plan {
	return &Plan{
		Problem:   attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: 2, Nk: 8, D: 1, Dv: 1, DType: attention.F32, OutDType: attention.F32, Layout: attention.ND, Scale: 1},
		Groups:    1,
		Geometry:  attention.Geometry{KVHeads: 1, Group: 1},
		QueryAxis: divide.Axis{N: 2, Chunks: 1}, KeyAxis: divide.Axis{N: 8, Chunks: 4},
	}
}

// What a checkpoint knows of a chunk holds, or something newer does: all else is no
// damage.
func TestWhatMustHold(t *testing.T) {
	const place = 16
	plan, rows := one(), []byte("results!")
	var store []byte
	for i := range 4 {
		store = append(store, bytes.Repeat([]byte{byte(1 + i)}, place)...)
	}
	state := func(pairs uint32, good bool) record { // in the place of that number
		r := record{kind: kindState, pairs: pairs, place: pairs - 1, bytes: place}
		if r.sum = crc32.Checksum(store[place*(pairs-1):place*pairs], castagnoli); !good {
			r.sum++
		}
		return r
	}
	done := func(good bool) record {
		r := record{kind: kindDone, sum: crc32.Checksum(rows, castagnoli)}
		if !good {
			r.sum++
		}
		return r
	}
	const good, bad = true, false
	for _, c := range []struct {
		name   string
		safe   []record // told before the last checkpoint
		after  []record
		holds  int  // pairs of what holds; -1: results, 0: nothing
		broken bool // what was safe
		newer  bool // is not as it was told
	}{
		{name: "nothing"},
		{name: "safe", safe: []record{state(1, good)}, holds: 1},
		{name: "damaged", safe: []record{state(1, bad)}, broken: true},
		{name: "an older one is gone", safe: []record{state(1, bad), state(2, good)}, holds: 2},
		{name: "damaged, and an older one is there", safe: []record{state(1, good), state(2, bad)}, holds: 1, broken: true},
		{name: "a newer one counts", safe: []record{state(1, bad)}, after: []record{state(2, good)}, holds: 2},
		{name: "a newer one is lost", safe: []record{state(1, good)}, after: []record{state(2, bad)}, holds: 1, newer: true},
		{name: "its place was given away", after: []record{state(1, bad)}, newer: true},
		{name: "one of two was given away", after: []record{state(1, bad), state(2, good)}, holds: 2},
		{name: "lost and damaged", safe: []record{state(1, bad)}, after: []record{state(2, bad), done(bad)}, broken: true, newer: true},
		{name: "results", safe: []record{state(3, bad), done(good)}, holds: -1},
		{name: "damaged results", safe: []record{state(3, bad), done(bad)}, broken: true},
		{name: "results are lost", safe: []record{state(3, good)}, after: []record{state(4, bad), done(bad)}, holds: 3, newer: true},
		{name: "results are told", safe: []record{state(3, bad)}, after: []record{done(good)}, holds: -1},
	} {
		l := &Log{facts: append(append([]record{}, c.safe...), c.after...), safe: map[uint16]int{0: len(c.safe)}}
		e := &examiner{plan: plan, sched: newSchedule(plan), out: outputViews(plan.Problem, rows, nil), states: bytes.NewReader(store), place: place}
		var got finding
		if err := e.examine(context.Background(), l, 0, func(f finding) { got = f }); err != nil {
			t.Fatal(err)
		}
		holds := 0
		if got.holds != nil {
			if holds = int(got.holds.pairs); got.holds.kind == kindDone {
				holds = -1
			}
		}
		if holds != c.holds || (got.broken != nil) != c.broken || (got.err != nil) != c.broken || got.newer != c.newer {
			t.Errorf("%s: %d holds, broken %v (%v), newer %v; want %d, %v, %v", c.name, holds, got.broken, got.err, got.newer, c.holds, c.broken, c.newer)
		}
		l.Complete = true // all must hold
		if err := e.examine(context.Background(), l, 0, func(f finding) { got = f }); err != nil || got.newer || (got.broken != nil) != (c.broken || c.newer) {
			t.Errorf("%s, complete: broken %v, newer %v, %v", c.name, got.broken, got.newer, err)
		}
	}
}

// A record that can't be of the run is damage of the journal, with its place.
func TestUnknownRecords(t *testing.T) {
	h := Header{Problem: one().Problem, Devices: 2, StateBytes: 16, Choice: Choice{KVHeads: 1, QueryChunks: 1, KeyChunks: 4, Slots: [4]int{1, 0, 1, 0}}}
	for name, x := range map[string]record{
		"shard": {kind: kindDone, shard: 2}, "group": {kind: kindDone, group: 1}, "chunk": {kind: kindState, chunk: 1}, "pairs": {kind: kindState, shard: 1, pairs: 5},
	} {
		x.number = 3
		_, err := Check(context.Background(), &Log{Path: "j", Header: h, first: 128, facts: []record{x}}, Kept{Missing: errors.New("none")})
		var damaged *CorruptError
		if !errors.As(err, &damaged) || damaged.Path != "j" || damaged.Offset != 128+3*recordBytes {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Header){
		"problem": func(h *Header) { h.Problem.Nq = 0 }, "choice": func(h *Header) { h.Choice.QueryChunks = 0 }, "place": func(h *Header) { h.StateBytes = -1 },
	} {
		h := h
		change(&h)
		_, err := Check(context.Background(), &Log{Path: "j", Header: h}, Kept{})
		var damaged *CorruptError
		if !errors.As(err, &damaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancelCause(context.Background())
	enough := errors.New("enough")
	cancel(enough)
	if _, err := Check(ended, &Log{Header: h, facts: []record{{kind: kindDone}}}, Kept{Missing: errors.New("none")}); !errors.Is(err, enough) {
		t.Errorf("a check that was stopped: %v", err)
	}
	if _, err := Check(context.Background(), &Log{Header: h}, Kept{O: make([]byte, 7)}); err == nil || !bytes.Contains([]byte(fmt.Sprint(err)), []byte("tensor O has 7 bytes")) {
		t.Errorf("outputs of a wrong size: %v", err)
	}
}
