package tensorfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// npyFile is a file of the given version, with text as its header.
func npyFile(version byte, text string, data int) []byte {
	b := append([]byte(npyMagic), version, 0)
	if version == 1 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(text)))
	} else {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	}
	b = append(b, text...)
	return append(b, make([]byte, data)...)
}

// npyDict is a header of version 1 for 24 bytes of data.
func npyDict(descr, order, shape string) []byte {
	return npyFile(1, "{'descr': "+descr+", 'fortran_order': "+order+", 'shape': "+shape+", }\n", 24)
}

func TestNpyForms(t *testing.T) {
	for _, c := range []struct {
		name  string
		file  []byte
		shape []int
		dtype attention.DType
	}{
		{"as NumPy writes", npyDict("'<f4'", "False", "(2, 3)"), []int{2, 3}, attention.F32},
		{"half", npyDict("'<f2'", "False", "(3, 4)"), []int{3, 4}, attention.F16},
		{"native order", npyDict("'=f4'", "False", "(6,)"), []int{6}, attention.F32},
		{"no order", npyDict("'|f4'", "False", "(6,)"), []int{6}, attention.F32},
		{"order left out", npyDict("'f4'", "False", "(6,)"), []int{6}, attention.F32},
		{"trailing comma in the shape", npyDict("'<f4'", "False", "(2, 3,)"), []int{2, 3}, attention.F32},
		{"tight", npyFile(1, "{'descr':'<f4','fortran_order':False,'shape':(2,3)}", 24), []int{2, 3}, attention.F32},
		{"wide", npyFile(1, " \t{ 'descr' : '<f4' ,\n'fortran_order' : False , 'shape' : ( 2 , 3 ) }  \n\n", 24), []int{2, 3}, attention.F32},
		{"other order of keys, double quotes", npyFile(1, `{"shape": (2, 3), "fortran_order": False, "descr": "<f4"}`, 24), []int{2, 3}, attention.F32},
		{"Python 2's long integers", npyDict("'<f4'", "False", "(2L, 3L)"), []int{2, 3}, attention.F32},
		{"scalar", npyFile(1, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}", 4), []int{}, attention.F32},
		{"empty", npyFile(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 7)}", 0), []int{0, 7}, attention.F32},
		{"version 2", npyFile(2, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24), []int{2, 3}, attention.F32},
		{"version 3", npyFile(3, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24), []int{2, 3}, attention.F32},
		{"64 extents", npyDict("'<f4'", "False", "("+strings.Repeat("1, ", 63)+"6)"), append(slices.Repeat([]int{1}, 63), 6), attention.F32},
	} {
		info, err := parseNpy(c.file, int64(len(c.file)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := info.Tensors[0]
		if !reflect.DeepEqual(got.Shape, c.shape) || got.DType != c.dtype || got.Problem != "" || got.Offset+got.Bytes != int64(len(c.file)) {
			t.Errorf("%s: got %+v, want shape %v of %v", c.name, got, c.shape, c.dtype)
		}
	}
}

func TestNpyBad(t *testing.T) {
	huge := npyFile(2, "", 0)
	binary.LittleEndian.PutUint32(huge[8:], 0xfffffff0)
	long := npyFile(1, "{", 0)
	binary.LittleEndian.PutUint16(long[8:], 9999)
	for _, c := range []struct {
		file []byte
		want string
	}{
		{nil, "npy header is cut off: found 0 bytes, want at least 10"},
		{[]byte("\x93NUMPY\x02\x00\x00\x00"), "npy header is cut off: found 10 bytes, want at least 12"},
		{[]byte("PK\x03\x04 a zip archive"), `offset 0: not an npy file: found "PK\x03\x04 a", want "\x93NUMPY"`},
		{npyFile(4, "", 0), "offset 6: npy version: found 4.0, want 1.0, 2.0 or 3.0"},
		{npyFile(0, "", 0), "offset 6: npy version: found 0.0, want 1.0, 2.0 or 3.0"},
		{huge, "offset 8: npy header length: found 4294967280, want at most 1048576"},
		{long, "offset 8: npy header is longer than the file: found a header of 9999 bytes at 10, want at most 1"},
		{npyFile(1, "", 0), `offset 10: npy header: not a dictionary: found the end of the header, want "{"`},
		{npyFile(1, "junk{'descr'", 0), `offset 10: npy header: not a dictionary: found "junk{'descr'", want "{"`},
		{npyFile(1, "{'descr': '<f4', 'shape': (2, 3)}", 24), `offset 43: npy header: key "fortran_order" is missing: found the end of the header`},
		{npyFile(1, "{'descr': '<f4', 'descr': '<f2'}", 24), `offset 27: npy header: key "descr" appears twice: found "'descr': '<f2'}"`},
		{npyFile(1, "{'descr': '<f4', 'strides': (2,)}", 24), `offset 27: npy header: key: found "'strides': (2,)}", want 'descr', 'fortran_order' or 'shape'`},
		{npyFile(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} + 1", 24), `offset 68: npy header: text after the dictionary: found "+ 1"`},
		{npyFile(1, "{'descr': '<f4' 'fortran_order': False", 24), `offset 26: npy header: dictionary: found "'fortran_order':", want "," or "}"`},
		{npyFile(1, `{'descr\x27: 1`, 24), `offset 17: npy header: string: found "\\x27: 1", want no escapes and no line breaks`},
		{npyFile(1, `{'descr`, 24), `offset 11: npy header: string does not end: found "'descr"`},
		{npyFile(1, `{descr: 1}`, 24), `offset 11: npy header: string: found "descr: 1}", want a quote`},
		{npyFile(1, `{'descr' '<f4'}`, 24), `offset 19: npy header: dictionary: found "'<f4'}", want ":"`},
		{npyFile(1, "{'descr': [('a', '<f4')", 24), `offset 20: npy header: descr: found "[('a', '<f4')", want a string or a list of fields`},
		{npyFile(1, "{'descr': None}", 24), `offset 20: npy header: descr: found "None}", want a string or a list of fields`},
		{npyDict("'<f4'", "0", "(2, 3)"), `offset 44: npy header: fortran_order: found "0, 'shape': (2, ", want True or False`},
		{npyDict("'<f4'", "False", "[2, 3]"), `offset 60: npy header: shape is not a tuple: found "[2, 3], }\n", want "("`},
		{npyDict("'<f4'", "False", "(6)"), `offset 60: npy header: shape is not a tuple: found "(6), }\n", want "," after its only extent`},
		{npyDict("'<f4'", "False", "(2, -3)"), `offset 64: npy header: negative extent: found "-3), }\n"`},
		{npyDict("'<f4'", "False", "(2 3)"), `offset 63: npy header: shape: found "3), }\n", want "," or ")"`},
		{npyDict("'<f4'", "False", "(,)"), `offset 61: npy header: extent: found ",), }\n", want a decimal number`},
		{npyDict("'<f4'", "False", "(2, 3.0)"), `offset 65: npy header: shape: found ".0), }\n", want "," or ")"`},
		{npyDict("'<f4'", "False", "(2, nan)"), `offset 64: npy header: extent: found "nan), }\n", want a decimal number`},
		{npyDict("'<f4'", "False", "(2, 03)"), `offset 64: npy header: extent: found "03), }\n", want a decimal number`},
		{npyDict("'<f4'", "False", "(9223372036854775808,)"), `offset 61: npy header: extent is larger than 2^63-1: found "9223372036854775"`},
		{npyFile(3, "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,), }", 24), `offset 64: npy header: shape: found "L,), }", want "," or ")"`},
		{npyDict("'<f4'", "False", "("+strings.Repeat("1, ", 65)+")"), `offset 253: npy header: shape has more than 64 extents: found "1, ), }\n"`},
		{npyDict("'<f4'", "False", "(4294967296, 4294967296)"), `offset 88: shape [4294967296 4294967296] of <f4 elements is larger than 2^63 bytes`},
		{npyDict("'<f4'", "False", "(0, 4294967296, 4294967296)"), `offset 91: shape [0 4294967296 4294967296] of <f4 elements is larger than 2^63 bytes`},
		{npyDict("'<f4'", "False", "(2305843009213693952,)"), `offset 86: shape [2305843009213693952] of <f4 elements is larger than 2^63 bytes`},
		{npyDict("'<f4'", "False", "(2, 4)"), "offset 70: data are cut off: found 24 bytes, want 32"},
		{npyDict("'<f4'", "False", "(1, 3)"), "offset 70: bytes after the data: found 24 bytes, want 12"},
		{npyDict("'<V2'", "False", "(2, 3)"), "offset 70: bytes after the data: found 24 bytes, want 12"},
	} {
		_, err := parseNpy(c.file, int64(len(c.file)))
		checkFormatError(t, err, c.want)
	}
}

// checkFormatError wants ErrFormat and the text, in which the path is missing.
func checkFormatError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted, want %q", want)
		return
	}
	if got := strings.TrimLeft(err.Error(), ": "); got != want || !errors.Is(err, ErrFormat) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What is well formed but can't be read says what to do.
func TestNpyUnsupported(t *testing.T) {
	const bf16 = ` may hold bfloat16, for which npy has no name of its own: state the element type bf16 if it does`
	const other = ` is not supported: want <f4, <f2, or <V2 for bfloat16; convert with np.save(path, a.astype(np.float32))`
	for _, c := range []struct {
		descr, order, problem string
	}{
		{"'<V2'", "False", `element type "<V2"` + bf16},
		{"'|V2'", "False", `element type "|V2"` + bf16},
		{"'<u2'", "False", `element type "<u2"` + bf16},
		{"'<i2'", "False", `element type "<i2"` + bf16},
		{"'>u2'", "False", `element type ">u2"` + other},
		{"'>f4'", "False", "big-endian elements (>f4) are not supported: convert with np.save(path, a.astype('<f4'))"},
		{"'<f4'", "True", "fortran order is not supported: convert with np.save(path, np.ascontiguousarray(a))"},
		{"'<f8'", "False", `element type "<f8"` + other},
		{"'<i8'", "False", `element type "<i8"` + other},
		{"'<f1'", "False", `element type "<f1"` + other},
		{"'<M8[ns]'", "False", `element type "<M8[ns]" is not supported: want <f4, <f2, or <V2 for bfloat16`},
		{"''", "False", `element type "" is not supported: want <f4, <f2, or <V2 for bfloat16`},
		{"'|O'", "False", "the elements are pickled Python objects, which are never loaded: save a numeric array, np.save(path, a.astype(np.float32))"},
		{"[('a', '<f4'), ('b)]', '<i2', (2,))]", "False", "structured elements are not supported: save one field, np.save(path, np.ascontiguousarray(a['field']))"},
		{"('<f4', (2,))", "False", "structured elements are not supported: save one field, np.save(path, np.ascontiguousarray(a['field']))"},
	} {
		file := npyDict(c.descr, c.order, "(2, 3)")
		if h, err := (&pyParser{b: file[10 : len(file)-24]}).header(); err == nil {
			if item, ok := npyItemSize(h); ok { // give the file the right size
				file = append(file[:len(file)-24], make([]byte, 6*item)...)
			}
		}
		info, err := parseNpy(file, int64(len(file)))
		if err != nil {
			t.Errorf("%s: %v", c.descr, err)
			continue
		}
		if got := info.Tensors[0]; got.Problem != c.problem || got.DType != 0 {
			t.Errorf("%s: got %v, %s\nwant %s", c.descr, got.DType, got.Problem, c.problem)
		}
	}
}

// Our header of what NumPy wrote is NumPy's, byte by byte.
func TestNpyGoldenHeaders(t *testing.T) {
	for _, name := range []string{"f32", "f16", "bf16", "scalar", "vector", "empty", "pad1", "pad64"} {
		file := golden(t, name+".npy")
		info, err := parseNpy(file, int64(len(file)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := encodeNpy(info.Tensors[0].Stored, info.Tensors[0].Shape)
		if want := file[:info.HeaderBytes]; !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, want)
		}
	}
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A header costs what is there, not what it declares, and it is refused at the
// first thing that is wrong.
func TestHostileHeadersAllocateLittle(t *testing.T) {
	st := func(text string) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...)
	}
	declared := func(n uint64) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, n), "{}"...)
	}
	npyHuge := npyFile(2, "{", 0)
	binary.LittleEndian.PutUint32(npyHuge[8:], 1<<32-1)
	tensor := func(shape string) []byte {
		return st(`{"a":{"dtype":"F32","shape":[` + shape + `],"data_offsets":[0,0]}}`)
	}
	const many = 1 << 20
	for _, c := range []struct {
		name  string
		parse func([]byte, int64) (*Info, error)
		file  []byte
	}{
		{"npy of 4 GiB", parseNpy, npyHuge},
		{"npy of many extents", parseNpy, npyFile(2, "{'shape': ("+strings.Repeat("1,", 500_000)+")}", 0)},
		{"npy of many brackets", parseNpy, npyFile(2, "{'descr': "+strings.Repeat("[", 1_000_000), 0)},
		{"npy of a long string", parseNpy, npyFile(2, "{'"+strings.Repeat("a", 1_000_000), 0)},
		{"safetensors of 2^63", parseSafetensors, declared(1 << 63)},
		{"safetensors of 2^64-1", parseSafetensors, declared(1<<64 - 1)},
		{"safetensors of the limit", parseSafetensors, declared(safetensorsMaxHeader)},
		{"safetensors of many extents", parseSafetensors, tensor(strings.Repeat("1,", many) + "1")},
		{"safetensors of nested lists", parseSafetensors, tensor(strings.Repeat("[", many))},
		{"safetensors of nested objects", parseSafetensors, st(strings.Repeat(`{"a":`, many))},
		{"safetensors of nested metadata", parseSafetensors, st(`{"__metadata__":` + strings.Repeat(`{"a":`, many))},
		{"safetensors of NaN", parseSafetensors, tensor("NaN")},
		{"safetensors of nothing", parseSafetensors, make([]byte, 8+many)},
	} {
		var err error
		got := allocated(func() { _, err = c.parse(c.file, int64(len(c.file))) })
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want a format error", c.name, err)
		}
		if got > 1<<16 {
			t.Errorf("%s: %d bytes allocated", c.name, got)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("%s: an error of %d bytes", c.name, len(err.Error()))
		}
	}
}

func FuzzNpyHeader(f *testing.F) {
	for _, name := range []string{"f32", "f16", "bf16", "scalar", "vector", "empty", "v2", "v3", "big_endian", "fortran", "structured", "object", "pad64"} {
		b := golden(f, name+".npy")
		f.Add(b, int64(len(b)))
	}
	f.Add(npyDict("'<f4'", "False", "(2L, 3L)"), int64(94))
	f.Add(npyDict("'<f4'", "False", "(1073741824, 3)"), int64(1<<33))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		if size < 0 {
			return
		}
		info, err := parseNpy(data, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		checkRanges(t, info, size)
		ti := info.Tensors[0]
		if ti.DType == 0 {
			return
		}
		// What is accepted survives being written and read again.
		again := encodeNpy(npyDescr(ti.DType), ti.Shape)
		got, err := parseNpy(again, int64(len(again))+ti.Bytes)
		if err != nil {
			t.Fatalf("%v: written again: %v", ti, err)
		}
		if g := got.Tensors[0]; !slices.Equal(g.Shape, ti.Shape) || g.DType != ti.DType || g.Bytes != ti.Bytes {
			t.Fatalf("written again: got %v, want %v", g, ti)
		}
	})
}

// checkRanges: the elements of each tensor lie in the file and behind the
// header, and a type that can be read fits them.
func checkRanges(t *testing.T, info *Info, size int64) {
	t.Helper()
	for _, ti := range info.Tensors {
		if ti.Offset < info.HeaderBytes || ti.Bytes < 0 || ti.Offset > size-ti.Bytes {
			t.Fatalf("%q: bytes %d at %d of a file of %d with a header of %d", ti.Key, ti.Bytes, ti.Offset, size, info.HeaderBytes)
		}
		if len(ti.Shape) > maxRank {
			t.Fatalf("%q: %d extents", ti.Key, len(ti.Shape))
		}
		if ti.DType == 0 {
			continue
		}
		n := int64(ti.DType.Size())
		for _, d := range ti.Shape {
			n *= int64(d)
		}
		if n != ti.Bytes {
			t.Fatalf("%q: shape %v of %v in %d bytes", ti.Key, ti.Shape, ti.DType, ti.Bytes)
		}
	}
}
