/* What the host does for a step of 1,024 answers, while the device would compute the one before: the real engine over
 * the real CUDA backend, with the CUDA runtime stood in for and no kernel run. The stand-in's own time is in "begin"
 * and "wait" (a real graph launch costs a few microseconds more or less).
 *
 *   engine   results handed out, readers told, news taken, the next batch planned and filled
 *   begin    changes found and described, upload, launches
 *   wait     samples fetched
 *
 * Prints one JSON object: medians and 95th percentiles over the measured steps, in microseconds.
 */
#include "backend/cuda/cuda_backend.h"
#include "engine/engine.h"
#include "runtime.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_SEQUENCES = 1024, N_PROMPT = 32, N_ANSWER = 400, N_MEASURED = 300, SAID = 100 };

enum { ENGINE, BEGIN, WAIT, TOTAL, N_PARTS };
static const char *const part_names[N_PARTS] = {"engine", "begin", "wait", "total"};

static double parts[N_PARTS][N_MEASURED];
static _Atomic int n_measured;
static _Atomic bool all_asked;
static double left_at, begin_us, engine_us;
static hr_batch *begun[2];
static unsigned n_begun, n_waited;

static double now_us(void)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec * 1e-3;
}

/* ---------------------------------------------------------------- between engine and backend */

static headrace_status step_begin(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    double entered_at = now_us();
    headrace_status status;

    while (!atomic_load(&all_asked)) /* so that all answers run together */
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    status = hr_backend_cuda.step_begin(backend, batch, err);
    engine_us = entered_at - left_at;
    left_at = now_us();
    begin_us = left_at - entered_at;
    begun[n_begun++ % 2] = batch;
    return status;
}

/* No kernel ran: every sequence says the same. */
static headrace_status step_wait(hr_backend *backend, headrace_error *err)
{
    double entered_at = now_us();
    headrace_status status = hr_backend_cuda.step_wait(backend, err);
    double waited_us = now_us() - entered_at;
    hr_batch *batch = begun[n_waited++ % 2];
    int at = atomic_load(&n_measured);

    for (uint32_t i = 0; i < batch->n_outputs; i++)
        batch->samples[i] = (hr_sample){.id = SAID};
    emu_clear_trace();
    emu_clear_calls();
    if (batch->n_rows == N_SEQUENCES && batch->n_spans == N_SEQUENCES && at < N_MEASURED) {
        const double measured[N_PARTS] = {engine_us, begin_us, waited_us, engine_us + begin_us + waited_us};

        for (int i = 0; i < N_PARTS; i++)
            parts[i][at] = measured[i];
        atomic_store(&n_measured, at + 1);
    }
    left_at = now_us();
    return status;
}

/* ---------------------------------------------------------------- the run */

static void die(const headrace_error *err)
{
    (void)fprintf(stderr, "host_step: %s\n", err->message);
    exit(1);
}

static hr_request *ask(hr_engine *engine, uint32_t k)
{
    int32_t prompt[N_PROMPT];
    headrace_sampling sampling;
    hr_submit what = {.prompt_ids = prompt, .n_prompt = N_PROMPT, .n = 1, .sampling = &sampling};
    headrace_error err = {0};
    hr_request *request;

    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(20 + (k * 31 + i * 7) % 1000);
    memset(&sampling, 0, sizeof sampling);
    sampling.temperature = 0.7f;
    sampling.top_p = 1;
    sampling.repetition_penalty = 1;
    sampling.n_logprobs = sampling.n_prompt_logprobs = -1;
    sampling.max_tokens = N_ANSWER;
    sampling.ignore_eos = true;
    if (hr_engine_submit(engine, &what, &request, &err) != HEADRACE_OK)
        die(&err);
    return request;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_parts(void)
{
    (void)printf("{\"sequences\": %d, \"steps\": %d", N_SEQUENCES, N_MEASURED);
    for (int i = 0; i < N_PARTS; i++) {
        qsort(parts[i], N_MEASURED, sizeof parts[i][0], compare);
        (void)printf(", \"%s_us\": {\"median\": %.1f, \"p95\": %.1f}", part_names[i], parts[i][N_MEASURED / 2],
                     parts[i][N_MEASURED * 95 / 100]);
    }
    (void)printf("}\n");
}

int main(int argc, char **argv)
{
    static hr_request *requests[N_SEQUENCES];
    hr_backend_ops timed = hr_backend_cuda;
    hr_model_open_options options = {0};
    headrace_error err = {0};
    hr_model *model;
    hr_engine *engine;

    if (argc != 2) {
        (void)fputs("host_step MODEL\n", stderr);
        return 2;
    }
    timed.step_begin = step_begin;
    timed.step_wait = step_wait;
    if (hr_model_open(argv[1], &options, &model, &err) != HEADRACE_OK)
        die(&err);
    emu_skip_kernels(true);
    if (hr_engine_open(
            &(hr_engine_config){
                .model = model, .backend_ops = &timed, .max_model_len = 512, .kv_cache_bytes = (uint64_t)1 << 30},
            &engine, &err) != HEADRACE_OK)
        die(&err);
    for (uint32_t k = 0; k < N_SEQUENCES; k++)
        requests[k] = ask(engine, k);
    atomic_store(&all_asked, true);
    while (atomic_load(&n_measured) < N_MEASURED)
        (void)hr_request_wait(requests[0], 20000);
    for (uint32_t k = 0; k < N_SEQUENCES; k++)
        hr_request_release(requests[k]);
    hr_engine_close(engine);
    hr_model_close(model);
    print_parts();
    return 0;
}
