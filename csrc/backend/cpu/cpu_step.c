/* One step: the walk over the layer table (docs/lfm2.md, equations 1 to 3 and 20). */
#include "backend/check.h"
#include "backend/cpu/cpu.h"

#include <math.h>

static int32_t token_of(const hr_cpu *cpu, uint32_t row)
{
    int32_t id = cpu->batch->token_ids[row];

    return id == HR_TOKEN_FROM_SLOT ? cpu->slot_token[cpu->batch->spans[cpu->row_span[row]].state_slot] : id;
}

/* A row of a tied embedding is read from the packed head: the file's pages, which come in runs of 64 KiB around each
 * row, would soon hold the embedding a second time. */
static void embed_row(const hr_cpu *cpu, uint32_t id, float *x)
{
    const hr_matrix *w = &cpu->model->embedding;

    if (cpu->model->is_tied && cpu->weights.head.is_packed)
        hr_pack_read_row(&cpu->weights.head, id, x);
    else
        hr_dequantize(w->dtype, (const unsigned char *)w->data + (size_t)id * w->row_bytes, x, w->cols);
}

/* Equation 1, and the cosines and sines of equation 10, which all attention layers share. */
static void embed_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    hr_cpu *cpu = user;
    uint32_t half = cpu->arch->head_dim / 2;

    (void)worker;
    for (uint32_t row = begin; row < end; row++) {
        const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];
        double position = (double)(span->start_position + (row - span->first_row));

        embed_row(cpu, (uint32_t)token_of(cpu, row), cpu->x + (size_t)row * cpu->arch->hidden_size);
        for (uint32_t j = 0; j < half; j++) {
            cpu->rope_cos[(size_t)row * half + j] = (float)cos(position * cpu->rope_rate[j]);
            cpu->rope_sin[(size_t)row * half + j] = (float)sin(position * cpu->rope_rate[j]);
        }
    }
}

/* What the matrices want that read the operator's rows. */
static hr_cpu_row_kinds operator_kinds(const hr_layer *layer)
{
    if (layer->operator== HR_OPERATOR_CONV)
        return hr_cpu_kinds_of(&layer->conv.in_proj);
    return hr_cpu_kinds_of(&layer->attention.q) | hr_cpu_kinds_of(&layer->attention.k) |
           hr_cpu_kinds_of(&layer->attention.v);
}

/* Equation 3. */
static void run_layer(hr_cpu *cpu, uint32_t index)
{
    const hr_layer *layer = &cpu->weights.layers[index];
    uint32_t T = cpu->n_rows, H = cpu->arch->hidden_size;

    hr_cpu_norm_rows(cpu, layer->operator_norm, operator_kinds(layer));
    hr_cpu_tap(cpu, HR_TAP_OPERATOR_NORM, index, cpu->norm, T, H);
    switch (layer->operator) {
    case HR_OPERATOR_CONV:
        hr_cpu_conv(cpu, layer, index);
        break;
    case HR_OPERATOR_ATTENTION:
        hr_cpu_attention(cpu, layer, index);
        break;
    }
    hr_cpu_tap(cpu, HR_TAP_OPERATOR_OUT, index, cpu->out, T, H);

    hr_cpu_norm_rows(cpu, layer->ffn_norm, hr_cpu_ffn_kinds(cpu, layer));
    hr_cpu_tap(cpu, HR_TAP_FFN_NORM, index, cpu->norm, T, H);
    if (layer->is_moe)
        hr_cpu_moe(cpu, layer, index);
    else
        hr_cpu_ffn(cpu, layer, index);
    hr_cpu_tap(cpu, HR_TAP_FFN_OUT, index, cpu->out, T, H);
    hr_cpu_tap(cpu, HR_TAP_LAYER_OUT, index, cpu->x, T, H);
}

headrace_status hr_cpu_step(hr_cpu *cpu, hr_batch *batch, headrace_error *err)
{
    const hr_batch_limits limits = {.options = &cpu->options,
                                    .n_pages = cpu->n_pages,
                                    .n_slots = cpu->n_slots,
                                    .max_context = cpu->max_context,
                                    .vocab_size = cpu->arch->vocab_size,
                                    .slot_token = cpu->slot_token};

    HR_PASS(hr_batch_check(&limits, batch, cpu->row_span, err));
    cpu->batch = batch;
    cpu->n_rows = batch->n_rows;
    hr_cpu_pool_run(cpu->pool, cpu->n_rows, hr_cpu_row_grain(cpu->arch->hidden_size), embed_loop, cpu);
    hr_cpu_tap(cpu, HR_TAP_EMBED, 0, cpu->x, cpu->n_rows, cpu->arch->hidden_size);
    for (uint32_t i = 0; i < cpu->arch->n_layers; i++)
        run_layer(cpu, i);
    hr_cpu_head(cpu);
    return HEADRACE_OK;
}
