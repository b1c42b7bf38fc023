package tensorfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// stFile is a safetensors file with text as its header.
func stFile(text string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	b = append(b, text...)
	return append(b, make([]byte, data)...)
}

// stOne is a file of one F32 tensor.
func stOne(shape, offsets string, data int) []byte {
	return stFile(`{"a":{"dtype":"F32","shape":`+shape+`,"data_offsets":`+offsets+`}}`, data)
}

func TestSafetensorsForms(t *testing.T) {
	file := stFile("{ \"b\" : {\"data_offsets\":[8, 14],\n\"shape\":[3],\"dtype\":\"BF16\"},\t"+
		`"__metadata__":{"k\u00e9y":"a\"\\\/\b\f\n\r\t\ud83d\ude00","":""},`+
		`"":{"dtype":"F16","shape":[],"data_offsets":[14,16]},`+
		`"zero":{"dtype":"F32","shape":[5,0],"data_offsets":[8,8]},`+
		`"packed":{"dtype":"F4","shape":[2,3],"data_offsets":[16,19]},`+
		`"new":{"dtype":"F2_X","shape":[9],"data_offsets":[19,20]},`+
		`"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}   `, 20)
	info, err := parseSafetensors(file, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	at := info.HeaderBytes
	unsupported := "element type %s is not supported: want F32, F16 or BF16"
	want := []TensorInfo{
		{Key: "a", Stored: "F32", DType: attention.F32, Shape: []int{2, 1}, Offset: at, Bytes: 8, Order: "C"},
		{Key: "zero", Stored: "F32", DType: attention.F32, Shape: []int{5, 0}, Offset: at + 8, Bytes: 0, Order: "C"},
		{Key: "b", Stored: "BF16", DType: attention.BF16, Shape: []int{3}, Offset: at + 8, Bytes: 6, Order: "C"},
		{Key: "", Stored: "F16", DType: attention.F16, Shape: []int{}, Offset: at + 14, Bytes: 2, Order: "C"},
		{Key: "packed", Stored: "F4", Shape: []int{2, 3}, Offset: at + 16, Bytes: 3, Order: "C", Problem: fmt.Sprintf(unsupported, "F4")},
		{Key: "new", Stored: "F2_X", Shape: []int{9}, Offset: at + 19, Bytes: 1, Order: "C", Problem: fmt.Sprintf(unsupported, "F2_X")},
	}
	if !reflect.DeepEqual(info.Tensors, want) {
		t.Errorf("got  %+v\nwant %+v", info.Tensors, want)
	}
	if want := map[string]string{"kéy": "a\"\\/\b\f\n\r\t😀", "": ""}; !reflect.DeepEqual(info.Metadata, want) {
		t.Errorf("metadata: got %q, want %q", info.Metadata, want)
	}
	for _, text := range []string{"{}", `{"__metadata__": null }`, `{"__metadata__":{}}`} {
		file := stFile(text, 0)
		if info, err := parseSafetensors(file, int64(len(file))); err != nil || len(info.Tensors) != 0 || len(info.Metadata) != 0 {
			t.Errorf("%s: %v, %v", text, info, err)
		}
	}
}

func TestSafetensorsBad(t *testing.T) {
	declare := func(n uint64) []byte { return append(binary.LittleEndian.AppendUint64(nil, n), "{}"...) }
	two := func(a, b string, data int) []byte {
		return stFile(`{"a":{"dtype":"F32","shape":[2],"data_offsets":`+a+`},"b":{"dtype":"F32","shape":[1],"data_offsets":`+b+`}}`, data)
	}
	for _, c := range []struct {
		file []byte
		want string
	}{
		{nil, "safetensors header is cut off: found 0 bytes, want at least 8"},
		{declare(1 << 63), "offset 0: safetensors header length: found 9223372036854775808, want at most 100000000"},
		{declare(1<<64 - 8), "offset 0: safetensors header length: found 18446744073709551608, want at most 100000000"},
		{declare(3), "offset 0: safetensors header is longer than the file: found a header of 3 bytes at 8, want at most 2"},
		{stFile("", 0), `offset 8: safetensors header: not an object: found the end of the header, want "{"`},
		{stFile(" {}", 0), `offset 8: safetensors header: not an object: found " {}", want "{"`},
		{stFile("[]", 0), `offset 8: safetensors header: not an object: found "[]", want "{"`},
		{stFile("{}x", 0), `offset 10: safetensors header: text after the object: found "x"`},
		{stFile("{}\x00", 0), `offset 10: safetensors header: text after the object: found "\x00"`},
		{stFile("{,}", 0), `offset 9: safetensors header: not a string: found ",}", want a double quote`},
		{stFile(`{"a"`, 0), `offset 12: safetensors header: object: found the end of the header, want ":"`},
		{stFile(`{"a`, 0), `offset 11: safetensors header: string does not end: found the end of the header`},
		{stFile(`{"a":null}`, 0), `offset 13: safetensors header: not an object: found "null}", want "{"`},
		{stFile(`{"__metadata__":{"a":1}}`, 0), `offset 29: safetensors header: not a string: found "1}}", want a double quote`},
		{stFile(`{"__metadata__":{},"__metadata__":{}}`, 0), `offset 27: safetensors header: key "__metadata__" appears twice: found "\"__metadata__\":{"`},
		{stFile(`{"__metadata__":{"a":"","a":""}}`, 0), `offset 32: safetensors header: key "a" appears twice: found "\"a\":\"\"}}"`},
		{stFile(`{"a":{"dtype":"F32","dtype":"F32"}}`, 0), `offset 28: safetensors header: key "dtype" appears twice: found "\"dtype\":\"F32\"}}"`},
		{stFile(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8), `offset 62: safetensors header: key "a" appears twice: found "\"\\u0061\":{\"dtype"`},
		{stFile(`{"a":{"dtype":"F32","shape":[]}}`, 0), `offset 39: safetensors header: field of a tensor is missing: found "}", want dtype, shape and data_offsets`},
		{stFile(`{"a":{"dtype":"F32","strides":[]}}`, 0), `offset 38: safetensors header: field "strides" of a tensor: found "[]}}", want dtype, shape and data_offsets only`},
		{stFile(`{"a":{"dtype":"F32",}}`, 0), `offset 28: safetensors header: not a string: found "}}", want a double quote`},
		{stFile(`{"a":{"dtype":"F32" "shape":[]}}`, 0), `offset 28: safetensors header: object: found "\"shape\":[]}}", want "," or "}"`},
		{stFile("{\"\xff\":{}}", 0), `offset 10: safetensors header: string is not UTF-8: found "\xff\":{}}"`},
		{stFile("{\"\\n\xff\":{}}", 0), `offset 14: safetensors header: string is not UTF-8: found ":{}}"`},
		{stFile("{\"a\nb\":{}}", 0), `offset 11: safetensors header: control character in a string: found "\nb\":{}}"`},
		{stFile(`{"a\x":{}}`, 0), `offset 11: safetensors header: escape in a string: found "\\x\":{}}"`},
		{stFile(`{"a\u12`, 0), `offset 11: safetensors header: escape in a string: found "\\u12"`},
		{stFile(`{"a\u+123":{}}`, 0), `offset 11: safetensors header: escape in a string: found "\\u+123\":{}}"`},
		{stFile(`{"\ud83d":{}}`, 0), `offset 10: safetensors header: escape in a string: found "\\ud83d\":{}}"`},
		{stFile(`{"\ude00\ud83d":{}}`, 0), `offset 10: safetensors header: escape in a string: found "\\ude00\\ud83d\":{}"`},
		{stOne("2", "[0,8]", 8), `offset 36: safetensors header: shape is not a list: found "2,\"data_offsets\"", want "["`},
		{stOne("[-2]", "[0,8]", 8), `offset 37: safetensors header: negative extent: found "-2],\"data_offset"`},
		{stOne("[2.0]", "[0,8]", 8), `offset 37: safetensors header: extent: found "2.0],\"data_offse", want a whole number from 0 to 2^63-1`},
		{stOne("[2e0]", "[0,8]", 8), `offset 37: safetensors header: extent: found "2e0],\"data_offse", want a whole number from 0 to 2^63-1`},
		{stOne("[02]", "[0,8]", 8), `offset 37: safetensors header: extent: found "02],\"data_offset", want a whole number from 0 to 2^63-1`},
		{stOne("[NaN]", "[0,8]", 8), `offset 37: safetensors header: extent: found "NaN],\"data_offse", want a whole number from 0 to 2^63-1`},
		{stOne("[9223372036854775808]", "[0,8]", 8), `offset 37: safetensors header: extent: found "9223372036854775", want a whole number from 0 to 2^63-1`},
		{stOne("[2,]", "[0,8]", 8), `offset 39: safetensors header: extent: found "],\"data_offsets\"", want a whole number from 0 to 2^63-1`},
		{stOne("[2 1]", "[0,8]", 8), `offset 39: safetensors header: shape: found "1],\"data_offsets", want "," or "]"`},
		{stOne("["+strings.Repeat("1,", 64)+"1]", "[0,4]", 4), `offset 165: safetensors header: shape has more than 64 extents: found "1],\"data_offsets"`},
		{stOne("[2]", "8", 8), `offset 55: safetensors header: data_offsets is not a list: found "8}}", want "["`},
		{stOne("[2]", "[8]", 8), `offset 57: safetensors header: data_offsets: found "]}}", want ","`},
		{stOne("[2]", "[0,8,9]", 8), `offset 59: safetensors header: data_offsets: found ",9]}}", want "]"`},
		{stOne("[2]", "[8,0]", 8), `offset 59: safetensors header: data_offsets [8, 0] end before they begin: found "]}}"`},
		{stOne("[2]", "[0,-8]", 8), `offset 58: safetensors header: negative end of data_offsets: found "-8]}}"`},
		{stOne("[2]", "[9223372036854775807,9223372036854775807]", 8), "a: data are cut off: found a file of 106 bytes, 8 of them data, want data up to 9223372036854775807"},
		{stOne("[2]", "[0,8]", 7), "a: data are cut off: found a file of 69 bytes, 7 of them data, want data up to 8"},
		{stOne("[2]", "[0,8]", 9), "offset 70: bytes after the data: found a file of 71 bytes, want 70"},
		{stFile("{}", 1), "offset 10: bytes after the data: found a file of 11 bytes, want 10"},
		{stOne("[3]", "[0,8]", 8), "a: data_offsets do not fit shape [3] of F32: found 8 bytes, want 12"},
		{stOne("[1]", "[0,8]", 8), "a: data_offsets do not fit shape [1] of F32: found 8 bytes, want 4"},
		{stOne("[4294967296,4294967296]", "[0,0]", 0), "a: shape [4294967296 4294967296] of F32 is not a whole number of bytes below 2^63"},
		{stOne("[4294967296,1073741824]", "[0,0]", 0), "a: shape [4294967296 1073741824] of F32 is not a whole number of bytes below 2^63"},
		{stOne("[9223372036854775807,2,0]", "[0,0]", 0), "a: shape [9223372036854775807 2 0] of F32 is not a whole number of bytes below 2^63"},
		{stFile(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}`, 2), "a: shape [3] of F4 is not a whole number of bytes below 2^63"},
		{two("[4,12]", "[0,4]", 12), ""},
		{two("[0,8]", "[4,8]", 8), "b: offset 119: data overlap those of another tensor: found data at 119, want 123"},
		{two("[0,8]", "[0,4]", 8), "a: offset 115: data overlap those of another tensor: found data at 115, want 119"},
		{two("[0,8]", "[9,13]", 13), "b: offset 125: unused bytes before the data: found data at 125, want 124"},
		{two("[1,9]", "[9,13]", 13), "a: offset 117: unused bytes before the data: found data at 117, want 116"},
	} {
		_, err := parseSafetensors(c.file, int64(len(c.file)))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.file[8:], err)
			}
			continue
		}
		checkFormatError(t, err, c.want)
	}
}

// Our header of what the reference wrote is the reference's, but for spaces.
func TestSafetensorsGoldenHeaders(t *testing.T) {
	for _, name := range []string{"o_lse", "one"} {
		file := golden(t, name+".safetensors")
		info, err := parseSafetensors(file, int64(len(file)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var specs []OutSpec
		for _, ti := range info.Tensors { // any order in
			specs = append([]OutSpec{{Path: "x.safetensors", Key: ti.Key, DType: ti.DType, Shape: ti.Shape, Metadata: info.Metadata}}, specs...)
		}
		l, err := planOutput(specs)
		if err != nil {
			t.Fatal(err)
		}
		got, want := bytes.TrimRight(l.header[8:], " "), bytes.TrimRight(file[8:info.HeaderBytes], " ")
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
		if n := binary.LittleEndian.Uint64(l.header); n != uint64(len(l.header)-8) || len(l.header)%64 != 0 {
			t.Errorf("%s: length field %d of a header of %d bytes", name, n, len(l.header))
		}
	}
}

func FuzzSafetensorsHeader(f *testing.F) {
	for _, name := range []string{"qkv", "o_lse", "one", "f64"} {
		b := golden(f, name+".safetensors")
		f.Add(b, int64(len(b)))
	}
	f.Add(stOne("[1073741824,3]", "[0,12884901888]", 0), int64(82+12884901888))
	f.Add(stFile(`{"__metadata__":{"\ud83d\ude00":"\u00e9"}}`, 0), int64(52))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		if size < 0 {
			return
		}
		info, err := parseSafetensors(data, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		checkRanges(t, info, size)
		checkPartition(t, info, size)
		checkRewrite(t, info)
	})
}

// checkPartition: each byte behind the header belongs to one tensor.
func checkPartition(t *testing.T, info *Info, size int64) {
	t.Helper()
	sum, keys := info.HeaderBytes, map[string]bool{}
	for _, ti := range info.Tensors {
		if ti.Offset != sum || keys[ti.Key] || ti.Key == metadataKey {
			t.Fatalf("%q: at %d, want %d; again: %v", ti.Key, ti.Offset, sum, keys[ti.Key])
		}
		sum += ti.Bytes
		keys[ti.Key] = true
	}
	if sum != size {
		t.Fatalf("tensors end at %d of %d", sum, size)
	}
}

// checkRewrite: what is accepted survives being written and read again.
func checkRewrite(t *testing.T, info *Info) {
	t.Helper()
	for _, ti := range info.Tensors {
		if ti.Problem != "" || ti.Key == "" {
			return
		}
	}
	if len(info.Tensors) == 0 {
		return
	}
	header, err := encodeSafetensors(info.Tensors, info.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(header)) + info.Size - info.HeaderBytes
	if size < 0 {
		return // a longer header than the one read, on a file just below 2^63
	}
	got, err := parseSafetensors(header, size)
	if err != nil {
		t.Fatalf("written again: %v\n%q", err, header)
	}
	for i, ti := range info.Tensors {
		ti.Offset += got.HeaderBytes - info.HeaderBytes
		if !reflect.DeepEqual(ti, got.Tensors[i]) {
			t.Fatalf("written again: got %+v, want %+v", got.Tensors[i], ti)
		}
	}
	if len(info.Metadata) > 0 && !reflect.DeepEqual(info.Metadata, got.Metadata) {
		t.Fatalf("written again: got %q, want %q", got.Metadata, info.Metadata)
	}
}
