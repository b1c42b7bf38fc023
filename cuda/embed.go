//go:build cuda

package cuda

import (
	"embed"
	"fmt"
	"sync"

	"github.com/streamcqsa/streamcqsa/cuda/internal/unit"
)

//go:embed kernels
var files embed.FS

var manifest = sync.OnceValue(func() unit.Manifest {
	m, err := unit.Read(files)
	if err != nil {
		panic(err) // it is embedded
	}
	return m
})

// Hash identifies the compiled code and what it was compiled from: SHA-256, in
// hexadecimal.
func Hash() string { return manifest().Hash() }

// Compiler is the version of the compiler that made the code: 13.0.88. A driver
// loads code of its own major version of CUDA and older ones.
func Compiler() string { return manifest().Compiler }

// Target is the architecture that a unit was compiled for: sm_90a or sm_80.
func Target(name string) string {
	u, _ := manifest().Find(name)
	return u.Target
}

// Image is the compiled code of the unit NAME.cu, as the driver loads it.
func Image(name string) ([]byte, error) {
	image, err := files.ReadFile(unit.Image(name))
	if err != nil {
		return nil, fmt.Errorf("no kernels named %s: %w", name, err)
	}
	return image, nil
}
