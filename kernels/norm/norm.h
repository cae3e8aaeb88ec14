// RMSNorm of one row (docs/lfm2.md, equation 2), shared by every kernel that normalises: norm, step_begin, route,
// combine.
//
// They must agree to the bit, so the sum of squares has one tree, fixed by the row's length alone. A row is cut into
// segments of 256 values. A segment is one warp's work: lane l holds values 8 l .. 8 l + 7 (one 16-byte load), adds
// their squares in ascending order by fused multiply-adds, and the lanes meet in warp_sum's butterfly. The segments'
// sums are added in ascending order, starting from the first. So one warp may walk a whole row (row_norm), or the warps
// of a block may share its segments through shared memory (segment_squares, then total_squares): the bits are the same.
//
// Rows have ld(H) values, padding zero, so sums run over whole chunks; weights have H and are read no further.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "hrk.h"

namespace hrk
{

enum {
    NORM_CHUNK = 8,            // values of a lane in a segment: 16 bytes
    NORM_SEGMENT = 256,        // values of a warp
    NORM_SEGMENTS_IN_HAND = 8, // row_norm keeps rows of up to 2,048 values in registers
    NORM_SEGMENTS_MAX = 64     // rows of up to 16,384 values
};

__host__ __device__ __forceinline__ uint32_t norm_segments(uint32_t H)
{
    return (H + NORM_SEGMENT - 1) / NORM_SEGMENT;
}

// The eight values of a 16-byte chunk.
__device__ __forceinline__ void unpack_chunk(const uint4 &chunk, float (&v)[NORM_CHUNK])
{
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ uint4 pack_chunk(const float (&v)[NORM_CHUNK])
{
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// Sum of the squares of a segment, by a full warp; every lane gets it. Lanes past the row's end bring a zero chunk.
__device__ __forceinline__ float segment_squares(const uint4 &chunk)
{
    float v[NORM_CHUNK], sum = 0.0f;

    unpack_chunk(chunk, v);
#pragma unroll
    for (int i = 0; i < NORM_CHUNK; i++)
        sum = fmaf(v[i], v[i], sum);
    return prim::warp_sum(sum);
}

// The row's sum from those of its segments.
__device__ __forceinline__ float total_squares(const float *segments, uint32_t n)
{
    float sum = segments[0];

    for (uint32_t i = 1; i < n; i++)
        sum += segments[i];
    return sum;
}

// 1 / sqrt(mean square + eps), correctly rounded steps.
__device__ __forceinline__ float norm_scale(float squares, uint32_t H, float eps)
{
    return 1.0f / sqrtf(squares / (float)H + eps);
}

// Values [first, first + 8) of the normalised row: bf16(x scale), times weight, bf16; zero from H on.
__device__ __forceinline__ uint4 norm_chunk(const uint4 &chunk, float scale, const float *weight, uint32_t first,
                                            uint32_t H)
{
    float v[NORM_CHUNK], w[NORM_CHUNK];

    unpack_chunk(chunk, v);
    if (first + NORM_CHUNK <= H) {
        const float4 low = *reinterpret_cast<const float4 *>(weight + first);
        const float4 high = *reinterpret_cast<const float4 *>(weight + first + 4);

        w[0] = low.x, w[1] = low.y, w[2] = low.z, w[3] = low.w;
        w[4] = high.x, w[5] = high.y, w[6] = high.z, w[7] = high.w;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < NORM_CHUNK; i++)
            w[i] = first + i < H ? weight[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < NORM_CHUNK; i++)
        v[i] = round_bf16(v[i] * scale) * w[i];
    return pack_chunk(v);
}

// A lane's chunk of segment s of a row of ld(H) values; zeros past the end.
__device__ __forceinline__ uint4 row_chunk(const hrk_bf16 *row, uint32_t s, uint32_t lane, uint32_t H)
{
    uint32_t first = s * NORM_SEGMENT + lane * NORM_CHUNK;

    return first < hrk_ld(H) ? *reinterpret_cast<const uint4 *>(row + first) : make_uint4(0, 0, 0, 0);
}

// One warp normalises one row of at most NORM_SEGMENTS_IN_HAND segments that it already holds: chunk[s] is
// row_chunk(x, s, lane, H). Writes all ld(H) values of out.
__device__ __forceinline__ void row_norm_in_hand(const uint4 (&chunk)[NORM_SEGMENTS_IN_HAND], const float *weight,
                                                 uint32_t H, float eps, hrk_bf16 *out, uint32_t lane)
{
    const uint32_t n = norm_segments(H);
    float sum = segment_squares(chunk[0]);

#pragma unroll
    for (uint32_t s = 1; s < NORM_SEGMENTS_IN_HAND; s++) {
        if (s < n)
            sum += segment_squares(chunk[s]);
    }
    const float scale = norm_scale(sum, H, eps);
#pragma unroll
    for (uint32_t s = 0; s < NORM_SEGMENTS_IN_HAND; s++) {
        uint32_t first = s * NORM_SEGMENT + lane * NORM_CHUNK;

        if (first < hrk_ld(H))
            *reinterpret_cast<uint4 *>(out + first) = norm_chunk(chunk[s], scale, weight, first, H);
    }
}

// One full warp normalises one row of any length. A longer row than fits the registers is read twice.
__device__ __forceinline__ void row_norm(const hrk_bf16 *x, const float *weight, uint32_t H, float eps, hrk_bf16 *out,
                                         uint32_t lane)
{
    const uint32_t n = norm_segments(H);

    if (n <= NORM_SEGMENTS_IN_HAND) {
        uint4 chunk[NORM_SEGMENTS_IN_HAND];
#pragma unroll
        for (uint32_t s = 0; s < NORM_SEGMENTS_IN_HAND; s++)
            chunk[s] = row_chunk(x, s, lane, H);
        row_norm_in_hand(chunk, weight, H, eps, out, lane);
        return;
    }
    float sum = segment_squares(row_chunk(x, 0, lane, H));
    for (uint32_t s = 1; s < n; s++)
        sum += segment_squares(row_chunk(x, s, lane, H));
    const float scale = norm_scale(sum, H, eps);
    for (uint32_t s = 0; s < n; s++) {
        uint32_t first = s * NORM_SEGMENT + lane * NORM_CHUNK;

        if (first < hrk_ld(H))
            *reinterpret_cast<uint4 *>(out + first) = norm_chunk(row_chunk(x, s, lane, H), scale, weight, first, H);
    }
}

} // namespace hrk
