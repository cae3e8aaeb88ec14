/* A client of the engine for tests: says what to ask, collects what comes, knows what should have come. */
#ifndef TESTS_CSRC_ENGINE_ENGINE_CLIENT_H
#define TESTS_CSRC_ENGINE_ENGINE_CLIENT_H

#include "engine/engine.h"

enum { CLIENT_TOKENS_MAX = 512, CLIENT_CHOICES_MAX = 8 };

/* What one choice gave. */
typedef struct client_answer {
    int32_t ids[CLIENT_TOKENS_MAX];
    float logprobs[CLIENT_TOKENS_MAX]; /* if asked */
    uint32_t n_ids;
    headrace_finish finish;
    int32_t stop_id;
    headrace_status error;
} client_answer;

/* Neutral sampling: greedy, max_tokens as given. */
headrace_sampling client_greedy(uint32_t max_tokens);
/* A prompt of n ids that depends on `variant`; all share their beginning up to `n_common`. */
void client_prompt(int32_t *ids, uint32_t n, uint32_t n_common, uint32_t variant);
/* Takes what is there. */
void client_take_all(hr_request *request, client_answer *answers);
/* Waits for the end of all choices. */
void client_collect(hr_request *request, client_answer *answers);
/* Submits, collects, releases. Returns submit's status. */
headrace_status client_ask(hr_engine *engine, const hr_submit *submit, client_answer *answers);
/* What the fake backend must answer to a choice, alone: fills ids, finish and stop_id. window: the fake's W. */
void client_truth(const hr_submit *submit, uint32_t choice, uint64_t seed, uint32_t max_model_len, uint32_t window,
                  client_answer *truth);

#endif
