/* See checkpoint.h. */
#include "support/checkpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { H = 32, D = 8, NQ = 4, NKV = 2, F = 64, V = 16, L = 3, E = 4, M = 32 };

typedef struct spec {
    const char *hf, *gguf;
    uint32_t rank;
    uint64_t shape[4];
    int moe; /* -1 only dense, 1 only experts, 0 both */
} spec;

static const spec specs[] = {
    {"model.embed_tokens.weight", "token_embd.weight", 2, {V, H}, 0},
    {"model.embedding_norm.weight", "token_embd_norm.weight", 1, {H}, 0},
    {"model.layers.0.operator_norm.weight", "blk.0.attn_norm.weight", 1, {H}, 0},
    {"model.layers.0.ffn_norm.weight", "blk.0.ffn_norm.weight", 1, {H}, 0},
    {"model.layers.0.conv.in_proj.weight", "blk.0.shortconv.in_proj.weight", 2, {3 * H, H}, 0},
    {"model.layers.0.conv.conv.weight", NULL, 3, {H, 1, L}, 0},
    {NULL, "blk.0.shortconv.conv.weight", 2, {H, L}, 0},
    {"model.layers.0.conv.out_proj.weight", "blk.0.shortconv.out_proj.weight", 2, {H, H}, 0},
    {"model.layers.0.feed_forward.w1.weight", "blk.0.ffn_gate.weight", 2, {F, H}, 0},
    {"model.layers.0.feed_forward.w3.weight", "blk.0.ffn_up.weight", 2, {F, H}, 0},
    {"model.layers.0.feed_forward.w2.weight", "blk.0.ffn_down.weight", 2, {H, F}, 0},
    {"model.layers.1.operator_norm.weight", "blk.1.attn_norm.weight", 1, {H}, 0},
    {"model.layers.1.ffn_norm.weight", "blk.1.ffn_norm.weight", 1, {H}, 0},
    {"model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", 2, {NQ * D, H}, 0},
    {"model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight", 2, {NKV * D, H}, 0},
    {"model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight", 2, {NKV * D, H}, 0},
    {"model.layers.1.self_attn.out_proj.weight", "blk.1.attn_output.weight", 2, {H, NQ *D}, 0},
    {"model.layers.1.self_attn.q_layernorm.weight", "blk.1.attn_q_norm.weight", 1, {D}, 0},
    {"model.layers.1.self_attn.k_layernorm.weight", "blk.1.attn_k_norm.weight", 1, {D}, 0},
    {"model.layers.1.feed_forward.w1.weight", "blk.1.ffn_gate.weight", 2, {F, H}, -1},
    {"model.layers.1.feed_forward.w3.weight", "blk.1.ffn_up.weight", 2, {F, H}, -1},
    {"model.layers.1.feed_forward.w2.weight", "blk.1.ffn_down.weight", 2, {H, F}, -1},
    {"model.layers.1.feed_forward.gate.weight", "blk.1.ffn_gate_inp.weight", 2, {E, H}, 1},
    {"model.layers.1.feed_forward.expert_bias", "blk.1.exp_probs_b.bias", 1, {E}, 1},
    {NULL, "blk.1.ffn_gate_exps.weight", 3, {E, M, H}, 1},
    {NULL, "blk.1.ffn_up_exps.weight", 3, {E, M, H}, 1},
    {NULL, "blk.1.ffn_down_exps.weight", 3, {E, H, M}, 1},
};

static hr_test_tensor make_tensor(const char *name, uint32_t rank, const uint64_t shape[4])
{
    hr_test_tensor out = {.dtype = "F32", .rank = rank};

    (void)snprintf(out.name, sizeof out.name, "%s", name);
    memcpy(out.shape, shape, sizeof out.shape);
    return out;
}

size_t hr_test_small_tensors(bool is_gguf, bool is_moe, hr_test_tensor out[HR_TEST_TENSORS_MAX])
{
    static const char *const roles[] = {"w1", "w3", "w2"};
    size_t n = 0;

    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        const char *name = is_gguf ? specs[i].gguf : specs[i].hf;

        if (name && specs[i].moe != (is_moe ? -1 : 1))
            out[n++] = make_tensor(name, specs[i].rank, specs[i].shape);
    }
    for (uint32_t e = 0; is_moe && !is_gguf && e < E; e++)
        for (size_t i = 0; i < 3; i++) {
            char name[80];

            (void)snprintf(name, sizeof name, "model.layers.1.feed_forward.experts.%" PRIu32 ".%s.weight", e, roles[i]);
            out[n++] = make_tensor(name, 2, i < 2 ? (const uint64_t[4]){M, H} : (const uint64_t[4]){H, M});
        }
    return n;
}

const char *hr_test_small_config(bool is_moe)
{
    static const char dense[] =
        "{\"model_type\":\"lfm2\",\"architectures\":[\"Lfm2ForCausalLM\"],\"vocab_size\":16,\"hidden_size\":32,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"layer_types\":[\"conv\","
        "\"full_attention\"],\"intermediate_size\":64,\"block_auto_adjust_ff_dim\":false,\"conv_L_cache\":3,"
        "\"norm_eps\":1e-05,\"rope_theta\":1000000.0,\"max_position_embeddings\":128,\"bos_token_id\":1,"
        "\"eos_token_id\":7,\"pad_token_id\":0}";
    static const char experts[] =
        "{\"model_type\":\"lfm2_moe\",\"architectures\":[\"Lfm2MoeForCausalLM\"],\"vocab_size\":16,\"hidden_size\":32,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"layer_types\":[\"conv\","
        "\"full_attention\"],\"intermediate_size\":64,\"moe_intermediate_size\":32,\"num_experts\":4,"
        "\"num_experts_per_tok\":2,\"num_dense_layers\":1,\"conv_L_cache\":3,\"norm_eps\":1e-05,"
        "\"rope_theta\":1000000.0,\"max_position_embeddings\":128,\"bos_token_id\":1,\"eos_token_id\":7,"
        "\"pad_token_id\":0}";

    return is_moe ? experts : dense;
}

static size_t tensor_bytes(const hr_test_tensor *tensor)
{
    size_t n = strcmp(tensor->dtype, "F32") == 0 ? 4 : 2;

    for (uint32_t i = 0; i < tensor->rank; i++)
        n *= tensor->shape[i];
    return n;
}

static void add_data(hr_buffer *out, const hr_test_tensor *tensor)
{
    if (tensor->data)
        hr_buffer_add(out, tensor->data, tensor_bytes(tensor));
    else
        for (size_t i = tensor_bytes(tensor); i > 0; i--)
            hr_buffer_add_char(out, '\0');
}

void hr_test_safetensors(hr_buffer *out, const hr_test_tensor *tensors, size_t n)
{
    uint64_t length = 0, at = 0;

    hr_buffer_clear(out);
    hr_buffer_add(out, &length, sizeof length);
    hr_buffer_add_char(out, '{');
    for (size_t i = 0; i < n; i++) {
        hr_buffer_printf(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", tensors[i].name,
                         tensors[i].dtype);
        for (uint32_t j = 0; j < tensors[i].rank; j++)
            hr_buffer_printf(out, "%s%" PRIu64, j ? "," : "", tensors[i].shape[j]);
        hr_buffer_printf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + tensor_bytes(&tensors[i]));
        at += tensor_bytes(&tensors[i]);
    }
    hr_buffer_add_char(out, '}');
    while (out->len % 8 != 0)
        hr_buffer_add_char(out, ' ');
    length = out->len - 8;
    memcpy(out->at, &length, sizeof length);
    for (size_t i = 0; i < n; i++)
        add_data(out, &tensors[i]);
}

/* ---------------------------------------------------------------- GGUF */

static void add_text(hr_buffer *out, const char *text)
{
    uint64_t len = strlen(text);

    hr_buffer_add(out, &len, sizeof len);
    hr_buffer_add(out, text, len);
}

void hr_test_gguf_raw(hr_test_gguf *gguf, const char *key, uint32_t type, const void *value, size_t len)
{
    add_text(&gguf->keys, key);
    hr_buffer_add(&gguf->keys, &type, sizeof type);
    hr_buffer_add(&gguf->keys, value, len);
    gguf->n_keys++;
}

void hr_test_gguf_u32(hr_test_gguf *gguf, const char *key, uint32_t value)
{
    hr_test_gguf_raw(gguf, key, 4, &value, sizeof value);
}

void hr_test_gguf_f32(hr_test_gguf *gguf, const char *key, float value)
{
    hr_test_gguf_raw(gguf, key, 6, &value, sizeof value);
}

void hr_test_gguf_str(hr_test_gguf *gguf, const char *key, const char *value)
{
    hr_test_gguf_raw(gguf, key, 8, NULL, 0);
    add_text(&gguf->keys, value);
}

void hr_test_gguf_u32s(hr_test_gguf *gguf, const char *key, const uint32_t *values, uint64_t n)
{
    uint32_t type = 4;

    hr_test_gguf_raw(gguf, key, 9, &type, sizeof type);
    hr_buffer_add(&gguf->keys, &n, sizeof n);
    hr_buffer_add(&gguf->keys, values, n * sizeof *values);
}

static void pad(hr_buffer *out, uint32_t alignment)
{
    while (out->len % (alignment ? alignment : 32) != 0)
        hr_buffer_add_char(out, '\0');
}

void hr_test_gguf_tensor(hr_test_gguf *gguf, const hr_test_tensor *tensor)
{
    uint32_t type = strcmp(tensor->dtype, "F32") == 0 ? 0 : strcmp(tensor->dtype, "F16") == 0 ? 1 : 30;
    uint64_t offset;

    pad(&gguf->data, gguf->alignment);
    offset = gguf->data.len;
    add_text(&gguf->tensors, tensor->name);
    hr_buffer_add(&gguf->tensors, &tensor->rank, sizeof tensor->rank);
    for (uint32_t i = tensor->rank; i-- > 0;)
        hr_buffer_add(&gguf->tensors, &tensor->shape[i], sizeof tensor->shape[i]);
    hr_buffer_add(&gguf->tensors, &type, sizeof type);
    hr_buffer_add(&gguf->tensors, &offset, sizeof offset);
    add_data(&gguf->data, tensor);
    gguf->n_tensors++;
}

void hr_test_gguf_small_keys(hr_test_gguf *gguf, bool is_moe, const char *const *without)
{
    static const struct {
        const char *key;
        double value;
        int moe; /* 1: experts only */
        bool is_real;
    } numbers[] = {
        {"block_count", 2, 0, false},
        {"context_length", 128, 0, false},
        {"embedding_length", H, 0, false},
        {"feed_forward_length", F, 0, false},
        {"attention.head_count", NQ, 0, false},
        {"vocab_size", V, 0, false},
        {"shortconv.l_cache", L, 0, false},
        {"attention.layer_norm_rms_epsilon", 1e-5, 0, true},
        {"rope.freq_base", 1e6, 0, true},
        {"expert_count", E, 1, false},
        {"expert_used_count", 2, 1, false},
        {"expert_feed_forward_length", M, 1, false},
        {"leading_dense_block_count", 1, 1, false},
        {"expert_gating_func", 2, 1, false},
    };
    static const uint32_t heads[] = {0, NKV};
    const char *arch = is_moe ? "lfm2moe" : "lfm2";
    char key[80];

    hr_test_gguf_str(gguf, "general.architecture", arch);
    for (size_t i = 0; i <= sizeof numbers / sizeof *numbers; i++) {
        bool is_list = i == sizeof numbers / sizeof *numbers, skip = false;
        const char *suffix = is_list ? "attention.head_count_kv" : numbers[i].key;

        for (size_t j = 0; without && without[j]; j++)
            skip = skip || strcmp(without[j], suffix) == 0;
        if (skip || (!is_list && numbers[i].moe && !is_moe))
            continue;
        (void)snprintf(key, sizeof key, "%s.%s", arch, suffix);
        if (is_list)
            hr_test_gguf_u32s(gguf, key, heads, 2);
        else if (numbers[i].is_real)
            hr_test_gguf_f32(gguf, key, (float)numbers[i].value);
        else
            hr_test_gguf_u32(gguf, key, (uint32_t)numbers[i].value);
    }
}

void hr_test_gguf_finish(hr_test_gguf *gguf, hr_buffer *out)
{
    uint32_t version = 3;

    hr_buffer_clear(out);
    hr_buffer_add(out, "GGUF", 4);
    hr_buffer_add(out, &version, sizeof version);
    hr_buffer_add(out, &gguf->n_tensors, 8);
    hr_buffer_add(out, &gguf->n_keys, 8);
    hr_buffer_add(out, gguf->keys.at, gguf->keys.len);
    hr_buffer_add(out, gguf->tensors.at, gguf->tensors.len);
    pad(out, gguf->alignment);
    hr_buffer_add(out, gguf->data.at, gguf->data.len);
    hr_buffer_deinit(&gguf->keys);
    hr_buffer_deinit(&gguf->tensors);
    hr_buffer_deinit(&gguf->data);
    *gguf = (hr_test_gguf){0};
}
