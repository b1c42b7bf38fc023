package tensorfile

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// Identity is what a journal remembers of an input, to notice that a tensor is
// not the one that a run began with. All fields are comparable with ==.
//
// It has no device and inode numbers: a network file system that is mounted again may
// number its files otherwise, and a copy with its times kept is as good.
type Identity struct {
	Path   string // absolute, links followed
	Key    string // safetensors
	Size   int64  // of the file
	MTime  int64  // nanoseconds since 1970
	Offset int64  // of the first element
	Head   uint32 // CRC-32C of the first 64 KiB of the file, or of all that it has
}

const identityHead = 64 << 10

// Identity describes the file that is open, whatever has its name by now. It is an
// ErrChanged if that was written to since it was opened.
func (t *Tensor) Identity() (Identity, error) {
	abs, err := filepath.Abs(t.in.path)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", t.in.path, err)
	}
	id := Identity{Path: canonical(abs), Key: t.info.Key, Size: t.opened.Size(), MTime: t.opened.ModTime().UnixNano(), Offset: t.info.Offset}
	head := make([]byte, min(id.Size, identityHead))
	n, readErr := t.in.file.ReadAt(head, 0)
	// Asked after reading: what was read is what was there when it was opened.
	fi, err := t.in.file.Stat()
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", t.in.path, err)
	}
	if err := t.compare(fi); err != nil {
		return Identity{}, err
	}
	if n < len(head) {
		return Identity{}, fmt.Errorf("identify %s: %w", t.in.path, withoutPath(readErr))
	}
	id.Head = crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli))
	return id, nil
}

// CheckUnchanged returns an ErrChanged if the path names another file now, or
// if the file's size or modification time is not what it was at Open.
func (t *Tensor) CheckUnchanged() error {
	fi, err := os.Stat(t.in.path)
	if err != nil {
		return err
	}
	return t.compare(fi)
}

func (t *Tensor) compare(fi os.FileInfo) error {
	switch {
	case fi.Size() != t.opened.Size():
		return fmt.Errorf("%w: %s: %d bytes, had %d when it was opened", ErrChanged, t.in.path, fi.Size(), t.opened.Size())
	case !os.SameFile(fi, t.opened):
		return fmt.Errorf("%w: %s: replaced by another file", ErrChanged, t.in.path)
	case !fi.ModTime().Equal(t.opened.ModTime()):
		return fmt.Errorf("%w: %s: written to since it was opened", ErrChanged, t.in.path)
	}
	return nil
}
