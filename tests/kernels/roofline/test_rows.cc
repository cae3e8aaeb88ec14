// The kernels that work row by row move each row once: in, out, and the weights beside it.
//
// What they read is measured at two widths; the difference is the formula's (traffic.h). What a row's norm weights cost
// is counted although on a device they come from the L1 cache: a warp a row reads them.
#include "kernels/roofline/traffic.h"
#include "kernels/support/step_block.h"

#include <algorithm>
#include <memory>
#include <set>

using namespace hrk_test;

namespace
{

enum { NARROW = 1024, WIDE = 2048, N_SMS = 16 };
const std::vector<uint32_t> STEPS = {1, 8, 40};
const hrk_launch ON = {nullptr, N_SMS, false, false};

// n rows of width H of everything that a row can have; zeros.
struct Rows {
    DeviceArray<hrk_bf16> x, xn, y;
    DeviceArray<float> norm;

    Rows(uint32_t n, uint32_t H, uint32_t y_rows) : x((size_t)n * H), xn((size_t)n * H), y((size_t)y_rows * H), norm(H)
    {
        x.fill(0);
        y.fill(0);
        norm.fill(0);
    }
};

// An upload block with n rows, all of them outputs, and their spans.
struct Step {
    StepBlock block;
    RowTables rows;
    std::vector<hrk_span> spans;
    DeviceArray<uint32_t> row_span, position;
    std::unique_ptr<DeviceArray<unsigned char>> upload;

    explicit Step(const std::vector<hrk_span> &s) : rows(s), spans(s), row_span(rows.span), position(rows.position)
    {
        std::vector<hrk_output> outputs;

        for (uint32_t i = 0; i < rows.span.size(); i++)
            outputs.push_back({i, rows.span[i], -1, 0, 0, 1});
        block.set_spans(spans);
        block.set_outputs(outputs);
        block.step.tokens_at = block.add(std::vector<int32_t>(rows.span.size(), 3));
        upload.reset(new DeviceArray<unsigned char>(block.bytes()));
    }
    hrk_tables tables() const
    {
        hrk_tables t = {};

        t.step = reinterpret_cast<const hrk_step *>(upload->data());
        t.row_span = row_span.data();
        t.row_position = position.data();
        return t;
    }
};

std::vector<hrk_span> generated(uint32_t n)
{
    std::vector<hrk_span> spans;

    for (uint32_t i = 0; i < n; i++)
        spans.push_back({i, 1, 9, i, (int32_t)(2 * i), (int32_t)(2 * i + 1), 0});
    return spans;
}

// ---------------------------------------------------------------- norm, step_begin

simt::LaunchRecord run_norm(uint32_t n, uint32_t H, bool of_outputs)
{
    const Step step(generated(n));
    const Rows rows(n, H, 0);
    hrk_norm_args a = {};

    a.tables = step.tables();
    a.max_rows = n;
    a.of_outputs = of_outputs;
    a.x = rows.x.data();
    a.weight = rows.norm.data();
    a.H = H;
    a.eps = 1e-5f;
    a.out = rows.xn.data();
    return measure([&] { return hrk_norm(&a, &ON); });
}

// x in, xn out: 4 bytes a value; and the weight.
void a_norm_reads_a_row_once(void **)
{
    for (uint32_t n : STEPS) {
        for (bool of_outputs : {false, true}) {
            const simt::LaunchRecord narrow = run_norm(n, NARROW, of_outputs), wide = run_norm(n, WIDE, of_outputs);

            expect_traffic(narrow, {0, 0, 0, 0, (uint64_t)n * NARROW * 2});
            expect_traffic(wide, {0, 0, 0, 0, (uint64_t)n * WIDE * 2});
            expect_more_read(narrow, wide, (uint64_t)n * (WIDE - NARROW) * (2 + 4));
        }
    }
}

simt::LaunchRecord run_step_begin(uint32_t n, uint32_t H)
{
    enum { V = 8 };
    const Step step(generated(n));
    const Rows rows(n, H, V);
    DeviceArray<int32_t> token(n), next(n);
    DeviceArray<uint32_t> span(n), position(n);
    hrk_step_begin_args a = {};

    a.tables = step.tables();
    a.tables.row_token = token.data();
    a.tables.next_token = next.data();
    a.tables.row_span = span.data();
    a.tables.row_position = position.data();
    a.max_rows = n;
    a.embedding = rows.y.data();
    a.H = H;
    a.V = V;
    a.norm = rows.norm.data();
    a.eps = 1e-5f;
    a.x = rows.x.data();
    a.xn = rows.xn.data();
    return measure([&] { return hrk_step_begin(&a, &ON); });
}

// The embedding's row in, x and xn out, and three numbers about the row.
void embedding_reads_a_row_once(void **)
{
    for (uint32_t n : STEPS) {
        const simt::LaunchRecord narrow = run_step_begin(n, NARROW), wide = run_step_begin(n, WIDE);

        expect_traffic(narrow, {0, 0, 0, 0, (uint64_t)n * (NARROW * 4 + 12)});
        expect_traffic(wide, {0, 0, 0, 0, (uint64_t)n * (WIDE * 4 + 12)});
        expect_more_read(narrow, wide, (uint64_t)n * (WIDE - NARROW) * (2 + 4));
    }
}

// ---------------------------------------------------------------- route, combine

struct Routed {
    simt::LaunchRecord record;
    std::vector<uint32_t> ids;
};

Routed run_route(uint32_t n, uint32_t H, uint32_t E, uint32_t K, uint32_t n_sms)
{
    const Step step(generated(n));
    const Rows rows(n, H, 0);
    DeviceArray<hrk_bf16> router((size_t)E * H);
    DeviceArray<uint32_t> ids(n * K), first(E + 1), sorted(n * K), place(n * K),
        scratch(hrk_route_scratch(n, E, K) / 4 + 1);
    DeviceArray<float> weights(n * K), bias(E);
    const hrk_launch on = {nullptr, n_sms, false, false};
    hrk_route_args a = {};

    router.fill(0);
    bias.fill(0);
    scratch.fill(0);
    a.tables = step.tables();
    a.max_rows = n;
    a.x = rows.x.data();
    a.norm = rows.norm.data();
    a.eps = 1e-5f;
    a.xn = rows.xn.data();
    a.router = router.data();
    a.expert_bias = bias.data();
    a.H = H;
    a.normalise = true;
    a.scale = 1.0f;
    a.routing = {E, K, ids.data(), weights.data(), first.data(), sorted.data(), place.data(), scratch.data()};
    const simt::LaunchRecord record = measure([&] { return hrk_route(&a, &on); });
    return {record, ids.get()};
}

// route_kernel<Shape<rows of a tile, tiles of 16 experts a pass, stages, split>>.
//
// A tile of rows reads the whole router once (with split: its blocks of 16 experts do, together) and multiplies all of
// a pass's experts. Written: xn; of a pair its expert, its weight, its place and its entry in the lists; first[]; with
// split the logits on their way to the last block, and the counter of parts, counted up and put back. More than one
// tile also leave: of a pair its rank in the tile; the tile's counts, a byte an expert; totals, added by the tiles that
// chose an expert and zeroed at the end; the counter of tiles, counted up and put back.
Traffic route_traffic(const Routed &r, uint64_t n, uint64_t H, uint64_t E, uint64_t K)
{
    const std::vector<uint32_t> shape = shape_of(r.record);
    const uint64_t ROWS = shape[0], EXPERTS = 16 * shape[1], tiles = ceil_div(n, ROWS), passes = ceil_div(E, EXPERTS);
    Traffic t;

    t.cp_async = tiles * E * H * 2;
    t.mma = tiles * passes * 2 * EXPERTS * ROWS * H;
    t.written = n * H * 2 + n * K * 4 * 4 + (E + 1) * 4;
    if (shape[3])
        t.written += n * E * 2 + tiles * (passes + 1) * 4;
    if (tiles == 1)
        return t;
    t.written += n * K * 4 + tiles * E + E * 4 + tiles * 4 + 4;
    for (uint64_t tile = 0; tile < tiles; tile++) {
        const uint64_t begin = tile * ROWS * K, end = std::min((tile + 1) * ROWS, n) * K;

        t.written += 4 * std::set<uint32_t>(r.ids.begin() + (ptrdiff_t)begin, r.ids.begin() + (ptrdiff_t)end).size();
    }
    return t;
}

void routing_reads_the_router_once_a_tile_of_rows(void **)
{
    enum { E = 64, K = 4 };

    for (uint32_t n : {1u, 8u, 40u, 130u}) {
        for (uint32_t n_sms : {1u, 132u}) {
            const Routed narrow = run_route(n, NARROW, E, K, n_sms), wide = run_route(n, WIDE, E, K, n_sms);
            const uint64_t blocks = narrow.record.grid.y; // that normalise a row

            assert_string_equal(narrow.record.kernel.c_str(), wide.record.kernel.c_str());
            expect_traffic(narrow.record, route_traffic(narrow, n, NARROW, E, K));
            expect_traffic(wide.record, route_traffic(wide, n, WIDE, E, K));
            expect_more_read(narrow.record, wide.record, n * blocks * (WIDE - NARROW) * (2 + 4));
        }
    }
}

simt::LaunchRecord run_combine(uint32_t n, uint32_t H, uint32_t K, bool has_norm)
{
    const Step step(generated(n));
    const Rows rows(n, H, n * K);
    std::vector<uint32_t> order;
    hrk_combine_args a = {};

    for (uint32_t i = 0; i < n * K; i++)
        order.push_back(n * K - 1 - i);
    const DeviceArray<uint32_t> place(order);
    DeviceArray<float> weights(n * K);
    weights.fill(0);
    a.tables = step.tables();
    a.max_rows = n;
    a.y = rows.y.data();
    a.routing.K = K;
    a.routing.place = place.data();
    a.routing.weights = weights.data();
    a.H = H;
    a.x = rows.x.data();
    a.norm = has_norm ? rows.norm.data() : nullptr;
    a.eps = 1e-5f;
    a.xn = rows.xn.data();
    return measure([&] { return hrk_combine(&a, &ON); });
}

// K rows of y and x in, x and xn out. A thread, 8 values, looks up the places and weights for itself, and the count.
void combining_reads_every_choice_once(void **)
{
    for (uint32_t n : STEPS) {
        for (uint32_t K : {2u, 4u, 7u}) {
            for (bool has_norm : {false, true}) {
                const simt::LaunchRecord narrow = run_combine(n, NARROW, K, has_norm),
                                         wide = run_combine(n, WIDE, K, has_norm);
                const uint64_t outputs = has_norm ? 2 : 1, more = WIDE - NARROW;

                expect_traffic(narrow, {0, 0, 0, 0, n * outputs * NARROW * 2});
                expect_traffic(wide, {0, 0, 0, 0, n * outputs * WIDE * 2});
                expect_more_read(narrow, wide, n * (more * (2 + 2 * K + (has_norm ? 4 : 0)) + more / 8 * (8 * K)),
                                 n * more / 8 * 4);
            }
        }
    }
}

// ---------------------------------------------------------------- conv

simt::LaunchRecord run_conv(const std::vector<hrk_span> &spans, uint32_t H, uint32_t L)
{
    const Step step(spans);
    const uint32_t n = (uint32_t)step.rows.span.size();
    DeviceArray<hrk_bf16> bcx((size_t)n * 3 * H), y((size_t)n * H), states((size_t)2 * n * (L - 1) * H);
    DeviceArray<float> taps((size_t)H * L);
    hrk_conv_args a = {};

    bcx.fill(0);
    states.fill(0);
    taps.fill(0);
    a.tables = step.tables();
    a.max_rows = n;
    a.bcx = bcx.data();
    a.taps = taps.data();
    a.H = H;
    a.L = L;
    a.state = {states.data(), (size_t)(L - 1) * H};
    a.y = y.data();
    return measure([&] { return hrk_conv(&a, &ON); });
}

// A row's B, C and X, and for each of the L - 1 columns before it B and X again, or the state; the taps, 4 bytes each,
// once a row (steps of fewer than 512 rows have one row a thread). Written: y, and the states. The rest is a span's
// entry, 36 bytes and a count a thread.
void a_convolution_reads_a_row_and_those_before_it(void **)
{
    for (uint32_t L : {3u, 4u}) {
        for (uint32_t n : STEPS) {
            std::vector<std::vector<hrk_span>> steps = {generated(n), {{0, n, 0, 0, -1, 0, 0}}};

            for (const auto &spans : steps) {
                const simt::LaunchRecord narrow = run_conv(spans, NARROW, L), wide = run_conv(spans, WIDE, L);
                uint64_t a_channel = (uint64_t)n * L * 4, written = (uint64_t)n * 2 + spans.size() * (L - 1) * 2;

                for (const hrk_span &span : spans) {
                    for (uint32_t i = 0; i < span.n_rows; i++) {
                        const uint32_t inside = std::min(i, L - 1), before = span.state_in >= 0 ? L - 1 - inside : 0;

                        a_channel += 6 + inside * 4 + before * 2;
                    }
                }
                expect_traffic(narrow, {0, 0, 0, 0, written * NARROW});
                expect_traffic(wide, {0, 0, 0, 0, written * WIDE});
                expect_more_read(narrow, wide, a_channel * (WIDE - NARROW), (uint64_t)n * (WIDE - NARROW) / 8 * 40);
            }
        }
    }
}

// ---------------------------------------------------------------- sampler

simt::LaunchRecord run_sampler(uint32_t n, uint32_t V, const hrk_sampling &sampling)
{
    const Step step(generated(n));
    std::vector<float> values((size_t)n * V);
    Random random(V);

    for (float &v : values)
        v = 3.0f * random.normal();
    const DeviceArray<float> logits(values);
    DeviceArray<float> scratch((size_t)n * V);
    const DeviceArray<hrk_sampling> all(std::vector<hrk_sampling>(n, sampling));
    DeviceArray<int32_t> next(n);
    DeviceArray<hrk_sample> samples(n);
    DeviceArray<hrk_top> tops((size_t)n * HRK_TOP_MAX);
    hrk_sampler_args a = {};

    a.tables = step.tables();
    a.tables.next_token = next.data();
    a.tables.sampling = all.data();
    a.max_outputs = n;
    a.logits = logits.data();
    a.V = a.n_valid = V;
    a.scratch = scratch.data();
    a.samples = samples.data();
    a.tops = tops.data();
    return measure([&] { return hrk_sampler(&a, &ON); });
}

// 4 bytes an id: greedy, top_k and min_p read a row once; top_p alone three times (the largest, the mass, the
// candidates). Up to 1,024 candidates are looked up again. No row is copied.
void sampling_reads_the_logits_once(void **)
{
    struct {
        hrk_sampling sampling;
        uint32_t readings;
    } const ways[] = {{{0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 1, 0, 0}, 1},
                      {{1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 50, 0, 1, 0, 0}, 1},
                      {{0.3f, 1.0f, 0.15f, 1.0f, 0.0f, 0.0f, 0, 0, 1, 0, 0}, 1},
                      {{0.8f, 0.95f, 0.0f, 1.0f, 0.0f, 0.0f, 40, 0, 1, 0, 0}, 1},
                      {{0.3f, 0.5f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 1, 0, 0}, 3}};
    enum { V = 16384 };

    for (const auto &way : ways) {
        for (uint32_t n : {1u, 3u}) {
            const simt::LaunchRecord narrow = run_sampler(n, V, way.sampling),
                                     wide = run_sampler(n, 2 * V, way.sampling);

            expect_more_read(narrow, wide, (uint64_t)n * V * 4 * way.readings - n * 4096, (uint64_t)n * 2 * 4096);
            if (counts_plain_accesses()) // a result, its zeros before, the token
                assert_true(wide.counters.global_write_bytes <= n * (2 * sizeof(hrk_sample) + 16));
        }
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(a_norm_reads_a_row_once),
        cmocka_unit_test(embedding_reads_a_row_once),
        cmocka_unit_test(routing_reads_the_router_once_a_tile_of_rows),
        cmocka_unit_test(combining_reads_every_choice_once),
        cmocka_unit_test(a_convolution_reads_a_row_and_those_before_it),
        cmocka_unit_test(sampling_reads_the_logits_once),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
