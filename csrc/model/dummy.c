/* A model without weights: the shapes of a configuration, for measuring speed on sizes nobody has to download.
 *
 * Matrices have no bytes (data is NULL): a backend that can makes random ones where it computes, which for the largest
 * models is the difference between seconds and an hour. What they are like is fixed so that comparisons are fair, above
 * all that routing is even: norm gains 1, expert biases 0, matrices and taps of standard deviation 1/sqrt(inputs). (A
 * draw of one small range for everything sends every token to the same few experts, which then look fast.)
 */
#include "model/config.h"

#include "base/rng.h"

#include <math.h>

typedef struct maker {
    hr_model *model;
    uint64_t n_vectors;
    bool is_out_of_memory;
} maker;

static hr_matrix matrix(uint32_t rows, uint32_t cols)
{
    return (hr_matrix){.dtype = HR_BF16, .rows = rows, .cols = cols, .row_bytes = hr_dtype_row_bytes(HR_BF16, cols)};
}

static float *values(maker *m, size_t n)
{
    float *out = hr_arena_calloc(&m->model->arena, n, sizeof *out);

    m->n_vectors++;
    if (!out)
        m->is_out_of_memory = true;
    return out;
}

static const float *gains(maker *m, size_t n)
{
    float *out = values(m, n);

    for (size_t i = 0; out && i < n; i++)
        out[i] = 1.0f;
    return out;
}

/* Uniform of the standard deviation that n_inputs asks for. */
static const float *random_values(maker *m, size_t n, uint32_t n_inputs)
{
    float *out = values(m, n);

    for (size_t i = 0; out && i < n; i++)
        out[i] = (float)((hr_rng_unit(hr_rng_at(m->n_vectors, i)) - 0.5) * sqrt(12.0 / n_inputs));
    return out;
}

static hr_ffn_weights ffn(uint32_t hidden, uint32_t width)
{
    return (hr_ffn_weights){.gate = matrix(width, hidden), .up = matrix(width, hidden), .down = matrix(hidden, width)};
}

static void make_moe(maker *m, hr_layer *layer)
{
    const hr_arch *arch = &m->model->arch;
    hr_ffn_weights *experts = hr_arena_calloc(&m->model->arena, arch->n_experts, sizeof *experts);

    if (!experts) {
        m->is_out_of_memory = true;
        return;
    }
    for (uint32_t e = 0; e < arch->n_experts; e++)
        experts[e] = ffn(arch->hidden_size, arch->expert_ffn_dim);
    layer->experts = experts;
    layer->router = matrix(arch->n_experts, arch->hidden_size);
    layer->expert_bias = arch->use_expert_bias ? values(m, arch->n_experts) : NULL;
}

static void make_operator(maker *m, hr_layer *layer, const hr_config *config)
{
    const hr_arch *arch = &m->model->arch;
    uint32_t h = arch->hidden_size, d = arch->head_dim;

    if (layer->operator== HR_OPERATOR_CONV) {
        layer->conv = (hr_conv_weights){.in_proj = matrix(3 * h, h), .out_proj = matrix(h, h)};
        layer->conv.taps = random_values(m, (size_t)h * arch->conv_length, arch->conv_length);
        if (config->conv_bias) {
            layer->conv.in_bias = values(m, (size_t)3 * h);
            layer->conv.conv_bias = values(m, h);
            layer->conv.out_bias = values(m, h);
        }
        return;
    }
    layer->attention = (hr_attention_weights){.q = matrix(arch->n_heads * d, h),
                                              .k = matrix(arch->n_kv_heads * d, h),
                                              .v = matrix(arch->n_kv_heads * d, h),
                                              .out = matrix(h, arch->n_heads * d)};
    layer->attention.q_norm = gains(m, d);
    layer->attention.k_norm = gains(m, d);
}

headrace_status hr_model_make_dummy(hr_model *model, const hr_config *config, headrace_error *err)
{
    const hr_arch *arch = &model->arch;
    maker m = {.model = model};
    uint32_t n_attention = 0, n_conv = 0;

    model->layers = hr_arena_calloc(&model->arena, arch->n_layers, sizeof *model->layers);
    for (uint32_t i = 0; model->layers && i < arch->n_layers; i++) {
        hr_layer *layer = &model->layers[i];

        layer->operator= config->operators[i];
        layer->state_index = layer->operator== HR_OPERATOR_CONV ? n_conv++ : n_attention++;
        layer->is_moe = arch->n_experts > 0 && i >= arch->n_dense_layers;
        layer->operator_norm = gains(&m, arch->hidden_size);
        layer->ffn_norm = gains(&m, arch->hidden_size);
        make_operator(&m, layer, config);
        if (layer->is_moe)
            make_moe(&m, layer);
        else
            layer->dense = ffn(arch->hidden_size, arch->ffn_dim);
    }
    model->embedding = matrix(arch->vocab_size, arch->hidden_size);
    model->is_tied = config->is_tied;
    model->head = model->embedding;
    model->final_norm = gains(&m, arch->hidden_size);
    model->is_dummy = true;
    if (!model->layers || m.is_out_of_memory)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the tables of %u layers", arch->n_layers);
    return HEADRACE_OK;
}
