/* The product of a packed matrix and int8 rows in plain C: the definition to the bit that every vector kernel equals
 * (cpu_pack.h). It reads single values out of the packed order and adds in the order that the header gives.
 *
 * Floating point here is exactly what is written: division, product and sum each rounded once, fmaf rounded once.
 */
#include "backend/cpu/cpu_packed.h"
#include "base/numeric.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 32, HALF_BLOCK = 16, LANE = 4, VECTOR = 64, SCALE_BYTES = 192 };

typedef unsigned char byte;

/* What the arrays of a row point to, to be written. */
static void *writable(void *row, const void *array)
{
    return (byte *)row + ((const byte *)array - (const byte *)row);
}

/* One block of 32: returns the scale, NaN if a value is not finite. A scale below the normal numbers (largest value
 * under about 1.5e-36) counts as zero: its reciprocal and quotients would have few bits or none. */
static float quantise_block(const float *x, int8_t *q)
{
    float largest = 0, scale;

    memset(q, 0, BLOCK);
    for (int i = 0; i < BLOCK; i++) {
        if (!isfinite(x[i]))
            return hr_bits_to_f32(0x7FC00000u);
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    }
    scale = largest / 127.0f;
    if (scale < FLT_MIN)
        return 0;
    for (int i = 0; i < BLOCK; i++)
        q[i] = (int8_t)rintf(x[i] / scale);
    return scale;
}

void hr_cpu_plain_prepare_int8(const float *x, uint32_t cols, void *row)
{
    hr_int8_row at = hr_int8_row_at(row, cols);
    int8_t *q = writable(row, at.q);
    float *scale = writable(row, at.scale), *minimum = writable(row, at.minimum);
    int32_t *zero8 = writable(row, at.zero8), *zero128 = writable(row, at.zero128), *zero32 = writable(row, at.zero32);

    memset(row, 0, hr_int8_row_bytes(cols));
    for (size_t b = 0; b < cols / BLOCK; b++) {
        int32_t half[2] = {0, 0}, sum;

        scale[b] = quantise_block(x + b * BLOCK, q + b * BLOCK);
        for (size_t i = 0; i < BLOCK; i++)
            half[i / HALF_BLOCK] += q[b * BLOCK + i];
        sum = half[0] + half[1];
        minimum[b] = -(scale[b] * (float)sum);
        zero8[b] = -8 * sum;
        zero128[b] = -128 * sum;
        zero32[2 * b] = -32 * half[0];
        zero32[2 * b + 1] = -32 * half[1];
    }
}

/* Weights of 32 columns of output o, as the integers that stand in the packed matrix. */
static void read_nibbles(const byte *vectors, uint32_t o, int q[BLOCK])
{
    for (uint32_t c = 0; c < HALF_BLOCK; c++) {
        byte pair = vectors[c / LANE * VECTOR + LANE * o + c % LANE];

        q[c] = pair & 15;
        q[c + HALF_BLOCK] = pair >> 4;
    }
}

static void read_bytes(const byte *vectors, uint32_t o, int q[BLOCK])
{
    for (uint32_t c = 0; c < BLOCK; c++)
        q[c] = vectors[c / LANE * VECTOR + LANE * o + c % LANE];
}

static void add_fifth_bits(const byte *vector, uint32_t o, int q[BLOCK])
{
    for (uint32_t c = 0; c < BLOCK; c++)
        q[c] |= (vector[LANE * o + c % LANE] >> c / LANE & 1) << 4;
}

static void add_high_pairs(const byte *vectors, uint32_t o, int q[BLOCK])
{
    for (uint32_t c = 0; c < BLOCK; c++)
        q[c] |= (vectors[c / HALF_BLOCK * VECTOR + LANE * o + c % LANE] >> 2 * (c % HALF_BLOCK / LANE) & 3) << 4;
}

static int32_t dot(const int *w, const int8_t *x, uint32_t n)
{
    int32_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += w[i] * x[i];
    return sum;
}

static float half_at(const byte *at)
{
    uint16_t half;

    memcpy(&half, at, sizeof half);
    return hr_f16_to_f32(half);
}

/* Value r (0 .. 15: scales, then minima) of the packed 6-bit scales of output o. */
static int six_bits(const byte *scales, uint32_t r, uint32_t o)
{
    int low = scales[16 * (r % 8) + o] >> 4 * (r / 8) & 15, high = scales[128 + 16 * (r % 4) + o] >> 2 * (r / 4) & 3;

    return low | high << 4;
}

/* Output o of a group, its chunk of two blocks of 32; block is the first of them in the row. */
static float add_chunk_q4_0(const byte *chunk, uint32_t o, const hr_int8_row *x, size_t block, float sum)
{
    int q[BLOCK];

    for (size_t b = 0; b < 2; b++) {
        float scale = half_at(chunk + 32 * b + 2 * o) * x->scale[block + b];

        read_nibbles(chunk + VECTOR + b * 4 * VECTOR, o, q);
        sum = fmaf((float)(dot(q, x->q + (block + b) * BLOCK, BLOCK) + x->zero8[block + b]), scale, sum);
    }
    return sum;
}

static float add_chunk_q4_1(const byte *chunk, uint32_t o, const hr_int8_row *x, size_t block, float sum)
{
    int q[BLOCK];

    for (size_t b = 0; b < 2; b++) {
        const byte *halves = chunk + 32 * b + 2 * o;

        read_nibbles(chunk + 2 * VECTOR + b * 4 * VECTOR, o, q);
        sum = fmaf((float)dot(q, x->q + (block + b) * BLOCK, BLOCK), half_at(halves) * x->scale[block + b], sum);
        sum = fmaf(half_at(halves + VECTOR), x->minimum[block + b], sum);
    }
    return sum;
}

static float add_chunk_q8_0(const byte *chunk, uint32_t o, const hr_int8_row *x, size_t block, float sum)
{
    int q[BLOCK];

    for (size_t b = 0; b < 2; b++) {
        float scale = half_at(chunk + 32 * b + 2 * o) * x->scale[block + b];

        read_bytes(chunk + VECTOR + b * 8 * VECTOR, o, q);
        sum = fmaf((float)(dot(q, x->q + (block + b) * BLOCK, BLOCK) + x->zero128[block + b]), scale, sum);
    }
    return sum;
}

/* Q4_K and Q5_K. */
static float add_chunk_k(const byte *chunk, uint32_t o, bool has_fifth, const hr_int8_row *x, size_t block, float sum)
{
    float d = half_at(chunk + 2 * o), dmin = half_at(chunk + 32 + 2 * o);
    const byte *scales = chunk + VECTOR, *vectors = scales + SCALE_BYTES;
    int q[BLOCK];

    for (uint32_t s = 0; s < 8; s++, vectors += (has_fifth ? 5 : 4) * VECTOR) {
        float scale = d * (float)six_bits(scales, s, o), minimum = dmin * (float)six_bits(scales, s + 8, o);

        read_nibbles(vectors, o, q);
        if (has_fifth)
            add_fifth_bits(vectors + 4 * VECTOR, o, q);
        sum = fmaf((float)dot(q, x->q + (block + s) * BLOCK, BLOCK), scale * x->scale[block + s], sum);
        sum = fmaf(minimum, x->minimum[block + s], sum);
    }
    return sum;
}

static float add_chunk_q6_k(const byte *chunk, uint32_t o, const hr_int8_row *x, size_t block, float sum)
{
    float d = half_at(chunk + 2 * o);
    const byte *vectors = chunk + VECTOR + 256;
    int q[BLOCK];

    for (uint32_t s = 0; s < 16; s++) {
        float scale = d * (float)(int8_t)chunk[VECTOR + 16 * s + o];
        size_t b = block + s / 2;

        if (s % 2 == 0) {
            read_nibbles(vectors, o, q);
            add_high_pairs(vectors + 4 * VECTOR, o, q);
            vectors += 6 * VECTOR;
        }
        sum = fmaf((float)(dot(q + s % 2 * HALF_BLOCK, x->q + b * BLOCK + s % 2 * HALF_BLOCK, HALF_BLOCK) +
                           x->zero32[2 * b + s % 2]),
                   scale * x->scale[b], sum);
    }
    return sum;
}

/* Chunks of eight blocks; of two otherwise. */
static bool is_of_256(hr_dtype dtype)
{
    return dtype == HR_Q4_K || dtype == HR_Q5_K || dtype == HR_Q6_K;
}

/* Output o of a group of 16 with one row. */
static float output(const hr_matrix *w, const byte *group, uint32_t o, const hr_int8_row *x)
{
    const size_t chunk_blocks = is_of_256(w->dtype) ? 8 : 2,
                 n_chunks = ((size_t)w->cols / BLOCK + chunk_blocks - 1) / chunk_blocks;
    const size_t chunk_bytes = hr_pack_group_bytes(w->dtype, w->cols) / n_chunks;
    float sum = 0;

    for (size_t i = 0; i < n_chunks; i++) {
        const byte *chunk = group + i * chunk_bytes;

        switch (w->dtype) {
        case HR_Q4_0:
            sum = add_chunk_q4_0(chunk, o, x, i * chunk_blocks, sum);
            break;
        case HR_Q4_1:
            sum = add_chunk_q4_1(chunk, o, x, i * chunk_blocks, sum);
            break;
        case HR_Q8_0:
            sum = add_chunk_q8_0(chunk, o, x, i * chunk_blocks, sum);
            break;
        case HR_Q6_K:
            sum = add_chunk_q6_k(chunk, o, x, i * chunk_blocks, sum);
            break;
        default:
            sum = add_chunk_k(chunk, o, w->dtype == HR_Q5_K, x, i * chunk_blocks, sum);
            break;
        }
    }
    return sum;
}

void hr_cpu_plain_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                float *y, size_t y_stride, void *scratch)
{
    const size_t row_bytes = hr_int8_row_bytes(w->cols), group_bytes = hr_pack_group_bytes(w->dtype, w->cols);

    (void)scratch;
    for (uint32_t r = 0; r < n_rows; r++) {
        hr_int8_row x = hr_int8_row_at((const byte *)rows + r * row_bytes, w->cols);

        for (uint32_t o = begin; o < end; o++)
            y[r * y_stride + (o - begin)] =
                output(w, (const byte *)w->data + o / HR_PACK_ROWS * group_bytes, o % HR_PACK_ROWS, &x);
    }
}

/* Columns of one sub-block back as hr_dequantize has them: step q - offset, the same roundings. */
static void put_values(const int *q, uint32_t n, int zero, float step, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = step * (float)(q[i] - zero);
}

static void add_offset(float *out, float offset)
{
    for (uint32_t i = 0; i < BLOCK; i++)
        out[i] += offset;
}

/* n: columns that the row has from this chunk on. */
static void read_chunk_32(const hr_matrix *w, const byte *chunk, uint32_t o, uint32_t n, float *out)
{
    const bool is_bytes = w->dtype == HR_Q8_0, has_minimum = w->dtype == HR_Q4_1;
    int q[BLOCK];

    for (uint32_t b = 0; b < 2 && b * BLOCK < n; b++, out += BLOCK) {
        const byte *vectors = chunk + (has_minimum ? 2 : 1) * VECTOR + b * (is_bytes ? 8 : 4) * VECTOR;

        if (is_bytes)
            read_bytes(vectors, o, q);
        else
            read_nibbles(vectors, o, q);
        put_values(q, BLOCK, is_bytes ? 128 : has_minimum ? 0 : 8, half_at(chunk + 32 * b + 2 * o), out);
        if (has_minimum)
            add_offset(out, -half_at(chunk + VECTOR + 32 * b + 2 * o));
    }
}

static void read_chunk_k(const byte *chunk, uint32_t o, bool has_fifth, float *out)
{
    float d = half_at(chunk + 2 * o), dmin = half_at(chunk + 32 + 2 * o);
    const byte *scales = chunk + VECTOR, *vectors = scales + SCALE_BYTES;
    int q[BLOCK];

    for (uint32_t s = 0; s < 8; s++, vectors += (has_fifth ? 5 : 4) * VECTOR, out += BLOCK) {
        read_nibbles(vectors, o, q);
        if (has_fifth)
            add_fifth_bits(vectors + 4 * VECTOR, o, q);
        put_values(q, BLOCK, 0, d * (float)six_bits(scales, s, o), out);
        add_offset(out, -(dmin * (float)six_bits(scales, s + 8, o)));
    }
}

static void read_chunk_q6_k(const byte *chunk, uint32_t o, float *out)
{
    float d = half_at(chunk + 2 * o);
    const byte *scales = chunk + VECTOR, *vectors = scales + 256;
    int q[BLOCK];

    for (uint32_t s = 0; s < 16; s += 2, vectors += 6 * VECTOR, out += BLOCK) {
        read_nibbles(vectors, o, q);
        add_high_pairs(vectors + 4 * VECTOR, o, q);
        put_values(q, HALF_BLOCK, 32, d * (float)(int8_t)scales[16 * s + o], out);
        put_values(q + HALF_BLOCK, HALF_BLOCK, 32, d * (float)(int8_t)scales[16 * (s + 1) + o], out + HALF_BLOCK);
    }
}

void hr_pack_read_row(const hr_matrix *w, uint32_t row, float *out)
{
    const uint32_t values = is_of_256(w->dtype) ? 256 : 64, o = row % HR_PACK_ROWS;
    const size_t group_bytes = hr_pack_group_bytes(w->dtype, w->cols);
    const size_t chunk_bytes = group_bytes / ((w->cols + values - 1) / values);
    const byte *chunk = (const byte *)w->data + row / HR_PACK_ROWS * group_bytes;

    for (uint32_t col = 0; col < w->cols; col += values, chunk += chunk_bytes) {
        if (values == 64)
            read_chunk_32(w, chunk, o, w->cols - col, out + col);
        else if (w->dtype == HR_Q6_K)
            read_chunk_q6_k(chunk, o, out + col);
        else
            read_chunk_k(chunk, o, w->dtype == HR_Q5_K, out + col);
    }
}
