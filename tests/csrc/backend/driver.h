/* Drives a backend as an engine would, without one: sequences with pages and a slot, pieces of them put into a step. */
#ifndef HR_TESTS_BACKEND_DRIVER_H
#define HR_TESTS_BACKEND_DRIVER_H

#include "backend/backend.h"

enum { DRIVER_PAGE_TOKENS = 4, DRIVER_PAGES = 512, DRIVER_SLOTS = 16, DRIVER_PAGES_A_SEQUENCE = 64, DRIVER_ROWS = 256 };

typedef struct driver {
    const hr_model *model;
    const hr_backend_ops *ops;
    hr_backend *backend;
    uint32_t page_tokens;
    uint64_t n_sequences; /* made so far: the next one's number less one */
    uint32_t n_pages_used, n_slots_used;
} driver;

typedef struct driver_sequence {
    const int32_t *ids;
    uint64_t number;   /* hr_span.sequence */
    uint32_t n_prompt; /* set to the whole length when made; tests that generate change it */
    uint32_t slot, n_pages;
    uint32_t pages[DRIVER_PAGES_A_SEQUENCE]; /* scattered, never in order */
} driver_sequence;

typedef struct driver_piece {
    driver_sequence *sequence;
    uint32_t start, n_rows, n_warmup;
    bool is_fresh; /* or start is 0 */
    float *logits; /* NULL, or [n_rows, V]: all rows are outputs */
} driver_piece;

typedef struct driver_options {
    const hr_backend_ops *ops; /* NULL: the CPU's */
    uint32_t page_tokens;      /* 0: DRIVER_PAGE_TOKENS */
    bool exact;
    uint32_t n_threads; /* 0: 2 */
    hr_kv_dtype kv_dtype;
    hr_tap_fn tap;
    void *tap_user;
} driver_options;

void driver_open(driver *d, const hr_model *model, const driver_options *options);
void driver_close(driver *d);
/* A sequence of up to n_tokens tokens with pages and a slot of its own. ids is borrowed. */
driver_sequence driver_new_sequence(driver *d, const int32_t *ids, uint32_t n_tokens);
/* Gives all pages and slots back: sequences made before are void. */
void driver_forget(driver *d);
/* One step; fails the test when the backend refuses it. */
void driver_step(driver *d, const driver_piece *pieces, uint32_t n_pieces);
/* Tokens [start, n) of one sequence alone, `chunk` rows a step (0: all); logits [n, V] from row `start` on. */
void driver_run(driver *d, driver_sequence *sequence, uint32_t start, uint32_t n, uint32_t chunk, float *logits);
/* n pseudo-random ids of the model's vocabulary. */
void driver_random_ids(const hr_model *model, uint64_t seed, uint32_t n, int32_t *ids);

#endif
