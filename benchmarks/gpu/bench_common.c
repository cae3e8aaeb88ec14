/* See bench_common.h. */
#include "bench_common.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPLAYS = 9 };

double bench_now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bench_check(int rc, const char *what)
{
    if (rc == 0)
        return;
    (void)fprintf(stderr, "bench_kernels: %s: %s\n", what, cudaGetErrorString((cudaError_t)rc));
    exit(1);
}

void *bench_device_bytes(size_t n)
{
    void *p = NULL;

    bench_check((int)cudaMalloc(&p, n + 256), "cudaMalloc");
    return p;
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Random bf16 with the sum of four uniforms as an approximate normal, times scale. */
hrk_bf16 bench_random_bf16(uint64_t index, float scale)
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
        host[i] = bench_random_bf16(i, 1.0f);
    b->noise = bench_device_bytes(b->noise_bytes);
    bench_check((int)cudaMemcpy(b->noise, host, b->noise_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(host);
}

/* Device memory full of noise, beginning somewhere else for every call. The values have standard deviation 1: products
 * of K of them stay far inside bf16's range, and routing on them is even. */
hrk_bf16 *bench_noise(bench *b, size_t values)
{
    static uint64_t calls;
    size_t n = values * 2, shift = (size_t)(mix(++calls) % (b->noise_bytes / 64)) * 32;
    unsigned char *p = bench_device_bytes(n);

    for (size_t at = 0; at < n;) {
        size_t piece = b->noise_bytes - shift < n - at ? b->noise_bytes - shift : n - at;

        bench_check((int)cudaMemcpy(p + at, b->noise + shift, piece, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        at += piece;
        shift = 0;
    }
    return (hrk_bf16 *)p;
}

float *bench_ones(uint32_t n)
{
    float *host = malloc(n * sizeof *host), *p = bench_device_bytes(n * sizeof *p);

    for (uint32_t i = 0; host && i < n; i++)
        host[i] = 1.0f;
    bench_check((int)cudaMemcpy(p, host, n * sizeof *p, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(host);
    return p;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

void bench_settle(void)
{
    bench_check((int)cudaDeviceSynchronize(), "filling the inputs");
}

float bench_time(const bench *b, const job *j)
{
    uint32_t rounds = b->quick ? 1 : j->n_sets >= 8 ? 2 : 16 / j->n_sets, replays = b->quick ? 1 : REPLAYS;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float us[REPLAYS];

    bench_settle();
    for (uint32_t i = 0; i < j->n_sets; i++)
        bench_check(j->launch(j->args[i], &b->on), "launch");
    bench_check((int)cudaStreamSynchronize(b->on.stream), "first launches");
    bench_check((int)cudaStreamBeginCapture(b->on.stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t r = 0; r < rounds; r++)
        for (uint32_t i = 0; i < j->n_sets; i++)
            bench_check(j->launch(j->args[i], &b->on), "launch in capture");
    bench_check((int)cudaStreamEndCapture(b->on.stream, &graph), "end of capture");
    bench_check((int)cudaGraphInstantiate(&exec, graph, 0), "graph");
    bench_check((int)cudaEventCreate(&begin), "event");
    bench_check((int)cudaEventCreate(&end), "event");
    bench_check((int)cudaGraphLaunch(exec, b->on.stream), "warm-up");
    for (uint32_t r = 0; r < replays; r++) {
        float ms;

        bench_check((int)cudaEventRecord(begin, b->on.stream), "event");
        bench_check((int)cudaGraphLaunch(exec, b->on.stream), "graph launch");
        bench_check((int)cudaEventRecord(end, b->on.stream), "event");
        bench_check((int)cudaEventSynchronize(end), "replay");
        bench_check((int)cudaEventElapsedTime(&ms, begin, end), "elapsed time");
        us[r] = 1e3f * ms / (float)(rounds * j->n_sets);
    }
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    qsort(us, replays, sizeof us[0], by_value);
    return us[replays / 2];
}

void bench_report(const bench *b, const char *kernel, const char *model, const char *detail, float us, double bytes,
                  double flop)
{
    (void)fprintf(b->out,
                  "{\"kernel\": \"%s%s\", \"model\": \"%s\", %s, \"us\": %.3f, \"bytes\": %.0f, \"flop\": %.0f, "
                  "\"gb_s\": %.1f, \"tflop_s\": %.2f}\n",
                  b->prefix, kernel, model, detail, (double)us, bytes, flop, bytes / (double)us * 1e-3,
                  flop / (double)us * 1e-6);
    (void)fflush(b->out);
}

bool bench_wants(const bench *b, const char *kernel)
{
    char name[64];

    (void)snprintf(name, sizeof name, "%s%s", b->prefix, kernel);
    return (!b->only || strstr(b->only, name)) && bench_now() < b->deadline;
}

bool bench_wants_rows(const bench *b, uint32_t n)
{
    return !b->only_rows || b->only_rows == n;
}

uint32_t bench_sets(const bench *b, double bytes)
{
    double n = 3.0 * (double)b->l2_bytes / bytes;

    if (b->quick)
        return 2;
    return n < 3 ? 3 : n > SETS_MAX ? SETS_MAX : (uint32_t)n + 1;
}

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
    bench_check((int)cudaMemcpy(b->tables.row_position, values, step->n_rows * sizeof *values, cudaMemcpyHostToDevice),
                "positions of rows");
    bench_check((int)cudaMemcpy(b->tables.row_span, of_row, step->n_rows * sizeof *values, cudaMemcpyHostToDevice),
                "spans of rows");
    free(values);
}

void bench_set_step(bench *b, uint32_t n_decode, uint32_t context, uint32_t n_prompt)
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
            (hrk_output){.row = is_prompt ? T - 1 : i, .slot = i, .score_id = -1, .is_sampled = 1};
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
    bench_check((int)cudaMemcpy(b->upload, b->host_upload, at, cudaMemcpyHostToDevice), "upload");
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
    b->upload = bench_device_bytes(b->upload_bytes);
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
        .next_token = bench_device_bytes(b->n_slots * sizeof(int32_t)),
        .page_table = bench_device_bytes((size_t)b->n_slots * b->max_pages * sizeof *pages),
        .max_pages = b->max_pages,
        .sampling = bench_device_bytes(b->n_slots * sizeof *all),
        .bias = bench_device_bytes((size_t)b->n_slots * HRK_BIAS_MAX * sizeof(hrk_bias)),
        .stop_ids = bench_device_bytes((size_t)b->n_slots * HRK_STOP_IDS_MAX * sizeof(int32_t)),
        .seen_ld = 65536,
        .row_token = bench_device_bytes(max_rows * sizeof(int32_t)),
        .row_position = bench_device_bytes(max_rows * sizeof(uint32_t)),
        .row_span = bench_device_bytes(max_rows * sizeof(uint32_t)),
    };
    b->tables.seen = bench_device_bytes((size_t)b->n_slots * b->tables.seen_ld * 2);
    bench_check((int)cudaMemset(b->tables.seen, 0, (size_t)b->n_slots * b->tables.seen_ld * 2), "memset");
    bench_check((int)cudaMemset(b->tables.next_token, 0, b->n_slots * sizeof(int32_t)), "memset");
    bench_check((int)cudaMemcpy(b->tables.page_table, pages, (size_t)b->n_slots * b->max_pages * sizeof *pages,
                                cudaMemcpyHostToDevice),
                "page table");
    bench_check((int)cudaMemcpy(b->tables.sampling, all, b->n_slots * sizeof *all, cudaMemcpyHostToDevice), "sampling");
    free(pages);
    free(all);
}

hrk_matrix bench_matrix(bench *b, uint32_t rows, uint32_t cols, uint32_t groups, uint32_t stack)
{
    return (hrk_matrix){.data = bench_noise(b, hrk_matrix_bytes(rows, cols, groups, b->layout) * stack / 2),
                        .rows = rows,
                        .cols = cols,
                        .n_groups = groups,
                        .n_stack = stack,
                        .layout = b->layout};
}

double bench_weight_bytes(const bench *b, double values)
{
    /* A strip's bytes as a share of its values': the same for every matrix of whole blocks. */
    return values * (double)hrk_matrix_bytes(64, 256, 1, b->layout) / (64 * 256);
}

void bench_release(const void *p)
{
    union {
        const void *in;
        void *out;
    } u = {.in = p};

    bench_check((int)cudaFree(u.out), "cudaFree");
}

void bench_detail(char *text, size_t size, uint32_t rows, uint32_t context, const char *extra)
{
    (void)snprintf(text, size, "\"rows\": %u, \"context\": %u%s", rows, context, extra);
}

void bench_close(bench *b)
{
    const void *all[] = {
        b->noise,          b->upload,          b->tables.next_token, b->tables.page_table, b->tables.sampling,
        b->tables.bias,    b->tables.stop_ids, b->tables.seen,       b->tables.row_token,  b->tables.row_position,
        b->tables.row_span};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bench_release(all[i]);
    bench_check((int)cudaStreamDestroy(b->on.stream), "cudaStreamDestroy");
    free(b->host_upload);
}

void bench_open(bench *b)
{
    struct cudaDeviceProp device;

    bench_check((int)cudaGetDeviceProperties(&device, 0), "no usable device");
    b->l2_bytes = (size_t)device.l2CacheSize ? (size_t)device.l2CacheSize : 1u << 20;
    b->on = (hrk_launch){.n_sms = (uint32_t)device.multiProcessorCount, .programmatic = false};
    bench_check((int)cudaStreamCreateWithFlags(&b->on.stream, cudaStreamNonBlocking), "stream");
    make_noise(b);
    make_tables(b, b->quick ? 256 : 32768);
}
