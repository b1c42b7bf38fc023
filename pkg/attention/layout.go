package attention

import "fmt"

// Layout names the axes of a tensor in storage order: b batch, h heads, n
// tokens, d the features of a head.
type Layout uint8

const (
	BHND Layout = iota + 1 // rank 4, PyTorch's scaled_dot_product_attention
	BNHD                   // rank 4, flash-attention
	HND                    // rank 3, one sequence
	NHD                    // rank 3, one sequence
	ND                     // rank 2, one head
)

var layoutNames = [...]string{BHND: "bhnd", BNHD: "bnhd", HND: "hnd", NHD: "nhd", ND: "nd"}

// ParseLayout accepts bhnd, bnhd, hnd, nhd and nd.
func ParseLayout(s string) (Layout, error) {
	for l := BHND; l <= ND; l++ {
		if layoutNames[l] == s {
			return l, nil
		}
	}
	return 0, fmt.Errorf("layout %q: want bhnd, bnhd, hnd, nhd or nd", s)
}

func (l Layout) String() string {
	if l >= BHND && l <= ND {
		return layoutNames[l]
	}
	return fmt.Sprintf("Layout(%d)", uint8(l))
}

// Rank is the number of axes.
func (l Layout) Rank() int { return len(layoutNames[l]) }

// Shape returns the extents in storage order; axes that the layout lacks are
// dropped, and must be 1.
func (l Layout) Shape(b, h, n, d int) []int {
	switch l {
	case BHND:
		return []int{b, h, n, d}
	case BNHD:
		return []int{b, n, h, d}
	case HND:
		return []int{h, n, d}
	case NHD:
		return []int{n, h, d}
	}
	return []int{n, d}
}

// Extents is the inverse of Shape. The length of shape must be l.Rank().
func (l Layout) Extents(shape []int) (b, h, n, d int) {
	switch l {
	case BHND:
		return shape[0], shape[1], shape[2], shape[3]
	case BNHD:
		return shape[0], shape[2], shape[1], shape[3]
	case HND:
		return 1, shape[0], shape[1], shape[2]
	case NHD:
		return 1, shape[1], shape[0], shape[2]
	}
	return 1, 1, shape[0], shape[1]
}

// RowStride is the distance in elements between consecutive tokens of one
// head, and Offset the element at which row n of head h in batch entry b
// starts, in a tensor of extents (B, H, N, D).
func (l Layout) RowStride(h, d int) int {
	if l == BNHD || l == NHD {
		return h * d
	}
	return d
}

// Offset: see RowStride.
func (l Layout) Offset(b, h, n, H, N, D int) int {
	if l == BNHD || l == NHD {
		return ((b*N+n)*H + h) * D
	}
	return ((b*H+h)*N + n) * D
}
