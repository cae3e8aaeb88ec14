/* Taps on a device: wait, copy rows back, turn them into dense fp32. For tools and tests; a step with taps takes as
 * long as it takes. */
#include "backend/cuda/cuda.h"

#include "base/numeric.h"

#include <string.h>

static void emit(const hr_cuda *cuda, hr_tap tap, uint32_t layer, uint32_t n_rows, uint32_t cols)
{
    cuda->options.tap(cuda->options.tap_user, tap, layer, cuda->tap_values, n_rows, cols);
}

static headrace_status read_row(hr_cuda *cuda, const hrk_bf16 *row, uint32_t cols, float *to, headrace_error *err)
{
    uint16_t *halves = (uint16_t *)(void *)to + cols; /* the upper half: it is read before it is overwritten */

    HR_PASS(hr_cuda_read(cuda, row, halves, cols * sizeof *halves, err));
    for (uint32_t i = 0; i < cols; i++) {
        uint16_t value;

        memcpy(&value, halves + i, sizeof value);
        to[i] = hr_bf16_to_f32(value);
    }
    return HEADRACE_OK;
}

headrace_status hr_cuda_tap_bf16(hr_cuda *cuda, hr_tap tap, uint32_t layer, const hrk_bf16 *rows, uint32_t n_rows,
                                 uint32_t cols, uint32_t ld, headrace_error *err)
{
    for (uint32_t r = 0; r < n_rows; r++)
        HR_PASS(read_row(cuda, rows + (size_t)r * ld, cols, cuda->tap_values + (size_t)r * cols, err));
    emit(cuda, tap, layer, n_rows, cols);
    return HEADRACE_OK;
}

static int ascending(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

headrace_status hr_cuda_tap_by_expert(hr_cuda *cuda, hr_tap tap, uint32_t layer, const hrk_bf16 *rows, uint32_t n_rows,
                                      uint32_t cols, headrace_error *err)
{
    uint32_t K = cuda->arch->n_experts_used, places[HR_EXPERTS_MAX];

    for (size_t r = 0; r < n_rows; r++) {
        HR_PASS(hr_cuda_read(cuda, cuda->routing.place + r * K, places, K * sizeof *places, err));
        qsort(places, K, sizeof *places, ascending); /* places rise with the expert */
        for (size_t k = 0; k < K; k++)
            HR_PASS(read_row(cuda, rows + (size_t)places[k] * hrk_ld(cols), cols, cuda->tap_values + (r * K + k) * cols,
                             err));
    }
    emit(cuda, tap, layer, n_rows, K * cols);
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
