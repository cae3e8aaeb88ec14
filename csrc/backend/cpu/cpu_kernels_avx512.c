/* Kernels for AVX-512 (F, BW, VL, DQ): vectors of sixteen fp32, products in fp32. With VNNI there is another product of
 * packed matrices, the rest is the same code. */
#include "backend/cpu/cpu_packed.h"
#include "backend/cpu/cpu_vector_avx512.h"

#include "backend/cpu/cpu_vector_prepare.inc"

#include "backend/cpu/cpu_vector_linear.inc"

#include "backend/cpu/cpu_vector_rows.inc"

#include "backend/cpu/cpu_vector_attention.inc"

const hr_cpu_kernels hr_cpu_kernels_avx512 =
    VECTOR_TABLE("avx512", hr_cpu_avx512_prepare_int8, hr_cpu_avx512_linear_packed);
const hr_cpu_kernels hr_cpu_kernels_avx512_vnni =
    VECTOR_TABLE("avx512-vnni", hr_cpu_avx512_prepare_int8, hr_cpu_avx512_vnni_linear_packed);
