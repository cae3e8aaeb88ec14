/* Worker threads for the loops of one step.
 *
 * The caller (the engine thread) is worker 0; n-1 threads help it. A loop is n_items numbered pieces of work, handed
 * out from one counter in runs that shrink down to `grain`: long ones first, because neighbouring items read
 * neighbouring weights; short ones last, because cores are shared: a worker that the system took off its core takes
 * fewer runs, and one that never woke up is not waited for.
 *
 * Between loops a worker watches for the next one for a few tens of microseconds (a step is a few hundred short loops)
 * and then sleeps in the kernel, so that an idle engine costs nothing.
 */
#ifndef HR_BACKEND_CPU_CPU_POOL_H
#define HR_BACKEND_CPU_CPU_POOL_H

#include <stdint.h>

enum { HR_CPU_THREADS_MAX = 256 };

typedef struct hr_cpu_pool hr_cpu_pool;

/* Does items [begin, end). worker (0 .. n_threads-1) names the scratch that is this thread's alone. */
typedef void (*hr_cpu_loop_fn)(void *user, uint32_t worker, uint32_t begin, uint32_t end);

/* n_threads >= 1, the caller included. NULL: no memory or no threads. */
hr_cpu_pool *hr_cpu_pool_create(uint32_t n_threads);
void hr_cpu_pool_destroy(hr_cpu_pool *pool); /* accepts NULL */
uint32_t hr_cpu_pool_n_threads(const hr_cpu_pool *pool);
/* Runs all items and returns when they are done; what they wrote is visible to the caller. Always called from the same
 * thread, never from inside fn. With n_items <= grain no other thread is involved. grain >= 1. */
void hr_cpu_pool_run(hr_cpu_pool *pool, uint32_t n_items, uint32_t grain, hr_cpu_loop_fn fn, void *user);

/* Physical cores that this process may use: affinity mask and the cgroup's CPU quota, whichever is smaller; at least 1.
 */
uint32_t hr_cpu_count_cores(void);

#endif
