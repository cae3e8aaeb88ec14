/* The text of the AMX products, compiled on the model of the tile instructions. */
#include "csrc/backend/amx_on_model.h"

#include "backend/cpu/cpu_packed_avx512.h"

#include "csrc/backend/tile_model.h"

#include "backend/cpu/cpu_packed_avx512_layout.inc"

#include "backend/cpu/cpu_packed_amx.inc"

void amx_on_model_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                float *y, size_t y_stride, void *scratch)
{
    const packed_product p = product_of(w, begin, end, rows, n_rows, y, y_stride);

    multiply_amx(&p, scratch);
}
