/* Encoding with the embedded model's tokenizer: its own golden prompts, ranges, invalid text, threads. */
#include "tiny_tokenizer.h"

#include "base/buffer.h"

#include <jansson.h>
#include <pthread.h>

static hr_tokenizer *tiny;

static int open_all(void **state)
{
    (void)state;
    tiny = open_tiny();
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    hr_tokenizer_close(tiny);
    return 0;
}

typedef struct ids {
    int32_t *at;
    size_t n;
} ids;

static ids encode(const hr_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags)
{
    headrace_error err = {0};
    ids out;

    if (hr_tokenizer_encode(tokenizer, text, len, flags, &out.at, &out.n, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return out;
}

static void assert_same(ids got, ids expected)
{
    assert_int_equal(got.n, expected.n);
    assert_memory_equal(got.at, expected.at, got.n * sizeof *got.at);
    free(got.at);
    free(expected.at);
}

static void the_golden_prompts_have_their_ids(void **state)
{
    json_error_t error;
    json_t *root = json_load_file(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny/expected_greedy.json", 0, &error);
    json_t *cases = json_object_get(root, "cases");

    (void)state;
    assert_true(json_array_size(cases) > 5);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *prompt = json_object_get(json_array_get(cases, i), "prompt");
        json_t *expected = json_object_get(json_array_get(cases, i), "prompt_ids");
        ids got = encode(tiny, json_string_value(prompt), json_string_length(prompt), HEADRACE_ENCODE_SPECIAL);

        assert_int_equal(got.n, json_array_size(expected));
        for (size_t k = 0; k < got.n; k++)
            assert_int_equal(got.at[k], json_integer_value(json_array_get(expected, k)));
        free(got.at);
    }
    json_decref(root);
}

static void flags_choose_bos_and_special_tokens(void **state)
{
    static const char text[] = "<|im_end|>";
    ids special = encode(tiny, text, strlen(text), HEADRACE_ENCODE_SPECIAL | HEADRACE_ENCODE_BOS);
    ids plain = encode(tiny, text, strlen(text), 0);
    ids nothing = encode(tiny, NULL, 0, HEADRACE_ENCODE_BOS);

    (void)state;
    assert_int_equal(special.n, 2);
    assert_int_equal(special.at[0], 1);
    assert_int_equal(special.at[1], 7);
    assert_true(plain.n > 1);
    for (size_t i = 0; i < plain.n; i++)
        assert_int_not_equal(plain.at[i], 7);
    assert_int_equal(nothing.n, 1);
    assert_int_equal(hr_tokenizer_bos(tiny), 1);
    assert_int_equal(hr_tokenizer_eos(tiny), 7);
    assert_int_equal(hr_tokenizer_find_special(tiny, "<|im_start|>", 12), 6);
    assert_int_equal(hr_tokenizer_find_special(tiny, "<|im_start|", 11), -1);
    assert_int_equal(hr_tokenizer_find_special(tiny, "Hello", 5), -1);
    free(special.at);
    free(plain.at);
    free(nothing.at);
}

static void unknown_flags_are_refused(void **state)
{
    headrace_error err = {0};
    int32_t *at;
    size_t n;

    (void)state;
    assert_int_equal(hr_tokenizer_encode(tiny, "x", 1, 4, &at, &n, &err), HEADRACE_E_ARGUMENT);
    assert_string_equal(err.param, "flags");
}

static void invalid_bytes_are_read_as_replacement_characters(void **state)
{
    static const struct {
        const char *text, *same_as;
    } cases[] = {
        {"a\xFF"
         "b",
         "a\xEF\xBF\xBD"
         "b"},
        {"\xE2\x82", "\xEF\xBF\xBD"},
        {"\xE2\x28\xA1", "\xEF\xBF\xBD(\xEF\xBF\xBD"},
        {"\xF0\x9F\x98x\xC0\xAF", "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, /* a surrogate */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_same(encode(tiny, cases[i].text, strlen(cases[i].text), 0),
                    encode(tiny, cases[i].same_as, strlen(cases[i].same_as), 0));
}

/* parts: texts marked by their first character, '+' may hold special tokens, '-' may not. */
static ids encode_parts(const char *const *parts)
{
    hr_buffer text = {0};
    hr_text_range ranges[8];
    headrace_error err = {0};
    size_t n = 0;
    ids out;

    for (; parts[n]; n++) {
        hr_buffer_add_text(&text, parts[n] + 1);
        ranges[n] = (hr_text_range){.len = strlen(parts[n]) - 1, .parse_special = parts[n][0] == '+'};
    }
    if (hr_tokenizer_encode_ranges(tiny, text.at ? text.at : "", ranges, n, &out.at, &out.n, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    hr_buffer_deinit(&text);
    return out;
}

static void ranges_without_special_text_equal_the_whole(void **state)
{
    static const char *const parts[] = {
        "+<|startoftext|><|im_start|>us", "+er\n", "-Hel", "-lo  wor", "-", "-ld 12", "+34 <|im_end|>\n", NULL};
    static const char whole[] = "<|startoftext|><|im_start|>user\nHello  world 1234 <|im_end|>\n";

    (void)state;
    assert_same(encode_parts(parts), encode(tiny, whole, strlen(whole), HEADRACE_ENCODE_SPECIAL));
}

static void a_special_spelling_counts_only_inside_template_text(void **state)
{
    static const struct {
        const char *parts[5];
        int n_special; /* how often id 7 comes out */
    } cases[] = {
        {{"+<|im_end|>"}, 1},
        {{"-<|im_end|>"}, 0},
        {{"+<|im_", "+end|>"}, 1}, /* template text in two pieces is template text */
        {{"+<|im_", "-end|>"}, 0},
        {{"-<|im_", "+end|>"}, 0},
        {{"+<|im_end|>", "-<|im_end|>", "+<|im_end|>"}, 2},
        {{"+<|im", "-_", "+end|>"}, 0},
        {{"+<|im", "-", "+_end|>"}, 0}, /* an empty message still parts the two */
        {{"-<|im_end|", "+><|im_end|>"}, 1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ids got = encode_parts(cases[i].parts);
        int n = 0;

        for (size_t k = 0; k < got.n; k++)
            n += got.at[k] == 7;
        assert_int_equal(n, cases[i].n_special);
        free(got.at);
    }
}

static void an_unfinished_character_does_not_reach_across_ranges(void **state)
{
    static const char *const parts[] = {"-\xE2\x82", "-\xAC", NULL};
    static const char same[] = "\xEF\xBF\xBD\xEF\xBF\xBD";

    (void)state;
    assert_same(encode_parts(parts), encode(tiny, same, strlen(same), 0));
}

static void a_text_too_long_is_refused_before_it_is_read(void **state)
{
    static const hr_text_range range = {.len = (size_t)INT32_MAX + 1};
    headrace_error err = {0};
    int32_t *at;
    size_t n;

    (void)state;
    assert_int_equal(hr_tokenizer_encode_ranges(tiny, "", &range, 1, &at, &n, &err), HEADRACE_E_ARGUMENT);
}

static void every_byte_string_comes_back(void **state)
{
    static const char text[] = "naïve 日本 👨‍👩‍👧 \x01\x7F\t\r\n   end";
    ids got = encode(tiny, text, strlen(text), 0);
    hr_buffer joined = {0};

    (void)state;
    for (size_t i = 0; i < got.n; i++) {
        const char *bytes;
        size_t len;

        assert_true(hr_tokenizer_bytes(tiny, got.at[i], &bytes, &len, NULL));
        hr_buffer_add(&joined, bytes, len);
    }
    assert_string_equal(joined.at, text);
    hr_buffer_deinit(&joined);
    free(got.at);
}

/* ---------------------------------------------------------------- threads */

enum { N_THREADS = 4, N_TEXTS = 50 };

static void *encode_many(void *argument)
{
    size_t *n_wrong = argument;

    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N_TEXTS; i++) {
            char text[200], again[200];
            ids a, b;

            (void)snprintf(text, sizeof text, "word%d and %d more, <|im_end|> %*s.", i, i * 7919, i, "x");
            (void)snprintf(again, sizeof again, "%s", text);
            a = encode(tiny, text, strlen(text), HEADRACE_ENCODE_SPECIAL);
            b = encode(tiny, again, strlen(again), HEADRACE_ENCODE_SPECIAL);
            *n_wrong += a.n != b.n || memcmp(a.at, b.at, a.n * sizeof *a.at) != 0;
            free(a.at);
            free(b.at);
        }
    }
    return NULL;
}

static void many_threads_may_encode_at_once(void **state)
{
    pthread_t threads[N_THREADS];
    size_t n_wrong[N_THREADS] = {0};

    (void)state;
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &n_wrong[i]), 0);
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(n_wrong[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_golden_prompts_have_their_ids),
        cmocka_unit_test(flags_choose_bos_and_special_tokens),
        cmocka_unit_test(unknown_flags_are_refused),
        cmocka_unit_test(invalid_bytes_are_read_as_replacement_characters),
        cmocka_unit_test(ranges_without_special_text_equal_the_whole),
        cmocka_unit_test(a_special_spelling_counts_only_inside_template_text),
        cmocka_unit_test(an_unfinished_character_does_not_reach_across_ranges),
        cmocka_unit_test(a_text_too_long_is_refused_before_it_is_read),
        cmocka_unit_test(every_byte_string_comes_back),
        cmocka_unit_test(many_threads_may_encode_at_once),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
