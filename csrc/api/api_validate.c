/* Every range that headrace.h states for a request, checked before anything is copied.
 *
 * A message names the field, the value and the range ("temperature: 3 is outside 0..2"), and error.param holds the
 * field, so that a server can hand both on unchanged.
 */
#include "api/api.h"

#include "base/utf8.h"

#include <string.h>

typedef struct range {
    const char *param;
    float value, low, high;
    bool is_open; /* low itself is outside */
} range;

static headrace_status check_range(const range *r, headrace_error *err)
{
    bool is_inside = r->is_open ? r->value > r->low : r->value >= r->low; /* false for NaN */

    if (is_inside && r->value <= r->high)
        return HEADRACE_OK;
    return hr_fail_param(err, HEADRACE_E_ARGUMENT, r->param, "%s: %g is outside %s%g..%g", r->param, (double)r->value,
                         r->is_open ? "(above) " : "", (double)r->low, (double)r->high);
}

static headrace_status check_count(const char *param, int64_t value, int64_t low, int64_t high, headrace_error *err)
{
    if (value >= low && value <= high)
        return HEADRACE_OK;
    return hr_fail_param(err, HEADRACE_E_ARGUMENT, param, "%s: %lld is outside %lld..%lld", param, (long long)value,
                         (long long)low, (long long)high);
}

static headrace_status check_id(const char *param, size_t index, int32_t id, uint32_t vocab_size, headrace_error *err)
{
    char name[48];

    if (id >= 0 && (uint32_t)id < vocab_size)
        return HEADRACE_OK;
    (void)snprintf(name, sizeof name, "%s[%zu]", param, index);
    return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s: id %d is outside 0..%u", name, id, vocab_size - 1);
}

static headrace_status check_numbers(const headrace_sampling *s, headrace_error *err)
{
    const range ranges[] = {
        {"temperature", s->temperature, 0.0f, 2.0f, false},
        {"top_p", s->top_p, 0.0f, 1.0f, true},
        {"min_p", s->min_p, 0.0f, 1.0f, false},
        {"repetition_penalty", s->repetition_penalty, 0.0f, 10.0f, true},
        {"presence_penalty", s->presence_penalty, -2.0f, 2.0f, false},
        {"frequency_penalty", s->frequency_penalty, -2.0f, 2.0f, false},
    };

    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        HR_PASS(check_range(&ranges[i], err));
    HR_PASS(check_count("top_k", s->top_k, -1, INT32_MAX, err));
    HR_PASS(check_count("n_logprobs", s->n_logprobs, -1, HEADRACE_LOGPROBS_MAX, err));
    HR_PASS(check_count("n_prompt_logprobs", s->n_prompt_logprobs, -1, HEADRACE_LOGPROBS_MAX, err));
    if (s->max_tokens > 0 && s->min_tokens > s->max_tokens)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "min_tokens", "min_tokens: %u is above max_tokens %u",
                             s->min_tokens, s->max_tokens);
    return HEADRACE_OK;
}

static headrace_status check_stop(const headrace_model *model, const headrace_sampling *s, headrace_error *err)
{
    char name[24];

    HR_PASS(check_count("n_stop", s->n_stop, 0, HEADRACE_STOP_MAX, err));
    for (uint32_t i = 0; i < s->n_stop; i++) {
        size_t len = s->stop[i] ? strnlen(s->stop[i], HEADRACE_STOP_BYTES_MAX + 1) : 0;

        (void)snprintf(name, sizeof name, "stop[%u]", i);
        if (len == 0)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s: is empty", name);
        if (len > HEADRACE_STOP_BYTES_MAX)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s: is longer than %d bytes", name,
                                 HEADRACE_STOP_BYTES_MAX);
        if (!hr_utf8_is_valid(s->stop[i], len, NULL))
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, name, "%s: is not valid UTF-8", name);
    }
    if (s->n_stop > 0 && !model->tokenizer)
        return hr_fail_param(err, HEADRACE_E_UNSUPPORTED, "stop",
                             "stop: the model has no tokenizer, so stop strings cannot be found; use stop_ids");
    return HEADRACE_OK;
}

static headrace_status check_ids(const headrace_sampling *s, uint32_t vocab_size, headrace_error *err)
{
    HR_PASS(check_count("n_stop_ids", s->n_stop_ids, 0, HEADRACE_STOP_MAX, err));
    for (uint32_t i = 0; i < s->n_stop_ids; i++)
        HR_PASS(check_id("stop_ids", i, s->stop_ids[i], vocab_size, err));
    HR_PASS(check_count("n_bias", s->n_bias, 0, HEADRACE_BIAS_MAX, err));
    if (s->n_bias > 0 && !s->bias)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "bias", "bias: is NULL but n_bias is %u", s->n_bias);
    for (uint32_t i = 0; i < s->n_bias; i++) {
        char name[24];

        HR_PASS(check_id("bias", i, s->bias[i].id, vocab_size, err));
        (void)snprintf(name, sizeof name, "bias[%u]", i);
        HR_PASS(check_range(&(range){name, s->bias[i].value, -100.0f, 100.0f, false}, err));
    }
    return HEADRACE_OK;
}

headrace_status hr_validate_request(const headrace_model *model, const headrace_request *request, headrace_error *err)
{
    uint32_t vocab_size = model->network->arch.vocab_size;

    if (request->n_prompt_ids == 0 || !request->prompt_ids)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_ids", "prompt_ids: is empty; one id at least");
    if (request->n_prompt_ids > INT32_MAX)
        return hr_fail_param(err, HEADRACE_E_CONTEXT, "prompt_ids", "prompt_ids: %zu ids", request->n_prompt_ids);
    for (size_t i = 0; i < request->n_prompt_ids; i++)
        HR_PASS(check_id("prompt_ids", i, request->prompt_ids[i], vocab_size, err));
    HR_PASS(check_count("n", request->n, 0, HEADRACE_N_MAX, err));
    HR_PASS(check_count("num_speculative_tokens", request->num_speculative_tokens, -1, HEADRACE_SPECULATIVE_MAX, err));
    HR_PASS(check_numbers(&request->sampling, err));
    HR_PASS(check_stop(model, &request->sampling, err));
    return check_ids(&request->sampling, vocab_size, err);
}
