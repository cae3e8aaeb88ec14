/* Names to roles: which tensor of the file is which matrix of the network.
 *
 * One table holds both spellings. Every shape is compared with the configuration; the two feed-forward widths are the
 * exception: they follow the tensors, because widely used files state another number (docs/formats.md), and a warning
 * tells it.
 *
 * A missing tensor is refused. A surplus one inside a layer is refused as well: it means that the network of this file
 * computes something that ours does not (a bias, a scale, more layers than stated). Surplus ones elsewhere (a vision
 * tower, say) do not touch the text model and are only reported.
 */
#include "model/config.h"

#include "base/log.h"

#include <math.h>
#include <string.h>

typedef enum role {
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    OPERATOR_NORM, /* the first role of a layer */
    FFN_NORM,
    CONV_IN,
    CONV_TAPS,
    CONV_OUT,
    CONV_IN_BIAS,
    CONV_BIAS,
    CONV_OUT_BIAS,
    ATTENTION_Q,
    ATTENTION_K,
    ATTENTION_V,
    ATTENTION_OUT,
    Q_NORM,
    K_NORM,
    FFN_GATE,
    FFN_UP,
    FFN_DOWN,
    ROUTER,
    EXPERT_BIAS,
    STACKED_GATE, /* all experts of a layer in one tensor */
    STACKED_UP,
    STACKED_DOWN,
    STACKED_GATE_UP,
    ROLE_COUNT
} role;

static const struct {
    const char *hf, *gguf; /* NULL: does not occur there */
} names[ROLE_COUNT] = {
    [EMBEDDING] = {"embed_tokens.weight", "token_embd.weight"},
    [FINAL_NORM] = {"embedding_norm.weight", "token_embd_norm.weight"},
    [HEAD] = {"lm_head.weight", "output.weight"},
    [OPERATOR_NORM] = {"operator_norm.weight", "attn_norm.weight"},
    [FFN_NORM] = {"ffn_norm.weight", "ffn_norm.weight"},
    [CONV_IN] = {"conv.in_proj.weight", "shortconv.in_proj.weight"},
    [CONV_TAPS] = {"conv.conv.weight", "shortconv.conv.weight"},
    [CONV_OUT] = {"conv.out_proj.weight", "shortconv.out_proj.weight"},
    [CONV_IN_BIAS] = {"conv.in_proj.bias", "shortconv.in_proj.bias"},
    [CONV_BIAS] = {"conv.conv.bias", "shortconv.conv.bias"},
    [CONV_OUT_BIAS] = {"conv.out_proj.bias", "shortconv.out_proj.bias"},
    [ATTENTION_Q] = {"self_attn.q_proj.weight", "attn_q.weight"},
    [ATTENTION_K] = {"self_attn.k_proj.weight", "attn_k.weight"},
    [ATTENTION_V] = {"self_attn.v_proj.weight", "attn_v.weight"},
    [ATTENTION_OUT] = {"self_attn.out_proj.weight", "attn_output.weight"},
    [Q_NORM] = {"self_attn.q_layernorm.weight", "attn_q_norm.weight"},
    [K_NORM] = {"self_attn.k_layernorm.weight", "attn_k_norm.weight"},
    [FFN_GATE] = {"feed_forward.w1.weight", "ffn_gate.weight"},
    [FFN_UP] = {"feed_forward.w3.weight", "ffn_up.weight"},
    [FFN_DOWN] = {"feed_forward.w2.weight", "ffn_down.weight"},
    [ROUTER] = {"feed_forward.gate.weight", "ffn_gate_inp.weight"},
    [EXPERT_BIAS] = {"feed_forward.expert_bias", "exp_probs_b.bias"},
    [STACKED_GATE] = {NULL, "ffn_gate_exps.weight"},
    [STACKED_UP] = {NULL, "ffn_up_exps.weight"},
    [STACKED_DOWN] = {"feed_forward.experts.down_proj", "ffn_down_exps.weight"},
    [STACKED_GATE_UP] = {"feed_forward.experts.gate_up_proj", NULL},
};

/* In front of "embed_tokens.weight" and "layers.": the plain text model, then wrappers around it. */
static const char *const prefixes[] = {"model.",         "", "lfm.", "model.language_model.", "language_model.model.",
                                       "language_model."};

typedef struct tensor_name {
    char text[HR_TENSOR_NAME_MAX];
} tensor_name;

typedef struct binder {
    hr_model *model;
    const hr_tensor_file *file;
    const hr_config *config;
    const char *prefix; /* "" for GGUF */
    bool *used;         /* [file->n_tensors] */
    bool *is_misplaced; /* set when an element lies at an odd address */
    bool may_copy;      /* second pass: copy those */
    headrace_error *err;
} binder;

/* ---------------------------------------------------------------- finding tensors */

static tensor_name name_of(const binder *in, uint32_t layer, role what)
{
    bool is_gguf = in->model->format == HR_MODEL_GGUF;
    const char *suffix = is_gguf ? names[what].gguf : names[what].hf;
    tensor_name out;

    if (!suffix)
        out.text[0] = '\0';
    else if (what < OPERATOR_NORM)
        (void)snprintf(out.text, sizeof out.text, "%s%s",
                       what == HEAD && !strstr(in->prefix, "language_") ? "" : in->prefix, suffix);
    else if (is_gguf)
        (void)snprintf(out.text, sizeof out.text, "blk.%u.%s", layer, suffix);
    else
        (void)snprintf(out.text, sizeof out.text, "%slayers.%u.%s", in->prefix, layer, suffix);
    return out;
}

static const hr_tensor *lookup(const binder *in, const char *name)
{
    const hr_tensor *tensor = hr_tensor_file_find(in->file, name);

    if (tensor)
        in->used[tensor - in->file->tensors] = true;
    return tensor;
}

static headrace_status need(const binder *in, uint32_t layer, role what, const hr_tensor **out)
{
    tensor_name name = name_of(in, layer, what);

    *out = lookup(in, name.text);
    return *out ? HEADRACE_OK
                : hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s' is missing", in->model->path, name.text);
}

/* ---------------------------------------------------------------- checking shapes */

typedef struct shape {
    uint32_t rank;
    uint64_t at[HR_RANK_MAX];
} shape;

typedef struct shape_text {
    char text[96];
} shape_text;

static shape_text show(const shape *dims)
{
    shape_text out = {"["};
    size_t used = 1;

    for (uint32_t i = 0; i < dims->rank; i++)
        used += (size_t)snprintf(out.text + used, sizeof out.text - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)dims->at[i]);
    (void)snprintf(out.text + used, sizeof out.text - used, "]");
    return out;
}

static shape shape_of(const hr_tensor *tensor)
{
    shape out = {.rank = tensor->rank};

    memcpy(out.at, tensor->shape, sizeof out.at);
    return out;
}

static headrace_status wrong_shape(const binder *in, const hr_tensor *tensor, const shape *expected)
{
    shape found = shape_of(tensor);

    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s' at byte %llu: expected shape %s, found %s",
                   in->file->paths[tensor->shard], tensor->name, (unsigned long long)tensor->file_offset,
                   show(expected).text, show(&found).text);
}

static headrace_status check_shape(const binder *in, const hr_tensor *tensor, shape expected)
{
    bool ok = tensor->rank == expected.rank;

    for (uint32_t i = 0; i < expected.rank && ok; i++)
        ok = tensor->shape[i] == expected.at[i];
    return ok ? HEADRACE_OK : wrong_shape(in, tensor, &expected);
}

/* ---------------------------------------------------------------- matrices and vectors */

/* rows x cols of a tensor, beginning at a row. Shapes were checked. Elements are used as they lie in the file; only a
 * file that places them at odd addresses (no current writer does) makes a copy necessary, and then only once all else
 * was found right. */
static headrace_status matrix_at(const binder *in, const hr_tensor *tensor, uint64_t first_row, uint32_t rows,
                                 uint32_t cols, hr_matrix *out)
{
    size_t row_bytes = hr_dtype_row_bytes(tensor->dtype, cols);
    size_t alignment = tensor->dtype == HR_F32 ? 4 : 2;
    const unsigned char *in_file = (const unsigned char *)tensor->data + first_row * row_bytes, *data = in_file;

    if ((uintptr_t)data % alignment != 0)
        *in->is_misplaced = true;
    if ((uintptr_t)data % alignment != 0 && in->may_copy) {
        void *copy = hr_arena_calloc(&in->model->arena, rows, row_bytes);

        if (!copy)
            return hr_fail(in->err, HEADRACE_E_MEMORY, "tensor '%s': no memory for an aligned copy", tensor->name);
        memcpy(copy, in_file, rows * row_bytes);
        data = copy;
    }
    *out = (hr_matrix){
        .data = data, .in_file = in_file, .dtype = tensor->dtype, .rows = rows, .cols = cols, .row_bytes = row_bytes};
    return HEADRACE_OK;
}

static headrace_status bind_matrix(const binder *in, uint32_t layer, role what, uint32_t rows, uint32_t cols,
                                   hr_matrix *out)
{
    const hr_tensor *tensor;

    HR_PASS(need(in, layer, what, &tensor));
    HR_PASS(check_shape(in, tensor, (shape){.rank = 2, .at = {rows, cols}}));
    return matrix_at(in, tensor, 0, rows, cols, out);
}

/* All n values of a tensor whose shape was checked, as fp32. */
static headrace_status read_vector(const binder *in, const hr_tensor *tensor, size_t n, const float **out)
{
    float *values = hr_arena_calloc(&in->model->arena, n, sizeof *values);

    if (!values)
        return hr_fail(in->err, HEADRACE_E_MEMORY, "tensor '%s': no memory for %zu values", tensor->name, n);
    if (tensor->dtype != HR_F32 && tensor->dtype != HR_F16 && tensor->dtype != HR_BF16)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s': type %s, expected F32, F16 or BF16",
                       in->file->paths[tensor->shard], tensor->name, hr_dtypes[tensor->dtype].name);
    hr_dequantize(tensor->dtype, tensor->data, values, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s', byte %llu: value %zu is not a finite number",
                           in->file->paths[tensor->shard], tensor->name,
                           (unsigned long long)(tensor->file_offset + hr_dtype_row_bytes(tensor->dtype, i)), i);
    *out = values;
    return HEADRACE_OK;
}

static headrace_status bind_vector(const binder *in, uint32_t layer, role what, uint32_t n, const float **out)
{
    const hr_tensor *tensor;

    HR_PASS(need(in, layer, what, &tensor));
    HR_PASS(check_shape(in, tensor, (shape){.rank = 1, .at = {n}}));
    return read_vector(in, tensor, n, out);
}

/* [H, 1, L] as Hugging Face stores it, or [H, L]. */
static headrace_status bind_taps(const binder *in, uint32_t layer, const float **out)
{
    uint32_t h = in->model->arch.hidden_size, l = in->model->arch.conv_length;
    const hr_tensor *tensor;
    shape plain = {.rank = 2, .at = {h, l}}, padded = {.rank = 3, .at = {h, 1, l}};

    HR_PASS(need(in, layer, CONV_TAPS, &tensor));
    HR_PASS(check_shape(in, tensor, tensor->rank == 2 ? plain : padded));
    return read_vector(in, tensor, (size_t)h * l, out);
}

/* ---------------------------------------------------------------- the parts of a layer */

static headrace_status bind_conv(const binder *in, uint32_t layer, hr_conv_weights *out)
{
    uint32_t h = in->model->arch.hidden_size;

    HR_PASS(bind_matrix(in, layer, CONV_IN, 3 * h, h, &out->in_proj));
    HR_PASS(bind_taps(in, layer, &out->taps));
    HR_PASS(bind_matrix(in, layer, CONV_OUT, h, h, &out->out_proj));
    if (!in->config->conv_bias)
        return HEADRACE_OK;
    HR_PASS(bind_vector(in, layer, CONV_IN_BIAS, 3 * h, &out->in_bias));
    HR_PASS(bind_vector(in, layer, CONV_BIAS, h, &out->conv_bias));
    return bind_vector(in, layer, CONV_OUT_BIAS, h, &out->out_bias);
}

static headrace_status bind_attention(const binder *in, uint32_t layer, hr_attention_weights *out)
{
    const hr_arch *arch = &in->model->arch;
    uint32_t h = arch->hidden_size, q = arch->n_heads * arch->head_dim, kv = arch->n_kv_heads * arch->head_dim;

    HR_PASS(bind_matrix(in, layer, ATTENTION_Q, q, h, &out->q));
    HR_PASS(bind_matrix(in, layer, ATTENTION_K, kv, h, &out->k));
    HR_PASS(bind_matrix(in, layer, ATTENTION_V, kv, h, &out->v));
    HR_PASS(bind_matrix(in, layer, ATTENTION_OUT, h, q, &out->out));
    HR_PASS(bind_vector(in, layer, Q_NORM, arch->head_dim, &out->q_norm));
    return bind_vector(in, layer, K_NORM, arch->head_dim, &out->k_norm);
}

static headrace_status bind_dense(const binder *in, uint32_t layer, hr_ffn_weights *out)
{
    uint32_t h = in->model->arch.hidden_size, f = in->model->arch.ffn_dim;

    HR_PASS(bind_matrix(in, layer, FFN_GATE, f, h, &out->gate));
    HR_PASS(bind_matrix(in, layer, FFN_UP, f, h, &out->up));
    return bind_matrix(in, layer, FFN_DOWN, h, f, &out->down);
}

/* One tensor an expert and role. */
static tensor_name expert_name(const binder *in, uint32_t layer, uint32_t expert, const char *matrix)
{
    tensor_name out;

    (void)snprintf(out.text, sizeof out.text, "%slayers.%u.feed_forward.experts.%u.%s.weight", in->prefix, layer,
                   expert, matrix);
    return out;
}

static headrace_status bind_expert_matrix(const binder *in, uint32_t layer, uint32_t expert, const char *matrix,
                                          uint32_t rows, uint32_t cols, hr_matrix *out)
{
    tensor_name name = expert_name(in, layer, expert, matrix);
    const hr_tensor *tensor = lookup(in, name.text);

    if (!tensor)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s' is missing", in->model->path, name.text);
    HR_PASS(check_shape(in, tensor, (shape){.rank = 2, .at = {rows, cols}}));
    return matrix_at(in, tensor, 0, rows, cols, out);
}

static headrace_status bind_separate_experts(const binder *in, uint32_t layer, hr_ffn_weights *out)
{
    const hr_arch *arch = &in->model->arch;

    for (uint32_t e = 0; e < arch->n_experts; e++) {
        HR_PASS(bind_expert_matrix(in, layer, e, "w1", arch->expert_ffn_dim, arch->hidden_size, &out[e].gate));
        HR_PASS(bind_expert_matrix(in, layer, e, "w3", arch->expert_ffn_dim, arch->hidden_size, &out[e].up));
        HR_PASS(bind_expert_matrix(in, layer, e, "w2", arch->hidden_size, arch->expert_ffn_dim, &out[e].down));
    }
    return HEADRACE_OK;
}

/* [E, 2M, H]: of each expert first the gate's rows, then the up rows; and [E, H, M]. */
static headrace_status bind_fused_experts(const binder *in, uint32_t layer, hr_ffn_weights *out)
{
    const hr_arch *arch = &in->model->arch;
    uint32_t h = arch->hidden_size, m = arch->expert_ffn_dim, n = arch->n_experts;
    const hr_tensor *gate_up, *down;

    HR_PASS(need(in, layer, STACKED_GATE_UP, &gate_up));
    HR_PASS(need(in, layer, STACKED_DOWN, &down));
    HR_PASS(check_shape(in, gate_up, (shape){.rank = 3, .at = {n, 2 * (uint64_t)m, h}}));
    HR_PASS(check_shape(in, down, (shape){.rank = 3, .at = {n, h, m}}));
    for (uint64_t e = 0; e < n; e++) {
        HR_PASS(matrix_at(in, gate_up, e * 2 * m, m, h, &out[e].gate));
        HR_PASS(matrix_at(in, gate_up, e * 2 * m + m, m, h, &out[e].up));
        HR_PASS(matrix_at(in, down, e * h, h, m, &out[e].down));
    }
    return HEADRACE_OK;
}

/* GGUF: three stacks, [E, M, H] twice and [E, H, M]. */
static headrace_status bind_stacked_experts(const binder *in, uint32_t layer, hr_ffn_weights *out)
{
    const hr_arch *arch = &in->model->arch;
    uint32_t h = arch->hidden_size, m = arch->expert_ffn_dim, n = arch->n_experts;
    const hr_tensor *gate, *up, *down;

    HR_PASS(need(in, layer, STACKED_GATE, &gate));
    HR_PASS(need(in, layer, STACKED_UP, &up));
    HR_PASS(need(in, layer, STACKED_DOWN, &down));
    HR_PASS(check_shape(in, gate, (shape){.rank = 3, .at = {n, m, h}}));
    HR_PASS(check_shape(in, up, (shape){.rank = 3, .at = {n, m, h}}));
    HR_PASS(check_shape(in, down, (shape){.rank = 3, .at = {n, h, m}}));
    for (uint64_t e = 0; e < n; e++) {
        HR_PASS(matrix_at(in, gate, e * m, m, h, &out[e].gate));
        HR_PASS(matrix_at(in, up, e * m, m, h, &out[e].up));
        HR_PASS(matrix_at(in, down, e * h, h, m, &out[e].down));
    }
    return HEADRACE_OK;
}

static headrace_status bind_moe(const binder *in, uint32_t layer, hr_layer *out)
{
    const hr_arch *arch = &in->model->arch;
    hr_ffn_weights *experts = hr_arena_calloc(&in->model->arena, arch->n_experts, sizeof *experts);

    if (!experts)
        return hr_fail(in->err, HEADRACE_E_MEMORY, "layer %u: no memory for %u experts", layer, arch->n_experts);
    out->experts = experts;
    HR_PASS(bind_matrix(in, layer, ROUTER, arch->n_experts, arch->hidden_size, &out->router));
    if (arch->use_expert_bias)
        HR_PASS(bind_vector(in, layer, EXPERT_BIAS, arch->n_experts, &out->expert_bias));
    if (in->model->format == HR_MODEL_GGUF)
        return bind_stacked_experts(in, layer, experts);
    if (hr_tensor_file_find(in->file, name_of(in, layer, STACKED_GATE_UP).text))
        return bind_fused_experts(in, layer, experts);
    return bind_separate_experts(in, layer, experts);
}

static headrace_status bind_layer(const binder *in, uint32_t layer, hr_layer *out)
{
    const hr_arch *arch = &in->model->arch;

    out->operator= in->config->operators[layer];
    out->is_moe = arch->n_experts > 0 && layer >= arch->n_dense_layers;
    HR_PASS(bind_vector(in, layer, OPERATOR_NORM, arch->hidden_size, &out->operator_norm));
    HR_PASS(bind_vector(in, layer, FFN_NORM, arch->hidden_size, &out->ffn_norm));
    HR_PASS(out->operator== HR_OPERATOR_CONV ? bind_conv(in, layer, &out->conv)
                                             : bind_attention(in, layer, &out->attention));
    return out->is_moe ? bind_moe(in, layer, out) : bind_dense(in, layer, &out->dense);
}

/* ---------------------------------------------------------------- widths from the tensors */

/* The width that a gate tensor has: dimension `axis` of it, `times` its width long. */
static headrace_status take_width(const binder *in, const char *name, uint32_t axis, uint32_t times, const char *key,
                                  uint32_t *width)
{
    const hr_tensor *tensor = hr_tensor_file_find(in->file, name);
    uint64_t found;

    if (!tensor || tensor->rank <= axis) /* reported with its name when it is bound */
        return HEADRACE_OK;
    found = tensor->shape[axis] / times;
    if (found == 0 || found > HR_WIDTH_MAX || tensor->shape[axis] % times != 0)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s': a width of %llu, expected 1 to %d",
                       in->file->paths[tensor->shard], name, (unsigned long long)found, HR_WIDTH_MAX);
    if (found != *width)
        hr_log(HEADRACE_LOG_WARNING, "%s: '%s' gives a width of %u, but tensor '%s' is %llu wide; using the tensor's",
               in->model->path, key, *width, name, (unsigned long long)found);
    *width = (uint32_t)found;
    return HEADRACE_OK;
}

static headrace_status take_widths(const binder *in)
{
    hr_arch *arch = &in->model->arch;
    uint32_t first = arch->n_dense_layers;
    tensor_name fused = name_of(in, first, STACKED_GATE_UP);

    if (arch->n_experts == 0 || first > 0)
        HR_PASS(take_width(in, name_of(in, 0, FFN_GATE).text, 0, 1, in->config->ffn_key, &arch->ffn_dim));
    if (arch->n_experts == 0 || first >= arch->n_layers)
        return HEADRACE_OK;
    if (in->model->format == HR_MODEL_GGUF)
        return take_width(in, name_of(in, first, STACKED_GATE).text, 1, 1, in->config->expert_ffn_key,
                          &arch->expert_ffn_dim);
    if (hr_tensor_file_find(in->file, fused.text))
        return take_width(in, fused.text, 1, 2, in->config->expert_ffn_key, &arch->expert_ffn_dim);
    return take_width(in, expert_name(in, first, 0, "w1").text, 0, 1, in->config->expert_ffn_key,
                      &arch->expert_ffn_dim);
}

/* ---------------------------------------------------------------- around the layers */

static headrace_status find_prefix(binder *in)
{
    in->prefix = "";
    if (in->model->format == HR_MODEL_GGUF)
        return HEADRACE_OK;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        in->prefix = prefixes[i];
        if (hr_tensor_file_find(in->file, name_of(in, 0, EMBEDDING).text))
            return HEADRACE_OK;
    }
    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor 'model.embed_tokens.weight' is missing", in->model->path);
}

/* GGUF writers use two names for the final norm; a file with both says nothing about which one is meant. */
static headrace_status bind_final_norm(const binder *in, const float **out)
{
    static const char alias[] = "output_norm.weight";
    uint32_t h = in->model->arch.hidden_size;
    const hr_tensor *tensor;

    if (in->model->format != HR_MODEL_GGUF)
        return bind_vector(in, 0, FINAL_NORM, h, out);
    tensor = hr_tensor_file_find(in->file, alias);
    if (tensor && hr_tensor_file_find(in->file, names[FINAL_NORM].gguf))
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: tensors '%s' and '%s' are both there; only one can be the final norm", in->model->path,
                       names[FINAL_NORM].gguf, alias);
    if (!tensor && !hr_tensor_file_find(in->file, names[FINAL_NORM].gguf))
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s' (or '%s') is missing", in->model->path,
                       names[FINAL_NORM].gguf, alias);
    if (!tensor)
        return bind_vector(in, 0, FINAL_NORM, h, out);
    (void)lookup(in, alias);
    HR_PASS(check_shape(in, tensor, (shape){.rank = 1, .at = {h}}));
    return read_vector(in, tensor, h, out);
}

static headrace_status bind_ends(const binder *in)
{
    hr_model *model = in->model;
    uint32_t v = model->arch.vocab_size, h = model->arch.hidden_size;
    tensor_name head = name_of(in, 0, HEAD);
    bool has_head = hr_tensor_file_find(in->file, head.text) != NULL;

    HR_PASS(bind_matrix(in, 0, EMBEDDING, v, h, &model->embedding));
    HR_PASS(bind_final_norm(in, &model->final_norm));
    /* GGUF has no field for it: a head of its own is used if it is there. */
    model->is_tied = model->format == HR_MODEL_GGUF ? !has_head : in->config->is_tied;
    model->head = model->embedding;
    return model->is_tied ? HEADRACE_OK : bind_matrix(in, 0, HEAD, v, h, &model->head);
}

/* Whether a tensor nobody asked for would have changed the text model's result. */
static bool is_inside_layer(const binder *in, const char *name)
{
    tensor_name layers;
    size_t len = strlen(name), end = strlen(".inv_freq");

    (void)snprintf(layers.text, sizeof layers.text, "%s%s", in->prefix,
                   in->model->format == HR_MODEL_GGUF ? "blk." : "layers.");
    if (len > end && strcmp(name + len - end, ".inv_freq") == 0) /* computed from rope_theta; old writers stored it */
        return false;
    return strncmp(name, layers.text, strlen(layers.text)) == 0;
}

static headrace_status check_surplus(const binder *in)
{
    const hr_tensor *first = NULL;
    uint32_t n = 0;

    for (uint32_t i = 0; i < in->file->n_tensors; i++) {
        const hr_tensor *tensor = &in->file->tensors[i];

        if (in->used[i])
            continue;
        if (is_inside_layer(in, tensor->name))
            return hr_fail(
                in->err, HEADRACE_E_MODEL,
                "%s: tensor '%s' at byte %llu is unknown: no layer of this architecture, as configured, has it",
                in->file->paths[tensor->shard], tensor->name, (unsigned long long)tensor->file_offset);
        if (n++ == 0)
            first = tensor;
    }
    if (first && !in->may_copy)
        hr_log(HEADRACE_LOG_WARNING, "%s: %u tensors are not used, the first is '%s'", in->model->path, n, first->name);
    return HEADRACE_OK;
}

static headrace_status bind_all(binder *in)
{
    hr_model *model = in->model;
    uint32_t n_attention = 0, n_conv = 0;

    HR_PASS(find_prefix(in));
    HR_PASS(take_widths(in));
    HR_PASS(bind_ends(in));
    model->layers = hr_arena_calloc(&model->arena, model->arch.n_layers, sizeof *model->layers);
    if (!model->layers)
        return hr_fail(in->err, HEADRACE_E_MEMORY, "no memory for %u layers", model->arch.n_layers);
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        hr_layer *layer = &model->layers[i];

        HR_PASS(bind_layer(in, i, layer));
        layer->state_index = layer->operator== HR_OPERATOR_CONV ? n_conv++ : n_attention++;
    }
    return check_surplus(in);
}

headrace_status hr_model_bind(hr_model *model, const hr_config *config, headrace_error *err)
{
    bool is_misplaced = false;
    binder in = {.model = model, .file = model->file, .config = config, .is_misplaced = &is_misplaced, .err = err};
    headrace_status status;

    in.used = calloc((size_t)model->file->n_tensors + 1, sizeof *in.used);
    if (!in.used)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u tensors", model->file->n_tensors);
    status = bind_all(&in);
    if (status == HEADRACE_OK && is_misplaced) {
        in.may_copy = true;
        status = bind_all(&in);
        hr_log(HEADRACE_LOG_WARNING, "%s: weights lie at odd addresses and were copied to memory", model->path);
    }
    free(in.used);
    return status;
}
