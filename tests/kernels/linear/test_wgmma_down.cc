// hrk::down_wgmma against a plain loop in every variant: each expert's rows times its own matrix.
#include "kernels/support/tiled_matrix.h"
#include "kernels/support/expert_lists.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

struct Case {
    Matrix matrix;
    DeviceArray<hrk_bf16> weights;
    uint32_t n_sms = 4;

    Case(uint32_t rows, uint32_t cols, uint32_t n_experts)
        : matrix(rows, cols, 1, n_experts, rows + cols), weights(matrix.tiled())
    {
    }
    // y of rows h in expert order, K rows a token.
    std::vector<hrk_bf16> run(const std::vector<hrk_bf16> &h, const ExpertLists &lists, int variant) const
    {
        const uint32_t n = (uint32_t)lists.sorted.size();
        const hrk_launch on = {nullptr, n_sms, false, false};
        DeviceArray<unsigned char> step(step_block(n / lists.K, 0));
        DeviceArray<hrk_bf16> in(h), y((size_t)(n + 3) * hrk_ld(matrix.rows));
        DeviceArray<uint32_t> first(lists.first);
        hrk_routing routing = {};
        hrk_down_args a = {};

        routing.E = lists.E;
        routing.K = lists.K;
        routing.first = first.data();
        a.tables.step = as_step(step);
        a.max_rows = n / lists.K;
        a.w = matrix.describe(weights.data(), HRK_TILED);
        a.h = in.data();
        a.routing = &routing;
        a.y = y.data();
        run_to_end(hrk::down_wgmma_as(&a, &on, variant));
        return y.get();
    }
    bool can(int variant) const
    {
        const uint32_t k_blocks = hrk_ld(matrix.cols) / 64;

        return variant < 5 || k_blocks % (variant == 5 ? 4 : 2) == 0;
    }
};

void experts_multiply_their_rows(void **)
{
    const struct {
        uint32_t rows, cols, E, K, n;
        int hot;
    } shapes[] = {{64, 256, 8, 2, 1, -1}, {96, 192, 8, 4, 9, -1}, {200, 64, 40, 4, 30, -1}, {72, 128, 6, 2, 280, 3}};

    for (const auto &s : shapes) {
        const Case c(s.rows, s.cols, s.E);
        const ExpertLists lists(s.E, s.K, choose_experts(ids_up_to(s.n), s.E, s.K, s.hot));
        const uint32_t n = (uint32_t)lists.sorted.size();
        const std::vector<hrk_bf16> h = rows_of(ids_up_to(n), s.cols, 3);
        std::vector<float> want;
        std::vector<hrk_bf16> bits;

        for (uint32_t p = 0; p < n; p++) {
            for (uint32_t i = 0; i < s.rows; i++)
                want.push_back(product(c.matrix, lists.expert[p], 0, i, &h[(size_t)p * hrk_ld(s.cols)]));
        }
        for (int v = hrk::PICK_VARIANT; v < hrk::LINEAR_VARIANTS; v++) {
            if (v >= 0 && !c.can(v))
                continue;
            const std::vector<hrk_bf16> got = c.run(h, lists, v);

            assert_padding_and_strangers(got, n, s.rows);
            assert_true(relative_error(values_of(got, n, s.rows), want) < 4e-3);
            if (bits.empty())
                bits = got;
            assert_memory_equal(got.data(), bits.data(), got.size() * sizeof(hrk_bf16));
        }
    }
}

void a_row_has_the_same_bits_alone_and_among_strangers(void **)
{
    const Case c(136, 128, 4);
    const uint32_t n = 70;
    std::vector<uint32_t> chosen(n, 2), ids = ids_up_to(n);
    const std::vector<hrk_bf16> all = c.run(rows_of(ids, 128, 3), ExpertLists(4, 1, chosen), hrk::PICK_VARIANT),
                                alone = c.run(rows_of({55}, 128, 3), ExpertLists(4, 1, {2}), hrk::PICK_VARIANT);

    assert_memory_equal(&all[55 * 192], alone.data(), 192 * sizeof(hrk_bf16));
}

void a_stack_of_another_size_is_refused(void **)
{
    const Case c(64, 64, 4);
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_routing routing = {};
    hrk_down_args a = {};

    routing.E = 5;
    routing.K = 2;
    a.max_rows = 1;
    a.w = c.matrix.describe(c.weights.data(), HRK_TILED);
    a.routing = &routing;
    assert_int_equal(hrk::down_wgmma_as(&a, &on, hrk::PICK_VARIANT), cudaErrorInvalidValue);
    a.routing = nullptr;
    assert_int_equal(hrk::down_wgmma_as(&a, &on, hrk::PICK_VARIANT), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_multiply_their_rows),
        cmocka_unit_test(a_row_has_the_same_bits_alone_and_among_strangers),
        cmocka_unit_test(a_stack_of_another_size_is_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
