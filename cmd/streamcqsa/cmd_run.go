package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

type runOptions struct {
	problemFlags
	planFlags
	outFlags
	prefetch int
	every    time.Duration
	most     time.Duration
	restart  bool
	json     bool
	quiet    bool
}

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Compute attention from files to a file",
		Long: `Compute O = softmax(scale Q K^T + mask) V, exactly, and write it with the layout
and type of the inputs. The output appears under its name when it is complete;
until then it is OUT.partial. A run that was stopped, by whatever, continues when the
same command runs again. Query head h uses KV head h / (H/Hkv). A row that
may see no key gives O = 0 and lse = -inf.

` + exitHelp(),
		Example: `  streamcqsa run --q q.npy --k k.npy --v v.npy -o o.npy --layout bhnd --mem-budget 2GiB
  streamcqsa run --q t.safetensors:q --k t.safetensors:k --v t.safetensors:v \
      -o out.safetensors:o --lse out.safetensors:lse --layout bnhd --causal`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRun(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	o.problemFlags.addFlags(f)
	o.outFlags.addFlags(f)
	o.planFlags.addFlags(f)
	f.IntVar(&o.prefetch, "prefetch", 0, "batches to load ahead; -1 for none (default 2)")
	f.DurationVar(&o.every, "checkpoint-every", 0, "time between checkpoints (default: 1m, or longer where they take more than 1% of it)")
	f.DurationVar(&o.most, "max-duration", 0, "stop after so long, exit with 10; the same command continues")
	f.BoolVar(&o.restart, "restart", false, "begin anew, whatever an earlier run left")
	f.BoolVar(&o.json, "json", false, "write JSON lines to standard output: plan, status, summary")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "write nothing but errors")
	// -q is quiet, --q are the queries: pflag keeps them apart.
	return cmd
}

func runRun(ctx context.Context, stdout, stderr io.Writer, o *runOptions) (err error) {
	say := newReporter(stdout, stderr, o.json, o.quiet)
	defer func() { say.failed(err) }()
	if o.out == "" {
		return usagef("--out is missing: want a file for the result")
	}
	if o.prefetch < -1 {
		return usagef("--prefetch %d: want at least -1", o.prefetch)
	}
	if fi, err := os.Stat(o.stateDir); o.stateDir != "" && (err != nil || !fi.IsDir()) {
		return usagef("--state-dir %s: want a directory that exists", o.stateDir)
	}
	hard, soft, ask, off := o.stops(ctx)
	defer off()
	p, in, err := o.problemFlags.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	kept, err := o.earlier()
	if err != nil {
		return err
	}
	plan, others, devs, err := o.planOrContinue(p, in, kept)
	if err != nil {
		return err
	}
	if !isGPU(devs[0]) {
		if err := readHostMemory().mayHold(plan.Memory.Total()); err != nil {
			return err
		}
	}
	j := &stream.Journal{Path: o.journalPath(), Every: o.every, Log: kept}
	if j.Header, err = o.header(p, in, plan, devs); err != nil {
		return err
	}
	if kept != nil {
		if diff := kept.Header.Differences(j.Header); len(diff) > 0 {
			return fmt.Errorf("%s is of another run (%s): --restart begins anew: %w", j.Path, strings.Join(diff, "; "), stream.ErrMismatch)
		}
	}
	if kept != nil && kept.Complete {
		if over, err := o.conclude(soft, p, in, kept); err != nil {
			return err
		} else if over {
			say.plan(plan, others, basisOf(devs, plan))
			say.note("all was computed before: what was left of that run has been removed")
			return say.summary(plan, &stream.Report{Memory: plan.Memory, Resumed: 1}, anonymous(), 0)
		}
	}
	out, err := o.createOutputs(p, in, kept != nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.leave(out, err)) }()
	if o.restart {
		if err := o.giveUp(); err != nil {
			return err
		}
	}
	say.plan(plan, others, basisOf(devs, plan))
	t := stream.Tensors{Q: in.q, K: in.k, V: in.v, O: out.o}
	if out.lse != nil {
		t.LSE = out.lse
	}
	peak := watchAnonymous()
	var last stream.Progress
	compute := func() (*stream.Report, error) {
		return stream.RunAll(hard, plan, devs, t, stream.Options{
			StatePath: o.statePath(), Prefetch: o.prefetch, Journal: j, Stop: soft,
			Progress: func(p stream.Progress) {
				peak.sample() // the last call comes while the device still has its memory
				if last = p; p.Asked {
					say.status(p)
				} else {
					say.progress(p)
				}
			},
			ProgressEvery: say.every(), Ask: ask,
		})
	}
	rep, err := compute()
	if scarce := (*gpu.NoMemoryError)(nil); errors.As(err, &scarce) && kept == nil {
		// Others took memory since the plan was made: plan again with what there is.
		say.note(fmt.Sprintf("%v; planning again", scarce))
		if plan, others, err = o.planFor(p, in, &o.outFlags, devs, scarce.Free/20*19); err == nil {
			say.plan(plan, others, basisOf(devs, plan))
			j.Header.Choice = plan.Choice
			rep, err = compute()
		}
	}
	memory := peak.stop()
	// What can't be read any more may be an input that others cut short, or a bad disk.
	if fault := (*attention.Fault)(nil); err != nil && !errors.As(err, &fault) {
		return err
	}
	if err := cmp.Or(in.unchanged(), err); err != nil {
		return err
	}
	start := time.Now()
	quiet := answer(ask, func() { say.status(last) }) // to sync an output takes minutes
	err = out.commit()
	quiet()
	if err != nil {
		return err
	}
	if err := stream.RemoveJournal(j.Path); err != nil {
		return err
	}
	return say.summary(plan, rep, memory, time.Since(start))
}

// outputs are the files of a run's results; they become real on commit.
type outputs struct {
	path  string
	files []*tensorfile.Output
	o     sink
	lse   stream.Sink
}

// sink is one tensor of an output file.
type sink struct {
	file *tensorfile.Output
	i    int
}

func (s sink) Path() string  { return s.file.Partial() }
func (s sink) Bytes() []byte { return s.file.BytesOf(s.i) }
func (s sink) Sync() error   { return s.file.Sync() }

// createOutputs reserves the output files. O and lse may share a safetensors
// file.
func (o *runOptions) createOutputs(p attention.Problem, in *inputs, again bool) (*outputs, error) {
	specs, err := o.outputSpecs(p, in)
	if err != nil {
		return nil, err
	}
	out := &outputs{path: specs[0].Path}
	for _, s := range byFile(specs) {
		f, err := begin(s, again)
		if err != nil {
			end := out.abort
			if again {
				end = out.close
			}
			return nil, errors.Join(outputError(inUse(s[0], err)), end())
		}
		out.files = append(out.files, f)
	}
	out.o = sink{out.files[0], 0}
	if len(specs) > 1 { // the second of the only file, or the only one of the second
		last := len(out.files) - 1
		out.lse = sink{out.files[last], 1 - last}
	}
	return out, nil
}

// outputSpecs describes O and, if it is wanted, lse, which must not be in the way of each
// other nor of the inputs.
func (o *runOptions) outputSpecs(p attention.Problem, in *inputs) ([]tensorfile.OutSpec, error) {
	specs := o.resultSpecs(p)
	if len(specs) > 1 && tensorfile.SameFile(specs[0].Path, specs[1].Path) &&
		(tensorfile.FormatOf(specs[0].Path) != tensorfile.Safetensors || specs[0].Key == specs[1].Key) {
		return nil, usagef("--out and --lse name the same place %s: want two files, or two keys of a safetensors file", o.lse)
	}
	if len(specs) > 1 && !tensorfile.SameFile(specs[0].Path, specs[1].Path) && tensorfile.SameFile(partialOf(specs[0]), partialOf(specs[1])) {
		return nil, usagef("--out and --lse are both %s until they are complete: want files of different names", partialOf(specs[0]))
	}
	for _, s := range specs {
		if err := checkNotInput(s, in); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

// resultSpecs describes O and, if it is wanted, lse.
func (o *runOptions) resultSpecs(p attention.Problem) []tensorfile.OutSpec {
	specs := []tensorfile.OutSpec{o.outSpec(o.out, "o")}
	if o.lse != "" {
		specs = append(specs, o.outSpec(o.lse, "lse"))
	}
	return described(p, specs)
}

// described completes what is said of O and, if there are two, of lse.
func described(p attention.Problem, specs []tensorfile.OutSpec) []tensorfile.OutSpec {
	specs[0].DType, specs[0].Shape = p.OutDType, p.Layout.Shape(p.B, p.Hq, p.Nq, p.Dv)
	if len(specs) > 1 {
		l := &specs[1]
		shape := p.Layout.Shape(p.B, p.Hq, p.Nq, 1)
		l.DType, l.Shape = attention.F32, shape[:len(shape)-1]
		if tensorfile.FormatOf(l.Path) == tensorfile.Safetensors {
			l.Metadata = map[string]string{"lse_base": "e"}
		}
	}
	return specs
}

// byFile groups O and lse by the files that they are in: they may share a safetensors file.
func byFile(specs []tensorfile.OutSpec) [][]tensorfile.OutSpec {
	if len(specs) > 1 && !tensorfile.SameFile(specs[0].Path, specs[1].Path) {
		return [][]tensorfile.OutSpec{specs[:1], specs[1:]}
	}
	return [][]tensorfile.OutSpec{specs}
}

// partialExt is what the name of an output ends with until it is complete.
const partialExt = ".partial"

// partialOf is where an output is until it is complete.
func partialOf(s tensorfile.OutSpec) string {
	if s.Partial != "" {
		return s.Partial
	}
	return tensorfile.PartialOf(s.Path)
}

// begin makes an output file, or takes up the one of an earlier run. If that is gone,
// or is another, what was in it is computed again.
func begin(specs []tensorfile.OutSpec, again bool) (*tensorfile.Output, error) {
	if again {
		f, err := tensorfile.Reopen(specs...)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, tensorfile.ErrFormat) {
			return f, err
		}
	}
	return tensorfile.Create(specs...)
}

func (o *outFlags) outSpec(ref, key string) tensorfile.OutSpec {
	path, k := tensorfile.ParseRef(ref)
	if k == "" && tensorfile.FormatOf(path) == tensorfile.Safetensors {
		k = key
	}
	spec := tensorfile.OutSpec{Path: path, Key: k}
	if o.stateDir != "" {
		spec.Partial = o.beside(ref, partialExt)
	}
	return spec
}

// checkNotInput refuses to write over a file that is being read.
func checkNotInput(s tensorfile.OutSpec, in *inputs) error {
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		if tensorfile.SameFile(s.Path, t.Path()) || tensorfile.SameFile(partialOf(s), t.Path()) {
			return usagef("output %s is the input %s: want another file", s.Path, t.Path())
		}
	}
	return nil
}

// outputError gives an output that can't be written the exit code of a command
// line that asks for the impossible; a full disk or a busy file keep their own, and
// that no more files can be opened is no fault of the command line's.
func outputError(err error) error {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return err
	}
	if stream.IsNoSpace(err) || errors.Is(err, tensorfile.ErrNoSpace) || errors.Is(err, tensorfile.ErrInUse) {
		return err
	}
	return classify(errUsage, err)
}

func (o *outputs) commit() error {
	for len(o.files) > 0 {
		f := o.files[0]
		if err := f.Commit(); err != nil {
			return classify(errCommit, err)
		}
		o.files = o.files[1:]
	}
	return nil
}

// close leaves what was not committed for another run.
func (o *outputs) close() error {
	var errs []error
	for _, f := range o.files {
		errs = append(errs, f.Close())
	}
	o.files = nil
	return errors.Join(errs...)
}

// abort removes what was not committed.
func (o *outputs) abort() error {
	var errs []error
	for _, f := range o.files {
		errs = append(errs, f.Abort())
	}
	o.files = nil
	return errors.Join(errs...)
}

// anonymousPeak samples the process's anonymous memory.
type anonymousPeak struct {
	most atomic.Int64
	quit chan struct{}
}

func watchAnonymous() *anonymousPeak {
	p := &anonymousPeak{quit: make(chan struct{})}
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.sample()
			case <-p.quit:
				return
			}
		}
	}()
	return p
}

func (p *anonymousPeak) sample() {
	now := anonymous()
	for {
		most := p.most.Load()
		if now <= most || p.most.CompareAndSwap(most, now) {
			return
		}
	}
}

// stop ends the sampling and returns the largest sample.
func (p *anonymousPeak) stop() int64 {
	close(p.quit)
	p.sample()
	return p.most.Load()
}

// isTerminal says whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && strings.ToLower(os.Getenv("TERM")) != "dumb" && terminal(f)
}

// errorDoc is the last JSON line of a failed run.
type errorDoc struct {
	Type    string `json:"type"` // error
	Code    int    `json:"exit_code"`
	Message string `json:"message"`
}

func errorDocument(err error) errorDoc {
	return errorDoc{Type: "error", Code: exitCode(err), Message: fmt.Sprint(err)}
}
