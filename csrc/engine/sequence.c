/* A sequence is append-only: ids are never taken back, so whoever reads the first n of them (a consumer on another
 * thread, a recomputation after preemption, a sibling) needs no copy and no lock. Preemption changes only how far the
 * computation is (next_row), never what was said. With steps in flight some ids are still unknown (n_pending): they
 * count for positions and lengths, and enter ids[] when their step is over. Guesses stand in ids[] behind what is
 * known, where nobody else looks, so that a history that includes them is an array like any other.
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
    sequence->n_proposed = sequence->n_repeat = 0;
    sequence->is_fresh = sequence->was_admitted = false;
    sequence->state_slot = HR_NO_SLOT;
    hr_pace_start(&sequence->pace, sequence->max_proposals);
}

headrace_finish hr_sequence_finish_with(const hr_sequence *sequence, int32_t id, uint32_t n_before, int32_t *stop_id)
{
    *stop_id = -1;
    if (n_before >= sequence->sampling.min_tokens)
        for (uint32_t i = 0; i < sequence->sampling.n_stop_ids; i++)
            if (sequence->sampling.stop_ids[i] == id) {
                *stop_id = id;
                return HEADRACE_FINISH_STOP;
            }
    return sequence->n_prompt + n_before + 1 == sequence->capacity ? HEADRACE_FINISH_LENGTH : HEADRACE_FINISH_NONE;
}

uint32_t hr_sequence_n_right(const hr_sequence *sequence, const hr_sample *sampled, uint32_t n_proposed)
{
    uint32_t n_before = hr_sequence_n_output(sequence), i = 0;
    const int32_t *guesses = sequence->ids + sequence->n_total;
    int32_t stop_id;

    while (i < n_proposed && !sampled[i].is_bad && sampled[i].id == guesses[i] &&
           hr_sequence_finish_with(sequence, sampled[i].id, n_before + i, &stop_id) == HEADRACE_FINISH_NONE)
        i++;
    return i + 1;
}

headrace_finish hr_sequence_accept(hr_sequence *sequence, int32_t id, int32_t *stop_id)
{
    uint32_t n_before = hr_sequence_n_output(sequence);

    HR_ASSERT(sequence->n_total < sequence->capacity);
    sequence->ids[sequence->n_total++] = id;
    if (sequence->n_pending > 0)
        sequence->n_pending--;
    return hr_sequence_finish_with(sequence, id, n_before, stop_id);
}
