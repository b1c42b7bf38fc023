package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

func inspectGolden(name string) string { return filepath.Join("..", "..", "testdata", name) }

func inspectText(t *testing.T, refs ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := runInspect(inspectOptions{}, refs, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func inspectJSON(t *testing.T, refs ...string) inspectReport {
	t.Helper()
	var out bytes.Buffer
	if err := runInspect(inspectOptions{json: true}, refs, &out); err != nil {
		t.Fatal(err)
	}
	var rep inspectReport
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	if err := d.Decode(&rep); err != nil {
		t.Fatal(err)
	}
	if d.More() {
		t.Error("more than one JSON document")
	}
	return rep
}

func TestInspectText(t *testing.T) {
	path := inspectGolden("qkv.safetensors")
	want := path + `: safetensors, 411 bytes, of which 360 are the header
  note = a "quoted" é <&>
  KEY       STORED   READ AS  SHAPE  BYTES  OFFSET  ORDER  LAYOUT
  none      F32      f32      [0 4]  0      360     C      rank 2: --layout nd
  v.é"😀\n  F32      f32      [2 3]  24     360     C      rank 2: --layout nd
  q         BF16     bf16     [2 3]  12     384     C      rank 2: --layout nd
  k         F16      f16      [2 3]  12     396     C      rank 2: --layout nd
  f8        F8_E4M3  -        [3]    3      408     C      rank 1: none
  f8 is not readable: element type F8_E4M3 is not supported: want F32, F16 or BF16
`
	// The columns of a line with a wide character are the terminal's affair.
	squeeze := func(s string) string {
		return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
	}
	if got := inspectText(t, path); squeeze(got) != squeeze(want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := inspectText(t, path+":k"); strings.Contains(got, "bf16") || !strings.Contains(got, "k    F16     f16") {
		t.Errorf("one key:\n%s", got)
	}
}

func TestInspectHints(t *testing.T) {
	for _, tc := range []struct{ name, want string }{
		{"bf16.npy", "element type <V2: if these are bfloat16, state --dtype bf16"},
		{"bf16_as_u2.npy", "element type <u2: if these are bfloat16, state --dtype bf16"},
		{"f16.npy", "rank 4: --layout bhnd or bnhd"},
		{"f32.npy", "rank 2: --layout nd"},
		{"vector.npy", "rank 1: none"},
		{"f64.npy", `not readable: element type "<f8"`},
		{"big_endian.npy", "astype('<f4')"},
		{"fortran.npy", "np.ascontiguousarray(a)"},
		{"f64.safetensors", "x is not readable: element type F64"},
		{"bf16_at7.bin", "raw, 31 bytes\n  a raw file does not say what it holds: state --shape and --dtype"},
	} {
		got := inspectText(t, inspectGolden(tc.name))
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s: want %q in\n%s", tc.name, tc.want, got)
		}
		if bf16 := strings.Contains(got, "--dtype bf16"); bf16 != (tc.name == "bf16.npy" || tc.name == "bf16_as_u2.npy") {
			t.Errorf("%s: told to state bf16: %v\n%s", tc.name, bf16, got)
		}
	}
}

func TestInspectJSON(t *testing.T) {
	rep := inspectJSON(t, inspectGolden("f16.npy"), inspectGolden("bf16.npy"), inspectGolden("scalar.npy"), inspectGolden("o_lse.safetensors")+":o", inspectGolden("bf16_at7.bin"))
	if len(rep.Files) != 5 {
		t.Fatalf("%d files, want 5", len(rep.Files))
	}
	f16, bf16, scalar, o, raw := rep.Files[0], rep.Files[1], rep.Files[2], rep.Files[3], rep.Files[4]
	if x := f16.Tensors[0]; f16.Format != "npy" || f16.Bytes != 176 || f16.HeaderBytes != 128 ||
		x.Stored != "<f2" || x.DType != "f16" || !slices.Equal(x.Shape, []int{1, 2, 3, 4}) || x.Bytes != 48 || x.Offset != 128 || x.Order != "C" ||
		!slices.Equal(x.Layouts, []string{"bhnd", "bnhd"}) || x.Problem != "" || x.Hint != "" {
		t.Errorf("f16.npy: %+v", f16)
	}
	if x := bf16.Tensors[0]; x.DType != "" || x.Problem == "" || !strings.Contains(x.Hint, "--dtype bf16") {
		t.Errorf("bf16.npy: %+v", bf16)
	}
	if x := scalar.Tensors[0]; x.Shape == nil || len(x.Shape) != 0 || x.Layouts == nil {
		t.Errorf("scalar.npy: %+v", scalar)
	}
	if len(o.Tensors) != 1 || o.Tensors[0].Key != "o" || o.Tensors[0].Offset != 220 || o.Metadata["base"] != "e" {
		t.Errorf("o_lse.safetensors:o: %+v", o)
	}
	if raw.Format != "raw" || raw.Bytes != 31 || raw.Tensors == nil || len(raw.Tensors) != 0 || raw.Hint == "" {
		t.Errorf("bf16_at7.bin: %+v", raw)
	}
}

// One bad file hides no good one, but is an error.
func TestInspectBadFiles(t *testing.T) {
	dir := t.TempDir()
	bad, missing := filepath.Join(dir, "bad.npy"), filepath.Join(dir, "missing.npy")
	if err := os.WriteFile(bad, []byte("not numpy at all"), 0o666); err != nil {
		t.Fatal(err)
	}
	refs := []string{bad, inspectGolden("f32.npy"), missing, inspectGolden("one.safetensors") + ":none"}
	var text, doc bytes.Buffer
	err := runInspect(inspectOptions{}, refs, &text)
	if !errors.Is(err, tensorfile.ErrFormat) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want those of both files", err)
	}
	if err == nil || !strings.Contains(err.Error(), "one.safetensors:none: no such key among its 1") {
		t.Errorf("error %v, want one about the key", err)
	}
	if got := text.String(); !strings.HasPrefix(got, inspectGolden("f32.npy")) || strings.Contains(got, "bad") {
		t.Errorf("printed\n%s", got)
	}
	if err := runInspect(inspectOptions{json: true}, refs, &doc); err == nil {
		t.Error("no error with --json")
	}
	var rep inspectReport
	if err := json.Unmarshal(doc.Bytes(), &rep); err != nil {
		t.Fatal(err)
	}
	for i, f := range rep.Files {
		if (f.Error != "") != (i != 1) {
			t.Errorf("%s: error %q", f.Path, f.Error)
		}
	}
}

func TestInspectCommand(t *testing.T) {
	var out bytes.Buffer
	cmd := newInspectCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{inspectGolden("f32.npy")})
	if err := cmd.Execute(); err != nil || out.Len() == 0 {
		t.Errorf("error %v, printed %q", err, out.String())
	}
	cmd = newInspectCommand()
	cmd.SetArgs([]string{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil {
		t.Error("no files: no error")
	}
}
