/* Checks and arithmetic that do not depend on where a configuration was read. See config.h. */
#include "model/config.h"

#include <math.h>
#include <string.h>

enum { ID_IM_END = 7, ID_END_OF_TEXT = 2 };

bool hr_ffn_width(uint64_t configured, bool auto_adjust, double multiplier, uint64_t multiple_of, uint32_t *out)
{
    double width = (double)configured;

    if (auto_adjust) {
        /* Two thirds, because a gated feed-forward has three matrices where a plain one has two. */
        width = trunc(trunc(2.0 * width / 3.0) * multiplier);
        width = ceil(width / (double)multiple_of) * (double)multiple_of;
    }
    if (!(width >= 1 && width <= HR_WIDTH_MAX))
        return false;
    *out = (uint32_t)width;
    return true;
}

headrace_status hr_arch_add_eos(hr_arch *arch, int64_t id, const char *path, headrace_error *err)
{
    if (id < 0 || id >= arch->vocab_size)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: end-of-sequence id %lld lies outside the vocabulary of %u", path,
                       (long long)id, arch->vocab_size);
    for (uint32_t i = 0; i < arch->n_eos_ids; i++)
        if (arch->eos_ids[i] == id)
            return HEADRACE_OK;
    if (arch->n_eos_ids == HR_EOS_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: more than %d end-of-sequence ids", path, HR_EOS_MAX);
    arch->eos_ids[arch->n_eos_ids++] = (int32_t)id;
    return HEADRACE_OK;
}

static headrace_status check_heads(const hr_arch *arch, const char *path, headrace_error *err)
{
    if (arch->n_heads % arch->n_kv_heads != 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %u query heads are no multiple of %u key-value heads", path,
                       arch->n_heads, arch->n_kv_heads);
    if (arch->head_dim % 2 != 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: a head size of %u is odd; rotary positions need pairs", path,
                       arch->head_dim);
    return HEADRACE_OK;
}

static headrace_status check_experts(const hr_arch *arch, const char *path, headrace_error *err)
{
    if (arch->n_experts == 0)
        return HEADRACE_OK;
    if (arch->n_experts_used > arch->n_experts)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %u experts a token, but there are only %u", path,
                       arch->n_experts_used, arch->n_experts);
    if (arch->n_dense_layers > arch->n_layers)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %u leading dense layers, but there are only %u layers", path,
                       arch->n_dense_layers, arch->n_layers);
    return HEADRACE_OK;
}

headrace_status hr_config_finish(hr_config *config, const char *path, headrace_error *err)
{
    hr_arch *arch = &config->arch;

    arch->n_attention_layers = 0;
    for (uint32_t i = 0; i < arch->n_layers; i++)
        arch->n_attention_layers += config->operators[i] == HR_OPERATOR_ATTENTION;
    arch->n_conv_layers = arch->n_layers - arch->n_attention_layers;
    if (arch->n_attention_layers == 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: the layer list has no attention layer", path);
    HR_PASS(check_heads(arch, path, err));
    HR_PASS(check_experts(arch, path, err));
    /* Where <|im_end|> is 7, 2 is <|endoftext|>, which ends a text as well although the files do not say so. */
    for (uint32_t i = 0; i < arch->n_eos_ids; i++)
        if (arch->eos_ids[i] == ID_IM_END)
            return arch->n_eos_ids == HR_EOS_MAX ? HEADRACE_OK : hr_arch_add_eos(arch, ID_END_OF_TEXT, path, err);
    return HEADRACE_OK;
}

void hr_arch_count_parameters(const hr_arch *arch, bool is_tied, bool conv_bias, uint64_t *total, uint64_t *active)
{
    uint64_t h = arch->hidden_size, d = arch->head_dim, nq = arch->n_heads, nkv = arch->n_kv_heads;
    uint64_t attention = 2 * nq * d * h + 2 * nkv * d * h + 2 * d;
    uint64_t conv = 4 * h * h + h * arch->conv_length + (conv_bias ? 5 * h : 0);
    uint64_t n_moe = arch->n_experts ? arch->n_layers - arch->n_dense_layers : 0;
    uint64_t expert = 3 * h * arch->expert_ffn_dim;
    uint64_t router = h * arch->n_experts + (arch->use_expert_bias ? arch->n_experts : 0);

    *total = arch->vocab_size * h * (is_tied ? 1 : 2) + h;
    *total += arch->n_attention_layers * attention + arch->n_conv_layers * conv + arch->n_layers * 2 * h;
    *total += (arch->n_layers - n_moe) * 3 * h * arch->ffn_dim + n_moe * router;
    *active = *total + n_moe * arch->n_experts_used * expert;
    *total += n_moe * arch->n_experts * expert;
}
