/* Into the lanes of a search and out of them: scaling that keeps every sum in the middle of fp32's range, and nibbles.
 */
#include "format/quantize_block.h"

#include "base/numeric.h"

#include <math.h>
#include <string.h>

typedef unsigned char byte;

/* The smallest fp16 is 2^-24, the largest product of an fp16 scale, a sub-scale and a quant below 2^28. */
static const float TOO_SMALL = 0x1p-40F, TOO_LARGE = 0x1p40F;
/* Of the largest importance; small enough to leave the order of real ones alone, large enough for sums in fp32. */
static const float FLOOR_OF_IMPORTANCE = 0x1p-20F;

static float power_of_two_below(float x)
{
    return hr_bits_to_f32(hr_f32_to_bits(x) & 0x7F800000u);
}

/* One block into one lane. */
static void load_lane(const float *src, const float *importance, float heaviest, float inverse, int lane,
                      hr_four_blocks *four)
{
    for (int j = 0; j < four->n; j++) {
        four->x[j][lane] = src[j] * inverse;
        four->w[j][lane] = (heaviest > 0.0F ? importance[j] / heaviest : 1.0F) + FLOOR_OF_IMPORTANCE;
    }
}

static float largest_of(const float *values, int n)
{
    float largest = 0.0F;

    for (int i = 0; values && i < n; i++)
        largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    return largest;
}

bool hr_load_blocks(const float *src, const float *importance, int n_values, int stored, int n, hr_four_blocks *blocks,
                    float *unit)
{
    float extreme = largest_of(src, n_values);
    int n_blocks = n_values / n;

    *unit = extreme < TOO_SMALL ? 0.0F : INFINITY;
    if (extreme < TOO_SMALL || extreme > TOO_LARGE)
        return false;
    *unit = power_of_two_below(extreme);
    for (int b = 0; b < (n_blocks + HR_LANES - 1) / HR_LANES * HR_LANES; b++) {
        int from = (b < n_blocks ? b : n_blocks - 1) * n, whole = from / stored * stored;
        const float *weights = importance ? importance + from : NULL;

        blocks[b / HR_LANES].n = n;
        load_lane(src + from, weights, largest_of(importance ? importance + whole : NULL, stored), 1.0F / *unit,
                  b % HR_LANES, &blocks[b / HR_LANES]);
    }
    return true;
}

/* The five-bit types' low nibbles lie as those of the four-bit types; bit 4 of value j is bit j of a word before them.
 */
void hr_pack_nibbles(const byte *quants, bool has_fifth, byte *at)
{
    uint32_t fifth = 0;

    if (has_fifth) {
        for (int j = 0; j < 32; j++)
            fifth |= (uint32_t)(quants[j] >> 4) << j;
        memcpy(at, &fifth, sizeof fifth);
        at += sizeof fifth;
    }
    for (int j = 0; j < 16; j++)
        at[j] = (byte)((quants[j] & 15) | (quants[j + 16] & 15) << 4);
}
