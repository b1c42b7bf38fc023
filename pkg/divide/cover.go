package divide

import "fmt"

// maxTable is the largest number of chunks in coverTable.
const maxTable = 111

// Cover returns the set to use for c chunks, the same one every time:
//
//   - {0} for c = 1;
//   - the perfect set of [Singer] for c = q^2+q+1, q a prime power;
//   - a tabulated cover for every other c up to 111. The table says for each
//     how its size is known to be the smallest possible.
//
// For any other c it returns an error that names the nearest usable numbers of
// chunks below and above.
func Cover(c int) (InterestSet, error) {
	switch q, ok := singerOrder(c); {
	case ok:
		return Singer(q)
	case c == 1:
		return NewInterestSet(1, []int{0})
	case c > 1 && c <= maxTable:
		return NewInterestSet(c, coverTable[c])
	}
	if c < 1 {
		return InterestSet{}, fmt.Errorf("interest set of %d chunks: expected at least 1", c)
	}
	below, _ := PrevUsable(c)
	above, ok := NextUsable(c)
	if !ok {
		return InterestSet{}, fmt.Errorf("interest set of %d chunks: expected at most %d, the largest number with a known set", c, below)
	}
	return InterestSet{}, fmt.Errorf("interest set of %d chunks: none is known, the nearest usable numbers are %d and %d", c, below, above)
}

// Usable reports whether [Cover] has a set of c chunks: c in 1..111, or
// c = q^2+q+1 <= [MaxChunks] for a prime power q.
func Usable(c int) bool {
	if c >= 1 && c <= maxTable {
		return true
	}
	_, ok := singerOrder(c)
	return ok
}

// NextUsable returns the smallest usable number of chunks that is at least c,
// and false when there is none.
func NextUsable(c int) (int, bool) {
	if c <= maxTable {
		return max(c, 1), true
	}
	if c > MaxChunks {
		return 0, false
	}
	for q := orderBelow(c); q*q+q+1 <= MaxChunks; q++ {
		if n := q*q + q + 1; n >= c && Usable(n) {
			return n, true
		}
	}
	return 0, false
}

// PrevUsable returns the largest usable number of chunks that is at most c, and
// false when there is none, that is for c < 1.
func PrevUsable(c int) (int, bool) {
	if c < 1 {
		return 0, false
	}
	c = min(c, MaxChunks)
	for q := orderBelow(c); q*q+q+1 > maxTable; q-- {
		if Usable(q*q + q + 1) {
			return q*q + q + 1, true
		}
	}
	return min(c, maxTable), true
}

// PerfectCounts returns, ascending, the numbers of chunks up to max for which
// [Cover] is perfect: 1, 3, 7, 13, 21, 31, 57, ... They are 1, 3, and q^2+q+1
// for the prime powers q.
func PerfectCounts(max int) []int {
	var counts []int
	for q := 0; q*q+q+1 <= min(max, MaxChunks); q++ {
		if _, _, ok := primePower(q); ok || q < 2 {
			counts = append(counts, q*q+q+1)
		}
	}
	return counts
}

// orderBelow returns the largest q >= 0 with q^2+q+1 <= c, for c in 1..MaxChunks.
func orderBelow(c int) int {
	q := 0
	for (q+1)*(q+1)+(q+1)+1 <= c {
		q++
	}
	return q
}

// singerOrder returns the prime power q with c = q^2+q+1, and false when there
// is none or c is out of range.
func singerOrder(c int) (q int, ok bool) {
	if c < 7 || c > MaxChunks {
		return 0, false
	}
	q = orderBelow(c)
	if q*q+q+1 != c {
		return 0, false
	}
	_, _, ok = primePower(q)
	return q, ok
}
