// The end of a mixture layer: adds a row's expert outputs, weighted, in the order of its choices, to the residual
// stream, and normalises the row for the next layer (docs/lfm2.md, equations 19 and 2).
//
// Bound: (K + 3) ld(H) 2 bytes a row: K rows of y and x in, x and xn out. y was written a moment ago and mostly lies in
// L2.
//
// One block a row, one warp a segment of 256 values (norm/norm.h), one chunk of 8 values a thread: K + 1 loads of 16
// bytes a thread are in flight at once, and nothing is read twice. The order of the sum is that of the choices, so no
// result depends on where an expert's rows lie or who shares them.
#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace hrk
{
namespace
{

enum : uint32_t { MAX_K = 8 };

// Room for KS choices, and for rows of WARPS * CHUNKS segments.
template <uint32_t KS_, uint32_t WARPS_, uint32_t CHUNKS_> struct Shape {
    static constexpr uint32_t KS = KS_, WARPS = WARPS_, CHUNKS = CHUNKS_;
};
using Usual = Shape<4, 8, 1>;
using Long = Shape<MAX_K, 16, NORM_SEGMENTS_MAX / 16>;

__device__ uint4 load_chunk(const hrk_bf16 *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}

// bf16 of the fp32 sum of bf16(y w) over the choices of one row, best first: 8 values from `column`.
template <uint32_t KS>
__device__ void weighted_sum(const hrk_combine_args &a, uint32_t row, uint32_t column, float (&sum)[NORM_CHUNK])
{
    const uint32_t K = a.routing.K;
    uint4 y[KS];
    float w[KS];

#pragma unroll
    for (uint32_t k = 0; k < KS; k++) {
        if (k < K) {
            y[k] = load_chunk(a.y + (size_t)a.routing.place[(size_t)row * K + k] * hrk_ld(a.H) + column);
            w[k] = a.routing.weights[(size_t)row * K + k];
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < NORM_CHUNK; i++)
        sum[i] = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < KS; k++) {
        if (k < K) {
            float v[NORM_CHUNK];

            unpack_chunk(y[k], v);
#pragma unroll
            for (uint32_t i = 0; i < NORM_CHUNK; i++)
                sum[i] += round_bf16(v[i] * w[k]);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < NORM_CHUNK; i++)
        sum[i] = round_bf16(sum[i]);
}

template <class S>
__global__ void __launch_bounds__(S::WARPS * 32) combine_kernel(const __grid_constant__ hrk_combine_args a)
{
    __shared__ float squares[S::WARPS * S::CHUNKS];
    const uint32_t row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint32_t n = norm_segments(a.H), ld = hrk_ld(a.H);
    uint4 chunk[S::CHUNKS];

    prim::griddep_wait();
    if (row >= a.tables.step->n_rows)
        return;
#pragma unroll
    for (uint32_t c = 0; c < S::CHUNKS; c++) {
        const uint32_t s = warp + c * warps, column = s * NORM_SEGMENT + lane * NORM_CHUNK;
        const size_t at = (size_t)row * ld + column;

        chunk[c] = make_uint4(0, 0, 0, 0);
        if (s < n && column < ld) {
            float x[NORM_CHUNK], sum[NORM_CHUNK];

            chunk[c] = load_chunk(a.x + at);
            weighted_sum<S::KS>(a, row, column, sum);
            unpack_chunk(chunk[c], x);
            if (a.sum)
                *reinterpret_cast<uint4 *>(a.sum + at) = pack_chunk(sum);
#pragma unroll
            for (uint32_t i = 0; i < NORM_CHUNK; i++)
                x[i] += sum[i];
            chunk[c] = pack_chunk(x);
            *reinterpret_cast<uint4 *>(a.x + at) = chunk[c];
        }
        if (s < n) {
            const float own = segment_squares(chunk[c]);

            if (lane == 0)
                squares[s] = own;
        }
    }
    prim::griddep_launch();
    if (!a.norm)
        return;
    __syncthreads();
    const float scale = norm_scale(total_squares(squares, n), a.H, a.eps);
#pragma unroll
    for (uint32_t c = 0; c < S::CHUNKS; c++) {
        const uint32_t column = (warp + c * warps) * NORM_SEGMENT + lane * NORM_CHUNK;

        if (column < ld)
            *reinterpret_cast<uint4 *>(a.xn + (size_t)row * ld + column) =
                norm_chunk(chunk[c], scale, a.norm, column, a.H);
    }
}

template <class S> int launch_combine(const hrk_combine_args *args, const hrk_launch *on)
{
    const uint32_t segments = norm_segments(args->H);
    LaunchShape shape;

    shape.grid = dim3(args->max_rows);
    shape.block = dim3(32 * (segments < S::WARPS ? segments : S::WARPS));
    return launch(combine_kernel<S>, shape, on, *args);
}

} // namespace
} // namespace hrk

extern "C" int hrk_combine(const hrk_combine_args *args, const hrk_launch *on)
{
    using namespace hrk;
    const uint32_t K = args->routing.K, segments = norm_segments(args->H);

    if (args->max_rows == 0 || args->H == 0 || segments > NORM_SEGMENTS_MAX || K == 0 || K > MAX_K)
        return (int)cudaErrorInvalidValue;
    if (K <= Usual::KS && segments <= Usual::WARPS)
        return launch_combine<Usual>(args, on);
    return launch_combine<Long>(args, on);
}
