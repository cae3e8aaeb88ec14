// hrk_qk_rope: queries and keys normalised by head, rotated, keys and values put into their pages (docs/lfm2.md,
// equations 9 and 10) from rows that hrk_linear has multiplied. The reference of the fused hrk_qkv, and the way for
// other devices and head sizes.
//
// Bound: memory, 4 (Nq + 2 Nkv) D bytes a row. One block a row. A head is the work of a group of lanes: where D is 16
// times a power of two, D / 16 lanes with eight rotation pairs each, so every access is 16 bytes; for other even D a
// whole warp, pair by pair. The sum of squares ascends inside a lane, first halves of its pairs, then second halves;
// the group meets in a butterfly. It depends on D alone.
#include "attention/rope.h"
#include "common/launch.h"
#include "common/prim.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace
{

enum { WARPS = 4, THREADS = 32 * WARPS, CHUNK = 8, MAX_D = 256 };

// Where a row's keys and values go: offset of key dimension 0 of head 0; values of a head follow its P keys.
struct PagePlace {
    hrk_bf16 *key;    // NULL: nowhere, a warm-up row
    uint32_t swizzle; // xor of the 16-byte chunk
};

__device__ PagePlace page_place(const hrk_qk_rope_args &a, uint32_t row)
{
    const hrk_span span = hrk::spans(a.tables.step)[a.tables.row_span[row]];
    const uint32_t position = a.tables.row_position[row], offset = position % a.kv.P;

    if (row - span.first_row < span.n_warmup)
        return {nullptr, 0};
    const size_t page = a.tables.page_table[(size_t)span.slot * a.tables.max_pages + position / a.kv.P];
    return {a.kv.base + page * a.kv.page_stride + (size_t)offset * a.kv.D, a.kv.is_swizzled ? offset & 7 : 0};
}

// The pairs of a lane: WIDE: 8 member .. 8 member + 7; else member + 32 i.
template <bool WIDE> struct Pairs {
    enum { N = WIDE ? CHUNK : MAX_D / 2 / 32 };
    float low[N], high[N]; // dimensions j and j + D/2

    static __device__ __forceinline__ uint32_t index(uint32_t member, int i)
    {
        return WIDE ? member * CHUNK + i : member + 32 * i;
    }
    __device__ __forceinline__ void load(const hrk_bf16 *head, uint32_t half, uint32_t member)
    {
        if constexpr (WIDE) {
            hrk::unpack_chunk(*reinterpret_cast<const uint4 *>(head + member * CHUNK), low);
            hrk::unpack_chunk(*reinterpret_cast<const uint4 *>(head + half + member * CHUNK), high);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                const uint32_t j = index(member, i);

                low[i] = j < half ? hrk::to_f32(head[j]) : 0.0f;
                high[i] = j < half ? hrk::to_f32(head[j + half]) : 0.0f;
            }
        }
    }
    __device__ __forceinline__ void store(hrk_bf16 *head, uint32_t half, uint32_t member, uint32_t swizzle) const
    {
        if constexpr (WIDE) {
            const uint32_t c = member, d = member + half / CHUNK;

            *reinterpret_cast<uint4 *>(head + (c ^ swizzle) * CHUNK) = hrk::pack_chunk(low);
            *reinterpret_cast<uint4 *>(head + (d ^ swizzle) * CHUNK) = hrk::pack_chunk(high);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                const uint32_t j = index(member, i);

                if (j < half) {
                    head[j] = hrk::to_bf16(low[i]);
                    head[j + half] = hrk::to_bf16(high[i]);
                }
            }
        }
    }
    __device__ __forceinline__ float squares() const
    {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++)
            sum = fmaf(low[i], low[i], sum);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum = fmaf(high[i], high[i], sum);
        return sum;
    }
    __device__ __forceinline__ void norm_and_turn(const float *weight, const float *rope, float scale, uint32_t half,
                                                  uint32_t member, bool exact)
    {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const uint32_t j = index(member, i);

            if (j < half) {
                const float x1 = hrk::round_bf16(hrk::round_bf16(low[i] * scale) * weight[j]);
                const float x2 = hrk::round_bf16(hrk::round_bf16(high[i] * scale) * weight[j + half]);

                hrk::rotate_pair(x1, x2, rope[j], rope[j + half], exact, low[i], high[i]);
            }
        }
    }
};

__device__ void zero_padding(hrk_bf16 *row, uint32_t n)
{
    for (uint32_t i = n + threadIdx.x; i < hrk_ld(n); i += THREADS)
        row[i] = 0;
}

// group: lanes of a head, a power of two.
template <bool WIDE>
__global__ void __launch_bounds__(THREADS) qk_rope_kernel(const __grid_constant__ hrk_qk_rope_args a, uint32_t group)
{
    const uint32_t row = blockIdx.x, D = a.kv.D, half = D / 2, Nkv = a.kv.Nkv, heads = a.Nq + 2 * Nkv;
    const uint32_t member = threadIdx.x % group, at_once = THREADS / group;

    prim::griddep_wait();
    prim::griddep_launch();
    if (row >= a.tables.step->n_rows)
        return;
    const hrk_bf16 *from = a.qkv + (size_t)row * hrk_ld(heads * D);
    const float *rope = a.rope + (size_t)a.tables.row_position[row] * D;
    const PagePlace place = page_place(a, row);
    hrk_bf16 *q = a.q + (size_t)row * hrk_ld(a.Nq * D);
    for (uint32_t first = 0; first < heads; first += at_once) {
        const uint32_t head = first + threadIdx.x / group; // queries, then keys, then values
        const bool is_mine = head < heads;
        Pairs<WIDE> pairs = {};

        if (is_mine)
            pairs.load(from + (size_t)head * D, half, member);
        float sum = pairs.squares();
        for (uint32_t lanes = group / 2; lanes > 0; lanes /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, (int)lanes);
        if (!is_mine)
            continue;
        if (head < a.Nq + Nkv)
            pairs.norm_and_turn(head < a.Nq ? a.q_norm : a.k_norm, rope, hrk::norm_scale(sum, D, a.eps), half, member,
                                a.exact_rope);
        if (head < a.Nq) {
            pairs.store(q + (size_t)head * D, half, member, 0);
            continue;
        }
        const uint32_t which = (head - a.Nq) / Nkv, b = (head - a.Nq) % Nkv;
        hrk_bf16 *plain = which == 0 ? a.k_out : a.v_out;
        if (plain)
            pairs.store(plain + (size_t)row * hrk_ld(Nkv * D) + (size_t)b * D, half, member, 0);
        if (place.key)
            pairs.store(place.key + ((size_t)b * 2 + which) * a.kv.P * D, half, member, place.swizzle);
    }
    zero_padding(q, a.Nq * D);
    if (a.k_out)
        zero_padding(a.k_out + (size_t)row * hrk_ld(Nkv * D), Nkv * D);
    if (a.v_out)
        zero_padding(a.v_out + (size_t)row * hrk_ld(Nkv * D), Nkv * D);
}

} // namespace

extern "C" int hrk_qk_rope(const hrk_qk_rope_args *args, const hrk_launch *on)
{
    const uint32_t D = args->kv.D, lanes = D / 16;
    const bool is_wide = D % 16 == 0 && (lanes & (lanes - 1)) == 0;

    if (D == 0 || D % 2 != 0 || D > MAX_D || args->Nq == 0 || args->kv.Nkv == 0 || args->kv.P == 0 ||
        args->max_rows == 0 || (args->kv.is_swizzled && D != 64) || (is_wide && args->kv.page_stride % CHUNK != 0))
        return cudaErrorInvalidValue;
    if (is_wide)
        return hrk::launch(qk_rope_kernel<true>, {dim3(args->max_rows), dim3(THREADS)}, on, *args, lanes);
    return hrk::launch(qk_rope_kernel<false>, {dim3(args->max_rows), dim3(THREADS)}, on, *args, 32u);
}
