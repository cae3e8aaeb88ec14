/* Request bodies become numbers the engine takes, or an error that names the field. The black-box tests walk through
 * every field; here are the values that arrive, the ranges at their very edges, and every integer edge in every numeric
 * field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/json_input.h"
#include "server/openai_request.h"

#include <stdio.h>
#include <string.h>

static const hr_request_limits limits = {
    .max_n = 16, .max_logprobs = 20, .max_batch_prompts = 4, .max_model_len = 100, .vocab_size = 50};

static const headrace_sampling defaults = {.struct_size = sizeof(headrace_sampling),
                                           .temperature = 0.25f,
                                           .top_p = 1.0f,
                                           .min_p = 0.125f,
                                           .repetition_penalty = 1.0f,
                                           .n_logprobs = -1,
                                           .n_prompt_logprobs = -1};

static bool read_request(hr_openai_request *request, int kind, const char *text, hr_api_error *error)
{
    json_t *body = hr_json_parse_object(text, strlen(text), error);

    return body && hr_openai_request_init(request, kind, body, &defaults, &limits, error);
}

static void refuses(int kind, const char *text, hr_api_code code, const char *param)
{
    hr_openai_request request;
    hr_api_error error = {0};

    if (read_request(&request, kind, text, &error))
        fail_msg("accepted: %s", text);
    if (error.code != code || strcmp(error.param, param) != 0)
        fail_msg("%s: code %s, param %s", text, hr_api_code_text(error.code), error.param);
}

static void defaults_come_from_the_model(void **state)
{
    hr_openai_request request = {0};
    hr_api_error error;

    (void)state;
    assert_true(
        read_request(&request, HR_FOR_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", &error));
    assert_true(request.sampling.temperature == 0.25f && request.sampling.min_p == 0.125f);
    assert_int_equal(request.sampling.n_logprobs, -1);
    assert_int_equal(request.n, 1);
    assert_false(request.sampling.has_seed || request.has_max_tokens || request.stream);
    assert_null(request.model);
    hr_openai_request_deinit(&request);
}

static void every_number_arrives(void **state)
{
    hr_openai_request request = {0};
    hr_api_error error;

    (void)state;
    assert_true(read_request(
        &request, HR_FOR_COMPLETIONS,
        "{\"prompt\": \"a\", \"temperature\": 2, \"top_p\": 0.5, \"top_k\": -1, \"min_p\": 1, \"seed\": -1,"
        " \"repetition_penalty\": 10, \"presence_penalty\": -2, \"frequency_penalty\": 2,"
        " \"min_tokens\": 3, \"max_tokens\": 9, \"n\": 16, \"logprobs\": 20, \"prompt_logprobs\": 0,"
        " \"priority\": -7, \"stop\": [\"x\", \"yy\"], \"stop_token_ids\": [49, 0], \"cache_salt\": \"s\","
        " \"logit_bias\": {\"3\": -1.5, \"49\": 100}, \"ignore_eos\": true, \"model\": \"m\"}",
        &error));
    assert_true(request.sampling.temperature == 2.0f && request.sampling.top_p == 0.5f &&
                request.sampling.min_p == 1.0f);
    assert_true(request.sampling.repetition_penalty == 10.0f && request.sampling.presence_penalty == -2.0f);
    assert_true(request.sampling.frequency_penalty == 2.0f && request.sampling.seed == UINT64_MAX);
    assert_int_equal(request.sampling.top_k, -1);
    assert_int_equal(request.sampling.min_tokens, 3);
    assert_int_equal(request.max_tokens, 9);
    assert_int_equal(request.n, 16);
    assert_int_equal(request.sampling.n_logprobs, 20);
    assert_int_equal(request.sampling.n_prompt_logprobs, 0);
    assert_int_equal(request.priority, -7);
    assert_int_equal(request.sampling.n_stop, 2);
    assert_string_equal(request.sampling.stop[1], "yy");
    assert_int_equal(request.sampling.stop_ids[0], 49);
    assert_int_equal(request.sampling.n_bias, 2);
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): the analyzer lets a failed assertion go on */
    assert_true(request.sampling.bias[0].id == 3 && request.sampling.bias[0].value == -1.5f);
    assert_true(request.sampling.ignore_eos && request.cache_salt != 0);
    assert_string_equal(request.model, "m");
    hr_openai_request_deinit(&request);
}

static void integer_edges_are_accepted_or_refused_by_name(void **state)
{
    static const char *const names[] = {
        "max_tokens", "n",        "seed",       "top_k",           "min_tokens",
        "logprobs",   "priority", "best_of",    "prompt_logprobs", "truncate_prompt_tokens",
        "stream",     "stop",     "logit_bias", "temperature",     "top_p"};
    static const char *const values[] = {"-9223372036854775808",
                                         "9223372036854775807",
                                         "-2147483649",
                                         "-2147483648",
                                         "-1",
                                         "0",
                                         "1",
                                         "2147483647",
                                         "2147483648",
                                         "4294967295",
                                         "4294967296",
                                         "4294967297",
                                         "1e308",
                                         "-1e308",
                                         "0.5",
                                         "true",
                                         "\"1\"",
                                         "[]",
                                         "{}",
                                         "[[]]",
                                         "1e-320"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
            hr_openai_request request;
            hr_api_error error = {0};
            char text[128];

            (void)snprintf(text, sizeof text, "{\"prompt\": \"a\", \"echo\": true, \"%s\": %s}", names[i], values[k]);
            if (read_request(&request, HR_FOR_COMPLETIONS, text, &error)) {
                assert_in_range(request.n, 1, limits.max_n);
                assert_true(request.sampling.temperature >= 0.0f && request.sampling.temperature <= 2.0f);
                assert_true(request.sampling.top_p > 0.0f && request.sampling.top_p <= 1.0f);
                assert_true(request.sampling.n_logprobs >= -1 && request.sampling.n_logprobs <= 20);
                hr_openai_request_deinit(&request);
            } else if (strncmp(error.param, names[i], strlen(names[i])) != 0) {
                fail_msg("%s: param %s", text, error.param);
            }
        }
    }
}

static void refusals_name_the_place(void **state)
{
    (void)state;
    refuses(HR_FOR_CHAT, "{}", HR_API_MISSING_FIELD, "messages");
    refuses(HR_FOR_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"user\"}]}",
            HR_API_INVALID_VALUE, "messages[1].content");
    refuses(HR_FOR_CHAT,
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": "
            "\"text\"}]}]}",
            HR_API_INVALID_VALUE, "messages[0].content[1].text");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": \"a\", \"stop\": [\"x\", \"\"]}", HR_API_INVALID_VALUE, "stop[1]");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": \"a\", \"logit_bias\": {\"50\": 1}}", HR_API_INVALID_VALUE,
            "logit_bias.50");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": \"a\", \"zzz\": null}", HR_API_UNKNOWN_PARAMETER, "zzz");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": [\"a\", \"b\", \"c\", \"d\", \"e\"]}", HR_API_INVALID_VALUE, "prompt");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": []}", HR_API_INVALID_VALUE, "prompt");
    refuses(HR_FOR_COMPLETIONS, "{\"prompt\": \"a\", \"prompt\": \"b\"}", HR_API_INVALID_JSON, "");
}

static void long_names_are_cut_between_characters(void **state)
{
    hr_openai_request request;
    hr_api_error error = {0};
    hr_buffer out = {0};
    json_t *tree;
    char text[1024] = "{\"";

    (void)state;
    for (size_t i = 0; i < 200; i++)
        memcpy(text + 2 + 3 * i, "\xE2\x82\xAC", 3);
    memcpy(text + 2 + 600, "\": 1}", 6);
    assert_false(read_request(&request, HR_FOR_CHAT, text, &error));
    assert_int_equal(error.code, HR_API_UNKNOWN_PARAMETER);
    hr_api_error_json(&out, &error);
    tree = json_loadb(out.at, out.len, 0, NULL);
    assert_non_null(tree);
    assert_null(strstr(out.at, "\xEF\xBF\xBD"));
    json_decref(tree);
    hr_buffer_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_come_from_the_model),
        cmocka_unit_test(every_number_arrives),
        cmocka_unit_test(integer_edges_are_accepted_or_refused_by_name),
        cmocka_unit_test(refusals_name_the_place),
        cmocka_unit_test(long_names_are_cut_between_characters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
