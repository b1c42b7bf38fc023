//go:build cuda

package driver

import (
	"errors"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// Stream is a queue of copies and launches that the device does in order, beside
// those of other streams.
type Stream struct {
	s      cu.Stream
	device int
}

// StreamPriorities is the range of priorities: the highest is the smaller number.
func (c *Context) StreamPriorities() (lowest, highest int, err error) {
	if lowest, highest, err = cu.StreamPriorityRange(); err != nil {
		return 0, 0, failed(c.info.Ordinal, err, "ask for stream priorities")
	}
	return lowest, highest, nil
}

// NewStream makes a stream, which never waits for the default stream. Blocks of
// its kernels go before those of streams with a lower priority; 0 is the lowest.
func (c *Context) NewStream(priority int) (Stream, error) {
	s, err := cu.MakeStreamWithPriority(priority, cu.NonBlocking)
	if err != nil {
		return Stream{}, failed(c.info.Ordinal, err, "create a stream of priority %d", priority)
	}
	return Stream{s: s, device: c.info.Ordinal}, nil
}

// Close frees the stream when all that was submitted to it is done.
func (s Stream) Close() error {
	if err := s.s.Destroy(); err != nil {
		return failed(s.device, err, "free a stream")
	}
	return nil
}

// Synchronize waits until everything submitted is done, and returns the error of
// what failed.
func (s Stream) Synchronize() error {
	if err := s.s.Synchronize(); err != nil {
		return failed(s.device, err, "wait for a stream")
	}
	return nil
}

// Idle reports whether everything submitted is done.
func (s Stream) Idle() (bool, error) {
	switch err := s.s.Query(); {
	case err == nil:
		return true, nil
	case errors.Is(err, cu.NotReady):
		return false, nil
	default:
		return false, failed(s.device, err, "ask whether a stream is done")
	}
}

// Record makes e done when everything submitted until now is done. Waits on e that
// were submitted before are not affected.
func (s Stream) Record(e Event) error {
	if err := e.e.Record(s.s); err != nil {
		return failed(s.device, err, "record an event")
	}
	return nil
}

// Wait lets what is submitted from now on wait for the latest Record of e, on the
// device; the caller does not wait.
func (s Stream) Wait(e Event) error {
	if err := s.s.Wait(e.e, 0); err != nil {
		return failed(s.device, err, "let a stream wait for an event")
	}
	return nil
}

// CopyIn copies src, in host memory, to dst.
func (s Stream) CopyIn(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	if err := cu.MemcpyHtoDAsync(dst, unsafe.Pointer(&src[0]), int64(len(src)), s.s); err != nil {
		return failed(s.device, err, "copy %d bytes to the device", len(src))
	}
	return nil
}

// CopyOut copies from src as many bytes as dst has, in host memory.
func (s Stream) CopyOut(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&dst[0]), src, int64(len(dst)), s.s); err != nil {
		return failed(s.device, err, "copy %d bytes from the device", len(dst))
	}
	return nil
}

// Copy copies n bytes within the device. They must not overlap.
func (s Stream) Copy(dst, src Ptr, n int64) error {
	if n == 0 {
		return nil
	}
	if err := cu.MemcpyDtoDAsync(dst, src, n, s.s); err != nil {
		return failed(s.device, err, "copy %d bytes within the device", n)
	}
	return nil
}

// Rows is the shape of a two-dimensional copy.
type Rows struct {
	N     int // rows
	Width int // bytes of a row that are copied
}

// span is how many bytes the rows reach over at a pitch. A copy of no bytes
// reaches over none.
func (r Rows) span(pitch int) int {
	if r.N == 0 || r.Width == 0 {
		return 0
	}
	if pitch < r.Width {
		panic(fmt.Sprintf("rows of %d bytes at a pitch of %d overlap", r.Width, pitch))
	}
	return (r.N-1)*pitch + r.Width
}

// CopyIn2D copies rows that start srcPitch bytes apart in host memory to rows
// dstPitch bytes apart. It panics if they reach beyond src.
func (s Stream) CopyIn2D(dst Ptr, dstPitch int, src []byte, srcPitch int, r Rows) error {
	n := r.span(srcPitch)
	if n == 0 {
		return nil
	}
	if res := copyIn2D(dst, dstPitch, unsafe.Pointer(&src[:n][0]), srcPitch, r.Width, r.N, s.s); res != 0 {
		return failed(s.device, res, "copy %d rows of %d bytes, %d apart, to the device, %d apart", r.N, r.Width, srcPitch, dstPitch)
	}
	return nil
}

// CopyOut2D copies rows that start srcPitch bytes apart to rows dstPitch bytes
// apart in host memory. It panics if they reach beyond dst.
func (s Stream) CopyOut2D(dst []byte, dstPitch int, src Ptr, srcPitch int, r Rows) error {
	n := r.span(dstPitch)
	if n == 0 {
		return nil
	}
	if res := copyOut2D(unsafe.Pointer(&dst[:n][0]), dstPitch, src, srcPitch, r.Width, r.N, s.s); res != 0 {
		return failed(s.device, res, "copy %d rows of %d bytes, %d apart, from the device, %d apart", r.N, r.Width, dstPitch, srcPitch)
	}
	return nil
}

// Fill8 sets n bytes.
func (s Stream) Fill8(dst Ptr, value byte, n int64) error {
	if n == 0 {
		return nil
	}
	if err := cu.MemsetD8Async(dst, value, n, s.s); err != nil {
		return failed(s.device, err, "fill %d bytes", n)
	}
	return nil
}

// Fill32 sets n words of 4 bytes; dst is a multiple of 4.
func (s Stream) Fill32(dst Ptr, value uint32, n int64) error {
	if n == 0 {
		return nil
	}
	// cu calls the parameter a uint; the driver takes 32 bits.
	if err := cu.MemsetD32Async(dst, uint(value), n, s.s); err != nil {
		return failed(s.device, err, "fill %d words", n)
	}
	return nil
}
