/* The collector of importance alone, fed by hand: who gets which rows, what a missing row is called. That the backend
 * feeds it right is checked from outside (tests/python/test_imatrix.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/importance.h"
#include "csrc/backend/random_model.h"

enum { H = 32, M = 24, F = 40, E = 5, K = 2, ROWS = 6 };

static hr_model *make_model(void)
{
    random_model_options o = random_model_defaults();

    o.pattern = "ca";
    o.hidden_size = H;
    o.n_heads = 2;
    o.n_kv_heads = 1;
    o.head_dim = 8;
    o.ffn_dim = F;
    o.n_experts = E;
    o.n_experts_used = K;
    o.expert_ffn_dim = M;
    o.n_dense_layers = 1;
    return random_model_create(&o);
}

/* A value that tells row, column and what it is for. */
static float value(uint32_t what, size_t row, size_t col)
{
    return (float)((what * 131 + row * 17 + col * 3) % 23) - 11.0f;
}

static float *rows_of(uint32_t what, uint32_t cols)
{
    static float rows[ROWS * 64];

    for (size_t r = 0; r < ROWS; r++) {
        for (size_t c = 0; c < cols; c++)
            rows[r * cols + c] = value(what, r, c);
    }
    return rows;
}

/* The taps of a pass over ROWS rows, but `silent`. */
static void feed(hr_importance *m, int silent)
{
    /* best first; experts 1 and 4 are never chosen */
    static const float ids[ROWS * K] = {3, 0, 0, 3, 2, 0, 0, 2, 3, 2, 2, 3};
    static const struct {
        hr_tap tap;
        uint32_t layer, cols;
    } taps[] = {{HR_TAP_OPERATOR_NORM, 0, H}, {HR_TAP_CONV_BX, 0, H},    {HR_TAP_CONV_Y, 0, H},
                {HR_TAP_FFN_NORM, 0, H},      {HR_TAP_FFN_ACT, 0, F},    {HR_TAP_LAYER_OUT, 0, H},
                {HR_TAP_OPERATOR_NORM, 1, H}, {HR_TAP_Q, 1, 16},         {HR_TAP_ATTENTION, 1, 16},
                {HR_TAP_FFN_NORM, 1, H},      {HR_TAP_ROUTER_IDS, 1, K}, {HR_TAP_FFN_ACT, 1, K * M},
                {HR_TAP_LAYER_OUT, 1, H},     {HR_TAP_FINAL_NORM, 2, H}};

    for (uint32_t i = 0; i < sizeof taps / sizeof taps[0]; i++) {
        const float *data = taps[i].tap == HR_TAP_ROUTER_IDS ? ids : rows_of(i, taps[i].cols);

        if ((int)i != silent)
            hr_importance_tap(m, taps[i].tap, taps[i].layer, data, ROWS, taps[i].cols);
    }
}

static void check_sums(const hr_input_sums *s, uint32_t expert, uint32_t cols, uint64_t n, const double *sums)
{
    assert_int_equal(s->n_columns, cols);
    assert_int_equal(s->rows[expert], n);
    for (uint32_t c = 0; c < cols; c++)
        assert_true(s->sums[(size_t)expert * cols + c] == sums[c]);
}

static void check_dense(const hr_input_sums *s, uint32_t what, uint32_t cols, uint32_t n_passes)
{
    double sums[64] = {0};

    for (size_t r = 0; r < ROWS; r++) {
        for (size_t c = 0; c < cols; c++)
            sums[c] += (double)value(what, r, c) * (double)value(what, r, c) * n_passes;
    }
    assert_int_equal(s->n_experts, 1);
    check_sums(s, 0, cols, (uint64_t)n_passes * ROWS, sums);
}

static void every_matrix_gets_the_rows_it_reads(void **state)
{
    hr_model *model = make_model();
    headrace_error err = {0};
    hr_importance *m;

    (void)state;
    assert_int_equal(hr_importance_create(model, &m, &err), HEADRACE_OK);
    feed(m, -1);
    feed(m, -1);
    assert_int_equal(hr_importance_check(m, 2 * ROWS, &err), HEADRACE_OK);
    check_dense(hr_importance_layer(m, 0, HR_INPUT_OPERATOR), 0, H, 2);
    check_dense(hr_importance_layer(m, 0, HR_INPUT_OPERATOR_OUT), 2, H, 2);
    check_dense(hr_importance_layer(m, 0, HR_INPUT_FFN), 3, H, 2);
    check_dense(hr_importance_layer(m, 0, HR_INPUT_DOWN), 4, F, 2);
    check_dense(hr_importance_layer(m, 1, HR_INPUT_OPERATOR), 6, H, 2);
    check_dense(hr_importance_layer(m, 1, HR_INPUT_OPERATOR_OUT), 8, 16, 2);
    check_dense(hr_importance_head(m), 13, H, 2);
    hr_importance_destroy(m);
    random_model_destroy(model);
}

/* Rows 0 and 1 chose 0 and 3, rows 2 and 3 chose 0 and 2, rows 4 and 5 chose 2 and 3. Of the activations the lower
 * expert's come first, whatever the order of the ids. */
static void an_expert_gets_the_rows_that_chose_it(void **state)
{
    static const uint32_t low[ROWS] = {0, 0, 0, 0, 2, 2}, high[ROWS] = {3, 3, 2, 2, 3, 3};
    double in[E][64] = {{0}}, act[E][64] = {{0}};
    uint64_t n[E] = {0};
    hr_model *model = make_model();
    headrace_error err = {0};
    hr_importance *m;

    (void)state;
    assert_int_equal(hr_importance_create(model, &m, &err), HEADRACE_OK);
    feed(m, -1);
    for (size_t r = 0; r < ROWS; r++) {
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t e = half ? high[r] : low[r];

            n[e]++;
            for (size_t c = 0; c < H; c++)
                in[e][c] += (double)value(9, r, c) * (double)value(9, r, c);
            for (size_t c = 0; c < M; c++)
                act[e][c] += (double)value(11, r, half * M + c) * (double)value(11, r, half * M + c);
        }
    }
    for (uint32_t e = 0; e < E; e++) {
        check_sums(hr_importance_layer(m, 1, HR_INPUT_FFN), e, H, n[e], in[e]);
        check_sums(hr_importance_layer(m, 1, HR_INPUT_DOWN), e, M, n[e], act[e]);
    }
    hr_importance_destroy(m);
    random_model_destroy(model);
}

static void an_input_that_is_not_shown_is_named(void **state)
{
    static const struct {
        int silent;
        const char *said[2];
    } cases[] = {{0, {"layer 0", "the operator;"}},        {2, {"layer 0", "output projection"}},
                 {4, {"layer 0", "the down projection"}},  {8, {"layer 1", "output projection"}},
                 {9, {"layer 1", "the feed-forward"}},     {10, {"layer 1", "the feed-forward"}},
                 {11, {"layer 1", "the down projection"}}, {13, {"output head", "0 of 6"}}};
    hr_model *model = make_model();

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        headrace_error err = {0};
        hr_importance *m;

        assert_int_equal(hr_importance_create(model, &m, &err), HEADRACE_OK);
        feed(m, cases[i].silent);
        assert_int_equal(hr_importance_check(m, ROWS, &err), HEADRACE_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, cases[i].said[0]));
        assert_non_null(strstr(err.message, cases[i].said[1]));
        hr_importance_destroy(m);
    }
    random_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_matrix_gets_the_rows_it_reads),
        cmocka_unit_test(an_expert_gets_the_rows_that_chose_it),
        cmocka_unit_test(an_input_that_is_not_shown_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
