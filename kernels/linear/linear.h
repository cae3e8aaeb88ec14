// The two families of matrix products behind hrk_linear, hrk_gate_up and hrk_down, and what both compute after the sum.
//
// linear.cu looks at the weights' layout: row-major goes to the mma.sync kernels (mma.cu, any architecture from sm_80),
// tiled to the wgmma kernels (sm_90a). Arguments and results are those of hrk.h. A function answers
// cudaErrorInvalidValue for what its family does not do.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "hrk.h"

namespace hrk
{

int linear_mma(const hrk_linear_args *args, const hrk_launch *on);
int gate_up_mma(const hrk_gate_up_args *args, const hrk_launch *on);
int down_mma(const hrk_down_args *args, const hrk_launch *on);

int linear_wgmma(const hrk_linear_args *args, const hrk_launch *on);
int gate_up_wgmma(const hrk_gate_up_args *args, const hrk_launch *on);
int down_wgmma(const hrk_down_args *args, const hrk_launch *on);

// Equation 15 for one value, from fp32 sums: gate and up rounded to bf16, silu rounded, product to be rounded by the
// caller. The quick exponential and division err by some 2^-21, next to a rounding of 2^-9, and save some 18
// instructions a value.
__device__ __forceinline__ float swiglu(float gate, float up)
{
    const float g = round_bf16(gate);

    return round_bf16(__fdividef(g, 1.0f + __expf(-g))) * round_bf16(up);
}

} // namespace hrk
