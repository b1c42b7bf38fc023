// A libcuda.so.1 that passes all calls on to the library LOSING_DRIVER, as long as those
// that give the GPU work are no more than LOSING_AFTER. From then on the GPU is lost:
// nearly everything fails. Of the GPU's memory no more than LOSING_MEMORY bytes are free,
// which is first noticed when more are to be had: others took the rest just then.

#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// For each function a jump to the real one, unless losing_call has a result for it. The
// arguments stay where they are, whatever their types.
#define SYMBOL(name)                                                                          \
	__attribute__((visibility("hidden"))) void *real_##name;                                  \
	__attribute__((visibility("hidden"))) char kind_##name;                                   \
	__asm__(".text\n"                                                                         \
	        ".globl " #name "\n"                                                              \
	        ".type " #name ", @function\n"                                                    \
	        #name ":\n"                                                                       \
	        "\tpush %rdi\n\tpush %rsi\n\tpush %rdx\n\tpush %rcx\n\tpush %r8\n\tpush %r9\n"    \
	        "\tmov %rsp, %rsi\n"                                                              \
	        "\tsub $8, %rsp\n"                                                                \
	        "\tlea kind_" #name "(%rip), %rdi\n"                                              \
	        "\tcall losing_call\n"                                                            \
	        "\tadd $8, %rsp\n"                                                                \
	        "\tpop %r9\n\tpop %r8\n\tpop %rcx\n\tpop %rdx\n\tpop %rsi\n\tpop %rdi\n"          \
	        "\tcmp $-1, %eax\n"                                                               \
	        "\tjne 1f\n"                                                                      \
	        "\tjmp *real_" #name "(%rip)\n"                                                   \
	        "1:\tret\n");
SYMBOL(cuInit)
#include "symbols.h"
#undef SYMBOL

static const struct {
	const char *name;
	void **real;
	char *kind;
} symbols[] = {
#define SYMBOL(name) {#name, &real_##name, &kind_##name},
	SYMBOL(cuInit)
#include "symbols.h"
};

enum { harmless, work, rest, allocate, ask };

static atomic_long left;
static atomic_bool taken; // the memory
static size_t memory;

// losing_call returns the result of a call, or -1 for the real one's. arguments are the
// first six, in reverse order.
__attribute__((visibility("hidden"))) int losing_call(const char *kind, const size_t *arguments) {
	switch (*kind) {
	case allocate:
		if (arguments[4] <= memory)
			break;
		atomic_store(&taken, 1);
		return 2; // CUDA_ERROR_OUT_OF_MEMORY
	case ask:
		if (!atomic_load(&taken))
			return -1;
		int (*real)(size_t *, size_t *) = real_cuMemGetInfo_v2;
		int result = real((size_t *)arguments[5], (size_t *)arguments[4]);
		*(size_t *)arguments[5] = memory;
		return result;
	}
	long n = *kind == work ? atomic_fetch_sub(&left, 1) : atomic_load(&left);
	return *kind != harmless && n <= 0 ? 719 : -1; // CUDA_ERROR_LAUNCH_FAILED
}

static int not_found(void) { return 801; } // CUDA_ERROR_NOT_SUPPORTED

static char kind_of(const char *name) {
	static const struct {
		const char *prefix;
		char kind;
	} known[] = {{"cuLaunch", work}, {"cuMemcpy", work}, {"cuMemset", work}, {"cuEvent", rest}, {"cuStream", rest},
	             {"cuMemAlloc_v2", allocate}, {"cuMemGetInfo_v2", ask}, {"cuMem", rest}, {"cuModuleUnload", rest}, {"cuCtxSynchronize", rest}};
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strncmp(name, known[i].prefix, strlen(known[i].prefix)) == 0)
			return known[i].kind;
	return harmless;
}

__attribute__((constructor)) static void begin(void) {
	const char *path = getenv("LOSING_DRIVER"), *after = getenv("LOSING_AFTER"), *most = getenv("LOSING_MEMORY");
	void *lib = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (lib == NULL) {
		fprintf(stderr, "no driver to pass calls on to\n");
		abort();
	}
	left = after == NULL ? 1L << 60 : atol(after);
	memory = most == NULL ? (size_t)-1 : strtoul(most, NULL, 10);
	for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
		void *p = dlsym(lib, symbols[i].name);
		*symbols[i].real = p == NULL ? (void *)not_found : p;
		*symbols[i].kind = kind_of(symbols[i].name);
	}
}
