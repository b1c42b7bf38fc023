package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// programs are what the test binary is under other names.
var programs = map[string]func(){
	"streamcqsa": main,
	"stubborn":   stubborn,
}

// The test binary is also the program: scripts and the tests of signals and
// memory run it as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv(envPrefix+"DEVICE") == "" { // budgets are the CPU device's
		os.Setenv(envPrefix+"DEVICE", "cpu")
	}
	if os.Getenv(raceOptions) == "" { // else each process waits a second when it is done
		os.Setenv(raceOptions, "atexit_sleep_ms=0")
	}
	testscript.Main(thenTidy{m}, programs)
}

// raceOptions are for the race detector, in this process's children.
const raceOptions = "GORACE"

// atEnd is what to do after all tests.
var atEnd []func()

type thenTidy struct{ *testing.M }

func (m thenTidy) Run() int {
	code := m.M.Run()
	for _, f := range atEnd {
		f()
	}
	return code
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// A variable of the user's must not reach a script.
			e.Vars = slices.DeleteFunc(e.Vars, func(v string) bool { return strings.HasPrefix(v, envPrefix) })
			e.Setenv("XDG_CACHE_HOME", filepath.Join(e.WorkDir, ".cache"))
			// Budgets are those of the CPU device with a few threads, unless a script says
			// otherwise.
			e.Setenv(envPrefix+"DEVICE", "cpu")
			e.Setenv(envPrefix+"THREADS", "2")
			e.Setenv(raceOptions, os.Getenv(raceOptions))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "gpu":
				_, err := gpu.Devices()
				return err == nil || os.Getenv("STREAMCQSA_TEST_GPU") == "1", nil
			case "root":
				return os.Geteuid() == 0, nil
			case "smalldisk":
				return smallDisks(), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"budget":    scriptBudget,
			"code":      scriptCode,
			"json":      scriptJSON,
			"jsonlines": scriptJSONLines,
			"jsonsame":  scriptJSONSame,
			"lock":      scriptLock,
			"npyfile":   scriptNpyFile,
			"plain":     scriptPlain,
			"poke":      scriptPoke,
			"resize":    scriptResize,
			"same":      scriptSame,
			"smalldisk": scriptSmallDisk,
			"xml":       scriptXML,
		},
	})
}

// stubborn is a program that the first signal does not end.
func stubborn() {
	ctx, stop := withSignals(context.Background())
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("stopping")
	time.Sleep(time.Minute)
}

// scriptCode is "code N PROGRAM ARGS...": the program must exit with N. If N
// is not 0, it must say why in one line, and leave the directory as it was: no
// output, no partial one, no states.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	before := scriptFiles(ts)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if want == 0 {
		return
	}
	message := ts.ReadFile("stderr")
	if line, rest, _ := strings.Cut(message, "\n"); !strings.HasPrefix(line, "streamcqsa: ") || rest != "" || len(line) > 600 {
		ts.Fatalf("want one line that says why, got %q", message)
	}
	after := scriptFiles(ts)
	for path := range after {
		if !reflect.DeepEqual(before[path], after[path]) {
			ts.Fatalf("a failed command left or changed %s", path)
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			ts.Fatalf("a failed command removed %s", path)
		}
	}
}

// scriptFiles are the files of a script: name, size, time.
func scriptFiles(ts *testscript.TestScript) map[string][2]int64 {
	files := make(map[string][2]int64)
	ts.Check(filepath.WalkDir(ts.MkAbs("."), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && !d.IsDir() {
			files[path] = [2]int64{fi.Size(), fi.ModTime().UnixNano()}
		}
		return err
	}))
	return files
}

var smallestBudget = regexp.MustCompile(`the smallest that works is (\d+) bytes`)

// scriptBudget is "budget FILE": sets SMALLEST to the budget that a message
// names, and LESS to one byte less.
func scriptBudget(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: budget file")
	}
	m := smallestBudget.FindStringSubmatch(ts.ReadFile(args[0]))
	if m == nil {
		ts.Fatalf("the message names no budget")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	ts.Check(err)
	ts.Setenv("SMALLEST", fmt.Sprint(n))
	ts.Setenv("LESS", fmt.Sprint(n-1))
}

// scriptDocs reads the JSON documents in FILE; FILE@N is the N-th of them
// alone, from the end if N < 0.
func scriptDocs(ts *testscript.TestScript, ref string) []any {
	file, index, one := strings.Cut(ref, "@")
	var docs []any
	for d := json.NewDecoder(strings.NewReader(ts.ReadFile(file))); ; {
		var doc any
		err := d.Decode(&doc)
		if err == io.EOF {
			break
		}
		if err != nil {
			ts.Fatalf("%s: document %d: %v", file, len(docs), err)
		}
		docs = append(docs, doc)
	}
	if !one {
		return docs
	}
	i, err := strconv.Atoi(index)
	ts.Check(err)
	if i < 0 {
		i += len(docs)
	}
	if i < 0 || i >= len(docs) {
		ts.Fatalf("%s has %d documents, no %s", file, len(docs), index)
	}
	return docs[i : i+1]
}

// scriptAt is the value at a path like memory.0.bytes in the only document of
// FILE, or in FILE@N. len is the length of a list.
func scriptAt(ts *testscript.TestScript, ref, path string) (any, bool) {
	docs := scriptDocs(ts, ref)
	if len(docs) != 1 {
		ts.Fatalf("%s has %d JSON documents, want 1", ref, len(docs))
	}
	at := docs[0]
	for _, name := range strings.Split(path, ".") {
		switch x := at.(type) {
		case map[string]any:
			v, ok := x[name]
			if !ok {
				return nil, false
			}
			at = v
		case []any:
			if name == "len" {
				at = float64(len(x))
				continue
			}
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(x) {
				return nil, false
			}
			at = x[i]
		default:
			return nil, false
		}
	}
	return at, true
}

func scriptText(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// scriptJSON is "[!] json FILE[@N] PATH [VALUE]": the path exists, with that
// value.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: json file[@n] path [value]")
	}
	v, ok := scriptAt(ts, args[0], args[1])
	if ok && len(args) == 3 {
		ok = scriptText(v) == args[2]
	}
	if ok == neg {
		ts.Fatalf("%s of %s is %s", args[1], args[0], scriptText(v))
	}
}

// scriptJSONSame is "[!] jsonsame FILE[@N] PATH FILE[@N] PATH".
func scriptJSONSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: jsonsame file[@n] path file[@n] path")
	}
	a, okA := scriptAt(ts, args[0], args[1])
	b, okB := scriptAt(ts, args[2], args[3])
	if !okA || !okB {
		ts.Fatalf("found: %v, %v", okA, okB)
	}
	if reflect.DeepEqual(a, b) == neg {
		ts.Fatalf("%v and %v", a, b)
	}
}

// scriptJSONLines is "jsonlines FILE TYPE TYPE": one document a line, the first
// and last of these types, all others status.
func scriptJSONLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: jsonlines file first last")
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n")
	for i, line := range lines {
		var doc struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			ts.Fatalf("line %d is not JSON: %v\n%s", i+1, err, line)
		}
		want := "status"
		switch i {
		case 0:
			want = args[1]
		case len(lines) - 1:
			want = args[2]
		}
		if doc.Type != want {
			ts.Fatalf("line %d has type %q, want %q", i+1, doc.Type, want)
		}
	}
}

// scriptPlain is "plain FILE LINES": at most that many lines of plain text,
// without the control characters that draw on terminals.
func scriptPlain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: plain file lines")
	}
	most, err := strconv.Atoi(args[1])
	ts.Check(err)
	text := ts.ReadFile(args[0])
	if n := strings.Count(text, "\n"); n > most {
		ts.Fatalf("%d lines, want at most %d", n, most)
	}
	for i, r := range text {
		if r != '\n' && (r < ' ' || r == 0x7f) {
			ts.Fatalf("control character %q at byte %d", r, i)
		}
	}
}

// scriptXML is "xml FILE ELEMENT": well-formed, with that outermost element.
func scriptXML(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: xml file element")
	}
	root := ""
	for d := xml.NewDecoder(strings.NewReader(ts.ReadFile(args[0]))); ; {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		ts.Check(err)
		if e, ok := tok.(xml.StartElement); ok && root == "" {
			root = e.Name.Local
		}
	}
	if root != args[1] {
		ts.Fatalf("the outermost element is %q, want %q", root, args[1])
	}
}

// scriptNpyFile is "npyfile FILE DESCR ORDER SHAPE BYTES": an npy file with any
// header, C or F order, and that many zero bytes of data, as holes.
func scriptNpyFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 5 {
		ts.Fatalf("usage: npyfile file descr C|F shape bytes")
	}
	n, err := strconv.ParseInt(args[4], 10, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), npyHeader(args[1], args[2] == "F", args[3]), 0o666))
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), fi.Size()+n))
}

// npyHeader is a version 1 header.
func npyHeader(descr string, fortran bool, shape string) []byte {
	order := "False"
	if fortran {
		order = "True"
	}
	dict := fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }", descr, order, shape)
	dict += strings.Repeat(" ", 63-(10+len(dict))%64) + "\n"
	b := binary.LittleEndian.AppendUint16([]byte("\x93NUMPY\x01\x00"), uint16(len(dict)))
	return append(b, dict...)
}

// scriptPoke is "poke FILE OFFSET HEX": overwrites bytes, from the end if
// OFFSET < 0; it makes the file if there is none.
func scriptPoke(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: poke file offset hex")
	}
	at, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	data, err := hex.DecodeString(args[2])
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR|os.O_CREATE, 0o666)
	ts.Check(err)
	defer f.Close()
	if at < 0 {
		fi, err := f.Stat()
		ts.Check(err)
		at += fi.Size()
	}
	_, err = f.WriteAt(data, at)
	ts.Check(err)
}

// scriptResize is "resize FILE BYTES": adds zeros, or cuts off.
func scriptResize(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: resize file bytes")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), fi.Size()+n))
}

// scriptSame is "[!] same FILE FILE": the same bytes.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same file file")
	}
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: the same bytes: %v", args[0], args[1], !neg)
	}
}

// scriptLock is "lock FILE": another process, this one, is writing the output
// FILE until the script ends.
func scriptLock(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: lock file")
	}
	out, err := tensorfile.Create(tensorfile.OutSpec{Path: ts.MkAbs(args[0]), DType: 1, Shape: []int{4}})
	ts.Check(err)
	ts.Defer(func() { ts.Check(out.Abort()) })
}
