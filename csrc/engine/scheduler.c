/* Order of a step:
 *
 *  1. every sequence that only waits for its next token gets its one row: a long prompt never delays a running answer;
 *  2. running sequences that are still in their prompt get chunks of it, first come first served, from the rows left;
 *  3. waiting sequences are admitted strictly in order while a slot, rows and pages last. The first that does not fit
 * ends admission: letting smaller ones pass would starve it.
 *
 * Admission reserves the pages of everything that is already known (prompt, and output after a preemption); pages of
 * the answer are taken one by one, because reserving max_tokens would halve concurrency for answers that end early.
 * When a running sequence finds no page, the last in order gives up everything and waits again: recompute, not swap,
 * because the prefix cache usually still has its full pages. The first in order is never a victim, so it always
 * finishes, and by induction everyone does: no sequence may need more than the whole pool (refused at submit). While
 * others run, admission leaves a small reserve of pages, so that a newcomer is not preempted in its first steps.
 *
 * A sequence that resumes from cached pages starts warmup_rows before the end of the hit with a zero convolution state;
 * those rows write nothing (docs/design/prefix-cache.md). At least one token is left to run, since its logits are
 * needed.
 */
#include "engine/scheduler.h"

#include "base/status.h"

#include <string.h>

bool hr_scheduler_init(hr_scheduler *scheduler, const hr_scheduler_limits *limits)
{
    HR_ASSERT(limits->max_seqs > 0 && limits->max_rows >= limits->max_seqs && limits->max_outputs >= limits->max_seqs);
    *scheduler = (hr_scheduler){.limits = *limits};
    scheduler->running = calloc(limits->max_seqs, sizeof(hr_sequence *));
    scheduler->plan.spans = calloc(limits->max_seqs, sizeof *scheduler->plan.spans);
    if (scheduler->running && scheduler->plan.spans && hr_kv_pages_init(&scheduler->pages, limits->n_pages) &&
        hr_state_slots_init(&scheduler->slots, limits->max_seqs) &&
        hr_prefix_cache_init(&scheduler->cache, &scheduler->pages, limits->page_tokens, limits->prefix_caching,
                             limits->hash))
        return true;
    hr_scheduler_deinit(scheduler);
    return false;
}

void hr_scheduler_deinit(hr_scheduler *scheduler)
{
    HR_ASSERT(hr_scheduler_n_sequences(scheduler) == 0);
    hr_prefix_cache_deinit(&scheduler->cache);
    hr_state_slots_deinit(&scheduler->slots);
    hr_kv_pages_deinit(&scheduler->pages);
    free(scheduler->plan.spans);
    free(scheduler->running);
    *scheduler = (hr_scheduler){0};
}

/* ---------------------------------------------------------------- lists */

/* Puts a sequence at its place in line. New arrivals belong near the end, returning ones near the front. */
static void enqueue(hr_scheduler *scheduler, hr_sequence *sequence, bool is_new)
{
    hr_sequence *before; /* the one it goes behind */

    if (is_new) {
        before = scheduler->waiting_last;
        while (before && hr_sequence_is_before(sequence, before))
            before = before->prev;
    } else {
        hr_sequence *after = scheduler->waiting_first;

        while (after && hr_sequence_is_before(after, sequence))
            after = after->next;
        before = after ? after->prev : scheduler->waiting_last;
    }
    sequence->prev = before;
    sequence->next = before ? before->next : scheduler->waiting_first;
    *(sequence->next ? &sequence->next->prev : &scheduler->waiting_last) = sequence;
    *(before ? &before->next : &scheduler->waiting_first) = sequence;
    sequence->place = HR_PLACE_WAITING;
    scheduler->n_waiting++;
}

static void dequeue(hr_scheduler *scheduler, hr_sequence *sequence)
{
    *(sequence->prev ? &sequence->prev->next : &scheduler->waiting_first) = sequence->next;
    *(sequence->next ? &sequence->next->prev : &scheduler->waiting_last) = sequence->prev;
    sequence->prev = sequence->next = NULL;
    sequence->place = HR_PLACE_NOWHERE;
    scheduler->n_waiting--;
}

static void start_running(hr_scheduler *scheduler, hr_sequence *sequence)
{
    uint32_t at = scheduler->n_running++;

    for (; at > 0 && hr_sequence_is_before(sequence, scheduler->running[at - 1]); at--)
        scheduler->running[at] = scheduler->running[at - 1];
    scheduler->running[at] = sequence;
    sequence->place = HR_PLACE_RUNNING;
}

/* Takes a sequence off the running list and gives its pages and slot back. */
static void stop_running(hr_scheduler *scheduler, hr_sequence *sequence)
{
    uint32_t at = 0;

    while (scheduler->running[at] != sequence)
        at++;
    scheduler->n_running--;
    memmove(&scheduler->running[at], &scheduler->running[at + 1], (scheduler->n_running - at) * sizeof(hr_sequence *));
    while (sequence->n_pages > 0)
        hr_prefix_cache_drop(&scheduler->cache, sequence->pages[--sequence->n_pages]);
    hr_state_slots_give_back(&scheduler->slots, sequence->state_slot);
    sequence->state_slot = HR_NO_SLOT;
    sequence->next_row = sequence->warmup_end = sequence->n_published = 0;
    sequence->place = HR_PLACE_NOWHERE;
}

/* The most pages a cached prefix may give: at least one token must still be run, and prompt positions whose logprobs
 * are wanted must be run too. */
static uint32_t max_hit_pages(const hr_scheduler *scheduler, const hr_sequence *sequence)
{
    uint32_t n_tokens = sequence->n_total - 1;

    if (!scheduler->limits.prefix_caching)
        return 0;
    if (sequence->n_prompt_logprobs >= 0 && sequence->n_scored < sequence->n_prompt - 1)
        n_tokens = sequence->n_scored;
    return n_tokens / scheduler->limits.page_tokens;
}

/* Below this a hit costs about as much in warm-up rows as it saves. */
static bool is_worth_taking(const hr_scheduler *scheduler, uint32_t n_pages)
{
    return n_pages > 0 &&
           (uint64_t)n_pages * scheduler->limits.page_tokens >= 2 * (uint64_t)scheduler->limits.warmup_rows;
}

/* Whether every prompt position that a sibling could take from the cache has been run. */
static bool is_prompt_run(const hr_sequence *sequence)
{
    return sequence->next_row + 1 >= sequence->n_prompt;
}

void hr_scheduler_add(hr_scheduler *scheduler, hr_sequence *sequence)
{
    hr_sequence *leader = sequence->leader;

    HR_ASSERT(hr_pages_for(sequence->capacity, scheduler->limits.page_tokens) <= scheduler->limits.n_pages);
    HR_ASSERT(sequence->place == HR_PLACE_NOWHERE);
    /* Waiting for the leader pays only if its prompt pages will then be taken. */
    if (!leader || leader->place == HR_PLACE_NOWHERE || is_prompt_run(leader) ||
        !is_worth_taking(scheduler, max_hit_pages(scheduler, sequence))) {
        sequence->leader = NULL;
        enqueue(scheduler, sequence, true);
        return;
    }
    sequence->next = NULL;
    *(leader->held_last ? &leader->held_last->next : &leader->held_first) = sequence;
    leader->held_last = sequence;
    sequence->place = HR_PLACE_HELD;
    scheduler->n_held++;
}

/* The leader's prompt is in the cache, or the leader is gone: its siblings need not wait for it any longer. */
static void release_siblings(hr_scheduler *scheduler, hr_sequence *leader)
{
    hr_sequence *sibling = leader->held_first;

    leader->held_first = leader->held_last = NULL;
    while (sibling) {
        hr_sequence *next = sibling->next;

        sibling->leader = NULL;
        scheduler->n_held--;
        enqueue(scheduler, sibling, false);
        sibling = next;
    }
}

static void leave_leader(hr_scheduler *scheduler, hr_sequence *sequence)
{
    hr_sequence *leader = sequence->leader, *before = NULL;

    for (hr_sequence *s = leader->held_first; s != sequence; s = s->next)
        before = s;
    *(before ? &before->next : &leader->held_first) = sequence->next;
    if (leader->held_last == sequence)
        leader->held_last = before;
    sequence->leader = sequence->next = NULL;
    sequence->place = HR_PLACE_NOWHERE;
    scheduler->n_held--;
}

void hr_scheduler_remove(hr_scheduler *scheduler, hr_sequence *sequence)
{
    switch (sequence->place) {
    case HR_PLACE_NOWHERE:
        break;
    case HR_PLACE_HELD:
        leave_leader(scheduler, sequence);
        break;
    case HR_PLACE_WAITING:
        dequeue(scheduler, sequence);
        break;
    case HR_PLACE_RUNNING:
        stop_running(scheduler, sequence);
        break;
    }
    release_siblings(scheduler, sequence);
}

void hr_scheduler_remove_bad(hr_scheduler *scheduler, hr_sequence *sequence)
{
    if (sequence->place == HR_PLACE_RUNNING)
        for (uint32_t i = sequence->n_pages; i-- > 0;)
            hr_prefix_cache_forget(&scheduler->cache, sequence->pages[i]);
    hr_scheduler_remove(scheduler, sequence);
}

/* ---------------------------------------------------------------- the plan */

/* Adds a span of at most the rows and outputs left; false when there is not even one row for it. */
static bool plan_span(hr_scheduler *scheduler, hr_sequence *sequence)
{
    hr_plan *plan = &scheduler->plan;
    uint32_t start = sequence->next_row, rows_left = scheduler->limits.max_rows - plan->n_rows;
    uint32_t outputs_left = scheduler->limits.max_outputs - plan->n_outputs, n_rows = hr_sequence_rows_left(sequence);
    uint32_t score_first = 0, n_scores = 0;
    bool samples;

    if (n_rows > rows_left)
        n_rows = rows_left;
    if (sequence->n_prompt_logprobs >= 0 && sequence->n_scored < sequence->n_prompt - 1) {
        uint32_t score_end = start + n_rows < sequence->n_prompt - 1 ? start + n_rows : sequence->n_prompt - 1;

        score_first = sequence->n_scored; /* >= start: the rows before were scored when they ran */
        if (score_end > score_first)
            n_scores = score_end - score_first;
        if (n_scores > outputs_left) {
            n_scores = outputs_left;
            n_rows = score_first + n_scores - start;
        }
    }
    samples = start + n_rows == sequence->n_total;
    if (samples && n_scores == outputs_left) {
        n_rows--; /* the sampling row has to wait for the next step */
        samples = false;
    }
    if (n_rows == 0)
        return false;
    plan->spans[plan->n_spans++] = (hr_planned_span){
        .sequence = sequence,
        .first_row = plan->n_rows,
        .start = start,
        .n_rows = n_rows,
        .n_warmup = sequence->warmup_end <= start           ? 0
                    : sequence->warmup_end - start < n_rows ? sequence->warmup_end - start
                                                            : n_rows,
        .is_fresh = sequence->is_fresh,
        .first_output = plan->n_outputs,
        .score_first = score_first,
        .n_scores = n_scores,
        .samples = samples,
    };
    plan->n_rows += n_rows;
    plan->n_outputs += n_scores + samples;
    plan->n_page_refs += sequence->n_pages;
    return true;
}

static void preempt_last(hr_scheduler *scheduler)
{
    hr_sequence *victim = scheduler->running[scheduler->n_running - 1];

    stop_running(scheduler, victim);
    enqueue(scheduler, victim, false);
    scheduler->n_preemptions++;
}

/* Makes sure that the position of the next row has a page, at the expense of those later in order. False: the sequence
 * was the last itself and is preempted. */
static bool take_answer_page(hr_scheduler *scheduler, hr_sequence *sequence)
{
    while (hr_pages_for(sequence->n_total, scheduler->limits.page_tokens) > sequence->n_pages) {
        uint32_t page = hr_prefix_cache_take(&scheduler->cache);

        if (page != HR_NO_PAGE) {
            sequence->pages[sequence->n_pages++] = page;
            continue;
        }
        preempt_last(scheduler);
        if (sequence->place != HR_PLACE_RUNNING)
            return false;
    }
    return true;
}

static uint32_t count_idle(const hr_scheduler *scheduler, const uint32_t *pages, uint32_t n)
{
    uint32_t n_idle = 0;

    for (uint32_t i = 0; i < n; i++)
        n_idle += scheduler->pages.refs[pages[i]] == 0;
    return n_idle;
}

/* Gives the first in line its slot and pages if they are there. */
static bool admit(hr_scheduler *scheduler, hr_sequence *sequence)
{
    const uint32_t page_tokens = scheduler->limits.page_tokens, warmup = scheduler->limits.warmup_rows;
    uint32_t n_needed = hr_pages_for(sequence->n_total, page_tokens), n_hit, reserve = 0;
    uint32_t available = hr_prefix_cache_available(&scheduler->cache), hit_max = max_hit_pages(scheduler, sequence);

    if (scheduler->n_running > 0)
        reserve = scheduler->n_running < scheduler->limits.n_pages / 16 ? scheduler->n_running
                                                                        : scheduler->limits.n_pages / 16;
    if (available < reserve + (n_needed - hit_max))
        return false; /* not even with the longest possible hit */
    n_hit = hr_prefix_cache_find(&scheduler->cache, sequence->cache_salt, sequence->ids, hit_max, sequence->pages);
    if (!is_worth_taking(scheduler, n_hit))
        n_hit = 0;
    if (available < reserve + (n_needed - n_hit) + count_idle(scheduler, sequence->pages, n_hit))
        return false;

    dequeue(scheduler, sequence);
    for (uint32_t i = 0; i < n_hit; i++)
        hr_prefix_cache_hold(&scheduler->cache, sequence->pages[i]);
    for (uint32_t i = n_hit; i < n_needed; i++)
        sequence->pages[i] = hr_prefix_cache_take(&scheduler->cache);
    sequence->n_pages = n_needed;
    sequence->n_published = n_hit;
    sequence->warmup_end = n_hit * page_tokens;
    sequence->next_row = sequence->warmup_end > warmup ? sequence->warmup_end - warmup : 0;
    sequence->is_fresh = true;
    sequence->state_slot = hr_state_slots_take(&scheduler->slots);
    if (!sequence->was_admitted) {
        sequence->was_admitted = true;
        sequence->n_cached_tokens = sequence->warmup_end;
        scheduler->prefix_queries += scheduler->limits.prefix_caching ? sequence->n_prompt : 0;
        scheduler->prefix_hits += sequence->warmup_end;
    }
    start_running(scheduler, sequence);
    return true;
}

const hr_plan *hr_scheduler_plan(hr_scheduler *scheduler)
{
    hr_plan *plan = &scheduler->plan;

    plan->n_spans = plan->n_rows = plan->n_outputs = plan->n_page_refs = 0;
    for (uint32_t i = 0; i < scheduler->n_running; i++) {
        hr_sequence *sequence = scheduler->running[i];

        if (hr_sequence_rows_left(sequence) != 1)
            continue;
        if (!take_answer_page(scheduler, sequence))
            break;
        HR_ASSERT(plan_span(scheduler, sequence));
    }
    for (uint32_t i = 0; i < scheduler->n_running && plan->n_rows < scheduler->limits.max_rows; i++)
        if (hr_sequence_rows_left(scheduler->running[i]) > 1)
            (void)plan_span(scheduler, scheduler->running[i]);

    while (scheduler->waiting_first && scheduler->n_running < scheduler->limits.max_seqs &&
           plan->n_rows < scheduler->limits.max_rows && plan->n_outputs < scheduler->limits.max_outputs) {
        hr_sequence *sequence = scheduler->waiting_first;

        if (!admit(scheduler, sequence))
            break;
        (void)plan_span(scheduler, sequence);
    }
    return plan;
}

void hr_scheduler_commit(hr_scheduler *scheduler, const hr_planned_span *span)
{
    const uint32_t page_tokens = scheduler->limits.page_tokens;
    hr_sequence *sequence = span->sequence;

    HR_ASSERT(sequence->place == HR_PLACE_RUNNING && sequence->next_row == span->start);
    sequence->next_row += span->n_rows;
    sequence->n_scored += span->n_scores;
    sequence->is_fresh = false;
    while ((uint64_t)(sequence->n_published + 1) * page_tokens <= sequence->next_row) {
        uint32_t at = sequence->n_published++;

        sequence->pages[at] =
            hr_prefix_cache_publish(&scheduler->cache, sequence->cache_salt, at ? sequence->pages[at - 1] : HR_NO_PAGE,
                                    sequence->ids + (size_t)at * page_tokens, sequence->pages[at]);
    }
    if (is_prompt_run(sequence))
        release_siblings(scheduler, sequence);
}

/* ---------------------------------------------------------------- invariants */

static const char *check_running(const hr_scheduler *scheduler, const hr_sequence *sequence)
{
    uint32_t page_tokens = scheduler->limits.page_tokens;

    if (sequence->place != HR_PLACE_RUNNING)
        return "a running sequence believes it is elsewhere";
    if (sequence->state_slot >= scheduler->slots.n_slots || !scheduler->slots.is_taken[sequence->state_slot])
        return "a running sequence has no slot";
    if (sequence->n_pages > hr_pages_for(sequence->capacity, page_tokens))
        return "a sequence has more pages than it can ever need";
    if (sequence->next_row > sequence->n_total || sequence->n_pages < hr_pages_for(sequence->next_row, page_tokens))
        return "a sequence has run rows without pages";
    return NULL;
}

static const char *check_waiting(const hr_scheduler *scheduler)
{
    uint32_t n_waiting = 0, n_held = 0;

    for (const hr_sequence *s = scheduler->waiting_first; s; s = s->next) {
        if (++n_waiting > scheduler->n_waiting)
            return "more sequences wait than were counted";
        if (s->place != HR_PLACE_WAITING || s->n_pages || s->state_slot != HR_NO_SLOT)
            return "a waiting sequence holds something";
        if (s->next && (s->next->prev != s || hr_sequence_is_before(s->next, s)))
            return "the waiting line is out of order";
        for (const hr_sequence *h = s->held_first; h; h = h->next)
            n_held++;
    }
    for (uint32_t i = 0; i < scheduler->n_running; i++)
        for (const hr_sequence *h = scheduler->running[i]->held_first; h; h = h->next)
            n_held += h->place == HR_PLACE_HELD && h->leader == scheduler->running[i];
    if (n_waiting != scheduler->n_waiting || n_held != scheduler->n_held)
        return "the counts of waiting or held sequences are wrong";
    return NULL;
}

const char *hr_scheduler_check(const hr_scheduler *scheduler, uint32_t *scratch)
{
    const char *wrong = hr_kv_pages_check(&scheduler->pages, scheduler->cache.n_idle, scratch);

    if (!wrong)
        wrong = hr_state_slots_check(&scheduler->slots);
    if (!wrong)
        wrong = hr_prefix_cache_check(&scheduler->cache);
    if (!wrong)
        wrong = check_waiting(scheduler);
    if (!wrong && scheduler->slots.n_free + scheduler->n_running != scheduler->slots.n_slots)
        wrong = "slots and running sequences do not add up";
    memset(scratch, 0, scheduler->pages.n_pages * sizeof *scratch);
    for (uint32_t i = 0; i < scheduler->n_running && !wrong; i++) {
        wrong = check_running(scheduler, scheduler->running[i]);
        for (uint32_t k = 0; k < scheduler->running[i]->n_pages; k++)
            scratch[scheduler->running[i]->pages[k]]++;
        if (!wrong && i > 0 && hr_sequence_is_before(scheduler->running[i], scheduler->running[i - 1]))
            wrong = "the running sequences are out of order";
    }
    for (uint32_t i = 0; i < scheduler->pages.n_pages && !wrong; i++)
        if (scratch[i] != scheduler->pages.refs[i])
            wrong = "a page's holders and its count differ";
    return wrong;
}
