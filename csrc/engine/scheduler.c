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
 * With a step in flight nobody is preempted: the victim's rows may be running. The plan is empty then, the engine waits
 * for the step, and the next plan is free to choose. That costs a gap on the device only when memory has run out.
 *
 * A sequence that resumes from cached pages starts warmup_rows before the end of the hit with a zero convolution state;
 * those rows write nothing (docs/design/prefix-cache.md). At least one token is left to run, since its logits are
 * needed.
 *
 * Guesses come last: they take rows, outputs and pages that nobody else had a use for in this step, and pages of wrong
 * ones are given back with the step, so that they displace nobody. Rows that are repeated after a wrong guess are not
 * optional, but they fit: they are fewer than the rows that the sequence had in the step before, and every other ready
 * sequence had at least one there.
 */
#include "engine/scheduler.h"

#include "base/status.h"

#include <string.h>

enum { REPEAT_MAX = 32 }; /* rows that a sequence repeats after wrong guesses, beside which it may still have others */

/* A step fills at most so many pages: whole ones of its rows, and for each span the one it found begun. */
static uint32_t late_pages_max(const hr_scheduler_limits *limits)
{
    return limits->max_rows / limits->page_tokens + limits->max_seqs;
}

static bool init_plans(hr_scheduler *scheduler)
{
    const hr_scheduler_limits *limits = &scheduler->limits;

    for (uint32_t i = 0; i < limits->max_steps_in_flight; i++) {
        hr_plan *plan = &scheduler->plans[i];

        plan->spans = calloc(limits->max_seqs, sizeof *plan->spans);
        plan->late_pages = calloc(late_pages_max(limits), sizeof *plan->late_pages);
        if (!plan->spans || !plan->late_pages)
            return false;
    }
    return true;
}

bool hr_scheduler_init(hr_scheduler *scheduler, const hr_scheduler_limits *limits)
{
    HR_ASSERT(limits->max_seqs > 0 && limits->max_rows >= limits->max_seqs && limits->max_outputs >= limits->max_seqs);
    HR_ASSERT(limits->max_steps_in_flight <= HR_STEPS_IN_FLIGHT_MAX);
    HR_ASSERT(limits->speculative_rows == 0 || limits->max_steps_in_flight <= 1);
    *scheduler = (hr_scheduler){.limits = *limits};
    if (limits->max_steps_in_flight == 0)
        scheduler->limits.max_steps_in_flight = 1;
    scheduler->running = calloc(limits->max_seqs, sizeof(hr_sequence *));
    if (scheduler->running && init_plans(scheduler) && hr_kv_pages_init(&scheduler->pages, limits->n_pages) &&
        hr_state_slots_init(&scheduler->slots, limits->max_seqs) &&
        hr_prefix_cache_init(&scheduler->cache, &scheduler->pages, limits->page_tokens, limits->prefix_caching,
                             limits->hash))
        return true;
    hr_scheduler_deinit(scheduler);
    return false;
}

void hr_scheduler_deinit(hr_scheduler *scheduler)
{
    HR_ASSERT(hr_scheduler_n_sequences(scheduler) == 0 && scheduler->n_in_flight == 0);
    hr_prefix_cache_deinit(&scheduler->cache);
    hr_state_slots_deinit(&scheduler->slots);
    hr_kv_pages_deinit(&scheduler->pages);
    for (uint32_t i = 0; i < HR_STEPS_IN_FLIGHT_MAX; i++) {
        free(scheduler->plans[i].spans);
        free(scheduler->plans[i].late_pages);
    }
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

static void give_back(hr_scheduler *scheduler, hr_sequence *sequence)
{
    HR_ASSERT(sequence->n_in_flight == 0);
    while (sequence->n_pages > 0)
        hr_prefix_cache_drop(&scheduler->cache, sequence->pages[--sequence->n_pages]);
    hr_state_slots_give_back(&scheduler->slots, sequence->state_slot);
    sequence->state_slot = HR_NO_SLOT;
    sequence->next_row = sequence->n_run = sequence->warmup_end = sequence->n_published = 0;
    sequence->n_proposed = sequence->n_repeat = 0;
    sequence->place = HR_PLACE_NOWHERE;
}

static void start_leaving(hr_scheduler *scheduler, hr_sequence *sequence)
{
    sequence->prev = NULL;
    sequence->next = scheduler->leaving_first;
    if (sequence->next)
        sequence->next->prev = sequence;
    scheduler->leaving_first = sequence;
    scheduler->n_leaving++;
    sequence->place = HR_PLACE_LEAVING;
}

static void leave(hr_scheduler *scheduler, hr_sequence *sequence)
{
    *(sequence->prev ? &sequence->prev->next : &scheduler->leaving_first) = sequence->next;
    if (sequence->next)
        sequence->next->prev = sequence->prev;
    sequence->prev = sequence->next = NULL;
    scheduler->n_leaving--;
    give_back(scheduler, sequence);
}

/* Takes a sequence off the running list. Its pages and slot are given back, later if a step in flight names them. */
static void stop_running(hr_scheduler *scheduler, hr_sequence *sequence)
{
    uint32_t at = 0;

    while (scheduler->running[at] != sequence)
        at++;
    scheduler->n_running--;
    memmove(&scheduler->running[at], &scheduler->running[at + 1], (scheduler->n_running - at) * sizeof(hr_sequence *));
    if (sequence->n_in_flight > 0)
        start_leaving(scheduler, sequence);
    else
        give_back(scheduler, sequence);
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
    return sequence->n_run + 1 >= sequence->n_prompt;
}

void hr_scheduler_add(hr_scheduler *scheduler, hr_sequence *sequence)
{
    hr_sequence *leader = sequence->leader;

    HR_ASSERT(hr_pages_for(sequence->capacity, scheduler->limits.page_tokens) <= scheduler->limits.n_pages);
    HR_ASSERT(sequence->place == HR_PLACE_NOWHERE);
    /* Waiting for the leader pays only if its prompt pages will then be taken. */
    if (!leader || leader->place == HR_PLACE_NOWHERE || leader->place == HR_PLACE_LEAVING || is_prompt_run(leader) ||
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
    case HR_PLACE_LEAVING:
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

/* Prompt logprobs that were delivered or will be by steps in flight: a row that was planned is scored, and what was
 * scored before a preemption stays so. */
static uint32_t n_scores_planned(const hr_sequence *sequence)
{
    uint32_t n_planned = sequence->next_row < sequence->n_prompt - 1 ? sequence->next_row : sequence->n_prompt - 1;

    return n_planned > sequence->n_scored ? n_planned : sequence->n_scored;
}

/* Adds a span of at most the rows and outputs left; false when there is not even one row for it. */
static bool plan_span(hr_scheduler *scheduler, hr_plan *plan, hr_sequence *sequence)
{
    uint32_t start = sequence->next_row, rows_left = scheduler->limits.max_rows - plan->n_rows;
    uint32_t outputs_left = scheduler->limits.max_outputs - plan->n_outputs, n_rows = hr_sequence_rows_left(sequence);
    uint32_t score_first = 0, n_scores = 0;
    bool samples;

    if (n_rows > rows_left)
        n_rows = rows_left;
    if (sequence->n_prompt_logprobs >= 0 && n_scores_planned(sequence) < sequence->n_prompt - 1) {
        uint32_t score_end = start + n_rows < sequence->n_prompt - 1 ? start + n_rows : sequence->n_prompt - 1;

        score_first = n_scores_planned(sequence); /* >= start */
        if (score_end > score_first)
            n_scores = score_end - score_first;
        if (n_scores > outputs_left) {
            n_scores = outputs_left;
            n_rows = score_first + n_scores - start;
        }
    }
    samples = start + n_rows == sequence->n_total + sequence->n_pending;
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
    plan->has_prompt_rows |= start < sequence->n_prompt;
    sequence->next_row += n_rows;
    sequence->n_pending += samples;
    sequence->n_in_flight++;
    sequence->is_fresh = false;
    return true;
}

static void preempt_last(hr_scheduler *scheduler)
{
    hr_sequence *victim = scheduler->running[scheduler->n_running - 1];

    stop_running(scheduler, victim);
    enqueue(scheduler, victim, false);
    scheduler->n_preemptions++;
}

/* Makes sure that every row that follows an answer has a page, at the expense of those later in order. False: memory
 * has run out, and with steps in flight nobody can be made to give it up. Then nothing was planned; pages that were
 * taken stay where they are needed. */
static bool take_answer_pages(hr_scheduler *scheduler)
{
    for (uint32_t i = 0; i < scheduler->n_running; i++) {
        hr_sequence *sequence = scheduler->running[i];

        if (!hr_sequence_is_ready(sequence))
            continue;
        while (sequence->place == HR_PLACE_RUNNING && hr_pages_for(sequence->next_row + sequence->n_repeat + 1,
                                                                   scheduler->limits.page_tokens) > sequence->n_pages) {
            uint32_t page = hr_prefix_cache_take(&scheduler->cache);

            if (page != HR_NO_PAGE)
                sequence->pages[sequence->n_pages++] = page;
            else if (scheduler->n_in_flight > 0)
                return false;
            else
                preempt_last(scheduler);
        }
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
    sequence->n_run = sequence->next_row;
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

static void plan_spans(hr_scheduler *scheduler, hr_plan *plan)
{
    for (uint32_t i = 0; i < scheduler->n_running; i++)
        if (hr_sequence_is_ready(scheduler->running[i]))
            HR_ASSERT(plan_span(scheduler, plan, scheduler->running[i]));
    for (uint32_t i = 0; i < scheduler->n_running && plan->n_rows < scheduler->limits.max_rows; i++)
        if (hr_sequence_rows_left(scheduler->running[i]) > 1 && !hr_sequence_is_ready(scheduler->running[i]))
            (void)plan_span(scheduler, plan, scheduler->running[i]);

    while (scheduler->waiting_first && scheduler->slots.n_free > 0 && plan->n_rows < scheduler->limits.max_rows &&
           plan->n_outputs < scheduler->limits.max_outputs) {
        hr_sequence *sequence = scheduler->waiting_first;

        if (!admit(scheduler, sequence))
            break;
        (void)plan_span(scheduler, plan, sequence);
    }
}

/* ---------------------------------------------------------------- guesses */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t hr_scheduler_rows_for_guesses(const hr_scheduler *scheduler)
{
    uint32_t rows = min_u32(scheduler->limits.speculative_rows, scheduler->limits.max_rows);

    for (uint32_t i = 0; i < scheduler->n_running && rows > 0; i++)
        rows -= min_u32(rows, hr_sequence_rows_left(scheduler->running[i]));
    return rows;
}

uint32_t hr_scheduler_guesses_for(const hr_scheduler *scheduler, const hr_sequence *sequence)
{
    /* A state that was put back again and again lies further back each time. Beyond this it is brought up to date by a
     * step without guesses. */
    if (sequence->n_repeat > min_u32(scheduler->limits.speculative_rows / 2, REPEAT_MAX))
        return 0;
    if (sequence->is_fresh || sequence->next_row < sequence->n_prompt || !hr_sequence_is_ready(sequence))
        return 0;
    return sequence->capacity - sequence->n_total - 1;
}

/* Makes sure of pages for n positions more than `end`, and returns for how many they were found. */
static uint32_t take_guess_pages(hr_scheduler *scheduler, hr_sequence *sequence, uint32_t end, uint32_t n)
{
    while (hr_pages_for(end + n, scheduler->limits.page_tokens) > sequence->n_pages) {
        uint32_t page = hr_prefix_cache_take(&scheduler->cache);

        if (page == HR_NO_PAGE)
            return sequence->n_pages * scheduler->limits.page_tokens - end;
        sequence->pages[sequence->n_pages++] = page;
    }
    return n;
}

/* Appends guesses to the spans of a plan that is complete without them. Spans before lengthened ones stay, those behind
 * move. */
static void add_guesses(hr_scheduler *scheduler, hr_plan *plan)
{
    uint32_t max_rows = min_u32(scheduler->limits.speculative_rows, scheduler->limits.max_rows);
    uint32_t moved_by = 0, slots_left = scheduler->limits.n_sampling_slots;

    for (uint32_t i = 0; i < plan->n_spans; i++) {
        hr_planned_span *span = &plan->spans[i];
        hr_sequence *sequence = span->sequence;
        uint32_t n = sequence->n_proposed, n_pages = sequence->n_pages;
        bool needs_slots = scheduler->limits.n_sampling_slots > 0 && hr_sampling_has_penalties(&sequence->sampling);

        span->first_row += moved_by;
        span->first_output += moved_by;
        sequence->n_proposed = 0;
        if (n == 0)
            continue;
        HR_ASSERT(span->samples && span->start >= sequence->n_prompt && sequence->n_total + n < sequence->capacity);
        n = min_u32(n, plan->n_rows < max_rows ? max_rows - plan->n_rows : 0);
        n = min_u32(n, scheduler->limits.max_outputs - plan->n_outputs);
        n = needs_slots ? min_u32(n, slots_left) : n;
        n = take_guess_pages(scheduler, sequence, span->start + span->n_rows, n);
        if (needs_slots) {
            span->sampling_slot = 1 + scheduler->limits.max_seqs + scheduler->limits.n_sampling_slots - slots_left;
            slots_left -= n;
        }
        span->n_proposed = n;
        span->n_rows += n;
        moved_by += n;
        plan->n_rows += n;
        plan->n_outputs += n;
        plan->n_page_refs += sequence->n_pages - n_pages;
        sequence->next_row += n;
        sequence->n_pending += n;
    }
}

const hr_plan *hr_scheduler_plan(hr_scheduler *scheduler)
{
    uint32_t n_max = scheduler->limits.max_steps_in_flight;
    hr_plan *plan = &scheduler->plans[(scheduler->oldest_plan + scheduler->n_in_flight) % n_max];

    HR_ASSERT(scheduler->n_in_flight < n_max);
    plan->n_spans = plan->n_rows = plan->n_outputs = plan->n_page_refs = plan->n_late_pages = 0;
    plan->has_prompt_rows = false;
    if (take_answer_pages(scheduler))
        plan_spans(scheduler, plan);
    if (scheduler->limits.speculative_rows > 0)
        add_guesses(scheduler, plan);
    scheduler->n_in_flight += plan->n_rows > 0;
    return plan;
}

const hr_plan *hr_scheduler_finish(hr_scheduler *scheduler)
{
    hr_plan *plan = &scheduler->plans[scheduler->oldest_plan];

    HR_ASSERT(scheduler->n_in_flight > 0);
    for (uint32_t i = 0; i < plan->n_spans; i++) {
        hr_sequence *sequence = plan->spans[i].sequence;

        sequence->n_in_flight--;
        if (sequence->place == HR_PLACE_LEAVING && sequence->n_in_flight == 0)
            leave(scheduler, sequence);
    }
    while (plan->n_late_pages > 0)
        hr_prefix_cache_drop(&scheduler->cache, plan->late_pages[--plan->n_late_pages]);
    scheduler->oldest_plan = (scheduler->oldest_plan + 1) % scheduler->limits.max_steps_in_flight;
    scheduler->n_in_flight--;
    return plan;
}

/* Offers a full page to the prefix cache. If an equal one is known, the sequence goes on with that; its own is dropped,
 * but not while a step in flight reads it. */
static void publish_page(hr_scheduler *scheduler, hr_sequence *sequence, uint32_t at)
{
    hr_prefix_cache *cache = &scheduler->cache;
    uint32_t own = sequence->pages[at];
    hr_plan *newest;

    if (sequence->n_in_flight > 0)
        hr_prefix_cache_hold(cache, own);
    sequence->pages[at] =
        hr_prefix_cache_publish(cache, sequence->cache_salt, at ? sequence->pages[at - 1] : HR_NO_PAGE,
                                sequence->ids + (size_t)at * scheduler->limits.page_tokens, own);
    if (sequence->n_in_flight == 0)
        return;
    if (sequence->pages[at] == own) {
        hr_prefix_cache_drop(cache, own);
        return;
    }
    newest =
        &scheduler
             ->plans[(scheduler->oldest_plan + scheduler->n_in_flight - 1) % scheduler->limits.max_steps_in_flight];
    HR_ASSERT(newest->n_late_pages < late_pages_max(&scheduler->limits));
    newest->late_pages[newest->n_late_pages++] = own;
}

bool hr_scheduler_commit_guesses(hr_scheduler *scheduler, const hr_planned_span *span, uint32_t n_tokens)
{
    hr_sequence *sequence = span->sequence;
    uint32_t n_wrong = span->n_proposed + 1 - n_tokens, end = span->start + span->n_rows - n_wrong;
    hr_planned_span right = *span;

    HR_ASSERT(n_tokens >= 1 && n_tokens <= span->n_proposed + 1 && sequence->n_in_flight == 0);
    right.n_rows -= n_wrong;
    sequence->n_repeat = 0;
    sequence->next_row = end;
    sequence->n_pending = n_tokens;
    hr_scheduler_commit(scheduler, &right);
    while (sequence->n_pages > hr_pages_for(end, scheduler->limits.page_tokens))
        hr_prefix_cache_drop(&scheduler->cache, sequence->pages[--sequence->n_pages]);
    if (n_wrong == 0)
        return false;
    sequence->next_row = sequence->n_run = span->start;
    sequence->n_repeat = end - span->start;
    sequence->warmup_end = end;
    return true;
}

void hr_scheduler_commit(hr_scheduler *scheduler, const hr_planned_span *span)
{
    hr_sequence *sequence = span->sequence;

    HR_ASSERT(sequence->place == HR_PLACE_RUNNING && sequence->n_run == span->start);
    if (span->n_proposed == 0)
        sequence->n_repeat = 0;
    sequence->n_run += span->n_rows;
    sequence->n_scored += span->n_scores;
    while ((uint64_t)(sequence->n_published + 1) * scheduler->limits.page_tokens <= sequence->n_run)
        publish_page(scheduler, sequence, sequence->n_published++);
    if (is_prompt_run(sequence))
        release_siblings(scheduler, sequence);
}
