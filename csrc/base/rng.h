/* Counter-based random numbers: a pure function of a key, so that a draw does not depend on what else was drawn.
 *
 * mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014). The same arithmetic runs on every backend.
 */
#ifndef HR_BASE_RNG_H
#define HR_BASE_RNG_H

#include <stdint.h>

static inline uint64_t hr_mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* The number at `index` of the stream `key`. */
static inline uint64_t hr_rng_at(uint64_t key, uint64_t index)
{
    return hr_mix64(key + (index + 1) * 0x9E3779B97F4A7C15u);
}

/* A key for (seed, position): one token's draw. */
static inline uint64_t hr_rng_key(uint64_t seed, uint64_t position)
{
    return hr_mix64(hr_mix64(seed) ^ (position * 0xD1B54A32D192ED03u + 0x8CB92BA72F3D8DD7u));
}

/* In (0, 1), never 0 and never 1: (k + 1/2) / 2^52 with 52 random bits (one bit more and the half would round up to 1).
 */
static inline double hr_rng_unit(uint64_t bits)
{
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

#endif
