package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/cpu"
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
	m := readHostMemory()
	list := []deviceDoc{
		{Name: "cpu", Available: true, Threads: cpu.New(0).Threads(), Kernels: cpu.Kernels(), Limit: m.limit, Free: m.available, LimitFrom: m.from},
		{Name: "cuda", Note: fmt.Sprintf("this binary was built without CUDA support (%s/%s)", runtime.GOOS, runtime.GOARCH)},
	}
	if asJSON {
		return writeJSON(w, map[string]any{"devices": list})
	}
	_, err := fmt.Fprintf(w, "cpu   %d threads, kernels %s, %s of %s free (limit of %s)\ncuda  not available: %s\n",
		list[0].Threads, strings.Join(list[0].Kernels, " "), sizeText(m.available), sizeText(m.limit), m.from, list[1].Note)
	return err
}
