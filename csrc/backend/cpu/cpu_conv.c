/* The short-convolution operator (docs/lfm2.md, equations 4 to 7) over the spans of a batch.
 *
 * A span's rows must be taken in order, because each moves the state on; channels and spans are independent. A piece of
 * work is therefore one block of channels of one span, and the state, which lies in the same blocks, stays in the
 * nearest cache while the rows go by. It is the slot's own memory: chunks of any length leave it as one whole pass
 * would.
 */
#include "backend/cpu/cpu.h"

#include <string.h>

typedef struct conv_stage {
    hr_cpu *cpu;
    const hr_layer *layer;
    uint32_t n_blocks;
} conv_stage;

static void conv_span_block(const conv_stage *stage, const hr_span *span, uint32_t first)
{
    hr_cpu *cpu = stage->cpu;
    const hr_conv_weights *w = &stage->layer->conv;
    size_t H = cpu->arch->hidden_size, L = cpu->arch->conv_length;
    uint32_t n = H - first < HR_CPU_CHANNELS ? (uint32_t)(H - first) : HR_CPU_CHANNELS;
    float *state =
        cpu->state + span->state_slot * cpu->slot_values + stage->layer->state_index * (L - 1) * H + (L - 1) * first;

    if (span->is_fresh)
        memset(state, 0, (L - 1) * n * sizeof *state);
    for (size_t r = span->first_row; r < span->first_row + span->n_rows; r++) {
        const float *bcx = cpu->wide + r * 3 * H + first;

        cpu->kernels->conv_row(bcx, bcx + H, bcx + 2 * H, w->taps + first * L,
                               w->conv_bias ? w->conv_bias + first : NULL, n, (uint32_t)L, state,
                               cpu->norm + r * H + first, cpu->mix + r * H + first);
    }
}

static void conv_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const conv_stage *stage = user;

    (void)worker;
    for (uint32_t i = begin; i < end; i++)
        conv_span_block(stage, &stage->cpu->batch->spans[i / stage->n_blocks], i % stage->n_blocks * HR_CPU_CHANNELS);
}

void hr_cpu_conv(hr_cpu *cpu, const hr_layer *layer, uint32_t index)
{
    const hr_conv_weights *w = &layer->conv;
    uint32_t T = cpu->n_rows, H = cpu->arch->hidden_size;
    conv_stage stage = {cpu, layer, (H + HR_CPU_CHANNELS - 1) / HR_CPU_CHANNELS};
    hr_cpu_product in = {.w = &w->in_proj, .in = cpu->prepared, .n_rows = T, .out = cpu->wide, .bias = w->in_bias};
    hr_cpu_product out = {
        .w = &w->out_proj, .in = cpu->prepared, .n_rows = T, .out = cpu->out, .bias = w->out_bias, .residual = cpu->x};

    hr_cpu_multiply(cpu, &in, 1);
    hr_cpu_pool_run(cpu->pool, cpu->batch->n_spans * stage.n_blocks,
                    (uint64_t)T * H < 8192 ? cpu->batch->n_spans * stage.n_blocks : 1, conv_loop, &stage);
    hr_cpu_tap(cpu, HR_TAP_CONV_BX, index, cpu->norm, T, H);
    hr_cpu_tap(cpu, HR_TAP_CONV_Y, index, cpu->mix, T, H);
    hr_cpu_prepare_rows(cpu, cpu->mix, H, T, hr_cpu_kinds_of(&w->out_proj), &cpu->prepared);
    hr_cpu_multiply(cpu, &out, 1);
}
