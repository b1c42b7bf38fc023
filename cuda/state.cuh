// The state of query rows: how a launch adds what it has summed.
//
// Of each row: acc[dv], m, l in float32, with m an integer in units of log2, so
// that re-basing on another m multiplies by an exact power of two. Where results
// are float32, acc and l are sums of two floats, hi + low. acc and l carry the
// same power of two, that of the weights; O = acc / l.
#pragma once
#include "layout.cuh"

#define kNoKey (-INFINITY)  // m of a row that has met no key

// addTo adds x to the sum hi + low without losing what hi can't hold (Knuth's two-sum).
__device__ __forceinline__ void addTo(float& hi, float& low, float x) {
    float s = hi + x, part = s - hi;
    low += (hi - (s - part)) + (x - part);
    hi = s;
}

// Rebase says how sums relative to m0 and to m1 come together.
struct Rebase {
    float m, f0, f1;  // the common m, and the factors of both sides

    __device__ __forceinline__ Rebase(float m0, float m1) {
        m = fmaxf(m0, m1);
        f0 = m0 == kNoKey ? 0.f : exp2f(m0 - m);
        f1 = m1 == kNoKey ? 0.f : exp2f(m1 - m);
    }
};

// State points at the state of consecutive rows of one head: acc is [row][dv], m
// and l are [row]. Two says whether sums have a low half.
template <bool Two>
struct State {
    float *acc, *low, *m, *l;
    int dv, rows;  // columns of acc; rows between l and its low half

    __device__ __forceinline__ State(uint8_t* head, const Pool* p, int block)
        : acc((float*)(head + p->qAcc)), low((float*)(head + p->qLow)), m((float*)(head + p->qMax) + block * p->rows),
          l((float*)(head + p->qSum) + block * p->rows * (Two ? 2 : 1)), dv(p->dv), rows(p->rows) {}

    // add2 adds x0 and x1 to two columns of a row. was: whether the row has a sum yet.
    __device__ __forceinline__ void add2(int64_t row, int column, float x0, float x1, const Rebase& r, bool was) const {
        float2 hi = {0, 0}, lo = {0, 0};
        float2 *at = (float2*)(acc + row * dv + column), *below = (float2*)(low + row * dv + column);
        if (was) {
            hi = *at;
            hi.x *= r.f0, hi.y *= r.f0;
        }
        if constexpr (Two) {
            if (was) {
                lo = *below;
                lo.x *= r.f0, lo.y *= r.f0;
            }
            addTo(hi.x, lo.x, x0);
            addTo(hi.y, lo.y, x1);
            *below = lo;
        } else {
            hi.x += x0;
            hi.y += x1;
        }
        *at = hi;
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
