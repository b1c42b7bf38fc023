package divide

import (
	"fmt"
	"slices"
	"testing"
)

// TestSeven is the worked example of the package comment.
func TestSeven(t *testing.T) {
	quorums := [][]int{{0, 1, 3}, {1, 2, 4}, {2, 3, 5}, {3, 4, 6}, {0, 4, 5}, {1, 5, 6}, {0, 2, 6}}
	d := mustCQS(t, 7, 1)
	if d.Len() != 7 || d.QueryChunks() != 7 || d.KeyChunks() != 7 {
		t.Fatalf("found %d subproblems of %d x %d chunks", d.Len(), d.QueryChunks(), d.KeyChunks())
	}
	var sub Subproblem
	for o, quorum := range quorums {
		d.Subproblem(o, &sub)
		if !slices.Equal(sub.Query, quorum) || !slices.Equal(sub.Key, quorum) || !slices.Equal(sub.Path, []int{o}) {
			t.Errorf("owner %d: path %v, chunks %v and %v, expected %v", o, sub.Path, sub.Query, sub.Key, quorum)
		}
		// All pairs of the quorum but the diagonals of the chunks that are not
		// the owner.
		var want []Pair
		for _, x := range quorum {
			for _, y := range quorum {
				if x != y || x == o {
					want = append(want, Pair{x, y})
				}
			}
		}
		if !slices.Equal(sub.Pairs, want) {
			t.Errorf("owner %d: pairs %v, expected %v", o, sub.Pairs, want)
		}
	}
}

// TestLeafAtoms is a leaf worked out by hand. Owner 0 sees the atoms 0-6, 7-13
// and 21-27. Its owner 1 takes the pieces 1, 2 and 4, of three atoms each, of
// these: positions 3-8 and 12-14.
func TestLeafAtoms(t *testing.T) {
	d := mustCQS(t, 7, 2)
	var sub Subproblem
	d.Subproblem(1, &sub)
	if want := []int{3, 4, 5, 6, 7, 8, 12, 13, 21}; !slices.Equal(sub.Query, want) || !slices.Equal(sub.Key, want) {
		t.Errorf("atoms %v and %v, expected %v", sub.Query, sub.Key, want)
	}
	if !slices.Equal(sub.Path, []int{0, 1}) {
		t.Errorf("path %v, expected [0 1]", sub.Path)
	}
}

// TestLeafSizes compares with the leaf sizes that the group-bit formulation
// gives: at depth 2 between 0.735 and 1.286 of the mean of 49, and at depth 3
// nine leaves without a pair.
func TestLeafSizes(t *testing.T) {
	smallest, largest, empty := 1<<30, 0, 0
	for sub := range mustCQS(t, 7, 2).All() {
		smallest, largest = min(smallest, len(sub.Pairs)), max(largest, len(sub.Pairs))
	}
	for sub := range mustCQS(t, 7, 3).All() {
		if len(sub.Pairs) == 0 {
			empty++
		}
	}
	if smallest != 36 || largest != 63 || empty != 9 {
		t.Errorf("depth 2: %d..%d pairs, expected 36..63; depth 3: %d empty leaves, expected 9", smallest, largest, empty)
	}
}

// TestBalance: at depth 1 every subproblem sees its owner's quorum, has c pairs,
// one of them diagonal, and keeps the same under a causal mask, but for the pair
// of residue c/2.
func TestBalance(t *testing.T) {
	for c := 1; c <= 200; c++ {
		if !Usable(c) {
			continue
		}
		d := mustCQS(t, c, 1)
		set, _ := d.Set()
		for sub := range d.All() {
			o := sub.Index
			var quorum []int
			for _, s := range set.Members() {
				quorum = append(quorum, (o+s)%c)
			}
			slices.Sort(quorum)
			if !slices.Equal(sub.Query, quorum) || !slices.Equal(sub.Key, quorum) {
				t.Fatalf("c=%d: subproblem %d sees %v and %v, expected %v", c, o, sub.Query, sub.Key, quorum)
			}
			below, diagonal, above := 0, 0, 0
			for _, p := range sub.Pairs {
				switch {
				case p.Query > p.Key:
					below++
				case p.Query < p.Key:
					above++
				case p.Query == o:
					diagonal++
				}
			}
			half := (c - 1) / 2
			if len(sub.Pairs) != c || diagonal != 1 || below < half || above < half || below+above != c-1 {
				t.Fatalf("c=%d: subproblem %d has %d pairs: %d below, %d on and %d above the diagonal", c, o, len(sub.Pairs), below, diagonal, above)
			}
		}
	}
}

// TestMirrored: both orders of two chunks belong to one subproblem unless they
// are half of an even c apart.
func TestMirrored(t *testing.T) {
	for c := 1; c <= 111; c++ {
		d := mustCQS(t, c, 1)
		for r := range c {
			if 2*r != c && d.Owner(r, 0) != d.Owner(0, r) {
				t.Errorf("c=%d: (%d,0) belongs to %d, (0,%d) to %d", c, r, d.Owner(r, 0), r, d.Owner(0, r))
			}
		}
	}
}

// bitToken is a token of the group-bit formulation with the set of groups that it is
// in: two tokens that share a group are not the business of this leaf.
type bitToken struct {
	index  int
	groups []string
}

// groupBits is the recursion as the paper puts it, on tokens: gather the pieces
// of the quorum, put each piece that is not the owner's into a group of its own,
// and keep the pairs that share no group. It calls leaf for each leaf, in order.
func groupBits(set InterestSet, depth int, local []bitToken, name string, leaf func([]bitToken)) {
	if depth == 0 {
		leaf(local)
		return
	}
	axis := Axis{N: len(local), Chunks: set.Chunks()}
	for o := range set.Chunks() {
		var gathered []bitToken
		path := fmt.Sprintf("%s/%d", name, o)
		for piece := range set.Chunks() {
			if !slices.Contains(set.members, (piece-o+set.c)%set.c) {
				continue
			}
			lo, hi := axis.Range(piece)
			for _, token := range local[lo:hi] {
				if piece != o {
					token.groups = append(slices.Clone(token.groups), fmt.Sprintf("%s:%d", path, piece))
				}
				gathered = append(gathered, token)
			}
		}
		groupBits(set, depth-1, gathered, path, leaf)
	}
}

func disjoint(a, b []string) bool {
	for _, x := range a {
		if slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// TestAgreesWithGroupBits: for perfect sets and a multiple of c^depth tokens the
// division is the recursion on tokens, leaf by leaf.
func TestAgreesWithGroupBits(t *testing.T) {
	for _, test := range []struct{ c, depth, perAtom int }{
		{3, 1, 3}, {7, 1, 2}, {13, 1, 2}, {31, 1, 1},
		{3, 2, 2}, {7, 2, 2}, {13, 2, 1},
		{3, 3, 2}, {7, 3, 1},
	} {
		d := mustCQS(t, test.c, test.depth)
		set, _ := d.Set()
		axis := Axis{N: d.QueryChunks() * test.perAtom, Chunks: d.QueryChunks()}
		tokens := make([]bitToken, axis.N)
		for i := range tokens {
			tokens[i].index = i
		}
		var sub Subproblem
		next := 0
		groupBits(set, test.depth, tokens, "", func(leaf []bitToken) {
			var want, got [][2]int
			for _, q := range leaf {
				for _, k := range leaf {
					if disjoint(q.groups, k.groups) {
						want = append(want, [2]int{q.index, k.index})
					}
				}
			}
			d.Subproblem(next, &sub)
			next++
			for _, p := range sub.Pairs {
				qlo, qhi := axis.Range(p.Query)
				klo, khi := axis.Range(p.Key)
				for q := qlo; q < qhi; q++ {
					for k := klo; k < khi; k++ {
						got = append(got, [2]int{q, k})
					}
				}
			}
			slices.SortFunc(got, func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
			if !slices.Equal(got, want) {
				t.Fatalf("%+v: leaf %v has token pairs %v, expected %v", test, sub.Path, got, want)
			}
		})
		if next != d.Len() {
			t.Fatalf("%+v: %d leaves, expected %d", test, next, d.Len())
		}
	}
}

// checkTokens fails unless the subproblems' pairs, cut into tokens, are every
// query-key pair (every causal one) exactly once. A causal pair of chunks is
// full below the diagonal, a triangle on it, and dropped above it.
func checkTokens(t *testing.T, d *Division, queries, keys int, causal bool) {
	t.Helper()
	qAxis, kAxis := Axis{queries, d.QueryChunks()}, Axis{keys, d.KeyChunks()}
	count := make([]int, queries*keys)
	for sub := range d.All() {
		for _, p := range sub.Pairs {
			if causal && p.Key > p.Query {
				continue
			}
			qlo, qhi := qAxis.Range(p.Query)
			klo, khi := kAxis.Range(p.Key)
			for q := qlo; q < qhi; q++ {
				for k := klo; k < khi; k++ {
					if !causal || p.Key < p.Query || k <= q {
						count[q*keys+k]++
					}
				}
			}
		}
	}
	for i, n := range count {
		q, k := i/keys, i%keys
		want := 1
		if causal && k > q {
			want = 0
		}
		if n != want {
			t.Fatalf("%s, %d x %d chunks, %d x %d tokens, causal %v: (%d,%d) is computed %d times, expected %d",
				d.Kind(), d.QueryChunks(), d.KeyChunks(), queries, keys, causal, q, k, n, want)
		}
	}
}

func TestTokensExactlyOnce(t *testing.T) {
	for _, test := range []struct{ c, depth int }{
		{1, 1}, {2, 1}, {3, 1}, {4, 1}, {7, 1}, {8, 1}, {13, 1}, {20, 1}, {31, 1}, {38, 1}, {57, 1}, {96, 1},
		{1, 2}, {2, 2}, {3, 2}, {4, 2}, {6, 2}, {7, 2}, {8, 2}, {13, 2},
		{1, 3}, {2, 3}, {3, 3}, {4, 3}, {5, 3},
	} {
		d := mustCQS(t, test.c, test.depth)
		c := d.QueryChunks()
		for _, n := range []int{1, 2, c - 1, c, c + 1, 2 * c, 2*c - 1, 97, 101, 128} {
			if n < 1 || n > 200 {
				continue
			}
			checkTokens(t, d, n, n, false)
			checkTokens(t, d, n, n, true)
			checkTokens(t, d, n, 2*n+3, false)
			checkTokens(t, d, n+17, n, false)
		}
	}
	for _, n := range []int{1, 5, 6, 7, 13, 100} {
		checkTokens(t, mustRows(t, 6, 6), n, n, true)
		checkTokens(t, mustRows(t, 6, 5), n, n+9, false)
	}
}

// FuzzExactlyOnce folds its arguments into the range where a run takes
// milliseconds.
func FuzzExactlyOnce(f *testing.F) {
	f.Add(uint8(14), uint8(7-1), uint8(0), true)
	f.Add(uint8(1), uint8(8-1), uint8(0), false)
	f.Add(uint8(0), uint8(8-1), uint8(0), true)
	f.Add(uint8(95), uint8(96-1), uint8(0), false)
	f.Add(uint8(49), uint8(7-1), uint8(1), true)
	f.Add(uint8(100), uint8(4-1), uint8(2), true)
	f.Fuzz(func(t *testing.T, n, c, depth uint8, causal bool) {
		depth %= 3
		c %= [...]uint8{maxTable, 12, 5}[depth]
		d := mustCQS(t, int(c)+1, int(depth)+1)
		checkTokens(t, d, int(n), int(n), causal)
		checkPartition(t, d)
	})
}
