/* A backend whose arithmetic is hashing: every token depends on all ids before it, the way the real network's does.
 *
 * It keeps what the real one keeps: a number for each position in the pages, and in each slot the last W ids (what the
 * convolutions can see). A row's number is a hash of its id, position and window; its output is a hash of all numbers
 * in its pages. So a wrong page, a stale slot, a row run twice or a missing warm-up row changes the sampled ids. The
 * truth to compare with (hr_fake_truth_*) is computed from the ids alone.
 *
 * hr_backend_fake_ahead is the same with two steps in flight, as a device would have them: a step is computed when it
 * is begun or when it is waited for, at random, and a step that is begun must leave alone what the other one names.
 */
#ifndef TESTS_CSRC_ENGINE_FAKE_BACKEND_H
#define TESTS_CSRC_ENGINE_FAKE_BACKEND_H

#include "backend/backend.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    FAKE_VOCAB = 1000,
    FAKE_EOS = 7,
    FAKE_BAD_ID = 666, /* a prompt that begins with it gives bad logits from its first sampled token on */
};

/* The "model": the arch, and the faults to inject. */
typedef struct hr_fake {
    hr_model model;               /* first: the engine sees only this */
    _Atomic int64_t fail_at_step; /* the step with this number fails when it is begun; < 0: none */
    _Atomic int64_t fail_at_wait; /* or when it is waited for */
    _Atomic uint64_t n_steps;
    _Atomic uint32_t step_sleep_us;
    uint64_t (*count_allocations)(void); /* NULL, or read at each step on the engine's thread */
    _Atomic uint64_t allocations_in_steps;
    _Atomic bool always_bad;
    _Atomic uint64_t n_ahead; /* steps begun while another was in flight */
    /* Gate: with is_gated, step k waits until hr_fake_allow let it pass: when it is begun, or with two steps in flight
     * when it is waited for. */
    pthread_mutex_t gate_lock;
    pthread_cond_t gate_cond;
    bool is_gated;
    uint64_t n_allowed, n_waiting;
} hr_fake;

void hr_fake_init(hr_fake *fake, uint32_t n_conv_layers, uint32_t conv_length, uint32_t max_positions);
void hr_fake_deinit(hr_fake *fake);
void hr_fake_gate(hr_fake *fake);
/* Lets n more steps pass (UINT64_MAX: all). */
void hr_fake_allow(hr_fake *fake, uint64_t n);
/* Waits until a step stands at the gate. */
void hr_fake_await_step(hr_fake *fake);

extern const hr_backend_ops hr_backend_fake, hr_backend_fake_ahead;

/* The truth, position after position, from the ids alone. */
typedef struct hr_fake_truth {
    uint64_t sum; /* over the positions below n */
    uint32_t n;
} hr_fake_truth;
/* The output hash at `position`; positions must be asked in rising order. */
uint64_t hr_fake_truth_at(hr_fake_truth *truth, const int32_t *ids, uint32_t position, uint32_t window);
/* What the backend samples or scores from an output hash. */
int32_t hr_fake_sample(uint64_t hash, const hr_sampling_params *params, uint32_t n_output);
float hr_fake_score(uint64_t hash, int32_t id);

#endif
