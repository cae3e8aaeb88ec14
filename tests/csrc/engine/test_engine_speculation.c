/* Speculative decoding on real models and the CPU backend: whatever is guessed, by whom, and however wrong, every id,
 * logprob and ending is that of the run without guesses, bit for bit, greedy and sampled, and so are the convolution
 * states on the way. This is what makes any statement about distributions: the draws are the same draws.
 */
#include "ahead_backend.h"
#include "engine_client.h"

#include "base/rng.h"
#include "base/status.h"
#include "engine/proposer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define TINY HEADRACE_SOURCE_DIR "/csrc/embedded/tiny"
#define GOLDENS HEADRACE_SOURCE_DIR "/tests/data/goldens/"

#ifndef HR_SPECULATION_REQUESTS
#define HR_SPECULATION_REQUESTS 24
#endif

enum {
    N_REQUESTS = HR_SPECULATION_REQUESTS,
    N_PROMPT_MAX = 96,
    PAGE_TOKENS = 16,
    POSITIONS_MAX = 160,
    STATE_MAX = 4 * 256 * 2
};

static const hr_backend_ops *ops = &hr_backend_cpu;
static hr_model *model, *tiny, *dense, *moe;

static hr_model *open_one(const char *path)
{
    headrace_error err = {0};
    hr_model_open_options options = {0};
    hr_model *opened;

    if (hr_model_open(path, &options, &opened, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return opened;
}

static int open_models(void **state)
{
    (void)state;
    tiny = open_one(TINY);
    dense = open_one(GOLDENS "dense_tiny");
    moe = open_one(GOLDENS "moe_tiny");
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    hr_model_close(tiny);
    hr_model_close(dense);
    hr_model_close(moe);
    return 0;
}

/* ---------------------------------------------------------------- requests of every kind */

typedef struct mixed_request {
    int32_t prompt[N_PROMPT_MAX];
    uint32_t n_prompt;
    headrace_sampling sampling;
} mixed_request;

static mixed_request mixed[N_REQUESTS];
static client_answer plain[N_REQUESTS], found[N_REQUESTS];

/* Prompts that repeat themselves and prompts that do not; every kind of sampling and of ending. */
static void make_mixed(void)
{
    uint32_t V = model->arch.vocab_size;

    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        mixed_request *m = &mixed[i];
        uint64_t dice = hr_rng_at(77, i);
        headrace_sampling *s = &m->sampling;

        m->n_prompt = (uint32_t)(1 + dice % N_PROMPT_MAX);
        for (uint32_t k = 0; k < m->n_prompt; k++)
            m->prompt[k] = (int32_t)(20 + (i % 2 ? k * 13 % 60 : hr_rng_at(i, k)) % (V - 40));
        *s = client_greedy((uint32_t)(8 + (dice >> 8) % 40));
        s->has_seed = true;
        s->seed = i;
        s->ignore_eos = (dice >> 16) % 4 > 0;
        s->temperature = i % 3 == 0 ? 0.0f : 0.3f + 0.1f * (float)(i % 10);
        s->top_k = i % 5 == 0 ? 40 : 0;
        s->top_p = i % 4 == 0 ? 0.8f : 1.0f;
        s->repetition_penalty = i % 6 == 1 ? 1.2f : 1.0f;
        s->presence_penalty = i % 9 == 2 ? 0.7f : 0.0f;
        s->frequency_penalty = i % 8 == 3 ? 0.4f : 0.0f;
        s->min_tokens = i % 5;
        s->n_logprobs = i % 2 ? (int32_t)(i % 6) : -1;
        if (i % 7 == 4) /* ids that will be met on the way */
            for (s->n_stop_ids = 0; s->n_stop_ids < HEADRACE_STOP_MAX; s->n_stop_ids++)
                s->stop_ids[s->n_stop_ids] = (int32_t)(hr_rng_at(i, 1000 + s->n_stop_ids) % V);
    }
}

static hr_submit submit_of(const mixed_request *m)
{
    return (hr_submit){.prompt_ids = m->prompt,
                       .n_prompt = m->n_prompt,
                       .n = 1,
                       .sampling = &m->sampling,
                       .eos_ids = model->arch.eos_ids,
                       .n_eos_ids = model->arch.n_eos_ids};
}

/* ---------------------------------------------------------------- guesses by somebody who knows the answers */

typedef enum kind { RANDOM_IDS, FIRST_RIGHT, ALL_RIGHT, SOME_RIGHT } kind;

typedef struct knowing {
    hr_proposer base;
    kind kind;
    uint64_t n_asked;
} knowing;

static bool is_right(const knowing *k, uint32_t at)
{
    switch (k->kind) {
    case RANDOM_IDS:
        return false;
    case FIRST_RIGHT:
        return at == 0;
    case ALL_RIGHT:
        return true;
    case SOME_RIGHT:
        break;
    }
    return hr_rng_at(5, k->n_asked) % 100 < 65;
}

static headrace_status propose_knowingly(hr_proposer *proposer, hr_guess_job *jobs, uint32_t n_jobs,
                                         headrace_error *err)
{
    knowing *k = (knowing *)proposer;

    (void)err;
    for (uint32_t i = 0; i < n_jobs; i++) {
        hr_sequence *s = jobs[i].sequence;
        const client_answer *answer = &plain[s->sampling.seed];

        for (uint32_t at = 0; at < jobs[i].n; at++, k->n_asked++) {
            uint32_t n = hr_sequence_n_output(s) + at;
            int32_t right = n < answer->n_ids ? answer->ids[n] : 0;
            int32_t wrong = (int32_t)(hr_rng_at(6, k->n_asked) % model->arch.vocab_size);

            s->ids[s->n_total + at] = is_right(k, at) ? right : wrong;
        }
    }
    return HEADRACE_OK;
}

static void close_nothing(hr_proposer *proposer)
{
    (void)proposer;
}

static const hr_proposer_ops knowing_ops = {.name = "test", .propose = propose_knowingly, .close = close_nothing};

/* ---------------------------------------------------------------- runs */

static hr_engine *open_engine(const hr_speculation *speculation, uint32_t n_pages, uint32_t rows)
{
    hr_backend_options options = {.n_threads = 1,
                                  .page_tokens = PAGE_TOKENS,
                                  .max_rows = 1,
                                  .max_spans = 1,
                                  .max_outputs = 1,
                                  .max_page_refs = 1};
    hr_backend_sizes sizes, draft = {0};
    headrace_error err = {0};
    hr_engine *engine = NULL;

    assert_int_equal(ops->sizes(model, &options, &sizes, &err), HEADRACE_OK);
    if (speculation->draft_model)
        assert_int_equal(ops->sizes(speculation->draft_model, &options, &draft, &err), HEADRACE_OK);
    if (hr_engine_open(&(hr_engine_config){.model = model,
                                           .backend_ops = ops,
                                           .n_threads = 2,
                                           .max_model_len = 256,
                                           .max_num_seqs = 16,
                                           .max_num_batched_tokens = rows,
                                           .max_num_queued_reqs = 2 * N_REQUESTS,
                                           .page_tokens = PAGE_TOKENS,
                                           .kv_cache_bytes = n_pages * (sizes.page_bytes + draft.page_bytes),
                                           .speculation = *speculation},
                       &engine, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return engine;
}

static headrace_stats close_engine(hr_engine *engine)
{
    headrace_stats stats;

    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    hr_engine_get_stats(engine, &stats);
    assert_int_equal(stats.n_pages_used, 0);
    assert_true(stats.healthy);
    hr_engine_close(engine);
    return stats;
}

/* All requests together; the numbers of guesses must add up. */
static headrace_stats run(const hr_speculation *speculation, uint32_t n_pages, uint32_t rows, client_answer *answers)
{
    static hr_request *requests[N_REQUESTS];
    hr_engine *engine = open_engine(speculation, n_pages, rows);
    uint64_t n_guesses = 0, n_right = 0, n_tokens = 0, n_at = 0;
    headrace_stats stats;

    memset(answers, 0, N_REQUESTS * sizeof *answers);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        hr_submit what = submit_of(&mixed[i]);
        headrace_error err = {0};

        if (hr_engine_submit(engine, &what, &requests[i], &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        hr_request_times times;

        client_collect(requests[i], &answers[i]);
        times = hr_request_get_times(requests[i]);
        n_guesses += times.n_guesses;
        n_right += times.n_guesses_right;
        n_tokens += answers[i].n_ids;
        hr_request_release(requests[i]);
    }
    stats = close_engine(engine);
    assert_int_equal(stats.generation_tokens, n_tokens);
    assert_int_equal(stats.spec_draft_tokens, n_guesses);
    assert_int_equal(stats.spec_accepted_tokens, n_right);
    for (uint32_t i = 0; i < HEADRACE_SPECULATIVE_MAX; i++) {
        n_at += stats.spec_accepted_at[i];
        assert_true(stats.spec_accepted_at[i] <= (i ? stats.spec_accepted_at[i - 1] : stats.spec_drafts));
    }
    assert_int_equal(n_at, n_right);
    return stats;
}

static headrace_stats run_and_compare(const hr_speculation *speculation, uint32_t n_pages, uint32_t rows)
{
    headrace_stats stats = run(speculation, n_pages, rows, found);

    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (memcmp(&found[i], &plain[i], sizeof found[i]) != 0)
            fail_msg("request %u differs from the run without guesses", i);
    assert_true(stats.spec_draft_tokens > 0 && stats.spec_accepted_tokens <= stats.spec_draft_tokens);
    return stats;
}

static void prepare(hr_model *which)
{
    model = which;
    make_mixed();
    (void)run(&(hr_speculation){0}, 400, 128, plain);
}

static headrace_stats guess_knowingly(kind k, uint32_t n_pages, uint32_t rows)
{
    knowing proposer = {.base = {.ops = &knowing_ops}, .kind = k};

    return run_and_compare(&(hr_speculation){.max_guesses = 5, .proposer = &proposer.base}, n_pages, rows);
}

static void compare_all_kinds(hr_model *which, hr_model *other)
{
    hr_speculation lookup = {.max_guesses = 5, .lookup_max = 3, .lookup_min = 1};
    headrace_stats stats;

    prepare(which);
    stats = run_and_compare(&lookup, 400, 128);
    assert_true(stats.spec_accepted_tokens > 0);
    stats = guess_knowingly(RANDOM_IDS, 400, 128);
    assert_true(stats.spec_accepted_tokens < stats.spec_draft_tokens / 10);
    stats = guess_knowingly(FIRST_RIGHT, 400, 128);
    assert_true(stats.spec_accepted_at[0] >= stats.spec_drafts * 9 / 10);
    stats = guess_knowingly(SOME_RIGHT, 400, 128);
    assert_true(stats.spec_accepted_tokens > stats.spec_draft_tokens / 4);
    stats = guess_knowingly(ALL_RIGHT, 400, 128);
    assert_true(stats.spec_accepted_tokens >= stats.spec_draft_tokens * 9 / 10);
    stats = run_and_compare(&(hr_speculation){.max_guesses = 4, .draft_model = which}, 400, 128);
    assert_true(stats.spec_accepted_tokens >= stats.spec_draft_tokens * 9 / 10);
    if (!other)
        return;
    stats = run_and_compare(&(hr_speculation){.max_guesses = 4, .draft_model = other}, 400, 128);
    assert_true(stats.spec_accepted_tokens < stats.spec_draft_tokens);
}

static void any_guesses_leave_the_answers_of_the_embedded_model(void **state)
{
    (void)state;
    compare_all_kinds(tiny, NULL);
}

static void any_guesses_leave_the_answers_of_a_dense_model(void **state)
{
    (void)state;
    compare_all_kinds(dense, moe);
}

static void any_guesses_leave_the_answers_of_a_model_with_experts(void **state)
{
    (void)state;
    compare_all_kinds(moe, dense);
}

/* ---------------------------------------------------------------- pressure */

static void preemption_and_guesses_together_change_nothing(void **state)
{
    (void)state;
    prepare(tiny);
    assert_true(guess_knowingly(SOME_RIGHT, 16, 128).preemptions > 0);
    assert_true(guess_knowingly(ALL_RIGHT, 16, 64).preemptions > 0);
    assert_true(run_and_compare(&(hr_speculation){.max_guesses = 4, .draft_model = tiny}, 16, 128).preemptions > 0);
}

static void steps_with_few_rows_hold_few_guesses(void **state)
{
    (void)state;
    prepare(dense);
    (void)guess_knowingly(SOME_RIGHT, 400, 17);
    (void)run_and_compare(&(hr_speculation){.max_guesses = 16, .draft_model = dense}, 400, 20);
}

static void a_backend_that_could_run_ahead_takes_one_step_at_a_time(void **state)
{
    (void)state;
    prepare(tiny);
    ops = &hr_backend_ahead;
    (void)guess_knowingly(SOME_RIGHT, 400, 128);
    (void)run_and_compare(&(hr_speculation){.max_guesses = 4, .draft_model = tiny}, 400, 128);
    ops = &hr_backend_cpu;
}

/* ---------------------------------------------------------------- fewer steps, choices, switches */

/* One answer of max_tokens alone: its steps. */
static uint64_t steps_alone(const hr_speculation *speculation, const hr_submit *what, const client_answer *expected)
{
    hr_engine *engine = open_engine(speculation, 400, 128);
    client_answer answer;

    assert_int_equal(client_ask(engine, what, &answer), HEADRACE_OK);
    assert_memory_equal(&answer, expected, sizeof answer);
    return close_engine(engine).steps;
}

static void right_guesses_save_steps(void **state)
{
    knowing proposer = {.base = {.ops = &knowing_ops}, .kind = ALL_RIGHT};
    hr_submit what;

    (void)state;
    prepare(tiny);
    what = submit_of(&mixed[3]);
    assert_true(plain[3].n_ids >= 12);
    assert_int_equal(steps_alone(&(hr_speculation){0}, &what, &plain[3]), plain[3].n_ids);
    /* The prompt with the first token, then six tokens a step. */
    assert_int_equal(steps_alone(&(hr_speculation){.max_guesses = 5, .proposer = &proposer.base}, &what, &plain[3]),
                     1 + (plain[3].n_ids - 1 + 5) / 6);
}

static void choices_with_guesses_equal_choices_without(void **state)
{
    enum { N = 4 };
    client_answer without[N], with[N];
    hr_speculation speculation[] = {{0}, {.max_guesses = 6, .lookup_max = 2, .lookup_min = 1}};
    headrace_sampling sampling;
    hr_submit what;

    (void)state;
    model = tiny;
    make_mixed();
    what = submit_of(&mixed[1]);
    sampling = mixed[1].sampling;
    sampling.temperature = 0.4f;
    sampling.max_tokens = 40;
    sampling.n_logprobs = 3;
    sampling.n_prompt_logprobs = 2;
    what.sampling = &sampling;
    what.n = N;
    for (uint32_t i = 0; i < 2; i++) {
        hr_engine *engine = open_engine(&speculation[i], 400, 64);

        assert_int_equal(client_ask(engine, &what, i ? with : without), HEADRACE_OK);
        (void)close_engine(engine);
    }
    assert_memory_equal(with, without, sizeof with);
}

static void a_request_may_ask_for_fewer_guesses_or_none(void **state)
{
    knowing proposer = {.base = {.ops = &knowing_ops}, .kind = ALL_RIGHT};
    hr_engine *engine;
    client_answer answer;
    headrace_stats stats;
    hr_submit what;

    (void)state;
    prepare(tiny);
    engine = open_engine(&(hr_speculation){.max_guesses = 5, .proposer = &proposer.base}, 400, 64);
    what = submit_of(&mixed[3]);
    what.limits_guesses = true;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_memory_equal(&answer, &plain[3], sizeof answer);
    hr_engine_get_stats(engine, &stats);
    assert_int_equal(stats.spec_draft_tokens, 0);
    what.max_guesses = 2;
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_memory_equal(&answer, &plain[3], sizeof answer);
    stats = close_engine(engine);
    assert_true(stats.spec_draft_tokens > 0 && stats.spec_draft_tokens <= 2 * stats.spec_drafts);
}

/* ---------------------------------------------------------------- states */

static float states[POSITIONS_MAX][STATE_MAX];
static bool is_known[POSITIONS_MAX];
static uint32_t n_compared, n_different;

/* The state before each span: the first run stores it by position, later ones compare. */
static headrace_status watched_begin(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    const hr_span *span = &batch->spans[0];
    uint32_t at = span->start_position;
    float now[STATE_MAX];

    HR_ASSERT(batch->n_spans == 1 && at < POSITIONS_MAX);
    HR_ASSERT((size_t)model->arch.n_conv_layers * model->arch.hidden_size * (model->arch.conv_length - 1) <= STATE_MAX);
    memset(now, 0, sizeof now);
    if (!span->is_fresh) {
        hr_backend_cpu.read_slot(backend, span->state_slot, now);
        if (is_known[at]) {
            n_compared++;
            n_different += memcmp(now, states[at], sizeof now) != 0;
        }
        memcpy(states[at], now, sizeof now);
        is_known[at] = true;
    }
    return hr_backend_cpu.step_begin(backend, batch, err);
}

static void states_after_wrong_guesses_are_those_of_the_plain_run(void **state)
{
    hr_backend_ops watching = hr_backend_cpu;

    (void)state;
    prepare(moe);
    watching.step_begin = watched_begin;
    ops = &watching;
    for (uint32_t i = 0; i < 8; i++) {
        hr_submit what = submit_of(&mixed[i]);

        memset(is_known, 0, sizeof is_known);
        n_compared = n_different = 0;
        for (uint32_t round = 0; round < 4; round++) {
            knowing proposer = {.base = {.ops = &knowing_ops}, .kind = round == 1 ? FIRST_RIGHT : SOME_RIGHT};
            hr_speculation speculation = {.max_guesses = round ? 5 : 0, .proposer = round ? &proposer.base : NULL};
            hr_engine *engine = open_engine(&speculation, 400, 256);
            client_answer answer;

            assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
            assert_memory_equal(&answer, &plain[i], sizeof answer);
            (void)close_engine(engine);
        }
        assert_true(n_compared >= 3);
        assert_int_equal(n_different, 0);
    }
    ops = &hr_backend_cpu;
}

/* ---------------------------------------------------------------- what goes wrong on the way */

enum { BAD_AT = 9 }; /* the output whose logits are bad: neither the first nor the last of a step of six */

static headrace_status wait_and_spoil(hr_backend *backend, headrace_error *err)
{
    headrace_status status = hr_backend_cpu.step_wait(backend, err);
    hr_batch *batch = hr_backend_cpu.batch(backend, 0);

    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_history *history = &batch->outputs[i].history;

        if (batch->outputs[i].sampling && history->n_total - history->n_prompt == BAD_AT)
            batch->samples[i].is_bad = true;
    }
    return status;
}

static void bad_logits_end_an_answer_where_they_would_without_guesses(void **state)
{
    knowing proposer = {.base = {.ops = &knowing_ops}, .kind = ALL_RIGHT};
    hr_speculation speculation[] = {{0}, {.max_guesses = 5, .proposer = &proposer.base}};
    hr_backend_ops spoiling = hr_backend_cpu;
    hr_submit what;

    (void)state;
    prepare(tiny);
    assert_true(plain[3].n_ids > BAD_AT + 1);
    what = submit_of(&mixed[3]);
    spoiling.step_wait = wait_and_spoil;
    ops = &spoiling;
    for (uint32_t i = 0; i < 2; i++) {
        hr_engine *engine = open_engine(&speculation[i], 400, 128);
        client_answer answer;
        headrace_stats stats;

        assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
        assert_int_equal(answer.finish, HEADRACE_FINISH_ERROR);
        assert_int_equal(answer.n_ids, BAD_AT);
        assert_memory_equal(answer.ids, plain[3].ids, BAD_AT * sizeof answer.ids[0]);
        assert_memory_equal(answer.logprobs, plain[3].logprobs, BAD_AT * sizeof answer.logprobs[0]);
        stats = close_engine(engine);
        assert_int_equal(stats.nan_logits, 1);
        assert_int_equal(stats.generation_tokens, BAD_AT);
        assert_true(i == 0 || stats.steps < BAD_AT / 2);
    }
    ops = &hr_backend_cpu;
}

static uint32_t n_opened, n_draft_steps;
static const hr_backend *draft_instance;

static headrace_status open_second_in_vain(const hr_model *which, const hr_backend_options *options, uint32_t n_pages,
                                           uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    if (++n_opened == 2)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for another");
    return hr_backend_cpu.open(which, options, n_pages, n_slots, out, err);
}

static headrace_status open_and_note(const hr_model *which, const hr_backend_options *options, uint32_t n_pages,
                                     uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    headrace_status status = hr_backend_cpu.open(which, options, n_pages, n_slots, out, err);

    if (++n_opened == 2)
        draft_instance = *out;
    return status;
}

static headrace_status begin_unless_fourth_of_draft(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    if (backend == draft_instance && ++n_draft_steps == 4)
        return hr_fail(err, HEADRACE_E_ENGINE, "injected fault");
    return hr_backend_cpu.step_begin(backend, batch, err);
}

static void a_draft_model_without_memory_is_an_error_of_open(void **state)
{
    hr_backend_ops failing = hr_backend_cpu;
    headrace_error err = {0};
    hr_engine *engine;

    (void)state;
    failing.open = open_second_in_vain;
    n_opened = 0;
    assert_int_equal(hr_engine_open(&(hr_engine_config){.model = tiny,
                                                        .backend_ops = &failing,
                                                        .max_model_len = 64,
                                                        .max_num_seqs = 2,
                                                        .speculation = {.max_guesses = 2, .draft_model = tiny}},
                                    &engine, &err),
                     HEADRACE_E_MEMORY);
    assert_null(engine);
    assert_string_equal(err.message, "no memory for another");
    assert_int_equal(n_opened, 2);
}

static void a_draft_model_that_fails_ends_answers_with_an_error_after_right_tokens(void **state)
{
    hr_backend_ops failing = hr_backend_cpu;
    headrace_stats stats;
    client_answer answer;
    hr_engine *engine;
    hr_submit what;

    (void)state;
    prepare(tiny);
    failing.open = open_and_note;
    failing.step_begin = begin_unless_fourth_of_draft;
    n_opened = n_draft_steps = 0;
    ops = &failing;
    engine = open_engine(&(hr_speculation){.max_guesses = 3, .draft_model = tiny}, 400, 128);
    what = submit_of(&mixed[3]);
    assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
    assert_int_equal(answer.finish, HEADRACE_FINISH_ERROR);
    assert_int_equal(answer.error, HEADRACE_E_ENGINE);
    assert_int_equal(answer.n_ids, 5); /* one, then three right guesses and one more; the next round failed */
    assert_memory_equal(answer.ids, plain[3].ids, answer.n_ids * sizeof answer.ids[0]);
    hr_engine_get_stats(engine, &stats);
    assert_false(stats.healthy);
    assert_int_equal(stats.n_pages_used, 0);
    hr_engine_close(engine);
    ops = &hr_backend_cpu;
}

/* A pool that holds one or two of them serves many: the draft model's pages come back too. */
static void a_draft_model_guesses_for_every_request_of_a_long_row(void **state)
{
    uint64_t n_before = 0;
    hr_engine *engine;

    (void)state;
    prepare(tiny);
    engine = open_engine(&(hr_speculation){.max_guesses = 3, .draft_model = tiny}, 16, 128);
    for (uint32_t i = 0; i < 3 * N_REQUESTS; i++) {
        hr_submit what = submit_of(&mixed[i % N_REQUESTS]);
        client_answer answer;
        headrace_stats stats;

        assert_int_equal(client_ask(engine, &what, &answer), HEADRACE_OK);
        assert_memory_equal(&answer, &plain[i % N_REQUESTS], sizeof answer);
        hr_engine_get_stats(engine, &stats);
        assert_true(answer.n_ids < 3 || stats.spec_draft_tokens > n_before);
        n_before = stats.spec_draft_tokens;
    }
    (void)close_engine(engine);
}

/* Three of the same long prompt need 3 x 8 pages of the draft model's 16; the model shares the prompt's. */
static void choices_that_do_not_all_fit_the_draft_model_leave_it_to_those_that_do(void **state)
{
    enum { N = 3, N_PROMPT = 90, N_TOKENS = 30 };
    client_answer without[N], with[N];
    hr_speculation speculation[] = {{0}, {.max_guesses = 3, .draft_model = tiny}};
    headrace_sampling sampling = client_greedy(N_TOKENS);
    int32_t prompt[N_PROMPT];
    uint64_t n_guesses = 0;
    hr_submit what;

    (void)state;
    model = tiny;
    make_mixed();
    sampling.temperature = 0.8f;
    sampling.has_seed = true;
    sampling.ignore_eos = true;
    what = submit_of(&mixed[0]);
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(20 + hr_rng_at(3, i) % (model->arch.vocab_size - 40));
    what.prompt_ids = prompt;
    what.n_prompt = N_PROMPT;
    what.sampling = &sampling;
    what.n = N;
    for (uint32_t i = 0; i < 2; i++) {
        hr_engine *engine = open_engine(&speculation[i], 16, 512);
        headrace_stats stats;

        assert_int_equal(client_ask(engine, &what, i ? with : without), HEADRACE_OK);
        stats = close_engine(engine);
        assert_int_equal(stats.generation_tokens, N * N_TOKENS);
        assert_int_equal(stats.preemptions, 0);
        n_guesses = stats.spec_draft_tokens;
    }
    assert_memory_equal(with, without, sizeof with);
    /* Two choices to their ends: of four tokens, three were guesses. */
    assert_in_range(n_guesses, 2 * (N_TOKENS - 4) * 3 / 4, N * N_TOKENS);
}

/* ---------------------------------------------------------------- rows that others cannot use */

/* Guesses for mixed[0]; before it comes a sequence that is beyond the draft model's context, if asked. */
static uint64_t guesses_beside(bool another, const client_answer *expected)
{
    hr_model short_draft = *tiny;
    hr_submit what = submit_of(&mixed[0]), long_one = submit_of(&mixed[1]);
    hr_request *requests[2] = {NULL};
    headrace_error err = {0};
    hr_request_times times;
    client_answer answer;
    hr_engine *engine;

    short_draft.arch.max_positions = 64;
    engine = open_engine(&(hr_speculation){.max_guesses = 14, .draft_model = &short_draft}, 400, 256);
    if (another)
        assert_int_equal(hr_engine_submit(engine, &long_one, &requests[1], &err), HEADRACE_OK);
    assert_int_equal(hr_engine_submit(engine, &what, &requests[0], &err), HEADRACE_OK);
    memset(&answer, 0, sizeof answer);
    client_collect(requests[0], &answer);
    assert_memory_equal(&answer, expected, sizeof answer);
    times = hr_request_get_times(requests[0]);
    hr_request_release(requests[0]);
    if (another) {
        memset(&answer, 0, sizeof answer);
        client_collect(requests[1], &answer);
        assert_int_equal(answer.n_ids, mixed[1].sampling.max_tokens);
        assert_int_equal(hr_request_get_times(requests[1]).n_guesses, 0);
        hr_request_release(requests[1]);
    }
    (void)close_engine(engine);
    return times.n_guesses;
}

static void one_beyond_the_draft_model_s_context_takes_no_rows_from_others(void **state)
{
    client_answer expected;
    hr_engine *engine;
    hr_submit what;
    uint64_t alone;

    (void)state;
    model = tiny;
    make_mixed();
    mixed[0].n_prompt = 8;
    mixed[0].sampling = client_greedy(40);
    mixed[0].sampling.ignore_eos = true;
    mixed[1].n_prompt = N_PROMPT_MAX;
    for (uint32_t i = 0; i < N_PROMPT_MAX; i++)
        mixed[1].prompt[i] = (int32_t)(20 + i);
    mixed[1].sampling = client_greedy(150);
    mixed[1].sampling.ignore_eos = true;
    what = submit_of(&mixed[0]);
    engine = open_engine(&(hr_speculation){0}, 400, 256);
    assert_int_equal(client_ask(engine, &what, &expected), HEADRACE_OK);
    (void)close_engine(engine);
    alone = guesses_beside(false, &expected);
    assert_true(alone > 30);
    assert_int_equal(guesses_beside(true, &expected), alone);
}

/* ---------------------------------------------------------------- pages and slots that others look at */

/* A second question repeats the first with its answer, whose pages were filled by guesses. */
static void what_guesses_left_in_the_cache_serves_the_next_question(void **state)
{
    uint64_t n_cached = 0, n_prompt = 0;

    (void)state;
    prepare(tiny);
    for (uint32_t i = 0; i < 8; i++) {
        knowing proposer = {.base = {.ops = &knowing_ops}, .kind = SOME_RIGHT};
        hr_speculation speculation[] = {{0}, {.max_guesses = 5, .proposer = &proposer.base}};
        int32_t prompt[N_PROMPT_MAX + CLIENT_TOKENS_MAX];
        hr_submit first = submit_of(&mixed[i]), second = first;
        client_answer answers[2], answer;

        second.prompt_ids = prompt;
        second.n_prompt = first.n_prompt + plain[i].n_ids;
        memcpy(prompt, first.prompt_ids, first.n_prompt * sizeof *prompt);
        memcpy(prompt + first.n_prompt, plain[i].ids, plain[i].n_ids * sizeof *prompt);
        for (uint32_t k = 0; k < 2; k++) { /* without the first question, and after it */
            hr_engine *engine = open_engine(&speculation[k], 400, 128);
            headrace_stats stats;

            if (k == 1) {
                assert_int_equal(client_ask(engine, &first, &answer), HEADRACE_OK);
                assert_memory_equal(&answer, &plain[i], sizeof answer);
            }
            assert_int_equal(client_ask(engine, &second, &answers[k]), HEADRACE_OK);
            stats = close_engine(engine);
            n_cached += stats.prompt_tokens_cached;
            n_prompt += k == 1 ? first.n_prompt : 0;
        }
        assert_memory_equal(&answers[1], &answers[0], sizeof answer);
    }
    assert_true(n_cached > n_prompt); /* pages of answers too */
}

static uint32_t n_borrowed;

/* As a GPU needs it: penalised rows of a span describe their sampling in slots that nobody else has in the step. */
static headrace_status begin_with_slots_checked(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    bool is_taken[2 * 16] = {false};
    uint32_t span = 0;

    for (uint32_t i = 0; i < batch->n_spans; i++)
        is_taken[batch->spans[i].state_slot] = true;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_output *output = &batch->outputs[i];
        bool is_first = i == 0 || output->row >= batch->spans[span].first_row + batch->spans[span].n_rows;

        while (output->row >= batch->spans[span].first_row + batch->spans[span].n_rows)
            span++;
        HR_ASSERT(output->sampling);
        HR_ASSERT((output->sampling_slot > 0) == (!is_first && hr_sampling_has_penalties(output->sampling)));
        if (output->sampling_slot == 0)
            continue;
        HR_ASSERT(output->sampling_slot <= sizeof is_taken && !is_taken[output->sampling_slot - 1]);
        is_taken[output->sampling_slot - 1] = true;
        n_borrowed++;
    }
    return hr_backend_cpu.step_begin(backend, batch, err);
}

static void penalised_guesses_have_slots_of_their_own(void **state)
{
    hr_backend_ops with_slots = hr_backend_cpu;

    (void)state;
    model = tiny;
    make_mixed();
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        mixed[i].sampling.presence_penalty = i % 4 ? 0.5f : mixed[i].sampling.presence_penalty;
    (void)run(&(hr_speculation){0}, 400, 128, plain);
    with_slots.wants_sampling_slots = true;
    with_slots.step_begin = begin_with_slots_checked;
    ops = &with_slots;
    n_borrowed = 0;
    (void)guess_knowingly(SOME_RIGHT, 400, 128);
    (void)guess_knowingly(ALL_RIGHT, 16, 64);
    assert_true(n_borrowed > N_REQUESTS);
    ops = &hr_backend_cpu;
}

/* ---------------------------------------------------------------- what is refused */

static void refused(const hr_speculation *speculation, const char *param, const char *part)
{
    headrace_error err = {0};
    hr_engine *engine;

    assert_int_equal(
        hr_engine_open(&(hr_engine_config){.model = tiny, .backend_ops = &hr_backend_cpu, .speculation = *speculation},
                       &engine, &err),
        HEADRACE_E_ARGUMENT);
    assert_null(engine);
    assert_string_equal(err.param, param);
    if (!strstr(err.message, part))
        fail_msg("'%s' is not in '%s'", part, err.message);
}

static void what_cannot_be_is_refused_by_name(void **state)
{
    (void)state;
    refused(&(hr_speculation){.max_guesses = 17}, "num_speculative_tokens", "17 is outside 0..16");
    refused(&(hr_speculation){.lookup_max = 3}, "num_speculative_tokens", "is 0, but prompt_lookup_max");
    refused(&(hr_speculation){.draft_model = tiny}, "num_speculative_tokens", "is 0, but draft_model");
    refused(&(hr_speculation){.max_guesses = 2, .lookup_max = 17}, "prompt_lookup_max", "17 is outside 1..16");
    refused(&(hr_speculation){.max_guesses = 2, .lookup_min = 20}, "prompt_lookup_min", "20 is outside 1..16");
    refused(&(hr_speculation){.max_guesses = 2, .lookup_max = 2, .lookup_min = 3}, "prompt_lookup_min", "3 is above");
    refused(&(hr_speculation){.max_guesses = 2, .draft_model = dense}, "draft_model", "512 ids");
}

static void the_info_says_who_guesses_and_what_it_takes(void **state)
{
    headrace_engine_info without, lookup, draft;
    hr_engine *engine;

    (void)state;
    model = dense;
    engine = open_engine(&(hr_speculation){0}, 100, 64);
    hr_engine_get_info(engine, &without);
    (void)close_engine(engine);
    assert_null(without.speculation);
    engine = open_engine(&(hr_speculation){.max_guesses = 3}, 100, 64);
    hr_engine_get_info(engine, &lookup);
    assert_string_equal(lookup.speculation, "ngram");
    assert_int_equal(lookup.num_speculative_tokens, 3);
    assert_int_equal(lookup.draft_bytes, 0);
    assert_int_equal(lookup.state_bytes, 2 * without.state_bytes);
    (void)close_engine(engine);
    engine = open_engine(&(hr_speculation){.max_guesses = 3, .draft_model = moe}, 100, 64);
    hr_engine_get_info(engine, &draft);
    assert_string_equal(draft.speculation, "draft_model");
    assert_true(draft.draft_bytes > draft.kv_bytes / 2);
    (void)close_engine(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_guesses_leave_the_answers_of_the_embedded_model),
        cmocka_unit_test(any_guesses_leave_the_answers_of_a_dense_model),
        cmocka_unit_test(any_guesses_leave_the_answers_of_a_model_with_experts),
        cmocka_unit_test(preemption_and_guesses_together_change_nothing),
        cmocka_unit_test(steps_with_few_rows_hold_few_guesses),
        cmocka_unit_test(a_backend_that_could_run_ahead_takes_one_step_at_a_time),
        cmocka_unit_test(right_guesses_save_steps),
        cmocka_unit_test(choices_with_guesses_equal_choices_without),
        cmocka_unit_test(a_request_may_ask_for_fewer_guesses_or_none),
        cmocka_unit_test(states_after_wrong_guesses_are_those_of_the_plain_run),
        cmocka_unit_test(bad_logits_end_an_answer_where_they_would_without_guesses),
        cmocka_unit_test(a_draft_model_without_memory_is_an_error_of_open),
        cmocka_unit_test(a_draft_model_that_fails_ends_answers_with_an_error_after_right_tokens),
        cmocka_unit_test(a_draft_model_guesses_for_every_request_of_a_long_row),
        cmocka_unit_test(choices_that_do_not_all_fit_the_draft_model_leave_it_to_those_that_do),
        cmocka_unit_test(one_beyond_the_draft_model_s_context_takes_no_rows_from_others),
        cmocka_unit_test(what_guesses_left_in_the_cache_serves_the_next_question),
        cmocka_unit_test(penalised_guesses_have_slots_of_their_own),
        cmocka_unit_test(what_cannot_be_is_refused_by_name),
        cmocka_unit_test(the_info_says_who_guesses_and_what_it_takes),
    };

    return cmocka_run_group_tests(tests, open_models, close_models);
}
