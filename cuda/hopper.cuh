// What only Hopper has: barriers in shared memory, bulk copies, and the rules
// around asynchronous matrix products. PTX ISA, sections on mbarrier,
// cp.async.bulk and wgmma.
#pragma once
#include "ptx.cuh"

// Barrier is an mbarrier. A phase ends when all arrivals have come, and all bytes
// that were announced.
struct Barrier {
    uint64_t word;

    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(this)), "r"(arrivals) : "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(this)) : "memory");
    }
    __device__ __forceinline__ void arriveExpecting(uint32_t bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(this)), "r"(bytes) : "memory");
    }
    // wait returns when the phase of that parity is over.
    __device__ __forceinline__ void wait(uint32_t parity) {
        asm volatile(
            "{\n.reg .pred p;\n"
            "again:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra over;\nbra again;\nover:\n}\n" ::"r"(sharedAddress(this)),
            "r"(parity)
            : "memory");
    }
};

// fenceBarrierInit makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fenceBarrierInit() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

// bulkCopy copies bytes (a multiple of 16) into shared memory; b hears of them.
__device__ __forceinline__ void bulkCopy(void* to, const void* from, uint32_t bytes, Barrier* b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(sharedAddress(to)), "l"(from),
                 "r"(bytes), "r"(sharedAddress(b))
                 : "memory");
}

template <int N>
__device__ __forceinline__ void giveRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ __forceinline__ void takeRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

__device__ __forceinline__ void productsBegin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void productsCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// productsWait returns when at most N committed groups are unfinished.
template <int N>
__device__ __forceinline__ void productsWait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// pin keeps the compiler from moving accesses to registers that products in
// flight read or write across this point.
template <int N>
__device__ __forceinline__ void pin(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(uint32_t (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

// Descriptor of a matrix in shared memory with the 128-byte swizzle: leading and
// stride are bytes between atoms of 8 rows by 128 bytes; see the PTX ISA on the
// matrix descriptor of wgmma. Adding bytes moves it.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ uint64_t moved(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }
// Named barriers of two warpgroups.
__device__ __forceinline__ void turnWait(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
__device__ __forceinline__ void turnGive(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }
