//go:build cuda

package main

import (
	"errors"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// openCUDA opens GPUs as one device.
func openCUDA(devices []gpu.Info) (stream.Device, error) {
	return nil, errors.New("attention on CUDA devices is not implemented; --device cpu is")
}
