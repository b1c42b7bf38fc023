package divide

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxChunks is the largest number of chunks of an interest set. It bounds the
// tables that are made from one to some tens of MiB.
const MaxChunks = 1 << 24

// InterestSet is a difference cover S of Z_c: every residue mod c is the
// difference of two members. It contains 0, and its members ascend. It is
// immutable; the zero value is not a set, and only the functions of this
// package make one.
type InterestSet struct {
	c       int
	members []int
	perfect bool
}

// NewInterestSet returns the interest set of c chunks with the members s, in any
// order. When 0 is not among them, all are shifted by the smallest one, which
// changes no difference.
//
// It is an error when c is not in 1..[MaxChunks], when a member is not in
// 0..c-1 or occurs twice, and when s does not cover: the error then names the
// first residue that is missed. O(l^2) time for l members.
func NewInterestSet(c int, s []int) (InterestSet, error) {
	fail := func(format string, args ...any) (InterestSet, error) {
		return InterestSet{}, fmt.Errorf("interest set %s: %s", setString(c, s), fmt.Sprintf(format, args...))
	}
	if c < 1 || c > MaxChunks {
		return fail("number of chunks %d is not in 1..%d", c, MaxChunks)
	}
	if len(s) == 0 {
		return fail("no members, expected at least one")
	}
	members := slices.Sorted(slices.Values(s))
	for i, m := range members {
		if m < 0 || m >= c {
			return fail("member %d is not in 0..%d", m, c-1)
		}
		if i > 0 && members[i-1] == m {
			return fail("member %d occurs twice", m)
		}
	}
	for i, first := 0, members[0]; i < len(members); i++ {
		members[i] -= first
	}
	if r, ok := firstMissed(c, members); ok {
		return fail("residue %d is no difference of two members, expected a difference cover", r)
	}
	l := len(members)
	return InterestSet{c: c, members: members, perfect: l*(l-1)+1 == c}, nil
}

// firstMissed returns the smallest residue mod c that is not a difference of two
// members, and whether there is one.
func firstMissed(c int, members []int) (residue int, missed bool) {
	// l members have l(l-1) differences besides 0, so a residue within the first
	// l(l-1)+1 is missed if any is: looking only there bounds the memory by the
	// members, whatever c is.
	l := len(members)
	limit := min(c, l*(l-1)+2)
	seen := make([]uint64, (limit+63)/64)
	for _, a := range members {
		for _, b := range members {
			d := a - b
			if d < 0 {
				d += c
			}
			if d < limit {
				seen[d/64] |= 1 << (d % 64)
			}
		}
	}
	for r := range limit {
		if seen[r/64]>>(r%64)&1 == 0 {
			return r, true
		}
	}
	return 0, false
}

// Chunks returns c, the number of chunks that the set is for.
func (s InterestSet) Chunks() int { return s.c }

// Size returns l, the number of members and of chunks in a quorum.
func (s InterestSet) Size() int { return len(s.members) }

// Members returns a copy of the members, ascending; the first is 0.
func (s InterestSet) Members() []int { return slices.Clone(s.members) }

// Perfect reports whether every non-zero residue is the difference of exactly
// one ordered pair of members. For a cover this is the same as c = l(l-1)+1.
func (s InterestSet) Perfect() bool { return s.perfect }

// String returns the set in the form "{0,1,3} mod 7".
func (s InterestSet) String() string { return setString(s.c, s.members) }

// setString writes a set of which nothing is known, and so shortens long ones.
func setString(c int, s []int) string {
	const most = 64
	var b strings.Builder
	b.WriteByte('{')
	for i, m := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		if i == most && len(s) > most+1 {
			fmt.Fprintf(&b, "... %d more", len(s)-most)
			break
		}
		b.WriteString(strconv.Itoa(m))
	}
	fmt.Fprintf(&b, "} mod %d", c)
	return b.String()
}
