/* Guesses between the proposer and the plan, and the states around them.
 *
 * A step runs a sequence's pending id and k guesses after it as one span and samples every row, each with its own
 * history, seed and position: exactly the draws that k + 1 plain steps would make, because a row's numbers do not
 * depend on its company. The draws are the answer as long as each guess equals the draw before it. So nothing is
 * accepted or rejected by chance, and the answer is the plain run's, whatever the guesses are.
 *
 * Keys and values of wrong guesses are overwritten by the rows that come in their place. A convolution state has no
 * positions: it is copied to the slot's spare one before the step and copied back after a wrong guess, and the rows
 * that were right run once more, as warm-up rows of the next span.
 */
#include "engine/engine_state.h"

#include "base/clock.h"

#include <inttypes.h>

enum {
    /* Of a step with guesses, everything else in it included. A step of few rows takes as long as its weights are read,
     * so that a row more costs little: on a CPU a seventh of a token beside one stream, a third beside four, two thirds
     * beside eight (benchmarks speculative), and beside sixteen as much as it can bring. A device reads for longer. */
    CPU_ROWS = 16,
    DEVICE_ROWS = 256,
    LOOKUP_MAX = 4,
    LOOKUP_MIN = 2,
};

static headrace_status check_draft(const hr_model *draft, const hr_model *model, headrace_error *err)
{
    if (draft->arch.vocab_size != model->arch.vocab_size)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "draft_model",
                             "draft_model: '%s' has a vocabulary of %" PRIu32 " ids, the model '%s' one of %" PRIu32
                             ": they must be equal",
                             draft->name, draft->arch.vocab_size, model->name, model->arch.vocab_size);
    return HEADRACE_OK;
}

headrace_status hr_speculation_check(const hr_speculation *asked, const hr_model *model, hr_speculation *out,
                                     headrace_error *err)
{
    *out = (hr_speculation){0};
    if (asked->max_guesses > HEADRACE_SPECULATIVE_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "num_speculative_tokens",
                             "num_speculative_tokens: %" PRIu32 " is outside 0..%d", asked->max_guesses,
                             HEADRACE_SPECULATIVE_MAX);
    if (asked->max_guesses == 0 && (asked->draft_model || asked->lookup_max || asked->lookup_min))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "num_speculative_tokens",
                             "num_speculative_tokens: is 0, but %s is given: 1..%d tokens can be guessed a step",
                             asked->draft_model ? "draft_model" : "prompt_lookup_max or prompt_lookup_min",
                             HEADRACE_SPECULATIVE_MAX);
    if (asked->max_guesses == 0)
        return HEADRACE_OK;
    *out = *asked;
    if (asked->draft_model && !asked->proposer)
        HR_PASS(check_draft(asked->draft_model, model, err));
    if (asked->draft_model || asked->proposer) {
        out->lookup_max = out->lookup_min = 0;
        return HEADRACE_OK;
    }
    if (asked->lookup_min > HR_LOOKUP_LENGTH_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_lookup_min",
                             "prompt_lookup_min: %" PRIu32 " is outside 1..%d", asked->lookup_min,
                             HR_LOOKUP_LENGTH_MAX);
    if (out->lookup_max == 0)
        out->lookup_max = out->lookup_min > LOOKUP_MAX ? out->lookup_min : LOOKUP_MAX;
    if (out->lookup_min == 0)
        out->lookup_min = out->lookup_max < LOOKUP_MIN ? out->lookup_max : LOOKUP_MIN;
    if (out->lookup_max > HR_LOOKUP_LENGTH_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_lookup_max",
                             "prompt_lookup_max: %" PRIu32 " is outside 1..%d", out->lookup_max, HR_LOOKUP_LENGTH_MAX);
    if (out->lookup_min > out->lookup_max)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_lookup_min",
                             "prompt_lookup_min: %" PRIu32 " is above prompt_lookup_max %" PRIu32, out->lookup_min,
                             out->lookup_max);
    return HEADRACE_OK;
}

uint32_t hr_engine_speculative_rows(const hr_engine *engine)
{
    return engine->ops->device_memory ? DEVICE_ROWS : CPU_ROWS;
}

uint32_t hr_engine_max_guesses(const hr_engine *engine, const hr_submit *submit)
{
    uint32_t most = engine->speculation.max_guesses;

    return submit->limits_guesses && submit->max_guesses < most ? submit->max_guesses : most;
}

/* Guesses that the proposer could make for a sequence and the scheduler could use. */
static uint32_t guesses_for(const hr_engine *engine, const hr_sequence *sequence)
{
    uint32_t n = hr_scheduler_guesses_for(&engine->scheduler, sequence), end = engine->proposer->max_positions, left;

    if (end == 0)
        return n;
    left = sequence->n_total < end ? end - sequence->n_total : 0;
    return n < left ? n : left;
}

/* The sequences that could use guesses, and how many each wants. Returns how many sequences. */
static uint32_t collect_jobs(hr_engine *engine)
{
    const hr_scheduler *scheduler = &engine->scheduler;
    uint32_t n_jobs = 0;

    for (uint32_t i = 0; i < scheduler->n_running; i++) {
        hr_sequence *sequence = scheduler->running[i];
        uint32_t n = guesses_for(engine, sequence), wanted = n > 0 ? hr_pace_next(&sequence->pace) : 0;

        if (wanted > 0)
            engine->jobs[n_jobs++] = (hr_guess_job){.sequence = sequence, .n = wanted < n ? wanted : n};
    }
    return n_jobs;
}

headrace_status hr_engine_guess(hr_engine *engine, headrace_error *err)
{
    uint32_t room = hr_scheduler_rows_for_guesses(&engine->scheduler), n_jobs;
    headrace_status status;

    if (room == 0)
        return HEADRACE_OK;
    n_jobs = collect_jobs(engine);
    if (n_jobs == 0)
        return HEADRACE_OK;
    if (n_jobs > room)
        n_jobs = room;                      /* the first in order */
    for (uint32_t i = 0; i < n_jobs; i++) { /* what one does not want is shared by those after it */
        uint32_t share = room / (n_jobs - i);

        if (engine->jobs[i].n > share)
            engine->jobs[i].n = share;
        room -= engine->jobs[i].n;
    }
    atomic_store(&engine->in_backend_since_us, hr_now_us());
    status = engine->proposer->ops->propose(engine->proposer, engine->jobs, n_jobs, err);
    atomic_store(&engine->in_backend_since_us, 0);
    HR_PASS(status);
    for (uint32_t i = 0; i < n_jobs; i++)
        engine->jobs[i].sequence->n_proposed = engine->jobs[i].n;
    return HEADRACE_OK;
}

/* Slots beyond those of the scheduler are the spare ones. */
static uint32_t spare_slot(const hr_engine *engine, const hr_sequence *sequence)
{
    return engine->limits.max_num_seqs + sequence->state_slot;
}

void hr_engine_keep_states(hr_engine *engine, const hr_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_spans; i++) {
        const hr_sequence *sequence = plan->spans[i].sequence;

        if (plan->spans[i].n_proposed > 0)
            engine->ops->copy_slot(engine->backend, sequence->state_slot, spare_slot(engine, sequence));
    }
}

static void note_guesses(hr_engine *engine, const hr_planned_span *span, uint32_t n_right)
{
    hr_request *request = span->sequence->owner;
    hr_metrics *metrics = &engine->metrics;

    hr_pace_note(&span->sequence->pace, span->n_proposed, n_right);
    hr_count(&request->n_guesses, span->n_proposed);
    hr_count(&request->n_guesses_right, n_right);
    hr_count(&metrics->spec_drafts, 1);
    hr_count(&metrics->spec_draft_tokens, span->n_proposed);
    hr_count(&metrics->spec_accepted_tokens, n_right);
    for (uint32_t i = 0; i < n_right; i++)
        hr_count(&metrics->spec_accepted_at[i], 1);
}

void hr_engine_commit(hr_engine *engine, const hr_planned_span *span, uint32_t n_tokens)
{
    const hr_sequence *sequence = span->sequence;

    if (span->n_proposed == 0) {
        hr_scheduler_commit(&engine->scheduler, span);
        return;
    }
    note_guesses(engine, span, n_tokens - 1);
    if (hr_scheduler_commit_guesses(&engine->scheduler, span, n_tokens))
        engine->ops->copy_slot(engine->backend, spare_slot(engine, sequence), sequence->state_slot);
}
