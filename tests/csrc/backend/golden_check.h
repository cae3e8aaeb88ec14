/* The goldens: what transformers computed for small checkpoints, compared value by value within the tolerance that
 * stands beside them (tests/data/goldens/README.md gives the rules and their reasons).
 *
 * Each sequence runs in several cuts and among strangers; each time all logits, hidden states, keys, values,
 * convolution states, router outputs and the greedy continuation are compared. A mode that is `exact` is held to the
 * tolerances of fp32 arithmetic, and every expert and every greedy id must be equal; others are held to those of bf16
 * and, as the rules say, looked at only for tokens whose experts a bf16 run of the reference chose equally.
 */
#ifndef HR_TESTS_BACKEND_GOLDEN_CHECK_H
#define HR_TESTS_BACKEND_GOLDEN_CHECK_H

#include "csrc/backend/driver.h"

typedef struct golden_mode {
    driver_options driver; /* its tap fields are set by the check */
    bool exact;
    bool has_fewer_cuts; /* for slow builds: one cut among strangers, the whole prompt, eight greedy tokens */
} golden_mode;

/* A folder of tests/data/goldens. is_large: seconds a run. */
void golden_check_case(const char *name, bool is_large, const golden_mode *modes, uint32_t n_modes);
/* The nine GGUF files; modes that are exact run on the CPU's plain path. */
void golden_check_gguf_files(const golden_mode *modes, uint32_t n_modes);

#endif
