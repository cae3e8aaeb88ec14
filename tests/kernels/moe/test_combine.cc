// hrk_combine against a plain loop with the stated roundings: the sum and the residual exactly, the norm within its
// tolerance and bit for bit the same in any batch.
#include "kernels/support/device_array.h"

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

using namespace hrk_test;

namespace
{

const float EPS = 1e-5f;

struct Input {
    uint32_t H, K, n;
    std::vector<hrk_bf16> x, y; // y by position
    std::vector<uint32_t> place;
    std::vector<float> weights, norm;
};
struct Result {
    std::vector<hrk_bf16> x, xn, sum;
};

Input make_input(uint32_t H, uint32_t K, uint32_t n, uint64_t seed)
{
    Random random(seed);
    const uint32_t ld = hrk_ld(H);
    Input in{H,  K,  n, std::vector<hrk_bf16>((size_t)n * ld, 0), std::vector<hrk_bf16>((size_t)n * K * ld, 0),
             {}, {}, {}};

    for (size_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < H; i++)
            in.x[r * ld + i] = bf16_bits(2.0f * random.normal());
    for (size_t r = 0; r < (size_t)n * K; r++)
        for (uint32_t i = 0; i < H; i++)
            in.y[r * ld + i] = bf16_bits(random.normal());
    for (uint32_t i = 0; i < n * K; i++) {
        in.place.push_back(i);
        in.weights.push_back(bf16_rounded((float)random.unit()));
    }
    for (uint32_t i = n * K; i > 1; i--)
        std::swap(in.place[i - 1], in.place[random.below(i)]);
    for (uint32_t i = 0; i < H; i++)
        in.norm.push_back(1.0f + 0.1f * random.normal());
    return in;
}

// The buffers hold two rows more than the step has; those must stay as they are.
Result run(const Input &in, bool has_norm, bool has_sum)
{
    const size_t rows = in.n + 2, ld = hrk_ld(in.H);
    hrk_step step = {};
    step.n_rows = in.n;
    DeviceArray<hrk_step> d_step(std::vector<hrk_step>{step});
    DeviceArray<hrk_bf16> x(rows * ld), xn(rows * ld), sum(rows * ld), y(in.y);
    DeviceArray<uint32_t> place(in.place);
    DeviceArray<float> weights(in.weights), norm(in.norm);
    hrk_combine_args args = {};
    const hrk_launch on = {nullptr, 4, false, false};

    x.put(in.x);
    args.tables.step = d_step.data();
    args.max_rows = (uint32_t)rows;
    args.y = y.data();
    args.routing.K = in.K;
    args.routing.place = place.data();
    args.routing.weights = weights.data();
    args.H = in.H;
    args.x = x.data();
    args.norm = has_norm ? norm.data() : nullptr;
    args.eps = EPS;
    args.xn = xn.data();
    args.sum = has_sum ? sum.data() : nullptr;
    assert_int_equal(hrk_combine(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return {x.get(), xn.get(), sum.get()};
}

void check_row(const Input &in, const Result &got, uint32_t row)
{
    const uint32_t ld = hrk_ld(in.H);
    std::vector<float> x(ld, 0.0f);
    double squares = 0, error = 0, size = 0;

    for (uint32_t i = 0; i < ld; i++) {
        const size_t at = (size_t)row * ld + i;
        float sum = 0;

        for (uint32_t k = 0; k < in.K; k++) {
            const size_t pair = (size_t)row * in.K + k;
            sum += bf16_rounded(bf16_value(in.y[(size_t)in.place[pair] * ld + i]) * in.weights[pair]);
        }
        assert_int_equal(got.sum[at], bf16_bits(sum));
        x[i] = bf16_rounded(bf16_value(in.x[at]) + bf16_rounded(sum));
        assert_int_equal(got.x[at], bf16_bits(x[i]));
        squares += (double)x[i] * (double)x[i];
    }
    for (uint32_t i = 0; i < ld; i++) {
        const double want = i < in.H ? (double)x[i] / sqrt(squares / in.H + (double)EPS) * (double)in.norm[i] : 0.0;
        const double is = (double)bf16_value(got.xn[(size_t)row * ld + i]);

        error += (is - want) * (is - want);
        size += want * want;
    }
    assert_true(error <= pow(4e-3, 2) * size);
}

void the_weighted_outputs_join_the_residual_in_order(void **)
{
    static const uint32_t shapes[][3] = {{64, 4, 5},   {256, 1, 3}, {320, 4, 7}, {1000, 8, 4},
                                         {2048, 4, 9}, {72, 2, 1},  {9000, 3, 2}};

    for (const auto &s : shapes) {
        const Input in = make_input(s[0], s[1], s[2], s[0]);
        const Result got = run(in, true, true);
        const size_t end = (size_t)in.n * hrk_ld(in.H);

        for (uint32_t r = 0; r < in.n; r++)
            check_row(in, got, r);
        for (size_t i = end; i < got.x.size(); i++) {
            assert_int_equal(got.x[i], 0xffff);
            assert_int_equal(got.xn[i], 0xffff);
            assert_int_equal(got.sum[i], 0xffff);
        }
    }
}

void norm_and_sum_may_be_left_out(void **)
{
    const Input in = make_input(128, 4, 6, 3);
    const Result all = run(in, true, true), bare = run(in, false, false);

    assert_true(all.x == bare.x);
    for (const hrk_bf16 v : bare.xn)
        assert_int_equal(v, 0xffff);
    for (const hrk_bf16 v : bare.sum)
        assert_int_equal(v, 0xffff);
}

void the_bits_of_a_row_do_not_depend_on_its_batch(void **)
{
    const Input in = make_input(1024, 4, 12, 9);
    const Result all = run(in, true, true);
    const ptrdiff_t ld = hrk_ld(in.H);

    for (uint32_t r = 0; r < in.n; r += 5) {
        Input one = in;
        one.n = 1;
        one.x.assign(in.x.begin() + r * ld, in.x.begin() + (r + 1) * ld);
        one.place.assign(in.place.begin() + r * 4, in.place.begin() + (r + 1) * 4);
        one.weights.assign(in.weights.begin() + r * 4, in.weights.begin() + (r + 1) * 4);
        const Result got = run(one, true, true);
        assert_memory_equal(got.x.data(), &all.x[(size_t)(r * ld)], (size_t)ld * 2);
        assert_memory_equal(got.xn.data(), &all.xn[(size_t)(r * ld)], (size_t)ld * 2);
    }
}

void what_does_not_fit_is_refused(void **)
{
    hrk_combine_args args = {};
    const hrk_launch on = {nullptr, 4, false, false};

    args.max_rows = 4;
    args.H = 64;
    args.routing.K = 9;
    assert_int_equal(hrk_combine(&args, &on), cudaErrorInvalidValue);
    args.routing.K = 4;
    args.H = 20000;
    assert_int_equal(hrk_combine(&args, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(the_weighted_outputs_join_the_residual_in_order),
        cmocka_unit_test(norm_and_sum_may_be_left_out),
        cmocka_unit_test(the_bits_of_a_row_do_not_depend_on_its_batch),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
