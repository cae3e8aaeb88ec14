/* Final norm, logits and sampling of the rows that are outputs (docs/lfm2.md, equation 20).
 *
 * Logits are large (V fp32 values a row), so outputs go through in groups: a prompt whose every position is scored
 * needs no more memory than a short answer, at the price of reading the head once a group.
 *
 * The taps of this file carry layer n_layers and come once a group, in the order of the outputs.
 */
#include "backend/cpu/cpu.h"

#include <string.h>

typedef struct head_stage {
    hr_cpu *cpu;
    const hr_batch *batch;
    uint32_t first; /* output of the first row of logits */
} head_stage;

static void final_norm_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const head_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    uint32_t H = cpu->arch->hidden_size;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        float *row = cpu->norm + (size_t)i * H;

        cpu->kernels->rmsnorm(cpu->x + (size_t)stage->batch->outputs[stage->first + i].row * H, cpu->model->final_norm,
                              H, cpu->arch->norm_eps, row);
        hr_cpu_prepare_row(cpu, row, H, hr_cpu_kinds_of(&cpu->weights.head), &cpu->prepared, i);
    }
}

static void sample_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const head_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    hr_sampler *sampler = cpu->workers[worker].sampler;
    size_t V = cpu->arch->vocab_size;

    for (uint32_t i = begin; i < end; i++) {
        const hr_output *output = &stage->batch->outputs[stage->first + i];
        hr_sample *sample = &stage->batch->samples[stage->first + i];
        float *logits = cpu->logits + i * V;

        *sample = (hr_sample){.id = -1};
        if (output->logits)
            memcpy(output->logits, logits, V * sizeof *logits);
        if (output->score_id >= 0)
            hr_score_token(sampler, logits, cpu->n_valid_ids, output->score_id, output->n_logprobs, sample);
        else if (output->sampling)
            hr_sample_token(sampler, logits, cpu->n_valid_ids, output->sampling, &output->history, output->n_logprobs,
                            sample);
    }
}

/* What the next step may ask for by HR_TOKEN_FROM_SLOT. */
static void remember_tokens(hr_cpu *cpu, const hr_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_output *output = &batch->outputs[i];

        if (output->sampling && output->score_id < 0 && !batch->samples[i].is_bad)
            cpu->slot_token[batch->spans[cpu->row_span[output->row]].state_slot] = batch->samples[i].id;
    }
}

void hr_cpu_head(hr_cpu *cpu)
{
    const hr_batch *batch = cpu->batch;
    uint32_t H = cpu->arch->hidden_size, V = cpu->arch->vocab_size, n_layers = cpu->arch->n_layers;

    for (uint32_t first = 0; first < batch->n_outputs; first += cpu->logit_rows) {
        uint32_t n = batch->n_outputs - first < cpu->logit_rows ? batch->n_outputs - first : cpu->logit_rows;
        head_stage stage = {cpu, batch, first};
        hr_cpu_product head = {.w = &cpu->weights.head, .in = cpu->prepared, .n_rows = n, .out = cpu->logits};

        hr_cpu_pool_run(cpu->pool, n, hr_cpu_row_grain(H), final_norm_loop, &stage);
        hr_cpu_tap(cpu, HR_TAP_FINAL_NORM, n_layers, cpu->norm, n, H);
        hr_cpu_multiply(cpu, &head, 1);
        hr_cpu_tap(cpu, HR_TAP_LOGITS, n_layers, cpu->logits, n, V);
        hr_cpu_pool_run(cpu->pool, n, hr_cpu_row_grain(V), sample_loop, &stage);
    }
    remember_tokens(cpu, batch);
}
