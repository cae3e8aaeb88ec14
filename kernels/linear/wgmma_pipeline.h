// The one skeleton of every product with tiled weights on Hopper: linear, gate_up, down, conv_in, qkv.
//
// Weights sit on wgmma's 64-row side (A) and tokens on its N side (B), so a step of 8 tokens wastes nothing. A block is
// one producer warpgroup and 1 to 3 consumer warpgroups around a ring of stages; a stage is one or more blocks of 64
// columns:
//
//   producer  one lane copies the stage's weight rows, which lie in memory as shared memory wants them, with linear
//   bulk
//             copies; all 128 lanes fetch token rows with 16-byte cp.async, the swizzle being in the address, so that
//             rows may be gathered by an index at no cost. Both complete the same `full` barrier.
//   consumers issue wgmma on the stage and, once the stage before has been read, give that one back: one arrival a
//   warp,
//             since a warp knows only of its own wgmma.
//   epilogue  what a kernel makes of the sums; called with the fp32 fragments of a tile.
//
// Each output is one chain of wgmma in ascending K, from zero, in one warpgroup, whatever the tile's width, so its bits
// depend neither on N nor on its neighbours. K is never split among blocks; what a small matrix lacks in strips is made
// up by thin tiles, which load only 16 or 32 of a strip's 64 rows. The rest of the m64 instruction then multiplies
// whatever follows in the stage (rows of other K blocks, tokens: written, and guarded by the same barrier), and those
// results are never stored.
//
// Quantised weights (quantised.h) come to shared memory as they are; a consumer expands them to bf16 in registers, as
// operand A of the same wgmma, 16 columns ahead of the tensor cores. The values and the chain are those of bf16 tiles,
// so the results are, to the bit, and a step of few rows costs the bytes of the quantised weights.
//
// The grid is persistent. With one tile of tokens, or where the experts' lists are known so early (is_routed), the
// first weights are asked for before griddep_wait: weights never change, so they may be read while the kernel before
// still runs.
#pragma once

#include "common/cuda_compat.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "common/tables.h"
#include "hrk.h"
#include "linear/quantised.h"

namespace hrk
{
namespace wgmma
{

enum {
    STRIP = 64,   // rows of a strip: wgmma's M
    K_BLOCK = 64, // columns of a block: one 128-byte row of bf16
    BLOCK_VALUES = STRIP * K_BLOCK,
    WARPGROUP = 128,
    EXPERTS_MAX = 256,
    RASTER_ROWS = 2048, // token rows swept over all strips before the next ones, so that they stay in the L2 cache
    SMEM_BLOCK = 227 * 1024,
    SMEM_SM = 228 * 1024,
    SMEM_RESERVED = 1024, // of every block, by the device
    STAGES_MAX = 12,
    SEGMENTS_MAX = 3
};

// A matrix's rows in the step: those of one expert, or all. In shared memory.
struct Entry {
    uint32_t expert, row, n_rows, first_tile;
};
struct Tile {
    uint32_t m;      // along the strips
    uint32_t expert; // whose weights
    uint32_t row, n; // token rows [row, row + n), n <= N
};

// A tile: N tokens by STRIPS strips (or ROWS rows of one strip) of GROUPS matrices.
// BY_GROUP: the consumers share a strip, each having one of its groups; else each has a strip of its own with all
// groups. EXTRA: bytes of shared memory that the epilogue wants. PER_SM: blocks that are to share a multiprocessor.
// IS_QUANTISED: of quantised weights; a stage has room for those of the largest format.
template <int N_, int GROUPS_, int CONSUMERS_, bool BY_GROUP_, int ROWS_, int EXTRA_, int PER_SM_, bool IS_QUANTISED_>
struct Shape {
    static constexpr int N = N_, GROUPS = GROUPS_, CONSUMERS = CONSUMERS_, ROWS = ROWS_, PER_SM = PER_SM_;
    static constexpr bool BY_GROUP = BY_GROUP_, IS_QUANTISED = IS_QUANTISED_;
    static constexpr int STRIPS = BY_GROUP ? 1 : CONSUMERS;
    static constexpr int ACCS = BY_GROUP ? 1 : GROUPS; // accumulators of a consumer
    static constexpr int PARTS = STRIP / ROWS;         // tiles that a strip is cut into
    static constexpr int K_BLOCKS = PARTS;             // of a stage: a thin stage has more of K, not fewer bytes
    static constexpr int THREADS = WARPGROUP * (CONSUMERS + 1);
    static constexpr int GROUP_BYTES = IS_QUANTISED ? ROWS / 16 * (int)quantised::SLICE_MAX : ROWS * 128;
    static constexpr int STRIP_BYTES = GROUP_BYTES * GROUPS;
    static constexpr int WEIGHT_BYTES = STRIP_BYTES * STRIPS; // of a K block
    static constexpr int TOKEN_BYTES = N * 128;
    static constexpr int TOKENS_AT =
        (WEIGHT_BYTES * K_BLOCKS + 1023) / 1024 * 1024; // in a stage: the swizzle's pattern
    static constexpr int STAGE_BYTES = TOKENS_AT + TOKEN_BYTES * K_BLOCKS;
    static constexpr int SLICES = N / 16; // 16-byte pieces of a K block that a producer thread fetches: rows 16 apart
    // The ring, the epilogue's bytes, barriers, the schedule.
    static constexpr int EXTRA = EXTRA_;
    static constexpr int FIXED_BYTES = EXTRA + STAGES_MAX * 16 + 16 + EXPERTS_MAX * (int)sizeof(Entry);
    static constexpr int BUDGET = PER_SM == 1 ? (int)SMEM_BLOCK : (int)SMEM_SM / PER_SM - (int)SMEM_RESERVED;
    static constexpr int FITTING = (BUDGET - FIXED_BYTES) / STAGE_BYTES;
    static constexpr int STAGES = FITTING < (int)STAGES_MAX ? FITTING : (int)STAGES_MAX;
    static constexpr int SMEM = STAGES * STAGE_BYTES + FIXED_BYTES;

    static_assert(N % 16 == 0 && N <= 256, "token rows go to the producer's threads in sixteens");
    static_assert(ROWS == 64 || STRIPS == 1, "a thin tile is of one strip");
    static_assert(ROWS == 64 || IS_QUANTISED || (STRIP - ROWS) * 128 <= TOKEN_BYTES * K_BLOCKS,
                  "garbage rows must lie in the stage");
    static_assert(EXTRA % 16 == 0 && STAGES >= 3, "too few stages to hide the memory's latency");
};

// Strips from `first` on of one quantised format.
struct Segment {
    const unsigned char *data;
    uint32_t first;
    hrk_layout layout;
};

// What the skeleton needs to know; the parameters of every kernel contain one.
struct Problem {
    const hrk_step *step;
    hrk_rows over;
    const hrk_bf16 *weights;
    uint32_t k_blocks; // of the inner dimension
    uint32_t n_strips;
    uint32_t m_tiles;     // tiles along the strips
    size_t expert_values; // from one expert's weights to the next
    const hrk_bf16 *in;
    uint32_t ld;           // of in
    const uint32_t *first; // of hrk_routing; NULL: one dense matrix over the step's rows
    bool is_routed; // first was written by a kernel that has ended when this one may start: read before griddep_wait
    const uint32_t *sorted; // of hrk_routing: row r of a tile is row sorted[r] / choices of in; NULL: row r itself
    uint32_t n_experts, choices;
    uint32_t overlap; // rows that a token tile shares with the one before (conv_in)
    uint32_t max_rows;
    bool read_once; // weights are not wanted again: they leave the L2 cache first
    // Of quantised weights, instead of `weights` and `expert_values`. A stack has one segment.
    Segment segments[SEGMENTS_MAX];
    uint32_t n_segments;
    size_t expert_bytes;
};

// Written out: parameters are read from constant addresses, not copied to be indexed.
__device__ __forceinline__ Segment segment_of(const Problem &p, uint32_t strip)
{
    if (p.n_segments > 2 && strip >= p.segments[2].first)
        return p.segments[2];
    return p.n_segments > 1 && strip >= p.segments[1].first ? p.segments[1] : p.segments[0];
}

// Tiles of n rows, N wide, each sharing `overlap` rows with the one before.
__host__ __device__ __forceinline__ uint32_t token_tiles(uint32_t n, uint32_t N, uint32_t overlap)
{
    return n <= N ? (n > 0) : 1 + (n - overlap - 1) / (N - overlap);
}

// Shared memory of a block.
template <class S> struct Block {
    unsigned char *ring, *extra;
    uint64_t *full, *empty;
    uint32_t *counts; // entries, tiles
    Entry *entries;

    __device__ __forceinline__ Block()
    {
        ring = dyn_smem();
        extra = ring + S::STAGES * S::STAGE_BYTES;
        full = reinterpret_cast<uint64_t *>(extra + S::EXTRA);
        empty = full + STAGES_MAX;
        counts = reinterpret_cast<uint32_t *>(empty + STAGES_MAX);
        entries = reinterpret_cast<Entry *>(counts + 4);
    }
};

// Where a role is in the ring.
template <class S> struct Position {
    uint32_t stage = 0, phase = 0;

    __device__ __forceinline__ void advance()
    {
        if (++stage == (uint32_t)S::STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// Which thread of a consumer warpgroup this is.
struct Lane {
    uint32_t consumer, t, warp, lane;
};

// ---------------------------------------------------------------- schedule

// One warp lists the experts that have rows, with the tiles before each. Nothing later walks over empty experts.
template <class S> __device__ __forceinline__ void write_schedule(const Block<S> &b, const Problem &p, uint32_t lane)
{
    // Volatile: read from the L2 cache, since is_routed may read before griddep_wait, which else would see to that.
    const volatile uint32_t *first = p.first;
    uint32_t n_entries = 0, n_tiles = 0;

    if (first == nullptr) {
        uint32_t n = n_rows(p.step, p.over);

        if (lane == 0)
            b.entries[0] = Entry{0, 0, n, 0};
        n_entries = n > 0;
        n_tiles = token_tiles(n, S::N, p.overlap) * p.m_tiles;
    } else {
        uint32_t next_row = first[min(lane, p.n_experts)], next_end = first[min(lane + 1, p.n_experts)];

        for (uint32_t e0 = 0; e0 < p.n_experts; e0 += 32) {
            const uint32_t e = e0 + lane, row = next_row, end = next_end;

            // Asked for before this round waits for its own; past the last expert both are the end of all lists.
            next_row = first[min(e + 32, p.n_experts)];
            next_end = first[min(e + 33, p.n_experts)];
            const uint32_t n = end - row;
            uint32_t mine = token_tiles(n, S::N, p.overlap) * p.m_tiles, before = mine;
#pragma unroll
            for (uint32_t d = 1; d < 32; d *= 2) {
                uint32_t other = __shfl_up_sync(0xffffffffu, before, d);

                before += lane >= d ? other : 0;
            }
            uint32_t used = __ballot_sync(0xffffffffu, n > 0);
            uint32_t total = __shfl_sync(0xffffffffu, before, 31);

            if (n > 0)
                b.entries[n_entries + (uint32_t)__popc(used & ((1u << lane) - 1))] =
                    Entry{e, row, n, n_tiles + before - mine};
            n_entries += (uint32_t)__popc(used);
            n_tiles += total;
        }
    }
    if (lane == 0) {
        b.counts[0] = n_entries;
        b.counts[1] = n_tiles;
    }
}

// A thread's walk over the tiles of its block, ascending. It keeps next to nothing in registers: consumers are short of
// them.
template <class S> struct Walk {
    const Block<S> &b;
    const Problem &p;
    uint32_t at = 0;

    __device__ __forceinline__ Walk(const Block<S> &b_, const Problem &p_) : b(b_), p(p_)
    {
    }
    // Inside an expert: RASTER_ROWS rows' tiles at a time, over these the strips, and for a strip its token tiles.
    __device__ __forceinline__ Tile find(uint32_t index)
    {
        constexpr uint32_t CHUNK = RASTER_ROWS / S::N;

        while (at + 1 < b.counts[0] && b.entries[at + 1].first_tile <= index)
            at++;
        const Entry e = b.entries[at];
        const uint32_t width = token_tiles(e.n_rows, S::N, p.overlap), step = S::N - p.overlap;
        uint32_t rest = index - e.first_tile, column = 0;

        if (width > 1) {
            uint32_t chunk = rest / (p.m_tiles * CHUNK);

            rest -= chunk * p.m_tiles * CHUNK;
            uint32_t wide = min(CHUNK, width - chunk * CHUNK);

            column = chunk * CHUNK + rest % wide;
            rest /= wide;
        }
        return Tile{rest, e.expert, e.row + column * step, min((uint32_t)S::N, e.n_rows - column * step)};
    }
};

// ---------------------------------------------------------------- producer

// The same of quantised weights: as many bytes as the strips' formats have. A thin tile's rows are slices, which lie
// together.
template <class S>
__device__ __forceinline__ void load_quantised(const Block<S> &b, const Problem &p, uint32_t m, uint32_t expert,
                                               uint32_t k, uint32_t stage, uint64_t policy)
{
    unsigned char *to = b.ring + stage * S::STAGE_BYTES;
    uint64_t *full = b.full + stage;
    auto load = [&](uint32_t at, const unsigned char *from, uint32_t bytes) {
        if (p.read_once)
            prim::bulk_load(to + at, from, bytes, full, policy);
        else
            prim::bulk_load(to + at, from, bytes, full);
    };
    auto find = [&](uint32_t strip, const Segment &segment, const hrk_slice &s, uint32_t block) {
        return segment.data + expert * p.expert_bytes +
               (strip - segment.first) * quantised::strip_bytes(s, p.k_blocks, S::GROUPS) +
               quantised::block_offset(s, block, S::GROUPS);
    };

    if constexpr (S::PARTS == 1) {
        const unsigned char *from[S::STRIPS];
        uint32_t bytes[S::STRIPS], total = 0;

#pragma unroll
        for (int c = 0; c < S::STRIPS; c++) {
            const uint32_t strip = min(m * S::STRIPS + c, p.n_strips - 1);
            const Segment segment = segment_of(p, strip);
            const hrk_slice s = hrk_slice_of(segment.layout);

            from[c] = find(strip, segment, s, k);
            bytes[c] = quantised::slice_bytes(s, k) * 4 * S::GROUPS;
            total += bytes[c];
        }
        prim::mbar_arrive_expect_tx(full, total);
#pragma unroll
        for (int c = 0; c < S::STRIPS; c++)
            load(c * S::STRIP_BYTES, from[c], bytes[c]);
    } else {
        constexpr uint32_t SLICES = S::ROWS / quantised::SLICE_ROWS;
        const uint32_t strip = m / S::PARTS, part = m % S::PARTS;
        const Segment segment = segment_of(p, strip);
        const hrk_slice s = hrk_slice_of(segment.layout);
        uint32_t total = 0;

#pragma unroll
        for (int i = 0; i < S::K_BLOCKS; i++)
            total += quantised::slice_bytes(s, k + i) * SLICES * S::GROUPS;
        prim::mbar_arrive_expect_tx(full, total);
#pragma unroll
        for (int i = 0; i < S::K_BLOCKS; i++) {
            const uint32_t bytes = quantised::slice_bytes(s, k + i);
            const unsigned char *from = find(strip, segment, s, k + i);

#pragma unroll
            for (int g = 0; g < S::GROUPS; g++)
                load(i * S::WEIGHT_BYTES + g * SLICES * bytes, from + (g * 4 + part * SLICES) * bytes, SLICES * bytes);
        }
    }
}

// The weights of one stage: K blocks [k, k + K_BLOCKS) of the tile's strips. One thread.
template <class S>
__device__ __forceinline__ void load_weights(const Block<S> &b, const Problem &p, uint32_t m, uint32_t expert,
                                             uint32_t k, uint32_t stage, uint64_t policy)
{
    if constexpr (S::IS_QUANTISED) {
        load_quantised(b, p, m, expert, k, stage, policy);
        return;
    }
    unsigned char *to = b.ring + stage * S::STAGE_BYTES;
    const hrk_bf16 *matrix = p.weights + expert * p.expert_values;
    uint64_t *full = b.full + stage;

    prim::mbar_arrive_expect_tx(full, S::WEIGHT_BYTES * S::K_BLOCKS);
    auto load = [&](uint32_t at, const hrk_bf16 *from, uint32_t bytes) {
        if (p.read_once)
            prim::bulk_load(to + at, from, bytes, full, policy);
        else
            prim::bulk_load(to + at, from, bytes, full);
    };
    if constexpr (S::PARTS == 1) {
#pragma unroll
        for (int c = 0; c < S::STRIPS; c++) {
            // An odd last strip: the consumer beside it works on a copy and stores nothing.
            uint32_t strip = min(m * S::STRIPS + c, p.n_strips - 1);

            load(c * S::STRIP_BYTES, matrix + ((size_t)strip * p.k_blocks + k) * S::GROUPS * BLOCK_VALUES,
                 S::STRIP_BYTES);
        }
    } else {
        const uint32_t strip = m / S::PARTS, part = m % S::PARTS;
#pragma unroll
        for (int i = 0; i < S::K_BLOCKS; i++) {
#pragma unroll
            for (int g = 0; g < S::GROUPS; g++)
                load(i * S::WEIGHT_BYTES + g * S::GROUP_BYTES,
                     matrix + (((size_t)strip * p.k_blocks + k + i) * S::GROUPS + g) * BLOCK_VALUES +
                         part * S::ROWS * K_BLOCK,
                     S::GROUP_BYTES);
        }
    }
}

// Asks for the weights of the block's first stages, before it is known whether the step has rows. Returns how many.
template <class S> __device__ __forceinline__ uint32_t load_early(const Block<S> &b, const Problem &p, uint64_t policy)
{
    const uint32_t per_tile = p.k_blocks / S::K_BLOCKS;
    uint32_t n = 0;

    for (uint32_t m = blockIdx.x; m < p.m_tiles; m += gridDim.x) {
        for (uint32_t i = 0; i < per_tile; i++) {
            load_weights(b, p, m, 0, i * S::K_BLOCKS, n, policy);
            if (++n == (uint32_t)S::STAGES)
                return n;
        }
    }
    return n;
}
// How many that were, for the other threads.
template <class S> __device__ __forceinline__ uint32_t count_early(const Problem &p)
{
    if (p.first != nullptr || p.max_rows > (uint32_t)S::N || blockIdx.x >= p.m_tiles)
        return 0;
    return min((uint32_t)S::STAGES, (1 + (p.m_tiles - 1 - blockIdx.x) / gridDim.x) * (p.k_blocks / S::K_BLOCKS));
}

// How many stages a block's first tile can have in the ring.
template <class S> __device__ __forceinline__ uint32_t count_first(const Problem &p)
{
    return min((uint32_t)S::STAGES, p.k_blocks / S::K_BLOCKS);
}
// Asks for the weights of these, of a block that has a tile: the whole ring is free. One thread, and before the
// producer looks up which rows the tile wants, so that weights do not wait for an index.
template <class S> __device__ __forceinline__ void load_first(const Block<S> &b, const Problem &p, uint64_t policy)
{
    Walk<S> walk(b, p);
    const Tile tile = walk.find(blockIdx.x);

    for (uint32_t i = 0; i < count_first<S>(p); i++)
        load_weights(b, p, tile.m, tile.expert, i * S::K_BLOCKS, i, policy);
}

template <class S, bool GATHER>
__device__ __forceinline__ void produce(const Block<S> &b, const Problem &p, uint32_t t, uint32_t early,
                                        uint64_t policy)
{
    const uint32_t row = t / 8, piece = t % 8;
    const uint32_t to = row * 128 + ((piece ^ (row & 7)) << 4); // rows 16 apart swizzle alike
    Walk<S> walk(b, p);
    Position<S> at;
    uint32_t n_loaded = 0;

    for (uint32_t index = blockIdx.x; index < b.counts[1]; index += gridDim.x) {
        const Tile tile = walk.find(index);
        uint32_t offset[GATHER ? S::SLICES : 1];

#pragma unroll
        for (int i = 0; i < (GATHER ? S::SLICES : 1); i++) {
            uint32_t r = row + 16 * i;
            uint32_t from = tile.row + (r < tile.n ? r : 0);

            if (GATHER && p.sorted != nullptr)
                from = p.sorted[from] / p.choices;
            offset[i] = from * p.ld + piece * 8;
        }
        for (uint32_t k = 0; k < p.k_blocks; k += S::K_BLOCKS) {
            if (n_loaded >= early) {
                prim::mbar_wait(b.empty + at.stage, at.phase ^ 1);
                if (t == 0)
                    load_weights(b, p, tile.m, tile.expert, k, at.stage, policy);
            }
            n_loaded++;
            unsigned char *tokens = b.ring + at.stage * S::STAGE_BYTES + S::TOKENS_AT + to;
#pragma unroll
            for (int j = 0; j < S::K_BLOCKS; j++) {
#pragma unroll
                for (int i = 0; i < S::SLICES; i++) {
                    const bool wanted = row + 16 * i < tile.n; // else zeros, and nothing is read
                    const uint32_t from = GATHER ? offset[i] : offset[0] + (wanted ? 16 * i * p.ld : 0);

                    prim::cp_async16(tokens + j * S::TOKEN_BYTES + i * 2048, p.in + from + (k + j) * K_BLOCK, wanted);
                }
            }
            prim::mbar_arrive_cp_async(b.full + at.stage);
            at.advance();
        }
    }
    if (n_loaded == 0 && early > 0) { // no rows in this step: what was asked for must land before the block may end
        for (uint32_t s = 0; s < early; s++)
            prim::mbar_arrive(b.full + s);
        for (uint32_t s = 0; s < early; s++)
            prim::mbar_wait(b.full + s, 0);
    }
    if (t == 0)
        prim::griddep_launch();
}

// ---------------------------------------------------------------- consumers

// All consumers' warpgroups have a barrier of their own, and one for all; literal ids, or ptxas reserves all sixteen.
__device__ __forceinline__ void sync_consumer(uint32_t consumer)
{
    if (consumer == 0)
        prim::bar_sync(1, WARPGROUP);
    else if (consumer == 1)
        prim::bar_sync(2, WARPGROUP);
    else
        prim::bar_sync(3, WARPGROUP);
}

// An operand's descriptor, `bytes` further on than the one whose words these are. Addresses end below 2^18, so only the
// low word changes.
__device__ __forceinline__ uint64_t operand(uint32_t low, uint32_t high, uint32_t bytes)
{
    return (uint64_t)high << 32 | (low + bytes / 16);
}

// The loops run on values that the compiler can see to be the same in all lanes, so that it keeps the ring's position
// and the descriptors in uniform registers: a wgmma takes its descriptors from there, and moving them would cost more
// issue slots than a narrow wgmma takes time.
template <class S, class Epilogue>
__device__ __forceinline__ void consume(const Block<S> &b, const Problem &p, const Lane &lane, Epilogue &epilogue)
{
    const uint64_t a0 = prim::desc_128b(b.ring), b0 = prim::desc_128b(b.ring + S::TOKENS_AT);
    const uint32_t mine = lane.consumer * (S::BY_GROUP ? S::GROUP_BYTES : S::STRIP_BYTES);
    const uint32_t a_low = (uint32_t)a0 + mine / 16, a_high = (uint32_t)(a0 >> 32);
    const uint32_t b_low = (uint32_t)b0, b_high = (uint32_t)(b0 >> 32);
    const uint32_t n_tiles = __shfl_sync(0xffffffffu, b.counts[1], 0);
    const uint32_t begin_at = p.k_blocks > S::K_BLOCKS ? S::K_BLOCKS : 0; // the second stage, if there is one
    Walk<S> walk(b, p);
    Position<S> at;

    for (uint32_t index = blockIdx.x; index < n_tiles; index += gridDim.x) {
        // Zeroed, not left to wgmma's scale operand: the compiler would carry the sums of one tile to the next, right
        // through the epilogue, which needs the registers.
        float acc[S::ACCS][S::N / 2] = {};
        uint32_t before = S::STAGES;
        const Tile tile = walk.find(index);

        for (uint32_t k = 0; k < p.k_blocks; k += S::K_BLOCKS) {
            const uint32_t from = at.stage * S::STAGE_BYTES;

            prim::mbar_wait(b.full + at.stage, at.phase);
            prim::fence_proxy_async(); // token rows were written by cp.async, wgmma reads through the other proxy
            prim::wgmma_fence();
#pragma unroll
            for (int j = 0; j < S::K_BLOCKS; j++) {
#pragma unroll
                for (int q = 0; q < K_BLOCK / 16; q++) {
#pragma unroll
                    for (int g = 0; g < S::ACCS; g++)
                        prim::wgmma_bf16<S::N>(
                            acc[g], operand(a_low, a_high, from + j * S::WEIGHT_BYTES + g * S::GROUP_BYTES + 32 * q),
                            operand(b_low, b_high, from + j * S::TOKEN_BYTES + 32 * q), 1);
                }
            }
            prim::wgmma_commit();
            // Behind two stages of products: sooner, and the first stage's fence would wait for what begin asks for.
            if (k == begin_at)
                epilogue.begin(tile, lane);
            prim::wgmma_wait<1>();
            if (before < (uint32_t)S::STAGES && lane.lane == 0)
                prim::mbar_arrive(b.empty + before);
            before = at.stage;
            at.advance();
        }
#pragma unroll
        for (int g = 0; g < S::ACCS; g++)
            prim::wgmma_wait<0>(acc[g]);
        if (lane.lane == 0)
            prim::mbar_arrive(b.empty + before);
        epilogue.finish(tile, acc, lane);
    }
}

// The same of quantised weights. Each step of 16 columns is a group of wgmma of its own: while the tensor cores have
// one, the registers of the next are made; those of the step before are free once it has been waited for.
template <class S, class Epilogue>
__device__ __forceinline__ void consume_quantised(const Block<S> &b, const Problem &p, const Lane &lane,
                                                  Epilogue &epilogue)
{
    const uint64_t b0 = prim::desc_128b(b.ring + S::TOKENS_AT);
    const uint32_t b_low = (uint32_t)b0, b_high = (uint32_t)(b0 >> 32);
    const uint32_t n_tiles = __shfl_sync(0xffffffffu, b.counts[1], 0);
    const uint32_t begin_at = p.k_blocks > S::K_BLOCKS ? S::K_BLOCKS : 0;
    const uint32_t strip_at = S::BY_GROUP ? 0 : lane.consumer * S::STRIP_BYTES;
    const bool has_rows = S::PARTS == 1 || lane.warp * 16 < (uint32_t)S::ROWS; // others multiply zeros
    uint32_t a[2][4] = {};
    Walk<S> walk(b, p);
    Position<S> at;

    for (uint32_t index = blockIdx.x; index < n_tiles; index += gridDim.x) {
        float acc[S::ACCS][S::N / 2] = {};
        uint32_t before = S::STAGES;
        const Tile tile = walk.find(index);
        const uint32_t strip = S::PARTS > 1  ? tile.m / S::PARTS
                               : S::BY_GROUP ? tile.m
                                             : min(tile.m * S::STRIPS + lane.consumer, p.n_strips - 1);
        const hrk_layout layout = (hrk_layout)__shfl_sync(0xffffffffu, (uint32_t)segment_of(p, strip).layout, 0);
        const hrk_slice slice = hrk_slice_of(layout);
        const quantised::Kind kind = quantised::kind_of(layout);
        quantised::Head head[S::ACCS] = {};

        for (uint32_t k = 0; k < p.k_blocks; k += S::K_BLOCKS) {
            prim::mbar_wait(b.full + at.stage, at.phase);
            prim::fence_proxy_async(); // token rows were written by cp.async, wgmma reads through the other proxy
#pragma unroll 1
            for (uint32_t j = 0; j < (uint32_t)S::K_BLOCKS; j++) {
                const uint32_t bytes = quantised::slice_bytes(slice, k + j);
                const unsigned char *mine = b.ring + at.stage * S::STAGE_BYTES + strip_at + j * S::WEIGHT_BYTES +
                                            ((S::BY_GROUP ? lane.consumer * (S::ROWS / 16) : 0) + lane.warp) * bytes;
                const uint32_t tokens = at.stage * S::STAGE_BYTES + j * S::TOKEN_BYTES;

#pragma unroll
                for (int g = 0; g < S::ACCS; g++) {
                    const unsigned char *from = mine + g * (S::ROWS / 16) * bytes;
                    quantised::Fragments f;
                    quantised::Scales scales;

                    if (has_rows) {
                        if ((k + j) % 4 == 0)
                            quantised::read_head(layout, from, lane.lane, &head[g]);
                        quantised::read_slice(layout, from, lane.lane, &f);
                    }
#pragma unroll
                    for (int q = 0; q < K_BLOCK / 16; q++) {
                        if (has_rows)
                            quantised::expand(kind, f, head[g], q, &scales, a[q % 2]);
                        prim::wgmma_fence();
                        prim::wgmma_bf16_ra<S::N>(acc[g], a[q % 2], operand(b_low, b_high, tokens + 32 * q), 1);
                        prim::wgmma_commit();
                        if (g == 0 && q == 0 && j == 0 && k == begin_at)
                            epilogue.begin(tile, lane);
                        prim::wgmma_wait<1>(a[(q + 1) % 2]);
                        if (g == 0 && q == 0 && j == 0 && before < (uint32_t)S::STAGES) {
                            __syncwarp(); // all lanes have read the stage before
                            if (lane.lane == 0)
                                prim::mbar_arrive(b.empty + before);
                        }
                    }
                }
            }
            before = at.stage;
            at.advance();
        }
        prim::wgmma_wait<0>(a[(K_BLOCK / 16 - 1) % 2]);
#pragma unroll
        for (int g = 0; g < S::ACCS; g++)
            prim::wgmma_wait<0>(acc[g]);
        __syncwarp();
        if (lane.lane == 0)
            prim::mbar_arrive(b.empty + before);
        epilogue.finish(tile, acc, lane);
    }
}

// The body of a kernel. The epilogue has
//   begin(tile, lane): while a tile's first products run, to ask for what finish will want;
//   finish(tile, acc, lane): with the sums; it may use the block's extra bytes and its consumer's barrier.
template <class S, bool GATHER, class Epilogue>
__device__ __forceinline__ void run(const Problem &p, const Block<S> &b, Epilogue &epilogue)
{
    const uint32_t t = threadIdx.x, warp = __shfl_sync(0xffffffffu, t / 32, 0), group = warp / 4;
    const bool is_producer = group == (uint32_t)S::CONSUMERS, is_lead = t == S::CONSUMERS * WARPGROUP;
    uint32_t early = count_early<S>(p); // stages whose weights were asked for
    uint64_t policy = 0;

    if (is_lead) {
        for (int s = 0; s < S::STAGES; s++) {
            prim::mbar_init(b.full + s, WARPGROUP + 1); // the producer's lanes, and the announcement of the bytes
            prim::mbar_init(b.empty + s, 4 * S::CONSUMERS);
        }
        prim::fence_mbar_init();
        prim::fence_proxy_async();
        policy = prim::policy_evict_first();
        if (early > 0)
            load_early(b, p, policy);
    }
    if (!p.is_routed)
        prim::griddep_wait();
    if (t < 32)
        write_schedule(b, p, t);
    __syncthreads();
    if (early == 0 && blockIdx.x < b.counts[1]) {
        early = count_first<S>(p);
        if (is_lead)
            load_first(b, p, policy);
    }
    if (p.is_routed)
        prim::griddep_wait();
    if (is_producer) {
        if constexpr (S::CONSUMERS > 1)
            prim::reg_dec<40>();
        produce<S, GATHER>(b, p, t % WARPGROUP, early, policy);
    } else {
        if constexpr (S::CONSUMERS == 2)
            prim::reg_inc<232>();
        if constexpr (S::CONSUMERS == 3)
            prim::reg_inc<152>();
        const Lane lane = {group, t % WARPGROUP, warp % 4, t % 32};

        if constexpr (S::IS_QUANTISED)
            consume_quantised(b, p, lane, epilogue);
        else
            consume(b, p, lane, epilogue);
    }
}

// ---------------------------------------------------------------- epilogues' common part

// Puts two registers' worth of 16 features (those of the warp) by 16 tokens into a tile of 128-byte rows, one token a
// row, swizzled. low and high: the values of token columns j and j + 8 of a fragment, packed in pairs of tokens.
__device__ __forceinline__ void put_16_tokens(unsigned char *tile, uint32_t token, const Lane &lane, uint32_t low0,
                                              uint32_t low1, uint32_t high0, uint32_t high1)
{
    const uint32_t row = token + (lane.lane / 16) * 8 + lane.lane % 8, piece = lane.warp * 2 + lane.lane / 8 % 2;
    const uint32_t r[4] = {low0, low1, high0, high1};

    prim::stmatrix_x4_trans(tile + swizzle128(row, piece * 16), r);
}

// Stores a tile of N tokens by 64 features (or the first ROWS of them) as bf16, through CHUNK tokens of shared memory.
template <int N, int ROWS> struct Store {
    static constexpr int CHUNK = N < 64 ? N : N % 64 == 0 ? 64 : 32;
    static constexpr int BYTES = CHUNK * 128; // of a consumer
    static constexpr int PIECES = ROWS / 8;   // of 16 bytes, a token
    static constexpr int TURNS = (CHUNK * PIECES + WARPGROUP - 1) / WARPGROUP;

    // value(j, i) -> bf16 pair of fragment registers 4 j + 2 i, 4 j + 2 i + 1 (two tokens); row(token) -> its pieces.
    // put(turn, token, piece, uint4): writes 16 bytes.
    template <class Value, class Put>
    static __device__ __forceinline__ void store(unsigned char *stage, const Tile &tile, const Lane &lane, Value value,
                                                 Put put)
    {
#pragma unroll
        for (int c = 0; c < N; c += CHUNK) {
            if ((uint32_t)c >= tile.n)
                break;
            sync_consumer(lane.consumer); // what was there before has been read
            if (lane.warp * 16 < (uint32_t)ROWS) {
#pragma unroll
                for (int j = c / 8; j < (c + CHUNK) / 8; j += 2)
                    put_16_tokens(stage, j * 8 - c, lane, value(j, 0), value(j, 1), value(j + 1, 0), value(j + 1, 1));
            }
            sync_consumer(lane.consumer);
#pragma unroll
            for (int i = 0; i < TURNS; i++) {
                const uint32_t at = lane.t + i * WARPGROUP, token = at / PIECES, piece = at % PIECES;

                if (token < (uint32_t)CHUNK && c + token < tile.n)
                    put(i, c + token, piece, *reinterpret_cast<const uint4 *>(stage + swizzle128(token, piece * 16)));
            }
        }
    }
};

} // namespace wgmma
} // namespace hrk
