/* The inner loops of the CPU backend: one table of functions per instruction set.
 *
 * "plain" is the definition: fp32, loops in plain order, reads like docs/lfm2.md. The vector tables ("avx2", "avx512",
 * "avx512-bf16") stand beside it. Which one runs is chosen at start by hr_cpu_kernels_select, and only after the table
 * proved itself on this machine: CPUs exist that list an instruction set and fault on it.
 *
 * Batch invariance is a promise of every table: what a function computes for a row depends on that row alone. The
 * number of rows in the call, the range of outputs, the thread and the tile never change the order of additions within
 * one result. The engine's strongest tests (equal to the solo run, bit for bit) stand on this.
 *
 * Pure functions: no allocation, no global state, any thread. Pointers need no alignment unless said.
 */
#ifndef HR_BACKEND_CPU_CPU_KERNELS_H
#define HR_BACKEND_CPU_CPU_KERNELS_H

#include "backend/backend.h"
#include "backend/cpu/cpu_pack.h"

/* What a matrix wants the rows as that it is multiplied with: WIDE, in the table's own form (fp32, bf16 pairs...), for
 * matrices in the file's layout; INT8, an hr_int8_row (cpu_pack.h), for packed ones. */
typedef enum hr_cpu_rows { HR_CPU_ROWS_WIDE, HR_CPU_ROWS_INT8, HR_CPU_ROWS_KINDS } hr_cpu_rows;

static inline hr_cpu_rows hr_cpu_rows_of(const hr_matrix *w)
{
    return w->is_packed ? HR_CPU_ROWS_INT8 : HR_CPU_ROWS_WIDE;
}

enum { HR_CPU_PACKED_SCRATCH = 256 * 1024 /* bytes of scratch that linear_packed may use */ };

/* Where one sequence's keys and values of one attention layer and one key-value head lie: page i holds positions
 * [i P, (i+1) P); keys at page_base[i] + k_offset as [D, P] in kv_dtype (hr_cpu_store_key), so that one component of
 * neighbouring positions is a vector; values at + v_offset as [P, D]. */
typedef struct hr_kv_view {
    const unsigned char *pool; /* start of all pages */
    const uint32_t *pages;     /* page numbers of the sequence */
    size_t page_bytes, k_offset, v_offset;
    uint32_t page_tokens, head_dim;
    hr_kv_dtype dtype; /* BF16 or F32 */
} hr_kv_view;

enum {
    HR_ATTENTION_ROWS = 8,      /* at most in one call */
    HR_ATTENTION_SEGMENT = 512, /* positions that one state describes */
};

/* Rows of one sequence at neighbouring positions, and the G query heads that share a key-value head. */
typedef struct hr_attention {
    const hr_kv_view *kv;
    const float *q;           /* row r's heads at q + r * row_stride, [G, D], after norm and RoPE */
    float *out;               /* likewise */
    size_t row_stride;        /* floats */
    uint32_t n_rows, n_heads; /* 1 .. HR_ATTENTION_ROWS; G */
    uint32_t n_context;       /* row r attends positions 0 .. n_context + r - 1 */
    float scale;              /* of scores, before the softmax in fp32 */
} hr_attention;

static inline size_t hr_attention_padded(uint32_t n)
{
    return ((size_t)n + 15) / 16 * 16;
}
/* Floats of the state of n_queries = n_rows * n_heads after one segment. */
static inline size_t hr_attention_state_floats(uint32_t n_queries, uint32_t head_dim)
{
    return 2 * hr_attention_padded(n_queries) + n_queries * hr_attention_padded(head_dim);
}

/* Writes the key of one position, n components P apart, from dst on: the place of its component 0. */
void hr_cpu_store_key(const float *x, uint32_t n, hr_kv_dtype dtype, uint32_t page_tokens, void *dst);

typedef struct hr_cpu_kernels {
    const char *name;

    /* Activations as the product wants them (bf16 pairs, fp32...). Prepared rows are 64-byte aligned and
     * prepared_bytes(cols) apart (a multiple of 64). */
    size_t (*prepared_bytes)(uint32_t cols);
    void (*prepare)(const float *x, uint32_t cols, void *prepared);

    /* y[r * y_stride + o - begin] = sum_c W[o, c] x[r, c] for o in [begin, end), r in [0, n_rows). Any dtype of w.
     * scratch: linear_scratch_bytes(cols), 64-byte aligned, of the calling thread. */
    size_t (*linear_scratch_bytes)(uint32_t cols);
    void (*linear)(const hr_matrix *w, uint32_t begin, uint32_t end, const void *prepared, uint32_t n_rows, float *y,
                   size_t y_stride, void *scratch);

    /* The same two for packed matrices (cpu_pack.h has the arithmetic, which is one to the bit for all tables). cols is
     * a multiple of 32; row: hr_int8_row_bytes(cols), 64-byte aligned. Every array of the row is written up to its n
     * blocks. */
    void (*prepare_int8)(const float *x, uint32_t cols, void *row);
    /* begin is a multiple of HR_PACK_ROWS; end also, or w->rows. rows: [n_rows] rows, hr_int8_row_bytes(w->cols) apart.
     * Exactly end - begin values of each row of y are written. scratch: HR_CPU_PACKED_SCRATCH bytes, 64-byte aligned,
     * of the calling thread. */
    void (*linear_packed)(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows, float *y,
                          size_t y_stride, void *scratch);

    /* y = w * x / sqrt(mean(x^2) + eps) over n values. */
    void (*rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    /* y[i] = silu(gate[i]) * up[i]; y may be gate. */
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *y);
    /* y[i] += x[i] * scale */
    void (*add_scaled)(float *y, const float *x, float scale, uint32_t n);

    /* Causal attention. scratch: attention_scratch_floats, 64-byte aligned, of the calling thread; max_context is the
     * largest n_context of any row. */
    size_t (*attention_scratch_floats)(uint32_t n_heads, uint32_t head_dim, uint32_t max_context);
    void (*attention)(const hr_attention *job, float *scratch);
    /* The same to the bit in pieces that several threads can do: the state of each segment of HR_ATTENTION_SEGMENT
     * positions that a row reaches (segment s begins at s * HR_ATTENTION_SEGMENT), then all of them, one after the
     * other in memory, joined to job->out; the first state is overwritten. NULL in the plain table. */
    void (*attention_segment)(const hr_attention *job, uint32_t segment, float *scratch, float *state);
    void (*attention_join)(const hr_attention *job, float *states);
    /* Stores one head's value vector in the page dtype. */
    void (*store_kv)(const float *x, uint32_t n, hr_kv_dtype dtype, void *dst);

    /* One row of the gated convolution's middle, for n channels: u = b * x; y = c * (sum_j taps[h, j] * window), where
     * the window of channel h is the L-1 values state[j * n + h] (j = 0 oldest) and u last; then the state moves on by
     * one. bias is conv_bias or NULL. bx receives u. */
    void (*conv_row)(const float *b, const float *c, const float *x, const float *taps, const float *bias, uint32_t n,
                     uint32_t length, float *state, float *bx, float *y);
} hr_cpu_kernels;

extern const hr_cpu_kernels hr_cpu_kernels_plain;
#ifdef __x86_64__ /* to be called only where hr_cpu_kernels_at says that they are usable */
extern const hr_cpu_kernels hr_cpu_kernels_avx2, hr_cpu_kernels_avx2_vnni;
extern const hr_cpu_kernels hr_cpu_kernels_avx512, hr_cpu_kernels_avx512_vnni, hr_cpu_kernels_avx512_bf16,
    hr_cpu_kernels_avx512_amx;
#endif

/* The best table that this machine grants and that passed its self-test, or plain for exact. HEADRACE_CPU (an
 * environment variable naming a table) lowers the choice. Decided once per process; thread-safe. */
const hr_cpu_kernels *hr_cpu_kernels_select(bool exact);
/* Table i that was compiled in, or NULL past the end; *is_usable says whether this machine runs it, by a self-test the
 * first time (milliseconds). Thread-safe. For tests and doctor. */
const hr_cpu_kernels *hr_cpu_kernels_at(uint32_t i, bool *is_usable);

#endif
