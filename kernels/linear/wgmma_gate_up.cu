// h = bf16(bf16(silu(bf16 gate)) * bf16 up), gate and up tiled (bf16, or quantised in one format) and interleaved by
// strip, on Hopper; dense or by expert.
//
// Bound: 4 rows cols bytes of weights for each matrix that is used, up to some 250 rows for each; then 4 rows cols FLOP
// a row. Gate and up of a strip are neighbours in memory, so a stage is one copy of 16 KiB, and their sums lie in the
// same registers of two accumulators, so SwiGLU needs no exchange. Token rows of experts are gathered by the index in
// sorted: no permuted copy of the activations. Tiles go expert by expert; experts without rows cost nothing.
//
// Tiles (N tokens x rows of each matrix): 16, 32, 64 x 64, two blocks an SM; 96, 128 x 128 with two consumers (96 or
// 128 accumulator registers); thin ones of 32 rows for single streams, whose four experts have fewer strips than the
// device has SMs.
#include "linear/linear.h"
#include "linear/wgmma.h"
#include "linear/wgmma_choice.h"

namespace hrk
{
namespace
{

struct Params {
    wgmma::Problem problem;
    hrk_bf16 *h;
    uint32_t h_ld;
};

template <int N, int CONSUMERS, int ROWS, bool IS_QUANTISED>
using Tiling = wgmma::Shape<N, 2, CONSUMERS, false, ROWS, CONSUMERS * wgmma::Store<N, ROWS>::BYTES,
                            CONSUMERS == 1 ? 2 : 1, IS_QUANTISED>;

template <class S> struct Epilogue {
    using Store = wgmma::Store<S::N, S::ROWS>;

    const Params &p;
    unsigned char *stage;

    __device__ __forceinline__ Epilogue(const Params &p_, unsigned char *stage_) : p(p_), stage(stage_)
    {
    }
    __device__ __forceinline__ void begin(const wgmma::Tile &, const wgmma::Lane &)
    {
    }
    __device__ __forceinline__ void finish(const wgmma::Tile &tile, float (&acc)[2][S::N / 2], const wgmma::Lane &lane)
    {
        const uint32_t first = S::PARTS > 1 ? tile.m * S::ROWS : (tile.m * S::STRIPS + lane.consumer) * wgmma::STRIP;

        if (first >= p.h_ld)
            return;
        Store::store(
            stage + lane.consumer * Store::BYTES, tile, lane,
            [&](int j, int i) {
                const int at = 4 * j + 2 * i;

                return pack_bf16(swiglu(acc[0][at], acc[1][at]), swiglu(acc[0][at + 1], acc[1][at + 1]));
            },
            [&](int, uint32_t token, uint32_t piece, const uint4 &v) {
                *reinterpret_cast<uint4 *>(p.h + (size_t)(tile.row + token) * p.h_ld + first + piece * 8) = v;
            });
    }
};

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::PER_SM) gate_up_kernel(const __grid_constant__ Params p)
{
    wgmma::Block<S> block;
    Epilogue<S> epilogue(p, block.extra);

    wgmma::run<S, true>(p.problem, block, epilogue);
}

template <int N, int CONSUMERS, int ROWS, bool IS_QUANTISED> constexpr wgmma::Choice<Params> choice()
{
    using S = Tiling<N, CONSUMERS, ROWS, IS_QUANTISED>;

    return {gate_up_kernel<S>, wgmma::variant_of<S>()};
}

bool is_supported(const hrk_gate_up_args *args)
{
    const hrk_routing *routing = args->routing;

    if (routing == nullptr)
        return args->w.n_stack == 1 && wgmma::is_tiled(args->w, 2, args->max_rows);
    return routing->K > 0 && routing->E <= wgmma::EXPERTS_MAX && args->w.n_stack == routing->E &&
           args->max_rows <= UINT32_MAX / routing->K && wgmma::is_tiled(args->w, 2, args->max_rows);
}

} // namespace

int gate_up_wgmma_as(const hrk_gate_up_args *args, const hrk_launch *on, int variant)
{
    static const wgmma::Choice<Params> tables[2][GATE_UP_VARIANTS] = {
        {choice<16, 1, 64, false>(), choice<32, 1, 64, false>(), choice<64, 1, 64, false>(), choice<96, 2, 64, false>(),
         choice<128, 2, 64, false>(), choice<16, 1, 32, false>(), choice<32, 1, 32, false>()},
        {choice<16, 1, 64, true>(), choice<32, 1, 64, true>(), choice<64, 1, 64, true>(), choice<96, 2, 64, true>(),
         choice<128, 2, 64, true>(), choice<16, 1, 32, true>(), choice<32, 1, 32, true>()}};
    const hrk_matrix &w = args->w;
    const auto &choices = tables[hrk_is_quantised(w.layout)];
    const hrk_routing *routing = args->routing;
    Params p = {};

    if (!is_supported(args))
        return cudaErrorInvalidValue;
    if (args->max_rows == 0)
        return 0;
    const wgmma::Load dense = wgmma::dense_load(w, args->max_rows, 0);
    variant =
        wgmma::choose(choices, variant,
                      routing ? wgmma::expert_load(dense, args->max_rows, routing->E, routing->K) : dense, on->n_sms);
    if (variant < 0)
        return cudaErrorInvalidValue;
    p.problem.step = args->tables.step;
    p.problem.over = HRK_ROWS_ALL;
    p.problem.in = args->in;
    p.problem.ld = hrk_ld(w.cols);
    p.problem.max_rows = args->max_rows;
    p.problem.choices = 1;
    if (routing) {
        p.problem.first = routing->first;
        p.problem.sorted = routing->sorted;
        p.problem.n_experts = routing->E;
        p.problem.choices = routing->K;
    }
    wgmma::set_matrix(&p.problem, w, choices[variant].shape);
    p.h = args->h;
    p.h_ld = hrk_ld(w.rows);
    return launch(choices[variant].kernel, wgmma::grid_of(choices[variant].shape, p.problem, on->n_sms), on, p);
}

int gate_up_wgmma(const hrk_gate_up_args *args, const hrk_launch *on)
{
    return gate_up_wgmma_as(args, on, PICK_VARIANT);
}

} // namespace hrk
