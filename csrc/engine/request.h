/* A request inside the engine: its choices, and the border between the engine thread and the one that reads the answer.
 *
 * Each field says who may touch it. Engine: the engine thread, from submit on. Consumer: the thread that takes events.
 */
#ifndef HR_ENGINE_REQUEST_H
#define HR_ENGINE_REQUEST_H

#include "engine/engine.h"
#include "engine/sequence.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct hr_choice {
    hr_sequence sequence;              /* engine; ids below the published count are readable by the consumer */
    headrace_token_logprobs *logprobs; /* [max_tokens] or NULL; entry i is written before token i is published */
    /* Tokens published so far x 2, plus 1 when the choice has ended. One number, so that the consumer sees the last
     * token and the end together. */
    _Atomic uint64_t published;
    _Atomic bool is_stop_requested; /* hr_request_stop_choice */
    headrace_finish finish;         /* this and the next two: written once, before the end is published */
    int32_t stop_id;
    bool finish_has_token;  /* the end came with the last token, not after it */
    bool has_ended;         /* engine */
    bool is_leaving;        /* engine; ended, but a step in flight still names its pages */
    uint64_t last_token_us; /* engine */
    uint32_t n_taken;       /* consumer */
    bool is_end_taken;      /* consumer */
} hr_choice;

struct hr_request {
    hr_engine *engine;
    _Atomic uint32_t n_refs; /* the handle, the engine, and the control list each hold one */

    /* Constant after submit. */
    uint32_t n_choices, n_prompt;
    hr_choice *choices;            /* [n_choices] */
    void *ids_block, *pages_block; /* behind sequence.ids and sequence.pages */
    uint32_t *lookup_block;        /* behind sequence.lookup, or NULL */
    headrace_bias *bias;
    int32_t *stop_ids;
    headrace_token_logprobs *prompt_logprobs; /* [n_prompt - 1] or NULL; engine until has_prompt_logprobs */
    void (*notify)(void *user);
    void *notify_user;
    void (*flush)(void *flush_user);
    void *flush_user;

    headrace_error error; /* engine; written before the first choice ends with FINISH_ERROR */
    _Atomic bool has_prompt_logprobs;
    _Atomic uint64_t submitted_us, started_us, first_token_us, finished_us;
    _Atomic uint32_t n_cached_tokens;
    _Atomic uint64_t n_guesses, n_guesses_right;

    /* hr_request_wait: the engine takes the lock only if somebody waits. */
    pthread_mutex_t wait_lock;
    pthread_cond_t wait_cond;
    _Atomic uint32_t n_waiters;

    /* Under the inbox's lock. */
    hr_request *inbox_next, *control_next;
    bool is_in_control, is_cancelled;

    bool is_released; /* under the engine's delivery lock */

    /* Engine. */
    hr_request *live_prev, *live_next;     /* every request that has not ended */
    hr_request *queued_prev, *queued_next; /* those that have not started, by arrival */
    hr_request *news_next;
    uint32_t n_live_choices, n_leaving_choices;
    bool has_news, is_queued, is_told; /* told: the end of the last choice was delivered */

    /* Consumer. */
    uint32_t cursor; /* the choice to look at first */
    uint32_t n_ends_taken;
};

/* Checked numbers of a submit, worked out before anything is allocated. */
typedef struct hr_request_sizes {
    uint32_t n_choices, max_tokens, capacity, pages_per_choice;
} hr_request_sizes;

/* Copies a submit into a new request with one reference; NULL: no memory. seed: of choice 0. serial: of choice 0; the
 * others count on. */
hr_request *hr_request_create(hr_engine *engine, const hr_submit *submit, const hr_request_sizes *sizes, uint64_t seed,
                              uint64_t serial, uint64_t now_us);
void hr_request_destroy(hr_request *request);

/* Engine side. Publishes the newest token of a choice (already in its ids and logprobs). */
void hr_choice_publish_token(hr_choice *choice);
/* Publishes the end. has_token: together with the token that was appended last and is not published yet. */
void hr_choice_publish_end(hr_choice *choice, headrace_finish finish, int32_t stop_id, bool has_token);
/* Wakes threads in hr_request_wait. */
void hr_request_wake(hr_request *request);

#endif
