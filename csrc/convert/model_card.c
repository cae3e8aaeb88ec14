/* See model_card.h. */
#include "convert/model_card.h"

#include "base/utf8.h"

#include <ctype.h>
#include <string.h>

typedef struct line {
    const char *at;
    size_t len;
} line;

/* The next line without its end; false at the end of the text. */
static bool next_line(const char **cursor, const char *end, line *out)
{
    const char *stop;

    if (*cursor >= end)
        return false;
    stop = memchr(*cursor, '\n', (size_t)(end - *cursor));
    stop = stop ? stop : end;
    *out = (line){*cursor, (size_t)(stop - *cursor)};
    if (out->len > 0 && out->at[out->len - 1] == '\r')
        out->len--;
    *cursor = stop < end ? stop + 1 : end;
    return true;
}

static line trim(line text)
{
    while (text.len > 0 && isspace((unsigned char)text.at[0])) {
        text.at++;
        text.len--;
    }
    while (text.len > 0 && isspace((unsigned char)text.at[text.len - 1]))
        text.len--;
    return text;
}

/* A plain or quoted text as a new string; NULL for what is neither, or is empty. */
static json_t *scalar(line text)
{
    char quote;

    text = trim(text);
    quote = text.len > 0 ? text.at[0] : '\0';
    if (quote == '"' || quote == '\'') {
        if (text.len < 2 || text.at[text.len - 1] != quote || memchr(text.at + 1, quote, text.len - 2) ||
            memchr(text.at, '\\', text.len))
            return NULL;
        return json_stringn(text.at + 1, text.len - 2);
    }
    for (size_t i = 1; i < text.len; i++) { /* a comment */
        if (text.at[i] == '#' && isspace((unsigned char)text.at[i - 1])) {
            text.len = i;
            text = trim(text);
        }
    }
    if (text.len == 0 || strchr("{}[]&*|>!%@`#,?", text.at[0]) || memmem(text.at, text.len, ": ", 2) ||
        (text.len == 1 && (text.at[0] == '~' || text.at[0] == '-')) ||
        (text.len == 4 && memcmp(text.at, "null", 4) == 0))
        return NULL;
    return json_stringn(text.at, text.len);
}

/* "[a, b]" */
static json_t *flow_list(line text)
{
    json_t *list = json_array();
    const char *at = text.at + 1, *end = text.at + text.len - 1;

    while (list && at < end) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        json_t *item;

        comma = comma ? comma : end;
        item = scalar((line){at, (size_t)(comma - at)});
        if (item && json_array_append_new(list, item) != 0) {
            json_decref(list);
            return NULL;
        }
        at = comma + 1;
    }
    return list;
}

/* "- item" lines below a name; stops before the next name. Items that are no plain text are left out. */
static json_t *block_list(const char **cursor, const char *end)
{
    json_t *list = json_array();
    const char *before = *cursor;
    line text;

    while (list && next_line(cursor, end, &text)) {
        line inner = trim(text);

        if (inner.len > 0 && inner.at[0] != '#' && inner.at == text.at && inner.at[0] != '-')
            break;
        if (inner.len >= 3 && memcmp(inner.at, "---", 3) == 0)
            break;
        before = *cursor;
        if (inner.len > 2 && inner.at[0] == '-' && inner.at[1] == ' ') {
            json_t *item = scalar((line){inner.at + 2, inner.len - 2});

            if (item && json_array_append_new(list, item) != 0) {
                json_decref(list);
                return NULL;
            }
        }
    }
    *cursor = before;
    return list;
}

/* A value; NULL: left out. */
static json_t *read_value(line text, const char **cursor, const char *end)
{
    json_t *list;

    text = trim(text);
    if (text.len > 1 && text.at[0] == '[' && text.at[text.len - 1] == ']')
        return flow_list(text);
    if (text.len > 0)
        return scalar(text);
    list = block_list(cursor, end);
    if (list && json_array_size(list) == 0) {
        json_decref(list);
        list = NULL;
    }
    return list;
}

json_t *hr_model_card_parse(const char *text, size_t len)
{
    const char *cursor = text, *end = text + len, *colon;
    json_t *card = json_object();
    line each;

    if (!card || !next_line(&cursor, end, &each) || each.len != 3 || memcmp(each.at, "---", 3) != 0)
        return card;
    while (next_line(&cursor, end, &each) && !(each.len == 3 && memcmp(each.at, "---", 3) == 0)) {
        char key[64];
        json_t *value;

        colon = memchr(each.at, ':', each.len);
        if (!colon || colon - each.at >= (ptrdiff_t)sizeof key ||
            !hr_utf8_is_valid(each.at, (size_t)(colon - each.at), NULL) || isspace((unsigned char)each.at[0]) ||
            each.at[0] == '#' || each.at[0] == '-')
            continue;
        value = read_value((line){colon + 1, each.len - (size_t)(colon + 1 - each.at)}, &cursor, end);
        (void)snprintf(key, sizeof key, "%.*s", (int)(colon - each.at), each.at);
        if (value && json_object_set_new(card, key, value) != 0) {
            json_decref(card);
            return NULL;
        }
    }
    return card;
}
