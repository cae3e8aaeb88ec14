/* Times whole steps of the CUDA backend on dummy weights of the family's sizes: decode at many streams, prefill, and
 * both.
 *
 *     bench_step MODEL-FOLDER [--streams 1,8,64] [--context N] [--prefill 2048,8192] [--mixed] [--steps N] [--device I]
 * [--out FILE]
 *
 * It drives hr_backend_ops as the engine does, two steps in flight, ids taken from the device, so that no scheduler or
 * text is in the way; the engine's own share is measured by benchmarks/engine/host_step.c. Every sequence is first
 * prefilled for real: keys, values and states are what a model leaves there, not zeros. One JSON line a point:
 * microseconds a step (median over windows), tokens a second, the bytes and operations the step cannot avoid
 * (docs/design/cuda.md's roofline), and how many logits were not finite (must be 0).
 *
 * A mixture also gets a line "routing" for every number of streams: how many distinct experts one decode step touched,
 * per layer, beside what even routing would touch. The byte counts above assume even routing, so this says whether they
 * hold.
 */
#include "backend/cuda/cuda_backend.h"
#include "base/clock.h"
#include "base/rng.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POINTS_MAX = 16, WINDOWS = 5 };

typedef struct bench {
    hr_model *model;
    const hr_arch *arch;
    hr_backend *backend;
    hr_batch *batches[2];
    uint32_t page_tokens, pages_each, max_rows, n_bad;
    uint64_t round;   /* of decoding: its sequences have numbers of their own */
    bool is_counting; /* routing: the taps of the step at hand are counted */
    uint32_t n_routed, n_distinct, least_distinct;
    uint32_t streams[POINTS_MAX], n_points, prefills[POINTS_MAX], n_prefills, context, n_steps, device;
    bool is_mixed;
    FILE *out;
} bench;

static void need(headrace_status status, const headrace_error *err, const char *what)
{
    if (status == HEADRACE_OK)
        return;
    (void)fprintf(stderr, "bench_step: %s: %s\n", what, err->message);
    exit(1);
}

static const hr_sampling_params SAMPLING = {
    .temperature = 0.3f, .top_p = 1, .min_p = 0.15f, .repetition_penalty = 1.05f, .top_k = 0, .seed = 1};

/* One more span of sequence `s` (its slot too): rows [start, start + n); sample says whether the last one is sampled.
 */
static void add_span(bench *b, hr_batch *batch, uint32_t s, uint32_t start, uint32_t n, uint32_t n_prompt, bool sample)
{
    static const int32_t first_id = 1;
    hr_span *span = &batch->spans[batch->n_spans++];
    uint32_t n_output;

    *span = (hr_span){.first_row = batch->n_rows,
                      .n_rows = n,
                      .start_position = start,
                      .page_first = batch->n_page_refs,
                      .n_pages = (start + n + b->page_tokens - 1) / b->page_tokens,
                      .state_slot = s,
                      .sequence = (b->round << 32) + s + 1,
                      .n_prompt = n_prompt,
                      .is_fresh = start == 0};
    for (uint32_t i = 0; i < span->n_pages; i++)
        batch->pages[batch->n_page_refs++] = s * b->pages_each + i;
    for (uint32_t i = 0; i < n; i++)
        batch->token_ids[batch->n_rows++] =
            start >= n_prompt ? HR_TOKEN_FROM_SLOT : (int32_t)(hr_rng_at(s, start + i) % b->arch->vocab_size);
    if (!sample)
        return;
    /* What was generated is on the device alone (n_pending), but for the first id: a round begins with sequences that
     * the device has not seen, and a stand-in for what the prompt's step sampled. */
    n_output = start + n > n_prompt ? start + n - n_prompt : 0;
    batch->outputs[batch->n_outputs++] =
        (hr_output){.row = batch->n_rows - 1,
                    .sampling = &SAMPLING,
                    .n_logprobs = -1,
                    .score_id = -1,
                    .history = {.ids = &first_id, .n_total = n_output, .n_pending = n_output > 1 ? n_output : 0}};
}

static void clear(hr_batch *batch)
{
    batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = 0;
}

static void begin(bench *b, hr_batch *batch)
{
    headrace_error err = {0};

    need(b->backend->ops->step_begin(b->backend, batch, &err), &err, "step_begin");
}

static void wait(bench *b, const hr_batch *batch)
{
    headrace_error err = {0};

    need(b->backend->ops->step_wait(b->backend, &err), &err, "step_wait");
    for (uint32_t i = 0; i < batch->n_outputs; i++)
        b->n_bad += batch->samples[i].is_bad;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Bytes and FLOP of a step of n_rows rows that read `keys` keys in all and end in n_out logits (even routing). */
static void limits(const bench *b, double n_rows, double keys, double n_out, double *bytes, double *flop)
{
    const hr_arch *a = b->arch;
    double h = a->hidden_size, d = a->head_dim, shared = 0, active, experts = 0;
    double q = a->n_heads * d, kv = a->n_kv_heads * d, n_moe = a->n_experts ? a->n_layers - a->n_dense_layers : 0;
    double n_dense = a->n_layers - n_moe, untouched = 1;

    shared += a->n_conv_layers * 4 * h * h + a->n_attention_layers * (2 * h * q + 2 * h * kv);
    shared += n_dense * 3 * h * a->ffn_dim + n_moe * h * a->n_experts;
    active = shared + n_moe * a->n_experts_used * 3 * h * a->expert_ffn_dim;
    for (uint32_t i = 0; a->n_experts && i < (uint32_t)n_rows && untouched > 1e-9; i++)
        untouched *= 1.0 - (double)a->n_experts_used / a->n_experts;
    if (a->n_experts)
        experts = n_moe * a->n_experts * (1 - untouched) * 3 * h * a->expert_ffn_dim;
    *bytes = 2 * (shared + experts + (double)a->vocab_size * h) + keys * 4 * kv * a->n_attention_layers +
             n_rows * a->n_conv_layers * 8 * h + 4 * n_out * a->vocab_size;
    *flop = 2 * (n_rows * active + n_out * a->vocab_size * h) + 4 * keys * q * a->n_attention_layers;
}

static void report(bench *b, const char *kind, uint32_t streams, uint32_t context, uint32_t rows, double keys,
                   double us, uint32_t n_out)
{
    double bytes, flop;

    limits(b, rows, keys, n_out, &bytes, &flop);
    (void)fprintf(b->out,
                  "{\"step\": \"%s\", \"model\": \"%s\", \"streams\": %u, \"context\": %u, \"rows\": %u, \"us\": %.1f, "
                  "\"tokens_s\": %.0f, \"bytes\": %.0f, \"flop\": %.0f, \"gb_s\": %.0f, \"tflop_s\": %.1f, "
                  "\"bad_logits\": %u}\n",
                  kind, b->model->name, streams, context, rows, us, rows / us * 1e6, bytes, flop, bytes / us * 1e-3,
                  flop / us * 1e-6, b->n_bad);
    (void)fflush(b->out);
}

/* Prompts of `n` tokens for sequences first .. first + count - 1, in chunks that fill the batch. Returns microseconds.
 */
static double prefill(bench *b, uint32_t first, uint32_t count, uint32_t n)
{
    uint32_t s = first, done = 0, flight = 0, oldest = 0, next = 0;
    uint64_t start = hr_now_us();

    while (s < first + count) {
        hr_batch *batch = b->batches[next];

        if (flight == 2) {
            wait(b, b->batches[oldest]);
            oldest ^= 1;
            flight--;
        }
        clear(batch);
        while (s < first + count && batch->n_rows < b->max_rows) {
            uint32_t left = b->max_rows - batch->n_rows, piece = n - done < left ? n - done : left;

            add_span(b, batch, s, done, piece, n, done + piece == n);
            done += piece;
            if (done == n) {
                done = 0;
                s++;
            }
        }
        begin(b, batch);
        next ^= 1;
        flight++;
    }
    for (; flight > 0; flight--, oldest ^= 1)
        wait(b, b->batches[oldest]);
    return (double)(hr_now_us() - start);
}

/* n_steps decode steps of `streams` sequences from position `context`; with prompt > 0 each step also runs so many rows
 * of a prompt of another sequence. Returns the median microseconds a step over windows. */
static double decode(bench *b, uint32_t streams, uint32_t context, uint32_t n_prompt, uint32_t prompt_rows)
{
    uint32_t per_window = b->n_steps / WINDOWS > 0 ? b->n_steps / WINDOWS : 1, n = per_window * WINDOWS, flight = 0;
    double windows[WINDOWS];
    uint64_t mark = hr_now_us();

    b->round++;
    for (uint32_t step = 0; step < n + 2; step++) {
        hr_batch *batch = b->batches[step & 1];

        if (flight == 2) {
            wait(b, b->batches[step & 1]);
            flight--;
        }
        if (step >= 2 && (step - 2) % per_window == 0) {
            uint64_t now = hr_now_us();

            if (step > 2)
                windows[(step - 2) / per_window - 1] = (double)(now - mark) / per_window;
            mark = now;
        }
        clear(batch);
        for (uint32_t s = 0; s < streams; s++)
            add_span(b, batch, s, context + step, 1, n_prompt, true);
        if (prompt_rows)
            add_span(b, batch, streams, 0, prompt_rows, prompt_rows, true);
        begin(b, batch);
        flight++;
    }
    wait(b, b->batches[n & 1]);
    wait(b, b->batches[(n + 1) & 1]);
    qsort(windows, WINDOWS, sizeof windows[0], by_value);
    return windows[WINDOWS / 2];
}

static void open_backend(bench *b, uint32_t max_streams, uint32_t longest, hr_tap_fn tap)
{
    headrace_error err = {0};
    hr_backend_options options = {.page_tokens = b->page_tokens,
                                  .max_rows = b->max_rows,
                                  .max_spans = max_streams + 1,
                                  .max_outputs = max_streams + 1,
                                  .device_index = b->device,
                                  .tap = tap,
                                  .tap_user = b};

    b->pages_each = (longest + b->page_tokens - 1) / b->page_tokens;
    options.max_page_refs = (max_streams + 1) * b->pages_each;
    need(
        hr_backend_cuda.open(b->model, &options, (max_streams + 1) * b->pages_each, max_streams + 1, &b->backend, &err),
        &err, "opening the backend");
    b->batches[0] = b->backend->ops->batch(b->backend, 0);
    b->batches[1] = b->backend->ops->batch(b->backend, 1);
}

static void run_decode(bench *b)
{
    uint32_t most = 1, ready = 0;

    for (uint32_t i = 0; i < b->n_points; i++)
        most = b->streams[i] > most ? b->streams[i] : most;
    open_backend(b, most, b->context + b->n_steps * 2 + 8, NULL);
    for (uint32_t i = 0; i < b->n_points; i++) {
        uint32_t streams = b->streams[i];
        double us;

        if (streams > ready) { /* the ones before keep their prompts; each point starts again behind them */
            double prefill_us = prefill(b, ready, streams - ready, b->context);

            report(b, "prefill_bulk", streams - ready, b->context, (streams - ready) * b->context,
                   (double)(streams - ready) * b->context * (b->context + 1) / 2, prefill_us, streams - ready);
            ready = streams;
        }
        us = decode(b, streams, b->context, b->context, 0);
        report(b, "decode", streams, b->context, streams, (double)streams * (b->context + b->n_steps / 2.0), us,
               streams);
    }
    if (b->is_mixed && b->max_rows > most) {
        uint32_t rows = b->max_rows - most;
        double us = decode(b, most, b->context, b->context, rows);

        report(b, "mixed", most, b->context, most + rows,
               (double)most * (b->context + b->n_steps / 2.0) + (double)rows * (rows + 1) / 2, us, most + 1);
    }
    b->backend->ops->close(b->backend);
}

/* Experts beyond 512 do not exist (hrk_route). */
static void count_experts(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols)
{
    bench *b = user;
    bool is_touched[512] = {false};
    uint32_t n = 0;

    (void)layer;
    if (tap != HR_TAP_ROUTER_IDS || !b->is_counting)
        return;
    for (size_t i = 0; i < (size_t)rows * cols; i++) {
        uint32_t expert = (uint32_t)data[i];

        if (expert < 512 && !is_touched[expert]) {
            is_touched[expert] = true;
            n++;
        }
    }
    b->n_routed++;
    b->n_distinct += n;
    b->least_distinct = n < b->least_distinct ? n : b->least_distinct;
}

/* One decode step of every number of streams, untimed, behind prompts of two tokens. */
static void run_routing(bench *b)
{
    double k = b->arch->n_experts_used, n = b->arch->n_experts;
    uint32_t most = 1;

    for (uint32_t i = 0; i < b->n_points; i++)
        most = b->streams[i] > most ? b->streams[i] : most;
    open_backend(b, most, 4, count_experts);
    for (uint32_t i = 0; i < b->n_points; i++) {
        double untouched = 1;

        (void)prefill(b, 0, b->streams[i], 2);
        b->is_counting = true;
        b->n_routed = b->n_distinct = 0;
        b->least_distinct = b->arch->n_experts;
        clear(b->batches[0]);
        for (uint32_t s = 0; s < b->streams[i]; s++)
            add_span(b, b->batches[0], s, 2, 1, 2, true);
        begin(b, b->batches[0]);
        wait(b, b->batches[0]);
        b->is_counting = false;
        for (uint32_t s = 0; s < b->streams[i]; s++)
            untouched *= 1 - k / n;
        (void)fprintf(b->out,
                      "{\"step\": \"routing\", \"model\": \"%s\", \"streams\": %u, \"experts\": %u, \"layers\": %u, "
                      "\"distinct_experts\": %.2f, \"least_distinct\": %u, \"even_routing\": %.2f}\n",
                      b->model->name, b->streams[i], b->arch->n_experts, b->n_routed,
                      b->n_routed ? (double)b->n_distinct / b->n_routed : 0.0, b->least_distinct, n * (1 - untouched));
        (void)fflush(b->out);
    }
    b->backend->ops->close(b->backend);
}

static void run_prefill(bench *b)
{
    uint32_t longest = 0;

    for (uint32_t i = 0; i < b->n_prefills; i++)
        longest = b->prefills[i] > longest ? b->prefills[i] : longest;
    open_backend(b, 1, longest, NULL);
    for (uint32_t i = 0; i < b->n_prefills; i++) {
        uint32_t n = b->prefills[i];
        double us[3];

        for (int r = 0; r < 3; r++)
            us[r] = prefill(b, 0, 1, n);
        qsort(us, 3, sizeof us[0], by_value);
        report(b, "prefill", 1, n, n, (double)n * (n + 1) / 2, us[1], 1);
    }
    b->backend->ops->close(b->backend);
}

static uint32_t numbers(const char *text, uint32_t *out)
{
    uint32_t n = 0;
    char *end;

    while (*text && n < POINTS_MAX) {
        out[n++] = (uint32_t)strtoul(text, &end, 10);
        text = *end == ',' ? end + 1 : "";
    }
    return n;
}

static void read_arguments(bench *b, int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (strcmp(argv[i], "--mixed") == 0) {
            b->is_mixed = true;
            continue;
        }
        if (strcmp(argv[i], "--streams") == 0)
            b->n_points = numbers(value, b->streams);
        else if (strcmp(argv[i], "--prefill") == 0)
            b->n_prefills = numbers(value, b->prefills);
        else if (strcmp(argv[i], "--context") == 0)
            b->context = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--steps") == 0)
            b->n_steps = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--rows") == 0)
            b->max_rows = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--device") == 0)
            b->device = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--out") == 0 && (b->out = fopen(value, "w")) == NULL)
            exit(1);
        i++;
    }
}

int main(int argc, char **argv)
{
    bench b = {.page_tokens = 64, .max_rows = 3072, .context = 1024, .n_steps = 40, .out = stdout};
    hr_model_open_options options = {.dummy_weights = true};
    headrace_error err = {0};

    if (argc < 2) {
        (void)fprintf(stderr, "bench_step MODEL-FOLDER [--streams 1,8] [--context N] [--prefill 2048,8192] [--mixed] "
                              "[--steps N] [--rows N] [--device I] [--out FILE]\n");
        return 2;
    }
    read_arguments(&b, argc, argv);
    need(hr_model_open(argv[1], &options, &b.model, &err), &err, argv[1]);
    b.arch = &b.model->arch;
    if (b.n_points)
        run_decode(&b);
    if (b.n_points && b.arch->n_experts > 0)
        run_routing(&b);
    if (b.n_prefills)
        run_prefill(&b);
    hr_model_close(b.model);
    return b.n_bad > 0;
}
