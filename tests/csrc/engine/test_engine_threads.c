/* Many clients at once on one engine, over the hashing backend: submit, read fast and slowly, cancel, stop, release,
 * drain. Each complete answer must be the solo run's, each request must end exactly once, and nothing may be left
 * behind. Run under the thread sanitizer.
 */
#include "engine_client.h"
#include "fake_backend.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { N_CLIENTS = 4, MODEL_LEN = 120, PAGE_BYTES = 4 * 8 };
#ifndef HR_REQUESTS_A_CLIENT
#define HR_REQUESTS_A_CLIENT 300
#endif

static const hr_backend_ops *ops = &hr_backend_fake;

typedef struct counters {
    _Atomic uint32_t n_complete, n_cancelled, n_stopped, n_failed, n_refused, n_wrong, n_notified, n_flushed;
} counters;

typedef struct client {
    hr_engine *engine;
    counters *counts;
    uint64_t seed;
    uint32_t window;
} client;

static void on_notify(void *user)
{
    counters *counts = user;

    atomic_fetch_add(&counts->n_notified, 1);
}

static void on_flush(void *user)
{
    counters *counts = user;

    atomic_fetch_add(&counts->n_flushed, 1);
}

/* Compares one choice; `is_partial`: it was cut off, so a beginning is enough. */
static void judge(client *c, const client_answer *answer, const client_answer *truth, bool is_partial)
{
    bool is_right =
        answer->n_ids <= truth->n_ids && memcmp(answer->ids, truth->ids, answer->n_ids * sizeof(int32_t)) == 0;

    switch (answer->finish) {
    case HEADRACE_FINISH_STOP:
        if (answer->stop_id < 0) { /* hr_request_stop_choice */
            atomic_fetch_add(&c->counts->n_stopped, 1);
            is_right = is_right && is_partial;
            break;
        }
        __attribute__((fallthrough));
    case HEADRACE_FINISH_LENGTH:
        atomic_fetch_add(&c->counts->n_complete, 1);
        is_right = is_right && answer->n_ids == truth->n_ids && answer->finish == truth->finish;
        break;
    case HEADRACE_FINISH_ABORT:
        atomic_fetch_add(&c->counts->n_cancelled, 1);
        is_right = is_right && is_partial;
        break;
    default:
        atomic_fetch_add(&c->counts->n_failed, 1);
        break;
    }
    if (!is_right)
        atomic_fetch_add(&c->counts->n_wrong, 1);
}

/* One request of random shape and fate. */
static void ask_once(client *c, uint64_t k)
{
    static const int32_t eos_ids[] = {FAKE_EOS, 8};
    uint64_t dice = hr_rng_at(c->seed, k);
    int32_t prompt[MODEL_LEN];
    headrace_sampling sampling = client_greedy((uint32_t)(1 + dice % 40));
    hr_submit what = {.prompt_ids = prompt,
                      .n_prompt = (uint32_t)(1 + (dice >> 8) % 70),
                      .n = (uint32_t)(1 + ((dice >> 16) % 4 == 0 ? (dice >> 20) % 4 : 0)),
                      .sampling = &sampling,
                      .eos_ids = eos_ids,
                      .n_eos_ids = 2,
                      .priority = (int32_t)((dice >> 24) % 3) - 1,
                      .notify = on_notify,
                      .notify_user = c->counts,
                      .flush = on_flush,
                      .flush_user = c->counts};
    uint32_t fate = (uint32_t)(dice >> 32) % 8;
    client_answer answers[CLIENT_CHOICES_MAX], truth;
    hr_request *request;

    client_prompt(prompt, what.n_prompt, (uint32_t)((dice >> 40) % 60), (uint32_t)((dice >> 48) % 3));
    sampling.temperature = (dice >> 52) % 2 ? 1.0f : 0.0f;
    sampling.has_seed = true;
    sampling.seed = dice >> 56;
    memset(answers, 0, sizeof answers);
    if (hr_engine_submit(c->engine, &what, &request, NULL) != HEADRACE_OK) {
        atomic_fetch_add(&c->counts->n_refused, 1);
        return;
    }
    if (fate == 0) {
        hr_request_release(request); /* leaves at once */
        return;
    }
    if (fate == 1 || fate == 2)
        (void)hr_request_wait(request, 2000);
    if (fate == 1)
        hr_request_cancel(request);
    if (fate == 2)
        hr_request_stop_choice(request, 0);
    if (fate == 3)
        (void)usleep(3000); /* reads slowly */
    client_collect(request, answers);
    for (uint32_t i = 0; i < what.n; i++) {
        client_truth(&what, i, sampling.seed, MODEL_LEN, c->window, &truth);
        judge(c, &answers[i], &truth, fate == 1 || (fate == 2 && i == 0));
    }
    hr_request_release(request);
}

static void *run_client(void *argument)
{
    client *c = argument;

    for (uint64_t k = 0; k < HR_REQUESTS_A_CLIENT; k++)
        ask_once(c, k);
    return NULL;
}

static void run(hr_fake *fake, uint32_t n_pages, counters *counts, headrace_stats *stats)
{
    hr_engine_config config = {.model = &fake->model,
                               .backend_ops = ops,
                               .max_model_len = MODEL_LEN,
                               .max_num_seqs = 6,
                               .max_num_batched_tokens = 24,
                               .page_tokens = 4,
                               .kv_cache_bytes = (uint64_t)n_pages * PAGE_BYTES};
    hr_engine *engine;
    client clients[N_CLIENTS];
    pthread_t threads[N_CLIENTS];

    memset(counts, 0, sizeof *counts);
    assert_int_equal(hr_engine_open(&config, &engine, NULL), HEADRACE_OK);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        clients[i] =
            (client){.engine = engine, .counts = counts, .seed = i, .window = hr_arch_warmup_rows(&fake->model.arch)};
        assert_int_equal(pthread_create(&threads[i], NULL, run_client, &clients[i]), 0);
    }
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        (void)pthread_join(threads[i], NULL);
    assert_int_equal(hr_engine_drain(engine, 60000000), HEADRACE_OK);
    hr_engine_get_stats(engine, stats);
    assert_int_equal(stats->n_pages_used, 0);
    assert_int_equal(stats->n_slots_used, 0);
    assert_int_equal(atomic_load(&counts->n_wrong), 0);
    hr_engine_close(engine);
}

static void answers_of_many_threads_equal_their_solo_runs(void **state)
{
    hr_fake fake;
    counters counts;
    headrace_stats stats;

    (void)state;
    hr_fake_init(&fake, 3, 3, MODEL_LEN);
    run(&fake, 40, &counts, &stats); /* room for little more than one full context: preempts all the time */
    assert_true(stats.preemptions > 0 && stats.prefix_hits > 0);
    /* How many cancels and stops still find their answer running is the machine's business; what they get is not. */
    assert_true(counts.n_complete > 0);
    assert_int_equal(counts.n_failed, 0);
    assert_int_equal(counts.n_refused, 0);
    assert_true(counts.n_notified >= counts.n_complete / 4 && counts.n_flushed > 0);
    hr_fake_deinit(&fake);
}

static void a_fault_in_the_middle_ends_everything_once(void **state)
{
    hr_fake fake;
    counters counts;
    headrace_stats stats;

    (void)state;
    hr_fake_init(&fake, 2, 4, MODEL_LEN);
    atomic_store(&fake.fail_at_step, 200);
    run(&fake, 60, &counts, &stats);
    assert_false(stats.healthy);
    assert_true(counts.n_failed > 0 && counts.n_refused > 0 && counts.n_complete > 0);
    atomic_store(&fake.fail_at_step, -1);
    atomic_store(&fake.fail_at_wait, 200);
    run(&fake, 60, &counts, &stats);
    assert_false(stats.healthy);
    assert_true(counts.n_refused > 0 && counts.n_complete > 0); /* that step may have held only what was cancelled */
    hr_fake_deinit(&fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_of_many_threads_equal_their_solo_runs),
        cmocka_unit_test(a_fault_in_the_middle_ends_everything_once),
    };

    int n_failed = cmocka_run_group_tests_name("one step in flight", tests, NULL, NULL);

    ops = &hr_backend_fake_ahead;
    return n_failed + cmocka_run_group_tests_name("two steps in flight", tests, NULL, NULL);
}
