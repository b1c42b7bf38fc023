//go:build cuda

// The symbols of libcuda.so.1, found when the program asks for them instead of when
// it starts.

#include <dlfcn.h>
#include <stddef.h>

#include <cuda.h>

#include "shim.h"

#if !defined(__linux__) || !defined(__x86_64__)
#error "the CUDA device is for linux/amd64"
#endif

typedef CUresult (*function)(void);

static CUresult not_open(void) { return CUDA_ERROR_NOT_INITIALIZED; }
static CUresult not_found(void) { return CUDA_ERROR_NOT_SUPPORTED; }

// For each symbol a pointer to its function in libcuda, and a jump through it, which
// leaves the arguments where they are whatever their types. Callers are C code, and
// the pointers are written once, before any of them calls. Hidden, because libcuda must
// not find these symbols instead of its own.
#define SYMBOL(name)                                                           \
	__attribute__((visibility("hidden"), used)) function at_##name = not_open; \
	__asm__(".text\n"                                                          \
	        ".globl " #name "\n"                                               \
	        ".hidden " #name "\n"                                              \
	        ".type " #name ", @function\n"                                     \
	        #name ":\n"                                                        \
	        "\tjmp *at_" #name "(%rip)\n"                                      \
	        ".size " #name ", .-" #name "\n");
#include "symbols.h"
#undef SYMBOL

static const struct {
	const char *name;
	function *at;
} symbols[] = {
#define SYMBOL(name) {#name, &at_##name},
#include "symbols.h"
#undef SYMBOL
};

// gorgonia.org/cu calls cuInit when the program starts, and exits if that fails.
CUresult CUDAAPI cuInit(unsigned int flags) {
	(void)flags;
	return CUDA_SUCCESS;
}
__asm__(".hidden cuInit\n"); // cuda.h has declared it otherwise

const char *driver_open(int *init) {
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	if (lib == NULL)
		return dlerror();
	CUresult (*real_init)(unsigned int);
	*(void **)&real_init = dlsym(lib, "cuInit");
	if (real_init == NULL)
		return dlerror();
	for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
		void *p = dlsym(lib, symbols[i].name);
		*symbols[i].at = p == NULL ? not_found : (function)p;
	}
	*init = real_init(0);
	return NULL;
}
