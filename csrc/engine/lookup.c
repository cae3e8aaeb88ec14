/* One open hash table for each length of n-gram. An entry is where an n-gram ended last, so that the ids themselves are
 * the key and a newer occurrence simply takes the place of the older one. A table has at least twice as many entries as
 * there can be n-grams: a probe ends after a few, and a table is never full.
 *
 * Tables begin small and are made anew, twice as large, when the ids outgrow them: memory is reserved for the longest
 * answer, and most answers end early.
 *
 * The n-gram at the very end is looked up and only then, when more ids are known, put into the table: it must not find
 * itself.
 */
#include "engine/lookup.h"

#include "base/rng.h"
#include "base/status.h"

#include <string.h>

enum { ENTRIES_MIN = 256 };

static uint32_t table_entries(uint32_t n_ids)
{
    uint32_t n = ENTRIES_MIN;

    while (n / 2 < n_ids && n < 1u << 31)
        n *= 2;
    return n;
}

size_t hr_lookup_size(uint32_t min, uint32_t max, uint32_t n_ids)
{
    return (size_t)(max - min + 1) * table_entries(n_ids);
}

void hr_lookup_place(hr_lookup *lookup, uint32_t min, uint32_t max, uint32_t *memory)
{
    HR_ASSERT(min >= 1 && min <= max && max <= HR_LOOKUP_LENGTH_MAX);
    *lookup = (hr_lookup){.min = min, .max = max, .tables = memory};
}

static uint64_t hash_ids(const int32_t *ids, uint32_t n)
{
    uint64_t hash = n;

    for (uint32_t i = 0; i < n; i++)
        hash = (hash ^ (uint32_t)ids[i]) * 0x9FB21C651E98DF25u + (hash >> 29);
    return hr_mix64(hash);
}

/* The entry of the n-gram of length n that ends at `end`: its own, or the empty one it belongs into. */
static uint32_t *entry_of(const hr_lookup *lookup, const int32_t *ids, uint32_t end, uint32_t n)
{
    uint32_t *table = lookup->tables + (size_t)(n - lookup->min) * lookup->n_entries;
    uint32_t mask = lookup->n_entries - 1, at = (uint32_t)hash_ids(ids + end - n, n) & mask;

    while (table[at] != 0 && memcmp(ids + table[at] - n, ids + end - n, n * sizeof *ids) != 0)
        at = (at + 1) & mask;
    return &table[at];
}

static void take_in(hr_lookup *lookup, const int32_t *ids, uint32_t n_ids)
{
    if (lookup->n_entries < table_entries(n_ids)) {
        lookup->n_entries = table_entries(n_ids);
        lookup->n_indexed = 0;
        memset(lookup->tables, 0, (size_t)(lookup->max - lookup->min + 1) * lookup->n_entries * sizeof *lookup->tables);
    }
    for (; lookup->n_indexed + 1 < n_ids; lookup->n_indexed++)
        for (uint32_t n = lookup->min; n <= lookup->max && n <= lookup->n_indexed + 1; n++)
            *entry_of(lookup, ids, lookup->n_indexed + 1, n) = lookup->n_indexed + 1;
}

uint32_t hr_lookup_propose(hr_lookup *lookup, int32_t *ids, uint32_t n_ids, uint32_t n_wanted)
{
    uint32_t found = 0;

    take_in(lookup, ids, n_ids);
    for (uint32_t n = lookup->max; n >= lookup->min && found == 0; n--)
        if (n < n_ids)
            found = *entry_of(lookup, ids, n_ids, n);
    if (found == 0)
        return 0;
    for (uint32_t i = 0; i < n_wanted; i++)
        ids[n_ids + i] = ids[found + i];
    return n_wanted;
}
