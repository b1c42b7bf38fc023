// What Ampere brought: matrix products of a warp, loads of their operands from
// shared memory, and copies into it that don't pass through registers. PTX ISA,
// sections on mma, ldmatrix and cp.async.
//
// Thread 4g+t of a warp has d[0..1] of row g and d[2..3] of row g+8, columns 2t and
// 2t+1, of a product of 16 rows and 8 columns.
#pragma once
#include "ptx.cuh"

// product adds A (16 rows, 16 deep) times B (16 deep, 8 columns), in float16, to d.
__device__ __forceinline__ void product(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// multiplyAdd is C += A B in float64, 8x8 by 8x8x4: lane 4g+t has A[g][t], B[t][g], and
// C[g][2t], C[g][2t+1].
__device__ __forceinline__ void multiplyAdd(double (&c)[2], double a, double b) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+d"(c[0]), "+d"(c[1]) : "d"(a), "d"(b));
}

// loadMatrices loads four matrices of 8 rows of 16 bytes; lane 8i+r gives the
// address of row r of matrix i. Thread 4g+t gets elements 2t and 2t+1 of row g.
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
// loadTransposed is loadMatrices, but thread 4g+t gets elements g of rows 2t and 2t+1.
__device__ __forceinline__ void loadTransposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

// copyPiece copies 16 bytes into shared memory, by L2 alone.
__device__ __forceinline__ void copyPiece(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// copiesWait returns when the thread's copies are in shared memory.
__device__ __forceinline__ void copiesWait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
