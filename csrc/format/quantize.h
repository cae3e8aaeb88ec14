/* Rounding rows of weights to the types of a weight file; dtype.h's hr_dequantize is the way back.
 *
 * Rows are quantised block by block and know nothing of each other, so rows and whole blocks may be done in any order
 * and by any number of threads. The result depends on the values alone: not on the compiler, its optimisation, or the
 * instruction set.
 *
 * Without importance Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are the formats' reference roundings, bit for bit. Everything else
 * searches for the block with the smallest sum of importance x (value - value read back)^2.
 */
#ifndef HR_FORMAT_QUANTIZE_H
#define HR_FORMAT_QUANTIZE_H

#include "format/dtype.h"

#include <stdbool.h>

/* True for every type that hr_quantize_row writes. */
bool hr_can_quantize(hr_dtype dtype);

/* Writes n values (a multiple of the type's block_values, from a block border) to dst, hr_dtype_row_bytes(dtype, n)
 * bytes that need no alignment. importance: NULL, or [n] finite and >= 0, the weight of each column's squared error;
 * only its proportions inside a block count, and a block whose importance is all zero is treated as if it were equal.
 *
 * Returns n, or the index of a value that the type cannot hold: one that is not finite, or so large that it (or its
 * block's fp16 scale) would be written as an infinity. Then what dst holds is of no use; the caller knows the tensor's
 * name and says which value it was. Never writes a scale that is not finite when it returns n. Allocates nothing;
 * thread-safe. */
size_t hr_quantize_row(hr_dtype dtype, const float *src, const float *importance, size_t n, void *dst);

#endif
