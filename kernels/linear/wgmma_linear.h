// One product with tiled weights, over the rows of a step or over those of each expert: what hrk_linear and hrk_down
// share.
#pragma once

#include "hrk.h"

namespace hrk
{

struct Product {
    const hrk_step *step;
    hrk_rows over;
    uint32_t max_rows;
    hrk_matrix w;
    const hrk_bf16 *in;
    const hrk_routing *routing; // host pointer; NULL: one matrix. With experts rows of in and out are in expert order
    hrk_epilogue epilogue;
    void *out;
};
// variant: as in wgmma.h. max_rows > 0.
int launch_product(const Product *product, const hrk_launch *on, int variant);

} // namespace hrk
