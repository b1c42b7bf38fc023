package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// runStatusDoc is what a journal tells of a run, and what is known of its process.
type runStatusDoc struct {
	Type     string    `json:"type"` // status
	Journal  string    `json:"journal"`
	Complete bool      `json:"complete"` // all results are computed
	Pairs    float64   `json:"pairs"`
	Total    float64   `json:"total_pairs"`
	Left     float64   `json:"seconds_left,omitempty"` // at the rate of the process that wrote last; absent if unknown
	Written  time.Time `json:"written"`
	Saved    time.Time `json:"checkpoint"`
	Pid      int       `json:"pid"`
	Host     string    `json:"host"` // its first 16 bytes
	Began    time.Time `json:"began"`

	InUse   bool   `json:"in_use"`                   // a process works on the output
	Worker  int    `json:"worker_pid,omitempty"`     // which one; absent if the system doesn't say
	Command string `json:"worker_command,omitempty"` // likewise
}

// finishedDoc is the status of a result that has its place, and of whose run nothing is left.
type finishedDoc struct {
	Type     string    `json:"type"`     // status
	Complete bool      `json:"complete"` // true
	Output   string    `json:"output"`
	Bytes    int64     `json:"bytes"` // of its file
	Written  time.Time `json:"written"`
}

func newStatusCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "status OUT",
		Short: "Tell how far a run is, in work or stopped",
		Long: `Tell how far the run that writes OUT is, by its journal: the pairs done as of the
last thing it wrote down, the last checkpoint, the process that wrote it, and
whether a process works on OUT now. Where no run has left anything and OUT is a tensor
file, it is complete. That is a status like any other: the exit code is 0.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.out = args[0]
			return runStatus(cmd.OutOrStdout(), &o)
		},
	}
	cmd.Flags().StringVar(&o.stateDir, "state-dir", "", "`DIR` that the run was given")
	cmd.Flags().BoolVar(&o.json, "json", false, "write a JSON document")
	return cmd
}

func runStatus(out io.Writer, o *runOptions) error {
	w, held, err := workerOf(o.partialPath(o.out))
	if err != nil {
		return err
	}
	l, err := stream.ReadJournal(o.journalPath())
	if errors.Is(err, fs.ErrNotExist) && held { // by now, it may have ended
		if w, held, err = workerOf(o.partialPath(o.out)); err != nil {
			return err
		}
		l, err = stream.ReadJournal(o.journalPath())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && held:
		return classify(errTemporary, fmt.Errorf("there is no journal %s yet: a run of %s has only begun (%v)", o.journalPath(), o.out, w))
	case errors.Is(err, fs.ErrNotExist):
		return o.finished(out)
	case err != nil:
		return err
	}
	d := runStatusDoc{Type: "status", Journal: l.Path, Complete: l.Complete, Pairs: l.Work, Total: l.Total(), Written: l.Written, Saved: l.Saved,
		Pid: l.Pid, Host: l.Host, Began: l.Began, InUse: held, Worker: w.pid, Command: w.command}
	if done := l.Work - l.WorkAt; done > 0 {
		d.Left = (d.Total - d.Pairs) / done * l.Spent
	}
	if o.json {
		return writeStatus(out, d)
	}
	return d.write(out, w)
}

func writeStatus(out io.Writer, doc any) error {
	if err := json.NewEncoder(out).Encode(doc); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// finished tells of an output without a journal. A result gets its name when it is complete;
// but one beside a partial file is older than the run that began that.
func (o *runOptions) finished(out io.Writer) error {
	partial, journal := o.partialPath(o.out), o.journalPath()
	if _, err := os.Lstat(partial); err == nil {
		return inputf("there is no journal %s: the run that left %s had only begun: the same command begins anew", journal, partial)
	}
	f, err := inspectRef(o.out)
	if errors.Is(err, fs.ErrNotExist) {
		return inputf("there is neither %s nor a journal %s: no run writes %s, or it has only begun", f.Path, journal, o.out)
	}
	if err != nil {
		return fmt.Errorf("there is no journal %s, and what is in the result's place is none: %w", journal, err)
	}
	fi, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	d := finishedDoc{Type: "status", Complete: true, Output: f.Path, Bytes: f.Bytes, Written: fi.ModTime()}
	if o.json {
		return writeStatus(out, d)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "done\t100.0%% of pairs\nresult\t%s, %s bytes, written %s\n", d.Output, grouped(d.Bytes), ago(&d.Written))
	for _, x := range f.Tensors {
		fmt.Fprintf(t, "tensor\t%s %v\n", strings.TrimSpace(x.Key+" "+x.Stored), x.Shape)
	}
	fmt.Fprintf(t, "now\tcomplete, and nothing of the run is left\n")
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}

// write writes a status for people.
func (d runStatusDoc) write(out io.Writer, w worker) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }
	left, saved := "unknown", "none yet"
	if d.Left > 0 {
		left = duration(d.Left)
	}
	if !d.Saved.IsZero() {
		saved = ago(&d.Saved)
	}
	line("done\t%.1f%% of pairs", 100*d.Pairs/d.Total)
	line("left\t%s", left)
	line("checkpoint\t%s", saved)
	line("process\t%s", processLine(d.Pid, d.Host, &d.Began, &d.Written))
	switch {
	case d.InUse:
		line("now\tin work by %v", w)
	case d.Complete:
		line("now\tcomplete, but not tidied up: the same command ends it")
	default:
		line("now\tno process works on it, as far as this machine can tell: the same command continues")
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}
