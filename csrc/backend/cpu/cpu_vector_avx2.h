/* The vector of the AVX2 table: eight fp32, and the few operations that cpu_vector_*.inc is written in. Included only
 * by cpu_kernels_avx2.c, which is compiled for AVX2, FMA and F16C.
 *
 * A "part" load reads the first n < 8 values and no byte behind them and gives zeros in the rest. There is no masked
 * load of 16-bit values: those take the way over a small buffer.
 */
#ifndef HR_BACKEND_CPU_CPU_VECTOR_AVX2_H
#define HR_BACKEND_CPU_CPU_VECTOR_AVX2_H

#include "backend/cpu/cpu_kernels.h"

#include <immintrin.h>
#include <math.h>
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
#define UNROLL_FOR(I, N) _Pragma("GCC unroll 8") for (int I = 0; I < (N); I++)
#endif
#endif

/* 3 x 4 accumulators and at most four operands: all 16 registers. */
#define ROWS_MAX 3
/* Heads of rows in a tile of attention, times 2 vectors of positions or values. */
#define ATTENTION_QUERIES 6

typedef __m256 vf;
enum { VW = 8 };

INLINE vf v_zero(void)
{
    return _mm256_setzero_ps();
}

INLINE vf v_set1(float a)
{
    return _mm256_set1_ps(a);
}

INLINE vf v_load(const void *at)
{
    return _mm256_loadu_ps(at);
}

INLINE __m256i first_lanes(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vf v_load_part(const void *at, size_t n)
{
    return _mm256_maskload_ps(at, first_lanes(n));
}

INLINE void v_store(void *at, vf a)
{
    _mm256_storeu_ps(at, a);
}

INLINE void v_store_part(void *at, vf a, size_t n)
{
    _mm256_maskstore_ps(at, first_lanes(n), a);
}

INLINE __m128i load_halves_part(const void *at, size_t n)
{
    uint16_t buffer[8] = {0};

    memcpy(buffer, at, n * sizeof buffer[0]);
    return _mm_loadu_si128((const __m128i *)(const void *)buffer);
}

INLINE vf v_load_f16(const void *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(at));
}

INLINE vf v_load_f16_part(const void *at, size_t n)
{
    return _mm256_cvtph_ps(load_halves_part(at, n));
}

INLINE vf widen_bf16(__m128i a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}

INLINE vf v_load_bf16(const void *at)
{
    return widen_bf16(_mm_loadu_si128(at));
}

INLINE vf v_load_bf16_part(const void *at, size_t n)
{
    return widen_bf16(load_halves_part(at, n));
}

/* Two vectors of bf16, at0 and at1, as their even values (a) and their odd ones (b): cheaper to widen than in order.
 * v_in_order and v_even_odd change between that and { at0, at1 }. */
INLINE void v_load2_bf16(const void *at0, const void *at1, vf *a, vf *b)
{
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(at0)), _mm_loadu_si128(at1), 1);

    *a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *b = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xFFFF0000)));
}

INLINE void v_in_order(vf *a, vf *b)
{
    vf low = _mm256_unpacklo_ps(*a, *b), high = _mm256_unpackhi_ps(*a, *b);

    *a = _mm256_permute2f128_ps(low, high, 0x20);
    *b = _mm256_permute2f128_ps(low, high, 0x31);
}

INLINE void v_even_odd(vf *a, vf *b)
{
    vf low = _mm256_permute2f128_ps(*a, *b, 0x20), high = _mm256_permute2f128_ps(*a, *b, 0x31);

    *a = _mm256_shuffle_ps(low, high, 0x88);
    *b = _mm256_shuffle_ps(low, high, 0xDD);
}

/* Round to nearest, ties to even; NaN stays a quiet NaN: hr_f32_to_bf16 on eight lanes. */
INLINE __m128i narrow_bf16(vf a)
{
    __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));

    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

INLINE void v_store_bf16(void *at, vf a)
{
    _mm_storeu_si128(at, narrow_bf16(a));
}

INLINE void v_store_bf16_part(void *at, vf a, size_t n)
{
    uint16_t buffer[8];

    _mm_storeu_si128((__m128i *)(void *)buffer, narrow_bf16(a));
    memcpy(at, buffer, n * sizeof buffer[0]);
}

INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

/* a * b + c, rounded once. */
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* The second operand where either is NaN. */
INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

INLINE vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a * 2^n for integral n in [-252, 252]: two factors, because one cannot name every power (subnormals, 2^128). A NaN in
 * n is met only where a is NaN too. */
INLINE vf v_scale2(vf a, vf n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    __m256i bias = _mm256_set1_epi32(127);
    vf first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vf second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));

    return v_mul(v_mul(a, first), second);
}

INLINE float v_first(vf a)
{
    return _mm256_cvtss_f32(a);
}

INLINE float v_largest(vf a)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* { sum of a, of b, of c, of d }, each in one order: with a[i] lane i, first (a0 + a2) + (a1 + a3) in each group of
 * four lanes, then group 0 + group 1. */
INLINE __m128 v_reduce4(vf a, vf b, vf c, vf d)
{
    vf ab = v_add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = v_add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf groups = v_add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));

    return _mm_add_ps(_mm256_castps256_ps128(groups), _mm256_extractf128_ps(groups, 1));
}

#endif
