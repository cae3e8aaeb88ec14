// Finding a row's few largest logits in one reading of the row.
//
// Each thread keeps the largest of the values it has read. After the first chunk of the row, the k-th largest of those
// 512 maxima is a value that at least k ids reach, and min_p gives a bound from the largest; from then on only what
// reaches the bound is put into shared memory, with an atomic counter (order does not matter later: ids break ties). If
// too much reached it, the row is read once more with the bound that the whole row's maxima give.
//
// Penalties usually only lower a logit. Then the raw logit is an upper bound, the penalty table is looked up for
// candidates alone, and the bound is lowered by as much as a penalty can take.
#pragma once

#include "io/sampler_row.h"

namespace hrk
{
namespace sampler
{

enum : uint32_t {
    QUADS = 4,                   // 16-byte loads of a thread in flight
    CHUNK = THREADS * 4 * QUADS, // values of one round of the block
    BOUND_BITS = 20              // leading bits of the bound that are searched for
};

// A value that at least k threads' maxima reach, within 2^-11 of the k-th largest; -inf if fewer are there.
__device__ __forceinline__ float reached_by(float thread_max, uint32_t k)
{
    const int32_t key = order_key(thread_max);
    int64_t at = INT32_MIN;

    if (k > THREADS)
        return minus_infinity();
    for (int bit = 31; bit > 31 - (int)BOUND_BITS; bit--) {
        const int64_t next = at + (int64_t)(1u << bit);

        if (__syncthreads_count(key >= next) >= (int)k)
            at = next;
    }
    // Below the lowest number the keys are NaN's.
    return at < (int64_t)order_key(minus_infinity()) ? minus_infinity() : of_order_key((int32_t)at);
}

// A bound in x below which nothing is kept, from a bound of the largest x to come. Slack for the roundings of
// division and exp: 1e-3 in z, 2^-20 of the numbers at hand in x.
__device__ __forceinline__ float slack(float x, float top)
{
    return fmaxf(fabsf(x), fabsf(top)) * 0x1p-20f + 1e-36f;
}
__device__ __forceinline__ float bound_of(const Row &row, bool looks_up, float thread_max, Shared &shared)
{
    const float highest = block_max(thread_max, shared), top = looks_up ? highest : row.lowered(highest);
    float bound = minus_infinity();

    if (row.has_k) {
        const float reached = reached_by(thread_max, (uint32_t)row.p->top_k),
                    x = looks_up ? reached : row.lowered(reached);

        bound = x - slack(x, top);
    }
    if (row.has_min && !row.has_p) {
        const float x = top + row.p->temperature * (logf(row.p->min_p) - 1e-3f);

        bound = fmaxf(bound, x - slack(x, top));
    }
    return bound; // a NaN (infinite x) was dropped by fmaxf or is dropped by collect()
}

// Up to four values from `at`, -inf past the end.
__device__ __forceinline__ float4 read_quad(const Row &row, bool looks_up, uint32_t at)
{
    float4 v = make_float4(minus_infinity(), minus_infinity(), minus_infinity(), minus_infinity());

    if (at < row.n) {
        v = *reinterpret_cast<const float4 *>(row.x + at);
        if (looks_up && row.seen) {
            const ushort4 e = *reinterpret_cast<const ushort4 *>(row.seen + at);

            v = make_float4(row.penalised(v.x, e.x), row.penalised(v.y, e.y), row.penalised(v.z, e.z),
                            row.penalised(v.w, e.w));
        }
        v.y = at + 1 < row.n ? v.y : minus_infinity();
        v.z = at + 2 < row.n ? v.z : minus_infinity();
        v.w = at + 3 < row.n ? v.w : minus_infinity();
    }
    return v;
}

__device__ __forceinline__ void keep_any(float v, uint32_t id, float bound, Shared &shared)
{
    if (v >= bound) {
        const uint32_t slot = atomicAdd(&shared.count, 1u);

        if (slot < CAPACITY) {
            shared.value[slot] = v;
            shared.id[slot] = (int32_t)id;
        }
    }
}
// Of ids that may be drawn: what is impossible is no candidate.
__device__ __forceinline__ void keep(float v, uint32_t id, float bound, Shared &shared)
{
    if (v > minus_infinity())
        keep_any(v, id, bound, shared);
}

// Reads the row once and keeps what reaches the bound; with finds_bound the bound comes from the first chunk. Returns
// the thread's largest; *is_bad: this thread met a NaN or +inf.
__device__ __forceinline__ float collect(const Row &row, bool looks_up, bool finds_bound, float bound, bool *is_bad,
                                         Shared &shared)
{
    float largest = minus_infinity();

    __syncthreads();
    if (threadIdx.x == 0)
        shared.count = 0;
    __syncthreads();
    for (uint32_t base = 0; base < row.n; base += CHUNK) {
        float4 quad[QUADS];
        float most = minus_infinity();

#pragma unroll
        for (uint32_t q = 0; q < QUADS; q++)
            quad[q] = read_quad(row, looks_up, base + (q * THREADS + threadIdx.x) * 4);
#pragma unroll
        for (uint32_t q = 0; q < QUADS; q++) {
            most = fmaxf(fmaxf(most, fmaxf(quad[q].x, quad[q].y)), fmaxf(quad[q].z, quad[q].w));
            *is_bad |=
                !(quad[q].x < INFINITY) | !(quad[q].y < INFINITY) | !(quad[q].z < INFINITY) | !(quad[q].w < INFINITY);
        }
        largest = fmaxf(largest, most);
        if (finds_bound && base == 0)
            bound = bound_of(row, looks_up, largest, shared);
        if (most < bound)
            continue;
        bound = bound == bound ? bound : minus_infinity();
#pragma unroll
        for (uint32_t q = 0; q < QUADS; q++) {
            const uint32_t id = base + (q * THREADS + threadIdx.x) * 4;

            keep(quad[q].x, id, bound, shared);
            keep(quad[q].y, id + 1, bound, shared);
            keep(quad[q].z, id + 2, bound, shared);
            keep(quad[q].w, id + 3, bound, shared);
        }
    }
    __syncthreads();
    return largest;
}

// The largest logit after penalties, from the whole row. Returns whether the row is bad: NaN, +inf, or nothing finite.
__device__ __forceinline__ bool find_top(Row &row, Shared &shared)
{
    bool is_bad = false;
    const float largest = collect(row, true, false, INFINITY, &is_bad, shared);

    row.set_top(block_max(largest, shared));
    return __syncthreads_or(is_bad || !is_finite(row.top)) != 0;
}

} // namespace sampler
} // namespace hrk
