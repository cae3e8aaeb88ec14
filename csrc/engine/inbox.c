/* Intrusive lists under one mutex: putting allocates nothing and holds the lock for a few instructions, taking moves
 * whole lists. A lock-free queue would save nothing here: there is one hand-over per request, and one lock per step on
 * the engine's side.
 */
#include "engine/inbox.h"

#include "base/clock.h"
#include "base/status.h"

#include <errno.h>
#include <inttypes.h>

void hr_inbox_init(hr_inbox *inbox, const hr_inbox_limits *limits)
{
    pthread_condattr_t attributes;

    *inbox = (hr_inbox){.limits = *limits};
    (void)pthread_mutex_init(&inbox->lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&inbox->wake, &attributes);
    (void)pthread_cond_init(&inbox->idle, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

void hr_inbox_deinit(hr_inbox *inbox)
{
    (void)pthread_cond_destroy(&inbox->idle);
    (void)pthread_cond_destroy(&inbox->wake);
    (void)pthread_mutex_destroy(&inbox->lock);
}

static headrace_status check_locked(hr_inbox *inbox, uint32_t n_prompt, headrace_error *err)
{
    uint32_t n_reqs = atomic_load(&inbox->n_queued_reqs);
    uint64_t n_tokens = atomic_load(&inbox->n_queued_tokens), max = inbox->limits.max_queued_tokens;

    if (inbox->has_failed)
        return hr_fail(err, HEADRACE_E_ENGINE, "the engine has failed and takes no requests: open it again");
    if (inbox->is_draining || inbox->is_stopping || inbox->is_stopped)
        return hr_fail(err, HEADRACE_E_CLOSED, "the engine is shutting down");
    if (n_reqs >= inbox->limits.max_queued_reqs)
        return hr_fail(err, HEADRACE_E_QUEUE_FULL,
                       "%" PRIu32 " requests are waiting, the limit (max_num_queued_reqs) is %" PRIu32
                       ": try again later",
                       n_reqs, inbox->limits.max_queued_reqs);
    /* A prompt that is over the limit alone is let in when nothing waits: refused it could never succeed. */
    if (n_tokens > 0 && (n_tokens > max || n_prompt > max - n_tokens))
        return hr_fail(err, HEADRACE_E_QUEUE_FULL,
                       "%" PRIu64 " prompt tokens are waiting, %" PRIu32
                       " more pass the limit (max_num_queued_tokens) of %" PRIu64 ": try again later",
                       n_tokens, n_prompt, max);
    return HEADRACE_OK;
}

headrace_status hr_inbox_check(hr_inbox *inbox, uint32_t n_prompt, headrace_error *err)
{
    headrace_status status;

    (void)pthread_mutex_lock(&inbox->lock);
    status = check_locked(inbox, n_prompt, err);
    (void)pthread_mutex_unlock(&inbox->lock);
    return status;
}

headrace_status hr_inbox_put(hr_inbox *inbox, hr_request *request, headrace_error *err)
{
    headrace_status status;

    (void)pthread_mutex_lock(&inbox->lock);
    status = check_locked(inbox, request->n_prompt, err);
    if (status == HEADRACE_OK) {
        *(inbox->last ? &inbox->last->inbox_next : &inbox->first) = request;
        inbox->last = request;
        inbox->n_live++;
        atomic_fetch_add(&inbox->n_queued_reqs, 1);
        atomic_fetch_add(&inbox->n_queued_tokens, request->n_prompt);
        (void)pthread_cond_signal(&inbox->wake);
    }
    (void)pthread_mutex_unlock(&inbox->lock);
    return status;
}

void hr_inbox_cancel(hr_inbox *inbox, hr_request *request, hr_choice *choice)
{
    bool is_news;

    (void)pthread_mutex_lock(&inbox->lock);
    if (choice) {
        is_news = !atomic_load(&choice->is_stop_requested);
        atomic_store(&choice->is_stop_requested, true);
    } else {
        is_news = !request->is_cancelled;
        request->is_cancelled = true;
    }
    if (is_news && !request->is_in_control && !inbox->is_stopped) {
        request->is_in_control = true;
        request->control_next = inbox->control;
        inbox->control = request;
        atomic_fetch_add(&request->n_refs, 1);
        (void)pthread_cond_signal(&inbox->wake);
    }
    (void)pthread_mutex_unlock(&inbox->lock);
}

hr_inbox_news hr_inbox_take(hr_inbox *inbox, bool may_sleep)
{
    hr_inbox_news news;

    (void)pthread_mutex_lock(&inbox->lock);
    while (may_sleep && !inbox->first && !inbox->control && !inbox->is_stopping)
        (void)pthread_cond_wait(&inbox->wake, &inbox->lock);
    news = (hr_inbox_news){.first = inbox->first, .control = inbox->control, .is_stopping = inbox->is_stopping};
    inbox->first = inbox->last = NULL;
    if (news.control) {
        inbox->control = news.control->control_next;
        news.control->is_in_control = false;
        news.is_cancelled = news.control->is_cancelled;
    }
    (void)pthread_mutex_unlock(&inbox->lock);
    return news;
}

void hr_inbox_unqueue(hr_inbox *inbox, const hr_request *request)
{
    atomic_fetch_sub(&inbox->n_queued_reqs, 1);
    atomic_fetch_sub(&inbox->n_queued_tokens, request->n_prompt);
}

void hr_inbox_ended(hr_inbox *inbox, uint32_t n_requests)
{
    (void)pthread_mutex_lock(&inbox->lock);
    inbox->n_live -= n_requests;
    if (inbox->n_live == 0)
        (void)pthread_cond_broadcast(&inbox->idle);
    (void)pthread_mutex_unlock(&inbox->lock);
}

void hr_inbox_fail(hr_inbox *inbox)
{
    (void)pthread_mutex_lock(&inbox->lock);
    inbox->has_failed = true;
    (void)pthread_mutex_unlock(&inbox->lock);
}

void hr_inbox_close(hr_inbox *inbox)
{
    (void)pthread_mutex_lock(&inbox->lock);
    inbox->is_stopped = true;
    (void)pthread_mutex_unlock(&inbox->lock);
}

void hr_inbox_stop(hr_inbox *inbox)
{
    (void)pthread_mutex_lock(&inbox->lock);
    inbox->is_stopping = true;
    (void)pthread_cond_signal(&inbox->wake);
    (void)pthread_mutex_unlock(&inbox->lock);
}

headrace_status hr_inbox_drain(hr_inbox *inbox, uint64_t timeout_us, headrace_error *err)
{
    const uint64_t second = 1000000, forever = UINT64_C(100) * 365 * 86400 * 1000000;
    uint64_t until = hr_now_us() + (timeout_us < forever ? timeout_us : forever);
    struct timespec at = {.tv_sec = (time_t)(until / second), .tv_nsec = (long)(until % second * 1000)};
    int rc = 0;
    uint32_t n_live;

    (void)pthread_mutex_lock(&inbox->lock);
    inbox->is_draining = true;
    while (inbox->n_live > 0 && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&inbox->idle, &inbox->lock, &at);
    n_live = inbox->n_live;
    (void)pthread_mutex_unlock(&inbox->lock);
    if (n_live > 0)
        return hr_fail(err, HEADRACE_E_TIMEOUT, "%" PRIu32 " requests are still running", n_live);
    return HEADRACE_OK;
}
