// hrk::gate_up_wgmma against a plain loop, dense and by expert, in every variant; and the same bits from all of them.
#include "kernels/support/tiled_matrix.h"
#include "kernels/support/expert_lists.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

struct Case {
    Matrix matrix; // groups: gate, up
    DeviceArray<hrk_bf16> weights;
    uint32_t n_sms = 4;

    Case(uint32_t rows, uint32_t cols, uint32_t n_experts)
        : matrix(rows, cols, 2, n_experts, rows + cols), weights(matrix.tiled())
    {
    }
    // h of the rows; lists NULL: dense. Memory for three rows more.
    std::vector<hrk_bf16> run(const std::vector<uint32_t> &ids, const ExpertLists *lists, int variant) const
    {
        const uint32_t n = (uint32_t)ids.size();
        const hrk_launch on = {nullptr, n_sms, false, false};
        DeviceArray<unsigned char> step(step_block(n, 0));
        DeviceArray<hrk_bf16> in(rows_of(ids, matrix.cols, 7)),
            h((size_t)(n * (lists ? lists->K : 1) + 3) * hrk_ld(matrix.rows));
        DeviceArray<uint32_t> first(lists ? lists->first : std::vector<uint32_t>()),
            sorted(lists ? lists->sorted : std::vector<uint32_t>());
        hrk_routing routing = {};
        hrk_gate_up_args a = {};

        a.tables.step = as_step(step);
        a.max_rows = n;
        a.w = matrix.describe(weights.data(), HRK_TILED);
        a.in = in.data();
        a.h = h.data();
        if (lists) {
            routing.E = lists->E;
            routing.K = lists->K;
            routing.first = first.data();
            routing.sorted = sorted.data();
            a.routing = &routing;
        }
        run_to_end(hrk::gate_up_wgmma_as(&a, &on, variant));
        return h.get();
    }
    std::vector<float> expected(const std::vector<uint32_t> &ids, const ExpertLists *lists) const
    {
        const std::vector<hrk_bf16> x = rows_of(ids, matrix.cols, 7);
        std::vector<float> h;

        for (size_t p = 0; p < (lists ? lists->sorted.size() : ids.size()); p++) {
            const size_t row = lists ? lists->sorted[p] / lists->K : p;
            const uint32_t expert = lists ? lists->expert[p] : 0;

            for (uint32_t i = 0; i < matrix.rows; i++) {
                const hrk_bf16 *in = &x[row * hrk_ld(matrix.cols)];
                const float gate = bf16_rounded(product(matrix, expert, 0, i, in));
                const float up = bf16_rounded(product(matrix, expert, 1, i, in));

                h.push_back(bf16_rounded(bf16_rounded((float)(gate / (1.0 + exp(-(double)gate)))) * up));
            }
        }
        return h;
    }
    bool can(int variant) const
    {
        return variant < 5 || hrk_ld(matrix.cols) / 64 % 2 == 0;
    }
    // All variants give what is expected and the same bits; returns them.
    std::vector<hrk_bf16> check(const std::vector<uint32_t> &ids, const ExpertLists *lists) const
    {
        const std::vector<float> want = expected(ids, lists);
        const uint32_t n = (uint32_t)(lists ? lists->sorted.size() : ids.size());
        std::vector<hrk_bf16> bits;

        for (int v = hrk::PICK_VARIANT; v < hrk::GATE_UP_VARIANTS; v++) {
            if (v >= 0 && !can(v))
                continue;
            const std::vector<hrk_bf16> got = run(ids, lists, v);

            assert_padding_and_strangers(got, n, matrix.rows);
            assert_true(relative_error(values_of(got, n, matrix.rows), want) < 4e-3);
            if (bits.empty())
                bits = got;
            assert_memory_equal(got.data(), bits.data(), got.size() * sizeof(hrk_bf16));
        }
        return bits;
    }
};

void dense_layers(void **)
{
    const uint32_t shapes[][3] = {{48, 32, 1}, {64, 96, 16}, {200, 192, 17}, {136, 256, 70}, {64, 64, 130}};

    for (const auto &s : shapes) {
        const Case c(s[0], s[1], 1);

        c.check(ids_up_to(s[2]), nullptr);
    }
}

void experts_get_their_rows(void **)
{
    const uint32_t shapes[][5] = {// rows, cols, E, K, T
                                  {64, 128, 8, 2, 1},
                                  {96, 192, 8, 4, 9},
                                  {128, 64, 40, 4, 30},
                                  {72, 256, 5, 2, 60}};

    for (const auto &s : shapes) {
        const Case c(s[0], s[1], s[2]);
        const std::vector<uint32_t> ids = ids_up_to(s[4]);
        const ExpertLists lists(s[2], s[3], choose_experts(ids, s[2], s[3], -1));

        c.check(ids, &lists);
    }
}

void one_expert_may_be_chosen_by_all_rows(void **)
{
    const Case c(72, 128, 6);
    const std::vector<uint32_t> ids = ids_up_to(150);
    const ExpertLists lists(6, 2, choose_experts(ids, 6, 2, 4));

    c.check(ids, &lists);
}

void a_row_has_the_same_bits_alone_and_among_strangers(void **)
{
    const Case c(136, 128, 8);
    std::vector<uint32_t> crowd = ids_up_to(60);

    crowd[31] = 5000;
    const ExpertLists among(8, 3, choose_experts(crowd, 8, 3, -1)), only(8, 3, choose_experts({5000}, 8, 3, -1));
    const std::vector<hrk_bf16> all = c.run(crowd, &among, hrk::PICK_VARIANT),
                                alone = c.run({5000}, &only, hrk::PICK_VARIANT);
    size_t found = 0;

    for (size_t p = 0; p < among.sorted.size(); p++) {
        if (among.sorted[p] / 3 == 31) // its experts ascend in both
            assert_memory_equal(&all[p * 192], &alone[found++ * 192], 192 * sizeof(hrk_bf16));
    }
    assert_int_equal(found, 3);
}

void a_single_block_works_through_all_tiles(void **)
{
    Case c(136, 256, 8);
    const std::vector<uint32_t> ids = ids_up_to(40);
    const ExpertLists lists(8, 2, choose_experts(ids, 8, 2, -1));

    c.n_sms = 1;
    c.check(ids, &lists);
}

void a_step_without_rows_writes_nothing(void **)
{
    const Case c(64, 128, 4);
    const ExpertLists lists(4, 2, {});

    for (int v = hrk::PICK_VARIANT; v < hrk::GATE_UP_VARIANTS; v++) {
        const hrk_launch on = {nullptr, 4, true, false};
        DeviceArray<unsigned char> step(step_block(0, 0));
        DeviceArray<hrk_bf16> in(128), h(8 * 64);
        DeviceArray<uint32_t> first(lists.first), sorted(64);
        hrk_routing routing = {};
        hrk_gate_up_args a = {};

        routing.E = 4;
        routing.K = 2;
        routing.first = first.data();
        routing.sorted = sorted.data();
        a.tables.step = as_step(step);
        a.max_rows = 4;
        a.w = c.matrix.describe(c.weights.data(), HRK_TILED);
        a.in = in.data();
        a.h = h.data();
        a.routing = &routing;
        run_to_end(hrk::gate_up_wgmma_as(&a, &on, v));
        a.routing = nullptr;
        a.w.n_stack = 1;
        run_to_end(hrk::gate_up_wgmma_as(&a, &on, v));
        assert_padding_and_strangers(h.get(), 0, 64);
    }
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_layers),
        cmocka_unit_test(experts_get_their_rows),
        cmocka_unit_test(one_expert_may_be_chosen_by_all_rows),
        cmocka_unit_test(a_row_has_the_same_bits_alone_and_among_strangers),
        cmocka_unit_test(a_single_block_works_through_all_tiles),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
