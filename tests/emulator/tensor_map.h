// What make_tensor_map() writes into the 128 opaque bytes of a CUtensorMap.
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace simt
{

struct TensorMap {
    static constexpr uint32_t MAGIC = 0x544d4150;
    uint32_t magic;
    uint8_t element_bytes, rank, swizzle_mask, reserved; // swizzle_mask: 0, 1, 3, 7 for none, 32, 64, 128 bytes
    char *base;
    uint64_t stride[5]; // bytes; [0] is element_bytes
    uint32_t dim[5];
    uint16_t box[5];
    uint32_t box_bytes;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap), "must fit the opaque descriptor");

} // namespace simt
