/* 16-bit numbers against the compiler's own _Float16 and against the definition of bf16, over all bit patterns. */
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

static void every_bf16_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float value = hr_bf16_to_f32((uint16_t)h);

        if (isnan(value))
            assert_true(isnan(hr_bf16_to_f32(hr_f32_to_bf16(value))));
        else
            assert_int_equal(hr_f32_to_bf16(value), h);
    }
}

static void every_f16_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float value = hr_f16_to_f32((uint16_t)h);

        if (isnan(value))
            assert_true(isnan(hr_f16_to_f32(hr_f32_to_f16(value))));
        else
            assert_int_equal(hr_f32_to_f16(value), h);
    }
}

/* Neighbours of every f16: one fp32 step around each value and around each midpoint decide every rounding case. */
static void rounding_to_f16_is_to_the_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7C00; h++) {
        float low = hr_f16_to_f32((uint16_t)h);
        float high = h == 0x7BFF ? 65536.0f : hr_f16_to_f32((uint16_t)(h + 1));
        float middle = low + (high - low) / 2; /* exact: 12 bits are enough */

        assert_int_equal(hr_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(hr_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(hr_f32_to_f16(middle), h % 2 ? h + 1 : h);
        assert_int_equal(hr_f32_to_f16(-middle), (h % 2 ? h + 1 : h) | 0x8000);
    }
}

static void rounding_to_bf16_is_to_the_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 1; h < 0x7F7F; h++) {
        uint32_t bits = h << 16;

        assert_int_equal(hr_f32_to_bf16(hr_bits_to_f32(bits | 0x7FFF)), h);
        assert_int_equal(hr_f32_to_bf16(hr_bits_to_f32(bits | 0x8001)), h + 1);
        assert_int_equal(hr_f32_to_bf16(hr_bits_to_f32(bits | 0x8000)), h % 2 ? h + 1 : h);
    }
    assert_int_equal(hr_f32_to_bf16(INFINITY), 0x7F80);
    assert_true(isnan(hr_bf16_to_f32(hr_f32_to_bf16(hr_bits_to_f32(0x7F800001))))); /* must not round up to infinity */
}

static void random_numbers_depend_on_their_key_alone(void **state)
{
    double sum = 0;

    (void)state;
    assert_true(hr_rng_at(1, 2) == hr_rng_at(1, 2));
    assert_true(hr_rng_at(1, 2) != hr_rng_at(2, 1));
    assert_true(hr_rng_key(7, 0) != hr_rng_key(7, 1) && hr_rng_key(7, 0) != hr_rng_key(8, 0));
    for (uint64_t i = 0; i < 100000; i++) {
        double u = hr_rng_unit(hr_rng_at(hr_rng_key(3, 5), i));

        assert_true(u > 0 && u < 1);
        sum += u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005); /* 5 standard deviations */
    assert_true(hr_rng_unit(0) > 0 && hr_rng_unit(UINT64_MAX) < 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bf16_survives_the_round_trip),
        cmocka_unit_test(every_f16_survives_the_round_trip),
        cmocka_unit_test(rounding_to_f16_is_to_the_nearest_even),
        cmocka_unit_test(rounding_to_bf16_is_to_the_nearest_even),
        cmocka_unit_test(random_numbers_depend_on_their_key_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
