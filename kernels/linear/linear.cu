// The seam of the products: which family multiplies is the weights' layout (linear.h).
#include "linear/linear.h"

extern "C" int hrk_linear(const hrk_linear_args *args, const hrk_launch *on)
{
    return args->w.layout == HRK_ROW_MAJOR ? hrk::linear_mma(args, on) : hrk::linear_wgmma(args, on);
}

extern "C" int hrk_gate_up(const hrk_gate_up_args *args, const hrk_launch *on)
{
    return args->w.layout == HRK_ROW_MAJOR ? hrk::gate_up_mma(args, on) : hrk::gate_up_wgmma(args, on);
}

extern "C" int hrk_down(const hrk_down_args *args, const hrk_launch *on)
{
    return args->w.layout == HRK_ROW_MAJOR ? hrk::down_mma(args, on) : hrk::down_wgmma(args, on);
}
