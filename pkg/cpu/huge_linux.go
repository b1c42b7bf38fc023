package cpu

import "golang.org/x/sys/unix"

// preferHuge asks for huge pages, which a system may do without. Small ones cost
// a fifth of the rate at which K and V can be read, and a fault for every 4 KiB
// of a slot when it is filled first.
func preferHuge(b []byte) {
	if len(b) > 0 {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	}
}
