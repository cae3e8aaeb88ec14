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
        const float reached = reached_by(thread_max, (uint32_t)row.p.top_k),
                    x = looks_up ? reached : row.lowered(reached);

        bound = x - slack(x, top);
    }
    if (row.has_min && !row.has_p) {
        const float x = top + row.p.temperature * (logf(row.p.min_p) - 1e-3f);

        bound = fmaxf(bound, x - slack(x, top));
    }
    return bound; // a NaN (infinite x) was dropped by fmaxf or is dropped by collect()
}

// Where the q-th quad of a thread lies in a chunk.
__device__ __forceinline__ uint32_t quad_id(uint32_t base, uint32_t q)
{
    return base + (q * THREADS + threadIdx.x) * 4;
}

// A thread's quads of the chunk at `base`: raw logits, or with looks_up those after penalties; -inf past the end. All
// loads are issued before the first is used.
template <uint32_t Q>
__device__ __forceinline__ void read_chunk(const Row &row, bool looks_up, uint32_t base, float4 (&quad)[Q])
{
#pragma unroll
    for (uint32_t q = 0; q < Q; q++) {
        const uint32_t at = quad_id(base, q);

        quad[q] = make_float4(minus_infinity(), minus_infinity(), minus_infinity(), minus_infinity());
        if (at < row.n)
            quad[q] = *reinterpret_cast<const float4 *>(row.x + at);
    }
    if (looks_up && row.seen) {
        ushort4 seen[Q];
#pragma unroll
        for (uint32_t q = 0; q < Q; q++) {
            const uint32_t at = quad_id(base, q);

            seen[q] = make_ushort4(0, 0, 0, 0);
            if (at < row.n)
                seen[q] = *reinterpret_cast<const ushort4 *>(row.seen + at);
        }
#pragma unroll
        for (uint32_t q = 0; q < Q; q++)
            quad[q] = make_float4(row.penalised(quad[q].x, seen[q].x), row.penalised(quad[q].y, seen[q].y),
                                  row.penalised(quad[q].z, seen[q].z), row.penalised(quad[q].w, seen[q].w));
    }
#pragma unroll
    for (uint32_t q = 0; q < Q; q++) {
        const uint32_t at = quad_id(base, q);

        quad[q].y = at + 1 < row.n ? quad[q].y : minus_infinity();
        quad[q].z = at + 2 < row.n ? quad[q].z : minus_infinity();
        quad[q].w = at + 3 < row.n ? quad[q].w : minus_infinity();
    }
}

// use(id, logit after penalties) for all ids of the row, each by one thread.
template <class Use> __device__ __forceinline__ void for_each_logit(const Row &row, Use use)
{
    enum : uint32_t { Q = 1 };

    for (uint32_t base = 0; base < row.n; base += THREADS * 4 * Q) {
        float4 quad[Q];

        read_chunk(row, true, base, quad);
#pragma unroll
        for (uint32_t q = 0; q < Q; q++) {
            const uint32_t id = quad_id(base, q);
            const float v[4] = {quad[q].x, quad[q].y, quad[q].z, quad[q].w};
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                if (id + c < row.n)
                    use(id + c, v[c]);
            }
        }
    }
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

        read_chunk(row, looks_up, base, quad);
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
            const uint32_t id = quad_id(base, q);

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
