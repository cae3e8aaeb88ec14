/* See convert.h. */
#include "convert/convert.h"

#include "base/file.h"
#include "base/log.h"
#include "convert/metadata.h"
#include "convert/tensors.h"

#include <limits.h>
#include <sched.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { THREADS_MAX = 256 };

typedef struct conversion {
    const hr_convert_options *options;
    hr_model *model;
    hr_imatrix imatrix;
    hr_plan plan;
    const float **importance; /* [plan.n_tensors] */
    hr_gguf_writer writer;
    hr_buffer header;
    hr_output output;
    char *path;
} conversion;

/* ---------------------------------------------------------------- the name */

static bool ends_with(const char *text, size_t len, const char *end)
{
    size_t n = strlen(end);

    return len > n && strncasecmp(text + len - n, end, n) == 0;
}

char *hr_convert_name(const char *model_path, const char *folder, const hr_mix *mix)
{
    static const char *const types[] = {"-F32", "-F16", "-BF16", "-Q8_0", "-Q6_K", "-Q5_K_M", "-Q4_K_M", "-Q4_0"};
    bool is_folder = hr_file_is_directory(model_path);
    char real[PATH_MAX], *out;
    const char *slash, *base;
    size_t len, n_folder;

    if (!realpath(model_path, real))
        (void)snprintf(real, sizeof real, "%s", model_path);
    slash = strrchr(real, '/');
    base = slash ? slash + 1 : real;
    len = strlen(base);
    if (!is_folder && ends_with(base, len, ".gguf"))
        len -= 5;
    for (size_t i = 0; i < sizeof types / sizeof *types && !is_folder; i++) {
        if (ends_with(base, len, types[i])) {
            len -= strlen(types[i]);
            break;
        }
    }
    if (!folder && !is_folder) { /* beside the file as it was given, not where a link leads */
        const char *given = strrchr(model_path, '/');
        int n = given ? (int)(given - model_path) + 1 : 0;

        return asprintf(&out, "%.*s%.*s-%s.gguf", n, model_path, (int)len, base, mix->name) < 0 ? NULL : out;
    }
    folder = folder ? folder : model_path;
    n_folder = strlen(folder);
    while (n_folder > 1 && folder[n_folder - 1] == '/')
        n_folder--;
    return asprintf(&out, "%.*s/%.*s-%s.gguf", (int)n_folder, folder, (int)len, base, mix->name) < 0 ? NULL : out;
}

/* ---------------------------------------------------------------- before the work */

static headrace_status refuse_input(const conversion *c, const struct stat *there, const char *input,
                                    headrace_error *err)
{
    struct stat known;

    if (stat(input, &known) != 0 || known.st_dev != there->st_dev || known.st_ino != there->st_ino)
        return HEADRACE_OK;
    return hr_fail_param(err, HEADRACE_E_ARGUMENT, "out", "%s: is %s, which is read and never replaced", c->path,
                         input);
}

/* What is read beside the weights, which hr_output_check knows. */
static headrace_status refuse_inputs(const conversion *c, headrace_error *err)
{
    static const char *const names[] = {
        "config.json", "generation_config.json",      "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md",   "model.safetensors.index.json"};
    struct stat there;
    char path[PATH_MAX];

    if (stat(c->path, &there) != 0)
        return HEADRACE_OK;
    if (c->options->imatrix)
        HR_PASS(refuse_input(c, &there, c->options->imatrix, err));
    for (size_t i = 0; i < sizeof names / sizeof *names && c->model->format == HR_MODEL_SAFETENSORS; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", c->model->path, names[i]);
        HR_PASS(refuse_input(c, &there, path, err));
    }
    return HEADRACE_OK;
}

/* Rounding twice costs quality that nobody sees in the file's name, so it has to be asked for. */
static headrace_status check_source_types(const conversion *c, headrace_error *err)
{
    for (uint32_t i = 0; i < c->plan.n_tensors && !c->options->may_requantise; i++) {
        const hr_plan_tensor *tensor = &c->plan.tensors[i];
        hr_dtype dtype = tensor->part == HR_PART_VECTOR ? HR_F32 : tensor->first->dtype;

        if (hr_dtypes[dtype].block_values > 1 && dtype != tensor->target && tensor->part != HR_PART_ROUTER)
            return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                           "%s: tensor '%s' is %s already; rounding it again (to %s) loses more than converting the "
                           "original would. Give an F32, F16 or BF16 model, or allow it (--allow-requantize)",
                           c->model->path, tensor->name, hr_dtypes[dtype].name, hr_dtypes[tensor->target].name);
    }
    return HEADRACE_OK;
}

static headrace_status find_importance(conversion *c, headrace_error *err)
{
    uint32_t n_found = 0, n_quantised = 0;

    c->importance = calloc(c->plan.n_tensors, sizeof *c->importance);
    if (!c->importance)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u tensors", c->plan.n_tensors);
    for (uint32_t i = 0; i < c->plan.n_tensors && c->options->imatrix; i++) {
        const hr_plan_tensor *tensor = &c->plan.tensors[i];

        if (hr_dtypes[tensor->target].block_values == 1)
            continue;
        HR_PASS(hr_imatrix_find(&c->imatrix, tensor->name, tensor->n_slabs, tensor->cols, &c->importance[i], err));
        n_quantised++;
        n_found += c->importance[i] != NULL;
        if (!c->importance[i])
            hr_log(HEADRACE_LOG_DEBUG, "%s: nothing about '%s'; all its columns count the same", c->imatrix.path,
                   tensor->name);
    }
    if (c->options->imatrix && n_quantised > 0 && n_found == 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: names no tensor of %s: made with another model?", c->imatrix.path,
                       c->model->path);
    return HEADRACE_OK;
}

static headrace_status build_header(conversion *c, headrace_error *err)
{
    hr_metadata_source source = {.model = c->model,
                                 .plan = &c->plan,
                                 .mix = c->options->mix,
                                 .imatrix = c->options->imatrix ? &c->imatrix : NULL};

    HR_PASS(hr_metadata_put(&source, &c->writer, err));
    for (uint32_t i = 0; i < c->plan.n_tensors; i++) {
        hr_plan_tensor *tensor = &c->plan.tensors[i];

        tensor->offset = hr_gguf_add_tensor(&c->writer, tensor->name, tensor->target, tensor->rank, tensor->shape);
    }
    return hr_gguf_header(&c->writer, &c->header, err);
}

static uint32_t count_threads(uint32_t asked)
{
    cpu_set_t set;
    int n = asked > THREADS_MAX ? THREADS_MAX : (int)asked;

    if (n == 0)
        n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (uint32_t)n;
}

/* ---------------------------------------------------------------- all of it */

static headrace_status prepare(conversion *c, const char *model_path, headrace_error *err)
{
    const hr_convert_options *options = c->options;

    HR_PASS(hr_model_open(model_path, NULL, &c->model, err));
    c->path = options->out ? strdup(options->out) : hr_convert_name(model_path, options->folder, options->mix);
    if (!c->path)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a path");
    HR_PASS(refuse_inputs(c, err));
    HR_PASS(hr_output_check(c->path, c->model->file, options->may_replace, err));
    if (options->imatrix)
        HR_PASS(hr_imatrix_open(options->imatrix, &c->imatrix, err));
    HR_PASS(hr_plan_make(c->model, options->mix, options->imatrix != NULL, &c->plan, err));
    HR_PASS(check_source_types(c, err));
    HR_PASS(find_importance(c, err));
    return build_header(c, err);
}

static headrace_status run(conversion *c, const char *model_path, headrace_error *err)
{
    hr_convert_work work = {.output = &c->output,
                            .plan = &c->plan,
                            .n_threads = count_threads(c->options->n_threads),
                            .progress = c->options->progress,
                            .progress_user = c->options->progress_user};

    HR_PASS(prepare(c, model_path, err));
    HR_PASS(hr_output_open(c->path, c->model->file, c->header.len + c->writer.n_data_bytes, c->options->may_replace,
                           &c->output, err));
    work.model = c->model;
    work.importance = c->importance;
    work.data_at = c->header.len;
    HR_PASS(hr_convert_tensors(&work, err));
    return hr_output_finish(&c->output, c->header.at, c->header.len, err);
}

headrace_status hr_convert(const char *model_path, const hr_convert_options *options, hr_convert_result *out,
                           headrace_error *err)
{
    conversion c = {.options = options, .output = {.fd = -1}};
    headrace_status status = run(&c, model_path, err);

    *out = (hr_convert_result){0};
    if (status == HEADRACE_OK) {
        *out = (hr_convert_result){.path = c.path,
                                   .n_bytes = c.header.len + c.writer.n_data_bytes,
                                   .n_parameters = c.plan.n_parameters,
                                   .n_tensors = c.plan.n_tensors};
        c.path = NULL;
    }
    hr_output_close(&c.output);
    free(c.path);
    hr_buffer_deinit(&c.header);
    hr_gguf_writer_deinit(&c.writer);
    free(c.importance);
    hr_plan_free(&c.plan);
    hr_imatrix_close(&c.imatrix);
    hr_model_close(c.model);
    return status;
}
