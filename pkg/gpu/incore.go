//go:build cuda

package gpu

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

var errNotCached = errors.New("not in the page cache")

// inCore counts the pages of a mapping that are in memory.
func inCore(b []byte, page int) (n int, err error) {
	in := make([]byte, (len(b)+page-1)/page)
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(unsafe.Pointer(unsafe.SliceData(in))))
	if e != 0 {
		return 0, e
	}
	for _, x := range in {
		n += int(x & 1)
	}
	return n, nil
}
