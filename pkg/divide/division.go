package divide

import (
	"fmt"
	"iter"
)

// Pair is an ordered pair of chunk indices: the attention of the tokens of one
// query chunk to the tokens of one key chunk.
type Pair struct{ Query, Key int }

// Subproblem is one independent unit of work. [Division.Subproblem] fills it and
// reuses its slices; the zero value is ready for that.
type Subproblem struct {
	// Index is the subproblem's place in the schedule, 0..Len-1.
	Index int
	// Path holds the owners at each level, from level 1. For rows it is the
	// query chunk alone.
	Path []int
	// Query and Key are the chunks that the subproblem sees, ascending and
	// without repetition. Every chunk of a pair is among them; from depth 2 on a
	// leaf may see chunks that are in none of its pairs.
	Query, Key []int
	// Pairs are the pairs that the subproblem is responsible for, grouped by
	// query chunk, query chunks ascending. The keys of a query chunk ascend,
	// except in the odd subproblems of rows. At depth 1 there are c of them; from
	// depth 2 on the leaves have unequal numbers, and at depth 3 some have none.
	Pairs []Pair

	members []int32 // CQS scratch: for each level and atom, its place in the quorum
}

// The two divisions.
const (
	kindCQS  = "cqs"
	kindRows = "rows"
)

// Division is a way to cut attention into subproblems: [CQS] or [Rows] makes
// one. Every ordered pair of a query chunk and a key chunk belongs to exactly
// one subproblem. A Division is immutable and may be used concurrently, each
// goroutine with its own Subproblem.
type Division struct {
	kind      string
	subs      int
	queries   int
	keys      int
	set       InterestSet
	ownMember []int32 // r -> s_r, the member to subtract from the query chunk
	levels    []level // from level 1; only CQS
}

// CQS returns the division of the given depth, 1..3, by the interest set. Both
// axes have c^depth chunks (atoms, see the package comment), and there are
// c^depth subproblems.
//
// It is an error when the depth is out of range, when set is the zero
// InterestSet, or when c^depth overflows an int. O(l^2) time and 4c bytes.
func CQS(set InterestSet, depth int) (*Division, error) {
	if set.c == 0 {
		return nil, fmt.Errorf("divide by CQS: found the zero interest set, expected one made by Cover, Singer or NewInterestSet")
	}
	if depth < 1 || depth > 3 {
		return nil, fmt.Errorf("divide by CQS with %v: found depth %d, expected 1..3", set, depth)
	}
	atoms := 1
	for range depth {
		product, ok := mulInt(atoms, set.c)
		if !ok {
			return nil, fmt.Errorf("divide by CQS with %v: %d^%d subproblems overflow an int", set, set.c, depth)
		}
		atoms = product
	}
	d := &Division{kind: kindCQS, subs: atoms, queries: atoms, keys: atoms, set: set}
	d.ownMember = representations(set)
	d.levels = levels(set, depth, atoms)
	return d, nil
}

// Rows returns the division in which subproblem i is query chunk i against all
// key chunks. The keys ascend when i is even and descend when i is odd, so that
// the key chunks at the turn, still in a cache, are used again.
//
// It is an error when either number is smaller than 1 or when their product, the
// number of pairs, overflows an int.
func Rows(queryChunks, keyChunks int) (*Division, error) {
	if queryChunks < 1 || keyChunks < 1 {
		return nil, fmt.Errorf("divide by rows: found %d query chunks and %d key chunks, expected at least 1 of each", queryChunks, keyChunks)
	}
	if _, ok := mulInt(queryChunks, keyChunks); !ok {
		return nil, fmt.Errorf("divide by rows: %d query chunks times %d key chunks overflow an int", queryChunks, keyChunks)
	}
	return &Division{kind: kindRows, subs: queryChunks, queries: queryChunks, keys: keyChunks}, nil
}

// mulInt returns a*b for a, b >= 1, and false when it overflows.
func mulInt(a, b int) (int, bool) {
	const maxInt = int(^uint(0) >> 1)
	if a > maxInt/b {
		return 0, false
	}
	return a * b, true
}

// Kind returns "cqs" or "rows".
func (d *Division) Kind() string { return d.kind }

// QueryChunks returns the number of chunks of the query axis.
func (d *Division) QueryChunks() int { return d.queries }

// KeyChunks returns the number of chunks of the key axis.
func (d *Division) KeyChunks() int { return d.keys }

// Len returns the number of subproblems.
func (d *Division) Len() int { return d.subs }

// Depth returns how often CQS Divide is applied, 1..3, and 0 for rows.
func (d *Division) Depth() int { return len(d.levels) }

// Set returns the interest set, and false for rows.
func (d *Division) Set() (InterestSet, bool) { return d.set, d.kind == kindCQS }

// Subproblem computes subproblem i into dst, from i alone. It reuses the slices
// of dst and allocates only to grow them. For CQS it takes O(l^2) time at depth
// 1 and O(l^(2 depth)) in general, for rows O(keys). It panics when i is not in
// 0..Len-1.
func (d *Division) Subproblem(i int, dst *Subproblem) {
	if i < 0 || i >= d.subs {
		panic(fmt.Sprintf("divide: subproblem %d is not in 0..%d", i, d.subs-1))
	}
	dst.Index = i
	dst.Path, dst.Query, dst.Key, dst.Pairs = dst.Path[:0], dst.Query[:0], dst.Key[:0], dst.Pairs[:0]
	if d.kind == kindCQS {
		d.cqsSubproblem(dst)
	} else {
		d.rowsSubproblem(dst)
	}
}

func (d *Division) rowsSubproblem(dst *Subproblem) {
	i := dst.Index
	dst.Path = append(dst.Path, i)
	dst.Query = append(dst.Query, i)
	for key := range d.keys {
		dst.Key = append(dst.Key, key)
		if i%2 == 1 {
			key = d.keys - 1 - key
		}
		dst.Pairs = append(dst.Pairs, Pair{Query: i, Key: key})
	}
}

// Owner returns the index of the one subproblem that is responsible for the
// ordered pair. It is the inverse of Subproblem. O(1) time at depth 1 and for
// rows, O(log l) for each further level. It panics when either chunk is out of
// range.
func (d *Division) Owner(query, key int) int {
	if query < 0 || query >= d.queries {
		panic(fmt.Sprintf("divide: query chunk %d is not in 0..%d", query, d.queries-1))
	}
	if key < 0 || key >= d.keys {
		panic(fmt.Sprintf("divide: key chunk %d is not in 0..%d", key, d.keys-1))
	}
	if d.kind == kindCQS {
		return d.cqsOwner(query, key)
	}
	return query
}

// All returns the subproblems in order. The one that is yielded is overwritten
// by the next.
func (d *Division) All() iter.Seq[*Subproblem] {
	return func(yield func(*Subproblem) bool) {
		var sub Subproblem
		for i := range d.subs {
			d.Subproblem(i, &sub)
			if !yield(&sub) {
				return
			}
		}
	}
}
