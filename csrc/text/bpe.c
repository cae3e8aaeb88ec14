/* Byte-pair merging: the adjacent pair of lowest rank is merged, the leftmost on ties, until no pair has a rank.
 *
 * Most pieces are words of a few bytes: for them a plain scan for the lowest rank is fastest. A long piece (a run of
 * letters without blanks may be megabytes) would make the scan quadratic, so its candidates wait in an order of their
 * own: a first-in first-out row for each rank. Looking from left to right, candidates of one rank nearly always arrive
 * in order of position, so a row needs no sorting, and the whole costs a constant per candidate: there are at most
 * three per byte. Candidates that do come out of order (several ranks feed one row, or a merge makes a pair of lower
 * rank than its own, which real vocabularies contain) go to a heap. The next merge is the smaller of the first row's
 * head and the heap's top: exact in all cases, n log n in the worst.
 *
 * A candidate is a rank and a position and is not taken back when its pair disappears; it is checked when its turn
 * comes. Its pair is still there if and only if the symbols at the position are the merge's two parts.
 */
#include "text/bpe.h"

#include <string.h>

enum { SCAN_MAX = 40 }; /* bytes up to which scanning is used */
#define NONE UINT32_MAX

typedef struct hr_bpe_row {
    uint32_t head, tail; /* links; NONE: empty */
} hr_bpe_row;
typedef struct hr_bpe_link {
    uint32_t at, next;
} hr_bpe_link;

void hr_bpe_scratch_deinit(hr_bpe_scratch *s)
{
    free(s->ids);
    free(s->next);
    free(s->prev);
    free(s->rows);
    free(s->links);
    free(s->ranks.entries);
    free(s->stragglers.entries);
    *s = (hr_bpe_scratch){0};
}

/* Makes the array whose pointer lies at `array` hold n elements; content is kept. The pointer goes through memcpy
 * because its type differs from caller to caller. */
static bool grow(void *array, uint32_t *capacity, uint64_t n, size_t size)
{
    uint64_t wanted = *capacity ? *capacity : 256;
    void *at;

    if (n <= *capacity)
        return true;
    while (wanted < n)
        wanted *= 2;
    if (wanted > UINT32_MAX)
        return false;
    memcpy(&at, array, sizeof at);
    at = realloc(at, wanted * size);
    if (!at)
        return false;
    memcpy(array, &at, sizeof at);
    *capacity = (uint32_t)wanted;
    return true;
}

headrace_status hr_id_list_reserve(hr_id_list *list, size_t extra, headrace_error *err)
{
    size_t wanted = list->capacity ? list->capacity : 64;
    int32_t *grown;

    if (extra <= list->capacity - list->n)
        return HEADRACE_OK;
    while (wanted < list->n + extra)
        wanted *= 2;
    grown = realloc(list->at, wanted * sizeof *grown);
    if (!grown)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %zu ids", wanted);
    list->at = grown;
    list->capacity = wanted;
    return HEADRACE_OK;
}

static headrace_status encode_short(const hr_vocabulary *v, hr_bpe_scratch *s, const char *piece, uint32_t len,
                                    hr_id_list *out, headrace_error *err)
{
    int32_t ids[SCAN_MAX];
    uint32_t ranks[SCAN_MAX]; /* ranks[i]: of the pair (i, i + 1) */
    uint32_t n = len;

    for (uint32_t i = 0; i < n; i++)
        ids[i] = v->byte_ids[(unsigned char)piece[i]];
    for (uint32_t i = 0; i + 1 < n; i++)
        ranks[i] = hr_vocabulary_rank(v, ids[i], ids[i + 1]);
    for (;;) {
        uint32_t best = 0;

        for (uint32_t i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best])
                best = i;
        }
        s->n_steps += n;
        if (n < 2 || ranks[best] == HR_NO_RANK)
            break;
        ids[best] = v->merges[ranks[best]].result;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(ranks + best + 1, ranks + best + 2, (n - best - 2) * sizeof *ranks);
            ranks[best] = hr_vocabulary_rank(v, ids[best], ids[best + 1]);
        }
        if (best > 0)
            ranks[best - 1] = hr_vocabulary_rank(v, ids[best - 1], ids[best]);
    }
    HR_PASS(hr_id_list_reserve(out, n, err));
    memcpy(out->at + out->n, ids, n * sizeof *ids);
    out->n += n;
    return HEADRACE_OK;
}

static bool is_before(hr_bpe_entry a, hr_bpe_entry b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static bool heap_push(hr_bpe_heap *heap, hr_bpe_entry entry)
{
    uint32_t i = heap->n;

    if (!grow(&heap->entries, &heap->capacity, (uint64_t)heap->n + 1, sizeof *heap->entries))
        return false;
    heap->n++;
    for (; i > 0 && is_before(entry, heap->entries[(i - 1) / 2]); i = (i - 1) / 2)
        heap->entries[i] = heap->entries[(i - 1) / 2];
    heap->entries[i] = entry;
    return true;
}

static hr_bpe_entry heap_pop(hr_bpe_heap *heap)
{
    hr_bpe_entry *e = heap->entries, top = e[0], last = e[--heap->n];
    uint32_t i = 0;

    for (uint32_t child; (child = 2 * i + 1) < heap->n; i = child) {
        if (child + 1 < heap->n && is_before(e[child + 1], e[child]))
            child++;
        if (!is_before(e[child], last))
            break;
        e[i] = e[child];
    }
    if (heap->n > 0)
        e[i] = last;
    return top;
}

/* Adds the pair that begins at `at` to the candidates, if it has a rank. */
static bool add_candidate(const hr_vocabulary *v, hr_bpe_scratch *s, uint32_t at)
{
    uint32_t rank = hr_vocabulary_rank(v, s->ids[at], s->ids[s->next[at]]);
    hr_bpe_row *row;

    if (rank == HR_NO_RANK)
        return true;
    row = &s->rows[rank];
    if (row->head != NONE && at < s->links[row->tail].at)
        return heap_push(&s->stragglers, (hr_bpe_entry){.rank = rank, .at = at});
    if (!grow(&s->links, &s->links_capacity, (uint64_t)s->n_links + 1, sizeof *s->links))
        return false;
    s->links[s->n_links] = (hr_bpe_link){.at = at, .next = NONE};
    if (row->head == NONE) {
        row->head = s->n_links;
        if (!heap_push(&s->ranks, (hr_bpe_entry){.rank = rank}))
            return false;
    } else {
        s->links[row->tail].next = s->n_links;
    }
    row->tail = s->n_links++;
    return true;
}

/* Takes the candidate of lowest rank, leftmost on ties; false when there is none. */
static bool take_candidate(hr_bpe_scratch *s, hr_bpe_entry *out)
{
    hr_bpe_row *row = NULL;

    if (s->ranks.n > 0) {
        out->rank = s->ranks.entries[0].rank;
        row = &s->rows[out->rank];
        out->at = s->links[row->head].at;
    }
    if (s->stragglers.n > 0 && (!row || is_before(s->stragglers.entries[0], *out))) {
        *out = heap_pop(&s->stragglers);
        return true;
    }
    if (!row)
        return false;
    row->head = s->links[row->head].next;
    if (row->head == NONE)
        (void)heap_pop(&s->ranks);
    return true;
}

/* Rows are empty between calls, so that a piece costs nothing for the ranks that it does not have. */
static bool prepare_rows(const hr_vocabulary *v, hr_bpe_scratch *s)
{
    uint32_t old = s->n_rows;

    if (!grow(&s->rows, &s->n_rows, v->n_merges, sizeof *s->rows))
        return false;
    for (uint32_t rank = old; rank < s->n_rows; rank++)
        s->rows[rank].head = NONE;
    s->n_links = s->ranks.n = s->stragglers.n = 0;
    return true;
}

static bool prepare_long(const hr_vocabulary *v, hr_bpe_scratch *s, const char *piece, uint32_t len)
{
    uint32_t capacity = s->capacity;

    /* Three arrays of one capacity: the first two grow under a copy of it. */
    if (!grow(&s->ids, &capacity, len, sizeof *s->ids))
        return false;
    capacity = s->capacity;
    if (!grow(&s->next, &capacity, len, sizeof *s->next) || !grow(&s->prev, &s->capacity, len, sizeof *s->prev) ||
        !prepare_rows(v, s))
        return false;
    for (uint32_t i = 0; i < len; i++) {
        s->ids[i] = v->byte_ids[(unsigned char)piece[i]];
        s->next[i] = i + 1 < len ? i + 1 : NONE;
        s->prev[i] = i > 0 ? i - 1 : NONE;
    }
    for (uint32_t i = 0; i + 1 < len; i++) {
        if (!add_candidate(v, s, i))
            return false;
    }
    return true;
}

static bool merge_long(const hr_vocabulary *v, hr_bpe_scratch *s)
{
    hr_bpe_entry candidate;

    while (take_candidate(s, &candidate)) {
        const hr_merge *merge = &v->merges[candidate.rank];
        uint32_t at = candidate.at, right = s->next[at];

        s->n_steps++;
        if (s->ids[at] != merge->left || right == NONE || s->ids[right] != merge->right)
            continue; /* one of the two was merged with another in the meantime */
        s->ids[at] = merge->result;
        s->ids[right] = -1; /* no symbol begins here any more */
        s->next[at] = s->next[right];
        if (s->next[at] != NONE)
            s->prev[s->next[at]] = at;
        if (s->prev[at] != NONE && !add_candidate(v, s, s->prev[at]))
            return false;
        if (s->next[at] != NONE && !add_candidate(v, s, at))
            return false;
    }
    return true;
}

static headrace_status encode_long(const hr_vocabulary *v, hr_bpe_scratch *s, const char *piece, uint32_t len,
                                   hr_id_list *out, headrace_error *err)
{
    size_t n = 0;

    if (!prepare_long(v, s, piece, len) || !merge_long(v, s)) {
        free(s->rows); /* some are not empty */
        s->rows = NULL;
        s->n_rows = 0;
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for merging a piece of %u bytes", len);
    }
    for (uint32_t i = 0; i != NONE; i = s->next[i])
        n++;
    HR_PASS(hr_id_list_reserve(out, n, err));
    for (uint32_t i = 0; i != NONE; i = s->next[i])
        out->at[out->n++] = s->ids[i];
    return HEADRACE_OK;
}

headrace_status hr_bpe_encode(const hr_vocabulary *v, hr_bpe_scratch *s, const char *piece, size_t len, hr_id_list *out,
                              headrace_error *err)
{
    HR_ASSERT(len > 0 && len <= INT32_MAX);
    if (len <= SCAN_MAX)
        return encode_short(v, s, piece, (uint32_t)len, out, err);
    return encode_long(v, s, piece, (uint32_t)len, out, err);
}
