package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// problemFlags say what is to be computed, and from which files.
type problemFlags struct {
	q, k, v     string
	layout      string
	dtype       string
	outDType    string
	shape       string
	offsets     []int64
	causal      bool
	causalAlign string
	scale       float64
	precision   string
	scaleSet    func() bool
}

func (o *problemFlags) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.q, "q", "", "queries: FILE.npy, FILE.safetensors:KEY, or a raw FILE")
	f.StringVar(&o.k, "k", "", "keys")
	f.StringVar(&o.v, "v", "", "values")
	f.StringVar(&o.layout, "layout", "", "axes of all tensors: bhnd, bnhd, hnd, nhd or nd; needed wherever the shapes allow two readings")
	f.StringVar(&o.dtype, "dtype", "", "element type f32, f16 or bf16: for raw files, and for bf16 in npy")
	f.StringVar(&o.shape, "shape", "", "B,H,Hkv,Nq,Nk,D,Dv or B,H,N,D: for raw files and for plans without files")
	f.Int64SliceVar(&o.offsets, "offset", nil, "bytes before the first element of raw files: one number, or three for q,k,v")
	f.BoolVar(&o.causal, "causal", false, "query i sees keys up to its own position")
	f.StringVar(&o.causalAlign, "causal-align", "", "top-left (i sees j <= i) or bottom-right (the last query sees every key): needed when Nq != Nk")
	f.Float64Var(&o.scale, "scale", 0, "factor of Q K^T (default 1/sqrt(D))")
	f.StringVar(&o.precision, "precision", "default", "default: an error below the rounding of O; fast: bf16 inputs may have weights rounded to bf16")
	f.StringVar(&o.outDType, "out-dtype", "", "element type of O (default: that of the inputs)")
	o.scaleSet = func() bool { return f.Changed("scale") }
}

// inputs are the open input files of a problem.
type inputs struct {
	q, k, v *tensorfile.Tensor
}

func (in *inputs) Close() error {
	var errs []error
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}

// unchanged makes sure that no input was written to since it was opened: the
// result would be of no one version of it.
func (in *inputs) unchanged() error {
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		if err := t.CheckUnchanged(); err != nil {
			return err
		}
	}
	return nil
}

// hasFiles says whether any input file was named.
func (o *problemFlags) hasFiles() bool { return o.q != "" || o.k != "" || o.v != "" }

// open opens the three inputs and states the problem that they pose.
func (o *problemFlags) open() (p attention.Problem, in *inputs, err error) {
	for _, r := range []struct{ flag, value string }{{"q", o.q}, {"k", o.k}, {"v", o.v}} {
		if r.value == "" {
			return p, nil, usagef("--%s is missing: want a tensor file for each of --q, --k and --v", r.flag)
		}
	}
	stated, dtype, layout, err := o.stated()
	if err != nil {
		return p, nil, err
	}
	in = &inputs{}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close())
			in = nil
		}
	}()
	if in.q, in.k, in.v, err = o.openAll(stated, dtype, layout); err != nil {
		return p, in, err
	}
	p, err = shapesToProblem(in.q.Shape(), in.k.Shape(), in.v.Shape(), layout)
	if err != nil {
		return p, in, err
	}
	if stated != nil && !sameExtents(*stated, p) {
		return p, in, inputf("--shape says %s, the files hold %s", extents(*stated), extents(p))
	}
	p.DType = in.q.DType()
	for _, t := range []*tensorfile.Tensor{in.k, in.v} {
		if t.DType() != p.DType {
			return p, in, inputf("q is %v, but %s is %v: want one element type", p.DType, t.Path(), t.DType())
		}
	}
	return p, in, o.complete(&p)
}

// stated parses what the flags say before any file is read.
func (o *problemFlags) stated() (shape *attention.Problem, dtype attention.DType, layout attention.Layout, err error) {
	if o.dtype != "" {
		if dtype, err = attention.ParseDType(o.dtype); err != nil {
			return nil, 0, 0, classify(errUsage, err)
		}
	}
	if o.layout != "" {
		if layout, err = attention.ParseLayout(o.layout); err != nil {
			return nil, 0, 0, classify(errUsage, err)
		}
	}
	if o.shape != "" {
		p, err := parseProblemShape(o.shape)
		if err != nil {
			return nil, 0, 0, err
		}
		shape = &p
	}
	return shape, dtype, layout, nil
}

func (o *problemFlags) openAll(stated *attention.Problem, dtype attention.DType, layout attention.Layout) (q, k, v *tensorfile.Tensor, err error) {
	open := func(i int, ref string, h, n, d func(*attention.Problem) int) *tensorfile.Tensor {
		if err != nil {
			return nil
		}
		path, key := tensorfile.ParseRef(ref)
		spec := tensorfile.Spec{Path: path, Key: key, DType: dtype}
		if tensorfile.FormatOf(path) == tensorfile.Raw {
			var fi os.FileInfo
			if fi, err = os.Stat(path); err != nil { // a wrong name is not a raw file
				return nil
			}
			if fi.IsDir() {
				err = inputf("%s is a directory: want a tensor file", path)
				return nil
			}
			if stated == nil || dtype == 0 || layout == 0 {
				err = usagef("%s is a raw file, which says nothing of itself: want --shape, --dtype and --layout", path)
				return nil
			}
			spec.Shape = layout.Shape(stated.B, h(stated), n(stated), d(stated))
			if spec.Offset, err = o.offset(i); err != nil {
				return nil
			}
		}
		var t *tensorfile.Tensor
		t, err = tensorfile.Open(spec)
		return t
	}
	hq, hkv := func(p *attention.Problem) int { return p.Hq }, func(p *attention.Problem) int { return p.Hkv }
	nq, nk := func(p *attention.Problem) int { return p.Nq }, func(p *attention.Problem) int { return p.Nk }
	dd, dv := func(p *attention.Problem) int { return p.D }, func(p *attention.Problem) int { return p.Dv }
	q = open(0, o.q, hq, nq, dd)
	k = open(1, o.k, hkv, nk, dd)
	v = open(2, o.v, hkv, nk, dv)
	return q, k, v, err
}

func (o *problemFlags) offset(i int) (int64, error) {
	var n int64
	switch len(o.offsets) {
	case 0:
	case 1:
		n = o.offsets[0]
	case 3:
		n = o.offsets[i]
	default:
		return 0, usagef("--offset has %d numbers: want one, or three for q, k and v", len(o.offsets))
	}
	if n < 0 {
		return 0, usagef("--offset %d: want at least 0", n)
	}
	return n, nil
}

// fromShape states a problem without files, for a plan.
func (o *problemFlags) fromShape() (attention.Problem, error) {
	stated, dtype, layout, err := o.stated()
	if err != nil {
		return attention.Problem{}, err
	}
	if stated == nil || dtype == 0 {
		return attention.Problem{}, usagef("nothing to plan: want --q, --k and --v, or --shape and --dtype")
	}
	p := *stated
	p.DType = dtype
	p.Layout = layout
	if layout == 0 {
		p.Layout = attention.BHND
	}
	return p, o.complete(&p)
}

// complete fills in what does not depend on the files' shapes.
func (o *problemFlags) complete(p *attention.Problem) error {
	p.OutDType = p.DType
	if o.outDType != "" {
		t, err := attention.ParseDType(o.outDType)
		if err != nil {
			return classify(errUsage, err)
		}
		p.OutDType = t
	}
	switch o.precision {
	case "default":
	case "fast":
		p.Fast = true
	default:
		return usagef("--precision %q: want default or fast", o.precision)
	}
	p.Scale = attention.DefaultScale(p.D)
	if o.scaleSet() {
		p.Scale = o.scale
	}
	switch {
	case !o.causal && o.causalAlign != "":
		return usagef("--causal-align without --causal")
	case !o.causal:
		p.Causal = attention.NonCausal
	case o.causalAlign == "top-left":
		p.Causal = attention.TopLeft
	case o.causalAlign == "bottom-right":
		p.Causal = attention.BottomRight
	case o.causalAlign != "":
		return usagef("--causal-align %q: want top-left or bottom-right", o.causalAlign)
	case p.Nq != p.Nk:
		return usagef("causal with Nq=%d and Nk=%d can be meant in two ways: want --causal-align top-left or bottom-right", p.Nq, p.Nk)
	default:
		p.Causal = attention.TopLeft
	}
	if err := p.Validate(); err != nil {
		return classify(errUsage, oneLine(err))
	}
	return nil
}

// oneLine joins the lines of a joined error.
func oneLine(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// parseProblemShape reads B,H,Hkv,Nq,Nk,D,Dv or, for Hkv=H, Nk=Nq and Dv=D,
// B,H,N,D.
func parseProblemShape(s string) (attention.Problem, error) {
	parts := strings.Split(s, ",")
	n := make([]int, len(parts))
	for i, part := range parts {
		v, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || v < 1 || v > math.MaxInt64/2 {
			return attention.Problem{}, usagef("--shape %q: %q is not a number of at least 1", s, part)
		}
		n[i] = v
	}
	switch len(n) {
	case 4:
		return attention.Problem{B: n[0], Hq: n[1], Hkv: n[1], Nq: n[2], Nk: n[2], D: n[3], Dv: n[3]}, nil
	case 7:
		return attention.Problem{B: n[0], Hq: n[1], Hkv: n[2], Nq: n[3], Nk: n[4], D: n[5], Dv: n[6]}, nil
	}
	return attention.Problem{}, usagef("--shape %q has %d numbers: want B,H,Hkv,Nq,Nk,D,Dv or B,H,N,D", s, len(n))
}

func sameExtents(a, b attention.Problem) bool {
	return extents(a) == extents(b)
}

func extents(p attention.Problem) string {
	return fmt.Sprintf("B=%d H=%d Hkv=%d Nq=%d Nk=%d D=%d Dv=%d", p.B, p.Hq, p.Hkv, p.Nq, p.Nk, p.D, p.Dv)
}

// shapesToProblem reads the tensors' shapes in the given layout; layout 0 means
// the only one in which they make sense, and an error if there are two.
func shapesToProblem(q, k, v []int, layout attention.Layout) (attention.Problem, error) {
	if layout != 0 {
		return inLayout(q, k, v, layout)
	}
	var fit []attention.Problem
	var first error
	for l := attention.BHND; l <= attention.ND; l++ {
		if l.Rank() != len(q) {
			continue
		}
		p, err := inLayout(q, k, v, l)
		if err == nil {
			fit = append(fit, p)
		} else if first == nil {
			first = err
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		var ways []string
		for _, p := range fit {
			ways = append(ways, fmt.Sprintf("--layout %v (%s)", p.Layout, extents(p)))
		}
		return attention.Problem{}, usagef("the axes of shapes %v, %v, %v can be read in %d ways: say %s", q, k, v, len(fit), strings.Join(ways, " or "))
	case first != nil:
		return attention.Problem{}, first
	}
	return attention.Problem{}, inputf("q has %d axes %v: want 2 (nd), 3 (hnd, nhd) or 4 (bhnd, bnhd)", len(q), q)
}

// inLayout reads the shapes in one layout.
func inLayout(q, k, v []int, l attention.Layout) (p attention.Problem, err error) {
	for _, t := range []struct {
		name  string
		shape []int
	}{{"q", q}, {"k", k}, {"v", v}} {
		if len(t.shape) != l.Rank() {
			return p, inputf("%s has %d axes %v: layout %v has %d", t.name, len(t.shape), t.shape, l, l.Rank())
		}
		if slices.Contains(t.shape, 0) {
			return p, inputf("%s is empty: its shape is %v", t.name, t.shape)
		}
	}
	qb, qh, qn, qd := l.Extents(q)
	kb, kh, kn, kd := l.Extents(k)
	vb, vh, vn, vd := l.Extents(v)
	switch {
	case qb != kb || kb != vb:
		return p, inputf("batch sizes differ: q %d, k %d, v %d (layout %v)", qb, kb, vb, l)
	case kh != vh:
		return p, inputf("k has %d heads, v has %d (layout %v)", kh, vh, l)
	case kn != vn:
		return p, inputf("k has %d tokens, v has %d (layout %v)", kn, vn, l)
	case qd != kd:
		return p, inputf("head dimensions differ: q %d, k %d (layout %v)", qd, kd, l)
	case qh%kh != 0:
		return p, inputf("%d query heads can't share %d KV heads: want a multiple (layout %v)", qh, kh, l)
	}
	return attention.Problem{B: qb, Hq: qh, Hkv: kh, Nq: qn, Nk: kn, D: qd, Dv: vd, Layout: l}, nil
}
