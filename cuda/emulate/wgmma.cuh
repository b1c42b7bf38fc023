// ../wgmma.cuh, emulated.
#pragma once
#include "mma.cuh"

namespace emulate {

// Matrix reads a matrix in shared memory, as its descriptor says.
struct Matrix {
    uint32_t start, leading, stride;

    explicit Matrix(uint64_t d) : start((d & 0x3fff) << 4), leading((d >> 16 & 0x3fff) << 4), stride((d >> 32 & 0x3fff) << 4) {}

    // along is element (row, i) where the depth i lies along rows, and across where
    // rows are along the depth.
    float along(int row, int i) const { return at(start + row / 8 * stride + row % 8 * 128 + i * 2); }
    float across(int row, int i) const { return at(start + i / 8 * stride + i % 8 * 128 + row / 64 * leading + row % 64 * 2); }

    static float at(uint32_t address) {
        _Float16 x;
        memcpy(&x, shared + (address ^ (address >> 7 & 7) << 4), 2);
        return (float)x;
    }
};

}  // namespace emulate

template <int N>
struct ScoresProduct {
    static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
        struct { float* d; uint64_t a, b; int accumulate; } mine = {d, a, b, accumulate};
        emulate::together(mine, *emulate::self->group, 128, [](auto** lanes) {
            const emulate::Matrix q(lanes[0]->a), k(lanes[0]->b);
            float A[64][16], B[N][16];
            for (int i = 0; i < 16; i++) {
                for (int row = 0; row < 64; row++) A[row][i] = q.along(row, i);
                for (int row = 0; row < N; row++) B[row][i] = k.along(row, i);
            }
            emulate::multiply<N>(lanes, 128, A, B);
        });
    }
};

template <int N>
struct ValuesProduct {
    static void run(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int accumulate) {
        struct { float* d; uint32_t a[4]; uint64_t b; int accumulate; } mine = {d, {a0, a1, a2, a3}, b, accumulate};
        emulate::together(mine, *emulate::self->group, 128, [](auto** lanes) {
            const emulate::Matrix v(lanes[0]->b);
            float A[64][16], B[N][16];
            for (int thread = 0; thread < 128; thread++) emulate::leftOperand(A, thread, lanes[thread]->a);
            for (int i = 0; i < 16; i++)
                for (int row = 0; row < N; row++) B[row][i] = v.across(row, i);
            emulate::multiply<N>(lanes, 128, A, B);
        });
    }
};
