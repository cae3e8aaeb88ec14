/* Reads the tokenizer from GGUF metadata: the same tables as tokenizer.json gives, under other names.
 *
 * What GGUF does not carry is fixed by the name in tokenizer.ggml.pre: the splitting expression, and that a piece which
 * is a token as a whole becomes that token (llama.cpp does so for "lfm2"; where every token can be reached by its
 * merges, as in the vocabularies seen, this changes nothing). Token types: 3 (control) are the special tokens, 4
 * (user-defined) the added tokens that are matched in any text, 5 (unused) rows without a token.
 */
#include "text/tokenizer_parts.h"

#include <string.h>

typedef enum token_type {
    TYPE_NORMAL = 1,
    TYPE_CONTROL = 3,
    TYPE_USER_DEFINED = 4,
    TYPE_UNUSED = 5,
} token_type;

static bool equals(hr_gguf_string text, const char *expected)
{
    return text.len == strlen(expected) && memcmp(text.at, expected, text.len) == 0;
}

static headrace_status expect_text(const hr_gguf *gguf, const char *key, const char *expected, headrace_error *err)
{
    hr_gguf_string text;

    HR_PASS(hr_gguf_str(gguf, key, &text, err));
    if (!equals(text, expected))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: \"%.*s\" is not supported (expected \"%s\")", key,
                       (int)(text.len < 60 ? text.len : 60), text.at, expected);
    return HEADRACE_OK;
}

static bool is_integer(hr_gguf_type type)
{
    return type <= HR_GGUF_I32 || type == HR_GGUF_U64 || type == HR_GGUF_I64;
}

/* NULL, with err, when the key is absent or of another kind. */
static const hr_gguf_value *find_array(const hr_gguf *gguf, const char *key, bool of_strings, headrace_error *err)
{
    const hr_gguf_value *value = hr_gguf_find(gguf, key);

    if (!value) {
        (void)hr_fail(err, HEADRACE_E_MODEL, "%s is missing", key);
        return NULL;
    }
    if (value->type == HR_GGUF_ARRAY &&
        (of_strings ? value->element_type == HR_GGUF_STRING : is_integer(value->element_type)))
        return value;
    (void)hr_fail(err, HEADRACE_E_MODEL, "%s at byte %llu is not an array of %s", key,
                  (unsigned long long)value->offset, of_strings ? "strings" : "integers");
    return NULL;
}

static headrace_status read_token(hr_tokenizer *t, int64_t id, hr_gguf_string text, int64_t type, headrace_error *err)
{
    switch (type) {
    case TYPE_UNUSED:
        return HEADRACE_OK;
    case TYPE_NORMAL:
        return hr_vocabulary_add_token(&t->vocabulary, id, text.at, text.len, err);
    case TYPE_CONTROL:
    case TYPE_USER_DEFINED:
        HR_PASS(hr_vocabulary_add_token(&t->vocabulary, id, text.at, text.len, err));
        return hr_vocabulary_mark_added(&t->vocabulary, id, text.at, text.len, type == TYPE_CONTROL,
                                        type == TYPE_USER_DEFINED, err);
    default:
        return hr_fail(err, HEADRACE_E_MODEL, "token %lld has type %lld (expected 1, 3, 4 or 5)", (long long)id,
                       (long long)type);
    }
}

static headrace_status read_tokens(hr_tokenizer *t, const hr_gguf *gguf, headrace_error *err)
{
    const hr_gguf_value *tokens = find_array(gguf, "tokenizer.ggml.tokens", true, err), *types;
    const unsigned char *cursor;

    types = tokens ? find_array(gguf, "tokenizer.ggml.token_type", false, err) : NULL;
    if (!types)
        return HEADRACE_E_MODEL;
    if (tokens->n_elements != types->n_elements)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "tokenizer.ggml.tokens has %llu elements and tokenizer.ggml.token_type %llu",
                       (unsigned long long)tokens->n_elements, (unsigned long long)types->n_elements);
    cursor = tokens->at;
    for (uint64_t id = 0; id < tokens->n_elements; id++)
        HR_TRY(read_token(t, (int64_t)id, hr_gguf_next_string(&cursor), hr_gguf_int_at(types, id), err),
               "tokenizer.ggml.tokens");
    return HEADRACE_OK;
}

static headrace_status read_merge(hr_tokenizer *t, hr_gguf_string text, headrace_error *err)
{
    const char *space = memchr(text.at, ' ', text.len), *right = space ? space + 1 : NULL;
    size_t right_len = space ? text.len - (size_t)(right - text.at) : 0;

    if (!space || memchr(right, ' ', right_len))
        return hr_fail(err, HEADRACE_E_MODEL, "merge %u is not \"left right\"", t->vocabulary.n_merges);
    return hr_vocabulary_add_merge(&t->vocabulary, text.at, (size_t)(space - text.at), right, right_len, err);
}

static headrace_status read_merges(hr_tokenizer *t, const hr_gguf *gguf, headrace_error *err)
{
    const hr_gguf_value *merges = find_array(gguf, "tokenizer.ggml.merges", true, err);
    const unsigned char *cursor;

    if (!merges)
        return HEADRACE_E_MODEL;
    HR_TRY(hr_vocabulary_index(&t->vocabulary, merges->n_elements, err), "tokenizer.ggml.tokens");
    cursor = merges->at;
    for (uint64_t i = 0; i < merges->n_elements; i++)
        HR_TRY(read_merge(t, hr_gguf_next_string(&cursor), err), "tokenizer.ggml.merges");
    return HEADRACE_OK;
}

/* bos_token_id and the like; absent leaves *id alone. */
static headrace_status read_id(const hr_tokenizer *t, const hr_gguf *gguf, const char *key, int32_t *id,
                               headrace_error *err)
{
    const char *bytes;
    uint32_t value;
    size_t len;

    if (!hr_gguf_find(gguf, key))
        return HEADRACE_OK;
    HR_PASS(hr_gguf_u32(gguf, key, &value, err));
    if (value > INT32_MAX || !hr_tokenizer_bytes(t, (int32_t)value, &bytes, &len, NULL))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %u is not a token of the vocabulary", key, value);
    *id = (int32_t)value;
    return HEADRACE_OK;
}

static headrace_status read_flag(const hr_gguf *gguf, const char *key, bool *flag, headrace_error *err)
{
    return hr_gguf_find(gguf, key) ? hr_gguf_bool(gguf, key, flag, err) : HEADRACE_OK;
}

static headrace_status read_all(hr_tokenizer *t, const hr_gguf *gguf, headrace_error *err)
{
    bool adds_bos, adds_eos = false, adds_sep = false;

    HR_PASS(expect_text(gguf, "tokenizer.ggml.model", "gpt2", err));
    HR_PASS(expect_text(gguf, "tokenizer.ggml.pre", "lfm2", err));
    HR_PASS(read_tokens(t, gguf, err));
    HR_PASS(read_merges(t, gguf, err));
    HR_TRY(hr_added_tokens_init(&t->added, &t->vocabulary, err), "tokenizer.ggml.tokens");
    HR_PASS(hr_splitter_init(&t->splitter, hr_splitter_lfm2, strlen(hr_splitter_lfm2), err));
    t->ignore_merges = true;
    hr_tokenizer_guess_eos(t);
    HR_PASS(read_id(t, gguf, "tokenizer.ggml.bos_token_id", &t->bos, err));
    HR_PASS(read_id(t, gguf, "tokenizer.ggml.eos_token_id", &t->eos, err));
    adds_bos = t->bos >= 0; /* the default of "lfm2" */
    HR_PASS(read_flag(gguf, "tokenizer.ggml.add_bos_token", &adds_bos, err));
    HR_PASS(read_flag(gguf, "tokenizer.ggml.add_eos_token", &adds_eos, err));
    HR_PASS(read_flag(gguf, "tokenizer.ggml.add_sep_token", &adds_sep, err));
    if (adds_eos || adds_sep)
        return hr_fail(err, HEADRACE_E_MODEL, "tokenizer.ggml.add_%s_token: true is not supported (expected false)",
                       adds_eos ? "eos" : "sep");
    if (adds_bos && t->bos < 0)
        return hr_fail(err, HEADRACE_E_MODEL, "tokenizer.ggml.add_bos_token is true and bos_token_id is missing");
    t->adds_bos = adds_bos;
    return HEADRACE_OK;
}

headrace_status hr_tokenizer_open_gguf(const hr_gguf *gguf, uint32_t vocab_size, hr_tokenizer **out,
                                       headrace_error *err)
{
    hr_tokenizer *t = hr_tokenizer_new(vocab_size);
    headrace_status status;

    *out = NULL;
    if (!t)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the tokenizer");
    status = read_all(t, gguf, err);
    if (status != HEADRACE_OK) {
        hr_tokenizer_close(t);
        return gguf->file.n_shards > 0 ? hr_prefix(err, status, "%s", gguf->file.paths[0]) : status;
    }
    *out = t;
    return HEADRACE_OK;
}
