/* The prefix cache: what it finds, what it never finds, and what it throws away first. */
#include "engine/prefix_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

enum { N = 8, P = 4 };

typedef struct pool {
    hr_kv_pages pages;
    hr_prefix_cache cache;
    uint32_t scratch[N];
} pool;

static uint64_t constant_hash(uint64_t before, const int32_t *ids, uint32_t n_ids)
{
    (void)before;
    (void)ids;
    (void)n_ids;
    return 42;
}

static void open_pool(pool *p, hr_prefix_hash_fn hash)
{
    assert_true(hr_kv_pages_init(&p->pages, N));
    assert_true(hr_prefix_cache_init(&p->cache, &p->pages, P, true, hash));
}

static void check(pool *p)
{
    assert_null(hr_prefix_cache_check(&p->cache));
    assert_null(hr_kv_pages_check(&p->pages, p->cache.n_idle, p->scratch));
}

static void close_pool(pool *p)
{
    check(p);
    hr_prefix_cache_deinit(&p->cache);
    hr_kv_pages_deinit(&p->pages);
}

static const int32_t prompt[3 * P] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/* A sequence of n pages of ids: takes and publishes them. */
static void put(pool *p, uint64_t salt, const int32_t *ids, uint32_t n, uint32_t *table)
{
    for (uint32_t i = 0; i < n; i++) {
        table[i] = hr_prefix_cache_take(&p->cache);
        assert_int_not_equal(table[i], HR_NO_PAGE);
        table[i] = hr_prefix_cache_publish(&p->cache, salt, i ? table[i - 1] : HR_NO_PAGE, ids + i * P, table[i]);
        check(p);
    }
}

static void drop(pool *p, const uint32_t *table, uint32_t n)
{
    while (n > 0)
        hr_prefix_cache_drop(&p->cache, table[--n]);
    check(p);
}

static void published_pages_are_found_while_held_and_after(void **state)
{
    pool p;
    uint32_t table[3], found[3];

    (void)state;
    open_pool(&p, NULL);
    put(&p, 0, prompt, 3, table);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), 3);
    assert_memory_equal(found, table, sizeof table);
    drop(&p, table, 3);
    assert_int_equal(p.cache.n_idle, 3);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), 3);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 2, found), 2);
    for (uint32_t i = 0; i < 3; i++)
        hr_prefix_cache_hold(&p.cache, found[i]);
    assert_int_equal(p.cache.n_idle, 0);
    drop(&p, found, 3);
    close_pool(&p);
}

static void only_an_equal_beginning_is_found(void **state)
{
    pool p;
    uint32_t table[3], found[3];
    int32_t other[3 * P];

    (void)state;
    open_pool(&p, NULL);
    put(&p, 0, prompt, 3, table);
    for (uint32_t i = 0; i < 3 * P; i++) {
        memcpy(other, prompt, sizeof prompt);
        other[i]++;
        assert_int_equal(hr_prefix_cache_find(&p.cache, 0, other, 3, found), i / P);
    }
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt + P, 2, found), 0); /* the same ids at another place */
    drop(&p, table, 3);
    close_pool(&p);
}

static void another_salt_finds_nothing(void **state)
{
    pool p;
    uint32_t table[3], other[3], found[3];

    (void)state;
    open_pool(&p, NULL);
    put(&p, 1, prompt, 3, table);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 2, prompt, 3, found), 0);
    put(&p, 2, prompt, 3, other);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 2, prompt, 3, found), 3);
    assert_memory_equal(found, other, sizeof other);
    assert_int_not_equal(found[0], table[0]);
    drop(&p, table, 3);
    drop(&p, other, 3);
    close_pool(&p);
}

static void colliding_hashes_return_no_foreign_page(void **state)
{
    pool p;
    uint32_t table[3], other_table[3], found[3];
    int32_t other[3 * P];

    (void)state;
    open_pool(&p, constant_hash);
    memcpy(other, prompt, sizeof prompt);
    other[P] = 99; /* differs in the second page; the third is equal again, after another past */
    put(&p, 0, prompt, 3, table);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, other, 3, found), 1);
    put(&p, 0, other, 3, other_table);
    assert_int_equal(other_table[0], table[0]);
    assert_int_not_equal(other_table[2], table[2]);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), 3);
    assert_memory_equal(found, table, sizeof table);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, other, 3, found), 3);
    assert_memory_equal(found, other_table, sizeof other_table);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 7, prompt, 3, found), 0);
    drop(&p, table, 3);
    drop(&p, other_table, 3);
    close_pool(&p);
}

static void content_computed_twice_is_kept_once(void **state)
{
    pool p;
    uint32_t first[3], second[3];

    (void)state;
    open_pool(&p, NULL);
    put(&p, 0, prompt, 3, first);
    put(&p, 0, prompt, 3, second);
    assert_memory_equal(first, second, sizeof first);
    assert_int_equal(p.pages.n_held, 3);
    assert_int_equal(p.pages.refs[first[1]], 2);
    drop(&p, first, 3);
    assert_int_equal(p.cache.n_idle, 0);
    drop(&p, second, 3);
    assert_int_equal(p.cache.n_idle, 3);
    close_pool(&p);
}

static void the_page_used_longest_ago_goes_first_and_children_before_parents(void **state)
{
    pool p;
    uint32_t old[3], recent[3], found[3], fresh[N];
    int32_t other[3 * P];

    (void)state;
    open_pool(&p, NULL);
    for (uint32_t i = 0; i < 3 * P; i++)
        other[i] = 100 + prompt[i];
    put(&p, 0, prompt, 3, old);
    put(&p, 0, other, 3, recent);
    drop(&p, old, 3);
    drop(&p, recent, 3);
    for (uint32_t i = 0; i < 2; i++) /* the two free ones */
        fresh[i] = hr_prefix_cache_take(&p.cache);
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t n_old = i < 3 ? 3 - i : 0, n_recent = i < 3 ? 3 : 6 - i;

        assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), n_old);
        assert_int_equal(hr_prefix_cache_find(&p.cache, 0, other, 3, found), n_recent);
        fresh[2 + i] = hr_prefix_cache_take(&p.cache);
        check(&p);
    }
    assert_int_equal(hr_prefix_cache_take(&p.cache), HR_NO_PAGE);
    drop(&p, fresh, N);
    close_pool(&p);
}

static void a_held_page_is_never_evicted(void **state)
{
    pool p;
    uint32_t table[3], found[3], fresh[N];
    uint32_t n = 0;

    (void)state;
    open_pool(&p, NULL);
    put(&p, 0, prompt, 3, table);
    hr_prefix_cache_hold(&p.cache, table[0]);
    drop(&p, table, 3);
    while ((fresh[n] = hr_prefix_cache_take(&p.cache)) != HR_NO_PAGE)
        n++;
    assert_int_equal(n, N - 1);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), 1);
    drop(&p, fresh, n);
    drop(&p, table, 1);
    close_pool(&p);
}

static void forgotten_pages_are_not_found_and_cut_the_chain(void **state)
{
    pool p;
    uint32_t table[3], found[3], next;

    (void)state;
    open_pool(&p, NULL);
    put(&p, 0, prompt, 2, table);
    hr_prefix_cache_forget(&p.cache, table[0]); /* has a child: stays */
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 2, found), 2);
    hr_prefix_cache_forget(&p.cache, table[1]);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 2, found), 1);
    next = hr_prefix_cache_take(&p.cache);
    assert_int_equal(hr_prefix_cache_publish(&p.cache, 0, table[1], prompt + 2 * P, next), next);
    assert_int_equal(p.cache.n_published, 1);
    hr_prefix_cache_drop(&p.cache, next);
    drop(&p, table, 2);
    assert_int_equal(p.cache.n_idle, 1);
    close_pool(&p);
}

static void a_disabled_cache_is_a_plain_pool(void **state)
{
    pool p;
    uint32_t page, found[3];

    (void)state;
    assert_true(hr_kv_pages_init(&p.pages, N));
    assert_true(hr_prefix_cache_init(&p.cache, &p.pages, P, false, NULL));
    page = hr_prefix_cache_take(&p.cache);
    assert_int_equal(hr_prefix_cache_publish(&p.cache, 0, HR_NO_PAGE, prompt, page), page);
    assert_int_equal(hr_prefix_cache_find(&p.cache, 0, prompt, 3, found), 0);
    hr_prefix_cache_forget(&p.cache, page);
    hr_prefix_cache_drop(&p.cache, page);
    assert_int_equal(p.pages.n_free, N);
    close_pool(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_pages_are_found_while_held_and_after),
        cmocka_unit_test(only_an_equal_beginning_is_found),
        cmocka_unit_test(another_salt_finds_nothing),
        cmocka_unit_test(colliding_hashes_return_no_foreign_page),
        cmocka_unit_test(content_computed_twice_is_kept_once),
        cmocka_unit_test(the_page_used_longest_ago_goes_first_and_children_before_parents),
        cmocka_unit_test(a_held_page_is_never_evicted),
        cmocka_unit_test(forgotten_pages_are_not_found_and_cut_the_chain),
        cmocka_unit_test(a_disabled_cache_is_a_plain_pool),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
