/* Recommended sampling values: from the checkpoint if it states any, else from the family's model card; the source is
 * named. */
#include "model/config.h"
#include "support/checkpoint.h"
#include "support/recipe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void the_family_is_read_from_name_or_path(void **state)
{
    static const struct {
        const char *path, *name;
        uint32_t n_experts, n_layers, vocab_size;
        const char *source;
        float temperature;
        int32_t top_k;
    } cases[] = {
        {"/m/LFM2-1.2B", "LFM2-1.2B", 0, 16, 65536, "model card: LFM2", 0.3F, -1},
        {"/m/LFM2-700M-Q4_K_M.gguf", "LFM2 700M", 0, 16, 65536, "model card: LFM2", 0.3F, -1},
        {"/m/LFM2.5-1.2B-Instruct", "LFM2.5-1.2B-Instruct", 0, 16, 65536, "model card: LFM2.5", 0.1F, 50},
        {"/m/lfm2.5-1.2b-thinking-q8_0.gguf", "golden", 0, 16, 65536, "model card: LFM2.5", 0.1F, 50},
        {"/m/LFM2_5-1.2B-JP", "x", 0, 16, 65536, "model card: LFM2.5", 0.1F, 50},
        {"/cache/models--LiquidAI--LFM2.5-1.2B-Base/snapshots/0f3c", "0f3c", 0, 16, 65536, "model card: LFM2.5", 0.1F,
         50},
        {"/lfm2.5/old/LFM2-350M", "350M", 0, 16, 65536, "model card: LFM2", 0.3F, -1},
        {"/lfm2/LFM2.5-350M", "350M", 0, 16, 65536, "model card: LFM2.5", 0.1F, 50},
        {"/m/lfm2-500m", "x", 0, 16, 65536, "model card: LFM2", 0.3F, -1},
        {"/m/my-finetune", "my-finetune", 0, 16, 65536, "model card: LFM2", 0.3F, -1},
        {"/m/LFM2-8B-A1B", "LFM2-8B-A1B", 32, 24, 65536, "model card: LFM2", 0.3F, -1},
        {"/m/LFM2.5-8B-A1B", "LFM2.5-8B-A1B", 32, 24, 128000, "model card: LFM2.5-8B-A1B", 0.2F, 80},
        {"/m/finetune", "finetune", 32, 24, 128000, "model card: LFM2.5-8B-A1B", 0.2F, 80},
        {"/m/LFM2-24B-A2B", "LFM2-24B-A2B", 64, 40, 65536, "model card: LFM2-24B-A2B", 0.1F, 50},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_arch arch = {
            .n_experts = cases[i].n_experts, .n_layers = cases[i].n_layers, .vocab_size = cases[i].vocab_size};
        hr_sampling_hint hint = hr_card_sampling(&arch, cases[i].path, cases[i].name);

        assert_string_equal(hint.source, cases[i].source);
        assert_true(hint.temperature == cases[i].temperature);
        assert_int_equal(hint.top_k, cases[i].top_k);
        assert_true(hint.repetition_penalty == 1.05F);
    }
}

/* generation_config.json with this text, read for a vocabulary of 16. */
static headrace_status read_generation(const char *text, hr_arch *arch, hr_sampling_hint *hint, headrace_error *err)
{
    char folder[256], path[512];
    headrace_status status;

    *arch = (hr_arch){.vocab_size = 16};
    hr_test_make_folder(folder, sizeof folder);
    hr_test_write_file(folder, "generation_config.json", text, strlen(text));
    (void)snprintf(path, sizeof path, "%s/generation_config.json", folder);
    status = hr_generation_config_read(path, arch, hint, err);
    hr_test_remove_folder(folder);
    return status;
}

static void a_file_with_ids_only_recommends_nothing(void **state)
{
    hr_arch arch;
    hr_sampling_hint hint;

    (void)state;
    assert_int_equal(
        read_generation("{\"_from_model_config\":true,\"bos_token_id\":1,\"eos_token_id\":7}", &arch, &hint, NULL),
        HEADRACE_OK);
    assert_null(hint.source);
    assert_int_equal(arch.n_eos_ids, 1);
}

static void stated_values_are_taken_and_others_left_open(void **state)
{
    hr_arch arch;
    hr_sampling_hint hint;

    (void)state;
    assert_int_equal(read_generation("{\"eos_token_id\":[7,9],\"temperature\":1,\"top_k\":40}", &arch, &hint, NULL),
                     HEADRACE_OK);
    assert_string_equal(hint.source, "generation_config.json");
    assert_true(hint.temperature == 1.0F);
    assert_int_equal(hint.top_k, 40);
    assert_true(isnan(hint.top_p));
    assert_true(isnan(hint.min_p));
    assert_int_equal(arch.n_eos_ids, 2);
}

static void a_missing_file_is_no_error(void **state)
{
    hr_arch arch = {.vocab_size = 16};
    hr_sampling_hint hint;

    (void)state;
    assert_int_equal(hr_generation_config_read("/nonexistent/generation_config.json", &arch, &hint, NULL), HEADRACE_OK);
    assert_null(hint.source);
}

static void nonsense_is_refused_with_field_and_value(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"temperature\":-1}", "field 'temperature' is -1, expected 0 to 100"},
        {"{\"top_p\":1.5}", "field 'top_p' is 1.5"},
        {"{\"min_p\":\"x\"}", "field 'min_p' is no number"},
        {"{\"top_k\":-3}", "field 'top_k' is -3"},
        {"{\"repetition_penalty\":0}", "field 'repetition_penalty' is 0"},
        {"{\"eos_token_id\":99}", "end-of-sequence id 99 lies outside the vocabulary of 16"},
        {"{\"eos_token_id\":\"x\"}", "field 'eos_token_id': expected a number or a list"},
        {"[1]", "expected a JSON object"},
        {"{", "not valid JSON"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_arch arch;
        hr_sampling_hint hint;
        headrace_error err = {0};

        assert_int_equal(read_generation(cases[i].text, &arch, &hint, &err), HEADRACE_E_MODEL);
        if (!strstr(err.message, cases[i].message) || !strstr(err.message, "generation_config.json"))
            fail_msg("expected \"%s\" in \"%s\"", cases[i].message, err.message);
    }
}

static void gguf_files_may_state_values(void **state)
{
    hr_test_gguf made = {0};
    hr_buffer file = {0};
    hr_gguf gguf;
    hr_sampling_hint hint;

    (void)state;
    hr_test_gguf_f32(&made, "general.sampling.temp", 0.7F);
    hr_test_gguf_u32(&made, "general.sampling.top_k", 20);
    hr_test_gguf_finish(&made, &file);
    assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w", &gguf, NULL), HEADRACE_OK);
    assert_int_equal(hr_gguf_sampling_read(&gguf, &hint, NULL), HEADRACE_OK);
    assert_string_equal(hint.source, "gguf");
    assert_true(hint.temperature == 0.7F);
    assert_int_equal(hint.top_k, 20);
    assert_true(isnan(hint.min_p));
    hr_gguf_close(&gguf);

    hr_test_gguf_f32(&made, "general.sampling.top_p", 3.0F);
    hr_test_gguf_finish(&made, &file);
    assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w", &gguf, NULL), HEADRACE_OK);
    assert_int_equal(hr_gguf_sampling_read(&gguf, &hint, NULL), HEADRACE_E_MODEL);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
}

static void the_callers_wish_for_the_card_is_obeyed(void **state)
{
    hr_model_open_options options = {.ignore_generation_config = true};
    hr_model *model;

    (void)state;
    assert_int_equal(hr_model_open(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny", &options, &model, NULL), HEADRACE_OK);
    assert_string_equal(model->sampling.source, "model card: LFM2");
    assert_int_equal(model->arch.eos_ids[0], 7);
    hr_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_family_is_read_from_name_or_path),
        cmocka_unit_test(a_file_with_ids_only_recommends_nothing),
        cmocka_unit_test(stated_values_are_taken_and_others_left_open),
        cmocka_unit_test(a_missing_file_is_no_error),
        cmocka_unit_test(nonsense_is_refused_with_field_and_value),
        cmocka_unit_test(gguf_files_may_state_values),
        cmocka_unit_test(the_callers_wish_for_the_card_is_obeyed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
