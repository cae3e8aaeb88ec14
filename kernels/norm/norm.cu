// hrk_norm: RMSNorm of the step's rows, or of the rows whose logits are wanted (docs/lfm2.md, equation 2).
//
// Bound: memory, 4 ld(H) bytes a row. One warp a row: a row of 2,048 values is eight 16-byte loads a lane, all in
// flight at once, so a block of four warps keeps 16 KiB on its way and no barrier is needed. The arithmetic is
// norm.h's.
#include "common/launch.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace
{

enum { WARPS = 4, THREADS = 32 * WARPS };

__global__ void __launch_bounds__(THREADS) norm_kernel(const __grid_constant__ hrk_norm_args a)
{
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    const size_t ld = hrk_ld(a.H);

    prim::griddep_wait();
    prim::griddep_launch();
    const hrk_step *step = a.tables.step;
    if (row >= (a.of_outputs ? step->n_outputs : step->n_rows))
        return;
    const uint32_t from = a.of_outputs ? hrk::outputs(step)[row].row : row;
    hrk::row_norm(a.x + from * ld, a.weight, a.H, a.eps, a.out + row * ld, lane);
}

} // namespace

extern "C" int hrk_norm(const hrk_norm_args *args, const hrk_launch *on)
{
    if (args->H == 0 || args->max_rows == 0)
        return cudaErrorInvalidValue;
    return hrk::launch(norm_kernel, {dim3((args->max_rows + WARPS - 1) / WARPS), dim3(THREADS)}, on, *args);
}
