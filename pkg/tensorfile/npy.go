package tensorfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

const (
	npyMagic = "\x93NUMPY"

	// The length field of version 1 ends at 64 KiB. The one of versions 2 and 3
	// ends at 4 GiB, which nothing but a very wide structured type needs, and
	// those are not supported: 1 MiB is far more than 64 extents take.
	npyMaxHeader = 1 << 20

	// maxRank is NumPy's own limit.
	maxRank = 64
)

// parseNpy reads the header of an npy file of size bytes. data is the file, or
// at least its beginning.
func parseNpy(data []byte, size int64) (*Info, error) {
	text, start, version, err := npyHeaderText(data, size)
	if err != nil {
		return nil, err
	}
	p := pyParser{b: text, base: start - int64(len(text)), version: version}
	h, err := p.header()
	if err != nil {
		return nil, err
	}
	t := TensorInfo{Stored: h.descr, Shape: h.shape, Offset: start, Order: "C"}
	if h.fortran {
		t.Order = "Fortran"
	}
	t.DType, t.Problem = npyType(h)
	t.Bytes = size - start
	if item, ok := npyItemSize(h); ok {
		want, ok := byteSize(h.shape, 8*item)
		if !ok {
			return nil, &FormatError{Offset: start, What: fmt.Sprintf("shape %v of %s elements is larger than 2^63 bytes", h.shape, clip(h.descr))}
		}
		if want != t.Bytes {
			return nil, sizeError(start, t.Bytes, want)
		}
	}
	return &Info{Format: NPY, Size: size, HeaderBytes: start, Tensors: []TensorInfo{t}}, nil
}

// npyHeaderText finds the Python literal and the offset at which the data start.
func npyHeaderText(data []byte, size int64) (text []byte, start int64, version byte, err error) {
	data = data[:min(int64(len(data)), size)]
	if len(data) < 10 {
		return nil, 0, 0, &FormatError{Offset: -1, What: "npy header is cut off", Found: fmt.Sprintf("%d bytes", size), Want: "at least 10"}
	}
	if string(data[:6]) != npyMagic {
		return nil, 0, 0, &FormatError{Offset: 0, What: "not an npy file", Found: fmt.Sprintf("%q", data[:6]), Want: fmt.Sprintf("%q", npyMagic)}
	}
	version = data[6]
	if version < 1 || version > 3 || data[7] != 0 {
		return nil, 0, 0, &FormatError{Offset: 6, What: "npy version", Found: fmt.Sprintf("%d.%d", version, data[7]), Want: "1.0, 2.0 or 3.0"}
	}
	length, from := int64(binary.LittleEndian.Uint16(data[8:])), int64(10)
	if version > 1 {
		if len(data) < 12 {
			return nil, 0, 0, &FormatError{Offset: -1, What: "npy header is cut off", Found: fmt.Sprintf("%d bytes", size), Want: "at least 12"}
		}
		length, from = int64(binary.LittleEndian.Uint32(data[8:])), 12
	}
	if length > npyMaxHeader {
		return nil, 0, 0, &FormatError{Offset: 8, What: "npy header length", Found: strconv.FormatInt(length, 10), Want: fmt.Sprintf("at most %d", npyMaxHeader)}
	}
	if length > int64(len(data))-from {
		return nil, 0, 0, &FormatError{Offset: 8, What: "npy header is longer than the file", Found: fmt.Sprintf("a header of %d bytes at %d", length, from), Want: fmt.Sprintf("at most %d", int64(len(data))-from)}
	}
	return data[from : from+length], from + length, version, nil
}

// npyHeader is the dictionary in the header.
type npyHeader struct {
	descr   string // of a simple type; for a structured one its Python text
	simple  bool
	fortran bool
	shape   []int
}

// pyParser parses the one Python literal that an npy header may be: a
// dictionary with the keys descr, fortran_order and shape. It accepts what
// NumPy's writers have ever written, any order of keys, either quote, and
// spaces, but no expressions, no escapes, no other keys and nothing after it.
type pyParser struct {
	b       []byte
	pos     int
	base    int64 // offset of b[0] in the file
	version byte
}

func (p *pyParser) fail(what, want string) error {
	found := "the end of the header"
	if p.pos < len(p.b) {
		found = fmt.Sprintf("%q", p.b[p.pos:min(len(p.b), p.pos+16)])
	}
	return &FormatError{Offset: p.base + int64(p.pos), What: "npy header: " + what, Found: found, Want: want}
}

func (p *pyParser) space() {
	for p.pos < len(p.b) && strings.IndexByte(" \t\r\n\f", p.b[p.pos]) >= 0 {
		p.pos++
	}
}

// take skips spaces and c, if c is next.
func (p *pyParser) take(c byte) bool {
	p.space()
	if p.pos < len(p.b) && p.b[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

func (p *pyParser) header() (h npyHeader, err error) {
	if !p.take('{') {
		return h, p.fail("not a dictionary", `"{"`)
	}
	seen := map[string]bool{}
	for !p.take('}') {
		if len(seen) > 0 && !p.take(',') {
			return h, p.fail("dictionary", `"," or "}"`)
		}
		if len(seen) > 0 && p.take('}') {
			break
		}
		p.space()
		at := p.pos
		key, err := p.str()
		if err != nil {
			return h, err
		}
		if seen[key] {
			p.pos = at
			return h, p.fail(fmt.Sprintf("key %q appears twice", key), "")
		}
		if !p.take(':') {
			return h, p.fail("dictionary", `":"`)
		}
		p.space()
		switch key {
		case "descr":
			h.descr, h.simple, err = p.descr()
		case "fortran_order":
			h.fortran, err = p.boolean()
		case "shape":
			h.shape, err = p.shape()
		default:
			p.pos = at
			return h, p.fail("key", "'descr', 'fortran_order' or 'shape'")
		}
		if err != nil {
			return h, err
		}
		seen[key] = true
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if !seen[key] {
			return h, p.fail(fmt.Sprintf("key %q is missing", key), "")
		}
	}
	if p.space(); p.pos < len(p.b) {
		return h, p.fail("text after the dictionary", "")
	}
	return h, nil
}

func (p *pyParser) str() (string, error) {
	if p.pos >= len(p.b) || p.b[p.pos] != '\'' && p.b[p.pos] != '"' {
		return "", p.fail("string", "a quote")
	}
	quote := p.b[p.pos]
	for i := p.pos + 1; i < len(p.b); i++ {
		switch p.b[i] {
		case quote:
			s := string(p.b[p.pos+1 : i])
			p.pos = i + 1
			return s, nil
		case '\\', '\n', '\r':
			p.pos = i
			return "", p.fail("string", "no escapes and no line breaks")
		}
	}
	return "", p.fail("string does not end", "")
}

// descr returns the type, or the text of a structured type (a list of fields,
// or a tuple for a subarray), which is only skipped.
func (p *pyParser) descr() (text string, simple bool, err error) {
	if p.pos < len(p.b) && (p.b[p.pos] == '\'' || p.b[p.pos] == '"') {
		text, err = p.str()
		return text, true, err
	}
	start, depth := p.pos, 0
	for p.pos < len(p.b) {
		switch p.b[p.pos] {
		case '[', '(':
			depth++
		case ']', ')':
			depth--
		case '\'', '"':
			if _, err := p.str(); err != nil {
				return "", false, err
			}
			continue
		}
		if depth <= 0 {
			break
		}
		p.pos++
	}
	if p.pos == start || p.pos >= len(p.b) || depth != 0 {
		p.pos = start
		return "", false, p.fail("descr", "a string or a list of fields")
	}
	p.pos++
	return string(p.b[start:p.pos]), false, nil
}

func (p *pyParser) boolean() (bool, error) {
	for _, word := range []string{"True", "False"} {
		if bytes.HasPrefix(p.b[p.pos:], []byte(word)) {
			p.pos += len(word)
			return word == "True", nil
		}
	}
	return false, p.fail("fortran_order", "True or False")
}

func (p *pyParser) shape() ([]int, error) {
	start := p.pos
	if !p.take('(') {
		return nil, p.fail("shape is not a tuple", `"("`)
	}
	shape := []int{}
	comma := false
	for !p.take(')') {
		if len(shape) > 0 && !comma {
			return nil, p.fail("shape", `"," or ")"`)
		}
		if len(shape) == maxRank {
			return nil, p.fail(fmt.Sprintf("shape has more than %d extents", maxRank), "")
		}
		n, err := p.integer()
		if err != nil {
			return nil, err
		}
		shape = append(shape, n)
		comma = p.take(',')
	}
	if len(shape) == 1 && !comma {
		p.pos = start
		return nil, p.fail("shape is not a tuple", `"," after its only extent`)
	}
	return shape, nil
}

func (p *pyParser) integer() (int, error) {
	p.space()
	start := p.pos
	if p.pos < len(p.b) && p.b[p.pos] == '-' {
		return 0, p.fail("negative extent", "")
	}
	for p.pos < len(p.b) && '0' <= p.b[p.pos] && p.b[p.pos] <= '9' {
		p.pos++
	}
	digits := p.b[start:p.pos]
	if len(digits) == 0 || digits[0] == '0' && len(digits) > 1 {
		p.pos = start
		return 0, p.fail("extent", "a decimal number")
	}
	n := decimal(digits)
	if n < 0 || n > math.MaxInt {
		p.pos = start
		return 0, p.fail("extent is larger than 2^63-1", "")
	}
	// Python 2 wrote its long integers as 3L; version 3 is younger than that.
	if p.version < 3 && p.pos < len(p.b) && p.b[p.pos] == 'L' {
		p.pos++
	}
	return int(n), nil
}

// npyCode splits a simple descr such as "<f4" into byte order, kind and size.
func npyCode(descr string) (order, kind byte, size int64, ok bool) {
	order = '|'
	if descr != "" && strings.IndexByte("<>=|", descr[0]) >= 0 {
		order, descr = descr[0], descr[1:]
	}
	if descr == "" {
		return 0, 0, 0, false
	}
	kind, descr = descr[0], descr[1:]
	if descr == "" {
		return order, kind, 0, false
	}
	if size = decimal([]byte(descr)); size < 0 || size > math.MaxInt32 {
		return order, kind, 0, false
	}
	return order, kind, size, true
}

// npyItemSize is the size of one element, where the descr tells.
func npyItemSize(h npyHeader) (int64, bool) {
	_, kind, size, ok := npyCode(h.descr)
	if !h.simple || !ok || kind == 'O' {
		return 0, false
	}
	if kind == 'U' { // counted in characters
		size *= 4
	}
	return size, true
}

// npyType returns the type of the elements, or the reason why they can't be
// read and what to do about it.
func npyType(h npyHeader) (attention.DType, string) {
	if !h.simple {
		return 0, "structured elements are not supported: save one field, np.save(path, np.ascontiguousarray(a['field']))"
	}
	order, kind, size, ok := npyCode(h.descr)
	if kind == 'O' {
		return 0, "the elements are pickled Python objects, which are never loaded: save a numeric array, np.save(path, a.astype(np.float32))"
	}
	if !ok {
		return 0, fmt.Sprintf("element type %q is not supported: want <f4, <f2, or <V2 for bfloat16", clip(h.descr))
	}
	if isBF16Carrier(kind, size) && order != '>' {
		return 0, fmt.Sprintf("element type %q may hold bfloat16, for which npy has no name of its own: state the element type bf16 if it does", h.descr)
	}
	var t attention.DType
	switch {
	case kind == 'f' && size == 4:
		t = attention.F32
	case kind == 'f' && size == 2:
		t = attention.F16
	default:
		return 0, fmt.Sprintf("element type %q is not supported: want <f4, <f2, or <V2 for bfloat16; convert with np.save(path, a.astype(np.float32))", clip(h.descr))
	}
	if order == '>' {
		return 0, fmt.Sprintf("big-endian elements (%s) are not supported: convert with np.save(path, a.astype('<%c%d'))", h.descr, kind, size)
	}
	if h.fortran {
		return 0, "fortran order is not supported: convert with np.save(path, np.ascontiguousarray(a))"
	}
	return t, ""
}

// isBF16Carrier: NumPy has no bfloat16. ml_dtypes' arrays are saved as 2-byte
// void, and those who view them as integers first save u2 or i2.
func isBF16Carrier(kind byte, size int64) bool {
	return size == 2 && (kind == 'V' || kind == 'u' || kind == 'i')
}

// npyStated takes 2-byte elements as bfloat16 when the user says that they are.
func npyStated(t *TensorInfo, stated attention.DType) {
	order, kind, size, ok := npyCode(t.Stored)
	if ok && stated == attention.BF16 && isBF16Carrier(kind, size) && order != '>' {
		t.DType, t.Problem = attention.BF16, ""
		if t.Order != "C" {
			t.DType, t.Problem = 0, "fortran order is not supported: convert with np.save(path, np.ascontiguousarray(a))"
		}
	}
}

// encodeNpy returns the header that NumPy writes: version 1, spaces for the
// first extent to grow in place, and padding to 64 bytes with a final newline.
func encodeNpy(descr string, shape []int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr)
	for i, n := range shape {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(n))
	}
	if len(shape) == 1 {
		b.WriteString(",")
	}
	b.WriteString("), }")
	if len(shape) > 0 {
		const growth = 21
		b.WriteString(strings.Repeat(" ", growth-len(strconv.Itoa(shape[0]))))
	}
	pad := 64 - (10+b.Len()+1)%64 // 1 to 64, as NumPy has it
	b.WriteString(strings.Repeat(" ", pad) + "\n")
	h := append([]byte(npyMagic), 1, 0)
	h = binary.LittleEndian.AppendUint16(h, uint16(b.Len()))
	return append(h, b.String()...)
}

// npyDescr is what NumPy writes for t; for bfloat16, what ml_dtypes makes it write.
func npyDescr(t attention.DType) string {
	switch t {
	case attention.F32:
		return "<f4"
	case attention.F16:
		return "<f2"
	}
	return "<V2"
}
