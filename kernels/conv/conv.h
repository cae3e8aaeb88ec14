// The arithmetic of the short convolution (docs/lfm2.md, equations 5 to 7), shared by the fused and the unfused kernel
// so that both give the same bits.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "hrk.h"

namespace hrk
{

// Equation 5: u = bf16(B X).
__device__ __forceinline__ float conv_input(float b, float x)
{
    return round_bf16(b * x);
}

// Equation 6 for one channel: u[0] is the oldest column, u[L - 1] the row's own. The first product, then fused
// multiply-adds in ascending order, then the bias; fp32.
template <int L> __device__ __forceinline__ float conv_sum(const float (&taps)[L], const float (&u)[L], float bias)
{
    float sum = taps[0] * u[0];
#pragma unroll
    for (int j = 1; j < L; j++)
        sum = fmaf(taps[j], u[j], sum);
    return sum + bias;
}

// The gate of equation 7: y = C bf16(conv), to be rounded by the caller.
__device__ __forceinline__ float conv_gate(float c, float sum)
{
    return c * round_bf16(sum);
}

} // namespace hrk
