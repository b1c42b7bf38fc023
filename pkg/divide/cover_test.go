package divide

import (
	"slices"
	"strings"
	"testing"
)

// isPrimePower is the definition, slowly.
func isPrimePower(q int) bool {
	for p := 2; p <= q; p++ {
		if q%p == 0 {
			for q%p == 0 {
				q /= p
			}
			return q == 1
		}
	}
	return false
}

func TestSinger(t *testing.T) {
	orders := []int{256, 512, 997, 1009, 1024}
	for q := range 140 {
		orders = append(orders, q)
	}
	for _, q := range orders {
		set, err := Singer(q)
		if !isPrimePower(q) {
			if err == nil || !strings.Contains(err.Error(), "prime power") {
				t.Errorf("singer set of order %d: error %v, expected one about prime powers", q, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if set.Chunks() != q*q+q+1 || set.Size() != q+1 || !set.Perfect() {
			t.Fatalf("q=%d: %v has %d chunks, size %d", q, set, set.Chunks(), set.Size())
		}
		checkSet(t, set)
	}
}

func TestSingerRange(t *testing.T) {
	for _, q := range []int{-1 << 62, -7, 0, 1, 4096, 1 << 31, 3_037_000_500, 1 << 62} {
		if set, err := Singer(q); err == nil || !strings.Contains(err.Error(), "2 <= q and q^2+q+1 <= 16777216") {
			t.Errorf("q=%d: found %v, error %v, expected one about the range", q, set, err)
		}
	}
	if testing.Short() {
		return
	}
	set, err := Singer(4093) // the largest
	if err != nil {
		t.Fatal(err)
	}
	if !set.Perfect() || set.Chunks() != 4093*4094+1 {
		t.Errorf("q=4093: %v", set)
	}
}

// TestField checks the axioms that Singer rests on, for primes and powers.
func TestField(t *testing.T) {
	for _, q := range []int{2, 3, 4, 5, 8, 9, 16, 25, 27, 49} {
		f, ok := newField(q)
		if !ok {
			t.Fatalf("no field of order %d", q)
		}
		for a := range int32(q) {
			for b := range int32(q) {
				if f.add(a, b) != f.add(b, a) || f.mul(a, b) != f.mul(b, a) {
					t.Fatalf("GF(%d): %d and %d do not commute", q, a, b)
				}
				if a != 0 && b != 0 && f.mul(a, b) == 0 {
					t.Fatalf("GF(%d): %d*%d = 0", q, a, b)
				}
				for c := range int32(q) {
					if f.mul(a, f.add(b, c)) != f.add(f.mul(a, b), f.mul(a, c)) {
						t.Fatalf("GF(%d): %d*(%d+%d) does not distribute", q, a, b, c)
					}
					if f.add(a, f.add(b, c)) != f.add(f.add(a, b), c) {
						t.Fatalf("GF(%d): %d+%d+%d is not associative", q, a, b, c)
					}
				}
			}
		}
	}
}

// TestCover checks every c of the table and the constructed ones among them, and
// their sizes against the runs of equal size that the search proved to be
// smallest.
func TestCover(t *testing.T) {
	runs := []struct{ last, size int }{
		{1, 1}, {3, 2}, {7, 3}, {13, 4}, {19, 5}, {20, 6}, {21, 5}, {28, 6}, {30, 7}, {31, 6}, {37, 7}, {38, 8}, {39, 7},
		{51, 8}, {56, 9}, {57, 8}, {65, 9}, {72, 10}, {73, 9}, {79, 10}, {90, 11}, {91, 10}, {93, 11}, {94, 12}, {95, 11},
		{maxTable, 12},
	}
	for c, run := 1, 0; c <= maxTable; c++ {
		if c > runs[run].last {
			run++
		}
		set, err := Cover(c)
		if err != nil {
			t.Fatal(err)
		}
		checkSet(t, set)
		if set.Chunks() != c || set.Size() != runs[run].size {
			t.Errorf("c=%d: found %v with %d members, expected %d", c, set, set.Size(), runs[run].size)
		}
	}
}

// TestCoverStable holds the sets of some c fixed: a schedule that was begun with
// a set can only be finished with the same set.
func TestCoverStable(t *testing.T) {
	for c, want := range map[int]string{
		1:   "{0} mod 1",
		2:   "{0,1} mod 2",
		3:   "{0,1} mod 3",
		4:   "{0,1,2} mod 4",
		7:   "{0,1,3} mod 7",
		8:   "{0,1,2,4} mod 8",
		13:  "{0,1,3,9} mod 13",
		21:  "{0,1,4,14,16} mod 21",
		31:  "{0,1,3,8,12,18} mod 31",
		57:  "{0,1,3,13,32,36,43,52} mod 57",
		73:  "{0,1,3,7,15,31,36,54,63} mod 73",
		91:  "{0,1,3,9,27,49,56,61,77,81} mod 91",
		96:  "{0,1,2,6,12,15,22,24,40,48,65,67} mod 96",
		133: "{0,1,3,12,20,34,38,81,88,94,104,109} mod 133",
	} {
		set, err := Cover(c)
		if err != nil {
			t.Fatal(err)
		}
		if set.String() != want {
			t.Errorf("c=%d: found %v, expected %s", c, set, want)
		}
	}
}

func TestCoverUnusable(t *testing.T) {
	for c, want := range map[int]string{
		0:             "interest set of 0 chunks: expected at least 1",
		-1:            "expected at least 1",
		112:           "interest set of 112 chunks: none is known, the nearest usable numbers are 111 and 133",
		134:           "133 and 183",
		157:           "133 and 183", // 12^2+12+1, but 12 is no prime power
		1_000_000:     "995007 and 1019091",
		MaxChunks:     "expected at most 16756743",
		MaxChunks + 1: "expected at most 16756743",
		1 << 62:       "expected at most 16756743",
	} {
		if set, err := Cover(c); err == nil {
			t.Errorf("c=%d: found %v", c, set)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("c=%d: error %q, expected %q", c, err, want)
		}
	}
}

// TestUsable compares with a plain list of all usable numbers of chunks.
func TestUsable(t *testing.T) {
	const top = 20_000
	var usable, perfect []int
	for c := 1; c <= maxTable; c++ {
		usable = append(usable, c)
	}
	for q := 0; q*q+q+1 <= top; q++ {
		if q >= 2 && !isPrimePower(q) {
			continue
		}
		perfect = append(perfect, q*q+q+1)
		if q*q+q+1 > maxTable {
			usable = append(usable, q*q+q+1)
		}
	}
	for c := -2; c <= usable[len(usable)-1]; c++ {
		i, ok := slices.BinarySearch(usable, c)
		if Usable(c) != ok {
			t.Errorf("c=%d: usable is %v", c, !ok)
		}
		if next, ok := NextUsable(c); !ok || next != usable[i] {
			t.Errorf("c=%d: next usable is %d, %v, expected %d", c, next, ok, usable[i])
		}
		if !ok {
			i--
		}
		if prev, ok := PrevUsable(c); ok != (i >= 0) || ok && prev != usable[i] {
			t.Errorf("c=%d: previous usable is %d, %v", c, prev, ok)
		}
	}
	for _, max := range []int{-1, 0, 1, 2, 3, 6, 7, 8, 5000, top} {
		i, ok := slices.BinarySearch(perfect, max)
		if ok {
			i++
		}
		if got := PerfectCounts(max); !slices.Equal(got, perfect[:i]) {
			t.Errorf("perfect counts up to %d: %v, expected %v", max, got, perfect[:i])
		}
	}
	if all := PerfectCounts(1 << 62); all[len(all)-1] != 16_756_743 {
		t.Errorf("the largest perfect count is %d", all[len(all)-1])
	}
}
