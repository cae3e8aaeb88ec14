// The products with row-major weights: against sums in double with the stated roundings, every tile shape, experts, and
// the same bits for a row in any company and by any tile.
#include "kernels/support/expect.h"
#include "kernels/support/step_block.h"
#include "linear/linear.h"

#include <algorithm>

using namespace hrk_test;

namespace
{

// Of many multiprocessors each wants a tile: 16 or 32 weight rows; for one, tiles are as large as the tokens allow.
enum { MANY_SMS = 1000, ONE_SM = 1 };

struct Weights {
    uint32_t rows, cols, n_groups, n_stack;
    std::vector<hrk_bf16> data;

    hrk_matrix matrix(const hrk_bf16 *device) const
    {
        return {device, rows, cols, n_groups, n_stack, HRK_ROW_MAJOR};
    }
    const hrk_bf16 *row(uint32_t stack, uint32_t r) const
    {
        return data.data() + ((size_t)stack * n_groups * rows + r) * hrk_ld(cols);
    }
};

Weights make_weights(uint32_t rows, uint32_t cols, uint32_t n_groups = 1, uint32_t n_stack = 1)
{
    Random random(rows * 3 + cols + n_groups + n_stack);

    return {rows, cols, n_groups, n_stack,
            random_rows(random, rows * n_groups * n_stack, cols, 1.0f / sqrtf((float)cols))};
}

double dot(const hrk_bf16 *a, const hrk_bf16 *b, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)bf16_value(a[i]) * (double)bf16_value(b[i]);
    return sum;
}

std::vector<float> some_bias(uint32_t n)
{
    Random random(n);
    std::vector<float> bias;

    for (uint32_t i = 0; i < n; i++)
        bias.push_back(random.normal());
    return bias;
}

struct LinearCase {
    hrk_epilogue epilogue = HRK_STORE;
    bool has_bias = false;
    uint32_t n_sms = ONE_SM, spare = 3; // spare: how far the launch's bound exceeds the rows; it decides the tile
    bool of_outputs = false;
};

// in: whole rows. Returns bf16 values, or the bits of fp32 in two halves; one row more than wanted stays as it was.
template <class T> std::vector<T> run_linear(const Weights &w, const std::vector<hrk_bf16> &in, const LinearCase &c)
{
    const uint32_t rows = w.rows * w.n_groups, n = (uint32_t)(in.size() / hrk_ld(w.cols));
    const size_t ld = hrk_ld(rows);
    StepBlock block;
    (c.of_outputs ? block.step.n_outputs : block.step.n_rows) = n;
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<hrk_bf16> weights(w.data), x(in);
    DeviceArray<float> bias(some_bias(rows));
    DeviceArray<T> out((n + 1) * ld);
    std::vector<T> before((n + 1) * ld, 0);
    hrk_linear_args args = {};
    const hrk_launch on = {nullptr, c.n_sms, true, false};
    if (c.epilogue == HRK_RESIDUAL) { // padding zero
        Random random(7);
        const std::vector<hrk_bf16> old = random_rows(random, n + 1, rows, 1.0f);

        for (size_t i = 0; i < old.size(); i++)
            before[i] = (T)old[i];
        out.put(before);
    }
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.over = c.of_outputs ? HRK_ROWS_OUTPUTS : HRK_ROWS_ALL;
    args.max_rows = n + c.spare;
    args.w = w.matrix(weights.data());
    args.in = x.data();
    args.bias = c.has_bias ? bias.data() : nullptr;
    args.epilogue = c.epilogue;
    args.out = out.data();
    assert_int_equal(hrk::linear_mma(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<T> got = out.get();
    for (size_t i = n * ld; i < got.size(); i++)
        assert_true(got[i] == (c.epilogue == HRK_RESIDUAL ? before[i] : (T) ~(T)0));
    return part(got, 0, n * ld);
}

std::vector<hrk_bf16> tokens(const Weights &w, uint32_t n)
{
    Random random(n + 17);

    return random_rows(random, n, w.cols, 1.0f);
}

void check_linear(const Weights &w, uint32_t n, const LinearCase &c)
{
    const uint32_t rows = w.rows * w.n_groups;
    const size_t ld = hrk_ld(rows);
    const std::vector<hrk_bf16> in = tokens(w, n);
    const std::vector<float> bias = some_bias(rows);
    Random random(7);
    const std::vector<hrk_bf16> old = random_rows(random, n + 1, rows, 1.0f);
    std::vector<double> out, want;
    std::vector<hrk_bf16> halves;
    std::vector<uint32_t> wholes;

    if (c.epilogue == HRK_STORE_F32)
        wholes = run_linear<uint32_t>(w, in, c);
    else
        halves = run_linear<hrk_bf16>(w, in, c);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t r = 0; r < ld; r++) {
            double sum = 0;
            float value;

            if (r < rows)
                sum = dot(w.row(0, r), &in[(size_t)t * hrk_ld(w.cols)], w.cols) + (c.has_bias ? (double)bias[r] : 0.0);
            if (c.epilogue == HRK_RESIDUAL)
                sum = (double)bf16_rounded((float)sum) + (double)bf16_value(old[t * ld + r]);
            if (c.epilogue == HRK_STORE_F32)
                memcpy(&value, &wholes[t * ld + r], sizeof value);
            else
                value = bf16_value(halves[t * ld + r]);
            if (r >= rows)
                assert_true(value == 0.0f);
            out.push_back((double)value);
            want.push_back(sum);
        }
    }
    expect_close(out, want);
}

// Token counts on both sides of every tile's edge; `spare` raises the bound so that larger tiles meet few rows.
void every_tile_multiplies(void **)
{
    const Weights w = make_weights(200, 150);

    for (uint32_t n_sms : {(uint32_t)ONE_SM, (uint32_t)MANY_SMS}) {
        for (uint32_t n : {1u, 13u})
            check_linear(w, n, {HRK_STORE, false, n_sms, 3, false});
        for (uint32_t n : {1u, 50u})
            check_linear(w, n, {HRK_STORE, false, n_sms, 64 - n, false});
        for (uint32_t n : {3u, 130u})
            check_linear(w, n, {HRK_STORE, false, n_sms, 200, false});
    }
}

void every_epilogue_has_its_roundings(void **)
{
    const Weights w = make_weights(72, 64);

    for (hrk_epilogue e : {HRK_STORE, HRK_RESIDUAL, HRK_STORE_F32}) {
        for (uint32_t spare : {0u, 30u, 100u}) {
            check_linear(w, 9, {e, false, MANY_SMS, spare, false});
            check_linear(w, 9, {e, false, ONE_SM, spare, e == HRK_STORE_F32});
            if (e != HRK_STORE_F32)
                check_linear(w, 9, {e, true, ONE_SM, spare, false});
        }
    }
}

void groups_lie_side_by_side(void **)
{
    check_linear(make_weights(40, 100, 3), 11, {});
    check_linear(make_weights(64, 64, 2), 30, {HRK_RESIDUAL, true, ONE_SM, 0, false});
}

// Fewer and more blocks of columns than stages.
void any_inner_dimension_is_summed(void **)
{
    for (uint32_t cols : {1u, 63u, 65u, 320u, 1000u}) {
        for (uint32_t n_sms : {(uint32_t)ONE_SM, (uint32_t)MANY_SMS})
            check_linear(make_weights(16, cols), 5, {HRK_STORE, false, n_sms, 0, false});
        check_linear(make_weights(16, cols), 5, {HRK_STORE, false, ONE_SM, 20, false});
        check_linear(make_weights(16, cols), 5, {HRK_STORE, false, ONE_SM, 90, false});
    }
}

void a_row_has_the_same_bits_by_every_tile_and_in_any_company(void **)
{
    const Weights w = make_weights(130, 450);
    const std::vector<hrk_bf16> in = tokens(w, 70);
    const size_t in_ld = hrk_ld(450), ld = hrk_ld(130);
    const std::vector<uint32_t> all = run_linear<uint32_t>(w, in, {HRK_STORE_F32, false, ONE_SM, 0, false});

    for (uint32_t row : {0u, 9u, 33u, 69u}) {
        for (uint32_t spare : {0u, 40u, 300u}) {
            for (uint32_t n_sms : {(uint32_t)ONE_SM, (uint32_t)MANY_SMS}) {
                const std::vector<uint32_t> one =
                    run_linear<uint32_t>(w, part(in, row * in_ld, in_ld), {HRK_STORE_F32, false, n_sms, spare, false});

                assert_true(one == part(all, row * ld, ld));
            }
        }
    }
}

// A launch has at most 64 blocks for the tokens of a strip: the first of them meet a second tile.
void blocks_go_round_again_when_there_are_many_tokens(void **)
{
    check_linear(make_weights(16, 64), 64 * 128 + 9, {HRK_STORE, false, ONE_SM, 0, false});
}

void a_step_without_rows_writes_nothing(void **)
{
    const Weights w = make_weights(64, 64);

    for (uint32_t spare : {1u, 20u, 100u})
        assert_true(run_linear<hrk_bf16>(w, {}, {HRK_STORE, false, ONE_SM, spare, false}).empty());
}

// ---- gate_up and down

// Lists of a routing made up at random: `crowd` of the tokens all choose expert 1 first; expert 0 gets nobody.
struct Routing {
    uint32_t E, K;
    std::vector<uint32_t> first, sorted;
};

Routing make_routing(uint32_t n, uint32_t E, uint32_t K, uint32_t crowd)
{
    Random random(n + E + crowd);
    std::vector<std::vector<uint32_t>> lists(E);
    Routing r = {E, K, {0}, {}};

    for (uint32_t t = 0; t < n; t++) {
        std::vector<uint32_t> chosen;

        while (chosen.size() < K) {
            const uint32_t e = t < crowd && chosen.empty() ? 1 : 1 + random.below(E - 1);

            if (std::find(chosen.begin(), chosen.end(), e) == chosen.end())
                chosen.push_back(e);
        }
        for (uint32_t k = 0; k < K; k++)
            lists[chosen[k]].push_back(t * K + k);
    }
    for (const std::vector<uint32_t> &list : lists) {
        r.sorted.insert(r.sorted.end(), list.begin(), list.end());
        r.first.push_back((uint32_t)r.sorted.size());
    }
    return r;
}

// gate_up over n tokens, or down over n tokens' pairs, whichever w is for; routing NULL: a dense gate_up.
std::vector<hrk_bf16> run_ffn(const Weights &w, const std::vector<hrk_bf16> &in, const Routing *routing, uint32_t n,
                              uint32_t spare, uint32_t n_sms = ONE_SM)
{
    const uint32_t pairs = routing ? n * routing->K : n;
    const size_t ld = hrk_ld(w.rows);
    StepBlock block;
    block.step.n_rows = n;
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<hrk_bf16> weights(w.data), x(in), out((pairs + 1) * ld);
    DeviceArray<uint32_t> first(routing ? routing->first : std::vector<uint32_t>()),
        sorted(routing ? routing->sorted : std::vector<uint32_t>());
    const hrk_launch on = {nullptr, n_sms, true, false};
    hrk_routing lists = {};
    if (routing) {
        lists.E = routing->E;
        lists.K = routing->K;
        lists.first = first.data();
        lists.sorted = sorted.data();
    }
    if (w.n_groups == 2) {
        hrk_gate_up_args args = {};
        args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
        args.max_rows = n + spare;
        args.w = w.matrix(weights.data());
        args.in = x.data();
        args.routing = routing ? &lists : nullptr;
        args.h = out.data();
        assert_int_equal(hrk::gate_up_mma(&args, &on), 0);
    } else {
        hrk_down_args args = {};
        args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
        args.max_rows = n + spare;
        args.w = w.matrix(weights.data());
        args.h = x.data();
        args.routing = &lists;
        args.y = out.data();
        assert_int_equal(hrk::down_mma(&args, &on), 0);
    }
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<hrk_bf16> got = out.get();
    for (size_t i = pairs * ld; i < got.size(); i++)
        assert_int_equal(got[i], UNTOUCHED);
    return part(got, 0, pairs * ld);
}

double swiglu_of(double gate, double up)
{
    const double g = (double)bf16_rounded((float)gate);

    return (double)bf16_rounded((float)(g / (1.0 + exp(-g)))) * (double)bf16_rounded((float)up);
}

void check_ffn(const Weights &w, const Routing *routing, uint32_t n, uint32_t spare, uint32_t n_sms = ONE_SM)
{
    const bool is_gated = w.n_groups == 2;
    const uint32_t pairs = routing ? n * routing->K : n, in_rows = is_gated ? n : pairs;
    const size_t ld = hrk_ld(w.rows), in_ld = hrk_ld(w.cols);
    const std::vector<hrk_bf16> in = tokens(w, in_rows), got = run_ffn(w, in, routing, n, spare, n_sms);
    std::vector<double> out, want;
    uint32_t expert = 0;

    for (uint32_t p = 0; p < pairs; p++) {
        while (routing && routing->first[expert + 1] <= p)
            expert++;
        const hrk_bf16 *x = &in[(is_gated && routing ? routing->sorted[p] / routing->K : p) * in_ld];
        for (uint32_t r = 0; r < ld; r++) {
            if (r >= w.rows)
                assert_int_equal(got[p * ld + r], 0);
            else if (is_gated)
                want.push_back(swiglu_of(dot(w.row(expert, r), x, w.cols), dot(w.row(expert, w.rows + r), x, w.cols)));
            else
                want.push_back(dot(w.row(expert, r), x, w.cols));
            if (r < w.rows)
                out.push_back((double)bf16_value(got[p * ld + r]));
        }
    }
    expect_close(out, want);
}

void dense_gate_up_is_gated(void **)
{
    const Weights w = make_weights(100, 130, 2);

    for (uint32_t spare : {0u, 40u, 100u})
        check_ffn(w, nullptr, 7, spare);
    for (uint32_t n_sms : {(uint32_t)ONE_SM, (uint32_t)MANY_SMS})
        check_ffn(w, nullptr, 70, 0, n_sms);
}

// Bounds of tokens an expert on every side of the tiles' edges, an expert without tokens, a crowded one.
void experts_gather_their_tokens(void **)
{
    const Weights gate_up = make_weights(72, 64, 2, 5), down = make_weights(64, 72, 1, 5);

    for (uint32_t crowd : {0u, 40u}) {
        for (uint32_t spare : {0u, 30u, 200u}) {
            const Routing routing = make_routing(40, 5, 2, crowd);

            check_ffn(gate_up, &routing, 40, spare);
            check_ffn(down, &routing, 40, spare);
            check_ffn(down, &routing, 40, spare, MANY_SMS);
        }
    }
    const Routing one = make_routing(1, 5, 4, 1);
    check_ffn(gate_up, &one, 1, 0);
    check_ffn(down, &one, 1, 0);
}

void a_pair_has_the_same_bits_alone_and_among_others(void **)
{
    const Weights gate_up = make_weights(72, 200, 2, 4), down = make_weights(72, 200, 1, 4);

    for (const Weights *w : {&gate_up, &down}) {
        const bool is_gated = w->n_groups == 2;
        const Routing routing = make_routing(60, 4, 2, 50);
        const size_t in_ld = hrk_ld(w->cols), ld = hrk_ld(w->rows);
        const std::vector<hrk_bf16> in = tokens(*w, is_gated ? 60 : 120), all = run_ffn(*w, in, &routing, 60, 300);

        for (uint32_t p : {0u, 49u, 77u, 119u}) {
            const uint32_t expert =
                (uint32_t)(std::upper_bound(routing.first.begin(), routing.first.end(), p) - routing.first.begin()) - 1;
            const uint32_t row = is_gated ? routing.sorted[p] / 2 : p;
            Routing alone = {4, 1, {0, 0, 0, 0, 0}, {0}};

            for (uint32_t e = expert + 1; e <= 4; e++)
                alone.first[e] = 1;
            expect_same_bits(run_ffn(*w, part(in, row * in_ld, in_ld), &alone, 1, 0), part(all, p * ld, ld));
        }
    }
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_linear_args linear = {};
    hrk_gate_up_args gate_up = {};
    hrk_down_args down = {};

    linear.w = {nullptr, 64, 64, 1, 2, HRK_ROW_MAJOR}; // a stack
    linear.max_rows = 1;
    assert_int_equal(hrk::linear_mma(&linear, &on), cudaErrorInvalidValue);
    linear.w = {nullptr, 64, 64, 1, 1, HRK_TILED};
    assert_int_equal(hrk::linear_mma(&linear, &on), cudaErrorInvalidValue);
    linear.w = {nullptr, 64, 64, 1, 1, HRK_ROW_MAJOR};
    linear.max_rows = 0;
    assert_int_equal(hrk::linear_mma(&linear, &on), cudaErrorInvalidValue);
    gate_up.w = {nullptr, 64, 64, 1, 1, HRK_ROW_MAJOR}; // one group
    gate_up.max_rows = 1;
    assert_int_equal(hrk::gate_up_mma(&gate_up, &on), cudaErrorInvalidValue);
    down.w = {nullptr, 64, 64, 1, 1, HRK_ROW_MAJOR}; // no routing
    down.max_rows = 1;
    assert_int_equal(hrk::down_mma(&down, &on), cudaErrorInvalidValue);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_tile_multiplies),
        cmocka_unit_test(every_epilogue_has_its_roundings),
        cmocka_unit_test(groups_lie_side_by_side),
        cmocka_unit_test(any_inner_dimension_is_summed),
        cmocka_unit_test(a_row_has_the_same_bits_by_every_tile_and_in_any_company),
        cmocka_unit_test(blocks_go_round_again_when_there_are_many_tokens),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
        cmocka_unit_test(dense_gate_up_is_gated),
        cmocka_unit_test(experts_gather_their_tokens),
        cmocka_unit_test(a_pair_has_the_same_bits_alone_and_among_others),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
