// cmocka for C++ tests of kernels, and the comparison with a reference in double.
#pragma once

#include "kernels/support/device_array.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace hrk_test
{

// ||out - want|| <= 4e-3 ||want||; a NaN anywhere fails.
inline void expect_close(const std::vector<double> &out, const std::vector<double> &want)
{
    double error = 0, size = 0;

    assert_int_equal(out.size(), want.size());
    for (size_t i = 0; i < out.size(); i++) {
        error += (out[i] - want[i]) * (out[i] - want[i]);
        size += want[i] * want[i];
    }
    if (!(error <= 4e-3 * 4e-3 * size))
        fail_msg("relative error %g", sqrt(error / size));
}

inline void expect_same_bits(const std::vector<hrk_bf16> &a, const std::vector<hrk_bf16> &b)
{
    assert_int_equal(a.size(), b.size());
    for (size_t i = 0; i < a.size(); i++) {
        if (a[i] != b[i])
            fail_msg("value %zu: %04x and %04x", i, a[i], b[i]);
    }
}

// n rows of `cols` random values, padded with zeros to ld(cols).
inline std::vector<hrk_bf16> random_rows(Random &random, uint32_t n, uint32_t cols, float scale)
{
    std::vector<hrk_bf16> rows((size_t)n * hrk_ld(cols), 0);

    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t c = 0; c < cols; c++)
            rows[(size_t)r * hrk_ld(cols) + c] = bf16_bits(scale * random.normal());
    }
    return rows;
}

template <class T> std::vector<T> part(const std::vector<T> &v, size_t first, size_t n)
{
    return std::vector<T>(v.begin() + (ptrdiff_t)first, v.begin() + (ptrdiff_t)(first + n));
}

// What no kernel has written: DeviceArray's fill.
enum { UNTOUCHED = 0xffff };

} // namespace hrk_test
