/* What the bits of a weight mean.
 *
 * Every function here is the plain reading of a block layout, value by value, in the order of the operations that the
 * format's reference uses: (scale x sub-scale) x quant - (minimum x sub-minimum), each rounded to fp32. Compiled
 * without contraction
 * (-ffp-contract=off), the results are equal bit for bit to the reference dequantiser's, NaN payloads aside. Backends
 * may use faster arithmetic; this is what they are compared with.
 *
 * Blocks are read through bytes only, so src needs no alignment. The machine is little endian (checked below); the
 * formats are too.
 */
#include "format/dtype.h"

#include "base/numeric.h"

#include <stdbool.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "weight files are little endian and are used where they are mapped");

const hr_dtype_info hr_dtypes[HR_DTYPE_COUNT] = {
    [HR_F32] = {"F32", 1, 4},       [HR_F16] = {"F16", 1, 2},       [HR_BF16] = {"BF16", 1, 2},
    [HR_Q4_0] = {"Q4_0", 32, 18},   [HR_Q4_1] = {"Q4_1", 32, 20},   [HR_Q5_0] = {"Q5_0", 32, 22},
    [HR_Q5_1] = {"Q5_1", 32, 24},   [HR_Q8_0] = {"Q8_0", 32, 34},   [HR_Q4_K] = {"Q4_K", 256, 144},
    [HR_Q5_K] = {"Q5_K", 256, 176}, [HR_Q6_K] = {"Q6_K", 256, 210},
};

typedef unsigned char byte;

static uint16_t u16_at(const byte *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t u32_at(const byte *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

static float half_at(const byte *at)
{
    return hr_f16_to_f32(u16_at(at));
}

static int8_t i8_at(const byte *at)
{
    int8_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

/* d, qs[16]: value j in the low nibble of byte j, value j + 16 in the high one. */
static void block_q4_0(const byte *block, float *y)
{
    float d = half_at(block);
    const byte *qs = block + 2;

    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((qs[j] & 15) - 8);
        y[j + 16] = d * (float)((qs[j] >> 4) - 8);
    }
}

/* d, m, qs[16]: as Q4_0, but the smallest value is stored instead of being -8 d. */
static void block_q4_1(const byte *block, float *y)
{
    float d = half_at(block), m = half_at(block + 2);
    const byte *qs = block + 4;

    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)(qs[j] & 15) + m;
        y[j + 16] = d * (float)(qs[j] >> 4) + m;
    }
}

/* Five-bit value j of a Q5_0 or Q5_1 block: bit 4 comes from bit j of qh. */
static int five_bits(uint32_t qh, const byte *qs, int j)
{
    int nibble = j < 16 ? qs[j] & 15 : qs[j - 16] >> 4;

    return nibble | (int)(qh >> j & 1) << 4;
}

/* d, qh[4], qs[16]. */
static void block_q5_0(const byte *block, float *y)
{
    float d = half_at(block);
    uint32_t qh = u32_at(block + 2);

    for (int j = 0; j < 32; j++)
        y[j] = d * (float)(five_bits(qh, block + 6, j) - 16);
}

/* d, m, qh[4], qs[16]. */
static void block_q5_1(const byte *block, float *y)
{
    float d = half_at(block), m = half_at(block + 2);
    uint32_t qh = u32_at(block + 4);

    for (int j = 0; j < 32; j++)
        y[j] = d * (float)five_bits(qh, block + 8, j) + m;
}

/* d, signed qs[32]. */
static void block_q8_0(const byte *block, float *y)
{
    float d = half_at(block);

    for (int j = 0; j < 32; j++)
        y[j] = d * (float)i8_at(block + 2 + j);
}

/* The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes. */
static void k_scale(const byte *packed, int s, int *scale, int *minimum)
{
    if (s < 4) {
        *scale = packed[s] & 63;
        *minimum = packed[s + 4] & 63;
    } else {
        *scale = (packed[s + 4] & 15) | (packed[s - 4] >> 6) << 4;
        *minimum = (packed[s + 4] >> 4) | (packed[s] >> 6) << 4;
    }
}

/* d, dmin, scales[12], qs[128]: eight sub-blocks of 32; sub-blocks 2p and 2p + 1 share the bytes 32p .. 32p + 31. */
static void block_q4_k(const byte *block, float *y)
{
    float d = half_at(block), dmin = half_at(block + 2);
    const byte *qs = block + 16;

    for (int s = 0; s < 8; s++) {
        int scale, minimum;

        k_scale(block + 4, s, &scale, &minimum);
        float step = d * (float)scale, offset = dmin * (float)minimum;

        for (int l = 0; l < 32; l++) {
            int q = qs[32 * (s / 2) + l] >> 4 * (s % 2) & 15;

            y[32 * s + l] = step * (float)q - offset;
        }
    }
}

/* d, dmin, scales[12], qh[32], qs[128]: as Q4_K; bit s of qh[l] is bit 4 of value l of sub-block s. */
static void block_q5_k(const byte *block, float *y)
{
    float d = half_at(block), dmin = half_at(block + 2);
    const byte *qh = block + 16, *qs = block + 48;

    for (int s = 0; s < 8; s++) {
        int scale, minimum;

        k_scale(block + 4, s, &scale, &minimum);
        float step = d * (float)scale, offset = dmin * (float)minimum;

        for (int l = 0; l < 32; l++) {
            int q = (qs[32 * (s / 2) + l] >> 4 * (s % 2) & 15) | (qh[l] >> s & 1) << 4;

            y[32 * s + l] = step * (float)q - offset;
        }
    }
}

/* ql[128], qh[64], signed scales[16], d: two halves c of 128 values, each of four groups g of 32. Group g takes the low
 * (g < 2) or high nibbles of 32 bytes and two bits of qh; a scale covers 16 values. */
static void block_q6_k(const byte *block, float *y)
{
    const byte *ql = block, *qh = block + 128, *scales = block + 192;
    float d = half_at(block + 208);

    for (int c = 0; c < 2; c++)
        for (int g = 0; g < 4; g++)
            for (int l = 0; l < 32; l++) {
                int low = ql[64 * c + 32 * (g % 2) + l] >> 4 * (g / 2) & 15;
                int q = (low | (qh[32 * c + l] >> 2 * g & 3) << 4) - 32;
                float step = d * (float)i8_at(scales + 8 * c + 2 * g + l / 16);

                y[128 * c + 32 * g + l] = step * (float)q;
            }
}

static void read_bf16(const byte *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = hr_bf16_to_f32(u16_at(src + 2 * i));
}

static void read_f16(const byte *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = half_at(src + 2 * i);
}

static void read_blocks(hr_dtype dtype, void (*block)(const byte *, float *), const byte *src, float *dst, size_t n)
{
    const hr_dtype_info *info = &hr_dtypes[dtype];

    for (size_t i = 0; i < n / info->block_values; i++)
        block(src + i * info->block_bytes, dst + i * info->block_values);
}

void hr_dequantize(hr_dtype dtype, const void *src, float *dst, size_t n)
{
    static void (*const blocks[HR_DTYPE_COUNT])(const byte *, float *) = {
        [HR_Q4_0] = block_q4_0, [HR_Q4_1] = block_q4_1, [HR_Q5_0] = block_q5_0, [HR_Q5_1] = block_q5_1,
        [HR_Q8_0] = block_q8_0, [HR_Q4_K] = block_q4_k, [HR_Q5_K] = block_q5_k, [HR_Q6_K] = block_q6_k,
    };

    if (n == 0)
        return;
    if (dtype == HR_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (dtype == HR_F16)
        read_f16(src, dst, n);
    else if (dtype == HR_BF16)
        read_bf16(src, dst, n);
    else
        read_blocks(dtype, blocks[dtype], src, dst, n);
}

size_t hr_dtype_bad_block(hr_dtype dtype, const void *src, size_t n)
{
    const hr_dtype_info *info = &hr_dtypes[dtype];
    bool has_minimum = dtype == HR_Q4_1 || dtype == HR_Q5_1 || dtype == HR_Q4_K || dtype == HR_Q5_K;
    size_t n_blocks = n / info->block_values, first = dtype == HR_Q6_K ? 208 : 0, second = first + 2 * has_minimum;
    const byte *block = src;

    if (info->block_values == 1)
        return n_blocks;
    for (size_t b = 0; b < n_blocks; b++, block += info->block_bytes) {
        if ((u16_at(block + first) & 0x7C00u) == 0x7C00u || (u16_at(block + second) & 0x7C00u) == 0x7C00u)
            return b;
    }
    return n_blocks;
}
