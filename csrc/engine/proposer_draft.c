/* A draft model: a small model with the same vocabulary runs ahead and says what it would say.
 *
 * It draws with the request's own sampling parameters, seed and position. The draw is an argmax over logits plus noise
 * that depends on seed, position and id alone, so two models that nearly agree on the distribution nearly always draw
 * the same token, at any temperature.
 *
 * It is a second instance of the same backend. A sequence's seat is that of its state slot; the seat's pages come from
 * a pool as large as the model's. A seat has all the pages that it needs or, where they cannot be had, none and gives
 * no guesses until they can: what it gave up serves the others. There is no prefix cache: a sequence's first guesses
 * cost its whole prompt once more, in the draft model, in pieces of a step's rows after sequences that are nearly up to
 * date.
 *
 * A round: one step runs what was said since the last round and draws the first guess of each sequence; the state is
 * kept in the spare slot; a step of one row a sequence draws each further guess; the state is put back. So a seat
 * always stands where all its ids are known, and wrong guesses leave nothing but keys and values that are overwritten.
 */
#include "engine/proposer.h"
#include "engine/scheduler.h"

#include <inttypes.h>
#include <string.h>

enum { NEAR_ROWS = 64 }; /* a sequence with so few rows to catch up with goes before the others */

typedef struct seat {
    uint64_t sequence; /* its number, never 0; 0: nobody's */
    uint32_t n_run;    /* ids that its state and pages have seen */
    uint32_t n_pages;
    uint64_t used_in; /* the round */
} seat;

typedef struct draft {
    hr_proposer base;
    const hr_backend_ops *ops;
    hr_backend *backend;
    hr_backend_options options;
    uint32_t max_seqs, pages_per_sequence;
    hr_kv_pages pages;
    seat *seats;      /* [max_seqs] */
    uint32_t *tables; /* [max_seqs, pages_per_sequence] */
    hr_batch *batch;  /* being filled */
    uint64_t n_steps, n_rounds;
    uint32_t *outputs_of; /* [max_seqs] the job of each output of the step */
    uint32_t *n_written;  /* [max_seqs] guesses of each job so far */
} draft;

static hr_backend_options own_options(const hr_backend_options *options)
{
    hr_backend_options own = *options;

    own.max_outputs = own.max_spans;
    return own;
}

headrace_status hr_draft_sizes(const hr_backend_ops *ops, const hr_model *model, const hr_backend_options *options,
                               hr_backend_sizes *out, headrace_error *err)
{
    hr_backend_options own = own_options(options);

    return ops->sizes(model, &own, out, err);
}

static void close_draft(hr_proposer *proposer)
{
    draft *d = (draft *)proposer;

    if (d->backend)
        d->ops->close(d->backend);
    hr_kv_pages_deinit(&d->pages);
    free(d->seats);
    free(d->tables);
    free(d->outputs_of);
    free(d->n_written);
    free(d);
}

/* ---------------------------------------------------------------- seats and pages */

static uint32_t *table_of(const draft *d, const hr_sequence *sequence)
{
    return d->tables + (size_t)sequence->state_slot * d->pages_per_sequence;
}

static void clear_seat(draft *d, uint32_t slot)
{
    seat *s = &d->seats[slot];

    while (s->n_pages > 0) {
        uint32_t page = d->tables[(size_t)slot * d->pages_per_sequence + --s->n_pages];

        (void)hr_kv_pages_drop(&d->pages, page);
        hr_kv_pages_give_back(&d->pages, page);
    }
    *s = (seat){0};
}

static seat *seat_of(draft *d, const hr_sequence *sequence)
{
    seat *s = &d->seats[sequence->state_slot];

    if (s->sequence != sequence->serial + 1 || s->n_run > sequence->n_total) {
        clear_seat(d, sequence->state_slot);
        s->sequence = sequence->serial + 1;
    }
    s->used_in = d->n_rounds;
    return s;
}

/* Whether a seat has pages that may be taken from it: it has no part in this round. Its sequence is gone, or rests. */
static bool is_idle(const draft *d, const seat *s)
{
    return s->n_pages > 0 && s->used_in != d->n_rounds;
}

static uint32_t longest_idle_slot(const draft *d)
{
    uint32_t longest = d->max_seqs;

    for (uint32_t i = 0; i < d->max_seqs; i++)
        if (is_idle(d, &d->seats[i]) && (longest == d->max_seqs || d->seats[i].used_in < d->seats[longest].used_in))
            longest = i;
    return longest;
}

/* Frees n pages, if need be by clearing idle seats: no more of them than that takes, since one that only rests would
 * pay its whole prompt again, and none if all of them would not do. */
static bool free_pages(draft *d, uint32_t n)
{
    uint32_t n_available = d->pages.n_free;

    for (uint32_t i = 0; i < d->max_seqs; i++)
        n_available += is_idle(d, &d->seats[i]) ? d->seats[i].n_pages : 0;
    if (n_available < n)
        return false;
    while (d->pages.n_free < n)
        clear_seat(d, longest_idle_slot(d));
    return true;
}

/* Makes sure of pages for n_positions. False: the seat has none any more. */
static bool take_pages(draft *d, const hr_sequence *sequence, seat *s, uint32_t n_positions)
{
    uint32_t n = hr_pages_for(n_positions, d->options.page_tokens);

    HR_ASSERT(n_positions <= d->base.max_positions);
    if (n > s->n_pages && !free_pages(d, n - s->n_pages)) {
        clear_seat(d, sequence->state_slot);
        return false;
    }
    while (s->n_pages < n)
        table_of(d, sequence)[s->n_pages++] = hr_kv_pages_take(&d->pages);
    return true;
}

/* ---------------------------------------------------------------- steps */

static void begin_batch(draft *d)
{
    d->batch = d->ops->batch(d->backend, (uint32_t)(d->n_steps % d->ops->max_steps_in_flight));
    d->batch->n_rows = d->batch->n_spans = d->batch->n_outputs = d->batch->n_page_refs = 0;
}

/* Adds rows start .. start + n_rows - 1 of a job's sequence; samples: the last one draws. */
static void add_span(draft *d, const hr_guess_job *jobs, uint32_t job, uint32_t start, uint32_t n_rows, bool samples)
{
    const hr_sequence *sequence = jobs[job].sequence;
    const seat *s = &d->seats[sequence->state_slot];
    hr_batch *batch = d->batch;

    batch->spans[batch->n_spans++] = (hr_span){
        .first_row = batch->n_rows,
        .n_rows = n_rows,
        .start_position = start,
        .page_first = batch->n_page_refs,
        .n_pages = s->n_pages,
        .state_slot = sequence->state_slot,
        .sequence = s->sequence,
        .n_prompt = sequence->n_prompt,
        .is_fresh = start == 0,
    };
    memcpy(batch->token_ids + batch->n_rows, sequence->ids + start, n_rows * sizeof *batch->token_ids);
    memcpy(batch->pages + batch->n_page_refs, table_of(d, sequence), s->n_pages * sizeof *batch->pages);
    batch->n_rows += n_rows;
    batch->n_page_refs += s->n_pages;
    if (!samples)
        return;
    d->outputs_of[batch->n_outputs] = job;
    batch->outputs[batch->n_outputs++] = (hr_output){
        .row = batch->n_rows - 1,
        .sampling = &sequence->sampling,
        .history = {.ids = sequence->ids, .n_prompt = sequence->n_prompt, .n_total = start + n_rows},
        .n_logprobs = -1,
        .score_id = -1,
    };
}

/* Runs the batch. What each output drew becomes guess number `at` of its job, unless it is bad: then the job ends. */
static headrace_status run_batch(draft *d, const hr_guess_job *jobs, uint32_t at, headrace_error *err)
{
    headrace_error cause = {0};
    headrace_status status = d->ops->step_begin(d->backend, d->batch, &cause);

    if (status == HEADRACE_OK)
        status = d->ops->step_wait(d->backend, &cause);
    if (status != HEADRACE_OK)
        return hr_fail(err, HEADRACE_E_ENGINE, "draft model: %.800s", cause.message);
    d->n_steps++;
    for (uint32_t i = 0; i < d->batch->n_outputs; i++) {
        uint32_t job = d->outputs_of[i];
        hr_sequence *sequence = jobs[job].sequence;

        if (d->batch->samples[i].is_bad)
            continue;
        sequence->ids[sequence->n_total + at] = d->batch->samples[i].id;
        d->n_written[job] = at + 1;
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- a round */

/* Plans what a sequence has to catch up with, as far as rows are left. */
static void catch_up(draft *d, const hr_guess_job *jobs, uint32_t job, bool is_near)
{
    const hr_sequence *sequence = jobs[job].sequence;
    seat *s = seat_of(d, sequence);
    uint32_t n_behind = sequence->n_total - s->n_run, rows_left = d->options.max_rows - d->batch->n_rows;
    uint32_t n_rows = n_behind < rows_left ? n_behind : rows_left;

    if ((n_behind <= NEAR_ROWS) != is_near || n_rows == 0 ||
        !take_pages(d, sequence, s, sequence->n_total + jobs[job].n))
        return;
    add_span(d, jobs, job, s->n_run, n_rows, n_rows == n_behind);
    s->n_run += n_rows;
}

static headrace_status first_guesses(draft *d, const hr_guess_job *jobs, uint32_t n_jobs, headrace_error *err)
{
    /* Marked first, so that nobody of this round loses pages to another. */
    for (uint32_t i = 0; i < n_jobs; i++)
        (void)seat_of(d, jobs[i].sequence);
    begin_batch(d);
    for (uint32_t i = 0; i < n_jobs; i++)
        catch_up(d, jobs, i, true);
    for (uint32_t i = 0; i < n_jobs; i++)
        if (d->seats[jobs[i].sequence->state_slot].n_run < jobs[i].sequence->n_total)
            catch_up(d, jobs, i, false);
    return d->batch->n_rows > 0 ? run_batch(d, jobs, 0, err) : HEADRACE_OK;
}

static headrace_status further_guesses(draft *d, const hr_guess_job *jobs, uint32_t n_jobs, headrace_error *err)
{
    for (uint32_t at = 1;; at++) {
        begin_batch(d);
        for (uint32_t i = 0; i < n_jobs; i++)
            if (d->n_written[i] == at && at < jobs[i].n)
                add_span(d, jobs, i, jobs[i].sequence->n_total + at - 1, 1, true);
        if (d->batch->n_rows == 0)
            return HEADRACE_OK;
        HR_PASS(run_batch(d, jobs, at, err));
    }
}

static headrace_status propose(hr_proposer *proposer, hr_guess_job *jobs, uint32_t n_jobs, headrace_error *err)
{
    draft *d = (draft *)proposer;

    d->n_rounds++;
    memset(d->n_written, 0, n_jobs * sizeof *d->n_written);
    HR_PASS(first_guesses(d, jobs, n_jobs, err));
    for (uint32_t i = 0; i < n_jobs; i++)
        if (d->n_written[i] == 1 && jobs[i].n > 1)
            d->ops->copy_slot(d->backend, jobs[i].sequence->state_slot, d->max_seqs + jobs[i].sequence->state_slot);
    HR_PASS(further_guesses(d, jobs, n_jobs, err));
    for (uint32_t i = 0; i < n_jobs; i++) {
        if (d->n_written[i] >= 1 && jobs[i].n > 1)
            d->ops->copy_slot(d->backend, d->max_seqs + jobs[i].sequence->state_slot, jobs[i].sequence->state_slot);
        jobs[i].n = d->n_written[i];
    }
    return HEADRACE_OK;
}

static const hr_proposer_ops draft_ops = {.name = "draft_model", .propose = propose, .close = close_draft};

headrace_status hr_draft_open(const hr_backend_ops *ops, const hr_model *model, const hr_backend_options *options,
                              uint32_t n_pages, uint32_t max_seqs, hr_proposer **out, headrace_error *err)
{
    draft *d = calloc(1, sizeof *d);
    headrace_status status;

    *out = NULL;
    if (!d)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a draft model");
    d->base.ops = &draft_ops;
    d->ops = ops;
    d->options = own_options(options);
    d->max_seqs = max_seqs;
    d->pages_per_sequence = options->max_page_refs / max_seqs;
    d->base.max_positions = d->pages_per_sequence * options->page_tokens;
    if (model->arch.max_positions > 0 && model->arch.max_positions < d->base.max_positions)
        d->base.max_positions = model->arch.max_positions;
    d->seats = calloc(max_seqs, sizeof *d->seats);
    d->tables = calloc((size_t)max_seqs * d->pages_per_sequence, sizeof *d->tables);
    d->outputs_of = calloc(max_seqs, sizeof *d->outputs_of);
    d->n_written = calloc(max_seqs, sizeof *d->n_written);
    if (!d->seats || !d->tables || !d->outputs_of || !d->n_written || !hr_kv_pages_init(&d->pages, n_pages)) {
        close_draft(&d->base);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the draft model's tables of %" PRIu32 " pages", n_pages);
    }
    status = ops->open(model, &d->options, n_pages, 2 * max_seqs, &d->backend, err);
    if (status != HEADRACE_OK) {
        close_draft(&d->base);
        return status;
    }
    *out = &d->base;
    return HEADRACE_OK;
}
