package stream

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Source is an input tensor: its elements, mapped, and hints about them. If it
// is an io.ReaderAt of the same bytes too, devices may read instead of touching
// the mapping. If it has a method Map() []byte, that is the whole mapping of a file,
// shared and for reading only, that Bytes are part of.
type Source interface {
	Path() string
	Bytes() []byte
	WillNeed(lo, hi int64) // byte ranges of Bytes
	DontNeed(lo, hi int64)
}

// Sink is an output tensor, mapped. Sync makes durable what was written to Bytes.
type Sink interface {
	Path() string
	Bytes() []byte
	Sync() error
}

// Tensors are the inputs and outputs of a run. LSE may be nil.
//
// Their bytes hold the problem's tensors in its layout; LSE has the layout of O
// without the last axis, in float32.
type Tensors struct {
	Q, K, V Source
	O, LSE  Sink
}

// check compares the lengths of all tensors with the problem.
func (t Tensors) check(p attention.Problem) error {
	var errs []error
	want := func(name string, b []byte, n int64) { errs = append(errs, hasBytes(name, b, n)) }
	want("Q", t.Q.Bytes(), tensorBytes(p.B, p.Hq, p.Nq, p.D, p.DType))
	want("K", t.K.Bytes(), tensorBytes(p.B, p.Hkv, p.Nk, p.D, p.DType))
	want("V", t.V.Bytes(), tensorBytes(p.B, p.Hkv, p.Nk, p.Dv, p.DType))
	o, lse := t.outputs()
	return errors.Join(append(errs, checkOutputs(p, t.LSE != nil, o, lse))...)
}

// checkOutputs compares the lengths of the outputs alone with the problem.
func checkOutputs(p attention.Problem, withLSE bool, o, lse []byte) error {
	var n int64
	if withLSE {
		n = tensorBytes(p.B, p.Hq, p.Nq, 1, attention.F32)
	}
	return errors.Join(hasBytes("O", o, tensorBytes(p.B, p.Hq, p.Nq, p.Dv, p.OutDType)), hasBytes("LSE", lse, n))
}

// outputs are the bytes of O and, if it is wanted, lse.
func (t Tensors) outputs() (o, lse []byte) {
	if t.LSE != nil {
		lse = t.LSE.Bytes()
	}
	return t.O.Bytes(), lse
}

// paths are those of the outputs.
func (t Tensors) paths() []string {
	list := []string{t.O.Path()}
	if t.LSE != nil {
		list = append(list, t.LSE.Path())
	}
	return list
}

func hasBytes(name string, b []byte, n int64) error {
	if int64(len(b)) != n {
		return fmt.Errorf("tensor %s has %d bytes, the problem says %d", name, len(b), n)
	}
	return nil
}

// sync makes the outputs durable.
func (t Tensors) sync() error {
	err := t.O.Sync()
	if err == nil && t.LSE != nil {
		err = t.LSE.Sync()
	}
	return err
}

// view is one tensor as rows of heads.
type view struct {
	data    []byte
	layout  attention.Layout
	heads   int // per batch entry
	n, d    int
	dtype   attention.DType
	advisor Source      // nil for outputs
	file    io.ReaderAt // nil if there is none
	mapping []byte      // that data is part of; nil if unknown
}

func (v view) rowBytes() int { return v.layout.RowStride(v.heads, v.d) * v.dtype.Size() }

// rows are rows [lo,hi) of head u, counted over the whole batch.
func (v view) rows(u, lo, hi int) attention.Rows {
	start, end := v.span(u, lo, hi)
	r := attention.Rows{Data: v.data[start:end], Stride: v.rowBytes(), N: hi - lo, Width: v.d, DType: v.dtype, Mapping: v.mapping}
	if v.file != nil {
		r.File, r.At = v.file, start
	}
	return r
}

// span is the byte range of rows [lo,hi) of head u, from the first element to
// behind the last. In a layout with heads inside tokens it holds other heads too.
func (v view) span(u, lo, hi int) (start, end int64) {
	b, h := u/v.heads, u%v.heads
	size := int64(v.dtype.Size())
	start = int64(v.layout.Offset(b, h, lo, v.heads, v.n, v.d)) * size
	return start, start + int64(hi-1-lo)*int64(v.rowBytes()) + int64(v.d)*size
}

// views are the tensors of a run cut into heads.
type views struct{ q, k, v, o, lse view }

func newViews(p attention.Problem, t Tensors) views {
	in := func(s Source, h, n, d int) view {
		v := view{data: s.Bytes(), layout: p.Layout, heads: h, n: n, d: d, dtype: p.DType, advisor: s}
		v.file, _ = s.(io.ReaderAt)
		if m, ok := s.(interface{ Map() []byte }); ok {
			v.mapping = m.Map()
		}
		return v
	}
	o, lse := t.outputs()
	w := outputViews(p, o, lse)
	w.q, w.k, w.v = in(t.Q, p.Hq, p.Nq, p.D), in(t.K, p.Hkv, p.Nk, p.D), in(t.V, p.Hkv, p.Nk, p.Dv)
	return w
}

// outputViews are views of the outputs alone. lse may be nil.
func outputViews(p attention.Problem, o, lse []byte) (w views) {
	w.o = view{data: o, layout: p.Layout, heads: p.Hq, n: p.Nq, d: p.Dv, dtype: p.OutDType}
	if lse != nil {
		w.lse = view{data: lse, layout: p.Layout, heads: p.Hq, n: p.Nq, d: 1, dtype: attention.F32}
	}
	return w
}

// results are the rows of the results of a query chunk. lse is nil if it isn't wanted.
func (w *views) results(p *Plan, group, chunk int) (out, lse []attention.Rows) {
	u0, u1 := p.queryHeads(group)
	lo, hi := p.QueryAxis.Range(chunk)
	for u := u0; u < u1; u++ {
		out = append(out, w.o.rows(u, lo, hi))
		if w.lse.data != nil {
			lse = append(lse, w.lse.rows(u, lo, hi))
		}
	}
	return out, lse
}

// blame names the tensor and the byte of a failed access to a mapping.
func (t Tensors) blame(f *attention.Fault) error {
	type mapped struct {
		what, name string
		bytes      []byte
	}
	all := []mapped{{"read", t.Q.Path(), t.Q.Bytes()}, {"read", t.K.Path(), t.K.Bytes()}, {"read", t.V.Path(), t.V.Bytes()}, {"write", t.O.Path(), t.O.Bytes()}}
	if t.LSE != nil {
		all = append(all, mapped{"write", t.LSE.Path(), t.LSE.Bytes()})
	}
	for _, m := range all {
		base := uintptr(unsafe.Pointer(unsafe.SliceData(m.bytes)))
		if f.Addr >= base && f.Addr < base+uintptr(len(m.bytes)) {
			return fmt.Errorf("%s %s at element byte %d: the file shrank under its mapping, or its disk failed: %w", m.what, m.name, f.Addr-base, f)
		}
	}
	return f
}
