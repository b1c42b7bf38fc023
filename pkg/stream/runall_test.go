package stream_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// Several devices give the bits of one, by either division, also where there are more
// of them than parts, and where some rows see no key.
func TestRunAll(t *testing.T) {
	t.Parallel()
	p := medium(350, 300, 8, attention.BottomRight)
	in := tensors(rand.New(rand.NewPCG(3, 33)), p, true)
	for _, req := range []stream.Request{
		{Problem: p, LSE: true, Divide: "cqs", Chunks: 7},
		{Problem: p, LSE: true, Budget: 1 << 30, Divide: "cqs", Chunks: 1},
		{Problem: p, LSE: true, Divide: "rows", Chunks: 9},
	} {
		plan := planned(t, req)
		want := blank(in)
		rep := run(t, plan, 1, 2, want)
		for _, n := range []int{1, 2, 3, 5} {
			devs := make([]stream.Device, n)
			for i := range devs {
				devs[i] = cpu.New(1)
			}
			x := blank(in)
			got, err := stream.RunAll(context.Background(), plan, devs, x, stream.Options{StatePath: filepath.Join(t.TempDir(), "state")})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(x.O.Bytes(), want.O.Bytes()) || !bytes.Equal(x.LSE.Bytes(), want.LSE.Bytes()) {
				t.Errorf("%s, %d chunks: %d devices give other bits", req.Divide, req.Chunks, n)
			}
			if got.Stats.Pairs != rep.Stats.Pairs {
				t.Errorf("%s, %d chunks: %d devices apply %v pairs, one applies %v", req.Divide, req.Chunks, n, got.Stats.Pairs, rep.Stats.Pairs)
			}
		}
	}
}

// unreservable is a device that has no memory.
type unreservable struct{ *cpu.Device }

var errNone = errors.New("none left")

func (unreservable) Reserve(attention.Geometry) error { return errNone }

// One device's error ends the work of all, and is what is reported.
func TestRunAllFails(t *testing.T) {
	t.Parallel()
	p := medium(400, 400, 8, attention.NonCausal)
	x := tensors(rand.New(rand.NewPCG(4, 34)), p, false)
	plan := planned(t, stream.Request{Problem: p, Divide: "rows", Chunks: 40})
	devs := []stream.Device{cpu.New(1), unreservable{cpu.New(1)}, cpu.New(1)}
	if _, err := stream.RunAll(context.Background(), plan, devs, x, stream.Options{}); !errors.Is(err, errNone) {
		t.Errorf("RunAll: %v, want %v", err, errNone)
	}
}
