package divide

import (
	"fmt"
	"slices"
	"strings"
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

func mustRows(t testing.TB, queryChunks, keyChunks int) *Division {
	t.Helper()
	d, err := Rows(queryChunks, keyChunks)
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
	chunks := map[int][]int{2: {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 20, 21}, 3: {1, 2, 3, 4, 5, 6, 7}}
	if !testing.Short() {
		chunks[2] = append(chunks[2], 30, 31, 46)
		chunks[3] = append(chunks[3], 8, 9)
	}
	for depth, list := range chunks {
		for _, c := range list {
			d := mustCQS(t, c, depth)
			if set, ok := d.Set(); !ok || set.Chunks() != c || d.Depth() != depth || d.Kind() != "cqs" {
				t.Fatalf("c=%d depth %d: division is %s %v depth %d", c, depth, d.Kind(), set, d.Depth())
			}
			checkPartition(t, d)
		}
	}
}

// TestEverySetIsSettled takes sets with many representations of a residue, down
// to the set of all residues.
func TestEverySetIsSettled(t *testing.T) {
	for c := 1; c <= 24; c++ {
		all := make([]int, c)
		for i := range all {
			all[i] = i
		}
		for _, members := range [][]int{all, all[:c/2+1]} {
			set, err := NewInterestSet(c, members)
			if err != nil {
				t.Fatal(err)
			}
			d, err := CQS(set, 1)
			if err != nil {
				t.Fatal(err)
			}
			checkPartition(t, d)
		}
	}
}

func TestRows(t *testing.T) {
	for queries := 1; queries <= 9; queries++ {
		for keys := 1; keys <= 9; keys++ {
			d := mustRows(t, queries, keys)
			checkPartition(t, d)
			if _, ok := d.Set(); ok || d.Depth() != 0 || d.Kind() != "rows" || d.Len() != queries {
				t.Fatalf("%d x %d: division is %s, depth %d, %d subproblems", queries, keys, d.Kind(), d.Depth(), d.Len())
			}
		}
	}
	var sub Subproblem
	d := mustRows(t, 3, 4)
	d.Subproblem(1, &sub)
	if want := []Pair{{1, 3}, {1, 2}, {1, 1}, {1, 0}}; !slices.Equal(sub.Pairs, want) {
		t.Errorf("pairs of row 1: %v, expected %v", sub.Pairs, want)
	}
	if !slices.Equal(sub.Key, []int{0, 1, 2, 3}) {
		t.Errorf("keys of row 1: %v", sub.Key)
	}
}

func TestDivisionErrors(t *testing.T) {
	const maxInt = int(^uint(0) >> 1)
	set, err := Cover(7)
	if err != nil {
		t.Fatal(err)
	}
	large, err := Singer(2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		do   func() (*Division, error)
		want string
	}{
		{"zero set", func() (*Division, error) { return CQS(InterestSet{}, 1) }, "zero interest set"},
		{"depth 0", func() (*Division, error) { return CQS(set, 0) }, "found depth 0, expected 1..3"},
		{"depth 4", func() (*Division, error) { return CQS(set, 4) }, "found depth 4, expected 1..3"},
		{"overflow", func() (*Division, error) { return CQS(large, 3) }, "4196353^3 subproblems overflow"},
		{"no queries", func() (*Division, error) { return Rows(0, 3) }, "found 0 query chunks and 3 key chunks"},
		{"no keys", func() (*Division, error) { return Rows(3, -1) }, "found 3 query chunks and -1 key chunks"},
		{"too many rows", func() (*Division, error) { return Rows(maxInt, 2) }, "overflow"},
	} {
		if d, err := test.do(); err == nil {
			t.Errorf("%s: found a division with %d subproblems", test.name, d.Len())
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %q, expected %q", test.name, err, test.want)
		}
	}
}

func TestOutOfRangePanics(t *testing.T) {
	d := mustCQS(t, 7, 1)
	for name, do := range map[string]func(){
		"subproblem 7":  func() { d.Subproblem(7, new(Subproblem)) },
		"subproblem -1": func() { d.Subproblem(-1, new(Subproblem)) },
		"query chunk 7": func() { d.Owner(7, 0) },
		"key chunk -1":  func() { d.Owner(0, -1) },
		"chunk 3":       func() { Axis{N: 9, Chunks: 3}.Range(3) },
		"token 9":       func() { Axis{N: 9, Chunks: 3}.Find(9) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.HasPrefix(text, "divide: "+name+" is not in 0..") {
					t.Errorf("panic is %q", text)
				}
			}()
			do()
		})
	}
}

// TestSteadyState: a subproblem is computed from its index alone, so a reused
// Subproblem needs no memory, and c = 995007 is no different from c = 7.
func TestSteadyState(t *testing.T) {
	thousand, err := Singer(997)
	if err != nil {
		t.Fatal(err)
	}
	large, err := CQS(thousand, 1)
	if err != nil {
		t.Fatal(err)
	}
	divisions := []*Division{mustCQS(t, 57, 1), mustCQS(t, 8, 2), mustCQS(t, 7, 3), mustRows(t, 100, 90), large}
	for _, d := range divisions {
		var sub Subproblem
		widest := 0 // the leaves of a deep division are unequal: grow to the largest first
		for i := range min(d.Len(), 400) {
			if d == large && i > 0 {
				break
			}
			d.Subproblem(i, &sub)
			widest = max(widest, len(sub.Pairs))
		}
		i := 0
		allocs := testing.AllocsPerRun(10, func() {
			d.Subproblem(i*37%min(d.Len(), 400), &sub)
			if owner := d.Owner(sub.Query[0], sub.Key[0]); owner >= d.Len() {
				t.Errorf("owner %d", owner)
			}
			i++
		})
		if allocs != 0 {
			t.Errorf("%s of %d subproblems: %v allocations", d.Kind(), d.Len(), allocs)
		}
		if len(sub.Pairs) > widest {
			t.Errorf("%s of %d subproblems: %d pairs, more than %d", d.Kind(), d.Len(), len(sub.Pairs), widest)
		}
	}

	last := large.Len() - 1
	var sub Subproblem
	large.Subproblem(last, &sub)
	if len(sub.Pairs) != large.Len() || len(sub.Query) != 998 || len(sub.Key) != 998 {
		t.Fatalf("c=%d: %d pairs of %d query and %d key chunks", large.Len(), len(sub.Pairs), len(sub.Query), len(sub.Key))
	}
	for _, p := range sub.Pairs {
		if o := large.Owner(p.Query, p.Key); o != last {
			t.Fatalf("owner of %v is %d, expected %d", p, o, last)
		}
	}
}

// TestAll also covers leaving the loop early.
func TestAll(t *testing.T) {
	d := mustCQS(t, 7, 1)
	next := 0
	for sub := range d.All() {
		if sub.Index != next {
			t.Fatalf("subproblem %d comes where %d should", sub.Index, next)
		}
		if next++; next == 5 {
			break
		}
	}
	if next != 5 {
		t.Errorf("found %d subproblems", next)
	}
	for range d.All() {
		next++
	}
	if next != 5+7 {
		t.Errorf("found %d subproblems", next-5)
	}
}
