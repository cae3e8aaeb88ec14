/* The architecture from GGUF metadata. head_count_kv is the layer list: one number a layer, 0 for a convolution.
 *
 * norm_topk_prob, routed_scaling_factor and use_expert_bias are not stored in GGUF; every release has true, 1.0 and
 * true.
 */
#include "model/config.h"

#include <inttypes.h>
#include <string.h>

typedef struct keys {
    const hr_gguf *gguf;
    const char *path;
    const char *prefix; /* "lfm2" or "lfm2moe" */
    headrace_error *err;
} keys;

typedef struct key_name {
    char text[96];
} key_name;

static key_name key_of(const keys *in, const char *suffix)
{
    key_name out;

    (void)snprintf(out.text, sizeof out.text, "%s.%s", in->prefix, suffix);
    return out;
}

static const hr_gguf_value *find(const keys *in, const char *suffix)
{
    return hr_gguf_find(in->gguf, key_of(in, suffix).text);
}

static headrace_status need_u32(const keys *in, const char *suffix, uint32_t min, uint32_t max, uint32_t *out)
{
    key_name key = key_of(in, suffix);

    HR_PASS(hr_gguf_u32(in->gguf, key.text, out, in->err));
    if (*out < min || *out > max)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is %u, expected %u to %u", in->path, key.text, *out,
                       min, max);
    return HEADRACE_OK;
}

static headrace_status need_f32(const keys *in, const char *suffix, float min, float max, float *out)
{
    key_name key = key_of(in, suffix);

    HR_PASS(hr_gguf_f32(in->gguf, key.text, out, in->err));
    if (!(*out >= min && *out <= max))
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is %g, expected %g to %g", in->path, key.text,
                       (double)*out, (double)min, (double)max);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- which model */

static bool is_text(hr_gguf_string string, const char *text)
{
    return string.len == strlen(text) && memcmp(string.at, text, strlen(text)) == 0;
}

static headrace_status read_name(const hr_gguf *gguf, const char *path, hr_arch *arch, headrace_error *err)
{
    hr_gguf_string name;
    const char *what = "another architecture";
    char shown[40];

    HR_PASS(hr_gguf_str(gguf, "general.architecture", &name, err));
    if (is_text(name, "lfm2") || is_text(name, "lfm2moe")) {
        (void)snprintf(arch->name, sizeof arch->name, "%.*s", (int)name.len, name.at);
        return HEADRACE_OK;
    }
    (void)snprintf(shown, sizeof shown, "%.*s", (int)(name.len < sizeof shown ? name.len : sizeof shown - 1), name.at);
    if (is_text(name, "clip"))
        what = "a vision or audio projector, not a language model";
    else if (strncmp(shown, "lfm3", 4) == 0)
        what = "LFM3 is another architecture";
    return hr_fail(err, HEADRACE_E_MODEL, "%s: general.architecture '%s' is not supported (%s); lfm2 and lfm2moe are",
                   path, shown, what);
}

/* Keys of variants whose computation differs. */
static headrace_status refuse_variants(const keys *in)
{
    key_name causal = key_of(in, "attention.causal"), scaling = key_of(in, "rope.scaling.type");
    bool is_causal = true;
    uint32_t window = 0, gating = 2;
    hr_gguf_string type;

    if (find(in, "attention.causal"))
        HR_PASS(hr_gguf_bool(in->gguf, causal.text, &is_causal, in->err));
    if (!is_causal)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is false: embedding models are not supported", in->path,
                       causal.text);
    if (find(in, "attention.sliding_window"))
        HR_PASS(need_u32(in, "attention.sliding_window", 0, UINT32_MAX, &window));
    if (window != 0)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is %u: sliding windows are not supported", in->path,
                       key_of(in, "attention.sliding_window").text, window);
    if (find(in, "expert_gating_func"))
        HR_PASS(need_u32(in, "expert_gating_func", 0, UINT32_MAX, &gating));
    if (gating != 2)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is %u, expected 2 (sigmoid)", in->path,
                       key_of(in, "expert_gating_func").text, gating);
    if (!find(in, "rope.scaling.type"))
        return HEADRACE_OK;
    HR_PASS(hr_gguf_str(in->gguf, scaling.text, &type, in->err));
    return is_text(type, "none") ? HEADRACE_OK
                                 : hr_fail(in->err, HEADRACE_E_MODEL,
                                           "%s: key '%s': scaled positions are not supported", in->path, scaling.text);
}

/* ---------------------------------------------------------------- sizes */

static bool is_integer_array(const hr_gguf_value *value)
{
    return value->type == HR_GGUF_ARRAY && (value->element_type <= HR_GGUF_I32 || value->element_type == HR_GGUF_U64 ||
                                            value->element_type == HR_GGUF_I64);
}

static headrace_status read_layers(const keys *in, hr_config *out)
{
    key_name key = key_of(in, "attention.head_count_kv");
    const hr_gguf_value *value = hr_gguf_find(in->gguf, key.text);
    hr_arch *arch = &out->arch;

    if (!value)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is missing", in->path, key.text);
    if (!is_integer_array(value) || value->n_elements != arch->n_layers)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: key '%s', byte %" PRIu64 ": expected an array of %u integers, one a layer (found %" PRIu64
                       ")",
                       in->path, key.text, value->offset, arch->n_layers, value->n_elements);
    for (uint32_t i = 0; i < arch->n_layers; i++) {
        int64_t n = hr_gguf_int_at(value, i);

        if (n < 0 || n > HR_HEADS_MAX || (n > 0 && arch->n_kv_heads > 0 && n != arch->n_kv_heads))
            return hr_fail(in->err, HEADRACE_E_MODEL,
                           "%s: key '%s': layer %u has %" PRId64
                           " key-value heads, expected 0 or the same 1 to %d in all layers",
                           in->path, key.text, i, n, HR_HEADS_MAX);
        out->operators[i] = n > 0 ? HR_OPERATOR_ATTENTION : HR_OPERATOR_CONV;
        if (n > 0)
            arch->n_kv_heads = (uint32_t)n;
    }
    if (arch->n_kv_heads == 0)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' has no attention layer", in->path, key.text);
    return HEADRACE_OK;
}

static headrace_status read_heads(const keys *in, hr_arch *arch)
{
    uint32_t value_length, rotary;

    HR_PASS(need_u32(in, "attention.head_count", 1, HR_HEADS_MAX, &arch->n_heads));
    if (find(in, "attention.key_length")) {
        HR_PASS(need_u32(in, "attention.key_length", 2, HR_HEAD_DIM_MAX, &arch->head_dim));
    } else {
        arch->head_dim = arch->hidden_size / arch->n_heads;
        if (arch->hidden_size % arch->n_heads != 0 || arch->head_dim < 2 || arch->head_dim > HR_HEAD_DIM_MAX)
            return hr_fail(in->err, HEADRACE_E_MODEL,
                           "%s: embedding_length %u and attention.head_count %u give no whole head size from 2 to %d",
                           in->path, arch->hidden_size, arch->n_heads, HR_HEAD_DIM_MAX);
    }
    if (find(in, "attention.value_length"))
        HR_PASS(need_u32(in, "attention.value_length", arch->head_dim, arch->head_dim, &value_length));
    if (find(in, "rope.dimension_count"))
        HR_PASS(need_u32(in, "rope.dimension_count", arch->head_dim, arch->head_dim, &rotary));
    return HEADRACE_OK;
}

/* A number, or an array with the same number for every layer of the kind. Zeros of an array are other layers'. */
static headrace_status read_width(const keys *in, const char *suffix, uint32_t *out)
{
    const hr_gguf_value *value = find(in, suffix);

    if (!value || !is_integer_array(value))
        return need_u32(in, suffix, 1, HR_WIDTH_MAX, out);
    *out = 0;
    for (uint64_t i = 0; i < value->n_elements; i++) {
        int64_t width = hr_gguf_int_at(value, i);

        if (width < 0 || width > HR_WIDTH_MAX || (width > 0 && *out > 0 && width != *out))
            return hr_fail(in->err, HEADRACE_E_MODEL,
                           "%s: key '%s': element %" PRIu64 " is %" PRId64 ", expected one width", in->path,
                           key_of(in, suffix).text, i, width);
        if (width > 0)
            *out = (uint32_t)width;
    }
    return *out > 0
               ? HEADRACE_OK
               : hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' has no width", in->path, key_of(in, suffix).text);
}

static headrace_status read_experts(const keys *in, hr_config *out)
{
    hr_arch *arch = &out->arch;

    arch->routed_scaling_factor = 1.0F;
    if (strcmp(arch->name, "lfm2moe") != 0)
        return HEADRACE_OK;
    arch->norm_topk_prob = arch->use_expert_bias = true;
    out->expert_ffn_key = "expert_feed_forward_length";
    HR_PASS(need_u32(in, "expert_count", 1, HR_EXPERTS_MAX, &arch->n_experts));
    HR_PASS(need_u32(in, "expert_used_count", 1, HR_EXPERTS_MAX, &arch->n_experts_used));
    HR_PASS(need_u32(in, "leading_dense_block_count", 0, HR_LAYERS_MAX, &arch->n_dense_layers));
    return read_width(in, out->expert_ffn_key, &arch->expert_ffn_dim);
}

/* The key, or the rows of the embedding where older files lack it. */
static headrace_status read_vocabulary(const keys *in, hr_arch *arch)
{
    const hr_tensor *embedding = hr_tensor_file_find(&in->gguf->file, "token_embd.weight");

    if (find(in, "vocab_size"))
        return need_u32(in, "vocab_size", 1, HR_VOCAB_MAX, &arch->vocab_size);
    if (!embedding || embedding->rank != 2 || embedding->shape[0] < 1 || embedding->shape[0] > HR_VOCAB_MAX)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is missing, and no tensor 'token_embd.weight' tells it",
                       in->path, key_of(in, "vocab_size").text);
    arch->vocab_size = (uint32_t)embedding->shape[0];
    return HEADRACE_OK;
}

static headrace_status read_id(const keys *in, const char *key, const hr_arch *arch, int32_t *out)
{
    uint32_t id;

    *out = -1;
    if (!hr_gguf_find(in->gguf, key))
        return HEADRACE_OK;
    HR_PASS(hr_gguf_u32(in->gguf, key, &id, in->err));
    if (id >= arch->vocab_size)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' is %u, outside the vocabulary of %u", in->path, key, id,
                       arch->vocab_size);
    *out = (int32_t)id;
    return HEADRACE_OK;
}

static headrace_status read_ids(const keys *in, hr_arch *arch)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    int32_t id;

    HR_PASS(read_id(in, "tokenizer.ggml.bos_token_id", arch, &arch->bos_id));
    HR_PASS(read_id(in, "tokenizer.ggml.padding_token_id", arch, &arch->pad_id));
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        HR_PASS(read_id(in, ends[i], arch, &id));
        if (id >= 0)
            HR_PASS(hr_arch_add_eos(arch, id, in->path, in->err));
    }
    return HEADRACE_OK;
}

headrace_status hr_config_from_gguf(const hr_gguf *gguf, hr_config *out, headrace_error *err)
{
    hr_arch *arch = &out->arch;
    keys in = {.gguf = gguf, .path = gguf->file.paths[0], .prefix = arch->name, .err = err};

    *out = (hr_config){.is_tied = true, .ffn_key = "feed_forward_length"};
    HR_PASS(read_name(gguf, in.path, arch, err));
    HR_PASS(refuse_variants(&in));
    HR_PASS(need_u32(&in, "block_count", 1, HR_LAYERS_MAX, &arch->n_layers));
    HR_PASS(need_u32(&in, "context_length", 1, HR_POSITIONS_MAX, &arch->max_positions));
    HR_PASS(need_u32(&in, "embedding_length", 1, HR_HIDDEN_MAX, &arch->hidden_size));
    HR_PASS(read_vocabulary(&in, arch));
    HR_PASS(read_heads(&in, arch));
    HR_PASS(read_layers(&in, out));
    HR_PASS(read_width(&in, out->ffn_key, &arch->ffn_dim));
    HR_PASS(read_experts(&in, out));
    HR_PASS(need_u32(&in, "shortconv.l_cache", HR_CONV_LENGTH_MIN, HR_CONV_LENGTH_MAX, &arch->conv_length));
    HR_PASS(need_f32(&in, "attention.layer_norm_rms_epsilon", 1e-12F, 1.0F, &arch->norm_eps));
    HR_PASS(need_f32(&in, "rope.freq_base", 1.0F, 1e12F, &arch->rope_theta));
    return read_ids(&in, arch);
}
