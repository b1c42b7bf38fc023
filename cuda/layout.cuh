// How chunks lie in device memory, and what a launch is told.
//
// Rows of Q, K and V are packed once, when they arrive, into the form in which
// the tensor cores read them from shared memory:
//
//   [group of 8 rows][panel of 64 features][row of the group][128 bytes, swizzled]
//
// The 16-byte piece p of row r of a group lies at p ^ r (the 128-byte swizzle of
// wgmma, which makes ldmatrix free of bank conflicts too). Groups are outermost,
// so that any multiple of 8 rows is one contiguous copy. A tensor in two planes,
// x = hi + lo, has the panels of lo behind those of hi in every group. Rows and
// features that do not exist are zero.
//
// Every element is float16 (bfloat16 where a mode says so) after multiplication
// with a power of two that is chosen for each tile from its largest element:
// float16 then represents bfloat16 inputs exactly down to 2^-24 of that element.
#pragma once
#include <stdint.h>

constexpr int kGroupRows = 8;
constexpr int kPanel = 64;           // features of a panel
constexpr int kPanelBytes = 1024;    // of one group

// TileInfo describes a tile of K and the tile of V beside it, or a tile of Q.
struct TileInfo {
    float scale;  // of K (or Q): a packed element is the true one times 1/scale
    float norm;   // largest Euclidean norm of a row of K (or Q), true units
    float unit;   // of V: as scale
    float peak;   // largest finite |V|
};

// Head heads every KV head of a slot.
struct SlotHead {
    uint32_t special;  // not 0: something is not finite, or too large; only the wide kernel may touch it
    uint32_t pad[3];
};

// Pool says where slots lie. Offsets and strides are bytes.
struct Pool {
    uint64_t kv, query, partial;                 // addresses
    uint64_t kvSlot, kvHead, kvK, kvV, kvBlock, kvInfo;  // strides of slots and heads; K, V, a block of V, infos in a head
    uint64_t qSlot, qHead, qInfo, qAcc, qLow, qMax, qSum;  // strides; infos, accumulator, its low half, maxima, sums in a head
    uint64_t pSplit, pHead;                      // strides of partial states: of a split, of a query head
    float c;                                     // |scale| log2(e)
    int32_t dv;                                  // columns of the accumulator: Dv rounded up to 8
    int32_t rows;                                // rows of a query head, rounded up to a tile
    int32_t group;                               // query heads that share a KV head
    int32_t valueBlocks, columns;                // blocks of columns of V, each computed by itself, and columns of one
};

// Work is one query slot and its part of the refs.
struct Work {
    int32_t slot, rows, first, count;
};

// Ref is one KV slot: row i of the query chunk sees key j if j <= i + offset and
// j < keys. Full pairs have an offset of at least keys.
struct Ref {
    int32_t slot, keys, offset, pad;
};

// Batch is what one launch does. Works and refs follow it.
struct Batch {
    int32_t works, heads, splits, refs;  // heads: query heads

    __device__ const Work* work() const { return (const Work*)(this + 1); }
    __device__ const Ref* ref() const { return (const Ref*)(work() + works); }
};

// PackJob is rows of one tensor and head, from staging to a slot.
struct PackJob {
    uint64_t src, stride;            // address of the first row, bytes between rows
    uint64_t dst, block, info, head; // address of the tiles, bytes between blocks of columns; addresses of TileInfos and SlotHead (or 0)
    int32_t rows, width;             // rows that exist, elements of each
    int32_t type;                    // 0 float32, 1 float16, 2 bfloat16
    int32_t tileRows, panels, planes, blocks;  // of a tile: rows, panels of all blocks together
    int32_t step;                    // exponents are multiples of it; 0: elements are not scaled
    int32_t values;                  // whether this is V
    float sign;                      // +1 or -1
};

// KernelInfo is what the host must know of an attention kernel: rows of a tile of
// Q, keys of a tile, features of Q and K, columns of a block of V, planes, whether
// sums have a low half, threads of a block, its dynamic shared memory in bytes,
// and the exponent that weights carry.
struct KernelInfo {
    int32_t rows, keys, features, columns, planes, two, threads, shared;
    float offset;
};
