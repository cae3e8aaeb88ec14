// top_k, top_p and min_p, as csrc/backend/sampling.h states them. Two ways to the same set of kept ids:
//
// - rank_candidates: up to CAPACITY candidates in shared memory. Each thread compares its own with all others: how many
//   are larger, and how much they weigh, tells everything, without an order or a round of exchanges.
// - find_border: any number. Whatever is kept is everything above a border (value, then id), found by passes over the
// row
//   that count, or add up the mass of, what lies above a few trial values at once.
//
// Masses are fixed-point integers (62 bits over the whole row), so their sums depend on no order. The host adds the
// same weights in double: the sums agree to 2^-30, and a border can only differ where the running probability comes
// that close to a rounding boundary of 1 - top_p in fp32. Where the host adds the total of a whole vocabulary in fp32
// lanes of eight values, so does row_mass.
#pragma once

#include "io/sampler_scan.h"

namespace hrk
{
namespace sampler
{

// What is drawn from: ids with a value above the border, or at it with an id up to `id`.
struct Border {
    int32_t key, id;
    float min_weight; // 0: any

    __device__ bool keeps(float z, float weight, uint32_t i) const
    {
        const int32_t own = order_key(z);

        return z > minus_infinity() && (own > key || (own == key && (int32_t)i <= id)) && weight >= min_weight;
    }
};

// The mass of the whole row as the host sums it: in a block of 64 ids, lane l adds weights l, l + 8, ... in fp32.
__device__ __forceinline__ uint64_t row_mass(const Row &row, Shared &shared)
{
    const uint32_t whole = row.n / 64 * 64;
    uint64_t sum = 0;

    for (uint32_t lane = threadIdx.x; lane < whole / 8; lane += THREADS) {
        const uint32_t first = lane / 8 * 64 + lane % 8;
        float w = 0.0f;

        for (uint32_t j = 0; j < 64; j += 8)
            w = __fadd_rn(w, row.weight(row.z(first + j)));
        sum += row.fixed(w);
    }
    for (uint32_t i = whole + threadIdx.x; i < row.n; i += THREADS)
        sum += row.fixed(row.weight(row.z(i)));
    return block_sum(sum, shared);
}

// ---------------------------------------------------------------- candidates in shared memory

struct Ranked {
    uint32_t n_greater; // candidates with a larger value
    uint64_t above;     // mass of what comes before in the order
    bool is_first;
};

__device__ __forceinline__ Ranked rank_of(uint32_t c, uint32_t n, const Shared &shared)
{
    const float z = shared.value[c];
    const int32_t id = shared.id[c];
    Ranked r = {0, 0, true};

    for (uint32_t j = 0; j < n; j++) {
        const bool is_greater = shared.value[j] > z;

        r.n_greater += is_greater;
        if (is_greater || (shared.value[j] == z && shared.id[j] < id)) {
            r.above += shared.mass[j];
            r.is_first = false;
        }
    }
    return r;
}

// Marks what is not kept among n candidates (values after temperature) by a negative id. top_p's shares are of the
// row's total if that is more than what top_k leaves here.
__device__ __forceinline__ void rank_candidates(Row &row, uint32_t n, Shared &shared)
{
    enum : uint32_t { OWN = CAPACITY / THREADS };
    Ranked ranked[OWN];
    bool is_kept[OWN];
    uint64_t inside = 0;
    const bool needs_ranks = row.has_p || (row.has_k && n > (uint32_t)row.p.top_k);

#pragma unroll
    for (uint32_t o = 0; o < OWN; o++) {
        const uint32_t c = o * THREADS + threadIdx.x;

        is_kept[o] = c < n;
        ranked[o] = {0, 0, true};
        if (c < n && needs_ranks) {
            ranked[o] = rank_of(c, n, shared);
            is_kept[o] = !row.has_k || ranked[o].n_greater < (uint32_t)row.p.top_k;
            inside += is_kept[o] ? shared.mass[c] : 0;
        }
    }
    if (row.has_p) {
        inside = block_sum(inside, shared);
        row.set_total(row.total > inside ? row.total : inside);
#pragma unroll
        for (uint32_t o = 0; o < OWN; o++)
            is_kept[o] = is_kept[o] && (ranked[o].is_first || row.in_nucleus(ranked[o].above));
    }
    __syncthreads();
#pragma unroll
    for (uint32_t o = 0; o < OWN; o++) {
        const uint32_t c = o * THREADS + threadIdx.x;

        if (c < n && !(is_kept[o] && (!row.has_min || row.weight(shared.value[c]) >= row.p.min_p)))
            shared.id[c] = -1;
    }
    __syncthreads();
}

// ---------------------------------------------------------------- the whole row

// The largest key in [low, high] for which `holds(sum of the amounts of elements at or above it)`; low if there is
// none. each(i, &amount) gives an element's key. holds must not turn true as the key grows.
template <class Each, class Holds>
__device__ __forceinline__ int32_t search(const Row &row, int32_t low, int32_t high, Each each, Holds holds,
                                          Shared &shared)
{
    int64_t lo = low, hi = high;

    while (lo < hi) {
        const int64_t step = (hi - lo + WAYS - 1) / WAYS;
        int32_t trial[WAYS];
        uint64_t sum[WAYS] = {};

#pragma unroll
        for (uint32_t w = 0; w < WAYS; w++)
            trial[w] =
                (int32_t)(lo + step * (w + 1) < hi ? lo + step * (w + 1) : hi); // one beyond hi is not looked at below
        for_each_logit(row, [&](uint32_t i, float logit) {
            uint64_t amount;
            const int32_t key = each(i, row.z_of(logit), &amount);
#pragma unroll
            for (uint32_t w = 0; w < WAYS; w++)
                sum[w] += key >= trial[w] ? amount : 0;
        });
        __syncthreads();
#pragma unroll
        for (uint32_t w = 0; w < WAYS; w++) {
            for (int lanes = 16; lanes > 0; lanes /= 2)
                sum[w] += __shfl_xor_sync(0xffffffffu, sum[w], lanes);
            if (threadIdx.x % 32 == 0)
                shared.amounts[threadIdx.x / 32][w] = sum[w];
        }
        __syncthreads();
        const int64_t from = lo;
        for (uint32_t w = 0; w < WAYS; w++) {
            const int64_t at = from + step * (w + 1);
            uint64_t all = 0;

            for (uint32_t v = 0; v < WARPS; v++)
                all += shared.amounts[v][w];
            if (at > hi)
                break;
            if (!holds(all)) {
                hi = at - 1;
                break;
            }
            lo = at;
        }
    }
    return (int32_t)lo;
}

// The sum of the amounts of elements at or above a key.
template <class Each>
__device__ __forceinline__ uint64_t sum_from(const Row &row, int32_t key, Each each, Shared &shared)
{
    uint64_t sum = 0;

    for_each_logit(row, [&](uint32_t i, float logit) {
        uint64_t amount;

        sum += each(i, row.z_of(logit), &amount) >= key ? amount : 0;
    });
    return block_sum(sum, shared);
}

// How many of n equal elements of mass w, with `above` over them, top_p keeps; at least 1.
__device__ __forceinline__ uint64_t kept_of_equals(const Row &row, uint64_t above, uint64_t w, uint64_t n)
{
    uint64_t low = 1, high = n;

    while (low < high) {
        const uint64_t middle = low + (high - low + 1) / 2;

        if (row.in_nucleus(above + (middle - 1) * w))
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// The border of what all filters keep.
__device__ __forceinline__ Border find_border(Row &row, Shared &shared)
{
    const int32_t lowest = order_key(-FLT_MAX), highest = order_key(row.top_z);
    const auto count = [&](uint32_t, float z, uint64_t *amount) {
        *amount = 1;
        return order_key(z);
    };
    const auto mass = [&](uint32_t, float z, uint64_t *amount) {
        *amount = row.fixed(row.weight(z));
        return order_key(z);
    };
    Border border = {lowest, INT32_MAX, row.has_min ? row.p.min_p : 0.0f};

    if (row.has_k) {
        const uint64_t k = (uint64_t)row.p.top_k;

        border.key = search(
            row, lowest, highest, count, [=](uint64_t all) { return all >= k; }, shared);
    }
    if (!row.has_p)
        return border;
    if (row.has_k)
        row.set_total(sum_from(row, border.key, mass, shared));
    border.key = search(
        row, border.key, highest, mass, [&](uint64_t all) { return !row.in_nucleus(all); }, shared);
    const uint64_t above = border.key < highest ? sum_from(row, border.key + 1, mass, shared) : 0;
    const uint64_t n_above = border.key < highest ? sum_from(row, border.key + 1, count, shared) : 0;
    const uint64_t n_equal = sum_from(row, border.key, count, shared) - n_above;
    const uint64_t n_kept = kept_of_equals(row, above, row.fixed(row.weight(of_order_key(border.key))), n_equal);
    if (n_kept < n_equal) {
        const int32_t key = border.key;

        border.id = -search(
            row, -(int32_t)row.n, 0,
            [&](uint32_t i, float z, uint64_t *amount) {
                *amount = order_key(z) == key;
                return -(int32_t)i;
            },
            [=](uint64_t all) { return all >= n_kept; }, shared);
    }
    return border;
}

} // namespace sampler
} // namespace hrk
