/* Dummy weights: the shapes of the real model from its configuration alone. */
#include "model/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static hr_model *open_golden(const char *name, bool is_dummy)
{
    hr_model_open_options options = {.dummy_weights = is_dummy};
    headrace_error err = {0};
    hr_model *model;
    char path[512];

    (void)snprintf(path, sizeof path, "%s/goldens/%s", HEADRACE_TEST_DATA, name);
    if (hr_model_open(path, &options, &model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return model;
}

static void assert_same_matrix(const hr_matrix *real, const hr_matrix *dummy)
{
    assert_int_equal(dummy->rows, real->rows);
    assert_int_equal(dummy->cols, real->cols);
    assert_null(dummy->data);
    assert_int_equal(dummy->dtype, HR_BF16);
}

static void assert_same_ffn(const hr_ffn_weights *real, const hr_ffn_weights *dummy)
{
    assert_same_matrix(&real->gate, &dummy->gate);
    assert_same_matrix(&real->up, &dummy->up);
    assert_same_matrix(&real->down, &dummy->down);
}

static void compare(const char *name)
{
    hr_model *real = open_golden(name, false), *dummy = open_golden(name, true);

    assert_true(dummy->is_dummy);
    assert_false(real->is_dummy);
    assert_int_equal(dummy->n_parameters, real->n_parameters);
    assert_int_equal(dummy->n_parameters_active, real->n_parameters_active);
    assert_same_matrix(&real->embedding, &dummy->embedding);
    assert_same_matrix(&real->head, &dummy->head);
    for (uint32_t i = 0; i < real->arch.n_layers; i++) {
        const hr_layer *a = &real->layers[i], *b = &dummy->layers[i];

        assert_int_equal(b->operator, a->operator);
        assert_int_equal(b->state_index, a->state_index);
        assert_int_equal(b->is_moe, a->is_moe);
        assert_float_equal(b->operator_norm[0], 1, 0);
        if (a->operator== HR_OPERATOR_CONV) {
            assert_same_matrix(&a->conv.in_proj, &b->conv.in_proj);
            assert_same_matrix(&a->conv.out_proj, &b->conv.out_proj);
            assert_float_not_equal(b->conv.taps[0], b->conv.taps[1], 1e-9f);
        } else {
            assert_same_matrix(&a->attention.q, &b->attention.q);
            assert_same_matrix(&a->attention.k, &b->attention.k);
            assert_same_matrix(&a->attention.v, &b->attention.v);
            assert_same_matrix(&a->attention.out, &b->attention.out);
        }
        if (!a->is_moe) {
            assert_same_ffn(&a->dense, &b->dense);
            continue;
        }
        assert_same_matrix(&a->router, &b->router);
        for (uint32_t e = 0; e < real->arch.n_experts; e++)
            assert_same_ffn(&a->experts[e], &b->experts[e]);
        assert_float_equal(b->expert_bias[0], 0, 0);
    }
    hr_model_close(real);
    hr_model_close(dummy);
}

static void a_dense_dummy_has_the_shapes_of_the_checkpoint(void **state)
{
    (void)state;
    compare("dense_tiny");
}

static void a_mixture_dummy_has_the_shapes_of_the_checkpoint(void **state)
{
    (void)state;
    compare("moe_tiny");
}

static void no_weight_file_is_needed(void **state)
{
    hr_model *model;

    (void)state;
    model = open_golden("real_shape", true); /* stored without weights */
    assert_int_equal(model->layers[0].dense.gate.rows, 8192);
    hr_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_dummy_has_the_shapes_of_the_checkpoint),
        cmocka_unit_test(a_mixture_dummy_has_the_shapes_of_the_checkpoint),
        cmocka_unit_test(no_weight_file_is_needed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
