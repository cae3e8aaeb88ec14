/* config.json of a Hugging Face folder: every spelling in use, from the first releases (block_ff_dim, full_attn_idxs,
 * rope_theta) to the latest (intermediate_size, layer_types, rope_parameters).
 *
 * Fields that change nothing are ignored; fields that would change the computation in a way that this version does not
 * compute (scaled positions, sliding windows, quantised weights) are refused, because running past them would give
 * wrong text without a sign.
 */
#include "model/config.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <strings.h>

typedef struct fields {
    const json_t *root;
    const char *path;
    headrace_error *err;
} fields;

/* The value of a field; null counts as absent. */
static const json_t *find(const fields *in, const char *name)
{
    const json_t *value = json_object_get(in->root, name);

    return value && !json_is_null(value) ? value : NULL;
}

/* A short text of a value, for messages. */
typedef struct shown {
    char text[64];
} shown;

static shown show(const json_t *value)
{
    shown out;
    size_t n = json_dumpb(value, out.text, sizeof out.text - 1, JSON_ENCODE_ANY | JSON_COMPACT);

    if (n > sizeof out.text - 1)
        (void)snprintf(out.text, sizeof out.text, "a long value");
    else
        out.text[n] = '\0';
    return out;
}

static headrace_status refuse(const fields *in, const char *name, const json_t *value, const char *expected)
{
    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: field '%s' is %s, expected %s", in->path, name, show(value).text,
                   expected);
}

static headrace_status missing(const fields *in, const char *name)
{
    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: field '%s' is missing", in->path, name);
}

static headrace_status check_integer(const fields *in, const char *name, const json_t *value, int64_t min, int64_t max,
                                     int64_t *out)
{
    char expected[80];

    if (json_is_integer(value) && json_integer_value(value) >= min && json_integer_value(value) <= max) {
        *out = json_integer_value(value);
        return HEADRACE_OK;
    }
    (void)snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)min, (long long)max);
    return refuse(in, name, value, expected);
}

/* alias: the name to look under when the first is absent, or NULL. */
static headrace_status need_u32(const fields *in, const char *name, const char *alias, uint32_t min, uint32_t max,
                                uint32_t *out)
{
    const json_t *value = find(in, name);
    int64_t number = 0;

    if (!value && alias) {
        const json_t *other = find(in, alias);

        if (other) {
            value = other;
            name = alias;
        }
    }
    if (!value)
        return missing(in, name);
    HR_PASS(check_integer(in, name, value, min, max, &number));
    *out = (uint32_t)number;
    return HEADRACE_OK;
}

static headrace_status check_real(const fields *in, const char *name, const json_t *value, double min, double max,
                                  double *out)
{
    char expected[80];

    if (json_is_number(value) && json_number_value(value) >= min && json_number_value(value) <= max) {
        *out = json_number_value(value);
        return HEADRACE_OK;
    }
    (void)snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
    return refuse(in, name, value, expected);
}

static headrace_status read_bool(const fields *in, const char *name, bool *out)
{
    const json_t *value = find(in, name);

    if (!value)
        return HEADRACE_OK;
    if (!json_is_boolean(value))
        return refuse(in, name, value, "true or false");
    *out = json_is_true(value);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- which model */

static headrace_status refuse_type(const fields *in, const char *type)
{
    static const struct {
        const char *type, *what;
    } known[] = {
        {"lfm3", "LFM3 is another architecture"},       {"lfm3_vl", "LFM3 is another architecture"},
        {"lfm3_audio", "LFM3 is another architecture"}, {"lfm2_vl", "a vision-language model"},
        {"lfm2-vl", "a vision-language model"},         {"lfm2_audio", "an audio model"},
    };
    const char *what = "another architecture";

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i].type) == 0)
            what = known[i].what;
    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: model_type '%.40s' is not supported (%s); lfm2 and lfm2_moe are",
                   in->path, type, what);
}

static headrace_status read_type(const fields *in, hr_arch *arch)
{
    const json_t *value = find(in, "model_type"), *classes = find(in, "architectures");
    const char *type = json_string_value(value);

    if (!value)
        return missing(in, "model_type");
    if (!type)
        return refuse(in, "model_type", value, "a text");
    if (strcmp(type, "lfm2") != 0 && strcmp(type, "lfm2_moe") != 0)
        return refuse_type(in, type);
    (void)snprintf(arch->name, sizeof arch->name, "%s", strcmp(type, "lfm2") == 0 ? "lfm2" : "lfm2moe");
    for (size_t i = 0; i < json_array_size(classes); i++) {
        const char *class = json_string_value(json_array_get(classes, i));
        bool is_moe = strcmp(type, "lfm2_moe") == 0;

        if (!class || (strcasecmp(class, is_moe ? "Lfm2MoeForCausalLM" : "Lfm2ForCausalLM") != 0 &&
                       strcasecmp(class, is_moe ? "Lfm2MoeModel" : "Lfm2Model") != 0))
            return refuse(in, "architectures", classes, is_moe ? "Lfm2MoeForCausalLM" : "Lfm2ForCausalLM");
    }
    if ((value = find(in, "quantization_config")) != NULL)
        return refuse(in, "quantization_config", value,
                      "none: only BF16, F16 and F32 weights are read from safetensors");
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- layers */

static headrace_status read_layer_types(const fields *in, const json_t *list, hr_config *out)
{
    if (!json_is_array(list) || json_array_size(list) != out->arch.n_layers)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: field 'layer_types' has %zu entries, expected num_hidden_layers = %u", in->path,
                       json_array_size(list), out->arch.n_layers);
    for (uint32_t i = 0; i < out->arch.n_layers; i++) {
        const json_t *entry = json_array_get(list, i);
        const char *type = json_string_value(entry);
        char name[32];

        (void)snprintf(name, sizeof name, "layer_types[%u]", i);
        if (type && strcmp(type, "conv") == 0)
            out->operators[i] = HR_OPERATOR_CONV;
        else if (type && strcmp(type, "full_attention") == 0)
            out->operators[i] = HR_OPERATOR_ATTENTION;
        else
            return refuse(in, name, entry, "\"conv\" or \"full_attention\"");
    }
    return HEADRACE_OK;
}

static headrace_status read_layers(const fields *in, hr_config *out)
{
    const json_t *types = find(in, "layer_types"), *idxs = find(in, "full_attn_idxs");

    if (types)
        return read_layer_types(in, types, out);
    if (!idxs)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: field 'layer_types' (or 'full_attn_idxs') is missing", in->path);
    if (!json_is_array(idxs))
        return refuse(in, "full_attn_idxs", idxs, "a list of layer numbers");
    for (uint32_t i = 0; i < out->arch.n_layers; i++)
        out->operators[i] = HR_OPERATOR_CONV;
    for (size_t i = 0; i < json_array_size(idxs); i++) {
        int64_t layer = 0;
        char name[48];

        (void)snprintf(name, sizeof name, "full_attn_idxs[%zu]", i);
        HR_PASS(check_integer(in, name, json_array_get(idxs, i), 0, (int64_t)out->arch.n_layers - 1, &layer));
        out->operators[layer] = HR_OPERATOR_ATTENTION;
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- sizes */

static headrace_status read_heads(const fields *in, hr_arch *arch)
{
    const json_t *head_dim = find(in, "head_dim");
    int64_t number = 0;

    HR_PASS(need_u32(in, "num_attention_heads", "num_heads", 1, HR_HEADS_MAX, &arch->n_heads));
    HR_PASS(need_u32(in, "num_key_value_heads", NULL, 1, HR_HEADS_MAX, &arch->n_kv_heads));
    if (head_dim) {
        HR_PASS(check_integer(in, "head_dim", head_dim, 2, HR_HEAD_DIM_MAX, &number));
        arch->head_dim = (uint32_t)number;
        return HEADRACE_OK;
    }
    arch->head_dim = arch->hidden_size / arch->n_heads;
    if (arch->hidden_size % arch->n_heads != 0 || arch->head_dim < 2 || arch->head_dim > HR_HEAD_DIM_MAX)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: fields 'hidden_size' %u and 'num_attention_heads' %u give no whole head size from 2 to %d",
                       in->path, arch->hidden_size, arch->n_heads, HR_HEAD_DIM_MAX);
    return HEADRACE_OK;
}

static headrace_status read_ffn_width(const fields *in, hr_config *out)
{
    bool auto_adjust = true;
    uint32_t configured, multiple_of = 256;
    double multiplier = 1.0;

    out->ffn_key = find(in, "block_ff_dim") ? "block_ff_dim" : "intermediate_size";
    HR_PASS(need_u32(in, out->ffn_key, NULL, 1, HR_WIDTH_MAX, &configured));
    HR_PASS(read_bool(in, "block_auto_adjust_ff_dim", &auto_adjust));
    if (out->arch.n_experts > 0) { /* widths of expert models are used as they are */
        out->arch.ffn_dim = configured;
        return HEADRACE_OK;
    }
    if (find(in, "block_multiple_of"))
        HR_PASS(need_u32(in, "block_multiple_of", NULL, 1, 65536, &multiple_of));
    if (find(in, "block_ffn_dim_multiplier"))
        HR_PASS(
            check_real(in, "block_ffn_dim_multiplier", find(in, "block_ffn_dim_multiplier"), 1e-3, 1e3, &multiplier));
    if (!hr_ffn_width(configured, auto_adjust, multiplier, multiple_of, &out->arch.ffn_dim))
        return refuse(in, out->ffn_key, find(in, out->ffn_key), "a width from 1 to 1048576 after adjustment");
    return HEADRACE_OK;
}

static headrace_status read_experts(const fields *in, hr_config *out)
{
    hr_arch *arch = &out->arch;
    const json_t *scaling = find(in, "routed_scaling_factor");
    double number = 1.0;

    arch->norm_topk_prob = arch->use_expert_bias = false;
    arch->routed_scaling_factor = 1.0F;
    if (strcmp(arch->name, "lfm2moe") != 0)
        return HEADRACE_OK;
    arch->norm_topk_prob = arch->use_expert_bias = true;
    out->expert_ffn_key = "moe_intermediate_size";
    HR_PASS(need_u32(in, "num_experts", NULL, 1, HR_EXPERTS_MAX, &arch->n_experts));
    HR_PASS(need_u32(in, "num_experts_per_tok", NULL, 1, HR_EXPERTS_MAX, &arch->n_experts_used));
    HR_PASS(need_u32(in, "moe_intermediate_size", NULL, 1, HR_WIDTH_MAX, &arch->expert_ffn_dim));
    HR_PASS(need_u32(in, "num_dense_layers", NULL, 0, HR_LAYERS_MAX, &arch->n_dense_layers));
    HR_PASS(read_bool(in, "norm_topk_prob", &arch->norm_topk_prob));
    HR_PASS(read_bool(in, "use_expert_bias", &arch->use_expert_bias));
    if (scaling)
        HR_PASS(check_real(in, "routed_scaling_factor", scaling, 1e-6, 1e6, &number));
    arch->routed_scaling_factor = (float)number;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- numbers of the computation */

static headrace_status read_rope(const fields *in, hr_arch *arch)
{
    const json_t *parameters = find(in, "rope_parameters"), *scaling = find(in, "rope_scaling");
    const json_t *theta = find(in, "rope_theta");
    double number = 0;

    if (!theta)
        theta = json_object_get(parameters, "rope_theta");
    if (!theta)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: field 'rope_theta' (or 'rope_parameters.rope_theta') is missing",
                       in->path);
    HR_PASS(check_real(in, "rope_theta", theta, 1.0, 1e12, &number));
    arch->rope_theta = (float)number;
    if (!scaling)
        scaling = parameters;
    if (scaling) {
        const json_t *type = json_object_get(scaling, "rope_type");

        if (!type)
            type = json_object_get(scaling, "type");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "default") != 0))
            return refuse(in, "rope_type", type, "\"default\": scaled positions are not supported");
        if (!type && scaling != parameters)
            return refuse(in, "rope_scaling", scaling, "none: scaled positions are not supported");
    }
    return HEADRACE_OK;
}

static headrace_status read_numbers(const fields *in, hr_config *out)
{
    const char *eps_key = find(in, "norm_eps") ? "norm_eps" : "block_norm_eps";
    double number = 0;

    if (!find(in, eps_key))
        return missing(in, "norm_eps");
    HR_PASS(check_real(in, eps_key, find(in, eps_key), 1e-12, 1.0, &number));
    out->arch.norm_eps = (float)number;
    HR_PASS(need_u32(in, "conv_L_cache", NULL, HR_CONV_LENGTH_MIN, HR_CONV_LENGTH_MAX, &out->arch.conv_length));
    HR_PASS(read_bool(in, "conv_bias", &out->conv_bias));
    HR_PASS(need_u32(in, "max_position_embeddings", NULL, 1, HR_POSITIONS_MAX, &out->arch.max_positions));
    out->is_tied = true;
    HR_PASS(read_bool(in, "tie_word_embeddings", &out->is_tied));
    HR_PASS(read_bool(in, "tie_embedding", &out->is_tied)); /* the second wins */
    return read_rope(in, &out->arch);
}

static headrace_status read_id(const fields *in, const char *name, const hr_arch *arch, int32_t *out)
{
    int64_t id = -1;

    if (find(in, name))
        HR_PASS(check_integer(in, name, find(in, name), 0, (int64_t)arch->vocab_size - 1, &id));
    *out = (int32_t)id;
    return HEADRACE_OK;
}

static headrace_status read_ids(const fields *in, hr_arch *arch)
{
    const json_t *eos = find(in, "eos_token_id");
    size_t n = json_is_array(eos) ? json_array_size(eos) : eos ? 1 : 0;

    HR_PASS(read_id(in, "bos_token_id", arch, &arch->bos_id));
    HR_PASS(read_id(in, "pad_token_id", arch, &arch->pad_id));
    for (size_t i = 0; i < n; i++) {
        int64_t id = 0;

        HR_PASS(check_integer(in, "eos_token_id", json_is_array(eos) ? json_array_get(eos, i) : eos, 0,
                              (int64_t)arch->vocab_size - 1, &id));
        HR_PASS(hr_arch_add_eos(arch, id, in->path, in->err));
    }
    return HEADRACE_OK;
}

static headrace_status read_all(const fields *in, hr_config *out)
{
    hr_arch *arch = &out->arch;

    HR_PASS(read_type(in, arch));
    HR_PASS(need_u32(in, "vocab_size", NULL, 1, HR_VOCAB_MAX, &arch->vocab_size));
    HR_PASS(need_u32(in, "hidden_size", NULL, 1, HR_HIDDEN_MAX, &arch->hidden_size));
    HR_PASS(need_u32(in, "num_hidden_layers", NULL, 1, HR_LAYERS_MAX, &arch->n_layers));
    HR_PASS(read_heads(in, arch));
    HR_PASS(read_layers(in, out));
    HR_PASS(read_experts(in, out));
    HR_PASS(read_ffn_width(in, out));
    HR_PASS(read_numbers(in, out));
    return read_ids(in, arch);
}

headrace_status hr_config_from_json(const char *text, size_t len, const char *path, hr_config *out, headrace_error *err)
{
    json_error_t where;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
    fields in = {.root = root, .path = path, .err = err};
    headrace_status status;

    *out = (hr_config){0};
    if (!root)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte %d: not valid JSON: %s", path, where.position, where.text);
    status =
        json_is_object(root) ? read_all(&in, out) : hr_fail(err, HEADRACE_E_MODEL, "%s: expected a JSON object", path);
    json_decref(root);
    return status;
}
