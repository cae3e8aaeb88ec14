// Queries, keys and values in one kernel: q, k, v = W in; q and k normalised by head and rotated; k and v straight into
// their pages (docs/lfm2.md, equations 8 to 10). To the bit what hrk_linear and hrk_qk_rope do in two.
//
// Bound: 2 rows cols bytes of weights a launch up to some 250 rows, then 2 rows cols FLOP a row. The skeleton is
// linear/wgmma_pipeline.h; a strip is one head of 64 dimensions. The rounded products of a head lie in shared memory
// token by token; four lanes share a token, each with 8 rotation pairs: the stored order of the rows (hrk_pack's
// pair_rotary) puts a lane's two chunks, dimensions 8 m .. and 8 m + 32 .., side by side. Where a token's keys and
// values go, and for few rows also its angles, is looked up as the product starts.
//
// Tiles: 16, 32 and 64 tokens, two blocks an SM; 128 and 192 with two consumers, a head each. No thin tiles: a head's
// norm wants all its rows.
#include "attention/rope.h"
#include "linear/wgmma.h"
#include "linear/wgmma_choice.h"
#include "norm/norm.h"

namespace hrk
{
namespace
{

enum { HEAD = 64, LANES = 4 /* of a token */, NOWHERE = 0xffffffffu };

struct Params {
    wgmma::Problem problem;
    hrk_tables tables;
    const float *q_norm, *k_norm, *rope;
    float eps;
    bool exact_rope;
    uint32_t Nq;
    hrk_kv kv;
    hrk_bf16 *q;
    uint32_t q_ld;
};

// Of a token.
struct Place {
    uint32_t page; // NOWHERE: a warm-up row
    uint32_t position;
};

template <int N, int CONSUMERS> constexpr int place_bytes = 2 * N *CONSUMERS *(int)sizeof(Place);
template <int N, int CONSUMERS, bool IS_QUANTISED>
using Tiling =
    wgmma::Shape<N, 1, CONSUMERS, false, 64, CONSUMERS * wgmma::Store<N, 64>::BYTES + place_bytes<N, CONSUMERS>,
                 CONSUMERS == 1 ? 2 : 1, IS_QUANTISED>;

// Eight consecutive floats.
__device__ __forceinline__ void load8(const float *from, float (&v)[8])
{
    const float4 a = *reinterpret_cast<const float4 *>(from), b = *reinterpret_cast<const float4 *>(from + 4);

    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

template <class S> struct Epilogue {
    static constexpr int CHUNK = wgmma::Store<S::N, 64>::CHUNK;
    static constexpr int AT_ONCE = wgmma::WARPGROUP / LANES; // tokens
    static constexpr bool HOLDS = S::N <= AT_ONCE;

    const Params &p;
    unsigned char *stages;
    Place *places;
    uint32_t turn = 0;
    float cosine[8], sine[8]; // of the thread's token, if it has only one

    __device__ __forceinline__ Epilogue(const Params &p_, unsigned char *extra)
        : p(p_), stages(extra), places(reinterpret_cast<Place *>(extra + S::CONSUMERS * wgmma::Store<S::N, 64>::BYTES))
    {
    }
    __device__ __forceinline__ Place *places_of(uint32_t consumer) const
    {
        return places + (turn * S::CONSUMERS + consumer) * S::N;
    }
    __device__ __forceinline__ uint32_t head_of(const wgmma::Tile &tile, uint32_t consumer) const
    {
        return tile.m * S::STRIPS + consumer;
    }
    __device__ __forceinline__ bool is_turned(uint32_t head) const
    {
        return head < p.Nq + p.kv.Nkv;
    }
    __device__ __forceinline__ void load_angles(uint32_t position, uint32_t member)
    {
        const float *angles = p.rope + (size_t)position * HEAD + member * 8;

        load8(angles, cosine);
        load8(angles + HEAD / 2, sine);
    }
    __device__ __forceinline__ void begin(const wgmma::Tile &tile, const wgmma::Lane &lane)
    {
        if (head_of(tile, lane.consumer) >= p.Nq + 2 * p.kv.Nkv) // no tile of this consumer: finish has no barrier
            return;
        turn ^= 1; // slow warps may still read those of the tile before
#pragma unroll
        for (uint32_t i = lane.t; i < (uint32_t)S::N; i += wgmma::WARPGROUP) {
            if (i < tile.n)
                places_of(lane.consumer)[i] = place_of(tile.row + i);
        }
        if constexpr (HOLDS) {
            if (lane.t / LANES < tile.n && is_turned(head_of(tile, lane.consumer)))
                load_angles(p.tables.row_position[tile.row + lane.t / LANES], lane.t % LANES);
        }
    }
    __device__ __forceinline__ Place place_of(uint32_t row) const
    {
        const hrk_span &span = spans(p.problem.step)[p.tables.row_span[row]];
        const uint32_t position = p.tables.row_position[row];

        if (row - span.first_row < span.n_warmup)
            return Place{NOWHERE, position};
        return Place{p.tables.page_table[(size_t)span.slot * p.tables.max_pages + position / p.kv.P], position};
    }
    __device__ __forceinline__ void finish(const wgmma::Tile &tile, float (&acc)[1][S::N / 2], const wgmma::Lane &lane)
    {
        const uint32_t head = head_of(tile, lane.consumer), member = lane.t % LANES;
        unsigned char *stage = stages + lane.consumer * wgmma::Store<S::N, 64>::BYTES;

        if (head >= p.Nq + 2 * p.kv.Nkv)
            return;
#pragma unroll
        for (int c = 0; c < S::N; c += CHUNK) {
            if ((uint32_t)c >= tile.n)
                break;
            wgmma::sync_consumer(lane.consumer); // what was there before has been read
#pragma unroll
            for (int j = c / 8; j < (c + CHUNK) / 8; j += 2)
                wgmma::put_16_tokens(stage, j * 8 - c, lane, pack_bf16(acc[0][4 * j], acc[0][4 * j + 1]),
                                     pack_bf16(acc[0][4 * j + 2], acc[0][4 * j + 3]),
                                     pack_bf16(acc[0][4 * j + 4], acc[0][4 * j + 5]),
                                     pack_bf16(acc[0][4 * j + 6], acc[0][4 * j + 7]));
            wgmma::sync_consumer(lane.consumer);
            if (lane.warp * (32 / LANES) >= (uint32_t)CHUNK)
                continue;
#pragma unroll
            for (int k = 0; k < CHUNK; k += AT_ONCE) {
                const uint32_t i = k + lane.t / LANES;

                finish_token(tile, c + i, *reinterpret_cast<const uint4 *>(stage + swizzle128(i, member * 32)),
                             *reinterpret_cast<const uint4 *>(stage + swizzle128(i, member * 32 + 16)), head, member,
                             lane);
            }
        }
    }
    // low: dimensions 8 member .. + 7 of the head, high: 32 further. A token's lanes are in one warp, and all come
    // here.
    __device__ __forceinline__ void finish_token(const wgmma::Tile &tile, uint32_t i, uint4 low, uint4 high,
                                                 uint32_t head, uint32_t member, const wgmma::Lane &lane)
    {
        const bool is_mine = i < tile.n;
        const Place place = is_mine ? places_of(lane.consumer)[i] : Place{NOWHERE, 0};

        if (is_turned(head))
            norm_and_turn(low, high, head < p.Nq ? p.q_norm : p.k_norm, place.position, member, is_mine);
        if (!is_mine)
            return;
        if (head < p.Nq) {
            uint4 *to = reinterpret_cast<uint4 *>(p.q + (size_t)(tile.row + i) * p.q_ld + head * HEAD);

            to[member] = low;
            to[member + LANES] = high;
        } else if (place.page != NOWHERE) {
            const uint32_t which = is_turned(head) ? 0 : 1, b = head - p.Nq - which * p.kv.Nkv;
            const uint32_t offset = place.position % p.kv.P, swizzle = p.kv.is_swizzled ? offset & 7 : 0;
            uint4 *to = reinterpret_cast<uint4 *>(p.kv.base + place.page * p.kv.page_stride +
                                                  ((size_t)(b * 2 + which) * p.kv.P + offset) * HEAD);

            to[member ^ swizzle] = low;
            to[(member + LANES) ^ swizzle] = high;
        }
    }
    // As hrk_qk_rope, to the bit: squares of the low chunk, then of the high one, ascending; then a butterfly.
    __device__ __forceinline__ void norm_and_turn(uint4 &low, uint4 &high, const float *weight, uint32_t position,
                                                  uint32_t member, bool is_mine)
    {
        float a[8], b[8], w[8], v[8], sum = 0.0f;

        unpack_chunk(low, a);
        unpack_chunk(high, b);
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum = fmaf(a[k], a[k], sum);
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum = fmaf(b[k], b[k], sum);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        if (!is_mine)
            return;
        if constexpr (!HOLDS)
            load_angles(position, member);
        load8(weight + member * 8, w);
        load8(weight + member * 8 + HEAD / 2, v);
        const float scale = norm_scale(sum, HEAD, p.eps);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float x1 = round_bf16(round_bf16(a[k] * scale) * w[k]);
            const float x2 = round_bf16(round_bf16(b[k] * scale) * v[k]);

            rotate_pair(x1, x2, cosine[k], sine[k], p.exact_rope, a[k], b[k]);
        }
        low = pack_chunk(a);
        high = pack_chunk(b);
    }
};

template <class S> __global__ void __launch_bounds__(S::THREADS, S::PER_SM) qkv_kernel(const __grid_constant__ Params p)
{
    wgmma::Block<S> block;
    Epilogue<S> epilogue(p, block.extra);

    wgmma::run<S, false>(p.problem, block, epilogue);
}

template <int N, int CONSUMERS, bool IS_QUANTISED> constexpr wgmma::Choice<Params> choice()
{
    using S = Tiling<N, CONSUMERS, IS_QUANTISED>;

    return {qkv_kernel<S>, wgmma::variant_of<S>()};
}

bool is_supported(const hrk_qkv_args *args)
{
    const bool is_quantised = hrk_is_quantised(args->w.layout);

    if (is_quantised && !(hrk_is_quantised(args->k_layout) && wgmma::has_whole_blocks(args->k_layout, args->w.cols) &&
                          hrk_is_quantised(args->v_layout) && wgmma::has_whole_blocks(args->v_layout, args->w.cols)))
        return false;
    return wgmma::is_tiled(args->w, 1, args->max_rows) && args->w.n_stack == 1 && args->kv.D == HEAD &&
           args->kv.P > 0 && args->Nq > 0 && args->kv.Nkv > 0 && args->w.rows == (args->Nq + 2 * args->kv.Nkv) * HEAD &&
           args->kv.page_stride % 8 == 0;
}

// Quantised q, k and v: a matrix each.
void set_segments(wgmma::Problem *p, const hrk_qkv_args *args)
{
    const uint32_t heads[3] = {args->Nq, args->kv.Nkv, args->kv.Nkv};
    const hrk_layout layouts[3] = {args->w.layout, args->k_layout, args->v_layout};
    const unsigned char *data = reinterpret_cast<const unsigned char *>(args->w.data);
    uint32_t first = 0;

    for (int i = 0; i < 3; i++) {
        p->segments[i] = wgmma::Segment{data, first, layouts[i]};
        first += heads[i];
        data += hrk_matrix_bytes(heads[i] * HEAD, args->w.cols, 1, layouts[i]);
    }
    p->n_segments = 3;
}

} // namespace

int qkv_as(const hrk_qkv_args *args, const hrk_launch *on, int variant)
{
    static const wgmma::Choice<Params> tables[2][QKV_VARIANTS] = {
        {choice<16, 1, false>(), choice<32, 1, false>(), choice<64, 1, false>(), choice<128, 2, false>(),
         choice<192, 2, false>()},
        {choice<16, 1, true>(), choice<32, 1, true>(), choice<64, 1, true>(), choice<128, 2, true>(),
         choice<192, 2, true>()}};
    const hrk_matrix &w = args->w;
    const auto &choices = tables[hrk_is_quantised(w.layout)];
    Params p = {};

    if (!is_supported(args))
        return cudaErrorInvalidValue;
    if (args->max_rows == 0)
        return 0;
    variant = wgmma::choose(choices, variant, wgmma::dense_load(w, args->max_rows, 0), on->n_sms);
    if (variant < 0)
        return cudaErrorInvalidValue;
    p.problem.step = args->tables.step;
    p.problem.over = HRK_ROWS_ALL;
    p.problem.in = args->in;
    p.problem.ld = hrk_ld(w.cols);
    p.problem.max_rows = args->max_rows;
    p.problem.choices = 1;
    wgmma::set_matrix(&p.problem, w, choices[variant].shape);
    if (hrk_is_quantised(w.layout))
        set_segments(&p.problem, args);
    p.tables = args->tables;
    p.q_norm = args->q_norm;
    p.k_norm = args->k_norm;
    p.rope = args->rope;
    p.eps = args->eps;
    p.exact_rope = args->exact_rope;
    p.Nq = args->Nq;
    p.kv = args->kv;
    p.q = args->q;
    p.q_ld = hrk_ld(args->Nq * HEAD);
    return launch(choices[variant].kernel, wgmma::grid_of(choices[variant].shape, p.problem, on->n_sms), on, p);
}

} // namespace hrk

extern "C" int hrk_qkv(const hrk_qkv_args *args, const hrk_launch *on)
{
    return hrk::qkv_as(args, on, hrk::PICK_VARIANT);
}
