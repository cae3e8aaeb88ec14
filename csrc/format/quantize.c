/* The door of the quantisers, and the types whose rounding is a rule instead of a search.
 *
 * Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 without importance are what every tool writes: the scale follows from the largest
 * value (signed types: the value of largest magnitude becomes the most negative quant) or from the range, and values
 * are rounded with the reciprocal of the scale as it was before it became fp16. The order of the operations below is
 * part of that rule, since it decides ties. quantize_search.c has the searches.
 */
#include "format/quantize.h"

#include "base/numeric.h"
#include "format/quantize_block.h"

#include <math.h>
#include <string.h>

typedef unsigned char byte;

bool hr_can_quantize(hr_dtype dtype)
{
    return (unsigned)dtype < HR_DTYPE_COUNT;
}

static bool is_finite_bits(uint32_t bits)
{
    return (bits & 0x7F800000u) != 0x7F800000u;
}

static void put_half(byte *at, uint16_t half)
{
    memcpy(at, &half, sizeof half);
}

static bool is_finite_half(uint16_t half)
{
    return (half & 0x7C00u) != 0x7C00u;
}

/* A reciprocal that overflows belongs to a scale far below the smallest fp16: the block reads as zeros anyway. */
static float reciprocal(float d)
{
    float inverse = d != 0.0F ? 1.0F / d : 0.0F;

    return isfinite(inverse) ? inverse : 0.0F;
}

static size_t largest(const float *x, size_t n)
{
    size_t at = 0;

    for (size_t i = 1; i < n; i++)
        if (fabsf(x[i]) > fabsf(x[at]))
            at = i;
    return at;
}

static bool rule_q8_0(const float *x, byte *block)
{
    float d = fabsf(x[largest(x, 32)]) / 127.0F, inverse = reciprocal(d);
    uint16_t half = hr_f32_to_f16(d);

    put_half(block, half);
    for (int j = 0; j < 32; j++)
        block[2 + j] = (byte)(int8_t)roundf(x[j] * inverse); /* ties away from zero */
    return is_finite_half(half);
}

/* Q4_0 and Q5_0; middle is 8 or 16. */
static bool rule_signed(const float *x, int middle, byte *block)
{
    float d = x[largest(x, 32)] / (float)-middle, inverse = reciprocal(d);
    uint16_t half = hr_f32_to_f16(d);
    byte quants[32];

    for (int j = 0; j < 32; j++) {
        int q = (int)(x[j] * inverse + ((float)middle + 0.5F));

        quants[j] = (byte)(q < 2 * middle ? q : 2 * middle - 1);
    }
    put_half(block, half);
    hr_pack_nibbles(quants, middle == 16, block + 2);
    return is_finite_half(half);
}

/* Q4_1 and Q5_1; q_max is 15 or 31. */
static bool rule_range(const float *x, int q_max, byte *block)
{
    float low = x[0], high = x[0];
    byte quants[32];

    for (int j = 1; j < 32; j++) {
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    float d = (high - low) / (float)q_max, inverse = reciprocal(d);
    uint16_t half = hr_f32_to_f16(d), half_low = hr_f32_to_f16(low);

    if (!is_finite_half(half) || !is_finite_half(half_low))
        return false;
    for (int j = 0; j < 32; j++) {
        int q = (int)((x[j] - low) * inverse + 0.5F);

        quants[j] = (byte)(q < q_max ? q : q_max);
    }
    put_half(block, half);
    put_half(block + 2, half_low);
    hr_pack_nibbles(quants, q_max == 31, block + 4);
    return true;
}

static bool rule_block(hr_dtype dtype, const float *x, byte *block)
{
    switch (dtype) {
    case HR_Q8_0:
        return rule_q8_0(x, block);
    case HR_Q4_0:
        return rule_signed(x, 8, block);
    case HR_Q5_0:
        return rule_signed(x, 16, block);
    case HR_Q4_1:
        return rule_range(x, 15, block);
    default:
        return rule_range(x, 31, block);
    }
}

static size_t write_f16(const float *src, size_t n, byte *dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half = hr_f32_to_f16(src[i]);

        if (!is_finite_half(half))
            return i;
        put_half(dst + 2 * i, half);
    }
    return n;
}

static size_t write_bf16(const float *src, size_t n, byte *dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half = hr_f32_to_bf16(src[i]);

        if ((half & 0x7F80u) == 0x7F80u)
            return i;
        memcpy(dst + 2 * i, &half, sizeof half);
    }
    return n;
}

/* A group is one block, or the four small blocks that are searched side by side. */
static size_t write_blocks(hr_dtype dtype, const float *src, const float *importance, size_t n, byte *dst)
{
    size_t values = hr_dtypes[dtype].block_values, bytes = hr_dtypes[dtype].block_bytes;
    size_t group = values == 32 && importance ? 4 * values : values;

    for (size_t at = 0; at < n; at += group) {
        const float *weights = importance ? importance + at : NULL;
        size_t here = n - at < group ? n - at : group;
        byte *block = dst + at / values * bytes;
        bool fits;

        if (values == 256)
            fits = hr_search_k(dtype, src + at, weights, block);
        else if (weights)
            fits = hr_search_32(dtype, src + at, weights, (int)(here / values), block);
        else
            fits = rule_block(dtype, src + at, block);
        if (!fits)
            return at + largest(src + at, here);
    }
    return n;
}

size_t hr_quantize_row(hr_dtype dtype, const float *src, const float *importance, size_t n, void *dst)
{
    for (size_t i = 0; i < n; i++)
        if (!is_finite_bits(hr_f32_to_bits(src[i])))
            return i;
    if (dtype == HR_F16)
        return write_f16(src, n, dst);
    if (dtype == HR_BF16)
        return write_bf16(src, n, dst);
    if (dtype != HR_F32)
        return write_blocks(dtype, src, importance, n, dst);
    if (n > 0)
        memcpy(dst, src, n * sizeof *src);
    return n;
}
