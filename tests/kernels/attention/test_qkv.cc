// hrk_qkv: in every variant, and for a row whoever is beside it, the bits of hrk_qk_rope over the products of
// hrk::linear_wgmma, each of which has a test against plain loops.
#include "kernels/attention/pages.h"
#include "kernels/support/quantised_matrix.h"
#include "kernels/support/step_block.h"
#include "kernels/support/tiled_matrix.h"

#include "linear/wgmma.h"

using namespace hrk_test;

namespace
{

enum { D = 64, POSITIONS = 300, SLOTS = 4, PAGE = 16, PAGES_A_SLOT = 20 };

// Where hrk_pack's pair_rotary keeps a dimension of a head.
uint32_t stored_row(uint32_t d)
{
    return d < 32 ? d / 8 * 16 + d % 8 : (d - 32) / 8 * 16 + 8 + d % 8;
}

// Queries, keys and values, each of a format of its own, one after the other in memory.
struct QuantisedHeads {
    QuantisedMatrix q, k, v;
    DeviceArray<uint8_t> all;

    QuantisedHeads(const QuantisedFormat (&formats)[3], uint32_t Nq, uint32_t Nkv, uint32_t cols)
        : q(formats[0], Nq * D, cols, 1, 1, 1, true), k(formats[1], Nkv * D, cols, 1, 1, 2, true),
          v(formats[2], Nkv * D, cols, 1, 1, 3, true), all(q.bytes() + k.bytes() + v.bytes())
    {
        std::vector<uint8_t> bytes = q.packed.get();

        for (const QuantisedMatrix *m : {&k, &v}) {
            const std::vector<uint8_t> more = m->packed.get();

            bytes.insert(bytes.end(), more.begin(), more.end());
        }
        all.put(bytes);
    }
    Matrix plain() const
    {
        Matrix m(q.plain.rows + 2 * k.plain.rows, q.plain.cols, 1, 1, 0);

        m.values = q.plain.values;
        m.values.insert(m.values.end(), k.plain.values.begin(), k.plain.values.end());
        m.values.insert(m.values.end(), v.plain.values.begin(), v.plain.values.end());
        return m;
    }
};

struct Layer {
    uint32_t Nq, Nkv;
    bool exact;
    Matrix matrix;
    DeviceArray<hrk_bf16> weights, plain_weights;
    DeviceArray<float> q_norm, k_norm, rope;
    const QuantisedHeads *quantised = nullptr; // the same values, and what runs

    Layer(uint32_t Nq_, uint32_t Nkv_, uint32_t cols, bool exact_)
        : Layer(Nq_, Nkv_, exact_, Matrix((Nq_ + 2 * Nkv_) * D, cols, 1, 1, Nq_ + cols))
    {
    }
    Layer(uint32_t Nq_, uint32_t Nkv_, bool exact_, const Matrix &matrix_)
        : Nq(Nq_), Nkv(Nkv_), exact(exact_), matrix(matrix_), weights(matrix.tiled(stored_row)),
          plain_weights(matrix.tiled()), q_norm(D), k_norm(D), rope(POSITIONS * D)
    {
        Random random(Nq);
        std::vector<float> q, k, angles;

        for (uint32_t i = 0; i < D; i++) {
            q.push_back(1.0f + 0.2f * random.normal());
            k.push_back(1.0f + 0.2f * random.normal());
        }
        for (uint32_t i = 0; i < POSITIONS * D; i++) {
            const double angle = i / D * pow(10000.0, -2.0 * (i % 32) / D);

            angles.push_back((float)(i % D < 32 ? cos(angle) : sin(angle)));
        }
        q_norm.put(q);
        k_norm.put(k);
        rope.put(angles);
    }
};

struct Result {
    std::vector<hrk_bf16> q, pool;
};

// What both ways need on the device.
struct Step {
    RowTables rows;
    uint32_t n;
    StepBlock block;
    DeviceArray<uint32_t> row_span, row_position, table;
    DeviceArray<hrk_bf16> in, q, pool;

    Step(const Layer &layer, const Pages &pages, const std::vector<hrk_bf16> &x, const std::vector<hrk_span> &spans)
        : rows(spans), n((uint32_t)rows.span.size()), row_span(rows.span), row_position(rows.position),
          table(pages.table), in(x), q((size_t)(n + 1) * layer.Nq * D), pool(pages.values())
    {
        block.set_spans(spans);
    }
    hrk_tables tables(const DeviceArray<unsigned char> &upload, const Pages &pages) const
    {
        hrk_tables t = {};

        t.step = as_step(upload);
        t.row_span = row_span.data();
        t.row_position = row_position.data();
        t.page_table = table.data();
        t.max_pages = pages.max_pages;
        return t;
    }
    Result result() const
    {
        const Result r = {q.get(), pool.get()};

        for (size_t i = q.size() - q.size() / (n + 1); i < r.q.size(); i++)
            assert_int_equal(r.q[i], UNTOUCHED);
        return r;
    }
};

Result run(const Layer &layer, const Pages &pages, const std::vector<hrk_bf16> &x, const std::vector<hrk_span> &spans,
           int variant, uint32_t n_sms = 4)
{
    const Step step(layer, pages, x, spans);
    DeviceArray<unsigned char> upload(step.block.bytes());
    const hrk_launch on = {nullptr, n_sms, true, false};
    hrk_qkv_args args = {};

    args.tables = step.tables(upload, pages);
    args.max_rows = step.n;
    args.w = layer.matrix.describe(layer.weights.data(), HRK_TILED);
    if (layer.quantised) {
        args.w = layer.matrix.describe(reinterpret_cast<const hrk_bf16 *>(layer.quantised->all.data()),
                                       layer.quantised->q.format.layout);
        args.k_layout = layer.quantised->k.format.layout;
        args.v_layout = layer.quantised->v.format.layout;
    }
    args.in = step.in.data();
    args.q_norm = layer.q_norm.data();
    args.k_norm = layer.k_norm.data();
    args.eps = 1e-5f;
    args.rope = layer.rope.data();
    args.exact_rope = layer.exact;
    args.Nq = layer.Nq;
    args.kv = pages.kv(step.pool.data());
    args.q = step.q.data();
    run_to_end(hrk::qkv_as(&args, &on, variant));
    return step.result();
}

Result in_two_steps(const Layer &layer, const Pages &pages, const std::vector<hrk_bf16> &x,
                    const std::vector<hrk_span> &spans)
{
    const Step step(layer, pages, x, spans);
    DeviceArray<unsigned char> upload(step.block.bytes());
    DeviceArray<hrk_bf16> products((size_t)step.n * layer.matrix.rows);
    const hrk_launch on = {nullptr, 4, true, false};
    hrk_linear_args linear = {};
    hrk_qk_rope_args args = {};

    linear.tables = step.tables(upload, pages);
    linear.max_rows = step.n;
    linear.w = layer.matrix.describe(layer.plain_weights.data(), HRK_TILED);
    linear.in = step.in.data();
    linear.out = products.data();
    run_to_end(hrk::linear_wgmma_as(&linear, &on, 0));
    args.tables = linear.tables;
    args.max_rows = step.n;
    args.qkv = products.data();
    args.q_norm = layer.q_norm.data();
    args.k_norm = layer.k_norm.data();
    args.eps = 1e-5f;
    args.rope = layer.rope.data();
    args.exact_rope = layer.exact;
    args.Nq = layer.Nq;
    args.kv = pages.kv(step.pool.data());
    args.q = step.q.data();
    run_to_end(hrk_qk_rope(&args, &on));
    return step.result();
}

void expect_same(const Result &a, const Result &b)
{
    expect_same_bits(a.q, b.q);
    expect_same_bits(a.pool, b.pool);
}

// Spans that begin inside a page, cross pages, and have warm-up rows; the last as long as is asked for.
std::vector<hrk_span> spans_with(uint32_t n_last)
{
    std::vector<hrk_span> spans = {{0, 1, 17, 2, -1, 0, 0}, {1, 9, 12, 0, -1, 0, 3}, {10, 1, 0, 3, -1, 0, 0}};

    if (n_last > 0)
        spans.push_back({11, n_last, 5, 1, -1, 0, 2});
    return spans;
}

void every_variant_has_the_bits_of_two_kernels(void **)
{
    const struct {
        uint32_t Nq, Nkv, cols, n_last;
        bool exact, swizzled;
    } cases[] = {{4, 2, 64, 0, false, true},
                 {3, 1, 32, 6, true, false},
                 {2, 1, 192, 30, false, true},
                 {1, 1, 128, 200, true, true},
                 {6, 2, 96, 60, false, false}};

    for (const auto &c : cases) {
        const Layer layer(c.Nq, c.Nkv, c.cols, c.exact);
        const Pages pages(PAGE, c.Nkv, D, c.swizzled, SLOTS, PAGES_A_SLOT);
        const std::vector<hrk_span> spans = spans_with(c.n_last);
        Random random(c.cols);
        const std::vector<hrk_bf16> x = random_rows(random, 11 + c.n_last, c.cols, 1.0f);
        const Result want = in_two_steps(layer, pages, x, spans);

        for (int v = hrk::PICK_VARIANT; v < hrk::QKV_VARIANTS; v++)
            expect_same(run(layer, pages, x, spans, v), want);
    }
}

void quantised_heads_of_three_formats_give_the_bits_of_their_bf16_values(void **)
{
    const QuantisedFormat(&f)[5] = QUANTISED_FORMATS;
    const struct {
        QuantisedFormat formats[3];
        uint32_t Nq, Nkv, n_last;
    } cases[] = {{{f[2], f[2], f[4]}, 4, 2, 6}, {{f[0], f[3], f[1]}, 3, 1, 150}, {{f[4], f[1], f[0]}, 1, 1, 0}};

    for (const auto &c : cases) {
        const QuantisedHeads heads(c.formats, c.Nq, c.Nkv, 256);
        const Layer plain(c.Nq, c.Nkv, false, heads.plain());
        Layer layer(c.Nq, c.Nkv, false, plain.matrix);
        const Pages pages(PAGE, c.Nkv, D, true, SLOTS, PAGES_A_SLOT);
        const std::vector<hrk_span> spans = spans_with(c.n_last);
        Random random(c.Nq);
        const std::vector<hrk_bf16> x = random_rows(random, 11 + c.n_last, 256, 1.0f);
        const Result want = run(plain, pages, x, spans, 0);

        layer.quantised = &heads;
        for (int v = hrk::PICK_VARIANT; v < hrk::QKV_VARIANTS; v++)
            expect_same(run(layer, pages, x, spans, v), want);
    }
}

void a_single_block_works_through_all_tiles(void **)
{
    const Layer layer(3, 2, 128, false);
    const Pages pages(PAGE, 2, D, true, SLOTS, PAGES_A_SLOT);
    const std::vector<hrk_span> spans = spans_with(190);
    Random random(1);
    const std::vector<hrk_bf16> x = random_rows(random, 201, 128, 1.0f);
    const Result want = in_two_steps(layer, pages, x, spans);

    for (int v = 0; v < hrk::QKV_VARIANTS; v++)
        expect_same(run(layer, pages, x, spans, v, 1), want);
}

void a_row_has_the_same_bits_alone_and_among_strangers(void **)
{
    const Layer layer(2, 1, 64, false);
    const Pages pages(PAGE, 1, D, true, SLOTS, PAGES_A_SLOT);
    const std::vector<hrk_span> spans = spans_with(120);
    const RowTables rows(spans);
    Random random(2);
    const std::vector<hrk_bf16> x = random_rows(random, 131, 64, 1.0f);
    const Result all = run(layer, pages, x, spans, hrk::PICK_VARIANT);

    for (uint32_t row : {0u, 5u, 12u, 77u, 130u}) {
        const Result one = run(layer, pages, part(x, row * 64, 64),
                               {{0, 1, rows.position[row], spans[rows.span[row]].slot, -1, 0, 0}}, hrk::PICK_VARIANT);

        expect_same_bits(part(one.q, 0, 2 * D), part(all.q, row * 2 * D, 2 * D));
    }
}

void a_step_without_rows_writes_nothing(void **)
{
    const Layer layer(2, 1, 64, false);
    const Pages pages(PAGE, 1, D, true, SLOTS, PAGES_A_SLOT);
    DeviceArray<unsigned char> upload(step_block(0, 0));
    DeviceArray<hrk_bf16> in(64), q(2 * D), pool(pages.values());
    const hrk_launch on = {nullptr, 4, true, false};
    hrk_qkv_args args = {};

    args.tables.step = as_step(upload);
    args.w = layer.matrix.describe(layer.weights.data(), HRK_TILED);
    args.in = in.data();
    args.Nq = 2;
    args.kv = pages.kv(pool.data());
    args.q = q.data();
    for (int v = 0; v < hrk::QKV_VARIANTS; v++) {
        for (uint32_t max_rows : {0u, 1u, 16u}) {
            args.max_rows = max_rows;
            run_to_end(hrk::qkv_as(&args, &on, v));
        }
    }
    assert_padding_and_strangers(q.get(), 0, 2 * D);
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_qkv_args good = {};

    good.max_rows = 4;
    good.w = hrk_matrix{nullptr, 4 * D, 64, 1, 1, HRK_TILED};
    good.Nq = 2;
    good.kv = hrk_kv{nullptr, 2 * 16 * D, 16, 1, D, true};
    for (int i = 0; i < 6; i++) {
        hrk_qkv_args args = good;

        if (i == 0)
            args.kv.D = 128;
        else if (i == 1)
            args.w.rows = 3 * D;
        else if (i == 2)
            args.w.layout = HRK_ROW_MAJOR;
        else if (i == 3)
            args.kv.P = 0;
        else if (i == 4)
            args.w.layout = HRK_TILED_Q8_0; // and keys and values of no format
        else
            args.kv.page_stride = 2 * 16 * D + 4;
        assert_int_equal(hrk_qkv(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_has_the_bits_of_two_kernels),
        cmocka_unit_test(quantised_heads_of_three_formats_give_the_bits_of_their_bf16_values),
        cmocka_unit_test(a_single_block_works_through_all_tiles),
        cmocka_unit_test(a_row_has_the_same_bits_alone_and_among_strangers),
        cmocka_unit_test(a_step_without_rows_writes_nothing),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
