// ../mma.cuh, emulated.
#pragma once
#include "emulate.h"
#include "ptx.cuh"

namespace emulate {

// cut rounds toward zero, as the sums of tensor cores are.
inline float cut(double x) {
    const float y = (float)x;
    return isfinite(y) && fabs((double)y) > fabs(x) ? nextafterf(y, 0.f) : y;
}

inline float half(uint32_t pair, int i) {
    float lo, hi;
    unpackHalves(pair, lo, hi);
    return i ? hi : lo;
}

// leftOperand unpacks what a thread has of A: 16 rows a warp.
inline void leftOperand(float (*A)[16], int thread, const uint32_t* a) {
    const int g = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
    for (int part = 0; part < 4; part++)
        for (int i = 0; i < 2; i++) A[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = half(a[part], i);
}

// multiply is D = A B or D += A B, where threads have D as products leave it.
template <int N, class Lanes>
void multiply(Lanes lanes, int threads, const float (*A)[16], const float (&B)[N][16]) {
    for (int thread = 0; thread < threads; thread++) {
        const int row = thread / 32 * 16 + thread % 32 / 4, column = 2 * (thread % 4);
        for (int i = 0; i < N / 2; i++) {
            const float *a = A[row + i / 2 % 2 * 8], *b = B[i / 4 * 8 + column + i % 2];
            double sum = lanes[thread]->accumulate ? lanes[thread]->d[i] : 0;
            for (int k = 0; k < 16; k++) sum += (double)a[k] * b[k];
            lanes[thread]->d[i] = cut(sum);
        }
    }
}

}  // namespace emulate

inline void product(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    struct { float* d; const uint32_t* a; uint32_t b[2]; int accumulate; } mine = {d, a, {b0, b1}, 1};
    emulate::together(mine, [](auto** lanes) {
        float A[16][16], B[8][16];
        for (int lane = 0; lane < 32; lane++) {
            emulate::leftOperand(A, lane, lanes[lane]->a);
            for (int part = 0; part < 2; part++)
                for (int i = 0; i < 2; i++) B[lane / 4][2 * (lane % 4) + part * 8 + i] = emulate::half(lanes[lane]->b[part], i);
        }
        emulate::multiply<8>(lanes, 32, A, B);
    });
}

inline void multiplyAdd(double (&c)[2], double a, double b) {
    struct { double *c, a, b; } mine = {c, a, b};
    emulate::together(mine, [](auto** lanes) {
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < 4; k++) lanes[lane]->c[i] = fma(lanes[4 * g + k]->a, lanes[4 * (2 * t + i) + k]->b, lanes[lane]->c[i]);
        }
    });
}

namespace emulate {

// loadFour is both kinds of ldmatrix.
inline void loadFour(uint32_t (&r)[4], uint32_t address, bool transposed) {
    struct { uint32_t* r; const uint16_t* row; } mine = {r, (const uint16_t*)(shared + address)};
    together(mine, [transposed](auto** lanes) {
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                auto at = [&](int row, int column) { return (uint32_t)lanes[8 * i + row]->row[column]; };
                lanes[lane]->r[i] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
            }
        }
    });
}

}  // namespace emulate

inline void loadMatrices(uint32_t (&r)[4], uint32_t address) { emulate::loadFour(r, address, false); }
inline void loadTransposed(uint32_t (&r)[4], uint32_t address) { emulate::loadFour(r, address, true); }

inline void copyPiece(uint32_t to, const void* from) { memcpy(emulate::shared + to, from, 16); }
inline void copiesWait() {}
