package stream

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

var update = flag.Bool("update", false, "write testdata anew")

// sequence is one head of n tokens.
func sequence(n, d int, causal attention.Causal) attention.Problem {
	return attention.Problem{
		B: 1, Hq: 1, Hkv: 1, Nq: n, Nk: n, D: d, Dv: d, Causal: causal,
		DType: attention.BF16, OutDType: attention.BF16, Layout: attention.BHND, Scale: attention.DefaultScale(d),
	}
}

// describe is a plan as text: what is decided and what it is predicted to cost.
func describe(p *Plan) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("divide      %s, set %v, depth %d", p.Divide, p.Set.Members(), p.Depth)
	line("head groups %d of %d KV heads", p.Groups, p.Geometry.KVHeads)
	line("query       %d chunks of %d rows, %d slots, %d active", p.QueryAxis.Chunks, p.Geometry.QueryRows, p.Geometry.QuerySlots, p.Active.Query)
	line("keys        %d chunks of %d rows, %d slots, %d active", p.KeyAxis.Chunks, p.Geometry.KeyRows, p.Geometry.KVSlots, p.Active.KV)
	line("subproblems %d, %.0f chunk pairs", p.Subproblems, p.ChunkPairs)
	for _, u := range p.Memory {
		line("memory      %s %d", u.Purpose, u.Bytes)
	}
	line("memory      %d of %d", p.Memory.Total(), p.Budget)
	line("state disk  %d", p.StateDisk)
	line("output      %d, lse %d", p.OutputBytes, p.LSEBytes)
	line("traffic     in %d (states %d), out %d (states %d), disk %d, sampled %v", p.Traffic.In, p.Traffic.StateIn, p.Traffic.Out, p.Traffic.StateOut, p.Traffic.Disk, p.Traffic.Sampled)
	line("flops       %.6g", p.FLOPs)
	s := p.Seconds
	line("seconds     kernel %.4g, in %.4g, out %.4g, disk %.4g: %.4g, bound by %s", s.Kernel, s.In, s.Out, s.Disk, s.Total, s.Bound)
	return b.String()
}

func TestPlanGolden(t *testing.T) {
	t.Parallel()
	host := Host{Cache: 64 << 30, Disk: 1.5e9}
	wide := sequence(1<<17, 128, attention.BottomRight)
	wide.B, wide.Hq, wide.Hkv = 2, 32, 8
	cross := sequence(5000, 64, attention.NonCausal)
	cross.Nk, cross.Dv = 3_000_000, 80
	blind := sequence(1_000_000, 64, attention.BottomRight)
	blind.Nk = 1000
	f32 := sequence(100_003, 40, attention.TopLeft)
	f32.DType, f32.OutDType = attention.F32, attention.F32
	for _, c := range []struct {
		name string
		req  Request
		dev  Device
	}{
		{"resident", Request{Problem: sequence(4096, 64, attention.NonCausal), Budget: 1 << 30}, gpuLike},
		{"one-token", Request{Problem: sequence(1, 1, attention.TopLeft), Budget: 1 << 20, LSE: true}, coreLike},
		{"2m-4gib", Request{Problem: sequence(2<<20, 128, attention.NonCausal), Budget: 4 << 30}, gpuLike},
		{"2m-512mib", Request{Problem: sequence(2<<20, 128, attention.NonCausal), Budget: 512 << 20}, gpuLike},
		{"2m-128mib-causal", Request{Problem: sequence(2<<20, 128, attention.BottomRight), Budget: 128 << 20, LSE: true}, gpuLike},
		{"2m-128mib-cqs", Request{Problem: sequence(2<<20, 128, attention.NonCausal), Budget: 128 << 20, Divide: "cqs"}, gpuLike},
		{"2m-128mib-rows", Request{Problem: sequence(2<<20, 128, attention.NonCausal), Budget: 128 << 20, Divide: "rows"}, gpuLike},
		{"2m-cores", Request{Problem: sequence(2<<20, 64, attention.TopLeft), Budget: 256 << 20}, coreLike},
		{"heads", Request{Problem: wide, Budget: 1 << 30}, gpuLike},
		{"heads-small", Request{Problem: wide, Budget: 32 << 20}, coreLike},
		{"cross", Request{Problem: cross, Budget: 64 << 20}, gpuLike},
		{"blind", Request{Problem: blind, Budget: 4 << 20, LSE: true}, coreLike},
		{"forced-57", Request{Problem: f32, Budget: 16 << 20, Divide: "cqs", Chunks: 57}, gpuLike},
		{"forced-even", Request{Problem: f32, Budget: 16 << 20, Divide: "cqs", Chunks: 12}, coreLike},
		{"forced-rows", Request{Problem: f32, Budget: 16 << 20, Divide: "rows", Chunks: 20}, coreLike},
		{"depth-2", Request{Problem: f32, Budget: 16 << 20, Divide: "cqs", Depth: 2, LSE: true}, gpuLike},
		{"1g", Request{Problem: sequence(1e9, 128, attention.BottomRight), Budget: 8 << 30}, gpuLike},
	} {
		c.req.Host = host
		t.Run(c.name, func(t *testing.T) {
			plan, others, err := New(c.req, c.dev)
			if err != nil {
				t.Fatal(err)
			}
			got := describe(plan)
			for _, o := range others {
				got += "\ninstead of\n" + describe(o)
			}
			path := filepath.Join("testdata", "plan", c.name+".txt")
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s says\n%s\nbut the plan is\n%s\nIf that is meant, run go test -run PlanGolden -update.", path, want, got)
			}
		})
	}
}

// randomRequest is of any size that is quick to plan.
func randomRequest(r *rand.Rand) Request {
	length := func() int { return 1 + int(math.Exp(r.Float64()*16)) }
	p := sequence(length(), 1+r.IntN(128), attention.Causal(r.IntN(3)))
	p.Nk, p.Dv = length(), 1+r.IntN(128)
	if r.IntN(2) == 0 {
		p.Nk = p.Nq
	}
	p.B, p.Hkv = 1+r.IntN(2), 1+r.IntN(5)
	p.Hq = p.Hkv * (1 + r.IntN(3))
	req := Request{Problem: p, LSE: r.IntN(2) == 0, Budget: int64(math.Exp(11 + 15*r.Float64())), Host: Host{Cache: 1 << 30, Disk: 1e9}}
	req.Divide = []string{"", "auto", "cqs", "rows"}[r.IntN(4)]
	if req.Divide == "cqs" && r.IntN(4) == 0 {
		req.Depth = 1 + r.IntN(3)
	}
	if r.IntN(5) == 0 {
		req.Chunks = []int{1, 2, 3, 6, 7, 13, 20}[r.IntN(7)]
	}
	return req
}

// A run can only stop between two batches: where that costs next to nothing, none takes
// longer than the device says.
func TestLongestBatch(t *testing.T) {
	t.Parallel()
	long := 0
	r := rand.New(rand.NewPCG(1, 1))
	for range 25 {
		req := randomRequest(r)
		req.Divide, req.Chunks, req.Depth = "auto", 0, 0
		free := randomDevice(r).(*paperDevice)
		bound := &paperDevice{rates: free.rates}
		bound.rates.Longest = 0.5
		before, _, err := New(req, free)
		plan, _, err2 := New(req, bound)
		if err != nil || err2 != nil {
			if fmt.Sprint(err) != fmt.Sprint(err2) {
				t.Errorf("%+v: %v, with a longest batch %v", req, err, err2)
			}
			continue
		}
		batch := func(p *Plan) float64 {
			g := p.Geometry
			pair := 2 * float64(g.D+g.Dv) * float64(g.QueryRows) * float64(g.KeyRows) * float64(g.QueryHeads())
			return pair * float64(p.Active.Query*p.Active.KV) / free.rates.FLOPS
		}
		if batch(before) > 0.5 {
			long++
		}
		if !(batch(plan) <= 0.5) {
			t.Errorf("%+v: a batch takes %.3g s", req, batch(plan))
		}
		if !(plan.Seconds.Total <= before.Seconds.Total*1.03+1e-3) {
			t.Errorf("%+v: %.4g s, it was %.4g s", req, plan.Seconds.Total, before.Seconds.Total)
		}
	}
	if long < 2 {
		t.Errorf("only %d plans had a long batch", long)
	}
}

func randomDevice(r *rand.Rand) Device { return []Device{gpuLike, coreLike}[r.IntN(2)] }

func TestPlanProperties(t *testing.T) {
	t.Parallel()
	n := uint64(25)
	if *long {
		n = 3000
	}
	for seed := range n {
		r := rand.New(rand.NewPCG(seed, 21))
		req, dev := randomRequest(r), randomDevice(r)
		plan, others, err := New(req, dev)
		var no *NoFitError
		switch {
		case errors.As(err, &no):
			if no.Smallest <= req.Budget {
				t.Fatalf("seed %d: %v", seed, err)
			}
			req.Budget = no.Smallest - 1
			if _, _, err := New(req, dev); !errors.As(err, &no) || no.Smallest != req.Budget+1 {
				t.Fatalf("seed %d: with one byte less than %d: %v", seed, req.Budget+1, err)
			}
			req.Budget++
			if plan, others, err = New(req, dev); err != nil {
				t.Fatalf("seed %d: with the smallest budget that works: %v", seed, err)
			}
		case err != nil:
			t.Fatalf("seed %d: %+v: %v", seed, req, err)
		}
		for _, p := range append(others, plan) {
			if p.Memory.Total() > req.Budget {
				t.Fatalf("seed %d: the plan takes %d of %d", seed, p.Memory.Total(), req.Budget)
			}
			if !reflect.DeepEqual(p.Memory, dev.Footprint(p.Geometry)) {
				t.Fatalf("seed %d: memory %v of a footprint %v", seed, p.Memory, dev.Footprint(p.Geometry))
			}
			sane(t, seed, p)
		}
		again, _, err := New(req, dev)
		if err != nil || describe(again) != describe(plan) {
			t.Fatalf("seed %d: the second plan differs: %v\n%s\n%s", seed, err, describe(plan), describe(again))
		}
	}
}

// sane holds for the predictions of any plan.
func sane(t *testing.T, seed uint64, p *Plan) {
	t.Helper()
	q := p.Problem
	tr := p.Traffic
	need := tensorBytes(q.B, q.Hq, q.Nq, q.D, q.DType)
	switch {
	case !(p.Seconds.Total > 0 && p.Seconds.Total >= p.Seconds.Kernel) || math.IsInf(p.Seconds.Total, 0):
		t.Fatalf("seed %d: seconds %+v", seed, p.Seconds)
	case tr.In < need || tr.Out < min(p.OutputBytes+p.LSEBytes, 1<<61) || tr.StateIn < 0 || tr.StateIn != tr.StateOut || tr.StateIn > tr.In:
		t.Fatalf("seed %d: traffic %+v, Q alone has %d bytes", seed, tr, need)
	case tr.StateOut > 0 && p.StateDisk == 0:
		t.Fatalf("seed %d: states move and have no place", seed)
	}
}

// More memory never makes a plan slower, but for ties (each plan may be 2% slower
// than the fastest candidate, the slack of other links counts a little, and the
// candidates of two budgets differ) and for chunks so short that only a budget
// with no other choice has them.
func TestPlanMonotonic(t *testing.T) {
	t.Parallel()
	n := uint64(6)
	if *long {
		n = 40
	}
	for seed := range n {
		r := rand.New(rand.NewPCG(seed, 22))
		req, dev := randomRequest(r), randomDevice(r)
		best := math.Inf(1)
		var was *Plan
		for req.Budget = 1 << 14; req.Budget < 1<<38; req.Budget *= 3 {
			p, _, err := New(req, dev)
			if err != nil {
				continue
			}
			if !(p.Seconds.Total <= best*1.07) {
				t.Errorf("seed %d: %+v: a budget of %d is slower than %d:\n%s\n%s", seed, req.Problem, req.Budget, was.Budget, describe(p), describe(was))
				break
			}
			short := func(chunk, n int) bool { return chunk < min(n, fineRows) }
			if g := p.Geometry; short(g.QueryRows, req.Problem.Nq) || short(g.KeyRows, req.Problem.Nk) {
				continue
			}
			if p.Seconds.Total < best {
				best, was = p.Seconds.Total, p
			}
		}
	}
}

func TestPlanErrors(t *testing.T) {
	good := sequence(1000, 8, attention.NonCausal)
	bad := good
	bad.Nq = 0
	for _, c := range []struct {
		req  Request
		text string
	}{
		{Request{Problem: bad}, "Nq is 0"},
		{Request{Problem: good, Divide: "columns"}, "columns"},
		{Request{Problem: good, Chunks: -1}, "-1 chunks"},
		{Request{Problem: good, Chunks: 1 << 40}, "1099511627776 chunks"},
		{Request{Problem: good, Depth: -1}, "depth -1"},
		{Request{Problem: good, Depth: 4, Divide: "cqs"}, "depth 4"},
		{Request{Problem: good, Depth: 2, Divide: "rows"}, "only the cqs division has a depth"},
		{Request{Problem: good, Divide: "cqs", Chunks: 112}, "112"},
		{Request{Problem: good, Divide: "cqs", Chunks: 1057, Depth: 3}, "depth 3"},
		{Request{Problem: sequence(1e17, 64, attention.NonCausal)}, "more bytes than an address"},
	} {
		c.req.Budget = 1 << 30
		_, _, err := New(c.req, gpuLike)
		if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v: want ErrRequest saying %q", c.req, err, c.text)
		}
	}
	for _, budget := range []int64{math.MinInt64, -1, 0, 1} {
		var no *NoFitError
		if _, _, err := New(Request{Problem: good, Budget: budget}, gpuLike); !errors.As(err, &no) || no.Budget != budget || no.Smallest < 1 {
			t.Errorf("budget %d: %v", budget, err)
		}
	}
}

// Sizes at which something overflows end in an error or a plan within the
// budget, in every case of a division.
func TestPlanHuge(t *testing.T) {
	for _, n := range []int{1e15, 5e17} {
		for _, d := range []int{1, 64} {
			for _, kind := range []string{"cqs", "rows"} {
				for _, budget := range []int64{1, 1 << 45, math.MaxInt64} {
					for _, causal := range []attention.Causal{attention.NonCausal, attention.BottomRight} {
						req := Request{Problem: sequence(n, d, causal), Budget: budget, Divide: kind, LSE: true, Host: Host{Disk: 1e9}}
						p, _, err := New(req, gpuLike)
						var no *NoFitError
						switch {
						case err == nil:
							if p.Memory.Total() > budget || p.Memory.Total() < 0 {
								t.Errorf("%s: %d bytes", name(req), p.Memory.Total())
							}
							for _, u := range p.Memory {
								if u.Bytes < 0 {
									t.Errorf("%s: %+v", name(req), u)
								}
							}
							sane(t, uint64(n), p)
						case !errors.As(err, &no) && !errors.Is(err, ErrRequest):
							t.Errorf("%s: %v", name(req), err)
						}
					}
				}
			}
		}
	}
}

// billion are requests for 10^9 tokens.
func billion() []Request {
	var list []Request
	for _, budget := range []int64{8 << 30, 512 << 20, 64 << 20} {
		for _, d := range []int{64, 128} {
			for _, causal := range []attention.Causal{attention.NonCausal, attention.BottomRight} {
				for _, kind := range []string{"auto", "cqs", "rows"} {
					list = append(list, Request{
						Problem: sequence(1e9, d, causal), Budget: budget, Divide: kind,
						Host: Host{Cache: 64 << 30, Disk: 1.5e9},
					})
				}
			}
		}
	}
	return list
}

func name(r Request) string {
	return fmt.Sprintf("n=%d/budget=%dMiB/d=%d/%v/%s", r.Problem.Nq, r.Budget>>20, r.Problem.D, r.Problem.Causal, r.Divide)
}

// A plan for 10^9 tokens takes little memory. BenchmarkPlanBillion has its time.
func TestPlanBillion(t *testing.T) {
	for _, req := range billion() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p, _, err := New(req, gpuLike)
		runtime.ReadMemStats(&after)
		var no *NoFitError
		if err != nil && !errors.As(err, &no) {
			t.Fatalf("%s: %v", name(req), err)
		}
		if err == nil {
			sane(t, 0, p)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n >= 50<<20 {
			t.Errorf("%s: %d bytes allocated", name(req), n)
		}
	}
}

func BenchmarkPlanBillion(b *testing.B) {
	for _, req := range billion() {
		b.Run(name(req), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, err := New(req, gpuLike)
				var no *NoFitError
				if err != nil && !errors.As(err, &no) {
					b.Fatal(err)
				}
			}
		})
	}
}
