// Package cuda holds the CUDA kernels: their sources, and, in builds with the tag
// cuda, their compiled code.
//
// Each *.cu is a unit that is compiled alone: *_sm90.cu for Hopper (sm_90a), the
// others for Ampere (sm_80), with PTX that the driver compiles for what came after.
// Compiled code is in the repository, in kernels, so that only those who change a
// kernel need nvcc. `make cuda` compiles what has changed, and a test fails if that
// was forgotten.
package cuda

//go:generate go run _generate/wgmma.go
