// What a block of threads does in a launch: which rows, and which tiles of keys.
#pragma once
#include "layout.cuh"

// Item is one tile of query rows of one query head.
struct Item {
    int row0, row1;        // rows [row0,row1) of the query chunk
    int index;             // of the query head, over all works
    int head;              // query head
    Work work;
    const uint8_t* query;  // the head of the query slot

    // Blocks of threads take heads first, so that those that share keys run side by
    // side, and the last rows before the first: under a causal mask they see the
    // most keys.
    __device__ __forceinline__ Item(const Pool* pool, const Batch* batch, int x, int tileRows) {
        index = x % (batch->heads * batch->works), x /= batch->heads * batch->works;
        head = index % batch->heads;
        work = batch->work()[index / batch->heads];
        row0 = pool->rows - (x + 1) * tileRows;
        row1 = min(row0 + tileRows, work.rows);
        query = (const uint8_t*)pool->query + work.slot * pool->qSlot + head * pool->qHead;
    }

    // target is the state that sums go to: that of the rows, or a partial one of the
    // split, as a head of a query slot.
    __device__ __forceinline__ uint8_t* target(const Pool* pool, const Batch* batch) const {
        if (batch->splits == 1) return (uint8_t*)query;
        return (uint8_t*)pool->partial + blockIdx.y * pool->pSplit + index * pool->pHead - pool->qAcc;
    }
};

// wide says whether a tile of keys is for the wide kernel: float32 scores could be
// too coarse, or something is not finite. norm is that of the tile of Q, times c;
// steep is the pool's.
__device__ __forceinline__ bool wide(float steep, float norm, const TileInfo& k) {
    return !(norm * k.norm <= steep && k.peak < INFINITY);
}

// visibleTiles of a ref are those of which rows before row1 see a key.
__device__ __forceinline__ int visibleTiles(const Ref& r, int row1, int tileKeys) {
    return (max(0, min(r.keys, row1 + r.offset)) + tileKeys - 1) / tileKeys;
}

// Note tells of a tile of keys: to the copying thread where it is, to the consumers
// what it is.
struct alignas(16) Note {
    float c;      // factor of a product of packed Q and K
    float bound;  // no |score| exceeds it; both in units of log2
    float unit;   // of the tile of V
    int flags;
    int shift;    // row i of the query tile sees key j of this tile if j <= i + shift
    int keys;     // and j < keys
    const uint8_t *k, *v;
};
enum { kMasked = 1, kLast = 2, kNone = 4 };  // some row does not see some key; no tile follows; not even this one exists

constexpr int kScan = 16;  // tiles that a warp looks at at once, lane by lane

// Walk goes through the tiles of keys that an item's rows see, last keys first, in
// the order of the refs, a warp together.
template <int TileKeys>
struct Walk {
    const Ref* refs;
    const uint8_t *heads, *slot;  // the KV head in slot 0, and in the ref's slot
    int refsLeft, tilesLeft;      // tiles of the ref to come
    int left, skip;               // tiles of the split to come; to pass over before
    int keys, offset;             // of the ref
    int tile;                     // of the lane, or -1
    TileInfo info;

    __device__ __forceinline__ Walk(const Pool* p, const Batch* batch, const Item& it)
        : refs(batch->ref() + it.work.first), heads((const uint8_t*)p->kv + it.head / p->group * p->kvHead), refsLeft(it.work.count),
          tilesLeft(0), left(1 << 30), skip(0) {
        if (batch->splits == 1) return;
        int64_t all = 0;
        for (int i = 0; i < refsLeft; i++) all += visibleTiles(refs[i], it.row1, TileKeys);
        skip = (int)(all * blockIdx.y / batch->splits);
        left = (int)(all * (blockIdx.y + 1) / batch->splits) - skip;
    }

    // next gives each lane a tile, those of one ref; false says that there are no more.
    __device__ __forceinline__ bool next(const Pool* pool, int row1) {
        if (left == 0) return false;
        while (tilesLeft == 0) {
            if (refsLeft == 0) return false;
            const Ref ref = *refs++;
            refsLeft--;
            keys = ref.keys, offset = ref.offset;
            slot = heads + (uint64_t)ref.slot * pool->kvSlot;
            tilesLeft = visibleTiles(ref, row1, TileKeys);
            const int pass = min(skip, tilesLeft);
            skip -= pass, tilesLeft -= pass;
        }
        const int lane = threadIdx.x & 31, n = min(kScan, min(tilesLeft, left));
        tile = lane < n ? tilesLeft - 1 - lane : -1;
        tilesLeft -= n, left -= n;
        if (tile >= 0) info = ((const TileInfo*)(slot + pool->kvInfo))[tile];
        return true;
    }
};
