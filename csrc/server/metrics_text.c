/* /metrics: Prometheus text 0.0.4, or OpenMetrics 1.0 for a client that names it in Accept. Names are vLLM's behind our
 * own prefix, so that with --metrics-prefix vllm existing dashboards work. Everything is read from counters; a scrape
 * never waits for the engine.
 */
#include "server/call.h"
#include "server/handlers.h"
#include "server/routes.h"

#include <string.h>

typedef struct writer {
    hr_buffer out;
    const hr_server *server;
    const char *prefix;
    hr_buffer labels; /* model_name="x",engine="0" */
    bool is_openmetrics;
} writer;

/* Label values: backslash, quote and newline are escaped. */
static void add_label_text(hr_buffer *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '\\' || *text == '"')
            hr_buffer_add_char(out, '\\');
        if (*text == '\n')
            hr_buffer_add_text(out, "\\n");
        else
            hr_buffer_add_char(out, *text);
    }
}

/* OpenMetrics calls the family of a counter by the name without _total. */
static void family(writer *w, const char *name, const char *type, const char *help)
{
    int len = (int)strlen(name);

    if (w->is_openmetrics && strcmp(type, "counter") == 0)
        len -= (int)strlen("_total");
    hr_buffer_printf(&w->out, "# HELP %s:%.*s %s\n# TYPE %s:%.*s %s\n", w->prefix, len, name, help, w->prefix, len,
                     name, type);
}

static void sample(writer *w, const char *name, const char *more_labels, double value)
{
    hr_buffer_printf(&w->out, "%s:%s{%s%s%s} ", w->prefix, name, w->labels.at, more_labels[0] ? "," : "", more_labels);
    hr_json_double(&w->out, value);
    hr_buffer_add_char(&w->out, '\n');
}

static void gauge(writer *w, const char *name, const char *help, double value)
{
    family(w, name, "gauge", help);
    sample(w, name, "", value);
}

static void counter(writer *w, const char *name, const char *help, uint64_t value)
{
    family(w, name, "counter", help);
    sample(w, name, "", (double)value);
}

/* One series of a histogram. labels: "", or what tells it from the others of its family. */
static void histogram_series(writer *w, const char *name, const char *labels, const headrace_histogram *values)
{
    const char *comma = labels[0] ? "," : "";
    char bucket[128], label[128];

    (void)snprintf(bucket, sizeof bucket, "%s_bucket", name);
    for (uint32_t i = 0; i < values->n_buckets; i++) {
        bool is_whole = values->bound[i] < 1e6 && values->bound[i] == (double)(uint64_t)values->bound[i];

        (void)snprintf(label, sizeof label, w->is_openmetrics && is_whole ? "%s%sle=\"%g.0\"" : "%s%sle=\"%g\"", labels,
                       comma, values->bound[i]);
        sample(w, bucket, label, (double)values->cumulative[i]);
    }
    (void)snprintf(label, sizeof label, "%s%sle=\"+Inf\"", labels, comma);
    sample(w, bucket, label, (double)values->count);
    (void)snprintf(bucket, sizeof bucket, "%s_sum", name);
    sample(w, bucket, labels, values->sum);
    (void)snprintf(bucket, sizeof bucket, "%s_count", name);
    sample(w, bucket, labels, (double)values->count);
}

static void histogram(writer *w, const char *name, const char *help, const headrace_histogram *values)
{
    family(w, name, "histogram", help);
    histogram_series(w, name, "", values);
}

static void count_histogram(writer *w, const char *name, const char *help, const hr_count_histogram *counts)
{
    headrace_histogram values = {.n_buckets = HR_SMALL_BUCKETS};
    uint64_t total = 0;

    for (uint32_t i = 0; i < HR_SMALL_BUCKETS; i++) {
        total += atomic_load_explicit(&counts->in_bucket[i], memory_order_relaxed);
        values.bound[i] = (double)hr_count_bounds[i];
        values.cumulative[i] = total;
    }
    values.count = total + atomic_load_explicit(&counts->in_bucket[HR_SMALL_BUCKETS], memory_order_relaxed);
    values.sum = (double)atomic_load_explicit(&counts->sum, memory_order_relaxed);
    histogram(w, name, help, &values);
}

static void write_gauges(writer *w, const headrace_stats *stats)
{
    const hr_server *server = w->server;
    const headrace_engine_info *engine = &server->engine_info;
    uint64_t backlog = 0;
    hr_buffer info = {0};

    for (size_t i = 0; i < server->n_loops; i++)
        backlog += atomic_load_explicit(&server->loops[i].backlog_bytes, memory_order_relaxed);
    gauge(w, "num_requests_running", "Sequences in the batch.", stats->n_running);
    gauge(w, "num_requests_waiting", "Sequences that wait to be admitted.", stats->n_waiting);
    gauge(w, "kv_cache_usage_perc", "Pages of keys and values in use, 0 to 1.",
          stats->n_pages ? (double)stats->n_pages_used / stats->n_pages : 0.0);
    gauge(w, "conv_state_usage_perc", "Convolution state slots in use, 0 to 1.",
          stats->n_slots ? (double)stats->n_slots_used / stats->n_slots : 0.0);
    gauge(w, "kv_pages_used", "Pages of keys and values in use.", stats->n_pages_used);
    gauge(w, "kv_pages_cached", "Unused pages that hold a reusable prefix.", stats->n_pages_cached);
    gauge(w, "http_connections", "Open client connections.", atomic_load(&server->n_connections));
    gauge(w, "stream_backlog_bytes", "Output that clients have not taken yet.", (double)backlog);
    gauge(w, "engine_healthy", "1 while the engine works.", stats->healthy);
    family(w, "cache_config_info", "gauge", "How the cache was set up; the value is 1.");
    hr_buffer_printf(&info, "block_size=\"%u\",num_gpu_blocks=\"%u\",enable_prefix_caching=\"%s\",cache_dtype=\"%s\"",
                     engine->page_tokens, engine->n_pages, engine->prefix_caching ? "True" : "False",
                     engine->kv_cache_dtype);
    sample(w, "cache_config_info", info.at, 1);
    hr_buffer_clear(&info);
    hr_buffer_printf(&info, "version=\"%s\",device=\"%s\",compute=\"%s\"", headrace_version(), engine->device,
                     engine->compute);
    family(w, "build_info", "gauge", "What runs here; the value is 1.");
    sample(w, "build_info", info.at, 1);
    hr_buffer_deinit(&info);
}

static void write_requests(writer *w, const headrace_stats *stats)
{
    static const char *const causes[HR_GONE_N] = {"disconnect", "slow_client", "shutdown"};
    char label[64];

    family(w, "request_success_total", "counter", "Finished sequences by reason.");
    sample(w, "request_success_total", "finished_reason=\"stop\"", (double)stats->finished_stop);
    sample(w, "request_success_total", "finished_reason=\"length\"", (double)stats->finished_length);
    sample(w, "request_success_total", "finished_reason=\"abort\"", (double)stats->finished_cancelled);
    sample(w, "request_success_total", "finished_reason=\"error\"", (double)stats->finished_error);
    family(w, "request_failure_total", "counter", "Requests answered with an error, by its code.");
    for (uint32_t i = 0; i < HR_API_N_CODES; i++) {
        (void)snprintf(label, sizeof label, "code=\"%s\"", hr_api_code_text((hr_api_code)i));
        sample(w, "request_failure_total", label, (double)atomic_load(&w->server->failures[i]));
    }
    family(w, "requests_cancelled_total", "counter", "Requests whose client was gone before the end.");
    for (uint32_t i = 0; i < HR_GONE_N; i++) {
        (void)snprintf(label, sizeof label, "cause=\"%s\"", causes[i]);
        sample(w, "requests_cancelled_total", label, (double)atomic_load(&w->server->cancelled[i]));
    }
    family(w, "admission_rejections_total", "counter", "Requests that were not admitted.");
    sample(w, "admission_rejections_total", "reason=\"queue_full\"", (double)stats->rejected_queue_full);
    sample(w, "admission_rejections_total", "reason=\"context_length\"", (double)stats->rejected_context);
    sample(w, "admission_rejections_total", "reason=\"queue_timeout\"", (double)stats->rejected_queue_timeout);
}

static void write_counters(writer *w, const headrace_stats *stats)
{
    counter(w, "prompt_tokens_total", "Tokens of prompts.", stats->prompt_tokens);
    counter(w, "generation_tokens_total", "Tokens generated.", stats->generation_tokens);
    counter(w, "prompt_tokens_cached_total", "Tokens of prompts that were found in the cache.",
            stats->prompt_tokens_cached);
    counter(w, "prefix_cache_queries_total", "Tokens looked up in the prefix cache.", stats->prefix_queries);
    counter(w, "prefix_cache_hits_total", "Tokens found in the prefix cache.", stats->prefix_hits);
    counter(w, "num_preemptions_total", "Sequences put back to make room.", stats->preemptions);
    counter(w, "steps_total", "Steps of the engine.", stats->steps);
    counter(w, "corrupted_logits_total", "Rows of logits that held NaN or infinity.", stats->nan_logits);
    counter(w, "streamed_events_total", "Events written into streams.", atomic_load(&w->server->streamed_events));
}

/* vLLM's names; they are there only where something guesses. */
static void write_guesses(writer *w, const headrace_stats *stats)
{
    const headrace_engine_info *engine = &w->server->engine_info;
    char label[64];

    if (!engine->speculation)
        return;
    counter(w, "spec_decode_num_drafts_total", "Rounds of guesses, of one sequence in one step each.",
            stats->spec_drafts);
    counter(w, "spec_decode_num_draft_tokens_total", "Tokens guessed.", stats->spec_draft_tokens);
    counter(w, "spec_decode_num_accepted_tokens_total", "Guesses that were right.", stats->spec_accepted_tokens);
    family(w, "spec_decode_num_accepted_tokens_per_pos_total", "counter", "Right guesses by position in their round.");
    for (uint32_t i = 0; i < engine->num_speculative_tokens; i++) {
        (void)snprintf(label, sizeof label, "position=\"%u\"", i);
        sample(w, "spec_decode_num_accepted_tokens_per_pos_total", label, (double)stats->spec_accepted_at[i]);
    }
}

static void write_http(writer *w)
{
    static const int statuses[HR_N_STATUSES] = {
#define HR_X(status) status,
        HR_HTTP_STATUSES(HR_X)
#undef HR_X
    };
    char label[160];

    family(w, "http_requests_total", "counter", "Answers by route and status; 499: the client left before one.");
    for (uint32_t route = 0; route <= HR_ROUTES_MAX; route++) {
        for (uint32_t i = 0; i < HR_N_STATUSES; i++) {
            uint64_t count = atomic_load_explicit(&w->server->http_requests[route][i], memory_order_relaxed);

            if (count == 0)
                continue;
            (void)snprintf(label, sizeof label, "route=\"%s\",status=\"%d\"", hr_route_name(route), statuses[i]);
            sample(w, "http_requests_total", label, (double)count);
        }
    }
    family(w, "http_thread_cpu_seconds_total", "counter", "CPU time of the I/O threads.");
    for (size_t i = 0; i < w->server->n_loops; i++) {
        (void)snprintf(label, sizeof label, "thread=\"%zu\"", i);
        sample(w, "http_thread_cpu_seconds_total", label, hr_loop_cpu_seconds(&w->server->loops[i]));
    }
}

static void write_histograms(writer *w, const headrace_stats *stats)
{
    histogram(w, "time_to_first_token_seconds", "From submission to the first token.", &stats->ttft_s);
    histogram(w, "inter_token_latency_seconds", "Between tokens of a sequence.", &stats->itl_s);
    histogram(w, "e2e_request_latency_seconds", "From submission to the end.", &stats->e2e_s);
    histogram(w, "request_queue_time_seconds", "Waiting to be admitted.", &stats->queue_s);
    histogram(w, "request_prefill_time_seconds", "From admission to the first token.", &stats->prefill_s);
    histogram(w, "request_decode_time_seconds", "From the first token to the last.", &stats->decode_s);
    histogram(w, "request_inference_time_seconds", "From admission to the last token.", &stats->inference_s);
    histogram(w, "request_prompt_tokens", "Tokens of a prompt.", &stats->prompt_len);
    histogram(w, "request_generation_tokens", "Tokens of an answer.", &stats->generation_len);
    count_histogram(w, "request_params_n", "Choices asked for.", &w->server->params_n);
    count_histogram(w, "request_params_max_tokens", "Longest answer asked for; 0: the rest of the context.",
                    &w->server->params_max_tokens);
    histogram(w, "iteration_tokens_total", "Rows of a step.", &stats->step_tokens);
    family(w, "step_time_seconds", "histogram", "Time of a step; phase prefill: it had rows of prompts.");
    histogram_series(w, "step_time_seconds", "phase=\"decode\"", &stats->step_decode_s);
    histogram_series(w, "step_time_seconds", "phase=\"prefill\"", &stats->step_prefill_s);
    histogram(w, "delivery_lag_seconds", "From the results of a step to the last reader told.", &stats->delivery_lag_s);
}

static bool wants_openmetrics(const hr_http_conn *conn)
{
    size_t len = 0;
    const char *accept = hr_http_parser_field(hr_http_request(conn), "accept", &len);
    static const char type[] = "application/openmetrics-text";

    return accept && memmem(accept, len, type, sizeof type - 1) != NULL;
}

void hr_handle_metrics(hr_http_conn *conn, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    writer w = {.server = server, .prefix = server->options.metrics_prefix, .is_openmetrics = wants_openmetrics(conn)};
    headrace_stats stats;
    hr_api_error error;

    (void)rest;
    if (server->options.no_metrics) {
        (void)hr_api_fail(&error, HR_API_NOT_FOUND, NULL, "This server publishes no metrics.");
        hr_http_reply_error(conn, &error);
        return;
    }
    hr_buffer_add_text(&w.labels, "model_name=\"");
    add_label_text(&w.labels, server->model_name);
    hr_buffer_add_text(&w.labels, "\",engine=\"0\"");
    headrace_engine_get_stats(server->engine, &stats);
    if (w.labels.failed) {
        hr_buffer_deinit(&w.labels);
        hr_http_reply(conn, 503, "text/plain", NULL, "", 0);
        return;
    }
    write_gauges(&w, &stats);
    write_counters(&w, &stats);
    write_guesses(&w, &stats);
    write_requests(&w, &stats);
    write_http(&w);
    write_histograms(&w, &stats);
    if (w.is_openmetrics)
        hr_buffer_add_text(&w.out, "# EOF\n");
    hr_http_reply(conn, w.out.failed ? 503 : 200,
                  w.is_openmetrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                   : "text/plain; version=0.0.4; charset=utf-8",
                  "Vary: Accept\r\n", w.out.failed ? "" : w.out.at, w.out.failed ? 0 : w.out.len);
    hr_buffer_deinit(&w.out);
    hr_buffer_deinit(&w.labels);
}
