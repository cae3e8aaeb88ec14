// Attention of prompt rows over paged keys and values (equations 11 to 13), D = 64, causal, by wgmma.
//
// Bound: operations, 256 a row, query head and key, half of them skipped by causality; with heads of 64 dimensions the
// exponentials (16 a clock) take as long as the products, so that what counts is to do both at once.
//
// One tile (up to 64 rows of one span) and the query heads of one key-value head are a team's unit of work, a warpgroup
// a head: all share the keys and values, which divides the traffic from L2 by their number. More than 4 heads are cut
// into parts; 4 warpgroups of one or two heads each are several teams, each with its own units. A team's producer warp
// streams 64-key blocks (blocks.h) through its stages. Inside a warpgroup the scores of block j + 1 are under way
// together with the weighted sum of block j, and the softmax of j + 1 runs beside the latter; beyond that the
// warpgroups overlap each other. 4 warpgroups leave 112 registers a thread, which is why the queries are read from
// shared memory and blocks have 64 keys.
//
// Tiles are handed out by a ticket, the last first: later tiles of a prompt have more keys. Blocks of keys lie at
// absolute positions and are added in ascending order, a row's lanes are fixed, and a block beyond a row's position
// adds zeros to its sums and multiplies them by one: a row's bits depend neither on the cut into chunks and tiles nor
// on its neighbours.
#include "attention/blocks.h"
#include "attention/scratch.h"
#include "common/launch.h"
#include "common/tables.h"

namespace
{

using namespace hrk;

enum {
    ROWS = HRK_PREFILL_TILE,
    GROUP_THREADS = 128, // a warpgroup
    MAX_HEADS = 4,       // a team
};

// How a block is made up, by the query heads a team has.
template <int HEADS> struct Plan {
    static constexpr int TEAMS = MAX_HEADS / HEADS;
    static constexpr int GROUPS = TEAMS * HEADS;                       // of consumers; one more produces
    static constexpr int STAGES = TEAMS == 4 ? 3 : 4;                  // what fits
    static constexpr int CONSUMER_REGISTERS = GROUPS == 4 ? 112 : 152; // of 65,536 less the producers' 128 x 32
    static constexpr int PRODUCER_REGISTERS = 32;
};

struct Params {
    hrk_tables tables;
    const hrk_bf16 *q;
    hrk_bf16 *out;
    uint32_t *ticket;
    Pages pages;
    uint32_t Nq, Nkv;
    uint32_t n_parts; // of the query heads of a key-value head
};

// What the consumers must know of a unit; lies with its first stage.
struct Unit {
    hrk_prefill_tile tile; // n_rows 0: no more work
    uint32_t head, part;   // head: of keys and values
    uint32_t reserved[2];
};

template <int HEADS> struct Smem {
    using Is = Plan<HEADS>;
    unsigned char stage[Is::TEAMS][Is::STAGES][BLOCK_BYTES];
    unsigned char queries[Is::GROUPS][ROWS * KEY_BYTES]; // of a warpgroup's head, swizzled
    Unit unit[Is::TEAMS][Is::STAGES];
    uint64_t full[Is::TEAMS][Is::STAGES], empty[Is::TEAMS][Is::STAGES];
};

// A team's ring of stages as one thread walks it.
template <int HEADS> struct Ring {
    Smem<HEADS> &s;
    uint32_t team;
    uint32_t at = 0, phase = 0;

    __device__ __forceinline__ Ring(Smem<HEADS> &smem, uint32_t index) : s(smem), team(index)
    {
    }
    __device__ __forceinline__ void advance()
    {
        if (++at == Plan<HEADS>::STAGES) {
            at = 0;
            phase ^= 1;
        }
    }
    __device__ __forceinline__ unsigned char *stage() const
    {
        return s.stage[team][at];
    }
    __device__ __forceinline__ Unit &unit() const
    {
        return s.unit[team][at];
    }
    __device__ __forceinline__ uint64_t *full() const
    {
        return &s.full[team][at];
    }
    __device__ __forceinline__ uint64_t *empty() const
    {
        return &s.empty[team][at];
    }
    __device__ __forceinline__ void wait_full() const
    {
        prim::mbar_wait(full(), phase);
    }
    __device__ __forceinline__ void wait_empty() const
    {
        prim::mbar_wait(empty(), phase ^ 1);
    }
};

__device__ __forceinline__ uint32_t n_keys_of(const hrk_prefill_tile &tile)
{
    return tile.first_position + tile.n_rows;
}

// ---------------------------------------------------------------- producer

__device__ __forceinline__ uint32_t n_units_of(const Params &p)
{
    return p.tables.step->n_prefill_tiles * p.Nkv * p.n_parts;
}
__device__ __forceinline__ Unit unit_at(const Params &p, uint32_t index)
{
    const hrk_step *step = p.tables.step;
    uint32_t per_tile = p.Nkv * p.n_parts;

    return {prefill_tiles(step)[step->n_prefill_tiles - 1 - index / per_tile],
            index % per_tile / p.n_parts,
            index % p.n_parts,
            {}};
}

template <int HEADS>
__device__ __forceinline__ void produce_blocks(const Params &p, Ring<HEADS> &ring, const uint32_t *table,
                                               uint32_t n_keys, uint32_t head, uint32_t lane)
{
    for (uint32_t at = 0; at < n_keys; at += BLOCK_KEYS, ring.advance()) {
        uint32_t n = min((uint32_t)BLOCK_KEYS, n_keys - at);
        uint32_t page = page_in_table(table, p.pages.page_shift, at, n_keys, lane); // arrives during the wait

        ring.wait_empty();
        if (n < BLOCK_KEYS)
            zero_rows(ring.stage(), n, BLOCK_KEYS, lane);
        __syncwarp();
        if (lane == 0)
            prim::mbar_arrive_expect_tx(ring.full(), n * 2 * KEY_BYTES);
        __syncwarp();
        copy_block(p.pages, page, at, n, head, ring.stage(), ring.full(), lane);
    }
}

// The first unit of a team is its index, every further one a ticket. Each unit that is done draws exactly one, so the
// last draw of a launch is known by its number, and who makes it puts the ticket back to zero. A ticket orders nothing
// but itself: acquire and release would be a fence of the whole device before every unit. Little lives across the inner
// loop, because a producer has 32 registers.
template <int HEADS>
__device__ __forceinline__ void produce(const Params &p, Ring<HEADS> &ring, uint32_t unit, uint32_t lane)
{
    while (unit < n_units_of(p)) {
        Unit u = unit_at(p, unit);

        if (lane == 0)
            unit = atomicAdd(p.ticket, 1u);
        ring.wait_empty();
        if (lane == 0)
            ring.unit() = u;
        produce_blocks(p, ring, p.tables.page_table + (size_t)u.tile.slot * p.tables.max_pages, n_keys_of(u.tile),
                       u.head, lane);
        if (lane == 0 && unit == n_units_of(p) - 1)
            *p.ticket = 0;
        unit = gridDim.x * Plan<HEADS>::TEAMS + __shfl_sync(0xffffffffu, unit, 0);
    }
    prim::griddep_launch();
    ring.wait_empty();
    if (lane == 0) {
        ring.unit() = {};
        prim::mbar_arrive(ring.full());
    }
}

// ---------------------------------------------------------------- consumers

// One query head of a tile, spread over a warpgroup. A thread holds rows r and r + 8 (r = warp * 16 + lane / 4) of the
// accumulators: element 4 j + 2 i + e is row r + 8 i, column 8 j + lane % 4 * 2 + e.
struct Head {
    uint32_t weight[4][4]; // A fragments of a block's probabilities, 16 keys each
    float sums[32];        // weighted values
    float maximum[2];      // of score * log2 e / sqrt(D)
    float sum[2];          // of this thread's columns only
};

// Puts the head's queries into the warpgroup's own tile of shared memory; q is the first row's. Missing rows are zero.
__device__ __forceinline__ void load_queries(unsigned char *to, const hrk_bf16 *q, uint32_t stride, uint32_t n_rows,
                                             uint32_t thread)
{
    uint32_t index = thread % GROUP_THREADS, barrier = 1 + thread / GROUP_THREADS;

    prim::bar_sync((int)barrier, GROUP_THREADS); // all have done with the unit before
#pragma unroll
    for (uint32_t i = 0; i < ROWS * KEY_BYTES / 16 / GROUP_THREADS; i++) {
        uint32_t row = i * (GROUP_THREADS / 8) + index / 8, at = index % 8 * 16;
        uint4 v = make_uint4(0, 0, 0, 0);

        if (row < n_rows)
            v = *reinterpret_cast<const uint4 *>(reinterpret_cast<const unsigned char *>(q + (size_t)row * stride) +
                                                 at);
        *reinterpret_cast<uint4 *>(to + swizzle128(row, at)) = v;
    }
    prim::fence_proxy_async();
    prim::bar_sync((int)barrier, GROUP_THREADS);
}

__device__ __forceinline__ void multiply_keys(float (&scores)[32], const unsigned char *queries,
                                              const unsigned char *block)
{
    uint64_t q = prim::desc_128b(queries);
    uint64_t keys = prim::desc_128b(block);

#pragma unroll
    for (int k = 0; k < 4; k++)
        prim::wgmma_bf16<64>(scores, q + 2 * k, keys + 2 * k, k != 0);
    prim::wgmma_commit();
}
__device__ __forceinline__ void add_values(Head &h, const unsigned char *block)
{
    uint64_t values = prim::desc_128b_mn(block + BLOCK_HALF);

#pragma unroll
    for (int k = 0; k < 4; k++)
        prim::wgmma_bf16_tb<64>(h.sums, h.weight[k], values + 128 * k, 1);
    prim::wgmma_commit();
}

// Hides the keys after each row's position; `ahead` is the position of row r less that of the block's first key.
__device__ __forceinline__ void mask(float (&scores)[32], int ahead, uint32_t lane)
{
#pragma unroll
    for (int x = 0; x < 32; x++) {
        int key = x / 4 * 8 + (int)(lane % 4) * 2 + x % 2;

        if (key > ahead + x % 4 / 2 * 8)
            scores[x] = -INFINITY;
    }
}

// Scores become probabilities under the new maximum; fade is what scales sums under the old one.
__device__ __forceinline__ void soften(float (&scores)[32], Head &h, float (&fade)[2])
{
    const float scale = 0.125f * 1.4426950408889634f;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        float raw = scores[2 * i], sum = 0;

#pragma unroll
        for (int x = 0; x < 16; x++)
            raw = fmaxf(raw, scores[x / 2 * 4 + 2 * i + x % 2]);
        raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 1));
        raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 2));
        float maximum = fmaxf(h.maximum[i], raw * scale);
        fade[i] = prim::ex2(h.maximum[i] - maximum);
        h.maximum[i] = maximum;
#pragma unroll
        for (int x = 0; x < 16; x++) {
            float &score = scores[x / 2 * 4 + 2 * i + x % 2];

            score = prim::ex2(fmaf(score, scale, -maximum));
            sum += score;
        }
        h.sum[i] = fmaf(h.sum[i], fade[i], sum);
    }
}

__device__ __forceinline__ void set_weights(Head &h, const float (&p)[32])
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            h.weight[k][i] = pack_bf16(p[8 * k + 2 * i], p[8 * k + 2 * i + 1]);
}

__device__ __forceinline__ void write_out(Head &h, hrk_bf16 *out, uint32_t stride, uint32_t n_rows, uint32_t row,
                                          uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = h.sum[i];

        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        float inverse = 1.0f / sum;
        if (row + 8 * i >= n_rows)
            continue;
        uint32_t *at = reinterpret_cast<uint32_t *>(out + (size_t)(row + 8 * i) * stride) + lane % 4;
#pragma unroll
        for (int j = 0; j < 8; j++)
            at[j * 4] = pack_bf16(h.sums[4 * j + 2 * i] * inverse, h.sums[4 * j + 2 * i + 1] * inverse);
    }
}

// All blocks of a unit, of which the first is at hand.
template <int HEADS>
__device__ __forceinline__ void attend(Ring<HEADS> &ring, Head &h, const unsigned char *queries, uint32_t n_blocks,
                                       uint32_t first_position, uint32_t row, uint32_t lane)
{
    float scores[32], fade[2];

#pragma unroll
    for (int i = 0; i < 32; i++)
        h.sums[i] = 0;
    h.maximum[0] = h.maximum[1] = -INFINITY;
    h.sum[0] = h.sum[1] = 0;
    prim::wgmma_fence();
    multiply_keys(scores, queries, ring.stage());
    prim::wgmma_wait<0>(scores);
    if (first_position < BLOCK_KEYS - 1)
        mask(scores, (int)(first_position + row), lane);
    soften(scores, h, fade);
    set_weights(h, scores);
    for (uint32_t block = 1; block < n_blocks; block++) {
        const Ring<HEADS> now = ring;

        ring.advance();
        ring.wait_full();
        prim::wgmma_fence();
        multiply_keys(scores, queries, ring.stage());
        add_values(h, now.stage());
        prim::wgmma_wait<1>(scores);
        if (block * BLOCK_KEYS + BLOCK_KEYS - 1 > first_position)
            mask(scores, (int)(first_position + row) - (int)(block * BLOCK_KEYS), lane);
        soften(scores, h, fade);
        prim::wgmma_wait<0>(h.sums);
        if (lane == 0)
            prim::mbar_arrive(now.empty());
#pragma unroll
        for (int x = 0; x < 32; x++)
            h.sums[x] *= fade[x % 4 / 2];
        set_weights(h, scores);
    }
    prim::wgmma_fence();
    add_values(h, ring.stage());
    prim::wgmma_wait<0>(h.sums);
    if (lane == 0)
        prim::mbar_arrive(ring.empty());
    ring.advance();
}

template <int HEADS>
__device__ __forceinline__ void consume(const Params &p, Ring<HEADS> &ring, unsigned char *queries, uint32_t thread)
{
    uint32_t lane = thread % 32, row = thread % GROUP_THREADS / 32 * 16 + lane / 4;
    uint32_t group = p.Nq / p.Nkv, stride = p.Nq * HEAD_DIM;
    Head h;

    for (;;) {
        ring.wait_full();
        Unit u = ring.unit();
        const hrk_prefill_tile &tile = u.tile;
        if (tile.n_rows == 0)
            return;
        // With a number of heads that the parts do not divide, the last part's last warpgroup repeats a head in vain.
        uint32_t own = u.part * HEADS + thread / GROUP_THREADS % HEADS;
        uint32_t head = u.head * group + min(own, group - 1);
        size_t first = (size_t)tile.first_row * stride + head * HEAD_DIM;

        load_queries(queries, p.q + first, stride, tile.n_rows, thread);
        attend(ring, h, queries, (n_keys_of(tile) + BLOCK_KEYS - 1) / BLOCK_KEYS, tile.first_position, row, lane);
        write_out(h, p.out + first, stride, own < group ? tile.n_rows : 0, row, lane);
    }
}

template <int HEADS>
__global__ void __launch_bounds__((Plan<HEADS>::GROUPS + 1) * GROUP_THREADS, 1)
    attention_prefill(const __grid_constant__ Params p)
{
    using Is = Plan<HEADS>;
    Smem<HEADS> &s = *reinterpret_cast<Smem<HEADS> *>(dyn_smem());
    uint32_t thread = threadIdx.x, group = thread / GROUP_THREADS;

    if (thread < Is::TEAMS * Is::STAGES) {
        prim::mbar_init(&s.full[0][thread], 1);
        prim::mbar_init(&s.empty[0][thread], HEADS * GROUP_THREADS / 32);
        prim::fence_mbar_init();
    }
    __syncthreads();
    prim::griddep_wait();
    if (group < Is::GROUPS) {
        prim::reg_inc<Is::CONSUMER_REGISTERS>();
        Ring<HEADS> ring(s, group / HEADS);
        consume(p, ring, s.queries[group], thread);
    } else {
        prim::reg_dec<Is::PRODUCER_REGISTERS>();
        uint32_t team = (thread - Is::GROUPS * GROUP_THREADS) / 32;
        if (team >= Is::TEAMS)
            return;
        Ring<HEADS> ring(s, team);
        produce(p, ring, team * gridDim.x + blockIdx.x, thread % 32); // few units spread over blocks first
    }
}

template <int HEADS> int launch_prefill(const Params &p, uint32_t max_tiles, const hrk_launch *on)
{
    using Is = Plan<HEADS>;
    LaunchShape shape;

    shape.grid = dim3(min(on->n_sms, max_tiles * p.Nkv * p.n_parts));
    shape.block = dim3((Is::GROUPS + 1) * GROUP_THREADS);
    shape.smem = sizeof(Smem<HEADS>);
    return hrk::launch(attention_prefill<HEADS>, shape, on, p);
}

} // namespace

extern "C" int hrk_attention_prefill(const hrk_attention_args *args, const hrk_launch *on)
{
    if (!pages_supported(args->kv, args->Nq) || args->scratch == nullptr)
        return cudaErrorInvalidValue;
    if (args->max_prefill_tiles == 0)
        return cudaSuccess;
    // Where there are fewer units than multiprocessors, a head's work is not made to wait for its neighbours'.
    uint32_t group = args->Nq / args->kv.Nkv, n_parts = (group + MAX_HEADS - 1) / MAX_HEADS;
    uint32_t heads = (group + n_parts - 1) / n_parts;
    while (heads % 2 == 0 && 2 * n_parts * args->kv.Nkv * args->max_prefill_tiles <= on->n_sms) {
        heads /= 2;
        n_parts *= 2;
    }
    Params p = {args->tables,       args->q,  args->out,    prefill_ticket(args->scratch),
                pages_of(args->kv), args->Nq, args->kv.Nkv, n_parts};
    switch (heads) {
    case 1:
        return launch_prefill<1>(p, args->max_prefill_tiles, on);
    case 2:
        return launch_prefill<2>(p, args->max_prefill_tiles, on);
    case 3:
        return launch_prefill<3>(p, args->max_prefill_tiles, on);
    default:
        return launch_prefill<4>(p, args->max_prefill_tiles, on);
    }
}
