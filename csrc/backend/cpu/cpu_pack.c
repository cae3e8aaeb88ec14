/* From the file's blocks to the order of cpu_pack.h.
 *
 * Four neighbouring columns of an output are one 32-bit lane of the packed matrix, so that blocks are taken apart in
 * words of four bytes, the same operation on each of them: no value is ever looked at alone. What the file calls a
 * block is docs/formats.md and format/dtype.c; nothing is rounded here, every value keeps its bits.
 */
#include "backend/cpu/cpu_pack.h"

#include <string.h>

typedef unsigned char byte;

enum {
    Q4_VECTORS = 4,   /* of 64 bytes: a block (sub-block) of 32 columns as nibbles */
    Q8_VECTORS = 8,   /* the same as bytes */
    VECTOR = 64,      /* bytes: 16 outputs, four columns */
    SUBBLOCKS = 8,    /* of 32 columns, in a block of 256 */
    SCALE_BYTES = 192 /* the 6-bit scales and minima of a chunk */
};

/* How a type is packed. */
typedef struct packing {
    hr_dtype dtype;      /* of the packed matrix */
    uint32_t chunk_cols; /* columns of a chunk */
    uint32_t chunk_bytes;
    /* Puts one block of output o into its chunk; i: which block of the chunk. */
    void (*block)(const byte *block, uint32_t i, uint32_t o, byte *chunk);
} packing;

static uint32_t word_at(const byte *at)
{
    uint32_t word;

    memcpy(&word, at, sizeof word);
    return word;
}

/* Output o's lane of the vector at `vector`. */
static void put(byte *vector, uint32_t o, uint32_t word)
{
    memcpy(vector + (size_t)4 * o, &word, sizeof word);
}

/* Nibbles of 32 columns. low[i], high[i]: words of columns 4 i and 16 + 4 i, a value in the low half of each byte. */
static void put_nibbles(byte *to, uint32_t o, const uint32_t low[4], const uint32_t high[4])
{
    for (uint32_t i = 0; i < Q4_VECTORS; i++)
        put(to + i * VECTOR, o, low[i] | high[i] << 4);
}

static void pack_q4_0(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = chunk + VECTOR + (size_t)i * Q4_VECTORS * VECTOR;

    memcpy(chunk + 32 * i + 2 * o, block, 2);
    for (uint32_t v = 0; v < Q4_VECTORS; v++) /* the file pairs columns j and j + 16 in a byte, too */
        put(to + v * VECTOR, o, word_at(block + 2 + 4 * v));
}

/* d, m, qs[16]; a zero keeps its bits' meaning: d q - n is d q + m. */
static void pack_q4_1(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = chunk + 2 * VECTOR + (size_t)i * Q4_VECTORS * VECTOR, *minimum = chunk + VECTOR + 32 * i + 2 * o;

    memcpy(chunk + 32 * i + 2 * o, block, 2);
    memcpy(minimum, block + 2, 2);
    minimum[1] ^= 0x80;
    for (uint32_t v = 0; v < Q4_VECTORS; v++)
        put(to + v * VECTOR, o, word_at(block + 4 + 4 * v));
}

static byte *q8_block(byte *chunk, const byte *scale, uint32_t i, uint32_t o)
{
    memcpy(chunk + 32 * i + 2 * o, scale, 2);
    return chunk + VECTOR + (size_t)i * Q8_VECTORS * VECTOR;
}

static void pack_q8_0(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = q8_block(chunk, block, i, o);

    for (uint32_t v = 0; v < Q8_VECTORS; v++)
        put(to + v * VECTOR, o, word_at(block + 2 + 4 * v) ^ 0x80808080u);
}

/* d, qh[4], qs[16]: value j is (five bits) - 16; as Q8_0. */
static void pack_q5_0(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = q8_block(chunk, block, i, o);
    uint32_t fifth = word_at(block + 2);

    for (uint32_t v = 0; v < Q8_VECTORS; v++) {
        uint32_t nibbles = word_at(block + 6 + 4 * (v % 4)) >> 4 * (v / 4) & 0x0F0F0F0Fu, bits = fifth >> 4 * v & 15;
        uint32_t spread = (bits & 1) << 4 | (bits & 2) << 11 | (bits & 4) << 18 | (bits & 8) << 25;

        put(to + v * VECTOR, o, (nibbles | spread) + 0x70707070u); /* q - 16 + 128, no byte overflows */
    }
}

/* The twelve bytes of 6-bit scales and minima that Q4_K and Q5_K share, to the rows described in cpu_pack.h. */
static void pack_scales(const byte *packed, uint32_t o, byte *to)
{
    byte value[2 * SUBBLOCKS];

    for (uint32_t s = 0; s < 4; s++) {
        value[s] = packed[s] & 63;
        value[s + 8] = packed[s + 4] & 63;
        value[s + 4] = (byte)((packed[s + 8] & 15) | (packed[s] >> 6) << 4);
        value[s + 12] = (byte)((packed[s + 8] >> 4) | (packed[s + 4] >> 6) << 4);
    }
    for (uint32_t r = 0; r < 8; r++)
        to[16 * r + o] = (byte)((value[r] & 15) | (value[r + 8] & 15) << 4);
    for (uint32_t j = 0; j < 4; j++)
        to[128 + 16 * j + o] =
            (byte)(value[j] >> 4 | value[4 + j] >> 4 << 2 | value[8 + j] >> 4 << 4 | value[12 + j] >> 4 << 6);
}

/* Nibbles of sub-block s: the low or high halves of 32 bytes, the file's order of Q4_K and Q5_K. */
static void pack_k_nibbles(const byte *qs, uint32_t shift, uint32_t o, byte *to)
{
    uint32_t low[4], high[4];

    for (uint32_t i = 0; i < 4; i++) {
        low[i] = word_at(qs + 4 * i) >> shift & 0x0F0F0F0Fu;
        high[i] = word_at(qs + 16 + 4 * i) >> shift & 0x0F0F0F0Fu;
    }
    put_nibbles(to, o, low, high);
}

/* d, dmin, scales[12], qs[128]. */
static void pack_q4_k(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = chunk + VECTOR + SCALE_BYTES;

    (void)i;
    memcpy(chunk + 2 * o, block, 2);
    memcpy(chunk + 32 + 2 * o, block + 2, 2);
    pack_scales(block + 4, o, chunk + VECTOR);
    for (uint32_t s = 0; s < SUBBLOCKS; s++)
        pack_k_nibbles(block + 16 + 32 * (s / 2), 4 * (s % 2), o, to + (size_t)s * Q4_VECTORS * VECTOR);
}

/* d, dmin, scales[12], qh[32], qs[128]; bit s of qh[l] is the fifth bit of value l of sub-block s. */
static void pack_q5_k(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = chunk + VECTOR + SCALE_BYTES;

    (void)i;
    memcpy(chunk + 2 * o, block, 2);
    memcpy(chunk + 32 + 2 * o, block + 2, 2);
    pack_scales(block + 4, o, chunk + VECTOR);
    for (uint32_t s = 0; s < SUBBLOCKS; s++, to += (Q4_VECTORS + 1) * VECTOR) {
        uint32_t fifth = 0;

        for (uint32_t v = 0; v < 8; v++)
            fifth |= (word_at(block + 16 + 4 * v) >> s & 0x01010101u) << v;
        pack_k_nibbles(block + 48 + 32 * (s / 2), 4 * (s % 2), o, to);
        put(to + Q4_VECTORS * VECTOR, o, fifth);
    }
}

/* ql[128], qh[64], scales[16], d. 32 columns are group g of half c: nibbles in 32 bytes of ql, pairs of bits in qh. */
static void pack_q6_k(const byte *block, uint32_t i, uint32_t o, byte *chunk)
{
    byte *to = chunk + VECTOR + 256;

    (void)i;
    memcpy(chunk + 2 * o, block + 208, 2);
    memset(chunk + 32 + 2 * o, 0, 2);
    for (uint32_t s = 0; s < 16; s++)
        chunk[VECTOR + 16 * s + o] = block[192 + s];
    for (uint32_t p = 0; p < SUBBLOCKS; p++, to += (Q4_VECTORS + 2) * VECTOR) {
        uint32_t c = p / 4, g = p % 4;

        pack_k_nibbles(block + 64 * c + 32 * (g % 2), 4 * (g / 2), o, to);
        for (uint32_t v = 0; v < 2; v++) {
            const byte *qh = block + 128 + 32 * c + 16 * v;
            uint32_t high = 0;

            for (uint32_t j = 0; j < 4; j++)
                high |= (word_at(qh + 4 * j) >> 2 * g & 0x03030303u) << 2 * j;
            put(to + (Q4_VECTORS + v) * VECTOR, o, high);
        }
    }
}

/* NULL: the type is not packed. */
static const packing *packing_of(hr_dtype dtype)
{
    static const packing all[HR_DTYPE_COUNT] = {
        [HR_Q4_0] = {HR_Q4_0, 64, 576, pack_q4_0},   [HR_Q4_1] = {HR_Q4_1, 64, 640, pack_q4_1},
        [HR_Q5_0] = {HR_Q8_0, 64, 1088, pack_q5_0},  [HR_Q8_0] = {HR_Q8_0, 64, 1088, pack_q8_0},
        [HR_Q4_K] = {HR_Q4_K, 256, 2304, pack_q4_k}, [HR_Q5_K] = {HR_Q5_K, 256, 2816, pack_q5_k},
        [HR_Q6_K] = {HR_Q6_K, 256, 3392, pack_q6_k},
    };

    return all[dtype].block ? &all[dtype] : NULL;
}

bool hr_pack_is_packed(hr_dtype dtype)
{
    return packing_of(dtype) != NULL;
}

size_t hr_pack_group_bytes(hr_dtype dtype, uint32_t cols)
{
    const packing *how = packing_of(dtype);

    return how ? ((size_t)cols + how->chunk_cols - 1) / how->chunk_cols * how->chunk_bytes : 0;
}

size_t hr_pack_bytes(hr_dtype dtype, uint32_t rows, uint32_t cols)
{
    return ((size_t)rows + HR_PACK_ROWS - 1) / HR_PACK_ROWS * hr_pack_group_bytes(dtype, cols);
}

headrace_status hr_pack_check_row(const hr_matrix *from, uint32_t row, headrace_error *err)
{
    size_t bad = hr_dtype_bad_block(from->dtype, (const byte *)from->data + (size_t)row * from->row_bytes, from->cols);

    if (bad == from->cols / hr_dtypes[from->dtype].block_values)
        return HEADRACE_OK;
    return hr_fail(err, HEADRACE_E_MODEL, "row %u, block %zu: a scale of it is not a finite number", row, bad);
}

static headrace_status pack_row(const packing *how, const hr_matrix *from, uint32_t row, byte *group,
                                headrace_error *err)
{
    const hr_dtype_info *info = &hr_dtypes[from->dtype];
    const byte *block = (const byte *)from->data + (size_t)row * from->row_bytes;
    size_t n = from->cols / info->block_values, per_chunk = how->chunk_cols / info->block_values;

    HR_PASS(hr_pack_check_row(from, row, err));
    for (size_t b = 0; b < n; b++, block += info->block_bytes)
        how->block(block, (uint32_t)(b % per_chunk), row % HR_PACK_ROWS, group + b / per_chunk * how->chunk_bytes);
    return HEADRACE_OK;
}

headrace_status hr_pack_groups(const hr_matrix *from, uint32_t first, uint32_t last, void *to, uint32_t *bad_row,
                               headrace_error *err)
{
    const packing *how = packing_of(from->dtype);
    size_t group_bytes = hr_pack_group_bytes(from->dtype, from->cols);

    const bool is_odd = from->cols % how->chunk_cols != 0; /* blocks are missing in the last chunk */

    HR_ASSERT(how && from->cols % hr_dtypes[from->dtype].block_values == 0);
    for (size_t g = first; g < last; g++) {
        byte *group = (byte *)to + g * group_bytes;

        if (is_odd || (g + 1) * HR_PACK_ROWS > from->rows)
            memset(group, 0, group_bytes);
        for (uint32_t row = (uint32_t)g * HR_PACK_ROWS; row < from->rows && row < (g + 1) * HR_PACK_ROWS; row++) {
            *bad_row = row;
            HR_PASS(pack_row(how, from, row, group, err));
        }
    }
    return HEADRACE_OK;
}

hr_matrix hr_pack_matrix(const hr_matrix *from, const void *packed)
{
    const packing *how = packing_of(from->dtype);

    HR_ASSERT(how);
    return (hr_matrix){.data = packed,
                       .dtype = how->dtype,
                       .rows = from->rows,
                       .cols = from->cols,
                       .row_bytes = hr_pack_group_bytes(from->dtype, from->cols) / HR_PACK_ROWS,
                       .is_packed = true};
}
