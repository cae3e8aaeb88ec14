/* Element types of weight files: one row a type, and the exact meaning of its bits.
 *
 * A quantised type stores blocks of values along a row (docs/formats.md gives the layouts). Dequantisation is in fp32
 * and is the definition; faster paths are compared with it.
 */
#ifndef HR_FORMAT_DTYPE_H
#define HR_FORMAT_DTYPE_H

#include <stddef.h>
#include <stdint.h>

typedef enum hr_dtype {
    HR_F32,
    HR_F16,
    HR_BF16,
    HR_Q4_0,
    HR_Q4_1,
    HR_Q5_0,
    HR_Q5_1,
    HR_Q8_0,
    HR_Q4_K,
    HR_Q5_K,
    HR_Q6_K,
    HR_DTYPE_COUNT
} hr_dtype;

typedef struct hr_dtype_info {
    const char *name;      /* "Q4_K" */
    uint32_t block_values; /* 1, 32 or 256 */
    uint32_t block_bytes;
} hr_dtype_info;

extern const hr_dtype_info hr_dtypes[HR_DTYPE_COUNT];

/* Bytes of a row of n values; n must be a multiple of block_values. */
static inline size_t hr_dtype_row_bytes(hr_dtype dtype, size_t n)
{
    return n / hr_dtypes[dtype].block_values * hr_dtypes[dtype].block_bytes;
}

/* Reads n values (a multiple of block_values) starting at a block border; src needs no alignment. */
void hr_dequantize(hr_dtype dtype, const void *src, float *dst, size_t n);

/* The first block of n values with an fp16 scale that is not finite, or the number of blocks. */
size_t hr_dtype_bad_block(hr_dtype dtype, const void *src, size_t n);

#endif
