/* Names to roles: every layout of the same weights binds to the same bytes, and what does not fit is refused by name.
 */
#include "model/model.h"
#include "support/checkpoint.h"
#include "support/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static char logged[2048];

static void keep_log(headrace_log_level level, const char *line, void *user)
{
    (void)user;
    assert_int_equal(level, HEADRACE_LOG_WARNING);
    (void)strncat(logged, line, sizeof logged - strlen(logged) - 1);
}

static void assert_says(const char *message, const char *text)
{
    if (!strstr(message, text))
        fail_msg("expected \"%s\" in \"%s\"", text, message);
}

/* The small model, its tensors at hand to be broken, opened from a folder or a file of its own. */
typedef struct small {
    bool is_gguf, is_moe;
    hr_test_tensor tensors[HR_TEST_TENSORS_MAX];
    size_t n;
    char folder[256], path[512];
} small;

static small make_small(bool is_gguf, bool is_moe)
{
    small out = {.is_gguf = is_gguf, .is_moe = is_moe};

    out.n = hr_test_small_tensors(is_gguf, is_moe, out.tensors);
    return out;
}

static hr_test_tensor *find(small *model, const char *name)
{
    for (size_t i = 0; i < model->n; i++)
        if (strcmp(model->tensors[i].name, name) == 0)
            return &model->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void add(small *model, const char *name, uint32_t rank, uint64_t rows, uint64_t cols)
{
    hr_test_tensor *tensor = &model->tensors[model->n++];

    *tensor = (hr_test_tensor){.dtype = "F32", .rank = rank, .shape = {rows, cols}};
    (void)snprintf(tensor->name, sizeof tensor->name, "%s", name);
}

static void take_away(small *model, const char *name)
{
    *find(model, name) = model->tensors[model->n - 1];
    model->n--;
}

/* config: NULL for the small model's own. Without keys in `without` (GGUF), which the caller's u32 replaces. */
static headrace_status open_small(small *model, const char *config, const char *without, uint32_t instead,
                                  hr_model **out, headrace_error *err)
{
    hr_buffer file = {0};
    headrace_status status;
    const char *name = model->is_gguf ? "small.gguf" : "model.safetensors";

    hr_test_make_folder(model->folder, sizeof model->folder);
    if (model->is_gguf) {
        hr_test_gguf gguf = {0};
        const char *list[] = {without, NULL};
        char key[96];

        hr_test_gguf_small_keys(&gguf, model->is_moe, list);
        (void)snprintf(key, sizeof key, "%s.%s", model->is_moe ? "lfm2moe" : "lfm2", without ? without : "");
        if (without)
            hr_test_gguf_u32(&gguf, key, instead);
        for (size_t i = 0; i < model->n; i++)
            hr_test_gguf_tensor(&gguf, &model->tensors[i]);
        hr_test_gguf_finish(&gguf, &file);
        (void)snprintf(model->path, sizeof model->path, "%s/%s", model->folder, name);
    } else {
        const char *text = config ? config : hr_test_small_config(model->is_moe);

        hr_test_safetensors(&file, model->tensors, model->n);
        hr_test_write_file(model->folder, "config.json", text, strlen(text));
        (void)snprintf(model->path, sizeof model->path, "%s", model->folder);
    }
    hr_test_write_file(model->folder, name, file.at, file.len);
    hr_buffer_deinit(&file);
    logged[0] = '\0';
    headrace_set_log(keep_log, NULL);
    status = hr_model_open(model->path, NULL, out, err);
    headrace_set_log(NULL, NULL);
    hr_test_remove_folder(model->folder);
    return status;
}

static hr_model *open_ok(small *model)
{
    hr_model *out;
    headrace_error err = {0};

    if (open_small(model, NULL, NULL, 0, &out, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return out;
}

static void refuse(small *model, const char *config, const char *message)
{
    hr_model *out;
    headrace_error err = {0};

    if (open_small(model, config, NULL, 0, &out, &err) != HEADRACE_E_MODEL)
        fail_msg("not refused; expected \"%s\"", message);
    assert_null(out);
    assert_says(err.message, message);
}

/* ---------------------------------------------------------------- missing, misshapen, surplus */

static void the_small_model_opens_in_every_form(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        small model = make_small(form & 1, form & 2);
        hr_model *out = open_ok(&model);

        assert_string_equal(logged, "");
        assert_int_equal(out->layers[1].is_moe, (form & 2) != 0);
        hr_model_close(out);
    }
}

static void each_missing_tensor_is_named(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        small whole = make_small(form & 1, form & 2);
        size_t n = whole.n;

        for (size_t i = 0; i < n; i++) {
            small model = whole;
            char expected[200];

            take_away(&model, whole.tensors[i].name);
            (void)snprintf(expected, sizeof expected, "'%s'", whole.tensors[i].name);
            refuse(&model, NULL, expected);
        }
    }
}

static void each_misshapen_tensor_is_named(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        small whole = make_small(form & 1, form & 2);

        for (size_t i = 0; i < whole.n; i++)
            for (uint32_t axis = 0; axis < whole.tensors[i].rank; axis++) {
                small model = whole;
                char expected[200];

                /* The first gate sets the width, so its fellows are then the ones that do not fit. */
                if (strstr(whole.tensors[i].name, "w1") || strstr(whole.tensors[i].name, "ffn_gate"))
                    continue;
                model.tensors[i].shape[axis] += 1;
                (void)snprintf(expected, sizeof expected, "tensor '%s' at byte", whole.tensors[i].name);
                refuse(&model, NULL, expected);
            }
    }
}

static void a_shape_is_shown_as_expected_and_found(void **state)
{
    small model = make_small(false, false);

    (void)state;
    *find(&model, "model.layers.0.conv.in_proj.weight") =
        (hr_test_tensor){.name = "model.layers.0.conv.in_proj.weight", .dtype = "F32", .rank = 3, .shape = {3, 32, 32}};
    refuse(&model, NULL, "expected shape [96, 32], found [3, 32, 32]");
}

static void an_unknown_tensor_inside_a_layer_is_refused(void **state)
{
    static const char *const hf[] = {"model.layers.1.self_attn.q_proj.bias", "model.layers.2.operator_norm.weight",
                                     "model.layers.0.conv.in_proj.weight_scale"};
    static const char *const gguf[] = {"blk.1.attn_q.bias", "blk.2.attn_norm.weight"};

    (void)state;
    for (size_t i = 0; i < sizeof hf / sizeof *hf; i++) {
        small model = make_small(false, false);
        char expected[128];

        add(&model, hf[i], 1, 32, 0);
        (void)snprintf(expected, sizeof expected, "tensor '%s' at byte", hf[i]);
        refuse(&model, NULL, expected);
    }
    for (size_t i = 0; i < sizeof gguf / sizeof *gguf; i++) {
        small model = make_small(true, false);

        add(&model, gguf[i], 1, 32, 0);
        refuse(&model, NULL, "is unknown: no layer of this architecture, as configured, has it");
    }
}

static void an_unknown_tensor_elsewhere_is_only_reported(void **state)
{
    small model = make_small(false, false);
    hr_model *out;

    (void)state;
    add(&model, "vision_tower.patch.weight", 1, 4, 0);
    add(&model, "model.layers.1.self_attn.rotary_emb.inv_freq", 1, 4, 0);
    out = open_ok(&model);
    assert_says(logged, "2 tensors are not used, the first is 'model.layers.1.self_attn.rotary_emb.inv_freq'");
    hr_model_close(out);
}

static void a_value_that_is_not_finite_is_refused(void **state)
{
    small model = make_small(false, false);
    float norm[32] = {0};

    (void)state;
    norm[5] = __builtin_nanf("");
    find(&model, "model.layers.1.ffn_norm.weight")->data = norm;
    refuse(&model, NULL, "tensor 'model.layers.1.ffn_norm.weight', byte");
    refuse(&model, NULL, "value 5 is not a finite number");
}

/* ---------------------------------------------------------------- other names for the same thing */

static void wrapped_checkpoints_are_recognised_by_their_prefix(void **state)
{
    static const char *const prefixes[] = {"", "lfm.", "model.language_model.", "language_model.model.",
                                           "language_model."};

    (void)state;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        small model = make_small(false, true);
        hr_model *out;

        for (size_t j = 0; j < model.n; j++) {
            char name[80];

            (void)snprintf(name, sizeof name, "%.25s%s", prefixes[i], model.tensors[j].name + strlen("model."));
            memcpy(model.tensors[j].name, name, sizeof name);
        }
        out = open_ok(&model);
        assert_string_equal(logged, "");
        hr_model_close(out);
    }
}

/* The format mixes types by tensor, but what is no matrix is never quantised. */
static void norms_and_taps_in_blocks_are_refused_by_name(void **state)
{
    static const char *const names[] = {"blk.0.attn_norm.weight", "blk.1.ffn_norm.weight", "token_embd_norm.weight"};
    const uint32_t q8_0 = 8;

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char folder[256], path[512];
        hr_model *model;
        headrace_error err = {0};
        size_t len;
        char *file = hr_test_read_file(HEADRACE_TEST_DATA "/goldens/gguf/dense_tiny-q8_0.gguf", &len);
        char *name = memmem(file, len, names[i], strlen(names[i]));

        assert_non_null(name);
        memcpy(name + strlen(names[i]) + 4 + 8, &q8_0, sizeof q8_0); /* after the rank and one dimension */
        hr_test_make_folder(folder, sizeof folder);
        hr_test_write_file(folder, "mixed.gguf", file, len);
        free(file);
        (void)snprintf(path, sizeof path, "%s/mixed.gguf", folder);
        assert_int_equal(hr_model_open(path, NULL, &model, &err), HEADRACE_E_MODEL);
        assert_says(err.message, path);
        assert_says(err.message, names[i]);
        assert_says(err.message, "type Q8_0, expected F32, F16 or BF16");
        hr_test_remove_folder(folder);
    }
}

static void either_name_of_the_final_norm_is_accepted_but_not_both(void **state)
{
    small model = make_small(true, false);
    hr_model *out;
    float norm[32] = {3.0F};

    (void)state;
    take_away(&model, "token_embd_norm.weight");
    refuse(&model, NULL, "tensor 'token_embd_norm.weight' (or 'output_norm.weight') is missing");
    add(&model, "output_norm.weight", 1, 32, 0);
    find(&model, "output_norm.weight")->data = norm;
    out = open_ok(&model);
    assert_true(out->final_norm[0] == 3.0F);
    assert_string_equal(logged, "");
    hr_model_close(out);
    add(&model, "token_embd_norm.weight", 1, 32, 0);
    refuse(&model, NULL, "tensors 'token_embd_norm.weight' and 'output_norm.weight' are both there");
}

static void a_head_of_its_own_is_used(void **state)
{
    static const char untied[] =
        "{\"model_type\":\"lfm2\",\"vocab_size\":16,\"hidden_size\":32,\"num_hidden_layers\":2,"
        "\"num_heads\":4,\"num_key_value_heads\":2,\"full_attn_idxs\":[1],\"block_ff_dim\":64,"
        "\"block_auto_adjust_ff_dim\":false,\"conv_L_cache\":3,\"norm_eps\":1e-05,\"rope_theta\":1e6,"
        "\"max_position_embeddings\":128,\"eos_token_id\":7,\"tie_embedding\":false}";
    small gguf = make_small(true, false), folder = make_small(false, false);
    hr_model *out;
    headrace_error err = {0};
    uint64_t tied_parameters;

    (void)state;
    out = open_ok(&gguf);
    tied_parameters = out->n_parameters;
    assert_true(out->is_tied);
    hr_model_close(out);
    add(&gguf, "output.weight", 2, 16, 32);
    out = open_ok(&gguf);
    assert_false(out->is_tied);
    assert_ptr_not_equal(out->head.data, out->embedding.data);
    assert_int_equal(out->n_parameters, tied_parameters + 16 * 32);
    hr_model_close(out);

    refuse(&folder, untied, "tensor 'lm_head.weight' is missing");
    add(&folder, "lm_head.weight", 2, 16, 32);
    assert_int_equal(open_small(&folder, untied, NULL, 0, &out, &err), HEADRACE_OK);
    assert_false(out->is_tied);
    hr_model_close(out);
    out = open_ok(&folder); /* tied by its config: the head is left over */
    assert_true(out->is_tied);
    assert_says(logged, "1 tensors are not used, the first is 'lm_head.weight'");
    hr_model_close(out);
}

static void biases_of_the_convolution_are_bound_when_configured(void **state)
{
    small model = make_small(false, false);
    char config[1024];
    hr_model *out;

    (void)state;
    (void)snprintf(config, sizeof config, "{\"conv_bias\":true,%s", hr_test_small_config(false) + 1);
    refuse(&model, config, "tensor 'model.layers.0.conv.in_proj.bias' is missing");
    add(&model, "model.layers.0.conv.in_proj.bias", 1, 96, 0);
    add(&model, "model.layers.0.conv.conv.bias", 1, 32, 0);
    add(&model, "model.layers.0.conv.out_proj.bias", 1, 32, 0);
    assert_int_equal(open_small(&model, config, NULL, 0, &out, NULL), HEADRACE_OK);
    assert_non_null(out->layers[0].conv.in_bias);
    assert_non_null(out->layers[0].conv.out_bias);
    hr_model_close(out);
    refuse(&model, NULL, "tensor 'model.layers.0.conv.conv.bias' at byte");
}

/* ---------------------------------------------------------------- widths */

static void the_tensors_width_wins_over_a_lying_key(void **state)
{
    small dense = make_small(true, false), experts = make_small(true, true);
    hr_model *out;
    headrace_error err = {0};

    (void)state;
    assert_int_equal(open_small(&dense, NULL, "feed_forward_length", 96, &out, &err), HEADRACE_OK);
    assert_int_equal(out->arch.ffn_dim, 64);
    assert_says(logged, "'feed_forward_length' gives a width of 96, but tensor 'blk.0.ffn_gate.weight' is 64 wide");
    hr_model_close(out);
    assert_int_equal(open_small(&experts, NULL, "expert_feed_forward_length", 96, &out, &err), HEADRACE_OK);
    assert_int_equal(out->arch.expert_ffn_dim, 32);
    assert_int_equal(out->layers[1].experts[3].down.cols, 32);
    assert_says(logged,
                "'expert_feed_forward_length' gives a width of 96, but tensor 'blk.1.ffn_gate_exps.weight' is 32 wide");
    hr_model_close(out);
}

static void the_tensors_width_wins_over_a_lying_config(void **state)
{
    small model = make_small(false, false);
    hr_model *out;

    (void)state;
    for (int i = 0; i < 2; i++) {
        find(&model, i ? "model.layers.1.feed_forward.w1.weight" : "model.layers.0.feed_forward.w1.weight")->shape[0] =
            40;
        find(&model, i ? "model.layers.1.feed_forward.w3.weight" : "model.layers.0.feed_forward.w3.weight")->shape[0] =
            40;
        find(&model, i ? "model.layers.1.feed_forward.w2.weight" : "model.layers.0.feed_forward.w2.weight")->shape[1] =
            40;
        if (i == 0)
            refuse(&model, NULL, "tensor 'model.layers.1.feed_forward.w1.weight' at byte");
    }
    out = open_ok(&model);
    assert_int_equal(out->arch.ffn_dim, 40);
    assert_says(logged, "'intermediate_size' gives a width of 64");
    hr_model_close(out);
}

/* ---------------------------------------------------------------- experts */

/* Rewrites a checkpoint with its experts fused as a re-save by newer classes does. */
static void fused_experts_bind_to_the_same_bytes(void **state)
{
    enum { LAYERS_MAX = 8 };
    hr_model *separate, *fused;
    headrace_error err = {0};
    static hr_test_tensor tensors[256];
    unsigned char *stacks[2 * LAYERS_MAX] = {0};
    size_t n = 0, n_stacks = 0, config_len;
    char folder[256];
    hr_buffer file = {0};
    char *config = hr_test_read_file(HEADRACE_TEST_DATA "/goldens/moe_tiny/config.json", &config_len);

    (void)state;
    assert_int_equal(hr_model_open(HEADRACE_TEST_DATA "/goldens/moe_tiny", NULL, &separate, &err), HEADRACE_OK);
    for (uint32_t i = 0; i < separate->file->n_tensors; i++) {
        const hr_tensor *from = &separate->file->tensors[i];
        hr_test_tensor *to = &tensors[n];

        if (strstr(from->name, ".experts."))
            continue;
        n++;
        (void)snprintf(to->name, sizeof to->name, "%s", from->name);
        to->dtype = hr_dtypes[from->dtype].name;
        to->rank = from->rank;
        memcpy(to->shape, from->shape, sizeof to->shape);
        to->data = from->data;
    }
    for (uint32_t layer = 0; layer < separate->arch.n_layers; layer++) {
        const hr_layer *from = &separate->layers[layer];
        uint64_t e = separate->arch.n_experts, m = separate->arch.expert_ffn_dim, h = separate->arch.hidden_size;

        if (!from->is_moe)
            continue;
        unsigned char *gate_up = malloc(e * 2 * m * h * 2), *down = malloc(e * h * m * 2);

        assert_non_null(gate_up);
        assert_non_null(down);
        for (uint64_t i = 0; i < e; i++) {
            memcpy(gate_up + (2 * i) * m * h * 2, from->experts[i].gate.data, m * h * 2);
            memcpy(gate_up + (2 * i + 1) * m * h * 2, from->experts[i].up.data, m * h * 2);
            memcpy(down + i * h * m * 2, from->experts[i].down.data, h * m * 2);
        }
        tensors[n] = (hr_test_tensor){.dtype = "BF16", .rank = 3, .shape = {e, 2 * m, h}, .data = gate_up};
        (void)snprintf(tensors[n++].name, 80, "model.layers.%u.feed_forward.experts.gate_up_proj", layer);
        tensors[n] = (hr_test_tensor){.dtype = "BF16", .rank = 3, .shape = {e, h, m}, .data = down};
        (void)snprintf(tensors[n++].name, 80, "model.layers.%u.feed_forward.experts.down_proj", layer);
        assert_true(n_stacks + 2 <= 2 * LAYERS_MAX);
        stacks[n_stacks++] = gate_up;
        stacks[n_stacks++] = down;
    }
    hr_test_make_folder(folder, sizeof folder);
    hr_test_safetensors(&file, tensors, n);
    hr_test_write_file(folder, "model.safetensors", file.at, file.len);
    hr_test_write_file(folder, "config.json", config, config_len);
    if (hr_model_open(folder, NULL, &fused, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_int_equal(fused->n_parameters, separate->n_parameters);
    for (uint32_t layer = 0; layer < separate->arch.n_layers; layer++)
        for (uint32_t i = 0; separate->layers[layer].is_moe && i < separate->arch.n_experts; i++) {
            const hr_ffn_weights *a = &separate->layers[layer].experts[i], *b = &fused->layers[layer].experts[i];

            assert_memory_equal(a->gate.data, b->gate.data, a->gate.rows * a->gate.row_bytes);
            assert_memory_equal(a->up.data, b->up.data, a->up.rows * a->up.row_bytes);
            assert_memory_equal(a->down.data, b->down.data, a->down.rows * a->down.row_bytes);
        }
    hr_model_close(fused);
    hr_model_close(separate);
    hr_test_remove_folder(folder);
    hr_buffer_deinit(&file);
    for (size_t i = 0; i < n_stacks; i++)
        free(stacks[i]);
    free(config);
}

/* ---------------------------------------------------------------- placement */

static void elements_at_odd_addresses_are_copied(void **state)
{
    small model = make_small(false, false);
    hr_buffer file = {0};
    uint64_t length;
    hr_model *out;
    float embedding[16 * 32] = {[3] = 4.5F};
    float found[4];

    (void)state;
    find(&model, "model.embed_tokens.weight")->data = embedding;
    hr_test_make_folder(model.folder, sizeof model.folder);
    hr_test_safetensors(&file, model.tensors, model.n);
    memcpy(&length, file.at, 8);
    length++;
    hr_buffer_add_char(&file, '\0'); /* one more blank behind the header: all data move by one byte */
    memmove(file.at + 8 + length, file.at + 8 + length - 1, file.len - 8 - length);
    file.at[8 + length - 1] = ' ';
    memcpy(file.at, &length, 8);
    hr_test_write_file(model.folder, "model.safetensors", file.at, file.len);
    hr_test_write_file(model.folder, "config.json", hr_test_small_config(false), strlen(hr_test_small_config(false)));
    logged[0] = '\0';
    headrace_set_log(keep_log, NULL);
    assert_int_equal(hr_model_open(model.folder, NULL, &out, NULL), HEADRACE_OK);
    headrace_set_log(NULL, NULL);
    assert_says(logged, "weights lie at odd addresses and were copied to memory");
    assert_int_equal((uintptr_t)out->embedding.data % 4, 0);
    memcpy(found, out->embedding.data, sizeof found);
    assert_true(found[3] == 4.5F);
    hr_model_close(out);
    hr_test_remove_folder(model.folder);
    hr_buffer_deinit(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_small_model_opens_in_every_form),
        cmocka_unit_test(each_missing_tensor_is_named),
        cmocka_unit_test(each_misshapen_tensor_is_named),
        cmocka_unit_test(a_shape_is_shown_as_expected_and_found),
        cmocka_unit_test(an_unknown_tensor_inside_a_layer_is_refused),
        cmocka_unit_test(an_unknown_tensor_elsewhere_is_only_reported),
        cmocka_unit_test(a_value_that_is_not_finite_is_refused),
        cmocka_unit_test(wrapped_checkpoints_are_recognised_by_their_prefix),
        cmocka_unit_test(norms_and_taps_in_blocks_are_refused_by_name),
        cmocka_unit_test(either_name_of_the_final_norm_is_accepted_but_not_both),
        cmocka_unit_test(a_head_of_its_own_is_used),
        cmocka_unit_test(biases_of_the_convolution_are_bound_when_configured),
        cmocka_unit_test(the_tensors_width_wins_over_a_lying_key),
        cmocka_unit_test(the_tensors_width_wins_over_a_lying_config),
        cmocka_unit_test(fused_experts_bind_to_the_same_bytes),
        cmocka_unit_test(elements_at_odd_addresses_are_copied),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
