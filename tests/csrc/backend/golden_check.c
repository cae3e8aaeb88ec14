/* See golden_check.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "csrc/backend/golden_check.h"
#include "csrc/backend/golden_file.h"
#include "support/recipe.h"

enum { TOKENS_MAX = 192, LAYERS_MAX = 16, GREEDY = 32, GREEDY_FEWER = 8, STRANGERS = 2 };

/* ---------------------------------------------------------------- recording */

/* The rows of one piece of each batch, appended: a whole sequence's values in the end. */
typedef struct recorder {
    uint32_t first_row, n_rows; /* of the piece in the batch at hand */
    float *values[HR_TAP_COUNT][LAYERS_MAX];
    uint32_t n[HR_TAP_COUNT][LAYERS_MAX], cols[HR_TAP_COUNT][LAYERS_MAX];
} recorder;

static void record(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols)
{
    recorder *r = user;
    bool is_output = tap == HR_TAP_FINAL_NORM || tap == HR_TAP_LOGITS; /* only the piece has outputs */
    uint32_t n = is_output ? rows : r->n_rows;
    float **values = &r->values[tap][layer];

    assert_true(layer < LAYERS_MAX);
    if (!*values)
        *values = calloc((size_t)TOKENS_MAX * cols, sizeof **values);
    assert_non_null(*values);
    assert_true(r->n[tap][layer] + n <= TOKENS_MAX);
    memcpy(*values + (size_t)r->n[tap][layer] * cols, data + (is_output ? 0 : (size_t)r->first_row * cols),
           (size_t)n * cols * sizeof *data);
    r->n[tap][layer] += n;
    r->cols[tap][layer] = cols;
}

static void forget(recorder *r)
{
    memset(r->n, 0, sizeof r->n);
}

static void free_recorder(recorder *r)
{
    for (uint32_t tap = 0; tap < HR_TAP_COUNT; tap++) {
        for (uint32_t layer = 0; layer < LAYERS_MAX; layer++)
            free(r->values[tap][layer]);
    }
}

/* ---------------------------------------------------------------- comparing */

typedef struct golden_case {
    const char *name;
    golden_file expected;
    json_t *json;
    hr_model *model;
    bool exact, is_large, has_fewer_cuts;
    double max_abs, rms, logits_std; /* the tolerances in use; rms HUGE_VAL in exact mode */
    driver d;
    recorder taps;
    /* The sequence at hand. */
    uint32_t index, n;
    const int32_t *ids, *same_experts;
    bool is_flipped[TOKENS_MAX]; /* fast path: a near tie between two experts fell the other way */
    char how[64];
} golden_case;

/* Whether position t counts: always in fp32; else where a bf16 run of the reference, and this run, chose the experts of
 * the fp32 run. */
static bool counts(const golden_case *c, uint32_t t)
{
    return c->exact || (c->same_experts[t] != 0 && !c->is_flipped[t]);
}

static double largest_magnitude(const float *values, size_t n)
{
    double largest = 0;

    for (size_t i = 0; i < n; i++)
        largest = fabs((double)values[i]) > largest ? fabs((double)values[i]) : largest;
    return largest;
}

/* Rows t = 0 .. n-1 of `cols` values; row t counts as position first + t. */
static void compare(const golden_case *c, const char *what, uint32_t layer, const float *got, const float *expected,
                    uint32_t n, uint32_t cols, uint32_t first, bool is_logits)
{
    double scale = is_logits ? 1 : fmax(1, largest_magnitude(expected, (size_t)n * cols) / c->logits_std);
    double sum = 0;
    size_t n_counted = 0;

    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; counts(c, first + t) && i < cols; i++) {
            size_t at = (size_t)t * cols + i;
            double difference = fabs((double)got[at] - (double)expected[at]);

            if (!(difference <= c->max_abs * scale))
                fail_msg("%s sequence %u %s: %s layer %u row %u col %u is %g, expected %g, allowed %g", c->name,
                         c->index, c->how, what, layer, t, i, (double)got[at], (double)expected[at],
                         c->max_abs * scale);
            sum += difference * difference;
            n_counted++;
        }
    }
    if (is_logits && n_counted > 0 && sqrt(sum / (double)n_counted) > c->rms)
        fail_msg("%s sequence %u %s: RMS of the logits is off by %g, allowed %g", c->name, c->index, c->how,
                 sqrt(sum / (double)n_counted), c->rms);
}

static void compare_tap(const golden_case *c, hr_tap tap, uint32_t layer, golden_tensor expected)
{
    if (!expected.f32)
        return;
    assert_int_equal(c->taps.n[tap][layer], c->n);
    assert_int_equal(c->taps.cols[tap][layer], expected.shape[1]);
    compare(c, hr_tap_name(tap), layer, c->taps.values[tap][layer], expected.f32, c->n, expected.shape[1], 0,
            tap == HR_TAP_LOGITS);
}

static bool is_same_choice(const golden_case *c, const float *got, const int32_t *expected, uint32_t n)
{
    uint32_t n_found = 0;

    for (uint32_t k = 0; k < n; k++) {
        for (uint32_t j = 0; j < n; j++)
            n_found += (int32_t)got[k] == expected[j] && (!c->exact || k == j);
    }
    return n_found == n;
}

/* Exact: the same experts in the same order. Fast: the same experts, except where the last chosen one leads the next by
 * less than 2^-8, which is one step of a bf16 score: there the reference's own bf16 run flips, too. A flipped token
 * computes something else from there on and is left out of the comparison, so flips must stay rare. */
static void check_choices(golden_case *c)
{
    uint32_t n_flipped = 0;

    memset(c->is_flipped, 0, sizeof c->is_flipped);
    for (uint32_t layer = 0; layer < c->model->arch.n_layers; layer++) {
        golden_tensor ids = golden_get(&c->expected, "seq%u.router_ids.%u", c->index, layer);
        golden_tensor margins = golden_get(&c->expected, "seq%u.router_margin.%u", c->index, layer);
        const float *got = c->taps.values[HR_TAP_ROUTER_IDS][layer];

        for (uint32_t t = 0; ids.i32 && t < c->n; t++) {
            uint32_t K = ids.shape[1];

            if (!counts(c, t) || is_same_choice(c, got + (size_t)t * K, ids.i32 + (size_t)t * K, K))
                continue;
            if (c->exact || (double)margins.f32[t] > 0x1p-8)
                fail_msg("%s sequence %u %s: layer %u row %u chose other experts (margin %g)", c->name, c->index,
                         c->how, layer, t, (double)margins.f32[t]);
            c->is_flipped[t] = true;
            n_flipped++;
        }
    }
    assert_true(n_flipped <= c->n / 8);
}

static void compare_router(const golden_case *c, uint32_t layer)
{
    compare_tap(c, HR_TAP_ROUTER_LOGITS, layer, golden_get(&c->expected, "seq%u.router_logits.%u", c->index, layer));
    compare_tap(c, HR_TAP_ROUTER_WEIGHTS, layer, golden_get(&c->expected, "seq%u.router_weights.%u", c->index, layer));
}

/* The convolution state has L-1 columns; the goldens keep one more in front. */
static void compare_state(const golden_case *c, const driver_sequence *s)
{
    const hr_arch *arch = &c->model->arch;
    uint32_t H = arch->hidden_size, L = arch->conv_length;
    float *state = calloc(hr_arch_state_values(arch), sizeof *state);

    assert_non_null(state);
    c->d.ops->read_slot(c->d.backend, s->slot, state);
    for (uint32_t layer = 0; layer < arch->n_layers && counts(c, c->n - 1); layer++) {
        golden_tensor expected = golden_get(&c->expected, "seq%u.conv_state.%u", c->index, layer);
        const float *mine = state + (size_t)c->model->layers[layer].state_index * H * (L - 1);
        double scale;

        if (!expected.f32)
            continue;
        scale = fmax(1, largest_magnitude(expected.f32, expected.n) / c->logits_std);
        for (uint32_t h = 0; h < H; h++) {
            for (uint32_t j = 1; j < L; j++) {
                double difference = fabs((double)mine[h * (L - 1) + j - 1] - (double)expected.f32[h * L + j]);

                if (!(difference <= c->max_abs * scale))
                    fail_msg("%s sequence %u %s: conv_state layer %u channel %u column %u is off by %g", c->name,
                             c->index, c->how, layer, h, j, difference);
            }
        }
    }
    free(state);
}

/* Keys (which 0) or values of every position, read back from the pages, as [T, Nkv D]. */
static void compare_kv(const golden_case *c, const driver_sequence *s, uint32_t layer, int which)
{
    golden_tensor expected = golden_get(&c->expected, "seq%u.%s.%u", c->index, which ? "v" : "k", layer);
    uint32_t D = c->model->arch.head_dim, Nkv = c->model->arch.n_kv_heads;
    float *got, *turned;

    if (!expected.f32)
        return;
    got = calloc((size_t)c->n * Nkv * D, sizeof *got);
    turned = calloc((size_t)c->n * Nkv * D, sizeof *turned);
    assert_true(got && turned);
    for (uint32_t t = 0; t < c->n; t++) {
        c->d.ops->read_kv(c->d.backend, c->model->layers[layer].state_index, s->pages[t / c->d.page_tokens],
                          t % c->d.page_tokens, which, got + (size_t)t * Nkv * D);
        for (uint32_t h = 0; h < Nkv; h++)
            memcpy(turned + ((size_t)t * Nkv + h) * D, expected.f32 + ((size_t)h * c->n + t) * D, D * sizeof *turned);
    }
    compare(c, which ? "v in pages" : "k in pages", layer, got, turned, c->n, Nkv * D, 0, false);
    free(got);
    free(turned);
}

static void compare_everything(golden_case *c, const driver_sequence *s)
{
    uint32_t n_layers = c->model->arch.n_layers;

    check_choices(c);
    compare_tap(c, HR_TAP_LOGITS, n_layers, golden_get(&c->expected, "seq%u.logits", c->index));
    compare_tap(c, HR_TAP_EMBED, 0, golden_get(&c->expected, "seq%u.hidden.0", c->index));
    compare_tap(c, HR_TAP_FINAL_NORM, n_layers, golden_get(&c->expected, "seq%u.hidden.final", c->index));
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        compare_tap(c, HR_TAP_LAYER_OUT, layer, golden_get(&c->expected, "seq%u.hidden.%u", c->index, layer + 1));
        compare_router(c, layer);
        compare_kv(c, s, layer, 0);
        compare_kv(c, s, layer, 1);
    }
    compare_state(c, s);
}

/* ---------------------------------------------------------------- running */

/* The prompt in steps of `chunk` rows, with strangers before and after it if asked for. */
static driver_sequence run_prompt(golden_case *c, uint32_t chunk, bool has_strangers)
{
    size_t V = c->model->arch.vocab_size;
    float *logits = calloc(c->n * V, sizeof *logits);
    int32_t other_ids[STRANGERS][TOKENS_MAX];
    driver_sequence s, others[STRANGERS];

    assert_non_null(logits);
    driver_forget(&c->d);
    forget(&c->taps);
    s = driver_new_sequence(&c->d, c->ids, c->n + GREEDY);
    s.n_prompt = c->n;
    for (uint32_t i = 0; i < STRANGERS; i++) {
        driver_random_ids(c->model, 100 + i, TOKENS_MAX, other_ids[i]);
        others[i] = driver_new_sequence(&c->d, other_ids[i], TOKENS_MAX);
    }
    others[1].n_prompt = 3; /* the rest of it was generated */
    for (uint32_t at = 0, step = 0; at < c->n; at += chunk, step++) {
        driver_piece mine = {.sequence = &s, .start = at, .n_rows = c->n - at < chunk ? c->n - at : chunk};
        driver_piece before = {.sequence = &others[0], .start = 2 * (step % 64), .n_rows = 2};
        driver_piece after = {.sequence = &others[1], .start = step % 128, .n_rows = 1};
        driver_piece pieces[3] = {before, mine, after};

        mine.logits = pieces[1].logits = logits + at * V;
        c->taps.first_row = has_strangers ? before.n_rows : 0;
        c->taps.n_rows = mine.n_rows;
        driver_step(&c->d, has_strangers ? pieces : &mine, has_strangers ? 3 : 1);
    }
    assert_memory_equal(logits, c->taps.values[HR_TAP_LOGITS][c->model->arch.n_layers], c->n * V * sizeof *logits);
    free(logits);
    return s;
}

static uint32_t largest_id(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* The greedy continuation, one row a step, fed with the golden ids: equal to free running wherever all ids agree. */
static void check_greedy(golden_case *c, driver_sequence s)
{
    golden_tensor ids = golden_get(&c->expected, "seq%u.greedy_ids", c->index);
    golden_tensor margins = golden_get(&c->expected, "seq%u.greedy_margin", c->index);
    golden_tensor logits = golden_get(&c->expected, "seq%u.greedy_logits", c->index);
    uint32_t V = c->model->arch.vocab_size, n_layers = c->model->arch.n_layers;
    bool must_match = c->exact || golden_number(c->json, "greedy_ids_must_match_in_bf16") != 0;
    const float *row = c->taps.values[HR_TAP_LOGITS][n_layers] + (size_t)(c->n - 1) * V;
    int32_t all[TOKENS_MAX];

    memcpy(all, c->ids, c->n * sizeof *all);
    memcpy(all + c->n, ids.i32, GREEDY * sizeof *all);
    s.ids = all;
    (void)snprintf(c->how, sizeof c->how, "greedy");
    for (uint32_t i = 0; i < (c->has_fewer_cuts ? GREEDY_FEWER : GREEDY); i++) {
        if (i > 0) {
            forget(&c->taps);
            c->taps.first_row = 0;
            c->taps.n_rows = 1;
            driver_run(&c->d, &s, c->n + i - 1, c->n + i, 1, c->taps.values[HR_TAP_LOGITS][n_layers]);
            row = c->taps.values[HR_TAP_LOGITS][n_layers];
        }
        if (logits.f32)
            compare(c, "greedy_logits", i, row, logits.f32 + (size_t)i * V, 1, V, c->n - 1 + i, true);
        if ((must_match || ((double)margins.f32[i] > c->max_abs && counts(c, c->n - 1 + i))) &&
            largest_id(row, V) != (uint32_t)ids.i32[i])
            fail_msg("%s sequence %u: greedy id %u is %u, expected %d (margin %g)", c->name, c->index, i,
                     largest_id(row, V), ids.i32[i], (double)margins.f32[i]);
    }
}

/* Whether a cut into steps of `chunk` rows tells something that the cut before it does not. */
static bool is_worth_a_run(const golden_case *c, uint32_t chunk, uint32_t before, bool has_strangers)
{
    if (before >= c->n)
        return false; /* the same cut as the one before */
    if (c->is_large)
        return chunk == 7 && !has_strangers; /* seconds a run */
    if (c->has_fewer_cuts)
        return has_strangers && chunk == (c->n <= 3 ? 2 : c->n <= 40 ? 7 : 64);
    return !has_strangers || chunk == 3 || chunk == 64; /* two cuts are enough for strangers */
}

static void check_sequence(golden_case *c)
{
    static const uint32_t chunks[] = {1, 2, 3, 7, 64, TOKENS_MAX};
    driver_sequence s;

    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        for (int has_strangers = 0; has_strangers < 2; has_strangers++) {
            if (!is_worth_a_run(c, chunks[i], i > 0 ? chunks[i - 1] : 0, has_strangers))
                continue;
            (void)snprintf(c->how, sizeof c->how, "in steps of %u%s", chunks[i],
                           has_strangers ? " among strangers" : "");
            s = run_prompt(c, chunks[i], has_strangers);
            compare_everything(c, &s);
        }
    }
    (void)snprintf(c->how, sizeof c->how, "whole");
    s = run_prompt(c, TOKENS_MAX, false);
    if (c->has_fewer_cuts)
        compare_everything(c, &s);
    check_greedy(c, s);
}

static void check_mode(golden_case *c, const golden_mode *mode)
{
    driver_options options = mode->driver;

    c->exact = mode->exact;
    c->has_fewer_cuts = mode->has_fewer_cuts;
    c->max_abs = golden_number(c->json, c->exact ? "tolerance/f32_compute_max_abs" : "tolerance/bf16_compute_max_abs");
    c->rms = c->exact ? HUGE_VAL : golden_number(c->json, "tolerance/bf16_compute_rms");
    c->logits_std = golden_number(c->json, "logits_std");
    options.tap = record;
    options.tap_user = &c->taps;
    driver_open(&c->d, c->model, &options);
    for (c->index = 0;; c->index++) {
        golden_tensor ids = golden_get(&c->expected, "seq%u.input_ids", c->index);

        if (!ids.i32)
            break;
        c->ids = ids.i32;
        c->n = (uint32_t)ids.n;
        c->same_experts = golden_get(&c->expected, "seq%u.bf16_same_experts", c->index).i32;
        assert_true(c->n + GREEDY <= TOKENS_MAX);
        check_sequence(c);
    }
    assert_true(c->index > 0);
    driver_close(&c->d);
}

void golden_check_case(const char *name, bool is_large, const golden_mode *modes, uint32_t n_modes)
{
    char folder[512], path[640], made[128] = "";
    golden_case c = {.name = name, .is_large = is_large};
    headrace_error err = {0};

    (void)snprintf(folder, sizeof folder, "%s/goldens/%s", HEADRACE_TEST_DATA, name);
    (void)snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    golden_open(&c.expected, path);
    (void)snprintf(path, sizeof path, "%s/expected.json", folder);
    c.json = json_load_file(path, 0, NULL);
    assert_non_null(c.json);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (!hr_file_exists(path)) {
        hr_test_make_folder(made, sizeof made);
        assert_true(hr_test_materialize(folder, made));
    }
    if (hr_model_open(made[0] ? made : folder, &(hr_model_open_options){0}, &c.model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < n_modes; i++)
        check_mode(&c, &modes[i]);
    free_recorder(&c.taps);
    hr_model_close(c.model);
    if (made[0])
        hr_test_remove_folder(made);
    json_decref(c.json);
    golden_close(&c.expected);
}

/* ---------------------------------------------------------------- GGUF */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The limits of a file of quantised weights, as gguf.json gives them; of a mixture it has no largest difference,
 * because one token in many takes another expert. For files of whole or half floats the limit is that of bf16
 * arithmetic on the same shape (dense_tiny). */
typedef struct gguf_limits {
    double median_rms, max_abs;
} gguf_limits;

static gguf_limits limits_of(const json_t *json)
{
    const json_t *rms = json_object_get(json, "tolerance_int8_activations_median_token_rms");
    const json_t *largest = json_object_get(json, "tolerance_int8_activations_max_abs");

    return (gguf_limits){.median_rms = rms ? json_number_value(rms) : 0.11,
                         .max_abs = largest ? json_number_value(largest) : HUGE_VAL};
}

static void compare_gguf_fast(const char *name, const gguf_limits *limits, const float *got, const float *expected,
                              uint32_t n, uint32_t V)
{
    double rms[TOKENS_MAX], largest = 0;
    uint32_t n_agree = 0;

    assert_true(n <= TOKENS_MAX);
    for (size_t t = 0; t < n; t++) {
        double sum = 0;

        for (size_t i = t * V; i < (t + 1) * V; i++) {
            double difference = fabs((double)got[i] - (double)expected[i]);

            sum += difference * difference;
            largest = difference <= largest ? largest : difference; /* and NaN */
        }
        rms[t] = sqrt(sum / V);
        n_agree += largest_id(got + t * V, V) == largest_id(expected + t * V, V);
    }
    qsort(rms, n, sizeof *rms, by_value);
    if (!(rms[n / 2] <= limits->median_rms))
        fail_msg("%s, fast: median RMS %g, allowed %g", name, rms[n / 2], limits->median_rms);
    if (!(largest <= limits->max_abs))
        fail_msg("%s, fast: off by %g, allowed %g", name, largest, limits->max_abs);
    if (n_agree < n - n / 8) /* llama.cpp, too, finds another one in an eighth of some file's positions */
        fail_msg("%s, fast: %u of %u positions have the exact path's largest logit", name, n_agree, n);
}

static void check_gguf_fast(const hr_model *model, const char *name, const json_t *json, const driver_options *options,
                            const int32_t *ids, uint32_t n, const float *expected)
{
    const gguf_limits limits = limits_of(json);
    uint32_t V = model->arch.vocab_size;
    float *got = calloc((size_t)n * V, sizeof *got);
    driver d;

    assert_non_null(got);
    driver_open(&d, model, options);
    for (uint32_t chunk = 0; chunk < 9; chunk += 4) {
        driver_sequence s;

        driver_forget(&d);
        s = driver_new_sequence(&d, ids, n);
        driver_run(&d, &s, 0, n, chunk, got);
        compare_gguf_fast(name, &limits, got, expected, n, V);
    }
    driver_close(&d);
    free(got);
}

static void check_gguf_exact(golden_case *c, const golden_tensor *ids, const golden_tensor *logits)
{
    float *got = calloc(logits->n, sizeof *got);

    assert_non_null(got);
    driver_open(&c->d, c->model, &(driver_options){.exact = true});
    for (uint32_t chunk = 0; chunk < 9; chunk += 4) {
        driver_sequence s;

        driver_forget(&c->d);
        s = driver_new_sequence(&c->d, ids->i32, (uint32_t)ids->n);
        driver_run(&c->d, &s, 0, (uint32_t)ids->n, chunk, got);
        compare(c, "logits", 0, got, logits->f32, logits->shape[0], logits->shape[1], 0, true);
    }
    driver_close(&c->d);
    free(got);
}

static void check_gguf(const char *name, const json_t *limits, const golden_mode *modes, uint32_t n_modes)
{
    char path[512];
    golden_file expected;
    golden_tensor ids, logits;
    golden_case c = {.name = name, .exact = true, .rms = HUGE_VAL, .logits_std = 1};
    headrace_error err = {0};

    (void)snprintf(path, sizeof path, "%s/goldens/gguf/%s.expected.safetensors", HEADRACE_TEST_DATA, name);
    golden_open(&expected, path);
    (void)snprintf(path, sizeof path, "%s/goldens/gguf/%s", HEADRACE_TEST_DATA, name);
    if (hr_model_open(path, &(hr_model_open_options){0}, &c.model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    c.max_abs = golden_number(limits, "tolerance_f32_compute_max_abs");
    ids = golden_get(&expected, "input_ids");
    logits = golden_get(&expected, "logits_exact");
    for (uint32_t i = 0; i < n_modes; i++) {
        if (modes[i].exact)
            check_gguf_exact(&c, &ids, &logits);
        else
            check_gguf_fast(c.model, name, limits, &modes[i].driver, ids.i32, (uint32_t)ids.n, logits.f32);
    }
    hr_model_close(c.model);
    golden_close(&expected);
}

void golden_check_gguf_files(const golden_mode *modes, uint32_t n_modes)
{
    json_t *json = json_load_file(HEADRACE_TEST_DATA "/goldens/gguf/gguf.json", 0, NULL), *limits;
    const char *name;

    assert_non_null(json);
    assert_int_equal(json_object_size(json_object_get(json, "files")), 9);
    json_object_foreach(json_object_get(json, "files"), name, limits) check_gguf(name, limits, modes, n_modes);
    json_decref(json);
}
