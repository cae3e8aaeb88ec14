/* See carver.h. */
#include "base/carver.h"

#include <stdint.h>

void *hr_carve(hr_carver *c, size_t n, size_t size)
{
    size_t at = c->used, bytes, end;

    if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(at, bytes, &end) ||
        __builtin_add_overflow(end, c->alignment - 1, &end) || end > SIZE_MAX / 2) {
        c->overflows = true;
        return NULL;
    }
    c->used = end / c->alignment * c->alignment;
    return c->base ? c->base + at : NULL;
}
