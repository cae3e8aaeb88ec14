/* See ahead_backend.h. Each step is copied into the one block of the CPU backend; nothing of the arithmetic is here. */
#include "ahead_backend.h"

#include "base/rng.h"

#include <string.h>

enum { STEPS = 2 };

typedef struct slot_ids {
    int32_t next_id;   /* sampled last */
    uint64_t sequence; /* for this one */
    int32_t *ids;      /* [capacity], a history with that id at its end */
    uint32_t capacity;
} slot_ids;

typedef struct ahead_backend {
    hr_backend base;
    hr_backend *inner;
    hr_backend_options options;
    uint32_t n_slots;
    slot_ids *slots; /* [n_slots] */
    hr_batch batches[STEPS];
    uint64_t n_begun, n_computed, n_waited;
} ahead_backend;

static void close_backend(hr_backend *base)
{
    ahead_backend *backend = (ahead_backend *)base;

    if (backend->inner)
        backend->inner->ops->close(backend->inner);
    for (uint32_t i = 0; i < STEPS; i++) {
        free(backend->batches[i].token_ids);
        free(backend->batches[i].spans);
        free(backend->batches[i].pages);
        free(backend->batches[i].outputs);
        free(backend->batches[i].samples);
    }
    for (uint32_t i = 0; i < backend->n_slots; i++)
        free(backend->slots[i].ids);
    free(backend->slots);
    free(backend);
}

static void *reserve(size_t n, size_t size)
{
    void *memory = calloc(n, size);

    HR_ASSERT(memory);
    return memory;
}

static headrace_status open_backend(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                    uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    ahead_backend *backend = reserve(1, sizeof *backend);
    headrace_status status;

    backend->base.ops = &hr_backend_ahead;
    backend->options = *options;
    backend->n_slots = n_slots;
    backend->slots = reserve(n_slots, sizeof *backend->slots);
    for (uint32_t i = 0; i < STEPS; i++)
        backend->batches[i] = (hr_batch){
            .token_ids = reserve(options->max_rows, sizeof(int32_t)),
            .spans = reserve(options->max_spans, sizeof(hr_span)),
            .pages = reserve(options->max_page_refs, sizeof(uint32_t)),
            .outputs = reserve(options->max_outputs, sizeof(hr_output)),
            .samples = reserve(options->max_outputs, sizeof(hr_sample)),
        };
    status = hr_backend_cpu.open(model, options, n_pages, n_slots, &backend->inner, err);
    if (status == HEADRACE_OK)
        *out = &backend->base;
    else
        close_backend(&backend->base);
    return status;
}

/* The history as it is when the step runs. */
static hr_history complete_history(slot_ids *slot, const hr_history *given)
{
    hr_history history = *given;

    HR_ASSERT(given->n_pending <= 1);
    if (given->n_pending == 0)
        return history;
    if (slot->capacity < given->n_total) {
        free(slot->ids);
        slot->capacity = 2 * given->n_total;
        slot->ids = reserve(slot->capacity, sizeof *slot->ids);
    }
    memcpy(slot->ids, given->ids, (given->n_total - 1) * sizeof *slot->ids);
    slot->ids[given->n_total - 1] = slot->next_id;
    history.ids = slot->ids;
    history.n_pending = 0;
    return history;
}

/* Copies a step into the inner block, with every id known. */
static void complete_batch(ahead_backend *backend, const hr_batch *from, hr_batch *to)
{
    uint32_t output = 0;

    to->n_rows = from->n_rows;
    to->n_spans = from->n_spans;
    to->n_outputs = from->n_outputs;
    to->n_page_refs = from->n_page_refs;
    memcpy(to->token_ids, from->token_ids, from->n_rows * sizeof *to->token_ids);
    memcpy(to->spans, from->spans, from->n_spans * sizeof *to->spans);
    memcpy(to->pages, from->pages, from->n_page_refs * sizeof *to->pages);
    memcpy(to->outputs, from->outputs, from->n_outputs * sizeof *to->outputs);
    for (uint32_t i = 0; i < from->n_spans; i++) {
        const hr_span *span = &from->spans[i];
        slot_ids *slot = &backend->slots[span->state_slot];

        for (uint32_t r = span->first_row; r < span->first_row + span->n_rows; r++)
            if (from->token_ids[r] == HR_TOKEN_FROM_SLOT) {
                HR_ASSERT(slot->sequence == span->sequence);
                to->token_ids[r] = slot->next_id;
            }
        for (; output < from->n_outputs && from->outputs[output].row < span->first_row + span->n_rows; output++)
            to->outputs[output].history = complete_history(slot, &from->outputs[output].history);
    }
}

static void keep_samples(ahead_backend *backend, hr_batch *batch, const hr_sample *samples)
{
    uint32_t output = 0;

    memcpy(batch->samples, samples, batch->n_outputs * sizeof *samples);
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];

        for (; output < batch->n_outputs && batch->outputs[output].row < span->first_row + span->n_rows; output++)
            if (batch->outputs[output].sampling) {
                backend->slots[span->state_slot].next_id = samples[output].id;
                backend->slots[span->state_slot].sequence = span->sequence;
            }
    }
}

static headrace_status compute_oldest(ahead_backend *backend, headrace_error *err)
{
    hr_batch *batch = &backend->batches[backend->n_computed++ % STEPS],
             *inner = hr_backend_cpu.batch(backend->inner, 0);

    complete_batch(backend, batch, inner);
    HR_PASS(hr_backend_cpu.step_begin(backend->inner, inner, err));
    HR_PASS(hr_backend_cpu.step_wait(backend->inner, err));
    keep_samples(backend, batch, inner->samples);
    return HEADRACE_OK;
}

static headrace_status step_begin(hr_backend *base, hr_batch *batch, headrace_error *err)
{
    ahead_backend *backend = (ahead_backend *)base;
    bool is_early = hr_mix64(backend->n_begun) % 2;

    HR_ASSERT(batch == &backend->batches[backend->n_begun % STEPS] && backend->n_begun - backend->n_waited < STEPS);
    backend->n_begun++;
    while (is_early && backend->n_computed < backend->n_begun)
        HR_PASS(compute_oldest(backend, err));
    return HEADRACE_OK;
}

static headrace_status step_wait(hr_backend *base, headrace_error *err)
{
    ahead_backend *backend = (ahead_backend *)base;

    HR_ASSERT(backend->n_waited < backend->n_begun);
    if (backend->n_computed == backend->n_waited)
        HR_PASS(compute_oldest(backend, err));
    backend->n_waited++;
    return HEADRACE_OK;
}

static headrace_status sizes(const hr_model *model, const hr_backend_options *options, hr_backend_sizes *out,
                             headrace_error *err)
{
    return hr_backend_cpu.sizes(model, options, out, err);
}

static hr_batch *batch_of(hr_backend *base, uint32_t i)
{
    return &((ahead_backend *)base)->batches[i];
}

/* Speculation waits for each step before it copies. */
static void copy_slot(hr_backend *base, uint32_t from, uint32_t to)
{
    ahead_backend *backend = (ahead_backend *)base;

    HR_ASSERT(backend->n_computed == backend->n_begun);
    hr_backend_cpu.copy_slot(backend->inner, from, to);
}

static const char *compute_name(const hr_backend *base)
{
    return hr_backend_cpu.compute_name(((const ahead_backend *)base)->inner);
}

static uint32_t n_threads(const hr_backend *base)
{
    return hr_backend_cpu.n_threads(((const ahead_backend *)base)->inner);
}

const hr_backend_ops hr_backend_ahead = {
    .name = "ahead",
    .max_steps_in_flight = STEPS,
    .sizes = sizes,
    .open = open_backend,
    .close = close_backend,
    .batch = batch_of,
    .step_begin = step_begin,
    .step_wait = step_wait,
    .copy_slot = copy_slot,
    .compute_name = compute_name,
    .n_threads = n_threads,
};
