// Roundings and swizzles that every kernel shares.
#pragma once

#include "common/cuda_compat.h"
#include "hrk.h"

namespace hrk {

__device__ __forceinline__ float to_f32(hrk_bf16 b)
{
    return __uint_as_float((uint32_t)b << 16);
}
// Nearest, ties to even.
__device__ __forceinline__ hrk_bf16 to_bf16(float f)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
__device__ __forceinline__ float round_bf16(float f)
{
    return to_f32(to_bf16(f));
}
// Two values in one register, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    return (uint32_t)to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}
// Byte offset of byte `at` of row `row` in a tile of 128-byte rows with the 128-byte swizzle.
__host__ __device__ __forceinline__ uint32_t swizzle128(uint32_t row, uint32_t at)
{
    return row * 128 + (at ^ (row & 7) << 4);
}

} // namespace hrk
