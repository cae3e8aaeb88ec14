/* Convolution states: one slot for each running sequence. Fungible, never shared. */
#ifndef HR_ENGINE_STATE_SLOTS_H
#define HR_ENGINE_STATE_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#define HR_NO_SLOT UINT32_MAX

/* Owned by the engine thread. */
typedef struct hr_state_slots {
    uint32_t n_slots, n_free;
    uint32_t *free_list; /* [n_slots], a stack */
    bool *is_taken;      /* [n_slots] */
} hr_state_slots;

bool hr_state_slots_init(hr_state_slots *slots, uint32_t n_slots); /* false: no memory */
void hr_state_slots_deinit(hr_state_slots *slots);                 /* accepts a zeroed one */
uint32_t hr_state_slots_take(hr_state_slots *slots);               /* HR_NO_SLOT when none is free */
void hr_state_slots_give_back(hr_state_slots *slots, uint32_t slot);
/* NULL, or what is wrong. */
const char *hr_state_slots_check(const hr_state_slots *slots);

#endif
