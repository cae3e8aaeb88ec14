/* A completion request as JSON, checked field by field into numbers the engine takes.
 *
 * One table (openai_fields.c) names every field, its type, its range and where it goes; a field outside the table is
 * refused by name. What needs structure (messages, tools, stop, ...) has a check of its own (openai_checks.c). Nothing
 * is allocated in proportion to a number from the request before that number was checked.
 */
#ifndef HR_SERVER_OPENAI_REQUEST_H
#define HR_SERVER_OPENAI_REQUEST_H

#include "headrace.h"
#include "server/api_error.h"

#include <jansson.h>

#define HR_TOOLS_MAX 128
#define HR_MESSAGES_MAX 4096

enum {
    HR_FOR_CHAT = 1,
    HR_FOR_COMPLETIONS = 2,
    HR_FOR_TOKENIZE = 4,
    HR_FOR_DETOKENIZE = 8,
};

typedef struct hr_request_limits {
    uint32_t max_n, max_logprobs, max_batch_prompts, max_model_len, vocab_size;
} hr_request_limits;

typedef struct hr_openai_request {
    int kind;     /* HR_FOR_... */
    json_t *body; /* owned; strings below point into it */

    headrace_sampling sampling;
    headrace_bias *bias; /* malloc'ed; sampling.bias points here */
    uint32_t n;
    int32_t priority;
    uint64_t cache_salt;            /* hash of the text */
    int32_t num_speculative_tokens; /* -1: absent */
    uint32_t max_tokens;            /* when has_max_tokens */
    uint32_t max_completion_tokens;
    bool has_max_tokens, has_max_completion_tokens;
    int32_t top_logprobs; /* chat: -1 absent */
    bool wants_logprobs;
    int64_t truncate_prompt_tokens; /* 0: off, -1: to what fits */
    const char *model;              /* NULL: absent */
    const char *request_id;
    bool stream, include_usage, continuous_usage, echo, return_token_ids;
    bool has_stream_options;
    bool add_special_tokens; /* put the first token in front of a plain prompt */
    bool skip_special_tokens;
    bool return_token_strs; /* tokenize */
    bool tools_allowed;     /* tools were given and tool_choice is not "none" */
    bool body_changed;      /* the tree differs from the text: render from the tree */
} hr_openai_request;

/* Checks a body (already parsed; its reference is taken over, also on failure). defaults: the model's sampling values.
 */
bool hr_openai_request_init(hr_openai_request *request, int kind, json_t *body, const headrace_sampling *defaults,
                            const hr_request_limits *limits, hr_api_error *error);
void hr_openai_request_deinit(hr_openai_request *request);

/* The checks of openai_checks.c; value is not null. */
typedef bool (*hr_field_check)(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                               hr_api_error *error);
bool hr_check_messages(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_prompt(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_tokens(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_tools(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_tool_choice(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_stop(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_stop_token_ids(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_logit_bias(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_stream_options(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_response_format(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_modalities(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_template_kwargs(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_cache_salt(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_request_id(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_logprobs(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);
bool hr_check_truncate(hr_openai_request *, json_t *, const hr_request_limits *, hr_api_error *);

/* "a string", "an integer", ... for messages. */
const char *hr_json_kind(const json_t *value);

/* Reads an array of token ids below limit into malloc'ed *ids. */
bool hr_read_ids(const json_t *array, const char *param, uint32_t vocab_size, int32_t **ids, size_t *n_ids,
                 hr_api_error *error);

#endif
