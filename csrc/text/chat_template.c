/* A conversation as JSON into the interpreter, a prompt with ranges out of it. */
#include "text/chat_template.h"
#include "text/chat_internal.h"
#include "text/jinja_value.h"
#include "text/python_text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <locale.h>
#include <pcre2.h>
#include <string.h>

/* What transformers appends to the message to be continued and cuts at; templates know the name. */
#define CONTINUE_TAG "CONTINUE_FINAL_MESSAGE_TAG "

struct hr_chat_template {
    hr_arena arena;
    char *name;
    hr_jinja_node *statements;
    hr_jinja_mentions mentions;
};

headrace_status hr_chat_template_parse(const char *name, const char *text, size_t len, hr_chat_template **out,
                                       headrace_error *err)
{
    hr_chat_template *parsed = calloc(1, sizeof *parsed);
    headrace_status status;

    *out = NULL;
    if (parsed)
        parsed->name = hr_arena_strndup(&parsed->arena, name, strlen(name));
    if (!parsed || !parsed->name) {
        hr_chat_template_close(parsed);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to parse chat template %s", name);
    }
    status = hr_jinja_parse(parsed->name, text, len, &parsed->arena, &parsed->statements, &parsed->mentions, err);
    if (status != HEADRACE_OK) {
        hr_chat_template_close(parsed);
        return status;
    }
    *out = parsed;
    return HEADRACE_OK;
}

void hr_chat_template_close(hr_chat_template *chat_template)
{
    if (!chat_template)
        return;
    hr_arena_deinit(&chat_template->arena);
    free(chat_template);
}

const hr_jinja_mentions *hr_chat_template_mentions(const hr_chat_template *chat_template)
{
    return &chat_template->mentions;
}

/* ---------------------------------------------------------------- JSON to values */

static bool from_json(hr_jinja_run *run, const json_t *json, int level, hr_jinja_value *out);

/* A content whose runs are known: alternating template text and data. */
static bool content_with_runs(hr_jinja_run *run, const json_t *content, const json_t *runs, hr_jinja_value *out)
{
    hr_jinja_store *store = hr_jinja_store_new(run);
    const char *text = json_string_value(content);
    size_t left = json_string_length(content);

    for (size_t i = 0; store && i < json_array_size(runs); i++) {
        json_int_t len = json_integer_value(json_array_get(runs, i));
        size_t n = len < 0 ? 0 : (size_t)len;

        if (n > left)
            n = left;
        if (!hr_jinja_store_add_text(run, store, text, n, i % 2 == 1))
            return false;
        text += n;
        left -= n;
    }
    if (!store || !hr_jinja_store_add_text(run, store, text, left, true))
        return false;
    *out = hr_jinja_store_value(store);
    return true;
}

static bool dict_from_json(hr_jinja_run *run, const json_t *json, int level, hr_jinja_value *out)
{
    json_t *object = (json_t *)(uintptr_t)json; /* Jansson iterates only over what is not const */
    const json_t *runs = json_object_get(json, HR_CHAT_CONTENT_RUNS);

    if (!hr_jinja_dict_new(run, HR_JINJA_VALUE_DICT, json_object_size(json), out))
        return false;
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        size_t key_len = json_object_iter_key_len(at);
        const json_t *value = json_object_iter_value(at);
        hr_jinja_dict *dict = out->as.dict;
        bool ok;

        if (strcmp(key, HR_CHAT_CONTENT_RUNS) == 0)
            continue;
        dict->keys[dict->n] = hr_jinja_text(key, key_len, true); /* keys are distinct: no search */
        if (runs && json_is_string(value) && strcmp(key, "content") == 0)
            ok = content_with_runs(run, value, runs, &dict->values[dict->n]);
        else
            ok = from_json(run, value, level + 1, &dict->values[dict->n]);
        if (!ok)
            return false;
        dict->n++;
    }
    return true;
}

static bool from_json(hr_jinja_run *run, const json_t *json, int level, hr_jinja_value *out)
{
    if (level > HR_JINJA_MAX_DATA_NESTING)
        return hr_jinja_fail(run, "the conversation is nested more than %d levels deep", HR_JINJA_MAX_DATA_NESTING);
    switch (json_typeof(json)) {
    case JSON_STRING:
        *out = hr_jinja_text(json_string_value(json), json_string_length(json), true);
        return true;
    case JSON_INTEGER:
        *out = hr_jinja_int(json_integer_value(json));
        return true;
    case JSON_REAL:
        *out = hr_jinja_real(json_real_value(json));
        return true;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = hr_jinja_bool(json_is_true(json));
        return true;
    case JSON_ARRAY:
        if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, json_array_size(json), out))
            return false;
        for (size_t i = 0; i < json_array_size(json); i++) {
            if (!from_json(run, json_array_get(json, i), level + 1, &out->as.sequence->at[i]))
                return false;
        }
        return true;
    case JSON_OBJECT:
        return dict_from_json(run, json, level, out);
    default:
        *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_NONE};
        return true;
    }
}

/* The context's entries as variables. The tokens that the server itself adds count as template text. */
static bool bind_context(hr_jinja_run *run, const json_t *context, hr_jinja_scope *scope)
{
    json_t *object = (json_t *)(uintptr_t)context;

    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        hr_jinja_value value;

        if (!from_json(run, json_object_iter_value(at), 0, &value))
            return false;
        if (value.kind == HR_JINJA_VALUE_STRING && (strcmp(key, "bos_token") == 0 || strcmp(key, "eos_token") == 0))
            value.as.string.is_data = false;
        if (!hr_jinja_set_variable(run, scope, key, &value))
            return false;
    }
    return true;
}

/* ---------------------------------------------------------------- continuing the last message */

/* The string to which the tag is appended: the last message's content, or its last text part. */
static hr_jinja_value *last_content(const hr_jinja_scope *scope)
{
    const hr_jinja_variable *variable = scope->variables;
    hr_jinja_value *content;

    while (variable && strcmp(variable->name, "messages") != 0)
        variable = variable->next;
    if (!variable || variable->value.kind != HR_JINJA_VALUE_SEQUENCE || variable->value.as.sequence->n == 0)
        return NULL;
    content = &variable->value.as.sequence->at[variable->value.as.sequence->n - 1];
    if (content->kind != HR_JINJA_VALUE_DICT || !(content = hr_jinja_dict_find(content->as.dict, "content", 7)))
        return NULL;
    if (content->kind == HR_JINJA_VALUE_SEQUENCE && content->as.sequence->n > 0) {
        content = &content->as.sequence->at[content->as.sequence->n - 1];
        content = content->kind == HR_JINJA_VALUE_DICT ? hr_jinja_dict_find(content->as.dict, "text", 4) : NULL;
    }
    return content && content->kind == HR_JINJA_VALUE_STRING ? content : NULL;
}

static bool append_tag(hr_jinja_run *run, const hr_jinja_scope *scope)
{
    hr_jinja_value tag = hr_jinja_text(CONTINUE_TAG, sizeof CONTINUE_TAG - 1, false);
    hr_jinja_value *content = last_content(scope);

    if (!content) {
        run->status = hr_fail_param(run->err, HEADRACE_E_ARGUMENT, "continue_final_message",
                                    "continue_final_message needs a last message with text content");
        return false;
    }
    return hr_jinja_concat(run, &content->as.string, &tag.as.string, content);
}

/* Cuts the rendering at the tag; a template that trimmed the message gets its white space trimmed here too. */
static bool cut_at_tag(hr_jinja_run *run)
{
    const size_t n = sizeof CONTINUE_TAG - 2; /* without the blank at the end, which a template may trim */
    size_t at = run->out->used;

    while (at >= n && memcmp(run->out->at + at - n, CONTINUE_TAG, n) != 0)
        at--;
    if (at < n)
        return hr_jinja_fail(run, "the last message is not in the rendering, so it cannot be continued");
    if (at < run->out->used && run->out->at[at] == ' ')
        run->out->used = at - n;
    else
        run->out->used = hr_python_trimmed_len(run->out->at, at - n);
    return true;
}

/* ---------------------------------------------------------------- rendering */

static headrace_status hand_out(const hr_jinja_store *store, hr_chat_rendering *out, headrace_error *err)
{
    size_t n = 0;

    for (size_t i = 0; i < store->used; i++)
        n += i == 0 || store->from[i] != store->from[i - 1];
    hr_buffer_add(&out->text, store->at, store->used);
    out->ranges = calloc(n > 0 ? n : 1, sizeof *out->ranges);
    if (!out->ranges || out->text.failed) {
        hr_chat_rendering_deinit(out);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the rendered chat");
    }
    for (size_t i = 0; i < store->used; i++) {
        if (i == 0 || store->from[i] != store->from[i - 1])
            out->ranges[out->n_ranges++].parse_special = store->from[i] == 0;
        out->ranges[out->n_ranges - 1].len++;
    }
    return HEADRACE_OK;
}

headrace_status hr_chat_template_render(const hr_chat_template *chat_template, const json_t *context, int64_t date_us,
                                        hr_chat_rendering *out, headrace_error *err)
{
    hr_arena arena = {0};
    hr_jinja_scope scope = {0};
    headrace_error local = {0};
    headrace_status status = HEADRACE_OK;
    hr_jinja_run run = {.name = chat_template->name, .arena = &arena, .err = err ? err : &local, .date_us = date_us};
    bool continues;

    *out = (hr_chat_rendering){0};
    if (!json_is_array(json_object_get(context, "messages")))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "messages", "messages must be an array");
    continues = json_is_true(json_object_get(context, "continue_final_message")) &&
                !chat_template->mentions.continue_final_message;
    run.out = hr_jinja_store_new(&run);
    if (run.out && bind_context(&run, context, &scope) && (!continues || append_tag(&run, &scope)) &&
        hr_jinja_execute(&run, &scope, chat_template->statements) && (!continues || cut_at_tag(&run)))
        status = hand_out(run.out, out, err);
    else
        status = run.status;
    pcre2_code_free(run.unprintable);
    if (run.locale)
        freelocale(run.locale);
    hr_arena_deinit(&arena);
    return status;
}

void hr_chat_rendering_deinit(hr_chat_rendering *rendering)
{
    hr_buffer_deinit(&rendering->text);
    free(rendering->ranges);
    *rendering = (hr_chat_rendering){0};
}

bool hr_chat_rendering_opens_reasoning(const hr_chat_rendering *rendering)
{
    size_t len = rendering->text.at ? hr_python_trimmed_len(rendering->text.at, rendering->text.len) : 0;

    return len >= 7 && memcmp(rendering->text.at + len - 7, "<think>", 7) == 0;
}
