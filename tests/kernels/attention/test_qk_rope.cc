// hrk_qk_rope: against a plain loop with the stated roundings, pages and warm-up rows, both page layouts, any head
// size.
#include "kernels/attention/pages.h"
#include "kernels/support/step_block.h"

using namespace hrk_test;

namespace
{

const float EPS = 1e-5f;
enum { POSITIONS = 90, SLOTS = 4 };

struct Model {
    uint32_t Nq, Nkv, D;
    bool exact;
    std::vector<float> q_norm, k_norm, rope;
};

Model make_model(uint32_t Nq, uint32_t Nkv, uint32_t D, bool exact)
{
    Random random(D);
    Model m = {Nq, Nkv, D, exact, {}, {}, std::vector<float>((size_t)POSITIONS * D)};

    for (uint32_t i = 0; i < D; i++) {
        m.q_norm.push_back(1.0f + 0.2f * random.normal());
        m.k_norm.push_back(1.0f + 0.2f * random.normal());
    }
    for (uint32_t t = 0; t < POSITIONS; t++) {
        for (uint32_t j = 0; j < D / 2; j++) {
            const double angle = t * pow(10000.0, -2.0 * j / D);

            m.rope[(size_t)t * D + j] = (float)cos(angle);
            m.rope[(size_t)t * D + D / 2 + j] = (float)sin(angle);
        }
    }
    return m;
}

// Spans that begin inside a page, cross pages, and have warm-up rows.
const std::vector<hrk_span> SPANS = {
    {0, 1, 17, 2, -1, 0, 0}, {1, 9, 12, 0, -1, 0, 3}, {10, 1, 0, 3, -1, 0, 0}, {11, 2, 70, 1, -1, 0, 2}};
enum { N_ROWS = 13 };

struct Result {
    std::vector<hrk_bf16> q, k, v, pool;
};

Result run(const Model &m, const Pages &pages, const std::vector<hrk_bf16> &qkv, const std::vector<hrk_span> &spans,
           bool wants_plain = true)
{
    const RowTables rows(spans);
    const uint32_t n = (uint32_t)rows.span.size();
    const size_t q_ld = hrk_ld(m.Nq * m.D), kv_ld = hrk_ld(m.Nkv * m.D);
    StepBlock block;
    block.set_spans(spans);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<uint32_t> row_span(rows.span), row_position(rows.position), table(pages.table);
    DeviceArray<float> q_norm(m.q_norm), k_norm(m.k_norm), rope(m.rope);
    DeviceArray<hrk_bf16> in(qkv), pool(pages.values()), q((n + 1) * q_ld), k((n + 1) * kv_ld), v((n + 1) * kv_ld);
    hrk_qk_rope_args args = {};
    const hrk_launch on = {nullptr, 4, true, false};
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.tables.row_span = row_span.data();
    args.tables.row_position = row_position.data();
    args.tables.page_table = table.data();
    args.tables.max_pages = pages.max_pages;
    args.max_rows = n + 4;
    args.qkv = in.data();
    args.q_norm = q_norm.data();
    args.k_norm = k_norm.data();
    args.eps = EPS;
    args.rope = rope.data();
    args.exact_rope = m.exact;
    args.Nq = m.Nq;
    args.kv = pages.kv(pool.data());
    args.q = q.data();
    args.k_out = wants_plain ? k.data() : nullptr;
    args.v_out = wants_plain ? v.data() : nullptr;
    assert_int_equal(hrk_qk_rope(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const Result r = {q.get(), k.get(), v.get(), pool.get()};
    for (size_t i = n * q_ld; i < r.q.size(); i++)
        assert_int_equal(r.q[i], UNTOUCHED);
    return {part(r.q, 0, n * q_ld), part(r.k, 0, n * kv_ld), part(r.v, 0, n * kv_ld), r.pool};
}

// Equations 9 and 10 for one head in double; exact mode with its roundings.
std::vector<double> turned(const Model &m, const hrk_bf16 *x, const std::vector<float> &weight, uint32_t position)
{
    const uint32_t D = m.D, half = D / 2;
    std::vector<double> n(D), y(D);
    double squares = 0;

    for (uint32_t d = 0; d < D; d++)
        squares += pow((double)bf16_value(x[d]), 2);
    for (uint32_t d = 0; d < D; d++) {
        const float scaled = bf16_rounded((float)((double)bf16_value(x[d]) / sqrt(squares / D + (double)EPS)));

        n[d] = (double)bf16_rounded(scaled * weight[d]);
    }
    for (uint32_t j = 0; j < half; j++) {
        const float c = m.rope[(size_t)position * D + j], s = m.rope[(size_t)position * D + half + j];

        if (m.exact) {
            const float cb = bf16_rounded(c), sb = bf16_rounded(s), low = (float)n[j], high = (float)n[j + half];

            y[j] = (double)bf16_rounded(bf16_rounded(low * cb) - bf16_rounded(high * sb));
            y[j + half] = (double)bf16_rounded(bf16_rounded(high * cb) + bf16_rounded(low * sb));
        } else {
            y[j] = n[j] * (double)c - n[j + half] * (double)s;
            y[j + half] = n[j + half] * (double)c + n[j] * (double)s;
        }
    }
    return y;
}

void append(std::vector<double> &out, const std::vector<hrk_bf16> &from, size_t at, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        out.push_back((double)bf16_value(from[at + i]));
}

void check_padding(const std::vector<hrk_bf16> &rows, uint32_t n)
{
    for (size_t i = 0; i < rows.size(); i++) {
        if (i % hrk_ld(n) >= n)
            assert_int_equal(rows[i], 0);
    }
}

// q, k and v against the equations; the pages against k and v, bit for bit, and nothing else in them touched.
void check(const Model &m, const Pages &pages)
{
    const uint32_t D = m.D, heads = m.Nq + 2 * m.Nkv;
    const size_t q_ld = hrk_ld(m.Nq * D), kv_ld = hrk_ld(m.Nkv * D), ld = hrk_ld(heads * D);
    const RowTables rows(SPANS);
    Random random(D + 1);
    const std::vector<hrk_bf16> qkv = random_rows(random, N_ROWS, heads * D, 2.0f);
    const Result got = run(m, pages, qkv, SPANS);
    std::vector<hrk_bf16> pool(pages.values(), UNTOUCHED);
    std::vector<double> out, want;

    for (uint32_t row = 0; row < N_ROWS; row++) {
        const hrk_span &span = SPANS[rows.span[row]];

        for (uint32_t h = 0; h < m.Nq + m.Nkv; h++) {
            const std::vector<double> y =
                turned(m, &qkv[row * ld + h * D], h < m.Nq ? m.q_norm : m.k_norm, rows.position[row]);

            want.insert(want.end(), y.begin(), y.end());
            if (h < m.Nq)
                append(out, got.q, row * q_ld + h * D, D);
            else
                append(out, got.k, row * kv_ld + (h - m.Nq) * D, D);
        }
        for (uint32_t i = 0; i < m.Nkv * D; i++)
            assert_int_equal(got.v[row * kv_ld + i], qkv[row * ld + (m.Nq + m.Nkv) * D + i]);
        for (uint32_t i = 0; i < m.Nkv * D && row - span.first_row >= span.n_warmup; i++) {
            pool[pages.at(span.slot, rows.position[row], i / D, 0, i % D)] = got.k[row * kv_ld + i];
            pool[pages.at(span.slot, rows.position[row], i / D, 1, i % D)] = got.v[row * kv_ld + i];
        }
    }
    expect_close(out, want);
    expect_same_bits(got.pool, pool);
    check_padding(got.q, m.Nq * D);
    check_padding(got.k, m.Nkv * D);
    check_padding(got.v, m.Nkv * D);
    const Result again = run(m, pages, qkv, SPANS, false);
    expect_same_bits(again.q, got.q);
    expect_same_bits(again.pool, got.pool);
}

void heads_of_64_go_to_both_page_layouts(void **)
{
    for (bool swizzled : {false, true}) {
        check(make_model(4, 2, 64, false), Pages(16, 2, 64, swizzled, SLOTS, 6));
        check(make_model(3, 1, 64, false), Pages(64, 1, 64, swizzled, SLOTS, 2));
        check(make_model(32, 8, 64, true), Pages(12, 8, 64, swizzled, SLOTS, 8));
    }
}

void any_even_head_size_is_turned(void **)
{
    for (uint32_t D : {2u, 10u, 16u, 32u, 48u, 80u, 128u, 130u, 256u}) {
        check(make_model(3, 2, D, false), Pages(16, 2, D, false, SLOTS, 6));
        check(make_model(1, 1, D, true), Pages(16, 1, D, false, SLOTS, 6));
    }
}

// The first pair of position 0 is not turned at all: cosine 1, sine 0.
void position_zero_is_only_normalised(void **)
{
    const Model m = make_model(1, 1, 64, false);
    const Pages pages(16, 1, 64, false, 1, 1);
    std::vector<hrk_bf16> qkv(hrk_ld(3 * 64), bf16_bits(2.0f));
    const Result got = run(m, pages, qkv, {{0, 1, 0, 0, -1, 0, 0}});

    for (uint32_t d = 0; d < 64; d++)
        assert_int_equal(got.q[d], bf16_bits(m.q_norm[d]));
}

void a_row_alone_has_the_bits_it_has_among_strangers(void **)
{
    for (uint32_t D : {64u, 48u}) {
        const Model m = make_model(5, 2, D, false);
        const Pages pages(16, 2, D, false, SLOTS, 6);
        const size_t ld = hrk_ld(9 * D), q_ld = hrk_ld(5 * D), kv_ld = hrk_ld(2 * D);
        const RowTables rows(SPANS);
        Random random(5);
        const std::vector<hrk_bf16> qkv = random_rows(random, N_ROWS, 9 * D, 2.0f);
        const Result all = run(m, pages, qkv, SPANS);

        for (uint32_t row = 0; row < N_ROWS; row++) {
            const hrk_span span = {0, 1, rows.position[row], SPANS[rows.span[row]].slot, -1, 0, 0};
            const Result one = run(m, pages, part(qkv, row * ld, ld), {span});

            expect_same_bits(one.q, part(all.q, row * q_ld, q_ld));
            expect_same_bits(one.k, part(all.k, row * kv_ld, kv_ld));
            expect_same_bits(one.v, part(all.v, row * kv_ld, kv_ld));
        }
    }
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_qk_rope_args good = {};

    good.max_rows = 4;
    good.Nq = 4;
    good.kv = {nullptr, 1024, 16, 2, 64, true};
    for (int i = 0; i < 6; i++) {
        hrk_qk_rope_args args = good;

        if (i == 0)
            args.kv.D = 63;
        else if (i == 1)
            args.kv.D = 258;
        else if (i == 2)
            args.kv.D = 128; // swizzled
        else if (i == 3)
            args.kv.page_stride = 1028;
        else if (i == 4)
            args.kv.P = 0;
        else
            args.max_rows = 0;
        assert_int_equal(hrk_qk_rope(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(heads_of_64_go_to_both_page_layouts),
        cmocka_unit_test(any_even_head_size_is_turned),
        cmocka_unit_test(position_zero_is_only_normalised),
        cmocka_unit_test(a_row_alone_has_the_bits_it_has_among_strangers),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
