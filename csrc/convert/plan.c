/* See plan.h. */
#include "convert/plan.h"

#include <string.h>
#include <strings.h>

/* ---------------------------------------------------------------- the mixes */

static const hr_mix mixes[] = {
    {"F32", HR_F32, 0, false},     {"F16", HR_F16, 1, false},    {"BF16", HR_BF16, 32, false},
    {"Q8_0", HR_Q8_0, 7, false},   {"Q6_K", HR_Q6_K, 18, false}, {"Q5_K_M", HR_Q5_K, 17, true},
    {"Q4_K_M", HR_Q4_K, 15, true}, {"Q4_0", HR_Q4_0, 2, false},
};
const char hr_mix_names[] = "f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0";

const hr_mix *hr_mix_find(const char *name)
{
    static const char *const others[][2] = {{"Q4_K", "Q4_K_M"}, {"Q5_K", "Q5_K_M"}};

    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcasecmp(name, others[i][0]) == 0)
            name = others[i][1];
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        if (strcasecmp(name, mixes[i].name) == 0)
            return &mixes[i];
    return NULL;
}

/* The first and last eighth of n, and every third between them. */
static bool gets_more_bits(uint32_t i, uint32_t n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static hr_dtype by_part(const hr_mix *mix, const hr_mix_question *q)
{
    switch (q->part) {
    case HR_PART_VECTOR:
    case HR_PART_ROUTER:
        return HR_F32;
    case HR_PART_HEAD:
        if (q->cols % hr_dtypes[mix->dtype].block_values != 0 || mix->dtype == HR_Q8_0)
            return HR_Q8_0;
        return HR_Q6_K;
    case HR_PART_ATTENTION_V:
        if (q->n_experts == 8) /* llama.cpp's exception for 8 experts: small matrices, worth more bits */
            return HR_Q8_0;
        return mix->more_bits && gets_more_bits(q->i_attention, q->n_attention) ? HR_Q6_K : mix->dtype;
    case HR_PART_ATTENTION_K:
        return q->n_experts == 8 ? HR_Q8_0 : mix->dtype;
    case HR_PART_ATTENTION_OUT:
        return q->n_experts == 8 && mix->dtype == HR_Q4_K ? HR_Q5_K : mix->dtype;
    case HR_PART_FFN_DOWN:
        if (mix->more_bits && gets_more_bits(q->layer, q->n_layers))
            return HR_Q6_K;
        /* With importance, minima for the first layers, whose inputs have the largest outliers. */
        return mix->dtype == HR_Q4_0 && q->has_importance && q->layer < q->n_layers / 8 ? HR_Q4_1 : mix->dtype;
    case HR_PART_EMBEDDING:
    case HR_PART_OTHER:
        break;
    }
    return mix->dtype;
}

hr_dtype hr_mix_choose(const hr_mix *mix, const hr_mix_question *q)
{
    bool is_plain = q->part == HR_PART_VECTOR || q->part == HR_PART_ROUTER;
    hr_dtype dtype = by_part(mix, q);

    if (is_plain)
        return HR_F32;
    if (hr_dtypes[mix->dtype].block_values == 1)
        return mix->dtype;
    if (q->cols % hr_dtypes[dtype].block_values == 0)
        return dtype;
    /* A width that is no whole number of blocks: the nearest type with blocks of 32, then F16. */
    dtype = dtype == HR_Q4_K ? HR_Q5_0 : dtype == HR_Q5_K ? HR_Q5_1 : HR_Q8_0;
    return q->cols % hr_dtypes[dtype].block_values == 0 ? dtype : HR_F16;
}

/* ---------------------------------------------------------------- the tensors */

typedef struct planner {
    const hr_model *model;
    const hr_mix *mix;
    bool has_importance;
    hr_plan *plan;
    uint32_t capacity;
    uint32_t layer, n_attention_seen;
} planner;

/* A tensor more; its name is blk.LAYER.SUFFIX, or SUFFIX outside the layers. NULL without memory. */
static hr_plan_tensor *add(planner *p, int32_t layer, const char *suffix, hr_part part)
{
    hr_plan *plan = p->plan;
    hr_plan_tensor *tensor;

    if (plan->n_tensors == p->capacity)
        return NULL;
    tensor = &plan->tensors[plan->n_tensors++];
    *tensor = (hr_plan_tensor){.layer = layer, .part = part};
    if (layer < 0)
        (void)snprintf(tensor->name, sizeof tensor->name, "%s", suffix);
    else
        (void)snprintf(tensor->name, sizeof tensor->name, "blk.%d.%s", layer, suffix);
    return tensor;
}

/* [rows, cols], or [rows] with cols 0. */
static bool add_vector(planner *p, int32_t layer, const char *suffix, const float *values, uint32_t rows, uint32_t cols)
{
    hr_plan_tensor *tensor = add(p, layer, suffix, HR_PART_VECTOR);

    if (!tensor)
        return false;
    tensor->values = values;
    tensor->n_slabs = 1;
    tensor->rank = cols ? 2 : 1;
    tensor->shape[0] = rows;
    tensor->shape[1] = cols;
    tensor->rows = cols ? rows : 1;
    tensor->cols = cols ? cols : rows;
    tensor->target = HR_F32;
    p->plan->n_parameters += (uint64_t)tensor->rows * tensor->cols;
    p->plan->n_shared += (uint64_t)tensor->rows * tensor->cols;
    return true;
}

/* n_slabs 0: a plain matrix. */
static bool add_slabs(planner *p, int32_t layer, const char *suffix, hr_part part, const hr_matrix *first,
                      uint32_t n_slabs, size_t stride)
{
    const hr_arch *arch = &p->model->arch;
    hr_plan_tensor *tensor = add(p, layer, suffix, part);
    hr_mix_question question = {.part = part,
                                .cols = first->cols,
                                .layer = layer < 0 ? 0 : (uint32_t)layer,
                                .n_layers = arch->n_layers,
                                .i_attention = p->n_attention_seen,
                                .n_attention = arch->n_attention_layers,
                                .n_experts = arch->n_experts,
                                .has_importance = p->has_importance};

    if (!tensor)
        return false;
    tensor->first = first;
    tensor->stride = stride;
    tensor->n_slabs = n_slabs ? n_slabs : 1;
    tensor->rows = first->rows;
    tensor->cols = first->cols;
    if (n_slabs)
        tensor->shape[tensor->rank++] = n_slabs;
    tensor->shape[tensor->rank++] = first->rows;
    tensor->shape[tensor->rank++] = first->cols;
    tensor->target = hr_mix_choose(p->mix, &question);
    p->plan->n_parameters += (uint64_t)tensor->n_slabs * first->rows * first->cols;
    p->plan->n_shared += (uint64_t)first->rows * first->cols;
    return true;
}

static bool add_matrix(planner *p, int32_t layer, const char *suffix, hr_part part, const hr_matrix *matrix)
{
    return add_slabs(p, layer, suffix, part, matrix, 0, 0);
}

static bool add_operator(planner *p, int32_t i, const hr_layer *layer)
{
    const hr_arch *arch = &p->model->arch;

    if (layer->operator== HR_OPERATOR_CONV)
        return add_vector(p, i, "shortconv.conv.weight", layer->conv.taps, arch->hidden_size, arch->conv_length) &&
               add_matrix(p, i, "shortconv.in_proj.weight", HR_PART_OTHER, &layer->conv.in_proj) &&
               add_matrix(p, i, "shortconv.out_proj.weight", HR_PART_OTHER, &layer->conv.out_proj);
    if (!add_matrix(p, i, "attn_q.weight", HR_PART_OTHER, &layer->attention.q) ||
        !add_matrix(p, i, "attn_k.weight", HR_PART_ATTENTION_K, &layer->attention.k) ||
        !add_matrix(p, i, "attn_v.weight", HR_PART_ATTENTION_V, &layer->attention.v) ||
        !add_matrix(p, i, "attn_output.weight", HR_PART_ATTENTION_OUT, &layer->attention.out))
        return false;
    p->n_attention_seen++;
    return add_vector(p, i, "attn_q_norm.weight", layer->attention.q_norm, arch->head_dim, 0) &&
           add_vector(p, i, "attn_k_norm.weight", layer->attention.k_norm, arch->head_dim, 0);
}

static bool add_ffn(planner *p, int32_t i, const hr_layer *layer)
{
    uint32_t n = p->model->arch.n_experts;
    size_t stride = sizeof *layer->experts;

    if (!layer->is_moe)
        return add_matrix(p, i, "ffn_gate.weight", HR_PART_OTHER, &layer->dense.gate) &&
               add_matrix(p, i, "ffn_up.weight", HR_PART_OTHER, &layer->dense.up) &&
               add_matrix(p, i, "ffn_down.weight", HR_PART_FFN_DOWN, &layer->dense.down);
    return add_matrix(p, i, "ffn_gate_inp.weight", HR_PART_ROUTER, &layer->router) &&
           add_vector(p, i, "exp_probs_b.bias", layer->expert_bias, n, 0) &&
           add_slabs(p, i, "ffn_gate_exps.weight", HR_PART_OTHER, &layer->experts->gate, n, stride) &&
           add_slabs(p, i, "ffn_up_exps.weight", HR_PART_OTHER, &layer->experts->up, n, stride) &&
           add_slabs(p, i, "ffn_down_exps.weight", HR_PART_FFN_DOWN, &layer->experts->down, n, stride);
}

static bool add_all(planner *p)
{
    const hr_model *model = p->model;
    uint32_t h = model->arch.hidden_size;

    if (!add_matrix(p, -1, "token_embd.weight", model->is_tied ? HR_PART_HEAD : HR_PART_EMBEDDING, &model->embedding) ||
        !add_vector(p, -1, "token_embd_norm.weight", model->final_norm, h, 0) ||
        (!model->is_tied && !add_matrix(p, -1, "output.weight", HR_PART_HEAD, &model->head)))
        return false;
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        const hr_layer *layer = &model->layers[i];

        if (!add_vector(p, (int32_t)i, "attn_norm.weight", layer->operator_norm, h, 0) ||
            !add_vector(p, (int32_t)i, "ffn_norm.weight", layer->ffn_norm, h, 0) ||
            !add_operator(p, (int32_t)i, layer) || !add_ffn(p, (int32_t)i, layer))
            return false;
    }
    return true;
}

/* ---------------------------------------------------------------- what GGUF cannot say */

static headrace_status check_expressible(const hr_model *model, headrace_error *err)
{
    const hr_arch *arch = &model->arch;

    for (uint32_t i = 0; i < arch->n_layers; i++)
        if (model->layers[i].operator== HR_OPERATOR_CONV && model->layers[i].conv.in_bias)
            return hr_fail(
                err, HEADRACE_E_UNSUPPORTED,
                "%s: layer %u: its convolution has biases (conv_bias), which GGUF files of this architecture "
                "do not hold",
                model->path, i);
    if (arch->n_experts == 0)
        return HEADRACE_OK;
    if (!arch->norm_topk_prob || !arch->use_expert_bias || arch->routed_scaling_factor != 1.0f)
        return hr_fail(
            err, HEADRACE_E_UNSUPPORTED,
            "%s: norm_topk_prob %s, use_expert_bias %s, routed_scaling_factor %g: GGUF has no keys for them, "
            "readers take true, true and 1",
            model->path, arch->norm_topk_prob ? "true" : "false", arch->use_expert_bias ? "true" : "false",
            (double)arch->routed_scaling_factor);
    return HEADRACE_OK;
}

static int by_place(const void *a, const void *b)
{
    const hr_plan_tensor *left = a, *right = b;

    return left->layer != right->layer ? left->layer - right->layer : strcmp(left->name, right->name);
}

headrace_status hr_plan_make(const hr_model *model, const hr_mix *mix, bool has_importance, hr_plan *out,
                             headrace_error *err)
{
    enum { OUTSIDE = 3, IN_A_LAYER = 13 };
    planner p = {.model = model, .mix = mix, .has_importance = has_importance, .plan = out};

    *out = (hr_plan){0};
    HR_PASS(check_expressible(model, err));
    p.capacity = OUTSIDE + IN_A_LAYER * model->arch.n_layers;
    out->tensors = calloc(p.capacity, sizeof *out->tensors);
    if (!out->tensors)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u tensors", p.capacity);
    HR_ASSERT(add_all(&p));
    for (uint32_t i = 0; i < out->n_tensors; i++) {
        const hr_plan_tensor *tensor = &out->tensors[i];

        out->n_bytes += (uint64_t)tensor->n_slabs * tensor->rows * hr_dtype_row_bytes(tensor->target, tensor->cols);
    }
    qsort(out->tensors, out->n_tensors, sizeof *out->tensors, by_place);
    return HEADRACE_OK;
}

void hr_plan_free(hr_plan *plan)
{
    free(plan->tensors);
    *plan = (hr_plan){0};
}
