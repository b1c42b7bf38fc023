package devicetest

import (
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// Tensors are the inputs of a problem, in its layout.
type Tensors struct {
	P       attention.Problem
	Q, K, V []byte
}

// Problem fills in what most tests do not care about: one head, n queries and n keys
// of dimension d, float32.
func Problem(n, d int) attention.Problem {
	return attention.Problem{B: 1, Hq: 1, Hkv: 1, Nq: n, Nk: n, D: d, Dv: d,
		DType: attention.F32, OutDType: attention.F32, Layout: attention.BHND, Scale: attention.DefaultScale(d)}
}

// Fill makes a tensor of h heads, n rows of w elements.
func Fill(p attention.Problem, h, n, w int, value func(b, h, n, d int) float64) []byte {
	data := make([]byte, p.B*h*n*w*p.DType.Size())
	for b := range p.B {
		for x := range h {
			r := rowsOf(p, data, p.DType, b, x, h, n, w, 0, n)
			for i := range n {
				for d := range w {
					p.DType.Put(r.Row(i)[d*p.DType.Size():], value(b, x, i, d))
				}
			}
		}
	}
	return data
}

// Random makes inputs of normal distribution.
func Random(p attention.Problem, rng *rand.Rand) Tensors {
	normal := func(_, _, _, _ int) float64 { return rng.NormFloat64() }
	return Tensors{P: p,
		Q: Fill(p, p.Hq, p.Nq, p.D, normal),
		K: Fill(p, p.Hkv, p.Nk, p.D, normal),
		V: Fill(p, p.Hkv, p.Nk, p.Dv, normal)}
}

func rowsOf(p attention.Problem, data []byte, t attention.DType, b, h, heads, n, w, lo, hi int) attention.Rows {
	at := p.Layout.Offset(b, h, 0, heads, n, w) * t.Size()
	r := attention.Rows{Data: data[at:], Stride: p.Layout.RowStride(heads, w) * t.Size(), N: n, Width: w, DType: t}
	return r.Slice(lo, hi)
}

// Heads are rows [lo, hi) of every head of a tensor of n rows of w elements, that data
// holds in the layout of the problem.
func (x Tensors) Heads(data []byte, t attention.DType, b, heads, n, w, lo, hi int) []attention.Rows {
	var rows []attention.Rows
	for h := range heads {
		rows = append(rows, rowsOf(x.P, data, t, b, h, heads, n, w, lo, hi))
	}
	return rows
}

// Way is how a problem is computed; the zero value is one chunk, one thread.
type Way struct {
	QueryChunk, KeyChunk int  // rows of a chunk, 0 for all
	Threads              int  // 0 for one
	Batch                int  // pairs of one Apply, 0 for one
	Save                 bool // the state makes a detour through memory after each batch
	Slack                int  // rows by which the geometry is larger than the chunks
}

func (w Way) or(p attention.Problem) Way {
	w.QueryChunk = min(p.Nq, max(w.QueryChunk, p.Nq*b2i(w.QueryChunk == 0)))
	w.KeyChunk = min(p.Nk, max(w.KeyChunk, p.Nk*b2i(w.KeyChunk == 0)))
	w.Threads, w.Batch = max(w.Threads, 1), max(w.Batch, 1)
	return w
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Result is what a device computed.
type Result struct {
	O   []byte // in the problem's layout and output type
	LSE []byte // (B, Hq, Nq) float32

	Float64 float64 // pairs, as the device counts them
}

// Geometry of the pool: two query slots, so that a state can change slots, and
// a KV slot for each pair of a batch.
func (w Way) Geometry(p attention.Problem) attention.Geometry {
	w = w.or(p)
	return attention.Geometry{D: p.D, Dv: p.Dv, DType: p.DType, OutDType: p.OutDType, Scale: p.Scale,
		Fast: p.Fast, KVHeads: p.Hkv, Group: p.Group(), QueryRows: w.QueryChunk + w.Slack, KeyRows: w.KeyChunk + w.Slack, QuerySlots: 2, KVSlots: w.Batch}
}

// Compute computes the problem chunk by chunk on a device whose memory is full of NaN.
func (s Subject) Compute(t testing.TB, x Tensors, w Way) Result {
	t.Helper()
	w = w.or(x.P)
	p := x.P
	d := s.reserve(t, w.Threads, w.Geometry(x.P))
	defer func() { must(t, d.Release()) }()
	res := Result{O: make([]byte, p.B*p.Hq*p.Nq*p.Dv*p.OutDType.Size()), LSE: make([]byte, p.B*p.Hq*p.Nq*4)}
	for b := range p.B {
		for q0 := 0; q0 < p.Nq; q0 += w.QueryChunk {
			q1 := min(q0+w.QueryChunk, p.Nq)
			r := runner{t: t, d: d, x: x, w: w, b: b, q0: q0, q1: q1}
			last, slot := r.apply()
			out := x.Heads(res.O, p.OutDType, b, p.Hq, p.Nq, p.Dv, q0, q1)
			var lse []attention.Rows
			for h := range p.Hq {
				at := ((b*p.Hq+h)*p.Nq + q0) * 4
				lse = append(lse, attention.Rows{Data: res.LSE[at : at+(q1-q0)*4], Stride: 4, N: q1 - q0, Width: 1, DType: attention.F32})
			}
			empty := 0
			for q0+empty < q1 && p.Visible(q0+empty) == 0 {
				empty++
			}
			must(t, d.Finish(slot, empty, out, lse, last).Wait())
			if s.Finished != nil {
				s.Finished(t, d, w.QueryChunk, w.KeyChunk)
			}
		}
	}
	res.Float64 = d.Stats().Float64
	return res
}

// runner applies all key chunks to one query chunk.
type runner struct {
	t      testing.TB
	d      stream.Device
	x      Tensors
	w      Way
	b      int
	q0, q1 int
}

func (r runner) apply() (last attention.Event, slot int) {
	p := r.x.P
	query := r.x.Heads(r.x.Q, p.DType, r.b, p.Hq, p.Nq, p.D, r.q0, r.q1)
	last = r.d.LoadQuery(0, query, nil)
	var refs []attention.KVRef
	var loads []attention.Event
	flush := func() {
		if len(refs) == 0 {
			return
		}
		last = r.d.Apply([]attention.Work{{Query: slot, Refs: slices.Clone(refs)}}, append(loads, last)...)
		refs, loads = refs[:0], nil
		if r.w.Save {
			mem := new(memory)
			saved := r.d.SaveState(slot, mem, last)
			slot = 1 - slot
			last = r.d.LoadQuery(slot, query, mem, saved)
		}
	}
	for k0 := 0; k0 < p.Nk; k0 += r.w.KeyChunk {
		k1 := min(k0+r.w.KeyChunk, p.Nk)
		kind, shift := p.Mask(r.q0, r.q1, k0, k1)
		if kind == attention.Empty {
			continue
		}
		loads = append(loads, r.d.LoadKV(len(refs), r.x.Heads(r.x.K, p.DType, r.b, p.Hkv, p.Nk, p.D, k0, k1),
			r.x.Heads(r.x.V, p.DType, r.b, p.Hkv, p.Nk, p.Dv, k0, k1), last))
		refs = append(refs, attention.KVRef{Slot: len(refs), Kind: kind, Offset: shift})
		if len(refs) == r.w.Batch {
			flush()
		}
	}
	flush()
	return last, slot
}

// memory is a file of state, which several may write to at once. Like some readers it
// reports io.EOF together with the last byte, as io.ReaderAt allows.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := int(off) + len(b); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	return copy(b, m.b[off:]), io.EOF
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Exact evaluates rows of one head with the float64 oracle.
func Exact(x Tensors, b, h int, rows []int) (out [][]float64, lse []float64) {
	p := x.P
	qr := rowsOf(p, x.Q, p.DType, b, h, p.Hq, p.Nq, p.D, 0, p.Nq)
	q, visible := make([][]float32, len(rows)), make([]int, len(rows))
	out = make([][]float64, len(rows))
	for i, row := range rows {
		q[i], visible[i], out[i] = make([]float32, p.D), p.Visible(row), make([]float64, p.Dv)
		p.DType.Widen(q[i], qr.Row(row))
	}
	kv := h / p.Group()
	lse = attention.Oracle(out, q, visible, rowsOf(p, x.K, p.DType, b, kv, p.Hkv, p.Nk, p.D, 0, p.Nk),
		rowsOf(p, x.V, p.DType, b, kv, p.Hkv, p.Nk, p.Dv, 0, p.Nk), p.Scale)
	return out, lse
}

// row returns a computed row of O and its lse.
func (r Result) row(p attention.Problem, b, h, i int) (o []float32, lse float32) {
	o = make([]float32, p.Dv)
	p.OutDType.Widen(o, rowsOf(p, r.O, p.OutDType, b, h, p.Hq, p.Nq, p.Dv, 0, p.Nq).Row(i))
	var l [1]float32
	attention.F32.Widen(l[:], r.LSE[((b*p.Hq+h)*p.Nq+i)*4:][:4])
	return o, l[0]
}

// Errors accumulates what separates results from the exact ones.
type Errors struct {
	sum, norm, rounding float64 // squares: of errors, of exact values, of the Errors of rounding these once
	worst, worstOnce    float64 // largest error, and largest error of rounding once
	n                   int
	lse                 float64 // largest error of lse relative to max(1, |lse|)
}

// frobenius is the relative error in the Frobenius norm; worstElement is the
// largest error relative to the root mean square of the exact output. (Relative
// to max |V| it would be far smaller: averages of many values are small.)
func (e Errors) frobenius() float64     { return math.Sqrt(e.sum / e.norm) }
func (e Errors) once() float64          { return math.Sqrt(e.rounding / e.norm) }
func (e Errors) worstElement() float64  { return e.worst / math.Sqrt(e.norm/float64(e.n)) }
func (e Errors) worstRounding() float64 { return e.worstOnce / math.Sqrt(e.norm/float64(e.n)) }

// sample is at most n rows of total: the first, the last, and some between.
func sample(total, n int) []int {
	var rows []int
	for i := range min(total, n) {
		rows = append(rows, i*(total-1)/max(min(total, n)-1, 1))
	}
	return rows
}

// Compare sums the errors over the sampled rows of every head, and fails for
// rows that should be empty and are not.
func Compare(t testing.TB, x Tensors, r Result, sampled int) (e Errors) {
	t.Helper()
	return compareRows(t, x, r, sample(x.P.Nq, sampled))
}

// compareRows is Compare of these rows.
func compareRows(t testing.TB, x Tensors, r Result, rows []int) (e Errors) {
	t.Helper()
	for b := range x.P.B {
		for h := range x.P.Hq {
			want, lse := Exact(x, b, h, rows)
			e.add(t, x.P, r, b, h, rows, want, lse)
		}
	}
	return e
}

// add compares rows of one head with exact ones.
func (e *Errors) add(t testing.TB, p attention.Problem, r Result, b, h int, rows []int, want [][]float64, wantLSE []float64) {
	t.Helper()
	for i, row := range rows {
		o, lse := r.row(p, b, h, row)
		if p.Visible(row) == 0 {
			checkEmpty(t, row, o, lse)
			continue
		}
		e.lse = worse(e.lse, math.Abs(float64(lse)-wantLSE[i])/max(1, math.Abs(wantLSE[i])))
		for d, exact := range want[i] {
			err, once := float64(o[d])-exact, rounded(p.OutDType, exact)-exact
			e.sum += err * err
			e.norm += exact * exact
			e.rounding += once * once
			e.worst = worse(e.worst, math.Abs(err))
			e.worstOnce = worse(e.worstOnce, math.Abs(once))
			e.n++
		}
	}
}

func checkEmpty(t testing.TB, row int, o []float32, lse float32) {
	t.Helper()
	if !math.IsInf(float64(lse), -1) {
		t.Errorf("row %d sees no key: lse is %v", row, lse)
	}
	for _, x := range o {
		if math.Float32bits(x) != 0 {
			t.Errorf("row %d sees no key: O is %v", row, o)
			return
		}
	}
}

// worse is max, except that a NaN wins.
func worse(a, b float64) float64 {
	if a >= b {
		return a
	}
	return b
}

func rounded(t attention.DType, x float64) float64 {
	var b [4]byte
	var f [1]float32
	t.Put(b[:], x)
	t.Widen(f[:], b[:t.Size()])
	return float64(f[0])
}
