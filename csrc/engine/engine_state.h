/* What an engine is made of, for the two files that share it: engine.c (any thread) and step.c (the engine thread). */
#ifndef HR_ENGINE_ENGINE_STATE_H
#define HR_ENGINE_ENGINE_STATE_H

#include "engine/batch.h"
#include "engine/inbox.h"
#include "engine/limits.h"
#include "engine/metrics.h"
#include "engine/proposer.h"

enum {
    HR_BAD_LOGITS_MAX = 3, /* so many within the window: the engine is unhealthy */
    HR_FLUSHES_MAX = 256,  /* different queues flushed together */
};
#define HR_BAD_LOGITS_WINDOW_US 60000000u
/* A call to a device that takes longer does not come back: no step is that long. */
#define HR_STUCK_US 30000000u

/* Counts bad logits in a sliding window. Zeroed: none yet. */
typedef struct hr_bad_logits {
    uint64_t at_us[HR_BAD_LOGITS_MAX]; /* a ring */
    uint64_t n;
} hr_bad_logits;
/* Notes one; true when the last HR_BAD_LOGITS_MAX lie within the window. */
bool hr_bad_logits_add(hr_bad_logits *bad, uint64_t now_us);

typedef struct hr_flush {
    void (*flush)(void *user);
    void *user;
} hr_flush;

/* A step that the backend has begun. */
typedef struct hr_flight {
    hr_batch *batch; /* lent by the backend; constant */
    uint64_t begun_us;
} hr_flight;

struct hr_engine {
    /* Constant after open. */
    const hr_model *model;
    const hr_backend_ops *ops;
    hr_limits limits;
    uint64_t seed;
    headrace_engine_info info;
    hr_speculation speculation;   /* what is left open in the configuration filled in */
    uint32_t max_steps_in_flight; /* the backend's; 1 with speculation: guesses follow what is known */

    _Atomic uint32_t n_refs;     /* close, and every request: a handle may be released after close */
    _Atomic uint64_t n_requests; /* seeds */
    _Atomic uint64_t n_serials;  /* order of choices */
    hr_metrics metrics;
    _Atomic uint64_t in_backend_since_us; /* 0: the engine thread is not waiting for the backend */
    hr_inbox inbox;
    /* Held by the engine thread while it calls notify and flush, and by hr_request_release for a moment: after a
     * release returns, neither is called for that request. Nobody else takes it. */
    pthread_mutex_t delivery_lock;
    pthread_t thread;

    /* The engine thread's. */
    hr_backend *backend;
    hr_scheduler scheduler;
    hr_proposer *proposer;                     /* NULL: no speculation */
    hr_guess_job *jobs;                        /* [max_num_seqs] with speculation */
    hr_flight flights[HR_STEPS_IN_FLIGHT_MAX]; /* used in turn, as the scheduler's plans */
    uint64_t n_begun, n_finished, finished_us; /* steps, and when results came last */
    bool has_results;                          /* that nobody was told of */
    hr_request *live_first, *queued_first, *queued_last, *news_first, *news_last;
    hr_flush flushes[HR_FLUSHES_MAX];
    uint32_t n_flushes;
    uint32_t n_gone; /* requests that ended and hold nothing, and were not counted as ended yet */
    hr_bad_logits bad_logits;
    bool is_dead;           /* the backend failed */
    headrace_error failure; /* why */
};

/* The engine thread: steps until hr_inbox_stop, then ends every request with E_CLOSED. argument: the hr_engine. */
void *hr_engine_main(void *argument);
/* speculate.c. The first three are any thread's, the rest the engine thread's. */
/* Checks what is asked for and fills in what was left open. E_ARGUMENT. */
headrace_status hr_speculation_check(const hr_speculation *asked, const hr_model *model, hr_speculation *out,
                                     headrace_error *err);
/* Rows of a step with guesses: where more rows begin to cost as much as they bring. */
uint32_t hr_engine_speculative_rows(const hr_engine *engine);
/* Guesses that a sequence of the request may have in a step. */
uint32_t hr_engine_max_guesses(const hr_engine *engine, const hr_submit *submit);
/* Asks the proposer for the sequences that could use guesses in the next plan. E_ENGINE: its backend failed. */
headrace_status hr_engine_guess(hr_engine *engine, headrace_error *err);
/* Keeps the states that spans with guesses begin from. Before the plan's step. */
void hr_engine_keep_states(hr_engine *engine, const hr_plan *plan);
/* Commits a span, with guesses or without, of which n_tokens tokens will be appended, and puts the state back after a
 * wrong guess. */
void hr_engine_commit(hr_engine *engine, const hr_planned_span *span, uint32_t n_tokens);
/* Drops a reference; the last one frees. */
void hr_request_unref(hr_request *request);

#endif
