package tensorfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// smallDisk mounts a disk of 1 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("mounting a small disk needs root: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestCreateDiskFull(t *testing.T) {
	dir := smallDisk(t)
	path := filepath.Join(dir, "o.npy")
	// In memory, a file system would take what it has before it refuses.
	old := fallocate
	defer func() { fallocate = old }()
	fallocate = func(int, uint32, int64, int64) error {
		t.Error("asked for space that is not there")
		return unix.ENOSPC
	}
	_, err := Create(OutSpec{Path: path, DType: attention.F32, Shape: []int{1 << 20}})
	var full *NoSpaceError
	if !errors.As(err, &full) || !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
	if full.Need != 1<<22+128 || full.Free != 1<<20 || full.Path != path+".partial" {
		t.Errorf("got %+v", full)
	}
	checkDir(t, dir)
	// What just fits, fits.
	fallocate = old
	o := mustCreate(t, OutSpec{Path: path, DType: attention.F32, Shape: []int{1<<18 - 32}})
	copy(o.Bytes(), bytes.Repeat([]byte{1}, len(o.Bytes())))
	if err := o.Commit(); err != nil {
		t.Error(err)
	}
}

// The disk fills between asking and reserving, or does not say how much is free.
func TestReserveFails(t *testing.T) {
	defer func(f func(int, uint32, int64, int64) error) { fallocate = f }(fallocate)
	for _, c := range []struct{ with, want error }{
		{unix.ENOSPC, ErrNoSpace},
		{unix.EDQUOT, ErrNoSpace},
		{unix.EIO, unix.EIO},
	} {
		fallocate = func(int, uint32, int64, int64) error { return c.with }
		dir := t.TempDir()
		if _, err := Create(outSpec(filepath.Join(dir, "o.npy"))); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v", c.with, err)
		}
		checkDir(t, dir)
	}
}

// Without fallocate the space is written, and an interrupted call is repeated.
func TestReserveOtherwise(t *testing.T) {
	defer func(f func(int, uint32, int64, int64) error) { fallocate = f }(fallocate)
	fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
	s := OutSpec{Path: filepath.Join(t.TempDir(), "o.npy"), DType: attention.F32, Shape: []int{700_001}}
	o := mustCreate(t, s)
	checkReserved(t, o)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o, err := Reopen(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Abort(); err != nil {
		t.Fatal(err)
	}

	calls := 0
	fallocate = func(fd int, mode uint32, off, n int64) error {
		if calls++; calls%2 == 1 {
			return unix.EINTR
		}
		return unix.Fallocate(fd, mode, off, n)
	}
	checkReserved(t, mustCreate(t, s))
	if calls != 2 {
		t.Errorf("%d calls, want 2", calls)
	}
}

func TestReserve(t *testing.T) {
	checkReserved(t, mustCreate(t, OutSpec{Path: filepath.Join(t.TempDir(), "o.bin"), DType: attention.F32, Shape: []int{700_001}}))
}

// checkReserved: the file has blocks for all of its bytes.
func checkReserved(t *testing.T, o *Output) {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(o.Partial(), &s); err != nil {
		t.Fatal(err)
	}
	if s.Size != int64(len(o.Map())) || s.Blocks*512 < s.Size {
		t.Errorf("%d bytes on the disk of a file of %d, want %d", s.Blocks*512, s.Size, len(o.Map()))
	}
}

// A second writer is refused and harms nothing; a third comes after the first.
func TestCreateTwice(t *testing.T) {
	dir := t.TempDir()
	s := outSpec(filepath.Join(dir, "o.npy"))
	o := mustCreate(t, s)
	ramp(attention.BF16, o.Bytes())
	for _, open := range []func(...OutSpec) (*Output, error){Create, Reopen} {
		if _, err := open(s); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
	}
	checkDir(t, dir, "o.npy.partial")
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := mustCreate(t, s).Abort(); err != nil {
		t.Error(err)
	}
	checkRamp(t, mustOpen(t, Spec{Path: s.Path, DType: s.DType}))
}

// Whoever asks hears who writes an output, and is not in the way.
func TestHolder(t *testing.T) {
	dir := t.TempDir()
	s := outSpec(filepath.Join(dir, "o.npy"))
	partial := PartialOf(s.Path)
	want := func(what string, pid int, held bool) {
		t.Helper()
		if p, h, err := Holder(partial); p != pid || h != held || err != nil {
			t.Errorf("%s: process %d, held %v, %v; want %d, %v", what, p, h, err, pid, held)
		}
	}
	want("no file", 0, false)
	o := mustCreate(t, s)
	want("in work", os.Getpid(), true)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	want("left", 0, false)
	c, err := Claim(s)
	if err != nil {
		t.Fatal(err)
	}
	want("claimed", os.Getpid(), true)
	if _, err := Reopen(s); !errors.Is(err, ErrInUse) {
		t.Errorf("what is claimed can be continued: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	o, err = Reopen(s)
	if err != nil {
		t.Fatalf("after a claim: %v", err)
	}
	if err := o.Abort(); err != nil {
		t.Fatal(err)
	}
	if c, err = Claim(s); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir, "o.npy.partial")
	if err := c.Abort(); err != nil {
		t.Fatal(err)
	}
	checkDir(t, dir)
	if err := os.Mkdir(partial, 0o777); err != nil {
		t.Fatal(err)
	}
	want("a directory", 0, false)
}

// Writers in a row, each of which may open the file that the one before is
// about to rename: whoever has committed finds the file whole ever after.
func TestCreateRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.bin")
	s := OutSpec{Path: path, DType: attention.F16, Shape: []int{100}}
	defer func(f func(*os.File) error) { syncFile = f }(syncFile)
	syncFile = func(*os.File) error { return nil } // only the order matters here
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for commits := 0; commits < 50; {
				o, err := Create(s)
				if errors.Is(err, ErrInUse) {
					runtime.Gosched()
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				copy(o.Bytes(), bytes.Repeat([]byte{byte(1 + g)}, 200))
				if err := o.Commit(); err != nil {
					t.Error(err)
					return
				}
				commits++
				if b, err := os.ReadFile(path); err != nil || len(b) != 200 || bytes.Count(b, b[:1]) != 200 || b[0] == 0 {
					t.Errorf("committed, and found %v, %v", b, err)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestCreateNotWritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		t.Skip("root may write anywhere")
	}
	if _, err := Create(outSpec(filepath.Join(dir, "o.npy"))); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
}
