package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// reporter tells the user how a run goes: a bar on a terminal, a plain line a
// minute elsewhere, JSON lines on request, nothing when quiet.
type reporter interface {
	plan(p *stream.Plan, others []*stream.Plan, from basis)
	note(text string) // something that the user should know
	every() time.Duration
	progress(stream.Progress)
	status(stream.Progress) // because the user asked
	summary(p *stream.Plan, r *stream.Report, peak int64, commit time.Duration) error
	failed(err error)
}

// began is when the program did.
var began = time.Now()

func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func newReporter(stdout, stderr io.Writer, json, quiet bool) reporter {
	switch {
	case json:
		return &jsonReporter{out: stdout}
	case quiet:
		return silent{stderr}
	case isTerminal(stderr):
		return &barReporter{lineReporter: lineReporter{out: stderr}}
	}
	return &lineReporter{out: stderr}
}

// silent says nothing, unless it is asked.
type silent struct{ out io.Writer }

func (silent) plan(*stream.Plan, []*stream.Plan, basis) {}
func (silent) note(string)                              {}
func (silent) every() time.Duration                     { return time.Second / 10 }
func (silent) progress(stream.Progress)                 {}
func (silent) failed(error)                             {}
func (s silent) status(p stream.Progress)               { fmt.Fprintln(s.out, progressLine(p)) }
func (silent) summary(*stream.Plan, *stream.Report, int64, time.Duration) error {
	return nil
}

// lineReporter writes plain lines.
type lineReporter struct {
	out  io.Writer
	last time.Duration
}

func (l *lineReporter) every() time.Duration { return time.Second / 10 }

func (l *lineReporter) plan(p *stream.Plan, _ []*stream.Plan, from basis) {
	fmt.Fprintf(l.out, "problem  %s\n", problemLine(p.Problem))
	fmt.Fprintf(l.out, "device   %s%s\n", from.names, from.text())
	fmt.Fprintf(l.out, "plan     %s; %s of a budget of %s (%s bytes); %s predicted\n",
		divisionLine(p), sizeText(p.Memory.Total()), sizeText(p.Budget), grouped(p.Budget), duration(p.Seconds.Total))
}

func (l *lineReporter) note(text string) { fmt.Fprintf(l.out, "note     %s\n", text) }

func (l *lineReporter) progress(p stream.Progress) {
	if p.Elapsed-l.last < time.Minute {
		return
	}
	l.last = p.Elapsed
	fmt.Fprintln(l.out, progressLine(p))
}

func (l *lineReporter) status(p stream.Progress) { fmt.Fprintln(l.out, progressLine(p)) }

// progressLine is how far a run is: share of pairs, rate, time left.
func progressLine(p stream.Progress) string {
	return fmt.Sprintf("%5.1f%% of pairs, %s/s, %s gone, %s left",
		100*p.Pairs/p.TotalPairs, quantity(p.FLOPS, "FLOP"), duration(p.Elapsed.Seconds()), timeLeft(p))
}

// timeLeft is the time that is left, at the pace of this process.
func timeLeft(p stream.Progress) string {
	done := p.Pairs - p.Before
	if done <= 0 {
		return "?"
	}
	return duration(p.Elapsed.Seconds() * (p.TotalPairs - p.Pairs) / done)
}

func (l *lineReporter) summary(p *stream.Plan, r *stream.Report, peak int64, commit time.Duration) error {
	s := r.Stats
	fmt.Fprintf(l.out, "done     %s (%s predicted), %s/s; kernel busy %s, loads %s, stores %s, sync %s\n",
		duration(r.Seconds), duration(p.Seconds.Total), quantity(r.FLOPS, "FLOP"), duration(s.ApplySeconds), duration(s.InSeconds), duration(s.OutSeconds), duration(commit.Seconds()))
	fmt.Fprintf(l.out, "         %s in, %s out; device memory %s, peak anonymous memory %s\n",
		sizeText(s.InBytes), sizeText(s.OutBytes), sizeText(r.Memory.Total()), sizeText(peak))
	if r.Resumed > 0 {
		fmt.Fprintf(l.out, "         %.1f%% of pairs were done before\n", 100*r.Resumed)
	}
	if r.Recomputed > 0 {
		fmt.Fprintf(l.out, "         %d query %s that a checkpoint had made safe, and that %s damaged, computed again\n", r.Recomputed, plural(r.Recomputed, "chunk"), map[bool]string{true: "was", false: "were"}[r.Recomputed == 1])
	}
	if s.Float64 > 0 {
		fmt.Fprintf(l.out, "         %.3g%% of pairs took the slow way, in float64: scores too large for float32, or elements of Q, K or V too far apart\n", 100*s.Float64/s.Pairs)
	}
	if s.Path != "" {
		fmt.Fprintf(l.out, "         inputs by %s; page-locked host memory %s; first kernel after %s\n", s.Path, sizeText(s.Pinned), duration(s.First.Sub(began).Seconds()))
	}
	return nil
}

func (l *lineReporter) failed(error) {}

// barReporter draws a progress bar.
type barReporter struct {
	lineReporter
	bar *progressbar.ProgressBar
}

// barSteps is the resolution of the bar: pairs themselves overflow an int64.
const barSteps = 10000

func (b *barReporter) every() time.Duration { return 200 * time.Millisecond }

func (b *barReporter) progress(p stream.Progress) {
	if b.bar == nil {
		b.bar = progressbar.NewOptions(barSteps, progressbar.OptionSetWriter(b.out), progressbar.OptionSetPredictTime(false),
			progressbar.OptionShowElapsedTimeOnFinish(), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	}
	b.bar.Describe(fmt.Sprintf("%s of %s pairs, %s/s, %s left", quantity(p.Pairs, ""), quantity(p.TotalPairs, ""), quantity(p.FLOPS, "FLOP"), timeLeft(p)))
	_ = b.bar.Set(int(barSteps * p.Pairs / p.TotalPairs)) // drawing can fail only where nobody looks
}

func (b *barReporter) status(p stream.Progress) {
	b.clear()
	b.lineReporter.status(p)
}

func (b *barReporter) summary(p *stream.Plan, r *stream.Report, peak int64, commit time.Duration) error {
	b.clear()
	return b.lineReporter.summary(p, r, peak, commit)
}

func (b *barReporter) failed(err error) {
	if err != nil {
		b.clear()
	}
}

func (b *barReporter) clear() {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}

// jsonReporter writes one JSON document a line. stdout holds nothing else.
type jsonReporter struct {
	out  io.Writer
	err  error
	last time.Duration // of the last status
}

func (j *jsonReporter) line(doc any) {
	if j.err == nil {
		j.err = json.NewEncoder(j.out).Encode(doc)
	}
}

type noteDoc struct {
	Type    string `json:"type"` // note
	Message string `json:"message"`
}

func (j *jsonReporter) note(text string) { j.line(noteDoc{"note", text}) }

func (j *jsonReporter) every() time.Duration { return 50 * time.Millisecond }
func (j *jsonReporter) plan(p *stream.Plan, others []*stream.Plan, from basis) {
	j.line(planDocument(p, others, from))
}

type statusDoc struct {
	Type    string  `json:"type"` // status
	Pairs   float64 `json:"pairs"`
	Total   float64 `json:"total_pairs"`
	Seconds float64 `json:"seconds"`
	FLOPS   float64 `json:"flops_per_second"`
}

// progress writes a status every second, and more often in the first ones.
func (j *jsonReporter) progress(p stream.Progress) {
	if p.Elapsed-j.last < min(time.Second, max(p.Elapsed/10, j.every())) && p.Pairs < p.TotalPairs {
		return
	}
	j.status(p)
}

func (j *jsonReporter) status(p stream.Progress) {
	j.last = p.Elapsed
	j.line(statusDoc{"status", p.Pairs, p.TotalPairs, p.Elapsed.Seconds(), p.FLOPS})
}

type stageDoc struct {
	Total  float64 `json:"total"`
	Load   float64 `json:"load"` // stages overlap: their sum may exceed the total
	Kernel float64 `json:"kernel"`
	Store  float64 `json:"store"`
	Sync   float64 `json:"sync"`
	Wait   float64 `json:"kernel_idle"` // seconds in which the kernel had nothing to do
}

type linkDoc struct {
	In  int64 `json:"host_to_device"`
	Out int64 `json:"device_to_host"`
}

type summaryDoc struct {
	Type      string          `json:"type"` // summary
	Seconds   stageDoc        `json:"seconds"`
	Predicted float64         `json:"predicted_seconds"`
	Bytes     linkDoc         `json:"bytes"`
	FLOPS     float64         `json:"flops_per_second"`
	Kernel    float64         `json:"kernel_flops_per_second"`
	Batches   int64           `json:"batches"`
	Memory    []attention.Use `json:"memory"`
	Total     int64           `json:"memory_total"`
	Anonymous int64           `json:"peak_anonymous_memory"`
	State     int64           `json:"state_disk"`

	Float64     float64 `json:"float64"`               // share of the pairs for which float32 would not do: they take longer, on a GPU by far
	Resumed     float64 `json:"resumed"`               // share of the pairs that an earlier run had done
	Recomputed  int     `json:"recomputed"`            // query chunks of which what a checkpoint had made safe was damaged
	Newer       int     `json:"lost_since_checkpoint"` // those of which something written down later was not there: no damage
	Checkpoints int     `json:"checkpoints"`           // of this run
	Saving      float64 `json:"checkpoint_seconds"`

	// Of GPUs only.
	Path   string  `json:"path,omitempty"`               // how inputs came: registered, pinned ring, or both
	Pinned int64   `json:"page_locked_memory,omitempty"` // of the host, at most at once
	First  float64 `json:"start_to_first_kernel,omitempty"`
}

func (j *jsonReporter) summary(p *stream.Plan, r *stream.Report, peak int64, commit time.Duration) error {
	s := r.Stats
	doc := summaryDoc{
		Type: "summary",
		Seconds: stageDoc{Total: r.Seconds + commit.Seconds(), Load: s.InSeconds, Kernel: s.ApplySeconds,
			Store: s.OutSeconds, Sync: commit.Seconds(), Wait: max(0, r.Seconds-s.ApplySeconds)},
		Predicted: p.Seconds.Total,
		Bytes:     linkDoc{s.InBytes, s.OutBytes},
		FLOPS:     r.FLOPS, Kernel: p.FLOPs * (1 - r.Resumed) / max(s.ApplySeconds, 1e-9), Batches: s.Batches,
		Memory: r.Memory, Total: r.Memory.Total(), Anonymous: peak, State: r.State,
		Path: s.Path, Pinned: s.Pinned,
		Resumed: r.Resumed, Recomputed: r.Recomputed, Newer: r.Newer, Checkpoints: r.Checkpoints, Saving: r.Saving,
		Float64: s.Float64 / max(s.Pairs, 1),
	}
	if !s.First.IsZero() {
		doc.First = s.First.Sub(began).Seconds()
	}
	j.line(doc)
	if j.err != nil {
		return fmt.Errorf("write JSON lines: %w", j.err)
	}
	return nil
}

func (j *jsonReporter) failed(err error) {
	if err != nil {
		j.line(errorDocument(err))
	}
}
