/* Added tokens: texts that are cut out of the raw text as wholes, before anything is split. */
#ifndef HR_TEXT_ADDED_TOKENS_H
#define HR_TEXT_ADDED_TOKENS_H

#include "text/vocabulary.h"

/* One set of added tokens, sorted by their bytes. */
typedef struct hr_added_set {
    int32_t *ids; /* [n] */
    uint32_t n;
    uint32_t first[257]; /* ids[first[b] .. first[b + 1]) begin with byte b */
} hr_added_set;

typedef struct hr_added_tokens {
    hr_added_set set[2]; /* 0: matched in the raw text; 1: ("normalized") matched in what is left between those */
} hr_added_tokens;

headrace_status hr_added_tokens_init(hr_added_tokens *added, const hr_vocabulary *v, headrace_error *err);
void hr_added_tokens_deinit(hr_added_tokens *added);

/* The longest token of the set that text[0 .. len) begins with, or -1. Special tokens count only if they end within
 * n_special. *n_matched is its length. */
int32_t hr_added_match(const hr_added_set *set, const hr_vocabulary *v, const char *text, size_t len, size_t n_special,
                       size_t *n_matched);
/* The id of exactly this added token, or -1. */
int32_t hr_added_find(const hr_added_tokens *added, const hr_vocabulary *v, const char *text, size_t len);

#endif
