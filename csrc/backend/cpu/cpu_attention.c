/* The attention operator (docs/lfm2.md, equations 8 to 14) over the spans of a batch.
 *
 * Keys and values of all rows are stored before any row attends, so a prefill chunk reads its own keys from the pages
 * like those of the past: one code path for prefill, decode and warm-up rows. Warm-up rows store nothing; theirs are in
 * the pages already, and exact, while the ones computed here are not (docs/design/prefix-cache.md).
 */
#include "backend/cpu/cpu.h"

#include <math.h>

enum { INLINE_WORK = 1 << 15 };

typedef struct attention_stage {
    hr_cpu *cpu;
    const hr_layer *layer;
} attention_stage;

static uint32_t position_of(const hr_cpu *cpu, uint32_t row)
{
    const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];

    return span->start_position + (row - span->first_row);
}

/* Where this layer's keys of one head begin inside a page; the values follow them. */
static size_t head_offset(const hr_cpu *cpu, const hr_layer *layer, uint32_t kv_head)
{
    return ((size_t)layer->state_index * cpu->arch->n_kv_heads + kv_head) * 2 * cpu->kv_head_bytes;
}

/* Equations 9 and 10 for one head, in place. */
static void norm_and_turn(const hr_cpu *cpu, hr_cpu_worker *worker, const float *weight, uint32_t row, float *x)
{
    uint32_t half = cpu->arch->head_dim / 2;
    const float *cosine = cpu->rope_cos + (size_t)row * half, *sine = cpu->rope_sin + (size_t)row * half;
    const float *n = worker->head;

    cpu->kernels->rmsnorm(x, weight, 2 * half, cpu->arch->norm_eps, worker->head);
    for (uint32_t j = 0; j < half; j++) {
        x[j] = n[j] * cosine[j] - n[j + half] * sine[j];
        x[j + half] = n[j + half] * cosine[j] + n[j] * sine[j];
    }
}

static void store_row(hr_cpu *cpu, const hr_layer *layer, uint32_t row)
{
    const hr_arch *arch = cpu->arch;
    const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];
    uint32_t position = position_of(cpu, row), P = cpu->options.page_tokens, D = arch->head_dim;
    unsigned char *page = cpu->kv + cpu->batch->pages[span->page_first + position / P] * cpu->page_bytes;

    for (uint32_t h = 0; h < arch->n_kv_heads; h++) {
        unsigned char *keys = page + head_offset(cpu, layer, h) + (size_t)(position % P) * D * cpu->kv_value_bytes;
        size_t at = ((size_t)row * arch->n_kv_heads + h) * D;

        cpu->kernels->store_kv(cpu->k + at, D, cpu->kv_dtype, keys);
        cpu->kernels->store_kv(cpu->v + at, D, cpu->kv_dtype, keys + cpu->kv_head_bytes);
    }
}

static void turn_loop(void *user, uint32_t worker_index, uint32_t begin, uint32_t end)
{
    const attention_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    const hr_attention_weights *w = &stage->layer->attention;
    hr_cpu_worker *worker = &cpu->workers[worker_index];
    size_t D = cpu->arch->head_dim, Nq = cpu->arch->n_heads, Nkv = cpu->arch->n_kv_heads;

    for (uint32_t row = begin; row < end; row++) {
        const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];

        for (size_t h = 0; h < Nq; h++)
            norm_and_turn(cpu, worker, w->q_norm, row, cpu->q + (row * Nq + h) * D);
        for (size_t h = 0; h < Nkv; h++)
            norm_and_turn(cpu, worker, w->k_norm, row, cpu->k + (row * Nkv + h) * D);
        if (row - span->first_row >= span->n_warmup)
            store_row(cpu, stage->layer, row);
    }
}

/* Pieces are numbered head by head, so that a run of them reads the same head's pages. */
static void attend_loop(void *user, uint32_t worker_index, uint32_t begin, uint32_t end)
{
    const attention_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    const hr_arch *arch = cpu->arch;
    uint32_t group = arch->n_heads / arch->n_kv_heads, D = arch->head_dim;
    float scale = 1.0f / sqrtf((float)D);

    for (uint32_t i = begin; i < end; i++) {
        uint32_t kv_head = i / cpu->n_rows, row = i % cpu->n_rows;
        const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];
        size_t at = ((size_t)row * arch->n_heads + (size_t)kv_head * group) * D;
        hr_kv_view view = {.pool = cpu->kv,
                           .pages = cpu->batch->pages + span->page_first,
                           .page_bytes = cpu->page_bytes,
                           .k_offset = head_offset(cpu, stage->layer, kv_head),
                           .v_offset = head_offset(cpu, stage->layer, kv_head) + cpu->kv_head_bytes,
                           .page_tokens = cpu->options.page_tokens,
                           .head_dim = D,
                           .dtype = cpu->kv_dtype};

        cpu->kernels->attention(cpu->q + at, group, &view, position_of(cpu, row) + 1, scale,
                                cpu->workers[worker_index].scores, cpu->mix + at);
    }
}

static void attend(attention_stage *stage)
{
    hr_cpu *cpu = stage->cpu;
    uint32_t n_items = cpu->n_rows * cpu->arch->n_kv_heads, grain = n_items / (16 * cpu->n_threads);
    uint64_t work = 0;

    for (uint32_t i = 0; i < cpu->batch->n_spans; i++) {
        const hr_span *span = &cpu->batch->spans[i];

        work +=
            (uint64_t)span->n_rows * (span->start_position + span->n_rows) * cpu->arch->n_heads * cpu->arch->head_dim;
    }
    if (work < INLINE_WORK)
        grain = n_items;
    hr_cpu_pool_run(cpu->pool, n_items, grain > 0 ? grain : 1, attend_loop, stage);
}

void hr_cpu_attention(hr_cpu *cpu, const hr_layer *layer, uint32_t index)
{
    const hr_attention_weights *w = &layer->attention;
    uint32_t T = cpu->n_rows, q_cols = w->q.rows, kv_cols = w->k.rows;
    attention_stage stage = {cpu, layer};
    hr_cpu_product qkv[3] = {
        {.w = &w->q, .in = cpu->prepared, .n_rows = T, .out = cpu->q},
        {.w = &w->k, .in = cpu->prepared, .n_rows = T, .out = cpu->k},
        {.w = &w->v, .in = cpu->prepared, .n_rows = T, .out = cpu->v},
    };
    hr_cpu_product out = {.w = &w->out, .in = cpu->prepared, .n_rows = T, .out = cpu->out, .residual = cpu->x};

    hr_cpu_multiply(cpu, qkv, 3);
    hr_cpu_pool_run(cpu->pool, T, hr_cpu_row_grain(q_cols + 2 * kv_cols), turn_loop, &stage);
    hr_cpu_tap(cpu, HR_TAP_Q, index, cpu->q, T, q_cols);
    hr_cpu_tap(cpu, HR_TAP_K, index, cpu->k, T, kv_cols);
    hr_cpu_tap(cpu, HR_TAP_V, index, cpu->v, T, kv_cols);
    attend(&stage);
    hr_cpu_tap(cpu, HR_TAP_ATTENTION, index, cpu->mix, T, q_cols);
    hr_cpu_prepare_rows(cpu, cpu->mix, q_cols, T, hr_cpu_kinds_of(&w->out), &cpu->prepared);
    hr_cpu_multiply(cpu, &out, 1);
}
