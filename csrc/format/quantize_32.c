/* The types with one fp16 scale for 32 values, when columns count differently: the search of quantize_search.c, then
 * the rounding of what it found to fp16. */
#include "base/numeric.h"
#include "format/quantize.h"
#include "format/quantize_block.h"

#include <math.h>
#include <string.h>

typedef unsigned char byte;

static void write_signed(hr_dtype dtype, const hr_four_blocks *four, int lane, float step, byte *at)
{
    int middle = dtype == HR_Q8_0 ? 128 : dtype == HR_Q5_0 ? 16 : 8;
    float inverse = step != 0.0F ? 1.0F / step : 0.0F;
    byte quants[32];

    for (int j = 0; j < 32; j++) {
        hr_lanes q = lanes_quant(four->x[j] * inverse, lanes_all((float)-middle), lanes_all((float)middle - 1.0F));

        quants[j] = (byte)((int)q[lane] + (dtype == HR_Q8_0 ? 0 : middle));
    }
    if (dtype == HR_Q8_0)
        memcpy(at, quants, sizeof quants);
    else
        hr_pack_nibbles(quants, middle == 16, at);
}

static void write_affine(int q_max, const hr_four_blocks *four, int lane, float step, float base, byte *at)
{
    float inverse = step != 0.0F ? 1.0F / step : 0.0F;
    byte quants[32];

    for (int j = 0; j < 32; j++) {
        hr_lanes q = lanes_quant((four->x[j] - base) * inverse, lanes_all(0.0F), lanes_all((float)q_max));

        quants[j] = (byte)q[lane];
    }
    hr_pack_nibbles(quants, q_max == 31, at);
}

/* Rounds a search's number to the fp16 that is stored; false if it is too large. */
static bool put_half(float *value, float unit, byte *at)
{
    uint16_t half = hr_f32_to_f16(*value * unit);

    memcpy(at, &half, sizeof half);
    *value = hr_f16_to_f32(half) / unit;
    return isfinite(*value);
}

bool hr_search_32(hr_dtype dtype, const float *src, const float *importance, int n_blocks, void *dst)
{
    bool is_affine = dtype == HR_Q4_1 || dtype == HR_Q5_1;
    int q_max = dtype == HR_Q4_1 ? 15 : 31, middle = dtype == HR_Q8_0 ? 128 : dtype == HR_Q5_0 ? 16 : 8;
    hr_four_blocks four;
    hr_affine fit = {0};
    float unit;

    if (!hr_load_blocks(src, importance, 32 * n_blocks, 32, 32, &four, &unit)) {
        memset(dst, 0, n_blocks * hr_dtypes[dtype].block_bytes);
        return unit == 0.0F;
    }
    if (is_affine)
        fit = hr_search_affine(&four, q_max, false);
    else
        fit.step = hr_search_signed(&four, middle);
    for (int b = 0; b < n_blocks; b++) {
        byte *block = (byte *)dst + b * hr_dtypes[dtype].block_bytes;
        float step = fit.step[b], base = fit.base[b];

        if (!put_half(&step, unit, block) || (is_affine && !put_half(&base, unit, block + 2)))
            return false;
        if (is_affine)
            write_affine(q_max, &four, b, step, base, block + 4);
        else
            write_signed(dtype, &four, b, step, block + 2);
    }
    return true;
}
