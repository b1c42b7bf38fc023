//go:build cuda

package gpu

import (
	"fmt"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// maxFeatures is the largest D and Dv that kernels take.
const maxFeatures = 256

// shape is what a kernel is for: D, and Dv, up to these. Smaller ones are padded with
// zeros.
type shape struct{ d, dv int }

var shapes = []shape{{64, 64}, {128, 128}, {192, 128}, {maxFeatures, maxFeatures}}

// mode is how a kernel computes; docs/gpu.md has what each is good for.
type mode string

const (
	half   mode = "half"   // bfloat16 results, or fast ones of 16-bit inputs
	split  mode = "split"  // float32 or float16 results of 16-bit inputs: weights in two planes
	triple mode = "triple" // float32 inputs: everything in two planes
)

// modes lists them all.
var modes = []mode{half, split, triple}

// modeOf is the cheapest mode whose error stays below the rounding of the output,
// or below what Fast allows.
func modeOf(g attention.Geometry) mode {
	switch {
	case g.DType == attention.F32:
		return triple
	case g.Fast, g.OutDType == attention.BF16:
		return half
	}
	return split
}

// shapeOf is the shape of the kernel for a geometry, and false if there is none.
func shapeOf(g attention.Geometry) (shape, bool) {
	for _, s := range shapes {
		if g.D <= s.d && g.Dv <= s.dv {
			return s, true
		}
	}
	return shape{}, false
}

// kernelName is the name of the attention kernel of a mode and shape.
func kernelName(m mode, s shape) string { return fmt.Sprintf("attend_%s_%d", m, s.d) }

// kernelInfo is struct KernelInfo of cuda/layout.cuh: what the host must know of an
// attention kernel. It is read from the compiled code, beside the kernel.
type kernelInfo struct {
	Rows     int32   // of a tile of Q
	Keys     int32   // of a tile of K and V
	Features int32   // of Q and K, padded
	Columns  int32   // of V, padded
	Planes   int32   // of Q, K and V: 2 are hi + lo
	Two      int32   // whether sums have a low half
	Threads  int32   // of a block
	Shared   int32   // dynamic shared memory of a block, bytes
	Offset   float32 // exponent of two that weights carry
}

// check refuses numbers that the host's arithmetic was not made for.
func (k kernelInfo) check(name string, s shape) error {
	ok := k.Rows > 0 && k.Rows%8 == 0 && k.Keys > 0 && k.Keys%8 == 0 && int(k.Features) == s.d &&
		int(k.Columns) == s.dv && (k.Planes == 1 || k.Planes == 2) &&
		(k.Two == 0 || k.Two == 1) && k.Threads > 0 && k.Shared > 0 && k.Offset >= 0 && k.Offset == float32(int32(k.Offset))
	if !ok {
		return fmt.Errorf("kernel %s describes itself as %+v, which the device can't be", name, k)
	}
	return nil
}

// leastColumn is how small the largest element of a column of V may be beside that of its
// tile: planes are off by some 2^-40 of the latter, which must be less than what the
// output is off by anyway.
func leastColumn(g attention.Geometry) float32 {
	switch {
	case g.OutDType == attention.BF16:
		return 0x1p-30
	case g.Fast || g.OutDType == attention.F16:
		return 0x1p-26
	}
	return 0x1p-20
}

// steepFor bounds |q||k|, in units of log2, up to which float32 scores do; beyond it
// the wide kernel computes in float64. The error of a float32 score is about 2^-26 of
// it, and becomes a relative error of its weight.
func steepFor(g attention.Geometry) float32 {
	switch {
	case g.Fast || g.OutDType == attention.BF16:
		return 4096
	case g.OutDType == attention.F16:
		return 512
	}
	return 96
}
