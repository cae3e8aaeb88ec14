/* Opening a checkpoint: which format, which configuration, then the tensors.
 *
 * Weights are mapped, not read, so opening takes the same time for every size of model. A caller who wants to show
 * progress asks for it with a callback; then the pages are brought in here, piece by piece, instead of by the first
 * request.
 */
#include "model/config.h"

#include <limits.h>
#include <string.h>
#include <sys/mman.h>

enum { CONFIG_BYTES_MAX = 1 << 20, PIECE_BYTES = 32 << 20, PATH_BYTES_MAX = PATH_MAX - 64 };

static const char *copy_text(hr_model *model, const char *text, size_t len, headrace_error *err)
{
    char *copy = hr_arena_strndup(&model->arena, text, len);

    if (!copy)
        (void)hr_fail(err, HEADRACE_E_MEMORY, "no memory for a name");
    return copy;
}

/* The last component of a path, without slashes at its end and without ".gguf". */
static const char *base_name(hr_model *model, const char *path, headrace_error *err)
{
    size_t len = strlen(path);
    const char *begin;

    while (len > 1 && path[len - 1] == '/')
        len--;
    begin = memrchr(path, '/', len);
    begin = begin && begin + 1 < path + len ? begin + 1 : path;
    len -= (size_t)(begin - path);
    if (len > 5 && memcmp(begin + len - 5, ".gguf", 5) == 0)
        len -= 5;
    return copy_text(model, begin, len, err);
}

/* ---------------------------------------------------------------- Hugging Face folder */

static headrace_status read_config(const char *folder, hr_config *config, headrace_error *err)
{
    char path[PATH_MAX];
    char *text;
    size_t len;
    headrace_status status;

    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    if (!hr_file_exists(path))
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: no config.json: not a Hugging Face checkpoint; give the folder that holds config.json and "
                       "*.safetensors, or a .gguf file",
                       folder);
    HR_PASS(hr_file_read(path, CONFIG_BYTES_MAX, &text, &len, err));
    status = hr_config_from_json(text, len, path, config, err);
    free(text);
    return status;
}

/* Ids of generation_config.json always count; its sampling values unless the caller wants the card's. */
static headrace_status read_generation_config(hr_model *model, hr_config *config, bool ignore_sampling,
                                              headrace_error *err)
{
    char path[PATH_MAX];
    hr_sampling_hint hint;

    (void)snprintf(path, sizeof path, "%s/generation_config.json", model->path);
    HR_PASS(hr_generation_config_read(path, &config->arch, &hint, err));
    if (config->arch.n_eos_ids == 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s/config.json: field 'eos_token_id' is missing", model->path);
    if (hint.source && !ignore_sampling)
        model->sampling = hint;
    return HEADRACE_OK;
}

static headrace_status open_folder(hr_model *model, const hr_model_open_options *options, hr_config *config,
                                   headrace_error *err)
{
    char path[PATH_MAX];

    model->format = HR_MODEL_SAFETENSORS;
    HR_PASS(read_config(model->path, config, err));
    HR_PASS(read_generation_config(model, config, options->ignore_generation_config, err));
    (void)snprintf(path, sizeof path, "%s/config.json", model->path);
    HR_PASS(hr_config_finish(config, path, err));
    if (options->skip_weights || options->dummy_weights)
        return HEADRACE_OK;
    model->file = &model->safetensors;
    return hr_safetensors_open_folder(model->path, &model->safetensors, err);
}

/* ---------------------------------------------------------------- GGUF */

static headrace_status open_gguf(hr_model *model, const hr_model_open_options *options, hr_config *config,
                                 headrace_error *err)
{
    hr_sampling_hint hint;

    model->format = HR_MODEL_GGUF;
    HR_PASS(hr_gguf_open(model->path, &model->gguf, err));
    HR_PASS(hr_config_from_gguf(&model->gguf, config, err));
    HR_PASS(hr_config_finish(config, model->gguf.file.paths[0], err));
    HR_PASS(hr_gguf_sampling_read(&model->gguf, &hint, err));
    if (hint.source && !options->ignore_generation_config)
        model->sampling = hint;
    if (hr_gguf_find(&model->gguf, "general.name")) {
        hr_gguf_string name;

        HR_PASS(hr_gguf_str(&model->gguf, "general.name", &name, err));
        if (name.len > 0 && name.len < HR_TENSOR_NAME_MAX)
            model->name = copy_text(model, name.at, (size_t)name.len, err);
    }
    if (!options->skip_weights && !options->dummy_weights)
        model->file = &model->gguf.file;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- both */

/* Brings the mapped pages in. Best effort: a kernel that cannot is not an error, the pages then come when they are
 * needed. */
static void load_pages(const hr_model *model, const hr_model_open_options *options)
{
    uint64_t done = 0, total = 0;

    for (uint32_t i = 0; i < model->file->n_shards; i++)
        total += model->file->mappings[i].len;
    options->progress(0, total, options->progress_user);
    for (uint32_t i = 0; i < model->file->n_shards; i++) {
        const hr_mapped *mapped = &model->file->mappings[i];

        for (size_t at = 0; at < mapped->len; at += PIECE_BYTES) {
            size_t n = mapped->len - at < PIECE_BYTES ? mapped->len - at : PIECE_BYTES;

            if (madvise((void *)(uintptr_t)(mapped->at + at), n, MADV_POPULATE_READ) != 0)
                (void)madvise((void *)(uintptr_t)(mapped->at + at), n, MADV_WILLNEED);
            done += n;
            options->progress(done, total, options->progress_user);
        }
    }
}

static headrace_status open_model(hr_model *model, const char *path, const hr_model_open_options *options,
                                  headrace_error *err)
{
    hr_config config = {0};
    char real[PATH_MAX];

    if (strlen(path) > PATH_BYTES_MAX)
        return hr_fail(err, HEADRACE_E_IO, "the path is too long: %.200s...", path);
    if (!hr_file_exists(path))
        return hr_fail(err, HEADRACE_E_IO, "%s: no such file or folder", path);
    model->path = copy_text(model, path, strlen(path), err);
    if (!model->path)
        return HEADRACE_E_MEMORY;
    model->sampling = hr_no_sampling();
    HR_PASS(hr_file_is_directory(path) ? open_folder(model, options, &config, err)
                                       : open_gguf(model, options, &config, err));
    model->arch = config.arch;
    model->is_tied = config.is_tied;
    if (!realpath(path, real))
        (void)snprintf(real, sizeof real, "%s", path);
    if (!model->name)
        model->name = base_name(model, real, err);
    if (!model->name)
        return HEADRACE_E_MEMORY;
    if (!model->sampling.source)
        model->sampling = hr_card_sampling(&model->arch, real, model->name);
    if (model->file)
        HR_PASS(hr_model_bind(model, &config, err));
    else if (options->dummy_weights)
        HR_PASS(hr_model_make_dummy(model, &config, err));
    hr_arch_count_parameters(&model->arch, model->is_tied, config.conv_bias, &model->n_parameters,
                             &model->n_parameters_active);
    if (model->file && options->progress)
        load_pages(model, options);
    return HEADRACE_OK;
}

headrace_status hr_model_open(const char *path, const hr_model_open_options *options, hr_model **out,
                              headrace_error *err)
{
    static const hr_model_open_options defaults;
    hr_model *model = calloc(1, sizeof *model);
    headrace_status status;

    *out = NULL;
    if (!model)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a model");
    status = open_model(model, path, options ? options : &defaults, err);
    if (status != HEADRACE_OK) {
        hr_model_close(model);
        return status;
    }
    *out = model;
    return HEADRACE_OK;
}

void hr_model_close(hr_model *model)
{
    if (!model)
        return;
    hr_tensor_file_close(&model->safetensors);
    hr_gguf_close(&model->gguf);
    hr_arena_deinit(&model->arena);
    free(model);
}
