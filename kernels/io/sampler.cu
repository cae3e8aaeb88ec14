// The sampler: a token of each wanted row, or the score of a given id; the meaning is csrc/backend/sampling.h.
//
// Bound: reads a row of logits once (V 4 bytes) when top_k up to 512 or min_p leaves few candidates, which is how
// models are run; 1,024 rows of 65,536 are 268 MB. Other requests read the row a few times more, mostly from L2.
//
// One block of 512 threads a row, two a multiprocessor, so that one row streams while another is chosen from. Ways:
// greedy       one pass for the largest, lowest id first.
// few          sampler_scan.h gathers the candidates in one pass, sampler_filter.h ranks them in shared memory.
// nucleus      top_p without top_k: the largest, the mass, then the candidates.
// general      a border found by passes over the row, then a pass that draws.
// The last takes over when candidates do not fit. All give the same kept set, and the draw is an argmax, so the way
// taken does not show in the result.
//
// Rows with a mask, biases or forbidden stop ids are first copied to scratch with those applied; penalties and
// temperature are computed on the fly everywhere.
#include "common/launch.h"
#include "common/tables.h"
#include "io/sampler_draw.h"
#include "io/sampler_score.h"

namespace hrk
{
namespace
{

using namespace sampler;

// ---------------------------------------------------------------- setting up a row

// Adds the biases in their order; an id that comes more than once is one thread's work.
__device__ void add_biases(const hrk_bias *bias, uint32_t n_bias, uint32_t n, float *x)
{
    for (uint32_t j = threadIdx.x; j < n_bias; j += THREADS) {
        const uint32_t id = (uint32_t)bias[j].id;
        bool is_first = id < n;

        for (uint32_t e = 0; e < j && is_first; e++)
            is_first = (uint32_t)bias[e].id != id;
        if (!is_first)
            continue;
        float v = x[id];
        for (uint32_t e = j; e < n_bias; e++) {
            if ((uint32_t)bias[e].id == id)
                v = keep_finite(v, __fadd_rn(v, bias[e].value));
        }
        x[id] = v;
    }
}

// Copies the row to scratch with mask, biases and stop ids applied. Penalties leave -inf as it is, so stop ids may go
// first.
__device__ void prepare(const hrk_sampler_args &a, uint32_t index, uint32_t slot, bool forbids_stop, Row &row)
{
    float *x = a.scratch + (size_t)index * hrk_ld(a.V);
    const uint32_t *mask = a.mask ? a.mask + (size_t)index * ((a.V + 31) / 32) : nullptr;
    const int32_t *stop = a.tables.stop_ids + (size_t)slot * HRK_STOP_IDS_MAX;

    for (uint32_t i = threadIdx.x; i < row.n; i += THREADS)
        x[i] = mask && !(mask[i / 32] >> (i % 32) & 1) ? minus_infinity() : row.x[i];
    __syncthreads();
    add_biases(a.tables.bias + (size_t)slot * HRK_BIAS_MAX, row.p.n_bias, row.n, x);
    __syncthreads();
    if (forbids_stop && threadIdx.x < row.p.n_stop_ids && (uint32_t)stop[threadIdx.x] < row.n)
        x[stop[threadIdx.x]] = minus_infinity();
    __syncthreads();
    if (threadIdx.x == 0)
        row.x = x;
    __syncthreads();
}

__device__ void set_raw_row(const hrk_sampler_args &a, uint32_t index, Row &row)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        row.x = a.logits + (size_t)index * hrk_ld(a.V);
        row.seen = nullptr;
        row.n = min(a.n_valid, a.V);
    }
    __syncthreads();
}

__device__ bool has_penalties(const hrk_sampling &p)
{
    return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

__device__ void set_sampling_row(const hrk_sampler_args &a, uint32_t index, const hrk_output &output, Row &row)
{
    set_raw_row(a, index, row);
    if (threadIdx.x == 0) {
        uint32_t bits = 0;

        row.p = a.tables.sampling[output.slot];
        row.has_k = row.p.top_k > 0 && (uint32_t)row.p.top_k < row.n;
        row.has_p = row.p.top_p < 1.0f;
        row.has_min = row.p.min_p > 0.0f;
        row.key = rng_key(row.p.seed, output.draw);
        row.total = 0;
        if (has_penalties(row.p))
            row.seen = a.tables.seen + (size_t)output.slot * a.tables.seen_ld;
        while (row.n > 1ull << bits)
            bits++;
        row.scale = __uint_as_float((127 + 62 - bits) << 23);
    }
    __syncthreads();
    const bool forbids_stop = output.draw < row.p.min_tokens && row.p.n_stop_ids > 0;
    if (a.mask || row.p.n_bias > 0 || forbids_stop)
        prepare(a, index, output.slot, forbids_stop, row);
}

// ---------------------------------------------------------------- the ways; each returns an id, -1 for a bad row

__device__ int32_t choose_greedy(const Row &row, Shared &shared)
{
    const bool is_lowered = row.is_lowered();
    bool is_bad = false;
    float best = minus_infinity();
    int32_t best_id = -1;

    for (uint32_t base = 0; base < row.n; base += CHUNK) {
        float4 quad[QUADS];

        read_chunk(row, false, base, quad);
#pragma unroll
        for (uint32_t q = 0; q < QUADS; q++) {
            const float v[4] = {quad[q].x, quad[q].y, quad[q].z, quad[q].w};
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                const uint32_t id = quad_id(base, q) + c;

                is_bad |= !(v[c] < INFINITY);
                if (id >= row.n || (is_lowered && !(v[c] > best))) // penalties only take away
                    continue;
                const float logit = row.seen ? row.penalised(v[c], row.seen[id]) : v[c];
                is_bad |= !(logit < INFINITY);
                if (logit > best) {
                    best = logit;
                    best_id = (int32_t)id;
                }
            }
        }
    }
    if (__syncthreads_or(is_bad))
        return -1;
    return block_best((double)best, best_id, shared);
}

// Candidates' logits become logits after temperature; of those in shared memory the largest is the row's.
__device__ void weigh_candidates(Row &row, uint32_t n, Shared &shared)
{
    float top = minus_infinity();

    for (uint32_t c = threadIdx.x; c < n; c += THREADS) {
        shared.value[c] = row.logit((uint32_t)shared.id[c]);
        top = fmaxf(top, shared.value[c]);
    }
    row.set_top(block_max(top, shared));
    for (uint32_t c = threadIdx.x; c < n; c += THREADS) {
        shared.value[c] = row.z_of(shared.value[c]);
        shared.mass[c] = row.fixed(row.weight(shared.value[c]));
    }
    __syncthreads();
}

__device__ int32_t choose_candidate(Row &row, Shared &shared)
{
    const uint32_t n = shared.count;

    weigh_candidates(row, n, shared);
    rank_candidates(row, n, shared);
    return draw_candidate(row, n, shared);
}

// Returns false if there are too many candidates.
__device__ bool choose_few(Row &row, int32_t *id, Shared &shared)
{
    const bool looks_up = !row.is_lowered();
    bool is_bad = false;
    const float largest = collect(row, looks_up, true, minus_infinity(), &is_bad, shared);

    *id = -1;
    if (__syncthreads_or(is_bad) || !is_finite(block_max(largest, shared)))
        return true;
    if (shared.count > CAPACITY) {
        const float bound = bound_of(row, looks_up, largest, shared);

        collect(row, looks_up, false, bound, &is_bad, shared);
        if (shared.count > CAPACITY)
            return false;
    }
    *id = choose_candidate(row, shared);
    return true;
}

// The row's top is known. What lies so far below it that a whole row of it weighs less than half of what top_p drops is
// no candidate.
__device__ bool choose_nucleus(Row &row, int32_t *id, Shared &shared)
{
    const double mass = (double)row.total / (double)row.scale, dropped = 0.5 * (1.0 - (double)row.p.top_p);
    const float bound = row.top_z - (float)log((double)row.n / (dropped * mass)) - 1e-3f;
    const float x = row.p.temperature == 1.0f ? bound : bound * row.p.temperature + row.shift;
    bool is_bad = false;

    collect(row, true, false, x - slack(x, row.top), &is_bad, shared);
    if (shared.count > CAPACITY)
        return false;
    *id = choose_candidate(row, shared);
    return true;
}

__device__ int32_t choose(Row &row, Shared &shared)
{
    const bool has_few = row.has_k ? row.p.top_k <= (int32_t)THREADS : row.has_min && !row.has_p;
    int32_t id;

    if (!(row.p.temperature > 0))
        return choose_greedy(row, shared);
    if ((has_few || (row.n <= CAPACITY && !(row.has_p && !row.has_k))) && choose_few(row, &id, shared))
        return id;
    if (find_top(row, shared))
        return -1;
    if (row.has_p && !row.has_k) {
        row.set_total(row_mass(row, shared));
        if (choose_nucleus(row, &id, shared))
            return id;
    }
    return draw_row(row, find_border(row, shared), shared);
}

// ---------------------------------------------------------------- kernel

__device__ void note_token(const hrk_sampler_args &a, const Row &row, uint32_t slot, int32_t id)
{
    a.tables.next_token[slot] = id < 0 ? 0 : id;
    if (id < 0 || !row.seen)
        return;
    uint16_t *seen = a.tables.seen + (size_t)slot * a.tables.seen_ld + id;
    if ((*seen & HRK_OUTPUT_COUNT) < HRK_OUTPUT_COUNT)
        (*seen)++;
}

__global__ void __launch_bounds__(THREADS, 2) sampler_kernel(const __grid_constant__ hrk_sampler_args a)
{
    __shared__ Shared shared;
    __shared__ Row row;
    const uint32_t index = blockIdx.x;

    prim::griddep_wait();
    prim::griddep_launch();
    if (index >= a.tables.step->n_outputs)
        return;
    const hrk_output &output = outputs(a.tables.step)[index];
    hrk_sample *out = &a.samples[index];
    int32_t id = output.score_id;
    if (id < 0 && !output.is_sampled)
        return;

    if (threadIdx.x == 0)
        *out = {};
    if (id < 0) {
        set_sampling_row(a, index, output, row);
        id = choose(row, shared);
        if (threadIdx.x == 0) {
            note_token(a, row, output.slot, id);
            out->is_bad = id < 0;
            out->id = id < 0 ? 0 : id;
        }
        if (id < 0 || output.n_logprobs == 0)
            return;
    } else if (threadIdx.x == 0) {
        out->id = id;
    }
    set_raw_row(a, index, row);
    score_id(row, id, min(output.n_logprobs > 0 ? output.n_logprobs - 1 : 0u, (uint32_t)HRK_TOP_MAX), out,
             a.tops + (size_t)index * HRK_TOP_MAX, shared);
}

} // namespace
} // namespace hrk

extern "C" int hrk_sampler(const hrk_sampler_args *args, const hrk_launch *on)
{
    using namespace hrk;
    LaunchShape shape;

    if (args->max_outputs == 0 || args->V == 0 || args->n_valid == 0 || args->V > 1u << 30)
        return (int)cudaErrorInvalidValue;
    shape.grid = dim3(args->max_outputs);
    shape.block = dim3(THREADS);
    return launch(sampler_kernel, shape, on, *args);
}
