// Attention reads the keys and values of a generated row once a key-value head, whatever the number of query heads, and
// those of a prompt once a tile of rows; qk_rope reads and writes each head once.
#include "kernels/attention/pages.h"
#include "kernels/roofline/traffic.h"
#include "kernels/support/step_block.h"

#include "attention/scratch.h"

using namespace hrk_test;

namespace
{

enum { D = 64, P = 64, N_SMS = 4, KEY_BYTES = 2 * D * 2 /* of a key and its value */, MMA = 2 * 16 * 8 * 16 };

struct Case {
    uint32_t Nq, Nkv, n_sms;
    std::vector<uint32_t> n_keys;          // of generated rows, a sequence each
    std::vector<hrk_prefill_tile> prompts; // rows and positions; slots are given here
};

// Runs one of the kernels over memory without numbers.
simt::LaunchRecord run(const Case &c, int (*kernel)(const hrk_attention_args *, const hrk_launch *))
{
    uint32_t n_rows = 0, n_chunks = 0, longest = 1;
    std::vector<hrk_decode_item> items;
    std::vector<hrk_prefill_tile> tiles = c.prompts;
    StepBlock block;

    for (uint32_t n : c.n_keys) {
        items.push_back({n_rows, n_rows, n, n_chunks});
        n_rows++;
        n_chunks += (uint32_t)ceil_div(n, HRK_DECODE_CHUNK);
        longest = n > longest ? n : longest;
    }
    for (hrk_prefill_tile &t : tiles) {
        t.slot = n_rows;
        t.first_row = n_rows;
        n_rows += t.n_rows;
        longest = t.first_position + t.n_rows > longest ? t.first_position + t.n_rows : longest;
    }
    const Pages pages(P, c.Nkv, D, true, n_rows, (uint32_t)ceil_div(longest, P));
    block.step.n_rows = n_rows;
    block.step.n_decode_items = (uint32_t)items.size();
    block.step.n_chunk_items = n_chunks;
    block.step.n_prefill_tiles = (uint32_t)tiles.size();
    block.step.decode_at = block.add(items);
    block.step.prefill_at = block.add(tiles);
    const DeviceArray<unsigned char> upload(block.bytes());
    const DeviceArray<uint32_t> table(pages.table);
    DeviceArray<unsigned char> scratch(hrk_attention_scratch(n_rows, n_chunks, c.Nq, D));
    DeviceArray<hrk_bf16> pool(pages.values()), q((size_t)n_rows * c.Nq * D), out((size_t)n_rows * c.Nq * D);
    hrk_attention_args a = {};
    const hrk_launch on = {nullptr, c.n_sms, false, false};

    scratch.fill(0);
    pool.fill(0);
    q.fill(0);
    a.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    a.tables.page_table = table.data();
    a.tables.max_pages = pages.max_pages;
    a.max_decode_items = (uint32_t)items.size();
    a.max_chunk_items = n_chunks;
    a.max_prefill_tiles = (uint32_t)tiles.size();
    a.q = q.data();
    a.Nq = c.Nq;
    a.kv = pages.kv(pool.data());
    a.out = out.data();
    a.scratch = scratch.data();
    return measure([&] { return kernel(&a, &on); });
}

// Of n keys and a key-value head: 256 bytes a key, so 16 KiB a block of 64 and the last one as far as it is filled.
// Each chunk of 512 keys also fetches the queries that share them. The tensor cores take 16 keys at a time: 4 x 2
// instructions for their scores and 4 x 2 for their values. Rows of more than one chunk leave each chunk's sums,
// maximum and sum in scratch and count the chunks there; the last one puts the counter back.
Traffic decode_traffic(const Case &c)
{
    Traffic t;

    for (uint64_t n : c.n_keys) {
        const uint64_t chunks = ceil_div(n, HRK_DECODE_CHUNK);

        t.bulk += c.Nkv * n * KEY_BYTES + chunks * c.Nq * D * 2;
        t.mma += c.Nkv * ceil_div(n, 16) * 16 * MMA;
        t.written += (uint64_t)c.Nq * D * 2;
        if (chunks > 1)
            t.written += chunks * (c.Nq * (D * 4 + 8) + c.Nkv * 4) + c.Nkv * 4;
    }
    return t;
}

void generated_rows_read_their_keys_and_values_once_a_head(void **)
{
    const std::vector<std::vector<uint32_t>> steps = {
        {1}, {64}, {65}, {512}, {513}, {1500}, {3, 700, 64, 129, 1, 1025, 16, 512}};

    for (const auto &n_keys : steps) {
        for (uint32_t group : {1u, 4u, 8u}) {
            const Case c = {2 * group, 2, N_SMS, n_keys, {}};

            expect_traffic(run(c, hrk_attention_decode), decode_traffic(c));
        }
    }
    std::vector<uint32_t> many;
    for (uint32_t i = 0; i < 40; i++)
        many.push_back(1 + i * 37 % 200);
    const Case c = {8, 2, N_SMS, many, {}};
    expect_traffic(run(c, hrk_attention_decode), decode_traffic(c));
}

// A tile of rows and the query heads of a team are one unit, which reads all keys up to its last row's: with one team a
// key-value head, tiles x keys. A warpgroup multiplies blocks of 64 rows by 64 keys, twice (scores, values), causality
// or not; one of a part that has fewer heads repeats a head. The ticket is drawn once a unit, and reset.
void check_prefill(const Case &c)
{
    const simt::LaunchRecord r = run(c, hrk_attention_prefill);
    const uint64_t heads = shape_of(r, "attention_prefill<")[0], group = c.Nq / c.Nkv, parts = ceil_div(group, heads);
    Traffic want;

    for (const hrk_prefill_tile &t : c.prompts) {
        const uint64_t n = t.first_position + t.n_rows;

        want.bulk += c.Nkv * parts * n * KEY_BYTES;
        want.wgmma += c.Nkv * parts * heads * ceil_div(n, 64) * 2 * (2 * 64 * 64 * D);
        want.written += (uint64_t)t.n_rows * c.Nq * D * 2 + c.Nkv * parts * 4;
    }
    want.written += 4;
    expect_traffic(r, want);
    // Where tiles are many enough for the device, up to 4 heads share what is read.
    if (c.prompts.size() * c.Nkv * 2 > c.n_sms)
        assert_int_equal(parts, ceil_div(group, 4));
}

void prompt_rows_read_their_keys_and_values_once_a_tile(void **)
{
    const std::vector<std::vector<hrk_prefill_tile>> steps = {{{0, 1, 0, 0}},
                                                              {{0, 8, 0, 0}},
                                                              {{0, 40, 0, 0}},
                                                              {{0, 64, 0, 0}, {0, 64, 0, 64}, {0, 2, 0, 128}},
                                                              {{0, 30, 0, 200}}};

    for (const auto &tiles : steps) {
        for (uint32_t group : {1u, 2u, 3u, 4u, 6u}) {
            for (uint32_t n_sms : {1u, 64u})
                check_prefill({2 * group, 2, n_sms, {}, tiles});
        }
    }
}

// The reference and the portable way has no shared memory for keys: every query head group of up to 4 heads reads them,
// for every row.
void the_simple_kernel_reads_keys_and_values_once_a_row_and_four_heads(void **)
{
    for (uint32_t group : {1u, 4u, 8u}) {
        const uint64_t parts = ceil_div(group, 4), Nq = 2 * group;
        const simt::LaunchRecord few = run({2 * group, 2, N_SMS, {100, 300}, {}}, hrk_attention_simple),
                                 more = run({2 * group, 2, N_SMS, {200, 500}, {}}, hrk_attention_simple);
        Traffic want;

        want.written = 2 * Nq * D * 2;
        expect_traffic(few, want);
        expect_traffic(more, want);
        expect_more_read(few, more, 2 * parts * 300 * (KEY_BYTES + 4)); // and the page's number, a key
    }
}

struct RopeCase {
    uint32_t Nq, n;
    bool taps;
};

simt::LaunchRecord run_qk_rope(const RopeCase &c)
{
    enum { NKV = 2 };
    const std::vector<hrk_span> spans = {{0, c.n, 0, 0, -1, 0, 0}};
    const RowTables rows(spans);
    const Pages pages(P, NKV, D, true, 1, (uint32_t)ceil_div(c.n, P));
    StepBlock block;
    block.set_spans(spans);
    const DeviceArray<unsigned char> upload(block.bytes());
    const DeviceArray<uint32_t> table(pages.table), row_span(rows.span), position(rows.position);
    DeviceArray<float> norm(D), rope((size_t)c.n * D);
    DeviceArray<hrk_bf16> qkv((size_t)c.n * (c.Nq + 2 * NKV) * D), q((size_t)c.n * c.Nq * D), pool(pages.values()),
        k((size_t)c.n * NKV * D), v((size_t)c.n * NKV * D);
    hrk_qk_rope_args a = {};
    const hrk_launch on = {nullptr, N_SMS, false, false};

    norm.fill(0);
    rope.fill(0);
    qkv.fill(0);
    a.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    a.tables.page_table = table.data();
    a.tables.row_span = row_span.data();
    a.tables.row_position = position.data();
    a.tables.max_pages = pages.max_pages;
    a.max_rows = c.n;
    a.qkv = qkv.data();
    a.q_norm = a.k_norm = norm.data();
    a.eps = 1e-5f;
    a.rope = rope.data();
    a.Nq = c.Nq;
    a.kv = pages.kv(pool.data());
    a.q = q.data();
    if (c.taps) {
        a.k_out = k.data();
        a.v_out = v.data();
    }
    return measure([&] { return hrk_qk_rope(&a, &on); });
}

// Written: every head once, keys and values to their pages (and, for a tap, once more). Read for a head more: its
// values, and as fp32 its norm's weights and the angles.
void rotation_reads_and_writes_every_head_once(void **)
{
    for (uint32_t n : {1u, 8u, 40u, 130u}) {
        for (bool taps : {false, true}) {
            const simt::LaunchRecord few = run_qk_rope({8, n, taps}), more = run_qk_rope({20, n, taps});
            Traffic want;

            want.written = (uint64_t)n * (8 + (taps ? 8 : 4)) * D * 2;
            expect_traffic(few, want);
            want.written += (uint64_t)n * 12 * D * 2;
            expect_traffic(more, want);
            expect_more_read(few, more, (uint64_t)n * 12 * D * (2 + 4 + 4));
        }
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(generated_rows_read_their_keys_and_values_once_a_head),
        cmocka_unit_test(prompt_rows_read_their_keys_and_values_once_a_tile),
        cmocka_unit_test(the_simple_kernel_reads_keys_and_values_once_a_row_and_four_heads),
        cmocka_unit_test(rotation_reads_and_writes_every_head_once),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
