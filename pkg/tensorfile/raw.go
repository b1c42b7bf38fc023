package tensorfile

import (
	"fmt"
	"slices"
)

// rawInfo is what the user says about a raw file of size bytes, checked
// against the size: it must fit exactly, because nothing else about a raw file
// can show that the shape, the type or the offset was wrong.
func rawInfo(spec Spec, size int64) (*Info, error) {
	if spec.Shape == nil || spec.DType == 0 {
		return nil, &FormatError{Offset: -1, What: "a raw file does not say its shape and element type: state both"}
	}
	if len(spec.Shape) > maxRank {
		return nil, &FormatError{Offset: -1, What: fmt.Sprintf("shape has %d extents", len(spec.Shape)), Want: fmt.Sprintf("at most %d", maxRank)}
	}
	want, ok := byteSize(spec.Shape, 8*int64(spec.DType.Size()))
	if !ok {
		return nil, &FormatError{Offset: -1, What: fmt.Sprintf("shape %v of %v is not a size from 0 to 2^63-1 bytes", spec.Shape, spec.DType)}
	}
	if spec.Offset < 0 || spec.Offset > size {
		return nil, &FormatError{Offset: -1, What: "offset of a raw file", Found: fmt.Sprint(spec.Offset), Want: fmt.Sprintf("0 to %d, its size", size)}
	}
	if size-spec.Offset != want {
		return nil, sizeError(spec.Offset, size-spec.Offset, want)
	}
	return &Info{Format: Raw, Size: size, Tensors: []TensorInfo{{
		Stored: spec.DType.String(), DType: spec.DType, Shape: slices.Clone(spec.Shape),
		Offset: spec.Offset, Bytes: want, Order: "C",
	}}}, nil
}
