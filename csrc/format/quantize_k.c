/* Q4_K, Q5_K and Q6_K: blocks of 256 whose sub-blocks' steps are themselves small integers times an fp16 scale.
 *
 * First every sub-block is searched as if its step (and offset) could be any number. Then the fp16 scales follow from
 * the largest, and the integers are chosen among the neighbours of the wished ratio by the error that they really
 * leave. With integers and quants fixed, the best scales are a least squares problem over all 256 values; better scales
 * make other integers better, so both are repeated. Every decision is judged by the values that the block will read as.
 */
#include "base/numeric.h"
#include "format/quantize.h"
#include "format/quantize_block.h"
#include "format/quantize_search.h"

#include <math.h>
#include <string.h>

enum { REFINEMENTS = 3 };

typedef unsigned char byte;

/* The scales of one block of Q4_K or Q5_K: value = d x scale x q - dmin x minimum. */
typedef struct affine_scales {
    uint16_t half_d, half_dmin;
    float d, dmin; /* what the halves mean, in the units of the search */
    hr_lanes scale[2], minimum[2];
} affine_scales;

static float as_half(float value, float unit, uint16_t *half)
{
    *half = hr_f32_to_f16(value * unit);
    return hr_f16_to_f32(*half) / unit;
}

/* To begin with: not rounded to zero as long as some sub-block could use the smallest fp16. */
static float first_half(float value, float unit, uint16_t *half)
{
    float meant = as_half(value, unit, half);

    if (meant != 0.0F || value == 0.0F)
        return meant;
    *half |= 1;
    return hr_f16_to_f32(*half) / unit;
}

static float largest_lane(const hr_lanes *lanes, int n)
{
    float largest = 0.0F;

    for (int i = 0; i < n * HR_LANES; i++)
        if (fabsf(lanes[i / HR_LANES][i % HR_LANES]) > fabsf(largest))
            largest = lanes[i / HR_LANES][i % HR_LANES];
    return largest;
}

static float sum_lanes(hr_lanes v)
{
    return (v[0] + v[1]) + (v[2] + v[3]);
}

static hr_affine affine_of(const affine_scales *scales, hr_lanes scale, hr_lanes minimum)
{
    return (hr_affine){.step = scales->d * scale, .base = -(scales->dmin * minimum)};
}

/* Moves each sub-block's scale and minimum to the best of the nine around them. Returns the error of the block. */
static float settle_affine(const hr_four_blocks *halves, int q_max, affine_scales *scales)
{
    hr_lanes low = lanes_all(0.0F), high = lanes_all(63.0F);
    float sum = 0.0F;

    for (int h = 0; h < 2; h++) {
        hr_lanes scale = scales->scale[h], minimum = scales->minimum[h];
        hr_lanes best = hr_affine_error(&halves[h], q_max, affine_of(scales, scale, minimum));

        for (int i = 0; i < 9; i++) {
            int up = i / 3 - 1, across = i % 3 - 1;
            hr_lanes s = lanes_quant(scale + (float)up, low, high);
            hr_lanes m = lanes_quant(minimum + (float)across, low, high);
            hr_lanes error = hr_affine_error(&halves[h], q_max, affine_of(scales, s, m));
            hr_mask better = error < best;

            best = lanes_select(better, error, best);
            scales->scale[h] = lanes_select(better, s, scales->scale[h]);
            scales->minimum[h] = lanes_select(better, m, scales->minimum[h]);
        }
        sum += sum_lanes(best);
    }
    return sum;
}

/* The scales d and dmin that suit the present integers and quants best; false if they leave the range of fp16. */
static bool refit_affine(const hr_four_blocks *halves, int q_max, float unit, affine_scales *scales)
{
    double aa = 0.0, ab = 0.0, bb = 0.0, ax = 0.0, bx = 0.0;
    hr_lanes low = lanes_all(0.0F), high = lanes_all((float)q_max);

    for (int h = 0; h < 2; h++) {
        hr_affine fit = affine_of(scales, scales->scale[h], scales->minimum[h]);
        hr_lanes inverse = lanes_ratio(lanes_all(1.0F), fit.step);
        hr_lanes w = {0}, wx = {0}, wq = {0}, wqq = {0}, wqx = {0};

        for (int j = 0; j < halves[h].n; j++) {
            hr_lanes x = halves[h].x[j], q = lanes_quant((x - fit.base) * inverse, low, high);

            w += halves[h].w[j];
            wx += halves[h].w[j] * x;
            wq += halves[h].w[j] * q;
            wqq += halves[h].w[j] * q * q;
            wqx += halves[h].w[j] * q * x;
        }
        aa += (double)sum_lanes(scales->scale[h] * scales->scale[h] * wqq);
        ab += (double)sum_lanes(scales->scale[h] * scales->minimum[h] * wq);
        bb += (double)sum_lanes(scales->minimum[h] * scales->minimum[h] * w);
        ax += (double)sum_lanes(scales->scale[h] * wqx);
        bx += (double)sum_lanes(scales->minimum[h] * wx);
    }
    double determinant = aa * bb - ab * ab;
    double d = aa > 0.0 ? ax / aa : 0.0, dmin = 0.0;

    if (determinant > 1e-6 * aa * bb) {
        d = (ax * bb - ab * bx) / determinant;
        dmin = (ab * ax - aa * bx) / determinant;
    } else if (bb > 0.0) {
        dmin = -bx / bb;
        d = 0.0;
    }
    scales->d = as_half((float)fmax(d, 0.0), unit, &scales->half_d);
    scales->dmin = as_half((float)fmax(dmin, 0.0), unit, &scales->half_dmin);
    return isfinite(scales->d) && isfinite(scales->dmin);
}

static bool search_affine_scales(const hr_four_blocks *halves, int q_max, float unit, affine_scales *best)
{
    hr_lanes steps[2], bases[2];
    affine_scales scales;

    for (int h = 0; h < 2; h++) {
        hr_affine fit = hr_search_affine(&halves[h], q_max, true);

        steps[h] = fit.step;
        bases[h] = -fit.base;
    }
    scales.d = first_half(largest_lane(steps, 2) / 63.0F, unit, &scales.half_d);
    scales.dmin = first_half(largest_lane(bases, 2) / 63.0F, unit, &scales.half_dmin);
    if (!isfinite(scales.d) || !isfinite(scales.dmin))
        return false;
    for (int h = 0; h < 2; h++) {
        hr_lanes high = lanes_all(63.0F), low = lanes_all(0.0F);

        scales.scale[h] = lanes_quant(lanes_ratio(steps[h], lanes_all(scales.d)), low, high);
        scales.minimum[h] = lanes_quant(lanes_ratio(bases[h], lanes_all(scales.dmin)), low, high);
    }
    float best_error = settle_affine(halves, q_max, &scales);

    *best = scales;
    for (int i = 0; i < REFINEMENTS; i++) {
        if (!refit_affine(halves, q_max, unit, &scales))
            break;
        float error = settle_affine(halves, q_max, &scales);

        if (error >= best_error)
            break;
        best_error = error;
        *best = scales;
    }
    return true;
}

/* The eight 6-bit scales and minima in 12 bytes, as hr_dequantize's k_scale reads them. */
static void pack_k_scales(const byte *scale, const byte *minimum, byte *at)
{
    for (int s = 0; s < 4; s++) {
        at[s] = (byte)(scale[s] | (scale[s + 4] >> 4) << 6);
        at[s + 4] = (byte)(minimum[s] | (minimum[s + 4] >> 4) << 6);
        at[s + 8] = (byte)((scale[s + 4] & 15) | (minimum[s + 4] & 15) << 4);
    }
}

/* Lane l of half h is sub-block 4 h + l. */
static void write_affine(const hr_four_blocks *halves, int q_max, const affine_scales *scales, byte *block)
{
    hr_lanes low = lanes_all(0.0F), high = lanes_all((float)q_max);
    byte scale[8], minimum[8], *qh = block + 16, *qs = block + (q_max == 31 ? 48 : 16);

    memset(block, 0, q_max == 31 ? 176 : 144);
    memcpy(block, &scales->half_d, 2);
    memcpy(block + 2, &scales->half_dmin, 2);
    for (int s = 0; s < 8; s++) {
        scale[s] = (byte)scales->scale[s / 4][s % 4];
        minimum[s] = (byte)scales->minimum[s / 4][s % 4];
    }
    pack_k_scales(scale, minimum, block + 4);
    for (int h = 0; h < 2; h++) {
        hr_affine fit = affine_of(scales, scales->scale[h], scales->minimum[h]);
        hr_lanes inverse = lanes_ratio(lanes_all(1.0F), fit.step);

        for (int j = 0; j < 32; j++) {
            hr_lanes q = lanes_quant((halves[h].x[j] - fit.base) * inverse, low, high);

            for (int l = 0; l < HR_LANES; l++) {
                int s = 4 * h + l, quant = (int)q[l];

                qs[32 * (s / 2) + j] |= (byte)((quant & 15) << 4 * (s % 2));
                if (q_max == 31)
                    qh[j] |= (byte)(quant >> 4 << s);
            }
        }
    }
}

/* One block of Q6_K: value = d x scale x q. */
typedef struct signed_scales {
    uint16_t half_d;
    float d;
    hr_lanes scale[4];
} signed_scales;

static float settle_signed(const hr_four_blocks *quarters, signed_scales *scales)
{
    hr_lanes low = lanes_all(-128.0F), high = lanes_all(127.0F);
    float sum = 0.0F;

    for (int h = 0; h < 4; h++) {
        hr_lanes scale = scales->scale[h], best = hr_signed_error(&quarters[h], 32, scales->d * scale);

        for (int i = -1; i <= 1; i++) {
            hr_lanes s = lanes_quant(scale + (float)i, low, high);
            hr_lanes error = hr_signed_error(&quarters[h], 32, scales->d * s);
            hr_mask better = error < best;

            best = lanes_select(better, error, best);
            scales->scale[h] = lanes_select(better, s, scales->scale[h]);
        }
        sum += sum_lanes(best);
    }
    return sum;
}

static bool refit_signed(const hr_four_blocks *quarters, float unit, signed_scales *scales)
{
    double aa = 0.0, ax = 0.0;
    hr_lanes low = lanes_all(-32.0F), high = lanes_all(31.0F);

    for (int h = 0; h < 4; h++) {
        hr_lanes inverse = lanes_ratio(lanes_all(1.0F), scales->d * scales->scale[h]), wqq = {0}, wqx = {0};

        for (int j = 0; j < quarters[h].n; j++) {
            hr_lanes x = quarters[h].x[j], q = lanes_quant(x * inverse, low, high), product = quarters[h].w[j] * q;

            wqq += product * q;
            wqx += product * x;
        }
        aa += (double)sum_lanes(scales->scale[h] * scales->scale[h] * wqq);
        ax += (double)sum_lanes(scales->scale[h] * wqx);
    }
    scales->d = as_half(aa > 0.0 ? (float)(ax / aa) : 0.0F, unit, &scales->half_d);
    return isfinite(scales->d);
}

static bool search_signed_scales(const hr_four_blocks *quarters, float unit, signed_scales *best)
{
    hr_lanes steps[4];
    signed_scales scales;

    for (int h = 0; h < 4; h++)
        steps[h] = hr_search_signed(&quarters[h], 32);
    scales.d = first_half(largest_lane(steps, 4) / -128.0F, unit, &scales.half_d);
    if (!isfinite(scales.d))
        return false;
    for (int h = 0; h < 4; h++)
        scales.scale[h] =
            lanes_quant(lanes_ratio(steps[h], lanes_all(scales.d)), lanes_all(-128.0F), lanes_all(127.0F));
    float best_error = settle_signed(quarters, &scales);

    *best = scales;
    for (int i = 0; i < REFINEMENTS; i++) {
        if (!refit_signed(quarters, unit, &scales))
            break;
        float error = settle_signed(quarters, &scales);

        if (error >= best_error)
            break;
        best_error = error;
        *best = scales;
    }
    return true;
}

/* Lane l of quarter h is sub-block 4 h + l: values 16 (4 h + l) .. + 15 of the block. */
static void write_signed(const hr_four_blocks *quarters, const signed_scales *scales, byte *block)
{
    byte *ql = block, *qh = block + 128, *packed = block + 192;
    hr_lanes low = lanes_all(-32.0F), high = lanes_all(31.0F);

    memset(block, 0, 210);
    memcpy(block + 208, &scales->half_d, 2);
    for (int s = 0; s < 16; s++) {
        hr_lanes step = scales->d * scales->scale[s / 4], inverse = lanes_ratio(lanes_all(1.0F), step);

        packed[s] = (byte)(int8_t)scales->scale[s / 4][s % 4];
        for (int j = 0; j < 16; j++) {
            hr_lanes q = lanes_quant(quarters[s / 4].x[j] * inverse, low, high);
            int at = 16 * s + j, c = at / 128, g = at % 128 / 32, l = at % 32, quant = (int)q[s % 4] + 32;

            ql[64 * c + 32 * (g % 2) + l] |= (byte)((quant & 15) << 4 * (g / 2));
            qh[32 * c + l] |= (byte)(quant >> 4 << 2 * g);
        }
    }
}

bool hr_search_k(hr_dtype dtype, const float *src, const float *importance, void *dst)
{
    int n = dtype == HR_Q6_K ? 16 : 32;
    hr_four_blocks blocks[4];
    float unit;

    if (!hr_load_blocks(src, importance, 256, 256, n, blocks, &unit)) {
        memset(dst, 0, hr_dtypes[dtype].block_bytes);
        return unit == 0.0F;
    }
    if (dtype == HR_Q6_K) {
        signed_scales scales;

        if (!search_signed_scales(blocks, unit, &scales))
            return false;
        write_signed(blocks, &scales, dst);
        return true;
    }
    affine_scales scales;
    int q_max = dtype == HR_Q4_K ? 15 : 31;

    if (!search_affine_scales(blocks, q_max, unit, &scales))
        return false;
    write_affine(blocks, q_max, &scales, dst);
    return true;
}
