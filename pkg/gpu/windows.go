//go:build cuda

package gpu

import (
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

const (
	mostWindow  = 256 << 20
	leastWindow = 4 << 20
	registrars  = 2 // threads that register: the kernel pins some 30 GB/s on one
)

// windows are the parts of mappings that are page-locked, so that the GPU fetches
// rows from the page cache itself. They are made when they are first needed, and the
// one after next to them ahead of that; the least recently used one goes when more
// than a limit would be locked. All methods but release belong to one thread.
type windows struct {
	ctx   *driver.Context
	limit int64 // bytes
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
	ready chan struct{}
	err   error // why it is not locked; set before ready
	used  int64 // tick
	users atomic.Int32
}

func newWindows(ctx *driver.Context, limit int64) *windows {
	w := &windows{ctx: ctx, limit: limit, table: make(map[windowID]*window), jobs: make(chan *window, 64)}
	w.size = mostWindow
	for w.size > leastWindow && w.size > limit/8 { // K and V, the next of both, and what is under way
		w.size /= 2
	}
	return w
}

// register is the loop of a thread that locks windows.
func (w *windows) register() {
	for x := range w.jobs {
		if resident(x.mem) {
			x.err = lock(w.ctx, x.mem)
		} else {
			x.err = errNotCached
		}
		close(x.ready)
	}
}

// hold locks all windows that rows lie in and returns them, or false where that can't
// be done.
func (w *windows) hold(r attention.Rows) (list []*window, ok bool) {
	if r.Mapping == nil || w.limit < w.size || r.N == 0 {
		return nil, false
	}
	lo, hi := place(r)
	first, last := lo/w.size, (hi-1)/w.size
	for i := first; i <= last; i++ {
		x := w.get(r.Mapping, i)
		if x == nil {
			release(list)
			return nil, false
		}
		x.users.Add(1)
		list = append(list, x)
	}
	w.get(r.Mapping, last+1) // by the time it is needed it will be ready
	for _, x := range list {
		if <-x.ready; x.err != nil {
			release(list)
			return nil, false
		}
	}
	return list, true
}

// place is where rows lie in their mapping.
func place(r attention.Rows) (lo, hi int64) {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(r.Data))) - uintptr(unsafe.Pointer(unsafe.SliceData(r.Mapping)))
	return int64(at), int64(at) + int64(len(r.Data))
}

// get returns a window, made if need be; nil if there is no such part of the mapping
// or no room.
func (w *windows) get(mapping []byte, index int64) *window {
	id := windowID{uintptr(unsafe.Pointer(unsafe.SliceData(mapping))), index}
	x := w.table[id]
	if x == nil {
		lo := index * w.size
		if lo >= int64(len(mapping)) {
			return nil
		}
		x = &window{mem: mapping[lo:min(lo+w.size, int64(len(mapping)))], ready: make(chan struct{})}
		if !w.makeRoom(int64(len(x.mem))) {
			return nil
		}
		w.table[id] = x
		w.held += int64(len(x.mem))
		w.most.Store(max(w.most.Load(), w.held))
		w.jobs <- x
	}
	w.tick++
	x.used = w.tick
	return x
}

// makeRoom lets go of windows that nobody uses until n more bytes may be locked.
func (w *windows) makeRoom(n int64) bool {
	for w.held+n > w.limit {
		var oldest windowID
		var found *window
		for id, x := range w.table {
			if x.users.Load() == 0 && (found == nil || x.used < found.used) {
				oldest, found = id, x
			}
		}
		if found == nil {
			return false
		}
		delete(w.table, oldest)
		w.held -= int64(len(found.mem))
		if err := w.drop(found); err != nil {
			return false
		}
	}
	return true
}

func (w *windows) drop(x *window) error {
	if <-x.ready; x.err != nil {
		return nil
	}
	return unlock(w.ctx, x.mem)
}

// dropAll lets go of everything.
func (w *windows) dropAll() (first error) {
	for id, x := range w.table {
		if err := w.drop(x); err != nil && first == nil {
			first = err
		}
		delete(w.table, id)
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

// resident reports whether nearly all of a mapping is in the page cache. Locking it
// would else read it page by page.
func resident(b []byte) bool {
	page := os.Getpagesize()
	in, err := inCore(b, page)
	return err != nil || in >= len(b)/page*15/16
}
