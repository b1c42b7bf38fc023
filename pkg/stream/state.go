package stream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// stateStore keeps states of query chunks in the places of a file: of chunks that had
// to leave their slot before their rows were complete, and, since the last checkpoint,
// of all that are in work.
//
// A state that is written gets a place of its own. The one before it keeps its place
// until a checkpoint no longer needs it, so that what the journal promises is whole at
// every instant (S4).
type stateStore struct {
	disk      disk
	file      file
	path      string
	places    int
	slotBytes int64
	reserved  bool
	named     bool               // its name is durable
	free      []uint32           // places that nobody needs
	written   map[uint32]*summer // by place: what is there
	chunks    map[int64]twoState // by chunkID
	touched   map[int64]bool     // whose places change at the next checkpoint
}

// version is a state in a place.
type version struct {
	place int64 // -1: none
	pairs int   // in it: the chunk's position in the schedule
}

// twoState is the latest state of a chunk, and the one that the last checkpoint knows.
// They may be the same.
type twoState struct{ latest, durable version }

var noVersion = version{place: -1}

// errNoPlace: only a checkpoint can free places.
var errNoPlace = errors.New("no place for a state is free")

// newStateStore is a store of so many places, of which no file is there yet.
func newStateStore(d disk, path string, places int, slotBytes int64) *stateStore {
	return &stateStore{disk: d, path: path, places: places, slotBytes: slotBytes, written: make(map[uint32]*summer), chunks: make(map[int64]twoState), touched: make(map[int64]bool)}
}

// reopen opens the file of an earlier process, if it is there.
func (s *stateStore) reopen() error {
	f, err := s.disk.open(s.path, os.O_RDWR)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the state store: %w", err)
	}
	s.file = f
	return nil
}

// reserve makes the file, if need be, with the space of all places: a full disk is an
// error now.
func (s *stateStore) reserve() (err error) {
	if s.reserved {
		return nil
	}
	if s.file == nil {
		if s.file, err = s.disk.open(s.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC); err != nil {
			return fmt.Errorf("create the state store: %w", err)
		}
	}
	if err := s.file.Reserve(int64(s.places) * s.slotBytes); err != nil {
		return fmt.Errorf("reserve %d bytes for states in %s: %w", int64(s.places)*s.slotBytes, s.path, err)
	}
	s.reserved = true
	return nil
}

// size is the space that is reserved.
func (s *stateStore) size() int64 {
	if !s.reserved {
		return 0
	}
	return int64(s.places) * s.slotBytes
}

// settle says which states there are, after which all other places are free. They get
// places beyond the usual number: where results were damaged, chunks that come before
// theirs are in work again, and need as many as ever.
func (s *stateStore) settle(found map[int64]version) {
	taken := make(map[uint32]bool)
	s.places += len(found)
	for id, v := range found {
		s.chunks[id] = twoState{latest: v, durable: v}
		taken[uint32(v.place)] = true
		s.places = max(s.places, int(v.place)+1)
	}
	for p := s.places - 1; p >= 0; p-- {
		if !taken[uint32(p)] {
			s.free = append(s.free, uint32(p))
		}
	}
}

// next returns where the state of a chunk, with that many pairs in it, is to be
// written. It becomes the chunk's latest at once: readers wait for the write's event (S3).
//
// The place of an older one that no checkpoint knows is free from now on. What is
// written there next is submitted after this write, which comes after the load that read
// it.
func (s *stateStore) next(id int64, pairs int) (*summer, version, error) {
	if err := s.reserve(); err != nil {
		return nil, noVersion, err
	}
	if len(s.free) == 0 {
		return nil, noVersion, errNoPlace
	}
	place := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	c := s.of(id)
	s.supersede(c)
	c.latest = version{int64(place), pairs}
	s.chunks[id], s.touched[id] = c, true
	to := &summer{to: io.NewOffsetWriter(s.file, int64(place)*s.slotBytes)}
	s.written[place] = to
	return to, c.latest, nil
}

func (s *stateStore) of(id int64) twoState {
	if c, ok := s.chunks[id]; ok {
		return c
	}
	return twoState{noVersion, noVersion}
}

// supersede frees the place of the latest state, unless a checkpoint knows it.
func (s *stateStore) supersede(c twoState) {
	if c.latest.place >= 0 && c.latest.place != c.durable.place {
		s.free = append(s.free, uint32(c.latest.place))
	}
}

// drop says that a chunk needs no state any more: its results are on their way.
func (s *stateStore) drop(id int64) {
	if c, ok := s.chunks[id]; ok {
		s.supersede(c)
		c.latest = noVersion
		s.chunks[id], s.touched[id] = c, true
	}
}

// commit says that all that was told to the journal is on the disk.
func (s *stateStore) commit() {
	for id := range s.touched {
		c := s.chunks[id]
		if c.durable.place >= 0 && c.durable.place != c.latest.place {
			s.free = append(s.free, uint32(c.durable.place))
		}
		if c.durable = c.latest; c.latest.place < 0 {
			delete(s.chunks, id)
		} else {
			s.chunks[id] = c
		}
	}
	clear(s.touched)
}

// knows tells the store what an earlier process has written to a place.
func (s *stateStore) knows(r record) {
	s.written[r.place] = &summer{parts: []summed{{0, r.bytes, r.sum}}}
}

// current returns the latest state of a chunk, to be read once.
func (s *stateStore) current(id int64) io.ReaderAt {
	place := s.of(id).latest.place
	return newChecker(s.at(place), s.path, s.written[uint32(place)])
}

func (s *stateStore) at(place int64) io.ReaderAt {
	return io.NewSectionReader(s.file, place*s.slotBytes, s.slotBytes)
}

// rewrite writes a state again, as it is.
func (s *stateStore) rewrite(place, n int64) error {
	b := make([]byte, n)
	err := attention.ReadFull(s.at(place), b, 0)
	if err == nil {
		_, err = s.file.WriteAt(b, place*s.slotBytes)
	}
	if err != nil {
		return fmt.Errorf("write again a state in %s: %w", s.path, err)
	}
	return nil
}

// sync makes all states durable, and the name of their file.
func (s *stateStore) sync() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Sync()
	if err == nil && !s.named {
		err = s.disk.syncDir(s.path)
		s.named = err == nil
	}
	if err != nil {
		return fmt.Errorf("sync the states in %s: %w", s.path, err)
	}
	return nil
}

func (s *stateStore) close() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil {
		return fmt.Errorf("close the states in %s: %w", s.path, err)
	}
	return nil
}

// remove closes and deletes the file, if there is one.
func (s *stateStore) remove() error {
	err := s.close()
	if e := s.disk.remove(s.path); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("remove the states: %w", e))
	}
	return err
}

// RemoveStates removes the states that runs with that StatePath kept, whatever the number
// of their devices: the output is given up.
func RemoveStates(path string) error {
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the states: %w", err)
	}
	var errs []error
	for _, e := range list {
		shard, one := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if one {
			_, err := strconv.ParseUint(shard, 10, 16)
			one = err == nil
		}
		if !one && e.Name() != filepath.Base(path) {
			continue
		}
		if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the states: %w", err))
		}
	}
	return errors.Join(errs...)
}
