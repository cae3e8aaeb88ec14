/* Packed products for AVX-512 with VNNI: vpdpbusd multiplies four unsigned bytes a lane by four signed ones and adds
 * the exact sum to an int32. */
#include "backend/cpu/cpu_packed_avx512.h"

/* sum + w0 x0 + w1 x1, four unsigned and four signed bytes a lane. */
INLINE __m512i dot_pair(bool is_wide, __m512i sum, __m512i w0, __m512i w1, __m512i x0, __m512i x1)
{
    (void)is_wide;
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, w0, x0), w1, x1);
}

#include "backend/cpu/cpu_packed_avx512_layout.inc"

#include "backend/cpu/cpu_packed_avx512.inc"

#include "backend/cpu/cpu_packed_avx512_panel.inc"

#include "backend/cpu/cpu_packed_avx512_product.inc"

void hr_cpu_avx512_vnni_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows,
                                      uint32_t n_rows, float *y, size_t y_stride, void *scratch)
{
    multiply_packed(w, begin, end, rows, n_rows, y, y_stride, scratch);
}
