// Products with quantised weights: every value is the one that the format's definition rounds to bf16, and every
// product, in every variant, has the bits that the kernels give for bf16 tiles of those values.
#include "kernels/support/expert_lists.h"
#include "kernels/support/quantised_matrix.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

hrk_launch launch_on(uint32_t n_sms)
{
    return {nullptr, n_sms, true, false};
}

bool has_256(const QuantisedFormat &f)
{
    return hr_dtypes[f.dtype].block_values == 256;
}

// Rows that are ones in one column each, so that a product is a weight, unrounded.
std::vector<hrk_bf16> unit_rows(uint32_t cols)
{
    std::vector<hrk_bf16> x((size_t)cols * hrk_ld(cols), 0);

    for (uint32_t c = 0; c < cols; c++)
        x[(size_t)c * hrk_ld(cols) + c] = bf16_bits(1.0f);
    return x;
}

template <class T>
std::vector<T> run_linear(const hrk_matrix &w, const std::vector<hrk_bf16> &x, hrk_epilogue epilogue, int variant,
                          uint32_t n_sms = 4)
{
    const uint32_t n = (uint32_t)(x.size() / hrk_ld(w.cols));
    const hrk_launch on = launch_on(n_sms);
    DeviceArray<unsigned char> step(step_block(n, 0));
    DeviceArray<hrk_bf16> in(x);
    DeviceArray<T> out((size_t)(n + 3) * hrk_ld(w.rows));
    hrk_linear_args a = {};

    a.tables.step = as_step(step);
    a.max_rows = n;
    a.w = w;
    a.in = in.data();
    a.epilogue = epilogue;
    a.out = out.data();
    run_to_end(hrk::linear_wgmma_as(&a, &on, variant));
    return out.get();
}

void every_weight_is_the_definition_rounded_to_bf16(void **)
{
    for (const QuantisedFormat &f : QUANTISED_FORMATS) {
        const uint32_t rows = 80, cols = has_256(f) ? 256 : 96;
        const QuantisedMatrix m(f, rows, cols, 1, 1, 40 + f.dtype);
        const std::vector<float> got = run_linear<float>(m.describe(), unit_rows(cols), HRK_STORE_F32, 2);

        for (uint32_t c = 0; c < cols; c++) {
            for (uint32_t r = 0; r < hrk_ld(rows); r++) {
                const float want = r < rows ? m.plain.at(0, 0, r, c) : 0.0f;

                if (got[(size_t)c * hrk_ld(rows) + r] != want)
                    fail_msg("%s row %u column %u: %g, not %g", f.name, r, c, (double)got[(size_t)c * hrk_ld(rows) + r],
                             (double)want);
            }
        }
    }
}

void the_packed_bytes_do_not_depend_on_the_pieces(void **)
{
    for (const QuantisedFormat &f : QUANTISED_FORMATS) {
        for (bool pair_rotary : {false, true}) {
            const QuantisedMatrix m(f, 200, 256, 2, 2, 3, pair_rotary);
            DeviceArray<uint8_t> other(m.packed.size());
            const std::vector<uint8_t> once = m.packed.get();

            m.pack(other.data(), 64, pair_rotary);
            const std::vector<uint8_t> pieces = other.get();
            assert_memory_equal(once.data(), pieces.data(), once.size());
        }
    }
}

void packed_weights_have_the_size_of_the_file(void **)
{
    const double wanted[] = {4.5, 8.5, 4.625, 5.625,
                             6.5625}; // bits a value; a K format's scales are a byte, not six bits
    int i = 0;

    for (const QuantisedFormat &f : QUANTISED_FORMATS)
        assert_int_equal(hrk_matrix_bytes(128, 512, 1, f.layout), (size_t)(wanted[i++] * 128 * 512 / 8));
}

bool can(int variant, uint32_t cols, int first_thin, int narrowest)
{
    const uint32_t k_blocks = hrk_ld(cols) / 64;

    return variant < first_thin || k_blocks % (variant == narrowest ? 4 : 2) == 0;
}

void check_linear(const QuantisedFormat &f, uint32_t rows, uint32_t cols, uint32_t n)
{
    const QuantisedMatrix m(f, rows, cols, 1, 1, rows);
    DeviceArray<hrk_bf16> tiles(m.plain.tiled());
    const hrk_matrix plain = m.plain.describe(tiles.data(), HRK_TILED);
    const std::vector<hrk_bf16> x = rows_of(ids_up_to(n), cols, 7);
    const std::vector<hrk_bf16> want = run_linear<hrk_bf16>(plain, x, HRK_STORE, 2);
    std::vector<float> slow;

    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t i = 0; i < rows; i++)
            slow.push_back(product(m.plain, 0, 0, i, &x[r * hrk_ld(cols)]));
    }
    assert_true(relative_error(values_of(want, n, rows), slow) < 4e-3);
    expect_equal(run_linear<float>(m.describe(), x, HRK_STORE_F32, hrk::PICK_VARIANT, 1),
                 run_linear<float>(plain, x, HRK_STORE_F32, 2), f.name, hrk::PICK_VARIANT);
    for (int v = hrk::PICK_VARIANT; v < hrk::LINEAR_VARIANTS; v++) {
        if (can(v, cols, 5, 5))
            expect_equal(run_linear<hrk_bf16>(m.describe(), x, HRK_STORE, v), want, f.name, v);
    }
}

void linear_gives_the_bits_of_bf16_tiles(void **)
{
    for (const QuantisedFormat &f : QUANTISED_FORMATS)
        check_linear(f, 136, 256, 9);
    check_linear(QUANTISED_FORMATS[0], 48, 32, 1);
    check_linear(QUANTISED_FORMATS[1], 200, 192, 40);
    check_linear(QUANTISED_FORMATS[2], 72, 768, 20);
    check_linear(QUANTISED_FORMATS[4], 130, 256, 140);
}

std::vector<hrk_bf16> run_experts(const hrk_matrix &w, const std::vector<hrk_bf16> &x, const ExpertLists *lists,
                                  bool is_down, int variant)
{
    const uint32_t ld = hrk_ld(w.cols), rows = (uint32_t)(x.size() / ld), K = lists ? lists->K : 1;
    const uint32_t n = is_down ? rows / K : rows;
    const hrk_launch on = launch_on(4);
    DeviceArray<unsigned char> step(step_block(n, 0));
    DeviceArray<hrk_bf16> in(x), out((size_t)(n * K + 3) * hrk_ld(w.rows));
    DeviceArray<uint32_t> first(lists ? lists->first : std::vector<uint32_t>()),
        sorted(lists ? lists->sorted : std::vector<uint32_t>());
    hrk_routing routing = {};

    routing.E = lists ? lists->E : 0;
    routing.K = K;
    routing.first = first.data();
    routing.sorted = sorted.data();
    if (is_down) {
        hrk_down_args a = {};

        a.tables.step = as_step(step);
        a.max_rows = n;
        a.w = w;
        a.h = in.data();
        a.routing = &routing;
        a.y = out.data();
        run_to_end(hrk::down_wgmma_as(&a, &on, variant));
    } else {
        hrk_gate_up_args a = {};

        a.tables.step = as_step(step);
        a.max_rows = n;
        a.w = w;
        a.in = in.data();
        a.h = out.data();
        a.routing = lists ? &routing : nullptr;
        run_to_end(hrk::gate_up_wgmma_as(&a, &on, variant));
    }
    return out.get();
}

void check_experts(const QuantisedFormat &f, uint32_t rows, uint32_t cols, uint32_t n, const ExpertLists *lists,
                   bool is_down, const std::vector<int> &variants)
{
    const QuantisedMatrix m(f, rows, cols, is_down ? 1 : 2, lists ? lists->E : 1, rows + n);
    DeviceArray<hrk_bf16> tiles(m.plain.tiled());
    const hrk_matrix plain = m.plain.describe(tiles.data(), HRK_TILED);
    const std::vector<hrk_bf16> x = rows_of(ids_up_to(is_down ? n * lists->K : n), cols, 5);
    const std::vector<hrk_bf16> want = run_experts(plain, x, lists, is_down, 1);

    for (int v : variants) {
        if (can(v, cols, 5, is_down ? 5 : -2))
            expect_equal(run_experts(m.describe(), x, lists, is_down, v), want, f.name, v);
    }
}

void gate_up_and_down_give_the_bits_of_bf16_tiles(void **)
{
    const ExpertLists few(6, 2, choose_experts(ids_up_to(9), 6, 2, -1));
    const ExpertLists many(4, 2, choose_experts(ids_up_to(130), 4, 2, 1));

    for (const QuantisedFormat &f : QUANTISED_FORMATS) {
        check_experts(f, 72, 256, 9, &few, false, {1, 5});
        check_experts(f, 72, 256, 9, &few, true, {0, 5});
    }
    check_experts(QUANTISED_FORMATS[2], 136, 256, 20, nullptr, false, {-1, 0, 1, 2, 3, 4, 5, 6});
    check_experts(QUANTISED_FORMATS[3], 72, 256, 130, &many, false, {2, 3, 4});
    check_experts(QUANTISED_FORMATS[4], 72, 256, 130, &many, true, {-1, 1, 2, 3, 4, 6, 7});
    check_experts(QUANTISED_FORMATS[0], 96, 96, 9, &few, false, {-1, 0});
}

void a_step_without_rows_writes_nothing(void **)
{
    const QuantisedMatrix m(QUANTISED_FORMATS[2], 200, 256, 1, 1, 5);
    const hrk_launch on = launch_on(4);
    DeviceArray<unsigned char> step(step_block(0, 0));
    DeviceArray<hrk_bf16> in(16 * 256), out(16 * 256);
    hrk_linear_args a = {};

    a.tables.step = as_step(step);
    a.w = m.describe();
    a.in = in.data();
    a.out = out.data();
    for (int v = 0; v < hrk::LINEAR_VARIANTS; v++) {
        for (uint32_t max_rows : {0u, 1u, 400u}) {
            a.max_rows = max_rows;
            run_to_end(hrk::linear_wgmma_as(&a, &on, v));
        }
    }
    assert_padding_and_strangers(out.get(), 0, 200);
}

void what_no_file_has_is_refused(void **)
{
    const hrk_launch on = launch_on(4);
    DeviceArray<uint8_t> bytes(65536);
    DeviceArray<unsigned char> step(step_block(1, 0));
    DeviceArray<hrk_bf16> rows(1024);
    hrk_pack_quantised_args good = {}, a;
    hrk_linear_args linear = {};

    good.from = bytes.data();
    good.to = bytes.data();
    good.rows = good.n_rows = 64;
    good.cols = 256;
    good.n_groups = 1;
    good.layout = HRK_TILED_Q6_K;
    a = good;
    a.cols = 96; // no whole block
    assert_int_equal(hrk_pack_quantised(&a, &on), cudaErrorInvalidValue);
    a = good;
    a.layout = HRK_TILED;
    assert_int_equal(hrk_pack_quantised(&a, &on), cudaErrorInvalidValue);
    a = good;
    a.n_rows = 32; // no whole strip, and not the end
    assert_int_equal(hrk_pack_quantised(&a, &on), cudaErrorInvalidValue);
    a = good;
    a.group = 1;
    assert_int_equal(hrk_pack_quantised(&a, &on), cudaErrorInvalidValue);
    linear.tables.step = as_step(step);
    linear.max_rows = 1;
    linear.w = hrk_matrix{rows.data(), 64, 96, 1, 1, HRK_TILED_Q4_K};
    linear.in = rows.data();
    linear.out = rows.data();
    assert_int_equal(hrk_linear(&linear, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_is_the_definition_rounded_to_bf16),
        cmocka_unit_test(the_packed_bytes_do_not_depend_on_the_pieces),
        cmocka_unit_test(packed_weights_have_the_size_of_the_file),
        cmocka_unit_test(linear_gives_the_bits_of_bf16_tiles),
        cmocka_unit_test(gate_up_and_down_give_the_bits_of_bf16_tiles),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
        cmocka_unit_test(what_no_file_has_is_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
