/* Full pages that can be found again by the tokens they hold: the reuse of common beginnings.
 *
 * Every page passes through here on its way from and to hr_kv_pages, because a page that nobody holds any more may
 * still be worth keeping. With is_enabled false this is a plain pool.
 */
#ifndef HR_ENGINE_PREFIX_CACHE_H
#define HR_ENGINE_PREFIX_CACHE_H

#include "engine/kv_pages.h"

/* Hash of a page: of the page before it (or the salt, for the first) and its own ids. Equal hashes prove nothing. */
typedef uint64_t (*hr_prefix_hash_fn)(uint64_t before, const int32_t *ids, uint32_t n_ids);

typedef struct hr_cached_page {
    uint64_t hash, salt;
    uint32_t parent;       /* page before it in the prompt, HR_NO_PAGE for the first */
    uint32_t n_children;   /* published pages whose parent this is */
    uint32_t bucket_next;  /* in the same bucket */
    uint32_t older, newer; /* neighbours in the order of last use, if idle */
    bool is_published, is_idle;
} hr_cached_page;

/* Owned by the engine thread. */
typedef struct hr_prefix_cache {
    hr_kv_pages *pages; /* borrowed */
    hr_prefix_hash_fn hash;
    uint32_t page_tokens; /* P */
    bool is_enabled;
    hr_cached_page *nodes; /* [n_pages], node i describes page i */
    int32_t *ids;          /* [n_pages, P], of published pages */
    uint32_t *buckets;     /* [n_buckets], first page of each chain */
    uint32_t n_buckets;    /* a power of two */
    uint32_t oldest, newest, n_idle, n_published;
} hr_prefix_cache;

/* hash NULL: the built-in one. False: no memory. */
bool hr_prefix_cache_init(hr_prefix_cache *cache, hr_kv_pages *pages, uint32_t page_tokens, bool is_enabled,
                          hr_prefix_hash_fn hash);
void hr_prefix_cache_deinit(hr_prefix_cache *cache); /* accepts a zeroed one */

/* A page for new content, held once: a free one, else the idle one used longest ago. HR_NO_PAGE: every page is held. */
uint32_t hr_prefix_cache_take(hr_prefix_cache *cache);
/* One more holder of a held or idle page. */
void hr_prefix_cache_hold(hr_prefix_cache *cache, uint32_t page);
/* One holder less. Without holders a published page becomes idle, another becomes free. Drop a sequence's pages from
 * the last to the first: that order is what keeps a parent younger than its children. */
void hr_prefix_cache_drop(hr_prefix_cache *cache, uint32_t page);
/* Pages that take could deliver now. */
static inline uint32_t hr_prefix_cache_available(const hr_prefix_cache *cache)
{
    return cache->pages->n_free + cache->n_idle;
}

/* The longest published beginning of ids under this salt, at most max_pages pages: writes their indices and returns how
 * many. They are not held yet. */
uint32_t hr_prefix_cache_find(const hr_prefix_cache *cache, uint64_t salt, const int32_t *ids, uint32_t max_pages,
                              uint32_t *found);
/* Makes a full, held page findable; ids [P] are its tokens and parent the page before it. If the same content is
 * already published, returns that page instead, held in place of `page`, which was dropped; else returns `page`. */
uint32_t hr_prefix_cache_publish(hr_prefix_cache *cache, uint64_t salt, uint32_t parent, const int32_t *ids,
                                 uint32_t page);
/* Makes a page unfindable unless others hang on it; for content that turned out bad. Last page of a sequence first. */
void hr_prefix_cache_forget(hr_prefix_cache *cache, uint32_t page);

/* NULL, or what is wrong: links, counts, an idle parent older than its child. */
const char *hr_prefix_cache_check(const hr_prefix_cache *cache);

#endif
