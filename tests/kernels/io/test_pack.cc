// hrk_pack: every layout against the words of hrk.h, every source type, rows in any pieces.
#include "kernels/support/expect.h"

#include <cuda_fp16.h>

using namespace hrk_test;

namespace
{

struct Matrix {
    uint32_t rows, cols, n_groups, n_stack;
    hrk_layout layout;
    bool pair_rotary;
};

size_t values(const Matrix &m)
{
    return hrk_matrix_values(m.rows, m.cols, m.n_groups, m.layout) * m.n_stack;
}

// Where a value lies, by hrk.h's words.
size_t place(const Matrix &m, uint32_t stack, uint32_t group, uint32_t row, uint32_t col)
{
    const size_t base = hrk_matrix_values(m.rows, m.cols, m.n_groups, m.layout) * stack;
    const size_t k_blocks = hrk_ld(m.cols) / 64;

    if (m.layout == HRK_ROW_MAJOR)
        return base + ((size_t)group * m.rows + row) * hrk_ld(m.cols) + col;
    uint32_t r = row % 64;
    if (m.pair_rotary) {
        for (uint32_t b = 0; b < 4; b++) {
            for (uint32_t i = 0; i < 8; i++) {
                if (row % 64 == 8 * b + i)
                    r = 16 * b + i;
                if (row % 64 == 8 * b + i + 32)
                    r = 16 * b + 8 + i;
            }
        }
    }
    const size_t block = (row / 64 * k_blocks + col / 64) * m.n_groups + group;
    const size_t byte = block * 8192 + r * 128 + ((col % 64 / 8) ^ (r & 7)) * 16 + col % 8 * 2;
    return base + byte / 2;
}

hrk_pack_args pack_args(const Matrix &m, const void *from, hrk_source source, hrk_bf16 *to)
{
    hrk_pack_args args = {};

    args.from = from;
    args.source = source;
    args.to = to;
    args.rows = m.rows;
    args.cols = m.cols;
    args.n_groups = m.n_groups;
    args.n_rows = m.rows;
    args.layout = m.layout;
    args.pair_rotary = m.pair_rotary;
    return args;
}

// Packs random bf16 rows, each member in pieces of `piece` rows.
void check(const Matrix &m, uint32_t piece)
{
    Random random(m.rows + m.cols);
    DeviceArray<hrk_bf16> packed(values(m));
    std::vector<hrk_bf16> want(values(m), 0);
    const hrk_launch on = {nullptr, 2, false, false};

    packed.fill(0);
    for (uint32_t stack = 0; stack < m.n_stack; stack++) {
        for (uint32_t group = 0; group < m.n_groups; group++) {
            for (uint32_t first = 0; first < m.rows; first += piece) {
                const uint32_t n = first + piece < m.rows ? piece : m.rows - first;
                std::vector<hrk_bf16> rows;

                for (size_t i = 0; i < (size_t)n * m.cols; i++) {
                    rows.push_back(bf16_bits(random.normal()));
                    want[place(m, stack, group, first + (uint32_t)(i / m.cols), (uint32_t)(i % m.cols))] = rows.back();
                }
                DeviceArray<hrk_bf16> from(rows);
                hrk_pack_args args = pack_args(m, from.data(), HRK_SOURCE_BF16, packed.data());
                args.group = group;
                args.stack = stack;
                args.first_row = first;
                args.n_rows = n;
                assert_int_equal(hrk_pack(&args, &on), 0);
                assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
            }
        }
    }
    expect_same_bits(packed.get(), want);
}

void row_major_rows_are_padded(void **)
{
    for (uint32_t cols : {1u, 61u, 64u, 72u, 130u}) {
        check({5, cols, 1, 1, HRK_ROW_MAJOR, false}, 5);
        check({5, cols, 3, 2, HRK_ROW_MAJOR, false}, 2);
    }
}

void tiles_hold_strips_of_all_groups(void **)
{
    for (uint32_t groups = 1; groups <= 3; groups++) {
        check({64, 64, groups, 1, HRK_TILED, false}, 64);
        check({150, 200, groups, 2, HRK_TILED, false}, 150);
        check({130, 65, groups, 1, HRK_TILED, false}, 7);
    }
}

void rotary_pairs_lie_eight_rows_apart(void **)
{
    check({192, 128, 1, 1, HRK_TILED, true}, 192);
    check({192, 128, 1, 1, HRK_TILED, true}, 30);
}

template <class T> std::vector<hrk_bf16> packed_from(const std::vector<T> &rows, uint32_t cols, hrk_source source)
{
    const Matrix m = {(uint32_t)(rows.size() / cols), cols, 1, 1, HRK_ROW_MAJOR, false};
    DeviceArray<T> from(rows);
    DeviceArray<hrk_bf16> to(values(m));
    const hrk_launch on = {nullptr, 2, false, false};
    const hrk_pack_args args = pack_args(m, from.data(), source, to.data());

    assert_int_equal(hrk_pack(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return to.get();
}

void floats_are_rounded_to_the_nearest_even(void **)
{
    Random random(9);
    std::vector<float> values32 = {0.0f, -0.0f, 1.0f, 1.00390625f, 1.01171875f, INFINITY, -INFINITY, 1e-40f, 3.4e38f};

    while (values32.size() < 3 * 64)
        values32.push_back(random.normal());
    const std::vector<hrk_bf16> got = packed_from(values32, 64, HRK_SOURCE_F32);
    for (size_t i = 0; i < values32.size(); i++)
        assert_int_equal(got[i], bf16_bits(values32[i]));
    assert_int_equal(got[3], bf16_bits(1.0f));      // a tie, down to even
    assert_int_equal(got[4], bf16_bits(1.015625f)); // a tie, up to even
}

// Every finite half, and the infinities.
void halves_are_converted(void **)
{
    std::vector<uint16_t> halves;

    for (uint32_t h = 0; h < 0x10000; h++) {
        if ((h & 0x7fff) <= 0x7c00)
            halves.push_back((uint16_t)h);
    }
    while (halves.size() % 64 != 0)
        halves.push_back(0);
    const std::vector<hrk_bf16> got = packed_from(halves, 64, HRK_SOURCE_F16);
    for (size_t i = 0; i < halves.size(); i++) {
        const uint32_t e = halves[i] >> 10 & 31, f = halves[i] & 1023;
        const double size = e == 31 ? HUGE_VAL : e == 0 ? ldexp(f, -24) : ldexp(f + 1024.0, (int)e - 25);

        assert_int_equal(got[i], bf16_bits((float)(halves[i] >> 15 ? -size : size)));
    }
}

void what_it_cannot_do_is_refused(void **)
{
    const Matrix m = {64, 64, 2, 1, HRK_TILED, false};
    const hrk_launch on = {nullptr, 2, false, false};

    for (int i = 0; i < 5; i++) {
        hrk_pack_args args = pack_args(m, nullptr, HRK_SOURCE_BF16, nullptr);

        if (i == 0)
            args.group = 2;
        else if (i == 1)
            args.first_row = 1;
        else if (i == 2)
            args.n_groups = 4;
        else if (i == 3)
            args.cols = 0;
        else
            args.layout = HRK_ROW_MAJOR, args.pair_rotary = true;
        assert_int_equal(hrk_pack(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(row_major_rows_are_padded),
        cmocka_unit_test(tiles_hold_strips_of_all_groups),
        cmocka_unit_test(rotary_pairs_lie_eight_rows_apart),
        cmocka_unit_test(floats_are_rounded_to_the_nearest_even),
        cmocka_unit_test(halves_are_converted),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
