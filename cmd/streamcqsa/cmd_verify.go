package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

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
	c := &comparison{p: p, in: in, o: out, lse: lse, keys: make(map[int]float64)}
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

// comparison gathers differences.
type comparison struct {
	p    attention.Problem
	in   *inputs
	o    *tensorfile.Tensor
	lse  *tensorfile.Tensor
	keys map[int]float64 // by KV head: the largest |k|, found once
	v    verdict
	diff float64 // sums of squares
	norm float64
	rnd  float64
	top  float64 // what the largest score is at least
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

// run compares the sample. Threads share out the keys of some rows at a time, as many as
// keep all of them busy, and differences are booked in an order that follows from the
// sample alone: so the verdict does not depend on the number of threads.
func (c *comparison) run(ctx context.Context, rows int, seed uint64) error {
	byHead := sample(c.p.B*c.p.Hq, c.p.Nq, rows, seed)
	const partsPerThread = 4
	var batch []*checkedRows
	var parts int
	for _, h := range slices.Sorted(maps.Keys(byHead)) {
		list := byHead[h]
		slices.Sort(list)
		slices.Reverse(list) // under a causal mask neighbours see about as many keys
		for x := range slices.Chunk(list, attention.TogetherRows(c.p.Dv)) {
			e := c.begin(h, x)
			batch, parts = append(batch, e), parts+e.Parts()
			if parts < partsPerThread*runtime.GOMAXPROCS(0) && len(batch) < mostTogether {
				continue
			}
			if err := c.compareAll(ctx, batch); err != nil {
				return err
			}
			batch, parts = nil, 0
		}
	}
	return c.compareAll(ctx, batch)
}

// mostTogether bounds a batch of rows that see no keys, and have no parts.
const mostTogether = 4096

// checkedRows are sampled rows of one query head that share a pass over its keys.
type checkedRows struct {
	*attention.Evaluation
	head int
	list []int
	q    [][]float32
	sees []int
}

func (c *comparison) begin(head int, list []int) *checkedRows {
	p := c.p
	kv := c.kvHead(head)
	e := &checkedRows{head: head, list: list, q: make([][]float32, len(list)), sees: make([]int, len(list))}
	q := c.rows(c.in.q, p.Hq, p.Nq, p.D, head)
	for x, i := range list {
		e.q[x], e.sees[x] = make([]float32, p.D), p.Visible(i)
		q.DType.Widen(e.q[x], q.Row(i))
	}
	e.Evaluation = attention.Evaluate(e.q, e.sees, c.rows(c.in.k, p.Hkv, p.Nk, p.D, kv), c.rows(c.in.v, p.Hkv, p.Nk, p.Dv, kv), p.Scale)
	return e
}

// kvHead is the KV head of a query head.
func (c *comparison) kvHead(head int) int {
	return head/c.p.Hq*c.p.Hkv + head%c.p.Hq/c.p.Group()
}

// compareAll evaluates rows with all threads, and books their differences one after the
// other.
func (c *comparison) compareAll(ctx context.Context, batch []*checkedRows) error {
	type part struct {
		*checkedRows
		i int
	}
	var parts []part
	for _, e := range batch {
		for i := range e.Parts() {
			parts = append(parts, part{e, i})
		}
		if err := c.findLongest(ctx, c.kvHead(e.head)); err != nil {
			return err
		}
	}
	if err := c.share(len(parts), func(i int) error { return parts[i].Maxima(ctx, parts[i].i) }); err != nil {
		return err
	}
	if err := c.share(len(parts), func(i int) error { return parts[i].Sums(ctx, parts[i].i) }); err != nil {
		return err
	}
	for _, e := range batch {
		c.compare(e)
	}
	return nil
}

// share does n tasks with all threads, up to the first error.
func (c *comparison) share(n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, min(n, runtime.GOMAXPROCS(0)))
	for t := range errs {
		wg.Go(func() {
			errs[t] = tensorfile.Guard(func() error {
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					if err := do(i); err != nil {
						return err
					}
				}
				return nil
			}, c.maps()...)
			if errs[t] != nil {
				next.Store(int64(n)) // nobody needs the rest
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs...) // of a file that can't be read, all threads may say so
}

func (c *comparison) rows(t *tensorfile.Tensor, heads, n, d, head int) attention.Rows {
	size := t.DType().Size()
	at := c.p.Layout.Offset(head/heads, head%heads, 0, heads, n, d) * size
	return attention.Rows{Data: t.Bytes()[at:], Stride: c.p.Layout.RowStride(heads, d) * size, N: n, Width: d, DType: t.DType()}
}

// compare books the differences of rows that were evaluated.
func (c *comparison) compare(e *checkedRows) {
	p := c.p
	o := c.rows(c.o, p.Hq, p.Nq, p.Dv, e.head)
	exact := make([][]float64, len(e.list))
	for x := range exact {
		exact[x] = make([]float64, p.Dv)
	}
	lse := e.Result(exact)
	got, once, buf := make([]float32, p.Dv), make([]float32, p.Dv), make([]byte, p.Dv*o.DType.Size())
	longest := math.Abs(p.Scale) * c.keys[c.kvHead(e.head)]
	for x, i := range e.list {
		c.v.Rows++
		if finite(lse[x]) { // of which ln n at most is the number of keys
			c.top = max(c.top, lse[x]-math.Log(float64(e.sees[x])))
		}
		o.DType.Widen(got, o.Row(i))
		for d, v := range exact[x] {
			o.DType.Put(buf[d*o.DType.Size():], v)
		}
		o.DType.Widen(once, buf)
		for d, v := range exact[x] {
			c.element(float64(got[d]), v, float64(once[d]), []int{e.head / p.Hq, e.head % p.Hq, i, d})
		}
		if c.lse != nil {
			one := make([]float32, 1)
			attention.F32.Widen(one, c.rows(c.lse, p.Hq, p.Nq, 1, e.head).Row(i))
			c.lseElement(float64(one[0]), lse[x], longest*norm(e.q[x]))
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

// findLongest finds the largest |k| of a KV head where limits of lse depend on it.
func (c *comparison) findLongest(ctx context.Context, kv int) error {
	if _, known := c.keys[kv]; known || c.lse == nil || c.o.DType() == attention.F32 {
		return nil
	}
	const step = 4096
	k := c.rows(c.in.k, c.p.Hkv, c.p.Nk, c.p.D, kv)
	parts := make([]float64, (k.N+step-1)/step)
	err := c.share(len(parts), func(i int) error {
		parts[i] = longestRow(k.Slice(i*step, min((i+1)*step, k.N)))
		return context.Cause(ctx)
	})
	if err == nil && len(parts) > 0 {
		c.keys[kv] = slices.Max(parts)
	}
	return err
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
