package tensorfile

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// The cases of raw files are in TestOpenRefuses; this is the arithmetic.
func FuzzRawSpec(f *testing.F) {
	f.Add([]byte{6}, uint8(1), int64(0), int64(24))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<61), uint8(1), int64(0), int64(0))
	f.Add(binary.LittleEndian.AppendUint64([]byte{2, 0, 0, 0, 0, 0, 0, 0}, 1<<63), uint8(2), int64(7), int64(7))
	f.Fuzz(func(t *testing.T, shape []byte, dtype uint8, offset, size int64) {
		if size < 0 || len(shape) > 1000 {
			return
		}
		spec := Spec{DType: attention.DType(1 + dtype%3), Offset: offset, Shape: []int{}}
		for len(shape) > 0 {
			var extent [8]byte
			shape = shape[copy(extent[:], shape):]
			spec.Shape = append(spec.Shape, int(binary.LittleEndian.Uint64(extent[:])))
		}
		info, err := rawInfo(spec, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		checkRanges(t, info, size)
		if ti := info.Tensors[0]; ti.Offset != offset || ti.Offset+ti.Bytes != size {
			t.Fatalf("%+v of a file of %d", ti, size)
		}
	})
}
