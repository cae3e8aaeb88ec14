// The wgmma kernels by variant, for tests and benchmarks: the results must not depend on which one runs, and the model
// that picks one can be held against the clock. Engine code calls the functions of linear.h and hrk.h, which pick.
#pragma once

#include "hrk.h"

namespace hrk
{

enum { LINEAR_VARIANTS = 8, GATE_UP_VARIANTS = 7, CONV_IN_VARIANTS = 7, QKV_VARIANTS = 5, PICK_VARIANT = -1 };

// variant 0 .. ..._VARIANTS - 1, or PICK_VARIANT. cudaErrorInvalidValue: this variant cannot do these arguments (a thin
// one, and K is no multiple of its stage).
int linear_wgmma_as(const hrk_linear_args *args, const hrk_launch *on, int variant);
int gate_up_wgmma_as(const hrk_gate_up_args *args, const hrk_launch *on, int variant);
int down_wgmma_as(const hrk_down_args *args, const hrk_launch *on, int variant); // LINEAR_VARIANTS of them
int conv_in_as(const hrk_conv_in_args *args, const hrk_launch *on, int variant);
int qkv_as(const hrk_qkv_args *args, const hrk_launch *on, int variant);

} // namespace hrk
