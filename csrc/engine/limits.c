/* Defaults follow one rule: what was asked for is met or refused with a number; what was not asked for is made to fit.
 *
 * Memory of keys and values, unless given: half of what is available (the other half is for the weights' pages, which
 * the kernel counts as available although they will be needed), never more than the engine could use, and at most 4
 * GiB, because a server that takes 60 GiB for a test run is a bad guest. An explicit max_model_len may raise that up to
 * nine tenths.
 *
 * Pages are what limits concurrency, so the number of sequences by default is capped only by convolution states staying
 * under an eighth of the same budget, by one page each, and by 256.
 *
 * A device is nobody's but ours: pages take all that the utilization allows beside weights, scratch and convolution
 * states, and rows and sequences are those that keep it busy.
 */
#include "engine/limits.h"

#include <inttypes.h>
#include <string.h>

static const uint64_t MiB = (uint64_t)1 << 20;

static bool is_device(const hr_engine_config *config)
{
    return config->backend_ops && config->backend_ops->device_memory;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t saturating_mul(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static headrace_status check_range(const char *name, uint32_t value, uint32_t max, headrace_error *err)
{
    if (value > max)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s is %" PRIu32 ", at most %" PRIu32 " is possible", name,
                             value, max);
    return HEADRACE_OK;
}

headrace_status hr_limits_page_tokens(const hr_engine_config *config, uint32_t *page_tokens, headrace_error *err)
{
    HR_PASS(check_range("page_tokens", config->page_tokens, HR_PAGE_TOKENS_MAX, err));
    *page_tokens = config->page_tokens ? config->page_tokens
                   : is_device(config) ? HR_DEVICE_PAGE_TOKENS
                                       : HR_DEFAULT_PAGE_TOKENS;
    return HEADRACE_OK;
}

static uint32_t default_rows(const hr_engine_config *config, const hr_arch *arch)
{
    if (!is_device(config))
        return HR_DEFAULT_BATCHED_TOKENS;
    return arch->n_experts >= HR_MANY_EXPERTS ? HR_DEVICE_BATCHED_TOKENS_MANY_EXPERTS : HR_DEVICE_BATCHED_TOKENS;
}

/* Rows a step and sequences at once: each running sequence must be able to have its row in every step. */
static headrace_status decide_rows(const hr_engine_config *config, const hr_arch *arch, uint64_t by_memory,
                                   hr_limits *limits, headrace_error *err)
{
    uint32_t most = is_device(config) ? HR_DEVICE_SEQS : HR_DEFAULT_SEQS_MAX, usual = default_rows(config, arch);
    uint32_t rows = config->max_num_batched_tokens, seqs = config->max_num_seqs;

    HR_PASS(check_range("max_num_batched_tokens", rows, HR_BATCHED_TOKENS_MAX, err));
    HR_PASS(check_range("max_num_seqs", seqs, HR_SEQS_MAX, err));
    if (rows && seqs > rows)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "max_num_seqs",
                             "max_num_seqs is %" PRIu32 " but a step has only max_num_batched_tokens = %" PRIu32
                             " rows: each running sequence needs one",
                             seqs, rows);
    if (rows == 0)
        rows = seqs > usual ? seqs : usual;
    if (seqs == 0)
        seqs = (uint32_t)min_u64(min_u64(most, rows), by_memory ? by_memory : 1);
    limits->max_num_batched_tokens = rows;
    limits->max_num_seqs = seqs;
    /* Room for some scored prompt rows beside one sampled row a sequence; logits cost V floats each. */
    limits->max_outputs = (uint32_t)min_u64(rows, seqs + 32u);
    return HEADRACE_OK;
}

static headrace_status fail_memory(const hr_engine_config *config, uint32_t len, uint64_t need, uint64_t have,
                                   uint64_t fitting_len, uint32_t page_tokens, headrace_error *err)
{
    return hr_fail_param(err, HEADRACE_E_MEMORY, config->kv_cache_bytes ? "kv_cache_bytes" : "max_model_len",
                         "max-model-len %" PRIu32 " needs %.1f MiB of KV, %.1f MiB %s: try --max-model-len %" PRIu64
                         "%s%s",
                         len, (double)need / (double)MiB, (double)have / (double)MiB,
                         config->kv_cache_bytes ? "given by --kv-cache-memory" : "free",
                         fitting_len < page_tokens ? page_tokens : fitting_len,
                         config->kv_cache_bytes ? " or more --kv-cache-memory" : "",
                         config->kv_dtype == HR_KV_F32 ? " or --kv-cache-dtype bf16" : "");
}

/* budget: for pages, when nothing is asked for; most: what an explicit length may have. */
static headrace_status decide_pages(const hr_engine_config *config, uint64_t page_bytes, uint64_t budget, uint64_t most,
                                    hr_limits *limits, headrace_error *err)
{
    uint32_t wanted_len = limits->max_model_len;
    uint64_t one_context = (wanted_len + limits->page_tokens - 1) / limits->page_tokens;
    uint64_t useful = one_context * limits->max_num_seqs;
    uint64_t n_pages = budget / page_bytes;

    if (config->max_model_len && n_pages < one_context && !config->kv_cache_bytes)
        n_pages = min_u64(one_context, most / page_bytes);
    if (!config->kv_cache_bytes)
        n_pages = min_u64(n_pages, useful);
    n_pages = min_u64(n_pages, UINT32_MAX - 1);
    if (n_pages == 0 || (config->max_model_len && n_pages < one_context))
        return fail_memory(config, wanted_len, saturating_mul(one_context, page_bytes),
                           config->kv_cache_bytes ? config->kv_cache_bytes : most, n_pages * limits->page_tokens,
                           limits->page_tokens, err);
    limits->n_pages = (uint32_t)n_pages;
    limits->max_model_len = (uint32_t)min_u64(wanted_len, n_pages * limits->page_tokens);
    limits->pages_per_sequence = (limits->max_model_len + limits->page_tokens - 1) / limits->page_tokens;
    return HEADRACE_OK;
}

/* What was asked for and cannot be, whatever the memory. */
static headrace_status check_config(const hr_engine_config *config, const hr_arch *arch, headrace_error *err)
{
    double utilization = config->gpu_memory_utilization;

    if (arch->max_positions && config->max_model_len > arch->max_positions)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "max_model_len",
                             "max_model_len is %" PRIu32 " but the model knows only %" PRIu32 " positions",
                             config->max_model_len, arch->max_positions);
    if (config->max_model_len == 1)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "max_model_len",
                             "max_model_len is 1, but a prompt token and an answer token need 2");
    if (!(utilization >= 0 && utilization <= 1))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "gpu_memory_utilization",
                             "gpu_memory_utilization is %g, it is above 0 and up to 1", utilization);
    return HEADRACE_OK;
}

static headrace_status check_slots(uint64_t slots_bytes, uint64_t available, uint64_t by_slots, uint32_t n_seqs,
                                   headrace_error *err)
{
    if (slots_bytes <= available)
        return HEADRACE_OK;
    return hr_fail_param(err, HEADRACE_E_MEMORY, "max_num_seqs",
                         "max-num-seqs %" PRIu32 " needs %.1f MiB of convolution state, %.1f MiB free: try "
                         "--max-num-seqs %" PRIu64,
                         n_seqs, (double)slots_bytes / (double)MiB, (double)available / (double)MiB,
                         by_slots ? by_slots : 1);
}

headrace_status hr_limits_decide(const hr_engine_config *config, const hr_arch *arch, const hr_backend_sizes *sizes,
                                 uint64_t available_bytes, hr_limits *out, headrace_error *err)
{
    /* A model without attention layers has pages of no bytes; they are still counted. */
    uint64_t page_bytes = sizes->page_bytes ? sizes->page_bytes : 1, budget, by_slots, slots_bytes;
    uint64_t free_bytes = available_bytes; /* for keys and values */

    *out = (hr_limits){0};
    HR_PASS(hr_limits_page_tokens(config, &out->page_tokens, err));
    HR_PASS(check_config(config, arch, err));
    out->max_model_len =
        config->max_model_len
            ? config->max_model_len
            : (uint32_t)min_u64(arch->max_positions ? arch->max_positions : UINT32_MAX, HR_DEFAULT_MODEL_LEN_MAX);
    budget = config->kv_cache_bytes ? config->kv_cache_bytes
             : is_device(config)    ? available_bytes
                                    : min_u64(available_bytes / 2, HR_DEFAULT_KV_BYTES_MAX);
    by_slots = sizes->slot_bytes ? budget / 8 / sizes->slot_bytes : UINT64_MAX;
    HR_PASS(decide_rows(config, arch, min_u64(by_slots, budget / page_bytes), out, err));
    slots_bytes = saturating_mul(out->max_num_seqs, sizes->slot_bytes);
    HR_PASS(check_slots(slots_bytes, available_bytes, by_slots, out->max_num_seqs, err));
    if (is_device(config)) /* where nothing else may grow into what is left over */
        free_bytes -= slots_bytes;
    if (config->kv_cache_bytes > free_bytes)
        return hr_fail_param(err, HEADRACE_E_MEMORY, "kv_cache_bytes",
                             "--kv-cache-memory asks for %.1f MiB, %.1f MiB free: ask for less or leave it out",
                             (double)config->kv_cache_bytes / (double)MiB, (double)free_bytes / (double)MiB);
    HR_PASS(decide_pages(config, page_bytes, min_u64(budget, free_bytes),
                         is_device(config) ? free_bytes : available_bytes / 10 * 9, out, err));
    if (saturating_mul(out->pages_per_sequence, out->max_num_seqs) > UINT32_MAX / 2)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "max_num_seqs",
                             "%" PRIu32 " sequences of %" PRIu32
                             " pages make a page table of more than 2^31 entries: lower "
                             "max_num_seqs or max_model_len",
                             out->max_num_seqs, out->pages_per_sequence);
    out->max_num_queued_reqs = config->max_num_queued_reqs ? config->max_num_queued_reqs : 4 * out->max_num_seqs;
    out->max_num_queued_tokens = config->max_num_queued_tokens ? config->max_num_queued_tokens : UINT64_MAX;
    out->queue_timeout_us = config->queue_timeout_us ? config->queue_timeout_us : HR_DEFAULT_QUEUE_TIMEOUT_US;
    return HEADRACE_OK;
}

headrace_status hr_limits_device_bytes(const hr_engine_config *config, const hr_device_memory *memory,
                                       uint64_t scratch_bytes, uint64_t *out, headrace_error *err)
{
    double utilization =
        config->gpu_memory_utilization > 0 ? config->gpu_memory_utilization : HR_DEVICE_MEMORY_UTILIZATION;
    uint64_t reserve = memory->total_bytes / HR_DEVICE_RESERVE_SHARE;
    uint64_t left = memory->free_bytes > reserve ? memory->free_bytes - reserve : 0;
    uint64_t usable = min_u64((uint64_t)((double)memory->total_bytes * utilization), left);

    *out = 0;
    if (scratch_bytes >= usable)
        return hr_fail_param(err, HEADRACE_E_MEMORY, "gpu_memory_utilization",
                             "weights and work space need %.1f MiB, of the device's %.1f MiB %.1f MiB are free and "
                             "--gpu-memory-utilization %.2f leaves %.1f MiB: try %s",
                             (double)scratch_bytes / (double)MiB, (double)memory->total_bytes / (double)MiB,
                             (double)memory->free_bytes / (double)MiB, utilization, (double)usable / (double)MiB,
                             usable < left ? "a higher --gpu-memory-utilization or a smaller "
                                             "--max-num-batched-tokens"
                                           : "a smaller --max-num-batched-tokens, or free the device");
    *out = usable - scratch_bytes;
    return HEADRACE_OK;
}

/* The number after `key` in a small text file, or UINT64_MAX ("max" counts as no number). */
static uint64_t read_number(const char *path, const char *key)
{
    char line[256];
    uint64_t value = UINT64_MAX;
    size_t key_len = strlen(key);
    FILE *file = fopen(path, "re");

    if (!file)
        return value;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, key, key_len) == 0) {
            char *end;
            unsigned long long number = strtoull(line + key_len, &end, 10);

            if (end != line + key_len)
                value = number;
            break;
        }
    (void)fclose(file);
    return value;
}

uint64_t hr_available_memory(void)
{
    uint64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    uint64_t available = kib == UINT64_MAX ? (uint64_t)2 << 30 : saturating_mul(kib, 1024);
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max", "");
    uint64_t used = read_number("/sys/fs/cgroup/memory.current", "");
    uint64_t cache = read_number("/sys/fs/cgroup/memory.stat", "file ");

    if (limit == UINT64_MAX || used == UINT64_MAX)
        return available;
    if (cache != UINT64_MAX) /* page cache is given back under pressure */
        used = used > cache ? used - cache : 0;
    return min_u64(available, limit > used ? limit - used : 0);
}
