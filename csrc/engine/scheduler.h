/* Who runs next: (queues, budgets, pages) -> rows of the next batch.
 *
 * Pure: no clock, no I/O, no allocation after init, no threads. The same calls in the same order give the same plans,
 * so that a seeded simulation can drive it for a million steps. Time enters only through hr_sequence.order_key.
 *
 * Use: add sequences; then step by step plan, run the plan, finish it, commit each of its spans, append the sampled ids
 * (hr_sequence_accept), remove what ended.
 *
 * With max_steps_in_flight 2 a plan may be made before the one before it is finished. Lengths need no values: a
 * sequence whose next id is still being sampled has its next row planned all the same, unless the count says that this
 * id is its last. One that then ends otherwise (stop id, cancel, bad logits) has one surplus row in flight; what it
 * holds is given back when that step is finished, so that no page or slot changes hands while a step names it.
 *
 * Guesses (speculative decoding; one step in flight only): whoever guesses writes ids behind the known ones of a
 * sequence that is ready, and sets n_proposed, before the plan. The plan runs as many of them as rows, outputs and
 * pages allow once everything else has been planned. Such a span is committed with the number of tokens that turned out
 * right, and when that is not all, the sequence's next span begins again where this one began, with the rows that were
 * right as warm-up rows: the caller has kept the state from before the span and puts it back.
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
    uint32_t max_steps_in_flight; /* 1 or 2; 0 counts as 1 */
    uint32_t speculative_rows;    /* a step with guesses has at most so many rows in all; 0: no guesses */
    uint32_t n_sampling_slots; /* guesses a step that may be sampled with penalties; each has a slot for it, from slot
                                  max_seqs on. 0: they need none */
    hr_prefix_hash_fn hash;    /* NULL: the built-in one */
} hr_scheduler_limits;

/* Consecutive rows of one sequence in the next batch. */
typedef struct hr_planned_span {
    hr_sequence *sequence;
    uint32_t first_row; /* in the batch */
    uint32_t start, n_rows, n_warmup;
    bool is_fresh;
    uint32_t first_output, score_first,
        n_scores;           /* prompt positions score_first .. whose next id's logprob is wanted */
    bool samples;           /* the last row's logits give the next token; its output follows the scores */
    uint32_t n_proposed;    /* the last so many rows are guesses, and each samples too, as does the row before them */
    uint32_t sampling_slot; /* hr_output.sampling_slot of the first guess, those after it count on; 0: none needs one */
} hr_planned_span;

typedef struct hr_plan {
    hr_planned_span *spans; /* [max_seqs]; decode rows first, then prefill chunks */
    uint32_t n_spans, n_rows, n_outputs, n_page_refs;
    bool has_prompt_rows;
    uint32_t *late_pages; /* pages that were exchanged for equal ones while the step was in flight: dropped after it */
    uint32_t n_late_pages;
} hr_plan;

enum { HR_STEPS_IN_FLIGHT_MAX = 2 };

/* Owned by the engine thread. */
typedef struct hr_scheduler {
    hr_scheduler_limits limits;
    hr_kv_pages pages;
    hr_prefix_cache cache;
    hr_state_slots slots;
    hr_plan plans[HR_STEPS_IN_FLIGHT_MAX]; /* used in turn */
    uint32_t oldest_plan, n_in_flight;     /* those from oldest_plan on that are not finished */
    hr_sequence **running;                 /* [max_seqs], in order */
    uint32_t n_running, n_waiting, n_held, n_leaving;
    hr_sequence *waiting_first, *waiting_last;           /* in order */
    hr_sequence *leaving_first;                          /* in no order */
    uint64_t n_preemptions, prefix_queries, prefix_hits; /* the latter two in tokens */
} hr_scheduler;

/* False: no memory. */
bool hr_scheduler_init(hr_scheduler *scheduler, const hr_scheduler_limits *limits);
/* Accepts a zeroed one; all sequences must have been removed and all plans finished. */
void hr_scheduler_deinit(hr_scheduler *scheduler);

/* Hands a started sequence in. It must fit the pool: ceil(capacity / P) <= n_pages. */
void hr_scheduler_add(hr_scheduler *scheduler, hr_sequence *sequence);
/* Takes a sequence out, wherever it is, and gives back what it holds: at once (place NOWHERE), or if a plan in flight
 * names it, when that is finished (place LEAVING; the sequence must stay where it is until then). */
void hr_scheduler_remove(hr_scheduler *scheduler, hr_sequence *sequence);
/* Removes a sequence whose numbers turned out bad: its pages are not left for others to find. */
void hr_scheduler_remove_bad(hr_scheduler *scheduler, hr_sequence *sequence);

/* Rows of guesses that the next plan will hardly have to refuse: what its known rows leave of speculative_rows. */
uint32_t hr_scheduler_rows_for_guesses(const hr_scheduler *scheduler);
/* Guesses that could follow the sequence now: none unless it is ready and past its prompt, and never more than answer
 * is left for after the next token. */
uint32_t hr_scheduler_guesses_for(const hr_scheduler *scheduler, const hr_sequence *sequence);

/* The next batch, in flight from now on unless it is empty; fewer than max_steps_in_flight may be. Valid until the
 * first call after it was finished. With no plan in flight it is never empty while there is a
 * sequence, and may preempt: the victim waits again with its ids kept and its computation forgotten. With one in flight
 * it is empty when nothing but that plan's results can bring work, or when memory is needed that somebody has to give
 * up: finish that one and plan again. */
const hr_plan *hr_scheduler_plan(hr_scheduler *scheduler);
/* The oldest plan in flight is over, however it ended; its spans may now be committed. Sequences that were leaving
 * with it are gone (place NOWHERE). */
const hr_plan *hr_scheduler_finish(hr_scheduler *scheduler);
/* The span was run and its sequence is still there: advances it and publishes full pages. */
void hr_scheduler_commit(hr_scheduler *scheduler, const hr_planned_span *span);
/* The same for a span with guesses, of which n_tokens - 1 were right (hr_sequence_n_right), before those n_tokens are
 * appended. True: some were wrong, and the state from before the span has to be put back before the next step. */
bool hr_scheduler_commit_guesses(hr_scheduler *scheduler, const hr_planned_span *span, uint32_t n_tokens);

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
