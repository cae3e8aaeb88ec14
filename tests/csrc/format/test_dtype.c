/* Dequantisation, bit for bit against what the gguf package reads from the same blocks (tests/data/dequant). */
#include "base/numeric.h"
#include "format/dtype.h"
#include "support/recipe.h"

#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Both NaN (the payload is not part of the definition), or the same bits. */
static bool is_same(float a, float b)
{
    return (isnan(a) && isnan(b)) || hr_f32_to_bits(a) == hr_f32_to_bits(b);
}

static void check_type(hr_dtype dtype)
{
    char path[512], name[16] = "";
    size_t len, n;
    uint32_t head[3];

    for (size_t i = 0; hr_dtypes[dtype].name[i]; i++)
        name[i] = (char)tolower((unsigned char)hr_dtypes[dtype].name[i]);
    (void)snprintf(path, sizeof path, HEADRACE_TEST_DATA "/dequant/%s.bin", name);
    char *file = hr_test_read_file(path, &len);

    memcpy(head, file, sizeof head);
    assert_int_equal(head[1], hr_dtypes[dtype].block_values);
    assert_int_equal(head[2], hr_dtypes[dtype].block_bytes);
    n = (size_t)head[0] * head[1];
    assert_int_equal(len, sizeof head + (size_t)head[0] * head[2] + n * sizeof(float));
    float *expected = malloc(n * sizeof *expected), *found = malloc(n * sizeof *found);

    assert_non_null(expected);
    assert_non_null(found);
    memcpy(expected, file + len - n * sizeof(float), n * sizeof(float));
    hr_dequantize(dtype, file + sizeof head, found, n);
    for (size_t i = 0; i < n; i++)
        if (!is_same(expected[i], found[i]))
            fail_msg("%s: value %zu of block %zu: expected %a, found %a", hr_dtypes[dtype].name, i % head[1],
                     i / head[1], (double)expected[i], (double)found[i]);
    free(expected);
    free(found);
    free(file);
}

static void every_type_reads_as_the_reference_does(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        check_type((hr_dtype)dtype);
}

static void a_source_needs_no_alignment(void **state)
{
    unsigned char block[1 + 144];
    float even[256], odd[256];

    (void)state;
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (unsigned char)(i * 37 + 11);
    hr_dequantize(HR_Q4_K, block + 1, odd, 256);
    memmove(block, block + 1, 144);
    hr_dequantize(HR_Q4_K, block, even, 256);
    assert_memory_equal(even, odd, sizeof even);
}

static void a_row_has_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(hr_dtype_row_bytes(HR_F32, 3), 12);
    assert_int_equal(hr_dtype_row_bytes(HR_Q8_0, 64), 68);
    assert_int_equal(hr_dtype_row_bytes(HR_Q6_K, 512), 420);
    hr_dequantize(HR_Q6_K, NULL, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_reads_as_the_reference_does),
        cmocka_unit_test(a_source_needs_no_alignment),
        cmocka_unit_test(a_row_has_whole_blocks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
