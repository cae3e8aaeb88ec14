// The router of a mixture layer: ffn norm, logits, choice, weights (docs/lfm2.md, equations 2, 16 to 18), and the lists
// of rows by expert that the grouped products walk.
//
// Bound: reads E ld(H) 2 bytes of router weights a tile of rows, 2 ld(H) bytes a row in and as many out; 2 E H FLOP a
// row. It is all latency: a few microseconds between attention and the experts, every layer.
//
// One launch. A block takes a tile of 8 or 16 rows: its 8 warps normalise them into shared memory, then share the
// product along H. Warp w sums the w-th eighth of the 32-wide steps with mma.sync (experts on the 16-row side, rows on
// the 8-column side), and the eight sums are added in ascending order. A lane feeds the mma with 8 consecutive values
// (16 bytes) of each of its rows, so a step of 32 is two mma whose k indices are permuted the same way on both sides:
// no ldmatrix, whole sectors. Weights come through cp.async into slots that only the thread that asked for them reads,
// so the pipeline needs no barrier, and it starts before griddep_wait.
//
// Few rows (a step of decoding): a row tile's experts are split over blocks of 16 experts, so that no SM reads the
// whole router; each normalises the tile for itself, and the block that ends last picks up all logits of the tile. The
// sums are the same chains, hence the same bits, in every variant.
//
// The lists are a stable counting sort. Each tile counts its own (row, choice) pairs by expert and ranks them among
// themselves; integer totals go to counters. The last tile's block turns totals into first[], tile counts into bases,
// and places all pairs: their order is by expert, then by pair, whoever came last. A single tile (single streams, where
// all of this is latency) sorts its few pairs where they lie: each is compared with all others.
#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace hrk
{
namespace
{

enum : uint32_t {
    WARPS = 8,
    THREADS = WARPS * 32,
    STEP = 32, // values of H that one load of a lane pair of rows covers
    MAX_E = 512,
    MAX_K = 8,
    SPLIT_ROWS = 256, // rows up to which experts are split over blocks
    SPLIT_TILES = SPLIT_ROWS / 8
};
constexpr int32_t TAKEN = INT32_MIN, NOT_A_NUMBER = INT32_MIN + 1; // keys below that of every number

// ROWS of a tile, MT tiles of 16 experts a pass over H, STAGES of the weight pipeline.
template <uint32_t ROWS_, uint32_t MT_, uint32_t STAGES_, bool SPLIT_> struct Shape {
    static constexpr uint32_t ROWS = ROWS_, MT = MT_, STAGES = STAGES_, EXPERTS = 16 * MT_;
    static constexpr bool SPLIT = SPLIT_;
    static constexpr uint32_t RING = STAGES * MT * 2 * THREADS * 16;
    static constexpr uint32_t PARTIALS = WARPS * EXPERTS * ROWS * 4;
    static_assert(ROWS * MAX_K <= THREADS, "a thread a pair");
};

// Counters first, at places that depend on nothing: launches of other sizes share the scratch.
struct Scratch {
    uint32_t *all_tiles; // blocks that have finished a tile
    uint32_t *parts;     // [SPLIT_TILES] blocks that have finished their part of a tile
    uint32_t *totals;    // [MAX_E] pairs of an expert
    hrk_bf16 *logits;    // [SPLIT_ROWS, E]
    uint8_t *counts;     // [tiles, E] pairs of an expert in a tile
};
constexpr size_t COUNTERS = 16 + SPLIT_TILES + MAX_E;

__host__ __device__ Scratch scratch_of(uint32_t *base, uint32_t E)
{
    Scratch s;

    s.all_tiles = base;
    s.parts = base + 16;
    s.totals = s.parts + SPLIT_TILES;
    s.logits = reinterpret_cast<hrk_bf16 *>(base + COUNTERS);
    s.counts = reinterpret_cast<uint8_t *>(s.logits + (size_t)SPLIT_ROWS * E);
    return s;
}

// Where things lie in the block's shared memory.
template <class S> struct Room {
    uint32_t row_bytes, rows, partials, keys, probs, chosen, last, end;

    __host__ __device__ Room(uint32_t H, uint32_t E, uint32_t K)
    {
        row_bytes = hrk_ld(H) * 2 + 64; // 64 past a multiple of 128: the eight lanes of a phase meet no bank twice
        rows = S::RING;
        partials = rows + S::ROWS * row_bytes;
        keys = partials + S::PARTIALS;
        probs = keys + S::ROWS * (E + 4) * 4;
        chosen = probs + S::ROWS * (E + 4) * 2;
        chosen = (chosen + 15) & ~15u;
        last = chosen + S::ROWS * K * 4;
        end = last + 16;
    }
};

// The fp32 order as integers, NaN below all.
__device__ int32_t order_key(float score)
{
    int32_t bits = __float_as_int(score);

    if (score != score)
        return NOT_A_NUMBER;
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

__device__ hrk_bf16 sigmoid_bf16(hrk_bf16 logit)
{
    return to_bf16(1.0f / (1.0f + expf(-to_f32(logit))));
}

// Whether this block is the last of `expected` to come here; what the others wrote before is then visible to all of it.
__device__ bool is_last(uint32_t *counter, uint32_t expected, uint32_t *shared)
{
    __syncthreads();
    if (threadIdx.x == 0)
        *shared = prim::atomic_add_acq_rel(counter, 1) == expected - 1;
    __syncthreads();
    const bool last = *shared != 0;
    if (last && threadIdx.x == 0)
        *counter = 0;
    return last;
}

// The block's share of router weights, as a sequence of stages: pass after pass over its warp's steps.
template <class S> struct Weights {
    const hrk_bf16 *router;
    uint32_t E, ld, first_step, n_steps, n_stages, first_expert;
    uint4 *slots; // this thread's, THREADS apart
    uint32_t asked = 0;

    __device__ Weights(const hrk_route_args &a, unsigned char *smem, uint32_t first, uint32_t n_passes)
    {
        const uint32_t all = hrk_ld(a.H) / STEP, warp = threadIdx.x / 32;

        router = a.router;
        E = a.routing.E;
        ld = hrk_ld(a.H);
        first_step = all * warp / WARPS;
        n_steps = all * (warp + 1) / WARPS - first_step;
        n_stages = n_steps * n_passes;
        first_expert = first;
        slots = reinterpret_cast<uint4 *>(smem) + threadIdx.x;
    }
    __device__ uint4 *slot(uint32_t stage, uint32_t i) const
    {
        return slots + ((stage % S::STAGES) * S::MT * 2 + i) * THREADS;
    }
    // Always commits, so that counting groups counts stages.
    __device__ void ask()
    {
        const uint32_t lane = threadIdx.x % 32;

        if (asked < n_stages) {
            const uint32_t pass = asked / n_steps, step = first_step + asked % n_steps;
            const uint32_t expert = first_expert + pass * S::EXPERTS + lane / 4;
#pragma unroll
            for (uint32_t i = 0; i < S::MT * 2; i++) {
                const uint32_t e = expert + i * 8;
                const bool is_there = e < E;

                prim::cp_async16(slot(asked, i), router + (size_t)(is_there ? e : 0) * ld + step * STEP + lane % 4 * 8,
                                 is_there);
            }
        }
        asked++;
        prim::cp_async_commit();
    }
};

// One warp's sums of one pass: experts of MT tiles by ROWS rows over its steps.
template <class S>
__device__ void multiply(Weights<S> &weights, uint32_t stage, const unsigned char *rows, uint32_t row_bytes,
                         float *partials)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float acc[S::MT][S::ROWS / 8][4] = {};

    for (uint32_t j = 0; j < weights.n_steps; j++, stage++) {
        prim::cp_async_wait<(int)S::STAGES - 1>();
        uint4 w[S::MT * 2], x[S::ROWS / 8];
#pragma unroll
        for (uint32_t i = 0; i < S::MT * 2; i++)
            w[i] = *weights.slot(stage, i);
#pragma unroll
        for (uint32_t n = 0; n < S::ROWS / 8; n++)
            x[n] = *reinterpret_cast<const uint4 *>(rows + (n * 8 + lane / 4) * row_bytes +
                                                    (weights.first_step + j) * STEP * 2 + lane % 4 * 16);
#pragma unroll
        for (uint32_t m = 0; m < S::MT; m++) {
            const uint32_t low[4] = {w[2 * m].x, w[2 * m + 1].x, w[2 * m].y, w[2 * m + 1].y};
            const uint32_t high[4] = {w[2 * m].z, w[2 * m + 1].z, w[2 * m].w, w[2 * m + 1].w};
#pragma unroll
            for (uint32_t n = 0; n < S::ROWS / 8; n++) {
                const uint32_t x_low[2] = {x[n].x, x[n].y}, x_high[2] = {x[n].z, x[n].w};

                prim::mma_bf16_16816(acc[m][n], low, x_low);
                prim::mma_bf16_16816(acc[m][n], high, x_high);
            }
        }
        weights.ask();
    }
#pragma unroll
    for (uint32_t m = 0; m < S::MT; m++) {
#pragma unroll
        for (uint32_t n = 0; n < S::ROWS / 8; n++) {
            float *at = partials + ((size_t)warp * S::EXPERTS + m * 16 + lane / 4) * S::ROWS + n * 8 + lane % 4 * 2;

            *reinterpret_cast<float2 *>(at) = make_float2(acc[m][n][0], acc[m][n][1]);
            *reinterpret_cast<float2 *>(at + 8 * S::ROWS) = make_float2(acc[m][n][2], acc[m][n][3]);
        }
    }
}

// One warp picks a row's K experts and their weights. keys are used up.
__device__ void choose(const hrk_route_args &a, uint32_t row, int32_t *keys, const hrk_bf16 *probs, uint32_t *chosen)
{
    const uint32_t lane = threadIdx.x % 32, E = a.routing.E, K = a.routing.K;
    uint32_t my_id = 0;
    float my_p = 0.0f, sum = 0.0f;

    for (uint32_t k = 0; k < K; k++) {
        int32_t best = TAKEN, at = 0;

        for (uint32_t e = lane; e < E; e += 32) {
            if (keys[e] > best) {
                best = keys[e];
                at = (int32_t)e;
            }
        }
        const int32_t top = __reduce_max_sync(0xffffffffu, best);
        const uint32_t id = (uint32_t)-__reduce_max_sync(0xffffffffu, best == top ? -at : INT32_MIN);
        const float p = to_f32(probs[id]);

        if (id % 32 == lane)
            keys[id] = TAKEN;
        sum += p;
        if (k == lane) {
            my_id = id;
            my_p = p;
        }
    }
    if (lane < K) {
        // Each operation rounds: sum, + 1e-6, division, scale.
        const float w = a.normalise ? round_bf16(my_p / round_bf16(round_bf16(sum) + 1e-6f)) : my_p;

        chosen[lane] = my_id;
        a.routing.ids[(size_t)row * K + lane] = my_id;
        a.routing.weights[(size_t)row * K + lane] = round_bf16(w * a.scale);
    }
}

// Counts of the tile by expert, and each pair's rank among the tile's pairs of its expert (left in place[]).
__device__ void rank_tile(const hrk_route_args &a, const Scratch &scratch, uint32_t tile, uint32_t first_pair,
                          uint32_t n_pairs, const uint32_t *chosen)
{
    const uint32_t E = a.routing.E;

    if (threadIdx.x < n_pairs) {
        const uint32_t e = chosen[threadIdx.x];
        uint32_t rank = 0;

        for (uint32_t i = 0; i < threadIdx.x; i++)
            rank += chosen[i] == e;
        a.routing.place[first_pair + threadIdx.x] = rank;
    }
    for (uint32_t e = threadIdx.x; e < E; e += THREADS) {
        uint32_t count = 0;

        for (uint32_t i = 0; i < n_pairs; i++)
            count += chosen[i] == e;
        scratch.counts[(size_t)tile * E + e] = (uint8_t)count;
        if (count > 0)
            atomicAdd(&scratch.totals[e], count);
    }
}

// first[] from the totals, by the first warp; next[e] starts as first[e]. Totals are zero again.
__device__ void scan_totals(const hrk_route_args &a, const Scratch &scratch, uint32_t *next)
{
    const uint32_t lane = threadIdx.x, E = a.routing.E;
    uint32_t before = 0;

    if (lane >= 32)
        return;
    for (uint32_t base = 0; base < E; base += 32) {
        const uint32_t e = base + lane, own = e < E ? scratch.totals[e] : 0;
        uint32_t sum = own;

#pragma unroll
        for (uint32_t d = 1; d < 32; d *= 2) {
            const uint32_t other = __shfl_up_sync(0xffffffffu, sum, d);

            sum += lane >= d ? other : 0;
        }
        if (e < E) {
            scratch.totals[e] = 0;
            next[e] = before + sum - own;
            a.routing.first[e] = before + sum - own;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0)
        a.routing.first[E] = before;
}

// Turns the counts of tiles [tile0, tile0 + n) into the position of each tile's first pair of each expert, and moves
// next[] past them. A thread walks some tiles of one expert; share[] holds what each thread's tiles add up to.
__device__ void scan_tiles(const uint8_t *counts, uint32_t n, uint32_t E, uint32_t *next, uint32_t *share,
                           uint32_t *table)
{
    const uint32_t parts = E < THREADS ? THREADS / E : 1, each = (n + parts - 1) / parts;

    for (uint32_t i = threadIdx.x; i < parts * E; i += THREADS) {
        const uint32_t e = i % E, begin = min(i / E * each, n), end = min(begin + each, n);
        uint32_t sum = 0;

#pragma unroll 8
        for (uint32_t t = begin; t < end; t++)
            sum += counts[(size_t)t * E + e];
        share[i] = sum;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < parts * E; i += THREADS) {
        const uint32_t e = i % E, begin = min(i / E * each, n), end = min(begin + each, n);
        uint32_t at = next[e];

        for (uint32_t p = 0; p < i / E; p++)
            at += share[p * E + e];
#pragma unroll 8
        for (uint32_t t = begin; t < end; t++) {
            table[t * E + e] = at;
            at += counts[(size_t)t * E + e];
        }
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < E; e += THREADS) {
        for (uint32_t p = 0; p < parts; p++)
            next[e] += share[p * E + e];
    }
}

// Places the pairs [begin, end); their tiles' positions are in table, whose first row is of tile0.
template <uint32_t ROWS>
__device__ void place_pairs(const hrk_route_args &a, uint32_t begin, uint32_t end, uint32_t tile0,
                            const uint32_t *table)
{
    enum : uint32_t { BATCH = 4 }; // loads in flight
    const uint32_t E = a.routing.E, in_tile = ROWS * a.routing.K;

    for (uint32_t base = begin + threadIdx.x; base < end; base += BATCH * THREADS) {
        uint32_t e[BATCH], rank[BATCH];
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++) {
            const uint32_t pair = min(base + j * THREADS, end - 1);

            e[j] = a.routing.ids[pair];
            rank[j] = a.routing.place[pair];
        }
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++) {
            const uint32_t pair = base + j * THREADS;

            if (pair < end) {
                const uint32_t at = table[(pair / in_tile - tile0) * E + e[j]] + rank[j];

                a.routing.place[pair] = at;
                a.routing.sorted[at] = pair;
            }
        }
    }
}

// The lists, by the block that finished the last tile; all its shared memory is free.
template <class S>
__device__ void make_lists(const hrk_route_args &a, const Scratch &scratch, uint32_t n_rows, uint32_t n_tiles,
                           unsigned char *smem, uint32_t smem_bytes)
{
    const uint32_t E = a.routing.E;
    uint32_t *next = reinterpret_cast<uint32_t *>(smem), *share = next + E;
    uint32_t *table = share + (E > THREADS ? E : (uint32_t)THREADS);
    const uint32_t room = (smem_bytes - (uint32_t)(reinterpret_cast<unsigned char *>(table) - smem)) / (4 * E);

    scan_totals(a, scratch, next);
    for (uint32_t tile = 0; tile < n_tiles; tile += room) {
        const uint32_t n = min(room, n_tiles - tile);

        __syncthreads();
        scan_tiles(scratch.counts + (size_t)tile * E, n, E, next, share, table);
        place_pairs<S::ROWS>(a, tile * S::ROWS * a.routing.K, min((tile + n) * S::ROWS, n_rows) * a.routing.K, tile,
                             table);
    }
}

// The lists of a step that has one tile, straight from its choices in shared memory: no counter, no other block.
__device__ void sort_one_tile(const hrk_route_args &a, uint32_t n_pairs, const uint32_t *chosen)
{
    for (uint32_t e = threadIdx.x; e <= a.routing.E; e += THREADS) {
        uint32_t before = 0;

        for (uint32_t i = 0; i < n_pairs; i++)
            before += chosen[i] < e;
        a.routing.first[e] = before;
    }
    if (threadIdx.x < n_pairs) {
        const uint32_t e = chosen[threadIdx.x];
        uint32_t before = 0;

        for (uint32_t i = 0; i < n_pairs; i++)
            before += chosen[i] < e || (chosen[i] == e && i < threadIdx.x);
        a.routing.place[threadIdx.x] = before;
        a.routing.sorted[before] = threadIdx.x;
    }
}

// Logits of the block's experts, pass by pass: into keys and probs, or with SPLIT into scratch.
template <class S>
__device__ void route_logits(const hrk_route_args &a, const Scratch &scratch, const Room<S> &room, Weights<S> &weights,
                             unsigned char *smem, uint32_t row0, uint32_t n_here, uint32_t n_passes)
{
    const uint32_t E = a.routing.E;
    int32_t *keys = reinterpret_cast<int32_t *>(smem + room.keys);
    hrk_bf16 *probs = reinterpret_cast<hrk_bf16 *>(smem + room.probs);
    float *partials = reinterpret_cast<float *>(smem + room.partials);

    for (uint32_t pass = 0; pass < n_passes; pass++) {
        multiply<S>(weights, pass * weights.n_steps, smem + room.rows, room.row_bytes, partials);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < S::EXPERTS * S::ROWS; i += THREADS) {
            const uint32_t e = weights.first_expert + pass * S::EXPERTS + i / S::ROWS, r = i % S::ROWS;
            float sum = partials[i];

#pragma unroll
            for (uint32_t w = 1; w < WARPS; w++)
                sum += partials[w * S::EXPERTS * S::ROWS + i];
            if (e >= E || r >= n_here)
                continue;
            const hrk_bf16 logit = to_bf16(sum);

            if (a.logits)
                a.logits[(size_t)(row0 + r) * E + e] = logit;
            if (S::SPLIT) {
                scratch.logits[(size_t)(row0 + r) * E + e] = logit;
            } else {
                const hrk_bf16 p = sigmoid_bf16(logit);

                probs[r * (E + 4) + e] = p;
                keys[r * (E + 4) + e] = order_key(to_f32(p) + (a.expert_bias ? a.expert_bias[e] : 0.0f));
            }
        }
        __syncthreads();
    }
}

template <class S> __global__ void __launch_bounds__(THREADS) route_kernel(const __grid_constant__ hrk_route_args a)
{
    unsigned char *smem = dyn_smem();
    const uint32_t E = a.routing.E, K = a.routing.K, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first_expert = S::SPLIT ? blockIdx.y * S::EXPERTS : 0;
    const uint32_t n_passes = S::SPLIT ? 1 : (E + S::EXPERTS - 1) / S::EXPERTS;
    const Room<S> room(a.H, E, K);
    const Scratch scratch = scratch_of(a.routing.scratch, E);
    Weights<S> weights(a, smem, first_expert, n_passes);
    int32_t *keys = reinterpret_cast<int32_t *>(smem + room.keys);
    hrk_bf16 *probs = reinterpret_cast<hrk_bf16 *>(smem + room.probs);
    uint32_t *chosen = reinterpret_cast<uint32_t *>(smem + room.chosen);
    uint32_t *last = reinterpret_cast<uint32_t *>(smem + room.last);

    for (uint32_t i = 0; i < S::STAGES; i++)
        weights.ask();
    prim::griddep_wait();

    const uint32_t n_rows = a.tables.step->n_rows, row0 = blockIdx.x * S::ROWS;
    const uint32_t n_tiles = max((n_rows + S::ROWS - 1) / S::ROWS, 1u); // without rows one block empties the lists
    if (blockIdx.x >= n_tiles) {
        prim::cp_async_wait<0>();
        return;
    }
    const uint32_t n_here = min((uint32_t)S::ROWS, n_rows - row0);

    for (uint32_t r = warp; r < S::ROWS; r += WARPS) {
        hrk_bf16 *row = reinterpret_cast<hrk_bf16 *>(smem + room.rows + r * room.row_bytes);

        if (r < n_here)
            row_norm(a.x + (size_t)(row0 + r) * hrk_ld(a.H), a.norm, a.H, a.eps, row, lane);
        for (uint32_t i = lane * 8; i < hrk_ld(a.H); i += 256) {
            uint4 *at = reinterpret_cast<uint4 *>(row + i);

            if (r >= n_here)
                *at = make_uint4(0, 0, 0, 0);
            else if (!S::SPLIT || blockIdx.y == 0)
                *reinterpret_cast<uint4 *>(a.xn + (size_t)(row0 + r) * hrk_ld(a.H) + i) = *at;
        }
    }
    prim::griddep_launch();
    __syncthreads();
    route_logits<S>(a, scratch, room, weights, smem, row0, n_here, n_passes);
    prim::cp_async_wait<0>();

    if (S::SPLIT) {
        if (!is_last(&scratch.parts[blockIdx.x], gridDim.y, last))
            return;
        for (uint32_t i = threadIdx.x; i < n_here * E; i += THREADS) {
            const uint32_t r = i / E, e = i % E;
            const hrk_bf16 p = sigmoid_bf16(scratch.logits[(size_t)row0 * E + i]);

            probs[r * (E + 4) + e] = p;
            keys[r * (E + 4) + e] = order_key(to_f32(p) + (a.expert_bias ? a.expert_bias[e] : 0.0f));
        }
        __syncthreads();
    }
    for (uint32_t r = warp; r < n_here; r += WARPS)
        choose(a, row0 + r, keys + r * (E + 4), probs + r * (E + 4), chosen + r * K);
    __syncthreads();
    if (n_tiles == 1) {
        sort_one_tile(a, n_here * K, chosen);
        return;
    }
    rank_tile(a, scratch, blockIdx.x, row0 * K, n_here * K, chosen);
    if (is_last(scratch.all_tiles, n_tiles, last))
        make_lists<S>(a, scratch, n_rows, n_tiles, smem, room.last);
}

template <class S> int launch_route(const hrk_route_args *args, const hrk_launch *on)
{
    const Room<S> room(args->H, args->routing.E, args->routing.K);
    LaunchShape shape;

    shape.grid = dim3((args->max_rows + S::ROWS - 1) / S::ROWS, S::SPLIT ? (args->routing.E + 15) / 16 : 1);
    shape.block = dim3(THREADS);
    shape.smem = room.end;
    return launch(route_kernel<S>, shape, on, *args);
}

} // namespace
} // namespace hrk

extern "C" size_t hrk_route_scratch(uint32_t max_rows, uint32_t E, uint32_t K)
{
    (void)K;
    return hrk::COUNTERS * 4 + ((size_t)hrk::SPLIT_ROWS * 2 + ((size_t)max_rows + 7) / 8) * E;
}

extern "C" int hrk_route(const hrk_route_args *args, const hrk_launch *on)
{
    using namespace hrk;
    using Split = Shape<8, 1, 8, true>;
    using Few = Shape<8, 2, 3, false>;
    using Many = Shape<16, 2, 3, false>;
    const uint32_t E = args->routing.E, K = args->routing.K;
    const uint32_t tiles = (args->max_rows + 7) / 8, parts = (E + 15) / 16;
    int device, room = 0;

    if (args->max_rows == 0 || args->H == 0 || norm_segments(args->H) > NORM_SEGMENTS_MAX || E == 0 || E > MAX_E ||
        K == 0 || K > MAX_K || K > E)
        return (int)cudaErrorInvalidValue;
    if (args->max_rows <= SPLIT_ROWS && tiles * parts <= 2 * on->n_sms && E > 16)
        return launch_route<Split>(args, on);
    if (tiles <= 2 * on->n_sms)
        return launch_route<Few>(args, on);
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
        return (int)cudaGetLastError();
    if ((uint32_t)room < Room<Many>(args->H, E, K).end)
        return launch_route<Few>(args, on);
    return launch_route<Many>(args, on);
}
