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
	var asked atomic.Bool
	hard, soft, off := o.stops(ctx, &asked)
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
	compute := func() (*stream.Report, error) {
		return stream.RunAll(hard, plan, devs, t, stream.Options{
			StatePath: o.statePath(), Prefetch: o.prefetch, Journal: j, Stop: soft,
			Progress: func(p stream.Progress) {
				peak.sample() // the last call comes while the device still has its memory
				say.progress(p)
				if asked.Swap(false) {
					say.status(p)
				}
			},
			ProgressEvery: say.every(),
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
	if err := out.commit(); err != nil {
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
	oSpec := o.outSpec(o.out, "o")
	oSpec.DType = p.OutDType
	oSpec.Shape = p.Layout.Shape(p.B, p.Hq, p.Nq, p.Dv)
	specs := [][]tensorfile.OutSpec{{oSpec}}
	shared := false
	if o.lse != "" {
		l := o.outSpec(o.lse, "lse")
		l.DType = attention.F32
		shape := p.Layout.Shape(p.B, p.Hq, p.Nq, 1)
		l.Shape = shape[:len(shape)-1]
		if tensorfile.FormatOf(l.Path) == tensorfile.Safetensors {
			l.Metadata = map[string]string{"lse_base": "e"}
		}
		if shared = tensorfile.SameFile(l.Path, oSpec.Path); shared {
			if tensorfile.FormatOf(l.Path) != tensorfile.Safetensors || l.Key == oSpec.Key {
				return nil, usagef("--out and --lse name the same place %s: want two files, or two keys of a safetensors file", o.lse)
			}
			specs[0] = append(specs[0], l)
		} else {
			specs = append(specs, []tensorfile.OutSpec{l})
		}
	}
	for _, s := range specs {
		if err := checkNotInput(s[0].Path, in); err != nil {
			return nil, err
		}
	}
	out := &outputs{path: oSpec.Path}
	for _, s := range specs {
		f, err := begin(s, again)
		if err != nil {
			end := out.abort
			if again {
				end = out.close
			}
			return nil, errors.Join(outputError(err), end())
		}
		out.files = append(out.files, f)
	}
	out.o = sink{out.files[0], 0}
	switch {
	case shared:
		out.lse = sink{out.files[0], 1}
	case o.lse != "":
		out.lse = sink{out.files[1], 0}
	}
	return out, nil
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

func (o *runOptions) outSpec(ref, key string) tensorfile.OutSpec {
	path, k := tensorfile.ParseRef(ref)
	if k == "" && tensorfile.FormatOf(path) == tensorfile.Safetensors {
		k = key
	}
	spec := tensorfile.OutSpec{Path: path, Key: k}
	if o.stateDir != "" {
		spec.Partial = o.beside(ref, ".partial")
	}
	return spec
}

// checkNotInput refuses to write over a file that is being read.
func checkNotInput(path string, in *inputs) error {
	for _, t := range []*tensorfile.Tensor{in.q, in.k, in.v} {
		if tensorfile.SameFile(path, t.Path()) || tensorfile.SameFile(path+".partial", t.Path()) {
			return usagef("output %s is the input %s: want another file", path, t.Path())
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
