/* Values as text: str(), repr() and JSON, spelled as Python spells them. The text of anything that holds data is data.
 */
#include "text/jinja_value.h"
#include "base/utf8.h"
#include "text/python_text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <inttypes.h>
#include <math.h>
#include <pcre2.h>
#include <string.h>

typedef struct writer {
    hr_jinja_run *run;
    hr_jinja_store *out;
    int indent; /* JSON only; < 0: one line */
    bool ascii; /* JSON only: \u escapes */
    const char *item_separator, *key_separator;
} writer;

static bool add(writer *w, const char *text)
{
    return hr_jinja_store_add_text(w->run, w->out, text, strlen(text), true);
}

static bool add_bytes(writer *w, const char *text, size_t len)
{
    return hr_jinja_store_add_text(w->run, w->out, text, len, true);
}

/* ---------------------------------------------------------------- repr */

/* Whether str.isprintable holds for a character beyond ASCII. */
static bool is_printable(hr_jinja_run *run, const char *at, size_t len, bool *printable)
{
    pcre2_match_data *match;
    int code;
    PCRE2_SIZE offset;

    if (!run->unprintable)
        run->unprintable =
            pcre2_compile((PCRE2_SPTR) "^[\\p{C}\\p{Z}]", PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &offset, NULL);
    match = run->unprintable ? pcre2_match_data_create(1, NULL) : NULL;
    if (!match) {
        run->status = hr_fail(run->err, HEADRACE_E_MEMORY, "no memory to render chat template %s", run->name);
        return false;
    }
    *printable = pcre2_match(run->unprintable, (PCRE2_SPTR)at, len, 0, PCRE2_NO_UTF_CHECK, match, NULL) < 0;
    pcre2_match_data_free(match);
    return true;
}

static bool repr_character(writer *w, const char *at, size_t len, char quote)
{
    char escape[16];
    uint32_t code_point = hr_utf8_decode(at, len);
    bool printable = code_point >= 0x20 && code_point != 0x7F;

    if (code_point == '\n' || code_point == '\r' || code_point == '\t')
        return add(w, code_point == '\n' ? "\\n" : code_point == '\r' ? "\\r" : "\\t");
    if (code_point == '\\' || code_point == (unsigned char)quote) {
        escape[0] = '\\';
        escape[1] = (char)code_point;
        return add_bytes(w, escape, 2);
    }
    if (code_point >= 0x80 && !is_printable(w->run, at, len, &printable))
        return false;
    if (printable)
        return add_bytes(w, at, len);
    (void)snprintf(escape, sizeof escape,
                   code_point < 0x100     ? "\\x%02" PRIx32
                   : code_point < 0x10000 ? "\\u%04" PRIx32
                                          : "\\U%08" PRIx32,
                   code_point);
    return add(w, escape);
}

static bool repr_string(writer *w, const hr_jinja_string *string)
{
    char quote =
        string->len > 0 && memchr(string->at, '\'', string->len) && !memchr(string->at, '"', string->len) ? '"' : '\'';

    if (!add_bytes(w, &quote, 1))
        return false;
    for (size_t i = 0; i < string->len;) {
        bool is_valid;
        size_t step = hr_utf8_step(string->at + i, string->len - i, &is_valid);

        if (!repr_character(w, string->at + i, step, quote))
            return false;
        i += step;
    }
    return add_bytes(w, &quote, 1);
}

static bool repr(writer *w, const hr_jinja_value *value);

static bool repr_dict(writer *w, const hr_jinja_dict *dict)
{
    bool ok = add(w, "{");

    for (size_t i = 0; ok && i < dict->n; i++)
        ok = (i == 0 || add(w, ", ")) && repr(w, &dict->keys[i]) && add(w, ": ") && repr(w, &dict->values[i]);
    return ok && add(w, "}");
}

static bool repr_sequence(writer *w, const hr_jinja_sequence *sequence)
{
    static const char *const open[] = {"[", "(", "", "dict_keys([", "dict_values([", "dict_items(["};
    static const char *const close[] = {"]", ")", "", "])", "])", "])"};
    bool ok;

    if (sequence->flavour == HR_JINJA_FLAVOUR_GENERATOR)
        return hr_jinja_fail(w->run, "a generator has no text; put |list behind it");
    if (sequence->flavour == HR_JINJA_FLAVOUR_RANGE)
        return hr_jinja_fail(w->run, "a range has no text; put |list behind it");
    ok = add(w, open[sequence->flavour]);
    for (size_t i = 0; ok && i < sequence->n; i++)
        ok = (i == 0 || add(w, ", ")) && repr(w, &sequence->at[i]);
    if (ok && sequence->flavour == HR_JINJA_FLAVOUR_TUPLE && sequence->n == 1)
        ok = add(w, ",");
    return ok && add(w, close[sequence->flavour]);
}

static bool repr_number(writer *w, const hr_jinja_value *value)
{
    char text[HR_PYTHON_FLOAT_BYTES];

    if (value->kind == HR_JINJA_VALUE_INT)
        (void)snprintf(text, sizeof text, "%" PRId64, value->as.integer);
    else
        hr_python_float(text, value->as.real);
    return add(w, text);
}

static bool repr(writer *w, const hr_jinja_value *value)
{
    bool ok;

    if (!hr_jinja_enter(w->run))
        return false;
    switch (value->kind) {
    case HR_JINJA_VALUE_UNDEFINED:
        ok = add(w, "Undefined");
        break;
    case HR_JINJA_VALUE_NONE:
        ok = add(w, "None");
        break;
    case HR_JINJA_VALUE_BOOL:
        ok = add(w, value->as.boolean ? "True" : "False");
        break;
    case HR_JINJA_VALUE_INT:
    case HR_JINJA_VALUE_FLOAT:
        ok = repr_number(w, value);
        break;
    case HR_JINJA_VALUE_STRING:
        ok = repr_string(w, &value->as.string);
        break;
    case HR_JINJA_VALUE_SEQUENCE:
        ok = repr_sequence(w, value->as.sequence);
        break;
    case HR_JINJA_VALUE_DICT:
        ok = repr_dict(w, value->as.dict);
        break;
    default:
        ok = hr_jinja_fail(w->run, "a %s has no text", hr_jinja_type_name(value));
        break;
    }
    w->run->depth--;
    return ok;
}

bool hr_jinja_print(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_store *out)
{
    writer w = {.run = run, .out = out};
    size_t start = out->used;

    if (value->kind == HR_JINJA_VALUE_STRING)
        return hr_jinja_store_add(run, out, &value->as.string);
    if (value->kind == HR_JINJA_VALUE_UNDEFINED)
        return true;
    if (!repr(&w, value))
        return false;
    /* Numbers, True and None cannot carry anybody's text, and templates compose names of special tokens with loop
     * counters. */
    if (value->kind <= HR_JINJA_VALUE_FLOAT && out->used > start)
        memset(out->from + start, 0, out->used - start);
    return true;
}

bool hr_jinja_str(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_value *out)
{
    hr_jinja_store *store;

    if (value->kind == HR_JINJA_VALUE_STRING) {
        *out = *value;
        return true;
    }
    store = hr_jinja_store_new(run);
    if (!store || !hr_jinja_print(run, value, store))
        return false;
    *out = hr_jinja_store_value(store);
    return true;
}

/* ---------------------------------------------------------------- JSON */

static bool json(writer *w, const hr_jinja_value *value, int level);

static const char *json_escape(char c)
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    case '\f':
        return "\\f";
    case '\b':
        return "\\b";
    default:
        return NULL;
    }
}

static bool json_code_point(writer *w, uint32_t code_point)
{
    char escape[16];

    if (code_point >= 0x10000)
        (void)snprintf(escape, sizeof escape, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xD800 + ((code_point - 0x10000) >> 10),
                       0xDC00 + ((code_point - 0x10000) & 0x3FF));
    else
        (void)snprintf(escape, sizeof escape, "\\u%04" PRIx32, code_point);
    return add(w, escape);
}

static bool json_string(writer *w, const hr_jinja_string *string)
{
    size_t plain = 0;
    bool ok = add(w, "\"");

    for (size_t i = 0; ok && i < string->len;) {
        unsigned char c = (unsigned char)string->at[i];
        const char *escape = json_escape(string->at[i]);
        bool is_valid;
        size_t step = hr_utf8_step(string->at + i, string->len - i, &is_valid);

        if (escape || c < 0x20 || (c >= 0x7F && w->ascii)) {
            ok = add_bytes(w, string->at + plain, i - plain) &&
                 (escape ? add(w, escape) : json_code_point(w, hr_utf8_decode(string->at + i, step)));
            plain = i + step;
        }
        i += step;
    }
    return ok && add_bytes(w, string->at + plain, string->len - plain) && add(w, "\"");
}

static bool json_float(writer *w, double value)
{
    char text[HR_PYTHON_FLOAT_BYTES];

    if (!isfinite(value))
        return add(w, isnan(value) ? "NaN" : value < 0 ? "-Infinity" : "Infinity");
    hr_python_float(text, value);
    return add(w, text);
}

static bool json_key(writer *w, const hr_jinja_value *key)
{
    switch (key->kind) {
    case HR_JINJA_VALUE_STRING:
        return json_string(w, &key->as.string);
    case HR_JINJA_VALUE_NONE:
    case HR_JINJA_VALUE_BOOL:
    case HR_JINJA_VALUE_INT:
    case HR_JINJA_VALUE_FLOAT:
        return add(w, "\"") && json(w, key, 0) && add(w, "\"");
    default:
        return hr_jinja_fail(w->run, "TypeError: keys must be str, int, float, bool or None, not %s",
                             hr_jinja_type_name(key));
    }
}

static bool json_newline(writer *w, int level)
{
    bool ok = w->indent < 0 || add(w, "\n");

    for (int i = 0; ok && w->indent > 0 && i < level * w->indent; i++)
        ok = add(w, " ");
    return ok;
}

static bool json_sequence(writer *w, const hr_jinja_value *value, int level)
{
    const hr_jinja_sequence *sequence = value->as.sequence;
    bool ok;

    if (sequence->flavour != HR_JINJA_FLAVOUR_LIST && sequence->flavour != HR_JINJA_FLAVOUR_TUPLE)
        return hr_jinja_fail(w->run, "TypeError: Object of type %s is not JSON serializable",
                             hr_jinja_type_name(value));
    if (sequence->n == 0)
        return add(w, "[]");
    ok = add(w, "[");
    for (size_t i = 0; ok && i < sequence->n; i++)
        ok =
            (i == 0 || add(w, w->item_separator)) && json_newline(w, level + 1) && json(w, &sequence->at[i], level + 1);
    return ok && json_newline(w, level) && add(w, "]");
}

static bool json_dict(writer *w, const hr_jinja_dict *dict, int level)
{
    bool ok;

    if (dict->n == 0)
        return add(w, "{}");
    ok = add(w, "{");
    for (size_t i = 0; ok && i < dict->n; i++)
        ok = (i == 0 || add(w, w->item_separator)) && json_newline(w, level + 1) && json_key(w, &dict->keys[i]) &&
             add(w, w->key_separator) && json(w, &dict->values[i], level + 1);
    return ok && json_newline(w, level) && add(w, "}");
}

static bool json(writer *w, const hr_jinja_value *value, int level)
{
    bool ok;

    if (!hr_jinja_enter(w->run))
        return false;
    switch (value->kind) {
    case HR_JINJA_VALUE_NONE:
        ok = add(w, "null");
        break;
    case HR_JINJA_VALUE_BOOL:
        ok = add(w, value->as.boolean ? "true" : "false");
        break;
    case HR_JINJA_VALUE_INT:
        ok = repr_number(w, value);
        break;
    case HR_JINJA_VALUE_FLOAT:
        ok = json_float(w, value->as.real);
        break;
    case HR_JINJA_VALUE_STRING:
        ok = json_string(w, &value->as.string);
        break;
    case HR_JINJA_VALUE_SEQUENCE:
        ok = json_sequence(w, value, level);
        break;
    case HR_JINJA_VALUE_DICT:
        ok = json_dict(w, value->as.dict, level);
        break;
    default:
        ok = hr_jinja_fail(w->run, "TypeError: Object of type %s is not JSON serializable", hr_jinja_type_name(value));
        break;
    }
    w->run->depth--;
    return ok;
}

bool hr_jinja_to_json(hr_jinja_run *run, const hr_jinja_value *value, int indent, bool ascii,
                      const char *item_separator, const char *key_separator, hr_jinja_value *out)
{
    writer w = {.run = run,
                .out = hr_jinja_store_new(run),
                .indent = indent,
                .ascii = ascii,
                .item_separator = item_separator,
                .key_separator = key_separator};

    if (!w.out || !json(&w, value, 0))
        return false;
    *out = hr_jinja_store_value(w.out);
    return true;
}
