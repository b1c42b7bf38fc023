// Package gpu computes attention on NVIDIA GPUs. It needs the build tag cuda;
// without it, everything here returns ErrNotBuilt.
package gpu

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// ErrNotBuilt says that the binary can't use a GPU on any machine.
var ErrNotBuilt = errors.New("this binary was built without CUDA support (" + runtime.GOOS + "/" + runtime.GOARCH + ")")

// Info describes a device.
type Info = driver.Info

// Target is the architecture of the kernels that a device runs: sm_90a on Hopper,
// sm_80 on Ampere and everything later. The error says why it runs none.
func Target(d Info) (string, error) {
	switch {
	case d.Major == 9 && d.Minor == 0:
		return "sm_90a", nil
	case d.Major >= 8:
		return "sm_80", nil
	}
	return "", fmt.Errorf("cuda:%d (%s) has compute capability %d.%d, and the kernels need 8.0 or later", d.Ordinal, d.Name, d.Major, d.Minor)
}
