// Attention for Hopper: apply KV slots to the states in query slots.
//
// A block of threads takes one tile of query rows of one head and walks the tiles
// of keys that its rows see. One warp copies tiles into shared memory, ahead of
// the others; two or three warpgroups of 64 rows compute. While the tensor cores
// work on the values of one tile and the scores of the next, the warpgroup's
// threads turn scores into weights. docs/gpu.md explains it.
#include "hopper.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace {

constexpr int kStages = 2;         // tiles of K, and of V, in shared memory
constexpr int kNotes = 2 * kScan;  // kScan are written at once, while a few before them are in use

// Config fixes a kernel. Half: bfloat16 results, or fast ones. Split: float32 or
// float16 results of 16-bit inputs. Triple: float32 inputs.
//
// Planes: of Q, K and V. WeightPlanes: of the weights. Window: tiles before the sums
// are added to the state in memory. The tensor cores cut off what a sum can't hold:
// Half, whose results are rounded to 8 bits, leaves them the sums of a window; the
// others, of one tile, and a master in registers adds those up, rounded to nearest.
template <int DK_, int DV_, int Warpgroups, int Keys, int Planes_, int WeightPlanes_, int Window_>
struct Config {
    static constexpr int DK = DK_, DV = DV_, WG = Warpgroups, BN = Keys, BM = 64 * WG;
    static constexpr int planes = Planes_, weightPlanes = WeightPlanes_, window = Window_;
    static constexpr bool two = weightPlanes == 2, master = two;
    static constexpr int threads = 128 * (WG + 1);
    static constexpr int blocks = 1;    // of a multiprocessor
    static constexpr int slack = 1024;  // bytes for aligning Shared
    static constexpr int registers = WG == 2 ? 240 : 160, producerRegisters = WG == 2 ? 24 : 32;

    // Bytes between groups of 8 rows, and of a tile.
    static constexpr uint32_t groupK = planes * DK / kPanel * kPanelBytes, groupV = planes * DV / kPanel * kPanelBytes;
    [[maybe_unused]] static constexpr uint32_t lowK = DK / kPanel * kPanelBytes, lowV = DV / kPanel * kPanelBytes;  // from hi to lo
    static constexpr uint32_t bytesQ = BM / 8 * groupK, bytesK = BN / 8 * groupK, bytesV = BN / 8 * groupV;
};

template <class C>
struct Shared {
    alignas(1024) uint8_t q[C::bytesQ];
    alignas(1024) uint8_t k[kStages][C::bytesK];
    alignas(1024) uint8_t v[kStages][C::bytesV];
    Note notes[kNotes];
    Barrier haveQ, haveK[kStages], haveV[kStages], freeK[kStages], freeV[kStages];
};

// send has a warp copy the tiles of notes [from,to) into shared memory, where stages
// become free. A tile of V comes one step after its tile of K, as it is used. Every lane
// arrives for a tile of K: with it come the notes, of which each lane wrote some.
template <class C>
__device__ __forceinline__ void send(Shared<C>& sm, int from, int to) {
    const bool leads = (threadIdx.x & 31) == 0;
    auto sendValues = [&](int t) {
        const int s = t % kStages;
        sm.freeV[s].wait(t / kStages & 1 ^ 1);
        sm.haveV[s].arriveExpecting(C::bytesV);
        bulkCopy(sm.v[s], sm.notes[t % kNotes].v, C::bytesV, &sm.haveV[s]);
    };
    for (int t = from; t < to; t++) {
        const int s = t % kStages;
        const Note& note = sm.notes[t % kNotes];
        if (leads) sm.freeK[s].wait(t / kStages & 1 ^ 1);
        __syncwarp();
        if (!leads) {
            sm.haveK[s].arrive();
            continue;
        }
        sm.haveK[s].arriveExpecting(C::bytesK);
        bulkCopy(sm.k[s], note.k, C::bytesK, &sm.haveK[s]);
        if (t > 0) sendValues(t - 1);
        if (note.flags & kLast) sendValues(t);
    }
}

// produce notes, with a warp, the tiles of an item, leaving out those for the wide
// kernel, and sends them. The last tile is sent when it is known to be the last.
template <class C>
__device__ __forceinline__ void produce(const Pool* pool, Batch* batch, const Item& it, Shared<C>& sm) {
    const int lane = threadIdx.x & 31;
    if (lane == 0) {
        sm.haveQ.arriveExpecting(C::bytesQ);
        bulkCopy(sm.q, it.query + (uint64_t)(it.row0 / C::BM) * C::bytesQ, C::bytesQ, &sm.haveQ);
    }
    const TileInfo q = ((const TileInfo*)(it.query + pool->qInfo))[it.row0 / C::BM];
    const float scale = q.scale * pool->c, norm = q.norm * pool->c;
    Walk<C::BN> walk(pool, batch, it);
    int noted = 0, sent = 0;
    bool more = walk.next(pool, it.row1);
    while (more) {
        const bool found = walk.tile >= 0, ours = found && !wide(pool->steep, norm, walk.info);
        if (found && !ours) batch->wide = 1;
        const uint32_t which = __ballot_sync(~0u, ours);
        if (ours) {
            const int shift = it.row0 + walk.offset - walk.tile * C::BN, keys = walk.keys - walk.tile * C::BN;
            sm.notes[(noted + __popc(which & ((1u << lane) - 1))) % kNotes] = {
                scale * walk.info.scale, norm * walk.info.norm, walk.info.unit, keys < C::BN || shift < C::BN - 1 ? kMasked : 0, shift, keys,
                walk.slot + pool->kvK + (uint64_t)walk.tile * C::bytesK,
                walk.slot + pool->kvV + it.block * pool->kvBlock + (uint64_t)walk.tile * C::bytesV};
        }
        noted += __popc(which);
        more = walk.next(pool, it.row1);  // what it loads comes while tiles are sent
        __syncwarp();
        if (lane == 0 && noted > 0 && !more) sm.notes[(noted - 1) % kNotes].flags |= kLast;
        send(sm, sent, more ? noted - 1 : noted);
        sent = max(noted - 1, 0);
        __syncwarp();
    }
    if (noted == 0) {
        if (lane == 0) sm.notes[0].flags = kNone;
        sm.haveK[0].arrive();
    }
}

// scores issues S = Q K^T of one tile. In two planes it is the three products
// that matter, the small ones first.
template <class C>
__device__ __forceinline__ void scores(float (&S)[C::BN / 2], uint64_t q, uint64_t k) {
    using Product = ScoresProduct<C::BN>;
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

// values issues P V of one tile, to be added to O if there is no master, or else
// instead of it; P is hi + low where weights have two planes.
template <class C, int NL>
__device__ __forceinline__ void values(float (&O)[C::DV / 2], const uint32_t (&P)[C::BN / 4], const uint32_t (&L)[NL], uint64_t v) {
    using Product = ValuesProduct<C::DV>;
    constexpr uint32_t step = 2 * C::groupV;
    if constexpr (C::weightPlanes == 2) {
#pragma unroll
        for (int i = 0; i < C::BN / 16; i++) Product::run(O, L[4 * i], L[4 * i + 1], L[4 * i + 2], L[4 * i + 3], moved(v, i * step), i != 0 || !C::master);
        if constexpr (C::planes == 2) {
#pragma unroll
            for (int i = 0; i < C::BN / 16; i++) Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, C::lowV + i * step), 1);
        }
    }
#pragma unroll
    for (int i = 0; i < C::BN / 16; i++)
        Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, i * step), C::weightPlanes == 2 || i != 0 || !C::master);
}

// consume computes with one warpgroup, and adds to the state of rows row0 on; it
// reports whether there was anything to add.
template <class C>
__device__ __forceinline__ bool consume(int wg, int row0, int block, const State<C::two>& state, bool fresh, Shared<C>& sm) {
    const int lane = threadIdx.x & 31, row = wg * 64 + (threadIdx.x / 32 & 3) * 16 + lane / 4, column = 2 * (lane & 3);
    const uint64_t q = descriptor(sharedAddress(sm.q) + wg * 8 * C::groupK, 16, C::groupK);
    const uint64_t k = descriptor(sharedAddress(sm.k[0]), 16, C::groupK), v = descriptor(sharedAddress(sm.v[0]), kPanelBytes, C::groupV);
    float S[C::BN / 2], O[C::DV / 2], M[C::master ? C::DV / 2 : 1];
    uint32_t P[C::BN / 4], L[C::weightPlanes == 2 ? C::BN / 4 : 1];
    Softmax z = {kNothing, kNothing, 0.f, 0.f};
    float f0, f1;
#pragma unroll
    for (int i = 0; i < (C::master ? C::DV / 2 : 1); i++) M[i] = 0.f;
#pragma unroll
    for (int i = 0; i < C::DV / 2; i++) O[i] = 0.f;
    if (wg == 0) turnGive(1);

    sm.haveK[0].wait(0);
    if (sm.notes[0].flags & kNone) return false;
    int flags = __shfl_sync(~0u, sm.notes[0].flags, 0);  // uniform
    sm.haveQ.wait(0);
    pin(S);
    productsBegin();
    scores<C>(S, q, k);
    productsCommit();
    productsWait<0>();
    pin(S);
    const Note& first = sm.notes[0];
    float unit = first.unit;  // of what is in O
    if (first.flags & kMasked) hide(S, first, row, column);
    raise(S, z, first.c, f0, f1);
    weigh(S, z, first.c, f0, f1);
    if (lane == 0) sm.freeK[0].arrive();
    narrow(S, P, L);

    int summed = 0;  // tiles since the last flush
    auto fold = [&] {
        if constexpr (C::master) {
#pragma unroll
            for (int i = 0; i < C::DV / 2; i++) M[i] = fmaf(O[i], unit, M[i]);
        }
    };
    // flush gives to the state what is summed so far.
    auto flush = [&] {
        auto give = [&](auto& sums, float unit) {
            addRows(state, row0 + row, block * C::DV + column, sums, unit, z, fresh);
#pragma unroll
            for (int i = 0; i < C::DV / 2; i++) sums[i] = 0.f;
        };
        if constexpr (C::master) {
            give(M, 1.f);
        } else {
            give(O, unit);
        }
        z.l0 = z.l1 = 0.f;
        fresh = false;
    };
    int t = 1;
#pragma unroll 1
    for (; !(flags & kLast); t++) {
        const int s = t % kStages, before = (t - 1) % kStages;
        sm.haveK[s].wait(t / kStages & 1);
        const float4 note = *(const float4*)&sm.notes[t % kNotes];
        turnWait(1 + wg);
        pin(S);
        productsBegin();
        scores<C>(S, q, moved(k, s * C::bytesK));
        productsCommit();
        sm.haveV[before].wait((t - 1) / kStages & 1);
        pin(P);
        pin(L);
        pin(O);
        productsBegin();
        values<C>(O, P, L, moved(v, before * C::bytesV));
        productsCommit();
        turnGive(1 + (wg + 1) % C::WG);
        flags = __shfl_sync(~0u, __float_as_int(note.w), 0);
        const bool masked = flags & kMasked, look = __any_sync(~0u, risky(z, note.y) || masked);
        productsWait<1>();
        pin(S);
        if (lane == 0) sm.freeK[s].arrive();
        f0 = f1 = 1.f;
        if (__builtin_expect(look, 0)) {
            if (masked) hide(S, sm.notes[t % kNotes], row, column);
            raise(S, z, note.x, f0, f1);
        }
        const bool over = weigh(S, z, note.x, f0, f1);
        productsWait<0>();
        pin(O);
        pin(P);
        pin(L);
        if (lane == 0) sm.freeV[before].arrive();
        narrow(S, P, L);
        fold();
        bool full = ++summed == C::window;
        if (__builtin_expect(look || over || note.z != unit, 0)) {
            if constexpr (C::master) {
                scaleRows(M, f0, f1);
            } else {
                full |= far(unit, note.z);
                const float change = full ? 1.f : unit / note.z;  // powers of two
                scaleRows(O, f0 * change, f1 * change);
            }
        }
        if (full) {
            flush();
            summed = 0;
        }
        unit = note.z;
    }
    const int before = (t - 1) % kStages;
    sm.haveV[before].wait((t - 1) / kStages & 1);
    turnWait(1 + wg);
    pin(P);
    pin(L);
    pin(O);
    productsBegin();
    values<C>(O, P, L, moved(v, before * C::bytesV));
    productsCommit();
    if (wg + 1 < C::WG) turnGive(2 + wg);
    productsWait<0>();
    pin(O);
    fold();
    flush();
    return true;
}

template <class C>
__device__ __forceinline__ void attend(const Pool* pool, Batch* batch) {
    extern __shared__ uint8_t dynamic[];
    Shared<C>& sm = *(Shared<C>*)(dynamic + (-sharedAddress(dynamic) & (C::slack - 1)));
    const Item it(pool, batch, blockIdx.x, C::BM, pool->valueBlocks);
    if (it.row0 >= it.row1) return;
    if (threadIdx.x == 0) {
        sm.haveQ.init(1);
        for (int i = 0; i < kStages; i++) {
            sm.haveK[i].init(32);  // the warp that copies
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
        if (threadIdx.x < 32) produce<C>(pool, batch, it, sm);
    } else {
        takeRegisters<C::registers>();
        const State<C::two> state(it.target(pool, batch), pool, it.block);
        const bool partial = batch->splits > 1;
        if (!consume<C>(group - 1, it.row0, it.block, state, partial, sm) && partial) {  // this split has nothing to add
            for (int i = it.row0 + threadIdx.x - 128; i < it.row1; i += blockDim.x - 128) state.m[i] = kNoKey;
        }
    }
}

}  // namespace

// A window of Half is 20,480 keys: 1,280 products of depth 16, each of which loses at
// most 7.5e-8 of a sum.
//                      DK   DV  WG  keys planes weights window
using Half64 = Config<64, 64, 3, 128, 1, 1, 160>;
using Half128 = Config<128, 128, 3, 80, 1, 1, 256>;
using Half256 = Config<256, 256, 2, 80, 1, 1, 256>;
using Split64 = Config<64, 64, 2, 128, 1, 2, 192>;
using Split128 = Config<128, 128, 2, 80, 1, 2, 192>;
using Split256 = Config<256, 128, 2, 80, 1, 2, 192>;
using Triple64 = Config<64, 64, 2, 128, 2, 2, 192>;
using Triple128 = Config<128, 128, 2, 64, 2, 2, 192>;
using Triple256 = Config<256, 128, 2, 32, 2, 2, 256>;

#include "entries.cuh"
