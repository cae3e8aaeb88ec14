/* How a block's step and offset are found.
 *
 * For given quants the best step and offset are a least squares problem with a closed solution; for a given step and
 * offset the best quants are a rounding. Alternating the two ends in a local minimum that depends on where it began.
 * So there are three kinds of starts: steps around the range divided by the number of quants, where the best one
 * usually is; a ladder from the range down to the weighted spread of the values, for blocks whose extremes hardly
 * count; then ever smaller changes of the best so far. What wins is judged by the least squares residue, which needs no
 * second pass over the values.
 */
#include "format/quantize_search.h"

enum { AFFINE_STARTS = 16, SIGNED_STARTS = 10, LADDER = 6, REACHES = 4, ROUNDS = 3 };
static const float reaches[REACHES] = {0.12F, 0.06F, 0.03F, 0.015F}; /* of changes of the best step */

/* Weighted sums of a block that do not depend on quants. */
typedef struct moments {
    hr_lanes w, wx, wxx;
} moments;

static moments block_moments(const hr_four_blocks *blocks)
{
    moments sums = {0};

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes wx = blocks->w[j] * blocks->x[j];

        sums.w += blocks->w[j];
        sums.wx += wx;
        sums.wxx += wx * blocks->x[j];
    }
    return sums;
}

/* The root of a lane's value, by Newton's method from above: it only places starts, and needs no library. */
static hr_lanes lanes_root(hr_lanes v)
{
    hr_lanes root = lanes_max(v, lanes_all(1e-12F));

    root = 0.5F * (root + 1.0F);
    for (int i = 0; i < 12; i++)
        root = 0.5F * (root + v / root);
    return root;
}

static hr_lanes inverse_of(hr_lanes v)
{
    return lanes_ratio(lanes_all(1.0F), v);
}

typedef struct affine_search {
    const hr_four_blocks *blocks;
    moments sums;
    float q_max;
    bool base_is_negative;
    hr_affine best;
    hr_lanes error; /* of the best */
} affine_search;

/* The step and base that suit quants with these sums best. */
static hr_affine solve_affine(const affine_search *search, hr_lanes wq, hr_lanes wqq, hr_lanes wqx)
{
    const moments *sums = &search->sums;
    hr_lanes determinant = sums->w * wqq - wq * wq, zero = {0};
    hr_mask solvable = determinant > 1e-5F * sums->w * wqq; /* else all quants are equal */
    hr_affine fit;

    determinant = lanes_select(solvable, determinant, zero);
    fit.step = lanes_ratio(sums->w * wqx - sums->wx * wq, determinant);
    fit.base = lanes_select(solvable, lanes_ratio(wqq * sums->wx - wq * wqx, determinant), sums->wx / sums->w);
    if (search->base_is_negative) {
        hr_mask above = fit.base > 0.0F;

        fit.base = lanes_select(above, zero, fit.base);
        fit.step = lanes_select(above, lanes_ratio(wqx, wqq), fit.step);
    }
    fit.step = lanes_max(fit.step, zero);
    return fit;
}

/* Quants by rounding (x - base) x inverse; what suits them is kept if it is better. */
static void try_affine(affine_search *search, hr_lanes base, hr_lanes inverse)
{
    const hr_four_blocks *blocks = search->blocks;
    const moments *sums = &search->sums;
    hr_lanes wq = {0}, wqq = {0}, wqx = {0}, low = {0}, high = lanes_all(search->q_max);

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes q = lanes_quant((blocks->x[j] - base) * inverse, low, high), product = blocks->w[j] * q;

        wq += product;
        wqq += product * q;
        wqx += product * blocks->x[j];
    }
    hr_affine fit = solve_affine(search, wq, wqq, wqx);
    hr_lanes error = sums->wxx - 2.0F * (fit.step * wqx + fit.base * sums->wx) + fit.step * fit.step * wqq +
                     2.0F * fit.step * fit.base * wq + fit.base * fit.base * sums->w;
    hr_mask better = error < search->error;

    search->best.step = lanes_select(better, fit.step, search->best.step);
    search->best.base = lanes_select(better, fit.base, search->best.base);
    search->error = lanes_select(better, error, search->error);
}

static void try_affine_ranges(affine_search *search)
{
    const hr_four_blocks *blocks = search->blocks;
    hr_lanes low = blocks->x[0], high = blocks->x[0], zero = {0};

    for (int j = 1; j < blocks->n; j++) {
        low = lanes_min(low, blocks->x[j]);
        high = lanes_max(high, blocks->x[j]);
    }
    if (search->base_is_negative)
        low = lanes_min(low, zero);
    for (int i = 0; i < AFFINE_STARTS; i++)
        try_affine(search, low, lanes_ratio(lanes_all(search->q_max - 1.2F + 0.3F * (float)i), high - low));

    hr_lanes mean = search->sums.wx / search->sums.w, variance = search->sums.wxx / search->sums.w - mean * mean;
    hr_lanes spread = lanes_root(lanes_max(variance, zero));
    hr_lanes low_end = lanes_max(mean - spread, low), high_end = lanes_min(mean + spread, high);

    for (int i = 1; i <= LADDER; i++) {
        float t = (float)i / (float)LADDER;
        hr_lanes from = low + t * (low_end - low), to = high + t * (high_end - high);

        try_affine(search, from, lanes_ratio(lanes_all(search->q_max), to - from));
    }
}

hr_affine hr_search_affine(const hr_four_blocks *blocks, int q_max, bool base_is_negative)
{
    affine_search search = {.blocks = blocks,
                            .sums = block_moments(blocks),
                            .q_max = (float)q_max,
                            .base_is_negative = base_is_negative,
                            .error = lanes_all(3e38F)};

    try_affine_ranges(&search);
    for (int i = 0; i < REACHES; i++)
        for (int sign = -1; sign <= 1; sign += 2) { /* about the middle of the range */
            hr_lanes step = search.best.step * (1.0F + (float)sign * reaches[i]);

            try_affine(&search, search.best.base + 0.5F * search.q_max * (search.best.step - step), inverse_of(step));
        }
    for (int i = 0; i < ROUNDS; i++)
        try_affine(&search, search.best.base, inverse_of(search.best.step));
    return search.best;
}

hr_lanes hr_affine_error(const hr_four_blocks *blocks, int q_max, hr_affine fit)
{
    hr_lanes inverse = inverse_of(fit.step), low = {0}, high = lanes_all((float)q_max), sum = {0};

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes apart = blocks->x[j] - fit.base, rest = apart - fit.step * lanes_quant(apart * inverse, low, high);

        sum += blocks->w[j] * rest * rest;
    }
    return sum;
}

typedef struct signed_search {
    const hr_four_blocks *blocks;
    float middle;
    hr_lanes best;
    hr_lanes explained; /* the part of sum w x^2 that is not left as error; negative before the first try */
} signed_search;

static void try_signed(signed_search *search, hr_lanes inverse)
{
    const hr_four_blocks *blocks = search->blocks;
    hr_lanes wqq = {0}, wqx = {0}, low = lanes_all(-search->middle), high = lanes_all(search->middle - 1.0F);

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes q = lanes_quant(blocks->x[j] * inverse, low, high), product = blocks->w[j] * q;

        wqq += product * q;
        wqx += product * blocks->x[j];
    }
    hr_lanes step = lanes_ratio(wqx, wqq), explained = step * wqx;
    hr_mask better = explained > search->explained;

    search->best = lanes_select(better, step, search->best);
    search->explained = lanes_select(better, explained, search->explained);
}

static void try_signed_ranges(signed_search *search)
{
    const hr_four_blocks *blocks = search->blocks;
    moments sums = block_moments(blocks);
    hr_lanes extreme = {0};

    for (int j = 0; j < blocks->n; j++) {
        hr_mask larger = blocks->x[j] * blocks->x[j] > extreme * extreme;

        extreme = lanes_select(larger, blocks->x[j], extreme);
    }
    hr_lanes first = inverse_of(extreme), last = inverse_of(lanes_root(sums.wxx / sums.w));

    last = lanes_select(extreme < 0.0F, -last, last);
    for (int i = 0; i < SIGNED_STARTS; i++) { /* the value of largest magnitude on either end */
        float steps = search->middle - 0.9F + 0.3F * (float)i;

        try_signed(search, -steps * first);
        try_signed(search, (steps - 1.0F) * first);
    }
    for (int i = 1; i <= LADDER; i++)
        try_signed(search, -search->middle * (first + (float)i / (float)LADDER * (last - first)));
}

hr_lanes hr_search_signed(const hr_four_blocks *blocks, int middle)
{
    signed_search search = {.blocks = blocks, .middle = (float)middle, .explained = lanes_all(-1.0F)};

    try_signed_ranges(&search);
    for (int i = 0; i < REACHES; i++) {
        hr_lanes inverse = inverse_of(search.best);

        try_signed(&search, inverse * (1.0F + reaches[i]));
        try_signed(&search, inverse * (1.0F - reaches[i]));
    }
    for (int i = 0; i < ROUNDS; i++)
        try_signed(&search, inverse_of(search.best));
    return search.best;
}

hr_lanes hr_signed_error(const hr_four_blocks *blocks, int middle, hr_lanes step)
{
    hr_lanes inverse = inverse_of(step), sum = {0};
    hr_lanes low = lanes_all((float)-middle), high = lanes_all((float)middle - 1.0F);

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes rest = blocks->x[j] - step * lanes_quant(blocks->x[j] * inverse, low, high);

        sum += blocks->w[j] * rest * rest;
    }
    return sum;
}
