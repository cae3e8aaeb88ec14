/* Steps of the CUDA backend, kernels emulated: numbers against a slow forward pass in double precision, for heads of 64
 * as every published model has; and what a step does beside numbers: what it uploads, running ahead, graphs, slots that
 * change hands, what it never does (allocate, wait), refusals.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cuda/cuda.h"
#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { N = 29, PAGE = 8 };

static random_model_options heads_of_64(void)
{
    random_model_options o = random_model_defaults();

    o.pattern = "cac";
    o.hidden_size = 64;
    o.n_heads = 2;
    o.n_kv_heads = 1;
    o.head_dim = 64;
    return o;
}

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

/* bf16 keeps 8 bits, 2^-9 a rounding; the CPU's bf16 path is held to the same limit. */
static void check_against_slow(const random_model_options *options, int kind, bool exact, uint32_t n_prompt)
{
    hr_model *model = random_model_create(options);
    size_t n = (size_t)N * model->arch.vocab_size;
    double *expected = calloc(n, sizeof *expected), error;
    float *got = calloc(n, sizeof *got);
    int32_t ids[N];
    driver_sequence sequence;
    driver d;

    gpu_be(kind);
    assert_true(expected && got);
    driver_random_ids(model, 5, N, ids);
    slow_forward(model, ids, N, expected);
    driver_open(&d, model, &(driver_options){.ops = &hr_backend_cuda, .page_tokens = PAGE, .exact = exact});
    sequence = driver_new_sequence(&d, ids, N);
    sequence.n_prompt = n_prompt;
    driver_run(&d, &sequence, 0, N, 11, got);
    error = worst(got, expected, n);
    if (!(error <= 0.15))
        fail_msg("%s, H %u, D %u, L %u, %u experts: off by %g of the spread", d.ops->compute_name(d.backend),
                 options->hidden_size, options->head_dim, options->conv_length, options->n_experts, error);
    driver_close(&d);
    gpu_check_clean();
    free(expected);
    free(got);
    random_model_destroy(model);
}

static void heads_of_64_are_as_the_plain_sum(void **state)
{
    random_model_options o = heads_of_64();

    (void)state;
    check_against_slow(&o, GPU_FUSED, false, N);
    check_against_slow(&o, GPU_FUSED, true, 7);
    check_against_slow(&o, GPU_PORTABLE, false, 7);
    o.hidden_size = 128;
    o.n_heads = 8;
    o.n_kv_heads = 2;
    o.conv_length = 4;
    check_against_slow(&o, GPU_FUSED, false, 13);
}

static void what_no_fused_kernel_takes_is_as_the_plain_sum(void **state)
{
    random_model_options o = heads_of_64();

    (void)state;
    o.conv_length = 8;
    o.conv_bias = true;
    check_against_slow(&o, GPU_FUSED, false, 13);
    o = random_model_defaults();
    o.hidden_size = 144;
    o.n_heads = 6;
    o.head_dim = 24;
    o.dtype = HR_F32;
    o.is_untied = true;
    check_against_slow(&o, GPU_FUSED, false, 13);
    check_against_slow(&o, GPU_PORTABLE, false, 13);
}

/* All experts are chosen, so that no near tie can fall the other way. */
static void mixtures_are_as_the_plain_sum(void **state)
{
    random_model_options o = heads_of_64();

    (void)state;
    o.n_experts = o.n_experts_used = 4;
    o.expert_ffn_dim = 72;
    o.n_dense_layers = 1;
    o.use_expert_bias = true;
    o.routed_scaling_factor = 1.5f;
    check_against_slow(&o, GPU_FUSED, false, 13);
    o.norm_topk_prob = false;
    o.use_expert_bias = false;
    check_against_slow(&o, GPU_PORTABLE, false, 13);
}

/* ---------------------------------------------------------------- generating */

/* Some sequences with sampling parameters, advanced together as an engine would. */
typedef struct stream {
    driver_sequence sequence;
    hr_sampling_params sampling;
    int32_t ids[96]; /* prompt, then what was sampled */
    uint32_t n_prompt, n_total;
    int32_t n_logprobs;
} stream;

typedef struct fixture {
    hr_model *model;
    driver d;
    hr_cuda *cuda;
} fixture;

static void set_up(fixture *f, int kind)
{
    random_model_options o = heads_of_64();

    f->model = random_model_create(&o);
    gpu_be(kind);
    driver_open(&f->d, f->model, &(driver_options){.ops = &hr_backend_cuda, .page_tokens = PAGE});
    f->cuda = (hr_cuda *)f->d.backend;
}

static void tear_down(fixture *f)
{
    driver_close(&f->d);
    random_model_destroy(f->model);
    gpu_check_clean();
}

static hr_sampling_params greedy(void)
{
    return (hr_sampling_params){.top_p = 1, .repetition_penalty = 1};
}

static hr_sampling_params lively(uint64_t seed)
{
    static const headrace_bias bias[] = {{3, 1.5f}, {70, -4.0f}};
    static const int32_t stop[] = {7};

    return (hr_sampling_params){.temperature = 0.9f,
                                .top_p = 0.95f,
                                .min_p = 0.01f,
                                .repetition_penalty = 1.3f,
                                .presence_penalty = 0.2f,
                                .frequency_penalty = 0.4f,
                                .top_k = 40,
                                .min_tokens = 2,
                                .seed = seed,
                                .n_bias = 2,
                                .bias = bias,
                                .n_stop_ids = 1,
                                .stop_ids = stop};
}

static void new_stream(fixture *f, stream *s, uint32_t n_prompt, hr_sampling_params sampling)
{
    *s = (stream){.sampling = sampling, .n_prompt = n_prompt, .n_total = n_prompt, .n_logprobs = -1};
    driver_random_ids(f->model, 300 + sampling.seed, n_prompt, s->ids);
    s->sequence = driver_new_sequence(&f->d, s->ids, sizeof s->ids / sizeof *s->ids);
    s->sequence.n_prompt = n_prompt;
}

/* Rows [start, start + n) of a stream at the end of the batch, sampled after the last; from_slot: the one row's token
 * is what the device sampled last. */
static void add(hr_batch *batch, stream *s, uint32_t start, uint32_t n, bool from_slot)
{
    uint32_t n_pages = (start + n + PAGE - 1) / PAGE;

    batch->spans[batch->n_spans++] = (hr_span){.first_row = batch->n_rows,
                                               .n_rows = n,
                                               .start_position = start,
                                               .page_first = batch->n_page_refs,
                                               .n_pages = n_pages,
                                               .state_slot = s->sequence.slot,
                                               .sequence = s->sequence.number,
                                               .n_prompt = s->n_prompt,
                                               .is_fresh = start == 0};
    memcpy(batch->pages + batch->n_page_refs, s->sequence.pages, n_pages * sizeof *batch->pages);
    batch->n_page_refs += n_pages;
    for (uint32_t i = 0; i < n; i++)
        batch->token_ids[batch->n_rows++] = from_slot ? HR_TOKEN_FROM_SLOT : s->ids[start + i];
    batch->outputs[batch->n_outputs++] = (hr_output){
        .row = batch->n_rows - 1,
        .sampling = &s->sampling,
        .history = {.ids = s->ids, .n_prompt = s->n_prompt, .n_total = start + n, .n_pending = from_slot ? 1 : 0},
        .n_logprobs = s->n_logprobs,
        .score_id = -1};
}

static hr_batch *empty_batch(fixture *f, uint32_t i)
{
    hr_batch *batch = f->d.ops->batch(f->d.backend, i);

    batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = 0;
    return batch;
}

static void begin(fixture *f, hr_batch *batch)
{
    headrace_error err = {0};

    if (f->d.ops->step_begin(f->d.backend, batch, &err) != HEADRACE_OK)
        fail_msg("step_begin: %s", err.message);
}

static void finish(fixture *f)
{
    headrace_error err = {0};

    if (f->d.ops->step_wait(f->d.backend, &err) != HEADRACE_OK)
        fail_msg("step_wait: %s", err.message);
}

/* One step with what each stream has not run yet; what is sampled is appended. */
static hr_batch *advance(fixture *f, stream *const *streams, uint32_t n, const uint32_t *done)
{
    hr_batch *batch = empty_batch(f, 0);

    for (uint32_t i = 0; i < n; i++)
        add(batch, streams[i], done[i], streams[i]->n_total - done[i], false);
    begin(f, batch);
    finish(f);
    for (uint32_t i = 0; i < n; i++) {
        assert_false(batch->samples[i].is_bad);
        streams[i]->ids[streams[i]->n_total++] = batch->samples[i].id;
    }
    return batch;
}

/* n tokens of one stream, step by step. */
static void generate(fixture *f, stream *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t done = s->n_total == s->n_prompt ? 0 : s->n_total - 1;

        (void)advance(f, &s, 1, &done);
    }
}

static const hrk_step *last_upload(const fixture *f)
{
    return (const hrk_step *)(const void *)f->cuda->flights[f->cuda->first_flight ^ 1].upload;
}

static void a_step_uploads_what_changed(void **state)
{
    fixture f;
    stream s;

    (void)state;
    set_up(&f, GPU_FUSED);
    new_stream(&f, &s, 2 * PAGE - 2, lively(1));
    generate(&f, &s, 1);
    assert_int_equal(last_upload(&f)->n_page_updates, 2);
    assert_int_equal(last_upload(&f)->n_sampling_updates, 1);
    assert_int_equal(last_upload(&f)->n_history_jobs, 1);
    assert_int_equal(last_upload(&f)->n_prefill_tiles, 1);
    assert_int_equal(last_upload(&f)->n_decode_items, 0);
    for (uint32_t i = 0; i < 5; i++) {
        generate(&f, &s, 1);
        assert_int_equal(last_upload(&f)->n_page_updates, i == 2); /* its row is the first of the third page */
        assert_int_equal(last_upload(&f)->n_sampling_updates, 0);
        assert_int_equal(last_upload(&f)->n_history_jobs, 0);
        assert_int_equal(last_upload(&f)->n_prefill_tiles, 0);
        assert_int_equal(last_upload(&f)->n_decode_items, 1);
    }
    tear_down(&f);
}

/* Kernels are skipped: this is about the host's part of a full decode step. */
static void a_step_of_1024_rows_uploads_less_than_64_kilobytes(void **state)
{
    enum { ROWS = 1024 };
    static const int32_t ids[2] = {1, 2};
    random_model_options o = heads_of_64();
    hr_model *model = random_model_create(&o);
    hr_backend_options options = {
        .page_tokens = 16, .max_rows = ROWS, .max_spans = ROWS, .max_outputs = ROWS, .max_page_refs = ROWS};
    hr_sampling_params sampling = lively(1);
    headrace_error err = {0};
    hr_backend *backend;

    (void)state;
    gpu_be(GPU_FUSED);
    emu_skip_kernels(true);
    if (hr_backend_cuda.open(model, &options, ROWS, ROWS, &backend, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    emu_guard(true);
    for (uint32_t step = 0; step < 2; step++) {
        hr_batch *batch = hr_backend_cuda.batch(backend, step);

        batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = ROWS;
        for (uint32_t i = 0; i < ROWS; i++) {
            batch->token_ids[i] = step == 0 ? 1 : HR_TOKEN_FROM_SLOT;
            batch->pages[i] = i;
            batch->spans[i] = (hr_span){.first_row = i,
                                        .n_rows = 1,
                                        .start_position = step,
                                        .page_first = i,
                                        .n_pages = 1,
                                        .state_slot = i,
                                        .sequence = i + 1,
                                        .is_fresh = step == 0};
            batch->outputs[i] = (hr_output){.row = i,
                                            .sampling = &sampling,
                                            .history = {.ids = ids, .n_total = step + 1, .n_pending = step},
                                            .score_id = -1,
                                            .n_logprobs = -1};
        }
        if (hr_backend_cuda.step_begin(backend, batch, &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
    }
    assert_true(((hr_cuda *)backend)->flights[1].upload_used <= 65536);
    for (uint32_t step = 0; step < 2; step++)
        assert_int_equal(hr_backend_cuda.step_wait(backend, &err), HEADRACE_OK);
    emu_guard(false);
    hr_backend_cuda.close(backend);
    emu_skip_kernels(false);
    random_model_destroy(model);
    gpu_check_clean();
}

/* The tokens do not depend on the history being counted on the device, nor on when a slot was described. */
static void a_sequence_that_comes_back_is_described_anew(void **state)
{
    fixture f;
    stream kept, moved, other;

    (void)state;
    set_up(&f, GPU_FUSED);
    new_stream(&f, &kept, 9, lively(2));
    new_stream(&f, &moved, 9, lively(2));
    new_stream(&f, &other, 5, lively(4));
    generate(&f, &kept, 12);
    generate(&f, &moved, 5);
    other.sequence.slot = moved.sequence.slot; /* moved is preempted, and another takes its slot */
    generate(&f, &other, 3);
    for (uint32_t i = 0; i < 7; i++) {
        stream *s = &moved;

        (void)advance(&f, &s, 1, &(uint32_t){i == 0 ? 0 : moved.n_total - 1}); /* all of it again, then on */
        if (i == 0)
            assert_int_equal(last_upload(&f)->n_history_jobs, 1);
    }
    assert_int_equal(moved.n_total, kept.n_total);
    assert_memory_equal(moved.ids, kept.ids, kept.n_total * sizeof *kept.ids);
    tear_down(&f);
}

/* Two steps in flight: the second is begun before the first is waited for and takes its token from the device. */
static void running_ahead_changes_no_token(void **state)
{
    enum { TOKENS = 14 };
    fixture f;
    stream plain, ahead;

    (void)state;
    set_up(&f, GPU_FUSED);
    new_stream(&f, &plain, 6, lively(5));
    new_stream(&f, &ahead, 6, lively(5));
    generate(&f, &plain, TOKENS);

    emu_guard(true);
    for (uint32_t i = 0; i <= TOKENS; i++) {
        hr_batch *batch = empty_batch(&f, i % 2);

        if (i < TOKENS) {
            add(batch, &ahead, i == 0 ? 0 : ahead.n_prompt + i - 1, i == 0 ? ahead.n_prompt : 1, i > 0);
            begin(&f, batch);
        }
        if (i > 0) {
            finish(&f);
            ahead.ids[ahead.n_total++] = f.cuda->batches[(i - 1) % 2].samples[0].id;
        }
    }
    emu_guard(false);
    assert_memory_equal(ahead.ids, plain.ids, plain.n_total * sizeof *plain.ids);
    tear_down(&f);
}

static void three_steps_in_flight_are_refused(void **state)
{
    fixture f;
    headrace_error err = {0};
    stream s;

    (void)state;
    set_up(&f, GPU_FUSED);
    new_stream(&f, &s, 4, greedy());
    for (uint32_t i = 0; i < 2; i++) {
        hr_batch *batch = empty_batch(&f, i);

        add(batch, &s, i == 0 ? 0 : s.n_prompt, i == 0 ? s.n_prompt : 1, i > 0);
        begin(&f, batch);
    }
    assert_int_equal(f.d.ops->step_begin(f.d.backend, &f.cuda->batches[0], &err), HEADRACE_E_ENGINE);
    finish(&f);
    finish(&f);
    assert_int_equal(f.d.ops->step_wait(f.d.backend, &err), HEADRACE_E_ENGINE);
    tear_down(&f);
}

/* ---------------------------------------------------------------- graphs */

/* Streams of several lengths together, with alternatives asked for; returns what they said. */
static void run_together(int kind, stream streams[3], hr_sample samples[3])
{
    fixture f;
    stream *all[3] = {&streams[0], &streams[1], &streams[2]};
    uint32_t done[3] = {0};
    hr_batch *batch = NULL;

    set_up(&f, kind);
    for (uint32_t i = 0; i < 3; i++) {
        new_stream(&f, &streams[i], 5 + 30 * i, i == 1 ? greedy() : lively(10 + i));
        streams[i].n_logprobs = (int32_t)i * 3;
    }
    emu_guard(true);
    for (uint32_t step = 0; step < 4; step++) {
        batch = advance(&f, all, 3, done);
        for (uint32_t i = 0; i < 3; i++)
            done[i] = streams[i].n_total - 1;
    }
    emu_guard(false);
    memcpy(samples, batch->samples, 3 * sizeof *samples);
    assert_true(f.d.ops->step_time_us(f.d.backend) < 600000000);
    tear_down(&f);
}

static uint32_t launches_in_graphs(void)
{
    uint32_t n = 0;

    for (size_t i = 0; i < emu_n_launches(); i++)
        n += emu_launch_at(i).is_in_graph;
    return n;
}

static uint32_t launches_of(const char *kernel)
{
    uint32_t n = 0;

    for (size_t i = 0; i < emu_n_launches(); i++)
        n += strstr(emu_launch_at(i).name, kernel) != NULL;
    return n;
}

static size_t programmatic_launches(void)
{
    size_t n = 0;

    for (size_t i = 0; i < emu_n_launches(); i++)
        n += emu_launch_at(i).is_programmatic;
    return n;
}

/* The first thing to try when a device gives other numbers than the emulation. */
static void launches_wait_for_each_other_when_asked_to(void **state)
{
    stream early[3], late[3];
    hr_sample samples[3];

    (void)state;
    run_together(GPU_FUSED, early, samples);
    assert_true(programmatic_launches() > 0);
    assert_int_equal(setenv("HEADRACE_CUDA_PROGRAMMATIC", "0", 1), 0);
    run_together(GPU_FUSED, late, samples);
    assert_int_equal(programmatic_launches(), 0);
    assert_int_equal(unsetenv("HEADRACE_CUDA_PROGRAMMATIC"), 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_memory_equal(early[i].ids, late[i].ids, early[i].n_total * sizeof *early[i].ids);
}

static void graphs_change_nothing(void **state)
{
    (void)state;
    for (int kind = GPU_PORTABLE; kind <= GPU_FUSED; kind++) {
        stream with[3], without[3];
        hr_sample samples[2][3];

        run_together(kind, with, samples[0]);
        assert_true(launches_in_graphs() > 0);
        assert_int_equal(setenv("HEADRACE_CUDA_GRAPHS", "0", 1), 0);
        run_together(kind, without, samples[1]);
        assert_int_equal(launches_in_graphs(), 0);
        assert_int_equal(unsetenv("HEADRACE_CUDA_GRAPHS"), 0);
        for (uint32_t i = 0; i < 3; i++) {
            assert_memory_equal(with[i].ids, without[i].ids, with[i].n_total * sizeof *with[i].ids);
            assert_memory_equal(&samples[0][i], &samples[1][i], sizeof samples[0][i]);
            assert_int_equal(samples[0][i].n_top, i * 3);
            assert_true(samples[0][i].logprob < 0 && samples[0][i].rank > 0);
        }
        assert_int_equal(samples[0][1].rank, 1); /* greedy */
        assert_int_equal(samples[0][1].top_ids[0], samples[0][1].id);
    }
}

/* ---------------------------------------------------------------- more than one block holds */

/* Nine long sequences at once: more new pages than an upload takes, and more decode attention than one round. */
static void long_contexts_go_in_rounds(void **state)
{
    enum { SEQUENCES = 9, LENGTH = 4096 };
    random_model_options o = random_model_defaults();
    hr_backend_options options = {.page_tokens = 1,
                                  .max_rows = SEQUENCES,
                                  .max_spans = SEQUENCES,
                                  .max_outputs = SEQUENCES,
                                  .max_page_refs = SEQUENCES * LENGTH};
    const hr_backend_ops *ops = &hr_backend_cuda;
    headrace_error err = {0};
    hr_backend *backend;
    hr_model *model;
    float *logits[2];
    size_t V = o.vocab_size;

    (void)state;
    o.pattern = "a";
    o.n_heads = o.n_kv_heads = 1;
    model = random_model_create(&o);
    gpu_be(GPU_PORTABLE);
    for (int together = 0; together < 2; together++) {
        hr_cuda *cuda;
        hr_batch *batch;
        uint16_t *keys;

        logits[together] = calloc(SEQUENCES * V, sizeof(float));
        if (ops->open(model, &options, SEQUENCES * LENGTH, SEQUENCES, &backend, &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
        cuda = (hr_cuda *)backend;
        keys = calloc(cuda->kv_bytes / 2, sizeof *keys);
        assert_true(keys && logits[together]);
        for (size_t i = 0; i < cuda->kv_bytes / 2; i++)
            keys[i] = (uint16_t)(0x3E00 + i * 2654435761u % 512 + (i * 40503u >> 7) % 2 * 0x8000u);
        assert_int_equal(cudaMemcpy(cuda->kv, keys, cuda->kv_bytes, cudaMemcpyHostToDevice), cudaSuccess);
        free(keys);
        batch = ops->batch(backend, 0);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            uint32_t at = together ? i : 0, length = LENGTH - 100 * i;

            batch->spans[at] = (hr_span){.first_row = at,
                                         .n_rows = 1,
                                         .start_position = length - 1,
                                         .page_first = at * LENGTH,
                                         .n_pages = length,
                                         .state_slot = i,
                                         .sequence = i + 1,
                                         .is_fresh = true};
            batch->token_ids[at] = (int32_t)i;
            for (uint32_t p = 0; p < LENGTH; p++)
                batch->pages[at * LENGTH + p] = p * SEQUENCES + i;
            batch->outputs[at] =
                (hr_output){.row = at, .n_logprobs = -1, .score_id = -1, .logits = logits[together] + i * V};
            batch->n_rows = batch->n_spans = batch->n_outputs = at + 1;
            batch->n_page_refs = (at + 1) * LENGTH;
            if (together && i + 1 < SEQUENCES)
                continue;
            emu_clear_trace();
            if (ops->step_begin(backend, batch, &err) != HEADRACE_OK || ops->step_wait(backend, &err) != HEADRACE_OK)
                fail_msg("%s", err.message);
        }
        assert_int_equal(launches_of("step_begin"), together ? 2 : 1); /* one for the pages that did not fit */
        assert_int_equal(launches_of("attention_simple"), together ? 3 : 1);
        ops->close(backend);
    }
    assert_memory_equal(logits[0], logits[1], SEQUENCES * V * sizeof(float));
    assert_false(isnan(logits[0][0]));
    free(logits[0]);
    free(logits[1]);
    random_model_destroy(model);
    gpu_check_clean();
}

/* ---------------------------------------------------------------- refusals */

static void a_batch_that_cannot_be_is_refused_and_the_next_one_runs(void **state)
{
    fixture f;
    headrace_error err = {0};
    hr_batch *batch;
    stream s;

    (void)state;
    set_up(&f, GPU_PORTABLE);
    new_stream(&f, &s, 4, greedy());
    batch = empty_batch(&f, 0);
    add(batch, &s, 0, 4, false);
    batch->spans[0].state_slot = DRIVER_SLOTS;
    assert_int_equal(f.d.ops->step_begin(f.d.backend, batch, &err), HEADRACE_E_ENGINE);
    batch->spans[0].state_slot = s.sequence.slot;
    batch->spans[0].sequence = 0;
    assert_int_equal(f.d.ops->step_begin(f.d.backend, batch, &err), HEADRACE_E_ENGINE);
    assert_non_null(strstr(err.message, "no number"));
    batch->spans[0].sequence = s.sequence.number;
    batch->token_ids[2] = HR_TOKEN_FROM_SLOT; /* this slot never sampled */
    assert_int_equal(f.d.ops->step_begin(f.d.backend, batch, &err), HEADRACE_E_ENGINE);
    generate(&f, &s, 2);
    tear_down(&f);
}

static headrace_status try_open(const hr_model *model, hr_backend_options options, headrace_error *err)
{
    hr_backend *backend = NULL;
    headrace_status status;

    options.page_tokens = options.page_tokens > 0 ? options.page_tokens : PAGE;
    options.max_rows = options.max_spans = options.max_outputs = 8;
    options.max_page_refs = 64;
    *err = (headrace_error){0};
    status = hr_backend_cuda.open(model, &options, 64, 8, &backend, err);
    if (status == HEADRACE_OK)
        hr_backend_cuda.close(backend);
    else
        assert_null(backend);
    assert_int_equal(emu_n_allocations(), 0);
    return status;
}

static void what_a_gpu_cannot_do_is_said(void **state)
{
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    struct emu_device device = emu_default_device();
    hr_device_memory memory;
    headrace_error err;

    (void)state;
    gpu_be(GPU_FUSED);
    assert_int_equal(try_open(model, (hr_backend_options){.kv_dtype = HR_KV_F32}, &err), HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "f32"));
    assert_int_equal(try_open(model, (hr_backend_options){.device_index = 3}, &err), HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no GPU 3"));
    assert_int_equal(try_open(model, (hr_backend_options){.page_tokens = 5000}, &err), HEADRACE_E_ARGUMENT);
    device.major = 7;
    device.minor = 5;
    emu_configure(&device);
    assert_int_equal(try_open(model, (hr_backend_options){0}, &err), HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "7.5"));
    device = emu_default_device();
    device.n_devices = 0;
    emu_configure(&device);
    assert_int_equal(hr_backend_cuda.device_memory(0, &memory, &err), HEADRACE_E_UNSUPPORTED);
    assert_int_equal(try_open(model, (hr_backend_options){0}, &err), HEADRACE_E_UNSUPPORTED);
    random_model_destroy(model);
}

static void too_little_memory_says_what_fits(void **state)
{
    random_model_options o = random_model_defaults();
    hr_model *model = random_model_create(&o);
    hr_backend_options options = {
        .page_tokens = PAGE, .max_rows = 8, .max_spans = 8, .max_outputs = 8, .max_page_refs = 64};
    struct emu_device device = emu_default_device();
    hr_backend_sizes sizes;
    hr_device_memory memory;
    headrace_error err = {0};
    hr_backend *backend;

    (void)state;
    gpu_be(GPU_FUSED);
    assert_int_equal(hr_backend_cuda.sizes(model, &options, &sizes, &err), HEADRACE_OK);
    device.memory_bytes = sizes.scratch_bytes + (8 << 20);
    emu_configure(&device);
    assert_int_equal(hr_backend_cuda.device_memory(0, &memory, &err), HEADRACE_OK);
    assert_true(memory.free_bytes <= device.memory_bytes);
    assert_int_equal(hr_backend_cuda.open(model, &options, 1 << 20, 8, &backend, &err), HEADRACE_E_MEMORY);
    assert_non_null(strstr(err.message, "--kv-cache-memory"));
    device.memory_bytes = sizes.scratch_bytes / 2;
    emu_configure(&device);
    assert_int_equal(hr_backend_cuda.open(model, &options, 64, 8, &backend, &err), HEADRACE_E_MEMORY);
    assert_non_null(strstr(err.message, "--max-num-batched-tokens"));
    assert_int_equal(emu_n_allocations(), 0);
    random_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_of_64_are_as_the_plain_sum),
        cmocka_unit_test(what_no_fused_kernel_takes_is_as_the_plain_sum),
        cmocka_unit_test(mixtures_are_as_the_plain_sum),
        cmocka_unit_test(a_step_uploads_what_changed),
        cmocka_unit_test(a_step_of_1024_rows_uploads_less_than_64_kilobytes),
        cmocka_unit_test(a_sequence_that_comes_back_is_described_anew),
        cmocka_unit_test(running_ahead_changes_no_token),
        cmocka_unit_test(three_steps_in_flight_are_refused),
        cmocka_unit_test(launches_wait_for_each_other_when_asked_to),
        cmocka_unit_test(graphs_change_nothing),
        cmocka_unit_test(long_contexts_go_in_rounds),
        cmocka_unit_test(a_batch_that_cannot_be_is_refused_and_the_next_one_runs),
        cmocka_unit_test(what_a_gpu_cannot_do_is_said),
        cmocka_unit_test(too_little_memory_says_what_fits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
