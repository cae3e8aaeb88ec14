/* The one way into the engine thread: new requests, and news about old ones (cancel, stop). Bounded; any thread may
 * put. */
#ifndef HR_ENGINE_INBOX_H
#define HR_ENGINE_INBOX_H

#include "engine/request.h"

typedef struct hr_inbox_limits {
    uint32_t max_queued_reqs;
    uint64_t max_queued_tokens;
} hr_inbox_limits;

typedef struct hr_inbox {
    hr_inbox_limits limits;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* the engine thread sleeps on it */
    pthread_cond_t idle; /* drain sleeps on it */
    /* Under the lock. */
    hr_request *first, *last; /* submitted, not yet seen by the engine */
    hr_request *control;      /* cancelled or stopped since the engine last looked */
    uint32_t n_live;          /* submitted and not ended */
    bool is_draining, is_stopping, is_stopped, has_failed;
    /* Also lowered by the engine thread without the lock. */
    _Atomic uint32_t n_queued_reqs; /* submitted and not started */
    _Atomic uint64_t n_queued_tokens;
} hr_inbox;

/* What the engine thread finds: all new requests and one that was cancelled or stopped. Both are taken under one lock,
 * so a request is never cancelled before the engine knows it. */
typedef struct hr_inbox_news {
    hr_request *first;   /* new requests in order, by inbox_next */
    hr_request *control; /* or NULL; with a reference that the taker drops. There may be more */
    bool is_cancelled;   /* control as a whole; else look at its choices */
    bool is_stopping;
} hr_inbox_news;

void hr_inbox_init(hr_inbox *inbox, const hr_inbox_limits *limits);
void hr_inbox_deinit(hr_inbox *inbox);
/* Whether a request with n_prompt ids would be let in now: E_CLOSED, E_ENGINE, E_QUEUE_FULL or OK. */
headrace_status hr_inbox_check(hr_inbox *inbox, uint32_t n_prompt, headrace_error *err);
/* Lets a request in, or says why not; the request then still belongs to the caller. */
headrace_status hr_inbox_put(hr_inbox *inbox, hr_request *request, headrace_error *err);
/* Marks a request as cancelled (choice NULL) or one choice as stopped. */
void hr_inbox_cancel(hr_inbox *inbox, hr_request *request, hr_choice *choice);
/* Engine thread: takes the news. may_sleep: waits until there is something. */
hr_inbox_news hr_inbox_take(hr_inbox *inbox, bool may_sleep);
/* Engine thread: a request started (or ended before it could), or ended. */
void hr_inbox_unqueue(hr_inbox *inbox, const hr_request *request);
void hr_inbox_ended(hr_inbox *inbox, uint32_t n_requests);
/* Engine thread: from now on nothing is let in (E_ENGINE). */
void hr_inbox_fail(hr_inbox *inbox);
/* Engine thread, last act: nothing will be taken any more. */
void hr_inbox_close(hr_inbox *inbox);
void hr_inbox_stop(hr_inbox *inbox); /* asks the engine thread to end */
/* Refuses new requests and waits until none is live. E_TIMEOUT. */
headrace_status hr_inbox_drain(hr_inbox *inbox, uint64_t timeout_us, headrace_error *err);

#endif
