/* See tool_call.h. Values go straight from Python text to JSON text; no tree is built. */
#include "text/tool_call.h"
#include "text/python_text.h"

#include <ctype.h>
#include <string.h>

typedef struct reader {
    const char *text;
    size_t len, at;
    bool lenient; /* second try: a quote ends a string only where a string may end */
    int depth;
    hr_buffer *out;
} reader;

static bool read_value(reader *r, hr_buffer *out);

static void skip_space(reader *r)
{
    r->at += hr_python_leading_space(r->text + r->at, r->len - r->at);
}

static char peek(const reader *r)
{
    return r->at < r->len ? r->text[r->at] : '\0';
}

static bool skip(reader *r, char c)
{
    skip_space(r);
    if (r->at >= r->len || r->text[r->at] != c)
        return false;
    r->at++;
    return true;
}

static bool is_name_start(char c)
{
    return isalpha((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

static bool is_name_character(char c)
{
    return is_name_start(c) || isdigit((unsigned char)c);
}

/* An identifier; dots between identifiers with with_dots (function names, which may also hold dashes). */
static bool read_name(reader *r, bool with_dots, const char **name, size_t *len)
{
    size_t start;

    skip_space(r);
    start = r->at;
    if (!is_name_start(peek(r)))
        return false;
    while (r->at < r->len &&
           (is_name_character(r->text[r->at]) || (with_dots && (r->text[r->at] == '.' || r->text[r->at] == '-'))))
        r->at++;
    *name = r->text + start;
    *len = r->at - start;
    return true;
}

/* ---------------------------------------------------------------- strings */

/* Whether what follows a quote at `at` can follow a string. Inside brackets, punctuation is enough; for an argument
 * itself, the next argument or the end of the call must follow. */
static bool may_end_string(const reader *r, size_t at)
{
    reader ahead = *r;
    const char *name;
    size_t len;

    ahead.at = at + 1;
    skip_space(&ahead);
    if (ahead.at >= ahead.len)
        return true;
    if (r->depth > 1)
        return strchr(",]}:)", peek(&ahead)) != NULL;
    if (skip(&ahead, ',')) {
        skip_space(&ahead);
        return peek(&ahead) == ')' || (read_name(&ahead, false, &name, &len) && skip(&ahead, '='));
    }
    if (!skip(&ahead, ')'))
        return false;
    skip_space(&ahead);
    return ahead.at >= ahead.len || peek(&ahead) == ',' || peek(&ahead) == ']';
}

/* The end of a string that begins behind its opening quotes, or len. */
static size_t string_end(const reader *r, size_t start, char quote, bool is_triple)
{
    for (size_t i = start; i < r->len; i++) {
        if (r->text[i] == '\\') {
            i++;
            continue;
        }
        if (r->text[i] != quote)
            continue;
        if (is_triple) {
            if (i + 2 < r->len && r->text[i + 1] == quote && r->text[i + 2] == quote)
                return i;
        } else if (!r->lenient || may_end_string(r, i)) {
            return i;
        }
    }
    return r->len;
}

/* Reads a string into plain bytes. */
static bool read_plain_string(reader *r, hr_buffer *plain)
{
    char quote = peek(r);
    bool is_triple;
    size_t end;

    if (quote != '"' && quote != '\'')
        return false;
    is_triple = r->len - r->at >= 6 && r->text[r->at + 1] == quote && r->text[r->at + 2] == quote;
    r->at += is_triple ? 3 : 1;
    end = string_end(r, r->at, quote, is_triple);
    if (end >= r->len)
        return false;
    if (hr_python_unescape(plain, r->text + r->at, end - r->at)) {
        if (!r->lenient)
            return false;
        hr_buffer_clear(plain); /* "C:\\Users": no escape was meant */
        hr_buffer_add(plain, r->text + r->at, end - r->at);
    }
    r->at = end + (is_triple ? 3 : 1);
    return true;
}

static bool read_string(reader *r, hr_buffer *out)
{
    hr_buffer plain = {0};
    bool ok = read_plain_string(r, &plain);

    if (ok)
        hr_json_string(out, plain.at ? plain.at : "", plain.len);
    hr_buffer_deinit(&plain);
    return ok;
}

/* ---------------------------------------------------------------- numbers, words, containers */

static void add_digits(reader *r, hr_buffer *out, bool strips_zeros)
{
    while (strips_zeros && peek(r) == '0' && r->at + 1 < r->len &&
           (isdigit((unsigned char)r->text[r->at + 1]) || r->text[r->at + 1] == '_'))
        r->at++;
    while (isdigit((unsigned char)peek(r)) ||
           (peek(r) == '_' && r->at + 1 < r->len && isdigit((unsigned char)r->text[r->at + 1]))) {
        if (peek(r) != '_')
            hr_buffer_add_char(out, peek(r));
        r->at++;
    }
}

/* Python's spellings that JSON lacks are completed: 07 -> 7, .5 -> 0.5, 5. -> 5.0, +1 -> 1. */
static bool read_number(reader *r, hr_buffer *out)
{
    bool has_digits;
    size_t before;

    if (peek(r) == '-')
        hr_buffer_add_char(out, '-');
    if (peek(r) == '-' || peek(r) == '+')
        r->at++;
    skip_space(r);
    before = out->len;
    add_digits(r, out, true);
    if (out->len > before && out->at[before] == '_')
        return false;
    has_digits = out->len > before;
    if (peek(r) == '.') {
        r->at++;
        if (!has_digits)
            hr_buffer_add_char(out, '0');
        hr_buffer_add_char(out, '.');
        before = out->len;
        add_digits(r, out, false);
        if (out->len == before && !has_digits)
            return false;
        if (out->len == before)
            hr_buffer_add_char(out, '0');
        has_digits = true;
    }
    if (!has_digits)
        return false;
    if (peek(r) == 'e' || peek(r) == 'E') {
        hr_buffer_add_char(out, 'e');
        r->at++;
        if (peek(r) == '-' || peek(r) == '+')
            hr_buffer_add_char(out, r->text[r->at++]);
        before = out->len;
        add_digits(r, out, false);
        if (out->len == before)
            return false;
    }
    return !is_name_start(peek(r));
}

static bool read_word(reader *r, hr_buffer *out)
{
    static const char *const words[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"},
                                           {"true", "true"}, {"false", "false"}, {"null", "null"}};
    const char *name;
    size_t len;

    if (!read_name(r, false, &name, &len))
        return false;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (len == strlen(words[i][0]) && memcmp(name, words[i][0], len) == 0) {
            hr_buffer_add_text(out, words[i][1]);
            return true;
        }
    }
    return false;
}

/* A list, a tuple (as a list) or a dict with string keys; the opening bracket is the current character. */
static bool read_container(reader *r, hr_buffer *out)
{
    bool is_dict = peek(r) == '{';
    char close = is_dict ? '}' : peek(r) == '[' ? ']' : ')';
    bool is_first = true;

    r->at++;
    hr_buffer_add_char(out, is_dict ? '{' : '[');
    while (!skip(r, close)) {
        if (!is_first && !skip(r, ','))
            return false;
        if (!is_first && skip(r, close))
            break;
        if (!is_first)
            hr_buffer_add_text(out, ", ");
        is_first = false;
        if (is_dict) {
            skip_space(r);
            if (!read_string(r, out) || !skip(r, ':'))
                return false;
            hr_buffer_add_text(out, ": ");
        }
        if (!read_value(r, out))
            return false;
    }
    hr_buffer_add_char(out, is_dict ? '}' : ']');
    return true;
}

static bool read_value(reader *r, hr_buffer *out)
{
    bool ok;
    char c;

    if (++r->depth > HR_TOOL_CALL_MAX_NESTING)
        return false;
    skip_space(r);
    c = peek(r);
    if (c == '"' || c == '\'')
        ok = read_string(r, out);
    else if (c == '[' || c == '{' || c == '(')
        ok = read_container(r, out);
    else if (isdigit((unsigned char)c) || c == '-' || c == '+' || c == '.')
        ok = read_number(r, out);
    else
        ok = read_word(r, out);
    r->depth--;
    return ok;
}

/* ---------------------------------------------------------------- calls */

static bool is_known(const char *const *names, const size_t *lens, size_t n, const char *name, size_t len)
{
    for (size_t i = 0; i < n; i++) {
        if (lens[i] == len && memcmp(names[i], name, len) == 0)
            return true;
    }
    return false;
}

static bool read_call(reader *r, hr_buffer *arguments, const char **name, size_t *name_len)
{
    const char *names[HR_TOOL_CALL_MAX_ARGUMENTS];
    size_t lens[HR_TOOL_CALL_MAX_ARGUMENTS], n = 0;

    r->depth = 0;
    if (!read_name(r, true, name, name_len) || !skip(r, '('))
        return false;
    hr_buffer_add_char(arguments, '{');
    while (!skip(r, ')')) {
        if (n > 0 && !skip(r, ','))
            return false;
        if (n > 0 && skip(r, ')'))
            break;
        if (n == HR_TOOL_CALL_MAX_ARGUMENTS || !read_name(r, false, &names[n], &lens[n]) ||
            is_known(names, lens, n, names[n], lens[n]) || !skip(r, '='))
            return false;
        if (n > 0)
            hr_buffer_add_text(arguments, ", ");
        hr_json_string(arguments, names[n], lens[n]);
        hr_buffer_add_text(arguments, ": ");
        if (!read_value(r, arguments))
            return false;
        n++;
    }
    hr_buffer_add_char(arguments, '}');
    skip_space(r);
    return r->at >= r->len || peek(r) == ',' || peek(r) == ']';
}

/* {"name": ..., "arguments": {...}}; arguments may be a string that holds JSON, or be called parameters. */
static bool read_json_call(reader *r, hr_buffer *arguments, hr_buffer *name)
{
    hr_buffer key = {0}, inner = {0};
    bool ok = skip(r, '{'), is_first = true, has_name = false;

    r->depth = 2;
    while (ok && !skip(r, '}')) {
        ok = is_first || skip(r, ',');
        is_first = false;
        hr_buffer_clear(&key);
        skip_space(r);
        ok = ok && read_plain_string(r, &key) && skip(r, ':');
        skip_space(r);
        if (ok && key.at && strcmp(key.at, "name") == 0) {
            hr_buffer_clear(name);
            ok = has_name = read_plain_string(r, name) && name->len > 0;
        } else if (ok && key.at && (strcmp(key.at, "arguments") == 0 || strcmp(key.at, "parameters") == 0)) {
            hr_buffer_clear(arguments);
            if (peek(r) == '{') {
                ok = read_value(r, arguments);
            } else if (peek(r) == '"') {
                reader nested;

                hr_buffer_clear(&inner);
                ok = read_plain_string(r, &inner);
                nested = (reader){.text = inner.at ? inner.at : "", .len = inner.len, .depth = 2};
                skip_space(&nested);
                ok = ok && peek(&nested) == '{' && read_value(&nested, arguments);
                skip_space(&nested);
                ok = ok && nested.at == nested.len;
            } else {
                ok = false;
            }
        } else if (ok) { /* id, type: nobody needs them */
            hr_buffer_clear(&inner);
            ok = read_value(r, &inner);
        }
    }
    if (ok && arguments->len == 0)
        hr_buffer_add_text(arguments, "{}");
    hr_buffer_deinit(&key);
    hr_buffer_deinit(&inner);
    return ok && has_name;
}

/* Behind a call that could not be read: where the next one may begin, or len. */
static size_t next_call(const reader *r, size_t from)
{
    for (size_t i = from; i < r->len; i++) {
        reader ahead = *r;
        const char *name;
        size_t len;

        if (r->text[i] != ')' && r->text[i] != '}')
            continue;
        ahead.at = i + 1;
        if (!skip(&ahead, ','))
            continue;
        skip_space(&ahead);
        i = ahead.at;
        if (peek(&ahead) == '{' || (read_name(&ahead, true, &name, &len) && skip(&ahead, '(')))
            return i;
        i--;
    }
    return r->len;
}

/* One call at r->at, strictly and then leniently. */
static bool read_one(reader *r, hr_buffer *arguments, hr_buffer *name)
{
    size_t start = r->at;

    for (int try = 0; try < 2; try++) {
        const char *at = NULL;
        size_t len = 0;
        bool ok;

        r->at = start;
        r->lenient = try == 1;
        hr_buffer_clear(arguments);
        hr_buffer_clear(name);
        skip_space(r);
        if (peek(r) == '{') {
            ok = read_json_call(r, arguments, name);
        } else {
            ok = read_call(r, arguments, &at, &len);
            if (ok)
                hr_buffer_add(name, at, len);
        }
        if (ok && !arguments->failed && !name->failed)
            return true;
    }
    r->at = next_call(r, start);
    return false;
}

size_t hr_tool_calls_parse(const char *text, size_t len, hr_tool_call_found *found, void *user)
{
    reader r = {.text = text, .len = len};
    hr_buffer arguments = {0}, name = {0};
    size_t n = 0;

    (void)skip(&r, '[');
    while (n < HR_TOOL_CALL_MAX_CALLS) {
        skip_space(&r);
        if (r.at >= len || peek(&r) == ']')
            break;
        if (read_one(&r, &arguments, &name)) {
            found(user, name.at, name.len, arguments.at, arguments.len);
            n++;
            if (!skip(&r, ','))
                break;
        }
    }
    hr_buffer_deinit(&arguments);
    hr_buffer_deinit(&name);
    return n;
}

/* ---------------------------------------------------------------- writing */

static bool write_value(hr_buffer *out, const json_t *value, int depth)
{
    json_t *object = (json_t *)(uintptr_t)value; /* Jansson iterates only over what is not const */
    char real[HR_PYTHON_FLOAT_BYTES];
    bool ok = depth <= HR_TOOL_CALL_MAX_NESTING;

    if (!ok)
        return false;
    switch (json_typeof(value)) {
    case JSON_STRING:
        hr_json_string(out, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        hr_buffer_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        hr_python_float(real, json_real_value(value));
        hr_buffer_add_text(out, real);
        break;
    case JSON_ARRAY:
        hr_buffer_add_char(out, '[');
        for (size_t i = 0; ok && i < json_array_size(value); i++) {
            hr_buffer_add_text(out, i == 0 ? "" : ", ");
            ok = write_value(out, json_array_get(value, i), depth + 1);
        }
        hr_buffer_add_char(out, ']');
        break;
    case JSON_OBJECT:
        hr_buffer_add_char(out, '{');
        for (void *at = json_object_iter(object); ok && at; at = json_object_iter_next(object, at)) {
            if (out->at[out->len - 1] != '{')
                hr_buffer_add_text(out, ", ");
            hr_json_string(out, json_object_iter_key(at), json_object_iter_key_len(at));
            hr_buffer_add_text(out, ": ");
            ok = write_value(out, json_object_iter_value(at), depth + 1);
        }
        hr_buffer_add_char(out, '}');
        break;
    default:
        hr_buffer_add_text(out, json_is_null(value) ? "None" : json_is_true(value) ? "True" : "False");
        break;
    }
    return ok && !out->failed;
}

bool hr_tool_call_write(hr_buffer *out, const char *name, size_t name_len, const json_t *arguments)
{
    json_t *object = (json_t *)(uintptr_t)arguments;
    bool ok = true, is_first = true;

    hr_buffer_add(out, name, name_len);
    hr_buffer_add_char(out, '(');
    for (void *at = json_object_iter(object); ok && at; at = json_object_iter_next(object, at), is_first = false) {
        hr_buffer_add_text(out, is_first ? "" : ", ");
        hr_buffer_add(out, json_object_iter_key(at), json_object_iter_key_len(at));
        hr_buffer_add_char(out, '=');
        ok = write_value(out, json_object_iter_value(at), 1);
    }
    hr_buffer_add_char(out, ')');
    return ok;
}
