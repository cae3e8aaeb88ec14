/* Tokens and merges: the tables of byte-level BPE, filled by a reader (tokenizer_json.c, tokenizer_gguf.c), then only
 * read.
 *
 * Order of calls: init, add_token for each, mark_added for each, index, add_merge for each. Readers pass the file's
 * words for messages through hr_prefix; messages here name the token or merge.
 */
#ifndef HR_TEXT_VOCABULARY_H
#define HR_TEXT_VOCABULARY_H

#include "base/buffer.h"
#include "base/status.h"

enum {
    HR_VOCABULARY_MAX = 1 << 22,  /* ids; a limit against nonsense, far above any vocabulary */
    HR_ADDED_TOKEN_MAX = 1024,    /* bytes of an added token; bounds the work per position of text */
    HR_TOKEN_BYTES_MAX = 1 << 20, /* bytes of any token */
};

typedef enum hr_token_kind {
    HR_TOKEN_HOLE,    /* no token has this id */
    HR_TOKEN_PLAIN,   /* made by merges */
    HR_TOKEN_OPAQUE,  /* has text but is not spelled in byte characters: decoded, never produced */
    HR_TOKEN_ADDED,   /* cut out of the text before splitting, in any text */
    HR_TOKEN_SPECIAL, /* the same, only where the caller allows special tokens */
} hr_token_kind;

typedef struct hr_token {
    uint32_t offset, len; /* into text */
    hr_token_kind kind;
    bool is_normalized; /* added tokens: matched in the second pass (see added_tokens.h) */
    bool is_bpe;        /* its bytes are spelled in byte characters: merges may name it */
} hr_token;

typedef struct hr_merge {
    int32_t left, right, result;
} hr_merge;

typedef struct hr_merge_slot {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank; /* HR_NO_RANK: empty */
} hr_merge_slot;
#define HR_NO_RANK UINT32_MAX

typedef struct hr_vocabulary {
    hr_buffer text;   /* bytes of all tokens */
    hr_token *tokens; /* [n_tokens] by id */
    uint32_t n_tokens, capacity, id_limit;

    int32_t *by_bytes; /* open addressing over is_bpe tokens; -1: empty */
    uint32_t by_bytes_mask;
    int32_t byte_ids[256]; /* the token of each single byte; every byte has one */

    hr_merge *merges; /* [n_merges], position = rank */
    uint32_t n_merges, merges_capacity;
    hr_merge_slot *slots;
    uint32_t slots_mask;
} hr_vocabulary;

/* Ids at or above id_limit (rows of the embedding) are refused. */
void hr_vocabulary_init(hr_vocabulary *v, uint32_t id_limit);
void hr_vocabulary_deinit(hr_vocabulary *v);

/* A token in byte-level spelling (a spelling outside the byte alphabet is kept as the text itself). */
headrace_status hr_vocabulary_add_token(hr_vocabulary *v, int64_t id, const char *spelling, size_t len,
                                        headrace_error *err);
/* Makes an id an added token with this literal text; the id may be new or an entry of the same spelling. */
headrace_status hr_vocabulary_mark_added(hr_vocabulary *v, int64_t id, const char *content, size_t len, bool is_special,
                                         bool is_normalized, headrace_error *err);
/* All tokens are in: builds the index; refuses doubled texts and a vocabulary that lacks a byte. n_merges is the coming
 * number. */
headrace_status hr_vocabulary_index(hr_vocabulary *v, size_t n_merges, headrace_error *err);
/* The next merge by rank, in byte-level spelling. */
headrace_status hr_vocabulary_add_merge(hr_vocabulary *v, const char *left, size_t left_len, const char *right,
                                        size_t right_len, headrace_error *err);

/* The id of a BPE token by its bytes, or -1. */
int32_t hr_vocabulary_find(const hr_vocabulary *v, const char *bytes, size_t len);

static inline uint32_t hr_merge_hash(uint64_t pair)
{
    pair *= 0x9E3779B97F4A7C15u;
    return (uint32_t)(pair >> 32) ^ (uint32_t)(pair >> 11);
}

/* The rank of the merge of two tokens, or HR_NO_RANK. */
static inline uint32_t hr_vocabulary_rank(const hr_vocabulary *v, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    for (uint32_t at = hr_merge_hash(pair) & v->slots_mask;; at = (at + 1) & v->slots_mask) {
        if (v->slots[at].rank == HR_NO_RANK || v->slots[at].pair == pair)
            return v->slots[at].rank;
    }
}

#endif
