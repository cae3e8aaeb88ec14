/* One open hash table for each length of n-gram. An entry is where an n-gram ended last, so that the ids themselves are
 * the key and a newer occurrence simply takes the place of the older one. A table has at least twice as many entries as
 * there can be n-grams: a search ends after one or two probes, and one in ten thousand n-grams of an ordinary text
 * finds no place within HR_LOOKUP_PROBES_MAX. Where it finds none, the one that ended longest ago gives way: a text
 * chosen so that its n-grams collide gets fewer guesses and takes no more of the engine thread's time than that many
 * probes an n-gram. No secret in the hash is needed for it.
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

/* Where the n-gram of length n that ends at `end` ended before; 0: nowhere that is remembered. *entry: its own entry,
 * or else the one that it may take. */
static uint32_t find(const hr_lookup *lookup, const int32_t *ids, uint32_t end, uint32_t n, uint32_t **entry)
{
    uint32_t *table = lookup->tables + (size_t)(n - lookup->min) * lookup->n_entries;
    uint32_t mask = lookup->n_entries - 1, home = (uint32_t)hash_ids(ids + end - n, n) & mask;

    *entry = &table[home];
    for (uint32_t i = 0; i < HR_LOOKUP_PROBES_MAX; i++) {
        uint32_t *at = &table[(home + i) & mask];

        if (*at < **entry)
            *entry = at;
        if (*at == 0)
            return 0;
        if (memcmp(ids + *at - n, ids + end - n, n * sizeof *ids) == 0) {
            *entry = at;
            return *at;
        }
    }
    return 0;
}

static void take_in(hr_lookup *lookup, const int32_t *ids, uint32_t n_ids)
{
    uint32_t *entry;

    if (lookup->n_entries < table_entries(n_ids)) {
        lookup->n_entries = table_entries(n_ids);
        lookup->n_indexed = 0;
        memset(lookup->tables, 0, (size_t)(lookup->max - lookup->min + 1) * lookup->n_entries * sizeof *lookup->tables);
    }
    for (; lookup->n_indexed + 1 < n_ids; lookup->n_indexed++)
        for (uint32_t n = lookup->min; n <= lookup->max && n <= lookup->n_indexed + 1; n++) {
            (void)find(lookup, ids, lookup->n_indexed + 1, n, &entry);
            *entry = lookup->n_indexed + 1;
        }
}

uint32_t hr_lookup_propose(hr_lookup *lookup, int32_t *ids, uint32_t n_ids, uint32_t n_wanted)
{
    uint32_t found = 0, *entry;

    take_in(lookup, ids, n_ids);
    for (uint32_t n = lookup->max; n >= lookup->min && found == 0; n--)
        if (n < n_ids)
            found = find(lookup, ids, n_ids, n, &entry);
    if (found == 0)
        return 0;
    for (uint32_t i = 0; i < n_wanted; i++)
        ids[n_ids + i] = ids[found + i];
    return n_wanted;
}
