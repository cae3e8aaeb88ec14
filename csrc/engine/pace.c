/* The rule: all right, twice as many next time; a wrong one, one more than were right; HR_PACE_MISSES steps without a
 * right one, a rest of 4 steps, doubled up to 64 with each further miss, then a single guess as a trial.
 *
 * Why so: a guess costs a row, and right ones come in runs (a quotation, a list, code that repeats names). Doubling
 * finds the length of a run in a few steps, and a text without runs soon costs one row in 65.
 */
#include "engine/pace.h"

void hr_pace_start(hr_pace *pace, uint32_t max)
{
    *pace = (hr_pace){.max = max, .next = max};
}

uint32_t hr_pace_next(hr_pace *pace)
{
    if (pace->rest == 0)
        return pace->next;
    pace->rest--;
    return 0;
}

void hr_pace_note(hr_pace *pace, uint32_t n_proposed, uint32_t n_accepted)
{
    uint32_t n_over;

    pace->next = n_accepted == n_proposed ? 2 * pace->next : n_accepted + 1;
    if (pace->next > pace->max)
        pace->next = pace->max;
    if (n_accepted > 0) {
        pace->n_misses = 0;
        return;
    }
    if (++pace->n_misses < HR_PACE_MISSES)
        return;
    n_over = pace->n_misses - HR_PACE_MISSES;
    pace->rest = n_over < 4 ? (uint32_t)HR_PACE_REST_FIRST << n_over : HR_PACE_REST_MAX;
}
