// ../hopper.cuh, emulated: what is asynchronous there is done at once.
#pragma once
#include "ptx.cuh"

struct Barrier {
    int16_t expected, arrived;
    int32_t bytes : 31;  // announced, and not there
    uint32_t phase : 1;

    void init(int arrivals) { expected = (int16_t)arrivals, arrived = 0, bytes = 0, phase = 0; }
    void arrive() { arrived++, turn(); }
    void arriveExpecting(uint32_t n) { bytes += n, arrive(); }
    void come(uint32_t n) { bytes -= n, turn(); }
    void wait(uint32_t parity) const {
        while (phase == parity) emulate::yield();
    }
    void turn() {
        if (arrived == expected && bytes == 0) arrived = 0, phase ^= 1;
    }
};

inline void fenceBarrierInit() {}
inline void bulkCopy(void* to, const void* from, uint32_t bytes, Barrier* b) {
    memcpy(to, from, bytes);
    b->come(bytes);
}

template <int N> void giveRegisters() {}
template <int N> void takeRegisters() {}
inline void productsBegin() {}
inline void productsCommit() {}
template <int N> void productsWait() {}
template <class T, int N> void pin(T (&)[N]) {}

inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)(address >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32;
}
inline uint64_t moved(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

inline void turnGive(int id) {
    emulate::Meeting& m = emulate::turns[id];
    if (++m.arrived == 256) m.arrived = 0, m.held++;
}
inline void turnWait(int id) {
    const emulate::Meeting& m = emulate::turns[id];
    const uint64_t now = m.held;
    turnGive(id);
    while (m.held == now) emulate::yield();
}
