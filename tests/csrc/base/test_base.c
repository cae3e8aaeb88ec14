/* The base room: errors, arenas, buffers, JSON writing (read back by Jansson), UTF-8, files. */
#include "base/arena.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/status.h"
#include "base/utf8.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static headrace_status inner(headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MODEL, "expected %d dimensions, file has %d", 2, 3);
}

static headrace_status outer(headrace_error *err)
{
    HR_TRY(inner(err), "layer %d", 7);
    return HEADRACE_OK;
}

static void a_message_grows_outwards(void **state)
{
    headrace_error err = {0};

    (void)state;
    assert_int_equal(outer(&err), HEADRACE_E_MODEL);
    assert_string_equal(err.message, "layer 7: expected 2 dimensions, file has 3");
    assert_int_equal(outer(NULL), HEADRACE_E_MODEL);
}

static void a_long_message_is_cut_and_terminated(void **state)
{
    headrace_error err = {0};
    char text[3000];

    (void)state;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    (void)hr_fail(&err, HEADRACE_E_IO, "%s", text);
    (void)hr_prefix(&err, HEADRACE_E_IO, "%s", text);
    (void)hr_prefix(&err, HEADRACE_E_IO, "here");
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_memory_equal(err.message, "here: xxx", 9);
}

static void arena_memory_is_zero_aligned_and_separate(void **state)
{
    hr_arena arena = {0};
    unsigned char *blocks[200];

    (void)state;
    for (size_t i = 0; i < 200; i++) {
        blocks[i] = hr_arena_alloc(&arena, i * 997 % 40000);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        for (size_t k = 0; k < i * 997 % 40000; k++)
            assert_int_equal(blocks[i][k], 0);
        memset(blocks[i], (int)i, i * 997 % 40000);
    }
    for (size_t i = 0; i < 200; i++) {
        for (size_t k = 0; k < i * 997 % 40000; k++)
            assert_int_equal(blocks[i][k], (unsigned char)i);
    }
    assert_null(hr_arena_calloc(&arena, SIZE_MAX / 2, 3));
    assert_null(hr_arena_alloc(&arena, SIZE_MAX - 10));
    assert_string_equal(hr_arena_strndup(&arena, "abcdef", 3), "abc");
    hr_arena_deinit(&arena);
}

/* Whatever bytes go in, Jansson reads the string back; what was valid UTF-8 comes back equal. */
static void json_strings_are_read_back_by_jansson(void **state)
{
    static const char *const texts[] = {
        "", "plain", "a\"b\\c/d", "\x01\x1f\t\r\n\b\f\x7f", "h\xc3\xa9llo \xf0\x9f\x98\x80", "\xe2\x80\xa8"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        hr_buffer out = {0};
        json_t *value;

        hr_json_string(&out, texts[i], strlen(texts[i]));
        value = json_loadb(out.at, out.len, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        assert_string_equal(json_string_value(value), texts[i]);
        json_decref(value);
        hr_buffer_deinit(&out);
    }
}

static void invalid_utf8_becomes_replacement_characters(void **state)
{
    static const struct {
        const char *bytes, *json;
    } cases[] = {
        {"a\xff"
         "b",
         "\"a\xEF\xBF\xBD"
         "b\""},
        {"\xc3", "\"\xEF\xBF\xBD\""},
        {"\xe2\x82", "\"\xEF\xBF\xBD\""},                             /* one maximal prefix, one replacement */
        {"\xed\xa0\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}, /* a surrogate: three */
        {"\xc0\xaf", "\"\xEF\xBF\xBD\xEF\xBF\xBD\""},                 /* an overlong slash */
        {"\xf4\x90\x80\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}, /* beyond U+10FFFF */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_buffer out = {0};

        hr_json_string(&out, cases[i].bytes, strlen(cases[i].bytes));
        assert_string_equal(out.at, cases[i].json);
        hr_buffer_deinit(&out);
    }
}

static void numbers_read_back_equal(void **state)
{
    static const double values[] = {0, -0.0, 1, 0.1, 1e300, 5e-324, -123456.789, 3.0000000000000004};

    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        hr_buffer out = {0};

        hr_json_double(&out, values[i]);
        assert_true(strtod(out.at, NULL) == values[i]);
        hr_buffer_clear(&out);
        hr_json_float(&out, (float)values[i]);
        if ((float)values[i] - (float)values[i] == 0)
            assert_true(strtof(out.at, NULL) == (float)values[i]);
        else
            assert_string_equal(out.at, "null"); /* 1e300 has no float */
        hr_buffer_deinit(&out);
    }
}

static void an_unfinished_character_is_held_back(void **state)
{
    static const struct {
        const char *bytes;
        size_t held;
    } cases[] = {{"", 0},
                 {"abc", 0},
                 {"ab\xc3", 1},
                 {"\xe2", 1},
                 {"\xe2\x82", 2},
                 {"\xe2\x82\xac", 0},
                 {"\xf0\x9f\x98", 3},
                 {"\xf0\x9f", 2},
                 {"\xf0\x9f\x98\x80", 0},
                 {"\xff", 0},
                 {"\x80", 0},
                 {"\xc0", 0},
                 {"\xe0\x80", 0},
                 {"\xed\xa0", 0}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(hr_utf8_unfinished(cases[i].bytes, strlen(cases[i].bytes)), cases[i].held);
}

static void every_code_point_survives(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        char text[4];
        bool is_valid;
        size_t n;

        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        n = hr_utf8_encode(c, text);
        assert_int_equal(hr_utf8_step(text, n, &is_valid), n);
        assert_true(is_valid);
        assert_int_equal(hr_utf8_decode(text, n), c);
    }
}

static void what_is_not_a_regular_file_is_refused(void **state)
{
    char folder[] = "/tmp/headrace-test-XXXXXX", path[64];
    headrace_error err = {0};
    hr_mapped mapped;
    char *text;
    size_t len;

    (void)state;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(hr_file_map(folder, &mapped, &err), HEADRACE_E_IO);
    (void)snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(hr_file_map(path, &mapped, &err), HEADRACE_E_IO); /* and does not wait for a writer */
    assert_non_null(strstr(err.message, "not a regular file"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(hr_file_read(path, 10, &text, &len, &err), HEADRACE_E_IO);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_grows_outwards),
        cmocka_unit_test(a_long_message_is_cut_and_terminated),
        cmocka_unit_test(arena_memory_is_zero_aligned_and_separate),
        cmocka_unit_test(json_strings_are_read_back_by_jansson),
        cmocka_unit_test(invalid_utf8_becomes_replacement_characters),
        cmocka_unit_test(numbers_read_back_equal),
        cmocka_unit_test(an_unfinished_character_is_held_back),
        cmocka_unit_test(every_code_point_survives),
        cmocka_unit_test(what_is_not_a_regular_file_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
