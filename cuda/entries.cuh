// The kernels of a unit of attention, and what each says of itself: included last, when
// the unit has its Configs, Shared and attend.
#pragma once
#include "layout.cuh"

#define ATTEND(name, C)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(C::threads, C::blocks) name(const Pool* pool, Batch* batch) { attend<C>(pool, batch); } \
    extern "C" __device__ const KernelInfo name##_info = {C::BM, C::BN, C::DK, C::columns, C::planes, C::two, C::threads, sizeof(Shared<C>) + C::slack, kOffset};

ATTEND(attend_half_64, Half64)
ATTEND(attend_half_128, Half128)
ATTEND(attend_half_192, Half192)
ATTEND(attend_half_256, Half256)
ATTEND(attend_split_64, Split64)
ATTEND(attend_split_128, Split128)
ATTEND(attend_split_192, Split192)
ATTEND(attend_split_256, Split256)
ATTEND(attend_triple_64, Triple64)
ATTEND(attend_triple_128, Triple128)
ATTEND(attend_triple_192, Triple192)
ATTEND(attend_triple_256, Triple256)
