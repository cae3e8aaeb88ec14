/* Which type each tensor gets: llama.cpp's mixes as docs/formats.md writes them down, layer by layer. */
#include "convert/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static hr_dtype choose(const char *mix, hr_mix_question question)
{
    const hr_mix *found = hr_mix_find(mix);

    assert_non_null(found);
    if (question.cols == 0)
        question.cols = 2048;
    return hr_mix_choose(found, &question);
}

static void test_names_in_either_case_and_short(void **state)
{
    (void)state;
    assert_string_equal(hr_mix_find("q4_k_m")->name, "Q4_K_M");
    assert_string_equal(hr_mix_find("Q4_K")->name, "Q4_K_M");
    assert_string_equal(hr_mix_find("q5_k")->name, "Q5_K_M");
    assert_string_equal(hr_mix_find("Bf16")->name, "BF16");
    assert_null(hr_mix_find("q4_k_s"));
    assert_null(hr_mix_find(""));
    assert_null(hr_mix_find("iq2_xxs"));
}

/* The layers of n whose ffn_down gets Q6_K, as a text. */
static const char *more_layers(const char *mix, hr_part part, uint32_t n, char out[256])
{
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < n; i++) {
        hr_mix_question question = {.part = part, .layer = i, .n_layers = n, .i_attention = i, .n_attention = n};

        if (choose(mix, question) == HR_Q6_K)
            used += (size_t)snprintf(out + used, 256 - used, "%s%u", used ? " " : "", i);
    }
    return out;
}

static void test_the_layers_with_more_bits(void **state)
{
    char text[256];

    (void)state;
    assert_string_equal(more_layers("q4_k_m", HR_PART_FFN_DOWN, 16, text), "0 1 4 7 10 13 14 15");
    assert_string_equal(more_layers("q5_k_m", HR_PART_FFN_DOWN, 16, text), "0 1 4 7 10 13 14 15");
    assert_string_equal(more_layers("q4_k_m", HR_PART_FFN_DOWN, 24, text), "0 1 2 5 8 11 14 17 20 21 22 23");
    assert_string_equal(more_layers("q4_k_m", HR_PART_FFN_DOWN, 30, text), "0 1 2 5 8 11 14 17 20 23 26 27 28 29");
    assert_string_equal(more_layers("q4_k_m", HR_PART_ATTENTION_V, 6, text), "2 5");
    assert_string_equal(more_layers("q4_k_m", HR_PART_ATTENTION_V, 8, text), "0 3 6 7");
    assert_string_equal(more_layers("q5_k_m", HR_PART_ATTENTION_V, 10, text), "0 3 6 8 9");
    assert_string_equal(more_layers("q4_0", HR_PART_FFN_DOWN, 16, text), "");
    assert_string_equal(more_layers("q4_k_m", HR_PART_OTHER, 16, text), "");
}

static void test_one_type_for_all_other_matrices(void **state)
{
    static const struct {
        const char *mix;
        hr_dtype other, head, embedding;
    } rows[] = {{"f32", HR_F32, HR_F32, HR_F32},       {"f16", HR_F16, HR_F16, HR_F16},
                {"bf16", HR_BF16, HR_BF16, HR_BF16},   {"q8_0", HR_Q8_0, HR_Q8_0, HR_Q8_0},
                {"q6_k", HR_Q6_K, HR_Q6_K, HR_Q6_K},   {"q5_k_m", HR_Q5_K, HR_Q6_K, HR_Q5_K},
                {"q4_k_m", HR_Q4_K, HR_Q6_K, HR_Q4_K}, {"q4_0", HR_Q4_0, HR_Q6_K, HR_Q4_0}};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_OTHER}), rows[i].other);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_HEAD}), rows[i].head);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_EMBEDDING}), rows[i].embedding);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_ATTENTION_K}), rows[i].other);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_ATTENTION_OUT}), rows[i].other);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_ROUTER}), HR_F32);
        assert_int_equal(choose(rows[i].mix, (hr_mix_question){.part = HR_PART_VECTOR, .cols = 3}), HR_F32);
    }
}

static void test_eight_experts_get_larger_attention(void **state)
{
    hr_mix_question v = {.part = HR_PART_ATTENTION_V, .n_experts = 8}, k = v, out = v, q = v;

    (void)state;
    k.part = HR_PART_ATTENTION_K;
    out.part = HR_PART_ATTENTION_OUT;
    q.part = HR_PART_OTHER;
    assert_int_equal(choose("q4_k_m", v), HR_Q8_0);
    assert_int_equal(choose("q4_0", k), HR_Q8_0);
    assert_int_equal(choose("q4_k_m", out), HR_Q5_K);
    assert_int_equal(choose("q4_0", out), HR_Q4_0);
    assert_int_equal(choose("q4_k_m", q), HR_Q4_K);
    assert_int_equal(choose("f16", v), HR_F16);
    v.n_experts = k.n_experts = 32;
    assert_int_equal(choose("q4_0", v), HR_Q4_0);
    assert_int_equal(choose("q4_k_m", k), HR_Q4_K);
}

static void test_importance_gives_minima_to_the_first_layers_of_q4_0(void **state)
{
    hr_mix_question down = {.part = HR_PART_FFN_DOWN, .layer = 1, .n_layers = 16, .has_importance = true};

    (void)state;
    assert_int_equal(choose("q4_0", down), HR_Q4_1);
    down.layer = 2;
    assert_int_equal(choose("q4_0", down), HR_Q4_0);
    down.layer = 1;
    down.has_importance = false;
    assert_int_equal(choose("q4_0", down), HR_Q4_0);
}

static void test_widths_that_are_no_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(choose("q4_k_m", (hr_mix_question){.part = HR_PART_OTHER, .cols = 96}), HR_Q5_0);
    assert_int_equal(choose("q5_k_m", (hr_mix_question){.part = HR_PART_OTHER, .cols = 96}), HR_Q5_1);
    assert_int_equal(choose("q6_k", (hr_mix_question){.part = HR_PART_OTHER, .cols = 96}), HR_Q8_0);
    assert_int_equal(choose("q4_k_m", (hr_mix_question){.part = HR_PART_HEAD, .cols = 96}), HR_Q8_0);
    assert_int_equal(choose("q4_0", (hr_mix_question){.part = HR_PART_HEAD, .cols = 96}), HR_Q8_0);
    assert_int_equal(choose("q4_0", (hr_mix_question){.part = HR_PART_OTHER, .cols = 96}), HR_Q4_0);
    assert_int_equal(choose("q4_0", (hr_mix_question){.part = HR_PART_OTHER, .cols = 40}), HR_F16);
    assert_int_equal(choose("q8_0", (hr_mix_question){.part = HR_PART_HEAD, .cols = 40}), HR_F16);
    assert_int_equal(choose("q4_k_m", (hr_mix_question){.part = HR_PART_OTHER, .cols = 40}), HR_F16);
}

/* ---------------------------------------------------------------- a model's tensors */

static hr_model *open_golden(const char *name)
{
    headrace_error err = {0};
    hr_model *model;
    char path[512];

    (void)snprintf(path, sizeof path, "%s/goldens/%s", HEADRACE_TEST_DATA, name);
    if (hr_model_open(path, NULL, &model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return model;
}

static const hr_plan_tensor *find(const hr_plan *plan, const char *name)
{
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        if (strcmp(plan->tensors[i].name, name) == 0)
            return &plan->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void test_experts_become_one_tensor(void **state)
{
    hr_model *model = open_golden("moe_tiny");
    const hr_plan_tensor *down;
    char name[64];
    hr_plan plan;

    (void)state;
    assert_int_equal(hr_plan_make(model, hr_mix_find("q4_0"), false, &plan, NULL), HEADRACE_OK);
    (void)snprintf(name, sizeof name, "blk.%u.ffn_down_exps.weight", model->arch.n_dense_layers);
    down = find(&plan, name);
    assert_int_equal(down->rank, 3);
    assert_int_equal(down->shape[0], model->arch.n_experts);
    assert_int_equal(down->shape[1], model->arch.hidden_size);
    assert_int_equal(down->shape[2], model->arch.expert_ffn_dim);
    for (uint32_t e = 0; e < model->arch.n_experts; e++)
        assert_ptr_equal(hr_plan_slab(down, e)->data, model->layers[model->arch.n_dense_layers].experts[e].down.data);
    assert_int_equal(plan.n_parameters, model->n_parameters);
    hr_plan_free(&plan);
    hr_model_close(model);
}

static void test_the_order_of_the_file(void **state)
{
    hr_model *model = open_golden("dense_tiny");
    hr_plan plan;

    (void)state;
    assert_int_equal(hr_plan_make(model, hr_mix_find("f16"), false, &plan, NULL), HEADRACE_OK);
    assert_string_equal(plan.tensors[0].name, "token_embd.weight");
    assert_string_equal(plan.tensors[1].name, "token_embd_norm.weight");
    for (uint32_t i = 2; i < plan.n_tensors; i++) {
        const hr_plan_tensor *a = &plan.tensors[i - 1], *b = &plan.tensors[i];

        assert_true(a->layer < b->layer || (a->layer == b->layer && strcmp(a->name, b->name) < 0));
    }
    assert_int_equal(find(&plan, "blk.0.shortconv.conv.weight")->shape[1], model->arch.conv_length);
    hr_plan_free(&plan);
    hr_model_close(model);
}

static void test_what_gguf_cannot_say_is_refused(void **state)
{
    hr_model *model = open_golden("moe_tiny");
    headrace_error err = {0};
    hr_plan plan;

    (void)state;
    model->arch.routed_scaling_factor = 2.5f;
    assert_int_equal(hr_plan_make(model, hr_mix_find("f16"), false, &plan, &err), HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "routed_scaling_factor 2.5"));
    model->arch.routed_scaling_factor = 1;
    model->arch.norm_topk_prob = false;
    assert_int_equal(hr_plan_make(model, hr_mix_find("f16"), false, &plan, &err), HEADRACE_E_UNSUPPORTED);
    hr_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_in_either_case_and_short),
        cmocka_unit_test(test_the_layers_with_more_bits),
        cmocka_unit_test(test_one_type_for_all_other_matrices),
        cmocka_unit_test(test_eight_experts_get_larger_attention),
        cmocka_unit_test(test_importance_gives_minima_to_the_first_layers_of_q4_0),
        cmocka_unit_test(test_widths_that_are_no_whole_blocks),
        cmocka_unit_test(test_experts_become_one_tensor),
        cmocka_unit_test(test_the_order_of_the_file),
        cmocka_unit_test(test_what_gguf_cannot_say_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
