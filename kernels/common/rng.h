// Counter-based random numbers, the arithmetic of csrc/base/rng.h to the bit: a draw is a pure function of (seed,
// position, id), so every backend draws the same token. tests/kernels/io/test_sampler.cc holds the two together.
#pragma once

#include "common/cuda_compat.h"

namespace hrk
{

// The finaliser of splitmix64.
__host__ __device__ __forceinline__ uint64_t mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
// The number at `index` of the stream `key`.
__host__ __device__ __forceinline__ uint64_t rng_at(uint64_t key, uint64_t index)
{
    return mix64(key + (index + 1) * 0x9E3779B97F4A7C15u);
}
// The key of one token's draw.
__host__ __device__ __forceinline__ uint64_t rng_key(uint64_t seed, uint64_t position)
{
    return mix64(mix64(seed) ^ (position * 0xD1B54A32D192ED03u + 0x8CB92BA72F3D8DD7u));
}
// (k + 1/2) / 2^52 of the upper 52 bits: in (0, 1), exact.
__host__ __device__ __forceinline__ double rng_unit(uint64_t bits)
{
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

} // namespace hrk
