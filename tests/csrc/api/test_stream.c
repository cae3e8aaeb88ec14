/* Requests and streams through the public header, on the embedded model. */
#include "api_fixture.h"

#include <poll.h>
#include <pthread.h>

static headrace_model *model;
static headrace_engine *engine;
static json_t *cases_root;
static int32_t hello_ids[64]; /* the first expected case: "Hello!" */
static size_t n_hello;
static answer answers[8];

static int set_up(void **state)
{
    headrace_engine_options options = small_engine();

    (void)state;
    cases_root = load_greedy_cases();
    n_hello =
        read_ids(json_object_get(json_array_get(json_object_get(cases_root, "cases"), 0), "prompt_ids"), hello_ids, 64);
    model = open_model("tiny");
    engine = open_engine(model, &options);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    headrace_engine_close(engine);
    headrace_model_close(model);
    json_decref(cases_root);
    return 0;
}

/* ---------------------------------------------------------------- answers */

/* The short ones: this also runs under sanitizers. All of them go through the server in tests/python. */
static void greedy_answers_are_the_expected_ones(void **state)
{
    json_t *cases = json_object_get(cases_root, "cases"), *c;
    size_t i;

    (void)state;
    assert_true(json_array_size(cases) > 10);
    json_array_foreach(cases, i, c)
    {
        int32_t prompt[1024], want[ANSWER_IDS_MAX];
        size_t n_prompt = read_ids(json_object_get(c, "prompt_ids"), prompt, 1024);
        size_t n_want = read_ids(json_object_get(c, "output_ids"), want, ANSWER_IDS_MAX);
        headrace_request request = greedy(prompt, n_prompt);

        if (n_prompt > 30)
            continue;
        request.sampling.keep_special = true; /* the markers of tool calls are special tokens */
        run_request(engine, &request, answers);
        assert_int_equal(answers[0].n_ids, n_want);
        assert_memory_equal(answers[0].ids, want, n_want * sizeof *want);
        assert_string_equal(answers[0].text, json_string_value(json_object_get(c, "output_text")));
        assert_int_equal(answers[0].finish, HEADRACE_FINISH_STOP);
        assert_int_equal(answers[0].stop_id, 7);
        assert_int_equal(answers[0].stop_string, -1);
        assert_true(answers[0].saw_last);
    }
}

static void max_tokens_ends_an_answer_with_length(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.max_tokens = 4;
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].n_ids, 4);
    assert_int_equal(answers[0].finish, HEADRACE_FINISH_LENGTH);
    assert_int_equal(answers[0].stop_id, -1);
}

static void special_tokens_show_only_when_kept(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 10; /* the tenth is <|im_end|> */
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].ids[9], 7);
    assert_null(strstr(answers[0].text, "<|im_end|>"));
    request.sampling.keep_special = true;
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].ids[9], 7);
    assert_non_null(strstr(answers[0].text, "<|im_end|>"));
}

/* ---------------------------------------------------------------- stops */

/* How many ids it takes until their text contains stop. */
static size_t ids_until(const int32_t *ids, size_t n_ids, const char *stop)
{
    for (size_t n = 1; n <= n_ids; n++) {
        char *text;
        size_t len;
        bool is_there;

        assert_int_equal(headrace_decode(model, ids, n, HEADRACE_DECODE_SKIP_SPECIAL, &text, &len, NULL), HEADRACE_OK);
        is_there = strstr(text, stop) != NULL;
        headrace_free(text);
        if (is_there)
            return n;
    }
    return 0;
}

static void a_stop_string_cuts_text_and_counts_tokens(void **state)
{
    static const char *const stops[] = {"can I", "!", "o", " help you tod", "Hello! How can I help you today?", "?"};
    static answer whole;
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    run_request(engine, &request, &whole);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        for (int include = 0; include < 2; include++) {
            char want[ANSWER_TEXT_MAX];
            size_t cut;

            request = greedy(hello_ids, n_hello);
            request.sampling.n_stop = 2;
            request.sampling.stop[0] = "never written";
            request.sampling.stop[1] = stops[i];
            request.sampling.include_stop = include;
            run_request(engine, &request, answers);
            (void)snprintf(want, sizeof want, "%s", whole.text);
            cut = (size_t)(strstr(want, stops[i]) - want) + (include ? strlen(stops[i]) : 0);
            want[cut] = '\0';
            assert_string_equal(answers[0].text, want);
            assert_int_equal(answers[0].n_ids, ids_until(whole.ids, whole.n_ids, stops[i]));
            assert_memory_equal(answers[0].ids, whole.ids, answers[0].n_ids * sizeof(int32_t));
            assert_int_equal(answers[0].finish, HEADRACE_FINISH_STOP);
            assert_int_equal(answers[0].stop_string, 1);
            assert_int_equal(answers[0].stop_id, -1);
        }
}

static void min_tokens_holds_off_stop_strings_and_stop_ids(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.n_stop = 1;
    request.sampling.stop[0] = "How";
    request.sampling.min_tokens = 7;
    request.sampling.max_tokens = 12;
    run_request(engine, &request, answers);
    assert_string_equal(answers[0].text, "Hello! How can I help you today?");
    request.sampling.n_stop = 0;
    request.sampling.min_tokens = 12;
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].n_ids, 12);
    for (size_t i = 0; i < 11; i++)
        assert_int_not_equal(answers[0].ids[i], 7);
}

static void a_stop_id_ends_and_shows_only_with_include_stop(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.n_stop_ids = 1;
    request.sampling.stop_ids[0] = 439; /* the fifth of the answer */
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].n_ids, 5);
    assert_int_equal(answers[0].stop_id, 439);
    assert_string_equal(answers[0].text, "Hello! How can");
    request.sampling.include_stop = true;
    run_request(engine, &request, answers);
    assert_int_equal(answers[0].n_ids, 5);
    assert_string_equal(answers[0].text, "Hello! How can I");
}

/* ---------------------------------------------------------------- choices, seeds */

static void choice_i_draws_with_seed_plus_i(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);
    static answer solo;

    (void)state;
    request.sampling.temperature = 1.5f;
    request.sampling.has_seed = true;
    request.sampling.seed = 41;
    request.sampling.max_tokens = 24;
    request.sampling.ignore_eos = true;
    request.n = 3;
    run_request(engine, &request, answers);
    request.n = 1;
    for (uint32_t i = 0; i < 3; i++) {
        request.sampling.seed = 41 + i;
        run_request(engine, &request, &solo);
        assert_int_equal(answers[i].n_ids, 24);
        assert_memory_equal(answers[i].ids, solo.ids, 24 * sizeof(int32_t));
        assert_string_equal(answers[i].text, solo.text);
    }
    assert_memory_not_equal(answers[0].ids, answers[1].ids, 24 * sizeof(int32_t));
    assert_true(answers[0].saw_last + answers[1].saw_last + answers[2].saw_last == 1);
}

static void a_stop_string_ends_its_choice_only(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);
    size_t n_stopped = 0, n_length = 0;

    (void)state;
    request.sampling.temperature = 2.0f;
    request.sampling.has_seed = true;
    request.sampling.seed = 5;
    request.sampling.max_tokens = 30;
    request.sampling.ignore_eos = true;
    request.sampling.n_stop = 1;
    request.sampling.stop[0] = "a";
    request.n = 8;
    run_request(engine, &request, answers);
    for (uint32_t i = 0; i < 8; i++) {
        assert_null(strchr(answers[i].text, 'a'));
        n_stopped += answers[i].finish == HEADRACE_FINISH_STOP;
        n_length += answers[i].finish == HEADRACE_FINISH_LENGTH;
        if (answers[i].finish == HEADRACE_FINISH_LENGTH)
            assert_int_equal(answers[i].n_ids, 30);
    }
    assert_int_equal(n_stopped + n_length, 8);
    assert_true(n_stopped > 0);
}

/* ---------------------------------------------------------------- logprobs */

/* Log softmax of one row at id, and the id's rank, by the plain formula. */
static double plain_logprob(const float *logits, uint32_t n, int32_t id, uint32_t *rank)
{
    double top = -HUGE_VAL, sum = 0.0;

    *rank = 1;
    for (uint32_t i = 0; i < n; i++) {
        top = fmax(top, (double)logits[i]);
        *rank += logits[i] > logits[id] || (logits[i] == logits[id] && (int32_t)i < id);
    }
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    return (double)logits[id] - top - log(sum);
}

static void logprobs_are_those_of_the_computed_logits(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);
    static headrace_token_logprobs prompt[64];
    headrace_stream *stream;
    headrace_event event;
    headrace_model_info info;
    int32_t ids[128] = {0};
    float *logits;
    size_t n_ids, n_prompt_events = 0;
    uint32_t rank;

    (void)state;
    headrace_model_get_info(model, &info);
    request.sampling.n_logprobs = 5;
    request.sampling.n_prompt_logprobs = 2;
    stream = submit(engine, &request);
    memset(answers, 0, sizeof *answers);
    while (headrace_stream_next(stream, 60000000, &event) == HEADRACE_OK) {
        add_event(answers, &event);
        if (event.prompt_logprobs) {
            assert_int_equal(event.n_prompt_logprobs, n_hello - 1);
            memcpy(prompt, event.prompt_logprobs, (n_hello - 1) * sizeof *prompt);
            n_prompt_events++;
        }
        assert_int_equal(event.n_prompt_tokens, n_hello);
        assert_true(event.total_us >= event.ttft_us && event.ttft_us >= event.queue_us && event.ttft_us > 0);
    }
    headrace_stream_destroy(stream);
    assert_int_equal(n_prompt_events, 1);

    n_ids = n_hello + answers[0].n_ids;
    assert_true(n_ids <= 128);
    memcpy(ids, hello_ids, n_hello * sizeof *ids);
    memcpy(ids + n_hello, answers[0].ids, answers[0].n_ids * sizeof *ids);
    logits = malloc(n_ids * info.vocab_size * sizeof *logits);
    assert_int_equal(headrace_compute_logits(model, NULL, ids, n_ids, logits, NULL), HEADRACE_OK);
    for (size_t i = 1; i < n_ids; i++) {
        const headrace_token_logprobs *found = i < n_hello ? &prompt[i - 1] : &answers[0].logprobs[i - n_hello];
        const float *row = logits + (i - 1) * info.vocab_size;
        double want = plain_logprob(row, info.tokenizer_size, ids[i], &rank);

        assert_int_equal(found->id, ids[i]);
        assert_int_equal(found->rank, rank);
        assert_true(fabs((double)found->logprob - want) < 1e-4);
        assert_int_equal(found->n_top, i < n_hello ? 2 : 5);
        for (uint32_t t = 0; t < found->n_top; t++) {
            want = plain_logprob(row, info.tokenizer_size, found->top_ids[t], &rank);
            assert_int_equal(rank, t + 1);
            assert_true(fabs((double)found->top_logprobs[t] - want) < 1e-4);
        }
    }
    free(logits);
}

/* ---------------------------------------------------------------- ends */

static void cancel_ends_every_choice_with_abort(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);
    headrace_stream *stream;
    headrace_event event;
    uint32_t n_aborted = 0;

    (void)state;
    request.sampling.ignore_eos = true;
    request.n = 2;
    request.user = &n_hello;
    stream = submit(engine, &request);
    assert_ptr_equal(headrace_stream_user(stream), &n_hello);
    assert_int_equal(headrace_stream_next(stream, 60000000, &event), HEADRACE_OK);
    headrace_stream_cancel(stream);
    headrace_stream_cancel(stream);
    while (headrace_stream_next(stream, 60000000, &event) == HEADRACE_OK)
        n_aborted += event.finish == HEADRACE_FINISH_ABORT;
    assert_int_equal(n_aborted, 2);
    assert_int_equal(headrace_stream_next(stream, 0, &event), HEADRACE_E_CLOSED);
    headrace_stream_destroy(stream);
}

static void destroying_a_running_stream_frees_what_it_held(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);
    headrace_stats stats;

    (void)state;
    request.sampling.ignore_eos = true;
    for (int i = 0; i < 20; i++)
        headrace_stream_destroy(submit(engine, &request));
    request.sampling.ignore_eos = false;
    run_request(engine, &request, answers); /* served after those before it were dropped */
    for (int i = 0; i < 10000; i++) {
        headrace_engine_get_stats(engine, &stats);
        if (stats.n_running == 0 && stats.n_waiting == 0 && stats.n_slots_used == 0)
            break;
        (void)poll(NULL, 0, 5);
    }
    assert_int_equal(stats.n_running + stats.n_waiting + stats.n_slots_used, 0);
    assert_true(stats.healthy);
}

/* ---------------------------------------------------------------- the queue */

enum { MANY = 40 };

static headrace_request many_request(uint32_t i)
{
    headrace_request request = greedy(hello_ids, n_hello);

    request.sampling.temperature = i % 2 ? 1.0f : 0.0f;
    request.sampling.has_seed = true;
    request.sampling.seed = i;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 5 + i % 13;
    request.n = 1 + i % 3;
    return request;
}

static void many_streams_on_one_queue_equal_their_solo_runs(void **state)
{
    headrace_queue *queue;
    headrace_stream *streams[MANY], *ready[7];
    answer(*found)[3] = calloc(MANY, sizeof *found);
    size_t n_open = MANY, n_ready;
    headrace_event event;

    (void)state;
    assert_int_equal(headrace_queue_create(&queue, NULL), HEADRACE_OK);
    for (uint32_t i = 0; i < MANY; i++) {
        headrace_request request = many_request(i);

        request.queue = queue;
        request.user = found[i];
        streams[i] = submit(engine, &request);
    }
    while (n_open > 0) {
        struct pollfd watch = {.fd = headrace_queue_fd(queue), .events = POLLIN};

        assert_int_equal(poll(&watch, 1, 60000), 1);
        n_ready = headrace_queue_take(queue, ready, 7);
        for (size_t r = 0; r < n_ready; r++) {
            answer *own = headrace_stream_user(ready[r]);

            while (headrace_stream_next(ready[r], 0, &event) == HEADRACE_OK) {
                add_event(&own[event.index], &event);
                n_open -= event.is_last;
            }
        }
    }
    for (uint32_t i = 0; i < MANY; i++)
        headrace_stream_destroy(streams[i]);
    headrace_queue_destroy(queue);
    for (uint32_t i = 0; i < MANY; i += 7) {
        headrace_request request = many_request(i);

        run_request(engine, &request, answers);
        for (uint32_t c = 0; c < request.n; c++) {
            assert_int_equal(found[i][c].n_ids, answers[c].n_ids);
            assert_memory_equal(found[i][c].ids, answers[c].ids, answers[c].n_ids * sizeof(int32_t));
            assert_string_equal(found[i][c].text, answers[c].text);
        }
    }
    free(found);
}

static void a_queue_may_go_as_soon_as_its_streams_are_destroyed(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.ignore_eos = true;
    for (int round = 0; round < 30; round++) {
        headrace_stream *streams[4], *ready[4];

        assert_int_equal(headrace_queue_create(&request.queue, NULL), HEADRACE_OK);
        for (int i = 0; i < 4; i++)
            streams[i] = submit(engine, &request);
        while (round % 2 && headrace_queue_take(request.queue, ready, 4) == 0)
            (void)poll(NULL, 0, 1);
        for (int i = 0; i < 4; i++)
            headrace_stream_destroy(streams[i]);
        assert_int_equal(headrace_queue_take(request.queue, ready, 4), 0);
        headrace_queue_destroy(request.queue);
    }
}

/* ---------------------------------------------------------------- threads */

static void *ask_repeatedly(void *argument)
{
    answer *own = argument;

    for (int i = 0; i < 5; i++) {
        headrace_request request = greedy(hello_ids, n_hello);

        run_request(engine, &request, own);
    }
    return NULL;
}

static void an_engine_may_be_used_from_any_thread(void **state)
{
    pthread_t threads[4];

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_repeatedly, &answers[i]), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < 4; i++)
        assert_string_equal(answers[i].text, "Hello! How can I help you today?");
}

static void *serve_queue(void *argument)
{
    headrace_queue *queue = argument;
    headrace_stream *ready[8];
    headrace_event event;
    size_t n_ended = 0;

    while (n_ended < MANY * 8) {
        struct pollfd watch = {.fd = headrace_queue_fd(queue), .events = POLLIN};
        size_t n_ready;

        if (poll(&watch, 1, 60000) != 1)
            return NULL;
        n_ready = headrace_queue_take(queue, ready, 8);
        for (size_t r = 0; r < n_ready; r++) {
            bool is_last = false;

            while (!is_last && headrace_stream_next(ready[r], 0, &event) == HEADRACE_OK)
                is_last = event.is_last;
            if (is_last)
                headrace_stream_destroy(ready[r]);
            n_ended += is_last;
        }
    }
    return queue;
}

/* The first token may come before submit returns: the queue must not name a stream that is not whole yet. */
static void another_thread_may_serve_the_queue(void **state)
{
    headrace_request request = greedy(hello_ids, 1);
    headrace_stream *stream;
    pthread_t thread;
    void *served = NULL;

    (void)state;
    assert_int_equal(headrace_queue_create(&request.queue, NULL), HEADRACE_OK);
    assert_int_equal(pthread_create(&thread, NULL, serve_queue, request.queue), 0);
    request.sampling.max_tokens = 1;
    for (int i = 0; i < MANY * 8; i++)
        while (headrace_submit(engine, &request, &stream, &err) == HEADRACE_E_QUEUE_FULL)
            (void)poll(NULL, 0, 1);
    assert_int_equal(pthread_join(thread, &served), 0);
    assert_ptr_equal(served, request.queue);
    headrace_queue_destroy(request.queue);
}

static void *cancel_soon(void *stream)
{
    headrace_stream_cancel(stream);
    return NULL;
}

static void cancel_may_come_from_another_thread(void **state)
{
    headrace_request request = greedy(hello_ids, n_hello);

    (void)state;
    request.sampling.ignore_eos = true;
    for (int i = 0; i < 10; i++) {
        headrace_stream *stream = submit(engine, &request);
        headrace_event event = {0};
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, cancel_soon, stream), 0);
        while (headrace_stream_next(stream, 60000000, &event) == HEADRACE_OK)
            if (event.is_last)
                assert_int_equal(event.finish, HEADRACE_FINISH_ABORT);
        assert_int_equal(pthread_join(thread, NULL), 0);
        headrace_stream_destroy(stream);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_answers_are_the_expected_ones),
        cmocka_unit_test(max_tokens_ends_an_answer_with_length),
        cmocka_unit_test(special_tokens_show_only_when_kept),
        cmocka_unit_test(a_stop_string_cuts_text_and_counts_tokens),
        cmocka_unit_test(min_tokens_holds_off_stop_strings_and_stop_ids),
        cmocka_unit_test(a_stop_id_ends_and_shows_only_with_include_stop),
        cmocka_unit_test(choice_i_draws_with_seed_plus_i),
        cmocka_unit_test(a_stop_string_ends_its_choice_only),
        cmocka_unit_test(logprobs_are_those_of_the_computed_logits),
        cmocka_unit_test(cancel_ends_every_choice_with_abort),
        cmocka_unit_test(destroying_a_running_stream_frees_what_it_held),
        cmocka_unit_test(many_streams_on_one_queue_equal_their_solo_runs),
        cmocka_unit_test(a_queue_may_go_as_soon_as_its_streams_are_destroyed),
        cmocka_unit_test(an_engine_may_be_used_from_any_thread),
        cmocka_unit_test(another_thread_may_serve_the_queue),
        cmocka_unit_test(cancel_may_come_from_another_thread),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
