// hrk_conv: equations 5, 6 and the gate of 7 (docs/lfm2.md) from rows of B, C and X that hrk_linear has multiplied. The
// reference of the fused hrk_conv_in, and the way for biases and for L other than 3 or 4.
//
// Bound: memory, 8 ld(H) bytes a row, for a decode row also the state, 4 (L - 1) H. A thread has eight channels (16
// bytes) of a few consecutive rows and carries the last L - 1 columns in registers. Where its rows begin inside a span
// it computes the columns before them again from B and X, which lie in the cache: rows need no order among blocks, so a
// prompt of 8,192 rows is spread over the whole device, and a column is the same bits whoever makes it. The state is
// read from state_in and written to state_out, which no other span reads.
#include "common/launch.h"
#include "common/prim.h"
#include "common/tables.h"
#include "conv/conv.h"
#include "norm/norm.h"

namespace
{

enum { THREADS = 128, CHUNK = 8, MAX_ROWS_PER_THREAD = 8, BLOCKS_WANTED = 256 };

// bf16(B X) of eight channels of a row.
__device__ __forceinline__ uint4 input_chunk(const hrk_conv_args &a, size_t row, uint32_t channel)
{
    const hrk_bf16 *b = a.bcx + row * hrk_ld(3 * a.H) + channel;
    float bv[CHUNK], xv[CHUNK];

    hrk::unpack_chunk(*reinterpret_cast<const uint4 *>(b), bv);
    hrk::unpack_chunk(*reinterpret_cast<const uint4 *>(b + 2 * a.H), xv);
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        bv[i] = hrk::conv_input(bv[i], xv[i]);
    return hrk::pack_chunk(bv);
}

// The column `back` rows before the first row of a span, back 1 .. L - 1.
template <int L>
__device__ __forceinline__ uint4 state_chunk(const hrk_conv_args &a, const hrk_span &span, uint32_t back,
                                             uint32_t channel)
{
    if (span.state_in < 0)
        return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>(a.state.base + (size_t)span.state_in * a.state.state_stride +
                                            (size_t)(L - 1 - back) * a.H + channel);
}

// The L - 1 columns before a row, oldest first.
template <int L>
__device__ __forceinline__ void load_window(const hrk_conv_args &a, const hrk_span &span, uint32_t row,
                                            uint32_t channel, uint4 (&window)[L - 1])
{
    const uint32_t offset = row - span.first_row;
#pragma unroll
    for (uint32_t j = 0; j < L - 1; j++) {
        const uint32_t back = L - 1 - j;

        window[j] =
            back <= offset ? input_chunk(a, row - back, channel) : state_chunk<L>(a, span, back - offset, channel);
    }
}

__device__ __forceinline__ float channel_of(const uint4 &chunk, int i)
{
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};

    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}

template <int L>
__device__ __forceinline__ uint4 conv_chunk(const float (&taps)[CHUNK][L], const float (&bias)[CHUNK],
                                            const uint4 (&window)[L - 1], const uint4 &u, const uint4 &c)
{
    float y[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float columns[L];
#pragma unroll
        for (int j = 0; j < L - 1; j++)
            columns[j] = channel_of(window[j], i);
        columns[L - 1] = channel_of(u, i);
        y[i] = hrk::conv_gate(channel_of(c, i), hrk::conv_sum<L>(taps[i], columns, bias[i]));
    }
    return hrk::pack_chunk(y);
}

__device__ void zero_padding(const hrk_conv_args &a, uint32_t first, uint32_t end, uint32_t channel)
{
    for (size_t row = first; row < end; row++) {
        *reinterpret_cast<uint4 *>(a.y + row * hrk_ld(a.H) + channel) = make_uint4(0, 0, 0, 0);
        if (a.bx)
            *reinterpret_cast<uint4 *>(a.bx + row * hrk_ld(a.H) + channel) = make_uint4(0, 0, 0, 0);
    }
}

template <int L>
__global__ void __launch_bounds__(THREADS)
    conv_kernel(const __grid_constant__ hrk_conv_args a, uint32_t rows_per_thread)
{
    const uint32_t channel = (blockIdx.x * THREADS + threadIdx.x) * CHUNK;
    float taps[CHUNK][L], bias[CHUNK];
    uint4 window[L - 1];

    if (channel < a.H) {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            bias[i] = a.conv_bias ? a.conv_bias[channel + i] : 0.0f;
#pragma unroll
            for (int j = 0; j < L; j++)
                taps[i][j] = a.taps[((size_t)channel + i) * L + j];
        }
    }
    prim::griddep_wait();
    prim::griddep_launch();
    const hrk_step *step = a.tables.step;
    const uint32_t first = blockIdx.y * rows_per_thread, end = min(first + rows_per_thread, step->n_rows);
    if (first >= end || channel >= hrk_ld(a.H))
        return;
    if (channel >= a.H) {
        zero_padding(a, first, end, channel);
        return;
    }
    uint32_t s = a.tables.row_span[first];
    hrk_span span = hrk::spans(step)[s];
    load_window<L>(a, span, first, channel, window);
    for (uint32_t row = first; row < end; row++) {
        if (row == span.first_row + span.n_rows) {
            span = hrk::spans(step)[++s];
            load_window<L>(a, span, row, channel, window);
        }
        const uint4 u = input_chunk(a, row, channel);
        const uint4 c = *reinterpret_cast<const uint4 *>(a.bcx + (size_t)row * hrk_ld(3 * a.H) + a.H + channel);
        const size_t at = (size_t)row * hrk_ld(a.H) + channel;
        *reinterpret_cast<uint4 *>(a.y + at) = conv_chunk<L>(taps, bias, window, u, c);
        if (a.bx)
            *reinterpret_cast<uint4 *>(a.bx + at) = u;
#pragma unroll
        for (int j = 0; j < L - 2; j++)
            window[j] = window[j + 1];
        window[L - 2] = u;
        if (row + 1 == span.first_row + span.n_rows && span.state_out >= 0) {
            hrk_bf16 *state = a.state.base + (size_t)span.state_out * a.state.state_stride + channel;
#pragma unroll
            for (int j = 0; j < L - 1; j++)
                *reinterpret_cast<uint4 *>(state + (size_t)j * a.H) = window[j];
        }
    }
}

template <int L> int launch_conv(const hrk_conv_args *args, const hrk_launch *on)
{
    const uint32_t per_block = THREADS * CHUNK, columns = (hrk_ld(args->H) + per_block - 1) / per_block;
    uint32_t rows = args->max_rows / BLOCKS_WANTED;

    rows = rows < 1 ? 1 : rows > MAX_ROWS_PER_THREAD ? (uint32_t)MAX_ROWS_PER_THREAD : rows;
    return hrk::launch(conv_kernel<L>, {dim3(columns, (args->max_rows + rows - 1) / rows), dim3(THREADS)}, on, *args,
                       rows);
}

} // namespace

// H and the state's stride in whole 16-byte chunks; at most 8 * 65,535 rows.
extern "C" int hrk_conv(const hrk_conv_args *args, const hrk_launch *on)
{
    if (args->H == 0 || args->H % CHUNK != 0 || args->state.state_stride % CHUNK != 0 || args->max_rows == 0 ||
        args->max_rows > MAX_ROWS_PER_THREAD * 65535u)
        return cudaErrorInvalidValue;
    switch (args->L) {
    case 2:
        return launch_conv<2>(args, on);
    case 3:
        return launch_conv<3>(args, on);
    case 4:
        return launch_conv<4>(args, on);
    case 5:
        return launch_conv<5>(args, on);
    case 6:
        return launch_conv<6>(args, on);
    case 7:
        return launch_conv<7>(args, on);
    case 8:
        return launch_conv<8>(args, on);
    default:
        return cudaErrorInvalidValue;
    }
}
