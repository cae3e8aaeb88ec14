/* The products of packed matrices of every table of kernels that this machine runs, against the plain ones, bit for
 * bit: that is both their definition and the promise that a row's result depends on that row alone. What kernels read
 * ends at a page that may not be touched. */
#include "backend/cpu/cpu_kernels.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static const hr_dtype types[] = {HR_Q4_0, HR_Q4_1, HR_Q5_0, HR_Q8_0, HR_Q4_K, HR_Q5_K, HR_Q6_K};
enum { TYPES = sizeof types / sizeof *types };

typedef unsigned char byte;

/* n bytes (a multiple of 64) that end where the next byte faults. */
typedef struct guarded {
    byte *at, *map;
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

static void for_each_table(void (*body)(const hr_cpu_kernels *table))
{
    const hr_cpu_kernels *table;
    bool is_usable;

    for (uint32_t i = 0; (table = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        if (is_usable)
            body(table);
    }
}

/* Both NaN, or the same bits. */
static bool is_same(float a, float b)
{
    return hr_f32_to_bits(a) == hr_f32_to_bits(b) || (isnan(a) && isnan(b));
}

/* ---------------------------------------------------------------- rows */

/* Blocks of every kind in turn: ordinary, all zero, a few magnitudes, halves of a step, tiny, subnormal, infinite, NaN,
 * the largest numbers. */
static void fill_row(float *x, uint32_t cols, uint64_t key, bool is_tame)
{
    for (uint32_t i = 0; i < cols; i++) {
        uint64_t bits = hr_rng_at(key, i), block = (i / 32 + key) % 12;
        float value = (float)(2.0 * hr_rng_unit(bits) - 1.0);

        if (!is_tame && block == 3)
            value = 0;
        if (!is_tame && block == 4)
            value *= hr_bits_to_f32((uint32_t)(64 + bits % 128) << 23);
        if (!is_tame && block == 5)
            value = i % 32 == 7 ? 127 : (float)((int)(bits % 254) - 127) + 0.5f;
        if (!is_tame && block == 6)
            value = hr_bits_to_f32((uint32_t)bits & 0x80FFFFFFu); /* about the smallest normal numbers, and below */
        if (!is_tame && block == 7)
            value *= 0x1p-118f;
        if (!is_tame && block == 8 && i % 32 == bits % 32)
            value = bits & 32 ? INFINITY : NAN;
        if (!is_tame && block == 9)
            value = bits & 32 ? 3.4028234e38f : -3.4028234e38f;
        x[i] = value;
    }
}

static void check_array(const hr_cpu_kernels *table, const char *name, const void *found, const void *expected,
                        size_t bytes, uint32_t cols)
{
    if (memcmp(found, expected, bytes) != 0)
        fail_msg("%s: prepare_int8 of %u columns: %s differs from plain", table->name, cols, name);
}

static void check_row(const hr_cpu_kernels *table, uint32_t cols, uint64_t key)
{
    size_t n = hr_int8_blocks(cols), bytes = hr_int8_row_bytes(cols);
    guarded x = guarded_alloc(cols * sizeof(float)), rows[2] = {guarded_alloc(bytes), guarded_alloc(bytes)};
    hr_int8_row expected = hr_int8_row_at(rows[0].at, cols), found = hr_int8_row_at(rows[1].at, cols);

    fill_row((float *)(void *)x.at, cols, key, false);
    memset(rows[1].at, 0x5A, bytes);
    hr_cpu_kernels_plain.prepare_int8((const float *)(const void *)x.at, cols, rows[0].at);
    table->prepare_int8((const float *)(const void *)x.at, cols, rows[1].at);
    check_array(table, "q", found.q, expected.q, 32 * n, cols);
    check_array(table, "scale", found.scale, expected.scale, 4 * n, cols);
    for (size_t i = 0; i < n; i++)
        assert_true(is_same(found.minimum[i], expected.minimum[i]));
    check_array(table, "zero8", found.zero8, expected.zero8, 4 * n, cols);
    check_array(table, "zero128", found.zero128, expected.zero128, 4 * n, cols);
    check_array(table, "zero32", found.zero32, expected.zero32, 8 * n, cols);
    guarded_free(&x);
    guarded_free(&rows[0]);
    guarded_free(&rows[1]);
}

static void check_rows(const hr_cpu_kernels *table)
{
    for (uint32_t cols = 32; cols <= 32 * 70; cols += 32) {
        for (uint64_t key = 0; key < 12; key++)
            check_row(table, cols, key);
    }
}

static void rows_equal_the_plain_ones_bit_for_bit(void **state)
{
    (void)state;
    for_each_table(check_rows);
}

/* ---------------------------------------------------------------- products */

static void *aligned(size_t n)
{
    void *at = aligned_alloc(64, (n + 63) / 64 * 64);

    assert_non_null(at);
    return at;
}

/* Random bits with finite scales: mostly of ordinary size, some zero, subnormal, negative or the largest. */
static byte *make_file(const hr_matrix *w)
{
    static const uint16_t rare[] = {0, 1, 0x83FF, 0x7BFF, 0xFBFF};
    size_t block_bytes = hr_dtypes[w->dtype].block_bytes, n = w->rows * w->row_bytes;
    byte *file = aligned(n);

    for (size_t i = 0; i < n; i++)
        file[i] = (byte)hr_rng_at(7, i);
    for (size_t b = 0; b * block_bytes < n; b++) {
        byte *at = file + b * block_bytes + (w->dtype == HR_Q6_K ? 208 : 0);
        uint64_t bits = hr_rng_at(8, b);
        uint16_t half[2] = {(uint16_t)(0x2000 + (bits & 0x8FFF)), (uint16_t)(0x2000 + (bits >> 16 & 0x8FFF))};

        if (bits >> 32 & 31)
            half[0] &= 0xAFFF; /* below 0.125: the finite ones */
        else
            half[0] = rare[(bits >> 40) % 5];
        half[1] = bits >> 48 & 31 ? half[1] & 0xAFFF : rare[(bits >> 56) % 5];
        memcpy(at, half, w->dtype == HR_Q4_1 || w->dtype == HR_Q4_K || w->dtype == HR_Q5_K ? 4 : 2);
    }
    return file;
}

typedef struct problem {
    guarded weights, rows;
    hr_matrix w;
    uint32_t n_rows;
    float *expected; /* [n_rows, w.rows] */
} problem;

static problem make_problem(hr_dtype dtype, uint32_t outputs, uint32_t cols, uint32_t n_rows, bool is_tame)
{
    problem p = {.n_rows = n_rows};
    hr_matrix from = {.dtype = dtype, .rows = outputs, .cols = cols, .row_bytes = hr_dtype_row_bytes(dtype, cols)};
    byte *file = make_file(&from);
    size_t row_bytes = hr_int8_row_bytes(cols);
    float *x = aligned(cols * sizeof *x);
    uint32_t bad_row;

    from.data = file;
    p.weights = guarded_alloc(hr_pack_bytes(dtype, outputs, cols));
    assert_int_equal(hr_pack_groups(&from, 0, (outputs + 15) / 16, p.weights.at, &bad_row, NULL), HEADRACE_OK);
    p.w = hr_pack_matrix(&from, p.weights.at);
    p.rows = guarded_alloc(n_rows * row_bytes);
    for (uint32_t r = 0; r < n_rows; r++) {
        fill_row(x, cols, 100 + r, is_tame || r % 3 != 2);
        hr_cpu_kernels_plain.prepare_int8(x, cols, p.rows.at + r * row_bytes);
    }
    p.expected = aligned((size_t)n_rows * outputs * sizeof *p.expected);
    hr_cpu_kernels_plain.linear_packed(&p.w, 0, outputs, p.rows.at, n_rows, p.expected, outputs, NULL);
    free(x);
    free(file);
    return p;
}

static void free_problem(problem *p)
{
    guarded_free(&p->weights);
    guarded_free(&p->rows);
    free(p->expected);
}

/* Outputs [begin, end) of rows [first, first + n); what lies between the rows of y stays as it is. */
static void check_range(const hr_cpu_kernels *table, const problem *p, uint32_t begin, uint32_t end, uint32_t first,
                        uint32_t n, void *scratch)
{
    size_t stride = end - begin + 5;
    float *y = aligned(n * stride * sizeof *y);

    for (size_t i = 0; i < n * stride; i++)
        y[i] = 77;
    table->linear_packed(&p->w, begin, end, p->rows.at + first * hr_int8_row_bytes(p->w.cols), n, y, stride, scratch);
    for (uint32_t r = 0; r < n; r++) {
        const float *expected = p->expected + (size_t)(first + r) * p->w.rows + begin;

        for (uint32_t o = 0; o < stride; o++) {
            float found = y[r * stride + o];

            if (o >= end - begin ? found != 77 : !is_same(found, expected[o]))
                fail_msg("%s %s [%u, %u]: outputs %u .. %u of %u rows: output %u of row %u is %a, expected %a",
                         table->name, hr_dtypes[p->w.dtype].name, p->w.rows, p->w.cols, begin, end, n, begin + o,
                         first + r, (double)found, o >= end - begin ? 77.0 : (double)expected[o]);
        }
    }
    free(y);
}

static void check_shape(const hr_cpu_kernels *table, hr_dtype dtype, uint32_t outputs, uint32_t cols, uint32_t most)
{
    problem p = make_problem(dtype, outputs, cols, most, false);
    void *scratch = aligned(HR_CPU_PACKED_SCRATCH);

    for (uint32_t n = 1; n <= most; n++) {
        uint32_t first = (most - n) / 2, begin = n % ((outputs + 15) / 16) * 16;

        check_range(table, &p, 0, outputs, first, n, scratch);
        check_range(table, &p, begin, outputs, first, n, scratch);
        if (begin + 16 <= outputs)
            check_range(table, &p, begin, begin + 16, first, n, scratch);
    }
    free(scratch);
    free_problem(&p);
}

static void check_products(const hr_cpu_kernels *table)
{
    for (uint32_t i = 0; i < TYPES; i++) {
        uint32_t block = hr_dtypes[types[i]].block_values;

        check_shape(table, types[i], 39, block, 40);
        check_shape(table, types[i], 64, 3 * block, 40);
        check_shape(table, types[i], 16, 1024 + (block < 256 ? 32 : 0), 9);
        check_shape(table, types[i], 5, 2 * block, 5);
    }
}

static void products_equal_the_plain_ones_bit_for_bit(void **state)
{
    (void)state;
    for_each_table(check_products);
}

static void check_many(const hr_cpu_kernels *table)
{
    static const uint32_t counts[] = {48, 63, 64, 65, 100, 129};

    for (uint32_t i = 0; i < TYPES; i++) { /* 70 outputs, 768 columns: runs of both are cut, and the last is short */
        problem p = make_problem(types[i], 70, 768 + (hr_dtypes[types[i]].block_values < 256 ? 32 : 0), 129, true);
        void *scratch = aligned(HR_CPU_PACKED_SCRATCH);

        for (uint32_t c = 0; c < sizeof counts / sizeof *counts; c++)
            check_range(table, &p, 0, 70, 129 - counts[c], counts[c], scratch);
        free(scratch);
        free_problem(&p);
    }
}

static void check_a_prompt(const hr_cpu_kernels *table)
{
    problem p = make_problem(HR_Q4_0, 37, 96, 1100, true);
    void *scratch = aligned(HR_CPU_PACKED_SCRATCH);

    check_range(table, &p, 0, 37, 0, 1100, scratch);
    check_range(table, &p, 0, 32, 5, 1025, scratch);
    free(scratch);
    free_problem(&p);
}

static void many_rows_too(void **state)
{
    (void)state;
    for_each_table(check_many);
    for_each_table(check_a_prompt);
}

/* Every weight the largest or the smallest of its type, every activation +-127: where sums of 16 bits that are added
 * too early would saturate or wrap. */
static void check_extremes(const hr_cpu_kernels *table)
{
    enum { OUTPUTS = 16, COLS = 256, ROWS = 9 };
    void *scratch = aligned(HR_CPU_PACKED_SCRATCH);
    float x[COLS];

    for (uint32_t i = 0; i < TYPES * 4; i++) {
        problem p = make_problem(types[i / 4], OUTPUTS, COLS, ROWS, true);
        size_t bytes = hr_pack_bytes(types[i / 4], OUTPUTS, COLS), row_bytes = hr_int8_row_bytes(COLS);
        bool is_short = p.w.dtype == HR_Q4_0 || p.w.dtype == HR_Q4_1 || p.w.dtype == HR_Q8_0;
        size_t chunk = is_short ? bytes / 4 : bytes, n_halves = p.w.dtype == HR_Q4_1 ? 128 : 64;

        for (size_t b = 0; b < bytes; b++) {
            if (b % chunk >= n_halves) /* behind the scales */
                p.weights.at[b] = i % 2 ? 0xFF : 0;
        }
        for (uint32_t r = 0; r < ROWS; r++) {
            for (uint32_t c = 0; c < COLS; c++)
                x[c] = i % 4 < 2 || hr_rng_at(r, c) & 1 ? 1 : -1;
            hr_cpu_kernels_plain.prepare_int8(x, COLS, p.rows.at + r * row_bytes);
        }
        hr_cpu_kernels_plain.linear_packed(&p.w, 0, OUTPUTS, p.rows.at, ROWS, p.expected, OUTPUTS, scratch);
        check_range(table, &p, 0, OUTPUTS, 0, ROWS, scratch);
        check_range(table, &p, 0, OUTPUTS, 0, 1, scratch);
        free_problem(&p);
    }
    free(scratch);
}

static void the_largest_weights_and_activations_do_not_overflow(void **state)
{
    (void)state;
    for_each_table(check_extremes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_the_plain_ones_bit_for_bit),
        cmocka_unit_test(products_equal_the_plain_ones_bit_for_bit),
        cmocka_unit_test(many_rows_too),
        cmocka_unit_test(the_largest_weights_and_activations_do_not_overflow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
