package main

import "math/bits"

// candidate is an element that may still join the set. diffs holds the classes
// of its differences to the members so far.
type candidate struct {
	x     int
	diffs uint64
}

// searcher looks for a cover of Z_c with l members that contains {0, 1, x}.
//
// Symmetry. Every cover has two members that differ by 1, so a translate of it
// contains {0, 1, x} for some x. x -> ux+t with u a unit maps covers to covers;
// it groups the triples into orbits. The orbits that contain some {0, 1, x} are
// searched one after the other, and a set that contains any triple of an
// earlier orbit is skipped, because an image of it was searched already.
type searcher struct {
	c, l    int
	full    uint64        // all classes {d, c-d}, d = 1..c/2
	class   []uint64      // difference mod c -> bit of its class, 0 for 0
	orbit   []int16       // (b-a)*c + (e-a) -> orbit of the triple {a, b, e}
	current int16         // orbit being searched
	members []int         // the set so far
	lists   [][]candidate // scratch, one candidate list for each recursion depth
}

const noOrbit = 1 << 14

// exhaust returns a cover of Z_c with l members, or nil, which proves that there
// is none.
func exhaust(c, l int) []int {
	if l == 2 {
		if c <= 3 {
			return []int{0, 1}
		}
		return nil
	}
	s := &searcher{c: c, l: l, full: 1<<(c/2) - 1}
	s.class = make([]uint64, c)
	for d := 1; d < c; d++ {
		s.class[d] = 1 << (min(d, c-d) - 1)
	}
	for range l {
		s.lists = append(s.lists, make([]candidate, 0, c))
	}
	for _, x := range s.classify() {
		s.current = s.orbit[1*c+x]
		s.members = []int{0, 1, x}
		if s.start() {
			return s.members
		}
	}
	return nil
}

// classify fills the table of orbits and returns one x for each.
func (s *searcher) classify() (representatives []int) {
	c := s.c
	s.orbit = make([]int16, c*c)
	for i := range s.orbit {
		s.orbit[i] = noOrbit
	}
	for x := 2; x < c; x++ {
		if s.orbit[c+x] != noOrbit {
			continue
		}
		id := int16(len(representatives))
		representatives = append(representatives, x)
		for u := 1; u < c; u++ {
			if gcd(u, c) != 1 {
				continue
			}
			t := [3]int{0, u, u * x % c}
			for i := range 3 {
				a, b := s.sub(t[(i+1)%3], t[i]), s.sub(t[(i+2)%3], t[i])
				s.orbit[a*c+b], s.orbit[b*c+a] = id, id
			}
		}
	}
	return representatives
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (s *searcher) sub(a, b int) int {
	if a < b {
		return a - b + s.c
	}
	return a - b
}

// start searches all sets that contain the three members in s.members.
func (s *searcher) start() bool {
	a, b, e := s.members[0], s.members[1], s.members[2]
	covered := s.class[s.sub(a, b)] | s.class[s.sub(a, e)] | s.class[s.sub(b, e)]
	list := s.lists[0][:0]
	for x := range s.c {
		if x == a || x == b || x == e || s.forbidden(x) {
			continue
		}
		list = append(list, candidate{x, s.class[s.sub(x, a)] | s.class[s.sub(x, b)] | s.class[s.sub(x, e)]})
	}
	return s.extend(0, covered, list)
}

// forbidden reports whether x forms a triple of an earlier orbit with two members.
func (s *searcher) forbidden(x int) bool {
	for i, a := range s.members {
		for _, b := range s.members[:i] {
			if s.orbit[s.sub(b, a)*s.c+s.sub(x, a)] < s.current {
				return true
			}
		}
	}
	return false
}

// extend searches all ways to complete s.members from list. It may reorder and
// shorten list.
func (s *searcher) extend(depth int, covered uint64, list []candidate) bool {
	missing := s.full &^ covered
	if missing == 0 {
		return true
	}
	left := s.l - len(s.members)
	list = prune(list, missing, left)
	if left == 0 || len(list) == 0 {
		return false
	}
	if left == 1 {
		for _, e := range list {
			if missing&^e.diffs == 0 {
				s.members = append(s.members, e.x)
				return true
			}
		}
		return false
	}

	// Some difference r is missing. Either one of the new members has it to a
	// present member, or two new members have it to each other.
	r := s.pick(list, missing)
	bit := uint64(1) << (r - 1)
	for i := 0; i < len(list); {
		e := list[i]
		if e.diffs&bit == 0 {
			i++
			continue
		}
		list[i] = list[len(list)-1]
		list = list[:len(list)-1]
		if s.with(depth, covered, list, e) {
			return true
		}
	}
	for _, e := range list {
		f, ok := find(list, (e.x+r)%s.c)
		if !ok || 2*r == s.c && f.x < e.x {
			continue
		}
		if s.withPair(depth, covered, list, e, f) {
			return true
		}
	}
	return false
}

// prune drops the candidates that cover too few missing classes: left new
// members cover at most the sum of what each covers with the present members,
// and one class for each pair of new members.
func prune(list []candidate, missing uint64, left int) []candidate {
	most := 0
	for _, e := range list {
		most = max(most, bits.OnesCount64(e.diffs&missing))
	}
	need := bits.OnesCount64(missing) - left*(left-1)/2 - (left-1)*most
	kept := list[:0]
	for _, e := range list {
		if bits.OnesCount64(e.diffs&missing) >= need {
			kept = append(kept, e)
		}
	}
	return kept
}

// pick returns the missing difference that leaves the fewest branches.
func (s *searcher) pick(list []candidate, missing uint64) int {
	var ways [64]int
	var present [2*maxC + 1]bool
	for _, e := range list {
		present[e.x], present[e.x+s.c] = true, true
		for m := e.diffs & missing; m != 0; m &= m - 1 {
			ways[bits.TrailingZeros64(m)]++
		}
	}
	best, fewest := 0, 1<<30
	for m := missing; m != 0; m &= m - 1 {
		r := bits.TrailingZeros64(m) + 1
		n := ways[r-1]
		for _, e := range list {
			if present[e.x+r] {
				n++
			}
		}
		if n < fewest {
			best, fewest = r, n
		}
	}
	return best
}

func find(list []candidate, x int) (candidate, bool) {
	for _, e := range list {
		if e.x == x {
			return e, true
		}
	}
	return candidate{}, false
}

// with searches the sets that contain e.
func (s *searcher) with(depth int, covered uint64, list []candidate, e candidate) bool {
	next := s.join(depth+1, list, e.x)
	if s.extend(depth+1, covered|e.diffs, next) {
		return true
	}
	s.members = s.members[:len(s.members)-1]
	return false
}

// withPair searches the sets that contain e and f.
func (s *searcher) withPair(depth int, covered uint64, list []candidate, e, f candidate) bool {
	next := s.join(depth+1, list, e.x)
	if f, ok := find(next, f.x); ok {
		next = s.join(depth+2, next, f.x)
		if s.extend(depth+2, covered|e.diffs|f.diffs, next) {
			return true
		}
		s.members = s.members[:len(s.members)-1]
	}
	s.members = s.members[:len(s.members)-1]
	return false
}

// join adds y to the members and writes the candidates that remain to the
// scratch list of the given depth.
func (s *searcher) join(depth int, list []candidate, y int) []candidate {
	next := s.lists[depth][:0]
candidates:
	for _, e := range list {
		if e.x == y {
			continue
		}
		for _, a := range s.members {
			if s.orbit[s.sub(y, a)*s.c+s.sub(e.x, a)] < s.current {
				continue candidates
			}
		}
		next = append(next, candidate{e.x, e.diffs | s.class[s.sub(e.x, y)]})
	}
	s.members = append(s.members, y)
	return next
}
