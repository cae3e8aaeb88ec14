/* Every table of kernels that this machine runs, against loops in double precision, and against itself: what is
 * computed for a row must not depend on what stands beside it. Weights, keys and values end at a page that may not be
 * touched.
 */
#include "backend/cpu/cpu_kernels.h"
#include "backend/cpu/cpu_self_test.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* n bytes that end where the next byte faults. */
typedef struct guarded {
    unsigned char *at, *map;
    size_t map_bytes;
} guarded;

static guarded guarded_alloc(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (n + page - 1) / page * page;
    guarded g = {.map_bytes = room + page};

    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect(g.map + room, page, PROT_NONE), 0);
    g.at = g.map + room - n;
    return g;
}

static void guarded_free(guarded *g)
{
    assert_int_equal(munmap(g->map, g->map_bytes), 0);
}

static void *aligned(size_t n)
{
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);

    assert_non_null(p);
    return p;
}

/* In [-1, 1), exact in bf16, so that rounding activations changes nothing. */
static float random_value(uint64_t key, uint64_t i)
{
    return hr_bf16_to_f32(hr_f32_to_bf16((float)(2.0 * hr_rng_unit(hr_rng_at(key, i)) - 1.0)));
}

static void fill(float *to, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        to[i] = random_value(key, i);
}

typedef struct problem {
    guarded weights;
    hr_matrix w;
    float *exact; /* the weights, [rows, cols] */
    float *x;     /* [n_rows, cols] */
    uint32_t n_rows;
} problem;

/* Random weights of any type. Quantised: random bits with a scale of 1/64 (as F16 0x2400) wherever a scale may stand.
 */
static void fill_weights(problem *p)
{
    unsigned char *at = p->weights.at;
    size_t n_bytes = p->w.rows * p->w.row_bytes, block = hr_dtypes[p->w.dtype].block_bytes;

    for (size_t i = 0; p->w.dtype <= HR_BF16 && i < (size_t)p->w.rows * p->w.cols; i++) {
        float value = random_value(1, i);
        uint16_t half = p->w.dtype == HR_F16 ? hr_f32_to_f16(value) : hr_f32_to_bf16(value);

        if (p->w.dtype == HR_F32)
            memcpy(at + i * sizeof value, &value, sizeof value);
        else
            memcpy(at + i * sizeof half, &half, sizeof half);
    }
    for (size_t i = 0; p->w.dtype > HR_BF16 && i < n_bytes; i++)
        at[i] = (unsigned char)hr_rng_at(1, i);
    for (size_t b = 0; p->w.dtype > HR_BF16 && b < n_bytes; b += block) {
        size_t scale = p->w.dtype == HR_Q6_K ? block - 2 : 0;

        at[b + scale] = 0;
        at[b + scale + 1] = 0x24;
        if (p->w.dtype == HR_Q4_1 || p->w.dtype == HR_Q5_1 || p->w.dtype == HR_Q4_K || p->w.dtype == HR_Q5_K) {
            at[b + 2] = 0;
            at[b + 3] = 0x24;
        }
    }
}

static problem make_problem(hr_dtype dtype, uint32_t rows, uint32_t cols, uint32_t n_rows)
{
    problem p = {.w = {.dtype = dtype, .rows = rows, .cols = cols}, .n_rows = n_rows};

    p.w.row_bytes = hr_dtype_row_bytes(dtype, cols);
    p.weights = guarded_alloc(rows * p.w.row_bytes);
    p.w.data = p.weights.at;
    fill_weights(&p);
    p.exact = aligned((size_t)rows * cols * sizeof(float));
    for (uint32_t o = 0; o < rows; o++)
        hr_dequantize(dtype, p.weights.at + o * p.w.row_bytes, p.exact + (size_t)o * cols, cols);
    p.x = aligned((size_t)n_rows * cols * sizeof(float));
    fill(p.x, (size_t)n_rows * cols, 2);
    return p;
}

static void free_problem(problem *p)
{
    guarded_free(&p->weights);
    free(p->exact);
    free(p->x);
}

static void *prepare_rows(const hr_cpu_kernels *table, const problem *p)
{
    size_t stride = table->prepared_bytes(p->w.cols);
    unsigned char *prepared = aligned(p->n_rows * stride);

    assert_int_equal(stride % 64, 0);
    for (uint32_t r = 0; r < p->n_rows; r++)
        table->prepare(p->x + (size_t)r * p->w.cols, p->w.cols, prepared + r * stride);
    return prepared;
}

static void check_linear(const hr_cpu_kernels *table, const problem *p, float *y)
{
    void *prepared = prepare_rows(table, p), *scratch = aligned(table->linear_scratch_bytes(p->w.cols));

    table->linear(&p->w, 0, p->w.rows, prepared, p->n_rows, y, p->w.rows, scratch);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        for (uint32_t o = 0; o < p->w.rows; o++) {
            double sum = 0, size = 0;

            for (uint32_t c = 0; c < p->w.cols; c++) {
                double product = (double)p->exact[(size_t)o * p->w.cols + c] * (double)p->x[(size_t)r * p->w.cols + c];

                sum += product;
                size += fabs(product);
            }
            /* fp32 sums: cols roundings of 2^-24 at most, in practice their root */
            if (!(fabs((double)y[(size_t)r * p->w.rows + o] - sum) <= 4e-6 * size + 1e-30))
                fail_msg("%s %s: %u cols, %u rows, row %u, output %u: %g, expected %g", table->name,
                         hr_dtypes[p->w.dtype].name, p->w.cols, p->n_rows, r, o, (double)y[(size_t)r * p->w.rows + o],
                         sum);
        }
    }
    free(prepared);
    free(scratch);
}

/* Calls body for every usable table. */
static void for_each_table(void (*body)(const hr_cpu_kernels *table))
{
    const hr_cpu_kernels *table;
    bool is_usable;

    for (uint32_t i = 0; (table = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        if (is_usable)
            body(table);
    }
}

static void check_products(const hr_cpu_kernels *table)
{
    static const uint32_t more[] = {255, 257, 1024, 2603};
    float y[17 * 9];

    for (uint32_t i = 1; i <= 134; i++) {
        uint32_t cols = i <= 130 ? i : more[i - 131];

        for (hr_dtype dtype = HR_F32; dtype <= HR_BF16; dtype++) {
            problem p = make_problem(dtype, 1 + (i * 5) % 9, cols, 1 + i % 17);

            check_linear(table, &p, y);
            free_problem(&p);
        }
    }
    for (hr_dtype dtype = HR_BF16 + 1; dtype < HR_DTYPE_COUNT; dtype++) {
        for (uint32_t n_rows = 1; n_rows <= 17; n_rows += 4) {
            problem p = make_problem(dtype, 9, n_rows == 5 ? 2048 : 256, n_rows);

            check_linear(table, &p, y);
            free_problem(&p);
        }
    }
}

static void products_are_right_at_awkward_sizes(void **state)
{
    (void)state;
    for_each_table(check_products);
}

/* Each result computed alone: one row, one output. */
static void solo_results(const hr_cpu_kernels *table, const problem *p, const unsigned char *prepared, void *scratch,
                         float *solo)
{
    size_t stride = table->prepared_bytes(p->w.cols);

    for (uint32_t r = 0; r < p->n_rows; r++) {
        for (uint32_t o = 0; o < p->w.rows; o++)
            table->linear(&p->w, o, o + 1, prepared + r * stride, 1, solo + (size_t)r * p->w.rows + o, 1, scratch);
    }
}

static void check_range(const hr_cpu_kernels *table, const problem *p, const unsigned char *prepared, void *scratch,
                        const float *solo, uint32_t begin, uint32_t end, uint32_t first_row, uint32_t n_rows)
{
    size_t stride = table->prepared_bytes(p->w.cols), n = end - begin;
    float *y = aligned(n * n_rows * sizeof *y);

    table->linear(&p->w, begin, end, prepared + first_row * stride, n_rows, y, n, scratch);
    for (uint32_t r = 0; r < n_rows; r++) {
        if (memcmp(y + r * n, solo + (size_t)(first_row + r) * p->w.rows + begin, n * sizeof *y) != 0)
            fail_msg("%s %s: %u cols: outputs %u .. %u of row %u change in a call of %u rows", table->name,
                     hr_dtypes[p->w.dtype].name, p->w.cols, begin, end, first_row + r, n_rows);
    }
    free(y);
}

static void check_invariance(const hr_cpu_kernels *table)
{
    enum { OUTPUTS = 39, ROWS = 101 };

    for (hr_dtype dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
        for (int is_long = 0; is_long <= 1; is_long++) {
            uint32_t cols = dtype <= HR_BF16 ? (is_long ? 2603 : 77) : (is_long ? 2560 : 256);
            problem p = make_problem(dtype, OUTPUTS, cols, is_long && dtype > HR_BF16 ? 27 : ROWS);
            unsigned char *prepared = prepare_rows(table, &p);
            void *scratch = aligned(table->linear_scratch_bytes(cols));
            float *solo = aligned((size_t)p.n_rows * OUTPUTS * sizeof *solo);

            solo_results(table, &p, prepared, scratch, solo);
            for (uint32_t n = 1; n <= 33 && n <= p.n_rows; n += is_long ? 3 : 1) {
                uint32_t begin = n * 7 % OUTPUTS, end = begin + 1 + n * 11 % (OUTPUTS - begin);

                check_range(table, &p, prepared, scratch, solo, 0, OUTPUTS, 0, n);
                check_range(table, &p, prepared, scratch, solo, begin, end, (p.n_rows - n) / 2, n);
            }
            check_range(table, &p, prepared, scratch, solo, 0, OUTPUTS, 0, p.n_rows);
            free(solo);
            free(scratch);
            free(prepared);
            free_problem(&p);
        }
    }
}

static void a_result_does_not_depend_on_the_other_rows_or_the_range(void **state)
{
    (void)state;
    for_each_table(check_invariance);
}

static void check_infinities(const hr_cpu_kernels *table)
{
    enum { OUTPUTS = 9, ROWS = 30 };

    for (hr_dtype dtype = HR_F32; dtype <= HR_BF16; dtype++) {
        problem p = make_problem(dtype, OUTPUTS, 77, ROWS);
        unsigned char *prepared;
        void *scratch = aligned(table->linear_scratch_bytes(p.w.cols));
        float clean[OUTPUTS * ROWS], y[OUTPUTS * ROWS];

        prepared = prepare_rows(table, &p);
        table->linear(&p.w, 0, OUTPUTS, prepared, ROWS, clean, OUTPUTS, scratch);
        free(prepared);
        p.x[3 * 77 + 76] = INFINITY;
        p.x[8 * 77] = NAN;
        prepared = prepare_rows(table, &p);
        for (uint32_t n = 12; n <= ROWS; n += 18) { /* in place, and by panel */
            table->linear(&p.w, 0, OUTPUTS, prepared, n, y, OUTPUTS, scratch);
            for (uint32_t r = 0; r < n; r++) {
                if (r == 3 || r == 8)
                    assert_false(isfinite(y[r * OUTPUTS]));
                else
                    assert_memory_equal(y + r * OUTPUTS, clean + r * OUTPUTS, OUTPUTS * sizeof *y);
            }
        }
        free(prepared);
        free(scratch);
        free_problem(&p);
    }
}

static void infinities_and_nan_stay_in_their_row(void **state)
{
    (void)state;
    for_each_table(check_infinities);
}

static void check_subnormals(const hr_cpu_kernels *table)
{
    float y[7 * 3];
    problem p = make_problem(HR_F16, 3, 77, 7);

    for (size_t i = 0; i < (size_t)3 * 77; i++) { /* every weight subnormal in fp16: multiples of 2^-24 */
        uint16_t half = (uint16_t)(1 + i * 37 % 1023);

        memcpy(p.weights.at + i * sizeof half, &half, sizeof half);
        p.exact[i] = hr_f16_to_f32(half);
    }
    check_linear(table, &p, y);
    free_problem(&p);
}

static void subnormal_weights_count(void **state)
{
    (void)state;
    for_each_table(check_subnormals);
}

/* Keys and values [n_context, D] in pages of any size; the view's pages are in falling order. */
typedef struct cache {
    hr_kv_view view;
    guarded pool;
    uint32_t pages[64];
} cache;

static void make_cache(cache *c, const hr_cpu_kernels *table, uint32_t d, uint32_t page_tokens, uint32_t n_context,
                       hr_kv_dtype dtype, const float *keys, const float *values)
{
    uint32_t n_pages = (n_context + page_tokens - 1) / page_tokens;
    size_t row = d * (dtype == HR_KV_F32 ? sizeof(float) : sizeof(uint16_t));

    assert_true(n_pages <= 64);
    c->view = (hr_kv_view){.page_bytes = 2 * page_tokens * row,
                           .v_offset = page_tokens * row,
                           .page_tokens = page_tokens,
                           .head_dim = d,
                           .dtype = dtype};
    c->pool = guarded_alloc(n_pages * c->view.page_bytes);
    c->view.pool = c->pool.at;
    c->view.pages = c->pages;
    for (uint32_t i = 0; i < n_pages; i++)
        c->pages[i] = n_pages - 1 - i;
    for (uint32_t t = 0; t < n_context; t++) {
        unsigned char *page = c->pool.at + c->pages[t / page_tokens] * c->view.page_bytes + t % page_tokens * row;

        table->store_kv(values + (size_t)t * d, d, dtype, page + c->view.v_offset);
        page = c->pool.at + c->pages[t / page_tokens] * c->view.page_bytes + t % page_tokens * (row / d);
        hr_cpu_store_key(keys + (size_t)t * d, d, dtype, page_tokens, page);
    }
}

static void attend(const float *q, const float *keys, const float *values, uint32_t d, uint32_t n_context, double scale,
                   double *out)
{
    double weights[256], largest = -HUGE_VAL, sum = 0;

    for (uint32_t t = 0; t < n_context; t++) {
        weights[t] = 0;
        for (uint32_t i = 0; i < d; i++)
            weights[t] += (double)q[i] * (double)keys[(size_t)t * d + i];
        weights[t] *= scale;
        largest = fmax(largest, weights[t]);
    }
    for (uint32_t t = 0; t < n_context; t++)
        sum += weights[t] = exp(weights[t] - largest);
    for (uint32_t i = 0; i < d; i++) {
        out[i] = 0;
        for (uint32_t t = 0; t < n_context; t++)
            out[i] += weights[t] / sum * (double)values[(size_t)t * d + i];
    }
}

static void check_attention_case(const hr_cpu_kernels *table, uint32_t d, uint32_t n_heads, uint32_t n_context,
                                 hr_kv_dtype dtype)
{
    static const uint32_t page_sizes[] = {4, 16, 7};
    float *q = aligned(n_heads * d * sizeof(float)), *keys = aligned(n_context * d * sizeof(float));
    float *values = aligned(n_context * d * sizeof(float));
    float *scratch = aligned(table->attention_scratch_floats(n_heads, d, n_context) * sizeof(float));
    float *out = aligned(n_heads * d * sizeof(float)), *first = aligned(n_heads * d * sizeof(float));
    double *expected = aligned(d * sizeof(double));

    fill(q, n_heads * d, 20);
    fill(keys, n_context * d, 21);
    fill(values, n_context * d, 22);
    for (size_t i = 0; i < sizeof page_sizes / sizeof page_sizes[0]; i++) {
        cache c;
        hr_attention job = {.kv = &c.view,
                            .q = q,
                            .out = i == 0 ? first : out,
                            .n_rows = 1,
                            .n_heads = n_heads,
                            .n_context = n_context,
                            .scale = 0.37f};

        make_cache(&c, table, d, page_sizes[i], n_context, dtype, keys, values);
        table->attention(&job, scratch);
        if (i > 0)
            assert_memory_equal(out, first, n_heads * d * sizeof(float)); /* page size changes nothing */
        for (uint32_t h = 0; h < n_heads; h++) {                          /* nor do the heads beside */
            job.q = q + h * d;
            job.out = out;
            job.n_heads = 1;
            table->attention(&job, scratch);
            assert_memory_equal(out, first + h * d, d * sizeof(float));
        }
        guarded_free(&c.pool);
    }
    for (uint32_t h = 0; h < n_heads; h++) {
        attend(q + h * d, keys, values, d, n_context, (double)0.37f, expected);
        for (uint32_t i = 0; i < d; i++) {
            if (!(fabs((double)first[h * d + i] - expected[i]) <= 1e-5))
                fail_msg("%s: D %u, %u heads, context %u, head %u, value %u: %g, expected %g", table->name, d, n_heads,
                         n_context, h, i, (double)first[h * d + i], expected[i]);
        }
    }
    free(q);
    free(keys);
    free(values);
    free(scratch);
    free(out);
    free(first);
    free(expected);
}

static void check_attention(const hr_cpu_kernels *table)
{
    static const uint32_t dims[] = {5, 8, 24, 32, 40, 64, 80, 128, 256};
    static const uint32_t contexts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 101, 200};

    for (size_t c = 0; c < sizeof contexts / sizeof contexts[0]; c++) {
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
            uint32_t n_heads = 1 + (uint32_t)(c + i) % 9;

            check_attention_case(table, dims[i], n_heads, contexts[c], HR_KV_BF16);
            check_attention_case(table, dims[i], n_heads, contexts[c], HR_KV_F32);
        }
    }
}

static void attention_is_right_across_pages_and_shapes(void **state)
{
    (void)state;
    for_each_table(check_attention);
}

static void check_rmsnorm(const hr_cpu_kernels *table)
{
    for (uint32_t n = 1; n <= 130; n++) {
        guarded x = guarded_alloc(n * sizeof(float)), w = guarded_alloc(n * sizeof(float)),
                y = guarded_alloc(n * sizeof(float));
        float *in = (float *)(void *)x.at, *weight = (float *)(void *)w.at, *out = (float *)(void *)y.at;
        double sum = 0;

        fill(in, n, 30);
        fill(weight, n, 31);
        table->rmsnorm(in, weight, n, 1e-5f, out);
        for (uint32_t i = 0; i < n; i++)
            sum += (double)in[i] * (double)in[i];
        for (uint32_t i = 0; i < n; i++) {
            double expected = (double)weight[i] * (double)in[i] / sqrt(sum / n + (double)1e-5f);

            assert_true(fabs((double)out[i] - expected) <= 1e-6 * fabs(expected));
        }
        guarded_free(&x);
        guarded_free(&w);
        guarded_free(&y);
    }
}

static void rmsnorm_is_right(void **state)
{
    (void)state;
    for_each_table(check_rmsnorm);
}

static void check_swiglu(const hr_cpu_kernels *table)
{
    enum { N = 4003, MIDDLE = N / 2 };
    static float gate[N], up[N], y[N];

    for (uint32_t i = 0; i < N; i++) {
        gate[i] = ((float)i - MIDDLE) * 0.07f; /* -140 .. 140: underflow and overflow of the exponential included */
        up[i] = 1.0f;
    }
    table->swiglu(gate, up, N, y);
    for (uint32_t i = 0; i < N; i++) {
        double expected = (double)gate[i] / (1 + exp(-(double)gate[i]));

        /* 3e-36: where e^-x is beyond fp32 the answer is zero */
        if (!(fabs((double)y[i] - expected) <= 5e-7 * fabs(expected) + 3e-36))
            fail_msg("%s: swiglu(%g) = %g, expected %g", table->name, (double)gate[i], (double)y[i], expected);
    }
    gate[0] = NAN;
    gate[1] = INFINITY;
    for (uint32_t n = 2; n < 40; n++) {
        table->swiglu(gate, up, n, y);
        assert_true(isnan(y[0]) && y[1] > 0 && isinf(y[1]));
    }
    memcpy(y, gate, sizeof y);
    table->swiglu(y, up, N, y); /* in place */
    table->swiglu(gate, up, N, up);
    assert_memory_equal(y + 1, up + 1, sizeof y - sizeof y[0]);
}

static void swiglu_is_right_and_keeps_nan(void **state)
{
    (void)state;
    for_each_table(check_swiglu);
}

static void check_conv(const hr_cpu_kernels *table)
{
    enum { N_MAX = 70, L_MAX = 8 };

    for (uint32_t length = 2; length <= L_MAX; length++) {
        for (uint32_t n = 1; n <= N_MAX; n++) {
            float in[3][N_MAX], bias[N_MAX], state[2][N_MAX * L_MAX], bx[2][N_MAX], y[2][N_MAX];
            guarded taps = guarded_alloc((size_t)n * length * sizeof(float));
            const hr_cpu_kernels *tables[2] = {&hr_cpu_kernels_plain, table};

            fill((float *)(void *)taps.at, (size_t)n * length, 40);
            fill(in[0], (size_t)3 * N_MAX, 41);
            fill(bias, N_MAX, 42);
            for (int i = 0; i < 2; i++) {
                fill(state[i], (size_t)N_MAX * L_MAX, 43);
                for (int step = 0; step < 3; step++)
                    tables[i]->conv_row(in[0], in[1], in[2], (const float *)(const void *)taps.at, n % 2 ? bias : NULL,
                                        n, length, state[i], bx[i], y[i]);
            }
            assert_memory_equal(y[0], y[1], n * sizeof(float)); /* one order of additions, unfused, in every table */
            assert_memory_equal(bx[0], bx[1], n * sizeof(float));
            assert_memory_equal(state[0], state[1], sizeof state[0]);
            guarded_free(&taps);
        }
    }
}

static void the_convolution_equals_the_plain_one_bit_for_bit(void **state)
{
    (void)state;
    for_each_table(check_conv);
}

static void check_small_functions(const hr_cpu_kernels *table)
{
    enum { N = 1037 };
    float x[N], y[2][N];
    uint16_t stored[2][N];

    for (uint32_t i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)hr_rng_at(50, i); /* every exponent, infinities and NaN */

        x[i] = hr_bits_to_f32(i % 16 == 3   ? bits | 0x7F800000u
                              : i % 16 == 4 ? (bits & 0x80000000u) | 0x7F800000u
                                            : bits);
    }
    table->store_kv(x, N, HR_KV_BF16, stored[0]);
    hr_cpu_kernels_plain.store_kv(x, N, HR_KV_BF16, stored[1]);
    assert_memory_equal(stored[0], stored[1], sizeof stored[0]);
    table->store_kv(x, N, HR_KV_F32, y[0]);
    assert_memory_equal(y[0], x, sizeof x);
    fill(x, N, 51);
    for (int i = 0; i < 2; i++)
        fill(y[i], N, 52);
    table->add_scaled(y[0], x, 0.3f, N);
    hr_cpu_kernels_plain.add_scaled(y[1], x, 0.3f, N);
    assert_memory_equal(y[0], y[1], sizeof y[0]);
}

static void stores_and_sums_equal_the_plain_ones_bit_for_bit(void **state)
{
    (void)state;
    for_each_table(check_small_functions);
}

static void the_exact_choice_is_plain_and_the_best_is_usable(void **state)
{
    const hr_cpu_kernels *best = hr_cpu_kernels_select(false), *table;
    bool is_usable, is_found = false;

    (void)state;
    assert_ptr_equal(hr_cpu_kernels_select(true), &hr_cpu_kernels_plain);
    for (uint32_t i = 0; (table = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++)
        is_found |= table == best && is_usable;
    assert_true(is_found);
    assert_null(hr_cpu_kernels_at(1000, &is_usable));
    assert_false(is_usable);
}

static void break_last_output(const hr_matrix *w, uint32_t begin, uint32_t end, const void *prepared, uint32_t n_rows,
                              float *y, size_t y_stride, void *scratch)
{
    hr_cpu_kernels_plain.linear(w, begin, end, prepared, n_rows, y, y_stride, scratch);
    if (n_rows == 5)
        y[4 * y_stride + (end - begin - 1)] += 0.001f;
}

static void illegal_norm(const float *x, const float *w, uint32_t n, float eps, float *y)
{
    (void)x, (void)w, (void)n, (void)eps, (void)y;
    (void)raise(SIGILL);
}

static void break_add(float *y, const float *x, float scale, uint32_t n)
{
    hr_cpu_kernels_plain.add_scaled(y, x, scale, n - 1);
}

static void no_segment(const hr_attention *job, uint32_t segment, float *scratch, float *state)
{
    (void)job, (void)segment, (void)scratch, (void)state;
}

static void break_join(const hr_attention *job, float *states)
{
    (void)states;
    memset(job->out, 0, sizeof *job->out * job->n_heads * job->kv->head_dim);
}

static void a_table_that_is_wrong_or_faults_fails_its_self_test(void **state)
{
    hr_cpu_kernels broken = hr_cpu_kernels_plain;
    const char *why = "";

    (void)state;
    assert_true(hr_cpu_self_test(&broken, &why));
    broken.linear = break_last_output;
    assert_false(hr_cpu_self_test(&broken, &why));
    assert_string_equal(why, "F32");
    broken = hr_cpu_kernels_plain;
    broken.rmsnorm = illegal_norm;
    assert_false(hr_cpu_self_test(&broken, &why));
    assert_string_equal(why, "illegal instruction");
    broken = hr_cpu_kernels_plain;
    broken.add_scaled = break_add;
    assert_false(hr_cpu_self_test(&broken, &why));
    assert_string_equal(why, "add_scaled");
    broken = hr_cpu_kernels_plain;
    broken.attention_segment = no_segment;
    broken.attention_join = break_join;
    assert_false(hr_cpu_self_test(&broken, &why));
    assert_string_equal(why, "attention");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right_at_awkward_sizes),
        cmocka_unit_test(a_result_does_not_depend_on_the_other_rows_or_the_range),
        cmocka_unit_test(infinities_and_nan_stay_in_their_row),
        cmocka_unit_test(subnormal_weights_count),
        cmocka_unit_test(attention_is_right_across_pages_and_shapes),
        cmocka_unit_test(rmsnorm_is_right),
        cmocka_unit_test(swiglu_is_right_and_keeps_nan),
        cmocka_unit_test(the_convolution_equals_the_plain_one_bit_for_bit),
        cmocka_unit_test(stores_and_sums_equal_the_plain_ones_bit_for_bit),
        cmocka_unit_test(the_exact_choice_is_plain_and_the_best_is_usable),
        cmocka_unit_test(a_table_that_is_wrong_or_faults_fails_its_self_test),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
