/* The best step (and offset) of four blocks of values at once, before anything is known about how they are stored. */
#ifndef HR_FORMAT_QUANTIZE_SEARCH_H
#define HR_FORMAT_QUANTIZE_SEARCH_H

#include "format/quantize_lanes.h"

#include <stdbool.h>

/* Four blocks of n <= 32 values; weights > 0, magnitudes of the values at most about 1 (see hr_lanes_scale). */
typedef struct hr_four_blocks {
    hr_lanes x[32], w[32];
    int n;
} hr_four_blocks;

/* value = base + step x q with q in 0 .. q_max. */
typedef struct hr_affine {
    hr_lanes step, base;
} hr_affine;

/* Minimises the weighted squared error; step >= 0, and base <= 0 if base_is_negative. */
hr_affine hr_search_affine(const hr_four_blocks *blocks, int q_max, bool base_is_negative);
/* The weighted squared error with the best q. */
hr_lanes hr_affine_error(const hr_four_blocks *blocks, int q_max, hr_affine fit);

/* value = step x q with q in -middle .. middle - 1; the step may be negative. */
hr_lanes hr_search_signed(const hr_four_blocks *blocks, int middle);
hr_lanes hr_signed_error(const hr_four_blocks *blocks, int middle, hr_lanes step);

#endif
