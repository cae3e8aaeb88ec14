/* Worker threads: one loop at a time, entered and left through one word.
 *
 * `gate` holds the number of the current loop, whether it is open, and how many workers are inside. A worker enters by
 * adding itself while the gate is open, so the caller, having run out of items, closes the gate and waits only for
 * those who are inside: a thread that is asleep, or waits for a core that another process uses, delays nobody. Fields
 * of the loop are written while the gate is closed and empty, hence never while somebody reads them.
 *
 * Sleeping uses the futex of the kernel directly: a worker sleeps on `gate` itself, and the caller pays for a wake-up
 * call only when somebody sleeps. The two orders "count myself, then look at the gate" (worker) and "change the gate,
 * then look at the count" (caller) are sequentially consistent, so that a wake-up cannot be missed.
 */
#include "backend/cpu/cpu_pool.h"

#include "base/clock.h"
#include "base/status.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    WATCH_US = 40, /* how long a worker watches for the next loop before it sleeps */
    CACHE_LINE = 64,
    GATE_WORKERS = 0x1FF, /* bits 0 .. 8: workers inside */
    GATE_OPEN = 0x200,    /* bit 9 */
    GATE_LOOP = 0x400,    /* from bit 10 on: number of the loop, wraps */
};

typedef struct pool_thread {
    hr_cpu_pool *pool;
    uint32_t worker;
    pthread_t id;
} pool_thread;

struct hr_cpu_pool {
    _Alignas(CACHE_LINE) atomic_uint gate;
    atomic_uint n_sleeping; /* workers that sleep, or are about to, on gate */
    atomic_bool caller_sleeps;
    atomic_bool is_closing;
    _Alignas(CACHE_LINE) atomic_uint next_item;
    /* The loop; written by the caller while the gate is closed and empty. */
    _Alignas(CACHE_LINE) hr_cpu_loop_fn fn;
    void *user;
    uint32_t n_items, grain;
    uint32_t n_threads, n_started;
    pool_thread threads[HR_CPU_THREADS_MAX];
};

static void futex_wait(atomic_uint *word, uint32_t expected)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Watches `gate` until it differs from `seen` or time is up. */
static uint32_t watch(hr_cpu_pool *pool, uint32_t seen)
{
    uint64_t deadline = hr_now_us() + WATCH_US;
    uint32_t gate = seen;

    do {
        for (unsigned i = 0; i < 32; i++) {
            gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
            if (gate != seen)
                return gate;
            relax();
        }
    } while (hr_now_us() < deadline);
    return gate;
}

/* Takes runs of items until none is left. A run is a share of what is left, so that a thread mostly walks through
 * neighbouring items (neighbouring weights: the memory system prefetches best along one stream), and the last runs are
 * one grain, so that threads end together although cores are shared. */
static void take_items(hr_cpu_pool *pool, uint32_t worker)
{
    uint32_t begin = atomic_load_explicit(&pool->next_item, memory_order_relaxed);

    while (begin < pool->n_items) {
        uint32_t left = pool->n_items - begin, run = left / (2 * pool->n_threads) / pool->grain * pool->grain;

        if (run == 0)
            run = left < pool->grain ? left : pool->grain;
        if (!atomic_compare_exchange_weak_explicit(&pool->next_item, &begin, begin + run, memory_order_relaxed,
                                                   memory_order_relaxed))
            continue;
        pool->fn(pool->user, worker, begin, begin + run);
        begin = atomic_load_explicit(&pool->next_item, memory_order_relaxed);
    }
}

/* Adds this worker to an open gate; false when the gate closed meanwhile. */
static bool enter(hr_cpu_pool *pool, uint32_t gate)
{
    while (gate & GATE_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1, memory_order_acquire,
                                                  memory_order_acquire))
            return true;
    }
    return false;
}

static void leave(hr_cpu_pool *pool)
{
    uint32_t gate = atomic_fetch_sub(&pool->gate, 1) - 1;

    if (!(gate & (GATE_OPEN | GATE_WORKERS)) && atomic_load(&pool->caller_sleeps))
        futex_wake(&pool->gate, INT_MAX);
}

/* What identifies a loop to a worker that waits for another one: its number alone, for others come and go in the low
 * bits. */
static uint32_t loop_of(uint32_t gate)
{
    return gate & ~(uint32_t)(GATE_LOOP - 1);
}

/* Waits for a loop other than `done`; returns the gate. */
static uint32_t next_loop(hr_cpu_pool *pool, uint32_t done)
{
    uint64_t deadline = hr_now_us() + WATCH_US;

    for (;;) {
        uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_acquire);

        if (loop_of(gate) != done)
            return gate;
        if (hr_now_us() < deadline) {
            (void)watch(pool, gate);
            continue;
        }
        atomic_fetch_add(&pool->n_sleeping, 1);
        gate = atomic_load(&pool->gate);
        if (loop_of(gate) == done)
            futex_wait(&pool->gate, gate);
        atomic_fetch_sub(&pool->n_sleeping, 1);
    }
}

static void *worker_main(void *user)
{
    pool_thread *thread = user;
    hr_cpu_pool *pool = thread->pool;
    uint32_t done = 0;

    for (;;) {
        uint32_t gate = next_loop(pool, done);

        done = loop_of(gate);
        if (atomic_load(&pool->is_closing))
            return NULL;
        if (!enter(pool, gate))
            continue;
        /* The loop entered may be a later one than the one that was seen; `done` must be of the one entered. */
        done = loop_of(atomic_load_explicit(&pool->gate, memory_order_relaxed));
        take_items(pool, thread->worker);
        leave(pool);
    }
}

/* Announces the next loop: a new number, and the gate open or (to end the threads) not. Wakes up to n_wanted sleepers.
 */
static void announce(hr_cpu_pool *pool, uint32_t is_open, int n_wanted)
{
    uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);

    atomic_store(&pool->gate, (loop_of(gate) + GATE_LOOP) | is_open);
    if (atomic_load(&pool->n_sleeping) > 0)
        futex_wake(&pool->gate, n_wanted);
}

/* Closes the gate and waits until nobody is inside. */
static void close_gate(hr_cpu_pool *pool)
{
    uint32_t gate = atomic_fetch_and(&pool->gate, ~(uint32_t)GATE_OPEN) & ~(uint32_t)GATE_OPEN;

    if ((gate & GATE_WORKERS) == 0)
        return;
    for (uint64_t deadline = hr_now_us() + WATCH_US; (gate & GATE_WORKERS) != 0 && hr_now_us() < deadline;)
        gate = watch(pool, gate);
    if ((gate & GATE_WORKERS) == 0)
        return;
    atomic_store(&pool->caller_sleeps, true);
    while (gate = atomic_load(&pool->gate), (gate & GATE_WORKERS) != 0)
        futex_wait(&pool->gate, gate);
    atomic_store(&pool->caller_sleeps, false);
}

void hr_cpu_pool_run(hr_cpu_pool *pool, uint32_t n_items, uint32_t grain, hr_cpu_loop_fn fn, void *user)
{
    if (n_items == 0)
        return;
    if (n_items <= grain || pool->n_started == 0) {
        fn(user, 0, 0, n_items);
        return;
    }
    HR_ASSERT(grain >= 1 && (uint64_t)n_items + (uint64_t)grain * pool->n_threads <= INT32_MAX);
    pool->fn = fn;
    pool->user = user;
    pool->n_items = n_items;
    pool->grain = grain;
    atomic_store_explicit(&pool->next_item, 0, memory_order_relaxed);
    announce(pool, GATE_OPEN, (int)((n_items - 1) / grain));
    take_items(pool, 0);
    close_gate(pool);
}

hr_cpu_pool *hr_cpu_pool_create(uint32_t n_threads)
{
    hr_cpu_pool *pool;

    if (n_threads < 1 || n_threads > HR_CPU_THREADS_MAX)
        return NULL;
    pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    if (pool == NULL)
        return NULL;
    *pool = (hr_cpu_pool){.n_threads = n_threads};
    for (uint32_t i = 1; i < n_threads; i++) {
        pool_thread *thread = &pool->threads[i];

        *thread = (pool_thread){.pool = pool, .worker = i};
        if (pthread_create(&thread->id, NULL, worker_main, thread) != 0) {
            hr_cpu_pool_destroy(pool);
            return NULL;
        }
        pool->n_started++;
    }
    return pool;
}

void hr_cpu_pool_destroy(hr_cpu_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->is_closing, true);
    announce(pool, 0, INT_MAX);
    for (uint32_t i = 1; i <= pool->n_started; i++)
        (void)pthread_join(pool->threads[i].id, NULL);
    free(pool);
}

uint32_t hr_cpu_pool_n_threads(const hr_cpu_pool *pool)
{
    return pool->n_threads;
}

/* First line of a file of the kernel's own file systems, whose size is not known before reading. */
static bool read_line(const char *path, char *line, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return false;
    n = read(fd, line, capacity - 1);
    (void)close(fd);
    if (n < 0)
        return false;
    line[n] = 0;
    return true;
}

/* Lowest CPU number of the core that `cpu` belongs to, or `cpu` itself where the system does not say. */
static uint32_t core_of(uint32_t cpu)
{
    char path[128], line[256];
    unsigned long first;

    (void)snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    if (!read_line(path, line, sizeof line))
        return cpu;
    first = strtoul(line, NULL, 10);
    return first < CPU_SETSIZE ? (uint32_t)first : cpu;
}

/* Whole CPUs that the cgroup (version 2) grants, or UINT32_MAX. */
static uint32_t quota_cpus(void)
{
    char line[256], *rest;
    unsigned long quota, period;

    if (!read_line("/sys/fs/cgroup/cpu.max", line, sizeof line))
        return UINT32_MAX;
    quota = strtoul(line, &rest, 10); /* 0 for "max" */
    period = strtoul(rest, NULL, 10);
    if (quota == 0 || period == 0 || quota / period >= UINT32_MAX - 1)
        return UINT32_MAX;
    return (uint32_t)(quota / period + (quota % period != 0));
}

uint32_t hr_cpu_count_cores(void)
{
    cpu_set_t allowed, cores;
    uint32_t n, quota = quota_cpus();

    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return 1;
    CPU_ZERO(&cores);
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed))
            CPU_SET(core_of(cpu), &cores);
    }
    n = (uint32_t)CPU_COUNT(&cores);
    if (n > quota)
        n = quota;
    if (n > HR_CPU_THREADS_MAX)
        n = HR_CPU_THREADS_MAX;
    return n >= 1 ? n : 1;
}
