package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

type verifyOptions struct {
	problemFlags
	o       string
	lse     string
	rows    int
	seed    uint64
	tol     float64
	journal string
	json    bool
}

func newVerifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Recompute sampled rows in float64 and compare",
		Long: `Recompute sampled rows of O (and lse) from the input files in float64, by the
definition, and compare. Whatever made O can be checked: this program, or another.

O passes when its relative error over the sampled rows (Frobenius norms) is at
most 1e-6 for float32, or 2^-23 of the largest score in units of log2 where that is
more (a GPU's scores are float32), and for 16-bit types at most 1.02 times the error
of rounding the exact rows once; with --precision fast at most 3e-3 more. --tol
states another relative error. NaN and infinities must be where float64 has them.

With --journal alone, check what a run that was stopped has kept: everything that
its journal (OUT.journal) says is safe is read and compared with its checksum. What
it wrote down after its last checkpoint may be lost, and is no damage.

` + exitHelp(),
		Example: `  streamcqsa verify --q q.npy --k k.npy --v v.npy --o o.npy --layout bhnd --rows 500
  streamcqsa verify --journal o.npy.journal`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.journal != "" {
				return runVerifyJournal(cmd.Context(), cmd.OutOrStdout(), &o)
			}
			return runVerify(cmd.Context(), cmd.OutOrStdout(), &o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	o.problemFlags.addFlags(f)
	f.StringVar(&o.o, "o", "", "the result to check")
	f.StringVar(&o.lse, "lse", "", "its lse, if that is to be checked too")
	f.IntVar(&o.rows, "rows", 200, "rows to sample, over all heads; 0 for all")
	f.Uint64Var(&o.seed, "seed", 1, "of the sample")
	f.Float64Var(&o.tol, "tol", 0, "relative error that passes (default: by the type of O)")
	f.StringVar(&o.journal, "journal", "", "check what a run that was stopped has kept, by its journal `FILE`; takes no other file")
	f.BoolVar(&o.json, "json", false, "write one JSON document")
	return cmd
}

// verdict is the result of a verification.
type verdict struct {
	Type      string  `json:"type"` // verify
	Pass      bool    `json:"pass"`
	Rows      int     `json:"rows"`
	Error     float64 `json:"relative_error"`   // |O - exact| / |exact|, Frobenius over the sample
	Limit     float64 `json:"limit"`            // what Error may be
	Rounding  float64 `json:"rounding_error"`   // of the exact rows rounded once to O's type
	Worst     float64 `json:"worst_difference"` // largest |O - exact|
	WorstAt   []int   `json:"worst_at"`         // batch, head, row, column
	Misplaced int     `json:"misplaced_nonfinite"`
	LSEWorst  float64 `json:"lse_worst_difference"` // relative to 1 + |lse|, and for 16-bit O to that and |q||k|
	LSEPass   bool    `json:"lse_pass"`
}

func runVerify(ctx context.Context, w io.Writer, o *verifyOptions) (err error) {
	if o.o == "" {
		return usagef("--o is missing: want the result to check")
	}
	if o.rows < 0 || !(o.tol >= 0) {
		return usagef("--rows %d, --tol %g: want at least 0", o.rows, o.tol)
	}
	p, in, err := o.problemFlags.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := o.openResult(o.o, &p, p.Layout.Shape(p.B, p.Hq, p.Nq, p.Dv), 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	p.OutDType = out.DType()
	var lse *tensorfile.Tensor
	if o.lse != "" {
		shape := p.Layout.Shape(p.B, p.Hq, p.Nq, 1)
		if lse, err = o.openResult(o.lse, &p, shape[:len(shape)-1], attention.F32); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lse.Close()) }()
	}
	c := newComparison(p, in, out, lse)
	err = tensorfile.Guard(func() error { return c.run(ctx, o.rows, o.seed) }, c.maps()...)
	if err != nil {
		return err
	}
	return c.report(w, o)
}

// openResult opens O or lse and checks its shape. Results of raw files have the
// type stated by --out-dtype or --dtype.
func (o *verifyOptions) openResult(ref string, p *attention.Problem, shape []int, dtype attention.DType) (*tensorfile.Tensor, error) {
	path, key := tensorfile.ParseRef(ref)
	spec := tensorfile.Spec{Path: path, Key: key, DType: dtype}
	if dtype == 0 && (o.outDType != "" || o.dtype != "") {
		spec.DType = p.OutDType
	}
	if tensorfile.FormatOf(path) == tensorfile.Raw {
		spec.Shape = shape
		if spec.DType == 0 {
			spec.DType = p.OutDType
		}
	}
	t, err := tensorfile.Open(spec)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(t.Shape(), shape) {
		err := inputf("%s has shape %v, the inputs ask for %v", path, t.Shape(), shape)
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// comparison gathers differences from several goroutines.
type comparison struct {
	p    attention.Problem
	in   *inputs
	o    *tensorfile.Tensor
	lse  *tensorfile.Tensor
	keys []func() float64 // by KV head: the largest |k|, found once
	mu   sync.Mutex
	v    verdict
	diff float64 // sums of squares
	norm float64
	rnd  float64
	top  float64 // what the largest score is at least
}

func newComparison(p attention.Problem, in *inputs, o, lse *tensorfile.Tensor) *comparison {
	c := &comparison{p: p, in: in, o: o, lse: lse}
	for kv := range p.KVHeads() {
		c.keys = append(c.keys, sync.OnceValue(func() float64 { return longestRow(c.rows(in.k, p.Hkv, p.Nk, p.D, kv)) }))
	}
	return c
}

func (c *comparison) maps() []tensorfile.Mapped {
	m := []tensorfile.Mapped{c.in.q, c.in.k, c.in.v, c.o}
	if c.lse != nil {
		m = append(m, c.lse)
	}
	return m
}

// row is one sampled query row: head counts over the whole batch.
type row struct{ head, i int }

// sample draws rows without repetition, by head.
func sample(heads, n, rows int, seed uint64) map[int][]int {
	byHead := make(map[int][]int)
	if total := float64(heads) * float64(n); rows == 0 || float64(rows) >= total {
		for h := range heads {
			for i := range n {
				byHead[h] = append(byHead[h], i)
			}
		}
		return byHead
	}
	r := rand.New(rand.NewPCG(seed, 0x5eed))
	seen := make(map[row]bool)
	for len(seen) < rows {
		x := row{r.IntN(heads), r.IntN(n)}
		if len(seen) == 0 {
			x.i = n - 1 // the last row sees the most keys
		}
		if !seen[x] {
			seen[x] = true
			byHead[x.head] = append(byHead[x.head], x.i)
		}
	}
	return byHead
}

// run compares the sample, in parallel over parts of a head's rows.
func (c *comparison) run(ctx context.Context, rows int, seed uint64) error {
	byHead := sample(c.p.B*c.p.Hq, c.p.Nq, rows, seed)
	threads := runtime.GOMAXPROCS(0)
	type part struct {
		head int
		rows []int
	}
	parts := make(chan part)
	var wg sync.WaitGroup
	errs := make([]error, threads)
	for t := range threads {
		wg.Go(func() {
			errs[t] = tensorfile.Guard(func() error {
				for x := range parts {
					if ctx.Err() == nil {
						c.compare(x.head, x.rows)
					}
				}
				return nil
			}, c.maps()...)
			for range parts { // after a fault, let the sender finish
			}
		})
	}
	// Rows that share a pass over the keys; under a causal mask the last see the most, and
	// go first, in parts small enough for threads to end together.
	const most, perThread = 64, 4
	for h, list := range byHead {
		slices.Sort(list)
		slices.Reverse(list)
		n := min(most, (len(list)+perThread*threads-1)/(perThread*threads))
		for x := range slices.Chunk(list, n) {
			parts <- part{h, x}
		}
	}
	close(parts)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return cmp.Or(errs...) // of a file that can't be read, all threads say so
}

func (c *comparison) rows(t *tensorfile.Tensor, heads, n, d, head int) attention.Rows {
	size := t.DType().Size()
	at := c.p.Layout.Offset(head/heads, head%heads, 0, heads, n, d) * size
	return attention.Rows{Data: t.Bytes()[at:], Stride: c.p.Layout.RowStride(heads, d) * size, N: n, Width: d, DType: t.DType()}
}

// compare recomputes rows of one query head and books the differences.
func (c *comparison) compare(head int, list []int) {
	p := c.p
	kv := head/p.Hq*p.Hkv + head%p.Hq/p.Group()
	q := c.rows(c.in.q, p.Hq, p.Nq, p.D, head)
	k, v := c.rows(c.in.k, p.Hkv, p.Nk, p.D, kv), c.rows(c.in.v, p.Hkv, p.Nk, p.Dv, kv)
	o := c.rows(c.o, p.Hq, p.Nq, p.Dv, head)
	qs, exact, visible := make([][]float32, len(list)), make([][]float64, len(list)), make([]int, len(list))
	for x, i := range list {
		qs[x], exact[x], visible[x] = make([]float32, p.D), make([]float64, p.Dv), p.Visible(i)
		q.DType.Widen(qs[x], q.Row(i))
	}
	lse := attention.Oracle(exact, qs, visible, k, v, p.Scale)
	got, once, buf := make([]float32, p.Dv), make([]float32, p.Dv), make([]byte, p.Dv*o.DType.Size())
	var longest float64
	if c.lse != nil && o.DType != attention.F32 {
		longest = math.Abs(p.Scale) * c.keys[kv]()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for x, i := range list {
		c.v.Rows++
		if finite(lse[x]) { // of which ln n at most is the number of keys
			c.top = max(c.top, lse[x]-math.Log(float64(visible[x])))
		}
		o.DType.Widen(got, o.Row(i))
		for d, e := range exact[x] {
			o.DType.Put(buf[d*o.DType.Size():], e)
		}
		o.DType.Widen(once, buf)
		for d, e := range exact[x] {
			c.element(float64(got[d]), e, float64(once[d]), []int{head / p.Hq, head % p.Hq, i, d})
		}
		if c.lse != nil {
			one := make([]float32, 1)
			attention.F32.Widen(one, c.rows(c.lse, p.Hq, p.Nq, 1, head).Row(i))
			c.lseElement(float64(one[0]), lse[x], longest*norm(qs[x]))
		}
	}
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

func (c *comparison) element(got, exact, once float64, at []int) {
	// The exact value may overflow O's type: what rounding gives is then right.
	if !finite(exact) || !finite(once) || !finite(got) {
		if !(math.IsNaN(got) && math.IsNaN(once)) && got != once {
			c.v.Misplaced++
		}
		return
	}
	e := got - exact
	c.diff += e * e
	c.norm += exact * exact
	c.rnd += (once - exact) * (once - exact)
	if math.Abs(e) > c.v.Worst || c.v.WorstAt == nil {
		c.v.Worst, c.v.WorstAt = math.Abs(e), at
	}
}

func norm(row []float32) float64 {
	var sum float64
	for _, x := range row {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// longestRow is the largest finite norm of a row.
func longestRow(r attention.Rows) (longest float64) {
	row := make([]float32, r.Width)
	for j := range r.N {
		r.DType.Widen(row, r.Row(j))
		if n := norm(row); finite(n) {
			longest = max(longest, n)
		}
	}
	return longest
}

// lseElement books a difference. Where O is 16-bit its scores may be float32, whose error
// is in proportion to sums, the bound on what was summed on the way to them.
func (c *comparison) lseElement(got, exact, sums float64) {
	switch {
	case math.IsNaN(got) && math.IsNaN(exact) || got == exact:
	case !finite(got) || !finite(exact):
		c.v.LSEWorst = math.Inf(1)
	default:
		c.v.LSEWorst = max(c.v.LSEWorst, math.Abs(got-exact)/(1+math.Abs(exact)+sums))
	}
}

// lseLimit is a few roundings of a float32; a sum of weights that were rounded to
// bfloat16 may be off by one of those.
const (
	lseLimit     = 1e-6
	fastLimit    = 3e-3
	fastLSELimit = 4e-3
)

func (c *comparison) report(w io.Writer, o *verifyOptions) error {
	v := &c.v
	v.Type = "verify"
	norm := math.Sqrt(c.norm)
	if norm == 0 {
		norm = 1
	}
	v.Error, v.Rounding = math.Sqrt(c.diff)/norm, math.Sqrt(c.rnd)/norm
	switch {
	case o.tol > 0:
		v.Limit = o.tol
	case c.p.OutDType == attention.F32:
		v.Limit = max(1e-6, 0x1p-23*c.top*math.Log2E)
	default:
		v.Limit = 1.02 * v.Rounding
	}
	v.LSEPass = v.LSEWorst <= lseLimit
	if c.p.Fast {
		if o.tol == 0 {
			v.Limit = math.Hypot(v.Limit, fastLimit)
		}
		v.LSEPass = v.LSEWorst <= fastLSELimit
	}
	v.Pass = v.Error <= v.Limit && v.Misplaced == 0 && v.LSEPass
	lse := v.LSEWorst
	if math.IsInf(lse, 0) { // JSON has no infinity
		v.LSEWorst = math.MaxFloat64
	}
	if o.json {
		if err := writeJSON(w, v); err != nil {
			return err
		}
	} else {
		var b strings.Builder
		fmt.Fprintf(&b, "rows              %d of %s\n", v.Rows, grouped(int64(c.p.B*c.p.Hq)*int64(c.p.Nq)))
		fmt.Fprintf(&b, "relative error    %.3g (limit %.3g; rounding alone %.3g)\n", v.Error, v.Limit, v.Rounding)
		fmt.Fprintf(&b, "worst difference  %.3g at [batch head row column] %v\n", v.Worst, v.WorstAt)
		if c.lse != nil {
			fmt.Fprintf(&b, "lse difference    %.3g (limit %.3g)\n", lse, lseLimit)
		}
		if v.Misplaced > 0 {
			fmt.Fprintf(&b, "not finite        %d elements, where float64 has something else\n", v.Misplaced)
		}
		if _, err := io.WriteString(w, b.String()+map[bool]string{true: "pass\n", false: "FAIL\n"}[v.Pass]); err != nil {
			return fmt.Errorf("write the verdict: %w", err)
		}
	}
	if !v.Pass {
		return classify(errVerify, fmt.Errorf("%s differs from float64: relative error %.3g, limit %.3g, %d misplaced non-finite elements, lse difference %.3g", c.o.Path(), v.Error, v.Limit, v.Misplaced, lse))
	}
	return nil
}
