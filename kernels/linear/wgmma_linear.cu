// out = W in, W tiled, as bf16 or quantised, on Hopper: hrk_linear for tiled weights, and, with experts' lists,
// hrk_down.
//
// Bound: 2 rows cols bytes of weights a launch up to some 250 rows a step, then 2 rows cols FLOP a row. The skeleton is
// wgmma_pipeline.h; this file adds what becomes of the sums. bf16 results pass through shared memory so that a token's
// 64 features leave as one 128-byte line; fp32 results (logits) leave the registers in whole 32-byte sectors. For few
// rows the residual is asked for as the product starts, so that its latency hides behind the weights.
//
// Tiles (N tokens x weight rows): 16, 32, 64 x 64, two blocks an SM; 128, 256 x 128 with two consumers and 128
// accumulator registers at most, where a product is bound by arithmetic; thin ones of 16 or 32 weight rows, for steps
// of few rows through matrices of few strips.
#include "linear/linear.h"
#include "linear/wgmma.h"
#include "linear/wgmma_choice.h"
#include "linear/wgmma_linear.h"

namespace hrk
{
namespace
{

struct Params {
    wgmma::Problem problem;
    hrk_epilogue epilogue;
    void *out;
    uint32_t out_ld;
};

template <int N, int CONSUMERS, int ROWS, bool IS_QUANTISED>
using Tiling = wgmma::Shape<N, 1, CONSUMERS, false, ROWS, CONSUMERS * wgmma::Store<N, ROWS>::BYTES,
                            CONSUMERS == 1 ? 2 : 1, IS_QUANTISED>;

template <class S> struct Epilogue {
    using Store = wgmma::Store<S::N, S::ROWS>;
    // The residual of a tile fits into a few registers of each thread: fetched while the product runs.
    static constexpr bool HOLDS = S::N == Store::CHUNK && Store::TURNS <= 2;

    const Params &p;
    unsigned char *stage;
    uint4 held[HOLDS ? Store::TURNS : 1];

    __device__ __forceinline__ Epilogue(const Params &p_, unsigned char *stage_) : p(p_), stage(stage_)
    {
    }
    __device__ __forceinline__ uint32_t feature(const wgmma::Tile &tile, uint32_t consumer) const
    {
        return S::PARTS > 1 ? tile.m * S::ROWS : (tile.m * S::STRIPS + consumer) * wgmma::STRIP;
    }
    __device__ __forceinline__ hrk_bf16 *at(const wgmma::Tile &tile, uint32_t first, uint32_t token,
                                            uint32_t piece) const
    {
        return static_cast<hrk_bf16 *>(p.out) + (size_t)(tile.row + token) * p.out_ld + first + piece * 8;
    }
    __device__ __forceinline__ void begin(const wgmma::Tile &tile, const wgmma::Lane &lane)
    {
        if (!HOLDS || p.epilogue != HRK_RESIDUAL)
            return;
        const uint32_t first = feature(tile, lane.consumer);
#pragma unroll
        for (int i = 0; i < (HOLDS ? Store::TURNS : 0); i++) {
            const uint32_t k = lane.t + i * wgmma::WARPGROUP, token = k / Store::PIECES, piece = k % Store::PIECES;

            if (token < tile.n && first < p.out_ld)
                held[i] = *reinterpret_cast<const uint4 *>(at(tile, first, token, piece));
        }
    }
    __device__ __forceinline__ void finish(const wgmma::Tile &tile, float (&acc)[1][S::N / 2], const wgmma::Lane &lane)
    {
        const uint32_t first = feature(tile, lane.consumer);

        if (first >= p.out_ld)
            return;
        if (p.epilogue == HRK_STORE_F32) {
            store_f32(tile, acc[0], lane, first);
            return;
        }
        Store::store(
            stage + lane.consumer * Store::BYTES, tile, lane,
            [&](int j, int i) { return pack_bf16(acc[0][4 * j + 2 * i], acc[0][4 * j + 2 * i + 1]); },
            [&](int turn, uint32_t token, uint32_t piece, const uint4 &v) {
                uint4 *to = reinterpret_cast<uint4 *>(at(tile, first, token, piece));

                if (p.epilogue == HRK_RESIDUAL)
                    *to = add(v, HOLDS ? held[HOLDS ? turn : 0] : *to);
                else
                    *to = v;
            });
    }
    __device__ __forceinline__ void store_f32(const wgmma::Tile &tile, const float (&acc)[S::N / 2],
                                              const wgmma::Lane &lane, uint32_t first)
    {
        if (lane.warp * 16 >= (uint32_t)S::ROWS)
            return;
        const uint32_t token0 = lane.lane % 4 * 2;
        float *to = static_cast<float *>(p.out) + (size_t)(tile.row + token0) * p.out_ld + first + lane.warp * 16 +
                    lane.lane / 4;
#pragma unroll
        for (int j = 0; j < S::N / 8; j++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (j * 8 + token0 + h < tile.n) {
                    float *row = to + (size_t)(j * 8 + h) * p.out_ld;

                    row[0] = acc[4 * j + h];
                    row[8] = acc[4 * j + 2 + h];
                }
            }
        }
    }
    // Eight sums of bf16 values, each rounded once.
    static __device__ __forceinline__ uint4 add(const uint4 &a, const uint4 &b)
    {
        return make_uint4(add2(a.x, b.x), add2(a.y, b.y), add2(a.z, b.z), add2(a.w, b.w));
    }
    static __device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b)
    {
        return pack_bf16(to_f32((hrk_bf16)a) + to_f32((hrk_bf16)b),
                         to_f32((hrk_bf16)(a >> 16)) + to_f32((hrk_bf16)(b >> 16)));
    }
};

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::PER_SM) linear_kernel(const __grid_constant__ Params p)
{
    wgmma::Block<S> block;
    Epilogue<S> epilogue(p, block.extra);

    wgmma::run<S, false>(p.problem, block, epilogue);
}

template <int N, int CONSUMERS, int ROWS, bool IS_QUANTISED> constexpr wgmma::Choice<Params> choice()
{
    using S = Tiling<N, CONSUMERS, ROWS, IS_QUANTISED>;

    return {linear_kernel<S>, wgmma::variant_of<S>()};
}

} // namespace

int launch_product(const Product *product, const hrk_launch *on, int variant)
{
    static const wgmma::Choice<Params> tables[2][LINEAR_VARIANTS] = {
        {choice<16, 1, 64, false>(), choice<32, 1, 64, false>(), choice<64, 1, 64, false>(),
         choice<128, 2, 64, false>(), choice<256, 2, 64, false>(), choice<16, 1, 16, false>(),
         choice<16, 1, 32, false>(), choice<32, 1, 32, false>()},
        {choice<16, 1, 64, true>(), choice<32, 1, 64, true>(), choice<64, 1, 64, true>(), choice<128, 2, 64, true>(),
         choice<256, 2, 64, true>(), choice<16, 1, 16, true>(), choice<16, 1, 32, true>(), choice<32, 1, 32, true>()}};
    const hrk_matrix &w = product->w;
    const auto &choices = tables[hrk_is_quantised(w.layout)];
    const hrk_routing *routing = product->routing;
    const wgmma::Load dense = wgmma::dense_load(w, product->max_rows, 0);
    Params p = {};

    variant = wgmma::choose(choices, variant,
                            routing ? wgmma::expert_load(dense, product->max_rows, routing->E, routing->K) : dense,
                            on->n_sms);
    if (variant < 0)
        return cudaErrorInvalidValue;
    p.problem.step = product->step;
    p.problem.over = product->over;
    p.problem.in = product->in;
    p.problem.ld = hrk_ld(w.cols);
    p.problem.max_rows = product->max_rows;
    p.problem.choices = 1;
    if (routing) {
        p.problem.first = routing->first;
        p.problem.is_routed = true; // see wgmma_down.cu
        p.problem.n_experts = routing->E;
        p.problem.choices = routing->K;
    }
    wgmma::set_matrix(&p.problem, w, choices[variant].shape);
    p.epilogue = product->epilogue;
    p.out = product->out;
    p.out_ld = hrk_ld(w.rows);
    return launch(choices[variant].kernel, wgmma::grid_of(choices[variant].shape, p.problem, on->n_sms), on, p);
}

int linear_wgmma_as(const hrk_linear_args *args, const hrk_launch *on, int variant)
{
    const Product product = {args->tables.step, args->over, args->max_rows, args->w,
                             args->in,          nullptr,    args->epilogue, args->out};

    if (!wgmma::is_tiled(args->w, 1, args->max_rows) || args->w.n_stack != 1 || args->bias != nullptr)
        return cudaErrorInvalidValue;
    return args->max_rows == 0 ? 0 : launch_product(&product, on, variant);
}

int linear_wgmma(const hrk_linear_args *args, const hrk_launch *on)
{
    return linear_wgmma_as(args, on, PICK_VARIANT);
}

} // namespace hrk
