/* Splitting: the family's expression on text that is easy to get wrong, by JIT and by the interpreter; what is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "text/pretokenize.h"

#include <string.h>

static void split_as(const char *text, size_t len, const char *const *expected, bool use_jit)
{
    headrace_error err = {0};
    hr_splitter splitter;
    hr_split_walk walk;
    size_t at = 0, n;

    assert_int_equal(hr_splitter_init(&splitter, hr_splitter_lfm2, strlen(hr_splitter_lfm2), &err), HEADRACE_OK);
    if (!use_jit)
        splitter.is_jit = false;
    assert_int_equal(hr_split_walk_init(&walk, &splitter, &err), HEADRACE_OK);
    assert_int_equal(hr_split_begin(&walk, text, len, &err), HEADRACE_OK);
    for (size_t i = 0;; i++, at += n) {
        if (hr_split_next(&walk, &splitter, &n, &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
        if (n == 0)
            break;
        if (expected) {
            assert_non_null(expected[i]);
            assert_int_equal(n, strlen(expected[i]));
            assert_memory_equal(text + at, expected[i], n);
        }
    }
    assert_int_equal(at, len);
    hr_split_walk_deinit(&walk);
    hr_splitter_deinit(&splitter);
}

static void the_family_expression_splits_as_the_reference(void **state)
{
    static const struct {
        const char *text, *pieces[10];
    } cases[] = {
        {"", {NULL}},
        {"a   b", {"a", "  ", " b"}},
        {"Hello world", {"Hello", " world"}},
        {"12345", {"123", "45"}},
        {"I'M you'LL'ſx", {"I", "'M", " you", "'LL", "'ſ", "x"}},
        {"x!\r\n\n y", {"x", "!\r\n\n", " y"}},
        {"a \n \n  b", {"a", " \n \n", " ", " b"}},
        {"   ", {"   "}},
        {"½²Ⅷ٣", {"½²Ⅷ", "٣"}},
        {"\xC2\x85\xE3\x80\x80x", {"\xC2\x85", "\xE3\x80\x80x"}}, /* U+0085 and U+3000 are blanks */
        {"a \xE1\xA0\x8E!b", {"a", " \xE1\xA0\x8E!", "b"}},       /* U+180E is none */
        {"1\xF0\xB1\x8D\x90\xF0\xB1\x8D\x90.",
         {"1", "\xF0\xB1\x8D\x90\xF0\xB1\x8D\x90", "."}}, /* U+31350: Unicode 15 */
        {"x\xF0\x9E\x93\xB0\xF0\x9E\x93\xB1"
         "12",
         {"x",
          "\xF0\x9E\x93\xB0\xF0\x9E\x93\xB1"
          "1",
          "2"}}, /* digits of Unicode 15 */
        {"👨‍👩 ok", {"👨‍👩", " ok"}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        split_as(cases[i].text, strlen(cases[i].text), cases[i].pieces, true);
        split_as(cases[i].text, strlen(cases[i].text), cases[i].pieces, false);
    }
}

static void a_megabyte_run_is_no_trouble_with_or_without_jit(void **state)
{
    enum { LEN = 1000000 };
    static const char kinds[] = {' ', '\n', 'a', '1', '!', '\''};
    char *text = malloc(LEN);

    (void)state;
    assert_non_null(text);
    for (size_t k = 0; k < sizeof kinds; k++) {
        memset(text, kinds[k], LEN);
        split_as(text, LEN, NULL, true);
        split_as(text, LEN, NULL, false);
    }
    memset(text, ' ', LEN);
    text[LEN - 1] = 'x';
    split_as(text, LEN, NULL, true);
    split_as(text, LEN, NULL, false);
    free(text);
}

static void an_expression_outside_the_common_language_is_refused(void **state)
{
    static const char *const patterns[] = {
        "",         "(",       "a*",     "\\s*",   "^a",      "a$",
        "\\w+",     "\\bfoo",  "\\h",    "\\R",    "\\X",     "\\C",
        "\\p{Han}", "\\p{^L}", "[[a]b]", "[a&&b]", "a{,3}",   "a{2}+",
        "(?<=a)b",  "(?<n>a)", "(?m:a)", "\\1",    "\\x41",   "\\u0041",
        "\\",       "[",       "[]a]",   "[a",     "(?R)",    "(*LIMIT_MATCH=1)a",
        "\\p",      "\\pL",    "a|",     "(?s:.)", "\\Qa\\E", "[:alpha:",
    };
    static const char *const fine[] = {
        "a",
        ("'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| "
         "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"),
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{M}]*[\\p{Ll}\\p{Lo}]+|\\d+|\\.|.",
    };
    hr_splitter splitter;

    (void)state;
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        headrace_error err = {0};

        if (hr_splitter_init(&splitter, patterns[i], strlen(patterns[i]), &err) != HEADRACE_E_MODEL)
            fail_msg("accepted: %s", patterns[i]);
        assert_non_null(strstr(err.message, "splitting expression"));
    }
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        headrace_error err = {0};

        if (hr_splitter_init(&splitter, fine[i], strlen(fine[i]), &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
        hr_splitter_deinit(&splitter);
    }
}

static void an_expression_that_blows_up_ends_with_an_error(void **state)
{
    static const char pattern[] = "(a+)+[bc]";
    char text[64];

    (void)state;
    memset(text, 'a', sizeof text);
    for (int use_jit = 0; use_jit < 2; use_jit++) {
        headrace_error err = {0};
        hr_splitter splitter;
        hr_split_walk walk;
        size_t n;

        assert_int_equal(hr_splitter_init(&splitter, pattern, strlen(pattern), &err), HEADRACE_OK);
        splitter.is_jit = splitter.is_jit && use_jit;
        assert_int_equal(hr_split_walk_init(&walk, &splitter, &err), HEADRACE_OK);
        assert_int_equal(hr_split_begin(&walk, text, sizeof text, &err), HEADRACE_OK);
        assert_int_equal(hr_split_next(&walk, &splitter, &n, &err), HEADRACE_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "at byte 0 of 64"));
        hr_split_walk_deinit(&walk);
        hr_splitter_deinit(&splitter);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_family_expression_splits_as_the_reference),
        cmocka_unit_test(a_megabyte_run_is_no_trouble_with_or_without_jit),
        cmocka_unit_test(an_expression_outside_the_common_language_is_refused),
        cmocka_unit_test(an_expression_that_blows_up_ends_with_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
