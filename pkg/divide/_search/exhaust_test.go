package main

import "testing"

// TestAgainstPlainSearch compares with a search that uses no symmetry, no bound
// and no clever branching: all sets with 0, in ascending order.
func TestAgainstPlainSearch(t *testing.T) {
	for c := 4; c <= 34; c++ {
		for l := 3; l*(l-1)+1 < 2*c && l < c; l++ {
			want := plain(c, l, []int{0})
			members := exhaust(c, l)
			if (members != nil) != want {
				t.Errorf("c=%d l=%d: exhaust found %v, plain search found a cover: %v", c, l, members, want)
			}
			if members != nil && (len(members) > l || missing(c, members) != 0) {
				t.Errorf("c=%d l=%d: %v is no cover of that size", c, l, members)
			}
			if want {
				break
			}
		}
	}
}

func plain(c, l int, set []int) bool {
	if len(set) == l {
		return missing(c, set) == 0
	}
	for x := set[len(set)-1] + 1; x < c; x++ {
		if plain(c, l, append(set, x)) {
			return true
		}
	}
	return false
}

func missing(c int, set []int) int {
	seen := make([]bool, c)
	n := c
	for _, a := range set {
		for _, b := range set {
			if d := (a - b + c) % c; !seen[d] {
				seen[d] = true
				n--
			}
		}
	}
	return n
}
