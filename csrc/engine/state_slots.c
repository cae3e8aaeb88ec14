/* A slot's content is never cleared here: the first span of a sequence says is_fresh and the backend starts from zero,
 * so that taking a slot costs nothing. */
#include "engine/state_slots.h"

#include "base/status.h"

bool hr_state_slots_init(hr_state_slots *slots, uint32_t n_slots)
{
    *slots = (hr_state_slots){.n_slots = n_slots, .n_free = n_slots};
    slots->free_list = calloc(n_slots ? n_slots : 1, sizeof *slots->free_list);
    slots->is_taken = calloc(n_slots ? n_slots : 1, sizeof *slots->is_taken);
    if (!slots->free_list || !slots->is_taken) {
        hr_state_slots_deinit(slots);
        return false;
    }
    for (uint32_t i = 0; i < n_slots; i++)
        slots->free_list[i] = n_slots - 1 - i;
    return true;
}

void hr_state_slots_deinit(hr_state_slots *slots)
{
    free(slots->free_list);
    free(slots->is_taken);
    *slots = (hr_state_slots){0};
}

uint32_t hr_state_slots_take(hr_state_slots *slots)
{
    uint32_t slot;

    if (slots->n_free == 0)
        return HR_NO_SLOT;
    slot = slots->free_list[--slots->n_free];
    HR_ASSERT(!slots->is_taken[slot]);
    slots->is_taken[slot] = true;
    return slot;
}

void hr_state_slots_give_back(hr_state_slots *slots, uint32_t slot)
{
    HR_ASSERT(slot < slots->n_slots && slots->is_taken[slot]);
    slots->is_taken[slot] = false;
    slots->free_list[slots->n_free++] = slot;
}

const char *hr_state_slots_check(const hr_state_slots *slots)
{
    uint32_t n_taken = 0;

    if (slots->n_free > slots->n_slots)
        return "more free slots than slots";
    for (uint32_t i = 0; i < slots->n_slots; i++)
        n_taken += slots->is_taken[i];
    if (n_taken + slots->n_free != slots->n_slots)
        return "free and taken slots do not add up";
    for (uint32_t i = 0; i < slots->n_free; i++)
        if (slots->free_list[i] >= slots->n_slots || slots->is_taken[slots->free_list[i]])
            return "a slot is free and taken";
    return NULL;
}
