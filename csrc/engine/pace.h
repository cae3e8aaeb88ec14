/* How many tokens to guess for a sequence in its next step: more while guesses are right, none for a while when they
 * are not. It decides only how fast an answer comes, never what it says. */
#ifndef HR_ENGINE_PACE_H
#define HR_ENGINE_PACE_H

#include <stdint.h>

enum {
    HR_PACE_MISSES = 4,     /* steps in a row without a right guess, after which a sequence rests */
    HR_PACE_REST_FIRST = 4, /* steps of the first rest; each further miss doubles them */
    HR_PACE_REST_MAX = 64,
};

typedef struct hr_pace {
    uint32_t max, next; /* guesses a step: at most, and in the next one that has any */
    uint32_t n_misses;  /* steps since a guess was right */
    uint32_t rest;      /* steps still to go without guesses */
} hr_pace;

void hr_pace_start(hr_pace *pace, uint32_t max);
/* Guesses wanted for the next step. Counts a step of rest. */
uint32_t hr_pace_next(hr_pace *pace);
/* A step ran n_proposed (> 0) guesses, of which n_accepted were right. */
void hr_pace_note(hr_pace *pace, uint32_t n_proposed, uint32_t n_accepted);

#endif
