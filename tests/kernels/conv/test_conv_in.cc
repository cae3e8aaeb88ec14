// hrk_conv_in: to the bit what a plain loop makes of the products of hrk::linear_wgmma, in every variant; and the same
// bits however a sequence is cut into steps and whoever is beside it.
#include "kernels/support/expect.h"
#include "kernels/support/quantised_matrix.h"
#include "kernels/support/step_block.h"
#include "kernels/support/tiled_matrix.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

enum { N_STATES = 12, SPARE = 16 };

struct Layer {
    uint32_t H, L;
    Matrix matrix;
    DeviceArray<hrk_bf16> weights;
    std::vector<float> taps;
    std::vector<hrk_bf16> states;
    const QuantisedMatrix *quantised = nullptr; // the same values, and what runs

    Layer(uint32_t H_, uint32_t cols, uint32_t L_) : Layer(Matrix(H_, cols, 3, 1, H_ + cols + L_), L_)
    {
    }
    Layer(const Matrix &matrix_, uint32_t L_) : H(matrix_.rows), L(L_), matrix(matrix_), weights(matrix.tiled())
    {
        Random random(H * 16 + L);

        for (uint32_t i = 0; i < H * L; i++)
            taps.push_back(random.normal());
        for (size_t i = 0; i < N_STATES * stride(); i++)
            states.push_back(bf16_bits(random.normal()));
    }
    size_t stride() const
    {
        return (size_t)(L - 1) * H + SPARE; // other layers lie between
    }
    bool can(int variant) const
    {
        const uint32_t k_blocks = hrk_ld(matrix.cols) / 64;

        return variant < 4 || k_blocks % (variant == 6 ? 2 : 4) == 0;
    }
};

struct Result {
    std::vector<hrk_bf16> y, states;
};

Result run(const Layer &layer, const std::vector<hrk_bf16> &states, const std::vector<hrk_bf16> &rows,
           const std::vector<hrk_span> &spans, int variant, uint32_t n_sms = 4)
{
    const RowTables tables(spans);
    const uint32_t n = (uint32_t)tables.span.size(), ld = hrk_ld(layer.H);
    StepBlock block;
    block.set_spans(spans);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<uint32_t> row_span(tables.span);
    DeviceArray<float> taps(layer.taps);
    DeviceArray<hrk_bf16> in(rows), pool(states), y((size_t)(n + 1) * ld);
    hrk_conv_in_args args = {};
    const hrk_launch on = {nullptr, n_sms, true, false};

    args.tables.step = as_step(upload);
    args.tables.row_span = row_span.data();
    args.max_rows = n;
    args.w = layer.quantised ? layer.quantised->describe() : layer.matrix.describe(layer.weights.data(), HRK_TILED);
    args.in = in.data();
    args.taps = taps.data();
    args.L = layer.L;
    args.state = {pool.data(), layer.stride()};
    args.y = y.data();
    run_to_end(hrk::conv_in_as(&args, &on, variant));
    const std::vector<hrk_bf16> all = y.get();
    assert_padding_and_strangers(all, n, layer.H);
    return {part(all, 0, (size_t)n * ld), pool.get()};
}

// bf16(W_g in) of one group, by the kernel whose sums are the same chains.
std::vector<hrk_bf16> product_of_group(const Layer &layer, uint32_t group, const std::vector<hrk_bf16> &rows)
{
    const uint32_t n = (uint32_t)(rows.size() / hrk_ld(layer.matrix.cols));
    Matrix one(layer.H, layer.matrix.cols, 1, 1, 0);
    const size_t values = one.values.size();
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_linear_args args = {};

    one.values = part(layer.matrix.values, group * values, values);
    DeviceArray<hrk_bf16> weights(one.tiled()), in(rows), out((size_t)n * hrk_ld(layer.H));
    DeviceArray<unsigned char> step(step_block(n, 0));
    args.tables.step = as_step(step);
    args.max_rows = n;
    args.w = one.describe(weights.data(), HRK_TILED);
    args.in = in.data();
    args.out = out.data();
    run_to_end(hrk::linear_wgmma_as(&args, &on, 0));
    return out.get();
}

Result reference(const Layer &layer, const std::vector<hrk_bf16> &states, const std::vector<hrk_bf16> &rows,
                 const std::vector<hrk_span> &spans)
{
    const std::vector<hrk_bf16> b = product_of_group(layer, 0, rows), c = product_of_group(layer, 1, rows),
                                x = product_of_group(layer, 2, rows);
    const uint32_t H = layer.H, L = layer.L, ld = hrk_ld(H);
    Result r = {std::vector<hrk_bf16>(b.size(), 0), states};

    for (const hrk_span &span : spans) {
        for (uint32_t h = 0; h < H; h++) {
            std::vector<float> u(L - 1, 0.0f);

            for (uint32_t j = 0; span.state_in >= 0 && j < L - 1; j++)
                u[j] = bf16_value(states[(size_t)span.state_in * layer.stride() + (size_t)j * H + h]);
            for (uint32_t row = span.first_row; row < span.first_row + span.n_rows; row++) {
                const size_t at = (size_t)row * ld + h;
                const float *taps = &layer.taps[(size_t)h * L];

                u.push_back(bf16_rounded(bf16_value(b[at]) * bf16_value(x[at])));
                float sum = taps[0] * u[u.size() - L];
                for (uint32_t j = 1; j < L; j++)
                    sum = fmaf(taps[j], u[u.size() - L + j], sum);
                r.y[at] = bf16_bits(bf16_value(c[at]) * bf16_rounded(sum));
            }
            for (uint32_t j = 0; span.state_out >= 0 && j < L - 1; j++)
                r.states[(size_t)span.state_out * layer.stride() + (size_t)j * H + h] =
                    bf16_bits(u[u.size() - (L - 1) + j]);
        }
    }
    return r;
}

void expect_same(const Result &a, const Result &b)
{
    expect_same_bits(a.y, b.y);
    expect_same_bits(a.states, b.states);
}

// Consecutive spans of these lengths; every third starts from zeros, states are read from 0, 2, 4 .. and written to 1,
// 3, 5 .. while they last.
std::vector<hrk_span> spans_of(const std::vector<uint32_t> &lengths)
{
    std::vector<hrk_span> spans;
    uint32_t first = 0;

    for (uint32_t i = 0; i < lengths.size(); i++) {
        hrk_span span = {};

        span.first_row = first;
        span.n_rows = lengths[i];
        span.slot = i;
        span.state_in = i % 3 == 2 ? -1 : (int32_t)(i % 6 * 2);
        span.state_out = i < 6 ? (int32_t)(i * 2 + 1) : -1;
        spans.push_back(span);
        first += lengths[i];
    }
    return spans;
}

void every_variant_agrees_with_the_plain_loop(void **)
{
    const struct {
        uint32_t H, cols, L;
        std::vector<uint32_t> lengths;
    } cases[] = {{64, 256, 3, {1}},
                 {72, 32, 2, {1, 1, 2, 1}},
                 {48, 256, 4, {3, 1, 1, 7, 1, 1, 2}},
                 {96, 128, 3, {1, 1, 1, 1, 20, 1, 15, 2, 1}},
                 {200, 192, 3, {70, 1, 1, 60}},
                 {64, 256, 4, {1, 190, 2, 1, 17, 1, 1, 210}},
                 {64, 64, 2, std::vector<uint32_t>(70, 1)}};

    for (const auto &c : cases) {
        const Layer layer(c.H, c.cols, c.L);
        const std::vector<hrk_span> spans = spans_of(c.lengths);
        Random random(c.H);
        const std::vector<hrk_bf16> rows =
            random_rows(random, spans.back().first_row + spans.back().n_rows, c.cols, 1.0f);
        const Result want = reference(layer, layer.states, rows, spans);

        for (int v = hrk::PICK_VARIANT; v < hrk::CONV_IN_VARIANTS; v++) {
            if (v < 0 || layer.can(v))
                expect_same(run(layer, layer.states, rows, spans, v), want);
        }
    }
}

void a_single_block_works_through_all_tiles(void **)
{
    const Layer layer(136, 256, 3);
    const std::vector<hrk_span> spans = spans_of({40, 1, 1, 30, 2});
    Random random(3);
    const std::vector<hrk_bf16> rows = random_rows(random, 74, 256, 1.0f);
    const Result want = reference(layer, layer.states, rows, spans);

    for (int v = 0; v < hrk::CONV_IN_VARIANTS; v++)
        expect_same(run(layer, layer.states, rows, spans, v, 1), want);
}

void quantised_weights_give_the_bits_of_their_bf16_values(void **)
{
    for (const QuantisedFormat &f : QUANTISED_FORMATS) {
        const bool is_long = f.layout == HRK_TILED_Q4_K; // wide tiles: once
        const QuantisedMatrix weights(f, 96, 256, 3, 1, 8);
        const Layer plain(weights.plain, 3);
        Layer layer(weights.plain, 3);
        const std::vector<hrk_span> spans =
            spans_of(is_long ? std::vector<uint32_t>{3, 1, 150, 1, 60} : std::vector<uint32_t>{3, 1, 1, 12});
        Random random(9);
        const std::vector<hrk_bf16> rows =
            random_rows(random, spans.back().first_row + spans.back().n_rows, 256, 0.01f);
        const Result want = run(plain, plain.states, rows, spans, 0);

        layer.quantised = &weights;
        for (int v : is_long ? std::vector<int>{-1, 0, 1, 2, 3, 4, 5, 6} : std::vector<int>{0, 4})
            expect_same(run(layer, layer.states, rows, spans, v), want);
    }
}

// The rows of one sequence, in pieces of the given lengths, each a step of its own; states go round 0 and 1.
Result in_pieces(const Layer &layer, const std::vector<hrk_bf16> &rows, const std::vector<uint32_t> &lengths)
{
    const size_t ld = hrk_ld(layer.matrix.cols);
    Result all = {{}, layer.states};
    uint32_t first = 0;
    int32_t in = -1, out = 0;

    for (uint32_t n : lengths) {
        const Result r =
            run(layer, all.states, part(rows, first * ld, n * ld), {{0, n, first, 0, in, out, 0}}, hrk::PICK_VARIANT);

        all.y.insert(all.y.end(), r.y.begin(), r.y.end());
        all.states = r.states;
        first += n;
        in = out;
        out = 1 - out;
    }
    all.states = part(all.states, (size_t)in * layer.stride(), layer.stride() - SPARE);
    return all;
}

void a_sequence_has_the_same_bits_however_it_is_cut(void **)
{
    for (uint32_t L : {2u, 3u, 4u}) {
        const Layer layer(64, 128, L);
        Random random(L + 100);
        const std::vector<hrk_bf16> rows = random_rows(random, 90, 128, 1.0f);
        const Result whole = in_pieces(layer, rows, {90});

        expect_same(in_pieces(layer, rows, {1, 2, 3, 84}), whole);
        expect_same(in_pieces(layer, rows, {61, 29}), whole);
        expect_same(in_pieces(layer, rows, {64, 1, 1, 1, 1, 22}), whole);
    }
}

void a_step_without_rows_writes_nothing(void **)
{
    const Layer layer(64, 256, 3);
    DeviceArray<unsigned char> step(step_block(0, 0));
    DeviceArray<hrk_bf16> in(64), y(64 * 16), pool(64);
    DeviceArray<float> taps(layer.taps);
    DeviceArray<uint32_t> row_span(16);
    const hrk_launch on = {nullptr, 4, true, false};
    hrk_conv_in_args args = {};

    args.tables.step = as_step(step);
    args.tables.row_span = row_span.data();
    args.w = layer.matrix.describe(layer.weights.data(), HRK_TILED);
    args.in = in.data();
    args.taps = taps.data();
    args.L = 3;
    args.state = {pool.data(), layer.stride()};
    args.y = y.data();
    for (int v = 0; v < hrk::CONV_IN_VARIANTS; v++) {
        for (uint32_t max_rows : {0u, 1u, 16u}) {
            args.max_rows = max_rows;
            run_to_end(hrk::conv_in_as(&args, &on, v));
        }
    }
    assert_padding_and_strangers(y.get(), 0, 64);
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_conv_in_args good = {};

    good.max_rows = 4;
    good.w = hrk_matrix{nullptr, 64, 64, 3, 1, HRK_TILED};
    good.L = 3;
    good.state.state_stride = 128;
    for (int i = 0; i < 6; i++) {
        hrk_conv_in_args args = good;

        if (i == 0)
            args.L = 1;
        else if (i == 1)
            args.L = 5;
        else if (i == 2)
            args.w.n_groups = 1;
        else if (i == 3)
            args.w.layout = HRK_ROW_MAJOR;
        else if (i == 4)
            args.w.rows = 60;
        else
            args.state.state_stride = 129;
        assert_int_equal(hrk_conv_in(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_agrees_with_the_plain_loop),
        cmocka_unit_test(a_single_block_works_through_all_tiles),
        cmocka_unit_test(quantised_weights_give_the_bits_of_their_bf16_values),
        cmocka_unit_test(a_sequence_has_the_same_bits_however_it_is_cut),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
