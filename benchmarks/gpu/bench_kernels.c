/* Times every kernel of kernels/hrk.h on the shapes of the family, each beside the bytes and operations it cannot
 * avoid.
 *
 * One row a (kernel, model shape, rows) as a JSON line: microseconds (median of replays), bytes, FLOP, GB/s, TFLOP/s.
 * The rivals (rivals.py) time libraries on the same shapes in the same run; run.py puts both beside the ceilings that
 * the first rows measure on this very card. A launch is timed inside a graph of many, over enough sets of weights and
 * of keys and values that no set is still in the second-level cache when its turn comes again; data are random, since
 * zeros draw less power and run faster.
 *
 *     bench_kernels [--quick] [--only NAME] [--rows N] [--budget SECONDS] [--out FILE]
 *
 * --quick runs small shapes once, to see on a machine without a GPU that every call is right (against the emulation).
 */
#include "hrk.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SETS_MAX = 16, REPLAYS = 9 };

typedef struct shape {
    const char *model;
    uint32_t H, Nq, Nkv, D, F, E, K, M, V; /* E 0: dense */
} shape;

static const shape FULL_SHAPES[] = {
    {"24b-a2b", 2048, 32, 8, 64, 11776, 64, 4, 1536, 65536},
    {"8b-a1b", 2048, 32, 8, 64, 7168, 32, 4, 1792, 65536},
    {"1.2b", 2048, 32, 8, 64, 8192, 0, 0, 0, 65536},
};
static const shape QUICK_SHAPES[] = {{"quick", 128, 4, 2, 64, 192, 8, 2, 64, 512}};

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
    hrk_tables tables;
    unsigned char *upload, *host_upload;
    size_t upload_bytes;
} bench;

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(int rc, const char *what)
{
    if (rc == 0)
        return;
    (void)fprintf(stderr, "bench_kernels: %s: %s\n", what, cudaGetErrorString((cudaError_t)rc));
    exit(1);
}

static void *device_bytes(size_t n)
{
    void *p = NULL;

    check((int)cudaMalloc(&p, n + 256), "cudaMalloc");
    return p;
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Random bf16 with the sum of four uniforms as an approximate normal, times scale. */
static hrk_bf16 random_bf16(uint64_t index, float scale)
{
    uint64_t bits = mix(index * 0x9E3779B97F4A7C15u + 1);
    float x = 0;
    uint32_t u;

    for (int i = 0; i < 4; i++)
        x += (float)((bits >> 16 * i) & 0xffff) / 65536.0f - 0.5f;
    x *= 1.7320508f * scale;
    memcpy(&u, &x, 4);
    return (hrk_bf16)((u + 0x8000u) >> 16);
}

static void make_noise(bench *b)
{
    hrk_bf16 *host;

    b->noise_bytes = b->quick ? 1u << 20 : 64u << 20;
    host = malloc(b->noise_bytes);
    if (!host)
        exit(1);
    for (size_t i = 0; i < b->noise_bytes / 2; i++)
        host[i] = random_bf16(i, 1.0f);
    b->noise = device_bytes(b->noise_bytes);
    check((int)cudaMemcpy(b->noise, host, b->noise_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(host);
}

/* Device memory full of noise, beginning somewhere else for every call. The values have standard deviation 1: products
 * of K of them stay far inside bf16's range, and routing on them is even. */
static hrk_bf16 *noise(bench *b, size_t values)
{
    static uint64_t calls;
    size_t n = values * 2, shift = (size_t)(mix(++calls) % (b->noise_bytes / 64)) * 32;
    unsigned char *p = device_bytes(n);

    for (size_t at = 0; at < n;) {
        size_t piece = b->noise_bytes - shift < n - at ? b->noise_bytes - shift : n - at;

        check((int)cudaMemcpy(p + at, b->noise + shift, piece, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        at += piece;
        shift = 0;
    }
    return (hrk_bf16 *)p;
}

static float *ones(uint32_t n)
{
    float *host = malloc(n * sizeof *host), *p = device_bytes(n * sizeof *p);

    for (uint32_t i = 0; host && i < n; i++)
        host[i] = 1.0f;
    check((int)cudaMemcpy(p, host, n * sizeof *p, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(host);
    return p;
}

/* ---------------------------------------------------------------- timing */

typedef struct job {
    int (*launch)(const void *args, const hrk_launch *on);
    const void *args[SETS_MAX];
    uint32_t n_sets;
} job;

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Inputs are filled on the default stream, which the stream of the launches does not wait for. */
static void settle(void)
{
    check((int)cudaDeviceSynchronize(), "filling the inputs");
}

/* Microseconds a launch: median over replays of a graph that launches every set several times. */
static float time_job(const bench *b, const job *j)
{
    uint32_t rounds = b->quick ? 1 : j->n_sets >= 8 ? 2 : 16 / j->n_sets, replays = b->quick ? 1 : REPLAYS;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float us[REPLAYS];

    settle();
    for (uint32_t i = 0; i < j->n_sets; i++)
        check(j->launch(j->args[i], &b->on), "launch");
    check((int)cudaStreamSynchronize(b->on.stream), "first launches");
    check((int)cudaStreamBeginCapture(b->on.stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t r = 0; r < rounds; r++)
        for (uint32_t i = 0; i < j->n_sets; i++)
            check(j->launch(j->args[i], &b->on), "launch in capture");
    check((int)cudaStreamEndCapture(b->on.stream, &graph), "end of capture");
    check((int)cudaGraphInstantiate(&exec, graph, 0), "graph");
    check((int)cudaEventCreate(&begin), "event");
    check((int)cudaEventCreate(&end), "event");
    check((int)cudaGraphLaunch(exec, b->on.stream), "warm-up");
    for (uint32_t r = 0; r < replays; r++) {
        float ms;

        check((int)cudaEventRecord(begin, b->on.stream), "event");
        check((int)cudaGraphLaunch(exec, b->on.stream), "graph launch");
        check((int)cudaEventRecord(end, b->on.stream), "event");
        check((int)cudaEventSynchronize(end), "replay");
        check((int)cudaEventElapsedTime(&ms, begin, end), "elapsed time");
        us[r] = 1e3f * ms / (float)(rounds * j->n_sets);
    }
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    qsort(us, replays, sizeof us[0], by_value);
    return us[replays / 2];
}

static void report(const bench *b, const char *kernel, const char *model, const char *detail, float us, double bytes,
                   double flop)
{
    (void)fprintf(b->out,
                  "{\"kernel\": \"%s\", \"model\": \"%s\", %s, \"us\": %.3f, \"bytes\": %.0f, \"flop\": %.0f, "
                  "\"gb_s\": %.1f, \"tflop_s\": %.2f}\n",
                  kernel, model, detail, (double)us, bytes, flop, bytes / (double)us * 1e-3, flop / (double)us * 1e-6);
    (void)fflush(b->out);
}

static bool wanted(const bench *b, const char *kernel)
{
    return (!b->only || strstr(b->only, kernel)) && now() < b->deadline;
}

static bool wants_rows(const bench *b, uint32_t n)
{
    return !b->only_rows || b->only_rows == n;
}

/* Sets of `bytes` that together exceed the cache three times. */
static uint32_t n_sets_for(const bench *b, double bytes)
{
    double n = 3.0 * (double)b->l2_bytes / bytes;

    if (b->quick)
        return 2;
    return n < 3 ? 3 : n > SETS_MAX ? SETS_MAX : (uint32_t)n + 1;
}

/* ---------------------------------------------------------------- the step's tables */

static uint32_t place(bench *b, size_t *at, size_t bytes)
{
    size_t here = *at;

    *at = (here + bytes + 15) & ~(size_t)15;
    if (*at > b->upload_bytes) {
        (void)fprintf(stderr, "bench_kernels: upload block too small\n");
        exit(1);
    }
    return (uint32_t)here;
}

/* What hrk_step_begin writes for later kernels: position and span of every row. */
static void set_rows(const bench *b, const hrk_step *step)
{
    const hrk_span *spans = (const hrk_span *)(b->host_upload + step->spans_at);
    uint32_t *values = malloc(2 * (size_t)step->n_rows * sizeof *values), *of_row = values + step->n_rows;

    if (!values)
        exit(1);
    for (uint32_t s = 0; s < step->n_spans; s++) {
        for (uint32_t i = 0; i < spans[s].n_rows; i++) {
            values[spans[s].first_row + i] = spans[s].start_position + i;
            of_row[spans[s].first_row + i] = s;
        }
    }
    check((int)cudaMemcpy(b->tables.row_position, values, step->n_rows * sizeof *values, cudaMemcpyHostToDevice),
          "positions of rows");
    check((int)cudaMemcpy(b->tables.row_span, of_row, step->n_rows * sizeof *values, cudaMemcpyHostToDevice),
          "spans of rows");
    free(values);
}

/* A step of n_decode rows at `context` keys, or of one prompt of n_prompt rows from position 0, or both. */
static void set_step(bench *b, uint32_t n_decode, uint32_t context, uint32_t n_prompt)
{
    hrk_step *step = (hrk_step *)b->host_upload;
    size_t at = sizeof *step;
    uint32_t T = n_decode + n_prompt, S = n_decode + (n_prompt > 0), tiles = (n_prompt + 63) / 64, chunks = 0;

    memset(b->host_upload, 0, b->upload_bytes);
    step->n_rows = T;
    step->n_spans = step->n_outputs = S;
    step->n_decode_items = n_decode;
    step->n_prefill_tiles = tiles;
    step->tokens_at = place(b, &at, T * sizeof(int32_t));
    step->spans_at = place(b, &at, S * sizeof(hrk_span));
    step->outputs_at = place(b, &at, S * sizeof(hrk_output));
    step->decode_at = place(b, &at, n_decode * sizeof(hrk_decode_item));
    step->prefill_at = place(b, &at, tiles * sizeof(hrk_prefill_tile));
    step->pages_at = step->sampling_at = step->history_at = (uint32_t)at;
    for (uint32_t i = 0; i < T; i++)
        ((int32_t *)(b->host_upload + step->tokens_at))[i] = (int32_t)(mix(i) % 500);
    for (uint32_t i = 0; i < S; i++) {
        bool is_prompt = i == n_decode;

        ((hrk_span *)(b->host_upload + step->spans_at))[i] = (hrk_span){
            .first_row = i,
            .n_rows = is_prompt ? n_prompt : 1,
            .start_position = is_prompt ? 0 : context - 1,
            .slot = i,
            .state_in = is_prompt ? -1 : (int32_t)(2 * i),
            .state_out = (int32_t)(2 * i + 1),
        };
        ((hrk_output *)(b->host_upload + step->outputs_at))[i] =
            (hrk_output){.row = is_prompt ? T - 1 : i, .slot = i, .score_id = -1, .n_logprobs = -1, .is_sampled = 1};
    }
    for (uint32_t i = 0; i < n_decode; i++) {
        ((hrk_decode_item *)(b->host_upload + step->decode_at))[i] =
            (hrk_decode_item){.row = i, .slot = i, .n_keys = context, .first_chunk = chunks};
        chunks += (context + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK;
    }
    step->n_chunk_items = chunks;
    for (uint32_t i = 0; i < tiles; i++)
        ((hrk_prefill_tile *)(b->host_upload + step->prefill_at))[i] =
            (hrk_prefill_tile){.first_row = n_decode + 64 * i,
                               .n_rows = n_prompt - 64 * i < 64 ? n_prompt - 64 * i : 64,
                               .slot = n_decode,
                               .first_position = 64 * i};
    check((int)cudaMemcpy(b->upload, b->host_upload, at, cudaMemcpyHostToDevice), "upload");
    set_rows(b, step);
}

static void make_tables(bench *b, uint32_t max_rows)
{
    uint32_t *pages;
    hrk_sampling sampling = {
        .temperature = 0.3f, .top_p = 1, .min_p = 0.15f, .repetition_penalty = 1.05f, .top_k = 50, .seed = 7};
    hrk_sampling *all;

    b->n_slots = b->quick ? 16 : 1025;
    b->P = 64;
    b->max_pages = b->quick ? 4 : 512;
    b->upload_bytes = 4u << 20;
    b->upload = device_bytes(b->upload_bytes);
    b->host_upload = calloc(1, b->upload_bytes);
    pages = malloc((size_t)b->n_slots * b->max_pages * sizeof *pages);
    all = malloc(b->n_slots * sizeof *all);
    if (!b->host_upload || !pages || !all)
        exit(1);
    /* Enough pages for 1,024 sequences of 1k tokens; longer contexts of fewer sequences share them out the same way. */
    b->n_pages = b->quick ? 64 : 17000;
    for (uint32_t s = 0; s < b->n_slots; s++) {
        all[s] = sampling;
        for (uint32_t i = 0; i < b->max_pages; i++)
            pages[(size_t)s * b->max_pages + i] = (s * 16 + i) % b->n_pages;
    }
    b->tables = (hrk_tables){
        .step = (const hrk_step *)b->upload,
        .next_token = device_bytes(b->n_slots * sizeof(int32_t)),
        .page_table = device_bytes((size_t)b->n_slots * b->max_pages * sizeof *pages),
        .max_pages = b->max_pages,
        .sampling = device_bytes(b->n_slots * sizeof *all),
        .bias = device_bytes((size_t)b->n_slots * HRK_BIAS_MAX * sizeof(hrk_bias)),
        .stop_ids = device_bytes((size_t)b->n_slots * HRK_STOP_IDS_MAX * sizeof(int32_t)),
        .seen_ld = 65536,
        .row_token = device_bytes(max_rows * sizeof(int32_t)),
        .row_position = device_bytes(max_rows * sizeof(uint32_t)),
        .row_span = device_bytes(max_rows * sizeof(uint32_t)),
    };
    b->tables.seen = device_bytes((size_t)b->n_slots * b->tables.seen_ld * 2);
    check((int)cudaMemset(b->tables.seen, 0, (size_t)b->n_slots * b->tables.seen_ld * 2), "memset");
    check((int)cudaMemset(b->tables.next_token, 0, b->n_slots * sizeof(int32_t)), "memset");
    check((int)cudaMemcpy(b->tables.page_table, pages, (size_t)b->n_slots * b->max_pages * sizeof *pages,
                          cudaMemcpyHostToDevice),
          "page table");
    check((int)cudaMemcpy(b->tables.sampling, all, b->n_slots * sizeof *all, cudaMemcpyHostToDevice), "sampling");
    free(pages);
    free(all);
}

/* ---------------------------------------------------------------- what is timed */

#define LAUNCHER(name)                                               \
    static int launch_##name(const void *args, const hrk_launch *on) \
    {                                                                \
        return hrk_##name(args, on);                                 \
    }
LAUNCHER(linear)
LAUNCHER(gate_up)
LAUNCHER(down)
LAUNCHER(route)
LAUNCHER(combine)
LAUNCHER(conv_in)
LAUNCHER(qkv)
LAUNCHER(attention_decode)
LAUNCHER(attention_prefill)
LAUNCHER(sampler)
LAUNCHER(step_begin)

static hrk_matrix random_matrix(bench *b, uint32_t rows, uint32_t cols, uint32_t groups, uint32_t stack)
{
    return (hrk_matrix){.data = noise(b, hrk_matrix_values(rows, cols, groups, HRK_TILED) * stack),
                        .rows = rows,
                        .cols = cols,
                        .n_groups = groups,
                        .n_stack = stack,
                        .layout = HRK_TILED};
}

static void release(const void *p)
{
    union {
        const void *in;
        void *out;
    } u = {.in = p};

    check((int)cudaFree(u.out), "cudaFree");
}

static void detail_of(char *text, size_t size, uint32_t rows, uint32_t context, const char *extra)
{
    (void)snprintf(text, size, "\"rows\": %u, \"context\": %u%s", rows, context, extra);
}

/* Plain products: out_proj with the residual, the dense feed-forward, the head. */
static void bench_linear(bench *b, const shape *s, uint32_t T, const char *name, uint32_t rows, uint32_t cols,
                         hrk_epilogue epilogue)
{
    hrk_linear_args args[SETS_MAX];
    job j = {.launch = launch_linear};
    double weights = 2.0 * rows * cols, bytes;
    char detail[128], kernel[64];

    (void)snprintf(kernel, sizeof kernel, "linear_%s", name);
    if (!wanted(b, kernel))
        return;
    set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    j.n_sets = n_sets_for(b, weights);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        args[i] = (hrk_linear_args){
            .tables = b->tables,
            .over = epilogue == HRK_STORE_F32 ? HRK_ROWS_OUTPUTS : HRK_ROWS_ALL,
            .max_rows = T,
            .w = random_matrix(b, rows, cols, 1, 1),
            .in = noise(b, (size_t)T * hrk_ld(cols)),
            .epilogue = epilogue,
            .out = noise(b, (size_t)T * hrk_ld(rows) * (epilogue == HRK_STORE_F32 ? 2 : 1)),
        };
        j.args[i] = &args[i];
    }
    bytes = weights + 2.0 * T * cols +
            T * (double)rows *
                (epilogue == HRK_STORE_F32  ? 4
                 : epilogue == HRK_RESIDUAL ? 4
                                            : 2);
    detail_of(detail, sizeof detail, T, 0, "");
    report(b, kernel, s->model, detail, time_job(b, &j), bytes, 2.0 * T * rows * cols);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        release(args[i].w.data);
        release(args[i].in);
        release(args[i].out);
    }
}

static uint32_t count_distinct(const hrk_routing *routing)
{
    uint32_t first[513], n = 0;

    check((int)cudaMemcpy(first, routing->first, (routing->E + 1) * sizeof first[0], cudaMemcpyDeviceToHost), "first");
    for (uint32_t e = 0; e < routing->E; e++)
        n += first[e + 1] > first[e];
    return n;
}

/* The mixture: route, gate and up, down, combine; each alone, on lists that the router itself made of random rows. */
static void bench_moe(bench *b, const shape *s, uint32_t T)
{
    uint32_t n = T * s->K, sets;
    double expert = 2.0 * 3.0 * s->H * s->M;
    hrk_route_args route[SETS_MAX];
    hrk_gate_up_args gate_up[SETS_MAX];
    hrk_down_args down[SETS_MAX];
    hrk_combine_args combine[SETS_MAX];
    job j = {0};
    char detail[160], extra[64];
    float *norm;
    double distinct = 0;

    if (!s->E || !(wanted(b, "route") || wanted(b, "gate_up") || wanted(b, "down") || wanted(b, "combine")))
        return;
    set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    norm = ones(s->H);
    sets = n_sets_for(b, expert * s->E) < 4 ? n_sets_for(b, expert * s->E) : 4;
    for (uint32_t i = 0; i < sets; i++) {
        size_t scratch = hrk_route_scratch(T, s->E, s->K);
        hrk_routing r = {.E = s->E,
                         .K = s->K,
                         .ids = device_bytes(n * 4),
                         .weights = device_bytes(n * 4),
                         .first = device_bytes((s->E + 1) * 4),
                         .sorted = device_bytes(n * 4),
                         .place = device_bytes(n * 4),
                         .scratch = device_bytes(scratch)};

        check((int)cudaMemset(r.scratch, 0, scratch), "memset");
        route[i] = (hrk_route_args){.tables = b->tables,
                                    .max_rows = T,
                                    .x = noise(b, (size_t)T * hrk_ld(s->H)),
                                    .norm = norm,
                                    .eps = 1e-5f,
                                    .xn = noise(b, (size_t)T * hrk_ld(s->H)),
                                    .router = noise(b, (size_t)s->E * hrk_ld(s->H)),
                                    .H = s->H,
                                    .normalise = true,
                                    .scale = 1,
                                    .routing = r};
        gate_up[i] = (hrk_gate_up_args){.tables = b->tables,
                                        .max_rows = T,
                                        .w = random_matrix(b, s->M, s->H, 2, s->E),
                                        .in = route[i].xn,
                                        .routing = &route[i].routing,
                                        .h = noise(b, (size_t)n * hrk_ld(s->M))};
        down[i] = (hrk_down_args){.tables = b->tables,
                                  .max_rows = T,
                                  .w = random_matrix(b, s->H, s->M, 1, s->E),
                                  .h = noise(b, (size_t)n * hrk_ld(s->M)),
                                  .routing = &route[i].routing,
                                  .y = noise(b, (size_t)n * hrk_ld(s->H))};
        combine[i] = (hrk_combine_args){.tables = b->tables,
                                        .max_rows = T,
                                        .y = down[i].y,
                                        .routing = route[i].routing,
                                        .H = s->H,
                                        .x = noise(b, (size_t)T * hrk_ld(s->H)),
                                        .norm = norm,
                                        .eps = 1e-5f,
                                        .xn = noise(b, (size_t)T * hrk_ld(s->H))};
        settle();
        check(hrk_route(&route[i], &b->on), "route");
        check((int)cudaStreamSynchronize(b->on.stream), "route");
        distinct += count_distinct(&route[i].routing) / (double)sets;
    }
    (void)snprintf(extra, sizeof extra, ", \"distinct_experts\": %.1f", distinct);
    detail_of(detail, sizeof detail, T, 0, extra);
    j.n_sets = sets;
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &route[i];
    j.launch = launch_route;
    if (wanted(b, "route"))
        report(b, "route", s->model, detail, time_job(b, &j), 2.0 * s->E * s->H + 4.0 * T * s->H,
               2.0 * T * s->E * s->H);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &gate_up[i];
    j.launch = launch_gate_up;
    if (wanted(b, "gate_up"))
        report(b, "gate_up", s->model, detail, time_job(b, &j),
               distinct * expert * 2 / 3 + 2.0 * T * s->H + 2.0 * n * s->M, 4.0 * n * s->H * s->M);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &down[i];
    j.launch = launch_down;
    if (wanted(b, "down"))
        report(b, "down", s->model, detail, time_job(b, &j), distinct * expert / 3 + 2.0 * n * s->M + 2.0 * n * s->H,
               2.0 * n * s->H * s->M);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &combine[i];
    j.launch = launch_combine;
    if (wanted(b, "combine"))
        report(b, "combine", s->model, detail, time_job(b, &j), 2.0 * n * s->H + 6.0 * T * s->H, 2.0 * n * s->H);
    for (uint32_t i = 0; i < sets; i++) {
        const void *all[] = {route[i].x,
                             route[i].xn,
                             route[i].router,
                             route[i].routing.ids,
                             route[i].routing.weights,
                             route[i].routing.first,
                             route[i].routing.sorted,
                             route[i].routing.place,
                             route[i].routing.scratch,
                             gate_up[i].w.data,
                             gate_up[i].h,
                             down[i].w.data,
                             down[i].h,
                             down[i].y,
                             combine[i].x,
                             combine[i].xn};

        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
            release(all[k]);
    }
    release(norm);
}

/* The convolution with its projection, and q, k, v with norm, rotation and page write. */
static void bench_operators(bench *b, const shape *s, uint32_t T)
{
    hrk_conv_in_args conv[SETS_MAX];
    hrk_qkv_args qkv[SETS_MAX];
    uint32_t rows = (s->Nq + 2 * s->Nkv) * s->D;
    double conv_bytes = 2.0 * 3 * s->H * s->H, qkv_bytes = 2.0 * rows * s->H;
    size_t page = (size_t)2 * s->Nkv * b->P * s->D, states = 2 * (size_t)b->n_slots;
    job j = {0};
    char detail[128];

    set_step(b, T < b->n_slots ? T : 0, 1024 < b->max_pages * b->P ? 1024 : b->P, T < b->n_slots ? 0 : T);
    detail_of(detail, sizeof detail, T, 0, "");
    if (wanted(b, "conv_in")) {
        float *taps = ones(s->H * 3);

        j = (job){.launch = launch_conv_in, .n_sets = n_sets_for(b, conv_bytes)};
        for (uint32_t i = 0; i < j.n_sets; i++) {
            conv[i] = (hrk_conv_in_args){.tables = b->tables,
                                         .max_rows = T,
                                         .w = random_matrix(b, s->H, s->H, 3, 1),
                                         .in = noise(b, (size_t)T * hrk_ld(s->H)),
                                         .taps = taps,
                                         .L = 3,
                                         .state = {noise(b, states * 2 * s->H), (size_t)2 * s->H},
                                         .y = noise(b, (size_t)T * hrk_ld(s->H))};
            j.args[i] = &conv[i];
        }
        report(b, "conv_in", s->model, detail, time_job(b, &j),
               conv_bytes + 4.0 * T * s->H + (T < b->n_slots ? 8.0 * T * s->H : 0), 6.0 * T * s->H * s->H);
        for (uint32_t i = 0; i < j.n_sets; i++) {
            release(conv[i].w.data);
            release(conv[i].in);
            release(conv[i].state.base);
            release(conv[i].y);
        }
        release(taps);
    }
    if (wanted(b, "qkv")) {
        float *norm = ones(s->D), *rope = ones(b->max_pages * b->P * s->D);
        hrk_bf16 *pool = noise(b, page * b->n_pages);

        j = (job){.launch = launch_qkv, .n_sets = n_sets_for(b, qkv_bytes)};
        for (uint32_t i = 0; i < j.n_sets; i++) {
            qkv[i] = (hrk_qkv_args){.tables = b->tables,
                                    .max_rows = T,
                                    .w = random_matrix(b, rows, s->H, 1, 1),
                                    .in = noise(b, (size_t)T * hrk_ld(s->H)),
                                    .q_norm = norm,
                                    .k_norm = norm,
                                    .eps = 1e-5f,
                                    .rope = rope,
                                    .Nq = s->Nq,
                                    .kv = {pool, page, b->P, s->Nkv, s->D, true},
                                    .q = noise(b, (size_t)T * hrk_ld(s->Nq * s->D))};
            j.args[i] = &qkv[i];
        }
        report(b, "qkv", s->model, detail, time_job(b, &j), qkv_bytes + 2.0 * T * s->H + 2.0 * T * rows,
               2.0 * T * rows * s->H);
        for (uint32_t i = 0; i < j.n_sets; i++) {
            release(qkv[i].w.data);
            release(qkv[i].in);
            release(qkv[i].q);
        }
        release(norm);
        release(rope);
        release(pool);
    }
}

/* is_prompt: n rows of one prompt from position 0; else n sequences of `context` keys. */
static void bench_attention(bench *b, const shape *s, uint32_t n, uint32_t context, bool is_prompt)
{
    const char *kernel = is_prompt ? "attention_prefill" : "attention_decode";
    size_t page = (size_t)2 * s->Nkv * b->P * s->D, scratch;
    double keys = is_prompt ? (double)n * (n + 1) / 2 : (double)n * context;
    uint32_t chunks = is_prompt ? 0 : n * ((context + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK);
    hrk_attention_args args[SETS_MAX];
    job j = {.launch = is_prompt ? launch_attention_prefill : launch_attention_decode};
    char detail[128];

    if (!wanted(b, kernel) || !wants_rows(b, n))
        return;
    set_step(b, is_prompt ? 0 : n, is_prompt ? 0 : context, is_prompt ? n : 0);
    scratch = hrk_attention_scratch(n, chunks ? chunks : 1, s->Nq, s->D);
    /* The page table spreads sequences over the pool: a set is a pool of its own. */
    j.n_sets = b->quick ? 2 : 3;
    for (uint32_t i = 0; i < j.n_sets; i++) {
        void *space = device_bytes(scratch);

        check((int)cudaMemset(space, 0, scratch), "memset");
        args[i] = (hrk_attention_args){.tables = b->tables,
                                       .max_decode_items = is_prompt ? 0 : n,
                                       .max_chunk_items = chunks,
                                       .max_prefill_tiles = is_prompt ? (n + 63) / 64 : 0,
                                       .q = noise(b, (size_t)n * hrk_ld(s->Nq * s->D)),
                                       .Nq = s->Nq,
                                       .kv = {noise(b, page * b->n_pages), page, b->P, s->Nkv, s->D, true},
                                       .out = noise(b, (size_t)n * hrk_ld(s->Nq * s->D)),
                                       .scratch = space};
        j.args[i] = &args[i];
    }
    detail_of(detail, sizeof detail, n, is_prompt ? n : context, "");
    report(b, kernel, s->model, detail, time_job(b, &j),
           (is_prompt ? (double)n : keys) * 4.0 * s->Nkv * s->D + 4.0 * n * s->Nq * s->D, 4.0 * keys * s->Nq * s->D);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        release(args[i].q);
        release(args[i].kv.base);
        release(args[i].out);
        release(args[i].scratch);
    }
}

static void bench_sampler(bench *b, const shape *s, uint32_t n)
{
    hrk_sampler_args args[SETS_MAX];
    job j = {.launch = launch_sampler, .n_sets = b->quick ? 2 : 3};
    char detail[128];

    if (!wanted(b, "sampler"))
        return;
    set_step(b, n, 64, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        size_t values = (size_t)n * hrk_ld(s->V);
        float *host = malloc(values * sizeof *host), *logits = device_bytes(values * sizeof *host);

        for (size_t k = 0; host && k < values; k++) {
            uint32_t u = (uint32_t)random_bf16(k * 3 + i, 2.5f) << 16;

            memcpy(&host[k], &u, 4);
        }
        check((int)cudaMemcpy(logits, host, values * sizeof *host, cudaMemcpyHostToDevice), "logits");
        free(host);
        args[i] = (hrk_sampler_args){.tables = b->tables,
                                     .max_outputs = n,
                                     .logits = logits,
                                     .V = s->V,
                                     .n_valid = s->V,
                                     .scratch = device_bytes(values * sizeof(float)),
                                     .samples = device_bytes(n * sizeof(hrk_sample)),
                                     .tops = device_bytes((size_t)n * HRK_TOP_MAX * sizeof(hrk_top))};
        j.args[i] = &args[i];
    }
    detail_of(detail, sizeof detail, n, 0, "");
    report(b, "sampler", s->model, detail, time_job(b, &j), 4.0 * n * s->V, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        release(args[i].logits);
        release(args[i].scratch);
        release(args[i].samples);
        release(args[i].tops);
    }
}

static void bench_step_begin(bench *b, const shape *s, uint32_t T)
{
    hrk_step_begin_args args;
    job j = {.launch = launch_step_begin, .n_sets = 1};
    char detail[128];
    float *norm;

    if (!wanted(b, "step_begin"))
        return;
    set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    norm = ones(s->H);
    args = (hrk_step_begin_args){.tables = b->tables,
                                 .max_rows = T,
                                 .embedding = noise(b, (size_t)s->V * hrk_ld(s->H)),
                                 .H = s->H,
                                 .V = s->V,
                                 .norm = norm,
                                 .eps = 1e-5f,
                                 .x = noise(b, (size_t)T * hrk_ld(s->H)),
                                 .xn = noise(b, (size_t)T * hrk_ld(s->H))};
    j.args[0] = &args;
    detail_of(detail, sizeof detail, T, 0, "");
    report(b, "step_begin", s->model, detail, time_job(b, &j), 6.0 * T * s->H, 0);
    release(args.embedding);
    release(args.x);
    release(args.xn);
    release(norm);
}

/* Everything that lives as long as the program. */
static void give_back(bench *b)
{
    const void *all[] = {
        b->noise,          b->upload,          b->tables.next_token, b->tables.page_table, b->tables.sampling,
        b->tables.bias,    b->tables.stop_ids, b->tables.seen,       b->tables.row_token,  b->tables.row_position,
        b->tables.row_span};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release(all[i]);
    check((int)cudaStreamDestroy(b->on.stream), "cudaStreamDestroy");
    free(b->host_upload);
}

/* What this card can do at most: a device copy, counted read and written. */
static void bench_ceiling(bench *b)
{
    size_t n = b->quick ? 1u << 20 : (size_t)1 << 30;
    void *from = noise(b, n / 2), *to = device_bytes(n);
    cudaEvent_t begin, end;
    float ms, best = 1e30f;

    check((int)cudaEventCreate(&begin), "event");
    check((int)cudaEventCreate(&end), "event");
    settle();
    for (int i = 0; i < 6; i++) {
        check((int)cudaEventRecord(begin, b->on.stream), "event");
        check((int)cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, b->on.stream), "copy");
        check((int)cudaEventRecord(end, b->on.stream), "event");
        check((int)cudaEventSynchronize(end), "copy");
        check((int)cudaEventElapsedTime(&ms, begin, end), "elapsed time");
        best = ms > 0 && ms < best ? ms : best;
    }
    report(b, "device_copy", "ceiling", "\"rows\": 0, \"context\": 0", 1e3f * best, 2.0 * (double)n, 0);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    release(from);
    release(to);
}

static void run_all(bench *b)
{
    static const uint32_t FULL_ROWS[] = {1, 8, 64, 256, 1024, 4096, 8192}, QUICK_ROWS[] = {1, 12};
    const uint32_t *rows = b->quick ? QUICK_ROWS : FULL_ROWS;
    uint32_t n_rows = b->quick ? 2 : 7, n_shapes = b->quick ? 1 : 3;
    const shape *shapes = b->quick ? QUICK_SHAPES : FULL_SHAPES;

    bench_ceiling(b);
    for (uint32_t i = 0; i < n_shapes; i++)
        for (uint32_t k = 0; k < n_rows; k++)
            if (wants_rows(b, rows[k]))
                bench_moe(b, &shapes[i], rows[k]);
    for (uint32_t k = 0; k < n_rows; k++) {
        if (!wants_rows(b, rows[k]))
            continue;
        bench_operators(b, &shapes[0], rows[k]);
        bench_linear(b, &shapes[0], rows[k], "out_proj", shapes[0].H, shapes[0].H, HRK_RESIDUAL);
        bench_linear(b, &shapes[n_shapes - 1], rows[k], "ffn_down", shapes[n_shapes - 1].H, shapes[n_shapes - 1].F,
                     HRK_RESIDUAL);
        bench_step_begin(b, &shapes[0], rows[k]);
        if (rows[k] < b->n_slots) {
            bench_linear(b, &shapes[0], rows[k], "head", shapes[0].V, shapes[0].H, HRK_STORE_F32);
            bench_sampler(b, &shapes[0], rows[k]);
        }
    }
    if (b->quick) {
        bench_attention(b, &shapes[0], 3, 200, false);
        bench_attention(b, &shapes[0], 100, 0, true);
        return;
    }
    for (uint32_t n = 1; n <= 1024; n *= 8) {
        bench_attention(b, &shapes[0], n == 512 ? 1024 : n, 1024, false);
        if (n <= 64)
            bench_attention(b, &shapes[0], n, 8192, false);
    }
    bench_attention(b, &shapes[0], 256, 1024, false);
    bench_attention(b, &shapes[0], 1024, 1024, false);
    bench_attention(b, &shapes[0], 1, 32768, false);
    for (uint32_t n = 2048; n <= 32768; n *= 4)
        bench_attention(b, &shapes[0], n, 0, true);
}

int main(int argc, char **argv)
{
    bench b = {.deadline = 1e300, .out = stdout};
    struct cudaDeviceProp device;
    double start = now();

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0)
            b.quick = true;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            b.only = argv[++i];
        else if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc)
            b.only_rows = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--budget") == 0 && i + 1 < argc)
            b.deadline = start + strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--out") == 0 && i + 1 < argc)
            b.out = fopen(argv[++i], "w");
        else {
            (void)fprintf(stderr, "bench_kernels [--quick] [--only NAME] [--rows N] [--budget SECONDS] [--out FILE]\n");
            return 2;
        }
    }
    if (!b.out) {
        perror("bench_kernels: --out");
        return 1;
    }
    check((int)cudaGetDeviceProperties(&device, 0), "no usable device");
    b.l2_bytes = (size_t)device.l2CacheSize ? (size_t)device.l2CacheSize : 1u << 20;
    b.on = (hrk_launch){.n_sms = (uint32_t)device.multiProcessorCount, .programmatic = false};
    check((int)cudaStreamCreateWithFlags(&b.on.stream, cudaStreamNonBlocking), "stream");
    make_noise(&b);
    make_tables(&b, b.quick ? 256 : 32768);
    run_all(&b);
    give_back(&b);
    return b.out == stdout ? 0 : fclose(b.out) != 0;
}
