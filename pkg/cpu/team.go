package cpu

import (
	"runtime"
	"sync"
)

// team is the threads that apply. They live as long as the device's slots, each
// on a CPU of its own where there are as many CPUs as threads: a system that
// wakes a thread may leave two of them on one CPU for milliseconds, which is the
// length of a batch. With fewer threads than CPUs it is better placed to choose.
type team struct {
	work []chan func() // one for each thread
	wg   sync.WaitGroup
}

func newTeam(threads int) *team {
	t := &team{work: make([]chan func(), threads)}
	cpus := allowedCPUs()
	for i := range t.work {
		t.work[i] = make(chan func())
		t.wg.Go(func() {
			if len(cpus) == threads && threads > 1 {
				// The thread ends with this goroutine, and its place with it.
				runtime.LockOSThread()
				stayOn(cpus[i])
			}
			for f := range t.work[i] {
				f()
			}
		})
	}
	return t
}

// run calls f on the first n threads and returns when all are done. One alone is
// whoever calls: there is nobody to wake.
func (t *team) run(n int, f func(thread int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	wg.Add(n)
	for i, work := range t.work[:n] {
		work <- func() { defer wg.Done(); f(i) }
	}
	wg.Wait()
}

func (t *team) close() {
	for _, work := range t.work {
		close(work)
	}
	t.wg.Wait()
}

// apart calls f on n goroutines, wherever they run.
func apart(n int, f func(thread int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
