package stream_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// memory is a tensor in memory, as Source and Sink.
type memory struct {
	name string
	b    []byte
}

func (m memory) Path() string          { return m.name }
func (m memory) Sync() error           { return nil }
func (m memory) Bytes() []byte         { return m.b }
func (m memory) WillNeed(lo, hi int64) {}
func (m memory) DontNeed(lo, hi int64) {}

func normal(r *rand.Rand, name string, n int, t attention.DType) memory {
	b := make([]byte, n*t.Size())
	for i := range n {
		t.Put(b[i*t.Size():], r.NormFloat64())
	}
	return memory{name, b}
}

func tensors(r *rand.Rand, p attention.Problem, lse bool) stream.Tensors {
	t := stream.Tensors{
		Q: normal(r, "Q", p.B*p.Hq*p.Nq*p.D, p.DType),
		K: normal(r, "K", p.B*p.Hkv*p.Nk*p.D, p.DType),
		V: normal(r, "V", p.B*p.Hkv*p.Nk*p.Dv, p.DType),
		O: memory{"O", bytes.Repeat([]byte{0xff}, p.B*p.Hq*p.Nq*p.Dv*p.OutDType.Size())}, // NaN wherever nothing is written
	}
	if lse {
		t.LSE = memory{"LSE", bytes.Repeat([]byte{0xff}, p.B*p.Hq*p.Nq*4)}
	}
	return t
}

// head returns rows of one head of a tensor, found by the layout's formula.
func head(p attention.Problem, b []byte, t attention.DType, batch, h, heads, n, d int) attention.Rows {
	es := t.Size()
	return attention.Rows{Data: b[p.Layout.Offset(batch, h, 0, heads, n, d)*es:], Stride: p.Layout.RowStride(heads, d) * es, N: n, Width: d, DType: t}
}

// compare checks every row against the oracle.
func compare(t *testing.T, p attention.Problem, x stream.Tensors) {
	t.Helper()
	var num, den, worst float64
	for b := range p.B {
		for h := range p.Hq {
			q := head(p, x.Q.Bytes(), p.DType, b, h, p.Hq, p.Nq, p.D)
			k := head(p, x.K.Bytes(), p.DType, b, h/p.Group(), p.Hkv, p.Nk, p.D)
			v := head(p, x.V.Bytes(), p.DType, b, h/p.Group(), p.Hkv, p.Nk, p.Dv)
			o := head(p, x.O.Bytes(), p.OutDType, b, h, p.Hq, p.Nq, p.Dv)
			qs, visible, exact := make([][]float32, p.Nq), make([]int, p.Nq), make([][]float64, p.Nq)
			for i := range p.Nq {
				qs[i], exact[i] = make([]float32, p.D), make([]float64, p.Dv)
				p.DType.Widen(qs[i], q.Row(i))
				visible[i] = p.Visible(i)
			}
			lse := attention.Oracle(exact, qs, visible, k, v, p.Scale)
			got := make([]float32, p.Dv)
			for i := range p.Nq {
				p.OutDType.Widen(got, o.Row(i))
				for d, g := range got {
					e := float64(g) - exact[i][d]
					num, den = num+e*e, den+exact[i][d]*exact[i][d]
					worst = max(worst, math.Abs(e))
					if math.IsNaN(e) {
						t.Fatalf("O[%d,%d,%d,%d] = %v, want %v", b, h, i, d, g, exact[i][d])
					}
				}
				if x.LSE != nil {
					l := head(p, x.LSE.Bytes(), attention.F32, b, h, p.Hq, p.Nq, 1)
					one := make([]float32, 1)
					attention.F32.Widen(one, l.Row(i))
					if !(math.Abs(float64(one[0])-lse[i]) <= 1e-6*(1+math.Abs(lse[i])) || float64(one[0]) == lse[i]) {
						t.Fatalf("lse[%d,%d,%d] = %v, want %v", b, h, i, one[0], lse[i])
					}
				}
			}
		}
	}
	tol := max(p.OutDType.Epsilon(), 1e-6) // of the device; see docs/numerics.md
	if rel := math.Sqrt(num / den); den > 0 && !(rel <= tol) {
		t.Fatalf("relative error %g, want at most %g", rel, tol)
	}
	if !(worst <= 4*tol) {
		t.Fatalf("worst element is off by %g, want at most %g", worst, 4*tol)
	}
}

func randomProblem(r *rand.Rand) attention.Problem {
	p := attention.Problem{
		B: 1 + r.IntN(2), Hkv: 1 + r.IntN(3), Nq: 1 + r.IntN(300), Nk: 1 + r.IntN(300),
		D: 1 + r.IntN(20), Dv: 1 + r.IntN(20),
		DType: attention.DType(1 + r.IntN(3)), Layout: attention.BHND + attention.Layout(r.IntN(2)),
		Causal: attention.Causal(r.IntN(3)),
	}
	p.OutDType = p.DType
	p.Hq = p.Hkv * (1 + r.IntN(2))
	if r.IntN(2) == 0 {
		p.Nk = p.Nq
	}
	switch r.IntN(6) {
	case 0:
		p.Layout, p.B = attention.HND, 1
	case 1:
		p.Layout, p.B = attention.NHD, 1
	case 2:
		p.Layout, p.B, p.Hq, p.Hkv = attention.ND, 1, 1, 1
	}
	p.Scale = attention.DefaultScale(p.D)
	return p
}

func TestRandomProblems(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		p := randomProblem(r)
		req := stream.Request{Problem: p, LSE: r.IntN(2) == 0, Budget: 1 << 40, Host: stream.Host{Cache: 1 << 30, Disk: 1e9}}
		req.Divide = []string{"auto", "cqs", "rows"}[r.IntN(3)]
		if r.IntN(3) > 0 {
			req.Chunks = []int{1, 2, 3, 4, 6, 7, 8, 13, 21}[r.IntN(9)]
		}
		if req.Divide == "cqs" && req.Chunks < 8 && r.IntN(4) == 0 {
			req.Depth = 2
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			dev := cpu.New(2)
			plan, _, err := stream.New(req, dev)
			if err != nil {
				t.Fatalf("%+v: %v", req, err)
			}
			// And again with the smallest budget, and something between.
			req.Budget = 1
			_, _, err = stream.New(req, dev)
			if nf, ok := err.(*stream.NoFitError); !ok {
				t.Fatalf("budget of 1 byte: %v", err)
			} else {
				req.Budget = nf.Smallest + int64(float64(plan.Memory.Total()-nf.Smallest)*max(0, r.Float64()*1.5-0.5))
			}
			if plan, _, err = stream.New(req, dev); err != nil {
				t.Fatalf("%+v: %v", req, err)
			}
			if plan.Memory.Total() > req.Budget {
				t.Fatalf("plan takes %d of a budget of %d", plan.Memory.Total(), req.Budget)
			}
			x := tensors(r, p, req.LSE)
			opt := stream.Options{StatePath: filepath.Join(t.TempDir(), "state"), Prefetch: r.IntN(5) - 1}
			rep, err := stream.Run(context.Background(), plan, dev, x, opt)
			if err != nil {
				t.Fatalf("%+v: %v", req, err)
			}
			compare(t, p, x)
			if !slices.Equal(rep.Memory, plan.Memory) || rep.State != plan.StateDisk {
				t.Fatalf("took %+v and %d for states; the plan said %+v and %d", rep.Memory, rep.State, plan.Memory, plan.StateDisk)
			}
			if in, out := rep.Stats.InBytes, rep.Stats.OutBytes; in != plan.Traffic.In || out != plan.Traffic.Out {
				t.Fatalf("moved %d in, %d out; the plan said %+v", in, out, plan.Traffic)
			}
			if got, want := rep.Stats.Pairs, p.Pairs()*float64(p.B*p.Hq); got != want {
				t.Fatalf("applied %v pairs, want %v", got, want)
			}
		})
	}
}

// Whoever asks how far a run is gets an answer at once, whenever the next one would be.
func TestAsk(t *testing.T) {
	t.Parallel()
	p := medium(60, 60, 8, attention.NonCausal)
	x := tensors(rand.New(rand.NewPCG(1, 51)), p, false)
	ask, answered := make(chan struct{}), make(chan stream.Progress, 1)
	var once sync.Once
	x.K = hooked{x.K.(memory), func() {
		once.Do(func() { // in the middle of the run, which goes on when it has answered
			for range 3 {
				select {
				case ask <- struct{}{}:
				case <-time.After(time.Minute):
					t.Error("nobody hears the question")
					return
				}
				select {
				case got := <-answered:
					if !got.Asked || got.TotalPairs != p.Pairs()*float64(p.Hq) {
						t.Errorf("the answer is %+v", got)
					}
				case <-time.After(time.Minute):
					t.Error("no answer")
				}
			}
		})
	}}
	calls := 0
	_, err := stream.Run(context.Background(), planned(t, stream.Request{Problem: p, Divide: "cqs", Chunks: 3}), cpu.New(1), x, stream.Options{
		StatePath: filepath.Join(t.TempDir(), "state"), ProgressEvery: time.Hour, Ask: ask,
		Progress: func(p stream.Progress) {
			if calls++; p.Asked {
				answered <- p
			}
		},
	})
	if err != nil || calls != 4 { // and the last one
		t.Errorf("%v; it told how far it is %d times, want 3 and the end", err, calls)
	}
}
