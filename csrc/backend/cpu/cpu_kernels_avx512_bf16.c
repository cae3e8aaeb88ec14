/* Kernels for AVX-512 with VNNI and AVX512_BF16: as avx512-vnni, and bf16 weights are multiplied in pairs by vdpbf16ps.
 *
 * That instruction wants both sides in bf16, so activations that meet bf16 weights are rounded (relative error up to
 * 2^-9 each, of the size of the weights' own). F16 and other weights are not rounded: they meet fp32 activations. A
 * prepared row holds both copies, because it is prepared before the matrix is known: bf16 first, fp32 after it, each
 * filled with zeros up to 64 bytes.
 *
 * vdpbf16ps adds the two products of a lane as sum + (odd pair, then even pair), each step rounded to nearest even,
 * subnormals flushed to zero whatever MXCSR says. It is the same in every tile shape, so the order stays fixed.
 *
 * With AMX there is another product of packed matrices, the rest is the same code.
 */
#include "backend/cpu/cpu_packed.h"
#include "backend/cpu/cpu_vector_avx512.h"

#define HAS_DOT_BF16

INLINE vf v_load_pairs_part(const void *at, size_t n)
{
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1u), at));
}

INLINE vf v_dot_bf16(vf a, vf b, vf sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

static size_t prepared_pairs_bytes(uint32_t cols)
{
    return ((size_t)cols * 2 + 63) / 64 * 64;
}

static size_t prepared_bytes(uint32_t cols)
{
    return prepared_pairs_bytes(cols) + ((size_t)cols * sizeof(float) + 63) / 64 * 64 + 64;
}

static void prepare(const float *x, uint32_t cols, void *prepared)
{
    unsigned char *pairs = prepared, *whole = pairs + prepared_pairs_bytes(cols);
    uint32_t i = 0;

    for (; i + VW <= cols; i += VW) {
        vf values = v_load(x + i);

        v_store_bf16(pairs + (size_t)i * 2, values);
        v_store(whole + (size_t)i * 4, values);
    }
    if (i < cols) {
        vf values = v_load_part(x + i, cols - i);

        v_store_bf16(pairs + (size_t)i * 2, values);
        v_store(whole + (size_t)i * 4, values);
        i += VW;
    }
    if (i % (2 * VW) != 0)
        memset(pairs + (size_t)i * 2, 0, VW * 2);
}

#include "backend/cpu/cpu_vector_linear.inc"

#include "backend/cpu/cpu_vector_rows.inc"

#include "backend/cpu/cpu_vector_attention.inc"

const hr_cpu_kernels hr_cpu_kernels_avx512_bf16 =
    VECTOR_TABLE("avx512-bf16", hr_cpu_avx512_prepare_int8, hr_cpu_avx512_vnni_linear_packed);
const hr_cpu_kernels hr_cpu_kernels_avx512_amx =
    VECTOR_TABLE("avx512-amx", hr_cpu_avx512_prepare_int8, hr_cpu_amx_linear_packed);
