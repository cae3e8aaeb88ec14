/* How near attention on the CPU comes to the machine, at the shape of LFM2 1.2B (six attention layers, eight key-value
 * heads of four query heads, D 64, pages of 16 tokens, bf16).
 *
 *   decode   one row, all layers, by context: bytes a second of keys and values, beside a plain streaming read of the
 *            same memory by the same threads. They are larger than the caches from a few thousand positions on.
 *   prefill  a prompt of that many rows, one layer: operations a second, beside fused multiply-adds in registers.
 *
 * Each figure is the best of several passes, roof and kernel in turn.
 *
 *   bench_cpu_attention [--table NAME] [--threads N] [--context N] [--rows N]
 */
#include "backend/cpu/cpu_kernels.h"
#include "base/numeric.h"
#include "base/rng.h"
#include "bench_cpu_roofs.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    LAYERS = 6,
    KV_HEADS = 8,
    GROUP = 4,
    HEAD_DIM = 64,
    PAGE = 16,
    HEAD_BYTES = PAGE * HEAD_DIM * 2,
    PAGE_BYTES = LAYERS * KV_HEADS * 2 * HEAD_BYTES,
    ROW_FLOATS = KV_HEADS * GROUP * HEAD_DIM,
    THREADS_MAX = 64,
    PASSES = 7,
    MULTIPLIES = 400000,
};

typedef struct work {
    const hr_cpu_kernels *kernels;
    unsigned char *pool;
    uint32_t *pages;
    float *q, *out;
    uint32_t n_threads, n_context, n_rows; /* n_rows 0: decode */
    int level;
    enum { RUN_KERNEL, RUN_READ, RUN_MULTIPLY } what;
    float *scratch[THREADS_MAX];
    double flops[THREADS_MAX];
} work;

typedef struct worker {
    work *shared;
    uint32_t i;
} worker;

static void *allocate(size_t n)
{
    size_t huge = (size_t)2 << 20, bytes = (n + huge - 1) / huge * huge;
    void *at = aligned_alloc(huge, bytes);

    if (!at) {
        (void)fprintf(stderr, "no memory for %zu bytes\n", n);
        exit(1);
    }
    (void)madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

/* Rows [first, first + n) of one layer and key-value head; row r attends positions 0 .. first_context + r - 1. */
static void attend(const work *w, uint32_t thread, uint32_t layer, uint32_t head, uint32_t first, uint32_t n,
                   uint32_t first_context)
{
    size_t at = ((size_t)layer * KV_HEADS + head) * 2 * HEAD_BYTES;
    hr_kv_view view = {.pool = w->pool,
                       .pages = w->pages,
                       .page_bytes = PAGE_BYTES,
                       .k_offset = at,
                       .v_offset = at + HEAD_BYTES,
                       .page_tokens = PAGE,
                       .head_dim = HEAD_DIM,
                       .dtype = HR_KV_BF16};
    size_t row = (size_t)first * ROW_FLOATS + (size_t)head * GROUP * HEAD_DIM;
    hr_attention job = {.kv = &view,
                        .q = w->q + row,
                        .out = w->out + row,
                        .row_stride = ROW_FLOATS,
                        .n_rows = n,
                        .n_heads = GROUP,
                        .n_context = first_context,
                        .scale = 0.125f};

    w->kernels->attention(&job, w->scratch[thread]);
}

static void run_part(work *w, uint32_t thread)
{
    const size_t n_pages = (w->n_context + PAGE - 1) / PAGE, bytes = n_pages * PAGE_BYTES;
    const size_t share = bytes / w->n_threads / 256 * 256;

    if (w->what == RUN_MULTIPLY) {
        w->flops[thread] = bench_multiply(MULTIPLIES, w->level);
    } else if (w->what == RUN_READ) {
        w->flops[thread] += (double)(bench_read(w->pool + thread * share, share, w->level) & 1);
    } else if (w->n_rows == 0) {
        for (uint32_t i = thread; i < LAYERS * KV_HEADS; i += w->n_threads)
            attend(w, thread, i / KV_HEADS, i % KV_HEADS, 0, 1, w->n_context);
    } else {
        for (uint32_t head = 0; head < KV_HEADS; head++) {
            for (uint32_t r = thread * HR_ATTENTION_ROWS; r < w->n_rows; r += w->n_threads * HR_ATTENTION_ROWS)
                attend(w, thread, 0, head, r, w->n_rows - r < HR_ATTENTION_ROWS ? w->n_rows - r : HR_ATTENTION_ROWS,
                       r + 1);
        }
    }
}

static void *worker_main(void *arg)
{
    worker *self = arg;

    run_part(self->shared, self->i);
    return NULL;
}

/* Seconds of one pass. A single thread is timed by its own processor time, which other programs do not stretch. */
static double run_pass(work *w)
{
    clockid_t clock = w->n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    struct timespec begin, end;
    pthread_t threads[THREADS_MAX];
    worker workers[THREADS_MAX];

    (void)clock_gettime(clock, &begin);
    for (uint32_t i = 1; i < w->n_threads; i++) {
        workers[i] = (worker){w, i};
        if (pthread_create(&threads[i], NULL, worker_main, &workers[i]) != 0)
            exit(1);
    }
    run_part(w, 0);
    for (uint32_t i = 1; i < w->n_threads; i++)
        (void)pthread_join(threads[i], NULL);
    (void)clock_gettime(clock, &end);
    return (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
}

/* Best seconds of the kernel and of its roof, in turn. */
static void measure(work *w, int roof, double *kernel_s, double *roof_s)
{
    *kernel_s = *roof_s = HUGE_VAL;
    for (uint32_t i = 0; i < PASSES; i++) {
        double seconds;

        w->what = RUN_KERNEL;
        seconds = run_pass(w);
        *kernel_s = i > 0 ? fmin(*kernel_s, seconds) : *kernel_s;
        w->what = roof == RUN_READ ? RUN_READ : RUN_MULTIPLY;
        seconds = run_pass(w);
        *roof_s = i > 0 ? fmin(*roof_s, seconds) : *roof_s;
    }
}

static void bench_decode(work *w, uint32_t n_context)
{
    double bytes = (double)((n_context + PAGE - 1) / PAGE) * PAGE_BYTES, kernel_s, roof_s;

    w->n_context = n_context;
    w->n_rows = 0;
    measure(w, RUN_READ, &kernel_s, &roof_s);
    (void)printf("%-14s %2u threads  decode  context %6u  %8.0f us  %6.1f GB/s of %6.1f  %3.0f %%\n", w->kernels->name,
                 w->n_threads, n_context, kernel_s * 1e6, bytes / kernel_s * 1e-9, bytes / roof_s * 1e-9,
                 100 * roof_s / kernel_s);
}

static void bench_prefill(work *w, uint32_t n_rows)
{
    double flop = 2.0 * n_rows * (n_rows + 1) * ROW_FLOATS, roof_flop = 0, kernel_s, roof_s;

    w->n_context = w->n_rows = n_rows;
    measure(w, RUN_MULTIPLY, &kernel_s, &roof_s);
    for (uint32_t i = 0; i < w->n_threads; i++)
        roof_flop += w->flops[i];
    (void)printf("%-14s %2u threads  prefill %6u rows     %8.0f us  %6.1f GFLOP/s of %6.1f  %3.0f %%\n",
                 w->kernels->name, w->n_threads, n_rows, kernel_s * 1e6, flop / kernel_s * 1e-9,
                 roof_flop / roof_s * 1e-9, 100 * flop / kernel_s / (roof_flop / roof_s));
}

static void fill(work *w, uint32_t n_context, uint32_t n_rows)
{
    uint32_t n_pages = (n_context + PAGE - 1) / PAGE;

    w->pool = allocate((size_t)n_pages * PAGE_BYTES);
    w->pages = allocate(n_pages * sizeof *w->pages);
    w->q = allocate((size_t)n_rows * ROW_FLOATS * sizeof *w->q);
    w->out = allocate((size_t)n_rows * ROW_FLOATS * sizeof *w->out);
    for (uint32_t i = 0; i < n_pages; i++)
        w->pages[i] = i;
    for (size_t i = 0; i < (size_t)n_pages * PAGE_BYTES / 2; i++) {
        uint16_t value = hr_f32_to_bf16((float)(hr_rng_unit(i * 0x9E3779B97F4A7C15u) - 0.5));

        memcpy(w->pool + 2 * i, &value, sizeof value);
    }
    for (size_t i = 0; i < (size_t)n_rows * ROW_FLOATS; i++)
        w->q[i] = (float)(hr_rng_unit(~i * 0x9E3779B97F4A7C15u) - 0.5);
}

static void bench_table(work *w, uint32_t index, uint32_t most, uint32_t n_rows)
{
    size_t floats = w->kernels->attention_scratch_floats(GROUP, HEAD_DIM, most > n_rows ? most : n_rows);

    w->level = index == 0 ? 0 : strncmp(w->kernels->name, "avx2", 4) == 0 ? 1 : 2;
    for (uint32_t i = 0; i < w->n_threads; i++)
        w->scratch[i] = allocate(floats * sizeof(float));
    for (uint32_t context = most; context >= 512; context /= 2)
        bench_decode(w, context);
    for (uint32_t rows = n_rows; rows >= 128; rows /= 4)
        bench_prefill(w, rows);
    for (uint32_t i = 0; i < w->n_threads; i++)
        free(w->scratch[i]);
}

int main(int argc, char **argv)
{
    const char *table = NULL;
    uint32_t n_threads = 2, most = 8192, n_rows = 2048;
    const hr_cpu_kernels *kernels;
    work w = {0};
    bool is_usable;

    for (int i = 1; i + 1 < argc; i += 2) {
        uint32_t number = (uint32_t)strtoul(argv[i + 1], NULL, 10);

        if (strcmp(argv[i], "--table") == 0)
            table = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            n_threads = number;
        else if (strcmp(argv[i], "--context") == 0)
            most = number;
        else if (strcmp(argv[i], "--rows") == 0)
            n_rows = number;
    }
    if (argc % 2 == 0 || n_threads == 0 || n_threads > THREADS_MAX || most < 512 || n_rows < 128) {
        (void)fprintf(stderr, "usage: bench_cpu_attention [--table NAME] [--threads 1..64] [--context 512..] "
                              "[--rows 128..]\n");
        return 2;
    }
    w.n_threads = n_threads;
    fill(&w, most > n_rows ? most : n_rows, n_rows);
    for (uint32_t i = 0; (kernels = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        w.kernels = kernels;
        if (is_usable && (table ? strcmp(table, kernels->name) == 0 : i > 0))
            bench_table(&w, i, most, n_rows);
    }
    free(w.pool);
    free(w.pages);
    free(w.q);
    free(w.out);
    return 0;
}
