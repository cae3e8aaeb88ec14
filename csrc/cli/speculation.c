/* Speculative decoding from flags: vLLM's --speculative-config (a JSON object), and llama-server's --model-draft and
 * --draft-max. What the JSON asks for and is not here is refused by name.
 */
#include "cli/program.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { DRAFT_TOKENS = 4 }; /* with --model-draft alone */

typedef struct wish {
    const char *method, *model; /* NULL: not given */
    uint32_t n_tokens, lookup_max, lookup_min;
} wish;

static int bad_config(const char *what)
{
    (void)fprintf(stderr, "headrace: --speculative-config: %s\n", what);
    return HR_EXIT_USAGE;
}

static bool read_entry(wish *out, const char *key, const json_t *value, char message[160])
{
    const struct {
        const char *key;
        uint32_t *number;
        const char **text;
    } known[] = {{"method", NULL, &out->method},
                 {"model", NULL, &out->model},
                 {"num_speculative_tokens", &out->n_tokens, NULL},
                 {"prompt_lookup_max", &out->lookup_max, NULL},
                 {"prompt_lookup_min", &out->lookup_min, NULL}};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        json_int_t number = json_integer_value(value);

        if (strcmp(key, known[i].key) != 0)
            continue;
        if (known[i].text && json_is_string(value)) {
            *known[i].text = json_string_value(value);
            return true;
        }
        if (known[i].number && json_is_integer(value) && number >= 1 && number <= UINT32_MAX) {
            *known[i].number = (uint32_t)number;
            return true;
        }
        (void)snprintf(message, 160, "%s must be %s", key, known[i].text ? "a text" : "a whole number from 1 on");
        return false;
    }
    (void)snprintf(message, 160,
                   "'%.40s' is not known; method, model, num_speculative_tokens, prompt_lookup_max and "
                   "prompt_lookup_min are",
                   key);
    return false;
}

static int read_config(json_t *config, wish *out)
{
    const char *key;
    json_t *value;
    char message[160];

    if (!json_is_object(config))
        return bad_config("expected a JSON object, as {\"method\": \"ngram\", \"num_speculative_tokens\": 4}");
    json_object_foreach(config, key, value)
    {
        if (!read_entry(out, key, value, message))
            return bad_config(message);
    }
    if (out->n_tokens == 0)
        return bad_config("num_speculative_tokens is missing: how many tokens to guess a step");
    if (!out->method && !out->model)
        return bad_config("method is missing: \"ngram\", or name a draft \"model\"");
    if (out->method && strcmp(out->method, "ngram") != 0 && strcmp(out->method, "draft_model") != 0) {
        (void)snprintf(message, sizeof message, "method '%.40s' is not one of ngram, draft_model", out->method);
        return bad_config(message);
    }
    if (out->method && (strcmp(out->method, "draft_model") == 0) != (out->model != NULL))
        return bad_config(out->model ? "method ngram needs no \"model\"" : "method draft_model needs a \"model\"");
    return HR_EXIT_OK;
}

static int apply(const hr_options *options, const wish *w, headrace_engine_options *out, headrace_model **draft)
{
    headrace_model_options model_options;
    headrace_error err = {0};

    out->num_speculative_tokens = w->n_tokens;
    out->prompt_lookup_max = w->lookup_max;
    out->prompt_lookup_min = w->lookup_min;
    if (!w->model)
        return HR_EXIT_OK;
    headrace_model_options_init(&model_options);
    model_options.path = w->model;
    model_options.dummy_weights = strcmp(hr_option_text(options, "load-format"), "dummy") == 0;
    if (headrace_model_open(&model_options, draft, &err) != HEADRACE_OK)
        return hr_report(&err);
    out->draft_model = *draft;
    return HR_EXIT_OK;
}

int hr_speculation_from(const hr_options *options, headrace_engine_options *out, headrace_model **draft)
{
    const char *text = hr_option_text(options, "speculative-config"), *model = hr_option_text(options, "model-draft");
    uint32_t n_tokens = hr_option_u32(options, "draft-max");
    wish w = {.model = model, .n_tokens = model && n_tokens == 0 ? DRAFT_TOKENS : n_tokens};
    json_error_t error;
    json_t *config;
    int code;

    *draft = NULL;
    if (!text)
        return apply(options, &w, out, draft);
    if (model || n_tokens > 0)
        return bad_config("is given together with --model-draft or --draft-max; one of the two ways");
    config = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!config) {
        (void)fprintf(stderr, "headrace: --speculative-config: not JSON: %s at character %d\n", error.text,
                      error.position);
        return HR_EXIT_USAGE;
    }
    w = (wish){0};
    code = read_config(config, &w);
    if (code == HR_EXIT_OK)
        code = apply(options, &w, out, draft);
    json_decref(config);
    return code;
}
