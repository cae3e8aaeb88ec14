/* See check.h. */
#include "backend/check.h"

static headrace_status check_counts(const hr_batch_limits *limits, const hr_batch *batch, headrace_error *err)
{
    const hr_backend_options *o = limits->options;

    if (batch->n_rows == 0 || batch->n_rows > o->max_rows || batch->n_spans > o->max_spans ||
        batch->n_outputs > o->max_outputs || batch->n_page_refs > o->max_page_refs)
        return hr_fail(err, HEADRACE_E_ENGINE,
                       "batch of %u rows, %u spans, %u outputs, %u pages; the capacities are %u, %u, %u, %u",
                       batch->n_rows, batch->n_spans, batch->n_outputs, batch->n_page_refs, o->max_rows, o->max_spans,
                       o->max_outputs, o->max_page_refs);
    for (uint32_t i = 0; i < batch->n_page_refs; i++) {
        if (batch->pages[i] >= limits->n_pages)
            return hr_fail(err, HEADRACE_E_ENGINE, "page entry %u names page %u of %u", i, batch->pages[i],
                           limits->n_pages);
    }
    return HEADRACE_OK;
}

static headrace_status check_span(const hr_batch_limits *limits, const hr_batch *batch, uint32_t i,
                                  uint32_t expected_row, headrace_error *err)
{
    const hr_span *span = &batch->spans[i];
    uint64_t end = (uint64_t)span->start_position + span->n_rows;

    if (span->first_row != expected_row || span->n_rows == 0 || span->n_rows > batch->n_rows - expected_row)
        return hr_fail(err, HEADRACE_E_ENGINE, "span %u: rows %u + %u, expected to start at %u of %u", i,
                       span->first_row, span->n_rows, expected_row, batch->n_rows);
    if (span->page_first > batch->n_page_refs || span->n_pages > batch->n_page_refs - span->page_first ||
        (uint64_t)span->n_pages * limits->options->page_tokens < end || end > limits->max_context)
        return hr_fail(err, HEADRACE_E_ENGINE, "span %u: positions up to %llu on %u pages of %u tokens (at most %u)", i,
                       (unsigned long long)end, span->n_pages, limits->options->page_tokens, limits->max_context);
    if (span->state_slot >= limits->n_slots)
        return hr_fail(err, HEADRACE_E_ENGINE, "span %u: state slot %u of %u", i, span->state_slot, limits->n_slots);
    if (span->n_warmup > span->n_rows)
        return hr_fail(err, HEADRACE_E_ENGINE, "span %u: %u warm-up rows of %u", i, span->n_warmup, span->n_rows);
    return HEADRACE_OK;
}

static headrace_status check_token(const hr_batch_limits *limits, const hr_batch *batch, uint32_t row,
                                   const hr_span *span, headrace_error *err)
{
    int32_t id = batch->token_ids[row];

    if (id == HR_TOKEN_FROM_SLOT)
        id = limits->slot_token[span->state_slot];
    if (id < 0 || (uint32_t)id >= limits->vocab_size)
        return hr_fail(err, HEADRACE_E_ENGINE, "row %u: token id %d of a vocabulary of %u", row, id,
                       limits->vocab_size);
    return HEADRACE_OK;
}

static headrace_status check_outputs(const hr_batch_limits *limits, const hr_batch *batch, headrace_error *err)
{
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_output *output = &batch->outputs[i];

        if (output->row >= batch->n_rows || (i > 0 && output->row < batch->outputs[i - 1].row))
            return hr_fail(err, HEADRACE_E_ENGINE, "output %u: row %u is out of order or beyond %u rows", i,
                           output->row, batch->n_rows);
        if (output->sampling_slot > limits->n_slots)
            return hr_fail(err, HEADRACE_E_ENGINE, "output %u: sampling slot %u of %u", i, output->sampling_slot - 1,
                           limits->n_slots);
        if (output->score_id >= 0 && (uint32_t)output->score_id >= limits->vocab_size)
            return hr_fail(err, HEADRACE_E_ENGINE, "output %u: scored id %d of a vocabulary of %u", i, output->score_id,
                           limits->vocab_size);
    }
    return HEADRACE_OK;
}

headrace_status hr_batch_check(const hr_batch_limits *limits, const hr_batch *batch, uint32_t *row_span,
                               headrace_error *err)
{
    uint32_t row = 0;

    HR_PASS(check_counts(limits, batch, err));
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];

        HR_PASS(check_span(limits, batch, i, row, err));
        for (uint32_t end = row + span->n_rows; row < end; row++) {
            HR_PASS(check_token(limits, batch, row, span, err));
            row_span[row] = i;
        }
    }
    if (row != batch->n_rows)
        return hr_fail(err, HEADRACE_E_ENGINE, "spans cover %u of %u rows", row, batch->n_rows);
    return check_outputs(limits, batch, err);
}
