package divide

import (
	"slices"
	"testing"
)

// checkPartition fails unless the subproblems hold every ordered pair exactly
// once and Owner agrees with them.
func checkPartition(t *testing.T, d *Division) {
	t.Helper()
	seen := make([]bool, d.QueryChunks()*d.KeyChunks())
	pairs := 0
	var sub Subproblem
	for i := range d.Len() {
		d.Subproblem(i, &sub)
		if sub.Index != i {
			t.Fatalf("subproblem %d has index %d", i, sub.Index)
		}
		for _, p := range sub.Pairs {
			at := p.Query*d.KeyChunks() + p.Key
			if seen[at] {
				t.Fatalf("subproblem %d has %v, which an earlier pair is", i, p)
			}
			seen[at] = true
			pairs++
			if o := d.Owner(p.Query, p.Key); o != i {
				t.Fatalf("subproblem %d has %v, whose owner is %d", i, p, o)
			}
		}
		checkChunks(t, d, &sub)
	}
	if pairs != len(seen) {
		t.Fatalf("found %d pairs in all subproblems, expected %d", pairs, len(seen))
	}
}

// checkChunks fails unless the chunk lists ascend strictly and hold the chunks
// of all pairs, and the pairs are grouped by query chunk, ascending.
func checkChunks(t *testing.T, d *Division, sub *Subproblem) {
	t.Helper()
	for _, list := range [][]int{sub.Query, sub.Key} {
		for i := 1; i < len(list); i++ {
			if list[i-1] >= list[i] {
				t.Fatalf("subproblem %d: chunks %v do not ascend", sub.Index, list)
			}
		}
	}
	descending := d.Kind() == "rows" && sub.Index%2 == 1
	for i, p := range sub.Pairs {
		if _, ok := slices.BinarySearch(sub.Query, p.Query); !ok {
			t.Fatalf("subproblem %d: query chunk of %v is not in %v", sub.Index, p, sub.Query)
		}
		if _, ok := slices.BinarySearch(sub.Key, p.Key); !ok {
			t.Fatalf("subproblem %d: key chunk of %v is not in %v", sub.Index, p, sub.Key)
		}
		if i == 0 {
			continue
		}
		last := sub.Pairs[i-1]
		if last.Query > p.Query || last.Query == p.Query && (last.Key < p.Key) == descending {
			t.Fatalf("subproblem %d: %v follows %v", sub.Index, p, last)
		}
	}
}

func mustCQS(t testing.TB, c, depth int) *Division {
	t.Helper()
	set, err := Cover(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := CQS(set, depth)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestPairsExactlyOnce checks every c up to 200 that has a set, perfect or not,
// odd or even; a c that has none must be an error.
func TestPairsExactlyOnce(t *testing.T) {
	for c := 1; c <= 200; c++ {
		if _, err := Cover(c); (err == nil) != Usable(c) {
			t.Fatalf("c=%d: usable is %v, error is %v", c, Usable(c), err)
		}
		if Usable(c) {
			checkPartition(t, mustCQS(t, c, 1))
		}
	}
}

func TestPairsExactlyOnceDeep(t *testing.T) {
	for depth, largest := range map[int]int{2: 31, 3: 9} {
		if !testing.Short() {
			largest += largest / 2
		}
		for c := 1; c <= largest; c++ {
			checkPartition(t, mustCQS(t, c, depth))
		}
	}
}
