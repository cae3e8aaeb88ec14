/* Prompt lookup against the plain definition of it: a scan of all that was said. And the pace of guesses. */
#include "engine/lookup.h"
#include "engine/pace.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N_IDS = 3000, N_GUESSES = 8, SMALLEST = 256 /* entries of a table */ };

/* Where the longest suffix of ids[0 .. n) with an earlier occurrence ended there last; 0: nowhere. */
static uint32_t scan(const int32_t *ids, uint32_t n_ids, uint32_t min, uint32_t max)
{
    for (uint32_t n = max; n >= min; n--)
        for (uint32_t end = n_ids - 1; n < n_ids && end >= n; end--)
            if (memcmp(ids + end - n, ids + n_ids - n, n * sizeof *ids) == 0)
                return end;
    return 0;
}

static void compare_with_scan(uint64_t seed, uint32_t alphabet, uint32_t min, uint32_t max, uint32_t longest_stride)
{
    int32_t *ids = calloc(N_IDS + N_GUESSES, sizeof *ids), *truth = calloc(N_IDS + N_GUESSES, sizeof *truth);
    uint32_t *memory = malloc(hr_lookup_size(min, max, N_IDS) * sizeof *memory);
    uint32_t n = 1 + (uint32_t)(hr_rng_at(seed, 0) % 700);
    hr_lookup lookup;

    assert_true(ids && truth && memory);
    memset(memory, 0xA5, hr_lookup_size(min, max, N_IDS) * sizeof *memory);
    hr_lookup_place(&lookup, min, max, memory);
    for (uint32_t i = 0; i < N_IDS; i++)
        truth[i] = (int32_t)(hr_rng_at(seed, 1 + i) % alphabet);
    while (n < N_IDS) {
        uint32_t found, n_guesses;

        memcpy(ids, truth, n * sizeof *ids); /* what was guessed is forgotten */
        found = scan(ids, n, min, max);
        n_guesses = hr_lookup_propose(&lookup, ids, n, N_GUESSES);
        assert_int_equal(n_guesses, found > 0 ? N_GUESSES : 0);
        for (uint32_t i = 0; i < n_guesses; i++)
            assert_int_equal(ids[n + i], ids[found + i]);
        assert_memory_equal(ids, truth, n * sizeof *ids);
        n += 1 + (uint32_t)(hr_rng_at(seed, 10000 + n) % longest_stride);
    }
    free(ids);
    free(truth);
    free(memory);
}

static void guesses_are_those_of_a_scan(void **state)
{
    (void)state;
    compare_with_scan(1, 3, 1, 1, 30);
    compare_with_scan(2, 4, 2, 4, 30);
    compare_with_scan(3, 50, 1, 3, 30);
    compare_with_scan(4, 1000, 2, 16, 50);
    compare_with_scan(5, 1, 2, 5, 100);
    compare_with_scan(6, 2, 16, 16, 50);
}

static void a_text_that_repeats_goes_on_repeating(void **state)
{
    int32_t ids[16] = {5, 6, 7, 5, 6, 7, 5};
    const int32_t expected[8] = {6, 7, 5, 6, 7, 5, 6, 7};
    uint32_t memory[1024];
    hr_lookup lookup;

    (void)state;
    assert_true(hr_lookup_size(2, 3, 7) <= 1024);
    hr_lookup_place(&lookup, 2, 3, memory);
    assert_int_equal(hr_lookup_propose(&lookup, ids, 7, 8), 8);
    assert_memory_equal(ids + 7, expected, sizeof expected);
}

static void what_was_never_said_gives_no_guess(void **state)
{
    int32_t ids[8] = {1, 2, 3, 4};
    uint32_t memory[1024];
    hr_lookup lookup;

    (void)state;
    hr_lookup_place(&lookup, 1, 2, memory);
    assert_int_equal(hr_lookup_propose(&lookup, ids, 1, 4), 0);
    assert_int_equal(hr_lookup_propose(&lookup, ids, 4, 4), 0);
}

/* The place of a bigram in the smallest table, found by putting nothing else there. */
static uint32_t place_of(int32_t first, int32_t second)
{
    int32_t ids[4] = {first, second, 0};
    uint32_t memory[SMALLEST], at = 0;
    hr_lookup lookup;

    hr_lookup_place(&lookup, 2, 2, memory);
    assert_int_equal(hr_lookup_propose(&lookup, ids, 3, 1), 0);
    assert_int_equal(lookup.n_entries, SMALLEST);
    while (memory[at] == 0)
        at++;
    return at;
}

static uint32_t entries_in_use(const uint32_t *memory)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < SMALLEST; i++)
        n += memory[i] != 0;
    return n;
}

/* Were each of them put into the next empty entry, the search for the last would look at all others. */
static void bigrams_chosen_to_collide_cost_few_probes(void **state)
{
    enum { N = SMALLEST / 2, PLACE = 250 };
    int32_t ids[N + 4] = {1};
    uint32_t memory[SMALLEST];
    hr_lookup lookup;

    (void)state;
    assert_int_equal(hr_lookup_size(2, 2, N), SMALLEST);
    for (uint32_t i = 1; i < N; i++)
        for (ids[i] = ids[i - 1] + 1; place_of(ids[i - 1], ids[i]) != PLACE;) /* rising: no bigram comes twice */
            ids[i]++;
    hr_lookup_place(&lookup, 2, 2, memory);
    assert_int_equal(hr_lookup_propose(&lookup, ids, N - 2, 4), 0);
    assert_int_equal(entries_in_use(memory), HR_LOOKUP_PROBES_MAX);
    for (uint32_t i = 0; i < HR_LOOKUP_PROBES_MAX; i++) /* the entries from its place on, and no others */
        assert_true(memory[(PLACE + i) % SMALLEST] != 0);
    memcpy(ids + N - 2, ids + N - 8, 2 * sizeof *ids); /* the newest are remembered */
    assert_int_equal(hr_lookup_propose(&lookup, ids, N, 4), 4);
    assert_memory_equal(ids + N, ids + N - 6, 4 * sizeof *ids);
}

static void guesses_grow_while_they_are_right(void **state)
{
    hr_pace pace;

    (void)state;
    hr_pace_start(&pace, 8);
    assert_int_equal(hr_pace_next(&pace), 8);
    hr_pace_note(&pace, 8, 2);
    assert_int_equal(hr_pace_next(&pace), 3);
    hr_pace_note(&pace, 3, 3);
    assert_int_equal(hr_pace_next(&pace), 6);
    hr_pace_note(&pace, 6, 6);
    assert_int_equal(hr_pace_next(&pace), 8);
}

static void wrong_guesses_bring_rests_that_grow_and_end(void **state)
{
    uint32_t rests[7] = {0}, expected[7] = {4, 8, 16, 32, 64, 64, 64};
    hr_pace pace;

    (void)state;
    hr_pace_start(&pace, 4);
    for (uint32_t i = 0; i < HR_PACE_MISSES - 1; i++) {
        assert_int_equal(hr_pace_next(&pace), i == 0 ? 4 : 1);
        hr_pace_note(&pace, 1, 0);
    }
    for (uint32_t i = 0; i < 7; i++) {
        assert_int_equal(hr_pace_next(&pace), 1);
        hr_pace_note(&pace, 1, 0);
        while (rests[i] < 1000 && pace.rest > 0) {
            assert_int_equal(hr_pace_next(&pace), 0);
            rests[i]++;
        }
    }
    assert_memory_equal(rests, expected, sizeof rests);
    hr_pace_note(&pace, 1, 1);
    hr_pace_note(&pace, 1, 0);
    assert_int_equal(hr_pace_next(&pace), 1);
}

static void no_guesses_are_wanted_where_none_are_allowed(void **state)
{
    hr_pace pace;

    (void)state;
    hr_pace_start(&pace, 0);
    assert_int_equal(hr_pace_next(&pace), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_are_those_of_a_scan),
        cmocka_unit_test(a_text_that_repeats_goes_on_repeating),
        cmocka_unit_test(what_was_never_said_gives_no_guess),
        cmocka_unit_test(bigrams_chosen_to_collide_cost_few_probes),
        cmocka_unit_test(guesses_grow_while_they_are_right),
        cmocka_unit_test(wrong_guesses_bring_rests_that_grow_and_end),
        cmocka_unit_test(no_guesses_are_wanted_where_none_are_allowed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
