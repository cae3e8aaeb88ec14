/* Pages are fungible, so the free list is a stack of indices: O(1), and the page freed last, still warm in the
 * processor's cache, is the next one handed out.
 *
 * A page is in one of three states: free (on the stack), held (refs > 0), or idle (refs 0, kept by the prefix cache
 * because its content may be wanted again). A full page may be held by several sequences that began with the same
 * tokens; it is then never written again. The last page of a sequence is always held once, because it is still written.
 *
 * Invariant: n_free + n_held + idle == n_pages. The scheduler's simulation tests it after every step.
 *
 * Not here: which sequence has to give its pages up (scheduler.c), which idle page goes first (prefix_cache.c).
 */
#include "engine/kv_pages.h"

#include "base/status.h"

#include <string.h>

bool hr_kv_pages_init(hr_kv_pages *pages, uint32_t n_pages)
{
    *pages = (hr_kv_pages){.n_pages = n_pages, .n_free = n_pages};
    pages->free_list = calloc(n_pages ? n_pages : 1, sizeof *pages->free_list);
    pages->refs = calloc(n_pages ? n_pages : 1, sizeof *pages->refs);
    if (!pages->free_list || !pages->refs) {
        hr_kv_pages_deinit(pages);
        return false;
    }
    for (uint32_t i = 0; i < n_pages; i++)
        pages->free_list[i] = n_pages - 1 - i; /* page 0 is taken first */
    return true;
}

void hr_kv_pages_deinit(hr_kv_pages *pages)
{
    free(pages->free_list);
    free(pages->refs);
    *pages = (hr_kv_pages){0};
}

uint32_t hr_kv_pages_take(hr_kv_pages *pages)
{
    uint32_t page;

    if (pages->n_free == 0)
        return HR_NO_PAGE;
    page = pages->free_list[--pages->n_free];
    HR_ASSERT(pages->refs[page] == 0);
    pages->refs[page] = 1;
    pages->n_held++;
    return page;
}

uint32_t hr_kv_pages_hold(hr_kv_pages *pages, uint32_t page)
{
    HR_ASSERT(page < pages->n_pages && pages->refs[page] < UINT32_MAX);
    if (pages->refs[page] == 0)
        pages->n_held++;
    return pages->refs[page]++;
}

uint32_t hr_kv_pages_drop(hr_kv_pages *pages, uint32_t page)
{
    HR_ASSERT(page < pages->n_pages && pages->refs[page] > 0);
    if (--pages->refs[page] == 0)
        pages->n_held--;
    return pages->refs[page];
}

void hr_kv_pages_give_back(hr_kv_pages *pages, uint32_t page)
{
    HR_ASSERT(page < pages->n_pages && pages->refs[page] == 0 && pages->n_free < pages->n_pages);
    pages->free_list[pages->n_free++] = page;
}

const char *hr_kv_pages_check(const hr_kv_pages *pages, uint32_t n_idle, uint32_t *scratch)
{
    uint32_t n_held = 0;

    memset(scratch, 0, pages->n_pages * sizeof *scratch);
    if (pages->n_free > pages->n_pages)
        return "more free pages than pages";
    for (uint32_t i = 0; i < pages->n_free; i++) {
        uint32_t page = pages->free_list[i];

        if (page >= pages->n_pages)
            return "the free list holds a page that does not exist";
        if (scratch[page]++)
            return "a page is on the free list twice";
        if (pages->refs[page])
            return "a page is free and held";
    }
    for (uint32_t i = 0; i < pages->n_pages; i++)
        n_held += pages->refs[i] > 0;
    if (n_held != pages->n_held)
        return "the count of held pages is wrong";
    if (pages->n_free + n_held + n_idle != pages->n_pages)
        return "free, held and idle pages do not add up";
    return NULL;
}
