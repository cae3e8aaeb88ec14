// Attention of generated rows over paged keys and values (equations 11 to 13), D = 64.
//
// Bound: the bytes of the keys and values, 256 n_keys Nkv a row and layer, each read once. A streaming multiprocessor
// must keep some 25 to 50 KiB in flight for that; two blocks of 5 stages of 16 KiB keep 160 KiB.
//
// Unit of work: (decode item, key-value head, chunk of 512 keys at an absolute position), so that one long sequence
// fills the device and the cut into chunks, hence every bit of a row, depends on the row's number of keys alone. Units
// go round robin over a persistent grid. The producer warp walks the units, looks up pages one unit ahead and copies
// 64-key blocks of keys and values (blocks.h); what the consumers must know of a block travels in its stage, so that
// they only ever see blocks.
//
// The G = Nq / Nkv query heads that share the keys are the rows of mma.sync m16n8k16 (rows from G on are zero; the
// tensor cores idle anyway). Each of 4 consumer warps takes 16 keys of every block with its own running maximum, sum
// and weighted values; at the end of a unit the four are merged in the order of the warps. A row of one chunk is then
// done; else the sums go to scratch, and the unit that arrives last merges the chunks in ascending order, whichever
// unit that is.
#include "attention/blocks.h"
#include "attention/scratch.h"
#include "common/launch.h"
#include "common/tables.h"

namespace
{

using namespace hrk;

enum {
    STAGES = 5,
    CONSUMERS = 4, // warps
    THREADS = CONSUMERS * 32 + 32,
    WARP_KEYS = BLOCK_KEYS / CONSUMERS,
    MAX_GROUP = 8,
    STAGE_BYTES = BLOCK_BYTES + MAX_GROUP * KEY_BYTES, // the block, then the queries
    SUM_LD = HEAD_DIM + 8,                             // spreads the rows of a fragment over the banks
    FIRST_OF_UNIT = 1,
    LAST_OF_UNIT = 2,
};

struct Params {
    hrk_tables tables;
    const hrk_bf16 *q;
    hrk_bf16 *out;
    void *scratch;
    Pages pages;
    uint32_t Nq, Nkv;
};

// What a stage holds.
struct Block {
    uint32_t n_keys; // 0: no more work
    uint32_t flags;
    uint32_t row, head; // head: of keys and values
    uint32_t chunk;     // ordinal of the chunk item
    uint32_t first_chunk, n_chunks, reserved;
};

// What the four consumer warps leave for each other at a unit's end.
struct Merge {
    float sums[CONSUMERS][MAX_GROUP][SUM_LD];
    float2 state[CONSUMERS][MAX_GROUP]; // maximum (times log2 e / sqrt(D)), sum
};

struct Smem {
    unsigned char stage[STAGES][STAGE_BYTES];
    Merge merge[2]; // in turns: a warp may write one while another still reads the other
    Block block[STAGES];
    uint64_t full[STAGES], empty[STAGES];
    uint32_t is_last;
};

struct Ring {
    uint32_t stage = 0, phase = 0;

    __device__ __forceinline__ void advance()
    {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

struct Unit {
    hrk_decode_item item;
    uint32_t chunk, head;
    Window window;
};

// The unit's item is the last one whose first chunk is not after the unit's. `at` is the item of an earlier unit: a
// warp's units ascend, so the search goes forward, 31 items a step, and is over after one step in all but extreme
// batches.
__device__ __forceinline__ Unit find_unit(const Params &p, const hrk_step *step, uint32_t unit, uint32_t *at,
                                          uint32_t lane)
{
    const uint4 *items = reinterpret_cast<const uint4 *>(decode_items(step));
    uint32_t n = 0, n_items = step->n_decode_items;
    uint4 mine;
    Unit u;

    u.chunk = unit / p.Nkv;
    u.head = unit % p.Nkv;
    do {
        *at += n ? n - 1 : 0;
        mine = *at + lane < n_items ? items[*at + lane] : make_uint4(0, 0, 0, ~0u);
        n = (uint32_t)__popc(__ballot_sync(0xffffffffu, mine.w <= u.chunk));
    } while (n == 32);
    *at += n - 1;
    u.item.row = __shfl_sync(0xffffffffu, mine.x, (int)n - 1);
    u.item.slot = __shfl_sync(0xffffffffu, mine.y, (int)n - 1);
    u.item.n_keys = __shfl_sync(0xffffffffu, mine.z, (int)n - 1);
    u.item.first_chunk = __shfl_sync(0xffffffffu, mine.w, (int)n - 1);
    u.window = load_window(p.tables.page_table + (size_t)u.item.slot * p.tables.max_pages, p.pages.page_shift,
                           (u.chunk - u.item.first_chunk) * HRK_DECODE_CHUNK, u.item.n_keys, lane);
    return u;
}

__device__ __forceinline__ void produce_unit(const Params &p, Smem &s, Ring &ring, const Unit &u, uint32_t lane)
{
    uint32_t group = p.Nq / p.Nkv;
    uint32_t n = min((uint32_t)HRK_DECODE_CHUNK,
                     u.item.n_keys - (u.chunk - u.item.first_chunk) * HRK_DECODE_CHUNK); // keys of this chunk

    for (uint32_t at = 0; at < n; at += BLOCK_KEYS, ring.advance()) {
        uint32_t n_keys = min((uint32_t)BLOCK_KEYS, n - at);
        uint32_t queries = at == 0 ? group * KEY_BYTES : 0;
        unsigned char *stage = s.stage[ring.stage];
        uint64_t *full = &s.full[ring.stage];

        prim::mbar_wait(&s.empty[ring.stage], ring.phase ^ 1);
        if (n_keys % WARP_KEYS != 0)
            zero_rows(stage, n_keys, (n_keys + WARP_KEYS - 1) / WARP_KEYS * WARP_KEYS, lane);
        __syncwarp();
        if (lane == 0) {
            uint32_t flags = (at == 0 ? FIRST_OF_UNIT : 0) | (at + n_keys == n ? LAST_OF_UNIT : 0);
            uint32_t n_chunks = (u.item.n_keys + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK;

            s.block[ring.stage] = {n_keys, flags, u.item.row, u.head, u.chunk, u.item.first_chunk, n_chunks, 0};
            prim::mbar_arrive_expect_tx(full, n_keys * 2 * KEY_BYTES + queries);
            if (queries)
                prim::bulk_load(stage + BLOCK_BYTES, p.q + ((size_t)u.item.row * p.Nq + u.head * group) * HEAD_DIM,
                                queries, full);
        }
        __syncwarp();
        copy_block(p.pages, page_in_window(u.window, p.pages.page_shift, at, lane), at, n_keys, u.head, stage, full,
                   lane);
    }
}

__device__ __forceinline__ void produce(const Params &p, Smem &s, uint32_t lane)
{
    const hrk_step *step = p.tables.step;
    uint32_t n_units = step->n_chunk_items * p.Nkv;
    uint32_t at = 0, unit = blockIdx.x;
    Ring ring;

    if (unit < n_units) {
        Unit next = find_unit(p, step, unit, &at, lane);
        do {
            Unit u = next;

            unit += gridDim.x;
            if (unit < n_units)
                next = find_unit(p, step, unit, &at, lane);
            produce_unit(p, s, ring, u, lane);
        } while (unit < n_units);
    }
    prim::griddep_launch();
    prim::mbar_wait(&s.empty[ring.stage], ring.phase ^ 1);
    if (lane == 0) {
        s.block[ring.stage] = {};
        prim::mbar_arrive(&s.full[ring.stage]);
    }
}

// A warp's share of a unit. A thread holds row lane / 4 (a query head) of the accumulators: columns 8 j + lane % 4 * 2
// + e at sums[j][e]. sums[j][2..3] belong to rows that do not exist.
struct Share {
    uint32_t q[4][4]; // A fragments
    float sums[8][4];
    float maximum; // of score * log2 e / sqrt(D)
    float sum;     // of this thread's columns only
};

__device__ __forceinline__ void start_share(Share &w, const unsigned char *queries, uint32_t group, uint32_t lane)
{
    uint32_t row = lane / 4;
    const uint32_t *at = reinterpret_cast<const uint32_t *>(queries + row * KEY_BYTES) + lane % 4;

#pragma unroll
    for (int k = 0; k < 4; k++) {
        w.q[k][0] = row < group ? at[k * 8] : 0;
        w.q[k][2] = row < group ? at[k * 8 + 4] : 0;
        w.q[k][1] = w.q[k][3] = 0;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        w.sums[j][0] = w.sums[j][1] = w.sums[j][2] = w.sums[j][3] = 0;
    w.maximum = -INFINITY;
    w.sum = 0;
}

// Scores of the warp's 16 keys: keys 8 j + lane % 4 * 2 + e at c[j][e].
__device__ __forceinline__ void score(float (&c)[2][4], const Share &w, const unsigned char *keys, uint32_t first,
                                      uint32_t lane)
{
    uint32_t row = first + (lane & 7) + (lane >> 4) * 8;

#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t b[4];

        prim::ldmatrix_x4(b, keys + swizzle128(row, (uint32_t)k * 32 + (lane >> 3 & 1) * 16));
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        prim::mma_bf16_16816(c[0], w.q[k], b0);
        prim::mma_bf16_16816(c[1], w.q[k], b1);
    }
}

__device__ __forceinline__ void weigh(Share &w, const float (&c)[2][4], const unsigned char *values, uint32_t first,
                                      uint32_t lane)
{
    const uint32_t a[4] = {pack_bf16(c[0][0], c[0][1]), 0, pack_bf16(c[1][0], c[1][1]), 0};
    uint32_t row = first + (lane & 15);

#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t b[4];

        prim::ldmatrix_x4_trans(b, values + swizzle128(row, (uint32_t)j * 32 + (lane >> 4) * 16));
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        prim::mma_bf16_16816(w.sums[2 * j], a, b0);
        prim::mma_bf16_16816(w.sums[2 * j + 1], a, b1);
    }
}

// Adds keys first .. first + 15 of a block, of which those below n_keys count (at least one does).
__device__ __forceinline__ void attend(Share &w, const unsigned char *block, uint32_t first, uint32_t n_keys,
                                       uint32_t lane)
{
    const float scale = 0.125f * 1.4426950408889634f;
    float c[2][4] = {};
    float raw = -INFINITY;

    score(c, w, block, first, lane);
#pragma unroll
    for (uint32_t j = 0; j < 2; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++) {
            c[j][e] = first + j * 8 + lane % 4 * 2 + e < n_keys ? c[j][e] : -INFINITY;
            raw = fmaxf(raw, c[j][e]);
        }
    raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 1));
    raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 2));
    float maximum = fmaxf(w.maximum, raw * scale);
    float fade = prim::ex2(w.maximum - maximum);

    w.maximum = maximum;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            c[j][e] = prim::ex2(fmaf(c[j][e], scale, -maximum));
    w.sum = fmaf(w.sum, fade, (c[0][0] + c[0][1]) + (c[1][0] + c[1][1]));
#pragma unroll
    for (int j = 0; j < 8; j++) {
        w.sums[j][0] *= fade;
        w.sums[j][1] *= fade;
    }
    weigh(w, c, block + BLOCK_HALF, first, lane);
}

// A row's two neighbouring dimensions of some of its keys.
struct Part {
    float maximum, sum;
    float2 values;
};
// `part` scaled to the maximum of the whole.
__device__ __forceinline__ void add_part(Part &whole, float2 state, float2 values)
{
    float fade = prim::ex2(state.x - whole.maximum);

    whole.sum = fmaf(fade, state.y, whole.sum);
    whole.values.x = fmaf(fade, values.x, whole.values.x);
    whole.values.y = fmaf(fade, values.y, whole.values.y);
}

// Columns 2 x and 2 x + 1 of the unit's G rows laid end to end: the four warps' shares merged.
__device__ __forceinline__ Part merge_warps(const Merge &m, uint32_t x)
{
    uint32_t row = x / 32, d = x % 32 * 2;
    Part part = {-INFINITY, 0, make_float2(0, 0)};

#pragma unroll
    for (int i = 0; i < CONSUMERS; i++)
        part.maximum = fmaxf(part.maximum, m.state[i][row].x);
#pragma unroll
    for (int i = 0; i < CONSUMERS; i++)
        add_part(part, m.state[i][row], *reinterpret_cast<const float2 *>(&m.sums[i][row][d]));
    return part;
}
// The same over the chunks of an item, from scratch.
__device__ __forceinline__ Part merge_chunks(const Params &p, const Block &b, uint32_t x)
{
    uint32_t head = b.head * (p.Nq / p.Nkv) + x / 32, d = x % 32 * 2;
    Part part = {-INFINITY, 0, make_float2(0, 0)};

#pragma unroll 4
    for (uint32_t i = 0; i < b.n_chunks; i++)
        part.maximum = fmaxf(part.maximum, chunk_record(p.scratch, b.first_chunk + i, p.Nq, HEAD_DIM).state[head].x);
#pragma unroll 4
    for (uint32_t i = 0; i < b.n_chunks; i++) {
        ChunkRecord r = chunk_record(p.scratch, b.first_chunk + i, p.Nq, HEAD_DIM);

        add_part(part, r.state[head], *reinterpret_cast<const float2 *>(&r.sums[head * HEAD_DIM + d]));
    }
    return part;
}

__device__ __forceinline__ void write_out(const Params &p, const Block &b, uint32_t x, const Part &part)
{
    size_t at = ((size_t)b.row * p.Nq + b.head * (p.Nq / p.Nkv)) * HEAD_DIM + 2 * x;

    *reinterpret_cast<uint32_t *>(p.out + at) = pack_bf16(part.values.x / part.sum, part.values.y / part.sum);
}

// Counts this unit as done; the last of its item and head merges the chunks.
__device__ __forceinline__ void finish_chunk(const Params &p, Smem &s, const Block &b, uint32_t thread)
{
    uint32_t columns = p.Nq / p.Nkv * (HEAD_DIM / 2);

    prim::bar_sync(1, CONSUMERS * 32); // every thread's sums are written
    if (thread == 0) {
        uint32_t *counter = &chunk_record(p.scratch, b.first_chunk, p.Nq, HEAD_DIM).counters[b.head];

        s.is_last = prim::atomic_add_acq_rel(counter, 1) == b.n_chunks - 1;
        if (s.is_last)
            *counter = 0;
    }
    prim::bar_sync(1, CONSUMERS * 32);
    if (s.is_last)
        for (uint32_t x = thread; x < columns; x += CONSUMERS * 32)
            write_out(p, b, x, merge_chunks(p, b, x));
}

__device__ __forceinline__ void finish_unit(const Params &p, Smem &s, Merge &m, Share &w, const Block &b,
                                            uint32_t thread)
{
    uint32_t lane = thread % 32, warp = thread / 32, row = lane / 4, group = p.Nq / p.Nkv;

    w.sum += __shfl_xor_sync(0xffffffffu, w.sum, 1);
    w.sum += __shfl_xor_sync(0xffffffffu, w.sum, 2);
    if (row < group) {
        if (lane % 4 == 0)
            m.state[warp][row] = make_float2(w.maximum, w.sum);
#pragma unroll
        for (uint32_t j = 0; j < 8; j++)
            *reinterpret_cast<float2 *>(&m.sums[warp][row][j * 8 + lane % 4 * 2]) =
                make_float2(w.sums[j][0], w.sums[j][1]);
    }
    prim::bar_sync(1, CONSUMERS * 32);
    for (uint32_t x = thread; x < group * (HEAD_DIM / 2); x += CONSUMERS * 32) {
        Part part = merge_warps(m, x);

        if (b.n_chunks == 1) {
            write_out(p, b, x, part);
            continue;
        }
        ChunkRecord r = chunk_record(p.scratch, b.chunk, p.Nq, HEAD_DIM);
        *reinterpret_cast<float2 *>(&r.sums[b.head * group * HEAD_DIM + 2 * x]) = part.values;
        if (x % 32 == 0)
            r.state[b.head * group + x / 32] = make_float2(part.maximum, part.sum);
    }
    if (b.n_chunks > 1)
        finish_chunk(p, s, b, thread);
}

__device__ __forceinline__ void consume(const Params &p, Smem &s, uint32_t thread)
{
    uint32_t lane = thread % 32, first = thread / 32 * WARP_KEYS, turn = 0;
    Ring ring;
    Share w;

    start_share(w, nullptr, 0, lane);
    for (;; ring.advance()) {
        const unsigned char *stage = s.stage[ring.stage];

        prim::mbar_wait(&s.full[ring.stage], ring.phase);
        Block b = s.block[ring.stage];
        if (b.n_keys == 0)
            return;
        if (b.flags & FIRST_OF_UNIT)
            start_share(w, stage + BLOCK_BYTES, p.Nq / p.Nkv, lane);
        if (first < b.n_keys)
            attend(w, stage, first, b.n_keys, lane);
        __syncwarp();
        if (lane == 0)
            prim::mbar_arrive(&s.empty[ring.stage]);
        if (b.flags & LAST_OF_UNIT) {
            finish_unit(p, s, s.merge[turn], w, b, thread);
            turn ^= 1;
        }
    }
}

__global__ void __launch_bounds__(THREADS, 2) attention_decode(const __grid_constant__ Params p)
{
    Smem &s = *reinterpret_cast<Smem *>(dyn_smem());

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            prim::mbar_init(&s.full[i], 1);
            prim::mbar_init(&s.empty[i], CONSUMERS);
        }
        prim::fence_mbar_init();
    }
    __syncthreads();
    prim::griddep_wait();
    if (threadIdx.x < CONSUMERS * 32)
        consume(p, s, threadIdx.x);
    else
        produce(p, s, threadIdx.x % 32);
}

} // namespace

extern "C" size_t hrk_attention_scratch(uint32_t max_decode_items, uint32_t max_chunk_items, uint32_t Nq, uint32_t D)
{
    (void)max_decode_items;
    return SCRATCH_HEADER + max_chunk_items * chunk_record_bytes(Nq, D);
}

extern "C" int hrk_attention_decode(const hrk_attention_args *args, const hrk_launch *on)
{
    LaunchShape shape;

    if (!pages_supported(args->kv, args->Nq) || args->scratch == nullptr)
        return cudaErrorInvalidValue;
    if (args->max_chunk_items == 0)
        return cudaSuccess;
    Params p = {args->tables, args->q, args->out, args->scratch, pages_of(args->kv), args->Nq, args->kv.Nkv};
    shape.grid = dim3(min(2 * on->n_sms, args->max_chunk_items * args->kv.Nkv));
    shape.block = dim3(THREADS);
    shape.smem = sizeof(Smem);
    return hrk::launch(attention_decode, shape, on, p);
}
