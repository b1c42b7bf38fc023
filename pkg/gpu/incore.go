//go:build cuda

package gpu

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
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

// resident reports whether nearly all of a mapping is in the page cache. Locking it
// would else read it page by page.
func resident(b []byte) bool {
	page := os.Getpagesize()
	in, err := inCore(b, page)
	return err != nil || in >= len(b)/page*15/16
}

// cached reports whether the first and the last page of rows of a mapping are in the page
// cache, and so most likely the others.
func cached(r attention.Rows) bool {
	page := os.Getpagesize()
	lo, hi := place(r)
	for _, at := range [2]int64{lo, hi - 1} {
		at -= at % int64(page)
		if in, err := inCore(r.Mapping[at:at+1], page); err != nil || in == 0 {
			return false
		}
	}
	return true
}
