package attention

import (
	"errors"
	"fmt"
	"math"
)

// Causal says which keys a query may see when the problem is causal.
type Causal uint8

const (
	// NonCausal: every query sees every key.
	NonCausal Causal = iota
	// TopLeft: query i sees keys j <= i.
	TopLeft
	// BottomRight: query i sees keys j <= i + Nk - Nq, so that the last query
	// sees every key. The same as TopLeft when Nq = Nk.
	BottomRight
)

func (c Causal) String() string {
	switch c {
	case NonCausal:
		return "none"
	case TopLeft:
		return "top-left"
	case BottomRight:
		return "bottom-right"
	}
	return fmt.Sprintf("Causal(%d)", uint8(c))
}

// Problem is one attention computation. Q has extents (B, Hq, Nq, D), K
// (B, Hkv, Nk, D), V (B, Hkv, Nk, Dv) and O (B, Hq, Nq, Dv), all stored in
// Layout.
type Problem struct {
	B, Hq, Hkv, Nq, Nk, D, Dv int

	DType    DType   // of Q, K and V
	OutDType DType   // of O
	Layout   Layout  // of Q, K, V and O
	Scale    float64 // multiplies Q K^T
	Causal   Causal

	// Fast allows a device to round weights to bfloat16 where inputs are
	// bfloat16: a permission, of which a device without such kernels makes no use.
	Fast bool
}

// DefaultScale is 1/sqrt(D).
func DefaultScale(d int) float64 { return 1 / math.Sqrt(float64(d)) }

// maxRow bounds D and Dv, so that one row always fits a device's scratch.
const maxRow = 4096

// Validate reports every violation at once.
func (p Problem) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, e := range []struct {
		name string
		v    int
	}{{"B", p.B}, {"Hq", p.Hq}, {"Hkv", p.Hkv}, {"Nq", p.Nq}, {"Nk", p.Nk}, {"D", p.D}, {"Dv", p.Dv}} {
		if e.v < 1 {
			bad("%s is %d, want at least 1", e.name, e.v)
		}
	}
	if p.D > maxRow || p.Dv > maxRow {
		bad("head dimensions D=%d, Dv=%d: want at most %d", p.D, p.Dv, maxRow)
	}
	if p.Hkv > 0 && p.Hq%p.Hkv != 0 {
		bad("%d query heads cannot share %d KV heads: want a multiple", p.Hq, p.Hkv)
	}
	if p.DType < F32 || p.DType > BF16 {
		bad("input type %v: want f32, f16 or bf16", p.DType)
	}
	if p.OutDType < F32 || p.OutDType > BF16 {
		bad("output type %v: want f32, f16 or bf16", p.OutDType)
	}
	if p.Layout < BHND || p.Layout > ND {
		bad("layout %v: want bhnd, bnhd, hnd, nhd or nd", p.Layout)
	} else {
		if p.Layout.Rank() < 4 && p.B != 1 {
			bad("layout %v has no batch axis, but B is %d", p.Layout, p.B)
		}
		if p.Layout == ND && (p.Hq != 1 || p.Hkv != 1) {
			bad("layout nd has no head axis, but Hq=%d, Hkv=%d", p.Hq, p.Hkv)
		}
	}
	if math.IsNaN(p.Scale) || math.IsInf(p.Scale, 0) {
		bad("scale is %v, want a finite number", p.Scale)
	}
	if p.Causal > BottomRight {
		bad("causal alignment %v: want top-left or bottom-right", p.Causal)
	}
	if len(errs) == 0 {
		if err := p.checkSizes(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkSizes makes sure that no tensor's byte count overflows an int.
func (p Problem) checkSizes() error {
	for _, t := range []struct {
		name    string
		h, n, d int
	}{{"Q", p.Hq, p.Nq, p.D}, {"K", p.Hkv, p.Nk, p.D}, {"V", p.Hkv, p.Nk, p.Dv}, {"O", p.Hq, p.Nq, p.Dv}} {
		// 16 bytes an element leaves room for any state derived from it.
		if float64(p.B)*float64(t.h)*float64(t.n)*float64(t.d)*16 >= math.MaxInt64 {
			return fmt.Errorf("%s of B=%d, H=%d, N=%d, D=%d has more bytes than an address", t.name, p.B, t.h, t.n, t.d)
		}
	}
	return nil
}

// Group is the number of query heads that share one KV head.
func (p Problem) Group() int { return p.Hq / p.Hkv }

// KVHeads is the number of KV heads over the whole batch. Head u of
// 0..KVHeads-1 is head u%Hkv of batch entry u/Hkv.
func (p Problem) KVHeads() int { return p.B * p.Hkv }

// Shift is the s of the causal rule "query i sees keys j <= i + s".
func (p Problem) Shift() int {
	if p.Causal == BottomRight {
		return p.Nk - p.Nq
	}
	return 0
}

// Visible is the number of keys that query row i sees: always the first ones.
func (p Problem) Visible(i int) int {
	if p.Causal == NonCausal {
		return p.Nk
	}
	return min(max(i+p.Shift()+1, 0), p.Nk)
}

// MaskKind says how much of a pair of chunks the mask leaves.
type MaskKind uint8

const (
	Empty    MaskKind = iota // nothing: the pair is not work
	Full                     // everything
	Diagonal                 // causal, the chunks' first tokens aligned
	Partial                  // causal, any other alignment
)

func (k MaskKind) String() string {
	switch k {
	case Empty:
		return "empty"
	case Full:
		return "full"
	case Diagonal:
		return "diagonal"
	case Partial:
		return "partial"
	}
	return fmt.Sprintf("MaskKind(%d)", uint8(k))
}

// Mask classifies the pair of query rows [q0,q1) and keys [k0,k1). For
// Diagonal and Partial, row q0+i sees key k0+j if and only if j <= i + shift.
func (p Problem) Mask(q0, q1, k0, k1 int) (kind MaskKind, shift int) {
	if q0 >= q1 || k0 >= k1 {
		return Empty, 0
	}
	if p.Causal == NonCausal {
		return Full, 0
	}
	shift = q0 + p.Shift() - k0
	switch {
	case k1-1-k0 <= shift:
		return Full, 0
	case shift+q1-1-q0 < 0:
		return Empty, 0
	case shift == 0:
		return Diagonal, 0
	}
	return Partial, shift
}

// Pairs is the number of (query row, key) pairs that the mask leaves in one
// query head. A float64, because N^2 of the largest problems is near 2^63.
func (p Problem) Pairs() float64 {
	return p.PairsIn(0, p.Nq, 0, p.Nk)
}

// PairsIn counts the pairs of query rows [q0,q1) with keys [k0,k1).
func (p Problem) PairsIn(q0, q1, k0, k1 int) float64 {
	nq, nk := float64(q1-q0), float64(k1-k0)
	switch kind, s := p.Mask(q0, q1, k0, k1); kind {
	case Empty:
		return 0
	case Full:
		return nq * nk
	default:
		// Row i sees min(max(i+s+1, 0), nk) keys: a triangle from the first
		// row that sees one to the row that sees all, then a rectangle.
		first := float64(max(0, -s))
		full := math.Min(nq, math.Max(first, nk-1-float64(s)))
		lo, n := first+float64(s)+1, full-first
		return n*lo + n*(n-1)/2 + (nq-full)*nk
	}
}

// FLOPs is the arithmetic of the problem by the usual count: two per
// multiply-add, 2 (D + Dv) per pair; softmax is not counted.
func (p Problem) FLOPs() float64 {
	return p.Pairs() * float64(p.B) * float64(p.Hq) * 2 * float64(p.D+p.Dv)
}
