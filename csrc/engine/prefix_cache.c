/* The tree of prefixes is stored without a tree: page i has node i, which names its parent page. A lookup goes down
 * page by page through one hash table. The hash only chooses the bucket: a node matches if its parent is the very page
 * found before, and salt and token ids are equal. By induction the whole prefix is equal, so a collision can cost time
 * and never return foreign pages.
 *
 * A parent's index must mean the same content as long as a child names it, so a parent may not go before its children.
 * Whoever holds a page holds all pages before it, and drops them last; therefore a parent becomes idle after each of
 * its children, the idle page used longest ago has none, and eviction is O(1) with no search for leaves. The one way to
 * break this would be two sequences that computed the same page twice and hang their next pages on different copies:
 * publish gives the second one the first one's page instead.
 *
 * Why LRU and not frequency: the gain is the system prompt and the running conversation, both are touched each turn.
 */
#include "engine/prefix_cache.h"

#include "base/rng.h"
#include "base/status.h"

#include <string.h>

static uint64_t hash_ids(uint64_t before, const int32_t *ids, uint32_t n_ids)
{
    uint64_t hash = hr_mix64(before + 0x9E3779B97F4A7C15u);

    for (uint32_t i = 0; i < n_ids; i++)
        hash = (hash ^ (uint32_t)ids[i]) * 0x9FB21C651E98DF25u + (hash >> 29);
    return hr_mix64(hash);
}

bool hr_prefix_cache_init(hr_prefix_cache *cache, hr_kv_pages *pages, uint32_t page_tokens, bool is_enabled,
                          hr_prefix_hash_fn hash)
{
    uint32_t n_pages = pages->n_pages, n_buckets = 1;

    while (n_buckets < n_pages && n_buckets < 1u << 31)
        n_buckets *= 2;
    *cache = (hr_prefix_cache){.pages = pages,
                               .hash = hash ? hash : hash_ids,
                               .page_tokens = page_tokens,
                               .is_enabled = is_enabled,
                               .n_buckets = n_buckets,
                               .oldest = HR_NO_PAGE,
                               .newest = HR_NO_PAGE};
    if (!is_enabled)
        return true;
    cache->nodes = calloc(n_pages ? n_pages : 1, sizeof *cache->nodes);
    cache->ids = calloc((size_t)n_pages * page_tokens + 1, sizeof *cache->ids);
    cache->buckets = calloc(n_buckets, sizeof *cache->buckets);
    if (!cache->nodes || !cache->ids || !cache->buckets) {
        hr_prefix_cache_deinit(cache);
        return false;
    }
    for (uint32_t i = 0; i < n_buckets; i++)
        cache->buckets[i] = HR_NO_PAGE;
    return true;
}

void hr_prefix_cache_deinit(hr_prefix_cache *cache)
{
    free(cache->nodes);
    free(cache->ids);
    free(cache->buckets);
    *cache = (hr_prefix_cache){0};
}

static int32_t *ids_of(const hr_prefix_cache *cache, uint32_t page)
{
    return cache->ids + (size_t)page * cache->page_tokens;
}

static uint32_t *bucket_of(const hr_prefix_cache *cache, uint64_t hash)
{
    return &cache->buckets[hash & (cache->n_buckets - 1)];
}

static void make_idle(hr_prefix_cache *cache, uint32_t page)
{
    hr_cached_page *node = &cache->nodes[page];

    node->is_idle = true;
    node->older = cache->newest;
    node->newer = HR_NO_PAGE;
    if (cache->newest != HR_NO_PAGE)
        cache->nodes[cache->newest].newer = page;
    else
        cache->oldest = page;
    cache->newest = page;
    cache->n_idle++;
}

static void make_busy(hr_prefix_cache *cache, uint32_t page)
{
    hr_cached_page *node = &cache->nodes[page];

    if (node->older != HR_NO_PAGE)
        cache->nodes[node->older].newer = node->newer;
    else
        cache->oldest = node->newer;
    if (node->newer != HR_NO_PAGE)
        cache->nodes[node->newer].older = node->older;
    else
        cache->newest = node->older;
    node->is_idle = false;
    cache->n_idle--;
}

static void unpublish(hr_prefix_cache *cache, uint32_t page)
{
    hr_cached_page *node = &cache->nodes[page];
    uint32_t *link = bucket_of(cache, node->hash);

    HR_ASSERT(node->is_published && node->n_children == 0);
    while (*link != page)
        link = &cache->nodes[*link].bucket_next;
    *link = node->bucket_next;
    if (node->parent != HR_NO_PAGE)
        cache->nodes[node->parent].n_children--;
    node->is_published = false;
    cache->n_published--;
}

uint32_t hr_prefix_cache_take(hr_prefix_cache *cache)
{
    uint32_t page = hr_kv_pages_take(cache->pages);

    if (page != HR_NO_PAGE || cache->n_idle == 0)
        return page;
    page = cache->oldest;
    make_busy(cache, page);
    unpublish(cache, page);
    hr_kv_pages_give_back(cache->pages, page);
    return hr_kv_pages_take(cache->pages);
}

void hr_prefix_cache_hold(hr_prefix_cache *cache, uint32_t page)
{
    if (hr_kv_pages_hold(cache->pages, page) > 0)
        return;
    HR_ASSERT(cache->is_enabled && cache->nodes[page].is_idle);
    make_busy(cache, page);
}

void hr_prefix_cache_drop(hr_prefix_cache *cache, uint32_t page)
{
    if (hr_kv_pages_drop(cache->pages, page) > 0)
        return;
    if (cache->is_enabled && cache->nodes[page].is_published)
        make_idle(cache, page);
    else
        hr_kv_pages_give_back(cache->pages, page);
}

/* The published page with this content after `parent`, or HR_NO_PAGE. */
static uint32_t find_page(const hr_prefix_cache *cache, uint64_t hash, uint64_t salt, uint32_t parent,
                          const int32_t *ids)
{
    for (uint32_t page = *bucket_of(cache, hash); page != HR_NO_PAGE; page = cache->nodes[page].bucket_next) {
        const hr_cached_page *node = &cache->nodes[page];

        if (node->hash == hash && node->salt == salt && node->parent == parent &&
            memcmp(ids_of(cache, page), ids, cache->page_tokens * sizeof *ids) == 0)
            return page;
    }
    return HR_NO_PAGE;
}

uint32_t hr_prefix_cache_find(const hr_prefix_cache *cache, uint64_t salt, const int32_t *ids, uint32_t max_pages,
                              uint32_t *found)
{
    uint64_t hash = salt;
    uint32_t parent = HR_NO_PAGE, n = 0;

    if (!cache->is_enabled || cache->n_published == 0)
        return 0;
    for (; n < max_pages; n++) {
        const int32_t *page_ids = ids + (size_t)n * cache->page_tokens;

        hash = cache->hash(hash, page_ids, cache->page_tokens);
        parent = find_page(cache, hash, salt, parent, page_ids);
        if (parent == HR_NO_PAGE)
            break;
        found[n] = parent;
    }
    return n;
}

uint32_t hr_prefix_cache_publish(hr_prefix_cache *cache, uint64_t salt, uint32_t parent, const int32_t *ids,
                                 uint32_t page)
{
    hr_cached_page *node;
    uint64_t hash;
    uint32_t known;

    /* A parent that was forgotten ends the chain: its children cannot be found either. */
    if (!cache->is_enabled || (parent != HR_NO_PAGE && !cache->nodes[parent].is_published))
        return page;
    hash = cache->hash(parent == HR_NO_PAGE ? salt : cache->nodes[parent].hash, ids, cache->page_tokens);
    known = find_page(cache, hash, salt, parent, ids);
    if (known == page)
        return page;
    if (known != HR_NO_PAGE) {
        hr_prefix_cache_hold(cache, known);
        hr_prefix_cache_drop(cache, page);
        return known;
    }
    node = &cache->nodes[page];
    HR_ASSERT(!node->is_published && cache->pages->refs[page] > 0);
    *node = (hr_cached_page){.hash = hash,
                             .salt = salt,
                             .parent = parent,
                             .bucket_next = *bucket_of(cache, hash),
                             .older = HR_NO_PAGE,
                             .newer = HR_NO_PAGE,
                             .is_published = true};
    *bucket_of(cache, hash) = page;
    memcpy(ids_of(cache, page), ids, cache->page_tokens * sizeof *ids);
    if (parent != HR_NO_PAGE)
        cache->nodes[parent].n_children++;
    cache->n_published++;
    return page;
}

void hr_prefix_cache_forget(hr_prefix_cache *cache, uint32_t page)
{
    if (!cache->is_enabled || !cache->nodes[page].is_published || cache->nodes[page].n_children > 0)
        return;
    HR_ASSERT(!cache->nodes[page].is_idle);
    unpublish(cache, page);
}

/* Walks the idle list from the oldest. */
static const char *check_idle(const hr_prefix_cache *cache)
{
    uint32_t n = 0, before = HR_NO_PAGE;

    for (uint32_t page = cache->oldest; page != HR_NO_PAGE; page = cache->nodes[page].newer) {
        const hr_cached_page *node = &cache->nodes[page];

        if (++n > cache->n_idle)
            return "the idle list is longer than its count";
        if (!node->is_idle || !node->is_published || cache->pages->refs[page])
            return "an idle page is held or not published";
        if (node->older != before)
            return "the idle list is not linked backwards";
        before = page;
    }
    if (n != cache->n_idle || before != cache->newest)
        return "the idle list and its count differ";
    if (cache->oldest != HR_NO_PAGE && cache->nodes[cache->oldest].n_children > 0)
        return "the oldest idle page has children";
    return NULL;
}

const char *hr_prefix_cache_check(const hr_prefix_cache *cache)
{
    uint32_t n_published = 0, n_children = 0, n_with_parent = 0;

    if (!cache->is_enabled)
        return cache->n_idle ? "a disabled cache holds pages" : NULL;
    for (uint32_t page = 0; page < cache->pages->n_pages; page++) {
        const hr_cached_page *node = &cache->nodes[page];

        if (!node->is_published) {
            if (node->is_idle)
                return "an idle page is not published";
            continue;
        }
        n_published++;
        n_children += node->n_children;
        if (node->parent == HR_NO_PAGE)
            continue;
        n_with_parent++;
        if (!cache->nodes[node->parent].is_published)
            return "a published page hangs on one that is not";
        if (cache->pages->refs[page] > 0 && cache->pages->refs[node->parent] == 0)
            return "a page is held and the page before it is not";
    }
    if (n_published != cache->n_published)
        return "the count of published pages is wrong";
    if (n_children != n_with_parent)
        return "the counts of children are wrong";
    return check_idle(cache);
}
