package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

var host = stream.Host{Cache: 1 << 30, Disk: 1e9}

// planned makes a plan that must exist; budget 0 means the smallest that works.
func planned(t testing.TB, req stream.Request) *stream.Plan {
	t.Helper()
	req.Host = host
	plan, _, err := stream.New(req, cpu.New(2))
	var no *stream.NoFitError
	if req.Budget == 0 && errors.As(err, &no) {
		req.Budget = no.Smallest
		plan, _, err = stream.New(req, cpu.New(2))
	}
	if err != nil {
		t.Fatalf("%+v: %v", req, err)
	}
	return plan
}

// blank gives a set of tensors new outputs.
func blank(x stream.Tensors) stream.Tensors {
	x.O = memory{"O", bytes.Repeat([]byte{0xff}, len(x.O.Bytes()))}
	if x.LSE != nil {
		x.LSE = memory{"LSE", bytes.Repeat([]byte{0xff}, len(x.LSE.Bytes()))}
	}
	return x
}

func run(t testing.TB, plan *stream.Plan, threads, prefetch int, x stream.Tensors) *stream.Report {
	t.Helper()
	rep, err := stream.Run(context.Background(), plan, cpu.New(threads), x, stream.Options{StatePath: filepath.Join(t.TempDir(), "state"), Prefetch: prefetch})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// medium is a problem of two head groups' worth of heads.
func medium(nq, nk, d int, causal attention.Causal) attention.Problem {
	return attention.Problem{
		B: 1, Hq: 4, Hkv: 2, Nq: nq, Nk: nk, D: d, Dv: d, Causal: causal, Layout: attention.BNHD,
		DType: attention.F32, OutDType: attention.F32, Scale: attention.DefaultScale(d),
	}
}

// Threads, prefetch and timing cannot change a bit; the division only rounding.
func TestBits(t *testing.T) {
	t.Parallel()
	p := medium(300, 350, 8, attention.BottomRight)
	in := tensors(rand.New(rand.NewPCG(1, 31)), p, true)
	var exact []float32 // of the resident plan
	for _, req := range []stream.Request{
		{Problem: p, LSE: true, Budget: 1 << 30, Divide: "cqs", Chunks: 1},
		{Problem: p, LSE: true, Divide: "cqs", Chunks: 7},
		{Problem: p, LSE: true, Divide: "cqs", Chunks: 12},
		{Problem: p, LSE: true, Budget: 200 << 10, Divide: "cqs", Chunks: 13},
		{Problem: p, LSE: true, Divide: "cqs", Chunks: 3, Depth: 2},
		{Problem: p, LSE: true, Divide: "rows", Chunks: 9},
	} {
		plan := planned(t, req)
		var first stream.Tensors
		for _, threads := range []int{1, 2, 3, 8} {
			for _, prefetch := range []int{-1, 1, 2, 7} {
				x := blank(in)
				run(t, plan, threads, prefetch, x)
				if first.O == nil {
					first = x
				}
				if !bytes.Equal(x.O.Bytes(), first.O.Bytes()) || !bytes.Equal(x.LSE.Bytes(), first.LSE.Bytes()) {
					t.Fatalf("%s, %d chunks: %d threads and prefetch %d give other bits", req.Divide, req.Chunks, threads, prefetch)
				}
			}
		}
		got := make([]float32, len(first.O.Bytes())/4)
		attention.F32.Widen(got, first.O.Bytes())
		if exact == nil {
			compare(t, p, first)
			exact = got
			continue
		}
		var num, den float64
		for i, g := range got {
			e := float64(g) - float64(exact[i])
			num, den = num+e*e, den+float64(exact[i])*float64(exact[i])
		}
		if rel := math.Sqrt(num / den); !(rel <= 1e-6) {
			t.Fatalf("%s, %d chunks: differs from the resident result by %g", req.Divide, req.Chunks, rel)
		}
	}
}

// Any budget gives the result, and is kept.
func TestBudgets(t *testing.T) {
	t.Parallel()
	// Many keys: much memory for little arithmetic, so that a 64th of it still
	// holds the device's scratch.
	p := medium(60, 150_000, 8, attention.BottomRight)
	p.Hq, p.Hkv = 1, 1
	p.Layout = attention.BHND
	in := tensors(rand.New(rand.NewPCG(2, 31)), p, true)
	resident := planned(t, stream.Request{Problem: p, LSE: true, Budget: 1 << 40, Divide: "cqs", Chunks: 1})
	for part := int64(1); part <= 64; part *= 2 {
		budget := resident.Memory.Total() / part
		plan, _, err := stream.New(stream.Request{Problem: p, LSE: true, Budget: budget, Host: host}, cpu.New(2))
		if err != nil {
			t.Fatalf("1/%d: %v", part, err)
		}
		x := blank(in)
		rep := run(t, plan, 2, 0, x)
		if !(rep.Memory.Total() <= budget) {
			t.Fatalf("1/%d: took %d of %d", part, rep.Memory.Total(), budget)
		}
		compare(t, p, x)
	}
}

// What a stretch of the schedule promises, the whole keeps within 5%; at depths
// whose subproblems come in clusters, within 10%.
func TestSampledTraffic(t *testing.T) {
	t.Parallel()
	for _, c := range []stream.Request{
		{Divide: "cqs", Chunks: 133}, {Divide: "cqs", Chunks: 133, Budget: 170 << 10}, {Divide: "cqs", Chunks: 133, Budget: 230 << 10},
		{Divide: "cqs", Chunks: 13, Depth: 2}, {Divide: "cqs", Chunks: 183, Budget: 190 << 10},
		{Divide: "rows", Chunks: 70}, {Divide: "rows", Chunks: 120, Budget: 160 << 10},
	} {
		for causal := attention.NonCausal; causal <= attention.BottomRight; causal++ {
			c.Problem = attention.Problem{
				B: 1, Hq: 1, Hkv: 1, Nq: 380, Nk: 400, D: 2, Dv: 2, Causal: causal, Layout: attention.ND,
				DType: attention.F32, OutDType: attention.F32, Scale: 1,
			}
			plan := planned(t, c)
			if causal == attention.NonCausal && !plan.Traffic.Sampled {
				t.Errorf("%s, %d chunks: not sampled", c.Divide, c.Chunks)
			}
			rep := run(t, plan, 2, 0, tensors(rand.New(rand.NewPCG(3, 31)), c.Problem, false))
			in, out := float64(plan.Traffic.In)/float64(rep.Stats.InBytes), float64(plan.Traffic.Out)/float64(rep.Stats.OutBytes)
			t.Logf("%s, %d chunks, depth %d, %v, %+v slots of %d+%d: predicted in x %.4f, out x %.4f", c.Divide, c.Chunks, plan.Depth, causal,
				plan.Active, plan.Geometry.QuerySlots, plan.Geometry.KVSlots, in, out)
			tol := 0.05
			if plan.Depth > 1 {
				tol = 0.10
			}
			if !(math.Abs(in-1) <= tol && math.Abs(out-1) <= tol) {
				t.Errorf("%s, %d chunks, depth %d, %v: moved %d in and %d out, predicted %+v", c.Divide, c.Chunks, plan.Depth, causal, rep.Stats.InBytes, rep.Stats.OutBytes, plan.Traffic)
			}
		}
	}
}

// hooked calls a function at each hint to read ahead.
type hooked struct {
	memory
	hook func()
}

func (h hooked) WillNeed(lo, hi int64) { h.hook() }

func TestCancel(t *testing.T) {
	p := medium(400, 400, 8, attention.NonCausal)
	plan := planned(t, stream.Request{Problem: p, Divide: "cqs", Chunks: 13})
	if plan.StateDisk == 0 {
		t.Fatal("the plan keeps no states")
	}
	before := runtime.NumGoroutine()
	cause := errors.New("enough")
	for at := int64(0); at < 200; at += 13 {
		ctx, cancel := context.WithCancelCause(context.Background())
		x := tensors(rand.New(rand.NewPCG(4, 31)), p, false)
		var n atomic.Int64
		x.K = hooked{x.K.(memory), func() {
			if n.Add(1) > at {
				cancel(cause)
			}
		}}
		path := filepath.Join(t.TempDir(), "state")
		rep, err := stream.Run(ctx, plan, cpu.New(2), x, stream.Options{StatePath: path})
		if !errors.Is(err, cause) || rep != nil {
			t.Fatalf("cancelled at load %d: %v, report %v", at, err, rep)
		}
		gone(t, path)
		cancel(nil)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// shrinking is a mapped file that is truncated at some hint.
type shrinking struct {
	path string
	m    mmap.MMap
	n    *int
	t    *testing.T
}

func (s shrinking) Path() string          { return s.path }
func (s shrinking) Bytes() []byte         { return s.m }
func (s shrinking) DontNeed(lo, hi int64) {}
func (s shrinking) WillNeed(lo, hi int64) {
	if *s.n--; *s.n == 0 {
		if err := os.Truncate(s.path, 0); err != nil {
			s.t.Error(err)
		}
	}
}

// An input that shrinks under its mapping is an error that names it.
func TestShrinkingInput(t *testing.T) {
	p := medium(3000, 3000, 8, attention.NonCausal)
	p.Hq, p.Hkv = 1, 1
	plan := planned(t, stream.Request{Problem: p, Divide: "cqs", Chunks: 13})
	for i, tensor := range []string{"Q", "K", "V"} {
		x := tensors(rand.New(rand.NewPCG(5, 31)), p, false)
		b := map[string][]byte{"Q": x.Q.Bytes(), "K": x.K.Bytes(), "V": x.V.Bytes()}[tensor]
		dir := t.TempDir()
		s := shrinking{path: filepath.Join(dir, tensor+".raw"), n: new(int), t: t}
		*s.n = 3 + i
		if err := os.WriteFile(s.path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if s.m, err = mmap.Map(f, mmap.RDONLY, 0); err != nil {
			t.Fatal(err)
		}
		switch tensor {
		case "Q":
			x.Q = s
		case "K":
			x.K = s
		case "V":
			x.V = s
		}
		state := filepath.Join(dir, "state")
		_, err = stream.Run(context.Background(), plan, cpu.New(2), x, stream.Options{StatePath: state})
		var fault *attention.Fault
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), s.path) {
			t.Errorf("%s: %v", tensor, err)
		}
		gone(t, state)
		if err := errors.Join(s.m.Unmap(), f.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestWrongSizes(t *testing.T) {
	p := medium(20, 30, 4, attention.NonCausal)
	plan := planned(t, stream.Request{Problem: p, LSE: true, Budget: 1 << 30})
	for _, name := range []string{"Q", "K", "V", "O", "LSE"} {
		for _, by := range []int{-1, 1} {
			x := tensors(rand.New(rand.NewPCG(6, 31)), p, true)
			wrong := func(b []byte) memory { return memory{name, make([]byte, len(b)+by)} }
			switch name {
			case "Q":
				x.Q = wrong(x.Q.Bytes())
			case "K":
				x.K = wrong(x.K.Bytes())
			case "V":
				x.V = wrong(x.V.Bytes())
			case "O":
				x.O = wrong(x.O.Bytes())
			case "LSE":
				x.LSE = wrong(x.LSE.Bytes())
			}
			dev := newJudge(1, x)
			_, err := stream.Run(context.Background(), plan, dev, x, stream.Options{})
			if err == nil || !strings.Contains(err.Error(), "tensor "+name+" ") {
				t.Errorf("%s off by %d: %v", name, by, err)
			}
			if dev.reserved > 0 {
				t.Errorf("%s: the device was reserved", name)
			}
		}
	}
}

// A state store that cannot be made is an error, and the device is released.
func TestNoStateStore(t *testing.T) {
	p := medium(400, 400, 8, attention.NonCausal)
	plan := planned(t, stream.Request{Problem: p, Divide: "cqs", Chunks: 13})
	x := tensors(rand.New(rand.NewPCG(7, 31)), p, false)
	dev := newJudge(1, x)
	_, err := stream.Run(context.Background(), plan, dev, x, stream.Options{StatePath: filepath.Join(t.TempDir(), "no", "state")})
	if !errors.Is(err, os.ErrNotExist) || dev.released != 1 {
		t.Fatalf("%v; released %d times", err, dev.released)
	}
}

// Row numbers need more than 16 bits.
func TestLongKeys(t *testing.T) {
	t.Parallel()
	for _, causal := range []attention.Causal{attention.NonCausal, attention.BottomRight} {
		for _, swap := range []bool{false, true} {
			p := medium(3, 200_000, 8, causal)
			p.Hq, p.Hkv = 1, 1
			if swap {
				p.Nq, p.Nk = 70_000, 3
			}
			for _, kind := range []string{"cqs", "rows"} {
				t.Run(fmt.Sprintf("%v/%s/nq=%d", causal, kind, p.Nq), func(t *testing.T) {
					plan := planned(t, stream.Request{Problem: p, LSE: true, Budget: 2 << 20, Divide: kind})
					x := tensors(rand.New(rand.NewPCG(8, 31)), p, true)
					run(t, plan, 2, 0, x)
					compare(t, p, x)
				})
			}
		}
	}
}
