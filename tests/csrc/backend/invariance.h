/* The strong promise: a row's logits do not depend, bit for bit, on the chunk it came in, the rows beside it, or
 * whether its past was computed or found in pages (docs/design/prefix-cache.md). Each check fails the test that calls
 * it. */
#ifndef HR_TESTS_BACKEND_INVARIANCE_H
#define HR_TESTS_BACKEND_INVARIANCE_H

#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { INVARIANCE_TOKENS = 44, INVARIANCE_SEQUENCES = 5 };

typedef struct subject {
    hr_model *model;
    driver d;
    uint32_t n_prompt; /* tokens of a sequence that are prompt; the others count as generated */
    int32_t ids[INVARIANCE_SEQUENCES][INVARIANCE_TOKENS];
    float *solo;  /* [N, V]: sequence 0 alone in one piece */
    float *state; /* its state after the last token */
    float *got;   /* [N, V] */
    float *got_state;
    char name[160];
} subject;

void invariance_set_up(subject *s, const random_model_options *model, uint32_t n_prompt, const driver_options *options);
void invariance_tear_down(subject *s);
void invariance_check_chunks(subject *s, const uint32_t *chunks, uint32_t n);
/* Every sequence advances by pseudo-random pieces, in an order that changes with each step. */
void invariance_check_strangers(subject *s);
/* The sequence resumes after a prefix hit of `hit` tokens, in steps of `chunk` rows, a stranger beside it. */
void invariance_check_hit(subject *s, uint32_t hit, uint32_t chunk);
/* A fork copies its parent's slot and its unfinished page, and goes on as the parent would. */
void invariance_check_fork(subject *s);
/* Guesses behind each token, some right and some wrong: after a wrong one the slot is taken back to what it was before
 * the step, and the rows that were right run again as warm-up rows. */
void invariance_check_guesses(subject *s);

/* Pieces of the checks. A sequence that shares its first `hit` tokens with the subject and then says something else:
 * the pages it leaves behind hold the shared past, and rubbish after it. */
driver_sequence invariance_make_donor(subject *s, uint32_t hit, int32_t *donor_ids);
driver_sequence invariance_resume(subject *s, const driver_sequence *donor, uint32_t hit, uint32_t warmup,
                                  uint32_t chunk);
/* Rows [from, N) of got, and the state of `slot`, equal the solo run's. */
bool invariance_is_equal(subject *s, uint32_t from, uint32_t slot);
void invariance_check_equal(subject *s, uint32_t from, uint32_t slot, const char *what, uint32_t number);

#endif
