// Attention in float64, for the tiles of keys that the other kernels leave out: those
// whose scores may be so large that float32 is too coarse for them, and those with
// elements that are not finite, which must reach the rows that see them and no
// other, or too far apart in size for float16 planes. Such tiles are rare, so this kernel
// is simple: products of scores run on the tensor cores in float64, eight keys at a time.
#include "item.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "state.cuh"

namespace {

constexpr int kRows = 32, kKeys = 8, kThreads = 128;  // 8 rows a warp
constexpr int kMostColumns = 256;
constexpr double kRest = 1. / 1048576;  // of the third plane: see pack.cu

// Tile is one of Q, K or V.
struct Tile {
    const uint8_t *tile, *rest;
    int rows, planes, type;
    float scale;

    // A tile of so many rows and columns, of tensors that begin at tensor and, unless it
    // is null, at rests.
    __device__ __forceinline__ Tile(const Pool* pool, const uint8_t* tensor, const uint8_t* rests, int64_t index, int rows, int columns, float scale)
        : tile(tensor + index * rows * columns / kPanel * kRowBytes * pool->planes),
          rest(rests ? rests + index * rows * columns / kPanel * kRowBytes : nullptr), rows(rows), planes(pool->planes), type(pool->type), scale(scale) {}

    __device__ __forceinline__ double at(int row, int column) const {
        auto bits = [&](const uint8_t* from, int planes, int plane) {
            return *(const uint16_t*)(from + pieceAt(rows, planes, plane, row, column) + column % 8 * 2);
        };
        const uint16_t high = bits(tile, planes, 0);
        if (scale == kRaw) {  // its bits, in one plane or two
            if (type == 1) return valueOf(high);
            return __uint_as_float((uint32_t)high << 16 | (type == 0 ? bits(tile, planes, 1) : 0));
        }
        double x = valueOf(high);
        if (planes == 2) x += valueOf(bits(tile, planes, 1));
        if (rest) x += valueOf(bits(rest, 1, 0)) * kRest;
        return x * scale;
    }
    __device__ __forceinline__ double valueOf(uint16_t bits) const {
        float lo, hi;
        unpackHalves(bits, lo, hi);
        return lo;
    }
};

// Sums are those of a warp's rows: it has 8 rows, lane
// 4g+t columns 2t and 2t+1 of every 8 of row g.
struct Sums {
    double acc[kMostColumns / 8][2];
    double m, l;   // l of the lane's own keys
    int64_t seen;  // keys, by the row
};

// Shared holds Q, and eight keys, in float64. Strides keep fragments off each other's
// banks.
struct Shared {
    double *q, *k, *v;
    int strideQ, strideV;

    __device__ __forceinline__ Shared(double* base, int features, int columns) {
        strideQ = features + 4, strideV = columns + 2;
        q = base, k = q + kRows * strideQ, v = k + kKeys * strideQ;
    }
};

// applyKeys applies eight keys to a warp's rows. see is how many of them row g sees.
__device__ __forceinline__ void applyKeys(const Shared& sm, Sums& z, const double* q, int features, int columns, double c, int see, bool special) {
    const int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
    double s[2] = {0, 0};
    for (int i = 0; i < features; i += 4) multiplyAdd(s, q[g * sm.strideQ + i + t], sm.k[g * sm.strideQ + i + t]);
    const bool see0 = 2 * t < see, see1 = 2 * t + 1 < see;
    // Rounded before the maximum is subtracted, as that is: else what is left of scores
    // beyond 2^53 would be the rounding, of any size.
    s[0] = see0 ? __dmul_rn(s[0], c) : -INFINITY;
    s[1] = see1 ? __dmul_rn(s[1], c) : -INFINITY;
    double top = fmax(s[0], s[1]);
    top = fmax(top, __shfl_xor_sync(~0u, top, 1));
    top = fmax(top, __shfl_xor_sync(~0u, top, 2));
    const double m = fmax(z.m, ceil(top)), from = m == -INFINITY ? 0 : m;
    const double f = z.m == -INFINITY ? 0 : exp2(z.m - m);
    const double p[2] = {see0 ? exp2(s[0] - from) : 0, see1 ? exp2(s[1] - from) : 0};
    z.m = m, z.seen += min(see, kKeys);
    z.l = z.l * f + p[0] + p[1];
#pragma unroll
    for (int n = 0; n < kMostColumns / 8; n++) {
        if (8 * n >= columns) continue;
        z.acc[n][0] *= f, z.acc[n][1] *= f;
        if (!special) {  // key 2t + e takes place t of the depth
            multiplyAdd(z.acc[n], p[0], sm.v[2 * t * sm.strideV + 8 * n + g]);
            multiplyAdd(z.acc[n], p[1], sm.v[(2 * t + 1) * sm.strideV + 8 * n + g]);
        }
    }
    if (!special) return;
    // A key that a row does not see takes no part, not even times zero.
    for (int key = 0; key < kKeys; key++) {
        const double weight = __shfl_sync(~0u, key & 1 ? p[1] : p[0], (lane & ~3) + key / 2);
#pragma unroll
        for (int n = 0; n < kMostColumns / 8; n++) {
            if (8 * n >= columns || key >= see) continue;
            z.acc[n][0] += weight * sm.v[key * sm.strideV + 8 * n + 2 * t];
            z.acc[n][1] += weight * sm.v[key * sm.strideV + 8 * n + 2 * t + 1];
        }
    }
}

// makeRoom raises the reference of a row where its sums would come close to the largest
// float: those of V near it have room for some thousand keys only. It returns the factor for
// what is to be added.
template <bool Two>
__device__ __forceinline__ double makeRoom(const Pool* pool, uint8_t* head, const Sums& z, double unit, int row, bool was, Rebase& r) {
    constexpr double kFull = 0x1p120, kMore = 64;
    const int t = threadIdx.x & 3;
    const State<Two> to(head, pool);
    double most = 0;
#pragma unroll
    for (int n = 0; n < kMostColumns / 8; n++) {
        const int column = 8 * n + 2 * t;
        if (column >= pool->dv) continue;
        for (int i = 0; i < 2; i++) {
            const double sum = fabs(z.acc[n][i] * unit) * r.f1 + (was ? fabsf(to.acc[(int64_t)row * to.dv + column + i]) * (double)r.f0 : 0);
            if (isfinite(sum)) most = fmax(most, sum);
        }
    }
    most = fmax(most, __shfl_xor_sync(~0u, most, 1));
    most = fmax(most, __shfl_xor_sync(~0u, most, 2));
    if (most < kFull) return 1;
    const double raised = r.m + kMore, f = exp2(r.m - raised);  // of an m beyond 2^53, by more or not at all
    r.m = raised, r.f0 *= (float)f;
    return f;
}

// add adds a warp's sums to the state of its rows.
template <bool Two>
__device__ __forceinline__ void add(const Pool* pool, uint8_t* head, const Sums& z, int row) {
    const int t = threadIdx.x & 3;
    const double factor = exp2((double)pool->offset), unit = factor / kUnit;
    double l = z.l;
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    l *= factor;
    // A row whose scores are all NaN or -inf has met keys, whatever its maximum, and perhaps
    // a NaN among their values.
    constexpr double kLowest = -1.7976931348623157e308;
    const double m = z.m != -INFINITY ? z.m : isnan(l) ? 0 : z.seen > 0 ? kLowest : kNoKey;
    const double old = State<Two>(head, pool).m[row];
    const bool was = old != kNoKey;
    Rebase r(old, m);
    const double f = makeRoom<Two>(pool, head, z, unit, row, was, r);
    l *= f;
    const State<Two> to(head, pool);
#pragma unroll
    for (int n = 0; n < kMostColumns / 8; n++) {
        if (8 * n >= pool->dv) continue;
        const double x = z.acc[n][0] * unit * f, y = z.acc[n][1] * unit * f;
        const float2 hi[1] = {{(float)x, (float)y}}, low[1] = {{(float)(x - hi[0].x), (float)(y - hi[0].y)}};
        to.addColumns(row, 8 * n + 2 * t, hi, r.f1, r, was);
        if (Two && isfinite(hi[0].x) && isfinite(hi[0].y)) to.addColumns(row, 8 * n + 2 * t, low, r.f1, Rebase(0, 0), true);
    }
    __syncwarp();
    if (t == 0) {
        to.addSum(row, (float)l * r.f1, r, was);
        if (Two && isfinite(l)) to.addSum(row, (float)(l - (float)l) * r.f1, Rebase(r.m, r.m), true);
    }
    __syncwarp();
}

// count adds the pairs of a warp's rows, if a row is one, to the warp's count.
__device__ __forceinline__ void count(const Batch* batch, const Sums& z, bool exists) {
    const int lane = threadIdx.x & 31, warp = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    int64_t pairs = exists && (lane & 3) == 0 ? z.seen : 0;
    for (int x = 4; x < 32; x *= 2) pairs += __shfl_xor_sync(~0u, pairs, x);
    if (lane == 0) ((int64_t*)batch->counts)[warp] += pairs;
}

// Block is what a block of threads works on: kRows rows of a tile of Q.
struct Block {
    const Pool* pool;
    const Batch* batch;
    const Item& it;
    Shared sm;
    int row0;      // of the block
    TileInfo q;
    int columns;   // of V
    Sums z;
    bool begun;

    // begin brings the rows of Q.
    __device__ __forceinline__ void begin() {
        begun = true;
        const int first = row0 % pool->tileRows;
        const Tile query(pool, it.query, pool->qRest ? it.query + pool->qRest : nullptr, row0 / pool->tileRows, pool->tileRows, pool->features, q.scale);
        for (int e = threadIdx.x; e < kRows * pool->features; e += kThreads) {
            const int r = e / pool->features, d = e % pool->features;
            sm.q[r * sm.strideQ + d] = query.at(first + r, d);
        }
        z.m = -INFINITY, z.l = 0, z.seen = 0;
#pragma unroll
        for (int n = 0; n < kMostColumns / 8; n++) z.acc[n][0] = z.acc[n][1] = 0;
    }

    // apply applies one tile of a ref.
    __device__ __forceinline__ void apply(const Ref& ref, const uint8_t* head, int tile, const TileInfo& info) {
        const int last = min(pool->tileKeys, ref.keys - tile * pool->tileKeys), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
        const Tile keys(pool, head + pool->kvK, pool->kvRest ? head + pool->kvRest : nullptr, tile, pool->tileKeys, pool->features, info.scale);
        const Tile values(pool, head + pool->kvV, nullptr, tile, pool->tileKeys, pool->columns, info.unit);
        for (int k0 = 0; k0 < last; k0 += kKeys) {
            const int64_t key = (int64_t)tile * pool->tileKeys + k0;
            __syncthreads();
            for (int e = threadIdx.x; e < kKeys * pool->features; e += kThreads) {
                const int r = e / pool->features, d = e % pool->features;
                sm.k[r * sm.strideQ + d] = keys.at(k0 + r, d);
            }
            for (int e = threadIdx.x; e < kKeys * columns; e += kThreads) {
                const int r = e / columns, d = e % columns;
                sm.v[r * sm.strideV + d] = values.at(k0 + r, d);
            }
            __syncthreads();
            const int row = row0 + warp * 8 + lane / 4;
            const int see = (int)max((int64_t)0, min((int64_t)(last - k0), row + (int64_t)ref.offset - key + 1));
            applyKeys(sm, z, sm.q + warp * 8 * sm.strideQ, pool->features, columns, pool->exactC, see, !(info.peak < INFINITY));
        }
    }

    // scan applies the wide tiles of a ref.
    __device__ __forceinline__ void scan(const Ref& ref) {
        __shared__ uint32_t found[kThreads / 32];
        const uint8_t* head = (const uint8_t*)pool->kv + it.head / pool->group * pool->kvHead + ref.slot * pool->kvSlot;
        const TileInfo* infos = (const TileInfo*)(head + pool->kvInfo);
        const int tiles = visibleTiles(ref, it.row1, pool->tileKeys);  // as the other kernel sees them
        for (int first = 0; first < tiles; first += kThreads) {
            const int mine = first + threadIdx.x;
            const uint32_t bits = __ballot_sync(~0u, mine < tiles && wide(pool->steep, q.norm * pool->c, infos[min(mine, tiles - 1)]));
            __syncthreads();
            if ((threadIdx.x & 31) == 0) found[threadIdx.x / 32] = bits;
            __syncthreads();
            for (int i = 0; i < kThreads / 32; i++) {
                for (uint32_t left = found[i]; left != 0; left &= left - 1) {
                    const int tile = first + 32 * i + __ffs(left) - 1;
                    if (!begun) begin();
                    apply(ref, head, tile, infos[tile]);
                }
            }
        }
    }
};

// attend goes through all items, part by part, if any has a wide tile.
template <bool Two>
__device__ __forceinline__ void attend(const Pool* pool, const Batch* batch) {
    extern __shared__ double dynamic[];
    if (!batch->wide) return;
    const int parts = pool->tileRows / kRows, items = pool->rows / pool->tileRows * batch->heads * batch->works;
    const int columns = (pool->dv + 7) / 8 * 8;
    for (int x = blockIdx.x; x < items * parts; x += gridDim.x) {
        const Item it(pool, batch, x / parts, pool->tileRows);
        const int row0 = it.row0 + x % parts * kRows;
        if (row0 >= it.row1) continue;
        __syncthreads();  // the last item's rows of Q are no longer needed
        Block b = {pool, batch, it, Shared(dynamic, pool->features, columns), row0, ((const TileInfo*)(it.query + pool->qInfo))[it.row0 / pool->tileRows], columns};
        b.begun = false;
        for (int i = 0; i < it.work.count; i++) b.scan(batch->ref()[it.work.first + i]);
        if (!b.begun) continue;
        const int row = row0 + threadIdx.x / 32 * 8 + (threadIdx.x & 31) / 4;
        add<Two>(pool, (uint8_t*)it.query, b.z, row);
        count(batch, b.z, row < it.row1);
    }
}

}  // namespace

// A grid of any size. Dynamic shared memory: 8 bytes for each of (kRows + kKeys) *
// (features + 4) + kKeys * (columns + 2), columns being Dv rounded up to 8.
extern "C" __global__ void __launch_bounds__(kThreads) wide_one(const Pool* pool, const Batch* batch) { attend<false>(pool, batch); }
extern "C" __global__ void __launch_bounds__(kThreads) wide_two(const Pool* pool, const Batch* batch) { attend<true>(pool, batch); }
