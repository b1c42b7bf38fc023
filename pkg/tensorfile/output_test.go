package tensorfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// outSpec is a tensor of 3x5 elements in a file of any format.
func outSpec(path string) OutSpec {
	s := OutSpec{Path: path, DType: attention.BF16, Shape: []int{3, 5}}
	if FormatOf(path) == Safetensors {
		s.Key = "o"
	}
	return s
}

func mustCreate(t *testing.T, specs ...OutSpec) *Output {
	t.Helper()
	o, err := Create(specs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// checkDir wants exactly these files in dir.
func checkDir(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("files: got %q, want %q", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, ext := range []string{"npy", "safetensors", "bin"} {
		for _, dtype := range []attention.DType{attention.F32, attention.F16, attention.BF16} {
			for i, shape := range [][]int{{}, {7}, {2, 3, 4, 5}, {4, 0}, {1, 100_000}} {
				path := filepath.Join(dir, fmt.Sprintf("%v%d.%s", dtype, i, ext))
				s := OutSpec{Path: path, DType: dtype, Shape: shape}
				if ext == "safetensors" {
					s.Key, s.Metadata = `k"<é`, map[string]string{"scale": "1", "a": "<\n>"}
				}
				o := mustCreate(t, s)
				ramp(dtype, o.Bytes())
				if err := o.Commit(); err != nil {
					t.Fatal(err)
				}
				spec := Spec{Path: path, DType: dtype}
				if ext == "bin" {
					spec.Shape = shape
				}
				x := mustOpen(t, spec)
				if !slices.Equal(x.Shape(), shape) || x.DType() != dtype || x.Key() != s.Key || !maps.Equal(x.Metadata(), s.Metadata) {
					t.Errorf("%s: got %v %v %q %q", path, x.DType(), x.Shape(), x.Key(), x.Metadata())
				}
				if ext != "bin" && x.Offset()%64 != 0 {
					t.Errorf("%s: data at %d", path, x.Offset())
				}
				checkRamp(t, x)
			}
		}
	}
}

// ramp stores (i - 5) / 4 in element i, which is exact in the golden files.
func ramp(dtype attention.DType, b []byte) {
	size := dtype.Size()
	for i := range len(b) / size {
		dtype.Put(b[i*size:], float64(i-5)/4)
	}
}

// One file for several tensors, given in any order.
func TestCreateSeveral(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.safetensors")
	o := mustCreate(t,
		OutSpec{Path: path, Key: "o", DType: attention.BF16, Shape: []int{3, 4}, Metadata: map[string]string{"base": "e"}},
		OutSpec{Path: path, Key: "h", DType: attention.F16, Shape: []int{1}},
		OutSpec{Path: path, Key: "lse", DType: attention.F32, Shape: []int{3}, Metadata: map[string]string{"base": "e"}},
	)
	for i, dtype := range []attention.DType{attention.BF16, attention.F16, attention.F32} {
		ramp(dtype, o.BytesOf(i))
		if &o.BytesOf(i)[0] != &o.Map()[o.OffsetOf(i)] || o.OffsetOf(i)%int64(dtype.Size()) != 0 {
			t.Errorf("tensor %d is not at %d", i, o.OffsetOf(i))
		}
	}
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"o", "h", "lse"} {
		checkRamp(t, mustOpen(t, Spec{Path: path, Key: key}))
	}
	// The reference's file, but for the padding of the header.
	want := golden(t, "o_lse.safetensors")
	if !bytes.HasSuffix(got, want[len(want)-38:]) || !bytes.HasPrefix(got[8:], bytes.TrimRight(want[8:len(want)-38], " ")) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Pages that were given back keep what was written.
func TestOutputDontNeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.npy")
	o := mustCreate(t, OutSpec{Path: path, DType: attention.F32, Shape: []int{50_000}})
	ramp(attention.F32, o.Bytes())
	o.DontNeed(0, 0, 100_000)
	o.DontNeed(0, 0, 1<<40)
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	o.DontNeed(0, 0, 10)
	checkRamp(t, mustOpen(t, Spec{Path: path}))
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d.npy"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "taken.npy.partial"), 0o777); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	f32 := attention.F32
	two := func(a, b OutSpec) []OutSpec {
		a.Path, a.DType, b.DType = at("x.safetensors"), f32, f32
		if b.Path == "" {
			b.Path = a.Path
		}
		return []OutSpec{a, b}
	}
	for _, c := range []struct {
		specs []OutSpec
		want  string
	}{
		{nil, "create output: no tensor"},
		{[]OutSpec{{Path: at("d.npy"), DType: f32}}, "create " + at("d.npy") + ": it is a directory"},
		{[]OutSpec{{Path: "/dev/null", DType: f32}}, "create /dev/null: it is not a regular file"},
		{[]OutSpec{{Path: at("taken.npy"), DType: f32}}, "create " + at("taken.npy.partial") + ": it exists and is not a regular file"},
		{[]OutSpec{{Path: at("absent/x.npy"), DType: f32}}, "create " + at("absent/x.npy") + ": its directory: stat " + at("absent") + ": no such file or directory"},
		{[]OutSpec{{Path: at("x.npy")}}, "create " + at("x.npy") + ": element type DType(0)"},
		{[]OutSpec{{Path: at("x.npy"), DType: f32, Shape: []int{-1}}}, "create " + at("x.npy") + ": shape [-1] of f32: want at most 64 extents from 0 and less than 2^63 bytes"},
		{[]OutSpec{{Path: at("x.npy"), DType: f32, Shape: []int{1 << 61}}}, "create " + at("x.npy") + ": shape [2305843009213693952] of f32: want at most 64 extents from 0 and less than 2^63 bytes"},
		{[]OutSpec{{Path: at("x.npy"), DType: attention.BF16, Shape: []int{1<<62 - 1}}}, "create " + at("x.npy") + ": file is larger than 2^63-1 bytes"},
		{[]OutSpec{{Path: at("x.npy"), DType: f32, Key: "a"}}, "create " + at("x.npy") + ": npy files hold one tensor, without a key and metadata"},
		{[]OutSpec{{Path: at("x.bin"), DType: f32}, {Path: at("x.bin"), DType: f32}}, "create " + at("x.bin") + ": raw files hold one tensor, without a key and metadata"},
		{[]OutSpec{{Path: at("x.safetensors"), DType: f32}}, "create " + at("x.safetensors") + `: key "" can't name a tensor`},
		{[]OutSpec{{Path: at("x.safetensors"), DType: f32, Key: "__metadata__"}}, "create " + at("x.safetensors") + `: key "__metadata__" can't name a tensor`},
		{[]OutSpec{{Path: at("x.safetensors"), DType: f32, Key: "\xff"}}, "create " + at("x.safetensors") + `: key "\xff" can't name a tensor`},
		{two(OutSpec{Key: "a"}, OutSpec{Key: "a"}), "create " + at("x.safetensors") + `: two tensors have the key "a"`},
		{two(OutSpec{Key: "a"}, OutSpec{Key: "b", Path: at("y.safetensors")}), "create " + at("x.safetensors") + ": a tensor of " + at("y.safetensors") + " can't be in the same file"},
		{two(OutSpec{Key: "a", Partial: at("p")}, OutSpec{Key: "b"}), "create " + at("x.safetensors") + `: it can't be both "` + at("p") + `" and "" until it is complete`},
		{[]OutSpec{{Path: at("x.npy"), Partial: at("taken.npy.partial/../x.npy"), DType: f32}}, "create " + at("x.npy") + ": " + at("taken.npy.partial/../x.npy") + " is the same file, and can't be what it is until it is complete"},
		{[]OutSpec{{Path: at("x.npy"), Partial: at("taken.npy.partial"), DType: f32}}, "create " + at("taken.npy.partial") + ": it exists and is not a regular file"},
		{[]OutSpec{{Path: at("x.npy"), Partial: at("absent/p"), DType: f32}}, "create " + at("absent/p") + ": its directory: stat " + at("absent") + ": no such file or directory"},
		{two(OutSpec{Key: "a", Metadata: map[string]string{"k": "1"}}, OutSpec{Key: "b", Metadata: map[string]string{"k": "2"}}), "create " + at("x.safetensors") + `: metadata "k" is "1" and "2"`},
	} {
		if _, err := Create(c.specs...); err == nil || err.Error() != c.want {
			t.Errorf("%v:\ngot  %v\nwant %s", c.specs, err, c.want)
		}
	}
	checkDir(t, dir, "d.npy", "taken.npy.partial")
}

// PATH is the old file until Commit, and the whole new one after.
func TestCommit(t *testing.T) {
	for _, name := range []string{"o.npy", "o.safetensors", "o.bin"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		o := mustCreate(t, outSpec(path))
		if o.Path() != path || o.Partial() != path+".partial" {
			t.Errorf("paths %s and %s", o.Path(), o.Partial())
		}
		if !bytes.Equal(o.Bytes(), make([]byte, 30)) {
			t.Errorf("%s: not zero at first: %v", name, o.Bytes())
		}
		ramp(attention.BF16, o.Bytes())
		want := bytes.Clone(o.Bytes())
		if err := o.Sync(); err != nil {
			t.Error(err)
		}
		checkDir(t, dir, name, name+".partial")
		if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
			t.Errorf("%s: before Commit: %q, %v", name, b, err)
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		checkDir(t, dir, name)
		if o.Bytes() != nil || o.Map() != nil {
			t.Error("slices survive Commit")
		}
		if err := errors.Join(o.Abort(), o.Close()); err != nil {
			t.Error(err)
		}
		checkDir(t, dir, name)
		if err := o.Commit(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("second Commit: %v", err)
		}
		if err := o.Sync(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Sync after Commit: %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(b, want) {
			t.Errorf("%s: after Commit: %q, %v", name, b, err)
		}
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.npy")
	if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
		t.Fatal(err)
	}
	o := mustCreate(t, outSpec(path))
	if err := o.Abort(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir, "o.npy")
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		t.Errorf("after Abort: %q, %v", b, err)
	}
}

// A failed sync must not become a file that looks finished.
func TestCommitFails(t *testing.T) {
	defer func(f func(*os.File) error) { syncFile = f }(syncFile)
	broken := errors.New("disk on fire")
	syncFile = func(*os.File) error { return broken }
	dir := t.TempDir()
	path := filepath.Join(dir, "o.npy")
	o := mustCreate(t, outSpec(path))
	err := o.Commit()
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), path+".partial is kept") {
		t.Errorf("got %v", err)
	}
	checkDir(t, dir, "o.npy.partial")
	if o.Bytes() != nil {
		t.Error("slices survive a failed Commit")
	}
}

// A PATH that became a directory after Create.
func TestCommitCannotRename(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.npy")
	o := mustCreate(t, outSpec(path))
	if err := os.Mkdir(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := o.Commit(); err == nil || !strings.Contains(err.Error(), "is kept") {
		t.Errorf("got %v", err)
	}
	checkDir(t, dir, "o.npy", "o.npy.partial")
}

func TestReopen(t *testing.T) {
	for _, name := range []string{"o.npy", "o.safetensors", "o.bin"} {
		dir := t.TempDir()
		s := outSpec(filepath.Join(dir, name))
		if _, err := Reopen(s); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: nothing to reopen: %v", name, err)
		}
		o := mustCreate(t, s)
		ramp(attention.BF16, o.Bytes()[:14])
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		checkDir(t, dir, name+".partial")

		other := s
		for _, shape := range [][]int{{3, 6}, {3, 4}} {
			other.Shape = shape
			if _, err := Reopen(other); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "want") {
				t.Errorf("%s: another size, %v: %v", name, shape, err)
			}
		}
		if other.Shape = []int{5, 3}; FormatOf(name) != Raw { // raw files don't know
			if _, err := Reopen(other); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: another shape: %v", name, err)
			}
		}

		o, err := Reopen(s)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 30)
		ramp(attention.BF16, want[:14])
		if !bytes.Equal(o.Bytes(), want) {
			t.Errorf("%s: reopened: %v, want %v", name, o.Bytes(), want)
		}
		ramp(attention.BF16, o.Bytes())
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		spec := Spec{Path: s.Path, DType: s.DType}
		if FormatOf(name) == Raw {
			spec.Shape = s.Shape
		}
		checkRamp(t, mustOpen(t, spec))
	}
}

// What a dead run left is replaced, whatever it was.
func TestCreateOverLeftovers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.npy")
	if err := os.WriteFile(path+".partial", bytes.Repeat([]byte{7}, 10_000), 0o666); err != nil {
		t.Fatal(err)
	}
	o := mustCreate(t, outSpec(path))
	if len(o.Map()) != 158 || !bytes.Equal(o.Bytes(), make([]byte, 30)) {
		t.Errorf("got %d bytes, elements %v", len(o.Map()), o.Bytes())
	}
}

func TestCreateMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.npy")
	plain, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	want, err := plain.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := mustCreate(t, outSpec(path)).Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Stat(path); err != nil || got.Mode() != want.Mode() {
		t.Errorf("mode %v, %v, want %v as the umask has it", got.Mode(), err, want.Mode())
	}
}

// Through a link, the target is written, whether or not it exists.
func TestCreateThroughLink(t *testing.T) {
	for _, exists := range []bool{true, false} {
		dir := t.TempDir()
		far := filepath.Join(dir, "far")
		if err := os.Mkdir(far, 0o777); err != nil {
			t.Fatal(err)
		}
		target, link := filepath.Join(far, "o.npy"), filepath.Join(dir, "link.npy")
		if exists {
			if err := os.WriteFile(target, []byte("old"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("far/o.npy", link); err != nil {
			t.Fatal(err)
		}
		o := mustCreate(t, outSpec(link))
		if o.Partial() != target+".partial" {
			t.Errorf("partial file is %s", o.Partial())
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		checkDir(t, dir, "far", "link.npy")
		checkDir(t, far, "o.npy")
		if to, err := os.Readlink(link); err != nil || to != "far/o.npy" {
			t.Errorf("the link is now %q, %v", to, err)
		}
		mustOpen(t, Spec{Path: link, DType: attention.BF16})
	}
}

// A link up from a directory that is itself reached by a link.
func TestCreateThroughLinkUp(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "far", "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("far/sub", filepath.Join(dir, "near")), os.Symlink("../o.npy", filepath.Join(dir, "far", "sub", "up.npy"))); err != nil {
		t.Fatal(err)
	}
	if err := mustCreate(t, outSpec(filepath.Join(dir, "near", "up.npy"))).Commit(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, filepath.Join(dir, "far"), "o.npy", "sub")
	checkDir(t, dir, "far", "near")
}
