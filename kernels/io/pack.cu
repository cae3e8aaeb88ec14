// hrk_pack: rows of a weight as a file has them, to bf16 in the layout that the products read (hrk.h, weights).
//
// Bound: memory, (2 .. 4) cols bytes in and 2 ld(cols) out a row; it runs once, at load. A thread makes one 16-byte
// chunk of eight values, whose place is a function of row and column alone, so any cut of a matrix into calls gives the
// same bytes. Chunks go by rows, so reads are contiguous; writes are whole 16-byte chunks inside 128-byte rows of a
// block.
#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"

namespace
{

enum { THREADS = 256, BLOCKS_PER_SM = 8, CHUNK = 8, BLOCK = 64, BLOCK_VALUES = BLOCK * BLOCK };

__device__ __forceinline__ hrk_bf16 source_value(const hrk_pack_args &a, size_t at)
{
    switch (a.source) {
    case HRK_SOURCE_F16:
        return hrk::to_bf16(__half2float(static_cast<const __half *>(a.from)[at]));
    case HRK_SOURCE_F32:
        return hrk::to_bf16(static_cast<const float *>(a.from)[at]);
    case HRK_SOURCE_BF16:
    default:
        return static_cast<const hrk_bf16 *>(a.from)[at];
    }
}

// Row of a 64-row strip where pair_rotary puts a head's dimension.
__device__ __forceinline__ uint32_t rotary_row(uint32_t dimension)
{
    const uint32_t half = dimension / 32, j = dimension % 32;

    return j / 8 * 16 + half * 8 + j % 8;
}

__device__ __forceinline__ size_t chunk_place(const hrk_pack_args &a, uint32_t row, uint32_t chunk)
{
    const size_t ld = hrk_ld(a.cols), base = hrk_matrix_values(a.rows, a.cols, a.n_groups, a.layout) * a.stack;

    if (a.layout == HRK_ROW_MAJOR)
        return base + ((size_t)a.group * a.rows + row) * ld + (size_t)chunk * CHUNK;
    const uint32_t r = a.pair_rotary ? rotary_row(row % BLOCK) : row % BLOCK;
    const size_t block = ((size_t)(row / BLOCK) * (ld / BLOCK) + chunk / 8) * a.n_groups + a.group;
    return base + block * BLOCK_VALUES + (size_t)r * BLOCK + ((chunk % 8) ^ (r & 7)) * CHUNK;
}

__global__ void __launch_bounds__(THREADS) pack_kernel(const __grid_constant__ hrk_pack_args a)
{
    const uint32_t chunks = hrk_ld(a.cols) / CHUNK;
    const size_t n = (size_t)a.n_rows * chunks;
    // Eight values in one load where rows and buffer are aligned for it.
    const bool is_wide =
        a.source == HRK_SOURCE_BF16 && a.cols % CHUNK == 0 && reinterpret_cast<uintptr_t>(a.from) % 16 == 0;

    prim::griddep_wait();
    prim::griddep_launch();
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)gridDim.x * THREADS) {
        const uint32_t r = (uint32_t)(i / chunks), chunk = (uint32_t)(i % chunks), first = chunk * CHUNK;
        const size_t from = (size_t)r * a.cols + first;
        uint4 out = make_uint4(0, 0, 0, 0);

        if (is_wide && first < a.cols) {
            out = *reinterpret_cast<const uint4 *>(static_cast<const hrk_bf16 *>(a.from) + from);
        } else {
            uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
            for (uint32_t j = 0; j < CHUNK; j++) {
                if (first + j < a.cols)
                    words[j / 2] |= (uint32_t)source_value(a, from + j) << j % 2 * 16;
            }
            out = make_uint4(words[0], words[1], words[2], words[3]);
        }
        *reinterpret_cast<uint4 *>(a.to + chunk_place(a, a.first_row + r, chunk)) = out;
    }
}

} // namespace

extern "C" int hrk_pack(const hrk_pack_args *args, const hrk_launch *on)
{
    const size_t n = (size_t)args->n_rows * (hrk_ld(args->cols) / CHUNK);

    if (args->rows == 0 || args->cols == 0 || args->n_groups < 1 || args->n_groups > 3 ||
        args->group >= args->n_groups || args->first_row > args->rows || args->n_rows > args->rows - args->first_row ||
        (args->pair_rotary && args->layout != HRK_TILED))
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    const size_t wanted = (n + THREADS - 1) / THREADS, most = (size_t)on->n_sms * BLOCKS_PER_SM;
    return hrk::launch(pack_kernel, {dim3((unsigned)(wanted < most ? wanted : most)), dim3(THREADS)}, on, *args);
}
