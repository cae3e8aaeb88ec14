/* What the tests of the C API share: the embedded model, its expected answers, and one-call requests. */
#ifndef HR_TESTS_API_FIXTURE_H
#define HR_TESTS_API_FIXTURE_H

#include "headrace.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ANSWER_IDS_MAX = 512, ANSWER_TEXT_MAX = 8192 };

/* One choice, all events joined. */
typedef struct answer {
    int32_t ids[ANSWER_IDS_MAX];
    size_t n_ids, text_len;
    char text[ANSWER_TEXT_MAX];
    headrace_token_logprobs logprobs[ANSWER_IDS_MAX];
    headrace_finish finish;
    int32_t stop_id, stop_string;
    uint32_t n_completion_tokens;
    headrace_error error;
    bool saw_last;
} answer;

static headrace_error err; /* what the last call said */

static inline void assert_error(headrace_status found, headrace_status want, const char *param, const char *part)
{
    if (found != want || err.status != want)
        fail_msg("%s instead of %s: %s", headrace_status_text(found), headrace_status_text(want), err.message);
    assert_string_equal(err.param, param);
    if (!strstr(err.message, part))
        fail_msg("'%s' is not in: %s", part, err.message);
    memset(&err, 0, sizeof err);
}

static inline void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static inline headrace_model *open_model(const char *path)
{
    headrace_model_options options;
    headrace_model *model = NULL;

    headrace_model_options_init(&options);
    options.path = path;
    if (headrace_model_open(&options, &model, &err) != HEADRACE_OK)
        fail_msg("%s: %s", path, err.message);
    return model;
}

/* Small on purpose: sanitizers and a machine shared with other tests. */
static inline headrace_engine_options small_engine(void)
{
    headrace_engine_options options;

    headrace_engine_options_init(&options);
    options.n_threads = 2;
    options.max_model_len = 512;
    options.max_num_seqs = 8;
    options.max_num_queued_reqs = 256;
    options.kv_cache_bytes = 32u << 20;
    return options;
}

static inline headrace_engine *open_engine(headrace_model *model, const headrace_engine_options *options)
{
    headrace_engine *engine = NULL;

    if (headrace_engine_open(model, options, &engine, &err) != HEADRACE_OK)
        fail_msg("engine: %s", err.message);
    return engine;
}

static inline void add_event(answer *a, const headrace_event *event)
{
    assert_true(a->n_ids + event->n_ids <= ANSWER_IDS_MAX && a->text_len + event->text_len < ANSWER_TEXT_MAX);
    assert_false(a->saw_last);
    assert_int_equal(a->finish, HEADRACE_FINISH_NONE);
    for (size_t i = 0; i < event->n_ids; i++) {
        a->ids[a->n_ids + i] = event->ids[i];
        if (event->logprobs)
            a->logprobs[a->n_ids + i] = event->logprobs[i];
    }
    memcpy(a->text + a->text_len, event->text, event->text_len);
    a->n_ids += event->n_ids;
    a->text_len += event->text_len;
    a->text[a->text_len] = '\0';
    a->finish = event->finish;
    a->stop_id = event->stop_id;
    a->stop_string = event->stop_string;
    a->n_completion_tokens = event->n_completion_tokens;
    a->error = event->error;
    a->saw_last = event->is_last;
    assert_int_equal(a->n_completion_tokens, a->n_ids);
}

static inline headrace_stream *submit(headrace_engine *engine, const headrace_request *request)
{
    headrace_stream *stream = NULL;

    if (headrace_submit(engine, request, &stream, &err) != HEADRACE_OK)
        fail_msg("submit: %s", err.message);
    return stream;
}

/* Runs a request to its end; answers [n]. */
static inline void run_request(headrace_engine *engine, const headrace_request *request, answer *answers)
{
    headrace_stream *stream = submit(engine, request);
    headrace_event event;
    headrace_status status;

    memset(answers, 0, (request->n ? request->n : 1) * sizeof *answers);
    while ((status = headrace_stream_next(stream, 60000000, &event)) == HEADRACE_OK)
        add_event(&answers[event.index], &event);
    assert_int_equal(status, HEADRACE_E_CLOSED);
    headrace_stream_destroy(stream);
}

static inline size_t read_ids(const json_t *array, int32_t *ids, size_t max)
{
    assert_true(json_array_size(array) <= max);
    for (size_t i = 0; i < json_array_size(array); i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return json_array_size(array);
}

static inline json_t *load_greedy_cases(void)
{
    json_error_t error;
    json_t *root = json_load_file(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny/expected_greedy.json", 0, &error);

    assert_non_null(root);
    return root;
}

/* A greedy request for ids, everything else off. */
static inline headrace_request greedy(const int32_t *ids, size_t n_ids)
{
    headrace_request request;

    headrace_request_init(&request);
    request.prompt_ids = ids;
    request.n_prompt_ids = n_ids;
    request.sampling.temperature = 0;
    return request;
}

#endif
