package tensorfile

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// The format's own limit.
const safetensorsMaxHeader = 100_000_000

const metadataKey = "__metadata__"

// safetensorsBits are the element sizes of the types that the format knows.
// Files with a type that is not here can be opened, but not that tensor.
var safetensorsBits = map[string]int64{
	"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
	"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"C64": 64, "F64": 64, "I64": 64, "U64": 64,
}

// parseSafetensors reads the header of a safetensors file of size bytes. data
// is the file, or at least its beginning.
func parseSafetensors(data []byte, size int64) (*Info, error) {
	data = data[:min(int64(len(data)), size)]
	if len(data) < 8 {
		return nil, &FormatError{Offset: -1, What: "safetensors header is cut off", Found: fmt.Sprintf("%d bytes", size), Want: "at least 8"}
	}
	n := binary.LittleEndian.Uint64(data)
	if n > safetensorsMaxHeader {
		return nil, &FormatError{Offset: 0, What: "safetensors header length", Found: strconv.FormatUint(n, 10), Want: fmt.Sprintf("at most %d", safetensorsMaxHeader)}
	}
	if n > uint64(len(data)-8) {
		return nil, &FormatError{Offset: 0, What: "safetensors header is longer than the file", Found: fmt.Sprintf("a header of %d bytes at 8", n), Want: fmt.Sprintf("at most %d", len(data)-8)}
	}
	start := 8 + int64(n)
	p := jsonParser{b: data[8:start], base: 8}
	info := &Info{Format: Safetensors, Size: size, HeaderBytes: start}
	if err := p.document(info); err != nil {
		return nil, err
	}
	for i := range info.Tensors {
		if err := checkSafetensors(&info.Tensors[i], start, size); err != nil {
			return nil, err
		}
	}
	return info, checkNoHoles(info)
}

// checkSafetensors checks one tensor on its own and makes its offset one in
// the file.
func checkSafetensors(t *TensorInfo, start, size int64) error {
	if t.Bytes > size-start-t.Offset {
		return &FormatError{Key: t.Key, Offset: -1, What: "data are cut off", Found: fmt.Sprintf("a file of %d bytes, %d of them data", size, size-start), Want: fmt.Sprintf("data up to %d", t.Offset+t.Bytes)}
	}
	t.Offset += start
	t.Order = "C"
	switch t.Stored {
	case "F32":
		t.DType = attention.F32
	case "F16":
		t.DType = attention.F16
	case "BF16":
		t.DType = attention.BF16
	default:
		t.Problem = fmt.Sprintf("element type %s is not supported: want F32, F16 or BF16", clip(t.Stored))
	}
	elemBits, known := safetensorsBits[t.Stored]
	if !known {
		return nil
	}
	want, ok := byteSize(t.Shape, elemBits)
	if !ok {
		return &FormatError{Key: t.Key, Offset: -1, What: fmt.Sprintf("shape %v of %s is not a whole number of bytes below 2^63", t.Shape, t.Stored)}
	}
	if want != t.Bytes {
		return &FormatError{Key: t.Key, Offset: -1, What: fmt.Sprintf("data_offsets do not fit shape %v of %s", t.Shape, t.Stored), Found: fmt.Sprintf("%d bytes", t.Bytes), Want: strconv.FormatInt(want, 10)}
	}
	return nil
}

// checkNoHoles sorts the tensors by offset and checks that each byte of the
// data belongs to exactly one, as the format demands.
func checkNoHoles(info *Info) error {
	slices.SortFunc(info.Tensors, func(a, b TensorInfo) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Key, b.Key))
	})
	end := info.HeaderBytes
	for _, t := range info.Tensors {
		if t.Offset != end {
			what := "unused bytes before the data"
			if t.Offset < end {
				what = "data overlap those of another tensor"
			}
			return &FormatError{Key: t.Key, Offset: t.Offset, What: what, Found: fmt.Sprintf("data at %d", t.Offset), Want: strconv.FormatInt(end, 10)}
		}
		end += t.Bytes
	}
	if end != info.Size {
		return &FormatError{Offset: end, What: "bytes after the data", Found: fmt.Sprintf("a file of %d bytes", info.Size), Want: strconv.FormatInt(end, 10)}
	}
	return nil
}

// jsonParser parses the one JSON document that a safetensors header may be. It
// knows the format's grammar instead of JSON's: nothing nests, so nothing
// recurses, and what it holds is bounded by the bytes it has read. Duplicate
// keys and unknown fields are errors: readers differ in which duplicate they
// take, and a field that we don't know could change what the data mean.
type jsonParser struct {
	b    []byte
	pos  int
	base int64 // offset of b[0] in the file
}

func (p *jsonParser) fail(what, want string) error {
	found := "the end of the header"
	if p.pos < len(p.b) {
		found = fmt.Sprintf("%q", p.b[p.pos:min(len(p.b), p.pos+16)])
	}
	return &FormatError{Offset: p.base + int64(p.pos), What: "safetensors header: " + what, Found: found, Want: want}
}

// take skips white space and c, if c is next.
func (p *jsonParser) take(c byte) bool {
	p.space()
	if p.pos < len(p.b) && p.b[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

func (p *jsonParser) space() {
	for p.pos < len(p.b) && strings.IndexByte(" \t\r\n", p.b[p.pos]) >= 0 {
		p.pos++
	}
}

func (p *jsonParser) document(info *Info) error {
	if len(p.b) == 0 || p.b[0] != '{' {
		return p.fail("not an object", `"{"`)
	}
	err := p.object(func(key string) (err error) {
		if key == metadataKey {
			info.Metadata, err = p.metadata()
			return err
		}
		t, err := p.tensor()
		t.Key = key
		info.Tensors = append(info.Tensors, t)
		return err
	})
	if err != nil {
		return err
	}
	if p.space(); p.pos < len(p.b) {
		return p.fail("text after the object", "")
	}
	return nil
}

// object calls value at the value of each key.
func (p *jsonParser) object(value func(key string) error) error {
	if !p.take('{') {
		return p.fail("not an object", `"{"`)
	}
	seen := map[string]struct{}{}
	for !p.take('}') {
		if len(seen) > 0 && !p.take(',') {
			return p.fail("object", `"," or "}"`)
		}
		p.space()
		at := p.pos
		key, err := p.str()
		if err != nil {
			return err
		}
		if _, dup := seen[key]; dup {
			p.pos = at
			return p.fail(fmt.Sprintf("key \"%s\" appears twice", clip(key)), "")
		}
		seen[key] = struct{}{}
		if !p.take(':') {
			return p.fail("object", `":"`)
		}
		if err := value(key); err != nil {
			return err
		}
	}
	return nil
}

// metadata may be null: readers in other languages take that for none.
func (p *jsonParser) metadata() (map[string]string, error) {
	p.space()
	if bytes.HasPrefix(p.b[p.pos:], []byte("null")) {
		p.pos += len("null")
		return nil, nil
	}
	m := map[string]string{}
	err := p.object(func(key string) (err error) {
		m[key], err = p.str()
		return err
	})
	return m, err
}

// tensor leaves the offset relative to the data.
func (p *jsonParser) tensor() (t TensorInfo, err error) {
	fields := 0
	err = p.object(func(key string) (err error) {
		fields++
		switch key {
		case "dtype":
			t.Stored, err = p.str()
		case "shape":
			t.Shape, err = p.extents()
		case "data_offsets":
			t.Offset, t.Bytes, err = p.offsets()
		default:
			err = p.fail(fmt.Sprintf("field \"%s\" of a tensor", clip(key)), "dtype, shape and data_offsets only")
		}
		return err
	})
	if err == nil && fields != 3 {
		err = p.fail("field of a tensor is missing", "dtype, shape and data_offsets")
	}
	return t, err
}

func (p *jsonParser) extents() ([]int, error) {
	if !p.take('[') {
		return nil, p.fail("shape is not a list", `"["`)
	}
	shape := []int{}
	for !p.take(']') {
		if len(shape) > 0 && !p.take(',') {
			return nil, p.fail("shape", `"," or "]"`)
		}
		if len(shape) == maxRank {
			return nil, p.fail(fmt.Sprintf("shape has more than %d extents", maxRank), "")
		}
		n, err := p.integer("extent")
		if err != nil {
			return nil, err
		}
		if n > math.MaxInt {
			return nil, p.fail("extent does not fit this machine's integers", "")
		}
		shape = append(shape, int(n))
	}
	return shape, nil
}

func (p *jsonParser) offsets() (begin, length int64, err error) {
	if !p.take('[') {
		return 0, 0, p.fail("data_offsets is not a list", `"["`)
	}
	if begin, err = p.integer("begin of data_offsets"); err != nil {
		return 0, 0, err
	}
	if !p.take(',') {
		return 0, 0, p.fail("data_offsets", `","`)
	}
	end, err := p.integer("end of data_offsets")
	if err != nil {
		return 0, 0, err
	}
	if end < begin {
		return 0, 0, p.fail(fmt.Sprintf("data_offsets [%d, %d] end before they begin", begin, end), "")
	}
	if !p.take(']') {
		return 0, 0, p.fail("data_offsets", `"]"`)
	}
	return begin, end - begin, nil
}

// integer parses a natural number below 2^63 without a fraction or an exponent.
func (p *jsonParser) integer(what string) (int64, error) {
	p.space()
	start := p.pos
	if p.pos < len(p.b) && p.b[p.pos] == '-' {
		return 0, p.fail("negative "+what, "")
	}
	for p.pos < len(p.b) && '0' <= p.b[p.pos] && p.b[p.pos] <= '9' {
		p.pos++
	}
	digits := p.b[start:p.pos]
	fraction := p.pos < len(p.b) && strings.IndexByte(".eE", p.b[p.pos]) >= 0
	n := decimal(digits)
	if n < 0 || fraction || digits[0] == '0' && len(digits) > 1 {
		p.pos = start
		return 0, p.fail(what, "a whole number from 0 to 2^63-1")
	}
	return n, nil
}

// str parses a string. The copy is the caller's to keep: the header may be a map.
func (p *jsonParser) str() (string, error) {
	if !p.take('"') {
		return "", p.fail("not a string", "a double quote")
	}
	start := p.pos
	for ; p.pos < len(p.b); p.pos++ {
		switch c := p.b[p.pos]; {
		case c == '"' || c == '\\':
			s := p.b[start:p.pos]
			if !utf8.Valid(s) {
				p.pos = start
				return "", p.fail("string is not UTF-8", "")
			}
			if c == '\\' {
				return p.escaped(string(s))
			}
			p.pos++
			return string(s), nil
		case c < ' ':
			return "", p.fail("control character in a string", "")
		}
	}
	return "", p.fail("string does not end", "")
}

// escaped continues str at the first backslash.
func (p *jsonParser) escaped(before string) (string, error) {
	s := []byte(before)
	for p.pos < len(p.b) {
		c := p.b[p.pos]
		switch {
		case c == '"':
			p.pos++
			if !utf8.Valid(s) {
				return "", p.fail("string is not UTF-8", "")
			}
			return string(s), nil
		case c < ' ':
			return "", p.fail("control character in a string", "")
		case c != '\\':
			s = append(s, c)
			p.pos++
			continue
		}
		r, n := p.escape()
		if n == 0 {
			return "", p.fail("escape in a string", "")
		}
		s = utf8.AppendRune(s, r)
		p.pos += n
	}
	return "", p.fail("string does not end", "")
}

// escape decodes the escape at pos and returns its length, 0 if it is none. A
// surrogate must have its partner: alone it is no character.
func (p *jsonParser) escape() (rune, int) {
	rest := p.b[p.pos+1:]
	if len(rest) == 0 {
		return 0, 0
	}
	if i := strings.IndexByte(`"\/bfnrt`, rest[0]); i >= 0 {
		return rune("\"\\/\b\f\n\r\t"[i]), 2
	}
	r := hex4(rest)
	if r < 0 {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	if len(rest) < 6 || rest[5] != '\\' {
		return 0, 0
	}
	if r = utf16.DecodeRune(r, hex4(rest[6:])); r == utf8.RuneError {
		return 0, 0
	}
	return r, 12
}

// hex4 decodes u and four hexadecimal digits, or returns -1.
func hex4(b []byte) rune {
	if len(b) < 5 || b[0] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(b[1:5]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}

// encodeSafetensors returns the header for tensors that follow each other in
// the given order. Keys of the metadata are sorted, so that equal outputs are
// equal files. Spaces pad the header until the data start at a multiple of 64,
// as in npy; the reference writer pads to 8.
func encodeSafetensors(tensors []TensorInfo, metadata map[string]string) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteByte('{')
	if len(metadata) > 0 {
		fmt.Fprintf(&b, "%q:%s,", metadataKey, jsonText(metadata))
	}
	offset := int64(0)
	for _, t := range tensors {
		fmt.Fprintf(&b, `%s:{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]},`, jsonText(t.Key), t.Stored, jsonText(t.Shape), offset, offset+t.Bytes)
		offset += t.Bytes
	}
	b.Truncate(b.Len() - 1)
	b.WriteByte('}')
	for b.Len()%64 != 0 {
		b.WriteByte(' ')
	}
	if b.Len()-8 > safetensorsMaxHeader {
		return nil, fmt.Errorf("safetensors header: %d bytes of keys and metadata, at most %d", b.Len()-8, safetensorsMaxHeader)
	}
	binary.LittleEndian.PutUint64(b.Bytes(), uint64(b.Len()-8))
	return b.Bytes(), nil
}

// jsonText encodes strings, shapes and string maps, for which there is no error.
func jsonText(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("tensorfile: encode: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// safetensorsDType is the format's name of t.
func safetensorsDType(t attention.DType) string { return strings.ToUpper(t.String()) }
