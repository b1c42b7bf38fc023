package attention

import (
	"slices"
	"testing"
)

// Every element of a tensor is visited once, and at the place that its storage
// order says.
func TestLayoutsRoundTrip(t *testing.T) {
	for l := BHND; l <= ND; l++ {
		if got, err := ParseLayout(l.String()); got != l || err != nil {
			t.Errorf("ParseLayout(%q) = %v, %v", l, got, err)
		}
		if l.Rank() != len(l.String()) {
			t.Errorf("%v has rank %d", l, l.Rank())
		}
		B, H, N, D := 3, 4, 5, 6
		if l.Rank() < 4 {
			B = 1
		}
		if l == ND {
			H = 1
		}
		shape := l.Shape(B, H, N, D)
		if len(shape) != l.Rank() {
			t.Fatalf("%v: shape %v", l, shape)
		}
		for i, axis := range l.String() {
			if want := map[rune]int{'b': B, 'h': H, 'n': N, 'd': D}[axis]; shape[i] != want {
				t.Errorf("%v: axis %c of shape %v, want %d", l, axis, shape, want)
			}
		}
		if b, h, n, d := l.Extents(shape); b != B || h != H || n != N || d != D {
			t.Errorf("%v: extents of %v are %d %d %d %d", l, shape, b, h, n, d)
		}

		seen := make([]bool, B*H*N*D)
		for b := range B {
			for h := range H {
				for n := range N {
					at := l.Offset(b, h, n, H, N, D)
					if want := flat(l, shape, map[rune]int{'b': b, 'h': h, 'n': n}); at != want {
						t.Fatalf("%v: row (%d,%d,%d) at %d, want %d", l, b, h, n, at, want)
					}
					if at != l.Offset(b, h, 0, H, N, D)+n*l.RowStride(H, D) {
						t.Fatalf("%v: row (%d,%d,%d) is not %d strides from row 0", l, b, h, n, n)
					}
					for d := range D {
						seen[at+d] = true
					}
				}
			}
		}
		if slices.Contains(seen, false) {
			t.Errorf("%v: rows do not cover the tensor", l)
		}
	}
	if l, err := ParseLayout("bhdn"); err == nil {
		t.Errorf("ParseLayout(bhdn) = %v, want an error", l)
	}
}

// flat is the row-major index of the element at the given places of the named
// axes, zero where an axis is not named.
func flat(l Layout, shape []int, place map[rune]int) int {
	at := 0
	for i, axis := range l.String() {
		at = at*shape[i] + place[axis]
	}
	return at
}

func TestRowsSlice(t *testing.T) {
	r := Rows{Data: make([]byte, 9*40+12), Stride: 40, N: 10, Width: 3, DType: F32}
	for i := range r.Data {
		r.Data[i] = byte(i)
	}
	for lo := range 11 {
		for hi := lo; hi <= 10; hi++ {
			s := r.Slice(lo, hi)
			if s.N != hi-lo {
				t.Fatalf("[%d,%d) has %d rows", lo, hi, s.N)
			}
			for i := range s.N {
				if &s.Row(i)[0] != &r.Data[(lo+i)*40] || len(s.Row(i)) != 12 {
					t.Fatalf("row %d of [%d,%d) is elsewhere", i, lo, hi)
				}
			}
		}
	}
}
