/* Reaching into values: attributes, items, slices, methods. As in Jinja, x.name looks for a method first and an entry
 * then, x["name"] the other way round, and what is not there is undefined. Methods that change a value do not exist
 * here, as in the sandbox that the reference renders in.
 */
#include "text/jinja_value.h"

#include <string.h>

/* ---------------------------------------------------------------- methods */

typedef struct method {
    const char *name;
    bool (*call)(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value *arguments,
                 hr_jinja_value *out);
    const char *parameters[3];
    size_t n_required;
} method;

/* A parameter that must be a string. */
static bool need_string(hr_jinja_run *run, const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_STRING ||
           hr_jinja_fail(run, "TypeError: expected str, got %s", hr_jinja_type_name(value));
}

static bool optional_integer(hr_jinja_run *run, const hr_jinja_value *value, int64_t fallback, int64_t *out)
{
    *out = value->kind == HR_JINJA_VALUE_INT    ? value->as.integer
           : value->kind == HR_JINJA_VALUE_BOOL ? value->as.boolean
                                                : fallback;
    return value->kind == HR_JINJA_VALUE_INT || value->kind == HR_JINJA_VALUE_BOOL ||
           value->kind == HR_JINJA_VALUE_ABSENT ||
           hr_jinja_fail(run, "TypeError: '%s' object cannot be interpreted as an integer", hr_jinja_type_name(value));
}

static bool str_strip(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return hr_jinja_strip(run, &s->as.string, &a[0], 3, out);
}

static bool str_lstrip(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return hr_jinja_strip(run, &s->as.string, &a[0], 1, out);
}

static bool str_rstrip(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return hr_jinja_strip(run, &s->as.string, &a[0], 2, out);
}

static bool str_split(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    int64_t limit;

    return optional_integer(run, &a[1], -1, &limit) && hr_jinja_split(run, &s->as.string, &a[0], limit, false, out);
}

static bool str_rsplit(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    int64_t limit;

    return optional_integer(run, &a[1], -1, &limit) && hr_jinja_split(run, &s->as.string, &a[0], limit, true, out);
}

static bool str_replace(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    int64_t limit;

    return need_string(run, &a[0]) && need_string(run, &a[1]) && optional_integer(run, &a[2], -1, &limit) &&
           hr_jinja_replace(run, &s->as.string, &a[0].as.string, &a[1].as.string, limit, out);
}

static bool str_upper(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return hr_jinja_change_case(run, &s->as.string, HR_JINJA_UPPER, out);
}

static bool str_lower(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return hr_jinja_change_case(run, &s->as.string, HR_JINJA_LOWER, out);
}

static bool str_capitalize(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return hr_jinja_change_case(run, &s->as.string, HR_JINJA_CAPITALIZE, out);
}

static bool str_title(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return hr_jinja_change_case(run, &s->as.string, HR_JINJA_TITLE, out);
}

static bool has_affix(const hr_jinja_string *string, const hr_jinja_string *affix, bool at_end)
{
    return affix->len <= string->len && (affix->len == 0 || memcmp(string->at + (at_end ? string->len - affix->len : 0),
                                                                   affix->at, affix->len) == 0);
}

/* startswith and endswith take a string or a tuple of them. */
static bool test_affix(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *affix, bool at_end,
                       hr_jinja_value *out)
{
    *out = hr_jinja_bool(false);
    if (affix->kind == HR_JINJA_VALUE_SEQUENCE && affix->as.sequence->flavour == HR_JINJA_FLAVOUR_TUPLE) {
        for (size_t i = 0; !out->as.boolean && i < affix->as.sequence->n; i++) {
            if (!need_string(run, &affix->as.sequence->at[i]))
                return false;
            *out = hr_jinja_bool(has_affix(&s->as.string, &affix->as.sequence->at[i].as.string, at_end));
        }
        return true;
    }
    if (!need_string(run, affix))
        return false;
    *out = hr_jinja_bool(has_affix(&s->as.string, &affix->as.string, at_end));
    return true;
}

static bool str_startswith(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return test_affix(run, s, &a[0], false, out);
}

static bool str_endswith(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return test_affix(run, s, &a[0], true, out);
}

static bool str_removeprefix(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    if (!need_string(run, &a[0]))
        return false;
    *out = *s;
    if (has_affix(&s->as.string, &a[0].as.string, false))
        *out = hr_jinja_string_value(hr_jinja_substring(&s->as.string, a[0].as.string.len, s->as.string.len));
    return true;
}

static bool str_removesuffix(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    if (!need_string(run, &a[0]))
        return false;
    *out = *s;
    if (has_affix(&s->as.string, &a[0].as.string, true))
        *out = hr_jinja_string_value(hr_jinja_substring(&s->as.string, 0, s->as.string.len - a[0].as.string.len));
    return true;
}

static bool str_find(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    const hr_jinja_string *text = &s->as.string;
    const char *found;

    if (!need_string(run, &a[0]) || !hr_jinja_step(run, text->len / 64))
        return false;
    found = a[0].as.string.len == 0 ? text->at
            : text->len > 0         ? memmem(text->at, text->len, a[0].as.string.at, a[0].as.string.len)
                                    : NULL;
    *out = hr_jinja_int(-1);
    if (a[0].as.string.len == 0) {
        *out = hr_jinja_int(0);
    } else if (found) {
        hr_jinja_string before = hr_jinja_substring(text, 0, (size_t)(found - text->at));

        *out = hr_jinja_int((int64_t)hr_jinja_count_characters(&before));
    }
    return true;
}

static bool str_count(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value list;

    if (!need_string(run, &a[0]))
        return false;
    if (a[0].as.string.len == 0) {
        *out = hr_jinja_int((int64_t)hr_jinja_count_characters(&s->as.string) + 1);
        return true;
    }
    if (!hr_jinja_split(run, &s->as.string, &a[0], -1, false, &list))
        return false;
    *out = hr_jinja_int((int64_t)list.as.sequence->n - 1);
    return true;
}

static bool str_join(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value *items;
    size_t n;

    return hr_jinja_iterate(run, &a[0], &items, &n) && hr_jinja_join(run, &s->as.string, items, n, true, out);
}

static bool dict_get(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value *found;

    if (!hr_jinja_is_hashable(&a[0]))
        return hr_jinja_fail(run, "TypeError: unhashable type: '%s'", hr_jinja_type_name(&a[0]));
    found = hr_jinja_dict_get(run, s->as.dict, &a[0]);
    *out = found ? *found : a[1];
    if (out->kind == HR_JINJA_VALUE_ABSENT)
        *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_NONE};
    return run->status == HEADRACE_OK;
}

static bool dict_items(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    const hr_jinja_dict *dict = s->as.dict;

    (void)a;
    if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_ITEMS, dict->n, out))
        return false;
    for (size_t i = 0; i < dict->n; i++) {
        hr_jinja_value *pair = &out->as.sequence->at[i];

        if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_TUPLE, 2, pair))
            return false;
        pair->as.sequence->at[0] = dict->keys[i];
        pair->as.sequence->at[1] = dict->values[i];
    }
    return true;
}

static bool dict_column(hr_jinja_run *run, const hr_jinja_dict *dict, hr_jinja_flavour flavour, hr_jinja_value *out)
{
    if (!hr_jinja_sequence_new(run, flavour, dict->n, out))
        return false;
    if (dict->n > 0)
        memcpy(out->as.sequence->at, flavour == HR_JINJA_FLAVOUR_KEYS ? dict->keys : dict->values,
               dict->n * sizeof *dict->keys);
    return true;
}

static bool dict_keys(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return dict_column(run, s->as.dict, HR_JINJA_FLAVOUR_KEYS, out);
}

static bool dict_values(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return dict_column(run, s->as.dict, HR_JINJA_FLAVOUR_VALUES, out);
}

static bool dict_copy(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    *out = *s; /* nothing can change it */
    return hr_jinja_step(run, 1);
}

static bool list_count(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    int64_t n = 0;

    for (size_t i = 0; i < s->as.sequence->n; i++) {
        bool equal;

        if (!hr_jinja_equal(run, &s->as.sequence->at[i], &a[0], &equal))
            return false;
        n += equal;
    }
    *out = hr_jinja_int(n);
    return true;
}

static bool list_index(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    for (size_t i = 0; i < s->as.sequence->n; i++) {
        bool equal;

        if (!hr_jinja_equal(run, &s->as.sequence->at[i], &a[0], &equal))
            return false;
        if (equal) {
            *out = hr_jinja_int((int64_t)i);
            return true;
        }
    }
    return hr_jinja_fail(run, "ValueError: the value is not in the list");
}

static const method string_methods[] = {
    {"strip", str_strip, {"chars"}, 0},
    {"lstrip", str_lstrip, {"chars"}, 0},
    {"rstrip", str_rstrip, {"chars"}, 0},
    {"split", str_split, {"sep", "maxsplit"}, 0},
    {"rsplit", str_rsplit, {"sep", "maxsplit"}, 0},
    {"replace", str_replace, {"old", "new", "count"}, 2},
    {"upper", str_upper, {NULL}, 0},
    {"lower", str_lower, {NULL}, 0},
    {"capitalize", str_capitalize, {NULL}, 0},
    {"title", str_title, {NULL}, 0},
    {"startswith", str_startswith, {"prefix"}, 1},
    {"endswith", str_endswith, {"suffix"}, 1},
    {"removeprefix", str_removeprefix, {"prefix"}, 1},
    {"removesuffix", str_removesuffix, {"suffix"}, 1},
    {"find", str_find, {"sub"}, 1},
    {"count", str_count, {"sub"}, 1},
    {"join", str_join, {"iterable"}, 1},
    {NULL, NULL, {NULL}, 0},
};
static const method dict_methods[] = {
    {"get", dict_get, {"key", "default"}, 1}, {"items", dict_items, {NULL}, 0}, {"keys", dict_keys, {NULL}, 0},
    {"values", dict_values, {NULL}, 0},       {"copy", dict_copy, {NULL}, 0},   {NULL, NULL, {NULL}, 0},
};
static const method list_methods[] = {
    {"count", list_count, {"value"}, 1},
    {"index", list_index, {"value"}, 1},
    {NULL, NULL, {NULL}, 0},
};

static const method *find_method(const hr_jinja_value *subject, const char *name)
{
    const method *table;

    if (subject->kind == HR_JINJA_VALUE_STRING)
        table = string_methods;
    else if (subject->kind == HR_JINJA_VALUE_DICT)
        table = dict_methods;
    else if (subject->kind == HR_JINJA_VALUE_SEQUENCE && subject->as.sequence->flavour <= HR_JINJA_FLAVOUR_RANGE)
        table = list_methods;
    else
        return NULL;
    while (table->name && strcmp(table->name, name) != 0)
        table++;
    return table->name ? table : NULL;
}

bool hr_jinja_call_method(hr_jinja_run *run, const hr_jinja_value *subject, const char *name,
                          const hr_jinja_arguments *arguments, hr_jinja_value *out)
{
    const method *found = find_method(subject, name);
    hr_jinja_value values[3];
    size_t n = 0;

    if (!found)
        return hr_jinja_fail(run, "the method '%s' is not supported", name);
    while (n < 3 && found->parameters[n])
        n++;
    return hr_jinja_bind(run, name, arguments, found->parameters, n, found->n_required, values) &&
           found->call(run, subject, values, out);
}

/* ---------------------------------------------------------------- attributes and items */

static bool loop_attribute(hr_jinja_run *run, hr_jinja_loop *loop, const char *name, hr_jinja_value *out)
{
    int64_t index = (int64_t)loop->index, n = (int64_t)loop->n;

    if (strcmp(name, "index") == 0)
        *out = hr_jinja_int(index + 1);
    else if (strcmp(name, "index0") == 0)
        *out = hr_jinja_int(index);
    else if (strcmp(name, "revindex") == 0)
        *out = hr_jinja_int(n - index);
    else if (strcmp(name, "revindex0") == 0)
        *out = hr_jinja_int(n - index - 1);
    else if (strcmp(name, "first") == 0)
        *out = hr_jinja_bool(index == 0);
    else if (strcmp(name, "last") == 0)
        *out = hr_jinja_bool(index == n - 1);
    else if (strcmp(name, "length") == 0)
        *out = hr_jinja_int(n);
    else if (strcmp(name, "depth") == 0)
        *out = hr_jinja_int(1); /* Jinja counts recursive loops only, and there are none */
    else if (strcmp(name, "depth0") == 0)
        *out = hr_jinja_int(0);
    else if (strcmp(name, "previtem") == 0)
        *out = index > 0 ? loop->items[index - 1] : hr_jinja_undefined("loop.previtem");
    else if (strcmp(name, "nextitem") == 0)
        *out = index < n - 1 ? loop->items[index + 1] : hr_jinja_undefined("loop.nextitem");
    else
        return hr_jinja_fail(run, "loop.%s is not supported", name);
    return true;
}

static bool make_method(hr_jinja_run *run, const hr_jinja_value *subject, const char *name, hr_jinja_value *out)
{
    hr_jinja_method *bound = hr_jinja_alloc(run, 1, sizeof *bound);

    if (!bound)
        return false;
    bound->subject = *subject;
    bound->name = name;
    *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_METHOD};
    out->as.method = bound;
    return true;
}

bool hr_jinja_attribute(hr_jinja_run *run, const hr_jinja_value *subject, const char *name, hr_jinja_value *out)
{
    hr_jinja_value *found = NULL;

    if (subject->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined (read of .%s)", subject->as.name, name);
    if (subject->kind == HR_JINJA_VALUE_LOOP)
        return loop_attribute(run, subject->as.loop, name, out);
    if (find_method(subject, name))
        return make_method(run, subject, name, out);
    if (subject->kind == HR_JINJA_VALUE_DICT || subject->kind == HR_JINJA_VALUE_NAMESPACE) {
        if (!hr_jinja_step(run, subject->as.dict->n / 16))
            return false;
        found = hr_jinja_dict_find(subject->as.dict, name, strlen(name));
    }
    *out = found ? *found : hr_jinja_undefined(name);
    return true;
}

static bool is_indexable(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_SEQUENCE && value->as.sequence->flavour <= HR_JINJA_FLAVOUR_RANGE;
}

static bool string_item(const hr_jinja_string *string, int64_t index, hr_jinja_value *out)
{
    int64_t n = (int64_t)hr_jinja_count_characters(string);
    size_t from, to;

    if (index < 0)
        index += n;
    if (index < 0 || index >= n)
        return false;
    from = hr_jinja_character_offset(string, (size_t)index);
    for (to = from + 1; to < string->len && ((unsigned char)string->at[to] & 0xC0) == 0x80;)
        to++;
    *out = hr_jinja_string_value(hr_jinja_substring(string, from, to));
    return true;
}

bool hr_jinja_item(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value *index, hr_jinja_value *out)
{
    int64_t at = index->kind == HR_JINJA_VALUE_BOOL ? index->as.boolean : index->as.integer;
    bool is_integer = index->kind == HR_JINJA_VALUE_INT || index->kind == HR_JINJA_VALUE_BOOL;
    const char *name = "item";

    if (subject->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined (read of an item)", subject->as.name);
    if (subject->kind == HR_JINJA_VALUE_DICT && hr_jinja_is_hashable(index)) {
        hr_jinja_value *found = hr_jinja_dict_get(run, subject->as.dict, index);

        if (found) {
            *out = *found;
            return true;
        }
    } else if (is_integer && subject->kind == HR_JINJA_VALUE_STRING) {
        if (!hr_jinja_step(run, subject->as.string.len / 64))
            return false;
        if (string_item(&subject->as.string, at, out))
            return true;
    } else if (is_integer && is_indexable(subject)) {
        const hr_jinja_sequence *sequence = subject->as.sequence;

        if (at < 0)
            at += (int64_t)sequence->n;
        if (at >= 0 && at < (int64_t)sequence->n) {
            *out = sequence->at[at];
            return true;
        }
    }
    if (run->status != HEADRACE_OK)
        return false;
    if (index->kind == HR_JINJA_VALUE_STRING &&
        (index->as.string.len == 0 || !memchr(index->as.string.at, '\0', index->as.string.len))) {
        if (!hr_jinja_c_text(run, &index->as.string, &name))
            return false;
        if (subject->kind != HR_JINJA_VALUE_LOOP || index->as.string.len > 0)
            return hr_jinja_attribute(run, subject, name, out);
    }
    *out = hr_jinja_undefined(name);
    return true;
}

/* ---------------------------------------------------------------- slices */

static bool slice_part(hr_jinja_run *run, const hr_jinja_value *value, int64_t fallback, int64_t *out)
{
    if (value->kind == HR_JINJA_VALUE_NONE || value->kind == HR_JINJA_VALUE_ABSENT)
        *out = fallback;
    else if (value->kind == HR_JINJA_VALUE_INT)
        *out = value->as.integer;
    else if (value->kind == HR_JINJA_VALUE_BOOL)
        *out = value->as.boolean;
    else
        return hr_jinja_fail(run, "TypeError: slice indices must be integers or None");
    return true;
}

static int64_t clamp(int64_t value, int64_t n, int64_t low, int64_t high)
{
    if (value < 0)
        value = value < -n ? low : value + n;
    return value < low ? low : value > high ? high : value;
}

bool hr_jinja_slice(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value parts[3],
                    hr_jinja_value *out)
{
    int64_t start = 0, stop = 0, step = 1, n;
    size_t length, count;
    bool is_string = subject->kind == HR_JINJA_VALUE_STRING;
    hr_jinja_value list;
    hr_jinja_value *items;

    if (subject->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined (a slice of it was read)", subject->as.name);
    if (!is_string && !is_indexable(subject))
        return hr_jinja_fail(run, "TypeError: '%s' object cannot be sliced", hr_jinja_type_name(subject));
    if (!slice_part(run, &parts[2], 1, &step))
        return false;
    if (step == 0)
        return hr_jinja_fail(run, "ValueError: slice step cannot be zero");
    (void)hr_jinja_length(subject, &length);
    n = (int64_t)length;
    if (!hr_jinja_step(run, length / 64) || !slice_part(run, &parts[0], step > 0 ? 0 : INT64_MAX, &start) ||
        !slice_part(run, &parts[1], step > 0 ? INT64_MAX : INT64_MIN, &stop))
        return false;
    start = clamp(start, n, step > 0 ? 0 : -1, step > 0 ? n : n - 1);
    stop = clamp(stop, n, step > 0 ? 0 : -1, step > 0 ? n : n - 1);
    if (is_string && step == 1) {
        size_t from = hr_jinja_character_offset(&subject->as.string, (size_t)start);
        size_t to = stop > start ? hr_jinja_character_offset(&subject->as.string, (size_t)stop) : from;

        *out = hr_jinja_string_value(hr_jinja_substring(&subject->as.string, from, to));
        return true;
    }
    if (step > 0)
        count = stop > start ? (size_t)((stop - start - 1) / step) + 1 : 0;
    else
        count = start > stop ? (size_t)((uint64_t)(start - stop - 1) / ((uint64_t)0 - (uint64_t)step)) + 1 : 0;
    if (!hr_jinja_iterate(run, subject, &items, &length) ||
        !hr_jinja_sequence_new(run, is_string ? HR_JINJA_FLAVOUR_LIST : subject->as.sequence->flavour, count, &list))
        return false;
    for (size_t i = 0; i < count; i++)
        list.as.sequence->at[i] = items[start + (int64_t)i * step];
    if (is_string) {
        const hr_jinja_string nothing = {.at = ""};

        return hr_jinja_join(run, &nothing, list.as.sequence->at, count, true, out);
    }
    *out = list;
    return true;
}
