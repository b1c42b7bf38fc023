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

constexpr int kNotes = 2 * kScan;  // kScan are written at once, while a few before them are in use

// Config fixes a kernel. Half: bfloat16 results, or fast ones. Split: float32 or
// float16 results of 16-bit inputs. Triple: float32 inputs.
//
// DV: columns of V whose products with the weights are computed at once. Parts: how
// many times DV all columns are. Planes: of Q, K and V. WeightPlanes: of the weights.
// Window: tiles before the sums are added to the state in memory. The tensor cores cut
// off what a sum can't hold: Half, whose results are rounded to 8 bits, leaves them the
// sums of a window; the others, of one tile, and a master in registers adds those up,
// rounded to nearest.
template <int DK_, int DV_, int Parts, int Warpgroups, int Keys, int Planes_, int WeightPlanes_, int Window_>
struct Config {
    static constexpr int DK = DK_, DV = DV_, parts = Parts, columns = DV * parts, WG = Warpgroups, BN = Keys, BM = 64 * WG;
    static constexpr int planes = Planes_, weightPlanes = WeightPlanes_, window = Window_;
    static constexpr bool two = weightPlanes == 2, master = two;
    static constexpr int threads = 128 * (WG + 1);
    static constexpr int blocks = 1;    // of a multiprocessor
    static constexpr int slack = 1024;  // bytes for aligning Shared
    static constexpr int registers = WG == 2 ? 240 : 160, producerRegisters = WG == 2 ? 24 : 32;

    // In shared memory, as there is room: tiles of K, and tiles of V, or all parts of one.
    static constexpr int stagesK = parts > 1 && planes == 2 ? 1 : 2, stagesV = parts > 1 ? parts : 2;

    // Bytes of a plane of a panel, of a tile, and of a part of one of V.
    static constexpr uint32_t planeQ = BM * kRowBytes, planeK = BN * kRowBytes;
    static constexpr uint32_t bytesQ = DK / kPanel * planes * planeQ, bytesK = DK / kPanel * planes * planeK, bytesV = DV / kPanel * planes * planeK;
};

template <class C>
struct Shared {
    alignas(1024) uint8_t q[C::bytesQ];
    alignas(1024) uint8_t k[C::stagesK][C::bytesK];
    alignas(1024) uint8_t v[C::stagesV][C::bytesV];
    Note notes[kNotes];
    Barrier haveQ, haveK[C::stagesK], freeK[C::stagesK], haveV[C::stagesV], freeV[C::stagesV];
};

// send has a warp copy the tiles of notes [from,to) into shared memory, where stages
// become free, in the order in which they are used: a tile of V after the next tile of K,
// or, in parts, right after its own. Every lane arrives for a tile of K: with it come the
// notes, of which each lane wrote some.
template <class C>
__device__ __forceinline__ void send(Shared<C>& sm, int from, int to) {
    const bool leads = (threadIdx.x & 31) == 0;
    auto sendValues = [&](int t) {
        for (int part = 0; part < C::parts; part++) {
            const int s = C::parts > 1 ? part : t % C::stagesV, round = C::parts > 1 ? t : t / C::stagesV;
            sm.freeV[s].wait(round & 1 ^ 1);
            sm.haveV[s].arriveExpecting(C::bytesV);
            bulkCopy(sm.v[s], sm.notes[t % kNotes].v + part * C::bytesV, C::bytesV, &sm.haveV[s]);
        }
    };
    for (int t = from; t < to; t++) {
        const int s = t % C::stagesK;
        const Note& note = sm.notes[t % kNotes];
        if (leads) sm.freeK[s].wait(t / C::stagesK & 1 ^ 1);
        __syncwarp();
        if (!leads) {
            sm.haveK[s].arrive();
            continue;
        }
        sm.haveK[s].arriveExpecting(C::bytesK);
        bulkCopy(sm.k[s], note.k, C::bytesK, &sm.haveK[s]);
        if (C::parts == 1 && t > 0) sendValues(t - 1);
        if (C::parts > 1 || note.flags & kLast) sendValues(t);
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
                walk.slot + pool->kvV + (uint64_t)walk.tile * C::parts * C::bytesV};
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
    auto run = [&](int i, int planeQ, int planeK, bool add) {
        const int panel = i / 4 * C::planes, inRow = i % 4 * 32;
        Product::run(S, moved(q, (panel + planeQ) * C::planeQ + inRow), moved(k, (panel + planeK) * C::planeK + inRow), add);
    };
    if constexpr (C::planes == 2) {
#pragma unroll
        for (int i = 0; i < C::DK / 16; i++) run(i, 1, 0, i != 0);
#pragma unroll
        for (int i = 0; i < C::DK / 16; i++) run(i, 0, 1, true);
    }
#pragma unroll
    for (int i = 0; i < C::DK / 16; i++) run(i, 0, 0, C::planes == 2 || i != 0);
}

// values issues P V of one part of a tile, to be added to O if there is no master, or else
// instead of it; P is hi + low where weights have two planes.
template <class C, int NL>
__device__ __forceinline__ void values(float (&O)[C::DV / 2], const uint32_t (&P)[C::BN / 4], const uint32_t (&L)[NL], uint64_t v) {
    using Product = ValuesProduct<C::DV>;
    constexpr uint32_t step = 2 * kGroupBytes;
    if constexpr (C::weightPlanes == 2) {
#pragma unroll
        for (int i = 0; i < C::BN / 16; i++) Product::run(O, L[4 * i], L[4 * i + 1], L[4 * i + 2], L[4 * i + 3], moved(v, i * step), i != 0 || !C::master);
        if constexpr (C::planes == 2) {
#pragma unroll
            for (int i = 0; i < C::BN / 16; i++) Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, C::planeK + i * step), 1);
        }
    }
#pragma unroll
    for (int i = 0; i < C::BN / 16; i++)
        Product::run(O, P[4 * i], P[4 * i + 1], P[4 * i + 2], P[4 * i + 3], moved(v, i * step), C::weightPlanes == 2 || i != 0 || !C::master);
}

// consume computes with one warpgroup, and adds to the state of rows row0 on; it
// reports whether there was anything to add.
template <class C>
__device__ __forceinline__ bool consume(int wg, int row0, const State<C::two>& state, bool fresh, Shared<C>& sm) {
    const int lane = threadIdx.x & 31, row = wg * 64 + (threadIdx.x / 32 & 3) * 16 + lane / 4, column = 2 * (lane & 3);
    const uint64_t q = descriptor(sharedAddress(sm.q) + wg * 64 * kRowBytes, 16, kGroupBytes), k = descriptor(sharedAddress(sm.k[0]), 16, kGroupBytes);
    const uint64_t v = descriptor(sharedAddress(sm.v[0]), C::planes * C::planeK, kGroupBytes);
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
            addRows(state, row0 + row, column, sums, unit, z, fresh);
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
        const int s = t % C::stagesK, before = (t - 1) % C::stagesV;
        sm.haveK[s].wait(t / C::stagesK & 1);
        const float4 note = *(const float4*)&sm.notes[t % kNotes];
        turnWait(1 + wg);
        pin(S);
        productsBegin();
        scores<C>(S, q, moved(k, s * C::bytesK));
        productsCommit();
        sm.haveV[before].wait((t - 1) / C::stagesV & 1);
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
    const int before = (t - 1) % C::stagesV;
    sm.haveV[before].wait((t - 1) / C::stagesV & 1);
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

// consumeInParts does the same where the sums of a tile have no room beside the master of
// all columns of V: it computes DV columns at a time, two parts of which are under way
// together. Scores, weights and values follow each other; meanwhile the tensor cores work
// for the other warpgroup.
template <class C>
__device__ __forceinline__ bool consumeInParts(int wg, int row0, const State<C::two>& state, bool fresh, Shared<C>& sm) {
    static_assert(C::master, "");
    const int lane = threadIdx.x & 31, row = wg * 64 + (threadIdx.x / 32 & 3) * 16 + lane / 4, column = 2 * (lane & 3);
    const uint64_t q = descriptor(sharedAddress(sm.q) + wg * 64 * kRowBytes, 16, kGroupBytes), k = descriptor(sharedAddress(sm.k[0]), 16, kGroupBytes);
    const uint64_t v = descriptor(sharedAddress(sm.v[0]), C::planes * C::planeK, kGroupBytes);
    constexpr int sums = C::DV / 2;  // of a part, in a thread
    float M[C::parts * sums];
    Softmax z = {kNothing, kNothing, 0.f, 0.f};
#pragma unroll
    for (int i = 0; i < C::parts * sums; i++) M[i] = 0.f;

    sm.haveK[0].wait(0);
    if (sm.notes[0].flags & kNone) return false;
    sm.haveQ.wait(0);
    int summed = 0;  // tiles since the last flush
#pragma unroll 1
    for (int t = 0;; t++) {
        const int s = t % C::stagesK;
        float S[C::BN / 2];
        sm.haveK[s].wait(t / C::stagesK & 1);
        pin(S);
        productsBegin();
        scores<C>(S, q, moved(k, s * C::bytesK));
        productsCommit();
        const float4 note = *(const float4*)&sm.notes[t % kNotes];
        const int flags = __shfl_sync(~0u, __float_as_int(note.w), 0);  // uniform
        const bool masked = flags & kMasked, look = __any_sync(~0u, risky(z, note.y) || masked || t == 0);
        productsWait<0>();
        pin(S);
        if (lane == 0) sm.freeK[s].arrive();
        float f0 = 1.f, f1 = 1.f;
        if (__builtin_expect(look, 0)) {
            if (masked) hide(S, sm.notes[t % kNotes], row, column);
            raise(S, z, note.x, f0, f1);
        }
        const bool over = weigh(S, z, note.x, f0, f1);
        if (__builtin_expect(look || over, 0)) scaleRows(M, f0, f1);
        uint32_t P[C::BN / 4], L[C::BN / 4];
        narrow(S, P, L);

        float O[2][sums];
        auto issue = [&](int part) {
            sm.haveV[part].wait(t & 1);
            pin(P);
            pin(L);
            pin(O[part % 2]);
            productsBegin();
            values<C>(O[part % 2], P, L, moved(v, part * C::bytesV));
            productsCommit();
        };
        auto fold = [&](int part) {
            pin(O[part % 2]);
            if (lane == 0) sm.freeV[part].arrive();
#pragma unroll
            for (int i = 0; i < sums; i++) M[part * sums + i] = fmaf(O[part % 2][i], note.z, M[part * sums + i]);
        };
        issue(0);
        issue(1);
#pragma unroll
        for (int part = 0; part < C::parts; part++) {
            if (part + 1 < C::parts) {
                productsWait<1>();
            } else {
                productsWait<0>();
            }
            fold(part);
            if (part + 2 < C::parts) issue(part + 2);
        }
        pin(P);
        pin(L);
        if (++summed < C::window && !(flags & kLast)) continue;
        addRows(state, row0 + row, column, M, 1.f, z, fresh);
        if (flags & kLast) return true;
#pragma unroll
        for (int i = 0; i < C::parts * sums; i++) M[i] = 0.f;
        z.l0 = z.l1 = 0.f;
        fresh = false;
        summed = 0;
    }
}

template <class C>
__device__ __forceinline__ void attend(const Pool* pool, Batch* batch) {
    extern __shared__ uint8_t dynamic[];
    Shared<C>& sm = *(Shared<C>*)(dynamic + (-sharedAddress(dynamic) & (C::slack - 1)));
    const Item it(pool, batch, blockIdx.x, C::BM);
    if (it.row0 >= it.row1) return;
    if (threadIdx.x == 0) {
        sm.haveQ.init(1);
        for (int i = 0; i < C::stagesK; i++) {
            sm.haveK[i].init(32);  // the warp that copies
            sm.freeK[i].init(4 * C::WG);
        }
        for (int i = 0; i < C::stagesV; i++) {
            sm.haveV[i].init(1);
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
        const State<C::two> state(it.target(pool, batch), pool);
        const bool partial = batch->splits > 1;
        bool any;
        if constexpr (C::parts == 1) {
            any = consume<C>(group - 1, it.row0, state, partial, sm);
        } else {
            any = consumeInParts<C>(group - 1, it.row0, state, partial, sm);
        }
        if (!any && partial) {  // this split has nothing to add
            for (int i = it.row0 + threadIdx.x - 128; i < it.row1; i += blockDim.x - 128) state.m[i] = kNoKey;
        }
    }
}

}  // namespace

// A window of Half is 20,480 keys: 1,280 products of depth 16, each of which loses at
// most 7.5e-8 of a sum.
//                      DK   DV  parts WG keys planes weights window
using Half64 = Config<64, 64, 1, 3, 128, 1, 1, 160>;
using Half128 = Config<128, 128, 1, 3, 80, 1, 1, 256>;
using Half192 = Config<192, 128, 1, 3, 80, 1, 1, 256>;
using Half256 = Config<256, 256, 1, 2, 80, 1, 1, 256>;
using Split64 = Config<64, 64, 1, 2, 128, 1, 2, 192>;
using Split128 = Config<128, 128, 1, 2, 80, 1, 2, 192>;
using Split192 = Config<192, 128, 1, 2, 80, 1, 2, 192>;
using Split256 = Config<256, 64, 4, 2, 64, 1, 2, 240>;
using Triple64 = Config<64, 64, 1, 2, 128, 2, 2, 192>;
using Triple128 = Config<128, 128, 1, 2, 64, 2, 2, 192>;
using Triple192 = Config<192, 64, 2, 2, 64, 2, 2, 192>;
using Triple256 = Config<256, 64, 4, 2, 48, 2, 2, 256>;

#include "entries.cuh"
