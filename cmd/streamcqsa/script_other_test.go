//go:build !linux

package main

import "github.com/rogpeppe/go-internal/testscript"

func smallDisks() bool { return false }

func scriptSmallDisk(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Fatalf("no small disks on this system")
}
