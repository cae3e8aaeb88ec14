// hrk_sampler against the host's sampler: the same token of the same logits, whatever was asked for. Only where the
// host's own result hangs on the last bits of a sum (a nucleus that ends within 1e-7 of 1 - top_p) could the two
// differ; the seeds here meet no such row.
#include "kernels/io/sampler_case.h"

#include "common/rng.h"

extern "C" {
#include "base/rng.h"
#include <jansson.h>
}

using namespace hrk_test;

namespace
{

std::vector<float> random_logits(uint32_t V, float spread, Random &random)
{
    std::vector<float> logits(V);

    for (float &v : logits)
        v = random.normal() * spread;
    return logits;
}

hrk_sampling neutral()
{
    hrk_sampling p = {};

    p.temperature = p.top_p = p.repetition_penalty = 1.0f;
    return p;
}

void the_random_numbers_are_the_hosts(void **)
{
    Random random(1);

    for (int i = 0; i < 2000; i++) {
        const uint64_t a = random.next() >> (i % 64), b = random.next() >> (i % 40);
        const double u = hrk::rng_unit(a), host_u = hr_rng_unit(a);

        assert_true(hrk::mix64(a) == hr_mix64(a) && hrk::rng_at(a, b) == hr_rng_at(a, b));
        assert_true(hrk::rng_key(a, b) == hr_rng_key(a, b));
        assert_memory_equal(&u, &host_u, sizeof u);
    }
}

// Parameters as requests bring them, and stranger ones.
hrk_sampling random_parameters(Random &random)
{
    static const float temperatures[] = {0.0f, 0.1f, 0.3f, 0.7f, 1.0f, 1.0f, 1.5f, 1e-38f};
    static const float top_ps[] = {1.0f, 1.0f, 0.95f, 0.9f, 0.5f, 0.1f, 0.999f, 0.0f};
    static const float min_ps[] = {0.0f, 0.0f, 0.15f, 0.05f, 0.5f, 0.001f, 1.0f, 0.0f};
    static const int32_t top_ks[] = {0, 0, 50, 1, 5, 300, 700, 3000};
    static const float repetitions[] = {1.0f, 1.05f, 1.3f, 0.8f};
    static const float presences[] = {0.0f, 0.0f, 0.5f, -0.5f};
    hrk_sampling p = neutral();

    p.temperature = temperatures[random.below(8)];
    p.top_p = top_ps[random.below(8)];
    p.min_p = min_ps[random.below(8)];
    p.top_k = top_ks[random.below(8)];
    if (random.below(2)) {
        p.repetition_penalty = repetitions[random.below(4)];
        p.presence_penalty = presences[random.below(4)];
        p.frequency_penalty = presences[random.below(4)] * 0.3f;
    }
    p.seed = random.next();
    return p;
}

SampleRow random_row(uint32_t V, Random &random)
{
    static const float spreads[] = {0.01f, 0.5f, 2.0f, 6.0f};
    SampleRow row;
    const uint32_t kind = random.below(6);

    row.logits = random_logits(V, spreads[random.below(4)], random);
    for (float &v : row.logits) {
        if (kind == 0)
            v = roundf(v); // many equals
        if (kind == 1 && random.below(3) > 0)
            v = -INFINITY;
    }
    row.sampling = random_parameters(random);
    for (uint32_t i = random.below(40); i > 0; i--)
        row.prompt.push_back((int32_t)random.below(V));
    for (uint32_t i = random.below(20); i > 0; i--)
        row.output.push_back((int32_t)random.below(random.below(2) ? V : 3));
    if (row.output.empty() && random.below(2))
        row.prompt.clear();
    if (random.below(4) == 0) {
        for (uint32_t i = random.below(30); i > 0; i--)
            row.bias.push_back({(int32_t)random.below(V + 3) - 1, random.normal() * 5.0f});
        row.bias.insert(row.bias.end(), row.bias.begin(), row.bias.begin() + (ptrdiff_t)row.bias.size() / 2);
    }
    if (random.below(3) == 0) {
        for (uint32_t i = random.below(HRK_STOP_IDS_MAX + 1); i > 0; i--)
            row.stop_ids.push_back((int32_t)random.below(V + 2));
        row.sampling.min_tokens = random.below(20);
    }
    row.n_logprobs = (int32_t)random.below(23) - 1;
    return row;
}

void the_token_is_the_hosts_for_any_parameters(void **)
{
    static const uint32_t sizes[][3] = {{512, 512, 700}, {384, 380, 300}, {3000, 2931, 700}, {12, 7, 100}, {1, 1, 4}};
    Random random(11);

    for (const auto &size : sizes) {
        std::vector<SampleRow> rows;
        for (uint32_t i = 0; i < rows_of(size[2]); i++)
            rows.push_back(random_row(size[0], random));
        for (SampleRow &row : rows) /* history ids are valid ones */
            for (std::vector<int32_t> *ids : {&row.prompt, &row.output})
                for (int32_t &id : *ids)
                    id %= (int32_t)size[1];
        check_rows(rows, size[0], size[1]);
    }
}

void the_token_is_the_hosts_on_a_whole_vocabulary(void **)
{
    const uint32_t V = 65536, n_valid = 64402;
    std::vector<SampleRow> rows;
    Random random(21);
    static const struct {
        float temperature, top_p, min_p, repetition;
        int32_t top_k;
        float spread;
    } table[] = {
        {0.3f, 1.0f, 0.15f, 1.05f, 50, 3.0f}, {0.3f, 1.0f, 0.15f, 1.05f, 0, 3.0f}, {1.0f, 1.0f, 0.0f, 1.0f, 0, 2.0f},
        {1.0f, 1.0f, 0.0f, 1.0f, 0, 0.01f},   {0.7f, 0.9f, 0.0f, 1.0f, 0, 4.0f},   {1.0f, 0.95f, 0.0f, 1.1f, 0, 1.0f},
        {1.0f, 0.9f, 0.1f, 1.0f, 5000, 2.0f}, {0.0f, 1.0f, 0.0f, 1.2f, 0, 2.0f},   {1.5f, 1.0f, 0.0f, 1.0f, 512, 2.0f},
        {1.0f, 1.0f, 0.01f, 1.0f, 0, 0.3f},   {1e-38f, 0.9f, 0.0f, 1.0f, 20, 2.0f}};

    for (size_t i = 0; i < std::min<size_t>(std::size(table), rows_of(64)); i++) {
        const auto &t = table[i];
        SampleRow row;

        row.logits = random_logits(V, t.spread, random);
        row.sampling = neutral();
        row.sampling.temperature = t.temperature;
        row.sampling.top_p = t.top_p;
        row.sampling.min_p = t.min_p;
        row.sampling.repetition_penalty = t.repetition;
        row.sampling.top_k = t.top_k;
        row.sampling.seed = random.next();
        for (uint32_t j = 0; j < 300; j++)
            row.prompt.push_back((int32_t)random.below(n_valid));
        row.n_logprobs = t.top_k == 50 ? 20 : -1;
        rows.push_back(row);
    }
    check_rows(rows, V, n_valid);
}

// Orders and ties that the one-pass search for candidates could trip over.
void the_token_is_the_hosts_on_rows_that_defeat_the_bound(void **)
{
    const uint32_t V = 20000;
    Random random(31);
    std::vector<SampleRow> rows;

    for (uint32_t kind = 0; kind < 5; kind++) {
        for (uint32_t set = 0; set < 6; set++) {
            SampleRow row;
            row.logits = random_logits(V, 2.0f, random);
            if (kind == 1)
                std::sort(row.logits.begin(), row.logits.end());
            for (uint32_t i = 0; i < V; i++) {
                if (kind == 2)
                    row.logits[i] = 1.25f;
                if (kind == 3)
                    row.logits[i] = i % 10 ? -3.0f : 2.0f;
                if (kind == 4)
                    row.logits[i] = i == 19000 ? 5.0f : -INFINITY;
            }
            row.sampling = neutral();
            row.sampling.seed = random.next();
            row.sampling.temperature = set == 5 ? 0.0f : 0.8f;
            row.sampling.top_k = set == 0 ? 40 : set == 1 ? 2500 : 0;
            row.sampling.min_p = set == 2 ? 0.2f : 0.0f;
            row.sampling.top_p = set >= 3 || set == 1 ? 0.77f : 1.0f;
            row.sampling.repetition_penalty = set % 2 ? 1.2f : 1.0f;
            row.prompt = {1, 5, 77, 19000};
            row.n_logprobs = (int32_t)set * 4 - 1;
            rows.push_back(row);
        }
    }
    check_rows(rows, V, V);
}

void bad_logits_are_reported(void **)
{
    std::vector<SampleRow> rows;
    Random random(41);

    for (uint32_t kind = 0; kind < 4; kind++) {
        for (uint32_t set = 0; set < 6; set++) {
            SampleRow row;
            row.logits = random_logits(700, 1.0f, random);
            if (kind == 0)
                row.logits[set * 100] = NAN;
            if (kind == 1)
                row.logits[set * 100 + 7] = INFINITY;
            if (kind == 2)
                row.logits.assign(700, -INFINITY);
            if (kind == 3) /* beyond the valid ids: not looked at */
                row.logits[690] = set % 2 ? NAN : INFINITY;
            row.sampling = neutral();
            row.sampling.temperature = set == 0 ? 0.0f : 0.9f;
            row.sampling.top_k = set == 1 ? 10 : set == 2 ? 600 : 0;
            row.sampling.top_p = set == 3 ? 0.8f : 1.0f;
            row.sampling.repetition_penalty = set == 4 ? 1.1f : 1.0f;
            row.sampling.frequency_penalty = set == 5 ? 0.1f : 0.0f;
            row.prompt = {3, 4};
            row.n_logprobs = set == 2 ? 3 : -1;
            rows.push_back(row);
        }
    }
    check_rows(rows, 700, 690);
}

void given_ids_are_scored(void **)
{
    std::vector<SampleRow> rows;
    Random random(51);

    for (uint32_t i = 0; i < 60; i++) {
        SampleRow row;
        row.logits = random_logits(777, i % 2 ? 6.0f : 0.1f, random);
        for (float &v : row.logits)
            v = i % 3 ? v : roundf(v);
        if (i == 59)
            row.logits[3] = NAN;
        row.score_id = (int32_t)random.below(i % 10 == 0 ? 777 : 750);
        row.n_logprobs = (int32_t)(i % 22);
        row.is_sampled = i % 4 == 0;
        rows.push_back(row);
    }
    check_rows(rows, 777, 750);
}

void a_row_that_is_not_sampled_is_left_alone(void **)
{
    Random random(61);
    std::vector<SampleRow> rows(3);

    for (SampleRow &row : rows)
        row.logits = random_logits(100, 1.0f, random);
    rows[1].is_sampled = false;
    const auto got = sample_on_device(rows, 100, 100);
    assert_int_equal(got[1].sample.id, -1);
    assert_int_equal(got[1].next_token, -7);
    assert_int_equal(got[0].sample.id, sample_on_host(rows[0], 100, 100).id);
    assert_int_equal(got[2].sample.id, sample_on_host(rows[2], 100, 100).id);
}

void a_mask_forbids_ids(void **)
{
    std::vector<SampleRow> rows;
    Random random(71);

    for (uint32_t i = 0; i < 40; i++) {
        SampleRow row = random_row(500, random);
        row.mask.assign(16, 0);
        for (uint32_t id = 0; id < 500; id++)
            row.mask[id / 32] |= (uint32_t)(random.below(i + 1) == 0) << (id % 32);
        if (i == 39)
            row.mask.assign(16, 0); /* nothing is allowed */
        rows.push_back(row);
    }
    check_rows(rows, 500, 500);
}

void counts_saturate(void **)
{
    SampleRow row;
    Random random(81);

    row.logits = random_logits(64, 1.0f, random);
    row.logits[9] = 300.0f;
    row.sampling = neutral();
    row.sampling.temperature = 0.0f;
    row.sampling.repetition_penalty = 1.01f;
    row.prompt = {9};
    row.output.assign(40000, 9);
    check_rows({row}, 64, 64);
}

// The logits after penalties and temperature are the host's to the bit (the other tests see it through the choice), so
// it is enough that both draw from transformers' kept ids: the token is one of them, for several seeds.
void tokens_are_among_those_that_transformers_keeps(void **)
{
    json_error_t error;
    json_t *root = json_load_file(HEADRACE_TEST_DATA "/sampling/goldens.json", 0, &error);
    const char *const names[] = {"temperature", "top_p", "min_p", "repetition_penalty"};
    std::vector<SampleRow> rows;
    std::vector<const json_t *> kept_of;

    assert_non_null(root);
    const json_t *cases = json_object_get(root, "cases"), *ids = json_object_get(root, "history");
    const uint32_t V = (uint32_t)json_integer_value(json_object_get(root, "vocab_size"));
    const size_t n_prompt = (size_t)json_integer_value(json_object_get(root, "n_prompt"));
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const json_t *stored =
            json_object_get(json_object_get(root, "logits"), json_string_value(json_object_get(c, "logits")));
        SampleRow row;
        float *const targets[] = {&row.sampling.temperature, &row.sampling.top_p, &row.sampling.min_p,
                                  &row.sampling.repetition_penalty};

        for (uint32_t v = 0; v < V; v++)
            row.logits.push_back((float)json_number_value(json_array_get(stored, v)));
        for (size_t v = 0; v < 4; v++)
            if (json_object_get(c, names[v]))
                *targets[v] = (float)json_number_value(json_object_get(c, names[v]));
        row.sampling.top_k = (int32_t)json_number_value(json_object_get(c, "top_k"));
        row.sampling.min_tokens = (uint32_t)json_number_value(json_object_get(c, "min_tokens"));
        for (size_t v = 0; v < json_array_size(ids); v++)
            (v < n_prompt ? row.prompt : row.output).push_back((int32_t)json_integer_value(json_array_get(ids, v)));
        for (size_t v = 0; v < 2; v++)
            row.stop_ids.push_back((int32_t)json_integer_value(json_array_get(json_object_get(root, "eos"), v)));
        const json_t *bias = json_object_get(c, "bias");
        for (size_t v = 0; v < json_array_size(bias); v++) {
            const json_t *pair = json_array_get(bias, v);
            row.bias.push_back({(int32_t)json_integer_value(json_array_get(pair, 0)),
                                (float)json_number_value(json_array_get(pair, 1))});
        }
        for (uint64_t seed = 0; seed < rows_of(4); seed++) {
            row.sampling.seed = seed * 1000 + i;
            rows.push_back(row);
            kept_of.push_back(json_object_get(c, "kept"));
        }
    }
    assert_true(rows.size() > 200);
    check_rows(rows, V, V);
    const auto got = sample_on_device(rows, V, V);
    for (size_t i = 0; i < rows.size(); i++) {
        bool is_kept = json_is_string(kept_of[i]);
        for (size_t v = 0; !is_kept && v < json_array_size(kept_of[i]); v++)
            is_kept = json_integer_value(json_array_get(kept_of[i], v)) == got[i].sample.id;
        assert_true(is_kept);
    }
    json_decref(root);
}

void a_row_draws_the_same_alone_and_among_others(void **)
{
    std::vector<SampleRow> rows;
    Random random(91);

    for (uint32_t i = 0; i < 20; i++)
        rows.push_back(random_row(2000, random));
    const auto all = sample_on_device(rows, 2000, 2000);
    for (size_t i = 0; i < rows.size(); i += 3) {
        const auto one = sample_on_device({rows[i]}, 2000, 2000);
        assert_memory_equal(&one[0].sample, &all[i].sample, sizeof one[0].sample);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(the_random_numbers_are_the_hosts),
        cmocka_unit_test(the_token_is_the_hosts_for_any_parameters),
        cmocka_unit_test(the_token_is_the_hosts_on_a_whole_vocabulary),
        cmocka_unit_test(the_token_is_the_hosts_on_rows_that_defeat_the_bound),
        cmocka_unit_test(bad_logits_are_reported),
        cmocka_unit_test(given_ids_are_scored),
        cmocka_unit_test(a_row_that_is_not_sampled_is_left_alone),
        cmocka_unit_test(a_mask_forbids_ids),
        cmocka_unit_test(counts_saturate),
        cmocka_unit_test(tokens_are_among_those_that_transformers_keeps),
        cmocka_unit_test(a_row_draws_the_same_alone_and_among_others),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
