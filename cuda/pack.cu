// Packing: rows as they are in files become tiles as the tensor cores want them.
#include "layout.cuh"
#include "ptx.cuh"

namespace {

__device__ __forceinline__ float element(const uint8_t* row, int i, int type) {
    switch (type) {
    case 0: return ((const float*)row)[i];
    case 1: {
        float lo, hi;
        unpackHalves(((const uint16_t*)row)[i], lo, hi);
        return lo;
    }
    default: return __uint_as_float((uint32_t)((const uint16_t*)row)[i] << 16);
    }
}

// Eight elements, as one or two 16-byte loads where the address allows it.
__device__ __forceinline__ void eight(const uint8_t* row, int i, int width, int type, bool aligned, float (&x)[8]) {
    if (aligned && i + 8 <= width) {
        if (type == 0) {
            const float4* p = (const float4*)row + i / 4;
            const float4 a = p[0], b = p[1];
            x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
            return;
        }
        const uint4 a = ((const uint4*)row)[i / 8];
        const uint32_t u[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int j = 0; j < 4; j++) type == 1 ? unpackHalves(u[j], x[2 * j], x[2 * j + 1]) : unpackBrainHalves(u[j], x[2 * j], x[2 * j + 1]);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = i + j < width ? element(row, i + j, type) : 0.f;
}

// Block-wide maximum, in every thread.
__device__ __forceinline__ float blockMax(float x, float* scratch) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = scratch[0];
    for (int i = 1; i < blockDim.x / 32; i++) x = fmaxf(x, scratch[i]);
    __syncthreads();
    return x;
}

// exponentFor is the e, a multiple of step, for which peak * 2^e is in
// [2^(15-step), 2^15); 0 for a tile of zeros. It is kept where 2^e is a float32.
__device__ __forceinline__ int exponentFor(float peak, int step) {
    if (peak == 0.f) return 0;
    int e = 15 - ilogbf(peak) - 1;  // peak < 2^(ilogb+1)
    e = e >= 0 ? e / step * step : -((-e + step - 1) / step * step);
    return min(max(e, -112), 112);  // finite and normal, as 1 / 2^e is
}

constexpr float kRest = 1048576.f;  // factor of the third plane

// Pieces is where eight elements go in a tile: to one plane, or two, and the rest to a
// tile of its own if there is a place for it.
struct Pieces {
    uint4 *hi, *low, *rest;  // null where there is none

    __device__ __forceinline__ Pieces(const PackJob& job, int tile, int row, int column) {
        auto at = [&](uint64_t tiles, int planes, int plane) {
            uint8_t* to = (uint8_t*)tiles + (int64_t)tile * job.tileRows * planes * job.panels * kRowBytes;
            return (uint4*)(to + pieceAt(job.tileRows, planes, plane, row, column));
        };
        hi = at(job.dst, job.planes, 0);
        low = job.planes == 2 ? at(job.dst, 2, 1) : nullptr;
        rest = job.rest ? at(job.rest, 1, 0) : nullptr;
    }
};

// store writes eight elements.
__device__ __forceinline__ void store(const Pieces& to, const float (&x)[8], float f) {
    uint32_t hi[4], low[4], third[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float a = x[2 * j] * f, b = x[2 * j + 1] * f;
        float ha, hb, la, lb;
        hi[j] = packHalves(a, b);
        unpackHalves(hi[j], ha, hb);
        low[j] = packHalves(isfinite(ha) ? a - ha : 0.f, isfinite(hb) ? b - hb : 0.f);
        unpackHalves(low[j], la, lb);
        third[j] = packHalves(isfinite(ha) ? (a - ha - la) * kRest : 0.f, isfinite(hb) ? (b - hb - lb) * kRest : 0.f);
    }
    *to.hi = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    if (to.low) *to.low = make_uint4(low[0], low[1], low[2], low[3]);
    if (to.rest) *to.rest = make_uint4(third[0], third[1], third[2], third[3]);
}

// storeRaw writes eight elements of a raw tile.
__device__ __forceinline__ void storeRaw(const Pieces& to, int type, const float (&x)[8]) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t a = __float_as_uint(x[2 * j]), b = __float_as_uint(x[2 * j + 1]);
        high[j] = type == 1 ? packHalves(x[2 * j], x[2 * j + 1]) : a >> 16 | (b & 0xffff0000);
        low[j] = type == 0 ? (a & 0xffff) | b << 16 : 0;
    }
    *to.hi = make_uint4(high[0], high[1], high[2], high[3]);
    if (to.low) *to.low = make_uint4(low[0], low[1], low[2], low[3]);
}

// Size is what is known of a tile.
struct Size {
    float peak, least;  // largest finite |x|, and the smallest |x| but 0
    float squares;      // the largest sum of squares of a row
    float columns;      // the smallest, but 0, of the largest finite |x| of columns
    bool special;       // something is not finite
};

constexpr int kWidth = 256;  // columns at most, and threads of a block

__device__ __forceinline__ Size measure(const PackJob& job, const uint8_t* src, int rows, bool aligned) {
    Size s = {0.f, INFINITY, 0.f, INFINITY, false};
    __shared__ float peaks[kWidth / 32][kWidth];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    float column[8] = {};  // a thread sees the same columns of all its rows
    for (int r = warp; r < rows; r += kWidth / 32) {
        float sum = 0.f;
        float x[8];
        eight(src + r * job.stride, 8 * lane, job.width, job.type, aligned, x);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const bool finite = isfinite(x[j]);
            s.special |= !finite;
            column[j] = fmaxf(column[j], finite ? fabsf(x[j]) : 0.f);
            s.least = fminf(s.least, x[j] != 0.f ? fabsf(x[j]) : INFINITY);
            sum = fmaf(x[j], x[j], sum);
        }
#pragma unroll
        for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        s.squares = fmaxf(s.squares, sum);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) peaks[warp][8 * lane + j] = column[j];
    __syncthreads();
    for (int i = 0; i < kWidth / 32; i++) s.peak = fmaxf(s.peak, peaks[i][threadIdx.x]);
    if (s.peak > 0.f) s.columns = s.peak;
    return s;
}

// raw says whether float16 planes don't do for a tile. The error of an element of V is
// about 2^-40 of the tile's largest, and must be small beside the largest of its own
// column. That of an element of Q or K hardly matters where scores are small: if K has
// elements beyond 2^20, scores may be so large that the small ones beside them count.
// Where squares of Q and K might underflow, norms bound nothing; and what is beyond 2^80
// of V could overflow the other kernels' sums.
__device__ __forceinline__ bool raw(const PackJob& job, const Size& s) {
    constexpr float kTiny = 0x1p-97f, kHuge = 0x1p80f, kTinyNorm = 0x1p-60f, kLarge = 0x1p20f, kFar = 0x1p-24f;
    if (s.special) return true;
    if (s.peak == 0.f) return false;
    if (job.values) return s.peak > kHuge || s.peak < kTiny || s.columns < s.peak * job.least;
    return s.peak < kTinyNorm || s.peak > kLarge && s.least < s.peak * kFar;
}

}  // namespace

// pack writes tile blockIdx.x of job blockIdx.y.
extern "C" __global__ void __launch_bounds__(kWidth) pack(const PackJob* jobs) {
    const PackJob& job = jobs[blockIdx.y];
    __shared__ float scratch[32];
    const int tile = blockIdx.x, first = tile * job.tileRows, n = min(job.tileRows, job.rows - first);
    if (n <= 0) return;
    const uint8_t* src = (const uint8_t*)job.src + (int64_t)first * job.stride;
    const bool aligned = (job.src | job.stride) % 16 == 0;
    Size s = measure(job, src, n, aligned);
    s.peak = blockMax(s.peak, scratch);
    s.squares = blockMax(s.squares, scratch);
    s.least = -blockMax(-s.least, scratch);
    s.columns = -blockMax(-s.columns, scratch);
    s.special = __syncthreads_or(s.special);
    const bool asIs = raw(job, s);
    const int e = exponentFor(s.peak, job.step);
    if (threadIdx.x == 0) {
        TileInfo* info = (TileInfo*)job.info + tile;
        if (job.values) {
            info->unit = asIs ? kRaw : ldexpf(1.f, -e);
            info->peak = asIs ? INFINITY : s.peak;
        } else {
            info->scale = asIs ? kRaw : ldexpf(1.f, -e);
            info->norm = asIs ? INFINITY : sqrtf(s.squares) * 1.0001f;  // no less, whatever the roundings above
        }
    }
    const float f = ldexpf(job.sign, e);
    const int width = job.panels * kPanel;
    for (int i = threadIdx.x; i < job.tileRows * width / 8; i += blockDim.x) {
        const int row = i / (width / 8), column = i % (width / 8) * 8;
        float x[8] = {};
        if (row < n && column < job.width) eight(src + row * job.stride, column, job.width, job.type, aligned, x);
        const Pieces to(job, tile, row, column);
        if (!asIs) {
            store(to, x, f);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] *= job.sign;
        storeRaw(to, job.type, x);
    }
}
