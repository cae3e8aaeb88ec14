/* Memory that is freed all at once: a loaded model's tables, one parsed file, one request.
 *
 * Blocks are chained; a request larger than a block gets its own. Pointers stay valid until hr_arena_deinit. Not
 * thread-safe: one owner. Allocation returns NULL when the system has no memory; the caller turns that into E_MEMORY.
 */
#ifndef HR_BASE_ARENA_H
#define HR_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct hr_arena_block hr_arena_block;
typedef struct hr_arena {
    hr_arena_block *head;
    size_t total; /* bytes taken from the system */
} hr_arena;

/* Zeroed, aligned to 64 bytes (one cache line, one AVX-512 register). n_bytes 0 gives a valid pointer. */
void *hr_arena_alloc(hr_arena *arena, size_t n_bytes);
/* n x size with overflow check. */
void *hr_arena_calloc(hr_arena *arena, size_t n, size_t size);
/* A terminated copy. */
char *hr_arena_strndup(hr_arena *arena, const char *text, size_t len);
/* Frees everything; the arena may be used again. */
void hr_arena_deinit(hr_arena *arena);

#endif
