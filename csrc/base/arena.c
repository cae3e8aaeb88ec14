/* See arena.h. */
#include "base/arena.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, BLOCK_BYTES = 64 * 1024 };

struct hr_arena_block {
    hr_arena_block *next;
    size_t used, capacity; /* of the bytes behind this header */
    char pad[ALIGNMENT - sizeof(hr_arena_block *) - 2 * sizeof(size_t)];
};
_Static_assert(sizeof(hr_arena_block) == ALIGNMENT, "the bytes behind the header must be aligned");

void *hr_arena_alloc(hr_arena *arena, size_t n_bytes)
{
    hr_arena_block *block = arena->head;
    size_t need;

    if (n_bytes > SIZE_MAX - 2 * ALIGNMENT)
        return NULL;
    need = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (need == 0)
        need = ALIGNMENT;
    if (!block || block->capacity - block->used < need) {
        size_t capacity = need > BLOCK_BYTES / 4 ? need : BLOCK_BYTES;

        block = aligned_alloc(ALIGNMENT, sizeof *block + capacity);
        if (!block)
            return NULL;
        block->used = 0;
        block->capacity = capacity;
        if (capacity == need && arena->head) { /* a large one: keep filling the small block in front */
            block->next = arena->head->next;
            arena->head->next = block;
        } else {
            block->next = arena->head;
            arena->head = block;
        }
        arena->total += sizeof *block + capacity;
    }
    char *at = (char *)(block + 1) + block->used;
    block->used += need;
    memset(at, 0, need);
    return at;
}

void *hr_arena_calloc(hr_arena *arena, size_t n, size_t size)
{
    size_t n_bytes;

    if (__builtin_mul_overflow(n, size, &n_bytes))
        return NULL;
    return hr_arena_alloc(arena, n_bytes);
}

char *hr_arena_strndup(hr_arena *arena, const char *text, size_t len)
{
    char *copy = len == SIZE_MAX ? NULL : hr_arena_alloc(arena, len + 1);

    if (copy && len > 0)
        memcpy(copy, text, len);
    return copy;
}

void hr_arena_deinit(hr_arena *arena)
{
    while (arena->head) {
        hr_arena_block *next = arena->head->next;

        free(arena->head);
        arena->head = next;
    }
    arena->total = 0;
}
