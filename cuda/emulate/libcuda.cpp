// A libcuda.so.1 that runs the kernels on the CPU: see emulate.h. It knows the calls that
// pkg/gpu makes. Everything is done when it is submitted, so that streams and events have
// nothing to wait for. Its device is none that NVIDIA makes: of compute capability MAJOR.0,
// with few multiprocessors.
#include <chrono>
#include <cstdlib>
#include <dlfcn.h>
#include <mutex>
#include <string>
#include <vector>

#include <cuda.h>

#include "emulate.h"

namespace emulate {

Thread* self;
Index block, blocks, threads;
alignas(1024) static uint8_t sharedMemory[kSharedBytes];
uint8_t* shared = sharedMemory;
Meeting turns[16];

namespace {

constexpr int kStackBytes = 256 << 10;
constexpr int kMultiprocessors = 4;

using Kernel = void (*)(uint64_t, uint64_t, uint64_t);

struct Fiber : Thread {
    std::vector<uint8_t> memory = std::vector<uint8_t>(kStackBytes);
    bool over;
};

std::vector<Fiber> fibers;
int running, alive;      // which fiber, and how many are not over
Thread starter;          // the thread that launches
Kernel kernel;
uint64_t arguments[3];

// change saves what a call must preserve, and the stack pointer, and goes on where to
// was saved.
extern "C" void emulate_change(void** from, void* to);
asm(R"(
.text
emulate_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

void change(Thread& to) {
    Thread& from = *self;
    self = &to;
    emulate_change(&from.stack, to.stack);
}

void body() {
    kernel(arguments[0], arguments[1], arguments[2]);
    fibers[running].over = true;
    if (--alive == 0) change(starter);
    yield();
    abort();  // nobody comes back to what is over
}

// prepare makes a fiber that begins with body.
void prepare(Fiber& f, int i, std::vector<Meeting>& meetings) {
    f.over = false;
    f.index = {i, 0, 0};
    const int n = threads.x;
    f.warp = &meetings[i / 32], f.group = &meetings[n / 32 + i / 128], f.block = &meetings.back();
    uint64_t* top = (uint64_t*)((uintptr_t)(f.memory.data() + kStackBytes) & ~(uintptr_t)63);
    *--top = 0;               // where body would return to, which it does not
    *--top = (uint64_t)body;
    top -= 6;                 // of saved registers, whatever they are
    f.stack = top;
}

void runBlock(int n) {
    std::vector<Meeting> meetings;
    for (int i = 0; i < n; i += 32) meetings.push_back({.expected = 32});
    for (int i = 0; i < n; i += 128) meetings.push_back({.expected = 128});
    meetings.push_back({.expected = n});
    std::fill(std::begin(turns), std::end(turns), Meeting{});
    memset(shared, 0xaa, kSharedBytes);
    for (int i = 0; i < n; i++) prepare(fibers[i], i, meetings);
    alive = n, running = 0;
    self = &starter;
    change(fibers[0]);
}

}  // namespace

void yield() {
    const int before = running, n = threads.x;
    do running = running + 1 == n ? 0 : running + 1;
    while (fibers[running].over);
    if (running != before) change(fibers[running]);
}

namespace {

std::mutex mutex;  // one launch at a time

CUresult launch(const std::string& name, void* function, Index grid, int n, int bytes, void** parameters) {
    if (n % 32 != 0 || bytes > kSharedBytes) return CUDA_ERROR_INVALID_VALUE;
    const std::lock_guard<std::mutex> lock(mutex);
    const int count = name == "empty_state" ? 3 : name == "pack" ? 1 : 2;
    for (int i = 0; i < 3; i++) arguments[i] = i < count ? *(uint64_t*)parameters[i] : 0;
    kernel = (Kernel)function;
    blocks = grid, threads = {n, 1, 1};
    if ((int)fibers.size() < n) fibers = std::vector<Fiber>(n);
    for (block.z = 0; block.z < grid.z; block.z++)
        for (block.y = 0; block.y < grid.y; block.y++)
            for (block.x = 0; block.x < grid.x; block.x++) runBlock(n);
    return CUDA_SUCCESS;
}

// Function is what a CUfunction points at.
struct Function {
    std::string name;
    void* address;
};

void* find(const char* name) {
    Dl_info info;
    dladdr((void*)&launch, &info);
    static void* const library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    return dlsym(library, name);
}

using Clock = std::chrono::steady_clock;

}  // namespace
}  // namespace emulate

using namespace emulate;

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult e, const char** s) { return *s = e ? "CUDA_ERROR_EMULATED" : "CUDA_SUCCESS", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char** s) { return *s = e ? "what the emulation does not do" : "no error", CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int* n) { return *n = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* d, int ordinal) { return *d = ordinal, ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetName(char* name, int n, CUdevice) { return strncpy(name, "emulated", n), CUDA_SUCCESS; }
CUresult cuDeviceGetPCIBusId(char* id, int n, CUdevice) { return strncpy(id, "0000:00:00.0", n), CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t* n, CUdevice) { return *n = (size_t)4 << 30, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute a, CUdevice) {
    switch (a) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = MAJOR; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = kMultiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1000000; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = kSharedBytes; break;
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED: *value = 1; break;
    default: *value = 1;
    }
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxSetFlags(CUdevice, unsigned) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { return *c = (CUcontext)&self, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { return *c = (CUcontext)&self, CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { return CUDA_SUCCESS; }
CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -1, CUDA_SUCCESS; }

CUresult cuMemGetInfo(size_t* free, size_t* total) { return *free = *total = (size_t)4 << 30, CUDA_SUCCESS; }
CUresult cuMemAlloc(CUdeviceptr* p, size_t n) {
    *p = (CUdeviceptr)aligned_alloc(512, (n + 511) / 512 * 512);
    return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFree(CUdeviceptr p) { return ::free((void*)p), CUDA_SUCCESS; }
CUresult cuMemHostRegister(void*, size_t, unsigned) { return CUDA_SUCCESS; }
CUresult cuMemHostUnregister(void*) { return CUDA_SUCCESS; }
CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t n) { return memcpy(to, (void*)from, n), CUDA_SUCCESS; }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream) { return memcpy((void*)to, from, n), CUDA_SUCCESS; }
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream) { return memcpy(to, (void*)from, n), CUDA_SUCCESS; }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream) { return memmove((void*)to, (void*)from, n), CUDA_SUCCESS; }
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* c, CUstream) {
    uint8_t* to = c->dstMemoryType == CU_MEMORYTYPE_HOST ? (uint8_t*)c->dstHost : (uint8_t*)c->dstDevice;
    const uint8_t* from = c->srcMemoryType == CU_MEMORYTYPE_HOST ? (const uint8_t*)c->srcHost : (const uint8_t*)c->srcDevice;
    for (size_t i = 0; i < c->Height; i++) memcpy(to + i * c->dstPitch, from + i * c->srcPitch, c->WidthInBytes);
    return CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char x, size_t n, CUstream) { return memset((void*)to, x, n), CUDA_SUCCESS; }
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned x, size_t n, CUstream) { return std::fill_n((uint32_t*)to, n, x), CUDA_SUCCESS; }

CUresult cuStreamCreateWithPriority(CUstream* s, unsigned, int) { return *s = (CUstream)&self, CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamQuery(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent* e, unsigned) { return *e = (CUevent)new Clock::time_point(Clock::now()), CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent e) { return delete (Clock::time_point*)e, CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent e, CUstream) { return *(Clock::time_point*)e = Clock::now(), CUDA_SUCCESS; }
CUresult cuEventQuery(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* ms, CUevent a, CUevent b) {
    *ms = std::chrono::duration<float, std::milli>(*(Clock::time_point*)b - *(Clock::time_point*)a).count();
    return CUDA_SUCCESS;
}

// Whatever the image, a module has all kernels.
CUresult cuModuleLoadData(CUmodule* m, const void*) { return *m = (CUmodule)&self, CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) {
    void* address = find(name);
    *f = (CUfunction) new Function{name, address};
    return address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuModuleGetGlobal(CUdeviceptr* p, size_t* n, CUmodule, const char* name) {
    *p = (CUdeviceptr)find(name), *n = 36;  // a KernelInfo, the only kind there is
    return *p ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned n, unsigned, unsigned, unsigned bytes, CUstream, void** parameters,
                        void**) {
    const Function& k = *(Function*)f;
    return launch(k.name, k.address, {(int)gx, (int)gy, (int)gz}, n, bytes, parameters);
}

}  // extern "C"
