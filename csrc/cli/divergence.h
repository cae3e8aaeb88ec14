/* How well a model's next-token distributions foretell a text, and how far they are from a base model's.
 *
 * Rows come window by window and are not kept: what stays is one double a position (its divergence, for the
 * percentiles) and running sums. All arithmetic is in double over the whole vocabulary, so that the divergence of a
 * model from itself is 0 exactly and one of 1e-9 is still a number. Rows are independent and are spread over threads;
 * sums are taken in the order of positions, so the result does not depend on the number of threads.
 *
 * With p the base's and q the model's distribution at a position, and t the token that follows in the text:
 *   nats              -ln q(t)
 *   KL(base || model) sum over ids of p (ln p - ln q), in nats
 *   difference        q(t) - p(t)
 *   same top          the most likely id of both is the same (of equals the lowest)
 */
#ifndef HR_CLI_DIVERGENCE_H
#define HR_CLI_DIVERGENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Mean of n values and the standard error of that mean, the values taken as independent. */
typedef struct hr_mean {
    double sum, squares;
} hr_mean;

typedef struct hr_divergence {
    uint32_t vocab_size, n_threads;
    bool has_base;
    size_t n; /* positions so far */
    hr_mean nats, base_nats;
    hr_mean log_ratio; /* nats - base_nats: the logarithm of the ratio of perplexities */
    hr_mean kl, difference, difference_squared;
    size_t n_same_top;
    double *values; /* [capacity], KL of each position */
    size_t capacity;
} hr_divergence;

/* n_threads 0: one for each processor. Freed with hr_divergence_free. */
void hr_divergence_init(hr_divergence *d, uint32_t vocab_size, bool has_base, uint32_t n_threads);
void hr_divergence_free(hr_divergence *d);

typedef enum hr_divergence_status {
    HR_DIVERGENCE_OK,
    HR_DIVERGENCE_NO_MEMORY,
    HR_DIVERGENCE_NOT_FINITE, /* a logit is NaN or infinite; d->n is the position */
} hr_divergence_status;

/* Adds n_rows positions: row i of model (and base, NULL without one), [n_rows, vocab_size] logits, foretells next[i].
 */
hr_divergence_status hr_divergence_add(hr_divergence *d, const float *base, const float *model, const int32_t *next,
                                       size_t n_rows);

double hr_mean_of(const hr_mean *m, size_t n);
double hr_mean_error(const hr_mean *m, size_t n); /* 0 for fewer than two values */

/* Sorts the values, if there are any; call it when all positions are in. The fraction's percentile with linear
 * interpolation between neighbours, as numpy's default. At least one position. */
void hr_divergence_sort(hr_divergence *d);
double hr_divergence_percentile(const hr_divergence *d, double fraction);

#endif
