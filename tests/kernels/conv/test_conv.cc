// hrk_conv: against a plain loop with the stated roundings, to the bit; and the same bits however a sequence is cut.
#include "kernels/support/expect.h"
#include "kernels/support/step_block.h"

using namespace hrk_test;

namespace
{

struct Layer {
    uint32_t H, L;
    std::vector<float> taps, bias;
    std::vector<hrk_bf16> states; // of N_STATES
};
enum { N_STATES = 12, SPARE = 16 };

size_t stride(const Layer &layer)
{
    return (size_t)(layer.L - 1) * layer.H + SPARE; // other layers lie between
}

Layer make_layer(uint32_t H, uint32_t L, bool has_bias)
{
    Random random(H * 16 + L);
    Layer layer = {H, L, {}, {}, {}};

    for (uint32_t i = 0; i < H * L; i++)
        layer.taps.push_back(random.normal());
    for (uint32_t i = 0; has_bias && i < H; i++)
        layer.bias.push_back(random.normal());
    for (size_t i = 0; i < N_STATES * stride(layer); i++)
        layer.states.push_back(bf16_bits(random.normal()));
    return layer;
}

struct Result {
    std::vector<hrk_bf16> y, bx, states;
};

// spare: how far the launch's bound exceeds the rows; it also decides how many rows a thread has.
Result run(const Layer &layer, const std::vector<hrk_bf16> &states, const std::vector<hrk_bf16> &bcx,
           const std::vector<hrk_span> &spans, uint32_t spare = 3)
{
    const uint32_t n = spans.back().first_row + spans.back().n_rows, max_rows = n + spare, ld = hrk_ld(layer.H);
    const RowTables rows(spans);
    StepBlock block;
    block.set_spans(spans);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<uint32_t> row_span(rows.span);
    DeviceArray<float> taps(layer.taps), bias(layer.bias);
    DeviceArray<hrk_bf16> in(bcx), pool(states), y((size_t)(n + 1) * ld), bx((size_t)(n + 1) * ld);
    hrk_conv_args args = {};
    const hrk_launch on = {nullptr, 4, true, false};
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.tables.row_span = row_span.data();
    args.max_rows = max_rows;
    args.bcx = in.data();
    args.taps = taps.data();
    args.conv_bias = layer.bias.empty() ? nullptr : bias.data();
    args.H = layer.H;
    args.L = layer.L;
    args.state = {pool.data(), stride(layer)};
    args.bx = bx.data();
    args.y = y.data();
    assert_int_equal(hrk_conv(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const Result r = {y.get(), bx.get(), pool.get()};
    for (size_t i = (size_t)n * ld; i < r.y.size(); i++)
        assert_true(r.y[i] == UNTOUCHED && r.bx[i] == UNTOUCHED);
    args.bx = nullptr;
    pool.put(states);
    assert_int_equal(hrk_conv(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    expect_same_bits(y.get(), r.y);
    return {part(r.y, 0, (size_t)n * ld), part(r.bx, 0, (size_t)n * ld), r.states};
}

// The slow loop: one channel of one span after the other.
Result reference(const Layer &layer, const std::vector<hrk_bf16> &states, const std::vector<hrk_bf16> &bcx,
                 const std::vector<hrk_span> &spans)
{
    const uint32_t H = layer.H, L = layer.L, ld = hrk_ld(H), n = spans.back().first_row + spans.back().n_rows;
    Result r = {std::vector<hrk_bf16>((size_t)n * ld, 0), std::vector<hrk_bf16>((size_t)n * ld, 0), states};

    for (const hrk_span &span : spans) {
        for (uint32_t h = 0; h < H; h++) {
            std::vector<float> u(L - 1, 0.0f);

            for (uint32_t j = 0; span.state_in >= 0 && j < L - 1; j++)
                u[j] = bf16_value(states[(size_t)span.state_in * stride(layer) + (size_t)j * H + h]);
            for (uint32_t row = span.first_row; row < span.first_row + span.n_rows; row++) {
                const hrk_bf16 *in = bcx.data() + (size_t)row * hrk_ld(3 * H);
                const float *taps = layer.taps.data() + (size_t)h * L;
                float sum;

                u.push_back(bf16_rounded(bf16_value(in[h]) * bf16_value(in[2 * H + h])));
                sum = taps[0] * u[u.size() - L];
                for (uint32_t j = 1; j < L; j++)
                    sum = fmaf(taps[j], u[u.size() - L + j], sum);
                sum += layer.bias.empty() ? 0.0f : layer.bias[h];
                r.bx[(size_t)row * ld + h] = bf16_bits(u.back());
                r.y[(size_t)row * ld + h] = bf16_bits(bf16_value(in[H + h]) * bf16_rounded(sum));
            }
            for (uint32_t j = 0; span.state_out >= 0 && j < L - 1; j++)
                r.states[(size_t)span.state_out * stride(layer) + (size_t)j * H + h] =
                    bf16_bits(u[u.size() - (L - 1) + j]);
        }
    }
    return r;
}

void expect_same(const Result &a, const Result &b)
{
    expect_same_bits(a.y, b.y);
    expect_same_bits(a.bx, b.bx);
    expect_same_bits(a.states, b.states);
}

// Spans shorter and longer than L and than a thread's rows, with and without a state before or after.
const std::vector<hrk_span> SPANS = {
    {0, 1, 5, 0, 0, 1, 0},  {1, 1, 9, 1, 2, 3, 0},   {2, 11, 0, 2, -1, 5, 0}, {13, 2, 7, 3, 4, -1, 0},
    {15, 9, 3, 4, 6, 7, 0}, {24, 1, 0, 5, -1, 9, 0}, {25, 5, 2, 6, 8, 11, 0},
};

void every_length_agrees_with_the_plain_loop(void **)
{
    for (uint32_t L = 2; L <= 8; L++) {
        for (bool has_bias : {false, true}) {
            const Layer layer = make_layer(72, L, has_bias);
            Random random(L);
            const std::vector<hrk_bf16> bcx = random_rows(random, 30, 3 * 72, 1.0f);

            expect_same(run(layer, layer.states, bcx, SPANS), reference(layer, layer.states, bcx, SPANS));
        }
    }
}

void rows_a_thread_has_do_not_change_a_bit(void **)
{
    const Layer layer = make_layer(64, 3, false);
    Random random(1);
    const std::vector<hrk_bf16> bcx = random_rows(random, 30, 3 * 64, 1.0f);
    const Result want = reference(layer, layer.states, bcx, SPANS);

    for (uint32_t spare : {0u, 600u, 1200u, 4000u}) // 1, 2, 4 and 8 rows
        expect_same(run(layer, layer.states, bcx, SPANS, spare), want);
}

// The rows of one sequence, in pieces of the given lengths, each a step of its own; states go round 0 and 1.
Result in_pieces(const Layer &layer, const std::vector<hrk_bf16> &bcx, const std::vector<uint32_t> &lengths)
{
    const size_t ld = hrk_ld(3 * layer.H);
    Result all = {{}, {}, layer.states};
    uint32_t first = 0;
    int32_t in = -1, out = 0;

    for (uint32_t n : lengths) {
        const Result r = run(layer, all.states, part(bcx, first * ld, n * ld), {{0, n, first, 0, in, out, 0}});

        all.y.insert(all.y.end(), r.y.begin(), r.y.end());
        all.bx.insert(all.bx.end(), r.bx.begin(), r.bx.end());
        all.states = r.states;
        first += n;
        in = out;
        out = 1 - out;
    }
    all.states = part(all.states, (size_t)in * stride(layer), stride(layer) - SPARE);
    return all;
}

void a_sequence_has_the_same_bits_however_it_is_cut(void **)
{
    for (uint32_t L : {2u, 3u, 4u, 8u}) {
        const Layer layer = make_layer(64, L, true);
        Random random(L + 100);
        const uint32_t n = 19;
        const std::vector<hrk_bf16> bcx = random_rows(random, n, 3 * 64, 1.0f);
        const Result whole = in_pieces(layer, bcx, {n});

        for (uint32_t cut = 1; cut < n; cut++)
            expect_same(in_pieces(layer, bcx, {cut, n - cut}), whole);
        expect_same(in_pieces(layer, bcx, std::vector<uint32_t>(n, 1)), whole);
        expect_same(in_pieces(layer, bcx, {1, 7, 1, 2, 8}), whole);
    }
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_conv_args good = {};

    good.max_rows = 4;
    good.H = 64;
    good.L = 3;
    good.state.state_stride = 128;
    for (int i = 0; i < 5; i++) {
        hrk_conv_args args = good;

        if (i == 0)
            args.L = 1;
        else if (i == 1)
            args.L = 9;
        else if (i == 2)
            args.H = 60;
        else if (i == 3)
            args.state.state_stride = 130;
        else
            args.max_rows = 0;
        assert_int_equal(hrk_conv(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_length_agrees_with_the_plain_loop),
        cmocka_unit_test(rows_a_thread_has_do_not_change_a_bit),
        cmocka_unit_test(a_sequence_has_the_same_bits_however_it_is_cut),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
