/* See call.h.
 *
 * Freeing: an answer can end deep inside a pump (an event that fails, a flush that finds the client gone). The call is
 * then only marked; whoever entered it from the loop (start, pump, tick, writable, shutdown) frees it on the way out.
 */
#include "server/call.h"

#include "base/clock.h"
#include "base/rng.h"
#include "server/handlers.h"
#include "server/json_input.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOGPROBS_MAX = 8000000 }; /* log probabilities of one answer, alternatives included */

/* ---------------------------------------------------------------- end of life */

static void end_streams(hr_call *call)
{
    for (uint32_t i = 0; i < call->n_streams; i++) {
        hr_call_stream *stream = &call->streams[i];

        if (stream->stream) {
            hr_loop_forget_stream(call->loop, stream->stream);
            headrace_stream_destroy(stream->stream);
            stream->stream = NULL;
        }
    }
}

static void give_slot_back(hr_choice *choice)
{
    if (!choice->slot)
        return;
    atomic_store(&choice->slot->n_prompt, 0); /* the next one must not be seen with our counts */
    atomic_store(&choice->slot->n_cached, 0);
    atomic_store(&choice->slot->n_decoded, 0);
    atomic_store(&choice->slot->is_taken, false);
    choice->slot = NULL;
}

static void free_choice(hr_choice *choice)
{
    give_slot_back(choice);
    headrace_chat_parser_destroy(choice->parser);
    hr_buffer_deinit(&choice->text);
    hr_buffer_deinit(&choice->reasoning);
    hr_buffer_deinit(&choice->calls);
    hr_buffer_deinit(&choice->ids);
    hr_logprobs_deinit(&choice->logprobs);
}

static void free_call(hr_call *call)
{
    end_streams(call);
    for (uint32_t i = 0; i < call->n_streams; i++) {
        hr_buffer_deinit(&call->streams[i].prompt_logprobs);
        hr_buffer_deinit(&call->streams[i].echo_text);
        hr_logprobs_deinit(&call->streams[i].echo);
    }
    for (uint32_t i = 0; i < call->n_choices; i++)
        free_choice(&call->choices[i]);
    free(call->streams);
    free(call->choices);
    hr_buffer_deinit(&call->chunk_head);
    hr_prompts_deinit(&call->prompts);
    hr_openai_request_deinit(&call->request);
    free(call);
}

/* The last word was said: the engine may forget us at once, the memory goes when the stack is unwound. */
static void mark_ended(hr_call *call)
{
    if (call->is_ended)
        return;
    call->is_ended = true;
    end_streams(call);
    (void)atomic_fetch_sub(&call->server->n_active_calls, 1);
}

static void enter(hr_call *call)
{
    call->n_entered++;
}

static void leave(hr_call *call)
{
    if (--call->n_entered == 0 && call->is_ended)
        free_call(call);
}

static void fill_log(hr_call *call)
{
    hr_http_log *log = hr_http_log_of(call->conn);
    hr_usage usage = hr_call_usage(call);

    log->n_prompt_tokens = (uint32_t)usage.n_prompt;
    log->n_cached_tokens = (uint32_t)usage.n_cached;
    log->n_completion_tokens = (uint32_t)usage.n_completion;
    log->queue_us = call->streams[0].queue_us;
    log->ttft_us = call->streams[0].ttft_us;
    log->finish = hr_finish_reason(call, &call->choices[0]);
}

/* Ends the call with an error: as the status while nothing was sent, as an event in a stream. */
static void fail(hr_call *call, const hr_api_error *error)
{
    hr_http_conn *conn = call->conn;
    hr_buffer event = {0};

    if (call->is_ended)
        return;
    fill_log(call);
    mark_ended(call);
    if (!hr_http_stream_began(conn)) {
        hr_http_reply_error(conn, error);
        return;
    }
    (void)atomic_fetch_add_explicit(&call->server->failures[error->code], 1, memory_order_relaxed);
    hr_http_log_of(conn)->code = hr_api_code_text(error->code);
    hr_buffer_add_text(&event, "data: ");
    hr_api_error_json(&event, error);
    hr_buffer_add_text(&event, "\n\ndata: [DONE]\n\n");
    hr_http_stream_data(conn, event.at, event.len);
    hr_http_stream_end(conn, true);
    hr_buffer_deinit(&event);
}

/* An engine's error is this request's alone, or the end of all. Returns false. */
static bool explain_failure(const hr_call *call, const headrace_error *failure, hr_api_error *error)
{
    headrace_stats stats;

    (void)hr_api_fail_library(error, failure);
    headrace_engine_get_stats(call->server->engine, &stats);
    if (error->code == HR_API_ENGINE_ERROR && !stats.healthy)
        (void)hr_api_fail(error, HR_API_ENGINE_DEAD, NULL, "The engine has failed; the server needs a restart.");
    return false;
}

static void fail_from_engine(hr_call *call, const headrace_error *failure)
{
    hr_api_error error;

    if (failure->status == HEADRACE_E_QUEUE_FULL)
        (void)hr_api_fail(&error, HR_API_QUEUE_TIMEOUT, NULL,
                          "The request waited too long in the queue; try again later.");
    else
        (void)explain_failure(call, failure, &error);
    fail(call, &error);
}

static void finish(hr_call *call)
{
    hr_http_conn *conn = call->conn;
    hr_buffer out = {0};

    fill_log(call);
    if (call->request.stream) {
        hr_stream_tail(call, &out);
        hr_http_stream_data(conn, out.at, out.len);
        mark_ended(call);
        hr_http_stream_end(conn, false);
    } else {
        hr_answer_write(call, &out);
        mark_ended(call);
        if (out.failed) {
            hr_api_error error;

            (void)hr_api_fail(&error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this answer.");
            hr_http_reply_error(conn, &error);
        } else {
            hr_http_reply(conn, 200, "application/json", NULL, out.at, out.len);
        }
    }
    hr_buffer_deinit(&out);
}

/* ---------------------------------------------------------------- events */

static void keep_prompt_logprobs(hr_call *call, hr_call_stream *stream, const headrace_event *event)
{
    const hr_prompt *prompt = &call->prompts.at[stream->prompt_idx];
    const headrace_model *model = call->server->model;
    uint32_t n_top = (uint32_t)(call->request.sampling.n_logprobs > 0 ? call->request.sampling.n_logprobs : 0);

    if (event->index != 0 || stream->has_prompt_logprobs)
        return;
    stream->has_prompt_logprobs = true;
    if (call->wants_prompt_logprobs)
        hr_prompt_logprobs_write(&stream->prompt_logprobs, model, event->prompt_logprobs, event->n_prompt_logprobs,
                                 call->n_prompt_top);
    if (!call->request.echo || !call->request.wants_logprobs)
        return;
    hr_logprobs_add_first(&stream->echo, model, prompt->ids[0], !prompt->has_added_first);
    for (size_t i = 0; i < event->n_prompt_logprobs; i++)
        hr_logprobs_add(&stream->echo, model, &event->prompt_logprobs[i], n_top, true);
}

static void begin_choice(hr_call *call, hr_call_stream *stream, hr_choice *choice)
{
    if (call->request.echo) {
        hr_logprobs_append(&choice->logprobs, &stream->echo);
        hr_buffer_add(&choice->text, stream->echo_text.at ? stream->echo_text.at : "", stream->echo_text.len);
    }
    choice->slot = hr_slot_take(call->server);
}

static void update_slot(hr_choice *choice, const headrace_event *event)
{
    hr_slot *slot = choice->slot;

    if (!slot)
        return;
    atomic_store_explicit(&slot->n_prompt, event->n_prompt_tokens, memory_order_relaxed);
    atomic_store_explicit(&slot->n_cached, event->n_cached_tokens, memory_order_relaxed);
    atomic_store_explicit(&slot->n_decoded, event->n_completion_tokens, memory_order_relaxed);
    if (event->finish != HEADRACE_FINISH_NONE)
        give_slot_back(choice);
}

static void keep_tokens(hr_call *call, hr_choice *choice, const headrace_event *event)
{
    const headrace_sampling *sampling = &call->request.sampling;
    uint32_t n_top = (uint32_t)(sampling->n_logprobs > 0 ? sampling->n_logprobs : 0);

    for (size_t i = 0; i < event->n_ids; i++) {
        if (call->request.return_token_ids) {
            if (choice->ids.len)
                hr_buffer_add_char(&choice->ids, ',');
            hr_json_int(&choice->ids, event->ids[i]);
        }
        if (event->logprobs && call->request.wants_logprobs) {
            bool is_special = false, is_stop = event->finish == HEADRACE_FINISH_STOP &&
                                               event->stop_id == event->ids[i] && i + 1 == event->n_ids;
            const char *bytes;
            size_t len;

            (void)headrace_token_bytes(call->server->model, event->ids[i], &bytes, &len, &is_special);
            hr_logprobs_add(&choice->logprobs, call->server->model, &event->logprobs[i], n_top,
                            !is_stop && (!is_special || sampling->keep_special));
        }
    }
    choice->n_tokens = event->n_completion_tokens;
}

/* Parts the text of an event. False: out of memory. */
static bool part_text(hr_choice *choice, const headrace_event *event, hr_delta *delta)
{
    headrace_chat_delta parted;

    *delta = (hr_delta){.text = event->text ? event->text : "", .text_len = event->text_len, .reasoning = ""};
    if (!choice->parser)
        return true;
    if (event->text_len)
        headrace_chat_parser_add(choice->parser, event->text, event->text_len);
    if (event->finish != HEADRACE_FINISH_NONE)
        headrace_chat_parser_finish(choice->parser);
    if (headrace_chat_parser_take(choice->parser, &parted, NULL) != HEADRACE_OK)
        return false;
    *delta = (hr_delta){parted.content, parted.reasoning, parted.content_len, parted.reasoning_len,
                        parted.calls,   parted.n_calls,   parted.first_call};
    return true;
}

static void take_event(hr_call *call, hr_call_stream *stream, const headrace_event *event)
{
    hr_choice *choice = &call->choices[stream->prompt_idx * call->request.n + event->index];
    hr_delta delta;

    if (event->finish == HEADRACE_FINISH_ERROR || event->finish == HEADRACE_FINISH_ABORT) {
        headrace_error closed = {.status = HEADRACE_E_CLOSED};

        fail_from_engine(call, event->finish == HEADRACE_FINISH_ERROR ? &event->error : &closed);
        return;
    }
    stream->n_prompt_tokens = event->n_prompt_tokens;
    stream->n_cached_tokens = event->n_cached_tokens;
    stream->queue_us = event->queue_us;
    stream->ttft_us = event->ttft_us;
    stream->n_draft_tokens = event->n_draft_tokens;
    stream->n_accepted_tokens = event->n_accepted_tokens;
    stream->total_us = event->total_us;
    keep_prompt_logprobs(call, stream, event);
    if (!choice->has_begun)
        begin_choice(call, stream, choice);
    update_slot(choice, event);
    choice->finish = event->finish;
    choice->stop_id = event->stop_id;
    choice->stop_string = event->stop_string;
    if (call->drops_output) {
        delta = (hr_delta){.text = "", .reasoning = ""};
        if (choice->finish != HEADRACE_FINISH_NONE)
            choice->finish = HEADRACE_FINISH_LENGTH;
    } else {
        keep_tokens(call, choice, event);
        if (!part_text(choice, event, &delta)) {
            fail_from_engine(call, &(headrace_error){.status = HEADRACE_E_MEMORY});
            return;
        }
    }
    choice->n_calls += delta.n_calls;
    if (call->request.stream)
        hr_stream_event(call, stream, choice, &delta, &call->loop->scratch);
    else
        hr_choice_keep(choice, &delta);
    choice->has_begun = true;
}

/* Sends what the writers put into the loop's scratch buffer. */
static void send_scratch(hr_call *call)
{
    hr_buffer *out = &call->loop->scratch;

    if (out->failed) {
        hr_buffer_deinit(out);
        *out = (hr_buffer){0};
        fail_from_engine(call, &(headrace_error){.status = HEADRACE_E_MEMORY});
        return;
    }
    if (out->len == 0)
        return;
    if (!hr_http_stream_began(call->conn))
        hr_http_stream_begin(call->conn);
    hr_http_stream_data(call->conn, out->at, out->len);
    hr_buffer_clear(out);
    call->last_sent_us = call->loop->now_us;
    if (call->n_open > 0)
        (void)hr_http_stream_flush(call->conn); /* a client found gone marks the call */
}

/* Takes events until there are none or enough output waits for the client. */
static void take_events(hr_call *call, hr_call_stream *stream)
{
    size_t merge_bytes = call->server->options.stream_merge_bytes;
    headrace_event event;

    stream->is_stalled = false;
    while (!call->is_ended && stream->stream) {
        if (call->request.stream && hr_http_backlog(call->conn) + call->loop->scratch.len >= merge_bytes) {
            stream->is_stalled = true; /* tokens wait in the engine's outbox and merge */
            break;
        }
        if (headrace_stream_next(stream->stream, 0, &event) != HEADRACE_OK)
            break;
        (void)atomic_fetch_add_explicit(&call->server->streamed_events, call->request.stream, memory_order_relaxed);
        take_event(call, stream, &event);
        if (!call->is_ended && event.is_last) {
            hr_loop_forget_stream(call->loop, stream->stream);
            headrace_stream_destroy(stream->stream);
            stream->stream = NULL;
            call->n_open--;
        }
    }
}

static void pump(hr_call *call, hr_call_stream *stream)
{
    bool goes_on;

    /* Events may be left although the client took everything: nobody would announce them again. */
    do {
        hr_buffer_clear(&call->loop->scratch);
        take_events(call, stream);
        goes_on = stream->is_stalled && call->loop->scratch.len > 0;
        if (!call->is_ended && call->request.stream)
            send_scratch(call);
    } while (goes_on && !call->is_ended && hr_http_backlog(call->conn) < call->server->options.stream_merge_bytes);
    if (!call->is_ended && call->n_open == 0)
        finish(call);
}

void hr_call_pump(void *user)
{
    hr_call_stream *stream = user;
    hr_call *call = stream->call;

    enter(call);
    pump(call, stream);
    leave(call);
}

/* ---------------------------------------------------------------- the connection speaks */

static void on_gone(void *user, hr_gone why)
{
    hr_call *call = user;

    (void)why;
    if (call->is_ended)
        return;
    fill_log(call);
    mark_ended(call);
    if (call->n_entered == 0)
        free_call(call);
}

static void on_writable(void *user)
{
    hr_call *call = user;

    enter(call);
    for (uint32_t i = 0; i < call->n_streams && !call->is_ended; i++) {
        if (call->streams[i].is_stalled)
            pump(call, &call->streams[i]);
    }
    leave(call);
}

static void on_tick(void *user, uint64_t now_us)
{
    hr_call *call = user;

    if (!call->request.stream ||
        now_us - call->last_sent_us < (uint64_t)call->server->options.keepalive_comment_ms * 1000)
        return;
    enter(call);
    if (!hr_http_stream_began(call->conn))
        hr_http_stream_begin(call->conn);
    hr_http_stream_data(call->conn, ": keep-alive\n\n", 14);
    call->last_sent_us = now_us;
    (void)hr_http_stream_flush(call->conn);
    leave(call);
}

static void on_shutdown(void *user)
{
    hr_call *call = user;
    hr_api_error error;

    enter(call);
    (void)hr_api_fail(&error, HR_API_DRAINING, NULL, "The server was shut down before the answer was complete.");
    fail(call, &error);
    leave(call);
}

/* ---------------------------------------------------------------- start */

static void name_call(hr_call *call)
{
    char random[33];

    hr_server_new_id(call->server, random);
    (void)snprintf(call->id, sizeof call->id, "%s-%s", call->is_chat ? "chatcmpl" : "cmpl",
                   call->request.request_id ? call->request.request_id : random);
    call->model_name = call->request.model ? call->request.model : call->server->model_name;
    call->created_s = (int64_t)time(NULL);
}

static bool has_model(const hr_server *server, const char *name)
{
    const hr_server_options *options = &server->options;

    if (options->n_model_names == 0)
        return strcmp(name, server->model_name) == 0;
    for (size_t i = 0; i < options->n_model_names; i++) {
        if (strcmp(name, options->model_names[i]) == 0)
            return true;
    }
    return false;
}

bool hr_check_model(const hr_server *server, const char *name, hr_api_error *error)
{
    if (!name || has_model(server, name))
        return true;
    return hr_api_fail(error, HR_API_MODEL_NOT_FOUND, "model",
                       "The model \"%.200s\" is not served here; GET /v1/models "
                       "lists what is.",
                       name);
}

bool hr_read_request(hr_openai_request *request, hr_http_conn *conn, int kind, hr_api_error *error)
{
    const hr_server *server = hr_http_loop(conn)->server;
    const hr_http_parser *http = hr_http_request(conn);
    hr_request_limits limits = {.max_n = server->options.max_n,
                                .max_logprobs = server->options.max_logprobs,
                                .max_batch_prompts = server->options.max_batch_prompts,
                                .max_model_len = server->engine_info.max_model_len,
                                .vocab_size = server->model_info.vocab_size};
    headrace_sampling defaults;
    json_t *body = hr_json_parse_object(http->body.at ? http->body.at : "", http->body.len, error);

    if (!body)
        return false;
    /* Each prompt is a request of its own: more than may wait could be refused for ever with "try again later". */
    if (limits.max_batch_prompts > server->engine_info.max_num_queued_reqs)
        limits.max_batch_prompts = server->engine_info.max_num_queued_reqs;
    headrace_sampling_defaults(server->model, &defaults);
    if (!hr_openai_request_init(request, kind, body, &defaults, &limits, error))
        return false;
    if (hr_check_model(server, request->model, error))
        return true;
    hr_openai_request_deinit(request);
    return false;
}

static bool make_choices(hr_call *call, hr_api_error *error)
{
    const hr_server_options *options = &call->server->options;
    uint32_t flags = (options->no_reasoning_parser ? 0u : HEADRACE_OUTPUT_REASONING) |
                     (call->request.tools_allowed && !options->no_tool_parser ? HEADRACE_OUTPUT_TOOLS : 0u);

    if (flags & HEADRACE_OUTPUT_REASONING && call->prompts.at[0].opens_reasoning)
        flags |= HEADRACE_OUTPUT_IN_REASONING;
    call->n_streams = (uint32_t)call->prompts.n;
    call->n_choices = call->n_streams * call->request.n;
    call->streams = calloc(call->n_streams, sizeof *call->streams);
    call->choices = calloc(call->n_choices, sizeof *call->choices);
    if (!call->streams || !call->choices) {
        call->n_streams = call->streams ? call->n_streams : 0;
        call->n_choices = call->choices ? call->n_choices : 0;
        return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
    }
    for (uint32_t i = 0; i < call->n_choices; i++) {
        hr_choice *choice = &call->choices[i];
        uint64_t seed = hr_rng_at(call->server->id_key, atomic_fetch_add(&call->server->id_counter, 1));

        choice->index = i;
        choice->logprobs.is_chat = call->is_chat;
        if (call->is_chat && flags && headrace_chat_parser_create(flags, seed, &choice->parser, NULL) != HEADRACE_OK)
            return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
    }
    if (call->is_chat && flags & HEADRACE_OUTPUT_TOOLS)
        call->request.sampling.keep_special = true; /* the markers of a call are special tokens */
    return true;
}

/* What an echo shows: the prompt without the first token that was put in front. */
static bool make_echo(hr_call *call, hr_call_stream *stream, hr_api_error *error)
{
    const hr_prompt *prompt = &call->prompts.at[stream->prompt_idx];
    size_t skip = prompt->has_added_first, len = 0;
    headrace_error failure = {0};
    char *text = NULL;

    if (headrace_decode(call->server->model, prompt->ids + skip, prompt->n_ids - skip, 0, &text, &len, &failure) !=
        HEADRACE_OK)
        return hr_api_fail_library(error, &failure);
    hr_buffer_add(&stream->echo_text, text, len);
    headrace_free(text);
    return true;
}

/* Log probabilities are the one part of an answer that a short request can multiply (prompts x choices x tokens x
 * alternatives), and an echo makes them at once: about 40 bytes each. */
static bool bound_logprobs(hr_call *call, const hr_prompt *prompt, uint32_t max_tokens, hr_api_error *error)
{
    const hr_openai_request *request = &call->request;

    if (call->wants_prompt_logprobs)
        call->n_logprobs += (uint64_t)prompt->n_ids * (1 + call->n_prompt_top);
    if (request->wants_logprobs)
        call->n_logprobs += request->n * ((request->echo ? prompt->n_ids : 0) + (uint64_t)max_tokens) *
                            (1 + (uint64_t)(request->sampling.n_logprobs > 0 ? request->sampling.n_logprobs : 0));
    if (call->n_logprobs <= LOGPROBS_MAX)
        return true;
    return hr_api_fail(
        error, HR_API_INVALID_VALUE, "logprobs",
        "The answer could hold %llu log probabilities, more than the %d a request may ask for: lower logprobs, n or "
        "max_tokens, or send fewer prompts.",
        (unsigned long long)call->n_logprobs, LOGPROBS_MAX);
}

static bool submit(hr_call *call, uint32_t stream_idx, hr_api_error *error)
{
    hr_call_stream *stream = &call->streams[stream_idx];
    hr_prompt *prompt = &call->prompts.at[stream_idx];
    headrace_error failure = {0};
    headrace_request request;

    stream->call = call;
    stream->prompt_idx = stream_idx;
    headrace_request_init(&request);
    request.sampling = call->request.sampling;
    if (!hr_prompt_fit(prompt, call->server, &call->request, &request.sampling.max_tokens, error) ||
        !bound_logprobs(call, prompt, request.sampling.max_tokens, error) ||
        (call->request.echo && !make_echo(call, stream, error)))
        return false;
    if (call->drops_output)
        request.sampling.max_tokens = 1;
    hr_observe_count(&call->server->params_max_tokens, request.sampling.max_tokens);
    request.prompt_ids = prompt->ids;
    request.n_prompt_ids = prompt->n_ids;
    request.n = call->request.n;
    request.priority = call->request.priority;
    request.queue = call->loop->queue;
    request.user = stream;
    request.cache_salt = call->request.cache_salt;
    request.num_speculative_tokens = call->request.num_speculative_tokens;
    if (headrace_submit(call->server->engine, &request, &stream->stream, &failure) != HEADRACE_OK)
        return explain_failure(call, &failure, error);
    call->n_open++;
    return true;
}

static bool start(hr_call *call, hr_api_error *error)
{
    const hr_http_parser *http = hr_http_request(call->conn);
    headrace_sampling *sampling = &call->request.sampling;

    name_call(call);
    if (!hr_prompts_init(&call->prompts, call->server, &call->request, http->body.at, http->body.len, error) ||
        !make_choices(call, error))
        return false;
    call->drops_output = call->request.has_max_tokens && call->request.max_tokens == 0;
    call->wants_prompt_logprobs = sampling->n_prompt_logprobs >= 0;
    call->n_prompt_top = call->wants_prompt_logprobs ? (uint32_t)sampling->n_prompt_logprobs : 0;
    if (call->request.echo && call->request.wants_logprobs && sampling->n_prompt_logprobs < sampling->n_logprobs)
        sampling->n_prompt_logprobs = sampling->n_logprobs;
    if (call->request.stream)
        hr_stream_head(call);
    hr_observe_count(&call->server->params_n, call->request.n);
    for (uint32_t i = 0; i < call->n_streams; i++) {
        if (!submit(call, i, error))
            return false;
    }
    return true;
}

static void begin_call(hr_http_conn *conn, int kind)
{
    hr_loop *loop = hr_http_loop(conn);
    hr_call *call = calloc(1, sizeof *call);
    hr_api_error error;

    if (!call) {
        (void)hr_api_fail(&error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
        hr_http_reply_error(conn, &error);
        return;
    }
    *call = (hr_call){.server = loop->server,
                      .loop = loop,
                      .conn = conn,
                      .is_chat = kind == HR_FOR_CHAT,
                      .last_sent_us = loop->now_us};
    if (hr_server_phase(loop->server) != HR_PHASE_SERVE) {
        (void)hr_api_fail(&error, HR_API_DRAINING, NULL, "The server is shutting down and takes no new requests.");
    } else if (hr_read_request(&call->request, conn, kind, &error) && start(call, &error)) {
        (void)atomic_fetch_add(&loop->server->n_active_calls, 1);
        hr_http_set_owner(conn, &(hr_http_owner){on_gone, on_writable, on_tick, on_shutdown, call});
        return;
    }
    free_call(call);
    hr_http_reply_error(conn, &error);
}

void hr_handle_chat(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    begin_call(conn, HR_FOR_CHAT);
}

void hr_handle_completions(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    begin_call(conn, HR_FOR_COMPLETIONS);
}
