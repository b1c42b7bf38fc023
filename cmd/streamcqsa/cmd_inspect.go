package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// inspectOptions are the flags of inspect.
type inspectOptions struct {
	json bool
}

func newInspectCommand() *cobra.Command {
	var opts inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect FILE[:KEY]... [flags]",
		Short: "List the tensors in files",
		Long: `Inspect lists the tensors in .npy and .safetensors files from their headers
alone, those included that can not be read, with the reason and what to do about
it. The layouts are those that the number of axes allows: which one it is, no
file says.

A raw file has no header. All that is known is its size.`,
		Example: `  streamcqsa inspect q.npy model.safetensors:layers.0.q
  streamcqsa inspect --json *.safetensors`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("inspect needs at least one file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runInspect(opts, args, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&opts.json, "json", false, "one JSON document")
	return cmd
}

// inspectReport is what --json prints.
type inspectReport struct {
	Files []inspectFile `json:"files"`
}

// inspectFile is one argument. It has an Error or all the rest.
type inspectFile struct {
	Path        string            `json:"path"`
	Error       string            `json:"error,omitempty"`
	Format      string            `json:"format,omitempty"`
	Bytes       int64             `json:"bytes"`
	HeaderBytes int64             `json:"header_bytes"`
	Hint        string            `json:"hint,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Tensors     []inspectTensor   `json:"tensors"`
}

type inspectTensor struct {
	Key     string   `json:"key,omitempty"`
	Stored  string   `json:"stored"`
	DType   string   `json:"dtype"` // empty if it can't be read as it is
	Shape   []int    `json:"shape"`
	Bytes   int64    `json:"bytes"`
	Offset  int64    `json:"offset"`
	Order   string   `json:"order"`
	Layouts []string `json:"layouts"`
	Problem string   `json:"problem,omitempty"`
	Hint    string   `json:"hint,omitempty"`
}

// runInspect shows every file that can be shown, and then fails if one could
// not be.
func runInspect(opts inspectOptions, refs []string, stdout io.Writer) error {
	rep := inspectReport{Files: []inspectFile{}}
	var errs []error
	for _, ref := range refs {
		f, err := inspectRef(ref)
		if err != nil {
			f.Error = err.Error()
			errs = append(errs, err)
		}
		rep.Files = append(rep.Files, f)
	}
	var err error
	if opts.json {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		err = e.Encode(rep)
	} else {
		err = printInspect(stdout, rep)
	}
	if err != nil {
		return fmt.Errorf("print the list: %w", err)
	}
	return errors.Join(errs...)
}

// inspectRef describes FILE or FILE:KEY.
func inspectRef(ref string) (inspectFile, error) {
	path, key := tensorfile.ParseRef(ref)
	f := inspectFile{Path: path, Tensors: []inspectTensor{}} // not null in JSON
	info, err := tensorfile.Inspect(path)
	if err != nil {
		return f, err
	}
	f.Format, f.Bytes, f.HeaderBytes, f.Metadata = info.Format.String(), info.Size, info.HeaderBytes, info.Metadata
	if info.Format == tensorfile.Raw {
		f.Hint = rawInspectHint(info.Size)
	}
	for _, t := range info.Tensors {
		if key == "" || t.Key == key {
			f.Tensors = append(f.Tensors, newInspectTensor(path, t))
		}
	}
	if key != "" && len(f.Tensors) == 0 {
		return f, &tensorfile.FormatError{Path: path, Key: key, Offset: -1, What: fmt.Sprintf("no such key among its %d", len(info.Tensors))}
	}
	return f, nil
}

func rawInspectHint(size int64) string {
	has := fmt.Sprintf("%d elements of f32 or %d of f16 or bf16", size/4, size/2)
	switch {
	case size%2 != 0:
		has = "an odd number of bytes, so that it has a header"
	case size%4 != 0:
		has = fmt.Sprintf("%d elements of f16 or bf16", size/2)
	}
	return "a raw file does not say what it holds: state --shape and --dtype, and --offset past a header; without one it has " + has
}

func newInspectTensor(path string, t tensorfile.TensorInfo) inspectTensor {
	it := inspectTensor{
		Key: t.Key, Stored: t.Stored, Shape: t.Shape, Bytes: t.Bytes, Offset: t.Offset, Order: t.Order,
		Layouts: layoutsOfRank(len(t.Shape)), Problem: t.Problem,
	}
	if it.Shape == nil {
		it.Shape = []int{} // a scalar; not null in JSON
	}
	if t.Problem == "" {
		it.DType = t.DType.String()
	} else if opensAsBF16(path, t.Key) {
		it.Hint = "if these are bfloat16, state --dtype bf16"
	}
	return it
}

// opensAsBF16 asks the reader itself, so that the hint is never wrong.
func opensAsBF16(path, key string) bool {
	t, err := tensorfile.Open(tensorfile.Spec{Path: path, Key: key, DType: attention.BF16})
	if err != nil {
		return false
	}
	_ = t.Close() // nothing was read from it
	return true
}

func layoutsOfRank(rank int) []string {
	layouts := []string{}
	for l := attention.BHND; l <= attention.ND; l++ {
		if l.Rank() == rank {
			layouts = append(layouts, l.String())
		}
	}
	return layouts
}

func printInspect(w io.Writer, rep inspectReport) error {
	var b strings.Builder
	for _, f := range rep.Files {
		if f.Error != "" {
			continue // told on stderr
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		printInspectFile(&b, f)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printInspectFile(b *strings.Builder, f inspectFile) {
	fmt.Fprintf(b, "%s: %s, %d bytes", f.Path, f.Format, f.Bytes)
	if f.Hint != "" {
		fmt.Fprintf(b, "\n  %s\n", f.Hint)
		return
	}
	fmt.Fprintf(b, ", of which %d are the header\n", f.HeaderBytes)
	keys := make([]string, 0, len(f.Metadata))
	for k := range f.Metadata {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(b, "  %s = %s\n", printable(k), printable(f.Metadata[k]))
	}
	if len(f.Tensors) == 0 {
		b.WriteString("  no tensors\n")
		return
	}
	tw := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "  KEY\tSTORED\tREAD AS\tSHAPE\tBYTES\tOFFSET\tORDER\tLAYOUT")
	for _, t := range f.Tensors {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%v\t%d\t%d\t%s\t%s\n", orDash(printable(t.Key)), printable(t.Stored), orDash(t.DType), t.Shape, t.Bytes, t.Offset, t.Order, layoutHint(t))
	}
	tw.Flush() // to a Builder, which can't fail
	for _, t := range f.Tensors {
		if t.Problem == "" {
			continue
		}
		name := "not readable"
		if t.Key != "" {
			name = printable(t.Key) + " is not readable"
		}
		text := t.Problem
		if t.Hint != "" {
			text = fmt.Sprintf("element type %s: %s", printable(t.Stored), t.Hint)
		}
		fmt.Fprintf(b, "  %s: %s\n", name, text)
	}
}

func layoutHint(t inspectTensor) string {
	if len(t.Layouts) == 0 {
		return fmt.Sprintf("rank %d: none", len(t.Shape))
	}
	return fmt.Sprintf("rank %d: --layout %s", len(t.Shape), strings.Join(t.Layouts, " or "))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable shows text from a file on one line, and lets it do nothing to the
// terminal.
func printable(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
