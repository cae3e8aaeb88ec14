/* Numbers instead of answers: logits of every position, and where two ways of computing them part.
 *
 * Both run on an instance of the backend of their own, one sequence, so that they say what the network computes and
 * nothing about the engine.
 */
#include "api/api.h"

#include "backend/compare.h"
#include "backend/devices.h"

#include <string.h>

enum { CHUNK_DEFAULT = 512, PAGE_TOKENS = 16, DEVICE_PAGE_TOKENS = 64 };

static headrace_status check_ids(const headrace_model *model, const int32_t *ids, size_t n_ids, headrace_error *err)
{
    const hr_arch *arch = &model->network->arch;

    if (!ids || n_ids == 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "ids", "ids: is empty; one id at least");
    if (n_ids > arch->max_positions)
        return hr_fail_param(err, HEADRACE_E_CONTEXT, "ids", "ids: %zu tokens are more than the model's %u positions",
                             n_ids, arch->max_positions);
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= arch->vocab_size)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "ids", "ids[%zu]: id %d is outside 0..%u", i, ids[i],
                                 arch->vocab_size - 1);
    return HEADRACE_OK;
}

/* What both functions need of the options: one side of a comparison. */
static headrace_status read_options(const headrace_compute_options *given, hr_compare_side *out, headrace_error *err)
{
    headrace_compute_options own;
    hr_device_choice device;

    headrace_compute_options_init(&own);
    if (given)
        HR_PASS(hr_options_read(&own, sizeof own, given, "compute options", err));
    HR_PASS(hr_device_choose(own.device ? own.device : "cpu", &device, err));
    *out = (hr_compare_side){
        .ops = device.ops,
        .options = {.n_threads = own.n_threads,
                    .device_index = device.index,
                    .page_tokens = device.ops->device_memory ? DEVICE_PAGE_TOKENS : PAGE_TOKENS,
                    .exact = own.exact},
        .chunk = own.chunk,
    };
    return hr_kv_dtype_parse(own.kv_cache_dtype, &out->options.kv_dtype, err);
}

/* Rows [first, first + n) of the one sequence, logits of each. */
static void fill_batch(hr_batch *batch, const int32_t *ids, uint32_t first, uint32_t n, uint32_t n_pages, float *logits,
                       size_t vocab_size)
{
    batch->n_rows = batch->n_outputs = n;
    batch->n_spans = 1;
    batch->n_page_refs = n_pages;
    memcpy(batch->token_ids, ids + first, n * sizeof *ids);
    batch->spans[0] = (hr_span){.n_rows = n,
                                .start_position = first,
                                .n_pages = n_pages,
                                .sequence = 1,
                                .n_prompt = first + n, /* all rows are of the prompt */
                                .is_fresh = first == 0};
    for (uint32_t i = 0; i < n_pages; i++)
        batch->pages[i] = i;
    for (uint32_t i = 0; i < n; i++)
        batch->outputs[i] =
            (hr_output){.row = i, .n_logprobs = -1, .score_id = -1, .logits = logits + (first + i) * vocab_size};
}

headrace_status headrace_compute_logits(headrace_model *model, const headrace_compute_options *options,
                                        const int32_t *ids, size_t n_ids, float *logits, headrace_error *err)
{
    const hr_backend_ops *ops;
    hr_backend *backend = NULL;
    headrace_status status = HEADRACE_OK;
    uint32_t total, chunk, n_pages;
    hr_compare_side how;

    HR_PASS(read_options(options, &how, err));
    HR_PASS(hr_need_weights(model, err));
    HR_PASS(check_ids(model, ids, n_ids, err));
    total = (uint32_t)n_ids;
    chunk = how.chunk > 0 ? how.chunk : CHUNK_DEFAULT;
    chunk = chunk < total ? chunk : total;
    n_pages = (total + how.options.page_tokens - 1) / how.options.page_tokens;
    ops = how.ops;
    how.options.max_rows = how.options.max_outputs = chunk;
    how.options.max_spans = 1;
    how.options.max_page_refs = n_pages;
    HR_PASS(ops->open(model->network, &how.options, n_pages, 1, &backend, err));
    for (uint32_t first = 0; first < total && status == HEADRACE_OK; first += chunk) {
        hr_batch *batch = ops->batch(backend, 0);
        uint32_t n = total - first < chunk ? total - first : chunk;

        fill_batch(batch, ids, first, n, n_pages, logits, model->network->arch.vocab_size);
        status = ops->step_begin(backend, batch, err);
        if (status == HEADRACE_OK)
            status = ops->step_wait(backend, err);
    }
    ops->close(backend);
    return status;
}

headrace_status headrace_compare(headrace_model *model, const headrace_compute_options *left,
                                 const headrace_compute_options *right, const int32_t *ids, size_t n_ids,
                                 double tolerance, char **json, headrace_error *err)
{
    hr_compare_side sides[2];
    hr_buffer text = {0};
    headrace_status status;

    *json = NULL;
    HR_PASS(read_options(left, &sides[0], err));
    HR_PASS(read_options(right, &sides[1], err));
    if (!(tolerance >= 0.0))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "tolerance", "tolerance: %g is below 0", tolerance);
    HR_PASS(hr_need_weights(model, err));
    HR_PASS(check_ids(model, ids, n_ids, err));
    status = hr_compare(model->network, &sides[0], &sides[1], ids, (uint32_t)n_ids, tolerance, &text, err);
    if (status == HEADRACE_OK) {
        *json = hr_buffer_take(&text, NULL);
        if (!*json)
            status = hr_fail(err, HEADRACE_E_MEMORY, "no memory for a comparison");
    }
    hr_buffer_deinit(&text);
    return status;
}
