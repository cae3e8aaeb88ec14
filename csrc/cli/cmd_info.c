/* headrace info and headrace tokenize: looking at a model file and at how it reads text. */
#include "cli/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_info(const headrace_model *model)
{
    headrace_model_info info;
    char text[32];

    headrace_model_get_info(model, &info);
    (void)printf("name             %s\narchitecture     %s (%s)\n", info.name, info.architecture, info.format);
    (void)printf("parameters       %llu", (unsigned long long)info.n_parameters);
    if (info.n_experts > 0)
        (void)printf(" (%llu a token)", (unsigned long long)info.n_parameters_active);
    (void)printf("\nweights          %s, %s\n", hr_format_bytes(info.weight_bytes, text), info.weight_dtypes);
    (void)printf("layers           %u: %u attention, %u convolution of %u taps\n", info.n_layers,
                 info.n_attention_layers, info.n_conv_layers, info.conv_length);
    (void)printf("hidden           %u, heads %u (%u for keys and values) of %u\n", info.hidden_size, info.n_heads,
                 info.n_kv_heads, info.head_dim);
    if (info.n_experts > 0)
        (void)printf("experts          %u, %u a token\n", info.n_experts, info.n_experts_used);
    (void)printf("vocabulary       %u rows, %u with text\ncontext          %u\n", info.vocab_size, info.tokenizer_size,
                 info.max_positions);
    (void)printf(info.bos_id < 0 ? "ids              no bos, end" : "ids              bos %d, end", info.bos_id);
    if (info.n_eos_ids == 0)
        (void)fputs(" unknown", stdout);
    for (uint32_t i = 0; i < info.n_eos_ids; i++)
        (void)printf(" %d", info.eos_ids[i]);
    (void)printf("\nchat template    %s\nsampling         %s\n",
                 info.chat_template_name ? info.chat_template_name : "none", info.sampling_source);
}

int hr_cmd_info(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_INFO, "[MODEL]",
                         "Checks a model file and says what it holds. --json: every tensor and metadata entry.", 0, 1);
    headrace_model *model;
    headrace_error err = {0};
    bool used;
    int code;

    hr_setup_log(options);
    code = hr_open_model(options, &(hr_model_choice){0}, &model, &used);
    if (code == HR_EXIT_OK && hr_option_bool(options, "json")) {
        char *json;

        if (headrace_model_describe(model, &json, &err) == HEADRACE_OK) {
            (void)printf("%s\n", json);
            headrace_free(json);
        } else {
            code = hr_report(&err);
        }
    } else if (code == HR_EXIT_OK) {
        print_info(model);
    }
    headrace_model_close(model);
    hr_options_destroy(options);
    return code;
}

/* The bytes of one token as a JSON string; not-UTF-8 parts are shown as U+FFFD. */
static void add_piece(hr_buffer *out, const headrace_model *model, int32_t id)
{
    const char *bytes = "";
    size_t len = 0;

    (void)headrace_token_bytes(model, id, &bytes, &len, NULL);
    hr_json_string(out, bytes, len);
}

static void print_tokens(const headrace_model *model, const int32_t *ids, size_t n, bool as_json)
{
    hr_buffer out = {0};

    if (as_json)
        hr_buffer_add_text(&out, "{\"tokens\":[");
    for (size_t i = 0; i < n && as_json; i++)
        hr_buffer_printf(&out, "%s%d", i > 0 ? "," : "", ids[i]);
    if (as_json)
        hr_buffer_add_text(&out, "],\"pieces\":[");
    for (size_t i = 0; i < n; i++) {
        if (as_json && i > 0)
            hr_buffer_add_char(&out, ',');
        if (!as_json)
            hr_buffer_printf(&out, "%6d  ", ids[i]);
        add_piece(&out, model, ids[i]);
        if (!as_json)
            hr_buffer_add_char(&out, '\n');
    }
    if (as_json)
        hr_buffer_printf(&out, "],\"count\":%zu}\n", n);
    if (out.at)
        (void)fwrite(out.at, 1, out.len, stdout);
    hr_buffer_deinit(&out);
}

/* Everything on standard input. */
static char *read_stdin(size_t *len)
{
    hr_buffer text = {0};
    char block[65536];
    size_t n;

    while ((n = fread(block, 1, sizeof block, stdin)) > 0)
        hr_buffer_add(&text, block, n);
    return hr_buffer_take(&text, len);
}

int hr_cmd_tokenize(int argc, char **argv)
{
    hr_options *options = hr_options_parse(argc, argv, HR_FOR_TOKENIZE, "[MODEL] [TEXT]",
                                           "Token ids and pieces of a text (of standard input without TEXT).", 0, 2);
    headrace_model *model;
    headrace_error err = {0};
    bool used;
    int code;
    char *text;
    size_t len, n_ids;
    int32_t *ids;
    uint32_t flags;

    hr_setup_log(options);
    code = hr_open_model(options, &(hr_model_choice){.skip_weights = true}, &model, &used);
    if (code != HR_EXIT_OK)
        goto done;
    const char *argument = hr_options_argument(options, used ? 1 : 0);
    text = argument ? strdup(argument) : read_stdin(&len);
    if (!text) {
        code = hr_out_of_memory();
        goto done;
    }
    if (argument)
        len = strlen(argument);
    flags = (hr_option_bool(options, "special") ? HEADRACE_ENCODE_SPECIAL : 0u) |
            (hr_option_bool(options, "bos") ? HEADRACE_ENCODE_BOS : 0u);
    if (headrace_encode(model, text, len, flags, &ids, &n_ids, &err) == HEADRACE_OK) {
        print_tokens(model, ids, n_ids, hr_option_bool(options, "json"));
        headrace_free(ids);
    } else {
        code = hr_report(&err);
    }
    free(text);
done:
    headrace_model_close(model);
    hr_options_destroy(options);
    return code;
}
