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
#include "bench_common.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

static const shape FULL_SHAPES[] = {
    {"24b-a2b", 2048, 32, 8, 64, 11776, 64, 4, 1536, 65536},
    {"8b-a1b", 2048, 32, 8, 64, 7168, 32, 4, 1792, 65536},
    {"1.2b", 2048, 32, 8, 64, 8192, 0, 0, 0, 65536},
};
static const shape QUICK_SHAPES[] = {{"quick", 128, 4, 2, 64, 192, 8, 2, 64, 512}};
static const shape QUICK_BLOCKS = {"quick", 256, 4, 2, 64, 256, 8, 2, 256, 512}; /* whole blocks of 256 columns */

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
LAUNCHER(attention_simple)
LAUNCHER(sampler)
LAUNCHER(step_begin)

/* Plain products: out_proj with the residual, the dense feed-forward, the head. */
static void bench_linear(bench *b, const shape *s, uint32_t T, const char *name, uint32_t rows, uint32_t cols,
                         hrk_epilogue epilogue)
{
    hrk_linear_args args[SETS_MAX];
    job j = {.launch = launch_linear};
    double weights = bench_weight_bytes(b, (double)rows * cols), bytes;
    char detail[128], kernel[64];

    (void)snprintf(kernel, sizeof kernel, "linear_%s", name);
    if (!bench_wants(b, kernel))
        return;
    bench_set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    j.n_sets = bench_sets(b, weights);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        args[i] = (hrk_linear_args){
            .tables = b->tables,
            .over = epilogue == HRK_STORE_F32 ? HRK_ROWS_OUTPUTS : HRK_ROWS_ALL,
            .max_rows = T,
            .w = bench_matrix(b, rows, cols, 1, 1),
            .in = bench_noise(b, (size_t)T * hrk_ld(cols)),
            .epilogue = epilogue,
            .out = bench_noise(b, (size_t)T * hrk_ld(rows) * (epilogue == HRK_STORE_F32 ? 2 : 1)),
        };
        j.args[i] = &args[i];
    }
    bytes = weights + 2.0 * T * cols +
            T * (double)rows *
                (epilogue == HRK_STORE_F32  ? 4
                 : epilogue == HRK_RESIDUAL ? 4
                                            : 2);
    bench_detail(detail, sizeof detail, T, 0, "");
    bench_report(b, kernel, s->model, detail, bench_time(b, &j), bytes, 2.0 * T * rows * cols);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].w.data);
        bench_release(args[i].in);
        bench_release(args[i].out);
    }
}

static uint32_t count_distinct(const hrk_routing *routing)
{
    uint32_t first[513], n = 0;

    bench_check((int)cudaMemcpy(first, routing->first, (routing->E + 1) * sizeof first[0], cudaMemcpyDeviceToHost),
                "first");
    for (uint32_t e = 0; e < routing->E; e++)
        n += first[e + 1] > first[e];
    return n;
}

/* The mixture: route, gate and up, down, combine; each alone, on lists that the router itself made of random rows. */
static void bench_moe(bench *b, const shape *s, uint32_t T)
{
    uint32_t n = T * s->K, sets;
    double expert = bench_weight_bytes(b, 3.0 * s->H * s->M);
    hrk_route_args route[SETS_MAX];
    hrk_gate_up_args gate_up[SETS_MAX];
    hrk_down_args down[SETS_MAX];
    hrk_combine_args combine[SETS_MAX];
    job j = {0};
    char detail[160], extra[64];
    float *norm;
    double distinct = 0;

    if (!s->E ||
        !(bench_wants(b, "route") || bench_wants(b, "gate_up") || bench_wants(b, "down") || bench_wants(b, "combine")))
        return;
    bench_set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    norm = bench_ones(s->H);
    sets = bench_sets(b, expert * s->E) < 4 ? bench_sets(b, expert * s->E) : 4;
    for (uint32_t i = 0; i < sets; i++) {
        size_t scratch = hrk_route_scratch(T, s->E, s->K);
        hrk_routing r = {.E = s->E,
                         .K = s->K,
                         .ids = bench_device_bytes(n * 4),
                         .weights = bench_device_bytes(n * 4),
                         .first = bench_device_bytes((s->E + 1) * 4),
                         .sorted = bench_device_bytes(n * 4),
                         .place = bench_device_bytes(n * 4),
                         .scratch = bench_device_bytes(scratch)};

        bench_check((int)cudaMemset(r.scratch, 0, scratch), "memset");
        route[i] = (hrk_route_args){.tables = b->tables,
                                    .max_rows = T,
                                    .x = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                    .norm = norm,
                                    .eps = 1e-5f,
                                    .xn = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                    .router = bench_noise(b, (size_t)s->E * hrk_ld(s->H)),
                                    .H = s->H,
                                    .normalise = true,
                                    .scale = 1,
                                    .routing = r};
        gate_up[i] = (hrk_gate_up_args){.tables = b->tables,
                                        .max_rows = T,
                                        .w = bench_matrix(b, s->M, s->H, 2, s->E),
                                        .in = route[i].xn,
                                        .routing = &route[i].routing,
                                        .h = bench_noise(b, (size_t)n * hrk_ld(s->M))};
        down[i] = (hrk_down_args){.tables = b->tables,
                                  .max_rows = T,
                                  .w = bench_matrix(b, s->H, s->M, 1, s->E),
                                  .h = bench_noise(b, (size_t)n * hrk_ld(s->M)),
                                  .routing = &route[i].routing,
                                  .y = bench_noise(b, (size_t)n * hrk_ld(s->H))};
        combine[i] = (hrk_combine_args){.tables = b->tables,
                                        .max_rows = T,
                                        .y = down[i].y,
                                        .routing = route[i].routing,
                                        .H = s->H,
                                        .x = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                        .norm = norm,
                                        .eps = 1e-5f,
                                        .xn = bench_noise(b, (size_t)T * hrk_ld(s->H))};
        bench_settle();
        bench_check(hrk_route(&route[i], &b->on), "route");
        bench_check((int)cudaStreamSynchronize(b->on.stream), "route");
        distinct += count_distinct(&route[i].routing) / (double)sets;
    }
    (void)snprintf(extra, sizeof extra, ", \"distinct_experts\": %.1f", distinct);
    bench_detail(detail, sizeof detail, T, 0, extra);
    j.n_sets = sets;
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &route[i];
    j.launch = launch_route;
    if (bench_wants(b, "route") && b->layout == HRK_TILED)
        bench_report(b, "route", s->model, detail, bench_time(b, &j), 2.0 * s->E * s->H + 4.0 * T * s->H,
                     2.0 * T * s->E * s->H);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &gate_up[i];
    j.launch = launch_gate_up;
    if (bench_wants(b, "gate_up"))
        bench_report(b, "gate_up", s->model, detail, bench_time(b, &j),
                     distinct * expert * 2 / 3 + 2.0 * T * s->H + 2.0 * n * s->M, 4.0 * n * s->H * s->M);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &down[i];
    j.launch = launch_down;
    if (bench_wants(b, "down"))
        bench_report(b, "down", s->model, detail, bench_time(b, &j),
                     distinct * expert / 3 + 2.0 * n * s->M + 2.0 * n * s->H, 2.0 * n * s->H * s->M);
    for (uint32_t i = 0; i < sets; i++)
        j.args[i] = &combine[i];
    j.launch = launch_combine;
    if (bench_wants(b, "combine") && b->layout == HRK_TILED)
        bench_report(b, "combine", s->model, detail, bench_time(b, &j), 2.0 * n * s->H + 6.0 * T * s->H,
                     2.0 * n * s->H);
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
            bench_release(all[k]);
    }
    bench_release(norm);
}

/* The convolution with its projection, and q, k, v with norm, rotation and page write. */
static void bench_operators(bench *b, const shape *s, uint32_t T)
{
    hrk_conv_in_args conv[SETS_MAX];
    hrk_qkv_args qkv[SETS_MAX];
    uint32_t rows = (s->Nq + 2 * s->Nkv) * s->D;
    double conv_bytes = bench_weight_bytes(b, 3.0 * s->H * s->H);
    double qkv_bytes = bench_weight_bytes(b, (double)rows * s->H);
    size_t page = (size_t)2 * s->Nkv * b->P * s->D, states = 2 * (size_t)b->n_slots;
    job j = {0};
    char detail[128];

    bench_set_step(b, T < b->n_slots ? T : 0, 1024 < b->max_pages * b->P ? 1024 : b->P, T < b->n_slots ? 0 : T);
    bench_detail(detail, sizeof detail, T, 0, "");
    if (bench_wants(b, "conv_in")) {
        float *taps = bench_ones(s->H * 3);

        j = (job){.launch = launch_conv_in, .n_sets = bench_sets(b, conv_bytes)};
        for (uint32_t i = 0; i < j.n_sets; i++) {
            conv[i] = (hrk_conv_in_args){.tables = b->tables,
                                         .max_rows = T,
                                         .w = bench_matrix(b, s->H, s->H, 3, 1),
                                         .in = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                         .taps = taps,
                                         .L = 3,
                                         .state = {bench_noise(b, states * 2 * s->H), (size_t)2 * s->H},
                                         .y = bench_noise(b, (size_t)T * hrk_ld(s->H))};
            j.args[i] = &conv[i];
        }
        bench_report(b, "conv_in", s->model, detail, bench_time(b, &j),
                     conv_bytes + 4.0 * T * s->H + (T < b->n_slots ? 8.0 * T * s->H : 0), 6.0 * T * s->H * s->H);
        for (uint32_t i = 0; i < j.n_sets; i++) {
            bench_release(conv[i].w.data);
            bench_release(conv[i].in);
            bench_release(conv[i].state.base);
            bench_release(conv[i].y);
        }
        bench_release(taps);
    }
    if (bench_wants(b, "qkv")) {
        float *norm = bench_ones(s->D), *rope = bench_ones(b->max_pages * b->P * s->D);
        hrk_bf16 *pool = bench_noise(b, page * b->n_pages);

        j = (job){.launch = launch_qkv, .n_sets = bench_sets(b, qkv_bytes)};
        for (uint32_t i = 0; i < j.n_sets; i++) {
            qkv[i] = (hrk_qkv_args){.tables = b->tables,
                                    .max_rows = T,
                                    .w = bench_matrix(b, rows, s->H, 1, 1),
                                    .k_layout = b->layout,
                                    .v_layout = b->layout,
                                    .in = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                    .q_norm = norm,
                                    .k_norm = norm,
                                    .eps = 1e-5f,
                                    .rope = rope,
                                    .Nq = s->Nq,
                                    .kv = {pool, page, b->P, s->Nkv, s->D, true},
                                    .q = bench_noise(b, (size_t)T * hrk_ld(s->Nq * s->D))};
            j.args[i] = &qkv[i];
        }
        bench_report(b, "qkv", s->model, detail, bench_time(b, &j), qkv_bytes + 2.0 * T * s->H + 2.0 * T * rows,
                     2.0 * T * rows * s->H);
        for (uint32_t i = 0; i < j.n_sets; i++) {
            bench_release(qkv[i].w.data);
            bench_release(qkv[i].in);
            bench_release(qkv[i].q);
        }
        bench_release(norm);
        bench_release(rope);
        bench_release(pool);
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
    job j = {.launch = b->layout == HRK_ROW_MAJOR ? launch_attention_simple
                       : is_prompt                ? launch_attention_prefill
                                                  : launch_attention_decode};
    char detail[128];

    if (!bench_wants(b, kernel) || !bench_wants_rows(b, n))
        return;
    bench_set_step(b, is_prompt ? 0 : n, is_prompt ? 0 : context, is_prompt ? n : 0);
    scratch = hrk_attention_scratch(n, chunks ? chunks : 1, s->Nq, s->D);
    /* The page table spreads sequences over the pool: a set is a pool of its own. */
    j.n_sets = b->quick ? 2 : 3;
    for (uint32_t i = 0; i < j.n_sets; i++) {
        void *space = bench_device_bytes(scratch);

        bench_check((int)cudaMemset(space, 0, scratch), "memset");
        args[i] = (hrk_attention_args){.tables = b->tables,
                                       .max_decode_items = is_prompt ? 0 : n,
                                       .max_chunk_items = chunks,
                                       .max_prefill_tiles = is_prompt ? (n + 63) / 64 : 0,
                                       .q = bench_noise(b, (size_t)n * hrk_ld(s->Nq * s->D)),
                                       .Nq = s->Nq,
                                       .kv = {bench_noise(b, page * b->n_pages), page, b->P, s->Nkv, s->D, true},
                                       .out = bench_noise(b, (size_t)n * hrk_ld(s->Nq * s->D)),
                                       .scratch = space};
        j.args[i] = &args[i];
    }
    bench_detail(detail, sizeof detail, n, is_prompt ? n : context, "");
    bench_report(b, kernel, s->model, detail, bench_time(b, &j),
                 (is_prompt ? (double)n : keys) * 4.0 * s->Nkv * s->D + 4.0 * n * s->Nq * s->D,
                 4.0 * keys * s->Nq * s->D);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].q);
        bench_release(args[i].kv.base);
        bench_release(args[i].out);
        bench_release(args[i].scratch);
    }
}

static void bench_sampler(bench *b, const shape *s, uint32_t n)
{
    hrk_sampler_args args[SETS_MAX];
    job j = {.launch = launch_sampler, .n_sets = b->quick ? 2 : 3};
    char detail[128];

    if (!bench_wants(b, "sampler"))
        return;
    bench_set_step(b, n, 64, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        size_t values = (size_t)n * hrk_ld(s->V);
        float *host = malloc(values * sizeof *host), *logits = bench_device_bytes(values * sizeof *host);

        for (size_t k = 0; host && k < values; k++) {
            uint32_t u = (uint32_t)bench_random_bf16(k * 3 + i, 2.5f) << 16;

            memcpy(&host[k], &u, 4);
        }
        bench_check((int)cudaMemcpy(logits, host, values * sizeof *host, cudaMemcpyHostToDevice), "logits");
        free(host);
        args[i] = (hrk_sampler_args){.tables = b->tables,
                                     .max_outputs = n,
                                     .logits = logits,
                                     .V = s->V,
                                     .n_valid = s->V,
                                     .scratch = bench_device_bytes(values * sizeof(float)),
                                     .samples = bench_device_bytes(n * sizeof(hrk_sample)),
                                     .tops = bench_device_bytes((size_t)n * HRK_TOP_MAX * sizeof(hrk_top))};
        j.args[i] = &args[i];
    }
    bench_detail(detail, sizeof detail, n, 0, "");
    bench_report(b, "sampler", s->model, detail, bench_time(b, &j), 4.0 * n * s->V, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].logits);
        bench_release(args[i].scratch);
        bench_release(args[i].samples);
        bench_release(args[i].tops);
    }
}

static void bench_step_begin(bench *b, const shape *s, uint32_t T)
{
    hrk_step_begin_args args;
    job j = {.launch = launch_step_begin, .n_sets = 1};
    char detail[128];
    float *norm;

    if (!bench_wants(b, "step_begin"))
        return;
    bench_set_step(b, T < b->n_slots ? T : 0, 64, T < b->n_slots ? 0 : T);
    norm = bench_ones(s->H);
    args = (hrk_step_begin_args){.tables = b->tables,
                                 .max_rows = T,
                                 .embedding = bench_noise(b, (size_t)s->V * hrk_ld(s->H)),
                                 .H = s->H,
                                 .V = s->V,
                                 .norm = norm,
                                 .eps = 1e-5f,
                                 .x = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                 .xn = bench_noise(b, (size_t)T * hrk_ld(s->H))};
    j.args[0] = &args;
    bench_detail(detail, sizeof detail, T, 0, "");
    bench_report(b, "step_begin", s->model, detail, bench_time(b, &j), 6.0 * T * s->H, 0);
    bench_release(args.embedding);
    bench_release(args.x);
    bench_release(args.xn);
    bench_release(norm);
}

/* What this card can do at most: a device copy, counted read and written. */
static void bench_ceiling(bench *b)
{
    size_t n = b->quick ? 1u << 20 : (size_t)1 << 30;
    void *from = bench_noise(b, n / 2), *to = bench_device_bytes(n);
    cudaEvent_t begin, end;
    float ms, best = 1e30f;

    bench_check((int)cudaEventCreate(&begin), "event");
    bench_check((int)cudaEventCreate(&end), "event");
    bench_settle();
    for (int i = 0; i < 6; i++) {
        bench_check((int)cudaEventRecord(begin, b->on.stream), "event");
        bench_check((int)cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, b->on.stream), "copy");
        bench_check((int)cudaEventRecord(end, b->on.stream), "event");
        bench_check((int)cudaEventSynchronize(end), "copy");
        bench_check((int)cudaEventElapsedTime(&ms, begin, end), "elapsed time");
        best = ms > 0 && ms < best ? ms : best;
    }
    bench_report(b, "device_copy", "ceiling", "\"rows\": 0, \"context\": 0", 1e3f * best, 2.0 * (double)n, 0);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    bench_release(from);
    bench_release(to);
}

/* The kernels that other architectures run, and the odd shapes here: row-major weights, nothing fused. */
static void run_portable(bench *b, const shape *moe, const shape *dense)
{
    static const uint32_t FULL_ROWS[] = {1, 64, 1024}, QUICK_ROWS[] = {1, 12};

    b->layout = HRK_ROW_MAJOR;
    b->prefix = "portable_";
    for (uint32_t k = 0; k < (b->quick ? 2 : 3); k++) {
        uint32_t T = b->quick ? QUICK_ROWS[k] : FULL_ROWS[k];

        if (!bench_wants_rows(b, T))
            continue;
        bench_moe(b, moe, T);
        bench_linear(b, dense, T, "ffn_down", dense->H, dense->F, HRK_RESIDUAL);
        bench_portable_rows(b, moe, T);
    }
    bench_attention(b, moe, b->quick ? 3 : 64, b->quick ? 200 : 1024, false);
    bench_attention(b, moe, b->quick ? 100 : 2048, 0, true);
}

/* Quantised weights, the formats that a Q4_K_M file is made of and Q8_0, on the shapes of a dense model and a mixture.
 */
static void run_quantised(bench *b, const shape *moe, const shape *dense)
{
    static const struct {
        hrk_layout layout;
        const char *prefix;
    } FORMATS[] = {{HRK_TILED_Q4_K, "q4_k_"}, {HRK_TILED_Q6_K, "q6_k_"}, {HRK_TILED_Q8_0, "q8_0_"}};
    static const uint32_t FULL_ROWS[] = {1, 8, 64, 256, 1024}, QUICK_ROWS[] = {12};

    for (uint32_t f = 0; f < 3; f++) {
        b->layout = FORMATS[f].layout;
        b->prefix = FORMATS[f].prefix;
        for (uint32_t k = 0; k < (b->quick ? 1 : 5); k++) {
            uint32_t T = b->quick ? QUICK_ROWS[k] : FULL_ROWS[k];

            if (!bench_wants_rows(b, T))
                continue;
            bench_moe(b, moe, T);
            bench_operators(b, moe, T);
            bench_linear(b, dense, T, "ffn_down", dense->H, dense->F, HRK_RESIDUAL);
            if (T < b->n_slots)
                bench_linear(b, moe, T, "head", moe->V, moe->H, HRK_STORE_F32);
        }
    }
    b->layout = HRK_TILED;
    b->prefix = "";
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
            if (bench_wants_rows(b, rows[k]))
                bench_moe(b, &shapes[i], rows[k]);
    for (uint32_t k = 0; k < n_rows; k++) {
        if (!bench_wants_rows(b, rows[k]))
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
        bench_attention(b, &shapes[0], n == 512 ? 256 : n, 1024, false);
        if (n <= 64)
            bench_attention(b, &shapes[0], n, 8192, false);
    }
    bench_attention(b, &shapes[0], 1024, 1024, false);
    bench_attention(b, &shapes[0], 1, 32768, false);
    for (uint32_t n = 2048; n <= 32768; n *= 4)
        bench_attention(b, &shapes[0], n, 0, true);
}

int main(int argc, char **argv)
{
    bench b = {.deadline = 1e300, .out = stdout, .layout = HRK_TILED, .prefix = ""};
    double start = bench_now();

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
    bench_open(&b);
    run_all(&b);
    run_quantised(&b, b.quick ? &QUICK_BLOCKS : FULL_SHAPES, b.quick ? &QUICK_BLOCKS : &FULL_SHAPES[2]);
    run_portable(&b, b.quick ? QUICK_SHAPES : FULL_SHAPES, b.quick ? QUICK_SHAPES : &FULL_SHAPES[2]);
    bench_close(&b);
    return b.out == stdout ? 0 : fclose(b.out) != 0;
}
