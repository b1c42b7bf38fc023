// How chunks lie in device memory, and what a launch is told.
//
// Rows of Q, K and V are packed once, when they arrive, into the form in which
// the tensor cores read them from shared memory:
//
//   [tile of rows][panel of 64 features][plane][row of the tile][128 bytes, swizzled]
//
// The 16-byte piece p of row r lies at p ^ r % 8 (the 128-byte swizzle of wgmma,
// which makes ldmatrix free of bank conflicts too). A tile is one contiguous copy, and so
// are any panels of it. A tensor has one plane, or two: x = hi + lo. Rows and
// features that do not exist are zero. Of float32 Q and K, two float16 planes hold 22
// bits; the rest, times 2^20, is kept apart in a third, for scores in float64.
//
// Every element is float16 after multiplication with a power of two that is chosen
// for each tile from its largest element: float16 then represents bfloat16 inputs
// exactly down to 2^-24 of that element. A tile for which that does not do (pack.cu
// says which) is raw: its elements are as they were, float32 ones with the upper half
// of their bits in the first plane and the lower half in the second. Such tiles are for
// the wide kernel.
#pragma once
#include <stdint.h>

constexpr int kPanel = 64;      // features of a panel
constexpr int kRowBytes = 128;  // of a panel
constexpr int kGroup = 8;       // rows after which the swizzle repeats
constexpr int kGroupBytes = kGroup * kRowBytes;

// pieceAt is where the piece of a column is, in a tile of so many rows and planes.
__device__ __forceinline__ int pieceAt(int rows, int planes, int plane, int row, int column) {
    return ((column / kPanel * planes + plane) * rows + row) * kRowBytes + (column / 8 % 8 ^ row % kGroup) * 16;
}

// TileInfo describes a tile of K and the tile of V beside it, or a tile of Q.
struct TileInfo {
    float scale;  // of K (or Q): a packed element is the true one times 1/scale; kRaw of a raw tile
    float norm;   // largest Euclidean norm of a row of K (or Q), true units; infinite if the tile is raw
    float unit;   // of V: as scale
    float peak;   // largest |V|; infinite if the tile is raw
};

constexpr float kRaw = 0.f;

// Pool says where slots lie. Offsets and strides are bytes.
struct Pool {
    uint64_t kv, query, partial;                 // addresses
    uint64_t kvSlot, kvHead, kvK, kvV, kvInfo, kvRest;   // strides of slots and heads; K, V, infos, the rest of K in a head
    uint64_t qSlot, qHead, qInfo, qRest, qAcc, qLow, qMax, qSum;  // strides; infos, the rest of Q, accumulator, its low half, maxima, sums in a head
    uint64_t pSplit, pHead;                      // strides of partial states: of a split, of a query head
    double exactC;                               // |scale| log2(e)
    float c;                                     // the same
    float offset;                                // exponent that weights and sums carry
    float steep;                                 // largest bound on scores, in units of log2, that float32 scores are good enough for
    int32_t dv;                                  // columns of the accumulator: Dv rounded up to 8
    int32_t rows;                                // rows of a query head, rounded up to a tile
    int32_t group;                               // query heads that share a KV head
    int32_t tileRows, tileKeys;                  // of a tile
    int32_t features, columns, planes;           // of Q and K, and of V, as packed; of all three
    int32_t type;                                // of inputs: 0 float32, 1 float16, 2 bfloat16
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
    int32_t wide;                        // set by an attention kernel that left tiles for the wide kernel; 0 before
    int32_t pad;
    uint64_t counts;                     // address of how many pairs each warp of the wide kernel has computed, 64 bits each

    __device__ const Work* work() const { return (const Work*)(this + 1); }
    __device__ const Ref* ref() const { return (const Ref*)(work() + works); }
};

// PackJob is rows of one tensor and head, from staging to a slot.
struct PackJob {
    uint64_t src, stride;            // address of the first row, bytes between rows
    uint64_t dst, info;              // addresses of the tiles and of the TileInfos
    uint64_t rest;                   // address of what two planes leave of float32 elements; 0: not kept
    int32_t rows, width;             // rows that exist, elements of each
    int32_t type;                    // 0 float32, 1 float16, 2 bfloat16
    int32_t tileRows, panels, planes;  // of a tile
    int32_t step;                    // exponents are multiples of it
    int32_t values;                  // whether this is V
    float sign;                      // +1 or -1
    float least;                     // of V: the largest element of any column, beside that of the tile, which planes do for
};

// KernelInfo is what the host must know of an attention kernel: rows of a tile of Q,
// keys of a tile, features of Q and K, columns of V, planes, whether sums have a low
// half, threads of a block, its dynamic shared memory in bytes, and the exponent that
// weights carry.
struct KernelInfo {
    int32_t rows, keys, features, columns, planes, two, threads, shared;
    float offset;
};
