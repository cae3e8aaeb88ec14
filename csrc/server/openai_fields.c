/* The table of request fields. See openai_request.h; docs/http_api.md shows the same table to users. */
#include "server/openai_request.h"

#include "base/buffer.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef enum field_kind {
    FIELD_FLOAT = 0,
    FIELD_INT32,
    FIELD_UINT32,
    FIELD_BOOL,
    FIELD_STRING,
    FIELD_SEED,
    FIELD_CHECK,    /* a function */
    FIELD_ACCEPTED, /* allowed, no effect: any value */
    FIELD_FALSE,    /* only false, or absent */
    FIELD_TRUE,     /* only true, or absent */
    FIELD_ONE,      /* only 1, or absent */
    FIELD_UNSUPPORTED,
    FIELD_STRUCTURED, /* constrained decoding does not exist in this build */
} field_kind;

typedef struct field {
    const char *name;
    int routes;
    field_kind kind;
    size_t at;        /* of the value in hr_openai_request */
    double low, high; /* inclusive */
    bool low_is_open; /* (low, high] */
    hr_field_check check;
} field;

#define ALL (HR_FOR_CHAT | HR_FOR_COMPLETIONS)
#define CHAT_TEXT (HR_FOR_CHAT | HR_FOR_TOKENIZE)
#define EVERY (ALL | HR_FOR_TOKENIZE | HR_FOR_DETOKENIZE)
#define AT(member) offsetof(hr_openai_request, member)
#define INT32_HIGH 2147483647.0

static const field fields[] = {
    /* OpenAI */
    {"model", EVERY, FIELD_STRING, AT(model), 0, 0, false, NULL},
    {"messages", CHAT_TEXT, FIELD_CHECK, 0, 0, 0, false, hr_check_messages},
    {"prompt", HR_FOR_COMPLETIONS | HR_FOR_TOKENIZE, FIELD_CHECK, 0, 0, 0, false, hr_check_prompt},
    {"max_tokens", ALL, FIELD_UINT32, AT(max_tokens), 0, INT32_HIGH, false, NULL},
    {"max_completion_tokens", HR_FOR_CHAT, FIELD_UINT32, AT(max_completion_tokens), 1, INT32_HIGH, false, NULL},
    {"temperature", ALL, FIELD_FLOAT, AT(sampling.temperature), 0, 2, false, NULL},
    {"top_p", ALL, FIELD_FLOAT, AT(sampling.top_p), 0, 1, true, NULL},
    {"n", ALL, FIELD_UINT32, AT(n), 1, -1, false, NULL}, /* high: limits.max_n */
    {"stop", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_stop},
    {"stream", ALL, FIELD_BOOL, AT(stream), 0, 0, false, NULL},
    {"stream_options", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_stream_options},
    {"seed", ALL, FIELD_SEED, 0, 0, 0, false, NULL},
    {"presence_penalty", ALL, FIELD_FLOAT, AT(sampling.presence_penalty), -2, 2, false, NULL},
    {"frequency_penalty", ALL, FIELD_FLOAT, AT(sampling.frequency_penalty), -2, 2, false, NULL},
    {"logit_bias", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_logit_bias},
    {"logprobs", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_logprobs},
    {"top_logprobs", HR_FOR_CHAT, FIELD_INT32, AT(top_logprobs), 0, -1, false, NULL}, /* high: limits.max_logprobs */
    {"response_format", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_response_format},
    {"tools", CHAT_TEXT, FIELD_CHECK, 0, 0, 0, false, hr_check_tools},
    {"tool_choice", HR_FOR_CHAT, FIELD_CHECK, 0, 0, 0, false, hr_check_tool_choice},
    /* accepted, no effect */
    {"parallel_tool_calls", HR_FOR_CHAT, FIELD_TRUE, 0, 0, 0, false, NULL},
    {"user", ALL, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"store", HR_FOR_CHAT, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"metadata", HR_FOR_CHAT, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"service_tier", HR_FOR_CHAT, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"safety_identifier", HR_FOR_CHAT, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"prompt_cache_key", HR_FOR_CHAT, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    {"spaces_between_special_tokens", ALL, FIELD_ACCEPTED, 0, 0, 0, false, NULL},
    /* of vLLM */
    {"top_k", ALL, FIELD_INT32, AT(sampling.top_k), -1, INT32_HIGH, false, NULL},
    {"min_p", ALL, FIELD_FLOAT, AT(sampling.min_p), 0, 1, false, NULL},
    {"repetition_penalty", ALL, FIELD_FLOAT, AT(sampling.repetition_penalty), 0, 10, true, NULL},
    {"min_tokens", ALL, FIELD_UINT32, AT(sampling.min_tokens), 0, INT32_HIGH, false, NULL},
    {"ignore_eos", ALL, FIELD_BOOL, AT(sampling.ignore_eos), 0, 0, false, NULL},
    {"stop_token_ids", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_stop_token_ids},
    {"include_stop_str_in_output", ALL, FIELD_BOOL, AT(sampling.include_stop), 0, 0, false, NULL},
    {"skip_special_tokens", ALL, FIELD_BOOL, AT(skip_special_tokens), 0, 0, false, NULL},
    {"prompt_logprobs", ALL, FIELD_INT32, AT(sampling.n_prompt_logprobs), 0, -1, false, NULL},
    {"truncate_prompt_tokens", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_truncate},
    {"add_generation_prompt", CHAT_TEXT, FIELD_BOOL, SIZE_MAX, 0, 0, false, NULL}, /* read by the renderer */
    {"continue_final_message", CHAT_TEXT, FIELD_BOOL, SIZE_MAX, 0, 0, false, NULL},
    {"chat_template_kwargs", CHAT_TEXT, FIELD_CHECK, 0, 0, 0, false, hr_check_template_kwargs},
    {"add_special_tokens", HR_FOR_COMPLETIONS | HR_FOR_TOKENIZE, FIELD_BOOL, AT(add_special_tokens), 0, 0, false, NULL},
    {"echo", HR_FOR_COMPLETIONS, FIELD_BOOL, AT(echo), 0, 0, false, NULL},
    {"priority", ALL, FIELD_INT32, AT(priority), -2147483648.0, INT32_HIGH, false, NULL},
    {"request_id", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_request_id},
    {"return_token_ids", ALL, FIELD_BOOL, AT(return_token_ids), 0, 0, false, NULL},
    {"cache_salt", ALL, FIELD_CHECK, 0, 0, 0, false, hr_check_cache_salt},
    {"speculative.n_max", ALL, FIELD_INT32, AT(num_speculative_tokens), 0, HEADRACE_SPECULATIVE_MAX, false, NULL},
    {"tokens", HR_FOR_DETOKENIZE, FIELD_CHECK, 0, 0, 0, false, hr_check_tokens},
    {"return_token_strs", HR_FOR_TOKENIZE, FIELD_BOOL, AT(return_token_strs), 0, 0, false, NULL},
    /* understood, and refused */
    {"structured_outputs", ALL, FIELD_STRUCTURED, 0, 0, 0, false, NULL},
    {"guided_json", ALL, FIELD_STRUCTURED, 0, 0, 0, false, NULL},
    {"guided_regex", ALL, FIELD_STRUCTURED, 0, 0, 0, false, NULL},
    {"guided_choice", ALL, FIELD_STRUCTURED, 0, 0, 0, false, NULL},
    {"guided_grammar", ALL, FIELD_STRUCTURED, 0, 0, 0, false, NULL},
    {"best_of", ALL, FIELD_ONE, 0, 0, 0, false, NULL},
    {"use_beam_search", ALL, FIELD_FALSE, 0, 0, 0, false, NULL},
    {"length_penalty", ALL, FIELD_ONE, 0, 0, 0, false, NULL},
    {"modalities", HR_FOR_CHAT, FIELD_CHECK, 0, 0, 0, false, hr_check_modalities},
    {"suffix", HR_FOR_COMPLETIONS, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"functions", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"function_call", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"audio", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"prediction", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"web_search_options", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"reasoning_effort", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"verbosity", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"chat_template", CHAT_TEXT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"documents", HR_FOR_CHAT, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"mm_processor_kwargs", ALL, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"logits_processors", ALL, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"bad_words", ALL, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
    {"allowed_token_ids", ALL, FIELD_UNSUPPORTED, 0, 0, 0, false, NULL},
};
#define N_FIELDS (sizeof fields / sizeof *fields)

const char *hr_json_kind(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}

static bool wrong_kind(const field *row, const json_t *value, const char *expected, hr_api_error *error)
{
    return hr_api_fail(error, HR_API_INVALID_VALUE, row->name, "%s must be %s, not %s.", row->name, expected,
                       hr_json_kind(value));
}

/* The upper end of a range, where the server's options decide. */
static double high_of(const field *row, const hr_request_limits *limits)
{
    if (row->high >= row->low)
        return row->high;
    return row->at == AT(n) ? limits->max_n : limits->max_logprobs;
}

static bool in_range(const field *row, double number, const hr_request_limits *limits, hr_api_error *error)
{
    double high = high_of(row, limits);

    if (isfinite(number) && (row->low_is_open ? number > row->low : number >= row->low) && number <= high)
        return true;
    return hr_api_fail(error, HR_API_INVALID_VALUE, row->name, "%s is %.15g; it must be %s %.15g and at most %.15g.",
                       row->name, number, row->low_is_open ? "above" : "at least", row->low, high);
}

static bool store_integer(hr_openai_request *request, const field *row, json_t *value, const hr_request_limits *limits,
                          hr_api_error *error)
{
    json_int_t number;

    if (!json_is_integer(value))
        return wrong_kind(row, value, "an integer", error);
    number = json_integer_value(value);
    if (!in_range(row, (double)number, limits, error))
        return false;
    if (row->kind == FIELD_INT32) {
        int32_t stored = (int32_t)number;

        memcpy((char *)request + row->at, &stored, sizeof stored);
    } else {
        uint32_t stored = (uint32_t)number;

        memcpy((char *)request + row->at, &stored, sizeof stored);
    }
    return true;
}

static bool store_float(hr_openai_request *request, const field *row, json_t *value, const hr_request_limits *limits,
                        hr_api_error *error)
{
    float stored;

    if (!json_is_number(value))
        return wrong_kind(row, value, "a number", error);
    if (!in_range(row, json_number_value(value), limits, error))
        return false;
    stored = (float)json_number_value(value);
    if (row->low_is_open && (double)stored <= row->low) /* a denormal that float cannot hold */
        return in_range(row, row->low, limits, error);
    memcpy((char *)request + row->at, &stored, sizeof stored);
    return true;
}

static bool unsupported(const field *row, const char *why, hr_api_error *error)
{
    return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, row->name, "%s is not supported by this server%s.",
                       row->name, why);
}

static bool store_bool(hr_openai_request *request, const field *row, json_t *value, hr_api_error *error)
{
    bool stored = json_is_true(value);

    if (!json_is_boolean(value))
        return wrong_kind(row, value, "true or false", error);
    if (row->at != SIZE_MAX)
        memcpy((char *)request + row->at, &stored, sizeof stored);
    return true;
}

static bool apply(hr_openai_request *request, const field *row, json_t *value, const hr_request_limits *limits,
                  hr_api_error *error)
{
    switch (row->kind) {
    case FIELD_FLOAT:
        return store_float(request, row, value, limits, error);
    case FIELD_INT32:
    case FIELD_UINT32:
        return store_integer(request, row, value, limits, error);
    case FIELD_BOOL:
        return store_bool(request, row, value, error);
    case FIELD_STRING: {
        const char *text = json_string_value(value);

        if (!text || strlen(text) != json_string_length(value))
            return wrong_kind(row, value, "a string without NUL characters", error);
        memcpy((char *)request + row->at, &text, sizeof text);
        return true;
    }
    case FIELD_SEED:
        if (!json_is_integer(value))
            return wrong_kind(row, value, "an integer of 64 bits", error);
        request->sampling.has_seed = true;
        request->sampling.seed = (uint64_t)json_integer_value(value);
        return true;
    case FIELD_CHECK:
        return row->check(request, value, limits, error);
    case FIELD_ACCEPTED:
        return true;
    case FIELD_FALSE:
        return json_is_false(value) || unsupported(row, " (only false is)", error);
    case FIELD_TRUE:
        return json_is_true(value) || unsupported(row, " (only true is)", error);
    case FIELD_ONE:
        return (json_is_number(value) && fabs(json_number_value(value) - 1.0) < 1e-12) ||
               unsupported(row, " (only 1 is)", error);
    case FIELD_STRUCTURED:
        return hr_api_fail(error, HR_API_STRUCTURED_OUTPUTS, row->name,
                           "%s needs constrained decoding, which this build does not have.", row->name);
    case FIELD_UNSUPPORTED:
        break;
    }
    return unsupported(row, "", error);
}

static const field *find_field(const char *name, int kind)
{
    for (size_t i = 0; i < N_FIELDS; i++) {
        if ((fields[i].routes & kind) && strcmp(fields[i].name, name) == 0)
            return &fields[i];
    }
    return NULL;
}

static bool apply_all(hr_openai_request *request, const hr_request_limits *limits, hr_api_error *error)
{
    const char *name;
    json_t *value;

    json_object_foreach(request->body, name, value)
    {
        const field *row = find_field(name, request->kind);

        if (!row)
            return hr_api_fail(error, HR_API_UNKNOWN_PARAMETER, name, "This endpoint knows no field named %.64s.",
                               name);
        if (!json_is_null(value) && !apply(request, row, value, limits, error))
            return false;
    }
    return true;
}

/* Rules between fields. */
static bool check_together(hr_openai_request *request, hr_api_error *error)
{
    bool is_chat = request->kind == HR_FOR_CHAT;
    const json_t *messages = json_object_get(request->body, "messages"),
                 *prompt = json_object_get(request->body, "prompt");
    bool has_messages = messages && !json_is_null(messages), has_prompt = prompt && !json_is_null(prompt);

    if (is_chat && !has_messages)
        return hr_api_fail(error, HR_API_MISSING_FIELD, "messages", "messages is missing.");
    if (request->kind == HR_FOR_COMPLETIONS && !has_prompt)
        return hr_api_fail(error, HR_API_MISSING_FIELD, "prompt", "prompt is missing.");
    if (request->kind == HR_FOR_TOKENIZE && has_prompt == has_messages)
        return hr_api_fail(error, HR_API_MISSING_FIELD, "prompt", "Give either prompt or messages.");
    if (json_is_true(json_object_get(request->body, "continue_final_message")) &&
        json_is_true(json_object_get(request->body, "add_generation_prompt")))
        return hr_api_fail(error, HR_API_INVALID_VALUE, "continue_final_message",
                           "continue_final_message and add_generation_prompt exclude each other.");
    if (request->has_stream_options && !request->stream)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "stream_options", "stream_options needs stream: true.");
    if (is_chat && request->top_logprobs >= 0 && !request->wants_logprobs)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "top_logprobs", "top_logprobs needs logprobs: true.");
    if (request->stream && request->sampling.n_prompt_logprobs >= 0)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "prompt_logprobs", "prompt_logprobs cannot be streamed.");
    if (request->has_max_tokens && request->max_tokens == 0 && !request->echo)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "max_tokens", "max_tokens is 0; it must be at least 1%s.",
                           is_chat ? "" : " (0 only with echo)");
    if (request->has_max_tokens && request->has_max_completion_tokens &&
        request->max_tokens != request->max_completion_tokens)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "max_completion_tokens",
                           "max_tokens and max_completion_tokens differ; give one of them.");
    return true;
}

static bool is_given(const json_t *body, const char *name)
{
    const json_t *value = json_object_get(body, name);

    return value && !json_is_null(value);
}

bool hr_openai_request_init(hr_openai_request *request, int kind, json_t *body, const headrace_sampling *defaults,
                            const hr_request_limits *limits, hr_api_error *error)
{
    *request = (hr_openai_request){.kind = kind,
                                   .body = body,
                                   .sampling = *defaults,
                                   .n = 1,
                                   .top_logprobs = -1,
                                   .num_speculative_tokens = -1,
                                   .add_special_tokens = true,
                                   .skip_special_tokens = true};
    request->sampling.n_logprobs = request->sampling.n_prompt_logprobs = -1;
    request->has_max_tokens = is_given(body, "max_tokens");
    request->has_max_completion_tokens = is_given(body, "max_completion_tokens");
    if (!apply_all(request, limits, error) || !check_together(request, error)) {
        hr_openai_request_deinit(request);
        return false;
    }
    if (request->has_max_completion_tokens && !request->has_max_tokens) {
        request->has_max_tokens = true;
        request->max_tokens = request->max_completion_tokens;
    }
    if (kind == HR_FOR_CHAT && request->wants_logprobs)
        request->sampling.n_logprobs = request->top_logprobs > 0 ? request->top_logprobs : 0;
    request->sampling.bias = request->bias;
    request->sampling.keep_special = !request->skip_special_tokens;
    if (kind == HR_FOR_CHAT && !is_given(body, "tools"))
        request->tools_allowed = false;
    return true;
}

void hr_openai_request_deinit(hr_openai_request *request)
{
    json_decref(request->body);
    free(request->bias);
    request->body = NULL;
    request->bias = NULL;
}
