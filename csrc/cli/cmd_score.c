/* headrace score: how well a model foretells a text, and with --kl how far its distributions are from a base model's.
 *
 * Both models step through the same windows side by side, so that one window of logits each is all that is held: no
 * file of logits, whatever the length of the text.
 */
#include "cli/divergence.h"
#include "cli/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct scoring {
    const hr_options *options;
    headrace_model *model, *base; /* base: NULL without --kl */
    headrace_compute *compute, *base_compute;
    const char *base_path;
    uint32_t vocab_size;
    size_t max_ids; /* in one sequence */
    float *logits, *base_logits;
    size_t n_bytes; /* of the text; 0: ids were given */
    hr_divergence sums;
} scoring;

/* ---------------------------------------------------------------- the base model */

/* The same ids must mean the same: equal sizes, and equal bytes for each id where both files bring a tokenizer. */
static bool is_same_vocabulary(const scoring *s)
{
    headrace_model_info mine, its;
    const char *a, *b;
    size_t a_len, b_len;

    headrace_model_get_info(s->model, &mine);
    headrace_model_get_info(s->base, &its);
    if (mine.vocab_size != its.vocab_size) {
        (void)fprintf(stderr, "headrace: --kl %s: a vocabulary of %u ids; the model scored has %u\n", s->base_path,
                      its.vocab_size, mine.vocab_size);
        return false;
    }
    if (mine.tokenizer_size == 0 || its.tokenizer_size == 0)
        return true;
    for (int32_t id = 0; id < (int32_t)mine.vocab_size; id++) {
        bool has_a = headrace_token_bytes(s->model, id, &a, &a_len, NULL);
        bool has_b = headrace_token_bytes(s->base, id, &b, &b_len, NULL);

        if (has_a != has_b || (has_a && (a_len != b_len || memcmp(a, b, a_len) != 0))) {
            (void)fprintf(stderr,
                          "headrace: --kl %s: another vocabulary: id %d is another token than in the model "
                          "scored\n",
                          s->base_path, id);
            return false;
        }
    }
    return true;
}

static int open_base(scoring *s)
{
    headrace_model_options options;
    headrace_error err = {0};

    headrace_model_options_init(&options);
    options.path = s->base_path;
    if (headrace_model_open(&options, &s->base, &err) != HEADRACE_OK)
        return hr_report(&err);
    return is_same_vocabulary(s) ? HR_EXIT_OK : HR_EXIT_USAGE;
}

/* ---------------------------------------------------------------- running */

static int open_computing(scoring *s)
{
    headrace_compute_options how = hr_compute_options_from(s->options), base_how = how;
    headrace_error err = {0};

    how.exact = hr_option_bool(s->options, "exact");
    base_how.exact = how.exact || hr_option_bool(s->options, "exact-base");
    if (headrace_compute_open(s->model, &how, s->max_ids, &s->compute, &err) != HEADRACE_OK)
        return hr_report(&err);
    if (s->base && headrace_compute_open(s->base, &base_how, s->max_ids, &s->base_compute, &err) != HEADRACE_OK)
        return hr_report(&err);
    s->logits = calloc(s->max_ids * s->vocab_size, sizeof *s->logits);
    s->base_logits = s->base ? calloc(s->max_ids * s->vocab_size, sizeof *s->logits) : NULL;
    if (!s->logits || (s->base && !s->base_logits))
        return hr_out_of_memory();
    hr_divergence_init(&s->sums, s->vocab_size, s->base != NULL, how.n_threads);
    return HR_EXIT_OK;
}

/* One sequence; ids [1, n) are foretold. */
static int score_sequence(scoring *s, const int32_t *ids, size_t n)
{
    headrace_error err = {0};

    if (headrace_compute_run(s->compute, ids, n, s->logits, &err) != HEADRACE_OK ||
        (s->base && headrace_compute_run(s->base_compute, ids, n, s->base_logits, &err) != HEADRACE_OK))
        return hr_report(&err);
    switch (hr_divergence_add(&s->sums, s->base_logits, s->logits, ids + 1, n - 1)) {
    case HR_DIVERGENCE_OK:
        break;
    case HR_DIVERGENCE_NO_MEMORY:
        return hr_out_of_memory();
    case HR_DIVERGENCE_NOT_FINITE:
        (void)fprintf(stderr, "headrace: a logit at scored position %zu is not finite\n", s->sums.n);
        return HR_EXIT_FAILURE;
    }
    return HR_EXIT_OK;
}

/* Windows of bos + (window - 1) tokens; every text token is counted once and none sees the window before. */
static int score_text(scoring *s, const int32_t *ids, size_t n_ids)
{
    headrace_model_info info;
    uint32_t window = hr_option_u32(s->options, "window");
    int32_t *rows;
    int code;

    headrace_model_get_info(s->model, &info);
    if (window < 2 || window > info.max_positions) {
        (void)fprintf(stderr, "headrace: --window: 2 to %u, the positions of this model\n", info.max_positions);
        return HR_EXIT_USAGE;
    }
    if (info.bos_id < 0) {
        (void)fputs("headrace: score needs a model with a bos id\n", stderr);
        return HR_EXIT_FAILURE;
    }
    s->max_ids = n_ids < window ? n_ids + 1 : window;
    rows = calloc(s->max_ids, sizeof *rows);
    if (!rows)
        return hr_out_of_memory();
    code = open_computing(s);
    for (size_t at = 0; at < n_ids && code == HR_EXIT_OK; at += window - 1) {
        size_t n = n_ids - at < window - 1 ? n_ids - at : window - 1;

        rows[0] = info.bos_id;
        memcpy(rows + 1, ids + at, n * sizeof *rows);
        code = score_sequence(s, rows, n + 1);
    }
    free(rows);
    return code;
}

static int score_lists(scoring *s, const hr_id_lists *lists)
{
    int code;

    for (size_t i = 0; i < lists->n; i++) {
        if (lists->n_ids[i] < 2) {
            (void)fprintf(stderr, "headrace: --ids: entry %zu: score needs two ids at least\n", i);
            return HR_EXIT_USAGE;
        }
    }
    s->max_ids = hr_longest_list(lists);
    code = open_computing(s);
    for (size_t i = 0; i < lists->n && code == HR_EXIT_OK; i++)
        code = score_sequence(s, lists->ids[i], lists->n_ids[i]);
    return code;
}

static int score_input(scoring *s, const char *text_path)
{
    const char *ids_path = hr_option_text(s->options, "ids");
    hr_id_lists lists = {0};
    int32_t *ids = NULL;
    size_t n_ids;
    int code;

    if (!text_path == !ids_path) {
        (void)fputs(text_path ? "headrace: score takes a text file or --ids, not both\n"
                              : "headrace: score needs a text file, or --ids FILE.json\n",
                    stderr);
        return HR_EXIT_USAGE;
    }
    if (ids_path) {
        code = hr_read_id_lists(ids_path, s->vocab_size, &lists);
        if (code == HR_EXIT_OK)
            code = score_lists(s, &lists);
        hr_id_lists_free(&lists);
        return code;
    }
    code = hr_read_text_ids(s->options, s->model, text_path, &ids, &n_ids, &s->n_bytes);
    if (code == HR_EXIT_OK)
        code = score_text(s, ids, n_ids);
    headrace_free(ids);
    return code;
}

/* ---------------------------------------------------------------- reporting */

static void print_json(const scoring *s)
{
    const hr_divergence *d = &s->sums;
    double nats = hr_mean_of(&d->nats, d->n), perplexity = exp(nats), ratio;

    (void)printf("{\"tokens\":%zu,\"nats_per_token\":%.9g,\"perplexity\":%.9g,\"perplexity_error\":%.4g", d->n, nats,
                 perplexity, perplexity * hr_mean_error(&d->nats, d->n));
    if (s->n_bytes > 0)
        (void)printf(",\"bits_per_byte\":%.6f", d->nats.sum / log(2) / (double)s->n_bytes);
    if (d->has_base) {
        ratio = exp(hr_mean_of(&d->log_ratio, d->n));
        (void)printf(",\"base_nats_per_token\":%.9g,\"base_perplexity\":%.9g", hr_mean_of(&d->base_nats, d->n),
                     exp(hr_mean_of(&d->base_nats, d->n)));
        (void)printf(",\"perplexity_ratio\":%.9g,\"perplexity_ratio_error\":%.4g", ratio,
                     ratio * hr_mean_error(&d->log_ratio, d->n));
        (void)printf(",\"kl\":{\"mean\":%.9g,\"mean_error\":%.4g", hr_mean_of(&d->kl, d->n),
                     hr_mean_error(&d->kl, d->n));
        (void)printf(",\"median\":%.9g,\"p90\":%.9g,\"p99\":%.9g,\"p99_9\":%.9g,\"max\":%.9g}",
                     hr_divergence_percentile(d, 0.5), hr_divergence_percentile(d, 0.9),
                     hr_divergence_percentile(d, 0.99), hr_divergence_percentile(d, 0.999),
                     hr_divergence_percentile(d, 1));
        (void)printf(",\"probability_difference\":{\"rms\":%.9g,\"mean\":%.9g},\"same_top\":%.9g",
                     sqrt(hr_mean_of(&d->difference_squared, d->n)), hr_mean_of(&d->difference, d->n),
                     (double)d->n_same_top / (double)d->n);
    }
    (void)printf("}\n");
}

static void print_text(const scoring *s)
{
    const hr_divergence *d = &s->sums;
    double nats = hr_mean_of(&d->nats, d->n), ratio;

    (void)printf("tokens %zu, perplexity %.4f +- %.4f, %.4f nats a token", d->n, exp(nats),
                 exp(nats) * hr_mean_error(&d->nats, d->n), nats);
    if (s->n_bytes > 0)
        (void)printf(", %.4f bits a byte", d->nats.sum / log(2) / (double)s->n_bytes);
    (void)printf("\n");
    if (!d->has_base)
        return;
    ratio = exp(hr_mean_of(&d->log_ratio, d->n));
    (void)printf("base        perplexity %.4f; ratio %.5f +- %.5f\n", exp(hr_mean_of(&d->base_nats, d->n)), ratio,
                 ratio * hr_mean_error(&d->log_ratio, d->n));
    (void)printf("divergence  mean %.4g +- %.2g nats, median %.4g, 90 %% %.4g, 99 %% %.4g, 99.9 %% %.4g, max %.4g\n",
                 hr_mean_of(&d->kl, d->n), hr_mean_error(&d->kl, d->n), hr_divergence_percentile(d, 0.5),
                 hr_divergence_percentile(d, 0.9), hr_divergence_percentile(d, 0.99),
                 hr_divergence_percentile(d, 0.999), hr_divergence_percentile(d, 1));
    (void)printf("right token probability off by %.3f %% RMS, %+.3f %% on average\n",
                 100 * sqrt(hr_mean_of(&d->difference_squared, d->n)), 100 * hr_mean_of(&d->difference, d->n));
    (void)printf("same top    %.3f %% of positions\n", 100 * (double)d->n_same_top / (double)d->n);
}

int hr_cmd_score(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_SCORE, "[MODEL] [FILE]",
                         "Perplexity of a text file (or of the lists of --ids); with --kl BASE also how far the "
                         "model's distributions are from those of another one with the same vocabulary.",
                         0, 2);
    scoring s = {.options = options, .base_path = hr_option_text(options, "kl")};
    headrace_model_info info;
    bool used;
    int code;

    hr_setup_log(options);
    code = hr_open_model(options, &(hr_model_choice){0}, &s.model, &used);
    if (code == HR_EXIT_OK) {
        headrace_model_get_info(s.model, &info);
        s.vocab_size = info.vocab_size;
        code = s.base_path ? open_base(&s) : HR_EXIT_OK;
    }
    if (code == HR_EXIT_OK)
        code = score_input(&s, hr_options_argument(options, used ? 1 : 0));
    if (code == HR_EXIT_OK) {
        hr_divergence_sort(&s.sums);
        if (hr_option_bool(options, "json"))
            print_json(&s);
        else
            print_text(&s);
    }
    hr_divergence_free(&s.sums);
    free(s.logits);
    free(s.base_logits);
    headrace_compute_close(s.compute);
    headrace_compute_close(s.base_compute);
    headrace_model_close(s.model);
    headrace_model_close(s.base);
    hr_options_destroy(options);
    return code;
}
