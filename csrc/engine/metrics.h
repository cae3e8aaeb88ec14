/* Counters and histograms of fixed size: written by the engine (and by submit), read by anyone at any time. */
#ifndef HR_ENGINE_METRICS_H
#define HR_ENGINE_METRICS_H

#include "headrace.h"

#include <stdatomic.h>

/* Observations are whole numbers (microseconds or tokens); bounds are compared in the same unit. */
typedef struct hr_histogram {
    double scale; /* observations in one outside unit: 1e6 for microseconds as seconds, 1 for tokens */
    uint32_t n_bounds;
    uint64_t bounds[HEADRACE_HISTOGRAM_BUCKETS];             /* ascending */
    _Atomic uint64_t counts[HEADRACE_HISTOGRAM_BUCKETS + 1]; /* not cumulative; the last one is above every bound */
    _Atomic uint64_t sum;
} hr_histogram;

typedef struct hr_metrics {
    _Atomic bool is_healthy;
    _Atomic uint32_t n_running, n_waiting, n_pages_used, n_pages_cached, n_slots_used; /* as of the last step */
    _Atomic uint64_t prompt_tokens, generation_tokens, prompt_tokens_cached, prefix_queries, prefix_hits;
    _Atomic uint64_t preemptions, steps;
    _Atomic uint64_t finished_stop, finished_length, finished_error, finished_cancelled;
    _Atomic uint64_t rejected_queue_full, rejected_context, rejected_queue_timeout, nan_logits;
    _Atomic uint64_t spec_drafts, spec_draft_tokens, spec_accepted_tokens;
    _Atomic uint64_t spec_accepted_at[HEADRACE_SPECULATIVE_MAX];    /* by position among the guesses of a step */
    hr_histogram ttft, itl, e2e, queue, prefill, decode, inference; /* time */
    hr_histogram prompt_len, generation_len, step_tokens;           /* tokens */
    hr_histogram step_decode, step_prefill, delivery_lag;           /* time */
} hr_metrics;

/* Sets the bucket bounds and healthy. Token buckets reach the first bound >=
 * max_model_len. */
void hr_metrics_init(hr_metrics *metrics, uint32_t max_model_len);
void hr_histogram_add(hr_histogram *histogram, uint64_t value);
/* Fills everything but n_pages and n_slots, which are the engine's. */
void hr_metrics_read(const hr_metrics *metrics, headrace_stats *out);

static inline void hr_count(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

#endif
