/* headrace serve: a model, an engine, and the HTTP server in front of them. */
#include "cli/program.h"

#include "base/file.h"
#include "server/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    KEYS_MAX = 64,
    KEY_FILE_BYTES_MAX = 64 * 1024,
    HEADER_BYTES_MIN = 256,
    HEADER_BYTES_MAX = 16 * 1024 * 1024,
    SECONDS_MAX = 1000000,
};

typedef struct keys {
    const char *at[KEYS_MAX]; /* borrowed from options, or from file_text */
    size_t n;
    char *file_text; /* owned */
} keys;

/* --api-key, --api-key-file (one a line), HEADRACE_API_KEY. */
static int collect_keys(const hr_options *options, keys *out)
{
    uint32_t n;
    const char *const *list = hr_option_list(options, "api-key", &n);
    const char *path = hr_option_text(options, "api-key-file");
    headrace_error err = {0};
    size_t len;

    *out = (keys){0};
    for (uint32_t i = 0; i < n && out->n < KEYS_MAX; i++) {
        if (*list[i] == '\0') {
            (void)fputs("headrace: --api-key: an empty key would let everybody in\n", stderr);
            return HR_EXIT_USAGE;
        }
        out->at[out->n++] = list[i];
    }
    if (!path)
        return HR_EXIT_OK;
    if (hr_file_read(path, KEY_FILE_BYTES_MAX, &out->file_text, &len, &err) != HEADRACE_OK)
        return hr_report(&err);
    for (char *next, *line = strtok_r(out->file_text, "\r\n", &next); line; line = strtok_r(NULL, "\r\n", &next)) {
        if (*line == '#')
            continue;
        if (out->n == KEYS_MAX) {
            (void)fprintf(stderr, "headrace: --api-key-file %s: more than %d keys in all\n", path, KEYS_MAX);
            return HR_EXIT_USAGE;
        }
        out->at[out->n++] = line;
    }
    if (out->n == n) {
        (void)fprintf(stderr, "headrace: --api-key-file %s: no key in it\n", path);
        return HR_EXIT_USAGE;
    }
    return HR_EXIT_OK;
}

/* Of the two that may be 0, --queue-timeout 0 is the engine's default and --shutdown-timeout 0 waits for nobody. */
static bool check_seconds(const hr_options *options)
{
    static const struct {
        const char *name;
        double low;
    } rows[] = {{"queue-timeout", 0},    {"shutdown-timeout", 0}, {"header-timeout", 0.001},
                {"body-timeout", 0.001}, {"idle-timeout", 0.001}, {"slow-client-timeout", 0.001}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double seconds = hr_option_real(options, rows[i].name);

        if (seconds < rows[i].low || seconds > SECONDS_MAX) {
            (void)fprintf(stderr, "headrace: --%s: %g is outside %g..%d seconds\n", rows[i].name, seconds, rows[i].low,
                          SECONDS_MAX);
            return false;
        }
    }
    return true;
}

/* The server reads 0 as its default, so the shortest time is 1 ms. */
static uint32_t milliseconds(const hr_options *options, const char *name)
{
    double ms = hr_option_real(options, name) * 1000;

    return ms < 1 ? 1 : (uint32_t)ms;
}

static bool is_text(const hr_options *options, const char *name, const char *text)
{
    return strcmp(hr_option_text(options, name), text) == 0;
}

static int fill_server_options(const hr_options *options, const keys *api_keys, hr_server_options *out)
{
    uint32_t n, port = hr_option_u32(options, "port");

    if (port > 65535) {
        (void)fprintf(stderr, "headrace: --port: %u is more than 65535\n", port);
        return HR_EXIT_USAGE;
    }
    if (hr_option_size(options, "max-header") < HEADER_BYTES_MIN ||
        hr_option_size(options, "max-header") > HEADER_BYTES_MAX) {
        (void)fprintf(stderr, "headrace: --max-header: %d to %d bytes\n", HEADER_BYTES_MIN, HEADER_BYTES_MAX);
        return HR_EXIT_USAGE;
    }
    if (!check_seconds(options))
        return HR_EXIT_USAGE;
    hr_server_options_init(out);
    out->host = hr_option_text(options, "host");
    out->port = (uint16_t)port;
    out->model_names = hr_option_list(options, "served-model-name", &n);
    out->n_model_names = n;
    out->api_keys = api_keys->at;
    out->n_api_keys = api_keys->n;
    out->allowed_origins = hr_option_list(options, "allowed-origins", &n);
    out->n_allowed_origins = n;
    out->max_body_bytes = hr_option_size(options, "max-body");
    out->max_header_bytes = (uint32_t)hr_option_size(options, "max-header");
    out->max_connections = hr_option_u32(options, "max-connections");
    out->max_n = hr_option_u32(options, "max-n");
    out->max_logprobs = hr_option_u32(options, "max-logprobs");
    out->n_io_threads = hr_option_u32(options, "io-threads");
    out->header_timeout_ms = milliseconds(options, "header-timeout");
    out->body_timeout_ms = milliseconds(options, "body-timeout");
    out->idle_timeout_ms = milliseconds(options, "idle-timeout");
    out->slow_client_timeout_ms = milliseconds(options, "slow-client-timeout");
    out->shutdown_timeout_ms = milliseconds(options, "shutdown-timeout");
    out->request_metrics = hr_option_bool(options, "enable-per-request-metrics");
    out->no_reasoning_parser = is_text(options, "reasoning-parser", "none");
    out->no_tool_parser =
        is_text(options, "tool-call-parser", "none") || !hr_option_bool(options, "enable-auto-tool-choice");
    out->no_metrics = !hr_option_bool(options, "metrics");
    out->metrics_prefix = hr_option_text(options, "metrics-prefix");
    out->no_webui = !hr_option_bool(options, "webui");
    out->log_requests = hr_option_bool(options, "log-requests") && hr_log_level(options) >= HEADRACE_LOG_INFO;
    out->log_format = is_text(options, "log-format", "json") ? HR_LOG_JSON : HR_LOG_TEXT;
    return HR_EXIT_OK;
}

static int open_serving_engine(const hr_options *options, headrace_model *model, headrace_model **draft,
                               headrace_engine **out)
{
    headrace_engine_options engine_options;
    int code;

    hr_engine_options_from(options, &engine_options);
    engine_options.max_num_queued_reqs = hr_option_u32(options, "max-num-queued-reqs");
    engine_options.max_num_queued_tokens = hr_option_uint(options, "max-num-queued-tokens");
    engine_options.queue_timeout_us = (uint64_t)(hr_option_real(options, "queue-timeout") * 1e6);
    engine_options.disable_prefix_caching = !hr_option_bool(options, "enable-prefix-caching");
    code = hr_speculation_from(options, &engine_options, draft);
    return code == HR_EXIT_OK ? hr_open_engine(options, model, &engine_options, out) : code;
}

/* What a client would otherwise find out by its first error. */
static void warn_about_text(const headrace_model *model)
{
    headrace_model_info info;

    headrace_model_get_info(model, &info);
    if (info.tokenizer_size == 0)
        (void)fputs("headrace: warning: the model brings no tokenizer: only /v1/completions with token ids will work\n",
                    stderr);
    else if (!info.chat_template_name)
        (void)fputs("headrace: warning: the model brings no chat template: chats need --chat-template NAME or FILE\n",
                    stderr);
}

int hr_cmd_serve(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_SERVE, "[MODEL]",
                         "OpenAI-compatible HTTP server. Stops on SIGTERM after finishing what runs.", 0, 1);
    hr_server_options server_options;
    hr_server *server = NULL;
    headrace_model *model = NULL, *draft = NULL;
    headrace_engine *engine = NULL;
    headrace_error err = {0};
    keys api_keys = {0};
    bool used;
    int code = HR_EXIT_OK;

    if (hr_option_bool(options, "print-config")) {
        hr_options_print(options);
        goto done;
    }
    hr_setup_log(options);
    if ((code = hr_check_vllm_flags(options)) != HR_EXIT_OK ||
        (code = collect_keys(options, &api_keys)) != HR_EXIT_OK ||
        (code = fill_server_options(options, &api_keys, &server_options)) != HR_EXIT_OK)
        goto done;
    if (hr_server_open(&server_options, &server, &err) != HEADRACE_OK) {
        code = hr_report(&err);
        code = code == HR_EXIT_FAILURE ? hr_server_exit_code(&err) : code;
        goto done;
    }
    hr_model_choice choice = {.chat_template = hr_option_text(options, "chat-template"),
                              .ignore_generation_config = is_text(options, "generation-config", "none")};
    code = hr_open_model(options, &choice, &model, &used);
    if (code != HR_EXIT_OK || (code = hr_check_dtype(options, model)) != HR_EXIT_OK ||
        (code = open_serving_engine(options, model, &draft, &engine)) != HR_EXIT_OK)
        goto done;
    if (hr_log_level(options) >= HEADRACE_LOG_INFO) {
        hr_print_summary(model, engine);
        warn_about_text(model);
        if (!server_options.no_webui)
            (void)fputs("page     open the address in a browser to chat and to see live numbers (--no-webui: off)\n",
                        stderr);
    }
    if (hr_server_run(server, model, engine, &err) != HEADRACE_OK) {
        code = hr_report(&err);
        code = code == HR_EXIT_FAILURE ? hr_server_exit_code(&err) : code;
    }
done:
    hr_server_close(server);
    if (code == HR_EXIT_DEVICE) { /* closing the engine would ask the device again, which may never answer */
        (void)fflush(NULL);
        _exit(code);
    }
    headrace_engine_close(engine);
    headrace_model_close(draft);
    headrace_model_close(model);
    free(api_keys.file_text);
    hr_options_destroy(options);
    return code;
}
