/* Where the threads of the CPU backend wait: decode steps of a real model, every loop of the pool timed from outside.
 *
 * The linker routes hr_cpu_pool_run through this program (--wrap), so the backend itself is the product's, untouched.
 * For each loop it notes how long the caller was in it and how long each worker was in the loop's function. Then of a
 * step:
 *
 *   alone   time outside of shared loops: one thread works, the others wait for the next loop
 *   shared  time inside of them, and "idle": the part of it, over all threads, in which a thread was not at work
 *           because it had not arrived yet or found nothing left
 *
 *   bench_cpu_balance MODEL [THREADS [SEQUENCES [CONTEXT [STEPS]]]]        (2, 1, 64, 32)
 *
 * Medians over the steps, in microseconds. On a machine where others run "idle" also counts what they took.
 */
#include "backend/cpu/cpu_pool.h"
#include "backend/backend.h"
#include "base/rng.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PAGE_TOKENS = 16, STEPS_MAX = 1000, SEQUENCES_MAX = 64, CHUNK = 256 };

typedef struct shared_loop {
    hr_cpu_loop_fn fn;
    void *user;
} shared_loop;

static struct {
    _Alignas(64) double busy;
} workers[HR_CPU_THREADS_MAX];

static double shared_us, idle_us; /* of the step at hand */
static uint32_t n_shared;

static double now_us(void)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec * 1e-3;
}

static void timed_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const shared_loop *loop = user;
    double from = now_us();

    loop->fn(loop->user, worker, begin, end);
    workers[worker].busy += now_us() - from;
}

void __real_hr_cpu_pool_run(hr_cpu_pool *pool, uint32_t n_items, uint32_t grain, hr_cpu_loop_fn fn, void *user);
void __wrap_hr_cpu_pool_run(hr_cpu_pool *pool, uint32_t n_items, uint32_t grain, hr_cpu_loop_fn fn, void *user);

void __wrap_hr_cpu_pool_run(hr_cpu_pool *pool, uint32_t n_items, uint32_t grain, hr_cpu_loop_fn fn, void *user)
{
    shared_loop loop = {fn, user};
    uint32_t n_threads = hr_cpu_pool_n_threads(pool);
    double from, took;

    if (n_items <= grain || n_threads == 1) {
        __real_hr_cpu_pool_run(pool, n_items, grain, fn, user);
        return;
    }
    memset(workers, 0, n_threads * sizeof *workers);
    from = now_us();
    __real_hr_cpu_pool_run(pool, n_items, grain, timed_loop, &loop);
    took = now_us() - from;
    shared_us += took;
    n_shared++;
    for (uint32_t i = 0; i < n_threads; i++)
        idle_us += took - workers[i].busy;
}

static void check(headrace_status status, const headrace_error *err)
{
    if (status == HEADRACE_OK)
        return;
    (void)fprintf(stderr, "bench_cpu_balance: %s\n", err->message);
    exit(1);
}

/* Rows [start, start + n) of sequences [first, first + n_sequences). */
static void run_step(const hr_backend_ops *ops, hr_backend *backend, uint32_t vocab_size, uint32_t first,
                     uint32_t n_sequences, uint32_t start, uint32_t n, uint32_t pages_each)
{
    hr_batch *batch = ops->batch(backend, 0);
    headrace_error err = {0};

    batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = 0;
    for (uint32_t s = first; s < first + n_sequences; s++) {
        uint32_t n_pages = (start + n + PAGE_TOKENS - 1) / PAGE_TOKENS;

        batch->outputs[batch->n_outputs++] =
            (hr_output){.row = batch->n_rows + n - 1, .n_logprobs = -1, .score_id = -1};
        batch->spans[batch->n_spans++] = (hr_span){.first_row = batch->n_rows,
                                                   .n_rows = n,
                                                   .start_position = start,
                                                   .page_first = batch->n_page_refs,
                                                   .n_pages = n_pages,
                                                   .state_slot = s,
                                                   .sequence = s + 1,
                                                   .n_prompt = start + n,
                                                   .is_fresh = start == 0};
        for (uint32_t i = 0; i < n_pages; i++)
            batch->pages[batch->n_page_refs++] = s * pages_each + i;
        for (uint32_t i = 0; i < n; i++)
            batch->token_ids[batch->n_rows++] = (int32_t)(hr_rng_at(s, start + i) % vocab_size);
    }
    check(ops->step_begin(backend, batch, &err), &err);
    check(ops->step_wait(backend, &err), &err);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, by_value);
    return values[n / 2];
}

static uint32_t number(int argc, char **argv, int i, uint32_t usual, uint32_t most)
{
    unsigned long value = argc > i ? strtoul(argv[i], NULL, 10) : usual;

    return value < 1 ? 1 : value > most ? most : (uint32_t)value;
}

int main(int argc, char **argv)
{
    static double total[STEPS_MAX], alone[STEPS_MAX], shared[STEPS_MAX], idle[STEPS_MAX];
    const hr_backend_ops *ops = &hr_backend_cpu;
    const uint32_t n_threads = number(argc, argv, 2, 2, HR_CPU_THREADS_MAX);
    const uint32_t n_sequences = number(argc, argv, 3, 1, SEQUENCES_MAX);
    const uint32_t context = number(argc, argv, 4, 64, 1 << 16), n_steps = number(argc, argv, 5, 32, STEPS_MAX);
    const uint32_t pages_each = (context + n_steps) / PAGE_TOKENS + 1;
    hr_backend_options options = {.n_threads = n_threads,
                                  .page_tokens = PAGE_TOKENS,
                                  .max_rows = CHUNK,
                                  .max_spans = n_sequences,
                                  .max_outputs = n_sequences,
                                  .max_page_refs = n_sequences * pages_each};
    headrace_error err = {0};
    hr_backend *backend;
    hr_model *model;

    if (argc < 2) {
        (void)fprintf(stderr, "usage: bench_cpu_balance MODEL [THREADS [SEQUENCES [CONTEXT [STEPS]]]]\n");
        return 2;
    }
    check(hr_model_open(argv[1], &(hr_model_open_options){0}, &model, &err), &err);
    check(ops->open(model, &options, n_sequences * pages_each, n_sequences, &backend, &err), &err);
    for (uint32_t s = 0; s < n_sequences; s++) {
        for (uint32_t at = 0; at < context; at += CHUNK)
            run_step(ops, backend, model->arch.vocab_size, s, 1, at, context - at < CHUNK ? context - at : CHUNK,
                     pages_each);
    }
    for (uint32_t i = 0; i < n_steps; i++) {
        double from = now_us();

        shared_us = idle_us = 0;
        n_shared = 0;
        run_step(ops, backend, model->arch.vocab_size, 0, n_sequences, context + i, 1, pages_each);
        total[i] = now_us() - from;
        shared[i] = shared_us;
        alone[i] = total[i] - shared_us;
        idle[i] = idle_us;
    }
    (void)printf("%s, %u threads, %u rows at context %u: step %.0f us, alone %.0f us, shared %.0f us in %u loops, idle "
                 "%.0f us (%.1f %% of the threads' time in them)\n",
                 ops->compute_name(backend), n_threads, n_sequences, context, median(total, n_steps),
                 median(alone, n_steps), median(shared, n_steps), n_shared, median(idle, n_steps),
                 100 * median(idle, n_steps) / (n_threads * median(shared, n_steps)));
    ops->close(backend);
    hr_model_close(model);
    return 0;
}
