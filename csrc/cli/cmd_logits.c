/* headrace logits, score and compare: the model as a function, for people who study it. */
#include "cli/program.h"

#include "base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_BYTES_MAX = 1 << 30 };

static headrace_compute_options compute_options(const hr_options *options)
{
    headrace_compute_options out;

    headrace_compute_options_init(&out);
    out.n_threads = hr_option_u32(options, "threads");
    out.chunk = hr_option_u32(options, "chunk");
    out.kv_cache_dtype = hr_option_text(options, "kv-cache-dtype");
    out.device = hr_option_text(options, "device");
    return out;
}

static uint32_t vocab_size(const headrace_model *model)
{
    headrace_model_info info;

    headrace_model_get_info(model, &info);
    return info.vocab_size;
}

/* ---------------------------------------------------------------- logits */

static int write_logits(const hr_options *options, headrace_model *model, const hr_id_lists *lists, const char *path)
{
    headrace_compute_options compute = compute_options(options);
    headrace_named_tensor *tensors = calloc(lists->n, sizeof *tensors);
    char(*names)[32] = calloc(lists->n, sizeof *names);
    uint32_t vocab = vocab_size(model);
    headrace_error err = {0};
    headrace_status status = tensors && names ? HEADRACE_OK : HEADRACE_E_MEMORY;

    compute.exact = hr_option_bool(options, "exact");
    for (size_t i = 0; status == HEADRACE_OK && i < lists->n; i++) {
        float *logits = calloc(lists->n_ids[i] * vocab, sizeof *logits);

        (void)snprintf(names[i], sizeof names[i], "logits.%zu", i);
        tensors[i] =
            (headrace_named_tensor){.name = names[i], .data = logits, .rank = 2, .shape = {lists->n_ids[i], vocab}};
        status = logits ? headrace_compute_logits(model, &compute, lists->ids[i], lists->n_ids[i], logits, &err)
                        : HEADRACE_E_MEMORY;
    }
    if (status == HEADRACE_OK)
        status = headrace_save_tensors(path, tensors, lists->n, &err);
    err.status = status;
    for (size_t i = 0; tensors && i < lists->n; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(names);
    return status == HEADRACE_OK ? HR_EXIT_OK : hr_report(&err);
}

/* Asked before hours of computing, not after. What is not an ordinary file is left alone: the result is renamed into
 * place, and would take the place of a device. */
static bool can_write(const char *path)
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

int hr_cmd_logits(int argc, char **argv)
{
    hr_options *options = hr_options_parse(
        argc, argv, HR_FOR_LOGITS, "[MODEL]",
        "Logits of every position of every list in --ids, as logits.0, logits.1, ... (F32 [tokens, vocab]).", 0, 1);
    headrace_model *model = NULL;
    hr_id_lists lists = {0};
    bool used;
    int code;

    hr_setup_log(options);
    if (!hr_option_text(options, "ids") || !hr_option_text(options, "out")) {
        (void)fputs("headrace: logits needs --ids FILE.json and --out FILE.safetensors\n", stderr);
        hr_options_destroy(options);
        return HR_EXIT_USAGE;
    }
    if (!can_write(hr_option_text(options, "out"))) {
        hr_options_destroy(options);
        return HR_EXIT_FAILURE;
    }
    code = hr_open_model(options, &(hr_model_choice){0}, &model, &used);
    if (code == HR_EXIT_OK)
        code = hr_read_id_lists(hr_option_text(options, "ids"), vocab_size(model), &lists);
    if (code == HR_EXIT_OK)
        code = write_logits(options, model, &lists, hr_option_text(options, "out"));
    hr_id_lists_free(&lists);
    headrace_model_close(model);
    hr_options_destroy(options);
    return code;
}

/* ---------------------------------------------------------------- score */

/* -log p(id) in nats. */
static double cross_entropy(const float *logits, uint32_t n, int32_t id)
{
    double largest = (double)-INFINITY, sum = 0;

    for (uint32_t i = 0; i < n; i++)
        if ((double)logits[i] > largest)
            largest = (double)logits[i];
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - largest);
    return log(sum) + largest - (double)logits[id];
}

/* Windows of bos + (window - 1) tokens; every text token is counted once and none sees the window before. */
static int score_ids(const hr_options *options, headrace_model *model, const int32_t *ids, size_t n_ids, double *nats,
                     size_t *n_scored)
{
    headrace_compute_options compute = compute_options(options);
    headrace_model_info info;
    uint32_t window = hr_option_u32(options, "window");
    headrace_error err = {0};
    int code = HR_EXIT_OK;

    headrace_model_get_info(model, &info);
    if (window < 2 || window > info.max_positions) {
        (void)fprintf(stderr, "headrace: --window: 2 to %u, the positions of this model\n", info.max_positions);
        return HR_EXIT_USAGE;
    }
    if (info.bos_id < 0) {
        (void)fputs("headrace: score needs a model with a bos id\n", stderr);
        return HR_EXIT_FAILURE;
    }
    compute.exact = hr_option_bool(options, "exact");
    float *logits = calloc((size_t)window * info.vocab_size, sizeof *logits);
    int32_t *rows = calloc(window, sizeof *rows);
    for (size_t at = 0; at < n_ids && code == HR_EXIT_OK; at += window - 1) {
        size_t n = n_ids - at < window - 1 ? n_ids - at : window - 1;

        if (!logits || !rows) {
            code = hr_out_of_memory();
            break;
        }
        rows[0] = info.bos_id;
        memcpy(rows + 1, ids + at, n * sizeof *rows);
        if (headrace_compute_logits(model, &compute, rows, n + 1, logits, &err) != HEADRACE_OK)
            code = hr_report(&err);
        for (size_t i = 0; i < n && code == HR_EXIT_OK; i++)
            *nats += cross_entropy(logits + i * info.vocab_size, info.vocab_size, rows[i + 1]);
        *n_scored += n;
    }
    free(rows);
    free(logits);
    return code;
}

int hr_cmd_score(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_SCORE, "[MODEL] FILE", "Perplexity of a text file.", 1, 2);
    headrace_model *model = NULL;
    headrace_error err = {0};
    bool used;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t len, n_ids = 0, n_scored = 0;
    double nats = 0;
    int code;

    hr_setup_log(options);
    code = hr_open_model(options, &(hr_model_choice){0}, &model, &used);
    const char *path = hr_options_argument(options, used ? 1 : 0);
    if (code == HR_EXIT_OK && !path) {
        (void)fputs("headrace: score needs a text file\n", stderr);
        code = HR_EXIT_USAGE;
    }
    if (code == HR_EXIT_OK && (hr_file_read(path, TEXT_BYTES_MAX, &text, &len, &err) != HEADRACE_OK ||
                               headrace_encode(model, text, len, 0, &ids, &n_ids, &err) != HEADRACE_OK))
        code = hr_report(&err);
    if (code == HR_EXIT_OK && n_ids == 0) {
        (void)fprintf(stderr, "headrace: %s: no token in it\n", path);
        code = HR_EXIT_USAGE;
    }
    if (code == HR_EXIT_OK)
        code = score_ids(options, model, ids, n_ids, &nats, &n_scored);
    if (code == HR_EXIT_OK) {
        double mean = nats / (double)n_scored;

        if (hr_option_bool(options, "json"))
            (void)printf("{\"tokens\":%zu,\"nats_per_token\":%.6f,\"perplexity\":%.6f,\"bits_per_byte\":%.6f}\n",
                         n_scored, mean, exp(mean), nats / log(2) / (double)len);
        else
            (void)printf("tokens %zu, perplexity %.4f, %.4f nats a token, %.4f bits a byte\n", n_scored, exp(mean),
                         mean, nats / log(2) / (double)len);
    }
    headrace_free(ids);
    free(text);
    headrace_model_close(model);
    hr_options_destroy(options);
    return code;
}

/* ---------------------------------------------------------------- compare */

int hr_cmd_compare(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_COMPARE, "[MODEL] [PROMPT]",
                         "Runs a prompt (or the first list of --ids) through the plain fp32 path and the fast one and "
                         "reports every named intermediate value as JSON.",
                         0, 2);
    headrace_model *model = NULL;
    headrace_compute_options left = compute_options(options), right = left;
    headrace_error err = {0};
    hr_id_lists lists = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    char *json;
    bool used;
    int code;

    hr_setup_log(options);
    left.exact = true;
    left.chunk = 0;
    left.device = "cpu";
    code = hr_open_model(options, &(hr_model_choice){0}, &model, &used);
    const char *prompt = hr_options_argument(options, used ? 1 : 0);
    if (code == HR_EXIT_OK && hr_option_text(options, "ids")) {
        code = hr_read_id_lists(hr_option_text(options, "ids"), vocab_size(model), &lists);
    } else if (code == HR_EXIT_OK) {
        prompt = prompt ? prompt : "The quick brown fox jumps over the lazy dog.";
        if (headrace_encode(model, prompt, strlen(prompt), HEADRACE_ENCODE_BOS, &ids, &n_ids, &err) != HEADRACE_OK)
            code = hr_report(&err);
    }
    if (code == HR_EXIT_OK) {
        if (headrace_compare(model, &left, &right, lists.n > 0 ? lists.ids[0] : ids,
                             lists.n > 0 ? lists.n_ids[0] : n_ids, hr_option_real(options, "tolerance"), &json,
                             &err) == HEADRACE_OK) {
            (void)printf("%s\n", json);
            headrace_free(json);
        } else {
            code = hr_report(&err);
        }
    }
    headrace_free(ids);
    hr_id_lists_free(&lists);
    headrace_model_close(model);
    hr_options_destroy(options);
    return code;
}
