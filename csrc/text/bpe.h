/* Byte-pair merging of one piece of text. */
#ifndef HR_TEXT_BPE_H
#define HR_TEXT_BPE_H

#include "text/vocabulary.h"

typedef struct hr_id_list {
    int32_t *at;
    size_t n, capacity;
} hr_id_list;

headrace_status hr_id_list_reserve(hr_id_list *list, size_t extra, headrace_error *err);

typedef struct hr_bpe_entry {
    uint32_t rank, at;
} hr_bpe_entry;

typedef struct hr_bpe_heap {
    hr_bpe_entry *entries;
    uint32_t n, capacity;
} hr_bpe_heap;

/* Memory of one thread's merging; grows to the longest piece seen. */
typedef struct hr_bpe_scratch {
    int32_t *ids;          /* [capacity] symbol at each byte that begins one */
    uint32_t *next, *prev; /* [capacity] the symbols beside it */
    uint32_t capacity;
    struct hr_bpe_row *rows; /* [n_rows] first in, first out, one row per rank */
    uint32_t n_rows;
    struct hr_bpe_link *links; /* candidates in rows */
    uint32_t n_links, links_capacity;
    hr_bpe_heap ranks;      /* ranks whose row is not empty; entry.at is unused */
    hr_bpe_heap stragglers; /* candidates that came out of order */
    uint64_t n_steps;       /* candidates looked at since the beginning, for tests of running time */
} hr_bpe_scratch;

void hr_bpe_scratch_deinit(hr_bpe_scratch *scratch);

/* Appends the ids of one piece (1 byte .. 2 GiB). E_MEMORY. */
headrace_status hr_bpe_encode(const hr_vocabulary *v, hr_bpe_scratch *scratch, const char *piece, size_t len,
                              hr_id_list *out, headrace_error *err);

#endif
