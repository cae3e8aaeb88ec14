/* See tokenizer_write.h.
 *
 * Written from the tables that the encoder uses, not copied from tokenizer.json: what reaches the file has been checked
 * (no doubled texts, no merge of an unknown token), whatever the way in which the source spelled it.
 */
#include "text/tokenizer_write.h"

#include "base/utf8.h"
#include "text/byte_level.h"
#include "text/tokenizer_parts.h"

#include <string.h>

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5 };

/* Spelled as the files do it: bytes as characters, unless the token never was of bytes. */
static void add_spelling(hr_buffer *out, const hr_vocabulary *v, const hr_token *token)
{
    const char *bytes = v->text.at + token->offset;

    if (!token->is_bpe) {
        hr_buffer_add(out, bytes, token->len);
    } else if (hr_buffer_reserve(out, 2 * (size_t)token->len)) {
        out->len += hr_byte_level_encode(bytes, token->len, out->at + out->len);
        out->at[out->len] = '\0';
    }
}

/* An added token that looks like a special one is written as one, whatever its flag says. */
static bool looks_special(const char *text, size_t len)
{
    return len >= 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + len - 2, "|>", 2) == 0;
}

static int32_t type_of(const hr_vocabulary *v, const hr_token *token)
{
    switch (token->kind) {
    case HR_TOKEN_SPECIAL:
        return TYPE_CONTROL;
    case HR_TOKEN_ADDED:
        return looks_special(v->text.at + token->offset, token->len) ? TYPE_CONTROL : TYPE_USER_DEFINED;
    case HR_TOKEN_PLAIN:
    case HR_TOKEN_OPAQUE:
        return TYPE_NORMAL;
    case HR_TOKEN_HOLE:
        break;
    }
    return TYPE_UNUSED;
}

static void put_tokens(const hr_vocabulary *v, uint32_t vocab_size, int32_t *types, hr_gguf_writer *writer,
                       hr_buffer *spelling)
{
    static const hr_token hole = {.kind = HR_TOKEN_HOLE};

    hr_gguf_put_strings(writer, "tokenizer.ggml.tokens", vocab_size);
    for (uint32_t id = 0; id < vocab_size; id++) {
        const hr_token *token = id < v->n_tokens ? &v->tokens[id] : &hole;

        hr_buffer_clear(spelling);
        types[id] = type_of(v, token);
        if (token->kind == HR_TOKEN_HOLE)
            hr_buffer_printf(spelling, "[PAD%u]", id);
        else if (token->kind == HR_TOKEN_SPECIAL || token->kind == HR_TOKEN_ADDED)
            hr_buffer_add(spelling, v->text.at + token->offset, token->len);
        else
            add_spelling(spelling, v, token);
        hr_gguf_put_element(writer, spelling->at ? spelling->at : "", spelling->len);
    }
    hr_gguf_put_i32_array(writer, "tokenizer.ggml.token_type", types, vocab_size);
}

static void put_merges(const hr_vocabulary *v, hr_gguf_writer *writer, hr_buffer *spelling)
{
    hr_gguf_put_strings(writer, "tokenizer.ggml.merges", v->n_merges);
    for (uint32_t i = 0; i < v->n_merges; i++) {
        hr_buffer_clear(spelling);
        add_spelling(spelling, v, &v->tokens[v->merges[i].left]);
        hr_buffer_add_char(spelling, ' ');
        add_spelling(spelling, v, &v->tokens[v->merges[i].right]);
        hr_gguf_put_element(writer, spelling->at ? spelling->at : "", spelling->len);
    }
}

headrace_status hr_tokenizer_put_gguf(const hr_tokenizer *tokenizer, uint32_t vocab_size, hr_gguf_writer *writer,
                                      headrace_error *err)
{
    const hr_vocabulary *v = &tokenizer->vocabulary;
    int32_t *types = calloc(vocab_size ? vocab_size : 1, sizeof *types);
    hr_buffer spelling = {0};
    bool ok;

    if (!types)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u token types", vocab_size);
    hr_gguf_put_string(writer, "tokenizer.ggml.model", "gpt2", 4);
    hr_gguf_put_string(writer, "tokenizer.ggml.pre", "lfm2", 4);
    put_tokens(v, vocab_size, types, writer, &spelling);
    if (v->n_merges > 0)
        put_merges(v, writer, &spelling);
    ok = !spelling.failed;
    hr_buffer_deinit(&spelling);
    free(types);
    return ok ? HEADRACE_OK : hr_fail(err, HEADRACE_E_MEMORY, "no memory for a token's spelling");
}

/* ---------------------------------------------------------------- do two read alike */

static headrace_status compare_text(const hr_tokenizer *left, const hr_tokenizer *right, const char *text, size_t len,
                                    bool *is_same, headrace_error *err)
{
    int32_t *a = NULL, *b = NULL;
    size_t n_a = 0, n_b = 0;
    headrace_status status;

    HR_TRY_GOTO(done, hr_tokenizer_encode(left, text, len, 0, &a, &n_a, err));
    HR_TRY_GOTO(done, hr_tokenizer_encode(right, text, len, 0, &b, &n_b, err));
    *is_same = n_a == n_b && (n_a == 0 || memcmp(a, b, n_a * sizeof *a) == 0);
done:
    free(a);
    free(b);
    return status;
}

headrace_status hr_tokenizer_compare(const hr_tokenizer *left, const hr_tokenizer *right, headrace_error *err)
{
    const hr_vocabulary *v = &left->vocabulary;
    hr_buffer text = {0};
    headrace_status status = HEADRACE_OK;
    bool is_same = true;

    for (uint32_t id = 0; id < v->n_tokens && status == HEADRACE_OK; id++) {
        const hr_token *token = &v->tokens[id];
        const char *bytes = v->text.at + token->offset;

        if (token->kind != HR_TOKEN_PLAIN || !hr_utf8_is_valid(bytes, token->len, NULL))
            continue;
        hr_buffer_clear(&text);
        hr_buffer_add(&text, bytes, token->len);
        hr_buffer_add_text(&text, " a");
        hr_buffer_add(&text, bytes, token->len);
        status = text.failed ? hr_fail(err, HEADRACE_E_MEMORY, "no memory for a text")
                             : compare_text(left, right, text.at, text.len, &is_same, err);
        if (status == HEADRACE_OK && !is_same)
            status =
                hr_fail(err, HEADRACE_E_UNSUPPORTED,
                        "token %u (\"%.*s\"): a GGUF file would read its text as other ids than tokenizer.json does "
                        "(its merges do not make it)",
                        id, token->len < 60 ? (int)token->len : 60, bytes);
    }
    hr_buffer_deinit(&text);
    return status;
}
