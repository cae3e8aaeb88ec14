/* Cutting one block into pieces by a function that runs twice: first to count, then to place, so that what was promised
 * is what is taken. */
#ifndef HR_BASE_CARVER_H
#define HR_BASE_CARVER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct hr_carver {
    unsigned char *base; /* NULL: only count */
    size_t alignment;    /* of every piece, a power of two; base has it too */
    size_t used;
    bool overflows; /* more was asked for than a block can have; the rest of the numbers mean nothing */
} hr_carver;

/* n x size bytes; NULL while counting and after an overflow. */
void *hr_carve(hr_carver *carver, size_t n, size_t size);

#endif
