//go:build cuda

package driver

/*
#include <cuda.h>
#include <stdlib.h>
#include "shim.h"

// cu's Memcpy2DAsync can't copy between host and device: it reads through an array
// handle that is nil then.
static CUresult copy_in_2d(CUdeviceptr dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows, CUstream stream) {
	CUDA_MEMCPY2D c = {
		.srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = src, .srcPitch = src_pitch,
		.dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = dst, .dstPitch = dst_pitch,
		.WidthInBytes = width, .Height = rows,
	};
	return cuMemcpy2DAsync(&c, stream);
}

static CUresult copy_out_2d(void *dst, size_t dst_pitch, CUdeviceptr src, size_t src_pitch, size_t width, size_t rows, CUstream stream) {
	CUDA_MEMCPY2D c = {
		.srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = src, .srcPitch = src_pitch,
		.dstMemoryType = CU_MEMORYTYPE_HOST, .dstHost = dst, .dstPitch = dst_pitch,
		.WidthInBytes = width, .Height = rows,
	};
	return cuMemcpy2DAsync(&c, stream);
}
*/
import "C"

import (
	"errors"
	"unsafe"

	"gorgonia.org/cu"
)

// This file is all of the driver that gorgonia.org/cu lacks.

// cu keeps its handles to itself; a struct of one pointer is that pointer.
var (
	_ [unsafe.Sizeof(cu.Function{})]byte = [unsafe.Sizeof(C.CUfunction(nil))]byte{}
	_ [unsafe.Sizeof(cu.Stream{})]byte   = [unsafe.Sizeof(C.CUstream(nil))]byte{}
)

func functionHandle(f cu.Function) C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&f)) }
func streamHandle(s cu.Stream) C.CUstream       { return *(*C.CUstream)(unsafe.Pointer(&s)) }

// Attributes that are newer than cu.
const (
	attrHostRegister         = cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)
	attrReadOnlyHostRegister = cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)
	attrSharedOptin          = cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
)

func open() (Result, error) {
	var init C.int
	if problem := C.driver_open(&init); problem != nil {
		return 0, errors.New(C.GoString(problem))
	}
	return Result(init), nil
}

// resultText is the driver's name and explanation of a result, empty where it
// knows none.
func resultText(r Result) (name, text string) {
	var s *C.char
	if C.cuGetErrorName(C.CUresult(r), &s) == C.CUDA_SUCCESS {
		name = C.GoString(s)
	}
	if C.cuGetErrorString(C.CUresult(r), &s) == C.CUDA_SUCCESS {
		text = C.GoString(s)
	}
	return name, text
}

func hostRegister(p unsafe.Pointer, n int, readOnly bool) Result {
	flags := C.uint(C.CU_MEMHOSTREGISTER_PORTABLE)
	if readOnly {
		flags |= C.CU_MEMHOSTREGISTER_READ_ONLY
	}
	return Result(C.cuMemHostRegister(p, C.size_t(n), flags))
}

func hostUnregister(p unsafe.Pointer) Result { return Result(C.cuMemHostUnregister(p)) }

func setMaxShared(f cu.Function, n int) Result {
	return Result(C.cuFuncSetAttribute(functionHandle(f), C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(n)))
}

func copyIn2D(dst Ptr, dstPitch int, src unsafe.Pointer, srcPitch, width, rows int, s cu.Stream) Result {
	return Result(C.copy_in_2d(C.CUdeviceptr(dst), C.size_t(dstPitch), src, C.size_t(srcPitch), C.size_t(width), C.size_t(rows), streamHandle(s)))
}

func copyOut2D(dst unsafe.Pointer, dstPitch int, src Ptr, srcPitch, width, rows int, s cu.Stream) Result {
	return Result(C.copy_out_2d(dst, C.size_t(dstPitch), C.CUdeviceptr(src), C.size_t(srcPitch), C.size_t(width), C.size_t(rows), streamHandle(s)))
}
