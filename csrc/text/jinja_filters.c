/* The filters: value|name(arguments). tojson is the one that transformers installs (plain json.dumps), not Jinja's own,
 * which would escape for HTML.
 */
#include "text/jinja_library.h"
#include "text/jinja_value.h"
#include "text/python_text.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum { MAX_PARAMETERS = 4 };

struct hr_jinja_filter {
    const char *name;
    /* One of the two: with bound parameters, or with the arguments as they came. */
    bool (*call)(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value *arguments,
                 hr_jinja_value *out);
    bool (*call_raw)(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_arguments *arguments,
                     hr_jinja_value *out);
    const char *parameters[MAX_PARAMETERS];
    size_t n_required;
};

static bool is_given(const hr_jinja_value *value)
{
    return value->kind != HR_JINJA_VALUE_ABSENT && value->kind != HR_JINJA_VALUE_NONE;
}

/* ---------------------------------------------------------------- text */

static bool filter_tojson(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    int indent = -1;
    const char *separators[2];

    if (is_given(&a[1])) {
        if (a[1].kind != HR_JINJA_VALUE_INT || a[1].as.integer > 64)
            return hr_jinja_fail(run, "tojson: indent must be an integer up to 64");
        indent = a[1].as.integer < 0 ? 0 : (int)a[1].as.integer;
    }
    separators[0] = indent < 0 ? ", " : ",";
    separators[1] = ": ";
    if (is_given(&a[2])) {
        const hr_jinja_sequence *pair = a[2].kind == HR_JINJA_VALUE_SEQUENCE ? a[2].as.sequence : NULL;

        if (!pair || pair->n != 2 || pair->at[0].kind != HR_JINJA_VALUE_STRING ||
            pair->at[1].kind != HR_JINJA_VALUE_STRING)
            return hr_jinja_fail(run, "tojson: separators must be two strings");
        if (!hr_jinja_c_text(run, &pair->at[0].as.string, &separators[0]) ||
            !hr_jinja_c_text(run, &pair->at[1].as.string, &separators[1]))
            return false;
    }
    if (a[3].kind != HR_JINJA_VALUE_ABSENT && hr_jinja_is_true(&a[3]))
        return hr_jinja_fail(run, "tojson: sort_keys is not supported");
    return hr_jinja_to_json(run, s, indent, a[0].kind != HR_JINJA_VALUE_ABSENT && hr_jinja_is_true(&a[0]),
                            separators[0], separators[1], out);
}

static bool filter_trim(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value text;

    return hr_jinja_str(run, s, &text) && hr_jinja_strip(run, &text.as.string, &a[0], 3, out);
}

static bool filter_string(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return hr_jinja_str(run, s, out);
}

static bool change_case(hr_jinja_run *run, const hr_jinja_value *s, int how, hr_jinja_value *out)
{
    hr_jinja_value text;

    return hr_jinja_str(run, s, &text) && hr_jinja_change_case(run, &text.as.string, how, out);
}

static bool filter_upper(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return change_case(run, s, HR_JINJA_UPPER, out);
}

static bool filter_lower(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return change_case(run, s, HR_JINJA_LOWER, out);
}

static bool filter_capitalize(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    return change_case(run, s, HR_JINJA_CAPITALIZE, out);
}

static bool filter_replace(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value text, old, new_text;
    int64_t limit = a[2].kind == HR_JINJA_VALUE_INT ? a[2].as.integer : -1;

    if (is_given(&a[2]) && a[2].kind != HR_JINJA_VALUE_INT)
        return hr_jinja_fail(run, "TypeError: replace: count must be an integer");
    return hr_jinja_str(run, s, &text) && hr_jinja_str(run, &a[0], &old) && hr_jinja_str(run, &a[1], &new_text) &&
           hr_jinja_replace(run, &text.as.string, &old.as.string, &new_text.as.string, limit, out);
}

/* ---------------------------------------------------------------- sequences */

static bool filter_length(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    size_t n;

    (void)a;
    if (s->kind == HR_JINJA_VALUE_STRING && !hr_jinja_step(run, s->as.string.len / 64))
        return false;
    if (!hr_jinja_length(s, &n))
        return hr_jinja_fail(run, "TypeError: object of type '%s' has no len()", hr_jinja_type_name(s));
    *out = hr_jinja_int((int64_t)n);
    return true;
}

static bool filter_list(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value *items;
    size_t n;

    (void)a;
    if (!hr_jinja_iterate(run, s, &items, &n) || !hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, n, out))
        return false;
    if (n > 0)
        memcpy(out->as.sequence->at, items, n * sizeof *items);
    return true;
}

static bool filter_first(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value *items;
    size_t n;

    (void)a;
    if (!hr_jinja_iterate(run, s, &items, &n))
        return false;
    *out = n > 0 ? items[0] : hr_jinja_undefined("the first item of an empty sequence");
    return true;
}

static bool filter_last(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value *items;
    size_t n;

    (void)a;
    if (s->kind == HR_JINJA_VALUE_SEQUENCE && s->as.sequence->flavour == HR_JINJA_FLAVOUR_GENERATOR)
        return hr_jinja_fail(run, "TypeError: 'generator' object is not reversible");
    if (!hr_jinja_iterate(run, s, &items, &n))
        return false;
    *out = n > 0 ? items[n - 1] : hr_jinja_undefined("the last item of an empty sequence");
    return true;
}

static bool filter_reverse(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    const hr_jinja_string nothing = {.at = ""};
    hr_jinja_value *items, list;
    size_t n;

    (void)a;
    if (!hr_jinja_iterate(run, s, &items, &n) || !hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, n, &list))
        return false;
    for (size_t i = 0; i < n; i++)
        list.as.sequence->at[i] = items[n - 1 - i];
    *out = list;
    return s->kind != HR_JINJA_VALUE_STRING || hr_jinja_join(run, &nothing, list.as.sequence->at, n, true, out);
}

/* Follows "a.b.0" into an item, as map(attribute=...) does. */
static bool follow(hr_jinja_run *run, const hr_jinja_value *item, const hr_jinja_value *path, hr_jinja_value *out)
{
    hr_jinja_value dot = hr_jinja_text(".", 1, false), parts;

    *out = *item;
    if (path->kind == HR_JINJA_VALUE_INT)
        return hr_jinja_item(run, item, path, out);
    if (path->kind != HR_JINJA_VALUE_STRING)
        return hr_jinja_fail(run, "TypeError: an attribute must be a name or an integer");
    if (!hr_jinja_split(run, &path->as.string, &dot, -1, false, &parts))
        return false;
    for (size_t i = 0; i < parts.as.sequence->n; i++) {
        hr_jinja_value part = parts.as.sequence->at[i], next;
        const char *text;

        if (!hr_jinja_c_text(run, &part.as.string, &text))
            return false;
        if (part.as.string.len > 0 && part.as.string.len < 10 && strspn(text, "0123456789") == part.as.string.len)
            part = hr_jinja_int(strtoll(text, NULL, 10));
        if (!hr_jinja_item(run, out, &part, &next))
            return false;
        *out = next;
    }
    return true;
}

static bool filter_join(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    hr_jinja_value separator = hr_jinja_text("", 0, false), list;
    hr_jinja_value *items;
    size_t n;

    if (!hr_jinja_iterate(run, s, &items, &n))
        return false;
    if (a[0].kind != HR_JINJA_VALUE_ABSENT && !hr_jinja_str(run, &a[0], &separator))
        return false;
    if (is_given(&a[1])) {
        if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, n, &list))
            return false;
        for (size_t i = 0; i < n; i++) {
            if (!follow(run, &items[i], &a[1], &list.as.sequence->at[i]))
                return false;
        }
        items = list.as.sequence->at;
    }
    return hr_jinja_join(run, &separator.as.string, items, n, false, out);
}

static bool filter_items(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    const hr_jinja_arguments none = {0};

    (void)a;
    if (s->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, 0, out);
    if (s->kind != HR_JINJA_VALUE_DICT)
        return hr_jinja_fail(run, "TypeError: Can only get item pairs from a mapping.");
    if (!hr_jinja_call_method(run, s, "items", &none, out))
        return false;
    out->as.sequence->flavour = HR_JINJA_FLAVOUR_GENERATOR;
    return true;
}

/* ---------------------------------------------------------------- map, select, reject */

static bool map_attribute(hr_jinja_run *run, hr_jinja_value *items, size_t n, const hr_jinja_arguments *arguments,
                          hr_jinja_value *results)
{
    static const char *const names[] = {"attribute", "default"};
    hr_jinja_value values[2];

    if (!hr_jinja_bind(run, "map", arguments, names, 2, 1, values))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!follow(run, &items[i], &values[0], &results[i]))
            return false;
        if (results[i].kind == HR_JINJA_VALUE_UNDEFINED && is_given(&values[1]))
            results[i] = values[1];
    }
    return true;
}

static hr_jinja_arguments without_first(const hr_jinja_arguments *arguments, size_t n)
{
    hr_jinja_arguments rest = *arguments;

    rest.positional += n;
    rest.n_positional -= n;
    return rest;
}

static bool filter_map(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *arguments,
                       hr_jinja_value *out)
{
    const hr_jinja_filter *filter;
    hr_jinja_arguments rest;
    hr_jinja_value *items;
    size_t n;
    const char *name;

    if (!hr_jinja_is_true(s) && s->kind != HR_JINJA_VALUE_SEQUENCE)
        return hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, 0, out);
    if (!hr_jinja_iterate(run, s, &items, &n) || !hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, n, out))
        return false;
    if (arguments->n_positional == 0)
        return map_attribute(run, items, n, arguments, out->as.sequence->at);
    if (arguments->positional[0].kind != HR_JINJA_VALUE_STRING ||
        !hr_jinja_c_text(run, &arguments->positional[0].as.string, &name))
        return hr_jinja_fail(run, "map needs the name of a filter");
    filter = hr_jinja_find_filter(name);
    if (!filter)
        return hr_jinja_fail(run, "the filter '%s' is not supported", name);
    rest = without_first(arguments, 1);
    for (size_t i = 0; i < n; i++) {
        if (!hr_jinja_apply_filter(run, filter, &items[i], &rest, &out->as.sequence->at[i]))
            return false;
    }
    return true;
}

static bool select_items(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *arguments,
                         bool by_attribute, bool keeps, hr_jinja_value *out)
{
    const hr_jinja_test *test = NULL;
    size_t first = by_attribute ? 1 : 0, n, n_kept = 0;
    hr_jinja_arguments rest = *arguments;
    hr_jinja_value *items;
    const char *name;

    if (!hr_jinja_is_true(s) && s->kind != HR_JINJA_VALUE_SEQUENCE)
        return hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, 0, out);
    if (!hr_jinja_iterate(run, s, &items, &n) || !hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_GENERATOR, n, out))
        return false;
    if (arguments->n_positional < first)
        return hr_jinja_fail(run, "the name of an attribute is missing");
    if (arguments->n_positional > first) {
        if (arguments->positional[first].kind != HR_JINJA_VALUE_STRING ||
            !hr_jinja_c_text(run, &arguments->positional[first].as.string, &name))
            return hr_jinja_fail(run, "the name of a test is missing");
        test = hr_jinja_find_test(name);
        if (!test)
            return hr_jinja_fail(run, "the test '%s' is not supported", name);
        rest = without_first(arguments, first + 1);
    }
    for (size_t i = 0; i < n; i++) {
        hr_jinja_value subject = items[i];
        bool holds;

        if (by_attribute && !follow(run, &items[i], &arguments->positional[0], &subject))
            return false;
        holds = hr_jinja_is_true(&subject);
        if (test && !hr_jinja_apply_test(run, test, &subject, &rest, &holds))
            return false;
        if (holds == keeps)
            out->as.sequence->at[n_kept++] = items[i];
    }
    out->as.sequence->n = n_kept;
    return true;
}

static bool filter_select(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *a, hr_jinja_value *out)
{
    return select_items(run, s, a, false, true, out);
}

static bool filter_reject(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *a, hr_jinja_value *out)
{
    return select_items(run, s, a, false, false, out);
}

static bool filter_selectattr(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *a,
                              hr_jinja_value *out)
{
    return select_items(run, s, a, true, true, out);
}

static bool filter_rejectattr(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_arguments *a,
                              hr_jinja_value *out)
{
    return select_items(run, s, a, true, false, out);
}

/* ---------------------------------------------------------------- numbers and the rest */

/* int(text) or float(text); false when it is neither. Beyond 64 bits fails the run. */
static bool parse_number(hr_jinja_run *run, const hr_jinja_string *string, bool as_integer, hr_jinja_value *out)
{
    char text[64];
    char *end;
    size_t from = hr_python_leading_space(string->at, string->len), to = hr_python_trimmed_len(string->at, string->len);
    size_t len = to > from ? to - from : 0;
    double real;

    if (len == 0 || len >= sizeof text)
        return false;
    memcpy(text, string->at + from, len);
    text[len] = '\0';
    if (strlen(text) != len || strpbrk(text, "xXpP(_"))
        return false;
    errno = 0;
    if (as_integer) {
        long long integer = strtoll(text, &end, 10);

        if (*end == '\0' && errno != 0) {
            (void)hr_jinja_fail(run, "OverflowError: %s is beyond 64 bits", text);
            return false;
        }
        if (*end == '\0') {
            *out = hr_jinja_int(integer);
            return true;
        }
    }
    real = strtod(text, &end);
    if (*end != '\0' || (as_integer && !(real > -0x1p63 && real < 0x1p63)))
        return false;
    *out = as_integer ? hr_jinja_int((int64_t)real) : hr_jinja_real(real);
    return true;
}

static bool to_number(hr_jinja_run *run, const hr_jinja_value *s, bool as_integer, const hr_jinja_value *fallback,
                      hr_jinja_value *out)
{
    *out = fallback->kind != HR_JINJA_VALUE_ABSENT ? *fallback : as_integer ? hr_jinja_int(0) : hr_jinja_real(0.0);
    switch (s->kind) {
    case HR_JINJA_VALUE_UNDEFINED:
        return hr_jinja_fail(run, "'%s' is undefined (used as a number)", s->as.name);
    case HR_JINJA_VALUE_BOOL:
    case HR_JINJA_VALUE_INT: {
        int64_t integer = s->kind == HR_JINJA_VALUE_INT ? s->as.integer : s->as.boolean;

        *out = as_integer ? hr_jinja_int(integer) : hr_jinja_real((double)integer);
        return true;
    }
    case HR_JINJA_VALUE_FLOAT:
        if (!as_integer)
            *out = *s;
        else if (s->as.real > -0x1p63 && s->as.real < 0x1p63)
            *out = hr_jinja_int((int64_t)s->as.real);
        else if (!isnan(s->as.real))
            return hr_jinja_fail(run, "OverflowError: a float is too large for an integer");
        return true;
    case HR_JINJA_VALUE_STRING:
        (void)parse_number(run, &s->as.string, as_integer, out);
        return run->status == HEADRACE_OK;
    default:
        return true;
    }
}

static bool filter_int(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return to_number(run, s, true, &a[0], out);
}

static bool filter_float(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    return to_number(run, s, false, &a[0], out);
}

static bool filter_abs(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    (void)a;
    if (s->kind == HR_JINJA_VALUE_FLOAT) {
        *out = hr_jinja_real(fabs(s->as.real));
        return true;
    }
    return hr_jinja_negate(run, s->kind == HR_JINJA_VALUE_INT && s->as.integer < 0 ? '-' : '+', s, out);
}

static bool filter_default(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, hr_jinja_value *out)
{
    bool by_truth = a[1].kind != HR_JINJA_VALUE_ABSENT && hr_jinja_is_true(&a[1]);

    *out = *s;
    if (s->kind == HR_JINJA_VALUE_UNDEFINED || (by_truth && !hr_jinja_is_true(s)))
        *out = a[0].kind == HR_JINJA_VALUE_ABSENT ? hr_jinja_text("", 0, false) : a[0];
    return hr_jinja_step(run, 1);
}

static const hr_jinja_filter filters[] = {
    {"tojson", filter_tojson, NULL, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0},
    {"trim", filter_trim, NULL, {"chars"}, 0},
    {"default", filter_default, NULL, {"default_value", "boolean"}, 0},
    {"d", filter_default, NULL, {"default_value", "boolean"}, 0},
    {"length", filter_length, NULL, {NULL}, 0},
    {"count", filter_length, NULL, {NULL}, 0},
    {"join", filter_join, NULL, {"d", "attribute"}, 0},
    {"string", filter_string, NULL, {NULL}, 0},
    {"safe", filter_string, NULL, {NULL}, 0},
    {"upper", filter_upper, NULL, {NULL}, 0},
    {"lower", filter_lower, NULL, {NULL}, 0},
    {"capitalize", filter_capitalize, NULL, {NULL}, 0},
    {"replace", filter_replace, NULL, {"old", "new", "count"}, 2},
    {"first", filter_first, NULL, {NULL}, 0},
    {"last", filter_last, NULL, {NULL}, 0},
    {"list", filter_list, NULL, {NULL}, 0},
    {"reverse", filter_reverse, NULL, {NULL}, 0},
    {"items", filter_items, NULL, {NULL}, 0},
    {"map", NULL, filter_map, {NULL}, 0},
    {"select", NULL, filter_select, {NULL}, 0},
    {"reject", NULL, filter_reject, {NULL}, 0},
    {"selectattr", NULL, filter_selectattr, {NULL}, 0},
    {"rejectattr", NULL, filter_rejectattr, {NULL}, 0},
    {"int", filter_int, NULL, {"default"}, 0},
    {"float", filter_float, NULL, {"default"}, 0},
    {"abs", filter_abs, NULL, {NULL}, 0},
};

const hr_jinja_filter *hr_jinja_find_filter(const char *name)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        if (strcmp(filters[i].name, name) == 0)
            return &filters[i];
    }
    return NULL;
}

bool hr_jinja_apply_filter(hr_jinja_run *run, const hr_jinja_filter *filter, const hr_jinja_value *subject,
                           const hr_jinja_arguments *arguments, hr_jinja_value *out)
{
    hr_jinja_value values[MAX_PARAMETERS];
    size_t n = 0;
    bool ok;

    if (!hr_jinja_enter(run))
        return false;
    while (n < MAX_PARAMETERS && filter->parameters[n])
        n++;
    if (filter->call_raw)
        ok = filter->call_raw(run, subject, arguments, out);
    else
        ok = hr_jinja_bind(run, filter->name, arguments, filter->parameters, n, filter->n_required, values) &&
             filter->call(run, subject, values, out);
    run->depth--;
    return ok;
}
