/* See driver.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "csrc/backend/driver.h"

#include "base/rng.h"

void driver_open(driver *d, const hr_model *model, const driver_options *o)
{
    headrace_error err = {0};
    hr_backend_options options = {.n_threads = o->n_threads > 0 ? o->n_threads : 2,
                                  .page_tokens = o->page_tokens > 0 ? o->page_tokens : DRIVER_PAGE_TOKENS,
                                  .max_rows = DRIVER_ROWS,
                                  .max_spans = DRIVER_SLOTS,
                                  .max_outputs = DRIVER_ROWS,
                                  .max_page_refs = DRIVER_PAGES,
                                  .kv_dtype = o->kv_dtype,
                                  .exact = o->exact,
                                  .tap = o->tap,
                                  .tap_user = o->tap_user};

    *d = (driver){.model = model, .ops = o->ops ? o->ops : &hr_backend_cpu, .page_tokens = options.page_tokens};
    if (d->ops->open(model, &options, DRIVER_PAGES, DRIVER_SLOTS, &d->backend, &err) != HEADRACE_OK)
        fail_msg("opening the backend: %s", err.message);
}

void driver_close(driver *d)
{
    d->ops->close(d->backend);
    d->backend = NULL;
}

driver_sequence driver_new_sequence(driver *d, const int32_t *ids, uint32_t n_tokens)
{
    driver_sequence s = {.ids = ids, .number = ++d->n_sequences, .n_prompt = n_tokens, .slot = d->n_slots_used++};

    s.n_pages = (n_tokens + d->page_tokens - 1) / d->page_tokens;
    assert_true(s.n_pages <= DRIVER_PAGES_A_SEQUENCE && d->n_pages_used + s.n_pages <= DRIVER_PAGES);
    assert_true(s.slot < DRIVER_SLOTS);
    for (uint32_t i = 0; i < s.n_pages; i++) /* 37 is odd and the number of pages a power of two: a permutation */
        s.pages[i] = (d->n_pages_used++ * 37 + 11) % DRIVER_PAGES;
    return s;
}

void driver_forget(driver *d)
{
    d->n_pages_used = d->n_slots_used = 0;
}

static void add_outputs(hr_batch *batch, const driver_piece *piece, uint32_t first_row, uint32_t vocab_size)
{
    for (uint32_t r = 0; piece->logits && r < piece->n_rows; r++)
        batch->outputs[batch->n_outputs++] = (hr_output){
            .row = first_row + r, .n_logprobs = -1, .score_id = -1, .logits = piece->logits + (size_t)r * vocab_size};
}

void driver_step(driver *d, const driver_piece *pieces, uint32_t n_pieces)
{
    const hr_backend_ops *ops = d->ops;
    hr_batch *batch = ops->batch(d->backend, 0);
    headrace_error err = {0};

    batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = 0;
    for (uint32_t i = 0; i < n_pieces; i++) {
        const driver_piece *p = &pieces[i];
        uint32_t n_pages = (p->start + p->n_rows + d->page_tokens - 1) / d->page_tokens;

        assert_true(n_pages <= p->sequence->n_pages && batch->n_rows + p->n_rows <= DRIVER_ROWS);
        batch->spans[batch->n_spans++] = (hr_span){.first_row = batch->n_rows,
                                                   .n_rows = p->n_rows,
                                                   .start_position = p->start,
                                                   .page_first = batch->n_page_refs,
                                                   .n_pages = n_pages,
                                                   .state_slot = p->sequence->slot,
                                                   .sequence = p->sequence->number,
                                                   .n_prompt = p->sequence->n_prompt,
                                                   .is_fresh = p->is_fresh || p->start == 0,
                                                   .n_warmup = p->n_warmup};
        add_outputs(batch, p, batch->n_rows, d->model->arch.vocab_size);
        for (uint32_t j = 0; j < n_pages; j++)
            batch->pages[batch->n_page_refs++] = p->sequence->pages[j];
        for (uint32_t j = 0; j < p->n_rows; j++)
            batch->token_ids[batch->n_rows++] = p->sequence->ids[p->start + j];
    }
    if (ops->step_begin(d->backend, batch, &err) != HEADRACE_OK || ops->step_wait(d->backend, &err) != HEADRACE_OK)
        fail_msg("step: %s", err.message);
}

void driver_run(driver *d, driver_sequence *sequence, uint32_t start, uint32_t n, uint32_t chunk, float *logits)
{
    uint32_t step = chunk > 0 && chunk < DRIVER_ROWS ? chunk : DRIVER_ROWS;
    size_t V = d->model->arch.vocab_size;

    for (uint32_t at = start; at < n; at += step) {
        driver_piece piece = {.sequence = sequence, .start = at, .n_rows = n - at < step ? n - at : step};

        piece.logits = logits ? logits + (at - start) * V : NULL;
        driver_step(d, &piece, 1);
    }
}

void driver_random_ids(const hr_model *model, uint64_t seed, uint32_t n, int32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(hr_rng_at(seed, i) % model->arch.vocab_size);
}
