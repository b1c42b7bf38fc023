package stream

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserveSpace gives the file its size and, where the file system can, its disk
// blocks, so that a full disk is an error now.
func reserveSpace(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR): // tmpfs gives up at any signal, the runtime's own too
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return f.Truncate(size)
		}
		return err
	}
}
