/* The model's weights, from where the file is mapped to where and how the kernels read them.
 *
 * A matrix goes in pieces of whole rows: copied (or, if quantised, decoded to bf16) into one of two pinned buffers,
 * copied from there to its twin on the device, and put into place by hrk_pack, which also converts. While the device
 * does that, the host fills the other buffer, so reading the file and the copies overlap. The buffers on the device are
 * borrowed from the scratch, which nothing uses yet.
 *
 * Quantised matrices that stay so (cuda_quantised.c) go the same way, as the file's bytes, to hrk_pack_quantised.
 *
 * What is stored: embedding row-major, for look-ups; the head in the layout of a product, which makes a second copy of
 * a tied embedding where products are tiled; q, k and v as one matrix; gate and up side by side; the experts of a layer
 * one after the other. Vectors are fp32.
 */
#include "backend/cuda/cuda.h"

#include "base/numeric.h"

#include <math.h>
#include <string.h>

enum { BUFFERS = 2, STRIP = 64 /* rows of a tiled matrix that are packed at once */ };

/* ---------------------------------------------------------------- places */

static hrk_matrix carve_as(hrk_layout layout, hr_carver *c, uint32_t rows, uint32_t cols, uint32_t n_groups,
                           uint32_t n_stack)
{
    hrk_matrix m = {.rows = rows, .cols = cols, .n_groups = n_groups, .n_stack = n_stack, .layout = layout};

    m.data = hr_carve(c, n_stack, hrk_matrix_bytes(rows, cols, n_groups, m.layout));
    return m;
}

/* Of matrices that lie together: their quantised format if they share it. */
static hrk_layout together(hrk_layout a, hrk_layout b)
{
    return a == b ? a : HRK_TILED;
}

static const float *carve_vector(hr_carver *c, const float *source, size_t n)
{
    return source ? hr_carve(c, n, sizeof(float)) : NULL;
}

/* Parts of a matrix that are packed one by one begin with a strip, if they are quantised. */
static hrk_layout whole_strips(hrk_layout layout, uint32_t rows)
{
    return hrk_is_quantised(layout) && rows % STRIP != 0 ? HRK_TILED : layout;
}

/* Fused, q, k and v may each have a format of their own; else they are one matrix. */
static void lay_out_heads(const hr_cuda *cuda, hr_cuda_layer *layer, hr_carver *c)
{
    const hr_attention_weights *w = &layer->source->attention;
    const hr_matrix *parts[3] = {&w->q, &w->k, &w->v};
    uint32_t H = cuda->model->arch.hidden_size, rows = w->q.rows + w->k.rows + w->v.rows;
    hrk_layout common = hr_cuda_layout(cuda, &w->q);
    size_t bytes = 0;
    bool is_quantised = cuda->fuses_qkv;

    for (int i = 0; i < 3; i++) {
        hrk_layout mine = hr_cuda_layout(cuda, parts[i]);

        common = whole_strips(together(common, mine), parts[i]->rows);
        is_quantised = is_quantised && hrk_is_quantised(mine);
        layer->heads[i] = (hrk_matrix){.rows = parts[i]->rows, .cols = H, .n_groups = 1, .n_stack = 1, .layout = mine};
        bytes += hrk_matrix_bytes(parts[i]->rows, H, 1, mine);
    }
    if (!is_quantised) {
        layer->in = carve_as(common, c, rows, H, 1, 1);
        memset(layer->heads, 0, sizeof layer->heads);
        return;
    }
    layer->in = layer->heads[0];
    layer->in.rows = rows;
    layer->in.data = hr_carve(c, 1, bytes);
    bytes = 0;
    for (int i = 0; i < 3 && layer->in.data; i++) {
        layer->heads[i].data = layer->in.data + bytes / sizeof(hrk_bf16);
        bytes += hrk_matrix_bytes(parts[i]->rows, H, 1, layer->heads[i].layout);
    }
}

static void lay_out_operator(const hr_cuda *cuda, hr_cuda_layer *layer, hr_carver *c)
{
    const hr_arch *arch = &cuda->model->arch;
    uint32_t H = arch->hidden_size, D = arch->head_dim, L = arch->conv_length;

    if (layer->source->operator== HR_OPERATOR_CONV) {
        const hr_conv_weights *w = &layer->source->conv;

        /* Products with biases are the portable kernels' alone. */
        hrk_layout in = w->in_bias ? HRK_ROW_MAJOR : hr_cuda_layout(cuda, &w->in_proj);
        hrk_layout out = w->out_bias ? HRK_ROW_MAJOR : hr_cuda_layout(cuda, &w->out_proj);

        layer->in = cuda->fuses_conv ? carve_as(in, c, H, H, 3, 1) : carve_as(whole_strips(in, H), c, 3 * H, H, 1, 1);
        layer->out = carve_as(out, c, H, H, 1, 1);
        layer->taps = carve_vector(c, w->taps, (size_t)H * L);
        layer->in_bias = carve_vector(c, w->in_bias, 3 * (size_t)H);
        layer->conv_bias = carve_vector(c, w->conv_bias, H);
        layer->out_bias = carve_vector(c, w->out_bias, H);
    } else {
        const hr_attention_weights *w = &layer->source->attention;

        layer->out = carve_as(hr_cuda_layout(cuda, &w->out), c, H, arch->n_heads * D, 1, 1);
        lay_out_heads(cuda, layer, c);
        layer->q_norm = carve_vector(c, w->q_norm, D);
        layer->k_norm = carve_vector(c, w->k_norm, D);
    }
}

static void lay_out_feed_forward(const hr_cuda *cuda, hr_cuda_layer *layer, hr_carver *c)
{
    const hr_arch *arch = &cuda->model->arch;
    uint32_t H = arch->hidden_size, E = arch->n_experts, F = layer->source->dense.gate.rows;

    uint32_t n = layer->source->is_moe ? E : 1, rows = layer->source->is_moe ? arch->expert_ffn_dim : F;
    const hr_ffn_weights *all = layer->source->is_moe ? layer->source->experts : &layer->source->dense;
    hrk_layout gate_up = hr_cuda_layout(cuda, &all->gate), down = hr_cuda_layout(cuda, &all->down);

    for (uint32_t e = 0; e < n; e++) {
        gate_up = together(gate_up, hr_cuda_layout(cuda, &all[e].gate));
        gate_up = together(gate_up, hr_cuda_layout(cuda, &all[e].up));
        down = together(down, hr_cuda_layout(cuda, &all[e].down));
    }
    layer->gate_up = carve_as(gate_up, c, rows, H, 2, n);
    layer->down = carve_as(down, c, H, rows, 1, n);
    if (!layer->source->is_moe)
        return;
    layer->router = hr_carve(c, E, hrk_ld(H) * sizeof(hrk_bf16));
    layer->expert_bias = carve_vector(c, layer->source->expert_bias, E);
}

void hr_cuda_lay_out_weights(hr_cuda *cuda, hr_carver *c)
{
    const hr_model *model = cuda->model;
    uint32_t V = model->arch.vocab_size, H = model->arch.hidden_size;

    cuda->embedding = hr_carve(c, V, hrk_ld(H) * sizeof(hrk_bf16));
    if (model->is_tied && !cuda->is_tiled) {
        cuda->head = (hrk_matrix){
            .data = cuda->embedding, .rows = V, .cols = H, .n_groups = 1, .n_stack = 1, .layout = HRK_ROW_MAJOR};
    } else {
        size_t at = c->used;

        cuda->head = carve_as(hr_cuda_layout(cuda, &model->head), c, V, H, 1, 1);
        cuda->second_head_bytes = model->is_tied ? c->used - at : 0;
    }
    cuda->final_norm = carve_vector(c, model->final_norm, H);
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        hr_cuda_layer *layer = &cuda->layers[i];

        *layer = (hr_cuda_layer){.source = &model->layers[i]};
        layer->operator_norm = carve_vector(c, layer->source->operator_norm, H);
        layer->ffn_norm = carve_vector(c, layer->source->ffn_norm, H);
        lay_out_operator(cuda, layer, c);
        lay_out_feed_forward(cuda, layer, c);
    }
}

/* ---------------------------------------------------------------- copying */

typedef struct loader {
    hr_cuda *cuda;
    unsigned char *host[BUFFERS], *device[BUFFERS]; /* pinned; in the scratch */
    cudaEvent_t free[BUFFERS];                      /* the device is done with the buffer */
    uint32_t next;
    float *row; /* one decoded row of the widest matrix */
    uint64_t done, total;
} loader;

/* Where the rows of a file's matrix go inside one of the device's. */
typedef struct destination {
    hrk_matrix to;
    uint32_t group, stack, first_row;
    bool pair_rotary;
} destination;

static headrace_status wait_for_buffer(loader *l, headrace_error *err)
{
    l->next = (l->next + 1) % BUFFERS;
    HR_CUDA_TRY(l->cuda, cudaEventSynchronize(l->free[l->next]));
    return HEADRACE_OK;
}

static headrace_status send(loader *l, size_t n_bytes, headrace_error *err)
{
    HR_CUDA_TRY(l->cuda, cudaMemcpyAsync(l->device[l->next], l->host[l->next], n_bytes, cudaMemcpyHostToDevice,
                                         l->cuda->stream));
    return HEADRACE_OK;
}

static void report(loader *l, uint64_t n_bytes)
{
    l->done += n_bytes;
    if (l->cuda->options.progress)
        l->cuda->options.progress(l->done, l->total, l->cuda->options.progress_user);
}

static bool is_whole(hr_dtype dtype)
{
    return dtype == HR_BF16 || dtype == HR_F16 || dtype == HR_F32;
}

static size_t staged_row_bytes(const hr_matrix *from)
{
    return from->dtype == HR_F32 ? from->cols * sizeof(float) : from->cols * sizeof(uint16_t);
}

/* Rows [first, first + n) as they are packed: the file's own, or decoded to bf16. */
static headrace_status stage_rows(loader *l, const hr_matrix *from, bool stays, uint32_t first, uint32_t n,
                                  headrace_error *err)
{
    const unsigned char *source = (const unsigned char *)from->data + first * from->row_bytes;
    size_t row_bytes = stays ? from->row_bytes : staged_row_bytes(from);
    unsigned char *to = l->host[l->next];

    for (uint32_t r = 0; r < n; r++, source += from->row_bytes, to += row_bytes) {
        HR_PASS(hr_cuda_check_scales(l->cuda->model, from, first + r, err));
        if (stays || is_whole(from->dtype)) {
            memcpy(to, source, row_bytes);
            continue;
        }
        hr_dequantize(from->dtype, source, l->row, from->cols);
        for (uint32_t i = 0; i < from->cols; i++) {
            uint16_t value = hr_f32_to_bf16(l->row[i]);

            memcpy(to + i * sizeof value, &value, sizeof value);
        }
    }
    return send(l, n * row_bytes, err);
}

/* The n rows of the buffer to where they stay, from the matrix's row `first` on. */
static headrace_status put_in_place(loader *l, const hr_matrix *from, const destination *d, uint32_t first, uint32_t n,
                                    headrace_error *err)
{
    hrk_launch on = {.stream = l->cuda->stream, .n_sms = l->cuda->device.n_sms};

    if (hrk_is_quantised(d->to.layout)) {
        hrk_pack_quantised_args pack = {.from = l->device[l->next],
                                        .to = (void *)(uintptr_t)d->to.data,
                                        .rows = d->to.rows,
                                        .cols = d->to.cols,
                                        .n_groups = d->to.n_groups,
                                        .group = d->group,
                                        .stack = d->stack,
                                        .first_row = d->first_row + first,
                                        .n_rows = n,
                                        .layout = d->to.layout,
                                        .pair_rotary = d->pair_rotary};

        HR_CUDA_TRY(l->cuda, hrk_pack_quantised(&pack, &on));
    } else {
        hrk_pack_args pack = {.from = l->device[l->next],
                              .source = from->dtype == HR_F32   ? HRK_SOURCE_F32
                                        : from->dtype == HR_F16 ? HRK_SOURCE_F16
                                                                : HRK_SOURCE_BF16,
                              .to = (hrk_bf16 *)(uintptr_t)d->to.data,
                              .rows = d->to.rows,
                              .cols = d->to.cols,
                              .n_groups = d->to.n_groups,
                              .group = d->group,
                              .stack = d->stack,
                              .first_row = d->first_row + first,
                              .n_rows = n,
                              .layout = d->to.layout,
                              .pair_rotary = d->pair_rotary};

        HR_CUDA_TRY(l->cuda, hrk_pack(&pack, &on));
    }
    HR_CUDA_TRY(l->cuda, cudaEventRecord(l->free[l->next], l->cuda->stream));
    return HEADRACE_OK;
}

static headrace_status copy_matrix(loader *l, const hr_matrix *from, const destination *d, headrace_error *err)
{
    bool stays = hrk_is_quantised(d->to.layout);
    uint32_t most = (uint32_t)(l->cuda->staging_bytes / (stays ? from->row_bytes : staged_row_bytes(from)));

    if (stays)
        most = most / STRIP * STRIP;
    for (uint32_t first = 0; first < from->rows && !l->cuda->model->is_dummy; first += most) {
        uint32_t n = from->rows - first < most ? from->rows - first : most;

        HR_PASS(wait_for_buffer(l, err));
        HR_PASS(stage_rows(l, from, stays, first, n, err));
        HR_PASS(put_in_place(l, from, d, first, n, err));
        report(l, n * from->row_bytes);
    }
    return HEADRACE_OK;
}

/* fp32 values to where they stay. */
static headrace_status copy_vector(loader *l, const float *from, const float *to, size_t n, headrace_error *err)
{
    size_t most = l->cuda->staging_bytes / sizeof *from;

    for (size_t first = 0; from && first < n; first += most) {
        size_t count = n - first < most ? n - first : most;

        HR_PASS(wait_for_buffer(l, err));
        memcpy(l->host[l->next], from + first, count * sizeof *from);
        HR_CUDA_TRY(l->cuda, cudaMemcpyAsync((float *)(uintptr_t)to + first, l->host[l->next], count * sizeof *from,
                                             cudaMemcpyHostToDevice, l->cuda->stream));
        HR_CUDA_TRY(l->cuda, cudaEventRecord(l->free[l->next], l->cuda->stream));
    }
    return HEADRACE_OK;
}

/* Cosines and sines of every position, in double and rounded once (docs/lfm2.md, equation 10). */
static headrace_status copy_rope(loader *l, headrace_error *err)
{
    const hr_cuda *cuda = l->cuda;
    uint32_t D = cuda->arch->head_dim, half = D / 2, most = (uint32_t)(l->cuda->staging_bytes / (D * sizeof(float)));

    for (uint32_t first = 0; first < cuda->max_context && cuda->arch->n_attention_layers > 0; first += most) {
        uint32_t n = cuda->max_context - first < most ? cuda->max_context - first : most;
        float *to;

        HR_PASS(wait_for_buffer(l, err));
        to = (float *)(void *)l->host[l->next];
        for (uint32_t j = 0; j < half; j++) {
            double rate = pow((double)cuda->arch->rope_theta, -2.0 * j / D);

            for (uint32_t p = 0; p < n; p++) {
                to[(size_t)p * D + j] = (float)cos((double)(first + p) * rate);
                to[(size_t)p * D + half + j] = (float)sin((double)(first + p) * rate);
            }
        }
        HR_CUDA_TRY(l->cuda, cudaMemcpyAsync((float *)(uintptr_t)cuda->rope + (size_t)first * D, to,
                                             (size_t)n * D * sizeof(float), cudaMemcpyHostToDevice, cuda->stream));
        HR_CUDA_TRY(l->cuda, cudaEventRecord(l->free[l->next], cuda->stream));
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the model */

static headrace_status load_conv(loader *l, const hr_cuda_layer *layer, headrace_error *err)
{
    const hr_conv_weights *w = &layer->source->conv;
    uint32_t H = l->cuda->arch->hidden_size;

    for (uint32_t g = 0; g < 3; g++) {
        hr_matrix third = w->in_proj;
        destination d = {.to = layer->in, .group = g};

        if (!l->cuda->fuses_conv)
            d = (destination){.to = layer->in, .first_row = g * H};
        if (third.data) /* dummy weights have none */
            third.data = (const unsigned char *)third.data + (size_t)g * H * third.row_bytes;
        if (third.in_file)
            third.in_file = (const unsigned char *)third.in_file + (size_t)g * H * third.row_bytes;
        third.rows = H;
        HR_PASS(copy_matrix(l, &third, &d, err));
    }
    HR_PASS(copy_matrix(l, &w->out_proj, &(destination){.to = layer->out}, err));
    HR_PASS(copy_vector(l, w->taps, layer->taps, (size_t)H * l->cuda->arch->conv_length, err));
    HR_PASS(copy_vector(l, w->in_bias, layer->in_bias, 3 * (size_t)H, err));
    HR_PASS(copy_vector(l, w->conv_bias, layer->conv_bias, H, err));
    return copy_vector(l, w->out_bias, layer->out_bias, H, err);
}

static headrace_status load_attention(loader *l, const hr_cuda_layer *layer, headrace_error *err)
{
    const hr_attention_weights *w = &layer->source->attention;
    const hr_matrix *parts[3] = {&w->q, &w->k, &w->v};
    destination d = {.to = layer->in, .pair_rotary = l->cuda->fuses_qkv};

    for (int i = 0; i < 3; i++) {
        if (layer->heads[i].data) {
            d.to = layer->heads[i];
            HR_PASS(copy_matrix(l, parts[i], &d, err));
            continue;
        }
        HR_PASS(copy_matrix(l, parts[i], &d, err));
        d.first_row += parts[i]->rows;
    }
    HR_PASS(copy_matrix(l, &w->out, &(destination){.to = layer->out}, err));
    HR_PASS(copy_vector(l, w->q_norm, layer->q_norm, l->cuda->arch->head_dim, err));
    return copy_vector(l, w->k_norm, layer->k_norm, l->cuda->arch->head_dim, err);
}

static headrace_status load_ffn(loader *l, const hr_cuda_layer *layer, const hr_ffn_weights *w, uint32_t stack,
                                headrace_error *err)
{
    HR_PASS(copy_matrix(l, &w->gate, &(destination){.to = layer->gate_up, .group = 0, .stack = stack}, err));
    HR_PASS(copy_matrix(l, &w->up, &(destination){.to = layer->gate_up, .group = 1, .stack = stack}, err));
    return copy_matrix(l, &w->down, &(destination){.to = layer->down, .stack = stack}, err);
}

static hrk_matrix router_of(const hr_cuda *cuda, const hr_cuda_layer *layer)
{
    return (hrk_matrix){.data = layer->router,
                        .rows = cuda->arch->n_experts,
                        .cols = cuda->arch->hidden_size,
                        .n_groups = 1,
                        .n_stack = 1,
                        .layout = HRK_ROW_MAJOR};
}

static headrace_status load_layer(loader *l, const hr_cuda_layer *layer, headrace_error *err)
{
    const hr_layer *source = layer->source;
    const hr_arch *arch = l->cuda->arch;
    hrk_matrix router = router_of(l->cuda, layer);

    HR_PASS(copy_vector(l, source->operator_norm, layer->operator_norm, arch->hidden_size, err));
    HR_PASS(copy_vector(l, source->ffn_norm, layer->ffn_norm, arch->hidden_size, err));
    if (source->operator== HR_OPERATOR_CONV)
        HR_PASS(load_conv(l, layer, err));
    else
        HR_PASS(load_attention(l, layer, err));
    if (!source->is_moe)
        return load_ffn(l, layer, &source->dense, 0, err);
    HR_PASS(copy_matrix(l, &source->router, &(destination){.to = router}, err));
    HR_PASS(copy_vector(l, source->expert_bias, layer->expert_bias, arch->n_experts, err));
    for (uint32_t e = 0; e < arch->n_experts; e++)
        HR_PASS(load_ffn(l, layer, &source->experts[e], e, err));
    return HEADRACE_OK;
}

static headrace_status fill_random(hr_cuda *cuda, hrk_matrix matrix, uint64_t seed, headrace_error *err)
{
    hrk_launch on = {.stream = cuda->stream, .n_sms = cuda->device.n_sms};
    hrk_random_args args = {.to = (hrk_bf16 *)(uintptr_t)matrix.data,
                            .rows = matrix.rows,
                            .cols = matrix.cols,
                            .n_groups = matrix.n_groups,
                            .n_stack = matrix.n_stack,
                            .layout = matrix.layout,
                            .seed = seed,
                            .deviation = 1 / sqrtf((float)matrix.cols)};

    HR_CUDA_TRY(cuda, hrk_random(&args, &on));
    return HEADRACE_OK;
}

/* A model without weights gets random ones where they lie. */
static headrace_status fill_dummy(hr_cuda *cuda, hrk_matrix embedding, headrace_error *err)
{
    HR_PASS(fill_random(cuda, embedding, 1, err));
    if (cuda->head.data != cuda->embedding)
        HR_PASS(fill_random(cuda, cuda->head, 2, err));
    for (uint32_t i = 0; i < cuda->arch->n_layers; i++) {
        const hr_cuda_layer *layer = &cuda->layers[i];
        const hrk_matrix all[] = {layer->in, layer->out, layer->gate_up, layer->down, router_of(cuda, layer)};

        for (uint32_t j = 0; j < sizeof all / sizeof *all; j++) {
            if (all[j].data)
                HR_PASS(fill_random(cuda, all[j], 16 + 8 * (uint64_t)i + j, err));
        }
    }
    return HEADRACE_OK;
}

static headrace_status load(loader *l, headrace_error *err)
{
    hr_cuda *cuda = l->cuda;
    const hr_model *model = cuda->model;
    hrk_matrix embedding = {.data = cuda->embedding,
                            .rows = model->embedding.rows,
                            .cols = model->embedding.cols,
                            .n_groups = 1,
                            .n_stack = 1,
                            .layout = HRK_ROW_MAJOR};

    HR_PASS(copy_matrix(l, &model->embedding, &(destination){.to = embedding}, err));
    if (cuda->head.data != cuda->embedding)
        HR_PASS(copy_matrix(l, &model->head, &(destination){.to = cuda->head}, err));
    HR_PASS(copy_vector(l, model->final_norm, cuda->final_norm, model->arch.hidden_size, err));
    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        HR_TRY(load_layer(l, &cuda->layers[i], err), "copying layer %u to the GPU", i);
    HR_PASS(copy_rope(l, err));
    return model->is_dummy ? fill_dummy(cuda, embedding, err) : HEADRACE_OK;
}

static uint64_t bytes_of(const hr_matrix *w)
{
    return (uint64_t)w->rows * w->row_bytes;
}

/* Bytes of the file's matrices, each as often as it is copied. */
static uint64_t total_bytes(const hr_cuda *cuda)
{
    const hr_model *model = cuda->model;
    uint64_t sum = bytes_of(&model->embedding);

    if (cuda->head.data != cuda->embedding)
        sum += bytes_of(&model->head);
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        const hr_layer *layer = &model->layers[i];
        uint32_t n = layer->is_moe ? model->arch.n_experts : 1;

        sum += bytes_of(&layer->conv.in_proj) + bytes_of(&layer->conv.out_proj);
        sum += bytes_of(&layer->attention.q) + bytes_of(&layer->attention.k) + bytes_of(&layer->attention.v);
        sum += bytes_of(&layer->attention.out);
        if (layer->is_moe)
            sum += bytes_of(&layer->router);
        for (uint32_t e = 0; e < n; e++) {
            const hr_ffn_weights *w = layer->is_moe ? &layer->experts[e] : &layer->dense;

            sum += bytes_of(&w->gate) + bytes_of(&w->up) + bytes_of(&w->down);
        }
    }
    return sum;
}

/* Columns of the widest matrix. */
static size_t widest(const hr_cuda *cuda)
{
    const hr_arch *arch = cuda->arch;
    size_t cols = arch->hidden_size, heads = (size_t)arch->n_heads * arch->head_dim;

    cols = heads > cols ? heads : cols;
    for (uint32_t i = 0; i < arch->n_layers; i++) {
        const hr_layer *layer = &cuda->model->layers[i];
        size_t width = layer->is_moe ? arch->expert_ffn_dim : layer->dense.gate.rows;

        cols = width > cols ? width : cols;
    }
    return cols;
}

size_t hr_cuda_staging_bytes(const hr_cuda *cuda)
{
    size_t row = widest(cuda) * sizeof(float), all = row * cuda->arch->vocab_size;

    all = all < HR_CUDA_STAGING_BYTES ? all : HR_CUDA_STAGING_BYTES;
    all = all > row ? all : row;
    if (cuda->keeps_quantised && all < row * STRIP) /* a strip of any format; the least a piece can be */
        all = row * STRIP;
    return (all + HR_CUDA_ALIGNMENT - 1) / HR_CUDA_ALIGNMENT * HR_CUDA_ALIGNMENT;
}

static headrace_status open_loader(loader *l, headrace_error *err)
{
    l->total = total_bytes(l->cuda);
    l->row = calloc(widest(l->cuda), sizeof *l->row);
    if (!l->row)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a row of %zu weights", widest(l->cuda));
    for (uint32_t i = 0; i < BUFFERS; i++) {
        HR_CUDA_TRY(l->cuda, cudaMallocHost((void **)&l->host[i], l->cuda->staging_bytes));
        HR_CUDA_TRY(l->cuda, cudaEventCreateWithFlags(&l->free[i], cudaEventDisableTiming));
        l->device[i] = l->cuda->scratch + i * l->cuda->staging_bytes;
    }
    return HEADRACE_OK;
}

static void close_loader(loader *l)
{
    for (uint32_t i = 0; i < BUFFERS; i++) {
        if (l->free[i])
            (void)cudaEventDestroy(l->free[i]);
        (void)cudaFreeHost(l->host[i]);
    }
    free(l->row);
}

headrace_status hr_cuda_load_weights(hr_cuda *cuda, headrace_error *err)
{
    loader l = {.cuda = cuda};
    headrace_status status;

    HR_TRY_GOTO(done, open_loader(&l, err));
    HR_TRY_GOTO(done, load(&l, err));
    status = hr_cuda_check(cuda, (int)cudaMemsetAsync(cuda->scratch, 0, BUFFERS * cuda->staging_bytes, cuda->stream),
                           "cudaMemsetAsync", err);
done:
    /* Also after a failure: the buffers must not be freed under a copy. */
    if (cuda->stream) {
        headrace_error ignored = {0};
        headrace_status waited = hr_cuda_check(cuda, (int)cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize",
                                               status == HEADRACE_OK ? err : &ignored);

        status = status == HEADRACE_OK ? waited : status;
    }
    close_loader(&l);
    return status;
}
