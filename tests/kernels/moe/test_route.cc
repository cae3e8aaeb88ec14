// hrk_route: logits against a sum in double, choice and weights against the stated roundings, lists against a plain
// stable sort; and the same bits for a row whatever variant, batch or neighbours it meets.
#include "kernels/support/device_array.h"

#include <algorithm>
#include <numeric>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

using namespace hrk_test;

namespace
{

struct Case {
    uint32_t H, E, K;
    bool has_bias, normalise;
    float scale;
};

struct Model {
    Case c;
    std::vector<float> norm, bias;
    std::vector<hrk_bf16> router;
};

struct Result {
    std::vector<hrk_bf16> xn, logits;
    std::vector<uint32_t> ids, first, sorted, place, scratch;
    std::vector<float> weights;
};

const float EPS = 1e-5f;

Model make_model(const Case &c, uint64_t seed)
{
    Random random(seed);
    Model m{c, {}, {}, std::vector<hrk_bf16>((size_t)c.E * hrk_ld(c.H), 0)};

    for (uint32_t i = 0; i < c.H; i++)
        m.norm.push_back(1.0f + 0.1f * random.normal());
    for (uint32_t e = 0; e < c.E; e++) {
        m.bias.push_back(0.2f * random.normal());
        for (uint32_t i = 0; i < c.H; i++)
            m.router[(size_t)e * hrk_ld(c.H) + i] = bf16_bits(random.normal() / sqrtf((float)c.H));
    }
    return m;
}

std::vector<hrk_bf16> make_rows(const Case &c, uint32_t n, uint64_t seed)
{
    Random random(seed);
    std::vector<hrk_bf16> x((size_t)n * hrk_ld(c.H), 0);

    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t i = 0; i < c.H; i++)
            x[(size_t)r * hrk_ld(c.H) + i] = bf16_bits(3.0f * random.normal());
    }
    return x;
}

// Runs the kernel over the first n_rows of x; buffers hold max_rows, the rest of x is NaN.
Result run(const Model &m, const std::vector<hrk_bf16> &x, uint32_t n_rows, uint32_t max_rows, uint32_t n_sms,
           uint32_t times = 1)
{
    const Case &c = m.c;
    const uint32_t ld = hrk_ld(c.H), pairs = max_rows * c.K;
    hrk_step step = {};
    step.n_rows = n_rows;
    DeviceArray<hrk_step> d_step(std::vector<hrk_step>{step});
    DeviceArray<float> norm(m.norm), bias(m.bias), weights(pairs);
    DeviceArray<hrk_bf16> router(m.router), rows((size_t)max_rows * ld), xn((size_t)max_rows * ld),
        logits((size_t)max_rows * c.E);
    DeviceArray<uint32_t> ids(pairs), first(c.E + 1), sorted(pairs), place(pairs),
        scratch(hrk_route_scratch(max_rows, c.E, c.K) / 4 + 1);
    hrk_route_args args = {};
    const hrk_launch on = {nullptr, n_sms, false, false};

    rows.put(std::vector<hrk_bf16>(x.begin(), x.begin() + (ptrdiff_t)((size_t)n_rows * ld)));
    scratch.fill(0);
    args.tables.step = d_step.data();
    args.max_rows = max_rows;
    args.x = rows.data();
    args.norm = norm.data();
    args.eps = EPS;
    args.xn = xn.data();
    args.router = router.data();
    args.expert_bias = c.has_bias ? bias.data() : nullptr;
    args.H = c.H;
    args.normalise = c.normalise;
    args.scale = c.scale;
    args.logits = logits.data();
    args.routing = {c.E, c.K, ids.data(), weights.data(), first.data(), sorted.data(), place.data(), scratch.data()};
    for (uint32_t i = 0; i < times; i++)
        assert_int_equal(hrk_route(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return {xn.get(), logits.get(), ids.get(), first.get(), sorted.get(), place.get(), scratch.get(), weights.get()};
}

void check_norm(const Model &m, const std::vector<hrk_bf16> &x, const Result &got, uint32_t row)
{
    const uint32_t H = m.c.H, ld = hrk_ld(H);
    double squares = 0, error = 0, size = 0;

    for (uint32_t i = 0; i < H; i++)
        squares += pow((double)bf16_value(x[(size_t)row * ld + i]), 2);
    for (uint32_t i = 0; i < ld; i++) {
        const double want =
            i < H ? (double)bf16_value(x[(size_t)row * ld + i]) / sqrt(squares / H + (double)EPS) * (double)m.norm[i]
                  : 0.0;
        const double is = (double)bf16_value(got.xn[(size_t)row * ld + i]);

        error += pow(is - want, 2);
        size += want * want;
        if (i >= H)
            assert_int_equal(got.xn[(size_t)row * ld + i], 0);
    }
    assert_true(error <= pow(4e-3, 2) * size);
}

// Logits of the normalised row as it was stored: within one bf16 rounding of the exact sum.
void check_logits(const Model &m, const Result &got, uint32_t row)
{
    const uint32_t H = m.c.H, ld = hrk_ld(H);

    for (uint32_t e = 0; e < m.c.E; e++) {
        double sum = 0, size = 0;

        for (uint32_t i = 0; i < H; i++) {
            const double p =
                (double)bf16_value(got.xn[(size_t)row * ld + i]) * (double)bf16_value(m.router[(size_t)e * ld + i]);
            sum += p;
            size += fabs(p);
        }
        const double is = (double)bf16_value(got.logits[(size_t)row * m.c.E + e]);
        if (!(fabs(is - sum) <= fabs(sum) / 256 + 1e-6 * size))
            fail_msg("row %u, expert %u: logit %g, exact %g", row, e, is, sum);
    }
}

// A GPU's expf and the host's may differ in the last bit, which now and then changes the bf16 that follows: there a
// probability may be one step of bf16 away from the host's, and the choice and the weights are held to that.
#ifdef HRK_ON_GPU
const float STEP_OF_BF16 = 1.0f / 128;
#else
const float STEP_OF_BF16 = 0.0f;
#endif

bool is_near(float is, float want, float steps)
{
    return fabsf(is - want) <= steps * STEP_OF_BF16 * fabsf(want);
}

// Choice and weights of the logits as they were stored: exactly, but for STEP_OF_BF16.
void check_choice(const Model &m, const Result &got, uint32_t row)
{
    const Case &c = m.c;
    std::vector<float> p(c.E), score(c.E);
    std::vector<uint32_t> order(c.E);
    float sum = 0;

    for (uint32_t e = 0; e < c.E; e++) {
        p[e] = bf16_rounded(1.0f / (1.0f + expf(-bf16_value(got.logits[(size_t)row * c.E + e]))));
        score[e] = p[e] + (c.has_bias ? m.bias[e] : 0.0f);
    }
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return score[a] > score[b]; });
    for (uint32_t k = 0; k < c.K; k++) {
        const uint32_t id = got.ids[(size_t)row * c.K + k];

        assert_true(id < c.E);
        if (id != order[k] && !(STEP_OF_BF16 > 0 && fabsf(score[id] - score[order[k]]) <= 2 * STEP_OF_BF16))
            fail_msg("row %u, choice %u: expert %u, not %u", row, k, id, order[k]);
        order[k] = id;
        sum += p[id];
    }
    for (uint32_t k = 0; k < c.K; k++) {
        const float w = c.normalise ? bf16_rounded(p[order[k]] / bf16_rounded(bf16_rounded(sum) + 1e-6f)) : p[order[k]];
        const float want = bf16_rounded(w * c.scale), is = got.weights[(size_t)row * c.K + k];

        if (!is_near(is, want, 4))
            fail_msg("row %u, choice %u: weight %.9g, not %.9g", row, k, (double)is, (double)want);
    }
}

void check_lists(const Case &c, const Result &got, uint32_t n_rows)
{
    uint32_t at = 0;

    for (uint32_t e = 0; e < c.E; e++) {
        assert_int_equal(got.first[e], at);
        for (uint32_t i = 0; i < n_rows * c.K; i++) {
            if (got.ids[i] != e)
                continue;
            assert_int_equal(got.sorted[at], i);
            assert_int_equal(got.place[i], at);
            at++;
        }
    }
    assert_int_equal(got.first[c.E], at);
    assert_int_equal(at, n_rows * c.K);
    for (size_t i = (size_t)n_rows * c.K; i < got.ids.size(); i++) { /* rows that are not there are not touched */
        assert_int_equal(got.ids[i], UINT32_MAX);
        assert_int_equal(got.sorted[i], UINT32_MAX);
        assert_int_equal(got.place[i], UINT32_MAX);
    }
    for (uint32_t i = 0; i < 16 + 32 + 512; i++) /* the counters */
        assert_int_equal(got.scratch[i], 0);
}

// n_sms tells the variants apart: 64 splits the experts of few rows over blocks, 4 has a block take 8 rows, 1 has
// it 16.
const uint32_t SPLIT = 64, FEW = 4, MANY = 1;
const uint32_t VARIANTS[] = {SPLIT, FEW, MANY};

void a_row_gets_its_best_experts_and_the_lists_are_a_stable_sort(void **)
{
    static const Case cases[] = {
        {128, 32, 4, true, true, 1.0f},  {256, 64, 4, true, true, 1.0f}, {96, 8, 2, false, true, 1.0f},
        {320, 40, 8, true, false, 2.5f}, {64, 512, 8, true, true, 1.0f}, {192, 5, 5, false, false, 0.7f},
    };
    static const uint32_t rows[] = {1, 3, 8, 9, 41};

    for (const Case &c : cases) {
        const Model m = make_model(c, c.E * 1000 + c.H);
        for (uint32_t n : rows) {
            if (c.E == 512 && n > 9)
                continue;
            const auto x = make_rows(c, n, n);
            for (uint32_t n_sms : VARIANTS) {
                const Result got = run(m, x, n, n + n % 7, n_sms);
                for (uint32_t r = 0; r < n; r++) {
                    check_norm(m, x, got, r);
                    check_logits(m, got, r);
                    check_choice(m, got, r);
                }
                check_lists(c, got, n);
            }
        }
    }
}

void the_bits_of_a_row_do_not_depend_on_its_batch(void **)
{
    const Case c = {256, 64, 4, true, true, 1.0f};
    const Model m = make_model(c, 7);
    const uint32_t n = 45;
    const auto x = make_rows(c, n, 8);
    const Result all = run(m, x, n, n, MANY);
    const uint32_t ld = hrk_ld(c.H);

    for (uint32_t n_sms : {SPLIT, FEW}) {
        const Result other = run(m, x, n, n, n_sms);
        assert_true(all.logits == other.logits && all.xn == other.xn && all.ids == other.ids);
        assert_true(all.weights == other.weights && all.sorted == other.sorted && all.place == other.place);
    }
    for (uint32_t r = 0; r < n; r += 11) {
        const std::vector<hrk_bf16> alone(x.begin() + (ptrdiff_t)(r * ld), x.begin() + (ptrdiff_t)((r + 1) * ld));
        for (uint32_t n_sms : {SPLIT, 1u}) {
            const Result one = run(m, alone, 1, 1, n_sms);
            assert_memory_equal(one.logits.data(), &all.logits[r * c.E], c.E * 2);
            assert_memory_equal(one.xn.data(), &all.xn[r * ld], ld * 2);
            assert_memory_equal(one.ids.data(), &all.ids[r * c.K], c.K * 4);
            assert_memory_equal(one.weights.data(), &all.weights[r * c.K], c.K * 4);
        }
    }
}

void ties_go_to_the_lower_expert(void **)
{
    Case c = {64, 48, 4, false, true, 1.0f};
    Model m = make_model(c, 3);
    const auto x = make_rows(c, 5, 4);

    for (uint32_t e = 0; e < c.E; e++) /* all experts but two are the same */
        for (uint32_t i = 0; i < 64; i++)
            m.router[e * 64 + i] = e == 20 || e == 33 ? bf16_bits(-bf16_value(m.router[i])) : m.router[i];
    for (uint32_t n_sms : VARIANTS) {
        const Result got = run(m, x, 5, 5, n_sms);
        for (uint32_t r = 0; r < 5; r++) {
            const bool first_wins = bf16_value(got.logits[r * c.E]) > bf16_value(got.logits[r * c.E + 20]);
            const uint32_t plain[4] = {0, 1, 2, 3}, turned[4] = {20, 33, 0, 1};
            assert_memory_equal(&got.ids[r * 4], first_wins ? plain : turned, sizeof plain);
        }
        check_lists(c, got, 5);
    }
}

void rows_that_are_not_numbers_still_get_experts(void **)
{
    const Case c = {64, 32, 4, true, true, 1.0f};
    const Model m = make_model(c, 5);
    auto x = make_rows(c, 10, 6);

    for (uint32_t i = 0; i < 64; i++)
        x[3 * 64 + i] = 0x7fc0;
    for (uint32_t n_sms : VARIANTS) {
        const Result got = run(m, x, 10, 10, n_sms);
        const uint32_t want[4] = {0, 1, 2, 3};
        assert_memory_equal(&got.ids[3 * 4], want, sizeof want);
        check_lists(c, got, 10);
    }
}

void a_step_without_rows_leaves_empty_lists(void **)
{
    const Case c = {64, 32, 4, true, true, 1.0f};
    const Model m = make_model(c, 5);

    for (uint32_t n_sms : VARIANTS)
        check_lists(c, run(m, {}, 0, 33, n_sms), 0);
}

void a_second_launch_finds_its_scratch_as_the_first(void **)
{
    const Case c = {64, 32, 4, true, true, 1.0f};
    const Model m = make_model(c, 15);
    const auto x = make_rows(c, 20, 16);

    for (uint32_t n_sms : VARIANTS)
        check_lists(c, run(m, x, 20, 20, n_sms, 3), 20);
}

// Enough rows and experts that the tiles' counts do not fit the block's shared memory at once.
void many_tiles_are_counted_in_several_goes(void **)
{
    const Case c = {64, 160, 8, true, true, 1.0f};
    const Model m = make_model(c, 25);
    const auto x = make_rows(c, 2000, 26);

    for (uint32_t n_sms : {MANY, 1000u})
        check_lists(c, run(m, x, 2000, 2000, n_sms), 2000);
}

void what_does_not_fit_is_refused(void **)
{
    hrk_route_args args = {};
    const hrk_launch on = {nullptr, 4, false, false};

    args.max_rows = 4;
    args.H = 64;
    args.routing.E = 513;
    args.routing.K = 4;
    assert_int_equal(hrk_route(&args, &on), cudaErrorInvalidValue);
    args.routing.E = 64;
    args.routing.K = 9;
    assert_int_equal(hrk_route(&args, &on), cudaErrorInvalidValue);
    args.routing.E = 3;
    args.routing.K = 4;
    assert_int_equal(hrk_route(&args, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(a_row_gets_its_best_experts_and_the_lists_are_a_stable_sort),
        cmocka_unit_test(the_bits_of_a_row_do_not_depend_on_its_batch),
        cmocka_unit_test(ties_go_to_the_lower_expert),
        cmocka_unit_test(rows_that_are_not_numbers_still_get_experts),
        cmocka_unit_test(a_step_without_rows_leaves_empty_lists),
        cmocka_unit_test(a_second_launch_finds_its_scratch_as_the_first),
        cmocka_unit_test(many_tiles_are_counted_in_several_goes),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
