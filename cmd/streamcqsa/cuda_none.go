//go:build !cuda

package main

import (
	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// openCUDA returns gpu.ErrNotBuilt.
func openCUDA([]gpu.Info) (stream.Device, error) { return nil, gpu.ErrNotBuilt }
