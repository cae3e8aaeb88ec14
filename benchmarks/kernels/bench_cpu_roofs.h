/* The roofs that bench_cpu_kernels compares with, measured on this machine by the caller's thread. */
#ifndef BENCH_CPU_ROOFS_H
#define BENCH_CPU_ROOFS_H

#include <stddef.h>
#include <stdint.h>

/* Whose instructions: fp32 products, bf16 pairs, or products of bytes (vpmaddubsw without VNNI, vpdpbusd with it,
 * tdpbssd with AMX). */
typedef enum bench_level {
    BENCH_PLAIN,
    BENCH_AVX2,
    BENCH_AVX512,
    BENCH_AVX512_BF16,
    BENCH_BYTES_AVX2,
    BENCH_BYTES_AVX2_VNNI,
    BENCH_BYTES_AVX512,
    BENCH_BYTES_AVX512_VNNI,
    BENCH_BYTES_AMX,
} bench_level;

/* Reads n bytes (a multiple of 256) once, in order, with the widest loads allowed; returns something that depends on
 * all of them. */
uint64_t bench_read(const unsigned char *at, size_t n, bench_level level);
/* Runs n rounds of independent multiply-adds in registers; returns the operations done, two a product. */
double bench_multiply(size_t n, bench_level level);

#endif
