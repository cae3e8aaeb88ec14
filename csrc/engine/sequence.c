/* A sequence is append-only: ids are never taken back, so whoever reads the first n of them (a consumer on another
 * thread, a recomputation after preemption, a sibling) needs no copy and no lock. Preemption changes only how far the
 * computation is (next_row), never what was said. With steps in flight some ids are still unknown (n_pending): they
 * count for positions and lengths, and enter ids[] when their step is over.
 */
#include "engine/sequence.h"

#include "base/status.h"

int64_t hr_order_key(int32_t priority, uint64_t arrival_us)
{
    int64_t clamped = priority;

    if (clamped > HR_PRIORITY_MAX)
        clamped = HR_PRIORITY_MAX;
    if (clamped < -HR_PRIORITY_MAX)
        clamped = -HR_PRIORITY_MAX;
    return (int64_t)(arrival_us & (uint64_t)INT64_MAX >> 1) + clamped * HR_AGING_US_PER_PRIORITY;
}

void hr_sequence_start(hr_sequence *sequence)
{
    HR_ASSERT(sequence->n_prompt >= 1 && sequence->capacity > sequence->n_prompt);
    sequence->place = HR_PLACE_NOWHERE;
    sequence->prev = sequence->next = sequence->held_first = sequence->held_last = NULL;
    sequence->n_total = sequence->n_prompt;
    sequence->next_row = sequence->warmup_end = sequence->n_pages = sequence->n_published = 0;
    sequence->n_pending = sequence->n_run = sequence->n_in_flight = 0;
    sequence->n_scored = sequence->n_cached_tokens = 0;
    sequence->is_fresh = sequence->was_admitted = false;
    sequence->state_slot = HR_NO_SLOT;
}

headrace_finish hr_sequence_accept(hr_sequence *sequence, int32_t id, int32_t *stop_id)
{
    uint32_t n_before = hr_sequence_n_output(sequence);

    HR_ASSERT(sequence->n_total < sequence->capacity);
    *stop_id = -1;
    sequence->ids[sequence->n_total++] = id;
    if (sequence->n_pending > 0)
        sequence->n_pending--;
    if (n_before >= sequence->sampling.min_tokens)
        for (uint32_t i = 0; i < sequence->sampling.n_stop_ids; i++)
            if (sequence->sampling.stop_ids[i] == id) {
                *stop_id = id;
                return HEADRACE_FINISH_STOP;
            }
    return sequence->n_total == sequence->capacity ? HEADRACE_FINISH_LENGTH : HEADRACE_FINISH_NONE;
}
