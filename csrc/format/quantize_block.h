/* What quantize.c, quantize_32.c and quantize_k.c share. */
#ifndef HR_FORMAT_QUANTIZE_BLOCK_H
#define HR_FORMAT_QUANTIZE_BLOCK_H

#include "format/dtype.h"
#include "format/quantize_search.h"

/* Spreads n_values (at most 256, a multiple of 32) over lanes: block b of n values becomes lane b % 4 of blocks[b / 4];
 * lanes beyond the last repeat it. Values are divided by *unit, a power of two, so that the largest magnitude lies in
 * [1, 2); importance is divided by its largest among `stored` values, those that share a scale in the file, and raised
 * a little, so that no column is free of weight.
 *
 * False, with nothing loaded: *unit is 0 if all values are too small for any fp16 scale, infinity if one is too large.
 */
bool hr_load_blocks(const float *src, const float *importance, int n_values, int stored, int n, hr_four_blocks *blocks,
                    float *unit);

/* 32 quants of 4 or 5 bits as Q4_0, Q4_1, Q5_0 and Q5_1 store them, behind the scales. */
void hr_pack_nibbles(const unsigned char *quants, bool has_fifth, unsigned char *at);

/* One block of Q4_K, Q5_K or Q6_K; importance may be NULL. False if a value is too large. */
bool hr_search_k(hr_dtype dtype, const float *src, const float *importance, void *dst);
/* n_blocks of 1 to 4 blocks of Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 with importance. False if a value is too large. */
bool hr_search_32(hr_dtype dtype, const float *src, const float *importance, int n_blocks, void *dst);

#endif
