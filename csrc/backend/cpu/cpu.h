/* One instance of the CPU backend: what its files share. Included by csrc/backend/cpu only.
 *
 * A step is a list of stages with a barrier between each two; a stage is one loop over independent pieces of work.
 * Every buffer is made at open for the largest batch. Shapes use the letters of model.h; T is the rows of the batch at
 * hand, but buffers are sized for options.max_rows.
 *
 * Layouts that the backend chooses:
 *   page   [n_attention_layers, Nkv, {keys [D, P], values [P, D]}] in kv_dtype, rounded up to 64 bytes: what one head
 *          reads of a page is contiguous
 *   slot   [n_conv_layers, H / HR_CPU_CHANNELS, L-1, HR_CPU_CHANNELS] fp32, oldest column first: one
 * piece of the convolution's work (a block of channels) has its state in one place
 */
#ifndef HR_BACKEND_CPU_CPU_H
#define HR_BACKEND_CPU_CPU_H

#include "backend/cpu/cpu_kernels.h"
#include "backend/cpu/cpu_pool.h"
#include "backend/cpu/cpu_weights.h"

enum {
    HR_CPU_ALIGNMENT = 64,
    HR_CPU_CHANNELS = 128, /* channels in one piece of convolution work */
    HR_CPU_TILE_MAX = 64,  /* outputs in one piece of a matrix product */
    HR_CPU_TILE_MIN = 16,
    HR_CPU_TILE_SOLO = 256, /* the same with one or two rows */
};

/* What one thread has for itself. */
typedef struct hr_cpu_worker {
    void *linear_scratch; /* kernels->linear_scratch_bytes of the widest matrix, at least HR_CPU_PACKED_SCRATCH */
    float *tile;          /* [2, max_rows, HR_CPU_TILE_MAX]: gate and up before they are multiplied */
    float *attention;     /* kernels->attention_scratch_floats */
    float *head;          /* [D] */
    float *router_row;    /* [H], one row of the router in fp32 */
    float *expert_scores; /* [E] */
    bool *expert_taken;   /* [E] */
    hr_sampler *sampler;
} hr_cpu_worker;

/* Rows prepared for products, in each of the two forms; one that no matrix wants is not made. */
typedef struct hr_cpu_prepared {
    unsigned char *rows[HR_CPU_ROWS_KINDS];
} hr_cpu_prepared;

/* One matrix product over rows, as a piece of a stage: out = W in (+ bias), and residual += out if there is one; or,
 * with `up`, out = silu(W in) * (up in) (equation 15). */
typedef struct hr_cpu_product {
    const hr_matrix *w, *up;
    hr_cpu_prepared in; /* rows of w->cols, as w and up want them */
    uint32_t n_rows;
    float *out;          /* [n_rows, w->rows] */
    const float *bias;   /* [w->rows] or NULL */
    float *residual;     /* [n_rows, w->rows] or NULL */
    uint32_t first_tile; /* filled by hr_cpu_multiply */
} hr_cpu_product;

typedef struct hr_cpu {
    hr_backend base;
    const hr_model *model;
    const hr_arch *arch;
    const hr_cpu_kernels *kernels;
    hr_cpu_weights weights;
    hr_backend_options options;
    hr_cpu_pool *pool;
    uint32_t n_threads, n_steps_begun;
    uint32_t n_valid_ids; /* ids that may be sampled */
    uint32_t max_context; /* positions that one span's pages can cover */
    uint32_t logit_rows;  /* rows of logits held at a time */

    /* What outlives a step. */
    hr_kv_dtype kv_dtype;
    size_t kv_value_bytes, kv_head_bytes, page_bytes; /* one value; one head's keys of one page; a page */
    size_t slot_values;
    uint32_t n_pages, n_slots;
    unsigned char *kv;   /* [n_pages, page_bytes] */
    float *state;        /* [n_slots, slot_values] */
    int32_t *slot_token; /* [n_slots], the id last sampled, or -1 */
    size_t kv_bytes, state_bytes, scratch_bytes;
    void *scratch; /* everything below */

    hr_batch batches[2];
    hr_cpu_worker *workers; /* [n_threads] */
    double *rope_rate;      /* [D / 2], theta^(-2j/D) */

    /* The step at hand. */
    const hr_batch *batch;
    uint32_t n_rows;
    uint32_t *row_span;         /* [T] */
    float *rope_cos, *rope_sin; /* [T, D / 2] */
    float *x;                   /* [T, H], the residual stream */
    float *norm;                /* [T, H], normalised rows; then B x of the convolution */
    float *mix;                 /* [T, max(H, Nq D)], what goes into the operator's output projection */
    float *out;                 /* [T, H], what operator or feed-forward adds */
    float *wide;                /* [T, max(3H, (Nq + 2 Nkv) D)]: B, C, x rows; or q, k, v blocks */
    float *q, *k, *v;           /* inside wide: [T, Nq D], [T, Nkv D], [T, Nkv D] */
    hr_cpu_prepared prepared;   /* [T] rows of max(H, Nq D) */
    float *act;                 /* [T, F] or [T K, M], between the two halves of a feed-forward */
    hr_cpu_prepared act_rows;   /* rows of act; and before that the rows gathered for experts */
    float *logits;              /* [logit_rows, V] */
    uint32_t *attention_rows;   /* [T + 1], first rows of the tiles that attention works in */
    /* Products of rows and key-value heads up to which attention is split by segments, because whole contexts would
     * not keep all threads busy; and their states, [attention_split, segments of max_context]. */
    uint32_t attention_split;
    float *attention_states;
    size_t attention_state_floats;

    /* Mixture layers. */
    float *router_logits;     /* [T, E] */
    uint32_t *router_ids;     /* [T, K], best first */
    float *router_weights;    /* [T, K] */
    uint32_t *expert_first;   /* [E + 1]: rows of expert e lie at [first[e], first[e + 1]) of the gathered rows */
    uint32_t *place;          /* [T, K]: where the gathered row of (row, rank) lies */
    uint32_t *gathered_row;   /* [T K]: the row that a gathered row was taken from */
    float *expert_out;        /* [T K, H] */
    hr_cpu_product *products; /* [E] */
    float *tap_act;           /* [T, K M]: act by rows; with taps only */
} hr_cpu;

static inline void hr_cpu_tap(const hr_cpu *cpu, hr_tap tap, uint32_t layer, const float *data, uint32_t rows,
                              uint32_t cols)
{
    if (cpu->options.tap)
        cpu->options.tap(cpu->options.tap_user, tap, layer, data, rows, cols);
}

/* Segments of attention that a context touches. */
static inline uint32_t hr_cpu_segments(uint32_t n_context)
{
    return (n_context + HR_ATTENTION_SEGMENT - 1) / HR_ATTENTION_SEGMENT;
}

/* Rows in one run of a loop over rows of n values: enough to be worth handing to another thread. */
static inline uint32_t hr_cpu_row_grain(uint32_t n)
{
    return n >= 8192 ? 1 : 8192 / (n > 0 ? n : 1);
}

/* A set of hr_cpu_rows, one bit each. */
typedef uint32_t hr_cpu_row_kinds;
static inline hr_cpu_row_kinds hr_cpu_kinds_of(const hr_matrix *w)
{
    return 1u << hr_cpu_rows_of(w);
}

/* Bytes from one row of `cols` values to the next. */
static inline size_t hr_cpu_row_bytes(const hr_cpu *cpu, hr_cpu_rows kind, uint32_t cols)
{
    return kind == HR_CPU_ROWS_INT8 ? hr_int8_row_bytes(cols) : cpu->kernels->prepared_bytes(cols);
}

/* cpu_linear.c: one stage that does n products side by side (they share no outputs). */
void hr_cpu_multiply(hr_cpu *cpu, hr_cpu_product *products, uint32_t n);
/* Prepares one row in each of `kinds`; row r of `to`. */
void hr_cpu_prepare_row(const hr_cpu *cpu, const float *in, uint32_t cols, hr_cpu_row_kinds kinds,
                        const hr_cpu_prepared *to, size_t r);
/* Prepares n_rows rows of `cols` values in each of `kinds`: what the matrices that follow want. */
void hr_cpu_prepare_rows(hr_cpu *cpu, const float *in, uint32_t cols, uint32_t n_rows, hr_cpu_row_kinds kinds,
                         const hr_cpu_prepared *to);
/* Equation 2 for every row of x into norm, and prepared. */
void hr_cpu_norm_rows(hr_cpu *cpu, const float *weight, hr_cpu_row_kinds kinds);

/* The two operators (equations 4-7 and 8-14): from norm and prepared to out, added to x. */
void hr_cpu_conv(hr_cpu *cpu, const hr_layer *layer, uint32_t index);
void hr_cpu_attention(hr_cpu *cpu, const hr_layer *layer, uint32_t index);
/* The two feed-forwards (15 and 16-19), likewise. */
void hr_cpu_ffn(hr_cpu *cpu, const hr_layer *layer, uint32_t index);
void hr_cpu_moe(hr_cpu *cpu, const hr_layer *layer, uint32_t index);
/* What the matrices want that read the rows of either. */
hr_cpu_row_kinds hr_cpu_ffn_kinds(const hr_cpu *cpu, const hr_layer *layer);
/* cpu_head.c: equation 20 and sampling for the rows that are outputs. */
void hr_cpu_head(hr_cpu *cpu);

headrace_status hr_cpu_step(hr_cpu *cpu, hr_batch *batch, headrace_error *err);

#endif
