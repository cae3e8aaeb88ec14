/* Named values of the CUDA backend held against the CPU's plain fp32 path (backend/compare.h), as `headrace compare`
 * does: no stage is further away than bf16 explains, the portable kernels show every value, and the fused ones all but
 * what stays inside of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "backend/compare.h"
#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { N = 21 };

static hr_model *make_model(int32_t ids[N])
{
    random_model_options o = random_model_defaults();
    hr_model *model;

    o.pattern = "cac";
    o.hidden_size = 64;
    o.n_heads = 2;
    o.n_kv_heads = 1;
    o.head_dim = 64;
    o.n_experts = o.n_experts_used = 3; /* all are chosen: no near tie can fall the other way */
    o.expert_ffn_dim = 40;
    o.n_dense_layers = 1;
    model = random_model_create(&o);
    driver_random_ids(model, 9, N, ids);
    return model;
}

static json_t *compare(const hr_model *model, const int32_t *ids, double tolerance)
{
    static const hr_compare_side cpu = {.ops = &hr_backend_cpu, .options = {.n_threads = 1, .exact = true}};
    static const hr_compare_side gpu = {.ops = &hr_backend_cuda, .options = {.page_tokens = 8}, .chunk = 8};
    headrace_error err = {0};
    hr_buffer text = {0};
    json_t *json;

    if (hr_compare(model, &cpu, &gpu, ids, N, tolerance, &text, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    json = json_loadb(text.at, text.len, 0, NULL);
    assert_non_null(json);
    hr_buffer_deinit(&text);
    return json;
}

static bool is_inside_a_fused_kernel(const char *tap)
{
    return strcmp(tap, "conv_bx") == 0 || strcmp(tap, "k") == 0 || strcmp(tap, "v") == 0;
}

/* The order of experts is not compared: all are chosen, and scores that are near may change places. */
static bool depends_on_order(const char *tap)
{
    return strcmp(tap, "router_ids") == 0 || strcmp(tap, "router_weights") == 0;
}

static void check(int kind)
{
    int32_t ids[N];
    hr_model *model = make_model(ids);
    json_t *json, *taps, *tap;
    size_t i, n_silent = 0;

    gpu_be(kind);
    json = compare(model, ids, 0.2); /* a mistake gives 1 and more */
    taps = json_object_get(json, "taps");
    assert_true(json_array_size(taps) > 20);
    json_array_foreach(taps, i, tap)
    {
        const char *name = json_string_value(json_object_get(tap, "tap"));

        if (json_integer_value(json_object_get(tap, "rows")) == 0) {
            n_silent++;
            if (kind == GPU_PORTABLE || !is_inside_a_fused_kernel(name))
                fail_msg("no values of %s", name);
        } else if (json_is_true(json_object_get(tap, "exceeds")) && !depends_on_order(name)) {
            fail_msg("%s of layer %d is off by %g", name, (int)json_integer_value(json_object_get(tap, "layer")),
                     json_number_value(json_object_get(tap, "max_abs")));
        }
    }
    assert_int_equal(n_silent, kind == GPU_FUSED ? 2 + 2 : 0); /* two convolution layers; k and v of one other */
    json_decref(json);
    random_model_destroy(model);
    gpu_check_clean();
}

static void every_stage_of_the_portable_kernels_is_near_the_cpu(void **state)
{
    (void)state;
    check(GPU_PORTABLE);
}

static void every_stage_of_the_fused_kernels_is_near_the_cpu(void **state)
{
    (void)state;
    check(GPU_FUSED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stage_of_the_portable_kernels_is_near_the_cpu),
        cmocka_unit_test(every_stage_of_the_fused_kernels_is_near_the_cpu),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
