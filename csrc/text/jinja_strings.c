/* What filters and string methods do to text. Each result keeps, byte for byte, the provenance of what it was made
 * from. */
#include "text/jinja_value.h"
#include "base/utf8.h"
#include "text/python_text.h"

#include <locale.h>
#include <string.h>
#include <wctype.h>

/* Whether the character at [at, at + len) is among those of a set. */
static bool is_in_set(const hr_jinja_string *set, const char *at, size_t len)
{
    for (size_t i = 0; i < set->len;) {
        bool is_valid;
        size_t step = hr_utf8_step(set->at + i, set->len - i, &is_valid);

        if (step == len && memcmp(set->at + i, at, len) == 0)
            return true;
        i += step;
    }
    return false;
}

static size_t last_character(const hr_jinja_string *string, size_t end)
{
    size_t start = end - 1;

    while (start > 0 && ((unsigned char)string->at[start] & 0xC0) == 0x80)
        start--;
    return start;
}

bool hr_jinja_strip(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_value *characters, int sides,
                    hr_jinja_value *out)
{
    size_t from = 0, to = string->len;

    if (characters->kind == HR_JINJA_VALUE_ABSENT || characters->kind == HR_JINJA_VALUE_NONE) {
        if (sides & 2)
            to = hr_python_trimmed_len(string->at, to);
        if (sides & 1)
            from = hr_python_leading_space(string->at, to);
    } else if (characters->kind == HR_JINJA_VALUE_STRING) {
        const hr_jinja_string *set = &characters->as.string;
        bool is_valid;

        while ((sides & 2) && to > 0) {
            size_t start = last_character(string, to);

            if (!is_in_set(set, string->at + start, to - start))
                break;
            to = start;
        }
        while ((sides & 1) && from < to) {
            size_t step = hr_utf8_step(string->at + from, to - from, &is_valid);

            if (!is_in_set(set, string->at + from, step))
                break;
            from += step;
        }
        if (!hr_jinja_step(run, (string->len - (to - from)) * (set->len + 1) / 16))
            return false;
    } else {
        return hr_jinja_fail(run, "TypeError: strip arg must be None or str");
    }
    *out = hr_jinja_string_value(hr_jinja_substring(string, from, to));
    return true;
}

/* Replacing nothing puts the new text in front of every character and at the end. */
static bool replace_empty(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_string *new_text,
                          int64_t limit, hr_jinja_store *store)
{
    size_t at = 0;

    while (limit != 0 && hr_jinja_store_add(run, store, new_text)) {
        bool is_valid;
        size_t step = at < string->len ? hr_utf8_step(string->at + at, string->len - at, &is_valid) : 0;
        hr_jinja_string character = hr_jinja_substring(string, at, at + step);

        limit -= limit > 0;
        if (step == 0 || !hr_jinja_step(run, 1) || !hr_jinja_store_add(run, store, &character))
            break;
        at += step;
    }
    if (run->status == HEADRACE_OK && at < string->len) {
        hr_jinja_string rest = hr_jinja_substring(string, at, string->len);

        return hr_jinja_store_add(run, store, &rest);
    }
    return run->status == HEADRACE_OK;
}

bool hr_jinja_replace(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_string *old,
                      const hr_jinja_string *new_text, int64_t limit, hr_jinja_value *out)
{
    hr_jinja_store *store = hr_jinja_store_new(run);
    size_t at = 0;

    if (!store)
        return false;
    *out = hr_jinja_string_value(*string);
    if (old->len == 0) {
        if (!replace_empty(run, string, new_text, limit, store))
            return false;
        *out = hr_jinja_store_value(store);
        return true;
    }
    while (limit != 0 && at < string->len) {
        const char *found = memmem(string->at + at, string->len - at, old->at, old->len);
        size_t end = found ? (size_t)(found - string->at) : string->len;
        hr_jinja_string plain = hr_jinja_substring(string, at, end);

        if (!found)
            break;
        if (!hr_jinja_step(run, 1) || !hr_jinja_store_add(run, store, &plain) ||
            !hr_jinja_store_add(run, store, new_text))
            return false;
        at = end + old->len;
        limit -= limit > 0;
    }
    if (at > 0) {
        hr_jinja_string rest = hr_jinja_substring(string, at, string->len);

        if (!hr_jinja_store_add(run, store, &rest))
            return false;
        *out = hr_jinja_store_value(store);
    }
    return hr_jinja_step(run, string->len / 64);
}

/* ---------------------------------------------------------------- split and join */

/* Pieces found so far, as offsets; a growing array in the run's arena. */
typedef struct pieces {
    size_t (*at)[2];
    size_t n, capacity;
} pieces;

static bool add_piece(hr_jinja_run *run, pieces *list, size_t from, size_t to)
{
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 16;
        void *grown = capacity <= HR_JINJA_MAX_ELEMENTS ? hr_jinja_alloc(run, capacity, sizeof *list->at) : NULL;

        if (!grown)
            return hr_jinja_fail(run, "a text is split into more than %d pieces", HR_JINJA_MAX_ELEMENTS);
        if (list->n > 0)
            memcpy(grown, list->at, list->n * sizeof *list->at);
        list->at = grown;
        list->capacity = capacity;
    }
    list->at[list->n][0] = from;
    list->at[list->n++][1] = to;
    return hr_jinja_step(run, 1);
}

static bool split_at_space(hr_jinja_run *run, const hr_jinja_string *string, int64_t limit, pieces *list)
{
    size_t at = hr_python_leading_space(string->at, string->len), len = string->len;

    while (at < len) {
        size_t end = at;
        bool is_valid;

        if (limit == 0) {
            end = hr_python_trimmed_len(string->at, len);
        } else {
            while (end < len && hr_python_space(string->at + end, len - end) == 0)
                end += hr_utf8_step(string->at + end, len - end, &is_valid);
        }
        if (!add_piece(run, list, at, end))
            return false;
        limit -= limit > 0;
        at = end + hr_python_leading_space(string->at + end, len - end);
    }
    return true;
}

static bool split_at(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_string *separator, int64_t limit,
                     pieces *list)
{
    size_t at = 0;

    while (limit != 0 && string->len > 0) {
        const char *found = memmem(string->at + at, string->len - at, separator->at, separator->len);

        if (!found)
            break;
        if (!add_piece(run, list, at, (size_t)(found - string->at)))
            return false;
        at = (size_t)(found - string->at) + separator->len;
        limit -= limit > 0;
    }
    return add_piece(run, list, at, string->len);
}

/* From the right, so that a limit keeps the last pieces; they come out in reverse and are turned around. */
static bool split_at_from_right(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_string *separator,
                                int64_t limit, pieces *list)
{
    size_t end = string->len;

    for (size_t at = string->len; limit != 0 && at >= separator->len;) {
        if (memcmp(string->at + at - separator->len, separator->at, separator->len) != 0) {
            at--;
            continue;
        }
        if (!add_piece(run, list, at, end))
            return false;
        at -= separator->len;
        end = at;
        limit -= limit > 0;
    }
    if (!add_piece(run, list, 0, end))
        return false;
    for (size_t i = 0; i < list->n / 2; i++) {
        size_t *a = list->at[i], *b = list->at[list->n - 1 - i], from = a[0], to = a[1];

        a[0] = b[0];
        a[1] = b[1];
        b[0] = from;
        b[1] = to;
    }
    return true;
}

bool hr_jinja_split(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_value *separator, int64_t limit,
                    bool from_right, hr_jinja_value *out)
{
    pieces list = {0};
    bool ok;

    if (!hr_jinja_step(run, string->len / 16))
        return false;
    if (separator->kind == HR_JINJA_VALUE_ABSENT || separator->kind == HR_JINJA_VALUE_NONE) {
        if (from_right && limit >= 0)
            return hr_jinja_fail(run, "rsplit at white space with a limit is not supported");
        ok = split_at_space(run, string, limit, &list);
    } else if (separator->kind != HR_JINJA_VALUE_STRING) {
        return hr_jinja_fail(run, "TypeError: must be str or None, not %s", hr_jinja_type_name(separator));
    } else if (separator->as.string.len == 0) {
        return hr_jinja_fail(run, "ValueError: empty separator");
    } else if (from_right) {
        ok = split_at_from_right(run, string, &separator->as.string, limit, &list);
    } else {
        ok = split_at(run, string, &separator->as.string, limit, &list);
    }
    if (!ok || !hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, list.n, out))
        return false;
    for (size_t i = 0; i < list.n; i++)
        out->as.sequence->at[i] = hr_jinja_string_value(hr_jinja_substring(string, list.at[i][0], list.at[i][1]));
    return true;
}

bool hr_jinja_join(hr_jinja_run *run, const hr_jinja_string *separator, const hr_jinja_value *items, size_t n,
                   bool only_strings, hr_jinja_value *out)
{
    hr_jinja_store *store = hr_jinja_store_new(run);

    if (!store)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (only_strings && items[i].kind != HR_JINJA_VALUE_STRING)
            return hr_jinja_fail(run, "TypeError: sequence item %zu: expected str instance, %s found", i,
                                 hr_jinja_type_name(&items[i]));
        if (!hr_jinja_step(run, 1) || (i > 0 && !hr_jinja_store_add(run, store, separator)) ||
            !hr_jinja_print(run, &items[i], store))
            return false;
    }
    *out = hr_jinja_store_value(store);
    return true;
}

/* ---------------------------------------------------------------- case */

/* Beyond ASCII by the C library's tables (one character to one character); ASCII alone where it has no UTF-8 locale.
 * Python's few one-to-many mappings (German sharp s) are written out for the letters that occur in words. */
static uint32_t map_case(hr_jinja_run *run, uint32_t code_point, bool upper)
{
    if (code_point < 0x80) {
        if (upper && code_point >= 'a' && code_point <= 'z')
            return code_point - 32;
        if (!upper && code_point >= 'A' && code_point <= 'Z')
            return code_point + 32;
        return code_point;
    }
    if (!run->locale)
        run->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    if (!run->locale)
        return code_point;
    return (uint32_t)(upper ? towupper_l((wint_t)code_point, run->locale)
                            : towlower_l((wint_t)code_point, run->locale));
}

bool hr_jinja_change_case(hr_jinja_run *run, const hr_jinja_string *string, int how, hr_jinja_value *out)
{
    hr_jinja_store *store = hr_jinja_store_new(run);
    bool in_word = false;

    if (!store || !hr_jinja_step(run, string->len / 8))
        return false;
    for (size_t at = 0; at < string->len;) {
        bool is_valid;
        size_t step = hr_utf8_step(string->at + at, string->len - at, &is_valid);
        hr_jinja_string character = hr_jinja_substring(string, at, at + step);
        uint32_t code_point = hr_utf8_decode(string->at + at, step), mapped;
        bool upper =
            how == HR_JINJA_UPPER || (how == HR_JINJA_CAPITALIZE && at == 0) || (how == HR_JINJA_TITLE && !in_word);
        char bytes[4];

        if (upper && code_point == 0xDF) { /* sharp s */
            character.at = how == HR_JINJA_UPPER ? "SS" : "Ss";
            character.len = 2;
            character.is_data = character.from ? character.from[0] != 0 : character.is_data;
            character.from = NULL;
        } else if ((mapped = map_case(run, code_point, upper)) != code_point) {
            character.is_data = character.from ? character.from[0] != 0 : character.is_data;
            character.from = NULL;
            character.len = hr_utf8_encode(mapped, bytes);
            character.at = bytes;
        }
        if (!hr_jinja_store_add(run, store, &character))
            return false;
        in_word = map_case(run, code_point, true) != code_point || map_case(run, code_point, false) != code_point;
        at += step;
    }
    *out = hr_jinja_store_value(store);
    return true;
}
