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

// allowedCPUs are those that the process may use.
func allowedCPUs() (list []int) {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	return list
}

// stayOn keeps the calling thread on one CPU. Where that can't be, it is as well
// off as any thread.
func stayOn(cpu int) {
	var set unix.CPUSet
	set.Set(cpu)
	_ = unix.SchedSetaffinity(0, &set)
}
