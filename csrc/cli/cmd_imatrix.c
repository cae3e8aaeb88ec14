/* headrace imatrix: runs a calibration text and writes how strongly each input column of each matrix is driven, for
 * `headrace convert --imatrix` (or llama-quantize). Windows are those of `headrace score`: bos, then the text, none
 * seeing the one before. */
#include "cli/program.h"

#include "base/clock.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct calibration {
    const hr_options *options;
    headrace_model *model;
    headrace_importance *importance;
    bool is_watched; /* by a person on a terminal */
} calibration;

static void show_progress(const calibration *c, size_t done, size_t total, uint64_t began_us)
{
    double seconds = (double)(hr_now_us() - began_us) / 1e6;

    if (c->is_watched)
        (void)fprintf(stderr, "\r%zu of %zu tokens, %.0f s left \033[K", done, total,
                      seconds * (double)(total - done) / (double)(done > 0 ? done : 1));
}

static int run_windows(calibration *c, const int32_t *ids, size_t n_ids, uint32_t window, int32_t bos_id)
{
    size_t step = bos_id >= 0 ? window - 1 : window;
    int32_t *rows = calloc(window, sizeof *rows);
    uint64_t began_us = hr_now_us();
    headrace_error err = {0};
    int code = HR_EXIT_OK;

    if (!rows)
        return hr_out_of_memory();
    for (size_t at = 0; at < n_ids && code == HR_EXIT_OK; at += step) {
        size_t n = n_ids - at < step ? n_ids - at : step, first = window - step;

        rows[0] = bos_id;
        memcpy(rows + first, ids + at, n * sizeof *rows);
        if (headrace_importance_add(c->importance, rows, first + n, &err) != HEADRACE_OK)
            code = hr_report(&err);
        show_progress(c, at + n, n_ids, began_us);
    }
    if (c->is_watched)
        (void)fputs("\r\033[K", stderr);
    free(rows);
    return code;
}

static int collect(calibration *c, const char *text_path)
{
    headrace_compute_options how = hr_compute_options_from(c->options);
    uint32_t window = hr_option_u32(c->options, "window");
    headrace_model_info info;
    headrace_error err = {0};
    int32_t *ids;
    size_t n_ids, n_bytes;
    int code;

    headrace_model_get_info(c->model, &info);
    if (window < 2 || window > info.max_positions) {
        (void)fprintf(stderr, "headrace: --window: 2 to %u, the positions of this model\n", info.max_positions);
        return HR_EXIT_USAGE;
    }
    how.exact = hr_option_bool(c->options, "exact");
    code = hr_read_text_ids(c->options, c->model, text_path, &ids, &n_ids, &n_bytes);
    if (code == HR_EXIT_OK && headrace_importance_open(c->model, &how, window, &c->importance, &err) != HEADRACE_OK)
        code = hr_report(&err);
    if (code == HR_EXIT_OK)
        code = run_windows(c, ids, n_ids, window, info.bos_id);
    headrace_free(ids);
    return code;
}

static int save(const calibration *c, const char *text_path, const char *out)
{
    const char *slash = strrchr(text_path, '/');
    headrace_importance_info info;
    headrace_error err = {0};

    if (headrace_importance_save(c->importance, out, slash ? slash + 1 : text_path, &err) != HEADRACE_OK)
        return hr_report(&err);
    headrace_importance_get_info(c->importance, &info);
    if (hr_log_level(c->options) < HEADRACE_LOG_INFO)
        return HR_EXIT_OK;
    (void)fprintf(stderr, "%s: %llu rows in %u window%s", out, (unsigned long long)info.n_rows, info.n_sequences,
                  info.n_sequences == 1 ? "" : "s");
    if (info.n_experts > 0)
        (void)fprintf(stderr, "; of %u experts %u were never chosen, the rarest had %llu rows", info.n_experts,
                      info.n_unseen_experts, (unsigned long long)info.least_expert_rows);
    (void)fputs("\n", stderr);
    return HR_EXIT_OK;
}

static bool is_same(const struct stat *there, const char *path)
{
    struct stat input;

    return stat(path, &input) == 0 && input.st_dev == there->st_dev && input.st_ino == there->st_ino;
}

/* Model or text: asked before the run, since writing would end in their loss or in a refusal after hours. Of a model's
 * folder every file counts, by whatever name or link: most are read, and none is known to be spare. */
static bool is_an_input(const char *out, const char *input)
{
    struct stat there;
    struct dirent *entry;
    char path[PATH_MAX];
    bool found = false;
    DIR *dir;

    if (stat(out, &there) != 0 || !S_ISREG(there.st_mode))
        return false;
    if (is_same(&there, input)) {
        (void)fprintf(stderr, "headrace: --out %s: is %s, which is read\n", out, input);
        return true;
    }
    dir = opendir(input);
    while (dir && !found && (entry = readdir(dir)) != NULL) {
        (void)snprintf(path, sizeof path, "%s/%s", input, entry->d_name);
        found = is_same(&there, path);
    }
    if (dir)
        (void)closedir(dir);
    if (found)
        (void)fprintf(stderr, "headrace: --out %s: is %s, a file of the model's folder; those are not replaced\n", out,
                      path);
    return found;
}

int hr_cmd_imatrix(int argc, char **argv)
{
    hr_options *options = hr_options_parse(
        argc, argv, HR_FOR_IMATRIX, "[MODEL] TEXT",
        "Importance of the columns of every weight matrix over a calibration text, for convert.", 1, 2);
    calibration c = {.options = options};
    const char *out = hr_option_text(options, "out"), *text_path = NULL;
    char *model_path = NULL;
    bool used;
    int code = HR_EXIT_USAGE;

    hr_setup_log(options);
    c.is_watched = isatty(STDERR_FILENO) && hr_log_level(options) >= HEADRACE_LOG_INFO;
    if (out)
        code = hr_model_path(options, 0, &model_path, &used);
    else
        (void)fputs("headrace: imatrix needs --out FILE\n", stderr);
    if (code == HR_EXIT_OK) {
        text_path = hr_options_argument(options, used ? 1 : 0);
        if (!text_path)
            (void)fputs("headrace: imatrix needs a text file\n", stderr);
        if (!text_path || is_an_input(out, model_path) || is_an_input(out, text_path))
            code = HR_EXIT_USAGE;
        else if (!hr_can_write(out))
            code = HR_EXIT_FAILURE;
    }
    if (code == HR_EXIT_OK)
        code = hr_open_model(options, &(hr_model_choice){0}, &c.model, &used);
    if (code == HR_EXIT_OK)
        code = collect(&c, text_path);
    if (code == HR_EXIT_OK)
        code = save(&c, text_path, out);
    free(model_path);
    headrace_importance_close(c.importance);
    headrace_model_close(c.model);
    hr_options_destroy(options);
    return code;
}
