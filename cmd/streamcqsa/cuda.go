//go:build cuda

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

// heapGrowth is how far the heap may grow between two collections, in percent, beside a
// GPU. It holds a few MiB of what is alive; collected as often as that doubles, it stops
// the threads that feed the GPU ten times a second, for which the link waits.
const heapGrowth = 800

// openCUDA opens GPUs of one kind. Together they may page-lock that many bytes of host
// memory for transfers.
func openCUDA(devices []gpu.Info, hostMemory int64) (list []gpuDevice, err error) {
	defer func() {
		if err != nil {
			for _, d := range list {
				err = errors.Join(err, d.Close())
			}
		}
	}()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
	for _, info := range devices {
		if a := devices[0]; info.Name != a.Name || info.SMs != a.SMs {
			return list, fmt.Errorf("cuda:%d is a %s and cuda:%d a %s: devices that share the work must be alike", a.Ordinal, a.Name, info.Ordinal, info.Name)
		}
		d, err := gpu.Open(info, gpu.Options{HostMemory: hostMemory / int64(len(devices))})
		if err != nil {
			return list, err
		}
		list = append(list, d)
	}
	return list, nil
}
