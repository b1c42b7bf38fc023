package tensorfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"unicode/utf8"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// errNoAllocate: the file system can't reserve space without writing.
var errNoAllocate = errors.New("file system can't reserve space")

// OutSpec describes a tensor to be written. The extension of Path says the
// format.
type OutSpec struct {
	Path     string
	Partial  string // where the file is until Commit; empty: PATH.partial
	Key      string // safetensors, where it must not be empty
	DType    attention.DType
	Shape    []int
	Metadata map[string]string // safetensors: added to the __metadata__ of the file
}

// Output is a file being written: the partial file, all its space reserved, its
// header written, mapped. Only Commit makes it PATH. All slices die with
// Commit, Abort and Close.
type Output struct {
	path    string // links followed
	partial string
	size    int64
	f       *os.File
	data    mmap.MMap // nil when empty, and after the end
	tensors []TensorInfo
}

// Create begins an output, of one tensor, or of several in one safetensors
// file. It replaces a partial file that nobody is writing. If it fails it
// leaves no file.
func Create(specs ...OutSpec) (*Output, error) {
	l, err := planOutput(specs)
	if err != nil {
		return nil, err
	}
	o, err := openPartial(l, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if err := o.fill(l); err != nil {
		// The first error is the one to report; what Abort leaves is a file
		// that the next Create replaces.
		_ = o.Abort()
		return nil, err
	}
	return o, nil
}

// Reopen continues an output that Create began in another run and Close or a
// crash left. It fails if the partial file doesn't exist (fs.ErrNotExist) or is
// not exactly what Create would have made (ErrFormat), and leaves it alone.
func Reopen(specs ...OutSpec) (*Output, error) {
	l, err := planOutput(specs)
	if err != nil {
		return nil, err
	}
	o, err := openPartial(l, 0)
	if err != nil {
		return nil, err
	}
	if err := o.check(l); err != nil {
		_ = o.Close() // nothing was written
		return nil, err
	}
	return o, nil
}

// Claim takes the partial file of an output, as it is or empty, for who has nothing to
// write: nobody else can begin or continue the output before Abort or Close. All but
// these and the paths are of no use.
func Claim(specs ...OutSpec) (*Output, error) {
	l, err := planOutput(specs)
	if err != nil {
		return nil, err
	}
	return openPartial(l, os.O_CREATE)
}

// PartialOf is where the output PATH is until Commit, unless OutSpec.Partial says
// otherwise.
func PartialOf(path string) string { return followLinks(path) + ".partial" }

// Holder says whether another process, or another Output of this one, has a partial
// file, and which process; pid 0 if the system doesn't say. A file that is not there,
// and one on a file system without locks, is nobody's.
func Holder(partial string) (pid int, held bool, err error) {
	// Asked before opening: to open a pipe would wait for its writer.
	fi, err := os.Stat(partial)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	f, err := os.Open(partial)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	pid, held = lockHolder(f)
	return pid, held, nil
}

// outLayout is what follows from the specs alone.
type outLayout struct {
	path    string
	partial string
	header  []byte
	tensors []TensorInfo // in the order of the specs
	size    int64
}

func planOutput(specs []OutSpec) (*outLayout, error) {
	if len(specs) == 0 {
		return nil, errors.New("create output: no tensor")
	}
	l := &outLayout{path: specs[0].Path}
	for _, s := range specs {
		if s.Path != l.path {
			return nil, fmt.Errorf("create %s: a tensor of %s can't be in the same file", l.path, s.Path)
		}
		if s.Partial != specs[0].Partial {
			return nil, fmt.Errorf("create %s: it can't be both %q and %q until it is complete", l.path, specs[0].Partial, s.Partial)
		}
		if s.DType < attention.F32 || s.DType > attention.BF16 {
			return nil, fmt.Errorf("create %s: element type %v", s.Path, s.DType)
		}
		n, ok := byteSize(s.Shape, 8*int64(s.DType.Size()))
		if !ok || len(s.Shape) > maxRank {
			return nil, fmt.Errorf("create %s: shape %v of %v: want at most %d extents from 0 and less than 2^63 bytes", s.Path, s.Shape, s.DType, maxRank)
		}
		l.tensors = append(l.tensors, TensorInfo{Key: s.Key, DType: s.DType, Shape: slices.Clone(s.Shape), Bytes: n, Order: "C"})
	}
	if err := l.encode(specs); err != nil {
		return nil, fmt.Errorf("create %s: %w", l.path, err)
	}
	// Written through a link, the target is replaced, as a shell would do.
	l.path = followLinks(l.path)
	l.partial = cmp.Or(specs[0].Partial, PartialOf(l.path))
	if canonical(l.partial) == canonical(l.path) {
		return nil, l.sameFile()
	}
	return l, nil
}

func (l *outLayout) sameFile() error {
	return fmt.Errorf("create %s: %s is the same file, and can't be what it is until it is complete", l.path, l.partial)
}

// encode makes the header and places the tensors.
func (l *outLayout) encode(specs []OutSpec) error {
	format := FormatOf(l.path)
	if format != Safetensors {
		if len(specs) > 1 || specs[0].Key != "" || len(specs[0].Metadata) > 0 {
			return fmt.Errorf("%v files hold one tensor, without a key and metadata", format)
		}
	}
	switch format {
	case NPY:
		t := &l.tensors[0]
		t.Stored = npyDescr(t.DType)
		l.header = encodeNpy(t.Stored, t.Shape)
	case Safetensors:
		if err := l.encodeSafetensors(specs); err != nil {
			return err
		}
	case Raw:
		l.tensors[0].Stored = l.tensors[0].DType.String()
	}
	return l.place()
}

func (l *outLayout) encodeSafetensors(specs []OutSpec) error {
	metadata := map[string]string{}
	for i, s := range specs {
		if s.Key == "" || s.Key == metadataKey || !utf8.ValidString(s.Key) {
			return fmt.Errorf("key %q can't name a tensor", s.Key)
		}
		for _, other := range specs[:i] {
			if other.Key == s.Key {
				return fmt.Errorf("two tensors have the key %q", s.Key)
			}
		}
		for k, v := range s.Metadata {
			if !utf8.ValidString(k) || !utf8.ValidString(v) {
				return fmt.Errorf("metadata %q: %q is not UTF-8", k, v)
			}
			if old, ok := metadata[k]; ok && old != v {
				return fmt.Errorf("metadata %q is %q and %q", k, old, v)
			}
			metadata[k] = v
		}
		l.tensors[i].Stored = safetensorsDType(s.DType)
	}
	var err error
	sorted := make([]TensorInfo, 0, len(l.tensors))
	for _, i := range l.order() {
		sorted = append(sorted, l.tensors[i])
	}
	l.header, err = encodeSafetensors(sorted, metadata)
	return err
}

// order is that of the reference writer: wider types first, which keeps every
// tensor aligned to its elements, then by key.
func (l *outLayout) order() []int {
	order := make([]int, len(l.tensors))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := l.tensors[i], l.tensors[j]
		return cmp.Or(b.DType.Size()-a.DType.Size(), cmp.Compare(b.DType, a.DType), cmp.Compare(a.Key, b.Key))
	})
	return order
}

func (l *outLayout) place() error {
	l.size = int64(len(l.header))
	for _, i := range l.order() {
		l.tensors[i].Offset = l.size
		if l.tensors[i].Bytes > math.MaxInt-l.size {
			return errors.New("file is larger than 2^63-1 bytes")
		}
		l.size += l.tensors[i].Bytes
	}
	return nil
}

// openPartial opens and locks the partial file, with O_CREATE in flag or not.
func openPartial(l *outLayout, flag int) (*Output, error) {
	if fi, err := os.Stat(l.path); err == nil && !fi.Mode().IsRegular() {
		what := "not a regular file"
		if fi.IsDir() {
			what = "a directory"
		}
		return nil, fmt.Errorf("create %s: it is %s", l.path, what)
	}
	for _, path := range []string{l.path, l.partial} {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("create %s: its directory: %w", path, err)
		}
	}
	o := &Output{path: l.path, partial: l.partial, size: l.size, tensors: l.tensors}
	// Between opening and locking, the process that had the lock may have
	// renamed or removed the file. Then the name leads elsewhere: try again.
	for range 100 {
		if fi, err := os.Lstat(o.partial); err == nil && !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("create %s: it exists and is not a regular file", o.partial)
		}
		f, err := os.OpenFile(o.partial, os.O_RDWR|flag, 0o666)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			f.Close() // nothing was written
			return nil, fmt.Errorf("create %s: %w", o.partial, err)
		}
		opened, err1 := f.Stat()
		named, err2 := os.Lstat(o.partial)
		if err1 == nil && err2 == nil && os.SameFile(opened, named) {
			// Another name of a result must not be taken for a leftover.
			if result, err := os.Stat(l.path); err == nil && os.SameFile(opened, result) {
				f.Close() // nothing was written
				return nil, l.sameFile()
			}
			o.f = f
			return o, nil
		}
		f.Close() // likewise
	}
	return nil, fmt.Errorf("create %s: %w", o.partial, ErrInUse)
}

// fill makes a new, empty output.
func (o *Output) fill(l *outLayout) error {
	if err := o.f.Truncate(0); err != nil {
		return err
	}
	if err := o.reserve(l.size); err != nil {
		return err
	}
	if _, err := o.f.WriteAt(l.header, 0); err != nil {
		return err
	}
	return o.mapRegion(l.size)
}

// reserve makes the file size bytes long, all of them on the disk: a write to
// a mapped page for which the disk has no room is not an error but a SIGBUS.
func (o *Output) reserve(size int64) error {
	free := freeBytes(o.f)
	if free >= 0 && size > free {
		return &NoSpaceError{Path: o.partial, Need: size, Free: free}
	}
	err := allocate(o.f, size)
	if errors.Is(err, errNoAllocate) {
		err = writeZeros(o.f, size)
	}
	if isNoSpace(err) {
		return &NoSpaceError{Path: o.partial, Need: size, Free: free}
	}
	if err != nil {
		return fmt.Errorf("reserve %s, %d bytes: %w", o.partial, size, err)
	}
	return nil
}

func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, min(size, 1<<20))
	for at := int64(0); at < size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// check compares an existing output with what fill would have made, and maps it.
func (o *Output) check(l *outLayout) error {
	if err := l.compare(o.f); err != nil {
		return err
	}
	// A copied file may have holes. Where they can't be filled without writing,
	// there is no telling, and nothing was lost by asking.
	if err := allocate(o.f, l.size); isNoSpace(err) {
		return &NoSpaceError{Path: o.partial, Need: l.size, Free: freeBytes(o.f)}
	} else if err != nil && !errors.Is(err, errNoAllocate) {
		return fmt.Errorf("reserve %s, %d bytes: %w", o.partial, l.size, err)
	}
	return o.mapRegion(l.size)
}

// compare says how a file differs from what Create makes, but for the elements.
func (l *outLayout) compare(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != l.size {
		return &FormatError{Path: l.partial, Offset: -1, What: "not the partial output of this problem", Found: fmt.Sprintf("%d bytes", fi.Size()), Want: fmt.Sprint(l.size)}
	}
	header := make([]byte, len(l.header))
	if _, err := f.ReadAt(header, 0); err != nil {
		return err
	}
	if !bytes.Equal(header, l.header) {
		return &FormatError{Path: l.partial, Offset: 0, What: "not the partial output of this problem: its header differs"}
	}
	return nil
}

func (o *Output) mapRegion(size int64) error {
	if size == 0 {
		return nil
	}
	m, err := mmap.MapRegion(o.f, int(size), mmap.RDWR, 0, 0)
	if err != nil {
		return fmt.Errorf("map %s, %d bytes: %w", o.partial, size, err)
	}
	o.data = m
	return nil
}

// Path is where Commit puts the file: the path given, links followed.
func (o *Output) Path() string { return o.path }

// Partial is where the file is until then.
func (o *Output) Partial() string { return o.partial }

// Map is the whole file, header included. It is nil after the end.
func (o *Output) Map() []byte { return o.data }

func (o *Output) mapped() *os.File { return o.f }

// Bytes are the elements of the first tensor, little-endian and in C order.
// They are zero until written. It is nil after the end.
func (o *Output) Bytes() []byte { return o.BytesOf(0) }

// BytesOf are the elements of the i-th tensor given to Create.
func (o *Output) BytesOf(i int) []byte {
	if o.data == nil {
		return nil
	}
	lo, hi := o.tensors[i].Offset, o.tensors[i].Offset+o.tensors[i].Bytes
	return o.data[lo:hi:hi]
}

// OffsetOf is where BytesOf(i) starts in Map.
func (o *Output) OffsetOf(i int) int64 { return o.tensors[i].Offset }

// syncFile is a variable for tests, which have no disk that fails.
var syncFile = (*os.File).Sync

// Sync makes all that was written to the slices durable. After an error it is
// unknown what the disk has, and a later success says nothing about it: the
// system may have dropped the pages that it could not write.
func (o *Output) Sync() error {
	if o.f == nil {
		return fmt.Errorf("sync %s: %w", o.partial, os.ErrClosed)
	}
	if o.data != nil {
		if err := o.data.Flush(); err != nil {
			return fmt.Errorf("sync %s: %w", o.partial, err)
		}
	}
	if err := syncFile(o.f); err != nil {
		return fmt.Errorf("sync %s: %w", o.partial, err)
	}
	return nil
}

// renameFile is a variable for tests, which may have one file system only.
var renameFile = os.Rename

// Commit makes the output durable and gives it its name, at which instant it
// replaces an existing file. A partial file on another file system than PATH is
// copied to PATH.partial first. If Commit fails, the partial file is left, and PATH
// untouched; or, where only the directory could not be synced, complete. The
// error says which, and the slices are dead either way.
func (o *Output) Commit() error {
	if o.f == nil {
		return fmt.Errorf("commit %s: %w", o.path, os.ErrClosed)
	}
	err := o.Sync()
	if err == nil {
		err = o.unmap()
	}
	copied := false
	if err == nil {
		copied, err = o.rename()
	}
	if err != nil {
		_ = o.Close() // the first error is the one to report
		return fmt.Errorf("commit %s (%s is kept): %w", o.path, o.partial, err)
	}
	if err := o.syncNames(); err != nil {
		_ = o.Close() // likewise
		return fmt.Errorf("commit %s (it is complete, but a power loss may undo its name): %w", o.path, err)
	}
	if copied {
		err = os.Remove(o.partial)
	}
	if err = cmp.Or(err, o.Close()); err != nil {
		return fmt.Errorf("commit %s (it is complete): %w", o.path, err)
	}
	return nil
}

// rename gives the file its name. It stays locked, so that nobody takes it for a
// forgotten one. Between file systems PATH is a copy, and the original is left.
func (o *Output) rename() (copied bool, err error) {
	err = renameFile(o.partial, o.path)
	beside := o.path + ".partial"
	if !errors.Is(err, syscall.EXDEV) || SameFile(o.partial, beside) {
		return false, err
	}
	c, err := openPartial(&outLayout{path: o.path, partial: beside, size: o.size}, os.O_CREATE)
	if err != nil {
		return false, err
	}
	if err := c.copyFrom(o); err != nil {
		_ = c.Abort() // the first error is the one to report
		return false, err
	}
	if err := renameFile(c.partial, c.path); err != nil {
		_ = c.Abort() // likewise
		return false, err
	}
	_ = c.Close() // it is synced: closing can lose nothing
	return true, nil
}

// copyFrom makes the file a durable copy of another output's.
func (o *Output) copyFrom(from *Output) error {
	if err := o.f.Truncate(0); err != nil {
		return err
	}
	if err := o.reserve(o.size); err != nil {
		return err
	}
	buf := make([]byte, min(o.size, 1<<20))
	for at := int64(0); at < o.size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), o.size-at)]
		if _, err := from.f.ReadAt(buf, at); err == io.EOF {
			return fmt.Errorf("%w: %s: has less than %d bytes", ErrChanged, from.partial, o.size)
		} else if err != nil {
			return err
		}
		if _, err := o.f.WriteAt(buf, at); err != nil {
			return err
		}
	}
	return o.Sync()
}

// syncNames makes durable that the file has a new name. That it has lost its old
// one matters as well: a run that found both would truncate the result.
func (o *Output) syncNames() error {
	err := syncDir(filepath.Dir(o.path))
	if from := filepath.Dir(o.partial); err == nil && from != filepath.Dir(o.path) {
		err = syncDir(from)
	}
	return err
}

// Abort gives the output up and removes the partial file. After Commit or Close it
// does nothing, so that it can be deferred. It never touches PATH.
func (o *Output) Abort() error {
	if o.f == nil {
		return nil
	}
	// Still locked: the name is ours.
	err := os.Remove(o.partial)
	return cmp.Or(err, o.Close())
}

// Close leaves the partial file as it is, for Reopen. What was written since the
// last Sync survives the process, but not a power loss. After Commit or Abort
// it does nothing.
func (o *Output) Close() error {
	if o.f == nil {
		return nil
	}
	err := o.unmap()
	if cerr := o.f.Close(); err == nil {
		err = cerr
	}
	o.f = nil
	return err
}

func (o *Output) unmap() error {
	if o.data == nil {
		return nil
	}
	if err := o.data.Unmap(); err != nil {
		return fmt.Errorf("unmap %s: %w", o.partial, err)
	}
	return nil
}
