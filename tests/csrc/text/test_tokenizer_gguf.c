/* GGUF metadata made from the embedded tokenizer.json: the same ids; damaged metadata is refused and named. */
#include "tiny_tokenizer.h"

#include "base/buffer.h"

#include <jansson.h>

/* What a case changes in the file. */
typedef struct variant {
    const char *model, *pre; /* NULL: lfm2's */
    const char *without;     /* a key to leave out */
    const char *extra_merge; /* one more merge */
    int extra_type;          /* one more element of token_type */
    int token_0_type;        /* instead of 3 */
    int eos;                 /* instead of 7 */
    bool adds_eos, merges_are_numbers;
} variant;

static void put(hr_buffer *out, const void *bytes, size_t n)
{
    hr_buffer_add(out, bytes, n);
}

static void put_u32(hr_buffer *out, uint32_t value)
{
    put(out, &value, sizeof value);
}

static void put_u64(hr_buffer *out, uint64_t value)
{
    put(out, &value, sizeof value);
}

static void put_string(hr_buffer *out, const char *text)
{
    put_u64(out, strlen(text));
    put(out, text, strlen(text));
}

/* Begins an entry; false when the variant leaves it out. */
static bool put_key(hr_buffer *out, const variant *v, uint64_t *n_entries, const char *key, hr_gguf_type type)
{
    if (v->without && strcmp(v->without, key) == 0)
        return false;
    ++*n_entries;
    put_string(out, key);
    put_u32(out, type);
    return true;
}

static void put_array(hr_buffer *out, hr_gguf_type type, uint64_t n)
{
    put_u32(out, type);
    put_u64(out, n);
}

static void put_tokens(hr_buffer *out, const variant *v, uint64_t *n_entries, json_t *root)
{
    const char *spellings[TINY_SIZE] = {0}, *spelling;
    json_t *id;
    size_t n_added = json_array_size(json_object_get(root, "added_tokens"));

    json_object_foreach(json_object_get(json_object_get(root, "model"), "vocab"), spelling, id)
        spellings[json_integer_value(id)] = spelling;
    if (put_key(out, v, n_entries, "tokenizer.ggml.tokens", HR_GGUF_ARRAY)) {
        put_array(out, HR_GGUF_STRING, TINY_SIZE + 2);
        for (int i = 0; i < TINY_SIZE; i++)
            put_string(out, spellings[i] ? spellings[i] : "");
        put_string(out, "[PAD2048]");
        put_string(out, "[PAD2049]");
    }
    if (put_key(out, v, n_entries, "tokenizer.ggml.token_type", HR_GGUF_ARRAY)) {
        put_array(out, HR_GGUF_I32, TINY_SIZE + 2 + (v->extra_type != 0));
        for (int i = 0; i < TINY_SIZE; i++) {
            bool is_added = false;

            for (size_t k = 0; k < n_added; k++)
                is_added |= json_integer_value(
                                json_object_get(json_array_get(json_object_get(root, "added_tokens"), k), "id")) == i;
            put_u32(out, i == 0 && v->token_0_type ? (uint32_t)v->token_0_type : is_added ? 3 : 1);
        }
        put_u32(out, 5);
        put_u32(out, 5);
        if (v->extra_type)
            put_u32(out, (uint32_t)v->extra_type);
    }
}

static void put_merges(hr_buffer *out, const variant *v, uint64_t *n_entries, json_t *root)
{
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    size_t n = json_array_size(merges);

    if (!put_key(out, v, n_entries, "tokenizer.ggml.merges", HR_GGUF_ARRAY))
        return;
    if (v->merges_are_numbers) {
        put_array(out, HR_GGUF_U32, 1);
        put_u32(out, 1);
        return;
    }
    put_array(out, HR_GGUF_STRING, n + (v->extra_merge != NULL));
    for (size_t i = 0; i < n; i++) {
        char merge[512];

        (void)snprintf(merge, sizeof merge, "%s %s", json_string_value(json_array_get(json_array_get(merges, i), 0)),
                       json_string_value(json_array_get(json_array_get(merges, i), 1)));
        put_string(out, merge);
    }
    if (v->extra_merge)
        put_string(out, v->extra_merge);
}

static headrace_status open_variant(const variant *v, uint32_t vocab_size, hr_tokenizer **out, headrace_error *err)
{
    json_error_t error;
    json_t *root = json_load_file(TINY_PATH, 0, &error);
    hr_buffer file = {0}, entries = {0};
    uint64_t n_entries = 0;
    hr_gguf gguf;
    headrace_status status;
    unsigned char *bytes;

    assert_non_null(root);
    if (put_key(&entries, v, &n_entries, "general.architecture", HR_GGUF_STRING))
        put_string(&entries, "lfm2");
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.model", HR_GGUF_STRING))
        put_string(&entries, v->model ? v->model : "gpt2");
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.pre", HR_GGUF_STRING))
        put_string(&entries, v->pre ? v->pre : "lfm2");
    put_tokens(&entries, v, &n_entries, root);
    put_merges(&entries, v, &n_entries, root);
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.bos_token_id", HR_GGUF_U32))
        put_u32(&entries, 1);
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.eos_token_id", HR_GGUF_U32))
        put_u32(&entries, v->eos ? (uint32_t)v->eos : 7);
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.add_bos_token", HR_GGUF_BOOL))
        put(&entries, "\1", 1);
    if (put_key(&entries, v, &n_entries, "tokenizer.ggml.add_eos_token", HR_GGUF_BOOL))
        put(&entries, v->adds_eos ? "\1" : "\0", 1);
    put(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, 0);
    put_u64(&file, n_entries);
    put(&file, entries.at, entries.len);
    bytes = malloc(file.len); /* of the exact size, so that a sanitizer sees reading past the end */
    assert_non_null(bytes);
    memcpy(bytes, file.at, file.len);
    if (hr_gguf_parse(bytes, file.len, "file.gguf", &gguf, err) != HEADRACE_OK)
        fail_msg("%s", err->message);
    status = hr_tokenizer_open_gguf(&gguf, vocab_size, out, err);
    hr_gguf_close(&gguf); /* the tokenizer must not need it any more */
    free(bytes);
    hr_buffer_deinit(&file);
    hr_buffer_deinit(&entries);
    json_decref(root);
    return status;
}

static void gguf_and_json_give_the_same_ids(void **state)
{
    static const char *const texts[] = {
        "",
        "Hello, how are you?",
        "<|startoftext|><|im_start|>user\nWhat is 12+30?<|im_end|>\n",
        "naïve 日本 😀  \n\n x",
        "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}",
        "\x01\x02\xFF",
    };
    hr_tokenizer *json = open_tiny(), *gguf;
    headrace_error err = {0};

    (void)state;
    if (open_variant(&(variant){0}, TINY_SIZE + 2, &gguf, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_int_equal(hr_tokenizer_size(gguf), TINY_SIZE); /* the two unused rows have no text */
    assert_int_equal(hr_tokenizer_bos(gguf), hr_tokenizer_bos(json));
    assert_int_equal(hr_tokenizer_eos(gguf), hr_tokenizer_eos(json));
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        for (uint32_t flags = 0; flags < 4; flags++) {
            int32_t *a, *b;
            size_t n_a, n_b;

            assert_int_equal(hr_tokenizer_encode(json, texts[i], strlen(texts[i]), flags, &a, &n_a, &err), HEADRACE_OK);
            assert_int_equal(hr_tokenizer_encode(gguf, texts[i], strlen(texts[i]), flags, &b, &n_b, &err), HEADRACE_OK);
            assert_int_equal(n_a, n_b);
            assert_memory_equal(a, b, n_a * sizeof *a);
            free(a);
            free(b);
        }
    }
    for (int32_t id = -1; id <= TINY_SIZE + 2; id++) {
        const char *a = "", *b = "";
        size_t n_a = 0, n_b = 0;
        bool special_a = false, special_b = false;

        assert_int_equal(hr_tokenizer_bytes(json, id, &a, &n_a, &special_a),
                         hr_tokenizer_bytes(gguf, id, &b, &n_b, &special_b));
        assert_int_equal(n_a, n_b);
        assert_memory_equal(a, b, n_a);
        assert_int_equal(special_a, special_b);
    }
    hr_tokenizer_close(json);
    hr_tokenizer_close(gguf);
}

static void damaged_metadata_is_refused_and_named(void **state)
{
    static const struct {
        variant variant;
        const char *message;
    } cases[] = {
        {{.model = "llama"}, "tokenizer.ggml.model: \"llama\" is not supported"},
        {{.pre = "gpt-2"}, "tokenizer.ggml.pre: \"gpt-2\" is not supported"},
        {{.without = "tokenizer.ggml.model"}, "tokenizer.ggml.model"},
        {{.without = "tokenizer.ggml.pre"}, "tokenizer.ggml.pre"},
        {{.without = "tokenizer.ggml.tokens"}, "tokenizer.ggml.tokens is missing"},
        {{.without = "tokenizer.ggml.token_type"}, "tokenizer.ggml.token_type is missing"},
        {{.without = "tokenizer.ggml.merges"}, "tokenizer.ggml.merges is missing"},
        {{.without = "tokenizer.ggml.bos_token_id"}, "bos_token_id is missing"},
        {{.merges_are_numbers = true}, "is not an array of strings"},
        {{.extra_type = 1}, "has 2050 elements and tokenizer.ggml.token_type 2051"},
        {{.token_0_type = 6}, "token 0 has type 6"},
        {{.token_0_type = -1}, "token 0 has type -1"},
        {{.extra_merge = "ab"}, "is not \"left right\""},
        {{.extra_merge = "a b c"}, "is not \"left right\""},
        {{.extra_merge = "Q Q"}, "makes \"QQ\""},
        {{.extra_merge = "< |"}, "repeats merge 0"},
        {{.eos = 2048}, "eos_token_id: 2048 is not a token"},
        {{.eos = -5}, "eos_token_id"},
        {{.adds_eos = true}, "add_eos_token: true is not supported"},
    };
    hr_tokenizer *tokenizer;
    headrace_error err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err = (headrace_error){0};
        assert_int_equal(open_variant(&cases[i].variant, TINY_SIZE + 2, &tokenizer, &err), HEADRACE_E_MODEL);
        assert_null(tokenizer);
        if (!strstr(err.message, cases[i].message))
            fail_msg("message is \"%s\", not \"%s\"", err.message, cases[i].message);
    }
    assert_int_equal(open_variant(&(variant){0}, 2000, &tokenizer, &err), HEADRACE_E_MODEL);
    assert_non_null(strstr(err.message, "has id 2000; the model has ids 0 .. 1999"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_and_json_give_the_same_ids),
        cmocka_unit_test(damaged_metadata_is_refused_and_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
