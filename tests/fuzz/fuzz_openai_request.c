/* Any bytes as the body of a request, for every endpoint: refused with an error that is itself valid JSON, or values
 * within their ranges. The first byte chooses the endpoint. */
#include "server/json_input.h"
#include "server/openai_request.h"

#include "base/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(const hr_api_error *error)
{
    hr_buffer out = {0};
    json_t *tree;

    hr_api_error_json(&out, error);
    tree = json_loadb(out.at, out.len, JSON_REJECT_DUPLICATES, NULL);
    HR_ASSERT(tree && json_is_string(json_object_get(json_object_get(tree, "error"), "code")));
    json_decref(tree);
    hr_buffer_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int kinds[] = {HR_FOR_CHAT, HR_FOR_COMPLETIONS, HR_FOR_TOKENIZE, HR_FOR_DETOKENIZE};
    const hr_request_limits limits = {
        .max_n = 16, .max_logprobs = 20, .max_batch_prompts = 8, .max_model_len = 100, .vocab_size = 2048};
    headrace_sampling defaults;
    hr_openai_request request;
    hr_api_error error = {0};
    json_t *body;

    if (size == 0)
        return 0;
    headrace_sampling_init(&defaults);
    body = hr_json_parse_object((const char *)data + 1, size - 1, &error);
    if (!body || !hr_openai_request_init(&request, kinds[data[0] & 3], body, &defaults, &limits, &error)) {
        check_error(&error);
        return 0;
    }
    HR_ASSERT(request.n >= 1 && request.n <= 16 && request.sampling.n_stop <= HEADRACE_STOP_MAX);
    HR_ASSERT(request.sampling.n_stop_ids <= HEADRACE_STOP_MAX && request.sampling.n_bias <= HEADRACE_BIAS_MAX);
    HR_ASSERT(request.sampling.temperature >= 0.0f && request.sampling.temperature <= 2.0f);
    HR_ASSERT(request.sampling.top_p > 0.0f && request.sampling.top_p <= 1.0f);
    hr_openai_request_deinit(&request);
    return 0;
}
