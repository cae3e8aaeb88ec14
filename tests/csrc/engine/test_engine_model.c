/* The engine on the embedded model and the CPU backend: whatever shares the batch, however the pages run out, and
 * whether a prompt was found in the cache or run, every token and every logprob is that of the request alone. The same
 * with two steps in flight, compared with solo runs that take one at a time.
 */
#include "ahead_backend.h"
#include "engine_client.h"

#include "base/rng.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define TINY HEADRACE_SOURCE_DIR "/csrc/embedded/tiny"

enum { N_REQUESTS = 64, N_PROMPT_MAX = 96, N_CASES_MAX = 64, PAGE_TOKENS = 16 };

static const hr_backend_ops *ops = &hr_backend_cpu;
static hr_model *model;

static int open_model(void **state)
{
    headrace_error err = {0};
    hr_model_open_options options = {0};

    (void)state;
    if (hr_model_open(TINY, &options, &model, &err) == HEADRACE_OK)
        return 0;
    print_error("%s\n", err.message);
    return 1;
}

static int close_model(void **state)
{
    (void)state;
    hr_model_close(model);
    return 0;
}

static hr_engine *open_engine(uint32_t n_pages, bool disable_prefix_caching, uint32_t max_num_batched_tokens)
{
    hr_backend_options options = {.n_threads = 1,
                                  .page_tokens = PAGE_TOKENS,
                                  .max_rows = 1,
                                  .max_spans = 1,
                                  .max_outputs = 1,
                                  .max_page_refs = 1};
    hr_backend_sizes sizes;
    headrace_error err = {0};
    hr_engine *engine = NULL;

    assert_int_equal(ops->sizes(model, &options, &sizes, &err), HEADRACE_OK);
    if (hr_engine_open(&(hr_engine_config){.model = model,
                                           .backend_ops = ops,
                                           .n_threads = 2,
                                           .max_num_seqs = 64,
                                           .max_num_batched_tokens = max_num_batched_tokens,
                                           .max_num_queued_reqs = 2 * N_REQUESTS,
                                           .page_tokens = PAGE_TOKENS,
                                           .kv_cache_bytes = n_pages * sizes.page_bytes,
                                           .disable_prefix_caching = disable_prefix_caching},
                       &engine, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return engine;
}

static uint64_t close_engine(hr_engine *engine, headrace_stats *stats)
{
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    hr_engine_get_stats(engine, stats);
    assert_int_equal(stats->n_pages_used, 0);
    assert_true(stats->healthy);
    hr_engine_close(engine);
    return stats->preemptions;
}

/* ---------------------------------------------------------------- the stored greedy answers */

typedef struct greedy_case {
    int32_t prompt[CLIENT_TOKENS_MAX], output[CLIENT_TOKENS_MAX];
    uint32_t n_prompt, n_output;
} greedy_case;

static greedy_case cases[N_CASES_MAX];
static uint32_t n_cases;

static uint32_t read_ids(const json_t *list, int32_t *ids)
{
    size_t n = json_array_size(list);

    assert_in_range(n, 1, CLIENT_TOKENS_MAX);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)n;
}

static void read_cases(void)
{
    json_error_t error;
    json_t *root = json_load_file(TINY "/expected_greedy.json", 0, &error), *list;

    assert_non_null(root);
    list = json_object_get(root, "cases");
    assert_true(json_array_size(list) > 0);
    for (n_cases = 0; n_cases < json_array_size(list) && n_cases < N_CASES_MAX; n_cases++) {
        const json_t *one = json_array_get(list, n_cases);

        cases[n_cases].n_prompt = read_ids(json_object_get(one, "prompt_ids"), cases[n_cases].prompt);
        cases[n_cases].n_output = read_ids(json_object_get(one, "output_ids"), cases[n_cases].output);
    }
    json_decref(root);
}

static void the_stored_greedy_answers_are_met_exactly_in_one_batch(void **state)
{
    static client_answer answers[N_CASES_MAX];
    static hr_request *requests[N_CASES_MAX];
    hr_engine *engine = open_engine(1000, false, 128);
    headrace_sampling sampling = client_greedy(0);
    headrace_stats stats;

    (void)state;
    read_cases();
    memset(answers, 0, sizeof answers);
    for (uint32_t i = 0; i < n_cases; i++) {
        hr_submit what = {.prompt_ids = cases[i].prompt,
                          .n_prompt = cases[i].n_prompt,
                          .n = 1,
                          .sampling = &sampling,
                          .eos_ids = model->arch.eos_ids,
                          .n_eos_ids = model->arch.n_eos_ids};
        headrace_error err = {0};

        sampling.max_tokens = cases[i].n_output + 5;
        if (hr_engine_submit(engine, &what, &requests[i], &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
    }
    for (uint32_t i = 0; i < n_cases; i++) {
        client_collect(requests[i], &answers[i]);
        assert_int_equal(answers[i].n_ids, cases[i].n_output);
        assert_memory_equal(answers[i].ids, cases[i].output, cases[i].n_output * sizeof(int32_t));
        assert_int_equal(answers[i].finish, HEADRACE_FINISH_STOP);
        hr_request_release(requests[i]);
    }
    (void)close_engine(engine, &stats);
}

/* ---------------------------------------------------------------- mixed sampling, alone and together */

typedef struct mixed_request {
    int32_t prompt[N_PROMPT_MAX];
    uint32_t n_prompt;
    headrace_sampling sampling;
    headrace_bias bias[2];
} mixed_request;

static mixed_request mixed[N_REQUESTS];
static client_answer alone[N_REQUESTS], found[N_REQUESTS];

/* Prompts share beginnings of different lengths; every kind of sampling occurs. */
static void make_mixed(void)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        mixed_request *m = &mixed[i];
        uint64_t dice = hr_rng_at(2024, i);
        headrace_sampling *s = &m->sampling;

        m->n_prompt = (uint32_t)(1 + dice % N_PROMPT_MAX);
        for (uint32_t k = 0; k < m->n_prompt; k++)
            m->prompt[k] = (int32_t)(k < i ? 20 + k * 13 % 1500 : 20 + hr_rng_at(i, k) % 1900);
        *s = client_greedy((uint32_t)(8 + (dice >> 8) % 24));
        s->has_seed = true;
        s->seed = i;
        s->ignore_eos = (dice >> 16) % 4 > 0;
        s->temperature = i % 4 == 0 ? 0.0f : 0.3f + 0.1f * (float)(i % 10);
        s->top_k = i % 3 == 0 ? 40 : 0;
        s->top_p = i % 5 == 0 ? 0.8f : 1.0f;
        s->min_p = i % 7 == 0 ? 0.1f : 0.0f;
        s->repetition_penalty = i % 6 == 1 ? 1.2f : 1.0f;
        s->presence_penalty = i % 9 == 2 ? 0.7f : 0.0f;
        s->frequency_penalty = i % 8 == 3 ? 0.4f : 0.0f;
        s->min_tokens = i % 5;
        s->n_logprobs = i % 2 ? (int32_t)(i % 6) : -1;
        m->bias[0] = (headrace_bias){.id = (int32_t)(50 + i), .value = 5};
        m->bias[1] = (headrace_bias){.id = 100, .value = -100};
        s->bias = m->bias;
        s->n_bias = i % 3;
    }
}

static hr_submit mixed_submit(const mixed_request *m)
{
    return (hr_submit){.prompt_ids = m->prompt,
                       .n_prompt = m->n_prompt,
                       .n = 1,
                       .sampling = &m->sampling,
                       .eos_ids = model->arch.eos_ids,
                       .n_eos_ids = model->arch.n_eos_ids};
}

static void run_alone(void)
{
    hr_engine *engine = open_engine(400, true, 512);
    headrace_stats stats;

    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        hr_submit what = mixed_submit(&mixed[i]);

        assert_int_equal(client_ask(engine, &what, &alone[i]), HEADRACE_OK);
    }
    (void)close_engine(engine, &stats);
}

static int prepare_mixed(void **state)
{
    if (open_model(state) != 0)
        return 1;
    make_mixed();
    run_alone();
    return 0;
}

/* All together on an engine; every id and logprob must be that of the run alone. */
static headrace_stats run_together(uint32_t n_pages, bool disable_prefix_caching, uint32_t max_num_batched_tokens)
{
    static hr_request *requests[N_REQUESTS];
    hr_engine *engine = open_engine(n_pages, disable_prefix_caching, max_num_batched_tokens);
    headrace_stats stats;

    memset(found, 0, sizeof found);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        hr_submit what = mixed_submit(&mixed[i]);
        headrace_error err = {0};

        if (hr_engine_submit(engine, &what, &requests[i], &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        client_collect(requests[i], &found[i]);
        hr_request_release(requests[i]);
    }
    (void)close_engine(engine, &stats);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (memcmp(&found[i], &alone[i], sizeof found[i]) != 0)
            fail_msg("request %u differs from its run alone", i);
    return stats;
}

static void sixty_four_at_once_equal_their_solo_runs(void **state)
{
    headrace_stats stats = run_together(1000, true, 512);

    (void)state;
    assert_int_equal(stats.prefix_hits, 0);
}

static void small_chunks_change_nothing(void **state)
{
    (void)state;
    (void)run_together(1000, true, 64);
}

static void prefix_reuse_changes_nothing(void **state)
{
    headrace_stats stats = run_together(1000, false, 64);

    (void)state;
    assert_true(stats.prefix_hits > 0);
}

static void preemption_changes_nothing(void **state)
{
    headrace_stats with_cache = run_together(40, false, 128), without_cache = run_together(40, true, 128);

    (void)state;
    assert_true(with_cache.preemptions > 0);
    assert_true(without_cache.preemptions > 0);
}

static void preemption_and_prefix_reuse_together_change_nothing(void **state)
{
    headrace_stats stats = run_together(40, false, 64);

    (void)state;
    assert_true(stats.preemptions > 0 && stats.prefix_hits > 0);
}

static void choices_share_their_prompt_and_equal_single_requests(void **state)
{
    enum { N = 5 };
    hr_engine *engine = open_engine(400, false, 64);
    client_answer answers[N], single;
    headrace_sampling sampling = mixed[0].sampling;
    hr_submit what = mixed_submit(&mixed[60]);
    headrace_stats stats;

    (void)state;
    sampling.temperature = 0.9f;
    sampling.seed = 500;
    sampling.max_tokens = 20;
    sampling.n_logprobs = 2;
    what.sampling = &sampling;
    what.n_prompt = 60;
    what.n = N;
    assert_int_equal(client_ask(engine, &what, answers), HEADRACE_OK);
    hr_engine_get_stats(engine, &stats);
    assert_true(stats.prefix_hits >= (N - 1) * 48);
    what.n = 1;
    for (uint32_t i = 0; i < N; i++) {
        sampling.seed = 500 + i;
        assert_int_equal(client_ask(engine, &what, &single), HEADRACE_OK);
        assert_memory_equal(&single, &answers[i], sizeof single);
    }
    (void)close_engine(engine, &stats);
}

static void prompt_logprobs_do_not_depend_on_the_cache(void **state)
{
    hr_engine *engine = open_engine(400, false, 64);
    headrace_sampling sampling = client_greedy(2);
    hr_submit what = mixed_submit(&mixed[60]);
    headrace_token_logprobs first[N_PROMPT_MAX];
    headrace_stats stats;
    hr_request *request;

    (void)state;
    sampling.n_prompt_logprobs = 3;
    what.sampling = &sampling;
    what.n_prompt = 60;
    for (uint32_t round = 0; round < 2; round++) {
        client_answer answer = {0};
        const headrace_token_logprobs *scores;

        assert_int_equal(hr_engine_submit(engine, &what, &request, NULL), HEADRACE_OK);
        client_collect(request, &answer);
        scores = hr_request_prompt_logprobs(request);
        assert_non_null(scores);
        for (uint32_t i = 0; i + 1 < what.n_prompt; i++) {
            assert_int_equal(scores[i].id, what.prompt_ids[i + 1]);
            assert_int_equal(scores[i].n_top, 3);
            assert_true(scores[i].logprob <= scores[i].top_logprobs[0] && scores[i].rank >= 1);
        }
        if (round == 0)
            memcpy(first, scores, (what.n_prompt - 1) * sizeof *scores);
        else
            assert_memory_equal(first, scores, (what.n_prompt - 1) * sizeof *scores);
        hr_request_release(request);
    }
    (void)close_engine(engine, &stats);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_stored_greedy_answers_are_met_exactly_in_one_batch),
        cmocka_unit_test(sixty_four_at_once_equal_their_solo_runs),
        cmocka_unit_test(small_chunks_change_nothing),
        cmocka_unit_test(prefix_reuse_changes_nothing),
        cmocka_unit_test(preemption_changes_nothing),
        cmocka_unit_test(choices_share_their_prompt_and_equal_single_requests),
        cmocka_unit_test(prompt_logprobs_do_not_depend_on_the_cache),
    };
    const struct CMUnitTest ahead_tests[] = {
        cmocka_unit_test(the_stored_greedy_answers_are_met_exactly_in_one_batch),
        cmocka_unit_test(preemption_and_prefix_reuse_together_change_nothing),
        cmocka_unit_test(choices_share_their_prompt_and_equal_single_requests),
        cmocka_unit_test(prompt_logprobs_do_not_depend_on_the_cache),
    };

    int n_failed = cmocka_run_group_tests_name("one step in flight", tests, prepare_mixed, close_model);

    ops = &hr_backend_ahead;
    return n_failed + cmocka_run_group_tests_name("two steps in flight", ahead_tests, open_model, close_model);
}
