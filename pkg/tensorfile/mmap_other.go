//go:build !linux

package tensorfile

import (
	"errors"
	"os"
	"syscall"
)

// The runs that matter are on Linux. Elsewhere there are no hints and no
// locks, and space is reserved by writing zeros.

func adviseWillNeed([]byte) error   { return nil }
func adviseDontNeed([]byte) error   { return nil }
func adviseSequential([]byte) error { return nil }

func allocate(*os.File, int64) error { return errNoAllocate }

func isNoSpace(err error) bool { return errors.Is(err, syscall.ENOSPC) }

func freeBytes(*os.File) int64 { return -1 }

func lockFile(*os.File) error { return nil }

func lockHolder(*os.File) (pid int, held bool) { return 0, false }

func syncDir(string) error { return nil }

func cachedBytes(*os.File, int64, int64) int64 { return 0 }
