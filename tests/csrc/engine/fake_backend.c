/* See fake_backend.h. It also refuses (by HR_ASSERT) every batch that breaks the contract of backend/backend.h. */
#include "fake_backend.h"

#include "base/rng.h"

#include <string.h>
#include <time.h>

typedef struct fake_slot {
    int32_t *window; /* [W], newest last */
    uint32_t n;
} fake_slot;

/* What the steps in flight do with a page: which sequence names it (0: none, or FAKE_MANY), which writes it. */
enum { FAKE_STEPS = 2 };
#define FAKE_MANY UINT64_MAX

typedef struct fake_page_use {
    uint64_t named_by, written_by;
} fake_page_use;

typedef struct fake_backend {
    hr_backend base;
    hr_fake *fake;
    hr_backend_options options;
    uint32_t n_pages, n_slots, window;
    uint64_t *numbers;       /* [n_pages, P] */
    fake_slot *slots;        /* [n_slots] */
    int32_t *windows;        /* [n_slots, W] */
    uint64_t *slot_used_at;  /* step number + 1 */
    int32_t *next_ids;       /* [n_slots], sampled last */
    uint64_t *slot_owners;   /* [n_slots], the sequence that it was sampled for */
    fake_page_use *page_use; /* [n_pages] */
    uint64_t last_allocations, n_begun, n_computed, n_waited;
    hr_batch batches[FAKE_STEPS];
} fake_backend;

static hr_batch *batch_at(fake_backend *backend, uint64_t step)
{
    return &backend->batches[step % backend->base.ops->max_steps_in_flight];
}

/* ---------------------------------------------------------------- the arithmetic, shared with the truth */

static uint64_t row_number(int32_t id, uint32_t position, const int32_t *window, uint32_t n_window)
{
    uint64_t hash = (uint64_t)(uint32_t)id << 32 | position;

    for (uint32_t i = 0; i < n_window; i++)
        hash = (hash ^ (uint32_t)window[i]) * 0x9FB21C651E98DF25u + (hash >> 31);
    return hr_mix64(hash ^ n_window * 0x0100000000000000u);
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

/* ---------------------------------------------------------------- what may be asked */

static void check_span(fake_backend *backend, const hr_batch *batch, uint32_t i, uint32_t first_row)
{
    const hr_span *span = &batch->spans[i];
    uint32_t page_tokens = backend->options.page_tokens;

    HR_ASSERT(span->first_row == first_row && span->n_rows > 0 && span->n_warmup <= span->n_rows);
    HR_ASSERT(span->page_first + span->n_pages <= batch->n_page_refs && span->sequence > 0);
    HR_ASSERT((uint64_t)span->n_pages * page_tokens >= (uint64_t)span->start_position + span->n_rows);
    HR_ASSERT(span->state_slot < backend->n_slots);
    HR_ASSERT(backend->slot_used_at[span->state_slot] != backend->n_begun + 1);
    backend->slot_used_at[span->state_slot] = backend->n_begun + 1;
    for (uint32_t p = 0; p < span->n_pages; p++)
        HR_ASSERT(batch->pages[span->page_first + p] < backend->n_pages);
    for (uint32_t r = 0; r < span->n_rows; r++) {
        int32_t id = batch->token_ids[first_row + r];
        bool may_be_pending = backend->n_begun > backend->n_waited && span->n_rows == 1 && !span->is_fresh;

        HR_ASSERT((id >= 0 && id < FAKE_VOCAB) || (id == HR_TOKEN_FROM_SLOT && may_be_pending));
    }
}

/* Pages [*from, *to) of the span are written by it. */
static void written_pages(const fake_backend *backend, const hr_span *span, uint32_t *from, uint32_t *to)
{
    uint32_t page_tokens = backend->options.page_tokens;

    *from = (span->start_position + span->n_warmup) / page_tokens;
    *to = span->n_warmup < span->n_rows ? (span->start_position + span->n_rows - 1) / page_tokens + 1 : *from;
}

/* No page is written by one sequence and named by another, in one step or in two that are in flight together, and no
 * slot has two owners. */
static void note_uses(fake_backend *backend, const hr_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];
        uint32_t from, to;

        written_pages(backend, span, &from, &to);
        for (uint32_t p = 0; p < span->n_pages; p++) {
            fake_page_use *use = &backend->page_use[batch->pages[span->page_first + p]];
            bool writes = p >= from && p < to;

            HR_ASSERT(!writes || use->named_by == 0 || use->named_by == span->sequence);
            HR_ASSERT(use->written_by == 0 || use->written_by == span->sequence);
            use->named_by = use->named_by == 0 || use->named_by == span->sequence ? span->sequence : FAKE_MANY;
            use->written_by = writes ? span->sequence : use->written_by;
        }
    }
}

static void check_slots_together(const hr_batch *a, const hr_batch *b)
{
    for (uint32_t i = 0; i < a->n_spans; i++)
        for (uint32_t k = 0; k < b->n_spans; k++)
            HR_ASSERT((a->spans[i].state_slot == b->spans[k].state_slot) ==
                      (a->spans[i].sequence == b->spans[k].sequence));
}

static void check_output(fake_backend *backend, const hr_batch *batch, const hr_span *span, const hr_output *output)
{
    const hr_history *history = &output->history;
    uint32_t position = span->start_position + (output->row - span->first_row);

    if (output->sampling_slot > 0) { /* nobody else's in this step */
        HR_ASSERT(output->sampling_slot <= backend->n_slots);
        HR_ASSERT(backend->slot_used_at[output->sampling_slot - 1] != backend->n_begun + 1);
        backend->slot_used_at[output->sampling_slot - 1] = backend->n_begun + 1;
    }

    HR_ASSERT(output->row - span->first_row >= span->n_warmup);
    if (output->score_id >= 0)
        return;
    HR_ASSERT(output->sampling && history->n_total == position + 1 && history->n_prompt <= history->n_total);
    if (batch->token_ids[output->row] == HR_TOKEN_FROM_SLOT)
        HR_ASSERT(history->n_pending == 1 && history->n_prompt < history->n_total);
    else
        HR_ASSERT(history->n_pending == 0 && history->ids[position] == batch->token_ids[output->row]);
}

static void check_batch(fake_backend *backend, const hr_batch *batch)
{
    uint32_t row = 0, output = 0;

    HR_ASSERT(batch == batch_at(backend, backend->n_begun));
    HR_ASSERT(backend->n_begun - backend->n_waited < backend->base.ops->max_steps_in_flight);
    HR_ASSERT(batch->n_rows > 0 && batch->n_rows <= backend->options.max_rows);
    HR_ASSERT(batch->n_spans <= backend->options.max_spans && batch->n_outputs <= backend->options.max_outputs);
    HR_ASSERT(batch->n_page_refs <= backend->options.max_page_refs);
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        check_span(backend, batch, i, row);
        row += batch->spans[i].n_rows;
        for (; output < batch->n_outputs && batch->outputs[output].row < row; output++) {
            HR_ASSERT(output == 0 || batch->outputs[output - 1].row < batch->outputs[output].row);
            check_output(backend, batch, &batch->spans[i], &batch->outputs[output]);
        }
    }
    HR_ASSERT(row == batch->n_rows && output == batch->n_outputs);
    memset(backend->page_use, 0, backend->n_pages * sizeof *backend->page_use);
    if (backend->n_begun > backend->n_waited) {
        note_uses(backend, batch_at(backend, backend->n_waited));
        check_slots_together(batch_at(backend, backend->n_waited), batch);
        atomic_fetch_add(&backend->fake->n_ahead, 1);
    }
    note_uses(backend, batch);
}

/* ---------------------------------------------------------------- a step */

static void run_row(fake_backend *backend, const hr_batch *batch, const hr_span *span, uint32_t i)
{
    uint32_t position = span->start_position + i, page_tokens = backend->options.page_tokens;
    int32_t id = batch->token_ids[span->first_row + i];
    uint32_t page = batch->pages[span->page_first + position / page_tokens];
    fake_slot *slot = &backend->slots[span->state_slot];

    if (id == HR_TOKEN_FROM_SLOT) {
        HR_ASSERT(backend->slot_owners[span->state_slot] == span->sequence);
        id = backend->next_ids[span->state_slot];
    }
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

    sample->is_bad = atomic_load(&backend->fake->always_bad);
    sample->n_top = 0;
    sample->rank = 1;
    if (output->score_id >= 0) {
        sample->id = output->score_id;
    } else {
        const hr_history *history = &output->history;

        sample->is_bad = sample->is_bad || history->ids[0] == FAKE_BAD_ID;
        sample->id = hr_fake_sample(hash, output->sampling, history->n_total - history->n_prompt);
        backend->next_ids[span->state_slot] = sample->id;
        backend->slot_owners[span->state_slot] = span->sequence;
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

static void compute_oldest(fake_backend *backend)
{
    const hr_batch *batch = batch_at(backend, backend->n_computed++);
    uint32_t output = 0;

    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];

        for (uint32_t r = 0; r < span->n_rows; r++)
            run_row(backend, batch, span, r);
        for (; output < batch->n_outputs && batch->outputs[output].row < span->first_row + span->n_rows; output++)
            give_output(backend, batch, span, output);
    }
}

static void count_allocations_since(fake_backend *backend)
{
    hr_fake *fake = backend->fake;
    uint64_t n;

    if (!fake->count_allocations)
        return;
    n = fake->count_allocations();
    if (backend->n_begun > 0)
        atomic_fetch_add(&fake->allocations_in_steps, n - backend->last_allocations);
    backend->last_allocations = n;
}

static headrace_status step_begin(hr_backend *base, hr_batch *batch, headrace_error *err)
{
    fake_backend *backend = (fake_backend *)base;
    hr_fake *fake = backend->fake;
    bool is_ahead = base->ops->max_steps_in_flight > 1;
    uint64_t step = atomic_fetch_add(&fake->n_steps, 1);
    uint32_t sleep_us = atomic_load(&fake->step_sleep_us);

    if (!is_ahead)
        pass_gate(fake);
    count_allocations_since(backend);
    if (sleep_us > 0)
        (void)nanosleep(&(struct timespec){.tv_nsec = (long)sleep_us * 1000}, NULL);
    if ((int64_t)step == atomic_load(&fake->fail_at_step))
        return hr_fail(err, HEADRACE_E_ENGINE, "injected fault at step %llu", (unsigned long long)step);
    check_batch(backend, batch);
    for (uint32_t i = 0; i < batch->n_outputs; i++)
        batch->samples[i] = (hr_sample){.id = -1};
    backend->n_begun++;
    while (backend->n_computed < backend->n_begun && (!is_ahead || hr_mix64(step) % 2))
        compute_oldest(backend);
    return HEADRACE_OK;
}

static headrace_status step_wait(hr_backend *base, headrace_error *err)
{
    fake_backend *backend = (fake_backend *)base;

    HR_ASSERT(backend->n_waited < backend->n_begun);
    if (base->ops->max_steps_in_flight > 1)
        pass_gate(backend->fake);
    if ((int64_t)backend->n_waited == atomic_load(&backend->fake->fail_at_wait))
        return hr_fail(err, HEADRACE_E_ENGINE, "injected fault while waiting for a step");
    if (backend->n_computed == backend->n_waited)
        compute_oldest(backend);
    backend->n_waited++;
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

    for (uint32_t i = 0; i < FAKE_STEPS; i++) {
        free(backend->batches[i].token_ids);
        free(backend->batches[i].spans);
        free(backend->batches[i].pages);
        free(backend->batches[i].outputs);
        free(backend->batches[i].samples);
    }
    free(backend->numbers);
    free(backend->slots);
    free(backend->windows);
    free(backend->slot_used_at);
    free(backend->next_ids);
    free(backend->slot_owners);
    free(backend->page_use);
    free(backend);
}

static bool allocate_batch(hr_batch *batch, const hr_backend_options *options)
{
    *batch = (hr_batch){
        .token_ids = calloc(options->max_rows, sizeof(int32_t)),
        .spans = calloc(options->max_spans, sizeof(hr_span)),
        .pages = calloc((size_t)options->max_page_refs + 1, sizeof(uint32_t)),
        .outputs = calloc(options->max_outputs, sizeof(hr_output)),
        .samples = calloc(options->max_outputs, sizeof(hr_sample)),
    };
    return batch->token_ids && batch->spans && batch->pages && batch->outputs && batch->samples;
}

static bool allocate(fake_backend *backend)
{
    size_t n_slots = backend->n_slots;

    backend->numbers = calloc((size_t)backend->n_pages * backend->options.page_tokens, sizeof *backend->numbers);
    backend->slots = calloc(n_slots, sizeof *backend->slots);
    backend->windows = calloc(n_slots * backend->window + 1, sizeof *backend->windows);
    backend->slot_used_at = calloc(n_slots, sizeof *backend->slot_used_at);
    backend->next_ids = calloc(n_slots, sizeof *backend->next_ids);
    backend->slot_owners = calloc(n_slots, sizeof *backend->slot_owners);
    backend->page_use = calloc(backend->n_pages, sizeof *backend->page_use);
    for (uint32_t i = 0; i < backend->base.ops->max_steps_in_flight; i++)
        if (!allocate_batch(&backend->batches[i], &backend->options))
            return false;
    return backend->numbers && backend->slots && backend->windows && backend->slot_used_at && backend->next_ids &&
           backend->slot_owners && backend->page_use;
}

static headrace_status open_with(const hr_backend_ops *ops, const hr_model *model, const hr_backend_options *options,
                                 uint32_t n_pages, uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    fake_backend *backend = calloc(1, sizeof *backend);

    if (!backend)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the fake backend");
    backend->base.ops = ops;
    backend->fake = (hr_fake *)(uintptr_t)model;
    backend->options = *options;
    backend->n_pages = n_pages;
    backend->n_slots = n_slots;
    backend->window = hr_arch_warmup_rows(&model->arch);
    if (!allocate(backend)) {
        close_backend(&backend->base);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the fake backend");
    }
    for (uint32_t i = 0; i < n_slots; i++) /* rubbish, so that a forgotten is_fresh is seen */
        backend->slots[i] = (fake_slot){.window = backend->windows + (size_t)i * backend->window, .n = backend->window};
    *out = &backend->base;
    return HEADRACE_OK;
}

static headrace_status open_backend(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                    uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    return open_with(&hr_backend_fake, model, options, n_pages, n_slots, out, err);
}

static headrace_status open_ahead(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                  uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    return open_with(&hr_backend_fake_ahead, model, options, n_pages, n_slots, out, err);
}

static hr_batch *batch_of(hr_backend *base, uint32_t i)
{
    HR_ASSERT(i < base->ops->max_steps_in_flight);
    return &((fake_backend *)base)->batches[i];
}

static void copy_slot(hr_backend *base, uint32_t from, uint32_t to)
{
    fake_backend *backend = (fake_backend *)base;

    HR_ASSERT(from < backend->n_slots && to < backend->n_slots && backend->n_computed == backend->n_begun);
    memcpy(backend->slots[to].window, backend->slots[from].window, backend->window * sizeof(int32_t));
    backend->slots[to].n = backend->slots[from].n;
    backend->next_ids[to] = backend->next_ids[from];
    backend->slot_owners[to] = backend->slot_owners[from];
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

#define FAKE_OPS(steps, opener)                                                                                   \
    {                                                                                                             \
        .name = "fake", .max_steps_in_flight = (steps), .sizes = sizes, .open = (opener), .close = close_backend, \
        .batch = batch_of, .step_begin = step_begin, .step_wait = step_wait, .copy_slot = copy_slot,              \
        .compute_name = compute_name, .n_threads = n_threads,                                                     \
    }
const hr_backend_ops hr_backend_fake = FAKE_OPS(1, open_backend);
const hr_backend_ops hr_backend_fake_ahead = FAKE_OPS(FAKE_STEPS, open_ahead);

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
    atomic_init(&fake->fail_at_wait, -1);
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
