/* See divergence.h. */
#include "cli/divergence.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LANES = 8, THREADS_MAX = 64, WORTH_A_THREAD = 1 << 20 };

/* What one position gives. */
typedef struct row_result {
    double nats, base_nats, kl, p, base_p;
    bool same_top;
} row_result;

/* exp(x) for x <= 0, to about an ulp. Without calls and branches, so that a compiler can do several at a time: x = k
 * ln 2 + r, |r| <= ln 2 / 2, exp(r) by its series to the 13th power (the rest is below 1e-17), 2^k by its bits. Below
 * -700 the answer is that of -700, some 1e-304: nothing beside the largest term, which is 1. NaN stays NaN. */
static inline double exp_of_negative(double x)
{
    static const double LOG2_E = 0x1.71547652b82fep0, LN2_HIGH = 0x1.62e42fefa0000p-1, LN2_LOW = 0x1.cf79abc9e3b3ap-40;
    static const double ROUND = 0x1.8p52; /* adding it leaves the nearest whole number in the lowest bits */
    double clamped = x < -700.0 ? -700.0 : x, shifted = clamped * LOG2_E + ROUND, k = shifted - ROUND, scale;
    double r = clamped - k * LN2_HIGH - k * LN2_LOW, sum = 1.0 / 6227020800.0;
    uint64_t bits;

    sum = sum * r + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

static uint32_t largest(const float *x, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

static double total(const double lanes[LANES])
{
    double sum = 0;

    for (uint32_t l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}

/* ln of the sum of exp(x - top). */
static double log_sum(const float *x, uint32_t n, double top)
{
    double lanes[LANES] = {0};
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        for (uint32_t l = 0; l < LANES; l++)
            lanes[l] += exp_of_negative((double)x[i + l] - top);
    }
    for (uint32_t l = 0; i < n; i++, l++)
        lanes[l] += exp_of_negative((double)x[i] - top);
    return log(total(lanes));
}

/* Sums over the vocabulary of e and e (b - m), where b and m are the logits below their largest and e = exp(b). */
static void cross_sums(const float *base, const float *model, uint32_t n, double base_top, double top, double *weight,
                       double *cross)
{
    double e_lanes[LANES] = {0}, cross_lanes[LANES] = {0};
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        for (uint32_t l = 0; l < LANES; l++) {
            double b = (double)base[i + l] - base_top, m = (double)model[i + l] - top, e = exp_of_negative(b);

            e_lanes[l] += e;
            cross_lanes[l] += e * (b - m);
        }
    }
    for (uint32_t l = 0; i < n; i++, l++) {
        double b = (double)base[i] - base_top, m = (double)model[i] - top, e = exp_of_negative(b);

        e_lanes[l] += e;
        cross_lanes[l] += e * (b - m);
    }
    *weight = total(e_lanes);
    *cross = total(cross_lanes);
}

/* sum p (ln p - ln q) = (sum e (b - m)) / (sum e) - ln sum e + ln sum exp(m). */
static void measure(const float *base, const float *model, uint32_t n, int32_t next, row_result *out)
{
    uint32_t top_id = largest(model, n);
    double top = (double)model[top_id], model_log = log_sum(model, n, top);

    *out = (row_result){.nats = model_log + top - (double)model[next]};
    out->p = exp(-out->nats);
    if (!base)
        return;
    uint32_t base_id = largest(base, n);
    double base_top = (double)base[base_id], weight, cross;

    cross_sums(base, model, n, base_top, top, &weight, &cross);
    out->base_nats = log(weight) + base_top - (double)base[next];
    out->base_p = exp(-out->base_nats);
    out->kl = cross / weight - log(weight) + model_log;
    if (out->kl < 0) /* by rounding only */
        out->kl = 0;
    out->same_top = base_id == top_id;
}

/* ---------------------------------------------------------------- rows over threads */

typedef struct share {
    const hr_divergence *d;
    const float *base, *model;
    const int32_t *next;
    row_result *results;
    size_t begin, end;
} share;

static void *run_share(void *user)
{
    const share *s = user;
    size_t V = s->d->vocab_size;

    for (size_t i = s->begin; i < s->end; i++)
        measure(s->base ? s->base + i * V : NULL, s->model + i * V, (uint32_t)V, s->next[i], &s->results[i]);
    return NULL;
}

static void measure_rows(const hr_divergence *d, const float *base, const float *model, const int32_t *next,
                         size_t n_rows, row_result *results)
{
    share shares[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    bool is_started[THREADS_MAX] = {false};
    size_t n = n_rows * d->vocab_size / WORTH_A_THREAD + 1;

    n = n < d->n_threads ? n : d->n_threads;
    n = n < n_rows ? n : n_rows;
    for (size_t t = 0; t < n; t++) {
        shares[t] = (share){d, base, model, next, results, n_rows * t / n, n_rows * (t + 1) / n};
        is_started[t] = t > 0 && pthread_create(&threads[t], NULL, run_share, &shares[t]) == 0;
    }
    for (size_t t = 0; t < n; t++) {
        if (!is_started[t])
            (void)run_share(&shares[t]);
    }
    for (size_t t = 0; t < n; t++) {
        if (is_started[t])
            (void)pthread_join(threads[t], NULL);
    }
}

/* ---------------------------------------------------------------- sums */

void hr_divergence_init(hr_divergence *d, uint32_t vocab_size, bool has_base, uint32_t n_threads)
{
    long there = sysconf(_SC_NPROCESSORS_ONLN);

    *d = (hr_divergence){.vocab_size = vocab_size, .has_base = has_base, .n_threads = n_threads};
    if (d->n_threads == 0)
        d->n_threads = there > 0 ? (uint32_t)there : 1;
    if (d->n_threads > THREADS_MAX)
        d->n_threads = THREADS_MAX;
}

void hr_divergence_free(hr_divergence *d)
{
    free(d->values);
    *d = (hr_divergence){0};
}

static void add_value(hr_mean *m, double value)
{
    m->sum += value;
    m->squares += value * value;
}

static bool add_result(hr_divergence *d, const row_result *r)
{
    double difference = r->p - r->base_p;

    if (!isfinite(r->nats) || !isfinite(r->base_nats) || !isfinite(r->kl))
        return false;
    add_value(&d->nats, r->nats);
    if (d->has_base) {
        add_value(&d->base_nats, r->base_nats);
        add_value(&d->log_ratio, r->nats - r->base_nats);
        add_value(&d->kl, r->kl);
        add_value(&d->difference, difference);
        add_value(&d->difference_squared, difference * difference);
        d->n_same_top += r->same_top;
        d->values[d->n] = r->kl;
    }
    d->n++;
    return true;
}

hr_divergence_status hr_divergence_add(hr_divergence *d, const float *base, const float *model, const int32_t *next,
                                       size_t n_rows)
{
    row_result *results = calloc(n_rows > 0 ? n_rows : 1, sizeof *results);
    hr_divergence_status status = HR_DIVERGENCE_OK;

    if (results && d->has_base && d->n + n_rows > d->capacity) {
        size_t capacity = 2 * d->capacity + n_rows;
        double *grown = realloc(d->values, capacity * sizeof *grown);

        if (grown) {
            d->values = grown;
            d->capacity = capacity;
        }
    }
    if (!results || (d->has_base && d->n + n_rows > d->capacity)) {
        free(results);
        return HR_DIVERGENCE_NO_MEMORY;
    }
    measure_rows(d, base, model, next, n_rows, results);
    for (size_t i = 0; i < n_rows && status == HR_DIVERGENCE_OK; i++) {
        if (!add_result(d, &results[i]))
            status = HR_DIVERGENCE_NOT_FINITE;
    }
    free(results);
    return status;
}

double hr_mean_of(const hr_mean *m, size_t n)
{
    return m->sum / (double)n;
}

double hr_mean_error(const hr_mean *m, size_t n)
{
    double mean = hr_mean_of(m, n), variance;

    if (n < 2)
        return 0;
    variance = (m->squares - (double)n * mean * mean) / (double)(n - 1);
    return variance > 0 ? sqrt(variance / (double)n) : 0;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

void hr_divergence_sort(hr_divergence *d)
{
    if (d->has_base)
        qsort(d->values, d->n, sizeof *d->values, ascending);
}

double hr_divergence_percentile(const hr_divergence *d, double fraction)
{
    double place = fraction * (double)(d->n - 1);
    size_t below = (size_t)place, above = below + 1 < d->n ? below + 1 : below;
    double part = place - (double)below;

    return d->values[below] + part * (d->values[above] - d->values[below]);
}
