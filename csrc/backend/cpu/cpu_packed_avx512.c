/* Packed products for AVX-512 without VNNI, and rows of int8 for both.
 *
 * vpmaddubsw adds two products in 16 bits and saturates. Weights of up to six bits stay clear of that even when two
 * of its results are added: 4 x 63 x 127 = 32004. The bytes of Q8_0 do not; they are multiplied as two nibbles.
 */
#include "backend/cpu/cpu_packed_avx512.h"
#include "base/numeric.h"

#include <float.h>

/* sum + w0 x0 + w1 x1, four unsigned and four signed bytes a lane; is_wide: w has more than six bits. */
INLINE __m512i dot_pair(bool is_wide, __m512i sum, __m512i w0, __m512i w1, __m512i x0, __m512i x1)
{
    const __m512i ones = _mm512_set1_epi16(1);

    if (is_wide) {
        const __m512i nibble = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi16(16);
        __m512i high = _mm512_add_epi16(_mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16(w0, 4), nibble), x0),
                                        _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16(w1, 4), nibble), x1));

        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(high, sixteen));
        w0 = _mm512_and_si512(w0, nibble);
        w1 = _mm512_and_si512(w1, nibble);
    }
    return _mm512_add_epi32(
        sum, _mm512_madd_epi16(_mm512_add_epi16(_mm512_maddubs_epi16(w0, x0), _mm512_maddubs_epi16(w1, x1)), ones));
}

#include "backend/cpu/cpu_packed_avx512_layout.inc"

#include "backend/cpu/cpu_packed_avx512.inc"

#include "backend/cpu/cpu_packed_avx512_panel.inc"

#include "backend/cpu/cpu_packed_avx512_product.inc"

void hr_cpu_avx512_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                 float *y, size_t y_stride, void *scratch)
{
    multiply_packed(w, begin, end, rows, n_rows, y, y_stride, scratch);
}

/* The arrays of a row, to be written. */
typedef struct row_arrays {
    unsigned char *q;
    float *scale, *minimum;
    int32_t *zero8, *zero128, *zero32;
} row_arrays;

/* Block b. Magnitudes are compared as integers: their order is the same, and what is not finite stands above all. */
INLINE void quantise_block(const float *x, size_t b, const row_arrays *to)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16), divisor;
    int32_t largest = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                                               _mm512_and_si512(_mm512_castps_si512(high), magnitude)));
    bool is_finite = largest < 0x7F800000;
    float scale = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest))) / 127.0f;
    __mmask16 is_used = is_finite && scale >= FLT_MIN ? 0xFFFF : 0;
    __m128i q[2];
    __m256i sums;
    int32_t half[2], sum;

    divisor = _mm512_set1_ps(scale);
    q[0] = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(is_used, _mm512_div_ps(low, divisor)));
    q[1] = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(is_used, _mm512_div_ps(high, divisor)));
    /* vpsadbw adds unsigned bytes in eights: the top bit is turned over, and 16 x 128 taken off again */
    sums =
        _mm256_sad_epu8(_mm256_xor_si256(_mm256_set_m128i(q[1], q[0]), _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    half[0] = (int32_t)(_mm256_extract_epi64(sums, 0) + _mm256_extract_epi64(sums, 1)) - 2048;
    half[1] = (int32_t)(_mm256_extract_epi64(sums, 2) + _mm256_extract_epi64(sums, 3)) - 2048;
    sum = half[0] + half[1];
    if (!is_used)
        scale = is_finite ? 0 : hr_bits_to_f32(0x7FC00000u);
    _mm_store_si128((void *)(to->q + 32 * b), q[0]);
    _mm_store_si128((void *)(to->q + 32 * b + 16), q[1]);
    to->scale[b] = scale;
    to->minimum[b] = -(scale * (float)sum);
    to->zero8[b] = -8 * sum;
    to->zero128[b] = -128 * sum;
    to->zero32[2 * b] = -32 * half[0];
    to->zero32[2 * b + 1] = -32 * half[1];
}

void hr_cpu_avx512_prepare_int8(const float *x, uint32_t cols, void *row)
{
    unsigned char *bytes = row;
    row_arrays to;
    size_t at[7];

    hr_int8_offsets(cols, at);
    to = (row_arrays){.q = bytes,
                      .scale = (float *)(void *)(bytes + at[1]),
                      .minimum = (float *)(void *)(bytes + at[2]),
                      .zero8 = (int32_t *)(void *)(bytes + at[3]),
                      .zero128 = (int32_t *)(void *)(bytes + at[4]),
                      .zero32 = (int32_t *)(void *)(bytes + at[5])};
    memset(row, 0, at[6]);
    for (size_t b = 0; b < cols / 32; b++)
        quantise_block(x + b * 32, b, &to);
}
