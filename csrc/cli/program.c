/* See program.h. */
#include "cli/program.h"

#include "base/clock.h"
#include "base/file.h"

#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_BYTES_MAX = 1 << 30 };

int hr_report(const headrace_error *err)
{
    (void)fprintf(stderr, "headrace: %s\n", err->message[0] ? err->message : headrace_status_text(err->status));
    switch (err->status) {
    case HEADRACE_OK:
        return HR_EXIT_OK;
    case HEADRACE_E_ARGUMENT:
        return HR_EXIT_USAGE;
    case HEADRACE_E_MODEL:
    case HEADRACE_E_TEMPLATE:
        return HR_EXIT_MODEL;
    case HEADRACE_E_MEMORY:
        return HR_EXIT_MEMORY;
    case HEADRACE_E_ENGINE:
        return HR_EXIT_DEVICE;
    default:
        return HR_EXIT_FAILURE;
    }
}

static headrace_log_level log_limit = HEADRACE_LOG_WARNING;

static void print_log(headrace_log_level level, const char *line, void *user)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};

    (void)user;
    if (level <= log_limit)
        (void)fprintf(stderr, "headrace: %s%s\n", names[level], line);
}

headrace_log_level hr_log_level(const hr_options *options)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    const char *name = hr_option_text(options, "log-level");
    int rank = hr_option_rank(options, "log-level");
    int level = HEADRACE_LOG_ERROR;

    if (hr_option_bool(options, "quiet") && hr_option_rank(options, "quiet") >= rank)
        return HEADRACE_LOG_ERROR;
    if (hr_option_bool(options, "verbose") && hr_option_rank(options, "verbose") >= rank)
        return HEADRACE_LOG_DEBUG;
    while (level < HEADRACE_LOG_DEBUG && strcmp(names[level], name) != 0)
        level++;
    return (headrace_log_level)level;
}

void hr_setup_log(const hr_options *options)
{
    log_limit = hr_log_level(options);
    headrace_set_log(print_log, NULL);
}

const char *hr_format_bytes(uint64_t n_bytes, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)n_bytes;
    size_t unit = 0;

    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

void hr_wait_readable(int fd, int timeout_ms)
{
    struct pollfd waited = {.fd = fd, .events = POLLIN};

    (void)poll(&waited, 1, timeout_ms);
}

/* ---------------------------------------------------------------- model and engine */

int hr_out_of_memory(void)
{
    (void)fputs("headrace: out of memory\n", stderr);
    return HR_EXIT_MEMORY;
}

int hr_model_path(const hr_options *options, uint32_t argument, char **path, bool *used_argument)
{
    const char *chosen = hr_option_text(options, "model"), *hub = hr_option_text(options, "hf");
    int model_rank = hr_option_rank(options, "model"), hub_rank = hr_option_rank(options, "hf");
    int rank = model_rank > hub_rank ? model_rank : hub_rank;
    bool is_full = hr_options_is_full(options);

    *path = NULL;
    *used_argument = is_full || (!chosen && !hub);
    if ((is_full && rank == HR_RANK_FLAG) || (chosen && hub && model_rank == hub_rank)) {
        (void)fputs("headrace: the model is given twice: by MODEL, --model or --hf, not two of them\n", stderr);
        return HR_EXIT_USAGE;
    }
    if (!*used_argument && hub && hub_rank > model_rank)
        return hr_hub_find(hub, path);
    if (*used_argument)
        chosen = hr_options_argument(options, argument);
    if (!chosen || !*chosen) {
        (void)fputs("headrace: which model? Give a folder, a .gguf file, \"tiny\", or -hf ORG/NAME\n", stderr);
        return HR_EXIT_USAGE;
    }
    *path = strdup(chosen);
    return *path ? HR_EXIT_OK : hr_out_of_memory();
}

typedef struct progress {
    uint64_t started_us, shown_us;
    bool is_shown;
} progress;

/* One line on a terminal, redrawn ten times a second, and only for loads that take long enough to be noticed. */
static void show_progress(uint64_t done, uint64_t total, void *user)
{
    progress *p = user;
    uint64_t now = hr_now_us(), elapsed = now - p->started_us;
    char done_text[32], total_text[32], rate_text[32];

    if (elapsed < 300000 || (now - p->shown_us < 100000 && done < total))
        return;
    p->shown_us = now;
    p->is_shown = true;
    uint64_t rate = done * 1000000 / (elapsed ? elapsed : 1);
    (void)fprintf(stderr, "\rloading %s of %s, %s/s, %llu s left \033[K", hr_format_bytes(done, done_text),
                  hr_format_bytes(total, total_text), hr_format_bytes(rate, rate_text),
                  (unsigned long long)(rate ? (total - done) / rate : 0));
    (void)fflush(stderr);
}

int hr_open_model(const hr_options *options, const hr_model_choice *choice, headrace_model **out, bool *used_argument)
{
    headrace_model_options model_options;
    headrace_error err = {0};
    progress shown = {.started_us = hr_now_us()};
    headrace_status status;
    char *path;
    int code = hr_model_path(options, choice->argument, &path, used_argument);

    *out = NULL;
    if (code != HR_EXIT_OK)
        return code;
    headrace_model_options_init(&model_options);
    model_options.path = path;
    model_options.skip_weights = choice->skip_weights;
    model_options.chat_template = choice->chat_template;
    model_options.ignore_generation_config = choice->ignore_generation_config;
    model_options.dummy_weights = strcmp(hr_option_text(options, "load-format"), "dummy") == 0;
    if (isatty(STDERR_FILENO) && hr_log_level(options) >= HEADRACE_LOG_INFO) {
        model_options.progress = show_progress;
        model_options.progress_user = &shown;
    }
    status = headrace_model_open(&model_options, out, &err);
    if (shown.is_shown)
        (void)fputs("\r\033[K", stderr);
    free(path);
    return status == HEADRACE_OK ? HR_EXIT_OK : hr_report(&err);
}

void hr_engine_options_from(const hr_options *options, headrace_engine_options *out)
{
    headrace_engine_options_init(out);
    out->device = hr_option_text(options, "device");
    out->n_threads = hr_option_u32(options, "threads");
    out->max_model_len = hr_option_u32(options, "max-model-len");
    out->max_num_seqs = hr_option_u32(options, "max-num-seqs");
    out->max_num_batched_tokens = hr_option_u32(options, "max-num-batched-tokens");
    out->kv_cache_bytes = hr_option_size(options, "kv-cache-memory");
    out->page_tokens = hr_option_u32(options, "block-size");
    out->kv_cache_dtype = hr_option_text(options, "kv-cache-dtype");
    out->exact = hr_option_bool(options, "exact");
    out->seed = hr_option_uint(options, "seed");
    out->gpu_memory_utilization = hr_option_real(options, "gpu-memory-utilization");
}

/* The library names its own field; here it goes by the name of the flag, of two that set it the one that was given. */
static void name_flag(const hr_options *options, headrace_error *err)
{
    static const char *const others[][2] = {{"page_tokens", "block-size"},
                                            {"n_threads", "threads"},
                                            {"kv_cache_bytes", "kv-cache-memory"},
                                            {"num_speculative_tokens", "draft-max"},
                                            {"prompt_lookup_max", "speculative-config"},
                                            {"prompt_lookup_min", "speculative-config"},
                                            {"draft_model", "model-draft"}};
    bool has_config = hr_option_text(options, "speculative-config") != NULL;
    size_t len = strlen(err->message);
    char flag[sizeof err->param];

    for (size_t i = 0; i < sizeof flag; i++)
        flag[i] = err->param[i] == '_' ? '-' : err->param[i];
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (strcmp(err->param, others[i][0]) == 0)
            (void)snprintf(flag, sizeof flag, "%s", others[i][1]);
    }
    if (has_config && (strcmp(flag, "draft-max") == 0 || strcmp(flag, "model-draft") == 0))
        (void)snprintf(flag, sizeof flag, "speculative-config");
    (void)snprintf(err->message + len, sizeof err->message - len, " (--%s)", flag);
}

int hr_open_engine(const hr_options *options, headrace_model *model, const headrace_engine_options *engine_options,
                   headrace_engine **out)
{
    headrace_error err = {0};

    if (headrace_engine_open(model, engine_options, out, &err) == HEADRACE_OK) {
        hr_warn_vllm_flags(options, *out);
        return HR_EXIT_OK;
    }
    if (err.status == HEADRACE_E_ARGUMENT && err.param[0])
        name_flag(options, &err);
    return hr_report(&err);
}

/* "354 M", "8.34 B". */
static const char *format_count(uint64_t n, char text[32])
{
    (void)snprintf(text, 32, n < 1000000000 ? "%.3g M" : "%.3g B", (double)n / (n < 1000000000 ? 1e6 : 1e9));
    return text;
}

void hr_print_summary(const headrace_model *model, const headrace_engine *engine)
{
    headrace_model_info m;
    headrace_engine_info e;
    headrace_sampling s;
    char a[32], b[32], c[32];

    headrace_model_get_info(model, &m);
    (void)fprintf(stderr, "model    %s: %s, %s parameters", m.name, m.architecture, format_count(m.n_parameters, a));
    if (m.n_experts > 0)
        (void)fprintf(stderr, " (%s a token, %u of %u experts)", format_count(m.n_parameters_active, a),
                      m.n_experts_used, m.n_experts);
    (void)fprintf(stderr, ", %u layers (%u attention), %s %s, %s mapped\n", m.n_layers, m.n_attention_layers, m.format,
                  m.weight_dtypes, hr_format_bytes(m.weight_bytes, a));
    headrace_sampling_defaults(model, &s);
    (void)fprintf(stderr, "sampling temperature %g, top_k %d, top_p %g, min_p %g, repetition_penalty %g (%s)\n",
                  (double)s.temperature, s.top_k, (double)s.top_p, (double)s.min_p, (double)s.repetition_penalty,
                  m.sampling_source);
    if (!engine)
        return;
    headrace_engine_get_info(engine, &e);
    (void)fprintf(stderr, "compute  %s, %s, %u threads\n", e.device, e.compute, e.n_threads);
    (void)fprintf(stderr, "memory   %s keys and values (%u pages of %u tokens, %s), %s state, %s scratch\n",
                  hr_format_bytes(e.kv_bytes, a), e.n_pages, e.page_tokens, e.kv_cache_dtype,
                  hr_format_bytes(e.state_bytes, b), hr_format_bytes(e.scratch_bytes, c));
    (void)fprintf(stderr, "limits   %u tokens a sequence, %u sequences at once, %u rows a step, %u waiting\n",
                  e.max_model_len, e.max_num_seqs, e.max_num_batched_tokens, e.max_num_queued_reqs);
    if (e.speculation)
        (void)fprintf(stderr, "guesses  %s, %u tokens a step%s%s\n",
                      strcmp(e.speculation, "ngram") == 0 ? "by prompt lookup" : "by a draft model",
                      e.num_speculative_tokens, e.draft_bytes > 0 ? ", which takes " : "",
                      e.draft_bytes > 0 ? hr_format_bytes(e.draft_bytes, a) : "");
}

headrace_compute_options hr_compute_options_from(const hr_options *options)
{
    headrace_compute_options out;

    headrace_compute_options_init(&out);
    out.n_threads = hr_option_u32(options, "threads");
    out.chunk = hr_option_u32(options, "chunk");
    out.kv_cache_dtype = hr_option_text(options, "kv-cache-dtype");
    out.device = hr_option_text(options, "device");
    return out;
}

bool hr_can_write(const char *path)
{
    struct stat there;
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    bool can = folder && access(folder, W_OK) == 0 && hr_file_is_directory(folder);

    if (can && stat(path, &there) == 0 && !S_ISREG(there.st_mode)) {
        (void)fprintf(stderr, "headrace: --out %s: is there and is not an ordinary file\n", path);
        can = false;
    } else if (!can)
        (void)fprintf(stderr, "headrace: --out %s: no folder there that may be written to\n", path);
    free(folder);
    return can;
}

/* ---------------------------------------------------------------- texts and id files */

int hr_read_text_ids(const hr_options *options, const headrace_model *model, const char *path, int32_t **ids,
                     size_t *n_ids, size_t *n_bytes)
{
    uint32_t flags = hr_option_bool(options, "special") ? HEADRACE_ENCODE_SPECIAL : 0;
    headrace_error err = {0};
    char *text = NULL;
    int code = HR_EXIT_OK;

    *ids = NULL;
    *n_ids = 0;
    if (hr_file_read(path, TEXT_BYTES_MAX, &text, n_bytes, &err) != HEADRACE_OK ||
        headrace_encode(model, text, *n_bytes, flags, ids, n_ids, &err) != HEADRACE_OK)
        code = hr_report(&err);
    free(text);
    if (code == HR_EXIT_OK && *n_ids == 0) {
        (void)fprintf(stderr, "headrace: %s: no token in it\n", path);
        code = HR_EXIT_USAGE;
    }
    return code;
}

static bool read_list(const char *path, const json_t *list, uint32_t vocab_size, size_t i, hr_id_lists *out)
{
    size_t n = json_array_size(list);

    out->ids[i] = calloc(n ? n : 1, sizeof *out->ids[i]);
    if (!out->ids[i])
        return false;
    for (size_t k = 0; k < n; k++) {
        const json_t *entry = json_array_get(list, k);
        json_int_t id = json_integer_value(entry);

        if (!json_is_integer(entry) || id < 0 || id >= (json_int_t)vocab_size) {
            (void)fprintf(stderr, "headrace: %s: ids[%zu][%zu] is not a token id; this model has 0 to %u\n", path, i, k,
                          vocab_size - 1);
            return false;
        }
        out->ids[i][k] = (int32_t)id;
    }
    out->n_ids[i] = n;
    return true;
}

int hr_read_id_lists(const char *path, uint32_t vocab_size, hr_id_lists *out)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    int code = HR_EXIT_USAGE;

    *out = (hr_id_lists){0};
    if (!root) {
        if (error.line > 0)
            (void)fprintf(stderr, "headrace: %s: line %d: %s\n", path, error.line, error.text);
        else
            (void)fprintf(stderr, "headrace: %s: %s\n", path, error.text);
        return HR_EXIT_USAGE;
    }
    out->n = json_array_size(root);
    out->ids = calloc(out->n ? out->n : 1, sizeof *out->ids);
    out->n_ids = calloc(out->n ? out->n : 1, sizeof *out->n_ids);
    if (!json_is_array(root) || !out->ids || !out->n_ids || out->n == 0) {
        (void)fprintf(stderr, "headrace: %s: expected a JSON list of lists of token ids\n", path);
        goto done;
    }
    for (size_t i = 0; i < out->n; i++) {
        const json_t *list = json_array_get(root, i);

        if (!json_is_array(list) || json_array_size(list) == 0) {
            (void)fprintf(stderr, "headrace: %s: entry %zu: expected a list of at least one token id\n", path, i);
            goto done;
        }
        if (!read_list(path, list, vocab_size, i, out))
            goto done;
    }
    code = HR_EXIT_OK;
done:
    json_decref(root);
    if (code != HR_EXIT_OK)
        hr_id_lists_free(out);
    return code;
}

void hr_id_lists_free(hr_id_lists *lists)
{
    for (size_t i = 0; lists->ids && i < lists->n; i++)
        free(lists->ids[i]);
    free(lists->ids);
    free(lists->n_ids);
    *lists = (hr_id_lists){0};
}

size_t hr_longest_list(const hr_id_lists *lists)
{
    size_t longest = 0;

    for (size_t i = 0; i < lists->n; i++)
        longest = lists->n_ids[i] > longest ? lists->n_ids[i] : longest;
    return longest;
}
