/* The pool's promise: every item exactly once, results visible to the caller, whatever the threads do. Runs under TSan.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "backend/cpu/cpu_pool.h"

enum { ITEMS_MAX = 5000 };

typedef struct counted {
    uint32_t times[ITEMS_MAX]; /* plain memory: the pool alone orders the accesses */
    uint32_t worker[ITEMS_MAX];
    uint32_t pause_ns;
} counted;

static void count(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    counted *c = user;
    struct timespec pause = {.tv_nsec = c->pause_ns};

    for (uint32_t i = begin; i < end; i++) {
        c->times[i]++;
        c->worker[i] = worker;
    }
    if (c->pause_ns)
        (void)nanosleep(&pause, NULL);
}

static void check_loop(hr_cpu_pool *pool, counted *c, uint32_t n_items, uint32_t grain)
{
    memset(c->times, 0, sizeof c->times);
    hr_cpu_pool_run(pool, n_items, grain, count, c);
    for (uint32_t i = 0; i < ITEMS_MAX; i++)
        assert_int_equal(c->times[i], i < n_items ? 1 : 0);
    for (uint32_t i = 0; i < n_items; i++)
        assert_true(c->worker[i] < hr_cpu_pool_n_threads(pool));
}

static void every_item_runs_exactly_once(void **state)
{
    static const uint32_t threads[] = {1, 2, 3, 8}, sizes[] = {0, 1, 2, 7, 64, ITEMS_MAX},
                          grains[] = {1, 3, 64, ITEMS_MAX};
    static counted c;

    (void)state;
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        hr_cpu_pool *pool = hr_cpu_pool_create(threads[t]);

        assert_non_null(pool);
        assert_int_equal(hr_cpu_pool_n_threads(pool), threads[t]);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (size_t g = 0; g < sizeof grains / sizeof *grains; g++)
                check_loop(pool, &c, sizes[s], grains[g]);
        }
        hr_cpu_pool_destroy(pool);
    }
}

static void loops_follow_each_other_closely(void **state)
{
    static counted c;
    hr_cpu_pool *pool = hr_cpu_pool_create(4);

    (void)state;
    assert_non_null(pool);
    memset(&c, 0, sizeof c);
    for (uint32_t n = 1; n <= 2000; n++) {
        hr_cpu_pool_run(pool, 32, 1, count, &c);
        for (uint32_t i = 0; i < 32; i++)
            assert_int_equal(c.times[i], n);
    }
    hr_cpu_pool_destroy(pool);
}

static void workers_come_back_from_sleep(void **state)
{
    static counted c;
    hr_cpu_pool *pool = hr_cpu_pool_create(3);
    struct timespec idle = {.tv_nsec = 2000000}; /* long enough for every worker to fall asleep */

    (void)state;
    assert_non_null(pool);
    for (int i = 0; i < 20; i++) {
        (void)nanosleep(&idle, NULL);
        check_loop(pool, &c, 100, 1);
    }
    hr_cpu_pool_destroy(pool);
}

static void a_slow_worker_is_waited_for(void **state)
{
    static counted c = {.pause_ns = 300000}; /* longer than the caller watches, so that it sleeps too */
    hr_cpu_pool *pool = hr_cpu_pool_create(3);

    (void)state;
    assert_non_null(pool);
    for (int i = 0; i < 20; i++)
        check_loop(pool, &c, 4, 1);
    hr_cpu_pool_destroy(pool);
}

static void a_pool_may_be_destroyed_unused(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++)
        hr_cpu_pool_destroy(hr_cpu_pool_create(n));
    hr_cpu_pool_destroy(NULL);
}

static void impossible_thread_counts_are_refused(void **state)
{
    (void)state;
    assert_null(hr_cpu_pool_create(0));
    assert_null(hr_cpu_pool_create(HR_CPU_THREADS_MAX + 1));
}

static void at_least_one_core_is_found(void **state)
{
    (void)state;
    assert_true(hr_cpu_count_cores() >= 1);
    assert_true(hr_cpu_count_cores() <= HR_CPU_THREADS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_exactly_once),   cmocka_unit_test(loops_follow_each_other_closely),
        cmocka_unit_test(workers_come_back_from_sleep),   cmocka_unit_test(a_slow_worker_is_waited_for),
        cmocka_unit_test(a_pool_may_be_destroyed_unused), cmocka_unit_test(impossible_thread_counts_are_refused),
        cmocka_unit_test(at_least_one_core_is_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
