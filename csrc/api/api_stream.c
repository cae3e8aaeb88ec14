/* One request's answer as text: ids from the engine become characters, stop strings end choices, tokens merge into
 * events.
 *
 * Everything here runs in the consumer's thread, so that detokenising costs the engine nothing. A stop string is found
 * one or more steps after its last token was computed; tokens computed meanwhile are dropped here, and the engine is
 * told.
 *
 * A call of headrace_stream_next takes all that the engine has, sorts it by choice, and hands out one choice with news;
 * the next call the next one, so no choice waits behind another.
 */
#include "api/api.h"

#include "base/clock.h"
#include "text/detokenize.h"

#include <string.h>

typedef struct choice {
    hr_detokenizer detokenizer;
    int32_t *ids;                      /* since the last event; [capacity] */
    headrace_token_logprobs *logprobs; /* [capacity] if asked */
    size_t n_ids, capacity;
    uint32_t n_tokens; /* in all */
    bool has_news, is_finished;
    headrace_finish finish;
    int32_t stop_id, stop_string;
    headrace_error error;
} choice;

struct headrace_stream {
    hr_request *request;
    const headrace_engine *engine;
    hr_stream_link *link; /* NULL without a queue */
    void *user;
    choice *choices;        /* [n] */
    uint32_t n, n_reported; /* choices whose last event was handed out */
    uint32_t next;          /* where the search for news begins */
    choice *handed_out;     /* its buffers are the caller's until the next call */
    uint32_t n_prompt, min_tokens;
    bool wants_logprobs, wants_prompt_logprobs, include_stop;
    const char *stop[HEADRACE_STOP_MAX]; /* in stop_text */
    char *stop_text;
};

/* ---------------------------------------------------------------- submit and destroy */

static headrace_status copy_stops(headrace_stream *stream, const headrace_sampling *sampling, headrace_error *err)
{
    size_t total = 1, at = 0;

    for (uint32_t i = 0; i < sampling->n_stop; i++)
        total += strlen(sampling->stop[i]) + 1;
    stream->stop_text = malloc(total);
    if (!stream->stop_text)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a stream");
    for (uint32_t i = 0; i < sampling->n_stop; i++) {
        size_t len = strlen(sampling->stop[i]) + 1;

        memcpy(stream->stop_text + at, sampling->stop[i], len);
        stream->stop[i] = stream->stop_text + at;
        at += len;
    }
    return HEADRACE_OK;
}

static headrace_status make_choices(headrace_stream *stream, const headrace_sampling *sampling, headrace_error *err)
{
    const hr_tokenizer *tokenizer = stream->engine->model->tokenizer;

    stream->choices = calloc(stream->n, sizeof *stream->choices);
    if (!stream->choices)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a stream");
    for (uint32_t i = 0; i < stream->n; i++) {
        stream->choices[i].stop_id = -1;
        stream->choices[i].stop_string = -1;
        if (tokenizer)
            hr_detokenizer_init(&stream->choices[i].detokenizer, tokenizer, sampling->keep_special,
                                sampling->include_stop, stream->stop, sampling->n_stop);
    }
    return HEADRACE_OK;
}

static headrace_status submit(headrace_engine *engine, const headrace_request *request, headrace_stream *stream,
                              headrace_error *err)
{
    const hr_arch *arch = &engine->model->network->arch;
    hr_submit submit = {
        .prompt_ids = request->prompt_ids,
        .n_prompt = stream->n_prompt,
        .n = stream->n,
        .sampling = &request->sampling,
        .eos_ids = arch->eos_ids,
        .n_eos_ids = arch->n_eos_ids,
        .priority = request->priority,
        .cache_salt = request->cache_salt,
        .limits_guesses = request->num_speculative_tokens >= 0,
        .max_guesses = request->num_speculative_tokens >= 0 ? (uint32_t)request->num_speculative_tokens : 0,
    };

    if (request->queue) {
        stream->link = hr_stream_link_acquire(engine);
        if (!stream->link)
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a stream");
        submit.notify = hr_stream_link_notify;
        submit.notify_user = stream->link;
        submit.flush = hr_stream_links_flush;
        submit.flush_user = engine;
    }
    HR_PASS(hr_engine_submit(engine->engine, &submit, &stream->request, err));
    if (stream->link)
        hr_stream_link_open(stream->link, stream, request->queue);
    return HEADRACE_OK;
}

headrace_status headrace_submit(headrace_engine *engine, const headrace_request *request, headrace_stream **out,
                                headrace_error *err)
{
    headrace_request own;
    headrace_stream *stream;
    headrace_status status;

    *out = NULL;
    headrace_request_init(&own);
    HR_PASS(hr_options_read(&own, sizeof own, request, "request", err));
    HR_PASS(hr_validate_request(engine->model, &own, err));
    stream = calloc(1, sizeof *stream);
    if (!stream)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a stream");
    stream->engine = engine;
    stream->user = own.user;
    stream->n = own.n > 0 ? own.n : 1;
    stream->n_prompt = (uint32_t)own.n_prompt_ids;
    stream->min_tokens = own.sampling.min_tokens;
    stream->wants_logprobs = own.sampling.n_logprobs >= 0;
    stream->wants_prompt_logprobs = own.sampling.n_prompt_logprobs >= 0;
    stream->include_stop = own.sampling.include_stop;
    HR_TRY_GOTO(done, copy_stops(stream, &own.sampling, err));
    HR_TRY_GOTO(done, make_choices(stream, &own.sampling, err));
    HR_TRY_GOTO(done, submit(engine, &own, stream, err));
    *out = stream;
    return HEADRACE_OK;
done:
    headrace_stream_destroy(stream);
    return status;
}

void headrace_stream_destroy(headrace_stream *stream)
{
    if (!stream)
        return;
    hr_stream_link_release(stream->link);
    if (stream->request)
        hr_request_release(stream->request);
    for (uint32_t i = 0; stream->choices && i < stream->n; i++) {
        hr_detokenizer_deinit(&stream->choices[i].detokenizer);
        free(stream->choices[i].ids);
        free(stream->choices[i].logprobs);
    }
    free(stream->choices);
    free(stream->stop_text);
    free(stream);
}

void headrace_stream_cancel(headrace_stream *stream)
{
    hr_request_cancel(stream->request);
}

void *headrace_stream_user(const headrace_stream *stream)
{
    return stream->user;
}

/* ---------------------------------------------------------------- tokens in */

static bool reserve_token(const headrace_stream *stream, choice *c)
{
    size_t capacity = c->capacity ? c->capacity * 2 : 16;
    int32_t *ids;

    if (c->n_ids < c->capacity)
        return true;
    ids = realloc(c->ids, capacity * sizeof *ids);
    if (!ids)
        return false;
    c->ids = ids;
    if (stream->wants_logprobs) {
        headrace_token_logprobs *logprobs = realloc(c->logprobs, capacity * sizeof *logprobs);

        if (!logprobs)
            return false;
        c->logprobs = logprobs;
    }
    c->capacity = capacity;
    return true;
}

static void finish_choice(const headrace_stream *stream, choice *c, headrace_finish finish)
{
    c->is_finished = true;
    c->has_news = true;
    c->finish = finish;
    if (stream->engine->model->tokenizer && c->stop_string < 0)
        hr_detokenizer_finish(&c->detokenizer);
}

/* Text that could not be kept is an error and not a gap. */
static void fail_for_memory(headrace_stream *stream, choice *c, uint32_t index)
{
    (void)hr_fail(&c->error, HEADRACE_E_MEMORY, "no memory for the text of an answer");
    finish_choice(stream, c, HEADRACE_FINISH_ERROR);
    hr_request_stop_choice(stream->request, index);
}

/* Returns true when the token completed a stop string. */
static bool add_text(headrace_stream *stream, choice *c, const hr_token_event *event)
{
    bool is_stop_id = event->finish == HEADRACE_FINISH_STOP;

    if (!stream->engine->model->tokenizer || (is_stop_id && !stream->include_stop))
        return false;
    return hr_detokenizer_add(&c->detokenizer, event->id, !is_stop_id && c->n_tokens >= stream->min_tokens);
}

static void take_event(headrace_stream *stream, const hr_token_event *event)
{
    choice *c = &stream->choices[event->index];
    bool is_stopped = false;

    if (c->is_finished) /* computed before the engine heard of the stop string */
        return;
    c->has_news = true;
    if (event->has_token) {
        if (!reserve_token(stream, c)) {
            fail_for_memory(stream, c, event->index);
            return;
        }
        if (stream->wants_logprobs)
            c->logprobs[c->n_ids] = event->logprobs ? *event->logprobs : (headrace_token_logprobs){.id = event->id};
        c->ids[c->n_ids++] = event->id;
        c->n_tokens++;
        is_stopped = add_text(stream, c, event);
        if (c->detokenizer.pending.failed || c->detokenizer.shown.failed) {
            fail_for_memory(stream, c, event->index);
            return;
        }
    }
    if (is_stopped) {
        c->stop_string = c->detokenizer.stop_hit;
        finish_choice(stream, c, HEADRACE_FINISH_STOP);
        if (event->finish == HEADRACE_FINISH_NONE)
            hr_request_stop_choice(stream->request, event->index);
    } else if (event->finish != HEADRACE_FINISH_NONE) {
        c->stop_id = event->stop_id;
        c->error = event->error;
        finish_choice(stream, c, event->finish);
    }
}

/* ---------------------------------------------------------------- events out */

static void clear_handed_out(headrace_stream *stream)
{
    choice *c = stream->handed_out;

    if (!c)
        return;
    c->n_ids = 0;
    c->has_news = false;
    if (stream->engine->model->tokenizer)
        hr_detokenizer_taken(&c->detokenizer);
    stream->handed_out = NULL;
}

static void fill_times(const headrace_stream *stream, headrace_event *event)
{
    hr_request_times times = hr_request_get_times(stream->request);
    uint64_t end = times.finished_us ? times.finished_us : hr_now_us();

    event->n_cached_tokens = times.n_cached_tokens;
    if (times.started_us)
        event->queue_us = times.started_us - times.submitted_us;
    if (times.first_token_us)
        event->ttft_us = times.first_token_us - times.submitted_us;
    event->total_us = end - times.submitted_us;
    event->n_draft_tokens = times.n_guesses;
    event->n_accepted_tokens = times.n_guesses_right;
}

static void fill_prompt_logprobs(headrace_stream *stream, headrace_event *event)
{
    const headrace_token_logprobs *prompt;

    if (!stream->wants_prompt_logprobs || event->index != 0)
        return;
    prompt = hr_request_prompt_logprobs(stream->request);
    if (!prompt)
        return;
    stream->wants_prompt_logprobs = false; /* once */
    event->prompt_logprobs = prompt;
    event->n_prompt_logprobs = stream->n_prompt - 1;
}

static void hand_out(headrace_stream *stream, uint32_t index, headrace_event *event)
{
    choice *c = &stream->choices[index];

    memset(event, 0, sizeof *event);
    event->index = index;
    event->text = c->detokenizer.shown.len > 0 ? c->detokenizer.shown.at : "";
    event->text_len = c->detokenizer.shown.len;
    event->ids = c->ids;
    event->n_ids = c->n_ids;
    event->logprobs = stream->wants_logprobs && c->n_ids > 0 ? c->logprobs : NULL;
    event->finish = c->finish;
    event->stop_id = c->stop_id;
    event->stop_string = c->stop_string;
    if (c->finish == HEADRACE_FINISH_ERROR)
        event->error = c->error;
    event->n_prompt_tokens = stream->n_prompt;
    event->n_completion_tokens = c->n_tokens;
    fill_prompt_logprobs(stream, event);
    fill_times(stream, event);
    if (c->is_finished)
        stream->n_reported++;
    event->is_last = stream->n_reported == stream->n;
    stream->handed_out = c;
    stream->next = (index + 1) % stream->n;
}

/* Takes all that is there; true when a choice has news and was handed out. */
static bool next_now(headrace_stream *stream, headrace_event *event)
{
    hr_token_event token;

    while (hr_request_take(stream->request, &token))
        take_event(stream, &token);
    for (uint32_t i = 0; i < stream->n; i++) {
        uint32_t index = (stream->next + i) % stream->n;

        if (stream->choices[index].has_news) {
            hand_out(stream, index, event);
            return true;
        }
    }
    return false;
}

headrace_status headrace_stream_next(headrace_stream *stream, uint64_t timeout_us, headrace_event *event)
{
    uint64_t start = hr_now_us();

    clear_handed_out(stream);
    if (stream->n_reported == stream->n)
        return HEADRACE_E_CLOSED;
    for (;;) {
        uint64_t passed;

        if (next_now(stream, event))
            return HEADRACE_OK;
        if (hr_request_is_done(stream->request))
            return HEADRACE_E_CLOSED;
        passed = hr_now_us() - start;
        if (passed >= timeout_us)
            return HEADRACE_E_TIMEOUT;
        (void)hr_request_wait(stream->request, timeout_us - passed);
    }
}
