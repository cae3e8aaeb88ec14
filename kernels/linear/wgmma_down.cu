// y = W_e h over every expert's rows, W tiled, on Hopper. Equation: row p of y is bf16(W_e h_p), e the expert whose
// list holds p. The rows of an expert lie together in h, so this is the product of wgmma_linear.cu with one matrix an
// expert: same tiles, same kernel. Bound: the weights of all experts that were chosen, once.
//
// The lists are read, and the first weights asked for, before griddep_wait, while gate_up still runs. That is sound
// because hrk_down follows hrk_gate_up directly (hrk.h): the lists were written by hrk_route, for whose end all blocks
// of gate_up have waited before any lets this kernel start; gate_up does not write them; and the next route waits for
// what follows this kernel. Only h, which gate_up writes, is read after the wait.
#include "linear/linear.h"
#include "linear/wgmma.h"
#include "linear/wgmma_choice.h"
#include "linear/wgmma_linear.h"

namespace hrk
{

int down_wgmma_as(const hrk_down_args *args, const hrk_launch *on, int variant)
{
    const hrk_routing *routing = args->routing;
    const Product product = {args->tables.step, HRK_ROWS_ALL, args->max_rows, args->w,
                             args->h,           routing,      HRK_STORE,      args->y};

    if (routing == nullptr || routing->K == 0 || routing->E > wgmma::EXPERTS_MAX || args->w.n_stack != routing->E ||
        args->max_rows > UINT32_MAX / routing->K || !wgmma::is_tiled(args->w, 1, args->max_rows * routing->K))
        return cudaErrorInvalidValue;
    return args->max_rows == 0 ? 0 : launch_product(&product, on, variant);
}

int down_wgmma(const hrk_down_args *args, const hrk_launch *on)
{
    return down_wgmma_as(args, on, PICK_VARIANT);
}

} // namespace hrk
