// From scores to weights, in the registers in which the tensor cores leave scores
// and want weights: of every 16 rows a thread has two, row and row + 8, and of
// each 8 columns of both it has two neighbours.
#pragma once
#include "item.cuh"
#include "ptx.cuh"
#include "state.cuh"

constexpr float kRoom = 100.f;   // exponents of weights that a tile may reach without a look at its maximum

// Weights are 2^(s c - m + kOffset), kept below kLimit; where they leave it they are
// brought back below kTarget.
constexpr float kOffset = 10.f, kLimit = 32768.f, kTarget = 1024.f;

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
__device__ __forceinline__ bool risky(const Softmax& z, float bound) {
    return !(bound + z.b0 <= kRoom + kOffset) || !(bound + z.b1 <= kRoom + kOffset);
}

// raise moves the references up to the maxima of the scores, and gives the factors
// for sums so far.
template <int N>
__device__ __forceinline__ void raise(const float (&S)[N], Softmax& z, float c, float& f0, float& f1) {
    float a0 = S[0], a1 = S[2];
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        a0 = fmaxf(a0, fmaxf(S[4 * i], S[4 * i + 1]));
        a1 = fmaxf(a1, fmaxf(S[4 * i + 2], S[4 * i + 3]));
    }
    const float b0 = fminf(z.b0, kOffset - ceilf(quadMax(a0) * c));
    const float b1 = fminf(z.b1, kOffset - ceilf(quadMax(a1) * c));
    f0 = exp2f(b0 - z.b0), f1 = exp2f(b1 - z.b1);
    z.b0 = b0, z.b1 = b1;
    z.l0 *= f0, z.l1 *= f1;
}

// lower moves the references up where the sum t of a tile's weights says that some
// may not fit their type. NaN stays where it is.
template <int N>
__device__ __forceinline__ void lower(float (&S)[N], Softmax& z, float& t0, float& t1, float& f0, float& f1) {
    const float u0 = quadMax(t0) / kTarget, u1 = quadMax(t1) / kTarget;
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

// exponentials turns scores into weights and adds them to t0 and t1.
template <int N>
__device__ __forceinline__ void exponentials(float (&S)[N], const Softmax& z, float c, float& t0, float& t1) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        S[4 * i] = exp2Approx(fmaf(S[4 * i], c, z.b0));
        S[4 * i + 1] = exp2Approx(fmaf(S[4 * i + 1], c, z.b0));
        S[4 * i + 2] = exp2Approx(fmaf(S[4 * i + 2], c, z.b1));
        S[4 * i + 3] = exp2Approx(fmaf(S[4 * i + 3], c, z.b1));
        t0 += S[4 * i] + S[4 * i + 1];
        t1 += S[4 * i + 2] + S[4 * i + 3];
    }
}

// overflows says whether some weight of a tile, whose sums are t0 and t1, may not
// fit float16. NaN counts.
__device__ __forceinline__ bool overflows(float t0, float t1) { return !(t0 <= kLimit) || !(t1 <= kLimit); }

// weigh turns the scores of a tile into weights that fit float16. It reports whether
// sums so far must be multiplied by f0 and f1.
template <int N>
__device__ __forceinline__ bool weigh(float (&S)[N], Softmax& z, float c, float& f0, float& f1) {
    float t0 = 0, t1 = 0;
    exponentials(S, z, c, t0, t1);
    const bool over = __any_sync(~0u, overflows(t0, t1));
    if (__builtin_expect(over, 0)) lower(S, z, t0, t1, f0, f1);
    z.l0 += t0, z.l1 += t1;
    return over;
}

// narrow rounds weights to float16, and what that loses to a second plane.
template <int N, int NL>
__device__ __forceinline__ void narrow(const float (&S)[N], uint32_t (&P)[N / 2], uint32_t (&L)[NL]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        P[i] = packHalves(S[2 * i], S[2 * i + 1]);
        if constexpr (NL > 1) {
            float x, y;
            unpackHalves(P[i], x, y);
            L[i] = packHalves(S[2 * i] - x, S[2 * i + 1] - y);
        }
    }
}

template <int N>
__device__ __forceinline__ void scaleRows(float (&O)[N], float f0, float f1) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) O[4 * i] *= f0, O[4 * i + 1] *= f0, O[4 * i + 2] *= f1, O[4 * i + 3] *= f1;
}

// far says whether sums can't be brought from one unit to another: they might leave the
// range of float32, or rows that a tile masks might lose theirs. Sums stay below 2^50.
__device__ __forceinline__ bool far(float from, float to) {
    const float change = from / to;
    return !(change < 0x1p64f && change > 0x1p-64f);
}

// addRows adds the sums of a thread's two rows, row and row + 8, to a state; those
// of a quad are columns of the same rows. x is in the given unit. Where the target
// is fresh, what is there counts for nothing.
template <bool Two, int N>
__device__ __forceinline__ void addRows(const State<Two>& to, int row, int column, const float (&x)[N], float unit, const Softmax& z, bool fresh) {
    const float l[2] = {quadSum(z.l0), quadSum(z.l1)};
    const float m[2] = {z.b0 == kNothing ? kNoKey : kOffset - z.b0, z.b1 == kNothing ? kNoKey : kOffset - z.b1};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const double old = fresh ? kNoKey : to.m[row + 8 * h];
        const Rebase r(old, m[h]);
        const bool was = old != kNoKey;
        float2 pairs[N / 4];
#pragma unroll
        for (int i = 0; i < N / 4; i++) pairs[i] = {x[4 * i + 2 * h], x[4 * i + 2 * h + 1]};
        to.addColumns(row + 8 * h, column, pairs, r.f1 * unit * (float)(1 / kUnit), r, was);
        __syncwarp();
        if ((threadIdx.x & 3) == 0) to.addSum(row + 8 * h, l[h] * r.f1, r, was);
        __syncwarp();
    }
}
