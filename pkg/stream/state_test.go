package stream

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// S4: whatever is written as the next version, the version before it is whole.
func TestStateStorePlaces(t *testing.T) {
	const chunks, size = 5, 64
	path := filepath.Join(t.TempDir(), "state")
	s := newStateStore(osDisk{}, path, 2*chunks, size)
	s.settle(nil)
	if err := s.reserve(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 2*chunks*size {
		t.Fatalf("%v, %v: want %d bytes reserved", info.Size(), err, 2*chunks*size)
	}
	content := func(x, version int) []byte { return bytes.Repeat([]byte{byte(16*x + version)}, size) }
	read := func(r io.ReaderAt) []byte {
		b := make([]byte, size)
		if _, err := r.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for version := 1; version < 6; version++ {
		for x := range chunks {
			before := s.current(int64(x))
			to, _, err := s.next(int64(x), version)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := to.WriteAt(content(x, version), 0); err != nil {
				t.Fatal(err)
			}
			if version > 1 && !bytes.Equal(read(before), content(x, version-1)) {
				t.Fatalf("version %d of chunk %d overwrites the one before it", version, x)
			}
		}
		s.commit()
		for x := range chunks {
			if !bytes.Equal(read(s.current(int64(x))), content(x, version)) {
				t.Fatalf("chunk %d does not have version %d", x, version)
			}
		}
	}
	// What others change is not believed, in whatever parts it is read.
	for i, parts := range [][]int{{size}, {1, size - 1}, {size / 2, size / 4, size / 4}} {
		if _, err := s.file.WriteAt([]byte{99}, s.of(int64(i)).latest.place*size+int64(7*i)); err != nil {
			t.Fatal(err)
		}
		r, at, err := s.current(int64(i)), size, error(nil)
		for _, n := range parts { // the last comes first
			at -= n
			err = attention.ReadFull(r, make([]byte, n), int64(at))
		}
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("a damaged state is read without an error that names the file: %v", err)
		}
	}
	if err := s.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file is still there: %v", err)
	}
}

// States of any number of devices go, and nothing else.
func TestRemoveStates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.state")
	for _, name := range []string{"o.state", "o.state.0", "o.state.12", "o.state.md", "o.statement", "o.state.", "p.state"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := RemoveStates(path); err != nil {
			t.Fatal(err)
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range list {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != "o.state. o.state.md o.statement p.state" {
		t.Errorf("left: %s", got)
	}
}
