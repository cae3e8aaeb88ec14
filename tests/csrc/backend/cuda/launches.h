/* What the kernels of a step moved, by the emulation's accounting (tests/emulator/simt.h), for tests in C. */
#ifndef HR_TESTS_BACKEND_CUDA_LAUNCHES_H
#define HR_TESTS_BACKEND_CUDA_LAUNCHES_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct counted_launch {
    char kernel[64]; /* without namespaces and template arguments */
    uint32_t tile; /* first argument of the kernel's Shape<>: tokens of a tile of products and router; 0 without one */
    bool is_programmatic;   /* may begin before the kernel before it has ended */
    uint64_t bulk_bytes;    /* bulk_load */
    uint64_t async_bytes;   /* cp.async */
    uint64_t written_bytes; /* plain writes; 0 unless launches_count_writes() */
} counted_launch;

/* Forgets the launches so far. */
void launches_clear(void);
/* Those since, oldest first: at most `room` of them are put into `to`. Returns how many there were. */
uint32_t launches_take(counted_launch *to, uint32_t room);
/* The checked build of the kernels with SIMT_CHECK=1. */
bool launches_count_writes(void);

#ifdef __cplusplus
}
#endif

#endif
