/* Checks of the request fields that have structure. See openai_request.h. Each names the exact place: "stop[2]",
 * "messages[0].content[1].type". */
#include "server/openai_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 64

static bool bad_value(hr_api_error *error, const char *param, const char *expected, const json_t *value)
{
    return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s must be %s, not %s.", param, expected,
                       value ? hr_json_kind(value) : "absent");
}

/* ---------------------------------------------------------------- messages */

static bool check_url(const json_t *part, const char *where, hr_api_error *error)
{
    const json_t *image = json_object_get(part, "image_url");
    const char *url =
        json_is_string(image) ? json_string_value(image) : json_string_value(json_object_get(image, "url"));
    char param[96];

    (void)snprintf(param, sizeof param, "%s.image_url", where);
    if (url && strncmp(url, "data:", 5) != 0)
        return hr_api_fail(error, HR_API_REMOTE_MEDIA, param,
                           "This server fetches no URLs: images must be data: URLs.");
    return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, param, "This model takes no images.");
}

static bool check_part(const json_t *part, const char *where, hr_api_error *error)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    char param[96];

    if (!json_is_object(part))
        return bad_value(error, where, "an object", part);
    (void)snprintf(param, sizeof param, "%s.type", where);
    if (!type)
        return bad_value(error, param, "a string", json_object_get(part, "type"));
    if (strcmp(type, "image_url") == 0)
        return check_url(part, where, error);
    if (strcmp(type, "text") != 0)
        return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, param, "%s must be \"text\".", param);
    (void)snprintf(param, sizeof param, "%s.text", where);
    if (!json_is_string(json_object_get(part, "text")))
        return bad_value(error, param, "a string", json_object_get(part, "text"));
    return true;
}

static bool check_content(const json_t *message, const char *role, size_t message_idx, hr_api_error *error)
{
    const json_t *content = json_object_get(message, "content");
    bool is_assistant = strcmp(role, "assistant") == 0;
    char param[96];

    if (json_is_string(content) || (is_assistant && (!content || json_is_null(content))))
        return true;
    (void)snprintf(param, sizeof param, "messages[%zu].content", message_idx);
    if (!json_is_array(content))
        return bad_value(error, param, "a string or an array of parts", content);
    for (size_t i = 0; i < json_array_size(content); i++) {
        (void)snprintf(param, sizeof param, "messages[%zu].content[%zu]", message_idx, i);
        if (!check_part(json_array_get(content, i), param, error))
            return false;
    }
    return true;
}

static bool check_message(hr_openai_request *request, json_t *message, size_t message_idx, hr_api_error *error)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    const char *role = json_string_value(json_object_get(message, "role"));
    bool is_known = false;
    char param[64];

    (void)snprintf(param, sizeof param, "messages[%zu]", message_idx);
    if (!json_is_object(message))
        return bad_value(error, param, "an object", message);
    for (size_t i = 0; role && i < sizeof roles / sizeof *roles; i++)
        is_known |= strcmp(role, roles[i]) == 0;
    if (!is_known) {
        (void)snprintf(param, sizeof param, "messages[%zu].role", message_idx);
        return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s must be system, developer, user, assistant or tool.",
                           param);
    }
    if (strcmp(role, "developer") == 0) { /* OpenAI's newer word for it */
        if (json_object_set_new(message, "role", json_string("system")) != 0)
            return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
        request->body_changed = true;
        role = "system";
    }
    return check_content(message, role, message_idx, error);
}

bool hr_check_messages(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    size_t n = json_array_size(value);

    (void)limits;
    if (!json_is_array(value))
        return bad_value(error, "messages", "an array", value);
    if (n == 0 || n > HR_MESSAGES_MAX)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "messages", "messages has %zu entries; 1 to %d are allowed.", n,
                           HR_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!check_message(request, json_array_get(value, i), i, error))
            return false;
    }
    return true;
}

/* ---------------------------------------------------------------- prompts */

static bool check_id(const json_t *value, const char *param, size_t i, uint32_t vocab_size, hr_api_error *error)
{
    char where[96];

    if (json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) < vocab_size)
        return true;
    (void)snprintf(where, sizeof where, "%s[%zu]", param, i);
    return hr_api_fail(error, HR_API_INVALID_VALUE, where, "%s must be a token id, an integer from 0 to %u.", where,
                       vocab_size - 1);
}

bool hr_read_ids(const json_t *array, const char *param, uint32_t vocab_size, int32_t **ids, size_t *n_ids,
                 hr_api_error *error)
{
    size_t n = json_array_size(array);
    int32_t *out = malloc((n ? n : 1) * sizeof *out);

    if (!out)
        return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);

        if (!check_id(value, param, i, vocab_size, error)) {
            free(out);
            return false;
        }
        out[i] = (int32_t)json_integer_value(value);
    }
    *ids = out;
    *n_ids = n;
    return true;
}

/* A string, ids, or an array of either; what is inside the arrays is read when they are turned into prompts. */
bool hr_check_prompt(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    size_t n = json_array_size(value);
    const json_t *first = json_array_get(value, 0);

    if (json_is_string(value))
        return true;
    if (request->kind != HR_FOR_TOKENIZE && json_is_array(value) && n == 0)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "prompt",
                           "prompt is an empty array; it needs at least one entry.");
    if (request->kind == HR_FOR_TOKENIZE || !json_is_array(value))
        return bad_value(error, "prompt",
                         request->kind == HR_FOR_TOKENIZE ? "a string"
                                                          : "a string, an array of strings, token ids, "
                                                            "or an array of arrays of token ids",
                         value);
    if (json_is_integer(first))
        return true;
    if (n > limits->max_batch_prompts)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "prompt", "prompt has %zu entries; at most %u are allowed.", n,
                           limits->max_batch_prompts);
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(value, i);
        char param[32];

        (void)snprintf(param, sizeof param, "prompt[%zu]", i);
        if (json_typeof(entry) != json_typeof(first) || (!json_is_string(entry) && !json_is_array(entry)))
            return bad_value(error, param, "a string or an array of token ids, like the other entries", entry);
        if (json_is_array(entry) && json_array_size(entry) == 0)
            return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s is empty.", param);
    }
    return true;
}

bool hr_check_tokens(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    (void)request;
    (void)limits;
    return json_is_array(value) || bad_value(error, "tokens", "an array of token ids", value);
}

/* ---------------------------------------------------------------- tools */

/* A function's description; where is its place in the request. */
static bool check_function(const json_t *function, const char *where, hr_api_error *error)
{
    const json_t *name = json_object_get(function, "name"), *parameters = json_object_get(function, "parameters");
    char param[72];

    if (!json_is_object(function))
        return bad_value(error, where, "an object", function);
    (void)snprintf(param, sizeof param, "%s.name", where);
    if (!json_is_string(name) || json_string_length(name) == 0 || json_string_length(name) > NAME_MAX_BYTES)
        return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s must be a string of 1 to %d bytes.", param,
                           NAME_MAX_BYTES);
    (void)snprintf(param, sizeof param, "%s.parameters", where);
    if (parameters && !json_is_null(parameters) && !json_is_object(parameters))
        return bad_value(error, param, "an object", parameters);
    if (json_is_true(json_object_get(function, "strict"))) {
        (void)snprintf(param, sizeof param, "%s.strict", where);
        return hr_api_fail(error, HR_API_STRUCTURED_OUTPUTS, param,
                           "%s needs constrained decoding, which this build does not have.", param);
    }
    return true;
}

/* {"type": "function", "function": {...}}, or the bare function, which the family's model cards show as well: templates
 * write either as it came. */
static bool check_tool(const json_t *tool, size_t tool_idx, hr_api_error *error)
{
    const char *type = json_string_value(json_object_get(tool, "type"));
    char param[64];

    (void)snprintf(param, sizeof param, "tools[%zu]", tool_idx);
    if (!json_is_object(tool))
        return bad_value(error, param, "an object", tool);
    if (!json_object_get(tool, "type") && !json_object_get(tool, "function") && json_object_get(tool, "name"))
        return check_function(tool, param, error);
    (void)snprintf(param, sizeof param, "tools[%zu].type", tool_idx);
    if (!type || strcmp(type, "function") != 0)
        return hr_api_fail(error, type ? HR_API_UNSUPPORTED_PARAMETER : HR_API_INVALID_VALUE, param,
                           "%s must be \"function\".", param);
    (void)snprintf(param, sizeof param, "tools[%zu].function", tool_idx);
    return check_function(json_object_get(tool, "function"), param, error);
}

bool hr_check_tools(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    size_t n = json_array_size(value);

    (void)limits;
    if (!json_is_array(value))
        return bad_value(error, "tools", "an array", value);
    if (n > HR_TOOLS_MAX)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "tools", "tools has %zu entries; at most %d are allowed.", n,
                           HR_TOOLS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!check_tool(json_array_get(value, i), i, error))
            return false;
    }
    if (n > 0) {
        const char *choice = json_string_value(json_object_get(request->body, "tool_choice"));

        request->tools_allowed = !choice || strcmp(choice, "none") != 0;
    }
    return true;
}

bool hr_check_tool_choice(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                          hr_api_error *error)
{
    const char *choice = json_string_value(value);

    (void)limits;
    if (choice && strcmp(choice, "none") == 0) {
        request->body_changed = true; /* the model does not even see the tools */
        return true;
    }
    if (choice && strcmp(choice, "auto") == 0)
        return true;
    if (json_is_object(value) || (choice && strcmp(choice, "required") == 0))
        return hr_api_fail(
            error, HR_API_UNSUPPORTED_PARAMETER, "tool_choice",
            "tool_choice must be \"auto\" or \"none\": forcing a call needs constrained decoding, which this "
            "build does not have.");
    return hr_api_fail(error, HR_API_INVALID_VALUE, "tool_choice", "tool_choice must be \"auto\" or \"none\".");
}

/* ---------------------------------------------------------------- sampling */

bool hr_check_stop(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    size_t n = json_is_string(value) ? 1 : json_array_size(value);

    (void)limits;
    if (!json_is_string(value) && !json_is_array(value))
        return bad_value(error, "stop", "a string or an array of strings", value);
    if (n > HEADRACE_STOP_MAX)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "stop", "stop has %zu entries; at most %d are allowed.", n,
                           HEADRACE_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_is_string(value) ? value : json_array_get(value, i);
        size_t len = json_string_length(entry);
        char param[32];

        (void)snprintf(param, sizeof param, "stop[%zu]", i);
        if (!json_is_string(entry) || len == 0 || len > HEADRACE_STOP_BYTES_MAX ||
            strlen(json_string_value(entry)) != len)
            return hr_api_fail(error, HR_API_INVALID_VALUE, json_is_string(value) ? "stop" : param,
                               "A stop string must be 1 to %d bytes without NUL.", HEADRACE_STOP_BYTES_MAX);
        request->sampling.stop[i] = json_string_value(entry);
    }
    request->sampling.n_stop = (uint32_t)n;
    return true;
}

bool hr_check_stop_token_ids(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                             hr_api_error *error)
{
    size_t n = json_array_size(value);

    if (!json_is_array(value))
        return bad_value(error, "stop_token_ids", "an array of token ids", value);
    if (n > HEADRACE_STOP_MAX)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "stop_token_ids",
                           "stop_token_ids has %zu entries; at most %d are allowed.", n, HEADRACE_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!check_id(json_array_get(value, i), "stop_token_ids", i, limits->vocab_size, error))
            return false;
        request->sampling.stop_ids[i] = (int32_t)json_integer_value(json_array_get(value, i));
    }
    request->sampling.n_stop_ids = (uint32_t)n;
    return true;
}

/* The decimal text of an id below limit, or -1. */
static int32_t id_of_key(const char *key, uint32_t limit)
{
    uint32_t id = 0;
    size_t len = strlen(key);

    if (len == 0 || len > 9)
        return -1;
    for (size_t i = 0; i < len; i++) {
        if (key[i] < '0' || key[i] > '9')
            return -1;
        id = id * 10 + (uint32_t)(key[i] - '0');
    }
    return id < limit ? (int32_t)id : -1;
}

bool hr_check_logit_bias(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                         hr_api_error *error)
{
    size_t n = json_object_size(value);
    const char *key;
    json_t *entry;

    if (!json_is_object(value))
        return bad_value(error, "logit_bias", "an object of token id to number", value);
    if (n > HEADRACE_BIAS_MAX)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "logit_bias",
                           "logit_bias has %zu entries; at most %d are allowed.", n, HEADRACE_BIAS_MAX);
    request->bias = malloc((n ? n : 1) * sizeof *request->bias);
    if (!request->bias)
        return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
    json_object_foreach(value, key, entry)
    {
        int32_t id = id_of_key(key, limits->vocab_size);
        double bias = json_number_value(entry);
        char param[64];

        (void)snprintf(param, sizeof param, "logit_bias.%.32s", key);
        if (id < 0)
            return hr_api_fail(error, HR_API_INVALID_VALUE, param,
                               "The keys of logit_bias must be token ids from 0 to %u.", limits->vocab_size - 1);
        if (!json_is_number(entry) || !isfinite(bias) || bias < -100 || bias > 100)
            return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s must be a number from -100 to 100.", param);
        request->bias[request->sampling.n_bias++] = (headrace_bias){id, (float)bias};
    }
    return true;
}

/* Chat: a boolean. Completions: how many alternatives. */
bool hr_check_logprobs(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    if (request->kind == HR_FOR_CHAT) {
        if (!json_is_boolean(value))
            return bad_value(error, "logprobs", "true or false", value);
        request->wants_logprobs = json_is_true(value);
        return true;
    }
    if (!json_is_integer(value))
        return bad_value(error, "logprobs", "an integer", value);
    if (json_integer_value(value) < 0 || json_integer_value(value) > limits->max_logprobs)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "logprobs", "logprobs is %lld; it must be 0 to %u.",
                           (long long)json_integer_value(value), limits->max_logprobs);
    request->wants_logprobs = true;
    request->sampling.n_logprobs = (int32_t)json_integer_value(value);
    return true;
}

bool hr_check_truncate(hr_openai_request *request, json_t *value, const hr_request_limits *limits, hr_api_error *error)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value))
        return bad_value(error, "truncate_prompt_tokens", "an integer", value);
    if (number != -1 && (number < 1 || number > limits->max_model_len))
        return hr_api_fail(error, HR_API_INVALID_VALUE, "truncate_prompt_tokens",
                           "truncate_prompt_tokens is %lld; it must be -1 or 1 to %u.", (long long)number,
                           limits->max_model_len);
    request->truncate_prompt_tokens = number;
    return true;
}

/* ---------------------------------------------------------------- small objects */

bool hr_check_stream_options(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                             hr_api_error *error)
{
    const char *key;
    json_t *entry;

    (void)limits;
    if (!json_is_object(value))
        return bad_value(error, "stream_options", "an object", value);
    request->has_stream_options = true;
    json_object_foreach(value, key, entry)
    {
        char param[96];
        bool *flag = strcmp(key, "include_usage") == 0            ? &request->include_usage
                     : strcmp(key, "continuous_usage_stats") == 0 ? &request->continuous_usage
                                                                  : NULL;

        (void)snprintf(param, sizeof param, "stream_options.%.48s", key);
        if (!flag && strcmp(key, "include_obfuscation") != 0)
            return hr_api_fail(error, HR_API_UNKNOWN_PARAMETER, param, "stream_options has no such field.");
        if (json_is_null(entry))
            continue;
        if (!json_is_boolean(entry))
            return bad_value(error, param, "true or false", entry);
        if (flag)
            *flag = json_is_true(entry);
        else if (json_is_true(entry))
            return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, param, "%s is not supported by this server.",
                               param);
    }
    return true;
}

bool hr_check_response_format(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                              hr_api_error *error)
{
    const char *type = json_string_value(json_object_get(value, "type"));

    (void)request;
    (void)limits;
    if (!json_is_object(value))
        return bad_value(error, "response_format", "an object", value);
    if (type && strcmp(type, "text") == 0)
        return true;
    if (type && strncmp(type, "json_", 5) == 0)
        return hr_api_fail(error, HR_API_STRUCTURED_OUTPUTS, "response_format",
                           "response_format %.16s needs constrained decoding, which this build does not have.", type);
    return hr_api_fail(error, HR_API_INVALID_VALUE, "response_format.type", "response_format.type must be \"text\".");
}

bool hr_check_modalities(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                         hr_api_error *error)
{
    const char *only = json_string_value(json_array_get(value, 0));

    (void)request;
    (void)limits;
    if (json_is_array(value) && json_array_size(value) == 1 && only && strcmp(only, "text") == 0)
        return true;
    return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, "modalities", "modalities must be [\"text\"].");
}

/* What the family's templates know; anything else could only be a template's internals. */
bool hr_check_template_kwargs(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                              hr_api_error *error)
{
    static const char *const known[] = {"keep_past_thinking", "preserve_thinking"};
    const char *key;
    json_t *entry;

    (void)request;
    (void)limits;
    if (!json_is_object(value))
        return bad_value(error, "chat_template_kwargs", "an object", value);
    json_object_foreach(value, key, entry)
    {
        bool is_known = false;
        char param[96];

        (void)snprintf(param, sizeof param, "chat_template_kwargs.%.48s", key);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            is_known |= strcmp(key, known[i]) == 0;
        if (!is_known)
            return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, param,
                               "chat_template_kwargs may hold keep_past_thinking and preserve_thinking only.");
        if (!json_is_boolean(entry))
            return bad_value(error, param, "true or false", entry);
    }
    return true;
}

/* FNV-1a: equal texts share cached prefixes. 0 stands for no salt. */
bool hr_check_cache_salt(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                         hr_api_error *error)
{
    const char *text = json_string_value(value);
    uint64_t hash = 0xCBF29CE484222325u;

    (void)limits;
    if (!text || json_string_length(value) == 0)
        return bad_value(error, "cache_salt", "a string, not empty", value);
    for (size_t i = 0; i < json_string_length(value); i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3u;
    request->cache_salt = hash ? hash : 1;
    return true;
}

bool hr_check_request_id(hr_openai_request *request, json_t *value, const hr_request_limits *limits,
                         hr_api_error *error)
{
    const char *text = json_string_value(value);
    size_t len = json_string_length(value);

    (void)limits;
    for (size_t i = 0; text && i < len; i++) {
        char c = text[i];

        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_'))
            text = NULL;
    }
    if (!text || len == 0 || len > 64)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "request_id",
                           "request_id must be 1 to 64 letters, digits, - or _.");
    request->request_id = text;
    return true;
}
