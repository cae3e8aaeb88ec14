// The draw: argmax over kept ids of z - log(-log u), u a pure function of (seed, position, id).
//
// The comparison is in double, as on the host. Among candidates in shared memory every score is computed so. Over a
// whole row scores are computed in fp32 first (after the host's test that most ids fail: 1 - u must be below the weight
// over that of the best so far): their error stays below 1e-5, so only what comes within 2e-4 of the best can win, and
// that is nearly always one id.
#pragma once

#include "common/rng.h"
#include "io/sampler_filter.h"

namespace hrk
{
namespace sampler
{

constexpr float CONTEST = 2e-4f;
constexpr float ABSORBING =
    1e8f; // where z is larger, adding the noise rounds it: scores must be compared as they round

__device__ __forceinline__ double exact_score(float z, uint64_t key, uint32_t id)
{
    return (double)z - log(-log(rng_unit(rng_at(key, id))));
}

__device__ __forceinline__ int32_t draw_candidate(const Row &row, uint32_t n, Shared &shared)
{
    double best = 0.0;
    int32_t best_id = -1;

    for (uint32_t c = threadIdx.x; c < n; c += THREADS) {
        const int32_t id = shared.id[c];

        if (id < 0)
            continue;
        const double score = exact_score(shared.value[c], row.key, (uint32_t)id);
        if (is_better(score, id, best, best_id)) {
            best = score;
            best_id = id;
        }
    }
    return block_best(best, best_id, shared);
}

// z - top - log(-log u) in fp32, or -inf for what cannot exceed `best`.
__device__ __forceinline__ float rough_score(float distance, float weight, uint64_t bits, float reach)
{
    const uint64_t k = bits >> 12;
    const float v = (float)(0xfffffffffffffu - k) * 0x1p-52f; // 1 - u, rounded; u + v = 1 - 2^-53

    if (v > weight * reach)
        return minus_infinity();
    const float l = v < 0.5f ? -log1pf(-v) : -logf(((float)k + 0.5f) * 0x1p-52f);
    return distance - logf(fmaxf(l, 0x1p-53f));
}

// A thread's two best rough scores.
struct Best {
    float first, second;
    int32_t id;
};

__device__ __forceinline__ Best rough_best(const Row &row, const Border &border)
{
    enum : uint32_t { Q = 2 }; // quads between two looks at what the warp's other lanes have found
    Best best = {minus_infinity(), minus_infinity(), -1};
    float reach = INFINITY;

    for (uint32_t base = 0; base < row.n; base += THREADS * 4 * Q) {
        float4 quad[Q];

        read_chunk(row, true, base, quad);
#pragma unroll
        for (uint32_t q = 0; q < Q; q++) {
            const float v[4] = {quad[q].x, quad[q].y, quad[q].z, quad[q].w};
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                const uint32_t i = quad_id(base, q) + c;
                const float z = row.z_of(v[c]), weight = row.weight(z);

                if (i >= row.n || !border.keeps(z, weight, i))
                    continue;
                const float score = rough_score(__fsub_rn(z, row.top_z), weight, rng_at(row.key, i), reach);
                if (score > best.first) {
                    best.second = best.first;
                    best.first = score;
                    best.id = (int32_t)i;
                } else {
                    best.second = fmaxf(best.second, score);
                }
            }
        }
        // What the best score leaves room for, with a margin far above all roundings.
        reach = expf(-prim::warp_max(best.first)) * 1.01f;
    }
    return best;
}

__device__ __forceinline__ int32_t draw_row(const Row &row, const Border &border, Shared &shared)
{
    const bool is_rough = fabsf(row.top_z) < ABSORBING;
    const Best rough = is_rough ? rough_best(row, border) : Best{minus_infinity(), minus_infinity(), -1};
    const float contest = block_max(rough.first, shared) - CONTEST;
    double best = 0.0;
    int32_t best_id = -1;

    if (__syncthreads_or(!is_rough || (rough.second >= contest && rough.id >= 0))) {
        // Two of one thread are close: look at everything near the best again.
        for_each_logit(row, [&](uint32_t i, float logit) {
            const float z = row.z_of(logit), weight = row.weight(z);

            if (!border.keeps(z, weight, i) ||
                !(rough_score(__fsub_rn(z, row.top_z), weight, rng_at(row.key, i), INFINITY) >= contest))
                return;
            const double score = exact_score(z, row.key, i);
            if (is_better(score, (int32_t)i, best, best_id)) {
                best = score;
                best_id = (int32_t)i;
            }
        });
    } else if (rough.id >= 0 && rough.first >= contest) {
        best = exact_score(row.z((uint32_t)rough.id), row.key, (uint32_t)rough.id);
        best_id = rough.id;
    }
    return block_best(best, best_id, shared);
}

} // namespace sampler
} // namespace hrk
