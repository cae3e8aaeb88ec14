// hrk_attention_simple: against the equations in double for any head size and grouping, and the same bits for a row in
// any company, as a decode item or in a prefill tile.
#include "kernels/attention/pages.h"
#include "kernels/support/step_block.h"

using namespace hrk_test;

namespace
{

struct Model {
    uint32_t Nq;
    Pages pages;
    std::vector<uint32_t> lengths; // keys of a slot; NaN beyond
    std::vector<hrk_bf16> pool;
};

Model make_model(uint32_t Nq, const Pages &pages, const std::vector<uint32_t> &lengths)
{
    Random random(pages.D + Nq);
    Model m = {Nq, pages, lengths, std::vector<hrk_bf16>(pages.values(), UNTOUCHED)};

    for (uint32_t slot = 0; slot < lengths.size(); slot++) {
        for (uint32_t t = 0; t < lengths[slot]; t++) {
            for (uint32_t i = 0; i < pages.Nkv * pages.D; i++) {
                m.pool[pages.at(slot, t, i / pages.D, 0, i % pages.D)] = bf16_bits(random.normal());
                m.pool[pages.at(slot, t, i / pages.D, 1, i % pages.D)] = bf16_bits(random.normal());
            }
        }
    }
    return m;
}

// A row: sequence and how many keys it sees.
struct Row {
    uint32_t slot, n_keys;
};

struct Work {
    std::vector<Row> rows;
    std::vector<hrk_decode_item> decode;
    std::vector<hrk_prefill_tile> prefill;
};

void add_decode(Work &w, uint32_t slot, uint32_t n_keys)
{
    w.decode.push_back({(uint32_t)w.rows.size(), slot, n_keys, 0});
    w.rows.push_back({slot, n_keys});
}
void add_prefill(Work &w, uint32_t slot, uint32_t first_position, uint32_t n)
{
    w.prefill.push_back({(uint32_t)w.rows.size(), n, slot, first_position});
    for (uint32_t i = 0; i < n; i++)
        w.rows.push_back({slot, first_position + i + 1});
}

// The query of a row depends on its sequence and position alone.
std::vector<hrk_bf16> queries(const Model &m, const std::vector<Row> &rows)
{
    std::vector<hrk_bf16> q;

    for (const Row &row : rows) {
        Random random(row.slot * 10007u + row.n_keys);
        const std::vector<hrk_bf16> one = random_rows(random, 1, m.Nq * m.pages.D, 1.5f);

        q.insert(q.end(), one.begin(), one.end());
    }
    return q;
}

std::vector<hrk_bf16> run(const Model &m, const Work &w, uint32_t spare = 2)
{
    const uint32_t n = (uint32_t)w.rows.size();
    const size_t ld = hrk_ld(m.Nq * m.pages.D);
    StepBlock block;
    block.step.n_rows = n;
    block.step.n_decode_items = (uint32_t)w.decode.size();
    block.step.n_prefill_tiles = (uint32_t)w.prefill.size();
    block.step.decode_at = block.add(w.decode);
    block.step.prefill_at = block.add(w.prefill);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<uint32_t> table(m.pages.table);
    DeviceArray<hrk_bf16> pool(m.pool), q(queries(m, w.rows)), out((n + 1) * ld);
    hrk_attention_args args = {};
    const hrk_launch on = {nullptr, 4, true, false};
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.tables.page_table = table.data();
    args.tables.max_pages = m.pages.max_pages;
    args.max_decode_items = (uint32_t)w.decode.size() + spare;
    args.max_prefill_tiles = (uint32_t)w.prefill.size() + spare / 2;
    args.q = q.data();
    args.Nq = m.Nq;
    args.kv = m.pages.kv(pool.data());
    args.out = out.data();
    assert_int_equal(hrk_attention_simple(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<hrk_bf16> got = out.get();
    for (size_t i = n * ld; i < got.size(); i++)
        assert_int_equal(got[i], UNTOUCHED);
    return part(got, 0, n * ld);
}

// Equations 11 to 13 for one row and head.
void attend(const Model &m, const Row &row, const hrk_bf16 *q, uint32_t head, std::vector<double> &out)
{
    const uint32_t D = m.pages.D, b = head / (m.Nq / m.pages.Nkv);
    std::vector<double> p(row.n_keys), o(D, 0.0);
    double top = -HUGE_VAL, sum = 0;

    for (uint32_t t = 0; t < row.n_keys; t++) {
        for (uint32_t d = 0; d < D; d++)
            p[t] += (double)bf16_value(q[d]) * (double)bf16_value(m.pool[m.pages.at(row.slot, t, b, 0, d)]);
        p[t] /= sqrt(D);
        top = p[t] > top ? p[t] : top;
    }
    for (uint32_t t = 0; t < row.n_keys; t++)
        sum += p[t] = exp(p[t] - top);
    for (uint32_t t = 0; t < row.n_keys; t++) {
        for (uint32_t d = 0; d < D; d++)
            o[d] += p[t] / sum * (double)bf16_value(m.pool[m.pages.at(row.slot, t, b, 1, d)]);
    }
    out.insert(out.end(), o.begin(), o.end());
}

void check(const Model &m, const Work &w)
{
    const uint32_t D = m.pages.D;
    const size_t ld = hrk_ld(m.Nq * D);
    const std::vector<hrk_bf16> q = queries(m, w.rows), got = run(m, w);

    for (size_t row = 0; row < w.rows.size(); row++) {
        std::vector<double> out, want;

        for (uint32_t h = 0; h < m.Nq; h++)
            attend(m, w.rows[row], &q[row * ld + h * D], h, want);
        for (uint32_t i = 0; i < m.Nq * D; i++)
            out.push_back((double)bf16_value(got[row * ld + i]));
        expect_close(out, want);
        for (size_t i = m.Nq * D; i < ld; i++)
            assert_int_equal(got[row * ld + i], 0);
    }
}

Work mixed_work()
{
    Work w;

    add_decode(w, 0, 1);
    add_decode(w, 1, 300);
    add_prefill(w, 2, 60, 7);
    add_decode(w, 3, 64);
    add_prefill(w, 0, 1, 1);
    add_decode(w, 3, 65);
    return w;
}
const std::vector<uint32_t> LENGTHS = {2, 300, 67, 65};

void rows_of_every_kind_attend_over_both_page_layouts(void **)
{
    for (bool swizzled : {false, true}) {
        check(make_model(4, Pages(16, 1, 64, swizzled, 4, 19), LENGTHS), mixed_work());
        check(make_model(6, Pages(64, 2, 64, swizzled, 4, 5), LENGTHS), mixed_work());
    }
}

void any_grouping_of_query_heads_is_served(void **)
{
    for (uint32_t group : {1u, 2u, 5u, 8u, 9u})
        check(make_model(group * 2, Pages(16, 2, 32, false, 4, 19), LENGTHS), mixed_work());
}

void any_even_head_size_attends(void **)
{
    for (uint32_t D : {2u, 10u, 32u, 72u, 98u, 128u, 130u, 200u, 256u})
        check(make_model(2, Pages(20, 1, D, false, 4, 15), LENGTHS), mixed_work());
}

std::vector<hrk_bf16> row_of(const Model &m, const std::vector<hrk_bf16> &rows, size_t row)
{
    const size_t ld = hrk_ld(m.Nq * m.pages.D);

    return part(rows, row * ld, ld);
}

void a_row_has_the_same_bits_in_any_company_and_as_either_kind(void **)
{
    const Model m = make_model(4, Pages(16, 2, 64, true, 4, 19), LENGTHS);
    const Work all = mixed_work();
    const std::vector<hrk_bf16> out = run(m, all);

    for (size_t row = 0; row < all.rows.size(); row++) {
        Work decode, prefill;

        add_decode(decode, all.rows[row].slot, all.rows[row].n_keys);
        add_prefill(prefill, all.rows[row].slot, all.rows[row].n_keys - 1, 1);
        expect_same_bits(run(m, decode, 0), row_of(m, out, row));
        expect_same_bits(run(m, prefill, 9), row_of(m, out, row));
    }
}

void the_page_size_changes_no_bit(void **)
{
    const std::vector<hrk_bf16> want = run(make_model(2, Pages(16, 1, 64, false, 4, 19), LENGTHS), mixed_work());

    for (uint32_t P : {1u, 7u, 64u, 512u})
        expect_same_bits(run(make_model(2, Pages(P, 1, 64, false, 4, 300 / P + 1), LENGTHS), mixed_work()), want);
}

// Scores far apart: what was added before a larger score came must be scaled away, whichever warp had it.
void a_late_large_score_takes_over(void **)
{
    Model m = make_model(1, Pages(64, 1, 64, false, 1, 6), {330});

    for (uint32_t at : {0u, 63u, 64u, 200u, 329u}) {
        Work w;
        add_decode(w, 0, 330);
        const std::vector<hrk_bf16> q = queries(m, w.rows);
        Model changed = m;

        for (uint32_t d = 0; d < 64; d++)
            changed.pool[m.pages.at(0, at, 0, 0, d)] = bf16_bits(30.0f * bf16_value(q[d]));
        check(changed, w);
    }
}

// Two keys: scores 0 and -y, values 0 and 1. The result is bf16(p) / (1 + p) with p = exp(-y) against the maximum;
// cases where a last bit of the exponential could turn a rounding are passed over.
void probabilities_are_rounded_before_they_meet_the_values(void **)
{
    Model m = make_model(1, Pages(16, 1, 64, false, 1, 1), {2});
    Work w;
    uint32_t n_told_apart = 0;

    add_decode(w, 0, 2);
    const float q0 = bf16_value(queries(m, w.rows)[0]);
    for (uint32_t d = 0; d < 64; d++) {
        m.pool[m.pages.at(0, 0, 0, 0, d)] = m.pool[m.pages.at(0, 1, 0, 0, d)] = 0;
        m.pool[m.pages.at(0, 0, 0, 1, d)] = 0;
        m.pool[m.pages.at(0, 1, 0, 1, d)] = bf16_bits(1.0f);
    }
    for (uint32_t i = 0; i < 60; i++) {
        const float k0 = bf16_rounded((q0 > 0 ? -1.0f : 1.0f) * (0.5f + (float)i / 8.0f));
        const double p = exp((double)q0 * (double)k0 / 8.0), rounded = (double)bf16_rounded((float)p);
        const hrk_bf16 want = bf16_bits((float)(rounded / (1.0 + p)));
        bool is_sure = true;

        for (double e : {-1e-5, 1e-5}) {
            const double near = (double)bf16_rounded((float)(p * (1.0 + e)));

            is_sure = is_sure && bf16_bits((float)(near / (1.0 + p) * (1.0 + e))) == want;
        }
        m.pool[m.pages.at(0, 1, 0, 0, 0)] = bf16_bits(k0);
        if (is_sure) {
            assert_int_equal(run(m, w, 0)[0], want);
            n_told_apart += bf16_bits((float)(p / (1.0 + p))) != want;
        }
    }
    assert_true(n_told_apart >= 5);
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_attention_args good = {};

    good.max_decode_items = 4;
    good.Nq = 4;
    good.kv = {nullptr, 1024, 16, 2, 64, true};
    for (int i = 0; i < 6; i++) {
        hrk_attention_args args = good;

        if (i == 0)
            args.kv.D = 65;
        else if (i == 1)
            args.kv.D = 258;
        else if (i == 2)
            args.kv.D = 128; // swizzled
        else if (i == 3)
            args.Nq = 5;
        else if (i == 4)
            args.kv.P = 0;
        else
            args.max_decode_items = 0;
        assert_int_equal(hrk_attention_simple(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_every_kind_attend_over_both_page_layouts),
        cmocka_unit_test(any_grouping_of_query_heads_is_served),
        cmocka_unit_test(any_even_head_size_attends),
        cmocka_unit_test(a_row_has_the_same_bits_in_any_company_and_as_either_kind),
        cmocka_unit_test(the_page_size_changes_no_bit),
        cmocka_unit_test(a_late_large_score_takes_over),
        cmocka_unit_test(probabilities_are_rounded_before_they_meet_the_values),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
