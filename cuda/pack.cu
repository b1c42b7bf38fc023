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

// Block-wide maximum of non-negative floats, in every thread.
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
    return min(max(e, -112), 112);
}

constexpr float kRest = 1048576.f;  // factor of the third plane

// store writes eight elements to a group of a tile: one plane, or two, and the rest
// to a group of its own if there is a place for it.
__device__ __forceinline__ void store(uint8_t* group, uint8_t* rest, int r, int column, int panels, int planes, const float (&x)[8], float f) {
    const int at = column / kPanel * kPanelBytes + r * 128 + (column / 8 % 8 ^ r) * 16;
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
    *(uint4*)(group + at) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    if (planes == 2) *(uint4*)(group + panels * kPanelBytes + at) = make_uint4(low[0], low[1], low[2], low[3]);
    if (rest) *(uint4*)(rest + at) = make_uint4(third[0], third[1], third[2], third[3]);
}

// Largest finite |x| and largest sum of squares of a row, over the rows of a tile.
struct Size {
    float peak, squares;
    bool special;  // something is not finite
};

__device__ __forceinline__ Size measure(const PackJob& job, const uint8_t* src, int rows, bool aligned) {
    Size s = {0.f, 0.f, false};
    const int lane = threadIdx.x & 31, warps = blockDim.x / 32;
    for (int r = threadIdx.x / 32; r < rows; r += warps) {
        float sum = 0.f;
        for (int i = 8 * lane; i < job.width; i += 256) {
            float x[8];
            eight(src + r * job.stride, i, job.width, job.type, aligned, x);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const bool finite = isfinite(x[j]);
                s.special |= !finite;
                s.peak = fmaxf(s.peak, finite ? fabsf(x[j]) : 0.f);
                sum = fmaf(x[j], x[j], sum);
            }
        }
#pragma unroll
        for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        s.squares = fmaxf(s.squares, sum);
    }
    return s;
}

}  // namespace

// pack writes tile blockIdx.x of job blockIdx.y.
extern "C" __global__ void __launch_bounds__(256) pack(const PackJob* jobs) {
    const PackJob& job = jobs[blockIdx.y];
    __shared__ float scratch[32];
    const int tile = blockIdx.x, first = tile * job.tileRows, n = min(job.tileRows, job.rows - first);
    if (n <= 0) return;
    const uint8_t* src = (const uint8_t*)job.src + (int64_t)first * job.stride;
    const bool aligned = (job.src | job.stride) % 16 == 0;
    Size s = measure(job, src, n, aligned);
    s.peak = blockMax(s.peak, scratch);
    s.squares = blockMax(s.squares, scratch);
    s.special = __syncthreads_or(s.special);
    const int e = exponentFor(s.peak, job.step);
    if (threadIdx.x == 0) {
        TileInfo* info = (TileInfo*)job.info + tile;
        if (job.values) {
            info->unit = ldexpf(1.f, -e);
            info->peak = s.special ? INFINITY : s.peak;
        } else {
            info->scale = ldexpf(1.f, -e);
            info->norm = s.special ? INFINITY : sqrtf(s.squares) * 1.0001f;  // no less, whatever the roundings above
        }
    }
    const float f = ldexpf(job.sign, e);
    const int width = job.panels * kPanel, panels = job.panels / job.blocks, groupBytes = job.planes * panels * kPanelBytes;
    uint8_t* out = (uint8_t*)job.dst + (int64_t)tile * (job.tileRows / kGroupRows) * groupBytes;
    for (int i = threadIdx.x; i < job.tileRows * width / 8; i += blockDim.x) {
        const int row = i / (width / 8), column = i % (width / 8) * 8, block = column / (panels * kPanel);
        float x[8] = {};
        if (row < n && column < job.width) eight(src + row * job.stride, column, job.width, job.type, aligned, x);
        uint8_t* rest = job.rest ? (uint8_t*)job.rest + ((int64_t)tile * job.tileRows + row) / kGroupRows * (panels * kPanelBytes) : nullptr;
        store(out + block * job.block + row / kGroupRows * groupBytes, rest, row % kGroupRows, column % (panels * kPanel), panels, job.planes, x, f);
    }
}
