/* The engine as its users see it, over the hashing backend: endings, limits, faults, memory. Nothing here depends on
 * time: a gate in the backend holds steps back until the test lets them pass.
 */
#include "allocations.h"
#include "engine_client.h"
#include "fake_backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static uint64_t count_allocations(void)
{
    return n_allocations;
}

/* ---------------------------------------------------------------- the bench */

enum { N_PROMPT = 30, MODEL_LEN = 200, PAGE_BYTES = 4 * 8 };

static const hr_backend_ops *ops = &hr_backend_fake;
static hr_fake fake;
static hr_engine *engine;
static uint32_t window;
static int32_t prompt[MODEL_LEN + 1];
static const int32_t eos_ids[] = {FAKE_EOS};

static hr_engine_config usual_config(void)
{
    return (hr_engine_config){.model = &fake.model,
                              .backend_ops = ops,
                              .max_model_len = MODEL_LEN,
                              .max_num_seqs = 4,
                              .max_num_batched_tokens = 16,
                              .page_tokens = 4,
                              .kv_cache_bytes = 400 * PAGE_BYTES,
                              .seed = 1};
}

static void open_engine(const hr_engine_config *config)
{
    headrace_error err = {0};

    hr_fake_init(&fake, 3, 3, 1000);
    fake.count_allocations = count_allocations;
    window = hr_arch_warmup_rows(&fake.model.arch);
    client_prompt(prompt, MODEL_LEN + 1, 8, 1);
    if (hr_engine_open(config, &engine, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
}

static void open_usual(void)
{
    hr_engine_config config = usual_config();

    config.model = &fake.model;
    open_engine(&config);
}

static headrace_stats stats(void)
{
    headrace_stats out;

    hr_engine_get_stats(engine, &out);
    return out;
}

/* Closes after checking that nothing is left behind. */
static void close_engine(void)
{
    hr_fake_allow(&fake, UINT64_MAX);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_int_equal(stats().n_pages_used, 0);
    assert_int_equal(stats().n_slots_used, 0);
    assert_int_equal(stats().n_running, 0);
    assert_int_equal(stats().n_waiting, 0);
    hr_engine_close(engine);
    hr_fake_deinit(&fake);
}

static hr_submit ask(const headrace_sampling *sampling, uint32_t n)
{
    return (hr_submit){
        .prompt_ids = prompt, .n_prompt = N_PROMPT, .n = n, .sampling = sampling, .eos_ids = eos_ids, .n_eos_ids = 1};
}

static hr_request *submit(const hr_submit *what)
{
    hr_request *request;
    headrace_error err = {0};

    if (hr_engine_submit(engine, what, &request, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return request;
}

static void assert_equal_answers(const client_answer *found, const client_answer *expected)
{
    assert_int_equal(found->n_ids, expected->n_ids);
    assert_memory_equal(found->ids, expected->ids, expected->n_ids * sizeof(int32_t));
    assert_int_equal(found->finish, expected->finish);
    assert_int_equal(found->stop_id, expected->stop_id);
}

/* ---------------------------------------------------------------- answers */

static void an_answer_is_what_the_model_says(void **state)
{
    headrace_sampling sampling = client_greedy(40);
    hr_submit what = ask(&sampling, 1);
    client_answer answer, truth;

    (void)state;
    open_usual();
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    client_truth(&what, 0, 0, MODEL_LEN, window, &truth);
    assert_equal_answers(&answer, &truth);
    sampling.max_tokens = 0; /* the rest of the context */
    sampling.ignore_eos = true;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    client_truth(&what, 0, 0, MODEL_LEN, window, &truth);
    assert_equal_answers(&answer, &truth);
    assert_int_equal(answer.n_ids, MODEL_LEN - N_PROMPT);
    assert_int_equal(stats().prompt_tokens_cached, 28);
    close_engine();
}

static void choices_draw_with_seeds_that_count_up(void **state)
{
    headrace_sampling sampling = client_greedy(20);
    hr_submit what = ask(&sampling, 5);
    client_answer answers[5], truth;

    (void)state;
    open_usual();
    sampling.temperature = 1;
    sampling.has_seed = true;
    sampling.seed = 77;
    assert_int_equal(client_ask(engine, &what, answers), HEADRACE_OK);
    for (uint32_t i = 0; i < 5; i++) {
        client_truth(&what, i, 77, MODEL_LEN, window, &truth);
        assert_equal_answers(&answers[i], &truth);
    }
    close_engine();
}

static void requests_without_a_seed_differ_and_repeat_with_the_engines_seed(void **state)
{
    headrace_sampling sampling = client_greedy(20);
    hr_submit what = ask(&sampling, 1);
    client_answer answers[2][2];

    (void)state;
    sampling.temperature = 1;
    for (uint32_t run = 0; run < 2; run++) {
        open_usual();
        for (uint32_t i = 0; i < 2; i++)
            assert_int_equal(client_ask(engine, &what, &answers[run][i]), HEADRACE_OK);
        close_engine();
    }
    assert_equal_answers(&answers[0][0], &answers[1][0]);
    assert_equal_answers(&answers[0][1], &answers[1][1]);
    assert_memory_not_equal(answers[0][0].ids, answers[0][1].ids, 20 * sizeof(int32_t));
}

static void a_stop_id_is_delivered_and_ends_the_answer_in_one_event(void **state)
{
    headrace_sampling sampling = client_greedy(40);
    hr_submit what = ask(&sampling, 1);
    client_answer truth;
    hr_token_event event = {0};
    hr_request *request;
    uint32_t n = 0;

    (void)state;
    open_usual();
    client_truth(&what, 0, 0, MODEL_LEN, window, &truth);
    sampling.n_stop_ids = 2;
    sampling.stop_ids[0] = 999;
    sampling.stop_ids[1] = truth.ids[5];
    request = submit(&what);
    while (event.finish == HEADRACE_FINISH_NONE) {
        assert_true(hr_request_wait(request, 60000000));
        while (hr_request_take(request, &event)) {
            assert_true(event.has_token);
            assert_int_equal(event.id, truth.ids[n++]);
        }
    }
    assert_int_equal(n, 6);
    assert_int_equal(event.finish, HEADRACE_FINISH_STOP);
    assert_int_equal(event.stop_id, truth.ids[5]);
    assert_true(hr_request_is_done(request));
    hr_request_release(request);
    close_engine();
}

static void logprobs_come_with_every_token_and_every_prompt_token(void **state)
{
    headrace_sampling sampling = client_greedy(10);
    hr_submit what = ask(&sampling, 2);
    client_answer answers[2];
    hr_fake_truth running = {0};
    hr_request *request;
    const headrace_token_logprobs *scores;

    (void)state;
    open_usual();
    sampling.n_logprobs = 3;
    sampling.n_prompt_logprobs = 0;
    sampling.ignore_eos = true;
    for (uint32_t round = 0; round < 2;
         round++) { /* the second finds the prompt in the cache and must run it all the same */
        memset(answers, 0, sizeof answers);
        memset(&running, 0, sizeof running);
        request = submit(&what);
        client_collect(request, answers);
        scores = hr_request_prompt_logprobs(request);
        assert_non_null(scores);
        for (uint32_t i = 0; i + 1 < N_PROMPT; i++) {
            assert_int_equal(scores[i].id, prompt[i + 1]);
            assert_true(scores[i].logprob ==
                        hr_fake_score(hr_fake_truth_at(&running, prompt, i, window), prompt[i + 1]));
        }
        assert_int_equal(hr_request_get_times(request).n_cached_tokens, 0);
        for (uint32_t i = 0; i < 2; i++)
            assert_true(answers[i].logprobs[0] ==
                        hr_fake_score(hr_fake_truth_at(&running, prompt, N_PROMPT - 1, window), answers[i].ids[0]));
        hr_request_release(request);
    }
    close_engine();
}

static void times_and_cached_tokens_are_reported(void **state)
{
    headrace_sampling sampling = client_greedy(3);
    hr_submit what = ask(&sampling, 1);
    client_answer answer = {0};
    hr_request_times times;
    hr_request *request;

    (void)state;
    open_usual();
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    memset(&answer, 0, sizeof answer);
    request = submit(&what);
    client_collect(request, &answer);
    times = hr_request_get_times(request);
    assert_true(times.submitted_us <= times.started_us && times.started_us <= times.first_token_us);
    assert_true(times.first_token_us <= times.finished_us && times.submitted_us > 0);
    assert_int_equal(times.n_cached_tokens, 28);
    hr_request_release(request);
    assert_int_equal(stats().ttft_s.count, 2);
    assert_int_equal(stats().generation_tokens, 6);
    assert_int_equal(stats().itl_s.count, 4);
    assert_int_equal(stats().prompt_tokens, 2 * N_PROMPT);
    assert_int_equal(stats().finished_length + stats().finished_stop, 2);
    close_engine();
}

static void preemption_changes_no_token(void **state)
{
    enum { N = 6 };
    headrace_sampling sampling = client_greedy(60);
    hr_engine_config config = usual_config();
    hr_request *requests[N];
    client_answer answers[N], truth;
    hr_submit what = ask(&sampling, 1);

    (void)state;
    config.max_model_len = 0;
    config.kv_cache_bytes = 30 * PAGE_BYTES;
    open_engine(&config);
    sampling.temperature = 1;
    sampling.has_seed = true;
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    memset(answers, 0, sizeof answers);
    for (uint32_t i = 0; i < N; i++) {
        sampling.seed = i;
        requests[i] = submit(&what);
    }
    hr_fake_allow(&fake, UINT64_MAX);
    for (uint32_t i = 0; i < N; i++) {
        client_collect(requests[i], &answers[i]);
        client_truth(&what, 0, i, MODEL_LEN, window, &truth);
        assert_equal_answers(&answers[i], &truth);
        hr_request_release(requests[i]);
    }
    assert_true(stats().preemptions > 0);
    close_engine();
}

/* ---------------------------------------------------------------- endings from outside */

static void a_cancelled_request_ends_within_one_step_wherever_it_is(void **state)
{
    headrace_sampling sampling = client_greedy(100);
    hr_submit what = ask(&sampling, 1);
    hr_request *requests[6];
    client_answer answer;

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    for (uint32_t i = 0; i < 6; i++) { /* 4 run, of them some in the middle of their prompt; 2 wait */
        prompt[0] = (int32_t)i;
        requests[i] = submit(&what);
    }
    hr_fake_allow(&fake, 2);
    hr_fake_await_step(&fake);
    assert_true(stats().n_waiting >= 2);
    for (uint32_t i = 0; i < 6; i++) {
        hr_request_cancel(requests[i]);
        hr_request_cancel(requests[i]);
    }
    hr_fake_allow(&fake, ops->max_steps_in_flight); /* what is in flight is waited for, nothing new is begun */
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_int_equal(atomic_load(&fake.n_steps), 2 + ops->max_steps_in_flight);
    for (uint32_t i = 0; i < 6; i++) {
        memset(&answer, 0, sizeof answer);
        client_collect(requests[i], &answer);
        assert_int_equal(answer.finish, HEADRACE_FINISH_ABORT);
        hr_request_release(requests[i]);
    }
    assert_int_equal(stats().finished_cancelled, 6);
    close_engine();
}

static void releasing_a_running_request_cancels_it(void **state)
{
    headrace_sampling sampling = client_greedy(100);
    hr_submit what = ask(&sampling, 3);

    (void)state;
    open_usual();
    hr_fake_gate(&fake);
    hr_request_release(submit(&what));
    hr_fake_allow(&fake, ops->max_steps_in_flight);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_true(atomic_load(&fake.n_steps) <= ops->max_steps_in_flight);
    close_engine();
}

static void a_stopped_choice_ends_and_its_siblings_go_on(void **state)
{
    headrace_sampling sampling = client_greedy(30);
    hr_submit what = ask(&sampling, 2);
    client_answer answers[2], truth;
    hr_request *request;
    uint32_t n_before;

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    memset(answers, 0, sizeof answers);
    request = submit(&what);
    hr_fake_allow(&fake, 6);
    hr_fake_await_step(&fake);
    client_take_all(request, answers);
    n_before = answers[0].n_ids;
    assert_true(n_before > 0);
    hr_request_stop_choice(request, 0);
    hr_request_stop_choice(request, 99); /* no such choice: nothing happens */
    hr_fake_allow(&fake, UINT64_MAX);
    client_collect(request, answers);
    client_truth(&what, 1, 0, MODEL_LEN, window, &truth);
    assert_int_equal(answers[0].n_ids, n_before);
    assert_int_equal(answers[0].finish, HEADRACE_FINISH_STOP);
    assert_int_equal(answers[0].stop_id, -1);
    assert_equal_answers(&answers[1], &truth);
    hr_request_release(request);
    close_engine();
}

static void a_stopped_request_given_back_at_once_counts_as_stopped(void **state)
{
    headrace_sampling sampling = client_greedy(30);
    hr_submit what = ask(&sampling, 2);
    client_answer answers[2];
    hr_request *request;

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    memset(answers, 0, sizeof answers);
    request = submit(&what);
    hr_fake_allow(&fake, 6);
    hr_fake_await_step(&fake);
    client_take_all(request, answers);
    hr_request_stop_choice(request, 0);
    hr_request_release(request);
    hr_fake_allow(&fake, UINT64_MAX);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_int_equal(stats().finished_stop, 1);
    assert_int_equal(stats().finished_cancelled, 1);
    close_engine();
}

static void closing_ends_every_request_with_closed(void **state)
{
    headrace_sampling sampling = client_greedy(100);
    hr_submit what = ask(&sampling, 2);
    hr_request *requests[4];
    client_answer answers[2];

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    for (uint32_t i = 0; i < 4; i++)
        requests[i] = submit(&what);
    hr_fake_await_step(&fake);
    hr_fake_allow(&fake, 3);
    hr_fake_await_step(&fake);
    hr_request_cancel(requests[3]);
    hr_request_release(requests[3]);
    hr_fake_allow(&fake, UINT64_MAX);
    hr_engine_close(engine);
    for (uint32_t i = 0; i < 3; i++) { /* handles outlive the engine */
        memset(answers, 0, sizeof answers);
        client_collect(requests[i], answers);
        for (uint32_t k = 0; k < 2; k++)
            assert_true(answers[k].finish == HEADRACE_FINISH_LENGTH ||
                        (answers[k].finish == HEADRACE_FINISH_ERROR && answers[k].error == HEADRACE_E_CLOSED));
        hr_request_cancel(requests[i]);
        hr_request_release(requests[i]);
    }
    hr_fake_deinit(&fake);
}

static void draining_waits_refuses_new_work_and_times_out(void **state)
{
    headrace_sampling sampling = client_greedy(5);
    hr_submit what = ask(&sampling, 1);
    client_answer answer = {0};
    hr_request *request, *refused = NULL;
    headrace_error err = {0};

    (void)state;
    open_usual();
    hr_fake_gate(&fake);
    request = submit(&what);
    assert_int_equal(hr_engine_drain(engine, 1000), HEADRACE_E_TIMEOUT);
    assert_int_equal(hr_engine_submit(engine, &what, &refused, &err), HEADRACE_E_CLOSED);
    assert_null(refused);
    hr_fake_allow(&fake, UINT64_MAX);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    client_collect(request, &answer);
    assert_true(answer.finish == HEADRACE_FINISH_LENGTH || answer.finish == HEADRACE_FINISH_STOP);
    hr_request_release(request);
    close_engine();
}

static void a_request_that_waits_too_long_ends_with_queue_full(void **state)
{
    headrace_sampling sampling = client_greedy(5);
    hr_submit what = ask(&sampling, 1);
    hr_engine_config config = usual_config();
    hr_request *running, *waiting;
    client_answer first = {0}, second = {0};

    (void)state;
    config.max_num_seqs = 1;
    config.queue_timeout_us = 20000;
    open_engine(&config);
    hr_fake_gate(&fake);
    running = submit(&what);
    hr_fake_await_step(&fake);
    waiting = submit(&what);
    (void)usleep(25000);
    hr_fake_allow(&fake, UINT64_MAX);
    client_collect(waiting, &second);
    client_collect(running, &first);
    assert_int_not_equal(first.finish, HEADRACE_FINISH_ERROR);
    assert_int_equal(second.finish, HEADRACE_FINISH_ERROR);
    assert_int_equal(second.error, HEADRACE_E_QUEUE_FULL);
    assert_int_equal(stats().rejected_queue_timeout, 1);
    hr_request_release(running);
    hr_request_release(waiting);
    close_engine();
}

/* ---------------------------------------------------------------- limits */

static void what_cannot_fit_the_context_is_refused_with_both_numbers(void **state)
{
    headrace_sampling sampling = client_greedy(MODEL_LEN - N_PROMPT);
    hr_submit what = ask(&sampling, 1);
    client_answer answer;
    hr_request *request;
    headrace_error err = {0};

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_int_equal(answer.n_ids, MODEL_LEN - N_PROMPT);
    sampling.max_tokens++;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_CONTEXT);
    assert_non_null(strstr(err.message, "201"));
    assert_non_null(strstr(err.message, "200"));
    sampling.max_tokens = UINT32_MAX;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_CONTEXT);
    sampling.max_tokens = 0;
    what.n_prompt = MODEL_LEN - 1;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_int_equal(answer.n_ids, 1);
    what.n_prompt = MODEL_LEN;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_CONTEXT);
    assert_int_equal(stats().rejected_context, 3);
    close_engine();
}

static void prompts_and_choices_out_of_range_are_refused(void **state)
{
    headrace_sampling sampling = client_greedy(5);
    hr_submit what = ask(&sampling, HEADRACE_N_MAX + 1);
    hr_request *request;
    headrace_error err = {0};

    (void)state;
    open_usual();
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_ARGUMENT);
    assert_string_equal(err.param, "n");
    what.n = 1;
    prompt[3] = FAKE_VOCAB;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_ARGUMENT);
    assert_non_null(strstr(err.message, "prompt token 3 is 1000"));
    prompt[3] = -1;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_ARGUMENT);
    what.n_prompt = 0;
    assert_int_equal(hr_engine_submit(engine, &what, &request, &err), HEADRACE_E_ARGUMENT);
    close_engine();
}

static void the_queue_takes_as_many_requests_as_it_may(void **state)
{
    headrace_sampling sampling = client_greedy(5);
    hr_submit what = ask(&sampling, 1);
    hr_engine_config config = usual_config();
    hr_request *requests[4], *refused;
    headrace_error err = {0};

    (void)state;
    config.max_num_seqs = 1;
    config.max_num_queued_reqs = 3;
    open_engine(&config);
    hr_fake_gate(&fake);
    requests[0] = submit(&what);
    hr_fake_await_step(&fake); /* it runs: the queue is empty */
    for (uint32_t i = 1; i < 4; i++)
        requests[i] = submit(&what);
    assert_int_equal(hr_engine_submit(engine, &what, &refused, &err), HEADRACE_E_QUEUE_FULL);
    assert_non_null(strstr(err.message, "limit (max_num_queued_reqs) is 3"));
    assert_int_equal(stats().rejected_queue_full, 1);
    hr_fake_allow(&fake, UINT64_MAX);
    for (uint32_t i = 0; i < 4; i++) {
        client_answer answer = {0};

        client_collect(requests[i], &answer);
        hr_request_release(requests[i]);
    }
    hr_request_release(submit(&what)); /* room again */
    close_engine();
}

static void the_queue_takes_as_many_prompt_tokens_as_it_may(void **state)
{
    headrace_sampling sampling = client_greedy(5);
    hr_submit what = ask(&sampling, 1);
    hr_engine_config config = usual_config();
    hr_request *running, *first, *second, *refused;
    headrace_error err = {0};

    (void)state;
    config.max_num_seqs = 1;
    config.max_num_queued_tokens = 50;
    open_engine(&config);
    hr_fake_gate(&fake);
    what.n_prompt = 60; /* over the limit alone, but nothing waits */
    running = submit(&what);
    hr_fake_await_step(&fake);
    what.n_prompt = 30;
    first = submit(&what);
    what.n_prompt = 21;
    assert_int_equal(hr_engine_submit(engine, &what, &refused, &err), HEADRACE_E_QUEUE_FULL);
    assert_non_null(strstr(err.message, "30 prompt tokens are waiting, 21 more"));
    what.n_prompt = 20;
    second = submit(&what);
    hr_request_release(second);
    hr_request_release(first);
    hr_request_release(running);
    close_engine();
}

/* ---------------------------------------------------------------- faults */

/* The fault shows when the sixth step is begun, or when it is waited for. */
static void fail_in_the_sixth_step(_Atomic int64_t *at)
{
    headrace_sampling sampling = client_greedy(50);
    hr_submit what = ask(&sampling, 2);
    hr_request *requests[4], *refused;
    client_answer answers[2];
    headrace_error err = {0};

    open_usual();
    sampling.ignore_eos = true;
    hr_fake_gate(&fake);
    atomic_store(at, 5);
    for (uint32_t i = 0; i < 4; i++)
        requests[i] = submit(&what);
    hr_fake_allow(&fake, UINT64_MAX);
    for (uint32_t i = 0; i < 4; i++) {
        memset(answers, 0, sizeof answers);
        client_collect(requests[i], answers);
        for (uint32_t k = 0; k < 2; k++) {
            assert_int_equal(answers[k].finish, HEADRACE_FINISH_ERROR);
            assert_int_equal(answers[k].error, HEADRACE_E_ENGINE);
        }
        hr_request_release(requests[i]);
    }
    assert_false(stats().healthy);
    assert_int_equal(stats().finished_error, 8);
    assert_int_equal(hr_engine_submit(engine, &what, &refused, &err), HEADRACE_E_ENGINE);
    close_engine();
}

static void a_backend_failure_ends_every_request_and_the_engine_refuses_more(void **state)
{
    (void)state;
    fail_in_the_sixth_step(&fake.fail_at_step);
    fail_in_the_sixth_step(&fake.fail_at_wait);
}

static void bad_logits_end_their_request_alone_until_there_are_three(void **state)
{
    headrace_sampling sampling = client_greedy(20);
    hr_submit what = ask(&sampling, 1), bad_what;
    int32_t bad_prompt[N_PROMPT];
    client_answer answer, bad[2], truth;
    hr_request *refused;

    (void)state;
    open_usual();
    memcpy(bad_prompt, prompt, sizeof bad_prompt);
    bad_prompt[0] = FAKE_BAD_ID;
    bad_what = what;
    bad_what.prompt_ids = bad_prompt;
    bad_what.n = 2;
    client_truth(&what, 0, 0, MODEL_LEN, window, &truth);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(stats().healthy);
        assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
        assert_equal_answers(&answer, &truth);
        assert_int_equal(client_ask(engine, &bad_what, bad), HEADRACE_OK);
        for (uint32_t k = 0; k < 2; k++) {
            assert_int_equal(bad[k].n_ids, 0);
            assert_int_equal(bad[k].error, HEADRACE_E_ENGINE);
        }
    }
    assert_false(stats().healthy);
    assert_int_equal(stats().nan_logits, 3);
    assert_int_equal(hr_engine_submit(engine, &what, &refused, NULL), HEADRACE_E_ENGINE);
    close_engine();
}

static void a_failed_allocation_refuses_the_request_and_nothing_else(void **state)
{
    headrace_sampling sampling = client_greedy(20);
    hr_submit what = ask(&sampling, 3);
    headrace_bias bias = {.id = 3, .value = 0};
    client_answer answers[3], truth;
    hr_request *request = NULL;
    headrace_status status = HEADRACE_E_MEMORY;
    uint32_t n_refused = 0;

    (void)state;
    open_usual();
    sampling.n_logprobs = 1;
    sampling.n_prompt_logprobs = 1;
    sampling.bias = &bias;
    sampling.n_bias = 1;
    for (; status == HEADRACE_E_MEMORY; n_refused++) {
        fail_after = n_refused;
        status = hr_engine_submit(engine, &what, &request, NULL);
        fail_after = -1;
    }
    assert_int_equal(status, HEADRACE_OK);
    assert_true(n_refused > 8);
    memset(answers, 0, sizeof answers);
    client_collect(request, answers);
    client_truth(&what, 2, 0, MODEL_LEN, window, &truth);
    assert_equal_answers(&answers[2], &truth);
    hr_request_release(request);
    close_engine();
}

static void an_engine_without_memory_does_not_open(void **state)
{
    headrace_status status = HEADRACE_E_MEMORY;
    uint32_t n_refused = 0;

    (void)state;
    hr_fake_init(&fake, 3, 3, 1000);
    for (; status == HEADRACE_E_MEMORY; n_refused++) {
        hr_engine_config config = usual_config();

        fail_after = n_refused;
        status = hr_engine_open(&config, &engine, NULL);
        fail_after = -1;
    }
    assert_int_equal(status, HEADRACE_OK);
    assert_true(n_refused > 10);
    hr_engine_close(engine);
    hr_fake_deinit(&fake);
}

static void a_step_allocates_nothing(void **state)
{
    headrace_sampling sampling = client_greedy(60);
    hr_submit what = ask(&sampling, 3);
    hr_engine_config config = usual_config();
    hr_request *requests[5];
    client_answer answers[3];

    (void)state;
    config.max_model_len = 0;
    config.kv_cache_bytes = 50 * PAGE_BYTES; /* with preemptions */
    open_engine(&config);
    sampling.ignore_eos = true;
    sampling.temperature = 1; /* equal answers would share their pages */
    sampling.n_logprobs = 2;
    hr_fake_gate(&fake);
    for (uint32_t i = 0; i < 5; i++)
        requests[i] = submit(&what);
    hr_request_cancel(requests[4]);
    hr_fake_allow(&fake, UINT64_MAX);
    for (uint32_t i = 0; i < 5; i++) {
        memset(answers, 0, sizeof answers);
        client_collect(requests[i], answers);
        hr_request_release(requests[i]);
    }
    assert_true(stats().preemptions > 0 && stats().steps > 100);
    assert_int_equal(atomic_load(&fake.allocations_in_steps), 0);
    close_engine();
}

/* ---------------------------------------------------------------- telling the reader */

static _Atomic uint32_t n_notified, n_flushed, n_notified_at_flush;

static void count_notify(void *user)
{
    (void)user;
    atomic_fetch_add(&n_notified, 1);
}

static void count_flush(void *user)
{
    (void)user;
    atomic_fetch_add(&n_flushed, 1);
    atomic_store(&n_notified_at_flush, atomic_load(&n_notified));
}

static void readers_are_told_once_a_step_and_not_after_release(void **state)
{
    headrace_sampling sampling = client_greedy(10);
    hr_submit what = ask(&sampling, 3);
    hr_request *requests[2];
    uint32_t n;

    (void)state;
    open_usual();
    atomic_store(&n_notified, 0);
    atomic_store(&n_flushed, 0);
    sampling.ignore_eos = true;
    what.notify = count_notify;
    what.flush = count_flush;
    what.n_prompt = 1; /* no prompt to wait for: 2 x 3 choices from the first step */
    hr_fake_gate(&fake);
    requests[0] = submit(&what);
    requests[1] = submit(&what);
    hr_fake_await_step(&fake);
    for (uint32_t i = 1; i <= 3; i++) {
        hr_fake_allow(&fake, 1);
        hr_fake_await_step(&fake);
        assert_int_equal(atomic_load(&n_flushed), i);
        assert_true(atomic_load(&n_notified) >= i && atomic_load(&n_notified) <= 2 * i);
        assert_int_equal(atomic_load(&n_notified_at_flush), atomic_load(&n_notified));
    }
    hr_request_release(requests[0]);
    hr_request_release(requests[1]);
    n = atomic_load(&n_notified);
    hr_fake_allow(&fake, UINT64_MAX);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_int_equal(atomic_load(&n_notified), n);
    close_engine();
}

static void steps_are_timed_by_what_they_hold_and_readers_by_how_late_they_hear(void **state)
{
    headrace_sampling sampling = client_greedy(20);
    hr_submit what = ask(&sampling, 1);
    client_answer answer;

    (void)state;
    open_usual();
    sampling.ignore_eos = true;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    assert_int_equal(stats().step_prefill_s.count, 2); /* 30 rows, 16 a step */
    assert_int_equal(stats().step_decode_s.count, 19); /* no row too many: its end was known by count */
    assert_int_equal(stats().delivery_lag_s.count, 20);
    assert_int_equal(atomic_load(&fake.n_ahead) > 0, ops->max_steps_in_flight > 1);
    close_engine();
}

static void waiting_without_news_times_out(void **state)
{
    headrace_sampling sampling = client_greedy(2);
    hr_submit what = ask(&sampling, 1);
    hr_request *request;
    hr_token_event event;

    (void)state;
    open_usual();
    hr_fake_gate(&fake);
    request = submit(&what);
    assert_false(hr_request_wait(request, 0));
    assert_false(hr_request_wait(request, 1000));
    assert_false(hr_request_take(request, &event));
    assert_null(hr_request_prompt_logprobs(request));
    hr_request_release(request);
    close_engine();
}

static void the_info_says_what_was_decided(void **state)
{
    headrace_engine_info info;

    (void)state;
    open_usual();
    hr_engine_get_info(engine, &info);
    assert_string_equal(info.device, "fake");
    assert_string_equal(info.compute, "fake");
    assert_int_equal(info.n_pages, 400);
    assert_int_equal(info.kv_bytes, 400 * PAGE_BYTES);
    assert_int_equal(info.max_model_len, MODEL_LEN);
    assert_int_equal(info.max_num_seqs, 4);
    assert_int_equal(info.max_num_queued_reqs, 16);
    assert_true(info.prefix_caching);
    assert_int_equal(stats().n_pages, 400);
    assert_int_equal(stats().n_slots, 4);
    close_engine();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_is_what_the_model_says),
        cmocka_unit_test(choices_draw_with_seeds_that_count_up),
        cmocka_unit_test(requests_without_a_seed_differ_and_repeat_with_the_engines_seed),
        cmocka_unit_test(a_stop_id_is_delivered_and_ends_the_answer_in_one_event),
        cmocka_unit_test(logprobs_come_with_every_token_and_every_prompt_token),
        cmocka_unit_test(times_and_cached_tokens_are_reported),
        cmocka_unit_test(preemption_changes_no_token),
        cmocka_unit_test(a_cancelled_request_ends_within_one_step_wherever_it_is),
        cmocka_unit_test(releasing_a_running_request_cancels_it),
        cmocka_unit_test(a_stopped_choice_ends_and_its_siblings_go_on),
        cmocka_unit_test(a_stopped_request_given_back_at_once_counts_as_stopped),
        cmocka_unit_test(closing_ends_every_request_with_closed),
        cmocka_unit_test(draining_waits_refuses_new_work_and_times_out),
        cmocka_unit_test(a_request_that_waits_too_long_ends_with_queue_full),
        cmocka_unit_test(what_cannot_fit_the_context_is_refused_with_both_numbers),
        cmocka_unit_test(prompts_and_choices_out_of_range_are_refused),
        cmocka_unit_test(the_queue_takes_as_many_requests_as_it_may),
        cmocka_unit_test(the_queue_takes_as_many_prompt_tokens_as_it_may),
        cmocka_unit_test(a_backend_failure_ends_every_request_and_the_engine_refuses_more),
        cmocka_unit_test(bad_logits_end_their_request_alone_until_there_are_three),
        cmocka_unit_test(a_failed_allocation_refuses_the_request_and_nothing_else),
        cmocka_unit_test(an_engine_without_memory_does_not_open),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(readers_are_told_once_a_step_and_not_after_release),
        cmocka_unit_test(steps_are_timed_by_what_they_hold_and_readers_by_how_late_they_hear),
        cmocka_unit_test(waiting_without_news_times_out),
        cmocka_unit_test(the_info_says_what_was_decided),
    };

    int n_failed = cmocka_run_group_tests_name("one step in flight", tests, NULL, NULL);

    ops = &hr_backend_fake_ahead;
    return n_failed + cmocka_run_group_tests_name("two steps in flight", tests, NULL, NULL);
}
