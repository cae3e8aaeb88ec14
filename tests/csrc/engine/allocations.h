/* Allocations of a test program, counted and made to fail, by thread: a step must make none, and a failed one must cost
 * its request only.
 */
#ifndef TESTS_CSRC_ENGINE_ALLOCATIONS_H
#define TESTS_CSRC_ENGINE_ALLOCATIONS_H

#include <stdint.h>

extern _Thread_local uint64_t n_allocations; /* made so far by this thread */
extern _Thread_local int64_t fail_after;     /* so many succeed, then all fail; < 0: none fails */

#endif
