// CUDA C++ on the CPU, as far as the kernels need it: the threads of a block are fibers
// of one thread, which take turns wherever they wait for each other. Blocks run one
// after another.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

using std::isfinite;
using std::isnan;
using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emulate {

struct Index { int x, y, z; };

// Meeting is where threads wait until as many as are expected have come.
struct Meeting {
    int expected, arrived = 0;
    uint64_t held = 0;    // so many times
    void* slots[128];     // what each brings
    int any = 0, all = 0; // of the meeting now, and of the last one
};

struct Thread {
    void* stack;  // its pointer, while another runs
    Index index;
    Meeting *warp, *group, *block;  // a group is of four warps
};

extern Thread* self;             // the one that runs
extern Index block, blocks, threads;
extern uint8_t* shared;          // dynamic shared memory
extern Meeting turns[16];        // named barriers
constexpr int kSharedBytes = 227 << 10;

void yield();

// meet waits for the others; the last to come does work for all before they go on.
template <class F>
inline void meet(Meeting& m, F work) {
    if (++m.arrived == m.expected) {
        m.arrived = 0;
        work();
        m.held++;
        return;
    }
    for (const uint64_t now = m.held; m.held == now;) yield();
}

// together has the n threads of a warp or a group bring a T each, and the last work on
// all of them.
template <class T, class F>
inline void together(T& mine, Meeting& m, int n, F work) {
    m.slots[self->index.x % n] = &mine;
    meet(m, [&] { work((T**)m.slots); });
}
template <class T, class F>
inline void together(T& mine, F work) { together(mine, *self->warp, 32, work); }

template <class T>
inline T shuffle(T x, int from) {
    struct { T in, out; int from; } mine = {x, x, from & 31};
    together(mine, [](auto** lanes) {
        for (int i = 0; i < 32; i++) lanes[i]->out = lanes[lanes[i]->from]->in;
    });
    return mine.out;
}

}  // namespace emulate

#define threadIdx (emulate::self->index)
#define blockIdx (emulate::block)
#define gridDim (emulate::blocks)
#define blockDim (emulate::threads)

inline void __syncwarp() {
    emulate::meet(*emulate::self->warp, [] {});
}
inline int __syncthreads_or(int x) {
    emulate::Meeting& m = *emulate::self->block;
    m.any |= x != 0;
    emulate::meet(m, [&] { m.all = m.any, m.any = 0; });
    return m.all;
}
inline void __syncthreads() { __syncthreads_or(0); }

template <class T>
inline T __shfl_sync(unsigned, T x, int from) { return emulate::shuffle(x, from); }
template <class T>
inline T __shfl_xor_sync(unsigned, T x, int bits) { return emulate::shuffle(x, (threadIdx.x & 31) ^ bits); }
inline uint32_t __ballot_sync(unsigned, bool x) {
    struct { bool in; uint32_t out; } mine = {x, 0};
    emulate::together(mine, [](auto** lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; i++) bits |= (uint32_t)lanes[i]->in << i;
        for (int i = 0; i < 32; i++) lanes[i]->out = bits;
    });
    return mine.out;
}
inline bool __any_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) != 0; }

inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __uint_as_float(uint32_t x) { float y; memcpy(&y, &x, 4); return y; }
inline uint32_t __float_as_uint(float x) { uint32_t y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
