// The state of query rows: how a launch adds what it has summed.
//
// Of each row: acc[dv] and l in float32, and m in float64, an integer in units of
// log2 of any size, so that re-basing on another m multiplies by an exact power of
// two. Where results are float32, acc and l are sums of two floats, hi + low. acc and
// l carry the same power of two, that of the weights, and acc is in units of kUnit:
// so it has room for sums of the largest V. O = acc / l kUnit.
#pragma once
#include "layout.cuh"

#define kNoKey (-INFINITY)  // m of a row that has met no key
#define kUnit 16777216.     // 2^24

// addTo adds x to the sum hi + low without losing what hi can't hold (Knuth's two-sum).
// What is infinite or NaN is so in hi alone.
__device__ __forceinline__ void addTo(float& hi, float& low, float x) {
    const float s = hi + x, part = s - hi, lost = (hi - (s - part)) + (x - part);
    if (isfinite(lost)) low += lost;
    hi = s;
}

// Rebase says how sums relative to m0 and to m1 come together.
struct Rebase {
    double m;      // the common one
    float f0, f1;  // the factors of both sides

    __device__ __forceinline__ Rebase(double m0, double m1) {
        m = fmax(m0, m1);
        f0 = m0 == kNoKey ? 0.f : exp2f((float)(m0 - m));
        f1 = m1 == kNoKey ? 0.f : exp2f((float)(m1 - m));
    }
};

// State points at the state of consecutive rows of one head: acc is [row][dv], m
// and l are [row]. Two says whether sums have a low half.
template <bool Two>
struct State {
    float *acc, *low, *l;
    double* m;
    int dv, rows;  // columns of acc; rows between l and its low half

    __device__ __forceinline__ State(uint8_t* head, const Pool* p)
        : acc((float*)(head + p->qAcc)), low((float*)(head + p->qLow)), l((float*)(head + p->qSum)),
          m((double*)(head + p->qMax)), dv(p->dv), rows(p->rows) {}

    // addColumns adds f * x to columns first, first + 1, first + 8, first + 9, ... of a
    // row, as far as it goes: two of every 8, as fragments of products lie in a
    // thread. was: whether the row has a sum yet. Loads go before stores, many
    // at a time, lest each waits for the one before.
    template <int N>
    __device__ __forceinline__ void addColumns(int64_t row, int first, const float2 (&x)[N], float f, const Rebase& r, bool was) const {
        constexpr int many = N < 16 ? N : 16;
#pragma unroll
        for (int i0 = 0; i0 < N; i0 += many) {
            float2 hi[many], lo[many];
            float* at = acc + row * dv + first + 8 * i0;
            float* below = low + row * dv + first + 8 * i0;
            const int n = (dv - first - 8 * i0 + 7) / 8;  // pairs that exist
#pragma unroll
            for (int i = 0; i < many; i++) {
                hi[i] = lo[i] = {0.f, 0.f};
                if (!was || i >= n) continue;
                hi[i] = *(const float2*)(at + 8 * i);
                if constexpr (Two) lo[i] = *(const float2*)(below + 8 * i);
            }
#pragma unroll
            for (int i = 0; i < many; i++) {
                if (i >= n) continue;
                hi[i].x *= r.f0, hi[i].y *= r.f0;
                if constexpr (Two) {
                    lo[i].x *= r.f0, lo[i].y *= r.f0;
                    addTo(hi[i].x, lo[i].x, x[i0 + i].x * f);
                    addTo(hi[i].y, lo[i].y, x[i0 + i].y * f);
                    *(float2*)(below + 8 * i) = lo[i];
                } else {
                    hi[i].x = fmaf(x[i0 + i].x, f, hi[i].x), hi[i].y = fmaf(x[i0 + i].y, f, hi[i].y);
                }
                *(float2*)(at + 8 * i) = hi[i];
            }
        }
    }

    // addSum adds x to a row's l and sets its m: by one thread, after all have read m.
    __device__ __forceinline__ void addSum(int64_t row, float x, const Rebase& r, bool was) const {
        float hi = was ? l[row] * r.f0 : 0.f;
        if constexpr (Two) {
            float lo = was ? l[rows + row] * r.f0 : 0.f;
            addTo(hi, lo, x);
            l[rows + row] = lo;
        } else {
            hi += x;
        }
        l[row] = hi;
        m[row] = r.m;
    }
};
