/* Prompt lookup as a proposer: the index of each sequence does all of it (lookup.c). */
#include "engine/proposer.h"

static headrace_status propose(hr_proposer *proposer, hr_guess_job *jobs, uint32_t n_jobs, headrace_error *err)
{
    (void)proposer;
    (void)err;
    for (uint32_t i = 0; i < n_jobs; i++) {
        hr_sequence *sequence = jobs[i].sequence;

        jobs[i].n = hr_lookup_propose(&sequence->lookup, sequence->ids, sequence->n_total, jobs[i].n);
    }
    return HEADRACE_OK;
}

static void close_nothing(hr_proposer *proposer)
{
    (void)proposer;
}

static const hr_proposer_ops ops = {.name = "ngram", .propose = propose, .close = close_nothing};
hr_proposer hr_proposer_lookup = {.ops = &ops};
