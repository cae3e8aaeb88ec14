/* From what OpenAI clients send to what the family's templates expect.
 *
 * The wire format and the templates differ: arguments travel as JSON text and templates want objects; content may be
 * null or a list of parts and templates want strings; half of the family's templates do not look at tool_calls at all,
 * and the model would never see its own calls. What to do is read off the template (hr_jinja_mentions), never off a
 * model's name.
 */
#include "text/chat_internal.h"
#include "text/tool_call.h"

#include <stdarg.h>
#include <string.h>

#define CALL_START "<|tool_call_start|>"
#define CALL_END "<|tool_call_end|>"

typedef struct normalizer {
    const hr_jinja_mentions *mentions;
    size_t n_messages, index; /* the message at hand */
    size_t last_user;         /* index of the last user message, or SIZE_MAX */
    headrace_error *err;
} normalizer;

/* Names a field of the message at hand and fails. */
static headrace_status fail_field(const normalizer *n, const char *field, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static headrace_status fail_field(const normalizer *n, const char *field, const char *format, ...)
{
    char param[64], message[400];
    va_list args;

    (void)snprintf(param, sizeof param, "messages[%zu]%s%s", n->index, field[0] && field[0] != '[' ? "." : "", field);
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return hr_fail_param(n->err, HEADRACE_E_ARGUMENT, param, "%s: %s", param, message);
}

static headrace_status no_memory(headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the conversation");
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};

    return value ? names[json_typeof(value)] : "nothing";
}

/* ---------------------------------------------------------------- content */

static headrace_status add_part(const normalizer *n, size_t i, const json_t *part, hr_buffer *text)
{
    const json_t *type = json_object_get(part, "type"), *value = json_object_get(part, "text");
    char field[40];

    if (!json_is_object(part)) {
        (void)snprintf(field, sizeof field, "content[%zu]", i);
        return fail_field(n, field, "expected an object with type and text, found %s", type_name(part));
    }
    if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0) {
        (void)snprintf(field, sizeof field, "content[%zu].type", i);
        return fail_field(n, field, "this model reads text only; expected \"text\", found %.40s",
                          json_is_string(type) ? json_string_value(type) : type_name(type));
    }
    if (!json_is_string(value)) {
        (void)snprintf(field, sizeof field, "content[%zu].text", i);
        return fail_field(n, field, "expected a string, found %s", type_name(value));
    }
    hr_buffer_add(text, json_string_value(value), json_string_length(value));
    return HEADRACE_OK;
}

/* The content as one text: null and nothing are "", text parts are joined. */
static headrace_status read_content(const normalizer *n, const json_t *message, hr_buffer *text)
{
    const json_t *content = json_object_get(message, "content");

    if (!content || json_is_null(content))
        return HEADRACE_OK;
    if (json_is_string(content)) {
        hr_buffer_add(text, json_string_value(content), json_string_length(content));
        return HEADRACE_OK;
    }
    if (!json_is_array(content))
        return fail_field(n, "content", "expected a string, null or a list of parts, found %s", type_name(content));
    for (size_t i = 0; i < json_array_size(content); i++)
        HR_PASS(add_part(n, i, json_array_get(content, i), text));
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- tool calls */

/* A copy of one call with its arguments as an object. */
static headrace_status read_call(const normalizer *n, size_t i, const json_t *call, json_t **out)
{
    json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name");
    json_t *arguments = json_object_get(function, "arguments"), *parsed = NULL, *copy = NULL;
    json_error_t problem = {.text = ""};
    char field[64];

    *out = NULL;
    if (!json_is_object(function)) {
        (void)snprintf(field, sizeof field, "tool_calls[%zu].function", i);
        return fail_field(n, field, "expected an object, found %s", type_name(function));
    }
    if (!json_is_string(name) || json_string_length(name) == 0) {
        (void)snprintf(field, sizeof field, "tool_calls[%zu].function.name", i);
        return fail_field(n, field, "expected a name, found %s", type_name(name));
    }
    if (!arguments || json_is_null(arguments) || (json_is_string(arguments) && json_string_length(arguments) == 0))
        parsed = json_object();
    else if (json_is_string(arguments))
        parsed = json_loadb(json_string_value(arguments), json_string_length(arguments), JSON_ALLOW_NUL, &problem);
    else
        parsed = json_incref(arguments);
    if (!json_is_object(parsed)) {
        (void)snprintf(field, sizeof field, "tool_calls[%zu].function.arguments", i);
        json_decref(parsed);
        return fail_field(n, field, "expected the JSON text of an object%s%.100s", problem.text[0] ? ": " : "",
                          problem.text);
    }
    copy = json_copy((json_t *)(uintptr_t)call);
    function = json_copy(function);
    if (!copy || !function || json_object_set_new(function, "arguments", parsed) != 0 ||
        json_object_set_new(copy, "function", function) != 0) {
        json_decref(copy);
        return no_memory(n->err);
    }
    *out = copy;
    return HEADRACE_OK;
}

/* The message's calls with parsed arguments; NULL when there are none. */
static headrace_status read_calls(const normalizer *n, const json_t *message, json_t **out)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    json_t *copies;

    *out = NULL;
    if (!calls || json_is_null(calls))
        return HEADRACE_OK;
    if (!json_is_array(calls))
        return fail_field(n, "tool_calls", "expected an array, found %s", type_name(calls));
    if (json_array_size(calls) == 0)
        return HEADRACE_OK;
    copies = json_array();
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *copy;
        headrace_status status = read_call(n, i, json_array_get(calls, i), &copy);

        if (status == HEADRACE_OK && json_array_append_new(copies, copy) != 0)
            status = no_memory(n->err);
        if (status != HEADRACE_OK) {
            json_decref(copies);
            return status;
        }
    }
    *out = copies;
    return HEADRACE_OK;
}

/* HR_CHAT_CONTENT_RUNS under construction. */
typedef struct content_runs {
    json_t *list;
    size_t covered; /* bytes of the content so far */
} content_runs;

/* Adds a run of n bytes of template text that begins at `at`; what lies between it and the runs so far is data. */
static void add_template_run(content_runs *runs, size_t at, size_t n)
{
    if (json_array_size(runs->list) == 0)
        (void)json_array_append_new(runs->list, json_integer(0)); /* the first run is template text by definition */
    (void)json_array_append_new(runs->list, json_integer((json_int_t)(at - runs->covered)));
    (void)json_array_append_new(runs->list, json_integer((json_int_t)n));
    runs->covered = at + n;
}

/* Calls as the model writes them, for templates that do not: the markers are template text, everything else is data. */
static headrace_status write_calls(const normalizer *n, const json_t *calls, hr_buffer *text, content_runs *runs)
{
    add_template_run(runs, text->len, strlen(CALL_START));
    hr_buffer_add_text(text, CALL_START);
    hr_buffer_add_char(text, '[');
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *name = json_object_get(function, "name");

        hr_buffer_add_text(text, i == 0 ? "" : ", ");
        if (!hr_tool_call_write(text, json_string_value(name), json_string_length(name),
                                json_object_get(function, "arguments")) &&
            !text->failed)
            return fail_field(n, "tool_calls", "the arguments of call %zu are nested more than %d levels deep", i,
                              HR_TOOL_CALL_MAX_NESTING);
    }
    hr_buffer_add_char(text, ']');
    add_template_run(runs, text->len, strlen(CALL_END));
    hr_buffer_add_text(text, CALL_END);
    return HEADRACE_OK;
}

/* A past answer's own call markers, in the text as the model once wrote it. Clients that do not know tool_calls send
 * such text back, and only as tokens does the model recognise what it did. No other special token, and no other role,
 * is read this way: a client that forges an assistant turn needs no marker for that. */
static void mark_own_calls(const hr_buffer *text, size_t from, content_runs *runs)
{
    static const char *const markers[] = {CALL_START, CALL_END};

    for (size_t at = from; at < text->len; at++) {
        for (size_t i = 0; i < 2; i++) {
            size_t len = strlen(markers[i]);

            if (text->len - at >= len && memcmp(text->at + at, markers[i], len) == 0) {
                add_template_run(runs, at, len);
                at += len - 1;
                break;
            }
        }
    }
}

/* ---------------------------------------------------------------- messages */

/* The reasoning of a past answer: its own field for templates that read one, else text in front of a call that the
 * model is still working on. Elsewhere the reasoning of the past is dropped, as the templates themselves do. */
static headrace_status keep_reasoning(const normalizer *n, const json_t *message, const json_t *calls, json_t *out,
                                      hr_buffer *text)
{
    const json_t *reasoning = json_object_get(message, "reasoning_content");

    if (!json_is_string(reasoning))
        reasoning = json_object_get(message, "reasoning");
    if (!json_is_string(reasoning) || json_string_length(reasoning) == 0 || n->mentions->reasoning_content)
        return HEADRACE_OK;
    if (n->mentions->thinking) {
        if (!json_object_get(message, "thinking") &&
            json_object_set_new(out, "thinking",
                                json_stringn(json_string_value(reasoning), json_string_length(reasoning))) != 0)
            return no_memory(n->err);
    } else if (calls && (n->last_user == SIZE_MAX || n->index > n->last_user)) {
        hr_buffer_add_text(text, "<think>");
        hr_buffer_add(text, json_string_value(reasoning), json_string_length(reasoning));
        hr_buffer_add_text(text, "</think>");
    }
    return HEADRACE_OK;
}

static headrace_status fill_message(const normalizer *n, const json_t *message, json_t *out, hr_buffer *text,
                                    content_runs *runs)
{
    const json_t *role = json_object_get(message, "role");
    json_t *calls = NULL;
    size_t before;

    if (!json_is_string(role) || json_string_length(role) == 0)
        return fail_field(n, "role", "expected a role such as \"user\", found %s", type_name(role));
    HR_PASS(read_calls(n, message, &calls));
    if (strcmp(json_string_value(role), "assistant") == 0) {
        headrace_status status = keep_reasoning(n, message, calls, out, text);

        if (status == HEADRACE_OK && calls && !n->mentions->tool_calls)
            status = write_calls(n, calls, text, runs);
        if (status != HEADRACE_OK) {
            json_decref(calls);
            return status;
        }
    }
    if (calls && json_object_set_new(out, "tool_calls", calls) != 0)
        return no_memory(n->err);
    if (!calls)
        (void)json_object_del(out, "tool_calls");
    before = text->len;
    HR_PASS(read_content(n, message, text));
    if (strcmp(json_string_value(role), "assistant") == 0)
        mark_own_calls(text, before, runs);
    return HEADRACE_OK;
}

static headrace_status normalize_message(const normalizer *n, const json_t *message, json_t *messages)
{
    json_t *out, *content;
    content_runs runs = {0};
    hr_buffer text = {0};
    headrace_status status;

    if (!json_is_object(message))
        return fail_field(n, "", "expected an object, found %s", type_name(message));
    out = json_copy((json_t *)(uintptr_t)message);
    runs.list = json_array();
    (void)json_object_del(out, HR_CHAT_CONTENT_RUNS);
    status = fill_message(n, message, out, &text, &runs);
    content = status == HEADRACE_OK ? json_stringn_nocheck(text.at ? text.at : "", text.len) : NULL;
    if (status == HEADRACE_OK &&
        (text.failed || !content || json_object_set(out, "content", content) != 0 ||
         (json_array_size(runs.list) > 0 && json_object_set(out, HR_CHAT_CONTENT_RUNS, runs.list) != 0) ||
         json_array_append(messages, out) != 0))
        status = no_memory(n->err);
    hr_buffer_deinit(&text);
    json_decref(content);
    json_decref(runs.list);
    json_decref(out);
    return status;
}

static headrace_status normalize_messages(const hr_chat_template *chat_template, const json_t *messages, json_t *out,
                                          headrace_error *err)
{
    normalizer n = {.mentions = hr_chat_template_mentions(chat_template), .last_user = SIZE_MAX, .err = err};

    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "messages", "messages: expected a non-empty array, found %s",
                             json_is_array(messages) ? "an empty one" : type_name(messages));
    n.n_messages = json_array_size(messages);
    for (size_t i = 0; i < n.n_messages; i++) {
        const char *role = json_string_value(json_object_get(json_array_get(messages, i), "role"));

        if (role && strcmp(role, "user") == 0)
            n.last_user = i;
    }
    for (n.index = 0; n.index < n.n_messages; n.index++)
        HR_PASS(normalize_message(&n, json_array_get(messages, n.index), out));
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the rest of the request */

static headrace_status read_flag(const json_t *request, const char *name, bool fallback, bool *out, headrace_error *err)
{
    const json_t *value = json_object_get(request, name);

    *out = value && !json_is_null(value) ? json_is_true(value) : fallback;
    if (value && !json_is_null(value) && !json_is_boolean(value))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s: expected true or false, found %s", name,
                             type_name(value));
    return HEADRACE_OK;
}

static headrace_status normalize_tools(const json_t *tools, json_t *context, headrace_error *err)
{
    char param[64];

    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "tools", "tools: expected an array, found %s", type_name(tools));
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);

        if (json_is_object(tool) || json_is_string(tool))
            continue;
        (void)snprintf(param, sizeof param, "tools[%zu]", i);
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, param, "%s: expected an object, found %s", param,
                             type_name(tool));
    }
    if (json_object_set_new(context, "tools", json_array_size(tools) > 0 ? json_deep_copy(tools) : json_null()) != 0)
        return no_memory(err);
    return HEADRACE_OK;
}

/* Extra variables for the template. They may not take the place of what the server itself puts there. */
static headrace_status add_kwargs(const json_t *kwargs, json_t *context, headrace_error *err)
{
    static const char *const reserved[] = {"messages",  "tools",    "add_generation_prompt", "continue_final_message",
                                           "bos_token", "eos_token"};
    json_t *object = (json_t *)(uintptr_t)kwargs;
    char param[64];

    if (!kwargs || json_is_null(kwargs))
        return HEADRACE_OK;
    if (!json_is_object(kwargs))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "chat_template_kwargs",
                             "chat_template_kwargs: expected an object, found %s", type_name(kwargs));
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);

        for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
            if (strcmp(key, reserved[i]) != 0)
                continue;
            (void)snprintf(param, sizeof param, "chat_template_kwargs.%s", key);
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, param, "%s: the server sets this one itself", param);
        }
        if (json_object_set(context, key, json_object_iter_value(at)) != 0)
            return no_memory(err);
    }
    return HEADRACE_OK;
}

static headrace_status fill_context(const hr_chat_template *chat_template, const json_t *request, json_t *context,
                                    headrace_error *err)
{
    json_t *messages = json_array();
    bool continues, prompts;

    if (!messages || json_object_set_new(context, "messages", messages) != 0)
        return no_memory(err);
    HR_PASS(normalize_messages(chat_template, json_object_get(request, "messages"), messages, err));
    HR_PASS(normalize_tools(json_object_get(request, "tools"), context, err));
    HR_PASS(read_flag(request, "continue_final_message", false, &continues, err));
    HR_PASS(read_flag(request, "add_generation_prompt", !continues, &prompts, err));
    if (continues && prompts)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "continue_final_message",
                             "continue_final_message and add_generation_prompt cannot both be true");
    if (json_object_set_new(context, "add_generation_prompt", json_boolean(prompts)) != 0 ||
        json_object_set_new(context, "continue_final_message", json_boolean(continues)) != 0)
        return no_memory(err);
    return add_kwargs(json_object_get(request, "chat_template_kwargs"), context, err);
}

json_t *hr_chat_normalize(const hr_chat_template *chat_template, const json_t *request, headrace_error *err)
{
    json_t *context = json_object();

    if (!context) {
        (void)no_memory(err);
        return NULL;
    }
    if (fill_context(chat_template, request, context, err) == HEADRACE_OK)
        return context;
    json_decref(context);
    return NULL;
}
