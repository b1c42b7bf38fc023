// Package driver is the CUDA driver as the device of pkg/gpu needs it: contexts,
// memory, streams, events, modules. It adds to gorgonia.org/cu the few functions
// that cu lacks, errors that say what was attempted, and types that keep arguments
// apart.
//
// # Finding the driver
//
// The binary does not link against libcuda: shim.c defines the symbols that cu and
// this package refer to, and forwards them to libcuda.so.1 once Load has opened it.
// So the same binary starts on a machine without a driver, and Load says what is
// missing there. Nothing of CUDA runs before Load; cu calls cuInit when a program
// starts, which the shim ignores.
//
// # Threads
//
// A CUDA context is current to an OS thread. Load, Devices, Open, and of Context the
// methods Info, Bind, NewThread and Close can be called anywhere. Everything else must
// be called where the context is current: in a function given to Thread.Do, or after
// Context.Bind. Several such threads may do so at once.
//
// # Sizes
//
// Sizes and pitches are in bytes. Host memory passed to an asynchronous copy must
// lie outside the Go heap (a mapping, or AllocHost) and stay valid until the copy
// is done. Copies overlap with anything only if that memory is page-locked; from
// other memory they are staged by the driver while the caller waits.
//
// All of it but Info and Version is built only with the tag cuda.
package driver
