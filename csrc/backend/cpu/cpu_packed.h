/* The functions for packed matrices (cpu_pack.h) that the tables of kernels name: each instruction set's stand in a
 * file of their own, because they need flags of their own and share nothing with the products of wide rows. */
#ifndef HR_BACKEND_CPU_CPU_PACKED_H
#define HR_BACKEND_CPU_CPU_PACKED_H

#include "backend/cpu/cpu_kernels.h"

/* cpu_kernels_plain_packed.c: the definition. */
void hr_cpu_plain_prepare_int8(const float *x, uint32_t cols, void *row);
void hr_cpu_plain_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                float *y, size_t y_stride, void *scratch);

#ifdef __x86_64__
/* cpu_packed_avx2.c, cpu_packed_avx2_vnni.c */
void hr_cpu_avx2_prepare_int8(const float *x, uint32_t cols, void *row);
void hr_cpu_avx2_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                               float *y, size_t y_stride, void *scratch);
void hr_cpu_avx2_vnni_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                    float *y, size_t y_stride, void *scratch);
/* cpu_packed_avx512.c, cpu_packed_avx512_vnni.c */
void hr_cpu_avx512_prepare_int8(const float *x, uint32_t cols, void *row);
void hr_cpu_avx512_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                                 float *y, size_t y_stride, void *scratch);
void hr_cpu_avx512_vnni_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows,
                                      uint32_t n_rows, float *y, size_t y_stride, void *scratch);
/* cpu_packed_amx.c */
void hr_cpu_amx_linear_packed(const hr_matrix *w, uint32_t begin, uint32_t end, const void *rows, uint32_t n_rows,
                              float *y, size_t y_stride, void *scratch);
#endif

#endif
