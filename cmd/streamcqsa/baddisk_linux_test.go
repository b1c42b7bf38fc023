package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// badDisk is a disk with a file system on it that can stop to deliver blocks: a loop
// device over a file, whose blocks can't be read any more where the file has been cut.
type badDisk struct {
	dir   string // where it is mounted, for reading
	image string // the file
	whole []byte // that it had
}

// newBadDisk is a disk with the files of a directory, nothing of which is in memory.
func newBadDisk(t *testing.T, from string) *badDisk {
	t.Helper()
	if os.Geteuid() != 0 || !smallDisks() {
		t.Skip("needs the right to mount a loop device: run it as root")
	}
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("needs mke2fs, to make a file system: install e2fsprogs")
	}
	d := &badDisk{dir: t.TempDir(), image: filepath.Join(t.TempDir(), "image")}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o666), os.Truncate(d.image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command(mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-b", fmt.Sprint(diskBlock), "-d", from, d.image).CombinedOutput(); err != nil {
		t.Fatalf("make a file system: %v: %s", err, b)
	}
	if d.whole, err = os.ReadFile(d.image); err != nil {
		t.Fatal(err)
	}
	device, free, err := loopDevice(d.image)
	if err != nil {
		t.Skipf("needs a loop device: %v", err)
	}
	err = unix.Mount(device, d.dir, "ext4", unix.MS_RDONLY, "")
	free() // from now on, the mount holds it
	if err != nil {
		t.Skipf("needs to mount a loop device as ext4: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

const diskBlock = 4096

// loopDevice makes a block device of a file, for reading. It goes when nobody has it open.
func loopDevice(image string) (device string, free func(), err error) {
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	file, err := os.Open(image)
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	for range 20 { // others may take the one that is free
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("ask for a free one: %w", err)
		}
		device = fmt.Sprintf("/dev/loop%d", n)
		f, err := os.Open(device)
		if err != nil {
			return "", nil, err
		}
		c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 512, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_READ_ONLY}}
		if err = unix.IoctlLoopConfigure(int(f.Fd()), &c); err == nil {
			return device, func() { _ = f.Close() }, nil // nothing was written
		}
		f.Close() // likewise
		if !errors.Is(err, unix.EBUSY) {
			return "", nil, fmt.Errorf("set up %s: %w", device, err)
		}
	}
	return "", nil, errors.New("others take every one that is free")
}

// spoil makes a file of the disk unreadable from a block on, and what lies behind it.
func (d *badDisk) spoil(t *testing.T, name string, from int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(d.whole, b[from:][:diskBlock])
	if at < 0 || at%diskBlock != 0 {
		t.Fatalf("byte %d of %s is at %d of the disk", from, name, at)
	}
	if err := os.Truncate(d.image, int64(at)); err != nil {
		t.Fatal(err)
	}
	d.forget(t, name)
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b[:1], int64(from)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("byte %d of %s, which the disk does not have, reads with %v", from, name, err)
	}
	if _, err := f.ReadAt(b[:1], int64(max(from-diskBlock, 0))); err != nil && from > 0 {
		t.Fatal(err)
	}
}

// forget drops what the system has of a file in memory.
func (d *badDisk) forget(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(filepath.Join(d.dir, name))
	if err == nil {
		err = errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mend makes all of it readable again.
func (d *badDisk) mend(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(d.image, d.whole, 0o666); err != nil {
		t.Fatal(err)
	}
}

// onBadDisk moves an input of a job to a disk that can fail.
func onBadDisk(t *testing.T, j *job, x string) *badDisk {
	t.Helper()
	from := t.TempDir()
	b, err := os.ReadFile(j.input(x))
	if err == nil {
		err = os.WriteFile(filepath.Join(from, x+".npy"), b, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := newBadDisk(t, from)
	for i, arg := range j.args {
		if arg == "--"+x {
			j.args[i+1] = filepath.Join(d.dir, x+".npy")
		}
	}
	return d
}

// A disk that does not deliver a block of an input: reading it is an error, and a fault
// where rows of heads alternate and the mapping is read. That says nothing about the input:
// what was computed is kept, and is gone on with when the disk is well.
func TestReadError(t *testing.T) {
	notShort(t)
	for _, layout := range []string{"bhnd", "bnhd"} {
		for _, x := range []string{"q", "k", "v"} {
			if !*long && x != "v" {
				continue
			}
			t.Run(layout+" "+x, func(t *testing.T) {
				j, dir := faultJob(t, layout), t.TempDir()
				want, _ := j.whole(t)
				d := onBadDisk(t, j, x)
				size := len(readAll(t, j.input(x)))
				d.spoil(t, x+".npy", size*3/4/diskBlock*diskBlock)
				e := launch(t, j.bin, j.run(dir, "--checkpoint-every", "1ms")...).ends(exitOther)
				t.Log(e.Message)
				says(t, e, j.input(x))
				if strings.Contains(e.Message, "changed") {
					t.Errorf("of a disk that fails it says %q", e.Message)
				}
				// It fails in the same way as long as the disk does.
				says(t, launch(t, j.bin, j.run(dir)...).ends(exitOther), j.input(x))
				d.mend(t)
				if e := j.finish(t, dir, want); layout == "bhnd" && e.Resumed == 0 {
					t.Error("heads are one after the other, and the first ones could be read: nothing was resumed")
				}
			})
		}
	}
}

// Where it is a file's beginning that can't be read, no command takes that for a bad file,
// and nothing that an earlier run left is touched.
func TestReadErrorInHeader(t *testing.T) {
	notShort(t)
	j, dir := faultJob(t, "bhnd"), t.TempDir()
	want, _ := j.whole(t)
	d := onBadDisk(t, j, "k")
	j.stopped(t, dir, 0.3)
	left := contents(t, dir)
	d.spoil(t, "k.npy", 0)
	e := launch(t, j.bin, j.run(dir)...).ends(exitOther)
	t.Log(e.Message)
	says(t, e, j.input("k"), "disk")
	sameContents(t, "refused", contents(t, dir), left)
	said, code := failure(t, j.bin, "inspect", j.input("k"))
	t.Log(said)
	if code != exitOther || !strings.Contains(said, j.input("k")) {
		t.Errorf("inspect exits with %d and says %q", code, said)
	}
	d.mend(t)
	if e := j.finish(t, dir, want); e.Resumed < 0.3 {
		t.Errorf("it resumed %v", e.Resumed)
	}
}

// verify can't tell without all keys: it has found no difference.
func TestReadErrorInVerify(t *testing.T) {
	notShort(t)
	j, dir := faultJob(t, "bhnd"), t.TempDir()
	launch(t, j.bin, j.run(dir)...).ends(0)
	d := onBadDisk(t, j, "k")
	d.spoil(t, "k.npy", 0x80000)
	args := []string{"verify", "--o", filepath.Join(dir, j.out), "--rows", "0", "--layout", "bhnd"}
	for _, x := range []string{"q", "k", "v"} {
		args = append(args, "--"+x, j.input(x))
	}
	said, code := failure(t, j.bin, args...)
	t.Log(said)
	if code != exitOther || !strings.Contains(said, j.input("k")) || !strings.Contains(said, "disk") {
		t.Errorf("it exits with %d and says %q", code, said)
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// failure is what a command says that fails, and its exit code.
func failure(t *testing.T, bin string, args ...string) (said string, code int) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(bin, args...)
	cmd.Stderr = &stderr
	_ = cmd.Run() // the exit code is looked at
	sentence(t, stderr.String())
	return stderr.String(), cmd.ProcessState.ExitCode()
}
