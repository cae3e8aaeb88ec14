/* See random_model.h. The forward pass keeps the whole history of every layer and never looks at a state or a page:
 * what it says about chunks and windows is independent of how the backend remembers them.
 */
#include "csrc/backend/random_model.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "format/quantize.h"

#include <math.h>
#include <string.h>

typedef struct maker {
    hr_model *model;
    const random_model_options *options;
    uint64_t next, n_matrices;
} maker;

random_model_options random_model_defaults(void)
{
    return (random_model_options){.pattern = "ccacac",
                                  .hidden_size = 48,
                                  .n_heads = 4,
                                  .n_kv_heads = 2,
                                  .head_dim = 16,
                                  .ffn_dim = 80,
                                  .conv_length = 3,
                                  .vocab_size = 96,
                                  .norm_topk_prob = true,
                                  .routed_scaling_factor = 1.0f,
                                  .dtype = HR_BF16,
                                  .seed = 1};
}

/* Uniform in (-scale, scale) around a centre. */
static float draw(maker *m, float centre, float scale)
{
    return centre + scale * (float)(2.0 * hr_rng_unit(hr_rng_at(m->options->seed, m->next++)) - 1.0);
}

static const float *vector(maker *m, size_t n, float centre, float scale)
{
    float *values = hr_arena_calloc(&m->model->arena, n, sizeof *values);

    HR_ASSERT(values);
    for (size_t i = 0; i < n; i++)
        values[i] = draw(m, centre, scale);
    return values;
}

static void quantise(maker *m, const hr_matrix *w, float scale, unsigned char *to)
{
    float *row = calloc(w->cols, sizeof *row);

    HR_ASSERT(row);
    for (uint32_t o = 0; o < w->rows; o++) {
        for (uint32_t c = 0; c < w->cols; c++)
            row[c] = draw(m, 0, scale);
        HR_ASSERT(hr_quantize_row(w->dtype, row, NULL, w->cols, to + o * w->row_bytes) == w->cols);
    }
    free(row);
}

static hr_matrix matrix(maker *m, uint32_t rows, uint32_t cols, float gain)
{
    hr_matrix out = {.dtype = m->options->dtype, .rows = rows, .cols = cols};
    float scale = gain * sqrtf(3.0f / (float)cols);
    size_t n = (size_t)rows * cols;
    void *data;

    if (m->options->is_mixed && m->n_matrices++ % 3 == 2)
        out.dtype = HR_BF16;
    out.row_bytes = hr_dtype_row_bytes(out.dtype, cols);
    data = hr_arena_calloc(&m->model->arena, rows, out.row_bytes);
    HR_ASSERT(data);
    out.data = data;
    if (out.dtype != HR_F32 && out.dtype != HR_BF16) {
        quantise(m, &out, scale, data);
        return out;
    }
    for (size_t i = 0; i < n; i++) {
        float value = draw(m, 0, scale);

        if (out.dtype == HR_F32)
            ((float *)data)[i] = value;
        else
            ((uint16_t *)data)[i] = hr_f32_to_bf16(value);
    }
    return out;
}

static hr_ffn_weights feed_forward(maker *m, uint32_t width)
{
    uint32_t H = m->options->hidden_size;

    return (hr_ffn_weights){
        .gate = matrix(m, width, H, 1.5f), .up = matrix(m, width, H, 1), .down = matrix(m, H, width, 1)};
}

static void make_operator(maker *m, hr_layer *layer, bool is_conv)
{
    const random_model_options *o = m->options;
    uint32_t H = o->hidden_size;

    if (is_conv) {
        layer->operator= HR_OPERATOR_CONV;
        layer->state_index = m->model->arch.n_conv_layers++;
        layer->conv = (hr_conv_weights){.in_proj = matrix(m, 3 * H, H, 1),
                                        .taps = vector(m, (size_t)H * o->conv_length, 0, 1),
                                        .out_proj = matrix(m, H, H, 1)};
        if (o->conv_bias) {
            layer->conv.in_bias = vector(m, (size_t)3 * H, 0, 0.3f);
            layer->conv.conv_bias = vector(m, H, 0, 0.3f);
            layer->conv.out_bias = vector(m, H, 0, 0.3f);
        }
        return;
    }
    layer->operator= HR_OPERATOR_ATTENTION;
    layer->state_index = m->model->arch.n_attention_layers++;
    layer->attention = (hr_attention_weights){.q = matrix(m, o->n_heads * o->head_dim, H, 1),
                                              .k = matrix(m, o->n_kv_heads * o->head_dim, H, 1),
                                              .v = matrix(m, o->n_kv_heads * o->head_dim, H, 1),
                                              .out = matrix(m, H, o->n_heads * o->head_dim, 1),
                                              .q_norm = vector(m, o->head_dim, 1, 0.4f),
                                              .k_norm = vector(m, o->head_dim, 1, 0.4f)};
}

static void make_layer(maker *m, hr_layer *layer, uint32_t index)
{
    const random_model_options *o = m->options;

    layer->operator_norm = vector(m, o->hidden_size, 1, 0.3f);
    layer->ffn_norm = vector(m, o->hidden_size, 1, 0.3f);
    make_operator(m, layer, o->pattern[index] == 'c');
    layer->is_moe = o->n_experts > 0 && index >= o->n_dense_layers;
    if (!layer->is_moe) {
        layer->dense = feed_forward(m, o->ffn_dim);
        return;
    }
    hr_ffn_weights *experts = hr_arena_calloc(&m->model->arena, o->n_experts, sizeof *experts);

    HR_ASSERT(experts);
    for (uint32_t e = 0; e < o->n_experts; e++)
        experts[e] = feed_forward(m, o->expert_ffn_dim);
    layer->experts = experts;
    layer->router = matrix(m, o->n_experts, o->hidden_size, 1);
    layer->expert_bias = o->use_expert_bias ? vector(m, o->n_experts, 0, 0.2f) : NULL;
}

hr_model *random_model_create(const random_model_options *o)
{
    hr_model *model = calloc(1, sizeof *model);
    maker m = {.model = model, .options = o};

    HR_ASSERT(model);
    model->arch = (hr_arch){.n_layers = (uint32_t)strlen(o->pattern),
                            .hidden_size = o->hidden_size,
                            .n_heads = o->n_heads,
                            .n_kv_heads = o->n_kv_heads,
                            .head_dim = o->head_dim,
                            .ffn_dim = o->ffn_dim,
                            .n_experts = o->n_experts,
                            .n_experts_used = o->n_experts_used,
                            .expert_ffn_dim = o->expert_ffn_dim,
                            .n_dense_layers = o->n_dense_layers,
                            .conv_length = o->conv_length,
                            .vocab_size = o->vocab_size,
                            .max_positions = 4096,
                            .norm_eps = 1e-5f,
                            .rope_theta = 1e6f,
                            .routed_scaling_factor = o->routed_scaling_factor,
                            .norm_topk_prob = o->norm_topk_prob,
                            .use_expert_bias = o->use_expert_bias,
                            .bos_id = -1,
                            .pad_id = -1};
    model->layers = hr_arena_calloc(&model->arena, model->arch.n_layers, sizeof *model->layers);
    HR_ASSERT(model->layers);
    model->embedding = matrix(&m, o->vocab_size, o->hidden_size, sqrtf((float)o->hidden_size) * 0.5f);
    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        make_layer(&m, &model->layers[i], i);
    model->final_norm = vector(&m, o->hidden_size, 1, 0.3f);
    model->is_tied = !o->is_untied;
    model->head = o->is_untied ? matrix(&m, o->vocab_size, o->hidden_size, 1) : model->embedding;
    return model;
}

void random_model_destroy(hr_model *model)
{
    hr_arena_deinit(&model->arena);
    free(model);
}

/* ---------------------------------------------------------------- the slow forward pass */

static double *zeros(size_t n)
{
    double *values = calloc(n > 0 ? n : 1, sizeof *values);

    HR_ASSERT(values);
    return values;
}

static double weight_at(const hr_matrix *w, size_t row, size_t col)
{
    size_t i = row * w->cols + col;

    return w->dtype == HR_F32 ? (double)((const float *)w->data)[i]
                              : (double)hr_bf16_to_f32(((const uint16_t *)w->data)[i]);
}

static void slow_linear(const hr_matrix *w, const double *x, const float *bias, double *y)
{
    for (uint32_t o = 0; o < w->rows; o++) {
        y[o] = bias ? (double)bias[o] : 0;
        for (uint32_t c = 0; c < w->cols; c++)
            y[o] += weight_at(w, o, c) * x[c];
    }
}

static void slow_norm(const double *x, const float *w, uint32_t n, double *y)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        y[i] = (double)w[i] * x[i] / sqrt(sum / n + 1e-5);
}

static void slow_conv(const hr_model *model, const hr_layer *layer, const double *norm, uint32_t n, double *out)
{
    int H = (int)model->arch.hidden_size, L = (int)model->arch.conv_length;
    double *bcx = zeros((size_t)n * 3 * H), *y = zeros(H);

    for (int t = 0; t < (int)n; t++)
        slow_linear(&layer->conv.in_proj, norm + t * H, layer->conv.in_bias, bcx + t * 3 * H);
    for (int t = 0; t < (int)n; t++) {
        for (int h = 0; h < H; h++) {
            double sum = layer->conv.conv_bias ? (double)layer->conv.conv_bias[h] : 0;

            for (int j = 0; j < L; j++) {
                int past = t - (L - 1) + j;

                if (past >= 0)
                    sum += (double)layer->conv.taps[h * L + j] * bcx[past * 3 * H + h] * bcx[past * 3 * H + 2 * H + h];
            }
            y[h] = bcx[t * 3 * H + H + h] * sum;
        }
        slow_linear(&layer->conv.out_proj, y, layer->conv.out_bias, out + t * H);
    }
    free(bcx);
    free(y);
}

/* Norm and rotary turn of one head at position t. */
static void slow_turn(const hr_model *model, const float *w, int t, double *x)
{
    int half = (int)model->arch.head_dim / 2;
    double norm[512] = {0};

    HR_ASSERT(half <= 256);
    slow_norm(x, w, (uint32_t)half * 2, norm);
    for (int j = 0; j < half; j++) {
        double angle = t * pow((double)model->arch.rope_theta, -(double)j / half);

        x[j] = norm[j] * cos(angle) - norm[j + half] * sin(angle);
        x[j + half] = norm[j + half] * cos(angle) + norm[j] * sin(angle);
    }
}

/* One query head of one row over keys and values [t + 1, Nkv, D] of its group. */
static void slow_head(const double *q, const double *k, const double *v, int t, int stride, int D, double *out)
{
    double *p = zeros((size_t)t + 1), sum = 0;

    for (int i = 0; i <= t; i++) {
        double s = 0;

        for (int d = 0; d < D; d++)
            s += q[d] * k[i * stride + d];
        p[i] = exp(s / sqrt(D));
        sum += p[i];
    }
    for (int d = 0; d < D; d++) {
        out[d] = 0;
        for (int i = 0; i <= t; i++)
            out[d] += p[i] / sum * v[i * stride + d];
    }
    free(p);
}

static void slow_attention(const hr_model *model, const hr_layer *layer, const double *norm, uint32_t n, double *out)
{
    const hr_attention_weights *w = &layer->attention;
    int H = (int)model->arch.hidden_size, D = (int)model->arch.head_dim, Nq = (int)model->arch.n_heads;
    int Nkv = (int)model->arch.n_kv_heads;
    double *q = zeros((size_t)n * Nq * D), *k = zeros((size_t)n * Nkv * D), *v = zeros((size_t)n * Nkv * D);
    double *mixed = zeros((size_t)Nq * D);
    int group = Nkv > 0 ? Nq / Nkv : 0;

    HR_ASSERT(group > 0);
    for (int t = 0; t < (int)n; t++) {
        slow_linear(&w->q, norm + t * H, NULL, q + t * Nq * D);
        slow_linear(&w->k, norm + t * H, NULL, k + t * Nkv * D);
        slow_linear(&w->v, norm + t * H, NULL, v + t * Nkv * D);
        for (int a = 0; a < Nq; a++)
            slow_turn(model, w->q_norm, t, q + (t * Nq + a) * D);
        for (int b = 0; b < Nkv; b++)
            slow_turn(model, w->k_norm, t, k + (t * Nkv + b) * D);
        for (int a = 0; a < Nq; a++) {
            int b = a / group;

            slow_head(q + (t * Nq + a) * D, k + b * D, v + b * D, t, Nkv * D, D, mixed + a * D);
        }
        slow_linear(&w->out, mixed, NULL, out + t * H);
    }
    free(q);
    free(k);
    free(v);
    free(mixed);
}

/* out += scale * ffn(x) */
static void slow_ffn(const hr_ffn_weights *w, const double *x, double scale, double *out)
{
    double *gate = zeros(w->gate.rows), *up = zeros(w->up.rows), *down = zeros(w->down.rows);

    slow_linear(&w->gate, x, NULL, gate);
    slow_linear(&w->up, x, NULL, up);
    for (uint32_t i = 0; i < w->gate.rows; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    slow_linear(&w->down, gate, NULL, down);
    for (uint32_t i = 0; i < w->down.rows; i++)
        out[i] += scale * down[i];
    free(gate);
    free(up);
    free(down);
}

static void slow_moe(const hr_model *model, const hr_layer *layer, const double *x, double *out)
{
    const hr_arch *arch = &model->arch;
    double *p = zeros(arch->n_experts), sum = 0;
    bool *is_chosen = calloc(arch->n_experts, sizeof *is_chosen);

    HR_ASSERT(is_chosen);
    slow_linear(&layer->router, x, NULL, p);
    for (uint32_t e = 0; e < arch->n_experts; e++)
        p[e] = 1 / (1 + exp(-p[e]));
    for (uint32_t e = 0; e < arch->n_experts; e++) { /* chosen: fewer than K experts are better */
        uint32_t n_better = 0;

        for (uint32_t f = 0; f < arch->n_experts; f++) {
            double mine = p[e] + (layer->expert_bias ? (double)layer->expert_bias[e] : 0);
            double other = p[f] + (layer->expert_bias ? (double)layer->expert_bias[f] : 0);

            n_better += other > mine || (other == mine && f < e);
        }
        is_chosen[e] = n_better < arch->n_experts_used;
        sum += is_chosen[e] ? p[e] : 0;
    }
    for (uint32_t e = 0; e < arch->n_experts; e++) {
        double weight = arch->norm_topk_prob ? p[e] / (sum + 1e-6) : p[e];

        if (is_chosen[e])
            slow_ffn(&layer->experts[e], x, weight * (double)arch->routed_scaling_factor, out);
    }
    free(p);
    free(is_chosen);
}

void slow_forward(const hr_model *model, const int32_t *ids, uint32_t n, double *logits)
{
    size_t H = model->arch.hidden_size;
    double *x = zeros(n * H), *norm = zeros(n * H), *out = zeros(n * H);

    for (size_t t = 0; t < n; t++) {
        for (size_t h = 0; h < H; h++)
            x[t * H + h] = weight_at(&model->embedding, (size_t)ids[t], h);
    }
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        const hr_layer *layer = &model->layers[i];

        for (size_t t = 0; t < n; t++)
            slow_norm(x + t * H, layer->operator_norm, (uint32_t)H, norm + t * H);
        if (layer->conv.taps)
            slow_conv(model, layer, norm, n, out);
        else
            slow_attention(model, layer, norm, n, out);
        for (size_t j = 0; j < n * H; j++)
            x[j] += out[j];
        for (size_t t = 0; t < n; t++) {
            slow_norm(x + t * H, layer->ffn_norm, (uint32_t)H, norm + t * H);
            if (layer->is_moe)
                slow_moe(model, layer, norm + t * H, x + t * H);
            else
                slow_ffn(&layer->dense, norm + t * H, 1, x + t * H);
        }
    }
    for (size_t t = 0; t < n; t++) {
        slow_norm(x + t * H, model->final_norm, (uint32_t)H, norm + t * H);
        slow_linear(&model->head, norm + t * H, NULL, logits + t * model->arch.vocab_size);
    }
    free(x);
    free(norm);
    free(out);
}
