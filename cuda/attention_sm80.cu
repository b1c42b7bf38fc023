// Attention for Ampere and everything after it: apply KV slots to the states in
// query slots.
//
// A block of threads takes one tile of query rows of one head and walks the tiles
// of keys that its rows see. All warps copy the tiles, and share them; each computes
// its own rows, from scores to sums, in registers. While the scores of one warp
// become weights, those of another block on the multiprocessor use the tensor
// cores. docs/gpu.md explains it.
#include "mma.cuh"
#include "softmax.cuh"

namespace {

// Config fixes a kernel. Half: bfloat16 results, or fast ones. Split: float32 or
// float16 results of 16-bit inputs. Triple: float32 inputs.
//
// Rows: of a warp, in units of 16; with 32, reading K and V from shared memory takes
// half as long as the products, with 16 as long. Keys: of a tile. Planes: of Q, K
// and V. WeightPlanes: of the weights. Window: tiles before the sums are added to
// the state in memory. Stages: tiles in shared memory.
//
// The tensor cores cut off what a sum can't hold: as in the kernel for Hopper, Half
// leaves them the sums of a window, and the others those of one tile.
template <int DK_, int DV_, int Rows, int Keys, int Planes_, int WeightPlanes_, int Window, int Stages>
struct Config {
    static constexpr int DK = DK_, DV = DV_, columns = DV, M = Rows, BN = Keys;
    static constexpr int planes = Planes_, weightPlanes = WeightPlanes_, window = Window, stages = Stages;
    static constexpr bool two = weightPlanes == 2, master = two;
    static constexpr int warps = 4, threads = 32 * warps, BM = 16 * M * warps;
    static constexpr int blocks = 2;   // of a multiprocessor
    static constexpr int slack = 128;  // bytes for aligning Shared
    static constexpr bool keepQ = DK * planes * M <= 128;  // whether a warp keeps its rows of Q in registers

    // Bytes of a plane of a panel, of Q and of K or V, and of a tile.
    static constexpr uint32_t planeQ = BM * kRowBytes, plane = BN * kRowBytes;
    static constexpr uint32_t bytesQ = DK / kPanel * planes * planeQ, bytesK = DK / kPanel * planes * plane, bytesV = DV / kPanel * planes * plane;
};

// Cursor is at one of the tiles of keys that an item's rows see, last keys of each
// ref first. Every thread has one. Unlike Walk it can't leave tiles out: those for
// the wide kernel, which are rare, are copied in vain.
template <class C>
struct Cursor {
    const uint8_t *k, *v;  // the tile of K, and of V
    const TileInfo* info;
    int ref, left;         // the ref, and its tiles from this one on
    int shift, keys;       // as in Note

    // start goes to the first tile of the split, and counts them.
    __device__ __forceinline__ int start(const Pool* pool, const Batch* batch, const Item& it) {
        const Ref* refs = batch->ref() + it.work.first;
        int64_t all = 0;
        for (int i = 0; i < it.work.count; i++) all += visibleTiles(refs[i], it.row1, C::BN);
        int skip = (int)(all * blockIdx.y / batch->splits), n;
        const int tiles = (int)(all * (blockIdx.y + 1) / batch->splits) - skip;
        if (tiles == 0) return 0;
        ref = 0;
        while (skip >= (n = visibleTiles(refs[ref], it.row1, C::BN))) skip -= n, ref++;
        enter(pool, it, refs[ref], n - skip);
        return tiles;
    }
    // next goes to the next tile. There must be one.
    __device__ __forceinline__ void next(const Pool* pool, const Batch* batch, const Item& it) {
        if (left > 1) {
            left--;
            k -= C::bytesK, v -= C::bytesV, info--;
            shift += C::BN, keys += C::BN;
            return;
        }
        const Ref* refs = batch->ref() + it.work.first;
        int n;
        do n = visibleTiles(refs[++ref], it.row1, C::BN);
        while (n == 0);
        enter(pool, it, refs[ref], n);
    }
    // enter goes to the last of the first n tiles of a ref.
    __device__ __forceinline__ void enter(const Pool* pool, const Item& it, const Ref& r, int n) {
        const uint8_t* head = (const uint8_t*)pool->kv + it.head / pool->group * pool->kvHead + (uint64_t)r.slot * pool->kvSlot;
        const uint64_t tile = n - 1;
        k = head + pool->kvK + tile * C::bytesK;
        v = head + pool->kvV + tile * C::bytesV;
        info = (const TileInfo*)(head + pool->kvInfo) + tile;
        left = n;
        shift = it.row0 + r.offset - (n - 1) * C::BN, keys = r.keys - (n - 1) * C::BN;
    }
};

// copyTile copies a tile, with all threads of the block.
template <class C, int Bytes>
__device__ __forceinline__ void copyTile(uint8_t* to, const uint8_t* from) {
    constexpr int step = 16 * C::threads;
    static_assert(Bytes % step == 0, "");
    const uint32_t at = sharedAddress(to) + 16 * threadIdx.x;
    from += 16 * threadIdx.x;
#pragma unroll
    for (int i = 0; i < Bytes; i += step) copyPiece(at + i, from + i);
}

constexpr int kSharedBytes = 99 << 10;  // what every architecture has for a block

template <class C>
struct Shared {
    alignas(128) uint8_t q[C::bytesQ];
    alignas(128) uint8_t k[C::stages][C::bytesK];
    alignas(128) uint8_t v[C::stages][C::bytesV];
    TileInfo info[2];
    Item item;  // here, since registers are scarce

    // copyKeys and copyValues copy tile t.
    __device__ __forceinline__ void copyKeys(int t, const Cursor<C>& at) {
        copyTile<C, C::bytesK>(k[t % C::stages], at.k);
        if (threadIdx.x == 0) copyPiece(sharedAddress(&info[t % 2]), at.info);
    }
    __device__ __forceinline__ void copyValues(int t, const Cursor<C>& at) { copyTile<C, C::bytesV>(v[t % C::stages], at.v); }
};

// rowOffset is where a lane finds the row that it loads of 16 rows and 16 features
// of a tile. They are four matrices of 8 by 8: group says which 8 rows, piece which
// 8 features.
__device__ __forceinline__ uint32_t rowOffset(uint32_t group, uint32_t piece) {
    const uint32_t row = threadIdx.x & 7;
    return group * kGroupBytes + row * kRowBytes + ((piece ^ row) << 4);
}
// An operand wants its four matrices in an order, and lane / 8 is the matrix. Those
// of Q, and of V transposed, begin with both groups of the first 8 features; those
// of K with all features of the first group.
__device__ __forceinline__ uint32_t groupsFirst() { return rowOffset(threadIdx.x >> 3 & 1, threadIdx.x >> 4 & 1); }
__device__ __forceinline__ uint32_t featuresFirst() { return rowOffset(threadIdx.x >> 4 & 1, threadIdx.x >> 3 & 1); }

// feature moves an address from the first features of a tile to those from 16 i on; panel
// is the bytes of a panel.
__device__ __forceinline__ uint32_t feature(uint32_t address, int i, uint32_t panel) { return (address ^ (i % 4 * 32)) + i / 4 * panel; }

// Query is a warp's rows of Q: where they are in shared memory, and in registers
// if they are kept there.
template <class C>
struct Query {
    uint32_t address;
    uint32_t kept[C::keepQ ? C::planes : 1][C::keepQ ? C::DK / 16 : 1][C::M][4];

    __device__ __forceinline__ void start(uint32_t rows) {
        address = rows;
        if constexpr (C::keepQ) {
#pragma unroll
            for (int p = 0; p < C::planes; p++)
#pragma unroll
                for (int i = 0; i < C::DK / 16; i++)
#pragma unroll
                    for (int m = 0; m < C::M; m++) loadMatrices(kept[p][i][m], at(m, p, i));
        }
    }
    // at is where 16 rows are.
    __device__ __forceinline__ uint32_t at(int m, int plane, int i) const {
        return feature(address, i, C::planes * C::planeQ) + plane * C::planeQ + m * 2 * kGroupBytes;
    }
    // load gives features 16 i on.
    __device__ __forceinline__ void load(uint32_t (&a)[C::M][4], int plane, int i) const {
#pragma unroll
        for (int m = 0; m < C::M; m++) {
            if constexpr (C::keepQ) {
#pragma unroll
                for (int j = 0; j < 4; j++) a[m][j] = kept[plane][i][m][j];
            } else {
                loadMatrices(a[m], at(m, plane, i));
            }
        }
    }
};

// keysAt is where the features from 16 i on of keys from 16 j on are, in a plane of a tile.
template <class C>
__device__ __forceinline__ uint32_t keysAt(uint32_t tile, int plane, int j, int i) {
    return feature(tile, i, C::planes * C::plane) + plane * C::plane + j * 2 * kGroupBytes;
}

// scoresOf adds Q K^T of one plane of each to S.
template <class C>
__device__ __forceinline__ void scoresOf(float (&S)[C::M][C::BN / 2], const Query<C>& q, int planeQ, uint32_t k, int planeK) {
#pragma unroll(C::DK > 128 && C::master ? 4 : C::DK / 16)  // all 16 steps at once make the compiler spill if there is a master
    for (int i = 0; i < C::DK / 16; i++) {
        uint32_t a[C::M][4];
        q.load(a, planeQ, i);
#pragma unroll
        for (int j = 0; j < C::BN / 16; j++) {
            uint32_t b[4];
            loadMatrices(b, keysAt<C>(k, planeK, j, i));
#pragma unroll
            for (int m = 0; m < C::M; m++) {
                product(S[m] + 8 * j, a[m], b[0], b[1]);
                product(S[m] + 8 * j + 4, a[m], b[2], b[3]);
            }
        }
    }
}

// scores is S = Q K^T of a tile. In two planes it is the three products that
// matter, the small ones first.
template <class C>
__device__ __forceinline__ void scores(float (&S)[C::M][C::BN / 2], const Query<C>& q, uint32_t k) {
#pragma unroll
    for (int m = 0; m < C::M; m++)
#pragma unroll
        for (int i = 0; i < C::BN / 2; i++) S[m][i] = 0.f;
    if constexpr (C::planes == 2) {
        scoresOf(S, q, 1, k, 0);
        scoresOf(S, q, 0, k, 1);
    }
    scoresOf(S, q, 0, k, 0);
}

// Weights are those of a tile, hi and what that loses, as the left operands of
// products with V.
template <class C>
struct Weights {
    uint32_t hi[C::M][C::BN / 4], low[C::M][C::two ? C::BN / 4 : 1];
};

// valuesOf adds P V to O, at sums from at on, for 16 keys and the columns from 16 f on.
template <class C, int N>
__device__ __forceinline__ void valuesOf(float (&O)[C::M][N], int at, const Weights<C>& P, uint32_t v, int keys, int f) {
    uint32_t b[4];
    loadTransposed(b, keysAt<C>(v, 0, keys, f));
#pragma unroll
    for (int m = 0; m < C::M; m++) {
        if constexpr (C::two) {
            product(O[m] + at, P.low[m] + 4 * keys, b[0], b[1]);
            product(O[m] + at + 4, P.low[m] + 4 * keys, b[2], b[3]);
        }
        product(O[m] + at, P.hi[m] + 4 * keys, b[0], b[1]);
        product(O[m] + at + 4, P.hi[m] + 4 * keys, b[2], b[3]);
    }
    if constexpr (C::planes == 2) {
        loadTransposed(b, keysAt<C>(v, 1, keys, f));
#pragma unroll
        for (int m = 0; m < C::M; m++) {
            product(O[m] + at, P.hi[m] + 4 * keys, b[0], b[1]);
            product(O[m] + at + 4, P.hi[m] + 4 * keys, b[2], b[3]);
        }
    }
}

// values is O += P V of a tile. Without a master O is in the unit of the tile. With one
// the tensor cores sum the products of the tile alone, and float32 arithmetic, which
// rounds to nearest, adds that up.
template <class C>
__device__ __forceinline__ void values(float (&O)[C::M][C::DV / 2], const Weights<C>& P, uint32_t v, float unit) {
    if constexpr (!C::master) {
#pragma unroll
        for (int i = 0; i < C::BN / 16; i++)
#pragma unroll
            for (int f = 0; f < C::DV / 16; f++) valuesOf<C>(O, 8 * f, P, v, i, f);
        return;
    }
    constexpr int width = 2 / C::M;  // of 16 columns: so many sums are independent, and fit into registers
#pragma unroll
    for (int first = 0; first < C::DV / 16; first += width) {
        float sum[width][C::M][8] = {};
#pragma unroll
        for (int i = 0; i < C::BN / 16; i++)
#pragma unroll
            for (int f = 0; f < width; f++) valuesOf<C>(sum[f], 0, P, v, i, first + f);
#pragma unroll
        for (int f = 0; f < width; f++)
#pragma unroll
            for (int m = 0; m < C::M; m++)
#pragma unroll
                for (int i = 0; i < 8; i++) O[m][8 * (first + f) + i] = fmaf(sum[f][m][i], unit, O[m][8 * (first + f) + i]);
    }
}

// Sums is what a warp knows of its rows.
template <class C>
struct Sums {
    Softmax z[C::M];
    float O[C::M][C::DV / 2];
    float unit;       // of O without a master; 0 while it holds nothing
    int row, column;  // the first of the thread's rows of the tile of Q, the first of its columns

    // clear forgets the sums, but not the references.
    __device__ __forceinline__ void clear() {
        unit = 0.f;
#pragma unroll
        for (int m = 0; m < C::M; m++) {
            z[m].l0 = z[m].l1 = 0.f;
#pragma unroll
            for (int i = 0; i < C::DV / 2; i++) O[m][i] = 0.f;
        }
    }
    // rare says whether a tile is more than a sum: scores may be steep, or O is in
    // another unit.
    __device__ __forceinline__ bool rare(const Note& note) const {
        bool any = note.flags == kMasked || (!C::master && note.unit != unit);
#pragma unroll
        for (int m = 0; m < C::M; m++) any |= risky(z[m], note.bound);
        return any;
    }
    // full says that O must be given to the state before a tile is added. to is the unit
    // of the tile, 0 if the tile is raw.
    __device__ __forceinline__ bool full(float to) const { return !C::master && unit != to && unit > 0.f && to > 0.f && far(unit, to); }
    // convert brings O to the unit of a tile.
    __device__ __forceinline__ void convert(float to) {
        if (C::master) return;
        const float change = unit / to;  // powers of two
#pragma unroll
        for (int m = 0; m < C::M; m++) scaleRows(O[m], change, change);
        unit = to;
    }
};

// weighTile computes the weights of a tile. Look: whether to look at all of its
// scores first, for keys that rows don't see and for their maxima. Otherwise nothing
// stands between products and exponentials, and the compiler mixes them.
template <class C, bool Look>
__device__ __forceinline__ void weighTile(Weights<C>& P, Sums<C>& sums, const Query<C>& q, uint32_t k, const Note& note) {
    float S[C::M][C::BN / 2], t[C::M][2] = {}, f[C::M][2];
    scores(S, q, k);
    bool over = false;
#pragma unroll
    for (int m = 0; m < C::M; m++) {
        f[m][0] = f[m][1] = 1.f;
        if constexpr (Look) {
            if (note.flags & kMasked) hide(S[m], note, sums.row + 16 * m, sums.column);
            raise(S[m], sums.z[m], note.c, f[m][0], f[m][1]);
        }
        exponentials(S[m], sums.z[m], note.c, t[m][0], t[m][1]);
        over |= overflows(t[m][0], t[m][1]);
    }
    over = __any_sync(~0u, over);
#pragma unroll
    for (int m = 0; m < C::M; m++) {
        Softmax& z = sums.z[m];
        if (over) lower(S[m], z, t[m][0], t[m][1], f[m][0], f[m][1]);
        z.l0 += t[m][0], z.l1 += t[m][1];
        if (Look || over) scaleRows(sums.O[m], f[m][0], f[m][1]);
        narrow(S[m], P.hi[m], P.low[m]);
    }
}

// addTile adds tile t, which is in shared memory, to the sums. forWide says that it
// is for the wide kernel instead; one branch finds all that is rare. afterKeys is
// called when the warp has no more use for K.
template <class C, class F>
__device__ __forceinline__ void addTile(Sums<C>& sums, const Query<C>& q, const Shared<C>& sm, int t, const Note& note, bool forWide, F afterKeys) {
    const uint32_t k = sharedAddress(sm.k[t % C::stages]) + featuresFirst();
    const uint32_t v = sharedAddress(sm.v[t % C::stages]) + groupsFirst();
    Weights<C> P;
    if (__any_sync(~0u, forWide || sums.rare(note))) {
        if (forWide) {
            afterKeys();
            return;
        }
        sums.convert(note.unit);
        weighTile<C, true>(P, sums, q, k, note);
    } else {
        weighTile<C, false>(P, sums, q, k, note);
    }
    afterKeys();
    values<C>(sums.O, P, v, note.unit);
}

// attendTiles does the part of an item that is the split's: so many tiles, of which
// next is the first.
template <class C>
__device__ __forceinline__ void attendTiles(const Pool* pool, Batch* batch, Cursor<C>& next, int tiles, Shared<C>& sm) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row0 = sm.item.row0;
    const TileInfo queries = ((const TileInfo*)(sm.item.query + pool->qInfo))[row0 / C::BM];
    const float scale = queries.scale * pool->c, norm = queries.norm * pool->c, steep = pool->steep;
    copyTile<C, C::bytesQ>(sm.q, sm.item.query + (uint64_t)(row0 / C::BM) * C::bytesQ);
    sm.copyKeys(0, next);
    if (C::stages == 2) sm.copyValues(0, next);

    Query<C> q;
    Sums<C> sums;
    sums.row = 16 * C::M * warp + lane / 4, sums.column = 2 * (lane & 3);
#pragma unroll
    for (int m = 0; m < C::M; m++) sums.z[m].b0 = sums.z[m].b1 = kNothing;
#pragma unroll 1
    for (int t = 0; t < tiles;) {
        const bool first = t == 0;
        const int end = min(tiles, t + C::window);
        sums.clear();
#pragma unroll 1
        for (; t < end; t++) {
            const int shift = next.shift, keys = next.keys;
            // Tile t has arrived, and no warp has use for the one before. With two
            // stages, the next one is copied meanwhile. With one, V is copied
            // during the products with K, and the next K during those with V.
            copiesWait();
            __syncthreads();
            const TileInfo info = sm.info[t % 2];
            if (sums.full(info.unit)) break;  // and come back
            if (t == 0) q.start(sharedAddress(sm.q) + 2 * C::M * warp * kGroupBytes + groupsFirst());
            if (C::stages == 1) sm.copyValues(t, next);
            const bool more = t + 1 < tiles;
            if (more) {
                next.next(pool, batch, sm.item);
                if (C::stages == 2) sm.copyKeys(t + 1, next), sm.copyValues(t + 1, next);
            }
            const bool forWide = wide(steep, norm, info), masked = keys < C::BN || shift + 16 * C::M * warp < C::BN - 1;
            if (forWide) batch->wide = 1;
            addTile<C>(sums, q, sm, t, {scale * info.scale, norm * info.norm, info.unit, masked ? kMasked : 0, shift, keys}, forWide, [&] {
                if (C::stages == 2) return;
                copiesWait();
                __syncthreads();
                if (more) sm.copyKeys(t + 1, next);
            });
        }
        const State<C::two> state(sm.item.target(pool, batch), pool);
#pragma unroll
        for (int m = 0; m < C::M; m++)
            addRows(state, sm.item.row0 + sums.row + 16 * m, sums.column, sums.O[m], C::master ? 1.f : sums.unit, sums.z[m], first && batch->splits > 1);
    }
}

template <class C>
__device__ __forceinline__ void attend(const Pool* pool, Batch* batch) {
    extern __shared__ uint8_t dynamic[];
    static_assert(sizeof(Shared<C>) + C::slack <= kSharedBytes, "");
    Shared<C>& sm = *(Shared<C>*)(dynamic + (-sharedAddress(dynamic) & (C::slack - 1)));
    const Item it(pool, batch, blockIdx.x, C::BM);
    if (it.row0 >= it.row1) return;
    if (threadIdx.x == 0) sm.item = it;
    __syncthreads();
    Cursor<C> cursor;
    const int tiles = cursor.start(pool, batch, it);
    if (tiles > 0) {
        attendTiles<C>(pool, batch, cursor, tiles, sm);
    } else if (batch->splits > 1) {  // this split has nothing to add
        const State<C::two> state(it.target(pool, batch), pool);
        for (int i = it.row0 + threadIdx.x; i < it.row1; i += blockDim.x) state.m[i] = kNoKey;
    }
}

}  // namespace

// Two blocks with one stage each fit on a multiprocessor of an A100 at D = 128, where
// two stages would leave room for one. A window is 20,480 keys of Half, and 32,768.
//                      DK   DV  rows keys planes weights window stages
using Half64 = Config<64, 64, 2, 64, 1, 1, 320, 2>;
using Half128 = Config<128, 128, 2, 64, 1, 1, 320, 1>;
using Half192 = Config<192, 128, 2, 64, 1, 1, 320, 1>;
using Half256 = Config<256, 256, 1, 64, 1, 1, 320, 1>;
using Split64 = Config<64, 64, 2, 64, 1, 2, 512, 2>;
using Split128 = Config<128, 128, 2, 64, 1, 2, 512, 1>;
using Split192 = Config<192, 128, 2, 64, 1, 2, 512, 1>;
using Split256 = Config<256, 256, 1, 64, 1, 2, 512, 1>;
using Triple64 = Config<64, 64, 2, 64, 2, 2, 512, 2>;
using Triple128 = Config<128, 128, 1, 64, 2, 2, 512, 1>;
using Triple192 = Config<192, 128, 1, 32, 2, 2, 1024, 1>;
using Triple256 = Config<256, 256, 1, 16, 2, 2, 2048, 1>;

#include "entries.cuh"
