/* Arguments to parameters, and the five global functions that templates may call. */
#include "text/jinja_value.h"

#include <string.h>
#include <time.h>

bool hr_jinja_bind(hr_jinja_run *run, const char *what, const hr_jinja_arguments *arguments, const char *const *names,
                   size_t n_names, size_t n_required, hr_jinja_value *values)
{
    if (arguments->n_positional > n_names)
        return hr_jinja_fail(run, "TypeError: %s takes at most %zu arguments (%zu given)", what, n_names,
                             arguments->n_positional);
    for (size_t i = 0; i < n_names; i++)
        values[i] = i < arguments->n_positional ? arguments->positional[i] : (hr_jinja_value){0};
    for (size_t k = 0; k < arguments->n_keywords; k++) {
        size_t i = 0;

        while (i < n_names && strcmp(names[i], arguments->keywords[k]) != 0)
            i++;
        if (i == n_names)
            return hr_jinja_fail(run, "TypeError: %s has no parameter '%s'", what, arguments->keywords[k]);
        if (values[i].kind != HR_JINJA_VALUE_ABSENT)
            return hr_jinja_fail(run, "TypeError: %s got two values for '%s'", what, names[i]);
        values[i] = arguments->keyword_values[k];
    }
    for (size_t i = 0; i < n_required; i++) {
        if (values[i].kind == HR_JINJA_VALUE_ABSENT)
            return hr_jinja_fail(run, "TypeError: %s needs a value for '%s'", what, names[i]);
    }
    return true;
}

static bool call_range(hr_jinja_run *run, const hr_jinja_arguments *arguments, hr_jinja_value *out)
{
    int64_t part[3] = {0, 0, 1}, distance;
    uint64_t n = 0, step;

    if (arguments->n_keywords > 0 || arguments->n_positional == 0 || arguments->n_positional > 3)
        return hr_jinja_fail(run, "TypeError: range takes 1 to 3 arguments");
    for (size_t i = 0; i < arguments->n_positional; i++) {
        const hr_jinja_value *value = &arguments->positional[i];

        if (value->kind != HR_JINJA_VALUE_INT && value->kind != HR_JINJA_VALUE_BOOL)
            return hr_jinja_fail(run, "TypeError: '%s' object cannot be interpreted as an integer",
                                 hr_jinja_type_name(value));
        part[arguments->n_positional == 1 ? 1 : i] =
            value->kind == HR_JINJA_VALUE_INT ? value->as.integer : value->as.boolean;
    }
    if (part[2] == 0)
        return hr_jinja_fail(run, "ValueError: range() arg 3 must not be zero");
    if (__builtin_sub_overflow(part[2] > 0 ? part[1] : part[0], part[2] > 0 ? part[0] : part[1], &distance))
        distance = INT64_MAX;
    step = part[2] > 0 ? (uint64_t)part[2] : (uint64_t)0 - (uint64_t)part[2];
    if (distance > 0)
        n = ((uint64_t)distance - 1) / step + 1;
    if (n > HR_JINJA_MAX_RANGE)
        return hr_jinja_fail(run, "OverflowError: a range of more than %d numbers", HR_JINJA_MAX_RANGE);
    if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_RANGE, n, out))
        return false;
    for (uint64_t i = 0; i < n; i++)
        out->as.sequence->at[i] = hr_jinja_int(part[0] + (int64_t)i * part[2]);
    return true;
}

/* dict(...) and namespace(...): another dict's entries, then the keywords. */
static bool call_dict(hr_jinja_run *run, hr_jinja_value_kind kind, const hr_jinja_arguments *arguments,
                      hr_jinja_value *out)
{
    if (!hr_jinja_dict_new(run, kind, arguments->n_keywords, out))
        return false;
    if (arguments->n_positional > 1 ||
        (arguments->n_positional == 1 && arguments->positional[0].kind != HR_JINJA_VALUE_DICT))
        return hr_jinja_fail(run, "dict and namespace take one dict and keyword arguments");
    for (size_t i = 0; arguments->n_positional == 1 && i < arguments->positional[0].as.dict->n; i++) {
        const hr_jinja_dict *from = arguments->positional[0].as.dict;

        if (!hr_jinja_dict_set(run, out->as.dict, &from->keys[i], &from->values[i]))
            return false;
    }
    for (size_t i = 0; i < arguments->n_keywords; i++) {
        hr_jinja_value key = hr_jinja_text(arguments->keywords[i], strlen(arguments->keywords[i]), false);

        if (!hr_jinja_dict_set(run, out->as.dict, &key, &arguments->keyword_values[i]))
            return false;
    }
    return true;
}

static bool call_raise_exception(hr_jinja_run *run, const hr_jinja_arguments *arguments)
{
    static const char *const names[] = {"message"};
    hr_jinja_value message = {0};

    if (!hr_jinja_bind(run, "raise_exception", arguments, names, 1, 1, &message) ||
        !hr_jinja_str(run, &message, &message))
        return false;
    return hr_jinja_fail(run, "%.*s", (int)(message.as.string.len < 700 ? message.as.string.len : 700),
                         message.as.string.at ? message.as.string.at : "");
}

static bool call_strftime_now(hr_jinja_run *run, const hr_jinja_arguments *arguments, hr_jinja_value *out)
{
    static const char *const names[] = {"format"};
    hr_jinja_value format = {0};
    const char *format_text;
    char text[1024];
    time_t now = run->date_us < 0 ? time(NULL) : (time_t)(run->date_us / 1000000);
    struct tm local;
    size_t n;

    if (!hr_jinja_bind(run, "strftime_now", arguments, names, 1, 1, &format))
        return false;
    if (format.kind != HR_JINJA_VALUE_STRING || format.as.string.len == 0 || format.as.string.len > 200 ||
        !localtime_r(&now, &local))
        return hr_jinja_fail(run, "strftime_now needs a format of 1 to 200 bytes");
    if (!hr_jinja_c_text(run, &format.as.string, &format_text))
        return false;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    n = strftime(text, sizeof text, format_text, &local); /* only reads `local` and writes at most sizeof text */
#pragma GCC diagnostic pop
    text[n] = '\0';
    return hr_jinja_literal(run, text, out);
}

bool hr_jinja_call_function(hr_jinja_run *run, hr_jinja_function function, const hr_jinja_arguments *arguments,
                            hr_jinja_value *out)
{
    switch (function) {
    case HR_JINJA_FUNCTION_RANGE:
        return call_range(run, arguments, out);
    case HR_JINJA_FUNCTION_NAMESPACE:
        return call_dict(run, HR_JINJA_VALUE_NAMESPACE, arguments, out);
    case HR_JINJA_FUNCTION_DICT:
        return call_dict(run, HR_JINJA_VALUE_DICT, arguments, out);
    case HR_JINJA_FUNCTION_RAISE_EXCEPTION:
        return call_raise_exception(run, arguments);
    case HR_JINJA_FUNCTION_STRFTIME_NOW:
        return call_strftime_now(run, arguments, out);
    }
    return hr_jinja_fail(run, "an unknown function");
}
