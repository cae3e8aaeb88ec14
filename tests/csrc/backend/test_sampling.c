/* The sampler against transformers' processors (stored results), against plain loops, and against its own distribution.
 */
#include "backend/sampling.h"

#include "base/rng.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static hr_sampling_params neutral(void)
{
    return (hr_sampling_params){.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};
}

static double unit(uint64_t key, uint64_t i)
{
    return hr_rng_unit(hr_rng_at(key, i));
}

/* A normal number (Box and Muller). */
static float normal(uint64_t key, uint64_t i)
{
    return (float)(sqrt(-2.0 * log(unit(key, 2 * i))) * cos(6.283185307179586 * unit(key, 2 * i + 1)));
}

static int by_id(const void *a, const void *b)
{
    return ((const hr_candidate *)a)->id - ((const hr_candidate *)b)->id;
}

/* ---------------------------------------------------------------- transformers */

static float number(const json_t *c, const char *key, float otherwise)
{
    const json_t *value = json_object_get(c, key);

    return value ? (float)json_number_value(value) : otherwise;
}

static void read_ids(const json_t *array, int32_t *ids)
{
    for (size_t i = 0; i < json_array_size(array); i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
}

static void check_golden(size_t index, const json_t *root, const json_t *c, hr_sampler *sampler)
{
    uint32_t n = (uint32_t)json_integer_value(json_object_get(root, "vocab_size")), n_kept;
    const json_t *stored =
        json_object_get(json_object_get(root, "logits"), json_string_value(json_object_get(c, "logits")));
    const json_t *history_ids = json_object_get(root, "history"), *bias = json_object_get(c, "bias");
    const json_t *kept = json_object_get(c, "kept"), *values = json_object_get(c, "values");
    float *logits = malloc(n * sizeof *logits);
    int32_t ids[64], eos[2];
    headrace_bias biases[8];
    hr_history history = {.ids = ids,
                          .n_prompt = (uint32_t)json_integer_value(json_object_get(root, "n_prompt")),
                          .n_total = (uint32_t)json_array_size(history_ids)};
    hr_sampling_params params = neutral();
    const hr_candidate *found;
    hr_candidate *sorted;

    read_ids(history_ids, ids);
    read_ids(json_object_get(root, "eos"), eos);
    for (uint32_t i = 0; i < n; i++)
        logits[i] = (float)json_number_value(json_array_get(stored, i));
    for (size_t i = 0; i < json_array_size(bias); i++) {
        const json_t *pair = json_array_get(bias, i);

        biases[i].id = (int32_t)json_integer_value(json_array_get(pair, 0));
        biases[i].value = (float)json_number_value(json_array_get(pair, 1));
    }
    params.bias = biases;
    params.n_bias = (uint32_t)json_array_size(bias);
    params.stop_ids = eos;
    params.n_stop_ids = 2;
    params.temperature = number(c, "temperature", 1.0f);
    params.top_k = (int32_t)number(c, "top_k", 0.0f);
    params.top_p = number(c, "top_p", 1.0f);
    params.min_p = number(c, "min_p", 0.0f);
    params.repetition_penalty = number(c, "repetition_penalty", 1.0f);
    params.min_tokens = (uint32_t)number(c, "min_tokens", 0.0f);

    n_kept = hr_sampler_process(sampler, logits, n, &params, &history, &found);
    sorted = malloc(n * sizeof *sorted);
    memcpy(sorted, found, n_kept * sizeof *sorted);
    qsort(sorted, n_kept, sizeof *sorted, by_id);
    if (json_is_string(kept)) {
        assert_int_equal(n_kept, n);
    } else {
        if (n_kept != json_array_size(kept))
            fail_msg("case %zu: %u ids kept, transformers keeps %zu", index, n_kept, json_array_size(kept));
        for (uint32_t i = 0; i < n_kept; i++)
            if (sorted[i].id != (int32_t)json_integer_value(json_array_get(kept, i)))
                fail_msg("case %zu: id %d kept instead of %d", index, sorted[i].id,
                         (int)json_integer_value(json_array_get(kept, i)));
    }
    for (size_t i = 0; i < json_array_size(values); i++) {
        const json_t *pair = json_array_get(values, i);
        int32_t id = (int32_t)json_integer_value(json_array_get(pair, 0));
        double want = json_number_value(json_array_get(pair, 1)), got = (double)logits[id];

        if (fabs(want - got) > 1e-6 * fmax(1.0, fabs(want)))
            fail_msg("case %zu: id %d has %.9g, transformers %.9g", index, id, got, want);
    }
    free(sorted);
    free(logits);
}

static void the_kept_ids_and_their_values_are_those_of_transformers(void **state)
{
    json_error_t error;
    json_t *root = json_load_file(HEADRACE_TEST_DATA "/sampling/goldens.json", 0, &error), *cases;
    hr_sampler *sampler = hr_sampler_create(384);

    (void)state;
    assert_non_null(root);
    cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) > 150);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_golden(i, root, json_array_get(cases, i), sampler);
    hr_sampler_destroy(sampler);
    json_decref(root);
}

/* ---------------------------------------------------------------- a plain loop over a real vocabulary */

enum { BIG = 65536 };

static int ascending(const void *a, const void *b)
{
    const hr_candidate *x = a, *y = b;

    if (x->z != y->z)
        return x->z < y->z ? -1 : 1;
    return y->id - x->id;
}

/* Sorts everything, in double. Entries of `all` from the returned index on are kept (min_p aside, which `keeps` tells).
 * A place where the running sum comes within 1e-6 of the limit is *on_edge: rounding may decide it. */
static uint32_t plain_filter(hr_candidate *all, uint32_t n, const hr_sampling_params *params, bool *on_edge)
{
    uint32_t first = 0;
    double total = 0.0, running = 0.0, top;

    *on_edge = false;
    qsort(all, n, sizeof *all, ascending);
    top = (double)all[n - 1].z;
    if (params->top_k > 0 && (uint32_t)params->top_k < n) {
        float kth = all[n - (uint32_t)params->top_k].z;

        while (all[first].z < kth)
            first++;
    }
    for (uint32_t i = first; i < n; i++)
        total += exp((double)all[i].z - top);
    while (params->top_p < 1.0f && first + 1 < n) {
        running += exp((double)all[first].z - top) / total;
        *on_edge |= fabs(running - (1.0 - (double)params->top_p)) < 1e-6;
        if (running > 1.0 - (double)params->top_p)
            break;
        first++;
    }
    while (exp((double)all[first].z - top) < (double)params->min_p)
        first++;
    return first;
}

static void filters_on_a_large_vocabulary_equal_a_full_sort(void **state)
{
    static const hr_sampling_params table[] = {
        {.temperature = 1.0f, .top_p = 0.9f},
        {.temperature = 0.3f, .top_p = 1.0f, .min_p = 0.15f},
        {.temperature = 0.1f, .top_p = 0.1f, .top_k = 50},
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 1},
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 1000},
        {.temperature = 1.0f, .top_p = 0.99f, .top_k = 5000},
        {.temperature = 2.0f, .top_p = 0.5f, .min_p = 0.001f},
        {.temperature = 2.0f, .top_p = 0.999f},
        {.temperature = 0.7f, .top_p = 0.95f, .top_k = 65000, .min_p = 0.01f},
        {.temperature = 1.5f, .top_p = 1.0f, .top_k = 200, .min_p = 0.1f},
        {.temperature = 1e-38f, .top_p = 0.9f},
    };
    hr_sampler *sampler = hr_sampler_create(BIG);
    float *logits = malloc(BIG * sizeof *logits);
    hr_candidate *all = malloc(BIG * sizeof *all);
    hr_history history = {0};

    (void)state;
    for (uint32_t round = 0; round < 3; round++)
        for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
            hr_sampling_params params = table[t];
            const hr_candidate *kept;
            uint32_t n = BIG - round * 37, n_kept, first;
            bool on_edge;

            params.repetition_penalty = 1.0f;
            for (uint32_t i = 0; i < BIG; i++)
                logits[i] =
                    round == 2 ? roundf(normal(round, i) * 4) : normal(round * 100 + t, i) * (round ? 4.0f : 1.5f);
            n_kept = hr_sampler_process(sampler, logits, n, &params, &history, &kept);
            for (uint32_t i = 0; i < n; i++)
                all[i] = (hr_candidate){logits[i], 0.0f, (int32_t)i};
            first = plain_filter(all, n, &params, &on_edge);
            if (on_edge) {
                assert_true(abs((int)n_kept - (int)(n - first)) <= 2);
                continue;
            }
            assert_int_equal(n_kept, n - first);
            /* Marks instead of a second sort: every kept id must lie at or above the border of the sorted list. */
            for (uint32_t i = 0; i < n_kept; i++)
                assert_true(ascending(&kept[i], &all[first]) >= 0);
        }
    free(all);
    free(logits);
    hr_sampler_destroy(sampler);
}

/* ---------------------------------------------------------------- penalties */

static void presence_and_frequency_look_at_output_ids_only(void **state)
{
    float logits[6] = {1, 2, 3, 4, 5, -6}, want[6];
    int32_t ids[] = {0, 4, 4, 1, 1, 5, 1, 2};
    hr_history history = {.ids = ids, .n_prompt = 3, .n_total = 8};
    hr_sampling_params params = neutral();
    const hr_candidate *kept;
    hr_sampler *sampler = hr_sampler_create(6);

    (void)state;
    params.presence_penalty = 0.5f;
    params.frequency_penalty = 0.25f;
    params.repetition_penalty = 2.0f;
    memcpy(want, logits, sizeof want);
    for (int i = 0; i < 6; i++) { /* as written in the OpenAI documentation, after the repetition rule */
        int n_output = 0, n_all = 0;

        for (int j = 0; j < 8; j++) {
            n_all += ids[j] == i;
            n_output += j >= 3 && ids[j] == i;
        }
        if (n_all)
            want[i] = want[i] < 0 ? want[i] * 2 : want[i] / 2;
        want[i] -= (float)n_output * 0.25f + (n_output > 0 ? 0.5f : 0.0f);
    }
    for (int round = 0; round < 2; round++) { /* the second time: nothing was left behind in the scratch */
        float copy[6];

        memcpy(copy, logits, sizeof copy);
        assert_int_equal(hr_sampler_process(sampler, copy, 6, &params, &history, &kept), 6);
        for (int i = 0; i < 6; i++)
            assert_float_equal(copy[i], want[i], 1e-6);
    }
    hr_sampler_destroy(sampler);
}

static void a_penalty_never_makes_a_finite_logit_infinite(void **state)
{
    float logits[4] = {1e38f, 1, 2, 3};
    int32_t ids[] = {0, 3};
    hr_history history = {.ids = ids, .n_prompt = 1, .n_total = 2};
    hr_sampling_params params = neutral();
    hr_sample sample;
    hr_sampler *sampler = hr_sampler_create(4);

    (void)state;
    params.repetition_penalty = 1e-30f;
    hr_sample_token(sampler, logits, 4, &params, &history, -1, &sample);
    assert_false(sample.is_bad);
    hr_sampler_destroy(sampler);
}

static void stop_ids_are_impossible_before_min_tokens(void **state)
{
    int32_t ids[] = {1, 2, 3, 1, 2}, stop[] = {0, 9000};
    hr_sampling_params params = neutral();
    hr_sampler *sampler = hr_sampler_create(4);
    hr_sample sample;

    (void)state;
    params.stop_ids = stop;
    params.n_stop_ids = 2;
    params.min_tokens = 3;
    params.temperature = 0.0f;
    for (uint32_t n_output = 0; n_output <= 4; n_output++) {
        float logits[4] = {9, 1, 2, 3};
        hr_history history = {.ids = ids, .n_prompt = 1, .n_total = 1 + n_output};

        hr_sample_token(sampler, logits, 4, &params, &history, -1, &sample);
        assert_int_equal(sample.id, n_output < 3 ? 3 : 0);
    }
    hr_sampler_destroy(sampler);
}

static void a_bias_moves_an_id_and_foreign_ids_are_ignored(void **state)
{
    float logits[4] = {9, 1, 2, 3};
    headrace_bias bias[] = {{1, 4.5f}, {1, 4.5f}, {-5, 100.0f}, {4, 100.0f}};
    hr_history history = {0};
    hr_sampling_params params = neutral();
    hr_sampler *sampler = hr_sampler_create(4);
    hr_sample sample;

    (void)state;
    params.bias = bias;
    params.n_bias = 4;
    params.temperature = 0.0f;
    hr_sample_token(sampler, logits, 4, &params, &history, -1, &sample);
    assert_int_equal(sample.id, 1);
    hr_sampler_destroy(sampler);
}

/* ---------------------------------------------------------------- greedy, bad input, padding */

static void greedy_takes_the_lowest_id_of_equals(void **state)
{
    static float logits[1000];
    hr_history history = {0};
    hr_sampling_params params = neutral();
    hr_sampler *sampler = hr_sampler_create(1000);
    hr_sample sample;

    (void)state;
    params.temperature = 0.0f;
    for (uint32_t best = 0; best < 997; best += 83) {
        for (uint32_t i = 0; i < 1000; i++)
            logits[i] = i >= best && (i - best) % 7 == 0 ? 2.5f : -1.0f;
        hr_sample_token(sampler, logits, 1000, &params, &history, -1, &sample);
        assert_int_equal(sample.id, (int32_t)best);
    }
    hr_sampler_destroy(sampler);
}

static void bad_logits_are_reported(void **state)
{
    static const float bad[] = {NAN, INFINITY};
    static float logits[200];
    hr_history history = {0};
    hr_sampler *sampler = hr_sampler_create(200);
    hr_sample sample;

    (void)state;
    for (int temperature = 0; temperature < 2; temperature++)
        for (int kind = 0; kind < 2; kind++)
            for (uint32_t at = 0; at < 200; at += 13) {
                hr_sampling_params params = neutral();

                params.temperature = (float)temperature;
                for (uint32_t i = 0; i < 200; i++)
                    logits[i] = (float)i;
                logits[at] = bad[kind];
                hr_score_token(sampler, logits, 200, 3, 2, &sample);
                assert_true(sample.is_bad);
                hr_sample_token(sampler, logits, 200, &params, &history, 1, &sample);
                assert_true(sample.is_bad);
                logits[at] = bad[kind];
                hr_sample_token(sampler, logits, at, &params, &history, -1,
                                &sample); /* beyond n_valid: not looked at */
                assert_int_equal(sample.is_bad, at == 0);
            }
    for (uint32_t i = 0; i < 200; i++)
        logits[i] = -INFINITY;
    hr_sample_token(sampler, logits, 200, &(hr_sampling_params){0}, &history, -1, &sample);
    assert_true(sample.is_bad);
    hr_sampler_destroy(sampler);
}

static void padding_rows_are_never_chosen_or_listed(void **state)
{
    float logits[10] = {0, 1, 2, 3, 4, 50, 50, 50, 50, 50};
    hr_history history = {0};
    hr_sampling_params params = neutral();
    hr_sampler *sampler = hr_sampler_create(10);
    hr_sample sample;

    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        float copy[10];

        params.seed = seed;
        memcpy(copy, logits, sizeof copy);
        hr_sample_token(sampler, copy, 5, &params, &history, 20, &sample);
        assert_true(sample.id < 5);
        assert_int_equal(sample.n_top, 5);
        assert_int_equal(sample.top_ids[0], 4);
    }
    hr_sampler_destroy(sampler);
}

/* ---------------------------------------------------------------- the draw */

/* Upper 0.001 quantile of chi-square (Wilson and Hilferty). */
static double chi_square_limit(uint32_t df)
{
    double a = 2.0 / (9.0 * df), b = 1.0 - a + 3.0902 * sqrt(a);

    return df * b * b * b;
}

static void check_distribution(const hr_sampling_params *base, const float *logits, uint32_t n, bool by_position)
{
    enum { DRAWS = 40000, MAX = 256 };
    uint32_t seen[MAX] = {0}, n_kept, df = 0;
    double p[MAX] = {0}, total = 0.0, chi = 0.0, rest = 0.0, rest_seen = 0.0;
    float copy[MAX];
    hr_sampling_params params = *base;
    hr_sampler *sampler = hr_sampler_create(n);
    const hr_candidate *kept;
    hr_history history = {0};
    hr_sample sample;

    for (uint32_t i = 0; i < DRAWS; i++) {
        history.n_prompt = 0;
        history.n_total = by_position ? i : 0;
        params.seed = by_position ? 77 : i;
        memcpy(copy, logits, n * sizeof *copy);
        hr_sample_token(sampler, copy, n, &params, &history, -1, &sample);
        assert_true((uint32_t)sample.id < n);
        seen[sample.id]++;
    }
    memcpy(copy, logits, n * sizeof *copy);
    n_kept = hr_sampler_process(sampler, copy, n, &params, &history, &kept);
    for (uint32_t i = 0; i < n_kept; i++)
        total += exp((double)kept[i].z);
    for (uint32_t i = 0; i < n_kept; i++)
        p[kept[i].id] = exp((double)kept[i].z) / total;
    for (uint32_t i = 0; i < n; i++) {
        double want = p[i] * DRAWS;

        if (p[i] == 0.0) {
            assert_int_equal(seen[i], 0);
        } else if (want < 5.0) { /* pooled, as the test's approximation wants */
            rest += want;
            rest_seen += seen[i];
        } else {
            chi += (seen[i] - want) * (seen[i] - want) / want;
            df++;
        }
    }
    if (rest >= 5.0) {
        chi += (rest_seen - rest) * (rest_seen - rest) / rest;
        df++;
    }
    if (df > 1 && chi > chi_square_limit(df - 1))
        fail_msg("chi-square %.1f with %u degrees of freedom", chi, df - 1);
    hr_sampler_destroy(sampler);
}

static void draws_follow_the_processed_softmax(void **state)
{
    static const hr_sampling_params table[] = {
        {.temperature = 1.0f, .top_p = 1.0f},
        {.temperature = 2.0f, .top_p = 1.0f},
        {.temperature = 0.3f, .top_p = 1.0f, .min_p = 0.15f},
        {.temperature = 1.0f, .top_p = 0.8f, .top_k = 40},
        {.temperature = 1.3f, .top_p = 0.5f},
    };
    float logits[150];

    (void)state;
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        hr_sampling_params params = table[t];

        params.repetition_penalty = 1.0f;
        for (uint32_t i = 0; i < 150; i++)
            logits[i] = normal(900 + t, i) * 2.0f;
        check_distribution(&params, logits, 150, false);
        check_distribution(&params, logits, 150, true);
    }
}

static void neighbouring_positions_and_seeds_are_independent(void **state)
{
    enum { N = 4, DRAWS = 64000 };
    hr_sampling_params params = neutral();
    hr_sampler *sampler = hr_sampler_create(N);

    (void)state;
    for (int kind = 0; kind < 2; kind++) { /* pairs (draw i, draw i + 1) over positions, then over seeds (n choices) */
        uint32_t seen[N * N] = {0};
        int32_t last = 0;
        double chi = 0.0;

        for (uint32_t i = 0; i <= DRAWS; i++) {
            float logits[N] = {0};
            hr_history history = {.ids = NULL, .n_prompt = 0, .n_total = kind == 0 ? i : 0};
            hr_sample sample;

            params.seed = kind == 0 ? 5 : i;
            hr_sample_token(sampler, logits, N, &params, &history, -1, &sample);
            if (i > 0)
                seen[last * N + sample.id]++;
            last = sample.id;
        }
        for (uint32_t i = 0; i < N * N; i++)
            chi += (seen[i] - DRAWS / 16.0) * (seen[i] - DRAWS / 16.0) / (DRAWS / 16.0);
        assert_true(chi < chi_square_limit(15));
    }
    hr_sampler_destroy(sampler);
}

/* The definition, without any shortcut: argmax of z - log(-log u), u keyed by (seed, position, id). */
static int32_t plain_draw(const float *z, const bool *is_kept, uint32_t n, uint64_t seed, uint32_t position)
{
    uint64_t key = hr_rng_key(seed, position);
    double best = -HUGE_VAL;
    int32_t best_id = -1;

    for (uint32_t i = 0; i < n; i++) {
        double score = (double)z[i] - log(-log(hr_rng_unit(hr_rng_at(key, i))));

        if (is_kept[i] && score > best) {
            best = score;
            best_id = (int32_t)i;
        }
    }
    return best_id;
}

static void the_draw_is_the_plain_gumbel_argmax(void **state)
{
    enum { N = 3000 };
    static float logits[N];
    static bool is_kept[N];
    hr_sampler *sampler = hr_sampler_create(N);
    const hr_candidate *kept;
    hr_sample sample;

    (void)state;
    for (uint32_t round = 0; round < 600; round++) {
        hr_sampling_params params = neutral();
        hr_history history = {.ids = NULL, .n_prompt = 0, .n_total = round % 11};
        float spread = round % 3 == 0 ? 0.1f : round % 3 == 1 ? 2.0f : 15.0f;
        uint32_t n_kept;

        params.seed = round * 31;
        params.temperature = 0.5f + (float)(round % 4) * 0.5f;
        params.top_p = round % 2 ? 0.95f : 1.0f;
        params.min_p = round % 5 == 0 ? 0.1f : 0.0f;
        for (uint32_t i = 0; i < N; i++)
            logits[i] = normal(round, i) * spread;
        n_kept = hr_sampler_process(sampler, logits, N, &params, &history, &kept);
        memset(is_kept, 0, sizeof is_kept);
        for (uint32_t i = 0; i < n_kept; i++)
            is_kept[kept[i].id] = true;
        {
            int32_t want = plain_draw(logits, is_kept, N, params.seed, history.n_total);

            for (uint32_t i = 0; i < N; i++)
                logits[i] = normal(round, i) * spread;
            hr_sample_token(sampler, logits, N, &params, &history, -1, &sample);
            assert_int_equal(sample.id, want);
        }
    }
    hr_sampler_destroy(sampler);
}

/* ---------------------------------------------------------------- logprobs */

static void logprobs_ranks_and_alternatives_equal_a_plain_loop(void **state)
{
    enum { N = 777 };
    static float logits[N], copy[N];
    hr_sampler *sampler = hr_sampler_create(N);
    hr_history history = {0};

    (void)state;
    for (uint32_t round = 0; round < 40; round++) {
        hr_sampling_params params = neutral();
        hr_sample sample, scored;
        double sum = 0.0;
        uint32_t rank = 1, n_valid = N - round * 5;

        params.seed = round;
        params.temperature = 0.5f * (float)(round % 4);
        for (uint32_t i = 0; i < N; i++)
            logits[i] = round % 2 ? roundf(normal(round, i) * 3) : normal(round, i) * 6;
        for (uint32_t i = 0; i < n_valid; i++)
            sum += exp((double)logits[i]);
        memcpy(copy, logits, sizeof copy);
        hr_sample_token(sampler, copy, n_valid, &params, &history, (int32_t)(round % 21), &sample);
        hr_score_token(sampler, logits, n_valid, sample.id, (int32_t)(round % 21), &scored);
        assert_memory_equal(&sample, &scored, sizeof sample);
        for (uint32_t i = 0; i < n_valid; i++)
            rank += logits[i] > logits[sample.id] || (logits[i] == logits[sample.id] && (int32_t)i < sample.id);
        assert_int_equal(sample.rank, rank);
        assert_float_equal(sample.logprob, logits[sample.id] - (float)log(sum), 4e-6);
        assert_int_equal(sample.n_top, round % 21);
        for (uint32_t t = 0; t < sample.n_top; t++) {
            int32_t best = -1;

            for (uint32_t i = 0; i < n_valid; i++) {
                bool taken = false;

                for (uint32_t u = 0; u < t; u++)
                    taken |= sample.top_ids[u] == (int32_t)i;
                if (!taken && (best < 0 || logits[i] > logits[best]))
                    best = (int32_t)i;
            }
            assert_int_equal(sample.top_ids[t], best);
            assert_float_equal(sample.top_logprobs[t], logits[best] - (float)log(sum), 4e-6);
        }
    }
    hr_sampler_destroy(sampler);
}

static void an_id_beyond_the_valid_ones_scores_minus_infinity(void **state)
{
    float logits[4] = {1, 2, 3, 4};
    hr_sampler *sampler = hr_sampler_create(4);
    hr_sample sample;

    (void)state;
    hr_score_token(sampler, logits, 3, 3, 0, &sample);
    assert_true(isinf(sample.logprob) && sample.logprob < 0);
    assert_int_equal(sample.rank, 4);
    hr_sampler_destroy(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_kept_ids_and_their_values_are_those_of_transformers),
        cmocka_unit_test(filters_on_a_large_vocabulary_equal_a_full_sort),
        cmocka_unit_test(presence_and_frequency_look_at_output_ids_only),
        cmocka_unit_test(a_penalty_never_makes_a_finite_logit_infinite),
        cmocka_unit_test(stop_ids_are_impossible_before_min_tokens),
        cmocka_unit_test(a_bias_moves_an_id_and_foreign_ids_are_ignored),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_equals),
        cmocka_unit_test(bad_logits_are_reported),
        cmocka_unit_test(padding_rows_are_never_chosen_or_listed),
        cmocka_unit_test(draws_follow_the_processed_softmax),
        cmocka_unit_test(neighbouring_positions_and_seeds_are_independent),
        cmocka_unit_test(the_draw_is_the_plain_gumbel_argmax),
        cmocka_unit_test(logprobs_ranks_and_alternatives_equal_a_plain_loop),
        cmocka_unit_test(an_id_beyond_the_valid_ones_scores_minus_infinity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
