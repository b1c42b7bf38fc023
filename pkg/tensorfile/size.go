package tensorfile

import (
	"fmt"
	"math"
	"math/bits"
)

// byteSize is the size in bytes of a C-order tensor whose elements have the
// given number of bits. It is not ok if an extent is negative, if the extents
// other than 0 multiply to more than 2^63-1 elements or bytes (a 0 among them
// doesn't excuse the rest: other programs multiply in another order), or if
// the elements don't fill their last byte.
func byteSize(shape []int, elemBits int64) (int64, bool) {
	n, empty := uint64(1), false
	for _, d := range shape {
		if d < 0 {
			return 0, false
		}
		if d == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, false
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, uint64(elemBits))
	if hi > 3 { // 2^66 bits
		return 0, false
	}
	if empty {
		return 0, true
	}
	return int64(hi<<61 | lo>>3), lo%8 == 0
}

// decimal parses digits, and nothing else; -1 when they are none or too many.
func decimal(digits []byte) int64 {
	if len(digits) == 0 {
		return -1
	}
	n := int64(0)
	for _, c := range digits {
		if c < '0' || c > '9' || n > (math.MaxInt64-int64(c-'0'))/10 {
			return -1
		}
		n = 10*n + int64(c-'0')
	}
	return n
}

// sizeError says that the data from offset to the end of the file have the
// wrong size. Trailing bytes are as bad as missing ones: something else was
// meant, and reading on would be a silent misreading.
func sizeError(offset, found, want int64) error {
	what := "data are cut off"
	if found > want {
		what = "bytes after the data"
	}
	return &FormatError{Offset: offset, What: what, Found: fmt.Sprintf("%d bytes", found), Want: fmt.Sprintf("%d", want)}
}
