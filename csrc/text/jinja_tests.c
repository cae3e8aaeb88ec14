/* The tests: value is [not] name(argument). */
#include "text/jinja_library.h"
#include "text/jinja_value.h"

#include <string.h>

struct hr_jinja_test {
    const char *name;
    bool (*call)(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value *argument, bool *out);
    bool has_argument;
};

static bool test_defined(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind != HR_JINJA_VALUE_UNDEFINED;
    return hr_jinja_step(run, 1);
}

static bool test_undefined(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_UNDEFINED;
    return hr_jinja_step(run, 1);
}

static bool test_none(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_NONE;
    return hr_jinja_step(run, 1);
}

static bool test_string(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_STRING;
    return hr_jinja_step(run, 1);
}

static bool test_mapping(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_DICT;
    return hr_jinja_step(run, 1);
}

static bool test_boolean(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_BOOL;
    return hr_jinja_step(run, 1);
}

static bool test_true(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_BOOL && s->as.boolean;
    return hr_jinja_step(run, 1);
}

static bool test_false(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_BOOL && !s->as.boolean;
    return hr_jinja_step(run, 1);
}

static bool test_integer(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_INT;
    return hr_jinja_step(run, 1);
}

static bool test_float(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_FLOAT;
    return hr_jinja_step(run, 1);
}

static bool test_number(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind >= HR_JINJA_VALUE_BOOL && s->kind <= HR_JINJA_VALUE_FLOAT;
    return hr_jinja_step(run, 1);
}

static bool test_iterable(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = hr_jinja_is_iterable(s);
    return hr_jinja_step(run, 1);
}

/* What has a length and takes an index; Jinja counts dicts and what is undefined. */
static bool test_sequence(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_UNDEFINED || s->kind == HR_JINJA_VALUE_STRING || s->kind == HR_JINJA_VALUE_DICT ||
           (s->kind == HR_JINJA_VALUE_SEQUENCE && s->as.sequence->flavour <= HR_JINJA_FLAVOUR_RANGE);
    return hr_jinja_step(run, 1);
}

static bool test_callable(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    (void)a;
    *out = s->kind == HR_JINJA_VALUE_UNDEFINED || /* it can be called, to fail */
           s->kind == HR_JINJA_VALUE_MACRO || s->kind == HR_JINJA_VALUE_FUNCTION || s->kind == HR_JINJA_VALUE_METHOD;
    return hr_jinja_step(run, 1);
}

static bool test_odd(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    const hr_jinja_value two = hr_jinja_int(2), one = hr_jinja_int(1);
    hr_jinja_value rest;

    (void)a;
    return hr_jinja_binary(run, '%', s, &two, &rest) && hr_jinja_equal(run, &rest, &one, out);
}

static bool test_divisible(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    const hr_jinja_value zero = hr_jinja_int(0);
    hr_jinja_value rest;

    return hr_jinja_binary(run, '%', s, a, &rest) && hr_jinja_equal(run, &rest, &zero, out);
}

static bool test_even(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    const hr_jinja_value two = hr_jinja_int(2);

    (void)a;
    return test_divisible(run, s, &two, out);
}

static bool test_equal(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    return hr_jinja_equal(run, s, a, out);
}

static bool test_not_equal(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    bool ok = hr_jinja_equal(run, s, a, out);

    *out = !*out;
    return ok;
}

static bool test_greater(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    int order;
    bool ok = hr_jinja_compare(run, s, a, &order);

    *out = order == 1;
    return ok;
}

static bool test_less(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    int order;
    bool ok = hr_jinja_compare(run, s, a, &order);

    *out = order == -1;
    return ok;
}

static bool test_at_least(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    int order;
    bool ok = hr_jinja_compare(run, s, a, &order);

    *out = order == 0 || order == 1;
    return ok;
}

static bool test_at_most(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    int order;
    bool ok = hr_jinja_compare(run, s, a, &order);

    *out = order == 0 || order == -1;
    return ok;
}

static bool test_in(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    return hr_jinja_contains(run, a, s, out);
}

/* Identity, for the values where templates use it: none, true, false, and one and the same object. */
static bool test_same(hr_jinja_run *run, const hr_jinja_value *s, const hr_jinja_value *a, bool *out)
{
    *out = false;
    if (s->kind != a->kind)
        return true;
    if (s->kind == HR_JINJA_VALUE_SEQUENCE || s->kind == HR_JINJA_VALUE_DICT || s->kind == HR_JINJA_VALUE_NAMESPACE) {
        *out = s->as.sequence == a->as.sequence || (void *)s->as.dict == (void *)a->as.dict;
        return true;
    }
    return hr_jinja_equal(run, s, a, out);
}

static const hr_jinja_test tests[] = {
    {"defined", test_defined, false},
    {"undefined", test_undefined, false},
    {"none", test_none, false},
    {"string", test_string, false},
    {"mapping", test_mapping, false},
    {"boolean", test_boolean, false},
    {"true", test_true, false},
    {"false", test_false, false},
    {"integer", test_integer, false},
    {"float", test_float, false},
    {"number", test_number, false},
    {"iterable", test_iterable, false},
    {"sequence", test_sequence, false},
    {"callable", test_callable, false},
    {"odd", test_odd, false},
    {"even", test_even, false},
    {"divisibleby", test_divisible, true},
    {"equalto", test_equal, true},
    {"eq", test_equal, true},
    {"ne", test_not_equal, true},
    {"gt", test_greater, true},
    {"greaterthan", test_greater, true},
    {"lt", test_less, true},
    {"lessthan", test_less, true},
    {"ge", test_at_least, true},
    {"le", test_at_most, true},
    {"in", test_in, true},
    {"sameas", test_same, true},
    {"==", test_equal, true}, /* by these names only in select() and its kin */
    {"!=", test_not_equal, true},
    {">", test_greater, true},
    {"<", test_less, true},
    {">=", test_at_least, true},
    {"<=", test_at_most, true},
};

const hr_jinja_test *hr_jinja_find_test(const char *name)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (strcmp(tests[i].name, name) == 0)
            return &tests[i];
    }
    return NULL;
}

bool hr_jinja_apply_test(hr_jinja_run *run, const hr_jinja_test *test, const hr_jinja_value *subject,
                         const hr_jinja_arguments *arguments, bool *out)
{
    static const char *const names[] = {"other"};
    hr_jinja_value argument;
    bool ok;

    *out = false;
    if (!hr_jinja_enter(run))
        return false;
    ok = hr_jinja_bind(run, test->name, arguments, names, test->has_argument, test->has_argument, &argument) &&
         test->call(run, subject, &argument, out);
    run->depth--;
    return ok;
}
