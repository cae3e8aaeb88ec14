/* What the benchmarks of the kernels share: data that is random and larger than the cache, a step's tables, the clock
 * and the lines that are printed. Every function ends the program, with a sentence, when a call of CUDA fails. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include "hrk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { SETS_MAX = 16 };

typedef struct shape {
    const char *model;
    uint32_t H, Nq, Nkv, D, F, E, K, M, V; /* E 0: dense */
} shape;

typedef struct bench {
    bool quick;
    const char *only;
    uint32_t only_rows; /* 0: all */
    double deadline;
    FILE *out;
    hrk_launch on;
    uint32_t n_slots, max_pages, n_pages, P;
    unsigned char *noise; /* device, NOISE_BYTES of random bf16 of standard deviation about 1 */
    size_t noise_bytes;
    size_t l2_bytes;
    hrk_layout layout;  /* of weights to come */
    const char *prefix; /* of the names of kernels: "portable_" for row-major weights', "q4_k_" */
    hrk_tables tables;
    unsigned char *upload, *host_upload;
    size_t upload_bytes;
} bench;

/* Launches of one kernel over n_sets sets of data. */
typedef struct job {
    int (*launch)(const void *args, const hrk_launch *on);
    const void *args[SETS_MAX];
    uint32_t n_sets;
} job;

double bench_now(void);
/* rc: a cudaError_t. */
void bench_check(int rc, const char *what);
/* Noise, tables and stream; and everything given back. */
void bench_open(bench *b);
void bench_close(bench *b);

/* Device memory, to be given back with bench_release: with nothing in it; full of bf16 noise of standard deviation 1,
 * so that products of K of them stay far inside bf16's range and routing on them is even; with n times 1. */
void *bench_device_bytes(size_t n);
hrk_bf16 *bench_noise(bench *b, size_t values);
float *bench_ones(uint32_t n);
void bench_release(const void *p);
hrk_matrix bench_matrix(bench *b, uint32_t rows, uint32_t cols, uint32_t groups, uint32_t stack);
/* What so many weights take in the layout at hand, without padding. */
double bench_weight_bytes(const bench *b, double values);
/* Value `index` of a stream of normal numbers, times scale. */
hrk_bf16 bench_random_bf16(uint64_t index, float scale);

/* Whether the command line asks for it, and there is time. */
bool bench_wants(const bench *b, const char *kernel);
bool bench_wants_rows(const bench *b, uint32_t n);
/* Sets of `bytes` that together exceed the cache three times. */
uint32_t bench_sets(const bench *b, double bytes);
/* A step of n_decode rows at `context` keys, or of one prompt of n_prompt rows from position 0, or both. */
void bench_set_step(bench *b, uint32_t n_decode, uint32_t context, uint32_t n_prompt);
/* Waits until inputs are filled: that happens on the default stream, which the stream of the launches does not wait
 * for. */
void bench_settle(void);
/* Microseconds a launch: median over replays of a graph that launches every set several times. */
float bench_time(const bench *b, const job *j);
void bench_detail(char *text, size_t size, uint32_t rows, uint32_t context, const char *extra);
void bench_report(const bench *b, const char *kernel, const char *model, const char *detail, float us, double bytes,
                  double flop);

/* The kernels of other architectures, row-major weights (bench_portable.c). */
void bench_portable_rows(bench *b, const shape *s, uint32_t T);

#endif
