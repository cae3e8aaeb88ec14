/* Who guesses the next tokens of an answer (speculative decoding, docs/design/speculative.md). A guess changes how fast
 * an answer comes and never what it says, so a proposer may be as wrong as it likes.
 */
#ifndef HR_ENGINE_PROPOSER_H
#define HR_ENGINE_PROPOSER_H

#include "backend/backend.h"
#include "engine/sequence.h"

/* One sequence that could use guesses in the next step. */
typedef struct hr_guess_job {
    hr_sequence *sequence;
    uint32_t n; /* in: at most so many, >= 1, and n_total + n <= max_positions; out: how many were written */
} hr_guess_job;

typedef struct hr_proposer hr_proposer;
typedef struct hr_proposer_ops {
    const char *name; /* "ngram", "draft_model" */
    /* Writes each job's guesses to sequence->ids[n_total ..], ids of the vocabulary, and their number to n. Nothing
     * else of the sequence changes but its lookup. No allocation. E_ENGINE: a backend failed. */
    headrace_status (*propose)(hr_proposer *proposer, hr_guess_job *jobs, uint32_t n_jobs, headrace_error *err);
    void (*close)(hr_proposer *proposer);
} hr_proposer_ops;

/* One thread (the engine's) calls all functions. The first member of every proposer. */
struct hr_proposer {
    const hr_proposer_ops *ops;
    uint32_t max_positions; /* guesses end there, so that nobody keeps rows for more; 0: anywhere */
};

/* Prompt lookup: in each sequence's own index, which its request has placed. Static: nothing to free. */
extern hr_proposer hr_proposer_lookup;

/* A draft model: a second instance of the same backend, with pages and slots of its own. options: of the model's
 * instance. slot_bytes: of one slot; hr_draft_open takes two a sequence, and n_pages pages for all. */
headrace_status hr_draft_sizes(const hr_backend_ops *ops, const hr_model *draft, const hr_backend_options *options,
                               hr_backend_sizes *out, headrace_error *err);
headrace_status hr_draft_open(const hr_backend_ops *ops, const hr_model *draft, const hr_backend_options *options,
                              uint32_t n_pages, uint32_t max_seqs, hr_proposer **out, headrace_error *err);

#endif
