/* What must hold of a scheduler between two steps, whatever happened before: every page and slot is accounted for,
 * lists are linked and in order, and what a step in flight names is still held. Tests ask after each step; nothing else
 * does.
 */
#include "engine/scheduler.h"

#include <string.h>

static const char *check_progress(const hr_sequence *sequence)
{
    if (sequence->next_row > sequence->n_total + sequence->n_pending)
        return "a sequence has planned rows of ids that nobody samples";
    if (sequence->n_total + sequence->n_pending > sequence->capacity)
        return "a sequence samples more ids than it has room for";
    if (sequence->n_run > sequence->next_row || (sequence->n_pending > 0 && sequence->n_in_flight == 0))
        return "a sequence has run more than was planned";
    if (sequence->n_in_flight == 0 && sequence->n_repeat > 0 &&
        sequence->next_row + sequence->n_repeat != sequence->warmup_end)
        return "the rows that a sequence repeats are not warm-up rows";
    if (sequence->n_in_flight == 0 && (sequence->n_run != sequence->next_row || sequence->n_pending > 0))
        return "a sequence waits for a step that is not in flight";
    return NULL;
}

static const char *check_holder(const hr_scheduler *scheduler, const hr_sequence *sequence)
{
    uint32_t page_tokens = scheduler->limits.page_tokens, n_known = sequence->n_run + sequence->n_repeat;

    if (sequence->state_slot >= scheduler->slots.n_slots || !scheduler->slots.is_taken[sequence->state_slot])
        return "a running sequence has no slot";
    if (sequence->n_pages > hr_pages_for(sequence->capacity, page_tokens))
        return "a sequence has more pages than it can ever need";
    if (sequence->n_pages < hr_pages_for(sequence->next_row, page_tokens) ||
        (sequence->n_repeat > 0 && sequence->n_pages < hr_pages_for(sequence->warmup_end, page_tokens)))
        return "a sequence has run rows without pages";
    if (n_known < sequence->warmup_end)
        n_known = sequence->warmup_end; /* pages from the cache */
    if (n_known > sequence->n_total || (uint64_t)sequence->n_published * page_tokens > n_known)
        return "a page was published before all of its ids were known";
    return NULL;
}

static const char *check_waiting(const hr_scheduler *scheduler)
{
    uint32_t n_waiting = 0, n_held = 0;

    for (const hr_sequence *s = scheduler->waiting_first; s; s = s->next) {
        if (++n_waiting > scheduler->n_waiting)
            return "more sequences wait than were counted";
        if (s->place != HR_PLACE_WAITING || s->n_pages || s->state_slot != HR_NO_SLOT || s->n_in_flight || s->n_pending)
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

static const char *check_running(const hr_scheduler *scheduler)
{
    const char *wrong = NULL;

    for (uint32_t i = 0; i < scheduler->n_running && !wrong; i++) {
        const hr_sequence *sequence = scheduler->running[i];

        wrong = sequence->place != HR_PLACE_RUNNING ? "a running sequence believes it is elsewhere"
                                                    : check_holder(scheduler, sequence);
        if (!wrong)
            wrong = check_progress(sequence);
        if (!wrong && i > 0 && hr_sequence_is_before(sequence, scheduler->running[i - 1]))
            wrong = "the running sequences are out of order";
    }
    return wrong;
}

static const char *check_leaving(const hr_scheduler *scheduler)
{
    uint32_t n = 0;

    for (const hr_sequence *s = scheduler->leaving_first; s; s = s->next) {
        const char *wrong = check_holder(scheduler, s);

        if (wrong)
            return wrong;
        if (++n > scheduler->n_leaving || s->place != HR_PLACE_LEAVING || (s->next && s->next->prev != s))
            return "the list of leaving sequences is wrong";
        if (s->n_in_flight == 0)
            return "a sequence leaves with no step in flight";
    }
    return n != scheduler->n_leaving ? "the count of leaving sequences is wrong" : NULL;
}

static const hr_plan *plan_in_flight(const hr_scheduler *scheduler, uint32_t i)
{
    return &scheduler->plans[(scheduler->oldest_plan + i) % scheduler->limits.max_steps_in_flight];
}

/* Each span in flight is of a sequence that still holds what it names, and each sequence knows of its spans. */
static const char *check_in_flight(const hr_scheduler *scheduler)
{
    uint32_t n_spans = 0, n_known = 0;

    if (scheduler->n_in_flight > scheduler->limits.max_steps_in_flight)
        return "more steps are in flight than may be";
    for (uint32_t i = 0; i < scheduler->n_in_flight; i++) {
        const hr_plan *plan = plan_in_flight(scheduler, i);

        n_spans += plan->n_spans;
        for (uint32_t k = 0; k < plan->n_spans; k++)
            if (plan->spans[k].sequence->place != HR_PLACE_RUNNING &&
                plan->spans[k].sequence->place != HR_PLACE_LEAVING)
                return "a step in flight names a sequence that holds nothing";
    }
    for (uint32_t i = 0; i < scheduler->n_running; i++)
        n_known += scheduler->running[i]->n_in_flight;
    for (const hr_sequence *s = scheduler->leaving_first; s; s = s->next)
        n_known += s->n_in_flight;
    return n_spans != n_known ? "the spans in flight and those that sequences know of differ" : NULL;
}

static void count_pages(const hr_sequence *sequence, uint32_t *counts)
{
    for (uint32_t i = 0; i < sequence->n_pages; i++)
        counts[sequence->pages[i]]++;
}

static const char *check_page_holders(const hr_scheduler *scheduler, uint32_t *counts)
{
    memset(counts, 0, scheduler->pages.n_pages * sizeof *counts);
    for (uint32_t i = 0; i < scheduler->n_running; i++)
        count_pages(scheduler->running[i], counts);
    for (const hr_sequence *s = scheduler->leaving_first; s; s = s->next)
        count_pages(s, counts);
    for (uint32_t i = 0; i < scheduler->n_in_flight; i++)
        for (uint32_t k = 0; k < plan_in_flight(scheduler, i)->n_late_pages; k++)
            counts[plan_in_flight(scheduler, i)->late_pages[k]]++;
    for (uint32_t i = 0; i < scheduler->pages.n_pages; i++)
        if (counts[i] != scheduler->pages.refs[i])
            return "a page's holders and its count differ";
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
    if (!wrong && scheduler->slots.n_free + scheduler->n_running + scheduler->n_leaving != scheduler->slots.n_slots)
        wrong = "slots and running sequences do not add up";
    if (!wrong)
        wrong = check_running(scheduler);
    if (!wrong)
        wrong = check_leaving(scheduler);
    if (!wrong)
        wrong = check_in_flight(scheduler);
    return wrong ? wrong : check_page_holders(scheduler, scratch);
}
