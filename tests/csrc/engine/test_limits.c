/* What an engine promises under which options and memory; and the numbers it shows. */
#include "engine/engine_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static const uint64_t KiB = 1024, MiB = (uint64_t)1 << 20, GiB = (uint64_t)1 << 30;

/* 350M-like: 12 KiB of KV a token in bf16, 80 KiB of state in fp32. */
static const hr_arch arch = {.max_positions = 128000, .vocab_size = 65536};
static const hr_backend_sizes sizes = {.page_bytes = 16 * 12 * 1024, .slot_bytes = 80 * 1024};

static hr_limits decide(const hr_engine_config *config, uint64_t available)
{
    hr_limits limits;
    headrace_error err = {0};

    if (hr_limits_decide(config, &arch, &sizes, available, &limits, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return limits;
}

static void refused(const hr_engine_config *config, uint64_t available, headrace_status status, const char *param,
                    const char *part)
{
    hr_limits limits;
    headrace_error err = {0};

    assert_int_equal(hr_limits_decide(config, &arch, &sizes, available, &limits, &err), status);
    assert_string_equal(err.param, param);
    if (!strstr(err.message, part))
        fail_msg("'%s' is not in '%s'", part, err.message);
}

static void defaults_on_a_large_machine(void **state)
{
    hr_limits limits = decide(&(hr_engine_config){0}, 64 * GiB);

    (void)state;
    assert_int_equal(limits.page_tokens, 16);
    assert_int_equal(limits.max_num_batched_tokens, 512);
    assert_int_equal(limits.max_num_seqs, 256);
    assert_int_equal(limits.max_num_queued_reqs, 1024);
    assert_int_equal(limits.max_model_len, 32768);
    assert_int_equal(limits.n_pages, 4 * GiB / (192 * KiB));
    assert_int_equal(limits.queue_timeout_us, 60000000);
    assert_true(limits.max_num_queued_tokens == UINT64_MAX);
}

static void a_small_machine_lowers_what_was_not_asked_for(void **state)
{
    hr_limits limits = decide(&(hr_engine_config){0}, 300 * MiB);

    (void)state;
    assert_int_equal(limits.n_pages, 150 * MiB / (192 * KiB));
    assert_int_equal(limits.max_model_len, limits.n_pages * 16);
    assert_int_equal(limits.max_num_seqs, 150 * MiB / 8 / (80 * KiB));
}

static void no_more_is_taken_than_can_be_used(void **state)
{
    hr_limits limits = decide(&(hr_engine_config){.max_num_seqs = 2, .max_model_len = 1000}, 64 * GiB);

    (void)state;
    assert_int_equal(limits.pages_per_sequence, 63);
    assert_int_equal(limits.n_pages, 2 * 63);
    assert_int_equal(limits.max_model_len, 1000);
}

static void an_explicit_length_may_take_more_than_the_default_memory(void **state)
{
    hr_arch wide = arch;
    hr_backend_sizes big = {.page_bytes = 1 * MiB, .slot_bytes = 1};
    hr_limits limits;

    (void)state;
    assert_int_equal(
        hr_limits_decide(&(hr_engine_config){.max_model_len = 128000}, &wide, &big, 10 * GiB, &limits, NULL),
        HEADRACE_OK);
    assert_int_equal(limits.n_pages, 8000);
    assert_int_equal(limits.max_model_len, 128000);
}

static void an_explicit_length_that_does_not_fit_is_refused_with_what_does(void **state)
{
    hr_engine_config given = {.max_model_len = 20000, .kv_cache_bytes = 100 * MiB};

    (void)state;
    refused(&(hr_engine_config){.max_model_len = 128000}, 1 * GiB, HEADRACE_E_MEMORY, "max_model_len",
            "max-model-len 128000 needs 1500.0 MiB of KV, 921.6 MiB free: try --max-model-len 78640");
    refused(&given, 1 * GiB, HEADRACE_E_MEMORY, "kv_cache_bytes",
            "max-model-len 20000 needs 234.4 MiB of KV, 100.0 MiB given by --kv-cache-memory: try --max-model-len 8528 "
            "or more "
            "--kv-cache-memory");
    given.kv_dtype = HR_KV_F32;
    refused(&given, 1 * GiB, HEADRACE_E_MEMORY, "kv_cache_bytes", "or --kv-cache-dtype bf16");
}

static void explicit_memory_is_met_at_the_border(void **state)
{
    hr_engine_config exactly = {.max_model_len = 1600, .kv_cache_bytes = 100 * 192 * 1024};
    hr_limits limits = decide(&exactly, 1 * GiB);

    (void)state;
    assert_int_equal(limits.n_pages, 100);
    exactly.kv_cache_bytes--;
    refused(&exactly, 1 * GiB, HEADRACE_E_MEMORY, "kv_cache_bytes", "try --max-model-len 1584");
    exactly.kv_cache_bytes = 2 * GiB;
    refused(&exactly, 1 * GiB, HEADRACE_E_MEMORY, "kv_cache_bytes", "asks for 2048.0 MiB, 1024.0 MiB free");
}

static void options_out_of_range_are_named(void **state)
{
    (void)state;
    refused(&(hr_engine_config){.max_model_len = 128001}, 64 * GiB, HEADRACE_E_ARGUMENT, "max_model_len",
            "128000 positions");
    refused(&(hr_engine_config){.max_model_len = 1}, 64 * GiB, HEADRACE_E_ARGUMENT, "max_model_len", "need 2");
    refused(&(hr_engine_config){.page_tokens = 1025}, 64 * GiB, HEADRACE_E_ARGUMENT, "page_tokens", "at most 1024");
    refused(&(hr_engine_config){.max_num_seqs = 4097}, 64 * GiB, HEADRACE_E_ARGUMENT, "max_num_seqs", "at most 4096");
    refused(&(hr_engine_config){.max_num_batched_tokens = 65537}, 64 * GiB, HEADRACE_E_ARGUMENT,
            "max_num_batched_tokens", "at most 65536");
    refused(&(hr_engine_config){.max_num_seqs = 9, .max_num_batched_tokens = 8}, 64 * GiB, HEADRACE_E_ARGUMENT,
            "max_num_seqs", "max_num_batched_tokens = 8");
    refused(&(hr_engine_config){.max_num_seqs = 4096}, 100 * MiB, HEADRACE_E_MEMORY, "max_num_seqs",
            "needs 320.0 MiB of convolution state");
}

static void rows_and_sequences_follow_each_other(void **state)
{
    (void)state;
    assert_int_equal(decide(&(hr_engine_config){.max_num_batched_tokens = 8}, 64 * GiB).max_num_seqs, 8);
    assert_int_equal(decide(&(hr_engine_config){.max_num_seqs = 1000}, 64 * GiB).max_num_batched_tokens, 1000);
    assert_int_equal(decide(&(hr_engine_config){.max_num_seqs = 8, .max_num_batched_tokens = 8}, 64 * GiB).max_outputs,
                     8);
    assert_int_equal(decide(&(hr_engine_config){.max_num_seqs = 8}, 64 * GiB).max_outputs, 40);
}

/* ---------------------------------------------------------------- a device */

static headrace_status some_memory(uint32_t index, hr_device_memory *out, headrace_error *err)
{
    (void)index;
    (void)err;
    *out = (hr_device_memory){.free_bytes = 79 * GiB, .total_bytes = 80 * GiB};
    return HEADRACE_OK;
}

static const hr_backend_ops device_ops = {.name = "device", .device_memory = some_memory};
static const hr_backend_sizes device_sizes = {.page_bytes = 64 * 12 * 1024, .slot_bytes = 160 * 1024};

static hr_limits decide_device(const hr_engine_config *config, const hr_arch *of, uint64_t available)
{
    hr_engine_config on_device = *config;
    hr_limits limits;
    headrace_error err = {0};

    on_device.backend_ops = &device_ops;
    if (hr_limits_decide(&on_device, of, &device_sizes, available, &limits, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return limits;
}

static void a_device_is_filled(void **state)
{
    hr_limits limits = decide_device(&(hr_engine_config){0}, &arch, 60 * GiB);
    hr_arch many_experts = arch;

    (void)state;
    assert_int_equal(limits.page_tokens, 64);
    assert_int_equal(limits.max_num_batched_tokens, 2048);
    assert_int_equal(limits.max_num_seqs, 1024);
    assert_int_equal(limits.max_model_len, 32768);
    assert_int_equal(limits.n_pages, (60 * GiB - 1024 * 160 * KiB) / (768 * KiB));
    many_experts.n_experts = 64;
    assert_int_equal(decide_device(&(hr_engine_config){0}, &many_experts, 60 * GiB).max_num_batched_tokens, 3072);
    limits = decide_device(&(hr_engine_config){.page_tokens = 16, .max_num_batched_tokens = 256}, &arch, 60 * GiB);
    assert_int_equal(limits.page_tokens, 16);
    assert_int_equal(limits.max_num_seqs, 256);
    limits = decide_device(&(hr_engine_config){.kv_cache_bytes = 768 * MiB}, &arch, 60 * GiB);
    assert_int_equal(limits.n_pages, 1024);
}

static void a_small_device_lowers_what_was_not_asked_for(void **state)
{
    hr_limits limits = decide_device(&(hr_engine_config){0}, &arch, 64 * MiB);

    (void)state;
    assert_int_equal(limits.max_num_seqs, 8 * MiB / (160 * KiB));
    assert_int_equal(limits.n_pages, (64 * MiB - limits.max_num_seqs * 160 * KiB) / (768 * KiB));
    assert_int_equal(limits.max_model_len, limits.n_pages * 64);
}

static void a_device_holds_no_more_than_it_has(void **state)
{
    hr_limits limits;
    headrace_error err = {0};
    hr_engine_config config = {.backend_ops = &device_ops, .max_num_seqs = 1000, .kv_cache_bytes = 950 * MiB};

    (void)state;
    assert_int_equal(hr_limits_decide(&config, &arch, &device_sizes, 1 * GiB, &limits, &err), HEADRACE_E_MEMORY);
    assert_string_equal(err.param, "kv_cache_bytes");
    config.kv_cache_bytes = 0;
    config.max_model_len = 128000;
    assert_int_equal(hr_limits_decide(&config, &arch, &device_sizes, 1 * GiB, &limits, &err), HEADRACE_E_MEMORY);
    assert_string_equal(err.param, "max_model_len");
}

static void the_utilization_bounds_what_a_device_gives(void **state)
{
    const hr_device_memory memory = {.free_bytes = 79 * GiB, .total_bytes = 80 * GiB};
    hr_engine_config config = {.backend_ops = &device_ops};
    headrace_error err = {0};
    uint64_t available;

    (void)state;
    assert_int_equal(hr_limits_device_bytes(&config, &memory, 50 * GiB, &available, &err), HEADRACE_OK);
    assert_int_equal(available / MiB, 22 * 1024);
    config.gpu_memory_utilization = 1;
    assert_int_equal(hr_limits_device_bytes(&config, &memory, 50 * GiB, &available, &err), HEADRACE_OK);
    assert_int_equal(available / MiB, (79 - 50) * 1024 - 80 * 1024 / HR_DEVICE_RESERVE_SHARE);
    config.gpu_memory_utilization = 0.5;
    assert_int_equal(hr_limits_device_bytes(&config, &memory, 50 * GiB, &available, &err), HEADRACE_E_MEMORY);
    assert_string_equal(err.param, "gpu_memory_utilization");
    assert_non_null(strstr(err.message, "a higher --gpu-memory-utilization"));
    config.gpu_memory_utilization = 1;
    assert_int_equal(hr_limits_device_bytes(&config, &memory, 78 * GiB, &available, &err), HEADRACE_E_MEMORY);
    assert_non_null(strstr(err.message, "or free the device"));
    config.gpu_memory_utilization = 1.5;
    config.backend_ops = NULL;
    refused(&config, 64 * GiB, HEADRACE_E_ARGUMENT, "gpu_memory_utilization", "up to 1");
}

/* As on a device: a slot has a row of the page table, which is as long as the context. */
static headrace_status sizes_with_tables(const hr_model *model, const hr_backend_options *options,
                                         hr_backend_sizes *out, headrace_error *err)
{
    uint64_t longest = 32768 / HR_DEVICE_PAGE_TOKENS;

    (void)model;
    (void)err;
    *out = (hr_backend_sizes){.page_bytes = 1 * MiB,
                              .slot_bytes =
                                  4 * KiB * (options->max_page_refs < longest ? options->max_page_refs : longest),
                              .scratch_bytes = 50 * GiB};
    return HEADRACE_OK;
}

static uint64_t bytes_taken; /* by pages and slots */

static headrace_status take_bytes(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                  uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    hr_backend_sizes own;

    *out = NULL;
    (void)sizes_with_tables(model, options, &own, err);
    bytes_taken = own.scratch_bytes + (uint64_t)n_pages * own.page_bytes + (uint64_t)n_slots * own.slot_bytes;
    return hr_fail(err, HEADRACE_E_UNSUPPORTED, "it was about the sizes");
}

static void what_an_engine_takes_of_a_device_is_within_bounds(void **state)
{
    const hr_backend_ops ops = {.name = "device",
                                .max_steps_in_flight = 2,
                                .device_memory = some_memory,
                                .sizes = sizes_with_tables,
                                .open = take_bytes};
    const hr_model model = {.arch = arch};
    hr_engine_config config = {.model = &model, .backend_ops = &ops};
    headrace_error err = {0};
    hr_engine *engine;

    (void)state;
    assert_int_equal(hr_engine_open(&config, &engine, &err), HEADRACE_E_UNSUPPORTED);
    assert_true(bytes_taken <= 72 * GiB && bytes_taken > 71 * GiB);
}

static void memory_is_found_on_this_machine(void **state)
{
    (void)state;
    assert_true(hr_available_memory() > MiB);
}

static void histograms_count_at_below_and_above_a_bound(void **state)
{
    static hr_metrics metrics;
    headrace_stats stats;

    (void)state;
    hr_metrics_init(&metrics, 4096);
    hr_histogram_add(&metrics.ttft, 999);
    hr_histogram_add(&metrics.ttft, 1000);
    hr_histogram_add(&metrics.ttft, 1001);
    hr_histogram_add(&metrics.ttft, UINT64_C(2560000001));
    hr_histogram_add(&metrics.prompt_len, 4096);
    hr_metrics_read(&metrics, &stats);
    assert_true(stats.healthy);
    assert_int_equal(stats.ttft_s.n_buckets, 22);
    assert_true(stats.ttft_s.bound[0] == 0.001 && stats.ttft_s.bound[21] == 2560.0 && stats.ttft_s.bound[3] == 0.02);
    assert_int_equal(stats.ttft_s.cumulative[0], 2);
    assert_int_equal(stats.ttft_s.cumulative[1], 3);
    assert_int_equal(stats.ttft_s.cumulative[21], 3);
    assert_int_equal(stats.ttft_s.count, 4);
    assert_true(stats.ttft_s.sum > 2560.0029 && stats.ttft_s.sum < 2560.0031);
    assert_true(stats.itl_s.n_buckets == 22 && stats.e2e_s.n_buckets == 21 && stats.step_tokens.n_buckets == 13);
    assert_true(stats.prompt_len.bound[stats.prompt_len.n_buckets - 1] == 5000.0);
    assert_int_equal(stats.prompt_len.cumulative[stats.prompt_len.n_buckets - 2], 0);
    assert_int_equal(stats.prompt_len.cumulative[stats.prompt_len.n_buckets - 1], 1);
    hr_metrics_init(&metrics, UINT32_MAX);
    assert_true(metrics.prompt_len.n_bounds <= HEADRACE_HISTOGRAM_BUCKETS);
}

static void three_bad_logits_within_a_minute_are_too_many(void **state)
{
    hr_bad_logits bad = {0};
    const uint64_t second = 1000000, start = 5 * second;

    (void)state;
    assert_false(hr_bad_logits_add(&bad, start));
    assert_false(hr_bad_logits_add(&bad, start + 30 * second));
    assert_false(hr_bad_logits_add(&bad, start + 61 * second));
    assert_false(hr_bad_logits_add(&bad, start + 91 * second));
    assert_true(hr_bad_logits_add(&bad, start + 121 * second));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_on_a_large_machine),
        cmocka_unit_test(a_small_machine_lowers_what_was_not_asked_for),
        cmocka_unit_test(no_more_is_taken_than_can_be_used),
        cmocka_unit_test(an_explicit_length_may_take_more_than_the_default_memory),
        cmocka_unit_test(an_explicit_length_that_does_not_fit_is_refused_with_what_does),
        cmocka_unit_test(explicit_memory_is_met_at_the_border),
        cmocka_unit_test(options_out_of_range_are_named),
        cmocka_unit_test(rows_and_sequences_follow_each_other),
        cmocka_unit_test(a_device_is_filled),
        cmocka_unit_test(a_small_device_lowers_what_was_not_asked_for),
        cmocka_unit_test(a_device_holds_no_more_than_it_has),
        cmocka_unit_test(the_utilization_bounds_what_a_device_gives),
        cmocka_unit_test(what_an_engine_takes_of_a_device_is_within_bounds),
        cmocka_unit_test(memory_is_found_on_this_machine),
        cmocka_unit_test(histograms_count_at_below_and_above_a_bound),
        cmocka_unit_test(three_bad_logits_within_a_minute_are_too_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
