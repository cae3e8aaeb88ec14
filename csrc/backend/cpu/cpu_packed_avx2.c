/* Packed quantised matrices and their rows for AVX2: products by vpmaddubsw, two columns in 16 bits
 * (cpu_packed_avx2.inc), and the rounding of activations, which the table with AVX-VNNI shares.
 */
#include "backend/cpu/cpu_packed.h"

#include <float.h>
#include <immintrin.h>
#include <string.h>

/* Sums in 16 and in 32 bits take twice the registers that vpdpbusd needs. */
#define ROWS_MAX 4

#include "backend/cpu/cpu_packed_avx2.inc"

void hr_cpu_avx2_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                               float *y, size_t y_stride, void *scratch)
{
    linear_packed(w, begin, end, rows, n_rows, y, y_stride, scratch);
}

/* What prepare_int8 writes, block by block. */
typedef struct row_arrays {
    int8_t *q;
    float *scale, *minimum;
    int32_t *zero8, *zero128, *zero32;
} row_arrays;

INLINE row_arrays arrays_of(void *row, uint32_t cols)
{
    unsigned char *base = row;
    size_t at[7];

    hr_int8_offsets(cols, at);
    return (row_arrays){(int8_t *)base,
                        (float *)(void *)(base + at[1]),
                        (float *)(void *)(base + at[2]),
                        (int32_t *)(void *)(base + at[3]),
                        (int32_t *)(void *)(base + at[4]),
                        (int32_t *)(void *)(base + at[5])};
}

/* The largest magnitude of 32 values; NaN if one is not finite. */
INLINE float largest_of(const __m256 *x)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7F800000));
    __m256 most = _mm256_setzero_ps(), broken = _mm256_setzero_ps();
    __m128 four;

    for (int i = 0; i < 4; i++) {
        const __m256 size = _mm256_and_ps(x[i], magnitude);

        most = _mm256_max_ps(most, size);
        broken = _mm256_or_ps(broken, _mm256_cmp_ps(size, infinity, _CMP_NLT_UQ));
    }
    if (_mm256_movemask_ps(broken))
        return _mm256_cvtss_f32(_mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000)));
    four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

INLINE int32_t sum_of(__m256i a)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));

    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_srli_epi64(four, 32)));
}

INLINE void prepare_block(const float *x, size_t b, const row_arrays *row)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256 value[4];
    __m256i q[4];
    int32_t half0 = 0, half1 = 0, sum;
    float scale;

    for (int i = 0; i < 4; i++)
        value[i] = _mm256_loadu_ps(x + 8 * i);
    scale = largest_of(value) / 127.0f;
    if (scale >= FLT_MIN) { /* false for NaN */
        for (int i = 0; i < 4; i++)
            q[i] = _mm256_cvtps_epi32(_mm256_div_ps(value[i], _mm256_set1_ps(scale)));
        half0 = sum_of(_mm256_add_epi32(q[0], q[1]));
        half1 = sum_of(_mm256_add_epi32(q[2], q[3]));
        q[0] = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        q[0] = _mm256_permutevar8x32_epi32(q[0], order);
    } else {
        q[0] = _mm256_setzero_si256();
        if (scale < FLT_MIN)
            scale = 0;
    }
    _mm256_storeu_si256((__m256i *)(void *)(row->q + BLOCK * b), q[0]);
    sum = half0 + half1;
    row->scale[b] = scale;
    row->minimum[b] = -(scale * (float)sum);
    row->zero8[b] = -8 * sum;
    row->zero128[b] = -128 * sum;
    row->zero32[2 * b] = -32 * half0;
    row->zero32[2 * b + 1] = -32 * half1;
}

void hr_cpu_avx2_prepare_int8(const float *x, uint32_t cols, void *row)
{
    const row_arrays arrays = arrays_of(row, cols);
    size_t at[7], n = cols / BLOCK;

    hr_int8_offsets(cols, at);
    for (int i = 0; i < 6; i++) { /* what stands behind the blocks: the last line of each array, or two of q */
        size_t lines = i == 0 ? 2 : 1, bytes = at[i + 1] - at[i] < lines * LINE ? at[i + 1] - at[i] : lines * LINE;

        memset((unsigned char *)row + at[i + 1] - bytes, 0, bytes);
    }
    for (size_t b = 0; b < n; b++)
        prepare_block(x + b * BLOCK, b, &arrays);
}
