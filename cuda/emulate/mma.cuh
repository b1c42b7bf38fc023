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

}  // namespace emulate

inline void product(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    struct { float* d; const uint32_t* a; uint32_t b[2]; } mine = {d, a, {b0, b1}};
    emulate::together(mine, [](auto** lanes) {
        float A[16][16], B[8][16];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 2; i++) {
                for (int part = 0; part < 4; part++) A[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = emulate::half(lanes[lane]->a[part], i);
                for (int part = 0; part < 2; part++) B[g][2 * t + part * 8 + i] = emulate::half(lanes[lane]->b[part], i);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                double sum = lanes[lane]->d[i];
                for (int k = 0; k < 16; k++) sum += (double)A[g + i / 2 * 8][k] * B[2 * t + i % 2][k];
                lanes[lane]->d[i] = emulate::cut(sum);
            }
        }
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
