//go:build cuda

package gpu

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// Locking and unlocking a window takes longer than copying it twice, and what is
// submitted to the GPU meanwhile waits for the driver. So rows that are read once or
// twice are better off in the ring, and windows are small: 16 MiB are locked in little more
// than a millisecond, for which what is submitted already keeps the GPU busy.
const (
	mostWindow  = 16 << 20
	leastWindow = 4 << 20
	ringPasses  = 2
)

// windows are the parts of mappings that are page-locked, so that the GPU fetches
// rows from the page cache itself. They are locked beside the run, when they have been
// used some times; the least recently used one goes when more than a limit would be
// locked. All methods but register belong to one thread.
type windows struct {
	ctx   *driver.Context
	limit int64 // bytes
	first bool  // lock before the first use, and wait
	size  int64 // of a window
	held  int64
	most  atomic.Int64 // of held
	tick  int64
	table map[windowID]*window
	jobs  chan *window
}

type windowID struct {
	mapping uintptr // address
	index   int64
}

type window struct {
	mem   []byte
	came  int64         // bytes of it that were fetched
	ready chan struct{} // nil if nobody has asked to lock it
	err   error         // why it is not locked; set before ready
	used  int64         // tick
	users atomic.Int32
}

func newWindows(ctx *driver.Context, opt Options) *windows {
	w := &windows{ctx: ctx, limit: opt.HostMemory, first: opt.LockFirst, table: make(map[windowID]*window), jobs: make(chan *window, 4)}
	w.size = mostWindow
	for w.size > leastWindow && w.size > w.limit/8 {
		w.size /= 2
	}
	return w
}

// register is the loop of the thread that locks windows. It rests as long as it has
// worked, so that others get to the driver.
func (w *windows) register() {
	for x := range w.jobs {
		began := time.Now()
		if resident(x.mem) {
			x.err = lock(w.ctx, x.mem)
		} else {
			x.err = errNotCached
		}
		close(x.ready)
		if !w.first {
			time.Sleep(time.Since(began))
		}
	}
}

// hold keeps all windows that rows lie in locked and returns them, or false where they
// are not locked. The rows are about to be fetched, one way or the other.
func (w *windows) hold(r attention.Rows) (list []*window, ok bool) {
	if r.Mapping == nil || w.limit < w.size || r.N == 0 {
		return nil, false
	}
	lo, hi := place(r)
	ok = true
	n := int64(r.N) * int64(r.RowBytes())
	for i := lo / w.size; i <= (hi-1)/w.size; i++ {
		x := w.at(r.Mapping, i)
		x.came += n * (min(hi, (i+1)*w.size) - max(lo, i*w.size)) / (hi - lo)
		if ok = w.locked(x) && ok; ok {
			x.users.Add(1)
			list = append(list, x)
		}
	}
	if !ok {
		release(list)
		return nil, false
	}
	return list, true
}

// locked reports whether a window is locked, and begins to lock it if it is time.
func (w *windows) locked(x *window) bool {
	w.tick++
	x.used = w.tick
	if x.ready == nil {
		n := int64(len(x.mem))
		if !w.first && (x.came <= ringPasses*n || len(w.jobs) == cap(w.jobs)) || !w.makeRoom(n) {
			return false
		}
		x.ready = make(chan struct{})
		w.held += n
		w.most.Store(max(w.most.Load(), w.held))
		w.jobs <- x
	}
	if w.first {
		<-x.ready
	}
	select {
	case <-x.ready:
		return x.err == nil
	default:
		return false
	}
}

// place is where rows lie in their mapping.
func place(r attention.Rows) (lo, hi int64) {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(r.Data))) - uintptr(unsafe.Pointer(unsafe.SliceData(r.Mapping)))
	return int64(at), int64(at) + int64(len(r.Data))
}

// at returns a window of a mapping.
func (w *windows) at(mapping []byte, index int64) *window {
	id := windowID{uintptr(unsafe.Pointer(unsafe.SliceData(mapping))), index}
	x := w.table[id]
	if x == nil {
		x = &window{mem: mapping[index*w.size : min((index+1)*w.size, int64(len(mapping)))]}
		w.table[id] = x
	}
	return x
}

// makeRoom lets go of windows that nobody uses until n more bytes may be locked.
func (w *windows) makeRoom(n int64) bool {
	for w.held+n > w.limit {
		var oldest *window
		for _, x := range w.table {
			if x.ready != nil && x.users.Load() == 0 && (oldest == nil || x.used < oldest.used) {
				oldest = x
			}
		}
		if oldest == nil || w.drop(oldest) != nil {
			return false
		}
	}
	return true
}

// drop unlocks a window.
func (w *windows) drop(x *window) error {
	<-x.ready
	x.ready, x.came = nil, 0
	w.held -= int64(len(x.mem))
	if x.err != nil {
		return nil
	}
	return unlock(w.ctx, x.mem)
}

// dropAll unlocks everything.
func (w *windows) dropAll() (first error) {
	for _, x := range w.table {
		if x.ready == nil {
			continue
		}
		if err := w.drop(x); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// release says that copies from windows are done. Any thread may.
func release(list []*window) {
	for _, x := range list {
		x.users.Add(-1)
	}
}

// copyIn submits the copies of a piece, whose windows are held, to a buffer.
func (w *windows) copyIn(s driver.Stream, buffer driver.Ptr, p piece) error {
	r := p.rows
	lo, _ := place(r)
	width, stride, n := int64(r.RowBytes()), int64(r.Stride), r.N
	if r.Contiguous() {
		width, stride, n = width*int64(n), 0, 1
	}
	return runs(lo, stride, width, n, w.size, func(row, rows int, from, bytes, skipped int64) error {
		to := buffer + driver.Ptr(p.at+int64(row)*width+skipped)
		if rows == 1 {
			return s.CopyIn(to, r.Mapping[from:from+bytes])
		}
		return s.CopyIn2D(to, int(bytes), r.Mapping[from:], int(stride), driver.Rows{N: rows, Width: int(bytes)})
	})
}

// locks are the windows that any device of this process has locked: the driver locks
// memory for all of them, and once only.
var locks = struct {
	sync.Mutex
	holders map[uintptr]*lockHolders // by address
}{holders: make(map[uintptr]*lockHolders)}

type lockHolders struct {
	n    int
	done sync.Once
	err  error
}

// lock locks memory unless that was done.
func lock(ctx *driver.Context, mem []byte) error {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	locks.Lock()
	h := locks.holders[at]
	if h == nil {
		h = new(lockHolders)
		locks.holders[at] = h
	}
	h.n++
	locks.Unlock()
	h.done.Do(func() { h.err = ctx.RegisterHost(mem, true) })
	if h.err != nil {
		locks.Lock()
		defer locks.Unlock()
		if h.n--; h.n == 0 {
			delete(locks.holders, at)
		}
	}
	return h.err
}

// unlock undoes a lock that succeeded; the last one releases the memory.
func unlock(ctx *driver.Context, mem []byte) error {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	locks.Lock()
	defer locks.Unlock()
	h := locks.holders[at]
	if h.n--; h.n > 0 {
		return nil
	}
	delete(locks.holders, at)
	return ctx.UnregisterHost(mem)
}
