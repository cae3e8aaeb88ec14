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

struct headrace_compute {
    headrace_model *model;
    hr_backend *backend;
    uint32_t max_ids, chunk, page_tokens;
    uint64_t n_runs;
};

headrace_status hr_compute_open(headrace_model *model, const headrace_compute_options *options, size_t max_ids,
                                hr_tap_fn tap, void *tap_user, headrace_compute **out, headrace_error *err)
{
    headrace_compute *c;
    uint32_t n_pages;
    hr_compare_side how;
    headrace_status status;

    *out = NULL;
    HR_PASS(read_options(options, &how, err));
    HR_PASS(hr_need_weights(model, err));
    if (max_ids == 0 || max_ids > model->network->arch.max_positions)
        return hr_fail_param(err, max_ids == 0 ? HEADRACE_E_ARGUMENT : HEADRACE_E_CONTEXT, "max_ids",
                             "max_ids: %zu tokens; 1 to %u, the positions of this model", max_ids,
                             model->network->arch.max_positions);
    c = calloc(1, sizeof *c);
    if (!c)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to compute with");
    *c = (headrace_compute){.model = model, .max_ids = (uint32_t)max_ids, .page_tokens = how.options.page_tokens};
    c->chunk = how.chunk > 0 ? how.chunk : CHUNK_DEFAULT;
    c->chunk = c->chunk < c->max_ids ? c->chunk : c->max_ids;
    n_pages = (c->max_ids + c->page_tokens - 1) / c->page_tokens;
    how.options.max_rows = how.options.max_outputs = c->chunk;
    how.options.max_spans = 1;
    how.options.max_page_refs = n_pages;
    how.options.tap = tap;
    how.options.tap_user = tap_user;
    status = how.ops->open(model->network, &how.options, n_pages, 1, &c->backend, err);
    if (status == HEADRACE_OK)
        *out = c;
    else
        free(c);
    return status;
}

headrace_status headrace_compute_open(headrace_model *model, const headrace_compute_options *options, size_t max_ids,
                                      headrace_compute **out, headrace_error *err)
{
    return hr_compute_open(model, options, max_ids, NULL, NULL, out, err);
}

void headrace_compute_close(headrace_compute *compute)
{
    if (!compute)
        return;
    compute->backend->ops->close(compute->backend);
    free(compute);
}

/* Rows [first, first + n) of the one sequence, logits of each unless there is no place for them. */
static void fill_batch(const headrace_compute *c, hr_batch *batch, const int32_t *ids, uint32_t first, uint32_t n,
                       float *logits)
{
    size_t vocab_size = c->model->network->arch.vocab_size;
    uint32_t n_pages = (first + n + c->page_tokens - 1) / c->page_tokens;

    batch->n_rows = batch->n_outputs = n;
    batch->n_spans = 1;
    batch->n_page_refs = n_pages;
    memcpy(batch->token_ids, ids + first, n * sizeof *ids);
    batch->spans[0] = (hr_span){.n_rows = n,
                                .start_position = first,
                                .n_pages = n_pages,
                                .sequence = c->n_runs,
                                .n_prompt = first + n, /* all rows are of the prompt */
                                .is_fresh = first == 0};
    for (uint32_t i = 0; i < n_pages; i++)
        batch->pages[i] = i;
    for (uint32_t i = 0; i < n; i++)
        batch->outputs[i] = (hr_output){
            .row = i, .n_logprobs = -1, .score_id = -1, .logits = logits ? logits + (first + i) * vocab_size : NULL};
}

headrace_status headrace_compute_run(headrace_compute *compute, const int32_t *ids, size_t n_ids, float *logits,
                                     headrace_error *err)
{
    const hr_backend_ops *ops = compute->backend->ops;

    HR_PASS(check_ids(compute->model, ids, n_ids, err));
    if (n_ids > compute->max_ids)
        return hr_fail_param(err, HEADRACE_E_CONTEXT, "ids", "ids: %zu tokens, opened for at most %u", n_ids,
                             compute->max_ids);
    compute->n_runs++;
    for (uint32_t first = 0; first < n_ids; first += compute->chunk) {
        hr_batch *batch = ops->batch(compute->backend, 0);
        uint32_t left = (uint32_t)n_ids - first;

        fill_batch(compute, batch, ids, first, left < compute->chunk ? left : compute->chunk, logits);
        HR_PASS(ops->step_begin(compute->backend, batch, err));
        HR_PASS(ops->step_wait(compute->backend, err));
    }
    return HEADRACE_OK;
}

headrace_status headrace_compute_logits(headrace_model *model, const headrace_compute_options *options,
                                        const int32_t *ids, size_t n_ids, float *logits, headrace_error *err)
{
    headrace_compute *compute;
    headrace_status status;

    HR_PASS(hr_need_weights(model, err));
    HR_PASS(check_ids(model, ids, n_ids, err));
    HR_PASS(headrace_compute_open(model, options, n_ids, &compute, err));
    status = headrace_compute_run(compute, ids, n_ids, logits, err);
    headrace_compute_close(compute);
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
