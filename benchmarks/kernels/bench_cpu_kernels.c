/* How near the CPU kernels come to the machine: y = W x for one row (decode), some rows (a batch) and many (a prompt).
 *
 * Every line stands beside roofs measured right before it: bytes a second of a plain streaming read of the same weights
 * by the same threads, and operations a second of the same instruction in registers. "share" is the time that the
 * slower of the two roofs would need, divided by the time taken; it means something on a busy machine too, as far as
 * the load is steady. Each figure is the best of several passes over weights larger than the caches. Quantised weights
 * are packed (cpu_pack.h) and multiplied in integers; their operations are integer ones.
 *
 *   bench_cpu_kernels [--table NAME] [--dtype NAME] [--cols N] [--rows LIST] [--threads LIST] [--mib N] [--seconds S]
 * [--json FILE]
 */
#include "backend/cpu/cpu_kernels.h"
#include "base/rng.h"
#include "bench_cpu_roofs.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { THREADS_MAX = 64, LIST_MAX = 16, PASSES_MAX = 101 };

typedef struct options {
    const char *table, *dtype, *json;
    uint32_t cols, rows[LIST_MAX], threads[LIST_MAX], n_rows, n_threads, mib;
    double seconds;
} options;

typedef struct work {
    const hr_cpu_kernels *kernels;
    hr_matrix matrix;
    const unsigned char *prepared;
    uint32_t n_rows, n_threads;
    float *y;
    bench_level level;
    enum { RUN_KERNEL, RUN_READ, RUN_MULTIPLY } what;
    pthread_barrier_t barrier;
    bool is_over;
    unsigned char *scratch[THREADS_MAX];
    double flops[THREADS_MAX];
} work;

typedef struct worker {
    work *shared;
    uint32_t i;
} worker;

typedef struct result {
    const char *table, *dtype;
    uint32_t n_rows, n_threads;
    double us, gb_s, gop_s, roof_gb_s, roof_gop_s, share;
} result;

static void *allocate(size_t n)
{
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);

    if (!p) {
        (void)fprintf(stderr, "no memory for %zu bytes\n", n);
        exit(1);
    }
    return p;
}

/* On huge pages where the kernel gives them, as the backend keeps packed weights. */
static void *allocate_huge(size_t n)
{
    const size_t page = 2 << 20;
    void *p = aligned_alloc(page, (n + page - 1) / page * page);

    if (!p) {
        (void)fprintf(stderr, "no memory for %zu bytes\n", n);
        exit(1);
    }
    (void)madvise(p, (n + page - 1) / page * page, MADV_HUGEPAGE);
    return p;
}

/* One thread's share of one pass: pieces of 64 outputs in turn, as the backend hands them out. */
static void run_part(work *w, uint32_t i)
{
    enum { PIECE = 64, ROUNDS = 200000 };

    if (w->what == RUN_MULTIPLY) {
        w->flops[i] = bench_multiply(ROUNDS, w->level);
        return;
    }
    for (uint32_t o = i * PIECE; o < w->matrix.rows; o += w->n_threads * PIECE) {
        uint32_t end = w->matrix.rows - o < PIECE ? w->matrix.rows : o + PIECE;
        const unsigned char *at = (const unsigned char *)w->matrix.data + (size_t)o * w->matrix.row_bytes;

        if (w->what == RUN_READ)
            w->flops[i] += (double)(bench_read(at, (size_t)(end - o) * w->matrix.row_bytes / 256 * 256, w->level) & 1);
        else if (w->matrix.is_packed)
            w->kernels->linear_packed(&w->matrix, o, end, w->prepared, w->n_rows, w->y + o, w->matrix.rows,
                                      w->scratch[i]);
        else
            w->kernels->linear(&w->matrix, o, end, w->prepared, w->n_rows, w->y + o, w->matrix.rows, w->scratch[i]);
    }
}

static void *worker_main(void *arg)
{
    worker *self = arg;
    work *w = self->shared;

    for (;;) {
        (void)pthread_barrier_wait(&w->barrier);
        if (w->is_over)
            return NULL;
        run_part(w, self->i);
        (void)pthread_barrier_wait(&w->barrier);
    }
}

/* A single thread is timed by its own processor time, which other programs do not stretch; several by the wall. */
static double clock_us(uint32_t n_threads)
{
    struct timespec now;

    (void)clock_gettime(n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

/* Microseconds of the best pass. */
static double measure(work *w, double seconds)
{
    double best = HUGE_VAL, total = 0;
    uint32_t n = 0;

    for (int warm = 0; n < 3 || (total < seconds * 1e6 && n < PASSES_MAX); warm = 1) {
        double begin = clock_us(w->n_threads);

        (void)pthread_barrier_wait(&w->barrier);
        run_part(w, 0);
        (void)pthread_barrier_wait(&w->barrier);
        if (warm) {
            double us = clock_us(w->n_threads) - begin;

            best = us < best ? us : best;
            total += us;
            n++;
        }
    }
    return best;
}

static bench_level roof_level(const char *table, const hr_matrix *w)
{
    static const struct {
        const char *table;
        bench_level wide, bytes;
    } levels[] = {
        {"avx2", BENCH_AVX2, BENCH_BYTES_AVX2},
        {"avx2-vnni", BENCH_AVX2, BENCH_BYTES_AVX2_VNNI},
        {"avx512", BENCH_AVX512, BENCH_BYTES_AVX512},
        {"avx512-vnni", BENCH_AVX512, BENCH_BYTES_AVX512_VNNI},
        {"avx512-bf16", BENCH_AVX512, BENCH_BYTES_AVX512_VNNI},
        {"avx512-amx", BENCH_AVX512, BENCH_BYTES_AMX},
    };

    if (w->dtype == HR_BF16 && (strcmp(table, "avx512-bf16") == 0 || strcmp(table, "avx512-amx") == 0))
        return BENCH_AVX512_BF16;
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (strcmp(table, levels[i].table) == 0)
            return w->is_packed ? levels[i].bytes : levels[i].wide;
    }
    return BENCH_PLAIN;
}

static result measure_one(work *w, double seconds)
{
    double bytes = (double)w->matrix.rows * (double)w->matrix.row_bytes, flops = 0, need, us;
    result r = {.table = w->kernels->name,
                .dtype = hr_dtypes[w->matrix.dtype].name,
                .n_rows = w->n_rows,
                .n_threads = w->n_threads};

    w->what = RUN_READ;
    r.roof_gb_s = bytes / measure(w, seconds / 4) * 1e-3;
    w->what = RUN_MULTIPLY;
    us = measure(w, seconds / 4);
    for (uint32_t i = 0; i < w->n_threads; i++)
        flops += w->flops[i];
    r.roof_gop_s = flops / us * 1e-3;
    w->what = RUN_KERNEL;
    r.us = measure(w, seconds);
    flops = 2.0 * w->matrix.rows * w->matrix.cols * w->n_rows;
    r.gb_s = bytes / r.us * 1e-3;
    r.gop_s = flops / r.us * 1e-3;
    need = bytes / r.roof_gb_s > flops / r.roof_gop_s ? bytes / r.roof_gb_s : flops / r.roof_gop_s;
    r.share = need * 1e-3 / r.us;
    return r;
}

static void print_result(const result *r, const options *o, FILE *json, bool is_first)
{
    (void)printf("%-12s %-5s %5u rows %2u threads %9.0f us  %7.1f GB/s of %6.1f  %8.1f GOP/s of %7.1f  share %.2f\n",
                 r->table, r->dtype, r->n_rows, r->n_threads, r->us, r->gb_s, r->roof_gb_s, r->gop_s, r->roof_gop_s,
                 r->share);
    (void)fflush(stdout);
    if (json)
        (void)fprintf(
            json,
            "%s\n  {\"table\": \"%s\", \"dtype\": \"%s\", \"cols\": %u, \"rows\": %u, \"threads\": %u, \"us\": %.1f, "
            "\"gb_s\": %.2f, \"roof_gb_s\": %.2f, \"gop_s\": %.2f, \"roof_gop_s\": %.2f, \"share\": %.3f}",
            is_first ? "" : ",", r->table, r->dtype, o->cols, r->n_rows, r->n_threads, r->us, r->gb_s, r->roof_gb_s,
            r->gop_s, r->roof_gop_s, r->share);
}

static result measure_threads(work *w, uint32_t n_threads, double seconds)
{
    pthread_t threads[THREADS_MAX];
    worker workers[THREADS_MAX];
    result r;

    w->n_threads = n_threads;
    w->is_over = false;
    (void)pthread_barrier_init(&w->barrier, NULL, n_threads);
    for (uint32_t i = 0; i < n_threads; i++) {
        w->scratch[i] = allocate(w->matrix.is_packed ? (size_t)HR_CPU_PACKED_SCRATCH
                                                     : w->kernels->linear_scratch_bytes(w->matrix.cols));
        workers[i] = (worker){w, i};
        if (i > 0 && pthread_create(&threads[i], NULL, worker_main, &workers[i]) != 0) {
            (void)fprintf(stderr, "cannot start thread %u\n", i);
            exit(1);
        }
    }
    r = measure_one(w, seconds);
    w->is_over = true;
    (void)pthread_barrier_wait(&w->barrier);
    for (uint32_t i = 0; i < n_threads; i++) {
        if (i > 0)
            (void)pthread_join(threads[i], NULL);
        free(w->scratch[i]);
    }
    (void)pthread_barrier_destroy(&w->barrier);
    return r;
}

/* Random weights of moderate size: 1 + noise in the low bits, so that no product is subnormal. */
static void fill_weights(unsigned char *data, size_t n, hr_dtype dtype)
{
    for (size_t i = 0; i < n / 8 * 8; i += 8) {
        uint64_t bits = hr_rng_at(1, i);

        if (dtype == HR_BF16)
            bits = (bits & 0x803F803F803F803Fu) | 0x3D003D003D003D00u;
        else if (dtype == HR_F16)
            bits = (bits & 0x83FF83FF83FF83FFu) | 0x2800280028002800u;
        else if (dtype == HR_F32)
            bits = (bits & 0x807FFFFF807FFFFFu) | 0x3D0000003D000000u;
        else
            bits &= 0x2B2B2B2B2B2B2B2Bu; /* block scales stay finite */
        memcpy(data + i, &bits, 8);
    }
}

/* Random weights in memory of about o->mib, packed if their type is; the bytes are the caller's. */
static hr_matrix make_weights(hr_dtype dtype, const options *o)
{
    size_t file_row = hr_dtype_row_bytes(dtype, o->cols);
    hr_matrix w = {.dtype = dtype, .cols = o->cols, .row_bytes = file_row};
    unsigned char *file, *packed;
    headrace_error err;
    uint32_t bad_row;

    w.rows = (uint32_t)((size_t)o->mib * 1024 * 1024 / file_row / HR_PACK_ROWS * HR_PACK_ROWS);
    file = allocate(w.rows * file_row);
    fill_weights(file, w.rows * file_row, dtype);
    w.data = file;
    if (!hr_pack_is_packed(dtype))
        return w;
    packed = allocate_huge(hr_pack_bytes(dtype, w.rows, w.cols));
    if (hr_pack_groups(&w, 0, w.rows / HR_PACK_ROWS, packed, &bad_row, &err) != HEADRACE_OK) {
        (void)fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    free(file);
    return hr_pack_matrix(&w, packed);
}

static void bench_table(const hr_cpu_kernels *kernels, hr_dtype dtype, const options *o, FILE *json, bool *is_first)
{
    const bool is_packed = hr_pack_is_packed(dtype);
    work w = {.kernels = kernels, .matrix = make_weights(dtype, o)};
    uint32_t rows_max = 1;
    size_t stride = is_packed ? hr_int8_row_bytes(o->cols) : kernels->prepared_bytes(o->cols);
    unsigned char *prepared;
    float *x;

    w.level = roof_level(kernels->name, &w.matrix);
    for (uint32_t i = 0; i < o->n_rows; i++)
        rows_max = o->rows[i] > rows_max ? o->rows[i] : rows_max;
    prepared = allocate(stride * rows_max);
    x = allocate((size_t)o->cols * sizeof *x);
    for (uint32_t r = 0; r < rows_max; r++) {
        for (uint32_t c = 0; c < o->cols; c++)
            x[c] = (float)(2.0 * hr_rng_unit(hr_rng_at(2 + r, c)) - 1.0);
        (is_packed ? kernels->prepare_int8 : kernels->prepare)(x, o->cols, prepared + r * stride);
    }
    w.prepared = prepared;
    for (uint32_t i = 0; i < o->n_rows; i++) {
        uint32_t all = w.matrix.rows;

        if (o->rows[i] > 64) /* a prompt is bound by arithmetic: fewer weights say the same in less time */
            w.matrix.rows = all / 256 ? all / 256 * 16 : 16;
        w.n_rows = o->rows[i];
        w.y = allocate((size_t)w.n_rows * w.matrix.rows * sizeof *w.y);
        for (uint32_t t = 0; t < o->n_threads; t++) {
            result r = measure_threads(&w, o->threads[t], o->seconds);

            print_result(&r, o, json, *is_first);
            *is_first = false;
        }
        free(w.y);
        w.matrix.rows = all;
    }
    free((void *)(uintptr_t)w.matrix.data);
    free(prepared);
    free(x);
}

static uint32_t parse_list(const char *text, uint32_t *list)
{
    uint32_t n = 0;

    while (*text && n < LIST_MAX) {
        char *end;

        list[n] = (uint32_t)strtoul(text, &end, 10);
        if (end == text || list[n] == 0)
            return 0;
        n++;
        text = *end == ',' ? end + 1 : end;
    }
    return n;
}

static bool parse_options(int argc, char **argv, options *o)
{
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (!value)
            return false;
        if (strcmp(name, "--table") == 0)
            o->table = value;
        else if (strcmp(name, "--dtype") == 0)
            o->dtype = value;
        else if (strcmp(name, "--json") == 0)
            o->json = value;
        else if (strcmp(name, "--cols") == 0)
            o->cols = (uint32_t)strtoul(value, NULL, 10) / 256 * 256;
        else if (strcmp(name, "--mib") == 0)
            o->mib = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(name, "--seconds") == 0)
            o->seconds = strtod(value, NULL);
        else if (strcmp(name, "--rows") == 0)
            o->n_rows = parse_list(value, o->rows);
        else if (strcmp(name, "--threads") == 0)
            o->n_threads = parse_list(value, o->threads);
        else
            return false;
    }
    for (uint32_t i = 0; i < o->n_threads; i++)
        o->n_threads = o->threads[i] <= THREADS_MAX ? o->n_threads : 0;
    return o->cols && o->mib && o->n_rows && o->n_threads;
}

int main(int argc, char **argv)
{
    static const hr_dtype dtypes[] = {HR_BF16, HR_F16, HR_F32, HR_Q4_0, HR_Q8_0, HR_Q4_K, HR_Q5_K, HR_Q6_K};
    options o = {.cols = 2048,
                 .rows = {1, 8, 32, 512},
                 .n_rows = 4,
                 .threads = {1, 2},
                 .n_threads = 2,
                 .mib = 128,
                 .seconds = 0.3};
    bool is_usable, is_first = true;
    FILE *json = NULL;
    const hr_cpu_kernels *kernels;

    if (!parse_options(argc, argv, &o)) {
        (void)fprintf(
            stderr, "usage: bench_cpu_kernels [--table NAME] [--dtype NAME] [--cols N] [--rows LIST] [--threads LIST] "
                    "[--mib N] [--seconds S] [--json FILE]\n");
        return 2;
    }
    if (o.json && !(json = fopen(o.json, "w"))) {
        perror(o.json);
        return 1;
    }
    if (json)
        (void)fprintf(json, "[");
    for (uint32_t i = 0; (kernels = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        if (!is_usable || (o.table ? strcmp(o.table, kernels->name) != 0 : i == 0))
            continue;
        for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
            if (!o.dtype || strcmp(o.dtype, hr_dtypes[dtypes[d]].name) == 0)
                bench_table(kernels, dtypes[d], &o, json, &is_first);
        }
    }
    if (json) {
        (void)fprintf(json, "\n]\n");
        if (fclose(json) != 0) {
            perror(o.json);
            return 1;
        }
    }
    return 0;
}
