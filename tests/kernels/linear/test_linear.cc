// hrk_linear, hrk_gate_up and hrk_down by both families: the same weights, packed into both layouts by hrk_pack, give
// the same results up to a rounding.
#include "kernels/support/expect.h"
#include "kernels/support/step_block.h"

using namespace hrk_test;

namespace
{

enum { TOKENS = 9, COLS = 136, ROWS = 100 };
const hrk_launch ON = {nullptr, 4, false, false};

// Dense random weights in one layout; the same for the same shape.
struct Weights {
    uint32_t n_groups, n_stack;
    hrk_layout layout;
    DeviceArray<hrk_bf16> data;

    Weights(uint32_t groups, uint32_t stack, hrk_layout to)
        : n_groups(groups), n_stack(stack), layout(to), data(hrk_matrix_values(ROWS, COLS, groups, to) * stack)
    {
        Random random(groups * 10 + stack);

        data.fill(0);
        for (uint32_t i = 0; i < stack * groups; i++) {
            std::vector<float> dense;

            for (uint32_t j = 0; j < ROWS * COLS; j++)
                dense.push_back(random.normal() / sqrtf((float)COLS));
            const DeviceArray<float> from(dense);
            const hrk_pack_args args = {from.data(), HRK_SOURCE_F32, data.data(), ROWS, COLS, groups,
                                        i % groups,  i / groups,     0,           ROWS, to,   false};
            assert_int_equal(hrk_pack(&args, &ON), 0);
            assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        }
    }
    hrk_matrix matrix() const
    {
        return {data.data(), ROWS, COLS, n_groups, n_stack, layout};
    }
};

// Pair p is of token p; experts 0, 2 and 3 of four have some.
const std::vector<uint32_t> FIRST = {0, 4, 4, 5, TOKENS}, SORTED = {0, 2, 4, 6, 8, 1, 3, 5, 7};

enum Product { LINEAR, GATE_UP, EXPERTS_GATE_UP, EXPERTS_DOWN };

std::vector<double> run(Product product, hrk_layout layout)
{
    const bool has_experts = product == EXPERTS_GATE_UP || product == EXPERTS_DOWN;
    const bool is_gated = product == GATE_UP || product == EXPERTS_GATE_UP;
    const Weights w(is_gated ? 2 : 1, has_experts ? 4 : 1, layout);
    Random random(1);
    StepBlock block;
    block.step.n_rows = TOKENS;
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<hrk_bf16> in(random_rows(random, TOKENS, COLS, 1.0f)), out((size_t)TOKENS * hrk_ld(ROWS));
    DeviceArray<uint32_t> first(FIRST), sorted(SORTED);
    hrk_routing routing = {};
    hrk_tables tables = {};
    routing.E = 4;
    routing.K = 1;
    routing.first = first.data();
    routing.sorted = sorted.data();
    tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    if (product == LINEAR) {
        const hrk_linear_args args = {tables,    HRK_ROWS_ALL, TOKENS,    w.matrix(),
                                      in.data(), nullptr,      HRK_STORE, out.data()};
        assert_int_equal(hrk_linear(&args, &ON), 0);
    } else if (product == EXPERTS_DOWN) {
        const hrk_down_args args = {tables, TOKENS, w.matrix(), in.data(), &routing, out.data()};
        assert_int_equal(hrk_down(&args, &ON), 0);
    } else {
        const hrk_gate_up_args args = {tables,    TOKENS, w.matrix(), in.data(), has_experts ? &routing : nullptr,
                                       out.data()};
        assert_int_equal(hrk_gate_up(&args, &ON), 0);
    }
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<double> values;
    for (hrk_bf16 b : out.get())
        values.push_back((double)bf16_value(b));
    return values;
}

void both_layouts_give_the_same_product(void **)
{
    for (Product product : {LINEAR, GATE_UP, EXPERTS_GATE_UP, EXPERTS_DOWN})
        expect_close(run(product, HRK_TILED), run(product, HRK_ROW_MAJOR));
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {cmocka_unit_test(both_layouts_give_the_same_product)};

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
