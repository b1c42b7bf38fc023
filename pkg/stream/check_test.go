package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// Every byte of what a run kept that counts is noticed, once, and where it is; and all of
// it holds as it was left.
func TestCheck(t *testing.T) {
	t.Parallel()
	p := medium(210, 230, 8, attention.TopLeft)
	p.Hkv = 4
	for _, shards := range []int{1, 2} {
		for _, req := range []stream.Request{
			{Problem: p, LSE: true, Divide: "cqs", Chunks: 7},
			{Problem: p, Divide: "rows", Chunks: 9},
		} {
			t.Run(fmt.Sprintf("%s/%d", req.Divide, shards), func(t *testing.T) {
				x, l, state := stopped(t, req, shards)
				check := func() *stream.Checked {
					t.Helper()
					c, err := stream.Check(context.Background(), l, kept(x, state))
					if err != nil {
						t.Fatal(err)
					}
					return c
				}
				c := check()
				if len(c.Damage) > 0 || c.Newer > 0 || c.Results == 0 || c.States == 0 || c.Results+c.States > c.Chunks || c.Complete() {
					t.Fatalf("after a stop: %+v", c)
				}
				damaged := make(map[[2]int]bool) // head group and query chunk
				noticed := func(what string, isState bool) {
					t.Helper()
					now := check()
					n := len(now.Damage)
					lost := c.Results - now.Results
					if isState {
						lost = c.States - now.States
					}
					// A state of before may still be there.
					if n > 1 || lost != n && (lost != 0 || !isState) {
						t.Fatalf("%s: %+v, it was %+v", what, now, c)
					}
					for _, d := range now.Damage {
						if d.State != isState || d.Err == nil {
							t.Fatalf("%s: %+v", what, d)
						}
						damaged[[2]int{d.Group, d.Chunk}] = true
					}
				}
				for _, path := range files(t, state+"*") {
					b, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					for at := int64(0); at < int64(len(b)); at += l.Header.StateBytes {
						b[at] ^= 1
						if err := os.WriteFile(path, b, 0o666); err != nil {
							t.Fatal(err)
						}
						noticed(fmt.Sprintf("%s at %d", path, at), true)
						b[at] ^= 1
					}
					if err := os.WriteFile(path, b, 0o666); err != nil {
						t.Fatal(err)
					}
				}
				if len(damaged) != c.States {
					t.Errorf("damage to %d states is noticed, there are %d", len(damaged), c.States)
				}
				outputs := [][]byte{x.O.Bytes()}
				if x.LSE != nil {
					outputs = append(outputs, x.LSE.Bytes())
				}
				for i, b := range outputs {
					clear(damaged)
					for at := 3; at < len(b); at += len(b) / (p.Hq * p.Nq) {
						b[at] ^= 1
						noticed(fmt.Sprintf("output %d at %d", i, at), false)
						b[at] ^= 1
					}
					if len(damaged) != c.Results {
						t.Errorf("damage to the results of %d chunks is noticed in output %d, there are %d", len(damaged), i, c.Results)
					}
				}
				for _, path := range files(t, state+"*") {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
				if now := check(); len(now.Damage) != c.States || now.Results != c.Results {
					t.Errorf("without states: %+v, with them %+v", now, c)
				}
				none, err := stream.Check(context.Background(), l, stream.Kept{Missing: errors.New("none"), StatePath: state})
				if err != nil || len(none.Damage) != c.States+c.Results {
					t.Errorf("with nothing: %+v, %v", none, err)
				}
			})
		}
	}
}

// A run that is told to stop while it examines what an earlier one kept ends, and leaves it
// as it was.
func TestStopWhileExamining(t *testing.T) {
	t.Parallel()
	req := stream.Request{Problem: medium(210, 230, 8, attention.TopLeft), Divide: "cqs", Chunks: 7}
	x, l, state := stopped(t, req, 1)
	before, err := os.ReadFile(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancelCause(context.Background())
	enough := errors.New("enough")
	cancel(enough)
	_, err = stream.Run(context.Background(), planned(t, req), cpu.New(1), x, stream.Options{StatePath: state, Stop: stop, Journal: &stream.Journal{Path: l.Path, Header: l.Header, Log: l}})
	if !errors.Is(err, enough) {
		t.Fatalf("told to stop, it ends with %v", err)
	}
	if after, err := os.ReadFile(l.Path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the journal has changed, from %d bytes to %d, %v", len(before), len(after), err)
	}
	if c, err := stream.Check(context.Background(), l, kept(x, state)); err != nil || len(c.Damage) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return list
}

// stopped is a run that was stopped when some results and some states were there: its
// outputs, its journal and the path of its states.
func stopped(t *testing.T, req stream.Request, shards int) (stream.Tensors, *stream.Log, string) {
	t.Helper()
	req.Devices = shards
	plan := planned(t, req)
	whole := tensors(rand.New(rand.NewPCG(9, 31)), req.Problem, req.LSE)
	whole = blank(whole)
	dir := t.TempDir()
	path, state := filepath.Join(dir, "journal"), filepath.Join(dir, "state")
	h := stream.Header{Problem: req.Problem, LSE: req.LSE, Devices: shards, Choice: plan.Choice, StateBytes: cpu.New(1).StateBytes(plan.Geometry)}
	enough := errors.New("enough")
	for at := int64(20); at < 4000; at += 20 { // hints: where a run is in its middle depends on the plan
		x := blank(whole)
		stop, cancel := context.WithCancelCause(context.Background())
		var n atomic.Int64
		x.K = hooked{x.K.(memory), func() {
			if n.Add(1) > at {
				cancel(enough)
			}
		}}
		devs := make([]stream.Device, shards)
		for i := range devs {
			devs[i] = cpu.New(1)
		}
		_, err := stream.RunAll(context.Background(), plan, devs, x, stream.Options{StatePath: state, Stop: stop, Journal: &stream.Journal{Path: path, Header: h}})
		cancel(nil)
		if !errors.Is(err, enough) {
			break
		}
		l, err := stream.ReadJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(x.O.Bytes(), []byte{0xff}) < len(x.O.Bytes())*3/4 && len(files(t, state+"*")) == shards {
			if c, err := stream.Check(context.Background(), l, kept(x, state)); err != nil || c.States > 0 {
				return x, l, state
			}
		}
	}
	t.Fatalf("%s: no stop left both states and results", req.Divide)
	return stream.Tensors{}, nil, ""
}

func kept(x stream.Tensors, state string) stream.Kept {
	k := stream.Kept{O: x.O.Bytes(), StatePath: state}
	if x.LSE != nil {
		k.LSE = x.LSE.Bytes()
	}
	return k
}
