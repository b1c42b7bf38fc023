package stream

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"unsafe"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// crashDisk is a disk in memory that knows what of it is durable: every version of a
// sector, every length of a file and every name since they were last synced. Operations
// are counted, so that the i-th can fail, and watched, so that the power can be cut there.
type crashDisk struct {
	mu     sync.Mutex
	names  map[string]*inode
	synced map[string]*inode // names that are durable
	moves  []move            // since, in order
	rng    *rand.Rand
	ops    int
	fault  fault
	failed []operation                                 // what the fault hit
	watch  func(operation)                             // before each operation, under the lock
	trace  func(kind, name string, at int64, b []byte) // after each that succeeds and changes something, likewise
}

// operation is one of a disk's.
type operation struct {
	number int
	kind   string // open, create, read, write, sync, reserve, rename, remove, close, size; sync directory; store: to mapped bytes
	name   string
}

// fault is what goes wrong with a disk.
type fault struct {
	at   int           // the operation that fails
	err  syscall.Errno // 0: none does
	dead bool          // all that come after it do, too
}

// injected is the error of an operation that a test lets fail.
type injected struct {
	operation
	err syscall.Errno
}

func (e *injected) Error() string { return fmt.Sprintf("%s %s: injected: %v", e.kind, e.name, e.err) }
func (e *injected) Unwrap() error { return e.err }

// move is a change of a directory.
type move struct {
	dir string
	set map[string]*inode // nil: the name is gone
}

// inode is a file. Its bytes are data; what follows says what of them is durable.
type inode struct {
	data    []byte
	durable []byte
	lengths []int            // since the last sync
	dirty   map[int][][]byte // contents of sectors since the last sync, oldest first
}

func newCrashDisk(seed uint64) *crashDisk {
	return &crashDisk{names: make(map[string]*inode), synced: make(map[string]*inode), rng: rand.New(rand.NewPCG(seed, 50))}
}

// do begins an operation.
func (d *crashDisk) do(kind, name string) error {
	op := operation{d.ops, kind, name}
	d.ops++
	if d.watch != nil {
		d.watch(op)
	}
	if f := d.fault; f.err != 0 && (op.number == f.at || f.dead && op.number > f.at) {
		d.failed = append(d.failed, op)
		return &injected{op, f.err}
	}
	return nil
}

// note tells what was done.
func (d *crashDisk) note(kind, name string, at int64, b []byte) {
	if d.trace != nil {
		d.trace(kind, name, at, b)
	}
}

func (d *crashDisk) change(m move) {
	apply(d.names, m)
	d.moves = append(d.moves, m)
}

func (d *crashDisk) open(name string, flag int) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kind := "open"
	if flag&os.O_CREATE != 0 {
		kind = "create"
	}
	if err := d.do(kind, name); err != nil {
		return nil, err
	}
	n := d.names[name]
	if n == nil {
		if flag&os.O_CREATE == 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = &inode{dirty: make(map[int][][]byte)}
		d.change(move{filepath.Dir(name), map[string]*inode{name: n}})
	}
	if flag&os.O_TRUNC != 0 {
		n.resize(0)
	}
	d.note(kind, name, 0, nil)
	return &crashFile{d, name, n}, nil
}

func (d *crashDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.do("rename", to); err != nil {
		return err
	}
	n := d.names[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	d.change(move{filepath.Dir(to), map[string]*inode{from: nil, to: n}})
	d.note("rename", to, 0, nil)
	return nil
}

func (d *crashDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.do("remove", name); err != nil {
		return err
	}
	if d.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	d.change(move{filepath.Dir(name), map[string]*inode{name: nil}})
	d.note("remove", name, 0, nil)
	return nil
}

func (d *crashDisk) syncDir(of string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := filepath.Dir(of)
	if err := d.do("sync directory", dir); err != nil {
		return err // the changes may become durable all the same
	}
	d.moves = slices.DeleteFunc(d.moves, func(m move) bool { return m.dir == dir })
	maps.DeleteFunc(d.synced, func(name string, _ *inode) bool { return filepath.Dir(name) == dir })
	for name, n := range d.names {
		if filepath.Dir(name) == dir {
			d.synced[name] = n
		}
	}
	d.note("sync directory", dir, 0, nil)
	return nil
}

// rewrite makes dirty what lies in a mapping.
func (d *crashDisk) rewrite(mapped []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.names {
		base := uintptr(unsafe.Pointer(unsafe.SliceData(n.data)))
		at := uintptr(unsafe.Pointer(unsafe.SliceData(mapped))) - base
		if at >= uintptr(len(n.data)) {
			continue
		}
		for s := int(at) / sector; s*sector < int(at)+len(mapped); s++ {
			n.changed(s)
		}
	}
}

// resize changes the length of a file; new bytes are zero.
func (n *inode) resize(size int) {
	old := len(n.data)
	if size < old {
		n.data = n.data[:size:size]
		for s := size / sector; s*sector < old; s++ { // what is cut off is gone, should it grow again
			n.changed(s)
		}
	} else {
		n.data = append(n.data, make([]byte, size-old)...)
	}
	n.lengths = append(n.lengths, size)
}

// changed notes that a sector has what it has now.
func (n *inode) changed(s int) {
	b := make([]byte, sector)
	if lo := s * sector; lo < len(n.data) {
		copy(b, n.data[lo:min(lo+sector, len(n.data))])
	}
	n.dirty[s] = append(n.dirty[s], b)
}

// write writes at an offset, growing the file.
func (n *inode) write(b []byte, at int) {
	if len(b) == 0 {
		return
	}
	if end := at + len(b); end > len(n.data) {
		n.resize(end)
	}
	copy(n.data[at:], b)
	for s := at / sector; s*sector < at+len(b); s++ {
		n.changed(s)
	}
}

// sync makes the dirty sectors durable that pass, and takes the others for clean: that is
// what a system does when its disk fails.
func (n *inode) sync(pass func() bool) {
	for _, size := range n.lengths {
		n.durable = fit(n.durable, size)
	}
	n.lengths = nil
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		if versions := n.dirty[s]; pass() && s*sector < len(n.durable) {
			copy(n.durable[s*sector:], versions[len(versions)-1])
		}
	}
	clear(n.dirty)
}

// fit cuts b, or extends it with zeros.
func fit(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-len(b))...)
}

func always() bool { return true }

// crashFile is an open file.
type crashFile struct {
	d    *crashDisk
	name string
	n    *inode
}

// begin begins an operation, under the name that the file has now.
func (f *crashFile) begin(kind string) (end func(), err error) {
	f.d.mu.Lock()
	if f.d.names[f.name] != f.n {
		for name, n := range f.d.names {
			if n == f.n {
				f.name = name
			}
		}
	}
	return f.d.mu.Unlock, f.d.do(kind, f.name)
}

func (f *crashFile) ReadAt(b []byte, at int64) (int, error) {
	end, err := f.begin("read")
	defer end()
	if err != nil {
		return 0, err
	}
	if at >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt may write a part before it fails.
func (f *crashFile) WriteAt(b []byte, at int64) (int, error) {
	end, err := f.begin("write")
	defer end()
	if err != nil {
		b = b[:f.d.rng.IntN(len(b))]
	}
	f.n.write(b, int(at))
	f.d.note("write", f.name, at, b)
	return len(b), err
}

func (f *crashFile) Size() (int64, error) {
	end, err := f.begin("size")
	defer end()
	return int64(len(f.n.data)), err
}

func (f *crashFile) Reserve(size int64) error {
	end, err := f.begin("reserve")
	defer end()
	if err == nil && int(size) > len(f.n.data) {
		f.n.resize(int(size))
		f.d.note("reserve", f.name, size, nil)
	}
	return err
}

// Sync that fails leaves pages that are clean in memory and were not all written.
func (f *crashFile) Sync() error {
	end, err := f.begin("sync")
	defer end()
	if err != nil {
		f.n.sync(func() bool { return f.d.rng.IntN(2) == 0 })
		return err
	}
	f.n.sync(always)
	f.d.note("sync", f.name, 0, nil)
	return nil
}

func (f *crashFile) Close() error {
	end, err := f.begin("close")
	defer end()
	return err
}

// crashSink is an output on a crashDisk: a mapped file.
type crashSink struct{ *crashFile }

func (s crashSink) Path() string  { return s.name }
func (s crashSink) Bytes() []byte { return s.n.data }

// stores lets f write to the mapping. If that fails, a part is written: the memory of a
// mapping that lost its disk is not the file's any more.
func (s crashSink) stores(f func()) error {
	end, err := s.begin("store")
	defer end()
	before := bytes.Clone(s.n.data)
	f()
	for at := 0; at < len(before); at += sector {
		hi := min(at+sector, len(before))
		if bytes.Equal(before[at:hi], s.n.data[at:hi]) {
			continue
		}
		if err != nil && s.d.rng.IntN(2) == 0 {
			copy(s.n.data[at:hi], before[at:hi])
			continue
		}
		s.n.changed(at / sector)
	}
	if err == nil {
		s.d.note("store", s.name, 0, nil)
	}
	return err
}

// clone is the same disk, with nothing wrong with it, before anything else is done to it.
// The lock must be held, or nobody else be there.
func (d *crashDisk) clone(seed uint64) *crashDisk {
	c := newCrashDisk(seed)
	same := once(func(n *inode) *inode {
		x := &inode{data: bytes.Clone(n.data), durable: bytes.Clone(n.durable), lengths: slices.Clone(n.lengths), dirty: make(map[int][][]byte)}
		for s, versions := range n.dirty {
			x.dirty[s] = slices.Clone(versions)
		}
		return x
	})
	c.names, c.synced = each(d.names, same), each(d.synced, same)
	for _, m := range d.moves {
		c.moves = append(c.moves, move{m.dir, each(m.set, same)})
	}
	return c
}

// cut is what a power cut leaves: of all that is not durable, anything. The lock must be
// held, or nobody else be there.
func (d *crashDisk) cut(r *rand.Rand) *crashDisk {
	names := maps.Clone(d.synced)
	switch r.IntN(4) {
	case 0: // nothing
	case 1: // everything
		names = maps.Clone(d.names)
	case 2: // what came first
		for _, m := range d.moves[:r.IntN(len(d.moves)+1)] {
			apply(names, m)
		}
	default: // each change by itself
		for _, m := range d.moves {
			if r.IntN(2) == 0 {
				apply(names, m)
			}
		}
	}
	return restart(names, once(func(n *inode) *inode { return stored(n.torn(r)) }))
}

// drop is what a power cut leaves at least: only what is durable.
func (d *crashDisk) drop() *crashDisk {
	return restart(d.synced, once(func(n *inode) *inode { return stored(n.durable) }))
}

func restart(names map[string]*inode, of func(*inode) *inode) *crashDisk {
	c := newCrashDisk(1)
	c.names = each(names, of)
	c.synced = maps.Clone(c.names)
	return c
}

func stored(b []byte) *inode {
	return &inode{data: bytes.Clone(b), durable: bytes.Clone(b), dirty: make(map[int][][]byte)}
}

// torn is what may be in a file after a power cut: of each sector any content since the
// last sync, and any length.
func (n *inode) torn(r *rand.Rand) []byte {
	sizes := append(slices.Clone(n.lengths), len(n.durable))
	size := sizes[r.IntN(len(sizes))]
	pick := func(int) bool { return r.IntN(2) == 0 } // which dirty sectors are written
	sectors := slices.Sorted(maps.Keys(n.dirty))
	old := false
	switch mode := r.IntN(6); {
	case mode == 0:
		return n.durable
	case mode == 1:
		return n.data
	case mode == 2 && len(sectors) > 0: // all but one
		one := sectors[r.IntN(len(sectors))]
		pick = func(s int) bool { return s != one }
	case mode == 3 && len(sectors) > 0: // only one
		one := sectors[r.IntN(len(sectors))]
		pick = func(s int) bool { return s == one }
	case mode == 4:
		old = true
	}
	b := fit(bytes.Clone(n.durable), size)
	for _, s := range sectors {
		if !pick(s) || s*sector >= size {
			continue
		}
		versions := n.dirty[s]
		v := versions[len(versions)-1]
		if old {
			v = versions[r.IntN(len(versions))]
		}
		copy(b[s*sector:], v)
	}
	return b
}

func apply(names map[string]*inode, m move) {
	for name, n := range m.set {
		if n == nil {
			delete(names, name)
		} else {
			names[name] = n
		}
	}
}

// each maps the files of names, in the order of these.
func each(names map[string]*inode, of func(*inode) *inode) map[string]*inode {
	c := make(map[string]*inode)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if c[name] = nil; names[name] != nil {
			c[name] = of(names[name])
		}
	}
	return c
}

// once makes of a file the same every time.
func once(of func(*inode) *inode) func(*inode) *inode {
	had := make(map[*inode]*inode)
	return func(n *inode) *inode {
		if had[n] == nil {
			had[n] = of(n)
		}
		return had[n]
	}
}
