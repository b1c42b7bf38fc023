package divide

import (
	"strings"
	"testing"
)

func TestAxis(t *testing.T) {
	for n := range 60 {
		for chunks := 1; chunks <= 65; chunks++ {
			a := Axis{N: n, Chunks: chunks}
			if err := a.Validate(); err != nil {
				t.Fatal(err)
			}
			next := 0
			for i := range chunks {
				lo, hi := a.Range(i)
				want := n / chunks
				if i < n%chunks {
					want++
				}
				if lo != next || hi-lo != want || a.Len(i) != want || want > a.Longest() {
					t.Fatalf("%+v: chunk %d is %d..%d, expected %d tokens from %d", a, i, lo, hi, want, next)
				}
				for token := lo; token < hi; token++ {
					if found := a.Find(token); found != i {
						t.Fatalf("%+v: token %d found in chunk %d, expected %d", a, token, found, i)
					}
				}
				next = hi
			}
			if next != n {
				t.Fatalf("%+v: chunks end at %d", a, next)
			}
		}
	}
}

// TestAxisLarge checks that nothing overflows at the end of the range of int.
func TestAxisLarge(t *testing.T) {
	const maxInt = int(^uint(0) >> 1)
	for _, a := range []Axis{{maxInt, 1}, {maxInt, 2}, {maxInt, 7}, {maxInt, 995_007}, {maxInt, maxInt}, {maxInt, maxInt - 1}} {
		for _, i := range []int{0, 1, a.Chunks / 2, a.Chunks - 2, a.Chunks - 1} {
			if i < 0 || i >= a.Chunks {
				continue
			}
			lo, hi := a.Range(i)
			if lo < 0 || hi <= lo || hi > a.N || i == a.Chunks-1 && hi != a.N {
				t.Errorf("%+v: chunk %d is %d..%d", a, i, lo, hi)
				continue
			}
			if a.Find(lo) != i || a.Find(hi-1) != i {
				t.Errorf("%+v: the ends %d and %d of chunk %d are found in %d and %d", a, lo, hi-1, i, a.Find(lo), a.Find(hi-1))
			}
		}
	}
}

func TestAxisValidate(t *testing.T) {
	for _, a := range []Axis{{}, {-1, 1}, {5, 0}, {5, -2}} {
		if err := a.Validate(); err == nil || !strings.Contains(err.Error(), "expected at least 0 tokens and 1 chunk") {
			t.Errorf("%+v: error %v", a, err)
		}
	}
}
