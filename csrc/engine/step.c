/* The engine thread. One turn: take the news, end what has to end, plan and begin steps, wait for the oldest, hand out
 * its tokens, tell the readers.
 *
 * A backend that computes in step_begin has one step in flight, and a turn is a step. A device gets the next step
 * before the one that runs is waited for: while it computes, this thread hands out the last results, tells the readers,
 * takes news and plans. What ended in between has one row too many in the step in flight; its result is not looked at,
 * and what it names is freed when that step is over (scheduler.h).
 *
 * Every request that was let in ends exactly once, on this thread, through end_choice: with its answer, or because it
 * was cancelled, waited too long, produced bad logits, the backend failed, or the engine closes. Readers are told after
 * the step, when nothing is held that they could need.
 *
 * With no sequences the thread sleeps in the inbox; with any it always has rows to run (scheduler.c), so it never
 * spins. No memory is allocated here.
 */
#include "engine/engine_state.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"

#include <string.h>

bool hr_bad_logits_add(hr_bad_logits *bad, uint64_t now_us)
{
    uint64_t oldest;

    bad->at_us[bad->n++ % HR_BAD_LOGITS_MAX] = now_us;
    if (bad->n < HR_BAD_LOGITS_MAX)
        return false;
    oldest = bad->at_us[bad->n % HR_BAD_LOGITS_MAX];
    return now_us - oldest <= HR_BAD_LOGITS_WINDOW_US;
}

/* ---------------------------------------------------------------- lists of requests */

static hr_choice *choice_of(hr_sequence *sequence)
{
    hr_request *request = sequence->owner;

    /* Choices lie side by side and begin with their sequence. */
    return &request->choices[sequence->serial - request->choices[0].sequence.serial];
}

static void add_news(hr_engine *engine, hr_request *request)
{
    if (request->has_news)
        return;
    request->has_news = true;
    request->news_next = NULL;
    *(engine->news_last ? &engine->news_last->news_next : &engine->news_first) = request;
    engine->news_last = request;
}

static void accept_request(hr_engine *engine, hr_request *request)
{
    request->live_prev = NULL;
    request->live_next = engine->live_first;
    if (engine->live_first)
        engine->live_first->live_prev = request;
    engine->live_first = request;

    request->queued_next = NULL;
    request->queued_prev = engine->queued_last;
    *(engine->queued_last ? &engine->queued_last->queued_next : &engine->queued_first) = request;
    engine->queued_last = request;
    request->is_queued = true;
    for (uint32_t i = 0; i < request->n_choices; i++)
        hr_scheduler_add(&engine->scheduler, &request->choices[i].sequence);
}

static void leave_queue(hr_engine *engine, hr_request *request)
{
    if (!request->is_queued)
        return;
    request->is_queued = false;
    *(request->queued_prev ? &request->queued_prev->queued_next : &engine->queued_first) = request->queued_next;
    *(request->queued_next ? &request->queued_next->queued_prev : &engine->queued_last) = request->queued_prev;
    hr_inbox_unqueue(&engine->inbox, request);
}

static void leave_live(hr_engine *engine, hr_request *request)
{
    *(request->live_prev ? &request->live_prev->live_next : &engine->live_first) = request->live_next;
    if (request->live_next)
        request->live_next->live_prev = request->live_prev;
}

/* ---------------------------------------------------------------- endings */

static uint64_t since(uint64_t then, uint64_t now)
{
    return now > then ? now - then : 0;
}

/* The numbers of a request, when its last choice ends. Set before that end is published. */
static void finish_request(hr_engine *engine, hr_request *request, uint64_t now)
{
    hr_metrics *metrics = &engine->metrics;
    uint64_t started = atomic_load(&request->started_us), first = atomic_load(&request->first_token_us);

    atomic_store(&request->finished_us, now);
    hr_histogram_add(&metrics->e2e, since(atomic_load(&request->submitted_us), now));
    if (started)
        hr_histogram_add(&metrics->inference, since(started, now));
    if (first)
        hr_histogram_add(&metrics->decode, since(first, now));
    leave_queue(engine, request);
}

static void end_choice(hr_engine *engine, hr_choice *choice, headrace_finish finish, int32_t stop_id, bool has_token,
                       uint64_t now)
{
    hr_request *request = choice->sequence.owner;
    hr_metrics *metrics = &engine->metrics;

    if (choice->has_ended)
        return;
    hr_scheduler_remove(&engine->scheduler, &choice->sequence);
    choice->is_leaving = choice->sequence.place == HR_PLACE_LEAVING;
    request->n_leaving_choices += choice->is_leaving;
    hr_count(finish == HEADRACE_FINISH_STOP     ? &metrics->finished_stop
             : finish == HEADRACE_FINISH_LENGTH ? &metrics->finished_length
             : finish == HEADRACE_FINISH_ABORT  ? &metrics->finished_cancelled
                                                : &metrics->finished_error,
             1);
    hr_histogram_add(&metrics->generation_len, hr_sequence_n_output(&choice->sequence));
    if (--request->n_live_choices == 0)
        finish_request(engine, request, now);
    hr_choice_publish_end(choice, finish, stop_id, has_token);
    add_news(engine, request);
}

static void end_request(hr_engine *engine, hr_request *request, headrace_finish finish, uint64_t now)
{
    for (uint32_t i = 0; i < request->n_choices; i++)
        end_choice(engine, &request->choices[i], finish, -1, false, now);
}

static void end_with_error(hr_engine *engine, hr_request *request, const headrace_error *error, uint64_t now)
{
    if (request->n_live_choices == 0)
        return;
    request->error = *error;
    end_request(engine, request, HEADRACE_FINISH_ERROR, now);
}

static void end_everything(hr_engine *engine, const headrace_error *error)
{
    uint64_t now = hr_now_us();

    for (hr_request *r = engine->live_first; r; r = r->live_next)
        end_with_error(engine, r, error, now);
}

/* Forgets a request of which nothing is left: told, and named by no step. */
static void leave_if_gone(hr_engine *engine, hr_request *request)
{
    if (!request->is_told || request->n_leaving_choices > 0)
        return;
    leave_live(engine, request);
    engine->n_gone++;
    hr_request_unref(request);
}

/* A step in flight named this choice after its end. If it was the last one that did, pages and slot are free now. The
 * request may be gone after this. */
static void note_left(hr_engine *engine, hr_choice *choice)
{
    hr_request *request = choice->sequence.owner;

    if (!choice->is_leaving || choice->sequence.place != HR_PLACE_NOWHERE)
        return;
    choice->is_leaving = false;
    request->n_leaving_choices--;
    leave_if_gone(engine, request);
}

/* The steps in flight will give no results any more. */
static void abandon_steps(hr_engine *engine)
{
    while (engine->scheduler.n_in_flight > 0) {
        const hr_plan *plan = hr_scheduler_finish(&engine->scheduler);

        for (uint32_t i = 0; i < plan->n_spans; i++)
            note_left(engine, choice_of(plan->spans[i].sequence));
    }
}

static void fail_backend(hr_engine *engine, const headrace_error *cause)
{
    engine->is_dead = true;
    abandon_steps(engine);
    (void)hr_fail(&engine->failure, HEADRACE_E_ENGINE, "the %s backend failed: %.800s", engine->ops->name,
                  cause->message);
    atomic_store(&engine->metrics.is_healthy, false);
    hr_inbox_fail(&engine->inbox);
    hr_log(HEADRACE_LOG_ERROR, "engine: %s", engine->failure.message);
    end_everything(engine, &engine->failure);
}

static void end_bad(hr_engine *engine, hr_request *request, uint64_t now)
{
    headrace_error error = {0};

    (void)hr_fail(&error, HEADRACE_E_ENGINE, "the model produced logits that are not numbers");
    hr_count(&engine->metrics.nan_logits, 1);
    if (hr_bad_logits_add(&engine->bad_logits, now)) {
        hr_log(HEADRACE_LOG_ERROR, "engine: %d answers with bad logits within %u s: no new requests are taken",
               (int)HR_BAD_LOGITS_MAX, HR_BAD_LOGITS_WINDOW_US / 1000000u);
        atomic_store(&engine->metrics.is_healthy, false);
        hr_inbox_fail(&engine->inbox);
    }
    for (uint32_t i = 0; i < request->n_choices; i++)
        hr_scheduler_remove_bad(&engine->scheduler, &request->choices[i].sequence);
    end_with_error(engine, request, &error, now);
}

/* ---------------------------------------------------------------- news from other threads */

static void handle_control(hr_engine *engine, hr_request *request, bool is_cancelled)
{
    uint64_t now = hr_now_us();

    for (uint32_t i = 0; i < request->n_choices; i++) {
        hr_choice *choice = &request->choices[i];

        /* A reader that saw its stop string has its answer, though it may give the request back at once. */
        if (atomic_load(&choice->is_stop_requested))
            end_choice(engine, choice, HEADRACE_FINISH_STOP, -1, false, now);
        else if (is_cancelled)
            end_choice(engine, choice, HEADRACE_FINISH_ABORT, -1, false, now);
    }
    hr_request_unref(request);
}

/* Returns false when the engine should end. */
static bool take_news(hr_engine *engine)
{
    bool may_sleep =
        hr_scheduler_n_sequences(&engine->scheduler) == 0 && engine->scheduler.n_in_flight == 0 && !engine->news_first;

    for (;;) {
        hr_inbox_news news = hr_inbox_take(&engine->inbox, may_sleep);

        while (news.first) {
            hr_request *request = news.first;

            news.first = request->inbox_next;
            accept_request(engine, request);
            if (engine->is_dead)
                end_with_error(engine, request, &engine->failure, hr_now_us());
        }
        if (!news.control)
            return !news.is_stopping;
        handle_control(engine, news.control, news.is_cancelled);
        may_sleep = false;
    }
}

static void end_overdue(hr_engine *engine)
{
    uint64_t now = hr_now_us();
    headrace_error error = {0};

    while (engine->queued_first) {
        hr_request *request = engine->queued_first;
        uint64_t waited = since(atomic_load(&request->submitted_us), now);

        if (waited < engine->limits.queue_timeout_us)
            break;
        (void)hr_fail(
            &error, HEADRACE_E_QUEUE_FULL,
            "queue full: the request waited %.1f s without being started, the limit is %.1f s: try again later",
            (double)waited * 1e-6, (double)engine->limits.queue_timeout_us * 1e-6);
        hr_count(&engine->metrics.rejected_queue_timeout, 1);
        end_with_error(engine, request, &error, now);
    }
}

/* ---------------------------------------------------------------- a step */

static void note_starts(hr_engine *engine, const hr_plan *plan, uint64_t now)
{
    for (uint32_t i = 0; i < plan->n_spans; i++) {
        hr_sequence *sequence = plan->spans[i].sequence;
        hr_request *request = sequence->owner;

        if (!request->is_queued)
            continue;
        leave_queue(engine, request);
        atomic_store(&request->started_us, now);
        atomic_store(&request->n_cached_tokens, sequence->n_cached_tokens);
        hr_count(&engine->metrics.prompt_tokens, request->n_prompt);
        hr_count(&engine->metrics.prompt_tokens_cached, sequence->n_cached_tokens);
        hr_histogram_add(&engine->metrics.queue, since(atomic_load(&request->submitted_us), now));
        hr_histogram_add(&engine->metrics.prompt_len, request->n_prompt);
    }
}

static void put_logprobs(const hr_sample *sample, int32_t id, headrace_token_logprobs *out)
{
    out->id = id;
    out->logprob = sample->logprob;
    out->rank = sample->rank;
    out->n_top = sample->n_top;
    memcpy(out->top_ids, sample->top_ids, sample->n_top * sizeof sample->top_ids[0]);
    memcpy(out->top_logprobs, sample->top_logprobs, sample->n_top * sizeof sample->top_logprobs[0]);
}

/* is_first: of the step; tokens that a step gives a choice together have no time between them. */
static void note_token(hr_engine *engine, hr_request *request, hr_choice *choice, bool is_first, uint64_t now)
{
    hr_metrics *metrics = &engine->metrics;

    if (atomic_load(&request->first_token_us) == 0) {
        atomic_store(&request->first_token_us, now);
        hr_histogram_add(&metrics->ttft, since(atomic_load(&request->submitted_us), now));
        hr_histogram_add(&metrics->prefill, since(atomic_load(&request->started_us), now));
    }
    if (choice->last_token_us && is_first)
        hr_histogram_add(&metrics->itl, since(choice->last_token_us, now));
    choice->last_token_us = now;
    hr_count(&metrics->generation_tokens, 1);
}

static void apply_token(hr_engine *engine, hr_choice *choice, const hr_sample *sample, bool is_first, uint64_t now)
{
    hr_sequence *sequence = &choice->sequence;
    hr_request *request = sequence->owner;
    int32_t stop_id;
    headrace_finish finish;

    if (choice->logprobs)
        put_logprobs(sample, sample->id, &choice->logprobs[hr_sequence_n_output(sequence)]);
    finish = hr_sequence_accept(sequence, sample->id, &stop_id);
    note_token(engine, request, choice, is_first, now);
    if (finish == HEADRACE_FINISH_NONE)
        hr_choice_publish_token(choice);
    else
        end_choice(engine, choice, finish, stop_id, true, now);
    add_news(engine, request);
}

static void apply_scores(const hr_planned_span *span, const hr_sample *samples)
{
    hr_request *request = span->sequence->owner;

    for (uint32_t i = 0; i < span->n_scores; i++)
        put_logprobs(&samples[i], span->sequence->ids[span->score_first + i + 1],
                     &request->prompt_logprobs[span->score_first + i]);
}

/* samples: of the span. Of those behind scores and tokens nothing is known: they are of guesses that were wrong. */
static void apply_span(hr_engine *engine, const hr_planned_span *span, const hr_sample *samples, uint64_t now)
{
    hr_choice *choice = choice_of(span->sequence);
    hr_request *request = span->sequence->owner;
    const hr_sample *tokens = samples + span->n_scores;
    uint32_t n_tokens, n_bad = 0;

    if (choice->has_ended) { /* with a sibling of this step, or while it ran */
        note_left(engine, choice);
        return;
    }
    n_tokens = span->samples ? hr_sequence_n_right(span->sequence, tokens, span->n_proposed) : 0;
    for (uint32_t i = 0; i < span->n_scores + n_tokens; i++)
        n_bad += samples[i].is_bad;
    /* Tokens before a bad one stand: they came from the rows before it. */
    if (n_bad > 0 && (n_bad > 1 || n_tokens < 2 || !tokens[n_tokens - 1].is_bad)) {
        end_bad(engine, request, now);
        return;
    }
    n_tokens -= n_bad;
    apply_scores(span, samples);
    hr_engine_commit(engine, span, n_tokens);
    if (request->prompt_logprobs && span->sequence->n_scored == request->n_prompt - 1 && span->samples &&
        span->sequence == &request->choices[0].sequence)
        atomic_store(&request->has_prompt_logprobs, true);
    for (uint32_t i = 0; i < n_tokens; i++)
        apply_token(engine, choice, &tokens[i], i == 0, now);
    if (n_bad > 0)
        end_bad(engine, request, now);
}

/* False: there is nothing to begin before the step in flight is over, or the backend failed. */
static bool begin_step(hr_engine *engine)
{
    hr_flight *flight = &engine->flights[engine->n_begun % engine->ops->max_steps_in_flight];
    uint64_t now = hr_now_us();
    const hr_plan *plan;
    headrace_error error = {0};
    headrace_status status;

    if (engine->proposer && hr_engine_guess(engine, &error) != HEADRACE_OK) {
        fail_backend(engine, &error);
        return false;
    }
    plan = hr_scheduler_plan(&engine->scheduler);
    HR_ASSERT(plan->n_rows > 0 || engine->scheduler.n_in_flight > 0);
    if (plan->n_rows == 0)
        return false;
    flight->begun_us = now;
    engine->n_begun++;
    note_starts(engine, plan, now);
    hr_batch_fill(flight->batch, plan);
    hr_engine_keep_states(engine, plan);
    atomic_store(&engine->in_backend_since_us, now);
    status = engine->ops->step_begin(engine->backend, flight->batch, &error);
    atomic_store(&engine->in_backend_since_us, 0);
    if (status != HEADRACE_OK)
        fail_backend(engine, &error);
    return status == HEADRACE_OK;
}

/* By the device's clock if it has one. Else what this step added: not the time it stood behind the one before. */
static uint64_t step_time(const hr_engine *engine, const hr_flight *flight, uint64_t now)
{
    uint64_t began = flight->begun_us > engine->finished_us ? flight->begun_us : engine->finished_us;

    return engine->ops->step_time_us ? engine->ops->step_time_us(engine->backend) : since(began, now);
}

static void note_step(hr_engine *engine, const hr_plan *plan, uint64_t took_us)
{
    hr_metrics *metrics = &engine->metrics;

    hr_count(&metrics->steps, 1);
    hr_histogram_add(&metrics->step_tokens, plan->n_rows);
    hr_histogram_add(plan->has_prompt_rows ? &metrics->step_prefill : &metrics->step_decode, took_us);
}

/* Waits for the oldest step and hands out what it gave. */
static void finish_step(hr_engine *engine)
{
    const hr_flight *flight = &engine->flights[engine->n_finished % engine->ops->max_steps_in_flight];
    headrace_error error = {0};
    const hr_plan *plan;
    headrace_status status;
    uint64_t now = hr_now_us();

    atomic_store(&engine->in_backend_since_us, now);
    status = engine->ops->step_wait(engine->backend, &error);
    atomic_store(&engine->in_backend_since_us, 0);
    if (status != HEADRACE_OK) {
        fail_backend(engine, &error);
        return;
    }
    now = hr_now_us();
    plan = hr_scheduler_finish(&engine->scheduler);
    engine->n_finished++;
    note_step(engine, plan, step_time(engine, flight, now));
    engine->finished_us = now;
    engine->has_results = true;
    for (uint32_t i = 0; i < plan->n_spans; i++)
        apply_span(engine, &plan->spans[i], flight->batch->samples + plan->spans[i].first_output, now);
}

static void run_steps(hr_engine *engine)
{
    while (engine->scheduler.n_in_flight < engine->max_steps_in_flight &&
           hr_scheduler_n_sequences(&engine->scheduler) > 0)
        if (!begin_step(engine))
            break;
    if (engine->scheduler.n_in_flight > 0)
        finish_step(engine);
}

static void update_gauges(hr_engine *engine)
{
    const hr_scheduler *scheduler = &engine->scheduler;
    hr_metrics *metrics = &engine->metrics;

    atomic_store_explicit(&metrics->n_running, scheduler->n_running, memory_order_relaxed);
    atomic_store_explicit(&metrics->n_waiting, scheduler->n_waiting + scheduler->n_held, memory_order_relaxed);
    atomic_store_explicit(&metrics->n_pages_used, scheduler->pages.n_held, memory_order_relaxed);
    atomic_store_explicit(&metrics->n_pages_cached, scheduler->cache.n_idle, memory_order_relaxed);
    atomic_store_explicit(&metrics->n_slots_used, scheduler->n_running + scheduler->n_leaving, memory_order_relaxed);
    atomic_store_explicit(&metrics->preemptions, scheduler->n_preemptions, memory_order_relaxed);
    atomic_store_explicit(&metrics->prefix_queries, scheduler->prefix_queries, memory_order_relaxed);
    atomic_store_explicit(&metrics->prefix_hits, scheduler->prefix_hits, memory_order_relaxed);
}

/* ---------------------------------------------------------------- telling the readers */

static void flush_all(hr_engine *engine)
{
    for (uint32_t i = 0; i < engine->n_flushes; i++)
        engine->flushes[i].flush(engine->flushes[i].user);
    engine->n_flushes = 0;
}

static void note_flush(hr_engine *engine, const hr_request *request)
{
    if (!request->flush)
        return;
    for (uint32_t i = 0; i < engine->n_flushes; i++)
        if (engine->flushes[i].flush == request->flush && engine->flushes[i].user == request->flush_user)
            return;
    if (engine->n_flushes == HR_FLUSHES_MAX)
        flush_all(engine);
    engine->flushes[engine->n_flushes++] = (hr_flush){request->flush, request->flush_user};
}

static void tell_readers(hr_engine *engine)
{
    (void)pthread_mutex_lock(&engine->delivery_lock);
    for (hr_request *r = engine->news_first; r; r = r->news_next) {
        hr_request_wake(r);
        if (r->is_released || !r->notify)
            continue;
        r->notify(r->notify_user);
        note_flush(engine, r);
    }
    flush_all(engine);
    (void)pthread_mutex_unlock(&engine->delivery_lock);
}

static void deliver(hr_engine *engine)
{
    if (engine->news_first) {
        tell_readers(engine);
        if (engine->has_results)
            hr_histogram_add(&engine->metrics.delivery_lag, since(engine->finished_us, hr_now_us()));
    }
    engine->has_results = false;
    while (engine->news_first) {
        hr_request *request = engine->news_first;

        engine->news_first = request->news_next;
        request->has_news = false;
        request->is_told = request->n_live_choices == 0;
        leave_if_gone(engine, request);
    }
    engine->news_last = NULL;
    if (engine->n_gone > 0)
        hr_inbox_ended(&engine->inbox, engine->n_gone);
    engine->n_gone = 0;
}

static void end_engine(hr_engine *engine)
{
    headrace_error closed = {0};

    while (engine->scheduler.n_in_flight > 0)
        finish_step(engine);
    (void)hr_fail(&closed, HEADRACE_E_CLOSED, "the engine was closed");
    end_everything(engine, &closed);
    hr_inbox_close(&engine->inbox);
    (void)take_news(engine); /* cancels that came in between: drops their references */
    update_gauges(engine);
    deliver(engine);
}

void *hr_engine_main(void *argument)
{
    hr_engine *engine = argument;

    while (take_news(engine)) {
        end_overdue(engine);
        run_steps(engine);
        update_gauges(engine);
        deliver(engine);
    }
    end_engine(engine);
    return NULL;
}
