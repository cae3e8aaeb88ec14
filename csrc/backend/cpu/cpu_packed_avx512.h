/* What the files of packed products for AVX-512 share before their inner loop is defined. Included only by
 * cpu_packed_avx512*.c, which are compiled for F, BW, VL and DQ. */
#ifndef HR_BACKEND_CPU_CPU_PACKED_AVX512_H
#define HR_BACKEND_CPU_CPU_PACKED_AVX512_H

#include "backend/cpu/cpu_packed.h"

#include <immintrin.h>
#include <string.h>

/* UNROLL_FOR: a loop of a constant, small number of rounds over an array that shall live in registers. Sanitizers check
 * every access of every copy, which takes compilers minutes: for them the text stays loops and calls. */
#ifdef HEADRACE_SANITIZED
#define INLINE static inline
#define UNROLL_FOR(I, N) for (int I = 0; I < (N); I++)
#else
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL_FOR(I, N) _Pragma("clang loop unroll(full)") for (int I = 0; I < (N); I++)
#else
#define UNROLL_FOR(I, N) _Pragma("GCC unroll 16") for (int I = 0; I < (N); I++)
#endif
#endif
/* Keeps the compiler from computing the addresses of all rows before the loop and spilling them: one addition is
 * cheaper than the load. */
#define KEEP_IN_REGISTER(POINTER) __asm__("" : "+r"(POINTER))

INLINE __m512i broadcast_word(const unsigned char *at)
{
    int32_t word;

    memcpy(&word, at, sizeof word);
    return _mm512_set1_epi32(word);
}

INLINE __m512 broadcast_float(const unsigned char *at)
{
    float value;

    memcpy(&value, at, sizeof value);
    return _mm512_set1_ps(value);
}

INLINE bool has_minimum(hr_dtype type)
{
    return type == HR_Q4_K || type == HR_Q5_K;
}

/* Sub-blocks, blocks and bytes of a type, as cpu_pack.h lays them out. */
INLINE int chunk_blocks(hr_dtype type)
{
    return type == HR_Q4_0 || type == HR_Q8_0 ? 2 : 8;
}

INLINE int block_bytes(hr_dtype type)
{
    return type == HR_Q4_0 || type == HR_Q4_K ? 256 : type == HR_Q5_K ? 320 : type == HR_Q6_K ? 384 : 512;
}

/* Bytes before a chunk's first block of weights. */
INLINE int head_bytes(hr_dtype type)
{
    return type == HR_Q4_0 || type == HR_Q8_0 ? 64 : type == HR_Q6_K ? 64 + 256 : 64 + 192;
}

INLINE int chunk_bytes(hr_dtype type)
{
    return head_bytes(type) + chunk_blocks(type) * block_bytes(type);
}

INLINE __m512 load_halves(const unsigned char *at)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const void *)at));
}

/* The eight vectors of a block: vector i, lane (o, t) is column 4 i + t of output o. */
INLINE void unpack_block(hr_dtype type, const unsigned char *at, __m512i *w)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i more[2];

    if (type == HR_Q8_0) {
        UNROLL_FOR(i, 8)
        w[i] = _mm512_load_si512(at + i * 64);
        return;
    }
    UNROLL_FOR(i, 4)
    {
        __m512i both = _mm512_load_si512(at + i * 64);

        w[i] = _mm512_and_si512(both, nibble);
        w[4 + i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
    if (type == HR_Q5_K) { /* w | (bit i of `more`, moved to bit 4) */
        more[0] = _mm512_load_si512(at + 256);
        UNROLL_FOR(i, 8)
        {
            __m512i moved = i < 4   ? _mm512_slli_epi16(more[0], (unsigned)(4 - i))
                            : i > 4 ? _mm512_srli_epi16(more[0], (unsigned)(i - 4))
                                    : more[0];

            w[i] = _mm512_ternarylogic_epi32(w[i], moved, _mm512_set1_epi8(16), 0xF8);
        }
    }
    if (type == HR_Q6_K) { /* w | (bits 2 j, 2 j + 1 of more[v], moved to bits 4, 5), i = 4 v + j */
        more[0] = _mm512_load_si512(at + 256);
        more[1] = _mm512_load_si512(at + 320);
        UNROLL_FOR(i, 8)
        {
            __m512i from = more[i / 4];
            __m512i moved = i % 4 < 2    ? _mm512_slli_epi16(from, (unsigned)(4 - 2 * (i % 4)))
                            : i % 4 == 3 ? _mm512_srli_epi16(from, 2)
                                         : from;

            w[i] = _mm512_ternarylogic_epi32(w[i], moved, _mm512_set1_epi8(48), 0xF8);
        }
    }
}

INLINE __m512 widen_scales(__m128i bytes, __m512 d)
{
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}

/* d scale of the eight sub-blocks, then dmin minimum, one an output. */
INLINE void unpack_scales(const unsigned char *at, float to[16][16])
{
    const __m512i nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(48);
    __m512 d[2] = {load_halves(at), load_halves(at + 32)};
    __m512i high = _mm512_load_si512(at + 192), rows[4];

    /* rows[p] is rows 4 p .. 4 p + 3: rows 0 .. 7 in the low nibbles, 8 .. 15 in the high ones */
    rows[0] = _mm512_load_si512(at + 64);
    rows[1] = _mm512_load_si512(at + 128);
    rows[2] = _mm512_and_si512(_mm512_srli_epi16(rows[0], 4), nibble);
    rows[3] = _mm512_and_si512(_mm512_srli_epi16(rows[1], 4), nibble);
    rows[0] = _mm512_and_si512(rows[0], nibble);
    rows[1] = _mm512_and_si512(rows[1], nibble);
    rows[0] = _mm512_ternarylogic_epi32(rows[0], _mm512_slli_epi16(high, 4), pair, 0xF8);
    rows[1] = _mm512_ternarylogic_epi32(rows[1], _mm512_slli_epi16(high, 2), pair, 0xF8);
    rows[2] = _mm512_ternarylogic_epi32(rows[2], high, pair, 0xF8);
    rows[3] = _mm512_ternarylogic_epi32(rows[3], _mm512_srli_epi16(high, 2), pair, 0xF8);
    UNROLL_FOR(p, 4)
    {
        _mm512_store_ps(to[4 * p], widen_scales(_mm512_castsi512_si128(rows[p]), d[p / 2]));
        _mm512_store_ps(to[4 * p + 1], widen_scales(_mm512_extracti32x4_epi32(rows[p], 1), d[p / 2]));
        _mm512_store_ps(to[4 * p + 2], widen_scales(_mm512_extracti32x4_epi32(rows[p], 2), d[p / 2]));
        _mm512_store_ps(to[4 * p + 3], widen_scales(_mm512_extracti32x4_epi32(rows[p], 3), d[p / 2]));
    }
}

#endif
