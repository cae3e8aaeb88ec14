/* The detokenizer, one byte a token: where a text is cut must never matter. */
#include "tiny_tokenizer.h"

#include "base/rng.h"
#include "base/utf8.h"
#include "text/detokenize.h"

static hr_tokenizer *tiny;
static int32_t ids_of_bytes[256];

static int open_all(void **state)
{
    (void)state;
    tiny = open_tiny();
    for (int byte = 0; byte < 256; byte++)
        ids_of_bytes[byte] = byte_id(tiny, (char)byte);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    hr_tokenizer_close(tiny);
    return 0;
}

static void characters_come_out_whole_and_broken_ones_as_one_replacement(void **state)
{
    /* shown: what is released after each byte, parts ended by '|'; after the last one comes the end */
    static const struct {
        const char *bytes, *shown;
    } cases[] = {
        {"ab", "a|b||"},
        {"é", "|é||"},
        {"😀", "|||😀||"},
        {"\xF0\x9F\x98", "|||\xEF\xBF\xBD|"},
        {"\xF0\x9F"
         "a",
         "||\xEF\xBF\xBD"
         "a||"},
        {"\xFF"
         "a",
         "\xEF\xBF\xBD|a||"},
        {"\x80\x80", "\xEF\xBF\xBD|\xEF\xBF\xBD||"},
        {"\xE2\xE2\x82\xAC", "|\xEF\xBF\xBD||€||"},
        {"\xED\xA0\x80", "|\xEF\xBF\xBD\xEF\xBF\xBD|\xEF\xBF\xBD||"},
        {"\xF4\x90", "|\xEF\xBF\xBD\xEF\xBF\xBD||"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *at = cases[i].shown;
        size_t n = strlen(cases[i].bytes);
        hr_detokenizer d;

        hr_detokenizer_init(&d, tiny, true, false, NULL, 0);
        for (size_t k = 0; k <= n; k++) {
            size_t len = strcspn(at, "|");

            if (k < n)
                assert_false(hr_detokenizer_add(&d, ids_of_bytes[(unsigned char)cases[i].bytes[k]], true));
            else
                hr_detokenizer_finish(&d);
            assert_int_equal(d.shown.len, len);
            if (len > 0)
                assert_memory_equal(d.shown.at, at, len);
            hr_detokenizer_taken(&d);
            at += len + 1;
        }
        assert_int_equal(*at, '\0');
        hr_detokenizer_deinit(&d);
    }
}

static void special_tokens_are_text_or_nothing(void **state)
{
    static const int32_t ids[] = {1, 6, 7, 2040, -1, TINY_SIZE, INT32_MAX};

    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        hr_detokenizer d;

        hr_detokenizer_init(&d, tiny, keep, false, NULL, 0);
        (void)hr_detokenizer_add(&d, ids_of_bytes[0xC3], true);
        for (size_t i = 0; i < 3; i++)
            (void)hr_detokenizer_add(&d, ids[i], true);
        for (size_t i = 4; i < sizeof ids / sizeof ids[0]; i++)
            (void)hr_detokenizer_add(&d, ids[i], true); /* no such ids: nothing */
        (void)hr_detokenizer_add(&d, ids_of_bytes[0xA9], true);
        hr_detokenizer_finish(&d);
        assert_string_equal(d.shown.at, keep ? "\xEF\xBF\xBD<|startoftext|><|im_start|><|im_end|>\xEF\xBF\xBD" : "é");
        hr_detokenizer_deinit(&d);
    }
}

static void stop_strings_are_found_across_tokens_and_never_shown_by_halves(void **state)
{
    static const struct {
        const char *text, *stop[4];
        int n_unchecked;
        bool include;
        const char *shown; /* all of it */
        int hit;
    } cases[] = {
        {"hello END more", {"END"}, 0, false, "hello ", 0},
        {"hello END more", {"END"}, 0, true, "hello END", 0},
        {"hello EN more", {"END"}, 0, false, "hello EN more", -1},
        {"hello EN", {"END"}, 0, false, "hello EN", -1},
        {"aaab", {"aab"}, 0, false, "a", 0},
        {"abcd", {"abcd", "bc"}, 0, false, "a", 1}, /* the one that ends first */
        {"xab", {"b", "ab"}, 0, false, "x", 1},     /* of two that end together, the one that begins first */
        {"xab", {"ab", "b"}, 0, true, "xab", 0},
        {"stop", {""}, 0, false, "stop", -1},
        {"a日本b", {"本"}, 0, false, "a日", 0},
        {"x\xFFy", {"\xEF\xBF\xBD"}, 0, false, "x", 0},
        {"ENDxEND", {"END"}, 3, false, "ENDx", 0}, /* ended too early: text */
        {"ENDxEND", {"END"}, 2, false, "", 0},     /* began too early, ended in time */
        {"aENDEND", {"ENDE"}, 5, false, "aENDEND", -1},
        {"abab", {"ab"}, 2, false, "ab", 0},
        {"END", {"END"}, 9, false, "END", -1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_detokenizer d;
        uint32_t n_stop = 0;
        bool hit = false;

        while (cases[i].stop[n_stop])
            n_stop++;
        hr_detokenizer_init(&d, tiny, true, cases[i].include, cases[i].stop, n_stop);
        for (size_t k = 0; !hit && k < strlen(cases[i].text); k++)
            hit = hr_detokenizer_add(&d, ids_of_bytes[(unsigned char)cases[i].text[k]], (int)k >= cases[i].n_unchecked);
        if (!hit)
            hr_detokenizer_finish(&d);
        assert_int_equal(d.stop_hit, cases[i].hit);
        assert_string_equal(d.shown.at ? d.shown.at : "", cases[i].shown);
        hr_detokenizer_deinit(&d);
    }
}

/* The definition on the whole text: of all occurrences the one that ends first, then begins first. Its begin, or len.
 */
static size_t first_stop(const char *text, size_t len, const char *const *stop, uint32_t n_stop)
{
    for (size_t end = 1; end <= len; end++) {
        size_t longest = 0;

        for (uint32_t i = 0; i < n_stop; i++) {
            size_t n = strlen(stop[i]);

            if (n <= end && n > longest && memcmp(text + end - n, stop[i], n) == 0)
                longest = n;
        }
        if (longest)
            return end - longest;
    }
    return len;
}

static void what_is_shown_equals_the_definition_on_the_whole_text(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        char text[40], stops[3][6];
        const char *stop[3] = {stops[0], stops[1], stops[2]};
        hr_detokenizer d;
        size_t len = 1 + hr_rng_at(seed, 0) % 38, expected;
        bool hit = false;

        for (size_t i = 0; i < len; i++)
            text[i] = (char)('a' + hr_rng_at(seed, 1 + i) % 2);
        for (uint64_t s = 0; s < 3; s++) {
            size_t n = 2 + hr_rng_at(seed, 100 + s) % 4;

            for (size_t i = 0; i < n; i++)
                stops[s][i] = (char)('a' + hr_rng_at(seed, 200 + 10 * s + i) % 2);
            stops[s][n] = '\0';
        }
        expected = first_stop(text, len, stop, 3);
        hr_detokenizer_init(&d, tiny, true, false, stop, 3);
        for (size_t i = 0; !hit && i < len; i++) {
            hit = hr_detokenizer_add(&d, ids_of_bytes[(unsigned char)text[i]], true);
            assert_true(d.shown.len <= expected); /* never more than may be kept */
        }
        if (!hit)
            hr_detokenizer_finish(&d);
        assert_int_equal(hit, expected < len);
        assert_int_equal(d.shown.len, expected);
        assert_memory_equal(d.shown.len ? d.shown.at : text, text, expected);
        hr_detokenizer_deinit(&d);
    }
}

static void an_emoji_of_several_tokens_appears_once(void **state)
{
    static const char text[] = "ok 😀!";
    headrace_error err = {0};
    hr_detokenizer d;
    int32_t *ids;
    size_t n;

    (void)state;
    assert_int_equal(hr_tokenizer_encode(tiny, text, strlen(text), 0, &ids, &n, &err), HEADRACE_OK);
    hr_detokenizer_init(&d, tiny, true, false, NULL, 0);
    for (size_t i = 0; i < n; i++) {
        (void)hr_detokenizer_add(&d, ids[i], true);
        assert_true(!d.shown.at || hr_utf8_is_valid(d.shown.at, d.shown.len, NULL));
    }
    hr_detokenizer_finish(&d);
    assert_string_equal(d.shown.at, text);
    hr_detokenizer_deinit(&d);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_come_out_whole_and_broken_ones_as_one_replacement),
        cmocka_unit_test(special_tokens_are_text_or_nothing),
        cmocka_unit_test(stop_strings_are_found_across_tokens_and_never_shown_by_halves),
        cmocka_unit_test(what_is_shown_equals_the_definition_on_the_whole_text),
        cmocka_unit_test(an_emoji_of_several_tokens_appears_once),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
