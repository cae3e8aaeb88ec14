// hrk_attention_decode against a slow double loop, and its promises: a row's bits are its own, scratch is left clean.
#include "attention_case.h"

using namespace attention_case;

namespace
{

const std::vector<uint32_t> LENGTHS = {1, 15, 16, 63, 64, 65, 511, 512, 513, 1300};

std::vector<Rows> last_row_of_each(const std::vector<uint32_t> &lengths)
{
    std::vector<Rows> rows;

    for (uint32_t s = 0; s < lengths.size(); s++)
        rows.push_back({s, lengths[s] - 1, 1, true});
    return rows;
}

void check_shape(uint32_t group, uint32_t Nkv, uint32_t P)
{
    World w(group * Nkv, Nkv, P, LENGTHS);
    std::vector<Rows> rows = last_row_of_each(LENGTHS);

    w.check(w.run({hrk_attention_decode}, rows), rows, true);
}

void every_group_of_query_heads_attends_over_any_number_of_keys(void **)
{
    check_shape(1, 3, 64);
    check_shape(2, 2, 64);
    check_shape(3, 2, 64);
    check_shape(4, 2, 64);
    check_shape(8, 1, 64);
}

void every_page_size_gives_the_same_bits(void **)
{
    std::vector<Rows> rows = last_row_of_each(LENGTHS);
    std::vector<hrk_bf16> first = World(4, 2, 64, LENGTHS).run({hrk_attention_decode}, rows);

    for (uint32_t P : {8u, 16u, 32u, 128u})
        assert_true(World(4, 2, P, LENGTHS).run({hrk_attention_decode}, rows) == first);
}

void a_row_alone_has_the_bits_it_has_among_strangers(void **)
{
    World w(8, 2, 16, LENGTHS);
    std::vector<Rows> rows = last_row_of_each(LENGTHS);
    std::vector<hrk_bf16> all = w.run({hrk_attention_decode}, rows);

    w.spare = 7;
    for (size_t i = 0; i < rows.size(); i++) {
        w.n_sms = 1 + (uint32_t)i;
        assert_true(w.run({hrk_attention_decode}, {rows[i]}) == row_of(w, all, i));
    }
}

// 40 items: the search for an item takes more than one step, and one item's units are far from the next's.
void many_items_are_found(void **)
{
    std::vector<uint32_t> lengths;
    for (uint32_t i = 0; i < 45; i++)
        lengths.push_back(i % 11 == 5 ? 1025 : 1 + i * 3);
    World w(2, 1, 64, lengths);
    std::vector<Rows> rows = last_row_of_each(lengths);

    w.n_sms = 3;
    std::vector<hrk_bf16> out = w.run({hrk_attention_decode}, rows);
    w.check(out, rows, true);
    w.n_sms = 40;
    assert_true(w.run({hrk_attention_decode}, rows) == out);
}

// Rows of one sequence side by side, as drafts are: each sees only the keys up to itself.
void rows_of_one_sequence_see_only_their_own_past(void **)
{
    World w(4, 1, 64, {520, 70});
    std::vector<Rows> rows = {{0, 508, 8, true}, {1, 60, 4, true}};

    w.check(w.run({hrk_attention_decode}, rows), rows, true);
}

void rows_of_prompts_are_left_alone(void **)
{
    World w(4, 2, 64, {100, 40, 600});
    std::vector<Rows> rows = {{0, 99, 1, true}, {1, 0, 40, false}, {2, 599, 1, true}};

    w.programmatic = true;
    std::vector<hrk_bf16> out = w.run({hrk_attention_decode}, rows);
    w.check(out, rows, true);
    for (size_t i = 1; i <= 40; i++)
        assert_true(row_of(w, out, i) == std::vector<hrk_bf16>(4 * D, NAN_BF16));
}

void a_step_without_items_does_nothing(void **)
{
    World w(4, 2, 64, {10});
    std::vector<Rows> rows = {{0, 0, 10, false}};

    assert_true(w.run({hrk_attention_decode}, rows) == std::vector<hrk_bf16>(10 * 4 * D, NAN_BF16));
    w.spare = 5;
    assert_true(w.run({hrk_attention_decode}, rows) == std::vector<hrk_bf16>(10 * 4 * D, NAN_BF16));
}

void shapes_that_it_cannot_do_are_refused(void **)
{
    hrk_launch on = {nullptr, 4, false, false};
    unsigned char scratch[16];
    hrk_attention_args good = {};
    good.Nq = 8;
    good.kv = {nullptr, 0, 64, 2, 64, true};
    good.scratch = scratch;
    assert_int_equal(hrk_attention_decode(&good, &on), 0);
    for (int i = 0; i < 6; i++) {
        hrk_attention_args args = good;
        if (i == 0)
            args.kv.D = 128;
        else if (i == 1)
            args.kv.is_swizzled = false;
        else if (i == 2)
            args.kv.P = 48;
        else if (i == 3)
            args.kv.P = 4;
        else if (i == 4)
            args.Nq = 7;
        else
            args.Nq = 18;
        assert_int_equal(hrk_attention_decode(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_group_of_query_heads_attends_over_any_number_of_keys),
        cmocka_unit_test(every_page_size_gives_the_same_bits),
        cmocka_unit_test(a_row_alone_has_the_bits_it_has_among_strangers),
        cmocka_unit_test(many_items_are_found),
        cmocka_unit_test(rows_of_one_sequence_see_only_their_own_past),
        cmocka_unit_test(rows_of_prompts_are_left_alone),
        cmocka_unit_test(a_step_without_items_does_nothing),
        cmocka_unit_test(shapes_that_it_cannot_do_are_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
