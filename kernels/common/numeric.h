// Roundings and swizzles that every kernel shares.
#pragma once

#include "common/cuda_compat.h"
#include "hrk.h"
#include <string.h>

namespace hrk
{

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
// Two values in one register, the first in the low half; one instruction, which two conversions and an OR are not.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    uint32_t bits;

    memcpy(&bits, &both, sizeof bits);
    return bits;
}
// Byte offset of byte `at` of row `row` in a tile of 128-byte rows with the 128-byte swizzle.
__host__ __device__ __forceinline__ uint32_t swizzle128(uint32_t row, uint32_t at)
{
    return row * 128 + (at ^ (row & 7) << 4);
}

} // namespace hrk
