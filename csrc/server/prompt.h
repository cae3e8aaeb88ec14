/* From a checked request to token ids: rendering a chat, encoding text, reading ids; and the length rules. */
#ifndef HR_SERVER_PROMPT_H
#define HR_SERVER_PROMPT_H

#include "server/context.h"
#include "server/openai_request.h"

typedef struct hr_prompt {
    int32_t *ids; /* malloc'ed */
    size_t n_ids;
    bool has_added_first; /* ids[0] was put in front by us: it is not part of an echo */
    bool opens_reasoning; /* the rendered chat ends with an open <think> */
} hr_prompt;

typedef struct hr_prompt_list {
    hr_prompt *at; /* malloc'ed */
    size_t n;
} hr_prompt_list;

/* raw: the body as it came, from which a chat is rendered when the tree was not changed. */
bool hr_prompts_init(hr_prompt_list *prompts, const hr_server *server, const hr_openai_request *request,
                     const char *raw, size_t raw_len, hr_api_error *error);
void hr_prompts_deinit(hr_prompt_list *prompts);

/* Applies truncate_prompt_tokens and decides sampling.max_tokens for one prompt; context_length_exceeded names both
 * numbers. */
bool hr_prompt_fit(hr_prompt *prompt, const hr_server *server, const hr_openai_request *request, uint32_t *max_tokens,
                   hr_api_error *error);

#endif
