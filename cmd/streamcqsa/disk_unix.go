//go:build unix

package main

import "golang.org/x/sys/unix"

// freeDisk is the space on dir's file system that this user may take, in bytes;
// 0 if it can't be told.
func freeDisk(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
