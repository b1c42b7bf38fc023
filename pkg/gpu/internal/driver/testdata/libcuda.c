// A libcuda.so.1 for tests on machines without one: one device, which does nothing.
// It lacks most functions, as an old driver lacks the newest.

#include <cuda.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

CUresult cuInit(unsigned int flags) {
	const char *result = getenv("FAKE_INIT");
	return flags != 0 ? CUDA_ERROR_INVALID_VALUE : result == NULL ? CUDA_SUCCESS : atoi(result);
}

CUresult cuGetErrorName(CUresult r, const char **s) {
	*s = r == CUDA_ERROR_NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_SOME";
	return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult r, const char **s) {
	*s = r == CUDA_ERROR_NO_DEVICE ? "no device" : "some";
	return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *v) { *v = 12040; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int ordinal) { *d = ordinal; return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetName(char *s, int n, CUdevice d) { (void)d; strncpy(s, "Fake", n); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *n, CUdevice d) { (void)d; *n = 3UL << 30; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) { (void)d; *v = a; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxSetFlags(CUdevice d, unsigned int f) { (void)d; return f == CU_CTX_SCHED_BLOCKING_SYNC ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { (void)d; *c = (CUcontext)0x10; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice d) { (void)d; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return c == NULL || c == (CUcontext)0x10 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuStreamCreateWithPriority(CUstream *s, unsigned int f, int p) { *s = (CUstream)0x20; return f == CU_STREAM_NON_BLOCKING && p == -3 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuModuleLoadData(CUmodule *m, const void *image) { *m = (CUmodule)0x30; return memcmp(image, "i\0mage", 7) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) { (void)m; *f = (CUfunction)0x40; return strcmp(name, "f") == 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND; }

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
	return f == (CUfunction)0x40 && a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && v == 99 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Eleven arguments: the last five are passed on the stack.
CUresult cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
                        unsigned int shared, CUstream s, void **params, void **extra) {
	int ok = f == (CUfunction)0x40 && gx == 2 && gy == 3 && gz == 1 && bx == 5 && by == 6 && bz == 7 && shared == 8 &&
	         s == (CUstream)0x20 && extra == NULL && *(uint64_t *)params[0] == 0x123456789a && *(int64_t *)params[1] == -2 &&
	         *(int32_t *)params[1] == -2 && *(float *)params[2] == 1.5f;
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *c, CUstream s) {
	int ok = s == (CUstream)0x20 && c->WidthInBytes == 3 && c->Height == 2 && c->srcXInBytes == 0 && c->dstY == 0;
	if (c->srcMemoryType == CU_MEMORYTYPE_HOST)
		ok = ok && c->dstMemoryType == CU_MEMORYTYPE_DEVICE && c->dstDevice == 0x50 && c->srcPitch == 4 && c->dstPitch == 8 && *(const char *)c->srcHost == 'h';
	else
		ok = ok && c->dstMemoryType == CU_MEMORYTYPE_HOST && c->srcDevice == 0x50 && c->srcPitch == 8 && c->dstPitch == 4 && *(const char *)c->dstHost == 'h';
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemHostRegister(void *p, size_t n, unsigned int flags) {
	return *(char *)p == 'h' && n == 7 && flags == (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_READ_ONLY) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
