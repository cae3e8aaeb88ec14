/* How a block's step and offset are found.
 *
 * For given quants the best step and offset are a least squares problem with a closed solution; for a given step and
 * offset the best quants are a rounding. Alternating the two ends in a local minimum that depends on where it began, so
 * it is begun from a row of steps around the range divided by the number of quants: shorter ones clip the extremes and
 * resolve the rest better. What wins is judged by the least squares residue, which needs no second pass over the
 * values.
 */
#include "format/quantize_search.h"

enum { AFFINE_STARTS = 16, SIGNED_STARTS = 10, ROUNDS = 3 };

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

/* Quants by rounding (x - base) x inverse, then the step and base that suit them best; *error is what is left. */
static hr_affine affine_round(const hr_four_blocks *blocks, const moments *sums, hr_lanes base, hr_lanes inverse,
                              float q_max, bool base_is_negative, hr_lanes *error)
{
    hr_lanes wq = {0}, wqq = {0}, wqx = {0}, low = lanes_all(0.0F), high = lanes_all(q_max);
    hr_affine fit;

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes q = lanes_quant((blocks->x[j] - base) * inverse, low, high), product = blocks->w[j] * q;

        wq += product;
        wqq += product * q;
        wqx += product * blocks->x[j];
    }
    hr_lanes determinant = sums->w * wqq - wq * wq;
    hr_mask solvable = determinant > 1e-5F * sums->w * wqq;

    determinant = lanes_select(solvable, determinant, lanes_all(0.0F));
    fit.step = lanes_ratio(sums->w * wqx - sums->wx * wq, determinant);
    fit.base = lanes_select(solvable, lanes_ratio(wqq * sums->wx - wq * wqx, determinant), sums->wx / sums->w);
    if (base_is_negative) {
        hr_mask above = fit.base > 0.0F;

        fit.base = lanes_select(above, lanes_all(0.0F), fit.base);
        fit.step = lanes_select(above, lanes_ratio(wqx, wqq), fit.step);
    }
    fit.step = lanes_max(fit.step, lanes_all(0.0F));
    *error = sums->wxx - 2.0F * (fit.step * wqx + fit.base * sums->wx) + fit.step * fit.step * wqq +
             2.0F * fit.step * fit.base * wq + fit.base * fit.base * sums->w;
    return fit;
}

static void keep_better(hr_affine *best, hr_lanes *best_error, hr_affine fit, hr_lanes error)
{
    hr_mask better = error < *best_error;

    best->step = lanes_select(better, fit.step, best->step);
    best->base = lanes_select(better, fit.base, best->base);
    *best_error = lanes_select(better, error, *best_error);
}

hr_affine hr_search_affine(const hr_four_blocks *blocks, int q_max, bool base_is_negative)
{
    moments sums = block_moments(blocks);
    hr_lanes low = blocks->x[0], high = blocks->x[0], best_error = lanes_all(3e38F), error;
    hr_affine best = {0}, fit;

    for (int j = 1; j < blocks->n; j++) {
        low = lanes_min(low, blocks->x[j]);
        high = lanes_max(high, blocks->x[j]);
    }
    if (base_is_negative)
        low = lanes_min(low, lanes_all(0.0F));
    for (int i = 0; i < AFFINE_STARTS; i++) {
        float steps = (float)q_max - 1.2F + 0.3F * (float)i;

        fit = affine_round(blocks, &sums, low, lanes_ratio(lanes_all(steps), high - low), (float)q_max,
                           base_is_negative, &error);
        keep_better(&best, &best_error, fit, error);
    }
    for (int i = 0; i < ROUNDS; i++) {
        fit = affine_round(blocks, &sums, best.base, lanes_ratio(lanes_all(1.0F), best.step), (float)q_max,
                           base_is_negative, &error);
        keep_better(&best, &best_error, fit, error);
    }
    return best;
}

hr_lanes hr_affine_error(const hr_four_blocks *blocks, int q_max, hr_affine fit)
{
    hr_lanes inverse = lanes_ratio(lanes_all(1.0F), fit.step), low = lanes_all(0.0F), high = lanes_all((float)q_max);
    hr_lanes sum = {0};

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes apart = blocks->x[j] - fit.base, rest = apart - fit.step * lanes_quant(apart * inverse, low, high);

        sum += blocks->w[j] * rest * rest;
    }
    return sum;
}

/* As affine_round without a base; what is maximised is the part of sum w x^2 that the step explains. */
static hr_lanes signed_round(const hr_four_blocks *blocks, hr_lanes inverse, float middle, hr_lanes *explained)
{
    hr_lanes wqq = {0}, wqx = {0}, low = lanes_all(-middle), high = lanes_all(middle - 1.0F);

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes q = lanes_quant(blocks->x[j] * inverse, low, high), product = blocks->w[j] * q;

        wqq += product * q;
        wqx += product * blocks->x[j];
    }
    hr_lanes step = lanes_ratio(wqx, wqq);

    *explained = step * wqx;
    return step;
}

hr_lanes hr_search_signed(const hr_four_blocks *blocks, int middle)
{
    hr_lanes extreme = {0}, best = {0}, best_explained = lanes_all(-1.0F), explained, step;

    for (int j = 0; j < blocks->n; j++) {
        hr_mask larger = blocks->x[j] * blocks->x[j] > extreme * extreme;

        extreme = lanes_select(larger, blocks->x[j], extreme);
    }
    for (int i = 0; i < 2 * SIGNED_STARTS; i++) {
        float steps = (float)middle - 0.9F + 0.3F * (float)(i % SIGNED_STARTS);

        steps = i < SIGNED_STARTS ? -steps : steps - 1.0F; /* the value of largest magnitude on either end */
        step = signed_round(blocks, lanes_ratio(lanes_all(steps), extreme), (float)middle, &explained);
        hr_mask better = explained > best_explained;

        best = lanes_select(better, step, best);
        best_explained = lanes_select(better, explained, best_explained);
    }
    for (int i = 0; i < ROUNDS; i++) {
        step = signed_round(blocks, lanes_ratio(lanes_all(1.0F), best), (float)middle, &explained);
        hr_mask better = explained > best_explained;

        best = lanes_select(better, step, best);
        best_explained = lanes_select(better, explained, best_explained);
    }
    return best;
}

hr_lanes hr_signed_error(const hr_four_blocks *blocks, int middle, hr_lanes step)
{
    hr_lanes inverse = lanes_ratio(lanes_all(1.0F), step), sum = {0};
    hr_lanes low = lanes_all((float)-middle), high = lanes_all((float)middle - 1.0F);

    for (int j = 0; j < blocks->n; j++) {
        hr_lanes rest = blocks->x[j] - step * lanes_quant(blocks->x[j] * inverse, low, high);

        sum += blocks->w[j] * rest * rest;
    }
    return sum;
}
