// Attention for Hopper: apply KV slots to the states in query slots.
//
// A block of threads takes one tile of query rows of one head and walks the tiles
// of keys that its rows see. One warp copies tiles into shared memory, ahead of
// the others; two or three warpgroups of 64 rows compute. While the tensor cores
// work on the values of one tile and the scores of the next, the warpgroup's
// threads turn scores into weights. docs/gpu.md explains it.
#include "hopper.cuh"
#include "state.cuh"
#include "wgmma.cuh"

namespace {

constexpr int kNotes = 4;        // notes of tiles: one more than stages, since a note is read after its tile of K is given back
constexpr int kSharedBytes = 227 << 10;
constexpr float kRoom = 100.f;   // exponents of weights that a tile may reach without a look at its maximum

// Weights are p = 2^(s c - m + kOffset), kept below kLimit.
template <class T> struct WeightRange;
template <> struct WeightRange<F16> {
    static constexpr float offset = 10.f, limit = 32768.f, target = 1024.f;
};
template <> struct WeightRange<BF16> {
    static constexpr float offset = 0.f, limit = 1073741824.f, target = 1.f;
};

// Config fixes a kernel. Half: 16-bit results. Fast: the same, weights in bfloat16
// and sums in the tensor cores. Split: float32 or float16 results of 16-bit inputs.
// Triple: float32 inputs. Planes: of Q, K and V. WeightPlanes: of the weights.
// Fold: tiles whose products the tensor cores sum before the sum is added to a
// master in float32, rounded to nearest; 0 means no master. Window: tiles before
// the sums are added to the state in memory; 0 means at the end alone.
template <class T_, int DK_, int DV_, int Warpgroups, int Keys, int Planes_, int WeightPlanes_, int Fold_, int Window_>
struct Config {
    using T = T_;
    static constexpr int DK = DK_, DV = DV_, WG = Warpgroups, BN = Keys, BM = 64 * WG;
    static constexpr int planes = Planes_, weightPlanes = WeightPlanes_, fold = Fold_, window = Window_;
    static constexpr bool two = weightPlanes == 2;
    static constexpr int threads = 128 * (WG + 1);
    static constexpr int registers = WG == 2 ? 240 : 160, producerRegisters = WG == 2 ? 24 : 32;

    // Bytes between groups of 8 rows, and of a tile.
    static constexpr uint32_t groupK = planes * DK / kPanel * kPanelBytes, groupV = planes * DV / kPanel * kPanelBytes;
    static constexpr uint32_t lowK = DK / kPanel * kPanelBytes, lowV = DV / kPanel * kPanelBytes;  // from hi to lo
    static constexpr uint32_t bytesQ = BM / 8 * groupK, bytesK = BN / 8 * groupK, bytesV = BN / 8 * groupV;
    // Tiles of K, and of V, in shared memory: two, or three where they fit.
    static constexpr int stages = bytesQ + 3 * (bytesK + bytesV) + 2048 <= kSharedBytes ? 3 : 2;
};

// Note tells the consumers about a tile of keys.
struct alignas(16) Note {
    float c;      // factor of a product of packed Q and K
    float bound;  // no |score| exceeds it; both in units of log2
    float unit;   // of the tile of V
    int masked;   // whether any row does not see some key
    int shift;    // row i of the query tile sees key j of this tile if j <= i + shift
    int keys;     // and j < keys
};

template <class C>
struct Shared {
    alignas(1024) uint8_t q[C::bytesQ];
    alignas(1024) uint8_t k[C::stages][C::bytesK];
    alignas(1024) uint8_t v[C::stages][C::bytesV];
    Note notes[kNotes];
    Barrier haveQ, haveK[C::stages], haveV[C::stages], freeK[C::stages], freeV[C::stages];
};

// Item is what one block of threads does.
struct Item {
    const Pool* pool;
    const Ref* refs;
    int count;             // refs
    int row0, row1;        // rows [row0,row1) of the query chunk
    int from, to;          // the part of the tiles that this split takes
    const uint8_t* query;  // the head of the query slot
    const uint8_t* keys;   // the KV head in slot 0
    int block;             // of columns of V
    int index;             // of the head, over all works
    float scale, norm;     // of the tile of Q

    // tiles of a ref that some row sees; 0 if the ref is not for this kernel.
    __device__ __forceinline__ int tiles(const Ref& r, int bn) const {
        if (((const SlotHead*)(keys + (uint64_t)r.slot * pool->kvSlot))->special) return 0;
        return (max(0, min(r.keys, row1 + r.offset)) + bn - 1) / bn;
    }
};

template <class C>
__device__ __forceinline__ int findItem(const Pool* pool, const Batch* batch, Item& it) {
    int x = blockIdx.x;
    it.pool = pool;
    it.block = x % pool->valueBlocks, x /= pool->valueBlocks;
    it.index = x % (batch->heads * batch->works), x /= batch->heads * batch->works;
    const int head = it.index % batch->heads, tile = pool->rows / C::BM - 1 - x;  // causal: the last rows see the most keys
    const Work& w = batch->work()[it.index / batch->heads];
    it.row0 = tile * C::BM;
    it.row1 = min(it.row0 + C::BM, w.rows);
    it.refs = batch->ref() + w.first;
    it.count = it.row0 < w.rows ? w.count : 0;
    it.query = (const uint8_t*)pool->query + w.slot * pool->qSlot + head * pool->qHead;
    it.keys = (const uint8_t*)pool->kv + head / pool->group * pool->kvHead;
    const TileInfo& q = ((const TileInfo*)(it.query + pool->qInfo))[tile];
    it.scale = q.scale * pool->c;
    it.norm = q.norm * pool->c;
    int all = 0;
    for (int i = 0; i < it.count; i++) all += it.tiles(it.refs[i], C::BN);
    it.from = (int)((int64_t)all * blockIdx.y / batch->splits);
    it.to = (int)((int64_t)all * (blockIdx.y + 1) / batch->splits);
    return it.to - it.from;
}

// produce copies the tiles of an item into shared memory, last keys first. A tile
// of V comes one step after its tile of K, as it is used.
template <class C>
__device__ __forceinline__ void produce(const Item& it, Shared<C>& sm) {
    const Pool* pool = it.pool;
    sm.haveQ.arriveExpecting(C::bytesQ);
    bulkCopy(sm.q, it.query + (uint64_t)(it.row0 / C::BM) * C::bytesQ, C::bytesQ, &sm.haveQ);
    const uint8_t* values = nullptr;  // of the tile before
    int t = 0, skip = it.from;
    auto sendValues = [&](int t) {
        int s = t % C::stages;
        sm.freeV[s].wait(t / C::stages & 1 ^ 1);
        sm.haveV[s].arriveExpecting(C::bytesV);
        bulkCopy(sm.v[s], values, C::bytesV, &sm.haveV[s]);
    };
    for (int i = 0; i < it.count && t < it.to - it.from; i++) {
        const Ref r = it.refs[i];
        int n = it.tiles(r, C::BN);
        if (skip >= n) {
            skip -= n;
            continue;
        }
        const uint8_t* slot = it.keys + (uint64_t)r.slot * pool->kvSlot;
        const TileInfo* infos = (const TileInfo*)(slot + pool->kvInfo);
        TileInfo info, next = infos[n - 1 - skip];  // loaded a step ahead
        for (int j = n - 1 - skip; j >= 0 && t < it.to - it.from; j--, t++) {
            info = next;
            if (j > 0) next = infos[j - 1];
            int s = t % C::stages;
            sm.freeK[s].wait(t / C::stages & 1 ^ 1);
            const int shift = it.row0 + r.offset - j * C::BN, keys = r.keys - j * C::BN;
            sm.notes[t % kNotes] = {it.scale * info.scale, it.norm * info.norm, info.unit, keys < C::BN || shift < C::BN - 1, shift, keys};
            sm.haveK[s].arriveExpecting(C::bytesK);
            bulkCopy(sm.k[s], slot + pool->kvK + (uint64_t)j * C::bytesK, C::bytesK, &sm.haveK[s]);
            if (t > 0) sendValues(t - 1);
            values = slot + pool->kvV + it.block * pool->kvBlock + (uint64_t)j * C::bytesV;
        }
        skip = 0;
    }
    sendValues(t - 1);
}

// scores issues S = Q K^T of one tile. In two planes it is the three products
// that matter, the small ones first.
template <class C>
__device__ __forceinline__ void scores(float (&S)[C::BN / 2], uint64_t q, uint64_t k) {
    using Product = ScoresProduct<C::BN, typename C::T>;
    auto at = [](int step) { return (uint32_t)(step / 4 * kPanelBytes + step % 4 * 32); };
    if constexpr (C::planes == 2) {
#pragma unroll
        for (int i = 0; i < C::DK / 16; i++) Product::run(S, moved(q, C::lowK + at(i)), moved(k, at(i)), i != 0);
#pragma unroll
        for (int i = 0; i < C::DK / 16; i++) Product::run(S, moved(q, at(i)), moved(k, C::lowK + at(i)), 1);
    }
#pragma unroll
    for (int i = 0; i < C::DK / 16; i++) Product::run(S, moved(q, at(i)), moved(k, at(i)), C::planes == 2 || i != 0);
}

// values issues O (+)= P V of one tile; P is hi + low where weights have two planes.
template <class C, int NL>
__device__ __forceinline__ void values(float (&O)[C::DV / 2], const uint32_t (&P)[C::BN / 4], const uint32_t (&L)[NL], uint64_t v, int accumulate) {
    using Product = ValuesProduct<C::DV, typename C::T>;
    constexpr uint32_t step = 2 * C::groupV;
    if constexpr (C::weightPlanes == 2) {
#pragma unroll
        for (int i = 0; i < C::BN / 16; i++) Product::run(O, L[4 * i], L[4 * i + 1], L[4 * i + 2], L[4 * i + 3], moved(v, i * step), i != 0 || accumulate);
        if constexpr (C::planes == 2) {
#pragma unroll
            for (int i = 0; i < C::BN / 16; i++) Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, C::lowV + i * step), 1);
        }
    }
#pragma unroll
    for (int i = 0; i < C::BN / 16; i++)
        Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, i * step), C::weightPlanes == 2 || i != 0 || accumulate);
}

// Softmax is what is known of the two rows of a thread. Weights are
// 2^(c s + b): b is kOffset less the reference, an integer that weights are
// relative to. The reference may lag behind the true maximum while weights fit
// their type. l are the sums of the thread's own columns.
struct Softmax {
    float b0, b1, l0, l1;
};

constexpr float kNothing = 1e30f;  // b of a row that has met no key: finite, lest infinities meet

__device__ __forceinline__ float quadMax(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quadSum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// hide sets the scores of keys that a row does not see to -inf. row is the first
// of the thread's rows, column the first of its columns.
template <int N>
__device__ __forceinline__ void hide(float (&S)[N], const Note& note, int row, int column) {
    int last0 = min(note.keys - 1, row + note.shift) - column, last1 = min(note.keys - 1, row + 8 + note.shift) - column;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        if (8 * i > last0) S[4 * i] = -INFINITY;
        if (8 * i + 1 > last0) S[4 * i + 1] = -INFINITY;
        if (8 * i > last1) S[4 * i + 2] = -INFINITY;
        if (8 * i + 1 > last1) S[4 * i + 3] = -INFINITY;
    }
}

// risky says whether weights could leave their range by far: whether the bound on
// scores, which follows from the norms of queries and keys, is far above a
// reference. Only then is the maximum looked for.
template <class T>
__device__ __forceinline__ bool risky(const Softmax& z, float bound) {
    return !(bound + z.b0 <= kRoom + WeightRange<T>::offset) || !(bound + z.b1 <= kRoom + WeightRange<T>::offset);
}

// raise moves the references up to the maxima of the scores, and gives the factors
// for sums so far.
template <class T, int N>
__device__ __forceinline__ void raise(const float (&S)[N], Softmax& z, float c, float& f0, float& f1) {
    float a0 = S[0], a1 = S[2];
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        a0 = fmaxf(a0, fmaxf(S[4 * i], S[4 * i + 1]));
        a1 = fmaxf(a1, fmaxf(S[4 * i + 2], S[4 * i + 3]));
    }
    const float b0 = fminf(z.b0, WeightRange<T>::offset - ceilf(quadMax(a0) * c));
    const float b1 = fminf(z.b1, WeightRange<T>::offset - ceilf(quadMax(a1) * c));
    f0 = exp2f(b0 - z.b0), f1 = exp2f(b1 - z.b1);
    z.b0 = b0, z.b1 = b1;
    z.l0 *= f0, z.l1 *= f1;
}

// lower moves the references up where the sum t of a tile's weights says that some
// may not fit their type. NaN stays where it is.
template <class T, int N>
__device__ __forceinline__ void lower(float (&S)[N], Softmax& z, float& t0, float& t1, float& f0, float& f1) {
    const float u0 = quadMax(t0) / WeightRange<T>::target, u1 = quadMax(t1) / WeightRange<T>::target;
    float g0 = 1.f, g1 = 1.f;
    if (u0 > 1.f && u0 < INFINITY) {
        const float e = ceilf(log2f(u0));
        g0 = exp2f(-e), z.b0 -= e;
    }
    if (u1 > 1.f && u1 < INFINITY) {
        const float e = ceilf(log2f(u1));
        g1 = exp2f(-e), z.b1 -= e;
    }
    t0 *= g0, t1 *= g1, f0 *= g0, f1 *= g1, z.l0 *= g0, z.l1 *= g1;
#pragma unroll
    for (int i = 0; i < N / 4; i++) S[4 * i] *= g0, S[4 * i + 1] *= g0, S[4 * i + 2] *= g1, S[4 * i + 3] *= g1;
}

// weigh turns scores into weights. It reports whether sums so far must be
// multiplied by f0 and f1.
template <class T, int N>
__device__ __forceinline__ bool weigh(float (&S)[N], Softmax& z, float c, float& f0, float& f1) {
    float t0 = 0, t1 = 0;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        S[4 * i] = exp2Approx(fmaf(S[4 * i], c, z.b0));
        S[4 * i + 1] = exp2Approx(fmaf(S[4 * i + 1], c, z.b0));
        S[4 * i + 2] = exp2Approx(fmaf(S[4 * i + 2], c, z.b1));
        S[4 * i + 3] = exp2Approx(fmaf(S[4 * i + 3], c, z.b1));
        t0 += S[4 * i] + S[4 * i + 1];
        t1 += S[4 * i + 2] + S[4 * i + 3];
    }
    const bool over = __any_sync(~0u, !(t0 <= WeightRange<T>::limit) || !(t1 <= WeightRange<T>::limit));
    if (over) lower<T>(S, z, t0, t1, f0, f1);
    z.l0 += t0, z.l1 += t1;
    return over;
}

// narrow rounds weights to T, and what that loses to a second plane.
template <class T, int N, int NL>
__device__ __forceinline__ void narrow(const float (&S)[N], uint32_t (&P)[N / 2], uint32_t (&L)[NL]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        P[i] = T::pack(S[2 * i], S[2 * i + 1]);
        if constexpr (NL > 1) {
            float x, y;
            T::unpack(P[i], x, y);
            L[i] = T::pack(S[2 * i] - x, S[2 * i + 1] - y);
        }
    }
}

template <int N>
__device__ __forceinline__ void scaleRows(float (&O)[N], float f0, float f1) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) O[4 * i] *= f0, O[4 * i + 1] *= f0, O[4 * i + 2] *= f1, O[4 * i + 3] *= f1;
}

// addRows adds the sums of a thread's two rows, row and row + 8, to a state; those
// of a quad are columns of the same rows. x is in the given unit. Where the target
// is fresh, what is there counts for nothing.
template <class T, bool Two, int N>
__device__ __forceinline__ void addRows(const State<Two>& to, int row, int column, const float (&x)[N], float unit, const Softmax& z, bool fresh) {
    const float l[2] = {quadSum(z.l0), quadSum(z.l1)};
    const float m[2] = {z.b0 == kNothing ? kNoKey : WeightRange<T>::offset - z.b0, z.b1 == kNothing ? kNoKey : WeightRange<T>::offset - z.b1};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float old = fresh ? kNoKey : to.m[row + 8 * h];
        const Rebase r(old, m[h]);
        const bool was = old != kNoKey;
        const float f = r.f1 * unit;
#pragma unroll
        for (int i = 0; i < N / 4; i++)
            if (column + 8 * i < to.dv) to.add2(row + 8 * h, column + 8 * i, x[4 * i + 2 * h] * f, x[4 * i + 2 * h + 1] * f, r, was);
        __syncwarp();
        if ((threadIdx.x & 3) == 0) to.addSum(row + 8 * h, l[h] * r.f1, r, was);
        __syncwarp();
    }
}

// consume computes with one warpgroup, and adds to the state of rows row0 on.
// tiles must be uniform.
template <class C>
__device__ __forceinline__ void consume(int wg, int tiles, int row0, int block, const State<C::two>& state, bool fresh, Shared<C>& sm) {
    using T = typename C::T;
    constexpr bool master = C::fold > 0;
    const int lane = threadIdx.x & 31, row = wg * 64 + (threadIdx.x / 32 & 3) * 16 + lane / 4, column = 2 * (lane & 3);
    const uint64_t q = descriptor(sharedAddress(sm.q) + wg * 8 * C::groupK, 16, C::groupK);
    const uint64_t k = descriptor(sharedAddress(sm.k[0]), 16, C::groupK), v = descriptor(sharedAddress(sm.v[0]), kPanelBytes, C::groupV);
    float S[C::BN / 2], O[C::DV / 2], M[master ? C::DV / 2 : 1];
    uint32_t P[C::BN / 4], L[C::weightPlanes == 2 ? C::BN / 4 : 1];
    Softmax z = {kNothing, kNothing, 0.f, 0.f};
    float f0, f1;
#pragma unroll
    for (int i = 0; i < (master ? C::DV / 2 : 1); i++) M[i] = 0.f;
#pragma unroll
    for (int i = 0; i < C::DV / 2; i++) O[i] = 0.f;
    if (wg == 0) turnGive(1);

    sm.haveQ.wait(0);
    sm.haveK[0].wait(0);
    pin(S);
    productsBegin();
    scores<C>(S, q, k);
    productsCommit();
    productsWait<0>();
    pin(S);
    const Note& first = sm.notes[0];
    float unit = first.unit;  // of what is in O
    if (first.masked) hide(S, first, row, column);
    raise<T>(S, z, first.c, f0, f1);
    weigh<T>(S, z, first.c, f0, f1);
    if (lane == 0) sm.freeK[0].arrive();
    narrow<T>(S, P, L);

    int held = 0;          // tiles whose products O holds
    int left = C::window;  // tiles before the next flush
    auto fold = [&] {
#pragma unroll
        for (int i = 0; i < C::DV / 2; i++) M[i] = fmaf(O[i], unit, M[i]);
        held = 0;
    };
    // flush gives to the state what is summed so far.
    auto flush = [&] {
        if constexpr (master) {
            fold();
            addRows<T>(state, row0 + row, block * C::DV + column, M, 1.f, z, fresh);
        } else {
            addRows<T>(state, row0 + row, block * C::DV + column, O, unit, z, fresh);
        }
        fresh = false;
    };
#pragma unroll 1
    for (int t = 1; t < tiles; t++) {
        const int s = t % C::stages, before = (t - 1) % C::stages;
        sm.haveK[s].wait(t / C::stages & 1);
        const float4 note = *(const float4*)&sm.notes[t % kNotes];
        turnWait(1 + wg);
        pin(S);
        productsBegin();
        scores<C>(S, q, moved(k, s * C::bytesK));
        productsCommit();
        sm.haveV[before].wait((t - 1) / C::stages & 1);
        pin(P);
        pin(L);
        pin(O);
        productsBegin();
        values<C>(O, P, L, moved(v, before * C::bytesV), held);
        productsCommit();
        turnGive(1 + (wg + 1) % C::WG);
        const bool masked = __float_as_int(note.w), look = __any_sync(~0u, risky<T>(z, note.y) || masked);
        productsWait<1>();
        pin(S);
        if (lane == 0) sm.freeK[s].arrive();
        f0 = f1 = 1.f;
        if (look) {
            if (masked) hide(S, sm.notes[t % kNotes], row, column);
            raise<T>(S, z, note.x, f0, f1);
        }
        const bool over = weigh<T>(S, z, note.x, f0, f1);
        productsWait<0>();
        pin(O);
        pin(P);
        pin(L);
        if (lane == 0) sm.freeV[before].arrive();
        narrow<T>(S, P, L);
        held++;
        if (look || over || note.z != unit || held == C::fold) {
            if (held == C::fold) fold();
            const float change = unit / note.z;  // powers of two
            unit = note.z;
            scaleRows(O, f0 * change, f1 * change);
            if constexpr (master) scaleRows(M, f0, f1);
        }
    }
    const int before = (tiles - 1) % C::stages;
    sm.haveV[before].wait((tiles - 1) / C::stages & 1);
    turnWait(1 + wg);
    pin(P);
    pin(L);
    pin(O);
    productsBegin();
    values<C>(O, P, L, moved(v, before * C::bytesV), held);
    productsCommit();
    if (wg + 1 < C::WG) turnGive(2 + wg);
    productsWait<0>();
    pin(O);
    flush();
}

template <class C>
__device__ __forceinline__ void attend(const Pool* pool, const Batch* batch) {
    extern __shared__ uint8_t dynamic[];
    Shared<C>& sm = *(Shared<C>*)(dynamic + (-sharedAddress(dynamic) & 1023));
    Item it;
    const int tiles = findItem<C>(pool, batch, it);
    const bool partial = batch->splits > 1;
    if (tiles == 0 && !partial) return;

    uint8_t* head = (uint8_t*)it.query;
    if (partial) head = (uint8_t*)pool->partial + blockIdx.y * pool->pSplit + it.index * pool->pHead - pool->qAcc;
    const State<C::two> state(head, pool, it.block);
    if (tiles == 0) {  // this split has nothing to add
        for (int i = it.row0 + threadIdx.x; i < it.row1; i += blockDim.x) state.m[i] = kNoKey;
        return;
    }
    if (threadIdx.x == 0) {
        sm.haveQ.init(1);
        for (int i = 0; i < C::stages; i++) {
            sm.haveK[i].init(1);
            sm.haveV[i].init(1);
            sm.freeK[i].init(4 * C::WG);
            sm.freeV[i].init(4 * C::WG);
        }
        fenceBarrierInit();
    }
    __syncthreads();
    const int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0);  // uniform, so that descriptors are
    if (group == 0) {
        giveRegisters<C::producerRegisters>();
        if (threadIdx.x == 0) produce<C>(it, sm);
    } else {
        takeRegisters<C::registers>();
        consume<C>(group - 1, __shfl_sync(~0u, tiles, 0), it.row0, it.block, state, partial, sm);
    }
}

}  // namespace

//                     type  DK   DV  WG  keys planes weights fold window
using Half64 = Config<F16, 64, 64, 3, 96, 1, 1, 4, 0>;
using Half128 = Config<F16, 128, 128, 2, 112, 1, 1, 4, 0>;
using Half256 = Config<F16, 256, 256, 2, 80, 1, 1, 0, 0>;
using Fast64 = Config<BF16, 64, 64, 3, 128, 1, 1, 0, 0>;
using Fast128 = Config<BF16, 128, 128, 2, 176, 1, 1, 0, 0>;
using Fast256 = Config<BF16, 256, 256, 2, 80, 1, 1, 0, 0>;
using Split64 = Config<F16, 64, 64, 2, 128, 1, 2, 1, 0>;
using Split128 = Config<F16, 128, 128, 2, 80, 1, 2, 1, 0>;
using Split256 = Config<F16, 256, 128, 2, 80, 1, 2, 1, 0>;
using Triple64 = Config<F16, 64, 64, 2, 128, 2, 2, 1, 0>;
using Triple128 = Config<F16, 128, 128, 2, 64, 2, 2, 1, 0>;
using Triple256 = Config<F16, 256, 128, 2, 32, 2, 2, 1, 0>;

#define ATTEND(name, C)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(C::threads, 1) name(const Pool* pool, const Batch* batch) { attend<C>(pool, batch); } \
    extern "C" __device__ const KernelInfo name##_info = {C::BM, C::BN, C::DK, C::DV, C::planes, C::two, C::threads, sizeof(Shared<C>) + 1024, WeightRange<C::T>::offset};

ATTEND(attend_half_64, Half64)
ATTEND(attend_half_128, Half128)
ATTEND(attend_half_256, Half256)
ATTEND(attend_fast_64, Fast64)
ATTEND(attend_fast_128, Fast128)
ATTEND(attend_fast_256, Fast256)
ATTEND(attend_split_64, Split64)
ATTEND(attend_split_128, Split128)
ATTEND(attend_split_256, Split256)
ATTEND(attend_triple_64, Triple64)
ATTEND(attend_triple_128, Triple128)
ATTEND(attend_triple_256, Triple256)
