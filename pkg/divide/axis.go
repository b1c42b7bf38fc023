package divide

import "fmt"

// Axis cuts N tokens into Chunks contiguous chunks as evenly as possible: the
// first N mod Chunks of them are one token longer. Chunks are empty when N is
// smaller than their number. N >= 0 and Chunks >= 1, see [Axis.Validate].
type Axis struct{ N, Chunks int }

// Validate returns an error when the axis is out of its domain. The other
// methods may panic or be wrong for such an axis.
func (a Axis) Validate() error {
	if a.N < 0 || a.Chunks < 1 {
		return fmt.Errorf("cut %d tokens into %d chunks: expected at least 0 tokens and 1 chunk", a.N, a.Chunks)
	}
	return nil
}

// Range returns the tokens lo <= token < hi of chunk i. It panics when i is not
// in 0..Chunks-1.
func (a Axis) Range(i int) (lo, hi int) {
	if i < 0 || i >= a.Chunks {
		panic(fmt.Sprintf("divide: chunk %d is not in 0..%d", i, a.Chunks-1))
	}
	size, longer := a.N/a.Chunks, a.N%a.Chunks
	lo = i*size + min(i, longer)
	hi = lo + size
	if i < longer {
		hi++
	}
	return lo, hi
}

// Len returns the number of tokens of chunk i. It panics when i is not in
// 0..Chunks-1.
func (a Axis) Len(i int) int {
	lo, hi := a.Range(i)
	return hi - lo
}

// Longest returns the number of tokens of the longest chunk, which is chunk 0.
func (a Axis) Longest() int { return a.Len(0) }

// Find returns the chunk that holds the token. It panics when the token is not
// in 0..N-1.
func (a Axis) Find(token int) int {
	if token < 0 || token >= a.N {
		panic(fmt.Sprintf("divide: token %d is not in 0..%d", token, a.N-1))
	}
	size, longer := a.N/a.Chunks, a.N%a.Chunks
	if split := longer * (size + 1); token >= split {
		return longer + (token-split)/size
	}
	return token / (size + 1)
}
