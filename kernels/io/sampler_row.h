// One row of the sampler: where its logits are, what was asked for, and the value of an id after penalties and after
// temperature. Also what the sampler's parts share: the block's shared memory and its reductions.
//
// Every operation here rounds as csrc/backend/sampling.c does (no fused multiply-adds), so that the numbers the filters
// compare are the same bits on both sides.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "hrk.h"

#include <float.h>

namespace hrk
{
namespace sampler
{

enum : uint32_t {
    THREADS = 512,
    WARPS = THREADS / 32,
    CAPACITY = 1024, // candidates that are ranked in shared memory
    WAYS = 4         // thresholds tried in one pass of search()
};

// A candidate's place in the order: largest value first, then lowest id.
struct Shared {
    float value[CAPACITY]; // logit, later logit after temperature
    int32_t id[CAPACITY];
    uint64_t mass[CAPACITY]; // fixed-point weight
    uint32_t count;          // candidates found, also those beyond CAPACITY
    union {
        uint64_t amounts[WARPS][WAYS];
        double scores[WARPS];
        float floats[WARPS];
    };
    int32_t ids[WARPS];
};

__device__ __forceinline__ float minus_infinity()
{
    return __uint_as_float(0xff800000u);
}
__device__ __forceinline__ bool is_finite(float v)
{
    return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u;
}
// The order of finite numbers and infinities as integers.
__device__ __forceinline__ int32_t order_key(float v)
{
    const int32_t bits = __float_as_int(v == 0.0f ? 0.0f : v); // one zero

    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ __forceinline__ float of_order_key(int32_t key)
{
    return __int_as_float(key >= 0 ? key : key ^ 0x7fffffff);
}

// exp(x) for x <= 0 as the host's sampler computes it, bit for bit.
__device__ __forceinline__ float exp_negative(float x)
{
    const float clamped = x > -87.0f ? x : -87.0f;
    const float n = __fsub_rn(__fadd_rn(__fmul_rn(clamped, 1.44269504f), 12582912.0f), 12582912.0f);
    const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    float y = 1.39879552e-3f;

    y = __fadd_rn(8.33345205e-3f, __fmul_rn(r, y));
    y = __fadd_rn(4.16657962e-2f, __fmul_rn(r, y));
    y = __fadd_rn(1.66666657e-1f, __fmul_rn(r, y));
    y = __fadd_rn(0.5f, __fmul_rn(r, y));
    y = __fadd_rn(1.0f, __fmul_rn(r, y));
    y = __fadd_rn(1.0f, __fmul_rn(r, y));
    return x < -87.0f ? 0.0f : __fmul_rn(y, __uint_as_float((uint32_t)((int32_t)n + 127) << 23));
}

// A request's numbers must not turn a finite logit into an infinite one.
__device__ __forceinline__ float keep_finite(float before, float after)
{
    if (!is_finite(before) || is_finite(after))
        return after;
    return after > 0 ? FLT_MAX : -FLT_MAX;
}

// The logits a row's choice is made of. Lies in shared memory: registers are for what streams.
struct Row {
    const float *x;       // raw, or with mask, bias and stop ids applied
    const uint16_t *seen; // penalty table's row; NULL without penalties
    uint32_t n;           // ids 0 .. n - 1 may be chosen
    hrk_sampling p;
    bool has_k, has_p, has_min;
    uint64_t key;   // of the draw
    uint64_t total; // mass that top_p's shares are of; 0 before it is known
    // After find_top:
    float top;          // largest logit after penalties
    float shift;        // taken off before dividing by the temperature
    float top_z, scale; // largest logit after temperature; fixed-point units of a weight of 1

    __device__ float penalised(float before, uint32_t entry) const
    {
        const uint32_t n_output = entry & HRK_OUTPUT_COUNT;
        float v = before;

        if (entry == 0)
            return before;
        if (p.repetition_penalty != 1.0f)
            v = v < 0 ? __fmul_rn(v, p.repetition_penalty) : __fdiv_rn(v, p.repetition_penalty);
        if (n_output > 0) {
            v = __fsub_rn(v, __fmul_rn(p.frequency_penalty, (float)n_output));
            v = __fsub_rn(v, p.presence_penalty);
        }
        return keep_finite(before, v);
    }
    __device__ float logit(uint32_t i) const
    {
        return seen ? penalised(x[i], seen[i]) : x[i];
    }
    // Penalties can only lower a logit, and by how much is known without looking at the counts.
    __device__ bool is_lowered() const
    {
        return !seen || (p.repetition_penalty >= 1.0f && p.presence_penalty >= 0.0f && p.frequency_penalty == 0.0f);
    }
    // What is left of a raw logit at least, if is_lowered().
    __device__ float lowered(float v) const
    {
        return seen ? penalised(v, HRK_SEEN_IN_PROMPT | 1) : v;
    }
    __device__ float z_of(float logit) const
    {
        return p.temperature == 1.0f ? logit : __fdiv_rn(__fsub_rn(logit, shift), p.temperature);
    }
    __device__ float z(uint32_t i) const
    {
        return z_of(logit(i));
    }
    __device__ float weight(float z) const
    {
        return exp_negative(__fsub_rn(z, top_z));
    }
    __device__ uint64_t fixed(float weight) const
    {
        return (uint64_t)__fmul_rn(weight, scale);
    }
    // Dividing by a temperature near 0 would overflow: then distances from the top are divided.
    __device__ void set_top(float logit)
    {
        __syncthreads();
        if (threadIdx.x == 0)
            store_top(logit);
        __syncthreads();
    }

    __device__ void set_total(uint64_t mass)
    {
        __syncthreads();
        if (threadIdx.x == 0)
            total = mass;
        __syncthreads();
    }
    // top_p drops an element when the running sum up to and with it, over the total, is at most 1 - top_p in fp32.
    // Whether an element with this much mass above it stays:
    __device__ bool in_nucleus(uint64_t above) const
    {
        const double running = above < total ? (double)(total - above) : 0.0;

        return (float)(running / (double)total) > __fsub_rn(1.0f, p.top_p);
    }

  private:
    __device__ void store_top(float logit)
    {
        top = logit;
        shift = p.temperature > 0 && is_finite(__fdiv_rn(top, p.temperature)) ? 0.0f : top;
        top_z = p.temperature > 0 ? z_of(top) : top;
    }
};

// ---------------------------------------------------------------- reductions over the block

__device__ __forceinline__ float block_max(float v, Shared &shared)
{
    v = prim::warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared.floats[threadIdx.x / 32] = v;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        v = fmaxf(v, shared.floats[w]);
    return v;
}

__device__ __forceinline__ uint64_t block_sum(uint64_t v, Shared &shared)
{
    for (int lanes = 16; lanes > 0; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared.amounts[threadIdx.x / 32][0] = v;
    __syncthreads();
    v = 0;
    for (uint32_t w = 0; w < WARPS; w++)
        v += shared.amounts[w][0];
    return v;
}

__device__ __forceinline__ bool is_better(double score, int32_t id, double than, int32_t than_id)
{
    return id >= 0 && (than_id < 0 || score > than || (score == than && id < than_id));
}

// The id with the best score, the lowest of equals; -1 if no thread has one (id < 0).
__device__ __forceinline__ int32_t block_best(double score, int32_t id, Shared &shared)
{
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const double other = __shfl_xor_sync(0xffffffffu, score, lanes);
        const int32_t other_id = __shfl_xor_sync(0xffffffffu, id, lanes);

        if (is_better(other, other_id, score, id)) {
            score = other;
            id = other_id;
        }
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared.scores[threadIdx.x / 32] = score;
        shared.ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++) {
        if (is_better(shared.scores[w], shared.ids[w], score, id)) {
            score = shared.scores[w];
            id = shared.ids[w];
        }
    }
    return id;
}

} // namespace sampler
} // namespace hrk
