/* The two feed-forwards: dense (docs/lfm2.md, equation 15) and a mixture of experts (16 to 19).
 *
 * In a mixture the rows are gathered by expert, so that an expert's weights are read once a step for all rows that
 * chose it; experts nobody chose are not touched. Each row then adds its K results in its own order (best expert
 * first), so the sum does not depend on who else was in the batch.
 *
 * The router runs in fp32 on fp32 rows whatever the table of kernels: a rounding there does not change a number a
 * little, it picks another expert. Its sum is taken in sixteen interleaved lanes, a fixed order that compilers can
 * vectorise.
 */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

enum { LANES = 16, INLINE_WORK = 1 << 14 };

void hr_cpu_ffn(hr_cpu *cpu, const hr_layer *layer, uint32_t index)
{
    const hr_ffn_weights *w = &layer->dense;
    uint32_t T = cpu->n_rows;
    hr_cpu_product gated = {.w = &w->gate, .up = &w->up, .in = cpu->prepared, .n_rows = T, .out = cpu->act};
    hr_cpu_product down = {.w = &w->down, .in = cpu->act_rows, .n_rows = T, .out = cpu->out, .residual = cpu->x};

    hr_cpu_multiply(cpu, &gated, 1);
    hr_cpu_tap(cpu, HR_TAP_FFN_ACT, index, cpu->act, T, w->gate.rows);
    hr_cpu_prepare_rows(cpu, cpu->act, w->gate.rows, T, hr_cpu_kinds_of(&w->down), &cpu->act_rows);
    hr_cpu_multiply(cpu, &down, 1);
}

typedef struct moe_stage {
    hr_cpu *cpu;
    const hr_layer *layer;
    hr_cpu_row_kinds in_kinds, down_kinds; /* what the experts' matrices want */
} moe_stage;

hr_cpu_row_kinds hr_cpu_ffn_kinds(const hr_cpu *cpu, const hr_layer *layer)
{
    hr_cpu_row_kinds kinds = 0;

    if (!layer->is_moe)
        return hr_cpu_kinds_of(&layer->dense.gate) | hr_cpu_kinds_of(&layer->dense.up);
    for (uint32_t e = 0; e < cpu->arch->n_experts; e++)
        kinds |= hr_cpu_kinds_of(&layer->experts[e].gate) | hr_cpu_kinds_of(&layer->experts[e].up);
    return kinds;
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float lane[LANES] = {0}, sum = 0;
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        for (uint32_t l = 0; l < LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    }
    for (uint32_t l = 0; i < n; i++, l++)
        lane[l] += a[i] * b[i];
    for (uint32_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* Router logits of experts [begin, end) for every row. */
static void router_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const moe_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    const hr_matrix *w = &stage->layer->router;
    float *weights = cpu->workers[worker].router_row;

    for (uint32_t e = begin; e < end; e++) {
        hr_dequantize(w->dtype, (const unsigned char *)w->data + (size_t)e * w->row_bytes, weights, w->cols);
        for (size_t r = 0; r < cpu->n_rows; r++)
            cpu->router_logits[r * w->rows + e] = dot(weights, cpu->norm + r * w->cols, w->cols);
    }
}

/* Equations 16 to 18 for one row. */
static void choose(const hr_cpu *cpu, const hr_layer *layer, hr_cpu_worker *worker, const float *logits, uint32_t *ids,
                   float *weights)
{
    const hr_arch *arch = cpu->arch;
    uint32_t E = arch->n_experts, K = arch->n_experts_used;
    float *score = worker->expert_scores, sum = 0;

    for (uint32_t e = 0; e < E; e++) {
        score[e] = 1.0f / (1.0f + expf(-logits[e])) + (layer->expert_bias ? layer->expert_bias[e] : 0.0f);
        worker->expert_taken[e] = false;
    }
    for (uint32_t k = 0; k < K; k++) {
        uint32_t best = E;

        for (uint32_t e = 0; e < E; e++) {
            if (!worker->expert_taken[e] && (best == E || score[e] > score[best]))
                best = e;
        }
        worker->expert_taken[best] = true;
        ids[k] = best;
        weights[k] = 1.0f / (1.0f + expf(-logits[best]));
        sum += weights[k];
    }
    for (uint32_t k = 0; k < K; k++) {
        if (arch->norm_topk_prob)
            weights[k] /= sum + 1e-6f;
        weights[k] *= arch->routed_scaling_factor;
    }
}

static void choose_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const moe_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    size_t E = cpu->arch->n_experts, K = cpu->arch->n_experts_used;

    for (size_t r = begin; r < end; r++)
        choose(cpu, stage->layer, &cpu->workers[worker], cpu->router_logits + r * E, cpu->router_ids + r * K,
               cpu->router_weights + r * K);
}

/* Counts rows an expert and gives each (row, rank) its place among the gathered rows; rows ascend within an expert. */
static void place_rows(hr_cpu *cpu)
{
    uint32_t E = cpu->arch->n_experts, K = cpu->arch->n_experts_used, n = cpu->n_rows * K;
    uint32_t *first = cpu->expert_first;

    memset(first, 0, (E + 1) * sizeof *first);
    for (uint32_t i = 0; i < n; i++)
        first[cpu->router_ids[i] + 1]++;
    for (uint32_t e = 0; e < E; e++)
        first[e + 1] += first[e];
    for (uint32_t i = 0; i < n; i++) {
        cpu->place[i] = first[cpu->router_ids[i]]++;
        cpu->gathered_row[cpu->place[i]] = i / K;
    }
    /* Each entry now holds the end of its expert, which is the beginning of the next. */
    memmove(first + 1, first, E * sizeof *first);
    first[0] = 0;
}

static void gather_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const moe_stage *stage = user;
    const hr_cpu *cpu = stage->cpu;

    (void)worker;
    for (uint32_t kind = 0; kind < HR_CPU_ROWS_KINDS; kind++) {
        size_t row_bytes = hr_cpu_row_bytes(cpu, (hr_cpu_rows)kind, cpu->arch->hidden_size);

        for (size_t i = begin; (stage->in_kinds & 1u << kind) && i < end; i++)
            memcpy(cpu->act_rows.rows[kind] + i * row_bytes,
                   cpu->prepared.rows[kind] + cpu->gathered_row[i] * row_bytes, row_bytes);
    }
}

static void combine_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    hr_cpu *cpu = ((const moe_stage *)user)->cpu;
    size_t H = cpu->arch->hidden_size, K = cpu->arch->n_experts_used;

    (void)worker;
    for (size_t r = begin; r < end; r++) {
        float *out = cpu->out + r * H;

        memset(out, 0, H * sizeof *out);
        for (size_t k = 0; k < K; k++)
            cpu->kernels->add_scaled(out, cpu->expert_out + cpu->place[r * K + k] * H, cpu->router_weights[r * K + k],
                                     (uint32_t)H);
        cpu->kernels->add_scaled(cpu->x + r * H, out, 1.0f, (uint32_t)H);
    }
}

/* Router logits, choices and places of all rows. */
static void route(moe_stage *stage, uint32_t index)
{
    hr_cpu *cpu = stage->cpu;
    const hr_arch *arch = cpu->arch;
    uint32_t T = cpu->n_rows, E = arch->n_experts, K = arch->n_experts_used;
    bool is_small = (uint64_t)T * E * arch->hidden_size < INLINE_WORK;

    hr_cpu_pool_run(cpu->pool, E, is_small ? E : 4, router_loop, stage);
    hr_cpu_pool_run(cpu->pool, T, hr_cpu_row_grain(E * (K + 4)), choose_loop, stage);
    place_rows(cpu);
    if (!cpu->options.tap)
        return;
    for (size_t i = 0; i < (size_t)T * K; i++)
        cpu->out[i] = (float)cpu->router_ids[i];
    hr_cpu_tap(cpu, HR_TAP_ROUTER_LOGITS, index, cpu->router_logits, T, E);
    hr_cpu_tap(cpu, HR_TAP_ROUTER_IDS, index, cpu->out, T, K);
    hr_cpu_tap(cpu, HR_TAP_ROUTER_WEIGHTS, index, cpu->router_weights, T, K);
}

/* One product for every expert that has rows; returns how many. */
static uint32_t list_products(hr_cpu *cpu, const hr_layer *layer, bool is_down)
{
    const hr_arch *arch = cpu->arch;
    uint32_t n = 0;
    uint32_t in_cols = is_down ? arch->expert_ffn_dim : arch->hidden_size;

    for (uint32_t e = 0; e < arch->n_experts; e++) {
        const hr_ffn_weights *w = &layer->experts[e];
        size_t first = cpu->expert_first[e];
        uint32_t n_rows = cpu->expert_first[e + 1] - cpu->expert_first[e];
        hr_cpu_product *p = &cpu->products[n];

        if (n_rows == 0)
            continue;
        *p = (hr_cpu_product){.n_rows = n_rows};
        for (uint32_t kind = 0; kind < HR_CPU_ROWS_KINDS; kind++)
            p->in.rows[kind] = cpu->act_rows.rows[kind] + first * hr_cpu_row_bytes(cpu, (hr_cpu_rows)kind, in_cols);
        p->w = is_down ? &w->down : &w->gate;
        p->up = is_down ? NULL : &w->up;
        p->out = is_down ? cpu->expert_out + first * arch->hidden_size : cpu->act + first * arch->expert_ffn_dim;
        n++;
    }
    return n;
}

/* The gathered rows of act by rows of the batch. They lie by expert, so a row's lowest place is its lowest expert. */
static void tap_act(hr_cpu *cpu, uint32_t index)
{
    size_t K = cpu->arch->n_experts_used, M = cpu->arch->expert_ffn_dim;

    if (!cpu->options.tap)
        return;
    for (size_t r = 0; r < cpu->n_rows; r++) {
        uint32_t from = 0;

        for (size_t i = 0; i < K; i++) {
            uint32_t lowest = UINT32_MAX;

            for (size_t k = 0; k < K; k++) {
                uint32_t place = cpu->place[r * K + k];

                lowest = place >= from && place < lowest ? place : lowest;
            }
            memcpy(cpu->tap_act + (r * K + i) * M, cpu->act + lowest * M, M * sizeof *cpu->act);
            from = lowest + 1;
        }
    }
    hr_cpu_tap(cpu, HR_TAP_FFN_ACT, index, cpu->tap_act, cpu->n_rows, (uint32_t)(K * M));
}

void hr_cpu_moe(hr_cpu *cpu, const hr_layer *layer, uint32_t index)
{
    moe_stage stage = {.cpu = cpu, .layer = layer, .in_kinds = hr_cpu_ffn_kinds(cpu, layer)};
    uint32_t H = cpu->arch->hidden_size, n_gathered = cpu->n_rows * cpu->arch->n_experts_used;

    for (uint32_t e = 0; e < cpu->arch->n_experts; e++)
        stage.down_kinds |= hr_cpu_kinds_of(&layer->experts[e].down);
    route(&stage, index);
    hr_cpu_pool_run(cpu->pool, n_gathered, hr_cpu_row_grain(H), gather_loop, &stage);
    hr_cpu_multiply(cpu, cpu->products, list_products(cpu, layer, false));
    tap_act(cpu, index);
    hr_cpu_prepare_rows(cpu, cpu->act, cpu->arch->expert_ffn_dim, n_gathered, stage.down_kinds, &cpu->act_rows);
    hr_cpu_multiply(cpu, cpu->products, list_products(cpu, layer, true));
    hr_cpu_pool_run(cpu->pool, cpu->n_rows, hr_cpu_row_grain(H), combine_loop, &stage);
}
