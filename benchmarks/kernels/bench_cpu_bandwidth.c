/* What this machine reads from memory at this minute: the limit of single-stream decode.
 *
 * A program of its own, so that a comparison can run it in turn with the engines: on a shared machine the figure moves
 * by a factor between minutes (which cores the threads were given, what the neighbours do). Each thread reads a
 * contiguous part of its own, on huge pages: what packed weights lie on, and the best order there is.
 *
 *   bench_cpu_bandwidth [THREADS [MIB [PASSES]]]        (2, 1024, 9)
 *
 * Prints the median of the passes in bytes a second, as one number.
 */
#include "bench_cpu_roofs.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { THREADS_MAX = 256, PASSES_MAX = 1000, HUGE_PAGE = 2 << 20 };

static struct {
    unsigned char *at;
    size_t part;
    uint32_t n_threads, n_passes;
    bench_level level;
    pthread_barrier_t barrier;
    _Atomic uint64_t sum;
} shared;

static double now(void)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* One pass over this thread's part, between two barriers. */
static void pass(uint32_t i)
{
    (void)pthread_barrier_wait(&shared.barrier);
    shared.sum += bench_read(shared.at + i * shared.part, shared.part, shared.level);
    (void)pthread_barrier_wait(&shared.barrier);
}

static void *thread_main(void *user)
{
    uint32_t i = (uint32_t)(uintptr_t)user;

    for (uint32_t n = 0; n < shared.n_passes; n++)
        pass(i);
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static bench_level widest(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return BENCH_AVX512;
    if (__builtin_cpu_supports("avx2"))
        return BENCH_AVX2;
#endif
    return BENCH_PLAIN;
}

int main(int argc, char **argv)
{
    static double taken[PASSES_MAX];
    unsigned long n_threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 2,
                  mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024,
                  n_passes = argc > 3 ? strtoul(argv[3], NULL, 10) : 9;
    pthread_t threads[THREADS_MAX];

    if (n_threads < 1 || n_threads > THREADS_MAX || mib < 2 * n_threads || mib > 1UL << 20 || n_passes < 1 ||
        n_passes > PASSES_MAX) {
        (void)fprintf(stderr, "usage: bench_cpu_bandwidth [THREADS [MIB [PASSES]]], MIB at least twice THREADS\n");
        return 2;
    }
    shared.n_threads = (uint32_t)n_threads;
    shared.n_passes = (uint32_t)n_passes;
    shared.part = (mib << 20) / n_threads / HUGE_PAGE * HUGE_PAGE;
    shared.level = widest();
    shared.at = aligned_alloc(HUGE_PAGE, shared.part * n_threads);
    if (shared.at == NULL || pthread_barrier_init(&shared.barrier, NULL, shared.n_threads) != 0) {
        (void)fprintf(stderr, "bench_cpu_bandwidth: no memory for %lu MiB\n", mib);
        return 1;
    }
    (void)madvise(shared.at, shared.part * n_threads, MADV_HUGEPAGE);
    memset(shared.at, 1, shared.part * n_threads); /* untouched pages are one page of zeros, read from the cache */
    for (uint32_t i = 1; i < shared.n_threads; i++) {
        if (pthread_create(&threads[i], NULL, thread_main, (void *)(uintptr_t)i) != 0) {
            (void)fprintf(stderr, "bench_cpu_bandwidth: no thread %u of %u\n", i + 1, shared.n_threads);
            return 1;
        }
    }
    for (uint32_t n = 0; n < shared.n_passes; n++) {
        double from = now();

        pass(0);
        taken[n] = now() - from;
    }
    for (uint32_t i = 1; i < shared.n_threads; i++)
        (void)pthread_join(threads[i], NULL);
    qsort(taken, n_passes, sizeof *taken, by_value);
    (void)printf("%.0f\n", (double)(shared.part * n_threads) / taken[n_passes / 2]);
    free(shared.at);
    return 0;
}
