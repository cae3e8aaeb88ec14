/* Packed quantised matrices for AVX-VNNI: vpdpbusd on vectors of 32 bytes, four columns of eight outputs at a time, for
 * CPUs that have it without AVX-512 (cpu_packed_avx2.inc).
 */
#include "backend/cpu/cpu_packed.h"

#include <immintrin.h>
#include <string.h>

#define HAS_DPBUSD
/* 12 sums, two vectors of weights, one of activations. */
#define ROWS_MAX 6

#include "backend/cpu/cpu_packed_avx2.inc"

void hr_cpu_avx2_vnni_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                    float *y, size_t y_stride, void *scratch)
{
    linear_packed(w, begin, end, rows, n_rows, y, y_stride, scratch);
}
