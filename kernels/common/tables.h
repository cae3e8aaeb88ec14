// Device-side reading of the step's tables (hrk.h): typed views into the upload block.
#pragma once

#include "common/cuda_compat.h"
#include "hrk.h"

namespace hrk
{

template <class T> __device__ __forceinline__ const T *section(const hrk_step *step, uint32_t at)
{
    return reinterpret_cast<const T *>(reinterpret_cast<const unsigned char *>(step) + at);
}
__device__ __forceinline__ const hrk_span *spans(const hrk_step *step)
{
    return section<hrk_span>(step, step->spans_at);
}
__device__ __forceinline__ const hrk_output *outputs(const hrk_step *step)
{
    return section<hrk_output>(step, step->outputs_at);
}
__device__ __forceinline__ const hrk_decode_item *decode_items(const hrk_step *step)
{
    return section<hrk_decode_item>(step, step->decode_at);
}
__device__ __forceinline__ const hrk_prefill_tile *prefill_tiles(const hrk_step *step)
{
    return section<hrk_prefill_tile>(step, step->prefill_at);
}
// How many rows a product is over.
__device__ __forceinline__ uint32_t n_rows(const hrk_step *step, hrk_rows over)
{
    return over == HRK_ROWS_OUTPUTS ? step->n_outputs : step->n_rows;
}

} // namespace hrk
