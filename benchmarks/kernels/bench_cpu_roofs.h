/* The roofs that bench_cpu_kernels compares with, measured on this machine by the caller's thread. */
#ifndef BENCH_CPU_ROOFS_H
#define BENCH_CPU_ROOFS_H

#include <stddef.h>
#include <stdint.h>

/* Reads n bytes (a multiple of 256) once, in order, with the widest loads allowed; returns something that depends on
 * all of them. */
uint64_t bench_read(const unsigned char *at, size_t n, int level);
/* Runs n rounds of independent fused multiply-adds in registers; returns the floating-point operations done. level: 0
 * scalar C, 1 AVX2, 2 AVX-512, 3 vdpbf16ps. */
double bench_multiply(size_t n, int level);

#endif
