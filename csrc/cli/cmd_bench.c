/* headrace bench: how fast this machine runs a model, through the same engine that serves.
 *
 * latency: one stream. Prefill speed is prompt tokens over the time to the first token; decode speed is the other
 * tokens over the rest. throughput: many requests, a given number at once. Prompts are random ids that share no prefix,
 * answers run to their full length (ignore_eos), prefix caching is off: what is measured is computing. Reported are the
 * median and the spread of several runs after one to warm up (page faults of the mapped weights would otherwise be
 * counted).
 */
#include "cli/program.h"

#include "base/clock.h"
#include "base/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_MAX = 1000, STREAMS_MAX = 4096, LENGTH_MAX = 1 << 24 };

typedef struct spread {
    double min, median, max;
} spread;

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static spread spread_of(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, compare_doubles);
    return (spread){values[0], n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2, values[n - 1]};
}

typedef struct bench {
    headrace_model *model;
    headrace_engine *engine;
    uint32_t input_len, output_len, n_ids;
    int32_t *prompt;
    uint64_t n_prompts_made;
} bench;

/* Ordinary ids only: a control id in the middle of a prompt is nothing a client would send. */
static void make_prompt(bench *b)
{
    uint64_t key = hr_mix64(0x68656164 + b->n_prompts_made++);

    for (uint32_t i = 0; i < b->input_len;) {
        int32_t id = (int32_t)(hr_rng_at(key, i) % b->n_ids);
        const char *bytes;
        size_t len;
        bool is_special = false;

        if (headrace_token_bytes(b->model, id, &bytes, &len, &is_special) && is_special)
            id = (int32_t)((uint32_t)id / 2 + b->n_ids / 2 - 1);
        b->prompt[i++] = id;
    }
}

static headrace_status start(bench *b, headrace_queue *queue, headrace_stream **stream, headrace_error *err)
{
    headrace_request request;

    make_prompt(b);
    headrace_request_init(&request);
    request.prompt_ids = b->prompt;
    request.n_prompt_ids = b->input_len;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = b->output_len;
    request.queue = queue;
    return headrace_submit(b->engine, &request, stream, err);
}

/* ---------------------------------------------------------------- latency */

/* The engine's clock, not ours: on a busy machine this thread may wake up late and find many tokens in one event. */
static int one_run(bench *b, double *prefill, double *decode)
{
    headrace_stream *stream;
    headrace_event event;
    headrace_error err = {0};
    uint64_t ttft_us = 0, total_us = 0;
    uint32_t n = 0;
    headrace_status status;

    if (start(b, NULL, &stream, &err) != HEADRACE_OK)
        return hr_report(&err);
    while ((status = headrace_stream_next(stream, 1000000, &event)) == HEADRACE_OK || status == HEADRACE_E_TIMEOUT) {
        if (status != HEADRACE_OK)
            continue;
        n = event.n_completion_tokens;
        ttft_us = event.ttft_us;
        total_us = event.total_us;
        if (event.finish == HEADRACE_FINISH_ERROR)
            err = event.error;
    }
    headrace_stream_destroy(stream);
    if (err.status == HEADRACE_OK && (n == 0 || ttft_us == 0)) {
        err.status = HEADRACE_E_ENGINE;
        (void)snprintf(err.message, sizeof err.message, "the engine gave no token");
    }
    if (err.status != HEADRACE_OK)
        return hr_report(&err);
    *prefill = (double)b->input_len * 1e6 / (double)ttft_us;
    *decode = total_us > ttft_us ? (double)(n - 1) * 1e6 / (double)(total_us - ttft_us) : 0;
    return HR_EXIT_OK;
}

static void print_spread(hr_buffer *out, const char *key, const double *sorted, spread s, uint32_t n)
{
    hr_buffer_printf(out, ",\"%s\":%.3f,\"%s_min\":%.3f,\"%s_max\":%.3f,\"%s_runs\":[", key, s.median, key, s.min, key,
                     s.max, key);
    for (uint32_t i = 0; i < n; i++)
        hr_buffer_printf(out, "%s%.3f", i > 0 ? "," : "", sorted[i]);
    hr_buffer_add_char(out, ']');
}

static void print_head(hr_buffer *out, const bench *b, const char *what)
{
    headrace_model_info m;
    headrace_engine_info e;

    headrace_model_get_info(b->model, &m);
    headrace_engine_get_info(b->engine, &e);
    hr_buffer_printf(out, "{\"bench\":\"%s\",\"version\":\"%s\",\"model\":", what, headrace_version());
    hr_json_string(out, m.name, strlen(m.name));
    hr_buffer_printf(out,
                     ",\"weights\":\"%s\",\"weight_bytes\":%llu,\"device\":\"%s\",\"compute\":\"%s\",\"threads\":%u",
                     m.weight_dtypes, (unsigned long long)m.weight_bytes, e.device, e.compute, e.n_threads);
    hr_buffer_printf(out, ",\"input_len\":%u,\"output_len\":%u", b->input_len, b->output_len);
}

static int latency(const hr_options *options, bench *b)
{
    uint32_t n = hr_option_u32(options, "num-iters");
    double prefill[RUNS_MAX], decode[RUNS_MAX], ignored[2];
    int code;

    if (n < 1 || n > RUNS_MAX) {
        (void)fprintf(stderr, "headrace: --num-iters: 1 to %d\n", RUNS_MAX);
        return HR_EXIT_USAGE;
    }
    if ((code = one_run(b, &ignored[0], &ignored[1])) != HR_EXIT_OK)
        return code;
    for (uint32_t i = 0; i < n; i++) {
        if ((code = one_run(b, &prefill[i], &decode[i])) != HR_EXIT_OK)
            return code;
    }
    spread p = spread_of(prefill, n), d = spread_of(decode, n);
    if (hr_option_bool(options, "json")) {
        hr_buffer out = {0};

        print_head(&out, b, "latency");
        print_spread(&out, "prefill_tokens_per_s", prefill, p, n);
        print_spread(&out, "decode_tokens_per_s", decode, d, n);
        hr_buffer_add_text(&out, "}\n");
        (void)fputs(out.at ? out.at : "", stdout);
        hr_buffer_deinit(&out);
    } else {
        (void)printf("prefill %u tokens: %.1f tokens/s (%.1f to %.1f)\n", b->input_len, p.median, p.min, p.max);
        (void)printf("decode  %u tokens: %.1f tokens/s (%.1f to %.1f)\n", b->output_len, d.median, d.min, d.max);
    }
    return HR_EXIT_OK;
}

/* ---------------------------------------------------------------- throughput */

typedef struct totals {
    uint64_t n_output, first_us, last_us; /* first_us: when every stream of the first wave had its first token */
    uint64_t n_output_at_first;
    uint32_t n_finished, n_started, n_with_first;
} totals;

/* Takes what a stream has; returns true when it is over. */
static bool take(headrace_stream *stream, totals *t, headrace_error *err)
{
    headrace_event event;
    headrace_status status;

    while ((status = headrace_stream_next(stream, 0, &event)) == HEADRACE_OK) {
        if (event.n_ids > 0 && event.n_completion_tokens == event.n_ids)
            t->n_with_first++;
        t->n_output += event.n_ids;
        t->last_us = hr_now_us();
        if (event.finish == HEADRACE_FINISH_ERROR)
            *err = event.error;
    }
    return status == HEADRACE_E_CLOSED;
}

static int run_all(bench *b, uint32_t n_prompts, uint32_t concurrency, totals *t)
{
    headrace_queue *queue;
    headrace_error err = {0};
    headrace_stream *ready[64], *stream;

    *t = (totals){0};
    if (headrace_queue_create(&queue, &err) != HEADRACE_OK)
        return hr_report(&err);
    while (t->n_finished < n_prompts && err.status == HEADRACE_OK) {
        while (t->n_started < n_prompts && t->n_started - t->n_finished < concurrency) {
            if (start(b, queue, &stream, &err) != HEADRACE_OK)
                break;
            t->n_started++;
        }
        size_t n = headrace_queue_take(queue, ready, 64);
        for (size_t i = 0; i < n; i++) {
            if (take(ready[i], t, &err)) {
                headrace_stream_destroy(ready[i]);
                t->n_finished++;
            }
        }
        if (t->first_us == 0 && t->n_with_first >= concurrency) {
            t->first_us = t->last_us;
            t->n_output_at_first = t->n_output;
        }
        if (n == 0)
            hr_wait_readable(headrace_queue_fd(queue), 1000);
    }
    if (err.status == HEADRACE_OK)
        headrace_queue_destroy(queue); /* after an error its streams still live: the process is about to end */
    return err.status == HEADRACE_OK ? HR_EXIT_OK : hr_report(&err);
}

static int throughput(const hr_options *options, bench *b)
{
    uint32_t n_prompts = hr_option_u32(options, "num-prompts"), concurrency = hr_option_u32(options, "max-concurrency");
    totals t;
    uint64_t begin;
    int code;

    if (n_prompts < 1 || concurrency < 1 || concurrency > STREAMS_MAX) {
        (void)fprintf(stderr, "headrace: --num-prompts at least 1, --max-concurrency 1 to %d\n", STREAMS_MAX);
        return HR_EXIT_USAGE;
    }
    if (concurrency > n_prompts)
        concurrency = n_prompts;
    if ((code = run_all(b, 1, 1, &t)) != HR_EXIT_OK) /* to warm up */
        return code;
    begin = hr_now_us();
    if ((code = run_all(b, n_prompts, concurrency, &t)) != HR_EXIT_OK)
        return code;
    double seconds = (double)(t.last_us - begin) / 1e6;
    double decode_seconds = (double)(t.last_us - t.first_us) / 1e6;
    double n_decode = (double)(t.n_output - t.n_output_at_first);
    double decode = n_prompts == concurrency && decode_seconds > 0 ? n_decode / decode_seconds : 0;
    if (hr_option_bool(options, "json")) {
        hr_buffer out = {0};

        print_head(&out, b, "throughput");
        hr_buffer_printf(&out, ",\"num_prompts\":%u,\"max_concurrency\":%u,\"seconds\":%.6f", n_prompts, concurrency,
                         seconds);
        hr_buffer_printf(&out, ",\"output_tokens_per_s\":%.3f,\"total_tokens_per_s\":%.3f,\"requests_per_s\":%.3f",
                         (double)t.n_output / seconds,
                         ((double)t.n_output + (double)n_prompts * b->input_len) / seconds, n_prompts / seconds);
        if (decode > 0) /* one wave: the time after every stream's first token is decoding only */
            hr_buffer_printf(&out, ",\"decode_tokens_per_s\":%.3f", decode);
        hr_buffer_add_text(&out, "}\n");
        (void)fputs(out.at ? out.at : "", stdout);
        hr_buffer_deinit(&out);
    } else {
        (void)printf("%u requests, %u at once, %.2f s: %.1f output tokens/s, %.1f tokens/s in all\n", n_prompts,
                     concurrency, seconds, (double)t.n_output / seconds,
                     ((double)t.n_output + (double)n_prompts * b->input_len) / seconds);
        if (decode > 0)
            (void)printf("decoding only: %.1f tokens/s\n", decode);
    }
    return HR_EXIT_OK;
}

int hr_cmd_bench(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_BENCH, "latency|throughput [MODEL]",
                         "Speed of this machine. latency: one stream. throughput: many at once.", 1, 2);
    const char *what = hr_options_argument(options, 0);
    bench b = {.input_len = hr_option_u32(options, "input-len"), .output_len = hr_option_u32(options, "output-len")};
    headrace_model *draft = NULL;
    bool is_latency = strcmp(what, "latency") == 0;
    bool used;
    int code;

    hr_setup_log(options);
    if (!is_latency && strcmp(what, "throughput") != 0) {
        (void)fprintf(stderr, "headrace: bench %s: expected latency or throughput\n", what);
        hr_options_destroy(options);
        return HR_EXIT_USAGE;
    }
    if (b.input_len < 1 || b.output_len < 1 || b.input_len > LENGTH_MAX || b.output_len > LENGTH_MAX) {
        (void)fprintf(stderr, "headrace: --input-len and --output-len: 1 to %d\n", LENGTH_MAX);
        hr_options_destroy(options);
        return HR_EXIT_USAGE;
    }
    code = hr_check_vllm_flags(options);
    if (code == HR_EXIT_OK)
        code = hr_open_model(options, &(hr_model_choice){.argument = 1}, &b.model, &used);
    if (code == HR_EXIT_OK)
        code = hr_check_dtype(options, b.model);
    if (code == HR_EXIT_OK) {
        headrace_engine_options engine_options;
        headrace_model_info info;

        headrace_model_get_info(b.model, &info);
        b.n_ids = info.tokenizer_size > 0 ? info.tokenizer_size : info.vocab_size;
        hr_engine_options_from(options, &engine_options);
        engine_options.disable_prefix_caching = true;
        if (engine_options.max_model_len == 0)
            engine_options.max_model_len = b.input_len + b.output_len;
        if (engine_options.max_num_seqs == 0)
            engine_options.max_num_seqs = is_latency ? 1 : hr_option_u32(options, "max-concurrency");
        if (engine_options.max_num_queued_reqs == 0)
            engine_options.max_num_queued_reqs = STREAMS_MAX;
        code = hr_speculation_from(options, &engine_options, &draft);
        if (code == HR_EXIT_OK)
            code = hr_open_engine(options, b.model, &engine_options, &b.engine);
    }
    b.prompt = calloc(b.input_len, sizeof *b.prompt);
    if (code == HR_EXIT_OK)
        code = b.prompt ? (is_latency ? latency(options, &b) : throughput(options, &b)) : hr_out_of_memory();
    free(b.prompt);
    headrace_engine_close(b.engine);
    headrace_model_close(draft);
    headrace_model_close(b.model);
    hr_options_destroy(options);
    return code;
}
