/* The products of packed matrices by AMX, on a model of its tiles and so on any machine with AVX-512: the plain
 * products, bit for bit. Where the tiles are real, test_packed_kernels runs them too.
 */
#include "base/rng.h"
#include "csrc/backend/amx_on_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const hr_dtype types[] = {HR_Q4_0, HR_Q4_1, HR_Q8_0, HR_Q4_K, HR_Q5_K, HR_Q6_K};

static void *aligned(size_t n)
{
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);

    assert_non_null(p);
    return p;
}

/* Random blocks of a file, packed; their scales are finite. */
static hr_matrix random_matrix(hr_dtype dtype, uint32_t outputs, uint32_t cols)
{
    hr_matrix from = {.dtype = dtype, .rows = outputs, .cols = cols, .row_bytes = hr_dtype_row_bytes(dtype, cols)};
    const size_t n = outputs * from.row_bytes, block = hr_dtypes[dtype].block_bytes;
    const size_t at = dtype == HR_Q6_K ? block - 2 : 0;
    unsigned char *file = aligned(n), *packed = aligned(hr_pack_bytes(dtype, outputs, cols));
    uint32_t bad_row;

    for (size_t i = 0; i < n; i++)
        file[i] = (unsigned char)hr_rng_at(1, i);
    for (size_t b = 0; b < n; b += block) {
        file[b + at + 1] = 0x24;
        if (dtype == HR_Q4_1 || dtype == HR_Q4_K || dtype == HR_Q5_K)
            file[b + 3] = 0xA2;
    }
    from.data = file;
    assert_int_equal(hr_pack_groups(&from, 0, (outputs + 15) / 16, packed, &bad_row, NULL), HEADRACE_OK);
    free(file);
    return hr_pack_matrix(&from, packed);
}

static bool has_avx512(void)
{
    const hr_cpu_kernels *table;
    bool is_usable;

    for (uint32_t i = 0; (table = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        if (is_usable && strcmp(table->name, "avx512") == 0)
            return true;
    }
    return false;
}

/* Any number of rows up to `most`, in steps; some columns at the extremes of int8. */
static void check_shape(hr_dtype dtype, uint32_t outputs, uint32_t cols, uint32_t most, uint32_t step)
{
    const size_t row_bytes = hr_int8_row_bytes(cols);
    const hr_matrix w = random_matrix(dtype, outputs, cols);
    unsigned char *rows = aligned(most * row_bytes), *scratch = aligned(HR_CPU_PACKED_SCRATCH);
    float *x = aligned(cols * sizeof *x), *expected = aligned((size_t)most * outputs * sizeof *expected);
    float *y = aligned((size_t)most * (outputs + 1) * sizeof *y);

    for (uint32_t r = 0; r < most; r++) {
        for (uint32_t c = 0; c < cols; c++)
            x[c] =
                r % 4 == 3 ? (hr_rng_at(2 + r, c) & 1 ? 1.0f : -1.0f) : (float)(hr_rng_unit(hr_rng_at(2 + r, c)) - 0.5);
        hr_cpu_kernels_plain.prepare_int8(x, cols, rows + r * row_bytes);
    }
    hr_cpu_kernels_plain.linear_packed(&w, 0, outputs, rows, most, expected, outputs, scratch);
    for (uint32_t n = 1; n <= most; n += step) {
        const uint32_t begin = outputs > 16 && n % 3 == 0 ? 16 : 0, width = outputs - begin;

        for (size_t i = 0; i < (size_t)n * (width + 1); i++)
            y[i] = 77;
        amx_on_model_linear_packed(&w, begin, outputs, rows, n, y, width + 1, scratch);
        for (uint32_t r = 0; r < n; r++) {
            if (memcmp(y + (size_t)r * (width + 1), expected + (size_t)r * outputs + begin, width * sizeof *y) != 0)
                fail_msg("%s [%u, %u]: row %u of %u differs from plain", hr_dtypes[dtype].name, outputs, cols, r, n);
            assert_true(y[(size_t)r * (width + 1) + width] == 77);
        }
    }
    free((void *)(uintptr_t)w.data);
    free(rows);
    free(scratch);
    free(x);
    free(expected);
    free(y);
}

static void products_on_tiles_equal_the_plain_ones_bit_for_bit(void **state)
{
    (void)state;
    if (!has_avx512())
        return; /* nor could such a machine run them */
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const uint32_t block = hr_dtypes[types[i]].block_values;

        check_shape(types[i], 39, block, 40, 1);
        check_shape(types[i], 16, 3 * block, 33, 8);
        check_shape(types[i], 70, 768 + (block < 256 ? 32 : 0), 37, 12);
    }
    check_shape(HR_Q4_0, 20, 96, 1060, 353);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_on_tiles_equal_the_plain_ones_bit_for_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
