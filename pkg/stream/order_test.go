package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// The operations of a small run that is stopped and goes on, in order, are those of
// testdata/order.txt: a sync that moves shows there.
func TestOrder(t *testing.T) {
	j := newCrashJob(t, "small", Request{Divide: "cqs", Chunks: 7,
		Problem: attention.Problem{Hq: 1, Hkv: 1, Nq: 20, Nk: 21, Layout: attention.ND}})
	d := newCrashDisk(0)
	var text strings.Builder
	text.WriteString(orderHead)
	n := narrator{placeBytes: int64(stateBytes(j.plan.Geometry.QueryRows))}
	d.trace = func(kind, name string, at int64, b []byte) {
		if line := n.line(kind, name, at, b); line != "" {
			fmt.Fprintln(&text, line)
		}
	}
	text.WriteString("\n# A run with a checkpoint every 4 ms, which is told to stop.\n\n")
	if x := j.command(t, d, conditions{seed: 1, every: 4 * time.Millisecond, prefetch: -1, stop: 13 * time.Millisecond}); !errors.Is(x.err, errStop) {
		t.Fatal(x.err)
	}
	text.WriteString("\n# It goes on, with hardly any checkpoints.\n\n")
	if x := j.command(t, d, conditions{seed: 2, every: time.Second, prefetch: -1}); x.err != nil {
		t.Fatal(x.err)
	}
	path := filepath.Join("testdata", "order.txt")
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, lines := strings.Split(text.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(lines)) {
		if i >= len(got) || i >= len(lines) || got[i] != lines[i] {
			t.Fatalf("line %d of %s is another: see the difference with -update. The run did:\n%s", i+1, path, text.String())
		}
	}
}

const orderHead = `# What a run does to its disk, in order: made by TestOrder. To be checked against the rules
# of the package comment:
#
#   - Before a record tells of a state or of results, these are written.
#   - Before a checkpoint is written, states, results and the journal are synced; after it
#     the journal is.
#   - A place that a state has by the last checkpoint is not written to before the next (S4).
#   - Before a journal is made, the names of outputs are synced. It is written and synced beside
#     its name, renamed, and its name synced.
#   - Results get their names, and the journal goes, when the journal says that all is there.
`

// narrator tells what is done to a disk.
type narrator struct {
	placeBytes int64
	id         uint64 // of the last journal
}

// line is an operation in words; "" for one that changes nothing.
func (n *narrator) line(kind, name string, at int64, b []byte) string {
	line := fmt.Sprintf("%-14s %s", kind, name)
	switch {
	case kind == "open":
		return ""
	case kind == "reserve":
		return fmt.Sprintf("%s: %d bytes", line, at)
	case kind == "store":
		return line + ": results"
	case kind == "write" && name == crashState:
		at, place := at%n.placeBytes, at/n.placeBytes
		return fmt.Sprintf("%s: place %d, bytes %d to %d", line, place, at, at+int64(len(b)))
	case kind == "write":
		return line + ": " + strings.Join(n.records(b), "; ")
	}
	return line
}

// records are what is written to a journal.
func (n *narrator) records(b []byte) (list []string) {
	if bytes.HasPrefix(b, []byte(magic)) {
		list = append(list, "header")
		at, id, err := new(Log).readHeader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return append(list, err.Error())
		}
		b, n.id = b[at:], id
	}
	for ; len(b) > 0; b = b[recordBytes:] {
		r, ok := decode(b[:recordBytes], n.id, binary.LittleEndian.Uint64(b[8:]))
		text := map[kind]string{kindSession: "session", kindCheckpoint: "checkpoint", kindComplete: "complete"}[r.kind]
		switch {
		case !ok:
			text = "no record"
		case r.kind == kindState:
			text = fmt.Sprintf("state of chunk %d, %d pairs, in place %d", r.chunk, r.pairs, r.place)
		case r.kind == kindDone:
			text = fmt.Sprintf("chunk %d done", r.chunk)
		}
		list = append(list, text)
	}
	return list
}
