/* The kernels that work on rows already multiplied: what an architecture without the fused ones runs between products.
 */
#include "bench_common.h"

static int launch_norm(const void *args, const hrk_launch *on)
{
    return hrk_norm(args, on);
}

static int launch_conv(const void *args, const hrk_launch *on)
{
    return hrk_conv(args, on);
}

static int launch_qk_rope(const void *args, const hrk_launch *on)
{
    return hrk_qk_rope(args, on);
}

static void time_norm(bench *b, const shape *s, uint32_t T, const char *detail)
{
    double bytes = 4.0 * T * s->H;
    hrk_norm_args args[SETS_MAX];
    job j = {.launch = launch_norm, .n_sets = bench_sets(b, bytes)};
    float *weight = bench_ones(s->H);

    for (uint32_t i = 0; i < j.n_sets; i++) {
        args[i] = (hrk_norm_args){.tables = b->tables,
                                  .max_rows = T,
                                  .x = bench_noise(b, (size_t)T * hrk_ld(s->H)),
                                  .weight = weight,
                                  .H = s->H,
                                  .eps = 1e-5f,
                                  .out = bench_noise(b, (size_t)T * hrk_ld(s->H))};
        j.args[i] = &args[i];
    }
    bench_report(b, "norm", s->model, detail, bench_time(b, &j), bytes, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].x);
        bench_release(args[i].out);
    }
    bench_release(weight);
}

static void time_conv(bench *b, const shape *s, uint32_t T, const char *detail)
{
    double bytes = 8.0 * T * s->H + (T < b->n_slots ? 8.0 * T * s->H : 0);
    hrk_conv_args args[SETS_MAX];
    job j = {.launch = launch_conv, .n_sets = bench_sets(b, bytes)};
    float *taps = bench_ones(s->H * 3);

    for (uint32_t i = 0; i < j.n_sets; i++) {
        args[i] = (hrk_conv_args){.tables = b->tables,
                                  .max_rows = T,
                                  .bcx = bench_noise(b, (size_t)T * hrk_ld(3 * s->H)),
                                  .taps = taps,
                                  .H = s->H,
                                  .L = 3,
                                  .state = {bench_noise(b, 4 * (size_t)b->n_slots * s->H), (size_t)2 * s->H},
                                  .y = bench_noise(b, (size_t)T * hrk_ld(s->H))};
        j.args[i] = &args[i];
    }
    bench_report(b, "conv", s->model, detail, bench_time(b, &j), bytes, 8.0 * T * s->H);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].bcx);
        bench_release(args[i].state.base);
        bench_release(args[i].y);
    }
    bench_release(taps);
}

static void time_qk_rope(bench *b, const shape *s, uint32_t T, const char *detail)
{
    uint32_t cols = (s->Nq + 2 * s->Nkv) * s->D;
    size_t page = (size_t)2 * s->Nkv * b->P * s->D;
    double bytes = 4.0 * T * cols;
    hrk_qk_rope_args args[SETS_MAX];
    job j = {.launch = launch_qk_rope, .n_sets = bench_sets(b, bytes)};
    float *norm = bench_ones(s->D), *rope = bench_ones(b->max_pages * b->P * s->D);
    hrk_bf16 *pool = bench_noise(b, page * b->n_pages);

    for (uint32_t i = 0; i < j.n_sets; i++) {
        args[i] = (hrk_qk_rope_args){.tables = b->tables,
                                     .max_rows = T,
                                     .qkv = bench_noise(b, (size_t)T * hrk_ld(cols)),
                                     .q_norm = norm,
                                     .k_norm = norm,
                                     .eps = 1e-5f,
                                     .rope = rope,
                                     .Nq = s->Nq,
                                     .kv = {pool, page, b->P, s->Nkv, s->D, true},
                                     .q = bench_noise(b, (size_t)T * hrk_ld(s->Nq * s->D))};
        j.args[i] = &args[i];
    }
    bench_report(b, "qk_rope", s->model, detail, bench_time(b, &j), bytes, 0);
    for (uint32_t i = 0; i < j.n_sets; i++) {
        bench_release(args[i].qkv);
        bench_release(args[i].q);
    }
    bench_release(norm);
    bench_release(rope);
    bench_release(pool);
}

void bench_portable_rows(bench *b, const shape *s, uint32_t T)
{
    char detail[64];

    bench_set_step(b, T < b->n_slots ? T : 0, b->quick ? b->P : 1024, T < b->n_slots ? 0 : T);
    bench_detail(detail, sizeof detail, T, 0, "");
    if (bench_wants(b, "norm"))
        time_norm(b, s, T, detail);
    if (bench_wants(b, "conv"))
        time_conv(b, s, T, detail);
    if (bench_wants(b, "qk_rope"))
        time_qk_rope(b, s, T, detail);
}
