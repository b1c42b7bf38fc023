package tensorfile

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// To open a pipe would wait for a writer.
func TestOpenPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe.npy")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Skip("no pipes here: ", err)
	}
	if _, err := Open(Spec{Path: path}); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}
