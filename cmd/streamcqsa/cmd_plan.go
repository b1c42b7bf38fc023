package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

type planOptions struct {
	problemFlags
	planFlags
	outFlags
	json bool
	svg  string
}

func newPlanCommand() *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what a run would do, hold and cost",
		Long: `Show the problem as understood, the division, the memory by purpose, the bytes
over each link and the predicted time. Nothing is read but headers; with --shape
and --dtype no files are needed. A run with the same flags follows this plan.

The budget (--mem-budget) covers everything the device allocates: slots for
chunks of K and V, slots for chunks of Q with their running state, and the
threads' scratch. The process itself takes up to 48 MiB more, and with the driver
of a GPU some hundred. Mapped files live in the page cache, which the kernel takes
back when it needs the memory.`,
		Example: `  streamcqsa plan --shape 1,8,1000000,64 --dtype f32 --mem-budget 2GiB
  streamcqsa plan --q q.npy --k k.npy --v v.npy --layout bhnd --causal --json | jq .seconds
  streamcqsa plan --shape 1,1,1048576,128 --dtype bf16 --divide cqs --chunks 13 --svg plan.svg`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPlan(cmd.OutOrStdout(), &o) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	o.problemFlags.addFlags(f)
	o.outFlags.addFlags(f)
	o.planFlags.addFlags(f)
	f.BoolVar(&o.json, "json", false, "write one JSON document")
	f.StringVar(&o.svg, "svg", "", "draw the plan into `FILE`")
	return cmd
}

func runPlan(w io.Writer, o *planOptions) error {
	var p attention.Problem
	var in *inputs
	var err error
	if o.hasFiles() {
		if p, in, err = o.problemFlags.open(); err != nil {
			return err
		}
		defer in.Close() // read-only maps: nothing to lose
	} else if p, err = o.fromShape(); err != nil {
		return err
	}
	plan, others, devs, err := o.plan(p, in, &o.outFlags)
	if err != nil {
		return err
	}
	if o.svg != "" {
		if err := drawPlan(o.svg, plan); err != nil {
			return err
		}
	}
	if o.json {
		return writeJSON(w, planDocument(plan, others, basisOf(devs, plan)))
	}
	return writePlan(w, plan, others, basisOf(devs, plan))
}

func drawPlan(path string, plan *stream.Plan) error {
	f, err := os.Create(path)
	if err != nil {
		return usagef("draw the plan: %w", err)
	}
	if err := writePlanSVG(f, plan); err != nil {
		f.Close()
		return fmt.Errorf("draw the plan into %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("draw the plan into %s: %w", path, err)
	}
	return nil
}

// writePlan writes a plan for people.
func writePlan(out io.Writer, p *stream.Plan, others []*stream.Plan, from basis) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line("problem\t%s", problemLine(p.Problem))
	line("arithmetic\t%s, %s query-key pairs", quantity(p.FLOPs, "FLOP"), quantity(p.Problem.Pairs()*float64(p.Problem.B*p.Problem.Hq), ""))
	line("device\t%s%s, budget %s (%s bytes)", from.names, from.text(), sizeText(p.Budget), grouped(p.Budget))
	line("division\t%s", divisionLine(p))
	line("\t%s; %d of %d query slots and %d of %d KV slots in one batch", subproblemLine(p),
		p.Active.Query, p.Geometry.QuerySlots, p.Active.KV, p.Geometry.KVSlots)
	line("heads\t%d %s of %d KV heads, each shared by %d query heads", p.Groups, plural(p.Groups, "group"), p.Geometry.KVHeads, p.Geometry.Group)
	line("")
	line("memory\tdevice\t%s\t%s bytes", sizeText(p.Memory.Total()), grouped(p.Memory.Total()))
	for _, u := range p.Memory {
		line("\t  %s\t%s\t%s bytes", u.Purpose, sizeText(u.Bytes), grouped(u.Bytes))
	}
	line("disk\toutput\t%s\t%s bytes", sizeText(p.OutputBytes), grouped(p.OutputBytes))
	if p.LSEBytes > 0 {
		line("\tlse\t%s\t%s bytes", sizeText(p.LSEBytes), grouped(p.LSEBytes))
	}
	line("\tstate\t%s\t%s bytes, while running", sizeText(p.StateDisk), grouped(p.StateDisk))
	if p.CheckpointDisk > 0 {
		line("\tcheckpoints\t%s\t%s bytes, while running, from the first one on", sizeText(p.CheckpointDisk), grouped(p.CheckpointDisk))
	}
	line("")
	t, s := p.Traffic, p.Seconds
	about := ""
	if t.Sampled {
		about = "about "
	}
	for _, l := range []struct {
		key, name string
		bytes     int64
		sec       float64
	}{
		{"disk", "disk to host", t.Disk, s.Disk}, {"host_to_device", "host to device", t.In, s.In},
		{"device_to_host", "device to host", t.Out, s.Out}, {"kernel", "kernel", 0, s.Kernel},
	} {
		moved, mark := "", ""
		if l.key != "kernel" {
			moved = about + sizeText(l.bytes)
		}
		if l.key == s.Bound {
			mark = "\tbound"
		}
		line("time\t%s\t%s\t%s%s", l.name, moved, duration(l.sec), mark)
	}
	line("\ttotal\t\t%s", duration(s.Total))
	line("\t%s", from.rates())
	for _, o := range others {
		line("")
		line("instead\t%s", divisionLine(o))
		line("\t%s memory, %s in, %s out, %s", sizeText(o.Memory.Total()), sizeText(o.Traffic.In), sizeText(o.Traffic.Out), duration(o.Seconds.Total))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

func problemLine(p attention.Problem) string {
	s := fmt.Sprintf("%s, %v, layout %v, scale %.6g", extents(p), p.DType, p.Layout, p.Scale)
	if p.OutDType != p.DType {
		s += fmt.Sprintf(", output %v", p.OutDType)
	}
	if p.Fast {
		s += ", fast"
	}
	if p.Causal != attention.NonCausal {
		s += fmt.Sprintf(", causal %v", p.Causal)
	}
	return s
}

func divisionLine(p *stream.Plan) string {
	set, ok := p.Division().Set()
	if !ok {
		return fmt.Sprintf("rows: %d query chunks of %s tokens by %d key chunks of %s",
			p.QueryAxis.Chunks, grouped(int64(p.Geometry.QueryRows)), p.KeyAxis.Chunks, grouped(int64(p.Geometry.KeyRows)))
	}
	s := fmt.Sprintf("cqs: c = %d, l = %d", set.Chunks(), set.Size())
	if set.Size() <= 16 {
		s += ", interest set " + set.String()
	}
	if p.Depth > 1 {
		s += fmt.Sprintf(", depth %d", p.Depth)
	}
	tokens := grouped(int64(p.Geometry.QueryRows))
	if p.Geometry.KeyRows != p.Geometry.QueryRows {
		tokens += " query and " + grouped(int64(p.Geometry.KeyRows)) + " key"
	}
	return s + fmt.Sprintf(", %d chunks of %s tokens", p.QueryAxis.Chunks, tokens)
}

func subproblemLine(p *stream.Plan) string {
	return fmt.Sprintf("%s %s, %s chunk pairs", grouped(int64(p.Subproblems)), plural(p.Subproblems, "subproblem"), quantity(p.ChunkPairs, ""))
}

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// quantity writes a large number with a decimal prefix.
func quantity(x float64, unit string) string {
	prefixes := []string{"", "k", "M", "G", "T", "P", "E", "Z"}
	i := 0
	for x >= 1000 && i+1 < len(prefixes) {
		x /= 1000
		i++
	}
	return strings.TrimSpace(fmt.Sprintf("%.4g %s%s", x, prefixes[i], unit))
}

// duration writes seconds for people.
func duration(sec float64) string {
	switch {
	case sec < 1e-3:
		return fmt.Sprintf("%.3g us", sec*1e6)
	case sec < 1:
		return fmt.Sprintf("%.3g ms", sec*1e3)
	case sec < 120:
		return fmt.Sprintf("%.3g s", sec)
	case sec < 48*3600:
		return (time.Duration(sec) * time.Second).String()
	}
	return fmt.Sprintf("%.1f days", sec/86400)
}
