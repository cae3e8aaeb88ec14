/* Prompt lookup: where did the last few ids of a sequence stand before, and what followed? An index of one sequence's
 * n-grams that grows with its ids: O(1) an id whatever the ids are, no scan of the context. */
#ifndef HR_ENGINE_LOOKUP_H
#define HR_ENGINE_LOOKUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HR_LOOKUP_LENGTH_MAX = 16, /* of an n-gram */
    HR_LOOKUP_PROBES_MAX = 16, /* entries looked at for an n-gram */
};

/* Owned by the engine thread after it was placed. */
typedef struct hr_lookup {
    uint32_t min, max;  /* lengths of n-grams, 1 <= min <= max <= HR_LOOKUP_LENGTH_MAX */
    uint32_t n_entries; /* of each length's table, a power of two, twice the number of ids or more; 0 at first */
    uint32_t n_indexed; /* n-grams that end at or before it are in the tables */
    uint32_t *tables;   /* [max - min + 1, n_entries]: where such an n-gram ended last; 0: empty */
} hr_lookup;

/* Entries of all tables for a sequence of up to n_ids ids. */
size_t hr_lookup_size(uint32_t min, uint32_t max, uint32_t n_ids);
/* Places an index in memory of hr_lookup_size entries, which is borrowed, and of which only the front is touched that
 * the ids so far need. */
void hr_lookup_place(hr_lookup *lookup, uint32_t min, uint32_t max, uint32_t *memory);
/* Takes in ids[0 .. n_ids), of which those seen before are as they were, and writes up to n_wanted guesses behind them,
 * at ids[n_ids ..]: what followed the latest earlier occurrence of the longest suffix that has one. Where that reaches
 * the end of what is known it goes on with the guesses themselves, as in a text that repeats. Returns how many:
 * n_wanted, or 0 when no suffix was seen before. An old occurrence may be forgotten where more n-grams than
 * HR_LOOKUP_PROBES_MAX have their place in the same spot. No allocation. */
uint32_t hr_lookup_propose(hr_lookup *lookup, int32_t *ids, uint32_t n_ids, uint32_t n_wanted);

#endif
