// Scratch of attention: a ticket, then one record a chunk item.
//
// The layout does not depend on the bounds of a launch (max_decode_items, max_chunk_items), because launches of several
// bounds share one scratch and what one of them leaves behind must not lie where another expects zeros.
//
//   byte 0                   ticket of hrk_attention_prefill; zero before and after a launch
//   byte 256 + c * record    record of chunk item c: float sums [Nq, D], then float2 (maximum, sum) [Nq], then uint32_t
//   counters
//                            [Nkv]: the counter of (decode item, key-value head) lies in the record of the item's first
//                            chunk; zero before and after a launch
#pragma once

#include "hrk.h"

namespace hrk
{

enum { SCRATCH_HEADER = 256 };

inline uint32_t *prefill_ticket(void *scratch)
{
    return static_cast<uint32_t *>(scratch);
}

// Room for Nq counters, since the count of key-value heads is at most that.
__host__ __device__ inline size_t chunk_record_bytes(uint32_t Nq, uint32_t D)
{
    return ((size_t)Nq * (D * sizeof(float) + sizeof(float2) + sizeof(uint32_t)) + 255) & ~(size_t)255;
}

struct ChunkRecord {
    float *sums;
    float2 *state;
    uint32_t *counters;
};

__device__ __forceinline__ ChunkRecord chunk_record(void *scratch, uint32_t chunk, uint32_t Nq, uint32_t D)
{
    unsigned char *at = static_cast<unsigned char *>(scratch) + SCRATCH_HEADER + chunk * chunk_record_bytes(Nq, D);
    ChunkRecord r;

    r.sums = reinterpret_cast<float *>(at);
    r.state = reinterpret_cast<float2 *>(r.sums + (size_t)Nq * D);
    r.counters = reinterpret_cast<uint32_t *>(r.state + Nq);
    return r;
}

} // namespace hrk
