package tensorfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

func goldenPath(name string) string { return filepath.Join("../../testdata", name) }

// mustOpen closes the tensor at the end of the test.
func mustOpen(t *testing.T, spec Spec) *Tensor {
	t.Helper()
	x, err := Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// write makes a file in a new directory.
func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// The golden files hold (i - 5) / 4 in element i, written by the reference
// implementations.
func TestOpenGolden(t *testing.T) {
	for _, c := range []struct {
		name, key string
		stated    attention.DType
		dtype     attention.DType
		shape     []int
	}{
		{name: "f32.npy", dtype: attention.F32, shape: []int{2, 3}},
		{name: "f32.npy", stated: attention.F32, dtype: attention.F32, shape: []int{2, 3}},
		{name: "f16.npy", dtype: attention.F16, shape: []int{1, 2, 3, 4}},
		{name: "bf16.npy", stated: attention.BF16, dtype: attention.BF16, shape: []int{3, 4}},
		{name: "bf16_as_u2.npy", stated: attention.BF16, dtype: attention.BF16, shape: []int{3, 4}},
		{name: "scalar.npy", dtype: attention.F32, shape: []int{}},
		{name: "vector.npy", dtype: attention.F32, shape: []int{5}},
		{name: "empty.npy", dtype: attention.F32, shape: []int{0, 3}},
		{name: "v2.npy", dtype: attention.F32, shape: []int{2, 3}},
		{name: "v3.npy", dtype: attention.F32, shape: []int{2, 3}},
		{name: "qkv.safetensors", key: "q", dtype: attention.BF16, shape: []int{2, 3}},
		{name: "qkv.safetensors", key: "k", stated: attention.F16, dtype: attention.F16, shape: []int{2, 3}},
		{name: "qkv.safetensors", key: "v.é\"😀\n", dtype: attention.F32, shape: []int{2, 3}},
		{name: "qkv.safetensors", key: "none", dtype: attention.F32, shape: []int{0, 4}},
		{name: "o_lse.safetensors", key: "o", dtype: attention.BF16, shape: []int{3, 4}},
		{name: "one.safetensors", dtype: attention.F32, shape: []int{2, 2}},
		{name: "f64.safetensors", key: "y", dtype: attention.F32, shape: []int{4}},
	} {
		x := mustOpen(t, Spec{Path: goldenPath(c.name), Key: c.key, DType: c.stated})
		if x.DType() != c.dtype || !slices.Equal(x.Shape(), c.shape) || x.Format() != FormatOf(c.name) {
			t.Errorf("%s:%s: got %v %v %v", c.name, c.key, x.Format(), x.DType(), x.Shape())
		}
		checkRamp(t, x)
	}
	x := mustOpen(t, Spec{Path: goldenPath("bf16_at7.bin"), DType: attention.BF16, Shape: []int{3, 4}, Offset: 7})
	checkRamp(t, x)
	x = mustOpen(t, Spec{Path: goldenPath("qkv.safetensors"), Key: "q"})
	if want := map[string]string{"note": `a "quoted" é <&>`}; !reflect.DeepEqual(x.Metadata(), want) {
		t.Errorf("metadata: got %q, want %q", x.Metadata(), want)
	}
}

func checkRamp(t *testing.T, x *Tensor) {
	t.Helper()
	n := 1
	for _, d := range x.Shape() {
		n *= d
	}
	if len(x.Bytes()) != n*x.DType().Size() {
		t.Fatalf("%s:%s: %d bytes for %d elements", x.Path(), x.Key(), len(x.Bytes()), n)
	}
	want := make([]byte, len(x.Bytes()))
	ramp(x.DType(), want)
	if !bytes.Equal(x.Bytes(), want) {
		t.Errorf("%s:%s: elements are not (i-5)/4: got % x, want % x", x.Path(), x.Key(), x.Bytes()[:min(len(want), 64)], want[:min(len(want), 64)])
	}
	if n > 0 && &x.Map()[x.Offset()] != &x.Bytes()[0] {
		t.Errorf("%s:%s: Bytes does not start at Offset of Map", x.Path(), x.Key())
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	var many strings.Builder
	for i := range 25 {
		fmt.Fprintf(&many, `"t%02d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},`, i)
	}
	files := map[string][]byte{
		"empty.npy":         nil,
		"empty.safetensors": nil,
		"cut.npy":           golden(t, "f32.npy")[:151],
		"none.safetensors":  stFile("{}", 0),
		"many.safetensors":  stFile("{"+strings.TrimSuffix(many.String(), ",")+"}", 0),
		"24.bin":            make([]byte, 24),
		"is_npy.bin":        golden(t, "f32.npy"),
		"archive.npz":       []byte("PK\x03\x04..."),
		"UPPER.NPY":         golden(t, "f32.npy"),
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	f32, bf16 := attention.F32, attention.BF16
	for _, c := range []struct {
		spec Spec // a bare name is in dir, a path in testdata
		want string
	}{
		{Spec{Path: "empty.npy"}, "npy header is cut off: found 0 bytes, want at least 10"},
		{Spec{Path: "empty.safetensors"}, "safetensors header is cut off: found 0 bytes, want at least 8"},
		{Spec{Path: "cut.npy"}, "offset 128: data are cut off: found 23 bytes, want 24"},
		{Spec{Path: "UPPER.NPY", DType: bf16}, "element type is not the stated one: found f32 (<f4), want bf16"},
		{Spec{Path: "none.safetensors"}, "which tensor? state its key: the file has no tensors at all"},
		{Spec{Path: "many.safetensors"}, "which tensor? state its key: the file has t00, t01, t02, t03, t04, t05, t06, t07, t08, t09, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19 and 5 more"},
		{Spec{Path: "many.safetensors", Key: "t03"}, "element type U8 is not supported: want F32, F16 or BF16"},
		{Spec{Path: "24.bin"}, "a raw file does not say its shape and element type: state both"},
		{Spec{Path: "24.bin", DType: f32}, "a raw file does not say its shape and element type: state both"},
		{Spec{Path: "is_npy.bin"}, "the file begins like npy, but its name does not end in .npy; a raw file does not say its shape and element type: state both"},
		{Spec{Path: "archive.npz"}, "the file is a zip archive (npz or a PyTorch checkpoint): save its tensors as .npy or .safetensors first; a raw file does not say its shape and element type: state both"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{5}}, "offset 0: bytes after the data: found 24 bytes, want 20"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{7}}, "offset 0: data are cut off: found 24 bytes, want 28"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{5}, Offset: 3}, "offset 3: bytes after the data: found 21 bytes, want 20"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{0}, Offset: 25}, "offset of a raw file: found 25, want 0 to 24, its size"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{6}, Offset: -1}, "offset of a raw file: found -1, want 0 to 24, its size"},
		{Spec{Path: "24.bin", DType: f32, Shape: []int{-6}}, "shape [-6] of f32 is not a size from 0 to 2^63-1 bytes"},
		{Spec{Path: "24.bin", DType: bf16, Shape: []int{1 << 31, 1 << 31, 2}}, "shape [2147483648 2147483648 2] of bf16 is not a size from 0 to 2^63-1 bytes"},
		{Spec{Path: "24.bin", DType: f32, Shape: make([]int, 65)}, "shape has 65 extents: want at most 64"},
		{Spec{Path: "24.bin", Key: "a", DType: f32, Shape: []int{6}}, "a key is stated, but raw files have none"},
		{Spec{Path: "cut.npy", Shape: []int{6}}, "a shape and an offset are stated, but npy files have their own"},
		{Spec{Path: "../../testdata/qkv.safetensors", Offset: 8}, "a shape and an offset are stated, but safetensors files have their own"},
		{Spec{Path: "../../testdata/qkv.safetensors", Key: "x"}, `no such key: the file has f8, k, none, q, v.é\"😀\n`},
		{Spec{Path: "../../testdata/qkv.safetensors", Key: "f8"}, "element type F8_E4M3 is not supported: want F32, F16 or BF16"},
		{Spec{Path: "../../testdata/qkv.safetensors", Key: "q", DType: f32}, "element type is not the stated one: found bf16 (BF16), want f32"},
		{Spec{Path: "../../testdata/bf16.npy"}, `element type "<V2" may hold bfloat16, for which npy has no name of its own: state the element type bf16 if it does`},
		{Spec{Path: "../../testdata/bf16.npy", DType: f32}, `element type "<V2" may hold bfloat16, for which npy has no name of its own: state the element type bf16 if it does`},
		{Spec{Path: "../../testdata/f32.npy", DType: bf16}, "element type is not the stated one: found f32 (<f4), want bf16"},
		{Spec{Path: "../../testdata/fortran.npy"}, "fortran order is not supported: convert with np.save(path, np.ascontiguousarray(a))"},
		{Spec{Path: "../../testdata/big_endian.npy"}, "big-endian elements (>f4) are not supported: convert with np.save(path, a.astype('<f4'))"},
		{Spec{Path: "../../testdata/structured.npy"}, "structured elements are not supported: save one field, np.save(path, np.ascontiguousarray(a['field']))"},
		{Spec{Path: "../../testdata/object.npy"}, "the elements are pickled Python objects, which are never loaded: save a numeric array, np.save(path, a.astype(np.float32))"},
		{Spec{Path: "../../testdata/fp8.npy"}, `element type "<f1" is not supported: want <f4, <f2, or <V2 for bfloat16; convert with np.save(path, a.astype(np.float32))`},
		{Spec{Path: "../../testdata"}, "a directory, not a file"},
		{Spec{Path: "/dev/null", DType: f32, Shape: []int{0}}, "not a regular file"},
	} {
		spec := c.spec
		if !strings.Contains(spec.Path, "/") {
			spec.Path = filepath.Join(dir, spec.Path)
		}
		prefix := spec.Path + ": "
		if spec.Key != "" {
			prefix = spec.Path + ":" + spec.Key + ": "
		}
		x, err := Open(spec)
		if err == nil {
			t.Errorf("%+v: opened", c.spec)
			x.Close()
		} else if err.Error() != prefix+c.want || !errors.Is(err, ErrFormat) {
			t.Errorf("%+v:\ngot  %v\nwant %s", c.spec, err, prefix+c.want)
		}
	}
	if _, err := Open(Spec{Path: filepath.Join(dir, "absent.npy")}); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrFormat) {
		t.Errorf("absent file: %v", err)
	}
}

func TestInspect(t *testing.T) {
	info, err := Inspect(goldenPath("qkv.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ti := range info.Tensors {
		got = append(got, fmt.Sprintf("%q %s %v %d+%d %s %q", ti.Key, ti.Stored, ti.Shape, ti.Offset-info.HeaderBytes, ti.Bytes, ti.Order, ti.Problem))
	}
	want := []string{
		`"none" F32 [0 4] 0+0 C ""`,
		`"v.é\"😀\n" F32 [2 3] 0+24 C ""`,
		`"q" BF16 [2 3] 24+12 C ""`,
		`"k" F16 [2 3] 36+12 C ""`,
		`"f8" F8_E4M3 [3] 48+3 C "element type F8_E4M3 is not supported: want F32, F16 or BF16"`,
	}
	if !slices.Equal(got, want) || info.Format != Safetensors || info.Path != goldenPath("qkv.safetensors") {
		t.Errorf("got %v %v\n%s\nwant\n%s", info.Path, info.Format, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, name := range []string{"f64", "i64", "fortran", "big_endian", "structured", "object", "fp8", "bf16", "f32"} {
		info, err := Inspect(goldenPath(name + ".npy"))
		if err != nil {
			t.Error(err)
			continue
		}
		if ti := info.Tensors[0]; (ti.Problem == "") != (name == "f32") || (ti.Order == "C") != (name != "fortran") || ti.Offset+ti.Bytes != info.Size {
			t.Errorf("%s: %+v", name, ti)
		}
	}
	if info, err := Inspect(goldenPath("bf16_at7.bin")); err != nil || info.Format != Raw || info.Size != 31 || len(info.Tensors) != 0 {
		t.Errorf("raw: %+v, %v", info, err)
	}
}

func TestParseRef(t *testing.T) {
	for ref, want := range map[string][2]string{
		"a.safetensors:q":                {"a.safetensors", "q"},
		"a.safetensors":                  {"a.safetensors", ""},
		"a.safetensors:":                 {"a.safetensors", ""},
		"dir:1/a.SafeTensors:layer:0.q":  {"dir:1/a.SafeTensors", "layer:0.q"},
		"a.npy:q":                        {"a.npy:q", ""},
		"a.safetensors.npy":              {"a.safetensors.npy", ""},
		"x.safetensors:b.safetensors:c":  {"x.safetensors", "b.safetensors:c"},
		"":                               {"", ""},
		"safetensors:q":                  {"safetensors:q", ""},
		"weights:2024/plain.bin":         {"weights:2024/plain.bin", ""},
		"dir.safetensors/other.npy":      {"dir.safetensors/other.npy", ""},
		"dir.safetensors/a.safetensors:": {"dir.safetensors/a.safetensors", ""},
	} {
		path, key := ParseRef(ref)
		if got := [2]string{path, key}; got != want {
			t.Errorf("%q: got %q, want %q", ref, got, want)
		}
	}
}

// A file of 10 GiB without a byte of disk: elements past 2^31, bytes past 2^32.
func TestHuge(t *testing.T) {
	const tokens, d = 20 << 20, 256
	shape := []int{1, tokens, d}
	size := int64(tokens) * d * 2
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		header []byte
		stated attention.DType
	}{
		{"huge.npy", encodeNpy("<V2", shape), attention.BF16},
		{"huge.safetensors", stFile(fmt.Sprintf(`{"x":{"dtype":"BF16","shape":[1,%d,%d],"data_offsets":[0,%d]}}`, tokens, d, size), 0), 0},
		{"huge.bin", nil, attention.BF16},
	} {
		path := filepath.Join(dir, c.name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		mark := func(elem int64) {
			if _, err := f.WriteAt(binary.LittleEndian.AppendUint16(nil, uint16(elem%65521)), int64(len(c.header))+2*elem); err != nil {
				t.Skip("no sparse files of 10 GiB here: ", err)
			}
		}
		if _, err := f.Write(c.header); err != nil {
			t.Fatal(err)
		}
		elems := []int64{0, 1<<31 - 1, 1 << 31, 1<<32 + 1, tokens*d - 1}
		for _, e := range elems {
			mark(e)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		spec := Spec{Path: path, DType: c.stated}
		if FormatOf(path) == Raw {
			spec.Shape = shape
		}
		x := mustOpen(t, spec)
		if int64(len(x.Bytes())) != size || !slices.Equal(x.Shape(), shape) {
			t.Fatalf("%s: %d bytes, shape %v", c.name, len(x.Bytes()), x.Shape())
		}
		x.WillNeed(1<<33, 1<<33+1<<20)
		for _, e := range elems {
			if got := binary.LittleEndian.Uint16(x.Bytes()[2*e:]); got != uint16(e%65521) {
				t.Errorf("%s: element %d is %d, want %d", c.name, e, got, e%65521)
			}
		}
		x.DontNeed(0, size)
	}
}

// The pages of a range, for a tensor that starts 4 bytes into the first and
// ends 104 bytes into the last of 4.
func TestHintRanges(t *testing.T) {
	page := int64(os.Getpagesize())
	m := make([]byte, 3*page+104)
	ti := TensorInfo{Offset: 4, Bytes: 3*page + 100}
	at := func(part []byte) [2]int64 {
		if len(part) == 0 {
			return [2]int64{}
		}
		lo := int64(cap(m) - cap(part))
		return [2]int64{lo, lo + int64(len(part))}
	}
	for _, c := range []struct{ lo, hi, fromA, toA, fromW, toW int64 }{
		{0, ti.Bytes, 0, 3*page + 104, page, 3*page + 104},
		{-9, 1 << 60, 0, 3*page + 104, page, 3*page + 104},
		{0, page - 4, 0, page, 0, 0},
		{0, 2 * page, 0, 2*page + 4, page, 2 * page},
		{page - 4, 2*page - 4, page, 2 * page, page, 2 * page},
		{page - 3, 3*page - 5, page, 3*page - 1, 2 * page, 2 * page},
		{page - 3, 3*page - 4, page, 3 * page, 2 * page, 3 * page},
		{3 * page, ti.Bytes, 3 * page, 3*page + 104, 0, 0},
		{5, 5, 0, 0, 0, 0},
		{9, 5, 0, 0, 0, 0},
		{1 << 60, 1 << 61, 0, 0, 0, 0},
	} {
		if c.fromW == c.toW {
			c.fromW, c.toW = 0, 0
		}
		if got, want := at(around(m, ti, c.lo, c.hi)), [2]int64{c.fromA, c.toA}; got != want {
			t.Errorf("around %d to %d: got %v, want %v", c.lo, c.hi, got, want)
		}
		if got, want := at(within(m, ti, c.lo, c.hi)), [2]int64{c.fromW, c.toW}; got != want {
			t.Errorf("within %d to %d: got %v, want %v", c.lo, c.hi, got, want)
		}
	}
}

// Hints at any range, also outside, change nothing that is read.
func TestHints(t *testing.T) {
	page := os.Getpagesize()
	data := make([]byte, 3*page+100)
	for i := range data {
		data[i] = byte(i % 251)
	}
	path := write(t, "a.bin", append([]byte("head"), data...))
	x := mustOpen(t, Spec{Path: path, DType: attention.F16, Shape: []int{len(data) / 2}, Offset: 4})
	x.Sequential()
	edges := []int64{-5, 0, 1, int64(page) - 4, int64(page), 2*int64(page) + 7, int64(len(data)), int64(len(data)) + 1<<40}
	for _, lo := range edges {
		for _, hi := range edges {
			x.WillNeed(lo, hi)
			x.DontNeed(lo, hi)
		}
	}
	if !slices.Equal(x.Bytes(), data) {
		t.Error("the elements changed")
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	x.WillNeed(0, 10)
	x.DontNeed(0, 10)
	x.Sequential()
	if x.Bytes() != nil || x.Map() != nil {
		t.Error("slices survive Close")
	}
}

func mustIdentify(t *testing.T, x *Tensor) Identity {
	t.Helper()
	id, err := x.Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentity(t *testing.T) {
	path := write(t, "a.npy", golden(t, "f32.npy"))
	link := filepath.Join(t.TempDir(), "link.npy")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 5)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		got := mustIdentify(t, mustOpen(t, Spec{Path: name}))
		want := Identity{Path: real, Size: 152, MTime: 1e9 + 5, Offset: 128, Head: 0xbd5790e7}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	st := goldenFrom(t, "qkv.safetensors")
	q, k := mustIdentify(t, mustOpen(t, Spec{Path: st, Key: "q"})), mustIdentify(t, mustOpen(t, Spec{Path: st, Key: "k"}))
	if q.Key != "q" || k.Key != "k" || q.Offset == k.Offset || q.Head != k.Head {
		t.Errorf("two tensors of a file: %+v and %+v", q, k)
	}
	one := mustIdentify(t, mustOpen(t, Spec{Path: goldenFrom(t, "one.safetensors")}))
	if one.Key == "" {
		t.Error("a key that was not stated is not known")
	}
	empty := mustIdentify(t, mustOpen(t, Spec{Path: write(t, "e.bin", nil), DType: attention.F32, Shape: []int{0}}))
	if empty.Size != 0 || empty.Head != 0 {
		t.Errorf("an empty file: %+v", empty)
	}
	t.Chdir(filepath.Dir(path))
	if got := mustIdentify(t, mustOpen(t, Spec{Path: "a.npy"})); got.Path != real {
		t.Errorf("relative: got %s, want %s", got.Path, real)
	}
}

// goldenFrom copies a golden file to where tests may have files.
func goldenFrom(t *testing.T, name string) string { return write(t, name, golden(t, name)) }

// Head covers 64 KiB and no more.
func TestIdentityHead(t *testing.T) {
	data := make([]byte, 64<<10+4)
	head := func(at int, b byte) uint32 {
		data[at] = b
		defer func() { data[at] = 0 }()
		x := mustOpen(t, Spec{Path: write(t, "a.bin", data), DType: attention.F32, Shape: []int{16<<10 + 1}})
		return mustIdentify(t, x).Head
	}
	if plain := head(0, 0); head(64<<10, 1) != plain || head(64<<10-1, 1) == plain || head(0, 1) == plain {
		t.Error("Head is not that of the first 64 KiB")
	}
}

// Identity is of the file that is open, and refuses to be of another.
func TestIdentityOfChanged(t *testing.T) {
	path := write(t, "a.npy", golden(t, "f32.npy"))
	x := mustOpen(t, Spec{Path: path})
	before := mustIdentify(t, x)
	if err := errors.Join(os.WriteFile(path+"2", golden(t, "f16.npy"), 0o666), os.Rename(path+"2", path)); err != nil {
		t.Fatal(err)
	}
	if got := mustIdentify(t, x); got != before {
		t.Errorf("renamed over: %+v, was %+v", got, before)
	}
	for what, change := range map[string]func(string) error{
		"written to": func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"bytes, had": func(path string) error { return os.Truncate(path, 100) },
	} {
		path := write(t, "a.npy", golden(t, "f32.npy"))
		x := mustOpen(t, Spec{Path: path})
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Identity(); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestCheckUnchanged(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written": func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"longer":  func(path string) error { return os.Truncate(path, 153) },
		"replaced": func(path string) error {
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			err = os.WriteFile(path+"2", b, 0o666)
			return errors.Join(err, os.Chtimes(path+"2", time.Time{}, fi.ModTime()), os.Rename(path+"2", path))
		},
	} {
		path := write(t, "a.npy", golden(t, "f32.npy"))
		x := mustOpen(t, Spec{Path: path})
		if err := x.CheckUnchanged(); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if err := x.CheckUnchanged(); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	path := write(t, "a.npy", golden(t, "f32.npy"))
	x := mustOpen(t, Spec{Path: path})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := x.CheckUnchanged(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: got %v", err)
	}
}

// A file that is cut short under its map is an error with its name.
func TestGuard(t *testing.T) {
	path := write(t, "a.bin", make([]byte, 1<<20))
	x := mustOpen(t, Spec{Path: path, DType: attention.F32, Shape: []int{1 << 18}})
	y := mustOpen(t, Spec{Path: goldenPath("f32.npy")})
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	var sum byte
	read := func() error {
		sum += x.Bytes()[1<<19]
		return nil
	}
	err := Guard(read, y, x)
	if want := path + ": byte 524288 of 1048576 can't be accessed"; !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := Guard(func() error { return fs.ErrInvalid }, x); err != fs.ErrInvalid {
		t.Errorf("an error of the function: got %v", err)
	}
	for name, f := range map[string]func() error{
		"a fault in a map not named": func() error { return Guard(read, y) },
		"a panic":                    func() error { return Guard(func() error { panic("no fault") }, x) },
		"a nil pointer":              func() error { return Guard(func() error { var p *Spec; p.Key = "x"; return nil }, x) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was swallowed", name)
				}
			}()
			// The outer Guard only lets the inner one's panic be recovered.
			t.Errorf("%s: returned %v", name, Guard(f))
		}()
	}
	// A file that is as long as it was when the fault is looked at has a bad disk.
	err = Guard(func() error {
		defer os.Truncate(path, 1<<20)
		return read()
	}, y, x)
	if errors.Is(err, ErrChanged) || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), path+": byte 524288") {
		t.Errorf("a file that is not shorter: got %v", err)
	}
}

func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("a"), nil, 0o666),
		os.WriteFile(at("b"), nil, 0o666),
		os.Link(at("a"), at("hard")),
		os.Symlink("a", at("soft")),
		os.Symlink(dir, at("dir")),
		os.Symlink("new", at("dangling")),
		os.Symlink("loop", at("loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true},
		{"a", "hard", true},
		{"soft", "hard", true},
		{"dir/a", "a", true},
		{"a", "b", false},
		{"a", "new", false},
		{"new", "b", false},
		{"new", "./new", true},
		{"new", "dir/new", true},
		{"new", "dangling", true},
		{"new", "new2", false},
		{"loop", "new", false},
	} {
		if got := SameFile(dir+"/"+c.a, dir+"/"+c.b); got != c.want {
			t.Errorf("%s and %s: got %v", c.a, c.b, got)
		}
	}
	t.Chdir(dir)
	if !SameFile("new", at("new")) || !SameFile("a", at("a")) {
		t.Error("relative and absolute paths differ")
	}
}
