/* headrace logits and compare: the model as a function, for people who study it. */
#include "cli/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t vocab_size(const headrace_model *model)
{
    headrace_model_info info;

    headrace_model_get_info(model, &info);
    return info.vocab_size;
}

/* ---------------------------------------------------------------- logits */

static int write_logits(const hr_options *options, headrace_model *model, const hr_id_lists *lists, const char *path)
{
    headrace_compute_options how = hr_compute_options_from(options);
    headrace_named_tensor *tensors = calloc(lists->n, sizeof *tensors);
    char(*names)[32] = calloc(lists->n, sizeof *names);
    uint32_t vocab = vocab_size(model);
    headrace_compute *compute = NULL;
    headrace_error err = {0};
    headrace_status status = HEADRACE_E_MEMORY;

    how.exact = hr_option_bool(options, "exact");
    if (tensors && names)
        status = headrace_compute_open(model, &how, hr_longest_list(lists), &compute, &err);
    for (size_t i = 0; status == HEADRACE_OK && i < lists->n; i++) {
        float *logits = calloc(lists->n_ids[i] * vocab, sizeof *logits);

        (void)snprintf(names[i], sizeof names[i], "logits.%zu", i);
        tensors[i] =
            (headrace_named_tensor){.name = names[i], .data = logits, .rank = 2, .shape = {lists->n_ids[i], vocab}};
        status =
            logits ? headrace_compute_run(compute, lists->ids[i], lists->n_ids[i], logits, &err) : HEADRACE_E_MEMORY;
    }
    headrace_compute_close(compute);
    if (status == HEADRACE_OK)
        status = headrace_save_tensors(path, tensors, lists->n, &err);
    err.status = status;
    for (size_t i = 0; tensors && i < lists->n; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(names);
    return status == HEADRACE_OK ? HR_EXIT_OK : hr_report(&err);
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
    if (!hr_can_write(hr_option_text(options, "out"))) {
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

/* ---------------------------------------------------------------- compare */

int hr_cmd_compare(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_COMPARE, "[MODEL] [PROMPT]",
                         "Runs a prompt (or the first list of --ids) through the plain fp32 path and the fast one and "
                         "reports every named intermediate value as JSON.",
                         0, 2);
    headrace_model *model = NULL;
    headrace_compute_options left = hr_compute_options_from(options), right = left;
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
