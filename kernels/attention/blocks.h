// Fetching 64-key blocks of keys and values from pages: what the producer warps of decode.cu and prefill.cu share.
//
// A block is 64 keys at an absolute position that is a multiple of 64: 8 KiB of keys, then 8 KiB of values, both in the
// 128-byte-swizzle order in which they lie in their pages (a page row's swizzle depends on its offset modulo 8, and
// pages are multiples of 8 keys, so pieces of any pages line up). With pages of 64 keys a block is one linear copy;
// other page sizes take two copies a page. Only rows below the sequence's end are copied: the rest of a page may hold
// anything. What a product reads beyond the end is set to zero here, because 0 x NaN is NaN.
#pragma once

#include "common/numeric.h"
#include "common/prim.h"
#include "hrk.h"

namespace hrk
{

enum {
    HEAD_DIM = 64,
    BLOCK_KEYS = 64,
    KEY_BYTES = HEAD_DIM * 2,
    BLOCK_HALF = BLOCK_KEYS * KEY_BYTES, // keys of a block; its values follow
    BLOCK_BYTES = 2 * BLOCK_HALF,
    WINDOW_KEYS = 512, // whose page numbers a warp holds at a time
};

// hrk_kv with D = 64, swizzled, P = 1 << page_shift.
struct Pages {
    const hrk_bf16 *base;
    size_t page_stride;
    uint32_t page_shift;
};

inline bool pages_supported(const hrk_kv &kv, uint32_t Nq)
{
    bool power = kv.P >= 8 && kv.P <= 128 && (kv.P & (kv.P - 1)) == 0;

    return kv.D == HEAD_DIM && kv.is_swizzled && power && kv.Nkv > 0 && Nq >= kv.Nkv && Nq % kv.Nkv == 0 &&
           Nq / kv.Nkv <= 8;
}
inline Pages pages_of(const hrk_kv &kv)
{
    Pages p = {kv.base, kv.page_stride, 0};

    while (1u << p.page_shift < kv.P)
        p.page_shift++;
    return p;
}

// Page numbers of 512 keys: lane i holds those of pages i and, with 8 keys a page, 32 + i of the window.
struct Window {
    uint32_t low, high;
};
// first_key is a multiple of WINDOW_KEYS; table is the slot's row, of which only pages that hold keys below n_keys are
// read.
__device__ __forceinline__ Window load_window(const uint32_t *table, uint32_t page_shift, uint32_t first_key,
                                              uint32_t n_keys, uint32_t lane)
{
    uint32_t at = (first_key >> page_shift) + lane;
    uint32_t end = (n_keys + (1u << page_shift) - 1) >> page_shift;
    uint32_t in_window = WINDOW_KEYS >> page_shift;
    Window w = {0, 0};

    if (lane < in_window && at < end)
        w.low = table[at];
    if (lane + 32 < in_window && at + 32 < end)
        w.high = table[at + 32];
    return w;
}

// Zeroes rows [first, end) of a block's keys and values; followed by what orders the writes before the block is handed
// on.
__device__ __forceinline__ void zero_rows(unsigned char *block, uint32_t first, uint32_t end, uint32_t lane)
{
#pragma unroll 1 // the registers of a producer are few
    for (uint32_t at = first * KEY_BYTES + lane * 16; at < end * KEY_BYTES; at += 32 * 16) {
        *reinterpret_cast<uint4 *>(block + at) = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4 *>(block + BLOCK_HALF + at) = make_uint4(0, 0, 0, 0);
    }
    prim::fence_proxy_async();
}

// The page that holds a lane's part of the block at key `at` of the window. With 8 keys a page a block's 8 pages are
// all in one half of the window.
__device__ __forceinline__ uint32_t page_in_window(const Window &window, uint32_t page_shift, uint32_t at,
                                                   uint32_t lane)
{
    uint32_t index = (at >> page_shift) + (page_shift < 6 ? lane : 0);

    return __shfl_sync(0xffffffffu, (at >> page_shift) < 32 ? window.low : window.high, (int)(index & 31));
}
// The same straight from the slot's row of the page table, of which only pages that hold keys below n_keys are read.
__device__ __forceinline__ uint32_t page_in_table(const uint32_t *table, uint32_t page_shift, uint32_t at,
                                                  uint32_t n_keys, uint32_t lane)
{
    uint32_t key = at + (page_shift < 6 ? lane << page_shift : 0);

    return key < n_keys ? table[key >> page_shift] : 0;
}

// One warp copies the first n_keys (1 to 64) keys and values of head `head` of the block that starts at key `at` (a
// multiple of 64); `page` is the page of the lane's part. The caller has announced n_keys * 2 * KEY_BYTES bytes on
// `full`.
__device__ __forceinline__ void copy_block(const Pages &pages, uint32_t page, uint32_t at, uint32_t n_keys,
                                           uint32_t head, unsigned char *block, uint64_t *full, uint32_t lane)
{
    uint32_t P = 1u << pages.page_shift;
    uint32_t piece = min(P, (uint32_t)BLOCK_KEYS); // keys of a block that one page holds
    uint32_t first = lane * piece;

    if (first >= n_keys)
        return;
    uint32_t bytes = min(piece, n_keys - first) * KEY_BYTES;
    const hrk_bf16 *keys =
        pages.base + page * pages.page_stride + ((head * 2 << pages.page_shift) + (at & (P - 1))) * HEAD_DIM;
    unsigned char *to = block + first * KEY_BYTES;
    if (bytes == BLOCK_HALF && P == BLOCK_KEYS) {
        prim::bulk_load(to, keys, BLOCK_BYTES, full);
        return;
    }
    prim::bulk_load(to, keys, bytes, full);
    prim::bulk_load(to + BLOCK_HALF, keys + P * HEAD_DIM, bytes, full);
}

} // namespace hrk
