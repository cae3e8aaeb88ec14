/* See openai_json.h. */
#include "server/openai_json.h"

#include "base/utf8.h"

#include <string.h>

void hr_logprobs_deinit(hr_logprobs *logprobs)
{
    hr_buffer_deinit(&logprobs->tokens);
    hr_buffer_deinit(&logprobs->values);
    hr_buffer_deinit(&logprobs->top);
    hr_buffer_deinit(&logprobs->offsets);
    logprobs->n = 0;
}

void hr_logprobs_clear(hr_logprobs *logprobs)
{
    hr_buffer_clear(&logprobs->tokens);
    hr_buffer_clear(&logprobs->values);
    hr_buffer_clear(&logprobs->top);
    hr_buffer_clear(&logprobs->offsets);
    logprobs->n = 0;
}

static void token_bytes(const headrace_model *model, int32_t id, const char **bytes, size_t *len, bool *is_special)
{
    *bytes = "";
    *len = 0;
    *is_special = false;
    (void)headrace_token_bytes(model, id, bytes, len, is_special);
}

/* "token":"..","logprob":-0.1,"bytes":[..] */
static void write_chat_token(hr_buffer *out, const headrace_model *model, int32_t id, float logprob)
{
    const char *bytes;
    size_t len;
    bool is_special;

    token_bytes(model, id, &bytes, &len, &is_special);
    hr_buffer_add_text(out, "\"token\":");
    hr_json_string(out, bytes, len);
    hr_buffer_add_text(out, ",\"logprob\":");
    hr_json_float(out, logprob);
    hr_buffer_add_text(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++) {
        if (i)
            hr_buffer_add_char(out, ',');
        hr_json_uint(out, (unsigned char)bytes[i]);
    }
    hr_buffer_add_char(out, ']');
}

static void add_chat(hr_logprobs *logprobs, const headrace_model *model, const headrace_token_logprobs *token,
                     uint32_t n_top)
{
    hr_buffer *out = &logprobs->tokens;

    hr_buffer_add_text(out, logprobs->n ? ",{" : "{");
    write_chat_token(out, model, token->id, token->logprob);
    hr_buffer_add_text(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < token->n_top && i < n_top; i++) {
        hr_buffer_add_text(out, i ? ",{" : "{");
        write_chat_token(out, model, token->top_ids[i], token->top_logprobs[i]);
        hr_buffer_add_char(out, '}');
    }
    hr_buffer_add_text(out, "]}");
    logprobs->n++;
}

/* The completions shape has no room for bytes: a token that is not text is written as OpenAI writes it, bytes:\xNN, and
 * one of no bytes at all (a model without a tokenizer) as vLLM does, token_id:N, so that names stay apart. */
static void write_token_name(hr_buffer *out, int32_t id, const char *bytes, size_t len)
{
    if (len == 0) {
        hr_buffer_printf(out, "\"token_id:%d\"", id);
        return;
    }
    if (hr_utf8_is_valid(bytes, len, NULL)) {
        hr_json_string(out, bytes, len);
        return;
    }
    hr_buffer_add_text(out, "\"bytes:");
    for (size_t i = 0; i < len; i++)
        hr_buffer_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    hr_buffer_add_char(out, '"');
}

static void add_token_name(hr_logprobs *logprobs, const headrace_model *model, int32_t id, bool is_visible)
{
    const char *bytes;
    size_t len;
    bool is_special;

    token_bytes(model, id, &bytes, &len, &is_special);
    if (logprobs->n) {
        hr_buffer_add_char(&logprobs->tokens, ',');
        hr_buffer_add_char(&logprobs->values, ',');
        hr_buffer_add_char(&logprobs->top, ',');
        hr_buffer_add_char(&logprobs->offsets, ',');
    }
    write_token_name(&logprobs->tokens, id, bytes, len);
    hr_json_uint(&logprobs->offsets, logprobs->offset);
    for (size_t i = 0; is_visible && i < len; i++)
        logprobs->offset += ((unsigned char)bytes[i] & 0xC0) != 0x80; /* characters, not bytes */
    logprobs->n++;
}

static void add_completion(hr_logprobs *logprobs, const headrace_model *model, const headrace_token_logprobs *token,
                           uint32_t n_top, bool is_visible)
{
    hr_buffer *top = &logprobs->top;
    bool has_chosen = false;

    add_token_name(logprobs, model, token->id, is_visible);
    hr_json_float(&logprobs->values, token->logprob);
    hr_buffer_add_char(top, '{');
    for (uint32_t i = 0; i <= n_top && i <= token->n_top; i++) {
        bool is_extra = i == n_top || i == token->n_top; /* the chosen one, when it is not among the best */
        int32_t id = is_extra ? token->id : token->top_ids[i];
        const char *bytes;
        size_t len;
        bool is_special;

        if (is_extra && has_chosen)
            break;
        has_chosen |= id == token->id;
        if (i)
            hr_buffer_add_char(top, ',');
        token_bytes(model, id, &bytes, &len, &is_special);
        write_token_name(top, id, bytes, len);
        hr_buffer_add_char(top, ':');
        hr_json_float(top, is_extra ? token->logprob : token->top_logprobs[i]);
        if (is_extra)
            break;
    }
    hr_buffer_add_char(top, '}');
}

void hr_logprobs_add(hr_logprobs *logprobs, const headrace_model *model, const headrace_token_logprobs *token,
                     uint32_t n_top, bool is_visible)
{
    if (logprobs->is_chat)
        add_chat(logprobs, model, token, n_top);
    else
        add_completion(logprobs, model, token, n_top, is_visible);
}

void hr_logprobs_add_first(hr_logprobs *logprobs, const headrace_model *model, int32_t id, bool is_visible)
{
    add_token_name(logprobs, model, id, is_visible);
    hr_buffer_add_text(&logprobs->values, "null");
    hr_buffer_add_text(&logprobs->top, "null");
}

static void append(hr_buffer *to, const hr_buffer *from)
{
    if (from->len && to->len)
        hr_buffer_add_char(to, ',');
    if (from->len)
        hr_buffer_add(to, from->at, from->len);
}

void hr_logprobs_append(hr_logprobs *to, const hr_logprobs *from)
{
    append(&to->tokens, &from->tokens);
    append(&to->values, &from->values);
    append(&to->top, &from->top);
    append(&to->offsets, &from->offsets);
    to->n += from->n;
    to->offset += from->offset;
}

static void write_list(hr_buffer *out, const char *name, const hr_buffer *entries)
{
    hr_buffer_printf(out, "\"%s\":[", name);
    if (entries->len)
        hr_buffer_add(out, entries->at, entries->len);
    hr_buffer_add_char(out, ']');
}

void hr_logprobs_write(hr_buffer *out, const hr_logprobs *logprobs)
{
    if (logprobs->n == 0) {
        hr_buffer_add_text(out, "null");
        return;
    }
    hr_buffer_add_char(out, '{');
    if (logprobs->is_chat) {
        write_list(out, "content", &logprobs->tokens);
        hr_buffer_add_text(out, ",\"refusal\":null");
    } else {
        write_list(out, "tokens", &logprobs->tokens);
        hr_buffer_add_char(out, ',');
        write_list(out, "token_logprobs", &logprobs->values);
        hr_buffer_add_char(out, ',');
        write_list(out, "top_logprobs", &logprobs->top);
        hr_buffer_add_char(out, ',');
        write_list(out, "text_offset", &logprobs->offsets);
    }
    hr_buffer_add_char(out, '}');
}

static void write_ranked(hr_buffer *out, const headrace_model *model, int32_t id, float logprob, uint32_t rank)
{
    const char *bytes;
    size_t len;
    bool is_special;

    token_bytes(model, id, &bytes, &len, &is_special);
    hr_buffer_printf(out, "\"%d\":{\"logprob\":", id);
    hr_json_float(out, logprob);
    hr_buffer_printf(out, ",\"rank\":%u,\"decoded_token\":", rank);
    hr_json_string(out, bytes, len);
    hr_buffer_add_char(out, '}');
}

void hr_prompt_logprobs_write(hr_buffer *out, const headrace_model *model, const headrace_token_logprobs *entries,
                              size_t n, uint32_t n_top)
{
    hr_buffer_add_text(out, "[null");
    for (size_t i = 0; i < n; i++) {
        const headrace_token_logprobs *entry = &entries[i];

        hr_buffer_add_text(out, ",{");
        write_ranked(out, model, entry->id, entry->logprob, entry->rank);
        for (uint32_t k = 0; k < entry->n_top && k < n_top; k++) {
            if (entry->top_ids[k] == entry->id)
                continue;
            hr_buffer_add_char(out, ',');
            write_ranked(out, model, entry->top_ids[k], entry->top_logprobs[k], k + 1);
        }
        hr_buffer_add_char(out, '}');
    }
    hr_buffer_add_char(out, ']');
}

void hr_ids_write(hr_buffer *out, const int32_t *ids, size_t n)
{
    hr_buffer_add_char(out, '[');
    for (size_t i = 0; i < n; i++) {
        if (i)
            hr_buffer_add_char(out, ',');
        hr_json_int(out, ids[i]);
    }
    hr_buffer_add_char(out, ']');
}

void hr_usage_write(hr_buffer *out, const hr_usage *usage)
{
    hr_buffer_add_text(out, "{\"prompt_tokens\":");
    hr_json_uint(out, usage->n_prompt);
    hr_buffer_add_text(out, ",\"completion_tokens\":");
    hr_json_uint(out, usage->n_completion);
    hr_buffer_add_text(out, ",\"total_tokens\":");
    hr_json_uint(out, usage->n_prompt + usage->n_completion);
    hr_buffer_add_text(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    hr_json_uint(out, usage->n_cached);
    hr_buffer_add_text(out, "}}");
}
