// Fills a matrix with random values where it lies (hrk_random): dummy weights for measuring speed, at memory speed.
//
// Which value stands where in a layout does not matter, so that one thread makes 8 neighbours; only padding has to be
// known, since kernels count on its zeros.
#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"

namespace
{

constexpr uint32_t THREADS = 256, PER_THREAD = 8;

__device__ __forceinline__ uint64_t mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// Sum of four uniforms in [-1/2, 1/2): variance 1/3.
__device__ __forceinline__ float nearly_normal(uint64_t bits)
{
    float sum = 0;

#pragma unroll
    for (int i = 0; i < 4; i++)
        sum += (float)(uint32_t)(bits >> 16 * i & 0xffff) * (1.0f / 65536.0f) - 0.5f;
    return sum * 1.7320508f;
}

// The row of a group member and the first of its columns that value `at` of one stack member belongs to; eight values
// from a multiple of 8 on are eight columns of one row in both layouts.
__device__ __forceinline__ void position(const hrk_random_args &a, size_t at, uint32_t &row, uint32_t &col)
{
    uint32_t ld = hrk_ld(a.cols);

    if (a.layout == HRK_ROW_MAJOR) {
        row = (uint32_t)(at / ld % a.rows);
        col = (uint32_t)(at % ld);
        return;
    }
    size_t block = at / 4096;
    uint32_t in_block = (uint32_t)(at % 4096), r = in_block / 64, chunk = in_block % 64 / 8 ^ (r & 7);
    size_t strip_and_k = block / a.n_groups;

    row = (uint32_t)(strip_and_k / (ld / 64)) * 64 + r;
    col = (uint32_t)(strip_and_k % (ld / 64)) * 64 + chunk * 8;
}

__global__ void __launch_bounds__(THREADS) random_kernel(const __grid_constant__ hrk_random_args a)
{
    size_t member = hrk_matrix_values(a.rows, a.cols, a.n_groups, a.layout), n = member * a.n_stack;

    prim::griddep_wait();
    prim::griddep_launch();
    for (size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * PER_THREAD; at < n;
         at += (size_t)gridDim.x * THREADS * PER_THREAD) {
        uint32_t row, col, out[PER_THREAD / 2];

        position(a, at % member, row, col);
#pragma unroll
        for (uint32_t i = 0; i < PER_THREAD; i += 2) {
            float x[2];
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) {
                bool is_inside = row < a.rows && col + i + k < a.cols;
                x[k] = is_inside ? a.deviation * nearly_normal(mix64(mix64(a.seed) + at + i + k)) : 0.0f;
            }
            out[i / 2] = hrk::pack_bf16(x[0], x[1]);
        }
        *reinterpret_cast<uint4 *>(a.to + at) = make_uint4(out[0], out[1], out[2], out[3]);
    }
}

} // namespace

extern "C" int hrk_random(const hrk_random_args *args, const hrk_launch *on)
{
    if (args->n_groups < 1 || args->n_groups > 3 || args->n_stack < 1 || args->rows < 1 || args->cols < 1)
        return (int)cudaErrorInvalidValue;
    return hrk::launch(random_kernel, {dim3(on->n_sms * 8), dim3(THREADS)}, on, *args);
}
