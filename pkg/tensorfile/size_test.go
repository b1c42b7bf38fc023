package tensorfile

import (
	"math"
	"testing"
)

func TestByteSize(t *testing.T) {
	for _, c := range []struct {
		shape []int
		bits  int64
		want  int64 // -1: not ok
	}{
		{nil, 16, 2},
		{[]int{0}, 4, 0},
		{[]int{3}, 4, -1},
		{[]int{4}, 6, 3},
		{[]int{-1}, 8, -1},
		{[]int{0, -1}, 8, -1},
		{[]int{math.MaxInt64}, 8, math.MaxInt64},
		{[]int{math.MaxInt64, 0}, 8, 0},
		{[]int{math.MaxInt64, 0}, 16, -1},
		{[]int{math.MaxInt64}, 16, -1},
		{[]int{1 << 62}, 16, -1},
		{[]int{1<<62 - 1}, 16, 1<<63 - 2},
		{[]int{1 << 62, 2}, 4, -1}, // 2^62 bytes, but more elements than can be counted
		{[]int{1 << 62, 4, 0}, 4, -1},
		{[]int{1 << 32, 1 << 32}, 8, -1},
		{[]int{1 << 32, 1 << 32, 0}, 8, -1},
		{[]int{1 << 40, 1 << 22}, 8, 1 << 62},
		{[]int{1 << 60}, 64, -1},
	} {
		got, ok := byteSize(c.shape, c.bits)
		if !ok {
			got = -1
		}
		if got != c.want {
			t.Errorf("%v of %d bits: got %d, want %d", c.shape, c.bits, got, c.want)
		}
	}
}

func TestDecimal(t *testing.T) {
	for text, want := range map[string]int64{
		"": -1, "x": -1, "1x": -1, "-1": -1, "0": 0, "007": 7,
		"9223372036854775807": math.MaxInt64, "9223372036854775808": -1, "9223372036854775810": -1,
		"18446744073709551617": -1, "99999999999999999999999": -1,
	} {
		if got := decimal([]byte(text)); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}
