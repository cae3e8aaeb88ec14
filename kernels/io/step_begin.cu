// hrk_step_begin: the step's tables, and its rows embedded and normalised (docs/lfm2.md, equations 1 and 2).
//
// Bound: memory, 6 ld(H) bytes a row, and latency: everything after waits for it. The first TABLE_BLOCKS blocks apply
// what changed of the tables that live across steps; nothing else here reads those tables. The other blocks have one
// row a warp: a lane finds the row's span together with its warp (32 spans at a look, so 1,024 spans take two loads),
// the id of HRK_TOKEN_FROM_SLOT where the sampler of the step before left it, and the row passes through registers from
// the embedding to x and, normalised by norm.h, to xn.
//
// Updates of one slot are made by one block, in their order; so a slot may have several in a step.
#include "common/launch.h"
#include "common/tables.h"
#include "norm/norm.h"

namespace
{

enum { WARPS = 4, THREADS = 32 * WARPS, TABLE_BLOCKS = 32 };

// The span of a row: the last one that begins at or before it. A full warp, the same row in every lane.
__device__ uint32_t find_span(const hrk_step *step, uint32_t row, uint32_t lane)
{
    const hrk_span *spans = hrk::spans(step);
    uint32_t low = 0, high = step->n_spans;

    while (high - low > 1) {
        const uint32_t stride = (high - low + 31) / 32, at = low + lane * stride;
        const uint32_t before = __ballot_sync(0xffffffffu, at < high && spans[at].first_row <= row);

        low += (31u - (uint32_t)__clz((int)(before | 1u))) * stride;
        high = min(low + stride, high);
    }
    return low;
}

__device__ void begin_row(const hrk_step_begin_args &a, uint32_t row, uint32_t lane)
{
    const hrk_step *step = a.tables.step;
    const uint32_t s = find_span(step, row, lane);
    const hrk_span span = hrk::spans(step)[s];
    const size_t ld = hrk_ld(a.H);
    int32_t id = HRK_TOKEN_FROM_SLOT;

    if (row >= step->n_slot_rows)
        id = hrk::section<int32_t>(step, step->tokens_at)[row - step->n_slot_rows];
    if (id == HRK_TOKEN_FROM_SLOT)
        id = a.tables.next_token[span.slot];
    if ((uint32_t)id >= a.V)
        id = 0; // a slot that never sampled; the host lets no such row count
    if (lane == 0) {
        a.tables.row_token[row] = id;
        a.tables.row_position[row] = span.start_position + (row - span.first_row);
        a.tables.row_span[row] = s;
    }
    const hrk_bf16 *from = a.embedding + (size_t)id * ld;
    hrk_bf16 *x = a.x + row * ld, *xn = a.xn + row * ld;
    if (hrk::norm_segments(a.H) <= hrk::NORM_SEGMENTS_IN_HAND) {
        uint4 chunk[hrk::NORM_SEGMENTS_IN_HAND];
#pragma unroll
        for (uint32_t i = 0; i < hrk::NORM_SEGMENTS_IN_HAND; i++)
            chunk[i] = hrk::row_chunk(from, i, lane, a.H);
#pragma unroll
        for (uint32_t i = 0; i < hrk::NORM_SEGMENTS_IN_HAND; i++) {
            const uint32_t first = i * hrk::NORM_SEGMENT + lane * hrk::NORM_CHUNK;

            if (first < ld)
                *reinterpret_cast<uint4 *>(x + first) = chunk[i];
        }
        hrk::row_norm_in_hand(chunk, a.norm, a.H, a.eps, xn, lane);
        return;
    }
    for (uint32_t first = lane * hrk::NORM_CHUNK; first < ld; first += hrk::NORM_SEGMENT)
        *reinterpret_cast<uint4 *>(x + first) = *reinterpret_cast<const uint4 *>(from + first);
    hrk::row_norm(from, a.norm, a.H, a.eps, xn, lane);
}

__device__ void update_pages(const hrk_tables &tables)
{
    const hrk_step *step = tables.step;
    const hrk_page_update *updates = hrk::section<hrk_page_update>(step, step->pages_at);

    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < step->n_page_updates; i += TABLE_BLOCKS * THREADS) {
        const hrk_page_update u = updates[i];

        if (u.index < tables.max_pages)
            tables.page_table[(size_t)u.slot * tables.max_pages + u.index] = u.page;
    }
}

__device__ void update_sampling(const hrk_tables &tables)
{
    const hrk_step *step = tables.step;

    for (uint32_t i = 0; i < step->n_sampling_updates; i++) {
        const hrk_sampling_update &u = hrk::section<hrk_sampling_update>(step, step->sampling_at)[i];
        const uint32_t slot = u.slot;

        if (slot % TABLE_BLOCKS != blockIdx.x)
            continue;
        const uint32_t n_bias = min(u.sampling.n_bias, (uint32_t)HRK_BIAS_MAX);
        const uint32_t n_stop = min(u.sampling.n_stop_ids, (uint32_t)HRK_STOP_IDS_MAX);
        const hrk_bias *bias = hrk::section<hrk_bias>(step, u.bias_at);
        const int32_t *stop = hrk::section<int32_t>(step, u.stop_at);
        if (threadIdx.x == 0)
            tables.sampling[slot] = u.sampling;
        for (uint32_t j = threadIdx.x; j < n_bias; j += THREADS)
            tables.bias[(size_t)slot * HRK_BIAS_MAX + j] = bias[j];
        for (uint32_t j = threadIdx.x; j < n_stop; j += THREADS)
            tables.stop_ids[(size_t)slot * HRK_STOP_IDS_MAX + j] = stop[j];
        __syncthreads();
    }
}

// One more of an id in the output, up to HRK_OUTPUT_COUNT. Two entries share a word.
__device__ void count_output(uint32_t *word, uint32_t shift)
{
    uint32_t old = atomicOr(word, 0u);

    while ((old >> shift & HRK_OUTPUT_COUNT) != HRK_OUTPUT_COUNT) {
        const uint32_t seen = atomicCAS(word, old, old + (1u << shift));

        if (seen == old)
            return;
        old = seen;
    }
}

__device__ void apply_history(const hrk_tables &tables, const hrk_history_job &job)
{
    uint16_t *row = tables.seen + (size_t)job.slot * tables.seen_ld;
    const int32_t *ids = hrk::section<int32_t>(tables.step, job.ids_at);
    uint32_t *words = reinterpret_cast<uint32_t *>(row);

    if (job.reset) {
        for (uint32_t j = threadIdx.x * 8; j < tables.seen_ld; j += THREADS * 8)
            *reinterpret_cast<uint4 *>(row + j) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < job.n_prompt + job.n_output; j += THREADS) {
        const uint32_t id = (uint32_t)ids[j], shift = id % 2 * 16;

        if (id >= tables.seen_ld)
            continue;
        if (j < job.n_prompt)
            atomicOr(words + id / 2, (uint32_t)HRK_SEEN_IN_PROMPT << shift);
        else
            count_output(words + id / 2, shift);
    }
    __syncthreads();
}

__device__ void update_history(const hrk_tables &tables)
{
    const hrk_step *step = tables.step;

    for (uint32_t i = 0; i < step->n_history_jobs; i++) {
        const hrk_history_job &job = hrk::section<hrk_history_job>(step, step->history_at)[i];

        if (job.slot % TABLE_BLOCKS == blockIdx.x)
            apply_history(tables, job);
    }
}

__global__ void __launch_bounds__(THREADS) step_begin_kernel(const __grid_constant__ hrk_step_begin_args a)
{
    prim::griddep_wait();
    prim::griddep_launch();
    if (blockIdx.x < TABLE_BLOCKS) {
        update_pages(a.tables);
        update_sampling(a.tables);
        update_history(a.tables);
        return;
    }
    const uint32_t row = (blockIdx.x - TABLE_BLOCKS) * WARPS + threadIdx.x / 32;
    if (row < a.tables.step->n_rows)
        begin_row(a, row, threadIdx.x % 32);
}

} // namespace

extern "C" int hrk_step_begin(const hrk_step_begin_args *args, const hrk_launch *on)
{
    if (args->H == 0 || args->V == 0 || args->max_rows == 0 || args->tables.seen_ld % 8 != 0)
        return cudaErrorInvalidValue;
    const unsigned row_blocks = (args->max_rows + WARPS - 1) / WARPS;
    return hrk::launch(step_begin_kernel, {dim3(TABLE_BLOCKS + row_blocks), dim3(THREADS)}, on, *args);
}

// Any kernel will do: all are compiled for the same architectures.
extern "C" int hrk_check_device(void)
{
    cudaFuncAttributes attributes;

    return (int)cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(step_begin_kernel));
}
