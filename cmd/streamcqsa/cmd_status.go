package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// runStatusDoc is what a journal tells of a run.
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
}

func newStatusCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "status OUT",
		Short: "Tell how far a run is, in work or stopped",
		Long: `Tell how far the run that writes OUT is, by its journal: the pairs done as of the
last thing it wrote down, the last checkpoint, and the process that wrote it.`,
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

func runStatus(w io.Writer, o *runOptions) error {
	l, err := stream.ReadJournal(o.journalPath())
	if errors.Is(err, fs.ErrNotExist) {
		return inputf("there is no journal %s: no run writes %s, or it has only begun", o.journalPath(), o.out)
	}
	if err != nil {
		return err
	}
	d := runStatusDoc{Type: "status", Journal: l.Path, Complete: l.Complete, Pairs: l.Work, Total: l.Total(), Written: l.Written, Saved: l.Saved, Pid: l.Pid, Host: l.Host}
	if done := l.Work - l.WorkAt; done > 0 {
		d.Left = (d.Total - d.Pairs) / done * l.Spent
	}
	if o.json {
		return json.NewEncoder(w).Encode(d)
	}
	left := "unknown"
	if d.Left > 0 {
		left = duration(d.Left)
	}
	saved := "none yet"
	if !d.Saved.IsZero() {
		saved = ageText(d.Saved)
	}
	_, err = fmt.Fprintf(w, "done        %.1f%% of pairs\nleft        %s\ncheckpoint  %s\nprocess     %d on %s, last heard of %s\n",
		100*d.Pairs/d.Total, left, saved, d.Pid, d.Host, ageText(d.Written))
	return err
}
