/* A draft model's seats, without an engine: who keeps pages, who gives them up and who pays its prompt again, told from
 * the rows that the draft model runs. What a guess does to an answer is test_engine_speculation.c's.
 */
#include "base/rng.h"
#include "engine/proposer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { SEATS = 3, SEAT_IDS = 128, DRAFT_PAGES = 10, PAGE_TOKENS = 16 };

static hr_model *tiny;

static uint32_t n_draft_rows;

static headrace_status begin_and_count(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    n_draft_rows += batch->n_rows;
    return hr_backend_cpu.step_begin(backend, batch, err);
}

typedef struct seated {
    hr_proposer *draft;
    hr_sequence sequences[SEATS];
    int32_t ids[SEATS][SEAT_IDS];
} seated;

/* Three sequences, none of which has an id yet, and a draft model with ten pages of 16 for them. */
static int take_seats(void **state)
{
    static seated it;
    static hr_backend_ops counting;
    seated *out = &it;
    hr_backend_options options = {.n_threads = 1,
                                  .page_tokens = PAGE_TOKENS,
                                  .max_rows = 256,
                                  .max_spans = SEATS,
                                  .max_outputs = SEATS,
                                  .max_page_refs = SEATS * SEAT_IDS / PAGE_TOKENS};
    headrace_error err = {0};

    counting = hr_backend_cpu;
    counting.step_begin = begin_and_count;
    if (hr_draft_open(&counting, tiny, &options, DRAFT_PAGES, SEATS, &out->draft, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < SEATS; i++) {
        for (uint32_t k = 0; k < SEAT_IDS; k++)
            out->ids[i][k] = (int32_t)(20 + hr_rng_at(i, k) % (tiny->arch.vocab_size - 40));
        out->sequences[i] = (hr_sequence){.ids = out->ids[i],
                                          .n_prompt = 8,
                                          .capacity = SEAT_IDS,
                                          .sampling = {.top_p = 1, .repetition_penalty = 1},
                                          .serial = i,
                                          .state_slot = i};
    }
    *state = out;
    return 0;
}

static int leave_seats(void **state)
{
    seated *it = *state;

    it->draft->ops->close(it->draft);
    return 0;
}

/* A round with sequences first .. last of n_ids ids each. Returns the rows it took; guesses: of each. */
static uint32_t guess_in_seats(seated *of, uint32_t first, uint32_t last, uint32_t n_ids, uint32_t *guesses)
{
    hr_guess_job jobs[SEATS];
    headrace_error err = {0};
    uint32_t n_before = n_draft_rows;

    for (uint32_t i = first; i <= last; i++) {
        of->sequences[i].n_total = n_ids;
        jobs[i - first] = (hr_guess_job){.sequence = &of->sequences[i], .n = 2};
    }
    if (of->draft->ops->propose(of->draft, jobs, last - first + 1, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    for (uint32_t i = first; i <= last; i++)
        guesses[i] = jobs[i - first].n;
    return n_draft_rows - n_before;
}

static void a_missing_page_costs_only_the_seat_that_idled_longest(void **state)
{
    seated *it = *state;
    uint32_t guesses[SEATS];

    assert_int_equal(guess_in_seats(it, 0, 0, 40, guesses), 40 + 1); /* three pages, */
    assert_int_equal(guess_in_seats(it, 1, 1, 40, guesses), 40 + 1); /* three more, */
    assert_int_equal(guess_in_seats(it, 2, 2, 72, guesses), 72 + 1); /* and five: one is missing */
    assert_int_equal(guesses[2], 2);
    assert_int_equal(guess_in_seats(it, 1, 1, 42, guesses), 2 + 1); /* 1 kept its own */
    assert_int_equal(guesses[1], 2);
    assert_int_equal(guess_in_seats(it, 0, 0, 40, guesses), 40 + 1); /* 0 lost them, and takes 2's */
}

static void a_seat_that_cannot_have_its_pages_keeps_and_takes_none(void **state)
{
    seated *it = *state;
    uint32_t guesses[SEATS];

    (void)guess_in_seats(it, 0, 2, 60, guesses); /* four pages each */
    assert_int_equal(guesses[0], 2);
    assert_int_equal(guesses[1], 2);
    assert_int_equal(guesses[2], 0);
    assert_int_equal(guess_in_seats(it, 0, 2, 70, guesses), 2 * (10 + 1)); /* five, those that 2 did not keep */
    assert_int_equal(guesses[0], 2);
    assert_int_equal(guesses[1], 2);
    assert_int_equal(guesses[2], 0);
    (void)guess_in_seats(it, 0, 0, 86, guesses); /* six: 1 idles and gives way */
    assert_int_equal(guesses[0], 2);
    assert_int_equal(guess_in_seats(it, 1, 2, 86, guesses), 86 + 1); /* six of ten, so that four do not do for 2 */
    assert_int_equal(guesses[1], 2);
    assert_int_equal(guesses[2], 0);
}

/* Ten pages: 0 rests with four, 1 goes on with four, and 2 wants seven, more than 0's and the two that are free. */
static void who_cannot_have_enough_takes_nothing_from_one_that_rests(void **state)
{
    seated *it = *state;
    uint32_t guesses[SEATS];

    (void)guess_in_seats(it, 0, 1, 60, guesses);
    it->sequences[1].n_total = 61;
    {
        hr_guess_job jobs[2] = {{.sequence = &it->sequences[1], .n = 2}, {.sequence = &it->sequences[2], .n = 2}};
        headrace_error err = {0};

        it->sequences[2].n_total = 110;
        assert_int_equal(it->draft->ops->propose(it->draft, jobs, 2, &err), HEADRACE_OK);
        assert_int_equal(jobs[0].n, 2);
        assert_int_equal(jobs[1].n, 0);
    }
    assert_int_equal(guess_in_seats(it, 0, 0, 62, guesses), 2 + 1);
    assert_int_equal(guesses[0], 2);
}

static int open_tiny(void **state)
{
    headrace_error err = {0};

    (void)state;
    if (hr_model_open(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny", &(hr_model_open_options){0}, &tiny, &err) !=
        HEADRACE_OK)
        fail_msg("%s", err.message);
    return 0;
}

static int close_tiny(void **state)
{
    (void)state;
    hr_model_close(tiny);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_missing_page_costs_only_the_seat_that_idled_longest, take_seats, leave_seats),
        cmocka_unit_test_setup_teardown(a_seat_that_cannot_have_its_pages_keeps_and_takes_none, take_seats,
                                        leave_seats),
        cmocka_unit_test_setup_teardown(who_cannot_have_enough_takes_nothing_from_one_that_rests, take_seats,
                                        leave_seats),
    };

    return cmocka_run_group_tests(tests, open_tiny, close_tiny);
}
