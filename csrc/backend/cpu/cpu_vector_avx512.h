/* The vector of the AVX-512 tables: sixteen fp32, and the few operations that cpu_vector_*.inc is written in. Included
 * only by cpu_kernels_avx512.c and cpu_kernels_avx512_bf16.c, which are compiled for F, BW, VL and DQ.
 *
 * A "part" load reads the first n < 16 values and no byte behind them (masked-out lanes do not fault) and gives zeros
 * in the rest.
 */
#ifndef HR_BACKEND_CPU_CPU_VECTOR_AVX512_H
#define HR_BACKEND_CPU_CPU_VECTOR_AVX512_H

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

/* 6 x 4 accumulators, four columns of weights and one of activations: 29 of 32 registers, 10 loads for 24 products. */
#define ROWS_MAX 6
/* Heads of rows in a tile of attention, times 2 vectors of positions or values. */
#define ATTENTION_QUERIES 8

typedef __m512 vf;
enum { VW = 16 };

INLINE __mmask16 first_lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE vf v_set1(float a)
{
    return _mm512_set1_ps(a);
}

INLINE vf v_load(const void *at)
{
    return _mm512_loadu_ps(at);
}

INLINE vf v_load_part(const void *at, size_t n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), at);
}

INLINE void v_store(void *at, vf a)
{
    _mm512_storeu_ps(at, a);
}

INLINE void v_store_part(void *at, vf a, size_t n)
{
    _mm512_mask_storeu_ps(at, first_lanes(n), a);
}

INLINE vf v_load_f16(const void *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(at));
}

INLINE vf v_load_f16_part(const void *at, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), at));
}

INLINE vf widen_bf16(__m256i a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}

INLINE vf v_load_bf16(const void *at)
{
    return widen_bf16(_mm256_loadu_si256(at));
}

INLINE vf v_load_bf16_part(const void *at, size_t n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), at));
}

/* Round to nearest, ties to even; NaN stays a quiet NaN: hr_f32_to_bf16 on sixteen lanes. */
INLINE __m256i narrow_bf16(vf a)
{
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);

    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

INLINE void v_store_bf16(void *at, vf a)
{
    _mm256_storeu_si256(at, narrow_bf16(a));
}

INLINE void v_store_bf16_part(void *at, vf a, size_t n)
{
    _mm256_mask_storeu_epi16(at, first_lanes(n), narrow_bf16(a));
}

INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

/* a * b + c, rounded once. */
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* The second operand where either is NaN. */
INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a * 2^n for integral n; overflow and underflow as a product would. */
INLINE vf v_scale2(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}

/* Two vectors of bf16, at0 and at1, as their even values (a) and their odd ones (b): cheaper to widen than in order.
 * v_in_order and v_even_odd change between that and { at0, at1 }. */
INLINE void v_load2_bf16(const void *at0, const void *at1, vf *a, vf *b)
{
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(at0)), _mm256_loadu_si256(at1), 1);

    *a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xFFFF0000)));
}

INLINE void v_in_order(vf *a, vf *b)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const vf first = _mm512_permutex2var_ps(*a, low, *b);

    *b = _mm512_permutex2var_ps(*a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), *b);
    *a = first;
}

INLINE void v_even_odd(vf *a, vf *b)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const vf first = _mm512_permutex2var_ps(*a, even, *b);

    *b = _mm512_permutex2var_ps(*a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), *b);
    *a = first;
}

INLINE float v_first(vf a)
{
    return _mm512_cvtss_f32(a);
}

INLINE float v_largest(vf a)
{
    return _mm512_reduce_max_ps(a);
}

/* { sum of a, of b, of c, of d }, each in one order: with a[i] lane i, first (a0 + a2) + (a1 + a3) in each group of
 * four lanes, then (group 0 + group 2) + (group 1 + group 3). */
INLINE __m128 v_reduce4(vf a, vf b, vf c, vf d)
{
    vf ab = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf groups = v_add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(groups), _mm512_extractf32x8_ps(groups, 1));

    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

#endif
