package tensorfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// elsewhere is an output whose partial file is in another directory, and both
// directories.
func elsewhere(t *testing.T) (s OutSpec, dir, work string) {
	t.Helper()
	dir, work = t.TempDir(), t.TempDir()
	s = outSpec(filepath.Join(dir, "o.npy"))
	s.Partial = filepath.Join(work, "w.partial")
	return s, dir, work
}

func TestPartialElsewhere(t *testing.T) {
	s, dir, work := elsewhere(t)
	o := mustCreate(t, s)
	if o.Path() != s.Path || o.Partial() != s.Partial {
		t.Errorf("paths %s and %s", o.Path(), o.Partial())
	}
	checkDir(t, dir)
	checkDir(t, work, "w.partial")
	ramp(attention.BF16, o.Bytes())
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	other := s
	other.Shape = []int{4, 5}
	if _, err := Reopen(other); !errors.Is(err, ErrFormat) || !strings.HasPrefix(err.Error(), s.Partial) {
		t.Errorf("another shape: %v", err)
	}
	o, err := Reopen(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir, "o.npy")
	checkDir(t, work)
	checkRamp(t, mustOpen(t, Spec{Path: s.Path, DType: s.DType}))

	if err := mustCreate(t, s).Abort(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir, "o.npy")
	checkDir(t, work)
}

// A result that also has the name of a partial file must not be taken for one.
func TestPartialIsResult(t *testing.T) {
	s, _, _ := elsewhere(t)
	if err := errors.Join(os.WriteFile(s.Path, []byte("old"), 0o666), os.Link(s.Path, s.Partial)); err != nil {
		t.Skip("no hard links here: ", err)
	}
	if _, err := Create(s); err == nil || !strings.Contains(err.Error(), "is the same file") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(s.Path); err != nil || string(b) != "old" {
		t.Errorf("the result is %q, %v", b, err)
	}
}

// otherDisk is a directory on another file system than that of t.TempDir.
func otherDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "streamcqsa-test-")
	if err != nil {
		t.Skip("no other file system: ", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	from, to := filepath.Join(t.TempDir(), "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(from, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(from, to); !errors.Is(err, syscall.EXDEV) {
		t.Skip("/dev/shm and the directory for temporary files are one file system")
	}
	return dir
}

// From one file system to another the file is copied, whole, over what a dead run left.
func TestCommitToOtherDisk(t *testing.T) {
	dir, work := t.TempDir(), otherDisk(t)
	s := OutSpec{Path: filepath.Join(dir, "o.bin"), Partial: filepath.Join(work, "w.partial"), DType: attention.F32, Shape: []int{700_001}}
	if err := errors.Join(os.WriteFile(s.Path, []byte("old"), 0o666), os.WriteFile(s.Path+".partial", make([]byte, 1<<22), 0o666)); err != nil {
		t.Fatal(err)
	}
	o := mustCreate(t, s)
	ramp(attention.F32, o.Bytes())
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir, "o.bin")
	checkDir(t, work)
	checkRamp(t, mustOpen(t, Spec{Path: s.Path, DType: s.DType, Shape: s.Shape}))
}

// farRename fails as between file systems do, but for files in dir.
func farRename(dir string) func(from, to string) error {
	return func(from, to string) error {
		if filepath.Dir(from) != dir {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EXDEV}
		}
		return os.Rename(from, to)
	}
}

// Whatever fails on the way to another file system, the original is left, and PATH is
// what it was.
func TestCommitToOtherDiskFails(t *testing.T) {
	defer func(f func(*os.File) error, r func(string, string) error) { syncFile, renameFile = f, r }(syncFile, renameFile)
	broken := errors.New("disk on fire")
	for name, c := range map[string]struct {
		spoil func(t *testing.T, s OutSpec)
		want  error
	}{
		"rename": {func(_ *testing.T, s OutSpec) {
			far := renameFile
			renameFile = func(from, to string) error {
				if from == s.Path+".partial" {
					return broken
				}
				return far(from, to)
			}
		}, broken},
		"sync": {func(_ *testing.T, s OutSpec) {
			syncFile = func(f *os.File) error {
				if f.Name() == s.Path+".partial" {
					return broken
				}
				return f.Sync()
			}
		}, broken},
		"read": {func(t *testing.T, s OutSpec) {
			// Sync comes before the copy: a file that was cut since can't be read whole.
			syncFile = func(f *os.File) error {
				if f.Name() == s.Path+".partial" {
					t.Error("synced what was not copied whole")
				}
				return f.Sync()
			}
			far := renameFile
			renameFile = func(from, to string) error {
				if err := os.Truncate(s.Partial, 0); err != nil {
					t.Error(err)
				}
				return far(from, to)
			}
		}, ErrChanged},
		"open": {func(t *testing.T, s OutSpec) {
			if err := os.Remove(s.Path + ".partial"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("nowhere", s.Path+".partial"); err != nil {
				t.Fatal(err)
			}
		}, nil},
	} {
		s, dir, work := elsewhere(t)
		if err := errors.Join(os.WriteFile(s.Path, []byte("old"), 0o666), os.WriteFile(s.Path+".partial", nil, 0o666)); err != nil {
			t.Fatal(err)
		}
		syncFile, renameFile = (*os.File).Sync, farRename(dir)
		o := mustCreate(t, s)
		ramp(attention.BF16, o.Bytes())
		c.spoil(t, s)
		err := o.Commit()
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), s.Partial+" is kept") {
			t.Errorf("%s: got %v", name, err)
		}
		checkDir(t, work, "w.partial")
		if name == "open" {
			checkDir(t, dir, "o.npy", "o.npy.partial")
		} else {
			checkDir(t, dir, "o.npy")
		}
		if b, err := os.ReadFile(s.Path); err != nil || string(b) != "old" {
			t.Errorf("%s: the result is %q, %v", name, b, err)
		}
		if name == "read" {
			continue
		}
		// The original is whole: another Commit finds everything.
		syncFile, renameFile = (*os.File).Sync, os.Rename
		if o, err = Reopen(s); err != nil {
			t.Fatal(err)
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		checkRamp(t, mustOpen(t, Spec{Path: s.Path, DType: s.DType}))
	}
}

// Nothing can be copied to where it is.
func TestCommitBesideCannotRename(t *testing.T) {
	defer func(r func(string, string) error) { renameFile = r }(renameFile)
	renameFile = farRename("")
	dir := t.TempDir()
	o := mustCreate(t, outSpec(filepath.Join(dir, "o.npy")))
	ramp(attention.BF16, o.Bytes())
	if err := o.Commit(); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("got %v", err)
	}
	v, err := ViewPartial(outSpec(filepath.Join(dir, "o.npy")))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if want := make([]byte, 30); bytes.Equal(v.BytesOf(0), want) {
		t.Error("the only file was emptied")
	}
}

func TestViewPartial(t *testing.T) {
	s, dir, work := elsewhere(t)
	if _, err := ViewPartial(s); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing to view: %v", err)
	}
	o := mustCreate(t, s)
	v, err := ViewPartial(s) // while another has the lock
	if err != nil {
		t.Fatal(err)
	}
	ramp(attention.BF16, o.Bytes())
	if v.Path() != s.Partial || !bytes.Equal(v.Map(), o.Map()) || !bytes.Equal(v.BytesOf(0), o.Bytes()) {
		t.Errorf("%s has %v, and not what is written", v.Path(), v.BytesOf(0))
	}
	if err := Guard(func() error { v.BytesOf(0)[0] = 1; return nil }, v); err == nil {
		t.Error("a view can be written to")
	}
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Error(err)
	}
	if v.Map() != nil || v.BytesOf(0) != nil {
		t.Error("slices survive Close")
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	other := s
	other.Shape = []int{5, 3}
	if _, err := ViewPartial(other); !errors.Is(err, ErrFormat) {
		t.Errorf("another shape: %v", err)
	}
	checkDir(t, dir)
	checkDir(t, work, "w.partial")
}

// A view takes no lock: whoever continues the output is not in its way.
func TestViewTakesNoLock(t *testing.T) {
	s, _, _ := elsewhere(t)
	if err := mustCreate(t, s).Close(); err != nil {
		t.Fatal(err)
	}
	v, err := ViewPartial(s)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	o, err := Reopen(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Abort(); err != nil {
		t.Error(err)
	}
}
