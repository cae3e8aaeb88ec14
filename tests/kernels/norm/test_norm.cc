// hrk_norm: against the equation in double, against the stated tree to the bit, and row by row whatever the company.
#include "kernels/support/expect.h"
#include "kernels/support/step_block.h"

using namespace hrk_test;

namespace
{

const float EPS = 1e-5f;

struct Rows {
    uint32_t H, n;
    std::vector<float> weight;
    std::vector<hrk_bf16> x;
};

Rows make_rows(uint32_t H, uint32_t n)
{
    Random random(H);
    Rows r = {H, n, {}, random_rows(random, n, H, 2.0f)};

    for (uint32_t i = 0; i < H; i++)
        r.weight.push_back(1.0f + 0.1f * random.normal());
    return r;
}

// Normalises x; `outputs` names rows to take, empty: all. The buffer has two rows more than wanted.
std::vector<hrk_bf16> run(const Rows &r, const std::vector<hrk_bf16> &x, const std::vector<uint32_t> &outputs)
{
    const uint32_t ld = hrk_ld(r.H), n = (uint32_t)(x.size() / ld), max_rows = n + 2;
    StepBlock block;
    std::vector<hrk_output> wanted;

    for (uint32_t row : outputs)
        wanted.push_back({row, 0, -1, 0, 0, 1});
    block.step.n_rows = n;
    block.set_outputs(wanted);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<hrk_bf16> in(x), out((size_t)max_rows * ld);
    DeviceArray<float> weight(r.weight);
    hrk_norm_args args = {};
    const hrk_launch on = {nullptr, 4, true, false};
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.max_rows = max_rows;
    args.of_outputs = !outputs.empty();
    args.x = in.data();
    args.weight = weight.data();
    args.H = r.H;
    args.eps = EPS;
    args.out = out.data();
    assert_int_equal(hrk_norm(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<hrk_bf16> got = out.get();
    const size_t written = (outputs.empty() ? n : outputs.size()) * ld;
    for (size_t i = written; i < got.size(); i++)
        assert_int_equal(got[i], UNTOUCHED);
    return part(got, 0, written);
}

void check_against_the_equation(uint32_t H)
{
    const Rows r = make_rows(H, 6);
    const uint32_t ld = hrk_ld(H);
    const std::vector<hrk_bf16> got = run(r, r.x, {});
    std::vector<double> out, want;

    for (uint32_t row = 0; row < r.n; row++) {
        double squares = 0;

        for (uint32_t i = 0; i < H; i++)
            squares += pow((double)bf16_value(r.x[(size_t)row * ld + i]), 2);
        for (uint32_t i = 0; i < ld; i++) {
            const double x = (double)bf16_value(r.x[(size_t)row * ld + i]);

            out.push_back((double)bf16_value(got[(size_t)row * ld + i]));
            want.push_back(i < H ? (double)r.weight[i] * x / sqrt(squares / H + (double)EPS) : 0.0);
            if (i >= H)
                assert_int_equal(got[(size_t)row * ld + i], 0);
        }
    }
    expect_close(out, want);
}

void rows_of_any_length_follow_the_equation(void **)
{
    for (uint32_t H : {1u, 8u, 64u, 203u, 1024u, 2048u, 2049u, 4160u})
        check_against_the_equation(H);
}

// The sum of squares by the words of norm.h: lanes, butterfly, segments.
float tree(const std::vector<hrk_bf16> &x, size_t at, uint32_t H)
{
    float total = 0;

    for (uint32_t segment = 0; segment * 256 < H; segment++) {
        float lanes[32];

        for (uint32_t l = 0; l < 32; l++) {
            lanes[l] = 0;
            for (uint32_t i = segment * 256 + l * 8; i < segment * 256 + l * 8 + 8 && i < hrk_ld(H); i++)
                lanes[l] = fmaf(bf16_value(x[at + i]), bf16_value(x[at + i]), lanes[l]);
        }
        for (uint32_t d = 16; d > 0; d /= 2) {
            float next[32];

            for (uint32_t l = 0; l < 32; l++)
                next[l] = lanes[l] + lanes[l ^ d];
            memcpy(lanes, next, sizeof lanes);
        }
        total = segment == 0 ? lanes[0] : total + lanes[0];
    }
    return total;
}

void the_tree_of_the_sum_is_the_stated_one(void **)
{
    for (uint32_t H : {64u, 1000u, 2048u, 4160u}) {
        const Rows r = make_rows(H, 5);
        const uint32_t ld = hrk_ld(H);
        const std::vector<hrk_bf16> got = run(r, r.x, {});

        for (uint32_t row = 0; row < r.n; row++) {
            const float scale = 1.0f / sqrtf(tree(r.x, (size_t)row * ld, H) / (float)H + EPS);

            for (uint32_t i = 0; i < H; i++) {
                const float x = bf16_value(r.x[(size_t)row * ld + i]);

                assert_int_equal(got[(size_t)row * ld + i], bf16_bits(bf16_rounded(x * scale) * r.weight[i]));
            }
        }
    }
}

void a_row_alone_has_the_bits_it_has_among_others(void **)
{
    const Rows r = make_rows(320, 9);
    const std::vector<hrk_bf16> all = run(r, r.x, {});

    for (uint32_t row = 0; row < r.n; row++)
        expect_same_bits(run(r, part(r.x, (size_t)row * 320, 320), {}), part(all, (size_t)row * 320, 320));
}

void of_outputs_takes_the_wanted_rows(void **)
{
    const Rows r = make_rows(128, 9);
    const std::vector<hrk_bf16> all = run(r, r.x, {}), some = run(r, r.x, {0, 3, 8});

    expect_same_bits(part(some, 0, 128), part(all, 0, 128));
    expect_same_bits(part(some, 128, 128), part(all, (size_t)3 * 128, 128));
    expect_same_bits(part(some, 256, 128), part(all, (size_t)8 * 128, 128));
}

void a_row_of_zeros_stays_zero(void **)
{
    const Rows r = make_rows(64, 1);
    const std::vector<hrk_bf16> zeros(64, 0);

    expect_same_bits(run(r, zeros, {}), zeros);
}

void no_rows_and_no_columns_are_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_norm_args args = {};

    args.H = 64;
    assert_int_equal(hrk_norm(&args, &on), cudaErrorInvalidValue);
    args.H = 0;
    args.max_rows = 4;
    assert_int_equal(hrk_norm(&args, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_any_length_follow_the_equation),
        cmocka_unit_test(the_tree_of_the_sum_is_the_stated_one),
        cmocka_unit_test(a_row_alone_has_the_bits_it_has_among_others),
        cmocka_unit_test(of_outputs_takes_the_wanted_rows),
        cmocka_unit_test(a_row_of_zeros_stays_zero),
        cmocka_unit_test(no_rows_and_no_columns_are_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
