/* One step: the walk over the layer table (docs/lfm2.md, equations 1 to 20), a launch or two a stage.
 *
 * Which numbers lie where between launches: x the residual stream, xn what the next product reads (normalised rows),
 * mix what the operator gives to its output projection, act what lies between the halves of a feed-forward. Each launch
 * may begin before the one before it has ended (hrk.h), the first one excepted.
 *
 * Where a stage has a fused and an unfused form, the choice was made at open (cuda_memory.c). A tap of what a residual
 * product adds costs a launch of its own, which changes no number.
 */
#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_trace.h"

/* The step at hand. */
typedef struct walk {
    hr_cuda *cuda;
    const hr_cuda_shape *shape;
    const hr_batch *batch; /* NULL while a graph is captured */
    hrk_launch on;
    uint32_t T, index; /* max_rows; the layer */
    const hr_cuda_layer *layer;
} walk;

/* Every launch after the first may begin early. */
#define LAUNCH(w, call)                                    \
    do {                                                   \
        HR_CUDA_TRY((w)->cuda, call);                      \
        (w)->on.programmatic = (w)->cuda->is_programmatic; \
    } while (0)

/* ---------------------------------------------------------------- taps */

/* With taps no graph is captured: there is always a batch. */
static bool has_taps(const walk *w)
{
    return w->batch && hr_cuda_has_taps(w->cuda);
}

static headrace_status tap(walk *w, hr_tap name, const hrk_bf16 *rows, uint32_t cols, headrace_error *err)
{
    if (!has_taps(w))
        return HEADRACE_OK;
    return hr_cuda_tap_bf16(w->cuda, name, w->index, rows, w->batch->n_rows, cols, hrk_ld(cols), err);
}

static hrk_bf16 *tap_rows(const walk *w, int i)
{
    return has_taps(w) ? w->cuda->tap_rows[i] : NULL;
}

/* ---------------------------------------------------------------- pieces */

static headrace_status norm(walk *w, const float *weight, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_norm_args args = {.tables = cuda->tables,
                          .max_rows = w->T,
                          .x = cuda->x,
                          .weight = weight,
                          .H = cuda->arch->hidden_size,
                          .eps = cuda->arch->norm_eps,
                          .out = cuda->xn};

    LAUNCH(w, hrk_norm(&args, &w->on));
    return HEADRACE_OK;
}

/* out = W in, for products that no fused kernel has. */
static headrace_status product(walk *w, const hrk_matrix *matrix, const hrk_bf16 *in, const float *bias, hrk_bf16 *out,
                               headrace_error *err)
{
    hrk_linear_args args = {.tables = w->cuda->tables,
                            .over = HRK_ROWS_ALL,
                            .max_rows = w->T,
                            .w = *matrix,
                            .in = in,
                            .bias = bias,
                            .epilogue = HRK_STORE,
                            .out = out};

    LAUNCH(w, hrk_linear(&args, &w->on));
    return HEADRACE_OK;
}

/* x += W in. */
static headrace_status residual_product(walk *w, hr_tap name, const hrk_matrix *matrix, const hrk_bf16 *in,
                                        const float *bias, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_linear_args args = {.tables = cuda->tables,
                            .over = HRK_ROWS_ALL,
                            .max_rows = w->T,
                            .w = *matrix,
                            .in = in,
                            .bias = bias,
                            .epilogue = HRK_RESIDUAL,
                            .out = cuda->x};

    if (has_taps(w)) {
        HR_PASS(product(w, matrix, in, bias, cuda->tap_rows[0], err));
        HR_PASS(tap(w, name, cuda->tap_rows[0], matrix->rows, err));
    }
    LAUNCH(w, hrk_linear(&args, &w->on));
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- convolution */

static hrk_conv_state conv_state(const hr_cuda *cuda, const hr_layer *layer)
{
    size_t a_layer = (size_t)(cuda->arch->conv_length - 1) * cuda->arch->hidden_size;

    return (hrk_conv_state){.base = cuda->state + layer->state_index * a_layer, .state_stride = cuda->state_values};
}

static headrace_status conv_fused(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_conv_in_args args = {.tables = cuda->tables,
                             .max_rows = w->T,
                             .w = w->layer->in,
                             .in = cuda->xn,
                             .taps = w->layer->taps,
                             .L = cuda->arch->conv_length,
                             .state = conv_state(cuda, w->layer->source),
                             .y = cuda->mix};

    LAUNCH(w, hrk_conv_in(&args, &w->on));
    return HEADRACE_OK;
}

static headrace_status conv_unfused(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_conv_args args = {.tables = cuda->tables,
                          .max_rows = w->T,
                          .bcx = cuda->wide,
                          .taps = w->layer->taps,
                          .conv_bias = w->layer->conv_bias,
                          .H = cuda->arch->hidden_size,
                          .L = cuda->arch->conv_length,
                          .state = conv_state(cuda, w->layer->source),
                          .bx = tap_rows(w, 0),
                          .y = cuda->mix};

    HR_PASS(product(w, &w->layer->in, cuda->xn, w->layer->in_bias, cuda->wide, err));
    LAUNCH(w, hrk_conv(&args, &w->on));
    return args.bx ? tap(w, HR_TAP_CONV_BX, args.bx, args.H, err) : HEADRACE_OK;
}

static headrace_status run_conv(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;

    HR_PASS(cuda->fuses_conv ? conv_fused(w, err) : conv_unfused(w, err));
    HR_PASS(tap(w, HR_TAP_CONV_Y, cuda->mix, cuda->arch->hidden_size, err));
    return residual_product(w, HR_TAP_OPERATOR_OUT, &w->layer->out, cuda->mix, w->layer->out_bias, err);
}

/* ---------------------------------------------------------------- attention */

static hrk_kv kv_of(const hr_cuda *cuda, const hr_layer *layer)
{
    const hr_arch *arch = cuda->arch;
    size_t a_layer = (size_t)2 * arch->n_kv_heads * cuda->options.page_tokens * arch->head_dim;

    return (hrk_kv){.base = cuda->kv + layer->state_index * a_layer,
                    .page_stride = cuda->page_bytes / sizeof(hrk_bf16),
                    .P = cuda->options.page_tokens,
                    .Nkv = arch->n_kv_heads,
                    .D = arch->head_dim,
                    .is_swizzled = cuda->fuses_attention};
}

static headrace_status qkv_fused(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_qkv_args args = {.tables = cuda->tables,
                         .max_rows = w->T,
                         .w = w->layer->in,
                         .k_layout = w->layer->heads[1].layout,
                         .v_layout = w->layer->heads[2].layout,
                         .in = cuda->xn,
                         .q_norm = w->layer->q_norm,
                         .k_norm = w->layer->k_norm,
                         .eps = cuda->arch->norm_eps,
                         .rope = cuda->rope,
                         .exact_rope = cuda->options.exact,
                         .Nq = cuda->arch->n_heads,
                         .kv = kv_of(cuda, w->layer->source),
                         .q = cuda->q};

    LAUNCH(w, hrk_qkv(&args, &w->on));
    return HEADRACE_OK;
}

static headrace_status qkv_unfused(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_qk_rope_args args = {.tables = cuda->tables,
                             .max_rows = w->T,
                             .qkv = cuda->wide,
                             .q_norm = w->layer->q_norm,
                             .k_norm = w->layer->k_norm,
                             .eps = cuda->arch->norm_eps,
                             .rope = cuda->rope,
                             .exact_rope = cuda->options.exact,
                             .Nq = cuda->arch->n_heads,
                             .kv = kv_of(cuda, w->layer->source),
                             .q = cuda->q,
                             .k_out = tap_rows(w, 0),
                             .v_out = tap_rows(w, 1)};

    HR_PASS(product(w, &w->layer->in, cuda->xn, NULL, cuda->wide, err));
    LAUNCH(w, hrk_qk_rope(&args, &w->on));
    if (!args.k_out)
        return HEADRACE_OK;
    HR_PASS(tap(w, HR_TAP_K, args.k_out, args.kv.Nkv * args.kv.D, err));
    return tap(w, HR_TAP_V, args.v_out, args.kv.Nkv * args.kv.D, err);
}

/* The attention of one round: decode items in all of them, prefill tiles in the first. */
static headrace_status attend(walk *w, hrk_attention_args *args, bool is_first, headrace_error *err)
{
    if (!w->cuda->fuses_attention) {
        args->max_prefill_tiles = is_first ? w->shape->max_prefill_tiles : 0;
        LAUNCH(w, hrk_attention_simple(args, &w->on));
        return HEADRACE_OK;
    }
    if (args->max_decode_items > 0)
        LAUNCH(w, hrk_attention_decode(args, &w->on));
    if (is_first && args->max_prefill_tiles > 0)
        LAUNCH(w, hrk_attention_prefill(args, &w->on));
    return HEADRACE_OK;
}

static headrace_status run_attention(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    const hr_cuda_shape *shape = w->shape;
    uint32_t q_cols = cuda->arch->n_heads * cuda->arch->head_dim;
    hrk_attention_args args = {.tables = cuda->tables,
                               .max_decode_items = shape->max_decode_items,
                               .max_chunk_items = shape->max_chunk_items,
                               .max_prefill_tiles = shape->max_prefill_tiles,
                               .q = cuda->q,
                               .Nq = cuda->arch->n_heads,
                               .kv = kv_of(cuda, w->layer->source),
                               .out = cuda->mix,
                               .scratch = cuda->attention_scratch};

    HR_PASS(cuda->fuses_qkv ? qkv_fused(w, err) : qkv_unfused(w, err));
    HR_PASS(tap(w, HR_TAP_Q, cuda->q, q_cols, err));
    for (uint32_t r = 0; r < shape->n_rounds; r++) {
        args.tables.step = cuda->tables.step + r;
        HR_PASS(attend(w, &args, r == 0, err));
    }
    HR_PASS(tap(w, HR_TAP_ATTENTION, cuda->mix, q_cols, err));
    return residual_product(w, HR_TAP_OPERATOR_OUT, &w->layer->out, cuda->mix, NULL, err);
}

/* ---------------------------------------------------------------- feed-forward */

static headrace_status run_dense(walk *w, const float *next_norm, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_gate_up_args args = {
        .tables = cuda->tables, .max_rows = w->T, .w = w->layer->gate_up, .in = cuda->xn, .h = cuda->act};

    HR_PASS(norm(w, w->layer->ffn_norm, err));
    HR_PASS(tap(w, HR_TAP_FFN_NORM, cuda->xn, cuda->arch->hidden_size, err));
    LAUNCH(w, hrk_gate_up(&args, &w->on));
    HR_PASS(tap(w, HR_TAP_FFN_ACT, cuda->act, w->layer->source->dense.gate.rows, err));
    HR_PASS(residual_product(w, HR_TAP_FFN_OUT, &w->layer->down, cuda->act, NULL, err));
    return next_norm ? norm(w, next_norm, err) : HEADRACE_OK;
}

static headrace_status route(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    const hr_arch *arch = cuda->arch;
    hrk_route_args args = {.tables = cuda->tables,
                           .max_rows = w->T,
                           .x = cuda->x,
                           .norm = w->layer->ffn_norm,
                           .eps = arch->norm_eps,
                           .xn = cuda->xn,
                           .router = w->layer->router,
                           .expert_bias = w->layer->expert_bias,
                           .H = arch->hidden_size,
                           .normalise = arch->norm_topk_prob,
                           .scale = arch->routed_scaling_factor,
                           .logits = tap_rows(w, 0),
                           .routing = cuda->routing};
    uint32_t n_rows = w->batch ? w->batch->n_rows : 0;

    LAUNCH(w, hrk_route(&args, &w->on));
    HR_PASS(tap(w, HR_TAP_FFN_NORM, cuda->xn, arch->hidden_size, err));
    if (!args.logits)
        return HEADRACE_OK;
    HR_PASS(hr_cuda_tap_bf16(cuda, HR_TAP_ROUTER_LOGITS, w->index, args.logits, n_rows, arch->n_experts,
                             arch->n_experts, err));
    HR_PASS(hr_cuda_tap_u32(cuda, HR_TAP_ROUTER_IDS, w->index, cuda->routing.ids, n_rows, arch->n_experts_used, err));
    return hr_cuda_tap_f32(cuda, HR_TAP_ROUTER_WEIGHTS, w->index, cuda->routing.weights, n_rows, arch->n_experts_used,
                           arch->n_experts_used, err);
}

static headrace_status run_experts(walk *w, const float *next_norm, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_gate_up_args gate_up = {.tables = cuda->tables,
                                .max_rows = w->T,
                                .w = w->layer->gate_up,
                                .in = cuda->xn,
                                .routing = &cuda->routing,
                                .h = cuda->act};
    hrk_down_args down = {.tables = cuda->tables,
                          .max_rows = w->T,
                          .w = w->layer->down,
                          .h = cuda->act,
                          .routing = &cuda->routing,
                          .y = cuda->expert_out};
    hrk_combine_args combine = {.tables = cuda->tables,
                                .max_rows = w->T,
                                .y = cuda->expert_out,
                                .routing = cuda->routing,
                                .H = cuda->arch->hidden_size,
                                .x = cuda->x,
                                .norm = next_norm,
                                .eps = cuda->arch->norm_eps,
                                .xn = cuda->xn,
                                .sum = tap_rows(w, 0)};

    HR_PASS(route(w, err));
    LAUNCH(w, hrk_gate_up(&gate_up, &w->on));
    if (has_taps(w))
        HR_PASS(hr_cuda_tap_by_expert(cuda, HR_TAP_FFN_ACT, w->index, cuda->act, w->batch->n_rows,
                                      cuda->arch->expert_ffn_dim, err));
    LAUNCH(w, hrk_down(&down, &w->on));
    LAUNCH(w, hrk_combine(&combine, &w->on));
    return combine.sum ? tap(w, HR_TAP_FFN_OUT, combine.sum, combine.H, err) : HEADRACE_OK;
}

/* ---------------------------------------------------------------- the whole */

hrk_step_begin_args hr_cuda_step_begin_args(const hr_cuda *cuda, uint32_t max_rows)
{
    return (hrk_step_begin_args){.tables = cuda->tables,
                                 .max_rows = max_rows,
                                 .embedding = cuda->embedding,
                                 .H = cuda->arch->hidden_size,
                                 .V = cuda->arch->vocab_size,
                                 .norm = cuda->layers[0].operator_norm,
                                 .eps = cuda->arch->norm_eps,
                                 .x = cuda->x,
                                 .xn = cuda->xn};
}

static headrace_status run_layer(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    bool is_last = w->index + 1 == cuda->arch->n_layers;
    const float *next_norm = is_last ? NULL : w->layer[1].operator_norm;

    HR_PASS(tap(w, HR_TAP_OPERATOR_NORM, cuda->xn, cuda->arch->hidden_size, err));
    HR_PASS(w->layer->source->operator== HR_OPERATOR_CONV ? run_conv(w, err) : run_attention(w, err));
    HR_PASS(w->layer->source->is_moe ? run_experts(w, next_norm, err) : run_dense(w, next_norm, err));
    return tap(w, HR_TAP_LAYER_OUT, cuda->x, cuda->arch->hidden_size, err);
}

/* Equation 20 and sampling for the rows that are outputs. */
static headrace_status run_head(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    const hr_arch *arch = cuda->arch;
    uint32_t n = w->shape->max_outputs, V = arch->vocab_size;
    hrk_norm_args final = {.tables = cuda->tables,
                           .max_rows = n,
                           .of_outputs = true,
                           .x = cuda->x,
                           .weight = cuda->final_norm,
                           .H = arch->hidden_size,
                           .eps = arch->norm_eps,
                           .out = cuda->final};
    hrk_linear_args head = {.tables = cuda->tables,
                            .over = HRK_ROWS_OUTPUTS,
                            .max_rows = n,
                            .w = cuda->head,
                            .in = cuda->final,
                            .epilogue = HRK_STORE_F32,
                            .out = cuda->logits};
    hrk_sampler_args sampler = {.tables = cuda->tables,
                                .max_outputs = n,
                                .logits = cuda->logits,
                                .V = V,
                                .n_valid = cuda->n_valid_ids,
                                .scratch = cuda->sampler_scratch,
                                .samples = cuda->samples,
                                .tops = cuda->tops};

    LAUNCH(w, hrk_norm(&final, &w->on));
    LAUNCH(w, hrk_linear(&head, &w->on));
    if (has_taps(w)) {
        HR_PASS(hr_cuda_tap_bf16(cuda, HR_TAP_FINAL_NORM, arch->n_layers, cuda->final, w->batch->n_outputs,
                                 arch->hidden_size, hrk_ld(arch->hidden_size), err));
        HR_PASS(
            hr_cuda_tap_f32(cuda, HR_TAP_LOGITS, arch->n_layers, cuda->logits, w->batch->n_outputs, V, hrk_ld(V), err));
    }
    LAUNCH(w, hrk_sampler(&sampler, &w->on));
    return HEADRACE_OK;
}

static headrace_status run(walk *w, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hrk_step_begin_args begin = hr_cuda_step_begin_args(cuda, w->T);

    LAUNCH(w, hrk_step_begin(&begin, &w->on));
    HR_PASS(tap(w, HR_TAP_EMBED, cuda->x, cuda->arch->hidden_size, err));
    for (; w->index < cuda->arch->n_layers; w->index++) {
        headrace_status status;

        w->layer = &cuda->layers[w->index];
        hr_cuda_range_push(w->layer->source->operator== HR_OPERATOR_CONV ? "convolution layer" : "attention layer");
        status = run_layer(w, err);
        hr_cuda_range_pop();
        HR_PASS(status);
    }
    return w->shape->has_head ? run_head(w, err) : HEADRACE_OK;
}

static walk start(hr_cuda *cuda, const hr_cuda_shape *shape, const hr_batch *batch)
{
    return (walk){.cuda = cuda,
                  .shape = shape,
                  .batch = batch,
                  .on = {.stream = cuda->stream, .n_sms = cuda->device.n_sms},
                  .T = shape->max_rows};
}

headrace_status hr_cuda_load_kernels(hr_cuda *cuda, const hr_cuda_shape *shape, headrace_error *err)
{
    walk w = start(cuda, shape, NULL);

    w.on.only_load = true;
    return run(&w, err);
}

headrace_status hr_cuda_walk(hr_cuda *cuda, const hr_cuda_shape *shape, const hr_batch *batch, headrace_error *err)
{
    walk w = start(cuda, shape, batch);

    return run(&w, err);
}
