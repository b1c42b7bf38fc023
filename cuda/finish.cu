// The ends of a state: empty, merged from parts, turned into results.
#include "ptx.cuh"
#include "state.cuh"

namespace {

// FinishJob is one query head whose rows are complete.
struct FinishJob {
    uint64_t head, out, lse;  // addresses: the head of the query slot, rows of O, lse
    int32_t rows, empty;      // rows of the chunk; the first empty ones see no key
    int32_t width, type;      // of O: elements of a row, 0 float32, 1 float16, 2 bfloat16
};

// finish writes O = acc / l and lse. out may be where acc or Q was, and lse where l was:
// an element is read and written by one thread, and an l by one warp.
template <bool Two>
__device__ __forceinline__ void finish(const Pool* pool, const FinishJob& job) {
    const int warps = blockDim.x / 32, lane = threadIdx.x & 31;
    for (int row = blockIdx.x * warps + threadIdx.x / 32; row < job.rows; row += gridDim.x * warps) {
        const bool empty = row < job.empty;
        for (int i = 2 * lane; i < job.width; i += 64) {
            const State<Two> s((uint8_t*)job.head, pool);
            double l = s.l[row];
            const float2 a = *(const float2*)(s.acc + (int64_t)row * s.dv + i);
            double2 sum = {a.x, a.y};
            if constexpr (Two) {
                const float2 y = *(const float2*)(s.low + (int64_t)row * s.dv + i);
                l += s.l[s.rows + row];
                sum.x += y.x, sum.y += y.y;
            }
            const float2 x = {empty ? 0.f : (float)(sum.x / l * kUnit), empty ? 0.f : (float)(sum.y / l * kUnit)};
            if (job.type == 0) {
                float* to = (float*)job.out + (int64_t)row * job.width + i;
                to[0] = x.x;
                if (i + 1 < job.width) to[1] = x.y;
            } else {
                const uint32_t u = job.type == 1 ? packHalves(x.x, x.y) : packBrainHalves(x.x, x.y);
                uint16_t* to = (uint16_t*)job.out + (int64_t)row * job.width + i;
                to[0] = (uint16_t)u;
                if (i + 1 < job.width) to[1] = (uint16_t)(u >> 16);
            }
        }
        __syncwarp();
        if (job.lse && lane == 0) {
            const State<Two> s((uint8_t*)job.head, pool);
            double l = s.l[row];
            if constexpr (Two) l += s.l[s.rows + row];
            ((float*)job.lse)[row] = empty ? -INFINITY : (float)((s.m[row] - pool->offset + log2(l)) * 0.69314718055994530942);
        }
    }
}

// merge adds the partial states of all splits to a state, in order. A warp takes a
// row; blockIdx.y is the head, over all works.
template <bool Two>
__device__ __forceinline__ void merge(const Pool* pool, const Batch* batch) {
    const Work w = batch->work()[blockIdx.y / batch->heads];
    const int lane = threadIdx.x & 31, warps = blockDim.x / 32;
    const uint64_t head = blockIdx.y % batch->heads;
    for (int row = blockIdx.x * warps + threadIdx.x / 32; row < w.rows; row += gridDim.x * warps) {
        const State<Two> to((uint8_t*)pool->query + w.slot * pool->qSlot + head * pool->qHead, pool);
        for (int split = 0; split < batch->splits; split++) {
            const State<Two> from((uint8_t*)pool->partial + split * pool->pSplit + blockIdx.y * pool->pHead - pool->qAcc, pool);
            const double m = from.m[row], old = to.m[row];
            if (m == kNoKey) continue;
            const Rebase r(old, m);
            for (int i = 2 * lane; i < pool->dv; i += 64) {
                const float2 x[1] = {*(const float2*)(from.acc + (int64_t)row * from.dv + i)};
                to.addColumns(row, i, x, r.f1, r, old != kNoKey);
                if constexpr (Two) {
                    const float2 y[1] = {*(const float2*)(from.low + (int64_t)row * from.dv + i)};
                    to.addColumns(row, i, y, r.f1, Rebase(0.f, 0.f), true);
                }
            }
            __syncwarp();
            if (lane == 0) {
                to.addSum(row, from.l[row] * r.f1, r, old != kNoKey);
                if constexpr (Two) to.addSum(row, from.l[from.rows + row] * r.f1, Rebase(r.m, r.m), true);
            }
            __syncwarp();
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) merge_one(const Pool* pool, const Batch* batch) { merge<false>(pool, batch); }
extern "C" __global__ void __launch_bounds__(256) merge_two(const Pool* pool, const Batch* batch) { merge<true>(pool, batch); }

// empty makes the states of a query slot those of no key.
extern "C" __global__ void empty_state(const Pool* pool, uint64_t slot, uint64_t heads) {
    const int n = pool->rows;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < heads * n; i += (int64_t)gridDim.x * blockDim.x)
        ((double*)(pool->query + slot * pool->qSlot + i / n * pool->qHead + pool->qMax))[i % n] = kNoKey;
}

extern "C" __global__ void __launch_bounds__(256) finish_one(const Pool* pool, const FinishJob* jobs) {
    finish<false>(pool, jobs[blockIdx.y]);
}
extern "C" __global__ void __launch_bounds__(256) finish_two(const Pool* pool, const FinishJob* jobs) {
    finish<true>(pool, jobs[blockIdx.y]);
}
