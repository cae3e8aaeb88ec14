// Log probability, rank and alternatives of an id, from the raw logits: log softmax before anything else, ids with an
// equal logit and a lower id first.
//
// Two passes: one for the largest, one for the sum, the rank and what may be among the alternatives (everything that
// reaches the n-th largest of the threads' maxima). Sums are in double and added in the order of the threads, so they
// do not depend on scheduling.
#pragma once

#include "io/sampler_scan.h"

namespace hrk
{
namespace sampler
{

__device__ __forceinline__ double block_sum_double(double v, Shared &shared)
{
    for (int lanes = 16; lanes > 0; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared.scores[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0;
    for (uint32_t w = 0; w < WARPS; w++)
        v += shared.scores[w];
    return v;
}

// The alternatives one after the other, a pass each: for rows with more equals than shared memory holds.
__device__ __forceinline__ void list_one_by_one(const Row &raw, uint32_t n_top, double log_sum, hrk_top *tops,
                                                Shared &shared)
{
    float last = INFINITY;
    int32_t last_id = -1;

    for (uint32_t t = 0; t < n_top; t++) {
        double best = 0.0;
        int32_t best_id = -1;

        for (uint32_t i = threadIdx.x; i < raw.n; i += THREADS) {
            const float v = raw.x[i];

            if ((v < last || (v == last && (int32_t)i > last_id)) && is_better((double)v, (int32_t)i, best, best_id)) {
                best = (double)v;
                best_id = (int32_t)i;
            }
        }
        last_id = block_best(best, best_id, shared);
        last = raw.x[last_id];
        if (threadIdx.x == 0)
            tops[t] = {last_id, (float)((double)last - log_sum)};
    }
}

__device__ __forceinline__ void list_candidates(uint32_t n, uint32_t n_top, double log_sum, hrk_top *tops,
                                                const Shared &shared)
{
    for (uint32_t c = threadIdx.x; c < n; c += THREADS) {
        const float v = shared.value[c];
        const int32_t id = shared.id[c];
        uint32_t rank = 0;

        for (uint32_t j = 0; j < n; j++)
            rank += shared.value[j] > v || (shared.value[j] == v && shared.id[j] < id);
        if (rank < n_top)
            tops[rank] = {id, (float)((double)v - log_sum)};
    }
}

// Fills what hr_score_token fills, id apart. raw.x are the raw logits, raw.seen is NULL.
__device__ __forceinline__ void score_id(const Row &raw, int32_t id, uint32_t n_top, hrk_sample *out, hrk_top *tops,
                                         Shared &shared)
{
    const float own = (uint32_t)id < raw.n ? raw.x[id] : minus_infinity();
    bool is_bad = false;
    double sum = 0.0;
    uint64_t n_above = 0;

    n_top = min(n_top, raw.n);
    const float largest = collect(raw, false, false, INFINITY, &is_bad, shared);
    const float top = block_max(largest, shared);
    if (__syncthreads_or(is_bad || !is_finite(top))) {
        if (threadIdx.x == 0)
            out->is_bad = 1;
        return;
    }
    const float bound = n_top > 0 ? reached_by(largest, n_top) : INFINITY;
    for (uint32_t i = threadIdx.x; i < raw.n; i += THREADS) {
        const float v = raw.x[i];

        sum += (double)exp_negative(__fsub_rn(v, top));
        n_above += v > own || (v == own && (int32_t)i < id);
        keep_any(v, i, bound, shared);
    }
    const double log_sum = (double)top + log(block_sum_double(sum, shared));
    n_above = block_sum(n_above, shared);
    if (shared.count <= CAPACITY)
        list_candidates(shared.count, n_top, log_sum, tops, shared);
    else
        list_one_by_one(raw, n_top, log_sum, tops, shared);
    if (threadIdx.x == 0) {
        out->logprob = (float)((double)own - log_sum);
        out->rank = (uint32_t)n_above + 1;
        out->n_top = n_top;
    }
}

} // namespace sampler
} // namespace hrk
