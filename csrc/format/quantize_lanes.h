/* Four blocks of values side by side: lane l of every vector belongs to block l.
 *
 * Searching for a scale is a chain of small sums with decisions between them. Inside one block the sums would have to
 * be split and joined; between blocks nothing has to be joined at all, so four blocks are searched at once, each in its
 * own lane, in an order of operations that a plain loop over one block would have. The 128-bit vectors of the
 * compilers exist in the base instruction set of every 64-bit machine; no result depends on which it is.
 */
#ifndef HR_FORMAT_QUANTIZE_LANES_H
#define HR_FORMAT_QUANTIZE_LANES_H

#include <stdint.h>

enum { HR_LANES = 4 };
typedef float hr_lanes __attribute__((vector_size(16)));
typedef int32_t hr_mask __attribute__((vector_size(16))); /* all bits of a lane, or none */

static inline hr_lanes lanes_all(float value)
{
    return (hr_lanes){value, value, value, value};
}

static inline hr_lanes lanes_select(hr_mask mask, hr_lanes yes, hr_lanes no)
{
    return (hr_lanes)((mask & (hr_mask)yes) | (~mask & (hr_mask)no));
}

static inline hr_lanes lanes_min(hr_lanes a, hr_lanes b)
{
    return lanes_select(a < b, a, b);
}

static inline hr_lanes lanes_max(hr_lanes a, hr_lanes b)
{
    return lanes_select(a > b, a, b);
}

/* The nearest integer, ties to even, for magnitudes below 2^22: the sum with 1.5 x 2^23 has no place for fractions. */
static inline hr_lanes lanes_round(hr_lanes v)
{
    return (v + 12582912.0F) - 12582912.0F;
}

/* The nearest integer within [low, high]. */
static inline hr_lanes lanes_quant(hr_lanes v, hr_lanes low, hr_lanes high)
{
    return lanes_round(lanes_min(lanes_max(v, low), high));
}

/* a / b, and 0 where b is 0. */
static inline hr_lanes lanes_ratio(hr_lanes a, hr_lanes b)
{
    hr_mask zero = b == 0.0F;

    return lanes_select(zero, lanes_all(0.0F), a / lanes_select(zero, lanes_all(1.0F), b));
}

#endif
