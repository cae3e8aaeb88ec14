/* Pages and slots: who holds what, and that nothing is lost. */
#include "engine/kv_pages.h"
#include "engine/state_slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { N = 5 };

static void every_page_is_handed_out_once_and_then_none(void **state)
{
    hr_kv_pages pages;
    uint32_t scratch[N];
    bool seen[N] = {false};

    (void)state;
    assert_true(hr_kv_pages_init(&pages, N));
    for (uint32_t i = 0; i < N; i++) {
        uint32_t page = hr_kv_pages_take(&pages);

        assert_true(page < N && !seen[page]);
        seen[page] = true;
        assert_null(hr_kv_pages_check(&pages, 0, scratch));
    }
    assert_int_equal(hr_kv_pages_take(&pages), HR_NO_PAGE);
    hr_kv_pages_deinit(&pages);
}

static void a_page_with_two_holders_is_left_when_both_dropped_it(void **state)
{
    hr_kv_pages pages;
    uint32_t scratch[N], page;

    (void)state;
    assert_true(hr_kv_pages_init(&pages, N));
    page = hr_kv_pages_take(&pages);
    assert_int_equal(hr_kv_pages_hold(&pages, page), 1);
    assert_int_equal(hr_kv_pages_drop(&pages, page), 1);
    assert_int_equal(hr_kv_pages_drop(&pages, page), 0);
    assert_int_equal(pages.n_held, 0);
    assert_null(hr_kv_pages_check(&pages, 1, scratch)); /* idle: with the cache */
    hr_kv_pages_give_back(&pages, page);
    assert_null(hr_kv_pages_check(&pages, 0, scratch));
    assert_int_equal(pages.n_free, N);
    hr_kv_pages_deinit(&pages);
}

static void the_page_freed_last_is_taken_first(void **state)
{
    hr_kv_pages pages;
    uint32_t a, b;

    (void)state;
    assert_true(hr_kv_pages_init(&pages, N));
    a = hr_kv_pages_take(&pages);
    b = hr_kv_pages_take(&pages);
    (void)hr_kv_pages_drop(&pages, b);
    hr_kv_pages_give_back(&pages, b);
    (void)hr_kv_pages_drop(&pages, a);
    hr_kv_pages_give_back(&pages, a);
    assert_int_equal(hr_kv_pages_take(&pages), a);
    hr_kv_pages_deinit(&pages);
}

static void the_check_names_what_is_broken(void **state)
{
    hr_kv_pages pages;
    uint32_t scratch[N];

    (void)state;
    assert_true(hr_kv_pages_init(&pages, N));
    pages.free_list[0] = pages.free_list[1];
    assert_string_equal(hr_kv_pages_check(&pages, 0, scratch), "a page is on the free list twice");
    hr_kv_pages_deinit(&pages);

    assert_true(hr_kv_pages_init(&pages, N));
    pages.refs[2] = 1;
    assert_string_equal(hr_kv_pages_check(&pages, 0, scratch), "a page is free and held");
    hr_kv_pages_deinit(&pages);

    assert_true(hr_kv_pages_init(&pages, N));
    (void)hr_kv_pages_drop(&pages, hr_kv_pages_take(&pages)); /* given to nobody: leaked */
    assert_string_equal(hr_kv_pages_check(&pages, 0, scratch), "free, held and idle pages do not add up");
    hr_kv_pages_deinit(&pages);
}

static void slots_come_and_go_without_loss(void **state)
{
    hr_state_slots slots;
    uint32_t taken[N];

    (void)state;
    assert_true(hr_state_slots_init(&slots, N));
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < N; i++)
            assert_int_not_equal(taken[i] = hr_state_slots_take(&slots), HR_NO_SLOT);
        assert_int_equal(hr_state_slots_take(&slots), HR_NO_SLOT);
        assert_null(hr_state_slots_check(&slots));
        for (uint32_t i = 0; i < N; i++)
            hr_state_slots_give_back(&slots, taken[(i * 2) % N]);
        assert_null(hr_state_slots_check(&slots));
        assert_int_equal(slots.n_free, N);
    }
    slots.is_taken[slots.free_list[0]] = true;
    assert_non_null(hr_state_slots_check(&slots));
    hr_state_slots_deinit(&slots);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_page_is_handed_out_once_and_then_none),
        cmocka_unit_test(a_page_with_two_holders_is_left_when_both_dropped_it),
        cmocka_unit_test(the_page_freed_last_is_taken_first),
        cmocka_unit_test(the_check_names_what_is_broken),
        cmocka_unit_test(slots_come_and_go_without_loss),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
