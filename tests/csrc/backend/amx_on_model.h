/* The AMX products on modelled tiles: hr_cpu_amx_linear_packed without its choice of rows. */
#ifndef AMX_ON_MODEL_H
#define AMX_ON_MODEL_H

#include "backend/cpu/cpu_kernels.h"

/* Needs a machine with AVX-512. */
void amx_on_model_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                float *y, size_t y_stride, void *scratch);

#endif
