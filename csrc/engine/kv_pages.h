/* Pages of key/value memory: who holds which. What a page contains is the backend's affair. */
#ifndef HR_ENGINE_KV_PAGES_H
#define HR_ENGINE_KV_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#define HR_NO_PAGE UINT32_MAX

/* Owned by the engine thread. */
typedef struct hr_kv_pages {
    uint32_t n_pages, n_free, n_held;
    uint32_t *free_list; /* [n_pages], a stack; the first n_free entries are free pages */
    uint32_t *refs;      /* [n_pages], sequences that hold the page */
} hr_kv_pages;

/* False: no memory. All pages start free. */
bool hr_kv_pages_init(hr_kv_pages *pages, uint32_t n_pages);
void hr_kv_pages_deinit(hr_kv_pages *pages); /* accepts a zeroed one */

/* A free page, held once; HR_NO_PAGE when none is free. */
uint32_t hr_kv_pages_take(hr_kv_pages *pages);
/* One more holder; returns how many there were before. */
uint32_t hr_kv_pages_hold(hr_kv_pages *pages, uint32_t page);
/* One holder less; returns how many are left. At 0 the caller keeps the page (as a cached one) or gives it back. */
uint32_t hr_kv_pages_drop(hr_kv_pages *pages, uint32_t page);
/* Puts a page that nobody holds on the free list. */
void hr_kv_pages_give_back(hr_kv_pages *pages, uint32_t page);

/* NULL, or what is wrong: a page free twice, free and held, or counts that do not match. scratch [n_pages] is
 * overwritten. n_idle: pages that are neither free nor held, as the prefix cache counts them. */
const char *hr_kv_pages_check(const hr_kv_pages *pages, uint32_t n_idle, uint32_t *scratch);

#endif
