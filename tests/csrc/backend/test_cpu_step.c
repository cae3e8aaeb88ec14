/* One step of the CPU backend against a slow forward pass in double precision, for shapes that no golden has; and what
 * a step must do beside numbers: refuse bad batches, sample, score, remember tokens, allocate nothing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { N = 29 };

/* ---------------------------------------------------------------- numbers */

/* Largest difference, relative to the spread of the expected logits. */
static double worst(const float *got, const double *expected, size_t n)
{
    double largest = 0, sum = 0;

    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - expected[i]);

        largest = difference > largest || isnan(difference) ? difference : largest;
        sum += expected[i] * expected[i];
    }
    return largest / sqrt(sum / (double)n);
}

/* In fp32 the noise of these sizes is some 1e-6 of the spread; 1e-4 leaves room, and one wrong term gives 1e-2 and
 * more. */
static void check_against_slow(const random_model_options *options, bool exact, double tolerance)
{
    static const uint32_t chunks[] = {0, 1, 2, 5};
    hr_model *model = random_model_create(options);
    size_t n = (size_t)N * model->arch.vocab_size;
    double *expected = calloc(n, sizeof *expected);
    float *got = calloc(n, sizeof *got);
    int32_t ids[N];
    driver d;

    assert_true(expected && got);
    driver_random_ids(model, 5, N, ids);
    slow_forward(model, ids, N, expected);
    driver_open(&d, model, &(driver_options){.exact = exact});
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        driver_sequence sequence = driver_new_sequence(&d, ids, N);
        double error;

        memset(got, 0xFF, n * sizeof *got);
        driver_run(&d, &sequence, 0, N, chunks[i], got);
        error = worst(got, expected, n);
        if (!(error <= tolerance))
            fail_msg("L %u, chunks of %u, seed %llu: off by %g of the spread, allowed %g", options->conv_length,
                     chunks[i], (unsigned long long)options->seed, error, tolerance);
    }
    driver_close(&d);
    free(expected);
    free(got);
    random_model_destroy(model);
}

static void every_convolution_length_is_as_the_plain_sum(void **state)
{
    (void)state;
    for (uint32_t L = HR_CONV_LENGTH_MIN; L <= HR_CONV_LENGTH_MAX; L++) {
        random_model_options o = random_model_defaults();

        o.conv_length = L;
        o.seed = L;
        check_against_slow(&o, true, 1e-4);
        o.conv_bias = true;
        check_against_slow(&o, true, 1e-4);
    }
}

static void more_channels_than_one_block_are_as_the_plain_sum(void **state)
{
    random_model_options o = random_model_defaults();

    (void)state;
    o.pattern = "cac";
    o.hidden_size = 272; /* two blocks of 128 channels and a rest */
    o.conv_bias = true;
    check_against_slow(&o, true, 1e-4);
}

static void every_grouping_of_heads_is_as_the_plain_sum(void **state)
{
    static const uint32_t heads[][3] = {{1, 1, 2}, {3, 3, 16}, {6, 2, 8}, {8, 1, 16}, {4, 4, 96}};

    (void)state;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        random_model_options o = random_model_defaults();

        o.pattern = "aca";
        o.n_heads = heads[i][0];
        o.n_kv_heads = heads[i][1];
        o.head_dim = heads[i][2];
        o.seed = 20 + i;
        o.dtype = i % 2 ? HR_F32 : HR_BF16;
        o.is_untied = i % 2;
        check_against_slow(&o, true, 1e-4);
    }
}

static random_model_options mixture(void)
{
    random_model_options o = random_model_defaults();

    o.n_experts = 12;
    o.n_experts_used = 3;
    o.expert_ffn_dim = 40;
    o.n_dense_layers = 1;
    o.use_expert_bias = true;
    o.seed = 40;
    return o;
}

static void mixtures_are_as_the_plain_sum(void **state)
{
    random_model_options o = mixture();

    (void)state;
    check_against_slow(&o, true, 1e-4);
    o.norm_topk_prob = false;
    o.routed_scaling_factor = 2.5f;
    check_against_slow(&o, true, 1e-4);
    o.use_expert_bias = false;
    o.n_dense_layers = 0;
    o.n_experts_used = 12;
    check_against_slow(&o, true, 1e-4);
}

/* bf16 keeps 8 bits: 2^-9 a rounding, over some ten roundings in a row that reach the worst of 3000 logits. */
static void the_fast_path_stays_near(void **state)
{
    random_model_options o = random_model_defaults();

    (void)state;
    check_against_slow(&o, false, 0.15);
    o.conv_length = 5;
    o.conv_bias = true;
    check_against_slow(&o, false, 0.15);
}

/* ---------------------------------------------------------------- outputs */

static hr_sampling_params greedy = {.top_p = 1, .repetition_penalty = 1};

typedef struct fixture {
    hr_model *model;
    driver d;
    driver_sequence sequence;
    int32_t ids[N];
    float *logits; /* [N, V] of a plain run */
} fixture;

static void set_up(fixture *f)
{
    random_model_options o = random_model_defaults();

    f->model = random_model_create(&o);
    driver_random_ids(f->model, 6, N, f->ids);
    driver_open(&f->d, f->model, &(driver_options){.exact = true});
    f->sequence = driver_new_sequence(&f->d, f->ids, N);
    f->logits = calloc((size_t)N * o.vocab_size, sizeof *f->logits);
    assert_non_null(f->logits);
    driver_run(&f->d, &f->sequence, 0, N, 0, f->logits);
}

static void tear_down(fixture *f)
{
    driver_close(&f->d);
    random_model_destroy(f->model);
    free(f->logits);
}

/* A batch of the whole sequence from position 0 without outputs; tests change it. */
static hr_batch *whole_batch(fixture *f)
{
    hr_batch *batch = hr_backend_cpu.batch(f->d.backend, 1);

    batch->n_rows = N;
    batch->n_spans = 1;
    batch->n_outputs = 0;
    batch->n_page_refs = f->sequence.n_pages;
    memcpy(batch->token_ids, f->ids, sizeof f->ids);
    memcpy(batch->pages, f->sequence.pages, f->sequence.n_pages * sizeof *batch->pages);
    batch->spans[0] =
        (hr_span){.n_rows = N, .n_pages = f->sequence.n_pages, .state_slot = f->sequence.slot, .is_fresh = true};
    return batch;
}

static headrace_status run(fixture *f, hr_batch *batch, headrace_error *err)
{
    *err = (headrace_error){0};
    HR_PASS(hr_backend_cpu.step_begin(f->d.backend, batch, err));
    return hr_backend_cpu.step_wait(f->d.backend, err);
}

static int32_t largest_id(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

static void an_output_samples_scores_or_copies(void **state)
{
    fixture f;
    headrace_error err;
    hr_batch *batch;
    uint32_t V;

    (void)state;
    set_up(&f);
    V = f.model->arch.vocab_size;
    batch = whole_batch(&f);
    batch->n_outputs = 3;
    batch->outputs[0] = (hr_output){.row = 3, .score_id = 17, .n_logprobs = 2};
    batch->outputs[1] = (hr_output){.row = 8, .score_id = -1, .n_logprobs = -1};
    batch->outputs[2] = (hr_output){.row = N - 1, .sampling = &greedy, .score_id = -1, .n_logprobs = 0};
    batch->outputs[2].history = (hr_history){.ids = f.ids, .n_prompt = N, .n_total = N};
    assert_int_equal(run(&f, batch, &err), HEADRACE_OK);
    assert_int_equal(batch->samples[0].id, 17);
    assert_int_equal(batch->samples[0].n_top, 2);
    assert_int_equal(batch->samples[0].top_ids[0], largest_id(f.logits + 3 * V, V));
    assert_int_equal(batch->samples[1].id, -1);
    assert_int_equal(batch->samples[2].id, largest_id(f.logits + (N - 1) * V, V));
    assert_int_equal(batch->samples[2].rank, 1);
    assert_true(batch->samples[2].logprob < 0);
    tear_down(&f);
}

static void a_token_can_be_taken_from_the_slot(void **state)
{
    fixture f;
    headrace_error err;
    hr_batch *batch;
    int32_t sampled, again[2];
    float *logits[2];

    (void)state;
    set_up(&f);
    for (int i = 0; i < 2; i++) {
        logits[i] = calloc(f.model->arch.vocab_size, sizeof(float));
        batch = whole_batch(&f);
        batch->n_rows = batch->spans[0].n_rows = N - 1;
        batch->n_outputs = 1;
        batch->outputs[0] = (hr_output){.row = N - 2, .sampling = &greedy, .score_id = -1, .n_logprobs = -1};
        assert_int_equal(run(&f, batch, &err), HEADRACE_OK);
        sampled = batch->samples[0].id;
        batch->n_rows = 1;
        batch->spans[0].n_rows = 1;
        batch->spans[0].start_position = N - 1;
        batch->spans[0].is_fresh = false;
        batch->token_ids[0] = i == 0 ? sampled : HR_TOKEN_FROM_SLOT;
        batch->outputs[0].row = 0;
        batch->outputs[0].logits = logits[i];
        assert_int_equal(run(&f, batch, &err), HEADRACE_OK);
        again[i] = batch->samples[0].id;
    }
    assert_int_equal(again[0], again[1]);
    assert_memory_equal(logits[0], logits[1], f.model->arch.vocab_size * sizeof(float));
    free(logits[0]);
    free(logits[1]);
    tear_down(&f);
}

static void a_slot_that_never_sampled_has_no_token(void **state)
{
    fixture f;
    headrace_error err;
    hr_batch *batch;

    (void)state;
    set_up(&f);
    batch = whole_batch(&f);
    batch->spans[0].state_slot = DRIVER_SLOTS - 1;
    batch->token_ids[0] = HR_TOKEN_FROM_SLOT;
    assert_int_equal(run(&f, batch, &err), HEADRACE_E_ENGINE);
    tear_down(&f);
}

static void logits_that_are_not_numbers_are_reported(void **state)
{
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    headrace_error err;
    fixture f = {.model = model};
    hr_batch *batch;

    (void)state;
    ((float *)(uintptr_t)model->final_norm)[5] = NAN;
    driver_random_ids(model, 6, N, f.ids);
    driver_open(&f.d, model, &(driver_options){.exact = true});
    f.sequence = driver_new_sequence(&f.d, f.ids, N);
    batch = whole_batch(&f);
    batch->n_outputs = 1;
    batch->outputs[0] = (hr_output){.row = 2, .sampling = &greedy, .score_id = -1, .n_logprobs = -1};
    assert_int_equal(run(&f, batch, &err), HEADRACE_OK);
    assert_true(batch->samples[0].is_bad);
    tear_down(&f);
}

/* ---------------------------------------------------------------- refusals */

typedef void (*spoil_fn)(hr_batch *batch);

static void no_rows(hr_batch *b)
{
    b->n_rows = 0;
}
static void too_many_rows(hr_batch *b)
{
    b->n_rows = DRIVER_ROWS + 1;
}
static void too_many_pages(hr_batch *b)
{
    b->n_page_refs = DRIVER_PAGES + 1;
}
static void foreign_page(hr_batch *b)
{
    b->pages[1] = DRIVER_PAGES;
}
static void gap_between_spans(hr_batch *b)
{
    b->spans[0].first_row = 1;
}
static void rows_without_span(hr_batch *b)
{
    b->spans[0].n_rows--;
}
static void span_beyond_rows(hr_batch *b)
{
    b->spans[0].n_rows++;
}
static void too_few_pages(hr_batch *b)
{
    b->spans[0].n_pages--;
}
static void pages_beyond_table(hr_batch *b)
{
    b->spans[0].page_first = 2;
}
static void page_first_wraps(hr_batch *b)
{
    b->spans[0].page_first = UINT32_MAX;
}
static void position_wraps(hr_batch *b)
{
    b->spans[0].start_position = UINT32_MAX - 3;
}
static void foreign_slot(hr_batch *b)
{
    b->spans[0].state_slot = DRIVER_SLOTS;
}
static void more_warmup_than_rows(hr_batch *b)
{
    b->spans[0].n_warmup = N + 1;
}
static void id_too_large(hr_batch *b)
{
    b->token_ids[N - 1] = 96;
}
static void id_negative(hr_batch *b)
{
    b->token_ids[0] = -2;
}
static void output_beyond_rows(hr_batch *b)
{
    b->n_outputs = 1;
    b->outputs[0] = (hr_output){.row = N, .score_id = -1};
}
static void outputs_out_of_order(hr_batch *b)
{
    b->n_outputs = 2;
    b->outputs[0] = (hr_output){.row = 5, .score_id = -1};
    b->outputs[1] = (hr_output){.row = 4, .score_id = -1};
}
static void scored_id_too_large(hr_batch *b)
{
    b->n_outputs = 1;
    b->outputs[0] = (hr_output){.row = 5, .score_id = 96};
}

static void a_batch_outside_the_capacities_is_refused(void **state)
{
    static const spoil_fn spoils[] = {no_rows,
                                      too_many_rows,
                                      too_many_pages,
                                      foreign_page,
                                      gap_between_spans,
                                      rows_without_span,
                                      span_beyond_rows,
                                      too_few_pages,
                                      pages_beyond_table,
                                      page_first_wraps,
                                      position_wraps,
                                      foreign_slot,
                                      more_warmup_than_rows,
                                      id_too_large,
                                      id_negative,
                                      output_beyond_rows,
                                      outputs_out_of_order,
                                      scored_id_too_large};
    fixture f;
    headrace_error err;
    hr_batch *batch;

    (void)state;
    set_up(&f);
    for (size_t i = 0; i < sizeof spoils / sizeof *spoils; i++) {
        batch = whole_batch(&f);
        spoils[i](batch);
        if (hr_backend_cpu.step_begin(f.d.backend, batch, &err) != HEADRACE_E_ENGINE)
            fail_msg("bad batch %zu was taken", i);
        assert_true(err.message[0] != 0);
    }
    assert_int_equal(hr_backend_cpu.step_wait(f.d.backend, &err), HEADRACE_E_ENGINE);
    assert_int_equal(run(&f, whole_batch(&f), &err), HEADRACE_OK);
    tear_down(&f);
}

static void bad_options_are_refused(void **state)
{
    const hr_backend_options good = {
        .n_threads = 1, .page_tokens = 16, .max_rows = 8, .max_spans = 2, .max_outputs = 2, .max_page_refs = 8};
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    hr_backend_options bad[8];
    hr_backend *backend;
    hr_backend_sizes s;
    headrace_error err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        bad[i] = good;
    bad[0].page_tokens = 0;
    bad[1].n_threads = 100000;
    bad[2].max_rows = 0;
    bad[3].max_rows = UINT32_MAX;
    bad[4].max_spans = 0;
    bad[5].max_outputs = 0;
    bad[6].max_page_refs = 0;
    bad[7].n_valid_ids = 97;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(hr_backend_cpu.open(model, &bad[i], 4, 1, &backend, &err), HEADRACE_E_ARGUMENT);
        assert_null(backend);
        assert_int_equal(hr_backend_cpu.sizes(model, &bad[i], &s, &err), HEADRACE_E_ARGUMENT);
    }
    assert_int_equal(hr_backend_cpu.open(model, &good, UINT32_MAX, 1, &backend, &err), HEADRACE_E_MEMORY); /* 50 TB */
    assert_null(backend);
    assert_int_equal(hr_backend_cpu.open(model, &good, 0, 0, &backend, &err), HEADRACE_OK);
    hr_backend_cpu.close(backend);
    random_model_destroy(model);
}

static void sizes_follow_from_the_shapes(void **state)
{
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    hr_backend_options options = {
        .page_tokens = 16, .max_rows = 8, .max_spans = 2, .max_outputs = 2, .max_page_refs = 8};
    hr_backend_sizes s;

    (void)state;
    options.kv_dtype = HR_KV_F32;
    assert_int_equal(hr_backend_cpu.sizes(model, &options, &s, NULL), HEADRACE_OK);
    assert_int_equal(s.page_bytes, 16 * hr_arch_kv_values_per_token(&model->arch) * 4);
    assert_int_equal(s.slot_bytes, hr_arch_state_values(&model->arch) * 4);
    options.kv_dtype = HR_KV_AUTO;
    assert_int_equal(hr_backend_cpu.sizes(model, &options, &s, NULL), HEADRACE_OK);
    assert_int_equal(s.page_bytes, 16 * hr_arch_kv_values_per_token(&model->arch) * 2);
    random_model_destroy(model);
}

/* The shape of the largest dense model: what an instance holds beside pages and states stays within 150 MB. */
static void scratch_of_a_real_shape_is_bounded(void **state)
{
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    hr_backend_options options = {.n_threads = 2,
                                  .page_tokens = 16,
                                  .max_rows = 512,
                                  .max_spans = 64,
                                  .max_outputs = 512,
                                  .max_page_refs = 64 * 256};
    hr_backend_sizes s;

    (void)state;
    model->arch.hidden_size = 2048;
    model->arch.n_heads = 32;
    model->arch.n_kv_heads = 8;
    model->arch.head_dim = 64;
    model->arch.vocab_size = 65536;
    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        model->layers[i].dense.gate.rows = 12288;
    for (int exact = 0; exact < 2; exact++) {
        options.exact = exact;
        assert_int_equal(hr_backend_cpu.sizes(model, &options, &s, NULL), HEADRACE_OK);
        assert_true(s.scratch_bytes < (size_t)150 << 20);
    }
    random_model_destroy(model);
}

/* ---------------------------------------------------------------- memory */

static unsigned n_allocations;
static bool is_counting;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *at, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *at, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);

static void note(void)
{
    if (__atomic_load_n(&is_counting, __ATOMIC_RELAXED))
        __atomic_fetch_add(&n_allocations, 1, __ATOMIC_RELAXED);
}

void *__wrap_malloc(size_t n)
{
    note();
    return __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t size)
{
    note();
    return __real_calloc(n, size);
}
void *__wrap_realloc(void *at, size_t n)
{
    note();
    return __real_realloc(at, n);
}
void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    note();
    return __real_aligned_alloc(alignment, n);
}
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    note();
    return __real_mmap(at, n, prot, flags, fd, offset);
}

static void nothing_is_allocated_in_a_step(void **state)
{
    random_model_options o = mixture();
    hr_sampling_params sampling = {
        .temperature = 0.8f, .top_p = 0.9f, .min_p = 0.01f, .top_k = 20, .repetition_penalty = 1.1f};
    hr_model *model = random_model_create(&o);
    headrace_error err;
    fixture f = {.model = model};
    hr_batch *batch;
    void *volatile probe;

    (void)state;
    driver_random_ids(model, 6, N, f.ids);
    for (int exact = 0; exact < 2; exact++) {
        driver_open(&f.d, model, &(driver_options){.exact = exact});
        f.sequence = driver_new_sequence(&f.d, f.ids, N);
        batch = whole_batch(&f);
        batch->n_outputs = N;
        for (uint32_t i = 0; i < N; i++)
            batch->outputs[i] = (hr_output){.row = i,
                                            .sampling = &sampling,
                                            .history = {.ids = f.ids, .n_prompt = i, .n_total = i + 1},
                                            .n_logprobs = 5,
                                            .score_id = i % 2 ? 3 : -1};
        __atomic_store_n(&n_allocations, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&is_counting, true, __ATOMIC_RELAXED);
        assert_int_equal(run(&f, batch, &err), HEADRACE_OK);
        __atomic_store_n(&is_counting, false, __ATOMIC_RELAXED);
        assert_int_equal(n_allocations, 0);
        driver_close(&f.d);
    }
    __atomic_store_n(&is_counting, true, __ATOMIC_RELAXED); /* the counter counts */
    probe = malloc(1);
    free(probe);
    __atomic_store_n(&is_counting, false, __ATOMIC_RELAXED);
    assert_int_equal(n_allocations, 1);
    random_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_convolution_length_is_as_the_plain_sum),
        cmocka_unit_test(more_channels_than_one_block_are_as_the_plain_sum),
        cmocka_unit_test(every_grouping_of_heads_is_as_the_plain_sum),
        cmocka_unit_test(mixtures_are_as_the_plain_sum),
        cmocka_unit_test(the_fast_path_stays_near),
        cmocka_unit_test(an_output_samples_scores_or_copies),
        cmocka_unit_test(a_token_can_be_taken_from_the_slot),
        cmocka_unit_test(a_slot_that_never_sampled_has_no_token),
        cmocka_unit_test(logits_that_are_not_numbers_are_reported),
        cmocka_unit_test(a_batch_outside_the_capacities_is_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(sizes_follow_from_the_shapes),
        cmocka_unit_test(scratch_of_a_real_shape_is_bounded),
        cmocka_unit_test(nothing_is_allocated_in_a_step),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
