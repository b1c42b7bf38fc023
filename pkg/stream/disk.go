package stream

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// disk is what the state store and the journal want of a file system: little, so that
// tests can have one that fails at the i-th operation, and one that loses its power.
type disk interface {
	open(name string, flag int) (file, error)
	rename(from, to string) error
	remove(name string) error
	syncDir(of string) error // makes the name of a file durable
	rewrite(mapped []byte)   // writes bytes of a mapping again, as they are
}

// file is an open file of a disk.
type file interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Reserve(size int64) error // gives it its size, and its space where that is possible
	Sync() error
	Close() error
}

// osDisk is the real one.
type osDisk struct{}

type osFile struct{ *os.File }

func (osDisk) open(name string, flag int) (file, error) {
	f, err := os.OpenFile(name, flag, 0o666)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) remove(name string) error     { return os.Remove(name) }

func (osDisk) syncDir(of string) error {
	d, err := os.Open(filepath.Dir(of))
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems don't sync directories, and need not.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

func (osDisk) rewrite(mapped []byte) {
	var buf [4096]byte
	for len(mapped) > 0 {
		n := copy(buf[:], mapped)
		copy(mapped, buf[:n])
		mapped = mapped[n:]
	}
}

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f osFile) Reserve(size int64) error { return reserveSpace(f.File, size) }

// IsNoSpace says whether err means that a disk or a quota is full, or that a file is
// larger than the process or the file system may have one.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
