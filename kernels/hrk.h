/* The C seam of the kernels: what host code calls, and the shapes of what lies in device memory.
 *
 * kernels/ knows nothing of csrc/; csrc/backend/cuda includes this header and nothing else from here. Every function
 * only enqueues work on a stream: no allocation, no synchronisation, no host memory read after it returns. It returns
 * 0 or a cudaError_t. Every pointer in an args struct is a device pointer unless its comment says host.
 *
 * Sizes that change from step to step (rows, spans, outputs) are read by the kernels from device memory (hrk_step), so
 * that a captured graph stays valid; the host passes an upper bound (max_...) that only decides the grid. A kernel
 * never touches rows at or beyond the count of the step.
 *
 * Letters: T rows of the step, H hidden size, Nq / Nkv query and key-value heads, D head size, F or M feed-forward
 * width, E experts, K experts a token, L taps of the convolution, V vocabulary, P tokens a page. `ld(n)` is n rounded
 * up to a multiple of 64: the row stride, in elements, of every activation of n columns. Columns n .. ld(n)-1 are zero
 * and stay zero: every kernel that writes a row writes its padding too, and may read it.
 *
 * Rounding points are those of transformers in bf16 (docs/design/cuda.md has the table): activations are bf16, sums and
 * statistics fp32. No result depends on the order in which blocks run, and the numbers of a row do not depend on the
 * rows beside it.
 */
#ifndef HRK_H
#define HRK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define HRK_BOTH __host__ __device__ /* for the host's and the device's code */
#else
#define HRK_BOTH
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t hrk_bf16; /* bits of a bfloat16 */

struct CUstream_st;

/* Where and how to launch. */
typedef struct hrk_launch {
    struct CUstream_st *stream;
    uint32_t n_sms;    /* multiprocessors of the device: persistent grids are a multiple of it */
    bool programmatic; /* may start before the kernel before it in the stream has ended (it waits inside) */
    bool only_load;    /* load the kernel that these arguments choose and launch nothing */
} hrk_launch;

static inline HRK_BOTH uint32_t hrk_ld(uint32_t n)
{
    return (n + 63u) & ~63u;
}

/* Whether this thread's device can run the kernels as they were compiled: 0, or cudaErrorNoKernelImageForDevice (or
 * cudaErrorInvalidDeviceFunction) when there is no code for its architecture. */
int hrk_check_device(void);

/* ---------------------------------------------------------------- the step's tables */

enum { HRK_TOKEN_FROM_SLOT = -1 };
enum { HRK_BIAS_MAX = 1024, HRK_STOP_IDS_MAX = 24, HRK_TOP_MAX = 20, HRK_CONV_LENGTH_MAX = 8 };

/* Counts of the step at hand. Lies at the start of the upload block. Offsets are bytes from the block's start, each a
 * multiple of 16. */
typedef struct hrk_step {
    uint32_t n_rows, n_spans, n_outputs;
    uint32_t n_decode_items;  /* rows that attend as decode items (hrk_attention_args) */
    uint32_t n_prefill_tiles; /* tiles of prefill attention */
    uint32_t n_page_updates, n_sampling_updates, n_history_jobs;
    uint32_t
        tokens_at; /* int32_t [n_rows - n_slot_rows], HRK_TOKEN_FROM_SLOT or an id, of the rows from n_slot_rows on */
    uint32_t spans_at;      /* hrk_span [n_spans], rows ascending, no gaps */
    uint32_t outputs_at;    /* hrk_output [n_outputs], rows ascending */
    uint32_t pages_at;      /* hrk_page_update [n_page_updates] */
    uint32_t sampling_at;   /* hrk_sampling_update [n_sampling_updates], then their biases and stop ids */
    uint32_t history_at;    /* hrk_history_job [n_history_jobs], then their ids */
    uint32_t decode_at;     /* hrk_decode_item [n_decode_items] */
    uint32_t prefill_at;    /* hrk_prefill_tile [n_prefill_tiles] */
    uint32_t n_chunk_items; /* (decode item, chunk) pairs: the decode items' chunks summed */
    uint32_t n_slot_rows;   /* the first so many rows take the id last sampled for their slot */
    uint32_t reserved[2];
} hrk_step; /* 80 bytes */

/* Consecutive rows of one sequence. */
typedef struct hrk_span {
    uint32_t first_row, n_rows;
    uint32_t start_position;
    uint32_t slot;     /* names the row of the page table, next_token, the sampling table and the penalty table */
    int32_t state_in;  /* convolution state to start from; -1: zeros */
    int32_t state_out; /* where the state after the last row goes; never equal to any state_in of the step */
    uint32_t n_warmup; /* the first n_warmup rows write no keys and values */
} hrk_span;

/* A row whose logits are wanted; 16 bytes, because the host sends one a decode row and step. */
typedef struct hrk_output {
    uint32_t row, slot;
    int32_t score_id;        /* >= 0: report this id instead of sampling */
    uint32_t n_logprobs : 7; /* one more than the alternatives to report; 0: no log probabilities at all */
    uint32_t draw : 24;      /* index of the output token, from 0: the draw's position (hr_history) */
    uint32_t is_sampled : 1; /* 0: logits only */
} hrk_output;

/* page_table[slot * max_pages + index] = page. */
typedef struct hrk_page_update {
    uint32_t slot, index, page, reserved;
} hrk_page_update;

/* Sampling parameters of a slot, as hr_sampling_params (csrc/backend/sampling.h), which states their meaning. */
typedef struct hrk_sampling {
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    uint32_t min_tokens;
    uint64_t seed;
    uint32_t n_bias, n_stop_ids;
} hrk_sampling;
typedef struct hrk_bias {
    int32_t id;
    float value;
} hrk_bias;
typedef struct hrk_sampling_update {
    hrk_sampling sampling;
    uint32_t slot;
    uint32_t bias_at; /* hrk_bias [n_bias]; bytes from the upload block's start */
    uint32_t stop_at; /* int32_t [n_stop_ids] */
    uint32_t reserved;
} hrk_sampling_update;

/* Ids that a slot's penalties look at, to be added to its counts. */
typedef struct hrk_history_job {
    uint32_t slot;
    uint32_t reset;              /* forget what the slot had before */
    uint32_t ids_at;             /* int32_t [n_prompt + n_output]; bytes from the upload block's start */
    uint32_t n_prompt, n_output; /* how many of them are prompt, then how many output */
    uint32_t reserved[3];
} hrk_history_job;
/* The penalty table's entry: bit 15 set if the id is in the prompt, bits 0-14 how often it is in the output
 * (saturating). */
enum { HRK_SEEN_IN_PROMPT = 0x8000, HRK_OUTPUT_COUNT = 0x7fff };

/* Attention work. Generated rows (and drafts) attend as decode items, prompt rows as prefill tiles, whatever the batch,
 * so that a request's numbers do not depend on how its rows were cut into steps. */
enum { HRK_DECODE_CHUNK = 512, HRK_PREFILL_TILE = 64 };
typedef struct hrk_decode_item {
    uint32_t row, slot;
    uint32_t n_keys;      /* positions 0 .. n_keys-1 are attended to */
    uint32_t first_chunk; /* ordinal of its first chunk item; n_chunks = ceil(n_keys / HRK_DECODE_CHUNK) */
} hrk_decode_item;
typedef struct hrk_prefill_tile {
    uint32_t first_row, n_rows; /* at most HRK_PREFILL_TILE rows of one span */
    uint32_t slot;
    uint32_t first_position; /* of first_row; row i attends to positions 0 .. first_position + i */
} hrk_prefill_tile;

/* Tables that live across steps; written by hrk_step_begin and the sampler. */
typedef struct hrk_tables {
    const hrk_step *step; /* the upload block on the device */
    int32_t *next_token;  /* [slots] id last sampled for a slot */
    uint32_t *page_table; /* [slots, max_pages] */
    uint32_t max_pages;
    hrk_sampling *sampling; /* [slots] */
    hrk_bias *bias;         /* [slots, HRK_BIAS_MAX] */
    int32_t *stop_ids;      /* [slots, HRK_STOP_IDS_MAX] */
    uint16_t *seen;         /* [slots, seen_ld] penalty table */
    uint32_t seen_ld;       /* V rounded up to a multiple of 8 */
    /* Of the step at hand, written by hrk_step_begin. */
    int32_t *row_token;     /* [T] ids, HRK_TOKEN_FROM_SLOT resolved */
    uint32_t *row_position; /* [T] */
    uint32_t *row_span;     /* [T] */
} hrk_tables;

/* ---------------------------------------------------------------- weights */

/* Row-major: [rows, ld(cols)] bf16, padding zero.
 * Tiled (docs/design/cuda.md): blocks of 64 rows x 64 columns in 128-byte-swizzle order, 8 KiB each: row r of a block
 * at byte r * 128, its 16-byte chunk c at position c ^ (r & 7). A strip is 64 rows of one group member; strip s of all
 * n_groups members lies together: block (s, k, g) at index (s * ld(cols)/64 + k) * n_groups + g. rows are those of one
 * member, padded to ld(rows) with zeros. gate and up are 2 groups, B, C and x of in_proj 3, everything else 1.
 * A stack of experts is E such matrices one after the other.
 * Quantised tiles hold the bits of a GGUF block format, and stand for the bf16 values that its dequantised fp32 values
 * round to. A strip's blocks are in the same order; a block is four slices of 16 rows, hrk_slice_bytes each
 * (linear/quantised.h has the bits). Formats with 256 values a block keep their fp16 scales in the `head` of every
 * fourth column block's slices, from the first on; their cols are multiples of 256, those of others of 32. */
typedef enum hrk_layout {
    HRK_ROW_MAJOR,
    HRK_TILED,
    HRK_TILED_Q4_0,
    HRK_TILED_Q8_0,
    HRK_TILED_Q4_K,
    HRK_TILED_Q5_K,
    HRK_TILED_Q6_K
} hrk_layout;
static inline HRK_BOTH bool hrk_is_quantised(hrk_layout layout)
{
    return layout > HRK_TILED;
}
typedef struct hrk_slice {
    uint32_t bytes, head; /* of 16 rows x 64 columns; head more where the column block's number is a multiple of 4 */
} hrk_slice;
static inline HRK_BOTH hrk_slice hrk_slice_of(hrk_layout layout)
{
    hrk_slice s = {64 + 512, 0}; /* scales, then four bits a value */

    if (layout == HRK_TILED_Q8_0)
        s.bytes += 512;
    if (layout == HRK_TILED_Q5_K)
        s.bytes += 128;
    if (layout == HRK_TILED_Q6_K)
        s.bytes += 256;
    if (layout == HRK_TILED_Q4_K || layout == HRK_TILED_Q5_K)
        s.head = 64;
    if (layout == HRK_TILED_Q6_K)
        s.head = 32;
    return s;
}
typedef struct hrk_matrix {
    const hrk_bf16 *data; /* quantised: its bytes */
    uint32_t rows,
        cols;          /* of one group member; row-major groups lie one after the other: [n_groups * rows, ld(cols)] */
    uint32_t n_groups; /* 1, 2 or 3 */
    uint32_t n_stack;  /* experts, else 1 */
    hrk_layout layout;
} hrk_matrix;
/* bf16 values of one stack member that is not quantised. */
static inline HRK_BOTH size_t hrk_matrix_values(uint32_t rows, uint32_t cols, uint32_t n_groups, hrk_layout layout)
{
    size_t r = layout == HRK_TILED ? hrk_ld(rows) : rows;

    return r * n_groups * hrk_ld(cols);
}
/* Bytes of one stack member, in any layout. */
static inline HRK_BOTH size_t hrk_matrix_bytes(uint32_t rows, uint32_t cols, uint32_t n_groups, hrk_layout layout)
{
    hrk_slice s = hrk_slice_of(layout);
    size_t blocks = hrk_ld(cols) / 64, slices = (size_t)(hrk_ld(rows) / 16) * n_groups;

    if (!hrk_is_quantised(layout))
        return hrk_matrix_values(rows, cols, n_groups, layout) * sizeof(hrk_bf16);
    return slices * (blocks * s.bytes + (blocks + 3) / 4 * s.head);
}

typedef enum hrk_source { HRK_SOURCE_BF16, HRK_SOURCE_F16, HRK_SOURCE_F32 } hrk_source;
/* Converts rows [first_row, first_row + n_rows) of one group member of one stack member, lying dense and row-major in
 * `from` ([n_rows, cols], no padding), to bf16 (nearest, ties to even) and puts them where `layout` wants them. Writes
 * the column padding; row padding of a tiled matrix must be zeroed before. */
typedef struct hrk_pack_args {
    const void *from;
    hrk_source source;
    hrk_bf16 *to; /* of the matrix */
    uint32_t rows, cols, n_groups, group, stack;
    uint32_t first_row, n_rows;
    hrk_layout layout;
    bool pair_rotary; /* tiled, strips of one 64-dimension head (hrk_qkv): stored row 16 b + i (i < 8) is dimension 8 b
                         + i, stored row 16 b + 8 + i is dimension 8 b + i + 32, so that a rotation's two values meet in
                         a thread */
} hrk_pack_args;
int hrk_pack(const hrk_pack_args *args, const hrk_launch *on);

/* Puts rows [first_row, first_row + n_rows) of one group member of one stack member, lying in `from` as GGUF's blocks
 * of the layout's format, row after row, where the layout wants them: no bit of a value changes. Whole strips:
 * first_row is a multiple of 64, and so is n_rows or it ends at rows. Row and column padding is written too, as zeros.
 */
typedef struct hrk_pack_quantised_args {
    const void *from;
    void *to; /* of the matrix */
    uint32_t rows, cols, n_groups, group, stack;
    uint32_t first_row, n_rows;
    hrk_layout layout;
    bool pair_rotary; /* as in hrk_pack_args */
} hrk_pack_quantised_args;
int hrk_pack_quantised(const hrk_pack_quantised_args *args, const hrk_launch *on);

/* Random bf16 of mean 0 and standard deviation `deviation` (the sum of four uniforms), a pure function of seed and
 * index in the matrix's memory: dummy weights. Padding columns and rows are written as zeros. */
typedef struct hrk_random_args {
    hrk_bf16 *to; /* of the matrix: n_stack members of hrk_matrix_values values */
    uint32_t rows, cols, n_groups, n_stack;
    hrk_layout layout;
    uint64_t seed;
    float deviation;
} hrk_random_args;
int hrk_random(const hrk_random_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- step begin (io/) */

/* Resolves tokens and positions, applies page, sampling and history updates, embeds every row (equation 1) into x and
 * normalises it (equation 2) into xn. */
typedef struct hrk_step_begin_args {
    hrk_tables tables;
    uint32_t max_rows;
    const hrk_bf16 *embedding; /* [V, ld(H)], row-major */
    uint32_t H, V;
    const float *norm; /* [H] weight of the first operator norm */
    float eps;
    hrk_bf16 *x, *xn; /* [T, ld(H)] */
} hrk_step_begin_args;
int hrk_step_begin(const hrk_step_begin_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- norm/ */

/* xn = norm(x): statistics fp32, bf16(x * rstd), times weight, bf16. With outputs: row i of out is of row
 * outputs[i].row of x. */
typedef struct hrk_norm_args {
    hrk_tables tables;
    uint32_t max_rows; /* or outputs */
    bool of_outputs;
    const hrk_bf16 *x;   /* [T, ld(H)] */
    const float *weight; /* [H] */
    uint32_t H;
    float eps;
    hrk_bf16 *out; /* [T or n_outputs, ld(H)] */
} hrk_norm_args;
int hrk_norm(const hrk_norm_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- linear/ */

/* Which rows a product is over. */
typedef enum hrk_rows { HRK_ROWS_ALL, HRK_ROWS_OUTPUTS } hrk_rows;
typedef enum hrk_epilogue {
    HRK_STORE,    /* out bf16 [n, ld(rows)] = bf16(W in (+ bias)) */
    HRK_RESIDUAL, /* out bf16 += bf16(W in (+ bias)), sum rounded once more; same rows of out */
    HRK_STORE_F32 /* out fp32 [n, ld(rows)] = W in */
} hrk_epilogue;
typedef struct hrk_linear_args {
    hrk_tables tables;
    hrk_rows over;
    uint32_t max_rows;
    hrk_matrix w;       /* n_groups 1, or row-major 2 or 3 (then rows of all groups side by side) */
    const hrk_bf16 *in; /* [n, ld(cols)] */
    const float *bias;  /* [rows], NULL mostly */
    hrk_epilogue epilogue;
    void *out;
} hrk_linear_args;
/* Row-major weights: mma.sync kernel, any architecture from sm_80. Tiled, quantised or not: wgmma kernel, sm_90a. */
int hrk_linear(const hrk_linear_args *args, const hrk_launch *on);

/* h = bf16( bf16(silu(bf16 gate)) * bf16 up ) of every row (dense layers), or, with experts, of every (row, choice) in
 * expert order: row p of h is of row sorted[p] / K of in. */
typedef struct hrk_routing hrk_routing;
typedef struct hrk_gate_up_args {
    hrk_tables tables;
    uint32_t max_rows;
    hrk_matrix w;               /* n_groups 2: gate, up; n_stack E or 1 */
    const hrk_bf16 *in;         /* [T, ld(cols)] */
    const hrk_routing *routing; /* host pointer to device pointers; NULL for a dense layer */
    hrk_bf16 *h;                /* [T or T K, ld(rows)] */
} hrk_gate_up_args;
int hrk_gate_up(const hrk_gate_up_args *args, const hrk_launch *on);

/* y row p = bf16(W_e h_p), in expert order (dense layers use hrk_linear with HRK_RESIDUAL). A programmatic launch must
 * follow hrk_gate_up with the same routing (or any kernel that waited for hrk_route's end before it let others start):
 * the lists are read before that kernel has ended. */
typedef struct hrk_down_args {
    hrk_tables tables;
    uint32_t max_rows;
    hrk_matrix w;      /* n_groups 1, n_stack E */
    const hrk_bf16 *h; /* [T K, ld(cols)] */
    const hrk_routing *routing;
    hrk_bf16 *y; /* [T K, ld(rows)] */
} hrk_down_args;
int hrk_down(const hrk_down_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- moe/ */

/* Filled by hrk_route. */
struct hrk_routing {
    uint32_t E, K;
    uint32_t *ids;     /* [T, K] best first */
    float *weights;    /* [T, K], in the order of ids; values are bf16 */
    uint32_t *first;   /* [E + 1]: (row, choice) pairs of expert e are sorted[first[e] .. first[e + 1]) */
    uint32_t *sorted;  /* [T K] row * K + choice, by expert, then ascending */
    uint32_t *place;   /* [T, K]: the position in sorted */
    uint32_t *scratch; /* hrk_route_scratch bytes; zero before the first launch, zero again after each */
};
/* xn = ffn norm of x (equation 2); router logits bf16 (16); p = bf16 sigmoid; the K largest of p + bias, ties to the
 * lower id (17); weights bf16(p / bf16(sum + 1e-6)) if normalise, times scale in bf16 (18); then the lists. */
typedef struct hrk_route_args {
    hrk_tables tables;
    uint32_t max_rows;
    const hrk_bf16 *x; /* [T, ld(H)] */
    const float *norm; /* [H] */
    float eps;
    hrk_bf16 *xn;             /* [T, ld(H)] */
    const hrk_bf16 *router;   /* [E, ld(H)], row-major */
    const float *expert_bias; /* [E] or NULL */
    uint32_t H;
    bool normalise;
    float scale;
    hrk_bf16 *logits; /* [T, E], NULL unless a tap wants it */
    hrk_routing routing;
} hrk_route_args;
int hrk_route(const hrk_route_args *args, const hrk_launch *on);
size_t hrk_route_scratch(uint32_t max_rows, uint32_t E, uint32_t K);

/* x += sum over choices, best first, of bf16(y_j * w_j) (fp32 sum, rounded, then the residual sum rounded) (19), and,
 * if norm is not NULL, xn = norm(x). */
typedef struct hrk_combine_args {
    hrk_tables tables;
    uint32_t max_rows;
    const hrk_bf16 *y; /* [T K, ld(H)] */
    hrk_routing routing;
    uint32_t H;
    hrk_bf16 *x;       /* [T, ld(H)] */
    const float *norm; /* [H] */
    float eps;
    hrk_bf16 *xn;
    hrk_bf16 *sum; /* [T, ld(H)] what was added, NULL unless a tap wants it */
} hrk_combine_args;
int hrk_combine(const hrk_combine_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- conv/ */

/* Convolution state of one layer: state s, column j (oldest first), channel h at
 * base[s * state_stride + j * H + h]. */
typedef struct hrk_conv_state {
    hrk_bf16 *base;      /* of this layer inside the pool */
    size_t state_stride; /* values from one state to the next */
} hrk_conv_state;

/* Equations 4 to 6 and the gate of 7: y = bf16(C * bf16(conv(bf16(B * X)))), state carried. One fused kernel.
 * w tiled with n_groups 3 (sm_90a, L <= 4, no biases). */
typedef struct hrk_conv_in_args {
    hrk_tables tables;
    uint32_t max_rows;
    hrk_matrix w;       /* [H, H] x 3 groups B, C, X */
    const hrk_bf16 *in; /* [T, ld(H)] normalised rows */
    const float *taps;  /* [H, L] */
    uint32_t L;
    hrk_conv_state state;
    hrk_bf16 *y; /* [T, ld(H)] */
} hrk_conv_in_args;
int hrk_conv_in(const hrk_conv_in_args *args, const hrk_launch *on);

/* The same from B, C, X rows already multiplied (by hrk_linear): the reference, and the way for biases and other L. */
typedef struct hrk_conv_args {
    hrk_tables tables;
    uint32_t max_rows;
    const hrk_bf16 *bcx;    /* [T, ld(3H)]: B at 0, C at H, X at 2H */
    const float *taps;      /* [H, L] */
    const float *conv_bias; /* [H] or NULL */
    uint32_t H, L;
    hrk_conv_state state;
    hrk_bf16 *bx; /* [T, ld(H)] B * X, NULL unless a tap wants it */
    hrk_bf16 *y;
} hrk_conv_args;
int hrk_conv(const hrk_conv_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- attention/ */

/* Pages of keys and values of one layer. Page p, head b, keys (which 0) or values (which 1), offset o, dimension d at
 * base[p * page_stride + ((b * 2 + which) * P + o) * D + position of d]. With is_swizzled (D = 64 only) the 16-byte
 * chunk c of a row lies at c ^ (o & 7), so that one linear bulk copy lands in 128-byte-swizzle order; else rows are
 * plain. */
typedef struct hrk_kv {
    hrk_bf16 *base;     /* of this layer inside the page pool */
    size_t page_stride; /* values from one page to the next */
    uint32_t P, Nkv, D;
    bool is_swizzled;
} hrk_kv;

/* Equations 8 to 10 and the page write: q, k, v = W in; q and k normalised by head and rotated; k and v into their
 * pages unless the row is a warm-up row; q to its buffer. cos/sin from the table. One fused kernel (sm_90a, tiled w, D
 * = 64, a strip is one head: q heads, then k heads, then v heads). exact_rope: cosines, products and sum rounded to
 * bf16 as the reference. */
typedef struct hrk_qkv_args {
    hrk_tables tables;
    uint32_t max_rows;
    hrk_matrix w; /* [(Nq + 2 Nkv) D, H] */
    /* Of quantised w: q, k and v lie one after the other, each a matrix of its own format; w.layout is that of q. */
    hrk_layout k_layout, v_layout;
    const hrk_bf16 *in;
    const float *q_norm, *k_norm; /* [D] */
    float eps;
    const float *rope; /* [max_positions, D]: cosines of D/2 angles, then their sines */
    bool exact_rope;
    uint32_t Nq;
    hrk_kv kv;
    hrk_bf16 *q; /* [T, ld(Nq D)] */
} hrk_qkv_args;
int hrk_qkv(const hrk_qkv_args *args, const hrk_launch *on);

/* The same from rows already multiplied. Any even D up to 256. */
typedef struct hrk_qk_rope_args {
    hrk_tables tables;
    uint32_t max_rows;
    const hrk_bf16 *qkv; /* [T, ld((Nq + 2 Nkv) D)] */
    const float *q_norm, *k_norm;
    float eps;
    const float *rope;
    bool exact_rope;
    uint32_t Nq;
    hrk_kv kv;
    hrk_bf16 *q;
    hrk_bf16 *k_out, *v_out; /* [T, ld(Nkv D)], NULL unless a tap wants them */
} hrk_qk_rope_args;
int hrk_qk_rope(const hrk_qk_rope_args *args, const hrk_launch *on);

/* Equations 11 to 13 over the pages. P (probabilities) rounded to bf16 before they meet V, sums fp32, one rounding. */
typedef struct hrk_attention_args {
    hrk_tables tables;
    uint32_t max_decode_items, max_chunk_items, max_prefill_tiles;
    const hrk_bf16 *q; /* [T, ld(Nq D)] */
    uint32_t Nq;
    hrk_kv kv;
    hrk_bf16 *out; /* [T, ld(Nq D)] */
    void *scratch; /* hrk_attention_scratch bytes: partial results of chunks; counters zero before and after */
} hrk_attention_args;
size_t hrk_attention_scratch(uint32_t max_decode_items, uint32_t max_chunk_items, uint32_t Nq, uint32_t D);
int hrk_attention_simple(const hrk_attention_args *args, const hrk_launch *on);  /* all items and tiles; any D */
int hrk_attention_decode(const hrk_attention_args *args, const hrk_launch *on);  /* decode items; D = 64, swizzled */
int hrk_attention_prefill(const hrk_attention_args *args, const hrk_launch *on); /* prefill tiles; sm_90a, D = 64 */

/* ---------------------------------------------------------------- sampler (io/) */

typedef struct hrk_sample {
    int32_t id;
    uint32_t is_bad; /* NaN, +inf or no finite logit */
    float logprob;
    uint32_t rank, n_top, reserved[3];
} hrk_sample;
typedef struct hrk_top {
    int32_t id;
    float logprob;
} hrk_top;

/* csrc/backend/sampling.h, to the letter, on logits as hrk_linear left them. Writes next_token and counts the sampled
 * id in the penalty table. One block a row; no sort of the vocabulary. */
typedef struct hrk_sampler_args {
    hrk_tables tables;
    uint32_t max_outputs;
    const float *logits;  /* [n_outputs, ld(V)]; not changed */
    uint32_t V, n_valid;  /* ids from n_valid on are never chosen */
    float *scratch;       /* [max_outputs, ld(V)]; processed logits */
    const uint32_t *mask; /* [n_outputs, ceil(V / 32)] bit set: allowed; NULL: all */
    hrk_sample *samples;  /* [n_outputs] */
    hrk_top *tops;        /* [n_outputs, HRK_TOP_MAX] */
} hrk_sampler_args;
int hrk_sampler(const hrk_sampler_args *args, const hrk_launch *on);

/* ---------------------------------------------------------------- time stamps (io/) */

/* out[index] = the device's nanosecond clock. */
int hrk_timestamp(uint64_t *out, uint32_t index, const hrk_launch *on);

#ifdef __cplusplus
}
#endif

#endif
