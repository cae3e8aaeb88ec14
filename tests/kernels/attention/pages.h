// Pages of keys and values of any head size and layout, by the words of hrk_kv, in scattered order.
#pragma once

#include "kernels/support/expect.h"

namespace hrk_test
{

struct Pages {
    uint32_t P, Nkv, D, n_slots, max_pages;
    bool is_swizzled;
    size_t page_stride;
    std::vector<uint32_t> table; // [n_slots, max_pages]

    // Every slot has max_pages pages of its own; another layer's values lie between two pages.
    Pages(uint32_t P_, uint32_t Nkv_, uint32_t D_, bool swizzled, uint32_t slots, uint32_t pages)
        : P(P_), Nkv(Nkv_), D(D_), n_slots(slots), max_pages(pages), is_swizzled(swizzled),
          page_stride((size_t)Nkv_ * 2 * P_ * D_ + 64), table((size_t)slots * pages)
    {
        for (uint32_t i = 0; i < table.size(); i++)
            table[i] = (uint32_t)table.size() - 1 - i;
    }
    size_t values() const
    {
        return table.size() * page_stride;
    }
    // which: 0 keys, 1 values.
    size_t at(uint32_t slot, uint32_t position, uint32_t head, uint32_t which, uint32_t d) const
    {
        const uint32_t o = position % P, chunk = is_swizzled ? (d / 8) ^ (o & 7) : d / 8;
        const size_t page = table[(size_t)slot * max_pages + position / P];

        return page * page_stride + (((size_t)head * 2 + which) * P + o) * D + chunk * 8 + d % 8;
    }
    hrk_kv kv(hrk_bf16 *base) const
    {
        return {base, page_stride, P, Nkv, D, is_swizzled};
    }
};

} // namespace hrk_test
