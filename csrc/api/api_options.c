/* Option structs that can grow: what is common to all of them. */
#include "api/api.h"

#include <string.h>

headrace_status hr_options_read(void *own, size_t own_size, const void *given, const char *what, headrace_error *err)
{
    size_t size;

    if (!given)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, what, "%s: is NULL", what);
    memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > own_size)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "struct_size",
                             "%s: struct_size %zu is outside %zu..%zu; fill the struct with its init function first",
                             what, size, sizeof size, own_size);
    memcpy(own, given, size);
    memcpy(own, &own_size, sizeof own_size);
    return HEADRACE_OK;
}

headrace_status hr_kv_dtype_parse(const char *name, hr_kv_dtype *out, headrace_error *err)
{
    if (!name || strcmp(name, "auto") == 0)
        *out = HR_KV_AUTO;
    else if (strcmp(name, "bf16") == 0)
        *out = HR_KV_BF16;
    else if (strcmp(name, "f32") == 0)
        *out = HR_KV_F32;
    else
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "kv_cache_dtype",
                             "kv_cache_dtype: '%s' is not one of auto, bf16, f32", name);
    return HEADRACE_OK;
}

void headrace_model_options_init(headrace_model_options *options)
{
    *options = (headrace_model_options){.struct_size = sizeof *options};
}

void headrace_engine_options_init(headrace_engine_options *options)
{
    *options = (headrace_engine_options){
        .struct_size = sizeof *options, .device = "auto", .page_tokens = 0, .kv_cache_dtype = "auto"};
}

void headrace_sampling_init(headrace_sampling *sampling)
{
    *sampling = (headrace_sampling){.struct_size = sizeof *sampling,
                                    .temperature = 1.0f,
                                    .top_p = 1.0f,
                                    .repetition_penalty = 1.0f,
                                    .n_logprobs = -1,
                                    .n_prompt_logprobs = -1};
}

void headrace_sampling_defaults(const headrace_model *model, headrace_sampling *sampling)
{
    const hr_sampling_hint *hint = &model->network->sampling;

    /* NaN or a negative number: the source says nothing. A comparison with NaN is false. */
    headrace_sampling_init(sampling);
    if (hint->temperature >= 0.0f)
        sampling->temperature = hint->temperature;
    if (hint->top_p > 0.0f)
        sampling->top_p = hint->top_p;
    if (hint->min_p >= 0.0f)
        sampling->min_p = hint->min_p;
    if (hint->repetition_penalty > 0.0f)
        sampling->repetition_penalty = hint->repetition_penalty;
    if (hint->top_k > 0)
        sampling->top_k = hint->top_k;
}

void headrace_request_init(headrace_request *request)
{
    *request = (headrace_request){.struct_size = sizeof *request, .n = 1, .num_speculative_tokens = -1};
    headrace_sampling_init(&request->sampling);
}

void headrace_compute_options_init(headrace_compute_options *options)
{
    *options = (headrace_compute_options){.struct_size = sizeof *options};
}
