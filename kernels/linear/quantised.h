// Quantised tiles (hrk.h): where the bits of a slice lie, and how a thread makes of them the bf16 fragments of wgmma's
// operand A.
//
// A slice is what one warp of a consumer multiplies: 16 rows x 64 columns. Fragment register r (0 .. 3) of lane l for
// columns 16 q .. holds two values of row l / 4 + 8 (r & 1), at columns 16 q + 2 (l % 4) + 8 (r >> 1) and the next. The
// bits are stored lane by lane in that order, so a lane reads whole words, side by side with its neighbours':
//
//   0     64 bytes: scales. Eight bytes for lanes 4 i .. 4 i + 3: four for row i, four for row i + 8:
//         Q4_0, Q8_0: the fp16 scales of columns 0 .. 31 and 32 .. 63; Q4_K, Q5_K: scale and minimum of 6 bits, one a
//         byte, of the first and of the second 32 columns; Q6_K: four scales of 8 bits, 128 added, of 16 columns each
//   64    512 bytes: for each lane four words, word q of columns 16 q ..: byte b of it has, in its low half, the low
//         four bits of value b, and in its high half those of value b + 4; values in the order of the registers.
//         Q8_0: two such sections, of two words a step: eight bits a value, 128 added; values 0 .. 3, then 4 .. 7
//   576   Q5_K: a word a lane: bit 8 b + 2 q + h is the fifth bit of value 4 h + b of step q
//         Q6_K: two words a lane, of steps 0, 1 and 2, 3: bits 8 b + 4 (q % 2) + 2 h and the next are its upper bits
//   end   the head, in every fourth block: Q4_K, Q5_K: fp16 d and dmin of row i, then of row i + 8, 8 bytes for four
//         lanes; Q6_K: fp16 d of both, 4 bytes
//
// A value is step u - offset in fp32, where u is the stored integer less its bias, rounded once, then rounded to bf16.
// The product is exact (at most 11 bits of d, 7 of a scale, 5 of u), so fmaf gives what the format's definition gives
// with two roundings (csrc/format/dtype.c): the sum's. Q4_0, Q8_0 and Q6_K subtract nothing, which fmaf does as -0.
// Integers become floats as bits of 2^23 + u, less 2^23 + bias: no conversion instruction, of which there are few a
// clock.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "hrk.h"

namespace hrk
{
namespace quantised
{

enum { SLICE_ROWS = 16, SCALE_BYTES = 64, LOW_BYTES = 512, SLICE_MAX = 64 + 1024 /* Q8_0, the largest of any block */ };

__host__ __device__ __forceinline__ uint32_t bias_of(hrk_layout layout)
{
    switch (layout) {
    case HRK_TILED_Q4_0:
        return 8;
    case HRK_TILED_Q8_0:
        return 128;
    case HRK_TILED_Q6_K:
        return 32;
    default:
        return 0;
    }
}
// Bytes of a slice of column block k.
__host__ __device__ __forceinline__ uint32_t slice_bytes(const hrk_slice &s, uint32_t k)
{
    return s.bytes + (k % 4 == 0 ? s.head : 0);
}
// Where column block k of a strip begins, all groups' slices counted.
__host__ __device__ __forceinline__ size_t block_offset(const hrk_slice &s, uint32_t k, uint32_t n_groups)
{
    return ((size_t)k * s.bytes + (size_t)((k + 3) / 4) * s.head) * 4 * n_groups;
}
__host__ __device__ __forceinline__ size_t strip_bytes(const hrk_slice &s, uint32_t k_blocks, uint32_t n_groups)
{
    return block_offset(s, k_blocks, n_groups);
}

__device__ __forceinline__ float half_value(uint32_t bits)
{
    return __half2float(__ushort_as_half((unsigned short)bits));
}
// Byte `at` of `word` plus 2^23, in fp32: exact.
__device__ __forceinline__ float raised_byte(uint32_t word, uint32_t at)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + at));
}
enum { RAISED = 1 << 23 };

// What a lane knows of the 256 columns at hand: fp16 d and dmin of its upper and its lower row.
struct Head {
    uint32_t row[2];
};
// What it needs of one slice.
struct Fragments {
    uint32_t bytes[8]; // of step q: values 0 .. 3 in word 2 q, 4 .. 7 in the next
    uint32_t scales[2];
};

__device__ __forceinline__ void read_head(hrk_layout layout, const unsigned char *slice, uint32_t lane, Head *head)
{
    if (layout == HRK_TILED_Q6_K) {
        const uint32_t both = *reinterpret_cast<const uint32_t *>(slice + 832 + lane / 4 * 4);

        head->row[0] = both & 0xffff;
        head->row[1] = both >> 16;
    } else if (layout == HRK_TILED_Q4_K || layout == HRK_TILED_Q5_K) {
        const uint2 rows =
            *reinterpret_cast<const uint2 *>(slice + (layout == HRK_TILED_Q4_K ? 576 : 704) + lane / 4 * 8);

        head->row[0] = rows.x;
        head->row[1] = rows.y;
    }
}

__device__ __forceinline__ void read_slice(hrk_layout layout, const unsigned char *slice, uint32_t lane, Fragments *f)
{
    const uint2 scales = *reinterpret_cast<const uint2 *>(slice + lane / 4 * 8);
    const uint4 low = *reinterpret_cast<const uint4 *>(slice + SCALE_BYTES + lane * 16);
    const unsigned char *more = slice + SCALE_BYTES + LOW_BYTES;
    const uint32_t words[4] = {low.x, low.y, low.z, low.w};

    f->scales[0] = scales.x;
    f->scales[1] = scales.y;
    if (layout == HRK_TILED_Q8_0) {
        const uint4 rest = *reinterpret_cast<const uint4 *>(more + lane * 16);

        f->bytes[0] = low.x, f->bytes[1] = low.y, f->bytes[2] = low.z, f->bytes[3] = low.w;
        f->bytes[4] = rest.x, f->bytes[5] = rest.y, f->bytes[6] = rest.z, f->bytes[7] = rest.w;
        return;
    }
#pragma unroll
    for (int q = 0; q < 4; q++) {
        f->bytes[2 * q] = words[q] & 0x0f0f0f0fu;
        f->bytes[2 * q + 1] = words[q] >> 4 & 0x0f0f0f0fu;
    }
    if (layout == HRK_TILED_Q5_K) {
        const uint32_t high = *reinterpret_cast<const uint32_t *>(more + lane * 4);

#pragma unroll
        for (int i = 0; i < 8; i++)
            f->bytes[i] |= (i < 4 ? high << (4 - i) : high >> (i - 4)) & 0x10101010u;
    }
    if (layout == HRK_TILED_Q6_K) {
        const uint2 high = *reinterpret_cast<const uint2 *>(more + lane * 8);

#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t word = i < 4 ? high.x : high.y;

            f->bytes[i] |= (i % 4 < 2 ? word << (4 - 2 * (i % 4)) : word >> (2 * (i % 4) - 4)) & 0x30303030u;
        }
    }
}

// Step and offset of one row for columns 16 q .. 16 q + 15.
__device__ __forceinline__ void read_scale(hrk_layout layout, uint32_t scales, uint32_t head, int q, float *step,
                                           float *offset)
{
    *offset = 0.0f;
    if (layout == HRK_TILED_Q4_K || layout == HRK_TILED_Q5_K) {
        *step = half_value(head & 0xffff) * (raised_byte(scales, q / 2 * 2) - RAISED);
        *offset = half_value(head >> 16) * (raised_byte(scales, q / 2 * 2 + 1) - RAISED);
    } else if (layout == HRK_TILED_Q6_K) {
        *step = half_value(head) * (raised_byte(scales, q) - (RAISED + 128));
    } else {
        *step = half_value(q < 2 ? scales & 0xffff : scales >> 16);
    }
}

// A for columns 16 q .. of the slice.
__device__ __forceinline__ void expand(hrk_layout layout, const Fragments &f, const Head &head, int q, uint32_t (&a)[4])
{
    const float raised = (float)(RAISED + bias_of(layout));
    float step[2], offset[2];

#pragma unroll
    for (int row = 0; row < 2; row++)
        read_scale(layout, f.scales[row], head.row[row], q, &step[row], &offset[row]);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t word = f.bytes[2 * q + r / 2], at = r % 2 * 2;
        const float even = raised_byte(word, at) - raised, odd = raised_byte(word, at + 1) - raised;

        a[r] = pack_bf16(fmaf(step[r % 2], even, -offset[r % 2]), fmaf(step[r % 2], odd, -offset[r % 2]));
    }
}

} // namespace quantised
} // namespace hrk
