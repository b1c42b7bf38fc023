//go:build !cuda

package main

import "github.com/streamcqsa/streamcqsa/pkg/gpu"

// openCUDA returns gpu.ErrNotBuilt.
func openCUDA([]gpu.Info, int64) ([]gpuDevice, error) { return nil, gpu.ErrNotBuilt }
