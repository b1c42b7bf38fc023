package tensorfile

import (
	"fmt"
	"os"
)

// View is the partial file of an output, mapped read-only, for who checks an output
// that another process may be writing: it takes no lock and changes nothing. All
// slices die with Close.
type View struct {
	in      *input
	tensors []TensorInfo
}

// ViewPartial opens what Create with the same specs made and nobody has committed
// yet. It fails if the partial file doesn't exist (fs.ErrNotExist) or is not what
// Create would have made (ErrFormat).
func ViewPartial(specs ...OutSpec) (*View, error) {
	l, err := planOutput(specs)
	if err != nil {
		return nil, err
	}
	m, _, err := mapInput(l.partial)
	if err != nil {
		return nil, err
	}
	if err := l.compare(m.file); err != nil {
		_ = m.close() // nothing was written, and the first error says more
		return nil, err
	}
	// What grew since it was mapped had the right size too late.
	if int64(len(m.data)) != l.size {
		_ = m.close() // likewise
		return nil, fmt.Errorf("map %s: %w", l.partial, ErrChanged)
	}
	return &View{in: m, tensors: l.tensors}, nil
}

// Path is that of the partial file.
func (v *View) Path() string { return v.in.path }

// Map is the whole file, header included. It is nil after Close.
func (v *View) Map() []byte { return v.in.data }

func (v *View) mapped() *os.File { return v.in.file }

// BytesOf are the elements of the i-th tensor given to ViewPartial, little-endian
// and in C order. It is nil after Close.
func (v *View) BytesOf(i int) []byte {
	if v.in.data == nil {
		return nil
	}
	lo, hi := v.tensors[i].Offset, v.tensors[i].Offset+v.tensors[i].Bytes
	return v.in.data[lo:hi:hi]
}

// OffsetOf is where BytesOf(i) starts in Map.
func (v *View) OffsetOf(i int) int64 { return v.tensors[i].Offset }

// Close unmaps and closes the file. A second Close does nothing.
func (v *View) Close() error {
	if err := v.in.close(); err != nil {
		return fmt.Errorf("unmap %s: %w", v.in.path, err)
	}
	return nil
}
