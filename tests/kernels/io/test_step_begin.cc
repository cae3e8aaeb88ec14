// hrk_step_begin: every table it writes, and rows embedded and normalised.
#include "kernels/support/expect.h"
#include "kernels/support/step_block.h"

#include <map>

using namespace hrk_test;

namespace
{

const float EPS = 1e-5f;
enum { SLOTS = 70, MAX_PAGES = 5, V = 301, SEEN_LD = 304 };

// The device's side of a run of steps, as large as a few slots need.
struct Device {
    DeviceArray<int32_t> next_token{SLOTS}, stop_ids{SLOTS * HRK_STOP_IDS_MAX};
    DeviceArray<uint32_t> page_table{SLOTS * MAX_PAGES};
    DeviceArray<hrk_sampling> sampling{SLOTS};
    DeviceArray<hrk_bias> bias{SLOTS * HRK_BIAS_MAX};
    DeviceArray<uint16_t> seen{SLOTS * SEEN_LD};
    DeviceArray<hrk_bf16> embedding{1};
    DeviceArray<float> norm{1};

    hrk_tables tables() const
    {
        hrk_tables t = {};

        t.next_token = next_token.data();
        t.page_table = page_table.data();
        t.max_pages = MAX_PAGES;
        t.sampling = sampling.data();
        t.bias = bias.data();
        t.stop_ids = stop_ids.data();
        t.seen = seen.data();
        t.seen_ld = SEEN_LD;
        return t;
    }
};

struct Rows {
    std::vector<int32_t> token;
    std::vector<uint32_t> position, span;
    std::vector<hrk_bf16> x, xn;
};

std::vector<hrk_bf16> embedding_rows(uint32_t H)
{
    Random random(H);

    return random_rows(random, V, H, 1.0f);
}
std::vector<float> norm_weights(uint32_t H)
{
    std::vector<float> w;

    for (uint32_t i = 0; i < H; i++)
        w.push_back(0.5f + (float)(i % 7) / 4.0f);
    return w;
}

// Runs a step of at most max_rows rows; all buffers have max_rows.
Rows run(const Device &device, const StepBlock &block, uint32_t H, uint32_t max_rows)
{
    const size_t ld = hrk_ld(H);
    DeviceArray<unsigned char> upload(block.bytes());
    DeviceArray<hrk_bf16> embedding(embedding_rows(H)), x(max_rows * ld), xn(max_rows * ld);
    DeviceArray<float> norm(norm_weights(H));
    DeviceArray<int32_t> row_token(max_rows);
    DeviceArray<uint32_t> row_position(max_rows), row_span(max_rows);
    hrk_step_begin_args args = {};
    const hrk_launch on = {nullptr, 4, true, false};

    args.tables = device.tables();
    args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
    args.tables.row_token = row_token.data();
    args.tables.row_position = row_position.data();
    args.tables.row_span = row_span.data();
    args.max_rows = max_rows;
    args.embedding = embedding.data();
    args.H = H;
    args.V = V;
    args.norm = norm.data();
    args.eps = EPS;
    args.x = x.data();
    args.xn = xn.data();
    assert_int_equal(hrk_step_begin(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return {row_token.get(), row_position.get(), row_span.get(), x.get(), xn.get()};
}

// Spans of the given lengths, slot and position different in each.
std::vector<hrk_span> spans_of(const std::vector<uint32_t> &lengths)
{
    std::vector<hrk_span> spans;
    uint32_t row = 0;

    for (uint32_t i = 0; i < lengths.size(); i++) {
        spans.push_back({row, lengths[i], 100 * i + 3, (i * 7 + 2) % SLOTS, -1, 0, 0});
        row += lengths[i];
    }
    return spans;
}

void check_rows(const std::vector<uint32_t> &lengths, uint32_t H)
{
    const std::vector<hrk_span> spans = spans_of(lengths);
    const std::vector<hrk_bf16> embedding = embedding_rows(H);
    const std::vector<float> weight = norm_weights(H);
    const size_t ld = hrk_ld(H);
    StepBlock block;
    Device device;
    std::vector<int32_t> last(SLOTS), tokens;
    std::vector<double> out, want;

    for (int32_t i = 0; i < SLOTS; i++)
        last[(size_t)i] = (i * 13 + 1) % V;
    device.next_token.put(last);
    block.set_spans(spans);
    for (uint32_t row = 0; row < block.step.n_rows; row++)
        tokens.push_back(row % 3 == 0 ? (int32_t)HRK_TOKEN_FROM_SLOT : (int32_t)(row * 31 % V));
    block.step.tokens_at = block.add(tokens);
    const Rows got = run(device, block, H, block.step.n_rows + 5);
    for (uint32_t s = 0; s < spans.size(); s++) {
        for (uint32_t row = spans[s].first_row; row < spans[s].first_row + spans[s].n_rows; row++) {
            const int32_t id = tokens[row] < 0 ? last[spans[s].slot] : tokens[row];
            double squares = 0;

            assert_int_equal(got.token[row], id);
            assert_int_equal(got.position[row], spans[s].start_position + row - spans[s].first_row);
            assert_int_equal(got.span[row], s);
            expect_same_bits(part(got.x, row * ld, ld), part(embedding, (size_t)id * ld, ld));
            for (uint32_t i = 0; i < H; i++)
                squares += pow((double)bf16_value(got.x[row * ld + i]), 2);
            for (uint32_t i = 0; i < ld; i++) {
                out.push_back((double)bf16_value(got.xn[row * ld + i]));
                want.push_back(i < H ? (double)bf16_value(got.x[row * ld + i]) / sqrt(squares / H + (double)EPS) *
                                           (double)weight[i]
                                     : 0.0);
            }
        }
    }
    expect_close(out, want);
    for (size_t row = block.step.n_rows; row < got.token.size(); row++) {
        assert_int_equal(got.token[row], -1);
        for (size_t i = 0; i < ld; i++)
            assert_true(got.x[row * ld + i] == UNTOUCHED && got.xn[row * ld + i] == UNTOUCHED);
    }
}

void rows_know_token_position_and_span(void **)
{
    check_rows({1}, 64);
    check_rows({5}, 72);
    check_rows({1, 1, 1, 1, 1, 1, 1}, 100);
    check_rows({1, 1, 40, 1, 3}, 64);
    check_rows(std::vector<uint32_t>(33, 1), 64);
    check_rows(std::vector<uint32_t>(70, 2), 64);
}

void many_spans_are_searched(void **)
{
    std::vector<uint32_t> lengths;

    for (uint32_t i = 0; i < 1100; i++)
        lengths.push_back(i % 50 == 7 ? 3 : 1);
    check_rows(lengths, 16);
}

void rows_longer_than_the_registers_are_embedded(void **)
{
    check_rows({2, 1}, 2304);
}

// xn must have the bits of hrk_norm, which other layers use.
void the_norm_is_that_of_the_norm_kernel(void **)
{
    for (uint32_t H : {200u, 2304u}) {
        StepBlock block;
        Device device;
        const size_t ld = hrk_ld(H);

        block.set_spans({{0, 6, 0, 0, -1, 0, 0}});
        block.step.tokens_at = block.add(std::vector<int32_t>{5, 4, 300, 0, 9, 77});
        const Rows got = run(device, block, H, 6);
        DeviceArray<unsigned char> upload(block.bytes());
        DeviceArray<hrk_bf16> x(got.x), out(6 * ld);
        DeviceArray<float> weight(norm_weights(H));
        hrk_norm_args args = {};
        const hrk_launch on = {nullptr, 4, false, false};
        args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
        args.max_rows = 6;
        args.x = x.data();
        args.weight = weight.data();
        args.H = H;
        args.eps = EPS;
        args.out = out.data();
        assert_int_equal(hrk_norm(&args, &on), 0);
        expect_same_bits(out.get(), got.xn);
    }
}

void an_id_outside_the_vocabulary_reads_nothing_foreign(void **)
{
    StepBlock block;
    Device device; // next_token is all ones: -1

    block.set_spans({{0, 2, 0, 0, -1, 0, 0}});
    block.step.tokens_at = block.add(std::vector<int32_t>{HRK_TOKEN_FROM_SLOT, V});
    const Rows got = run(device, block, 64, 2);
    assert_int_equal(got.token[0], 0);
    assert_int_equal(got.token[1], 0);
}

// A step with one row, to which a test adds what it is about.
StepBlock one_row()
{
    StepBlock block;

    block.set_spans({{0, 1, 0, 0, -1, 0, 0}});
    block.step.tokens_at = block.add(std::vector<int32_t>{0});
    return block;
}

void pages_are_put_where_updates_say(void **)
{
    StepBlock block = one_row();
    Device device;
    std::vector<uint32_t> want(SLOTS * MAX_PAGES, UINT32_MAX);
    std::vector<hrk_page_update> updates;

    for (uint32_t slot = 0; slot < SLOTS; slot += 3) {
        for (uint32_t index = slot % 2; index < MAX_PAGES; index += 2) {
            updates.push_back({slot, index, slot * 1000 + index, 0});
            want[slot * MAX_PAGES + index] = slot * 1000 + index;
        }
    }
    updates.push_back({1, MAX_PAGES, 7, 0}); // no such index: left out
    block.step.n_page_updates = (uint32_t)updates.size();
    block.step.pages_at = block.add(updates);
    run(device, block, 64, 1);
    assert_true(device.page_table.get() == want);
}

bool same_bytes(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n) == 0;
}

void sampling_parameters_come_with_biases_and_stop_ids(void **)
{
    StepBlock block = one_row();
    Device device;
    const std::vector<hrk_bias> old_bias = device.bias.get();
    const std::vector<int32_t> old_stop = device.stop_ids.get();
    std::vector<hrk_sampling_update> updates;
    std::map<uint32_t, std::pair<std::vector<hrk_bias>, std::vector<int32_t>>> lists;

    for (uint32_t slot : {4u, 36u, 69u, 0u, 4u}) { // slot 4 twice: the later one holds
        hrk_sampling_update u = {};
        std::vector<hrk_bias> bias;
        std::vector<int32_t> stop;
        const uint32_t i = (uint32_t)updates.size();

        for (uint32_t j = 0; j < (i == 1 ? (uint32_t)HRK_BIAS_MAX : i * 40); j++)
            bias.push_back({(int32_t)(j + i), (float)j - 3.5f});
        for (uint32_t j = 0; j < (i == 1 ? (uint32_t)HRK_STOP_IDS_MAX : i * 2); j++)
            stop.push_back((int32_t)(100 * i + j));
        u.slot = slot;
        u.sampling = {
            0.5f + (float)i,      0.9f, 0.1f, 1.1f, 0.2f, 0.3f, 40, 7, 0x123456789abcdefu + i, (uint32_t)bias.size(),
            (uint32_t)stop.size()};
        u.bias_at = block.add(bias);
        u.stop_at = block.add(stop);
        updates.push_back(u);
        lists[slot] = {bias, stop};
    }
    block.step.n_sampling_updates = (uint32_t)updates.size();
    block.step.sampling_at = block.add(updates);
    run(device, block, 64, 1);
    const std::vector<hrk_sampling> sampling = device.sampling.get();
    const std::vector<hrk_bias> bias = device.bias.get();
    const std::vector<int32_t> stop = device.stop_ids.get();
    for (size_t i = 1; i < updates.size(); i++)
        assert_true(same_bytes(&sampling[updates[i].slot], &updates[i].sampling, sizeof(hrk_sampling)));
    for (const auto &[slot, list] : lists) {
        const size_t b = (size_t)slot * HRK_BIAS_MAX, s = (size_t)slot * HRK_STOP_IDS_MAX;

        assert_true(same_bytes(&bias[b], list.first.data(), list.first.size() * sizeof(hrk_bias)));
        assert_true(same_bytes(&stop[s], list.second.data(), list.second.size() * sizeof(int32_t)));
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        if (lists.count(slot))
            continue;
        assert_true(same_bytes(&bias[(size_t)slot * HRK_BIAS_MAX], old_bias.data(), sizeof(hrk_bias) * HRK_BIAS_MAX));
        assert_true(
            same_bytes(&stop[(size_t)slot * HRK_STOP_IDS_MAX], old_stop.data(), sizeof(int32_t) * HRK_STOP_IDS_MAX));
    }
}

struct Job {
    uint32_t slot;
    bool reset;
    std::vector<int32_t> prompt, output;
};

void add_jobs(StepBlock &block, const std::vector<Job> &jobs)
{
    std::vector<hrk_history_job> list;

    for (const Job &job : jobs) {
        std::vector<int32_t> ids = job.prompt;

        ids.insert(ids.end(), job.output.begin(), job.output.end());
        list.push_back(
            {job.slot, job.reset, block.add(ids), (uint32_t)job.prompt.size(), (uint32_t)job.output.size(), {}});
    }
    block.step.n_history_jobs = (uint32_t)list.size();
    block.step.history_at = block.add(list);
}

// The penalty table as a plain loop has it.
void count_all(std::vector<uint16_t> &seen, const std::vector<Job> &jobs)
{
    for (const Job &job : jobs) {
        uint16_t *row = seen.data() + (size_t)job.slot * SEEN_LD;

        for (uint32_t i = 0; job.reset && i < SEEN_LD; i++)
            row[i] = 0;
        for (int32_t id : job.prompt)
            row[id] = (uint16_t)(row[id] | HRK_SEEN_IN_PROMPT);
        for (int32_t id : job.output) {
            if ((row[id] & HRK_OUTPUT_COUNT) != HRK_OUTPUT_COUNT)
                row[id]++;
        }
    }
}

std::vector<int32_t> random_ids(Random &random, uint32_t n, uint32_t below)
{
    std::vector<int32_t> ids;

    for (uint32_t i = 0; i < n; i++)
        ids.push_back((int32_t)random.below(below));
    return ids;
}

void histories_are_counted_slot_by_slot(void **)
{
    Random random(3);
    Device device;
    std::vector<uint16_t> want = device.seen.get();

    for (uint32_t step = 0; step < 3; step++) {
        StepBlock block = one_row();
        std::vector<Job> jobs;

        for (uint32_t slot : {3u, 35u, 67u, 8u, 69u}) // the first three share a block
            jobs.push_back({slot, step == 0, random_ids(random, step == 0 ? 500 : 3, V), random_ids(random, 400, 6)});
        jobs.push_back({8, false, {}, {V - 1, V - 1, V - 2}});
        jobs.push_back({35, true, {1}, {}});
        add_jobs(block, jobs);
        run(device, block, 64, 1);
        count_all(want, jobs);
        assert_true(device.seen.get() == want);
    }
}

void counts_stop_at_their_largest_value(void **)
{
    StepBlock block = one_row();
    Device device;
    std::vector<uint16_t> want(SLOTS * SEEN_LD, 0);
    const std::vector<Job> jobs = {{2, false, {6}, std::vector<int32_t>(50, 6)}, {2, false, {}, {7, 7, 7}}};

    want[2 * SEEN_LD + 6] = HRK_OUTPUT_COUNT - 20;
    want[2 * SEEN_LD + 7] = (uint16_t)(HRK_SEEN_IN_PROMPT | (HRK_OUTPUT_COUNT - 1));
    device.seen.put(want);
    add_jobs(block, jobs);
    run(device, block, 64, 1);
    count_all(want, jobs);
    assert_int_equal(want[2 * SEEN_LD + 6], 0xffff);
    assert_true(device.seen.get() == want);
}

void ids_outside_the_table_are_passed_over(void **)
{
    StepBlock block = one_row();
    Device device;
    std::vector<uint16_t> want(SLOTS * SEEN_LD, 0);

    device.seen.put(want);
    add_jobs(block, {{SLOTS - 1, false, {-1, SEEN_LD}, {-5, 1 << 30}}});
    run(device, block, 64, 1);
    assert_true(device.seen.get() == want);
}

void what_it_cannot_do_is_refused(void **)
{
    const hrk_launch on = {nullptr, 4, false, false};
    hrk_step_begin_args good = {};

    good.H = 64;
    good.V = V;
    good.max_rows = 4;
    for (int i = 0; i < 4; i++) {
        hrk_step_begin_args args = good;

        if (i == 0)
            args.H = 0;
        else if (i == 1)
            args.V = 0;
        else if (i == 2)
            args.max_rows = 0;
        else
            args.tables.seen_ld = 12;
        assert_int_equal(hrk_step_begin(&args, &on), cudaErrorInvalidValue);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(rows_know_token_position_and_span),
        cmocka_unit_test(many_spans_are_searched),
        cmocka_unit_test(rows_longer_than_the_registers_are_embedded),
        cmocka_unit_test(the_norm_is_that_of_the_norm_kernel),
        cmocka_unit_test(an_id_outside_the_vocabulary_reads_nothing_foreign),
        cmocka_unit_test(pages_are_put_where_updates_say),
        cmocka_unit_test(sampling_parameters_come_with_biases_and_stop_ids),
        cmocka_unit_test(histories_are_counted_slot_by_slot),
        cmocka_unit_test(counts_stop_at_their_largest_value),
        cmocka_unit_test(ids_outside_the_table_are_passed_over),
        cmocka_unit_test(what_it_cannot_do_is_refused),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
