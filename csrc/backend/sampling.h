/* How a token is chosen from logits: the meaning, shared by every backend.
 *
 * Order, each on the result of the one before (as transformers' processors and warpers run): logit_bias; repetition
 * penalty over prompt and output ids; presence and frequency penalties over output ids; min_tokens (stop ids become
 * -inf); temperature; top_k; top_p; min_p; draw. temperature 0 takes the largest logit after the penalties, lowest id
 * on ties.
 *
 * The draw is the Gumbel-max trick (argmax over kept ids of z_i + g_i, g_i = -log(-log u_i)) with u_i a pure function
 * of (seed, position, id): it needs no sorted order and no running sum, so every backend draws the same token, and a
 * request's tokens do not depend on what shares its batch.
 *
 * Filters are transformers' warpers to the letter: top_k keeps every id that equals the k-th largest logit; top_p
 * drops, in ascending order, what has a running probability <= 1 - top_p and always keeps the last (of equal logits at
 * the border the lower ids stay, which torch's unstable sort leaves open); min_p keeps what has at least min_p times
 * the largest probability.
 *
 * Reported logprobs are of the raw logits (log softmax before anything above), as vLLM's default.
 */
#ifndef HR_BACKEND_SAMPLING_H
#define HR_BACKEND_SAMPLING_H

#include "headrace.h"

/* One row's parameters. Owned by the sequence; constant while it lives. */
typedef struct hr_sampling_params {
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;       /* <= 0: off */
    uint32_t min_tokens; /* output ids before which stop ids are impossible */
    uint64_t seed;
    uint32_t n_bias, n_stop_ids;
    const headrace_bias *bias; /* borrowed from the sequence */
    const int32_t *stop_ids; /* every id that ends the answer: the model's own (unless ignore_eos) and the request's */
} hr_sampling_params;

/* Whether the choice depends on the ids before it. */
static inline bool hr_sampling_has_penalties(const hr_sampling_params *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}

/* The ids a penalty looks at. */
typedef struct hr_history {
    const int32_t *ids; /* prompt, then output */
    uint32_t n_prompt;  /* ids[0 .. n_prompt) */
    uint32_t n_total;   /* ids[0 .. n_total); output length is n_total - n_prompt and is the draw's position */
    uint32_t n_pending; /* the last so many ids are not known to the host yet, ids[] does not hold them: the backend
                           sampled them for this slot in a step that was not waited for. 0 unless steps overlap */
} hr_history;

/* What one row gave. */
typedef struct hr_sample {
    int32_t id;
    bool is_bad;   /* NaN or no finite logit: id is meaningless */
    float logprob; /* of id */
    uint32_t rank; /* of id, 1 = most likely; ids with an equal logit and a lower id come first */
    uint32_t n_top;
    int32_t top_ids[HEADRACE_LOGPROBS_MAX];
    float top_logprobs[HEADRACE_LOGPROBS_MAX];
} hr_sample;

/* Scratch of one caller; sizes depend on the vocabulary alone. */
typedef struct hr_sampler hr_sampler;
hr_sampler *hr_sampler_create(uint32_t vocab_size); /* NULL: no memory */
void hr_sampler_destroy(hr_sampler *sampler);

/* Chooses a token. logits [V] fp32 is overwritten. n_logprobs: -1 none (logprob and rank are then not computed), else
 * how many alternatives. n_valid <= V: ids from n_valid on are padding rows of the embedding and never chosen or
 * reported. No allocation. One sampler per thread. */
void hr_sample_token(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                     const hr_history *history, int32_t n_logprobs, hr_sample *out);

/* A token that may be drawn. */
typedef struct hr_candidate {
    float z;      /* logit after penalties, temperature and filters */
    float weight; /* exp(z - largest z), in [0, 1] */
    int32_t id;
} hr_candidate;

/* Everything of hr_sample_token but the draw, for tests and tools: *kept [returned count] lists the ids that may be
 * drawn, in no particular order, valid until the sampler's next call. With temperature 0 it is the one id that is
 * taken. 0 when the logits are bad (NaN, +inf, or nothing finite). logits is overwritten. */
uint32_t hr_sampler_process(hr_sampler *sampler, float *logits, uint32_t n_valid, const hr_sampling_params *params,
                            const hr_history *history, const hr_candidate **kept);
/* Log probability, rank and alternatives of a given id (prompt logprobs). logits is not changed. */
void hr_score_token(hr_sampler *sampler, const float *logits, uint32_t n_valid, int32_t id, int32_t n_logprobs,
                    hr_sample *out);

#endif
