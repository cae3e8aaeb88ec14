// Products with row-major weights (hrk_linear, hrk_gate_up, hrk_down): any device from sm_80 (docs/lfm2.md, equations
// 4, 8, 14, 15 and 20).
//
// Bound: few rows: the weights' bytes, 2 rows ld(cols), each read once; many rows: 2 rows cols FLOP a row on the tensor
// cores. One kernel for all three: a block has a strip of weight rows of one expert (a plain product is one expert) and
// walks over that expert's tokens, BN at a time. Tokens of an expert are gathered by the routing's lists while they are
// copied. In hrk_gate_up a warp's upper half of rows is gate's and its lower half the same rows of up, so both values
// of a SwiGLU meet in one thread. Results pass through shared memory so that they leave in 16-byte chunks of a token's
// row.
//
// Tiles of 16 tokens have 64 weight rows, larger ones 64 x 64 or 128 x 128; where those would be fewer than the
// multiprocessors, a tile has 16 or 32 weight rows instead. All give the same bits (mma.h).
#include "common/launch.h"
#include "common/tables.h"
#include "linear/linear.h"
#include "linear/mma.h"
#include "norm/norm.h"

namespace
{

using Thin = hrk::MmaShape<16, 16, 16, 16, 12>;
using Small = hrk::MmaShape<64, 16, 16, 16, 6>;
using SmallGated = hrk::MmaShape<128, 16, 32, 16, 5>;
using Narrow = hrk::MmaShape<32, 64, 16, 32, 6>;
using Medium = hrk::MmaShape<64, 64, 32, 32, 4>;
using Large = hrk::MmaShape<128, 128, 32, 64, 3>;

enum { MAX_SPLIT = 64 }; // blocks that share an expert's tokens

struct Product {
    hrk_tables tables;
    hrk_rows over;
    const hrk_bf16 *w;
    size_t w_stride;         // values from one expert to the next
    uint32_t rows, k_blocks; // of one group member; ld(cols) / 64
    const hrk_bf16 *in;
    const float *bias;
    void *out;
    hrk_epilogue epilogue;
    // Experts: E 0: a plain product over the step's rows.
    uint32_t E, K;
    const uint32_t *first, *sorted; // sorted NULL: rows of `in` are in expert order already
};

// Weight row of the whole matrix that lies in row r of the tile; rows from n on do not exist.
template <class S, bool GATED> __device__ __forceinline__ uint32_t weight_row(const Product &p, uint32_t r, uint32_t &n)
{
    if constexpr (GATED) {
        constexpr uint32_t HALF = S::WM / 2;
        const uint32_t h = blockIdx.x * (S::BM / 2) + r / S::WM * HALF + r % HALF;

        n = h < p.rows ? 2 * p.rows : 0;
        return r % S::WM < HALF ? h : p.rows + h;
    }
    n = p.rows;
    return blockIdx.x * S::BM + r;
}

template <class S, bool GATED>
__device__ __forceinline__ void weight_source(const Product &p, hrk::MmaSource<S::W_COPIES> &w)
{
    w.present = 0;
#pragma unroll
    for (int i = 0; i < S::W_COPIES; i++) {
        uint32_t n;
        const uint32_t row = weight_row<S, GATED>(p, hrk::MmaTile<S>::copy_row(i), n);
        const bool is_there = row < n;

        w.row[i] = p.w + blockIdx.y * p.w_stride + (is_there ? (size_t)row * p.k_blocks * hrk::MMA_K : 0);
        w.present |= (uint32_t)is_there << i;
    }
}

// Tokens [first, first + BN) of the block's list of n; begin: where the list begins among all experts' pairs.
template <class S>
__device__ __forceinline__ void token_source(const Product &p, uint32_t begin, uint32_t first, uint32_t n,
                                             hrk::MmaSource<S::T_COPIES> &t)
{
    t.present = 0;
#pragma unroll
    for (int i = 0; i < S::T_COPIES; i++) {
        const uint32_t at = first + hrk::MmaTile<S>::copy_row(i);
        const bool is_there = at < n;
        const uint32_t pair = begin + at, row = !is_there ? 0 : p.sorted ? p.sorted[pair] / p.K : pair;

        t.row[i] = p.in + (size_t)row * p.k_blocks * hrk::MMA_K;
        t.present |= (uint32_t)is_there << i;
    }
}

// A tile's bf16 results wait here as [BN][COLUMNS + 8].
template <class S, bool GATED> struct Staged {
    enum { COLUMNS = GATED ? S::BM / 2 : S::BM, LD = COLUMNS + 8, LD_F32 = COLUMNS + 4 };
    static_assert(S::BN * LD * 2 <= (int)S::SMEM && S::BN * LD_F32 * 4 <= (int)S::SMEM, "fits where the stages were");
};

template <class S, bool GATED> __device__ __forceinline__ void stage_bf16(const Product &p, const hrk::MmaTile<S> &tile)
{
    using St = Staged<S, GATED>;
    hrk_bf16 *staged = reinterpret_cast<hrk_bf16 *>(tile.smem);

    if constexpr (GATED) {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t m = warp % S::WARPS_M * (S::WM / 2) + lane / 4, n = warp / S::WARPS_M * S::WN + lane % 4 * 2;
        constexpr int HALF = S::WM / 32;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++) {
#pragma unroll
                for (int v = 0; v < 4; v++)
                    staged[(n + j * 8 + v % 2) * St::LD + m + i * 16 + v / 2 * 8] =
                        hrk::to_bf16(hrk::swiglu(tile.acc[i][j][v], tile.acc[i + HALF][j][v]));
            }
        }
    } else {
        tile.each([&](uint32_t m, uint32_t n, float value) {
            const uint32_t row = blockIdx.x * S::BM + m;

            staged[n * St::LD + m] = hrk::to_bf16(p.bias && row < p.rows ? value + p.bias[row] : value);
        });
    }
}

// bf16(a + b), pair by pair.
__device__ __forceinline__ uint32_t add_pair(uint32_t a, uint32_t b)
{
    return hrk::pack_bf16(__uint_as_float(a << 16) + __uint_as_float(b << 16),
                          __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u));
}

template <class S, bool GATED>
__device__ __forceinline__ void store_bf16(const Product &p, const hrk::MmaTile<S> &tile, size_t first, uint32_t n)
{
    using St = Staged<S, GATED>;
    const hrk_bf16 *staged = reinterpret_cast<const hrk_bf16 *>(tile.smem);
    constexpr uint32_t CHUNKS = St::COLUMNS / 8;
    const uint32_t ld = hrk_ld(p.rows);

    for (uint32_t i = threadIdx.x; i < n * CHUNKS; i += S::THREADS) {
        const uint32_t token = i / CHUNKS, at = i % CHUNKS * 8, column = blockIdx.x * St::COLUMNS + at;
        uint4 v = *reinterpret_cast<const uint4 *>(staged + token * St::LD + at);

        if (column >= ld)
            continue;
        uint4 *out = reinterpret_cast<uint4 *>(static_cast<hrk_bf16 *>(p.out) + (first + token) * ld + column);
        if (p.epilogue == HRK_RESIDUAL) {
            const uint4 x = *out;

            v = make_uint4(add_pair(v.x, x.x), add_pair(v.y, x.y), add_pair(v.z, x.z), add_pair(v.w, x.w));
        }
        *out = v;
    }
}

template <class S>
__device__ __forceinline__ void store_f32(const Product &p, const hrk::MmaTile<S> &tile, size_t first, uint32_t n)
{
    using St = Staged<S, false>;
    float *staged = reinterpret_cast<float *>(tile.smem);
    constexpr uint32_t CHUNKS = St::COLUMNS / 4;
    const uint32_t ld = hrk_ld(p.rows);

    tile.each([&](uint32_t m, uint32_t t, float value) { staged[t * St::LD_F32 + m] = value; });
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n * CHUNKS; i += S::THREADS) {
        const uint32_t token = i / CHUNKS, at = i % CHUNKS * 4, column = blockIdx.x * St::COLUMNS + at;

        if (column < ld)
            *reinterpret_cast<float4 *>(static_cast<float *>(p.out) + (first + token) * ld + column) =
                *reinterpret_cast<const float4 *>(staged + token * St::LD_F32 + at);
    }
}

// blockIdx: x strip of weight rows, y expert, z which of the expert's token tiles.
template <class S, bool GATED>
__global__ void __launch_bounds__(S::THREADS) mma_kernel(const __grid_constant__ Product p)
{
    hrk::MmaTile<S> tile;
    hrk::MmaSource<S::W_COPIES> weights;
    hrk::MmaSource<S::T_COPIES> tokens;
    bool weights_ahead = p.E == 0; // an expert may have no tokens: its weights are not fetched before that is known

    tile.smem = dyn_smem();
    weight_source<S, GATED>(p, weights);
    if (weights_ahead) {
        for (uint32_t k = 0; k < S::STAGES - 1 && k < p.k_blocks; k++)
            tile.copy_weights(weights, k);
    }
    prim::griddep_wait();
    const uint32_t begin = p.E ? p.first[blockIdx.y] : 0;
    const uint32_t n = p.E ? p.first[blockIdx.y + 1] - begin : hrk::n_rows(p.tables.step, p.over);
    for (uint32_t first = blockIdx.z * S::BN; first < n; first += gridDim.z * S::BN) {
        const uint32_t here = min((uint32_t)S::BN, n - first);

        token_source<S>(p, begin, first, n, tokens);
        tile.run(weights, tokens, p.k_blocks, weights_ahead);
        weights_ahead = false;
        if (first + gridDim.z * S::BN >= n)
            prim::griddep_launch();
        if (!GATED && p.epilogue == HRK_STORE_F32) {
            store_f32<S>(p, tile, (size_t)begin + first, here);
        } else {
            stage_bf16<S, GATED>(p, tile);
            __syncthreads();
            store_bf16<S, GATED>(p, tile, (size_t)begin + first, here);
        }
        __syncthreads();
    }
    prim::cp_async_commit(); // weights fetched ahead by a block that has no rows
    prim::cp_async_wait<0>();
}

template <class S, bool GATED> int launch_shape(const Product &p, uint32_t max_tokens, const hrk_launch *on)
{
    const uint32_t strip = (uint32_t)(GATED ? S::BM / 2 : S::BM), experts = p.E ? p.E : 1;
    // Tiles of an expert beyond an even share go round again, so a crowded expert costs no more launches.
    const uint32_t share = p.E ? (max_tokens + p.E - 1) / p.E * 2 : max_tokens;
    uint32_t split = (share + S::BN - 1) / S::BN;

    split = split < 1 ? 1 : split > MAX_SPLIT ? (uint32_t)MAX_SPLIT : split;
    return hrk::launch(mma_kernel<S, GATED>,
                       {dim3((hrk_ld(p.rows) + strip - 1) / strip, experts, split), dim3(S::THREADS), S::SMEM}, on, p);
}

// Whether tiles of this shape are at least as many as the multiprocessors, with tokens spread evenly over the experts.
template <class S> bool fills(const Product &p, bool is_gated, uint32_t each, const hrk_launch *on)
{
    const uint64_t rows = (uint64_t)p.rows * (is_gated ? 2 : 1), experts = p.E ? p.E : 1;

    return (rows + S::BM - 1) / S::BM * ((each + S::BN - 1) / S::BN) * experts >= on->n_sms;
}

template <bool GATED> int launch_product(const Product &p, uint32_t max_tokens, const hrk_launch *on)
{
    const uint32_t each = p.E ? (max_tokens + p.E - 1) / p.E : max_tokens;

    if (each > 64 && fills<Large>(p, GATED, each, on))
        return launch_shape<Large, GATED>(p, max_tokens, on);
    if constexpr (GATED) {
        if (each > 16)
            return launch_shape<Medium, true>(p, max_tokens, on);
        return launch_shape<SmallGated, true>(p, max_tokens, on);
    } else {
        if (each > 16 && fills<Medium>(p, false, each, on))
            return launch_shape<Medium, false>(p, max_tokens, on);
        if (each > 16)
            return launch_shape<Narrow, false>(p, max_tokens, on);
        if (fills<Small>(p, false, each, on))
            return launch_shape<Small, false>(p, max_tokens, on);
        return launch_shape<Thin, false>(p, max_tokens, on);
    }
}

Product make_product(const hrk_matrix &w, const hrk_bf16 *in, void *out)
{
    Product p = {};

    p.w = w.data;
    p.w_stride = hrk_matrix_values(w.rows, w.cols, w.n_groups, w.layout);
    p.rows = w.rows;
    p.k_blocks = hrk_ld(w.cols) / hrk::MMA_K;
    p.in = in;
    p.out = out;
    p.epilogue = HRK_STORE;
    return p;
}

void add_routing(Product &p, const hrk_routing &routing)
{
    p.E = routing.E;
    p.K = routing.K;
    p.first = routing.first;
}

bool is_matrix(const hrk_matrix &w)
{
    return w.layout == HRK_ROW_MAJOR && w.rows > 0 && w.cols > 0 && w.n_groups >= 1 && w.n_groups <= 3;
}

} // namespace

int hrk::linear_mma(const hrk_linear_args *args, const hrk_launch *on)
{
    if (!is_matrix(args->w) || args->w.n_stack != 1 || args->max_rows == 0 ||
        (args->epilogue == HRK_STORE_F32 && args->bias))
        return cudaErrorInvalidValue;
    Product p = make_product(args->w, args->in, args->out);
    p.tables = args->tables;
    p.over = args->over;
    p.rows *= args->w.n_groups;
    p.bias = args->bias;
    p.epilogue = args->epilogue;
    return launch_product<false>(p, args->max_rows, on);
}

int hrk::gate_up_mma(const hrk_gate_up_args *args, const hrk_launch *on)
{
    const hrk_routing *routing = args->routing;

    if (!is_matrix(args->w) || args->w.n_groups != 2 || args->max_rows == 0 ||
        args->w.n_stack != (routing ? routing->E : 1))
        return cudaErrorInvalidValue;
    Product p = make_product(args->w, args->in, args->h);
    p.tables = args->tables;
    if (!routing)
        return launch_product<true>(p, args->max_rows, on);
    add_routing(p, *routing);
    p.sorted = routing->sorted;
    return launch_product<true>(p, args->max_rows * routing->K, on);
}

int hrk::down_mma(const hrk_down_args *args, const hrk_launch *on)
{
    const hrk_routing *routing = args->routing;

    if (!is_matrix(args->w) || args->w.n_groups != 1 || args->max_rows == 0 || !routing ||
        args->w.n_stack != routing->E)
        return cudaErrorInvalidValue;
    Product p = make_product(args->w, args->h, args->y);
    add_routing(p, *routing);
    return launch_product<false>(p, args->max_rows * routing->K, on);
}
