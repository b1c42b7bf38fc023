// Package tensorfile maps tensors in .npy, .safetensors and raw files, and
// writes such files whole or not at all.
//
// # Lifetime
//
// Every slice of a Tensor or an Output is a window into a mapped file:
//
//   - It dies with Close, Commit or Abort. Using it later is a fault that ends
//     the process, or, worse, reads what has been mapped there since.
//   - The slices of a Tensor are read-only. A write to them is a fault.
//   - If the file becomes shorter while it is mapped, or its disk fails, the
//     next access to a lost page is a fault (SIGBUS). Guard turns that into an
//     error that names the file; without Guard it ends the process. A file that
//     is overwritten in place changes under the slices; CheckUnchanged tells.
//
// A Tensor may be used by any number of goroutines, but the last use must
// happen before Close. The same holds for an Output and its end.
//
// # Inputs
//
// Open maps exactly the bytes that the file has: shared, so that a driver can
// pin the pages of the page cache, and read-only. Bytes are the elements,
// little-endian, in C order; in a safetensors file they may start at any
// offset, so that an element need not be aligned to its size.
//
// A header is hostile until checked. Parsing it takes time and memory in
// proportion to the bytes that are there, never to a number they declare.
// Limits: an npy header has at most 1 MiB (64 KiB in version 1), a safetensors
// header 100 MB as its format says, a shape 64 extents, and the bytes of a
// tensor are below 2^63. The data must have exactly the size that the header
// promises: missing and trailing bytes are errors. So are duplicate keys, on
// which readers disagree, and holes or overlaps in a safetensors file. What is
// well formed but not supported (big-endian, Fortran order, other types) is
// refused by a sentence that says how to convert it; Inspect lists it.
//
// NumPy has no bfloat16. Arrays of ml_dtypes are saved as 2-byte void ("<V2"),
// others view them as 2-byte integers first. Both are bfloat16 only when
// Spec.DType says so.
//
// # Outputs
//
// Create makes PATH.partial with all its space reserved, so that a full disk is
// an error before the work and not a SIGBUS in it. Commit syncs, renames it to
// PATH and syncs the directory. PATH is not touched before. On a file system
// that can't reserve (no fallocate), zeros are written instead; one that
// compresses or copies on write may still run out of space later. PATH.partial
// is locked while it is open: a second writer gets ErrInUse. If PATH is a
// symbolic link, the file that it leads to is replaced, not the link.
//
// OutSpec.Partial puts the partial file elsewhere, under a name that says nothing about
// PATH, and all of this holds for it there. From another file system Commit can't rename
// it: it copies it to PATH.partial, syncs and renames that, and removes the original
// when PATH is durable. That takes the space twice, for a while.
//
// # Why the header parsers are our own
//
// Two libraries were tried on files that a user could be given.
//
// codeberg.org/sbinet/npyio v0.14.0, npy.NewReader: a 12-byte file of version 2
// that declares a header of 0xfffffff0 bytes allocates 8.6 GB; a header without
// a newline, or with 'shape' before 'descr', panics with a slice out of range;
// "'shape': (3, 4)}", which has no comma before the brace, is read as the shape
// [3], without an error; version 3 is refused.
//
// github.com/nlpodyssey/safetensors (2025-02-09), ReadMetadata: of two tensors
// with one key the second wins without an error; one F8_E8M0 tensor makes the
// whole file unreadable; a 12 MB header of nested lists allocates 470 MB before
// it is refused, and the shape of 4 million extents is accepted.
package tensorfile
