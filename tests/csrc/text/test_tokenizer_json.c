/* Damaged and foreign tokenizer.json files: the embedded one with one thing changed; each is refused and the thing
 * named. */
#include "tiny_tokenizer.h"

#include <jansson.h>

static json_t *original;

static int open_all(void **state)
{
    json_error_t error;

    (void)state;
    original = json_load_file(TINY_PATH, 0, &error);
    return original ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    json_decref(original);
    return 0;
}

/* The parent of the last part of "a.b.3", and that part. */
static json_t *walk(json_t *at, const char *path, char last[64])
{
    for (const char *dot; (dot = strchr(path, '.')) != NULL; path = dot + 1) {
        char part[64];

        (void)snprintf(part, sizeof part, "%.*s", (int)(dot - path), path);
        at = json_is_array(at) ? json_array_get(at, strtoul(part, NULL, 10)) : json_object_get(at, part);
    }
    (void)snprintf(last, 64, "%s", path);
    return at;
}

/* Sets (or with value NULL removes) what stands at path. */
static void change(json_t *root, const char *path, const char *value)
{
    json_error_t error;
    char last[64];
    json_t *parent = walk(root, path, last), *replacement = value ? json_loads(value, JSON_DECODE_ANY, &error) : NULL;

    assert_non_null(parent);
    assert_true(!value || replacement);
    if (json_is_array(parent) && strcmp(last, "+") == 0)
        assert_int_equal(json_array_append_new(parent, replacement), 0);
    else if (json_is_array(parent) && value)
        assert_int_equal(json_array_set_new(parent, strtoul(last, NULL, 10), replacement), 0);
    else if (json_is_array(parent))
        assert_int_equal(json_array_remove(parent, strtoul(last, NULL, 10)), 0);
    else if (value)
        assert_int_equal(json_object_set_new(parent, last, replacement), 0);
    else
        assert_int_equal(json_object_del(parent, last), 0);
}

static headrace_status parse(const json_t *root, hr_tokenizer **out, headrace_error *err)
{
    char *text = json_dumps(root, JSON_COMPACT);
    headrace_status status = hr_tokenizer_parse_json(text, strlen(text), "file.json", TINY_SIZE, out, err);

    free(text);
    return status;
}

static void each_change_is_refused_and_named(void **state)
{
    static const struct {
        const char *path, *value, *message;
    } cases[] = {
        {"normalizer", "{\"type\": \"NFC\"}", "normalizer: {\"type\":\"NFC\"} is not supported"},
        {"model.type", "\"Unigram\"", "model.type: \"Unigram\""},
        {"model.type", NULL, "model.type"},
        {"model", "7", "model.type"},
        {"model.unk_token", "\"<unk>\"", "model.unk_token: \"<unk>\""},
        {"model.byte_fallback", "true", "model.byte_fallback: true"},
        {"model.dropout", "0.1", "model.dropout"},
        {"model.continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix"},
        {"model.end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix"},
        {"model.fuse_unk", "true", "model.fuse_unk"},
        {"model.ignore_merges", "3", "model.ignore_merges"},
        {"model.vocab", "[]", "model.vocab: []"},
        {"model.vocab.Hello", "\"x\"", "the id of \"Hello\" is not an integer"},
        {"model.vocab.new", "2048", "token \"new\" has id 2048; the model has ids 0 .. 2047"},
        {"model.vocab.new", "-1", "token \"new\" has id -1"},
        {"model.vocab.new", "9223372036854775807", "token \"new\" has id 9223372036854775807"},
        {"model.vocab.new", "300", "id 300 belongs to two tokens"},
        {"model.vocab.a", NULL, "no token for the single byte 0x61"},
        {"model.merges", "{}", "model.merges: {}"},
        {"model.merges.+", "[\"Q\", \"Zq\"]", "names \"Zq\", which is not in the vocabulary"},
        {"model.merges.+", "[\"Q\", \"Q\"]", "makes \"QQ\", which is not in the vocabulary"},
        {"model.merges.+", "[\"<\", \"|\"]", "repeats merge 0"},
        {"model.merges.+", "\"a b c\"", "neither [\"left\", \"right\"]"},
        {"model.merges.+", "[\"a\"]", "neither [\"left\", \"right\"]"},
        {"model.merges.+", "[\"\", \"a\"]", "names \"\""},
        {"model.merges.5", "17", "merge 5 is neither"},
        {"added_tokens", "3", "added_tokens: 3"},
        {"added_tokens.3.content", "\"other\"", "added_tokens[3]: id 3 is \"<|fim_pre|>\" in the vocabulary"},
        {"added_tokens.3.id", "4", "id 4"},
        {"added_tokens.3.id", "5000", "has id 5000"},
        {"added_tokens.3.content", "\"\"", "has 0 bytes"},
        {"added_tokens.3.content", "9", "added_tokens[3]: needs an integer"},
        {"added_tokens.3.lstrip", "true", "\"<|fim_pre|>\" has lstrip set"},
        {"added_tokens.3.rstrip", "true", "\"<|fim_pre|>\" has rstrip set"},
        {"added_tokens.3.single_word", "true", "\"<|fim_pre|>\" has single_word set"},
        {"pre_tokenizer", "null", "pre_tokenizer: null"},
        {"pre_tokenizer.type", "\"Whitespace\"", "pre_tokenizer"},
        {"pre_tokenizer.pretokenizers.0.pattern", "{\"String\": \" \"}", "pattern: {\"String\":\" \"}"},
        {"pre_tokenizer.pretokenizers.0.pattern.Regex", "\"(\"", "pre_tokenizer Split: the splitting expression"},
        {"pre_tokenizer.pretokenizers.0.behavior", "\"Removed\"", "behavior: \"Removed\""},
        {"pre_tokenizer.pretokenizers.0.invert", "true", "invert: true"},
        {"pre_tokenizer.pretokenizers.1.use_regex", "true", "use_regex: true"},
        {"pre_tokenizer.pretokenizers.1.add_prefix_space", NULL, "add_prefix_space: nothing"},
        {"pre_tokenizer.pretokenizers.1.type", "\"Digits\"", "\"Digits\" is not supported"},
        {"decoder", "{\"type\": \"WordPiece\"}", "decoder: {\"type\":\"WordPiece\"}"},
        {"decoder", "null", "decoder: null"},
        {"post_processor.processors.1.type", "\"RobertaProcessing\"", "post_processor"},
        {"post_processor.processors.1.single.+", "{\"SpecialToken\": {\"id\": \"<|im_end|>\", \"type_id\": 0}}",
         "single"},
        {"post_processor.processors.1.special_tokens", "{}", "single"},
        {"post_processor.processors.1.special_tokens.<|startoftext|>.ids.0", "2",
         "\"<|startoftext|>\" has id 2 there, and 1"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *root = json_deep_copy(original);
        hr_tokenizer *tokenizer;
        headrace_error err = {0};

        change(root, cases[i].path, cases[i].value);
        if (parse(root, &tokenizer, &err) != HEADRACE_E_MODEL)
            fail_msg("accepted or other status: %s = %s", cases[i].path, cases[i].value ? cases[i].value : "(removed)");
        assert_null(tokenizer);
        if (strncmp(err.message, "file.json: ", 11) != 0 || !strstr(err.message, cases[i].message))
            fail_msg("%s: message is \"%s\"", cases[i].path, err.message);
        json_decref(root);
    }
}

/* Takes the entry with this id out of the vocabulary, so that the id is free. */
static void free_id(json_t *root, int id)
{
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *value;
    const char *key;

    json_object_foreach(vocab, key, value)
    {
        if (json_integer_value(value) == id) {
            assert_int_equal(json_object_del(vocab, key), 0);
            return;
        }
    }
    fail_msg("no token has id %d", id);
}

static void a_merge_into_a_special_token_is_refused(void **state)
{
    json_t *root = json_deep_copy(original);
    hr_tokenizer *tokenizer;
    headrace_error err = {0};

    (void)state;
    free_id(root, 2047);
    change(root, "model.vocab.QZ", "2047");
    change(root, "added_tokens.+", "{\"id\": 2047, \"content\": \"QZ\", \"special\": true}");
    change(root, "model.merges", "[[\"Q\", \"Z\"]]");
    assert_int_equal(parse(root, &tokenizer, &err), HEADRACE_E_MODEL);
    assert_non_null(strstr(err.message, "merge 0 makes the special token \"QZ\""));
    json_decref(root);
}

static void text_that_is_not_json_is_refused(void **state)
{
    static const char *const texts[] = {"", "{", "[]", "null", "{\"model\": {}, \"model\": {}}", "{}x", "\xFF"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        hr_tokenizer *tokenizer;
        headrace_error err = {0};

        assert_int_equal(hr_tokenizer_parse_json(texts[i], strlen(texts[i]), "x", 10, &tokenizer, &err),
                         HEADRACE_E_MODEL);
        assert_true(err.message[0] != '\0');
    }
}

static void a_missing_file_is_an_input_error(void **state)
{
    hr_tokenizer *tokenizer;
    headrace_error err = {0};

    (void)state;
    assert_int_equal(hr_tokenizer_open_json("/nonexistent/tokenizer.json", 10, &tokenizer, &err), HEADRACE_E_IO);
}

static int32_t only_id(const hr_tokenizer *tokenizer, const char *text)
{
    headrace_error err = {0};
    int32_t *ids, id;
    size_t n;

    assert_int_equal(hr_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &n, &err), HEADRACE_OK);
    id = n == 1 ? ids[0] : -1;
    free(ids);
    return id;
}

static void added_words_are_cut_out_of_any_text_the_longest_first(void **state)
{
    json_t *root = json_deep_copy(original);
    hr_tokenizer *tokenizer;
    headrace_error err = {0};
    int32_t *ids;
    size_t n;

    (void)state;
    change(root, "model.merges", "[]");
    for (int id = 2045; id < TINY_SIZE; id++)
        free_id(root, id);
    change(root, "added_tokens.+", "{\"id\": 2045, \"content\": \"wor\", \"special\": false}");
    change(root, "added_tokens.+", "{\"id\": 2046, \"content\": \"world s\", \"special\": false}");
    change(root, "added_tokens.+", "{\"id\": 2047, \"content\": \"é\", \"special\": false}");
    if (parse(root, &tokenizer, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_int_equal(only_id(tokenizer, "wor"), 2045);
    assert_int_equal(only_id(tokenizer, "world s"), 2046);
    assert_int_equal(only_id(tokenizer, "é"), 2047);
    assert_int_equal(hr_tokenizer_encode(tokenizer, "world xworld sworl", 18, 0, &ids, &n, &err), HEADRACE_OK);
    assert_int_equal(n, 8); /* wor l d _ x "world s" wor l */
    assert_int_equal(ids[0], 2045);
    assert_int_equal(ids[5], 2046);
    assert_int_equal(ids[6], 2045);
    free(ids);
    hr_tokenizer_close(tokenizer);
    json_decref(root);
}

static void ignore_merges_takes_a_piece_as_a_whole(void **state)
{
    (void)state;
    for (int ignore = 0; ignore < 2; ignore++) {
        json_t *root = json_deep_copy(original);
        hr_tokenizer *tokenizer;
        headrace_error err = {0};

        change(root, "model.merges", "[]");
        change(root, "model.ignore_merges", ignore ? "true" : "false");
        if (parse(root, &tokenizer, &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
        assert_true((only_id(tokenizer, "Hello") >= 0) == (ignore == 1));
        hr_tokenizer_close(tokenizer);
        json_decref(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_change_is_refused_and_named),
        cmocka_unit_test(a_merge_into_a_special_token_is_refused),
        cmocka_unit_test(text_that_is_not_json_is_refused),
        cmocka_unit_test(a_missing_file_is_an_input_error),
        cmocka_unit_test(added_words_are_cut_out_of_any_text_the_longest_first),
        cmocka_unit_test(ignore_merges_takes_a_piece_as_a_whole),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
