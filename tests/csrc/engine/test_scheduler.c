/* Single decisions of the scheduler, one fact a case. The long run is test_scheduler_simulation.c. */
#include "engine/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { LEN = 400, N_SEQUENCES = 12 };

typedef struct bench {
    hr_scheduler scheduler;
    hr_sequence sequences[N_SEQUENCES];
    int32_t ids[N_SEQUENCES][LEN];
    uint32_t pages[N_SEQUENCES][LEN];
    uint32_t scratch[512];
    uint32_t n;
} bench;

static bench b;

static const hr_scheduler_limits usual = {
    .max_rows = 16, .max_outputs = 16, .max_seqs = 4, .n_pages = 100, .page_tokens = 4, .prefix_caching = true};

static void open_bench(const hr_scheduler_limits *limits)
{
    memset(&b, 0, sizeof b);
    assert_true(hr_scheduler_init(&b.scheduler, limits));
}

static void close_bench(void)
{
    for (uint32_t i = 0; i < b.n; i++)
        hr_scheduler_remove(&b.scheduler, &b.sequences[i]);
    assert_null(hr_scheduler_check(&b.scheduler, b.scratch));
    assert_int_equal(b.scheduler.pages.n_held, 0);
    hr_scheduler_deinit(&b.scheduler);
}

/* A sequence whose prompt counts up from `first_id`. */
static hr_sequence *add_at(uint32_t n_prompt, uint32_t max_tokens, int32_t first_id, int64_t order_key,
                           hr_sequence *leader, int32_t n_prompt_logprobs)
{
    hr_sequence *s = &b.sequences[b.n];

    *s = (hr_sequence){.n_prompt = n_prompt,
                       .capacity = n_prompt + max_tokens,
                       .ids = b.ids[b.n],
                       .pages = b.pages[b.n],
                       .n_logprobs = -1,
                       .n_prompt_logprobs = n_prompt_logprobs,
                       .order_key = order_key,
                       .serial = b.n,
                       .leader = leader};
    for (uint32_t i = 0; i < n_prompt; i++)
        s->ids[i] = first_id + (int32_t)i;
    b.n++;
    hr_sequence_start(s);
    hr_scheduler_add(&b.scheduler, s);
    return s;
}

static hr_sequence *add(uint32_t n_prompt, uint32_t max_tokens)
{
    return add_at(n_prompt, max_tokens, (int32_t)b.n * 1000, b.n, NULL, -1);
}

/* Plans, and does what a step does: every sampling sequence says id 5 and ends at its capacity. Returns the plan. */
static const hr_plan *run_step(void)
{
    const hr_plan *plan = hr_scheduler_plan(&b.scheduler);

    assert_ptr_equal(hr_scheduler_finish(&b.scheduler), plan);
    for (uint32_t i = 0; i < plan->n_spans; i++) {
        int32_t stop_id;

        hr_scheduler_commit(&b.scheduler, &plan->spans[i]);
        if (plan->spans[i].samples && hr_sequence_accept(plan->spans[i].sequence, 5, &stop_id) != HEADRACE_FINISH_NONE)
            hr_scheduler_remove(&b.scheduler, plan->spans[i].sequence);
    }
    assert_null(hr_scheduler_check(&b.scheduler, b.scratch));
    return plan;
}

static const hr_planned_span *span_of(const hr_plan *plan, const hr_sequence *sequence)
{
    for (uint32_t i = 0; i < plan->n_spans; i++)
        if (plan->spans[i].sequence == sequence)
            return &plan->spans[i];
    return NULL;
}

static void a_decode_row_is_never_starved_by_a_long_prompt(void **state)
{
    hr_sequence *answering, *reading;
    const hr_plan *plan;

    (void)state;
    open_bench(&usual);
    answering = add(3, 50);
    (void)run_step();
    reading = add(100, 1);
    for (uint32_t i = 0; i < 6; i++) {
        plan = run_step();
        assert_ptr_equal(plan->spans[0].sequence, answering);
        assert_int_equal(plan->spans[0].n_rows, 1);
        assert_int_equal(span_of(plan, reading)->n_rows, 15);
    }
    close_bench();
}

static void one_step_holds_chunks_of_several_prompts(void **state)
{
    hr_sequence *first, *second, *third;
    const hr_plan *plan;

    (void)state;
    open_bench(&usual);
    first = add(5, 2);
    second = add(4, 2);
    third = add(30, 2);
    plan = run_step();
    assert_int_equal(plan->n_rows, 16);
    assert_true(span_of(plan, first)->samples && span_of(plan, second)->samples);
    assert_int_equal(span_of(plan, third)->n_rows, 7);
    assert_false(span_of(plan, third)->samples);
    close_bench();
}

static void requests_start_in_the_order_of_arrival(void **state)
{
    hr_scheduler_limits one = usual;
    hr_sequence *in_order[4];

    (void)state;
    one.max_seqs = 1;
    open_bench(&one);
    for (uint32_t i = 0; i < 4; i++)
        in_order[i] = add(4, 2);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t k = 0; k < 2; k++)
            assert_ptr_equal(run_step()->spans[0].sequence, in_order[i]);
    close_bench();
}

static void a_lower_priority_number_starts_first_until_the_other_has_aged(void **state)
{
    hr_scheduler_limits one = usual;
    const uint64_t second = 1000000;
    hr_sequence *running, *patient, *urgent, *late_urgent;

    (void)state;
    one.max_seqs = 1;
    open_bench(&one);
    running = add_at(4, 1, 0, hr_order_key(0, 0), NULL, -1);
    patient = add_at(4, 1, 100, hr_order_key(1, 1 * second), NULL, -1);
    urgent = add_at(4, 1, 200, hr_order_key(0, 5 * second), NULL, -1);
    late_urgent = add_at(4, 1, 300, hr_order_key(0, 12 * second), NULL, -1);
    assert_ptr_equal(run_step()->spans[0].sequence, running);
    assert_ptr_equal(run_step()->spans[0].sequence, urgent);
    assert_ptr_equal(run_step()->spans[0].sequence, patient);
    assert_ptr_equal(run_step()->spans[0].sequence, late_urgent);
    assert_true(hr_order_key(INT32_MAX, 0) < hr_order_key(0, 1001 * second)); /* nobody waits for ever */
    assert_true(hr_order_key(INT32_MIN, 0) < hr_order_key(-1, 0));
    close_bench();
}

static void a_small_request_does_not_pass_a_big_one_that_waits_for_pages(void **state)
{
    hr_scheduler_limits few = usual;
    hr_sequence *big, *small;
    const hr_plan *plan;

    (void)state;
    few.n_pages = 10;
    open_bench(&few);
    (void)add(15, 10); /* 4 pages, later 7 */
    big = add(30, 2);  /* 8 pages */
    small = add(2, 2); /* 1 page */
    while (big->place == HR_PLACE_WAITING) {
        plan = run_step();
        assert_null(span_of(plan, small));
    }
    close_bench();
}

static void when_pages_run_out_the_youngest_is_preempted_and_keeps_its_ids(void **state)
{
    hr_scheduler_limits few = usual;
    hr_sequence *old, *young;
    uint32_t n_said;

    (void)state;
    few.n_pages = 6;
    few.prefix_caching = false;
    open_bench(&few);
    old = add(7, 14);
    young = add(6, 14);
    while (b.scheduler.n_preemptions == 0)
        (void)run_step();
    assert_int_equal(old->place, HR_PLACE_RUNNING);
    assert_int_equal(young->place, HR_PLACE_WAITING);
    assert_int_equal(young->next_row, 0);
    n_said = hr_sequence_n_output(young);
    assert_true(n_said > 0);
    while (young->place == HR_PLACE_WAITING)
        (void)run_step();
    assert_int_equal(old->place, HR_PLACE_NOWHERE); /* it ended first */
    while (young->place != HR_PLACE_NOWHERE)
        (void)run_step();
    assert_int_equal(young->n_total, 20);
    close_bench();
}

static void a_preempted_sequence_does_not_come_back_in_the_same_step(void **state)
{
    hr_scheduler_limits few = usual;
    hr_sequence *young;
    uint64_t before;

    (void)state;
    few.n_pages = 6;
    open_bench(&few);
    (void)add(7, 14);
    young = add(6, 14);
    (void)add(1, 1);
    while (hr_scheduler_n_sequences(&b.scheduler) > 0) {
        const hr_plan *plan;

        before = b.scheduler.n_preemptions;
        plan = run_step();
        if (b.scheduler.n_preemptions > before)
            assert_null(span_of(plan, young));
    }
    assert_true(b.scheduler.n_preemptions > 0);
    close_bench();
}

static void a_hit_ends_at_a_page_border_and_runs_warm_up_rows_first(void **state)
{
    hr_scheduler_limits warm = usual;
    hr_sequence *first, *second;
    const hr_plan *plan;

    (void)state;
    warm.warmup_rows = 3;
    warm.max_rows = 64;
    open_bench(&warm);
    first = add_at(18, 1, 0, 0, NULL, -1);
    (void)run_step();
    assert_int_equal(first->place, HR_PLACE_NOWHERE);
    second = add_at(18, 1, 0, 1, NULL, -1);
    plan = run_step();
    assert_int_equal(second->n_cached_tokens, 16);
    assert_int_equal(plan->spans[0].start, 13);
    assert_int_equal(plan->spans[0].n_warmup, 3);
    assert_int_equal(plan->spans[0].n_rows, 5);
    assert_true(plan->spans[0].is_fresh);
    assert_int_equal(b.scheduler.prefix_hits, 16);
    assert_int_equal(b.scheduler.prefix_queries, 36);
    close_bench();
}

static void at_least_one_token_is_left_to_run(void **state)
{
    hr_sequence *second;

    (void)state;
    open_bench(&usual);
    (void)add_at(16, 1, 0, 0, NULL, -1);
    (void)run_step();
    second = add_at(16, 1, 0, 1, NULL, -1);
    assert_int_equal(run_step()->n_rows, 4);
    assert_int_equal(second->n_cached_tokens, 12);
    close_bench();
}

static void hits_shorter_than_twice_the_warm_up_are_not_taken(void **state)
{
    static const struct {
        uint32_t warmup, taken;
    } cases[] = {{5, 12}, {6, 12}, {7, 0}, {13, 0}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_scheduler_limits warm = usual;
        hr_sequence *second;

        warm.warmup_rows = cases[i].warmup;
        open_bench(&warm);
        (void)add_at(14, 1, 0, 0, NULL, -1);
        (void)run_step();
        second = add_at(14, 1, 0, 1, NULL, -1);
        (void)run_step();
        assert_int_equal(second->n_cached_tokens, cases[i].taken);
        close_bench();
    }
}

static void warm_up_rows_may_fill_more_than_a_step(void **state)
{
    hr_scheduler_limits warm = usual;
    const hr_plan *plan;

    (void)state;
    warm.warmup_rows = 10;
    warm.max_rows = 4;
    open_bench(&warm);
    (void)add_at(25, 1, 0, 0, NULL, -1);
    while (hr_scheduler_n_sequences(&b.scheduler) > 0)
        (void)run_step();
    (void)add_at(25, 1, 0, 1, NULL, -1);
    for (uint32_t i = 0; i < 3; i++) {
        plan = run_step();
        assert_int_equal(plan->spans[0].start, 14 + 4 * i);
        assert_int_equal(plan->spans[0].n_warmup, i < 2 ? 4 : 2);
        assert_int_equal(plan->spans[0].is_fresh, i == 0);
    }
    assert_true(plan->spans[0].n_rows == 3 && plan->spans[0].samples);
    close_bench();
}

static void prompt_logprobs_run_every_prompt_row_under_the_output_budget(void **state)
{
    hr_scheduler_limits narrow = usual;
    hr_sequence *scoring;
    uint32_t n_scores = 0;

    (void)state;
    narrow.max_outputs = 5;
    open_bench(&narrow);
    (void)add_at(18, 1, 0, 0, NULL, -1);
    while (hr_scheduler_n_sequences(&b.scheduler) > 0)
        (void)run_step();
    scoring = add_at(18, 1, 0, 1, NULL, 2);
    while (scoring->place != HR_PLACE_NOWHERE) {
        const hr_plan *plan = run_step();

        assert_true(plan->n_outputs <= 5);
        n_scores += plan->spans[0].n_scores;
    }
    assert_int_equal(n_scores, 17);
    assert_int_equal(scoring->n_cached_tokens, 0);
    close_bench();
}

static void siblings_wait_for_the_leaders_prompt_and_then_share_its_pages(void **state)
{
    hr_sequence *leader, *siblings[2];

    (void)state;
    open_bench(&usual);
    leader = add_at(40, 4, 0, 0, NULL, -1);
    for (uint32_t i = 0; i < 2; i++)
        siblings[i] = add_at(40, 4, 0, 0, leader, -1);
    (void)run_step();
    (void)run_step();
    assert_int_equal(siblings[0]->place, HR_PLACE_HELD);
    assert_int_equal(b.scheduler.n_held, 2);
    (void)run_step();
    assert_int_equal(siblings[0]->place, HR_PLACE_WAITING);
    (void)run_step();
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(siblings[i]->n_cached_tokens, 36);
        assert_int_equal(siblings[i]->pages[8], leader->pages[8]);
        assert_int_equal(siblings[i]->pages[9], leader->pages[9]); /* computed twice, kept once */
    }
    (void)run_step();
    for (uint32_t i = 0; i < 2; i++)
        assert_int_not_equal(siblings[i]->pages[10], leader->pages[10]); /* answers differ */
    close_bench();
}

static void siblings_go_on_without_a_leader_that_was_cancelled(void **state)
{
    hr_sequence *leader, *stays, *leaves;

    (void)state;
    open_bench(&usual);
    leader = add_at(40, 4, 0, 0, NULL, -1);
    leaves = add_at(40, 4, 0, 0, leader, -1);
    stays = add_at(40, 4, 0, 0, leader, -1);
    hr_scheduler_remove(&b.scheduler, leaves);
    assert_int_equal(b.scheduler.n_held, 1);
    hr_scheduler_remove(&b.scheduler, leader);
    assert_int_equal(stays->place, HR_PLACE_WAITING);
    assert_ptr_equal(run_step()->spans[0].sequence, stays);
    close_bench();
}

static void a_removed_bad_sequence_leaves_nothing_in_the_cache(void **state)
{
    hr_sequence *bad, *next;

    (void)state;
    open_bench(&usual);
    bad = add_at(14, 4, 0, 0, NULL, -1);
    (void)run_step();
    assert_int_equal(b.scheduler.cache.n_published, 3);
    hr_scheduler_remove_bad(&b.scheduler, bad);
    assert_int_equal(b.scheduler.cache.n_published, 0);
    next = add_at(14, 4, 0, 1, NULL, -1);
    (void)run_step();
    assert_int_equal(next->n_cached_tokens, 0);
    close_bench();
}

/* ---------------------------------------------------------------- two steps in flight */

static void open_ahead(uint32_t n_pages)
{
    hr_scheduler_limits ahead = usual;

    ahead.max_steps_in_flight = 2;
    ahead.n_pages = n_pages;
    open_bench(&ahead);
}

static const hr_plan *plan_step(void)
{
    const hr_plan *plan = hr_scheduler_plan(&b.scheduler);

    assert_null(hr_scheduler_check(&b.scheduler, b.scratch));
    return plan;
}

/* Finishes the oldest step; sampling sequences that are still there say `id` and end with 9. */
static void finish_step(int32_t id)
{
    const hr_plan *plan = hr_scheduler_finish(&b.scheduler);

    for (uint32_t i = 0; i < plan->n_spans; i++) {
        hr_sequence *sequence = plan->spans[i].sequence;
        int32_t stop_id;

        if (sequence->place != HR_PLACE_RUNNING)
            continue;
        hr_scheduler_commit(&b.scheduler, &plan->spans[i]);
        if (plan->spans[i].samples && (hr_sequence_accept(sequence, id, &stop_id) != HEADRACE_FINISH_NONE || id == 9))
            hr_scheduler_remove(&b.scheduler, sequence);
    }
    assert_null(hr_scheduler_check(&b.scheduler, b.scratch));
}

static void a_row_is_planned_while_its_id_is_being_sampled(void **state)
{
    hr_sequence *one;
    const hr_plan *plan;

    (void)state;
    open_ahead(100);
    one = add(6, 10);
    assert_int_equal(plan_step()->n_rows, 6);
    plan = plan_step();
    assert_int_equal(plan->n_rows, 1);
    assert_int_equal(plan->spans[0].start, 6);
    assert_true(plan->spans[0].samples);
    assert_int_equal(one->n_total, 6);
    assert_int_equal(one->n_pending, 2);
    finish_step(5);
    assert_int_equal(one->n_pending, 1);
    finish_step(6);
    assert_int_equal(one->n_pending, 0);
    assert_int_equal(one->n_total, 8);
    assert_int_equal(one->ids[7], 6);
    close_bench();
}

static void nothing_is_planned_beyond_the_last_token_that_may_come(void **state)
{
    hr_sequence *one;

    (void)state;
    open_ahead(100);
    one = add(6, 2);
    (void)plan_step();
    assert_int_equal(plan_step()->n_rows, 1);
    finish_step(5);
    assert_int_equal(plan_step()->n_rows, 0); /* only waiting for the result is left */
    assert_int_equal(b.scheduler.n_in_flight, 1);
    finish_step(5);
    assert_int_equal(one->place, HR_PLACE_NOWHERE);
    assert_int_equal(one->n_total, 8);
    close_bench();
}

static void what_a_surplus_row_names_is_kept_until_its_step_is_over(void **state)
{
    hr_sequence *ends, *next;

    (void)state;
    open_ahead(5);
    ends = add(13, 6); /* 4 pages, with its next row still 4 */
    (void)plan_step();
    (void)plan_step();
    finish_step(9);
    assert_int_equal(ends->place, HR_PLACE_LEAVING);
    assert_int_equal(b.scheduler.pages.n_held, 4);
    next = add(14, 4); /* 4 pages: there is 1, and nobody to preempt */
    assert_int_equal(plan_step()->n_rows, 0);
    assert_int_equal(next->place, HR_PLACE_WAITING);
    finish_step(5);
    assert_int_equal(ends->place, HR_PLACE_NOWHERE);
    assert_int_equal(plan_step()->n_rows, 14);
    finish_step(5);
    close_bench();
}

static void memory_that_somebody_must_give_up_is_waited_for(void **state)
{
    hr_sequence *old, *young;

    (void)state;
    open_ahead(4);
    old = add(7, 8);
    young = add(6, 8);
    (void)plan_step(); /* 2 pages each */
    (void)plan_step(); /* rows 7 and 6: still in them */
    finish_step(5);
    assert_int_equal(plan_step()->n_rows, 0); /* row 8 needs a page: not taken from a sequence in flight */
    assert_int_equal(b.scheduler.n_preemptions, 0);
    finish_step(5);
    assert_int_equal(plan_step()->n_rows, 1);
    assert_int_equal(b.scheduler.n_preemptions, 1);
    assert_int_equal(young->place, HR_PLACE_WAITING);
    assert_int_equal(young->n_total, 8); /* with what both steps said */
    assert_int_equal(old->n_pages, 3);
    finish_step(5);
    close_bench();
}

static void a_page_that_a_step_reads_is_not_dropped_for_an_equal_one(void **state)
{
    hr_sequence *first, *second;
    uint32_t own;

    (void)state;
    open_ahead(100);
    first = add_at(6, 10, 0, 0, NULL, -1);
    second = add_at(6, 10, 0, 1, NULL, -1);
    (void)plan_step();
    (void)plan_step();
    own = second->pages[0];
    assert_int_not_equal(own, first->pages[0]);
    finish_step(5); /* both published their first page: the second goes on with the first one's */
    assert_int_equal(second->pages[0], first->pages[0]);
    assert_int_equal(b.scheduler.pages.refs[own], 1);
    finish_step(5);
    assert_int_equal(b.scheduler.pages.refs[own], 0);
    close_bench();
}

static void siblings_wait_until_the_leaders_prompt_was_run_not_planned(void **state)
{
    hr_sequence *leader, *sibling;

    (void)state;
    open_ahead(100);
    leader = add_at(14, 4, 0, 0, NULL, -1);
    sibling = add_at(14, 4, 0, 0, leader, -1);
    (void)plan_step();
    (void)plan_step();
    assert_int_equal(sibling->place, HR_PLACE_HELD);
    finish_step(5);
    (void)plan_step();
    assert_int_equal(sibling->n_cached_tokens, 12);
    finish_step(5);
    finish_step(5);
    close_bench();
}

static void scores_of_a_prompt_go_on_while_its_first_chunk_runs(void **state)
{
    const hr_plan *plan;

    (void)state;
    open_ahead(100);
    (void)add_at(40, 4, 0, 0, NULL, 2);
    plan = plan_step();
    assert_int_equal(plan->spans[0].n_scores, 16);
    plan = plan_step();
    assert_int_equal(plan->spans[0].start, 16);
    assert_int_equal(plan->spans[0].score_first, 16);
    finish_step(5);
    plan = plan_step();
    assert_int_equal(plan->spans[0].score_first, 32);
    assert_int_equal(plan->spans[0].n_scores, 7);
    assert_true(plan->spans[0].samples);
    finish_step(5);
    finish_step(5);
    close_bench();
}

static void answers_end_at_stop_ids_but_not_before_min_tokens(void **state)
{
    static int32_t ids[8];
    const int32_t stop_ids[] = {9, 4};
    hr_sequence s = {.n_prompt = 1, .capacity = 6, .ids = ids};
    int32_t stop_id;

    (void)state;
    s.sampling.stop_ids = stop_ids;
    s.sampling.n_stop_ids = 2;
    s.sampling.min_tokens = 2;
    hr_sequence_start(&s);
    assert_int_equal(hr_sequence_accept(&s, 4, &stop_id), HEADRACE_FINISH_NONE);
    assert_int_equal(hr_sequence_accept(&s, 3, &stop_id), HEADRACE_FINISH_NONE);
    assert_int_equal(hr_sequence_accept(&s, 4, &stop_id), HEADRACE_FINISH_STOP);
    assert_int_equal(stop_id, 4);
    hr_sequence_start(&s);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(hr_sequence_accept(&s, 1, &stop_id), HEADRACE_FINISH_NONE);
    assert_int_equal(hr_sequence_accept(&s, 1, &stop_id), HEADRACE_FINISH_LENGTH);
    assert_int_equal(stop_id, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_decode_row_is_never_starved_by_a_long_prompt),
        cmocka_unit_test(one_step_holds_chunks_of_several_prompts),
        cmocka_unit_test(requests_start_in_the_order_of_arrival),
        cmocka_unit_test(a_lower_priority_number_starts_first_until_the_other_has_aged),
        cmocka_unit_test(a_small_request_does_not_pass_a_big_one_that_waits_for_pages),
        cmocka_unit_test(when_pages_run_out_the_youngest_is_preempted_and_keeps_its_ids),
        cmocka_unit_test(a_preempted_sequence_does_not_come_back_in_the_same_step),
        cmocka_unit_test(a_hit_ends_at_a_page_border_and_runs_warm_up_rows_first),
        cmocka_unit_test(at_least_one_token_is_left_to_run),
        cmocka_unit_test(hits_shorter_than_twice_the_warm_up_are_not_taken),
        cmocka_unit_test(warm_up_rows_may_fill_more_than_a_step),
        cmocka_unit_test(prompt_logprobs_run_every_prompt_row_under_the_output_budget),
        cmocka_unit_test(siblings_wait_for_the_leaders_prompt_and_then_share_its_pages),
        cmocka_unit_test(siblings_go_on_without_a_leader_that_was_cancelled),
        cmocka_unit_test(a_removed_bad_sequence_leaves_nothing_in_the_cache),
        cmocka_unit_test(a_row_is_planned_while_its_id_is_being_sampled),
        cmocka_unit_test(nothing_is_planned_beyond_the_last_token_that_may_come),
        cmocka_unit_test(what_a_surplus_row_names_is_kept_until_its_step_is_over),
        cmocka_unit_test(memory_that_somebody_must_give_up_is_waited_for),
        cmocka_unit_test(a_page_that_a_step_reads_is_not_dropped_for_an_equal_one),
        cmocka_unit_test(siblings_wait_until_the_leaders_prompt_was_run_not_planned),
        cmocka_unit_test(scores_of_a_prompt_go_on_while_its_first_chunk_runs),
        cmocka_unit_test(answers_end_at_stop_ids_but_not_before_min_tokens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
