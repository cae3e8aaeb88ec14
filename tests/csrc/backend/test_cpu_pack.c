/* Packed weights and their product in plain C (cpu_pack.h): every weight found at the place that the header names is
 * the file's weight to the bit; the product is a double loop's within what fp32 rounds; broken scales are refused. */
#include "backend/cpu/cpu_packed.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const hr_dtype types[] = {HR_Q4_0, HR_Q4_1, HR_Q5_0, HR_Q8_0, HR_Q4_K, HR_Q5_K, HR_Q6_K};
enum { TYPES = sizeof types / sizeof *types };

typedef unsigned char byte;

/* ---------------------------------------------------------------- weights */

typedef struct packed {
    hr_matrix from, w; /* as in the file, and packed */
    byte *file, *at;
} packed;

/* Where a block of the file has its scales, as offsets of fp16 numbers; returns how many. */
static uint32_t scale_offsets(hr_dtype dtype, uint32_t at[2])
{
    at[0] = dtype == HR_Q6_K ? 208 : 0;
    at[1] = 2;
    return dtype == HR_Q4_1 || dtype == HR_Q4_K || dtype == HR_Q5_K ? 2 : 1;
}

static void set_half(byte *at, uint16_t half)
{
    memcpy(at, &half, sizeof half);
}

/* Random bits, except that scales are finite. Every fifth block is an extreme one: zero, subnormal scales, all bits set
 * below the largest scale, the most negative scale. */
static void fill_block(hr_dtype dtype, byte *block, uint64_t number)
{
    static const uint16_t extremes[4] = {0, 1, 0x7BFF, 0xFBFF};
    uint32_t at[2], n_scales = scale_offsets(dtype, at);
    bool is_extreme = number % 5 == 0;

    for (uint32_t i = 0; i < hr_dtypes[dtype].block_bytes; i++)
        block[i] = is_extreme ? (number % 20 == 0 ? 0 : 0xFF) : (byte)hr_rng_at(number, i);
    for (uint32_t i = 0; i < n_scales; i++) {
        uint16_t random = (uint16_t)(0x2000 + hr_rng_at(number, 1000 + i) % 0x0800);

        set_half(block + at[i], is_extreme ? extremes[number / 5 % 4] : random);
    }
}

static packed make(hr_dtype dtype, uint32_t rows, uint32_t cols, bool has_extremes)
{
    uint32_t per_row = cols / hr_dtypes[dtype].block_values;
    packed p = {.from = {.dtype = dtype, .rows = rows, .cols = cols, .row_bytes = hr_dtype_row_bytes(dtype, cols)}};
    size_t bytes = hr_pack_bytes(dtype, rows, cols);
    uint32_t bad_row;

    p.from.data = p.file = malloc(rows * p.from.row_bytes);
    p.at = aligned_alloc(HR_PACK_ALIGNMENT, bytes);
    assert_true(p.file && p.at);
    assert_int_equal(bytes % HR_PACK_ALIGNMENT, 0);
    for (uint32_t b = 0; b < rows * per_row; b++)
        fill_block(dtype, p.file + (size_t)b * hr_dtypes[dtype].block_bytes, has_extremes ? b : 5 * (uint64_t)b + 1);
    memset(p.at, 0xA5, bytes);
    assert_int_equal(hr_pack_groups(&p.from, 0, (rows + HR_PACK_ROWS - 1) / HR_PACK_ROWS, p.at, &bad_row, NULL),
                     HEADRACE_OK);
    p.w = hr_pack_matrix(&p.from, p.at);
    assert_true(p.w.is_packed);
    assert_int_equal(p.w.row_bytes * HR_PACK_ROWS, hr_pack_group_bytes(p.w.dtype, cols));
    return p;
}

static void drop(packed *p)
{
    free(p->file);
    free(p->at);
}

/* ---------------------------------------------------------------- the header's words */

static float half_at(const byte *at)
{
    uint16_t half;

    memcpy(&half, at, sizeof half);
    return hr_f16_to_f32(half);
}

/* Nibble of column c (0 .. 31) of output o in four vectors. */
static int nibble(const byte *vectors, uint32_t o, uint32_t c)
{
    uint32_t i = c % 16 / 4, t = c % 4;
    byte pair = vectors[64 * i + 4 * o + t];

    return c < 16 ? pair & 15 : pair >> 4;
}

static float value_q4_0(const byte *chunk, uint32_t o, uint32_t c)
{
    return half_at(chunk + 32 * (c / 32) + 2 * o) * (float)(nibble(chunk + 64 + 256 * (c / 32), o, c % 32) - 8);
}

static float value_q4_1(const byte *chunk, uint32_t o, uint32_t c)
{
    const byte *scale = chunk + 32 * (c / 32) + 2 * o;

    return half_at(scale) * (float)nibble(chunk + 128 + 256 * (c / 32), o, c % 32) - half_at(scale + 64);
}

static float value_q8_0(const byte *chunk, uint32_t o, uint32_t c)
{
    uint32_t b = c / 32, i = c % 32 / 4, t = c % 4;

    return half_at(chunk + 32 * b + 2 * o) * (float)(chunk[64 + 512 * b + 64 * i + 4 * o + t] - 128);
}

static int six_bits(const byte *scales, uint32_t r, uint32_t o)
{
    int low = r < 8 ? scales[16 * r + o] & 15 : scales[16 * (r - 8) + o] >> 4;
    uint32_t p = r / 4, j = r % 4;

    return low + 16 * (scales[128 + 16 * j + o] >> 2 * p & 3);
}

static float value_k(const byte *chunk, uint32_t o, uint32_t c, bool has_fifth)
{
    uint32_t s = c / 32, vectors = has_fifth ? 5 : 4, i = c % 32 / 4, t = c % 4;
    const byte *sub_block = chunk + 64 + 192 + (size_t)64 * vectors * s;
    int q = nibble(sub_block, o, c % 32);

    if (has_fifth)
        q += 16 * (sub_block[256 + 4 * o + t] >> i & 1);
    float step = half_at(chunk + 2 * o) * (float)six_bits(chunk + 64, s, o);
    float offset = half_at(chunk + 32 + 2 * o) * (float)six_bits(chunk + 64, 8 + s, o);

    return step * (float)q - offset;
}

static float value_q6_k(const byte *chunk, uint32_t o, uint32_t c)
{
    const byte *pair = chunk + 64 + 256 + (size_t)384 * (c / 32);
    uint32_t v = c % 32 / 16, j = c % 16 / 4, t = c % 4;
    int q = nibble(pair, o, c % 32) + 16 * (pair[256 + 64 * v + 4 * o + t] >> 2 * j & 3);
    int8_t scale = (int8_t)chunk[64 + 16 * (c / 16) + o];

    return half_at(chunk + 2 * o) * (float)scale * (float)(q - 32);
}

static float value_at(const hr_matrix *w, uint32_t row, uint32_t col)
{
    const byte *group = (const byte *)w->data + row / 16 * 16 * w->row_bytes;
    uint32_t o = row % 16;

    switch (w->dtype) {
    case HR_Q4_0:
        return value_q4_0(group + (size_t)col / 64 * 576, o, col % 64);
    case HR_Q4_1:
        return value_q4_1(group + (size_t)col / 64 * 640, o, col % 64);
    case HR_Q8_0:
        return value_q8_0(group + (size_t)col / 64 * 1088, o, col % 64);
    case HR_Q4_K:
        return value_k(group + (size_t)col / 256 * 2304, o, col % 256, false);
    case HR_Q5_K:
        return value_k(group + (size_t)col / 256 * 2816, o, col % 256, true);
    default:
        assert_int_equal(w->dtype, HR_Q6_K);
        return value_q6_k(group + (size_t)col / 256 * 3392, o, col % 256);
    }
}

static void check_layout(hr_dtype dtype, uint32_t rows, uint32_t cols)
{
    packed p = make(dtype, rows, cols, true);
    float *expected = malloc(2 * cols * sizeof *expected), *read = expected + cols;

    assert_non_null(expected);
    for (uint32_t row = 0; row < rows; row++) {
        hr_dequantize(dtype, p.file + row * p.from.row_bytes, expected, cols);
        hr_pack_read_row(&p.w, row, read);
        for (uint32_t col = 0; col < cols; col++)
            assert_int_equal(hr_f32_to_bits(read[col]), hr_f32_to_bits(expected[col]));
        for (uint32_t col = 0; col < cols; col++) {
            float found = value_at(&p.w, row, col);

            if (hr_f32_to_bits(found) != hr_f32_to_bits(expected[col]))
                fail_msg("%s [%u, %u]: row %u column %u: %a, expected %a", hr_dtypes[dtype].name, rows, cols, row, col,
                         (double)found, (double)expected[col]);
        }
    }
    free(expected);
    drop(&p);
}

static void every_weight_lies_where_the_header_says(void **state)
{
    static const uint32_t rows[] = {1, 15, 16, 17, 40}, widths[] = {1, 2, 3, 7};

    (void)state;
    for (uint32_t i = 0; i < TYPES; i++) {
        for (uint32_t r = 0; r < 5; r++) {
            for (uint32_t w = 0; w < 4; w++)
                check_layout(types[i], rows[r], widths[w] * hr_dtypes[types[i]].block_values);
        }
    }
}

/* Rows that fill no group and the second block of an odd pair have scale zero, whatever the memory held. */
static void what_is_missing_is_zero(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < TYPES; i++) {
        uint32_t cols = hr_dtypes[types[i]].block_values * 3, wide = cols < 256 ? 128 : cols;
        packed p = make(types[i], 19, cols, false);

        for (uint32_t col = 0; col < wide; col++) {
            for (uint32_t row = col < cols ? 19 : 0; row < 32; row++)
                assert_true(value_at(&p.w, row, col) == 0);
        }
        drop(&p);
    }
}

static void a_packed_matrix_has_the_size_of_the_file(void **state)
{
    (void)state;
    assert_int_equal(hr_pack_bytes(HR_Q4_0, 2048, 2048), 2048 * hr_dtype_row_bytes(HR_Q4_0, 2048));
    assert_int_equal(hr_pack_bytes(HR_Q4_1, 2048, 2048), 2048 * hr_dtype_row_bytes(HR_Q4_1, 2048));
    assert_int_equal(hr_pack_bytes(HR_Q8_0, 2048, 2048), 2048 * hr_dtype_row_bytes(HR_Q8_0, 2048));
    assert_int_equal(hr_pack_bytes(HR_Q4_K, 2048, 2048), 2048 * hr_dtype_row_bytes(HR_Q4_K, 2048));
    assert_int_equal(hr_pack_bytes(HR_Q5_K, 2048, 2048), 2048 * hr_dtype_row_bytes(HR_Q5_K, 2048));
    assert_int_equal(hr_pack_bytes(HR_Q6_K, 2048, 2048), 2048 * 2048 / 256 * 212);
    assert_int_equal(hr_pack_bytes(HR_Q5_0, 2048, 2048), hr_pack_bytes(HR_Q8_0, 2048, 2048));
    for (hr_dtype dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        assert_int_equal(hr_pack_is_packed(dtype), hr_pack_bytes(dtype, 16, 256) > 0);
    assert_false(hr_pack_is_packed(HR_F32) || hr_pack_is_packed(HR_F16) || hr_pack_is_packed(HR_BF16));
}

static void a_scale_that_is_not_finite_is_refused_by_row_and_block(void **state)
{
    static const uint16_t broken[] = {0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF};

    (void)state;
    for (uint32_t i = 0; i < TYPES; i++) {
        packed p = make(types[i], 21, 768, false);
        uint32_t at[2], n_scales = scale_offsets(types[i], at), bad_row, block_bytes = hr_dtypes[types[i]].block_bytes;

        for (uint32_t s = 0; s < n_scales * 5; s++) {
            byte *block = p.file + 18 * p.from.row_bytes + (size_t)2 * block_bytes, whole[256];
            headrace_error err = {0};

            memcpy(whole, block, block_bytes);
            set_half(block + at[s / 5], broken[s % 5]);
            bad_row = 0;
            assert_int_equal(hr_pack_groups(&p.from, 1, 2, p.at, &bad_row, &err), HEADRACE_E_MODEL);
            assert_int_equal(bad_row, 18);
            assert_string_equal(err.message, "row 18, block 2: a scale of it is not a finite number");
            assert_int_equal(hr_pack_groups(&p.from, 0, 1, p.at, &bad_row, &err), HEADRACE_OK);
            memcpy(block, whole, block_bytes);
        }
        drop(&p);
    }
}

/* ---------------------------------------------------------------- activations */

static void *make_row(const float *x, uint32_t cols)
{
    void *row = aligned_alloc(64, hr_int8_row_bytes(cols));

    assert_non_null(row);
    memset(row, 0xA5, hr_int8_row_bytes(cols));
    hr_cpu_plain_prepare_int8(x, cols, row);
    return row;
}

static void fill(float *x, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(hr_rng_unit(hr_rng_at(key, i)) * 2 - 1) * (i % 37 == 0 ? 20.0f : 1.0f);
}

static void a_row_is_rounded_by_block_to_the_nearest_step(void **state)
{
    enum { COLS = 7 * 32 };
    float x[COLS];
    hr_int8_row row;
    void *at;

    (void)state;
    fill(x, COLS, 1);
    at = make_row(x, COLS);
    row = hr_int8_row_at(at, COLS);
    for (uint32_t b = 0; b < COLS / 32; b++) {
        float largest = 0;
        int half[2] = {0, 0};

        for (uint32_t i = 0; i < 32; i++) {
            double q = row.q[32 * b + i], exact = (double)x[32 * b + i] / (double)row.scale[b];

            largest = fmaxf(largest, fabsf(x[32 * b + i]));
            assert_true(fabs(q - exact) <= 0.5 + 1e-5);
            half[i / 16] += row.q[32 * b + i];
        }
        assert_true(row.scale[b] == largest / 127);
        assert_true(row.minimum[b] == -(row.scale[b] * (float)(half[0] + half[1])));
        assert_int_equal(row.zero8[b], -8 * (half[0] + half[1]));
        assert_int_equal(row.zero128[b], -128 * (half[0] + half[1]));
        assert_int_equal(row.zero32[2 * b], -32 * half[0]);
        assert_int_equal(row.zero32[2 * b + 1], -32 * half[1]);
    }
    assert_int_equal(hr_int8_blocks(COLS), 8);
    assert_true(row.scale[7] == 0 && row.minimum[7] == 0 && row.zero8[7] == 0); /* the block past the row */
    for (uint32_t i = COLS; i < 256; i++)
        assert_int_equal(row.q[i], 0);
    free(at);
}

static void ties_go_to_even_and_extremes_stay_in_a_byte(void **state)
{
    float x[64];
    hr_int8_row row;
    void *at;

    (void)state;
    for (int i = 0; i < 32; i++)
        x[i] = (float)(i - 16) + 0.5f; /* with scale 1: halves */
    x[0] = -127;
    x[1] = 127;
    for (int i = 32; i < 64; i++)
        x[i] = i % 2 ? FLT_MAX : -FLT_MAX;
    at = make_row(x, 64);
    row = hr_int8_row_at(at, 64);
    for (int i = 2; i < 32; i++)
        assert_true(row.q[i] % 2 == 0 && fabsf((float)row.q[i] - x[i]) == 0.5f);
    for (int i = 32; i < 64; i++)
        assert_int_equal(row.q[i], i % 2 ? 127 : -127);
    free(at);
}

/* Values so small that their scale would have few bits, or none, count as zero. */
static void a_block_below_the_normal_numbers_is_zero(void **state)
{
    float x[96];
    hr_int8_row row;
    void *at;

    (void)state;
    for (int i = 0; i < 96; i++)
        x[i] = i < 32 ? 0 : i < 64 ? FLT_TRUE_MIN * (float)i : FLT_MIN * 128;
    at = make_row(x, 96);
    row = hr_int8_row_at(at, 96);
    assert_true(row.scale[0] == 0 && row.scale[1] == 0 && row.scale[2] > 0);
    for (int i = 0; i < 96; i++)
        assert_int_equal(row.q[i], i < 64 ? 0 : 127);
    free(at);
}

/* ---------------------------------------------------------------- the product */

static void check_product(hr_dtype dtype, uint32_t rows, uint32_t cols)
{
    enum { N = 3 };
    packed p = make(dtype, rows, cols, false);
    size_t row_bytes = hr_int8_row_bytes(cols);
    float *x = malloc(N * cols * sizeof *x), *weights = malloc(cols * sizeof *weights);
    float *y = malloc(N * ((size_t)rows + 1) * sizeof *y);
    byte *in = aligned_alloc(64, N * row_bytes);

    assert_true(x && weights && y && in);
    fill(x, (size_t)N * cols, cols);
    for (uint32_t r = 0; r < N; r++) {
        hr_cpu_plain_prepare_int8(x + (size_t)r * cols, cols, in + r * row_bytes);
        y[r * (rows + 1) + rows] = 77; /* not an output of anything */
    }
    hr_cpu_plain_linear_packed(&p.w, 0, rows, in, N, y, rows + 1, NULL);
    for (uint32_t o = 0; o < rows; o++) {
        hr_dequantize(dtype, p.file + o * p.from.row_bytes, weights, cols);
        for (uint32_t r = 0; r < N; r++) {
            hr_int8_row row = hr_int8_row_at(in + r * row_bytes, cols);
            double sum = 0, size = 0, found = (double)y[r * (rows + 1) + o];

            for (uint32_t c = 0; c < cols; c++) {
                double product = (double)weights[c] * ((double)row.q[c] * (double)row.scale[c / 32]);

                sum += product;
                size += fabs(product);
            }
            if (!(fabs(found - sum) <= 1e-6 * size))
                fail_msg("%s [%u, %u]: output %u of row %u: %g, expected %g", hr_dtypes[dtype].name, rows, cols, o, r,
                         found, sum);
        }
    }
    for (uint32_t r = 0; r < N; r++)
        assert_true(y[r * (rows + 1) + rows] == 77);
    free(in);
    free(y);
    free(weights);
    free(x);
    drop(&p);
}

static void the_product_is_that_of_a_double_loop(void **state)
{
    static const uint32_t rows[] = {1, 16, 37}, widths[] = {1, 2, 5};

    (void)state;
    for (uint32_t i = 0; i < TYPES; i++) {
        for (uint32_t r = 0; r < 3; r++) {
            for (uint32_t w = 0; w < 3; w++)
                check_product(types[i], rows[r], widths[w] * hr_dtypes[types[i]].block_values);
        }
    }
}

static void a_broken_activation_breaks_its_row_and_no_other(void **state)
{
    static const float broken[] = {NAN, INFINITY, -INFINITY};
    enum { COLS = 512, OUTPUTS = 16, N = 2 };

    (void)state;
    for (uint32_t i = 0; i < TYPES * 3; i++) {
        packed p = make(types[i / 3], OUTPUTS, COLS, false);
        float x[N * COLS], y[N * OUTPUTS];
        size_t row_bytes = hr_int8_row_bytes(COLS);
        byte *in = aligned_alloc(64, N * row_bytes);

        assert_non_null(in);
        fill(x, (size_t)N * COLS, i);
        x[COLS + 100] = broken[i % 3];
        for (uint32_t r = 0; r < N; r++)
            hr_cpu_plain_prepare_int8(x + (size_t)r * COLS, COLS, in + r * row_bytes);
        hr_cpu_plain_linear_packed(&p.w, 0, OUTPUTS, in, N, y, OUTPUTS, NULL);
        for (uint32_t o = 0; o < OUTPUTS; o++)
            assert_true(isfinite(y[o]) && isnan(y[OUTPUTS + o]));
        free(in);
        drop(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_lies_where_the_header_says),
        cmocka_unit_test(what_is_missing_is_zero),
        cmocka_unit_test(a_packed_matrix_has_the_size_of_the_file),
        cmocka_unit_test(a_scale_that_is_not_finite_is_refused_by_row_and_block),
        cmocka_unit_test(a_row_is_rounded_by_block_to_the_nearest_step),
        cmocka_unit_test(ties_go_to_even_and_extremes_stay_in_a_byte),
        cmocka_unit_test(a_block_below_the_normal_numbers_is_zero),
        cmocka_unit_test(the_product_is_that_of_a_double_loop),
        cmocka_unit_test(a_broken_activation_breaks_its_row_and_no_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
