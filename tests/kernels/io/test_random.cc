// hrk_random: what dummy weights promise. Padding is zero in both layouts, values have the mean and the deviation that
// was asked for in every part of the matrix, and are a function of the seed alone.
#include "kernels/support/expect.h"

using namespace hrk_test;

namespace
{

struct Shape {
    uint32_t rows, cols, n_groups, n_stack;
    hrk_layout layout;
};

std::vector<hrk_bf16> run(const Shape &s, uint64_t seed, float deviation, uint32_t n_sms = 4)
{
    DeviceArray<hrk_bf16> out(hrk_matrix_values(s.rows, s.cols, s.n_groups, s.layout) * s.n_stack);
    const hrk_launch on = {nullptr, n_sms, false, false};
    const hrk_random_args args = {out.data(), s.rows, s.cols, s.n_groups, s.n_stack, s.layout, seed, deviation};

    assert_int_equal(hrk_random(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return out.get();
}

// Where the words of hrk.h put a value.
size_t place(const Shape &s, uint32_t stack, uint32_t group, uint32_t row, uint32_t col)
{
    const size_t member = hrk_matrix_values(s.rows, s.cols, s.n_groups, s.layout) * stack;
    const uint32_t ld = hrk_ld(s.cols), r = row % 64;

    if (s.layout == HRK_ROW_MAJOR)
        return member + ((size_t)group * s.rows + row) * ld + col;
    const size_t block = ((size_t)(row / 64) * (ld / 64) + col / 64) * s.n_groups + group;
    return member + block * 4096 + r * 64 + (col % 64 / 8 ^ (r & 7)) * 8 + col % 8;
}

const Shape SHAPES[] = {{100, 130, 1, 1, HRK_ROW_MAJOR}, {100, 130, 1, 1, HRK_TILED}, {70, 64, 2, 5, HRK_ROW_MAJOR},
                        {70, 64, 2, 5, HRK_TILED},       {64, 200, 3, 1, HRK_TILED},  {3, 5, 3, 2, HRK_ROW_MAJOR}};

void padding_is_zero_and_nothing_else_is(void **)
{
    for (const Shape &s : SHAPES) {
        const std::vector<hrk_bf16> values = run(s, 5, 1.0f);
        std::vector<bool> is_inside(values.size(), false);
        size_t n_zero = 0, n = 0;

        for (uint32_t e = 0; e < s.n_stack; e++)
            for (uint32_t g = 0; g < s.n_groups; g++)
                for (uint32_t row = 0; row < s.rows; row++)
                    for (uint32_t col = 0; col < s.cols; col++)
                        is_inside[place(s, e, g, row, col)] = true;
        for (size_t i = 0; i < values.size(); i++) {
            if (!is_inside[i])
                assert_int_equal(values[i], 0);
            n += is_inside[i];
            n_zero += is_inside[i] && (values[i] & 0x7fff) == 0;
        }
        assert_int_equal(n, (size_t)s.rows * s.cols * s.n_groups * s.n_stack);
        assert_true(n_zero * 1000 <= n);
    }
}

// Of every group of every member of a stack: n values of deviation d have a mean within 5 d / sqrt(n) of 0, and a
// deviation within 5 / sqrt(2 n) of d (the fourth moment of the sum of four uniforms is smaller than the normal's).
void mean_and_deviation_are_those_asked_for(void **)
{
    for (const Shape &s : SHAPES) {
        const double n = (double)s.rows * s.cols;

        for (float deviation : {1.0f, 0.0221f}) {
            const std::vector<hrk_bf16> values = run(s, 9, deviation);

            for (uint32_t i = 0; n > 100 && i < s.n_stack * s.n_groups; i++) {
                double sum = 0, squares = 0;

                for (uint32_t row = 0; row < s.rows; row++) {
                    for (uint32_t col = 0; col < s.cols; col++) {
                        const double x = (double)bf16_value(values[place(s, i / s.n_groups, i % s.n_groups, row, col)]);

                        sum += x;
                        squares += x * x;
                        assert_true(fabs(x) <= 3.5 * (double)deviation);
                    }
                }
                assert_true(fabs(sum / n) <= 5 * (double)deviation / sqrt(n));
                assert_true(fabs(sqrt(squares / n) / (double)deviation - 1) <= 5 / sqrt(2 * n));
            }
        }
    }
}

void rows_and_members_of_a_stack_differ(void **)
{
    const Shape s = {64, 64, 2, 3, HRK_ROW_MAJOR};
    const std::vector<hrk_bf16> values = run(s, 1, 1.0f);

    for (size_t row = 1; row < values.size() / 64; row++) {
        size_t n_same = 0;

        for (size_t i = 0; i < 64; i++)
            n_same += values[row * 64 + i] == values[i];
        assert_true(n_same < 8);
    }
}

void the_same_seed_has_the_same_bits_by_any_grid(void **)
{
    for (const Shape &s : SHAPES) {
        const std::vector<hrk_bf16> one = run(s, 77, 0.5f, 1);

        expect_same_bits(run(s, 77, 0.5f, 9), one);
        assert_true(run(s, 78, 0.5f) != one);
    }
}

void what_is_no_matrix_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};

    for (int i = 0; i < 4; i++) {
        hrk_random_args args = {nullptr, 64, 64, 1, 1, HRK_TILED, 1, 1.0f};

        if (i == 0)
            args.rows = 0;
        else if (i == 1)
            args.cols = 0;
        else if (i == 2)
            args.n_groups = 4;
        else
            args.n_stack = 0;
        assert_int_equal(hrk_random(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(padding_is_zero_and_nothing_else_is),
        cmocka_unit_test(mean_and_deviation_are_those_asked_for),
        cmocka_unit_test(rows_and_members_of_a_stack_differ),
        cmocka_unit_test(the_same_seed_has_the_same_bits_by_any_grid),
        cmocka_unit_test(what_is_no_matrix_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
