// Tensor maps and what tensor copies move: the rows of a box, zeros where it leaves the tensor, 16-byte chunks where
// the swizzle puts them.
#include "internal.h"

#include <string.h>

namespace simt
{

// Calls f(offset in shared memory, global row or null) for every row of the box; a row is the innermost dimension.
template <class F> static void for_rows(const TensorMap &t, const int *at, F f)
{
    const uint32_t row_bytes = t.box[0] * static_cast<uint32_t>(t.element_bytes);
    uint32_t n_rows = 1;

    for (int d = 1; d < t.rank; d++)
        n_rows *= t.box[d];
    for (uint32_t row = 0; row < n_rows; row++) {
        char *global = t.base;
        bool is_inside = true;
        uint32_t rest = row;
        for (int d = 1; d < t.rank; d++) {
            const int64_t x = static_cast<int64_t>(at[d]) + rest % t.box[d];
            rest /= t.box[d];
            is_inside = is_inside && x >= 0 && x < t.dim[d];
            global += x * static_cast<int64_t>(t.stride[d]);
        }
        f(row * row_bytes, is_inside ? global : nullptr);
    }
}

// The bytes of a row that lie inside the tensor.
struct Span {
    int64_t low, high, row_bytes, skip;
};
static Span inner_span(const TensorMap &t, const int *at)
{
    const int64_t bytes = t.element_bytes;
    Span s;

    s.row_bytes = t.box[0] * bytes;
    s.skip = at[0] * bytes;
    s.low = std::max<int64_t>(0, -static_cast<int64_t>(at[0])) * bytes;
    s.high = std::max(s.low, std::min<int64_t>(t.box[0], static_cast<int64_t>(t.dim[0]) - at[0]) * bytes);
    return s;
}

template <class T> static T *swizzled(T *p, uint32_t mask)
{
    const uintptr_t a = reinterpret_cast<uintptr_t>(p);

    return reinterpret_cast<T *>(a ^ ((a >> 7 & mask) << 4));
}

constexpr size_t ROW_BYTES_MAX = 256 * 16;

void tensor_load(const TensorMap &t, unsigned char *to, const int *at)
{
    const Span s = inner_span(t, at);

    for_rows(t, at, [&](uint32_t offset, const char *row) {
        char bytes[ROW_BYTES_MAX];
        memset(bytes, 0, static_cast<size_t>(s.row_bytes));
        if (row && s.high > s.low)
            memcpy(bytes + s.low, row + s.skip + s.low, static_cast<size_t>(s.high - s.low));
        for (int64_t x = 0; x < s.row_bytes; x += 16)
            memcpy(swizzled(to + offset + x, t.swizzle_mask), bytes + x, 16);
    });
}

void tensor_store(const TensorMap &t, const unsigned char *from, const int *at)
{
    const Span s = inner_span(t, at);

    for_rows(t, at, [&](uint32_t offset, char *row) {
        char bytes[ROW_BYTES_MAX];
        for (int64_t x = 0; x < s.row_bytes; x += 16)
            memcpy(bytes + x, swizzled(from + offset + x, t.swizzle_mask), 16);
        if (row && s.high > s.low)
            memcpy(row + s.skip + s.low, bytes + s.low, static_cast<size_t>(s.high - s.low));
    });
}

bool make_tensor_map(CUtensorMap *map, void *base, int rank, int element_bytes, const uint64_t *dims,
                     const uint64_t *strides, const uint32_t *box, int swizzle_bytes)
{
    TensorMap t = {};

    if (rank < 1 || rank > 5 || (reinterpret_cast<uintptr_t>(base) & 15) || element_bytes < 1 || element_bytes > 8)
        return false;
    t.magic = TensorMap::MAGIC;
    t.element_bytes = static_cast<uint8_t>(element_bytes);
    t.rank = static_cast<uint8_t>(rank);
    t.swizzle_mask = static_cast<uint8_t>(swizzle_bytes ? swizzle_bytes / 16 - 1 : 0);
    t.base = static_cast<char *>(base);
    t.stride[0] = static_cast<uint64_t>(element_bytes);
    t.box_bytes = static_cast<uint32_t>(element_bytes);
    uint64_t bytes = dims[0] * t.stride[0]; // from the first to the last value
    for (int d = 0; d < rank; d++) {
        if (!dims[d] || dims[d] > UINT32_MAX || !box[d] || box[d] > 256 || (d && strides[d - 1] % 16))
            return false;
        if (d) {
            t.stride[d] = strides[d - 1];
            bytes += (dims[d] - 1) * t.stride[d];
        }
        t.dim[d] = static_cast<uint32_t>(dims[d]);
        t.box[d] = static_cast<uint16_t>(box[d]);
        t.box_bytes *= box[d];
    }
    const uint64_t row = box[0] * t.stride[0];
    if (row % 16 || (swizzle_bytes && row > static_cast<uint64_t>(swizzle_bytes)) || global_check(base, bytes))
        return false;
    *map = CUtensorMap();
    memcpy(map, &t, sizeof t);
    return true;
}

} // namespace simt
