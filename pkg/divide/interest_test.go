package divide

import (
	"slices"
	"strings"
	"testing"
)

// counts returns how often each residue mod c is a difference of two members.
func counts(c int, members []int) []int {
	n := make([]int, c)
	for _, a := range members {
		for _, b := range members {
			n[((a-b)%c+c)%c]++
		}
	}
	return n
}

// checkSet compares what a set says about itself with a plain count.
func checkSet(t *testing.T, set InterestSet) {
	t.Helper()
	members := set.Members()
	if len(members) != set.Size() || members[0] != 0 || !slices.IsSorted(members) {
		t.Fatalf("%v: members %v are not %d ascending from 0", set, members, set.Size())
	}
	perfect := true
	for r, n := range counts(set.Chunks(), members) {
		if n == 0 {
			t.Fatalf("%v misses %d", set, r)
		}
		perfect = perfect && (r == 0 || n == 1)
	}
	if set.Perfect() != perfect {
		t.Fatalf("%v: perfect is %v, expected %v", set, set.Perfect(), perfect)
	}
}

// TestRegisteredSets takes the nine perfect sets of the reference implementation
// of arXiv 2604.20819.
func TestRegisteredSets(t *testing.T) {
	for c, members := range map[int][]int{
		3:   {0, 1},
		7:   {0, 1, 3},
		13:  {0, 1, 3, 9},
		21:  {0, 1, 4, 14, 16},
		31:  {0, 1, 3, 8, 12, 18},
		57:  {0, 1, 3, 13, 32, 36, 43, 52},
		73:  {0, 1, 3, 7, 15, 31, 36, 54, 63},
		91:  {0, 20, 28, 37, 60, 70, 73, 84, 85, 89},
		133: {0, 1, 3, 12, 20, 34, 38, 81, 88, 94, 104, 109},
	} {
		set, err := NewInterestSet(c, members)
		if err != nil {
			t.Fatal(err)
		}
		checkSet(t, set)
		if !set.Perfect() {
			t.Errorf("%v: not perfect", set)
		}
	}
}

func TestNewInterestSetRejects(t *testing.T) {
	for _, test := range []struct {
		c       int
		members []int
		want    string
	}{
		{7, []int{0, 1, 2}, "interest set {0,1,2} mod 7: residue 3 is no difference"},
		{8, []int{0, 1, 3}, "residue 4 is no difference"},
		{8, []int{2, 3, 5}, "{2,3,5} mod 8: residue 4 is no difference"},
		{7, []int{0, 1, 7}, "member 7 is not in 0..6"},
		{7, []int{0, 1, 3, -1}, "member -1 is not in 0..6"},
		{7, []int{3, 0, 1, 3}, "member 3 occurs twice"},
		{7, nil, "no members"},
		{0, []int{0}, "number of chunks 0 is not in 1.."},
		{-7, []int{0}, "number of chunks -7"},
		{MaxChunks + 1, []int{0}, "number of chunks 16777217"},
		{MaxChunks, []int{0, 1, 3}, "residue 4 is no difference"},
		{2, []int{0}, "residue 1 is no difference"},
	} {
		set, err := NewInterestSet(test.c, test.members)
		if err == nil {
			t.Errorf("%v mod %d: accepted as %v", test.members, test.c, set)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v mod %d: error %q, expected %q", test.members, test.c, err, test.want)
		}
	}
}

func TestNewInterestSetNormalises(t *testing.T) {
	given := []int{6, 3, 4}
	set, err := NewInterestSet(7, given)
	if err != nil {
		t.Fatal(err)
	}
	if set.String() != "{0,1,3} mod 7" {
		t.Errorf("{6,3,4} mod 7 became %v", set)
	}
	if !slices.Equal(given, []int{6, 3, 4}) {
		t.Errorf("the argument became %v", given)
	}
	set.Members()[0] = 5
	if set.Members()[0] != 0 {
		t.Error("a change to Members reached the set")
	}
}

func TestStringShortens(t *testing.T) {
	set, err := Singer(127)
	if err != nil {
		t.Fatal(err)
	}
	if s := set.String(); !strings.HasSuffix(s, ",... 64 more} mod 16257") {
		t.Errorf("found %q", s)
	}
}

func FuzzNewInterestSet(f *testing.F) {
	f.Add(7, []byte{0, 1, 3})
	f.Add(7, []byte{0, 1, 2})
	f.Add(8, []byte{0, 1, 3})
	f.Add(6, []byte{5, 2, 4})
	f.Add(1, []byte{0})
	f.Add(5, []byte{255, 0, 1})
	f.Add(1<<62, []byte{0, 1, 3})
	f.Fuzz(func(t *testing.T, c int, data []byte) {
		members := make([]int, len(data))
		for i, b := range data {
			members[i] = int(int8(b))
		}
		set, err := NewInterestSet(c, members)
		if valid := covers(c, members); (err == nil) != valid {
			t.Fatalf("%v mod %d: error %v, expected a valid set: %v", members, c, err, valid)
		}
		if err == nil {
			checkSet(t, set)
			d, err := CQS(set, 1)
			if err != nil {
				t.Fatal(err)
			}
			checkPartition(t, d)
		}
	})
}

// covers decides by counting whether NewInterestSet should accept its arguments.
func covers(c int, members []int) bool {
	if c < 1 || c > 256 { // members are 0..127, so no difference is beyond 127 either way
		return false
	}
	seen := map[int]bool{}
	for _, m := range members {
		if m < 0 || m >= c || seen[m] {
			return false
		}
		seen[m] = true
	}
	return !slices.Contains(counts(c, members), 0)
}
