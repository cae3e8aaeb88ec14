/* See vocabulary.h.
 *
 * Tokens are bytes in one buffer, found by id (an array) and by bytes (a hash with open addressing, which merges and
 * whole-piece lookups need). A merge is found by its pair of ids, never by text: that is the one lookup in the
 * encoder's inner loop.
 *
 * A file that contradicts itself is refused here with the tokens named, because each such case would silently give
 * other ids than the model was trained on: one id with two tokens, two ids with one text, a merge of or into an unknown
 * token, a merge given twice (readers differ on which counts), a merge that makes a special token (user text could then
 * become it).
 */
#include "text/vocabulary.h"

#include "base/utf8.h"
#include "text/byte_level.h"

#include <string.h>

enum { SHOWN_MAX = 60 }; /* bytes of a token in a message */

void hr_vocabulary_init(hr_vocabulary *v, uint32_t id_limit)
{
    *v = (hr_vocabulary){.id_limit = id_limit < HR_VOCABULARY_MAX ? id_limit : HR_VOCABULARY_MAX};
}

void hr_vocabulary_deinit(hr_vocabulary *v)
{
    hr_buffer_deinit(&v->text);
    free(v->tokens);
    free(v->by_bytes);
    free(v->merges);
    free(v->slots);
    *v = (hr_vocabulary){0};
}

static int shown(size_t len)
{
    return len < SHOWN_MAX ? (int)len : SHOWN_MAX;
}

static const char *token_text(const hr_vocabulary *v, const hr_token *token)
{
    return v->text.at + token->offset;
}

/* Makes tokens[id] exist. */
static headrace_status reach(hr_vocabulary *v, int64_t id, const char *text, size_t len, headrace_error *err)
{
    if (id < 0 || id >= v->id_limit)
        return hr_fail(err, HEADRACE_E_MODEL, "token \"%.*s\" has id %lld; the model has ids 0 .. %lld", shown(len),
                       text, (long long)id, (long long)v->id_limit - 1);
    if (len > HR_TOKEN_BYTES_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "token %lld has %zu bytes; at most %d are supported", (long long)id, len,
                       HR_TOKEN_BYTES_MAX);
    if (id >= v->capacity) {
        uint32_t capacity = (uint32_t)id + (uint32_t)id / 2 + 1024;
        hr_token *grown = realloc(v->tokens, capacity * sizeof *grown);

        if (!grown)
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u tokens", capacity);
        memset(grown + v->capacity, 0, (capacity - v->capacity) * sizeof *grown);
        v->tokens = grown;
        v->capacity = capacity;
    }
    if (id >= v->n_tokens)
        v->n_tokens = (uint32_t)id + 1;
    return HEADRACE_OK;
}

static headrace_status store_text(hr_vocabulary *v, hr_token *token, const char *text, size_t len, headrace_error *err)
{
    if (len > UINT32_MAX - v->text.len)
        return hr_fail(err, HEADRACE_E_MODEL, "the tokens' texts take more than 4 GiB");
    token->offset = (uint32_t)v->text.len;
    token->len = (uint32_t)len;
    hr_buffer_add(&v->text, text, len);
    return v->text.failed ? hr_fail(err, HEADRACE_E_MEMORY, "no memory for the tokens' texts") : HEADRACE_OK;
}

headrace_status hr_vocabulary_add_token(hr_vocabulary *v, int64_t id, const char *spelling, size_t len,
                                        headrace_error *err)
{
    hr_token *token;
    size_t n_bytes;

    if (len == 0)
        return hr_fail(err, HEADRACE_E_MODEL, "token %lld is empty", (long long)id);
    HR_PASS(reach(v, id, spelling, len, err));
    token = &v->tokens[id];
    if (token->kind != HR_TOKEN_HOLE)
        return hr_fail(err, HEADRACE_E_MODEL, "id %lld belongs to two tokens, \"%.*s\" and \"%.*s\"", (long long)id,
                       shown(token->len), token_text(v, token), shown(len), spelling);
    HR_PASS(store_text(v, token, spelling, len, err));
    token->is_bpe = hr_byte_level_decode(spelling, len, v->text.at + token->offset, &n_bytes);
    if (token->is_bpe) { /* was decoded where it lies */
        token->kind = HR_TOKEN_PLAIN;
        token->len = (uint32_t)n_bytes;
    } else {
        token->kind = HR_TOKEN_OPAQUE;
        memcpy(v->text.at + token->offset, spelling, len);
    }
    return HEADRACE_OK;
}

headrace_status hr_vocabulary_mark_added(hr_vocabulary *v, int64_t id, const char *content, size_t len, bool is_special,
                                         bool is_normalized, headrace_error *err)
{
    hr_token *token;

    if (len == 0 || len > HR_ADDED_TOKEN_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "added token %lld has %zu bytes; 1 .. %d are supported", (long long)id,
                       len, HR_ADDED_TOKEN_MAX);
    if (!hr_utf8_is_valid(content, len, NULL)) /* a match must never end inside a character */
        return hr_fail(err, HEADRACE_E_MODEL, "added token %lld is not valid UTF-8", (long long)id);
    HR_PASS(reach(v, id, content, len, err));
    token = &v->tokens[id];
    if (token->kind == HR_TOKEN_ADDED || token->kind == HR_TOKEN_SPECIAL)
        return hr_fail(err, HEADRACE_E_MODEL, "id %lld belongs to two added tokens, \"%.*s\" and \"%.*s\"",
                       (long long)id, shown(token->len), token_text(v, token), shown(len), content);
    if (token->kind != HR_TOKEN_HOLE) {
        char decoded[HR_ADDED_TOKEN_MAX];
        size_t n = len;
        bool is_same;

        /* The vocabulary holds the content's spelling: in byte characters it was decoded on the way in. */
        if (token->is_bpe)
            is_same = hr_byte_level_decode(content, len, decoded, &n) && n == token->len &&
                      memcmp(decoded, token_text(v, token), n) == 0;
        else
            is_same = len == token->len && memcmp(content, token_text(v, token), len) == 0;
        if (!is_same)
            return hr_fail(err, HEADRACE_E_MODEL, "id %lld is \"%.*s\" in the vocabulary and the added token \"%.*s\"",
                           (long long)id, shown(token->len), token_text(v, token), shown(len), content);
        token->is_bpe = token->is_bpe && n == len && memcmp(decoded, content, len) == 0;
    }
    token->kind = is_special ? HR_TOKEN_SPECIAL : HR_TOKEN_ADDED;
    token->is_normalized = is_normalized;
    return store_text(v, token, content, len, err);
}

static uint32_t hash_bytes(const char *bytes, size_t len)
{
    uint64_t hash = 0xCBF29CE484222325u;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return (uint32_t)(hash >> 32 ^ hash);
}

/* The slot that holds these bytes, or the empty one where they would go. */
static uint32_t find_slot(const hr_vocabulary *v, const char *bytes, size_t len)
{
    uint32_t at = hash_bytes(bytes, len) & v->by_bytes_mask;

    for (;; at = (at + 1) & v->by_bytes_mask) {
        const hr_token *token = v->by_bytes[at] < 0 ? NULL : &v->tokens[v->by_bytes[at]];

        if (!token || (token->len == len && memcmp(token_text(v, token), bytes, len) == 0))
            return at;
    }
}

int32_t hr_vocabulary_find(const hr_vocabulary *v, const char *bytes, size_t len)
{
    return v->by_bytes[find_slot(v, bytes, len)];
}

/* The smallest power of two above twice n, less one. */
static uint32_t mask_for(uint32_t n)
{
    uint32_t size = 64;

    while (size < n * 2)
        size *= 2;
    return size - 1;
}

static headrace_status allocate_tables(hr_vocabulary *v, size_t n_merges, headrace_error *err)
{
    if (n_merges > HR_VOCABULARY_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "%zu merges; at most %d are supported", n_merges, HR_VOCABULARY_MAX);
    v->by_bytes_mask = mask_for(v->n_tokens);
    v->by_bytes = malloc(((size_t)v->by_bytes_mask + 1) * sizeof *v->by_bytes);
    v->merges_capacity = (uint32_t)n_merges;
    v->merges = malloc((n_merges ? n_merges : 1) * sizeof *v->merges);
    v->slots_mask = mask_for(v->merges_capacity);
    v->slots = malloc(((size_t)v->slots_mask + 1) * sizeof *v->slots);
    if (!v->by_bytes || !v->merges || !v->slots)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the index of %u tokens", v->n_tokens);
    for (uint32_t i = 0; i <= v->by_bytes_mask; i++)
        v->by_bytes[i] = -1;
    for (uint32_t i = 0; i <= v->slots_mask; i++)
        v->slots[i].rank = HR_NO_RANK;
    return HEADRACE_OK;
}

headrace_status hr_vocabulary_index(hr_vocabulary *v, size_t n_merges, headrace_error *err)
{
    HR_PASS(allocate_tables(v, n_merges, err));
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const hr_token *token = &v->tokens[id];
        uint32_t at;

        if (!token->is_bpe)
            continue;
        at = find_slot(v, token_text(v, token), token->len);
        if (v->by_bytes[at] >= 0)
            return hr_fail(err, HEADRACE_E_MODEL, "ids %d and %u have the same text \"%.*s\"", v->by_bytes[at], id,
                           shown(token->len), token_text(v, token));
        v->by_bytes[at] = (int32_t)id;
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;

        v->byte_ids[byte] = hr_vocabulary_find(v, &c, 1);
        if (v->byte_ids[byte] < 0)
            return hr_fail(err, HEADRACE_E_MODEL,
                           "the vocabulary has no token for the single byte 0x%02X; a byte-level one has all 256",
                           byte);
    }
    return HEADRACE_OK;
}

static headrace_status find_part(const hr_vocabulary *v, const char *spelling, size_t len, char *bytes, size_t *n_bytes,
                                 int32_t *id, headrace_error *err)
{
    *id = -1;
    if (len > 0 && hr_byte_level_decode(spelling, len, bytes, n_bytes))
        *id = hr_vocabulary_find(v, bytes, *n_bytes);
    if (*id < 0)
        return hr_fail(err, HEADRACE_E_MODEL, "merge %u names \"%.*s\", which is not in the vocabulary", v->n_merges,
                       shown(len), spelling);
    return HEADRACE_OK;
}

static headrace_status insert_merge(hr_vocabulary *v, hr_merge merge, headrace_error *err)
{
    uint64_t pair = (uint64_t)(uint32_t)merge.left << 32 | (uint32_t)merge.right;
    uint32_t at = hr_merge_hash(pair) & v->slots_mask;

    while (v->slots[at].rank != HR_NO_RANK) {
        if (v->slots[at].pair == pair)
            return hr_fail(err, HEADRACE_E_MODEL, "merge %u repeats merge %u", v->n_merges, v->slots[at].rank);
        at = (at + 1) & v->slots_mask;
    }
    v->slots[at] = (hr_merge_slot){.pair = pair, .rank = v->n_merges};
    v->merges[v->n_merges++] = merge;
    return HEADRACE_OK;
}

headrace_status hr_vocabulary_add_merge(hr_vocabulary *v, const char *left, size_t left_len, const char *right,
                                        size_t right_len, headrace_error *err)
{
    headrace_status status;
    hr_merge merge;
    size_t n_left = 0, n_right = 0;
    char *bytes;

    HR_ASSERT(v->n_merges < v->merges_capacity);
    if (left_len > HR_TOKEN_BYTES_MAX || right_len > HR_TOKEN_BYTES_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "merge %u is longer than a token may be", v->n_merges);
    bytes = malloc(left_len + right_len + 1);
    if (!bytes)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for merge %u", v->n_merges);
    HR_TRY_GOTO(done, find_part(v, left, left_len, bytes, &n_left, &merge.left, err));
    HR_TRY_GOTO(done, find_part(v, right, right_len, bytes + n_left, &n_right, &merge.right, err));
    merge.result = hr_vocabulary_find(v, bytes, n_left + n_right);
    if (merge.result < 0)
        status = hr_fail(err, HEADRACE_E_MODEL, "merge %u makes \"%.*s%.*s\", which is not in the vocabulary",
                         v->n_merges, shown(left_len), left, shown(right_len), right);
    else if (v->tokens[merge.result].kind == HR_TOKEN_SPECIAL)
        status = hr_fail(err, HEADRACE_E_MODEL,
                         "merge %u makes the special token \"%.*s%.*s\": ordinary text could become it", v->n_merges,
                         shown(left_len), left, shown(right_len), right);
    else
        status = insert_merge(v, merge, err);
done:
    free(bytes);
    return status;
}
