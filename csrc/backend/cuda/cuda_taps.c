/* Taps on a device: wait, copy rows back, turn them into dense fp32. For tools and tests; a step with taps takes as
 * long as it takes. */
#include "backend/cuda/cuda.h"

#include "base/numeric.h"

#include <string.h>

static void emit(const hr_cuda *cuda, hr_tap tap, uint32_t layer, uint32_t n_rows, uint32_t cols)
{
    cuda->options.tap(cuda->options.tap_user, tap, layer, cuda->tap_values, n_rows, cols);
}

headrace_status hr_cuda_tap_bf16(hr_cuda *cuda, hr_tap tap, uint32_t layer, const hrk_bf16 *rows, uint32_t n_rows,
                                 uint32_t cols, uint32_t ld, headrace_error *err)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        float *to = cuda->tap_values + (size_t)r * cols;
        uint16_t *halves = (uint16_t *)(void *)to + cols; /* the upper half: it is read before it is overwritten */

        HR_PASS(hr_cuda_read(cuda, rows + (size_t)r * ld, halves, cols * sizeof *halves, err));
        for (uint32_t i = 0; i < cols; i++) {
            uint16_t value;

            memcpy(&value, halves + i, sizeof value);
            to[i] = hr_bf16_to_f32(value);
        }
    }
    emit(cuda, tap, layer, n_rows, cols);
    return HEADRACE_OK;
}

headrace_status hr_cuda_tap_f32(hr_cuda *cuda, hr_tap tap, uint32_t layer, const float *rows, uint32_t n_rows,
                                uint32_t cols, uint32_t ld, headrace_error *err)
{
    for (uint32_t r = 0; r < n_rows; r++)
        HR_PASS(
            hr_cuda_read(cuda, rows + (size_t)r * ld, cuda->tap_values + (size_t)r * cols, cols * sizeof(float), err));
    emit(cuda, tap, layer, n_rows, cols);
    return HEADRACE_OK;
}

headrace_status hr_cuda_tap_u32(hr_cuda *cuda, hr_tap tap, uint32_t layer, const uint32_t *rows, uint32_t n_rows,
                                uint32_t cols, headrace_error *err)
{
    size_t n = (size_t)n_rows * cols;

    HR_PASS(hr_cuda_read(cuda, rows, cuda->tap_values, n * sizeof *rows, err));
    for (size_t i = 0; i < n; i++) {
        uint32_t value;

        memcpy(&value, cuda->tap_values + i, sizeof value);
        cuda->tap_values[i] = (float)value;
    }
    emit(cuda, tap, layer, n_rows, cols);
    return HEADRACE_OK;
}
