package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// journalVerdict is the result of verify --journal.
type journalVerdict struct {
	Type       string      `json:"type"` // verify_journal
	Pass       bool        `json:"pass"` // all that must be there is
	Journal    string      `json:"journal"`
	Records    int         `json:"records"`
	Torn       int64       `json:"torn_bytes"` // after the last whole record: what was being written when the run ended
	Complete   bool        `json:"complete"`   // all results are computed
	Pid        int         `json:"pid"`        // of the process that wrote last
	Host       string      `json:"host"`       // its first 16 bytes
	Began      *time.Time  `json:"began,omitempty"`
	Written    *time.Time  `json:"written,omitempty"`
	Checkpoint *time.Time  `json:"checkpoint,omitempty"` // absent if there was none
	Chunks     int         `json:"query_chunks"`         // of all head groups
	Results    int         `json:"results"`              // query chunks whose results are there
	States     int         `json:"states"`               // others, of which a state is there
	Newer      int         `json:"lost_since_checkpoint"`
	Damage     []damageDoc `json:"damage"` // what must be there and is not
}

// damageDoc is one thing that is damaged.
type damageDoc struct {
	What   string `json:"what"` // journal, state or results
	File   string `json:"file"`
	Offset int64  `json:"offset"` // in the file; of results, that of the first row's first element
	Reason string `json:"reason"`

	*chunkDoc // absent of the journal
}

// chunkDoc is where damage to a query chunk lies.
type chunkDoc struct {
	Group int    `json:"head_group"`
	Chunk int    `json:"query_chunk"`
	Heads [2]int `json:"heads"` // query heads over the whole batch, from the first to behind the last
	Rows  [2]int `json:"rows"`  // query rows, likewise

	*placeDoc // of states
}

// placeDoc is where a state lies, and what it is.
type placeDoc struct {
	Place int   `json:"place"`
	Bytes int64 `json:"bytes"`
	Pairs int   `json:"chunk_pairs"` // in it
}

func runVerifyJournal(ctx context.Context, w io.Writer, o *verifyOptions) (err error) {
	if o.hasFiles() || o.o != "" || o.lse != "" {
		return usagef("--journal takes no --q, --k, --v, --o and --lse: it says itself which files are the run's")
	}
	v := &journalVerdict{Type: "verify_journal", Journal: o.journal, Damage: []damageDoc{}}
	if fi, err := os.Stat(o.journal); err != nil {
		return err
	} else if !fi.Mode().IsRegular() {
		return inputf("%s is not a regular file: want a journal", o.journal)
	}
	l, err := stream.ReadJournal(o.journal)
	var damaged *stream.CorruptError
	if err == nil {
		if err = v.check(ctx, l); err != nil && !errors.As(err, &damaged) {
			return err
		}
	}
	switch {
	case errors.As(err, &damaged):
		v.Damage = append(v.Damage, damageDoc{What: "journal", File: o.journal, Offset: damaged.Offset, Reason: damaged.What})
	case err != nil:
		return err
	}
	v.Pass = len(v.Damage) == 0
	if o.json {
		err = writeJSON(w, v)
	} else {
		err = v.write(w)
	}
	switch {
	case err != nil:
		return err
	case damaged != nil:
		return classify(errVerify, damaged)
	case !v.Pass:
		return classify(errVerify, fmt.Errorf("%s tells of %d %s that %s damaged, first %s", o.journal, len(v.Damage), plural(len(v.Damage), "thing"), map[bool]string{true: "is", false: "are"}[len(v.Damage) == 1], v.Damage[0]))
	}
	return nil
}

// check compares what a journal tells with what is there, if nobody works on it.
func (v *journalVerdict) check(ctx context.Context, l *stream.Log) error {
	v.Records, v.Torn, v.Complete, v.Pid, v.Host = l.Records, l.Ignored, l.Complete, l.Pid, l.Host
	for _, t := range []struct {
		at   time.Time
		into **time.Time
	}{{l.Began, &v.Began}, {l.Written, &v.Written}, {l.Saved, &v.Checkpoint}} {
		if !t.at.IsZero() {
			*t.into = &t.at
		}
	}
	specs, err := specsOf(l)
	if err != nil {
		return err
	}
	if err := atRest(l, specs); err != nil {
		return err
	}
	kept, err := openKept(specs, l.Complete)
	if err != nil {
		return err
	}
	defer kept.close()
	if l.Complete && errors.Is(kept.missing, fs.ErrNotExist) {
		return inputf("check %s: its run is complete, and the results have gone where they belong: the same command again tidies up: %w", l.Path, kept.missing)
	}
	c, err := stream.Check(ctx, l, kept.files(strings.TrimSuffix(l.Path, journalExt)+stateExt))
	if err != nil {
		return err
	}
	if err := atRest(l, specs); err != nil { // what a run did meanwhile is no damage
		return err
	}
	v.Chunks, v.Results, v.States, v.Newer = c.Chunks, c.Results, c.States, c.Newer
	for _, d := range c.Damage {
		doc := damageDoc{What: "results", File: kept.o.path, Offset: kept.o.offset + d.Offset, Reason: d.Err.Error(), chunkDoc: &chunkDoc{Group: d.Group, Chunk: d.Chunk, Heads: d.Heads, Rows: d.Rows}}
		if d.State {
			doc.What, doc.File, doc.Offset, doc.placeDoc = "state", d.Path, d.Offset, &placeDoc{d.Place, d.Bytes, d.Pairs}
		}
		v.Damage = append(v.Damage, doc)
	}
	return nil
}

// atRest makes sure that no run works on what a journal tells of, nor has since that was
// read.
func atRest(l *stream.Log, specs []tensorfile.OutSpec) error {
	for _, s := range specs {
		w, held, err := workerOf(partialOf(s))
		if err != nil {
			return err
		}
		if held {
			return classify(errTemporary, fmt.Errorf("check %s: a run works on %s (%v): only what is at rest can be checked", l.Path, partialOf(s), w))
		}
	}
	if now, err := stream.ReadJournal(l.Path); err != nil || now.Records != l.Records || !now.Written.Equal(l.Written) {
		return classify(errTemporary, fmt.Errorf("check %s: a run has gone on meanwhile", l.Path))
	}
	return nil
}

// specsOf describes the outputs of a run by its journal.
func specsOf(l *stream.Log) ([]tensorfile.OutSpec, error) {
	h := l.Header
	if n := map[bool]int{false: 1, true: 2}[h.LSE]; len(h.Outputs) != n {
		return nil, &stream.CorruptError{Path: l.Path, What: fmt.Sprintf("it names %d outputs, want %d", len(h.Outputs), n)}
	}
	if err := h.Problem.Validate(); err != nil {
		return nil, &stream.CorruptError{Path: l.Path, What: oneLine(err).Error()}
	}
	var specs []tensorfile.OutSpec
	for _, x := range h.Outputs {
		path, dir := x.Path, filepath.Dir(l.Path)
		if filepath.Base(path) != path { // above a link is not what its name says
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real
			}
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		specs = append(specs, tensorfile.OutSpec{Path: path, Partial: path + partialExt, Key: x.Key})
	}
	return described(h.Problem, specs), nil
}

// keptTensor is O or lse as a run left it.
type keptTensor struct {
	path   string // of the file
	offset int64  // of the elements in it
	data   []byte // the elements
}

// keptOutputs are the outputs of a run that is not over, or that ended before it could
// tidy up: to be read.
type keptOutputs struct {
	o, lse  keptTensor
	missing error // why they can't be read
	opened  []io.Closer
}

// openKept opens the partial outputs or, where there are none and the run was complete,
// what has their name.
func openKept(specs []tensorfile.OutSpec, complete bool) (*keptOutputs, error) {
	k := &keptOutputs{}
	k.o.path = partialOf(specs[0])
	all := []*keptTensor{&k.o, &k.lse}
	for _, file := range byFile(specs) {
		err := k.partial(file, all)
		if absent := errors.Is(err, fs.ErrNotExist); complete && (absent || errors.Is(err, tensorfile.ErrFormat)) {
			if e := k.named(file, all); e == nil || absent {
				err = e
			}
		}
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, tensorfile.ErrFormat):
			k.missing = err
		case err != nil:
			k.close()
			return nil, err
		}
		all = all[len(file):]
	}
	return k, nil
}

// partial opens a file that is not complete.
func (k *keptOutputs) partial(file []tensorfile.OutSpec, into []*keptTensor) error {
	v, err := tensorfile.ViewPartial(file...)
	if err != nil {
		return err
	}
	k.opened = append(k.opened, v)
	for i := range file {
		*into[i] = keptTensor{v.Path(), v.OffsetOf(i), v.BytesOf(i)}
	}
	return nil
}

// named opens a file under the name that it has when it is complete.
func (k *keptOutputs) named(file []tensorfile.OutSpec, into []*keptTensor) error {
	for i, s := range file {
		spec := tensorfile.Spec{Path: s.Path, Key: s.Key, DType: s.DType}
		if tensorfile.FormatOf(s.Path) == tensorfile.Raw {
			spec.Shape = s.Shape
		}
		t, err := tensorfile.Open(spec)
		if err != nil {
			return err
		}
		k.opened = append(k.opened, t)
		if !slices.Equal(t.Shape(), s.Shape) {
			return &tensorfile.FormatError{Path: s.Path, Key: s.Key, Offset: -1, What: "not the output of this run: its shape differs", Found: fmt.Sprint(t.Shape()), Want: fmt.Sprint(s.Shape)}
		}
		*into[i] = keptTensor{t.Path(), t.Offset(), t.Bytes()}
	}
	return nil
}

// files is what to check, with the states at a path.
func (k *keptOutputs) files(states string) stream.Kept {
	return stream.Kept{O: k.o.data, LSE: k.lse.data, Missing: k.missing, StatePath: states}
}

// close ends all. Nothing was written, so that closing can lose nothing.
func (k *keptOutputs) close() {
	for _, c := range k.opened {
		_ = c.Close()
	}
}

// mostDamage is how many lines of damage people get to read.
const mostDamage = 50

// write writes the verdict for people.
func (v *journalVerdict) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	if v.Records > 0 {
		line("journal\t%s, %d %s; %d bytes after them were being written", v.Journal, v.Records, plural(v.Records, "record"), v.Torn)
		state := "not complete"
		if v.Complete {
			state = "complete"
		}
		line("run\t%s; %s", state, processLine(v.Pid, v.Host, v.Began, v.Written))
		line("checkpoint\t%s", ago(v.Checkpoint))
		line("results\tof %d of %d query chunks", v.Results, v.Chunks)
		line("states\tof %d others", v.States)
		if v.Newer > 0 {
			line("lost\twhat was written down of %d query chunks after the last checkpoint: no damage", v.Newer)
		}
	}
	for i, d := range v.Damage {
		if i == mostDamage {
			line("damaged\t%d more", len(v.Damage)-i)
			break
		}
		line("damaged\t%s", d)
	}
	line("%s", map[bool]string{true: "pass", false: "FAIL"}[v.Pass])
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the verdict: %w", err)
	}
	return nil
}

func (d damageDoc) String() string {
	at := fmt.Sprintf("offset %d of %s: %s", d.Offset, d.File, d.Reason)
	if d.chunkDoc == nil {
		return at
	}
	c := fmt.Sprintf("query chunk %d of head group %d (rows %d to %d of heads %d to %d)", d.Chunk, d.Group, d.Rows[0], d.Rows[1]-1, d.Heads[0], d.Heads[1]-1)
	if d.placeDoc != nil {
		return fmt.Sprintf("the state of %s with %d chunk pairs, %d bytes in place %d, %s", c, d.Pairs, d.Bytes, d.Place, at)
	}
	return fmt.Sprintf("results of %s from %s", c, at)
}

// processLine says which process wrote a journal, for people.
func processLine(pid int, host string, began, written *time.Time) string {
	return fmt.Sprintf("process %d on %s, began %s, last heard of %s", pid, host, ago(began), ago(written))
}

// ago says how long ago a time was; "never" if there is none.
func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	return duration(max(0, time.Since(*t).Round(time.Millisecond).Seconds())) + " ago"
}
