/* Quantisers: the rules bit for bit against the gguf package (tests/data/quantize), the searches against plain loops.
 */
#include "base/numeric.h"
#include "base/rng.h"
#include "format/quantize.h"
#include "support/recipe.h"

#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { COLUMNS = 2048 };

typedef enum row_kind {
    NORMAL,
    UNIFORM,
    OUTLIERS,
    CONSTANT,
    NEGATIVE_CONSTANT,
    ZERO,
    DENORMAL,
    TINY,
    ONE_SIDED,
    KINDS
} row_kind;
static const char *const kind_names[KINDS] = {"normal", "uniform",  "outliers", "constant", "negative constant",
                                              "zero",   "denormal", "tiny",     "one-sided"};

/* Sums of twelve uniform numbers: close to normal, and the same bits whatever the C library. */
static float value_of(row_kind kind, uint64_t i)
{
    double sum = -6.0, unit = hr_rng_unit(hr_rng_at(77, 1000003 * (uint64_t)kind + i));

    for (uint64_t k = 0; k < 12; k++)
        sum += hr_rng_unit(hr_rng_at(5, 12 * i + k));
    switch (kind) {
    case UNIFORM:
        return (float)(0.1 * (unit - 0.5));
    case OUTLIERS:
        return (float)(unit < 0.005 ? 0.5 * sum : 0.02 * sum);
    case CONSTANT:
        return 0.037F;
    case NEGATIVE_CONSTANT:
        return -0.4F;
    case ZERO:
        return i % 2 ? 0.0F : -0.0F;
    case DENORMAL:
        return (float)sum * 0x1p-140F;
    case TINY:
        return (float)sum * 0x1p-22F;
    case ONE_SIDED:
        return (float)(0.3 + 0.02 * sum);
    default:
        return (float)(0.02 * sum);
    }
}

static void fill(row_kind kind, float *row)
{
    for (uint64_t i = 0; i < COLUMNS; i++)
        row[i] = value_of(kind, i);
}

/* Skewed as real ones are: a few columns a thousand times as important as most, some without any. */
static void fill_importance(float *importance)
{
    for (uint64_t i = 0; i < COLUMNS; i++) {
        float u = (float)hr_rng_unit(hr_rng_at(9, i));

        importance[i] = u < 0.05F ? 0.0F : u * u * u * u * u * u * 40.0F;
    }
}

static double error_of(const float *row, const float *importance, const float *found, size_t n)
{
    double sum = 0.0;

    for (size_t i = 0; i < n; i++) {
        double rest = (double)row[i] - (double)found[i];
        sum += (importance ? (double)importance[i] : 1.0) * rest * rest;
    }
    return sum;
}

static void quantise_back(hr_dtype dtype, const float *row, const float *importance, float *found)
{
    static unsigned char bytes[COLUMNS * 4];

    assert_int_equal(hr_quantize_row(dtype, row, importance, COLUMNS, bytes), COLUMNS);
    hr_dequantize(dtype, bytes, found, COLUMNS);
}

static char *read_data(const char *name, size_t *len)
{
    char path[512];

    (void)snprintf(path, sizeof path, HEADRACE_TEST_DATA "/quantize/%s.bin", name);
    return hr_test_read_file(path, len);
}

static void the_rules_give_the_bits_of_the_gguf_package(void **state)
{
    static const hr_dtype types[] = {HR_Q4_0, HR_Q4_1, HR_Q5_0, HR_Q5_1, HR_Q8_0};
    size_t len, n;
    char *values = read_data("values", &len);

    (void)state;
    n = len / sizeof(float);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const hr_dtype_info *info = &hr_dtypes[types[t]];
        char name[8] = "";

        for (size_t i = 0; info->name[i]; i++)
            name[i] = (char)tolower((unsigned char)info->name[i]);
        char *expected = read_data(name, &len), *found = malloc(len);

        assert_int_equal(len, hr_dtype_row_bytes(types[t], n));
        assert_non_null(found);
        assert_int_equal(hr_quantize_row(types[t], (const float *)values, NULL, n, found), n);
        for (size_t i = 0; i < n / 32; i++)
            if (memcmp(expected + i * info->block_bytes, found + i * info->block_bytes, info->block_bytes) != 0)
                fail_msg("%s: block %zu differs", info->name, i);
        free(expected);
        free(found);
    }
    free(values);
}

/* Half a step of the coarsest sub-block, whatever the values: |error| <= extreme x this, for each block of 256. */
static float worst_of(hr_dtype dtype)
{
    switch (dtype) {
    case HR_F32:
        return 0.0F;
    case HR_F16:
        return 0x1p-11F;
    case HR_BF16:
        return 0x1p-8F;
    case HR_Q8_0:
        return 0.0045F;
    case HR_Q6_K:
        return 0.04F;
    case HR_Q5_0:
    case HR_Q5_1:
    case HR_Q5_K:
        return 0.07F;
    default:
        return 0.14F;
    }
}

static void every_value_comes_back_within_the_step_of_its_type(void **state)
{
    static float row[COLUMNS], found[COLUMNS];

    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
            fill((row_kind)kind, row);
            quantise_back((hr_dtype)dtype, row, NULL, found);
            for (size_t i = 0; i < COLUMNS; i++) {
                float extreme = 0.0F;

                for (size_t j = i / 256 * 256; j < i / 256 * 256 + 256; j++)
                    extreme = fmaxf(extreme, fabsf(row[j]));
                /* A scale of fp16 cannot be finer than 2^-24: with it, nothing is off by more than its own size. */
                float bound = dtype == HR_F32 ? 0.0F : fmaxf(extreme * worst_of((hr_dtype)dtype), 64 * 0x1p-24F);

                if (!(fabsf(row[i] - found[i]) <= bound))
                    fail_msg("%s, %s: value %zu, %g, came back as %g", hr_dtypes[dtype].name, kind_names[kind], i,
                             (double)row[i], (double)found[i]);
            }
        }
}

static void zeros_come_back_as_zeros(void **state)
{
    static float row[COLUMNS], found[COLUMNS], importance[COLUMNS];

    (void)state;
    fill_importance(importance);
    memset(row, 0, sizeof row);
    for (size_t i = 256; i < 512; i++)
        row[i] = value_of(NORMAL, i);
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        for (int with = 0; with < 2; with++) {
            quantise_back((hr_dtype)dtype, row, with ? importance : NULL, found);
            for (size_t i = 0; i < COLUMNS; i++)
                if (i / 256 != 1 && found[i] != 0.0F)
                    fail_msg("%s: value %zu of an empty block came back as %g", hr_dtypes[dtype].name, i,
                             (double)found[i]);
        }
}

/* Root mean square error over root mean square value on normal rows. The bounds are what the quantisers of llama.cpp
 * leave on such rows (as in llama-cpp-python 0.3.36): 0.0711, 0.0360 and 0.0177. */
static void k_types_leave_no_more_error_than_the_reference(void **state)
{
    static const struct {
        hr_dtype dtype;
        double most;
    } bounds[] = {{HR_Q4_K, 0.0711}, {HR_Q5_K, 0.0360}, {HR_Q6_K, 0.0177}};
    static float row[COLUMNS], found[COLUMNS], zeros[COLUMNS];

    (void)state;
    fill(NORMAL, row);
    for (size_t i = 0; i < 3; i++) {
        quantise_back(bounds[i].dtype, row, NULL, found);
        double relative = sqrt(error_of(row, NULL, found, COLUMNS) / error_of(row, NULL, zeros, COLUMNS));

        if (relative > bounds[i].most)
            fail_msg("%s: relative error %.5f, expected at most %.5f", hr_dtypes[bounds[i].dtype].name, relative,
                     bounds[i].most);
    }
}

static void importance_lowers_the_error_that_it_weighs(void **state)
{
    static const row_kind kinds[] = {NORMAL, UNIFORM, OUTLIERS, ONE_SIDED};
    static float row[COLUMNS], found[COLUMNS], importance[COLUMNS];

    (void)state;
    fill_importance(importance);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int dtype = HR_Q4_0; dtype < HR_DTYPE_COUNT; dtype++) {
            double with, without;

            fill(kinds[k], row);
            quantise_back((hr_dtype)dtype, row, NULL, found);
            without = error_of(row, importance, found, COLUMNS);
            quantise_back((hr_dtype)dtype, row, importance, found);
            with = error_of(row, importance, found, COLUMNS);
            if (with > 0.9 * without)
                fail_msg("%s, %s: weighted error %g with importance, %g without", hr_dtypes[dtype].name,
                         kind_names[kinds[k]], with, without);
        }
}

/* The error of the best of 8000 steps, the plain way: what no search may miss by much. */
static double best_scanned(const float *x, const float *importance, int middle)
{
    double best = 1e300;
    float extreme = 0.0F;

    for (int j = 0; j < 32; j++)
        extreme = fmaxf(extreme, fabsf(x[j]));
    for (int i = -4000; i <= 4000; i++) {
        float step = hr_f16_to_f32(hr_f32_to_f16(extreme / (float)middle * 1.6F * (float)i / 4000.0F)), back[32];

        for (int j = 0; j < 32 && step != 0.0F; j++)
            back[j] = step * fminf(fmaxf(rintf(x[j] / step), (float)-middle), (float)middle - 1.0F);
        if (step != 0.0F)
            best = fmin(best, error_of(x, importance, back, 32));
    }
    return best;
}

static void a_search_finds_nearly_the_best_step(void **state)
{
    static float row[COLUMNS], found[COLUMNS], importance[COLUMNS];

    (void)state;
    fill_importance(importance);
    for (size_t t = 0; t < 4; t++) {
        hr_dtype dtype = t % 2 ? HR_Q5_0 : HR_Q4_0;
        double sum = 0.0, best = 0.0, most = t < 2 ? 1.05 : 1.5; /* an outlier without weight makes many minima */

        fill(t < 2 ? NORMAL : OUTLIERS, row);
        quantise_back(dtype, row, importance, found);
        for (size_t at = 0; at < 512; at += 32) {
            sum += error_of(row + at, importance + at, found + at, 32);
            best += best_scanned(row + at, importance + at, t % 2 ? 16 : 8);
        }
        if (sum > most * best)
            fail_msg("%s: error %g, a scan of all steps finds %g", hr_dtypes[dtype].name, sum, best);
    }
}

static void only_proportions_of_importance_count(void **state)
{
    static float row[COLUMNS], importance[COLUMNS], scaled[COLUMNS], zeros[COLUMNS], ones[COLUMNS];
    static unsigned char a[COLUMNS * 4], b[COLUMNS * 4];

    (void)state;
    fill(NORMAL, row);
    fill_importance(importance);
    for (size_t i = 0; i < COLUMNS; i++) {
        scaled[i] = importance[i] * 0x1p-60F;
        ones[i] = 1.0F;
    }
    for (int dtype = HR_Q4_0; dtype < HR_DTYPE_COUNT; dtype++) {
        size_t n = hr_dtype_row_bytes((hr_dtype)dtype, COLUMNS);

        assert_int_equal(hr_quantize_row((hr_dtype)dtype, row, importance, COLUMNS, a), COLUMNS);
        assert_int_equal(hr_quantize_row((hr_dtype)dtype, row, scaled, COLUMNS, b), COLUMNS);
        assert_memory_equal(a, b, n);
        assert_int_equal(hr_quantize_row((hr_dtype)dtype, row, ones, COLUMNS, a), COLUMNS);
        assert_int_equal(hr_quantize_row((hr_dtype)dtype, row, zeros, COLUMNS, b), COLUMNS);
        assert_memory_equal(a, b, n);
    }
}

static void rows_may_be_cut_anywhere_between_blocks(void **state)
{
    static float row[COLUMNS], importance[COLUMNS];
    static unsigned char whole[COLUMNS * 4], parts[COLUMNS * 4];

    (void)state;
    fill(OUTLIERS, row);
    fill_importance(importance);
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        for (int with = 0; with < 2; with++) {
            size_t values = hr_dtypes[dtype].block_values, bytes = hr_dtypes[dtype].block_bytes;

            (void)hr_quantize_row((hr_dtype)dtype, row, with ? importance : NULL, COLUMNS, whole);
            for (size_t i = 0; i < COLUMNS / values; i++)
                assert_int_equal(hr_quantize_row((hr_dtype)dtype, row + i * values,
                                                 with ? importance + i * values : NULL, values, parts + i * bytes),
                                 values);
            assert_memory_equal(whole, parts, hr_dtype_row_bytes((hr_dtype)dtype, COLUMNS));
        }
}

static void what_cannot_be_stored_is_named(void **state)
{
    static const float wrong[] = {NAN, INFINITY, -INFINITY, -3e38F};
    static float row[COLUMNS], importance[COLUMNS];
    static unsigned char bytes[COLUMNS * 4];

    (void)state;
    fill_importance(importance);
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
            for (int with = 0; with < 2; with++) {
                bool fits = isfinite(wrong[i]) && (dtype == HR_F32 || dtype == HR_BF16);

                fill(NORMAL, row);
                row[777] = wrong[i];
                assert_int_equal(hr_quantize_row((hr_dtype)dtype, row, with ? importance : NULL, COLUMNS, bytes),
                                 fits ? COLUMNS : 777);
            }
    row[777] = 3.4e38F; /* rounds up to infinity */
    assert_int_equal(hr_quantize_row(HR_BF16, row, NULL, COLUMNS, bytes), 777);
    row[777] = 65519.0F;
    assert_int_equal(hr_quantize_row(HR_F16, row, NULL, COLUMNS, bytes), COLUMNS);
    row[777] = 65520.0F;
    assert_int_equal(hr_quantize_row(HR_F16, row, NULL, COLUMNS, bytes), 777);
}

/* FNV-1a over every type's bytes: the same with any compiler, optimisation and instruction set. */
static void the_bytes_do_not_depend_on_the_build(void **state)
{
    static const uint64_t expected[2] = {0xCED57A4EBE8461F7u, 0x6712BD9F975461AFu};
    static float row[COLUMNS], importance[COLUMNS];
    static unsigned char bytes[COLUMNS * 4];

    (void)state;
    fill_importance(importance);
    for (int with = 0; with < 2; with++) {
        uint64_t hash = 0xCBF29CE484222325u;

        for (int kind = 0; kind < KINDS; kind++)
            for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
                fill((row_kind)kind, row);
                (void)hr_quantize_row((hr_dtype)dtype, row, with ? importance : NULL, COLUMNS, bytes);
                for (size_t i = 0; i < hr_dtype_row_bytes((hr_dtype)dtype, COLUMNS); i++)
                    hash = (hash ^ bytes[i]) * 0x100000001B3u;
            }
        if (hash != expected[with])
            fail_msg("%s importance: expected 0x%016llX, found 0x%016llX", with ? "with" : "without",
                     (unsigned long long)expected[with], (unsigned long long)hash);
    }
}

static void nothing_is_a_row_too(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
        assert_true(hr_can_quantize((hr_dtype)dtype));
        assert_int_equal(hr_quantize_row((hr_dtype)dtype, NULL, NULL, 0, NULL), 0);
    }
    assert_false(hr_can_quantize(HR_DTYPE_COUNT));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rules_give_the_bits_of_the_gguf_package),
        cmocka_unit_test(every_value_comes_back_within_the_step_of_its_type),
        cmocka_unit_test(zeros_come_back_as_zeros),
        cmocka_unit_test(k_types_leave_no_more_error_than_the_reference),
        cmocka_unit_test(importance_lowers_the_error_that_it_weighs),
        cmocka_unit_test(a_search_finds_nearly_the_best_step),
        cmocka_unit_test(only_proportions_of_importance_count),
        cmocka_unit_test(rows_may_be_cut_anywhere_between_blocks),
        cmocka_unit_test(what_cannot_be_stored_is_named),
        cmocka_unit_test(the_bytes_do_not_depend_on_the_build),
        cmocka_unit_test(nothing_is_a_row_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
