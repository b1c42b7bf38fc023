//go:build cuda

package main

import (
	"errors"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

// openCUDA opens a GPU. It may page-lock that many bytes of host memory for transfers.
func openCUDA(devices []gpu.Info, hostMemory int64) (gpuDevice, error) {
	if len(devices) != 1 {
		return nil, errors.New("several CUDA devices at once are not implemented: want one")
	}
	return gpu.Open(devices[0], gpu.Options{HostMemory: hostMemory})
}
