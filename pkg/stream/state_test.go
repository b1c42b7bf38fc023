package stream

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
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
	if err := s.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file is still there: %v", err)
	}
}
