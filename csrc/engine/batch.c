/* Outputs of one span stand together, scores first, then the sampling row: the order in which hr_plan counted them, so
 * that whoever reads the samples needs only span.first_output. Everything a row points to (ids, sampling parameters) is
 * owned by the sequence and does not move while the step runs.
 *
 * A plan is turned into a batch before the results of the step before it are known. An id that is still being sampled
 * is named by where it will be (HR_TOKEN_FROM_SLOT), and counted in the history (n_pending).
 *
 * A guess stands in the sequence's ids behind those that are known, so each row's history is a longer piece of one
 * array.
 */
#include "engine/batch.h"

#include "base/status.h"

#include <string.h>

/* Ids of the span that only the backend knows: at most one. Guesses are known. */
static uint32_t n_pending(const hr_planned_span *span)
{
    uint32_t end = span->start + span->n_rows - span->n_proposed;

    return end > span->sequence->n_total ? end - span->sequence->n_total : 0;
}

static void fill_outputs(hr_batch *batch, const hr_planned_span *span)
{
    const hr_sequence *sequence = span->sequence;
    uint32_t at = span->first_output;

    for (uint32_t i = 0; i < span->n_scores; i++) {
        uint32_t position = span->score_first + i;

        batch->outputs[at++] = (hr_output){
            .row = span->first_row + (position - span->start),
            .n_logprobs = sequence->n_prompt_logprobs,
            .score_id = sequence->ids[position + 1],
        };
    }
    if (!span->samples)
        return;
    for (uint32_t row = span->n_rows - 1 - span->n_proposed, i = 0; row < span->n_rows; row++, i++)
        batch->outputs[at++] = (hr_output){
            .row = span->first_row + row,
            .sampling = &sequence->sampling,
            .history = {.ids = sequence->ids,
                        .n_prompt = sequence->n_prompt,
                        .n_total = span->start + row + 1,
                        .n_pending = n_pending(span)},
            .n_logprobs = sequence->n_logprobs,
            .score_id = -1,
            .sampling_slot = i > 0 && span->sampling_slot > 0 ? span->sampling_slot + i - 1 : 0,
        };
}

static void fill_ids(int32_t *to, const hr_planned_span *span)
{
    const hr_sequence *sequence = span->sequence;
    uint32_t n_known = span->n_rows - n_pending(span);

    if (n_known < span->n_rows)
        to[n_known] = HR_TOKEN_FROM_SLOT;
    memcpy(to, sequence->ids + span->start, n_known * sizeof *to);
}

void hr_batch_fill(hr_batch *batch, const hr_plan *plan)
{
    uint32_t n_pages = 0;

    for (uint32_t i = 0; i < plan->n_spans; i++) {
        const hr_planned_span *span = &plan->spans[i];
        const hr_sequence *sequence = span->sequence;

        batch->spans[i] = (hr_span){
            .first_row = span->first_row,
            .n_rows = span->n_rows,
            .start_position = span->start,
            .page_first = n_pages,
            .n_pages = sequence->n_pages,
            .state_slot = sequence->state_slot,
            .sequence = sequence->serial + 1,
            .n_prompt = sequence->n_prompt,
            .is_fresh = span->is_fresh,
            .n_warmup = span->n_warmup,
        };
        fill_ids(batch->token_ids + span->first_row, span);
        memcpy(batch->pages + n_pages, sequence->pages, sequence->n_pages * sizeof(uint32_t));
        n_pages += sequence->n_pages;
        fill_outputs(batch, span);
    }
    HR_ASSERT(n_pages == plan->n_page_refs);
    batch->n_rows = plan->n_rows;
    batch->n_spans = plan->n_spans;
    batch->n_outputs = plan->n_outputs;
    batch->n_page_refs = n_pages;
}
