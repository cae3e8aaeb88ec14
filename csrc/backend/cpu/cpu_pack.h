/* Quantised weights as the CPU kernels read them, and the rows of activations that they are multiplied with.
 *
 * Why not as the file has them: a block of the file holds 32 or 256 columns of one output, so a kernel would have to
 * add across lanes for every output. Here HR_PACK_ROWS outputs stand side by side, one a 32-bit lane, four columns in a
 * lane: what an integer dot product instruction (vpdpbusd) takes, with the four activations broadcast. Weights are read
 * from memory in rising order with aligned wide loads. A packed matrix is as large as the file's (Q6_K: 1 % more), and
 * takes its place: the mapping's pages are given back while it is made (cpu_weights.c).
 *
 * A packed matrix is ceil(rows / 16) groups, one after the other, each a run of chunks in column order. Rows that a
 * group lacks are zero blocks. "lane (o, t)" is byte 4 o + t of 64: output o of the group, column t of four.
 * Every chunk is a multiple of 64 bytes and aligned to 64. Numbers are little-endian, halves are fp16.
 *
 *   Q4_0   chunk = 64 columns (two blocks; a missing second block is zero), 576 bytes:
 *          half d[2][16]; then per block 4 x 64 bytes: vector i, lane (o, t): low nibble column 4 i + t, high nibble
 *          column 16 + 4 i + t of the block. value = d (q - 8)
 *   Q4_1   as Q4_0, and after the scales half n[2][16], the block's minimum with its sign turned over. 640 bytes.
 *          value = d q - n
 *   Q8_0   chunk = 64 columns, 1088 bytes: half d[2][16]; per block 8 x 64 bytes: vector i, lane (o, t):
 *          column 4 i + t, the file's signed byte with its top bit turned over (q + 128, unsigned). value = d (q - 128)
 *   Q4_K   chunk = 256 columns (one block), 2304 bytes: half d[16], half dmin[16]; 192 bytes of 6-bit scales and minima
 *          (below); per sub-block s of 32 columns 4 x 64 bytes of nibbles as Q4_0. value = d scale_s q - dmin minimum_s
 *   Q5_K   as Q4_K, and after each sub-block's nibbles 64 bytes of fifth bits: lane (o, t), bit i: column 4 i + t
 *          (i = 0 .. 7) of the sub-block. 2816 bytes
 *   Q6_K   chunk = 256 columns, 3392 bytes: half d[16], 32 zero bytes; int8 scale[16][16] (sub-block of 16 columns,
 *          output); per pair of sub-blocks (32 columns) 4 x 64 bytes of low nibbles as Q4_0, then 2 x 64 bytes of high
 *          bit pairs: vector v, lane (o, t), bits 2 j .. 2 j + 1: column 16 v + 4 j + t (j = 0 .. 3).
 *          value = d scale (q - 32)
 *
 *   6-bit scales: 16 rows of 16 values (scale of sub-blocks 0 .. 7, then minimum of sub-blocks 0 .. 7; one value an
 *   output): 128 bytes of low nibbles: byte 16 r + o: low nibble row r, high nibble row r + 8; then 64 bytes of high
 *   pairs: byte 16 j + o, bits 2 p .. 2 p + 1: row 4 p + j (p = 0 .. 3, j = 0 .. 3).
 *
 * The product. Activations are quantised in blocks of 32 columns: scale = max |x| / 127, q = x / scale rounded to the
 * nearest (even) integer; where scale would be below the normal fp32 numbers, scale and q are zero. Inside a sub-block
 * (32 columns; 16 for Q6_K) the sum over columns of weight and activation, zero point included, is an exact int32.
 * Sub-blocks are then added in rising order to one fp32 accumulator:
 *
 *     sum = fma((float)dot, w_scale * x_scale, sum);        w_scale = d, d scale_s (rounded once, in fp32)
 *     sum = fma(w_minimum, x_minimum, sum);                  Q4_K, Q5_K: w_minimum = dmin minimum_s; Q4_1: n;
 *                                                            x_minimum = -(x_scale * (float)sum of q)
 *
 * All of it is defined to the bit, so every instruction set, tile shape and number of rows gives the same result; the
 * plain table is the definition (cpu_kernels_plain_packed.c) and tests compare for equality.
 *
 * A block with a value that is not finite has scale NaN (0x7FC00000; and x_minimum NaN) and q zero: a broken row gives
 * broken logits, never plausible ones.
 */
#ifndef HR_BACKEND_CPU_CPU_PACK_H
#define HR_BACKEND_CPU_CPU_PACK_H

#include "base/status.h"
#include "model/model.h"

enum { HR_PACK_ROWS = 16, HR_PACK_ALIGNMENT = 64 };

/* Whether matrices of this type are packed: Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K; and Q5_0, which is packed as Q8_0
 * without loss (q - 16 in a byte). Others are multiplied where they lie. */
bool hr_pack_is_packed(hr_dtype dtype);
/* Bytes of the packed matrix; 0 if the type is not packed. */
size_t hr_pack_bytes(hr_dtype dtype, uint32_t rows, uint32_t cols);
/* Bytes of one group of 16 rows of a packed matrix, whose dtype is the packed one (never Q5_0). */
size_t hr_pack_group_bytes(hr_dtype dtype, uint32_t cols);
/* Packs groups [first, last) of `from` (file layout) to `to`, the start of the packed matrix, aligned to 64 bytes. Any
 * thread; different groups at once. E_MODEL: a block's scale is NaN or infinite; *bad_row is set and err names row and
 * block, the caller adds tensor and file. */
headrace_status hr_pack_groups(const hr_matrix *from, uint32_t first, uint32_t last, void *to, uint32_t *bad_row,
                               headrace_error *err);
/* The same check for a row that is not to be packed; any type. */
headrace_status hr_pack_check_row(const hr_matrix *from, uint32_t row, headrace_error *err);
/* The packed matrix as kernels take it: dtype, row_bytes (of a group / 16), is_packed set. */
hr_matrix hr_pack_matrix(const hr_matrix *from, const void *packed);

/* Row `row` of a packed matrix as fp32 [w->cols], with the bits that hr_dequantize gives for the file's row
 * (cpu_kernels_plain_packed.c). */
void hr_pack_read_row(const hr_matrix *w, uint32_t row, float *out);

/* A quantised row of activations: arrays one after the other, each rounded up to 64 bytes; n = ceil(cols / 64) * 2
 * blocks of 32, the ones past the row all zero bits. What a type does not need, its kernel does not touch. */
typedef struct hr_int8_row {
    const int8_t *q;        /* [32 n] */
    const float *scale;     /* [n] */
    const float *minimum;   /* [n], -(scale * (float)sum of the block's q) */
    const int32_t *zero8;   /* [n], -8 * sum of the block's q: what a dot product of Q4_0 starts from */
    const int32_t *zero128; /* [n], -128 * sum: Q8_0 */
    const int32_t *zero32;  /* [2 n], -32 * sum of each half block: Q6_K */
} hr_int8_row;

static inline size_t hr_int8_blocks(uint32_t cols)
{
    return ((size_t)cols + 63) / 64 * 2;
}
/* Byte offsets of the arrays, in the order above; the last is the size of a row. */
static inline void hr_int8_offsets(uint32_t cols, size_t at[7])
{
    const size_t n = hr_int8_blocks(cols), size[6] = {32 * n, 4 * n, 4 * n, 4 * n, 4 * n, 8 * n};

    at[0] = 0;
    for (int i = 0; i < 6; i++)
        at[i + 1] = at[i] + (size[i] + 63) / 64 * 64;
}
static inline size_t hr_int8_row_bytes(uint32_t cols)
{
    size_t at[7];

    hr_int8_offsets(cols, at);
    return at[6];
}
static inline hr_int8_row hr_int8_row_at(const void *row, uint32_t cols)
{
    const unsigned char *base = (const unsigned char *)row;
    size_t at[7];

    hr_int8_offsets(cols, at);
    return (hr_int8_row){.q = (const int8_t *)(base + at[0]),
                         .scale = (const float *)(const void *)(base + at[1]),
                         .minimum = (const float *)(const void *)(base + at[2]),
                         .zero8 = (const int32_t *)(const void *)(base + at[3]),
                         .zero128 = (const int32_t *)(const void *)(base + at[4]),
                         .zero32 = (const int32_t *)(const void *)(base + at[5])};
}

#endif
