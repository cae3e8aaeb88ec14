// A batch of rows for hrk_sampler and the same rows for the host's sampler (csrc/backend/sampling.h), which is the
// meaning.
#pragma once

#include "kernels/support/device_array.h"
#include "kernels/support/step_block.h"

#include <algorithm>

extern "C" {
#include "backend/sampling.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

namespace hrk_test
{

// The checked build is slow: it looks for other mistakes than wrong numbers, so fewer rows do.
inline uint32_t rows_of(uint32_t n)
{
    return getenv("SIMT_CHECK") ? (n + 15) / 16 : n;
}

struct SampleRow {
    std::vector<float> logits; // [V]
    hrk_sampling sampling = {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 0, 0, 0};
    std::vector<hrk_bias> bias;
    std::vector<int32_t> stop_ids;
    std::vector<int32_t> prompt, output; // history
    std::vector<uint32_t> mask;          // empty: all ids
    uint32_t draw = 0;                   // of score rows and of output.size() otherwise
    int32_t n_logprobs = -1, score_id = -1;
    bool is_sampled = true;
};

struct SampleResult {
    hrk_sample sample;
    std::vector<hrk_top> tops;
    int32_t next_token;
    std::vector<uint16_t> seen;
};

inline uint32_t seen_stride(uint32_t V)
{
    return (V + 7) / 8 * 8;
}

// The penalty table's row of a history.
inline std::vector<uint16_t> seen_of(const SampleRow &row, uint32_t V)
{
    std::vector<uint16_t> seen(seen_stride(V), 0);

    for (int32_t id : row.prompt)
        seen[(size_t)id] |= HRK_SEEN_IN_PROMPT;
    for (int32_t id : row.output)
        seen[(size_t)id] = (uint16_t)(seen[(size_t)id] + ((seen[(size_t)id] & HRK_OUTPUT_COUNT) < HRK_OUTPUT_COUNT));
    return seen;
}

// Runs all rows in one launch; row i has slot n - 1 - i.
inline std::vector<SampleResult> sample_on_device(const std::vector<SampleRow> &rows, uint32_t V, uint32_t n_valid)
{
    const uint32_t n = (uint32_t)rows.size(), ld = hrk_ld(V), words = (V + 31) / 32, stride = seen_stride(V);
    std::vector<float> logits((size_t)n * ld, NAN);
    std::vector<hrk_sampling> sampling(n);
    std::vector<hrk_bias> bias((size_t)n * HRK_BIAS_MAX);
    std::vector<int32_t> stop((size_t)n * HRK_STOP_IDS_MAX, -1), next(n, -7);
    std::vector<uint16_t> seen((size_t)n * stride);
    std::vector<uint32_t> mask((size_t)n * words, UINT32_MAX);
    std::vector<hrk_output> outputs(n);
    bool has_mask = false;
    StepBlock block;

    for (uint32_t i = 0; i < n; i++) {
        const SampleRow &row = rows[i];
        const size_t slot = n - 1 - i;
        const std::vector<uint16_t> counts = seen_of(row, V);

        std::copy(row.logits.begin(), row.logits.end(), logits.begin() + (ptrdiff_t)((size_t)i * ld));
        sampling[slot] = row.sampling;
        sampling[slot].n_bias = (uint32_t)row.bias.size();
        sampling[slot].n_stop_ids = (uint32_t)row.stop_ids.size();
        std::copy(row.bias.begin(), row.bias.end(), bias.begin() + (ptrdiff_t)(slot * HRK_BIAS_MAX));
        std::copy(row.stop_ids.begin(), row.stop_ids.end(), stop.begin() + (ptrdiff_t)(slot * HRK_STOP_IDS_MAX));
        std::copy(counts.begin(), counts.end(), seen.begin() + (ptrdiff_t)(slot * stride));
        if (!row.mask.empty()) {
            has_mask = true;
            std::copy(row.mask.begin(), row.mask.end(), mask.begin() + (ptrdiff_t)((size_t)i * words));
        }
        outputs[i] = {};
        outputs[i].row = i;
        outputs[i].slot = (uint32_t)slot;
        outputs[i].score_id = row.score_id;
        outputs[i].n_logprobs = (uint32_t)(row.n_logprobs + 1) & 0x7f;
        outputs[i].draw = (row.output.empty() ? row.draw : (uint32_t)row.output.size()) & 0xffffff;
        outputs[i].is_sampled = row.is_sampled;
    }
    block.set_outputs(outputs);
    DeviceArray<unsigned char> step(block.bytes());
    DeviceArray<float> d_logits(logits), scratch((size_t)n * ld);
    DeviceArray<hrk_sampling> d_sampling(sampling);
    DeviceArray<hrk_bias> d_bias(bias);
    DeviceArray<int32_t> d_stop(stop), d_next(next);
    DeviceArray<uint16_t> d_seen(seen);
    DeviceArray<uint32_t> d_mask(mask);
    DeviceArray<hrk_sample> samples(n + 1);
    DeviceArray<hrk_top> tops((size_t)(n + 1) * HRK_TOP_MAX);
    hrk_sampler_args args = {};
    const hrk_launch on = {nullptr, 4, false, false};

    args.tables.step = reinterpret_cast<const hrk_step *>(step.data());
    args.tables.next_token = d_next.data();
    args.tables.sampling = d_sampling.data();
    args.tables.bias = d_bias.data();
    args.tables.stop_ids = d_stop.data();
    args.tables.seen = d_seen.data();
    args.tables.seen_ld = stride;
    args.max_outputs = n + 1;
    args.logits = d_logits.data();
    args.V = V;
    args.n_valid = n_valid;
    args.scratch = scratch.data();
    args.mask = has_mask ? d_mask.data() : nullptr;
    args.samples = samples.data();
    args.tops = tops.data();
    assert_int_equal(hrk_sampler(&args, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);

    const auto got = samples.get();
    const auto got_tops = tops.get();
    const auto got_next = d_next.get();
    const auto got_seen = d_seen.get();
    const auto after = d_logits.get();
    std::vector<SampleResult> results;
    assert_memory_equal(after.data(), logits.data(), logits.size() * 4);
    for (uint32_t i = 0; i < n; i++) {
        const ptrdiff_t slot = (ptrdiff_t)(n - 1 - i), top = (ptrdiff_t)i * HRK_TOP_MAX;
        results.push_back({got[i],
                           {got_tops.begin() + top, got_tops.begin() + top + HRK_TOP_MAX},
                           got_next[(size_t)slot],
                           {got_seen.begin() + slot * stride, got_seen.begin() + (slot + 1) * stride}});
    }
    assert_int_equal(got[n].id, -1); /* there is no such row */
    return results;
}

// The same by the host's sampler.
inline hr_sample sample_on_host(const SampleRow &row, uint32_t V, uint32_t n_valid)
{
    hr_sampler *sampler = hr_sampler_create(V);
    std::vector<float> logits = row.logits;
    std::vector<int32_t> ids = row.prompt;
    std::vector<headrace_bias> bias;
    hr_sampling_params params = {};
    hr_history history = {};
    hr_sample out;

    ids.insert(ids.end(), row.output.begin(), row.output.end());
    for (const hrk_bias &b : row.bias)
        bias.push_back({b.id, b.value});
    for (uint32_t i = 0; i < n_valid && !row.mask.empty(); i++)
        logits[i] = row.mask[i / 32] >> (i % 32) & 1 ? logits[i] : -INFINITY;
    params.temperature = row.sampling.temperature;
    params.top_p = row.sampling.top_p;
    params.min_p = row.sampling.min_p;
    params.repetition_penalty = row.sampling.repetition_penalty;
    params.presence_penalty = row.sampling.presence_penalty;
    params.frequency_penalty = row.sampling.frequency_penalty;
    params.top_k = row.sampling.top_k;
    params.min_tokens = row.sampling.min_tokens;
    params.seed = row.sampling.seed;
    params.n_bias = (uint32_t)bias.size();
    params.bias = bias.data();
    params.n_stop_ids = (uint32_t)row.stop_ids.size();
    params.stop_ids = row.stop_ids.data();
    history.ids = ids.data();
    history.n_prompt = (uint32_t)row.prompt.size();
    history.n_total = (uint32_t)ids.size();
    if (row.score_id >= 0) {
        hr_score_token(sampler, row.logits.data(), n_valid, row.score_id, row.n_logprobs, &out);
    } else {
        hr_sample_token(sampler, logits.data(), n_valid, &params, &history, -1, &out);
        if (!out.is_bad && row.n_logprobs >= 0) { /* of the raw logits, also where a mask is set */
            const int32_t id = out.id;
            hr_score_token(sampler, row.logits.data(), n_valid, id, row.n_logprobs, &out);
        }
    }
    hr_sampler_destroy(sampler);
    return out;
}

inline void check_logprob(float got, float want)
{
    if (!(got == want || fabsf(got - want) <= 1e-5f * fmaxf(1.0f, fabsf(want))))
        fail_msg("log probability %.9g, the host's %.9g", (double)got, (double)want);
}

// Runs rows on both sides and compares everything a row gives.
inline void check_rows(const std::vector<SampleRow> &rows, uint32_t V, uint32_t n_valid)
{
    const std::vector<SampleResult> got = sample_on_device(rows, V, n_valid);

    for (size_t i = 0; i < rows.size(); i++) {
        const SampleRow &row = rows[i];
        const hr_sample want = sample_on_host(row, V, n_valid);
        const hrk_sample &is = got[i].sample;
        std::vector<uint16_t> seen = seen_of(row, V);

        if (is.is_bad != want.is_bad || (!want.is_bad && is.id != want.id))
            fail_msg("row %zu (temperature %g, top_k %d, top_p %g, min_p %g): id %d, bad %u; the host: id %d, bad %d",
                     i, (double)row.sampling.temperature, row.sampling.top_k, (double)row.sampling.top_p,
                     (double)row.sampling.min_p, is.id, is.is_bad, want.id, want.is_bad);
        if (row.score_id < 0) {
            const hrk_sampling &p = row.sampling;
            const bool has_penalties =
                p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
            uint16_t &count = seen[(size_t)is.id];

            assert_int_equal(got[i].next_token, is.id);
            if (has_penalties && !want.is_bad && (count & HRK_OUTPUT_COUNT) < HRK_OUTPUT_COUNT)
                count++;
        } else {
            assert_int_equal(got[i].next_token, -7);
        }
        assert_true(seen == got[i].seen);
        if (want.is_bad)
            continue;
        assert_int_equal(is.rank, want.rank);
        assert_int_equal(is.n_top, want.n_top);
        check_logprob(is.logprob, want.logprob);
        for (uint32_t t = 0; t < want.n_top; t++) {
            assert_int_equal(got[i].tops[t].id, want.top_ids[t]);
            check_logprob(got[i].tops[t].logprob, want.top_logprobs[t]);
        }
    }
}

} // namespace hrk_test
