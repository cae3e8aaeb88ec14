/* Kernels for AVX2, FMA and F16C: vectors of eight fp32, products in fp32. With AVX-VNNI there is another product of
 * packed matrices, the rest is the same code. */
#include "backend/cpu/cpu_packed.h"
#include "backend/cpu/cpu_vector_avx2.h"

#include "backend/cpu/cpu_vector_prepare.inc"

#include "backend/cpu/cpu_vector_linear.inc"

#include "backend/cpu/cpu_vector_rows.inc"

#include "backend/cpu/cpu_vector_attention.inc"

const hr_cpu_kernels hr_cpu_kernels_avx2 = VECTOR_TABLE("avx2", hr_cpu_avx2_prepare_int8, hr_cpu_avx2_linear_packed);
const hr_cpu_kernels hr_cpu_kernels_avx2_vnni =
    VECTOR_TABLE("avx2-vnni", hr_cpu_avx2_prepare_int8, hr_cpu_avx2_vnni_linear_packed);
