/* See added_tokens.h.
 *
 * The sorted array is a trie without nodes: the tokens that share a prefix are neighbours, so that reading one more
 * byte of text narrows an interval by two binary searches, and a token that ends here is the first of the interval. A
 * few hundred tokens need no more memory than their ids.
 *
 * Two sets, because the reference cuts out tokens with "normalized": false from the whole text first, and the others
 * from what is left. Without a normaliser the two differ only where spellings overlap; they are kept apart so that even
 * then the ids agree.
 */
#include "text/added_tokens.h"

#include <string.h>

typedef struct order {
    const hr_vocabulary *v;
} order;

static int compare_ids(const void *a, const void *b, void *context)
{
    const hr_vocabulary *v = ((const order *)context)->v;
    const hr_token *x = &v->tokens[*(const int32_t *)a], *y = &v->tokens[*(const int32_t *)b];
    size_t n = x->len < y->len ? x->len : y->len;
    int difference = memcmp(v->text.at + x->offset, v->text.at + y->offset, n);

    if (difference != 0)
        return difference;
    return x->len < y->len ? -1 : x->len > y->len;
}

static unsigned char byte_at(const hr_vocabulary *v, int32_t id, size_t i)
{
    return (unsigned char)v->text.at[v->tokens[id].offset + i];
}

static bool belongs(const hr_token *token, bool is_normalized)
{
    return (token->kind == HR_TOKEN_ADDED || token->kind == HR_TOKEN_SPECIAL) && token->is_normalized == is_normalized;
}

static headrace_status build_set(hr_added_set *set, const hr_vocabulary *v, bool is_normalized, headrace_error *err)
{
    order by_bytes = {.v = v};
    uint32_t n = 0, at = 0;

    for (uint32_t id = 0; id < v->n_tokens; id++)
        n += belongs(&v->tokens[id], is_normalized);
    set->ids = malloc((n ? n : 1) * sizeof *set->ids);
    if (!set->ids)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u added tokens", n);
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (belongs(&v->tokens[id], is_normalized))
            set->ids[set->n++] = (int32_t)id;
    }
    qsort_r(set->ids, n, sizeof *set->ids, compare_ids, &by_bytes);
    for (unsigned byte = 0; byte <= 256; byte++) {
        while (at < n && byte_at(v, set->ids[at], 0) < byte)
            at++;
        set->first[byte] = at;
    }
    return HEADRACE_OK;
}

headrace_status hr_added_tokens_init(hr_added_tokens *added, const hr_vocabulary *v, headrace_error *err)
{
    order by_bytes = {.v = v};

    *added = (hr_added_tokens){0};
    for (unsigned s = 0; s < 2; s++) {
        HR_PASS(build_set(&added->set[s], v, s == 1, err));
        for (uint32_t i = 0; i + 1 < added->set[s].n; i++) {
            const int32_t *ids = added->set[s].ids;

            if (compare_ids(&ids[i], &ids[i + 1], &by_bytes) == 0)
                return hr_fail(err, HEADRACE_E_MODEL, "ids %d and %d are the same added token", ids[i], ids[i + 1]);
        }
    }
    for (uint32_t i = 0; i < added->set[1].n; i++) {
        const hr_token *token = &v->tokens[added->set[1].ids[i]];
        size_t n;
        int32_t twin = hr_added_match(&added->set[0], v, v->text.at + token->offset, token->len, token->len, &n);

        if (twin >= 0 && n == token->len)
            return hr_fail(err, HEADRACE_E_MODEL, "ids %d and %d are the same added token", twin, added->set[1].ids[i]);
    }
    return HEADRACE_OK;
}

void hr_added_tokens_deinit(hr_added_tokens *added)
{
    for (unsigned s = 0; s < 2; s++)
        free(added->set[s].ids);
    *added = (hr_added_tokens){0};
}

/* The first of ids[low .. high) whose byte i is not below limit; all are longer than i and share their first i bytes.
 */
static uint32_t lower_bound(const hr_added_set *set, const hr_vocabulary *v, uint32_t low, uint32_t high, size_t i,
                            unsigned limit)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (byte_at(v, set->ids[middle], i) < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t hr_added_match(const hr_added_set *set, const hr_vocabulary *v, const char *text, size_t len, size_t n_special,
                       size_t *n_matched)
{
    unsigned char byte = len ? (unsigned char)text[0] : 0;
    uint32_t low = set->first[byte], high = set->first[byte + 1];
    int32_t found = -1;

    for (size_t i = 1; low < high && i <= len; i++) {
        const hr_token *token = &v->tokens[set->ids[low]];

        if (token->len == i) { /* ends here; it is the only one, and the first */
            if (token->kind != HR_TOKEN_SPECIAL || i <= n_special) {
                found = set->ids[low];
                *n_matched = i;
            }
            low++;
        }
        if (i == len)
            break;
        byte = (unsigned char)text[i];
        low = lower_bound(set, v, low, high, i, byte);
        high = lower_bound(set, v, low, high, i, byte + 1u);
    }
    return found;
}

int32_t hr_added_find(const hr_added_tokens *added, const hr_vocabulary *v, const char *text, size_t len)
{
    for (unsigned s = 0; s < 2; s++) {
        size_t n = 0;
        int32_t id = hr_added_match(&added->set[s], v, text, len, len, &n);

        if (id >= 0 && n == len)
            return id;
    }
    return -1;
}
