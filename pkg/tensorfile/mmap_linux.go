package tensorfile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func adviseWillNeed(b []byte) error   { return unix.Madvise(b, unix.MADV_WILLNEED) }
func adviseDontNeed(b []byte) error   { return unix.Madvise(b, unix.MADV_DONTNEED) }
func adviseSequential(b []byte) error { return unix.Madvise(b, unix.MADV_SEQUENTIAL) }

// cachedBytes counts the pages of n bytes of f from off on that are in the page
// cache. Before Linux 6.5 nobody can tell cheaply: none then.
func cachedBytes(f *os.File, off, n int64) int64 {
	var s unix.Cachestat_t
	if n <= 0 || unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &s, 0) != nil {
		return 0
	}
	return int64(s.Cache) * int64(os.Getpagesize())
}

// fallocate is a variable for tests, which have no file system without it.
var fallocate = unix.Fallocate

// allocate reserves the first size bytes of f, and makes it that long. On file
// systems that can't it returns errNoAllocate.
func allocate(f *os.File, size int64) error {
	// In steps: an interrupted call is begun again, and on some file systems
	// a call takes as long as writing would.
	const step = 1 << 30
	for at := int64(0); at < size; {
		n := min(step, size-at)
		err := fallocate(int(f.Fd()), 0, at, n)
		switch {
		case err == nil:
			at += n
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return errNoAllocate
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
	return nil
}

// isNoSpace: the disk or the user's part of it is full.
func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// freeBytes is what the user may still allocate where f is; -1 if unknown.
func freeBytes(f *os.File) int64 {
	var s unix.Statfs_t
	// Some network file systems report zeros for all they don't know.
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil || s.Blocks == 0 {
		return -1
	}
	return int64(s.Bavail) * int64(s.Bsize)
}

// lockFile makes f this process's own until it is closed.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	// lockHolder may have it for an instant.
	for tries := 0; errors.Is(err, unix.EWOULDBLOCK) && tries < 5; tries++ {
		time.Sleep(10 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	// Some network file systems have no locks. The lock only guards against
	// the mistake of starting a run twice, so that they can be lived without.
	return nil
}

// lockHolder says whether a process has locked f with lockFile, and which one; 0 if the
// system doesn't say, as of one on another machine or in another container.
func lockHolder(f *os.File) (pid int, held bool) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, false // closing f gives the lock back
	}
	var s unix.Stat_t
	locks, err := os.Open("/proc/locks")
	if err != nil || unix.Fstat(int(f.Fd()), &s) != nil {
		return 0, true
	}
	defer locks.Close()
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(s.Dev), unix.Minor(s.Dev), s.Ino)
	for line := bufio.NewScanner(locks); line.Scan(); {
		var number, kind, strength, access, file string
		if _, err := fmt.Sscan(line.Text(), &number, &kind, &strength, &access, &pid, &file); err == nil && kind == "FLOCK" && access == "WRITE" && file == want {
			return max(pid, 0), true
		}
	}
	return 0, true
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	// Some file systems don't sync directories, and need not.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
