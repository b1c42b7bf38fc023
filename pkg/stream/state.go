package stream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// stateStore keeps the states of query chunks that had to leave their slot
// before their rows were complete, for the head group in work.
//
// Query chunk x owns two places, 2x and 2x+1, of slotBytes each. A write-back
// goes to the place that does not hold the committed version, so that the
// committed one stays whole until the new one is. The file is sparse where
// nothing was written.
type stateStore struct {
	file      *os.File
	slotBytes int64
	chunks    []stateVersion
	group     int
}

// stateVersion says where the latest state of a query chunk is.
type stateVersion struct {
	place int8  // 0 or 1; meaningless while pairs is 0
	pairs int32 // pairs in it: the chunk's position in the schedule
}

// openStateStore makes the file, of its full size, with its space reserved.
func openStateStore(path string, chunks int, slotBytes int64) (*stateStore, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("create the state store: %w", err)
	}
	s := &stateStore{file: f, slotBytes: slotBytes, chunks: make([]stateVersion, chunks)}
	if err := reserveSpace(f, 2*int64(chunks)*slotBytes); err != nil {
		return nil, errors.Join(fmt.Errorf("reserve %d bytes for states in %s: %w", 2*int64(chunks)*slotBytes, path, err), s.remove())
	}
	return s, nil
}

// enter begins a head group: no chunk of it has a state yet.
func (s *stateStore) enter(group int) {
	if group != s.group {
		s.group = group
		clear(s.chunks)
	}
}

// next returns where the state of chunk x, with that many pairs in it, is to be
// written. It becomes the chunk's current version at once: readers wait for the
// write's event (S3).
func (s *stateStore) next(x, pairs int) io.WriterAt {
	v := &s.chunks[x]
	v.place ^= 1
	v.pairs = int32(pairs)
	return io.NewOffsetWriter(s.file, s.offset(x))
}

func (s *stateStore) offset(x int) int64 {
	return (2*int64(x) + int64(s.chunks[x].place)) * s.slotBytes
}

// current returns the latest state of chunk x.
func (s *stateStore) current(x int) io.ReaderAt {
	return io.NewSectionReader(s.file, s.offset(x), s.slotBytes)
}

// remove closes and deletes the file, if there is one.
func (s *stateStore) remove() error {
	if s == nil {
		return nil
	}
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

// IsNoSpace says whether err means that a disk or a quota is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
