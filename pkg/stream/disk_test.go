package stream_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// A run with checkpoints takes the disk that its plan tells, and no more: where states
// leave their slots, where only checkpoints save any, and where nothing ever does.
func TestCheckpointDisk(t *testing.T) {
	t.Parallel()
	var leave, saved, none int
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 41))
		p := randomProblem(r)
		p.Nq, p.Nk = 1+r.IntN(60), 1+r.IntN(60)
		devices := 1 + r.IntN(2)
		req := stream.Request{Problem: p, Budget: 1 << 30, Devices: devices, Divide: []string{"cqs", "rows"}[r.IntN(2)], Chunks: []int{1, 2, 3, 7, 13}[r.IntN(5)]}
		if r.IntN(3) == 0 {
			req.Budget = 0 // the smallest that works
		}
		plan := planned(t, req)
		devs := make([]stream.Device, devices)
		for i := range devs {
			devs[i] = cpu.New(1)
		}
		dir := t.TempDir()
		rep, err := stream.RunAll(context.Background(), plan, devs, tensors(r, p, false), stream.Options{
			StatePath: filepath.Join(dir, "state"), Journal: &stream.Journal{Path: filepath.Join(dir, "journal"), Every: time.Nanosecond}})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case plan.StateDisk > 0 && plan.CheckpointDisk > 0:
			t.Errorf("seed %d: %d bytes for states and %d for checkpoints", seed, plan.StateDisk, plan.CheckpointDisk)
		case plan.StateDisk > 0:
			leave++
			if rep.State != plan.StateDisk {
				t.Errorf("seed %d: %+v, %d devices: %d bytes of states, planned %d", seed, req, devices, rep.State, plan.StateDisk)
			}
		case rep.State > plan.CheckpointDisk:
			t.Errorf("seed %d: %+v, %d devices: %d bytes of checkpoints, planned %d", seed, req, devices, rep.State, plan.CheckpointDisk)
		case rep.State > 0:
			saved++
		case plan.CheckpointDisk == 0:
			none++
		}
	}
	if leave == 0 || saved == 0 || none == 0 {
		t.Errorf("%d plans whose states leave, %d whose checkpoints save any, %d with none", leave, saved, none)
	}
}

// Plans that take more disk than there is are none, for checkpoints too.
func TestNoDiskForCheckpoints(t *testing.T) {
	req := stream.Request{Problem: medium(400, 400, 8, attention.NonCausal), Budget: 1 << 30, Divide: "rows", Chunks: 4, Host: host}
	plan, _, err := stream.New(req, cpu.New(1))
	if err != nil || plan.StateDisk != 0 || plan.CheckpointDisk == 0 {
		t.Fatalf("%+v, %v", plan, err)
	}
	req.Host.State = 1
	_, _, err = stream.New(req, cpu.New(1))
	var no *stream.NoDiskError
	if !errors.As(err, &no) || no.Free != 1 || no.Least <= 1 || no.Least > plan.CheckpointDisk {
		t.Fatalf("a plan that needs %d bytes, where there is one: %v", plan.CheckpointDisk, err)
	}
	req.Host.State = no.Least
	if _, _, err = stream.New(req, cpu.New(1)); err != nil {
		t.Errorf("with as much as it says: %v", err)
	}
}
