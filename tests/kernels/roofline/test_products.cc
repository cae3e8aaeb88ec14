// The products read each weight once for every tile of tokens, and each token's row once for every tile of weights: no
// more, in any tile shape. Weights are what a decode step is made of (docs/design/cuda.md), so a kernel that reads them
// twice shows here before any GPU shows it.
//
// The tile is read off the launched kernel's name; the formulas say what a kernel of that tile has to move.
#include "kernels/roofline/traffic.h"
#include "kernels/support/expert_lists.h"
#include "kernels/support/step_block.h"
#include "linear/linear.h"
#include "linear/wgmma.h"
#include "runtime.h"

#include <algorithm>

using namespace hrk_test;

namespace
{

enum { H = 256, F = 448, HEAD = 64, N_SMS = 16 };

// One matrix, or one an expert, and how many rows each is multiplied with.
struct Work {
    uint32_t rows, cols, n_groups;
    std::vector<uint32_t> tokens;
    uint32_t overlap; // rows that a token tile shares with the one before
    hrk_layout layout = HRK_TILED;
};

uint64_t sum(const std::vector<uint32_t> &v)
{
    uint64_t total = 0;

    for (uint32_t n : v)
        total += n;
    return total;
}
// The weights that the step touches, padding included: what the roofline counts.
uint64_t touched_bytes(const Work &w)
{
    const uint64_t matrices =
        (uint64_t)std::count_if(w.tokens.begin(), w.tokens.end(), [](uint32_t n) { return n > 0; });

    return matrices * hrk_matrix_bytes(w.rows, w.cols, w.n_groups, w.layout);
}

// wgmma::Shape<N, groups, consumers, by group, rows, ...>.
struct Tile {
    uint32_t N, consumers, rows;
    bool by_group;

    explicit Tile(const simt::LaunchRecord &r)
    {
        const std::vector<uint32_t> shape = shape_of(r);

        N = shape[0], consumers = shape[2], by_group = shape[3] != 0, rows = shape[4];
    }
    // Token tiles: the first is N wide, every further one brings N - overlap rows.
    uint64_t passes(uint32_t n, uint32_t overlap) const
    {
        return n == 0 ? 0 : n <= N ? 1 : 1 + ceil_div(n - N, N - overlap);
    }
};

// Each pass over the tokens reads all weights; with an odd number of strips the consumer without one reads the last a
// second time. Each tile of weights reads all token rows, those in an overlap twice. An instruction is 64 x N x 16
// whatever part of it counts: a thin tile of 64 / p rows multiplies p times as much.
Traffic traffic_of(const Tile &t, const Work &w)
{
    const uint64_t k_blocks = hrk_ld(w.cols) / 64, strips = hrk_ld(w.rows) / 64, parts = 64 / t.rows;
    const uint64_t at_once = t.by_group ? 1 : t.consumers;
    const uint64_t m_tiles = parts > 1 ? strips * parts : ceil_div(strips, at_once);
    Traffic traffic;

    for (uint32_t n : w.tokens) {
        const uint64_t passes = t.passes(n, w.overlap);

        if (n == 0)
            continue;
        traffic.bulk += passes * (m_tiles * at_once / parts) * hrk_matrix_bytes(64, w.cols, w.n_groups, w.layout);
        traffic.cp_async += m_tiles * (n + (passes - 1) * w.overlap) * k_blocks * 128;
        traffic.wgmma += passes * m_tiles * at_once * w.n_groups * k_blocks * 2 * 64 * 64 * t.N;
    }
    return traffic;
}

// Holds a launch to the formula. Wherever one tile of tokens covers each matrix's rows, that is the touched weights
// once.
void check(const simt::LaunchRecord &r, const Work &w, uint64_t written)
{
    const Tile tile(r);
    Traffic want = traffic_of(tile, w);

    want.written = written;
    expect_traffic(r, want);
    if (*std::max_element(w.tokens.begin(), w.tokens.end()) <= tile.N && hrk_ld(w.rows) / 64 % tile.consumers == 0)
        expect_count(r, "bytes of weights", r.counters.bulk_load_bytes, touched_bytes(w));
}

using Steps = std::vector<uint32_t>;
const Steps STEPS = {1, 8, 40, 130};

std::vector<uint32_t> ids_of(uint32_t n)
{
    std::vector<uint32_t> ids;

    for (uint32_t i = 0; i < n; i++)
        ids.push_back(i);
    return ids;
}

// Memory without numbers: no count depends on them. Zeros, so that no arithmetic is slow.
template <class T> struct Zeros : DeviceArray<T> {
    explicit Zeros(size_t n) : DeviceArray<T>(n)
    {
        this->fill(0);
    }
};

struct Rows {
    DeviceArray<unsigned char> upload;
    Zeros<hrk_bf16> in, out;

    Rows(uint32_t n, size_t n_in, size_t n_out, const std::vector<hrk_span> &spans)
        : upload(block_of(n, spans)), in(n_in), out(n_out)
    {
    }
    static std::vector<unsigned char> block_of(uint32_t n, const std::vector<hrk_span> &spans)
    {
        StepBlock block;

        block.set_spans(spans);
        block.step.n_rows = block.step.n_outputs = n;
        return block.bytes();
    }
    const hrk_step *step() const
    {
        return reinterpret_cast<const hrk_step *>(upload.data());
    }
};

const hrk_launch ON = {nullptr, N_SMS, false, false};

// ---------------------------------------------------------------- linear

simt::LaunchRecord run_linear(const Rows &rows, const hrk_matrix &w, uint32_t n, hrk_epilogue epilogue, int variant)
{
    hrk_linear_args a = {};

    a.tables.step = rows.step();
    a.over = epilogue == HRK_STORE_F32 ? HRK_ROWS_OUTPUTS : HRK_ROWS_ALL;
    a.max_rows = n;
    a.w = w;
    a.in = rows.in.data();
    a.epilogue = epilogue;
    a.out = rows.out.data();
    return measure([&] { return hrk::linear_wgmma_as(&a, &ON, variant); });
}

void check_linear(hrk_layout layout, const Steps &steps)
{
    for (uint32_t out : {(uint32_t)H, (uint32_t)F}) {
        const Zeros<hrk_bf16> weights(hrk_matrix_values(out, H, 1, HRK_TILED));
        const hrk_matrix w = {weights.data(), out, H, 1, 1, layout};

        for (uint32_t n : steps) {
            const Rows rows(n, n * H, 2 * n * hrk_ld(out), {});
            const Work work = {out, H, 1, {n}, 0, layout};
            const uint64_t values = (uint64_t)n * hrk_ld(out);

            // An even number of strips has nothing to tell that an odd one has not: one tile is enough of it.
            for (int v = hrk::PICK_VARIANT; v < (out == F ? (int)hrk::LINEAR_VARIANTS : 0); v++)
                check(run_linear(rows, w, n, HRK_STORE, v), work, 2 * values);
            for (hrk_epilogue e : {HRK_RESIDUAL, HRK_STORE_F32})
                check(run_linear(rows, w, n, e, hrk::PICK_VARIANT), work, (e == HRK_STORE_F32 ? 4 : 2) * values);
        }
    }
}

void linear_reads_its_weights_once_a_token_tile(void **)
{
    check_linear(HRK_TILED, STEPS);
}

// What a residual costs: one reading of the rows that it is added to. All else by plain loads are counts and lists.
void a_residual_is_read_once(void **)
{
    const Zeros<hrk_bf16> weights(hrk_matrix_values(H, H, 1, HRK_TILED));
    const hrk_matrix w = {weights.data(), H, H, 1, 1, HRK_TILED};

    for (uint32_t n : STEPS) {
        const Rows rows(n, n * H, n * H, {});

        for (int v = 0; v < hrk::LINEAR_VARIANTS; v++)
            expect_more_read(run_linear(rows, w, n, HRK_STORE, v), run_linear(rows, w, n, HRK_RESIDUAL, v),
                             (uint64_t)2 * n * H);
    }
}

// ---------------------------------------------------------------- feed-forward

// Uneven lists: some experts many rows, some one, the last none.
std::vector<uint32_t> choose(uint32_t n, uint32_t E, uint32_t K)
{
    return choose_experts(ids_of(n), E - 1, K, n > 8 ? 2 : -1);
}

struct Experts {
    ExpertLists lists;
    DeviceArray<uint32_t> first, sorted;
    hrk_routing routing = {};

    Experts(uint32_t n, uint32_t E, uint32_t K) : lists(E, K, choose(n, E, K)), first(lists.first), sorted(lists.sorted)
    {
        routing.E = E;
        routing.K = K;
        routing.first = first.data();
        routing.sorted = sorted.data();
    }
    std::vector<uint32_t> counts() const
    {
        std::vector<uint32_t> n;

        for (uint32_t e = 0; e < lists.E; e++)
            n.push_back(lists.first[e + 1] - lists.first[e]);
        return n;
    }
};

void check_gate_up(hrk_layout layout, const Steps &steps)
{
    const Zeros<hrk_bf16> weights(hrk_matrix_values(F, H, 2, HRK_TILED));

    for (uint32_t n : steps) {
        const Rows rows(n, n * H, n * hrk_ld(F), {});
        hrk_gate_up_args a = {};

        a.tables.step = rows.step();
        a.max_rows = n;
        a.w = {weights.data(), F, H, 2, 1, layout};
        a.in = rows.in.data();
        a.h = rows.out.data();
        for (int v = hrk::PICK_VARIANT; v < hrk::GATE_UP_VARIANTS; v++)
            check(measure([&] { return hrk::gate_up_wgmma_as(&a, &ON, v); }), {F, H, 2, {n}, 0, layout},
                  (uint64_t)2 * n * hrk_ld(F));
    }
}

void dense_gate_and_up_are_read_once_a_token_tile(void **)
{
    check_gate_up(HRK_TILED, STEPS);
}

// Only the experts that were chosen are read, and each once a tile of its own rows, however many rows the step has.
void check_experts(hrk_layout layout, const Steps &steps)
{
    enum { E = 8, K = 2, M = 192 };
    const Zeros<hrk_bf16> gate_up(E * hrk_matrix_values(M, H, 2, HRK_TILED)),
        down(E * hrk_matrix_values(H, M, 1, HRK_TILED));

    for (uint32_t n : steps) {
        const Experts experts(n, E, K);
        const Rows rows(n, n * H, n * K * M, {}), back(n, n * K * M, n * K * H, {});
        hrk_gate_up_args a = {};
        hrk_down_args d = {};

        a.tables.step = rows.step();
        a.max_rows = n;
        a.w = {gate_up.data(), M, H, 2, E, layout};
        a.in = rows.in.data();
        a.routing = &experts.routing;
        a.h = rows.out.data();
        d.tables.step = back.step();
        d.max_rows = n;
        d.w = {down.data(), H, M, 1, E, layout};
        d.h = back.in.data();
        d.routing = &experts.routing;
        d.y = back.out.data();
        for (int v = hrk::PICK_VARIANT; v < hrk::GATE_UP_VARIANTS; v++)
            check(measure([&] { return hrk::gate_up_wgmma_as(&a, &ON, v); }), {M, H, 2, experts.counts(), 0, layout},
                  (uint64_t)2 * n * K * M);
        for (int v = hrk::PICK_VARIANT; v < hrk::LINEAR_VARIANTS; v++) {
            if (v < hrk::LINEAR_VARIANTS - 3) // the thin ones want an inner dimension of whole stages
                check(measure([&] { return hrk::down_wgmma_as(&d, &ON, v); }), {H, M, 1, experts.counts(), 0, layout},
                      (uint64_t)2 * n * K * H);
        }
    }
}

void experts_are_read_once_a_token_tile_of_theirs(void **)
{
    check_experts(HRK_TILED, STEPS);
}

// ---------------------------------------------------------------- conv_in and qkv

// Half of the rows in one prompt, the others each a generated row.
std::vector<hrk_span> mixed_spans(uint32_t n)
{
    const uint32_t prompt = n / 2;
    std::vector<hrk_span> spans;

    if (prompt > 0)
        spans.push_back({0, prompt, 0, 0, -1, 0, 0});
    for (uint32_t row = prompt; row < n; row++)
        spans.push_back({row, 1, row, (uint32_t)spans.size(), (int32_t)(200 + row), (int32_t)spans.size(), 0});
    return spans;
}

void check_conv_in(hrk_layout layout, const Steps &steps)
{
    enum { L = 3, N_STATES = 400 };
    const Zeros<hrk_bf16> weights(hrk_matrix_values(H, H, 3, HRK_TILED)), states((size_t)N_STATES * (L - 1) * H);
    const Zeros<float> taps(H * L);

    for (uint32_t n : steps) {
        const std::vector<hrk_span> spans = mixed_spans(n);
        const Rows rows(n, n * H, n * H, spans);
        const DeviceArray<uint32_t> row_span(RowTables(spans).span);
        hrk_conv_in_args a = {};

        a.tables.step = rows.step();
        a.tables.row_span = row_span.data();
        a.max_rows = n;
        a.w = {weights.data(), H, H, 3, 1, layout};
        a.in = rows.in.data();
        a.taps = taps.data();
        a.L = L;
        a.state = {states.data(), (L - 1) * H};
        a.y = rows.out.data();
        // y, and the state of every span. Token tiles overlap by L - 1 rows.
        for (int v = hrk::PICK_VARIANT; v < hrk::CONV_IN_VARIANTS; v++)
            check(measure([&] { return hrk::conv_in_as(&a, &ON, v); }), {H, H, 3, {n}, L - 1, layout},
                  (uint64_t)2 * n * H + spans.size() * 2 * (L - 1) * H);
    }
}

void conv_in_reads_its_weights_once_a_token_tile(void **)
{
    check_conv_in(HRK_TILED, STEPS);
}

void check_qkv(hrk_layout layout, const Steps &steps)
{
    enum { NQ = 8, NKV = 2, P = 16, PAGES = 10, OUT = (NQ + 2 * NKV) * HEAD, STRIDE = NKV * 2 * P * HEAD };
    const Zeros<hrk_bf16> weights(hrk_matrix_values(OUT, H, 1, HRK_TILED)), pool((size_t)PAGES * STRIDE);
    const Zeros<float> norm(HEAD), rope((size_t)PAGES * P * HEAD);

    for (uint32_t n : steps) {
        const uint32_t warmup = n / 4;
        const std::vector<hrk_span> spans = {{0, n, 0, 0, -1, 0, warmup}};
        const RowTables tables(spans);
        const Rows rows(n, n * H, n * NQ * HEAD, spans);
        const DeviceArray<uint32_t> row_span(tables.span), position(tables.position), pages(ids_of(PAGES));
        hrk_qkv_args a = {};

        a.tables.step = rows.step();
        a.tables.row_span = row_span.data();
        a.tables.row_position = position.data();
        a.tables.page_table = pages.data();
        a.tables.max_pages = PAGES;
        a.max_rows = n;
        a.w = {weights.data(), OUT, H, 1, 1, layout};
        a.k_layout = a.v_layout = layout;
        a.in = rows.in.data();
        a.q_norm = a.k_norm = norm.data();
        a.rope = rope.data();
        a.eps = 1e-5f;
        a.Nq = NQ;
        a.kv = {pool.data(), STRIDE, P, NKV, HEAD, true};
        a.q = rows.out.data();
        // q, and the keys and values of all but warm-up rows.
        for (int v = hrk::PICK_VARIANT; v < hrk::QKV_VARIANTS; v++)
            check(measure([&] { return hrk::qkv_as(&a, &ON, v); }), {OUT, H, 1, {n}, 0, layout},
                  (uint64_t)2 * n * NQ * HEAD + (uint64_t)2 * (n - warmup) * 2 * NKV * HEAD);
    }
}

void qkv_reads_its_weights_once_a_token_tile(void **)
{
    check_qkv(HRK_TILED, STEPS);
}

// Quantised weights are as many bytes as they are in memory, scales and all; tiles and tokens are those of bf16.
void quantised_weights_are_read_once_a_token_tile(void **)
{
    check_linear(HRK_TILED_Q4_K, {8, 130});
    check_gate_up(HRK_TILED_Q6_K, {40});
    check_experts(HRK_TILED_Q8_0, {40}); // an expert's columns are no multiple of 256
    check_experts(HRK_TILED_Q4_0, {8});
    check_conv_in(HRK_TILED_Q5_K, {40});
    check_qkv(HRK_TILED_Q4_K, {40});
}

// ---------------------------------------------------------------- which tile is picked

// The models' own shapes on an H100's 132 multiprocessors, launched without being run.
struct Shape {
    uint32_t rows, cols, n_groups, E, K;
};
uint64_t readings_picked(const Shape &s, uint32_t n, hrk_layout layout)
{
    const hrk_launch on = {nullptr, 132, false, false};
    const Zeros<hrk_bf16> some(64);
    hrk_matrix w = {some.data(), s.rows, s.cols, s.n_groups, s.E > 0 ? s.E : 1, layout};
    hrk_routing routing = {};
    hrk_linear_args l = {};
    hrk_gate_up_args a = {};
    hrk_down_args d = {};
    hrk_conv_in_args c = {};

    routing.E = s.E;
    routing.K = s.K;
    l.max_rows = a.max_rows = d.max_rows = c.max_rows = n;
    l.w = a.w = d.w = c.w = w;
    a.routing = s.E > 0 ? &routing : nullptr;
    d.routing = &routing;
    c.L = 3;
    simt::LaunchRecord r = {};
    emu_clear_trace();
    assert_int_equal(s.n_groups == 3   ? hrk_conv_in(&c, &on)
                     : s.n_groups == 2 ? hrk_gate_up(&a, &on)
                     : s.E > 0         ? hrk_down(&d, &on)
                                       : hrk_linear(&l, &on),
                     0);
    assert_int_equal(cudaDeviceSynchronize(), 0);
    assert_int_equal(emu_n_launches(), 1);
    r.kernel = emu_launch_at(0).name;
    return Tile(r).passes(s.E > 0 ? (uint32_t)ceil_div((uint64_t)n * s.K, s.E) : n, s.n_groups == 3 ? 2 : 0);
}

// Steps of up to 16 rows read every matrix once. Larger ones may cut the tokens of a matrix with few strips into a few
// tiles, to have work for every multiprocessor: neighbours in time, so that all but one reading is from the L2 cache,
// which is why there must not be many; of quantised ones, which are half the bytes or less and expanded by whoever has
// nothing else to do, twice as many. Experts' even shares fit one tile.
void few_rows_are_one_tile_of_tokens(void **)
{
    const Shape shapes[] = {{2048, 2048, 1, 0, 0},  {2048, 11776, 1, 0, 0}, {65536, 2048, 1, 0, 0},
                            {3072, 2048, 1, 0, 0},  {11776, 2048, 2, 0, 0}, {2048, 2048, 3, 0, 0},
                            {1024, 1024, 1, 0, 0},  {4608, 1024, 2, 0, 0},  {1024, 1024, 3, 0, 0},
                            {1536, 2048, 2, 64, 4}, {2048, 1536, 1, 64, 4}, {1792, 2048, 2, 32, 4},
                            {2048, 1792, 1, 32, 4}};

    emu_skip_kernels(true);
    for (const Shape &s : shapes) {
        for (uint32_t n : {1u, 8u, 16u, 32u, 64u, 128u, 256u}) {
            for (hrk_layout layout : {HRK_TILED, HRK_TILED_Q4_K, HRK_TILED_Q8_0}) {
                const uint64_t few = layout == HRK_TILED ? 2 : 4, more = layout == HRK_TILED ? 5 : 8;
                const uint64_t most = s.E > 0 || n <= 16 ? 1 : n <= 64 ? few : more;
                const uint64_t readings = readings_picked(s, n, layout);

                if (readings > most)
                    fail_msg("%u x %u x %u, %u experts, %u rows, layout %d: %u readings of the weights, at most %u",
                             s.n_groups, s.rows, s.cols, s.E, n, (int)layout, (unsigned)readings, (unsigned)most);
            }
        }
    }
    emu_skip_kernels(false);
    emu_clear_trace();
}

// ---------------------------------------------------------------- row-major weights

// MmaShape<BM, BN, ...>: BM weight rows, of which gate's and up's are half each, by BN tokens. Weights and tokens both
// go by cp.async; rows that do not exist are not read.
Traffic portable_traffic(const simt::LaunchRecord &r, const Work &w)
{
    const std::vector<uint32_t> shape = shape_of(r);
    const uint64_t BM = shape[0], BN = shape[1], ld = hrk_ld(w.cols);
    const uint64_t m_tiles = ceil_div(hrk_ld(w.rows), BM / w.n_groups);
    Traffic traffic;

    for (uint32_t n : w.tokens) {
        traffic.cp_async += ceil_div(n, BN) * w.n_groups * w.rows * ld * 2 + m_tiles * n * ld * 2;
        traffic.mma += ceil_div(n, BN) * m_tiles * 2 * BM * BN * ld;
    }
    traffic.written = sum(w.tokens) * hrk_ld(w.rows) * 2;
    return traffic;
}

void portable_products_read_their_weights_once_a_token_tile(void **)
{
    enum { E = 8, K = 2, M = 200 };
    const Zeros<hrk_bf16> weights((size_t)E * 2 * F * H);

    for (uint32_t n_sms : {1u, 16u, 1000u}) {
        const hrk_launch on = {nullptr, n_sms, false, false};

        for (uint32_t n : STEPS) {
            const Experts experts(n, E, K);
            const Rows rows(n, n * K * hrk_ld(F), n * K * hrk_ld(F), {});
            hrk_linear_args l = {};
            hrk_gate_up_args a = {};
            hrk_down_args d = {};

            l.tables.step = a.tables.step = d.tables.step = rows.step();
            l.max_rows = a.max_rows = d.max_rows = n;
            l.in = a.in = d.h = rows.in.data();
            l.out = a.h = d.y = rows.out.data();
            l.w = {weights.data(), F, H, 1, 1, HRK_ROW_MAJOR};
            a.w = {weights.data(), M, H, 2, 1, HRK_ROW_MAJOR};
            d.w = {weights.data(), H, M, 1, E, HRK_ROW_MAJOR};
            d.routing = &experts.routing;
            auto hold = [](const simt::LaunchRecord &r, const Work &w) { expect_traffic(r, portable_traffic(r, w)); };
            hold(measure([&] { return hrk::linear_mma(&l, &on); }), {F, H, 1, {n}, 0});
            hold(measure([&] { return hrk::gate_up_mma(&a, &on); }), {M, H, 2, {n}, 0});
            hold(measure([&] { return hrk::down_mma(&d, &on); }), {H, M, 1, experts.counts(), 0});
            a.w.n_stack = E;
            a.routing = &experts.routing;
            hold(measure([&] { return hrk::gate_up_mma(&a, &on); }), {M, H, 2, experts.counts(), 0});
        }
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(linear_reads_its_weights_once_a_token_tile),
        cmocka_unit_test(a_residual_is_read_once),
        cmocka_unit_test(dense_gate_and_up_are_read_once_a_token_tile),
        cmocka_unit_test(experts_are_read_once_a_token_tile_of_theirs),
        cmocka_unit_test(conv_in_reads_its_weights_once_a_token_tile),
        cmocka_unit_test(qkv_reads_its_weights_once_a_token_tile),
        cmocka_unit_test(quantised_weights_are_read_once_a_token_tile),
        cmocka_unit_test(few_rows_are_one_tile_of_tokens),
        cmocka_unit_test(portable_products_read_their_weights_once_a_token_tile),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
