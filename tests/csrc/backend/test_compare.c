/* Two equal paths compare equal; a path that was broken on purpose is named at the tap where it breaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "backend/compare.h"
#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { N = 23 };

static const hr_backend_options exact = {.n_threads = 1, .exact = true},
                                exact_bf16_kv = {.n_threads = 2, .exact = true, .kv_dtype = HR_KV_BF16};
static const hr_compare_side exact_side = {.ops = &hr_backend_cpu, .options = {.n_threads = 1, .exact = true}};

static hr_model *make_model(int32_t ids[N])
{
    random_model_options o = random_model_defaults();
    hr_model *model;

    o.n_experts = 8;
    o.n_experts_used = 2;
    o.expert_ffn_dim = 24;
    o.n_dense_layers = 2;
    model = random_model_create(&o);
    driver_random_ids(model, 9, N, ids);
    return model;
}

static json_t *compare(const hr_model *model, const hr_backend_options *right, uint32_t chunk, double tolerance,
                       const int32_t *ids)
{
    hr_buffer text = {0};
    headrace_error err = {0};
    json_t *json;

    hr_compare_side right_side = {.ops = &hr_backend_cpu, .options = *right, .chunk = chunk};

    if (hr_compare(model, &exact_side, &right_side, ids, N, tolerance, &text, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    json = json_loadb(text.at, text.len, 0, NULL);
    assert_non_null(json);
    hr_buffer_deinit(&text);
    return json;
}

static const char *text_of(const json_t *json, const char *key)
{
    return json_string_value(json_object_get(json, key));
}

static json_int_t int_of(const json_t *json, const char *key)
{
    return json_integer_value(json_object_get(json, key));
}

static void two_chunkings_of_one_path_are_equal(void **state)
{
    int32_t ids[N];
    hr_model *model = make_model(ids);
    json_t *json = compare(model, &exact, 3, 0, ids), *taps = json_object_get(json, "taps"), *tap;
    size_t i;

    (void)state;
    assert_true(json_is_null(json_object_get(json, "first_difference")));
    assert_int_equal(int_of(json, "n_ids"), N);
    assert_int_equal(int_of(json_object_get(json, "left"), "chunk"), N);
    assert_int_equal(int_of(json_object_get(json, "right"), "chunk"), 3);
    assert_string_equal(text_of(json_object_get(json, "right"), "compute"), "plain");
    /* 4 conv layers of 8 and 2 attention layers of 10 taps, 4 of them with 3 of the router; embed, final norm, logits.
     */
    assert_int_equal(json_array_size(taps), 4 * 8 + 2 * 10 + 4 * 3 + 3);
    json_array_foreach(taps, i, tap)
    {
        assert_int_equal(int_of(tap, "rows"), N);
        assert_false(json_is_true(json_object_get(tap, "exceeds")));
        assert_true(json_number_value(json_object_get(tap, "max_abs")) == 0);
    }
    assert_string_equal(text_of(json_array_get(taps, 0), "tap"), "embed");
    assert_string_equal(text_of(json_array_get(taps, json_array_size(taps) - 1), "tap"), "logits");
    json_decref(json);
    random_model_destroy(model);
}

/* Keys and values in bf16 are first felt where they are read: the attention of the first attention layer. */
static void the_first_tap_that_parts_is_named(void **state)
{
    int32_t ids[N];
    hr_model *model = make_model(ids);
    json_t *json = compare(model, &exact_bf16_kv, 0, 1e-5, ids);
    const json_t *first = json_object_get(json, "first_difference");

    (void)state;
    assert_string_equal(text_of(first, "tap"), "attention");
    assert_int_equal(int_of(first, "layer"), 2);
    assert_int_equal(int_of(first, "row"), 0);
    assert_string_equal(text_of(json_object_get(json, "right"), "kv_cache_dtype"), "bf16");
    json_decref(json);
    random_model_destroy(model);
}

static void a_wide_tolerance_forgives_rounding(void **state)
{
    int32_t ids[N];
    hr_model *model = make_model(ids);
    json_t *json = compare(model, &exact_bf16_kv, 5, 1e9, ids);
    json_t *first = json_object_get(json, "first_difference");

    (void)state;
    /* Only another choice of experts is never forgiven. */
    assert_true(json_is_null(first) || strcmp(text_of(first, "tap"), "router_ids") == 0);
    json_decref(json);
    random_model_destroy(model);
}

static void ids_outside_the_vocabulary_are_refused(void **state)
{
    int32_t ids[N];
    hr_model *model = make_model(ids);
    hr_buffer text = {0};
    headrace_error err;

    (void)state;
    assert_int_equal(hr_compare(model, &exact_side, &exact_side, ids, 0, 0, &text, &err), HEADRACE_E_ARGUMENT);
    ids[4] = (int32_t)model->arch.vocab_size;
    assert_int_equal(hr_compare(model, &exact_side, &exact_side, ids, N, 0, &text, &err), HEADRACE_E_ARGUMENT);
    assert_non_null(strstr(err.message, "position 4"));
    model->arch.max_positions = N - 1;
    assert_int_equal(hr_compare(model, &exact_side, &exact_side, ids, N, 0, &text, &err), HEADRACE_E_CONTEXT);
    random_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_chunkings_of_one_path_are_equal),
        cmocka_unit_test(the_first_tap_that_parts_is_named),
        cmocka_unit_test(a_wide_tolerance_forgives_rounding),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
