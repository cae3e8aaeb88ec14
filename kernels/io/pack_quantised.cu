// hrk_pack_quantised: GGUF's blocks to quantised tiles (hrk.h, linear/quantised.h), bit for bit.
//
// Bound: memory, once, at load; the file's bytes in and as many out. A thread writes a lane's words of one slice: 32
// values of two rows, read value by value from the blocks, whose bytes neighbouring lanes read too. Scales are written
// by every fourth lane, which has the first columns of its rows.
#include "common/launch.h"
#include "common/prim.h"
#include "linear/quantised.h"

namespace
{

enum { THREADS = 256, BLOCKS_PER_SM = 8 };

struct Format {
    uint32_t values, bytes; // of a block
};

__host__ __device__ __forceinline__ Format format_of(hrk_layout layout)
{
    switch (layout) {
    case HRK_TILED_Q4_0:
        return {32, 18};
    case HRK_TILED_Q8_0:
        return {32, 34};
    case HRK_TILED_Q4_K:
        return {256, 144};
    case HRK_TILED_Q5_K:
        return {256, 176};
    case HRK_TILED_Q6_K:
    default:
        return {256, 210};
    }
}

__device__ __forceinline__ uint32_t u16_at(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8;
}

// The row of the matrix that a slice's row i is; `rows` or more: padding.
__device__ __forceinline__ uint32_t row_of(const hrk_pack_quantised_args &a, uint32_t slice_row, uint32_t i)
{
    if (!a.pair_rotary)
        return slice_row * hrk::quantised::SLICE_ROWS + i;
    return slice_row / 4 * 64 + slice_row % 4 * 8 + i % 8 + i / 8 * 32;
}

// A row in `from`, or NULL for padding.
__device__ __forceinline__ const uint8_t *bytes_of(const hrk_pack_quantised_args &a, uint32_t row)
{
    const Format f = format_of(a.layout);

    if (row >= a.rows)
        return nullptr;
    return static_cast<const uint8_t *>(a.from) + (size_t)(row - a.first_row) * (a.cols / f.values) * f.bytes;
}
__device__ __forceinline__ const uint8_t *block_of(const hrk_pack_quantised_args &a, const uint8_t *row, uint32_t col)
{
    const Format f = format_of(a.layout);

    return row == nullptr || col >= a.cols ? nullptr : row + col / f.values * f.bytes;
}

// The stored integer of column col: unsigned, its bias not yet subtracted.
__device__ __forceinline__ uint32_t value_of(hrk_layout layout, const uint8_t *block, uint32_t col)
{
    const uint32_t at = col % 32, s = col % 256 / 32;

    if (block == nullptr)
        return 0;
    switch (layout) {
    case HRK_TILED_Q4_0:
        return block[2 + at % 16] >> at / 16 * 4 & 15;
    case HRK_TILED_Q8_0:
        return block[2 + at] ^ 0x80u;
    case HRK_TILED_Q4_K:
        return block[16 + s / 2 * 32 + at] >> s % 2 * 4 & 15;
    case HRK_TILED_Q5_K:
        return (block[48 + s / 2 * 32 + at] >> s % 2 * 4 & 15) | (uint32_t)(block[16 + at] >> s & 1) << 4;
    case HRK_TILED_Q6_K:
    default: {
        const uint32_t half = s / 4, g = s % 4;

        return (block[half * 64 + g % 2 * 32 + at] >> g / 2 * 4 & 15) |
               (uint32_t)(block[128 + half * 32 + at] >> g * 2 & 3) << 4;
    }
    }
}

// The four bytes of scales of one row in columns col .. col + 63.
__device__ __forceinline__ uint32_t scales_of(const hrk_pack_quantised_args &a, const uint8_t *row, uint32_t col)
{
    const uint8_t *block = block_of(a, row, col), *next = block_of(a, row, col + 32);
    uint32_t word = 0;

    if (block == nullptr)
        return a.layout == HRK_TILED_Q6_K ? 0x80808080u : 0;
    switch (a.layout) {
    case HRK_TILED_Q4_0:
    case HRK_TILED_Q8_0:
        return u16_at(block) | (next == nullptr ? 0 : u16_at(next) << 16);
    case HRK_TILED_Q4_K:
    case HRK_TILED_Q5_K:
        for (uint32_t i = 0; i < 2; i++) {
            const uint8_t *packed = block + 4;
            const uint32_t s = col % 256 / 32 + i;
            const uint32_t scale =
                s < 4 ? packed[s] & 63u : (packed[s + 4] & 15u) | (uint32_t)(packed[s - 4] >> 6) << 4;
            const uint32_t minimum =
                s < 4 ? packed[s + 4] & 63u : (uint32_t)(packed[s + 4] >> 4) | (uint32_t)(packed[s] >> 6) << 4;

            word |= (scale | minimum << 8) << 16 * i;
        }
        return word;
    case HRK_TILED_Q6_K:
    default:
        for (uint32_t i = 0; i < 4; i++)
            word |= (block[192 + col % 256 / 16 + i] ^ 0x80u) << 8 * i;
        return word;
    }
}

// fp16 d, and dmin above it where the format has one.
__device__ __forceinline__ uint32_t head_of(const hrk_pack_quantised_args &a, const uint8_t *row, uint32_t col)
{
    const uint8_t *block = block_of(a, row, col);

    if (block == nullptr)
        return 0;
    return a.layout == HRK_TILED_Q6_K ? u16_at(block + 208) : u16_at(block) | u16_at(block + 2) << 16;
}

__device__ __forceinline__ void write_scales(const hrk_pack_quantised_args &a, const uint8_t *const (&rows)[2],
                                             uint32_t k, uint32_t i, uint8_t *slice)
{
    const hrk_slice s = hrk_slice_of(a.layout);
    uint32_t *scales = reinterpret_cast<uint32_t *>(slice + i * 8);

    scales[0] = scales_of(a, rows[0], k * 64);
    scales[1] = scales_of(a, rows[1], k * 64);
    if (s.head == 0 || k % 4 != 0)
        return;
    const uint32_t upper = head_of(a, rows[0], k * 64), lower = head_of(a, rows[1], k * 64);

    if (a.layout == HRK_TILED_Q6_K) {
        *reinterpret_cast<uint32_t *>(slice + s.bytes + i * 4) = upper | lower << 16;
    } else {
        uint32_t *head = reinterpret_cast<uint32_t *>(slice + s.bytes + i * 8);

        head[0] = upper;
        head[1] = lower;
    }
}

// The values of one lane in the order of its fragments: step q's in values[8 q ..].
__device__ __forceinline__ void write_values(hrk_layout layout, const uint32_t (&values)[32], uint32_t lane,
                                             uint8_t *slice)
{
    uint32_t *low = reinterpret_cast<uint32_t *>(slice + hrk::quantised::SCALE_BYTES) + lane * 4;
    uint32_t *more = reinterpret_cast<uint32_t *>(slice + hrk::quantised::SCALE_BYTES + hrk::quantised::LOW_BYTES);
    uint32_t high[2] = {0, 0};

#pragma unroll
    for (uint32_t q = 0; q < 4; q++) {
        uint32_t half[2] = {0, 0}; // bytes of values 0 .. 3 and 4 .. 7

#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            half[i / 4] |= values[8 * q + i] << 8 * (i % 4);
        if (layout == HRK_TILED_Q8_0) {
            uint32_t *to = q < 2 ? low + 2 * q : more + lane * 4 + 2 * (q - 2);

            to[0] = half[0];
            to[1] = half[1];
            continue;
        }
        low[q] = (half[0] & 0x0f0f0f0fu) | (half[1] & 0x0f0f0f0fu) << 4;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            if (layout == HRK_TILED_Q5_K)
                high[0] |= (half[h] >> 4 & 0x01010101u) << (2 * q + h);
            if (layout == HRK_TILED_Q6_K)
                high[q / 2] |= (half[h] >> 4 & 0x03030303u) << (4 * (q % 2) + 2 * h);
        }
    }
    if (layout == HRK_TILED_Q5_K)
        more[lane] = high[0];
    if (layout == HRK_TILED_Q6_K) {
        more[2 * lane] = high[0];
        more[2 * lane + 1] = high[1];
    }
}

__global__ void __launch_bounds__(THREADS) pack_quantised_kernel(const __grid_constant__ hrk_pack_quantised_args a)
{
    const uint32_t k_blocks = hrk_ld(a.cols) / 64, first = a.first_row / 16, n_rows = hrk_ld(a.n_rows) / 16;
    const hrk_slice s = hrk_slice_of(a.layout);
    const size_t n = (size_t)n_rows * k_blocks * 32;
    uint8_t *matrix = static_cast<uint8_t *>(a.to) + hrk_matrix_bytes(a.rows, a.cols, a.n_groups, a.layout) * a.stack;

    prim::griddep_wait();
    prim::griddep_launch();
    for (size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x; at < n; at += (size_t)gridDim.x * THREADS) {
        const uint32_t lane = (uint32_t)(at % 32), k = (uint32_t)(at / 32 % k_blocks);
        const uint32_t slice_row = first + (uint32_t)(at / 32 / k_blocks);
        const uint8_t *rows[2] = {bytes_of(a, row_of(a, slice_row, lane / 4)),
                                  bytes_of(a, row_of(a, slice_row, lane / 4 + 8))};
        uint8_t *slice = matrix + hrk::quantised::strip_bytes(s, k_blocks, a.n_groups) * (slice_row / 4) +
                         hrk::quantised::block_offset(s, k, a.n_groups) +
                         (size_t)(a.group * 4 + slice_row % 4) * hrk::quantised::slice_bytes(s, k);
        uint32_t values[32];

#pragma unroll
        for (uint32_t i = 0; i < 32; i++) {
            const uint32_t q = i / 8, r = i % 8 / 2, col = 64 * k + 16 * q + lane % 4 * 2 + r / 2 * 8 + i % 2;

            values[i] = value_of(a.layout, block_of(a, rows[r % 2], col), col);
        }
        write_values(a.layout, values, lane, slice);
        if (lane % 4 == 0)
            write_scales(a, rows, k, lane / 4, slice);
    }
}

} // namespace

extern "C" int hrk_pack_quantised(const hrk_pack_quantised_args *args, const hrk_launch *on)
{
    const size_t n = (size_t)(hrk_ld(args->n_rows) / 16) * (hrk_ld(args->cols) / 64) * 32;

    if (!hrk_is_quantised(args->layout) || args->rows == 0 || args->cols == 0 ||
        args->cols % format_of(args->layout).values != 0 || args->n_groups < 1 || args->n_groups > 3 ||
        args->group >= args->n_groups || args->first_row > args->rows || args->n_rows > args->rows - args->first_row ||
        args->first_row % 64 != 0 || (args->n_rows % 64 != 0 && args->first_row + args->n_rows != args->rows))
        return cudaErrorInvalidValue;
    if (n == 0)
        return cudaSuccess;
    const size_t wanted = (n + THREADS - 1) / THREADS, most = (size_t)on->n_sms * BLOCKS_PER_SM;
    return hrk::launch(pack_quantised_kernel, {dim3((unsigned)(wanted < most ? wanted : most)), dim3(THREADS)}, on,
                       *args);
}
