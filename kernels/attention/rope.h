// The rotation of one pair (docs/lfm2.md, equation 10), shared by the fused and the unfused kernel.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "hrk.h"

namespace hrk
{

// x1 is dimension j, x2 dimension j + D/2, both bf16 values. By default the rotation is fp32 and its results are left
// for the caller to round once. exact: cosine, sine, products and sums are rounded to bf16, as transformers does in
// bf16.
__device__ __forceinline__ void rotate_pair(float x1, float x2, float cosine, float sine, bool exact, float &y1,
                                            float &y2)
{
    if (exact) {
        const float c = round_bf16(cosine), s = round_bf16(sine);

        y1 = round_bf16(round_bf16(x1 * c) - round_bf16(x2 * s));
        y2 = round_bf16(round_bf16(x2 * c) + round_bf16(x1 * s));
        return;
    }
    y1 = fmaf(x1, cosine, -(x2 * sine));
    y2 = fmaf(x2, cosine, x1 * sine);
}

} // namespace hrk
