/* Pieces of OpenAI answers, written straight into buffers: no tree, because most of them are written per token. */
#ifndef HR_SERVER_OPENAI_JSON_H
#define HR_SERVER_OPENAI_JSON_H

#include "base/buffer.h"
#include "headrace.h"

/* Log-probabilities collected for one choice, in the shape of its endpoint. */
typedef struct hr_logprobs {
    bool is_chat;
    hr_buffer tokens;               /* chat: the entries of "content"; completions: the entries of "tokens" */
    hr_buffer values, top, offsets; /* completions only */
    uint32_t n;
    uint64_t offset; /* characters of text before the next token */
} hr_logprobs;

void hr_logprobs_deinit(hr_logprobs *logprobs);
/* Empty again, but the text offset goes on. */
void hr_logprobs_clear(hr_logprobs *logprobs);
/* n_top: how many alternatives the client asked for. is_visible: the token's text appears in the answer. */
void hr_logprobs_add(hr_logprobs *logprobs, const headrace_model *model, const headrace_token_logprobs *token,
                     uint32_t n_top, bool is_visible);
/* A token without a number: the first of an echoed prompt. */
void hr_logprobs_add_first(hr_logprobs *logprobs, const headrace_model *model, int32_t id, bool is_visible);
/* Puts from's entries behind to's. */
void hr_logprobs_append(hr_logprobs *to, const hr_logprobs *from);
/* The object, or null when nothing was collected. */
void hr_logprobs_write(hr_buffer *out, const hr_logprobs *logprobs);

/* [null, {"ID": {"logprob", "rank", "decoded_token"}}, ...]: one entry a prompt token, as vLLM writes them. n_top: how
 * many alternatives the client asked for. */
void hr_prompt_logprobs_write(hr_buffer *out, const headrace_model *model, const headrace_token_logprobs *entries,
                              size_t n, uint32_t n_top);

void hr_ids_write(hr_buffer *out, const int32_t *ids, size_t n); /* [1,2,3] */

typedef struct hr_usage {
    uint64_t n_prompt, n_cached, n_completion;
} hr_usage;
void hr_usage_write(hr_buffer *out, const hr_usage *usage);

#endif
