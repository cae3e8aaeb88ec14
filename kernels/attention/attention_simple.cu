// hrk_attention_simple: equations 11 to 13 (docs/lfm2.md) over the pages, for every kind of row, any even head size up
// to 256 and both page layouts. The reference of the fast kernels, and the way for other devices and head sizes.
//
// Bound: on the memory's side 4 D bytes a key and key-value head of a decode row; 4 D FLOP a key and query head on the
// plain fp32 units, which is what a long prompt meets first. A block has one row and up to HEADS query heads of one
// key-value head, which share every load. Its four warps take the 64-key tiles 0, 4, 8 ..; 1, 5, 9 ..; and so on, each
// with its own online softmax: a lane has two whole keys for the scores and a pair of dimensions for the values, where
// a key's row is one line of memory. At the end the four partial results are merged in order. Tiles lie at absolute
// positions and the merge is fixed, so the bits depend on the row's keys alone. A tile's probabilities are taken
// against the warp's running maximum and rounded to bf16 for the second product; their fp32 sum is of the values before
// that rounding.
#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace
{

enum { WARPS = 4, THREADS = 32 * WARPS, HEADS = 4, TILE = 64, MAX_D = 256, CHUNK = 8 };
enum { SWIZZLE_MASK = 7 }; // of a key's offset in elements, free for the chunk's xor because swizzled rows have 64

struct Item {
    uint32_t row, slot, n_keys;
};

struct Shared {
    float q[HEADS][MAX_D];       // times 1 / sqrt(D) log2 e
    float p[WARPS][TILE][HEADS]; // a tile's probabilities
    size_t key[WARPS][TILE];     // where a tile's keys lie
    float acc[WARPS][HEADS][MAX_D];
    float top[WARPS][HEADS], sum[WARPS][HEADS];
};

// Item x of the grid: decode items first, then the rows of the prefill tiles.
__device__ bool find_item(const hrk_attention_args &a, uint32_t x, Item &item)
{
    const hrk_step *step = a.tables.step;

    if (x < a.max_decode_items) {
        if (x >= step->n_decode_items)
            return false;
        const hrk_decode_item d = hrk::decode_items(step)[x];
        item = {d.row, d.slot, d.n_keys};
        return true;
    }
    const uint32_t tile = (x - a.max_decode_items) / HRK_PREFILL_TILE, i = (x - a.max_decode_items) % HRK_PREFILL_TILE;
    if (tile >= step->n_prefill_tiles)
        return false;
    const hrk_prefill_tile t = hrk::prefill_tiles(step)[tile];
    if (i >= t.n_rows)
        return false;
    item = {t.first_row + i, t.slot, t.first_position + i + 1};
    return true;
}

__device__ __forceinline__ size_t key_place(const hrk_attention_args &a, uint32_t slot, uint32_t kv_head, uint32_t key)
{
    const uint32_t P = a.kv.P, offset = key % P;
    const size_t page = a.tables.page_table[(size_t)slot * a.tables.max_pages + key / P];
    const size_t at = page * a.kv.page_stride + ((size_t)kv_head * 2 * P + offset) * a.kv.D;

    return a.kv.is_swizzled ? at | (offset & SWIZZLE_MASK) : at;
}

// scores[h] += q[h] . key, dimensions ascending.
template <bool WIDE>
__device__ __forceinline__ void score_key(const hrk_attention_args &a, const float (&q)[HEADS][MAX_D], size_t place,
                                          float (&scores)[HEADS])
{
    const uint32_t swizzle = a.kv.is_swizzled ? (uint32_t)place & SWIZZLE_MASK : 0;
    const hrk_bf16 *key = a.kv.base + (place - swizzle);

    if constexpr (WIDE) {
#pragma unroll 4
        for (uint32_t c = 0; c < a.kv.D / CHUNK; c++) {
            float k[CHUNK];

            hrk::unpack_chunk(*reinterpret_cast<const uint4 *>(key + (c ^ swizzle) * CHUNK), k);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
#pragma unroll
                for (int i = 0; i < CHUNK; i++)
                    scores[h] = fmaf(q[h][c * CHUNK + i], k[i], scores[h]);
            }
        }
    } else {
        for (uint32_t d = 0; d < a.kv.D; d++) {
            const float k = hrk::to_f32(key[d]);
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                scores[h] = fmaf(q[h][d], k, scores[h]);
        }
    }
}

// Softmax state of a warp: its lanes hold dimensions 2 lane + 64 i and the one after.
template <int PAIRS> struct State {
    float acc[HEADS][PAIRS][2], top[HEADS], sum[HEADS];
};

// Scores of a tile's keys lane and lane + 32, probabilities into shared memory, the state brought to the new maximum.
template <bool WIDE, int PAIRS>
__device__ __forceinline__ void weigh_tile(const hrk_attention_args &a, const Item &item, uint32_t kv_head,
                                           uint32_t first, Shared &s, State<PAIRS> &state)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float scores[2][HEADS];

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = lane + 32 * i, key = first + at;
        const bool is_there = key < item.n_keys;
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            scores[i][h] = 0.0f;
        if (is_there) {
            const size_t place = key_place(a, item.slot, kv_head, key);

            s.key[warp][at] = place;
            score_key<WIDE>(a, s.q, place, scores[i]);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            scores[i][h] = is_there ? scores[i][h] : -INFINITY;
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        const float top = fmaxf(state.top[h], prim::warp_max(fmaxf(scores[0][h], scores[1][h])));
        const float scale = prim::ex2(state.top[h] - top), low = prim::ex2(scores[0][h] - top),
                    high = prim::ex2(scores[1][h] - top);

        state.top[h] = top;
        state.sum[h] = fmaf(state.sum[h], scale, prim::warp_sum(low + high));
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            state.acc[h][i][0] *= scale, state.acc[h][i][1] *= scale;
        s.p[warp][lane][h] = hrk::round_bf16(low);
        s.p[warp][lane + 32][h] = hrk::round_bf16(high);
    }
}

// acc += p v over a tile's n keys, ascending.
template <int PAIRS>
__device__ __forceinline__ void add_values(const hrk_attention_args &a, uint32_t n, const Shared &s,
                                           State<PAIRS> &state)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t values = (size_t)a.kv.P * a.kv.D; // from a head's keys to its values

#pragma unroll(8 / PAIRS)
    for (uint32_t k = 0; k < n; k++) {
        const size_t place = s.key[warp][k];
        const uint32_t swizzle = a.kv.is_swizzled ? (uint32_t)place & SWIZZLE_MASK : 0;
        const hrk_bf16 *value = a.kv.base + (place - swizzle) + values;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const uint32_t d = 2 * lane + 64 * i;

            if (d < a.kv.D) {
                const uint32_t v = *reinterpret_cast<const uint32_t *>(value + (d ^ swizzle * CHUNK));
                const float v0 = __uint_as_float(v << 16), v1 = __uint_as_float(v & 0xffff0000u);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    const float p = s.p[warp][k][h];

                    state.acc[h][i][0] = fmaf(p, v0, state.acc[h][i][0]);
                    state.acc[h][i][1] = fmaf(p, v1, state.acc[h][i][1]);
                }
            }
        }
    }
}

template <int PAIRS> __device__ __forceinline__ void keep_state(const State<PAIRS> &state, uint32_t D, Shared &s)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const uint32_t d = 2 * lane + 64 * i;

            if (d < D)
                s.acc[warp][h][d] = state.acc[h][i][0], s.acc[warp][h][d + 1] = state.acc[h][i][1];
        }
        if (lane == 0)
            s.top[warp][h] = state.top[h], s.sum[warp][h] = state.sum[h];
    }
}

// Value d of head h from the warps' partial results. Warp 0 always has a tile, so the largest score is finite.
__device__ __forceinline__ float merged(const Shared &s, uint32_t h, uint32_t d)
{
    float top = s.top[0][h], sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 1; w < WARPS; w++)
        top = fmaxf(top, s.top[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float scale = prim::ex2(s.top[w][h] - top);

        sum = fmaf(s.sum[w][h], scale, sum);
        value = fmaf(s.acc[w][h][d], scale, value);
    }
    return value / sum;
}

template <bool WIDE, int PAIRS>
__global__ void __launch_bounds__(THREADS, 4) attention_simple_kernel(const __grid_constant__ hrk_attention_args a)
{
    __shared__ Shared s;
    const uint32_t D = a.kv.D, group = a.Nq / a.kv.Nkv, parts = (group + HEADS - 1) / HEADS;
    const uint32_t kv_head = blockIdx.y / parts, first_of_group = blockIdx.y % parts * HEADS;
    const uint32_t n_heads = min((uint32_t)HEADS, group - first_of_group),
                   first_head = kv_head * group + first_of_group;
    const float scale = 1.44269504f / sqrtf((float)D);
    Item item;
    State<PAIRS> state = {};

    prim::griddep_wait();
    prim::griddep_launch();
    if (!find_item(a, blockIdx.x, item))
        return;
    const size_t at = (size_t)item.row * hrk_ld(a.Nq * D) + (size_t)first_head * D;
    for (uint32_t i = threadIdx.x; i < HEADS * D; i += THREADS)
        s.q[i / D][i % D] = i / D < n_heads ? hrk::to_f32(a.q[at + i]) * scale : 0.0f;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        state.top[h] = -INFINITY;
    for (uint32_t first = threadIdx.x / 32 * TILE; first < item.n_keys; first += WARPS * TILE) {
        weigh_tile<WIDE>(a, item, kv_head, first, s, state);
        __syncwarp();
        add_values(a, min((uint32_t)TILE, item.n_keys - first), s, state);
        __syncwarp();
    }
    keep_state(state, D, s);
    __syncthreads();
    for (uint32_t i = threadIdx.x * 2; i < n_heads * D; i += THREADS * 2)
        *reinterpret_cast<uint32_t *>(a.out + at + i) =
            hrk::pack_bf16(merged(s, i / D, i % D), merged(s, i / D, i % D + 1));
    if (blockIdx.y == 0) {
        for (uint32_t i = a.Nq * D + threadIdx.x; i < hrk_ld(a.Nq * D); i += THREADS)
            a.out[(size_t)item.row * hrk_ld(a.Nq * D) + i] = 0;
    }
}

template <bool WIDE>
int launch_pairs(const hrk_attention_args *args, const hrk::LaunchShape &shape, const hrk_launch *on)
{
    if (args->kv.D <= 64)
        return hrk::launch(attention_simple_kernel<WIDE, 1>, shape, on, *args);
    if (args->kv.D <= 128)
        return hrk::launch(attention_simple_kernel<WIDE, 2>, shape, on, *args);
    return hrk::launch(attention_simple_kernel<WIDE, 4>, shape, on, *args);
}

} // namespace

extern "C" int hrk_attention_simple(const hrk_attention_args *args, const hrk_launch *on)
{
    const uint32_t D = args->kv.D, Nkv = args->kv.Nkv;
    const uint64_t items = args->max_decode_items + (uint64_t)args->max_prefill_tiles * HRK_PREFILL_TILE;

    if (D == 0 || D % 2 != 0 || D > MAX_D || Nkv == 0 || args->Nq == 0 || args->Nq % Nkv != 0 || args->kv.P == 0 ||
        (args->kv.is_swizzled && D != 64) || args->kv.page_stride % 2 != 0 || items == 0 || items > INT32_MAX)
        return cudaErrorInvalidValue;
    const uint32_t parts = (args->Nq / Nkv + HEADS - 1) / HEADS;
    const hrk::LaunchShape shape = {dim3((unsigned)items, Nkv * parts), dim3(THREADS)};
    if (D % CHUNK == 0 && args->kv.page_stride % CHUNK == 0)
        return launch_pairs<true>(args, shape, on);
    return launch_pairs<false>(args, shape, on);
}
