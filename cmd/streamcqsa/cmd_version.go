package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

// release is set by the linker for released binaries.
var release = ""

type versionDoc struct {
	Version string   `json:"version"`
	Commit  string   `json:"commit,omitempty"`
	Dirty   bool     `json:"modified,omitempty"`
	Go      string   `json:"go"`
	OS      string   `json:"os"`
	Arch    string   `json:"arch"`
	Devices []string `json:"devices"`
	CUDA    bool     `json:"cuda"`                   // whether CUDA is built in
	Kernels string   `json:"cuda_kernels,omitempty"` // SHA-256 over the CUDA kernels, and their sources
}

// version reads what the build recorded.
func version() versionDoc {
	v := versionDoc{Version: release, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Devices: []string{"cpu"},
		CUDA: gpu.Built, Kernels: gpu.Hash()}
	if gpu.Built {
		v.Devices = append(v.Devices, "cuda")
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Dirty = s.Value == "true"
		}
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	return v
}

// build names what bits may depend on: a run is continued by the program that began it.
func (v versionDoc) build() string {
	parts := []string{v.Version, v.Commit, v.Kernels}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and what was built in",
		RunE:  func(cmd *cobra.Command, _ []string) error { return runVersion(cmd.OutOrStdout(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write one JSON document")
	return cmd
}

func runVersion(w io.Writer, asJSON bool) error {
	v := version()
	if asJSON {
		return writeJSON(w, v)
	}
	_, err := fmt.Fprintf(w, "streamcqsa %s (%s, %s/%s, %s)\n", v.Version, v.Go, v.OS, v.Arch, strings.Join(v.Devices, " and "))
	return err
}
