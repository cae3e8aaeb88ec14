/* The host sampler: penalties, temperature, top_k, top_p, min_p, and a draw that needs no order.
 *
 * The vocabulary is never sorted. One pass finds the largest logit and the largest of each block of 64; the k-th
 * largest block maximum is a lower bound of the k-th largest logit (at least k logits reach it), so one more pass
 * collects little more than the k wanted. top_p drops a tail by mass: whatever lies so far below the maximum that a
 * whole vocabulary of it would weigh less than half of 1 - top_p is dropped unseen, the rest is parted by a quickselect
 * that adds up mass instead of counting. Only when nothing filters are all ids candidates, and then the draw skips
 * almost every logarithm (see draw).
 *
 * Each shortcut is exactly equivalent to the plain formula; the tests compare with transformers' processors.
 *
 * exp is computed here and not by libm: a polynomial in plain multiplications and additions, which compilers vectorise
 * and which gives the same bits everywhere.
 */
#include "backend/sampling.h"

#include "base/numeric.h"
#include "base/rng.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, LANES = 8 };
#define DONE 0x80000000u /* in hr_sampler.count: this id's penalties were applied */

struct hr_sampler {
    uint32_t vocab_size;
    hr_candidate *kept; /* [V] */
    float *raw;         /* [V], a copy of the logits for logprobs */
    float *block_max;   /* [V / BLOCK, rounded up] */
    uint32_t *count;    /* [V], zero between calls */
};

hr_sampler *hr_sampler_create(uint32_t vocab_size)
{
    hr_sampler *sampler = calloc(1, sizeof *sampler);
    size_t n = vocab_size > 0 ? vocab_size : 1;

    if (!sampler)
        return NULL;
    sampler->vocab_size = vocab_size;
    sampler->kept = malloc(n * sizeof *sampler->kept);
    sampler->raw = malloc(n * sizeof *sampler->raw);
    sampler->block_max = malloc((n + BLOCK - 1) / BLOCK * sizeof *sampler->block_max);
    sampler->count = calloc(n, sizeof *sampler->count);
    if (!sampler->kept || !sampler->raw || !sampler->block_max || !sampler->count) {
        hr_sampler_destroy(sampler);
        return NULL;
    }
    return sampler;
}

void hr_sampler_destroy(hr_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->kept);
    free(sampler->raw);
    free(sampler->block_max);
    free(sampler->count);
    free(sampler);
}

/* exp(x) for x <= 0, exact at 0, within 2e-7 elsewhere; 0 below -87 (where fp32 would turn subnormal).
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 split in two so that r keeps its low bits. */
static inline float exp_negative(float x)
{
    float clamped = x > -87.0f ? x : -87.0f;
    float shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 x 2^23: the fraction is rounded away */
    float n = shifted - 12582912.0f;
    float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float y = 1.0f + r * (1.0f + r * (0.5f + r * (1.66666657e-1f +
                                                  r * (4.16657962e-2f + r * (8.33345205e-3f + r * 1.39879552e-3f)))));
    float scale = hr_bits_to_f32((uint32_t)((int32_t)n + 127) << 23);

    return x < -87.0f ? 0.0f : y * scale;
}

/* Sum of exp(z - top) over all, in double a block at a time. */
static double sum_weights(const float *z, uint32_t n, float top)
{
    double sum = 0.0;
    uint32_t i = 0;

    for (; i + BLOCK <= n; i += BLOCK) {
        float lane[LANES] = {0};

        for (uint32_t j = 0; j < BLOCK; j += LANES)
            for (uint32_t l = 0; l < LANES; l++)
                lane[l] += exp_negative(z[i + j + l] - top);
        for (uint32_t l = 0; l < LANES; l++)
            sum += (double)lane[l];
    }
    for (; i < n; i++)
        sum += (double)exp_negative(z[i] - top);
    return sum;
}

/* Block maxima and the largest of all; *is_bad for NaN, +inf, or nothing finite. */
static float scan(const float *z, uint32_t n, float *block_max, bool *is_bad)
{
    float top = -INFINITY;
    bool has_nan = false;

    for (uint32_t i = 0, b = 0; i < n; i += BLOCK, b++) {
        uint32_t end = n - i < BLOCK ? n - i : BLOCK, j = 0;
        float lane[LANES], best = -INFINITY;
        int32_t nan[LANES] = {0};

        for (uint32_t l = 0; l < LANES; l++)
            lane[l] = -INFINITY;
        for (; j + LANES <= end; j += LANES)
            for (uint32_t l = 0; l < LANES; l++) {
                float x = z[i + j + l];

                lane[l] = x > lane[l] ? x : lane[l];
                nan[l] |= x != x;
            }
        for (; j < end; j++) {
            best = z[i + j] > best ? z[i + j] : best;
            has_nan |= z[i + j] != z[i + j];
        }
        for (uint32_t l = 0; l < LANES; l++) {
            best = lane[l] > best ? lane[l] : best;
            has_nan |= nan[l] != 0;
        }
        block_max[b] = best;
        top = best > top ? best : top;
    }
    *is_bad = has_nan || !isfinite(top);
    return top;
}

/* ---------------------------------------------------------------- penalties */

/* A request's numbers must not turn a finite logit into an infinite one: that would look like a broken model. */
static float keep_finite(float before, float after)
{
    if (!isfinite(before) || isfinite(after))
        return after;
    return after > 0 ? FLT_MAX : -FLT_MAX;
}

static bool has_penalties(const hr_sampling_params *params)
{
    return params->repetition_penalty != 1.0f || params->presence_penalty != 0.0f || params->frequency_penalty != 0.0f;
}

static void penalise(float *logit, uint32_t n_output, const hr_sampling_params *params)
{
    float before = *logit, x = before;

    if (params->repetition_penalty != 1.0f)
        x = x < 0 ? x * params->repetition_penalty : x / params->repetition_penalty;
    if (n_output > 0) {
        x -= params->frequency_penalty * (float)n_output;
        x -= params->presence_penalty;
    }
    *logit = keep_finite(before, x);
}

/* Every distinct id of the history once; repetition looks at all of it, presence and frequency at the output. */
static void apply_penalties(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                            const hr_history *history)
{
    uint32_t *count = sampler->count;
    uint32_t first = params->repetition_penalty != 1.0f ? 0 : history->n_prompt;

    for (uint32_t i = history->n_prompt; i < history->n_total; i++)
        if ((uint32_t)history->ids[i] < n_valid)
            count[history->ids[i]]++;
    for (uint32_t i = first; i < history->n_total; i++) {
        uint32_t id = (uint32_t)history->ids[i];

        if (id >= n_valid || count[id] & DONE)
            continue;
        penalise(&logits[id], count[id], params);
        count[id] |= DONE;
    }
    for (uint32_t i = first; i < history->n_total; i++)
        if ((uint32_t)history->ids[i] < n_valid)
            count[history->ids[i]] = 0;
}

static void apply_sparse(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                         const hr_history *history)
{
    for (uint32_t i = 0; i < params->n_bias; i++) {
        uint32_t id = (uint32_t)params->bias[i].id;

        if (id < n_valid)
            logits[id] = keep_finite(logits[id], logits[id] + params->bias[i].value);
    }
    if (has_penalties(params))
        apply_penalties(sampler, logits, n_valid, params, history);
    if (history->n_total - history->n_prompt < params->min_tokens)
        for (uint32_t i = 0; i < params->n_stop_ids; i++)
            if ((uint32_t)params->stop_ids[i] < n_valid)
                logits[params->stop_ids[i]] = -INFINITY;
}

/* Divides by the temperature as transformers does; where that would overflow (a temperature near 0), by distance from
 * the top, which the softmax cannot tell apart. */
static void apply_temperature(float *z, uint32_t n, float temperature, float top)
{
    float shift = isfinite(top / temperature) ? 0.0f : top;

    for (uint32_t i = 0; i < n; i++)
        z[i] = (z[i] - shift) / temperature;
}

/* ---------------------------------------------------------------- selection */

/* Ascending by logit, among equals the higher id first (top_p then drops the higher ids): no two candidates are equal,
 * so a two-way partition is enough. */
static inline bool comes_before(const hr_candidate *a, const hr_candidate *b)
{
    return a->z < b->z || (a->z == b->z && a->id > b->id);
}

static inline void swap(hr_candidate *a, hr_candidate *b)
{
    hr_candidate t = *a;

    *a = *b;
    *b = t;
}

/* Parts [lo, hi) around a pivot and returns where the pivot ended; *mass is the weight of what lies before it. The
 * pivot is picked by a hash of the range, so no input order is a bad one by design and the result is still a pure
 * function. */
static uint32_t part(hr_candidate *c, uint32_t lo, uint32_t hi, double *mass)
{
    uint32_t pivot = lo + (uint32_t)(hr_mix64((uint64_t)lo << 32 | hi) % (hi - lo)), at = lo;
    double sum = 0.0;

    swap(&c[pivot], &c[hi - 1]);
    for (uint32_t i = lo; i + 1 < hi; i++)
        if (comes_before(&c[i], &c[hi - 1])) {
            sum += (double)c[i].weight;
            swap(&c[i], &c[at++]);
        }
    swap(&c[at], &c[hi - 1]);
    *mass = sum;
    return at;
}

/* The value of the k-th largest of n candidates, 1 <= k <= n. Reorders. */
static float kth_largest(hr_candidate *c, uint32_t n, uint32_t k)
{
    uint32_t lo = 0, hi = n, want = n - k;
    double mass;

    for (;;) {
        uint32_t at = part(c, lo, hi, &mass);

        if (at == want)
            return c[at].z;
        if (at < want)
            lo = at + 1;
        else
            hi = at;
    }
}

/* Moves the candidates that top_p keeps to the front and returns their number, at least 1. total is the weight of
 * everything that top_p looks at, of which `below` lies under all candidates given. */
static uint32_t keep_top_p(hr_candidate *c, uint32_t n, float top_p, double total, double below)
{
    float limit = 1.0f - top_p;
    uint32_t lo = 0, hi = n;

    while (lo < hi) {
        double mass;
        uint32_t at = part(c, lo, hi, &mass);
        double running = below + mass + (double)c[at].weight;

        if ((float)(running / total) <= limit) {
            below = running;
            lo = at + 1;
        } else {
            hi = at;
        }
    }
    if (lo == n) { /* the running sum never passed the limit: the last one stays */
        uint32_t last = 0;

        for (uint32_t i = 1; i < n; i++)
            if (comes_before(&c[last], &c[i]))
                last = i;
        swap(&c[last], &c[n - 1]);
        lo = n - 1;
    }
    memmove(c, c + lo, (n - lo) * sizeof *c);
    return n - lo;
}

/* A value that at least k logits reach: the k-th largest block maximum. kept is not filled yet and serves as scratch.
 */
static float top_k_bound(hr_sampler *sampler, uint32_t n_valid, uint32_t k)
{
    uint32_t n_blocks = (n_valid + BLOCK - 1) / BLOCK;

    if (k > n_blocks)
        return -INFINITY;
    for (uint32_t b = 0; b < n_blocks; b++)
        sampler->kept[b] = (hr_candidate){sampler->block_max[b], 0.0f, (int32_t)b};
    return kth_largest(sampler->kept, n_blocks, k);
}

static uint32_t collect(hr_sampler *sampler, const float *z, uint32_t n, float bound, float top)
{
    uint32_t n_kept = 0;

    for (uint32_t i = 0, b = 0; i < n; i += BLOCK, b++) {
        uint32_t end = n - i < BLOCK ? n : i + BLOCK;

        if (sampler->block_max[b] < bound)
            continue;
        for (uint32_t id = i; id < end; id++)
            if (z[id] >= bound && z[id] != -INFINITY)
                sampler->kept[n_kept++] = (hr_candidate){z[id], exp_negative(z[id] - top), (int32_t)id};
    }
    return n_kept;
}

static double weigh(const hr_candidate *c, uint32_t n)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)c[i].weight;
    return sum;
}

/* top_k, top_p, min_p over z [n]; returns how many of sampler->kept remain. */
static uint32_t filter(hr_sampler *sampler, const float *z, uint32_t n, float top, const hr_sampling_params *params)
{
    bool has_k = params->top_k > 0 && (uint32_t)params->top_k < n, has_p = params->top_p < 1.0f;
    bool has_min = params->min_p > 0.0f;
    uint32_t k = has_k ? (uint32_t)params->top_k : n, n_kept, n_left = 0;
    float bound = has_k ? top_k_bound(sampler, n, k) : -INFINITY;
    double total = 0.0;
    hr_candidate *c = sampler->kept;

    if (has_p && !has_k) {
        /* n logits at bound weigh n exp(bound - top) = half of what top_p drops. */
        total = sum_weights(z, n, top);
        bound = top - (float)log((double)n / (0.5 * (1.0 - (double)params->top_p) * total)) - 1e-3f;
    } else if (has_min && !has_p) {
        /* min_p alone looks only at the ratio to the top, so it may go before top_k; the exact test comes below. */
        bound = fmaxf(bound, top + logf(params->min_p) - 1e-3f);
    }
    n_kept = collect(sampler, z, n, fminf(bound, top), top);
    if (has_k && n_kept > k) {
        float kth = kth_largest(c, n_kept, k);

        for (uint32_t i = 0; i < n_kept; i++)
            if (c[i].z >= kth)
                c[n_left++] = c[i];
        n_kept = n_left;
    }
    if (has_p) {
        double inside = weigh(c, n_kept);

        if (has_k)
            total = inside;
        n_kept = keep_top_p(c, n_kept, params->top_p, total, total > inside ? total - inside : 0.0);
    }
    if (has_min) {
        n_left = 0;
        for (uint32_t i = 0; i < n_kept; i++)
            if (c[i].weight >= params->min_p)
                c[n_left++] = c[i];
        n_kept = n_left;
    }
    return n_kept;
}

/* The lowest id with the largest logit, found through its block. */
static int32_t argmax(const hr_sampler *sampler, const float *z, uint32_t n, float top)
{
    for (uint32_t i = 0, b = 0; i < n; i += BLOCK, b++) {
        if (sampler->block_max[b] < top)
            continue;
        for (uint32_t id = i; id < n; id++)
            if (z[id] == top)
                return (int32_t)id;
    }
    return 0;
}

uint32_t hr_sampler_process(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                            const hr_history *history, const hr_candidate **kept)
{
    bool is_bad;
    float top;

    if (n_valid > sampler->vocab_size)
        n_valid = sampler->vocab_size;
    *kept = sampler->kept;
    apply_sparse(sampler, logits, n_valid, params, history);
    top = scan(logits, n_valid, sampler->block_max, &is_bad);
    if (is_bad)
        return 0;
    if (!(params->temperature > 0.0f)) {
        sampler->kept[0] = (hr_candidate){top, 1.0f, argmax(sampler, logits, n_valid, top)};
        return 1;
    }
    if (params->temperature != 1.0f) {
        apply_temperature(logits, n_valid, params->temperature, top);
        top = scan(logits, n_valid, sampler->block_max, &is_bad);
    }
    return filter(sampler, logits, n_valid, top, params);
}

/* ---------------------------------------------------------------- draw */

/* argmax of z + g, g = -log(-log u). A candidate can only win if g > best - z =: t, that is u > exp(-exp(-t)) >= 1 -
 * exp(-t), so 1 - u < exp(z - best) = weight exp(top - best) is necessary: one multiplication instead of two
 * logarithms, and about log(n) candidates pass. The margin covers the rounding of weight. */
static int32_t draw(const hr_candidate *c, uint32_t n, uint64_t key)
{
    uint32_t first = 0;
    double best = -HUGE_VAL, reach = HUGE_VAL, top;
    int32_t best_id = -1;

    for (uint32_t i = 1; i < n; i++)
        if (c[i].z > c[first].z)
            first = i;
    top = (double)c[first].z;
    for (uint32_t i = 0; i < n; i++) {
        const hr_candidate *at = &c[i == 0 ? first : i == first ? 0 : i]; /* the likeliest first: it sets the bar */
        double u = hr_rng_unit(hr_rng_at(key, (uint64_t)(uint32_t)at->id)), score;

        if (1.0 - u > (double)at->weight * reach * 1.0001)
            continue;
        score = (double)at->z - log(-log(u));
        if (score > best || (score == best && at->id < best_id)) {
            best = score;
            best_id = at->id;
            reach = exp(top - best);
        }
    }
    return best_id;
}

void hr_sample_token(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                     const hr_history *history, int32_t n_logprobs, hr_sample *out)
{
    const hr_candidate *kept;
    uint32_t n_kept;
    int32_t id;

    memset(out, 0, sizeof *out);
    if (n_valid > sampler->vocab_size)
        n_valid = sampler->vocab_size;
    if (n_logprobs >= 0)
        memcpy(sampler->raw, logits, (size_t)n_valid * sizeof *logits);
    n_kept = hr_sampler_process(sampler, logits, n_valid, params, history, &kept);
    if (n_kept == 0) {
        out->is_bad = true;
        return;
    }
    id = n_kept == 1 ? kept[0].id : draw(kept, n_kept, hr_rng_key(params->seed, history->n_total - history->n_prompt));
    if (n_logprobs >= 0)
        hr_score_token(sampler, sampler->raw, n_valid, id, n_logprobs, out);
    out->id = id;
}

/* ---------------------------------------------------------------- log probabilities */

/* The n_top best by falling logit, lower ids first among equals, by insertion: almost every id fails the first
 * comparison. */
static void find_top(const float *z, uint32_t n, uint32_t n_top, hr_sample *out)
{
    uint32_t filled = 0;

    for (uint32_t id = 0; id < n && n_top > 0; id++) {
        uint32_t at = filled;

        if (filled == n_top && !(z[id] > out->top_logprobs[n_top - 1]))
            continue;
        if (filled < n_top)
            filled++;
        else
            at = n_top - 1;
        for (; at > 0 && z[id] > out->top_logprobs[at - 1]; at--) {
            out->top_logprobs[at] = out->top_logprobs[at - 1];
            out->top_ids[at] = out->top_ids[at - 1];
        }
        out->top_logprobs[at] = z[id];
        out->top_ids[at] = (int32_t)id;
    }
    out->n_top = filled;
}

void hr_score_token(hr_sampler *sampler, const float *logits, uint32_t n_valid, int32_t id, int32_t n_logprobs,
                    hr_sample *out)
{
    uint32_t n_top = n_logprobs > 0 ? (uint32_t)n_logprobs : 0, n_above = 0;
    float top, own;
    double log_sum;

    memset(out, 0, sizeof *out);
    out->id = id;
    if (n_valid > sampler->vocab_size)
        n_valid = sampler->vocab_size;
    top = scan(logits, n_valid, sampler->block_max, &out->is_bad);
    if (out->is_bad)
        return;
    own = (uint32_t)id < n_valid ? logits[id] : -INFINITY;
    log_sum = (double)top + log(sum_weights(logits, n_valid, top));
    for (uint32_t i = 0; i < n_valid; i++)
        n_above += logits[i] > own || (logits[i] == own && (int32_t)i < id);
    out->rank = n_above + 1;
    out->logprob = (float)((double)own - log_sum);
    find_top(logits, n_valid, n_top < HEADRACE_LOGPROBS_MAX ? n_top : HEADRACE_LOGPROBS_MAX, out);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top_logprobs[i] = (float)((double)out->top_logprobs[i] - log_sum);
}
