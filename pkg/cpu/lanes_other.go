//go:build !amd64

package cpu

// laneTiers returns the kernels that this CPU can run: none yet.
func laneTiers() []laneKernels { return nil }
