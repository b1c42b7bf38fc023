package attention

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"
	"testing/iotest"
)

// source reports io.EOF along with the last bytes, as io.ReaderAt allows.
type source []byte

func (s source) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(b, s[at:])
	if int(at)+n == len(s) {
		return n, io.EOF
	}
	return n, nil
}

func TestRowsCopyTo(t *testing.T) {
	memory, file := []byte("abcdefghijkl"), source("ABCDEFGHIJKL")
	for _, x := range []struct {
		rows Rows
		want string
	}{
		{Rows{Data: memory, Stride: 4, N: 3, Width: 2, DType: F16}, "abcdefghijkl"},
		{Rows{Data: memory, Stride: 4, N: 3, Width: 2, DType: F16, File: file}, "ABCDEFGHIJKL"},
		{Rows{Data: memory, Stride: 4, N: 3, Width: 2, DType: F16, File: file}.Slice(1, 3), "EFGHIJKL"},
		{Rows{Data: memory, Stride: 4, N: 3, Width: 1, DType: F16, File: file}, "abefij"},
		{Rows{Data: memory, Stride: 4, N: 3, Width: 1, DType: F16, File: file}.Slice(2, 3), "IJ"}, // one row is contiguous
	} {
		got := make([]byte, x.rows.N*x.rows.RowBytes())
		if err := x.rows.CopyTo(got); err != nil || string(got) != x.want {
			t.Errorf("%q, %v, want %q", got, err, x.want)
		}
	}
}

func TestReadFull(t *testing.T) {
	b := make([]byte, 8)
	for _, at := range []int64{5, 12, 100} {
		if err := ReadFull(source("abcdefghijkl"), b, at); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("8 bytes of 12 from %d: %v", at, err)
		}
	}
	if err := ReadFull(source("abcdefghijkl"), b, 4); err != nil || !bytes.Equal(b, []byte("efghijkl")) {
		t.Errorf("the last 8 bytes: %q, %v", b, err)
	}
	if err := ReadFull(broken{}, b, 0); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a failed read: %v", err)
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, iotest.ErrTimeout }

func TestProductDoesNotWrapAround(t *testing.T) {
	for _, x := range []struct {
		factors []int
		want    int64
	}{
		{nil, 1}, {[]int{3, 5, 7}, 105}, {[]int{1 << 20, 0}, 0}, {[]int{1 << 29, 1<<29 - 1}, 1<<58 - 1<<29},
		{[]int{1 << 30, 1 << 30}, 1 << 58}, {[]int{1 << 32, 1 << 32}, 1 << 58}, {[]int{math.MaxInt, math.MaxInt, math.MaxInt}, 1 << 58},
	} {
		if got := Product(x.factors...); got != x.want {
			t.Errorf("%v: %d, want %d", x.factors, got, x.want)
		}
	}
}
