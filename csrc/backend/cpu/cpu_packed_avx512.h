/* What the files of packed products for AVX-512 share before their inner loop is defined. Included only by
 * cpu_packed_avx512*.c and cpu_packed_amx.c, which are compiled for F, BW, VL and DQ. */
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

#endif
