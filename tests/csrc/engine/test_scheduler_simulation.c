/* The scheduler driven by a seeded simulation: random arrivals, lengths, priorities, choices, endings, cancels and page
 * pools far too small, with a backend whose every output depends on all ids before it. Every other seed has two steps
 * in flight, and every other of the rest guesses: right ones and wrong ones in any mixture, with states kept and put
 * back as the engine does. After each step all accounts are checked, and every sampled id is compared with what a run
 * alone would give. A failure names the seed and the step.
 */
#include "engine/batch.h"
#include "fake_backend.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#ifndef HR_SIMULATION_STEPS
#define HR_SIMULATION_STEPS 1000000
#endif

enum { N_SIMS = 24, MAX_LEN = 64, MAX_PAGES = 64, STEPS_A_SEED = 10000, LONGEST_WAIT = 6000, STOP_IDS_MAX = 60 };

typedef struct sim_sequence {
    hr_sequence sequence;
    int32_t ids[MAX_LEN];
    uint32_t pages[MAX_LEN];
    int32_t stop_ids[STOP_IDS_MAX];
    hr_fake_truth truth;
    uint64_t hashes[MAX_LEN]; /* truth by position, below truth.n */
    bool is_live;
    uint64_t arrived_at;
} sim_sequence;

typedef struct simulation {
    uint64_t seed, counter, step;
    hr_fake fake;
    hr_scheduler_limits limits;
    hr_scheduler scheduler;
    const hr_backend_ops *ops;
    hr_backend *backend;
    uint64_t n_begun, n_finished_steps;
    uint32_t max_len, window, arrival_percent, alphabet, right_percent;
    sim_sequence sims[N_SIMS];
    uint32_t n_live;
    uint64_t serial;
    /* What happened, to know that the simulation reaches what it is for. */
    uint64_t n_finished, n_cancelled, n_held_seen, n_mismatches, n_scores, n_surplus, n_bad, n_drains, longest;
    uint64_t n_guesses, n_right, n_repeated, n_ends_within;
} simulation;

typedef struct totals {
    uint64_t steps, finished, preemptions, hits, held, scores, cancelled, longest, surplus, bad, drains, ahead;
    uint64_t guesses, right, repeated, ends_within;
} totals;

static uint32_t draw(simulation *sim, uint32_t below)
{
    HR_ASSERT(below > 0);
    return (uint32_t)(hr_rng_at(sim->seed, sim->counter++) % below);
}

#define CHECK(sim, condition)                                                                                      \
    do {                                                                                                           \
        if (!(condition))                                                                                          \
            fail_msg("seed %llu, step %llu: %s", (unsigned long long)(sim)->seed, (unsigned long long)(sim)->step, \
                     #condition);                                                                                  \
    } while (0)

static uint64_t colliding_hash(uint64_t before, const int32_t *ids, uint32_t n_ids)
{
    (void)before;
    return (uint64_t)ids[n_ids - 1] & 1;
}

static void open_simulation(simulation *sim, uint64_t seed, uint32_t missing_warmup)
{
    hr_backend_options options;

    memset(sim, 0, sizeof *sim);
    sim->seed = seed;
    sim->ops = seed % 2 ? &hr_backend_fake_ahead : &hr_backend_fake;
    hr_fake_init(&sim->fake, draw(sim, 4), 2 + draw(sim, 2), 1000);
    sim->window = hr_arch_warmup_rows(&sim->fake.model.arch);
    sim->limits.max_seqs = 1 + draw(sim, 8);
    sim->limits.max_rows = sim->limits.max_seqs + draw(sim, 24);
    sim->limits.max_outputs = sim->limits.max_seqs + draw(sim, sim->limits.max_rows - sim->limits.max_seqs + 1);
    sim->limits.page_tokens = 1u << draw(sim, 4);
    sim->limits.n_pages = 4 + draw(sim, MAX_PAGES - 4);
    sim->limits.warmup_rows = sim->window > missing_warmup ? sim->window - missing_warmup : 0;
    sim->limits.prefix_caching = draw(sim, 8) > 0;
    sim->limits.max_steps_in_flight = sim->ops->max_steps_in_flight;
    if (seed % 4 == 2) {
        sim->limits.speculative_rows = 1 + draw(sim, 40);
        sim->right_percent = draw(sim, 3) ? draw(sim, 101) : 100;
        sim->limits.n_sampling_slots = draw(sim, 2) ? sim->limits.max_seqs : 0;
    }
    sim->limits.hash = draw(sim, 4) == 0 ? colliding_hash : NULL;
    sim->max_len = sim->limits.n_pages * sim->limits.page_tokens;
    if (sim->max_len > MAX_LEN)
        sim->max_len = MAX_LEN;
    sim->arrival_percent = 2 + draw(sim, 60);
    sim->alphabet = 1 + draw(sim, 3);
    assert_true(hr_scheduler_init(&sim->scheduler, &sim->limits));
    options = (hr_backend_options){.page_tokens = sim->limits.page_tokens,
                                   .max_rows = sim->limits.max_rows,
                                   .max_spans = sim->limits.max_seqs,
                                   .max_outputs = sim->limits.max_outputs,
                                   .max_page_refs = sim->limits.max_seqs * MAX_LEN};
    assert_int_equal(
        sim->ops->open(&sim->fake.model, &options, sim->limits.n_pages, 2 * sim->limits.max_seqs, &sim->backend, NULL),
        HEADRACE_OK);
}

static void close_simulation(simulation *sim)
{
    hr_scheduler_deinit(&sim->scheduler);
    sim->ops->close(sim->backend);
    hr_fake_deinit(&sim->fake);
}

static void fill_sequence(simulation *sim, sim_sequence *s, const sim_sequence *leader, uint32_t n_prompt,
                          uint32_t max_tokens, uint32_t variant, int64_t order_key)
{
    bool is_leader = !leader;

    memset(s, 0, sizeof *s);
    s->is_live = true;
    s->arrived_at = sim->step;
    for (uint32_t i = 0; i < STOP_IDS_MAX; i++)
        s->stop_ids[i] = FAKE_EOS + (int32_t)i;
    s->sequence = (hr_sequence){
        .n_prompt = n_prompt,
        .capacity = n_prompt + max_tokens,
        .ids = s->ids,
        .pages = s->pages,
        .sampling = {.temperature = draw(sim, 2) ? 1.0f : 0.0f,
                     .seed = draw(sim, 5),
                     .min_tokens = draw(sim, 3),
                     .n_stop_ids = draw(sim, 2) ? draw(sim, STOP_IDS_MAX) : 0,
                     .stop_ids = s->stop_ids},
        .n_logprobs = -1,
        .n_prompt_logprobs = is_leader && draw(sim, 6) == 0 ? 0 : -1,
        .cache_salt = variant & 1,
        .order_key = order_key,
        .serial = sim->serial++,
        .leader = is_leader ? NULL : (hr_sequence *)(uintptr_t)&leader->sequence,
        .owner = s,
    };
    /* Few different prompts, so that they share beginnings: a random change somewhere, or none. */
    for (uint32_t i = 0; i < n_prompt; i++)
        s->ids[i] = leader ? leader->ids[i] : (int32_t)((i * 7 + variant) % 50);
    if (is_leader && draw(sim, 2))
        s->ids[draw(sim, n_prompt)] = (int32_t)(100 + draw(sim, sim->alphabet));
    hr_sequence_start(&s->sequence);
    hr_scheduler_add(&sim->scheduler, &s->sequence);
    sim->n_held_seen += s->sequence.place == HR_PLACE_HELD;
    sim->n_live++;
}

static void arrive(simulation *sim)
{
    uint32_t n = draw(sim, 5) == 0 ? 1 + draw(sim, 4) : 1, n_prompt = 1 + draw(sim, sim->max_len - 1);
    uint32_t max_tokens = 1 + draw(sim, sim->max_len - n_prompt), variant = draw(sim, 4);
    int64_t key = hr_order_key((int32_t)draw(sim, 5) - 2, sim->step * 1000000);
    const sim_sequence *leader = NULL;

    if (draw(sim, 2) && n_prompt > 8)
        n_prompt = 1 + draw(sim, 8);
    for (uint32_t i = 0; i < N_SIMS && n > 0; i++) {
        if (sim->sims[i].is_live || sim->sims[i].sequence.place == HR_PLACE_LEAVING)
            continue;
        fill_sequence(sim, &sim->sims[i], leader, n_prompt, max_tokens, variant, key);
        if (!leader)
            leader = &sim->sims[i];
        n--;
    }
}

static void retire(simulation *sim, sim_sequence *s)
{
    uint64_t waited = sim->step - s->arrived_at;

    hr_scheduler_remove(&sim->scheduler, &s->sequence); /* nothing if it was removed as a bad one */
    s->is_live = false;
    sim->n_live--;
    if (waited > sim->longest)
        sim->longest = waited;
    CHECK(sim, waited <= LONGEST_WAIT);
}

static void cancel_one(simulation *sim)
{
    sim_sequence *s = &sim->sims[draw(sim, N_SIMS)];

    if (!s->is_live)
        return;
    sim->n_cancelled++;
    retire(sim, s);
}

static uint64_t truth_at(simulation *sim, sim_sequence *s, uint32_t position)
{
    for (uint32_t i = s->truth.n; i <= position; i++)
        s->hashes[i] = hr_fake_truth_at(&s->truth, s->ids, i, sim->window);
    return s->hashes[position];
}

static void check_plan(simulation *sim, const hr_plan *plan, hr_sequence *const *ready, uint32_t n_ready)
{
    const hr_scheduler *scheduler = &sim->scheduler;

    CHECK(sim, plan->n_rows > 0 && plan->n_rows <= sim->limits.max_rows);
    CHECK(sim, plan->n_outputs <= sim->limits.max_outputs && plan->n_spans <= sim->limits.max_seqs);
    for (uint32_t i = 0; i < n_ready; i++) {
        bool is_planned = false;

        for (uint32_t k = 0; k < plan->n_spans; k++)
            is_planned |= plan->spans[k].sequence == ready[i];
        /* A sequence that waits only for its next token has its row in every step, unless it was preempted. */
        CHECK(sim, is_planned || ready[i]->place == HR_PLACE_WAITING || ready[i]->is_fresh);
    }
    for (uint32_t k = 0; k < plan->n_spans; k++)
        if (plan->spans[k].is_fresh && scheduler->waiting_first) /* nobody passes the first in line */
            CHECK(sim, hr_sequence_is_before(plan->spans[k].sequence, scheduler->waiting_first));
}

static hr_batch *batch_of_step(const simulation *sim, uint64_t i)
{
    return sim->ops->batch(sim->backend, (uint32_t)(i % sim->ops->max_steps_in_flight));
}

/* Guesses for a sequence: each is right with the seed's chance, and after a wrong one anything. */
static void guess(simulation *sim, hr_sequence *sequence)
{
    sim_sequence *s = sequence->owner;
    uint32_t n = hr_scheduler_guesses_for(&sim->scheduler, sequence), wanted = draw(sim, 8);
    hr_fake_truth truth = s->truth;

    for (sequence->n_proposed = 0; sequence->n_proposed < (n < wanted ? n : wanted); sequence->n_proposed++) {
        uint32_t position = sequence->n_total + sequence->n_proposed;

        s->ids[position] = draw(sim, 100) < sim->right_percent
                               ? hr_fake_sample(hr_fake_truth_at(&truth, s->ids, position - 1, sim->window),
                                                &sequence->sampling, position - sequence->n_prompt)
                               : (int32_t)draw(sim, FAKE_VOCAB);
    }
}

static void copy_states(simulation *sim, const hr_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_spans; i++) {
        uint32_t slot = plan->spans[i].sequence->state_slot;

        sim->n_guesses += plan->spans[i].n_proposed;
        if (plan->spans[i].n_proposed > 0)
            sim->ops->copy_slot(sim->backend, slot, sim->limits.max_seqs + slot);
    }
}

/* False: the step in flight has to be finished first. */
static bool begin_step(simulation *sim)
{
    hr_sequence *ready[N_SIMS];
    uint32_t n_ready = 0;
    const hr_plan *plan;

    for (uint32_t i = 0; i < sim->scheduler.n_running; i++)
        if (hr_sequence_is_ready(sim->scheduler.running[i])) {
            ready[n_ready++] = sim->scheduler.running[i];
            if (sim->limits.speculative_rows > 0)
                guess(sim, sim->scheduler.running[i]);
        }
    plan = hr_scheduler_plan(&sim->scheduler);
    if (plan->n_rows == 0) {
        CHECK(sim, sim->scheduler.n_in_flight > 0);
        sim->n_drains++;
        return false;
    }
    check_plan(sim, plan, ready, n_ready);
    hr_batch_fill(batch_of_step(sim, sim->n_begun), plan);
    copy_states(sim, plan);
    CHECK(sim, sim->ops->step_begin(sim->backend, batch_of_step(sim, sim->n_begun), NULL) == HEADRACE_OK);
    sim->n_begun++;
    return true;
}

static void end_by_token(simulation *sim, sim_sequence *s, headrace_finish finish, int32_t stop_id)
{
    const hr_sequence *sequence = &s->sequence;

    if (finish == HEADRACE_FINISH_STOP) {
        CHECK(sim, stop_id >= FAKE_EOS && stop_id < FAKE_EOS + (int32_t)sequence->sampling.n_stop_ids);
        CHECK(sim, hr_sequence_n_output(sequence) > sequence->sampling.min_tokens);
    } else { /* known by count: nothing is planned beyond it */
        CHECK(sim, sequence->n_total == sequence->capacity && sequence->n_in_flight == 0);
    }
    CHECK(sim, sequence->next_row <= sequence->n_total); /* at most one row too many */
    sim->n_finished++;
    retire(sim, s);
}

static void apply_tokens(simulation *sim, const hr_planned_span *span, const hr_sample *samples, uint32_t n_tokens)
{
    hr_sequence *sequence = span->sequence;
    sim_sequence *s = sequence->owner;
    uint32_t position = span->start + span->n_rows - 1 - span->n_proposed;
    headrace_finish finish = HEADRACE_FINISH_NONE;
    int32_t stop_id = -1;

    CHECK(sim, n_tokens >= 1 && position == sequence->n_total - 1);
    CHECK(sim, sequence->n_prompt_logprobs < 0 || sequence->n_scored == sequence->n_prompt - 1);
    sim->n_right += n_tokens - 1;
    for (uint32_t i = 0; i < n_tokens; i++) {
        CHECK(sim, finish == HEADRACE_FINISH_NONE); /* nothing is taken after the end */
        sim->n_mismatches += samples[i].id != hr_fake_sample(truth_at(sim, s, position + i), &sequence->sampling,
                                                             hr_sequence_n_output(sequence));
        finish = hr_sequence_accept(sequence, samples[i].id, &stop_id);
    }
    /* Where every guess is right, all are taken. */
    CHECK(sim, sim->right_percent < 100 || n_tokens == span->n_proposed + 1 || finish != HEADRACE_FINISH_NONE);
    if (finish == HEADRACE_FINISH_NONE)
        return;
    sim->n_ends_within += n_tokens > 1 && n_tokens <= span->n_proposed;
    end_by_token(sim, s, finish, stop_id);
}

static void apply_span(simulation *sim, const hr_planned_span *span, const hr_sample *samples)
{
    hr_sequence *sequence = span->sequence;
    sim_sequence *s = sequence->owner;
    uint32_t n_tokens;

    if (!s->is_live) {
        sim->n_surplus++;
        return;
    }
    for (uint32_t i = 0; i < span->n_scores; i++) {
        uint64_t hash = truth_at(sim, s, span->score_first + i);

        CHECK(sim, span->score_first + i == sequence->n_scored + i);
        sim->n_mismatches += samples[i].logprob != hr_fake_score(hash, s->ids[span->score_first + i + 1]);
        sim->n_scores++;
    }
    if (draw(sim, 1000) == 0) { /* as if its logits were bad */
        hr_scheduler_remove_bad(&sim->scheduler, sequence);
        sim->n_bad++;
        retire(sim, s);
        return;
    }
    n_tokens = span->samples ? hr_sequence_n_right(sequence, samples + span->n_scores, span->n_proposed) : 0;
    if (span->n_proposed == 0) {
        hr_scheduler_commit(&sim->scheduler, span);
    } else if (hr_scheduler_commit_guesses(&sim->scheduler, span, n_tokens)) {
        sim->ops->copy_slot(sim->backend, sim->limits.max_seqs + sequence->state_slot, sequence->state_slot);
        sim->n_repeated += sequence->n_repeat;
    }
    if (span->samples)
        apply_tokens(sim, span, samples + span->n_scores, n_tokens);
}

static void finish_step(simulation *sim)
{
    const hr_batch *batch = batch_of_step(sim, sim->n_finished_steps++);
    const hr_plan *plan;

    CHECK(sim, sim->ops->step_wait(sim->backend, NULL) == HEADRACE_OK);
    plan = hr_scheduler_finish(&sim->scheduler);
    for (uint32_t i = 0; i < plan->n_spans; i++)
        apply_span(sim, &plan->spans[i], batch->samples + plan->spans[i].first_output);
}

static void check_accounts(simulation *sim)
{
    uint32_t scratch[MAX_PAGES];
    const char *wrong = hr_scheduler_check(&sim->scheduler, scratch);

    if (wrong)
        fail_msg("seed %llu, step %llu: %s", (unsigned long long)sim->seed, (unsigned long long)sim->step, wrong);
    CHECK(sim, hr_scheduler_n_sequences(&sim->scheduler) == sim->n_live);
}

static void step(simulation *sim, bool may_arrive)
{
    if (may_arrive && draw(sim, 100) < sim->arrival_percent)
        arrive(sim);
    if (draw(sim, 100) < 2)
        cancel_one(sim);
    sim->step++;
    while (sim->n_live > 0 && sim->scheduler.n_in_flight < sim->ops->max_steps_in_flight && begin_step(sim))
        check_accounts(sim);
    if (draw(sim, 100) < 1) {
        cancel_one(sim);
        check_accounts(sim);
    }
    if (sim->scheduler.n_in_flight == 0)
        return;
    finish_step(sim);
    check_accounts(sim);
}

/* One seed: arrivals for n_steps, then the rest runs out. Returns the number of ids that were not the solo run's. */
static uint64_t simulate(uint64_t seed, uint64_t n_steps, uint32_t missing_warmup, totals *sum)
{
    static simulation sim;

    open_simulation(&sim, seed, missing_warmup);
    while (sim.step < n_steps)
        step(&sim, true);
    while (sim.n_live > 0 || sim.scheduler.n_in_flight > 0) {
        step(&sim, false);
        CHECK(&sim, sim.step < n_steps + 2 * LONGEST_WAIT);
    }
    CHECK(&sim, sim.scheduler.pages.n_held == 0 && sim.scheduler.slots.n_free == sim.limits.max_seqs);
    sum->steps += sim.step;
    sum->finished += sim.n_finished;
    sum->cancelled += sim.n_cancelled;
    sum->preemptions += sim.scheduler.n_preemptions;
    sum->hits += sim.scheduler.prefix_hits;
    sum->held += sim.n_held_seen;
    sum->scores += sim.n_scores;
    sum->surplus += sim.n_surplus;
    sum->bad += sim.n_bad;
    sum->drains += sim.n_drains;
    sum->ahead += atomic_load(&sim.fake.n_ahead);
    sum->guesses += sim.n_guesses;
    sum->right += sim.n_right;
    sum->repeated += sim.n_repeated;
    sum->ends_within += sim.n_ends_within;
    if (sim.longest > sum->longest)
        sum->longest = sim.longest;
    close_simulation(&sim);
    return sim.n_mismatches;
}

static void a_million_random_steps_leak_nothing_starve_nobody_and_equal_solo_runs(void **state)
{
    totals sum = {0};
    uint64_t steps = HR_SIMULATION_STEPS < STEPS_A_SEED ? HR_SIMULATION_STEPS : STEPS_A_SEED;

    (void)state;
    for (uint64_t seed = 1; sum.steps < HR_SIMULATION_STEPS; seed++) {
        uint64_t n_mismatches = simulate(seed, steps, 0, &sum);

        if (n_mismatches)
            fail_msg("seed %llu: %llu outputs differ from the solo run", (unsigned long long)seed,
                     (unsigned long long)n_mismatches);
    }
    print_message(
        "%llu steps: %llu finished, %llu cancelled, %llu preemptions, %llu tokens from the cache, %llu siblings held, "
        "%llu scores, longest stay %llu steps; %llu begun ahead, %llu surplus spans, %llu drains, %llu bad\n",
        (unsigned long long)sum.steps, (unsigned long long)sum.finished, (unsigned long long)sum.cancelled,
        (unsigned long long)sum.preemptions, (unsigned long long)sum.hits, (unsigned long long)sum.held,
        (unsigned long long)sum.scores, (unsigned long long)sum.longest, (unsigned long long)sum.ahead,
        (unsigned long long)sum.surplus, (unsigned long long)sum.drains, (unsigned long long)sum.bad);
    print_message("%llu guesses, %llu right, %llu rows repeated, %llu ends before the last guess\n",
                  (unsigned long long)sum.guesses, (unsigned long long)sum.right, (unsigned long long)sum.repeated,
                  (unsigned long long)sum.ends_within);
    assert_true(sum.finished > sum.steps / 100 && sum.preemptions > sum.steps / 1000 && sum.hits > sum.steps / 100);
    assert_true(sum.held > 0 && sum.scores > 0 && sum.cancelled > 0 && sum.bad > 0);
    assert_true(sum.ahead > sum.steps / 10 && sum.surplus > sum.steps / 1000 && sum.drains > 0);
    assert_true(sum.guesses > sum.steps / 20 && sum.right > sum.guesses / 10 && sum.right < sum.guesses);
    assert_true(sum.repeated > 0 && sum.ends_within > 0);
}

static void a_warm_up_that_is_one_row_short_is_noticed(void **state)
{
    totals sum = {0};
    uint64_t n_mismatches = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++)
        n_mismatches += simulate(seed, 500, 1, &sum);
    assert_true(n_mismatches > 0);
}

static void the_same_seed_gives_the_same_run(void **state)
{
    totals first = {0}, second = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        (void)simulate(seed, 500, 0, &first);
        (void)simulate(seed, 500, 0, &second);
    }
    assert_memory_equal(&first, &second, sizeof first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_million_random_steps_leak_nothing_starve_nobody_and_equal_solo_runs),
        cmocka_unit_test(a_warm_up_that_is_one_row_short_is_noticed),
        cmocka_unit_test(the_same_seed_gives_the_same_run),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
