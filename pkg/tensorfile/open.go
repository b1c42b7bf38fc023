package tensorfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Format of a file. It follows from the extension alone.
type Format uint8

const (
	Raw         Format = iota + 1 // elements only; any other extension
	NPY                           // .npy
	Safetensors                   // .safetensors
)

func (f Format) String() string {
	switch f {
	case Raw:
		return "raw"
	case NPY:
		return "npy"
	case Safetensors:
		return "safetensors"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// FormatOf returns the format that path's extension names.
func FormatOf(path string) Format {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".npy":
		return NPY
	case ".safetensors":
		return Safetensors
	}
	return Raw
}

// Spec says which tensor to open, and what the user states about it.
type Spec struct {
	Path   string
	Key    string          // safetensors; may be empty if the file has one tensor
	DType  attention.DType // 0: as the file says; raw files don't say, nor does npy for bf16
	Shape  []int           // raw
	Offset int64           // raw: bytes before the first element
}

// ParseRef splits a reference to a tensor in a safetensors file, FILE:KEY, of
// which FILE ends in .safetensors. Any other colon belongs to the path.
func ParseRef(s string) (path, key string) {
	const ext = ".safetensors"
	if i := strings.Index(strings.ToLower(s), ext+":"); i >= 0 {
		return s[:i+len(ext)], s[i+len(ext)+1:]
	}
	return s, ""
}

// Info describes a file.
type Info struct {
	Path        string
	Format      Format
	Size        int64
	HeaderBytes int64             // before the first element
	Metadata    map[string]string // of a safetensors file
	Tensors     []TensorInfo      // by offset; none for a raw file
}

// TensorInfo describes a tensor as the file does.
type TensorInfo struct {
	Key     string          // safetensors
	Stored  string          // the element type in the file's words: <f4, BF16
	DType   attention.DType // 0: not one that can be read
	Shape   []int
	Offset  int64  // of the first element in the file
	Bytes   int64  // of all elements
	Order   string // C or Fortran
	Problem string // why it can't be opened, and what to do; empty if it can
}

// Inspect describes every tensor of a file, those that Open refuses included.
func Inspect(path string) (*Info, error) {
	m, fi, err := mapInput(path)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if FormatOf(path) == Raw {
		return &Info{Path: path, Format: Raw, Size: fi.Size()}, nil
	}
	info, err := m.parse(Spec{Path: path}, fi.Size())
	if err != nil {
		return nil, withPath(err, path)
	}
	return info, nil
}

// input is a whole file, mapped read-only and open for reading.
type input struct {
	path string
	file *os.File
	data mmap.MMap // nil for an empty file, which can't be mapped
}

func (m *input) Map() []byte      { return m.data }
func (m *input) mapped() *os.File { return m.file }

// close unmaps and closes the file. Nothing was written, so that closing can
// lose nothing and its error says nothing.
func (m *input) close() error {
	m.file.Close()
	if m.data == nil {
		return nil
	}
	return m.data.Unmap()
}

// mapInput maps exactly the bytes of the file, shared: the pages are those of
// the page cache, and a driver can pin them.
func mapInput(path string) (*input, os.FileInfo, error) {
	// Asked before opening: to open a pipe would wait for its writer.
	fi, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, nil, notRegular(path, fi)
	}
	m := &input{path: path}
	if m.file, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	if fi, err = m.mapAll(); err != nil {
		m.file.Close()
		return nil, nil, err
	}
	return m, fi, nil
}

func (m *input) mapAll() (os.FileInfo, error) {
	fi, err := m.file.Stat()
	if err != nil || fi.Size() == 0 {
		return fi, err
	}
	if fi.Size() > math.MaxInt {
		return nil, fmt.Errorf("map %s: %d bytes are more than this machine can address", m.path, fi.Size())
	}
	if m.data, err = mmap.MapRegion(m.file, int(fi.Size()), mmap.RDONLY, 0, 0); err != nil {
		return nil, fmt.Errorf("map %s, %d bytes: %w", m.path, fi.Size(), err)
	}
	return fi, nil
}

func notRegular(path string, fi os.FileInfo) error {
	what := "not a regular file"
	if fi.IsDir() {
		what = "a directory, not a file"
	}
	return &FormatError{Path: path, Offset: -1, What: what}
}

// parse runs under Guard: the file may shrink even now.
func (m *input) parse(spec Spec, size int64) (info *Info, err error) {
	err = Guard(func() (err error) {
		switch FormatOf(spec.Path) {
		case NPY:
			info, err = parseNpy(m.data, size)
		case Safetensors:
			info, err = parseSafetensors(m.data, size)
		default:
			if info, err = rawInfo(spec, size); err != nil {
				err = hintContainer(err, m.data)
			}
		}
		return err
	}, m)
	if err == nil {
		info.Path = spec.Path
	}
	return info, err
}

// hintContainer adds to an error about a raw file that it begins like another
// format.
func hintContainer(err error, data []byte) error {
	var fe *FormatError
	if !errors.As(err, &fe) {
		return err
	}
	switch {
	case strings.HasPrefix(string(data[:min(len(data), 6)]), npyMagic):
		fe.What = "the file begins like npy, but its name does not end in .npy; " + fe.What
	case strings.HasPrefix(string(data[:min(len(data), 4)]), "PK\x03\x04"):
		fe.What = "the file is a zip archive (npz or a PyTorch checkpoint): save its tensors as .npy or .safetensors first; " + fe.What
	}
	return err
}

// Tensor is a tensor in a file that is mapped read-only. All its slices die
// with Close.
type Tensor struct {
	in       *input
	format   Format
	info     TensorInfo
	metadata map[string]string
	opened   os.FileInfo
}

// Open maps the file of a tensor and checks its header and its size. An error
// about the content is an ErrFormat.
func Open(spec Spec) (*Tensor, error) {
	if err := spec.check(); err != nil {
		return nil, withPath(err, spec.Path)
	}
	m, fi, err := mapInput(spec.Path)
	if err != nil {
		return nil, err
	}
	t, err := newTensor(m, fi, spec)
	if err != nil {
		// Unmapping what was mapped can't fail, and the first error says more.
		_ = m.close()
		return nil, withPath(err, spec.Path)
	}
	return t, nil
}

// check refuses statements that the file's format has no use for: whoever
// makes them has another file in mind.
func (spec Spec) check() error {
	format := FormatOf(spec.Path)
	if format != Raw && (spec.Shape != nil || spec.Offset != 0) {
		return &FormatError{Offset: -1, What: fmt.Sprintf("a shape and an offset are stated, but %v files have their own", format)}
	}
	if format != Safetensors && spec.Key != "" {
		return &FormatError{Key: spec.Key, Offset: -1, What: fmt.Sprintf("a key is stated, but %v files have none", format)}
	}
	return nil
}

func newTensor(m *input, fi os.FileInfo, spec Spec) (*Tensor, error) {
	info, err := m.parse(spec, fi.Size())
	if err != nil {
		return nil, err
	}
	ti, err := info.find(spec.Key)
	if err != nil {
		return nil, err
	}
	if info.Format == NPY {
		npyStated(&ti, spec.DType)
	}
	if ti.Problem != "" {
		return nil, &FormatError{Key: ti.Key, Offset: -1, What: ti.Problem}
	}
	if spec.DType != 0 && ti.DType != spec.DType {
		return nil, &FormatError{Key: ti.Key, Offset: -1, What: "element type is not the stated one", Found: fmt.Sprintf("%v (%s)", ti.DType, ti.Stored), Want: spec.DType.String()}
	}
	return &Tensor{in: m, format: info.Format, info: ti, metadata: info.Metadata, opened: fi}, nil
}

// find returns the tensor with the key, or the only one.
func (info *Info) find(key string) (TensorInfo, error) {
	if info.Format != Safetensors {
		return info.Tensors[0], nil
	}
	if key == "" && len(info.Tensors) == 1 {
		return info.Tensors[0], nil
	}
	keys := make([]string, len(info.Tensors))
	for i, t := range info.Tensors {
		if t.Key == key && key != "" {
			return t, nil
		}
		keys[i] = t.Key
	}
	what := "no such key"
	if key == "" {
		what = "which tensor? state its key"
	}
	slices.Sort(keys)
	const most = 20
	more := ""
	if len(keys) > most {
		more = fmt.Sprintf(" and %d more", len(keys)-most)
		keys = keys[:most]
	}
	for i := range keys {
		keys[i] = clip(keys[i])
	}
	list := strings.Join(keys, ", ") + more
	if list == "" {
		list = "no tensors at all"
	}
	return TensorInfo{}, &FormatError{Key: key, Offset: -1, What: what + ": the file has " + list}
}

// Path is the path as it was given.
func (t *Tensor) Path() string { return t.in.path }

// Key is the key in a safetensors file, also when it was not stated.
func (t *Tensor) Key() string { return t.info.Key }

// Format of the file.
func (t *Tensor) Format() Format { return t.format }

// DType of the elements.
func (t *Tensor) DType() attention.DType { return t.info.DType }

// Shape returns a copy of the extents.
func (t *Tensor) Shape() []int { return slices.Clone(t.info.Shape) }

// Metadata is the __metadata__ of a safetensors file; nil if there is none.
func (t *Tensor) Metadata() map[string]string { return t.metadata }

// Map is the whole file, and starts at a page. It is nil after Close.
func (t *Tensor) Map() []byte { return t.in.data }

func (t *Tensor) mapped() *os.File { return t.in.file }

// Offset is where Bytes starts in Map. In a safetensors file it need not be a
// multiple of the element's size.
func (t *Tensor) Offset() int64 { return t.info.Offset }

// Bytes are the elements, little-endian and in C order. It is nil after Close.
func (t *Tensor) Bytes() []byte {
	if t.in.data == nil {
		return nil
	}
	lo, hi := t.info.Offset, t.info.Offset+t.info.Bytes
	return t.in.data[lo:hi:hi]
}

// ReadAt reads elements' bytes, from byte off of Bytes on. It does not touch
// the mapping: a file that shrank gives an error, not a fault.
func (t *Tensor) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > t.info.Bytes {
		return 0, fmt.Errorf("read %s at element byte %d of %d: %w", t.in.path, off, t.info.Bytes, fs.ErrInvalid)
	}
	most := min(int64(len(p)), t.info.Bytes-off)
	n, err := t.in.file.ReadAt(p[:most], t.info.Offset+off)
	switch {
	case err == io.EOF && int64(n) < most:
		return n, fmt.Errorf("%w: %s: ends before element byte %d, had %d bytes of elements when it was opened", ErrChanged, t.in.path, off+most, t.info.Bytes)
	case err != nil && err != io.EOF:
		return n, fmt.Errorf("read %s at element byte %d: %w", t.in.path, off, withoutPath(err))
	case n < len(p):
		return n, io.EOF
	}
	return n, nil
}

// Close unmaps and closes the file. A second Close does nothing.
func (t *Tensor) Close() error {
	if err := t.in.close(); err != nil {
		return fmt.Errorf("unmap %s: %w", t.in.path, err)
	}
	return nil
}

// SameFile reports whether a and b name one file, through whatever links. For
// names of files that don't exist yet it compares where they would be made.
func SameFile(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(fa, fb)
	}
	if errA == nil || errB == nil {
		return false
	}
	return canonical(a) == canonical(b)
}

// canonical is an absolute path without links, as far as it exists.
func canonical(path string) string {
	path = followLinks(path)
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// followLinks returns what path, if it is a symbolic link, leads to in the
// end, whether or not that exists.
func followLinks(path string) string {
	for range 40 { // the kernel's own limit against loops
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			dir := filepath.Dir(path)
			// Above a directory that is itself reached by a link is not what its
			// name says.
			if real, err := filepath.EvalSymlinks(dir); err == nil && strings.Contains(to, "..") {
				dir = real
			}
			to = filepath.Join(dir, to)
		}
		path = to
	}
	return path
}
