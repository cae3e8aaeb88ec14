/* The engine: requests in as ids, tokens out as ids; continuous batching over one backend instance. No text, no
 * sockets.
 *
 * One thread runs steps. Requests arrive through a bounded inbox, tokens leave through each request's outbox, and
 * nothing else crosses threads. See docs/design/engine.md.
 */
#ifndef HR_ENGINE_ENGINE_H
#define HR_ENGINE_ENGINE_H

#include "backend/backend.h"

typedef struct hr_engine hr_engine;
typedef struct hr_request hr_request;

struct hr_proposer;

/* Speculative decoding: docs/design/speculative.md. Zeroed: none. */
typedef struct hr_speculation {
    uint32_t max_guesses;            /* a sequence and step, at most HEADRACE_SPECULATIVE_MAX; 0: no speculation */
    uint32_t lookup_max, lookup_min; /* prompt lookup: lengths of n-grams; 0: 4 and 2 */
    const hr_model *draft_model;     /* borrowed; NULL: prompt lookup. Its vocabulary is the model's */
    struct hr_proposer *proposer;    /* borrowed; not NULL: asked instead of both */
} hr_speculation;

typedef struct hr_engine_config {
    const hr_model *model; /* borrowed */
    const hr_backend_ops *backend_ops;
    uint32_t device_index;         /* of the backend's devices */
    double gpu_memory_utilization; /* 0: the default; of a device's memory, the part that may be used */
    uint32_t n_threads, max_model_len, max_num_seqs, max_num_batched_tokens, max_num_queued_reqs, page_tokens;
    uint32_t n_valid_ids;
    uint64_t max_num_queued_tokens, kv_cache_bytes, queue_timeout_us,
        seed; /* 0: defaults as in headrace_engine_options */
    hr_kv_dtype kv_dtype;
    bool disable_prefix_caching, exact;
    hr_speculation speculation;
} hr_engine_config;

/* Errors: E_ARGUMENT and E_MEMORY (param names the option, the message says what fits), and what the backend reports.
 */
headrace_status hr_engine_open(const hr_engine_config *config, hr_engine **out, headrace_error *err);
/* Ends every request with E_CLOSED and frees the engine's memory. Handles still held stay valid: they can be read to
 * their end and must be released; nothing else may use the engine any more. NULL is accepted. */
void hr_engine_close(hr_engine *engine);
/* Refuses new requests (E_CLOSED) and waits until none is left: OK or E_TIMEOUT. */
headrace_status hr_engine_drain(hr_engine *engine, uint64_t timeout_us);
void hr_engine_get_info(const hr_engine *engine, headrace_engine_info *out);
void hr_engine_get_stats(const hr_engine *engine, headrace_stats *out);

/* A request of n choices. ids and sampling are copied. */
typedef struct hr_submit {
    const int32_t *prompt_ids;
    uint32_t n_prompt, n;
    const headrace_sampling *sampling; /* already validated; stop strings are not the engine's */
    const int32_t *eos_ids;            /* the model's; ignored with ignore_eos */
    uint32_t n_eos_ids;
    int32_t priority;
    uint64_t cache_salt;
    bool limits_guesses; /* max_guesses holds for this request: at most so many a step, 0: none */
    uint32_t max_guesses;
    /* Called from the engine thread, at most once a step for a request that has news. Must not block, must not call
     * hr_request_release, and must not take a lock that is held around hr_request_release: that call waits for the
     * notifications of the step to end, so that neither notify nor flush runs for a request after its release. No
     * other function of this header waits for them. */
    void (*notify)(void *user);
    void *notify_user;
    /* Called once from the engine thread at the end of every step in which any notify with this pointer's queue ran;
       may be NULL. One eventfd write a step instead of one a token. */
    void (*flush)(void *flush_user);
    void *flush_user;
} hr_submit;

/* Errors: E_ARGUMENT (empty prompt, an id outside the vocabulary, n), E_QUEUE_FULL, E_CLOSED, E_CONTEXT, E_MEMORY,
 * E_ENGINE. */
headrace_status hr_engine_submit(hr_engine *engine, const hr_submit *submit, hr_request **out, headrace_error *err);
/* Idempotent; any thread. Takes effect at the next step. */
void hr_request_cancel(hr_request *request);
/* Ends one choice with FINISH_STOP because the caller saw a stop string; any thread. Tokens not yet taken are dropped.
 */
void hr_request_stop_choice(hr_request *request, uint32_t index);
/* Gives the handle back; cancels if still running. Not from notify or flush. */
void hr_request_release(hr_request *request);

/* One piece of news, copied out. */
typedef struct hr_token_event {
    uint32_t index; /* choice */
    bool has_token;
    int32_t id;
    headrace_finish finish; /* NONE: goes on. A stop id is delivered as a token and finishes in the same event */
    int32_t stop_id;        /* FINISH_STOP: which id, or -1 */
    headrace_error error;   /* FINISH_ERROR */
    const headrace_token_logprobs *logprobs; /* of id; NULL unless asked; valid until the next take of this request */
} hr_token_event;

/* Takes the oldest event; false when there is none now. One consumer thread at a time. */
bool hr_request_take(hr_request *request, hr_token_event *event);
/* Waits until an event may be there, or the time is over (returns false). For callers without an event loop. */
bool hr_request_wait(hr_request *request, uint64_t timeout_us);
/* After the last event of every choice was taken. */
bool hr_request_is_done(const hr_request *request);
/* [n_prompt - 1] if asked and the prompt was run; valid until release; NULL before the first token event. */
const headrace_token_logprobs *hr_request_prompt_logprobs(const hr_request *request);
typedef struct hr_request_times {
    uint64_t submitted_us, started_us, first_token_us, finished_us; /* hr_now_us clock; 0: not yet */
    uint32_t n_cached_tokens;
    uint64_t n_guesses, n_guesses_right; /* of all choices so far */
} hr_request_times;
hr_request_times hr_request_get_times(const hr_request *request);

#endif
