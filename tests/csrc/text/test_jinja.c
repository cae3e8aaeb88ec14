/* The interpreter's refusals and limits. That it renders what jinja2 renders is tested in
 * tests/python/test_chat_template.py. */
#include "text/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Parses and renders with an empty conversation; *text is freed by the caller. */
static headrace_status run(const char *source, char **text, headrace_error *err)
{
    hr_chat_template *parsed = NULL;
    hr_chat_rendering rendering = {0};
    json_t *context = json_pack("{s:[], s:s}", "messages", "data", "user text");
    headrace_status status = hr_chat_template_parse("t", source, strlen(source), &parsed, err);

    if (text)
        *text = NULL;
    if (status == HEADRACE_OK)
        status = hr_chat_template_render(parsed, context, 0, &rendering, err);
    if (status == HEADRACE_OK && text)
        *text = hr_buffer_take(&rendering.text, NULL);
    hr_chat_rendering_deinit(&rendering);
    hr_chat_template_close(parsed);
    json_decref(context);
    return status;
}

static void expect_text(const char *source, const char *text)
{
    headrace_error err = {0};
    char *out;

    if (run(source, &out, &err) != HEADRACE_OK)
        fail_msg("%s: %s", source, err.message);
    assert_string_equal(out, text);
    free(out);
}

static void what_cannot_be_parsed_is_named_with_its_line(void **state)
{
    static const struct {
        const char *source, *part;
    } cases[] = {
        {"\n\n{% include 'x' %}", "line 3: {% include %} is not supported"},
        {"{% extends 'x' %}", "{% extends %} is not supported"},
        {"{% for a in b recursive %}{% endfor %}", "recursive loop"},
        {"{{ a|b }}", "the filter 'b' is not supported"},
        {"{{ a is b }}", "the test 'b' is not supported"},
        {"{{ f(*a) }}", "* in front of an argument"},
        {"{{ joiner() }}", "'joiner' is not supported"},
        {"a\n{% if x %}", "line 2: the template ends where {% endif %} is missing"},
        {"{% endfor %}", "'endfor' has no beginning here"},
        {"{{ 'a }}", "a string is not closed"},
        {"{{ '\\x4' }}", "a \\x escape needs 2 hex digits"},
        {"{{ (1 }}", "unexpected '}', expected ')'"},
        {"{{ 1", "the template ends inside a tag"},
        {"{{ 1) }}", "unexpected ')'"},
        {"{{ [1) }}", "unexpected ')', expected ']'"},
        {"{{ a ? b }}", "unexpected character '?'"},
        {"{{ 99999999999999999999 }}", "beyond 64 bits"},
        {"{{ }}", "expected an expression, found the end of the tag"},
        {"{# a", "a comment is not closed"},
        {"{% raw %} a", "{% endraw %} is missing"},
        {"{% break %}", "belong inside a loop"},
        {"{% set true = 1 %}", "cannot assign to true"},
        {"{% macro f(a=1, b) %}{% endmacro %}", "without default"},
        {"{{ f(a=1, 2) }}", "positional argument follows"},
        {"{{ a.b c }}", "expected the end of the tag, found c"},
        {"\xff", "not valid UTF-8 at byte 0"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        headrace_error err = {0};

        assert_int_equal(run(cases[i].source, NULL, &err), HEADRACE_E_TEMPLATE);
        if (!strstr(err.message, cases[i].part))
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].source, err.message, cases[i].part);
    }
}

static void what_fails_while_running_is_named_with_its_line(void **state)
{
    static const struct {
        const char *source, *part;
    } cases[] = {
        {"\n{{ raise_exception('roles must alternate') }}", "chat template t, line 2: roles must alternate"},
        {"{{ missing.x }}", "'missing' is undefined (read of .x)"},
        {"{{ missing|tojson }}", "Undefined is not JSON serializable"},
        {"{{ 1 // 0 }}", "division by zero"},
        {"{{ 9223372036854775807 + 1 }}", "beyond 64 bits"},
        {"{{ 'a' + 1 }}", "unsupported operand types for +: 'str' and 'int'"},
        {"{{ 1 < 'a' }}", "'int' and 'str' have no order"},
        {"{{ [].append(1) }}", "'append' is undefined or not supported"},
        {"{{ 'x'.encode() }}", "'encode' is undefined or not supported"},
        {"{{ 'a'|replace('b') }}", "replace needs a value for 'new'"},
        {"{{ 'a'|trim(x=1) }}", "trim has no parameter 'x'"},
        {"{{ ''.__class__.__mro__ }}", "'__class__' is undefined"},
        {"{% for a in 5 %}{% endfor %}", "'int' object is not iterable"},
        {"{% set x.y = 1 %}", "'x' is not a namespace"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        headrace_error err = {0};

        assert_int_equal(run(cases[i].source, NULL, &err), HEADRACE_E_TEMPLATE);
        if (!strstr(err.message, cases[i].part))
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].source, err.message, cases[i].part);
    }
}

static void a_template_that_does_not_end_or_grows_without_bound_is_stopped(void **state)
{
    static const struct {
        const char *source, *part;
    } cases[] = {
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "levels deep"},
        {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "M"},
        {"{% set n = namespace(t='xxxxxxxxxxxxxxxx') %}{% for a in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}",
         "MiB"},
        {"{{ 'x' * 999999999 }}", "MiB"},
        {"{{ [1] * 999999999 }}", "a list of more than"},
        {"{% set n = namespace(t=[1]) %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
         "a list of more than"},
        {"{% set n = namespace(t=[]) %}{% for a in range(2000) %}{% set n.t = [n.t] %}{% endfor %}{{ n.t }}",
         "levels deep"},
        {"{{ range(100001) }}", "a range of more than"},
        {"{{ 'abc'|replace('', 'x' * 30000000) }}", "MiB"},
        {"{{ 2 ** 64 }}", "beyond 64 bits"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        headrace_error err = {0};

        assert_int_equal(run(cases[i].source, NULL, &err), HEADRACE_E_TEMPLATE);
        if (!strstr(err.message, cases[i].part) && !strstr(err.message, "more than"))
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].source, err.message, cases[i].part);
    }
}

static void nesting_is_limited_while_parsing(void **state)
{
    char source[5000];
    headrace_error err = {0};

    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        const char *piece = kind == 0 ? "[" : kind == 1 ? "{% if 1 %}" : "- ";
        size_t n = (size_t)snprintf(source, sizeof source, "%s", kind == 1 ? "" : "{{ ");

        for (int i = 0; i < 450; i++)
            n += (size_t)snprintf(source + n, sizeof source - n, "%s", piece);
        (void)snprintf(source + n, sizeof source - n, "%s", kind == 2 ? "1 }}" : "");
        assert_int_equal(run(source, NULL, &err), HEADRACE_E_TEMPLATE);
        assert_non_null(strstr(err.message, kind == 0 ? "brackets inside each other" : "levels deep"));
    }
}

static void white_space_is_cut_as_trim_blocks_and_lstrip_blocks_say(void **state)
{
    (void)state;
    expect_text("  {% if 1 %}\n  a\n  {% endif %}\nb\n", "  a\nb");
    expect_text("  {%+ if 1 %}\n  a\n  {%- endif %}\n\nb\n\n", "    a\nb\n");
    expect_text("a {{- 1 -}} b {{ 2 }}\nc", "a1b 2\nc");
    expect_text("a\n  {# note #}\nb {#- x -#} c", "a\nbc");
    expect_text("{% raw %}{{ x }}{% endraw %}", "{{ x }}");
    expect_text("a\r\nb\rc", "a\nb\nc");
}

static void the_date_is_the_one_that_was_given(void **state)
{
    (void)state;
    expect_text("{{ strftime_now('%Y') }}", "1970");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_parsed_is_named_with_its_line),
        cmocka_unit_test(what_fails_while_running_is_named_with_its_line),
        cmocka_unit_test(a_template_that_does_not_end_or_grows_without_bound_is_stopped),
        cmocka_unit_test(nesting_is_limited_while_parsing),
        cmocka_unit_test(white_space_is_cut_as_trim_blocks_and_lstrip_blocks_say),
        cmocka_unit_test(the_date_is_the_one_that_was_given),
    };

    (void)setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
