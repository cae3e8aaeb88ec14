// hrk_attention_prefill against a slow double loop, and its promise: a row's bits do not depend on how its prompt was
// cut.
#include "attention_case.h"

using namespace attention_case;

namespace
{

void check_shape(uint32_t group, uint32_t Nkv, uint32_t P)
{
    World w(group * Nkv, Nkv, P, {1, 15, 64, 65, 130, 200});
    // The last one continues a prompt whose first 137 keys are in the pages.
    std::vector<Rows> rows = {{0, 0, 1, false},  {1, 0, 15, false},  {2, 0, 64, false},
                              {3, 0, 65, false}, {4, 0, 130, false}, {5, 137, 63, false}};

    w.check(w.run({hrk_attention_prefill}, rows), rows, false, 5);
}

void every_group_of_query_heads_attends_to_its_past(void **)
{
    check_shape(1, 3, 64);
    check_shape(2, 2, 64);
    check_shape(3, 2, 64);
    check_shape(4, 2, 64);
}

void more_than_four_query_heads_are_cut_into_parts(void **)
{
    check_shape(5, 1, 64);
    check_shape(8, 2, 64);
}

void every_page_size_gives_the_same_bits(void **)
{
    std::vector<Rows> rows = {{0, 490, 110, false}, {1, 0, 65, false}};
    World w(4, 1, 64, {600, 65});
    std::vector<hrk_bf16> first = w.run({hrk_attention_prefill}, rows);

    w.check(first, rows, false, 7);
    for (uint32_t P : {8u, 16u, 32u, 128u})
        assert_true(World(4, 1, P, {600, 65}).run({hrk_attention_prefill}, rows) == first);
}

void a_long_past_is_attended_to(void **)
{
    World w(2, 1, 64, {1300});
    std::vector<Rows> rows = {{0, 1270, 30, false}};

    w.check(w.run({hrk_attention_prefill}, rows), rows, false, 3);
}

void a_prompt_cut_anywhere_has_the_same_bits(void **)
{
    World w(4, 2, 16, {300, 77});
    std::vector<hrk_bf16> whole = w.run({hrk_attention_prefill}, {{0, 0, 300, false}});
    const std::vector<std::vector<uint32_t>> cuts = {{0, 1, 64, 100, 300}, {0, 63, 127, 129, 300}, {0, 200, 299, 300}};

    w.check(whole, {{0, 0, 300, false}}, false, 13);
    for (const std::vector<uint32_t> &cut : cuts)
        for (size_t i = 0; i + 1 < cut.size(); i++) {
            std::vector<Rows> rows = {{1, 3, 70, false}, {0, cut[i], cut[i + 1] - cut[i], false}, {1, 0, 9, false}};
            std::vector<hrk_bf16> out = w.run({hrk_attention_prefill}, rows);

            w.n_sms = 1 + (uint32_t)i;
            w.spare = (uint32_t)i;
            for (uint32_t r = cut[i]; r < cut[i + 1]; r++)
                assert_true(row_of(w, out, 70 + r - cut[i]) == row_of(w, whole, r));
        }
}

// Fewer units than multiprocessors: the query heads of a key-value head are dealt out singly or in pairs.
void the_size_of_the_device_changes_no_bits(void **)
{
    World w(8, 2, 64, {150});
    const std::vector<Rows> rows = {{0, 0, 150, false}};
    std::vector<hrk_bf16> out = w.run({hrk_attention_prefill}, rows);

    for (uint32_t n_sms : {1u, 13u, 30u}) {
        w.n_sms = n_sms;
        assert_true(w.run({hrk_attention_prefill}, rows) == out);
    }
}

// Decode items and tiles in turns, as a step has them: both kernels together fill every row, each only its own.
void tiles_and_decode_items_share_a_step(void **)
{
    World w(8, 2, 64, {200, 700, 64, 33, 513});
    std::vector<Rows> rows = {{0, 199, 1, true}, {1, 660, 40, false}, {2, 0, 64, false},
                              {3, 32, 1, true},  {4, 509, 4, true},   {3, 0, 30, false}};

    w.programmatic = true;
    std::vector<hrk_bf16> out = w.run({hrk_attention_decode, hrk_attention_prefill}, rows);
    w.check(out, rows, true);
    w.check(out, rows, false, 9);
    std::vector<hrk_bf16> alone = w.run({hrk_attention_prefill}, rows);
    assert_true(row_of(w, alone, 0) == std::vector<hrk_bf16>(8 * D, NAN_BF16));
    for (size_t i = 1; i <= 104; i++)
        assert_true(row_of(w, alone, i) == row_of(w, out, i));
}

void a_step_without_tiles_does_nothing(void **)
{
    World w(4, 2, 64, {10});
    std::vector<Rows> rows = {{0, 9, 1, true}};

    assert_true(w.run({hrk_attention_prefill}, rows) == std::vector<hrk_bf16>(4 * D, NAN_BF16));
    w.spare = 5;
    assert_true(w.run({hrk_attention_prefill}, rows) == std::vector<hrk_bf16>(4 * D, NAN_BF16));
}

void shapes_that_it_cannot_do_are_refused(void **)
{
    hrk_launch on = {nullptr, 4, false, false};
    unsigned char scratch[16];
    hrk_attention_args args = {};

    args.Nq = 8;
    args.kv = {nullptr, 0, 64, 2, 64, true};
    args.scratch = scratch;
    assert_int_equal(hrk_attention_prefill(&args, &on), 0);
    args.kv.is_swizzled = false;
    assert_int_equal(hrk_attention_prefill(&args, &on), cudaErrorInvalidValue);
    args.kv.is_swizzled = true;
    args.kv.D = 128;
    assert_int_equal(hrk_attention_prefill(&args, &on), cudaErrorInvalidValue);
    args.kv.D = 64;
    args.Nq = 7;
    assert_int_equal(hrk_attention_prefill(&args, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_group_of_query_heads_attends_to_its_past),
        cmocka_unit_test(more_than_four_query_heads_are_cut_into_parts),
        cmocka_unit_test(every_page_size_gives_the_same_bits),
        cmocka_unit_test(a_long_past_is_attended_to),
        cmocka_unit_test(a_prompt_cut_anywhere_has_the_same_bits),
        cmocka_unit_test(the_size_of_the_device_changes_no_bits),
        cmocka_unit_test(tiles_and_decode_items_share_a_step),
        cmocka_unit_test(a_step_without_tiles_does_nothing),
        cmocka_unit_test(shapes_that_it_cannot_do_are_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
