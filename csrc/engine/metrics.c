/* Relaxed atomics and no lock: a scrape never stops the engine, and a snapshot may be a step old in one number and
 * fresh in the next. The count of a histogram is the sum of its buckets as read, so that cumulative counts and count
 * always agree with each other. Bounds are those that dashboards made for vLLM expect.
 */
#include "engine/metrics.h"

static const double ttft_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                     1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double itl_bounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                    .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};
static const double latency_bounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double lag_bounds[] = {.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5};
static const double step_token_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

static void set_bounds(hr_histogram *histogram, const double *bounds, size_t n, double scale)
{
    histogram->scale = scale;
    histogram->n_bounds = (uint32_t)n;
    for (size_t i = 0; i < n; i++)
        histogram->bounds[i] = (uint64_t)(bounds[i] * scale + 0.5);
}

#define SET_TIME(histogram, bounds) set_bounds(histogram, bounds, sizeof(bounds) / sizeof(bounds)[0], 1e6)

/* 1, 2, 5, 10, ... up to the first bound that reaches the context. */
static void set_token_bounds(hr_histogram *histogram, uint32_t max_model_len)
{
    static const uint64_t steps[] = {1, 2, 5};
    uint64_t decade = 1;

    histogram->scale = 1;
    histogram->n_bounds = 0;
    while (histogram->n_bounds < HEADRACE_HISTOGRAM_BUCKETS) {
        uint64_t bound = decade * steps[histogram->n_bounds % 3];

        histogram->bounds[histogram->n_bounds++] = bound;
        if (bound >= max_model_len)
            break;
        if (histogram->n_bounds % 3 == 0)
            decade *= 10;
    }
}

void hr_metrics_init(hr_metrics *metrics, uint32_t max_model_len)
{
    atomic_store_explicit(&metrics->is_healthy, true, memory_order_relaxed);
    SET_TIME(&metrics->ttft, ttft_bounds);
    SET_TIME(&metrics->itl, itl_bounds);
    SET_TIME(&metrics->step_decode, itl_bounds);
    SET_TIME(&metrics->step_prefill, itl_bounds);
    SET_TIME(&metrics->delivery_lag, lag_bounds);
    SET_TIME(&metrics->e2e, latency_bounds);
    SET_TIME(&metrics->queue, latency_bounds);
    SET_TIME(&metrics->prefill, latency_bounds);
    SET_TIME(&metrics->decode, latency_bounds);
    SET_TIME(&metrics->inference, latency_bounds);
    set_bounds(&metrics->step_tokens, step_token_bounds, sizeof step_token_bounds / sizeof step_token_bounds[0], 1);
    set_token_bounds(&metrics->prompt_len, max_model_len);
    set_token_bounds(&metrics->generation_len, max_model_len);
}

void hr_histogram_add(hr_histogram *histogram, uint64_t value)
{
    uint32_t low = 0, high = histogram->n_bounds; /* the first bound >= value lies in [low, high] */

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (histogram->bounds[middle] >= value)
            high = middle;
        else
            low = middle + 1;
    }
    hr_count(&histogram->counts[low], 1);
    hr_count(&histogram->sum, value);
}

static void read_histogram(const hr_histogram *histogram, headrace_histogram *out)
{
    uint64_t n = 0;

    out->n_buckets = histogram->n_bounds;
    for (uint32_t i = 0; i < histogram->n_bounds; i++) {
        n += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
        out->bound[i] = (double)histogram->bounds[i] / histogram->scale;
        out->cumulative[i] = n;
    }
    out->count = n + atomic_load_explicit(&histogram->counts[histogram->n_bounds], memory_order_relaxed);
    out->sum = (double)atomic_load_explicit(&histogram->sum, memory_order_relaxed) / histogram->scale;
}

#define READ(name) out->name = atomic_load_explicit(&metrics->name, memory_order_relaxed)

void hr_metrics_read(const hr_metrics *metrics, headrace_stats *out)
{
    *out = (headrace_stats){0};
    out->healthy = atomic_load_explicit(&metrics->is_healthy, memory_order_relaxed);
    READ(n_running);
    READ(n_waiting);
    READ(n_pages_used);
    READ(n_pages_cached);
    READ(n_slots_used);
    READ(prompt_tokens);
    READ(generation_tokens);
    READ(prompt_tokens_cached);
    READ(prefix_queries);
    READ(prefix_hits);
    READ(preemptions);
    READ(steps);
    READ(finished_stop);
    READ(finished_length);
    READ(finished_error);
    READ(finished_cancelled);
    READ(rejected_queue_full);
    READ(rejected_context);
    READ(rejected_queue_timeout);
    READ(nan_logits);
    READ(spec_drafts);
    READ(spec_draft_tokens);
    READ(spec_accepted_tokens);
    for (uint32_t i = 0; i < HEADRACE_SPECULATIVE_MAX; i++)
        READ(spec_accepted_at[i]);
    read_histogram(&metrics->ttft, &out->ttft_s);
    read_histogram(&metrics->itl, &out->itl_s);
    read_histogram(&metrics->e2e, &out->e2e_s);
    read_histogram(&metrics->queue, &out->queue_s);
    read_histogram(&metrics->prefill, &out->prefill_s);
    read_histogram(&metrics->decode, &out->decode_s);
    read_histogram(&metrics->inference, &out->inference_s);
    read_histogram(&metrics->prompt_len, &out->prompt_len);
    read_histogram(&metrics->generation_len, &out->generation_len);
    read_histogram(&metrics->step_tokens, &out->step_tokens);
    read_histogram(&metrics->step_decode, &out->step_decode_s);
    read_histogram(&metrics->step_prefill, &out->step_prefill_s);
    read_histogram(&metrics->delivery_lag, &out->delivery_lag_s);
}
