/* Proof by running. A table computes small cases of every function next to the plain table.
 *
 * Matrix products use numbers of few bits, for which every sum is exact in fp32 and in bf16 pairs whatever the order:
 * the answers must be equal to the last bit, and a wrong lane, a lost tail or a missing instruction cannot hide in a
 * tolerance. Products of packed matrices are one to the bit anyway. The other functions are compared to 1e-5 of the
 * largest answer (exp and sums differ in the last bits).
 *
 * The guard is a SIGILL handler that jumps back. It answers only the thread that runs the test; for any other thread it
 * puts the old handler back and lets the instruction fault again.
 */
#include "backend/cpu/cpu_self_test.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* 77 columns: whole vectors of every table and a tail; 11 outputs and 27 rows: every height and width of tile, both
 * ways. */
enum { COLS = 77, OUTPUTS = 11, ROWS = 27, COLS_QUANTISED = 256, HEADS = 5, HEAD_DIM = 72, PAGE = 16 };
/* Of attention: a segment and a bit, over and over on the same few pages. */
enum { CONTEXT = HR_ATTENTION_SEGMENT + 13, N_PAGES = 5 };

static _Thread_local sigjmp_buf back;
static _Thread_local volatile sig_atomic_t is_guarded;
static struct sigaction old_action;

static void on_sigill(int number)
{
    if (is_guarded) {
        is_guarded = 0;
        siglongjmp(back, 1);
    }
    (void)sigaction(number, &old_action, NULL);
}

/* k/8 with k in -8 .. 8. */
static float small_number(uint64_t key, uint64_t i)
{
    return (float)((int)(hr_rng_at(key, i) % 17) - 8) * 0.125f;
}

static void fill(float *to, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        to[i] = small_number(key, i);
}

static bool is_close(const float *a, const float *b, size_t n)
{
    float largest = 0;

    for (size_t i = 0; i < n; i++)
        largest = fabsf(b[i]) > largest ? fabsf(b[i]) : largest;
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(a[i] - b[i]) <= 1e-5f * largest))
            return false;
    }
    return true;
}

/* Room for one table's answer. */
typedef struct side {
    unsigned char *prepared, *scratch;
    float *y;
} side;

static bool make_side(const hr_cpu_kernels *table, uint32_t cols, side *s)
{
    s->prepared = aligned_alloc(64, ROWS * table->prepared_bytes(cols));
    s->scratch = aligned_alloc(64, (table->linear_scratch_bytes(cols) + 63) / 64 * 64);
    s->y = malloc(sizeof(float) * ROWS * OUTPUTS);
    return s->prepared && s->scratch && s->y;
}

static void free_side(side *s)
{
    free(s->prepared);
    free(s->scratch);
    free(s->y);
}

static void run_linear(const hr_cpu_kernels *table, const hr_matrix *w, const float *x, uint32_t n_rows, const side *s)
{
    for (uint32_t r = 0; r < n_rows; r++)
        table->prepare(x + (size_t)r * w->cols, w->cols, s->prepared + r * table->prepared_bytes(w->cols));
    memset(s->y, 0, sizeof(float) * ROWS * OUTPUTS);
    table->linear(w, 1, w->rows, s->prepared, n_rows, s->y, OUTPUTS, s->scratch);
}

/* The weights of one type: small numbers, or blocks of zeros and ones that are valid in every quantised type. */
static void fill_weights(hr_dtype dtype, unsigned char *to, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        to[i] = dtype > HR_BF16 ? (unsigned char)(hr_rng_at(3, i) & 1) : 0;
    for (size_t i = 0; dtype <= HR_BF16 && i < (size_t)OUTPUTS * COLS; i++) {
        float value = small_number(4, i);
        uint16_t half = dtype == HR_F16 ? hr_f32_to_f16(value) : hr_f32_to_bf16(value);

        if (dtype == HR_F32)
            memcpy(to + i * sizeof value, &value, sizeof value);
        else
            memcpy(to + i * sizeof half, &half, sizeof half);
    }
}

static bool linear_is_right(const hr_cpu_kernels *table, hr_dtype dtype)
{
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 8, ROWS};
    const hr_cpu_kernels *plain = &hr_cpu_kernels_plain;
    uint32_t cols = dtype > HR_BF16 ? COLS_QUANTISED : COLS;
    size_t row_bytes = hr_dtype_row_bytes(dtype, cols);
    float x[ROWS * COLS_QUANTISED];
    unsigned char weights[OUTPUTS * COLS_QUANTISED * sizeof(float)];
    hr_matrix w = {.data = weights, .dtype = dtype, .rows = OUTPUTS, .cols = cols, .row_bytes = row_bytes};
    side right = {0}, tried = {0};
    bool is_right = make_side(plain, cols, &right) && make_side(table, cols, &tried);

    fill(x, (size_t)ROWS * cols, 1);
    fill_weights(dtype, weights, row_bytes * OUTPUTS);
    for (size_t i = 0; is_right && i < sizeof counts / sizeof counts[0]; i++) {
        run_linear(plain, &w, x, counts[i], &right);
        run_linear(table, &w, x, counts[i], &tried);
        if (dtype > HR_BF16)
            is_right = is_close(tried.y, right.y, (size_t)ROWS * OUTPUTS);
        else
            is_right = memcmp(tried.y, right.y, sizeof(float) * ROWS * OUTPUTS) == 0;
    }
    free_side(&right);
    free_side(&tried);
    return is_right;
}

/* Packed products are one to the bit in all tables, whatever the weights: any bits with scales of ones. */
static bool packed_is_right(const hr_cpu_kernels *table, hr_dtype dtype)
{
    enum { COLS_PACKED = 512, OUTPUTS_PACKED = 19 };
    static const uint32_t counts[] = {1, 2, 5, 19};
    const hr_cpu_kernels *tables[2] = {&hr_cpu_kernels_plain, table};
    size_t row_bytes = hr_int8_row_bytes(COLS_PACKED), n_y = (size_t)ROWS * OUTPUTS_PACKED;
    hr_matrix w = {.dtype = dtype, .rows = OUTPUTS_PACKED, .cols = COLS_PACKED, .is_packed = true};
    size_t w_bytes = hr_pack_bytes(dtype, w.rows, w.cols);
    unsigned char *at = aligned_alloc(64, w_bytes + HR_CPU_PACKED_SCRATCH + 2 * (ROWS * row_bytes));
    unsigned char *scratch = at ? at + w_bytes : NULL;
    float *y = calloc(2 * n_y, sizeof *y), x[COLS_PACKED];
    bool is_right = at && y;

    w.row_bytes = hr_pack_group_bytes(dtype, w.cols) / HR_PACK_ROWS;
    w.data = at;
    for (size_t i = 0; is_right && i < w_bytes; i++) /* as halves: up to 0x2424, which is 0.016 */
        at[i] = (unsigned char)(hr_rng_at(13, i) & 0x24);
    for (size_t c = 0; is_right && c < sizeof counts / sizeof counts[0]; c++) {
        for (size_t i = 0; i < 2; i++) {
            unsigned char *rows = scratch + HR_CPU_PACKED_SCRATCH + i * ROWS * row_bytes;

            for (uint32_t r = 0; r < counts[c]; r++) {
                fill(x, COLS_PACKED, 14 + r);
                tables[i]->prepare_int8(x, COLS_PACKED, rows + r * row_bytes);
            }
            tables[i]->linear_packed(&w, 0, w.rows, rows, counts[c], y + i * n_y, OUTPUTS_PACKED, scratch);
        }
        is_right = memcmp(y, y + n_y, n_y * sizeof *y) == 0;
    }
    free(at);
    free(y);
    return is_right;
}

static bool rows_are_right(const hr_cpu_kernels *table, const char **why)
{
    const hr_cpu_kernels *plain = &hr_cpu_kernels_plain;
    float a[COLS], b[COLS], y[COLS], z[COLS];

    fill(a, COLS, 5);
    fill(b, COLS, 6);
    *why = "rmsnorm";
    plain->rmsnorm(a, b, COLS, 1e-5f, y);
    table->rmsnorm(a, b, COLS, 1e-5f, z);
    if (!is_close(z, y, COLS))
        return false;
    *why = "swiglu";
    for (uint32_t i = 0; i < COLS; i++)
        a[i] *= 20.0f;
    plain->swiglu(a, b, COLS, y);
    table->swiglu(a, b, COLS, z);
    if (!is_close(z, y, COLS))
        return false;
    *why = "add_scaled";
    plain->add_scaled(y, a, 0.25f, COLS);
    table->add_scaled(z, a, 0.25f, COLS);
    return is_close(z, y, COLS);
}

static bool conv_is_right(const hr_cpu_kernels *table)
{
    enum { L = 3 };
    float in[3][COLS], taps[COLS * L], bias[COLS], state[2][COLS * (L - 1)], bx[2][COLS], y[2][COLS];
    const hr_cpu_kernels *tables[2] = {&hr_cpu_kernels_plain, table};

    fill(in[0], (size_t)3 * COLS, 7);
    fill(taps, (size_t)COLS * L, 8);
    fill(bias, COLS, 9);
    for (int i = 0; i < 2; i++) {
        fill(state[i], (size_t)COLS * (L - 1), 10);
        tables[i]->conv_row(in[0], in[1], in[2], taps, bias, COLS, L, state[i], bx[i], y[i]);
    }
    return is_close(y[1], y[0], COLS) && memcmp(bx[0], bx[1], sizeof bx[0]) == 0 &&
           memcmp(state[0], state[1], sizeof state[0]) == 0;
}

/* Attends as a whole and, where the table can, in segments: the same to the bit. False also without memory. */
static bool attend_once(const hr_cpu_kernels *table, const hr_kv_view *kv, const float *q, float *out)
{
    float joined[HEADS * HEAD_DIM];
    hr_attention job = {
        .kv = kv, .q = q, .out = out, .n_rows = 1, .n_heads = HEADS, .n_context = CONTEXT, .scale = 0.125f};
    size_t n = table->attention_scratch_floats(HEADS, kv->head_dim, CONTEXT);
    size_t n_state = hr_attention_state_floats(HEADS, kv->head_dim), first = (n + 15) / 16 * 16; /* states follow */
    float *scratch = aligned_alloc(64, ((first + 2 * n_state) * sizeof(float) + 63) / 64 * 64);
    bool is_same = scratch != NULL;

    if (is_same)
        table->attention(&job, scratch);
    if (is_same && table->attention_segment) {
        job.out = joined;
        for (uint32_t s = 0; s < 2; s++)
            table->attention_segment(&job, s, scratch, scratch + first + s * n_state);
        table->attention_join(&job, scratch + first);
        is_same = memcmp(joined, out, sizeof joined) == 0;
    }
    free(scratch);
    return is_same;
}

static bool attention_is_right(const hr_cpu_kernels *table, hr_kv_dtype dtype)
{
    enum { VECTOR = HEAD_DIM * (int)sizeof(float) };
    uint32_t pages[(CONTEXT + PAGE - 1) / PAGE];
    unsigned char pool[2][N_PAGES * PAGE * 2 * VECTOR];
    float q[HEADS * HEAD_DIM], x[HEAD_DIM], out[2][HEADS * HEAD_DIM];
    hr_kv_view kv = {.pages = pages, .page_tokens = PAGE, .head_dim = HEAD_DIM, .dtype = dtype};
    const hr_cpu_kernels *tables[2] = {&hr_cpu_kernels_plain, table};
    size_t value = dtype == HR_KV_F32 ? sizeof(float) : sizeof(uint16_t);
    bool is_right = true;

    kv.v_offset = (size_t)PAGE * VECTOR;
    kv.page_bytes = 2 * kv.v_offset;
    for (uint32_t i = 0; i < sizeof pages / sizeof pages[0]; i++)
        pages[i] = 3 * i % N_PAGES;
    fill(q, (size_t)HEADS * HEAD_DIM, 11);
    memset(pool, 0, sizeof pool);
    for (int i = 0; i < 2; i++) {
        kv.pool = pool[i];
        for (uint32_t v = 0; v < N_PAGES * PAGE * 2; v++) {
            unsigned char *part = pool[i] + v / PAGE * kv.v_offset;

            fill(x, HEAD_DIM, 12 + v);
            if (v / PAGE % 2 == 0)
                hr_cpu_store_key(x, HEAD_DIM, dtype, PAGE, part + v % PAGE * value);
            else
                tables[i]->store_kv(x, HEAD_DIM, dtype, part + v % PAGE * HEAD_DIM * value);
        }
        is_right = is_right && attend_once(tables[i], &kv, q, out[i]);
    }
    return is_right && memcmp(pool[0], pool[1], sizeof pool[0]) == 0 &&
           is_close(out[1], out[0], (size_t)HEADS * HEAD_DIM);
}

static bool run_all(const hr_cpu_kernels *table, const char **why)
{
    for (hr_dtype dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
        *why = hr_dtypes[dtype].name;
        if (!linear_is_right(table, dtype))
            return false;
    }
    for (hr_dtype dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
        *why = hr_dtypes[dtype].name;
        if (hr_pack_is_packed(dtype) && dtype != HR_Q5_0 && !packed_is_right(table, dtype)) /* Q5_0 becomes Q8_0 */
            return false;
    }
    if (!rows_are_right(table, why))
        return false;
    *why = "conv_row";
    if (!conv_is_right(table))
        return false;
    *why = "attention";
    return attention_is_right(table, HR_KV_BF16) && attention_is_right(table, HR_KV_F32);
}

bool hr_cpu_self_test(const hr_cpu_kernels *table, const char **why)
{
    struct sigaction action = {.sa_handler = on_sigill};
    volatile bool is_right = false;

    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGILL, &action, &old_action);
    if (sigsetjmp(back, 1) == 0) {
        is_guarded = 1;
        is_right = run_all(table, why);
    } else {
        *why = "illegal instruction";
    }
    is_guarded = 0;
    (void)sigaction(SIGILL, &old_action, NULL);
    return is_right;
}
