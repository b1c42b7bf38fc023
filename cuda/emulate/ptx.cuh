// ../ptx.cuh, emulated.
#pragma once
#include "emulate.h"

inline uint32_t sharedAddress(const void* p) { return (uint32_t)((const uint8_t*)p - emulate::shared); }
inline float exp2Approx(float x) { return exp2f(x); }

inline uint32_t packHalves(float lo, float hi) {
    const _Float16 h[2] = {(_Float16)lo, (_Float16)hi};
    uint32_t r;
    memcpy(&r, h, 4);
    return r;
}
inline void unpackHalves(uint32_t r, float& lo, float& hi) {
    _Float16 h[2];
    memcpy(h, &r, 4);
    lo = (float)h[0], hi = (float)h[1];
}
// brain rounds to bfloat16, to nearest, ties to even.
inline uint32_t brain(float x) {
    const uint32_t u = __float_as_uint(x);
    if (isnan(x)) return u >> 16 | 0x40;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline uint32_t packBrainHalves(float lo, float hi) { return brain(lo) | brain(hi) << 16; }
inline void unpackBrainHalves(uint32_t r, float& lo, float& hi) { lo = __uint_as_float(r << 16), hi = __uint_as_float(r & 0xffff0000u); }
