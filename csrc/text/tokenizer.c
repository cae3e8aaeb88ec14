/* Text to ids, and the tokenizer as a whole.
 *
 * Encoding goes down in three steps, as in the reference: added tokens are cut out of the raw text, what is left is
 * split into pieces, each piece is merged. Ranges with and without special tokens only change the first step: one text
 * is walked, and each position knows how far a special spelling beginning there may reach (to the end of the run of
 * special ranges it lies in, or nowhere). So a spelling that straddles a border, or stands in a message, is ordinary
 * text, and everything else is as if the whole had been encoded at once.
 *
 * Threads: the tables never change after open. What a call needs for itself (regex match data, merge arrays, a cache of
 * pieces) is one hr_encode_scratch, taken from a list under a lock and put back, so that there are as many as there
 * were calls at once.
 */
#include "base/utf8.h"
#include "text/bpe.h"
#include "text/tokenizer_parts.h"

#include <pthread.h>
#include <string.h>

enum {
    TEXT_MAX = INT32_MAX,
    CACHE_ENTRIES = 1 << 14, /* 1 MiB a thread: more than the different words of a long text */
    CACHE_KEY_MAX = 22,
    CACHE_IDS_MAX = 10,
    KEEP_SCRATCH_MAX = 1 << 18, /* merge arrays for longer pieces than this are not kept */
};

/* Direct-mapped: a new piece takes the place of the old one. The key is compared in full, so that a hit is always
 * right. */
typedef struct cached_piece {
    uint8_t len, n_ids; /* len 0: empty */
    char key[CACHE_KEY_MAX];
    int32_t ids[CACHE_IDS_MAX];
} cached_piece;

typedef struct hr_encode_scratch {
    struct hr_encode_scratch *next;
    hr_split_walk walk;
    hr_bpe_scratch bpe;
    hr_buffer clean;     /* the text with invalid UTF-8 replaced, when there was any */
    cached_piece *cache; /* [CACHE_ENTRIES] */
} hr_encode_scratch;

typedef struct hr_encode_pool {
    pthread_mutex_t lock;    /* guards idle */
    hr_encode_scratch *idle; /* scratch that no thread uses now */
} hr_encode_pool;

/* A stretch of text whose special tokens count or do not; runs alternate. */
typedef struct run {
    size_t end;
    bool parse_special;
} run;

typedef struct encoding {
    const hr_tokenizer *tokenizer;
    hr_encode_scratch *scratch;
    const char *text;
    size_t len;
    run *runs;
    size_t n_runs;
    size_t run_at[2]; /* the run of the last position looked at, for each set of added tokens */
    hr_id_list ids;
    headrace_error *err;
} encoding;

/* ---------------------------------------------------------------- scratch */

static void free_scratch(hr_encode_scratch *s)
{
    hr_split_walk_deinit(&s->walk);
    hr_bpe_scratch_deinit(&s->bpe);
    hr_buffer_deinit(&s->clean);
    free(s->cache);
    free(s);
}

/* NULL, with err, when there is no memory. */
static hr_encode_scratch *new_scratch(const hr_tokenizer *tokenizer, headrace_error *err)
{
    hr_encode_scratch *s = calloc(1, sizeof *s);

    if (s)
        s->cache = calloc(CACHE_ENTRIES, sizeof *s->cache);
    if (!s || !s->cache) {
        (void)hr_fail(err, HEADRACE_E_MEMORY, "no memory for encoding text");
        free(s);
        return NULL;
    }
    if (hr_split_walk_init(&s->walk, &tokenizer->splitter, err) != HEADRACE_OK) {
        free_scratch(s);
        return NULL;
    }
    return s;
}

static hr_encode_scratch *take_scratch(const hr_tokenizer *tokenizer, headrace_error *err)
{
    hr_encode_pool *pool = tokenizer->pool;
    hr_encode_scratch *s;

    (void)pthread_mutex_lock(&pool->lock);
    s = pool->idle;
    if (s)
        pool->idle = s->next;
    (void)pthread_mutex_unlock(&pool->lock);
    return s ? s : new_scratch(tokenizer, err);
}

static void give_scratch(const hr_tokenizer *tokenizer, hr_encode_scratch *s)
{
    hr_encode_pool *pool = tokenizer->pool;

    if (s->bpe.capacity > KEEP_SCRATCH_MAX)
        hr_bpe_scratch_deinit(&s->bpe);
    if (s->clean.capacity > KEEP_SCRATCH_MAX)
        hr_buffer_deinit(&s->clean);
    if (s->walk.replaced.capacity > KEEP_SCRATCH_MAX)
        hr_buffer_deinit(&s->walk.replaced);
    (void)pthread_mutex_lock(&pool->lock);
    s->next = pool->idle;
    pool->idle = s;
    (void)pthread_mutex_unlock(&pool->lock);
}

/* ---------------------------------------------------------------- pieces */

static cached_piece *cache_slot(hr_encode_scratch *s, const char *piece, size_t len)
{
    uint64_t words[3] = {0}, hash;

    memcpy(words, piece, len);
    hash = (words[0] ^ len) * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 29 ^ words[1]) * 0xBF58476D1CE4E5B9u;
    hash = (hash ^ hash >> 32 ^ words[2]) * 0x94D049BB133111EBu;
    return &s->cache[hash >> 40 & (CACHE_ENTRIES - 1)];
}

static headrace_status append_ids(encoding *e, const int32_t *ids, size_t n)
{
    HR_PASS(hr_id_list_reserve(&e->ids, n, e->err));
    memcpy(e->ids.at + e->ids.n, ids, n * sizeof *ids);
    e->ids.n += n;
    return HEADRACE_OK;
}

static headrace_status merge_piece(encoding *e, const char *piece, size_t len)
{
    const hr_vocabulary *v = &e->tokenizer->vocabulary;

    if (e->tokenizer->ignore_merges) {
        int32_t id = hr_vocabulary_find(v, piece, len);

        if (id >= 0 && v->tokens[id].kind == HR_TOKEN_PLAIN)
            return append_ids(e, &id, 1);
    }
    return hr_bpe_encode(v, &e->scratch->bpe, piece, len, &e->ids, e->err);
}

static headrace_status encode_piece(encoding *e, const char *piece, size_t len)
{
    size_t before = e->ids.n, n;
    cached_piece *slot;

    if (len > CACHE_KEY_MAX)
        return merge_piece(e, piece, len);
    slot = cache_slot(e->scratch, piece, len);
    if (slot->len == len && memcmp(slot->key, piece, len) == 0)
        return append_ids(e, slot->ids, slot->n_ids);
    HR_PASS(merge_piece(e, piece, len));
    n = e->ids.n - before;
    if (n <= CACHE_IDS_MAX) {
        slot->len = (uint8_t)len;
        slot->n_ids = (uint8_t)n;
        memcpy(slot->key, piece, len);
        memcpy(slot->ids, e->ids.at + before, n * sizeof *slot->ids);
    }
    return HEADRACE_OK;
}

static headrace_status encode_plain(encoding *e, size_t begin, size_t end)
{
    size_t len;

    if (begin == end)
        return HEADRACE_OK;
    HR_PASS(hr_split_begin(&e->scratch->walk, e->text + begin, end - begin, e->err));
    for (size_t at = begin; at < end; at += len) {
        HR_PASS(hr_split_next(&e->scratch->walk, &e->tokenizer->splitter, &len, e->err));
        HR_PASS(encode_piece(e, e->text + at, len));
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- added tokens */

/* How many bytes from `at` a special token may take. Positions only grow for each set. */
static size_t special_reach(encoding *e, unsigned s, size_t at)
{
    const run *r;

    while (e->runs[e->run_at[s]].end <= at)
        e->run_at[s]++;
    r = &e->runs[e->run_at[s]];
    return r->parse_special ? r->end - at : 0;
}

/* Cuts the added tokens of set s out of [begin, end) and encodes what lies between. */
static headrace_status encode_cut(encoding *e, unsigned s, size_t begin, size_t end)
{
    const hr_added_set *set = &e->tokenizer->added.set[s];
    size_t gap = begin;

    for (size_t at = begin; at < end;) {
        unsigned char byte = (unsigned char)e->text[at];
        size_t len = 0;
        int32_t id;

        if (set->first[byte] == set->first[byte + 1]) {
            at++;
            continue;
        }
        id = hr_added_match(set, &e->tokenizer->vocabulary, e->text + at, end - at, special_reach(e, s, at), &len);
        if (id < 0) {
            at++;
            continue;
        }
        HR_PASS(s == 0 ? encode_cut(e, 1, gap, at) : encode_plain(e, gap, at));
        HR_PASS(append_ids(e, &id, 1));
        at += len;
        gap = at;
    }
    return s == 0 ? encode_cut(e, 1, gap, end) : encode_plain(e, gap, end);
}

/* ---------------------------------------------------------------- text */

/* Copies text with each maximal invalid prefix replaced by U+FFFD. */
static void copy_clean(hr_buffer *out, const char *text, size_t len)
{
    size_t valid_from = 0;

    for (size_t i = 0; i < len;) {
        bool is_valid;
        size_t step = hr_utf8_step(text + i, len - i, &is_valid);

        if (!is_valid) {
            hr_buffer_add(out, text + valid_from, i - valid_from);
            hr_buffer_add(out, "\xEF\xBF\xBD", 3);
            valid_from = i + step;
        }
        i += step;
    }
    hr_buffer_add(out, text + valid_from, len - valid_from);
}

/* Sets e->text, len and runs. Each range is a text of its own where invalid bytes are concerned. */
static headrace_status prepare_text(encoding *e, const char *text, const hr_text_range *ranges, size_t n_ranges)
{
    hr_buffer *clean = &e->scratch->clean;
    size_t at = 0;
    bool is_valid = true;

    for (size_t i = 0; i < n_ranges; at += ranges[i++].len) {
        if (ranges[i].len > TEXT_MAX - at)
            return hr_fail(e->err, HEADRACE_E_ARGUMENT, "the text has more than %d bytes", TEXT_MAX);
        is_valid = is_valid && hr_utf8_is_valid(text + at, ranges[i].len, NULL);
    }
    e->runs = calloc(n_ranges + 1, sizeof *e->runs);
    if (!e->runs)
        return hr_fail(e->err, HEADRACE_E_MEMORY, "no memory for %zu ranges of text", n_ranges);
    hr_buffer_clear(clean);
    e->text = text;
    e->len = at;
    at = 0;
    for (size_t i = 0; i < n_ranges; at += ranges[i++].len) {
        run *last = e->n_runs ? &e->runs[e->n_runs - 1] : NULL;

        if (!last || last->parse_special != ranges[i].parse_special)
            last = &e->runs[e->n_runs++];
        last->parse_special = ranges[i].parse_special;
        last->end = at + ranges[i].len;
        if (!is_valid) {
            copy_clean(clean, text + at, ranges[i].len);
            last->end = clean->len;
        }
    }
    if (is_valid)
        return HEADRACE_OK;
    if (clean->len > TEXT_MAX)
        return hr_fail(e->err, HEADRACE_E_ARGUMENT, "the text has more than %d bytes with U+FFFD for invalid ones",
                       TEXT_MAX);
    if (clean->failed) {
        hr_buffer_deinit(clean);
        return hr_fail(e->err, HEADRACE_E_MEMORY, "no memory for a copy of %zu bytes of text", e->len);
    }
    e->text = clean->at;
    e->len = clean->len;
    return HEADRACE_OK;
}

static headrace_status encode(const hr_tokenizer *tokenizer, const char *text, const hr_text_range *ranges,
                              size_t n_ranges, bool with_bos, int32_t **ids, size_t *n_ids, headrace_error *err)
{
    encoding e = {.tokenizer = tokenizer, .err = err};
    headrace_status status;

    *ids = NULL;
    *n_ids = 0;
    e.scratch = take_scratch(tokenizer, err);
    if (!e.scratch)
        return HEADRACE_E_MEMORY;
    HR_TRY_GOTO(done, prepare_text(&e, text ? text : "", ranges, n_ranges));
    HR_TRY_GOTO(done, hr_id_list_reserve(&e.ids, 8 + e.len / 4, err));
    if (with_bos && tokenizer->adds_bos)
        e.ids.at[e.ids.n++] = tokenizer->bos;
    HR_TRY_GOTO(done, encode_cut(&e, 0, 0, e.len));
    *ids = e.ids.at;
    *n_ids = e.ids.n;
    e.ids.at = NULL;
done:
    free(e.ids.at);
    free(e.runs);
    give_scratch(tokenizer, e.scratch);
    return status;
}

headrace_status hr_tokenizer_encode(const hr_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
                                    int32_t **ids, size_t *n_ids, headrace_error *err)
{
    hr_text_range whole = {.len = len, .parse_special = (flags & HEADRACE_ENCODE_SPECIAL) != 0};

    *ids = NULL;
    *n_ids = 0;
    if (flags & ~(uint32_t)(HEADRACE_ENCODE_SPECIAL | HEADRACE_ENCODE_BOS))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "flags", "unknown encode flags 0x%X", flags);
    return encode(tokenizer, text, &whole, 1, (flags & HEADRACE_ENCODE_BOS) != 0, ids, n_ids, err);
}

headrace_status hr_tokenizer_encode_ranges(const hr_tokenizer *tokenizer, const char *text, const hr_text_range *ranges,
                                           size_t n_ranges, int32_t **ids, size_t *n_ids, headrace_error *err)
{
    return encode(tokenizer, text, ranges, n_ranges, false, ids, n_ids, err);
}

/* ---------------------------------------------------------------- the tokenizer */

hr_tokenizer *hr_tokenizer_new(uint32_t vocab_size)
{
    hr_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    hr_encode_pool *pool = calloc(1, sizeof *pool);

    if (!tokenizer || !pool || pthread_mutex_init(&pool->lock, NULL) != 0) {
        free(pool);
        free(tokenizer);
        return NULL;
    }
    tokenizer->pool = pool;
    hr_vocabulary_init(&tokenizer->vocabulary, vocab_size);
    tokenizer->bos = tokenizer->eos = -1;
    return tokenizer;
}

void hr_tokenizer_close(hr_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    while (tokenizer->pool->idle) {
        hr_encode_scratch *s = tokenizer->pool->idle;

        tokenizer->pool->idle = s->next;
        free_scratch(s);
    }
    (void)pthread_mutex_destroy(&tokenizer->pool->lock);
    free(tokenizer->pool);
    hr_splitter_deinit(&tokenizer->splitter);
    hr_added_tokens_deinit(&tokenizer->added);
    hr_vocabulary_deinit(&tokenizer->vocabulary);
    free(tokenizer);
}

void hr_tokenizer_guess_eos(hr_tokenizer *tokenizer)
{
    tokenizer->eos = hr_tokenizer_find_special(tokenizer, "<|im_end|>", strlen("<|im_end|>"));
    if (tokenizer->eos < 0)
        tokenizer->eos = hr_tokenizer_find_special(tokenizer, "<|endoftext|>", strlen("<|endoftext|>"));
}

uint32_t hr_tokenizer_size(const hr_tokenizer *tokenizer)
{
    return tokenizer->vocabulary.n_tokens;
}

int32_t hr_tokenizer_bos(const hr_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t hr_tokenizer_eos(const hr_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int32_t hr_tokenizer_find_special(const hr_tokenizer *tokenizer, const char *text, size_t len)
{
    return hr_added_find(&tokenizer->added, &tokenizer->vocabulary, text, len);
}

bool hr_tokenizer_bytes(const hr_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *len, bool *is_special)
{
    const hr_vocabulary *v = &tokenizer->vocabulary;

    if (id < 0 || (uint32_t)id >= v->n_tokens || v->tokens[id].kind == HR_TOKEN_HOLE)
        return false;
    *bytes = v->text.at + v->tokens[id].offset;
    *len = v->tokens[id].len;
    if (is_special)
        *is_special = v->tokens[id].kind == HR_TOKEN_SPECIAL;
    return true;
}
