//go:build !cuda

package gpu

// Built reports whether the binary can use GPUs.
const Built = false

// Hash is empty: there are no kernels.
func Hash() string { return "" }

// Devices returns ErrNotBuilt.
func Devices() ([]Info, error) { return nil, ErrNotBuilt }

// Memory returns ErrNotBuilt.
func Memory(ordinal int) (free, total int64, err error) { return 0, 0, ErrNotBuilt }
