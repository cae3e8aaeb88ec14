/* See fake_backend.h. It also refuses (by HR_ASSERT) every batch that breaks the contract of backend/backend.h. */
#include "fake_backend.h"

#include "base/rng.h"

#include <string.h>
#include <time.h>

typedef struct fake_slot {
    int32_t *window; /* [W], newest last */
    uint32_t n;
} fake_slot;

typedef struct fake_backend {
    hr_backend base;
    hr_fake *fake;
    hr_backend_options options;
    uint32_t n_pages, n_slots, window;
    uint64_t *numbers;                        /* [n_pages, P] */
    fake_slot *slots;                         /* [n_slots] */
    int32_t *windows;                         /* [n_slots, W] */
    uint64_t *slot_used_at, *page_written_at; /* step number + 1 */
    uint64_t step, last_allocations;
    hr_batch batch;
} fake_backend;

/* ---------------------------------------------------------------- the arithmetic, shared with the truth */

static uint64_t row_number(int32_t id, uint32_t position, const int32_t *window, uint32_t n_window)
{
    uint64_t hash = (uint64_t)(uint32_t)id << 32 | position;

    for (uint32_t i = 0; i < n_window; i++)
        hash = (hash ^ (uint32_t)window[i]) * 0x9FB21C651E98DF25u + (hash >> 31);
    return hr_mix64(hash ^ (uint64_t)n_window << 56);
}

static uint64_t at_position(uint64_t number, uint32_t position)
{
    return hr_mix64(number + position * 0x9E3779B97F4A7C15u);
}

uint64_t hr_fake_truth_at(hr_fake_truth *truth, const int32_t *ids, uint32_t position, uint32_t window)
{
    for (; truth->n <= position; truth->n++) {
        uint32_t n_window = truth->n < window ? truth->n : window;

        truth->sum += at_position(row_number(ids[truth->n], truth->n, ids + truth->n - n_window, n_window), truth->n);
    }
    return hr_mix64(truth->sum);
}

int32_t hr_fake_sample(uint64_t hash, const hr_sampling_params *params, uint32_t n_output)
{
    if (params->temperature > 0.0f)
        hash = hr_rng_at(hr_rng_key(params->seed, n_output), hash);
    return (int32_t)(hash % FAKE_VOCAB);
}

float hr_fake_score(uint64_t hash, int32_t id)
{
    return -(float)(hr_mix64(hash ^ (uint32_t)id) % 100000) / 1000.0f;
}

/* ---------------------------------------------------------------- a step */

static void check_span(fake_backend *backend, const hr_batch *batch, uint32_t i, uint32_t first_row)
{
    const hr_span *span = &batch->spans[i];
    uint32_t page_tokens = backend->options.page_tokens;

    HR_ASSERT(span->first_row == first_row && span->n_rows > 0 && span->n_warmup <= span->n_rows);
    HR_ASSERT(span->page_first + span->n_pages <= batch->n_page_refs);
    HR_ASSERT((uint64_t)span->n_pages * page_tokens >= (uint64_t)span->start_position + span->n_rows);
    HR_ASSERT(span->state_slot < backend->n_slots);
    HR_ASSERT(backend->slot_used_at[span->state_slot] != backend->step + 1);
    backend->slot_used_at[span->state_slot] = backend->step + 1;
    for (uint32_t p = 0; p < span->n_pages; p++)
        HR_ASSERT(batch->pages[span->page_first + p] < backend->n_pages);
    /* No page is written by two sequences in one step. */
    if (span->n_warmup < span->n_rows)
        for (uint32_t p = (span->start_position + span->n_warmup) / page_tokens;
             p <= (span->start_position + span->n_rows - 1) / page_tokens; p++) {
            uint32_t page = batch->pages[span->page_first + p];

            HR_ASSERT(backend->page_written_at[page] != backend->step + 1);
            backend->page_written_at[page] = backend->step + 1;
        }
}

static void run_row(fake_backend *backend, const hr_batch *batch, const hr_span *span, uint32_t i)
{
    uint32_t position = span->start_position + i, page_tokens = backend->options.page_tokens;
    int32_t id = batch->token_ids[span->first_row + i];
    uint32_t page = batch->pages[span->page_first + position / page_tokens];
    fake_slot *slot = &backend->slots[span->state_slot];

    HR_ASSERT(id >= 0 && id < FAKE_VOCAB);
    if (i == 0 && span->is_fresh)
        slot->n = 0;
    if (i >= span->n_warmup)
        backend->numbers[(size_t)page * page_tokens + position % page_tokens] =
            row_number(id, position, slot->window + backend->window - slot->n, slot->n);
    if (backend->window == 0)
        return;
    memmove(slot->window, slot->window + 1, (backend->window - 1) * sizeof(int32_t));
    slot->window[backend->window - 1] = id;
    if (slot->n < backend->window)
        slot->n++;
}

static uint64_t output_hash(const fake_backend *backend, const hr_batch *batch, const hr_span *span, uint32_t position)
{
    uint32_t page_tokens = backend->options.page_tokens;
    uint64_t sum = 0;

    for (uint32_t i = 0; i <= position; i++) {
        uint32_t page = batch->pages[span->page_first + i / page_tokens];

        sum += at_position(backend->numbers[(size_t)page * page_tokens + i % page_tokens], i);
    }
    return hr_mix64(sum);
}

static void give_output(fake_backend *backend, const hr_batch *batch, const hr_span *span, uint32_t at)
{
    const hr_output *output = &batch->outputs[at];
    hr_sample *sample = &batch->samples[at];
    uint32_t position = span->start_position + (output->row - span->first_row);
    uint64_t hash = output_hash(backend, batch, span, position);

    HR_ASSERT(output->row - span->first_row >= span->n_warmup);
    sample->is_bad = atomic_load(&backend->fake->always_bad);
    sample->n_top = 0;
    sample->rank = 1;
    if (output->score_id >= 0) {
        sample->id = output->score_id;
    } else {
        const hr_history *history = &output->history;

        HR_ASSERT(output->sampling && history->n_total == position + 1 && history->n_prompt <= history->n_total);
        sample->is_bad = sample->is_bad || history->ids[0] == FAKE_BAD_ID;
        sample->id = hr_fake_sample(hash, output->sampling, history->n_total - history->n_prompt);
    }
    sample->logprob = hr_fake_score(hash, sample->id);
    for (int32_t i = 0; i < output->n_logprobs; i++) {
        sample->top_ids[i] = sample->id;
        sample->top_logprobs[i] = sample->logprob;
        sample->n_top++;
    }
}

static void pass_gate(hr_fake *fake)
{
    (void)pthread_mutex_lock(&fake->gate_lock);
    fake->n_waiting++;
    (void)pthread_cond_broadcast(&fake->gate_cond);
    while (fake->is_gated && fake->n_allowed == 0)
        (void)pthread_cond_wait(&fake->gate_cond, &fake->gate_lock);
    fake->n_waiting--;
    if (fake->n_allowed != UINT64_MAX && fake->n_allowed > 0)
        fake->n_allowed--;
    (void)pthread_mutex_unlock(&fake->gate_lock);
}

static headrace_status step_begin(hr_backend *base, hr_batch *batch, headrace_error *err)
{
    fake_backend *backend = (fake_backend *)base;
    hr_fake *fake = backend->fake;
    uint32_t row = 0, output = 0;
    uint64_t step = atomic_fetch_add(&fake->n_steps, 1);
    uint32_t sleep_us = atomic_load(&fake->step_sleep_us);

    pass_gate(fake);
    if (fake->count_allocations) {
        uint64_t n = fake->count_allocations();

        if (backend->step > 0)
            atomic_fetch_add(&fake->allocations_in_steps, n - backend->last_allocations);
        backend->last_allocations = n;
    }
    if (sleep_us > 0)
        (void)nanosleep(&(struct timespec){.tv_nsec = (long)sleep_us * 1000}, NULL);
    if ((int64_t)step == atomic_load(&fake->fail_at_step))
        return hr_fail(err, HEADRACE_E_ENGINE, "injected fault at step %llu", (unsigned long long)step);
    HR_ASSERT(batch->n_rows > 0 && batch->n_rows <= backend->options.max_rows);
    HR_ASSERT(batch->n_spans <= backend->options.max_spans && batch->n_outputs <= backend->options.max_outputs);
    HR_ASSERT(batch->n_page_refs <= backend->options.max_page_refs);
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];

        check_span(backend, batch, i, row);
        for (uint32_t r = 0; r < span->n_rows; r++)
            run_row(backend, batch, span, r);
        row += span->n_rows;
        for (; output < batch->n_outputs && batch->outputs[output].row < row; output++) {
            HR_ASSERT(output == 0 || batch->outputs[output - 1].row < batch->outputs[output].row);
            give_output(backend, batch, span, output);
        }
    }
    HR_ASSERT(row == batch->n_rows && output == batch->n_outputs);
    backend->step++;
    return HEADRACE_OK;
}

static headrace_status step_wait(hr_backend *base, headrace_error *err)
{
    (void)base;
    (void)err;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the rest of the seam */

static headrace_status sizes(const hr_model *model, const hr_backend_options *options, hr_backend_sizes *out,
                             headrace_error *err)
{
    (void)err;
    *out = (hr_backend_sizes){.page_bytes = options->page_tokens * sizeof(uint64_t),
                              .slot_bytes = sizeof(int32_t) * (hr_arch_warmup_rows(&model->arch) + 1),
                              .scratch_bytes = 1000};
    return HEADRACE_OK;
}

static void close_backend(hr_backend *base)
{
    fake_backend *backend = (fake_backend *)base;

    free(backend->numbers);
    free(backend->slots);
    free(backend->windows);
    free(backend->slot_used_at);
    free(backend->page_written_at);
    free(backend->batch.token_ids);
    free(backend->batch.spans);
    free(backend->batch.pages);
    free(backend->batch.outputs);
    free(backend->batch.samples);
    free(backend);
}

static headrace_status open_backend(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                    uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    fake_backend *backend = calloc(1, sizeof *backend);
    uint32_t window = hr_arch_warmup_rows(&model->arch);

    if (!backend)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the fake backend");
    backend->base.ops = &hr_backend_fake;
    backend->fake = (hr_fake *)(uintptr_t)model;
    backend->options = *options;
    backend->n_pages = n_pages;
    backend->n_slots = n_slots;
    backend->window = window;
    backend->numbers = calloc((size_t)n_pages * options->page_tokens, sizeof *backend->numbers);
    backend->slots = calloc(n_slots, sizeof *backend->slots);
    backend->windows = calloc((size_t)n_slots * window + 1, sizeof *backend->windows);
    backend->slot_used_at = calloc(n_slots, sizeof *backend->slot_used_at);
    backend->page_written_at = calloc(n_pages, sizeof *backend->page_written_at);
    backend->batch = (hr_batch){
        .token_ids = calloc(options->max_rows, sizeof(int32_t)),
        .spans = calloc(options->max_spans, sizeof(hr_span)),
        .pages = calloc((size_t)options->max_page_refs + 1, sizeof(uint32_t)),
        .outputs = calloc(options->max_outputs, sizeof(hr_output)),
        .samples = calloc(options->max_outputs, sizeof(hr_sample)),
    };
    if (!backend->numbers || !backend->slots || !backend->windows || !backend->slot_used_at ||
        !backend->page_written_at || !backend->batch.token_ids || !backend->batch.spans || !backend->batch.pages ||
        !backend->batch.outputs || !backend->batch.samples) {
        close_backend(&backend->base);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the fake backend");
    }
    for (uint32_t i = 0; i < n_slots; i++) /* rubbish, so that a forgotten is_fresh is seen */
        backend->slots[i] = (fake_slot){.window = backend->windows + (size_t)i * window, .n = window};
    *out = &backend->base;
    return HEADRACE_OK;
}

static hr_batch *batch_of(hr_backend *base, uint32_t i)
{
    (void)i;
    return &((fake_backend *)base)->batch;
}

static const char *compute_name(const hr_backend *base)
{
    (void)base;
    return "fake";
}

static uint32_t n_threads(const hr_backend *base)
{
    (void)base;
    return 1;
}

const hr_backend_ops hr_backend_fake = {
    .name = "fake",
    .max_steps_in_flight = 1,
    .sizes = sizes,
    .open = open_backend,
    .close = close_backend,
    .batch = batch_of,
    .step_begin = step_begin,
    .step_wait = step_wait,
    .compute_name = compute_name,
    .n_threads = n_threads,
};

/* ---------------------------------------------------------------- the model and its faults */

void hr_fake_init(hr_fake *fake, uint32_t n_conv_layers, uint32_t conv_length, uint32_t max_positions)
{
    memset(fake, 0, sizeof *fake);
    fake->model.arch = (hr_arch){.name = "fake",
                                 .n_layers = n_conv_layers + 1,
                                 .n_attention_layers = 1,
                                 .n_conv_layers = n_conv_layers,
                                 .hidden_size = 1,
                                 .n_heads = 1,
                                 .n_kv_heads = 1,
                                 .head_dim = 1,
                                 .conv_length = conv_length,
                                 .vocab_size = FAKE_VOCAB,
                                 .max_positions = max_positions};
    atomic_init(&fake->fail_at_step, -1);
    (void)pthread_mutex_init(&fake->gate_lock, NULL);
    (void)pthread_cond_init(&fake->gate_cond, NULL);
}

void hr_fake_deinit(hr_fake *fake)
{
    (void)pthread_cond_destroy(&fake->gate_cond);
    (void)pthread_mutex_destroy(&fake->gate_lock);
}

void hr_fake_gate(hr_fake *fake)
{
    (void)pthread_mutex_lock(&fake->gate_lock);
    fake->is_gated = true;
    fake->n_allowed = 0;
    (void)pthread_mutex_unlock(&fake->gate_lock);
}

void hr_fake_allow(hr_fake *fake, uint64_t n)
{
    (void)pthread_mutex_lock(&fake->gate_lock);
    fake->n_allowed = n == UINT64_MAX ? n : fake->n_allowed + n;
    (void)pthread_cond_broadcast(&fake->gate_cond);
    (void)pthread_mutex_unlock(&fake->gate_lock);
}

void hr_fake_await_step(hr_fake *fake)
{
    (void)pthread_mutex_lock(&fake->gate_lock);
    while (fake->n_waiting == 0 || fake->n_allowed > 0)
        (void)pthread_cond_wait(&fake->gate_cond, &fake->gate_lock);
    (void)pthread_mutex_unlock(&fake->gate_lock);
}
