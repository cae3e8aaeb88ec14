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
    uint32_t n_tiles;                  /* of rows */
    uint32_t n_segments, max_segments; /* of the longest context of the batch, and of any */
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
        unsigned char *keys = page + head_offset(cpu, layer, h), *values = keys + cpu->kv_head_bytes;
        size_t at = ((size_t)row * arch->n_kv_heads + h) * D, slot = position % P;

        hr_cpu_store_key(cpu->k + at, D, cpu->kv_dtype, P, keys + slot * cpu->kv_value_bytes);
        cpu->kernels->store_kv(cpu->v + at, D, cpu->kv_dtype, values + slot * D * cpu->kv_value_bytes);
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

/* Rows [row, row + n_rows) of one span, all heads of one key-value head. */
static hr_attention attention_of(const attention_stage *stage, hr_kv_view *view, uint32_t row, uint32_t n_rows,
                                 uint32_t kv_head)
{
    const hr_cpu *cpu = stage->cpu;
    const hr_arch *arch = cpu->arch;
    const hr_span *span = &cpu->batch->spans[cpu->row_span[row]];
    uint32_t D = arch->head_dim, group = arch->n_heads / arch->n_kv_heads;
    size_t at = ((size_t)row * arch->n_heads + (size_t)kv_head * group) * D;

    *view = (hr_kv_view){.pool = cpu->kv,
                         .pages = cpu->batch->pages + span->page_first,
                         .page_bytes = cpu->page_bytes,
                         .k_offset = head_offset(cpu, stage->layer, kv_head),
                         .v_offset = head_offset(cpu, stage->layer, kv_head) + cpu->kv_head_bytes,
                         .page_tokens = cpu->options.page_tokens,
                         .head_dim = D,
                         .dtype = cpu->kv_dtype};
    return (hr_attention){.kv = view,
                          .q = cpu->q + at,
                          .out = cpu->mix + at,
                          .row_stride = (size_t)arch->n_heads * D,
                          .n_rows = n_rows,
                          .n_heads = group,
                          .n_context = position_of(cpu, row) + 1,
                          .scale = 1.0f / sqrtf((float)D)};
}

/* Pieces are tiles of neighbouring rows, numbered head by head, so that a run of them reads the same head's pages. */
static void attend_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const attention_stage *stage = user;
    hr_cpu *cpu = stage->cpu;

    for (uint32_t i = begin; i < end; i++) {
        uint32_t tile = i % stage->n_tiles, row = cpu->attention_rows[tile];
        hr_kv_view view;
        hr_attention job = attention_of(stage, &view, row, cpu->attention_rows[tile + 1] - row, i / stage->n_tiles);

        cpu->kernels->attention(&job, cpu->workers[worker].attention);
    }
}

/* Where the states of one row and key-value head begin, max_segments of them. */
static float *states_of(const attention_stage *stage, uint32_t row, uint32_t kv_head)
{
    const hr_cpu *cpu = stage->cpu;
    size_t i = (size_t)row * cpu->arch->n_kv_heads + kv_head;

    return cpu->attention_states + i * stage->max_segments * cpu->attention_state_floats;
}

/* Pieces are (key-value head, row, segment). */
static void segment_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const attention_stage *stage = user;
    hr_cpu *cpu = stage->cpu;

    for (uint32_t i = begin; i < end; i++) {
        uint32_t segment = i % stage->n_segments, row = i / stage->n_segments % cpu->n_rows;
        uint32_t kv_head = i / stage->n_segments / cpu->n_rows;
        hr_kv_view view;
        hr_attention job = attention_of(stage, &view, row, 1, kv_head);

        if (segment * HR_ATTENTION_SEGMENT < job.n_context)
            cpu->kernels->attention_segment(&job, segment, cpu->workers[worker].attention,
                                            states_of(stage, row, kv_head) + segment * cpu->attention_state_floats);
    }
}

static void join_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const attention_stage *stage = user;
    hr_cpu *cpu = stage->cpu;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t row = i % cpu->n_rows, kv_head = i / cpu->n_rows;
        hr_kv_view view;
        hr_attention job = attention_of(stage, &view, row, 1, kv_head);

        cpu->kernels->attention_join(&job, states_of(stage, row, kv_head));
    }
}

/* Cuts the batch's rows into tiles that do not cross spans; returns how many. */
static uint32_t cut_tiles(hr_cpu *cpu)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < cpu->batch->n_spans; i++) {
        const hr_span *span = &cpu->batch->spans[i];

        for (uint32_t r = 0; r < span->n_rows; r += HR_ATTENTION_ROWS)
            cpu->attention_rows[n++] = span->first_row + r;
    }
    cpu->attention_rows[n] = cpu->n_rows;
    return n;
}

/* A thread takes tiles of rows; with too few of them for all threads, segments of one row's context. The result is the
 * same to the bit. */
static void attend(attention_stage *stage)
{
    hr_cpu *cpu = stage->cpu;
    uint32_t n_kv_heads = cpu->arch->n_kv_heads, longest = 0, n_items, grain;
    uint64_t work = 0;

    for (uint32_t i = 0; i < cpu->batch->n_spans; i++) {
        const hr_span *span = &cpu->batch->spans[i];
        uint32_t n_context = span->start_position + span->n_rows;

        work += (uint64_t)span->n_rows * n_context * cpu->arch->n_heads * cpu->arch->head_dim;
        longest = n_context > longest ? n_context : longest;
    }
    stage->n_segments = hr_cpu_segments(longest);
    if (stage->n_segments > 1 && cpu->n_rows * n_kv_heads <= cpu->attention_split) {
        hr_cpu_pool_run(cpu->pool, cpu->n_rows * n_kv_heads * stage->n_segments, 1, segment_loop, stage);
        hr_cpu_pool_run(cpu->pool, cpu->n_rows * n_kv_heads, n_kv_heads, join_loop, stage);
        return;
    }
    stage->n_tiles = cut_tiles(cpu);
    n_items = stage->n_tiles * n_kv_heads;
    grain = work < INLINE_WORK ? n_items : n_items / (16 * cpu->n_threads);
    hr_cpu_pool_run(cpu->pool, n_items, grain > 0 ? grain : 1, attend_loop, stage);
}

void hr_cpu_attention(hr_cpu *cpu, const hr_layer *layer, uint32_t index)
{
    const hr_attention_weights *w = &layer->attention;
    uint32_t T = cpu->n_rows, q_cols = w->q.rows, kv_cols = w->k.rows;
    attention_stage stage = {.cpu = cpu, .layer = layer, .max_segments = hr_cpu_segments(cpu->max_context)};
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
