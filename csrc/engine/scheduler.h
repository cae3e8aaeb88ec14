/* Who runs next: (queues, budgets, pages) -> rows of the next batch.
 *
 * Pure: no clock, no I/O, no allocation after init, no threads. The same calls in the same order give the same plans,
 * so that a seeded simulation can drive it for a million steps. Time enters only through hr_sequence.order_key.
 *
 * Use: add sequences; then step by step plan, run the plan, commit each of its spans, append the sampled ids
 * (hr_sequence_accept), remove what ended.
 */
#ifndef HR_ENGINE_SCHEDULER_H
#define HR_ENGINE_SCHEDULER_H

#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "engine/state_slots.h"

typedef struct hr_scheduler_limits {
    uint32_t max_rows;    /* rows a step, warm-up rows included; >= max_seqs */
    uint32_t max_outputs; /* rows a step whose logits are wanted; >= max_seqs */
    uint32_t max_seqs;    /* running at once; also the number of state slots */
    uint32_t n_pages;
    uint32_t page_tokens; /* P */
    uint32_t warmup_rows; /* W, hr_arch_warmup_rows */
    bool prefix_caching;
    hr_prefix_hash_fn hash; /* NULL: the built-in one */
} hr_scheduler_limits;

/* Consecutive rows of one sequence in the next batch. */
typedef struct hr_planned_span {
    hr_sequence *sequence;
    uint32_t first_row; /* in the batch */
    uint32_t start, n_rows, n_warmup;
    bool is_fresh;
    uint32_t first_output, score_first,
        n_scores; /* prompt positions score_first .. whose next id's logprob is wanted */
    bool samples; /* the last row's logits give the next token; its output follows the scores */
} hr_planned_span;

typedef struct hr_plan {
    hr_planned_span *spans; /* [max_seqs]; decode rows first, then prefill chunks */
    uint32_t n_spans, n_rows, n_outputs, n_page_refs;
} hr_plan;

/* Owned by the engine thread. */
typedef struct hr_scheduler {
    hr_scheduler_limits limits;
    hr_kv_pages pages;
    hr_prefix_cache cache;
    hr_state_slots slots;
    hr_plan plan;
    hr_sequence **running; /* [max_seqs], in order */
    uint32_t n_running, n_waiting, n_held;
    hr_sequence *waiting_first, *waiting_last;           /* in order */
    uint64_t n_preemptions, prefix_queries, prefix_hits; /* the latter two in tokens */
} hr_scheduler;

/* False: no memory. */
bool hr_scheduler_init(hr_scheduler *scheduler, const hr_scheduler_limits *limits);
void hr_scheduler_deinit(hr_scheduler *scheduler); /* accepts a zeroed one; all sequences must have been removed */

/* Hands a started sequence in. It must fit the pool: ceil(capacity / P) <= n_pages. */
void hr_scheduler_add(hr_scheduler *scheduler, hr_sequence *sequence);
/* Takes a sequence out, wherever it is, and gives back what it holds. */
void hr_scheduler_remove(hr_scheduler *scheduler, hr_sequence *sequence);
/* Removes a sequence whose numbers turned out bad: its pages are not left for others to find. */
void hr_scheduler_remove_bad(hr_scheduler *scheduler, hr_sequence *sequence);

/* The next batch. Never empty while there is a sequence. Valid until the next call. May preempt: the victim waits again
 * with its ids kept and its computation forgotten. */
const hr_plan *hr_scheduler_plan(hr_scheduler *scheduler);
/* The span was run: advances its sequence and publishes full pages. */
void hr_scheduler_commit(hr_scheduler *scheduler, const hr_planned_span *span);

static inline uint32_t hr_scheduler_n_sequences(const hr_scheduler *scheduler)
{
    return scheduler->n_running + scheduler->n_waiting + scheduler->n_held;
}
/* Pages that a sequence of so many positions needs. */
static inline uint32_t hr_pages_for(uint32_t n_positions, uint32_t page_tokens)
{
    return n_positions / page_tokens + (n_positions % page_tokens > 0);
}
/* NULL, or which invariant is broken. scratch [n_pages] is overwritten. For tests: O(pages + sequences). */
const char *hr_scheduler_check(const hr_scheduler *scheduler, uint32_t *scratch);

#endif
