package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

type deviceDoc struct {
	Name      string   `json:"name"`
	Available bool     `json:"available"`
	Note      string   `json:"note,omitempty"`
	Threads   int      `json:"threads,omitempty"`
	Kernels   []string `json:"kernels,omitempty"` // best first
	Limit     int64    `json:"memory_limit,omitempty"`
	Free      int64    `json:"memory_free,omitempty"`
	LimitFrom string   `json:"memory_limit_from,omitempty"`

	// CUDA devices only.
	Model      string `json:"model,omitempty"`
	Capability string `json:"compute_capability,omitempty"`
	SMs        int    `json:"multiprocessors,omitempty"`
	PCI        string `json:"pci,omitempty"`
	Driver     string `json:"driver_cuda,omitempty"` // the newest CUDA that the driver supports
}

func newDevicesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the devices that this binary can use on this machine",
		RunE:  func(cmd *cobra.Command, _ []string) error { return runDevices(cmd.OutOrStdout(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write one JSON document")
	return cmd
}

func runDevices(w io.Writer, asJSON bool) error {
	list := append([]deviceDoc{cpuDocument()}, cudaDocuments()...)
	if asJSON {
		return writeJSON(w, map[string]any{"devices": list})
	}
	for _, d := range list {
		if _, err := fmt.Fprintf(w, "%-7s %s\n", d.Name, d.text()); err != nil {
			return err
		}
	}
	return nil
}

func cpuDocument() deviceDoc {
	m := readHostMemory()
	return deviceDoc{Name: "cpu", Available: true, Threads: cpu.New(0).Threads(), Kernels: cpu.Kernels(),
		Limit: m.limit, Free: m.available, LimitFrom: m.from}
}

// cudaDocuments describe each CUDA device, or say in one why there is none.
func cudaDocuments() []deviceDoc {
	devices, err := gpu.Devices()
	if err != nil {
		return []deviceDoc{{Name: "cuda", Note: err.Error()}}
	}
	var list []deviceDoc
	for _, d := range devices {
		list = append(list, cudaDocument(d))
	}
	return list
}

func cudaDocument(d gpu.Info) deviceDoc {
	doc := deviceDoc{Name: fmt.Sprintf("cuda:%d", d.Ordinal), Model: d.Name,
		Capability: fmt.Sprintf("%d.%d", d.Major, d.Minor), SMs: d.SMs, PCI: d.PCI, Driver: d.Driver.String(),
		Limit: d.Memory, LimitFrom: "device"}
	target, err := gpu.Target(d)
	if err == nil {
		doc.Kernels = []string{target}
		doc.Free, _, err = gpu.Memory(d.Ordinal)
	}
	if err != nil {
		doc.Note = err.Error()
	}
	doc.Available = err == nil
	return doc
}

// text is the document in one line, but for the name.
func (d deviceDoc) text() string {
	switch {
	case !d.Available && d.Model == "":
		return "not available: " + d.Note
	case !d.Available:
		return fmt.Sprintf("%s: not available: %s", d.Model, d.Note)
	case d.Model != "":
		return fmt.Sprintf("%s, compute capability %s, kernels %s, %s of %s free, CUDA %s driver, at %s",
			d.Model, d.Capability, strings.Join(d.Kernels, " "), sizeText(d.Free), sizeText(d.Limit), d.Driver, d.PCI)
	}
	return fmt.Sprintf("%d threads, kernels %s, %s of %s free (limit of %s)",
		d.Threads, strings.Join(d.Kernels, " "), sizeText(d.Free), sizeText(d.Limit), d.LimitFrom)
}
