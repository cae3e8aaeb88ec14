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
// A value is scale x (integer - bias), or scale x integer - minimum, in fp32, rounded once, then rounded to bf16: what
// the format's definition says (csrc/format/dtype.c), up to the sign of zeros, which no sum sees. Few instructions a
// value matter, since some 160 a lane and slice would hide behind the memory, and 220 is what it takes. So an integer u
// becomes a float by one byte permutation, as 128 + u (or, of eight bits, 32,768 + u), and where there is no minimum
// one fmaf takes scale x (128 + bias) away again: that product has at most 21 bits (11 of an fp16, 7 of a Q6_K scale, 3
// of 160), and the result at most 23, so nothing is rounded. A minimum could not be joined to it exactly: there the 128
// goes first.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "hrk.h"

namespace hrk
{
namespace quantised
{

enum { SLICE_ROWS = 16, SCALE_BYTES = 64, LOW_BYTES = 512, SLICE_MAX = 64 + 1024 /* Q8_0, the largest of any block */ };

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
// Byte `at` of `word` in fp32.
__device__ __forceinline__ float byte_value(uint32_t word, uint32_t at)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + at)) - 8388608.0f;
}

// How values are made: one of them for a strip, chosen as the kernel runs.
enum Kind { FOUR_BITS, EIGHT_BITS, SIX_BITS, MINIMUM };
__device__ __forceinline__ Kind kind_of(hrk_layout layout)
{
    return layout == HRK_TILED_Q4_0   ? FOUR_BITS
           : layout == HRK_TILED_Q8_0 ? EIGHT_BITS
           : layout == HRK_TILED_Q6_K ? SIX_BITS
                                      : MINIMUM;
}

// What a lane knows of the 256 columns at hand: fp16 d and dmin of its upper and its lower row.
struct Head {
    uint32_t row[2];
};
// Of its two rows, for the columns at hand: values are step x raised - offset.
struct Scales {
    float step[2], offset[2];
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

template <int KIND> __device__ __forceinline__ void read_scales(const Fragments &f, const Head &head, int q, Scales *s)
{
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const uint32_t word = f.scales[row], d = head.row[row];

        if (KIND == MINIMUM) {
            s->step[row] = half_value(d & 0xffff) * byte_value(word, q / 2 * 2);
            s->offset[row] = half_value(d >> 16) * byte_value(word, q / 2 * 2 + 1);
        } else if (KIND == SIX_BITS) {
            s->step[row] = half_value(d) * (byte_value(word, q) - 128.0f);
            s->offset[row] = s->step[row] * (128.0f + 32.0f);
        } else {
            s->step[row] = half_value(q < 2 ? word & 0xffff : word >> 16);
            s->offset[row] = s->step[row] * (KIND == FOUR_BITS ? 128.0f + 8.0f : 32768.0f + 128.0f);
        }
    }
}

// Byte `at` of `word` plus 128, or 32,768: as the bits of a float. Six bits at most, or eight.
template <int KIND> __device__ __forceinline__ float raised(uint32_t word, uint32_t at)
{
    const float f = __uint_as_float(KIND == EIGHT_BITS ? __byte_perm(word, 0x47000000u, 0x7404u + (at << 4))
                                                       : __byte_perm(word, 0x43000000u, 0x7044u + (at << 8)));

    return KIND == MINIMUM ? f - 128.0f : f;
}

template <int KIND>
__device__ __forceinline__ void expand_as(const Fragments &f, const Head &head, int q, Scales *s, uint32_t (&a)[4])
{
    if (q % 2 == 0 || KIND == SIX_BITS)
        read_scales<KIND>(f, head, q, s);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t word = f.bytes[2 * q + r / 2], at = r % 2 * 2;
        const float step = s->step[r % 2], offset = s->offset[r % 2];

        a[r] = pack_bf16(fmaf(step, raised<KIND>(word, at), -offset), fmaf(step, raised<KIND>(word, at + 1), -offset));
    }
}

// A for columns 16 q .. of the slice; steps in rising order, since s is read for every second one only.
__device__ __forceinline__ void expand(Kind kind, const Fragments &f, const Head &head, int q, Scales *s,
                                       uint32_t (&a)[4])
{
    if (kind == MINIMUM)
        expand_as<MINIMUM>(f, head, q, s, a);
    else if (kind == SIX_BITS)
        expand_as<SIX_BITS>(f, head, q, s, a);
    else if (kind == FOUR_BITS)
        expand_as<FOUR_BITS>(f, head, q, s, a);
    else
        expand_as<EIGHT_BITS>(f, head, q, s, a);
}

} // namespace quantised
} // namespace hrk
