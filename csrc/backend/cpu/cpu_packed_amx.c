/* Packed products for AMX (tiles, int8), on top of AVX-512 with VNNI, which takes the few rows that fill no tile. */
#include "backend/cpu/cpu_packed_avx512.h"

#include "backend/cpu/cpu_packed_avx512_layout.inc"

#include "backend/cpu/cpu_packed_amx.inc"

/* Below, weights come from memory no faster than VNNI multiplies them. */
enum { AMX_LEAST_ROWS = 8 };

void hr_cpu_amx_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                              float *y, size_t y_stride, void *scratch)
{
    packed_product p;

    if (n_rows < AMX_LEAST_ROWS) {
        hr_cpu_avx512_vnni_linear_packed(w, begin, end, rows, n_rows, y, y_stride, scratch);
        return;
    }
    p = product_of(w, begin, end, rows, n_rows, y, y_stride);
    multiply_amx(&p, scratch);
}
