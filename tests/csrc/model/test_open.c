/* Every checkpoint of the goldens, and the embedded one, opens and is what its files say. */
#include "model/model.h"
#include "support/recipe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define GOLDENS HEADRACE_TEST_DATA "/goldens/"

static hr_model *open_model(const char *path)
{
    headrace_error err = {0};
    hr_model *model;

    if (hr_model_open(path, NULL, &model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return model;
}

static void a_folder_of_the_first_layout_opens(void **state)
{
    hr_model *model = open_model(GOLDENS "dense_tiny");

    (void)state;
    assert_string_equal(model->arch.name, "lfm2");
    assert_int_equal(model->arch.n_layers, 6);
    assert_int_equal(model->arch.n_attention_layers, 2);
    assert_int_equal(model->arch.ffn_dim, 160);
    assert_int_equal(model->arch.head_dim, 16);
    assert_int_equal(model->layers[2].operator, HR_OPERATOR_ATTENTION);
    assert_int_equal(model->layers[3].operator, HR_OPERATOR_CONV);
    assert_int_equal(model->layers[3].state_index, 2);
    assert_int_equal(model->layers[4].state_index, 1);
    assert_true(model->is_tied);
    assert_ptr_equal(model->head.data, model->embedding.data);
    assert_int_equal(model->arch.n_eos_ids, 2);
    assert_int_equal(model->arch.eos_ids[0], 7);
    assert_int_equal(model->arch.eos_ids[1], 2);
    assert_string_equal(model->name, "dense_tiny");
    hr_model_close(model);
}

static void a_folder_of_the_later_layout_opens(void **state)
{
    hr_model *model = open_model(GOLDENS "dense_f32");

    (void)state;
    assert_int_equal(model->arch.ffn_dim, 96);
    assert_int_equal(model->arch.n_kv_heads, 1);
    assert_true(model->arch.rope_theta == 1e6F);
    assert_int_equal(model->layers[0].operator, HR_OPERATOR_ATTENTION);
    assert_int_equal(model->embedding.dtype, HR_F32);
    hr_model_close(model);
}

static void an_expert_model_opens(void **state)
{
    hr_model *model = open_model(GOLDENS "moe_tiny");

    (void)state;
    assert_string_equal(model->arch.name, "lfm2moe");
    assert_int_equal(model->arch.n_experts, 8);
    assert_int_equal(model->arch.n_experts_used, 2);
    assert_int_equal(model->arch.n_dense_layers, 2);
    assert_false(model->layers[1].is_moe);
    assert_true(model->layers[2].is_moe);
    assert_non_null(model->layers[2].expert_bias);
    assert_int_equal(model->layers[2].experts[7].down.rows, model->arch.hidden_size);
    hr_model_close(model);
}

static void a_materialised_recipe_opens(void **state)
{
    static const char *const cases[] = {"dense_lengths", "moe_64x4"};
    char folder[256], path[512];

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        hr_model *model;

        hr_test_make_folder(folder, sizeof folder);
        (void)snprintf(path, sizeof path, GOLDENS "%s", cases[i]);
        assert_true(hr_test_materialize(path, folder));
        model = open_model(folder);
        assert_int_equal(model->arch.n_experts, i == 0 ? 0 : 64);
        hr_model_close(model);
        hr_test_remove_folder(folder);
    }
}

static void the_embedded_model_opens(void **state)
{
    hr_model *model = open_model(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny");

    (void)state;
    assert_int_equal(model->arch.max_positions, 4096);
    assert_string_equal(model->sampling.source, "generation_config.json");
    assert_true(model->sampling.temperature == 0.3F);
    assert_true(isnan(model->sampling.top_p));
    assert_int_equal(model->sampling.top_k, -1);
    hr_model_close(model);
}

static void every_gguf_file_opens_and_matches_its_folder(void **state)
{
    static const struct {
        const char *file, *folder;
        hr_dtype dtype;
    } cases[] = {
        {"dense_f32-f32", "dense_f32", HR_F32},     {"dense_tiny-f16", "dense_tiny", HR_F16},
        {"dense_tiny-q4_0", "dense_tiny", HR_Q4_0}, {"dense_tiny-q8_0", "dense_tiny", HR_Q8_0},
        {"moe_tiny-q4_0", "moe_tiny", HR_Q4_0},     {"dense_256-q4_k", NULL, HR_Q4_K},
        {"dense_256-q5_k", NULL, HR_Q5_K},          {"dense_256-q6_k", NULL, HR_Q6_K},
        {"moe_256-q4_k_m", NULL, HR_Q6_K},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[512];
        hr_model *model, *folder;

        (void)snprintf(path, sizeof path, GOLDENS "gguf/%s.gguf", cases[i].file);
        model = open_model(path);
        assert_int_equal(model->format, HR_MODEL_GGUF);
        assert_int_equal(model->embedding.dtype, cases[i].dtype);
        assert_string_equal(model->name, "golden");
        if (cases[i].folder) {
            (void)snprintf(path, sizeof path, GOLDENS "%s", cases[i].folder);
            folder = open_model(path);
            assert_int_equal(model->arch.ffn_dim, folder->arch.ffn_dim);
            assert_int_equal(model->arch.expert_ffn_dim, folder->arch.expert_ffn_dim);
            assert_int_equal(model->n_parameters, folder->n_parameters);
            assert_int_equal(model->n_parameters_active, folder->n_parameters_active);
            for (uint32_t j = 0; j < model->arch.n_layers; j++) {
                assert_int_equal(model->layers[j].operator, folder->layers[j].operator);
                assert_memory_equal(model->layers[j].operator_norm, folder->layers[j].operator_norm,
                                    model->arch.hidden_size * sizeof(float));
            }
            hr_model_close(folder);
        }
        hr_model_close(model);
    }
}

static void parameters_are_the_values_of_all_tensors(void **state)
{
    static const char *const cases[] = {"dense_tiny", "dense_f32", "moe_tiny"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char path[512];
        hr_model *model;
        uint64_t n = 0;

        (void)snprintf(path, sizeof path, GOLDENS "%s", cases[i]);
        model = open_model(path);
        for (uint32_t j = 0; j < model->file->n_tensors; j++) {
            const hr_tensor *tensor = &model->file->tensors[j];

            n += tensor->n_bytes / hr_dtypes[tensor->dtype].block_bytes * hr_dtypes[tensor->dtype].block_values;
        }
        assert_int_equal(model->n_parameters, n);
        hr_model_close(model);
    }
}

static void without_weights_only_the_configuration_is_read(void **state)
{
    static const char *const paths[] = {GOLDENS "real_shape", GOLDENS "gguf/dense_tiny-q4_0.gguf"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        hr_model_open_options options = {.skip_weights = true};
        headrace_error err = {0};
        hr_model *model;

        assert_int_equal(hr_model_open(paths[i], &options, &model, &err), HEADRACE_OK);
        assert_null(model->file);
        assert_null(model->layers);
        assert_int_equal(model->arch.ffn_dim, i == 0 ? 8192 : 160);
        assert_true(i == 0 || model->gguf.n_entries > 0);
        hr_model_close(model);
    }
}

static void count_progress(uint64_t done, uint64_t total, void *user)
{
    uint64_t *seen = user;

    assert_true(done <= total);
    seen[0]++;
    seen[1] = done;
    seen[2] = total;
}

static void loading_reports_progress_up_to_all_bytes(void **state)
{
    uint64_t seen[3] = {0};
    hr_model_open_options options = {.progress = count_progress, .progress_user = seen};
    hr_model *model;

    (void)state;
    assert_int_equal(hr_model_open(GOLDENS "dense_tiny", &options, &model, NULL), HEADRACE_OK);
    assert_true(seen[0] >= 2);
    assert_int_equal(seen[1], seen[2]);
    assert_true(seen[2] >= model->file->weight_bytes);
    hr_model_close(model);
}

static void a_path_that_is_not_there_is_an_io_error(void **state)
{
    headrace_error err = {0};
    hr_model *model;

    (void)state;
    assert_int_equal(hr_model_open("/nonexistent/lfm2", NULL, &model, &err), HEADRACE_E_IO);
    assert_null(model);
    assert_non_null(strstr(err.message, "/nonexistent/lfm2"));
    hr_model_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_of_the_first_layout_opens),
        cmocka_unit_test(a_folder_of_the_later_layout_opens),
        cmocka_unit_test(an_expert_model_opens),
        cmocka_unit_test(a_materialised_recipe_opens),
        cmocka_unit_test(the_embedded_model_opens),
        cmocka_unit_test(every_gguf_file_opens_and_matches_its_folder),
        cmocka_unit_test(parameters_are_the_values_of_all_tensors),
        cmocka_unit_test(without_weights_only_the_configuration_is_read),
        cmocka_unit_test(loading_reports_progress_up_to_all_bytes),
        cmocka_unit_test(a_path_that_is_not_there_is_an_io_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
