// hrk::linear_wgmma against a plain loop, in every variant; and the same bits from all of them.
#include "kernels/support/tiled_matrix.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

struct Shape {
    uint32_t rows, cols, n;
};

struct Case {
    Matrix matrix;
    DeviceArray<hrk_bf16> weights;
    uint32_t n_sms = 4;

    Case(uint32_t rows, uint32_t cols, uint64_t seed) : matrix(rows, cols, 1, 1, seed), weights(matrix.tiled())
    {
    }
    hrk_linear_args args(const DeviceArray<unsigned char> &step, const DeviceArray<hrk_bf16> &in, uint32_t n,
                         hrk_epilogue epilogue, void *out) const
    {
        hrk_linear_args a = {};

        a.tables.step = as_step(step);
        a.over = HRK_ROWS_ALL;
        a.max_rows = n;
        a.w = matrix.describe(weights.data(), HRK_TILED);
        a.in = in.data();
        a.epilogue = epilogue;
        a.out = out;
        return a;
    }
    // bf16 results of n rows; memory for three rows more. before: what out holds at first.
    std::vector<hrk_bf16> run(const std::vector<uint32_t> &ids, int variant, hrk_epilogue epilogue = HRK_STORE,
                              const std::vector<hrk_bf16> &before = {}) const
    {
        const uint32_t n = (uint32_t)ids.size();
        const hrk_launch on = {nullptr, n_sms, false, false};
        DeviceArray<unsigned char> step(step_block(n, 0));
        DeviceArray<hrk_bf16> in(rows_of(ids, matrix.cols, 7)), out((size_t)(n + 3) * hrk_ld(matrix.rows));
        const hrk_linear_args a = args(step, in, n, epilogue, out.data());

        out.put(before);
        run_to_end(hrk::linear_wgmma_as(&a, &on, variant));
        return out.get();
    }
    std::vector<float> expected(const std::vector<uint32_t> &ids) const
    {
        const std::vector<hrk_bf16> x = rows_of(ids, matrix.cols, 7);
        std::vector<float> y;

        for (size_t r = 0; r < ids.size(); r++) {
            for (uint32_t i = 0; i < matrix.rows; i++)
                y.push_back(product(matrix, 0, 0, i, &x[r * hrk_ld(matrix.cols)]));
        }
        return y;
    }
    bool can(int variant) const
    {
        const uint32_t k_blocks = hrk_ld(matrix.cols) / 64;

        return variant < 5 || k_blocks % (variant == 5 ? 4 : 2) == 0;
    }
};

void every_variant_computes_the_product(void **)
{
    const Shape shapes[] = {{48, 32, 1},   {64, 64, 7},    {96, 96, 16},   {200, 192, 17}, {200, 256, 33},
                            {192, 512, 5}, {320, 256, 64}, {64, 128, 130}, {130, 64, 300}};

    for (const Shape &s : shapes) {
        const Case c(s.rows, s.cols, s.rows + s.cols);
        const std::vector<uint32_t> ids = ids_up_to(s.n);
        const std::vector<float> want = c.expected(ids);
        std::vector<hrk_bf16> first;

        for (int v = hrk::PICK_VARIANT; v < hrk::LINEAR_VARIANTS; v++) {
            if (v >= 0 && !c.can(v))
                continue;
            const std::vector<hrk_bf16> got = c.run(ids, v);

            assert_padding_and_strangers(got, s.n, s.rows);
            assert_true(relative_error(values_of(got, s.n, s.rows), want) < 4e-3);
            if (first.empty())
                first = got;
            assert_memory_equal(got.data(), first.data(), got.size() * sizeof(hrk_bf16));
        }
    }
}

void the_residual_is_added_to_the_rounded_product(void **)
{
    const Shape shapes[] = {{200, 256, 3}, {72, 512, 30}, {136, 256, 140}};

    for (const Shape &s : shapes) {
        const Case c(s.rows, s.cols, 3);
        const std::vector<uint32_t> ids = ids_up_to(s.n);
        const std::vector<hrk_bf16> before = rows_of(ids, s.rows, 11);

        for (int v = 0; v < hrk::LINEAR_VARIANTS; v++) {
            const std::vector<hrk_bf16> products = c.run(ids, v), got = c.run(ids, v, HRK_RESIDUAL, before);

            for (size_t i = 0; i < before.size(); i++)
                assert_int_equal(got[i], bf16_bits(bf16_value(products[i]) + bf16_value(before[i])));
            assert_padding_and_strangers(got, s.n, s.rows);
        }
    }
}

void logits_are_the_unrounded_sums_of_the_output_rows(void **)
{
    const Case c(200, 256, 5);

    for (uint32_t n : {1u, 20u, 130u}) {
        const std::vector<uint32_t> ids = ids_up_to(n);
        const std::vector<float> want = c.expected(ids);
        const std::vector<hrk_bf16> rounded = c.run(ids, 0);

        for (int v = 0; v < hrk::LINEAR_VARIANTS; v++) {
            const hrk_launch on = {nullptr, 4, true, false};
            DeviceArray<unsigned char> step(step_block(500, n));
            DeviceArray<hrk_bf16> in(rows_of(ids, 256, 7));
            DeviceArray<float> out((size_t)(n + 1) * 256);
            hrk_linear_args a = c.args(step, in, n + 9, HRK_STORE_F32, out.data());

            a.over = HRK_ROWS_OUTPUTS;
            run_to_end(hrk::linear_wgmma_as(&a, &on, v));
            const std::vector<float> got = out.get();
            std::vector<float> inside;

            for (uint32_t r = 0; r < n; r++) {
                for (uint32_t i = 0; i < 256; i++) {
                    if (i < 200)
                        inside.push_back(got[r * 256 + i]);
                    assert_int_equal(bf16_bits(got[r * 256 + i]), rounded[r * 256 + i]);
                }
            }
            assert_true(relative_error(inside, want) < 1e-5);
            assert_true(got[n * 256] != got[n * 256]);
        }
    }
}

void a_row_has_the_same_bits_alone_and_among_strangers(void **)
{
    const Case c(136, 256, 9);
    std::vector<uint32_t> crowd = ids_up_to(131);

    crowd[77] = 1000;
    const std::vector<hrk_bf16> all = c.run(crowd, hrk::PICK_VARIANT), alone = c.run({1000}, hrk::PICK_VARIANT);

    assert_memory_equal(&all[77 * 192], alone.data(), 192 * sizeof(hrk_bf16));
}

void a_single_block_works_through_all_tiles(void **)
{
    Case c(328, 512, 21);
    const std::vector<uint32_t> ids = ids_up_to(70);

    for (int v = 0; v < hrk::LINEAR_VARIANTS; v++) {
        c.n_sms = 4;
        const std::vector<hrk_bf16> many = c.run(ids, v);

        c.n_sms = 1;
        const std::vector<hrk_bf16> one = c.run(ids, v);

        assert_memory_equal(many.data(), one.data(), many.size() * sizeof(hrk_bf16));
    }
}

void long_prompts_are_swept_in_bands(void **)
{
    const Case c(200, 64, 22);
    const uint32_t n = 2500;
    const std::vector<uint32_t> ids = ids_up_to(n);
    const std::vector<float> want = c.expected(ids);

    for (int v : {2, 4}) {
        const std::vector<hrk_bf16> got = c.run(ids, v);

        assert_padding_and_strangers(got, n, 200);
        assert_true(relative_error(values_of(got, n, 200), want) < 4e-3);
    }
}

void a_step_without_rows_writes_nothing(void **)
{
    const Case c(200, 256, 23);
    const hrk_launch on = {nullptr, 4, true, false};
    DeviceArray<unsigned char> step(step_block(0, 0));
    DeviceArray<hrk_bf16> in(16 * 256), out(16 * 256);

    for (int v = 0; v < hrk::LINEAR_VARIANTS; v++) {
        for (uint32_t max_rows : {0u, 1u, 16u, 400u}) {
            const hrk_linear_args a = c.args(step, in, max_rows, HRK_STORE, out.data());

            run_to_end(hrk::linear_wgmma_as(&a, &on, v));
        }
    }
    assert_padding_and_strangers(out.get(), 0, 200);
}

void what_it_cannot_do_is_refused(void **)
{
    const Case c(64, 64, 1);
    const hrk_launch on = {nullptr, 4, false, false};
    DeviceArray<unsigned char> step(step_block(1, 0));
    DeviceArray<hrk_bf16> in(64), out(64);
    DeviceArray<float> bias(64);
    const hrk_linear_args good = c.args(step, in, 1, HRK_STORE, out.data());
    hrk_linear_args a = good;

    a.bias = bias.data();
    assert_int_equal(hrk::linear_wgmma_as(&a, &on, hrk::PICK_VARIANT), cudaErrorInvalidValue);
    a = good;
    a.w.layout = HRK_ROW_MAJOR;
    assert_int_equal(hrk::linear_wgmma_as(&a, &on, hrk::PICK_VARIANT), cudaErrorInvalidValue);
    a = good;
    a.w.n_groups = 3;
    assert_int_equal(hrk::linear_wgmma_as(&a, &on, hrk::PICK_VARIANT), cudaErrorInvalidValue);
    assert_int_equal(hrk::linear_wgmma_as(&good, &on, 5), cudaErrorInvalidValue);
    assert_int_equal(hrk::linear_wgmma_as(&good, &on, hrk::LINEAR_VARIANTS), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_computes_the_product),
        cmocka_unit_test(the_residual_is_added_to_the_rounded_product),
        cmocka_unit_test(logits_are_the_unrounded_sums_of_the_output_rows),
        cmocka_unit_test(a_row_has_the_same_bits_alone_and_among_strangers),
        cmocka_unit_test(a_single_block_works_through_all_tiles),
        cmocka_unit_test(long_prompts_are_swept_in_bands),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
