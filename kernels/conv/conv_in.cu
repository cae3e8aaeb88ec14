// The short convolution from normalised rows in one kernel: B, C, X = W in; u = bf16(B X); y = bf16(C bf16(conv(u))),
// with the state of every sequence carried from step to step (docs/lfm2.md, equations 4 to 7).
//
// Bound: 6 H^2 bytes of weights a launch up to some 250 rows, then 6 H^2 FLOP a row. Done separately, the products and
// the elementwise kernels would move some 28 KB a row more, in three more launches.
//
// A tile is N tokens by 64 channels of B, C and X, which are neighbours in memory. u (or B and X) and C are put into
// shared memory token by token; then each thread walks down token rows with 8 channels. A row's neighbours are in the
// tile, or, before the start of its span, in the state. Token tiles overlap by L - 1 rows, whose u is computed twice
// and whose y is stored by the tile before: so no block waits for another. The state is read from one place and written
// to another, by the last row of a span, so the order of blocks does not matter either.
//
// Tiles: 32 and 64 tokens with three accumulators in one consumer; 128 and 192 with a consumer for each of B, C and X;
// thin ones of 16 or 32 channels for steps of few rows: a model of 2,048 channels has but 32 strips. Small tiles ask
// for the state as the product starts.
#include "conv/conv.h"
#include "linear/wgmma.h"
#include "linear/wgmma_choice.h"

namespace hrk
{
namespace
{

enum { TAPS_MAX = 4 }; // shorter convolutions are extended by zeros, which changes no bit

struct Params {
    wgmma::Problem problem;
    const uint32_t *row_span;
    const float *taps;
    uint32_t H, L;
    hrk_conv_state state;
    hrk_bf16 *y;
    uint32_t y_ld;
};

// What a row knows of its span.
struct Row {
    int32_t state_in;
    int32_t state_out; // -1: not the last row
    uint32_t at;       // inside the span
    uint32_t reserved;
};

// B, C, X in planes of N rows of 128 bytes: bf16(B X) and C, or, when each has a consumer, all three.
template <int CONSUMERS> constexpr int plane_count = CONSUMERS == 1 ? 2 : 3;
template <int N, int CONSUMERS> constexpr int extra_bytes = plane_count<CONSUMERS> *N * 128 + 2 * N *(int)sizeof(Row);

template <int N, int CONSUMERS, int ROWS, int PER_SM, bool IS_QUANTISED>
using Tiling = wgmma::Shape<N, 3, CONSUMERS, CONSUMERS == 3, ROWS, extra_bytes<N, CONSUMERS>, PER_SM, IS_QUANTISED>;

__device__ __forceinline__ float low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
// u of two values.
__device__ __forceinline__ uint32_t input2(uint32_t b, uint32_t x)
{
    return pack_bf16(conv_input(low(b), low(x)), conv_input(high(b), high(x)));
}

template <class S> struct Epilogue {
    static constexpr int THREADS = wgmma::WARPGROUP * S::CONSUMERS;
    static constexpr int PIECES = S::ROWS / 8; // 16 bytes, 8 channels each
    static constexpr int PLANE = S::N * 128;
    static constexpr bool HOLDS = S::N * PIECES <= THREADS; // a thread has one row at most

    const Params &p;
    unsigned char *planes;
    Row *rows; // of this tile and of the one before
    uint32_t turn = 0;
    Row mine = {-1, -1, 0, 0};
    uint4 held[HOLDS ? TAPS_MAX - 1 : 1]; // the state that `mine` starts from

    __device__ __forceinline__ Epilogue(const Params &p_, unsigned char *extra)
        : p(p_), planes(extra), rows(reinterpret_cast<Row *>(extra + plane_count<S::CONSUMERS> * PLANE))
    {
    }
    __device__ __forceinline__ void sync_all() const
    {
        if constexpr (S::CONSUMERS == 1)
            prim::bar_sync(1, THREADS);
        else
            prim::bar_sync(4, THREADS);
    }
    __device__ __forceinline__ uint32_t channel(const wgmma::Tile &tile, uint32_t piece) const
    {
        return tile.m * S::ROWS + piece * 8;
    }
    __device__ __forceinline__ Row row_at(uint32_t r) const
    {
        const hrk_span &span = spans(p.problem.step)[p.row_span[r]];
        const uint32_t at = r - span.first_row;

        return Row{span.state_in, at + 1 == span.n_rows ? span.state_out : -1, at, 0};
    }
    // Column j of a state, 8 channels.
    __device__ __forceinline__ uint4 *state(int32_t s, uint32_t j, uint32_t first) const
    {
        return reinterpret_cast<uint4 *>(p.state.base + (size_t)s * p.state.state_stride + (size_t)j * p.H + first);
    }
    __device__ __forceinline__ uint4 state_column(const Row &row, uint32_t j, uint32_t first) const
    {
        return row.state_in >= 0 && first < p.H ? *state(row.state_in, j, first) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void begin(const wgmma::Tile &tile, const wgmma::Lane &lane)
    {
        const uint32_t t = lane.consumer * wgmma::WARPGROUP + lane.t;

        if constexpr (HOLDS) {
            const uint32_t i = t / PIECES, first = channel(tile, t % PIECES);

            if (i >= tile.n)
                return;
            mine = row_at(tile.row + i);
#pragma unroll
            for (uint32_t j = 0; j < TAPS_MAX - 1; j++) {
                if (j + 1 < p.L && mine.at + 1 < p.L)
                    held[j] = state_column(mine, j, first);
            }
        } else {
            turn ^= 1;
            if (t < tile.n)
                rows[turn * S::N + t] = row_at(tile.row + t);
        }
    }
    __device__ __forceinline__ void finish(const wgmma::Tile &tile, float (&acc)[S::ACCS][S::N / 2],
                                           const wgmma::Lane &lane)
    {
        const uint32_t t = lane.consumer * wgmma::WARPGROUP + lane.t, piece = t % PIECES;
        const uint32_t first = channel(tile, piece), halo = tile.row == 0 ? 0 : p.L - 1;
        float taps[8][TAPS_MAX];

        if constexpr (!S::BY_GROUP)
            load_taps(first, taps);
        sync_all(); // the tile before has been stored
        if (lane.warp * 16 < (uint32_t)S::ROWS)
            stage(acc, lane);
        if constexpr (S::BY_GROUP) // only now are there registers for them
            load_taps(first, taps);
        sync_all();
        for (uint32_t i = t / PIECES; i < tile.n; i += THREADS / PIECES) {
            if (i >= halo)
                convolve(tile, i, piece, first, HOLDS ? mine : rows[turn * S::N + i], taps);
        }
    }
    // taps[.][TAPS_MAX - 1] is the row's own; the first TAPS_MAX - L are zero.
    __device__ __forceinline__ void load_taps(uint32_t first, float (&taps)[8][TAPS_MAX]) const
    {
#pragma unroll
        for (uint32_t c = 0; c < 8; c++) {
#pragma unroll
            for (uint32_t j = 0; j < TAPS_MAX; j++)
                taps[c][j] =
                    j + p.L >= TAPS_MAX && first < p.H ? p.taps[(size_t)(first + c) * p.L + j + p.L - TAPS_MAX] : 0.0f;
        }
    }
    __device__ __forceinline__ void stage(float (&acc)[S::ACCS][S::N / 2], const wgmma::Lane &lane) const
    {
        auto pair = [&](int g, int j, int i) { return pack_bf16(acc[g][4 * j + 2 * i], acc[g][4 * j + 2 * i + 1]); };
#pragma unroll
        for (int j = 0; j < S::N / 8; j += 2) {
            if constexpr (S::BY_GROUP) {
                wgmma::put_16_tokens(planes + lane.consumer * PLANE, j * 8, lane, pair(0, j, 0), pair(0, j, 1),
                                     pair(0, j + 1, 0), pair(0, j + 1, 1));
            } else {
                auto u = [&](int k, int i) { return input2(pair(0, k, i), pair(2, k, i)); };

                wgmma::put_16_tokens(planes, j * 8, lane, u(j, 0), u(j, 1), u(j + 1, 0), u(j + 1, 1));
                wgmma::put_16_tokens(planes + PLANE, j * 8, lane, pair(1, j, 0), pair(1, j, 1), pair(1, j + 1, 0),
                                     pair(1, j + 1, 1));
            }
        }
    }
    __device__ __forceinline__ uint4 plane(uint32_t which, uint32_t row, uint32_t piece) const
    {
        return *reinterpret_cast<const uint4 *>(planes + which * PLANE + swizzle128(row, piece * 16));
    }
    __device__ __forceinline__ uint4 input(uint32_t row, uint32_t piece) const
    {
        const uint4 b = plane(0, row, piece);

        if constexpr (!S::BY_GROUP)
            return b;
        const uint4 x = plane(2, row, piece);

        return make_uint4(input2(b.x, x.x), input2(b.y, x.y), input2(b.z, x.z), input2(b.w, x.w));
    }
    // Row i of the tile, 8 channels from `first`: y, and, of the last row of a span, the state.
    __device__ __forceinline__ void convolve(const wgmma::Tile &tile, uint32_t i, uint32_t piece, uint32_t first,
                                             const Row &row, const float (&taps)[8][TAPS_MAX])
    {
        uint4 u[TAPS_MAX]; // the last is the row's own
#pragma unroll
        for (uint32_t d = 0; d < TAPS_MAX; d++) { // d rows back
            uint4 &column = u[TAPS_MAX - 1 - d];

            if (d >= p.L)
                column = make_uint4(0, 0, 0, 0);
            else if (d <= row.at)
                column = input(i - d, piece);
            else
                column = before(row, p.L - 1 + row.at - d, first);
        }
        const uint4 gate = plane(1, i, piece);
        uint4 y;

        y.x = output2(gate.x, u[0].x, u[1].x, u[2].x, u[3].x, taps[0], taps[1]);
        y.y = output2(gate.y, u[0].y, u[1].y, u[2].y, u[3].y, taps[2], taps[3]);
        y.z = output2(gate.z, u[0].z, u[1].z, u[2].z, u[3].z, taps[4], taps[5]);
        y.w = output2(gate.w, u[0].w, u[1].w, u[2].w, u[3].w, taps[6], taps[7]);
        *reinterpret_cast<uint4 *>(p.y + (size_t)(tile.row + i) * p.y_ld + first) = y;
        if (row.state_out < 0 || first >= p.H)
            return;
#pragma unroll
        for (uint32_t d = 0; d < TAPS_MAX - 1; d++) {
            if (d + 1 < p.L)
                *state(row.state_out, p.L - 2 - d, first) = u[TAPS_MAX - 1 - d];
        }
    }
    // Column j of the state that a span starts from.
    __device__ __forceinline__ uint4 before(const Row &row, uint32_t j, uint32_t first) const
    {
        if constexpr (HOLDS)
            return j == 0 ? held[0] : j == 1 ? held[1] : held[2];
        else
            return state_column(row, j, first);
    }
    static __device__ __forceinline__ uint32_t output2(uint32_t gate, uint32_t u0, uint32_t u1, uint32_t u2,
                                                       uint32_t u3, const float (&even)[TAPS_MAX],
                                                       const float (&odd)[TAPS_MAX])
    {
        const float a[TAPS_MAX] = {low(u0), low(u1), low(u2), low(u3)};
        const float b[TAPS_MAX] = {high(u0), high(u1), high(u2), high(u3)};

        return pack_bf16(conv_gate(low(gate), conv_sum<TAPS_MAX>(even, a, 0.0f)),
                         conv_gate(high(gate), conv_sum<TAPS_MAX>(odd, b, 0.0f)));
    }
};

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::PER_SM) conv_in_kernel(const __grid_constant__ Params p)
{
    wgmma::Block<S> block;
    Epilogue<S> epilogue(p, block.extra);

    wgmma::run<S, false>(p.problem, block, epilogue);
}

template <int N, int CONSUMERS, int ROWS, int PER_SM, bool IS_QUANTISED> constexpr wgmma::Choice<Params> choice()
{
    using S = Tiling<N, CONSUMERS, ROWS, PER_SM, IS_QUANTISED>;

    return {conv_in_kernel<S>, wgmma::variant_of<S>()};
}

bool is_supported(const hrk_conv_in_args *args)
{
    return wgmma::is_tiled(args->w, 3, args->max_rows) && args->w.n_stack == 1 && args->L >= 2 && args->L <= TAPS_MAX &&
           args->w.rows % 8 == 0 && args->state.state_stride % 8 == 0;
}

} // namespace

int conv_in_as(const hrk_conv_in_args *args, const hrk_launch *on, int variant)
{
    static const wgmma::Choice<Params> tables[2][CONV_IN_VARIANTS] = {
        {choice<32, 1, 64, 2, false>(), choice<64, 1, 64, 1, false>(), choice<128, 3, 64, 1, false>(),
         choice<192, 3, 64, 1, false>(), choice<16, 1, 16, 2, false>(), choice<32, 1, 16, 1, false>(),
         choice<64, 1, 32, 1, false>()},
        {choice<32, 1, 64, 2, true>(), choice<64, 1, 64, 1, true>(), choice<128, 3, 64, 1, true>(),
         choice<192, 3, 64, 1, true>(), choice<16, 1, 16, 2, true>(), choice<32, 1, 16, 1, true>(),
         choice<64, 1, 32, 1, true>()}};
    const hrk_matrix &w = args->w;
    const auto &choices = tables[hrk_is_quantised(w.layout)];
    Params p = {};

    if (!is_supported(args))
        return cudaErrorInvalidValue;
    if (args->max_rows == 0)
        return 0;
    variant = wgmma::choose(choices, variant, wgmma::dense_load(w, args->max_rows, args->L - 1), on->n_sms);
    if (variant < 0)
        return cudaErrorInvalidValue;
    p.problem.step = args->tables.step;
    p.problem.over = HRK_ROWS_ALL;
    p.problem.in = args->in;
    p.problem.ld = hrk_ld(w.cols);
    p.problem.max_rows = args->max_rows;
    p.problem.choices = 1;
    p.problem.overlap = args->L - 1;
    wgmma::set_matrix(&p.problem, w, choices[variant].shape);
    p.row_span = args->tables.row_span;
    p.taps = args->taps;
    p.H = w.rows;
    p.L = args->L;
    p.state = args->state;
    p.y = args->y;
    p.y_ld = hrk_ld(w.rows);
    return launch(choices[variant].kernel, wgmma::grid_of(choices[variant].shape, p.problem, on->n_sms), on, p);
}

} // namespace hrk

extern "C" int hrk_conv_in(const hrk_conv_in_args *args, const hrk_launch *on)
{
    return hrk::conv_in_as(args, on, hrk::PICK_VARIANT);
}
